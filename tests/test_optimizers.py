"""Optimizers of the blocks' matrices: their formulas against independent hands, what they move and what they leave alone."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from conftest import learn, losses, tiny_gpt, tokens, train_config

import linear
import optimizers
import transfer
from configurator import UserError, gather, key, load
from lab import mup
from linear import factors
from model import GPT
from optimizers import base, composed, muon, product
from optimizers.muon import orthogonalize
from optimizers.optim import Optimizer
from surgery.grow import growth
from surgery.grow.weights import grow_moments, grow_weights, parse
from train import TrainConfig

MATRIX = [k for k, kind in optimizers.OPTIMIZERS.items() if kind]
BLOCKS = dict(linear_layers='mlp+attn', bias=True)


def optimizer(model, lr=1e-2, **keys):
    opt = Optimizer(model, train_config(model, **dict(optimizer='muon', grad_clip=0.0) | keys))
    opt.set_lr(lr)
    return opt


def gradients(opt, gen):
    """A random gradient for every matrix of the network."""
    for p in opt.weights:
        p.grad = torch.randn(p.shape, generator=gen)


# -----------------------------------------------------------------------------
# formulas


@pytest.mark.parametrize('shape', [(3, 20, 50), (2, 50, 20), (1, 32, 32), (1, 1, 7), (4, 7, 1)])
def test_newton_schulz_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    """Against the SVD in float64, for matrices whose smallest singular value is a twentieth of the largest."""
    gen = torch.Generator().manual_seed(0)
    B, m, n = shape
    r = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(B, k, r, generator=gen).double()).Q for k in (m, n))
    S = torch.logspace(0, math.log10(0.05), r).double()
    X = orthogonalize(((U * S) @ V.mT).float()).double()
    inner = U.mT @ X @ V  # diagonal, if the singular vectors are kept
    values = inner.diagonal(dim1=1, dim2=2)
    assert (inner - torch.diag_embed(values)).abs().max() < 2e-4
    assert (X - U @ inner @ V.mT).abs().max() < 2e-4
    assert values.min() > 0.68 and values.max() < muon.LARGEST
    x = torch.linspace(0, 1, 100_001).double()
    a, b, c = muon.QUINTIC
    for _ in range(muon.STEPS):
        x = a * x + b * x**3 + c * x**5
    assert 1.2 < x.max() < muon.LARGEST


@pytest.mark.parametrize('scale, theirs', [('rms', 'match_rms_adamw'), ('original', 'original')])
def test_torchs_muon_takes_the_same_20_steps(scale, theirs):
    """On the dense matrices of a GPT; q, k and v are three of them. torch runs Newton-Schulz in bfloat16, and so does this."""
    model = tiny_gpt(n_kv_head=1)
    opt = optimizer(model, muon_scale=scale, weight_decay=0.3)
    opt.matrix_optimizer.precision = torch.bfloat16
    mine = [
        part[0]
        for name, p in opt.matrix_optimizer.tensors.items()
        for part in opt.matrix_optimizer.places[name][0].unfold(p.detach())
    ]
    torchs = [v.clone().requires_grad_() for v in mine]
    assert len(mine) == 2 * (3 + 3) and {tuple(v.shape) for v in mine} == {(32, 32), (16, 32), (128, 32), (32, 128)}
    oracle = torch.optim.Muon(torchs, lr=1e-2, weight_decay=0.3, adjust_lr_fn=theirs)
    gen = torch.Generator().manual_seed(1)
    before = [v.clone() for v in mine]
    for step in range(20):
        lr = 1e-2 * (1 - step / 40)
        opt.set_lr(lr)
        oracle.param_groups[0]['lr'] = lr
        gradients(opt, gen)
        grads = [
            g[0]
            for n, p in opt.matrix_optimizer.tensors.items()
            for g in opt.matrix_optimizer.places[n][0].unfold(p.grad)
        ]
        for t, g in zip(torchs, grads):
            t.grad = g.clone()
        opt.step()
        oracle.step()
    for a, b, start in zip(mine, torchs, before):
        assert (a - b).abs().max() < 2e-3 * (b - start).abs().max(), a.shape


def test_normuon_is_its_formula_in_float64():
    """Row means of O^2, averaged; O over their roots, at the norm of O. Exact polynomial, written out once more."""
    model = tiny_gpt(n_layer=1)
    opt = optimizer(model, lr=0.03, optimizer='normuon', weight_decay=0.2)
    name = 'transformer.h.0.mlp.c_proj.weight'
    p = opt.leaves[name]
    W, M, v = p.detach().double(), 0.0, 0.0
    gen = torch.Generator().manual_seed(2)
    for _ in range(5):
        gradients(opt, gen)
        G = p.grad.double()
        M = 0.95 * M + 0.05 * G
        U, S, Vh = torch.linalg.svd(0.95 * M + 0.05 * G, full_matrices=False)
        s = S / S.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        X = (U * s) @ Vh
        v = 0.95 * v + 0.05 * (X**2).mean(1, keepdim=True)
        Y = X / v.sqrt()
        W = (1 - 0.03 * 0.2) * W - 0.03 * 0.2 * math.sqrt(128) * Y * X.norm() / Y.norm()
        opt.step()
        assert (p.detach() - W).abs().max() < 1e-5
    assert torch.allclose(opt.state_dict()[name]['row_mean'].double(), v, rtol=1e-4)


# -----------------------------------------------------------------------------
# what is moved


@pytest.mark.parametrize('kind', MATRIX)
@pytest.mark.parametrize('name', [*linear.LAYERS, 'mixture of MLPs', 'gates'])
def test_only_matrices_of_blocks_are_moved_and_the_rest_moves_as_under_adamw(kind, name):
    keys = {'mixture of MLPs': dict(mlp='moe'), 'gates': dict(mlp='swiglu', mlp_gate=True)}.get(name, dict(linear=name))
    found = {}
    for which in (kind, 'adamw'):
        model = tiny_gpt(**BLOCKS, tie_head=False, guide_iters=9 if 'linear' in keys else 0, **keys)
        opt, gen = optimizer(model, optimizer=which), torch.Generator().manual_seed(0)
        for p in opt.leaves.values():  # a factor that starts at zero gives the other one no gradient
            p.data += 0.02 * torch.randn(p.shape, generator=gen)
        for m in [*model.modules(), *opt.factors.values()]:
            if getattr(m, 'guide', None) is not None:
                m.share.fill_(0.5)
        opt.factors.form()
        before = {n: p.detach().clone() for n, p in opt.leaves.items()}
        gradients(opt, gen)
        opt.step()
        found[which] = opt, {n: p.detach() - before[n] for n, p in opt.leaves.items()}
    (mine, moved), (_, adams) = found[kind], found['adamw']
    assert moved.keys() == adams.keys() == mine.leaves.keys()
    assert set(mine.matrix_optimizer.tensors) | set(mine.by_adamw) == set(moved)
    assert not set(mine.matrix_optimizer.tensors) & set(mine.by_adamw)
    for n, change in moved.items():
        last = n.rpartition('.')[2]
        vector = any(k in n for k in ('wte', 'wpe', 'lm_head', 'ln_')) or last in ('bias', 'gain', 'gate', 'router')
        values = '.factors.' in n and change.ndim == 2 and change.size(0) == 1  # entries of W itself
        assert (n in mine.matrix_optimizer.tensors) != (vector or values), n
        assert (change != 0).any(), n
        assert torch.equal(change, adams[n]) == (n in mine.by_adamw), n


@pytest.mark.parametrize('rule', ['factor', 'composed', 'product'])
@pytest.mark.parametrize('name', linear.LAYERS)
def test_every_layer_learns(name, rule):
    if rule == 'product' and not linear.LAYERS[name].is_matrix:
        return  # refused: test_wrong_inputs_get_one_line
    model = tiny_gpt(linear=name, **BLOCKS).train()
    opt, x, y = optimizer(model, step_rule=rule), tokens(), tokens(seed=1)
    before, *_ = learn(model, opt, x, y, 5)
    assert model(x, y)[1].item() < before - 1


class Circulant(linear.structured.Structured):
    """W_ij = c_(i - j): a layer of a reader, whose only factor is a vector. 32 -> 128 and 128 -> 32 have equal shapes."""

    def __init__(self, d_in, d_out, config):
        super().__init__(d_in, d_out, config, [(1, max(d_in, d_out))], [d_in])

    def matrix(self):
        at = torch.arange(self.d_out)[:, None] - torch.arange(self.d_in)
        return self.capped()[0][0][at % max(self.d_in, self.d_out)]

    def product(self, x, W):
        return x @ self.matrix().T

    def start(self, W0, std, gen, residual=False):
        self.draw([0.1], gen, residual)

    def form_macs(self):
        return 0

    def traffic(self):
        return 0


@pytest.mark.parametrize('rule', ['factor', 'composed', 'product'])
@pytest.mark.parametrize('sites', ['mlp', 'mlp+attn'])
def test_a_layer_of_vectors_alone_learns_beside_every_rule(monkeypatch, sites, rule):
    monkeypatch.setitem(linear.LAYERS, 'circulant', Circulant)
    model = tiny_gpt(linear='circulant', linear_layers=sites, linear_path='materialised').train()
    opt, x, y = optimizer(model, step_rule=rule), tokens(), tokens(seed=1)
    vectors = {n: p.detach().clone() for n, p in opt.leaves.items() if 'factors' in n}
    before, *_ = learn(model, opt, x, y, 5)
    assert model(x, y)[1].item() < before - 0.3
    assert vectors and all(n in opt.by_adamw and not torch.equal(opt.leaves[n], v) for n, v in vectors.items())


def test_layers_of_equal_shapes_move_apart_where_their_matrices_differ(monkeypatch):
    """step_rule = product moves layers of one kind together, if they form matrices of one shape."""
    matrix = linear.base.Matrix((1, 128), (1,), (0,))
    as_column = lambda self: {'factors.0': matrix}
    monkeypatch.setitem(linear.LAYERS, 'circulant', type('Column', (Circulant,), dict(matrices=as_column)))
    model = tiny_gpt(linear='circulant', linear_layers='mlp', linear_path='materialised').train()
    opt, x, y = optimizer(model, step_rule='product'), tokens(), tokens(seed=1)
    before, *_ = learn(model, opt, x, y, 5)
    assert model(x, y)[1].item() < before - 0.3


def test_rates_and_decay_of_the_matrices():
    """matrix_lr follows the schedule of learning_rate; hidden_lr is a factor on the rate and not on the decay; a product
    decays as the dense matrix in its place."""
    for keys, lr, decay in (
        ({}, 0.5, 0.5),
        (dict(matrix_lr=4e-2), 2.0, 2.0),
        (dict(matrix_lr=4e-2, hidden_lr=0.25), 0.5, 2.0),
        (dict(linear='btt', linear_layers='mlp+attn'), 0.5, 0.25),  # of each of two factors
        (dict(linear='btt', linear_layers='mlp+attn', structured_decay='none'), 0.5, 0.0),
        (dict(linear='expanded', linear_layers='mlp+attn', expansion_decay='factors'), 0.5, 0.5),
        (dict(linear='btt', linear_layers='mlp+attn', step_rule='product', hidden_lr=0.5), 0.25, 0.25),
    ):
        model = tiny_gpt(**{k: v for k, v in keys.items() if k not in ('matrix_lr', 'hidden_lr', 'step_rule')})
        own = {k: v for k, v in keys.items() if k in ('matrix_lr', 'hidden_lr', 'step_rule')}
        opt = optimizer(model, lr=0.5, learning_rate=1e-2, weight_decay=0.1, **own)  # half of 1e-2 would be 5e-3
        opt.set_lr(5e-3)
        assert opt.matrix_optimizer.lr == pytest.approx(lr * 1e-2)
        before = {n: opt.leaves[n].detach().clone() for n in opt.matrix_optimizer.parameters}
        for p in opt.weights:
            p.grad = torch.zeros_like(p)  # what is left is decay
        opt.step()
        for n, old in before.items():
            torch.testing.assert_close(opt.leaves[n].detach(), old * (1 - decay * 1e-2 * 0.1), rtol=1e-6, atol=0)


def test_a_step_does_not_depend_on_the_size_of_the_gradient_and_halves_of_a_batch_are_the_batch():
    moved = []
    for factor, clip in ((1, 0.0), (1e-6, 0.0), (1e3, 1.0)):  # a small model's gradients are far above eps
        model = tiny_gpt()
        opt = optimizer(model, grad_clip=clip)
        before = {n: p.detach().clone() for n, p in opt.matrix_optimizer.tensors.items()}
        gradients(opt, torch.Generator().manual_seed(0))
        for p in opt.weights:
            p.grad *= factor
        opt.step()
        moved.append({n: p.detach() - before[n] for n, p in opt.matrix_optimizer.tensors.items()})
    for other in moved[1:]:
        for n, change in moved[0].items():
            torch.testing.assert_close(other[n], change, rtol=0, atol=1e-3 * change.abs().max().item())


def test_accumulation_is_the_batch(run_train):
    flags = ('--optimizer=muon', '--max_iters=6')
    whole = losses(run_train(*flags, '--batch_size=8', '--gradient_accumulation_steps=1', out='a'))
    halves = losses(run_train(*flags, '--gradient_accumulation_steps=2', out='b'))
    assert whole == pytest.approx(halves, abs=1e-3)


# -----------------------------------------------------------------------------
# the composed rule


CHAINS = [k for k in linear.LAYERS if k not in ('dense', 'btt_moe')] + [
    'expanded of 3',
    'tensor_train of 3',
    'kronecker of 3',
]


@pytest.mark.parametrize('name', CHAINS)
@pytest.mark.parametrize('size', [0.1, 10])
def test_a_composed_step_bounds_the_change_of_the_product(name, size):
    """|W' - W| <= 1.21 eta in the spectral norm, for factors of any size, exactly and to first order; and it is no empty
    bound: some layer comes within a factor of 30 of it."""
    special = dict(expanded=dict(expansion_depth=3), tensor_train=dict(tt_cores=3), kronecker=dict(kronecker_terms=3))
    kind, _, three = name.partition(' of ')
    keys = dict(linear=kind, linear_layers='mlp+attn', linear_path='factored', n_layer=1)
    model = tiny_gpt(**keys, **(special[kind] if three else {}))
    gen = torch.Generator().manual_seed(3)
    for n, p in model.named_parameters():
        if 'factors' in n:
            p.data = p.data * size + 0.02 * torch.randn(p.shape, generator=gen)
    opt = optimizer(model, lr=0.05, step_rule='composed', weight_decay=0.0)
    if not opt.matrix_optimizer.parameters:
        return  # all factors are vectors
    sites = {n: model.get_submodule(n) for n in map(linear.module_name, linear.chosen(model.config))}
    tightest = 0.0
    for _ in range(3):
        old = {n: factors.dense_float64(m) for n, m in sites.items()}
        W0 = {n: [p.detach().clone().double() for p in m.factors] for n, m in sites.items()}
        gradients(opt, gen)
        for n, p in opt.leaves.items():
            if n in opt.by_adamw and 'factors' in n:
                p.grad.zero_()  # sparse values: AdamW's own step is no part of the bound
        opt.step()
        for n, m in sites.items():
            eta = 0.05 * opt.matrix_optimizer.scale(m.parts[0] if m.parts else m.d_out, m.d_in)
            change = factors.dense_float64(m) - old[n]
            start = tuple(W0[n])
            delta = tuple(p.detach().double() - w for p, w in zip(m.factors, start))
            formed = product.Formed(copy.deepcopy(m).double())
            first = torch.func.jvp(lambda *f: torch.func.functional_call(formed, names(f), ()), start, delta)[1]  # noqa: B023
            rows = m.parts if splits(m) else (m.d_out,)
            for exact, linearly in zip(change.split(rows), first.split(rows)):
                exact, linearly = (torch.linalg.matrix_norm(X, 2).item() for X in (exact, linearly))
                limit = muon.LARGEST * eta * (1 if splits(m) or not m.parts else math.sqrt(3))
                assert 0 < linearly <= limit and 0 < exact <= limit, (n, exact, linearly, limit)
                tightest = max(tightest, exact / limit)
    assert tightest > 1 / 30


def splits(m) -> bool:
    return any(M.split for M in m.matrices().values())


def names(tensors) -> dict:
    return {f'layer.factors.{i}': t for i, t in enumerate(tensors)}


def test_a_composed_step_of_a_single_matrix_is_its_own_step():
    found = []
    for rule in ('factor', 'composed'):
        model = tiny_gpt()
        opt = optimizer(model, step_rule=rule)
        gradients(opt, torch.Generator().manual_seed(0))
        opt.step()
        found.append([p.detach().clone() for p in opt.matrix_optimizer.tensors.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_power_iteration_finds_the_norm_and_survives_zero():
    gen = torch.Generator().manual_seed(0)
    W = torch.randn(3, 20, 30, generator=gen)
    W[1] = 0
    v = torch.randn(3, 1, 30, generator=gen)
    for _ in range(30):
        s = composed.norm(W, v, composed.ITERATIONS)
    torch.testing.assert_close(s, torch.linalg.matrix_norm(W, 2), rtol=1e-3, atol=0)
    W[1] = 1.0  # a factor that started at zero has grown
    assert composed.norm(W, v, composed.ITERATIONS)[1].item() == pytest.approx(math.sqrt(600), rel=1e-4)


# -----------------------------------------------------------------------------
# the rule of the product


def layer_of(name, size=1.0):
    """A layer 16 -> 32 of CHAINS in float64, all its tensors in general position."""
    kind, _, three = name.partition(' of ')
    special = dict(expanded=dict(expansion_depth=3), tensor_train=dict(tt_cores=3), kronecker=dict(kronecker_terms=3))
    keys = linear.Keys(expansion=24, **(special[kind] if three else {}))
    layer, gen = linear.LAYERS[kind](16, 32, keys), torch.Generator()
    layer.start(torch.randn(32, 16, generator=gen) / 8, 1 / 8, gen)
    for p in layer.parameters():
        p.data = size * (p.data + 0.1 * torch.randn(p.shape, generator=gen))
    return layer.double()


def follow(layer, T):
    """Move the factors of a layer after T. Returns {key: its step}."""
    before = {k: layer.get_parameter(k).detach().clone() for k in layer.matrices()}
    product.Product([('it', layer, layer.matrices())], {'it.weight': T}).follow({'it.weight': T}, T.dtype)
    return {k: layer.get_parameter(k).detach() - old for k, old in before.items()}


@pytest.mark.parametrize('name', ['expanded of 3', 'btt', 'kronecker', 'tensor_train of 3', 'blast', 'low_rank_sparse'])
def test_factors_follow_by_damped_least_squares(name, monkeypatch):
    """Against the normal equations of the whole Jacobian, when there are enough iterations; the few of a step go its way."""
    layer, gen = layer_of(name), torch.Generator().manual_seed(1)
    T = 1e-3 * orthogonalize(torch.randn(1, 32, 16, generator=gen).double(), torch.float64)[0]
    own = {k: layer.get_parameter(k).detach() for k in layer.matrices()}
    formed = lambda *f: torch.func.functional_call(product.Formed(layer), {f'layer.{k}': v for k, v in zip(own, f)}, ())
    J = torch.autograd.functional.jacobian(formed, tuple(own.values()), vectorize=True)
    J = torch.cat([j.reshape(T.numel(), -1) for j in J], dim=1)  # (numbers of W, of the factors)
    gram = J @ J.T + T.norm() / 4 * torch.eye(T.numel()).double()
    want = J.T @ torch.linalg.solve(gram, T.flatten())
    few = torch.cat([d.flatten() for d in follow(copy.deepcopy(layer), T).values()])
    monkeypatch.setattr(product, 'ITERATIONS', 300)
    many = torch.cat([d.flatten() for d in follow(layer, T).values()])
    assert (many - want).norm() < 1e-4 * want.norm()
    reached = lambda d: 1 - (J @ d - T.flatten()).norm() / T.norm()
    assert 0.5 * reached(want) < reached(few) and few.norm() <= want.norm() * (1 + 1e-6)


@pytest.mark.parametrize('name', ['expanded', 'btt', 'tensor_train of 3'])
def test_the_step_of_the_factors_is_bounded_however_small_they_are(name):
    """|d|^2 <= |T| sqrt(16) / 4, and W moves by little more than |T|; factors that all are zero stay, as they do by gradients."""
    gen = torch.Generator().manual_seed(2)
    for size, last in ((1.0, 1), (1.0, 0), (0.1, 1), (1e-4, 1), (1e-12, 1), (0.0, 0)):
        layer = layer_of(name, size)
        layer.factors[-1].data *= last
        T = 0.05 * torch.randn(32, 16, generator=gen).double()
        W = layer.to_dense().detach()
        steps = follow(layer, T).values()
        assert sum(d.square().sum() for d in steps) <= T.norm() * (1 + 1e-6)
        moved = (layer.to_dense() - W).norm() / T.norm()
        assert (0.1 if size == 1 else 0) <= moved < 1.2, (size, last, moved)


def test_the_product_moves_as_the_dense_matrix_to_first_order(monkeypatch):
    """What is missing falls with the rate. q, k and v are apart, with momentum, in float64."""
    monkeypatch.setattr(product, 'ITERATIONS', 60)
    errors = []
    for lr in (1e-4, 1e-5):
        model = tiny_gpt(n_layer=1, linear='expanded', linear_layers='mlp+attn').double()
        twin = tiny_gpt(n_layer=1).double()
        a, b = optimizer(model, lr, step_rule='product', weight_decay=0.0), optimizer(twin, lr, weight_decay=0.0)
        twin.load_state_dict(model.state_dict())
        for opt in (a, b):
            opt.matrix_optimizer.precision = torch.float64
            for states in opt.matrix_optimizer.state.values():
                states.update({k: v.double() for k, v in states.items()})
        before = {n: p.detach().clone() for n, p in b.matrix_optimizer.tensors.items()}
        assert a.matrix_optimizer.tensors.keys() == before.keys() and all(
            'factors' in n for n in a.matrix_optimizer.parameters
        )
        gen = torch.Generator().manual_seed(5)
        for _ in range(2):
            for p, q in zip(a.weights, b.weights):
                p.grad = torch.randn(p.shape, generator=gen).double()
                q.grad = p.grad.clone()
            a.step()
            b.step()
        wanted = {n: p.detach() - before[n] for n, p in b.matrix_optimizer.tensors.items()}
        found = {n: p.detach() - before[n] for n, p in a.matrix_optimizer.tensors.items()}
        errors.append(max((found[n] - wanted[n]).norm() / wanted[n].norm() for n in wanted))
    assert errors[0] < 0.2 and 5 < errors[0] / errors[1] < 15, errors


def test_an_expanded_run_follows_torchs_muon_on_the_dense_matrix():
    """20 steps from an orthogonal start, with decay and a falling rate; the few iterations of a step are enough."""
    keys = dict(linear='expanded', linear_layers='mlp+attn', expansion_init='orthogonal', expansion_decay='product')
    model = tiny_gpt(**keys)
    opt = optimizer(model, step_rule='product', weight_decay=0.3)
    opt.matrix_optimizer.precision = torch.bfloat16
    unfold = lambda n, t: [v[0] for v in opt.matrix_optimizer.places[n][0].unfold(t.detach())]
    parts = lambda: [v for n, p in opt.matrix_optimizer.tensors.items() for v in unfold(n, p)]
    before = [v.clone() for v in parts()]
    torchs = [v.clone().requires_grad_() for v in before]
    oracle = torch.optim.Muon(torchs, lr=1e-2, weight_decay=0.3, adjust_lr_fn='match_rms_adamw')
    gen = torch.Generator().manual_seed(1)
    for step in range(20):
        lr = 3e-3 * (1 - step / 40)
        opt.set_lr(lr)
        oracle.param_groups[0]['lr'] = lr
        gradients(opt, gen)
        for t, g in zip(torchs, [g for n, p in opt.matrix_optimizer.tensors.items() for g in unfold(n, p.grad)]):
            t.grad = g.clone()
        opt.step()
        oracle.step()
    for a, b, start in zip(parts(), torchs, before):
        assert (a - b).norm() < 0.02 * (b - start).norm(), a.shape


# -----------------------------------------------------------------------------
# widths, resuming, growth, rotation


MUP = {'dense': {}, 'mixture': dict(mlp='moe')} | {
    k: dict(linear=k, linear_layers='mlp+attn') for k in ('expanded', 'low_rank', 'btt', 'monarch')
}


def test_with_mup_the_scale_is_the_law_of_the_original_at_the_size_of_rms():
    """A square matrix of width mup_base takes the step that it takes without mup; no width changes another square one's."""
    scales = {}
    for width in (0, 16):
        for kind in ('rms', 'original'):
            opt = optimizer(tiny_gpt(mup_base=width), muon_scale=kind)
            scales[width, kind] = [
                opt.matrix_optimizer.scale(m, n) for m, n in ((16, 16), (32, 32), (128, 32), (32, 128))
            ]
    assert scales[0, 'rms'] == pytest.approx([0.2 * math.sqrt(k) for k in (16, 32, 128, 128)])
    assert scales[16, 'rms'] == pytest.approx([0.8, 0.8, 1.6, 0.8])
    assert scales[0, 'original'] == scales[16, 'original'] == pytest.approx([1, 1, 2, 1])


