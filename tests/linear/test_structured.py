"""Structured layers: each computes its matrix, has the rank, the parameters and the operations that its formula says,
and is the best of its kind when it is made from a dense matrix."""

import functools
import math
import re

import pytest
import torch
from conftest import ROOT, learn, tiny_gpt, tokens, train_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
from configurator import UserError
from lab import mup
from linear import LAYERS, einsum, factors, structured, tensor_train
from linear.einsum import Shape
from linear.factors import load_state
from linear.kernels import blocks, chip, fused
from logger import read_metrics
from model import GPT, MLP, GPTConfig
from optimizers.optim import Optimizer
from surgery import collapse
from surgery.guide import Guide

# the layers that are one structured matrix
STRUCTURED = {n: L for n, L in LAYERS.items() if issubclass(L, structured.Structured) and L.is_matrix}
# name, keys: every kind as its defaults are, and some in other shapes
KINDS = [(name, {}) for name in STRUCTURED] + [
    ('low_rank', dict(rank=5)),
    ('block_dense', dict(blocks=3, rank=6)),
    ('monarch', dict(blocks=3)),
    ('btt', dict(rank=2)),
    ('btt', dict(blocks=3, rank=2)),
    ('kronecker', dict(kronecker_shape=(6, 9), kronecker_terms=3)),
    ('kronecker', dict(kronecker_shape=(18, 18), kronecker_terms=2)),
    ('tensor_train', dict(rank=4)),
    ('tensor_train', dict(rank=4, tt_cores=3)),
    ('block_diagonal', dict(blocks=3)),
    ('einsum', dict(theta=(0.4, 0.3, 0.3, 0.3, 0.4, 0.3, 0.2))),
]
SIZES = [(36, 54), (54, 36), (45, 63)]  # both ways, odd divisors
CASES = [
    (n, k, s)
    for n, k in KINDS
    for s in SIZES
    if not (s == (45, 63) and (n == 'monarch' and k or 'kronecker_shape' in k))
]
CASES += [('monarch', dict(blocks=3), (45, 81))]
IDS = [f'{n}-{"-".join(map(str, k.values()))}-{s}' for n, k, s in CASES]


def layer(name, size, norm=False, **keys):
    torch.manual_seed(0)
    m = STRUCTURED[name](*size, GPTConfig(linear=name, structured_norm=norm, **keys)).double()
    m.start(None, 0.02, torch.Generator().manual_seed(1))
    for W in m.factors:  # in general position, also where a start has zeros
        torch.nn.init.normal_(W, std=W.std().item() + 0.1)
    return m


@pytest.mark.parametrize('name, keys, size', CASES, ids=IDS)
def test_a_layer_computes_its_matrix(name, keys, size):
    for norm in (False, True):
        m = layer(name, size, norm, **keys)
        W = m.to_dense()
        assert W.shape == (size[1], size[0])
        wide = torch.randn(3, 4, 2 * size[0], dtype=torch.float64)
        inputs = [wide[0, :, : size[0]], wide[:, :1, ::2], wide[:, :, 1::2].transpose(0, 1), wide[0, 0, : size[0]]]
        for x in inputs:  # two axes; one token; not contiguous; no batch
            torch.testing.assert_close(m(x), x @ W.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name, keys, size', CASES[::3], ids=IDS[::3])
def test_gradients_are_those_through_the_matrix(name, keys, size):
    m = layer(name, size, **keys)
    m.bias = torch.nn.Parameter(torch.randn(size[1], dtype=torch.float64))
    x = torch.randn(5, size[0], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, size[1], dtype=torch.float64)
    wanted = torch.autograd.grad(((x @ m.to_dense().T + m.bias) * weight).sum(), [x, *m.parameters()])
    got = torch.autograd.grad((m(x) * weight).sum(), [x, *m.parameters()])
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('shape', [(3, 2, 5, 2), (3, 5, 2, 2)])
def test_the_copy_free_product_passes_gradcheck(shape):
    """Both ways to have the intermediate in backward: kept (a > e) and formed again."""
    g, a, f, e = shape
    x, A, B = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((4, g * a), (g, a, f * 3), (f, 3 * g, e))
    )
    assert torch.autograd.gradcheck(blocks.TwoFactor.apply, (x, A, B))
    D = torch.randn(g, a, e, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(blocks.ops.blocks, (x, D))


def pair(name, **keys):
    """The two layers of an MLP in float64, 12 -> 36 -> 12."""
    if name == 'dense':
        return [torch.nn.Linear(i, o, bias=False).double() for i, o in ((12, 36), (36, 12))]
    return [layer(name, size, **keys) for size in ((12, 36), (36, 12))]


PAIRS = [('low_rank', {}), ('block_dense', {}), ('block_dense', dict(blocks=3, rank=6)), ('monarch', dict(blocks=2)),
         ('btt', dict(blocks=3, rank=2)), ('btt', {}), ('dense', {})]  # fmt: skip


def apart(act, h):
    if act == 'relu2':
        return torch.relu(h).square()
    return torch.nn.functional.gelu(h, approximate='tanh' if act == 'gelu_tanh' else 'none')


@pytest.mark.parametrize('narrow', [1024, 0])
@pytest.mark.parametrize('act', fused.ACTIVATIONS)
@pytest.mark.parametrize('name, keys', PAIRS)
def test_an_mlp_with_its_activation_inside_the_products_is_the_mlp(name, keys, act, narrow, monkeypatch):
    """Wide ones keep h for the backward pass, narrow ones the derivative."""
    monkeypatch.setattr(fused, 'NARROW', narrow)
    fc, proj = pair(name, **keys)
    x, dy = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 12, dtype=torch.float64)
    inputs = [x, *fc.parameters(), *proj.parameters()]
    y, wanted = fused.mlp(fc, proj, x, act), proj(apart(act, fc(x)))
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    got, wanted = (torch.autograd.grad(v, inputs, dy) for v in (y, wanted))
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('act', fused.ACTIVATIONS)
def test_an_mlp_with_what_lies_between_on_chip_is_the_mlp(act, monkeypatch):
    """Its operators' plain paths, their shapes without values, and what they are counted as; the kernels: tests/test_gpu.py."""
    torch._dynamo.reset()
    fc, proj = pair('btt', rank=2)
    x, dy = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 12, dtype=torch.float64)
    inputs = [x, *fc.parameters(), *proj.parameters()]
    wanted = [proj(apart(act, fc(x))), *torch.autograd.grad(proj(apart(act, fc(x))), inputs, dy)]
    monkeypatch.setattr(chip, 'serves', lambda x, A, B: True)
    with FlopCounterMode(display=False) as counter:
        fused.mlp(fc, proj, x, act)
    assert counter.get_total_flops() == 2 * 10 * (fc.macs() + proj.macs())
    compiled = torch.compile(fused.mlp, fullgraph=True, backend='aot_eager')
    for y in (fused.mlp(fc, proj, x, act), compiled(fc, proj, x, act), proj(apart(act, fc(x)))):
        torch.testing.assert_close([y, *torch.autograd.grad(y, inputs, dy)], wanted, rtol=1e-10, atol=1e-12)


