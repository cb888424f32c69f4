"""
Mixtures of experts: BTT-MoE, a mixture inside every linear layer, and the standard one over whole MLPs to compare it with.

The tokens are sorted by expert and every expert multiplies its own rows (one grouped product), so the work grows with the
experts a token is sent to, not with how many there are. No capacity limit, no token is dropped. For hundreds of experts
over many GPUs use an engine made for it, such as Megatron-Core or DeepSpeed; this file stays on one.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from configurator import UserError
from linear.structured import Structured, divisors, gemm_std, near


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


# torch's grouped product knows bfloat16 on a GPU and widths that are multiples of 8; elsewhere one product after another.
# Opaque to the compiler, whose own check refuses what does not run on a GPU.

torch.library.define('nanomorph::grouped', '(Tensor x, Tensor W, Tensor ends) -> Tensor')
torch.library.define('nanomorph::grouped_outer', '(Tensor x, Tensor y, Tensor ends) -> Tensor')


def native(*tensors) -> bool:
    return all(t.is_cuda and t.dtype == torch.bfloat16 and t.size(-1) % 8 == t.size(-2) % 8 == 0 for t in tensors)


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


class BttMoE(Structured):
    """E Block Tensor-Trains of rank 1 (arXiv 2410.02117): y = sum over the token's top k experts of gate * BTT_expert(x).
    A (g, E, a, f), B (f, E, g, e), router (E, d_in) on the layer's own input, zero at first."""

    def __init__(self, d_in, d_out, config):
        a, f = (near(d**0.5, divisors(d)) for d in (d_in, d_out))
        g, e, E = d_in // a, d_out // f, config.experts
        super().__init__(d_in, d_out, config, [(g, E, a, f), (f, E, g, e)], [a, g])
        self.k, self.E = config.experts_active, E
        self.router = nn.Parameter(torch.zeros(E, d_in))
        self.router_loss = None

    def product(self, x, W):
        x, (A, B) = x.reshape(-1, self.d_in), W
        (g, E, a, f), e, T = A.shape, B.size(3), x.size(0)
        gates, experts, loss = route(F.linear(x, self.router.to(x.dtype)), self.k)
        self.router_loss = loss if self.training else None  # GPT.forward takes it
        order, ends = by_expert(experts, E)
        x = x.view(T, g, a).transpose(0, 1)[:, order // self.k]  # (g, T k, a)
        Z = grouped(x, A, ends).permute(2, 1, 0)  # (f, T k, g)
        Z = Z * gates.flatten()[order].to(Z.dtype)[:, None]
        y = grouped(Z, B, ends)[:, order.argsort()]  # (f, T k, e) in the order of the tokens again
        return y.view(f, T, self.k, e).sum(2).transpose(0, 1).reshape(T, f * e)

    def matrix(self):
        raise UserError('linear = btt_moe: a mixture is no matrix, it cannot be materialised or collapsed')

    def from_dense(self, W):
        self.matrix()

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        g, _, a, f = self.factors[0].shape
        self.draw([gemm_std(a, f), gemm_std(g, self.factors[1].size(3))], gen, residual)

    def macs(self):
        return self.k * sum(W.numel() for W in self.factors) // self.E + self.d_in * self.E

    def form_macs(self):
        return float('inf')  # never

    def moves(self):
        g, _, a, f = self.factors[0].shape
        return self.k * (2 * self.d_in + 4 * g * f + 2 * self.d_out)

    def rank(self):
        return min(self.d_in, self.d_out)

    def describe(self):
        g, E, a, f = self.factors[0].shape
        return f'{self.k} of {E} experts ({a}, 1, {g} | 1, {self.factors[1].size(3)}, {f} | 1)'


class MoE(nn.Module):
    """E MLPs with GELU, k of them for each token (Shazeer et al. 2017, arXiv 1701.06538; routing as above)."""

    def __init__(self, config, hidden):
        super().__init__()
        n, self.E, self.k = config.n_embd, config.experts, config.experts_active
        self.router = nn.Parameter(torch.zeros(self.E, n))
        self.c_fc = nn.Parameter(torch.randn(self.E, n, hidden) * 0.02)
        self.c_proj = nn.Parameter(torch.randn(self.E, hidden, n) * 0.02 / (2 * config.n_layer) ** 0.5)
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

    def macs(self):
        """Multiply-adds per token."""
        return self.k * (self.c_fc.numel() + self.c_proj.numel()) // self.E + self.router.numel()
