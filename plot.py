"""
Loss curves of runs, and a table of how they ended.

    python plot.py out/shakespeare-char out/expansive-shakespeare --out=out/loss.png
"""

import json
import sys
from dataclasses import dataclass

from configurator import UserError, input_path, key, load, root_path, run
from logger import read_metrics


@dataclass
class PlotConfig:
    out: str = key('out/loss.png', 'picture to write')


def plot(runs: list[str], cfg: PlotConfig):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    if not runs:
        raise UserError('no runs given; python plot.py out/RUN [out/RUN ...] --out=loss.png')
    fig, ax = plt.subplots(figsize=(8, 5))
    print(
        f'{"run":32} {"parameters":>12} {"collapsed":>12} {"best val":>9} {"at iter":>8} {"last val":>9} {"ms/iter":>8}'
    )
    for i, name in enumerate(runs):
        folder = input_path(name)
        lines = read_metrics(folder)
        evals = [m for m in lines if m['kind'] == 'eval']
        if not evals:
            raise UserError(f'{folder} holds no evaluations; give the out_dir of a run')
        train = [m for m in lines if m['kind'] == 'train']
        manifest = json.loads((folder / 'manifest.json').read_text())
        color = f'C{i}'
        ax.plot([m['iter'] for m in train], [m['loss'] for m in train], color=color, alpha=0.3, lw=1)
        ax.plot(
            [m['iter'] for m in evals], [m['val_loss'] for m in evals], 'o-', color=color, label=f'{folder.name}, val'
        )
        best = min(evals, key=lambda m: m['val_loss'])
        ms = sorted(m['ms'] for m in train if m['ms']) or [float('nan')]
        print(
            f'{folder.name:32} {manifest["params"]:12,} {manifest["params_collapsed"]:12,} {best["val_loss"]:9.4f}'
            f' {best["iter"]:8} {evals[-1]["val_loss"]:9.4f} {ms[len(ms) // 2]:8.2f}'
        )
    ax.set(xlabel='iteration', ylabel='loss (nats per token); faint: training', title=manifest['device'])
    ax.grid(alpha=0.3)
    ax.legend()
    out = root_path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(out, dpi=120, bbox_inches='tight')
    print(f'wrote {out}')


def main():
    args = sys.argv[1:]
    plot([a for a in args if not a.startswith('--')], load(PlotConfig, [a for a in args if a.startswith('--')]))


if __name__ == '__main__':
    run(main)
