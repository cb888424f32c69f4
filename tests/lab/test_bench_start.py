"""bench.py start: the seconds are those to the end of the first step of a run of its own."""

import json
import os
import sys

import pytest
from conftest import TINY

import bench
from configurator import UserError
from lab import bench_start


def test_a_run_says_what_a_start_is_timed_by(run_train, capsys):
    run_train('--max_iters=1')
    said = capsys.readouterr().out.splitlines()
    first = [next(i for i, line in enumerate(said) if line.startswith(begin)) for begin in bench_start.MARKS.values()]
    assert first == sorted(first) and first[0] < first[-1]


def test_a_start_is_timed_to_its_first_step_and_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_start, 'ROOT', tmp_path)
    script = (
        'import time; print("config: a", flush=True); time.sleep(0.2); print("step 0: b", flush=True); time.sleep(0.3)'
    )
    (tmp_path / 'train.py').write_text(f'{script}; print("iter 0: c", flush=True); time.sleep(60)')
    found = bench_start.seconds([], dict(os.environ))
    assert 0 < found['model'] < found['evaluation'] - 0.19 < found['first_step'] - 0.48 < 10
    (tmp_path / 'train.py').write_text('print("config: a"); raise SystemExit("the cause")')
    with pytest.raises(UserError, match='no first step: the cause'):
        bench_start.seconds([], dict(os.environ))


def test_a_start_finds_byte_code_where_python_is_told_to_keep_none(monkeypatch):
    monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
    with bench_start.environment() as env:
        assert 'PYTHONDONTWRITEBYTECODE' not in env and os.path.isdir(env['PYTHONPYCACHEPREFIX'])
    monkeypatch.delenv('PYTHONDONTWRITEBYTECODE')
    with bench_start.environment() as env:
        assert env == dict(os.environ)


def test_starts_that_were_timed_are_kept_where_a_later_one_fails(tmp_path, monkeypatch, fails):
    times = iter([dict(model=5.0, evaluation=15.0, first_step=31.0)])

    def seconds(flags, env):
        if row := next(times, None):
            return row
        raise UserError('no first step')

    monkeypatch.setattr(bench_start, 'seconds', seconds)
    fails(lambda: bench_start.start([*TINY, f'--out={tmp_path}/x.jsonl']), 'no first step')
    assert json.loads((tmp_path / 'x.jsonl').read_text())['first_step'] == 31


def test_each_start_is_a_row(tmp_path, monkeypatch, capsys):
    asked = []
    times = iter([dict(model=5.0, evaluation=15.0, first_step=31.0), dict(model=5.0, evaluation=7.5, first_step=12.0)])

    def seconds(flags, env):
        asked.append(flags)
        return next(times)

    monkeypatch.setattr(bench_start, 'seconds', seconds)
    monkeypatch.setattr(sys, 'argv', ['bench.py', 'start', *TINY, '--starts=2', f'--out={tmp_path}/x.jsonl'])
    bench.main()
    rows = [json.loads(line) for line in (tmp_path / 'x.jsonl').read_text().splitlines()]
    assert [(r['start'], r['first_step']) for r in rows] == [(1, 31.0), (2, 12.0)] and rows[0]['device'].startswith(
        'cpu'
    )
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1:3] == [['1', '31.0', '5.0', '10.0', '16.0'], ['2', '12.0', '5.0', '2.5', '4.5']]
    assert asked == [TINY, TINY]
