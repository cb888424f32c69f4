"""
BTT-MoE: a mixture of Block Tensor-Trains inside every linear layer (Potapczynski et al. 2024, arXiv 2410.02117).
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from configurator import UserError
from linear import moe, structured
from linear.base import Matrix
from linear.einsum import at_roots
from linear.kernels import grouped, mixture
from linear.kernels.routing import route
from linear.structured import Structured, gemm_std


class BttMoE(Structured):
    """E Block Tensor-Trains of rank 1: y = sum over the token's top k experts of gate * BTT_expert(x).
    A (g, E, a, f), B (f, E, g, e), router (E, d_in) on the layer's own input, zero at first."""

    @dataclass
    class Keys(moe.Experts, structured.Keys):
        pass

    is_matrix = False

    def __init__(self, d_in, d_out, config):
        s, E = at_roots(d_in, d_out), config.experts
        super().__init__(d_in, d_out, config, [(s.g, E, s.a, s.f), (s.f, E, s.g, s.e)], [s.a, s.g])
        self.k, self.E = config.experts_active, E
        self.router = nn.Parameter(torch.zeros(E, d_in))
        self.router_loss = None

    def product(self, x, W):
        x, (A, B) = x.reshape(-1, self.d_in), W
        (g, E, a, f), e, T = A.shape, B.size(3), x.size(0)
        gates, experts, loss = route(F.linear(x, self.router.to(x.dtype)), self.k)
        self.router_loss = loss if self.training else None  # GPT.forward takes it
        if mixture.serves(x, E, self.d_in, self.d_out):
            # the matrices of all experts: 16 times the factors' FLOPs at width 768, in products of the size that a GPU is made for
            W = A.permute(1, 0, 2, 3)[..., None] * B.permute(1, 2, 0, 3)[:, :, None]  # (E, g, a, f, e)
            return mixture.product(x, W.reshape(E, self.d_in, self.d_out), gates, mixture.plan(experts, E))
        order, back, ends = moe.by_expert(experts, E)
        x = moe.Sorted.apply(x.view(T, g, a).transpose(0, 1), order, back, self.k)  # (g, T k, a)
        Z = grouped.grouped(x, A, ends).permute(2, 1, 0)  # (f, T k, g)
        Z = Z * moe.Unsorted.apply(gates.view(1, -1, 1).to(Z.dtype), back, order)
        y = moe.Unsorted.apply(grouped.grouped(Z, B, ends), order, back)  # (f, T k, e)
        return y.view(f, T, self.k, e).sum(2).transpose(0, 1).reshape(T, f * e)

    def waits(self, dtype) -> bool:
        return not mixture.fits(dtype, self.E, self.d_in, self.d_out) and grouped.waits(dtype, *self.factors)

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

    def dense_macs(self):
        return self.k * self.d_in * self.d_out

    def form_macs(self):
        return float('inf')  # never

    def traffic(self):
        g, _, a, f = self.factors[0].shape
        return self.k * (2 * self.d_in + 4 * g * f + 2 * self.d_out)

    def describe(self):
        g, E, a, f = self.factors[0].shape
        return f'{self.k} of {E} experts ({a}, 1, {g} | 1, {self.factors[1].size(3)}, {f} | 1)'

    def matrices(self):
        """A (f, a) and B (e, g) of every expert."""
        A, B = (tuple(W.shape) for W in self.factors)
        return super().matrices() | {
            'factors.0': Matrix(A, (3,), (2,), (0, 1)),
            'factors.1': Matrix(B, (3,), (2,), (0, 1)),
        }
