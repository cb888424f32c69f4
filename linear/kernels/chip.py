"""
Two block-diagonal factors around a permutation, as in blocks.py, with what lies between them on chip.

    through    x, A, B -> y, or act(y) and act'(y); with the factors in turned roles: dy, B, A -> dx, or dx s
    weights    x, dy, A, B -> the gradients of A and B

What lies between, Z (f, r g, T), is r f g features wide: rank 4 at a width of 192 has three times as many as the layer has
inputs. Written and read by products apart it moves seven times in a training step, and in narrow layers nothing takes
longer. Here a program computes the part of Z that it needs from its tokens' x, and puts it away. A chunk of Z comes from
products over g, (tokens, a) (a, f r), and goes into products over f, (tokens, g r) (g r, e): both are batches of tile
products (three axes) in Triton, and Z is permuted in between, in shared memory.
"""

import math

import torch

from linear.kernels import blocks, tl, triton
from linear.kernels.activations import activation, times_slope

ON = True  # bench.py ablate switches it off
WIDEST = 32  # a and e: wider blocks are better served by products apart
TOKENS, CHUNK, WARPS = 64, 8, 8  # of a tile of through: tokens, g and f at a time
TOKENS_W, CHUNK_W, WARPS_W, SPLITS = 64, 4, 4, 64  # of weights; its tokens are summed in so many parts

if triton is not None:
    from linear.kernels.activations import activate

    @triton.jit
    def factor(W, i, j, n0, si, sj, sn, sr, ni, nj, nn, N: tl.constexpr, R: tl.constexpr, r: tl.constexpr):
        """W[i, j, n0 + n, k] as (i, j, N R), n < N and k < R; zero beyond its sizes."""
        c = tl.arange(0, N * R)[None, None, :]
        n, k = n0 + c // R, c % R
        return tl.load(W + i * si + j * sj + n * sn + k * sr, (i < ni) & (j < nj) & (n < nn) & (k < r), 0.0)

    @triton.jit
    def through(
        x, A, B, y, s, T, ag, aa, af, ar, bf, br, bg, be, ACT: tl.constexpr, TIMES: tl.constexpr,
        g: tl.constexpr, a: tl.constexpr, f: tl.constexpr, r: tl.constexpr, e: tl.constexpr,
        BT: tl.constexpr, G: tl.constexpr, AP: tl.constexpr, F: tl.constexpr, R: tl.constexpr, EP: tl.constexpr,
    ):  # fmt: skip
        """y[t, f, e] = sum over a, r, g of x[t, g, a] A[g, a, f, r] B[f, r, g, e]. With ACT y is act of that, s its
        derivative; with TIMES y is that times s."""
        f0 = tl.program_id(0) * F
        t = tl.arange(0, BT)[None, :, None].to(tl.int64) + tl.program_id(1) * BT
        jf, je = f0 + tl.arange(0, F)[:, None, None], tl.arange(0, EP)[None, None, :]
        h = tl.zeros((F, BT, EP), tl.float32)
        for g0 in range(0, g, G):
            jg, ja = g0 + tl.arange(0, G)[:, None, None], tl.arange(0, AP)[None, None, :]
            X = tl.load(x + t * (g * a) + jg * a + ja, (t < T) & (jg < g) & (ja < a), 0.0)
            Z = tl.dot(X, factor(A, jg, tl.arange(0, AP)[None, :, None], f0, ag, aa, af, ar, g, a, f, F, R, r))
            Z = Z.to(x.dtype.element_ty).reshape(G, BT, F, R).permute(2, 1, 0, 3).reshape(F, BT, G * R)
            c = tl.arange(0, G * R)[None, :, None]
            kg, kr = g0 + c // R, c % R
            W = tl.load(B + jf * bf + kr * br + kg * bg + je * be, (jf < f) & (kr < r) & (kg < g) & (je < e), 0.0)
            h = tl.dot(Z, W, h)
        at, mask = t * (f * e) + jf * e + je, (t < T) & (jf < f) & (je < e)
        if TIMES:
            h *= tl.load(s + at, mask, 0.0).to(tl.float32)
        if ACT is not None:
            h, slope = activate(h, ACT)
            tl.store(s + at, slope.to(s.dtype.element_ty), mask)
        tl.store(y + at, h.to(y.dtype.element_ty), mask)

    @triton.jit
    def weights(
        x, dy, A, B, dA, dB, T, ag, aa, af, ar, bf, br, bg, be,
        g: tl.constexpr, a: tl.constexpr, f: tl.constexpr, r: tl.constexpr, e: tl.constexpr,
        BT: tl.constexpr, G: tl.constexpr, AP: tl.constexpr, F: tl.constexpr, R: tl.constexpr, EP: tl.constexpr,
        SPLITS: tl.constexpr,
    ):  # fmt: skip
        """Part program_id(2) of the gradients, of every SPLITS-th tile of tokens: dA (SPLITS, g, a, f, r), dB (SPLITS, f, r,
        g, e)."""
        f0, g0, part = tl.program_id(0) * F, tl.program_id(1) * G, tl.program_id(2)
        jf, je = f0 + tl.arange(0, F)[:, None, None], tl.arange(0, EP)[None, None, :]
        jg, ja = g0 + tl.arange(0, G)[:, None, None], tl.arange(0, AP)[None, None, :]
        VA = factor(A, jg, tl.arange(0, AP)[None, :, None], f0, ag, aa, af, ar, g, a, f, F, R, r)  # (G, AP, F R)
        VB = factor(B, jf, tl.arange(0, EP)[None, :, None], g0, bf, be, bg, br, f, e, g, G, R, r)  # (F, EP, G R)
        sA, sB = tl.zeros((G, AP, F * R), tl.float32), tl.zeros((F, G * R, EP), tl.float32)
        for t0 in range(part * BT, T, SPLITS * BT):
            t = tl.arange(0, BT)[None, :, None].to(tl.int64) + t0
            X = tl.load(x + t * (g * a) + jg * a + ja, (t < T) & (jg < g) & (ja < a), 0.0)  # (G, BT, AP)
            D = tl.load(dy + t * (f * e) + jf * e + je, (t < T) & (jf < f) & (je < e), 0.0)  # (F, BT, EP)
            Z = tl.dot(X, VA).to(x.dtype.element_ty).reshape(G, BT, F, R).permute(2, 0, 3, 1).reshape(F, G * R, BT)
            sB = tl.dot(Z, D, sB)
            dZ = tl.dot(D, VB).to(x.dtype.element_ty).reshape(F, BT, G, R).permute(2, 1, 0, 3).reshape(G, BT, F * R)
            sA = tl.dot(X.permute(0, 2, 1), dZ, sA)
        c, i = tl.arange(0, F * R)[None, None, :], tl.arange(0, AP)[None, :, None]
        n, k = f0 + c // R, c % R
        at = part * (g * a * f * r) + ((jg * a + i) * f + n) * r + k
        tl.store(dA + at, sA, (jg < g) & (i < a) & (n < f) & (k < r))
        c = tl.arange(0, G * R)[None, :, None]
        n, k = g0 + c // R, c % R
        at = part * (f * r * g * e) + ((jf * r + k) * g + n) * e + je
        tl.store(dB + at, sB, (jf < f) & (k < r) & (n < g) & (je < e))


