"""One expansion at a time: the function is kept, the run goes on exactly, one graph and one expansion's memory."""

import dataclasses
import gc
import weakref

import pytest
import torch
from conftest import TINY, losses, tiny_gpt, tokens

import checkpoint
import linear
import transfer
from configurator import UserError, load
from linear.expanded import Expanded
from model import GPTConfig
from surgery import collapse, rotate
from surgery.operation import layer_of
from train import TrainConfig, Trainer

ROTATE = (
    '--linear=expanded', '--expansion=40', '--expansion_init=orthogonal', '--expansion_schedule=rotate',
    '--expansion_every=3',
)  # fmt: skip
SITES = [f'h.{i}.mlp.{name}' for i in range(2) for name in ('c_fc', 'c_proj')]  # of TINY, in order of depth


def trainer(*flags, double=False):
    t = Trainer(load(TrainConfig, [*TINY, *ROTATE, *flags]), torch.device('cpu'))
    if double:
        for m in [t.model, *t.optimizer.factors.values()]:
            m.double()
        t.optimizer.rebuild({})
    return t


def expanded_sites(t):
    return [name.removeprefix('transformer.') for name in t.optimizer.factors]


@pytest.mark.parametrize('init', ['orthogonal', 'svd'])
@pytest.mark.parametrize('moments', ['reset', 'map'])
def test_every_rotation_keeps_the_function(init, moments):
    """In float64, through a whole round and back to the first layer."""
    t = trainer(f'--expansion_init={init}', f'--expansion_moments={moments}', '--linear_layers=mlp+attn', double=True)
    order = list(linear.chosen(t.cfg))
    assert len(order) == 8 and expanded_sites(t) == order[:1]
    x, y = t.data['val'].batch(0)
    loss = lambda: t.model(x, y)[1].item()
    seen = []
    real, before = rotate.turn, []

    def turn(*args):
        before.append(loss())
        real(*args)
        seen.append((abs(loss() - before[-1]), expanded_sites(t)))

    rotate.turn = turn
    try:
        for _ in range(3 * 9):
            t.step()
    finally:
        rotate.turn = real
    assert [s for _, s in seen] == [[order[i % 8]] for i in range(1, 10)]
    assert max(d for d, _ in seen) < 1e-10
    assert before[-1] < before[0] - 0.05  # and it learns


def test_rotating_once_in_a_blue_moon_is_expanding_one_layer(run_train):
    a = run_train(*ROTATE, '--expansion_every=1000', out='a')
    one = [*ROTATE[:3], '--linear_layers=h.0.mlp.c_fc', '--linear_path=materialised']
    b = run_train(*one, out='b')
    assert losses(a) == losses(b) and losses(a, 'eval') == losses(b, 'eval')
    a, b = (checkpoint.load(d / 'ckpt.pt') for d in (a, b))
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items()) and a['model_args'] == b['model_args']


@pytest.mark.parametrize('moments', ['reset', 'map'])
def test_a_rotating_run_resumes_exactly_whatever_its_flags_say(run_train, moments, capsys):
    """Stopped at 5, between the rotations at 3 and 6; resumed with flags of a plain run."""
    flags = (*ROTATE, f'--expansion_moments={moments}', '--dropout=0.1', '--gradient_accumulation_steps=2')
    whole = run_train('--max_iters=10', *flags, out='whole')
    run_train('--max_iters=5', *flags, out='parts')
    parts = run_train('--max_iters=10', '--init_from=resume', *flags[-2:], out='parts')
    assert 'expansion_schedule = rotate' in capsys.readouterr().out
    a, b = (checkpoint.load(d / 'ckpt.pt') for d in (whole, parts))
    assert a['model_args']['linear_layers'] == b['model_args']['linear_layers'] == SITES[3]
    assert a['model'].keys() == b['model'].keys() and a['optimizer'].keys() == b['optimizer'].keys()
    assert all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    for name, state in a['optimizer'].items():
        assert all(torch.equal(v, b['optimizer'][name][k]) for k, v in state.items()), name
    assert losses(whole) == losses(parts) and losses(whole, 'eval') == losses(parts, 'eval')


