"""The error rates that the rule states hold: 20,000 simulated comparisons each, looks, arms and rates included."""

import math
from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch

from configurator import UserError
from lab import protocol, rates, stats
from lab.protocol import ALPHA, BETTER, BY_WORTH, NO_GAIN, UNDECIDED, WORDS, WORSE, Verdict
from lab.rates import Rate

N = 20_000
POINT = 0.01  # what a simulated rate may be above the stated one
SIGMA, WORTH = 0.01, 0.012


def simulate(arms, base, worth, looks, pairs=None):
    """protocol.judge for many comparisons at once, after each look as compare.py calls it: an arm with a word takes no
    more seeds. arms: (comparisons, arms, seeds), pairs: which are paired. Returns words, bounds, seeds used; (comparisons,
    arms)."""
    shape, t = arms.shape[:2], scipy.stats.t
    pairs = np.zeros(shape, bool) if pairs is None else pairs
    parts = [protocol.fractions(looks, start) for start in (protocol.SIGMA_SEEDS, 1)]
    bound = [stats.bounds(part, (ALPHA / shape[1],))[:, 0] for part in parts]
    choose = lambda two: np.where(pairs, two[1], two[0])
    p = {0.0: np.ones(shape), -worth: np.ones(shape)}
    low, high, value, used = (np.zeros(shape) for _ in range(4))
    words = np.full(shape, WORDS.index(UNDECIDED))
    for k, n in enumerate(looks):
        tests = [protocol.t_test(arms[..., :n], base[:, None, : max(n, protocol.SIGMA_SEEDS)])]
        tests.append(protocol.t_test(arms[..., :n], base[:, None, :n], pairs=True) if pairs.any() else tests[0])
        open_, effect = words == WORDS.index(UNDECIDED), choose([effect for effect, *_ in tests])
        for null, so_far in p.items():
            looked = [2 * t.sf(np.abs(effect - null) / se, df) for _, se, df in tests]
            now = choose([stats.sequential_p(one, part, k) for one, part in zip(looked, parts)])
            p[null] = np.where(open_, np.minimum(so_far, now), so_far)
        half = choose([t.isf(nominal[k] / 2, df) * se for (_, se, df), nominal in zip(tests, bound)])
        low, high = np.where(open_, effect - half, low), np.where(open_, effect + half, high)
        value, used = np.where(open_, effect, value), np.where(open_, n, used)
        both = stats.step_down(np.stack([p[0.0], p[-worth]], -1))
        bounds = protocol.clip(low, high, value, both[..., 0], both[..., 1], worth)
        words = protocol.word(*bounds, worth)
    return words, *bounds, used


def draw(effects, looks, rng, spread=None, n=N):
    """Figures of arms with these true effects, and of a baseline."""
    spread = np.ones(len(effects)) if spread is None else np.array(spread)
    arms = np.array(effects)[:, None] + SIGMA * spread[:, None] * rng.normal(size=(n, len(effects), looks[-1]))
    return arms, SIGMA * rng.normal(size=(n, max(looks[-1], protocol.SIGMA_SEEDS)))


def false_words(words, effects, worth=WORTH):
    """Is any word of a comparison untrue? (comparisons,)"""
    effects = np.array(effects)
    says = {w: words == WORDS.index(w) for w in WORDS}
    return (
        (says[BY_WORTH] & (effects > -worth))
        | (says[BETTER] & (effects >= 0))
        | (says[WORSE] & (effects <= 0))
        | (says[NO_GAIN] & (effects <= -worth))
    ).any(-1)


@pytest.mark.parametrize(
    'effects, spread',
    [
        ((0, 0, 0), None),
        ((0, 0, 0), (1, 2, 3)),
        ((-WORTH, -WORTH, -WORTH), (1, 2, 0.5)),
        ((0, -WORTH, -5 * WORTH), None),
        ((-0.01 * WORTH, 0.01 * WORTH, 5 * WORTH), None),
        ((-WORTH / 2, -0.99 * WORTH, 0), None),
        ((0,), (3,)),
        ((0,) * 6, None),
    ],
)
def test_a_comparison_says_an_untrue_word_in_at_most_5_percent(effects, spread):
    """Family-wise: over all arms, looks, sides, with Holm's method."""
    looks = protocol.looks_to(12)
    words, *_ = simulate(*draw(effects, looks, np.random.default_rng(1), spread), WORTH, looks)
    assert np.mean(false_words(words, effects)) <= ALPHA + POINT


@pytest.mark.parametrize('spread, at_least, at_most', [((1, 1), 0.12, 1 / 7 + POINT), ((3, 3), 0.28, 0.3 + POINT)])
def test_sizes_are_comparisons_of_their_own_and_eight_of_them_err_as_often_as_the_document_says(
    spread, at_least, at_most
):
    looks, rng, n = protocol.looks_to(8), np.random.default_rng(40), N // 4
    sizes = [simulate(*draw((0, 0), looks, rng, spread, n), 2 * SIGMA, looks)[0] for _ in range(8)]
    assert at_least <= np.any([false_words(w, (0, 0), 2 * SIGMA) for w in sizes], 0).mean() <= at_most


@pytest.mark.parametrize('looks', [(4,), (12,), (4, 6, 8)])
def test_also_where_some_arms_gain_nothing_and_some_just_less_than_worth(looks):
    """Each of the two hypotheses tested at 5% by itself would let 7% pass."""
    worth, effects = 18 * SIGMA, (0, -17.99 * SIGMA)
    words, *_ = simulate(*draw(effects, looks, np.random.default_rng(1), (3, 3)), worth, looks)
    assert np.mean(false_words(words, effects, worth)) <= ALPHA + POINT


