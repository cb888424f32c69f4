"""
The rule by which a comparison is judged, from seeds to one of five words; docs/protocol.md gives the reasons.
rates.py chooses the learning rates first.

    sigma, plan, rule        before the runs: the noise of the baseline, how many seeds, what a claim will need
    halves, figure           which half of the validation set chooses and which one is reported
    judge                    after each pair of seeds: every arm's interval, p and word
    with_rates, contradicts  what an uncertain learning rate does to a word

Lower figures are better, effects are arm minus baseline, `worth` is the smallest gain that matters. Functions take plain
numbers, a value per seed in the order of the seeds; nothing here reads a file.
"""

import bisect
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from configurator import UserError
from lab import stats
from lab.rates import Rate

ALPHA = 0.05  # of a comparison: all its arms, looks and both sides
ANNEALED = 0.11  # of the peak rate, where a run ends: min_lr is a tenth of it in nanoGPT
POWER = 0.8
FIRST, STEP = 4, 2  # seeds at the first look, and from look to look
SIGMA_SEEDS = 8  # of the baseline, before any arm is judged
WORST = 1e30  # the figure of a run that diverged, where ranks decide
MOST_SEEDS = 10**5  # seeds, which is to say none
CORRELATION = 0.3  # of the sweep's seeds, above which arms are paired
BY_WORTH, BETTER, NO_GAIN, WORSE, UNDECIDED = WORDS = (
    'better by worth', 'better', 'no gain that matters', 'worse', 'undecided',
)  # fmt: skip


# -----------------------------------------------------------------------------
# before the runs


def sigma(values) -> stats.Estimate:
    """Standard deviation over the baseline's seeds, with its chi-square interval."""
    n = len(values)
    if n < SIGMA_SEEDS:
        raise UserError(f'sigma from {n} seeds of the baseline: the noise is known from {SIGMA_SEEDS} on; add seeds')
    s, chi2 = float(np.std(values, ddof=1)), stats.scipy_stats().chi2
    low, high = (s * math.sqrt((n - 1) / chi2.ppf(q, n - 1)) for q in ((1 + stats.LEVEL) / 2, (1 - stats.LEVEL) / 2))
    return stats.Estimate(s, low, high, n)


def looks_to(n: int) -> tuple:
    """Seeds per arm at each look, the last one n."""
    return (*range(FIRST, n, STEP), n)


def fractions(looks: tuple, base_seeds: int = SIGMA_SEEDS) -> tuple:
    """Information at each look over that at the last one; the baseline has base_seeds from the start (1: paired)."""
    information = [1 / (1 / n + 1 / max(n, base_seeds)) for n in looks]
    return tuple(i / information[-1] for i in information)


def cautious(df, smaller: int):
    """Degrees of freedom between Welch's and those of the smaller sample alone (their harmonic mean): with four seeds
    of an arm that is three times as noisy as the baseline, Welch's let 7% pass for 5%."""
    return 2 / (1 / df + 1 / (smaller - 1))


def needs(n: int, p: float) -> float:
    """The difference, in sigma, from which on the test of n seeds an arm falls below p."""
    m = max(n, SIGMA_SEEDS)
    return float(stats.scipy_stats().t.isf(p / 2, cautious(n + m - 2, n))) * math.sqrt(1 / n + 1 / m)


def detects(n: int, p: float) -> float:
    """The true difference, in sigma, that this test finds with a probability of POWER (noncentral t, by bisection)."""
    s, m = stats.scipy_stats(), max(n, SIGMA_SEEDS)
    se = math.sqrt(1 / n + 1 / m)
    critical = needs(n, p) / se
    low, high = 0.0, 4 * critical + 8
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if s.nct.sf(critical, n + m - 2, middle) >= POWER else (middle, high)
    return high * se


def plan(sigma: float, worth: float, arms: int, most: int = 100) -> tuple | None:
    """Looks up to the seeds per arm with which a gain of `worth` is found with 80% although `arms` arms are tested.
    None: more than `most` seeds, so `worth` or the noise has to be mended before the runs."""

    def enough(n):
        looks = looks_to(n)
        return detects(n, stats.bounds(fractions(looks), (ALPHA / arms,))[-1, 0]) * sigma <= worth

    sizes = range(FIRST, most + 1, STEP)
    i = bisect.bisect_left(sizes, True, key=enough)
    return looks_to(sizes[i]) if i < len(sizes) else None


