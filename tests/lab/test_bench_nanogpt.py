"""nanoGPT's step as bench.py times it: a stand-in for its model.py, or the real one in NANOGPT_DIR."""

import importlib.util
import json
import os

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

import bench
from configurator import load
from lab.bench_nanogpt import ArmConfig, NanoGPT

PATH = os.environ.get('NANOGPT_DIR') or str(ROOT / 'tests' / 'lab' / 'nanogpt.py')
FLAGS = [*TINY, f'--nanogpt={PATH}', '--seed_model=7', '--gradient_accumulation_steps=2', '--grad_clip=0.1']
FLAGS += ['--vocab_size=96']  # more than either edition of Shakespeare has


def test_its_step_is_that_of_its_train_py(monkeypatch):
    """Weights and norms of three steps are those of its loop, written here once more without its scaler: it is off."""
    clip, norms = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr(torch.nn.utils, 'clip_grad_norm_', lambda *a: norms.append(clip(*a).item()))
    t = NanoGPT(load(ArmConfig, FLAGS), torch.device('cpu'))
    for _ in range(3):
        t.step()
    spec = importlib.util.spec_from_file_location('again', PATH if PATH.endswith('.py') else f'{PATH}/model.py')
    spec.loader.exec_module(its := importlib.util.module_from_spec(spec))
    torch.manual_seed(7)
    sizes = dict(block_size=32, vocab_size=96, n_layer=2, n_head=2, n_embd=32, dropout=0.0, bias=False)
    model = its.GPT(its.GPTConfig(**sizes))
    optimizer = model.configure_optimizers(0.1, 1e-2, (0.9, 0.95), 'cpu')
    data = np.fromfile(ROOT / 'data/shakespeare_char/train.bin', dtype=np.uint16).astype(np.int64)

    def batch():
        at = torch.randint(len(data) - 32, (4,)).tolist()
        return (torch.from_numpy(np.stack([data[i + k : i + k + 32] for i in at])) for k in (0, 1))

    x, y = batch()
    for lr in (1e-2 * 1 / 3, 1e-2 * 2 / 3, 1e-2):  # two steps of warmup
        optimizer.param_groups[0]['lr'] = optimizer.param_groups[-1]['lr'] = lr
        for _ in range(2):
            (model(x, y)[1] / 2).backward()
            x, y = batch()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert norms[:3] == pytest.approx(norms[3:], rel=1e-5)  # Adam and clipping hide a factor
    for (name, p), q in zip(model.named_parameters(), t.net.parameters()):
        assert torch.allclose(p, q, atol=1e-6), name
    assert t.flops_per_token == 6 * (2 * 12 * 32**2 + 96 * 32 + 2 * 2 * 32 * 32) and not t.compile


def test_it_takes_turns_with_ours_and_writes_texts(tmp_path, monkeypatch, capsys):
    own = ['--steps=1', '--rounds=2', '--warmup=1', f'--out={tmp_path}/x.jsonl']
    monkeypatch.setattr('sys.argv', ['bench.py', *FLAGS, *own, '--', *TINY, '--vocab_size=96'])
    bench.main()
    theirs, ours = map(json.loads, (tmp_path / 'x.jsonl').read_text().splitlines())
    assert (
        theirs['arm'].startswith('nanoGPT: --dataset')
        and PATH not in json.dumps(theirs)
        and ours['arm'].startswith('--dataset')
    )
    assert theirs['params'] == ours['params'] and theirs['flops_per_step'] == 2 * ours['flops_per_step']
    sizes = ['--vocab_size=64', '--n_layer=1', '--n_head=1', '--n_embd=8', '--block_size=8', '--bias=false']
    monkeypatch.setattr('sys.argv', ['bench.py', 'sample', *sizes, f'--nanogpt={PATH}', '--tokens=9', '--rounds=1', '--device=cpu'])  # fmt: skip
    bench.main()
    said = capsys.readouterr().out
    assert '1 x 9 tokens, not compiled' in said and 'fused AdamW' not in said


def test_it_gets_windows_of_data_that_its_train_py_cannot_read(tmp_path):
    (tmp_path / 'meta.json').write_text('{"vocab_size": 96, "dtype": "uint32"}')
    for split in ('train', 'val'):
        (np.arange(500, dtype=np.uint32) % 96).tofile(tmp_path / f'{split}.bin')
    t = NanoGPT(load(ArmConfig, [*FLAGS, f'--dataset={tmp_path}']), torch.device('cpu'))
    x, y = t.next
    assert x.shape == y.shape == (4, 32) and x.is_contiguous() and len({int(v) for v in x[:, 0]}) > 1
    assert torch.equal(x[:, 1:], y[:, :-1]) and torch.equal((x + 1) % 96, y)


def test_what_it_cannot_do_is_said(tmp_path, monkeypatch, fails):
    (tmp_path / 'model.py').write_text('GPT = 1')
    (tmp_path / 'val.bin').write_bytes(b'')
    script = tmp_path / 'script.py'
    script.write_text('class GPTConfig: pass\nclass GPT: pass\n')
    for path, flags, said in (
        (tmp_path, [], 'no model.py of nanoGPT there'),
        (tmp_path / 'gone', [], 'there is no such folder'),
        (tmp_path / 'val.bin', [], 'that is no folder'),
        (script, [], "has no attribute 'configure_optimizers'"),
        (PATH, [f'--out={tmp_path}'], 'name another file'),
        (PATH, ['--linear=monarch', '--qk_norm=true'], 'cannot express linear, qk_norm'),
        (PATH, ['--block_size=2000000'], 'needs more than block_size'),
    ):
        monkeypatch.setattr('sys.argv', ['bench.py', *TINY, f'--nanogpt={path}', *flags])
        fails(bench.main, said)
