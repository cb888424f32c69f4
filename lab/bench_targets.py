"""
The table of targets: steps, memory, sampling and the start of a run, beside nanoGPT or the dense model. bench.py calls it.

    python bench.py targets --nanogpt=/path/to/nanoGPT --out=out/targets.jsonl
    python bench.py targets --parts=sizes,contexts --out=out/costs.jsonl      cost against size, and against context length
    python bench.py targets --show=out/targets.jsonl

A part is measured by a process of its own. Its arms take turns, then two steps of each are traced. What is in the file is not
measured again: the same command goes on where it stopped. Before that, arms are compiled side by side, into the compiler's
cache; nothing is timed meanwhile. "at 90%" is what a row would be if our step took its roofline / 0.9 (lab/bench_profile.py);
where a target lies beyond that, it takes the target's place.
"""

import contextlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

import hardware
from configurator import ROOT, UserError, input_path, key, load, overrides, printable, root_path
from files import read_lines, write
from lab import bench_sample
from lab.bench_fit import USABLE, count
from lab.bench_layers import MLPBenchConfig, rates, time_pair
from lab.bench_nanogpt import ArmConfig, NanoGPT
from lab.bench_profile import KINDS, launch, ready, roofline
from lab.costs import columns
from lab.steps import Arm
from logger import commit, relative
from train import TrainConfig, Trainer

TOKENS = 2**16  # of a micro-batch in the tables of costs, where the memory holds as many


@dataclass
class TargetsConfig:
    nanogpt: str = key('', 'folder of nanoGPT: git clone https://github.com/karpathy/nanoGPT')
    parts: str = key('', 'what to measure, as sizes,contexts; empty: all of the table of targets')
    out: str = key('', 'file for the figures, a JSON line per arm')
    show: str = key('', 'only print the tables of such a file')
    rounds: int = key(5, 'timed blocks of each arm', low=1)
    seconds: float = key(0.4, 'length of a block', above=0)
    flags: str = key('', 'flags for all arms, behind their own: a trial with small models')
    memory: float = key(80.0, 'GiB that the micro-batches of sizes and contexts may take', above=0)
    jobs: int = key(6, 'arms that are compiled at the same time; 0: each where it is measured', low=0)
    part: str = key('', 'measure this part in this process; the command starts itself with it')

    def names(self) -> list[str]:
        return self.parts.split(',') if self.parts else [p for p in PARTS if p not in COSTS]

    def problems(self):
        odd = [p for p in {*self.names(), self.part or 'start'} if p not in PARTS]
        if odd or self.show:
            return [f'parts: {", ".join(odd)} unknown; there are {", ".join(PARTS)}'] if odd else []
        found = [] if self.out else ['out: must be given, as --out=out/targets.jsonl']
        if not self.nanogpt and any(is_theirs(arm) for p in self.names() for arm in PARTS[p].arms):
            found.append(
                'nanogpt: must be given; git clone https://github.com/karpathy/nanoGPT, then --nanogpt=nanoGPT'
            )
        return found


def is_theirs(arm: str) -> bool:
    return arm.startswith('nanoGPT')


# -----------------------------------------------------------------------------
# how a part is measured: (cfg, {arm: flags}, device) -> lists of lines, each to be written at once


def in_turns(cfg, arms, device, warmup=8, busy=False):
    """Steps of all arms in turns. busy: again on a core that another process keeps busy."""
    timed = {name: arm(flags, device, warmup) for name, flags in arms.items()}
    steps = max(1, round(cfg.seconds / next(iter(timed.values())).block(2)))

    def rounds(suffix=''):
        for a in timed.values():
            a.times = []
        for _ in range(cfg.rounds):
            for a in timed.values():
                a.timed_block(steps)
        return [line(name + suffix, a) for name, a in timed.items()]

    found, beside = rounds(), []
    if busy:
        with busy_core():
            beside = rounds(BUSY)
    for r, a in zip(found, timed.values()):
        r |= roofline(a.trainer, 2, None, *rates(device, a.trainer.dtype), launch(device))
    yield found + beside


def on_two_cores(cfg, arms, device):
    with pinned(2):
        yield from in_turns(cfg, arms, device)


def alone(cfg, arms, device):
    """Steps of one arm after the other, with the largest micro-batch of at most TOKENS tokens that the memory holds."""
    for name, flags in arms.items():
        hardware.start_afresh()
        if device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        a = arm([f'--batch_size={micro_batch(flags, cfg.memory)[0]}', *flags], device, warmup=6)
        steps = max(1, round(cfg.seconds / a.block(1)))
        for _ in range(cfg.rounds):
            a.timed_block(steps)
        peak = hardware.peak_memory(device, a.trainer.graphs)
        yield [line(name, a) | dict(peak_memory=peak, counted=micro_batch(flags, cfg.memory)[1])]
        del a


