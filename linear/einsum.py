"""
The two-factor einsum family, and the layer `einsum`: any point of it.

The family (Potapczynski et al. 2024, arXiv 2410.02117) has seven integers, (alpha, beta, gamma | delta, epsilon, phi |
rho), here a b g | d e f | r, with d_in = a b g and d_out = d e f:

    index        a     b     g        d     e     f        r
    appears in   X, A  X, B  X, A, B  Y, A  Y, B  Y, A, B  A, B

    Z[f,d,r,g,b] = sum_a X[g,b,a] A[g,a,f,r,d];    Y[f,e,d] = sum_{r,g,b} Z[f,d,r,g,b] B[f,r,g,b,e]

Each (g, f) tile of W, seen as a matrix (a d) x (b e), has rank r and is independent of the others. Layers of other files
are choices of the seven integers: low_rank, block_dense, monarch, btt, kronecker, and a tensor_train of two cores.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from configurator import UserError, key
from linear import structured
from linear.base import Matrix
from linear.kernels import blocks, chip
from linear.structured import Structured, divisors, fail, gemm_std, near_root, split_scales, tidy

# -----------------------------------------------------------------------------
# shapes


class Shape(NamedTuple):
    """The seven integers of the family."""

    a: int
    b: int
    g: int
    d: int
    e: int
    f: int
    r: int

    def __str__(self):
        return f'({self.a}, {self.b}, {self.g} | {self.d}, {self.e}, {self.f} | {self.r})'


def triple(d: int, theta) -> tuple[int, int, int]:
    """Three integers with product d, nearest to d ** theta in the sum of squared log ratios."""
    wanted = [t * math.log(d) for t in theta]

    def distance(t):
        return sum((math.log(n) - w) ** 2 for n, w in zip(t, wanted))

    return min(((i, j, d // i // j) for i in divisors(d) for j in divisors(d // i)), key=distance)


def at_roots(d_in: int, d_out: int) -> Shape:
    """Tiles of rank 1, both sides split near their roots."""
    a, f = near_root(d_in), near_root(d_out, run=lambda f: d_out // f)
    return Shape(a, 1, d_in // a, 1, d_out // f, f, 1)


def full_rank(s: Shape, key: str, unit=1) -> Shape:
    """s, if its rank is at most that of a full tile. UserError naming the key, which counts ranks in `unit`s, if not."""
    limit = min(s.a * s.d, s.b * s.e)
    if s.r > limit:
        fail(key, s.r * unit, f'a layer {s.a * s.b * s.g} -> {s.d * s.e * s.f} of shape {s} has full rank at {limit * unit}',
             f'use at most {limit * unit}')  # fmt: skip
    return s


def to_share(shape: Shape, c, rank: int, unit=1) -> Shape:
    """shape with this rank, or with the one that takes about structured_share of the dense parameters."""
    limit = min(shape.a * shape.d, shape.b * shape.e)
    d_in, d_out = shape.a * shape.b * shape.g, shape.d * shape.e * shape.f
    each = shape.g * shape.f * (shape.a * shape.d + shape.b * shape.e)
    return full_rank(shape._replace(r=rank or tidy(c.structured_share * d_in * d_out / each, limit)), 'rank', unit)


# -----------------------------------------------------------------------------
# the layer


class Einsum(Structured):
    """A (g, a, f r d) and B (f, r g b, e): the formula at the top of this file. With a single f (block-dense) B is
    (1, g r, e): the first product can then write its rows (T, g r) where the second, a plain one, reads them. A layer of the
    family chooses the seven integers in `choose`."""

    @dataclass
    class Keys(structured.Rank, structured.Share, structured.Keys):
        theta: tuple = key((), 'seven exponents, of alpha beta gamma, delta epsilon phi, rho; empty: as btt')
        einsum_shape: tuple = key((), 'the seven integers themselves')

    sizes = ('structured_share', 'rank', 'theta', 'einsum_shape')
    exact = ('rank', 'theta', 'einsum_shape')
    knob = 'rank'

    def __init__(self, d_in, d_out, config):
        s = self.shape = self.choose(d_in, d_out, config)
        super().__init__(
            d_in, d_out, config, [(s.g, s.a, s.f * s.r * s.d), (s.f, s.r * s.g * s.b, s.e)], [s.a, s.r * s.g * s.b]
        )

    @staticmethod
    def choose(d_in, d_out, c) -> Shape:
        """The seven integers of einsum_shape, or of theta: d_in ** theta, d_out ** theta and, for rho, the smaller of both.
        Without either as btt."""
        for k, kind in (('theta', 'numbers'), ('einsum_shape', 'positive integers')):
            v = getattr(c, k)
            if v and (len(v) != 7 or k == 'einsum_shape' and not all(i > 0 and float(i).is_integer() for i in v)):
                fail(k, v, f'must be 7 {kind}', 'order: alpha, beta, gamma, delta, epsilon, phi, rho')
        if len(given := [k for k in ('theta', 'einsum_shape', 'rank') if getattr(c, k)]) > 1:
            raise UserError(f'{" and ".join(given)}: give one of them, each says what the rank is')
        if c.einsum_shape:
            s = Shape(*map(int, c.einsum_shape))
            for names, d, what in (('abg', d_in, 'inputs'), ('def', d_out, 'outputs')):
                n = tuple(getattr(s, k) for k in names)
                if math.prod(n) != d:
                    near_n = triple(d, [math.log(k) / math.log(max(2, math.prod(n))) for k in n])
                    fail('einsum_shape', s, f'{n} must multiply to the {d} {what}', f'nearest: {near_n}')
            return full_rank(s, 'einsum_shape')
        if not c.theta:
            return to_share(at_roots(d_in, d_out), c, c.rank)
        for part, names in ((c.theta[:3], 'alpha, beta, gamma'), (c.theta[3:6], 'delta, epsilon, phi')):
            if abs(sum(part) - 1) > 1e-2:
                best = tuple(round(t / sum(part), 4) for t in part) if sum(part) else (1, 0, 0)
                fail('theta', c.theta, f'the exponents of {names} must sum to 1, not {sum(part):g}', f'nearest: {best}')
        r = max(1, round(min(d_in, d_out) ** c.theta[6]))
        return full_rank(Shape(*triple(d_in, c.theta[:3]), *triple(d_out, c.theta[3:6]), r), 'theta')

    def cast(self, x):
        """As the others, with the rows of A where its columns are no multiple of 8 numbers and would slow the products down."""
        x, (A, B) = super().cast(x)
        s = self.shape
        if s.b == s.d == 1 < s.f and s.f * s.r % 8 and s.a % 8 == 0:
            A = A.mT.contiguous().mT
        return x, [A, B]

    def product(self, x, W):
        A, B = W
        s = self.shape
        if s.b == s.d == s.f == 1:
            return (x @ A.squeeze(0) if s.g == 1 else blocks.ops.blocks(x, A)) @ B.squeeze(0)
        if s.b == s.d == 1:
            return (chip.Inside if chip.serves(x, A, B) else blocks.TwoFactor).apply(x, A, B)
        x = x.reshape(-1, s.g, s.b, s.a)
        if not self.B_first():
            return contract(x, A, B, s)  # (T, f, e, d)
        A = A.view(s.g, s.a, s.f, s.r, s.d).permute(2, 3, 0, 1, 4).reshape(s.f, -1, s.d)
        B = B.view(s.f, s.r, s.g, s.b, s.e).permute(2, 3, 0, 1, 4).reshape(s.g, s.b, -1)
        return contract(x.transpose(2, 3), B, A, turned(s)).transpose(2, 3).reshape(-1, self.d_out)

    def matrix(self):
        s, (A, B) = self.shape, self.capped()
        A = A.view(s.g, s.a, s.f, s.r, s.d).permute(2, 0, 3, 4, 1)  # (f, g, r, d, a)
        B = self.by_tile(B)  # (f, g, r, b, e)
        A, B = A.reshape(s.f * s.g, s.r, 1, -1), B.reshape(s.f * s.g, s.r, -1, 1)
        tiles = (B * A).squeeze(1) if s.r == 1 else B.squeeze(3).mT @ A.squeeze(2)
        # a stays innermost, so that the permutation moves runs of memory
        W = tiles.view(s.f, s.g, s.b, s.e, s.d, s.a).permute(0, 3, 4, 1, 2, 5)  # (f, e, d, g, b, a)
        return W.reshape(self.d_out, self.d_in)

    def by_tile(self, B):
        """B as (f, g, r, b, e), a view."""
        s = self.shape
        if s.b == s.d == s.f == 1:
            return B.view(s.f, s.g, s.r, s.b, s.e)
        return B.view(s.f, s.r, s.g, s.b, s.e).transpose(1, 2)

    @torch.no_grad()
    def from_dense(self, W):
        """The nearest W of this kind in the Frobenius norm: the rank-r SVD of every tile. For a Kronecker sum this is Van Loan &
        Pitsianis 1993. Error: the root of the summed squares of the singular values left out."""
        s = self.shape
        tiles = W.detach().double().view(s.f, s.e, s.d, s.g, s.b, s.a).permute(0, 3, 5, 2, 4, 1)
        U, S, Vh = torch.linalg.svd(tiles.reshape(s.f, s.g, s.a * s.d, s.b * s.e), full_matrices=False)
        first, last = split_scales(S[..., : s.r], 2)
        A = (U[..., : s.r] * first[..., None, :]).view(s.f, s.g, s.a, s.d, s.r).permute(1, 2, 0, 4, 3)
        B = torch.empty_like(self.factors[1], dtype=torch.float64)
        self.by_tile(B).copy_((last[..., None] * Vh[..., : s.r, :]).view(s.f, s.g, s.r, s.b, s.e))
        self.place([A.reshape(self.factors[0].shape), B])

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        """gemm_std for both factors. Where rank > 1 would shrink the output, both start as at rank 1 and the other ranks
        of B at zero (arXiv 2410.02117); what is left to the dense layer's output RMS, min(1, sqrt(d_out / d_in)), is
        shared by both. Not where rank is all there is, as in low_rank: its output is rightly smaller.

        The cap of structured_norm is gemm_std at full rank, as in the papers' code. Behind a start at rank 1 it is below
        the RMS of B, which it holds back from the first step on, there as here."""
        s, wanted = self.shape, min(1, math.sqrt(self.d_out / self.d_in))
        for r in (s.r, 1):
            stds = [gemm_std(s.a, s.d * s.f * r), gemm_std(s.b * s.g * r, s.e)]
            rms = stds[0] * math.sqrt(s.a) * stds[1] * math.sqrt(s.b * s.g * r)
            if rms > 0.95 * wanted or s.b == s.d == min(s.g, s.f) == 1:
                break
        caps = [gemm_std(s.a, s.d * s.f * s.r), gemm_std(s.b * s.g * s.r, s.e)]
        if s.b * s.d * min(s.g, s.f) > 1:
            stds, caps = ([std * math.sqrt(wanted / rms) for std in v] for v in (stds, caps))
        self.draw(stds, gen, residual, caps)
        if r < s.r:
            self.factors[1].view(s.f, s.r, -1)[:, 1:] = 0

    @staticmethod
    def macs_first(s) -> int:
        """Multiply-adds per token, A before B."""
        return s.b * s.g * s.a * s.f * s.r * s.d + s.d * s.f * s.r * s.g * s.b * s.e

    def B_first(self) -> bool:
        """Whether x meets B before A, which comes cheaper where d_in and d_out are split otherwise, or permutes less."""
        s, t = self.shape, turned(self.shape)
        return (self.macs_first(t), self.permuted(True)) < (self.macs_first(s), self.permuted(False))

    def permuted(self, B_first: bool) -> int:
        """Features of x or y that are permuted where both g and f are 1, and b or d is not."""
        s = self.shape
        one, other, side = (s.a, s.b, self.d_in) if B_first else (s.d, s.e, self.d_out)
        return side if min(one, other) > 1 else 0

    def order(self) -> Shape:
        """The shape as it is computed, A first."""
        return turned(self.shape) if self.B_first() else self.shape

    def macs(self):
        """All multiply-adds, whether pair() makes a product of them or, for a factor of at most SMALL numbers, goes number by
        number: then torch's counter does not see them (up to 8% of a layer at toy widths)."""
        return self.macs_first(self.order())

    def form_macs(self):
        """The same: with rank 1 it is one multiplication for each number of W."""
        return self.shape.r * self.d_in * self.d_out

    def traffic(self):
        s = self.shape
        if s.b == s.d == 1:
            return 2 * s.g * s.f * s.r
        first = self.order()
        Z = first.b * first.g * first.d * first.f * first.r
        if s.g * s.f > 1:
            return 4 * Z + 2 * self.d_in + 2 * self.d_out
        return 2 * Z + 2 * self.permuted(self.B_first())

    def rank(self) -> int:
        """The rank of W for factors in general position."""
        s = self.shape
        tile = s.r * min(s.a, s.d) * min(s.b, s.e)
        columns = s.g * s.b * min(s.a, s.f * s.d * s.r), s.g * min(s.a * s.b, s.f * tile)
        rows = s.f * s.d * min(s.e, s.r * s.g * s.b), s.f * min(s.d * s.e, s.g * tile)
        return min(self.d_in, self.d_out, *columns, *rows)

    def describe(self):
        return str(self.shape)

    def matrices(self):
        """A maps a features to f r d for every g, B maps r g b to e for every f."""
        A, B = (tuple(W.shape) for W in self.factors)
        split = self.parts if B[0] == 1 and B[2] == self.d_out else ()
        return super().matrices() | {
            'factors.0': Matrix(A, (2,), (1,), (0,)),
            'factors.1': Matrix(B, (2,), (1,), (0,), split=split),
        }