@pytest.mark.parametrize('case, scale', [*zip(MUP, ['rms', 'original'] * 3), ('dense', 'original')])
def test_with_mup_a_few_steps_change_outputs_alike_at_every_width(case, scale):
    keys = dict(optimizer='muon', muon_scale=scale, matrix_lr=4e-3 if scale == 'rms' else 2e-2)
    found = [mup.sizes(n, 64, steps=3, **keys, **MUP[case]) for n in (64, 192)]
    for part in found[0]:
        moved = [f[part][2] for f in found]
        assert min(moved) > 1e-3 and all(0.25 < m / moved[0] < 2.5 for m in moved), (part, moved)


RESUMED = [
    (kind, flags) for kind in MATRIX for flags in ((), ('--linear=btt',), ('--linear=tensor_train', '--tt_cores=3'))
]
RESUMED += [('muon', (f'--linear={name}', '--step_rule=composed')) for name in ('kronecker', 'expanded')]
RESUMED += [('normuon', ('--linear=low_rank_sparse', '--step_rule=product'))]


@pytest.mark.parametrize('kind, flags', RESUMED)
def test_resuming_is_exact(run_train, kind, flags):
    flags = (f'--optimizer={kind}', '--linear_layers=mlp+attn', '--matrix_lr=3e-3', *flags)
    straight = run_train(*flags, '--max_iters=8', out='straight')
    run_train(*flags, '--max_iters=5', out='parts')
    parts = run_train(*flags, '--max_iters=8', '--init_from=resume', out='parts')
    a, b = (torch.load(d / 'ckpt.pt', weights_only=True) for d in (straight, parts))
    assert losses(straight) == losses(parts)
    for part in ('model', 'optimizer'):
        for name, v in a[part].items():
            for x, z in zip(*((t.values() if isinstance(t, dict) else [t]) for t in (v, b[part][name]))):
                assert torch.equal(x, z), name