def test_the_control_restarts_the_same_layers_at_the_same_iterations(run_train):
    """Adam counts its steps since the last restart: one count per layer, after a round and a half."""

    def ages(out):
        state = checkpoint.load(out / 'ckpt.pt')['optimizer']
        return {k.removesuffix('.weight').removesuffix('.factors.0'): s['step'].item() for k, s in state.items()}

    flags = ('--max_iters=17', '--eval_interval=17')
    rotating, control = run_train(*ROTATE, *flags, out='a'), run_train(*ROTATE, *flags, '--expansion_schedule=reset')
    a = {k: v for k, v in ages(rotating).items() if not k.endswith('.factors.1')}
    # restarts at 3 (layers 0 and 1), 6 (1, 2), 9 (2, 3), 12 (3, 0), 15 (0, 1)
    assert [a[f'transformer.{s}'] for s in SITES] == [2, 2, 8, 5] and a['transformer.wte'] == 17
    assert a == ages(control)
    plain = checkpoint.load(control / 'ckpt.pt')
    assert 'linear' not in plain['model_args'] and not any('factors' in k for k in plain['model'])
    dense = run_train('--max_iters=3', '--eval_interval=3', out='dense')
    start = {k: v for k, v in losses(control).items() if k < 3}
    assert losses(dense) == start  # before the first restart it is the dense run
    more = run_train('--max_iters=20', '--eval_interval=20', '--init_from=resume')
    whole = run_train(*ROTATE, '--max_iters=20', '--eval_interval=20', '--expansion_schedule=reset', out='whole')
    assert losses(more) == losses(whole)


