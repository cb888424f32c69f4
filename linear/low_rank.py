"""
Low rank: W = B A with `rank` features between.
"""

from dataclasses import dataclass

import torch

from linear import structured
from linear.einsum import Einsum, Shape, to_share


class LowRank(Einsum):
    """A (1, d_in, rank), B (1, rank, d_out): the point of the einsum family with a single tile."""

    @dataclass
    class Keys(structured.Rank, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'rank')
    starts = ('whitened',)

    @staticmethod
    def choose(d_in, d_out, c):
        return to_share(Shape(d_in, 1, 1, 1, d_out, 1, 1), c, c.rank)

    @torch.no_grad()
    def whitened(self, W, C):
        """The least E|Wx - W'x|^2 for C = E[x x^T]: W' = U U^T W, see output_space."""
        W = W.double()
        U = structured.output_space(W, structured.whitened_by(C), self.shape.r)
        u, s, Vh = torch.linalg.svd(U.T @ W, full_matrices=False)  # of U U^T W, for less
        first, last = structured.split_scales(s, 2)
        self.place([(Vh.T * first)[None], (U @ u * last).T[None]])
