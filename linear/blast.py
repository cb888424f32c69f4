"""
BLAST: block (i, j) of W is U_i diag(s_ij) V_j^T (Lee et al. 2024, arXiv 2410.21262).
"""

import math
from dataclasses import dataclass

import torch

from linear import structured
from linear.base import Matrix
from linear.kernels import blocks
from linear.structured import Structured, check_blocks, check_rank, divisors, gemm_std, near, tidy


class Blast(Structured):
    """blocks x blocks blocks of W; all blocks of a row share U_i, all blocks of a column share V_j, and each block has a
    diagonal coupling s_ij of its own:

        z_j = V_j^T x_j,    y_i = U_i sum_j s_ij * z_j

    V (b, d_in / b, r), S (r, b, b) as (rank, column, row), U (b, r, d_out / b). Low rank is S = 1."""

    @dataclass
    class Keys(structured.Rank, structured.Blocks, structured.Share, structured.Keys):
        pass

    closed_form = False
    sizes = ('structured_share', 'rank', 'blocks')
    knob = 'rank'

    def __init__(self, d_in, d_out, config):
        valid, full = divisors(math.gcd(d_in, d_out)), min(d_in, d_out)
        b = check_blocks(config.blocks or near(4, valid), valid, f'must divide {d_in} and {d_out}')
        each = d_in + d_out + b * b  # numbers that one rank takes
        r = config.rank or tidy(config.structured_share * d_in * d_out / each, full)
        check_rank(r, full, f'a layer {d_in} -> {d_out}')
        super().__init__(d_in, d_out, config, [(b, d_in // b, r), (r, b, b), (b, r, d_out // b)], [d_in // b, b, r])

    def product(self, x, W):
        V, S, U = W
        b, _, r = V.shape
        z = blocks.ops.blocks(x, V).reshape(-1, b, r)  # (T, j, r)
        z = torch.bmm(z.permute(2, 0, 1), S)  # (r, T, i)
        return blocks.ops.blocks(z.permute(1, 2, 0).reshape(-1, b * r), U)

    def matrix(self):
        V, S, U = self.capped()
        US = (U.mT[None] * S.permute(1, 2, 0)[:, :, None]).flatten(1, 2)  # (j, d_out, r): U_i s_ij
        return (US @ V.mT).transpose(0, 1).reshape(self.d_out, self.d_in)

    @torch.no_grad()
    def from_dense(self, W):
        """Alternating least squares: V, then S, then U, each the best beside the others, until a round lowers the squared
        error by less than 0.03%. The problem is not convex: it starts from the nearest matrix of this rank (S = 1)
        and never ends above its error. The paper's preconditioned gradient steps solve the same subproblems in part."""
        b, q, r = self.factors[0].shape
        p = self.factors[2].size(2)
        W = W.detach().double()
        L, sv, Rh = torch.linalg.svd(W, full_matrices=False)
        first, last = structured.split_scales(sv[:r], 2)
        V, U = (Rh[:r].T * first).reshape(b, q, r), (L[:, :r] * last).reshape(b, p, r)
        S = torch.ones(b, b, r).to(W)  # (i, j, r)
        T = W.view(b, p, b, q).permute(0, 2, 1, 3)  # blocks (i, j, p, q)
        error = lambda: (T - torch.einsum('ipr,ijr,jqr->ijpq', U, S, V)).square().sum().item()
        floor, before = 1e-20 * T.square().sum().item(), error()
        best, kept = before, (V, S, U)
        for _ in range(100):
            if before <= floor:  # exact; another round would zero ranks that W does not need, and they must learn
                break
            UU = U.mT @ U
            gram = torch.einsum('ijr,ijs,irs->jrs', S, S, UU)
            V = solve(gram, torch.einsum('ijpq,ipr,ijr->jrq', T, U, S)).mT
            VV = V.mT @ V
            S = solve(UU[:, None] * VV[None], torch.einsum('ijpq,ipr,jqr->ijr', T, U, V)[..., None])[..., 0]
            gram = torch.einsum('ijr,ijs,jrs->irs', S, S, VV)
            U = solve(gram, torch.einsum('ijpq,jqr,ijr->irp', T, V, S)).mT
            now = error()
            if now < best:
                best, kept = now, (V, S, U)
            if before - now < 3e-4 * before:
                break
            before = now
        V, S, U = kept
        # the three factors share the size of each rank alike, and a rank that W does not need stays able to learn
        norms = [F.norm(dim=(0, 1)) for F in (V, S, U)]
        sizes = structured.split_scales(norms[0] * norms[1] * norms[2], 3)
        V, S, U = (F * (size / torch.where(n > 0, n, 1.0)) for F, n, size in zip((V, S, U), norms, sizes))
        self.place([V, S.permute(2, 1, 0), U.mT])

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        """gemm_std for every factor, then one scale for all, so that the output's RMS is that of the dense layer."""
        (b, q, r), p = self.factors[0].shape, self.factors[2].size(2)
        stds = [gemm_std(q, r), gemm_std(b, b), gemm_std(r, p)]
        rms = stds[0] * math.sqrt(q) * stds[1] * math.sqrt(b) * stds[2] * math.sqrt(r)
        scale = (min(1, math.sqrt(self.d_out / self.d_in)) / rms) ** (1 / 3)
        self.draw([s * scale for s in stds], gen, residual)

    def form_macs(self):
        return self.factors[0].size(2) * self.d_in * self.d_out

    def traffic(self):
        """Twice what lies between the factors, and both written again in another order."""
        return 8 * self.factors[0].size(0) * self.factors[0].size(2)

    def rank(self):
        b, _, r = self.factors[0].shape
        return min(self.d_in, self.d_out, b * r)

    def describe(self):
        b, _, r = self.factors[0].shape
        return f'{b} x {b} blocks, rank {r}'

    def matrices(self):
        """V_j^T (r, q) and U_i (p, r) of every column and row of blocks; s (rows, columns) of every rank."""
        V, S, U = (tuple(W.shape) for W in self.factors)
        return super().matrices() | {
            'factors.0': Matrix(V, (2,), (1,), (0,)),
            'factors.1': Matrix(S, (2,), (1,), (0,)),
            'factors.2': Matrix(U, (2,), (1,), (0,)),
        }

    @classmethod
    def variants(cls, d_in, d_out):
        return [dict(blocks=k) for k in (2, 3, 4, 6, 8, 16)]


def solve(gram, right):
    """The solution of gram X = right for positive semidefinite gram (..., r, r), kept solvable where it is singular."""
    r = gram.size(-1)
    damp = 1e-10 * gram.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30
    return torch.linalg.solve(gram + damp[..., None, None] * torch.eye(r).to(gram), right)