@pytest.mark.parametrize('spread', [(3,), (3, 3, 3)])
def test_also_where_worth_is_so_small_that_no_arm_stops_early(spread):
    looks, effects, worth = protocol.looks_to(12), (0,) * len(spread), SIGMA / 5
    words, *_ = simulate(*draw(effects, looks, np.random.default_rng(1), spread), worth, looks)
    assert np.mean(false_words(words, effects, worth)) <= ALPHA + POINT


@pytest.mark.parametrize('spread', [(1, 1, 1), (3, 1, 0.4)])
def test_intervals_hold_the_truth_in_95_percent_of_comparisons(spread):
    """Those at the look where each arm stopped, of all arms together, clipped by Holm's method."""
    looks, effects = protocol.looks_to(12), (0, -WORTH, -2 * WORTH)
    _, low, high, _ = simulate(*draw(effects, looks, np.random.default_rng(2), spread), WORTH, looks)
    assert np.mean(((low <= effects) & (effects <= high)).all(-1)) >= 1 - ALPHA - POINT


def test_repeated_intervals_hold_at_all_looks_together_and_are_not_much_too_wide():
    looks, rng = protocol.looks_to(24), np.random.default_rng(3)
    nominal = stats.bounds(protocol.fractions(looks), (ALPHA,))[:, 0]
    arms, base = draw((0,), looks, rng)
    missed = np.zeros(N, bool)
    for k, n in enumerate(looks):
        effect, se, df = protocol.t_test(arms[:, 0, :n], base[:, : max(n, protocol.SIGMA_SEEDS)])
        missed |= 2 * scipy.stats.t.sf(np.abs(effect) / se, df) < nominal[k]
    assert ALPHA / 2 <= missed.mean() <= ALPHA + POINT


def test_welchs_own_degrees_of_freedom_would_let_more_pass_for_a_noisy_arm_of_four_seeds():
    looks, missed = protocol.looks_to(12), np.zeros((2, N), bool)
    arms, base = draw((0,), looks, np.random.default_rng(30), (3,))
    for k, nominal in enumerate(stats.bounds(protocol.fractions(looks), (ALPHA,))[:, 0]):
        a, b = arms[:, 0, : looks[k]], base[:, : max(looks[k], protocol.SIGMA_SEEDS)]
        for i, (effect, se, df) in enumerate((stats.welch(a, b), protocol.t_test(a, b))):
            missed[i] |= 2 * scipy.stats.t.sf(np.abs(effect) / se, df) < nominal
    welch, ours = missed.mean(1)
    assert welch > ALPHA + POINT >= ours


def test_bounds_like_pococks_save_seeds_where_an_effect_is_large(monkeypatch):
    """Against spending like O'Brien & Fleming's, at the plan of each."""

    def obrien_fleming(alpha, fraction):
        return 4 * scipy.stats.norm.sf(scipy.stats.norm.isf(np.asarray(alpha) / 4) / math.sqrt(fraction))

    used, caches = [], (stats.bounds, stats.bounds_table)
    for spending in (stats.spent, obrien_fleming):
        monkeypatch.setattr(stats, 'spent', spending)
        [f.cache_clear() for f in caches]
        looks = protocol.plan(SIGMA, WORTH, 3)
        rng = np.random.default_rng(31)
        used.append(
            [simulate(*draw((e,) * 3, looks, rng, n=2000), WORTH, looks)[3].mean() for e in (-4 * WORTH, -2 * WORTH, 0)]
        )
    [f.cache_clear() for f in caches]
    (large, two, none), (theirs_large, theirs_two, theirs_none) = used
    assert large < 0.65 * theirs_large and two < 0.8 * theirs_two and none < 1.1 * theirs_none


def test_without_bounds_the_same_looks_would_call_three_times_as_many_null_effects():
    """What adding seeds until p < 0.05 does: the fault that alpha spending removes."""
    looks = protocol.looks_to(24)
    arms, base = draw((0,), looks, np.random.default_rng(4))
    p = [protocol.p_value(arms[:, 0, :n], base[:, : max(n, protocol.SIGMA_SEEDS)]) for n in looks]
    assert np.mean(np.min(p, 0) < ALPHA) > 2.5 * ALPHA


def test_paired_looks_hold_the_error_rate():
    looks, rng, missed = protocol.looks_to(12), np.random.default_rng(32), np.zeros(N, bool)
    luck = rng.normal(size=(N, 12))
    arm, base = (luck + 0.5 * rng.normal(size=(N, 12)) for _ in range(2))
    for n, nominal in zip(looks, stats.bounds(protocol.fractions(looks, 1), (ALPHA,))[:, 0]):
        missed |= protocol.p_value(arm[:, :n], base[:, :n], pairs=True) < nominal
    assert ALPHA - POINT <= missed.mean() <= ALPHA + POINT


def test_a_gain_of_two_worth_is_found_and_one_of_worth_as_often_as_planned():
    worth = 1.5 * WORTH
    looks = protocol.plan(SIGMA, worth, 3)
    for effect, at_least in ((-worth, protocol.POWER), (-2 * worth, 0.99)):
        words, _, _, used = simulate(*draw((effect,) * 3, looks, np.random.default_rng(5)), worth, looks)
        assert np.mean((words == WORDS.index(BETTER)) | (words == WORDS.index(BY_WORTH))) >= at_least
    assert used.mean() < 0.6 * looks[-1]  # large effects stop early