def test_another_optimizers_state_is_refused_in_one_line(run_train, fails, monkeypatch):
    """Also that of one whose state has the same names and shapes."""
    monkeypatch.setitem(optimizers.OPTIMIZERS, 'twin', type('Twin', (muon.Muon,), {}))
    run_train('--optimizer=muon', '--max_iters=2')
    for kind in ('adamw', 'normuon', 'twin'):
        go = functools.partial(run_train, f'--optimizer={kind}', '--init_from=resume', '--max_iters=4')
        said = fails(go, 'start a new run from its')
        assert f'optimizer = {kind}: the state is of optimizer = muon' in said and said.count('\n') == 1
    run_train('--optimizer=muon', '--linear=btt', '--max_iters=2', out='btt')
    fails(
        lambda: run_train('--optimizer=muon', '--step_rule=product', '--init_from=resume', '--max_iters=4', out='btt'),
        'does not fit the model and step_rule',
    )
    run_train('--max_iters=2', out='adam')
    fails(
        lambda: run_train('--optimizer=muon', '--init_from=resume', out='adam'),
        'the state is of optimizer = adamw',
    )


def test_an_average_grows_as_a_gradient_does_whatever_its_name():
    """Where the MLP alone grows, weights and gradients grow by other factors."""
    old, gen, how = tiny_gpt().config, torch.Generator().manual_seed(0), parse('clone', 0, 0)
    new = dataclasses.replace(old, mlp_expansion_factor=8.0)
    grads = {n: torch.randn(p.shape, generator=gen) for n, p in tiny_gpt().named_parameters()}
    adams, muons = (grow_moments({n: {k: g} for n, g in grads.items()}, old, new, how) for k in ('exp_avg', 'momentum'))
    weights = grow_weights(grads, old, new, how)
    for n, p in GPT(new).named_parameters():
        assert torch.equal(muons[n]['momentum'], adams[n]['exp_avg']) and muons[n]['momentum'].shape == p.shape, n
        assert torch.equal(muons[n]['momentum'], weights[n]) != ('mlp' in n), n


