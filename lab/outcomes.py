"""
What the runs of each arm came to: from the records of a comparison to its figures and verdicts.
"""

import functools
import math
import re
import statistics
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from configurator import UserError
from files import read_json, read_lines
from lab import protocol, stats, verdicts
from lab.protocol import Verdict
from lab.rates import Rate
from lab.records import SWEEP, ancestors, cell_name, of_comparison, references

FIGURES = ('ppl_token', 'ppl', 'acc', 'acc_norm', 'nats_per_token')  # of evaluate.py, that tables show
COMPARISON = {  # the shape (files.misfit) of comparison.json
    'arms': {str: str}, 'claim': str, 'command': str, 'metric': str, 'at': {'last', 'best'}, 'worth': float, 'seeds?': int, 'seed_offset?': int,
    'match': {'params', 'flops', 'tokens', 'time'}, 'mismatch': {str: str}, 'note?': str, 'looks?': bool,
    'center?': {'mean', 'median', 'log'}, 'sizes?': (None, {str: str}), 'steps?': (None, {str: str}),
    'learning_rates?': ([float], {str: ([float], float, str)}), 'targets?': ([float], {str: ([float], float)}),
    'horizons?': (None, [float], {str: [float]}), 'shared_steps?': bool, 'tasks?': str, 'script?': str, 'track?': str,
}  # fmt: skip
JUDGING = ('baseline', 'center', 'worth')  # what runs can be judged anew by: nothing that would choose other rates
TIMES = {'ms': float, 'arm?': str, 'cells?': ([str], None)}
HORIZON = re.compile(r'x[\d.]+(e-\d+)?')  # the size of a run of another length: xSHARE, of max_iters
AXES = dict(iter='steps', tokens='tokens', flops='FLOPs', seconds='seconds')


@dataclass
class Past:
    """What a run starts from."""

    legs: list  # records of the steps and arms, in the order in which they ran
    spent: dict  # 'flops' or 'seconds': what those cost
    growing: dict  # the same of growing itself


@dataclass
class Cell:
    """One arm at one size: what its runs say."""

    arm: str
    size: str
    rate: Rate
    runs: dict  # seed: record, of the seeds that decide
    values: dict  # seed: figure
    mean: stats.Estimate
    sigma: stats.Estimate | None  # of the baseline, from 8 seeds on
    chooses: str  # the key of the evaluations by which rates and evaluations are chosen
    reports: str  # that of the values
    ms: float | None  # per step, by bench.py
    past: dict  # seed: Past
    tasks: dict  # (task, figure): Estimate
    # cells() fills in how it compares with the first arm
    verdict: Verdict | None = None
    target: float | None = None  # the first of targets
    faster: dict = field(default_factory=dict)  # target: {axis: stats.Faster}
    faster_free: dict = field(default_factory=dict)  # the same, what both start from counted as free
    saved: float | None = None  # share of the FLOPs of a run of the baseline that ends at the same loss

    @property
    def lr(self) -> float:
        return self.rate.lr

    @property
    def rates(self) -> dict:
        """{rate of the sweep: mean figure}"""
        return self.rate.means

    @property
    def facts(self) -> dict:
        """Those of the first run."""
        return next(iter(self.runs.values()))['facts']

    @property
    def params(self) -> int:
        return self.facts['params']

    @functools.cached_property
    def cost(self) -> dict:
        """{'params' or axis of AXES: what the run to its end costs}"""
        r, found = next((r for r in self.runs.values() if r['state'] == 'finished'), None), dict(params=self.params)
        for axis in AXES:
            unused = self.own_costs(r, axis)[-1] * (allowed_over_used(r) - 1) if r else 0
            found[axis] = self.costs(r, axis)[-1] + unused if r else 0
        return found

    @property
    def timed(self) -> bool:
        """Was every step of it timed by bench.py?"""
        return not math.isnan(self.cost['seconds'])

    @property
    def name(self) -> str:
        return cell_name(self.arm, self.size)

    def before(self, seed: int, axis: str, free: bool = False) -> float:
        """What was spent before the run's first iteration. free: on growing alone."""
        past = self.past[seed]
        return past.growing.get(axis, 0) + (0 if free else past.spent.get(axis, 0))

    def costs(self, r: dict, axis: str) -> list[float]:
        """What a run has cost on an axis of AXES at each of its evaluations, what it starts from included."""
        return [self.before(r['seed'], axis) + x for x in self.own_costs(r, axis)]

    def own_costs(self, r: dict, axis: str) -> list[float]:
        """The same of the run itself."""
        return own_costs(r, self.ms, axis)

    def curve_to(self, seed: int, axis: str, free: bool = False) -> tuple[list, list]:
        """(costs, losses) of the run of a seed. free: without the cost of what it starts from."""
        r = self.runs[seed]
        # 0 is the model before training, whatever that cost
        costs = [x and self.before(seed, axis, free) + x for x in self.own_costs(r, axis)]
        losses = r['eval'][self.reports] if r['state'] == 'finished' else [math.inf] * len(costs)
        return costs, losses

    def curves(self, axis: str, free: bool = False) -> list:
        return [self.curve_to(s, axis, free) for s in self.runs]

    def reaches(self, seed: int, axis: str) -> float:
        """The cost of the run of a seed when it reaches the target; inf and nan as in stats.reached."""
        return stats.reached(*self.curve_to(seed, axis), self.target)


