"""
Block Tensor-Train (Qiu et al. 2024, arXiv 2406.06248).
"""

import math
from dataclasses import dataclass

from linear import structured
from linear.einsum import Einsum, Shape, at_roots, to_share
from linear.structured import divisors, fail, nearest


class BTT(Einsum):
    """Tiles of W of rank `rank`: split at the square roots of d_in and d_out, or `blocks` tiles a side."""

    @dataclass
    class Keys(structured.Rank, structured.Blocks, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'rank', 'blocks')

    @staticmethod
    def choose(d_in, d_out, c):
        if c.blocks:
            valid = divisors(math.gcd(d_in, d_out))
            if c.blocks not in valid:
                fail('blocks', c.blocks, f'must divide {d_in} and {d_out}', f'nearest: {nearest(c.blocks, valid)}')
            return to_share(Shape(d_in // c.blocks, 1, c.blocks, 1, d_out // c.blocks, c.blocks, 1), c, c.rank)
        return to_share(at_roots(d_in, d_out), c, c.rank)

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in (0, 2, 4, 8, 16, 32)]
