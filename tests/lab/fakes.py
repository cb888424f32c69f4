"""Comparisons of fake runs: what test_compare.py and test_steps.py share."""

import dataclasses
import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT

import compare
from lab import launch, outcomes, plan, report

FAKE = 'tests/fake_train.py'
WRITE = report.write_comparison


def without_pictures(folder: Path) -> bool:
    """report.write_comparison; a picture takes a second. A function of its own, for --report's processes."""
    return WRITE(folder, pictures=False)


@pytest.fixture(autouse=True, name='fake')
def fake_script(monkeypatch):
    monkeypatch.setitem(plan.SCRIPTS, FAKE, 'FakeConfig')
    monkeypatch.setattr(report, 'write_comparison', without_pictures)
    monkeypatch.setattr(launch, 'LOOK', 0.02)  # fake runs take a moment
    monkeypatch.setattr(launch, 'LOOK_AGAIN', 0.5)
    return WRITE


@pytest.fixture(name='config')
def make_config(tmp_path):
    """config(arms..., key=value) -> a comparison of fake runs in tmp_path; looks=True: by the protocol. They take a moment
    each, so two processes do them all; cluster='local': each has its own."""

    def make(**keys):
        default = dict(
            arms=dict(base='', better='--level=1.9'), script=FAKE, name='c', cluster='pool', jobs=2, looks=False,
            results=str(tmp_path / 'results'), out=str(tmp_path / 'out'),
        )  # fmt: skip
        return compare.CompareConfig(**default | keys)

    return make


def starts(tmp_path) -> dict:
    """{run: how often it was started}"""
    found = sorted((tmp_path / 'out' / 'c').rglob('starts'))
    return {str(p.parent.relative_to(tmp_path / 'out' / 'c')): len(p.read_text().split()) for p in found}


def found_cells(tmp_path):
    return {x.name: x for x in outcomes.load(tmp_path / 'results' / 'c')[1]}


RUNNER = """
import resource
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, where it is ignored
sys.path[:0] = [{root!r}]
import compare
from lab import launch
from lab import plan
from lab import report
from configurator import run
draw = report.write_comparison
report.write_comparison = lambda folder: draw(folder, pictures=bool({limit}))
plan.SCRIPTS[{script!r}] = 'FakeConfig'
launch.LOOK, launch.LOOK_AGAIN = 0.02, 0.5
if {limit}:
    sys.dont_write_bytecode = True  # others read it, and here it would be cut
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
try:
    run(lambda: compare.compare(compare.CompareConfig(**{keys!r})))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(python, cfg, limit=0):
    """compare.py on fake runs in a process of its own; no file may grow beyond limit bytes."""
    code = RUNNER.format(root=str(ROOT), script=FAKE, limit=limit, keys=dataclasses.asdict(cfg))
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    script = Path(cfg.out).with_name('compare_fakes.py')
    script.write_text(code)
    return subprocess.Popen([*python, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def wait_for(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.02)
