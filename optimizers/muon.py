"""
Muon: the momentum of a matrix, orthogonalized (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    M <- mu M + (1 - mu) G;    U = mu M + (1 - mu) G  (Nesterov);    W <- (1 - lr wd) W - lr s O,    O = NewtonSchulz(U)

U = P S Q^T has the orthogonal factor P Q^T; O is P S' Q^T with S' near 1. The formula, its constants and the decay are those
of torch.optim.Muon, the oracle of the tests; here matrices of equal shape go through it together.
"""

import math
from dataclasses import dataclass

import torch

from configurator import key
from linear.kernels import symmetric
from optimizers import base
from optimizers.base import MatrixOptimizer

STEPS = 5
QUINTIC = 3.4445, -4.7750, 2.0315  # steepest at 0: small singular values grow most; see LARGEST for where they end
LARGEST = 1.21  # singular value of O in exact arithmetic, whatever U


@dataclass
class Keys(base.Momentum):
    muon_scale: str = key(
        'rms',
        "s of a step lr s O on an (m, n) matrix: 0.2 sqrt(max(m, n)), AdamW's RMS (rms), or sqrt(max(1, m/n))"
        ' (original)',
        choices=('rms', 'original'),
    )


class Muon(MatrixOptimizer):
    """State: momentum, an average of gradients."""

    Keys = Keys
    bounded = True

    def average(self, G, state):
        M, mu = state['momentum'], self.cfg.momentum
        M.lerp_(G, 1 - mu)
        return torch.lerp(G, M, mu)

    def direction(self, U, state):
        return orthogonalize(U, self.dtype)

    def scale(self, m, n):
        """rms: the RMS of O is about 1 / sqrt(max(m, n)), that of AdamW's steps about 0.2 (Liu et al. 2025, arXiv 2502.16982).
        original: the spectral norm of the step is about lr sqrt(m/n) where m > n, which is what keeps the change of outputs
        the same over widths (Yang et al. 2023, arXiv 2310.17813). rms grows with the width. So mup_base takes the original
        law, times what both have in common at n_embd = mup_base."""
        original = math.sqrt(max(1, m / n))
        if self.cfg.muon_scale == 'original':
            return original
        return 0.2 * (math.sqrt(self.cfg.mup_base) * original if self.cfg.mup_base else math.sqrt(max(m, n)))


def orthogonalize(U, dtype=torch.float32):
    """U (B, m, n) -> (B, m, n) of dtype: the same singular vectors, singular values between 0.68 and LARGEST where they were
    not tiny beside the norm of U. Five steps X <- a X + (b X X^T + c (X X^T)^2) X, with the shorter side first."""
    a, b, c = QUINTIC
    X = U.to(dtype)
    if tall := U.size(1) > U.size(2):
        X = X.mT
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        A = symmetric.gram(X)
        X = torch.baddbmm(X, symmetric.gram(A, A, b, c), X, beta=a)
    return X.mT if tall else X
