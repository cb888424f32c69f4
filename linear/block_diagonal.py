"""
Block-diagonal matrices: independent layers side by side.
"""

import math
from dataclasses import dataclass

import torch

from linear import structured
from linear.base import Matrix
from linear.kernels import blocks
from linear.structured import Structured, check_blocks, divisors, gemm_std, near


class BlockDiagonal(Structured):
    """`blocks` independent layers side by side, D (k, d_in / k, d_out / k)."""

    @dataclass
    class Keys(structured.Blocks, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'blocks')
    exact = ('blocks',)
    starts = ('whitened',)

    def __init__(self, d_in, d_out, config):
        valid = [k for k in divisors(math.gcd(d_in, d_out)) if k > 1] or [1]
        k = config.blocks or near(1 / config.structured_share, valid)
        check_blocks(k, valid, f'must divide {d_in} and {d_out}')
        super().__init__(d_in, d_out, config, [(k, d_in // k, d_out // k)], [d_in // k])

    def product(self, x, W):
        return blocks.ops.blocks(x, W[0])

    def matrix(self):
        return torch.block_diag(*self.capped()[0].mT)

    @torch.no_grad()
    def from_dense(self, W):
        """The blocks of W; the error is what lies off them."""
        k, i, o = self.factors[0].shape
        self.place([torch.stack([W[j * o : (j + 1) * o, j * i : (j + 1) * i].T for j in range(k)])])

    @torch.no_grad()
    def whitened(self, W, C):
        """The least E|Wx - W'x|^2 for C = E[x x^T]: each block of outputs regressed on its own inputs."""
        k, i, o = self.factors[0].shape
        C, rows, cols = structured.whitened_by(C), W.double().split(o), range(0, k * i, i)
        new = [torch.linalg.solve(C[c : c + i, c : c + i], C[c : c + i] @ w.T).T for c, w in zip(cols, rows)]
        self.from_dense(torch.block_diag(*new))

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        self.draw([gemm_std(*self.factors[0].shape[1:])], gen, residual)

    def form_macs(self):
        return 0

    def traffic(self):
        return 0

    def describe(self):
        return f'{self.factors[0].size(0)} blocks'

    def matrices(self):
        """The blocks."""
        return super().matrices() | {'factors.0': Matrix(tuple(self.factors[0].shape), (2,), (1,), (0,))}

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in divisors(math.gcd(d_in, d_out)) if k > 1]
