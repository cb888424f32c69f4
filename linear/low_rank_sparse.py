"""
Low rank plus sparse: W = B A + S, S on a random support that stays fixed (SLTrain, Han et al. 2024, arXiv 2406.02214).
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from configurator import key
from linear import structured
from linear.base import Matrix
from linear.structured import Structured, check_rank, gemm_std, split_scales, tidy


class LowRankSparse(Structured):
    """A (d_in, rank), B (rank, d_out), values (1, n) of S; buffer `support` (n): where they lie in W, counted row by row.

    As in the paper's code S is written into a matrix of zeros: no kernel multiplies by a few random percent of a matrix as
    fast as by the whole of it. So the layer saves parameters, gradients and moments, and no multiplications."""

    @dataclass
    class Keys(structured.Rank, structured.Share, structured.Keys):
        density: float = key(0.03, 'share of the entries of W that the sparse part has', above=0, high=1)

    closed_form = False
    sizes = ('structured_share', 'rank', 'density')
    knob = 'rank'

    def __init__(self, d_in, d_out, config):
        n, full = max(1, round(config.density * d_in * d_out)), min(d_in, d_out)
        r = config.rank or tidy((config.structured_share * d_in * d_out - n) / (d_in + d_out), full)
        check_rank(r, full, f'a layer {d_in} -> {d_out}')
        # values are entries of W itself: they take the dense rate and decay, A and B those of a product of two
        super().__init__(d_in, d_out, config, [(d_in, r), (r, d_out), (1, n)], [d_in, r, d_in], depths=[2, 2, 1])
        self.register_buffer('support', torch.empty(n, dtype=torch.int64))
        if not self.support.is_meta:
            self.scatter(torch.Generator().manual_seed(0))

    def scatter(self, gen):
        """Draw the support: n of all entries, each equally likely, in order."""
        order = torch.randperm(self.d_in * self.d_out, generator=gen, device='cpu')
        self.support.copy_(order[: len(self.support)].sort().values)

    def sparse(self, values):
        """S (d_out, d_in)"""
        S = values.new_zeros(self.d_out * self.d_in)
        return S.scatter(0, self.support, values.flatten()).view(self.d_out, self.d_in)

    def product(self, x, W):
        A, B, values = W
        return x @ A @ B + F.linear(x, self.sparse(values))

    def matrix(self):
        A, B, values = self.capped()
        return (A @ B).T + self.sparse(values)

    @torch.no_grad()
    def from_dense(self, W):
        """In turn the best B A of this rank for W - S, and the best S for W - B A, until a round lowers the squared error by
        less than a thousandth: no round can raise it, and it need not be the least there is."""
        W, r = W.detach().double(), self.factors[0].size(1)
        values, before = torch.zeros(len(self.support)).to(W), math.inf
        for _ in range(50):
            R = W - self.sparse(values)
            U, s, Vh = torch.linalg.svd(R, full_matrices=False)
            rest = W - U[:, :r] * s[:r] @ Vh[:r]
            values = rest.flatten()[self.support]
            error = (rest - self.sparse(values)).square().sum().item()
            if error < 1e-20 * W.square().sum().item() or before - error < 1e-3 * before:
                break
            before = error
        first, last = split_scales(s[:r], 2)
        self.place([Vh[:r].T * first, (U[:, :r] * last).T, values[None]])

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        """A and B as those of low_rank, values uniform with the variance of the paper's (1 / sqrt(d_in) at most)."""
        r = self.factors[0].size(1)
        self.scatter(gen)
        self.draw([gemm_std(self.d_in, r), gemm_std(r, self.d_out), 1 / math.sqrt(3 * self.d_in)], gen, residual)
        values = self.factors[2]
        values.copy_((2 * torch.rand(values.shape, generator=gen) - 1) / math.sqrt(self.d_in))
        if residual:
            self.factors[1].zero_()
            values.zero_()

    def macs(self):
        return sum(W.numel() for W in self.factors[:2]) + self.d_in * self.d_out

    def form_macs(self):
        return self.factors[0].size(1) * self.d_in * self.d_out

    def traffic(self):
        """What lies between A and B, and the two outputs that are added."""
        return 2 * self.factors[0].size(1) + 4 * self.d_out

    def describe(self):
        return f'rank {self.factors[0].size(1)} and {self.factors[2].numel():,} entries'

    def matrices(self):
        """A^T and B^T; the values are no matrix."""
        A, B = (tuple(W.shape) for W in self.factors[:2])
        return super().matrices() | {
            'factors.0': Matrix(A, (1,), (0,)),
            'factors.1': Matrix(B, (1,), (0,), split=self.parts),
        }

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(density=d) for d in (0.01, 0.03, 0.1)]
