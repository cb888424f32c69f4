"""bench.py fit: the count is what the allocator has measured."""

import dataclasses
import json

import pytest
import torch
from conftest import ROOT, tiny_gpt, train_config
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

import bench
from configurator import load
from lab.bench_fit import FitConfig, count
from linear.kernels import head
from optimizers.optim import Optimizer
from train import TrainConfig

LOGS = ('d12', 'growth_small', 'rotate', 'bench/muon')  # of the first every fourth line


def measured(logs=LOGS) -> list:
    """(config, peak of the allocator) of compiled steps on a GPU. A rotation has a peak of its own, between two steps."""
    keys = {f.name for f in dataclasses.fields(TrainConfig)} - {'blocks'}  # blocks were bench.py's rounds then
    found = []
    for name in logs:
        path = ROOT / 'results' / (f'{name}.jsonl' if '/' in name else f'{name}/bench.jsonl')
        for r in map(json.loads, path.read_text().splitlines()[:: 4 if name == 'd12' else 1]):
            if r.get('compiled') and r.get('peak_memory') and r['config'].get('expansion_schedule') != 'rotate':
                found.append((FitConfig(**{k: v for k, v in r['config'].items() if k in keys}), r['peak_memory']))
    return found


def peak(cfg) -> float:
    c = count(cfg)
    tokens = c.of_tokens(cfg.batch_size * cfg.block_size, False, cfg.n_layer)
    return max(c.fixed('one GPU', 1, False) + tokens, c.update('one GPU', 1))


def test_the_count_is_within_a_tenth_of_the_measured_peaks(monkeypatch):
    monkeypatch.setattr(head, 'ON', False)  # these logs are older
    logs = measured()
    assert len(logs) > 8
    for cfg, wanted in logs:
        assert peak(cfg) == pytest.approx(wanted, rel=0.1), (cfg.out_dir, cfg.n_layer, cfg.n_embd, cfg.optimizer)
    largest = max(logs, key=lambda row: row[1])[0]  # with bias; 28.4 GiB were measured without
    assert peak(dataclasses.replace(largest, bias=False, gradient_accumulation_steps=1)) == pytest.approx(
        28.4 * 2**30, rel=0.05
    )


def test_logits_that_are_made_by_parts_are_counted_so(monkeypatch):
    for i, (cfg, wanted) in enumerate(measured(['bench/head'])):
        monkeypatch.setattr(head, 'ON', i % 2 == 1)  # off and on in turns
        assert peak(cfg) == pytest.approx(wanted, rel=0.05), (i, cfg.position)
    assert i == 3


def test_logits_of_a_distillation_or_in_float16_are_there_at_once():
    """model.loss takes the kernel for neither."""
    cfg = FitConfig(n_layer=1, vocab_size=50304)
    assert count(cfg).at_once < float('inf')
    for keys in (dict(distill_from='x.pt'), dict(dtype='float16')):
        c = count(dataclasses.replace(cfg, **keys))
        assert c.at_once == float('inf') and not c.early


def test_shares_of_muons_average_are_counted():
    """One average instead of two, shared by 8 processes."""
    cfg = FitConfig(n_layer=2, n_embd=768, vocab_size=50304)
    adamw, muon = (count(dataclasses.replace(cfg, optimizer=k), 'factored') for k in ('adamw', 'muon'))
    matrices = 2 * 12 * 768**2
    assert adamw.state - muon.state == 4 * matrices
    for bytes_of in (lambda c: c.fixed('fsdp', 8, True), lambda c: c.update('fsdp', 8)):
        assert bytes_of(adamw) - bytes_of(muon) == 4 * matrices / 8


def test_blocks_that_stay_gathered_are_counted():
    """All in 16 bits where they are small beside the memory, or where that is asked for; else two."""
    cfg = FitConfig(n_layer=4, n_embd=768, vocab_size=50304, mlp_expansion_factor=(4.0, 4.0, 4.0, 2.0), bias=False)
    blocks = [4 * 768**2 + 2 * f * 768**2 + 2 * 768 for f in (4, 4, 4, 2)]
    rest = 4 * (50304 * 768 + 1024 * 768 + 768)
    gathered = lambda memory, **keys: count(dataclasses.replace(cfg, **keys), 'factored', memory=memory).gathered
    edge = 2 * sum(blocks) / 0.05
    assert gathered(1.01 * edge) == rest + 2 * sum(blocks)
    assert gathered(0.99 * edge) == rest + 2 * 2 * blocks[0]
    assert gathered(1.01 * edge, reshard_after_forward=True) == gathered(0.99 * edge)
    assert gathered(0.99 * edge, reshard_after_forward=False) == gathered(1.01 * edge)


def test_the_count_for_fsdp_is_what_two_gpus_have_measured():
    """results/bench/two_gpus.txt, with a gather for each pass."""
    for config, batch, again, wanted in (('gpt2', 32, False, 13.6), ('gpt2_xl', 8, True, 18.8)):
        flags = [f'config/{config}.py', '--vocab_size=50304', '--parallel=fsdp', '--reshard_after_forward=true']
        cfg = load(FitConfig, flags)
        c = count(cfg, 'factored')
        tokens = c.of_tokens(batch * cfg.block_size, again, cfg.n_layer)
        assert max(c.fixed('fsdp', 2, True) + tokens, c.update('fsdp', 2)) == pytest.approx(wanted * 2**30, rel=0.03)


