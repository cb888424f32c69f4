"""Expanded layers: the product is what it claims, gradients are those of the factors, nothing is left dead."""

import gc
import math
import weakref

import pytest
import torch
from conftest import tiny_gpt, tokens, train_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import linear
from configurator import UserError
from linear import factors
from linear.expanded import Expanded, effective_lr_ratio, orthonormal
from linear.factors import Factors
from model import GPT, GPTConfig
from optimizers.optim import Optimizer
from train import TrainConfig

SHAPES = [(24, 40), (40, 24), (24, 24)]


def expanded(d_in, d_out, **keys):
    keys = dict(linear='expanded', n_embd=24, n_head=2) | keys
    return Expanded(d_in, d_out, GPTConfig(**keys)).double()


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize('init', ['orthogonal', 'svd'])
@pytest.mark.parametrize('d_in, d_out', SHAPES)
@pytest.mark.parametrize('depth', [2, 3, 20])
def test_exact_inits_reproduce_the_twin_matrix(init, d_in, d_out, depth):
    layer = expanded(d_in, d_out, expansion=48, expansion_depth=depth, expansion_init=init)
    W0 = torch.randn(d_out, d_in, generator=gen(), dtype=torch.float64) * 0.02
    layer.start(W0, 0.02, gen(1))
    assert (layer.to_dense() - W0).abs().max() < 1e-13
    x = torch.randn(5, d_in, generator=gen(2), dtype=torch.float64)
    assert (layer(x) - x @ W0.T).abs().max() < 1e-12


@pytest.mark.parametrize(
    'flags', [dict(linear='expanded', expansion=48, expansion_init='svd'), dict(linear='low_rank', rank=8)]
)
@pytest.mark.parametrize('rank', [0, 3])
def test_factors_of_a_matrix_of_low_rank_learn_beyond_it(flags, rank):
    """Where all factors are zero none gets a gradient: a block that begins as nothing would stay that."""
    layer = linear.make(GPTConfig(n_embd=20, **flags), 'h.0.mlp.c_fc', 20, 36)
    W = torch.randn(36, rank, generator=gen()) @ torch.randn(rank, 20, generator=gen(1))
    layer.from_dense(W)
    assert (layer.to_dense() - W).abs().max() < 1e-5
    last = layer.factors[-1]
    (grad,) = torch.autograd.grad(layer.to_dense(), last, torch.randn(36, 20, generator=gen(2)))
    assert torch.linalg.matrix_rank(grad.squeeze(), rtol=1e-4) == min(20, *last.squeeze().shape)


@pytest.mark.parametrize('linear_kind', ['expanded', 'low_rank'])
def test_product_decay_is_the_dense_twins_under_mup(linear_kind):
    """One step with a gradient of zero: only decay moves W."""
    shrunk = []
    for kind in ('dense', linear_kind):
        model = tiny_gpt(linear=kind, mup_base=16, expansion_decay='product', structured_decay='product')
        layer = model.transformer.h[0].mlp.c_fc
        W = layer.to_dense().detach().clone()
        opt = Optimizer(model, train_config(model, weight_decay=0.1))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.set_lr(1e-2)
        opt.step()
        shrunk.append(1 - (layer.to_dense().norm() / W.norm()).item())
    assert shrunk[0] > 1e-4 and shrunk[1] == pytest.approx(shrunk[0], rel=0.02)


def test_from_dense_is_the_named_start_with_its_rate():
    for init, depth in (('orthogonal', 2), ('svd', 3), ('gaussian', 2)):
        flags = dict(expansion=128, expansion_init=init, expansion_depth=depth, expansion_lr='matched')
        layer = expanded(20, 36, **flags)
        W = torch.randn(36, 20, generator=gen(), dtype=torch.float64) * 0.02
        layer.from_dense(W)
        assert (layer.to_dense() - W).abs().max() < 1e-12
        assert layer.lr_scale.item() == pytest.approx(1 / effective_lr_ratio(layer), rel=1e-5)
        first = layer.factors[0]
        assert ((first.T @ first - torch.eye(20)).abs().max() < 1e-12) == (init == 'orthogonal')