def rule(sigma: float, worth: float, arms: int, looks: tuple) -> str:
    """What a claim will need, in words, to be printed before the runs."""
    nominal = stats.bounds(fractions(looks), (ALPHA / arms,))[:, 0]
    lines = [
        f'sigma {sigma:.4g}, worth {worth:g} ({worth / sigma:.2f} sigma), {arms} arm{"s" * (arms != 1)} against the baseline,'
        f' error rate {ALPHA:.0%} for all of them and all looks together',
        'seeds   a claim needs p <   and a difference of     finds with 80% one of',
    ]
    for n, p in zip(looks, nominal):
        need, found = needs(n, p), detects(n, p)
        lines.append(
            f'{n:5}   {p:16.2g}   {need:5.2f} sigma = {need * sigma:<8.4g}  {found:5.2f} sigma = {found * sigma:.4g}'
        )
    lines.append(
        'This is for unpaired arms. One whose sweep follows that of the baseline seed by seed is paired, and may need far less'
    )
    return '\n'.join(lines)


# -----------------------------------------------------------------------------
# halves of the validation set


def halves(evaluations: dict, metric: str = 'val_loss') -> tuple[str, str]:
    """(key that chooses rates and evaluations, key that is reported) of a record's evaluations; both the metric itself
    where its halves were not logged. An error has its test set as the second one (toys/mnist.py)."""
    pair = dict(val_loss=('val_a', 'val_b'), val_error=('val_error', 'test_error')).get(metric, (metric, metric))
    return pair if set(pair) <= set(evaluations) else (metric, metric)


def figure(evaluations: dict, chooses: str, reports: str, at: str = 'last') -> float:
    """A run's figure: `reports` at the last evaluation, or at the one where `chooses` is lowest."""
    values = evaluations[reports]
    return values[-1] if at == 'last' else values[int(np.argmin(evaluations[chooses]))]


# -----------------------------------------------------------------------------
# after the runs


def correlation(arm: dict, base: dict) -> float | None:
    """Mean correlation of the seeds of two sweeps {rate: {seed: figure}} over the rates they share; None where there are
    too few: fewer than four degrees of freedom say nothing."""
    found, df = [], []
    for lr in arm.keys() & base.keys():
        seeds = sorted(arm[lr].keys() & base[lr].keys())
        a, b = ([y[lr][s] for s in seeds] for y in (arm, base))
        if len(seeds) > 2 and np.isfinite([*a, *b]).all() and np.std(a) and np.std(b):
            found.append(float(np.corrcoef(a, b)[0, 1]))
            df.append(len(seeds) - 1)
    return float(np.average(found, weights=df)) if sum(df) >= 4 else None


def t_test(arm, base, center: str = 'mean', pairs: bool = False):
    """(effect, standard error, degrees of freedom) of a t test, arms (..., seeds); center = 'log': of the logarithms."""
    a, b = np.asarray(arm, float), np.asarray(base, float)
    if center == 'log':
        if a.min() <= 0 or b.min() <= 0:
            raise UserError("center = 'log': needs figures above 0; center = 'median' takes any")
        a, b = np.log(a), np.log(b)
    if pairs:
        return stats.paired(a, b)
    effect, se, df = stats.welch(a, b)
    return effect, se, cautious(df, min(a.shape[-1], b.shape[-1]))


def p_value(arm, base, null: float = 0.0, center: str = 'mean', pairs: bool = False):
    """Two-sided p of the hypothesis that the effect is `null`."""
    if center == 'median':
        return stats.mann_whitney(arm, base, null)
    effect, se, df = t_test(arm, base, center, pairs)
    return 2 * stats.scipy_stats().t.sf(np.abs(effect - null) / se, df)


def interval(arm, base, alpha: float, center: str = 'mean', pairs: bool = False) -> stats.Estimate:
    """The effect and the values that p_value does not reject at alpha."""
    if center == 'median':
        return stats.hodges_lehmann(arm, base, 1 - alpha)
    effect, se, df = t_test(arm, base, center, pairs)
    half = stats.scipy_stats().t.isf(alpha / 2, df) * se
    return stats.Estimate(effect, effect - half, effect + half, np.shape(arm)[-1])


def word(low, high, worth: float):
    """The index in WORDS by the bounds of the interval."""
    return np.select([high < -worth, high < 0, low > 0, low > -worth], [0, 1, 3, 2], 4)