def test_one_graph_serves_all_rotations():
    t = trainer('--compile=false')
    compiled = []

    def count(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    t.forward = t.eval_forward = torch.compile(t.model, fullgraph=True, backend=count)
    for _ in range(2):
        t.step()
    t.evaluate('val')
    n = len(compiled)
    assert n >= 2  # training and evaluation
    for _ in range(14):
        t.step()
    t.evaluate('val')
    assert expanded_sites(t) == [SITES[16 // 3 % 4]] and len(compiled) == n


def held(t) -> int:
    """Bytes that the optimizer and the model hold, counted tensor by tensor."""
    opt = t.optimizer
    params = {id(p): p for p in [*t.model.parameters(), *opt.factors.tensors]}.values()
    state = [v for s in opt.adamw.state.values() for v in s.values() if v.dim()]
    all_of_it = [*params, *params, *state, *opt.factors.products]  # a gradient is as large as its parameter
    return sum(v.numel() * v.element_size() for v in all_of_it)


def test_training_holds_a_single_expansion(capsys):
    t = trainer()
    every = trainer('--expansion_schedule=all', '--linear_path=materialised')
    for _ in range(2):
        t.step()
        every.step()
    counted = [held(x) for x in (t, every)]
    assert counted == [rotate.footprint(x.model, x.optimizer.factors) for x in (t, every)]
    dense = rotate.footprint(tiny_gpt(vocab_size=t.cfg.vocab_size, block_size=32))
    extra = [n - dense for n in counted]
    assert 0 < extra[0] == extra[1] / 4  # four layers, all of one size
    old = [weakref.ref(W) for m in t.optimizer.factors.values() for W in m.factors]
    gc.disable()  # train.py freezes what exists: the old factors must go without a collector
    try:
        t.step()
        assert expanded_sites(t) == SITES[1:2] and all(r() is None for r in old)
    finally:
        gc.enable()
    assert held(t) == counted[0]


@pytest.mark.parametrize('rule', ['factor', 'product'])
def test_memory_of_a_rotation_under_another_optimizer(rule):
    t = trainer('--optimizer=muon', f'--step_rule={rule}')
    t.step()
    opt = t.optimizer
    gradients = [*t.model.parameters(), *opt.factors.tensors]
    state = [
        v
        for part in (opt.adamw.state, opt.matrix_optimizer.averaged)
        for s in part.values()
        for v in s.values()
        if v.dim()
    ]
    held = [*t.model.parameters(), *(p for m in opt.factors.values() for p in m.parameters()), *gradients, *state]
    counted = sum(v.numel() * v.element_size() for v in [*held, *opt.factors.products])
    assert counted == rotate.footprint(t.model, opt.factors, 'muon', rule)


@pytest.mark.parametrize('d_in, d_out', [(12, 20), (20, 12)])
@pytest.mark.parametrize('depth', [2, 3])
@pytest.mark.parametrize('init', ['orthogonal', 'svd'])
def test_moments_of_factors_are_those_of_their_gradients(d_in, d_out, depth, init):
    """Gradients of W with a mean and independent noise, pulled back by autograd: their average and mean square."""
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    config = GPTConfig(linear='expanded', expansion=24, expansion_depth=depth, expansion_init=init)
    layer = Expanded(d_in, d_out, config).double()
    layer.start(draw(d_out, d_in), None, gen)
    mean, std = draw(d_out, d_in), draw(d_out, d_in).abs()
    t, n = 30, 4000
    state = dict(
        step=torch.tensor(float(t)), exp_avg=(1 - 0.9**t) * mean, exp_avg_sq=(1 - 0.95**t) * (mean**2 + std**2)
    )
    states = rotate.spread(layer, state, 0.9, 0.95)
    W, factors = layer.to_dense(), list(layer.factors)
    exact = torch.autograd.grad(W, factors, mean, retain_graph=True)
    squares = [torch.zeros_like(f) for f in factors]
    for _ in range(n):
        grads = torch.autograd.grad(W, factors, mean + std * draw(d_out, d_in), retain_graph=True)
        squares = [s + g**2 / n for s, g in zip(squares, grads)]
    for s, m, v in zip(states, exact, squares):
        assert torch.allclose(s['exp_avg'], (1 - 0.9**t) * m, atol=1e-12) and s['step'] == t
        assert ((s['exp_avg_sq'] / (1 - 0.95**t) - v).norm() / v.norm()) < 0.1
    back = rotate.gather(layer, states)
    assert torch.allclose(back['exp_avg'], state['exp_avg'], atol=1e-10) and back['step'] == t
    assert all(v.is_contiguous() for s in (*states, back) for v in s.values())  # a fused AdamW refuses others
    v, w = state['exp_avg_sq'], back['exp_avg_sq']
    assert (w > 0).all() and w.sum().item() == pytest.approx(v.sum().item(), rel=0.35)  # an estimate
    if init == 'orthogonal' and depth == 2:  # the orthonormal factor's side is exact up to the total
        side = 1 if d_in <= d_out else 0
        a, b = v.sum(side), w.sum(side)
        assert torch.allclose(a / a.sum(), b / b.sum(), atol=1e-10)


def test_rotating_checkpoints_collapse_and_evaluate(run_train, tmp_path, script):
    out = run_train(*ROTATE)
    assert checkpoint.load(out / 'ckpt.pt')['model_args']['linear_layers'] == SITES[3]
    transfer.collapse(collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'plain' / 'ckpt.pt'), windows=2))
    a, b = (checkpoint.build(checkpoint.load(p / 'ckpt.pt')) for p in (out, tmp_path / 'plain'))
    assert (a(tokens())[0] - b(tokens())[0]).abs().max() < 1e-5 and b.config.linear == 'dense'
    text = script('sample.py', f'--out_dir={out}', '--start=ROMEO:', '--max_new_tokens=5', '--device=cpu').stdout
    assert text.startswith('ROMEO:')


@pytest.mark.parametrize('init', ['orthogonal', 'svd'])
def test_expand_and_collapse_at_rest_are_inverse(tmp_path, run_train, capsys, init, fails):
    src = tmp_path / 'src' / 'ckpt.pt'
    model = tiny_gpt(bias=True).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    checkpoint.save(src, checkpoint.pack(model, dict(dataset='shakespeare_char'), 7, 1.5))
    flags = [
        '--windows=2',
        '--linear_layers=h.1.mlp.*,h.0.attn.c_attn',
        '--expansion_depth=3',
        f'--expansion_init={init}',
    ]
    config = load(collapse.ExpandConfig, [f'--checkpoint={src}', f'--out={tmp_path}/e/ckpt.pt', *flags])
    transfer.expand(config)
    said = capsys.readouterr().out
    assert 'largest logit difference' in said and 'loss' in said and 'h.0.attn.c_attn 32 -> 96: 3 factors' in said
    new = checkpoint.load(tmp_path / 'e' / 'ckpt.pt')
    built = checkpoint.build(new)
    assert {n for n, m in built.named_modules() if hasattr(m, 'factors')} == {
        'transformer.h.0.attn.c_attn', 'transformer.h.1.mlp.c_fc', 'transformer.h.1.mlp.c_proj'
    }  # fmt: skip
    assert (built(tokens())[0] - model(tokens())[0]).abs().max() < 1e-5
    transfer.collapse(collapse.TransferConfig(f'{tmp_path}/e/ckpt.pt', f'{tmp_path}/c/ckpt.pt', windows=2))
    back = checkpoint.load(tmp_path / 'c' / 'ckpt.pt')['model']
    for name, v in model.state_dict().items():
        assert (back[name] - v).abs().max() < 1e-6, name
    narrow = load(collapse.ExpandConfig, [f'--checkpoint={src}', f'--out={tmp_path}/n.pt', '--expansion=3', *flags])
    fails(lambda: transfer.expand(narrow), 'expansion' if init == 'orthogonal' else 'the function would change')
    again = collapse.ExpandConfig(checkpoint=f'{tmp_path}/e/ckpt.pt', out=f'{tmp_path}/n.pt')
    fails(lambda: transfer.expand(again), 'its layers are expanded; collapse it first')
    assert not (tmp_path / 'n.pt').exists()


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--linear=dense'], "rotate: takes the layers of linear = 'expanded' in turn, this is linear = 'dense'"),
        (['--linear=kronecker'], "this is linear = 'kronecker'"),
        (['--expansion_init=gaussian'], 'gaussian: would lose the matrix at every rotation; use orthogonal or svd'),
        (['--expansion_init=svd', '--expansion=31'], 'must keep matrices of rank 32; use that or more'),
        (['--linear_path=factored'], 'use materialised or auto'),
        (['--keep_dense=mlp'], 'leave no layer'),
        (['--expansion_schedule=reset', '--expansion_moments=map'], 'expansion_moments cannot be map'),
        (['--expansion_schedule=rotat'], "did you mean 'rotate'"),
        (['--expansion_every=0'], 'expansion_every = .*must be at least 1'),
    ],
)
def test_what_cannot_rotate_is_refused(flags, message):
    with pytest.raises(UserError, match=message) as e:
        load(TrainConfig, [*TINY, *ROTATE, *flags])
    assert '\n' not in str(e.value)


