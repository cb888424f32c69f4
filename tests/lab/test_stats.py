"""Stated intervals cover what they state, on synthetic runs with a known effect; scipy and direct simulation judge."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from lab import records, sigma, stats

SIMULATIONS = 500


def share(hits) -> float:
    return sum(hits) / len(hits)


def pairs(n, effect, rng):
    """Two arms that share the noise of their seeds, as runs on the same data order do."""
    common = rng.normal(2.0, 0.02, n)
    return common + rng.normal(effect, 0.01, n), common


@pytest.mark.parametrize('n', [3, 5, 10])
def test_t_intervals_cover_95_percent(n):
    rng = np.random.default_rng(n)
    found = [stats.mean(rng.normal(2.0, 0.013, n)) for _ in range(SIMULATIONS)]
    assert 0.92 <= share([not e.excludes(2.0) for e in found]) <= 0.98


@pytest.mark.parametrize('effect', [0.0, -0.02])
@pytest.mark.parametrize('n', [3, 5])
def test_paired_differences_cover_the_effect_and_a_null_effect_is_rarely_called_one(n, effect):
    rng = np.random.default_rng(10 + n)
    found = [stats.paired_difference(*pairs(n, effect, rng)) for _ in range(SIMULATIONS)]
    assert 0.92 <= share([not e.excludes(effect) for e in found]) <= 0.98
    if not effect:
        assert share([e.excludes(0.0) for e in found]) <= 0.08


@pytest.mark.parametrize('n', [3, 5, 10])
def test_speedup_intervals_cover_95_percent(n):
    rng, truth, covered = np.random.default_rng(20 + n), 1.25, []
    for _ in range(SIMULATIONS):
        base = rng.lognormal(math.log(1000), 0.05, n)
        e = stats.speedup(base / truth * rng.lognormal(0, 0.03, n), base)
        covered.append(not e.excludes(truth))
    assert 0.92 <= share(covered) <= 0.98


@pytest.mark.parametrize('sizes', [4, 6])
def test_scaling_exponents_cover_95_percent(sizes):
    rng, covered = np.random.default_rng(sizes), []
    compute = 10.0 ** np.linspace(12, 15, sizes)
    for _ in range(SIMULATIONS):
        losses = 20 * compute**-0.07 * rng.lognormal(0, 0.01, sizes)
        covered.append(not stats.power_law(compute, losses).exponent.excludes(0.07))
    assert 0.92 <= share(covered) <= 0.98


def test_t_intervals_are_scipys():
    x, y = [2.065, 2.07, 2.098, 2.086, 2.079], [2.031, 2.034, 2.016, 2.035, 2.035]
    e = stats.mean(x)
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(x), scipy.stats.sem(x))
    assert (e.low, e.high, e.n) == (pytest.approx(low), pytest.approx(high), 5)
    d, ci = stats.paired_difference(y, x), scipy.stats.ttest_rel(y, x).confidence_interval(0.95)
    assert (d.low, d.high) == (pytest.approx(ci.low), pytest.approx(ci.high))


def test_bootstrap_is_wider_than_scipys_percentile_one_for_few_seeds():
    """And agrees with it for many, where both are right."""
    rng = np.random.default_rng(0)
    for n, low, high in ((5, 1.2, 3.0), (200, 0.95, 1.05)):
        x = rng.normal(size=n)
        ours = stats.bootstrap_t(x)
        theirs = scipy.stats.bootstrap((x,), np.mean, method='percentile', rng=rng).confidence_interval
        assert low < (ours.high - ours.low) / (theirs.high - theirs.low) < high


def test_seeds_needed_is_where_simulated_power_passes_80_percent():
    rng = np.random.default_rng(5)
    d = [0.02, 0.035, 0.012, 0.018, 0.03]  # half their mean is 0.0115, their std 0.0093
    n = stats.seeds_needed(d)
    std, effect = np.std(d, ddof=1), np.mean(d) / 2
    for seeds, above in ((n, True), (n - 1, False)):
        p = scipy.stats.ttest_1samp(rng.normal(effect, std, (40_000, seeds)), 0, axis=1).pvalue
        found = float(np.mean(p < 0.05))
        assert abs(found - stats.power(effect, std, seeds)) < 0.01
        assert (found > 0.79) if above else (found < 0.81)
    assert stats.seeds_needed([0.1]) is None and stats.seeds_needed([1e-6, -1e-6, 1e-7]) is None


def test_iso_loss_targets_are_interpolated_and_a_miss_has_no_speedup():
    xs, losses = [0, 100, 200, 300], [4.0, 3.0, 2.0, 2.5]
    assert stats.reached(xs, losses, 2.5) == 150 and stats.reached(xs, losses, 2.0) == 200
    assert stats.reached(xs, losses, 1.9) == math.inf
    assert math.isnan(stats.reached(xs, losses, 3.5)) and math.isnan(stats.reached(xs, losses, 5.0))
    assert stats.speedup([math.nan, 1.0], [2.0, 2.0]) is None
    assert stats.speedup([100.0, math.inf], [200.0, 200.0]) is None
    assert stats.speedup([100.0], [200.0]).value == pytest.approx(2.0)


def test_the_power_law_of_exact_points_is_found_and_needs_four_sizes():
    compute = [1e12, 1e13, 1e14, 1e15]
    fit = stats.power_law(compute, [30 * c**-0.08 for c in compute])
    assert fit.exponent.value == pytest.approx(0.08) and fit.scale == pytest.approx(30, rel=1e-6)
    assert stats.power_law(compute[:3], [3.0, 2.0, 1.0]) is None


def test_pareto_fronts_leave_out_what_is_beaten():
    points = [(10, 2.0), (20, 1.5), (15, 2.1), (20, 1.6), (30, 1.5), (40, 1.2)]
    assert stats.pareto(points) == [0, 1, 5]


def test_the_spread_of_committed_runs_is_shown(capsys):
    sigma.show(ROOT / 'results' / 'sigma')
    out = capsys.readouterr().out
    rows = [
        r['eval']['val_a'][-1]
        for r in records.read_records(ROOT / 'results' / 'sigma').values()
        if r['arm'] == 'shakespeare_250'
    ]
    assert len(rows) == 8 and f'std of val_a {np.std(rows, ddof=1):.4f}' in out


def test_ties_count_half_so_that_neither_arm_is_favoured():
    a, b = [1.0, 2.0, 2.0, 3.0], [2.0, 2.0, 3.0, 4.0]
    assert stats.mann_whitney(a, b) == stats.mann_whitney(b, a) < 1
    assert stats.mann_whitney(b, b) == 1


def test_half_of_the_mean_difference_needs_four_times_the_seeds():
    rng = np.random.default_rng(6)
    d = rng.normal(0.02, 0.03, 12)
    whole, half = (stats.seeds_needed(d, share) for share in (1.0, 0.5))
    assert 3 < half / whole < 5


def test_a_loss_between_two_runs_is_half_way_over_the_logarithm_of_the_cost():
    assert stats.same_loss([(1.0, 4.0), (100.0, 2.0)], 3.0) == pytest.approx(10)


def test_a_baseline_that_is_there_at_the_first_evaluation_leaves_the_speed_up_open_below():
    """It may have been there long before: nothing says how much slower the arm is."""
    curves = [([0, 1, 1000.0, 2000.0], [4.0, 3.0, 2.0, 1.8])] * 4
    early = [([0, 100, 200], [4.0, 1.9, 1.8])] * 4
    e = stats.faster(curves, early, 2.0)
    assert e.low == 0 and math.isnan(e.value) and math.isfinite(e.high)


def test_the_interval_of_an_exponent_has_two_degrees_of_freedom_less_than_sizes():
    compute, losses = [1e12, 1e13, 1e14, 1e15], [3.0, 2.6, 2.1, 1.9]
    fit, theirs = stats.power_law(compute, losses), scipy.stats.linregress(np.log(compute), np.log(losses))
    half = scipy.stats.t.ppf(0.975, 2) * theirs.stderr
    assert (fit.exponent.low, fit.exponent.high) == pytest.approx((-theirs.slope - half, -theirs.slope + half))


def test_the_interval_of_a_skewed_sample_reaches_further_to_its_long_side():
    """As Efron & Tibshirani's figures do (section 12.5): the long tail makes means below the truth look certain."""
    x = np.random.default_rng(0).lognormal(0, 1, 12)
    for sign in (1, -1):
        e = stats.bootstrap_t(sign * x)
        up, down = e.high - e.value, e.value - e.low
        assert (up if sign > 0 else down) > 1.5 * (down if sign > 0 else up)