@pytest.mark.parametrize('rows, cols', [(64, 64), (100, 64), (400, 40)])
def test_random_bases_are_orthonormal_and_those_of_a_gaussian_matrix(rows, cols):
    for seed in range(20):
        Q = orthonormal(rows, cols, gen(seed))
        assert (Q.T @ Q - torch.eye(cols)).abs().max() < 1e-14
        R = Q.T @ torch.randn(rows, cols, generator=gen(seed)).double()
        assert R.tril(-1).abs().max() < 1e-10 and (R.diagonal() > 0).all()  # QR's, made unique: Haar


@pytest.mark.parametrize('d_in, d_out', SHAPES)
def test_from_dense_is_exact_and_below_the_rank_the_best_approximation(d_in, d_out):
    W = torch.randn(d_out, d_in, generator=gen(), dtype=torch.float64)
    layer = expanded(d_in, d_out, expansion=30, expansion_depth=3)
    layer.from_dense(W)
    assert (layer.to_dense() - W).abs().max() < 1e-12
    small = expanded(d_in, d_out, expansion=7)
    small.from_dense(W)
    tail = torch.linalg.svdvals(W)[7:].norm()
    assert torch.isclose((small.to_dense() - W).norm(), tail)
    again = small.to_dense().detach()
    small.from_dense(again)
    assert (small.to_dense() - again).abs().max() < 1e-12


def test_svd_factors_are_balanced():
    layer = expanded(24, 40, expansion=48, expansion_depth=3)
    layer.from_dense(torch.randn(40, 24, generator=gen(), dtype=torch.float64))
    a, b, c = layer.factors
    for upper, lower in ((b, a), (c, b)):  # W_{j+1}^T W_{j+1} = W_j W_j^T
        assert (upper.T @ upper - lower @ lower.T).abs().max() < 1e-12


@pytest.mark.parametrize('depth, k', [(2, 2000), (3, 512), (5, 256)])
@pytest.mark.parametrize('std', [0.02, 0.02 / math.sqrt(12)])
def test_gaussian_product_has_the_std_of_its_role(depth, k, std):
    layer = expanded(96, 128, expansion=k, expansion_depth=depth)
    layer.start(None, std, gen())
    assert layer.to_dense().std().item() == pytest.approx(std, rel=0.05)
    stds = [W.std().item() for W in layer.factors]
    assert max(stds) / min(stds) < 1.1


def test_roles_not_name_suffixes_decide_the_std():
    model = tiny_gpt(n_embd=128, linear='expanded', linear_layers='mlp+attn', n_layer=3)
    beside = Factors(model)
    assert len(beside) == 3 * 4
    for name, layer in beside.items():
        want = 0.02 / math.sqrt(2 * 3) if name.endswith('c_proj') else 0.02
        assert model.get_submodule(name).weight.std().item() == pytest.approx(want, rel=0.1), name
        assert layer.to_dense().std().item() == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize('init', ['orthogonal', 'svd'])
def test_step_0_loss_equals_the_dense_twin(init):
    x, y = tokens(), tokens(seed=1)
    dense = tiny_gpt(seed=3)(x, y)[1].item()
    for path in ('materialised', 'factored'):
        twin = tiny_gpt(seed=3, linear='expanded', linear_layers='mlp+attn', expansion_init=init)
        assert bool(Factors(twin, path=path)) == (path == 'materialised')
        assert abs(twin(x, y)[1].item() - dense) < 1e-5


def step_by(path, micro_batches, depth=2, clip=0.0):
    """One optimizer step of a float64 model; returns its leaves by name."""
    model = tiny_gpt(linear='expanded', expansion=20, expansion_depth=depth, linear_path=path, bias=True).double()
    opt = Optimizer(model, train_config(model, grad_clip=clip))
    for i in range(micro_batches):
        (model(tokens(seed=i), tokens(seed=i + 9))[1] / micro_batches).backward()
    opt.set_lr(1e-2)
    opt.step()
    return {name: p.detach().clone() for name, p, *_ in opt.factors.leaves()}, opt


@pytest.mark.parametrize('depth', [2, 4])
@pytest.mark.parametrize('micro_batches', [1, 3])
def test_a_step_beside_the_model_is_the_step_through_the_factors(depth, micro_batches):
    """Gradients through the formed product, once per step, equal those of activations through the factors, per
    micro-batch."""
    a, opt_a = step_by('materialised', micro_batches, depth)
    b, opt_b = step_by('factored', micro_batches, depth)
    assert a.keys() == b.keys() and any('factors.1' in k for k in a)
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-10, name
    sa, sb = opt_a.state_dict(), opt_b.state_dict()
    for name in sa:
        assert torch.allclose(sa[name]['exp_avg'], sb[name]['exp_avg'], rtol=1e-9, atol=1e-14), name


