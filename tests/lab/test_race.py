"""race.py: what a loss costs, with the source and without."""

import dataclasses
import json
import shutil

import pytest

import race
from lab import launch


def fake_run(folder, name, evals, flops_per_token=100, ms=10.0, transfer=None, max_iters=0):
    (folder / name).mkdir(parents=True)
    lines = [dict(kind='eval', iter=i, val_loss=v) for i, v in evals] + [dict(kind='train', iter=9, loss=1, ms=ms)]
    (folder / name / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    facts = dict(tokens_per_iter=10, flops_per_token=flops_per_token, flops_per_update=0, processes=1, device='cpu')
    facts |= dict(final_iter=evals[-1][0], transfer=transfer, finished='now')
    (folder / name / 'config.json').write_text(json.dumps(dict(max_iters=max_iters or evals[-1][0])))
    (folder / name / 'manifest.json').write_text(json.dumps(facts))


def test_costs_to_the_target_with_the_source_counted_and_free(tmp_path):
    fake_run(tmp_path, 'scratch-0.001', [(0, 4.0), (50, 3.0), (100, 2.0)])  # 100,000 FLOPs, 1 s
    fake_run(tmp_path, 'narrow', [(0, 4.0), (20, 3.5)], flops_per_token=50, ms=5)  # 10,000 FLOPs, 0.1 s
    grown = dict(flops=10_000 + 5_000, growing=0.2)  # it learned for 5,000 FLOPs and 0.2 s while growing
    fake_run(tmp_path, 'ligo', [(0, 3.5), (40, 2.5), (60, 1.5)], transfer=grown)  # 2.0 at iteration 50
    fake_run(tmp_path, 'shuffle', [(0, 4.0), (60, 2.1)], transfer=grown)
    plan = dict(best='scratch-0.001', target=2.0, sources=dict(ligo='narrow', shuffle='narrow'), jobs=1)
    (tmp_path / 'race.json').write_text(json.dumps(plan))
    rows = {line.split()[0]: line.split() for line in race.table(tmp_path).splitlines()[1:]}
    assert rows['ligo'][4:] == ['50', '6.5e+04', '35.0%', '45.0%', '0.8', '20.0%', '30.0%']
    assert rows['scratch-0.001'][4:] == ['100', '1e+05', '0.0%', '0.0%', '1', '0.0%', '0.0%']
    assert rows['shuffle'][4:] == ['-'] and rows['narrow'][4:] == ['-']

    # side by side, only steps timed alone count: 10 ms of the large model, 5 of the small one
    (tmp_path / 'race.json').write_text(json.dumps(plan | dict(jobs=4)))
    rows = {line.split()[0]: line.split() for line in race.table(tmp_path).splitlines()[1:]}
    assert rows['ligo'][4:] == ['50', '6.5e+04', '35.0%', '45.0%', '-', '-', '-']
    times = [dict(flops_per_step=1000, ms=20), dict(flops_per_step=500, ms=10)]
    (tmp_path / 'bench.jsonl').write_text(''.join(json.dumps(t) + '\n' for t in times))
    assert 'steps timed alone' in race.table(tmp_path)
    rows = {line.split()[0]: line.split() for line in race.table(tmp_path).splitlines()[1:]}
    assert rows['ligo'][4:] == ['50', '6.5e+04', '35.0%', '45.0%', '1.4', '30.0%', '40.0%']


def test_savings_at_the_loss_an_arm_ends_with(tmp_path):
    frontier = [(400, 2.0), (100, 4.0), (200, 3.0)]
    assert race.scratch_flops(frontier, 3.5) == pytest.approx(100 * 2**0.5)
    assert [race.scratch_flops(frontier, loss) for loss in (4.0, 3.0, 2.0, 1.9, 4.1)] == [100, 200, 400, None, None]
    assert race.scratch_flops([(100, 2.0), (200, 2.0)], 2.0) == 100  # more FLOPs for nothing
    fake_run(tmp_path, 'scratch-0.001', [(0, 4.0), (100, 2.0)])  # 100,000 FLOPs
    fake_run(tmp_path, 'scratch-0.002', [(0, 4.0), (100, 2.6)])  # another rate does not count
    fake_run(tmp_path, 'scratch-x0.25', [(0, 4.0), (25, 3.0)])
    fake_run(tmp_path, 'scratch-x0.5', [(0, 4.0), (25, 1.0)], max_iters=50)  # diverged: it does not, either
    fake_run(tmp_path, 'shallow', [(0, 4.0), (20, 3.5)], flops_per_token=50)
    grown = dict(flops=15_000, growing=0.2)
    fake_run(tmp_path, 'stack', [(0, 3.5), (25, 2.5)], transfer=grown)  # 40,000 where scratch takes 50,000
    fake_run(tmp_path, 'zero_block', [(0, 3.5), (25, 3.1)], transfer=grown)
    sources = dict(stack='shallow', zero_block='shallow')
    plan = dict(best='scratch-0.001', target=2.0, sources=sources, jobs=1)
    (tmp_path / 'race.json').write_text(json.dumps(plan))
    rows = {line.split()[0]: line.split() for line in race.table(tmp_path).splitlines()[2:]}
    assert rows['stack'][3:] == ['20.0%', '-'] and rows['zero_block'][3:] == ['-', '-']
    assert rows['scratch-x0.25'][3] == '0.0%' and rows['shallow'][3] == '-'


def with_checkpoint(logs, work, name, **facts):
    """The run as it lies in work."""
    shutil.copytree(logs / name, work / name, dirs_exist_ok=True)
    manifest = json.loads((work / name / 'manifest.json').read_text())
    (work / name / 'manifest.json').write_text(json.dumps(manifest | facts))
    (work / name / 'ckpt.pt').write_text('')


def test_what_a_race_starts_next(tmp_path):
    cfg = race.RaceConfig(size='tiny', iters=100, rates=(1e-3, 2e-3), horizons=(0.5, 0.8), extend=1,
                          arms='clone-1,stack,shuffle', out=str(tmp_path / 'logs'), work=str(tmp_path / 'work'))  # fmt: skip
    logs, work = tmp_path / 'logs', tmp_path / 'work'
    names = lambda: [name for name, *_ in race.missing(cfg)]
    assert names() == ['scratch-0.001', 'scratch-0.002']
    fake_run(logs, 'scratch-0.001', [(0, 4.0), (100, 2.2)])
    fake_run(logs, 'scratch-0.002', [(0, 4.0), (100, 2.0)])
    assert names() == ['scratch-0.004']  # the best was at the edge
    fake_run(logs, 'scratch-0.004', [(0, 4.0), (50, 1.0)], max_iters=100)  # diverged: its last loss does not count
    assert names() == ['narrow', 'shallow', 'scratch-x0.5', 'scratch-x0.8']
    assert '--max_iters=50' in race.missing(cfg)[2][2] and '--learning_rate=0.002' in race.missing(cfg)[2][2]
    fake_run(logs, 'scratch-x0.5', [(0, 4.0), (50, 2.4)])
    fake_run(logs, 'scratch-x0.8', [(0, 4.0), (80, 2.2)])
    fake_run(logs, 'shallow', [(0, 4.0), (25, 3.0)], flops_per_token=60)
    with_checkpoint(logs, work, 'shallow')
    assert names() == ['narrow', 'stack-x0.5']
    fake_run(logs, 'narrow', [(0, 4.0), (25, 3.0)], flops_per_token=50)
    with_checkpoint(logs, work, 'narrow')
    assert names() == ['alone', 'clone-1-x0.5', 'stack-x0.5', 'shuffle-x0.5']
    alone = race.missing(cfg)[0][2]
    assert '--max_iters=200' in alone and '--learning_rate=0.002' in alone and '--n_embd=16' in alone
    fake_run(logs, 'alone', [(0, 4.0), (200, 2.5)], flops_per_token=50)
    grown = dict(flops=10_000, growing=0.0)
    for name, loss in (('clone-1', 2.3), ('stack', 1.9), ('shuffle', 2.1)):
        fake_run(logs, f'{name}-x0.5', [(0, 4.0), (50, loss)], transfer=grown)
    assert names() == ['shuffle-x0.8', 'clone-1-x0.8']  # the nearest first; what has arrived runs no further

    # elsewhere, where the checkpoint of the source is not: it is trained again, and nothing starts before its log is kept
    (work / 'narrow' / 'ckpt.pt').unlink()
    assert names() == ['narrow'] and not launch.over(work / 'narrow')  # else nothing would be trained
    with_checkpoint(logs, work, 'narrow', started='later')
    assert names() == ['narrow']
    assert race.keep(cfg, 'narrow', 0) == ''
    assert names() == ['shuffle-x0.8', 'clone-1-x0.8']
    shutil.rmtree(work / 'shallow')
    assert names() == ['shuffle-x0.8', 'clone-1-x0.8']  # no one needs it any more
    for name in ('clone-1', 'shuffle'):
        fake_run(logs, f'{name}-x0.8', [(0, 4.0), (80, 2.1)], transfer=grown)
    assert names() == [] and json.loads((logs / 'race.json').read_text())['target'] == 2.0


def test_sources_of_other_shares(tmp_path):
    """Early ones are trained for 0.4 of the iterations of the others, the untrained one for none."""
    cfg = race.RaceConfig(size='tiny', iters=100, rates=(1e-3, 2e-3), extend=0, out=str(tmp_path / 'logs'),
                          work=str(tmp_path / 'work'), arms='stack,stack-early,clone-1-early,one_hot-random')  # fmt: skip
    fake_run(tmp_path / 'logs', 'scratch-0.001', [(0, 4.0), (100, 2.0)])
    fake_run(tmp_path / 'logs', 'scratch-0.002', [(0, 4.0), (100, 2.2)])
    flags = {name: command for name, _, command in race.missing(cfg)}
    wanted = {'shallow': 25, 'shallow-early': 10, 'narrow-early': 10, 'random': 1}
    assert {name: name in flags and f'--max_iters={n}' in flags[name] for name, n in wanted.items()} == dict.fromkeys(
        wanted, True
    )
    assert '--n_layer=1' in flags['shallow-early'] and '--n_embd=16' in flags['narrow-early']
    assert '--learning_rate=1e-9' in flags['random'] and '--learning_rate=1e-9' not in flags['narrow-early']
    fake_run(tmp_path / 'logs', 'shallow-early', [(0, 4.0), (10, 3.0)])
    with_checkpoint(tmp_path / 'logs', tmp_path / 'work', 'shallow-early')
    grown = {name: command for name, _, command in race.missing(cfg)}['stack-early-x0.6']
    assert f'--transfer_from={tmp_path}/work/shallow-early/ckpt.pt' in grown


def test_a_source_that_grew_itself(tmp_path):
    """It waits for its own source, whose costs count; both are made again where only the large model's run is missing."""
    logs, work = tmp_path / 'logs', tmp_path / 'work'
    cfg = race.RaceConfig(size='tiny', iters=100, rates=(1e-3,), horizons=(0.5,), arms='stack-staged',
                          flags='--n_layer=4', out=str(logs), work=str(work))  # fmt: skip
    flags = lambda: {name: command for name, _, command in race.missing(cfg)}
    fake_run(logs, 'scratch-0.001', [(0, 4.0), (100, 2.0)])
    fake_run(logs, 'scratch-x0.5', [(0, 4.0), (50, 2.5)])
    assert list(flags()) == ['quarter-early'] and '--n_layer=1' in flags()['quarter-early']
    fake_run(logs, 'quarter-early', [(0, 4.0), (10, 3.0)], flops_per_token=30, ms=3)
    with_checkpoint(logs, work, 'quarter-early')
    staged = flags()['staged']
    assert {'--max_iters=15', '--n_layer=2', '--transfer_method=stack', '--init_from=transfer'} < set(staged)
    assert f'--transfer_from={work}/quarter-early/ckpt.pt' in staged and len(flags()) == 1
    fake_run(logs, 'staged', [(0, 4.0), (15, 3.0)], flops_per_token=60, ms=6, transfer=dict(flops=3_000, growing=0.0))
    with_checkpoint(logs, work, 'staged')
    assert f'--transfer_from={work}/staged/ckpt.pt' in flags()['stack-staged-x0.5']

    # 10 * 300 + 15 * 600 FLOPs before, 50 * 1000 of its own; 0.12 s and 0.5 s
    fake_run(logs, 'stack-staged-x0.5', [(0, 4.0), (50, 2.0)], transfer=dict(flops=12_000, growing=0.0))
    assert flags() == {}
    row = next(line.split() for line in race.table(logs).splitlines() if line.startswith('stack-staged'))
    assert row[5:] == ['6.2e+04', '38.0%', '50.0%', '0.62', '38.0%', '50.0%']

    shutil.rmtree(logs / 'stack-staged-x0.5')
    shutil.rmtree(work)
    assert list(flags()) == ['quarter-early']


def test_logs_of_other_settings_are_not_mixed_in(tmp_path, fails):
    cfg = race.RaceConfig(size='tiny', iters=8, out=str(tmp_path))
    keys = ('size', 'iters', 'flags')
    launch.settle(tmp_path, cfg, keys)
    launch.settle(tmp_path, cfg, keys)
    other = dataclasses.replace(cfg, iters=400)
    launch.settle(tmp_path, other, keys)  # no run yet
    launch.settle(tmp_path, cfg, keys)
    fake_run(tmp_path, 'shallow', [(0, 4.0)])
    fails(lambda: launch.settle(tmp_path, other, keys), 'iters = 8 there, 400 here', 'another --out')
    assert race.RaceConfig(flags="'").problems()


def test_sources_are_fractions_of_what_the_flags_make(fails):
    cfg = race.RaceConfig(size='half', flags='--n_layer=6')
    depths = dict(shallow='--n_layer=3', third='--n_layer=2', quarter='--n_layer=1')
    assert race.small_flags(cfg) == dict(narrow='--n_embd=256 --n_head=4', **depths)
    assert '--n_layer=1' in race.small_flags(race.RaceConfig(size='tiny'))['third']
    fails(lambda: race.load(race.RaceConfig, ['--arms=clone-7']), "'clone-7' is none; there are stack, zero_block")
    fails(lambda: race.load(race.RaceConfig, ['--horizons=0']), "horizons = '0' on the command line: must be above 0")
    fails(lambda: race.load(race.RaceConfig, ['--rates=']), 'must have at least one number')


@pytest.mark.slow
def test_a_small_race_runs_once_and_tells_who_won(script, tmp_path):
    """In a pool; test_factorize.py has a small experiment without one."""
    args = ['--size=tiny', '--iters=8', '--evals=4', '--rates=1e-3,1e-2', '--extend=0', '--horizons=0.5', '--jobs=2']
    args += ['--arms=stack', '--cluster=pool', f'--out={tmp_path}/logs']
    r = script('race.py', *args, f'--work={tmp_path}/work')
    for name in ('scratch-0.001', 'scratch-0.01', 'scratch-x0.5', 'shallow', 'stack-x0.5'):
        assert f'{name}: python train.py config/gpt2.py' in r.stdout
        assert (tmp_path / 'logs' / name / 'metrics.jsonl').exists()
    assert r.stdout.index('bench: python bench.py') < r.stdout.index('scratch-0.001: python')
    assert 'that of scratch-0.01' in r.stdout and 'steps timed alone' in r.stdout
    assert len((tmp_path / 'logs/bench.jsonl').read_text().splitlines()) == 2  # of the sizes that the arms want
    again = script('race.py', *args, f'--work={tmp_path}/work').stdout
    assert 'python train.py' not in again and again in r.stdout
    assert script('race.py', f'--show={tmp_path}/logs').stdout == again
