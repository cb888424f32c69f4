"""
Attention of one new token to a cache of keys and values, as a model writes.

A kernel made for training shares out queries, and here a head has one. So the keys are shared out: each program takes KEYS
of them, and a second kernel joins their sums (Flash-Decoding, Dao, Haziza, Massa & Sizov 2023, pytorch.org/blog/flash-decoding).
Where the token stands is read on the GPU: a CUDA graph is the same for all tokens, and only the keys that are there are read.
The new key and value are written to the cache on the way.
"""

import math

import torch
from torch.nn import functional as F

from linear.kernels import blocks, tl, triton

BLOCK = 64  # keys that a program reads at a time

if triton is not None:

    @triton.jit
    def part(
        q, k, v, cache, pos, sums, top, total, qb, qh, kb, kh, vb, vh, heads, group, values, size, window, scale,
        WIDTH: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Keys split * KEYS ... of one head: sums of their values by exp2(score - top), and of those powers."""
        row, split = tl.program_id(0), tl.program_id(1)
        b, h = row // heads, row % heads
        n = tl.load(pos).to(tl.int32)  # of them are in the cache; the new one is number n
        first = tl.maximum(n + 1 - window, 0)
        start = split * KEYS
        end = tl.minimum(start + KEYS, n)
        d = tl.arange(0, D)
        wide = d < WIDTH
        x = tl.load(q + b * qb + h * qh + d, wide, 0.0).to(tl.float32) * scale
        keys = cache + (b * (heads // group) + h // group).to(tl.int64) * size * WIDTH
        m = tl.full((), float('-inf'), tl.float32)
        t = tl.full((), 0.0, tl.float32)
        s = tl.zeros((D,), tl.float32)
        if split == n // KEYS:
            new = tl.load(k + b * kb + h // group * kh + d, wide, 0.0).to(cache.dtype.element_ty)
            value = tl.load(v + b * vb + h // group * vh + d, wide, 0.0).to(cache.dtype.element_ty)
            if h % group == 0:
                tl.store(keys + n * WIDTH + d, new, wide)
                tl.store(keys + values + n * WIDTH + d, value, wide)
            m = tl.sum(x * new.to(tl.float32), 0)
            t = tl.full((), 1.0, tl.float32)
            s = value.to(tl.float32)
        for j in range(tl.where(first < end, tl.maximum(start, first // BLOCK * BLOCK), end), end, BLOCK):
            i = j + tl.arange(0, BLOCK)
            seen = (i < end) & (i >= first)
            here = i[:, None] * WIDTH + d[None, :]
            there = seen[:, None] & wide[None, :]
            score = tl.sum(tl.load(keys + here, there, 0.0).to(tl.float32) * x[None, :], 1)
            score = tl.where(seen, score, float('-inf'))
            higher = tl.maximum(m, tl.max(score, 0))
            p, less = tl.exp2(score - higher), tl.exp2(m - higher)
            t = t * less + tl.sum(p, 0)
            s = s * less + tl.sum(tl.load(keys + values + here, there, 0.0).to(tl.float32) * p[:, None], 0)
            m = higher
        at = row * tl.num_programs(1) + split
        tl.store(top + at, m)
        tl.store(total + at, t)
        tl.store(sums + at * D + d, s)

    @triton.jit
    def join(sums, top, total, y, count, WIDTH: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr):
        row, i, d = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, D)
        at = row * count + i
        m = tl.load(top + at, i < count, float('-inf'))
        p = tl.exp2(m - tl.max(m, 0))
        t = tl.sum(p * tl.load(total + at, i < count, 0.0), 0)
        s = tl.sum(p[:, None] * tl.load(sums + at[:, None] * D + d[None, :], (i < count)[:, None], 0.0), 0)
        tl.store(y + row * WIDTH + d, (s / t).to(y.dtype.element_ty), d < WIDTH)


def by_triton(q, k, v, cache, pos, window, scale):
    B, heads, _, width = q.shape
    size, rows, D = cache.size(3), B * heads, triton.next_power_of_2(width)
    # programs enough for all multiprocessors, but no more splits than one program can join
    KEYS = triton.next_power_of_2(max(BLOCK if rows < 512 else 4 * BLOCK, triton.cdiv(size, 32)))
    splits = triton.cdiv(size, KEYS)
    q, k, v = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k, v))
    sums = torch.empty(rows, splits, D, device=q.device)
    top, total = torch.empty(2, rows, splits, device=q.device)
    y = torch.empty(B, 1, heads * width, device=q.device, dtype=cache.dtype)
    part[(rows, splits)](
        q, k, v, cache, pos, sums, top, total, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], heads,
        heads // cache.size(2), cache.stride(0), size, window, scale * math.log2(math.e),
        width, D, KEYS, BLOCK,
    )  # fmt: skip
    join[(rows,)](sums, top, total, y, splits, width, D, triton.next_power_of_2(splits))
    return y


def plain(q, k, v, cache, pos, window, scale):
    n = int(pos)
    cache[0, :, :, n] = k[:, :, 0]
    cache[1, :, :, n] = v[:, :, 0]
    keys, values = cache[:, :, :, max(0, n + 1 - window) : n + 1]
    y = F.scaled_dot_product_attention(q.to(cache.dtype), keys, values, scale=scale, enable_gqa=q.size(1) != k.size(1))
    return y.transpose(1, 2).reshape(q.size(0), 1, -1)


torch.library.define(
    'nanomorph::attend',
    '(Tensor q, Tensor k, Tensor v, Tensor(a!) cache, Tensor pos, int window, float scale) -> Tensor',
    tags=(torch.Tag.flexible_layout,),
)


@blocks.op(
    'attend',
    lambda q, k, v, cache, pos, window, scale: cache.new_empty(q.size(0), 1, q.size(1) * q.size(3)),
    lambda q, k, v, cache, *_: 4 * math.prod(q) * cache[3],
)
def attend(q, k, v, cache, pos, window, scale):
    """q (B, heads, 1, width) of a token at position pos (1,), k and v (B, kv heads, 1, width), cache (2, B, kv heads, size,
    width): keys and values of all positions before. Writes k and v to their place -> what attention returns, (B, 1, heads
    width), over the last `window` positions."""
    if triton is not None and q.is_cuda:
        return by_triton(q, k, v, cache, pos, window, scale)
    return plain(q, k, v, cache, pos, window, scale)
