"""Low rank plus sparse: the sparse part lies on its support, which start and checkpoint fix, and helps the projection."""

import torch

import linear


def layer(rank=4, density=0.05):
    m = linear.LAYERS['low_rank_sparse'](36, 54, linear.Keys(rank=rank, density=density)).double()
    m.start(None, 0.02, torch.Generator().manual_seed(0))
    return m


def test_the_sparse_part_lies_on_a_support_that_the_layers_own_stream_draws():
    m = layer()
    A, B, values = m.factors
    S = (m.to_dense() - (A @ B).T).detach()
    n = round(0.05 * 36 * 54)
    assert values.numel() == n == len(m.support.unique()) and (S != 0).sum() == n
    torch.testing.assert_close(S.flatten()[m.support], values[0].detach())
    assert torch.equal(layer().support, m.support)
    other = linear.LAYERS['low_rank_sparse'](36, 54, linear.Keys(rank=4, density=0.05)).double()
    other.start(None, 0.02, torch.Generator().manual_seed(1))
    assert not torch.equal(other.support, m.support)
    other.load_state_dict(m.state_dict())
    assert torch.equal(other.to_dense(), m.to_dense())
    m.start(None, 0.02, torch.Generator().manual_seed(0), residual=True)
    assert (m.to_dense() == 0).all()


def test_the_projection_recovers_low_rank_plus_sparse_and_beats_low_rank():
    m = layer()
    inside = m.to_dense().detach()
    m.from_dense(inside)
    assert (m.to_dense() - inside).norm() < 1e-3 * inside.norm()
    W = torch.randn(54, 36, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    m.from_dense(W)
    assert (m.to_dense() - W).norm() < torch.linalg.svdvals(W)[4:].norm()