def micro_batch(flags: list[str], memory: float) -> tuple[int, float]:
    """A power of two, and the peak that bench.py fit counts for it."""
    c = load(TrainConfig, flags)
    n, most = count(c), TOKENS // c.block_size
    most = min(most, n.largest('one GPU', 1, False, False, c, USABLE * memory * 2**30))
    if not most:
        raise UserError(f'memory = {memory:g}: too little for {" ".join(flags)}')
    most = 2 ** int(math.log2(most))
    tokens = most * c.block_size
    return most, max(n.fixed('one GPU', 1, False) + tokens * n.per_token(False, c.n_layer), n.update('one GPU', 1))


def pairs(cfg, arms, device):
    """The two layers of an MLP by themselves, forward and backward: what the layers' own speed is."""
    torch.set_float32_matmul_precision('high')
    for name, flags in arms.items():
        c = load(TrainConfig, flags)
        own = MLPBenchConfig(tokens=c.batch_size * c.block_size, repeats=4 * cfg.rounds)
        times = time_pair(name.split()[-1], c.n_embd, own, device)[0]
        yield [about(device) | dict(arm=name, ms=1000 * statistics.median(times), tokens=own.tokens, width=c.n_embd)]


def samples(cfg, arms, device):
    for name, flags in arms.items():
        r = bench_sample.bench(load(bench_sample.SampleBenchConfig, flags))
        ms = {k: 1000 / r[of] for k, of in dict(ms='tokens_per_second', floor_ms='limit').items()}
        yield [about(device) | r | dict(arm=name) | ms]


def starts(cfg, arms, device):
    """From the command to the end of its first step, the second of two times: with warm caches."""
    for name, flags in arms.items():
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, '-u', str(ROOT / 'train.py'), *flags, f'--out_dir={folder}']
                t0 = time.perf_counter()
                with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
                    said = []
                    for text in run.stdout:
                        said.append(text)
                        if text.startswith('iter 0:'):
                            break
                    seconds = time.perf_counter() - t0
                    run.kill()
                    if not said or not said[-1].startswith('iter 0:'):
                        raise UserError(f'{shlex.join(command)}: no first step: {said[-1:]}')
        yield [about(device) | dict(arm=name, ms=1000 * seconds)]


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
BUSY = ', busy core'
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


# -----------------------------------------------------------------------------
# the rows


def speed(ours, beside, found):
    return beside['ms'] / ours['ms']


def times(ours, beside, found):
    return ours['ms'] / beside['ms']


def milliseconds(ours, beside, found):
    return ours['ms']


def seconds(ours, beside, found):
    return ours['ms'] / 1000


def memory(ours, beside, found):
    return ours['peak_memory'] / beside['peak_memory']


def per_second(ours, beside, found):
    return 1000 / ours['ms']


def by_amdahl(ours, beside, found):
    """Share of the speed that the step would have if only the MLPs took another time: that of the layers alone."""
    dense, own = (found[f'pair {name}']['ms'] * ours['layers'] for name in ('dense_fused', ours['arm']))
    return speed(ours, beside, found) * (beside['ms'] - dense + own) / beside['ms']


def by_active(ours, beside, found):
    """Share of the speed that the step would have if its FLOPs ran as fast as those of dense MLPs."""
    pair = found['pair dense_fused']
    rate = 6 * 8 * pair['width'] ** 2 * pair['tokens'] / pair['ms']
    return (beside['ms'] + (ours['flops_per_step'] - beside['flops_per_step']) / rate) / ours['ms']


class Row(NamedTuple):
    work: str
    ours: str
    beside: str  # what it is measured against; '': nothing
    figure: Callable
    least: float = 0  # the figure that is to be reached; or
    most: float = 0
    was: float = 0  # ms of `beside` when the targets were set (one H100): a faster dense does not move them


