"""
Queries and keys: normalized, turned by their positions, in one pass over what c_attn gives.

    heads    qkv (B, T, (H + 2 K) hs) -> q (B, H, T, hs), k and v (B, K, T, hs)

The compiler takes several passes each way: one for the norms' sums, one for the halves that a rotation puts side by side,
one that joins the gradients of q, k and v. Here a kernel reads a head once, forward and backward, and the gradient is
written to where the product of the backward pass reads it. All in float32, rounded once.
"""

import torch

from linear.kernels import blocks, tl, triton

ON = True  # bench.py ablate switches it off
EPS = 1e-6
PAIRS, WARPS = 64, 4  # of a token and a head, that a program turns
WIDEST = 128  # numbers of a head; a program holds PAIRS of them

if triton is not None:

    @triton.jit
    def table(cos, sin, n, i, there, T: tl.constexpr, HALF: tl.constexpr):
        """cos and sin of position n % T"""
        at = (n % T)[:, None] * HALF + i[None, :]
        return tl.load(cos + at, there, 0.0), tl.load(sin + at, there, 0.0)

    @triton.jit
    def rotary_forward(qkv, cos, sin, y, count, T: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
                       HALF: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, PAIRS: tl.constexpr, D: tl.constexpr):  # fmt: skip
        """The first HEADS heads of a row of WIDTH -> y (tokens, HEADS, 2 HALF). D: HALF, rounded up to a power of 2."""
        pair, i = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS), tl.arange(0, D)
        n, h = pair // HEADS, pair % HEADS
        there = (pair < count)[:, None] & (i < HALF)[None, :]
        x = qkv + (n.to(tl.int64) * WIDTH + h * 2 * HALF)[:, None] + i[None, :]
        a, b = tl.load(x, there, 0.0).to(tl.float32), tl.load(x + HALF, there, 0.0).to(tl.float32)
        if NORM:
            r = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + EPS)[:, None]
            a, b = a * r, b * r
        c, s = table(cos, sin, n, i, there, T, HALF)
        y += pair.to(tl.int64)[:, None] * (2 * HALF) + i[None, :]
        tl.store(y, (a * c - b * s).to(y.dtype.element_ty), there)
        tl.store(y + HALF, (b * c + a * s).to(y.dtype.element_ty), there)

    @triton.jit
    def rotary_backward(dq, dk, dv, qkv, cos, sin, dx, count, qb, qh, qt, kb, kh, kt, vb, vh, vt,
                        T: tl.constexpr, H: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
                        EPS: tl.constexpr, PAIRS: tl.constexpr, D: tl.constexpr):  # fmt: skip
        """dx (tokens, H + 2 K, 2 HALF)"""
        pair, i = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS), tl.arange(0, D)
        n, h = pair // (H + 2 * K), pair % (H + 2 * K)
        b, h, t = (n // T).to(tl.int64), h.to(tl.int64), (n % T).to(tl.int64)  # a long text reaches beyond 2^31
        wide = (i < HALF)[None, :]
        is_q, is_k, is_v = h < H, (h >= H) & (h < H + K), (h >= H + K) & (pair < count)
        is_q, is_k = is_q & (pair < count), is_k & (pair < count)
        q = dq + (b * qb + h * qh + t * qt)[:, None] + i[None, :]
        k = dk + (b * kb + (h - H) * kh + t * kt)[:, None] + i[None, :]
        v = dv + (b * vb + (h - H - K) * vh + t * vt)[:, None] + i[None, :]
        left = tl.load(q, is_q[:, None] & wide, 0.0) + tl.load(k, is_k[:, None] & wide, 0.0)
        right = tl.load(q + HALF, is_q[:, None] & wide, 0.0) + tl.load(k + HALF, is_k[:, None] & wide, 0.0)
        left, right = left.to(tl.float32), right.to(tl.float32)
        turned = (is_q | is_k)[:, None] & wide
        c, s = table(cos, sin, n, i, turned, T, HALF)
        da, db = left * c + right * s, right * c - left * s
        at = pair.to(tl.int64)[:, None] * (2 * HALF) + i[None, :]
        if NORM:
            a, b = tl.load(qkv + at, turned, 0.0).to(tl.float32), tl.load(qkv + at + HALF, turned, 0.0).to(tl.float32)
            r = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * HALF) + EPS)[:, None]
            a, b = a * r, b * r
            m = (tl.sum(a * da + b * db, 1) / (2 * HALF))[:, None]
            da, db = r * (da - a * m), r * (db - b * m)
        da += tl.load(v, is_v[:, None] & wide, 0.0).to(tl.float32)  # those of the values are only passed on
        db += tl.load(v + HALF, is_v[:, None] & wide, 0.0).to(tl.float32)
        there = (pair < count)[:, None] & wide
        tl.store(dx + at, da.to(dx.dtype.element_ty), there)
        tl.store(dx + at + HALF, db.to(dx.dtype.element_ty), there)


