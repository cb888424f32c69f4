"""
Block-dense: block-diagonal into `rank` inner features, then dense (Wei et al. 2024, arXiv 2406.16450).
"""

from dataclasses import dataclass

from linear import structured
from linear.einsum import Einsum, Shape, to_share
from linear.structured import check_blocks, divisors, fail, near


class BlockDense(Einsum):
    """A (blocks, d_in / blocks, rank / blocks), B (1, rank, d_out)."""

    @dataclass
    class Keys(structured.Rank, structured.Blocks, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'rank', 'blocks')

    @staticmethod
    def choose(d_in, d_out, c):
        k = c.blocks or near(2, divisors(d_in))  # as in the paper: the fewer, the less is written between the factors
        check_blocks(k, divisors(d_in), f'must divide {d_in}')
        if c.rank % k:
            fail('rank', c.rank, f'must be divisible by blocks ({k})', f'nearest: {max(c.rank // k, 1) * k}')
        return to_share(Shape(d_in // k, 1, k, 1, d_out, 1, 1), c, c.rank // k, unit=k)

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in (2, 4, 8, 16, 32)]

    @classmethod
    def step(cls, keys):
        return keys['blocks']
