"""bench.py sample counts the tokens that it has drawn."""

import json

import torch
from conftest import TINY

import bench
from lab import bench_sample


def test_tokens_per_second_are_those_of_the_whole_call(tmp_path, monkeypatch, capsys):
    """A clock that goes on by a second at every look: two samples of 20 tokens a second."""
    now = iter(range(1000))
    monkeypatch.setattr(bench_sample.time, 'perf_counter', lambda: next(now))
    monkeypatch.setattr(bench_sample, 'rates', lambda device, dtype: (1.0, 1e6))
    monkeypatch.setattr('sys.argv', ['bench.py', 'sample', *TINY, '--vocab_size=64', '--tokens=20', '--samples=2', '--rounds=3', f'--trace={tmp_path}/trace.json', f'--out={tmp_path}/x.jsonl', '--device=cpu', '--compile=false'])  # fmt: skip
    bench.main()
    row = json.loads((tmp_path / 'x.jsonl').read_text())
    assert (row['tokens_per_second'], row['slowest'], row['fastest'], row['samples']) == (40, 40, 40, 2)
    said = capsys.readouterr().out
    assert '40 tokens/s' in said
    attention = next(line.split() for line in said.splitlines() if line.startswith('attention'))
    assert float(attention[1]) > 0 and float(attention[2]) >= 2  # of two layers
    assert (tmp_path / 'trace.json').exists()


class Its(torch.nn.Linear):
    """Notes how many tokens are asked of it."""

    asked = ()

    def generate(self, idx, tokens, temperature, top_k):
        self.asked += (tokens,)
        return idx

    def get_num_params(self):
        return 2


def test_the_call_of_nanogpt_that_is_left_out_is_as_long_as_the_others(tmp_path, monkeypatch):
    """Where lengths grow, a library may set up something for each of them, once."""
    model = Its(1, 1)
    monkeypatch.setattr(bench_sample.bench_nanogpt, 'make', lambda cfg: (model, None))
    monkeypatch.setattr(bench_sample, 'rates', lambda device, dtype: (1.0, 1e6))
    monkeypatch.setattr('sys.argv', ['bench.py', 'sample', *TINY, '--vocab_size=64', '--tokens=20', '--rounds=2', f'--nanogpt={tmp_path}', f'--out={tmp_path}/x.jsonl', '--device=cpu', '--compile=false'])  # fmt: skip
    bench.main()
    assert model.asked == (20, 20, 20)
    assert json.loads((tmp_path / 'x.jsonl').read_text())['first_seconds'] > 0
