"""
Structured matrices: what all of them share, and the two-factor einsum family.

The family (Potapczynski et al. 2024, arXiv 2410.02117) has seven integers, (alpha, beta, gamma | delta, epsilon, phi |
rho), here a b g | d e f | r, with d_in = a b g and d_out = d e f:

    index        a     b     g        d     e     f        r
    appears in   X, A  X, B  X, A, B  Y, A  Y, B  Y, A, B  A, B

    Z[f,d,r,g,b] = sum_a X[g,b,a] A[g,a,f,r,d];    Y[f,e,d] = sum_{r,g,b} Z[f,d,r,g,b] B[f,r,g,b,e]

Each (g, f) tile of W, seen as a matrix (a d) x (b e), has rank r and is independent of the others. The named members
are choices of the seven integers (`SHAPES`): low rank, Kronecker products and their sums, the tensor train of two cores,
Monarch, Block Tensor-Train (Qiu et al. 2024, arXiv 2406.06248), block-dense (Wei et al. 2024, arXiv 2406.16450).
"""

import math
from typing import NamedTuple

import torch
import torch.nn as nn

from configurator import UserError
from linear.kernels import blocks

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


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def near(value: float, among) -> int:
    """The nearest in ratio."""
    return min(among, key=lambda k: abs(math.log(k / value)))


def nearest(value, among, n=3) -> str:
    return ', '.join(map(str, sorted(sorted(among, key=lambda k: abs(math.log(k / max(value, 1e-9))))[:n])))


def tidy(rank: float, limit: int) -> int:
    """A rank near this, a multiple of 64, 8 or 1: what a GPU's tiles like."""
    unit = 64 if rank >= 96 else 8 if rank >= 12 else 1
    return min(limit, max(unit, round(rank / unit) * unit))


def fail(key: str, value, why: str, choices: str):
    raise UserError(f'{key} = {value}: {why}; {choices}')


