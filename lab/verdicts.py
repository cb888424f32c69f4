"""
What the records of a comparison say so far: the learning rate of each arm and its verdict. missing.py uses this to
find the runs that are missing, outcomes.py for the result of each arm. The rules are in rates.py and protocol.py.

In all functions c is the config of the comparison as a dict and records holds all its runs. A rate is chosen by the runs
of the sweep (seeds above SWEEP), a verdict by those of seeds 1, 2, ... at that rate. `looks = False` marks a comparison from
before the protocol: the rate of the lowest mean, and all seeds judged at once.
"""

import itertools
import math
import statistics

from configurator import UserError
from lab import protocol
from lab.rates import Rate, choose_rate
from lab.records import SWEEP, cell_name


def halves(c: dict, records: dict) -> tuple[str, str]:
    """(the figure by which rates and evaluations are chosen, the figure that is reported): losses on the two halves of the
    validation set, or the metric for both if a run did not log these. A caller may put the answer into c['halves'], since
    looking at every record takes a while."""
    if found := c.get('halves'):
        return found
    logged = [set(r['eval']) for r in records.values() if r['arm'] in c['arms'] and r.get('eval')]
    return protocol.halves(dict.fromkeys(set.intersection(*logged) if logged else ()), c['metric'])


def value(r: dict, chooses: str, reports: str, at: str) -> float:
    """The figure of a run, inf if it diverged. `reports` at the last evaluation, or where `chooses` is lowest."""
    if r['state'] == 'diverged':
        return math.inf
    for k in (chooses, reports):
        if k not in r['eval']:
            raise UserError(f"metric = '{k}': the evaluations have {', '.join(k for k in r['eval'] if k != 'iter')}")
        if not all(isinstance(v, int | float) for v in r['eval'][k]):
            raise UserError(f"metric = '{k}': is not a number in every evaluation of {r['run']}")
    return protocol.figure(r['eval'], chooses, reports, at)


def figures(c: dict, records: dict, arm: str, size: str) -> tuple[dict, dict]:
    """(sweep, deciding) of an arm, {rate: {seed: figure}} each, in ascending order."""
    chooses, reports = halves(c, records)
    sweep, deciding = {}, {}
    mine = [r for r in records.values() if (r['arm'], r['size']) == (arm, size)]
    for r in sorted(mine, key=lambda r: (r['lr'], r['seed'])):
        where, key = (sweep, chooses) if r['seed'] > SWEEP else (deciding, reports)
        where.setdefault(r['lr'], {})[r['seed']] = value(r, chooses, key, c['at'])
    return sweep, deciding


# -----------------------------------------------------------------------------
# rates


def rate(c: dict, records: dict, arm: str, size: str) -> Rate | None:
    """The rate of an arm, or of a step that trains: that of the arm named in learning_rates, the one that its sweep chooses, or
    the only one it has; None without runs. Where arms have several horizons the sweep is that of the longest."""
    given = entry_of(c, arm.removeprefix('steps/'), size)
    if c.get('looks') and isinstance(given, str):
        other, _, at = given.partition('@')
        found = rate(c, records, other, at or size)
        return found and fixed_rate(found.lr, found.edge if found.edge in ('low', 'high') else '')
    sweep, deciding = figures(c, records, arm, size)
    if not sweep and c.get('horizons'):
        others = {r['size'] for r in records.values() if r['arm'] == arm and r['seed'] > SWEEP}
        sweep = figures(c, records, arm, min(others, key=len))[0] if others else {}  # the whole length is ''
    if sweep:
        return best(sweep) if c.get('looks') else lowest_mean(sweep)
    if not deciding:
        return None
    if c.get('looks'):
        return fixed_rate(max(deciding, key=lambda lr: len(deciding[lr])))
    return lowest_mean(deciding)


def entry_of(c: dict, name: str, size: str):
    """The entry of an arm or a step in learning_rates, if that is a dict: rates, or the name of an arm; () if it has none."""
    given = c.get('learning_rates')
    return given.get(cell_name(name, size), given.get(name, ())) if isinstance(given, dict) else ()


def follows_rate(c: dict, source: str, arm: str, size: str) -> bool:
    """`arm` (an arm or a step) starts from `source`. Is there a source for each rate of `arm`, trained at that rate, instead of one
    at a rate of its own? So it is if learning_rates gives `source` the rate of `arm`, or gives both the rate of a third arm."""
    arm = arm.removeprefix('steps/')
    taken, own = (entry_of(c, x, size) for x in (source, arm))
    return isinstance(taken, str) and taken in (arm, cell_name(arm, size), own)


def fixed_rate(lr: float, edge: str = '') -> Rate:
    """A rate that no sweep of the arm chose. edge: for the rate of another arm, the end of that arm's sweep at which it lies."""
    return Rate(lr, edge, 'given')


def best(sweep: dict) -> Rate:
    """The rate of the parabola (rates.py). If every rate diverged, the lowest one, marked as the end of those tried."""
    if found := choose_rate({lr: list(v.values()) for lr, v in sweep.items()}):
        return found
    seeds, means = min(map(len, sweep.values())), dict.fromkeys(sweep, math.inf)
    return Rate(min(sweep), 'low', 'every rate diverged', seeds=seeds, means=means)


