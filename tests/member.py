"""
One process of several in a test: trains what it is told, one run after the other, in one process group, since starting a
process takes longer than such a run. python member.py JOBS.json, with the environment that torchrun would give it.

A job is [what, flags]: `train` them, count the collectives of one step (`traffic`), train until the first checkpoint in shares is
written (`stopped`), or copy the folder of a run (`copied`).
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import hardware  # noqa: E402
from configurator import load  # noqa: E402
from surgery import shares  # noqa: E402
from train import TrainConfig, Trainer, train  # noqa: E402


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


class Stop(Exception):
    pass


def stopped(cfg):
    save = shares.save

    def once(*args, **keys):
        save(*args, **keys)
        raise Stop

    shares.save = once
    with contextlib.suppress(Stop):
        train(cfg)
    shares.save = save


def copied(cfg):
    """To out_dir-on."""
    if not hardware.rank_world()[0]:
        shutil.copytree(cfg.out_dir, f'{cfg.out_dir}-on')
    torch.distributed.barrier()


if __name__ == '__main__':
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with hardware.processes(torch.device('cpu'), 'gloo', timeout=60):
        hardware.processes = lambda *_: contextlib.nullcontext()
        for what, flags in jobs:
            dict(train=train, traffic=traffic, stopped=stopped, copied=copied)[what](load(TrainConfig, flags))