ROWS = [
    Row('124M, micro-batch 64', '64', 'nanoGPT 64', speed, least=1.18),
    Row('its memory', '64', 'nanoGPT 64', memory, most=0.6),
    Row('124M with bias, micro-batch 64', '64 bias', 'nanoGPT 64 bias', speed, least=1.18),
    Row('its memory', '64 bias', 'nanoGPT 64 bias', memory, most=0.6),
    Row('124M, micro-batch 12', '12', 'nanoGPT 12', speed, least=1.15),
    Row('on a busy core, over alone', f'12{BUSY}', '12', times, most=1.03),
    Row('shakespeare_char', 'char', 'nanoGPT char', milliseconds, most=5.4),
    Row('k = 2000 over dense', 'k2000', 'char', times, most=1.14, was=5.46),
    Row('k = 10000 over dense', 'k10000', 'char', times, most=1.6, was=5.46),
    Row('RoPE, RMSNorm, QK-norm over plain', '64 modern', '64', times, most=1.02, was=124.2),
    *(Row(f'{name} in the MLPs', name, 'dense', by_amdahl, least=0.9) for name in LAYERS[:3]),
    *(Row(f'{name} in the MLPs', name, 'dense', speed, least=1.05, was=63.1) for name in LAYERS[3:6]),
    Row('btt_moe in the MLPs', 'btt_moe', 'dense', by_active, least=0.85),
    Row('mlp = moe', 'moe', 'dense', by_active, least=0.85),
    Row('Muon over AdamW, 0.5M tokens', 'muon', 'adamw', times, most=1.03),
    Row('Muon, shakespeare_char', 'char muon', 'char', times, most=1.3),
    Row('Muon, k = 2000', 'k2000 muon', 'k2000', times, most=1.5),
    Row('sampling 1,000 tokens', 'write', 'nanoGPT write', per_second, least=1500),
    Row('compiled', 'write compiled', 'nanoGPT write', per_second, least=2500),
    Row('64 side by side', 'write 64', 'nanoGPT write 64', per_second, least=40_000),
    Row('64, compiled', 'write 64 compiled', 'nanoGPT write 64', per_second, least=40_000),
    Row('command to first step', 'start', '', seconds, most=15),
    Row('small preset, two cores', 'cpu', 'nanoGPT cpu', speed, least=1.15),
]
WRITTEN = {  # how a figure is written
    speed: '{:.2f}x', times: '{:.3f}', memory: '{:.2f}', milliseconds: '{:,.2f} ms', seconds: '{:.1f} s', per_second: '{:,.0f} tok/s',
    by_amdahl: '{:.0%}', by_active: '{:.0%}',
}  # fmt: skip


def complete(row: Row, found: dict) -> bool:
    """Whether all is there that its figure needs."""
    try:
        return row.figure(found[row.ours], found[row.beside] if row.beside else None, found) is not None
    except (KeyError, TypeError):  # of graphs and on a CPU no memory is known
        return False


def judged(row: Row, found: dict) -> dict:
    """The cells of a row. 'over then': with the dense step of the day when the targets were set."""
    ours, beside = found[row.ours], found.get(row.beside)
    text = WRITTEN[row.figure].format
    one = {  # how an arm is written
        memory: lambda r: f'{r["peak_memory"] / 2**30:.1f} GiB',
        per_second: lambda r: f'{1000 / r["ms"]:,.0f} tok/s',
    }.get(row.figure, lambda r: f'{r["ms"]:,.2f} ms')
    then = beside | dict(ms=row.was) if row.was else beside
    value = row.figure(ours, then, found)
    best = None
    if 'floor_ms' in ours and row.figure is not memory:
        best = row.figure(ours | dict(ms=ours['floor_ms'] / 0.9), then, found)
    target = row.least or row.most
    if best:
        target = min(target, best) if row.least else max(target, best)
    allowed = f' of {speed(ours, beside, found) / value:.2f}x' if row.figure in (by_amdahl, by_active) else ''
    return {
        'work': row.work,
        'beside': 'nanoGPT ' * is_theirs(row.beside) + one(beside) if beside else '',
        'ours': one(ours),
        'figure': text(row.figure(ours, beside, found)) + allowed,
        'over then': text(value) if row.was else '',
        'target': ('>= ' if row.least else '<= ') + text(target),
        'at 90%': text(best) if best else '',
        'reached': 'yes' if (value >= target if row.least else value <= target) else 'no',
    }


def where(r: dict) -> dict:
    """The cells of an arm: milliseconds by kind of kernel, and the least that each could take."""
    cells = {'ms, least ms': r['arm'], 'step': f'{r["ms"]:.2f}', 'roofline': f'{r["floor_ms"]:.2f}'}
    for k in KINDS:
        v = r['kinds'][k]
        if v['ms'] > 0.005 * r['ms'] or v['floor_ms'] > 0.005 * r['ms']:
            cells[k] = f'{v["ms"]:.2f} {v["floor_ms"]:.2f}'
    idle = max(0.0, r['ms'] - r['busy_ms'])
    return cells | {'idle': f'{idle:.2f}', 'kernels': f'{r["launches"]:,.0f}'}


def cost(r: dict) -> dict:
    return {
        'model, context': f'{r["arm"].split(",")[0]}, {r["context"]:,}',
        'parameters': f'{r["params"]:,}',
        'micro-batch': str(r['batch']),
        'ms/step': f'{r["ms"]:.1f}',
        'tokens/s': f'{r["tokens_per_s"]:,.0f}',
        'MFU': f'{r["mfu"]:.1%}' if r['mfu'] else '',
        'peak GiB': f'{r["peak_memory"] / 2**30:.1f}' if r['peak_memory'] else '',
        'counted': f'{r["counted"] / 2**30:.1f}',
    }


