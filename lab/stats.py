"""
Statistics of runs: what a handful of seeds can say, with intervals that mean what they state.

Every function takes plain lists, a value per seed. Intervals are two-sided. tests/lab/test_stats.py and test_protocol.py
simulate them: 95% cover the truth in 95% of cases. What the rule of a comparison needs (docs/protocol.md) takes arrays with the
seeds on the last axis.
"""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np

from configurator import UserError

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


def mean(values) -> Estimate:
    """Mean with Student's t-interval."""
    x = np.asarray(values, float)
    n, m = len(x), float(np.mean(x))
    if n < 2:
        return Estimate(m, math.nan, math.nan, n)
    half = scipy_stats().t.ppf((1 + LEVEL) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n)
    return Estimate(m, m - half, m + half, n)


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


def same_loss(ends: list[tuple[float, float]], loss: float) -> float | None:
    """The cost of a run that ends at this loss, given the (cost, last loss) of others: on a straight line over log cost
    between the two next to it. None above or below all of them."""
    for (x0, high), (x1, low) in itertools.pairwise(sorted(ends)):
        if low <= loss <= high:
            return x0 * (x1 / x0) ** ((high - loss) / (high - low) if high > low else 0)
    return None


@dataclass
class PowerLaw:
    """loss = scale * compute^-exponent."""

    exponent: Estimate  # from so many sizes
    scale: float


def power_law(compute, losses) -> PowerLaw | None:
    """Fit loss = scale * compute^-exponent by least squares of the logarithms. compute: one per size; losses: the mean
    over seeds of each size. The interval is the t-interval of the slope with sizes - 2 degrees of freedom, so that it
    covers the misfit of the law as well as the noise of seeds. None for fewer than four sizes."""
    if len(compute) < 4:
        return None
    s = scipy_stats()
    fit = s.linregress(np.log(compute), np.log(losses))
    half = s.t.ppf((1 + LEVEL) / 2, len(compute) - 2) * fit.stderr
    exponent = Estimate(-fit.slope, -fit.slope - half, -fit.slope + half, len(compute))
    return PowerLaw(exponent, math.exp(fit.intercept))


def pareto(points) -> list[int]:
    """Indices of the (cost, loss) points that no other one matches in one and beats in the other, by cost."""
    front, best = [], math.inf
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            front.append(i)
            best = points[i][1]
    return front


# -----------------------------------------------------------------------------
# two arms: t tests, ranks


def welch(arm, base):
    """(difference of the means, its standard error, degrees of freedom) of independent arms with variances of their
    own (Welch 1947; Satterthwaite's degrees of freedom). arm, base: (..., seeds), two seeds or more in each."""
    a, b = np.asarray(arm, float), np.asarray(base, float)
    u, v = (x.var(-1, ddof=1) / x.shape[-1] for x in (a, b))
    variance = np.maximum(u + v, 1e-300)  # equal values: no spread, no division by 0
    df = variance**2 / np.maximum(u**2 / (a.shape[-1] - 1) + v**2 / (b.shape[-1] - 1), 1e-300)
    smallest, largest = min(a.shape[-1], b.shape[-1]) - 1, a.shape[-1] + b.shape[-1] - 2
    return a.mean(-1) - b.mean(-1), np.sqrt(variance), np.clip(df, smallest, largest)


def paired(arm, base):
    """As welch, of arms whose seeds belong together."""
    d = np.asarray(arm, float) - np.asarray(base, float)
    n = d.shape[-1]
    return d.mean(-1), np.maximum(d.std(-1, ddof=1), 1e-150) / math.sqrt(n), np.full(d.shape[:-1], n - 1.0)


@functools.cache
def rank_null(m: int, n: int) -> np.ndarray:
    """P(U <= u), u = 0 ... m n, of the Mann-Whitney statistic of two arms from one distribution without ties, by the
    recursion of Mann & Whitney (1947)."""
    row = [np.ones(1)] * (n + 1)
    for i in range(1, m + 1):
        new = [np.ones(1)]
        for j in range(1, n + 1):
            p = np.zeros(i * j + 1)
            p[j:] += row[j] * i / (i + j)
            p[: i * (j - 1) + 1] += new[j - 1] * j / (i + j)
            new.append(p)
        row = new
    return np.cumsum(row[n])


