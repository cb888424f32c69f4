"""Arms with preparing steps: what they start from runs once, is made again where it is gone, and is paid for."""

import dataclasses
import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
from conftest import ROOT, TINY
from fakes import FAKE, fake_script, found_cells, make_config, start, starts, wait_for  # noqa: F401

import compare
from configurator import load
from lab import costs, launch, outcomes, plan, records, report, state, stats
from model import GPTConfig
from optimizers import optim
from surgery import factorize
from surgery.grow import growth
from tokens import loader

STEPS = dict(small='--batch_size=1 --level=3', middle='--batch_size=2 --transfer_from={small} --init_from=transfer')
ARMS = dict(
    scratch='',
    grown='--init_from=transfer --transfer_from={small}',
    twice='--init_from=transfer --transfer_from={middle}',
    other='--init_from={small} --level=2.05',
)


@pytest.fixture
def steps(config):
    """steps(key=value) -> a comparison of fake runs, three of whose arms start from a step."""
    return lambda **keys: config(**dict(arms=ARMS, steps=STEPS, seeds=1) | keys)


def test_steps_run_once_for_every_seed_and_before_what_starts_from_them(steps, tmp_path):
    cfg = steps(seeds=2)
    compare.compare(cfg)
    names = [f'{n}/lr0.01/s{s}' for n in ('steps/small', 'steps/middle', *ARMS) for s in (1, 2)]
    assert starts(tmp_path) == dict.fromkeys(names, 1)
    assert set(records.read_records(tmp_path / 'results' / 'c')) == set(names)
    assert not list((tmp_path / 'out').rglob('*.pt'))  # nothing needs them any more
    compare.compare(cfg)
    assert starts(tmp_path) == dict.fromkeys(names, 1)


def test_a_run_whose_source_has_changed_since_is_not_taken_for_a_new_one(steps, tmp_path, fails):
    """Its own settings name the source only: {small}."""
    cfg = steps(keep_checkpoints=True)
    compare.compare(cfg)
    assert records.read_records(tmp_path / 'results' / 'c')['grown/lr0.01/s1']['from'].keys() == {'small'}
    compare.compare(dataclasses.replace(cfg, at='best'))  # of a step the last checkpoint counts all the same
    rate = dataclasses.replace(cfg, learning_rates=dict(small=(2e-2,)))
    parts = 'metrics.jsonl holds', 'started from steps/small/lr0.01/s1', 'from steps/small/lr0.02/s1;'
    fails(lambda: compare.compare(rate), *parts)
    step = dataclasses.replace(cfg, steps=STEPS | dict(small='--batch_size=1 --level=2'))
    shutil.rmtree(tmp_path / 'results')
    shutil.rmtree(tmp_path / 'out' / 'c' / 'steps' / 'small')  # as the message on its own settings says
    fails(lambda: compare.compare(step), 's1, which started from steps/small/lr0.01/s1; now', 'with other settings')


def test_shared_steps_serve_all_seeds(steps, tmp_path):
    cfg = steps(seeds=2, shared_steps=True)
    compare.compare(cfg)
    assert [n for n in starts(tmp_path) if n.startswith('steps')] == ['steps/middle/lr0.01/s1', 'steps/small/lr0.01/s1']
    x = found_cells(tmp_path)['grown']
    assert x.mean.n == 2 and x.before(1, 'flops') == x.before(2, 'flops') == 6000


def test_costs_are_those_of_all_legs_with_the_source_counted_and_free(steps, tmp_path):
    """A step of the small fake costs 600 FLOPs, of the middle 1200, of the large 2400; each run has 10."""
    compare.compare(steps(seeds=2, targets=(2.2,)))
    x = found_cells(tmp_path)
    assert x['scratch'].cost['flops'] == 24_000 and x['grown'].cost['flops'] == 30_000
    assert x['twice'].cost['flops'] == 6_000 + 12_000 + 24_000 and x['other'].cost['flops'] == 30_000
    grown, target = x['grown'], x['grown'].target
    for s in (1, 2):
        own = stats.reached(grown.own_costs(grown.runs[s], 'flops'), grown.runs[s]['eval']['val_loss'], target)
        free = stats.reached(*grown.curve_to(s, 'flops', free=True), target)
        assert grown.reaches(s, 'flops') == own + 6000 == free + 6000
    base = [x['scratch'].reaches(s, 'flops') for s in (1, 2)]
    for free, e in ((False, grown.faster[2.2]['flops']), (True, grown.faster_free[2.2]['flops'])):
        ratios = [b / stats.reached(*grown.curve_to(s, 'flops', free), target) for s, b in zip((1, 2), base)]
        assert e.value == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
    table = (tmp_path / 'results' / 'c' / 'table.md').read_text()
    assert costs.share(grown.faster[2.2]['flops']) in table and costs.share(grown.faster_free[2.2]['flops']) in table
    assert '| grown | 2.2 |' in table