@pytest.mark.parametrize('kind', MATRIX)
@pytest.mark.parametrize('method', ['stack', 'interleave'])
def test_growing_a_step_in_depth_is_a_step_of_the_grown(kind, method):
    """Where copies of a block get copies of its gradient."""
    grow_and_step(kind, method, dict(n_layer=4))


@pytest.mark.parametrize('names', [{}, dict(n_kv_head=1, mlp='swiglu', mlp_expansion_factor=3.0, tie_head=False)])
def test_growing_a_step_in_width_is_a_step_of_the_grown(names):
    """Muon's step on n copies of a matrix is n copies of its step, at the original scale: the same function moves as far.
    At the RMS-matched scale it moves sqrt(n) times as far, which hidden_lr undoes."""
    for n in (2, 3):
        wide = dict(n_embd=32 * n, n_head=2 * n, n_kv_head=n if names else 0)
        grow_and_step('muon', 'clone', wide, names, muon_scale='original')
        grow_and_step('muon', 'clone', wide, names, muon_scale='rms', hidden_lr=n**-0.5)


def grow_and_step(kind, method, sizes, names={}, hidden_lr=1.0, **keys):  # noqa: B006
    how, small = parse(method, 0, 0), tiny_gpt(**names).double()
    new = dataclasses.replace(small.config, **sizes)
    large = tiny_gpt(**names | sizes).double()
    keys |= dict(weight_decay=0.0)
    a = optimizer(small, optimizer=kind, **keys)
    b = optimizer(large, optimizer=kind, **keys, hidden_lr=hidden_lr)
    for opt in (a, b):
        opt.matrix_optimizer.precision = torch.float64
        for states in opt.matrix_optimizer.state.values():
            states.update({k: v.double() for k, v in states.items()})
    gen = torch.Generator().manual_seed(4)
    gradients_of = lambda opt: {n: torch.randn(p.shape, generator=gen).double() for n, p in opt.leaves.items()}
    for step in range(4):
        if step == 2:
            large.load_state_dict(grow_weights(small.state_dict(), small.config, new, how))
            moved = grow_moments(a.state_dict(), small.config, new, how)
            b.load_state_dict({n: moved[n] for n in b.leaves})
        g = gradients_of(a)
        as_state = {n: dict(exp_avg=v) for n, v in g.items()}
        big = grow_moments(as_state, small.config, new, how)  # averages of gradients grow as gradients do
        for n, p in a.leaves.items():
            p.grad = g[n]
        a.step()
        if step >= 2:
            for n, p in b.leaves.items():
                p.grad = big[n]['exp_avg']
            b.step()
    want = grow_weights(small.state_dict(), small.config, new, how)
    for name in b.matrix_optimizer.tensors:
        scale = (
            (want[name] - grow_weights(tiny_gpt(**names).double().state_dict(), small.config, new, how)[name])
            .abs()
            .max()
        )
        assert (large.state_dict()[name] - want[name]).abs().max() < 1e-6 * scale, name


