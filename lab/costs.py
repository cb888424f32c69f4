"""
The table of costs and measurements of arms that have preparing steps, horizons or evaluations.
"""

import math
import statistics

from lab import stats
from lab.outcomes import Cell
from lab.records import cell_name


def cost_table(c: dict, found: list[Cell]) -> str:
    """The table in columns; empty columns are left out. '' for comparisons without preparing steps, horizons or tasks."""
    if not (c.get('steps') or c.get('horizons') or c.get('tasks')):
        return ''
    base = found[0]
    rows = [*(arm_row(c, x, found) for x in found), *step_rows(c, found)]
    text = f'{base.facts.get("device")}; FLOPs and seconds with those of preparing steps, source free: without'
    if any(r.get('iters') for r in rows):
        text += f'; to {base.reports} {base.target:.4f}'
    if c.get('horizons'):
        text += '; at its loss: FLOPs saved against a run of the baseline that ends there'
        text += '' if base.timed else '; seconds: not timed alone'
    lines = [text, *columns(rows)]
    if heads := dict.fromkeys(k for x in found for k in x.tasks):
        figure = lambda x, k: x.tasks[k].format('.4f') if k in x.tasks else ''
        lines += ['', *columns([{'run': x.name} | {' '.join(k): figure(x, k) for k in heads} for x in found])]
    return '\n'.join(lines)


def arm_row(c: dict, x: Cell, found: list[Cell]) -> dict:
    """{column: text} of an arm; '' where a column says nothing of it, or the same of all arms."""
    base, seed = found[0], next(iter(x.runs))
    cuts = [leg for leg in x.past[seed].legs if 'error' in leg['facts']]
    distilled = sum(leg['facts'].get('tokens', 0) for leg in x.past[seed].legs if 'eval' not in leg)
    row = {
        'run': x.name,
        'n': str(len(x.runs)) if len(x.runs) > 1 else '',
        'parameters': f'{x.params:,}' if any(y.params != base.params for y in found) else '',
        'error': f'{cuts[-1]["facts"]["error"]:.3f}' if cuts else '',
        'at start': f'{statistics.mean(r["eval"][x.reports][0] for r in x.runs.values()):.4f}',
        c['at']: f'{x.mean.value:.4f}',
        'rate': f'{x.lr:.3g}' if len({y.lr for y in found}) > 1 else '',
        'rates tried': str(len(x.rates) or '') if any(len(y.rates) > 1 for y in found) else '',
    }
    if not c.get('horizons'):
        row['tokens'] = f'{x.cost["tokens"]:,.0f}'
        row['FLOPs in all'] = f'{x.cost["flops"]:.3g}'
        row['its own'] = f'{x.cost["flops"] - x.past[seed].spent["flops"]:.3g}'
    row['distilled on'] = f'{distilled:,}' if distilled else ''
    row['at its loss'] = f'{x.saved:.1%}' if x.saved is not None else ''
    return row | speed_columns(x, base)


def speed_columns(x: Cell, base: Cell) -> dict:
    """What x takes to the target, and the share of the baseline's cost that it saves; {} where a seed does not reach it."""

    def gain(axis: str) -> tuple:
        """(speed-up, the same without what both start from)"""
        if x is base and x.target and (axis == 'flops' or x.timed):
            return (stats.Faster(1, 1, 1, 1, 1),) * 2
        return tuple(known(by.get(x.target, {}).get(axis)) for by in (x.faster, x.faster_free))

    mean = lambda axis: statistics.mean(x.reaches(s, axis) for s in x.runs)
    if not gain('flops')[0] or not math.isfinite(mean('iter')):
        return {}
    found = {'iters': f'{mean("iter"):.0f}'}
    for axis, unit in (('flops', 'FLOPs'), ('seconds', 's')):
        whole, free = gain(axis)
        if whole:
            found |= {unit: f'{mean(axis):.3g}', f'{unit} saved': share(whole), f'{unit} source free': share(free)}
    return found


def step_rows(c: dict, found: list[Cell]) -> list[dict]:
    """{column: text} of each training that arms start from, of its first seed."""
    reports, first = found[0].reports, {}
    for leg in (leg for x in found for past in x.past.values() for leg in past.legs):
        if leg['arm'].startswith('steps/') and reports in leg.get('eval', {}):
            which = leg['arm'], leg['size'], leg['lr']
            first[which] = min(first.get(which, leg), leg, key=lambda leg: leg['seed'])
    return [
        {
            'run': cell_name(leg['arm'], leg['size']),
            'at start': f'{leg["eval"][reports][0]:.4f}',
            c['at']: f'{leg["eval"][reports][-1]:.4f}',
            'rate': f'{leg["lr"]:.3g}',
        }
        for leg in first.values()
    ]


def known(e: stats.Faster | None) -> stats.Faster | None:
    """A speed-up, if all seeds of both arms reach the target."""
    return e if e and math.isfinite(e.value) else None


def share(e: stats.Faster | None) -> str:
    """A speed-up as the share of the cost that it saves, with its interval if there are seeds enough for one."""
    if not e:
        return ''
    bounded = e.low > 0 and math.isfinite(e.high) and e.high > e.low
    return f'{1 - 1 / e.value:.1%}' + (f' [{1 - 1 / e.low:.1%}, {1 - 1 / e.high:.1%}]' if bounded else '')


def told_apart(arms: list[str]) -> list[str]:
    """The commands of arms without the flags that all of them have."""
    if len(set(arms)) == 1:
        return arms
    common = {w for w in arms[0].split() if w.startswith('--')}.intersection(*(a.split() for a in arms[1:]))
    return [' '.join(w for w in a.split() if w not in common) for a in arms]


def columns(rows: list[dict]) -> list[str]:
    """Lines of a table in columns, the first to the left; columns that hold nothing are left out."""
    heads = [h for h in dict.fromkeys(k for r in rows for k in r) if any(r.get(h) for r in rows)]
    cells = [heads, *[[r.get(h) or '-' for h in heads] for r in rows]]
    wide = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return ['  '.join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(line, wide))) for line in cells]
