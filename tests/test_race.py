"""race.py: what a loss costs, with the source and without."""

import json

import pytest

import race


def fake_run(folder, name, evals, flops_per_token=100, ms=10.0, transfer=None):
    (folder / name).mkdir(parents=True)
    lines = [dict(kind='eval', iter=i, val_loss=v) for i, v in evals] + [dict(kind='train', iter=9, loss=1, ms=ms)]
    (folder / name / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    facts = dict(tokens_per_iter=10, flops_per_token=flops_per_token, flops_per_update=0, processes=1, device='cpu')
    facts |= dict(final_iter=evals[-1][0], transfer=transfer)
    (folder / name / 'manifest.json').write_text(json.dumps(facts))


def test_costs_to_the_target_with_the_source_counted_and_free(tmp_path):
    fake_run(tmp_path, 'scratch-0.001', [(0, 4.0), (50, 3.0), (100, 2.0)])  # 100,000 FLOPs, 1 s
    fake_run(tmp_path, 'narrow', [(0, 4.0), (20, 3.5)], flops_per_token=50, ms=5)  # 10,000 FLOPs, 0.1 s
    grown = dict(flops=10_000 + 5_000, growing=0.2)  # it learned for 5,000 FLOPs and 0.2 s while growing
    fake_run(tmp_path, 'ligo', [(0, 3.5), (40, 2.5), (60, 1.5)], transfer=grown)  # 2.0 at iteration 50
    fake_run(tmp_path, 'shuffle', [(0, 4.0), (60, 2.1)], transfer=grown)
    plan = dict(best='scratch-0.001', target=2.0, sources=dict(ligo='narrow', shuffle='narrow'))
    (tmp_path / 'race.json').write_text(json.dumps(plan))
    rows = {line.split()[0]: line.split() for line in race.table(tmp_path).splitlines()[1:]}
    assert rows['ligo'][3:] == ['50', '6.5e+04', '35.0%', '45.0%', '0.8', '20.0%', '30.0%']
    assert rows['scratch-0.001'][3:] == ['100', '1e+05', '0.0%', '0.0%', '1', '0.0%', '0.0%']
    assert rows['shuffle'][3:] == ['-'] and rows['narrow'][3:] == ['-']


def test_the_source_is_half_of_what_the_flags_make(fails):
    cfg = race.RaceConfig(size='half', flags='--n_layer=6')
    assert race.small_flags(cfg) == dict(narrow='--n_embd=256 --n_head=4', shallow='--n_layer=3')
    fails(lambda: race.load(race.RaceConfig, ['--arms=clone-7']), "'clone-7' is none; there are clone-0")


@pytest.mark.slow
def test_a_small_race_runs_once_and_tells_who_won(script, tmp_path):
    args = ['--size=tiny', '--iters=8', '--rates=1e-3,1e-2', '--arms=stack', f'--out={tmp_path}/logs']
    r = script('race.py', *args, f'--work={tmp_path}/work')
    for name in ('scratch-0.001', 'scratch-0.01', 'shallow', 'stack'):
        assert f'{name}: python train.py config/gpt2.py' in r.stdout
        assert (tmp_path / 'logs' / name / 'metrics.jsonl').exists()
    assert 'that of scratch-0.01' in r.stdout
    again = script('race.py', *args, f'--work={tmp_path}/work').stdout
    assert 'python train.py' not in again and again in r.stdout
    assert script('race.py', f'--show={tmp_path}/logs').stdout == again
