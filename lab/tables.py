"""
From the records of a comparison to its figures, verdicts and tables.
"""

import math
import statistics
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from configurator import UserError
from files import read_json, read_lines
from lab import stats
from lab.records import SWEEP, cell_name, read_records, references

FIGURES = ('ppl_token', 'ppl', 'acc', 'acc_norm', 'nats_per_token')  # of evaluate.py, that tables show
COMPARISON = {'arms': {str: str}, 'claim': str, 'metric': str, 'at': {'last', 'best'}, 'worth': float, 'command': str, 'match': {'params', 'flops', 'tokens', 'time'}, 'mismatch': {str: str}, 'note?': str, 'sizes?': ({str: str}, None), 'target?': (float, None), 'steps?': ({str: str}, None), 'horizons?': (list, dict, None)}  # fmt: skip
TIMES = {'ms': float, 'arm?': str, 'cell?': (str, None), 'cells?': ([str], None)}
AXES = dict(iter='steps', tokens='tokens', flops='FLOPs', seconds='seconds')

# -----------------------------------------------------------------------------
# from records to figures


def value(r: dict, metric: str, at: str) -> float:
    """The figure of a run: its metric at the last evaluation, or at the best one; inf if it diverged."""
    if r['state'] == 'diverged':
        return math.inf
    if metric not in r['eval']:
        raise UserError(f"metric = '{metric}': the evaluations have {', '.join(k for k in r['eval'] if k != 'iter')}")
    return r['eval'][metric][-1] if at == 'last' else min(r['eval'][metric])


def choose(records: list[dict], metric: str, at: str):
    """(best learning rate, whether it is the lowest or highest tried, {rate: mean figure}) of one arm's sweep, or of
    all its runs if there was none. None if there is nothing yet."""
    rates, sweep = {}, [r for r in records if r['seed'] > SWEEP]
    for r in sweep or records:
        rates.setdefault(r['lr'], []).append(value(r, metric, at))
    if not rates:
        return None
    means = {lr: statistics.mean(v) for lr, v in sorted(rates.items())}
    best = min(means, key=means.get)
    return best, len(means) > 1 and best in (min(means), max(means)), means


@dataclass
class Cell:
    """One arm at one size: what its runs say."""

    arm: str
    size: str
    lr: float
    edge: bool
    rates: dict  # learning rate: mean figure of the sweep
    runs: dict  # seed: record
    values: dict  # seed: figure
    ms: float | None  # per step
    ms_alone: bool  # measured by bench.py; else by the runs themselves, which share the machine
    mean: stats.Estimate
    params: int
    collapsed: int
    cost: dict  # axis of AXES or 'params': what the run to its end costs
    diff: stats.Estimate | None = None  # paired, against the first arm
    needed: int | None = None  # seeds that would resolve half of diff
    target: float | None = None
    faster: dict = field(default_factory=dict)  # axis: Estimate of the speed-up to target, or None
    free: dict = field(default_factory=dict)  # the same, without what the arm starts from
    legs: dict = field(default_factory=dict)  # seed: records of what its run starts from
    before: dict = field(default_factory=dict)  # (seed, axis): what those cost
    growing: dict = field(default_factory=dict)  # (seed, axis): what growing itself cost
    saved: float | None = None  # share of the FLOPs of a run of the baseline that ends at the same loss
    tasks: dict = field(default_factory=dict)  # (task, figure): Estimate

    @property
    def name(self):
        return cell_name(self.arm, self.size)

    def facts(self, key):
        return list(dict.fromkeys(str(r['facts'].get(key)) for r in self.runs.values()))

    def at(self, r: dict, axis: str) -> list[float]:
        """The evaluations of a run along an axis; FLOPs and seconds of what it starts from come before them."""
        before = self.before.get((r['seed'], axis), 0) + self.growing.get((r['seed'], axis), 0)
        return [before + x for x in self.own(r, axis)]

    def own(self, r: dict, axis: str) -> list[float]:
        if axis in r['eval'] and not (axis == 'seconds' and self.ms_alone):
            return r['eval'][axis]
        return [i * per_iter(r['facts'], self.ms, axis) for i in r['eval']['iter']]

    def reaches(self, seed: int, axis: str, metric: str, free: bool = False) -> float:
        """The cost of the run of a seed when it reaches the target; inf and nan as in stats.reached. free: without the cost
        of what it starts from."""
        r = self.runs[seed]
        before = 0 if free else self.before.get((seed, axis), 0)
        cost = (
            stats.reached(self.own(r, axis), r['eval'][metric], self.target) if r['state'] == 'finished' else math.inf
        )
        return before + self.growing.get((seed, axis), 0) + cost


