"""Attention of one token to a cache is attention by its formula, over the last `window` positions."""

import pytest
import torch

import linear.kernels.attend
import linear.kernels.vector  # noqa: F401, these define the operators


@pytest.mark.parametrize('heads, kv, window', [(4, 4, 9), (4, 2, 3), (3, 1, 1)])
def test_a_token_attends_to_the_window_and_leaves_its_key_and_value(heads, kv, window):
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    for n in range(9):
        q, k, v, cache = draw(2, heads, 1, 8), draw(2, kv, 1, 8), draw(2, kv, 1, 8), draw(2, 2, kv, 9, 8)
        before, pos = cache.clone(), torch.tensor([n])
        y = torch.ops.nanomorph.attend(q, k, v, cache, pos, window, 0.3)
        assert torch.equal(cache[:, :, :, n], torch.stack((k, v))[..., 0, :])
        assert torch.equal(cache[..., torch.arange(9) != n, :], before[..., torch.arange(9) != n, :])
        for h in range(heads):
            keys, values = cache[:, :, h // (heads // kv), max(0, n + 1 - window) : n + 1]
            weights = (0.3 * keys @ q[:, h, 0, :, None])[..., 0].softmax(-1)
            assert torch.allclose(y[:, 0, 8 * h : 8 * h + 8], (weights[:, None] @ values)[:, 0])


def test_the_compiler_is_told_what_is_written():
    """Otherwise it would copy the cache for every token."""
    q, cache = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 4, 9, 8)
    args = (q, torch.randn(2, 4, 1, 8), torch.randn(2, 4, 1, 8), cache, torch.tensor([3]), 9, 0.3)
    torch.library.opcheck(torch.ops.nanomorph.attend.default, args, test_utils=('test_schema', 'test_faketensor'))
    for b in (None, torch.randn(3)):
        torch.library.opcheck(
            torch.ops.nanomorph.vector.default,
            (torch.randn(1, 1, 8), torch.randn(3, 8), b),
            test_utils=('test_schema', 'test_faketensor'),
        )
    assert next(a for a in torch.ops.nanomorph.attend.default._schema.arguments if a.name == 'cache').is_write