def lowest_mean(curve: dict) -> Rate:
    """How rates were chosen before the protocol."""
    means = {lr: statistics.mean(v.values()) for lr, v in curve.items()}
    lr = min(means, key=means.get)
    edge = '' if len(means) == 1 else 'low' if lr == min(means) else 'high' if lr == max(means) else ''
    return Rate(lr, edge, 'lowest mean', seeds=min(map(len, curve.values())), means=means)


# -----------------------------------------------------------------------------
# verdicts


def first_seeds(of_seed: dict) -> list[float]:
    """The figures of seeds 1, 2, ... up to the first that is missing: runs end in any order."""
    return [of_seed[s] for s in itertools.takewhile(of_seed.__contains__, itertools.count(1))]


def by_figures(c: dict, records: dict, size: str, rates: dict) -> dict:
    """{arm: protocol.Verdict} at one size by the figures alone, as if each rate were certain. rates: {arm: Rate or None} of all
    arms there, the baseline first; an arm without runs counts as one that is judged."""
    found = {arm: figures(c, records, arm, size) for arm in rates}
    at = {arm: found[arm][1].get(r.lr, {}) if r else {} for arm, r in rates.items()}
    (base, base_at), *others = at.items()
    alike = {arm: protocol.correlation(found[arm][0], found[base][0]) for arm, _ in others}
    pairs = {arm for arm, r in alike.items() if r is not None and r > protocol.CORRELATION}
    looks, center = (protocol.looks_to(c['seeds']) if c.get('looks') else None), c.get('center', 'mean')
    if looks:
        arms = {arm: first_seeds(v) for arm, v in others}
        return protocol.judge(arms, first_seeds(base_at), c['worth'], looks, center, pairs)
    pairs = {arm for arm in pairs if at[arm].keys() == base_at.keys()}
    arms = {arm: list(v.values())[: len(base_at)] for arm, v in others}
    return protocol.judge(arms, list(base_at.values()), c['worth'], None, center, pairs)


def verdicts(c: dict, records: dict, size: str, rates: dict) -> dict:
    """The verdicts of by_figures(), but undecided where a rate is not certain enough: see protocol.with_rates."""

    def contradicted(arm):
        r = rates[arm]
        if not r or r.second is None:
            return False
        deciding = figures(c, records, arm, size)[1]
        chosen, second = deciding.get(r.lr, {}), deciding.get(r.second, {})
        both = sorted(chosen.keys() & second.keys())
        return protocol.contradicts([chosen[s] for s in both], [second[s] for s in both])

    base = next(iter(rates))
    wrong = contradicted(base)
    return {
        arm: protocol.with_rates(v, rates[arm], rates[base], wrong or contradicted(arm))
        for arm, v in by_figures(c, records, size, rates).items()
    }


def next_looks(found: dict, looks: tuple, asked: set) -> dict:
    """{arm: the seeds that it needs}: as many as it was judged by if its verdict is decided, else those of the next look.
    found: the verdicts of by_figures(). Arms wait for each other at each look: by Holm's method the verdict on one depends on the
    others, and it must not depend on whose runs end first. asked: the arms that --only names, or all; others are not waited
    for."""
    seen = {arm: v.n if v.how else 0 for arm, v in found.items()}
    first = min((seen[arm] for arm in asked if found[arm].word == protocol.UNDECIDED), default=0)
    further = next((n for n in looks if n > first), looks[-1])
    waits = lambda arm, v: v.word != protocol.UNDECIDED or seen[arm] > first
    return {arm: v.n if waits(arm, v) else further for arm, v in found.items()}


def rule(c: dict, base: list, arms: int, where: str = '') -> str:
    """What is printed before the runs that decide about the arms: the noise of the baseline, and what a claim needs."""
    center, name = c.get('center', 'mean'), f'the baseline{where}'
    if not all(map(math.isfinite, base)):
        return f'{name} diverged with {sum(not math.isfinite(v) for v in base)} of {len(base)} seeds: there is no sigma'
    looks = protocol.looks_to(c['seeds'])
    steps = f'looks at {", ".join(map(str, looks))} seeds'
    if center == 'median':
        spread = statistics.median(base)
        return f'{name}: median {spread:.4g} of {len(base)} seeds; worth {c["worth"]:g}; ranks decide, {steps}'
    log = center == 'log'
    worth = -math.log1p(-c['worth']) if log else c['worth']
    if log and min(base) <= 0:
        raise UserError("center = 'log': needs figures above 0; center = 'median' takes any")
    sigma = protocol.sigma([math.log(v) for v in base] if log else base)
    lines = [f'{name}: sigma {sigma}' + (' of the logarithms' if log else '') + f' from {sigma.n} seeds; {steps}']
    if not sigma.value:
        return lines[0]
    lines.append(protocol.rule(sigma.value, worth, arms, looks))
    enough = protocol.plan(sigma.value, worth, arms)
    if enough is None:
        lines.append(
            'No number of seeds up to 100 finds a gain of `worth` with 80%: a smaller noise or a larger worth would'
        )
    elif enough[-1] > looks[-1]:
        lines.append(
            f'A gain of `worth` is found with 80% by seeds = {enough[-1]}, which this comparison does not have'
        )
    return '\n'.join(lines)
