"""
From the command to the first training step, in new processes one after the other. bench.py calls it.

    python bench.py start config/shakespeare_char.py
    TORCHINDUCTOR_CACHE_DIR=out/cold python bench.py start config/shakespeare_char.py     the first start finds no compiled code

Each start is `python train.py` with the same config and flags, and is stopped after its first step. Its output says when the
model stands (imports, data, weights), when it is evaluated (the forward pass is compiled), and when a step is done (the
backward pass is compiled). The first start may compile what the others find in the compiler's caches.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import torch

import hardware
from configurator import ROOT, UserError, key, load, root_path
from files import ready, write_lines
from lab.costs import columns
from lab.steps import settings
from logger import commit, relative
from train import TrainConfig

MARKS = dict(model='config: ', evaluation='step ', first_step='iter ')  # how the line begins that a start prints then
OWN = dict(start=int, first_step=float)  # lines of --out, for files.ready


@dataclass
class StartConfig(TrainConfig):
    GROUPS = ('starts', *TrainConfig.GROUPS)
    starts: int = key(3, 'how many, one after the other', low=1, group='starts')
    out: str = key('', 'file for the figures, a JSON line per start; empty: none')


def seconds(flags: list[str], env: dict) -> dict:
    """{mark: seconds from the command to the line that begins with it} of a run of its own. UserError if it ends before the
    last."""
    found, text, t0 = {}, '', time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        own = [f'--out_dir={folder}', '--save_checkpoint=false']
        command = [sys.executable, str(ROOT / 'train.py'), *flags, *own]
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for text in child.stdout:
                for mark, begin in MARKS.items():
                    if text.startswith(begin):
                        found.setdefault(mark, time.perf_counter() - t0)
                if len(found) == len(MARKS):
                    return found
            raise UserError(f'{shlex.join(command)}: no first step: {text.strip()}')
        finally:
            child.terminate()
            child.communicate()


@contextlib.contextmanager
def environment():
    """That of this process. Where Python is told to keep no byte code, it keeps it for these starts: a start would compile
    thousands of files of torch from their source, which no start of an installed Python does."""
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ)
        if env.pop('PYTHONDONTWRITEBYTECODE', ''):
            env['PYTHONPYCACHEPREFIX'] = folder
        yield env


def start(argv: list[str]):
    cfg = load(StartConfig, argv)
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py start')
    facts = dict(
        device=hardware.device_name(hardware.choose_device(cfg.device)), torch=torch.__version__, commit=commit(),
        config=settings(cfg),
    )  # fmt: skip
    flags, rows = [a for a in argv if not a.startswith(('--starts', '--out='))], []
    with environment() as env:
        for i in range(cfg.starts):
            rows.append(dict(start=i + 1, **seconds(flags, env)))
            print('\n'.join(columns([line(rows[-1])])[0 if i == 0 else 1 :]), flush=True)
            if cfg.out:  # after each start: what is measured is kept, however this ends
                write_lines(root_path(cfg.out), [relative(r | facts) for r in rows])
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
