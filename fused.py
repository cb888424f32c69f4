"""
Products with an activation on chip, for MLPs whose two layers are structured.

    activated    Z, B -> act(h), act'(h) with h = Z B, which is never written
    against      dZ, A, d -> (dZ A^T) d, the gradient at h when d = act'(h)

Where h is computed its activation and the derivative are both at hand, so the first product writes these two, and the
product of the backward pass that ends at h multiplies by what was written. With kernels of its own the activation
reads and writes arrays of the widest kind in the model five times; that is what keeps small structured MLPs slow.
Deriving again in the second product was slower than two kernels (results/structured/gelu_fusion.txt).

GELU's Gaussian is Abramowitz & Stegun 26.2.17 (error 7.5e-8): the density in it serves the derivative, too.
"""

import math

import torch
from torch.nn import functional as F

import blocks
from structured import Einsum

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch's builds for GPUs only
    triton = None

ACTIVATIONS = ('gelu', 'gelu_tanh', 'relu2')

if triton is not None:

    @triton.jit
    def special(x, NAME: tl.constexpr):
        """One instruction each for 2^x (ex2) and 1 / x (rcp), without the care for denormal numbers that takes eight."""
        return tl.inline_asm_elementwise(NAME + '.approx.ftz.f32 $0, $1;', '=f,f', [x], tl.float32, True, 1)

    @triton.jit
    def activate(h, ACT: tl.constexpr):
        """act(h), act'(h)"""
        if ACT == 'gelu':
            t = special(1 + 0.2316419 * tl.abs(h), 'rcp')
            density = special(-0.7213475204 * h * h - 1.3257480647, 'ex2')
            tail = (((1.330274429 * t - 1.821255978) * t + 1.781477937) * t - 0.356563782) * t + 0.319381530
            tail *= t * density
            p = tl.where(h < 0, tail, 1 - tail)
            return h * p, p + h * density
        elif ACT == 'gelu_tanh':  # h sigmoid(u)
            s = special(1 + special(h * (-2.3022081986 - 0.1029432397 * h * h), 'ex2'), 'rcp')
            return h * s, s + h * s * (1 - s) * (1.5957691216 + 0.2140644488 * h * h)
        else:
            r = tl.maximum(h, 0.0)
            return r * r, 2 * r

    @triton.jit
    def finish(y, d, at, h, mask, ACT: tl.constexpr):
        if ACT is None:
            h *= tl.load(d + at, mask=mask).to(tl.float32)
        else:
            h, slope = activate(h, ACT)
            tl.store(d + at, slope.to(d.dtype.element_ty), mask=mask)
        tl.store(y + at, h.to(y.dtype.element_ty), mask=mask)

    @triton.jit
    def halves(h, M: tl.constexpr, N: tl.constexpr):
        return tl.split(h.reshape(M, 2, N // 2).permute(0, 2, 1))

    def tile(tokens, features, inner, warps, stages, registers=128):
        sizes = dict(BM=tokens, BN=features, BK=inner)
        return triton.Config(sizes, num_warps=warps, num_stages=stages, maxnreg=registers)

    # each was the fastest at some shape on an H100 (results/structured/fused_products.txt); all give the same bits
    TILES = [tile(64, 64, 64, 4, 4), tile(64, 128, 32, 4, 4), tile(64, 128, 64, 4, 2), tile(128, 128, 64, 8, 3)]
    TILES += [tile(128, 256, 64, 8, 3, 255)]

    @triton.autotune(TILES, key=['COUNT', 'N', 'K', 'ACT'])
    @triton.heuristics(dict(EVEN=lambda v: v['M'] % v['BM'] == v['N'] % v['BN'] == v['K'] % v['BK'] == 0))
    @triton.jit
    def product(
        x, w, y, d, M, sxb, sxm, sxk, swb, swk, swn,
        COUNT: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr,
        BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, EVEN: tl.constexpr,
    ):  # fmt: skip
        """h[m, b N + n] = sum_k x[b, m, k] w[b, k, n], b < COUNT. y, d: act(h), act'(h) are written; without ACT y = h d."""
        tiles: tl.constexpr = (N + BN - 1) // BN
        b = tl.program_id(0) // tiles
        start = tl.program_id(0) % tiles * BN
        m, n, k = tl.program_id(1) * BM + tl.arange(0, BM), start + tl.arange(0, BN), tl.arange(0, BK)
        m = m.to(tl.int64)  # m COUNT N may pass 2^31
        x += b * sxb + m[:, None] * sxm + k[None, :] * sxk
        w += b * swb + k[:, None] * swk + n[None, :] * swn
        h = tl.zeros((BM, BN), tl.float32)
        for i in range(0, K, BK):
            if EVEN:
                h = tl.dot(tl.load(x), tl.load(w), h)
            else:
                inside = k < K - i
                left = tl.load(x, mask=(m < M)[:, None] & inside[None, :], other=0.0)
                h = tl.dot(left, tl.load(w, mask=inside[:, None] & (n < N)[None, :], other=0.0), h)
            x += BK * sxk
            w += BK * swk
        if BN == 64:
            parts = (h,)
        else:  # a quarter at a time: all at once, activation and derivative need more registers than two blocks can have
            left, right = halves(h, BM, BN)
            parts = halves(left, BM, BN // 2) + halves(right, BM, BN // 2)
        width: tl.constexpr = BN // len(parts)
        for q in tl.static_range(len(parts)):
            n = start + q * width + tl.arange(0, width)
            at = m[:, None] * (COUNT * N) + b * N + n[None, :]
            finish(y, d, at, parts[q], None if EVEN else (m < M)[:, None] & (n < N)[None, :], ACT)


def on_chip(x):
    return x.is_cuda and triton is not None


def launch(x, w, y, d, act):
    """x (b, M, K), w (b, K, N), any strides; y, d (..., b N)."""
    count, M, K = x.shape
    N = w.size(2)
    grid = lambda v: (count * triton.cdiv(N, v['BN']), triton.cdiv(M, v['BM']))
    product[grid](x, w, y, d, M, *x.stride(), *w.stride(), count, N, K, act)


def derived(h, act):
    """act(h), act'(h), without a kernel of ours."""
    if act == 'relu2':
        r = F.relu(h)
        return r.square(), 2 * r
    approximate = 'tanh' if act == 'gelu_tanh' else 'none'
    slope = torch.ops.aten.gelu_backward(torch.ones_like(h), h, approximate=approximate)
    return F.gelu(h, approximate=approximate), slope


# -----------------------------------------------------------------------------
# operators, plain activations (..., features) in and out as in blocks.py


for schema in (
    'activated(Tensor x, Tensor Z, Tensor B, str act) -> (Tensor, Tensor)',
    'against(Tensor dZ, Tensor A, Tensor d, int f) -> Tensor',
):
    blocks.define(schema)


def activated_fake(x, Z, B, act):
    y = x.new_empty(*x.shape[:-1], B.size(0) * B.size(2))
    return y, torch.empty_like(y)


@blocks.op('activated', activated_fake, lambda x, Z, B, act: 2 * blocks.tokens(x) * math.prod(B))
def activated(x, Z, B, act):
    """Z (..., k) with B (1, k, e), or Z (f, k, T) with B (f, k, e) -> act(h), act'(h) (..., f e) for h = Z B. x: what Z was
    computed from, for its leading axes."""
    f, k, e = B.shape
    Z = Z.reshape(1, -1, k) if f == 1 else Z.mT
    if not on_chip(x):
        return derived((Z @ B).transpose(0, 1).reshape(*x.shape[:-1], f * e), act)
    y = x.new_empty(*x.shape[:-1], f * e)
    d = torch.empty_like(y)
    launch(Z, B, y, d, act)
    return y, d


@blocks.op('against', lambda dZ, A, d, f: torch.empty_like(d), lambda dZ, A, d, f: 2 * blocks.tokens(d) * math.prod(A))
def against(dZ, A, d, f):
    """dZ (..., g k), f = 1, or (k, g, T), with A (g, a, k) and d (..., g a) -> (dZ A^T) d."""
    g, a, k = A.shape
    dZ = blocks.split(dZ, g) if f == 1 else dZ.permute(1, 2, 0)
    if not on_chip(d):
        return (dZ @ A.mT).transpose(0, 1).reshape(d.shape) * d
    y = torch.empty_like(d)
    launch(dZ, A.mT, y, d, None)
    return y


# -----------------------------------------------------------------------------
# the two layers


def inner(x, A, f):
    """What lies between the factors A (g, a, f r) and B (f, r g, e) of a layer: (..., r g) for f = 1, else (f, r g, T)."""
    if f > 1:
        return blocks.ops.middle(x, A, f)
    return blocks.ops.blocks(x, A) if A.size(0) > 1 else x @ A.squeeze(0)


def gradients(dy, x, A, B, Z):
    """Of what lies between, A and B."""
    g, f = A.size(0), B.size(0)
    if f > 1:  # the order matters for peak memory: Z can go before its gradient comes
        dB = blocks.ops.two_grad_B(dy, x, A, Z, f)
        return *blocks.ops.two_grad_A(dy, x, B, g), dB
    dB = Z.flatten(0, -2).T @ dy.flatten(0, -2)
    dZ = dy @ B.squeeze(0).T
    dA = blocks.ops.blocks_grad(x, dZ, g) if g > 1 else (x.flatten(0, -2).T @ dZ.flatten(0, -2)).unsqueeze(0)
    return dZ, dA, dB.unsqueeze(0)


class Up(torch.autograd.Function):
    """x, A, B -> act(h), act'(h), h = x W^T. The gradient it takes for the first is that of h: Down gives no other."""

    @staticmethod
    def forward(ctx, x, A, B, act):
        f = B.size(0)
        Z = inner(x, A, f)
        y, d = blocks.ops.activated(x, Z, B, act)
        ctx.save_for_backward(x, A, B, Z if f == 1 or A.size(1) > B.size(2) else None)
        ctx.mark_non_differentiable(d)
        return y, d

    @staticmethod
    def backward(ctx, dh, _):
        x, A, B, Z = ctx.saved_tensors
        dZ, dA, dB = gradients(dh, x, A, B, Z)
        if B.size(0) > 1:
            dx = blocks.ops.two_grad_x(dZ, A).view(x.shape)
        else:
            dx = blocks.ops.blocks(dZ, A.mT) if A.size(0) > 1 else dZ @ A.squeeze(0).T
        return dx, dA, dB, None


class Down(torch.autograd.Function):
    """y, d = act(h), act'(h), A, B -> y W^T; hands back the gradient of h in place of that of y."""

    @staticmethod
    def forward(ctx, y, d, A, B):
        if B.size(0) > 1:
            out, Z = blocks.ops.two(y, A, B)
        else:
            Z = inner(y, A, 1)
            out = Z @ B.squeeze(0)
        ctx.save_for_backward(y, d, A, B, Z)
        return out

    @staticmethod
    def backward(ctx, dout):
        y, d, A, B, Z = ctx.saved_tensors
        dZ, dA, dB = gradients(dout, y, A, B, Z)
        return blocks.ops.against(dZ, A, d, B.size(0)), None, dA, dB


def fits(fc, proj, x) -> bool:
    """Whether it serves: training, in 16 bits on a GPU, of two layers of the form above."""
    if not torch.is_grad_enabled() or not on_chip(x):
        return False
    if not all(isinstance(m, Einsum) and m.shape.b == m.shape.d == 1 for m in (fc, proj)):
        return False
    auto = torch.is_autocast_enabled('cuda')
    short = (torch.get_autocast_dtype('cuda') if auto else x.dtype) in (torch.bfloat16, torch.float16)
    return short and all(m.bias is None and m.guide is None for m in (fc, proj))


def mlp(fc, proj, x, act):
    """proj(act(fc(x)))"""
    x, factors = fc.cast(x)
    y, d = Up.apply(x, *factors, act)
    return Down.apply(y, d, *proj.cast(y)[1])
