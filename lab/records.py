"""
Records of runs: one line of metrics.jsonl per run of a comparison, its preparing steps and evaluations included.

A run's arm is the name of an arm; steps/NAME for a preparing step, whose checkpoint others start from; tasks/NAME for
what evaluate.py measured of a run of that arm. lab/report.py lists the keys of a record.
"""

import math
import re
import statistics
from pathlib import Path

from configurator import ROOT, UserError, brief
from files import read_json, read_lines, write_lines
from logger import CONFIG, MANIFEST, read_metrics

OWN, PUBLISHED = 'out/results', 'results'  # where a comparison goes of itself, and those that RESULTS.md is about
SWEEP = 10_000  # seeds above this choose learning rates, the others decide: a choice must not see what it is judged by
FACTS = (
    'device', 'processes', 'dtype', 'torch', 'cuda', 'commit', 'dirty', 'started', 'finished', 'data_edition', 'data', 'params',
    'params_collapsed', 'collapse_difference', 'seeds_at_once', 'tokens_per_iter', 'flops_per_token', 'flops_per_update', 'peak_memory',
)  # fmt: skip
REFERENCE = re.compile(r'\{([^{}/@ |]+)\}')  # in the text of an arm or a step: the checkpoint of another one

# the shapes (files.misfit) of a record: of a run, of a preparing step that trained nothing, of an evaluation
ALL = dict(run=str, arm=str, size=str, lr=float, seed=int, state={'finished', 'diverged'}) | {
    'settings?': dict,
    'from?': {str: str},
}
TIMED = {'device?': str, 'started?': str, 'seconds?': float, 'flops?': (float, None), 'tokens?': float, 'error?': float}
COSTS = {'params': int, 'params_collapsed': int, 'processes': int, 'tokens_per_iter': float, 'flops_per_token': float,
         'flops_per_update': float, 'max_iters?': int, 'transfer?': {'flops?': (float, None), 'growing?': float}}  # fmt: skip
CURVES = {'eval': {'iter?': [float], 'val_loss?': [float], str: ([float], [str])}, 'train': {str: [float]}}
RECORD = (
    ALL | {'facts': TIMED | COSTS, 'ms': (float, None), 'tasks?': ()} | CURVES,
    ALL | {'facts': TIMED | {'flops': float}, 'eval?': (), 'tasks?': ()},
    ALL | {'facts': dict, 'eval?': (), 'tasks': {str: {'figures': {str: float}}}},
)
ENTRY = {'run?': (), 'entry': str, 'track': str, 'source': {str: str}}  # the first line of an entry of the board
CUT = {'params': int, 'rows': [{'error': float}], 'flops?': float, 'tokens?': float}  # what factorize says of itself
EVAL = {'tasks': {str: {'figures': {str: float}}}}
LEARNT = {'flops': float}  # what grow says of itself
GROWTH = ('source_iter', 'method', 'flops', 'growing', 'logit_difference', 'loss_before', 'loss_after')


def logged(folder: Path) -> tuple[list[dict], list[dict], bool]:
    """(evaluations, lines of training, whether a loss was not finite) of the log of a run."""
    lines = read_metrics(folder)
    evals, train = ([m for m in lines if m['kind'] == kind] for kind in ('eval', 'train'))
    return evals, train, not all(math.isfinite(m.get('loss', m.get('val_loss'))) for m in lines)


# how the record of a run is read from its folder, None if it is not over; about: {run, arm, size, lr, seed}


def record(folder: Path, about: dict, settings: dict) -> dict | None:
    """The record of a training, from its out_dir; None if it is not over. It is if its loss was logged at max_iters, was not
    finite, or did not fall for `patience` iterations; in that case its facts hold the max_iters that it was allowed."""
    try:
        manifest = read_json(folder / 'manifest.json', MANIFEST)
        last_iter = read_json(folder / 'config.json', CONFIG)['max_iters']
    except UserError:
        return None
    evals, train, diverged = logged(folder)
    early = manifest.get('out_of_patience', False)
    if not diverged and not (evals and (early or evals[-1]['iter'] >= last_iter) and manifest.get('finished')):
        return None
    ms = [m['ms'] for m in train if m.get('ms')]
    facts = {k: manifest[k] for k in FACTS if k in manifest} | (dict(max_iters=last_iter) if early else {})
    if grown := manifest.get('transfer'):
        facts['transfer'] = {k: grown[k] for k in GROWTH if k in grown}
    kept = [k for k in (evals[0] if evals else ()) if k != 'kind' and all(k in m for m in evals)]
    return about | dict(
        state='diverged' if diverged else 'finished',
        settings=settings,
        facts=facts,
        ms=float(f'{statistics.median(ms):.4g}') if ms else None,
        eval={k: [m[k] for m in evals] for k in kept},
        train=thinned(train),
    )


