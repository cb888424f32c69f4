"""
The parts of the table of targets: their arms, and how each is measured. The rows and the command are in bench_targets.py.

Each part is measured by a process of its own. Where possible its arms take turns; then two steps of each are traced. An arm
that fails gives a line that says why, and the others are measured.
"""

import contextlib
import gc
import math
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

import hardware
from checkpoint import first_line
from configurator import UserError, load
from lab import bench_fit, bench_sample, bench_start
from lab.bench_layers import MLPBenchConfig, rates, time_pair
from lab.bench_nanogpt import ArmConfig, NanoGPT
from lab.bench_profile import launch, roofline
from lab.match import sized
from lab.steps import Arm
from logger import commit
from train import TrainConfig, Trainer

TOKENS = 2**16  # of a micro-batch in the tables of costs, where the memory holds as many
BUSY = ', busy core'  # behind the name of an arm


def is_theirs(arm: str) -> bool:
    return arm.startswith('nanoGPT')


# -----------------------------------------------------------------------------
# how a part is measured: (cfg, {arm: flags}, device) -> lists of lines, each to be written at once


def attempt(name, device, make, *args):
    """make(*args); if that fails, the line which says why the arm has no figures."""
    try:
        return make(*args)
    except Exception as e:  # of any kind: it must not take the figures of the others with it
        print(f'error: {e}', file=sys.stderr) if isinstance(e, UserError) else traceback.print_exc()
        return about(device) | dict(arm=name, failed=f'{type(e).__name__}: {first_line(e)}')


def in_turns(cfg, arms, device, warmup=8, busy=False):
    """Steps of all arms in turns. busy: again on a core that another process keeps busy."""
    timed = {}
    for name, flags in arms.items():
        made = attempt(name, device, arm, flags, device, warmup)
        if isinstance(made, dict):
            yield [made]
            gc.collect()  # the others need its memory
        else:
            timed[name] = made
            print(f'{name}: compiled and ready in {made.setup:.0f} s', flush=True)
    if not timed:
        return
    steps = max(1, round(cfg.seconds / next(iter(timed.values())).block(2)))

    def rounds(suffix=''):
        for a in timed.values():
            a.times = []
        for _ in range(cfg.rounds):
            for a in timed.values():
                a.timed_block(steps)
        return [line(name + suffix, a) for name, a in timed.items()]

    found, beside = rounds(), []
    try:
        if busy:
            with busy_core():
                beside = rounds(BUSY)
        best = *rates(device, next(iter(timed.values())).trainer.dtype), launch(device)
        for r, a in zip(found, timed.values()):
            r |= roofline(a.trainer, 2, None, *best)
    finally:  # times are kept, whatever happens to what follows them
        yield found + beside


def on_two_cores(cfg, arms, device):
    with pinned(2):
        yield from in_turns(cfg, arms, device)


def one_by_one(measure, cfg, arms, device):
    for name, flags in arms.items():
        yield [attempt(name, device, measure, cfg, name, flags, device)]


def largest(cfg, name, flags, device):
    """Steps with the largest micro-batch of at most TOKENS tokens that the memory holds."""
    hardware.start_afresh()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    batch, counted = micro_batch(flags, cfg.memory)
    a = arm([f'--batch_size={batch}', *flags], device, warmup=6)
    steps = max(1, round(cfg.seconds / a.block(1)))
    for _ in range(cfg.rounds):
        a.timed_block(steps)
    return line(name, a) | dict(peak_memory=hardware.peak_memory(device, a.trainer.graphs), counted=counted)


def micro_batch(flags: list[str], memory: float) -> tuple[int, float]:
    """A power of two, and the peak that bench.py fit counts for it."""
    c = sized(load(TrainConfig, flags))
    n, most = bench_fit.count(c), TOKENS // c.block_size
    most = min(most, n.largest('one GPU', 1, False, False, c, bench_fit.USABLE * memory * 2**30))
    if not most:
        raise UserError(f'memory = {memory:g}: too little for {" ".join(flags)}')
    most = 2 ** int(math.log2(most))
    tokens = most * c.block_size
    return most, max(n.fixed('one GPU', 1, False) + n.of_tokens(tokens, False, c.n_layer), n.update('one GPU', 1))


def pair(cfg, name, flags, device):
    """The two layers of an MLP by themselves, forward and backward: what the layers' own speed is."""
    torch.set_float32_matmul_precision('high')
    c = load(TrainConfig, flags)
    own = MLPBenchConfig(tokens=c.batch_size * c.block_size, repeats=4 * cfg.rounds)
    times = time_pair(name.split()[-1], c.n_embd, own, device)[0]
    return about(device) | dict(arm=name, ms=1000 * statistics.median(times), tokens=own.tokens, width=c.n_embd)


def sample(cfg, name, flags, device):
    hardware.start_afresh()
    r = bench_sample.bench(load(bench_sample.SampleBenchConfig, flags))
    ms = {k: 1000 / r[of] for k, of in dict(ms='tokens_per_second', floor_ms='limit').items()}
    return about(device) | r | dict(arm=name) | ms


