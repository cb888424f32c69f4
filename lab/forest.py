"""
The effects of comparisons on one picture: a point with its interval for each arm, the word at the right.
"""

import math

from lab import protocol
from lab.figures import colors, tidy, unit
from lab.tables import OLD, judged


def effect(x, base) -> tuple[float, float, float]:
    """(effect, low, high); without an interval nan for the bounds, of too few seeds."""
    v = x.verdict
    if v.how and math.isfinite(v.value):
        return v.value, v.low, v.high
    return x.mean.value - base.mean.value, math.nan, math.nan


def forest(panels: list[tuple]):
    """panels: (title, config, cells) of each comparison. Every one has its own axis, wide enough for all its intervals,
    0 and both ends of `worth`."""
    from matplotlib.figure import Figure

    rows = [judged(found) for _, _, found in panels]
    inches = [0.27 * len(r) + 0.75 for r in rows]
    fig = Figure(figsize=(8.5, sum(inches) + 0.35), layout='constrained', facecolor='white')
    axes = fig.subplots(len(panels), 1, squeeze=False, height_ratios=inches)[:, 0]
    for ax, (title, c, _), mine in zip(axes, panels, rows):
        panel(ax, title, c, mine)
    shaded = 'shaded: less than `worth`, what would not matter'
    fig.suptitle(f'left of 0 the arm is better; bars: intervals that hold together with 95%; {shaded}', fontsize=8.5)
    return fig


def panel(ax, title: str, c: dict, mine: list):
    tidy(ax)
    color, share, ends = colors(c), c.get('center') == 'log', []
    ax.axvspan(-c['worth'], c['worth'], color='#888888', alpha=0.2, lw=0)
    ax.axvline(0, color='#222222', lw=0.8)
    for i, (x, base) in enumerate(mine):
        value, low, high = effect(x, base)
        old = not c.get('looks')
        word = x.verdict.word + (f' {OLD}' if old else '')
        strong = 'bold' if x.verdict.word in (protocol.BY_WORTH, protocol.BETTER, protocol.WORSE) else 'normal'
        n = x.verdict.n or len(x.values)
        seeds = f'{n} seed{"s" * (n != 1)}'
        ax.annotate(
            f'{word}, {seeds}', (1.02, i), xycoords=('axes fraction', 'data'), fontsize=8, va='center', weight=strong
        )
        if math.isfinite(value):
            ax.plot(
                [v for v in (low, high) if not math.isnan(v)],
                [i] * (0 if math.isnan(low) else 2),
                '|-',
                color=color[x.arm],
            )
            ax.plot(value, i, 'o', ms=5, color=color[x.arm], mfc='white' if old else color[x.arm])
            ends += [v for v in (value, low, high) if math.isfinite(v)]
        else:
            ax.text(0, i, ' diverged', fontsize=8, va='center')
    ends += [-c['worth'], c['worth'], 0]
    pad = 0.04 * (max(ends) - min(ends))
    ax.set_xlim(min(ends) - pad, max(ends) + pad)
    ax.set_yticks(range(len(mine)), [x.name for x, _ in mine], fontsize=8)
    ax.set_ylim(len(mine) - 0.4, -0.6)
    ax.grid(axis='y', visible=False)
    what = 'share' if share else unit(c)
    key = mine[0][0].reports if mine else c['metric']
    center = dict(median=', medians', log=', ratio').get(c.get('center'), '')
    ax.set_xlabel(
        f'{key} minus that of {mine[0][1].arm if mine else "the baseline"} ({what}{center}); worth {c["worth"]:g}',
        fontsize=8,
    )
    ax.set_title(title, fontsize=9, loc='left')
