"""Head and loss, branch and norm, queries and keys in one pass each: the plain paths are autograd's formulas in float64.
tests/test_gpu.py holds the kernels to these."""

import pytest
import torch
from conftest import tiny_gpt, tokens
from torch.nn import functional as F

import model
from linear.kernels import fused, head, norms, rotary

draw = lambda *shape, seed=0: torch.randn(
    *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
).requires_grad_()


def same(got, want, leaves, scale):
    """Values and gradients, the latter of the sum of `scale` times what was found."""
    for a, b in zip(got, want):
        assert (a - b).abs().max() < 1e-12
    gradients = [
        torch.autograd.grad(found, leaves, [s.expand_as(f) for f, s in zip(found, scale)]) for found in (got, want)
    ]
    for a, b in zip(*gradients):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize('most', [2**30, 500])  # all rows at once, a few after the other
def test_the_loss_and_its_gradients_are_those_of_the_logits(most, monkeypatch):
    monkeypatch.setattr(head, 'MOST_LOGITS', most)
    x, W, targets = draw(2, 7, 8), draw(65, 8, seed=1), torch.randint(65, (2, 7))
    targets[0, :3] = -1
    want = F.cross_entropy((x @ W.T).flatten(0, 1), targets.flatten(), ignore_index=-1)
    same([head.cross_entropy(x, W, targets)], [want], [x, W], [torch.tensor(1024.0)])  # as a loss scale would
    with torch.no_grad():
        assert abs(head.cross_entropy(x, W, targets) - want) < 1e-12


@pytest.mark.parametrize('n', [0, 3])
def test_without_a_target_the_loss_is_nan_and_nothing_has_a_gradient(n):
    """As torch has it: a batch that is all padding leaves the sum of the gradients as it was."""
    x, W = draw(n, 8), draw(65, 8, seed=1)
    found = []
    for loss in (head.cross_entropy, lambda x, W, t: F.cross_entropy(x @ W.T, t, ignore_index=-1)):
        value = loss(x, W, torch.full((n,), -1))
        found.append([value, *torch.autograd.grad(value, (x, W))])
    for value, dx, dW in found:
        assert value.isnan() and not dx.any() and not dW.any()


@pytest.mark.parametrize('rms', [False, True])
def test_the_sum_alone_may_be_used(rms):
    x, m, w = draw(2, 5, 24), draw(2, 5, 24, seed=1), draw(24, seed=2)
    d = draw(2, 5, 24, seed=3)
    dx, dm, dw = torch.autograd.grad(norms.add(x, m, w, None, rms)[0], (x, m, w), d, allow_unused=True)
    assert torch.equal(dx, d) and torch.equal(dm, d) and (dw is None or not dw.any())


@pytest.mark.parametrize('rms, weight, bias', [(False, True, True), (False, False, False), (True, True, False)])
@pytest.mark.parametrize('ends', [False, True])
def test_a_branch_is_added_and_normalized(rms, weight, bias, ends):
    """ends: nothing comes after the norm that reads the sum."""
    x, m = draw(2, 5, 24), draw(2, 5, 24, seed=1)
    w, b = draw(24, seed=2) if weight else None, draw(24, seed=3) if bias else None
    s = x + m
    y = F.rms_norm(s, (24,), w, 1e-6) if rms else F.layer_norm(s, (24,), w, b, 1e-5)
    got = norms.add(x, m, w, b, rms)
    leaves, scale = [t for t in (x, m, w, b) if t is not None], [draw(24, seed=4), draw(5, 24, seed=5)]
    same(got[ends:], (s, y)[ends:], leaves, scale[ends:])