def test_clipping_means_the_same_as_in_the_dense_twin():
    """The norm is over the matrices' gradients: at step 0 equal to the dense twin's, and the factors' gradients are
    scaled by the same number."""
    x, y = tokens(), tokens(seed=1)
    norms = []
    for keys in ({}, dict(linear='expanded', expansion_init='svd')):
        model = tiny_gpt(**keys).double()
        opt = Optimizer(model, train_config(model, grad_clip=0.1))
        model(x, y)[1].backward()
        opt.step()
        norms.append(opt.grad_norm.item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6) and norms[0] > 0.1
    free, _ = step_by('materialised', 1, clip=0.0)
    _, opt = step_by('materialised', 1, clip=1e-3)
    _, opt_free = step_by('materialised', 1, clip=0.0)
    scale = 1e-3 / opt_free.grad_norm.item()
    for name, s in opt.state_dict().items():
        assert torch.allclose(s['exp_avg'], opt_free.state_dict()[name]['exp_avg'] * scale, rtol=1e-4), name


@pytest.mark.parametrize('keys', [{}, dict(linear='expanded'), dict(linear='expanded', linear_path='factored')])
def test_the_optimizer_moves_every_parameter_and_nothing_dead(keys):
    model = tiny_gpt(bias=True, linear_layers='mlp+attn', **keys)
    before = {name: p.detach().clone() for name, p, *_ in factors.leaves(model)}
    assert set(before) == {k for k in model.state_dict() if not k.endswith('lr_scale')} - {'lm_head.weight'}
    opt = Optimizer(model, train_config(model))
    model(tokens(), tokens(seed=1))[1].backward()
    opt.step()
    for name, p, *_ in opt.factors.leaves():
        assert not torch.equal(p, before[name]), f'{name} did not move'
    ids = [id(p) for g in opt.adamw.param_groups for p in g['params']]
    assert len(ids) == len(set(ids)) == len(before)
    for name, layer in opt.factors.items():
        assert torch.equal(model.get_submodule(name).weight, layer.to_dense())


def test_the_optimizer_is_the_only_owner_of_the_factors_beside():
    """Nothing that the model holds leads to them, and they go with the optimizer."""
    model = tiny_gpt(linear='expanded', linear_layers='mlp+attn', bias=True)
    opt = Optimizer(model, train_config(model))
    assert len(opt.factors) == 8 and all(type(m) is linear.Dense for m in map(model.get_submodule, opt.factors))
    theirs = {id(p) for m in opt.factors.values() for p in m.parameters()}
    found = [v for m in model.modules() for v in vars(m).values()]
    for _ in range(3):  # dicts and tuples of modules, of parameters
        found += [
            x for v in found if isinstance(v, (dict, list, tuple)) for x in (v.values() if isinstance(v, dict) else v)
        ]
    assert len(found) > 100 and not theirs & {id(v) for v in found}
    layers = [weakref.ref(m) for m in opt.factors.values()]
    del opt
    gc.collect()
    assert not any(ref() for ref in layers)


@pytest.mark.parametrize('path', ['auto', 'materialised', 'factored'])
def test_taking_factors_out_of_a_model_keeps_its_function_names_and_order(path):
    keys = dict(linear='low_rank', linear_layers='mlp+head', tie_head=False, bias=True)
    model, dense = tiny_gpt(**keys).double(), tiny_gpt(bias=True, tie_head=False)
    leaves = [(name, id(p), *rest) for name, p, *rest in factors.leaves(model)]
    n, want = model.num_params(), model(tokens())[0]
    beside = Factors(model, path=path)
    assert bool(beside) == (path != 'factored')
    assert (model(tokens())[0] - want).abs().max() < 1e-12
    assert [(name, id(p), *rest) for name, p, *rest in beside.leaves()] == leaves
    assert model.num_params(beside) == n and model.num_params_collapsed(beside) == dense.num_params()
    if path == 'materialised':
        assert list(model.state_dict()) == list(dense.state_dict())


