"""
Kronecker products and their sums: W = sum over `kronecker_terms` of B kron A.
"""

import math
from dataclasses import dataclass

import torch

from configurator import key
from linear import structured
from linear.base import Matrix
from linear.einsum import Einsum, Shape, full_rank
from linear.structured import divisors, fail, near

TERMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # that a budget tries


class Kronecker(Einsum):
    """A (1, a, terms d), B (1, terms b, e) with d_in = a b and d_out = d e; B (e, b) is the first factor of each product, of
    shape kronecker_shape. The nearest to a given W is Van Loan & Pitsianis' (1993)."""

    @dataclass
    class Keys(structured.Share, structured.Keys):
        kronecker_shape: tuple = key(
            (),
            '(rows, columns) of the first Kronecker factor, turned round where a layer narrows; empty: about a third of the'
            ' parameters',
        )
        kronecker_terms: int = key(1, 'Kronecker products in the sum', low=1, high=2**31)

    sizes = ('structured_share', 'kronecker_shape', 'kronecker_terms')
    exact = ('kronecker_shape',)
    knob = ''
    starts = ('prune',)
    is_sum = True

    @staticmethod
    def choose(d_in, d_out, c):
        terms, v = c.kronecker_terms, c.kronecker_shape
        if v and (len(v) != 2 or not all(i > 0 and float(i).is_integer() for i in v)):
            shown = ','.join(f'{i:g}' for i in v)
            fail('kronecker_shape', shown, 'must be 2 positive integers', 'rows, columns of the first factor')
        if v:
            rows, columns = map(int, v)
            pairs = [(rows, columns), (columns, rows)]  # the layer back takes it turned round
            for e, b in pairs if d_out >= d_in else pairs[::-1]:
                if d_out % e == 0 and d_in % b == 0:
                    return full_rank(Shape(d_in // b, b, 1, d_out // e, e, 1, terms), 'kronecker_terms')
            why = f'must divide (d_out, d_in) = ({d_out}, {d_in}), one way or the other'
            choices = f'nearest: {near(rows, divisors(d_out))},{near(columns, divisors(d_in))}'
            fail('kronecker_shape', f'{rows},{columns}', why, choices)
        a, d = min(
            ((a, d) for a in divisors(d_in) for d in divisors(d_out)),
            key=lambda p: abs(
                math.log(terms * (1 / math.prod(p) + math.prod(p) / (d_in * d_out)) / c.structured_share)
            ),
        )
        return full_rank(Shape(a, d_in // a, 1, d, d_out // d, 1, terms), 'kronecker_terms')

    @classmethod
    def variants(cls, d_in, d_out):
        pairs = [(e, b) for e in divisors(d_out) for b in divisors(d_in)]
        return [dict(kronecker_shape=p, kronecker_terms=k) for p in pairs for k in TERMS]

    @torch.no_grad()
    def prune(self, W):
        """Term r keeps entry r of every tile (d, a) of W, in the order of rows; with a d terms it is W. Krony-PT's start of
        the 95M model (Ayad et al. 2024, arXiv 2412.12351) has one term and a tile of two."""
        s = self.shape
        A, B = torch.zeros(s.a, s.r, s.d), torch.zeros(s.r, s.b, s.e)
        tiles = W.view(s.e, s.d, s.b, s.a)
        for r in range(s.r):
            A[r % s.a, r, r // s.a] = 1
            B[r] = tiles[:, r // s.a, :, r % s.a].T
        self.place([A.view(self.factors[0].shape), B.view(self.factors[1].shape)])

    def matrices(self):
        """Each term's A (d, a) and B (e, b)."""
        s, (A, B) = self.shape, (tuple(W.shape) for W in self.factors)
        return super().matrices() | {
            'factors.0': Matrix(A, (2,), (0,), (1,), view=(s.a, s.r, s.d)),
            'factors.1': Matrix(B, (2,), (1,), (0,), view=(s.r, s.b, s.e)),
        }
