"""
Which experts a token is sent to, and how evenly: one kernel forth and one back where a compiler makes a dozen.

Triton on a GPU; elsewhere, and for many experts, the formulas in torch.
"""

import torch

from linear.kernels import blocks, tl, triton

ON = True  # bench.py ablate switches it off
BLOCK = 256  # tokens of a program; of 128 experts an eighth

if triton is not None:

    @triton.jit
    def chosen(logits, gates, experts, sums, T, E, K: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
        """sums[block]: of the probabilities, of the selections, and of logsumexp^2."""
        t, e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BINS)
        there = t < T
        z = tl.load(logits + t[:, None] * E + e[None, :], there[:, None] & (e < E)[None, :], -float('inf')).to(
            tl.float32
        )
        z = tl.where(there[:, None], z, 0.0)
        top = tl.max(z, 1)
        p = tl.exp(z - top[:, None])
        total = tl.sum(p, 1)
        left, weight = z, tl.zeros((BLOCK,), tl.float32)
        for _ in tl.static_range(K):
            mine = e[None, :] == tl.argmax(left, 1)[:, None]
            weight += tl.sum(tl.where(mine, p, 0.0), 1)
            left = tl.where(mine, -float('inf'), left)
        taken = tl.where((left == -float('inf')) & (e < E)[None, :] & there[:, None], 1.0, 0.0)
        left = z
        for s in tl.static_range(K):
            i = tl.argmax(left, 1)
            mine = e[None, :] == i[:, None]
            tl.store(experts + t * K + s, i, there)
            tl.store(gates + t * K + s, tl.sum(tl.where(mine, p, 0.0), 1) / weight, there)
            left = tl.where(mine, -float('inf'), left)
        size = tl.where(there, top + tl.log(total), 0.0)
        to = sums + tl.program_id(0) * (2 * E + 1)
        tl.store(to + e, tl.sum(tl.where(there[:, None], p / total[:, None], 0.0), 0), e < E)
        tl.store(to + E + e, tl.sum(taken, 0), e < E)
        tl.store(to + 2 * E, tl.sum(size * size, 0))

    @triton.jit
    def back(logits, gates, experts, f, d_gates, d_loss, d_logits, T, E, SIZE,
             K: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
        t, e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BINS)
        there, at = t < T, t[:, None] * E + e[None, :]
        kept = there[:, None] & (e < E)[None, :]
        z = tl.where(there[:, None], tl.load(logits + at, kept, -float('inf')).to(tl.float32), 0.0)
        top = tl.max(z, 1)
        p = tl.exp(z - top[:, None])
        total = tl.sum(p, 1)
        p /= total[:, None]
        share = tl.load(f + e, e < E, 0.0)[None, :]
        size = 2 * SIZE * (top + tl.log(total))
        d = tl.load(d_loss).to(tl.float32) / T * p * (E * (share - tl.sum(p * share, 1)[:, None]) + size[:, None])
        mean = tl.zeros((BLOCK,), tl.float32)
        for s in tl.static_range(K):
            mean += tl.load(gates + t * K + s, there, 0.0) * tl.load(d_gates + t * K + s, there, 0.0)
        for s in tl.static_range(K):
            mine = e[None, :] == tl.load(experts + t * K + s, there, 0)[:, None]
            g = tl.load(gates + t * K + s, there, 0.0) * (tl.load(d_gates + t * K + s, there, 0.0) - mean)
            d += tl.where(mine, g[:, None], 0.0)
        tl.store(d_logits + at, d.to(d_logits.dtype.element_ty), kept)


ops = torch.ops.nanomorph
SIZE = 0.1  # weight of the size of the logits beside the balance
blocks.define('route(Tensor logits, int k) -> (Tensor, Tensor, Tensor)')
blocks.define(
    'route_back(Tensor logits, Tensor gates, Tensor experts, Tensor f, Tensor d_gates, Tensor d_loss) -> Tensor'
)


def runs(logits, k) -> bool:
    return ON and triton is not None and logits.is_cuda and k <= 8 and logits.size(1) <= 128


def grid(T, E):
    bins = max(2, 1 << (E - 1).bit_length())
    block = BLOCK * 8 // max(8, bins)
    return (T + block - 1) // block, bins, block


def route_fake(logits, k):
    T, E = logits.shape
    new = lambda *shape: logits.new_empty(shape, dtype=torch.float32)
    return new(T, k), logits.new_empty(T, k, dtype=torch.int32), new(grid(T, E)[0], 2 * E + 1)


@blocks.op('route', route_fake, lambda logits, k: 0)
def route_op(logits, k):
    """logits (T, E) -> gates (T, k), softmax of the k largest; experts (T, k), the first of equals; and sums over tokens, in
    parts (n, 2 E + 1): of the probabilities, of the selections, and of logsumexp^2."""
    gates, experts, sums = route_fake(logits, k)
    T, E = logits.shape
    n, bins, block = grid(T, E)
    chosen[(n,)](logits.contiguous(), gates, experts, sums, T, E, k, bins, block)
    return gates, experts, sums


@blocks.op('route_back', lambda logits, *_: torch.empty_like(logits), lambda *_: 0)
def route_back_op(logits, gates, experts, f, d_gates, d_loss):
    """The gradient of the logits; f (E): shares of the selections."""
    T, E = logits.shape
    d, (n, bins, block) = torch.empty_like(logits, memory_format=torch.contiguous_format), grid(T, E)
    d_gates, logits = d_gates.contiguous(), logits.contiguous()
    back[(n,)](logits, gates, experts, f, d_gates, d_loss, d, T, E, SIZE, gates.size(1), bins, block)
    return d


class Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, k):
        gates, experts, sums = ops.route(logits, k)
        (T, E), sums = logits.shape, sums.sum(0)
        P, f = sums[:E] / T, sums[E:-1] / (T * k)
        ctx.save_for_backward(logits, gates, experts, f)
        ctx.mark_non_differentiable(experts)
        return gates, experts, E * (P * f).sum() + SIZE * sums[-1] / T

    @staticmethod
    def backward(ctx, d_gates, _, d_loss):
        return ops.route_back(*ctx.saved_tensors, d_gates, d_loss), None


def route(logits, k):
    """Router logits (T, E) -> gates (T, k) that sum to 1, experts (T, k), loss: E sum_e P_e f_e, which is 1 for an even
    spread (P mean probability, f share of selections; Fedus et al. 2021, arXiv 2101.03961), plus 0.1 mean(logsumexp^2)
    (Zoph et al. 2022, arXiv 2202.08906)."""
    if runs(logits, k):
        return Route.apply(logits, k)
    logits, E = logits.float(), logits.size(1)
    experts = choose(logits.detach(), k)
    is_chosen = experts[..., None] == torch.arange(E, device=logits.device)
    top = torch.where(is_chosen, logits[:, None], 0.0).sum(2)  # fuses, forth and back, with what is around it
    P, f = logits.softmax(1).mean(0), is_chosen.float().mean((0, 1))
    return top.softmax(1), experts, E * (P * f).sum() + SIZE * logits.logsumexp(1).square().mean()


def choose(logits, k):
    """The k largest of each row (T, E), the first of equals. Of few: what a compiler fuses, unlike torch.topk."""
    if k > 4:
        return logits.topk(k, dim=1).indices
    found, all_of = [], torch.arange(logits.size(1), device=logits.device)
    for _ in range(k):
        found.append(logits.argmax(1, keepdim=True))
        logits = logits.masked_fill(found[-1] == all_of, -torch.inf)
    return torch.cat(found, 1)
