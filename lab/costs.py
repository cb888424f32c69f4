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
    base, rows = found[0], []
    steps = {leg['run']: leg for x in found for s in x.legs for leg in x.legs[s] if leg['arm'].startswith('steps/')}
    for x in found:
        cuts = [leg for leg in x.legs[next(iter(x.runs))] if 'error' in leg['facts']]
        tokens = sum(leg['facts'].get('tokens', 0) for leg in x.legs[next(iter(x.runs))] if 'eval' not in leg)
        mean = lambda axis, x=x: statistics.mean(x.reaches(s, axis) for s in x.runs)
        one = stats.Faster(1, 1, 1, 1, 1) if x.target else None
        gain = {}
        for a in ('flops', 'seconds'):
            both = (by.get(x.target, {}).get(a) for by in (x.faster, x.free))
            gain[a] = (one, one) if x is base and (a == 'flops' or x.timed) else tuple(map(known, both))
        rows.append({
            'run': x.name,
            'n': str(len(x.runs)) if len(x.runs) > 1 else '',
            'parameters': f'{x.params:,}' if any(y.params != base.params for y in found) else '',
            'error': f'{cuts[-1]["facts"]["error"]:.3f}' if cuts else '',
            'at start': f'{statistics.mean(r["eval"][x.reports][0] for r in x.runs.values()):.4f}',
            c['at']: f'{x.mean.value:.4f}',
            'rate': f'{x.lr:.3g}' if len({y.lr for y in found}) > 1 else '',
            'rates tried': str(len(x.rates) or '') if any(len(y.rates) > 1 for y in found) else '',
            'tokens': f'{x.cost["tokens"]:,.0f}' if not c.get('horizons') else '',
            'FLOPs in all': f'{x.cost["flops"]:.3g}' if not c.get('horizons') else '',
            'its own': f'{x.cost["flops"] - x.before[next(iter(x.runs)), "flops"]:.3g}' if not c.get('horizons') else '',
            'distilled on': f'{tokens:,}' if tokens else '',
            'at its loss': f'{x.saved:.1%}' if x.saved is not None else '',
        })  # fmt: skip
        if gain['flops'][0] and math.isfinite(mean('iter')):
            rows[-1]['iters'] = f'{mean("iter"):.0f}'
            for axis, unit in (('flops', 'FLOPs'), ('seconds', 's')):
                if gain[axis][0]:
                    rows[-1][unit] = f'{mean(axis):.3g}'
                    rows[-1][f'{unit} saved'], rows[-1][f'{unit} source free'] = map(share, gain[axis])
    first = {}  # of each training step, that of its first seed
    for leg in steps.values():
        if base.reports in leg.get('eval', {}):
            which = leg['arm'], leg['size'], leg['lr']
            first[which] = min(first.get(which, leg), leg, key=lambda leg: leg['seed'])
    for leg in first.values():
        losses = leg['eval'][base.reports]
        name = cell_name(leg['arm'], leg['size'])
        rows.append(
            {'run': name, 'at start': f'{losses[0]:.4f}', c['at']: f'{losses[-1]:.4f}', 'rate': f'{leg["lr"]:.3g}'}
        )
    text = f'{base.facts("device")[0]}; FLOPs and seconds with those of preparing steps, source free: without'
    if any(r.get('iters') for r in rows):
        text += f'; to {base.reports} {base.target:.4f}'
    text += '; at its loss: FLOPs saved against a run of the baseline that ends there' if c.get('horizons') else ''
    text += '' if base.timed or not c.get('horizons') else '; seconds: not timed alone'
    lines = [text, *columns(rows)]
    heads = {k: None for x in found for k in x.tasks}
    if heads:
        measured = [
            {'run': x.name} | {' '.join(k): x.tasks[k].format('.4f') if k in x.tasks else '' for k in heads}
            for x in found
        ]
        lines += ['', *columns(measured)]
    return '\n'.join(lines)


def known(e: stats.Faster | None) -> stats.Faster | None:
    """A speed-up, if all seeds of both arms reach the target."""
    return e if e and math.isfinite(e.value) else None


def share(e: stats.Faster | None) -> str:
    """A speed-up as the share of the cost that it saves, with its interval if there are seeds enough for one."""
    if not e:
        return ''
    bounded = e.low > 0 and math.isfinite(e.high) and e.high > e.low
    return f'{1 - 1 / e.value:.1%}' + (f' [{1 - 1 / e.low:.1%}, {1 - 1 / e.high:.1%}]' if bounded else '')


def columns(rows: list[dict]) -> list[str]:
    """Lines of a table in columns, the first to the left; columns that hold nothing are left out."""
    heads = [h for h in dict.fromkeys(k for r in rows for k in r) if any(r.get(h) for r in rows)]
    cells = [heads, *[[r.get(h) or '-' for h in heads] for r in rows]]
    wide = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    return ['  '.join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(line, wide))) for line in cells]
