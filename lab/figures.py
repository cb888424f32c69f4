"""
Pictures of a comparison (report.py): c is its config, found its cells. SVG on white, so that they can be read on dark pages.

    loss.svg      against FLOPs, and seconds where bench.py measured: means and 95% bands over seeds
    pareto.svg    against the parameters that are trained, and milliseconds per step where bench.py measured
    budget.svg    of runs of several lengths: the last loss against all FLOPs, those of preparing steps included
    scaling.svg   against FLOPs, where there are enough sizes
    forest.svg    the effects with their intervals and words (forest.py)
    rates*.svg    against the learning rate (sweeps.py)
"""

import contextlib
import io
import math
import re
from pathlib import Path

from files import write
from lab import outcomes, stats
from lab.costs import told_apart

BASELINE, GREY = '#222222', '#8a8a8a'
COLORS = {  # of arms that are in several comparisons; one colour each, in all pictures and pages
    'k2000': '#d6008f', 'expanded': '#d6008f', 'k10000': '#1b2a8a', 'k10000-clip0.5': '#8f9be0', 'factors3': '#3d9be9',
    'factors5': '#7a5230', 'rotate': '#0b8a99', 'control': '#9467bd', 'all': '#ff7f0e', 'dense_own': '#7f7f7f',
    'low_rank': '#d62728', 'block_dense': '#ff7f0e', 'monarch': '#1f77b4', 'btt_rank1': '#74c476', 'btt_rank4': '#1a7a31',
    'btt': '#1a7a31', 'kronecker': '#9467bd', 'tensor_train': '#8c564b', 'block_diagonal': '#0b8a99', 'btt_moe': '#9a9a00',
    'moe': '#e377c2', 'onehot': '#d62728', 'random_onehot': '#e58fb5', 'double': '#1f77b4', 'one_hot': '#e377c2',
    'stack': '#d62728', 'interleave': '#ff7f0e', 'zero_block': '#2ca02c', 'clone-1': '#8f9be0', 'clone-2': '#1b2a8a',
    'bert2bert': '#9a9a00', 'ligo': '#8c564b', 'alone': '#0b8a99',
}  # fmt: skip
OTHERS = (
    '#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#0b8a99', '#8c564b', '#e377c2', '#9a9a00', '#7f7f7f',
    '#393b79', '#ad494a', '#637939', '#a55194',
)  # fmt: skip
DRAWN = ('loss*.svg', 'pareto*.svg', 'rates*.svg', 'budget.svg', 'scaling.svg', 'forest.svg')
UNITS = dict(val_error='%')  # others are losses
FRONT = 'grey line: front of what nothing beats in both'


def colors(c: dict) -> dict:
    """{arm: colour}: the baseline dark, known names their own, the others those that are left, or grey."""
    base, *arms = c['arms']
    known = {arm: COLORS[arm] for arm in arms if arm in COLORS}
    left = [color for color in OTHERS if color not in known.values()]
    others = [arm for arm in arms if arm not in known]
    if len(others) > len(left):  # too many to tell apart
        return {base: BASELINE} | known | dict.fromkeys(others, GREY)
    return {base: BASELINE} | known | dict(zip(others, left))


def unit(c: dict) -> str:
    return UNITS.get(c['metric'], 'nats per token')


def figure(columns: int, rows: int = 1, width: float = 5.5, height: float = 3.8):
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure

    fig = Figure(figsize=(width * columns, height * rows), layout='constrained', facecolor='white')
    axes = fig.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        tidy(ax)
    return fig, axes


def tidy(ax):
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    ax.spines[['top', 'right']].set_visible(False)


def save(fig, out: Path):
    """The same picture gives the same file."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({'svg.hashsalt': out.name}):
        fig.savefig(content, format=out.suffix[1:], dpi=110, metadata={'Date': None} if out.suffix == '.svg' else None)
    out.parent.mkdir(exist_ok=True)
    write(out, content.getvalue())


@contextlib.contextmanager
def redrawn(paths: list[Path]):
    """What is drawn inside stays as it was if only its names of clipping paths are others: matplotlib makes them from all
    bits of the layout, whose solver rounds in the order of its variables in memory."""
    old = {path: path.read_bytes() for path in paths if path.exists()}
    yield
    nameless = lambda svg: re.sub(rb'(?<=[#"])p[0-9a-f]{10}\b', b'', svg)
    for path, was in old.items():
        if path.exists() and nameless(path.read_bytes()) == nameless(was):
            write(path, was)


def scale(ax, costs: list):
    """Logarithmic where costs differ much; ticks such as 2M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if costs and max(costs) > 4 * min(costs):
        ax.set_xscale('log')
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
    ax.xaxis.set_major_formatter(EngFormatter(sep=''))


