"""A comparison by the protocol, from its sweep to its words: fake runs, which are functions of rate and seed, through the
whole loop of compare.py."""

import collections
import dataclasses
import json
import math

import fake_train
import numpy as np
import pytest
from conftest import ROOT, TINY
from fakes import fake_script, found_cells, make_config  # noqa: F401

import compare
from configurator import UserError, load
from lab import comparison, launch, outcomes, plan, protocol, records, report, tables, verdicts
from lab.records import SWEEP

ARMS = dict(
    base='--halves=true --own=0.01 --shared=0',
    better='--halves=true --own=0.01 --shared=0 --level=1.9 --best_rate=0.015',
    equal='--halves=true --own=0.01 --shared=0 --level=2.0003',
    worse='--halves=true --own=0.01 --shared=0 --level=2.2 --best_rate=0.03',
)
GRID = (0.005, 0.01, 0.02)


class Killed(Exception):
    pass


@pytest.fixture
def launcher(monkeypatch):
    """Runs end as soon as they are started, in this process. launcher.runs: their names, in order; launcher.most: a run
    beyond so many is not begun, as if the comparison were killed."""

    class Launcher:
        runs, most = [], math.inf

        def start(self, full, folder, slot):
            if len(self.runs) >= self.most:
                raise Killed
            self.runs.append(str(folder.relative_to(folder.parents[2])))
            fake_train.train(load(fake_train.FakeConfig, full[full.index(str(folder)) + 3 :]))
            return lambda: 0, lambda: False

    made = Launcher()
    made.runs = []
    monkeypatch.setattr(launch, 'engine', lambda *_: made.start)
    monkeypatch.setattr(launch.time, 'sleep', lambda _: None)
    return made


@pytest.fixture
def judged(config):
    return lambda **keys: config(
        **dict(arms=ARMS, looks=True, seeds=12, sweep_seeds=3, learning_rates=GRID, worth=0.02, bench=False, jobs=99)
        | keys
    )


def seeds_of(runs: list, arm: str) -> dict:
    """{rate: seeds in the order in which they were started}"""
    found = collections.defaultdict(list)
    for name in runs:
        if name.startswith(f'{arm}/'):
            found[float(name.split('/')[1][2:])].append(int(name.split('/')[2][1:]))
    return dict(found)


def test_from_the_sweep_over_the_vertex_and_looks_in_pairs_to_a_word(judged, launcher, tmp_path, capsys):
    compare.compare(judged())
    x = found_cells(tmp_path)
    words = {name: cell.verdict.word for name, cell in x.items() if cell.verdict}
    assert words == dict(better=protocol.BY_WORTH, equal=protocol.NO_GAIN, worse=protocol.WORSE)
    # the vertex is the best rate of the function, which is none of those tried; worse had to go beyond them
    for arm, best in dict(base=0.01, better=0.015, equal=0.01, worse=0.03).items():
        assert x[arm].lr == pytest.approx(best, rel=0.15) and x[arm].rate.how == 'quadratic'
    assert list(x['worse'].rates) == [*GRID, 0.04]
    for arm, cell in x.items():
        of_rate = seeds_of(launcher.runs, arm)
        assert all(of_rate[lr][:3] == [SWEEP + 1, SWEEP + 2, SWEEP + 3] for lr in cell.rates)
        deciding = [s for s in of_rate[cell.lr] if s <= SWEEP]
        assert deciding == list(range(1, len(deciding) + 1)) and len(deciding) in (4, 6, 8, 10, 12)
        assert [s for s in of_rate[cell.rate.second] if s <= SWEEP] == [1, 2, 3, 4]  # the check
        assert arm == 'base' or len(deciding) == cell.verdict.n
    assert x['better'].verdict.n == x['worse'].verdict.n == 4 < x['equal'].verdict.n <= 12
    # sigma first: no seed that decides about an arm is started before the baseline's eight
    order = [n for n in launcher.runs if int(n.split('/s')[-1]) <= SWEEP]
    assert [n.split('/')[0] for n in order[:8]] == ['base'] * 8
    out = capsys.readouterr().out
    assert out.index('sigma') < out.index(f'better/lr{x["better"].lr:g}/s1: done, ')
    # figures are of the half that chose nothing
    assert x['base'].values[1] == x['base'].runs[1]['eval']['val_b'][-1]
    sweep = records.read_records(tmp_path / 'results' / 'c')[f'base/lr0.01/s{SWEEP + 1}']
    assert x['base'].rates[0.01] == pytest.approx(sweep['eval']['val_a'][-1], abs=0.02)
    table = report.shown(tmp_path / 'results' / 'c')
    assert 'better: **better by worth**, -0.' in table and 'val_b (last), mean ± std' in table