def turned(s: Shape) -> Shape:
    """The same layer with B first."""
    return Shape(s.b, s.a, s.g, s.e, s.d, s.f, s.r)


# numbers in a factor that is multiplied number by number: a product with so few rows and columns would fill a corner of a
# tensor core's tile, and the compiler puts these products into the kernels before or after them
SMALL = 16


def contract(x, A, B, s: Shape):
    """x (T, g, b, a) -> y (T, f, e, d), A first. Without g and f nothing but x or y is permuted, with them all is."""
    if s.g == s.f == 1:
        return pair(x.squeeze(1), A.view(s.a, s.r, s.d), B.view(s.r, s.b, s.e)).transpose(1, 2).unsqueeze(1)
    Z = x.permute(1, 0, 2, 3).reshape(s.g, -1, s.a) @ A  # (g, T b, f r d)
    Z = Z.view(s.g, -1, s.b, s.f, s.r, s.d).permute(3, 1, 5, 4, 0, 2).reshape(s.f, -1, s.r * s.g * s.b)
    return (Z @ B).view(s.f, -1, s.d, s.e).permute(1, 0, 3, 2).reshape(-1, s.f, s.e, s.d)


def pair(x, A, B):
    """x (T, b, a), A (a, r, d), B (r, b, e) -> y (T, d, e): each of b inputs through the same A, each of d outputs through
    the same B, so that the two batches of products can read and write where they need to. Products of two axes: how torch
    does one of three, and what it rounds to, depends on whether the factor wants a gradient."""
    (a, r, d), (_, b, e) = A.shape, B.shape
    if A.numel() <= SMALL:  # expand: its gradient is summed over the tokens alone first, as a bias's is
        Z = sum(x[:, None, None, :, i] * A[i].T[..., None].expand(-1, -1, b) for i in range(a))  # (T, d, r, b)
        return (Z.reshape(-1, r * b) @ B.flatten(0, 1)).view(-1, d, e)
    if B.numel() <= SMALL:
        Z = (x.reshape(-1, a) @ A.flatten(1)).view(-1, b, r, d)
        return sum(Z[:, j, i, :, None] * B[i, j].expand(d, -1) for i in range(r) for j in range(b))
    A, B = A.transpose(1, 2).reshape(1, a, d * r).expand(b, -1, -1), B.view(1, r * b, e).expand(d, -1, -1)
    return blocks.TwoFactor.apply(x.flatten(1), A, B).view(-1, d, e)
