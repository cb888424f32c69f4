"""
The learning rate of an arm, from its sweep alone: a parabola through the figures against the logarithm of the rate.
docs/protocol.md gives the reasons.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lab import stats

UNSTABLE = 0.001  # a rate at which seeds scatter as only one in a thousand samples of lower rates would
LEEWAY = math.log(1.1)  # no sweep tells rates within a tenth apart


@dataclass
class Rate:
    """What a sweep says about the learning rate of an arm."""

    lr: float
    edge: str  # '' inside the range tried; 'low', 'high': at its end; 'divergence', 'instability': below a rate that is
    how: str  # 'quadratic', 'lowest within one standard error' where none fits, or 'given', 'lowest mean' (verdicts.py)
    second: float | None = None  # the rate tried that is best apart from lr: it meets the deciding seeds as a check
    seeds: int = 0  # in the smallest sample of a rate
    cost: float = math.nan  # mean cost of the rate's uncertainty, in the figure's unit; nan without a quadratic
    means: dict = field(default_factory=dict)  # {rate: mean figure}, inf where a seed diverged
    parabola: tuple | None = None  # (logarithm of the rate at its vertex, curvature, figure there)


def noise(values) -> tuple:
    """(means, variances of the means) of figures (..., rates, seeds), rates ascending; nan: no such seed, inf: a run that
    diverged, and with it its rate. A run may also diverge and stay finite: a rate counts as diverged, its mean inf, if it
    lies ten times as high above the lowest mean as every lower rate and the noise. A variance of three seeds is worth
    little, so each is drawn towards the median one with the weight of four degrees of freedom."""
    n = np.sum(~np.isnan(values), -1)
    usable = np.isfinite(np.nansum(values, -1)) & (n > 0)
    safe = np.where(usable[..., None] & ~np.isnan(values), values, 0.0)
    means = safe.sum(-1) / np.maximum(n, 1)
    squares = np.where(np.isnan(values), 0.0, (safe - means[..., None]) ** 2).sum(-1)
    df = np.maximum(n - 1, 0)
    own = np.where(usable & (df > 0), squares / np.maximum(df, 1), np.nan)
    with np.errstate(all='ignore'):
        typical = np.nanmedian(own, -1, keepdims=True) if np.isfinite(own).any() else np.zeros_like(means[..., :1])
    variances = (squares + 4 * np.nan_to_num(typical)) / (df + 4)
    variances = variances / np.maximum(n, 1)
    means = np.where(usable, means, np.inf)
    with np.errstate(invalid='ignore'):  # all diverged
        height = means - means.min(-1, keepdims=True)
    highest = np.maximum.accumulate(np.where(usable, height, 0.0), -1)[..., :-1]
    cliff = (height[..., 1:] > 10 * (highest + np.sqrt(typical))) & (highest > 0)
    means[..., 1:] = np.where(np.logical_or.accumulate(cliff, -1), np.inf, means[..., 1:])
    return means, variances


def quadratic(x, values):
    """(vertex, error variance of the vertex, curvature, figure at the vertex, usable) of the parabola through figures
    against the logarithm x of the rate, by weighted least squares. x: (rates,), values: (..., rates, seeds). A parabola
    holds near the minimum only: a point's weight is 1 / (variance of its mean + (half its height above the lowest
    mean)^2)."""
    means, variances = noise(values)
    finite = np.isfinite(means)
    height = np.where(finite, means - means.min(-1, keepdims=True), 0.0)
    weights = np.where(finite, 1 / (variances + (height / 2) ** 2 + 1e-18), 0.0)
    centre = x[np.argmin(means, -1)][..., None]
    design = np.stack([np.ones_like(x - centre), x - centre, (x - centre) ** 2], -1)  # (..., rates, 3)
    normal = np.einsum('...r,...ri,...rj->...ij', weights, design, design)
    usable = finite.sum(-1) >= 3
    normal[~usable] = np.eye(3)
    right = np.einsum('...r,...ri->...i', weights * np.where(finite, means, 0.0), design)
    covariance = np.linalg.inv(normal)
    middle, b, a = np.moveaxis(np.einsum('...ij,...j->...i', covariance, right), -1, 0)
    convex = usable & (a > 0)
    a = np.where(convex, a, 1.0)
    gradient = np.stack([np.zeros_like(a), -1 / (2 * a), b / (2 * a**2)], -1)
    variance = np.einsum('...i,...ij,...j->...', gradient, covariance, gradient)
    return centre[..., 0] - b / (2 * a), variance, a, middle - b**2 / (4 * a), convex


def stable_up_to(x, values):
    """The logarithm of the highest rate below the first unstable one, inf where there is none, for figures (..., rates,
    seeds) at the ascending logarithms x. Unstable: the seeds scatter more than those of all lower rates together, by an
    F test of their variances at UNSTABLE. Some seeds get through, others meet a spike of the loss, before all diverge."""
    means, _ = noise(values)
    counts = np.isfinite(means)[..., None] & np.isfinite(values)
    safe, n = np.where(counts, values, 0.0), counts.sum(-1)
    own = np.where(counts, safe - (safe.sum(-1) / np.maximum(n, 1))[..., None], 0.0)
    squares, df = (own**2).sum(-1), np.maximum(n - 1, 0)
    lower, lower_df = (np.cumsum(v, -1) - v for v in (squares, df))
    with np.errstate(all='ignore'):
        ratio = squares / df / (lower / lower_df)
    unstable = (df > 0) & (lower_df > 0) & (stats.scipy_stats().f.sf(ratio, df, lower_df) < UNSTABLE)
    first = np.argmax(unstable, -1)  # never 0: nothing lies below the lowest rate
    return np.where(unstable.any(-1), x[first - 1], np.inf)


def best_rate(x, values):
    """(logarithm of the rate, whether a parabola gave it) for figures (..., rates, seeds) at the ascending logarithms x.
    The vertex, clipped to the neighbours of the lowest mean that did not diverge; where no parabola opens upwards, the
    lowest rate whose mean lies within one standard error of the lowest mean. Either way no rate that is more than a tenth
    above the highest stable one: a parabola is symmetric, and does not see how near an edge is."""
    means, variances = noise(values)
    finite = np.isfinite(means)
    vertex, *_, convex = quadratic(x, values)
    best = np.argmin(means, -1)[..., None]
    near = finite & (np.abs(np.arange(len(x)) - best) <= 1)
    low, high = np.where(near, x, np.inf).min(-1), np.where(near, x, -np.inf).max(-1)
    limit = np.take_along_axis(means, best, -1) + np.sqrt(np.take_along_axis(variances, best, -1))
    tie = x[np.argmax(means <= limit, -1)]  # the first that is
    chosen, stable = np.where(convex, np.clip(vertex, low, high), tie), stable_up_to(x, values)
    return np.where(chosen > stable + LEEWAY, stable, chosen), convex


def choose_rate(figures: dict) -> Rate | None:
    """The rate of an arm from the figures of its sweep alone, {rate: [a value per sweep seed]}; inf is a run that
    diverged. None if every rate diverged."""
    rates = sorted(figures)
    values = np.full((len(rates), max(len(v) for v in figures.values())), np.nan)
    for i, lr in enumerate(rates):
        values[i, : len(figures[lr])] = figures[lr]
    x, (means, _) = np.log(rates), noise(values)
    if not np.isfinite(means).any():
        return None
    chosen, convex = best_rate(x, values)
    vertex, variance, curvature, lowest, _ = quadratic(x, values)
    good = np.flatnonzero(np.isfinite(means))
    edge = ''
    if len(rates) > 1:
        ends = {x[good[0]]: 'divergence', x[good[-1]]: 'divergence', float(stable_up_to(x, values)): 'instability'}
        edge = (ends | {x[0]: 'low', x[-1]: 'high'}).get(float(chosen), '')
    step = float(np.median(np.diff(x))) if len(x) > 1 else 0.0
    others = [i for i in good if abs(x[i] - chosen) >= step / 2 and len(x) > 1]
    return Rate(
        lr=float(f'{math.exp(chosen):.3g}'),
        edge=edge,
        how='quadratic' if convex else 'lowest within one standard error',
        second=rates[min(others, key=lambda i: means[i])] if others else None,
        seeds=min(len(v) for v in figures.values()),
        cost=float(variance * curvature) if convex and not edge else math.nan,
        means={lr: float(np.mean(v)) for lr, v in figures.items()},
        parabola=(float(vertex), float(curvature), float(lowest)) if convex else None,
    )
