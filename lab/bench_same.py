"""
Is the mathematics that of the plain step? Losses of a run and gradients at its start, beside float32. bench.py calls it.

    python bench.py same config/shakespeare_char.py --dropout=0
    python bench.py same config/gpt2.py --dataset=shakespeare_char --vocab_size=50304 --n_embd=384 --n_head=6 --batch_size=8

Three runs see the same data from the same start, one after the other: the step of train.py with all that makes it fast; the
plain step in its precision, under autocast; the plain step in float32, without TF32. Plain is eager, without kernels of ours,
without CUDA graphs, with attention as a softmax of scores. Bfloat16 rounds, so the fast step is held against the plain one of
its precision: it may not be further from float32. Draws of dropout would differ, so there is none.
"""

import contextlib
import dataclasses
import importlib
import pkgutil
import re
import statistics
from dataclasses import dataclass
from unittest import mock

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import hardware
from configurator import key, root_path
from files import add_line, ready
from lab.bench_ablate import SWITCHES
from lab.bench_profile import show
from lab.costs import columns
from lab.steps import settings
from linear import kernels
from logger import commit, relative
from train import TrainConfig, Trainer

OWN = dict(fast=dict, plain=dict, losses=dict)  # lines of --out, for files.ready


@dataclass
class SameConfig(TrainConfig):
    steps: int = key(200, 'of each run', low=1, group='comparing')
    tail: int = key(50, 'steps at the end whose mean loss is compared', low=1)
    out: str = key('', 'file to which the figures are added, a JSON line; empty: none')
    show: str = key('', 'only print the tables of such a file')

    def problems(self, sized=None):
        return super().problems(sized) + (['dropout: its draws would differ; --dropout=0'] if self.dropout else [])


@contextlib.contextmanager
def plain():
    """Attention as a softmax of scores, and off what has no key of its own: kernels with a switch, and the update's."""
    with contextlib.ExitStack() as off:
        for found in pkgutil.iter_modules(kernels.__path__):
            module = importlib.import_module(f'{kernels.__name__}.{found.name}')
            if hasattr(module, 'ON'):
                off.enter_context(mock.patch.object(module, 'ON', False))
        for name in ('captured update', 'fused AdamW', 'padded vocabulary'):
            off.enter_context(SWITCHES[name].off(None))
        off.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def followed(cfg, device) -> tuple[list, dict]:
    """(losses, {parameter: gradient of the first batch})"""
    hardware.start_afresh()
    t = Trainer(cfg, device)
    if t.dtype == torch.float32:
        torch.set_float32_matmul_precision('highest')
    t.first_micro_step(*t.data['train'].batch(0))
    grads = {name: p.grad.float().cpu() / t.scaler.get_scale() for name, p in t.model.named_parameters()}
    t.optimizer.zero_grad()
    losses = []
    for _ in range(cfg.steps):
        t.step()
        losses.append(t.loss_sum / t.accumulation)
        t.loss_sum = torch.zeros_like(t.loss_sum)
    return torch.stack(losses).tolist(), grads


def differences(run, exact, tail: int) -> dict:
    """How far a run is from the one in float32: losses in nats, gradients as |a - b| / |b| of each parameter."""
    far = [a - b for a, b in zip(run[0], exact[0])]
    grads = {k: float((run[1][k] - g).norm() / g.norm().clamp(min=1e-30)) for k, g in exact[1].items()}
    return dict(
        mean=statistics.mean(map(abs, far)), largest=max(map(abs, far)), tail=statistics.mean(far[-tail:]), grads=grads
    )


def same(cfg: SameConfig) -> dict | None:
    if cfg.show:
        return show(cfg.show, lambda lines: '\n\n'.join(map(table, lines)), 'bench.py same')
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py same')
    device = hardware.choose_device(cfg.device, cfg.deterministic)
    eager = dataclasses.replace(cfg, compile=False, cuda_graph=False, fuse_mlp=False)
    runs = dict(fast=followed(cfg, device))
    with plain():
        runs['plain'] = followed(eager, device)
        runs['float32'] = followed(dataclasses.replace(eager, dtype='float32'), device)
    dtype = str(hardware.choose_dtype(cfg.dtype, device)).removeprefix('torch.')
    row = {k: differences(runs[k], runs['float32'], cfg.tail) for k in ('fast', 'plain')}
    of = ', '.join(f'{k} {getattr(cfg, k)}' for k in ('linear', 'n_layer', 'n_embd', 'block_size', 'batch_size'))
    row |= dict(
        sizes=of,
        losses={k: [float(f'{v:.6g}') for v in run[0]] for k, run in runs.items()}, steps=cfg.steps, tail=cfg.tail,
        device=hardware.device_name(device), dtype=dtype, torch=torch.__version__, commit=commit(), config=settings(cfg),
    )  # fmt: skip
    print(table(row))
    if cfg.out:
        add_line(root_path(cfg.out), relative(row))
    return row


def table(r: dict) -> str:
    lines = [
        {
            'against float32': f'{k}, {r["dtype"]}',
            'loss: mean': f'{r[k]["mean"]:.5f}',
            'largest': f'{r[k]["largest"]:.5f}',
            f'mean of the last {r["tail"]}': f'{r[k]["tail"]:+.5f}',
            'gradients: median': f'{statistics.median(r[k]["grads"].values()):.2e}',
            'worst': f'{max(r[k]["grads"].values()):.2e}',
        }
        for k in ('fast', 'plain')
    ]
    kinds = {}  # of tensors: without the number of the block
    for name in r['fast']['grads']:
        kinds.setdefault(re.sub(r'^transformer\.(h\.\d+\.)?', '', name), []).append(name)
    worst = [
        {'gradient': kind} | {k: f'{max(r[k]["grads"][n] for n in names):.2e}' for k in ('fast', 'plain')}
        for kind, names in kinds.items()
    ]
    head = f'{r["sizes"]}; {r["device"]}, torch {r["torch"]}, {r["steps"]} steps, last loss {r["losses"]["float32"][-1]:.4f} in float32'
    return '\n'.join([head, *columns(lines), '', *columns(worst)])