def test_the_interval_of_a_speed_up_reaches_further_to_the_long_side_of_the_costs():
    """Costs to a loss: of one arm a tail of slow seeds, of the other none."""
    curve = lambda c: ([0, 1, c, 2 * c], [4.0, 3.0, 2.0, 1.8])
    tail = [curve(1000 * math.exp(x)) for x in np.random.default_rng(0).lognormal(-2, 1, 12)]
    alike = [curve(1000 * math.exp(x)) for x in np.linspace(-0.01, 0.01, 12)]
    for arm, base, longer in ((alike, tail, 1), (tail, alike, -1)):
        e = stats.faster(arm, base, 2.0)
        up, down = math.log(e.high / e.value), math.log(e.value / e.low)
        assert (up / down) ** longer > 1.5


def test_sigma_and_the_sweep_are_those_of_the_last_losses_and_a_rate_that_diverged_is_said_to(tmp_path, capsys):
    """Not of the lowest ones, and of the seeds that decide and those that choose apart."""
    lines = []
    for lr, seeds in (
        (0.01, range(1, 9)),
        (0.01, (10_001, 10_002)),
        (0.02, (10_001, 10_002)),
        (0.04, (10_001, 10_002)),
    ):
        for s in seeds:
            last = 2 + 0.01 * (s % 10) + 10 * (lr - 0.02) ** 2 + (5 if s > 10_000 else 0)
            curve = dict(
                iter=[0, 1, 2], val_loss=[4.0, 1.0, last], val_a=[4.0, 1.0, last], val_b=[4.0, 1.0, last + s**2]
            )
            state = 'diverged' if lr == 0.04 and s == 10_002 else 'finished'
            lines.append(dict(run=f'a/lr{lr}/s{s}', arm='a', size='', lr=lr, seed=s, state=state, eval=curve))
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    sigma.show(tmp_path)
    out = capsys.readouterr().out
    decided = [2.001 + 0.01 * s for s in range(1, 9)]
    assert f'a, rate 0.01, 8 seeds: val_loss {np.mean(decided):.4f}, std {np.std(decided, ddof=1):.4f}' in out
    assert '0.01: 7.0160 (0.0071), 0.02: 7.0150 (0.0071), 0.04: diverged' in out
