"""
The product of a matrix with its own transpose: half of it.

    gram    X (B, m, k) -> X X^T; with D (B, m, m) symmetric: alpha X X^T + beta D

A product X X^T is symmetric, so the tiles on and below its diagonal are all that has to be computed; each is written twice,
the second time transposed. Of the three products of a Newton-Schulz step two are of this kind (optimizers/muon.py), the
square of a symmetric matrix as well, so the steps take about a third fewer FLOPs. Tiles come and go through the tensor
memory accelerator of Hopper and later GPUs; elsewhere, and below LEAST rows, it is the plain product.
"""

import torch

from linear.kernels import fused, tl, triton

ON = True  # bench.py ablate switches it off
LEAST = 256  # rows; fewer make too few tiles to fill a GPU
BM, BK, WARPS, STAGES = 128, 64, 8, 3  # rows and columns of a tile, inner steps; two blocks fit on a multiprocessor

if triton is not None:
    from linear.kernels.fused import TensorDescriptor, load

    @triton.jit
    def half(x, d, y, beta, alpha, K: tl.constexpr, TILES: tl.constexpr, TURNED: tl.constexpr, ADD: tl.constexpr,
             BM: tl.constexpr, BK: tl.constexpr):  # fmt: skip
        """y[b] = alpha x[b] x[b]^T + beta d[b], tile (i, j) with j <= i and tile (j, i). Tiles are counted row by row."""
        b, t = tl.program_id(0) // TILES, tl.program_id(0) % TILES
        i = ((tl.sqrt((8 * t + 1).to(tl.float32)) - 1) / 2).to(tl.int32)  # the root may be off by a bit
        i += ((i + 1) * (i + 2) // 2 <= t).to(tl.int32)
        i -= (i * (i + 1) // 2 > t).to(tl.int32)
        j = t - i * (i + 1) // 2
        acc = tl.zeros((BM, BM), tl.float32)
        for k in range(0, K, BK):
            left = load(x, b, i * BM, k, BM, BK, TURNED)
            acc = tl.dot(left, load(x, b, j * BM, k, BM, BK, TURNED).T, acc)
        acc *= alpha
        if ADD:
            acc += beta * load(d, b, i * BM, j * BM, BM, BM, False).to(tl.float32)
        out = acc.to(y.dtype)
        y.store([b, i * BM, j * BM], out.reshape(1, BM, BM))
        if i != j:
            y.store([b, j * BM, i * BM], out.T.reshape(1, BM, BM))


def gram(X, D=None, beta=0.0, alpha=1.0):
    """alpha X X^T + beta D (B, m, m) for X (B, m, k) and symmetric D (B, m, m); without D just X X^T."""
    given = [X] if D is None else [X, D]
    if ON and X.dtype == torch.bfloat16 and X.size(1) >= LEAST and fused.on_chip(X) and fused.reachable(*given):
        return launch(X, D, beta, alpha)
    return X @ X.mT if D is None else torch.baddbmm(D, X, X.mT, beta=beta, alpha=alpha)


def launch(X, D, beta, alpha):
    B, m, k = X.shape
    y = X.new_empty(B, m, m)
    turned = X.stride(2) != 1

    def described(t, block):
        return TensorDescriptor(t, list(t.shape), list(t.stride()), block)

    x = described(X.mT, [1, BK, BM]) if turned else described(X, [1, BM, BK])
    out, d = (described(t, [1, BM, BM]) for t in (y, y if D is None else D))
    rows = triton.cdiv(m, BM)
    tiles = rows * (rows + 1) // 2
    half[(B * tiles,)](
        x, d, out, beta, alpha, k, tiles, turned, D is not None, BM, BK, num_warps=WARPS, num_stages=STAGES
    )
    return y
