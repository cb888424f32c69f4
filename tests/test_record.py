"""A run's record and its folder: one owner, nothing overwritten, nothing silent, whatever interrupts it."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import fuzz
import pytest
import torch
from conftest import ROOT, TINY, losses

import checkpoint
import files
import hardware
import logger
from configurator import UserError, load
from lab import launch, records
from logger import Log, duration, loss_name, read_metrics
from optimizers import optim
from train import SKIPS, TrainConfig, Trainer, train

SMALL = ('--n_layer=1', '--block_size=16', '--eval_iters=1')  # on top of TINY: these tests are about files


@pytest.fixture
def go(run_train):
    return lambda *flags, **keys: run_train(*SMALL, *flags, **keys)


def config(out, *flags):
    return load(TrainConfig, [*TINY, *SMALL, f'--out_dir={out}', *flags])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != 'lock'}


# ---------------------------------------------------------------------------
# out_dir has an owner


def test_a_folder_at_work_is_refused_to_a_second_process(tmp_path, fails):
    out = tmp_path / 'run'
    out.mkdir()
    code = (
        "import files, sys, pathlib; files.lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    p = subprocess.Popen([sys.executable, '-c', code, str(out)], cwd=ROOT, **pipes)
    assert p.stdout.readline() == 'held\n' and files.holder(out) == launch.holder(out) == p.pid
    err = fails(lambda: train(config(out)), f'process {p.pid} is at work there', 'choose another --out_dir')
    assert err.count('\n') == 1 and [f.name for f in out.iterdir()] == ['lock']
    p.communicate()
    assert files.holder(out) is None
    with files.alone(out):  # whose process has gone is free, whatever its end
        assert files.lock(out) is None


def test_the_launcher_does_not_lock_out_the_run_that_it_becomes(tmp_path, python):
    out = tmp_path / 'run'
    command = [sys.executable, '-m', 'lab.launch', str(out), *python, str(ROOT / 'train.py')]
    flags = [*TINY, *SMALL, f'--out_dir={out}', '--max_iters=1']
    env = os.environ | dict(OMP_NUM_THREADS='1')
    r = subprocess.run([*command, *flags], cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, (out / 'output.txt').read_text()
    assert (out / 'ckpt.pt').exists() and not list(out.glob('earlier-*'))


def test_a_run_in_the_launchers_process_does_not_lock_itself_out(tmp_path, monkeypatch):
    out = tmp_path / 'run'
    out.mkdir()
    fd = files.lock(out)
    monkeypatch.setenv(files.HELD, str(out))
    train(config(out, '--max_iters=1'))
    (out / 'manifest.json').unlink()  # it broke, and is started again: the same run
    train(config(out, '--max_iters=0'))
    assert not list(out.glob('earlier-*')) and not list(out.glob('*.pt')) and list(losses(out, 'eval')) == [0]
    os.close(fd)


def test_a_new_run_moves_an_older_one_aside_and_both_go_on(go, capsys):
    out = go('--max_iters=4', '--seed_model=1')
    before = contents(out)
    assert go('--max_iters=2', '--seed_model=2') == out
    assert 'held another run, which is now in' in capsys.readouterr().out
    assert contents(out / 'earlier-1') == before
    assert go('--max_iters=1', '--seed_model=3') == out and (out / 'earlier-2').exists()
    config_of = lambda d: checkpoint.load(d / 'ckpt.pt')['config']['seed_model']
    assert [config_of(d) for d in (out, out / 'earlier-2', out / 'earlier-1')] == [3, 2, 1]
    assert go('--max_iters=6', '--seed_model=1', '--init_from=resume', out='run/earlier-1') == out / 'earlier-1'
    assert list(losses(out / 'earlier-1')) == list(range(6)) and list(losses(out)) == [0]


def test_a_run_killed_before_its_first_checkpoint_does_not_go_on_from_anothers(go, fails, monkeypatch):
    out = go('--max_iters=2')

    def killed(self):
        raise MemoryError

    with monkeypatch.context() as m:
        m.setattr(Trainer, 'step', killed)
        with pytest.raises(MemoryError):
            go('--learning_rate=3e-3')
    fails(lambda: train(config(out, '--init_from=resume')), 'no checkpoint at')
    assert (out / 'earlier-1' / 'ckpt.pt').exists()


@pytest.mark.parametrize('flags', [(), ('--init_from=resume',)])
def test_eval_only_touches_nothing_on_disk(go, tmp_path, capsys, flags):
    out = go('--max_iters=2')
    before = contents(out)
    capsys.readouterr()
    go('--eval_only', *flags)
    assert contents(out) == before and re.search(r'step [02]: train loss \d\.\d+, val loss', capsys.readouterr().out)
    go('--eval_only', out='new')
    assert not (tmp_path / 'new').exists()


def test_a_mistake_leaves_no_folder_behind(tmp_path, fails):
    fails(lambda: train(config(tmp_path / 'x', '--init_from=resume')), 'no checkpoint at')
    assert not (tmp_path / 'x').exists()


# ---------------------------------------------------------------------------
# what a resumed run changes


def test_resuming_names_every_key_that_changed_and_what_it_means(go, capsys):
    go('--max_iters=2')
    capsys.readouterr()
    flags = ('--batch_size=2', '--dropout=0.1', '--learning_rate=3e-3', '--seed_model=5')
    go('--max_iters=4', '--init_from=resume', *flags)
    said = capsys.readouterr().out
    line = next(t for t in said.splitlines() if t.startswith('changed since the checkpoint: '))
    for part in ('batch_size = 2 (was 4)', 'dropout = 0.1 (was 0.0)', 'learning_rate = 0.003 (was 0.01)',
                 'seed_model = 5 (was 1337)', 'max_iters = 4 (was 2)'):  # fmt: skip
        assert part in line, part
    assert 'NOTE: an iteration has 32 tokens now, it had 64' in said and 'from iteration 2' in said
    capsys.readouterr()
    go('--max_iters=4', '--init_from=resume', *flags)
    said = capsys.readouterr().out
    assert 'changed since' not in said and 'from iteration 4: the end, max_iters = 4; a larger one goes on' in said


def test_a_teacher_that_has_other_weights_than_before_is_named(go, capsys):
    """It may still be training itself."""
    teacher = f'--distill_from={go("--max_iters=1", out="teacher")}/ckpt.pt'
    go(teacher, '--max_iters=1'), go(teacher, '--max_iters=2', '--init_from=resume')
    assert 'another teacher' not in capsys.readouterr().out
    go('--max_iters=2', '--init_from=resume', out='teacher')
    go(teacher, '--max_iters=3', '--init_from=resume')
    assert 'teacher/ckpt.pt has other weights than before' in capsys.readouterr().out
    go(teacher, '--max_iters=4', '--init_from=resume'), go('--max_iters=5', '--init_from=resume')
    assert 'another teacher' not in capsys.readouterr().out


def test_the_head_of_a_run_counts_a_small_model_exactly():
    assert [logger.size(n) for n in (10560, 999999, 10_650_000)] == ['10,560', '999,999', '10.65M']


@pytest.mark.parametrize('flag', ['--seed_data=7', '--data_order=random'])
def test_another_order_of_the_data_is_refused_when_resuming(go, fails, flag):
    out = go('--max_iters=2')
    before = contents(out)
    err = fails(lambda: train(config(out, '--init_from=resume', flag)), flag[2:].split('=')[0], 'another --out_dir')
    assert err.count('\n') == 1 and contents(out) == before


# ---------------------------------------------------------------------------
# kills between two writes, and what a log says after them


def test_resuming_mends_a_best_checkpoint_that_a_kill_left_behind(go, monkeypatch):
    out = go('--max_iters=5')
    real = files.copy

    def killed(src, dst):
        raise MemoryError if dst.name == 'best.pt' else real(src, dst)

    with monkeypatch.context() as m:
        m.setattr(files, 'copy', killed)
        with pytest.raises(MemoryError):
            go('--max_iters=10', '--init_from=resume')
    assert [checkpoint.load(out / f)['iter_num'] for f in ('ckpt.pt', 'best.pt')] == [10, 5]
    go('--max_iters=10', '--init_from=resume')
    assert checkpoint.load(out / 'best.pt')['iter_num'] == checkpoint.load(out / 'ckpt.pt')['best_iter'] == 10


def test_resuming_keeps_the_evaluation_made_at_the_checkpoint(go):
    out = go('--max_iters=3')  # off the grid of 5
    assert list(losses(out, 'eval')) == [0, 3]
    go('--max_iters=5', '--init_from=resume')
    assert list(losses(out, 'eval')) == [0, 3, 5]
    assert [m['iter'] for m in read_metrics(out) if m['kind'] == 'eval'] == [0, 3, 5]  # each of them once


def test_tokens_count_what_was_consumed_whatever_the_batch_size(go):
    out = go('--max_iters=5')
    go('--max_iters=10', '--init_from=resume', '--batch_size=2')
    assert [m['tokens'] for m in read_metrics(out) if m['kind'] == 'eval'] == [0, 5 * 64, 5 * 64 + 5 * 32]


def test_the_first_train_loss_after_a_resume_averages_as_many_steps_as_any(go):
    whole = go('--max_iters=10', '--log_interval=4', out='whole')
    go('--max_iters=7', '--log_interval=4', out='parts')
    parts = go('--max_iters=10', '--log_interval=4', '--init_from=resume', out='parts')
    assert losses(whole) == losses(parts) and list(losses(parts)) == [0, 4, 8]


@pytest.fixture
def interrupted(go, monkeypatch, tmp_path):
    """A run to which a signal comes in the middle of the evaluation of val at an iteration; its folder."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def run(at, *flags):
        evaluate, evaluating, now = Trainer.evaluate, Log.evaluating, []
        monkeypatch.setattr(Trainer, 'evaluate', lambda self, split: (now.append(self.iter), evaluate(self, split))[1])

        def signalled(self, split, batch, of):
            if split == 'val' and now[-1] == at:
                os.kill(os.getpid(), signal.SIGINT)
            evaluating(self, split, batch, of)

        with monkeypatch.context() as m:
            m.setattr(Log, 'evaluating', signalled)
            with pytest.raises(SystemExit) as e:
                go(*flags, out='cut')
        assert e.value.code == 130
        return tmp_path / 'cut'

    yield run
    for s, handler in before.items():
        signal.signal(s, handler)