def test_runs_are_judged_anew_by_another_arm_or_another_center(monkeypatch, capsys):
    """--show with keys of outcomes.JUDGING, which it ignored; the words are those of a comparison that had them."""
    folder = 'results/kronecker_gutenberg_81m'

    def shown(*flags):
        monkeypatch.setattr('sys.argv', ['compare.py', f'--show={folder}', *flags])
        compare.main()
        return capsys.readouterr().out

    planned = shown()
    assert 'Judged anew' not in planned and '- low_rank: **undecided**' in planned
    by_prune = shown('--baseline=prune')
    assert by_prune.startswith('Judged anew, by baseline = prune.') and '5% is no promise' in by_prune
    assert '- low_rank: **better by worth**, -0.1701' in by_prune and '- nearest: **undecided**' in by_prune
    c, found = outcomes.load(ROOT / folder, dict(baseline='prune'))
    base, arm = ([*x.values.values()] for x in found if x.arm in ('prune', 'low_rank'))
    assert next(iter(c['arms'])) == 'prune' and np.mean(arm) - np.mean(base) == pytest.approx(-0.1701, abs=5e-5)
    assert '- nearest: **no gain that matters**' in shown('--baseline=prune', '--worth=0.5')
    assert '(Mann-Whitney)' in shown('--center=median')
    assert '(Welch of logarithms)' in shown('--center=log', '--worth=0.02')
    assert shown('--baseline=nearest', '--center=mean', '--worth=0.02') == planned  # nothing that is not as planned
    with pytest.raises(
        UserError, match=r"0.02: is a difference here, and a share .* with center = 'log'; give worth as well"
    ):
        shown('--center=log')
    with pytest.raises(UserError, match='center: has no effect, this comparison makes no claim to judge'):
        report.shown(ROOT / 'results' / 'kronecker_gutenberg', dict(center='median'))


def test_no_other_arm_passes_for_a_baseline_that_has_no_runs_at_a_size():
    """The first arm that had some was called the baseline there, and so in the head of the column for all sizes."""
    folder = ROOT / 'results' / 'einsum_gutenberg'
    assert '| dense@w128 | 8 |' in report.shown(folder)
    text = report.shown(folder, dict(baseline='k2000'))
    assert 'Left out, since k2000 has no runs that decide there: w128.' in text and 'minus k2000' in text
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    assert {row.split()[1].partition('@')[0] for row in rows if '| baseline |' in row} == {'k2000'}
    assert not any('@w128' in row for row in rows)
    text = report.shown(ROOT / 'results' / 'growth_muon', dict(baseline='stack_79'))
    assert 'scratch@muon is not matched in flops: costs were planned against scratch' in text
    with pytest.raises(UserError, match="baseline = 'btt_moe': has no runs that decide"):
        report.shown(folder, dict(baseline='btt_moe'))


def test_a_second_comparison_owes_nothing_to_the_seeds_of_the_first(judged, launcher, tmp_path, fails):
    """seed_offset: other data and another start for every run; the rules count seeds as ever."""
    two = dict(arms={name: ARMS[name] for name in ('base', 'better')})
    compare.compare(judged(**two))
    first, runs = found_cells(tmp_path), list(launcher.runs)
    fails(lambda: compare.compare(judged(**two, seed_offset=100)), 'choose another --name')
    launcher.runs.clear()
    compare.compare(judged(**two, seed_offset=100, results=str(tmp_path / 'again'), out=str(tmp_path / 'out2')))
    second = {x.arm: x for x in outcomes.load(tmp_path / 'again' / 'c')[1]}
    assert (
        set(launcher.runs) & set(runs)
        and json.loads((tmp_path / 'again/c/comparison.json').read_text())['seed_offset'] == 100
    )
    for arm, x in second.items():
        assert all(
            r['settings']['seed_model'] == r['settings']['seed_data'] == 100 + seed for seed, r in x.runs.items()
        )
        assert not {*x.values.values()} & {*first[arm].values.values()}
    assert second['better'].verdict.word == first['better'].verdict.word == protocol.BY_WORTH