def test_planning_from_the_sigma_of_seeds_that_are_used_again_keeps_the_error_rate():
    """The first eight seeds of the baseline choose the number of seeds, and stay in."""
    rng, wrong = np.random.default_rng(6), []
    arms, base = draw((0, 0), (24,), rng)
    ends = [protocol.plan(s, 2 * WORTH, 2, 24) or protocol.looks_to(24) for s in np.geomspace(0.2, 4, 20) * SIGMA]
    measured = np.searchsorted(np.geomspace(0.2, 4, 20) * SIGMA, base[:, :8].std(-1, ddof=1)).clip(0, 19)
    for i in np.unique(measured):
        mine = measured == i
        words, *_ = simulate(arms[mine], base[mine], 2 * WORTH, ends[i])
        wrong.extend(false_words(words, (0, 0), 2 * WORTH))
    assert len(wrong) == N and np.mean(wrong) <= ALPHA + POINT


# -----------------------------------------------------------------------------
# learning rates

GRID = np.log([5e-4, 1e-3, 2e-3, 4e-3, 8e-3])


def curve(x, best, floor=0.0):
    """Loss against the logarithm of the rate: no parabola, steeper towards high rates, where it ends in divergence."""
    d = x - best
    y = floor + 0.06 * d**2 + 0.03 * d**3 * (d > 0)
    return np.where(d > 1.6, np.inf, y)


def sweep(best, rng, seeds=3):
    return curve(GRID, best[:, None])[..., None] + SIGMA * rng.normal(size=(len(best), len(GRID), seeds))


def test_with_every_arms_rate_chosen_by_its_sweep_the_error_rate_holds():
    """Two arms as good as the baseline, their best rates anywhere inside the grid. Sweeps are read on half a of the
    validation set, figures on half b; halves share most of a seed's luck, and differ a little in the best rate."""
    rng, looks = np.random.default_rng(7), protocol.looks_to(12)
    arms = []
    for n in (looks[-1],) * 3:
        best = rng.uniform(GRID[1], GRID[-2], N)
        chosen, _ = rates.best_rate(GRID, sweep(best, rng))
        b = best + rng.normal(0, 0.05, N)
        seeds = SIGMA * (0.95 * rng.normal(size=(N, n)) + math.sqrt(1 - 0.95**2) * rng.normal(size=(N, n)))
        arms.append(curve(chosen, b)[:, None] + seeds)
    words, *_ = simulate(np.stack(arms[1:], 1), arms[0], WORTH, looks)
    assert np.mean(false_words(words, (0, 0))) <= ALPHA + POINT


@pytest.mark.parametrize('n_arms', [5, 11])
@pytest.mark.parametrize('best_arm', [0, -2])  # all arms equal the baseline, or one is better by just `worth`, in sigma
@pytest.mark.parametrize(
    'kind, spread', [('normal', (1, 1)), ('heavy', (1, 1)), ('spikes', (1, 1)), ('normal', (1, 3)), ('normal', (3, 1))]
)
def test_the_whole_procedure_holds_the_error_rate_with_heavy_tails_and_unequal_noise(n_arms, best_arm, kind, spread):
    """Rates by sweeps of three seeds, pairing by luck, looks at 4, 6 and 8 seeds, Holm's method over 5 or 11 arms, the check
    of the second best rate. spread: of the baseline and of the arms. The true effect is that at each arm's own best rate, so
    errors of the rates count. heavy: Student's t with three degrees of freedom; spikes: one run in ten ends five sigma higher."""
    rng, n, looks = np.random.default_rng(50), N // 10, protocol.looks_to(8)
    draws = dict(
        normal=lambda shape: rng.normal(size=shape),
        heavy=lambda shape: rng.standard_t(3, size=shape) / math.sqrt(3),
        spikes=lambda shape: rng.normal(size=shape) + 5.0 * (rng.random(shape) < 0.1),
    )
    scale = SIGMA * np.array([spread[0], *[spread[1]] * n_arms])[:, None]
    effects = SIGMA * np.array([best_arm, *[0] * (n_arms - 1)])
    best = rng.uniform(GRID[1], GRID[-2], (n, 1 + n_arms))
    swept = curve(GRID, best[..., None])[..., None] + scale[..., None] * draws[kind]((n, 1 + n_arms, len(GRID), 3))
    chosen, _ = rates.best_rate(GRID, swept.reshape(-1, len(GRID), 3))
    chosen, means = chosen.reshape(n, -1), rates.noise(swept)[0]
    second = GRID[np.where(np.abs(GRID - chosen[..., None]) > math.log(2) / 2, means, np.inf).argmin(-1)]
    figures, others = (
        curve(x, best)[..., None] + np.array([0, *effects])[:, None] + scale * draws[kind]((n, 1 + n_arms, seeds))
        for x, seeds in ((chosen, 8), (second, 4))
    )
    own = np.where(np.isfinite(swept), swept, np.nan)
    own = own - own.mean(-1, keepdims=True)
    alike = (own[:, 1:] * own[:, :1]).sum(-1) / np.sqrt((own[:, 1:] ** 2).sum(-1) * (own[:, :1] ** 2).sum(-1))
    words, *_ = simulate(figures[:, 1:], figures[:, 0], 2 * SIGMA, looks, np.nanmean(alike, -1) > protocol.CORRELATION)
    effect, se, df = protocol.t_test(others, figures[..., :4])
    contradicted = effect + scipy.stats.t.isf(ALPHA / 2, df) * se < 0
    words = np.where(contradicted[:, :1] | contradicted[:, 1:], WORDS.index(UNDECIDED), words)
    assert np.mean(false_words(words, effects, 2 * SIGMA)) <= ALPHA + POINT