@pytest.mark.parametrize('at', [0, 5, 7])  # before the first step; on the grid; at the end
def test_ctrl_c_is_answered_at_once_during_an_evaluation_and_loses_nothing(go, interrupted, capfd, at):
    flags = ('--max_iters=7', '--dropout=0.1')
    out = interrupted(at, *flags)
    said = capfd.readouterr().out
    assert 'stopping after this step, then saving; again: now' in said
    assert f'at iteration {at}' in said and 'go on with --init_from=resume' in said
    assert checkpoint.load(out / 'ckpt.pt')['iter_num'] == at and at not in losses(out, 'eval')
    go(*flags, '--init_from=resume', out='cut')
    whole = go(*flags, out='whole')
    assert losses(out) == losses(whole) and losses(out, 'eval') == losses(whole, 'eval')
    assert json.loads((out / 'manifest.json').read_text())['final_iter'] == 7


# ---------------------------------------------------------------------------
# damaged files of a record


def test_a_forged_record_is_accepted_or_refused_in_one_line(tmp_path):
    """A few of the cases of make fuzz."""
    n = fuzz.cases(300)
    count = fuzz.many('records', range(n), tmp_path)
    assert count.accepted > n / 10 and count.refused > n / 3


@pytest.mark.parametrize(
    'value, wrong',
    [
        ([], 'it must be an object'),
        ({}, 'a is missing'),
        (dict(a=True), 'a must be a number'),
        (dict(a=1, b=None), ''),
        (dict(a=0.5, b='x'), 'b must be a whole number'),
        (dict(a=10**400), 'a is too large'),
        (dict(a=1, c='high'), 'c must be one of low'),
        (dict(a=1, d=['x', {}]), 'd[1] must be a text'),
        (dict(a=1, d=['x']), ''),
        (dict(a=1, e=3), 'e must not be there'),
        (dict(a=1, f='x'), 'f must be true or false'),
    ],
)
def test_what_a_json_file_holds_is_held_against_its_shape(tmp_path, value, wrong):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps(value))
    shape = {'a': float, 'b?': (None, int), 'c?': {'low'}, 'd?': [str], 'e?': (), str: bool}
    if not wrong:
        assert files.read_json(path, shape) == value
        return
    with pytest.raises(UserError) as e:
        files.read_json(path, shape)
    assert wrong in str(e.value) and str(path) in str(e.value)


