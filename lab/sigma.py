"""
Two things to know before comparing: the spread over random seeds, and where the best learning rate lies.

    python -m lab.sigma results/sigma      of every arm with 8 deciding seeds at a rate, and of every sweep
"""

import math
import statistics
import sys
from pathlib import Path

from configurator import input_path, run
from lab import protocol, records
from lab.rates import choose_rate


def show(folder: Path):
    """Print mean and standard deviation (95% chi-square interval) of the last losses, and the curves of the sweeps."""
    decided, swept = {}, {}
    for r in records.read_records(folder).values():
        cell, done = records.cell_name(r['arm'], r['size']), r['state'] == 'finished'
        if r['seed'] > records.SWEEP:
            loss = r['eval']['val_a'][-1] if done else math.inf  # the half that chooses
            swept.setdefault(cell, {}).setdefault(r['lr'], []).append(loss)
        elif done:
            last = [r['eval'][k][-1] for k in ('val_loss', 'val_a', 'val_b')]
            decided.setdefault((cell, r['lr']), []).append(last)
    for (cell, lr), rows in sorted(decided.items()):
        if len(rows) >= protocol.SIGMA_SEEDS:
            whole, a, b = zip(*rows)
            mean, between = statistics.mean(whole), statistics.correlation(a, b)
            print(f'{cell}, rate {lr:g}, {len(rows)} seeds: val_loss {mean:.4f}, std {protocol.sigma(whole)}')
            print(f'    std of val_a {protocol.sigma(a)}, of val_b {protocol.sigma(b)}, correlation {between:.3f}')
    for cell, curve in sorted(swept.items()):
        curve = {lr: losses for lr, losses in curve.items() if len(losses) > 1}  # the others are still to be run
        if not curve:
            continue
        chosen = choose_rate(curve)
        print(f'{cell}, sweep, val_a, mean (std) of {chosen.seeds} seeds')
        shown = lambda v: f'{statistics.mean(v):.4f} ({statistics.stdev(v):.4f})' if max(v) < math.inf else 'diverged'
        print('    ' + ', '.join(f'{lr:g}: {shown(v)}' for lr, v in sorted(curve.items())))
        print(f'    chosen: {chosen.lr:.2e} ({chosen.how}{", at the edge: " + chosen.edge if chosen.edge else ""})')


if __name__ == '__main__':
    run(lambda: show(input_path(sys.argv[1])))