def own_costs(r: dict, ms: float | None, axis: str) -> list[float]:
    """What a run itself has cost on an axis of AXES at each of its evaluations: as logged; for older logs the iterations times the
    cost of one. Seconds are always the iterations times ms, bench.py's milliseconds per step; nan if it did not time the arm."""
    if axis in r['eval'] and axis != 'seconds':
        return r['eval'][axis]
    return [i * per_iter(r['facts'], ms, axis) for i in r['eval']['iter']]


def per_iter(facts: dict, ms: float | None, axis: str) -> float:
    """What an iteration costs on an axis of AXES; ms: its milliseconds, None where they were not measured."""
    if axis == 'flops':
        return facts['tokens_per_iter'] * facts['flops_per_token'] + facts['processes'] * facts['flops_per_update']
    return dict(iter=1, tokens=facts['tokens_per_iter'], seconds=math.nan if ms is None else ms / 1000)[axis]


def cells(c: dict, records: dict, bench: list[dict]) -> list[Cell]:
    """All arms and sizes of comparison c that have runs to judge, in order; the first arm is the baseline."""
    c = c | dict(halves=verdicts.halves(c, records))
    found, arms, sizes, horizons = [], list(c['arms']), list(c.get('sizes') or ()), c.get('horizons')
    known = {(r['arm'], r['size']): None for r in records.values() if r['arm'] in arms}
    shown = lambda size: size in sizes if sizes else not size or bool(horizons and HORIZON.fullmatch(size))
    for size in filter(shown, dict.fromkeys(size for _, size in known)):
        there = [arm for arm in arms if (arm, size) in known] if horizons else arms
        rates = {arm: verdicts.rate(c, records, arm, size) for arm in there}
        words = verdicts.verdicts(c, records, size, rates)
        for arm in rates:
            if x := cell(c, arm, size, rates[arm], bench, records):
                x.verdict = words.get(arm)
                found.append(x)
    if sizes:
        found.sort(key=lambda x: (sizes.index(x.size), arms.index(x.arm)))
    else:  # the longest horizon first, whose size is ''
        found.sort(key=lambda x: (arms.index(x.arm), -float(x.size[1:] or 1)))
    base = {x.size: x for x in found if x.arm == arms[0]}
    longest = next(iter(base.values()), None)  # with horizons all are timed to what it ends with
    for x in found:
        rival = longest if horizons else base.get(x.size)
        targets = targets_of(c, x, rival)
        x.target = targets[0] if targets else None
        if rival and x is not rival:
            x.faster, x.faster_free = (speed_ups(x, rival, targets, free) for free in (False, True))
        if horizons:
            x.saved = saved(x, list(base.values()))
    return found