def surgery(folder: Path, about: dict, settings: dict) -> dict | None:
    """The record of a command of transfer.py that wrote folder/ckpt.pt: seconds from start to end, and what it says of itself:
    the FLOPs of what grow learns (ligo) and of factorize's distillation, whose tokens, the parameters, the mean error over
    matrices."""
    made, shape = folder / 'ckpt.pt', dict(factorize=CUT, grow=LEARNT).get(settings['command'])
    try:
        seconds = made.stat().st_mtime - (folder / 'argv.json').stat().st_mtime
        said = read_json(folder / 'ckpt.json', shape) if shape else {}
    except (OSError, UserError):
        return None
    facts = dict(seconds=round(seconds, 2), flops=said.get('flops', 0), tokens=said.get('tokens', 0))
    if 'rows' in said:
        facts |= dict(params=said['params'], error=statistics.mean(r['error'] for r in said['rows']))
    return about | dict(state='finished', settings=settings, facts=facts)


def tasks(folder: Path, about: dict, settings: dict) -> dict | None:
    """The record of a call of evaluate.py, which wrote folder/eval.json."""
    try:
        found = read_json(folder / 'eval.json', EVAL)
    except UserError:
        return None
    facts = {k: found[k] for k in FACTS if k in found}
    return about | dict(state='finished', settings=settings, facts=facts, tasks=found['tasks'])


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
    for r in read_lines(folder / 'metrics.jsonl', (RECORD, ENTRY)):
        if 'run' not in r:
            continue
        sizes = {len(v) for v in r.get('eval', {}).values()}
        if 'eval' in r and r['state'] == 'finished' and ('iter' not in r['eval'] or len(sizes) > 1 or 0 in sizes):
            raise UserError(
                f'{folder / "metrics.jsonl"}: damaged, {brief(r["run"])} has no whole evaluations; delete its line'
            )
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


def is_run(folder: Path) -> bool:
    """Whether the metrics.jsonl of a folder is the log of one run, not that of a comparison."""
    return (folder / 'manifest.json').exists() or (folder / 'config.json').exists()


def read_runs(folder: Path) -> list[dict]:
    """The runs of a folder for plots and lists: {name, arm, place, rate, diverged, evals, train, manifest}; evals and train
    are lines as train.py logs them. The out_dir of a run holds one run, named as the folder without its final -sSEED. A folder
    of results/ holds the runs of its metrics.jsonl; if an arm has several learning rates, they are part of the name. place: a
    path that only seeds of one arm share."""
    nothing = f'{folder} holds no evaluations; give the out_dir of a run, or a folder of results/'
    if is_run(folder):
        evals, train, diverged = logged(folder)
        if not evals:
            raise UserError(nothing)
        manifest = read_json(
            folder / 'manifest.json', MANIFEST | {'params': int, 'params_collapsed': int, 'device': str}
        )
        rate = read_json(folder / 'config.json', CONFIG | {'learning_rate': float})['learning_rate']
        arm = re.sub(r'-s\d+$', '', folder.name)
        of_arm = dict(arm=arm, place=folder.resolve().with_name(arm), rate=rate, manifest=manifest)
        return [dict(name=str(folder), evals=evals, train=train, diverged=diverged, **of_arm)]
    found = [r for r in read_records(folder).values() if {'iter', 'val_loss'} <= r.get('eval', {}).keys()]
    if not found:
        raise UserError(nothing)
    cell = lambda r: cell_name(r['arm'], r['size'])
    rates = {}
    for r in found:
        rates.setdefault(cell(r), set()).add(r['lr'])
    lines = lambda columns: [dict(zip(columns, row)) for row in zip(*columns.values())]
    arm = lambda r: cell(r) if len(rates[cell(r)]) == 1 else f'{cell(r)}-{r["lr"]:g}'
    return [
        dict(
            name=r['run'],
            rate=r['lr'],
            arm=arm(r),
            place=folder.resolve() / arm(r),
            diverged=r['state'] == 'diverged',
            evals=lines(r['eval']),
            train=lines(r['train']),
            manifest=r['facts'],
        )
        for r in found
    ]


def write_records(folder: Path, records: dict, head: dict | None = None):
    """{name: record} to the metrics.jsonl of a folder, in the order of their names; head: a line before them."""
    lines = ([head] if head else []) + [records[k] for k in sorted(records)]
    write_lines(folder / 'metrics.jsonl', lines, separators=(',', ':'))


def references(text: str) -> list[str]:
    """The names in braces that a text refers to, each once."""
    return list(dict.fromkeys(REFERENCE.findall(text)))


def ancestors(x, sources) -> list:
    """All that x starts from, in the order in which it runs, each once. sources(x): what x starts from itself."""
    found = []
    for q in sources(x):
        found += [o for o in (*ancestors(q, sources), q) if o not in found]
    return found


def cell_name(arm: str, size: str) -> str:
    return f'{arm}@{size}' if size else arm


def run_name(arm: str, size: str, lr: float, seed: int) -> str:
    return f'{cell_name(arm, size)}/lr{lr:g}/s{seed}'
