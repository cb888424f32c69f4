"""
What the runs of each arm came to: from the records of a comparison to its figures and verdicts.
"""

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
from lab.records import SWEEP, cell_name, of_comparison, references

FIGURES = ('ppl_token', 'ppl', 'acc', 'acc_norm', 'nats_per_token')  # of evaluate.py, that tables show
COMPARISON = {  # the shape (files.misfit) of comparison.json
    'arms': {str: str}, 'claim': str, 'command': str, 'metric': str, 'at': {'last', 'best'}, 'worth': float, 'seeds?': int,
    'match': {'params', 'flops', 'tokens', 'time'}, 'mismatch': {str: str}, 'note?': str, 'looks?': bool,
    'center?': {'mean', 'median', 'log'}, 'sizes?': (None, {str: str}), 'steps?': (None, {str: str}),
    'learning_rates?': ([float], {str: ([float], float, str)}), 'targets?': ([float], {str: ([float], float)}),
    'horizons?': (None, [float], {str: [float]}), 'shared_steps?': bool, 'tasks?': str, 'script?': str, 'track?': str,
}  # fmt: skip
TIMES = {'ms': float, 'arm?': str, 'cells?': ([str], None)}
HORIZON = re.compile(r'x[\d.]+(e-\d+)?')  # the size of a run of another length: xSHARE, of max_iters
AXES = dict(iter='steps', tokens='tokens', flops='FLOPs', seconds='seconds')


@dataclass
class Cell:
    """One arm at one size: what its runs say."""

    arm: str
    size: str
    rate: Rate
    runs: dict  # seed: record, of the seeds that decide
    values: dict  # seed: figure
    ms: float | None  # per step, by bench.py
    mean: stats.Estimate
    params: int
    collapsed: int
    cost: dict  # axis of AXES or 'params': what the run to its end costs
    chooses: str  # the key of the evaluations by which rates and evaluations are chosen
    reports: str  # that of the values
    verdict: Verdict | None = None  # against the first arm
    sigma: stats.Estimate | None = None  # of the baseline, from 8 seeds on
    target: float | None = None  # the first of targets
    faster: dict = field(default_factory=dict)  # target: {axis: stats.Faster}
    free: dict = field(default_factory=dict)  # the same, without what the arm starts from
    legs: dict = field(default_factory=dict)  # seed: records of what its run starts from
    before: dict = field(default_factory=dict)  # (seed, axis): what those cost
    growing: dict = field(default_factory=dict)  # (seed, axis): what growing itself cost
    saved: float | None = None  # share of the FLOPs of a run of the baseline that ends at the same loss
    tasks: dict = field(default_factory=dict)  # (task, figure): Estimate

    @property
    def lr(self) -> float:
        return self.rate.lr

    @property
    def rates(self) -> dict:
        """{rate of the sweep: mean figure}"""
        return self.rate.means

    @property
    def timed(self) -> bool:
        """Was every step of it timed by bench.py?"""
        return not math.isnan(self.cost['seconds'])

    @property
    def name(self) -> str:
        return cell_name(self.arm, self.size)

    def facts(self, key) -> list[str]:
        """The different values that the runs have for a fact."""
        return list(dict.fromkeys(str(r['facts'].get(key)) for r in self.runs.values()))

    def at(self, r: dict, axis: str) -> list[float]:
        """What a run has cost on an axis of AXES at each of its evaluations, what it starts from included."""
        before = self.before.get((r['seed'], axis), 0) + self.growing.get((r['seed'], axis), 0)
        return [before + x for x in self.own(r, axis)]

    def own(self, r: dict, axis: str) -> list[float]:
        """The same of the run itself. Seconds are iterations times bench.py's milliseconds, nan where it did not time the arm."""
        if axis in r['eval'] and axis != 'seconds':
            return r['eval'][axis]
        return [i * per_iter(r['facts'], self.ms, axis) for i in r['eval']['iter']]

    def curve_to(self, seed: int, axis: str, free: bool = False) -> tuple[list, list]:
        """(costs, losses) of the run of a seed. free: without the cost of what it starts from."""
        r = self.runs[seed]
        before = self.growing.get((seed, axis), 0) + (0 if free else self.before.get((seed, axis), 0))
        costs = [x and before + x for x in self.own(r, axis)]  # 0 is the model before training, whatever that cost
        losses = r['eval'][self.reports] if r['state'] == 'finished' else [math.inf] * len(costs)
        return costs, losses

    def curves(self, axis: str, free: bool = False) -> list:
        return [self.curve_to(s, axis, free) for s in self.runs]

    def reaches(self, seed: int, axis: str, free: bool = False) -> float:
        """The cost of the run of a seed when it reaches the target; inf and nan as in stats.reached."""
        return stats.reached(*self.curve_to(seed, axis, free), self.target)


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
            for target in targets:
                speed(x, rival, target)
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
    first = next(iter(runs.values()))
    alone = {cell: b['ms'] for b in bench for cell in b.get('cells') or [b['arm']]}
    timed = lambda r: alone.get(cell_name(r['arm'], r['size']), alone.get(c['arms'].get(r['arm'])))
    good = [v for v in values.values() if math.isfinite(v)]
    mean = stats.mean(good) if len(good) == len(values) else stats.Estimate(math.inf, math.nan, math.nan, len(values))
    chooses, reports = verdicts.halves(c, records)
    keys = dict(chooses=chooses, reports=chooses if sweep else reports)
    params, collapsed = (first['facts'][k] for k in ('params', 'params_collapsed'))
    x = Cell(arm, size, rate, runs, values, timed(first), mean, params, collapsed, dict(params=params), **keys)
    if arm == next(iter(c['arms'])) and len(good) == len(values) >= protocol.SIGMA_SEEDS:
        x.sigma = protocol.sigma(good)
    for s, r in runs.items():
        x.legs[s] = origins(c, records, r)
        past = [spent(leg, timed(leg), flops_before(c, records, leg)) for leg in x.legs[s]]
        for axis in ('flops', 'seconds'):
            x.before[s, axis] = sum(p[axis] for p in past)
            x.growing[s, axis] = grown(r, axis, x.before[s, axis])
    whole = next((r for r in runs.values() if r['state'] == 'finished'), None)
    for axis in AXES:
        x.cost[axis] = x.at(whole, axis)[-1] + x.own(whole, axis)[-1] * (allowed(whole) - 1) if whole else 0
    measured = [r for r in records.values() if (r['arm'], r['size'], r['lr']) == (f'tasks/{arm}', size, rate.lr)]
    names = {(t, f): None for r in measured for t, got in r['tasks'].items() for f in got['figures'] if f in FIGURES}
    for t, f in names:
        there = [r['tasks'].get(t, {}).get('figures', {}) for r in measured]
        x.tasks[t, f] = stats.mean([got[f] for got in there if f in got])
    return x