def every_target(given) -> list:
    """What the key targets holds: figures, or {size: figures}."""
    parts = given.values() if isinstance(given, dict) else [given]
    return [t for part in parts for t in (part if isinstance(part, tuple | list) else [part])]


def targets_of(c: dict, x: Cell, longest: Cell | None) -> list[float]:
    """Those that the comparison sets; with horizons, unless it does, what the longest baseline ends with."""
    given = c.get('targets') or ()
    given = given.get(x.size, ()) if isinstance(given, dict) else given
    if not given and c.get('horizons') and longest:
        given = [v for v in (longest.mean.value,) if math.isfinite(v)]
    return list(given) if isinstance(given, tuple | list) else [given]


def cell(c, arm, size, rate, bench, records, sweep=False) -> Cell | None:
    """The cell of the runs at this rate that decide, or of those of the sweep; None without any."""
    if not rate:
        return None
    mine = [r for r in records.values() if (r['arm'], r['size'], r['lr']) == (arm, size, rate.lr)]
    runs = {r['seed']: r for r in sorted(mine, key=lambda r: r['seed']) if (r['seed'] > SWEEP) == sweep}
    if not runs:
        return None
    values = verdicts.figures(c, records, arm, size)[0 if sweep else 1][rate.lr]
    alone = {cell: b['ms'] for b in bench for cell in b.get('cells') or [b['arm']]}
    timed = lambda r: alone.get(cell_name(r['arm'], r['size']), alone.get(c['arms'].get(r['arm'])))
    figures, n = list(values.values()), len(values)
    finite = all(map(math.isfinite, figures))
    has_sigma = finite and n >= protocol.SIGMA_SEEDS and arm == next(iter(c['arms']))
    chooses, reports = verdicts.halves(c, records)
    return Cell(
        arm, size, rate, runs, values,
        mean=stats.mean(figures) if finite else stats.Estimate(math.inf, math.nan, math.nan, n),
        sigma=protocol.sigma(figures) if has_sigma else None,
        chooses=chooses,
        reports=chooses if sweep else reports,
        ms=timed(next(iter(runs.values()))),
        past={s: past_of(c, records, r, timed) for s, r in runs.items()},
        tasks=task_figures(records, arm, size, rate.lr),
    )  # fmt: skip


def past_of(c: dict, records: dict, r: dict, timed) -> Past:
    """What a run starts from, and what that cost. timed(record): bench.py's milliseconds per step."""
    legs = origins(c, records, r)
    each = [spent(leg, timed(leg), flops_before(c, records, leg)) for leg in legs]
    before = {axis: sum(cost[axis] for cost in each) for axis in ('flops', 'seconds')}
    return Past(legs, before, {axis: grown(r, axis, before[axis]) for axis in before})


def task_figures(records: dict, arm: str, size: str, lr: float) -> dict:
    """{(task, figure): its mean over the runs of an arm that were evaluated}"""
    measured = [r for r in records.values() if (r['arm'], r['size'], r['lr']) == (f'tasks/{arm}', size, lr)]
    found = {}
    for task, got in (item for r in measured for item in r['tasks'].items()):
        for k, v in got['figures'].items():
            if k in FIGURES:
                found.setdefault((task, k), []).append(v)
    return {k: stats.mean(v) for k, v in found.items()}


def origins(c: dict, records: dict, r: dict) -> list[dict]:
    """The records of the steps and arms that a run starts from, in the order in which they ran, each once."""
    return ancestors(r, lambda q: sources(c, records, q))


def sources(c: dict, records: dict, r: dict) -> list[dict]:
    """The records of those whose checkpoints a run starts from itself."""
    name, steps = r['arm'].removeprefix('steps/'), c.get('steps') or {}
    found = []
    for source in references({**c['arms'], **steps}[name]):
        arm = f'steps/{source}' if source in steps else source
        seed = 1 if c.get('shared_steps') and '/' in arm else r['seed']
        same = [q for q in records.values() if (q['arm'], q['seed']) == (arm, seed) and q['size'] in (r['size'], '')]
        if not same:
            continue  # the comparison is not done
        if verdicts.follows_rate(c, source, r['arm'], r['size']):
            lr = r['lr']
        else:
            chosen = verdicts.rate(c, records, arm, same[0]['size']) if 'eval' in same[0] else None
            lr = chosen and chosen.lr
        found.append(next((q for q in same if q['lr'] == lr), same[-1]))
    return found


