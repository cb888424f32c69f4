"""bench.py same: what differs from the plain float32 step is seen, in losses and in gradients."""

import json
import math

import pytest
from conftest import TINY

import bench
from model import MLP

FLAGS = [*TINY, '--vocab_size=96', '--dtype=float32', '--steps=2', '--tail=2', '--n_layer=1']


def figures(tmp_path, monkeypatch) -> dict:
    monkeypatch.setattr('sys.argv', ['bench.py', 'same', *FLAGS, f'--out={tmp_path}/x.jsonl'])
    bench.main()
    return json.loads((tmp_path / 'x.jsonl').read_text().splitlines()[-1])


def test_the_step_of_a_cpu_is_the_plain_one(tmp_path, monkeypatch, capsys):
    r = figures(tmp_path, monkeypatch)
    assert len(r['losses']['fast']) == 2 and r['losses']['float32'][0] == pytest.approx(math.log(96), abs=0.2)
    assert r['fast']['largest'] < 1e-5 and max(r['fast']['grads'].values()) < 1e-5
    assert r['plain']['largest'] == 0 and len(r['fast']['grads']) == 6 + 3
    assert str(tmp_path) not in (tmp_path / 'x.jsonl').read_text()  # a record names no machine
    said = capsys.readouterr().out
    monkeypatch.setattr('sys.argv', ['bench.py', 'same', f'--show={tmp_path}/x.jsonl'])
    bench.main()
    assert capsys.readouterr().out == said and 'n_embd 32' in said and '\nmlp.c_fc.weight ' in said


def test_a_wrong_factor_in_one_layer_is_noticed(tmp_path, monkeypatch):
    """In the first of the three runs only."""
    forward, calls = MLP.forward, []

    def wrong(self, x):
        calls.append(1)
        return forward(self, x) * (1.01 if len(calls) <= 3 else 1)

    monkeypatch.setattr(MLP, 'forward', wrong)
    r = figures(tmp_path, monkeypatch)
    assert r['fast']['grads']['transformer.h.0.mlp.c_proj.weight'] == pytest.approx(0.01, rel=0.5)
    assert r['fast']['largest'] > 1e-5 and r['plain']['largest'] == 0


def test_dropout_cannot_be_compared(monkeypatch, fails):
    monkeypatch.setattr('sys.argv', ['bench.py', 'same', *FLAGS, '--dropout=0.1'])
    fails(bench.main, 'dropout: its draws would differ')
    monkeypatch.setattr('sys.argv', ['bench.py', 'same', '--show=nowhere'])
    fails(bench.main, 'not a file that bench.py same --out=FILE wrote (there is no such file)')
