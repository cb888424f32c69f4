"""
Tensor trains: a matrix as a tensor with an axis pair (n_i, m_i) per core, n over outputs and m over inputs,

    W[n_1 ... n_c, m_1 ... m_c] = G_1[n_1, m_1] G_2[n_2, m_2] ... G_c[n_c, m_c],   G_i[n, m] of shape (r_i, r_{i+1})

(Oseledets 2011; Novikov et al. 2015, arXiv 1509.06569). A train of two cores is a point of the einsum family: the sum of
as many Kronecker products as its rank.
"""

import bisect
import math
from dataclasses import dataclass

import torch

from configurator import key
from linear import structured
from linear.base import Matrix
from linear.einsum import Einsum, Shape, to_share
from linear.structured import Structured, check_rank, gemm_std, near_root


class TwoCores(Einsum):
    """A train of two cores, split at the square root: B is the first core, A the second."""

    @staticmethod
    def choose(d_in, d_out, c):
        a, d = near_root(d_in), near_root(d_out, run=lambda d: d_out // d)
        return to_share(Shape(a, d_in // a, 1, d, d_out // d, 1, 1), c, c.rank)


class TensorTrain(Structured):
    """A tensor train of tt_cores cores: core i (r_i, n_i, m_i, r_{i+1}), n over outputs, m over inputs, ranks 1 at both
    ends. With two cores the layer is a TwoCores."""

    @dataclass
    class Keys(structured.Rank, structured.Share, structured.Keys):
        tt_cores: int = key(2, 'cores of tensor_train', low=2, high=32)

    sizes = ('structured_share', 'rank')
    knob = 'rank'

    def __new__(cls, d_in=0, d_out=0, config=None):  # without arguments when it is copied
        return TwoCores(d_in, d_out, config) if config and config.tt_cores == 2 else super().__new__(cls)

    def __init__(self, d_in, d_out, config):
        c = config.tt_cores
        self.m, self.n = balanced(d_in, c), balanced(d_out, c)
        limits = [min(math.prod(self.m[:i]) * math.prod(self.n[:i]), math.prod(self.m[i:]) * math.prod(self.n[i:]))
                  for i in range(1, c)]  # fmt: skip
        r = config.rank
        if not r:
            wanted, full = config.structured_share * d_in * d_out, max(limits)
            r = bisect.bisect(range(full), wanted, key=lambda r: self.size(r + 1, limits))  # the largest below it
            r = min((max(1, r), min(full, r + 1)), key=lambda r: abs(self.size(r, limits) - wanted))
        check_rank(r, max(limits), f'a tensor train of {c} cores for {d_in} -> {d_out}')
        self.ranks = [1, *(min(r, limit) for limit in limits), 1]
        shapes = list(zip(self.ranks, self.n, self.m, self.ranks[1:]))
        super().__init__(d_in, d_out, config, shapes, [a * m for a, _, m, _ in shapes])

    def size(self, r, limits):
        ranks = [1, *(min(r, limit) for limit in limits), 1]
        return sum(a * n * m * b for a, n, m, b in zip(ranks, self.n, self.m, ranks[1:]))

    def product(self, x, W):
        x, done = x.reshape(-1, 1, 1, self.d_in), 1  # done: outputs made
        T = x.size(0)  # (T, outputs made, rank, inputs left)
        for core in W:
            r, n, m, s = core.shape
            left = x.size(3) // m
            x = x.reshape(T * done, r * m, left).transpose(1, 2)  # (T made, left, r m)
            x = (x @ core.permute(0, 2, 1, 3).reshape(r * m, n * s)).view(T, done, left, n, s)
            x, done = x.permute(0, 1, 3, 4, 2).reshape(T, done * n, s, left), done * n
        return x.reshape(T, self.d_out)

    def matrix(self):
        W = self.capped()
        P = W[0].reshape(-1, W[0].size(3))
        for core in W[1:]:
            P = (P @ core.reshape(core.size(0), -1)).reshape(-1, core.size(3))
        c = len(W)
        P = P.view([k for pair in zip(self.n, self.m) for k in pair])  # (n1, m1, n2, m2, ...)
        return P.permute(*range(0, 2 * c, 2), *range(1, 2 * c, 2)).reshape(self.d_out, self.d_in)

    @torch.no_grad()
    def from_dense(self, W):
        """TT-SVD (Oseledets 2011): within sqrt(cores - 1) of the nearest tensor train of these ranks."""
        c = len(self.m)
        order = [k for i in range(c) for k in (i, c + i)]
        P, cores = W.detach().double().view(*self.n, *self.m).permute(order), []
        for i in range(c - 1):
            U, S, Vh = torch.linalg.svd(P.reshape(self.ranks[i] * self.n[i] * self.m[i], -1), full_matrices=False)
            r = self.ranks[i + 1]
            cores.append(U[:, :r])
            P = S[:r, None] * Vh[:r]
        cores.append(P)
        norms = [k.norm() for k in cores]
        mean = math.prod(norms) ** (1 / c)  # all cores of equal norm: so far the size of W sits in the last alone
        if mean > 0:
            cores = [k * (mean / n) for k, n in zip(cores, norms)]
        self.place([k.reshape(W.shape) for k, W in zip(cores, self.factors)])

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        """gemm_std for every core, then one factor for all, so that the output's RMS is that of the dense layer."""
        stds = [gemm_std(r * m, n * s) for r, n, m, s in (W.shape for W in self.factors)]
        rms = math.prod(std * math.sqrt(W.size(0) * W.size(2)) for std, W in zip(stds, self.factors))
        scale = (min(1, math.sqrt(self.d_out / self.d_in)) / rms) ** (1 / len(stds))
        self.draw([std * scale for std in stds], gen, residual)

    def widths(self):
        """Per token: features before, between and after the cores."""
        c = len(self.m)
        return [math.prod(self.n[:i]) * self.ranks[i] * math.prod(self.m[i:]) for i in range(c + 1)]

    def macs(self):
        w = self.widths()
        return sum(w[i] * self.n[i] * self.ranks[i + 1] for i in range(len(self.m)))

    def form_macs(self):
        total, size = 0, self.n[0] * self.m[0]
        for i in range(1, len(self.m)):
            size *= self.n[i] * self.m[i]
            total += size * self.ranks[i] * self.ranks[i + 1]
        return total

    def traffic(self):
        return 4 * sum(self.widths()[1:-1]) + 2 * self.d_in + 2 * self.d_out

    def rank(self):
        """An upper bound: every core as a map between what lies before and after it."""
        c = len(self.m)
        best = min(self.d_in, self.d_out)
        for i in range(c):
            before, after = math.prod(self.n[:i]), math.prod(self.m[i + 1 :])
            best = min(best, before * after * min(self.ranks[i] * self.m[i], self.n[i] * self.ranks[i + 1]))
        for i in range(1, c):
            left = min(math.prod(self.n[:i]), math.prod(self.m[:i]))
            right = min(math.prod(self.n[i:]), math.prod(self.m[i:]))
            best = min(best, self.ranks[i] * left * right)
        return best

    def describe(self):
        return f'inputs {"x".join(map(str, self.m))}, outputs {"x".join(map(str, self.n))}, ranks {self.ranks[1:-1]}'

    def matrices(self):
        """A core (r, n, m, s) is the map (r m) -> (n s)."""
        return super().matrices() | {
            f'factors.{i}': Matrix(tuple(W.shape), (1, 3), (0, 2)) for i, W in enumerate(self.factors)
        }


def balanced(d: int, c: int) -> list[int]:
    """c integers with product d, as equal as its prime factors allow."""
    out = [1] * c
    primes, k = [], 2
    while d > 1:
        if k * k > d:  # what is left is a prime
            k = d
        while d % k == 0:
            primes.append(k)
            d //= k
        k += 1
    for p in reversed(primes):
        out[out.index(min(out))] *= p
    return sorted(out)