def test_choosing_the_rate_by_the_seeds_that_decide_would_not_hold_it():
    """Six rates that are equally good, the best mean of them against one: the fault that a sweep apart removes."""
    rng = np.random.default_rng(8)
    arms = SIGMA * rng.normal(size=(N, 6, 8))
    chosen = arms[np.arange(N), arms.mean(-1).argmin(-1)]
    base = SIGMA * rng.normal(size=(N, 8))
    better = (protocol.p_value(chosen, base) < ALPHA) & (chosen.mean(-1) < base.mean(-1))
    assert np.mean(better) > 2.5 * ALPHA / 2


def test_the_parabola_costs_less_than_the_smallest_mean():
    rng = np.random.default_rng(9)
    best = rng.uniform(GRID[1], GRID[-2], N)
    values = sweep(best, rng)
    chosen, convex = rates.best_rate(GRID, values)
    smallest = GRID[np.where(np.isfinite(values.mean(-1)), values.mean(-1), np.inf).argmin(-1)]
    ours, theirs = curve(chosen, best), curve(smallest, best)
    assert convex.mean() > 0.99 and np.isfinite(ours).all()
    assert ours.mean() < 0.6 * theirs.mean() and ours.mean() < SIGMA / 5


def test_the_vertex_of_an_exact_parabola_is_found_whatever_the_grid():
    figures = {
        lr: [2 + 0.1 * math.log(lr / 1.7e-3) ** 2 + e for e in (-0.01, 0, 0.01)] for lr in (5e-4, 1e-3, 3e-3, 8e-3)
    }
    r = rates.choose_rate(figures)
    assert (r.lr, r.edge, r.how, r.second, r.seeds) == (pytest.approx(1.7e-3), '', 'quadratic', 1e-3, 3)
    assert 0 < r.cost < 0.005


def test_rates_at_the_end_of_the_range_next_to_divergence_and_without_a_parabola():
    down = rates.choose_rate({1e-3: [3.0, 3.1], 2e-3: [2.0, 2.1], 4e-3: [1.4, 1.5]})
    assert (down.lr, down.edge, math.isnan(down.cost)) == (4e-3, 'high', True)
    cliff = rates.choose_rate({1e-3: [3.0, 3.1], 2e-3: [2.0, 2.1], 4e-3: [1.4, 1.5], 8e-3: [1.2, math.inf]})
    assert (cliff.lr, cliff.edge) == (4e-3, 'divergence')
    flat = {
        1e-3: [2.010, 2.000, 2.020],
        2e-3: [2.013, 2.017, 2.011],
        4e-3: [2.002, 2.012, 2.008],
        8e-3: [9.0, math.inf, 9.0],
    }
    tie = rates.choose_rate(flat)  # 1e-3 and 4e-3 within a standard error: the one further from divergence
    assert (tie.lr, tie.how) == (1e-3, 'lowest within one standard error')
    assert rates.choose_rate({1e-3: [math.inf], 2e-3: [math.inf]}) is None
    wild = rates.choose_rate({1e-3: [1.94, 1.95], 2e-3: [1.81, 1.80], 4e-3: [1.80, 1.81], 8e-3: [60.0, 59.0]})
    assert 2e-3 < wild.lr < 4e-3  # 59 is finite, and nothing a parabola is drawn through
    alone = rates.choose_rate({1e-3: [2.0, 2.1]})
    assert (alone.lr, alone.edge, alone.second) == (1e-3, '', None)


DENSE_192 = {  # dense in einsum_gutenberg at 192, val_a
    1.6e-3: [3.7569, 3.7580, 3.7506],
    2.5e-3: [3.6920, 3.6887, 3.6805],
    4e-3: [3.6630, 3.6386, 3.6539],
    6.4e-3: [3.6455, 3.6296, 3.6399],
    8e-3: [3.6273, 3.6333, 3.6358],
    1e-2: [3.6205, 3.6161, 3.6164],
    1.26e-2: [3.7004, 3.6368, 3.6188],
    1.6e-2: [3.7522, 3.8098, 3.7360],
}


def test_no_rate_is_chosen_beyond_the_highest_stable_one():
    """At 1.26e-2 some seeds meet a spike of the loss. The parabola cannot know: its vertex lies above 1e-2."""
    x, values = np.log(list(DENSE_192)), np.array(list(DENSE_192.values()))
    assert math.exp(rates.quadratic(x, values)[0]) > 1.12e-2
    r = rates.choose_rate(DENSE_192)
    assert (r.lr, r.edge, r.how) == (1e-2, 'instability', 'quadratic') and math.isnan(r.cost)
    lower = np.mean(values[:6].var(-1, ddof=1))
    assert scipy.stats.f.sf(values[6].var(ddof=1) / lower, 2, 12) < rates.UNSTABLE
    assert rates.stable_up_to(x, values) == x[5] and rates.stable_up_to(x[:6], values[:6]) == math.inf
    steady = rates.choose_rate(DENSE_192 | {1.26e-2: [3.6604, 3.6468, 3.6488], 1.6e-2: [3.7522, 3.7698, 3.7660]})
    assert 1e-2 < steady.lr < 1.26e-2 and not steady.edge


def test_a_rate_within_a_tenth_above_the_highest_stable_one_stands():
    """No sweep tells such rates apart."""
    figures = {1e-3: [2.10, 2.11, 2.09], 2e-3: [2.0, 2.01, 1.99], 4e-3: [2.0, 2.2, 2.05]}
    x, values = np.log(list(figures)), np.array(list(figures.values()))
    for height, stands in ((0.02, False), (0.1, True)):
        values[2] = 2.0 + height + np.array([-0.35, 0.35, 0.0])
        assert rates.stable_up_to(x, values) == x[1]
        vertex, *_ = rates.quadratic(x, values)
        chosen, _ = rates.best_rate(x, values)
        assert (chosen == vertex) == stands and (vertex < x[1] + math.log(1.1)) == stands
        assert stands or chosen == x[1]


