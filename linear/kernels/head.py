"""
Head and cross-entropy as one step, one share of the rows after the other.

    cross_entropy    x (N, C), W (V, C), targets (N,) -> the mean loss of the logits x W^T, their gradient never kept

The gradient of a row's loss at its logits is softmax - onehot: all that it needs is at hand when the loss is computed. So
one kernel reads a row, and writes its gradient over it; the products with it, for x and for W, follow at once. Nothing is
left to do in the backward pass but to multiply both by the gradient of the loss. No more than MOST_LOGITS are there together,
of 21,000 tokens at GPT-2's vocabulary, and one of the passes over them falls away.

The same sums as logits, F.cross_entropy and autograd make. Logits and their gradient are rounded as there; W's gradient is
not, it is summed in float32 (as in Liger, Hsu et al. 2024, arXiv 2410.10989); that of x is rounded once more, where the mean
and the gradient of the loss scale it, unless both are powers of 2.
"""

import math

import torch

from linear.kernels import blocks, tl, triton

ON = True  # bench.py ablate switches it off
LEAST = 1024  # logits of a row, of fewer a program has too little to do
MOST_LOGITS = 2**30  # logits that are there at once
LANES = 1024  # sums of a row that a program makes side by side, a thread for each
EACH = 8  # neighbours that it adds to one of them at a time, 16 bytes

if triton is not None:

    @triton.jit
    def cross_entropy_row(
        z, targets, losses, V: tl.constexpr, WIDTH: tl.constexpr, GRADIENT: tl.constexpr, LANES: tl.constexpr, EACH: tl.constexpr,
    ):  # fmt: skip
        """The loss of one row of WIDTH logits, of which V count, and its gradient in place of the row: softmax - onehot, 0
        where the target is -1. In powers of 2: the hardware knows no others."""
        n = tl.program_id(0)
        z += n.to(tl.int64) * WIDTH
        t = tl.load(targets + n).to(tl.int32)
        wanted = tl.load(z + t, (t >= 0) & (t < V), 0.0).to(tl.float32) * 1.4426950408889634
        i = tl.arange(0, LANES)[:, None] * EACH + tl.arange(0, EACH)[None, :]
        top = tl.full((LANES,), -1e30, tl.float32)
        total = tl.zeros((LANES,), tl.float32)
        for j in range(0, WIDTH, LANES * EACH):
            x = tl.load(z + j + i, j + i < WIDTH, 0.0).to(tl.float32) * 1.4426950408889634
            x = tl.where(j + i < V, x, -1e30)
            higher = tl.maximum(top, tl.max(x, 1))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(x - higher[:, None]), 1)
            top = higher
        highest = tl.max(top, 0)
        whole = highest + tl.log2(tl.sum(total * tl.exp2(top - highest), 0))
        whole = tl.where(t < V, whole, float('nan'))  # no such token: no number, instead of some number
        tl.store(losses + n, tl.where(t < 0, 0.0, (whole - wanted) * 0.6931471805599453))
        if GRADIENT:  # the row is still in the cache
            for j in range(0, WIDTH, LANES * EACH):
                x = tl.load(z + j + i, j + i < WIDTH, 0.0).to(tl.float32) * 1.4426950408889634
                p = tl.exp2(x - whole)
                p = tl.where(j + i == t, p - 1, p)
                p = tl.where((t < 0) | (j + i >= V), 0.0, p)
                tl.store(z + j + i, p.to(z.dtype.element_ty), j + i < WIDTH)


