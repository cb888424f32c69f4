"""
Which runs are there, how did they end, and what do their loss curves look like?

    python plot.py                                       every run under out/: state, iterations, losses, device, date
    python plot.py out/compare                           every run under that folder
    python plot.py out/shakespeare-char out/expansive-shakespeare --out=out/loss.png
    python plot.py results/d12_finalists --out=          only the table
    python plot.py results/expansion_shakespeare --rates --out=out/rates.png     loss against learning rate of a comparison

Without arguments, or with folders that are no runs, it lists the runs below them. With runs it draws their loss curves
and prints a table. A run is the out_dir of train.py; a folder of results/ stands for all of its runs. Runs whose names
differ only in a final -sNUMBER are the random seeds of one arm: they share a line of the table and a colour. A run that
has not ended counts as running if it wrote to its log in the last ten minutes.
"""

import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from configurator import UserError, input_path, key, load, printable, root_path, run
from files import read_json, save_picture
from lab import outcomes, sweeps
from lab.records import is_run, read_records, read_runs
from logger import CONFIG, MANIFEST, read_metrics


@dataclass
class PlotConfig:
    out: str = key('out/loss.png', 'picture to write; empty: only the table')
    rates: bool = key(False, "draw a comparison's sweep: its metric against the learning rate, an arm each")
    best: bool = key(False, 'print only the folder of the run with the lowest val loss')
    story: bool = key(
        False,
        'of three arms (A and B at a shared rate, A at its own): two sentences under the table, how far B is ahead and'
        ' whether that comes from the rate',
    )

    def problems(self):
        asked = [k for k in ('rates', 'best', 'story') if getattr(self, k)]
        return [f'{", ".join(asked)}: are asked for together; give one of them'] if len(asked) > 1 else []


def best_loss(r: dict) -> float:
    return min(m['val_loss'] for m in r['evals'])


def told_apart(runs: list[dict]) -> list[dict]:
    """The runs. Where arms in different folders have one name, each is called by the end of its path instead."""
    places = {}
    for r in runs:
        places.setdefault(r['arm'], {})[r['place']] = None
    above = {arm: os.path.commonpath([p.parent for p in there]) for arm, there in places.items() if len(there) > 1}
    name = lambda r: str(r['place'].relative_to(above[r['arm']])) if r['arm'] in above else r['arm']
    return [r | dict(arm=name(r)) for r in runs]


def mean_std(values: list[float]) -> str:
    """Mean, and the sample standard deviation where there are several."""
    if not all(map(math.isfinite, values)):
        return 'diverged'
    spread = f' ± {statistics.stdev(values):.4f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.4f}{spread}'


def table(runs: list[dict]) -> str:
    """One line per arm: seeds, parameters while training and after collapse, rate, losses of the validation split."""
    rows = [
        f'{"arm":16} {"n":>2} {"parameters":>12} {"collapsed":>12} {"rate":>7} {"best val":>16} {"at iter":>8}'
        f' {"last val":>16}'
    ]
    for arm in dict.fromkeys(r['arm'] for r in runs):
        mine = [r for r in runs if r['arm'] == arm]
        best = [min(r['evals'], key=lambda m: m['val_loss']) for r in mine]
        m, rates = mine[0]['manifest'], {r['rate'] for r in mine}
        rate = f'{mine[0]["rate"]:g}' if len(rates) == 1 and None not in rates else '-'
        rows.append(
            f'{arm:16} {len(mine):2} {m["params"]:12,} {m["params_collapsed"]:12,} {rate:>7}'
            f' {mean_std([b["val_loss"] for b in best]):>16} {statistics.median(b["iter"] for b in best):8.0f}'
            f' {mean_std([math.inf if r["diverged"] else r["evals"][-1]["val_loss"] for r in mine]):>16}'
        )
    return '\n'.join(rows)