@pytest.mark.parametrize('norm', [False, True])
def test_queries_and_keys_are_normalized_and_turned(norm):
    B, T, H, K, hs = 2, 5, 4, 2, 6
    qkv, rope = draw(B, T, (H + 2 * K) * hs), [t.double() for t in model.rope_table(torch.arange(T), hs)]
    q, k, v = (t.view(B, T, -1, hs).transpose(1, 2) for t in qkv.split([H * hs, K * hs, K * hs], 2))
    if norm:
        q, k = (F.rms_norm(t, (hs,), None, 1e-6) for t in (q, k))
    want = model.rotate(q, rope), model.rotate(k, rope), v
    same(
        rotary.heads(qkv, rope, H, K, norm), want, [qkv], [draw(n, T, hs, seed=n + i) for i, n in enumerate((H, K, K))]
    )


@pytest.mark.parametrize('act', fused.ACTIVATIONS)
@pytest.mark.parametrize('narrow', [1024, 0])  # what is kept of the activation: its derivative, its input
def test_biases_of_an_mlp_are_added_and_their_gradients_summed(act, narrow, monkeypatch):
    monkeypatch.setattr(fused, 'NARROW', narrow)
    up, down = torch.nn.Linear(8, 32, dtype=torch.float64), torch.nn.Linear(32, 8, dtype=torch.float64)
    x, leaves = draw(3, 5, 8), [*up.parameters(), *down.parameters()]
    want = down(fused.activation(up(x), act) if act != 'relu2' else F.relu(up(x)).square())
    same([fused.mlp(up, down, x, act)], [want], [x, *leaves], [draw(3, 5, 8, seed=1)])


def test_the_model_in_one_pass_each_is_the_model(monkeypatch):
    """Compiled without a break; every gradient, and the loss of an evaluation."""
    gpt = tiny_gpt(position='rope', qk_norm=True, norm='rmsnorm', n_kv_head=1).double()
    idx, targets = tokens(), tokens(seed=1)
    targets[1] = -1
    leaves = list(gpt.parameters())
    want = gpt(idx, targets)[1]
    want = [want, *torch.autograd.grad(want, leaves)]
    for module, serves in (
        (head, lambda m, x: True),
        (norms, lambda x, m: m is not None),
        (rotary, lambda qkv, r: True),
    ):
        monkeypatch.setattr(module, 'fits', serves)
    compiled = torch.compile(gpt, fullgraph=True, backend='aot_eager')
    got = compiled(idx, targets)[1]
    with torch.no_grad():
        assert abs(compiled(idx, targets)[1] - want[0]) < 1e-6
    for a, b in zip([got, *torch.autograd.grad(got, leaves)], want):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()  # the table of RoPE is in float32


def test_the_compiler_is_told_what_comes_out():
    checks = dict(test_utils=('test_schema', 'test_faketensor'))
    x, m, w, targets = (draw(6, 8, seed=i).detach() for i in range(4))
    targets, ops = torch.randint(6, (6,)), torch.ops.nanomorph
    for gradient in (True, False):
        torch.library.opcheck(ops.head_loss.default, (x, w, targets, gradient), **checks)
    for rms, b in ((True, None), (False, w[0])):
        args = (x, m, w[0], b, rms)
        torch.library.opcheck(ops.add_norm.default, args, **checks)
        s, y, mean, rstd = ops.add_norm(*args)
        torch.library.opcheck(ops.add_norm_grad.default, (y, None, s, w[0], mean, rstd, rms, not rms), **checks)
    turned = torch.zeros(4, 6).T  # what comes out is contiguous, whatever comes in
    torch.library.opcheck(ops.add_norm.default, (turned, turned, None, None, True), **checks)
    qkv, (cos, sin) = draw(1, 3, 16).detach(), model.rope_table(torch.arange(3), 4)
    torch.library.opcheck(ops.rotary.default, (qkv, cos, sin, 3, True), **checks)
    d = draw(1, 4, 3, 4).detach()
    torch.library.opcheck(ops.rotary_grad.default, (d[:, :2], d[:, 2:3], d[:, 3:], qkv, cos, sin, True), **checks)
