"""
NorMuon: Muon, and each row of O divided by its running size (Li et al. 2025, arXiv 2510.05491).

    v <- beta2 v + (1 - beta2) mean of O^2 over each row;    O' = O / (sqrt(v) + 1e-10), scaled to the norm of O

The rest is Muon's. beta2 is 0.95, as in the paper, whatever AdamW's is. This is the authors' code
(github.com/zichongli5/NorMuon); the listing in the paper has no Nesterov step and scales O' to the norm sqrt(m n) times 0.2.
"""

from optimizers.muon import Muon

BETA2 = 0.95


class NorMuon(Muon):
    """State: momentum, as Muon's; row_mean, a number for each row (output) of a matrix."""

    per_row = ('row_mean',)
    bounded = False  # it changes the norm of each row

    def direction(self, U, state):
        v = state['row_mean']
        X = super().direction(U, state).to(v.dtype)  # O (B, m, n)
        norm = X.norm(dim=(1, 2), keepdim=True)
        v.lerp_(X.square().mean(2, keepdim=True), 1 - BETA2)
        X = X / (v.sqrt() + 1e-10)
        return X * (norm / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-10))