def test_flops_of_growing_twice_are_the_sum_of_both_legs():
    """As a checkpoint tells it, and as the tables take it apart again."""
    model = SimpleNamespace(flops_per_token=lambda: 7)
    how = SimpleNamespace(width='', depth='stack')
    cfg = dict(gradient_accumulation_steps=2, batch_size=3, block_size=5)
    first = growth.history(dict(config=cfg, iter_num=10, seconds=4.0), model, how, 'a')
    assert first['flops'] == 10 * 2 * 3 * 5 * 7 and first['seconds'] == 4
    second = dict(config=cfg, iter_num=20, seconds=6.0, transfer=first | dict(since=0))
    assert growth.history(second, model, how, 'b')['flops'] == first['flops'] + 20 * 2 * 3 * 5 * 7
    assert growth.history(second, model, how, 'b')['seconds'] == 10


def test_learned_growth_and_surgery_cost_too():
    legs = [fake_record('steps/small', per_token=50, iters=20, ms=5.0)]  # 10,000 FLOPs
    r = fake_record('ligo', iters=40, transfer=dict(flops=15_000, growing=0.2))
    assert outcomes.grown(r, 'flops', outcomes.spent(legs[0], None, 0)['flops']) == 5000
    assert outcomes.spent(r, 10.0, 10_000) == dict(flops=45_000, seconds=pytest.approx(0.6))
    cut = dict(facts=dict(flops=300, seconds=2.0))
    assert outcomes.spent(cut, None, 0) == dict(flops=300, seconds=2.0)


def test_a_checkpoint_that_is_gone_is_made_again(steps, tmp_path):
    """Another machine has the logs only: the steps of what is still missing run again, and no others."""
    compare.compare(steps(arms=dict(scratch='', grown=ARMS['grown']), steps=dict(small=STEPS['small'])))
    shutil.rmtree(tmp_path / 'out')
    compare.compare(steps())
    assert starts(tmp_path) == {f'{n}/lr0.01/s1': 1 for n in ('steps/small', 'steps/middle', 'twice', 'other')}


def test_a_checkpoint_that_was_deleted_is_made_again(steps, tmp_path):
    cfg = steps(arms=dict(scratch='', grown=ARMS['grown']), steps=dict(small=STEPS['small']), keep_checkpoints=True)
    compare.compare(cfg)
    (tmp_path / 'out/c/steps/small/lr0.01/s1/ckpt.pt').unlink()
    compare.compare(dataclasses.replace(cfg, arms=cfg.arms | dict(other=ARMS['other'])))
    assert starts(tmp_path)['steps/small/lr0.01/s1'] == 2 and starts(tmp_path)['grown/lr0.01/s1'] == 1


def test_a_step_that_crashes_is_tried_again_and_one_that_fails_is_named(steps, tmp_path, capsys):
    compare.compare(steps(steps=STEPS | dict(small=STEPS['small'] + ' --crash=5')))
    assert starts(tmp_path)['steps/small/lr0.01/s1'] == 2 and starts(tmp_path)['grown/lr0.01/s1'] == 1
    bad = steps(steps=dict(small='--diverge_above=1e-3'), arms=dict(scratch='', grown=ARMS['grown']), name='d')
    with pytest.raises(SystemExit) as e:
        compare.compare(bad)
    assert e.value.code == 1 and 'failed: steps/small/lr0.01/s1' in capsys.readouterr().err
    assert set(records.read_records(tmp_path / 'results' / 'd')) == {'scratch/lr0.01/s1'}


@pytest.mark.slow  # in a pool: test_compare.py
def test_ctrl_c_stops_a_step_and_the_next_compare_goes_on(steps, tmp_path, python):
    cfg = steps(steps=STEPS | dict(small=STEPS['small'] + ' --sleep=0.3'), cluster='local', jobs=4)
    folder = tmp_path / 'out/c/steps/small/lr0.01/s1'
    p = start(python, cfg)
    wait_for(lambda: {'steps/small/lr0.01/s1', 'scratch/lr0.01/s1'} <= set(starts(tmp_path)))
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=30)
    assert p.returncode == 130 and not launch.holder(folder), err
    p = start(python, cfg)
    wait_for(lambda: launch.holder(folder))
    p.kill()
    p.communicate()
    compare.compare(cfg)  # waits for the step that lives on
    assert starts(tmp_path)['steps/small/lr0.01/s1'] == 2 and set(found_cells(tmp_path)) == set(ARMS)


