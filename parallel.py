"""
Several processes: what each of them holds of the model, and what they send each other.

    ddp    Each holds the whole model. Gradients are averaged during the last backward pass of a step.
    fsdp   Each holds a share of every tensor: of its values, its gradient and Adam's moments. The tensors of a block are
           gathered before it computes. Where they are small beside the memory they stay until the last backward pass of
           the step; else they are dropped, and gathered anew for each pass (reshard_after_forward). Gradients are averaged
           and shared out during the last backward pass. (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054; PyTorch FSDP:
           Zhao et al. 2023, arXiv 2304.11277; fully_shard.) An optimizer that needs whole matrices has each in one process
           (Exchange).

Both compute the same from the same data. docs/scaling.md says what they cost in memory and traffic.
"""

import math
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

import hardware
from configurator import UserError, key

KEPT = 0.05  # of a GPU's memory: gathered blocks that take less stay for a whole step
UNIT = 3  # blocks that are gathered together where they stay; each unit costs the processor time


@dataclass
class Keys:
    """What the processes of a run share, and what is kept for the backward pass."""

    parallel: str = key(
        'ddp',
        'of torchrun processes: each holds the whole model (ddp), or a share of every tensor (fsdp: less memory)',
        choices=('ddp', 'fsdp'),
        group='device and speed',
    )
    reshard_after_forward: bool | None = key(
        None,
        'fsdp: drop a gathered block after each pass and gather it anew for the next (less memory); false: keep it to the end of'
        f' the step (faster); none: keep where all of them take less than {KEPT:.0%} of the memory',
    )
    sharded_checkpoints: bool = key(
        False,
        'fsdp: each process writes its share (out_dir/shards-ITERATION); the plain ckpt.pt comes at the end of the run',
    )
    activation_checkpointing: bool = key(
        False,
        'keep only the inputs of the blocks, and compute the rest again in the backward pass: less memory, slower',
    )


def idle() -> list[str]:
    """Keys that mean nothing to a single process."""
    return ['parallel', 'reshard_after_forward', 'sharded_checkpoints'] if hardware.rank_world()[1] == 1 else []


def problems(cfg) -> list[str]:
    """What cannot be shared out, or computed twice, one line each."""
    found, mixture = [], cfg.mlp == 'moe' or cfg.linear == 'btt_moe'
    if cfg.activation_checkpointing and mixture:
        found.append(
            'activation_checkpointing = True: a router gives its loss beside the output of its block, and only the output can'
            ' be computed twice; leave it out with mlp = moe and linear = btt_moe'
        )
    if cfg.reshard_after_forward is not None and cfg.parallel != 'fsdp':
        found.append(
            f'reshard_after_forward = {cfg.reshard_after_forward}: blocks are gathered with parallel = fsdp only; leave it out'
        )
    if cfg.sharded_checkpoints and cfg.parallel != 'fsdp':
        found.append('sharded_checkpoints = True: there are shares with parallel = fsdp only; leave it out')
    if cfg.sharded_checkpoints and cfg.keep_last:
        found.append('sharded_checkpoints = True: keeps the last and the best only; leave out keep_last')
    if cfg.parallel != 'fsdp':
        return found
    whole = {  # keys that need a whole tensor where fsdp has a share: (is it set, why)
        'step_rule = product': (cfg.step_rule == 'product', 'moves whole matrices that whole factors form'),
        'linear_path = materialised': (cfg.linear_path == 'materialised', 'forms whole matrices from whole factors'),
        f'expansion_schedule = {cfg.expansion_schedule}': (
            cfg.expansion_schedule != 'all',
            'factorizes whole matrices while the model trains',
        ),
        f'guide_iters = {cfg.guide_iters}': (cfg.guide_iters > 0, 'drops tensors while the model trains'),
        'mlp_gate = True': (cfg.mlp_gate, 'reads the gates of all blocks at once, when they are shared out again'),
    }
    found += [f'{what}: {why}; use parallel = ddp' for what, (is_set, why) in whole.items() if is_set]
    return found


