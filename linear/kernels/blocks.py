"""
Batched products without a copy: block-diagonal, and two block-diagonal factors around a permutation.

torch.bmm reads and writes any view with one unit stride, so no operand of these products is ever permuted in memory: the
views are taken here and the results are written straight to where the next product reads them. Each product is one
opaque step for the compiler that takes and gives plain activations (..., features). Given views of them instead, it
would write an activation once for every view.
"""

import math

import torch
from torch.utils.flop_counter import register_flop_formula

ops = torch.ops.nanomorph


def define(schema: str):
    # flexible layout: all strides are read, so an input that two of these share need not be laid out for each of them
    torch.library.define(
        f'nanomorph::{schema.split("(")[0]}', schema[schema.index('(') :], tags=(torch.Tag.flexible_layout,)
    )


for schema in (
    'blocks(Tensor x, Tensor D) -> Tensor',
    'blocks_grad(Tensor x, Tensor dy, SymInt k) -> Tensor',
    'middle(Tensor x, Tensor A, SymInt f) -> Tensor',
    'two(Tensor x, Tensor A, Tensor B) -> (Tensor, Tensor)',
    'two_grad_B(Tensor dy, Tensor x, Tensor A, Tensor? Z, SymInt f) -> Tensor',
    'two_grad_A(Tensor dy, Tensor x, Tensor B, SymInt g) -> (Tensor, Tensor)',
    'two_grad_x(Tensor dZ, Tensor A) -> Tensor',
):
    define(schema)


def op(name, fake, flops):
    """Register the function below as this operator. fake: shapes alone; flops: from the shapes of the arguments."""
    torch.library.register_fake('nanomorph::' + name)(fake)
    register_flop_formula(getattr(ops, name))(lambda *shapes, out_shape=None, **_: flops(*shapes))

    def implement(function):
        torch.library.impl('nanomorph::' + name, ('cpu', 'cuda', 'mps'), function)
        return function

    return implement


def in_bfloat16(x) -> bool:
    """Whether x lies on a GPU that computes in bfloat16; older ones emulate it, and no kernel of ours was seen there."""
    return x.is_cuda and torch.cuda.get_device_properties(x.device).major >= 8