def test_a_comparison_that_is_killed_goes_on_where_it_stopped(judged, launcher, tmp_path):
    def runs_and_words(most):
        launcher.runs.clear()
        arms = {name: ARMS[name] for name in ('base', 'equal', 'worse')}  # one arm is beyond its edge, one looks again
        cfg = judged(arms=arms, results=str(tmp_path / f'results{most}'), out=str(tmp_path / f'out{most}'))
        launcher.most = most
        if most < math.inf:
            with pytest.raises(Killed):
                compare.compare(cfg)
        launcher.most = math.inf
        compare.compare(cfg)
        return sorted(launcher.runs), {x.name: x.verdict for x in outcomes.load(tmp_path / f'results{most}' / 'c')[1]}

    whole = runs_and_words(math.inf)
    assert len(set(whole[0])) == len(whole[0]) > 45
    for most in (5, 23, 36, 45):
        assert runs_and_words(most) == whole  # no run twice, and the same ones


def test_an_arm_that_stays_undecided_ends_with_the_plan_and_names_the_seeds(judged, launcher, tmp_path):
    arms = dict(base='--own=0.05 --shared=0', arm='--own=0.05 --shared=0 --level=1.99')
    cfg = judged(arms=arms, seeds=6, worth=0.01, learning_rates=())
    compare.compare(cfg)
    v = found_cells(tmp_path)['arm'].verdict
    assert v.word == protocol.UNDECIDED and v.n == 6 and v.more >= 1
    assert sorted(launcher.runs) == sorted(
        [f'base/lr0.01/s{s}' for s in range(1, 9)] + [f'arm/lr0.01/s{s}' for s in range(1, 7)]
    )
    table = (tmp_path / 'results' / 'c' / 'table.md').read_text()
    assert f'about {v.more} more seeds, of which the plan has none, would decide' in table


def test_seeds_are_paired_only_where_the_sweep_shows_that_they_go_together(judged, launcher, tmp_path):
    compare.compare(judged(arms=dict(base='', arm='--level=1.985')))
    assert found_cells(tmp_path)['arm'].verdict.how == 'paired'
    apart = dict(base='--own=0.01 --shared=0', arm='--own=0.01 --shared=0 --level=1.9')
    compare.compare(judged(arms=apart, name='d'))
    assert {x.verdict.how for x in outcomes.load(tmp_path / 'results' / 'd')[1] if x.verdict} == {'Welch'}


def test_a_rate_at_the_end_of_those_tried_leaves_the_word_open(judged, launcher, tmp_path):
    arms = dict(base='--own=0.01 --shared=0 --best_rate=1', arm='--own=0.01 --shared=0 --level=1.5')
    compare.compare(judged(arms=arms, extend=1))
    x = found_cells(tmp_path)
    assert x['base'].rate.edge == 'high' and len(x['base'].rates) == 4
    assert x['arm'].verdict.word == protocol.UNDECIDED and 'the baseline has its best rate' in x['arm'].verdict.note


def test_sizes_are_judged_apart_and_every_size_has_its_own_sigma(judged, launcher, tmp_path, capsys):
    sizes = dict(small='--batch_size=4', large='--batch_size=8 --level=1.5')
    arms = dict(base='--own=0.01 --shared=0', arm='--own=0.01 --shared=0 --best_rate=0.015')
    compare.compare(judged(arms=arms, sizes=sizes, targets=dict(small=2.2, large=1.7)))
    x = found_cells(tmp_path)
    assert list(x) == ['base@small', 'arm@small', 'base@large', 'arm@large']
    out = capsys.readouterr().out
    assert 'the baseline at small: sigma 0.0' in out and 'the baseline at large: sigma 0.0' in out
    assert list(x['arm@large'].faster) == [1.7] and set(x['arm@large'].faster[1.7]) == {'iter', 'flops'}
    assert '| arm@large | 1.7 |' in (tmp_path / 'results' / 'c' / 'table.md').read_text()


