"""Runs are started again only where that can help, and an exit code is that of its run."""

import io
import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo

import files
from configurator import Diverged, UserError
from lab import launch


@pytest.mark.parametrize(
    'manifest, is_over',
    [
        (dict(final_iter=10, finished='now'), True),
        (dict(final_iter=11, finished='now'), True),
        (dict(final_iter=9, finished='now'), False),
        (dict(final_iter=9, finished='now', out_of_patience=True), True),
        (dict(final_iter=10, finished='now', interrupted=True), False),  # before its last evaluation
        (dict(final_iter=10), False),
        (dict(finished='now'), False),
    ],
)
def test_a_run_is_over_at_max_iters_and_not_before(tmp_path, manifest, is_over):
    (tmp_path / 'config.json').write_text(json.dumps(dict(max_iters=10)))
    assert not launch.over(tmp_path)
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    assert launch.over(tmp_path) == is_over
    launch.forget(tmp_path)
    assert not launch.over(tmp_path)


def test_a_users_mistake_is_not_tried_again_and_a_crash_once(tmp_path, monkeypatch):
    """Three fake runs, which end at once: with exit code 2, with 1 each time, with 1 the first time only."""
    monkeypatch.setattr(launch.time, 'sleep', lambda seconds: None)
    codes, started, over = dict(mistake=[2, 0], broken=[1, 1, 0], unlucky=[1, 0]), [], set()

    def start(command, folder, slot):
        started.append(folder.name)
        code = codes[folder.name].pop(0)
        return lambda: code, lambda: True

    def done(name, code):
        over.update([name] if code == 0 else [])
        return f'exit code {code}' if code else ''

    todo = lambda: [(name, tmp_path / name, ['x']) for name in codes if name not in over]
    failed = launch.run_all(todo, done, start, jobs=2)
    assert failed == dict(mistake='exit code 2', broken='exit code 1') and over == {'unlucky'}
    assert [started.count(name) for name in codes] == [1, 2, 2]


def test_a_process_goes_on_with_the_arm_that_it_has_compiled(tmp_path, monkeypatch):
    """Two arms, two slots: each slot gets the runs of one arm, and the one that is through helps with the other."""
    monkeypatch.setattr(launch.time, 'sleep', lambda seconds: None)
    names = [
        f'{arm}@w64/lr{lr}/s{seed}'
        for arm, rates in (('a', (1, 2)), ('b', (1, 2, 3)))
        for lr in rates
        for seed in (1, 2)
    ]
    taken, over = {}, set()

    def start(command, folder, slot):
        taken.setdefault(slot, []).append(command[-1])
        return lambda: 0, lambda: True

    todo = lambda: [(n, tmp_path / n, [n]) for n in names if n not in over]
    assert not launch.run_all(todo, lambda name, code: over.add(name) or '', start, jobs=2)
    assert {n[0] for n in taken[0][:4]} == {'a'} and {n[0] for n in taken[1]} == {'b'}
    assert sorted(taken[0] + taken[1]) == names and len(taken[0]) == len(taken[1]) == 5


def ends(error):
    def main():
        if error:
            raise error

    return main


@pytest.mark.parametrize(
    'error, code',
    [(None, 0), (UserError('no'), 2), (Diverged('nan'), 3), (SystemExit(130), 130), (RuntimeError('a fault'), 1)],
)
def test_the_exit_code_of_a_run_in_a_pool_is_its_own(tmp_path, monkeypatch, capsys, error, code):
    monkeypatch.setattr(launch, 'begin', lambda folder: None)
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setitem(sys.modules, 'a_script', SimpleNamespace(main=ends(error)))
    dynamo = torch._dynamo.config
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with dynamo.patch(automatic_dynamic_shapes=True):
            assert launch.one(tmp_path, launch.Path('a_script.py'), ['--x=1']) == code
            # else a width in which two runs differ is a variable to the second one
            assert not dynamo.automatic_dynamic_shapes
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    assert sys.argv[1:] == ['--x=1']


def test_a_pool_answers_with_each_code_and_leaves_after_a_run_that_failed(monkeypatch, capfd):
    monkeypatch.setattr(launch.gc, 'collect', lambda: None)  # of all that the tests have made
    codes = iter([0, launch.LOCKED, 3, 0])
    monkeypatch.setattr(launch, 'one', lambda *_: next(codes))
    line = json.dumps(['folder', 'python', str(launch.ROOT / 'train.py'), '--x=1']) + '\n'
    monkeypatch.setattr(sys, 'stdin', io.StringIO(line * 4))
    launch.pool()
    answers = [json.loads(text) for text in capfd.readouterr().out.splitlines()]
    assert answers == [[0, False], [launch.LOCKED, False], [3, True]] and next(codes) == 0


def test_a_run_gets_its_share_of_the_processors_and_a_gpu_of_its_own(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(launch.os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(launch, 'gpus', lambda: ['4', '5'])
    monkeypatch.setattr(
        launch.subprocess, 'Popen', lambda command, **keys: started.append(keys['env']) or SimpleNamespace(poll=None)
    )
    for jobs, threads, expected in ((4, 0, ('2', '2')), (16, 0, ('1', '1')), (4, 3, ('3', '2'))):
        start = launch.engine('local', jobs, tmp_path, threads=threads)
        start(['x'], tmp_path, slot=0)
        assert tuple(started[-1][k] for k in ('OMP_NUM_THREADS', 'TORCHINDUCTOR_COMPILE_THREADS')) == expected
    for slot in range(4):
        start(['x'], tmp_path, slot)
    assert [env['CUDA_VISIBLE_DEVICES'] for env in started[-4:]] == ['4', '5', '4', '5']


def test_the_last_words_of_a_run_are_its_last(tmp_path):
    assert 'no output' in launch.last_words(tmp_path, 1)
    (tmp_path / 'output.txt').write_text('config: ...\nTraceback\nValueError: of all things\n\n')
    assert launch.last_words(tmp_path, 3).startswith('exit code 3: ValueError: of all things (')


def test_a_run_in_a_pool_leaves_no_lock_to_the_next(tmp_path, monkeypatch):
    """Else the next run of this process would take a folder that another one works in for its own."""
    monkeypatch.setitem(sys.modules, 'a_script', SimpleNamespace(main=ends(None)))
    monkeypatch.setattr(sys, 'argv', sys.argv)
    monkeypatch.setattr(launch.os, 'dup2', lambda *_: None)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert launch.one(tmp_path / 'a', launch.Path('a_script.py'), []) == 0
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    assert files.HELD not in launch.os.environ and files.holder(tmp_path / 'a') is None


@pytest.mark.parametrize('name', ['ckpt.json', 'eval.json'])
def test_a_command_is_over_when_its_last_file_is_there_and_can_be_forgotten(tmp_path, name):
    assert not launch.over(tmp_path)
    (tmp_path / name).write_text('{}')
    assert launch.over(tmp_path)
    launch.forget(tmp_path)
    assert not launch.over(tmp_path)