def origins(c: dict, records: dict, r: dict) -> list[dict]:
    """The records of the steps and arms that a run starts from, in the order in which they ran, each once."""
    name = r['arm'].removeprefix('steps/')
    found = []
    for source in references({**c['arms'], **(c.get('steps') or {})}[name]):
        arm = f'steps/{source}' if source in (c.get('steps') or {}) else source
        seed = 1 if c.get('shared_steps') and '/' in arm else r['seed']
        same = [q for q in records.values() if (q['arm'], q['seed']) == (arm, seed) and q['size'] in (r['size'], '')]
        if not same:
            continue  # the comparison is not done
        if verdicts.at_its_rate(c, source, r['arm'], r['size']):
            lr = r['lr']
        else:
            chosen = verdicts.rate(c, records, arm, same[0]['size']) if 'eval' in same[0] else None
            lr = chosen and chosen.lr
        q = next((q for q in same if q['lr'] == lr), same[-1])
        found += [o for o in (*origins(c, records, q), q) if o not in found]
    return found


def flops_before(c: dict, records: dict, r: dict) -> float:
    """FLOPs of all that a run starts from."""
    return sum(spent(q, None, flops_before(c, records, q))['flops'] for q in origins(c, records, r))


def spent(r: dict, ms: float | None, before: float) -> dict:
    """{flops, seconds} of a preparing step, without the FLOPs of steps before it. A training's seconds are bench.py's, nan
    where it did not time it; those of a command of transfer.py are as logged."""
    if 'eval' not in r:
        return dict(flops=r['facts']['flops'], seconds=r['facts'].get('seconds', 0))
    iters = r['eval']['iter'][-1]
    return dict(
        flops=iters * per_iter(r['facts'], None, 'flops') + grown(r, 'flops', before),
        seconds=iters * per_iter(r['facts'], ms, 'seconds') + grown(r, 'seconds', 0),
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
        like = stats.same_loss([(y.at(y.runs[seed], 'flops')[-1], y.values[seed]) for y in ended], loss)
        if not like:
            return None
        shares.append(1 - x.at(x.runs[seed], 'flops')[-1] / like)
    return statistics.mean(shares)


def allowed(r: dict) -> float:
    """How many times longer a run that patience ended could have been: arms are matched in what they may use."""
    return r['facts'].get('max_iters', r['eval']['iter'][-1]) / (r['eval']['iter'][-1] or 1)


def speed(x: Cell, base: Cell, target: float):
    """Fill in how many times sooner x reaches the target than the baseline, on each axis."""
    for axis in ('iter', 'flops', *(['seconds'] if x.timed and base.timed else [])):
        own = x.curves(axis, free=True), base.curves(axis, free=True)
        if not all(any(cost > 0 for cost in costs) for curves in own for costs, _ in curves):
            continue  # a run that went nowhere
        x.faster.setdefault(target, {})[axis] = stats.faster(x.curves(axis), base.curves(axis), target)
        x.free.setdefault(target, {})[axis] = stats.faster(*own, target)


def mismatch(x: Cell, base: Cell, axis: str) -> float:
    """By what share the cost of x is off that of the baseline, in what the comparison matches."""
    key = dict(params='params', flops='flops', tokens='tokens', time='seconds')[axis]
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


def curve(c: dict, x: Cell, axis: str) -> dict:
    """Mean over seeds and 95% band of the metric along an axis, without the evaluation before training, as far as all
    seeds go. Nothing along seconds that bench.py did not take."""
    runs = [r for r in x.runs.values() if r['state'] == 'finished' and (axis != 'seconds' or x.timed)]
    points = dict(x=[], mean=[], low=[], high=[])
    evals = min((len(r['eval']['iter']) for r in runs), default=0)
    for i in range(evals):
        if i or evals == 1:
            e = stats.mean([r['eval'][x.reports][i] for r in runs])
            points['x'].append(statistics.mean(x.at(r, axis)[i] for r in runs))
            points['mean'].append(e.value)
            points['low'].append(e.value if math.isnan(e.low) else e.low)
            points['high'].append(e.value if math.isnan(e.high) else e.high)
    return points


def load(folder: Path) -> tuple[dict, list[Cell]]:
    """A comparison and its cells (none without a finished run) from its folder."""
    c = read_json(folder / 'comparison.json', COMPARISON)
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