def clip(low, high, value, p_zero, p_worth, worth: float):
    """Holm's method may exclude 0 or -worth where the simultaneous interval still holds it: the interval then ends
    there, so that the word can be read off its bounds (Guilbaud 2008)."""
    tiny = np.finfo(float).tiny  # below 0 the next number is denormal, which a CPU that trains flushes to 0
    for null, p in ((0.0, p_zero), (-worth, p_worth)):
        out = p <= ALPHA
        high = np.where(out & (value < null), np.minimum(high, min(np.nextafter(null, -np.inf), null - tiny)), high)
        low = np.where(out & (value > null), np.maximum(low, max(np.nextafter(null, np.inf), null + tiny)), low)
    return low, high


@dataclass
class Verdict:
    """One arm against the baseline."""

    word: str
    value: float  # the effect; with center = 'log' in relative terms: -0.3 is 30% lower
    low: float
    high: float  # simultaneous over arms and looks
    p: float  # of no difference, adjusted for arms and looks
    n: int
    base_n: int
    how: str  # 'Welch', 'paired', 'Mann-Whitney', 'Welch of logarithms'
    more: int | None = None  # undecided: seeds to add if effect and spread stay as they are
    note: str = ''


def judge(
    arms: dict, base, worth: float, looks: tuple | None = None, center: str = 'mean', pairs: Collection = ()
) -> dict[str, Verdict]:
    """{arm: Verdict} from the figures of the deciding seeds, {arm: [...]} and those of the baseline; an arm stops taking
    seeds once its word is not 'undecided'. looks: the plan, seeds per arm at each look (None: one look at all there is).
    center: 'mean'; 'median' for errors with two humps; 'log', where worth is a share of the baseline's error. pairs: arms
    whose correlation with the baseline in the sweep exceeds CORRELATION. Everything is recomputed from the figures, so
    the verdicts do not depend on when this was called."""
    if center not in ('mean', 'median', 'log'):
        raise UserError(f"center = '{center}': must be mean, median or log")
    gain = -math.log1p(-worth) if center == 'log' else worth  # in the unit of the test
    if center == 'median':  # a run that diverged is the worst there is; ranks are never paired
        pairs, arms, base = (), {a: np.minimum(v, WORST) for a, v in arms.items()}, np.minimum(base, WORST)
    base_ok = np.isfinite(base).all()
    found, ps = {}, []
    for arm, values in arms.items():
        found[arm] = Verdict(UNDECIDED, math.nan, -math.inf, math.inf, 1.0, len(values), len(base), '')
        p_zero = p_gain = 1.0
        if base_ok and np.isfinite(values).all():
            seen = looked_at(values, base, gain, looks, ALPHA / len(arms), center, arm in pairs)
            for change, p0, p1 in seen:
                found[arm] = replace(found[arm], **change)
                p_zero, p_gain = min(p_zero, p0), min(p_gain, p1)
        ps.append((p_zero, p_gain))
    adjusted = stats.step_down(np.reshape(ps, (-1, 2)))
    left = ALPHA / max(1, int((adjusted > ALPHA).any(-1).sum()))  # of each arm that Holm's method still counts
    for (arm, v), p_zero, p_gain in zip(found.items(), *adjusted.T):
        low, high = clip(v.low, v.high, v.value, p_zero, p_gain, gain)
        which = WORDS[int(word(low, high, gain))]
        undecided = which == UNDECIDED and v.how
        more = more_seeds(v, arms[arm], base, gain, left, looks, center) if undecided else None
        value, low, high = (math.expm1(y) if center == 'log' else float(y) for y in (v.value, low, high))
        value, low, high = (math.copysign(math.inf, y) if abs(y) > WORST / 2 else y for y in (value, low, high))
        v = found[arm] = replace(v, word=which, value=value, low=low, high=high, p=float(p_zero), more=more)
        if bad := sum(not math.isfinite(y) for y in arms[arm]):
            v.word, v.note = WORSE, f'{bad} of {len(arms[arm])} seeds diverged'
        elif not v.how:
            few = 'too few seeds of the baseline' if len(arms[arm]) >= FIRST else 'too few seeds'
            v.note = f'{few} for the first look' if base_ok else 'seeds of the baseline diverged'
    return found


