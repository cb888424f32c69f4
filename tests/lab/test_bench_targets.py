"""bench.py targets: every part is measured once, and a row is judged by its target or by 90% of its roofline."""

import json
import os
import signal
import threading
import time

import pytest
import torch
from conftest import ROOT

import bench
import hardware
from configurator import load
from lab import bench_parts, bench_sample, bench_start, bench_targets
from lab.bench_nanogpt import ArmConfig
from lab.bench_parts import PARTS
from lab.bench_targets import ROWS, TargetsConfig, complete, judged
from train import TrainConfig

PATH = os.environ.get('NANOGPT_DIR') or str(ROOT / 'tests' / 'lab' / 'nanogpt.py')
TINY = (
    '--n_layer=1 --n_head=2 --n_embd=32 --block_size=16 --batch_size=2 --vocab_size=96'
    ' --gradient_accumulation_steps=1 --dropout=0'
)
SMALL = {  # parts with few of their arms
    'micro-batch 12': ('nanoGPT 12', '12'),
    'micro-batch 32': ('dense', 'low_rank'),
    'pairs': ('pair dense_fused', 'pair low_rank'),
    'sampling': ('nanoGPT write', 'write'),
    'contexts': ('124M, 1k',),
}


@pytest.fixture
def go(tmp_path, monkeypatch):
    """The command with tiny models and parts, all in this process; go() -> (lines of the file, parts that were measured)."""
    monkeypatch.setattr(bench_parts, 'rates', lambda device, dtype: (1e12, 1e11))
    monkeypatch.setattr(bench_sample, 'rates', lambda device, dtype: (1e12, 1e11))
    monkeypatch.setattr(bench_parts, 'launch', lambda device: 1e-6)
    for name, arms in SMALL.items():
        more = ' --tokens=3' if name == 'sampling' else ''
        monkeypatch.setitem(PARTS, name, PARTS[name]._replace(arms={a: PARTS[name].arms[a] + more for a in arms}))
    started = []

    def start(cfg, part):
        started.append(part)
        try:
            bench_targets.measure(cfg, part)
        except RuntimeError:  # ends that process
            return 1
        return 0

    monkeypatch.setattr(bench_targets, 'start', start)
    out = tmp_path / 'x.jsonl'
    own = [f'--nanogpt={PATH}', f'--out={out}', '--rounds=1', '--seconds=1e-3', '--memory=1']

    def run(*flags):
        started.clear()
        argv = ['bench.py', 'targets', *own, f'--parts={",".join(SMALL)}', f'--flags={TINY}', *flags]
        monkeypatch.setattr('sys.argv', argv)
        bench.main()
        return [json.loads(text) for text in out.read_text().splitlines()], list(started)

    run.out = out
    return run


def test_every_part_is_measured_once_and_the_command_goes_on_where_it_stopped(go, monkeypatch, capsys, fails):
    lines, started = go()
    said = capsys.readouterr().out
    assert started == list(SMALL)
    wanted = [a for part in SMALL.values() for a in part] + ['nanoGPT 12, busy core', '12, busy core']
    assert sorted(r['arm'] for r in lines) == sorted(wanted) and all(r['ms'] > 0 and r['commit'] for r in lines)
    kinds = [r['arm'] for r in lines if r.get('kinds')]
    assert kinds == ['nanoGPT 12', '12', 'dense', 'low_rank']
    rows = [row.work for row in ROWS if row.ours in wanted and row.beside in wanted]
    assert len(rows) == 4 and all(f'\n{work} ' in said for work in rows)  # on a busy core, sampling among them
    assert '\n124M, 16 ' in said and f'"{PATH}"' not in go.out.read_text().replace(str(ROOT) + '/', '')
    go.out.write_text(''.join(json.dumps(r) + '\n' for r in lines if r['part'] != 'pairs'))
    again, started = go()
    assert started == ['pairs'] and [r for r in lines if r['part'] != 'pairs'] == again[:-2]
    monkeypatch.setattr('sys.argv', ['bench.py', 'targets', f'--show={go.out}'])
    capsys.readouterr()
    bench.main()
    assert 'low_rank in the MLPs' in capsys.readouterr().out
    go.out.write_text(json.dumps(lines[0] | dict(device='another')) + '\n')
    fails(go, 'was measured on another')
    go.out.write_text(json.dumps(lines[0]) + '\n')
    fails(lambda: go('--flags='), 'was measured with --flags=')