def labels(ax, points: list[tuple]):
    """Names at the right edge of the axes, with a line to the point of each, pushed apart where they would overlap.
    points: (x, y, text, colour)."""
    low, high = ax.get_ylim()
    gap = (high - low) * 9.5 / (ax.figure.get_figheight() * 60)  # a line of text
    at = []
    for y in sorted(p[1] for p in points):
        at.append(max(y, at[-1] + gap if at else low))
    for i in reversed(range(len(at))):  # not above the axes
        at[i] = min(at[i], (at[i + 1] if i + 1 < len(at) else high + gap) - gap)
    for (x, y, text, color), height in zip(sorted(points, key=lambda p: p[1]), at):
        ax.annotate(
            text, (x, y), xytext=(1.03, height), textcoords=('axes fraction', 'data'), fontsize=7.5, color=color,
            va='center', annotation_clip=False, arrowprops=dict(arrowstyle='-', color=color, lw=0.5, alpha=0.6),
        )  # fmt: skip


def drawn(folder: Path) -> list[Path]:
    """The pictures of a comparison that are there."""
    return [path for pattern in DRAWN for path in sorted(folder.glob(pattern))]


def comparison(c: dict, found: list, folder: Path):
    """The pictures of one size each, in files of their own where there are several."""
    for size in dict.fromkeys(x.size for x in found) if not c.get('horizons') else ['']:
        end = f'_{size}' if size else ''
        cells = [x for x in found if x.size == size or c.get('horizons')]
        if c.get('horizons'):
            save(budget(c, cells), folder / 'budget.svg')
        elif max(len(r['eval']['iter']) for x in cells for r in x.runs.values()) > 2:
            save(losses(c, cells), folder / f'loss{end}.svg')
        if not c.get('horizons'):
            save(pareto(c, cells), folder / f'pareto{end}.svg')
    if fits := outcomes.scaling(c, found):
        save(scaling(c, fits), folder / 'scaling.svg')


def targets(ax, found: list):
    """The losses that were set before the runs, or of growth what the longest run of the baseline ends with."""
    for target in sorted({t for x in found for t in (*x.faster, x.target) if t}):
        ax.axhline(target, color=GREY, lw=0.9, ls=':')
        ax.annotate(
            f'target {target:.5g}', (0.01, target), xycoords=('axes fraction', 'data'), xytext=(0, 2),
            textcoords='offset points', fontsize=7, color=GREY,
        )  # fmt: skip


def losses(c: dict, found: list):
    axes_ = ['flops', *(['seconds'] if any(x.timed for x in found) else [])]
    color, (fig, axes) = colors(c), figure(len(axes_))
    for ax, axis in zip(axes[0], axes_):
        for x in found:
            p = outcomes.curve(x, axis)
            ax.plot(
                p['x'], p['mean'], color=color[x.arm], lw=1.6, label=f'{x.name}, rate {x.lr:.3g}, {len(x.runs)} seeds'
            )
            ax.fill_between(p['x'], p['low'], p['high'], color=color[x.arm], alpha=0.15, lw=0)
        targets(ax, found)
        name = dict(flops='FLOPs', seconds='seconds (steps alone on the machine)')[axis]
        ax.set_xlabel(name, fontsize=9)
        ax.set_ylabel(f'{found[0].reports} ({unit(c)})', fontsize=9)
    axes[0, 0].legend(fontsize=7, frameon=False)
    several = any(len(x.runs) > 1 for x in found)
    fig.suptitle(
        ('mean over seeds; band: 95% interval of the mean' if several else 'one seed')
        + '; the evaluation before training is left out',
        fontsize=9,
    )
    return fig


def pareto(c: dict, found: list):
    """Loss against what is trained. Collapsed parameters would put all structures of one shape on a line."""
    names = ['parameters that are trained', *(['ms/step'] if any(x.ms for x in found) else [])]
    color, (fig, axes) = colors(c), figure(len(names), width=6.2)
    for ax, name in zip(axes[0], names):
        points = pareto_points(found, name)
        for x, cost, loss in points:
            e = None if math.isnan(x.mean.low) else [[loss - x.mean.low], [x.mean.high - loss]]
            ax.errorbar(cost, loss, yerr=e, fmt='o', ms=5, color=color[x.arm], capsize=2, lw=1)
        front = [points[i] for i in stats.pareto([p[1:] for p in points])]
        ax.step([p[1] for p in front], [p[2] for p in front], where='post', color='gray', lw=1, zorder=1)
        scale(ax, [p[1] for p in points])
        ax.set_xlabel(name + (' (bench.py)' if name == 'ms/step' else ''), fontsize=9)
        ax.set_ylabel(f'{found[0].reports} ({unit(c)})', fontsize=9)
        labels(ax, [(cost, loss, x.name, color[x.arm]) for x, cost, loss in points])
    several = any(not math.isnan(x.mean.low) for x in found)
    fig.suptitle(('points: means, with 95% intervals; ' if several else 'one seed; ') + FRONT, fontsize=9)
    return fig