def record(arm, seed, values, lr=1e-3, **more):
    evals = dict(iter=[0, 5, 10]) | values
    return dict(
        run=f'{arm}/lr{lr:g}/s{seed}', arm=arm, size='', lr=lr, seed=seed, state='finished', eval=evals,
        settings=dict(warmup_iters=2, lr_decay_iters=20, learning_rate=lr),
        facts=dict(device='cpu', params=1, params_collapsed=1, tokens_per_iter=1, flops_per_token=1, flops_per_update=0,
                   processes=1, commit='0' * 40) | more, ms=1.0, train={},
    )  # fmt: skip


def words(c: dict, runs: list) -> list:
    return outcomes.cells(
        dict(metric='val_loss', at='last', match='tokens', worth=0.02) | c, {r['run']: r for r in runs}, []
    )


def test_the_table_has_the_tokens_and_the_training_loss_at_the_end_of_language_models():
    c = dict(arms=dict(base=''), at='last')
    ends = lambda train: dict(val_loss=[4, 3, 2], train_loss=[4, 3, train], tokens=[0, 5000, 10000])
    (x,) = words(c, [record('base', s, ends(1.5 + s)) for s in (1, 2)])
    assert tables.trained(c, x) == ['10,000', '3.0000']
    assert tables.trained(c | dict(at='best'), x) == tables.trained(c | dict(script='toys/mnist.py'), x) == ['', '']


def test_comparisons_from_before_the_protocol_are_judged_by_their_figures_and_marked():
    c = dict(
        arms=dict(base='', arm=''), claim='', metric='val_loss', at='last', match='tokens', worth=0.02, mismatch={}
    )
    c |= dict(script='train.py')
    curve = lambda end: dict(val_loss=[4.0, 3.0, end])
    runs = [record('base', s, curve(2.0 + 0.01 * s)) for s in (1, 2, 3)]
    runs += [record('arm', s, curve(1.8 + 0.01 * s)) for s in (1, 2, 3)]
    runs += [record('arm', SWEEP + 1, curve(v), lr) for lr, v in ((1e-3, 1.8), (2e-3, 1.9), (5e-4, 1.9))]
    base, arm = words(c, runs)
    assert arm.lr == 1e-3 and arm.rate.how == 'lowest mean' and arm.verdict.word == protocol.BY_WORTH
    text = tables.table(c, [base, arm])
    for part in (
        'by an earlier rule',
        'from 1 seed per rate',
        'fewer than 8 seeds',
        'one validation set',
        'not annealed',
    ):
        assert part in text
    assert '2.0200 ± 0.0100' in text


def test_medians_and_logarithms_stand_for_the_seeds_where_a_comparison_asks_for_them():
    rng = np.random.default_rng(0)
    errors = dict(base=rng.lognormal(1, 0.1, 8), arm=rng.lognormal(0, 0.1, 8))
    runs = [record(a, s + 1, dict(val_loss=[9, 8, float(v)])) for a, vs in errors.items() for s, v in enumerate(vs)]
    c = dict(arms=dict(base='', arm=''), claim='', at='last', metric='val_loss', match='tokens', worth=0.1, mismatch={})
    for center, how in (('median', 'Mann-Whitney'), ('log', 'Welch of logarithms')):
        cells = words(c | dict(center=center), runs)
        assert cells[1].verdict.how == how and cells[1].verdict.word == protocol.BY_WORTH
        text = tables.table(c | dict(center=center, script='toys/mnist.py'), cells)
        assert (
            f'{np.median(errors["base"]):.4f}' in text if center == 'median' else '-6' in text and '10% or more' in text
        )


