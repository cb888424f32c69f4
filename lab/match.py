"""
Find the width at which one config costs as much as another one. The command is `transfer.py match`:

    python transfer.py match config/d12.py -- config/d12_mlp3x_768.py --match=flops --solve=n_embd

Reference and candidate are configs with flags as for train.py, separated by `--`. One key of the candidate takes the
values of a grid (n_embd by whole heads of unchanged width, n_kv_head of them at a time; hidden units by multiple_of;
expansion by 1). Printed are the two values nearest to the reference, each with the mismatch that is left, as flags to
copy; the better one is marked.
"""

import dataclasses
import functools
import itertools
import math
import statistics
from dataclasses import dataclass

import hardware
import linear
from configurator import UserError, key, load, overrides
from lab.steps import Arm
from surgery import distill, rotate
from tokens import loader
from train import TrainConfig


@dataclass
class MatchConfig(TrainConfig):
    match: str = key(
        'params',
        'what must be equal (time: of a training step, measured here)',
        choices=('params', 'flops', 'time'),
        group='matching',
    )
    solve: str = key('n_embd', 'which key to vary', choices=('n_embd', 'mlp_expansion_factor', 'expansion'))
    steps: int = key(5, 'match = time: steps in a timed block', low=1)
    rounds: int = key(5, 'match = time: timed blocks, the median counts', low=1)


def cost(cfg, device) -> float:
    """What a config costs: parameters (factors included), FLOPs per training token (the mean over the run), or milliseconds
    per step."""
    if cfg.match == 'time':
        arm = Arm([], cfg, device, warmup=3)
        for _ in range(cfg.rounds):
            arm.timed_block(cfg.steps)
        return 1000 * statistics.median(arm.times)
    if cfg.match == 'params':
        model, beside = rotate.shapes(rotate.model_config(cfg))
        return model.num_params(beside)
    iters = max(1, cfg.max_iters)
    return flops_of(stages(cfg), iters) / iters / cfg.tokens_per_iter


def stages(cfg) -> list[tuple]:
    """What the iterations of a run cost: [(how many, FLOPs of each)], and again from the start. All are alike, but those that
    have a guide, and with rotate those of layers of other sizes."""
    teacher = teacher_flops(cfg.distill_from, cfg.vocab_size, cfg.block_size, cfg.dataset) if cfg.distill_from else 0

    def each(cfg):
        model, beside = rotate.shapes(cfg)
        return cfg.tokens_per_iter * (model.flops_per_token() + teacher) + beside.flops_per_update()

    if cfg.expansion_schedule == 'rotate':
        of_size, sizes = {}, list(linear.chosen(cfg).values())
        for i, size in enumerate(sizes):
            if size not in of_size:
                of_size[size] = each(rotate.model_config(cfg, i * cfg.expansion_every))
        return [(cfg.expansion_every, of_size[size]) for size in sizes]
    cfg = rotate.model_config(cfg)
    guided = [(cfg.guide_iters, each(cfg))] if cfg.guide_iters else []
    return [*guided, (math.inf, each(dataclasses.replace(cfg, guide_iters=0)))]


def flops_of(stages: list[tuple], iters: int) -> int:
    """FLOPs of the first iters iterations."""
    total = 0
    for n, each in itertools.cycle(stages):
        total += min(n, iters) * each
        iters -= min(n, iters)
        if not iters:
            return total


def iters_within(stages: list[tuple], flops: float) -> int:
    """The most iterations whose FLOPs are not above flops."""
    iters = 0
    for n, each in itertools.cycle(stages):
        fit = int(min(n, max(0, flops) // each))
        iters, flops = iters + fit, flops - fit * each
        if fit < n:
            return iters


@functools.cache  # the teacher is the same all along the grid
def teacher_flops(path: str, vocab_size: int, block_size: int, dataset: str) -> int:
    cfg = TrainConfig(distill_from=path, vocab_size=vocab_size, block_size=block_size, dataset=dataset)
    return distill.teacher_flops(distill.open_teacher(cfg), cfg)


def sized(cfg):
    """cfg with the vocabulary of its data set, where it names none."""
    n = cfg.vocab_size or loader.padded_vocabulary(loader.read_meta(cfg.dataset))
    return dataclasses.replace(cfg, vocab_size=n)


def at(cfg, i: int):
    """The candidate at grid point i >= 1."""
    if cfg.solve == 'n_embd':
        heads = i * (cfg.n_kv_head or 1)  # n_kv_head stays, and must divide them
        return dataclasses.replace(cfg, n_embd=heads * (cfg.n_embd // cfg.n_head), n_head=heads)
    if cfg.solve == 'expansion':
        return dataclasses.replace(cfg, expansion=i)
    share = 2 / 3 if cfg.mlp == 'swiglu' and cfg.swiglu_match else 1
    return dataclasses.replace(cfg, mlp_expansion_factor=i * cfg.multiple_of / cfg.n_embd / share)


def flags(cfg) -> str:
    if cfg.solve == 'n_embd':
        return f'--n_embd={cfg.n_embd} --n_head={cfg.n_head}'
    value = getattr(cfg, cfg.solve)
    return f'--{cfg.solve}={value:.10g}' + (f' (hidden {cfg.hidden(0)})' if cfg.solve == 'mlp_expansion_factor' else '')


def solve(reference, candidate, device):
    """(target, [(cost, config) below or equal, (cost, config) above]) for the candidate's grid. Costs grow along it."""
    target = cost(dataclasses.replace(reference, match=candidate.match), device)
    costs = {}

    def probe(i):
        if i not in costs:
            costs[i] = cost(at(candidate, i), device)
        return costs[i]

    low, high = 0, 1
    while probe(high) <= target:
        low, high = high, 2 * high
        if high > 2**20:
            raise UserError(f'solve = {candidate.solve}: no value costs as much as the reference; vary another key')
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if probe(middle) <= target else (low, middle)
    return target, [(costs[i], at(candidate, i)) for i in (low, high) if i]


def match(argv: list[str]):
    if '--' not in argv and not {'--help', '-h'} & set(argv):
        raise UserError(
            'match needs two configs: python transfer.py match REFERENCE.py [flags] -- CANDIDATE.py [flags]'
        )
    cut = argv.index('--') if '--' in argv else 0
    candidate = load(MatchConfig, argv[cut + 1 :] if '--' in argv else argv)
    reference = load(MatchConfig, argv[:cut])
    if mine := {'match', 'solve', 'steps', 'rounds'} & set(overrides(reference)):
        raise UserError(f'{", ".join(sorted(mine))}: belongs to the candidate, behind the --')
    configs = sized(reference), sized(candidate)
    if candidate.solve == 'expansion' and candidate.linear != 'expanded':
        raise UserError('solve = expansion: the candidate has linear = dense; add --linear=expanded')
    if isinstance(candidate.mlp_expansion_factor, tuple) and candidate.solve == 'mlp_expansion_factor':
        raise UserError('solve = mlp_expansion_factor: the candidate has one factor per layer; give one number')
    unit = dict(params='parameters', flops='FLOP per token', time='ms per step')[candidate.match]
    device = hardware.choose_device(candidate.device, candidate.deterministic)
    target, found = solve(*configs, device)
    print(f'reference: {target:,.6g} {unit}' if candidate.match == 'time' else f'reference: {target:,.0f} {unit}')
    best = min(found, key=lambda f: abs(f[0] / target - 1))
    for value, cfg in found:
        mark = '  <- nearest' if cfg is best[1] else ''
        print(f'{flags(cfg)}: {value:,.6g} {unit}, mismatch {value / target - 1:+.3%}{mark}')