def rates_pictures(folder: Path, out: Path) -> list[Path]:
    """The sweep of a comparison, a panel per arm; each size in a file of its own."""
    found = {}
    if (folder / 'comparison.json').exists():
        c, _ = outcomes.load(folder)
        found = sweeps.sweeps(c, read_records(folder))
    if not found:
        raise UserError(f'{folder} holds no comparison with a sweep of learning rates; see results/*/comparison.json')
    paths = [out if len(found) == 1 else out.with_stem(f'{out.stem}_{size}') for size in found]
    for path, mine in zip(paths, found.values()):
        save_picture(sweeps.multiples(c, mine), path)
    return paths


def story(runs: list[dict]) -> str:
    """Is B ahead of A at the shared rate, and is A, at its own rate, ahead of that? Of the means over each arm's
    seeds."""
    arms = list(dict.fromkeys(r['arm'] for r in runs))
    rates = [{r['rate'] for r in runs if r['arm'] == arm} for arm in arms]
    if len(arms) != 3 or rates[0] != rates[1] or any(len(r) != 1 for r in rates):
        raise UserError('story: needs three arms: two at one shared learning rate, and the first one at another rate')
    a, b, own = (statistics.mean(best_loss(r) for r in runs if r['arm'] == arm) for arm in arms)
    (shared,), (rate,) = rates[0], rates[2]
    gap, gain = a - b, a - own
    first = f'At the shared rate {shared:g} {arms[1]} is {gap:.4f} nats ahead of {arms[0]} ({b:.4f} against {a:.4f}).'
    second = f'At the rate {rate:g} {arms[0]} itself gains {gain:.4f} ({own:.4f}): '
    if gap <= 0:
        first = f'At the shared rate {shared:g} {arms[1]} is not ahead of {arms[0]} ({b:.4f} against {a:.4f}).'
        second += 'here there is no gap that a rate could explain.'
    elif gain >= gap:
        second += f'the gap comes from the rate, and {arms[0]} is ahead once it has its own.'
    elif gain > 0:
        second += f'{gain / gap:.0%} of the gap comes from the rate, the rest does not.'
    else:
        second = f'At the rate {rate:g} {arms[0]} is no better ({own:.4f}): the gap does not come from the rate.'
    n = min(len([r for r in runs if r['arm'] == arm]) for arm in arms)
    return f'{first}\n{second}' + (' (One random seed; several: results/story.)' if n == 1 else '')


# -----------------------------------------------------------------------------
# the list of runs


def state(folder: Path, manifest: dict, config: dict, lines: list[dict]) -> str:
    """finished, running, interrupted at iteration N, or diverged at iteration N."""
    last = max((m['iter'] for m in lines), default=0)
    if not all(math.isfinite(m.get('loss', m.get('val_loss'))) for m in lines):
        return f'diverged at {last}'
    evaluated = max((m['iter'] for m in lines if m['kind'] == 'eval'), default=-1)
    if manifest.get('out_of_patience') or evaluated >= config['max_iters']:
        return 'finished'
    if 'finished' not in manifest and time.time() - (folder / 'metrics.jsonl').stat().st_mtime < 600:
        return 'running'
    return f'interrupted at {manifest.get("final_iter", last)}'


def found_under(folder: Path) -> list[tuple]:
    """(path, state, iterations, best val loss, last val loss, device, date) of every run in it or below; the state is
    damaged where a file cannot be read. A run of a comparison is in its own folder and in the comparison's results (those
    of a track's entry are one folder deeper): the folder is listed."""
    rows, folders = [], sorted(p.parent for p in folder.rglob('metrics.jsonl'))
    own = [p.parts for p in folders if is_run(p)]
    listed = {parts[i:] for parts in own for i in range(len(parts))}
    for path in folders:
        name = path.relative_to(folder)
        try:
            if is_run(path):
                facts, config = read_json(path / 'manifest.json', MANIFEST), read_json(path / 'config.json', CONFIG)
                lines = read_metrics(path)
                evals = [m['val_loss'] for m in lines if m['kind'] == 'eval']
                at = max((m['iter'] for m in lines), default=0)
                rows.append((str(name), state(path, facts, config, lines), at, evals, facts))
                continue
            for run_, r in read_records(path).items():  # of compare.py: a line per run
                inside = tuple(run_.split('/'))
                if 'eval' in r and not listed & {(path.name, *inside), (path.parent.name, *inside)}:
                    evals = r['eval'].get('val_loss', [])
                    rows.append((str(name / run_), r['state'], max(r['eval'].get('iter', [0])), evals, r['facts']))
        except UserError:
            rows.append((str(name), 'damaged', 0, [], {}))
    return rows