def split(x, n):
    """x (..., n w) as (n, T, w), a view."""
    return x.reshape(-1, n, x.size(-1) // n).transpose(0, 1)


def tokens(shape):
    return math.prod(shape[:-1])


# -----------------------------------------------------------------------------
# one factor


@op('blocks', lambda x, D: x.new_empty(*x.shape[:-1], D.size(0) * D.size(2)), lambda x, D: 2 * tokens(x) * math.prod(D))
def blocks(x, D):
    """x (..., k i), D (k, i, o) -> (..., k o), block by block."""
    k, _, o = D.shape
    y = x.new_empty(*x.shape[:-1], k * o)
    torch.bmm(split(x, k), D, out=y.view(-1, k, o).transpose(0, 1))
    return y


@op(
    'blocks_grad',
    lambda x, dy, k: x.new_empty(k, x.size(-1) // k, dy.size(-1) // k),
    lambda x, dy, k: 2 * tokens(x) * x[-1] * dy[-1] // k,
)
def blocks_grad(x, dy, k):
    """x (..., k i), dy (..., k o) -> the gradient of D."""
    return torch.bmm(split(x, k).mT, split(dy, k))


def blocks_backward(ctx, dy):
    x, D = ctx.saved_tensors
    dD = ops.blocks_grad(x, dy, D.size(0))  # first, so that x can go before its gradient comes
    return ops.blocks(dy, D.mT), dD


torch.library.register_autograd(
    'nanomorph::blocks', blocks_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


# -----------------------------------------------------------------------------
# two factors: Z[f, r g] = x A[:, :, f r] for every g, then y[f] = Z[f] B[f]


@op(
    'middle',
    lambda x, A, f: x.new_empty(f, A.size(2) // f * A.size(0), x.numel() // x.size(-1)),
    lambda x, A, f: 2 * tokens(x) * math.prod(A),
)
def middle(x, A, f):
    """x (..., g a), A (g, a, f r) -> Z (f, r g, T), in one product and token-innermost: g matrices (f r, T) are written,
    f matrices (r g, T) can be read."""
    g, _, fr = A.shape
    x = split(x, g)
    Z = x.new_empty(fr, g, x.size(1))
    torch.bmm(A.mT, x.mT, out=Z.transpose(0, 1))
    return Z.view(f, fr // f * g, -1)


def two_fake(x, A, B):
    f, rg, e = B.shape
    return x.new_empty(*x.shape[:-1], f * e), x.new_empty(f, rg, x.numel() // x.size(-1))


@op('two', two_fake, lambda x, A, B: 2 * tokens(x) * (math.prod(A) + math.prod(B)))
def two(x, A, B):
    """x (..., g a), A (g, a, f r), B (f, r g, e) -> y (..., f e), Z (f, r g, T)."""
    f, _, e = B.shape
    Z = middle(x, A, f)
    y = x.new_empty(*x.shape[:-1], f * e)
    torch.bmm(Z.mT, B, out=y.view(-1, f, e).transpose(0, 1))
    return y, Z


@op(
    'two_grad_B',
    lambda dy, x, A, Z, f: x.new_empty(f, A.size(2) // f * A.size(0), dy.size(-1) // f),
    lambda dy, x, A, Z, f: 2 * tokens(x) * (A[0] * A[2] * dy[-1] // f + (0 if Z else math.prod(A))),
)
def two_grad_B(dy, x, A, Z, f):
    """The gradient of B; Z is formed again where it was not kept."""
    return torch.bmm(middle(x, A, f) if Z is None else Z, split(dy, f))


def like_A(x, g, fr):
    """An empty A (g, a, f r) for x (..., g a): its rows lie in memory, or its columns, where f r is no multiple of 8."""
    a = x.size(-1) // g
    return x.new_empty(g, fr, a).mT if fr % 8 and a % 8 == 0 else x.new_empty(g, a, fr)


@op(
    'two_grad_A',
    lambda dy, x, B, g: (
        x.new_empty(B.size(0) * B.size(1) // g, g, x.numel() // x.size(-1)),
        like_A(x, g, B.size(0) * B.size(1) // g),
    ),
    lambda dy, x, B, g: 2 * tokens(x) * (math.prod(B) + B[0] * B[1] // g * x[-1]),
)
def two_grad_A(dy, x, B, g):
    """The gradients of Z, (f r, g, T), and of A."""
    fr = B.size(0) * B.size(1) // g
    dZ = torch.bmm(B, split(dy, B.size(0)).mT).view(fr, g, -1)
    dA = like_A(x, g, fr)
    torch.bmm(split(x, g).mT, dZ.permute(1, 2, 0), out=dA)
    return dZ, dA


@op('two_grad_x', lambda dZ, A: dZ.new_empty(dZ.size(2), A.size(0) * A.size(1)), lambda dZ, A: 2 * dZ[2] * math.prod(A))
def two_grad_x(dZ, A):
    """The gradient of x, (T, g a)."""
    g, a, _ = A.shape
    dx = dZ.new_empty(dZ.size(2), g * a)
    torch.bmm(dZ.permute(1, 2, 0), A.mT, out=dx.view(-1, g, a).transpose(0, 1))
    return dx


class TwoFactor(torch.autograd.Function):
    """x (..., g a), A (g, a, f r), B (f, r g, e) -> y (..., f e). Six products, no permutation."""

    @staticmethod
    def forward(ctx, x, A, B):
        y, Z = ops.two(x, A, B)
        keep = A.size(1) > B.size(2)  # else Z is formed again, which is cheap
        ctx.save_for_backward(x, A, B, Z if keep else None)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, A, B, Z = ctx.saved_tensors
        # the order matters for peak memory: Z can go before the gradient of Z comes, dy before that of x
        dB = ops.two_grad_B(dy, x, A, Z, B.size(0))
        dZ, dA = ops.two_grad_A(dy, x, B, A.size(0))
        # as the factor lies: to the compiler that is a part of the cast to its precision
        return ops.two_grad_x(dZ, A).view(x.shape), dA.contiguous(), dB