@pytest.mark.slow
def test_two_compares_at_once_share_the_steps(steps, tmp_path, python):
    cfg = steps(steps={k: f'{v} --sleep=0.03' for k, v in STEPS.items()}, seeds=2)
    both = [start(python, c) for c in (cfg, dataclasses.replace(cfg, seeds=3))]
    for p in both:
        _, err = p.communicate(timeout=120)
        assert p.returncode == 0, err
    assert set(starts(tmp_path).values()) == {1} and len(starts(tmp_path)) == 18


def test_the_rate_of_an_arm_is_that_of_others_and_of_steps(steps, tmp_path):
    rates = dict(scratch=(0.005, 0.01), grown='scratch', small='scratch')
    arms, small = dict(scratch='--best_rate=0.02', grown=ARMS['grown']), dict(small=STEPS['small'])
    cfg = steps(arms=arms, steps=small, learning_rates=rates, sweep_seeds=1, extend=2)
    compare.compare(cfg)
    assert set(starts(tmp_path)) == {
        *(f'scratch/lr{lr}/s10001' for lr in ('0.005', '0.01', '0.02', '0.04')),  # beyond the edge of those given
        *(f'{name}/lr0.02/s1' for name in ('scratch', 'grown', 'steps/small')),
    }


def logged(tmp_path) -> tuple[dict, dict]:
    """(comparison.json, records) of a comparison."""
    folder = tmp_path / 'results' / 'c'
    return json.loads((folder / 'comparison.json').read_text()), records.read_records(folder)


def test_a_source_trains_at_the_rate_of_each_run_that_starts_from_it(steps, tmp_path):
    """Where it takes the rate of the arm that starts from it: in that arm's sweep, too, and so does what it starts from."""
    arms = dict(scratch='', twice=ARMS['twice'], short=ARMS['twice'])
    rates = dict(twice=(0.0025, 0.005, 0.01), short='twice', middle='twice', small='twice')
    compare.compare(steps(arms=arms, learning_rates=rates, sweep_seeds=1, seeds=2, extend=0))
    tried = {f'{name}/lr{lr}/s10001' for name in ('twice', 'steps/middle', 'steps/small') for lr in rates['twice']}
    deciding = {f'{name}/lr0.01/s{s}' for name in ('steps/middle', 'steps/small', *arms) for s in (1, 2)}
    assert set(starts(tmp_path)) == tried | deciding
    x = found_cells(tmp_path)
    assert {r['lr'] for r in x['short'].past[2].legs} == {0.01} and x['short'].cost['flops'] == 6_000 + 12_000 + 24_000
    c, found = logged(tmp_path)
    swept = found['twice/lr0.0025/s10001']
    assert [(r['arm'], r['lr']) for r in outcomes.origins(c, found, swept)] == [
        ('steps/small', 0.0025),
        ('steps/middle', 0.0025),
    ]


def test_a_source_may_have_a_sweep_of_its_own(steps, tmp_path):
    """It is over before anything starts from the source, which then has its own best rate."""
    arms, small = dict(scratch='', grown=ARMS['grown']), dict(small=STEPS['small'] + ' --best_rate=0.02')
    rates = dict(grown=(0.005, 0.01), small=(0.005, 0.01))
    compare.compare(steps(arms=arms, steps=small, learning_rates=rates, sweep_seeds=1))
    assert {n for n in starts(tmp_path) if n.startswith('steps')} == {
        *(f'steps/small/lr{lr}/s10001' for lr in ('0.005', '0.01', '0.02', '0.04')),  # beyond the edge of those given
        'steps/small/lr0.02/s1',
    }
    assert {n for n in starts(tmp_path) if n.startswith('grown')} >= {'grown/lr0.005/s10001', 'grown/lr0.01/s1'}
    c, found = logged(tmp_path)
    assert [r['lr'] for r in outcomes.origins(c, found, found['grown/lr0.005/s10001'])] == [0.02]


def test_a_source_may_have_other_rates_at_each_size(steps, tmp_path):
    rates = {'grown': (0.005, 0.01), 'small@a': 'grown', 'small@b': (0.02,)}
    arms, small = dict(scratch='', grown=ARMS['grown']), dict(small=STEPS['small'])
    cfg = steps(arms=arms, steps=small, sizes=dict(a='', b=''), learning_rates=rates, sweep_seeds=1, extend=0)
    assert not cfg.problems()
    compare.compare(cfg)
    assert {n for n in starts(tmp_path) if n.startswith('steps')} == {
        *(f'steps/small@a/lr{x}' for x in ('0.005/s10001', '0.01/s10001', '0.01/s1')),
        *(f'steps/small@b/lr0.02/s{s}' for s in (10001, 1)),
    }


