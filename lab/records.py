"""
Records of runs: one line of metrics.jsonl per run of a comparison.
"""

import json
import math
import statistics
from pathlib import Path

from files import write
from logger import read_metrics

SWEEP = 10_000  # seeds above this choose learning rates, the others decide: a choice must not see what it is judged by
FACTS = (
    'device', 'processes', 'dtype', 'torch', 'cuda', 'commit', 'dirty', 'started', 'finished', 'data_edition', 'params',
    'params_collapsed', 'collapse_difference', 'seeds_at_once', 'tokens_per_iter', 'flops_per_token', 'flops_per_update', 'peak_memory',
)  # fmt: skip


def record(folder: Path, run: str, arm: str, size: str, lr: float, seed: int, settings: dict) -> dict | None:
    """The record of a run in its out_dir, None if it is not over. Over is a run whose loss was logged at max_iters, was
    not finite, or did not get lower for as long as it had patience: its facts then hold the max_iters it was allowed."""
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
    return dict(
        run=run,
        arm=arm,
        size=size,
        lr=lr,
        seed=seed,
        state='diverged' if diverged else 'finished',
        settings=settings,
        facts={k: manifest[k] for k in FACTS if k in manifest} | (dict(max_iters=last_iter) if early else {}),
        ms=float(f'{statistics.median(ms):.4g}') if ms else None,
        eval={k: [m.get(k) for m in evals] for k in (evals[0] if evals else ()) if k != 'kind'},
        train=thinned(train),
    )


def thinned(train: list[dict], most: int = 100) -> dict:
    """Training losses, at most so many: means over equal stretches, to five digits."""
    step = max(1, math.ceil(len(train) / most))
    parts = [train[i : i + step] for i in range(0, len(train), step)]
    loss = [float(f'{statistics.mean(m["loss"] for m in p):.5g}') for p in parts]
    return dict(iter=[p[-1]['iter'] for p in parts], loss=loss)


def read_records(folder: Path) -> dict:
    """{name: record} of a comparison; a half-written line is left out, of two lines of a run the later one counts."""
    found = {}
    for r in read_lines(folder / 'metrics.jsonl'):
        if isinstance(r, dict) and 'run' in r:
            found[r['run']] = r
    for path in sorted(folder.glob('*/manifest.json')):
        config = json.loads((path.parent / 'config.json').read_text())
        arm, _, seed = path.parent.name.rpartition('-s')
        arm, seed = (arm, int(seed)) if seed.isdigit() else (path.parent.name, config['seed_model'])
        lr = config['learning_rate']
        run = run_name(arm, '', lr, seed)
        if run not in found and (r := record(path.parent, run, arm, '', lr, seed, {})):
            found[run] = r
    return found


def read_lines(path: Path) -> list:
    lines = []
    if path.exists():
        for text in path.read_text(errors='replace').splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
    return lines


def write_records(folder: Path, records: dict):
    text = ''.join(json.dumps(records[k], separators=(',', ':')) + '\n' for k in sorted(records))
    write(folder / 'metrics.jsonl', text.encode())


def cell_name(arm: str, size: str) -> str:
    return f'{arm}@{size}' if size else arm


def run_name(arm: str, size: str, lr: float, seed: int) -> str:
    return f'{cell_name(arm, size)}/lr{lr:g}/s{seed}'