def test_an_error_is_chosen_on_the_images_kept_back_and_reported_on_the_test_set():
    runs = [record('base', 1, dict(val_error=[9, 1, 2], test_error=[9, 5, 6]))]
    c = dict(arms=dict(base=''), metric='val_error', at='best')
    assert verdicts.halves(c, {r['run']: r for r in runs}) == ('val_error', 'test_error')
    assert words(c, runs)[0].values == {1: 5}
    old = record('base', 2, dict(val_error=[9, 1, 2]))  # a run that kept none back: the error itself, for all of them
    assert verdicts.halves(c, {r['run']: r for r in [*runs, old]}) == ('val_error', 'val_error')


def test_the_next_look_is_two_seeds_further_and_arms_wait_for_each_other():
    looks = protocol.looks_to(8)
    at = lambda n, word=protocol.UNDECIDED, how='Welch': protocol.Verdict(word, 0, -1, 1, 1, n, 8, how)
    none = at(3, how='')
    next_looks = lambda asked, **found: verdicts.next_looks(found, looks, set(asked))
    assert next_looks('abc', a=none, b=at(4), c=at(4, protocol.WORSE)) == dict(a=4, b=4, c=4)
    assert next_looks('abc', a=at(4), b=at(4), c=at(4, protocol.WORSE)) == dict(a=6, b=6, c=4)
    assert next_looks('ab', a=at(4), b=at(6)) == dict(a=6, b=6)
    assert next_looks('ab', a=at(8), b=at(8)) == dict(a=8, b=8)
    assert next_looks('b', a=none, b=at(4))['b'] == 6  # a is left out by --only


@pytest.mark.parametrize(
    'keys, part', [(dict(seeds=3), 'first look is at 4'), (dict(sweep_seeds=2, learning_rates=GRID), '3 seeds or more')]
)
def test_a_plan_that_the_protocol_cannot_keep_is_refused(judged, keys, part):
    assert any(part in p for p in judged(**keys).problems())
    assert not judged(**keys, looks=False).problems()


@pytest.mark.parametrize(
    'keys, part',
    [
        (dict(learning_rates=dict(base='better', better='base')), 'takes the rate of an arm that takes its own'),
        (dict(learning_rates=(math.nan, 0.01)), 'must be numbers above 0'),
        (dict(learning_rates=(0.01, math.inf)), 'must be numbers above 0'),
    ],
)
def test_rates_that_nothing_can_be_trained_at_are_named_before_a_run_starts(judged, launcher, fails, keys, part):
    fails(lambda: compare.compare(judged(**keys)), part)
    assert not launcher.runs


def test_figures_that_cannot_be_judged_are_named(judged, launcher, fails):
    fails(lambda: compare.compare(judged(metric='pad')), "metric = 'pad': is not a number in every evaluation of base/")
    arms = dict(base='--level=-9 --halves=true', arm='--halves=true')
    fails(lambda: compare.compare(judged(arms=arms, center='log', name='d')), 'needs figures above 0')


def test_a_change_of_the_plan_after_a_look_is_said(judged, launcher, capsys):
    arms = dict(base='--own=0.01 --shared=0', arm='--own=0.01 --shared=0 --level=1.9')
    compare.compare(judged(arms=arms, learning_rates=()))
    assert 'NOTE: the plan' not in capsys.readouterr().out
    compare.compare(judged(arms=arms, learning_rates=(), seeds=20))
    assert 'NOTE: the plan was seeds = 12;' in capsys.readouterr().out
    compare.compare(judged(arms=arms, learning_rates=(), seeds=20, worth=0.2, at='best'))  # a verdict to one's liking
    assert 'NOTE: the plan was worth = 0.02, at = last;' in capsys.readouterr().out
    compare.compare(judged(arms=arms | dict(more=''), learning_rates=(), seeds=20, worth=0.2, at='best', bench=False))
    assert 'NOTE: the plan was arms = base, arm;' in capsys.readouterr().out