def test_rates_that_wait_for_each_other_are_named(steps, capsys):
    rates = dict(grown=(0.005, 0.01), short='grown', small='short')
    cfg = steps(arms=dict(scratch='', grown=ARMS['grown'], short=ARMS['grown']), learning_rates=rates, sweep_seeds=1)
    cfg.steps = dict(small=STEPS['small'])
    with pytest.raises(SystemExit) as e:
        compare.compare(cfg)
    said = capsys.readouterr().err
    assert (
        e.value.code == 1 and 'failed: grown/lr0.005/s10001: 2 runs cannot start' in said and 'learning_rates' in said
    )


def test_a_rate_at_which_the_source_diverges_is_one_at_which_the_arm_does(steps, tmp_path):
    arms = dict(scratch='', grown=ARMS['grown'])
    rates = dict(grown=(0.005, 0.01, 0.02), small='grown')
    keys = dict(arms=arms, learning_rates=rates, sweep_seeds=1, extend=0)
    compare.compare(steps(steps=dict(small=STEPS['small'] + ' --diverge_above=0.01'), **keys))
    assert not {n for n in starts(tmp_path) if n.startswith('grown/lr0.02')}  # there is nothing to start from
    assert (
        starts(tmp_path)['steps/small/lr0.02/s10001'] == 1
        and logged(tmp_path)[1]['grown/lr0.02/s10001']['state'] == 'diverged'
    )
    x = found_cells(tmp_path)['grown']
    assert x.rates[0.02] == math.inf and x.lr == 0.01 and x.runs[1]['state'] == 'finished'


def test_horizons_are_of_one_rate_and_timed_to_the_last_loss_of_the_longest(steps, tmp_path):
    horizons = dict(scratch=(0.5, 0.8, 1), grown=(0.5, 0.8))
    arms, small = dict(scratch='', grown=ARMS['grown']), dict(small=STEPS['small'])
    cfg = steps(
        arms=arms, steps=small, horizons=horizons, learning_rates=dict(scratch=(0.01, 0.02)), sweep_seeds=1, extend=0
    )
    compare.compare(cfg)
    cells = ['scratch', 'scratch@x0.8', 'scratch@x0.5', 'grown@x0.8', 'grown@x0.5']
    sweep = ['scratch/lr0.01/s10001', 'scratch/lr0.02/s10001']
    assert set(starts(tmp_path)) == {*(f'{x}/lr0.01/s1' for x in [*cells, 'steps/small']), *sweep}
    x = found_cells(tmp_path)
    assert list(x) == cells
    assert x['grown@x0.8'].runs[1]['eval']['iter'][-1] == 8 and x['grown@x0.5'].target == x['scratch'].values[1]
    assert x['grown@x0.8'].faster[x['scratch'].values[1]]['flops'].value > 1
    assert '@x0.8' in report.shown(tmp_path / 'results' / 'c')


# -----------------------------------------------------------------------------
# figures, from records made by hand


def fake_record(arm, size='', evals=((0, 4.0),), per_token=100, ms=10.0, iters=0, transfer=None, seed=1, lr=1e-3):
    evals = evals if not iters else ((0, 4.0), (iters, 3.5))
    facts = dict(tokens_per_iter=10, flops_per_token=per_token, flops_per_update=0, processes=1, device='cpu')
    facts |= dict(params=9, params_collapsed=9) | (dict(transfer=transfer) if transfer else {})
    iters, losses = zip(*evals)
    return dict(
        run=records.run_name(arm, size, lr, seed), arm=arm, size=size, lr=lr, seed=seed, state='finished', settings={},
        facts=facts, ms=ms, eval=dict(iter=list(iters), val_loss=list(losses), seconds=[i / 50 for i in iters]),
        train=dict(iter=[], loss=[]),
    )  # fmt: skip


def rows(found: list, bench=(), **keys) -> dict:
    """{run: {column: text}} of the table of costs."""
    arms = dict(scratch='', grown='--transfer_from={small}', other='--transfer_from={small}')
    c = (
        dict(
            arms=arms,
            steps=dict(small=''),
            metric='val_loss',
            at='last',
            horizons=dict(scratch=(1,)),
            match='tokens',
            worth=0.01,
        )
        | keys
    )
    cells = outcomes.cells(c, {r['run']: r for r in found}, list(bench))
    lines = [line.split('  ') for line in costs.cost_table(c, cells).splitlines()[1:]]
    head, *body = [[v.strip() for v in line if v.strip()] for line in lines]
    return {line[0]: dict(zip(head, line)) for line in body}