def test_even_noise_is_seldom_called_instability():
    """Of five rates, four are tested, each at one in a thousand."""
    values = np.random.default_rng(43).normal(size=(N, 5, 3))
    assert 0.002 < np.mean(np.isfinite(rates.stable_up_to(np.arange(5.0), values))) < 0.006


def test_the_second_best_rate_may_contradict_the_choice():
    assert protocol.contradicts([2.0, 2.01, 1.99, 2.0], [1.9, 1.91, 1.89, 1.9])
    assert not protocol.contradicts([2.0, 2.01, 1.99, 2.0], [2.0, 2.02, 1.98, 1.99])
    assert not protocol.contradicts([2.0, 2.01], [1.0, math.inf])


def test_a_lowest_mean_at_the_end_is_not_marked_where_the_other_side_is_steep():
    """A limit that the document names: the best rate may lie below 4e-3."""
    r = rates.choose_rate({4e-3: [1.74, 1.76], 8e-3: [1.80, 1.82], 1.6e-2: [2.41, 2.43]})
    assert 4e-3 < r.lr < 8e-3 and not r.edge and min(r.means, key=r.means.get) == 4e-3


def test_a_quarter_of_unrelated_arms_is_paired_after_three_rates_of_three_seeds():
    rng = np.random.default_rng(41)
    sweeps = [
        [{i: dict(enumerate(v)) for i, v in enumerate(rng.normal(size=(3, 3)))} for _ in 'ab'] for _ in range(2000)
    ]
    assert np.mean([protocol.correlation(*s) > protocol.CORRELATION for s in sweeps]) == pytest.approx(0.25, abs=0.03)


# -----------------------------------------------------------------------------
# one comparison


def test_judge_says_what_the_simulation_says():
    looks, effects = protocol.looks_to(12), (0, -WORTH, -3 * WORTH)
    arms, base = draw(effects, looks, np.random.default_rng(10), (1, 2, 1), n=60)
    words, low, high, used = simulate(arms, base, WORTH, looks)
    for i in range(len(arms)):
        given = {str(j): arms[i, j, : int(used[i, j])] for j in range(len(effects))}
        for j, v in enumerate(protocol.judge(given, base[i], WORTH, looks).values()):
            assert (v.word, v.n) == (WORDS[words[i, j]], used[i, j])
            assert (v.low, v.high) == (pytest.approx(low[i, j]), pytest.approx(high[i, j]))


def test_one_look_at_one_arm_is_welchs_test_with_cautious_degrees_of_freedom():
    rng = np.random.default_rng(11)
    a, b = rng.normal(1.98, 0.01, 5), rng.normal(2.0, 0.02, 9)
    theirs, (effect, se, df) = scipy.stats.ttest_ind(a, b, equal_var=False), stats.welch(a, b)
    assert (effect / se, df) == (pytest.approx(theirs.statistic), pytest.approx(theirs.df))
    v = protocol.judge(dict(a=a), b, 0.01)['a']
    assert v.p == pytest.approx(2 * scipy.stats.t.sf(abs(effect / se), 2 / (1 / df + 1 / 4)))
    assert (v.value, v.how, v.n, v.base_n) == (pytest.approx(a.mean() - b.mean()), 'Welch', 5, 9)


def test_the_five_words_by_the_bounds():
    bounds = [(-0.05, -0.02), (-0.05, -0.001), (-0.009, 0.3), (-0.009, 0.003), (0.001, 0.02), (-0.02, 0.01)]
    found = [WORDS[int(protocol.word(*b, 0.01))] for b in bounds]
    assert found == [BY_WORTH, BETTER, NO_GAIN, NO_GAIN, WORSE, UNDECIDED]


@pytest.mark.parametrize('flushed', [False, True])
def test_holm_decides_for_arms_that_bonferroni_leaves_open_and_the_interval_shows_it(flushed):
    """Also in a process that has trained on a CPU, where denormal numbers are 0."""
    torch.set_flush_denormal(flushed)
    rng = np.random.default_rng(12)
    base = rng.normal(0, 1, 20)
    z = np.linspace(-1, 1, 20)
    arms = dict(far=base.mean() - 9 + z, near=base.mean() - 0.60 + z)
    v = protocol.judge(arms, base, 0.1)
    alone = protocol.interval(arms['near'], base, ALPHA / 2)
    assert alone.high > 0 > v['near'].high and v['near'].word == BETTER and v['near'].p < ALPHA
    assert v['near'].low == alone.low and v['far'].word == BY_WORTH
    torch.set_flush_denormal(False)


def test_undecided_names_the_seeds_that_would_decide():
    rng = np.random.default_rng(13)
    base = rng.normal(2.0, 0.02, 40)
    arm = rng.normal(1.993, 0.02, 40)
    v = protocol.judge(dict(a=arm[:5]), base[:5], 0.01)['a']
    assert v.word == UNDECIDED and v.more > 5
    as_is = (
        np.concatenate([arm[:5]] * math.ceil((v.more + 5) / 5)),
        np.concatenate([base[:5]] * math.ceil((v.more + 5) / 5)),
    )
    assert protocol.judge(dict(a=as_is[0]), as_is[1], 0.01)['a'].word != UNDECIDED


