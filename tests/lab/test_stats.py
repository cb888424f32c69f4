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


def test_the_interval_of_a_speed_up_reaches_further_to_the_long_side_of_the_costs():
    """Costs to a loss: of one arm a tail of slow seeds, of the other none."""
    curve = lambda c: ([0, 1, c, 2 * c], [4.0, 3.0, 2.0, 1.8])
    tail = [curve(1000 * math.exp(x)) for x in np.random.default_rng(0).lognormal(-2, 1, 12)]
    alike = [curve(1000 * math.exp(x)) for x in np.linspace(-0.01, 0.01, 12)]
    for arm, base, longer in ((alike, tail, 1), (tail, alike, -1)):
        e = stats.faster(arm, base, 2.0)
        up, down = math.log(e.high / e.value), math.log(e.value / e.low)
        assert (up / down) ** longer > 1.5


def test_sigma_and_the_sweep_are_those_of_the_last_losses_and_a_rate_that_diverged_is_said_to(
    tmp_path, capsys, monkeypatch
):
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
                iter=[0, 1, 2],
                val_loss=[4.0, 1.0, last + (s > 10_000)],
                val_a=[4.0, 1.0, last],
                val_b=[4.0, 1.0, last + s**2],
            )
            state = 'diverged' if lr == 0.04 and s == 10_002 else 'finished'
            lines.append(dict(run=f'a/lr{lr}/s{s}', arm='a', size='', lr=lr, seed=s, state=state, eval=curve))
    monkeypatch.setattr(sigma.records, 'read_records', lambda folder: {r['run']: r for r in lines})
    sigma.show(tmp_path)
    out = capsys.readouterr().out
    decided = [2.001 + 0.01 * s for s in range(1, 9)]
    assert f'a, rate 0.01, 8 seeds: val_loss {np.mean(decided):.4f}, std {np.std(decided, ddof=1):.4f}' in out
    assert '0.01: 7.0160 (0.0071), 0.02: 7.0150 (0.0071), 0.04: diverged' in out