def tables(lines: list[dict]) -> str:
    found = {r['arm']: r for r in lines}
    rows = [(row, judged(row, found)) for row in ROWS if complete(row, found)]
    short = [found[row.ours] for row, cells in rows if cells['reached'] == 'no' and 'kinds' in found[row.ours]]
    short = list({r['arm']: r for r in short}.values())
    costs = [cost(found[name]) for part in COSTS for name in PARTS[part].arms if name in found]
    blocks = [[cells for _, cells in rows], [where(r) for r in short], costs]
    once = lambda k: '; '.join(dict.fromkeys(str(r[k])[: 12 if k == 'commit' else None] for r in lines))
    head = f'{once("device")}, torch {once("torch")}, commit {once("commit")}'
    return '\n\n'.join([head, *('\n'.join(columns(b)) for b in blocks if b)])


# -----------------------------------------------------------------------------
# the command


def flags_of(cfg, part: str) -> dict:
    """{arm: flags}"""
    own = lambda name: [f'--nanogpt={cfg.nanogpt}'] if is_theirs(name) else []
    return {name: [*text.split(), *own(name), *shlex.split(cfg.flags)] for name, text in PARTS[part].arms.items()}


def measured(cfg) -> list[dict]:
    return read_lines(root_path(cfg.out))


def missing(cfg, part: str) -> dict:
    there = {r['arm'] for r in measured(cfg)}
    return {name: flags for name, flags in flags_of(cfg, part).items() if name not in there}


def measure(cfg, part: str):
    """What is missing of a part, here."""
    device = hardware.choose_device('auto')
    torch._dynamo.config.recompile_limit = 64  # the arms share the code of forward
    for found in PARTS[part].measure(cfg, missing(cfg, part), device):
        lines = measured(cfg) + [relative(r | dict(part=part)) for r in found]
        write(root_path(cfg.out), ''.join(json.dumps(r) + '\n' for r in lines).encode())
        for r in found:
            print(f'{part}: {r["arm"]} {r["ms"]:.2f} ms', flush=True)


def start(cfg, part: str) -> int:
    """The same in a process of its own; its exit code."""
    own = [f'--{k}={v}' for k, v in overrides(cfg).items()]
    command = [sys.executable, str(ROOT / 'bench.py'), 'targets', *own, f'--part={part}']
    return subprocess.run(command, env=os.environ | PARTS[part].env).returncode


def compiling(cfg, part: str) -> list[list[str]]:
    """Commands that leave the compiled code of a part in the compiler's cache."""
    kind, arms = PARTS[part].measure, missing(cfg, part)
    if kind is samples:
        return [['sample', *f, '--tokens=8', '--rounds=1'] for f in arms.values() if '--compile=true' in f]
    if kind is alone:
        arms = {name: [f'--batch_size={micro_batch(f, cfg.memory)[0]}', *f] for name, f in arms.items()}
    elif kind in (pairs, starts, on_two_cores):
        return []
    return [[*f, '--steps=1', '--rounds=1', '--warmup=1'] for f in arms.values()]


def compile_all(cfg, parts: list[str]):
    """An arm that does not get through is compiled again where it is measured."""
    go = lambda argv: subprocess.run([sys.executable, str(ROOT / 'bench.py'), *argv], capture_output=True).returncode
    commands = [c for p in parts for c in compiling(cfg, p)]
    commands = [c for i in range(cfg.jobs) for c in commands[i :: cfg.jobs]]  # large models beside small ones
    t0 = time.perf_counter()
    with ThreadPoolExecutor(cfg.jobs) as pool:
        codes = list(pool.map(go, commands))
    print(f'compiled {codes.count(0)} of {len(codes)} arms in {time.perf_counter() - t0:.0f} s', flush=True)


def targets(cfg: TargetsConfig):
    if cfg.show:
        try:
            lines = read_lines(input_path(cfg.show))
            return print(printable(tables(lines or lines[0])))
        except (UserError, LookupError, TypeError, ValueError) as e:
            raise UserError(f"show = '{cfg.show}': not a file that bench.py targets wrote ({e})") from None
    ready(root_path(cfg.out))
    if cfg.part:
        return measure(cfg, cfg.part)
    here = hardware.device_name(hardware.choose_device('auto'))
    others = {r['device'] for r in measured(cfg) if r['part'] != 'two cores'} - {here}
    if others:
        raise UserError(f'{cfg.out} was measured on {", ".join(others)}, this is {here}; name another --out')
    todo = [p for p in cfg.names() if missing(cfg, p)]
    if cfg.jobs and torch.cuda.is_available():
        compile_all(cfg, todo)
    failed = [p for p in todo if start(cfg, p)]
    print(printable(tables(measured(cfg))))
    if failed:
        raise UserError(f'not measured: {", ".join(failed)}; the reasons are above, the same command tries again')
