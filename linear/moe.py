"""
Mixtures of experts: the standard mixture of whole MLPs, and what all share. btt_moe.py has one inside every linear layer.

Every expert multiplies the rows of its own tokens, so the work grows with the experts a token is sent to, not with how
many there are: on a GPU by kernels/mixture.py, which leaves the rows where they are, else by one grouped product over the
rows sorted by expert. No capacity limit, no token is dropped. For hundreds of experts over many GPUs use an engine made
for it, such as Megatron-Core or DeepSpeed; this file stays on one.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from configurator import key
from linear import structured
from linear.base import Matrix
from linear.kernels import grouped, mixture
from linear.kernels.routing import route


@dataclass
class Experts:
    """Keys of every mixture."""

    experts: int = key(8, 'experts of this layer and of mlp = moe', low=2, high=10_000)
    experts_active: int = key(2, 'experts that a token is sent to', low=1)
    router_loss: float = key(
        0.01, "weight of the routers' loss (balance and size of the logits), mean over routers", low=0
    )


def by_expert(experts, E):
    """experts (T, k) -> order (T k): positions in experts.flatten() sorted by expert, back: where each of them is in it, and
    ends (E): where each expert's end."""
    flat = experts.flatten()
    counts = (flat[:, None] == torch.arange(E, device=flat.device)).sum(0)
    order = flat.argsort(stable=True)
    back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return order, back, counts.cumsum(0)


class Sorted(torch.autograd.Function):
    """x (n, T, d) -> (n, T k, d), a row for each expert of a token, by expert: x[:, order // k]. Its gradient is picked, too,
    where that of an index would be added row by row."""

    @staticmethod
    def forward(ctx, x, order, back, k):
        ctx.save_for_backward(back)
        ctx.k = k
        return x[:, order // k]

    @staticmethod
    def backward(ctx, dy):
        (back,) = ctx.saved_tensors
        return dy[:, back].unflatten(1, (-1, ctx.k)).sum(2), None, None, None


class Unsorted(torch.autograd.Function):
    """y (n, T k, d) by expert -> (n, T k, d) by token: y[:, back]."""

    @staticmethod
    def forward(ctx, y, order, back):
        ctx.save_for_backward(order)
        return y[:, back]

    @staticmethod
    def backward(ctx, dy):
        (order,) = ctx.saved_tensors
        return dy[:, order], None, None


class MoE(nn.Module):
    """E MLPs with GELU, k of them for each token (Shazeer et al. 2017, arXiv 1701.06538; routing as above). With mup_base
    they start and move as the matrices of one MLP do, see linear.make."""

    def __init__(self, config, hidden):
        super().__init__()
        n, self.E, self.k = config.n_embd, config.experts, config.experts_active
        self.dense_lr_scale = structured.dense_lr_scale(config)  # of all three
        std = structured.gemm_std(n, hidden) if config.mup_base else 0.02
        self.router = nn.Parameter(torch.zeros(self.E, n))
        self.c_fc = nn.Parameter(torch.randn(self.E, n, hidden) * std)
        self.c_proj = nn.Parameter(torch.randn(self.E, hidden, n) * std / (2 * config.n_layer) ** 0.5)
        if config.mup_base:
            nn.init.zeros_(self.c_proj)
        self.dropout = nn.Dropout(config.dropout)
        self.router_loss = None

    def forward(self, x):
        B, T, C = x.shape
        x = x.reshape(B * T, C)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        x, router, c_fc, c_proj = (t.to(dtype) for t in (x, self.router, self.c_fc, self.c_proj))
        gates, experts, loss = route(F.linear(x, router), self.k)
        self.router_loss = loss if self.training else None  # GPT.forward takes it
        if mixture.serves(x, *c_fc.shape):
            y = mixture.mlp(x, c_fc, c_proj, gates, mixture.plan(experts, self.E))
            return self.dropout(y.view(B, T, C))
        order, back, ends = by_expert(experts, self.E)
        h = grouped.grouped(Sorted.apply(x[None], order, back, self.k), c_fc[None], ends)
        y = grouped.grouped(F.gelu(h), c_proj[None], ends)
        y = Unsorted.apply(y, order, back).view(B, T, self.k, C) * gates.view(B, T, self.k, 1).to(dtype)
        return self.dropout(y.sum(2))

    def waits(self, dtype) -> bool:
        """Whether the processor has to wait for the GPU in the middle of it: then no CUDA graph can hold it."""
        return not mixture.fits(dtype, *self.c_fc.shape) and grouped.waits(dtype, self.c_fc, self.c_proj)

    def macs(self):
        """Multiply-adds per token."""
        return self.k * (self.c_fc.numel() + self.c_proj.numel()) // self.E + self.router.numel()

    def matrices(self):
        """c_fc (hidden, n) and c_proj (n, hidden) of every expert; the router is no matrix for this (linear/base.py)."""
        c_fc, c_proj = (tuple(W.shape) for W in (self.c_fc, self.c_proj))
        return dict(c_fc=Matrix(c_fc, (2,), (1,), (0,)), c_proj=Matrix(c_proj, (2,), (1,), (0,)))