def start(cfg, name, flags, device):
    """From the command to the end of its first step, the second of two times: with warm caches."""
    with bench_start.environment() as env:
        bench_start.seconds(flags, env)
        found = bench_start.seconds(flags, env)
    return about(device) | found | dict(arm=name, ms=1000 * found['first_step'])


alone, pairs, samples, starts = (partial(one_by_one, measure) for measure in (largest, pair, sample, start))


def arm(flags, device, warmup):
    cfg = load(ArmConfig, flags)
    return Arm(flags, cfg, device, warmup, NanoGPT if cfg.nanogpt else Trainer)


def about(device) -> dict:
    return dict(device=hardware.device_name(device), torch=torch.__version__, commit=commit())


def line(name: str, a: Arm) -> dict:
    r, c = a.figures(a), a.trainer.cfg
    tokens = a.trainer.accumulation * c.batch_size * c.block_size
    if a.trainer.device.type != 'cuda':  # the resident memory of a process cannot be told apart by arm
        r['peak_memory'] = None
    return r | dict(
        arm=name, graphs=a.trainer.graphs, tokens=tokens, layers=c.n_layer, batch=c.batch_size, context=c.block_size
    )


@contextlib.contextmanager
def pinned(cores: int):
    """All threads of this process on so many cores."""
    if not hasattr(os, 'sched_setaffinity'):
        raise UserError('two cores, micro-batch 12: need Linux, which ties a process to cores; leave these parts out')
    before = os.sched_getaffinity(0)

    def tie(to):
        for thread in os.listdir('/proc/self/task'):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), to)

    tie(sorted(before)[:cores])
    try:
        yield
    finally:
        tie(before)


@contextlib.contextmanager
def busy_core():
    """This process on one core, which another one keeps busy: a slow host."""
    loop = 'import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass'
    with pinned(1), subprocess.Popen([sys.executable, '-c', loop]) as other:
        try:
            yield
        finally:
            other.kill()


# -----------------------------------------------------------------------------
# the parts


class Part(NamedTuple):
    measure: Callable
    arms: dict  # {name: flags}; nanoGPT's where the name begins so
    env: dict = {}


def gpt2(batch: int, flags='', config='gpt2', bias=False, accumulation=1) -> str:
    batch = f'--batch_size={batch}' if batch else ''
    return (
        f'config/{config}.py --dataset=shakespeare_char --vocab_size=50304 --bias={bias}'
        f' --gradient_accumulation_steps={accumulation} {batch} {flags}'
    )


CHAR, K = 'config/shakespeare_char.py', 'config/expansive_shakespeare.py'
LAYERS = ('low_rank', 'block_dense', 'monarch', 'btt', 'kronecker', 'tensor_train', 'btt_moe')
PARTS = {
    'micro-batch 64': Part(in_turns, {
        'nanoGPT 64': gpt2(64), '64': gpt2(64), 'nanoGPT 64 bias': gpt2(64, bias=True), '64 bias': gpt2(64, bias=True),
        '64 modern': gpt2(64, '--position=rope --norm=rmsnorm --qk_norm=true'),
    }),
    'micro-batch 12': Part(partial(in_turns, busy=True), {'nanoGPT 12': gpt2(12), '12': gpt2(12)}),
    'shakespeare': Part(in_turns, {
        'nanoGPT char': CHAR, 'char': CHAR, 'k2000': K, 'k10000': f'{K} --expansion=10000',
        'char muon': f'{CHAR} --optimizer=muon', 'k2000 muon': f'{K} --optimizer=muon',
    }),
    'micro-batch 32': Part(in_turns, {
        'dense': gpt2(32), 'moe': gpt2(32, '--mlp=moe'), **{name: gpt2(32, f'--linear={name}') for name in LAYERS},
    }),
    'pairs': Part(pairs, {f'pair {name}': gpt2(32) for name in ('dense_fused', *LAYERS[:3])}),
    'half a million': Part(partial(in_turns, warmup=4), {
        'adamw': gpt2(32, accumulation=16), 'muon': gpt2(32, '--optimizer=muon', accumulation=16),
    }),
    'sampling': Part(samples, {
        'nanoGPT write': gpt2(0, '--rounds=1'), 'write': gpt2(0, '--rounds=3'), 'write compiled': gpt2(0, '--rounds=3 --compile=true'),
        'nanoGPT write 64': gpt2(0, '--rounds=1 --samples=64'), 'write 64': gpt2(0, '--rounds=3 --samples=64'),
        'write 64 compiled': gpt2(0, '--rounds=3 --samples=64 --compile=true'),
    }),
    'start': Part(starts, {'start': CHAR}),
    'two cores': Part(on_two_cores, {'nanoGPT cpu': CHAR, 'cpu': CHAR}, dict(CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='2')),
    'sizes': Part(alone, {
        '10M': CHAR, '124M': gpt2(0), '350M': gpt2(0, config='gpt2_medium'), '774M': gpt2(0, config='gpt2_large'),
        '1.5B': gpt2(0, config='gpt2_xl'),
    }),
    'contexts': Part(alone, {f'124M, {n}k': gpt2(0, f'--block_size={1024 * n}') for n in (1, 2, 4, 8, 16)}),
}  # fmt: skip
COSTS = ('sizes', 'contexts')