def flops_before(c: dict, records: dict, r: dict) -> float:
    """FLOPs of all that a run starts from."""
    return sum(spent(q, None, flops_before(c, records, q))['flops'] for q in origins(c, records, r))


def spent(r: dict, ms: float | None, before: float) -> dict:
    """{flops, seconds} of a preparing step, without the FLOPs of steps before it. A training's seconds are bench.py's, nan
    where it did not time it; those of a command of transfer.py are as logged."""
    if 'eval' not in r:
        return dict(flops=r['facts']['flops'], seconds=r['facts'].get('seconds', 0))
    return dict(
        flops=own_costs(r, None, 'flops')[-1] + grown(r, 'flops', before),
        seconds=own_costs(r, ms, 'seconds')[-1] + grown(r, 'seconds', 0),
    )


def grown(r: dict, axis: str, before: float) -> float:
    """FLOPs or seconds of growing alone. Only learned growth (ligo) takes FLOPs. The log adds the FLOPs of all training
    before it."""
    past = r['facts'].get('transfer') or {}
    if axis == 'seconds':
        return past.get('growing', 0)
    return max(0, (past.get('flops') or 0) - before)


def saved(x: Cell, baselines: list[Cell]) -> float | None:
    """1 - FLOPs of a run, all that it starts from included, over those of a baseline run that ends at the same loss
    (stats.same_loss); the mean over seeds, None where one of them ends above or below all baseline runs."""
    shares = []
    for seed, loss in x.values.items():
        ended = [y for y in baselines if math.isfinite(y.values.get(seed, math.inf))]
        like = stats.same_loss([(y.costs(y.runs[seed], 'flops')[-1], y.values[seed]) for y in ended], loss)
        if not like:
            return None
        shares.append(1 - x.costs(x.runs[seed], 'flops')[-1] / like)
    return statistics.mean(shares)


def allowed_over_used(r: dict) -> float:
    """The iterations that a run might have used, over those that it used: above 1 if patience ended it. Arms are matched in
    what they may use."""
    return r['facts'].get('max_iters', r['eval']['iter'][-1]) / (r['eval']['iter'][-1] or 1)


def speed_ups(x: Cell, base: Cell, targets: list, free: bool) -> dict:
    """{target: {axis: how many times sooner x reaches it than the baseline}}. free: without what they start from."""
    found = {}
    for axis in ('iter', 'flops', *(['seconds'] if x.timed and base.timed else [])):
        own = x.curves(axis, free=True) + base.curves(axis, free=True)
        if all(any(cost > 0 for cost in costs) for costs, _ in own):  # else a run went nowhere
            for t in targets:
                found.setdefault(t, {})[axis] = stats.faster(x.curves(axis, free), base.curves(axis, free), t)
    return found


def mismatch(x: Cell, base: Cell, axis: str) -> float:
    """By what share the cost of x is off that of the baseline, in what the comparison matches."""
    key = 'seconds' if axis == 'time' else axis
    return x.cost[key] / base.cost[key] - 1 if base.cost[key] else 0.0


def scaling(c: dict, found: list[Cell]) -> dict:
    """{(arm, kind): (computes, losses, PowerLaw)} for the arms with at least four sizes of a kind."""
    groups = {}
    for x in found:
        if math.isfinite(x.mean.value):
            groups.setdefault((x.arm, kind((c.get('sizes') or {}).get(x.size, ''))), []).append(x)
    fits = {}
    for of, mine in groups.items():
        compute, losses = [x.cost['flops'] for x in mine], [x.mean.value for x in mine]
        if law := stats.power_law(compute, losses):
            fits[of] = (compute, losses, law)
    return fits