def reshards(asked: bool | None, size: float, memory: float) -> tuple[bool, str]:
    """Whether gathered blocks are dropped after each pass (the key reshard_after_forward), and a line that says why. size:
    bytes of all of them; memory: bytes of a GPU, infinite on a CPU."""
    reshard = size >= KEPT * memory if asked is None else asked
    if asked is not None:
        why = f'as reshard_after_forward = {asked} asks'
    elif memory == math.inf:
        why = 'as always on a CPU'
    else:
        why = f'all of them take {size / 2**30:.2f} GiB, {size / memory:.1%} of the memory'
    return reshard, f'fsdp: blocks are gathered {"for each pass" if reshard else "once a step"}, {why}'


def prepare(model, cfg, device: torch.device, dtype: torch.dtype, compile: bool) -> tuple[bool, str]:
    """Once, before the optimizer is made: share the model out (fsdp), and let blocks be computed twice. Returns what
    reshards() says; no line without fsdp."""
    share_out = cfg.parallel == 'fsdp' and hardware.rank_world()[1] > 1
    for block in model.transformer.h:
        if share_out and compile:  # the hooks that gather and drop tensors stay outside
            block.forward = torch.compile(block.forward, fullgraph=True)
        if cfg.activation_checkpointing:
            block.forward = twice(block.forward, random=cfg.dropout > 0)
    if not share_out:
        return False, ''
    if compile:
        model.loss = torch.compile(model.loss, fullgraph=True)
    if dtype == torch.float16:
        raise UserError(
            'dtype = float16: its loss scaling would have to agree over the shares of parallel = fsdp; use dtype = bfloat16, or'
            ' parallel = ddp'
        )
    from torch.distributed.device_mesh import init_device_mesh  # only here: this takes a second to import
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A block's tensors are rounded before they are sent, as autocast would round them before use; sums stay in float32.
    # Embeddings and head are not: the stream of the residuals is in float32, as with ddp.
    low = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device.type, (hardware.rank_world()[1],))
    size = dtype.itemsize * sum(p.numel() for p in model.transformer.h.parameters())
    least = torch.tensor(hardware.memory(device), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)  # GPUs may differ, and all processes have to gather at the same places
    reshard, about = reshards(cfg.reshard_after_forward, size, least.item())
    # what a block returns is never changed in place: add_up and the norms write to new memory
    warnings.filterwarnings('ignore', 'FSDP2-wrapped module .* returned a view tensor', UserWarning)
    blocks, n = list(model.transformer.h), 1 if reshard else UNIT
    for i in range(0, len(blocks), n):
        fully_shard(blocks[i : i + n], mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh)
    return reshard, about


def twice(forward, random: bool):
    """forward of a block that keeps nothing for the backward pass but the sum of its inputs x and m: the rest is computed
    again there. random: the block has dropout, which must then drop the same numbers."""

    def again(x, m, *rest):
        x = x if m is None else x + m
        return checkpoint(forward, x, None, *rest, use_reentrant=False, preserve_rng_state=random)

    return again


def wrap(model, device: torch.device, compile: bool) -> tuple:
    """(what training calls, what an evaluation calls), compiled; to be made anew where a module of the model changes."""
    if sharded(model):
        return model, model
    forward = torch.compile(model, fullgraph=True) if compile else model
    if hardware.rank_world()[1] == 1:
        return forward, forward
    ids = [device.index] if device.type == 'cuda' else None
    return DDP(forward, device_ids=ids, gradient_as_bucket_view=True), forward


def average(forward, on: bool, reshard: bool):
    """Whether the next backward pass averages the gradients over the processes. Until then each sums up its own, and unless
    it reshards it keeps what is gathered. The pass that averages drops it always: the optimizer moves the shares, and a copy
    that stayed would be used as it is."""
    if sharded(forward):
        forward.set_requires_gradient_sync(on)
        forward.set_reshard_after_backward(on or reshard)
    elif isinstance(forward, DDP):
        forward.require_backward_grad_sync = on


def sharded(model) -> bool:
    """Whether this process holds shares of the model's tensors."""
    return hasattr(model, 'set_requires_gradient_sync')  # fully_shard gives it this method


def is_share(t) -> bool:
    """Whether a tensor is a share of a larger one (a DTensor)."""
    return hasattr(t, 'full_tensor')