def listing(folder: Path) -> str:
    rows = found_under(folder)
    if not rows:
        raise UserError(
            f'{folder} holds no runs and no evaluations; python train.py config/shakespeare_char.py makes one'
        )
    wide = max(len(r[0]) for r in rows)
    text = [f'{"run":{wide}} {"state":20} {"iters":>7} {"best val":>9} {"last val":>9}  {"date":10}  device']
    for name, done, at, evals, facts in rows:
        best, last = [f'{v:.4f}' for v in (min(evals), evals[-1])] if evals else ('-', '-')
        date = facts.get('started', '-')[:10]
        text.append(f'{name:{wide}} {done:20} {at:7,} {best:>9} {last:>9}  {date:10}  {facts.get("device", "-")}')
    return '\n'.join(text)


def picture(runs: list[dict], out: Path):
    from matplotlib.figure import Figure  # only here: it takes a second to import

    fig = Figure(figsize=(8, 5))
    ax = fig.subplots()
    arms = list(dict.fromkeys(r['arm'] for r in runs))
    values = [m['val_loss'] for r in runs for m in r['evals'] if m['iter']] or [math.e]
    top = max(values) * 1.5  # the start of a run from scratch, ln(vocabulary), would flatten the rest
    for r in runs:
        color = f'C{arms.index(r["arm"])}'
        first = r is next(q for q in runs if q['arm'] == r['arm'])
        ax.plot([m['iter'] for m in r['train']], [m['loss'] for m in r['train']], color=color, alpha=0.3, lw=1)
        evals = [m for m in r['evals'] if m['iter'] or m['val_loss'] < top] or r['evals']
        x, y = [m['iter'] for m in evals], [m['val_loss'] for m in evals]
        ax.plot(x, y, 'o-', ms=4, color=color, label=f'{r["arm"]}, val' if first else None)
    ax.set_ylim(top=top)
    ax.set(xlabel='iteration', ylabel='loss (nats per token); faint: training', title=runs[0]['manifest']['device'])
    ax.grid(alpha=0.3)
    ax.legend()
    save_picture(fig, out)


def main():
    args = sys.argv[1:]
    cfg = load(PlotConfig, [a for a in args if a.startswith('--')])
    names = [a for a in args if not a.startswith('--')] or ['out']
    if cfg.rates and len(names) > 1:
        raise UserError(f'rates: draws the sweep of one comparison, not of {len(names)}; name one folder')
    if cfg.rates:
        for path in rates_pictures(input_path(names[0]), root_path(cfg.out)):
            print(f'wrote {path}')
        return
    if not any((input_path(n) / 'metrics.jsonl').exists() for n in names):
        if cfg.best or cfg.story:
            raise UserError(f'{", ".join(names)}: no runs; best and story look at the folders of runs, name these')
        print(printable('\n\n'.join(listing(input_path(n)) for n in names)))
        return
    folders = {input_path(n).resolve(): input_path(n) for n in names}  # each once
    runs = told_apart([r for folder in folders.values() for r in read_runs(folder)])
    if cfg.best:
        print(min(runs, key=best_loss)['name'])
        return
    print(printable(table(runs)))
    if cfg.story:
        print(f'\n{story(runs)}')
    if cfg.out:
        picture(runs, root_path(cfg.out))
        print(f'\nwrote {root_path(cfg.out)}')


if __name__ == '__main__':
    run(main)