RACE = [
    fake_record('scratch', evals=((0, 4.0), (50, 3.0), (100, 2.0))),  # 100,000 FLOPs, 1 s
    fake_record('steps/small', per_token=50, ms=5.0, iters=20),  # 10,000 FLOPs, 0.1 s
    # it learned for 5,000 FLOPs and 0.2 s while growing; 2.0 at iteration 50
    fake_record('grown', 'x0.6', ((0, 3.5), (40, 2.5), (60, 1.5)), transfer=dict(flops=15_000, growing=0.2)),
    fake_record('other', 'x0.6', ((0, 4.0), (60, 2.1)), transfer=dict(flops=10_000, growing=0.2)),
]
ALONE = [dict(cells=['scratch', 'grown@x0.6', 'other@x0.6'], ms=20), dict(cells=['steps/small'], ms=10)]


def test_costs_to_the_target_with_the_source_counted_and_free():
    """Seconds are shown of steps that were timed alone: shared clocks are compared with nothing."""
    r = rows(RACE)
    grown = {k: r['grown@x0.6'][k] for k in ('iters', 'FLOPs', 'FLOPs saved', 'FLOPs source free')}
    assert grown == {'iters': '50', 'FLOPs': '6.5e+04', 'FLOPs saved': '35.0%', 'FLOPs source free': '45.0%'}
    assert (r['scratch']['iters'], r['scratch']['FLOPs'], r['scratch']['FLOPs saved']) == ('100', '1e+05', '0.0%')
    assert r['other@x0.6']['iters'] == '-' and r['steps/small']['iters'] == '-' and 's saved' not in r['scratch']
    r = rows(RACE, ALONE)
    assert [r['grown@x0.6'][k] for k in ('s', 's saved', 's source free')] == ['1.4', '30.0%', '40.0%']
    for some in (ALONE[:1], ALONE[1:], [dict(cells=['grown@x0.6', 'steps/small'], ms=20)]):  # clocks of two kinds
        assert rows(RACE, some)['grown@x0.6'].get('s saved', '-') == '-'
    c = dict(arms=dict(scratch='', other=''), metric='val_loss', at='last', match='tokens', worth=0.01, targets=(2.5,))
    pair = {r['arm']: r for r in (RACE[0], fake_record('other', evals=((0, 4.0), (50, 2.5), (100, 1.0))))}
    assert 'seconds' in outcomes.cells(c, pair, [dict(cells=['scratch', 'other'], ms=9)])[1].faster[2.5]
    assert 'seconds' not in outcomes.cells(c, pair, [dict(cells=['other'], ms=9)])[1].faster[2.5]


def test_the_last_loss_not_the_best_is_the_target_and_decides():
    curve = ((0, 4.0), (20, 3.0), (50, 1.9), (100, 2.0))
    r = rows([fake_record('scratch', evals=curve), *RACE[1:]])
    assert r['scratch']['last'] == '2.0000' and r['grown@x0.6']['iters'] == '50'


def test_savings_at_the_loss_an_arm_ends_with():
    frontier = [(400, 2.0), (100, 4.0), (200, 3.0)]
    assert stats.same_loss(frontier, 3.5) == pytest.approx(100 * 2**0.5)
    assert [stats.same_loss(frontier, loss) for loss in (4.0, 3.0, 2.0, 1.9, 4.1)] == [100, 200, 400, None, None]
    assert stats.same_loss([(100, 2.0), (200, 2.0)], 2.0) == 100  # more FLOPs for nothing
    grown = dict(flops=15_000, growing=0.2)
    found = [
        fake_record('scratch', evals=((0, 4.0), (100, 2.0))),  # 100,000 FLOPs
        fake_record('scratch', evals=((0, 4.0), (100, 2.6)), lr=2e-3),  # another rate does not count
        fake_record('scratch', 'x0.25', ((0, 4.0), (25, 3.0))),
        fake_record('scratch', 'x0.5', ((0, 4.0), (25, 1.0))) | dict(state='diverged'),  # nor does this
        fake_record('steps/small', per_token=50, iters=20),
        fake_record('grown', 'x0.25', ((0, 3.5), (25, 2.5)), transfer=grown),  # 40,000 where scratch takes 50,000
        fake_record('other', 'x0.25', ((0, 3.5), (25, 3.1)), transfer=grown),
    ]
    r = rows(found)
    assert r['grown@x0.25']['at its loss'] == '20.0%' and r['other@x0.25']['at its loss'] == '-'
    assert r['scratch@x0.25']['at its loss'] == '0.0%' and r['steps/small']['at its loss'] == '-'


