"""
A branch added to the stream of the residuals, and the norm of the sum, in one pass; so the way back.

    add    x (..., C) in float32, m (..., C) in 16 bits -> s = x + m in float32, its LayerNorm or RMSNorm in 16 bits

The compiler keeps the normalized sum for the backward pass beside the sum itself, which it computes again from all branches
since it last wrote it, and needs a pass of its own for the gradient of m. Here s is what is kept, for the next norm and for
the backward pass, which adds the stream's gradient, and writes the sum in float32 and in 16 bits: 12 bytes a number
forward and 16 back, instead of about 15 and 20. A program takes a row by one warp at C = 768, so that no warp waits for
another. The weight's gradient comes as a row for each program; the compiler sums them up.
"""

import torch

from linear.kernels import blocks, tl, triton

ON = True  # bench.py ablate switches it off
PROGRAMS = 2048  # of the backward pass
EACH = 1024  # numbers that a warp takes at a time
WIDEST = 8192  # numbers of a row; wider ones need more registers than a program has

if triton is not None:

    @triton.jit
    def add_norm_forward(x, m, w, b, s, y, mean, rstd, count, C: tl.constexpr, EPS: tl.constexpr, RMS: tl.constexpr,
                         WEIGHT: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):  # fmt: skip
        i, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
        wide = (c < C)[None, :]
        there = (i < count)[:, None] & wide
        at = i.to(tl.int64)[:, None] * C + c[None, :]
        v = tl.load(x + at, there, 0.0) + tl.load(m + at, there, 0.0).to(tl.float32)
        tl.store(s + at, v, there)
        if not RMS:
            center = tl.sum(v, 1) / C
            tl.store(mean + i, center, i < count)
            v = tl.where(wide, v - center[:, None], 0.0)
        r = tl.rsqrt(tl.sum(v * v, 1) / C + EPS)
        tl.store(rstd + i, r, i < count)
        v *= r[:, None]
        if WEIGHT:
            v *= tl.load(w + c, c < C, 0.0).to(tl.float32)[None, :]
        if BIAS:
            v += tl.load(b + c, c < C, 0.0).to(tl.float32)[None, :]
        tl.store(y + at, v.to(y.dtype.element_ty), there)

    @triton.jit
    def add_norm_backward(dy, ds, s, w, mean, rstd, dx, dm, dw, db, count, C: tl.constexpr, RMS: tl.constexpr,
                          STREAM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
                          STEPS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):  # fmt: skip
        """Rows program, program + programs, ...; dw and db (PROGRAMS, C) are the sums over these."""
        c = tl.arange(0, D)
        wide = (c < C)[None, :]
        sum_w, sum_b = tl.zeros((ROWS, D), tl.float32), tl.zeros((ROWS, D), tl.float32)
        for step in range(STEPS):
            i = (step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
            there = (i < count)[:, None] & wide
            at = i.to(tl.int64)[:, None] * C + c[None, :]
            g = tl.load(dy + at, there, 0.0).to(tl.float32)
            z = tl.load(s + at, there, 0.0)
            if STREAM:
                through = tl.load(ds + at, there, 0.0)
            r = tl.load(rstd + i, i < count, 0.0)[:, None]
            if not RMS:
                z -= tl.load(mean + i, i < count, 0.0)[:, None]
            z *= r
            if BIAS:
                sum_b += g
            if WEIGHT:
                sum_w += g * z
                g *= tl.load(w + c, c < C, 0.0).to(tl.float32)[None, :]
            d = g - z * (tl.sum(g * z, 1) / C)[:, None]
            if not RMS:
                d -= (tl.sum(g, 1) / C)[:, None]
            d *= r
            if STREAM:
                d += through
            tl.store(dx + at, d, there)
            tl.store(dm + at, d.to(dm.dtype.element_ty), there)
        if WEIGHT:
            tl.store(dw + tl.program_id(0) * C + c, tl.sum(sum_w, 0), c < C)
        if BIAS:
            tl.store(db + tl.program_id(0) * C + c, tl.sum(sum_b, 0), c < C)


def shape(C):
    """Rows of a tile, its columns, warps."""
    D = triton.next_power_of_2(C)
    return max(1, EACH // D), D, max(1, D // EACH)


def eps(rms):
    return 1e-6 if rms else 1e-5


blocks.define('add_norm(Tensor x, Tensor m, Tensor? w, Tensor? b, bool rms) -> (Tensor, Tensor, Tensor, Tensor)')
blocks.define(
    'add_norm_grad(Tensor dy, Tensor? ds, Tensor s, Tensor? w, Tensor mean, Tensor rstd, bool rms, bool bias)'
    ' -> (Tensor, Tensor, Tensor, Tensor)'
)


def forward_fake(x, m, w, b, rms):
    rows = x.new_empty(x.shape[:-1])
    return x.new_empty(x.shape), m.new_empty(m.shape), x.new_empty(0) if rms else rows, torch.empty_like(rows)


@blocks.op('add_norm', forward_fake, lambda *_: 0)
def add_norm(x, m, w, b, rms):
    """s = x + m, its norm in m's precision, and means (none if rms) and inverse deviations of the rows of s."""
    x, m = x.contiguous(), m.contiguous()
    s, y, mean, rstd = forward_fake(x, m, w, b, rms)
    if triton is not None and x.is_cuda:
        rows, D, warps = shape(x.size(-1))
        add_norm_forward[(triton.cdiv(rstd.numel(), rows),)](
            x, m, w, b, s, y, mean, rstd, rstd.numel(), x.size(-1), eps(rms), rms, w is not None, b is not None,
            rows, D, num_warps=warps,
        )  # fmt: skip
        return s, y, mean, rstd
    torch.add(x, m, out=s)
    v = s
    if not rms:
        torch.mean(s, -1, out=mean)
        v = s - mean[..., None]
    torch.rsqrt(v.square().mean(-1) + eps(rms), out=rstd)
    v = v * rstd[..., None]
    v = v if w is None else v * w
    return s, y.copy_(v if b is None else v + b), mean, rstd


def backward_fake(dy, ds, s, w, mean, rstd, rms, bias):
    C = s.size(-1)
    parts = min(PROGRAMS, rstd.numel())
    dw = s.new_empty(0 if w is None else parts, C)
    return s.new_empty(s.shape), dy.new_empty(s.shape), dw, s.new_empty(parts if bias else 0, C)


@blocks.op('add_norm_grad', backward_fake, lambda *_: 0)
def add_norm_grad(dy, ds, s, w, mean, rstd, rms, bias):
    """Gradients of x, m, w and b (the last two: rows to be summed) from those of y and, if there is one, of s."""
    dx, dm, dw, db = backward_fake(dy, ds, s, w, mean, rstd, rms, bias)
    if triton is not None and s.is_cuda:
        rows, D, warps = shape(s.size(-1))
        programs = min(PROGRAMS, rstd.numel())
        add_norm_backward[(programs,)](
            dy.contiguous(), None if ds is None else ds.contiguous(), s, w, mean, rstd, dx, dm, dw, db, rstd.numel(),
            s.size(-1), rms, ds is not None, w is not None, bias, triton.cdiv(rstd.numel(), programs * rows), rows, D,
            num_warps=warps,
        )  # fmt: skip
        return dx, dm, dw, db
    g, r = dy.to(s.dtype), rstd[..., None]
    z = s * r if rms else (s - mean[..., None]) * r
    for parts, sums in ((dw, g * z), (db, g)):  # all in the first row
        if len(parts):
            parts.zero_()[0] = sums.flatten(0, -2).sum(0)
    g = g if w is None else g * w
    d = g - z * (g * z).mean(-1, keepdim=True)
    d = d if rms else d - g.mean(-1, keepdim=True)
    dx.copy_(d * r if ds is None else d * r + ds)
    return dx, dm.copy_(dx), dw, db


class Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, m, w, b, rms):
        s, y, mean, rstd = blocks.ops.add_norm(x, m, w, b, rms)
        ctx.save_for_backward(s, w, mean, rstd)
        ctx.rms, ctx.bias, ctx.short = rms, b is not None, m.dtype
        ctx.set_materialize_grads(False)  # nothing in place of the stream's gradient, where the stream ends
        return s, y

    @staticmethod
    def backward(ctx, ds, dy):
        s, w, mean, rstd = ctx.saved_tensors
        if dy is None:  # the sum alone was used
            return ds, None if ds is None else ds.to(ctx.short), None, None, None
        dx, dm, dw, db = blocks.ops.add_norm_grad(dy, ds, s, w, mean, rstd, ctx.rms, ctx.bias)
        dw = None if w is None else dw.sum(0).to(w.dtype)
        return dx, dm, dw, db.sum(0).to(w.dtype) if ctx.bias else None, None


def fits(x, m) -> bool:
    """Whether it serves: training on a GPU, a stream in float32 and a branch in bfloat16."""
    on = ON and triton is not None and torch.is_grad_enabled() and m is not None and x.size(-1) <= WIDEST
    return on and x.dtype == torch.float32 and m.dtype == torch.bfloat16 and blocks.in_bfloat16(x)


def add(x, m, weight, bias, rms):
    """x + m and its norm, x (..., C) and m (..., C); weight and bias (C) or none."""
    return Add.apply(x, m, weight, bias, rms)