def mann_whitney(arm, base, null: float = 0.0) -> float:
    """Two-sided exact p of the hypothesis that arm is distributed as base + null. Ties count half."""
    d = np.subtract.outer(np.asarray(arm, float), np.asarray(base, float))
    u = np.sum(d < null) + np.sum(d == null) / 2
    return min(1.0, 2 * float(rank_null(*d.shape)[math.ceil(min(u, d.size - u))]))


def hodges_lehmann(arm, base, level: float = LEVEL) -> Estimate:
    """By how much arm is shifted against base: the median of all differences of a seed of one and a seed of the other
    (Hodges & Lehmann 1963), and the interval that inverts the Mann-Whitney test; infinite where so few seeds give none."""
    d = np.sort(np.subtract.outer(np.asarray(arm, float), np.asarray(base, float)), axis=None)
    below = int(np.searchsorted(rank_null(len(arm), len(base)), (1 - level) / 2, side='right'))  # values to leave out
    low, high = (d[below - 1], d[-below]) if below else (-math.inf, math.inf)
    return Estimate(float(np.median(d)), float(low), float(high), len(arm))


# -----------------------------------------------------------------------------
# many arms, many looks


def step_down(p) -> np.ndarray:
    """p of several tests of each arm, (..., arms, tests), adjusted by the step-down method of Holm (1979). At most one test of
    an arm has a true hypothesis (an effect is not 0 and -worth at once), so each step counts the arms of which a test is left
    (Shaffer 1986). One test an arm: Holm's method itself."""
    p = np.asarray(p, float)
    arms, tests = p.shape[-2:]
    flat = p.reshape(*p.shape[:-2], arms * tests)
    order = np.argsort(flat, axis=-1)
    rank = np.argsort(order, axis=-1)
    last = rank.reshape(p.shape).max(-1)  # the step that takes an arm's last test
    left = (last[..., None, :] >= np.arange(arms * tests)[:, None]).sum(-1)
    steps = np.take_along_axis(flat, order, -1) * left
    adjusted = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    return np.take_along_axis(adjusted, rank, -1).reshape(p.shape)


def spent(alpha, fraction: float):
    """How much of a two-sided alpha may be used up when this fraction of the information is there: the function of Lan &
    DeMets (1983) that resembles Pocock's bounds. The other one of theirs, which resembles O'Brien & Fleming's, takes more
    seeds where an effect is large, and hardly fewer where there is none."""
    return np.asarray(alpha) * math.log(1 + (math.e - 1) * fraction)


@functools.cache
def bounds(fractions: tuple, alpha: tuple) -> np.ndarray:
    """The two-sided p that a test must fall below at each look, so that all looks together reject a true hypothesis with
    probability alpha. fractions: information at each look over that at the last one, ascending to 1. alpha: one or more;
    returns (looks, alphas). The statistic is a Brownian motion seen at the fractions; the density of what has crossed no
    bound is integrated from look to look (Armitage, McPherson & Rowe 1969) by Gauss-Legendre."""
    scipy_stats()
    from scipy.special import ndtr

    alpha = np.asarray(alpha, float)
    x, weight = np.polynomial.legendre.leggauss(100)
    at, mass = np.zeros((len(alpha), 1)), np.ones((len(alpha), 1))  # (k, nodes): all of it starts at 0
    nominal, before, used = [], 0.0, np.zeros(len(alpha))
    for t in fractions:
        step, now = math.sqrt(t - before), spent(alpha, t)
        low, high = np.zeros((len(alpha), 1)), np.full((len(alpha), 1), 15 * math.sqrt(t))
        for _ in range(50):
            middle = (low + high) / 2
            beyond = (mass * (ndtr((at - middle) / step) + ndtr((-middle - at) / step))).sum(1) > now - used
            low, high = np.where(beyond[:, None], middle, low), np.where(beyond[:, None], high, middle)
        edge = np.minimum(high, 8 * math.sqrt(t))  # nothing to integrate further out
        new = edge * x
        density = (mass[:, None] * np.exp(-(((new[:, :, None] - at[:, None]) / step) ** 2) / 2)).sum(2) / (
            step * math.sqrt(2 * math.pi)
        )
        at, mass, before, used = new, density * weight * edge, t, now
        nominal.append(2 * ndtr(-high[:, 0] / math.sqrt(t)))
    return np.array(nominal)