def memory(share) -> tuple:
    """A key that is equal for tied shares and differs for all others, even in a process whose share is empty."""
    mine = share.to_local()
    return mine.untyped_storage()._cdata, mine.storage_offset(), share.shape


def whole(t):
    """The whole of a tensor; every process has to ask for it."""
    return t.full_tensor() if is_share(t) else t


def share(t, like):
    """This process's share of t, cut as that of `like`. Every process has the whole of t."""
    if not is_share(like) or t.shape != like.shape:
        return t
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(t.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def world(share) -> int:
    """How many processes have shares of the same tensor."""
    return share.device_mesh.size()


def local(t):
    """What this process has of a tensor."""
    return t.to_local() if is_share(t) else t


class Exchange:
    """Puts shares together to whole tensors, each in one process (its home), and cuts the wholes into shares again. Every
    process sends one message to every other, however many tensors there are. Tensors are cut along the first axis, so a
    whole is its shares one after the other.

    tensors: this process's shares. home: the home of each tensor. Attribute `mine`: the tensors whose home is this process."""

    def __init__(self, tensors: list, home: list):
        mesh = tensors[0].device_mesh
        self.group, self.rank, world = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        self.device, self.shapes = tensors[0].device, [t.shape for t in tensors]
        rows = lambda n, rank: len(range(n)[rank * -(-n // world) :][: -(-n // world)])  # the last ones may have none
        self.sizes = [[rows(s[0], r) * s[1:].numel() for r in range(world)] for s in self.shapes]
        self.by_home = [[i for i, h in enumerate(home) if h == r] for r in range(world)]
        self.mine = self.by_home[self.rank]
        self.parts = [
            [self.sizes[i][r] for i in self.mine] for r in range(world)
        ]  # sizes of process r's shares of mine
        self.shares = [[self.sizes[i][self.rank] for i in found] for found in self.by_home]  # own shares, by home

    def gather(self, shares: list) -> list:
        """This process's part of each tensor -> the whole ones of `mine`. All are of one dtype."""
        found = self.send([shares[i] for home in self.by_home for i in home], self.shares, self.parts, shares[0].dtype)
        return [torch.cat(found[j :: len(self.mine)]).view(self.shapes[i]) for j, i in enumerate(self.mine)]

    def scatter(self, wholes: list) -> list:
        """The whole tensors of `mine`, in float32 -> this process's part of each tensor."""
        parts = [t.flatten().split(self.sizes[i]) for i, t in zip(self.mine, wholes)]
        found = self.send([p[r] for r in range(len(self.parts)) for p in parts], self.parts, self.shares, torch.float32)
        part = dict(zip((i for home in self.by_home for i in home), found))
        return [part[i].view(-1, *shape[1:]) for i, shape in enumerate(self.shapes)]

    def send(self, parts: list, sizes: list, back: list, dtype) -> list:
        """Send parts, in the order of the processes that they go to; returns those that come, by the process they come from.
        sizes: for each process the sizes of the parts that go there; back: of those that come from there."""
        out = torch.cat([torch.empty(0, dtype=dtype, device=self.device), *(p.flatten() for p in parts)])
        come = out.new_empty(sum(map(sum, back)))
        dist.all_to_all_single(come, out, list(map(sum, back)), list(map(sum, sizes)), self.group)
        return list(come.split([n for found in back for n in found]))

    def copy(self, t, i: int):
        """Send t from the home of tensor i to all other processes, which give a tensor of its shape to be filled."""
        dist.broadcast(t, group_src=next(r for r, found in enumerate(self.by_home) if i in found), group=self.group)
        return t


def gather(tree, keep: bool, seen=None):
    """A copy of tree, a dict of tensors and dicts, with whole tensors on the CPU in place of shares. Shares are gathered one
    by one, and tied ones stay tied. Every process calls this; where keep is False the whole tensors are dropped."""
    seen = {} if seen is None else seen
    if isinstance(tree, dict):
        return {k: gather(v, keep, seen) for k, v in tree.items()}
    if not is_share(tree):
        return tree
    if (where := memory(tree)) not in seen:
        t = tree.full_tensor()
        seen[where] = t.cpu() if keep else None
    return seen[where]