def turned(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


blocks.define('rotary(Tensor qkv, Tensor cos, Tensor sin, int heads, bool norm) -> Tensor')
blocks.define('rotary_grad(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor cos, Tensor sin, bool norm) -> Tensor')


@blocks.op(
    'rotary',
    lambda qkv, cos, sin, heads, norm: qkv.new_empty(*qkv.shape[:2], heads, 2 * cos.size(1)),
    lambda *_: 0,
)
def rotary(qkv, cos, sin, heads, norm):
    """qkv (B, T, ...), whose first `heads` heads are turned; cos, sin (T, hs / 2) -> (B, T, heads, hs)."""
    (B, T, width), half = qkv.shape, cos.size(1)
    y = qkv.new_empty(B, T, heads, 2 * half)
    if triton is not None and qkv.is_cuda:
        rotary_forward[(triton.cdiv(B * T * heads, PAIRS),)](
            qkv.contiguous(), cos.contiguous(), sin.contiguous(), y, B * T * heads, T, heads, width, half, norm, EPS,
            PAIRS, triton.next_power_of_2(half), num_warps=WARPS,
        )  # fmt: skip
        return y
    x = qkv[..., : heads * 2 * half].view(B, T, heads, 2 * half).to(torch.promote_types(qkv.dtype, torch.float32))
    if norm:
        x = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return y.copy_(turned(x, cos[:, None], sin[:, None]))


@blocks.op('rotary_grad', lambda dq, dk, dv, qkv, *_: qkv.new_empty(qkv.shape), lambda *_: 0)
def rotary_grad(dq, dk, dv, qkv, cos, sin, norm):
    """The gradient of qkv from those of q (B, H, T, hs), k and v (B, K, T, hs)."""
    (B, H, T, hs), K = dq.shape, dk.size(1)
    dx = qkv.new_empty(qkv.shape)
    if triton is not None and qkv.is_cuda:
        grads = [t if t.stride(3) == 1 else t.contiguous() for t in (dq, dk, dv)]
        pairs = B * T * (H + 2 * K)
        rotary_backward[(triton.cdiv(pairs, PAIRS),)](
            *grads, qkv.contiguous(), cos.contiguous(), sin.contiguous(), dx, pairs,
            *(n for t in grads for n in t.stride()[:3]), T, H, K, hs // 2, norm, EPS, PAIRS,
            triton.next_power_of_2(hs // 2), num_warps=WARPS,
        )  # fmt: skip
        return dx
    exact = torch.promote_types(qkv.dtype, torch.float32)
    d = turned(torch.cat((dq, dk), 1).transpose(1, 2).to(exact), cos[:, None], -sin[:, None])
    if norm:
        x = qkv[..., : (H + K) * hs].view(B, T, H + K, hs).to(exact)
        r = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        d = r * (d - x * r * (d * x * r).mean(-1, keepdim=True))
    dx.view(B, T, -1, hs).copy_(torch.cat((d, dv.transpose(1, 2).to(exact)), 2))
    return dx


class Heads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, H, K, norm):
        B, T, hs = *qkv.shape[:2], 2 * cos.size(1)
        y = blocks.ops.rotary(qkv, cos, sin, H + K, norm)
        v = qkv[..., (H + K) * hs :].view(B, T, K, hs)
        ctx.save_for_backward(qkv, cos, sin)
        ctx.norm = norm
        return y[:, :, :H].transpose(1, 2), y[:, :, H:].transpose(1, 2), v.transpose(1, 2)

    @staticmethod
    def backward(ctx, dq, dk, dv):
        return blocks.ops.rotary_grad(dq, dk, dv, *ctx.saved_tensors, ctx.norm), None, None, None, None, None


def fits(qkv, rope) -> bool:
    """Whether it serves: training with RoPE in bfloat16 on a GPU."""
    on = ON and triton is not None and torch.is_grad_enabled() and rope is not None
    return on and 2 * rope[0].size(1) <= WIDEST and qkv.dtype == torch.bfloat16 and blocks.in_bfloat16(qkv)


def heads(qkv, rope, n_head, n_kv_head, norm):
    """q (B, n_head, T, hs), k and v (B, n_kv_head, T, hs) of qkv (B, T, ...): q and k turned by rope, cos and sin (T, hs / 2),
    after a weightless RMSNorm if norm."""
    return Heads.apply(qkv, *rope, n_head, n_kv_head, norm)