def test_what_evaluate_measured_is_in_the_table():
    figures = {'wikitext2': dict(figures=dict(ppl_token=12.5, nats=1.0))}
    tasks = dict(RACE[0], run='tasks/scratch', arm='tasks/scratch', tasks=figures)
    c = dict(arms=dict(scratch=''), metric='val_loss', at='last', match='tokens', tasks='wikitext2', worth=0.01)
    found = outcomes.cells(c, {r['run']: r for r in (RACE[0], tasks)}, [])
    assert found[0].tasks['wikitext2', 'ppl_token'].value == 12.5 and len(found[0].tasks) == 1
    assert costs.cost_table(c, found).splitlines()[-1].split() == ['scratch', '12.5000']


# -----------------------------------------------------------------------------
# conditions of runs


def test_runs_have_what_makes_them_fair():
    """The schedule keeps its shape at another rate; what goes on from a checkpoint sees other data than its source did
    at its start; what grows goes on in the data by itself (train.py), under the same seeds."""
    text = ' '.join(TINY)
    cfg = compare.CompareConfig(
        steps=dict(source=text, cut='transfer.py factorize --checkpoint={source} --linear=low_rank', more='--init_from={source} ' + text),
        arms=dict(
            dense=f'{text} --init_from={{source}}',
            grown=f'{text} --init_from=transfer --transfer_from={{source}} --transfer_method=stack --n_layer=4',
            less=f'{text} --init_from={{cut}} --distill_from={{source}}',
            third=f'{text} --init_from={{more}}',
        ),
    )  # fmt: skip
    plans = plan.make_plans(cfg)
    of = {p.arm: load(type(p.cfg), [*p.argv, *plan.flags(plans, p, 2e-2, 3)]) for p in plans if p.trains}
    assert {c.seed_model for c in of.values()} == {3}
    seeds = {arm: c.seed_data for arm, c in of.items()}
    assert seeds['steps/source'] == seeds['grown'] == 3 and seeds['dense'] == seeds['less'] == 3 + plan.LEG
    assert seeds['third'] == 3 + 2 * plan.LEG
    assert {c.learning_rate for c in of.values()} == {2e-2} and of['dense'].min_lr == pytest.approx(2e-3)
    cut = next(p for p in plans if p.arm == 'steps/cut')
    assert plan.flags(plans, cut, 0.0, 3) == ['--seed=3']
    known = {p.arm for p in plans if p.known}
    assert known == {'steps/source', 'grown'}  # the others' shapes, or their teacher, come from a checkpoint


def test_sources_and_shares_of_the_comparisons_are_what_they_say():
    plans = {p.arm: p for p in growing('growth_small') if not p.size}
    large, small = plans['scratch'].cfg, {a.removeprefix('steps/'): p.cfg for a, p in plans.items() if '/' in a}
    assert {small[k].n_layer * 2 for k in ('shallow', 'shallow-early', 'staged')} == {large.n_layer}
    assert {small[k].n_embd * 2 for k in ('narrow', 'narrow-early', 'random')} == {large.n_embd}
    assert {small[k].max_iters * 4 for k in ('narrow', 'shallow', 'third')} == {large.max_iters}
    assert {small[k].max_iters * 10 for k in ('narrow-early', 'shallow-early', 'third-early')} == {large.max_iters}
    assert all(c.min_lr == c.learning_rate and c.seed_data == large.seed_data for c in small.values())
    assert small['staged'].max_iters + small['quarter-early'].max_iters == small['shallow'].max_iters
    dense = 124_439_808
    for name, wanted in (('kronecker_gutenberg', 81_972_576), ('kronecker_gutenberg_95m', 96_128_304)):
        for p in growing(name):
            if p.script == 'transfer.py' and p.arm not in ('steps/but-0', 'steps/in-attn'):
                n = factorize.count(factorize.shaped(GPTConfig(vocab_size=50257), p.cfg), dense)
                assert n == pytest.approx(wanted, rel=2e-3)


