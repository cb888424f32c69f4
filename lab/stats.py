"""
Statistics of runs: what a handful of seeds can say, with intervals that mean what they state.

Every function takes plain lists, a value per seed; two arms are paired by position, seed by seed. Intervals are
two-sided. tests/test_stats.py simulates each of them: 95% cover the truth in 95% of cases.

    python -m lab.stats results/sigma      spread over seeds, and the rate curves, of a comparison's runs
"""

import itertools
import math
import sys
from dataclasses import dataclass

import numpy as np

from configurator import UserError, input_path, run

LEVEL = 0.95


def scipy_stats():
    """Imported where it is used: training and its logs need no scipy, only the tables drawn from them."""
    try:
        from scipy import stats
    except ImportError:
        raise UserError('the statistics need scipy; pip install scipy') from None
    return stats


@dataclass
class Estimate:
    """A value and its interval; low and high are nan where the data give none (a single seed)."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        return self.format('.4f')

    def format(self, spec: str) -> str:
        if math.isnan(self.low):
            return f'{self.value:{spec}}'
        return f'{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]'

    def excludes(self, value: float) -> bool:
        return self.high < value or value < self.low


def mean(values, level: float = LEVEL) -> Estimate:
    """Mean with Student's t-interval."""
    x = np.asarray(values, float)
    n, m = len(x), float(np.mean(x))
    if n < 2:
        return Estimate(m, math.nan, math.nan, n)
    half = scipy_stats().t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n)
    return Estimate(m, m - half, m + half, n)


def paired_difference(arm, baseline, level: float = LEVEL) -> Estimate:
    """Mean of arm - baseline over seeds with the t-interval of the differences: what both arms owe to the same data
    order and the same start cancels."""
    return mean(np.asarray(arm, float) - np.asarray(baseline, float), level)


def power(effect: float, std: float, n: int, level: float = LEVEL) -> float:
    """Probability that the t-test of n paired differences with this true mean and std finds it (noncentral t)."""
    s = scipy_stats()
    shift, critical = abs(effect) / std * math.sqrt(n), s.t.ppf((1 + level) / 2, n - 1)
    low = s.nct.cdf(-critical, n - 1, shift)  # underflows to nan where it is 0
    return float(s.nct.sf(critical, n - 1, shift) + (0 if math.isnan(low) else low))


def seeds_needed(differences, share: float = 0.5, wanted: float = 0.8, most: int = 1000) -> int | None:
    """Seeds at which a true difference of `share` times the mean of these is found with probability `wanted`, if their
    standard deviation is the true one. None: more than `most`, or a single seed, which shows no spread."""
    d = np.asarray(differences, float)
    if len(d) < 2:
        return None
    std, effect = d.std(ddof=1), share * abs(d.mean())
    if std == 0:
        return 2
    if not effect or power(effect, std, most) < wanted:
        return None
    low, high = 1, most  # power grows with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, std, middle) >= wanted else (middle, high)
    return high


def bootstrap_t(values, level: float = LEVEL, resamples: int = 4000, seed: int = 0) -> Estimate:
    """Mean with the studentized bootstrap interval (Efron & Tibshirani 1993, section 12.5): every resample's mean is
    divided by its own standard error. The percentile bootstrap of five seeds covers 84%, this one 95%. All n^n
    resamples are taken where that is feasible. Below 4 values there are too few of them: Student's t instead."""
    x = np.asarray(values, float)
    n = len(x)
    if n < 4:
        return mean(x, level)
    if n**n <= resamples:
        index = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        index = np.random.default_rng(seed).integers(n, size=(resamples, n))
    se = x.std(ddof=1) / math.sqrt(n)
    sample = x[index]
    spread = sample.std(axis=1, ddof=1) / math.sqrt(n)
    use = spread > 1e-9 * se  # the same value n times has no spread and tells nothing
    m = float(x.mean())
    if se == 0:
        return Estimate(m, m, m, n)
    t = (sample.mean(axis=1)[use] - m) / spread[use]
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(m, m - high * se, m - low * se, n)


def reached(xs, losses, target: float) -> float:
    """Where a loss curve first gets down to target, linear between evaluations; inf if it never does, nan if it does
    before the first evaluation of a trained model: no line leads there from the start."""
    for i, (x, y) in enumerate(zip(xs, losses)):
        if y <= target:
            if i == 0 or xs[i - 1] == 0:
                return math.nan
            if y == losses[i - 1]:
                return float(x)
            return xs[i - 1] + (x - xs[i - 1]) * (losses[i - 1] - target) / (losses[i - 1] - y)
    return math.inf


