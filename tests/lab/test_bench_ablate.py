"""bench.py ablate: each optimisation is off in its own row, and on again afterwards."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

import bench
from configurator import UserError, load
from lab import bench_ablate
from lab.bench_ablate import SWITCHES
from linear.kernels import blocks, chip, fused, head, mixture, norms, rotary, symmetric
from model import GPT, GPTConfig
from optimizers import optim
from optimizers.optim import Optimizer
from train import TrainConfig


def test_each_row_is_the_step_without_one_optimisation(tmp_path, monkeypatch, capsys):
    flags = [*TINY, '--n_layer=1', '--linear=expanded', '--linear_path=materialised', '--expansion=40']
    own = ['--steps=1', '--rounds=2', '--warmup=1', f'--out={tmp_path}/x.jsonl']
    seen, arm = [], bench_ablate.Arm

    def spy(argv, cfg, device, warmup):
        seen.append((cfg.linear_path, torch.backends.cuda.flash_sdp_enabled()))
        return arm(argv, cfg, device, warmup)

    monkeypatch.setattr(bench_ablate, 'Arm', spy)
    monkeypatch.setattr('sys.argv', ['bench.py', 'ablate', *flags, *own])
    bench.main()
    assert seen == [('materialised', True), ('materialised', True), ('materialised', False), ('factored', True)]
    rows = [json.loads(line) for line in (tmp_path / 'x.jsonl').read_text().splitlines()]
    assert [r['without'] for r in rows] == ['fused AdamW', 'attention kernel', 'linear_path']
    assert all(r['ratio'] > 0 and r['base_ms'] > 0 and r['blocks'] == 2 for r in rows)
    said = capsys.readouterr().out.splitlines()
    assert said[3].startswith('attention kernel') and said[4].endswith('--linear_path=factored')
    assert torch.backends.cuda.flash_sdp_enabled()
    for only, said in (('compile', 'none of these is in use here: compile\n'), ('compil', None)):
        monkeypatch.setattr('sys.argv', ['bench.py', 'ablate', *flags, *own, f'--only={only}'])
        if said:
            bench.main()
            assert capsys.readouterr().out == said
        else:
            with pytest.raises(UserError, match="no row is called 'compil'; choose from compile, CUDA graphs"):
                bench.main()


def test_what_is_patched_is_off_inside_and_as_before_afterwards(monkeypatch):
    monkeypatch.setattr(mixture, 'ON', True)
    t = SimpleNamespace(device=torch.device('cuda'))
    before = torch.optim.AdamW, optim.Optimizer.capture, GPT.logits
    p = torch.nn.Parameter(torch.zeros(2))
    with SWITCHES['fused AdamW'].off(t):
        assert not torch.optim.AdamW([p], fused=True).defaults['fused']
    with SWITCHES['captured update'].off(t):
        assert optim.Optimizer.capture(None) is None
    with SWITCHES['padded vocabulary'].off(t):
        model = SimpleNamespace(lm_head=torch.nn.Linear(2, 3, bias=False))
        assert GPT.logits(model, torch.ones(1, 2)).shape == (1, 3)
    with SWITCHES['unsorted rows'].off(t):
        assert not mixture.ON
    assert before == (torch.optim.AdamW, optim.Optimizer.capture, GPT.logits) and mixture.ON


def test_what_the_model_does_not_take_has_no_row(monkeypatch):
    monkeypatch.setattr(blocks, 'in_bfloat16', lambda x: True)
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(2, head.LEAST, bias=False)
    used = lambda **keys: [
        name
        for name in ('head with loss', 'add with norm', 'one pass for q and k')
        if SWITCHES[name].used(SimpleNamespace(model=model, dtype=torch.bfloat16, cfg=SimpleNamespace(**of | keys)))
    ]
    of = dict(distill_from='', n_embd=768, n_head=12, position='rope', post_norm=False)
    assert used() == ['head with loss', 'add with norm', 'one pass for q and k']
    assert used(distill_from='x.pt') == ['add with norm', 'one pass for q and k']
    assert used(n_embd=2 * norms.WIDEST, n_head=2) == ['head with loss']
    assert used(n_head=1) == ['head with loss', 'add with norm'] and 768 > rotary.WIDEST
    monkeypatch.setattr(blocks, 'in_bfloat16', lambda x: False)
    assert not used()


def test_kernels_of_some_layers_have_rows_where_these_are(monkeypatch):
    monkeypatch.setattr(chip, 'triton', True)
    monkeypatch.setattr(fused, 'on_chip', lambda x: True)

    def used(optimizer='adamw', **keys):
        model = GPT(GPTConfig(n_layer=1, n_head=2, block_size=8, vocab_size=8, **keys))
        cfg = load(TrainConfig, ['config/shakespeare_char.py', f'--optimizer={optimizer}'])
        matrices = Optimizer(model, cfg, 8).matrix_optimizer
        t = SimpleNamespace(
            model=model,
            dtype=torch.bfloat16,
            device=torch.device('cuda'),
            optimizer=SimpleNamespace(matrix_optimizer=matrices),
        )
        return [name for name in ('factors on chip', 'symmetric products') if SWITCHES[name].used(t)]

    btt = dict(linear='btt', rank=4, linear_layers='mlp+attn', linear_path='factored')
    assert used('muon', n_embd=192, **btt) == ['factors on chip']
    assert used('muon', n_embd=symmetric.LEAST) == ['symmetric products']
    assert not used(n_embd=symmetric.LEAST) and not used('muon', n_embd=symmetric.LEAST // 2)


def test_every_row_can_be_named_alone():
    assert not [name for name in SWITCHES if ',' in name]