def test_what_is_printed_before_the_runs_says_when_the_plan_is_too_small():
    c = dict(seeds=8, worth=0.02)
    rng = np.random.default_rng(1)
    text = verdicts.rule(c, list(rng.normal(2, 0.02, 8)), 3)
    assert 'a claim needs' in text and 'is found with 80% by seeds =' in text
    assert 'This is for unpaired arms.' in text  # a paired one has other noise, which no seed of the baseline shows
    assert 'No number of seeds' in verdicts.rule(c, list(rng.normal(2, 0.5, 8)), 3)
    assert 'there is no sigma' in verdicts.rule(c, [2.0] * 7 + [math.inf], 3)
    assert 'ranks decide' in verdicts.rule(c | dict(center='median'), list(rng.normal(2, 0.5, 8)), 3)


def test_arms_stop_by_themselves_at_the_flops_of_the_baseline(judged, launcher, tmp_path):
    """A step of the wide fake costs twice as much; what an arm says itself stays."""
    arms = dict(base='', wide='--batch_size=8 --level=1.5', odd='--batch_size=3', own='--batch_size=8 --max_iters=5')
    apart = dict.fromkeys(('wide', 'odd', 'own'), 'other batches, a test')
    cfg = judged(arms=arms, learning_rates=(), match='flops', mismatch=apart)
    compare.compare(cfg)
    x = found_cells(tmp_path)
    lasts = {name: next(iter(cell.runs.values()))['eval']['iter'][-1] for name, cell in x.items()}
    assert lasts == dict(base=10, wide=5, odd=13, own=5) and x['wide'].cost['flops'] == x['base'].cost['flops']
    count = len(launcher.runs)
    compare.compare(dataclasses.replace(cfg, arms=cfg.arms | dict(wide='--batch_size=8 --level=1.5 --max_iters=5')))
    assert len(launcher.runs) == count  # the same runs, whoever names the number


def test_flags_of_an_arm_count_however_they_are_written(monkeypatch):
    """What train.py takes as --max_iters=7: else the arm would be trained longer than it says, and shapes out of a checkpoint
    would be guessed."""
    arms = dict(base='', own='--linear=low_rank --max-iters 7', cut='--init_from {base} --linear low_rank')
    cfg = compare.CompareConfig(common=' '.join(TINY), arms=arms, match='flops')
    _, own, cut = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    assert own.cfg.max_iters == 7 and own.known and not cut.known
    monkeypatch.setattr('sys.argv', ['compare.py', 'c.py', '--jobs', '4', '--seeds', '8', '--bench=false'])
    assert comparison.said(cfg) == 'python compare.py c.py --seeds=8 --bench=false'


def test_arms_that_only_leaves_out_do_not_hold_back_the_ones_it_names(judged, launcher, tmp_path):
    arms = dict(base='--own=0.01 --shared=0', arm='--own=0.01 --shared=0 --level=1.993', never='')
    compare.compare(judged(arms=arms, learning_rates=(), only='base,arm'))
    x = found_cells(tmp_path)
    assert x['arm'].verdict.n > 4 and 'never' not in x


