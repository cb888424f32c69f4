"""
Expanded layers: a matrix as a product of larger ones.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from configurator import key
from linear import structured
from linear.base import Layer, Matrix


class Expanded(Layer):
    """W = W_N ... W_1 without a nonlinearity: inner width `expansion` (k), `expansion_depth` (N) factors.

    factors[0] is W_1 (k, d_in), applied first, then (k, k) ..., last W_N (d_out, k). The bias sits on the last only, so
    that collapse is exact. Arora, Cohen & Hazan 2018 (arXiv 1802.06509): depth acts as a preconditioner on W's gradient.
    """

    @dataclass
    class Keys:
        expansion: int = key(0, 'inner width k of an expanded layer; 0: four times its smaller side', low=0, high=2**31)
        expansion_depth: int = key(2, 'number of factors of an expanded layer', low=2, high=1000)
        expansion_init: str = key(
            'gaussian',
            "product of Gaussians; or exactly the dense twin's matrix (svd needs k >= rank for that)",
            choices=('gaussian', 'orthogonal', 'svd'),
        )
        expansion_decay: str = key(
            'factors',
            'weight_decay acts on the factors, on their product as in the dense twin, or on none',
            choices=('factors', 'product', 'none'),
        )
        expansion_lr: str = key(
            'none',
            "matched: divide the factors' learning rate by the effective-rate ratio",
            choices=('none', 'matched'),
        )

    sizes = ('expansion',)
    knob = 'expansion'
    starts = ('whitened',)

    def __init__(self, d_in, d_out, config):
        k = config.expansion or 4 * min(d_in, d_out)  # 4x: the Gaussian product is well-conditioned (k = min is not)
        widths = [d_in] + [k] * (config.expansion_depth - 1) + [d_out]
        super().__init__(d_in, d_out, [(o, i) for i, o in zip(widths, widths[1:])], decay=config.expansion_decay)
        self.k, self.depth = k, config.expansion_depth
        self.init, self.lr_rule = config.expansion_init, config.expansion_lr

    @classmethod
    def problems(cls, config, sites):
        full = max((min(d) for d in sites.values()), default=0)
        if config.expansion_init == 'orthogonal' and 0 < config.expansion < full:
            return [
                f'expansion = {config.expansion}: expansion_init = orthogonal needs expansion >= {full}, the smaller side'
                ' of its layers; use svd (keeps the best rank-k part) or gaussian'
            ]
        return super().problems(config, sites)

    def forward(self, x):
        for i in range(self.depth - 1):  # by index: torch 2.11's compiler cannot slice a ParameterList
            x = F.linear(x, self.factors[i])
        return F.linear(x, self.factors[self.depth - 1], self.bias)

    def to_dense(self):
        factors = list(self.factors)  # its slice would be a ParameterList, which makes new parameters of tensors
        if self.d_in <= self.d_out:  # keep the small side small: every partial product is (k, d_in)
            P = factors[0]
            for W in factors[1:]:
                P = W @ P
        else:  # every partial product is (d_out, k)
            P = factors[-1]
            for W in reversed(factors[:-1]):
                P = P @ W
        return P

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        if self.init == 'gaussian':  # equal std s with s^N sqrt(k)^(N-1) = std, so that the product has W0's std
            s = (std / self.k ** ((self.depth - 1) / 2)) ** (1 / self.depth)
            for W in self.factors:
                W.copy_(torch.randn(W.shape, generator=gen) * (s or structured.gemm_std(*W.shape[::-1])))
            if not std:  # the dense twin starts at zero (mup_base); were all factors zero, none would get a gradient
                self.factors[-1].zero_()
        elif self.init == 'orthogonal':
            self.set_orthogonal(W0, gen)
        else:
            self.set_svd(W0, gen)
        self.match()

    def match(self):
        self.lr_scale.fill_(1 / effective_lr_ratio(self) if self.lr_rule == 'matched' else 1.0)

    @torch.no_grad()
    def from_dense(self, W):
        """The factorization of W that expansion_init names (gaussian: svd), exact if k >= rank; its basis is drawn from a
        fixed seed."""
        exact = self.init == 'orthogonal' and self.k >= min(self.d_in, self.d_out)
        (self.set_orthogonal if exact else self.set_svd)(W, torch.Generator().manual_seed(0))
        self.match()
        self.lr_scale *= self.dense_lr_scale

    @torch.no_grad()
    def whitened(self, W, C):
        """The least E|Wx - W'x|^2 of rank k for C = E[x x^T]: W' = U U^T W, see structured.output_space."""
        W = W.double()
        U = structured.output_space(W, structured.whitened_by(C), self.k)
        self.from_dense(U @ (U.T @ W))

    def set_orthogonal(self, W0, gen):
        """W_1 ... W_{N-1} orthonormal and W_N = W0 Q^T, or mirrored where d_out < d_in; the product is W0."""
        flip = self.d_out < self.d_in
        W0 = float64(W0).T if flip else float64(W0)  # now (big, small)
        chain, Q = [], torch.eye(W0.size(1)).to(W0)
        for _ in range(self.depth - 1):
            chain.append(orthonormal(self.k, Q.size(0), gen, W0.device))  # (k, previous width)
            Q = chain[-1] @ Q
        chain.append(W0 @ Q.T)
        for W, new in zip(self.factors, [c.T for c in reversed(chain)] if flip else chain):
            W.copy_(new)

    def set_svd(self, W0, gen):
        """W0 = U S V^T; W_j = R_j S^(1/N) R_{j-1}^T with R_0 = V, R_N = U and random orthonormal R_j (k, r) between:
        all factors balanced (split_scales). r = min(k, d_in, d_out), so a k below the rank keeps the best rank-k approximation.
        """
        W0 = float64(W0)
        U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        r = min(self.k, len(S))
        bases = [Vh[:r].T] + [orthonormal(self.k, r, gen, W0.device) for _ in range(self.depth - 1)] + [U[:, :r]]
        for j, (W, share) in enumerate(zip(self.factors, structured.split_scales(S[:r], self.depth))):
            W.copy_((bases[j + 1] * share) @ bases[j].T)

    def form_macs(self):
        return (self.depth - 2) * self.k**2 * min(self.d_in, self.d_out) + self.k * self.d_in * self.d_out

    def traffic(self):
        return 2 * self.k * (self.depth - 1)

    def rank(self):
        return min(self.d_in, self.d_out, self.k)

    def describe(self):
        return f'{self.depth} factors, k = {self.k}'

    def matrices(self):
        """Every factor, as it lies: (outputs, inputs)."""
        last = len(self.factors) - 1
        return super().matrices() | {
            f'factors.{i}': Matrix(tuple(W.shape), (0,), (1,), split=self.parts if i == last else ())
            for i, W in enumerate(self.factors)
        }


def float64(W):
    """W for an exact start: where it is, or on the CPU (Apple's GPUs have no float64)."""
    return (W if W.is_cuda else W.cpu()).double()


def orthonormal(rows, cols, gen, device='cpu'):
    """A random (rows, cols) float64 matrix with orthonormal columns, rows >= cols: Q of A = Q R for a Gaussian A that is
    drawn on the CPU. R^T R = A^T A by Cholesky, several times as fast as Householder's QR, which every rotation would
    wait for (rotate.py); R's diagonal is positive, so Q is Haar. A tall A is well-conditioned; for a square one the
    second pass makes up for it (CholeskyQR2: Yamamoto et al. 2015, ETNA 44)."""
    Q = torch.randn(rows, cols, generator=gen).to(device).double()
    for _ in range(1 if rows >= 2 * cols else 2):
        L = torch.linalg.cholesky(Q.T @ Q)
        Q = torch.linalg.solve_triangular(L, Q.T, upper=False).T
    return Q


def effective_lr_ratio(layer) -> float:
    """How much more the loss falls, to first order, when Adam's first (sign) step moves all factors instead of W itself
    at the same rate: sum of |dL/dfactor| over sum of |dL/dW|, for a Gaussian dL/dW.
    For two Gaussian factors of std s1, s2 it is k*s1/sqrt(d_in) + k*s2/sqrt(d_out)."""
    factors = list(layer.factors)
    with torch.enable_grad():
        W = layer.to_dense()
        G = torch.randn(W.shape, generator=torch.Generator().manual_seed(20180219)).to(W)  # no one else's seed
        grads = torch.autograd.grad(W, factors, G)
    return (sum(g.abs().sum() for g in grads) / G.abs().sum()).item()
