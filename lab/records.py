"""
Records of runs: one line of metrics.jsonl per run of a comparison, its preparing steps and evaluations included.

A run's arm is the name of an arm; steps/NAME for a preparing step, whose checkpoint others start from; tasks/NAME for
what evaluate.py measured of a run of that arm. lab/report.py lists the keys of a record.
"""

import json
import math
import re
import statistics
from pathlib import Path

from configurator import ROOT, UserError
from files import read_lines, write
from logger import read_metrics

OWN, PUBLISHED = 'out/results', 'results'  # where a comparison goes of itself, and those that RESULTS.md is about
SWEEP = 10_000  # seeds above this choose learning rates, the others decide: a choice must not see what it is judged by
FACTS = (
    'device', 'processes', 'dtype', 'torch', 'cuda', 'commit', 'dirty', 'started', 'finished', 'data_edition', 'params',
    'params_collapsed', 'collapse_difference', 'seeds_at_once', 'tokens_per_iter', 'flops_per_token', 'flops_per_update', 'peak_memory',
)  # fmt: skip
REFERENCE = re.compile(r'\{([^{}/@ |]+)\}')  # in the text of an arm or a step: the checkpoint of another one
GROWTH = ('source_iter', 'method', 'flops', 'growing', 'logit_difference', 'loss_before', 'loss_after')


def record(folder: Path, run: str, arm: str, size: str, lr: float, seed: int, settings: dict) -> dict | None:
    """The record of a run in its out_dir, None if it is not over. A run is over if its loss was logged at max_iters, was
    not finite, or did not fall for `patience` iterations; in that case its facts hold the max_iters that it was allowed.
    """
    try:
        manifest = json.loads((folder / 'manifest.json').read_text())
        last_iter = json.loads((folder / 'config.json').read_text())['max_iters']
    except (OSError, ValueError, KeyError):
        return None
    lines = [m for m in read_metrics(folder) if isinstance(m, dict)]
    evals, train = [m for m in lines if m.get('kind') == 'eval'], [m for m in lines if m.get('kind') == 'train']
    losses = [m.get('loss', m.get('val_loss')) for m in lines]
    diverged = not all(isinstance(x, int | float) and math.isfinite(x) for x in losses)
    early = manifest.get('out_of_patience', False)
    if not diverged and not (evals and (early or evals[-1]['iter'] >= last_iter) and manifest.get('finished')):
        return None
    ms = [m['ms'] for m in train if m.get('ms')]
    facts = {k: manifest[k] for k in FACTS if k in manifest} | (dict(max_iters=last_iter) if early else {})
    if grown := manifest.get('transfer'):
        facts['transfer'] = {k: grown[k] for k in GROWTH if k in grown}
    return dict(
        run=run,
        arm=arm,
        size=size,
        lr=lr,
        seed=seed,
        state='diverged' if diverged else 'finished',
        settings=settings,
        facts=facts,
        ms=float(f'{statistics.median(ms):.4g}') if ms else None,
        eval={k: [m.get(k) for m in evals] for k in (evals[0] if evals else ()) if k != 'kind'},
        train=thinned(train),
    )


def surgery(folder: Path, run: str, arm: str, size: str, lr: float, seed: int, settings: dict) -> dict | None:
    """The record of a command of transfer.py that wrote folder/ckpt.pt: seconds from start to end, and what factorize
    says of itself (parameters, the FLOPs of its distillation, the mean error over matrices)."""
    made = folder / 'ckpt.pt'
    try:
        seconds = made.stat().st_mtime - (folder / 'argv.json').stat().st_mtime
        said = json.loads((folder / 'ckpt.json').read_text()) if settings['command'] == 'factorize' else {}
    except (OSError, ValueError):
        return None
    facts = dict(seconds=round(seconds, 2), flops=said.get('flops', 0), tokens=said.get('tokens', 0))
    if said:
        facts |= dict(params=said['params'], error=statistics.mean(r['error'] for r in said['rows']))
    return dict(run=run, arm=arm, size=size, lr=lr, seed=seed, state='finished', settings=settings, facts=facts)


def tasks(folder: Path, run: str, arm: str, size: str, lr: float, seed: int, settings: dict) -> dict | None:
    """The record of evaluate.py, which wrote folder/eval.json."""
    try:
        found = json.loads((folder / 'eval.json').read_text())
    except (OSError, ValueError):
        return None
    facts = {k: found[k] for k in FACTS if k in found}
    same = dict(run=run, arm=arm, size=size, lr=lr, seed=seed, state='finished', settings=settings, facts=facts)
    return same | dict(tasks=found['tasks'])