def test_all_epochs_of_a_toy_are_as_many_iterations_as_they_are():
    """max_iters = 0 says all epochs there: half of it is no single step, and no reason to fail."""
    cfg = compare.CompareConfig(script='toys/mnist.py', arms=dict(base='', wide='--chain=2'), horizons=(0.5, 1))
    assert [p.cfg.max_iters for p in plan.make_plans(cfg)] == [0, 200, 0, 200]
    cfg = dataclasses.replace(cfg, horizons=(), match='flops')
    base, wide = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    each = [plan.costs(p)['flops'] / plan.iters(p) for p in (base, wide)]
    assert wide.cfg.max_iters == math.floor(400 * each[0] / each[1] + 1e-9) < 400 == plan.iters(base)
    letters = compare.CompareConfig(script='toys/letter_counting.py', arms=dict(base='', grown='--method=onehot'))
    assert [plan.iters(p) for p in plan.make_plans(letters)] == [50 * (10000 // 128)] * 2


def test_warmup_and_decay_keep_their_share_of_the_iterations():
    base = ' '.join([*TINY, '--max_iters=1041', '--lr_decay_iters=1041', '--warmup_iters=52'])
    cfg = compare.CompareConfig(common=base, arms=dict(base='', low='--linear=low_rank'), match='flops')
    dense, low = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    flops = [plan.costs(p)['flops'] / p.cfg.max_iters for p in (dense, low)]
    assert low.cfg.max_iters == math.floor(1041 * flops[0] / flops[1]) != 1041
    assert low.cfg.lr_decay_iters == low.cfg.max_iters and low.cfg.warmup_iters == math.floor(0.05 * low.cfg.max_iters)


def test_a_length_that_an_arm_gives_itself_stays_and_the_final_decay_has_its_share():
    base = ' '.join([*TINY, '--max_iters=1000', '--lr_decay_iters=1000', '--warmup_iters=10'])
    wsd = base + ' --schedule=wsd --wsd_decay_iters=200'
    arms = dict(base='', warm='--warmup_iters=300', wide='--n_embd=48')
    lengths = lambda p: (p.cfg.max_iters, p.cfg.lr_decay_iters, p.cfg.warmup_iters, p.cfg.wsd_decay_iters)
    cfg = compare.CompareConfig(common=wsd, arms=arms | dict(late='--wsd_decay_iters=50'), match='flops')
    _, warm, wide, late = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    assert lengths(warm) == (1000, 1000, 300, 200) and lengths(late) == (1000, 1000, 10, 50)
    n = wide.cfg.max_iters
    assert n < 700 and lengths(wide) == (n, n, n // 100, n // 5)
    cfg = dataclasses.replace(cfg, horizons=(0.5, 1))
    assert [lengths(p) for p in plan.make_plans(cfg)][:2] == [(1000, 1000, 10, 200), (500, 500, 10, 100)]
    cfg = compare.CompareConfig(common=base, arms=arms, match='flops')  # cosine: no other flags than before
    assert all('wsd' not in ' '.join(p.argv) for p in plan.at_equal_flops(cfg, plan.make_plans(cfg)))


def test_a_part_may_be_run_first_and_rates_may_come_from_another_size(judged, launcher, tmp_path):
    sizes = dict(small='', large='--level=1.5')
    arms = dict(base='--own=0.01 --shared=0', arm='--own=0.01 --shared=0 --best_rate=0.015')
    rates = dict(base=GRID, arm=GRID) | {f'{a}@large': f'{a}@small' for a in ('base', 'arm')}
    cfg = judged(arms=arms, sizes=sizes, learning_rates=rates, only='base@small')
    compare.compare(cfg)
    assert {n.split('/')[0] for n in launcher.runs} == {'base@small'}
    compare.compare(dataclasses.replace(cfg, only='small'))
    assert {n.split('/')[0] for n in launcher.runs} == {'base@small', 'arm@small'}
    compare.compare(dataclasses.replace(cfg, only=''))
    x = found_cells(tmp_path)
    assert x['arm@large'].lr == x['arm@small'].lr == pytest.approx(0.015, rel=0.15)
    assert not [n for n in launcher.runs if '@large' in n and int(n.split('/s')[-1]) > SWEEP]  # no sweep there
    assert any('nobody: no such arm' in p for p in dataclasses.replace(cfg, only='nobody').problems())


def test_a_rate_taken_from_an_arm_that_has_it_at_the_end_of_those_tried_decides_no_more_than_there(
    judged, launcher, tmp_path
):
    """What keeps a word from the one keeps it from the other: neither was tried beyond."""
    arms = {name: ARMS[name] for name in ('base', 'worse')}
    sizes = {'small': '', 'large': ''}
    rates = dict(
        learning_rates={'base': GRID, 'worse': (0.005, 0.01), 'base@large': 'base@small', 'worse@large': 'worse@small'}
    )
    compare.compare(judged(arms=arms, sizes=sizes, extend=0, **rates))
    found = found_cells(tmp_path)
    assert found['worse@small'].rate.edge == found['worse@large'].rate.edge == 'high'
    for size in sizes:
        v = found[f'worse@{size}'].verdict
        assert v.word == protocol.UNDECIDED and 'at the high end' in v.note
