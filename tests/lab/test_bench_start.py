"""bench.py start: the seconds are those to the end of the first step of a run of its own."""

import json
import sys

import pytest
from conftest import ROOT, TINY

import bench
from configurator import UserError
from lab import bench_start


def test_a_start_is_timed_to_its_first_step_and_no_further(python, tmp_path):
    own = [f'--out_dir={tmp_path}/run', '--compile=false', '--max_iters=1000000', '--save_checkpoint=false']
    found = bench_start.seconds([*python, str(ROOT / 'train.py'), *TINY, *own])
    assert 0 < found['model'] < found['evaluation'] < found['first_step']
    assert len((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()) < 10_000  # stopped


def test_what_a_start_says_of_itself_is_timed():
    lines = (
        "import time; print('config: a', flush=True); time.sleep(0.2); print('step 0: b', flush=True); time.sleep(0.3)"
    )
    found = bench_start.seconds([sys.executable, '-c', f"{lines}; print('iter 0: c', flush=True); time.sleep(9)"])
    assert found['evaluation'] - found['model'] == pytest.approx(0.2, abs=0.15)
    assert found['first_step'] - found['evaluation'] == pytest.approx(0.3, abs=0.15)
    with pytest.raises(UserError, match='the cause'):
        bench_start.seconds([sys.executable, '-c', "import sys; print('config: a'); sys.exit('the cause')"])


def test_each_start_is_a_row(tmp_path, monkeypatch, capsys):
    commands, times = (
        [],
        iter([dict(model=5.0, evaluation=15.0, first_step=31.0), dict(model=5.0, evaluation=7.5, first_step=12.0)]),
    )

    def seconds(command):
        commands.append(command)
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
    assert all(set(TINY) <= set(c) and not any(a.startswith(('--starts', '--out=')) for a in c) for c in commands)