def per_iter(facts: dict, ms: float | None, axis: str) -> float:
    if axis == 'flops':
        return facts['tokens_per_iter'] * facts['flops_per_token'] + facts['processes'] * facts['flops_per_update']
    return dict(iter=1, tokens=facts['tokens_per_iter'], seconds=(ms or 0) / 1000)[axis]


def cells(c: dict, records: dict, bench: list[dict]) -> list[Cell]:
    """All arms and sizes of comparison c that have runs to judge, in order; the first arm is the baseline."""
    found = []
    arms, sizes = list(c['arms']), list(c.get('sizes') or ())
    known = {(r['arm'], r['size']): None for r in records.values() if r['arm'] in arms}
    order = lambda k: (
        sizes.index(k[1]) if k[1] in sizes else 0,
        arms.index(k[0]),
        -(float(k[1][1:]) if k[1] and not sizes else 1),
    )
    for arm, size in sorted(known, key=order):
        mine = [r for r in records.values() if (r['arm'], r['size']) == (arm, size)]
        chosen = choose(mine, c['metric'], c['at'])
        runs = {r['seed']: r for r in mine if chosen and r['lr'] == chosen[0] and r['seed'] <= SWEEP}
        if runs and (size in sizes if sizes else c.get('horizons') or not size):
            found.append(cell(c, arm, size, chosen, dict(sorted(runs.items())), bench, records))
    base = {x.size: x for x in found if x.arm == arms[0]}
    longest = next(iter(base.values()), None)  # with horizons all are timed to what it ends with
    for x in found:
        rivals = [longest] if c.get('horizons') and longest else [y for y in found if y.size == x.size]
        finite = [v for y in rivals for v in y.values.values() if math.isfinite(v)]
        x.target = c.get('target') or max(finite, default=None)
    for x in found:
        if x.size in base and x is not base[x.size]:
            against(x, base[x.size])
        rival = longest if c.get('horizons') else base.get(x.size)
        if rival and x is not rival:
            speed(x, rival, c['metric'])
        if c.get('horizons'):
            x.saved = saved(x, list(base.values()))
    return found


def cell(c, arm, size, chosen, runs, bench, records) -> Cell:
    lr, edge, rates = chosen
    values = {s: value(r, c['metric'], c['at']) for s, r in runs.items()}
    first = next(iter(runs.values()))
    alone = {cell: b['ms'] for b in bench for cell in b.get('cells') or [b.get('cell') or b['arm']]}
    timed = lambda r: alone.get(cell_name(r['arm'], r['size']), alone.get(c['arms'].get(r['arm'])))
    logged = [r['ms'] for r in runs.values() if r['ms']]
    legs = {s: origins(c, records, r) for s, r in runs.items()}
    ms = timed(first) or (statistics.median(logged) if logged else None)
    ms_alone = all(timed(r) for r in (first, *legs[first['seed']]) if 'ms' in r)
    params, collapsed = first['facts']['params'], first['facts']['params_collapsed']
    good = [v for v in values.values() if math.isfinite(v)]
    mean = stats.mean(good) if len(good) == len(values) else stats.Estimate(math.inf, math.nan, math.nan, len(values))
    x = Cell(arm, size, lr, edge, rates, runs, values, ms, ms_alone, mean, params, collapsed, dict(params=params))
    x.legs = legs
    for s, r in runs.items():
        past = [spent(leg, timed(leg), flops_before(c, records, leg)) for leg in legs[s]]
        for axis in ('flops', 'seconds'):
            x.before[s, axis] = sum(p[axis] for p in past)
            x.growing[s, axis] = grown(r, axis, x.before[s, axis])
    whole = next((r for r in runs.values() if r['state'] == 'finished'), None)
    for axis in AXES:
        x.cost[axis] = x.at(whole, axis)[-1] + x.own(whole, axis)[-1] * (allowed(whole) - 1) if whole else 0
    measured = [r for r in records.values() if (r['arm'], r['size'], r['lr']) == (f'tasks/{arm}', size, lr)]
    names = {(t, f): None for r in measured for t, got in r['tasks'].items() for f in got['figures'] if f in FIGURES}
    for t, f in names:
        x.tasks[t, f] = stats.mean([r['tasks'][t]['figures'][f] for r in measured if t in r['tasks']])
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
        all_of_it = [q for q in records.values() if q['arm'] == arm]
        lr = None if '/' in arm else choose(all_of_it, c['metric'], c['at'])[0]
        q = next((q for q in same if q['lr'] == lr), same[-1])
        found += [o for o in (*origins(c, records, q), q) if o not in found]
    return found


def flops_before(c: dict, records: dict, r: dict) -> float:
    return sum(spent(q, None, flops_before(c, records, q))['flops'] for q in origins(c, records, r))


