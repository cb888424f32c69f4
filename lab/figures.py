"""
Pictures of a comparison (report.py): c is its config, found its cells.
"""

import io
import math
from pathlib import Path

from files import write
from lab import stats, tables


def figure(columns: int, rows: int = 1):
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure

    fig = Figure(figsize=(6 * columns, 4.2 * rows))
    return fig, fig.subplots(rows, columns, squeeze=False)


def save(fig, out: Path):
    content = io.BytesIO()
    fig.tight_layout()
    fig.savefig(content, format='png', dpi=90, metadata={'Software': None})
    write(out, content.getvalue())


def comparison(c: dict, found: list, folder: Path):
    """loss.png: the metric against steps, tokens, FLOPs and seconds, mean and 95% band over seeds. pareto.png: against
    parameters and milliseconds per step, with the fronts. scaling.png: against FLOPs, where there are enough sizes."""
    arms = list(c['arms'])
    color = {x.name: f'C{arms.index(x.arm)}' for x in found}
    fig, axes = figure(2, 2)
    for ax, (axis, name) in zip(axes.flat, tables.AXES.items()):
        for x in found:
            p = tables.curve(c, x, axis)
            line = '--' if x.size and x.size != found[0].size else '-'
            ax.plot(p['x'], p['mean'], line, color=color[x.name], label=f'{x.name}, lr {x.lr:g}, n={len(x.runs)}')
            ax.fill_between(p['x'], p['low'], p['high'], color=color[x.name], alpha=0.2, lw=0)
        ax.set(xlabel=name, ylabel=c['metric'])
        ax.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    save(fig, folder / 'loss.png')

    fig, axes = figure(2)
    for ax, name in zip(axes[0], ('parameters (collapsed)', 'ms/step')):
        points = [p for p in pareto_points(found, name)]
        for x, cost, loss in points:
            e = None if math.isnan(x.mean.low) else [[x.mean.value - x.mean.low], [x.mean.high - x.mean.value]]
            ax.errorbar(cost, loss, yerr=e, fmt='o', color=color[x.name], capsize=3)
            ax.annotate(x.name, (cost, loss), xytext=(5, 5), textcoords='offset points', fontsize=8)
        front = [points[i] for i in stats.pareto([p[1:] for p in points])]
        ax.step([p[1] for p in front], [p[2] for p in front], where='post', color='gray', lw=1)
        ax.set(xlabel=name, ylabel=c['metric'])
        ax.grid(alpha=0.3)
    save(fig, folder / 'pareto.png')

    if fits := tables.scaling(c, found):
        fig, axes = figure(1)
        for arm, (compute, losses, law) in fits.items():
            b = law.exponent
            axes[0, 0].loglog(compute, losses, 'o', color=f'C{arms.index(arm)}')
            line = [law.scale * x**-b.value for x in sorted(compute)]
            label = f'{arm}: FLOPs^-{b.format(".4f")}'
            axes[0, 0].loglog(sorted(compute), line, color=f'C{arms.index(arm)}', label=label)
        axes[0, 0].set(xlabel='FLOPs', ylabel=c['metric'])
        axes[0, 0].legend(fontsize=8)
        axes[0, 0].grid(alpha=0.3, which='both')
        save(fig, folder / 'scaling.png')


def pareto_points(found: list, name: str) -> list:
    """[(cell, cost, mean figure)] of the cells that have both."""
    costs = [(x, x.ms if name == 'ms/step' else x.collapsed) for x in found]
    return [(x, cost, x.mean.value) for x, cost in costs if cost and math.isfinite(x.mean.value)]