def test_seeds_that_diverge_and_looks_that_are_not_there_yet():
    base = [2.0, 2.01, 1.99, 2.02, 2.0, 2.01, 1.98, 2.0]
    found = protocol.judge(dict(a=[1.0, 1.0, math.inf, 1.0], b=[1.0, 1.1, 1.0]), base, 0.01, (4, 6))
    assert (found['a'].word, found['a'].note) == (WORSE, '1 of 4 seeds diverged')
    assert (found['b'].word, found['b'].note) == (UNDECIDED, 'too few seeds for the first look')
    few = protocol.judge(dict(a=[1.0, 1.1, 1.0, 1.0]), base[:4], 0.01, (4, 6))['a']
    assert (few.word, few.note) == (UNDECIDED, 'too few seeds of the baseline for the first look')
    broken = protocol.judge(dict(a=[1.0] * 4), [*base, math.inf], 0.01, (4, 6))['a']
    assert (broken.word, broken.note) == (UNDECIDED, 'seeds of the baseline diverged')
    rng = np.random.default_rng(19)  # ranks only need to know that one is worse
    arm = [math.inf, *rng.normal(1.9, 0.01, 19)]
    assert protocol.judge(dict(a=arm), rng.normal(2, 0.01, 20), 0.01, center='median')['a'].word == BY_WORTH
    v = protocol.judge(dict(a=[math.inf] * 4), base, 0.01, center='median')['a']
    assert (v.word, v.value, v.low) == (WORSE, math.inf, math.inf)  # no figure of thirty digits


def test_a_verdict_waits_where_the_losers_rate_may_lie_beyond_those_tried():
    v = Verdict(BETTER, -0.1, -0.2, -0.05, 0.01, 5, 8, 'Welch')
    edge, inside = (Rate(1e-3, e, 'quadratic', None, 3, 0.0, {}) for e in ('high', ''))
    assert protocol.with_rates(v, edge, inside).word == BETTER
    assert protocol.with_rates(v, inside, edge).word == UNDECIDED
    assert protocol.with_rates(v, inside, inside, check=True).word == UNDECIDED


def test_pairs_only_where_the_sweeps_seeds_go_together():
    rng = np.random.default_rng(14)
    common = {lr: {s: rng.normal() for s in range(3)} for lr in (1, 2, 3)}
    same = {lr: {s: v + 0.1 * rng.normal() for s, v in seeds.items()} for lr, seeds in common.items()}
    assert protocol.correlation(same, common) > 0.9
    assert protocol.correlation({1: same[1]}, {1: common[1]}) is None  # three seeds of one rate
    base = rng.normal(2, 0.02, 8)
    v = protocol.judge(dict(a=base - 0.01 + rng.normal(0, 0.001, 8)), base, 0.02, pairs={'a'})['a']
    assert v.how == 'paired' and v.word == BETTER
    assert protocol.judge(dict(a=base - 0.01), base, 0.02)['a'].word == UNDECIDED


@cache
def two_humps(n=N):
    """Errors of 25 seeds an arm: some learn it, some do not, as in letter counting."""
    rng = np.random.default_rng(15)
    return np.where(rng.random((n, 2, 25)) < 0.3, rng.normal(12, 2, (n, 2, 25)), rng.normal(3, 0.5, (n, 2, 25)))


