"""
Training several seeds of a small network at once: their parameters lie in one stack, torch.func maps the network over
it, and one optimizer moves them all. Adam works number by number, so each seed trains exactly as it would alone. Dropout
is the exception: its draws depend on which seeds train together, and the same ones again give the same runs.
"""

import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

import hardware
from configurator import UserError, brief
from files import launched
from logger import Log, make_room


def read_seeds(text: str) -> list[int]:
    """'1,2,3' -> [1, 2, 3], each of them once. Raises UserError."""
    try:
        found = list(dict.fromkeys(int(s) for s in text.split(',') if s.strip()))
    except ValueError:
        found = []
    if not found or not all(0 <= s < 2**40 for s in found):  # batches() multiplies them
        raise UserError(f"seeds = '{brief(text)}': must be whole numbers from 0 to 2**40 - 1, such as 1,2,3")
    return found


class Stack:
    """One network per seed: make() is called once for each, after torch.manual_seed(seed)."""

    def __init__(self, make, seeds: list[int], device):
        nets = []
        for s in seeds:
            torch.manual_seed(s)
            nets.append(make())
        params, self.buffers = stack_module_state([n.to(device) for n in nets])
        self.params = {k: v.detach().requires_grad_() for k, v in params.items()}
        self.net = copy.deepcopy(nets[0]).to('meta')

    def __call__(self, x, shared: bool = False):
        """Outputs (S, ...) of all seeds for x (S, ...), or for the same x in all."""

        def one(params, buffers, x):
            return functional_call(self.net, (params, buffers), (x,))

        return vmap(one, in_dims=(0, 0, None if shared else 0), randomness='different')(self.params, self.buffers, x)

    def train(self, mode: bool):
        self.net.train(mode)


def make_optimizer(kind, stack: Stack, lr: float, device, **options):
    """kind (Adam, AdamW) over the stack; on a GPU as a CUDA graph can hold it, with the rate in a tensor."""
    if device.type == 'cuda':
        options |= dict(fused=True, capturable=True)
        lr = torch.tensor(lr, device=device)
    return kind(list(stack.params.values()), lr=lr, **options)


def set_lr(optimizer, lr: float):
    for group in optimizer.param_groups:
        if torch.is_tensor(group['lr']):
            group['lr'].fill_(lr)  # where the graph reads it
        else:
            group['lr'] = lr


def make_step(stack: Stack, optimizer, x, y, total, cuda_graph: bool):
    """step(index (S, B)): every seed learns from its own examples of x, y; its loss is added to total (S).
    Networks this small leave a GPU idle while their kernels are launched: there the step is replayed as a CUDA graph."""

    def step(index):
        logits = stack(x[index])  # (S, B, ..., classes)
        loss = F.cross_entropy(logits.flatten(0, -2), y[index].flatten(), reduction='none')
        loss = loss.view(len(total), -1).mean(1)
        optimizer.zero_grad()  # to None: backward lays new ones out as the parameters, as a fused optimizer wants it
        loss.sum().backward()  # the seeds share nothing: each gets the gradient of its own loss
        optimizer.step()
        total.add_(loss.detach())

    return hardware.Replay(step) if cuda_graph and x.is_cuda else step


def batches(n: int, size: int, seeds: list[int], epoch: int, device):
    """Indices (S, size) of an epoch: every seed's own order, which depends on nothing but seed and epoch, so that all
    arms see the same. The incomplete last batch is left out."""
    orders = []
    for s in seeds:
        g = torch.Generator().manual_seed(s * 1_000_003 + epoch)
        orders.append(torch.randperm(n, generator=g))
    orders = torch.stack(orders).to(device)
    for i in range(0, n - size + 1, size):
        yield orders[:, i : i + size]


def example_flops(net, x) -> int:
    """Training FLOPs of one example (forward, and backward as twice that), counted on its operations."""
    net = copy.deepcopy(net).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return 3 * counter.get_total_flops()


class Clock:
    """Seconds of training, without the evaluations."""

    def __init__(self, device):
        self.device, self.seconds, self.since = device, 0.0, time.time()

    def stop(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        self.seconds += time.time() - self.since

    def start(self):
        self.since = time.time()


def write_runs(cfg, out: Path, seeds: list[int], facts: dict, lines: list[list[dict]], final_iter: int):
    """A run's record for each seed in out/s<seed>, an earlier one there moves aside. lines: one list of evaluations per
    seed. The caller holds out (files.alone)."""
    for s, mine in zip(seeds, lines):
        if not launched(out) and (moved := make_room(out / f's{s}')):
            print(moved)
        log = Log(cfg, out / f's{s}', {}, facts | dict(seed_model=s, seed_data=s, seeds_at_once=len(seeds)))
        for m in mine:
            log.metrics(kind='eval', **m)
        log.close(final_iter=final_iter)