def test_growing_under_muon_is_paid_for_and_annealed_as_it_says(monkeypatch):
    """growth_muon.py: FLOPs in all, the constant rate of sources and the end of the others, at a rate of the sweep."""
    monkeypatch.setattr(loader, 'prepare', lambda dataset: None)  # the vocabulary is named here
    monkeypatch.setattr(loader, 'read_meta', lambda dataset: dict(vocab_size=4096))
    cfg = load(compare.CompareConfig, [str(ROOT / 'config/compare/growth_muon.py')])
    plans = plan.make_plans(cfg)
    of = {(p.arm, p.size): p for p in plans}
    for size in cfg.sizes:
        flops = {arm: plan.costs(of[arm, size])['flops'] for arm in ('scratch', 'steps/half', 'stack', 'stack_79')}
        source = flops['steps/half'] / flops['scratch']
        assert flops['stack'] / flops['scratch'] + source == pytest.approx(1, abs=2e-3) and 0.14 < source < 0.16
        assert flops['stack_79'] / flops['scratch'] + source == pytest.approx(0.79, abs=2e-3)
        for arm in flops:
            p = of[arm, size]
            c = load(type(p.cfg), [*p.argv, *plan.flags(plans, p, 1e-2, 1)])
            peak, last = (optim.lr_at(c, i) / 1e-2 for i in (c.warmup_iters, c.max_iters - 1))
            assert peak == 1 and (last == 1 if arm == 'steps/half' else last < 1e-4), arm
            assert c.optimizer == size and (c.init_from != 'transfer' or c.transfer_moments == 'move')


def growing(name: str) -> list:
    return plan.make_plans(load(compare.CompareConfig, [str(ROOT / f'config/compare/{name}.py')]))


@pytest.mark.parametrize(
    'keys, parts',
    [
        (dict(arms=dict(a='', b='--init_from={nobody}')), ['{nobody}', 'a step or an arm listed before']),
        (dict(steps=dict(x='--init_from={y}', y='')), ['steps/x', '{y}']),
        (dict(steps=STEPS | dict(small='--save_checkpoint=false')), ['save_checkpoint = False', 'leave it out']),
        (dict(steps=STEPS | dict(cut='transfer.py cut --checkpoint={small}')), ['a command of transfer.py', 'factorize']),
        (dict(horizons=dict(scratch=(1,), grown=(0.5,))), ['grown@x0.5 has nothing to be compared with']),
        (dict(learning_rates=dict(grown='nobody')), ['nobody, which is no other arm']),
        (dict(horizons=dict(scratch=(0.5, 1), grown=(1,)), arms=ARMS | dict(grown=ARMS['grown'] + ' --max_iters=12')),
         ['grown: tokens is +20.0% off scratch']),
    ],
)  # fmt: skip
def test_arms_that_cannot_be_compared_are_refused(steps, fails, keys, parts):
    fails(lambda: compare.compare(steps(**keys)), *parts)


@pytest.mark.parametrize(
    'keys, part',
    [
        (dict(steps=dict(scratch='')), 'scratch: is an arm as well'),
        (dict(sizes=dict(a=''), horizons=(0.5, 1)), 'not together with sizes'),
        (dict(horizons=dict(grown=(0,))), 'shares of max_iters'),
        (dict(learning_rates=dict(nobody=(1e-3,))), 'nobody: no such arm; there is: scratch'),
    ],
)
def test_mistakes_in_steps_are_named(steps, keys, part):
    assert any(part in p for p in steps(**keys).problems())


def test_flops_of_what_an_arm_starts_from_count_in_a_match(steps, fails):
    grown = ARMS['grown'] + ' --max_iters=10'
    cfg = steps(arms=dict(scratch='', grown=grown), steps=dict(small=STEPS['small']), match='flops')
    fails(lambda: compare.compare(cfg), 'grown: flops is +25.0% off scratch')


def test_a_text_that_cannot_be_had_is_found_out_before_anything_runs(steps, tmp_path, monkeypatch, fails):
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path))
    monkeypatch.setattr('evaluate.ROOT', tmp_path)
    monkeypatch.setattr('evaluate.retrieve', lambda *a: 1 / 0)
    fails(
        lambda: compare.compare(steps(tasks='val,lambada')), 'lambada_test.jsonl is missing', f'place it at {tmp_path}'
    )
    fails(lambda: compare.compare(steps(tasks='lambda')), "did you mean 'lambada'")
    assert not starts(tmp_path)