def speedup(arm, baseline, level: float = LEVEL) -> Estimate | None:
    """How many times sooner the arm gets to the target: geometric mean over seeds of baseline's cost / arm's cost, with
    the bootstrap interval of its logarithm. None where a seed of either never gets there, or starts there."""
    a, b = np.asarray(arm, float), np.asarray(baseline, float)
    if not len(a) or not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        return None
    e = bootstrap_t(np.log(b / a), level)
    return Estimate(*(math.exp(v) for v in (e.value, e.low, e.high)), e.n)


@dataclass
class PowerLaw:
    """loss = scale * compute^-exponent."""

    exponent: Estimate
    scale: float
    sizes: int


def power_law(compute, losses, level: float = LEVEL) -> PowerLaw | None:
    """Fit loss = scale * compute^-exponent by least squares of the logarithms. compute: one per size; losses: the mean
    over seeds of each size. The interval is the t-interval of the slope with sizes - 2 degrees of freedom, so that it
    covers the misfit of the law as well as the noise of seeds. None for fewer than four sizes."""
    if len(compute) < 4:
        return None
    s = scipy_stats()
    fit = s.linregress(np.log(compute), np.log(losses))
    half = s.t.ppf((1 + level) / 2, len(compute) - 2) * fit.stderr
    exponent = Estimate(-fit.slope, -fit.slope - half, -fit.slope + half, len(compute))
    return PowerLaw(exponent, math.exp(fit.intercept), len(compute))


def pareto(points) -> list[int]:
    """Indices of the (cost, loss) points that no other one matches in one and beats in the other, by cost."""
    front, best = [], math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return front


# -----------------------------------------------------------------------------
# what any protocol needs to know before it compares: the spread over seeds, and where the best rate lies


def std(values, level: float = LEVEL) -> Estimate:
    """Sample standard deviation of normal values with its chi-square interval."""
    x = np.asarray(values, float)
    n, s = len(x), float(x.std(ddof=1))
    low, high = scipy_stats().chi2.ppf([(1 - level) / 2, (1 + level) / 2], n - 1)
    return Estimate(s, s * math.sqrt((n - 1) / high), s * math.sqrt((n - 1) / low), n)


def best_rate(rates, losses) -> tuple[float, float] | None:
    """(rate, loss) at the lowest point of the parabola, over the logarithm of the rate, through the rate with the
    smallest mean loss and its two neighbours: further away the curve is no parabola, and runs that nearly diverge would
    decide. rates rise; losses are a mean per rate, inf where a run diverged. None where the best rate is the lowest or
    the highest, or its neighbour diverged."""
    i = int(np.argmin(losses))
    if i in (0, len(rates) - 1) or not np.isfinite(losses[i - 1 : i + 2]).all():
        return None
    a, b, c = np.polyfit(np.log(rates[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    lowest = -b / (2 * a)
    return math.exp(lowest), a * lowest**2 + b * lowest + c


def show(folder):
    """Print, for each arm and rate with at least 4 deciding seeds, mean and spread of the last losses, and for each sweep
    its curve."""
    from lab import records  # not at the top: it loads torch

    decided, swept = {}, {}
    for r in records.read_records(folder).values():
        cell = records.cell_name(r['arm'], r['size'])
        if r['seed'] > records.SWEEP:
            swept.setdefault(cell, {}).setdefault(r['lr'], []).append(
                r['eval']['val_loss'][-1] if r['state'] == 'finished' else math.inf
            )
        elif r['state'] == 'finished':
            last = [r['eval'][k][-1] for k in ('val_loss', 'val_a', 'val_b')]
            decided.setdefault((cell, r['lr']), []).append(last)
    for (cell, lr), rows in sorted(decided.items()):
        if len(rows) >= 4:
            whole, a, b = np.transpose(rows)
            print(f'{cell}, rate {lr:g}, {len(rows)} seeds: val_loss {whole.mean():.4f}, std {std(whole)}')
            halves = f'std of val_a {std(a)}, of val_b {std(b)}'
            print(f'    {halves}, correlation {np.corrcoef(a, b)[0, 1]:.3f}')
    for cell, curve in sorted(swept.items()):
        rates = sorted(curve)
        means = [float(np.mean(curve[lr])) for lr in rates]
        found = best_rate(rates, means)
        print(f'{cell}, sweep, mean (std) of {len(curve[rates[0]])} seeds')
        print('    ' + ', '.join(f'{lr:g}: {m:.4f} ({np.std(curve[lr], ddof=1):.4f})' for lr, m in zip(rates, means)))
        print('    best by a quadratic: ' + (f'{found[1]:.4f} at {found[0]:.2e}' if found else 'none in the interior'))


if __name__ == '__main__':
    run(lambda: show(input_path(sys.argv[1])))
