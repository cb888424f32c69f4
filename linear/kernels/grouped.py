"""
Grouped products: rows sorted by group, each group with a matrix of its own, all in one launch.

torch's own knows bfloat16 on a GPU and widths that are multiples of 8; elsewhere one product comes after another. Opaque
to the compiler, whose own check refuses what does not run on a GPU.
"""

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

torch.library.define('nanomorph::grouped', '(Tensor x, Tensor W, Tensor ends) -> Tensor')
torch.library.define('nanomorph::grouped_outer', '(Tensor x, Tensor y, Tensor ends) -> Tensor')


def native(*tensors) -> bool:
    return all(t.is_cuda and t.dtype == torch.bfloat16 and t.size(-1) % 8 == t.size(-2) % 8 == 0 for t in tensors)


def waits(dtype, *matrices) -> bool:
    """Whether products of these matrices in dtype, in a GPU's training, make the processor wait for the ends of the groups:
    where one comes after another, and where torch's own does the same (before Hopper)."""
    short = dtype == torch.bfloat16 and all(n % 8 == 0 for W in matrices for n in W.shape[-2:])
    return not short or torch.cuda.get_device_capability(matrices[0].device) < (9, 0)


@torch.library.impl('nanomorph::grouped', ('cpu', 'cuda', 'mps'))
def grouped_op(x, W, ends):
    """x (R, i), W (G, i, o), ends (G) int32 -> (R, o): rows up to ends[0] times W[0], then up to ends[1] times W[1], ..."""
    if native(W):
        return F.grouped_mm(x, W, offs=ends)
    y, start = x.new_empty(x.size(0), W.size(2)), 0
    for w, end in zip(W, ends.tolist()):
        torch.mm(x[start:end], w, out=y[start:end])
        start = end
    return y


@torch.library.impl('nanomorph::grouped_outer', ('cpu', 'cuda', 'mps'))
def grouped_outer_op(x, y, ends):
    """x (R, i), y (R, o) -> (G, i, o): the gradient of W."""
    if native(x[:8], y[:8]):
        return F.grouped_mm(x.T, y, offs=ends)
    W, start = x.new_empty(len(ends), x.size(1), y.size(1)), 0
    for w, end in zip(W, ends.tolist()):
        torch.mm(x[start:end].T, y[start:end], out=w)
        start = end
    return W


@torch.library.register_fake('nanomorph::grouped')
def _(x, W, ends):
    return x.new_empty(x.size(0), W.size(2))


@torch.library.register_fake('nanomorph::grouped_outer')
def _(x, y, ends):
    return x.new_empty(ends.size(0), x.size(1), y.size(1))


@register_flop_formula(torch.ops.nanomorph.grouped)
def _(x, W, ends, out_shape=None, **_):
    return 2 * x[0] * W[1] * W[2]


@register_flop_formula(torch.ops.nanomorph.grouped_outer)
def _(x, y, ends, out_shape=None, **_):
    return 2 * x[0] * x[1] * y[1]


def grouped_backward(ctx, dy):
    x, W, ends = ctx.saved_tensors
    dy = dy.contiguous()
    op = torch.ops.nanomorph
    return op.grouped(dy, W.mT, ends), op.grouped_outer(x, dy, ends), None


torch.library.register_autograd(
    'nanomorph::grouped', grouped_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def grouped(x, W, ends):
    """x (n, R, i), W (n, E, i, o): rows of x[j] up to ends[0] times W[j, 0], then up to ends[1] times W[j, 1], ... ->
    (n, R, o). All n E products are one launch."""
    n, R, i = x.shape
    starts = torch.arange(n, device=x.device)[:, None] * R
    offs = (starts + ends).flatten().int()
    return torch.ops.nanomorph.grouped(x.reshape(n * R, i), W.reshape(-1, i, W.size(3)), offs).view(n, R, -1)
