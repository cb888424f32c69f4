"""bench.py mlp and structures: the figures of layers are those of their formulas."""

import json

import pytest
import torch

import bench
import linear
from lab import bench_layers
from lab.bench_layers import MLPBenchConfig, Pair


def test_every_pair_but_the_baseline_may_compute_its_activation_inside_its_products():
    fuse = {name: Pair(name, 64, MLPBenchConfig()).fuse for name in ('dense', 'dense_fused', 'low_rank', 'btt')}
    assert fuse == dict(dense=False, dense_fused=True, low_rank=True, btt=True)


@pytest.fixture
def rows(monkeypatch, tmp_path, capsys):
    """Steps of 2 ms, of the dense pair 1, 6 and 3; 1e6 FLOP/s and 1e5 bytes/s."""
    monkeypatch.setattr(bench_layers, 'rates', lambda device, dtype: (1e6, 1e5))
    calls = iter([[0.001, 0.006, 0.003], [0.002] * 3, [0.002] * 3])
    monkeypatch.setattr(bench_layers, 'seconds', lambda f, repeats, device: next(calls))
    args = ['bench.py', 'mlp', '--widths=16,', '--members=low_rank,block_diagonal', '--tokens=8', f'--out={tmp_path}/x']
    monkeypatch.setattr('sys.argv', [*args, '--path=factored'])
    bench.main()
    found = [json.loads(line) for line in (tmp_path / 'x').read_text().splitlines()]
    printed = capsys.readouterr().out
    monkeypatch.setattr('sys.argv', ['bench.py', 'mlp', f'--show={tmp_path}/x', '--widths=16,'])
    bench.main()
    assert capsys.readouterr().out == printed  # --show is what was printed
    return found


def test_shares_speeds_and_paths_are_those_of_the_pair(rows):
    assert [r['member'] for r in rows] == ['dense', 'low_rank', 'block_diagonal']
    assert [r['path'] for r in rows] == ['dense', 'factored', 'factored']
    assert [(r['ms'], r['ms_min'], r['ms_max']) for r in rows] == [(3, 1, 6), (2, 2, 2), (2, 2, 2)]
    assert [r['speed'] for r in rows] == [1, 1.5, 1.5]
    assert rows[0]['share'] == 1 and rows[1]['share'] == 2 * 4 * (16 + 64) / (8 * 16**2)  # rank 16 / 4


def test_the_roofline_is_the_flops_at_the_one_rate_and_the_bytes_at_the_other(rows):
    """Three products of each layer, forward and backward, read and write both of its sides; GELU five times the inner
    one; a layer of two factors also what lies between; 2 bytes each."""
    d, T = 16, 8
    flops, features = 6 * 8 * d * d * T, 5 * 4 * d + 2 * 3 * 5 * d
    assert rows[0]['roofline_ms'] == pytest.approx((flops / 1e6 + 2 * features * T / 1e5) * 1000)
    flops, features = 6 * 2 * 4 * 5 * d * T, features + 2 * 3 * (2 * 4)
    assert rows[1]['roofline_ms'] == pytest.approx((flops / 1e6 + 2 * features * T / 1e5) * 1000)


def test_exponents_are_the_papers():
    with torch.device('meta'):
        low, dense = (linear.LAYERS['low_rank'](64, 64, linear.Keys(rank=r)) for r in (8, 64))
    assert bench_layers.exponents(low) == pytest.approx((1 / 2, 0, 10 / 6 - 1))
    assert bench_layers.exponents(dense)[0] == 1
    shared = linear.LAYERS['kronecker'](64, 64, linear.Keys(kronecker_shape=(8, 8)))  # 2 64 8 products, of 2 64 numbers
    assert bench_layers.exponents(shared) == pytest.approx((1, 1 / 2, 1 / 2 + 1 / 6))


@pytest.mark.parametrize('content', ['', 'null', '7', '[1]', '{}', '{"width": 16}'])
def test_a_file_of_other_figures_is_not_shown(tmp_path, content, fails, monkeypatch):
    (tmp_path / 'x').write_text(content)
    monkeypatch.setattr('sys.argv', ['bench.py', 'mlp', f'--show={tmp_path}/x', '--widths=16,'])
    fails(bench.main, 'nothing to show, give a file that --out wrote')