def looked_at(values, base, gain: float, looks: tuple | None, alpha: float, center: str, pairs: bool):
    """Yields what each look sees that an arm has the seeds for: (fields of its Verdict, p of no effect, p of an effect of -gain),
    the p's corrected for the looks. alpha: the error rate of this arm, over all looks."""
    steps, start = looks or (max(2, len(values)),), SIGMA_SEEDS if looks else len(base)
    part = fractions(steps, 1 if pairs else start)
    how = 'paired' if pairs else dict(mean='Welch', median='Mann-Whitney', log='Welch of logarithms')[center]
    for k, n in enumerate(steps):
        m = n if pairs else max(n, start)
        if len(values) < n or len(base) < m:
            return
        a, b, kind = values[:n], base[:m], dict(center=center, pairs=pairs)
        p_zero, p_gain = (float(stats.sequential_p(p_value(a, b, null, **kind), part, k)) for null in (0.0, -gain))
        e = interval(a, b, alpha if len(steps) == 1 else stats.bounds(part, (alpha,))[k, 0], **kind)
        yield dict(value=e.value, low=e.low, high=e.high, n=n, base_n=m, how=how), p_zero, p_gain


def more_seeds(v: Verdict, arm, base, worth: float, alpha: float, looks: tuple | None, center: str) -> int | None:
    """Seeds per arm to add until the interval of error rate alpha excludes 0 or -worth, whichever lies further from the
    effect: if effect and spreads stay as they are. Seeds of an arm do not shrink the baseline's share of the noise before
    they outnumber the baseline's, and later looks have lower bounds. A comparison without looks goes on with looks. None
    where there is no such number."""
    t, further, pairs = stats.scipy_stats().t, max(abs(v.value), abs(v.value + worth)), v.how == 'paired'
    step, steps = STEP if looks else 1, looks or looks_to(max(v.n, SIGMA_SEEDS))
    levels = stats.bounds(fractions(steps, 1 if pairs else SIGMA_SEEDS), (alpha,))[:, 0]
    a, b = (np.asarray(y[:n], float) for y, n in ((arm, v.n), (base, v.base_n)))
    a, b = (np.log(a), np.log(b)) if center == 'log' else (a, b)
    noise = (np.var(a - b, ddof=1), 0.0) if pairs else (np.var(a, ddof=1), np.var(b, ddof=1))
    ranks = max(v.high - v.value, v.value - v.low) / t.isf(alpha / 2, np.inf) / math.sqrt(1 / v.n + 1 / v.base_n)

    def enough(n):
        m, level = n if pairs else max(n, v.base_n), levels[min(bisect.bisect_left(steps, n), len(steps) - 1)]
        if center == 'median':  # with the root of the information
            return ranks * t.isf(level / 2, np.inf) * math.sqrt(1 / n + 1 / m) < further
        own, other = noise[0] / n, noise[1] / m
        df = n - 1 if pairs or not own + other else (own + other) ** 2 / (own**2 / (n - 1) + other**2 / (m - 1))
        return t.isf(level / 2, df if pairs else cautious(df, min(n, m))) * math.sqrt(own + other) < further

    seeds = range(v.n + step, MOST_SEEDS, step)
    i = bisect.bisect_left(seeds, True, key=enough) if v.n > 1 else len(seeds)
    return seeds[i] - v.n if i < len(seeds) else None


def contradicts(chosen, second) -> bool:
    """Do the deciding seeds say that the second best rate is better after all? The choice stays with the sweep, so that
    no figure is judged by the seeds that chose it; a verdict on such a rate waits for more sweep seeds."""
    if min(len(chosen), len(second)) < 2 or not np.isfinite([*chosen, *second]).all():
        return False
    return interval(second, chosen, ALPHA).high < 0


def with_rates(v: Verdict, arm: Rate | None, base: Rate | None, check: bool = False) -> Verdict:
    """A verdict stays undecided while the loser's best rate may lie beyond the rates tried, or while the deciding seeds
    contradict the choice of a rate (check)."""
    loser, name = (base, 'the baseline') if v.word in (BY_WORTH, BETTER) else (arm, 'the arm')
    if v.word != UNDECIDED and loser and loser.edge in ('low', 'high'):
        return replace(v, word=UNDECIDED, note=f'{name} has its best rate at the {loser.edge} end of those tried')
    if v.word != UNDECIDED and check:
        return replace(v, word=UNDECIDED, note='the second best rate did better on the deciding seeds; add sweep seeds')
    return v
