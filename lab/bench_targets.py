"""
The table of targets: steps, memory, sampling and the start of a run, beside nanoGPT or the dense model. bench.py calls it.

    python bench.py targets --nanogpt=/path/to/nanoGPT --out=out/targets.jsonl
    python bench.py targets --parts=sizes,contexts --out=out/costs.jsonl      cost against size, and against context length
    python bench.py targets --show=out/targets.jsonl

Each part is measured by a process of its own. Its arms take turns, then two steps of each are traced. What is in the file is
not measured again: the same command goes on where it stopped, and repeats an arm that failed. Before that, arms that take
turns are compiled side by side, into the compiler's cache; nothing is timed meanwhile. "at 90%" is what a row would be if our
step took its roofline / 0.9 (lab/bench_profile.py). A target that lies beyond this figure is replaced by it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

import hardware
from configurator import ROOT, UserError, key, overrides, printable, root_path
from files import read_lines, ready, write_lines
from lab.bench_nanogpt import code
from lab.bench_parts import BUSY, COSTS, LAYERS, PARTS, in_turns, is_theirs, samples
from lab.bench_profile import KINDS, show
from lab.costs import columns
from lab.steps import side_by_side
from logger import relative
from tokens import loader

OWN = dict(arm=str, part=str, device=str)  # lines of --out, for files.ready


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
    jobs: int = key(8, 'arms that are compiled at the same time; 0: each where it is measured', low=0)
    part: str = key('', 'measure this part in this process; the command starts itself with it')

    def names(self) -> list[str]:
        return [p.strip() for p in self.parts.split(',')] if self.parts else [p for p in PARTS if p not in COSTS]

    def problems(self):
        odd = [repr(p) for p in (*self.names(), *([self.part] if self.part else [])) if p not in PARTS]
        if odd or self.show:
            return [f'parts: {", ".join(odd)} unknown; there are {", ".join(PARTS)}'] if odd else []
        found = [] if self.out else ['out: must be given, as --out=out/targets.jsonl']
        if '--device' in self.flags:
            found.append('flags: a part chooses its device; CUDA_VISIBLE_DEVICES=1 takes another GPU')
        try:
            shlex.split(self.flags)
        except ValueError as e:
            found.append(f'flags: {e}; close it')
        if not self.nanogpt and any(is_theirs(arm) for p in self.names() for arm in PARTS[p].arms):
            found.append(
                'nanogpt: must be given; git clone https://github.com/karpathy/nanoGPT, then --nanogpt=nanoGPT'
            )
        return found


# -----------------------------------------------------------------------------
# the rows

# what a row compares: of our arm, the arm beside it, and all arms {name: line}
speed = lambda ours, beside, found: beside['ms'] / ours['ms']
times = lambda ours, beside, found: ours['ms'] / beside['ms']
milliseconds = lambda ours, beside, found: ours['ms']
seconds = lambda ours, beside, found: ours['ms'] / 1000
memory = lambda ours, beside, found: ours['peak_memory'] / beside['peak_memory']
per_second = lambda ours, beside, found: 1000 / ours['ms']


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
    """Whether the arms that the figure of a row needs have been measured."""
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
    found = {r['arm']: r for r in lines if 'failed' not in r}
    rows = [(row, judged(row, found)) for row in ROWS if complete(row, found)]
    short = dict.fromkeys(row.ours for row, cells in rows if cells['reached'] == 'no' and 'kinds' in found[row.ours])
    costs = [cost(found[name]) for part in COSTS for name in PARTS[part].arms if name in found]
    failed = [{'failed': r['arm'], 'part': r['part'], 'reason': r['failed']} for r in lines if 'failed' in r]
    blocks = [[cells for _, cells in rows], [where(found[name]) for name in short], costs, failed]
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


def check_file(cfg, here: str):
    """UserError where --out holds what cannot stand in one table with what is measured now."""
    lines = measured(cfg)
    if others := {r['device'] for r in lines if r['part'] != 'two cores'} - {here}:
        raise UserError(f'{cfg.out} was measured on {", ".join(others)}, this is {here}; name another --out')
    if others := {r.get('flags', '') for r in lines} - {relative(cfg.flags)}:
        raise UserError(f'{cfg.out} was measured with --flags="{min(others)}"; give the same, or name another --out')


def missing(cfg, part: str) -> dict:
    there = {r['arm'] for r in measured(cfg)}
    return {name: flags for name, flags in flags_of(cfg, part).items() if name not in there}


def measure(cfg, part: str):
    """Measure what is missing of a part in this process."""
    device = hardware.choose_device('auto')
    side_by_side()
    for found in PARTS[part].measure(cfg, missing(cfg, part), device):
        lines = measured(cfg) + [relative(r | dict(part=part, flags=relative(cfg.flags))) for r in found]
        write_lines(root_path(cfg.out), lines)
        for r in found:
            print(f'{part}: {r["arm"]} {r.get("failed") or format(r["ms"], ".2f") + " ms"}', flush=True)
        if any('failed' in r for r in found):
            hardware.sync(device)  # raises where the GPU serves this process no more: another one goes on


def start(cfg, part: str) -> int:
    """Measure what is missing of a part in a process of its own. Returns its exit code."""
    own = [f'--{k}={v}' for k, v in overrides(cfg).items()]
    command = [sys.executable, str(ROOT / 'bench.py'), 'targets', *own, f'--part={part}']
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run() then kills it, it would go on alone
    try:
        return subprocess.run(command, env=os.environ | PARTS[part].env).returncode
    finally:
        signal.signal(signal.SIGTERM, before)


def through(cfg, part: str) -> bool:
    """Measure a part. Where an arm that failed ends the process, another one measures the rest. Returns whether the last
    process ended well."""
    before, code = None, 0
    while (arms := missing(cfg, part)) and arms != before:
        before, code = arms, start(cfg, part)
    return not code


def compiling(cfg, part: str) -> list[list[str]]:
    """Commands that leave the compiled code of a part in the compiler's cache. No command for an arm that is measured alone,
    since each such arm fills the memory."""
    kind, arms = PARTS[part].measure, missing(cfg, part).values()
    if kind is samples:
        return [['sample', *f, '--rounds=1'] for f in arms if '--compile=true' in f]
    if getattr(kind, 'func', kind) is not in_turns:
        return []
    return [[*f, '--steps=1', '--rounds=1', '--warmup=1'] for f in arms]


def compile_all(cfg, parts: list[str]):
    """Compile the arms of the parts side by side. An arm that fails here is compiled again when it is measured."""
    commands = [c for p in parts for c in compiling(cfg, p)]
    commands = [c for i in range(cfg.jobs) for c in commands[i :: cfg.jobs]]  # large models beside small ones
    env = os.environ | dict(TORCHINDUCTOR_COMPILE_THREADS=str(max(1, os.cpu_count() // cfg.jobs)))

    def go(argv):
        r = subprocess.run([sys.executable, str(ROOT / 'bench.py'), *argv], env=env, capture_output=True, text=True)
        return f'{" ".join(argv)}: {r.stderr.strip().splitlines()[-1:]}' if r.returncode else ''

    t0 = time.perf_counter()
    with ThreadPoolExecutor(cfg.jobs) as pool:
        failed = [f for f in pool.map(go, commands) if f]
    print('\n'.join([*failed, f'compiled {len(commands) - len(failed)} of {len(commands)} arms']), end='')
    print(f' in {time.perf_counter() - t0:.0f} s', flush=True)


def targets(cfg: TargetsConfig):
    if cfg.show:
        return show(cfg.show, tables, 'bench.py targets')
    ready(root_path(cfg.out), OWN, 'bench.py targets')
    if cfg.part:
        return measure(cfg, cfg.part)
    check_file(cfg, hardware.device_name(hardware.choose_device('auto')))
    if cfg.nanogpt:
        code(cfg.nanogpt)  # says what is wrong with it, before minutes are spent on compiling
    loader.prepare('shakespeare_char')  # that of all arms
    lines, names = measured(cfg), cfg.names()
    again = [r for r in lines if 'failed' in r and r['part'] in names]
    if again:
        write_lines(root_path(cfg.out), [r for r in lines if r not in again])
    todo = [p for p in names if missing(cfg, p)]
    if cfg.jobs and torch.cuda.is_available():
        compile_all(cfg, todo)
    cut = [p for p in todo if not through(cfg, p)]
    if lines := measured(cfg):
        print(printable(tables(lines)))
    failed = [r['arm'] for r in lines if 'failed' in r and r['part'] in names]
    failed += [name for p in names for name in missing(cfg, p)]
    if failed or cut:
        what = f'not measured: {", ".join(failed)}' if failed else f'times only, not all the rest: {", ".join(cut)}'
        raise UserError(f'{what}; the reasons are above, the same command tries again what {cfg.out} lacks')