def test_a_pipe_or_a_folder_is_no_log(tmp_path):
    os.mkfifo(tmp_path / 'metrics.jsonl')
    (tmp_path / 'manifest.json').mkdir()
    for read in (lambda: read_metrics(tmp_path), lambda: files.read_json(tmp_path / 'manifest.json', {})):
        with pytest.raises(UserError, match='cannot be read'):
            read()


RECORD = dict(run='a/lr0/s1', arm='steps/a', size='', lr=0.0, seed=1, state='finished', facts=dict(flops=0))


def test_only_the_last_line_of_a_log_may_be_half_written(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    assert files.read_lines(path) == read_metrics(tmp_path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": ')
    assert files.read_lines(path) == [{'a': 1}, {'b': 2}]
    path.write_text('{"a": 1}\n{"b": 2}')
    assert files.read_lines(path) == [{'a': 1}, {'b': 2}]
    for damage in (b'{"c": \n', b'\xff\n', b'12\n', b'\x00\x00\n', b'{"b": 2}{"c": 3}\n', b'{"c": \n{"d": 4}\n'):
        for read, good in (
            (lambda: files.read_lines(path), dict(a=1)),
            (lambda: read_metrics(tmp_path), dict(kind='eval', iter=0, val_loss=math.nan)),
            (lambda: records.read_records(tmp_path), RECORD),
        ):
            path.write_text(json.dumps(good) + '\n')
            assert len(read()) == 1
            path.write_bytes(path.read_bytes() + damage)
            with pytest.raises(UserError, match='metrics.jsonl, line 2: damaged'):
                read()


def test_a_damaged_log_stops_resuming_before_anything_is_written(go, fails):
    out = go('--max_iters=3')
    lines = (out / 'metrics.jsonl').read_text().splitlines()
    for damage in (lines[1][:20], '{"kind": "train"}'):
        (out / 'metrics.jsonl').write_text('\n'.join([lines[0], damage, *lines[2:]]) + '\n')
        before = contents(out)
        err = fails(lambda: train(config(out, '--init_from=resume', '--max_iters=4')), 'metrics.jsonl, line 2')
        assert err.count('\n') == 1 and contents(out) == before


@pytest.mark.parametrize('damage', ['', '{"command": "py', '[]', '{"resumed": 3}'])
def test_a_damaged_manifest_does_not_block_resuming(go, capsys, damage):
    out = go('--max_iters=2')
    (out / 'manifest.json').write_text(damage)
    go('--max_iters=3', '--init_from=resume')
    assert 'manifest.json is damaged, it is now manifest.json.damaged' in capsys.readouterr().out
    assert json.loads((out / 'manifest.json').read_text())['final_iter'] == 3
    assert (out / 'manifest.json.damaged').read_text() == damage


# ---------------------------------------------------------------------------
# wandb


class FakeWandb:
    """The module wandb; what goes wrong is told by `broken`."""

    def __init__(self, broken=''):
        self.broken, self.inits, self.logged, self.id, self.there = broken, [], [], 'abc', None

    def init(self, dir, **keys):
        self.there = [p.name for p in Path(dir).glob('*.json*')]
        self.inits.append(keys)
        if self.broken == 'init':
            raise RuntimeError('No API key configured.\nUse `wandb login`')
        return self

    def log(self, values, step):
        if self.broken == 'log':
            raise ConnectionError('unreachable')
        self.logged.append(step)

    def finish(self):
        if self.broken == 'finish':
            raise ConnectionError('unreachable')


@pytest.mark.parametrize('broken', ['init', 'log', 'finish'])
def test_training_goes_on_without_a_wandb_that_fails(go, monkeypatch, capsys, broken):
    fake = FakeWandb(broken)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    out = go('--wandb_log=true', '--max_iters=2')
    said = capsys.readouterr().out
    assert said.count('NOTE: wandb failed (') == 1 and 'training goes on without it' in said
    assert list(losses(out)) == [0, 1] and json.loads((out / 'manifest.json').read_text())['final_iter'] == 2
    assert fake.there == []  # it was started before anything was written


@pytest.mark.slow
def test_a_wandb_server_out_of_reach_costs_a_stated_time(go, monkeypatch, capsys):
    wandb = pytest.importorskip('wandb')
    wandb.teardown()  # what an earlier test in this process has started keeps its server
    monkeypatch.setattr('logger.STARTING', 1)
    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
    monkeypatch.setenv('WANDB_API_KEY', 'a' * 40)
    t0 = time.time()
    out = go('--wandb_log=true', '--max_iters=2')
    wandb.teardown()
    assert time.time() - t0 < 60  # by itself wandb tries for 90 seconds
    said = capsys.readouterr().out
    assert said.count('NOTE: wandb failed (') == 1 and 'training goes on without it' in said
    assert list(losses(out)) == [0, 1]


def test_a_resumed_run_goes_on_in_the_same_wandb_run(go, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    go('--wandb_log=true', '--max_iters=1')
    go('--max_iters=2', '--init_from=resume')  # a part without it
    go('--wandb_log=true', '--max_iters=3', '--init_from=resume')
    assert [(k.get('id'), k.get('resume')) for k in fake.inits] == [(None, None), ('abc', 'allow')]
    assert sorted(set(fake.logged)) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------
# full disks, killed writers


def test_a_full_disk_while_logging_gets_one_line(go, fails, tmp_path, monkeypatch):
    out = go('--max_iters=2')
    start = Log.head

    def full(self, *args):
        self.file.close()
        self.file = open('/dev/full', 'w', buffering=1)
        start(self, *args)

    monkeypatch.setattr(Log, 'head', full)
    err = fails(lambda: train(config(out, '--init_from=resume', '--max_iters=4')), 'cannot write', 'No space left')
    assert err.count('\n') == 1


def test_a_failed_write_at_the_end_does_not_hide_why_the_run_ended(go, fails, tmp_path, monkeypatch):
    import logger

    def full(path, value):
        if 'finished' in value:
            raise UserError('cannot write manifest.json')
        files.write_json(path, value)

    monkeypatch.setattr(logger, 'write_json', full)
    fails(lambda: go('--max_iters=2'), 'cannot write manifest.json')
    monkeypatch.setattr(Trainer, 'evaluate', lambda self, split: {f'{split}_loss': math.nan})
    fails(lambda: go('--max_iters=2', out='other'), 'the loss is nan', code=3)


def test_temporary_files_of_killed_processes_are_removed(go, tmp_path):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    out = go('--max_iters=1')
    names = dict(old=f'ckpt.pt.tmp{gone.pid}', new=f'ckpt.pt.tmp{gone.pid}-0123abcd', mine=f'a.tmp{os.getpid()}-00000000',
                 other=f'b.tmp{os.getppid()}-00000000', own='notes.tmp')  # fmt: skip
    for name in names.values():
        (out / name).write_text('')
    go('--max_iters=2', '--init_from=resume')
    assert [k for k, name in names.items() if (out / name).exists()] == ['other', 'own']


def test_two_containers_whose_writers_are_both_process_1_use_two_temporary_names(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    assert len({files.temporary(tmp_path / 'ckpt.pt').name for _ in range(10)}) == 10


# ---------------------------------------------------------------------------
# updates that are left out


class Overflowing:
    """A GradScaler whose first updates, and any others that are named, overflow."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def is_enabled(self):
        return True

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        self.calls += 1
        if self.calls - 1 not in self.at:
            optimizer.step()

    def update(self):
        pass

    def state_dict(self):
        return {}


def test_a_float16_step_that_overflows_is_logged_without_a_norm(go, monkeypatch):
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *args, **keys: Overflowing({0, 3}))
    out = go('--max_iters=5')
    norms = {m['iter']: m['grad_norm'] for m in read_metrics(out) if m['kind'] == 'train'}
    assert [i for i, n in norms.items() if n is None] == [0, 3] and all(n > 0 for n in norms.values() if n is not None)


def test_a_checkpoint_whose_optimizer_never_moved_is_resumed_exactly(go, monkeypatch):
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *args, **keys: Overflowing(set(range(3))))
    whole = go('--max_iters=6', out='whole')
    out = go('--max_iters=3', out='parts')
    assert all(not s['exp_avg'].any() for s in torch.load(out / 'ckpt.pt', weights_only=True)['optimizer'].values())
    monkeypatch.setattr(torch.amp, 'GradScaler', lambda *args, **keys: Overflowing(()))
    go('--max_iters=6', '--init_from=resume', out='parts')
    assert losses(out) == losses(whole)


def spoil(monkeypatch, iters):
    """Gradients of these iterations are NaN."""
    real = Trainer.forward_backward

    def broken(self, x, y):
        loss = real(self, x, y)
        if self.iter in iters:
            self.model.transformer.wte.weight.grad[0, 0] = math.nan
            loss = loss * math.nan
        return loss

    monkeypatch.setattr(Trainer, 'forward_backward', broken)


def test_a_nan_stops_the_run_and_says_which_data_it_saw(go, fails, monkeypatch):
    spoil(monkeypatch, {4})
    for interval, seen in ((1, 'windows 16 to 19'), (3, 'windows 16 to 27')):  # 4 windows a step; lines at 0, 3, 6
        err = fails(
            lambda n=interval: go('--max_iters=9', f'--log_interval={n}', '--eval_interval=9'),
            f'it saw {seen} of the',
            code=3,
        )
        assert 'data_order = permutation, seed_data = 1337' in err and err.count('\n') == 1


def test_on_nan_skip_leaves_out_the_update_and_goes_on(go, monkeypatch, capsys):
    spoil(monkeypatch, {2})
    out = go('--max_iters=6', '--on_nan=skip', out='a')
    said = capsys.readouterr().out
    assert 'the gradient of iteration 2 is not finite, no update: it saw windows 8 to 11' in said
    assert list(losses(out)) == [0, 1, 3, 4, 5] and all(map(math.isfinite, losses(out).values()))
    coarse = losses(go('--max_iters=6', '--on_nan=skip', '--log_interval=4', out='b'))
    assert coarse[4] == pytest.approx(sum(losses(out)[i] for i in (1, 3, 4)) / 3, abs=1e-6)


def test_on_nan_skip_changes_nothing_where_all_is_finite(go):
    assert losses(go(out='a')) == losses(go('--on_nan=skip', out='b'))


def test_on_nan_skip_ends_where_nothing_is_finite_any_more(go, fails, monkeypatch):
    monkeypatch.setattr('train.SKIPS', 3)
    spoil(monkeypatch, range(2, 100))
    fails(lambda: go('--max_iters=50', '--on_nan=skip', '--eval_interval=50'), 'the loss is nan at iteration 5', code=3)
    assert SKIPS > 50  # float16 starts by leaving out a dozen


def test_keep_last_keeps_the_last_checkpoints_beside_the_best(go):
    out = go('--max_iters=12', '--eval_interval=2', '--keep_last=3')
    names = sorted(p.name for p in out.glob('*.pt'))
    assert names == ['best.pt', 'ckpt-10.pt', 'ckpt-12.pt', 'ckpt-8.pt', 'ckpt.pt']
    assert [checkpoint.load(out / f'ckpt-{n}.pt')['iter_num'] for n in (8, 10, 12)] == [8, 10, 12]


# ---------------------------------------------------------------------------
# what is said


def test_a_run_that_goes_back_to_an_earlier_checkpoint_does_not_call_a_later_one_its_best(go, capsys):
    flags = ('--eval_interval=2', '--eval_iters=30', '--keep_last=3', '--init_from=resume', '--learning_rate=1')
    out = go('--max_iters=8', *flags[:3])
    was = (out / 'best.pt').read_bytes()
    assert checkpoint.load(out / 'best.pt')['iter_num'] == 8
    os.replace(out / 'ckpt-4.pt', out / 'ckpt.pt')  # the best one at its time
    capsys.readouterr()
    go('--max_iters=6', *flags)
    said = capsys.readouterr().out
    assert 'best.pt is of iteration 8, which this run has not seen: it is best-8.pt now' in said
    assert (out / 'best-8.pt').read_bytes() == was and checkpoint.load(out / 'best.pt')['iter_num'] == 4
    go('--max_iters=10', *flags)
    assert 'best.pt is of' not in capsys.readouterr().out


def test_a_run_from_trained_weights_that_only_becomes_worse_has_them_as_its_best(go):
    first = go('--max_iters=6', out='first') / 'ckpt.pt'
    worse = '--max_iters=4', '--eval_interval=2', '--eval_iters=30', '--learning_rate=5', '--min_lr=5', '--grad_clip=0'
    out = go(*worse, f'--init_from={first}', out='second')
    assert losses(out, 'eval')[0] < min(losses(out, 'eval')[2], losses(out, 'eval')[4])
    a, b = checkpoint.load(first), checkpoint.load(out / 'best.pt')
    assert b['iter_num'] == b['best_iter'] == 0 and checkpoint.load(out / 'ckpt.pt')['iter_num'] == 4
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    assert not (go(*worse, out='scratch') / 'best.pt').exists()


def test_a_run_says_where_it_saved_and_that_its_schedule_is_not_finished(go, capsys):
    out = go('--max_iters=5')
    said = capsys.readouterr().out
    assert f'saved {out}/ckpt.pt at iteration 5, best.pt of iteration 5 (val loss' in said
    last = optim.lr_at(config(out), 4)
    assert (
        f'max_iters = 5 is below lr_decay_iters = 20: the schedule will not be finished, the last learning rate is {last:.3g}'
        in said
    )
    go('--max_iters=6', '--init_from=resume', '--lr_decay_iters=6')
    said = capsys.readouterr().out
    assert f'resuming {out} from iteration 5' in said and 'will not be finished' not in said
    assert optim.notes(config(out, '--decay_lr=false')) == []
    go('--max_iters=3', '--init_from=resume', '--lr_decay_iters=6')
    assert 'of iteration 6, beyond max_iters = 3: nothing is trained' in capsys.readouterr().out


def fake_log(cfg, tmp_path, capsys):
    log = Log(cfg, tmp_path / 'x', {}, dict(device='cpu, 2 threads'), dry=True)
    capsys.readouterr()
    return log


def test_the_first_steps_tell_how_long_the_run_will_take(tmp_path, capsys):
    cfg = TrainConfig(max_iters=1000, eval_interval=100)
    log = fake_log(cfg, tmp_path, capsys)
    log.eval_seconds = 30.0
    for i in range(20):
        log.train(iter=i, loss=1.0, ms=1000.0 if i else None, tokens_per_s=10.0)
    said = [t for t in capsys.readouterr().out.splitlines() if 'about' in t]
    assert said == ['about 22 min to iteration 1,000: 1 s each, and 10 evaluations of 30 s'] and not log.file
    slow = fake_log(cfg, tmp_path, capsys)
    slow.train(iter=1, loss=1.0, ms=15_000.0, tokens_per_s=10.0)  # ten seconds are enough
    said = capsys.readouterr().out
    assert 'NOTE: about 4 h 10 min to iteration 1,000: 15 s each' in said and 'This is long for cpu, 2 threads' in said
    fast = fake_log(cfg, tmp_path, capsys)
    for i in range(9):
        fast.train(iter=i, loss=1.0, ms=5.0, tokens_per_s=10.0)
    assert 'about' not in capsys.readouterr().out
    assert [duration(s) for s in (90, 3600, 5400)] == ['2 min', '1 h 0 min', '1 h 30 min']


def test_a_long_evaluation_shows_its_progress(tmp_path, capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, 'time', lambda: now[0])
    log = fake_log(TrainConfig(), tmp_path, capsys)
    for batch in range(1, 51):
        now[0] += 1
        log.evaluating('val', batch, 50)
    said = capsys.readouterr().out.splitlines()
    assert said == [f'evaluating val: batch {n} of 50' for n in (10, 20, 30, 40, 50)]


def test_the_batches_of_an_evaluation_are_counted(tmp_path):
    t = Trainer(config(tmp_path, '--eval_iters=3'), torch.device('cpu'))
    seen = []
    t.progress = lambda *where: seen.append(where)
    t.evaluate('train'), t.evaluate('val')  # each half of val has a batch that is not full
    assert seen == [('train', n, 3) for n in (1, 2, 3)] + [('val', n, 4) for n in (1, 2, 3, 4)]


def test_the_bar_of_a_terminal_has_the_speed(tmp_path, capsys):
    log = fake_log(TrainConfig(), tmp_path, capsys)
    shown = []
    log.bar = types.SimpleNamespace(disable=False, n=0, set_postfix_str=shown.append)
    log.train(iter=1, loss=1.0, ms=100.0, tokens_per_s=12345.0, mfu=0.5)
    log.ticked = 0
    log.evaluating('train', 3, 9)
    assert shown == ['loss 1.0000, 12,345 tok/s, mfu 50.0%', 'evaluating train: batch 3 of 9']


def test_a_training_loss_that_holds_more_than_cross_entropy_has_another_name(tmp_path, capsys):
    names = [
        (dict(), 'loss'),
        (dict(distill_from='a.pt'), 'loss with divergence from the teacher'),
        (dict(mlp_gate=True), 'loss with gate penalty'),
        (dict(mlp='moe'), 'loss with router loss'),
        (dict(linear='btt_moe', distill_from='a.pt'), 'loss with divergence from the teacher and router loss'),
    ]
    for keys, name in names:
        assert loss_name(TrainConfig(**keys)) == name
    fake_log(TrainConfig(mlp_gate=True), tmp_path, capsys).train(iter=0, loss=1.0)
    assert capsys.readouterr().out == 'iter 0: loss with gate penalty 1.0000\n'


def test_a_second_signal_ends_the_process(capfd):
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        interrupt = hardware.Interrupt()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        interrupt.leave()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and 'again: now' in capfd.readouterr().out
        with pytest.raises(hardware.Stopped):
            interrupt.leave()
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def test_floats_keep_what_a_float32_holds(tmp_path):
    log = Log(TrainConfig(out_dir=str(tmp_path)), tmp_path, {}, {})
    log.metrics(kind='train', iter=3, loss=1.2345678912)
    log.close()
    assert read_metrics(tmp_path) == [dict(kind='train', iter=3, loss=1.2345679)]


def test_a_copy_of_the_code_is_told_its_commit(monkeypatch):
    monkeypatch.setattr(logger, 'git', lambda *_: ' M train.py')
    assert logger.dirty()
    monkeypatch.setenv('NANOMORPH_COMMIT', 'of the original')
    assert logger.commit() == 'of the original' and not logger.dirty()


def test_the_windows_of_the_last_steps_are_those_that_they_saw():
    c = TrainConfig(gradient_accumulation_steps=2, batch_size=4, seed_data=5)
    t = types.SimpleNamespace(cfg=c, position=80)
    assert logger.windows(t, 3) == ('windows 56 to 79 of the training data (data_order = permutation, seed_data = 5)')


def test_the_end_names_the_iteration_of_each_checkpoint(tmp_path):
    (tmp_path / 'best.pt').touch()
    t = types.SimpleNamespace(cfg=TrainConfig(), out_dir=tmp_path, saved=9, best_iter=6, best_val_loss=1.5)
    t.saved_as = 'ckpt.pt'
    said = f'saved {tmp_path}/ckpt.pt at iteration 9, best.pt of iteration 6 (val loss 1.5000)'
    assert logger.kept(t, stopped=False) == said
    assert logger.kept(t, stopped=True) == f'interrupted: {said}; go on with --init_from=resume'


def test_resuming_what_is_done_logs_its_last_evaluation_once(go):
    for more in ((), ('--init_from=resume',)):
        out = go('--max_iters=7', *more)
        assert [m['iter'] for m in read_metrics(out) if m['kind'] == 'eval'] == [0, 5, 7]


@pytest.mark.parametrize('how', ['quiet', 'dry'])
def test_a_quiet_log_says_and_writes_nothing_and_a_dry_one_says_all_and_writes_nothing(tmp_path, capsys, how):
    """The processes beside the first one, and eval_only."""
    cfg = load(TrainConfig, [*TINY, '--note=a note'])
    facts = dict(device='cpu', params=9, params_collapsed=9, tokens_per_iter=9, flops_per_token=9, flops_per_update=9,
                 processes=2, dtype='f', attention='a')  # fmt: skip
    log = Log(cfg, tmp_path / 'x', dict(vocab_size=5), facts, **{how: True})
    with log.closing(lambda: dict(final_iter=3)):
        log.say('something')
        log.head(cfg, facts, ['a line'])
        log.ticked = 0.0
        log.evaluating('val', 1, 2)
        log.train(iter=0, loss=1.25, ms=1.0, tokens_per_s=2.0, mfu=None)
        log.metrics(kind='eval', iter=0, val_loss=1.0)
    said = capsys.readouterr().out
    assert not (tmp_path / 'x').exists() and (how == 'dry' or not said)
    if how == 'dry':
        for part in ('something', 'a note', 'a line', 'evaluating val: batch 1 of 2', 'iter 0: loss 1.2500'):
            assert part in said