def test_a_run_grows_with_its_state_and_says_where_it_cannot(run_train, capsys, fails):
    small = run_train('--optimizer=muon', '--max_iters=4', out='small') / 'ckpt.pt'
    flags = ('--init_from=transfer', f'--transfer_from={small}', '--transfer_method=stack', '--n_layer=4')
    out = run_train(*flags, '--optimizer=muon', '--transfer_moments=move', '--max_iters=3', out='large')
    assert "moments: the optimizer's, grown with the weights" in capsys.readouterr().out and losses(out)[2] < 4
    run_train(*flags, '--max_iters=1', out='other')
    assert 'moments: fresh (they are those of optimizer = muon, and it is adamw now)' in capsys.readouterr().out
    move = (*flags, '--optimizer=normuon', '--transfer_moments=move')
    fails(
        lambda: run_train(*move, out='move'),
        'transfer_moments = move: they are those of optimizer = muon, and it is normuon now',
    )
    deep, plain = small.with_name('deep.pt'), small.with_name('plain.pt')
    command = lambda name, *argv: transfer.COMMANDS[name][1](load(transfer.COMMANDS[name][0], argv))
    command('grow', f'--checkpoint={small}', '--method=clone', '--n_embd=64', f'--out={deep}')
    assert '--hidden_lr=0.707 keeps the pace' in capsys.readouterr().out
    how, old = parse('clone', 0, 0), tiny_gpt().config
    say = lambda **keys: growth.say_grown(old, dataclasses.replace(old, n_embd=64), how, '', keys, 'noise')
    for keys, pace in ((dict(muon_scale='original'), None), (dict(optimizer='signs'), None), (dict(), '0.5')):
        say(**dict(optimizer='adamw' if pace else 'muon') | keys)
        said = capsys.readouterr().out  # at the original scale there is nothing to undo; of others nothing is known
        assert (f'--hidden_lr={pace} keeps' in said) if pace else 'hidden_lr' not in said, keys
    state = torch.load(deep, weights_only=True)['optimizer']
    assert state['transformer.h.0.mlp.c_fc.weight']['momentum'].shape == (256, 64)
    export = (f'--checkpoint={small}', f'--out={plain}')
    fails(lambda: command('export-nanogpt', *export), 'its optimizer is muon, nanoGPT resumes only AdamW')


