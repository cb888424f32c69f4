"""Stated intervals cover what they state, on synthetic runs with a known effect; scipy and direct simulation judge."""

import math

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

from lab import records, sigma, stats

SIMULATIONS = 500


def share(hits) -> float:
    return sum(hits) / len(hits)


@pytest.mark.parametrize('n', [3, 5, 10])
def test_t_intervals_cover_95_percent(n):
    rng = np.random.default_rng(n)
    found = [stats.mean(rng.normal(2.0, 0.013, n)) for _ in range(SIMULATIONS)]
    assert 0.92 <= share([not e.excludes(2.0) for e in found]) <= 0.98


@pytest.mark.parametrize('sizes', [4, 6])
def test_scaling_exponents_cover_95_percent(sizes):
    rng, covered = np.random.default_rng(sizes), []
    compute = 10.0 ** np.linspace(12, 15, sizes)
    for _ in range(SIMULATIONS):
        losses = 20 * compute**-0.07 * rng.lognormal(0, 0.01, sizes)
        covered.append(not stats.power_law(compute, losses).exponent.excludes(0.07))
    assert 0.92 <= share(covered) <= 0.98


def test_t_intervals_are_scipys():
    x = [2.065, 2.07, 2.098, 2.086, 2.079]
    e = stats.mean(x)
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(x), scipy.stats.sem(x))
    assert (e.low, e.high, e.n) == (pytest.approx(low), pytest.approx(high), 5)


def test_iso_loss_targets_are_interpolated():
    xs, losses = [0, 100, 200, 300], [4.0, 3.0, 2.0, 2.5]
    assert stats.reached(xs, losses, 2.5) == 150 and stats.reached(xs, losses, 2.0) == 200
    assert stats.reached(xs, losses, 1.9) == math.inf
    assert math.isnan(stats.reached(xs, losses, 3.5)) and math.isnan(stats.reached(xs, losses, 5.0))


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