def test_rotation_starts_from_plain_weights_only(run_train, tmp_path, fails):
    src = run_train('--max_iters=2', *ROTATE[:3], out='src')
    cfg = load(TrainConfig, [*TINY, *ROTATE, f'--out_dir={tmp_path / "x"}', f'--init_from={src}/ckpt.pt'])
    fails(lambda: Trainer(cfg, torch.device('cpu')), 'rotate starts from plain ones; collapse it first')
    plain = run_train('--max_iters=2', out='plain')
    start = run_train(*ROTATE, f'--init_from={plain}/ckpt.pt', '--max_iters=0', out='start')
    assert losses(start, 'eval')[0] == pytest.approx(losses(plain, 'eval')[2], abs=1e-5)


def test_keys_without_effect_are_said_to_be():
    idle = lambda *flags: set(load(TrainConfig, [*TINY, *ROTATE, *flags]).idle())
    assert idle() == set()
    assert idle('--expansion_schedule=all', '--expansion_moments=map') == {'expansion_every', 'expansion_moments'}
    assert idle('--expansion_schedule=reset') == {'expansion', 'expansion_init'}


def test_every_round_draws_another_basis():
    t = trainer('--expansion_init=orthogonal')
    model, opt, cfg, site = t.model, t.optimizer, t.cfg, SITES[0]
    layer, seen = layer_of(model, site), []
    for it in (4, 8):
        expanded = rotate.expansion(layer, cfg, site, cfg.seed_model ^ it)
        seen.append(expanded.factors[0].detach())
        assert (expanded.to_dense() - layer.weight).abs().max() < 1e-5
    assert (seen[0] - seen[1]).abs().max() > 0.01
    drawn, real = [], rotate.expansion
    rotate.expansion = lambda layer, cfg, site, seed: (drawn.append((site, seed)), real(layer, cfg, site, seed))[1]
    try:
        for it in range(1, 1 + 2 * len(SITES) * cfg.expansion_every):
            if it % cfg.expansion_every == 0:
                rotate.turn(cfg, model, opt, it)
    finally:
        rotate.expansion = real
    assert len(drawn) == 2 * len(SITES) == len(set(drawn)) == len({seed for _, seed in drawn})


