"""
One process of several in a test: trains what it is told, one run after the other, in one process group, since starting a
process takes longer than such a run. python member.py JOBS.json, with the environment that torchrun would give it.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch

import hardware
from configurator import load
from train import TrainConfig, train


def main(path):
    jobs = json.loads(Path(path).read_text())
    with hardware.processes(torch.device('cpu'), 'gloo', timeout=60):
        hardware.processes = lambda *_: contextlib.nullcontext()
        for name, flags in jobs:
            try:
                train(load(TrainConfig, flags))
            except BaseException:
                print('FAILED', name); traceback.print_exc()
                raise


if __name__ == '__main__':
    main(sys.argv[1])
