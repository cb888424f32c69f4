"""
From the command to the first training step, in new processes one after the other. bench.py calls it.

    python bench.py start config/shakespeare_char.py
    TORCHINDUCTOR_CACHE_DIR=out/cold python bench.py start config/shakespeare_char.py     the first start finds no compiled code

Each start is `python train.py` with the same config and flags, and is stopped after its first step. Its output says when the
model stands (imports, data, weights), when it is evaluated (the forward pass is compiled), and when a step is done (the
backward pass is compiled). The first start may compile what the others find in the compiler's caches.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import torch

import hardware
from configurator import ROOT, UserError, key, load, overrides, root_path
from files import write
from lab.bench_profile import ready
from lab.costs import columns
from logger import commit, relative
from train import TrainConfig

MARKS = dict(model='config: ', evaluation='step ', first_step='iter ')  # how the line begins that a start prints then


@dataclass
class StartConfig(TrainConfig):
    GROUPS = ('starts', *TrainConfig.GROUPS)
    starts: int = key(3, 'how many, one after the other', low=1, group='starts')
    out: str = key('', 'file for the figures, a JSON line per start; empty: none')


def seconds(command: list[str]) -> dict:
    """{mark: seconds from the command to the line that begins with it}. UserError if it ends before the last."""
    found, t0 = {}, time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in child.stdout:
            for mark, begin in MARKS.items():
                if line.startswith(begin):
                    found.setdefault(mark, time.perf_counter() - t0)
            if len(found) == len(MARKS):
                return found
        lines = child.stderr.read().strip().splitlines() or ['it printed no step']
        raise UserError(f'{" ".join(command[1:])}: {lines[-1]}')
    finally:
        child.terminate()
        child.communicate()


def start(argv: list[str]):
    cfg = load(StartConfig, argv)
    ready(*([root_path(cfg.out)] if cfg.out else []))
    flags, rows = [a for a in argv if not a.startswith(('--starts', '--out='))], []
    for i in range(cfg.starts):
        with tempfile.TemporaryDirectory() as folder:
            own = [f'--out_dir={folder}', '--save_checkpoint=false']
            command = [sys.executable, str(ROOT / 'train.py'), *flags, *own]
            rows.append(dict(start=i + 1, **seconds(command)))
        print('\n'.join(columns([line(rows[-1])])[0 if i == 0 else 1 :]), flush=True)
    facts = dict(
        device=hardware.device_name(hardware.choose_device(cfg.device)), torch=torch.__version__, commit=commit()
    )
    facts['config'] = overrides(cfg)
    if cfg.out:
        write(root_path(cfg.out), ''.join(json.dumps(relative(r | facts)) + '\n' for r in rows).encode())
    print(f'{facts["device"]}, torch {facts["torch"]}')


def line(r: dict) -> dict:
    model, evaluation, first = (r[mark] for mark in MARKS)
    return {
        'start': str(r['start']),
        'seconds to the first step': f'{first:.1f}',
        'imports, data, model': f'{model:.1f}',
        'evaluation': f'{evaluation - model:.1f}',
        'step': f'{first - evaluation:.1f}',
    }