def test_ranks_hold_their_error_rate_on_errors_with_two_humps():
    p = [protocol.p_value(a, b, center='median') for a, b in two_humps(N // 2)]
    assert ALPHA - POINT <= np.mean(np.array(p) < ALPHA) <= ALPHA + POINT


def test_rank_intervals_are_the_shifts_that_the_test_does_not_reject_and_scipy_agrees():
    for (a, b), n in zip(two_humps(40), [4, 5, 9, 25] * 10):
        a, b = a[:n], b[: n + 3] if n < 22 else b
        e = protocol.interval(a, b, ALPHA, center='median')
        assert stats.mann_whitney(a, b) == pytest.approx(scipy.stats.mannwhitneyu(a, b, method='exact').pvalue)
        for inside, outside in ((e.low + 1e-6, e.low - 1e-6), (e.high - 1e-6, e.high + 1e-6)):
            assert stats.mann_whitney(a, b, inside) >= ALPHA >= stats.mann_whitney(a, b, outside)
    assert math.isinf(stats.hodges_lehmann([1, 2], [3, 4]).low)


def test_the_logarithm_judges_ratios():
    rng = np.random.default_rng(16)
    base = rng.lognormal(1, 0.1, 12)
    v = protocol.judge(dict(a=base * 0.5 * rng.lognormal(0, 0.1, 12)), base, 0.1, center='log')['a']
    assert v.word == BY_WORTH and v.low < -0.5 < v.high and v.how == 'Welch of logarithms'
    with pytest.raises(UserError, match='above 0'):
        protocol.judge(dict(a=[0.0, 1.0]), [1.0, 2.0], 0.1, center='log')


# -----------------------------------------------------------------------------
# bounds, Holm, before the runs, halves, speed


def test_bounds_are_the_published_ones():
    """Five equal looks, two-sided 5%, Pocock-like spending (Reboussin, DeMets, Kim & Lan 2000); and what one look spends
    is alpha."""
    z = scipy.stats.norm.isf(stats.bounds((0.2, 0.4, 0.6, 0.8, 1.0), (0.05,))[:, 0] / 2)
    assert z == pytest.approx([2.4380, 2.4268, 2.4101, 2.3966, 2.3859], abs=1e-4)
    assert stats.bounds((1.0,), (0.05, 0.01))[0] == pytest.approx([0.05, 0.01])


def test_sequential_p_inverts_the_bounds():
    part = (0.3, 0.6, 1.0)
    for alpha in (0.05, 0.002):
        for k, nominal in enumerate(stats.bounds(part, (alpha,))[:, 0]):
            assert stats.sequential_p(nominal, part, k) == pytest.approx(alpha, rel=1e-3)


def test_an_arm_counts_until_both_its_hypotheses_are_rejected():
    one = lambda p: stats.step_down(np.array(p)[..., None])[..., 0]  # one test an arm: Holm's method
    assert one([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert one([[0.5, 0.9], [0.03, 0.02]]) == pytest.approx(np.array([[1.0, 1.0], [0.04, 0.04]]))
    # the first arm is better than 0 by much, and may gain worth: it still counts beside the second
    assert stats.step_down([[1e-6, 0.5], [0.03, 1e-6]])[1, 0] == pytest.approx(0.06)
    assert stats.step_down([[1e-6, 1e-6], [0.03, 0.2]])[1, 0] == pytest.approx(0.03)


def test_sigma_needs_eight_seeds_and_the_rule_says_what_a_claim_needs():
    with pytest.raises(UserError, match='8'):
        protocol.sigma([2.0] * 7)
    s = protocol.sigma(np.random.default_rng(17).normal(2, 0.01, 8))
    assert s.low < 0.01 < s.high
    looks = protocol.plan(0.01, 0.012, 3)
    assert protocol.plan(0.01, 0.001, 3) is None and looks[0] == 4 and set(np.diff(looks)) == {2}
    text = protocol.rule(0.01, 0.012, 3, looks)
    assert len(text.splitlines()) == 3 + len(looks) and '5%' in text and 'unpaired arms' in text.splitlines()[-1]


def test_what_a_claim_needs_is_where_the_test_falls_below_p_and_finds_80_percent():
    n, p = 6, 0.01
    rng = np.random.default_rng(18)
    found = protocol.detects(n, p)
    arm, base = rng.normal(found, 1, (N, n)), rng.normal(0, 1, (N, 8))
    assert np.mean(protocol.p_value(arm, base) < p) == pytest.approx(protocol.POWER, abs=0.03)
    assert 0 < protocol.needs(n, p) < found


def test_one_half_chooses_the_evaluation_and_the_other_is_reported():
    e = dict(iter=[0, 1, 2], val_loss=[3, 2, 2.5], val_a=[3, 2.2, 2.1], val_b=[3, 1.8, 2.9])
    assert protocol.halves(e) == ('val_a', 'val_b')
    assert protocol.figure(e, 'val_a', 'val_b', 'best') == 2.9 and protocol.figure(e, 'val_b', 'val_a', 'best') == 2.2
    assert protocol.figure(e, 'val_a', 'val_b') == 2.9 and protocol.halves(dict(val_loss=[2])) == (
        'val_loss',
        'val_loss',
    )
    assert protocol.halves(dict(iter=[], val_error=[]), 'val_error') == ('val_error', 'val_error')


def line(cost, rng, n, spread=0.05):
    """Curves that get down to 2.0 at about this cost, and on to 1.8."""
    return [([0, 1, c, 2 * c], [4.0, 3.0, 2.0, 1.8]) for c in cost * rng.lognormal(0, spread, n)]


@pytest.mark.parametrize('n', [3, 5, 10])
def test_speed_ups_to_a_preset_target_cover_95_percent(n):
    rng, covered = np.random.default_rng(20 + n), []
    for _ in range(600):
        e = stats.faster(line(800, rng, n), line(1000, rng, n), 2.0, resamples=500)
        covered.append(e.low <= 1.25 <= e.high)
    assert 0.92 <= np.mean(covered) <= 0.985


def test_seeds_that_never_reach_the_target_leave_a_bound_and_their_share():
    rng = np.random.default_rng(24)
    base, slow = line(1000, rng, 6), line(1500, rng, 4)
    never = [([0, 1, 2000.0], [4.0, 3.0, 2.5])] * 2
    e = stats.faster(slow + never, base, 2.0)
    assert (e.low, math.isnan(e.value), e.arm, e.base) == (0, True, pytest.approx(4 / 6), 1) and 0.5 < e.high < 1
    assert str(e) == f"at most {e.high:.2f} (reached by 67% of its seeds and 100% of the baseline's)"
    turned = stats.faster(base, slow + never, 2.0)
    assert math.isinf(turned.high) and 1 < turned.low < 2
    assert str(stats.faster(never, never, 2.0)).startswith('no bound')
    early = [([0, 100, 200], [4.0, 1.9, 1.8])] * 4  # there at the first evaluation
    assert math.isinf(stats.faster(early, base, 2.0).high)


def test_the_baselines_own_best_rate_at_either_end_keeps_a_gain_undecided():
    v = Verdict(BETTER, -0.1, -0.2, -0.05, 0.01, 5, 8, 'Welch')
    for edge in ('low', 'high'):
        base = Rate(1e-3, edge, 'quadratic', None, 3, 0.0, {})
        found = protocol.with_rates(v, None, base)
        assert found.word == UNDECIDED and f'at the {edge} end' in found.note
    assert protocol.with_rates(v, None, Rate(1e-3, 'divergence', 'quadratic', None, 3, 0.0, {})).word == BETTER


def test_the_worth_of_a_ratio_is_that_of_its_logarithm():
    """30% lower is a factor of 0.7: arms at 0.69 of the baseline are beyond it, arms at 0.72 are not."""
    rng = np.random.default_rng(21)
    base = rng.lognormal(0, 0.005, 20)
    words = [protocol.judge(dict(a=base[::-1] * f), base, 0.3, center='log')['a'].word for f in (0.69, 0.72)]
    assert words == [BY_WORTH, BETTER]


@pytest.mark.parametrize('spread, effect', [((0.1, 1), -0.8), ((1, 1), -0.3), ((1, 0.1), -1.0)])
@pytest.mark.parametrize('pairs', [(), ('a',)])
def test_undecided_asks_for_the_seeds_with_which_the_same_figures_would_decide(spread, effect, pairs):
    """Also where the noise is the baseline's, whose eight seeds are there already: seeds of the arm then help little."""
    looks, worth = protocol.looks_to(120), 0.9
    normal = lambda n, scale: (z := scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)) / z.std(ddof=1) * scale

    def words(n):
        m = n if pairs else max(n, 8)
        arm, base = effect + normal(n, spread[0]), normal(m, spread[1])[:: -1 if pairs else 1]
        v = Verdict(UNDECIDED, effect, -9.0, 9.0, 1.0, n, m, 'paired' if pairs else 'Welch')
        k, part = looks.index(n), protocol.fractions(looks, 1 if pairs else 8)
        e = protocol.interval(arm, base, stats.bounds(part, (ALPHA,))[k, 0], pairs=bool(pairs))
        return WORDS[int(protocol.word(e.low, e.high, worth))], protocol.more_seeds(
            v, arm, base, worth, ALPHA, looks, 'mean'
        )

    word, more = words(4)
    assert word == UNDECIDED and more % 2 == 0
    assert words(4 + more)[0] != UNDECIDED and (more == 2 or words(2 + more)[0] == UNDECIDED)


def test_an_effect_that_no_seeds_would_decide_asks_for_none():
    arm, base = np.tile([-1.0, 1.0], 3), np.tile([-1.0, 1.0], 4)
    assert protocol.judge(dict(a=arm), base, 1e-9, protocol.looks_to(6))['a'].more is None
    assert protocol.judge(dict(a=arm[:1]), base[:1], 1.0)['a'].more is None  # one seed has no spread


def test_what_an_uncertain_rate_costs_is_in_the_unit_of_the_figure():
    """Figures ten times as large, with ten times their noise: the same rate at ten times the cost."""
    choose = lambda unit: rates.choose_rate({
        lr: [unit * (2 + 0.1 * math.log(lr / 2e-3) ** 2 + e) for e in (-0.02, 0, 0.02)] for lr in (1e-3, 2e-3, 4e-3)
    })  # fmt: skip
    one, ten = choose(1), choose(10)
    assert one.lr == ten.lr and ten.cost == pytest.approx(10 * one.cost) and one.cost > 0


def test_the_second_best_rate_is_another_one_than_the_chosen():
    """The best of those tried apart from the choice: a rate next to the vertex is the choice itself."""
    figures = {
        lr: [2 + 0.1 * math.log(lr / 2.2e-3) ** 2 + e for e in (-0.001, 0, 0.001)] for lr in (1e-3, 2e-3, 4e-3, 8e-3)
    }
    r = rates.choose_rate(figures)
    assert r.lr == pytest.approx(2.2e-3, rel=0.01) and r.second == 4e-3


def test_a_rate_that_lies_ten_times_as_high_as_all_below_it_has_diverged():
    figures = {1e-3: [2.04, 2.05], 2e-3: [2.01, 2.02], 4e-3: [2.0, 2.01], 8e-3: [3.0, 3.1]}
    means, _ = rates.noise(np.array([figures[lr] for lr in sorted(figures)]))
    assert np.isfinite(means[:3]).all() and math.isinf(means[3])
    figures[8e-3] = [2.2, 2.21]  # five times: steep, and no divergence
    means, _ = rates.noise(np.array([figures[lr] for lr in sorted(figures)]))
    assert np.isfinite(means).all()


def test_the_variance_of_a_few_seeds_is_drawn_towards_that_of_the_other_rates():
    """With four degrees of freedom of the median variance: three seeds that happen to agree are not certain."""
    values = np.array([[1.0, 1.2, 1.4], [2.0, 2.2, 2.4], [3.0, 3.0, 3.0]])
    _, variances = rates.noise(values)
    own = values.var(-1, ddof=1)
    assert variances == pytest.approx((2 * own + 4 * 0.04) / 6 / 3)


def test_a_vertex_beyond_the_neighbours_of_the_lowest_mean_is_not_believed():
    x = np.log([1e-3, 2e-3, 4e-3, 8e-3])
    values = np.array([2.3, 2.2, 2.1, 2.02])[:, None] + np.array([-0.001, 0, 0.001])
    chosen, convex = rates.best_rate(x, values)
    vertex, *_ = rates.quadratic(x, values)
    assert convex and vertex > x[-1] + 0.1 and chosen == x[-1]


def test_rates_far_above_the_lowest_mean_weigh_less_in_the_parabola():
    """By 1 / (variance of the mean + (half the height)^2), as numpy's least squares has it."""
    x = np.log([1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    values = np.array([2.2, 2.05, 2.0, 2.06, 2.5])[:, None] + np.array([-0.01, 0, 0.01])
    means, variances = rates.noise(values)
    height = means - means.min()
    a, b, _ = np.polyfit(x, means, 2, w=(variances + (height / 2) ** 2) ** -0.5)
    vertex, *_ = rates.quadratic(x, values)
    assert vertex == pytest.approx(-b / (2 * a), rel=1e-9)


def test_a_single_seed_decides_nothing():
    base = [2.0, 2.01, 1.99, 2.02]
    for arms in (dict(a=[1.0]), dict(a=[1.0], b=[3.0])):
        for v in protocol.judge(arms, base, 0.01).values():
            assert (v.word, v.note) == (UNDECIDED, 'too few seeds for the first look') and v.p == 1