def test_a_rotating_run_and_a_guided_one_go_on(run_train, fails):
    rotating = (
        '--linear=expanded',
        '--expansion_init=orthogonal',
        '--expansion_schedule=rotate',
        '--expansion_every=3',
    )
    for i, kind in enumerate(MATRIX):
        found = losses(run_train(f'--optimizer={kind}', *rotating, out=f'r{i}'))
        assert found[9] < found[0] - 0.5
        found = losses(run_train(f'--optimizer={kind}', '--linear=btt', '--guide_iters=4', out=f'g{i}'))
        assert found[9] < found[0] - 0.5
    for flags in (rotating, ('--linear=btt', '--guide_iters=4')):
        found = losses(run_train('--optimizer=muon', '--step_rule=product', *flags, out=f'p{flags[0]}'))
        assert found[9] < found[0] - 0.5
    control = [f.replace('=rotate', '=reset') for f in rotating if 'init' not in f]
    assert losses(run_train('--optimizer=muon', *control, out='reset'))[9] < 4
    fails(
        lambda: run_train('--optimizer=muon', *rotating, '--expansion_moments=map'),
        'expansion_moments = map',
        'use reset',
    )


def test_restart_forgets_in_place():
    opt = optimizer(tiny_gpt(), optimizer='normuon')
    gradients(opt, torch.Generator().manual_seed(0))
    opt.step()
    name, other = list(opt.matrix_optimizer.tensors)[:2]
    held = lambda: [
        v
        for found in (opt.matrix_optimizer.averaged, opt.matrix_optimizer.state)
        for s in found.values()
        for v in s.values()
    ]
    before = held()
    opt.restart([name, 'transformer.wte.weight'])
    state = opt.state_dict()
    assert all((v == 0).all() for n in (name, 'transformer.wte.weight') for v in state[n].values())
    assert all((v != 0).any() for v in state[other].values())
    assert all(a is b for a, b in zip(before, held(), strict=True))


