"""
Loss curves of runs, and a table of how they ended.

    python plot.py out/shakespeare-char out/expansive-shakespeare --out=out/loss.png
    python plot.py results/expansion_250/*-s*

Runs whose names differ only in a final -sNUMBER are seeds of one arm: one line of the table, one colour.
"""

import io
import json
import math
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import stats
from configurator import UserError, input_path, key, load, root_path, run
from download import write
from logger import read_metrics


@dataclass
class PlotConfig:
    out: str = key('out/loss.png', 'picture to write; empty: only the table')


def read_run(name: str) -> dict:
    folder = input_path(name)
    lines = read_metrics(folder)
    evals = [m for m in lines if m['kind'] == 'eval']
    if not evals:
        raise UserError(f'{folder} holds no evaluations; give the out_dir of a run')
    train = [m for m in lines if m['kind'] == 'train']
    try:
        manifest = json.loads((folder / 'manifest.json').read_text())
        manifest['params'], manifest['params_collapsed'], manifest['device']
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f'{folder}/manifest.json is damaged or missing ({e}); is this the out_dir of a run?') from None
    return dict(arm=re.sub(r'-s\d+$', '', Path(name).name), evals=evals, train=train, manifest=manifest)


def mean_std(values: list[float]) -> str:
    """Mean, and the sample standard deviation where there are several."""
    spread = f' ± {statistics.stdev(values):.4f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.4f}{spread}'


def table(runs: list[dict]) -> str:
    """One line per arm: seeds, parameters while training and after collapse, losses of the validation split."""
    rows = [
        f'{"arm":16} {"n":>2} {"parameters":>12} {"collapsed":>12} {"best val":>16} {"at iter":>8} {"last val":>16}'
    ]
    for arm in dict.fromkeys(r['arm'] for r in runs):
        mine = [r for r in runs if r['arm'] == arm]
        best = [min(r['evals'], key=lambda m: m['val_loss']) for r in mine]
        m = mine[0]['manifest']
        rows.append(
            f'{arm:16} {len(mine):2} {m["params"]:12,} {m["params_collapsed"]:12,}'
            f' {mean_std([b["val_loss"] for b in best]):>16} {statistics.median(b["iter"] for b in best):8.0f}'
            f' {mean_std([r["evals"][-1]["val_loss"] for r in mine]):>16}'
        )
    return '\n'.join(rows)


def picture(runs: list[dict], out: Path):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 5))
    arms = list(dict.fromkeys(r['arm'] for r in runs))
    for r in runs:
        color = f'C{arms.index(r["arm"])}'
        first = r is next(q for q in runs if q['arm'] == r['arm'])
        ax.plot([m['iter'] for m in r['train']], [m['loss'] for m in r['train']], color=color, alpha=0.3, lw=1)
        evals = r['evals'][1:] or r['evals']  # the first, before training, is ln(vocabulary) for all
        x, y = [m['iter'] for m in evals], [m['val_loss'] for m in evals]
        ax.plot(x, y, 'o-', ms=4, color=color, label=f'{r["arm"]}, val' if first else None)
    values = [m['val_loss'] for r in runs for m in r['evals'] if m['iter']] or [math.e]
    ax.set_ylim(top=max(values) * 1.5)  # the first steps from ln(vocabulary) would flatten the rest
    ax.set(xlabel='iteration', ylabel='loss (nats per token); faint: training', title=runs[0]['manifest']['device'])
    ax.grid(alpha=0.3)
    ax.legend()
    save_picture(fig, out)


def save_picture(fig, out: Path):
    """UserError if out cannot be written, or is of a format that matplotlib does not know."""
    if not out.suffix or out.is_dir():
        raise UserError(f'{out}: name a picture, such as {out.with_suffix(".png").name}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(out, dpi=120, bbox_inches='tight')
    except (OSError, ValueError) as e:
        raise UserError(f'cannot write {out} ({getattr(e, "strerror", None) or e}); choose another --out') from None


# -----------------------------------------------------------------------------
# pictures of a comparison (report.py): c is its config, found its cells


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
    import report

    arms = list(c['arms'])
    color = {x.name: f'C{arms.index(x.arm)}' for x in found}
    fig, axes = figure(2, 2)
    for ax, (axis, name) in zip(axes.flat, report.AXES.items()):
        for x in found:
            p = report.curve(c, x, axis)
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

    if fits := report.scaling(c, found):
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


def main():
    args = sys.argv[1:]
    cfg = load(PlotConfig, [a for a in args if a.startswith('--')])
    runs = [read_run(a) for a in args if not a.startswith('--')]
    if not runs:
        raise UserError('no runs given; python plot.py out/RUN [out/RUN ...] --out=loss.png')
    print(table(runs))
    if cfg.out:
        picture(runs, root_path(cfg.out))
        print(f'wrote {root_path(cfg.out)}')


if __name__ == '__main__':
    run(main)