def budget(c: dict, found: list):
    """The last loss of runs of several lengths. Below the baseline's line an arm has a lower loss for the same FLOPs."""
    color, (fig, axes) = colors(c), figure(1, width=7.5, height=4.8)
    ax, ends = axes[0, 0], []
    for arm in dict.fromkeys(x.arm for x in found):
        mine = sorted((x.cost['flops'], x.mean.value) for x in found if x.arm == arm and math.isfinite(x.mean.value))
        base = arm == next(iter(c['arms']))
        ax.plot(*zip(*mine), 'o-', ms=4, lw=2.2 if base else 1.1, color=color[arm], zorder=3 if base else 2)
        ends.append((*mine[-1], arm, color[arm]))
    targets(ax, found)
    ax.set_xlabel('FLOPs, those of what a run starts from included', fontsize=9)
    ax.set_ylabel(f'{found[0].reports} at the end ({unit(c)})', fontsize=9)
    labels(ax, ends)
    seeds = {len(x.runs) for x in found}
    fig.suptitle(
        f'a point is a run to its end; {"one seed" if seeds == {1} else f"means of {min(seeds)} seeds"}', fontsize=9
    )
    return fig


def times(rows: list[dict]):
    """Step times by bench.py over that of the first arm, from the fastest block to the slowest."""
    fig, axes = figure(1, width=8.5, height=0.27 * len(rows) + 0.8)
    ax, names = axes[0, 0], told_apart([r['arm'] for r in rows])
    names = [n.removeprefix('config/').replace('.py', '').replace('--', '') for n in names]
    ax.axvline(1, color=BASELINE, lw=0.8)
    for i, r in enumerate(rows):
        color, first = BASELINE if i == 0 else OTHERS[0], rows[0]['ms']
        ax.plot([r['ms_min'] / first, r['ms_max'] / first], [i, i], '|-', color=color)
        ax.plot(r['ratio'], i, 'o', ms=5, color=color)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    fig.supxlabel(
        f'step time over that of {names[0]} ({rows[0]["device"]}, {rows[0]["dtype"]}); left of 1 is faster', fontsize=9
    )
    return fig


def race(rows: list[dict]):
    """Validation loss after seconds of training (bench.py race), each training a point; dots join the best of a side."""
    fig, axes = figure(1, width=7)
    ax = axes[0, 0]
    for side, color in (('nanoGPT', BASELINE), ('nanoMorph', OTHERS[0])):
        mine = [r for r in rows if r['arm'].startswith('nanoGPT: ') == (side == 'nanoGPT')]
        ax.plot([r['trained_s'] / 60 for r in mine], [r['val_loss'] for r in mine], 'o', ms=4, mfc='none', color=color)
        best = {}  # {seconds: training}
        for r in sorted(mine, key=lambda r: r['val_loss']):
            best.setdefault(r['seconds'], r)
        line = sorted(best.values(), key=lambda r: r['seconds'])
        ax.plot([r['trained_s'] / 60 for r in line], [r['val_loss'] for r in line], 'o:', ms=5, color=color, label=side)
    ax.set_xlim(left=0)
    ax.set_xlabel(f'minutes of training ({rows[0]["device"]}, {rows[0]["dtype"]})', fontsize=9)
    ax.set_ylabel('validation loss, nats per token', fontsize=9)
    ax.legend(frameon=False, fontsize=8)
    return fig


def scaling(c: dict, fits: dict):
    color, (fig, axes) = colors(c), figure(1)
    ax, kinds = axes[0, 0], list(dict.fromkeys(kind for _, kind in fits))
    for (arm, kind), (compute, values, law) in fits.items():
        b, name = law.exponent, f'{arm} {kind}'.strip()
        ax.loglog(compute, values, 'o', color=color[arm])
        line = [law.scale * x**-b.value for x in sorted(compute)]
        style = dict(color=color[arm], ls=('-', '--', ':', '-.')[kinds.index(kind) % 4])
        ax.loglog(sorted(compute), line, **style, label=f'{name}: FLOPs^-{b.format(".4f")}')
    ax.set_xlabel('FLOPs', fontsize=9)
    ax.set_ylabel(f'{c["metric"]} ({unit(c)})', fontsize=9)
    ax.legend(fontsize=8, frameon=False, title='power laws, [a, b]: 95% intervals', title_fontsize=8)
    return fig


def pareto_points(found: list, name: str) -> list:
    """[(cell, cost, mean figure)] of the cells that have both."""
    costs = [(x, x.ms if name == 'ms/step' else x.params) for x in found]
    return [(x, cost, x.mean.value) for x, cost in costs if cost and math.isfinite(x.mean.value)]
