"""
Block Tensor-Train (Qiu et al. 2024, arXiv 2406.06248).
"""

import math
from dataclasses import dataclass

from linear import structured
from linear.einsum import Einsum, Shape, at_roots, to_share
from linear.structured import check_blocks, divisors


class BTT(Einsum):
    """Tiles of W of rank `rank`: split at the square roots of d_in and d_out, or `blocks` tiles a side."""

    @dataclass
    class Keys(structured.Rank, structured.Blocks, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'rank', 'blocks')

    @staticmethod
    def choose(d_in, d_out, c):
        if not c.blocks:
            return to_share(at_roots(d_in, d_out), c, c.rank)
        k = check_blocks(c.blocks, divisors(math.gcd(d_in, d_out)), f'must divide {d_in} and {d_out}')
        return to_share(Shape(d_in // k, 1, k, 1, d_out // k, k, 1), c, c.rank)

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in (0, 2, 4, 8, 16, 32)]