def test_activations_go_into_the_products_only_where_that_is_the_same(monkeypatch):
    x = torch.randn(3, 12).bfloat16()
    assert not fused.fits(*pair('low_rank'), x)  # no GPU
    monkeypatch.setattr(fused, 'on_chip', lambda x: True)
    assert fused.fits(*pair('low_rank'), x) and fused.fits(*pair('monarch', blocks=2), x.half())
    assert not fused.fits(*pair('low_rank'), x.float())
    with torch.no_grad():  # nobody will want the derivative
        assert not fused.fits(*pair('low_rank'), x)
    for wrong in ('kronecker', 'tensor_train', 'block_diagonal'):
        assert not fused.fits(*pair(wrong), x)
    fc, proj = pair('low_rank')
    fc.bias = torch.nn.Parameter(torch.zeros(36))
    assert not fused.fits(fc, proj, x)
    fc, proj = pair('low_rank')
    proj.follow(torch.zeros(12, 36))
    assert not fused.fits(fc, proj, x)
    assert not fused.fits(torch.nn.Linear(12, 36), proj, x)
    fc, proj = pair('dense')
    assert fused.fits(fc, proj, x) and fused.fits(pair('low_rank')[0], proj, x)
    monkeypatch.setattr(fused, 'NARROW', 8)  # a wide dense one is left to the compiler
    assert not fused.fits(fc, proj, x) and fused.fits(*pair('low_rank'), x)


def test_a_dense_mlp_with_its_activation_inside_lays_gradients_out_as_its_weights():
    """Otherwise every one of them would be copied before the optimizer takes it."""
    fc, proj = pair('dense')
    fused.mlp(fc, proj, torch.randn(5, 12, dtype=torch.float64, requires_grad=True), 'gelu').sum().backward()
    assert all(m.weight.grad.stride() == m.weight.stride() for m in (fc, proj))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['dense', 'block_dense', 'monarch'])