@pytest.fixture
def breaks(monkeypatch):
    """breaks(names) -> a list with a word for each traceback that is printed: these arms fail."""

    def patch(*names):
        wrong, printed = {f'--linear={name}' for name in names} | set(names), []
        monkeypatch.setattr(bench_parts.traceback, 'print_exc', lambda: printed.append('a traceback'))
        for of, make in dict(arm=bench_parts.arm, time_pair=bench_parts.time_pair).items():

            def one(first, *rest, make=make):
                if wrong & {first} if isinstance(first, str) else wrong & set(first):
                    raise RuntimeError('no such kernel')
                return make(first, *rest)

            monkeypatch.setattr(bench_parts, of, one)
        return printed

    return patch


def test_an_arm_that_fails_says_why_and_leaves_the_others_alone(go, breaks, monkeypatch, fails):
    parts = '--parts=micro-batch 32,pairs'
    healthy = bench_parts.arm, bench_parts.time_pair
    printed = breaks('low_rank')
    fails(lambda: go(parts), 'not measured: low_rank, pair low_rank; the reasons are above')
    assert len(printed) == 2
    lines = [json.loads(text) for text in go.out.read_text().splitlines()]
    why = dict.fromkeys(('low_rank', 'pair low_rank'), 'RuntimeError: no such kernel')
    assert {r['arm']: r.get('failed') for r in lines} == {'dense': None, 'pair dense_fused': None} | why
    assert all(f'{name} ' in bench_targets.tables(lines) for name in why)
    for of, make in zip(('arm', 'time_pair'), healthy):
        monkeypatch.setattr(bench_parts, of, make)
    lines, started = go(parts)
    assert started == ['micro-batch 32', 'pairs'] and len(lines) == 4 and not [r for r in lines if 'failed' in r]


def test_where_an_arm_takes_the_gpu_with_it_another_process_goes_on(go, breaks, monkeypatch, fails):
    breaks('dense')
    start, asked = bench_targets.start, []

    def lost(device):
        if len(asked) == 1:
            raise RuntimeError('an illegal memory access was encountered')

    def note(cfg, part):
        asked.append(list(bench_targets.missing(cfg, part)))
        return start(cfg, part)

    monkeypatch.setattr(hardware, 'sync', lost)
    monkeypatch.setattr(bench_targets, 'start', note)
    fails(lambda: go('--parts=micro-batch 32'), 'not measured: dense;')
    assert asked == [['dense', 'low_rank'], ['low_rank']]


def test_times_are_kept_where_the_trace_fails(go, monkeypatch, fails):
    def fail(*_):
        raise RuntimeError('no profiler')

    monkeypatch.setattr(bench_parts, 'roofline', fail)
    fails(lambda: go('--parts=micro-batch 12'), 'times only, not all the rest: micro-batch 12')
    lines = [json.loads(text) for text in go.out.read_text().splitlines()]
    assert len(lines) == 4 and all(r['ms'] > 0 and 'kinds' not in r for r in lines)


def test_the_process_of_a_part_ends_with_the_command(monkeypatch, tmp_path):
    script, pid = tmp_path / 'python', tmp_path / 'pid'
    script.write_text(f'#!/bin/sh\necho $$ > {pid}.part && mv {pid}.part {pid}\nexec sleep 60\n')
    script.chmod(0o700)
    monkeypatch.setattr('sys.executable', str(script))

    def kill():
        while not pid.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SystemExit):
        bench_targets.start(TargetsConfig(out='x'), 'start')
    killer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_the_process_is_slowed_and_free_again():
    before = os.sched_getaffinity(0)
    with bench_parts.busy_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_the_second_start_counts(monkeypatch):
    times = iter([dict(first_step=40.0), dict(model=3.0, first_step=12.5)])
    monkeypatch.setattr(bench_start, 'seconds', lambda flags, env: next(times))
    (found,) = bench_parts.starts(None, {'start': []}, torch.device('cpu'))
    assert found[0]['ms'] == 12_500 and found[0]['model'] == 3


def row(work):
    return next(r for r in ROWS if r.work == work)


def cells(work, **found):
    """Of a row whose arms take so many ms: a number, or a dict."""
    lines = {k: dict(arm=k) | (v if isinstance(v, dict) else dict(ms=v)) for k, v in found.items()}
    assert complete(row(work), lines)
    return judged(row(work), lines)


def test_rows_are_judged_by_their_targets():
    c = cells('124M, micro-batch 64', **{'64': 100.0, 'nanoGPT 64': 118.0})
    assert (c['figure'], c['target'], c['reached']) == ('1.18x', '>= 1.18x', 'yes')
    assert cells('124M, micro-batch 64', **{'64': 101.0, 'nanoGPT 64': 118.0})['reached'] == 'no'
    c = cells('k = 2000 over dense', k2000=6.0, char=4.0)
    assert (c['figure'], c['over then'], c['reached']) == (
        '1.500',
        '1.099',
        'yes',
    )  # over 5.46 ms, whatever dense takes now
    c = cells('its memory', **{'64': dict(ms=1, peak_memory=7), 'nanoGPT 64': dict(ms=1, peak_memory=10)})
    assert (c['figure'], c['reached']) == ('0.70', 'no')
    c = cells('sampling 1,000 tokens', write=0.5, **{'nanoGPT write': 5.0})
    assert (c['beside'], c['figure'], c['reached']) == ('nanoGPT 200 tok/s', '2,000 tok/s', 'yes')
    assert cells('command to first step', start=15_001.0)['reached'] == 'no'


