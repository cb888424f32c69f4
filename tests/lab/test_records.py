"""A record says of a run what its folder says, and a run of one's own is read as those of a comparison are."""

import json
import math
import os

import pytest

import plot
from lab import records, report

RUN = dict(run='a/lr0.01/s1', arm='a', size='', lr=0.01, seed=1, settings={})


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


DEL = object()


@pytest.mark.parametrize(
    'key, value',
    [('arm', DEL), ('lr', '0.01'), ('lr', math.nan), ('seed', [1]), ('run', 3), ('settings', DEL), ('facts', {}), ('eval', DEL),
     ('eval', dict(iter=[0, 1], val_loss=[2.0])), ('eval', dict(iter=['0'], val_loss=[2.0]))],
)  # fmt: skip
def test_a_record_that_was_edited_is_named_with_its_line(tmp_path, fails, key, value):
    whole = RUN | dict(state='finished', facts=dict(params=9, params_collapsed=5), ms=None)
    whole |= dict(eval=dict(iter=[0, 1], val_loss=[3.0, 2.0]), train=dict(iter=[0], loss=[3.0]))
    lines = [whole, {k: v for k, v in (whole | {key: value}).items() if v is not DEL}]
    (tmp_path / 'metrics.jsonl').write_text(json.dumps(whole) + '\n')
    assert list(records.read_records(tmp_path)) == [whole['run']]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
    fails(lambda: records.read_records(tmp_path), 'metrics.jsonl, line 2: no record of a run', key)


@pytest.mark.parametrize('text', ['[]', '3', 'null', '{"arms": {}}', '[' * 5000, '{"arms": ["a"]}'])
def test_a_comparison_that_was_edited_is_named(tmp_path, fails, text):
    (tmp_path / 'comparison.json').write_text(text)
    fails(lambda: report.shown(tmp_path), 'comparison.json cannot be read', 'run the comparison again')


@pytest.mark.parametrize('line', [dict(kind='eval', val_loss=2.0), dict(kind='eval', iter=9, val_loss='x'),
                                  dict(kind='train', iter='9', loss=2.0), dict(kind='train', iter=9, loss=None)])  # fmt: skip
def test_every_reader_of_a_log_names_a_line_that_is_none(tmp_path, fails, line):
    folder = write_run(tmp_path / 'run', [*curve(), line])
    for read in (plot.listing, records.read_runs, lambda f: records.record(f, **RUN)):
        fails(lambda read=read: read(folder), 'metrics.jsonl, line 7: damaged')


@pytest.mark.parametrize('name, text', [('manifest', '[]'), ('manifest', '{"params": "x"}'), ('config', '3'), ('config', '{}'),
                                        ('manifest', '[' * 5000)])  # fmt: skip
def test_a_run_whose_facts_are_damaged_is_named_and_listed(tmp_path, fails, name, text):
    folder = write_run(tmp_path / 'run', curve())
    (folder / f'{name}.json').write_text(text)
    fails(lambda: records.read_runs(folder), 'manifest.json or config.json is damaged or missing')
    assert 'run ' in plot.listing(tmp_path)


def test_what_a_manifest_says_reaches_the_terminal_spelled_out(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / 'run', curve(), device='\x1b[31mred')
    monkeypatch.setattr('sys.argv', ['plot.py', str(tmp_path)])
    plot.main()
    assert '\\x1b[31mred' in (out := capsys.readouterr().out) and '\x1b' not in out


def test_a_seed_that_diverged_has_its_place_in_the_table():
    evals = lambda loss: [dict(iter=0, val_loss=loss)]
    manifest = dict(params=9, params_collapsed=5)
    runs = [dict(arm='a', rate=0.01, evals=evals(v), manifest=manifest) for v in (2.0, math.nan, math.inf)]
    assert plot.table(runs).splitlines()[1].endswith('diverged')