READERS = {'transfer.py': surgery, 'evaluate.py': tasks}  # of what a script leaves; others leave what train.py does


def thinned(train: list[dict], most: int = 100) -> dict:
    """Training losses, at most so many: means over equal stretches, to five digits."""
    step = max(1, math.ceil(len(train) / most))
    parts = [train[i : i + step] for i in range(0, len(train), step)]
    loss = [float(f'{statistics.mean(m["loss"] for m in p):.5g}') for p in parts]
    return dict(iter=[p[-1]['iter'] for p in parts], loss=loss)


def read_records(folder: Path) -> dict:
    """{name: record} of a comparison. A half-written line is left out. If a run has two lines, the later one counts."""
    found = {}
    for r in read_lines(folder / 'metrics.jsonl'):
        if isinstance(r, dict) and 'run' in r:
            found[r['run']] = r
    return found


def of_comparison(folder: Path, c: dict) -> dict:
    """The records of comparison c in folder; those of the baseline of its track included, which all entries share: the
    published ones, and those beside this folder."""
    if not c.get('track'):
        return read_records(folder)
    found, base = {}, next(iter(c['arms']))
    for where in (ROOT / PUBLISHED / 'track' / c['track'] / base, folder.parent / base, folder):
        found |= read_records(where)
    return found


def shared_out(folder: Path, c: dict, records: dict) -> dict:
    """{folder: the records that are written there}: those of a track's baseline lie beside the entry's, where they are
    not among the published."""
    if not c.get('track'):
        return {folder: records}
    base = next(iter(c['arms']))
    published = read_records(ROOT / PUBLISHED / 'track' / c['track'] / base)
    of = lambda r: folder if r['arm'] != base else folder.parent / base
    found = {}
    for name, r in records.items():
        if name not in published:
            found.setdefault(of(r), {})[name] = r
    return found


def read_runs(folder: Path) -> list[dict]:
    """The runs of a folder for plots and lists: {name, arm, rate, evals, train, manifest}; evals and train are lines as
    train.py logs them. The out_dir of a run holds one run, named as the folder without its final -sSEED. A folder of
    results/ holds the runs of its metrics.jsonl; if an arm has several learning rates, they are part of the name."""
    found = [r for r in read_records(folder).values() if 'eval' in r]
    if not found:
        lines = [m for m in read_metrics(folder) if isinstance(m, dict)]
        evals, train = ([m for m in lines if m.get('kind') == kind] for kind in ('eval', 'train'))
        try:
            manifest = json.loads((folder / 'manifest.json').read_text())
            manifest['params'], manifest['params_collapsed'], manifest['device']
        except (OSError, ValueError, KeyError, TypeError) as e:
            if evals:
                raise UserError(f'{folder}/manifest.json is damaged or missing ({e}); is this a run?') from None
        if not evals:
            raise UserError(f'{folder} holds no evaluations; give the out_dir of a run, or a folder of results/')
        rate = json.loads((folder / 'config.json').read_text())['learning_rate']
        arm = re.sub(r'-s\d+$', '', folder.name)
        return [dict(name=str(folder), arm=arm, evals=evals, train=train, manifest=manifest, rate=rate)]
    cell = lambda r: cell_name(r['arm'], r['size'])
    rates = {cell(r): {q['lr'] for q in found if cell(q) == cell(r)} for r in found}
    lines = lambda columns: [dict(zip(columns, row)) for row in zip(*columns.values())]
    return [
        dict(
            name=r['run'],
            rate=r['lr'],
            arm=cell(r) if len(rates[cell(r)]) == 1 else f'{cell(r)}-{r["lr"]:g}',
            evals=lines(r['eval']),
            train=lines(r['train']),
            manifest=r['facts'],
        )
        for r in found
    ]


def write_records(folder: Path, records: dict, head: dict | None = None):
    lines = ([head] if head else []) + [records[k] for k in sorted(records)]
    text = ''.join(json.dumps(line, separators=(',', ':')) + '\n' for line in lines)
    write(folder / 'metrics.jsonl', text.encode())


def references(text: str) -> list[str]:
    return list(dict.fromkeys(REFERENCE.findall(text)))


def cell_name(arm: str, size: str) -> str:
    return f'{arm}@{size}' if size else arm


def run_name(arm: str, size: str, lr: float, seed: int) -> str:
    return f'{cell_name(arm, size)}/lr{lr:g}/s{seed}'