def spent(r: dict, ms: float | None, before: float) -> dict:
    """{flops, seconds} of a preparing step, without the FLOPs of steps before it. Seconds are as timed alone by bench.py
    if it was, else as logged."""
    if 'eval' not in r:
        return dict(flops=r['facts']['flops'], seconds=r['facts'].get('seconds', 0))
    iters, logged = r['eval']['iter'][-1], r['eval'].get('seconds', [0])[-1]
    return dict(
        flops=iters * per_iter(r['facts'], None, 'flops') + grown(r, 'flops', before),
        seconds=(iters * ms / 1000 if ms else logged) + grown(r, 'seconds', 0),
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


def against(x: Cell, base: Cell):
    """Fill in x's difference to the baseline, over the seeds both have."""
    pairs = [(x.values[s], base.values[s]) for s in x.values if s in base.values]
    if not pairs or not all(math.isfinite(v) for p in pairs for v in p):
        return
    x.diff = stats.paired_difference(*zip(*pairs))
    x.needed = stats.seeds_needed([u - v for u, v in pairs])


def speed(x: Cell, base: Cell, metric: str):
    """Fill in how many times sooner x reaches the target than the baseline, over the seeds both have."""
    seeds = [s for s in x.values if s in base.values]
    for axis in ('iter', 'flops', 'seconds'):
        if axis == 'seconds' and x.ms_alone != base.ms_alone:
            continue  # one was timed alone, the other beside other runs
        costs = lambda y, free, axis=axis: [y.reaches(s, axis, metric, free) for s in seeds]
        x.faster[axis] = stats.speedup(costs(x, False), costs(base, False))
        x.free[axis] = stats.speedup(costs(x, True), costs(base, True))


def verdict(x: Cell, base: Cell, worth: float) -> tuple[str, str]:
    """(confirmed, not confirmed or open; why) of the claim that x has the lower figure. A gain of `worth` is the
    smallest that would matter: where the interval excludes it, the claim is not confirmed."""
    if any(not math.isfinite(v) for v in x.values.values()):
        return 'not confirmed', f'{sum(not math.isfinite(v) for v in x.values.values())} of {x.mean.n} seeds diverged'
    if x.diff is None or x.diff.n < 2:
        return 'open', 'fewer than two pairs of seeds'
    if x.diff.high < 0:
        return ('open', f'{base.name} has its best rate on the edge') if base.edge else ('confirmed', '')
    if x.diff.low > -worth:
        return ('open', f'{x.name} has its best rate on the edge') if x.edge else ('not confirmed', '')
    return 'open', 'the interval holds both 0 and a gain that matters'


def mismatch(x: Cell, base: Cell, axis: str) -> float:
    key = dict(params='params', flops='flops', tokens='tokens', time='seconds')[axis]
    return x.cost[key] / base.cost[key] - 1 if base.cost[key] else 0.0


def scaling(c: dict, found: list[Cell]) -> dict:
    """{arm: (computes, losses, PowerLaw)} for the arms with at least four sizes."""
    fits = {}
    for arm in c['arms']:
        mine = [x for x in found if x.arm == arm and math.isfinite(x.mean.value)]
        compute, losses = [x.cost['flops'] for x in mine], [x.mean.value for x in mine]
        if law := stats.power_law(compute, losses):
            fits[arm] = (compute, losses, law)
    return fits


def curve(c: dict, x: Cell, axis: str) -> dict:
    """Mean over seeds and 95% band of the metric along an axis, without the evaluation before training, as far as all
    seeds go."""
    runs = [r for r in x.runs.values() if r['state'] == 'finished']
    points = dict(x=[], mean=[], low=[], high=[])
    evals = min((len(r['eval']['iter']) for r in runs), default=0)
    for i in range(evals):
        if i or evals == 1:
            e = stats.mean([r['eval'][c['metric']][i] for r in runs])
            points['x'].append(statistics.mean(x.at(r, axis)[i] for r in runs))
            points['mean'].append(e.value)
            points['low'].append(e.value if math.isnan(e.low) else e.low)
            points['high'].append(e.value if math.isnan(e.high) else e.high)
    return points


# -----------------------------------------------------------------------------
# words


def times(e: stats.Estimate | None) -> str:
    return e.format('.2f') if e else '-'


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in lines)