def rows(z, targets, losses, V, gradient):
    """Losses of logits z (n, V and more), and their gradient in place of them."""
    if triton is not None and z.is_cuda:
        targets = targets.contiguous()
        lanes = min(LANES, triton.next_power_of_2(z.size(1)) // EACH)
        cross_entropy_row[(len(z),)](
            z, targets, losses, V, z.size(1), gradient, lanes, EACH, num_warps=max(1, lanes // 32)
        )
        return
    kept, at = targets >= 0, targets.clamp(min=0)[:, None]
    log_p = z[:, :V].log_softmax(-1, dtype=torch.promote_types(z.dtype, torch.float32))
    losses.copy_(-log_p.gather(1, at)[:, 0] * kept)
    if gradient:
        z.zero_()[:, :V] = log_p.exp().scatter_add(1, at, log_p.new_full(at.shape, -1.0)) * kept[:, None]


blocks.define('head_loss(Tensor x, Tensor W, Tensor targets, bool gradient) -> (Tensor, Tensor, Tensor)')


def fake(x, W, targets, gradient):
    losses = x.new_empty(targets.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    return losses, *((torch.empty_like(x), torch.empty_like(W)) if gradient else (x.new_empty(0), x.new_empty(0)))


@blocks.op('head_loss', fake, lambda x, W, targets, gradient: (6 if gradient else 2) * x[0] * math.prod(W))
def head_loss(x, W, targets, gradient):
    """x (N, C), W (V, C), targets (N,) with -1 where there is none -> losses (N,), and the gradients of their sum at x
    (N, C) and W (V, C), or nothing in their place. Products in x's precision, sums of W's gradient in that of W."""
    (N, C), V = x.shape, len(W)
    padded = x.new_zeros(V + -V % 64, C)  # tensor cores want aligned rows
    padded[:V].copy_(W)
    losses = x.new_empty(N, dtype=torch.promote_types(x.dtype, torch.float32))
    dx, dW = (torch.empty_like(x), W.new_empty(padded.shape)) if gradient else (x.new_empty(0), x.new_empty(0))
    n = math.ceil(N / max(1, math.ceil(N * len(padded) / MOST_LOGITS)))
    logits = x.new_empty(n, len(padded))
    if gradient and not N:
        dW.zero_()
    for i in range(0, N, max(1, n)):
        part = x[i : i + n]
        z = torch.mm(part, padded.T, out=logits[: len(part)])
        rows(z, targets[i : i + n], losses[i : i + n], V, gradient)
        if gradient:
            torch.mm(z, padded, out=dx[i : i + n])
            add_product(dW, z.T, part, first=i == 0)
    return losses, dx, dW[:V]


def add_product(y, a, b, first):
    """y += a b, in y's precision; first: y = a b."""
    if a.dtype == y.dtype or not a.is_cuda:
        a, b = a.to(y.dtype), b.to(y.dtype)
        torch.mm(a, b, out=y) if first else y.addmm_(a, b)
    elif first:
        torch.mm(a, b, out_dtype=y.dtype, out=y)
    else:
        torch.addmm(y, a, b, out_dtype=y.dtype, out=y)


class CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, targets):
        losses, dx, dW = blocks.ops.head_loss(x, W, targets, True)
        count = (targets >= 0).sum()
        ctx.save_for_backward(dx, dW, count)
        return losses.sum() / count

    @staticmethod
    def backward(ctx, d):
        dx, dW, count = ctx.saved_tensors
        # on the GPU, and in its own precision: rounded to 16 bits it would turn the whole gradient. 0 without a target, as in torch
        d = d / count.clamp(min=1)
        return (dx.to(d.dtype) * d).to(dx.dtype), (dW * d).to(dW.dtype), None


def fits(head, x) -> bool:
    """Whether it serves: in bfloat16 on a GPU (float16 would need the loss scaled before), a head that is one matrix."""
    auto = torch.is_autocast_enabled('cuda')
    dtype = torch.get_autocast_dtype('cuda') if auto else x.dtype
    return ON and triton is not None and dtype == torch.bfloat16 and whole(head) and blocks.in_bfloat16(x)


def whole(head) -> bool:
    """Whether a head is one matrix, large enough."""
    return isinstance(head, torch.nn.Linear) and head.bias is None and head.out_features >= LEAST


def cross_entropy(x, W, targets):
    """Mean of -log softmax(x W^T)[target] over targets (...) that are not -1; x (..., C), W (V, C)."""
    x, targets = x.flatten(0, -2), targets.flatten()
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if torch.is_grad_enabled():
        return CrossEntropy.apply(x, W, targets)
    return blocks.ops.head_loss(x, W, targets, False)[0].sum() / (targets >= 0).sum()