def test_a_target_beyond_ninety_percent_of_the_roofline_becomes_that():
    c = cells('124M, micro-batch 64', **{'64': dict(ms=100.0, floor_ms=90.0), 'nanoGPT 64': 110.0})
    assert (c['at 90%'], c['target'], c['reached']) == ('1.10x', '>= 1.10x', 'yes')
    c = cells('k = 10000 over dense', k10000=dict(ms=10.0, floor_ms=9.009), char=5.0)
    assert (c['at 90%'], c['target'], c['reached']) == ('1.833', '<= 1.833', 'yes')
    assert cells('k = 10000 over dense', k10000=dict(ms=10.1, floor_ms=9.009), char=5.0)['reached'] == 'no'


def test_structures_are_judged_by_the_speed_of_their_layers_and_of_their_active_flops():
    pair = {'pair dense_fused': dict(ms=2.0, width=8, tokens=10), 'pair low_rank': dict(ms=1.0)}
    # 12 of 60 ms less are possible: 1.25 times as fast
    c = cells('low_rank in the MLPs', low_rank=dict(ms=50.0, layers=12), dense=60.0, **pair)
    assert (c['figure'], c['reached']) == ('96% of 1.25x', 'yes')
    flops = 6 * 8 * 64 * 10  # of a dense MLP, in 2 ms: eight more of them take 16
    c = cells(
        'mlp = moe', moe=dict(ms=95.0, flops_per_step=9 * flops), dense=dict(ms=60.0, flops_per_step=flops), **pair
    )
    assert (c['figure'], c['target'], c['reached']) == ('80% of 0.79x', '>= 85%', 'no')


def test_all_arms_and_their_compiling_are_commands_that_load(monkeypatch):
    cfg = TargetsConfig(nanogpt=PATH, out='nowhere/x.jsonl')
    names = [a for p in PARTS.values() for a in p.arms] + ['12, busy core']
    assert len(set(names)) == len(names) and {r.ours for r in ROWS} | {r.beside for r in ROWS} - {''} <= set(names)
    schemas = {bench_parts.samples: bench_sample.SampleBenchConfig, bench_parts.starts: TrainConfig}
    for name, part in PARTS.items():
        for flags in bench_targets.flags_of(cfg, name).values():
            load(schemas.get(part.measure, ArmConfig), flags)
        sizes = {'--steps=1', '--rounds=1', '--warmup=1', 'sample'}  # whatever else differed would be compiled twice
        for argv in bench_targets.compiling(cfg, name):
            assert [a for a in argv if a not in sizes] in [
                [a for a in f if a not in sizes] for f in bench_targets.flags_of(cfg, name).values()
            ]
            schema = bench_sample.SampleBenchConfig if argv[0] == 'sample' else ArmConfig
            load(schema, argv[argv[0] == 'sample' :])


def test_micro_batches_of_the_costs_are_powers_of_two_that_fit():
    flags = bench_targets.flags_of(TargetsConfig(out='x'), 'sizes')
    found = {name: bench_parts.micro_batch(flags[name], 80.0) for name in ('124M', '1.5B')}
    assert found['124M'][0] == 64 and found['1.5B'][0] == 16 and found['1.5B'][1] < 0.92 * 80 * 2**30


def test_wrong_keys_are_said(monkeypatch, fails, tmp_path):
    other = tmp_path / 'same.jsonl'
    other.write_text('{"fast": 1}\n')
    for flags, said in (
        ([], 'nanogpt: must be given'), (['--parts=sizes'], 'out: must be given'), (['--out=x', '--flags=--device=cpu'], 'flags: a part'), (['--parts=size'], "'size' unknown; there are"),
        (['--parts=sizes,', '--out=x'], "'' unknown"), (['--parts=start', '--out=x', "--flags='"], 'No closing quotation'),
        (['--show=nowhere'], 'bench.py targets --out=FILE wrote (there is no such file'),
        (['--out=x', '--nanogpt=nowhere'], 'there is no such folder'),
        ([f'--out={other}', '--parts=start'], 'bench.py targets did not write it'),
        ([f'--show={other}'], 'not a file that bench.py targets --out=FILE wrote'),
    ):  # fmt: skip
        monkeypatch.setattr('sys.argv', ['bench.py', 'targets', *flags])
        fails(bench.main, said)