def test_rates_under_mup_are_those_of_the_layer_that_stood_there():
    t = trainer('--mup_base=16')
    rate = 16 / t.cfg.n_embd
    for _ in range(3):
        (name,) = t.optimizer.factors
        layer = t.optimizer.factors[name]
        assert layer.dense_lr_scale == rate and layer.lr_scale.item() == pytest.approx(rate)
        groups = {id(p): g for g in t.optimizer.adamw.param_groups for p in g['params']}
        assert [groups[id(W)]['lr_scale'] for W in layer.factors] == pytest.approx([rate, rate])
        others = [layer_of(t.model, s) for s in SITES if linear.module_name(s) != name]
        assert {groups[id(m.weight)]['lr_scale'] for m in others} == {rate}
        for _ in range(t.cfg.expansion_every):
            t.step()
        assert list(t.optimizer.factors) != [name]


def test_rates_follow_the_expansion():
    """The learning rates of the optimizer are those of the layer that is expanded now."""
    t = trainer('--expansion_lr=matched', '--expansion_decay=product')
    for _ in range(4):
        t.step()
    expanded = t.optimizer.factors[linear.module_name(SITES[1])]
    groups = {id(p): g for g in t.optimizer.adamw.param_groups for p in g['params']}
    assert 0.2 < expanded.lr_scale.item() < 1
    assert {groups[id(W)]['lr_scale'] for W in expanded.factors} == {expanded.lr_scale.item()}
    decay = t.cfg.weight_decay / (2 * expanded.lr_scale.item())
    assert groups[id(expanded.factors[0])]['weight_decay'] == pytest.approx(decay)
    assert groups[id(layer_of(t.model, SITES[0]).weight)]['lr_scale'] == 1.0


@pytest.mark.slow
def test_two_processes_rotate_as_one_with_twice_the_accumulation(run_train, two_processes, tmp_path):
    flags = [
        *ROTATE,
        '--expansion_moments=map',
        '--gradient_accumulation_steps=4',
        '--learning_rate=2e-3',
        '--min_lr=2e-4',
    ]
    one, two = run_train(*flags, out='one'), tmp_path / 'two'
    two_processes(*flags, f'--out_dir={two}')
    a, b = losses(one), losses(two)
    assert len(a) == 10 and max(abs(a[i] - b[i]) for i in a) < 1e-5


@pytest.mark.parametrize('d_in, d_out', [(12, 20), (20, 12)])
def test_second_moments_that_are_gathered_sum_to_what_was_spread(d_in, d_out):
    """Exactly so where all rows of the longer side are of one length: noise without a mean, an orthogonal start."""
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    W = draw(d_out, d_in)
    W = 3 * W / W.norm(dim=1 if d_in < d_out else 0, keepdim=True)
    layer = Expanded(d_in, d_out, GPTConfig(linear='expanded', expansion=24, expansion_init='orthogonal')).double()
    layer.start(W, None, gen)
    v = draw(d_out, d_in).abs()
    state = dict(step=torch.tensor(30.0), exp_avg=torch.zeros(d_out, d_in).double(), exp_avg_sq=v)
    w = rotate.gather(layer, rotate.spread(layer, state, 0.9, 0.95))['exp_avg_sq']
    torch.testing.assert_close(w.sum(0), v.sum(0))
    torch.testing.assert_close(w.sum(1), v.sum(1))


def test_an_expansion_must_keep_the_largest_rank_of_the_layers_that_take_turns():
    """Block 1 has fewer hidden units than the width: its MLP has a smaller rank than that of block 0."""
    flags = [*TINY, *ROTATE, '--mlp_expansion_factor=4,0.5', '--vocab_size=65']
    with pytest.raises(UserError, match='expansion = 20: .*must keep matrices of rank 32'):
        load(TrainConfig, [*flags, '--expansion_init=svd', '--expansion=20'])


def test_factors_of_expand_go_by_its_seed():
    model = tiny_gpt().eval()
    config = dataclasses.replace(model.config, linear='expanded', expansion_init='orthogonal')
    first = lambda seed: collapse.expand_model(model, config, seed).transformer.h[0].mlp.c_fc.factors[0]
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