def table(c: dict, found: list[Cell]) -> str:
    """The whole comparison in Markdown."""
    base = found[0]
    rows, notes = [], []
    for x in found:
        mine = next(y for y in found if y.size == x.size)
        rate = f'{x.lr:g}' + (f' of {len(x.rates)}' if len(x.rates) > 1 else '') + (', **edge**' if x.edge else '')
        off = mismatch(x, mine, c['match'])
        rows.append(
            [
                x.name,
                str(len(x.values)),
                rate,
                'diverged' if math.isinf(x.mean.value) else str(x.mean),
                'baseline' if x is mine else str(x.diff) if x.diff else '-',
                '' if x is mine else str(x.needed or '-'),
                *('' if x is mine else times(x.faster.get(a)) for a in ('iter', 'flops', 'seconds')),
                f'{x.params:,}' + (f' ({x.collapsed:,})' if x.collapsed != x.params else ''),
                f'{x.cost["flops"]:.3g}',
                '-' if x.ms is None else f'{x.ms:.3g}' + ('' if x.ms_alone else '*'),
                '' if x is mine else f'{off:+.1%}',
            ]
        )
        if abs(off) > 0.01:
            notes.append(f'{x.name} is not matched in {c["match"]}: {c["mismatch"].get(x.arm, "no reason given")}')
    head = [
        'arm', 'n', 'learning rate', f'{c["metric"]} ({c["at"]})', f'minus {base.arm}', 'seeds for half of it',
        'faster in steps', 'in FLOPs', 'in seconds', 'parameters (collapsed)', 'FLOPs', 'ms/step', c['match'],
    ]  # fmt: skip
    if any(x.ms and not x.ms_alone for x in found):
        notes.append('ms/step with * is from the logs of the runs, which may have shared the machine')
    if targets := [
        f'{x.target:.4f}' + (f' ({x.size})' if x.size else '') for x in found if x.target and x.diff is None
    ]:
        notes.append(f'faster: how many times sooner {c["metric"]} = {", ".join(dict.fromkeys(targets))} is reached')
    notes.append(f'[a, b]: 95% intervals over seeds, each for itself; last column: {c["match"]}, which was matched')
    if any('max_iters' in r['facts'] for x in found for r in x.runs.values()):
        ends = {x.name: [r['eval']['iter'][-1] for r in x.runs.values() if r['state'] == 'finished'] for x in found}
        ends = ', '.join(f'{name} {min(e):,} to {max(e):,}' for name, e in ends.items() if e)
        notes.append(
            f'matched, and in the column FLOPs, is what a run may use; patience ended them at iteration: {ends}'
        )
    notes += rates_tried(c, found)
    for arm, (_, _, law) in scaling(c, found).items():
        notes.append(
            f'{arm}: {c["metric"]} = {law.scale:.4g} * FLOPs^-b with b = {law.exponent.format(".4f")} over {law.sizes} sizes'
        )
    return markdown(head, rows) + '\n\n' + '\n'.join(f'- {n}' for n in notes) + '\n'


def rates_tried(c: dict, found: list[Cell]) -> list[str]:
    figures = lambda x: ', '.join(f'{lr:g}: {v:.4f}' for lr, v in x.rates.items())
    return [f'{x.name}, rate: {c["metric"]} {figures(x)}' for x in found if len(x.rates) > 1]


def summary(name: str, c: dict, found: list[Cell]) -> list[list[str]]:
    """The rows of RESULTS.md: claim, figure, seeds, verdict, hardware, commit, command."""
    rows = []
    for x in found:
        base = next(y for y in found if y.size == x.size)
        if x is base:
            continue
        word, why = verdict(x, base, c['worth'])
        if x.diff is None:
            figure = 'diverged' if math.isinf(x.mean.value) else '-'
        else:
            figure = f'{c["metric"]} {x.diff.format("+.4f")} ({x.mean.value:.4f} against {base.mean.value:.4f})'
        both = [*dict.fromkeys(base.facts('commit') + x.facts('commit'))]
        rows.append(
            [
                c['claim'].replace('{arm}', x.name).replace('{baseline}', base.name),
                figure,
                str(x.diff.n if x.diff else len(x.values)),
                f'**{word}**' + (f' ({why})' if why else ''),
                ', '.join(dict.fromkeys(base.facts('device') + x.facts('device'))),
                ', '.join(k[:7] for k in both),
                f'`{c["command"]}`',
            ]
        )
    return rows


def load(folder: Path) -> tuple[dict, list[Cell]]:
    """A comparison and its cells (none without a finished run) from its folder."""
    c = read_json(folder / 'comparison.json', COMPARISON)
    texts = c['arms'] | (c.get('steps') or {})
    try:
        TopologicalSorter({name: references(text) for name, text in texts.items()}).prepare()
    except CycleError as e:
        raise UserError(
            f'{folder / "comparison.json"}: arms or steps start from each other: {" ".join(e.args[1])}'
        ) from None
    return c, cells(c, read_records(folder), read_lines(folder / 'bench.jsonl', TIMES))
