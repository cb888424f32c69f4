"""The figures of a run's log and of bench.py, on a clock that the test moves."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

import bench
import checkpoint
import hardware
import train as module
from configurator import load
from lab import steps
from logger import read_metrics
from optimizers.optim import lr_at
from train import TrainConfig, Trainer

PEAK = 1e9


@pytest.fixture
def clock(monkeypatch):
    """A step takes 2 seconds, 6 on a Trainer whose model is expanded, an evaluation of a split 100; the peak is PEAK."""
    now = [0.0]
    step, evaluate = Trainer.step, Trainer.evaluate

    def slow(self):
        now[0] += 6 if self.cfg.linear == 'expanded' else 2
        return step(self)

    def slower(self, split):
        now[0] += 100
        return evaluate(self, split)

    monkeypatch.setattr(Trainer, 'step', slow)
    monkeypatch.setattr(Trainer, 'evaluate', slower)
    fake = SimpleNamespace(time=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(module, 'time', fake)
    monkeypatch.setattr(steps, 'time', fake)
    monkeypatch.setattr(hardware, 'peak_flops', lambda *_: PEAK)
    return now


@pytest.mark.parametrize('interval', [1, 2])
def test_times_rates_and_tokens_of_the_log(run_train, clock, interval):
    flags = ('--gradient_accumulation_steps=2', '--eval_interval=3', f'--log_interval={interval}')
    out = run_train('--linear=expanded', '--linear_path=materialised', '--expansion=40', '--max_iters=7', *flags)
    cfg, facts = (json.loads((out / f'{n}.json').read_text()) for n in ('config', 'manifest'))
    cfg = TrainConfig(**cfg)
    lines = read_metrics(out)
    train = [m for m in lines if m['kind'] == 'train']
    assert [m['iter'] for m in train] == list(range(0, 7, interval))
    assert [m['lr'] for m in train] == pytest.approx([lr_at(cfg, m['iter']) for m in train])
    assert train[0]['ms'] is None and train[0]['mfu'] is None  # with what happens once
    tokens = 2 * 4 * 32
    flops = tokens * facts['flops_per_token'] + facts['flops_per_update']
    assert facts['tokens_per_iter'] == tokens and facts['flops_per_update'] > 0
    for m in train[1:]:  # without the evaluations in between
        assert m['ms'] == pytest.approx(6000) and m['tokens_per_s'] == pytest.approx(tokens / 6)
        assert m['mfu'] == pytest.approx(flops / 6 / PEAK)
    evals = [m for m in lines if m['kind'] == 'eval']
    assert [m['iter'] for m in evals] == [0, 3, 6, 7]
    assert [m['tokens'] for m in evals] == [m['iter'] * tokens for m in evals]
    assert [m['seconds'] for m in evals] == pytest.approx([6 * m['iter'] for m in evals])


def test_a_step_takes_what_the_device_takes_not_what_its_launch_takes(run_train, clock, monkeypatch):
    """A device that works off what was launched only while something waits for it: 2 seconds a step."""
    launched = []

    def waits(of):
        def waited(*args):
            clock[0] += 2 * len(launched)
            launched.clear()
            return of(*args)

        return waited

    def launch(self, step=Trainer.step):
        step(self)
        clock[0] -= 2
        launched.append(1)

    monkeypatch.setattr(Trainer, 'step', launch)
    monkeypatch.setattr(Trainer, 'train_loss', waits(Trainer.train_loss))
    monkeypatch.setattr(Trainer, 'evaluate', waits(Trainer.evaluate))
    monkeypatch.setattr(hardware, 'sync', waits(lambda device: None))
    lines = read_metrics(run_train('--max_iters=9', '--eval_interval=4', '--log_interval=3'))
    assert [m['ms'] for m in lines if m['kind'] == 'train'] == [None, 2000, 2000]
    assert [m['seconds'] for m in lines if m['kind'] == 'eval'] == pytest.approx([0, 8, 16, 18])


def test_bench_times_a_step_of_each_arm_and_counts_all_that_it_computes(clock):
    arms = []
    for flags in ([], ['--linear=expanded', '--linear_path=materialised', '--expansion=40']):
        cfg = load(TrainConfig, [*TINY, '--gradient_accumulation_steps=2', *flags])
        arms.append(steps.Arm(flags, cfg, torch.device('cpu'), warmup=1))
    for _ in range(3):
        for arm in arms:
            arm.timed_block(4)
    dense, expanded = (arm.figures(arms[0]) for arm in arms)
    assert (dense['ms'], expanded['ms']) == (2000, 6000) and (dense['ratio'], expanded['ratio']) == (1, 3)
    for row, arm, seconds in ((dense, arms[0], 2), (expanded, arms[1], 6)):
        t = arm.trainer
        flops = 2 * 4 * 32 * t.flops_per_token + t.optimizer.factors.flops_per_update()
        assert row['flops_per_step'] == flops and row['mfu'] == pytest.approx(flops / seconds / PEAK)
        assert row['tokens_per_s'] == pytest.approx(2 * 4 * 32 / seconds)
        assert (row['blocks'], row['steps'], row['setup_s']) == (3, 4, seconds)
        assert row['block_ms'] == [1000 * seconds] * 3
    assert arms[1].trainer.optimizer.factors.flops_per_update() > 0


def test_an_evaluation_takes_eval_iters_batches_of_either_split(monkeypatch):
    taken = []
    monkeypatch.setattr(
        module.losses, 'evaluate', lambda loss_of, data, split, windows, *_: taken.append((split, windows))
    )
    for eval_iters, windows in ((3, 12), (0, 0)):
        t = Trainer(load(TrainConfig, [*TINY, f'--eval_iters={eval_iters}']), torch.device('cpu'))
        t.evaluate('train'), t.evaluate('val')
        assert taken[-2:] == [('train', windows), ('val', windows)]
        assert t.model.training


def test_the_seconds_up_to_an_interruption_are_counted(run_train, clock, monkeypatch, tmp_path):
    """Three steps and no evaluation since the one before the first."""
    calls = iter([False, False, False, True])
    monkeypatch.setattr(hardware.Interrupt, 'agreed', lambda self, device, ask: next(calls))
    with pytest.raises(SystemExit):
        run_train('--max_iters=9', '--eval_interval=9')
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['seconds'] == pytest.approx(3 * 2)


def test_mfu_is_that_of_one_device_of_several(clock, tmp_path):
    flags = ('--gradient_accumulation_steps=2', '--max_iters=3', '--save_checkpoint=false', f'--out_dir={tmp_path}')
    t = Trainer(load(TrainConfig, [*TINY, *flags]), torch.device('cpu'))
    t.world, t.accumulation = 2, 1  # half of the micro-batches of a step are another one's
    lines, quiet = [], lambda *_, **__: None
    module.loop(t, SimpleNamespace(train=lambda **v: lines.append(v), metrics=quiet, say=quiet, evaluating=quiet))
    assert lines[-1]['tokens_per_s'] == pytest.approx(2 * 4 * 32 / 2)  # of the run
    assert lines[-1]['mfu'] == pytest.approx(4 * 32 * t.flops_per_token / 2 / PEAK)


def test_bench_takes_its_keys_from_the_first_arm_and_gives_no_memory_that_arms_share(monkeypatch, tmp_path, capsys):
    made = []

    class Arm:
        def __init__(self, argv, cfg, device, warmup, make):
            self.warmup, self.blocks = warmup, []
            made.append(self)

        def timed_block(self, n):
            self.blocks.append(n)

        def figures(self, first):
            assert first is made[0]
            return dict(peak_memory=5)

    monkeypatch.setattr(bench, 'Arm', Arm)
    monkeypatch.setattr(bench, 'table', lambda rows: f'{rows}')
    for arms in (1, 2):
        made.clear()
        out = tmp_path / f'{arms}.jsonl'
        keys = ['--steps=3', '--rounds=4', '--warmup=2', '--device=cpu', f'--out={out}']
        monkeypatch.setattr(sys, 'argv', ['bench.py', *TINY, *keys, *(['--', *TINY] * (arms - 1))])
        bench.main()
        assert [(a.warmup, a.blocks) for a in made] == [(2, [3] * 4)] * arms
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [r['peak_memory'] for r in rows] == ([5] if arms == 1 else [None, None])


def test_bench_shows_the_median_and_the_range_of_the_blocks(clock):
    arm = steps.Arm(
        ['--warmup_iters', '2', '--warmup=1', '--dropout=0', '--out=x'],
        load(TrainConfig, TINY),
        torch.device('cpu'),
        warmup=1,
    )
    assert arm.name == '--warmup_iters=2 --dropout=0'  # without the keys of bench.py itself
    arm.steps, arm.times = 1, [2.0, 1.0, 8.0]
    row = arm.figures(SimpleNamespace(times=[1.0, 1.0, 2.0]))
    assert [row[k] for k in ('ms', 'ms_min', 'ms_max', 'ratio')] == [2000, 1000, 8000, 2]


def test_the_table_of_bench_is_in_milliseconds_mebibytes_and_percent():
    row = dict(device='cpu', dtype='float32', compiled=False, torch='2', blocks=3, steps=4, arm='a', ms=2000.0, ms_min=1000.0,
               ms_max=8000.0, ratio=2.0, tokens_per_s=1e6, mfu=0.123, peak_memory=300 * 2**20)  # fmt: skip
    head, names, a, b = steps.table([row, row | dict(mfu=None, peak_memory=None, arm='b')]).splitlines()
    assert head == 'cpu, float32, eager, torch 2, 3 blocks of 4 steps each'
    assert names.split() == ['ms/step', '(range)', 'ratio', 'tokens/s', 'MFU', 'peak', 'MiB', 'arm']
    assert a.split() == ['2000.00', '1000.00-8000.00', '2.000', '1,000,000', '12.3%', '300', 'a']
    assert b.split()[4:] == ['-', '-', 'b']