def kind(flags: str) -> str:
    """What the flags of a size say that is no number (--linear=btt): only sizes that differ in numbers are one model,
    larger and smaller."""
    return ' '.join(f for f in flags.split() if not re.fullmatch(r'--\w+=[-+.\deE]+', f))


def curve(x: Cell, axis: str) -> dict:
    """Mean over seeds and 95% band of the metric along an axis, without the evaluation before training, as far as all
    seeds go. Nothing along seconds that bench.py did not take."""
    runs = [r for r in x.runs.values() if r['state'] == 'finished' and (axis != 'seconds' or x.timed)]
    points = dict(x=[], mean=[], low=[], high=[])
    evals = min((len(r['eval']['iter']) for r in runs), default=0)
    for i in range(evals):
        if i or evals == 1:
            e = stats.mean([r['eval'][x.reports][i] for r in runs])
            points['x'].append(statistics.fmean(x.costs(r, axis)[i] for r in runs))
            points['mean'].append(e.value)
            points['low'].append(e.value if math.isnan(e.low) else e.low)
            points['high'].append(e.value if math.isnan(e.high) else e.high)
    return points


def judged_by(c: dict, baseline: str = '', **given) -> dict:
    """Comparison c with another arm as its baseline, which is the first, and other values of JUDGING."""
    if baseline and baseline not in c['arms']:
        raise UserError(f"baseline = '{baseline}': no such arm; there is: {', '.join(c['arms'])}")
    if given and not c['claim']:
        raise UserError(f'{", ".join(given)}: has no effect, this comparison makes no claim to judge; leave it out')
    planned, center = (v.get('center') or c.get('center') or 'mean' for v in (c, given))
    if 'worth' not in given and 'log' in (planned, center) and planned != center:
        unit = {True: "a share of the baseline's figure", False: 'a difference'}
        raise UserError(
            f"worth = {c['worth']:g}: is {unit[planned == 'log']} here, and {unit[center == 'log']} with center = '{center}';"
            ' give worth as well'
        )
    first = next(iter(c['arms']))
    if baseline and baseline != first:
        arms = {a: c['arms'][a] for a in dict.fromkeys((baseline, *c['arms']))}
        c = c | dict(arms=arms, mismatch=dict.fromkeys(arms, f'costs were planned against {first}'))
    c = c | given
    if c.get('center') == 'log' and c['worth'] >= 1:
        raise UserError(f"worth = {c['worth']:g}: with center = 'log' it is a share of the baseline's figure, below 1")
    return c


def unlike(folder: Path, given: dict) -> dict:
    """The values of JUDGING in given that are not those of the comparison in a folder. Another center may give the same worth
    another unit, so this stays."""
    c = read_json(folder / 'comparison.json', COMPARISON)
    planned = dict(baseline=next(iter(c['arms'])), center=c.get('center') or 'mean', worth=c['worth'])
    found = {key: value for key, value in given.items() if value not in ('', planned[key])}
    return {key: given[key] for key in given if key in found or key == 'worth' and 'center' in found}


def load(folder: Path, given: dict | None = None) -> tuple[dict, list[Cell]]:
    """A comparison and its cells (none without a finished run) from its folder. given: values of JUDGING in place of its own."""
    c = read_json(folder / 'comparison.json', COMPARISON)
    if given:
        c = judged_by(c, **given)
    if c.get('looks') and not 0 < c.get('seeds', 0) <= SWEEP:
        raise UserError(
            f'{folder / "comparison.json"}: damaged, seeds must be from 1 to {SWEEP}; restore it from a copy'
        )
    texts = c['arms'] | (c.get('steps') or {})
    try:
        TopologicalSorter({name: references(text) for name, text in texts.items()}).prepare()
    except CycleError as e:
        raise UserError(
            f'{folder / "comparison.json"}: arms or steps start from each other: {" ".join(e.args[1])}'
        ) from None
    return c, cells(c, of_comparison(folder, c), read_lines(folder / 'bench.jsonl', TIMES))
