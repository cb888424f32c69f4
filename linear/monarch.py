"""
Monarch: two block-diagonal factors of `blocks` blocks each around a permutation, full inner width (Dao et al. 2022, arXiv
2204.00595).
"""

import math
from dataclasses import dataclass

from linear import structured
from linear.einsum import Einsum, Shape
from linear.structured import check_blocks, divisors, fail, near


class Monarch(Einsum):
    """The point of the einsum family with blocks x blocks tiles of W, each of rank min(d_in, d_out) / blocks^2."""

    @dataclass
    class Keys(structured.Blocks, structured.Share, structured.Keys):
        pass

    sizes = ('structured_share', 'blocks')
    exact = ('blocks',)
    knob = ''

    @staticmethod
    def choose(d_in, d_out, c):
        small = min(d_in, d_out)
        valid = [k for k in divisors(math.gcd(d_in, d_out)) if small % k**2 == 0 and k > 1]
        if not valid:
            why = f'{d_in} -> {d_out} has no number of blocks k with k*k dividing {small}'
            fail('linear', 'monarch', why, 'use btt')
        k = c.blocks or near((d_in + d_out) * small / (c.structured_share * d_in * d_out), valid)
        check_blocks(k, valid, f'must divide {d_in} and {d_out}, and its square {small}')
        return Shape(d_in // k, 1, k, 1, d_out // k, k, small // k**2)

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in divisors(math.gcd(d_in, d_out)) if k > 1]
