"""
Loss curves of runs, and a table of how they ended.

    python plot.py out/shakespeare-char out/expansive-shakespeare --out=out/loss.png
    python plot.py results/expansion_250

Runs whose names differ only in a final -sNUMBER are seeds of one arm: one line of the table, one colour. A folder of
results/ stands for all of its runs.
"""

import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from configurator import UserError, input_path, key, load, root_path, run
from files import save_picture
from lab.records import read_runs


@dataclass
class PlotConfig:
    out: str = key('out/loss.png', 'picture to write; empty: only the table')


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


def main():
    args = sys.argv[1:]
    cfg = load(PlotConfig, [a for a in args if a.startswith('--')])
    runs = [r for a in args if not a.startswith('--') for r in read_runs(input_path(a))]
    if not runs:
        raise UserError('no runs given; python plot.py out/RUN [out/RUN ...] --out=loss.png')
    print(table(runs))
    if cfg.out:
        picture(runs, root_path(cfg.out))
        print(f'wrote {root_path(cfg.out)}')


if __name__ == '__main__':
    run(main)
