"""
Mixtures of experts: routing, and the standard mixture of whole MLPs. btt_moe.py has one inside every linear layer.

The tokens are sorted by expert and every expert multiplies its own rows (one grouped product), so the work grows with the
experts a token is sent to, not with how many there are. No capacity limit, no token is dropped. For hundreds of experts
over many GPUs use an engine made for it, such as Megatron-Core or DeepSpeed; this file stays on one.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from configurator import key
from linear import structured
from linear.base import Matrix
from linear.kernels.grouped import grouped, waits


@dataclass
class Experts:
    """Keys of every mixture."""

    experts: int = key(8, 'experts of this layer and of mlp = moe', low=2, high=10_000)
    experts_active: int = key(2, 'experts that a token is sent to', low=1)
    router_loss: float = key(
        0.01, "weight of the routers' loss (balance and size of the logits), mean over routers", low=0
    )


def route(logits, k):
    """Router logits (T, E) -> gates (T, k) that sum to 1, experts (T, k), loss: E sum_e P_e f_e, which is 1 for an even
    spread (P mean probability, f share of selections; Fedus et al. 2021, arXiv 2101.03961), plus 0.1 mean(logsumexp^2)
    (Zoph et al. 2022, arXiv 2202.08906)."""
    logits = logits.float()
    E = logits.size(1)
    top, experts = logits.topk(k, dim=1)
    P = logits.softmax(1).mean(0)
    f = (experts[..., None] == torch.arange(E, device=logits.device)).float().mean((0, 1))
    loss = E * (P * f).sum() + 0.1 * logits.logsumexp(1).square().mean()
    return top.softmax(1), experts, loss


def by_expert(experts, E):
    """experts (T, k) -> order (T k): positions in experts.flatten() sorted by expert; ends (E): where each expert's end."""
    flat = experts.flatten()
    counts = (flat[:, None] == torch.arange(E, device=flat.device)).sum(0)
    return flat.argsort(stable=True), counts.cumsum(0)


class MoE(nn.Module):
    """E MLPs with GELU, k of them for each token (Shazeer et al. 2017, arXiv 1701.06538; routing as above). With mup_base
    they start and move as the matrices of one MLP do, see linear.make."""

    def __init__(self, config, hidden):
        super().__init__()
        n, self.E, self.k = config.n_embd, config.experts, config.experts_active
        self.rate = structured.width_rate(config)  # of all three
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
        x = x.reshape(1, B * T, C)
        gates, experts, loss = route(F.linear(x[0], self.router.to(x.dtype)), self.k)
        self.router_loss = loss if self.training else None  # GPT.forward takes it
        order, ends = by_expert(experts, self.E)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        h = grouped(x[:, order // self.k].to(dtype), self.c_fc[None].to(dtype), ends)
        y = grouped(F.gelu(h), self.c_proj[None].to(dtype), ends)[0]
        y = (y * gates.flatten()[order].to(dtype)[:, None])[order.argsort()]
        return self.dropout(y.view(B, T, self.k, C).sum(2))

    def waits(self, dtype) -> bool:
        """Whether the processor has to wait for the GPU in the middle of it: then no CUDA graph can hold it."""
        return waits(dtype, self.c_fc, self.c_proj)

    def macs(self):
        """Multiply-adds per token."""
        return self.k * (self.c_fc.numel() + self.c_proj.numel()) // self.E + self.router.numel()

    def matrices(self):
        """c_fc (hidden, n) and c_proj (n, hidden) of every expert; the router is no matrix for this (linear/base.py)."""
        c_fc, c_proj = (tuple(W.shape) for W in (self.c_fc, self.c_proj))
        return dict(c_fc=Matrix(c_fc, (2,), (1,), (0,)), c_proj=Matrix(c_proj, (2,), (1,), (0,)))