def test_the_table_counts_what_stays_gathered(monkeypatch, capsys):
    """GPT-2 XL on 80 GB keeps its blocks, on 40 GB it does not."""

    def row(memory, *flags):
        flags = ['config/gpt2_xl.py', '--vocab_size=50304', '--batch_size=1', f'--memory={memory}', *flags]
        monkeypatch.setattr('sys.argv', ['bench.py', 'fit', *flags])
        bench.main()
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('fsdp, 64 GPUs  '))
        return float(line.split()[3])

    keep, drop = (
        ('--parallel=fsdp', '--reshard_after_forward=false'),
        ('--parallel=fsdp', '--reshard_after_forward=true'),
    )
    assert row(80) == row(80, *keep) == row(40, *keep) > row(40) + 2 == row(40, *drop) + 2 == row(80, *drop) + 2


def test_of_a_teacher_its_weights_and_its_logits_are_counted(monkeypatch, capsys, fails, tmp_path):
    """Its logits are what the backward pass keeps more of a token: see the graph that the compiler makes of the loss."""
    model, kept = tiny_gpt(n_layer=1, vocab_size=512), []

    def forward(graph, args):
        out = next(n for n in graph.graph.nodes if n.op == 'output').args[0]
        kept.append(sum(n.meta['val'].nbytes for n in out if n is not None and 512 in n.meta['val'].shape))
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=forward,
        bw_compiler=lambda graph, args: make_boxed_func(graph.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    loss = torch.compile(model.loss, backend=backend, fullgraph=True)
    x, targets = torch.randn(4, 16, 32, requires_grad=True), torch.randint(0, 512, (4, 16))
    for soft in (None, (torch.randn(4, 16, 512).bfloat16(), 0.5)):
        with torch.autocast('cpu', torch.bfloat16):
            loss(x, targets, soft).backward()
    monkeypatch.setattr(head, 'ON', False)
    cfg = FitConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=512, distill_from='x.pt')
    without, with_it = count(cfg), count(cfg, teacher=model)
    assert with_it.logits - without.logits == (kept[1] - kept[0]) / 64 == 2 * 512
    weights = 4 * sum(p.numel() for p in model.parameters())
    for how in ('one GPU', 'ddp', 'fsdp'):  # which shares out the model, not the teacher
        assert with_it.fixed(how, 8, True) - without.fixed(how, 8, True) == weights
        assert with_it.update(how, 8) - without.update(how, 8) == weights
    large = count(cfg, teacher=tiny_gpt(n_embd=1024, n_head=8, vocab_size=512))  # its own pass is the highest then
    assert large.of_tokens(100, False, 1) == 100 * (6 * 1024 + 2 * 4096 + 2 * 512)
    room = 2**30
    most = large.largest('one GPU', 1, True, False, cfg, room)
    assert large.fixed('one GPU', 1, True) + large.of_tokens(most * 16, False, 1) <= room
    assert large.fixed('one GPU', 1, True) + large.of_tokens((most + 1) * 16, False, 1) > room

    monkeypatch.setattr('sys.argv', ['bench.py', 'fit', 'config/gpt2.py', f'--distill_from={tmp_path}/none.pt'])
    fails(bench.main, 'none.pt')


def test_the_largest_micro_batch_fits_and_one_more_does_not(monkeypatch, capsys, fails):
    flags = ['config/gpt2.py', '--vocab_size=50304', '--n_layer=2', '--memory=16']
    monkeypatch.setattr('sys.argv', ['bench.py', 'fit', *flags])
    bench.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('one GPU', 'ddp', 'fsdp'))]
    most = {line[:36].strip(): int(line.split()[-2]) for line in lines}
    assert all(0.92 * 16 - 0.3 < float(line.split()[-1]) <= 0.92 * 16 for line in lines)
    assert len(most) == 10 and most['ddp'] <= most['one GPU'] < most['one GPU, activation checkpointing']
    monkeypatch.setattr('sys.argv', ['bench.py', 'fit', *flags, '--n_layer=48', '--n_embd=12288', '--n_head=96'])
    bench.main()
    said = capsys.readouterr().out
    assert 'none' in next(line for line in said.splitlines() if line.startswith('one GPU'))
    monkeypatch.setattr('sys.argv', ['bench.py', 'fit', '--memory=0', '--compile=false'])
    fails(bench.main, 'memory = 0', 'compiled step in 16 bits')


@pytest.mark.parametrize('keys', [{}, dict(optimizer='muon'), dict(optimizer='muon', step_rule='product')])
def test_gradients_and_state_are_those_that_an_optimizer_holds(keys):
    """Factors that follow their W (step_rule = product) have no gradient and no average of their own: W has it."""
    kept = dict(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, block_size=16, linear='expanded', linear_path='materialised'
    )
    model = tiny_gpt(**kept)
    opt = Optimizer(model, train_config(model, **keys))
    for p in opt.weights:
        p.grad = torch.ones_like(p)
    opt.step()
    parts = [*opt.adamw.state.values(), *(opt.matrix_optimizer.averaged.values() if opt.matrix_optimizer else ())]
    state = sum(v.numel() for s in parts for v in s.values() if v.dim())
    c = count(FitConfig(**kept, gradient_accumulation_steps=8, **keys))
    held = {id(p): p.numel() for p in (*opt.weights, *opt.leaves.values()) if p.grad is not None}
    assert c.state == 4 * state and c.grads == c.stays == 4 * sum(held.values())
