"""
One process of several in a test: trains what it is told, one run after the other, in one process group, since starting a
process takes longer than such a run. python member.py JOBS.json, with the environment that torchrun would give it.

A job is [what, flags]: `train` them, or count the collectives of one step (`traffic`).
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import hardware
from configurator import load
from train import TrainConfig, Trainer, train


def traffic(cfg):
    """out_dir/traffic.json: {name of a collective: how often it is called in the second step}."""
    t = Trainer(cfg, torch.device('cpu'))
    t.step()
    with profile(activities=[ProfilerActivity.CPU]) as p:
        t.step()
    found = {e.key.removeprefix('c10d::'): e.count for e in p.key_averages() if e.key.startswith('c10d::')}
    if not hardware.rank_world()[0]:
        Path(cfg.out_dir).mkdir()
        Path(cfg.out_dir, 'traffic.json').write_text(json.dumps(found))


if __name__ == '__main__':
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with hardware.processes(torch.device('cpu'), 'gloo', timeout=60):
        hardware.processes = lambda *_: contextlib.nullcontext()
        for what, flags in jobs:
            dict(train=train, traffic=traffic)[what](load(TrainConfig, flags))