@functools.cache
def bounds_table(fractions: tuple):
    alpha = np.geomspace(1e-8, 0.99, 120)
    return alpha, bounds(fractions, tuple(alpha))


def sequential_p(p, fractions: tuple, look: int):
    """The alpha at which a p found at this look (0, 1, ...) just crosses the bound; the smallest one over the looks so
    far is the p of the whole sequence (Liu & Anderson 2008). One look: p itself."""
    if len(fractions) == 1:
        return np.asarray(p, float)
    alpha, nominal = bounds_table(fractions)
    return np.exp(np.interp(np.log(np.maximum(p, 1e-60)), np.log(nominal[look]), np.log(alpha)))


# -----------------------------------------------------------------------------
# faster to a target


@dataclass
class Faster:
    """How many times sooner the arm reaches a loss; value is nan, and the interval open on one side or both, where not
    every seed reaches it within the evaluations."""

    value: float
    low: float
    high: float
    arm: float  # share of the arm's seeds that reach it
    base: float

    def __str__(self):
        if self.low == 0 or math.isinf(self.high):
            text = f'at least {self.low:.2f}' if self.low else f'at most {self.high:.2f}'
            text = 'no bound' if self.low == 0 and math.isinf(self.high) else text
            return f"{text} (reached by {self.arm:.0%} of its seeds and {self.base:.0%} of the baseline's)"
        return f'{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]'


def faster(arm, base, target: float, resamples: int = 4000) -> Faster:
    """Speed-up of an arm to a preset loss: geometric mean of the baseline's costs over that of the arm's, with the
    studentized bootstrap of both arms' seeds on the logarithm (Efron & Tibshirani 1993, section 16.2); with fewer than
    four seeds in an arm Welch's t. arm, base: a curve (costs, losses) per seed. A seed that never gets there counts with
    the cost of its whole run, and one that is there at the first evaluation with the cost up to that: each makes the
    speed-up a bound."""
    logs, shares, open_low, open_high = [], [], False, False
    for curves, is_arm in ((arm, True), (base, False)):
        costs = [reached(xs, losses, target) for xs, losses in curves]
        never, early = [math.isinf(c) for c in costs], [math.isnan(c) for c in costs]
        firsts = [next(x for x in xs if x > 0) for xs, _ in curves]
        costs = [xs[-1] if n else f if e else c for (xs, _), c, n, e, f in zip(curves, costs, never, early, firsts)]
        logs.append(np.log(costs))
        shares.append(1 - sum(never) / len(costs))
        open_low |= any(never) if is_arm else any(early)  # the arm may be slower than counted, the baseline faster
        open_high |= any(early) if is_arm else any(never)
    a, b = logs
    value, low, high = b.mean() - a.mean(), -math.inf, math.inf
    if min(len(a), len(b)) > 1:
        _, se, df = welch(b, a)
        t = scipy_stats().t.ppf((1 - LEVEL) / 2, df)
        quantiles = (t, -t)
        if min(len(a), len(b)) > 3:
            rng = np.random.default_rng(0)
            ra, rb = (x[rng.integers(len(x), size=(resamples, len(x)))] for x in (a, b))
            d, spread, _ = welch(rb, ra)
            use = spread > 1e-9 * se
            if use.any():
                quantiles = np.quantile((d[use] - value) / spread[use], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        low, high = value - quantiles[1] * se, value - quantiles[0] * se
    low, high = -math.inf if open_low else low, math.inf if open_high else high
    value = math.nan if open_low or open_high else math.exp(value)
    return Faster(value, math.exp(low), math.exp(high), *shares)
