"""
A matrix times one vector, as a model writes one text: each output is a sum over its row of the matrix.

cuBLAS takes two kernels for it, and a third rounds the vector before. All that it costs is to read the matrix; here one
kernel does it. Triton, for matrices in 16 bits on a GPU; elsewhere the product is torch's.
"""

import math

import torch
from torch.nn import functional as F

from linear.kernels import blocks, tl, triton

ROWS, COLS = 4, 1024  # of the matrix, that a program reads at a time
ON = True

if triton is not None:

    @triton.jit
    def product(x, W, b, y, n_out, n_in, BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
        o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        there = o < n_out
        sums = tl.zeros((ROWS, COLS), tl.float32)
        for j in range(0, n_in, COLS):
            i = j + tl.arange(0, COLS)
            part = tl.load(x + i, i < n_in, 0.0).to(W.dtype.element_ty).to(tl.float32)
            at = o[:, None].to(tl.int64) * n_in + i[None, :]
            sums += tl.load(W + at, there[:, None] & (i < n_in)[None, :], 0.0).to(tl.float32) * part[None, :]
        found = tl.sum(sums, 1)
        if BIAS:
            found += tl.load(b + o, there, 0.0).to(tl.float32)
        tl.store(y + o, found.to(y.dtype.element_ty), there)


def fits(x, W) -> bool:
    """Whether it serves: a single vector, a matrix in 16 bits on a GPU, nothing to differentiate."""
    return (
        ON
        and triton is not None
        and x.is_cuda
        and not torch.is_grad_enabled()
        and W.dtype in (torch.bfloat16, torch.float16)
        and x.numel() == W.size(1)
    )


torch.library.define('nanomorph::vector', '(Tensor x, Tensor W, Tensor? b) -> Tensor')


@blocks.op('vector', lambda x, W, b: W.new_empty(*x.shape[:-1], W.size(0)), lambda x, W, b: 2 * math.prod(W))
def vector(x, W, b):
    """x (..., d_in), a single vector, rounded to W's precision; W (d_out, d_in), b (d_out) or none -> W x + b (..., d_out)."""
    if triton is None or not x.is_cuda:
        return F.linear(x.to(W.dtype), W, b)
    x, W, y = x.contiguous(), W.contiguous(), W.new_empty(*x.shape[:-1], W.size(0))
    product[(triton.cdiv(W.size(0), ROWS),)](x, W, W if b is None else b, y, *W.shape, b is not None, ROWS, COLS)
    return y
