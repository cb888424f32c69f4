"""A record says of a run what its folder says, and a run of one's own is read as those of a comparison are."""

import json
import math
import os

import pytest
from conftest import ROOT

import plot
from configurator import UserError
from lab import outcomes, records

RUN = dict(about=dict(run='a/lr0.01/s1', arm='a', size='', lr=0.01, seed=1), settings={})


def write_run(folder, lines, max_iters=20, **manifest):
    facts = dict(params=9, params_collapsed=9, device='cpu', finished='now') | manifest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'manifest.json').write_text(json.dumps(facts))
    (folder / 'config.json').write_text(json.dumps(dict(max_iters=max_iters, learning_rate=0.01)))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(m) + '\n' for m in lines))
    return folder


def curve(*losses, ms=(None, 10.0, 90.0, 11.0), last=2.0):
    train = [dict(kind='train', iter=i, loss=float(i), ms=t) for i, t in enumerate(ms)]
    return train + [dict(kind='eval', iter=i, val_loss=v) for i, v in ((0, 4.0), (20, last))]


def test_the_time_of_a_step_is_the_median_and_what_growth_took_is_kept(tmp_path):
    """A pause of the machine is no time of a step."""
    past = dict(source_iter=5, method='clone', flops=7, growing=0.5, seconds=9.0, source='elsewhere')
    r = records.record(write_run(tmp_path, curve(), transfer=past, peak_memory=3), **RUN)
    assert r['ms'] == 11.0 and r['state'] == 'finished' and r['facts']['peak_memory'] == 3
    assert r['facts']['transfer'] == dict(source_iter=5, method='clone', flops=7, growing=0.5)  # no name of a folder


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_a_run_that_diverged(tmp_path, loss):
    assert records.record(write_run(tmp_path, curve(last=loss)), **RUN)['state'] == 'diverged'


def test_training_losses_are_means_over_equal_stretches():
    train = [dict(iter=i, loss=float(i)) for i in range(10)]
    assert records.thinned(train, most=5) == dict(iter=[1, 3, 5, 7, 9], loss=[0.5, 2.5, 4.5, 6.5, 8.5])
    assert records.thinned(train[:3], most=5) == dict(iter=[0, 1, 2], loss=[0.0, 1.0, 2.0])


def test_the_seconds_of_surgery_are_those_from_its_start_to_its_end(tmp_path):
    for name, at in (('argv.json', 100), ('ckpt.pt', 130)):
        (tmp_path / name).write_text('[]')
        os.utime(tmp_path / name, (at, at))
    r = records.surgery(tmp_path, **RUN | dict(settings=dict(command='collapse')))
    assert r['facts'] == dict(seconds=30.0, flops=0, tokens=0) and r['state'] == 'finished'


def test_the_runs_of_a_folder_share_the_name_of_their_arm_but_for_a_final_seed(tmp_path):
    for name, arm in (('d12-s3', 'd12'), ('d12-3', 'd12-3'), ('s3', 's3'), ('d12-s3-x', 'd12-s3-x')):
        (r,) = records.read_runs(write_run(tmp_path / name, curve()))
        assert (r['arm'], r['rate'], len(r['evals']), len(r['train'])) == (arm, 0.01, 2, 4)


def test_a_folder_that_holds_no_run_is_told_from_a_run_whose_manifest_is_damaged(tmp_path):
    with pytest.raises(UserError, match='holds no evaluations; give the out_dir of a run'):
        records.read_runs(tmp_path)
    run = write_run(tmp_path / 'run', curve()[:2])  # it has trained, and nothing was evaluated
    with pytest.raises(UserError, match='holds no evaluations'):
        records.read_runs(run)
    for damaged in ('', 'null', '7', '[1]', '"x"', '{}', '{"params": 9}'):
        run = write_run(tmp_path / 'run', curve())
        (run / 'manifest.json').write_text(damaged)
        with pytest.raises(UserError, match='manifest.json: damaged'):
            records.read_runs(run)


def test_what_a_manifest_says_reaches_the_terminal_spelled_out(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / 'run', curve(), device='\x1b[31mred')
    monkeypatch.setattr('sys.argv', ['plot.py', str(tmp_path)])
    plot.main()
    assert '\\x1b[31mred' in (out := capsys.readouterr().out) and '\x1b' not in out


@pytest.mark.parametrize('seeds', [None, 0, 10**12])
def test_a_plan_with_no_seeds_or_endless_ones_is_named(tmp_path, fails, seeds):
    c = json.loads((ROOT / 'results' / 'einsum_gutenberg' / 'comparison.json').read_text())
    c = {k: v for k, v in (c | dict(seeds=seeds)).items() if v is not None}
    (tmp_path / 'comparison.json').write_text(json.dumps(c))
    fails(lambda: outcomes.load(tmp_path), 'comparison.json: damaged, seeds must be from 1 to')


def test_a_seed_that_diverged_has_its_place_in_the_table():
    evals = lambda loss: [dict(iter=0, val_loss=loss)]
    manifest = dict(params=9, params_collapsed=5)
    runs = [
        dict(arm='a', rate=0.01, evals=evals(v), manifest=manifest, diverged=False) for v in (2.0, math.nan, math.inf)
    ]
    assert plot.table(runs).splitlines()[1].endswith('diverged')
