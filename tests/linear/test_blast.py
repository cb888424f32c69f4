"""BLAST: the blocks are those of the formula, and alternating least squares never ends above the nearest of low rank."""

import torch

import linear


def test_a_block_is_u_diag_s_v_and_the_projection_beats_low_rank():
    m = linear.LAYERS['blast'](36, 54, linear.Keys(blocks=3, rank=4)).double()
    m.start(None, 0.02, torch.Generator().manual_seed(0))
    V, S, U = m.factors
    W = m.to_dense().view(3, 18, 3, 12)
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(W[i, :, j], U[i].T @ torch.diag(S[:, j, i]) @ V[j].T)
    W = torch.randn(54, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    m.from_dense(W)
    error = (m.to_dense() - W).norm()
    assert error < torch.linalg.svdvals(W)[4:].norm()  # what S = 1 can reach
    low = linear.LAYERS['low_rank'](36, 54, linear.Keys(rank=4)).double()
    low.from_dense(W)
    m.from_dense(low.to_dense().detach())  # S = 1
    torch.testing.assert_close(m.to_dense(), low.to_dense(), rtol=1e-6, atol=1e-6)
    m.from_dense(torch.zeros(54, 36))  # a block that begins as nothing must not stay that
    assert (m.to_dense() == 0).all()
    grads = torch.autograd.grad(m.to_dense(), list(m.factors), torch.randn(54, 36, dtype=torch.float64))
    assert (grads[2].abs().amax((0, 2)) > 0).all()


def test_a_matrix_that_needs_few_ranks_leaves_the_others_something_to_learn_from():
    """Once the error is nothing no round goes on: it would zero the ranks that the matrix does not need."""
    low = linear.LAYERS['low_rank'](36, 54, linear.Keys(rank=2)).double()
    low.start(None, 0.02, torch.Generator().manual_seed(0))
    W = low.to_dense().detach()
    m = linear.LAYERS['blast'](36, 54, linear.Keys(blocks=3, rank=4)).double()
    m.from_dense(W)
    torch.testing.assert_close(m.to_dense(), W, rtol=1e-8, atol=1e-10)
    grad = torch.autograd.grad(m.to_dense(), m.factors[2], torch.randn(54, 36, dtype=torch.float64))[0]
    each = grad.abs().amax((0, 2))
    assert (each > 1e-3 * each.max()).all()