# -----------------------------------------------------------------------------
# the registry


class Signs(base.MatrixOptimizer):
    """A toy: the signs of an average. As an optimizer of optimizers/ it would be this one file and one line in OPTIMIZERS."""

    def average(self, G, state):
        return state['momentum'].lerp_(G, 0.1)

    def direction(self, U, state):
        return U.sign()


def test_an_optimizer_is_one_file_and_one_line(monkeypatch, run_train):
    monkeypatch.setitem(optimizers.OPTIMIZERS, 'signs', Signs)
    out = run_train('--optimizer=signs', '--linear=btt', '--max_iters=6')
    assert losses(out)[5] < losses(out)[0] - 0.3
    losses_of = losses(run_train('--optimizer=signs', '--linear=btt', '--init_from=resume', '--max_iters=8'))
    assert len(losses_of) == 8
    model = tiny_gpt()
    opt = optimizer(model, optimizer='signs', weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in opt.matrix_optimizer.tensors.items()}
    gradients(opt, torch.Generator().manual_seed(0))
    opt.step()
    for n, p in opt.matrix_optimizer.tensors.items():
        torch.testing.assert_close(p.detach(), before[n] - 1e-2 * p.grad.sign())


class Descent(base.MatrixOptimizer):
    """A toy with a key of its own, which also reads one of Muon's."""

    @dataclasses.dataclass
    class Keys(base.Momentum):
        lag: int = key(2, 'steps')


def test_the_keys_of_an_optimizer_are_gathered_and_say_who_reads_them(monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, 'descent', Descent)
    gathered = lambda: gather(optimizers.Choice, optimizers.OPTIMIZERS, optimizers.group, optimizers.begin)
    found = {f.name: f for f in dataclasses.fields(gathered())}
    said = {k: found[k].metadata['help'].partition(': ')[0] for k in ('matrix_lr', 'momentum', 'muon_scale', 'lag')}
    assert said == dict(
        matrix_lr='not adamw', momentum='muon, normuon, descent', muon_scale='muon, normuon', lag='descent'
    )
    assert found['lag'].default == 2 and found['optimizer'].default == 'adamw'
    with pytest.raises(UserError, match='muon_scale = original: of no use with optimizer = descent'):
        load(TrainConfig, ['--optimizer=descent', '--muon_scale=original', '--momentum=0.5'])
    other = dataclasses.make_dataclass('Keys', [('lag', int, key(3, 'steps'))], bases=(base.Keys,))
    monkeypatch.setitem(optimizers.OPTIMIZERS, 'other', type('Other', (Descent,), dict(Keys=other)))
    with pytest.raises(UserError, match="'lag' is declared twice, for descent and for other"):
        gathered()


@pytest.mark.parametrize(
    'flags, parts',
    [
        (
            ['--optimizer=mion'],
            ["optimizer = 'mion': is unknown", 'use one of adamw, muon, normuon', "did you mean 'muon'"],
        ),
        (
            ['--matrix_lr=0.1'],
            ['matrix_lr = 0.1: of no use with optimizer = adamw; leave it at matrix_lr = 0.0', 'hidden_lr'],
        ),
        (
            ['--step_rule=composed', '--momentum=0.9'],
            ['step_rule = composed, momentum = 0.9: of no use with', 'at step_rule = factor, momentum = 0.95'],
        ),
        (['--optimizer=normuon', '--step_rule=composed'], ['step_rule = composed', 'use optimizer = muon']),
        (['--optimizer=signs', '--step_rule=composed'], ['step_rule = composed', 'those of signs can be larger']),
        (
            ['--optimizer=signs', '--muon_scale=original', '--momentum=0.5'],
            ['momentum = 0.5, muon_scale = original: of no use', '= signs'],
        ),
        (['--optimizer=muon', '--step_rule=both'], ['step_rule', 'must be one of factor, composed, product']),
        (
            ['--optimizer=muon', '--step_rule=product', '--linear=btt', '--linear_path=factored'],
            ['linear_path = factored', 'never forms the W', 'materialised or auto'],
        ),
        (['--optimizer=muon', '--step_rule=product', '--linear=btt_moe'], ['step_rule = product', 'is no matrix']),
        (
            ['--optimizer=normuon', '--step_rule=product', '--linear=btt', '--structured_norm=true'],
            ['structured_norm = True'],
        ),
        (['--optimizer=muon', '--linear=expanded', '--expansion_lr=matched'], ['expansion_lr = matched', 'composed']),
        (
            ['--optimizer=normuon', '--linear=expanded', '--expansion_lr=matched'],
            ['expansion_lr = matched', 'use step_rule = product'],  # composed is refused
        ),
        (
            ['--optimizer=muon', '--step_rule=composed', '--linear=btt', '--structured_norm=true'],
            ['structured_norm = True'],
        ),
        (['--optimizer=muon', '--matrix_lr=-1'], ['matrix_lr', 'must be at least 0']),
    ],
)
def test_wrong_inputs_get_one_line(flags, parts, monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, 'signs', Signs)
    with pytest.raises(UserError) as e:
        load(TrainConfig, flags)
    assert all(p in str(e.value) for p in parts) and '\n' not in str(e.value), str(e.value)