def test_a_model_with_its_activations_inside_the_products_is_one_graph(name, monkeypatch):
    torch._dynamo.reset()
    found = []
    for fits, compile in ((False, False), (True, True)):
        monkeypatch.setattr(fused, 'fits', lambda fc, proj, x, fits=fits: fits)
        model = tiny_gpt(linear=name, bias=False, linear_path='factored')
        forward = torch.compile(model, fullgraph=True, backend='aot_eager') if compile else model
        idx = torch.arange(16).view(2, 8) % model.config.vocab_size
        loss = forward(idx, idx)[1]
        found.append((loss, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name, keys', [k for k in KINDS if k[0] != 'einsum'], ids=str)
def test_factors_gradients_lie_in_memory_as_the_factors_do(name, keys):
    """A GPU's fused AdamW refuses other strides. (Those of axes of size one do not matter, here and there.)"""
    model = tiny_gpt(n_embd=36, n_head=2, linear=name, linear_path='materialised', **keys)
    weights = factors.Factors(model)
    for w in weights.weights:
        w.grad = torch.randn_like(w)
    weights.pull()
    assert weights and all(W.is_contiguous() and W.grad.is_contiguous() for W in weights.tensors)


def test_w_is_formed_in_the_precision_of_its_use():
    """bfloat16 products stay within its rounding, in W and in the factors' gradients; never float16."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = tiny_gpt(linear='tensor_train', linear_path='materialised')
        weights = factors.Factors(model, dtype=dtype)
        for w in weights.weights:
            w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
        formed = [w.detach().clone() for w in weights.weights]
        weights.pull()
        found[dtype] = [*formed, *(W.grad for W in weights.tensors)]
    exact = found[torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(exact, found[torch.float16]))
    assert not torch.equal(exact[0], found[torch.bfloat16][0])
    for a, b in zip(exact, found[torch.bfloat16]):
        assert b.dtype == torch.float32 and (a - b).norm() <= 2**-7 * a.norm()


@pytest.mark.parametrize('name, keys, size', CASES, ids=IDS)
def test_parameters_operations_and_rank_are_the_formulas(name, keys, size):
    m = layer(name, size, **keys)
    x = torch.randn(7, size[0], dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            m(x)
    unseen = 0  # by torch's counter: what is multiplied number by number
    if hasattr(m, 'shape'):
        s = m.order()
        if s.g == s.f == 1 < s.b * s.d and min(s.a * s.d, s.b * s.e) * s.r <= einsum.SMALL:
            unseen = (s.b * s.a * s.d if s.a * s.d <= s.b * s.e else s.d * s.b * s.e) * s.r
    assert counter.get_total_flops() == 2 * 7 * (m.macs() - unseen)
    if hasattr(m, 'shape'):
        s = m.shape
        assert sum(W.numel() for W in m.factors) == s.g * s.f * s.r * (s.a * s.d + s.b * s.e)
    numerical = torch.linalg.matrix_rank(m.to_dense()).item()
    assert numerical == m.rank() if hasattr(m, 'shape') else numerical <= m.rank()


@pytest.mark.parametrize('seed', range(12))
def test_the_rank_of_any_shape_is_the_formula(seed):
    pick = torch.Generator().manual_seed(seed)
    s = Shape(*(torch.randint(1, 5, (7,), generator=pick)).tolist())
    s = s._replace(r=min(s.r, s.a * s.d, s.b * s.e))
    d_in, d_out = s.a * s.b * s.g, s.d * s.e * s.f
    m = layer('einsum', (d_in, d_out), einsum_shape=tuple(s))
    assert torch.linalg.matrix_rank(m.to_dense()).item() == m.rank()


def test_a_kronecker_product_of_unequal_shapes_has_the_rank_of_its_factors():
    """(alpha, beta | delta, epsilon) = (3, 6 | 9, 2): the exponents say full rank 18, it is 3 * 2."""
    m = layer('einsum', (18, 18), einsum_shape=(3, 6, 1, 9, 2, 1, 1))
    assert m.rank() == torch.linalg.matrix_rank(m.to_dense()).item() == 6


@pytest.mark.parametrize('name, keys, size', CASES, ids=IDS)
def test_from_dense_is_the_nearest_member(name, keys, size):
    m = layer(name, size, **keys)
    inside = m.to_dense().detach()
    if m.closed_form:
        m.from_dense(inside)
        torch.testing.assert_close(m.to_dense(), inside, rtol=1e-10, atol=1e-10)  # recovered exactly
    W = torch.randn(size[1], size[0], dtype=torch.float64)
    m.from_dense(W)
    near = m.to_dense().detach()
    if not m.closed_form:  # an iteration: no nearby point is much better, and it stays where it is
        loss = lambda: (m.to_dense() - W).square().sum()
        before, grads = loss().item(), torch.autograd.grad(loss(), list(m.factors))
        for step in (1e-2, 1e-3):
            with torch.no_grad():
                for F, g in zip(m.factors, grads):
                    F -= step * F.norm() / g.norm().clamp(min=1e-9) * g
                assert loss() > 0.99 * before
                for F, g in zip(m.factors, grads):
                    F += step * F.norm() / g.norm().clamp(min=1e-9) * g
        m.from_dense(near)
        assert (m.to_dense() - near).norm() < 0.25 * (W - near).norm()  # from another beginning
        return
    if isinstance(m, einsum.Einsum):  # the tail of the singular values of the tiles
        s = m.shape
        tiles = W.view(s.f, s.e, s.d, s.g, s.b, s.a).permute(0, 3, 5, 2, 4, 1).reshape(s.f * s.g, s.a * s.d, s.b * s.e)
        tail = torch.linalg.svdvals(tiles)[:, s.r :].norm()
        torch.testing.assert_close((W - near).norm(), tail, rtol=1e-8, atol=1e-8)
        grads = torch.autograd.grad((m.to_dense() - W).square().sum(), list(m.factors))
        assert max(g.abs().max() for g in grads) < 1e-9
        assert m.factors[0].norm().item() == pytest.approx(m.factors[1].norm().item())
    m.from_dense(near)
    torch.testing.assert_close(m.to_dense(), near, rtol=1e-10, atol=1e-10)  # idempotent


def test_a_higher_rank_is_never_further_away():
    W = torch.randn(36, 24, dtype=torch.float64)
    errors = []
    for rank in range(1, 7):
        m = layer('btt', (24, 36), blocks=2, rank=rank)
        m.from_dense(W)
        errors.append((m.to_dense() - W).norm().item())
    assert errors == sorted(errors, reverse=True)


# -----------------------------------------------------------------------------
# other people's code


def test_kronecker_is_the_sum_of_torchs_and_numpys_products():
    import numpy as np

    m = layer('kronecker', (12, 30), kronecker_shape=(5, 3), kronecker_terms=2)
    s = m.shape
    A = m.factors[0].view(s.a, s.r, s.d).permute(1, 2, 0).detach()  # (r, d, a)
    B = m.factors[1].view(s.r, s.b, s.e).permute(0, 2, 1).detach()  # (r, e, b)
    assert tuple(B.shape[1:]) == (5, 3)
    W = m.to_dense().detach()
    torch.testing.assert_close(W, sum(torch.kron(b.contiguous(), a.contiguous()) for a, b in zip(A, B)))
    np.testing.assert_allclose(W.numpy(), sum(np.kron(b.numpy(), a.numpy()) for a, b in zip(A, B)), atol=1e-12)
    ops = pytest.importorskip('linear_operator')
    x = torch.randn(12, 4, dtype=torch.float64)
    theirs = sum(ops.operators.KroneckerProductLinearOperator(b, a).matmul(x) for a, b in zip(A, B))
    torch.testing.assert_close(m(x.T).T, theirs)


def test_block_diagonal_is_scipys():
    import scipy.linalg

    m = layer('block_diagonal', (12, 18), blocks=3)
    wanted = scipy.linalg.block_diag(*[b.T.detach().numpy() for b in m.factors[0]])
    torch.testing.assert_close(m.to_dense().detach(), torch.from_numpy(wanted))


def train_of(m) -> list:
    """The cores (r, n, m, r') of a tensor train, first the one that acts on the outer axes."""
    if not hasattr(m, 'shape'):
        return [c.detach() for c in m.factors]
    s = m.shape  # two cores: B is the first
    A = m.factors[0].view(s.a, s.r, s.d).permute(1, 2, 0)[..., None]
    B = m.factors[1].view(s.r, s.b, s.e).permute(2, 1, 0)[None]
    return [B.detach(), A.detach()]


@pytest.mark.parametrize('cores', [2, 3])
def test_tensor_trains_are_tensorlys(cores):
    tensorly = pytest.importorskip('tensorly')
    from tensorly.tt_matrix import tt_matrix_to_matrix

    m = layer('tensor_train', (24, 60), rank=4, tt_cores=cores)
    wanted = tt_matrix_to_matrix([tensorly.tensor(c.numpy()) for c in train_of(m)])
    torch.testing.assert_close(m.to_dense().detach(), torch.from_numpy(wanted))
    if cores == 3:
        from tensorly.decomposition import tensor_train_matrix

        W = torch.randn(60, 24, dtype=torch.float64)
        m.from_dense(W)
        theirs = tensor_train_matrix(tensorly.tensor(W.view(*m.n, *m.m).numpy()), m.ranks)
        error = (W - torch.from_numpy(tt_matrix_to_matrix(list(theirs)))).norm()
        assert (W - m.to_dense()).norm().item() == pytest.approx(error.item(), rel=1e-6)


@pytest.mark.parametrize('cores', [2, 3, 4])
def test_tensor_trains_are_tensorly_torchs_layers(cores):
    """The same cores as a trainable layer of theirs: the matrix, the product and all gradients."""
    tensorly = pytest.importorskip('tensorly')
    m = layer('tensor_train', (24, 60), rank=4, tt_cores=cores)
    train = [torch.nn.Parameter(c.clone()) for c in train_of(m)]
    outputs, inputs = (tuple(c.size(axis) for c in train) for axis in (1, 2))
    with tensorly.backend_context('pytorch'):  # which the import below would set for all
        tltorch = pytest.importorskip('tltorch')
        weight = tltorch.BlockTT(train, tensorized_shape=(outputs, inputs), rank=(1, *(c.size(3) for c in train)))
        theirs = tltorch.FactorizedLinear(inputs, outputs, bias=False, factorization=weight)
        torch.testing.assert_close(m.to_dense(), weight.to_matrix())
        x = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
        y, theirs_y = m(x), theirs(x)
        torch.testing.assert_close(y, theirs_y)
        G = torch.randn_like(y)
        dx, *grads = torch.autograd.grad(y, [x, *m.factors], G)
        their_dx, *their_grads = torch.autograd.grad(theirs_y, [x, *train], G)
    torch.testing.assert_close(dx, their_dx)
    for W, g in zip(m.factors, grads):  # through the same change of layout
        W.data.copy_(g)
    for g, wanted in zip(train_of(m), their_grads):
        torch.testing.assert_close(g, wanted)


def test_operations_are_those_of_opt_einsums_path():
    opt_einsum = pytest.importorskip('opt_einsum')
    m = layer('btt', (36, 54), rank=2)
    s, T = m.shape, 10**6  # so many tokens that no other order of contraction pays
    _, info = opt_einsum.contract_path(
        'tga,gafr,frge->tfe', (T, s.g, s.a), (s.g, s.a, s.f, s.r), (s.f, s.r, s.g, s.e), shapes=True
    )
    assert int(info.opt_cost) == 2 * T * m.macs()


@pytest.mark.parametrize('width', [128, 192, 256, 320, 384, 640, 768, 1024, 1152, 1600])
@pytest.mark.parametrize('name', ['btt', 'einsum', 'tensor_train'])
def test_splits_at_the_root_keep_runs_of_eight_features(name, width):
    """What lies side by side in x and y of each product; and where the divisor nearest to the root gives that, it is taken,
    so that checkpoints of such shapes still load."""
    for size in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        with torch.device('meta'):
            s = STRUCTURED[name](*size, GPTConfig(linear=name, rank=2)).shape
        split = s.d if name == 'tensor_train' else s.f
        assert s.a % 8 == s.e % 8 == 0
        for d, found, run in ((size[0], s.a, s.a), (size[1], split, s.e)):
            root = structured.near(math.sqrt(d), structured.divisors(d))
            assert found == root or (root if found == run else d // root) % 8
            assert 2 / 3 < found / math.sqrt(d) < 3 / 2


def test_experts_are_split_as_a_block_tensor_train():
    for size in ((192, 576), (128, 128), (1152, 384)):
        with torch.device('meta'):
            s = STRUCTURED['btt'](*size, GPTConfig(linear='btt', rank=1)).shape
            A, B = (W.shape for W in LAYERS['btt_moe'](*size, GPTConfig(linear='btt_moe', experts=2)).factors)
        assert (A, B) == ((s.g, 2, s.a, s.f), (s.f, 2, s.g, s.e))


def test_no_split_is_far_from_the_root_for_the_sake_of_its_runs():
    assert structured.near_root(16) == structured.near_root(16, run=lambda f: 16 // f) == 4  # not 2 x 8


class Copies(TorchDispatchMode):
    """How many numbers are copied from one place to another."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.total += out.numel()
        return out


@pytest.mark.parametrize('name, keys, size, wanted', [
    ('tensor_train', dict(rank=3), (36, 100), 36),  # 6 x 6 -> 10 x 10: the narrow side
    ('tensor_train', dict(rank=3), (100, 36), 36),
    ('kronecker', dict(kronecker_shape=(18, 6), kronecker_terms=9), (36, 54), 54),  # 6 x 6 -> 3 x 18: fewer products
    ('kronecker', {}, (36, 108), 0),  # 36 x 1 -> 36 x 3
    ('kronecker', dict(kronecker_shape=(54, 18)), (36, 54), 0),  # 18 x 2 -> 54 x 1
    ('btt', dict(rank=2), (36, 144), 0),
])  # fmt: skip
def test_a_layer_permutes_one_side_or_none(name, keys, size, wanted):
    """Per token, and traffic() counts it; what lies between the factors is written once."""
    m, T = layer(name, size, **keys), 100_000
    x = torch.randn(T, size[0], dtype=torch.float64)
    with torch.no_grad(), Copies() as copies:
        m(x)
    assert copies.total // T == wanted
    s = m.order()
    assert m.traffic() == 2 * s.b * s.g * s.d * s.f * s.r + 2 * wanted


def test_the_least_times_of_the_document_are_the_formulas():
    rows = re.findall(
        r'\| `(\w+)(?: --rank=(\d+))?` \| ([\d.]+) \| ([\d.]+) \|', (ROOT / 'docs' / 'speed.md').read_text()
    )
    assert len(rows) == 7
    for name, rank, flops, moved in rows:
        macs, traffic = 768 * 3072, 0
        if name != 'dense':
            with torch.device('meta'):
                m = STRUCTURED[name](768, 3072, GPTConfig(linear=name, **(dict(rank=int(rank)) if rank else {})))
            macs, traffic = m.macs(), m.traffic()
        assert (flops, moved) == (f'{6 * macs / 7e5:.1f}', f'{6 * (768 + 3072 + traffic) / 2.9e3:.1f}')


def test_the_named_members_are_one_family():
    """Low rank is BTT with a single tile; Monarch is BTT at full inner width; a Kronecker sum is a train of two cores."""
    same = [
        (('low_rank', dict(rank=6)), ('btt', dict(blocks=1, rank=6))),
        (('monarch', dict(blocks=3)), ('btt', dict(blocks=3, rank=4))),
        (('kronecker', dict(kronecker_shape=(6, 6), kronecker_terms=4)), ('tensor_train', dict(rank=4))),
        (('block_dense', dict(blocks=3, rank=6)), ('einsum', dict(einsum_shape=(12, 1, 3, 1, 36, 1, 2)))),
    ]
    for (n1, k1), (n2, k2) in same:
        one, two = layer(n1, (36, 36), **k1), layer(n2, (36, 36), **k2)
        assert one.shape == two.shape
        torch.testing.assert_close(one.to_dense(), two.to_dense())


# -----------------------------------------------------------------------------
# start, rates, cap


@pytest.mark.parametrize('size', [(768, 768), (768, 3072), (3072, 768)])
@pytest.mark.parametrize('name, keys', [('monarch', {}), ('btt', dict(rank=1)), ('btt', dict(rank=4)), ('einsum', {})])
def test_the_output_starts_with_the_variance_of_a_dense_layer(name, keys, size):
    m = STRUCTURED[name](*size, GPTConfig(linear=name, **keys))
    m.start(None, 0.02, torch.Generator().manual_seed(1))
    x = torch.randn(400, size[0])
    wanted = min(1, math.sqrt(size[1] / size[0]))
    assert m(x).square().mean().sqrt().item() == pytest.approx(wanted, rel=0.05)
    m.start(None, 0.02, torch.Generator().manual_seed(1), residual=True)
    assert (m(x) == 0).all() and m.factors[0].std() > 0


@pytest.mark.parametrize('size', [(96, 96), (96, 384), (384, 96)])
@pytest.mark.parametrize(
    'name, keys',
    [
        ('low_rank', {}),
        ('block_dense', dict(blocks=2, rank=24)),
        ('block_dense', dict(blocks=8, rank=96)),
        ('block_diagonal', dict(blocks=4)),
        ('tensor_train', dict(tt_cores=2)),
        ('tensor_train', dict(tt_cores=3)),
        ('tensor_train', dict(tt_cores=4, rank=3)),
        ('kronecker', {}),
    ],
)
def test_the_output_starts_with_the_variance_of_a_dense_layer_or_what_its_rank_leaves(name, keys, size):
    """A dense layer with gemm_std puts out min(1, sqrt(d_out / d_in)); through r features both factors have theirs."""
    d_in, d_out = size
    wanted = min(1, math.sqrt(d_out / d_in))
    m = STRUCTURED[name](*size, GPTConfig(linear=name, **keys))
    if name in ('low_rank', 'block_dense'):
        k, inner = keys.get('blocks', 1), m.shape.r * m.shape.g
        wanted = min(1, math.sqrt(inner / k / (d_in / k))) * min(1, math.sqrt(d_out / inner))
    rms = []
    for seed in range(8):
        m.start(None, 0.02, torch.Generator().manual_seed(seed))
        rms.append(m(torch.randn(200, d_in, generator=torch.Generator().manual_seed(seed))).square().mean().item())
    assert math.sqrt(sum(rms) / 8) == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize('name, keys', [('low_rank', {}), ('tensor_train', dict(tt_cores=3)), ('btt', dict(rank=2)),
                                        ('kronecker', {}), ('monarch', {})])  # fmt: skip
def test_factors_share_the_size_of_what_they_are_set_to(name, keys):
    m = STRUCTURED[name](24, 96, GPTConfig(linear=name, **keys))
    m.from_dense(torch.randn(96, 24, generator=torch.Generator().manual_seed(0)))
    norms = [W.norm().item() for W in m.factors]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-5)
    if name == 'low_rank':  # singular value by singular value
        A, B = (W.squeeze(0) for W in m.factors)
        assert (A.T @ A - B @ B.T).abs().max() < 1e-5


@pytest.mark.parametrize(
    'shape, size, rates',
    [
        ((16, 1, 48, 1, 48, 16, 1), (768, 768), (24, 8)),
        ((16, 1, 48, 1, 48, 16, 4), (768, 768), (24, 2)),
        ((48, 1, 64, 1, 48, 16, 1), (3072, 768), (32, 24)),
        ((768, 1, 1, 1, 3072, 1, 192), (768, 3072), (0.5, 2)),
    ],
)
def test_rates_are_the_papers(shape, size, rates):
    m = STRUCTURED['einsum'](*size, GPTConfig(linear='einsum', einsum_shape=shape))
    assert m.lr_scale.tolist() == pytest.approx(rates)
    m = STRUCTURED['einsum'](*size, GPTConfig(linear='einsum', einsum_shape=shape, structured_lr='none'))
    assert m.lr_scale.tolist() == [1, 1]


def test_one_adam_step_moves_the_output_alike_at_every_width():
    """The coordinate check, flat over widths 256 to 4096; without the rates it is not."""
    for name in ('dense', 'low_rank', 'monarch', 'btt'):
        flat = [mup.moved(name, n, 256) for n in (256, 1024, 4096)]
        assert max(flat) / min(flat) < 1.6, (name, flat)
    steep = [mup.moved('btt', n, 256, structured_lr='none', rank=1) for n in (256, 4096)]
    assert steep[0] / steep[1] > 2.5


def test_the_cap_does_nothing_until_a_factor_has_grown():
    free, capped = layer('btt', (36, 36), rank=1), layer('btt', (36, 36), norm=True, rank=1)
    for W, V in zip(free.factors, capped.factors):
        W.data.copy_(V)
    with torch.no_grad():
        for i, W in enumerate(capped.factors):
            capped.sigma[i] = W.square().mean().sqrt()
        torch.testing.assert_close(capped.to_dense(), free.to_dense())
        for W in capped.factors:
            W *= 10
        torch.testing.assert_close(capped.to_dense(), free.to_dense())  # held at its size
        capped.gain *= 2
        torch.testing.assert_close(capped.to_dense(), 4 * free.to_dense())


@pytest.mark.parametrize('decay', ['product', 'factors', 'none'])
def test_decay_of_the_product_shrinks_it_as_its_dense_twin(decay):
    m = STRUCTURED['btt'](36, 36, GPTConfig(linear='btt', structured_decay=decay)).double()
    m.start(None, 0.02, torch.Generator().manual_seed(1))
    before, lr, wd = m.to_dense().norm(), 1e-3, 0.1
    with torch.no_grad():
        for W, rate, scale in zip(m.factors, m.lr_scale.tolist(), m.decay_scale()):
            W *= 1 - lr * rate * wd * scale
    shrunk = 1 - (m.to_dense().norm() / before).item()
    wanted = {'product': lr * wd, 'factors': lr * wd * m.lr_scale.sum().item(), 'none': 0}[decay]
    assert shrunk == pytest.approx(wanted, rel=1e-3, abs=1e-12)


# -----------------------------------------------------------------------------
# in a model


@pytest.mark.parametrize('name', STRUCTURED)
@pytest.mark.parametrize('path', ['factored', 'materialised'])
def test_each_name_alone_trains_and_collapses(name, path):
    model = tiny_gpt(linear=name, linear_path=path, linear_layers='mlp+attn', structured_norm=True, bias=True).train()
    opt = Optimizer(model, train_config(model, learning_rate=3e-3))
    assert bool(opt.factors) == (path == 'materialised')
    assert model.num_params(opt.factors) / model.num_params_collapsed(opt.factors) < 1
    x, y = tokens(), tokens(seed=1)
    losses = learn(model, opt, x, y, 8)
    assert losses[-1] < losses[0] - 0.05
    model.eval()
    again = GPT(model.config).eval()
    factors.load_state(again, opt.factors.state())
    assert (again(x, last_only=False)[0] - model(x, last_only=False)[0]).abs().max() < 1e-5
    plain = collapse.collapse_model(again)
    assert (plain(x, last_only=False)[0] - model(x, last_only=False)[0]).abs().max() < 1e-5


def test_both_paths_take_the_same_steps():
    ends = []
    for path in ('factored', 'materialised'):
        model = tiny_gpt(linear='btt', linear_path=path, structured_norm=True).double().train()
        opt = Optimizer(model, train_config(model, grad_clip=0.0))
        learn(model, opt, tokens(), tokens(seed=1), 3)
        ends.append(opt.factors.state())
    assert ends[0].keys() == ends[1].keys()
    for k in ends[0]:
        torch.testing.assert_close(ends[0][k], ends[1][k], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('name', STRUCTURED)
def test_compiles_into_one_graph(name):
    torch._dynamo.reset()
    model = tiny_gpt(n_layer=1, linear=name, linear_path='factored', linear_layers='mlp+attn').train()
    x, y = tokens(), tokens(seed=1)

    def grads(f):
        model.zero_grad()
        loss = f(x, y)[1]
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    for a, b in zip(grads(torch.compile(model, fullgraph=True, backend='aot_eager')), grads(model)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', STRUCTURED)
def test_bfloat16_is_as_near_as_the_dense_layers(name):
    m = STRUCTURED[name](256, 512, GPTConfig(linear=name))
    m.start(None, 0.02, torch.Generator().manual_seed(1))
    x = torch.randn(64, 256)
    W = m.to_dense().detach()
    exact = x.double() @ factors.dense_float64(m).T

    def error(y):
        return ((y.double() - exact).norm() / exact.norm()).item()

    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        mine, dense = m(x), torch.nn.functional.linear(x, W)
    assert mine.dtype == torch.bfloat16
    assert error(mine) < 2 * error(dense)


def test_keep_dense_leaves_layers_alone():
    model = tiny_gpt(
        linear='low_rank', linear_layers='mlp+head', keep_dense='h.0.*', tie_head=False, linear_path='factored'
    )
    structured_sites = [n for n, m in model.named_modules() if isinstance(m, structured.Structured)]
    assert structured_sites == ['transformer.h.1.mlp.c_fc', 'transformer.h.1.mlp.c_proj', 'lm_head']
    x, y = tokens(), tokens(seed=1)
    model(x, y)[1].backward()
    assert model.lm_head.factors[0].grad is not None
    assert model.num_params() < model.num_params_collapsed()


@pytest.mark.parametrize(
    'keys, parts',
    [
        (dict(linear='low_rank', rank=40), ['rank = 40', 'at most 32']),
        (dict(linear='monarch', blocks=3), ['blocks = 3', 'nearest: 2, 4']),
        (dict(linear='btt', blocks=5), ['blocks = 5', 'nearest: 2, 4, 8']),
        (dict(linear='block_dense', blocks=4, rank=6), ['rank = 6', 'nearest: 4']),
        (dict(linear='block_diagonal', blocks=7), ['blocks = 7', 'nearest: 4, 8']),
        (dict(linear='kronecker', kronecker_shape=(5, 2)), ['kronecker_shape = 5,2', 'nearest: 4,2']),
        (dict(linear='kronecker', kronecker_shape=(8, 4), kronecker_terms=99), ['kronecker_terms = 99', 'at most 32']),
        (dict(linear='tensor_train', rank=4000), ['rank = 4000', 'at most']),
        (dict(linear='einsum', theta=(0.5, 0, 0.4, 0, 0.5, 0.5, 0)), ['alpha, beta, gamma must sum to 1', '0.5556']),
        (dict(linear='einsum', theta=(0.5, 0.5)), ['must be 7 numbers']),
        (dict(linear='einsum', einsum_shape=(8, 1, 5, 1, 16, 8, 1)), ['must multiply to the 32 inputs', 'nearest']),
        (dict(linear='btt', keep_dense='h.9.*'), ["'h.9.*' matches no layer"]),
    ],
)  # fmt: skip
def test_bad_shapes_are_refused_with_the_nearest_valid_choice(keys, parts):
    config = GPTConfig(n_embd=32, n_head=2, n_layer=2, **keys)
    found = '\n'.join(config.problems())
    for part in parts:
        assert part in found, found


def test_a_rank_that_is_too_large_is_not_cut_in_silence():
    with pytest.raises(UserError, match='full rank at'):
        STRUCTURED['btt'](36, 36, GPTConfig(linear='btt', rank=100))


@pytest.mark.parametrize('path', ['factored', 'materialised'])
def test_the_share_of_a_guide_falls_as_a_cosine_and_it_comes_from_plain_weights(path):
    config = dict(linear='btt', guide_iters=4, linear_path=path, n_layer=1)
    model, plain = tiny_gpt(**config), tiny_gpt(seed=5, n_layer=1)
    load_state(model, plain.state_dict())
    want, site = plain.transformer.h[0].mlp.c_fc.weight, 'transformer.h.0.mlp.c_fc'
    assert torch.equal(model.get_submodule(site).guide, want)
    cfg = train_config(model)
    opt, hook = Optimizer(model, cfg), Guide(cfg)
    layer = opt.factors.get(site) or model.get_submodule(site)
    assert layer.share == 1 and torch.equal(layer.to_dense(), want)
    for k in range(4):
        hook.before_update(model, opt, k)
        assert layer.share.item() == pytest.approx((1 + math.cos(math.pi * (k + 1) / 4)) / 2, abs=1e-6)
    assert hook.after_update(model, opt, 3) is False and layer.guide is not None
    assert hook.after_update(model, opt, 4) is True and layer.guide is None


@pytest.mark.parametrize('path', ['factored', 'materialised'])
def test_a_guide_starts_as_the_dense_twin_and_is_let_go(run_train, path):
    """Self-guided training: the first loss is the dense twin's, the last model is the factors' alone, resuming is exact."""

    def losses(out):
        return {m['iter']: m['loss'] for m in read_metrics(out) if m['kind'] == 'train'}

    flags = ['--linear=btt', f'--linear_path={path}', '--linear_layers=mlp+attn', '--structured_norm=true']
    dense = run_train('--max_iters=1', out='dense')
    whole = run_train(*flags, '--guide_iters=6', out='whole')
    assert losses(whole)[0] == pytest.approx(losses(dense)[0], abs=1e-5)
    run_train(*flags, '--guide_iters=6', '--max_iters=4', out='cut')
    kept = checkpoint.load(whole.parent / 'cut' / 'ckpt.pt')
    assert [k for k in kept['model'] if k.endswith('guide')] and kept['model_args']['guide_iters'] == 6
    cut = run_train(*flags, '--init_from=resume', out='cut')
    assert losses(cut) == losses(whole)
    end = checkpoint.load(cut / 'ckpt.pt')
    assert not [k for k in end['model'] if 'guide' in k or 'share' in k] and 'guide_iters' not in end['model_args']
    model = checkpoint.build(end)
    plain = collapse.collapse_model(model)
    x = tokens(T=16, vocab=60)
    assert (plain(x, last_only=False)[0] - model(x, last_only=False)[0]).abs().max() < 1e-5


@pytest.mark.parametrize('path', ['factored', 'materialised'])
def test_a_run_from_a_checkpoint_whose_guides_were_fading_lets_them_fade_on(run_train, path, capsys, monkeypatch):
    """They jumped back to their start. Now four of ten iterations are behind, six are left; resuming is exact."""
    flags = ['--linear=btt', f'--linear_path={path}', '--eval_interval=1', '--eval_iters=2']
    first = run_train(*flags, '--guide_iters=10', '--max_iters=4', out='first') / 'ckpt.pt'
    shares, update = [], Guide.before_update

    def noted(self, model, optimizer, it):
        update(self, model, optimizer, it)
        shares.extend(m.share.item() for m in self.guided(model, optimizer)[:1])

    monkeypatch.setattr(Guide, 'before_update', noted)
    capsys.readouterr()
    whole = run_train(*flags, f'--init_from={first}', out='whole')
    assert 'go on fading where the checkpoint left them: 4 of 10 iterations' in capsys.readouterr().out
    assert shares == pytest.approx([(1 + math.cos(math.pi * k / 10)) / 2 for k in range(5, 11)], abs=1e-6)
    at = [[m['val_loss'] for m in read_metrics(out) if m['kind'] == 'eval'] for out in (first.parent, whole)]
    assert at[0][4] == at[1][0] and abs(at[1][1] - at[1][0]) < 0.5
    run_train(*flags, f'--init_from={first}', '--max_iters=3', out='cut')
    cut = run_train(*flags, '--init_from=resume', out='cut')
    assert 'go on fading' in capsys.readouterr().out and shares[9:] == shares[3:6]
    a, b = (checkpoint.load(out / 'ckpt.pt') for out in (whole, cut))
    assert a['model'].keys() == b['model'].keys() and all(torch.equal(v, b['model'][k]) for k, v in a['model'].items())
    assert not [k for k in a['model'] if 'guide' in k or 'share' in k]


@pytest.mark.slow
def test_compiled_no_activation_is_written_twice(monkeypatch):
    """The compiler would lay an input of an opaque step out once for every view of it, were it not given plainly. Its code
    says so: the kernels in it are left out, and compute nothing."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(AsyncCompile, 'cpp_pybinding', lambda *_: lambda *_: None)
    torch._dynamo.reset()
    config = GPTConfig(n_embd=256, n_head=1, n_layer=1, bias=False, linear='monarch', linear_path='factored')
    mlp = MLP(config, 'h.0.mlp', config.hidden(0))
    x = torch.randn(2, 64, 256)

    def step():
        norm = torch.nn.functional.layer_norm(x, (256,))
        with torch.autocast('cpu', torch.bfloat16):
            (x + mlp(norm)).square().sum().backward()

    with torch._inductor.config.patch(force_disable_caches=True):
        _, codes = run_and_get_code(torch.compile(step))
    sizes = [
        math.prod(map(int, m.split(',')))
        for code in codes
        for m in re.findall(r'= empty_strided_cpu\(\(([\d, ]+)\)', code)
    ]
    # of the size of the hidden activation: GELU's output; its gradient is written over that of the product
    assert sizes.count(2 * 64 * 1024) == 1
    assert sizes.count(2 * 64 * 256) <= 3  # norm, output, and the gradient of the output once for both products


@pytest.mark.slow
def test_compiled_forming_is_forming(monkeypatch):
    """Without the compiler's code, which takes long to build on a CPU: there training forms without it (optimizers/optim.py)."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))
    torch._dynamo.reset()
    found = []
    for compile in (False, True):
        model = tiny_gpt(n_layer=1, linear='btt', linear_path='materialised', structured_norm=True)
        weights = factors.Factors(model, compile=compile)
        for W in weights.tensors:
            W.data.mul_(1.1)
        weights.form()
        formed = [w.detach().clone() for w in weights.weights]
        for w in weights.weights:
            w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
        weights.pull()
        found.append((formed, [W.grad for W in weights.tensors]))
    (a, da), (b, db) = found
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(da, db, rtol=1e-4, atol=1e-5)
    assert sum(g.abs().sum() > 0 for g in db) > len(db) / 2  # not where the other factor starts at zero


@pytest.mark.parametrize('n', [2, 3])
def test_small_singular_values_are_shared_alike_by_all_factors(n):
    """Only what is zero to float32 gets another scale than the n-th root."""
    S = torch.tensor([1.0, 1e-3, 1e-5, 0.0], dtype=torch.float64)
    parts = structured.split_scales(S, n)
    for part in parts:
        torch.testing.assert_close(part[:3], S[:3] ** (1 / n))
    torch.testing.assert_close(math.prod(parts), S)
    assert all(part[3] > 0 for part in parts[:-1])


@pytest.mark.parametrize('name', ['btt', 'low_rank', 'block_diagonal'])
def test_a_capped_layer_that_is_set_to_a_matrix_computes_that_matrix(name):
    """The cap is lifted to the size of the factors, and a learned gain begins anew."""
    capped, free = (
        STRUCTURED[name](36, 36, GPTConfig(linear=name, structured_norm=norm)).double() for norm in (True, False)
    )
    W = 100 * torch.randn(36, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for m in (capped, free):
        m.start(None, 0.02, torch.Generator().manual_seed(1))
        if m.gain is not None:
            m.gain.data.mul_(2)
        m.from_dense(W)
    torch.testing.assert_close(capped.to_dense(), free.to_dense())


def test_rates_of_layers_of_three_factors_are_the_papers_too():
    """d_in over the width that a factor multiplies, over the number of factors in its product."""
    rates = lambda name, **keys: STRUCTURED[name](36, 54, GPTConfig(linear=name, **keys)).lr_scale.tolist()
    assert rates('blast', blocks=3, rank=4) == pytest.approx([36 / 12 / 3, 36 / 3 / 3, 36 / 4 / 3])
    assert rates('low_rank_sparse', rank=4) == pytest.approx(
        [36 / 36 / 2, 36 / 4 / 2, 1]
    )  # the values are entries of W
    m = STRUCTURED['tensor_train'](36, 54, GPTConfig(linear='tensor_train', tt_cores=3, rank=4))
    assert m.lr_scale.tolist() == pytest.approx([36 / (r * i) / 3 for r, _, i, _ in (W.shape for W in m.factors)])


@pytest.mark.parametrize('size', [(96, 96), (96, 384), (384, 96)])
@pytest.mark.parametrize('name, keys', [('blast', dict(blocks=4, rank=6)), ('low_rank_sparse', dict(rank=24))])
def test_blast_and_low_rank_sparse_start_with_the_size_that_they_say(name, keys, size):
    """BLAST with the dense layer's output; low rank plus sparse with that of low rank, and values that are uniform up to
    1 / sqrt(d_in), as in the paper."""
    d_in, d_out = size
    m, power = STRUCTURED[name](*size, GPTConfig(linear=name, **keys)), []
    for seed in range(8):
        m.start(None, 0.02, torch.Generator().manual_seed(seed))
        x = torch.randn(200, d_in, generator=torch.Generator().manual_seed(seed))
        power.append(m(x).square().mean().item())
    if name == 'blast':
        wanted = min(1, d_out / d_in)
    else:
        values = m.factors[2]
        assert values.abs().max().item() == pytest.approx(1 / math.sqrt(d_in), rel=0.01)
        assert values.std().item() == pytest.approx(1 / math.sqrt(3 * d_in), rel=0.1)
        wanted = min(1, 24 / d_in) * min(1, d_out / 24) + 0.03 / 3
    assert sum(power) / 8 == pytest.approx(wanted, rel=0.15)


def test_a_share_of_the_parameters_is_what_a_layer_takes():
    """structured_share of the dense layer's, to the next rank or number of blocks that fits."""
    fine = ('low_rank', 'block_dense', 'blast', 'low_rank_sparse')  # the others have few sizes to choose from
    for size in ((768, 768), (768, 3072), (3072, 768)):
        for name, L in STRUCTURED.items():
            for share in (1 / 3, 1 / 6):
                with torch.device('meta'):
                    n = sum(W.numel() for W in L(*size, GPTConfig(linear=name, structured_share=share)).factors)
                rel = 0.3 if name in fine else 0.5
                assert n / math.prod(size) == pytest.approx(share, rel=rel), (name, size)
    m = STRUCTURED['low_rank_sparse'](256, 256, GPTConfig(linear='low_rank_sparse', structured_share=0.3, density=0.1))
    assert sum(W.numel() for W in m.factors) / 256**2 == pytest.approx(0.3, rel=0.1)  # the sparse part is in it


def test_the_rank_of_theta_is_a_power_of_the_smaller_side():
    theta = (0.5, 0, 0.5, 0, 0.5, 0.5, 0.25)
    ranks = [
        STRUCTURED['einsum'](*size, GPTConfig(linear='einsum', theta=theta)).shape.r for size in ((16, 256), (256, 16))
    ]
    assert ranks == [2, 2]


@pytest.mark.parametrize('cores', [3, 4])
def test_a_tensor_train_has_balanced_cores_the_nearest_rank_and_the_cost_of_its_product(cores):
    assert tensor_train.balanced(768, 3) == [8, 8, 12] and tensor_train.balanced(768, 4) == [4, 4, 6, 8]
    share = 0.2
    make = lambda rank: STRUCTURED['tensor_train'](
        96, 384, GPTConfig(linear='tensor_train', tt_cores=cores, rank=rank, structured_share=share)
    )
    off = lambda m: abs(sum(W.numel() for W in m.factors) - share * 96 * 384)
    m = make(0)
    r = max(m.ranks)
    assert off(m) <= min(off(make(r - 1)), off(make(r + 1)))
    with FlopCounterMode(display=False) as counter:
        m.to_dense()
    assert counter.get_total_flops() == 2 * m.form_macs() > 0


def test_a_rank_beyond_the_blocks_is_named_in_the_unit_in_which_it_is_given():
    with pytest.raises(UserError, match='rank = 40: .* full rank at 32; use at most 32'):
        STRUCTURED['block_dense'](32, 128, GPTConfig(linear='block_dense', blocks=4, rank=40))


@pytest.mark.parametrize('size', [(36, 54), (54, 36)])
def test_the_backward_pass_of_two_factors_is_counted_with_what_it_forms_again(size):
    m = layer('btt', size, blocks=3, rank=2)
    A, B = m.factors
    x = torch.randn(7, size[0], dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        m(x).sum().backward()
    again = 0 if A.size(1) > B.size(2) else A.numel()  # Z is kept where it would be dear
    assert counter.get_total_flops() == 2 * 7 * (3 * m.macs() + again)