def test_building_a_model_reads_nothing_of_torchrun(monkeypatch):
    """WORLD_SIZE is the trainer's to read, and the number of tokens by which a path is chosen its to pass."""
    for k in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'):
        monkeypatch.setenv(k, 'nonsense')
    for name in linear.LAYERS:
        Factors(GPT(TrainConfig(n_layer=1, n_head=2, n_embd=64, block_size=16, vocab_size=65, linear=name)), 1000)


def test_patterns_choose_single_sites():
    model = tiny_gpt(linear='expanded', linear_layers='h.1.mlp.c_fc, h.*.attn.c_proj')
    assert [n.removeprefix('transformer.') for n in Factors(model)] == [
        'h.0.attn.c_proj', 'h.1.attn.c_proj', 'h.1.mlp.c_fc'
    ]  # fmt: skip


@pytest.mark.parametrize('path', ['materialised', 'factored'])
@pytest.mark.parametrize('depth', [2, 3])
def test_flop_formulas_equal_the_counter(path, depth):
    model = tiny_gpt(linear='expanded', linear_layers='mlp+attn', expansion=48, expansion_depth=depth, linear_path=path)
    beside = Factors(model)
    x, y = tokens(B=3), tokens(B=3, seed=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, y)[1].backward()
    # the counter sees no gradient of the scores' scale or the embeddings, and neither do we: equality, not closeness
    assert counter.get_total_flops() == x.numel() * model.flops_per_token()
    if path == 'materialised':
        with FlopCounterMode(display=False) as counter:
            beside.form()
            beside.pull()
        assert counter.get_total_flops() == beside.flops_per_update() > 0


def test_auto_takes_the_cheaper_path():
    def formed(**keys):
        args = dict(n_layer=1, n_head=2, n_embd=512, block_size=64, vocab_size=65, linear='expanded') | keys
        config = TrainConfig(**args)
        return bool(Factors(GPT(config), config.tokens_per_iter))

    # c_fc: k (512 + 2048) multiply-adds and a traffic of 2k times 240 against 512 * 2048, for a large batch: formed iff k > 345
    assert formed(expansion=400, batch_size=1000, gradient_accumulation_steps=1)
    assert not formed(expansion=300, batch_size=1000, gradient_accumulation_steps=1)
    assert not formed(expansion=2000, batch_size=1, block_size=16, gradient_accumulation_steps=1)
    assert formed(expansion=2000, batch_size=1, block_size=16, gradient_accumulation_steps=40)


@pytest.mark.parametrize(
    'init, k, expected',
    [('gaussian', 2000, 3.1), ('orthogonal', 2000, 2.7), ('svd', 2000, 2.5), ('gaussian', 384, 0.92)],
)
def test_effective_lr_ratio_agrees_with_published_simulations(init, k, expected):
    """384 -> 1536, std 0.02; expected: the loss decrease of one sign step, simulated apart from this code."""
    layer = Expanded(384, 1536, GPTConfig(linear='expanded', expansion=k, expansion_init=init))
    std = 0.02**2 * math.sqrt(2000) if (init, k) == ('gaussian', 2000) else 0.02
    layer.start(torch.randn(1536, 384, generator=gen(7)) * 0.02, std, gen(1))
    assert effective_lr_ratio(layer) == pytest.approx(expected, rel=0.1)


def test_gaussian_effective_lr_ratio_is_the_formula():
    d, m, k = 96, 192, 1000
    layer = expanded(d, m, expansion=k)
    layer.start(None, 0.02, gen())
    s1, s2 = (W.std().item() for W in layer.factors)
    assert effective_lr_ratio(layer) == pytest.approx(k * s1 / math.sqrt(d) + k * s2 / math.sqrt(m), rel=0.03)


def test_matched_learning_rate_divides_the_factors_rate():
    model = tiny_gpt(linear='expanded', expansion=200, expansion_lr='matched')
    opt = Optimizer(model, train_config(model))
    opt.set_lr(1.0)
    rates = {id(p): g['lr'] for g in opt.adamw.param_groups for p in g['params']}
    assert opt.factors
    for layer in opt.factors.values():
        ratio = 1 / layer.lr_scale.item()
        assert ratio > 1.3
        for W in layer.factors:
            assert rates[id(W)] == pytest.approx(1 / ratio)
    assert rates[id(model.transformer.wte.weight)] == 1.0