def test_a_key_that_means_nothing_is_named(run_train, capsys):
    for flags in ([], ['--mlp=moe'], ['--linear=btt', '--linear_layers=head', '--tie_head=false']):
        cfg = load(TrainConfig, ['--optimizer=muon', '--step_rule=composed', *flags])
        assert cfg.idle() == dict(step_rule='composed'), flags  # no product in the blocks
    assert not load(TrainConfig, ['--optimizer=muon', '--step_rule=composed', '--linear=btt']).idle()
    run_train('--optimizer=muon', '--step_rule=product', '--max_iters=1')
    said = capsys.readouterr().out
    assert 'without effect here: step_rule = product' in said and 'optimizer = muon' in said
    cfg = load(TrainConfig, ['--optimizer=muon', '--linear=btt', '--structured_lr=none'])
    assert cfg.idle() == dict(structured_lr='none')
    head = ['--tie_head=false', '--linear_layers=head']
    assert not load(TrainConfig, ['--optimizer=muon', '--linear=btt', '--structured_lr=none', *head]).idle()


def test_where_unfolding_copies_the_step_arrives_all_the_same():
    """Cores of a train are permuted on the way; and a stack of many tensors is written back to each."""
    model = tiny_gpt(linear='tensor_train', tt_cores=3, linear_layers='mlp+attn')
    opt = optimizer(model, weight_decay=0.0)
    assert len(opt.matrix_optimizer.views) < len(opt.matrix_optimizer.tensors)
    before = {n: p.detach().clone() for n, p in opt.matrix_optimizer.tensors.items()}
    gradients(opt, torch.Generator().manual_seed(0))
    opt.step()
    for n, p in opt.matrix_optimizer.tensors.items():
        M = opt.matrix_optimizer.places[n][0]
        for a, b, g in zip(M.unfold(before[n]), M.unfold(p.detach()), M.unfold(p.grad)):
            want = orthogonalize(g) * (0.2 * math.sqrt(max(a.shape[1:])) * 1e-2)
            torch.testing.assert_close(a - b, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('kind, layer', [('muon', 'expanded'), ('normuon', 'btt'), ('muon', 'tensor_train')])
def test_a_compiled_update_is_that_of_an_eager_one(kind, layer, monkeypatch):
    """Without the compiler's code, which takes long to build on a CPU; tests/test_gpu.py has that."""
    traced = functools.partial(torch.compile, backend='aot_eager')
    found = []
    for compile in (False, True):
        opt = optimizer(tiny_gpt(linear=layer, linear_layers='mlp+attn'), optimizer=kind)
        if compile:
            monkeypatch.setattr(torch, 'compile', traced)
            blocks = [b for b in opt.factors.matrices() if b[0].startswith('transformer.h.')]
            opt.matrix_optimizer = optimizers.OPTIMIZERS[kind](
                blocks, opt.leaves | opt.factors.formed(), opt.cfg, compile=True
            )
            assert opt.matrix_optimizer.move is not base.move
        gen = torch.Generator().manual_seed(0)
        for i, lr in enumerate((1e-2, 5e-3, 2e-3)):
            opt.set_lr(lr)
            gradients(opt, gen)
            with torch._dynamo.config.patch(error_on_recompile=i > 0):  # another rate is no other code
                opt.step()
        found.append({**opt.leaves, **{f'{n}.{k}': v for n, s in opt.state_dict().items() for k, v in s.items()}})
    assert found[0].keys() == found[1].keys()
    for name, v in found[0].items():
        torch.testing.assert_close(v, found[1][name], msg=name)


@pytest.mark.parametrize('kind', optimizers.OPTIMIZERS)
@pytest.mark.parametrize('linear', ('dense', 'btt', 'low_rank_sparse'))
def test_the_head_of_a_run_says_the_rate_and_decay_of_each_group(kind, linear):
    """The table against what a step does: without a gradient each parameter shrinks by its rate times its decay. Together its
    groups are all parameters."""
    model = tiny_gpt(linear=linear, bias=True)
    opt = optimizer(model, optimizer=kind, hidden_lr=2.0, learning_rate=0.01, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in opt.leaves.items()}
    for p in opt.weights:
        p.grad = torch.zeros_like(p)
    opt.step()
    said = {}
    for who, rate, decay, found in opt.groups():
        assert (who == kind) == (kind == 'adamw' or found.keys() <= opt.matrix_optimizer.parameters.keys())
        for name, p in found.items():
            said[name] = p
            torch.testing.assert_close(p.detach(), before[name] * (1 - rate * decay))
    assert said.keys() == opt.leaves.keys()
    head, columns, *rows = opt.describe()
    assert sum(int(row.split()[1]) for row in rows) == len(said)
    assert sum(int(row.split()[2].replace(',', '')) for row in rows) == sum(p.numel() for p in said.values())


def test_trainer_says_who_moves_what(run_train, capsys):
    run_train('--optimizer=muon', '--max_iters=1', '--matrix_lr=6e-3', '--hidden_lr=0.5')
    said = [' '.join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert 'muon 8 24,576 0.003 0.2 h.*.attn.c_attn, h.*.attn.c_proj, h.*.mlp.c_fc, h.*.mlp.c_proj' in said
    assert any("the log's lr is that of learning_rate)" in line for line in said)
    run_train('--optimizer=muon', '--max_iters=1', '--linear=btt', '--step_rule=composed', out='composed')
    assert 'under step_rule = composed the rate of factors is that of their product' in capsys.readouterr().out


def test_a_run_with_one_rate_and_the_usual_decay_says_nothing_of_them(run_train, capsys):
    run_train('--max_iters=1')
    assert 'peak rates' not in capsys.readouterr().out
    assert (
        optimizer(
            tiny_gpt(linear='btt', structured_lr='none', structured_decay='factors'), optimizer='adamw'
        ).describe()
        == []
    )
    assert optimizer(tiny_gpt(linear='btt'), optimizer='adamw').describe()


def test_a_run_that_diverges_says_which_rate_to_lower(run_train, fails):
    fails(
        lambda: run_train('--optimizer=muon', '--matrix_lr=1e9', '--max_iters=20'),
        'lower matrix_lr or learning_rate',
        code=3,
    )
    fails(
        lambda: run_train('--learning_rate=1e9', '--max_iters=20', out='adam'),
        'lower learning_rate or grad_clip',
        code=3,
    )
