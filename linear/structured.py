"""
What structured layers share: keys, rates, decay, the cap on their factors, the dense guide, and helpers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn

from configurator import UserError, key
from linear.base import Layer

# -----------------------------------------------------------------------------
# keys that several layers read: each inherits the classes that declare them


@dataclass
class Keys:
    """The keys of every structured layer."""

    structured_lr: str = key(
        'paper', "the paper's rate for each factor, or the same for all", choices=('paper', 'none')
    )
    structured_decay: str = key(
        'product',
        'weight_decay acts on the factors, on their product as in the dense twin, or on none',
        choices=('factors', 'product', 'none'),
    )
    structured_norm: bool = key(False, "cap the RMS of each factor at the papers' initial std, times a learned gain")
    guide_iters: int = key(
        0,
        'structured layers start as their dense twin, which fades out over this many iterations (cosine); 0: at once',
        low=0,
    )


@dataclass
class Share:
    structured_share: float = key(
        1 / 3,
        'share of the dense parameters that a structured layer takes where rank, blocks or shape are 0',
        above=0,
        high=1,
    )


@dataclass
class Rank:
    rank: int = key(
        0, 'rank of the layer, its tiles or its cores, or inner width; 0: by structured_share', low=0, high=2**31
    )


@dataclass
class Blocks:
    blocks: int = key(0, 'blocks, or tiles a side; 0: chosen', low=0, high=2**31)


# -----------------------------------------------------------------------------
# helpers


def divisors(n: int) -> list[int]:
    """The divisors of n, the smallest first, in sqrt(n) steps."""
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return small + [n // k for k in reversed(small) if k * k != n]


def near(value: float, among) -> int:
    """The nearest in ratio."""
    return min(among, key=lambda k: abs(math.log(k / value)))


def near_root(d: int, run=lambda k: k) -> int:
    """The divisor k of d nearest to its root, if possible one for which run(k), the features that then lie side by side in
    memory, is a multiple of 8: a GPU's fast products take 16 bytes at a time. No further than a factor of 1.5 from the
    root."""
    root = math.sqrt(d)
    even = [k for k in divisors(d) if run(k) % 8 == 0 and 2 / 3 < k / root < 1.5]
    return near(root, even or divisors(d))


def tidy(rank: float, limit: int) -> int:
    """A rank near this, a multiple of 64, 8 or 1: what a GPU's tiles like."""
    unit = 64 if rank >= 96 else 8 if rank >= 12 else 1
    return min(limit, max(unit, round(rank / unit) * unit))


def fail(key: str, value, why: str, choices: str):
    """A value of a key that the layer cannot have."""
    raise UserError(f'{key} = {value}: {why}; {choices}')


def check_blocks(k: int, valid: list, why: str) -> int:
    """The number of blocks k; UserError if it is not a valid one."""
    if k not in valid:
        nearest = sorted(sorted(valid, key=lambda v: abs(math.log(v / k)))[:3])
        fail('blocks', k, why, f'nearest: {", ".join(map(str, nearest))}')
    return k


def check_rank(r: int, full: int, layer: str) -> int:
    """The rank r; UserError if it is above the full rank of the layer."""
    if r > full:
        fail('rank', r, f'{layer} has full rank at {full}', f'use at most {full}')
    return r


def split_scales(S, n: int) -> list:
    """n scales (..., r) for n factors, whose product is the singular values S (..., r): each is the n-th root. Where S is zero (to
    float32), only the last scale is zero: if all factors were zero there, none would ever get a gradient."""
    root = S ** (1 / n)
    top = root.amax(-1, keepdim=True)
    top = torch.where(top > 0, top, 1.0)
    dead = S <= 1e-6 * S.amax(-1, keepdim=True)
    return [torch.where(dead, top, root)] * (n - 1) + [torch.where(dead, S / top ** (n - 1), root)]


def gemm_std(d_in: int, d_out: int) -> float:
    """The initial std of a factor that maps d_in features to d_out: spectral norm about min(1, sqrt(d_out / d_in))."""
    return math.sqrt(1 / d_in) * min(1, math.sqrt(d_out / d_in))


def dense_lr_scale(config) -> float:
    """Factor on the learning rate of a dense matrix whose inputs grow with n_embd: 1, or mup_base / n_embd."""
    return config.mup_base / config.n_embd if config.mup_base else 1.0


def whitened_by(C):
    """C = E[x x^T] in float64, with a little added: inputs that never varied, and what rounding to float32 (on a GPU to TF32) leaves
    where one direction outweighs all others, would make it singular or worse."""
    C = C.double()
    one = (C.diagonal().mean().item() or 1.0) * torch.eye(len(C), dtype=C.dtype)
    for little in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        if not torch.linalg.cholesky_ex(C + little * one).info:
            break
    return C + little * one


def output_space(W, C, r: int):
    """U (d_out, r) with orthonormal columns: of all matrices of rank r, U U^T W is the one with the least E|Wx - W'x|^2 for
    C = E[x x^T]. U: the first r left singular vectors of W C^(1/2)."""
    if len(W) <= len(C):
        return torch.linalg.eigh(W @ C @ W.T).eigenvectors[:, -r:]
    S = W @ torch.linalg.cholesky(C)
    return torch.linalg.qr(S @ torch.linalg.eigh(S.T @ S).eigenvectors[:, -r:]).Q


# -----------------------------------------------------------------------------
# the class


class Structured(Layer):
    """A layer whose forward is product() and whose W is matrix(), with the rates, cap and guide of the papers.

    Rates (Qiu et al. 2024, arXiv 2406.06248, section 3): factor i multiplies vectors of width inner[i], so its Adam rate
    is the dense layer's times d_in / inner[i] / number of factors in the product.
    Cap ("normalised" there): factor <- gain * factor / max(1, RMS(factor) / sigma) with a learned gain; it does nothing
    until a factor has grown beyond sigma, the std of draw().
    """

    Keys = Keys
    exact = ('rank',)  # names of keys that say the size themselves, instead of structured_share

    @classmethod
    def idle(cls, config):
        return {'structured_share'} if any(getattr(config, k) for k in cls.exact if k in cls.sizes) else set()

    def __init__(self, d_in, d_out, config, shapes, inner, depths=None):
        """shapes: of the factors; inner: the width of the vectors that each multiplies; depths: see Layer."""
        n = len(shapes)
        depths = depths or [n] * n
        rates = [d_in / i / n if config.structured_lr == 'paper' else 1.0 for i, n in zip(inner, depths)]
        super().__init__(d_in, d_out, shapes, rates, config.structured_decay, depths)
        self.gain = nn.Parameter(torch.ones(n)) if config.structured_norm else None
        if config.structured_norm:
            self.register_buffer('sigma', torch.ones(n))

    def product(self, x, factors):
        """x (..., d_in) times W^T through these factors, (..., d_out) or (tokens, d_out): forward without bias and guide."""
        raise NotImplementedError(f'{type(self).__name__}.product')

    def matrix(self):
        """W (d_out, d_in) of the capped factors: to_dense without the guide."""
        raise NotImplementedError(f'{type(self).__name__}.matrix')

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
    def draw(self, stds, gen, residual, caps=None):
        """Gaussian factors; the last is zero where the layer writes to the residual stream. caps: sigma of the factors,
        where it is not their std."""
        for i, (W, std) in enumerate(zip(self.factors, stds)):
            if self.gain is not None:
                self.sigma[i] = (caps or stds)[i]
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