@pytest.mark.slow
def test_a_small_compression_runs_once(script, tmp_path):
    """The real thing: a source, factorized with distilled blocks, trained on under its teacher, evaluated."""
    (tmp_path / 'c.py').write_text(f"""
common = {' '.join([*TINY, '--max_iters=2', '--eval_interval=2'])!r}
_cut = 'transfer.py factorize --checkpoint={{source}} --linear=kronecker --kronecker_shape=64,16'
steps = dict(source='--max_iters=4', cut=_cut + ' --distill_iters=2')
arms = dict(dense='--init_from={{source}}', cut_='--init_from={{cut}} --distill_from={{source}}')
seeds, looks, bench, tasks, cluster, jobs, worth = 1, False, False, 'val --limit=2', 'pool', 1, 1
""")
    args = ['c.py', f'--results={tmp_path}/results', f'--out={tmp_path}/out']
    first = script('compare.py', *args).stdout
    assert 'distilled on' in first and 'val nats_per_token' in first
    found = records.read_records(tmp_path / 'results' / 'c')
    facts = found['steps/cut/lr0/s1']['facts']
    assert facts['tokens'] == 2 * 8 * 32 * 2 and facts['flops'] > 0 and facts['seconds'] > 0 and 0 < facts['error'] < 2
    assert found['tasks/cut_/lr0.01/s1']['tasks']['val']['figures']
    again = script('compare.py', *args).stdout
    assert ': done' not in again and not list((tmp_path / 'out').rglob('*.pt'))
    assert script('compare.py', f'--show={tmp_path}/results/c').stdout.strip() in again


def test_logs_of_the_repository_name_no_machine():
    """Records hold no path of the machine that made them."""
    odd = [
        str(p.relative_to(ROOT))
        for p in (ROOT / 'results').rglob('*.json*')
        if any(
            f'{mark}/{root}/' in p.read_text()
            for root in ('root', 'home', 'work', 'tmp', 'mnt')
            for mark in ('"', ' ', '=')
        )
    ]
    assert not odd


def test_the_logs_of_earlier_commands_show_their_figures():
    """What race.py and compress.py printed from them: results/README.md has the tables."""
    grown = report.shown(ROOT / 'results' / 'growth_small')
    line = next(line.split() for line in grown.splitlines() if line.startswith('stack@x0.75'))
    assert line[-7:] == ['2319', '1.83e+15', '21.1%', '35.6%', '39.9', '18.6%', '34.9%']
    cut = report.shown(ROOT / 'results' / 'kronecker_gutenberg')
    assert '1158.9747' in cut and '3.7510' in cut and '9,830,400' in cut
    assert not json.loads((ROOT / 'results' / 'growth_small' / 'comparison.json').read_text())['claim']


def test_a_compare_knows_whether_another_one_is_at_work_on_the_comparison(tmp_path):
    """Only the last one drops the checkpoints of steps: the next run of another may start from them."""
    first, second = (object.__new__(state.State) for _ in range(2))
    for c in (first, second):
        c.out = tmp_path
    first.enter()
    assert first.alone()
    second.enter()
    assert not first.alone() and not second.alone()
    os.close(second.lock)
    assert first.alone()
    os.close(first.lock)


def test_the_table_of_costs_has_the_loss_at_the_start_and_an_arms_own_flops():
    """What its source took is in all of the FLOPs, and not in its own; what growing learned is in both."""
    found = [
        RACE[0],
        RACE[1],
        fake_record('grown', evals=((0, 3.5), (50, 2.0)), transfer=dict(flops=15_000, growing=0.2)),
    ]
    arms = dict(scratch='', grown='--transfer_from={small}')
    r = rows(found, horizons=None, arms=arms)
    assert (r['scratch']['at start'], r['scratch']['last']) == ('4.0000', '2.0000')
    assert (r['grown']['at start'], r['grown']['last']) == ('3.5000', '2.0000')
    assert (r['grown']['FLOPs in all'], r['grown']['its own']) == ('6.5e+04', '5.5e+04')


def test_the_table_of_costs_has_each_source_once_at_each_size():
    """One row of its first seed, also where the size of the first row has one seed and others have more."""
    c = dict(arms=dict(scratch='', grown='--transfer_from={small}'), steps=dict(small=''), sizes=dict(a='', b=''))
    c |= dict(metric='val_loss', at='last', match='tokens', worth=0.01)
    curve = lambda seed: ((0, 4.0), (10, 3.0 + seed / 10))
    found = [
        fake_record(arm, size, curve(seed), seed=seed)
        for arm in ('scratch', 'steps/small', 'grown')
        for size, seed in (('a', 1), ('b', 2), ('b', 1))
    ]
    cells = outcomes.cells(c, {r['run']: r for r in found}, [])
    lines = [line.split() for line in costs.cost_table(c, cells).splitlines() if line.startswith('steps/')]
    assert [(line[0], line[3]) for line in lines] == [('steps/small@a', '3.1000'), ('steps/small@b', '3.1000')]


def test_a_speed_up_is_shown_as_the_share_of_the_cost_that_it_saves():
    assert costs.share(stats.Estimate(2.0, 1.25, 4.0, 3)) == '50.0% [20.0%, 75.0%]'
    assert costs.share(None) == ''