def sizes(A, B):
    """(g, a, f, r, e)"""
    (g, a, fr), (f, _, e) = A.shape, B.shape
    return g, a, f, fr // f, e


def fits(a, f, r, e) -> bool:
    """Whether layers of these sizes gain."""
    return ON and triton is not None and f > 1 and max(a, e) <= WIDEST and 1 < r <= 8


def serves(x, A, B) -> bool:
    """Whether the kernels take these, and pay."""
    _, *of = sizes(A, B)
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and fits(*of)


def tile(x, g, a, f, r, e, tokens, chunk):
    """The sizes of a tile, powers of two. A tensor core takes 16 at least of all that is summed over."""
    up = triton.next_power_of_2
    R = up(r)
    G, F = (max(16 // R, min(up(n), chunk)) for n in (g, f))
    return tokens, G, max(16, up(a)), F, R, max(16, up(e))


def plain(x, A, B, s, act, turned):
    """The same as launch(), with products apart."""
    if turned:
        dZ = torch.bmm(B, blocks.split(x, B.size(0)).mT).view(-1, A.size(0), blocks.tokens(x.shape))
        y = blocks.two_grad_x(dZ, A).view(*x.shape[:-1], -1)
    else:
        y = blocks.two(x, A, B)[0]
    if act:
        s.copy_(times_slope(torch.ones_like(y), y, act))
        return activation(y, act)
    return y if s is None else y * s


def launch(x, A, B, s=None, act=None, turned=False):
    """x (..., g a) -> y (..., f e), or turned: (..., f e) -> (..., g a). act: s is written; without it y is times s."""
    if not x.is_cuda:
        return plain(x, A, B, s, act, turned)
    g, a, f, r, e = sizes(A, B)
    A, B = A.view(g, a, f, r), B.view(f, r, g, e)
    if turned:
        A, B, (g, a, f, e) = B.permute(0, 3, 2, 1), A.permute(0, 3, 2, 1), (f, e, g, a)
    x, y = x.contiguous(), x.new_empty(*x.shape[:-1], f * e)
    T = blocks.tokens(x.shape)
    BT, G, AP, F, R, EP = tile(x, g, a, f, r, e, TOKENS, CHUNK)
    through[(triton.cdiv(f, F), triton.cdiv(T, BT))](
        x, A, B, y, y if s is None else s, T, *A.stride(), *B.stride(), act, s is not None and act is None,
        g, a, f, r, e, BT, G, AP, F, R, EP, num_warps=WARPS, num_stages=2,
    )  # fmt: skip
    return y


# -----------------------------------------------------------------------------
# operators


for schema in (
    'inside(Tensor x, Tensor A, Tensor B, bool turned) -> Tensor',
    'inside_activated(Tensor x, Tensor A, Tensor B, str act) -> (Tensor, Tensor)',
    'inside_against(Tensor dy, Tensor A, Tensor B, Tensor s) -> Tensor',
    'inside_grads(Tensor x, Tensor dy, Tensor A, Tensor B) -> (Tensor, Tensor)',
):
    blocks.define(schema)


def macs(x, A, B):
    return 2 * blocks.tokens(x) * (math.prod(A) + math.prod(B))


def like_y(x, A, B, turned=False):
    return x.new_empty(*x.shape[:-1], A.size(0) * A.size(1) if turned else B.size(0) * B.size(2))


@blocks.op('inside', like_y, lambda x, A, B, turned: macs(x, A, B))
def inside(x, A, B, turned):
    """x (..., g a), A (g, a, f r), B (f, r g, e) -> y (..., f e), or turned: its gradient -> that of x."""
    return launch(x, A, B, turned=turned)


@blocks.op(
    'inside_activated',
    lambda x, A, B, act: (like_y(x, A, B), like_y(x, A, B)),
    lambda x, A, B, act: macs(x, A, B),
)
def inside_activated(x, A, B, act):
    """act(y), act'(y)"""
    s = like_y(x, A, B)
    return launch(x, A, B, s, act), s


@blocks.op('inside_against', lambda dy, A, B, s: torch.empty_like(s), lambda dy, A, B, s: macs(dy, A, B))
def inside_against(dy, A, B, s):
    """The gradient of x, times s."""
    return launch(dy, A, B, s.contiguous(), turned=True)


@blocks.op(
    'inside_grads',
    lambda x, dy, A, B: (x.new_empty(A.shape), x.new_empty(B.shape)),
    lambda x, dy, A, B: 2 * macs(x, A, B),  # what lies between, and its gradient, and the two products that are wanted
)
def inside_grads(x, dy, A, B):
    """The gradients of A and B."""
    g, a, f, r, e = sizes(A, B)
    if not x.is_cuda:
        return blocks.two_grad_A(dy, x, B, g)[1].contiguous(), blocks.two_grad_B(dy, x, A, None, f)
    x, dy, T = x.contiguous(), dy.contiguous(), blocks.tokens(x.shape)
    dA, dB = (x.new_empty(SPLITS, *W.shape, dtype=torch.float32) for W in (A, B))
    BT, G, AP, F, R, EP = tile(x, g, a, f, r, e, TOKENS_W, CHUNK_W)
    A, B = A.view(g, a, f, r), B.view(f, r, g, e)
    weights[(triton.cdiv(f, F), triton.cdiv(g, G), SPLITS)](
        x, dy, A, B, dA, dB, T, *A.stride(), *B.stride(),
        g, a, f, r, e, BT, G, AP, F, R, EP, SPLITS, num_warps=WARPS_W, num_stages=2,
    )  # fmt: skip
    return dA.sum(0).to(x.dtype), dB.sum(0).to(x.dtype)


class Inside(torch.autograd.Function):
    """As blocks.TwoFactor."""

    @staticmethod
    def forward(ctx, x, A, B):
        ctx.save_for_backward(x, A, B)
        return blocks.ops.inside(x, A, B, False)

    @staticmethod
    def backward(ctx, dy):
        x, A, B = ctx.saved_tensors
        dA, dB = blocks.ops.inside_grads(x, dy, A, B)
        return blocks.ops.inside(dy, A, B, True), dA, dB