@pytest.mark.parametrize(
    'decay, depth, per_step', [('factors', 2, 2), ('factors', 3, 3), ('product', 3, 1), ('none', 2, 0)]
)
@pytest.mark.parametrize('lr_rule', ['none', 'matched'])
def test_weight_decay_acts_where_it_says(decay, depth, per_step, lr_rule):
    """With zero gradients W shrinks by (1 - lr*wd)^per_step; where the factors decay at a rate of their own, by that."""
    model = tiny_gpt(
        linear='expanded', expansion=40, expansion_depth=depth, expansion_decay=decay, expansion_lr=lr_rule
    ).double()
    opt = Optimizer(model, train_config(model, weight_decay=0.1))
    before = {name: model.get_submodule(name).weight.detach().clone() for name in opt.factors}
    assert before
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.set_lr(1e-3)
    opt.step()
    for name, W in before.items():
        ratio = (model.get_submodule(name).weight / W).mean().item()
        rate = opt.factors[name].lr_scale.item() if decay == 'factors' else 1.0
        assert (rate == 1) == (lr_rule == 'none' or decay != 'factors')
        assert ratio == pytest.approx((1 - 1e-4 * rate) ** per_step, abs=2e-8)


def test_vectors_do_not_decay():
    model = tiny_gpt(bias=True)
    scales = {name: decay for name, p, _, decay in factors.leaves(model)}
    assert all(scales[n] == (1.0 if p.dim() >= 2 else 0.0) for n, p, *_ in factors.leaves(model))


def test_an_expansion_of_0_is_four_times_the_smaller_side():
    assert expanded(24, 40).k == expanded(40, 24).k == 4 * 24


def test_an_orthogonal_start_takes_as_many_features_as_its_smaller_side_and_no_fewer():
    """Of the layers of a GPT the smaller side is n_embd; the head of a few tokens has a smaller one."""
    problems = lambda k: GPTConfig(
        n_embd=24, n_head=2, linear='expanded', expansion_init='orthogonal', expansion=k
    ).problems()
    assert not problems(24) and not problems(0)
    assert 'needs expansion >= 24' in problems(23)[0]


def test_the_table_says_what_share_of_a_dense_layer_each_kind_takes_and_on_which_path_a_run_trains_it():
    """Without a run nobody knows the path: it depends on the tokens of a step."""
    model = tiny_gpt(linear='low_rank', rank=8, linear_layers='mlp', linear_path='factored')
    up = f'transformer.h.0.mlp.c_fc and 1 more 32 -> 128: {model.transformer.h[0].mlp.c_fc.describe()},'
    lines = factors.table(model)
    assert lines[0] == f'{up.removeprefix("transformer.")} 1,280 parameters (31.2% of dense)' and len(lines) == 2
    assert factors.table(model, {}) == [f'{line}, factored' for line in lines]
    assert factors.table(model, Factors(model, path='materialised')) == [f'{line}, materialised' for line in lines]


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda sd: sd.pop('transformer.ln_f.weight'), 'missing transformer.ln_f.weight'),
        (lambda sd: sd.update(more=torch.zeros(1)), 'left over more'),
        (lambda sd: sd.update({'transformer.ln_f.weight': torch.ones(33)}), r'ln_f.weight is \(33,\), not \(32,\)'),
    ],
)
def test_a_single_weight_that_does_not_fit_is_named(change, message):
    model = tiny_gpt()
    state = model.state_dict()
    change(state)
    with pytest.raises(UserError, match=f'the weights do not fit the model: .*{message}$'):
        factors.load_state(model, state)


@pytest.mark.parametrize('kind', ['expanded', 'btt', 'low_rank_sparse'])
def test_layers_of_one_size_draw_different_factors_and_the_same_ones_again(kind):
    first, second = (tiny_gpt(linear=kind, linear_path='factored').transformer.h for _ in range(2))
    for a, b in zip(first[0].mlp.c_fc.factors, first[1].mlp.c_fc.factors):
        assert not torch.equal(a, b)
    for a, b in zip(first[1].mlp.c_fc.factors, second[1].mlp.c_fc.factors):
        assert torch.equal(a, b)