def triple(d: int, theta) -> tuple[int, int, int]:
    """Three integers with product d, nearest to d ** theta in the sum of squared log ratios."""
    wanted = [t * math.log(d) for t in theta]

    def distance(t):
        return sum((math.log(n) - w) ** 2 for n, w in zip(t, wanted))

    return min(((i, j, d // i // j) for i in divisors(d) for j in divisors(d // i)), key=distance)


def to_share(shape: Shape, c, rank: int) -> Shape:
    """shape with this rank, or with the one that takes about structured_share of the dense parameters."""
    limit = min(shape.a * shape.d, shape.b * shape.e)
    d_in, d_out = shape.a * shape.b * shape.g, shape.d * shape.e * shape.f
    each = shape.g * shape.f * (shape.a * shape.d + shape.b * shape.e)
    return shape._replace(r=rank or tidy(c.structured_share * d_in * d_out / each, limit))


def low_rank(d_in, d_out, c):
    return to_share(Shape(d_in, 1, 1, 1, d_out, 1, 1), c, c.rank)


def block_dense(d_in, d_out, c):
    """Block-diagonal into `rank` inner features, then dense."""
    k = c.blocks or near(2, divisors(d_in))  # as in the paper: the fewer, the less is written between the factors
    if d_in % k:
        fail('blocks', k, f'must divide {d_in}', f'nearest: {nearest(k, divisors(d_in))}')
    if c.rank % k:
        fail('rank', c.rank, f'must be divisible by blocks ({k})', f'nearest: {max(c.rank // k, 1) * k}')
    return to_share(Shape(d_in // k, 1, k, 1, d_out, 1, 1), c, c.rank // k)


def monarch(d_in, d_out, c):
    """Two block-diagonal factors of `blocks` blocks each around a permutation, full inner width (Dao et al. 2022)."""
    small = min(d_in, d_out)
    valid = [k for k in divisors(math.gcd(d_in, d_out)) if small % k**2 == 0 and k > 1]
    if not valid:
        fail('linear', 'monarch', f'{d_in} -> {d_out} has no number of blocks k with k*k dividing {small}', 'use btt')
    k = c.blocks or near((d_in + d_out) * small / (c.structured_share * d_in * d_out), valid)
    if k not in valid:
        why = f'must divide {d_in} and {d_out}, and its square {small}'
        fail('blocks', k, why, f'nearest: {nearest(k, valid)}')
    return Shape(d_in // k, 1, k, 1, d_out // k, k, small // k**2)


def btt(d_in, d_out, c):
    """Block Tensor-Train: square-root split, or `blocks` tiles a side."""
    if c.blocks:
        valid = divisors(math.gcd(d_in, d_out))
        if c.blocks not in valid:
            fail('blocks', c.blocks, f'must divide {d_in} and {d_out}', f'nearest: {nearest(c.blocks, valid)}')
        return to_share(Shape(d_in // c.blocks, 1, c.blocks, 1, d_out // c.blocks, c.blocks, 1), c, c.rank)
    a, f = (near(math.sqrt(d), divisors(d)) for d in (d_in, d_out))
    return to_share(Shape(a, 1, d_in // a, 1, d_out // f, f, 1), c, c.rank)


def kronecker(d_in, d_out, c):
    """W = sum over `kronecker_terms` of B kron A, B (e, b) of kronecker_shape = (e, b)."""
    terms = c.kronecker_terms
    if c.kronecker_shape:
        rows, columns = map(int, c.kronecker_shape)
        pairs = [(rows, columns), (columns, rows)]  # the layer back takes it turned round
        for e, b in pairs if d_out >= d_in else pairs[::-1]:
            if d_out % e == 0 and d_in % b == 0:
                return Shape(d_in // b, b, 1, d_out // e, e, 1, terms)
        why = f'must divide (d_out, d_in) = ({d_out}, {d_in}), one way or the other'
        fail(
            'kronecker_shape',
            f'{rows},{columns}',
            why,
            f'nearest: {near(rows, divisors(d_out))},{near(columns, divisors(d_in))}',
        )
    pairs = [(a, d) for a in divisors(d_in) for d in divisors(d_out)]
    a, d = min(
        pairs,
        key=lambda p: abs(math.log(terms * (1 / (p[0] * p[1]) + p[0] * p[1] / (d_in * d_out)) / c.structured_share)),
    )
    return Shape(a, d_in // a, 1, d, d_out // d, 1, terms)


def tensor_train(d_in, d_out, c):
    """Two cores, split at the square root."""
    a, d = (near(math.sqrt(n), divisors(n)) for n in (d_in, d_out))
    return to_share(Shape(a, d_in // a, 1, d, d_out // d, 1, 1), c, c.rank)


def einsum(d_in, d_out, c):
    """The seven integers of einsum_shape, or of theta: d_in ** theta, d_out ** theta and, for rho, the smaller of both."""
    if c.einsum_shape:
        s = Shape(*map(int, c.einsum_shape))
        for names, d, what in (('abg', d_in, 'inputs'), ('def', d_out, 'outputs')):
            n = tuple(getattr(s, k) for k in names)
            if math.prod(n) != d:
                near_n = triple(d, [math.log(k) / math.log(max(2, math.prod(n))) for k in n])
                fail('einsum_shape', s, f'{n} must multiply to the {d} {what}', f'nearest: {near_n}')
        return s
    theta = c.theta or (0.5, 0, 0.5, 0, 0.5, 0.5)
    for part, names in ((theta[:3], 'alpha, beta, gamma'), (theta[3:6], 'delta, epsilon, phi')):
        if abs(sum(part) - 1) > 1e-2:
            best = tuple(round(t / sum(part), 4) for t in part) if sum(part) else (1, 0, 0)
            fail('theta', c.theta, f'the exponents of {names} must sum to 1, not {sum(part):g}', f'nearest: {best}')
    s = Shape(*triple(d_in, theta[:3]), *triple(d_out, theta[3:6]), 1)
    if not c.theta:
        return to_share(s, c, c.rank)
    return s._replace(r=max(1, round(min(d_in, d_out) ** theta[6])))


SHAPES = dict(
    einsum=einsum, low_rank=low_rank, block_dense=block_dense, monarch=monarch, btt=btt, kronecker=kronecker,
    tensor_train=tensor_train,
)  # fmt: skip


def shape_of(name: str, d_in: int, d_out: int, config) -> Shape:
    """The integers of a named member. UserError, naming the nearest valid choice, if there are none for this layer."""
    s = SHAPES[name](d_in, d_out, config)
    limit = min(s.a * s.d, s.b * s.e)
    if s.r > limit:
        key = 'kronecker_terms' if name == 'kronecker' else 'rank' if config.rank else 'theta or einsum_shape'
        scale = s.g if name == 'block_dense' else 1
        fail(key, s.r * scale, f'a layer {d_in} -> {d_out} of shape {s} has full rank at {limit * scale}',
             f'use at most {limit * scale}')  # fmt: skip
    return s


# -----------------------------------------------------------------------------
# members of the registry, see linear.py for their contract


class Structured(nn.Module):
    """What all share: the factors' rates, their decay, and the cap on their norm.

    Rates (Qiu et al. 2024, section 3): factor i multiplies vectors of width inner[i], so its Adam rate is the dense
    layer's times d_in / inner[i] / number of factors. Decay 'product' shrinks W as its dense twin is shrunk.
    Cap ("normalised" there): factor <- gain * factor / max(1, RMS(factor) / sigma) with a learned gain; it does nothing
    until a factor has grown beyond the size that it started with.
    """

    def __init__(self, d_in, d_out, config, shapes, inner):
        super().__init__()
        self.d_in, self.d_out, self.decay = d_in, d_out, config.structured_decay
        self.factors = nn.ParameterList(torch.empty(*s) for s in shapes)
        self.bias = None
        n = len(shapes)
        rates = [d_in / i / n if config.structured_lr == 'paper' else 1.0 for i in inner]
        self.register_buffer('lr_scale', torch.tensor(rates))
        self.rate = 1.0  # of its dense twin, see linear.make
        self.guide = None
        self.gain = nn.Parameter(torch.ones(n)) if config.structured_norm else None
        if config.structured_norm:
            self.register_buffer('sigma', torch.ones(n))

    def capped(self) -> list:
        """The factors as they are used."""
        W = [self.factors[i] for i in range(len(self.factors))]
        if self.gain is None:
            return W
        return [
            self.gain[i] * w / (w.square().mean() / self.sigma[i] ** 2).clamp(min=1).sqrt() for i, w in enumerate(W)
        ]

    def cast(self, x) -> tuple:
        """x and the factors in the precision of the products."""
        W = self.capped()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, W = x.to(dtype), [w.to(dtype) for w in W]
        return x, W

    def follow(self, W):
        """Start under a dense guide: the layer computes share * guide + (1 - share) * its own matrix, until the guide is
        let go (self-guided training, Wei et al. 2024, arXiv 2406.16450, section 3.2)."""
        self.guide = nn.Parameter(W.clone())
        self.register_buffer('share', torch.tensor(1.0))

    def let_go(self):
        self.guide = None
        del self.share

    def to_dense(self):
        W = self.matrix()
        if self.guide is None:
            return W
        share = self.share.clone()  # the trainer moves it on before the gradient of this W comes
        return share * self.guide + (1 - share) * W

    def forward(self, x):
        y = self.product(*self.cast(x)).reshape(*x.shape[:-1], self.d_out)
        if self.guide is not None:
            y = self.share.to(y.dtype) * nn.functional.linear(x, self.guide) + (1 - self.share).to(y.dtype) * y
        return y if self.bias is None else y + self.bias.to(y.dtype)

    @torch.no_grad()
    def draw(self, stds, gen, residual):
        """Gaussian factors; the last is zero where the layer writes to the residual stream."""
        for i, (W, std) in enumerate(zip(self.factors, stds)):
            if self.gain is not None:
                self.sigma[i] = std
            W.copy_(torch.randn(W.shape, generator=gen) * std)
        if residual:
            self.factors[-1].zero_()

    @torch.no_grad()
    def place(self, new):
        """Set the factors; the cap is lifted to their size."""
        for i, (W, n) in enumerate(zip(self.factors, new)):
            W.copy_(n)
            if self.gain is not None:
                self.gain[i] = 1.0
                self.sigma[i] = torch.maximum(self.sigma[i], W.square().mean().sqrt())

    def decay_scale(self):
        n = len(self.factors)
        return {
            'factors': [1.0] * n,
            'product': [self.rate / (n * s) for s in self.lr_scale.tolist()],
            'none': [0.0] * n,
        }[self.decay]


def shares(S, n: int) -> list:
    """n scales whose product is the singular values S (..., r): the n-th root each. Where S is zero (to float32) the last
    makes it so: factors that all were zero would never get a gradient."""
    root = S ** (1 / n)
    top = root.amax(-1, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    dead = S <= 1e-6 * S.amax(-1, keepdim=True)
    return [torch.where(dead, top, root)] * (n - 1) + [torch.where(dead, S / top ** (n - 1), root)]


def gemm_std(d_in: int, d_out: int) -> float:
    """The initial std of a factor that maps d_in features to d_out: spectral norm about min(1, sqrt(d_out / d_in))."""
    return math.sqrt(1 / d_in) * min(1, math.sqrt(d_out / d_in))


class Einsum(Structured):
    """A (g, a, f r d) and B (f, r g b, e): the formula at the top of this file. With a single f (block-dense) B is
    (1, g r, e): the first product can then write its rows (T, g r) where the second, a plain one, reads them."""

    def __init__(self, d_in, d_out, config):
        s = self.shape = shape_of(config.linear, d_in, d_out, config)
        super().__init__(
            d_in, d_out, config, [(s.g, s.a, s.f * s.r * s.d), (s.f, s.r * s.g * s.b, s.e)], [s.a, s.r * s.g * s.b]
        )

    def product(self, x, W):
        A, B = W
        s = self.shape
        if s.b == s.d == s.f == 1:
            return (x @ A.squeeze(0) if s.g == 1 else blocks.ops.blocks(x, A)) @ B.squeeze(0)
        if s.b == s.d == 1:
            return blocks.TwoFactor.apply(x, A, B)
        x = x.reshape(-1, s.g, s.b, s.a)
        if self.macs_first(s) <= self.macs_first(turned(s)):
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
        """The nearest member in the Frobenius norm: the rank-r SVD of every tile. For a Kronecker sum this is Van Loan &
        Pitsianis 1993. Error: the root of the summed squares of the singular values left out."""
        s = self.shape
        tiles = W.detach().double().view(s.f, s.e, s.d, s.g, s.b, s.a).permute(0, 3, 5, 2, 4, 1)
        U, S, Vh = torch.linalg.svd(tiles.reshape(s.f, s.g, s.a * s.d, s.b * s.e), full_matrices=False)
        first, last = shares(S[..., : s.r], 2)
        A = (U[..., : s.r] * first[..., None, :]).view(s.f, s.g, s.a, s.d, s.r).permute(1, 2, 0, 4, 3)
        B = torch.empty_like(self.factors[1], dtype=torch.float64)
        self.by_tile(B).copy_((last[..., None] * Vh[..., : s.r, :]).view(s.f, s.g, s.r, s.b, s.e))
        self.place([A.reshape(self.factors[0].shape), B])

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        """gemm_std for both factors. Where rank > 1 would shrink the output, both start as at rank 1 and the other ranks
        of B at zero (arXiv 2410.02117); what is left to the dense layer's output RMS, min(1, sqrt(d_out / d_in)), is
        shared by both. Not where rank is all there is, as in low_rank: its output is rightly smaller."""
        s, wanted = self.shape, min(1, math.sqrt(self.d_out / self.d_in))
        for r in (s.r, 1):
            stds = [gemm_std(s.a, s.d * s.f * r), gemm_std(s.b * s.g * r, s.e)]
            rms = stds[0] * math.sqrt(s.a) * stds[1] * math.sqrt(s.b * s.g * r)
            if rms > 0.95 * wanted or s.b == s.d == min(s.g, s.f) == 1:
                break
        if s.b * s.d * min(s.g, s.f) > 1:
            stds = [std * math.sqrt(wanted / rms) for std in stds]
        self.draw(stds, gen, residual)
        if r < s.r:
            self.factors[1].view(s.f, s.r, -1)[:, 1:] = 0

    @staticmethod
    def macs_first(s) -> int:
        """Multiply-adds per token, A before B."""
        return s.b * s.g * s.a * s.f * s.r * s.d + s.d * s.f * s.r * s.g * s.b * s.e

    def macs(self):
        return min(self.macs_first(self.shape), self.macs_first(turned(self.shape)))

    def form_macs(self):
        return self.shape.r * self.d_in * self.d_out

    def moves(self):
        s = self.shape
        if s.b == s.d == 1:
            return 2 * s.g * s.f * s.r
        first = s if self.macs_first(s) <= self.macs_first(turned(s)) else turned(s)
        return 4 * first.b * first.g * first.d * first.f * first.r + 2 * self.d_in + 2 * self.d_out  # permuted copies

    def rank(self) -> int:
        """The rank of W for factors in general position."""
        s = self.shape
        tile = s.r * min(s.a, s.d) * min(s.b, s.e)
        columns = s.g * s.b * min(s.a, s.f * s.d * s.r), s.g * min(s.a * s.b, s.f * tile)
        rows = s.f * s.d * min(s.e, s.r * s.g * s.b), s.f * min(s.d * s.e, s.g * tile)
        return min(self.d_in, self.d_out, *columns, *rows)

    def describe(self):
        return str(self.shape)


def turned(s: Shape) -> Shape:
    """The same layer with B first."""
    return Shape(s.b, s.a, s.g, s.e, s.d, s.f, s.r)


def contract(x, A, B, s: Shape):
    """x (T, g, b, a) -> y (T, f, e, d), A first; with permuted copies, for b d > 1."""
    Z = x.permute(1, 0, 2, 3).reshape(s.g, -1, s.a) @ A  # (g, T b, f r d)
    Z = Z.view(s.g, -1, s.b, s.f, s.r, s.d).permute(3, 1, 5, 4, 0, 2).reshape(s.f, -1, s.r * s.g * s.b)
    return (Z @ B).view(s.f, -1, s.d, s.e).permute(1, 0, 3, 2).reshape(-1, s.f, s.e, s.d)
