"""
LiGO: growth.py's copying, learned. The method `ligo` of growth.py.
"""

import torch

from model import GPT
from surgery.grow import weights as grown
from surgery.grow.widen import copy_rank
from surgery.operation import dense_config

STEPS, LR = 100, 3e-3


def learn(small: dict, old, new, how, batches, device='cpu', steps=STEPS, lr=LR, quiet=False) -> dict:
    """The large model's state dict, its copying learned for `steps` steps of Adam on the language-modelling loss.

    Wang et al. 2023 (arXiv 2303.00980): W' = B (sum_j w_j W_j) A^T. B = [I; B2] for each axis of each layer, one for
    the whole residual stream (where a unit's first copy is further down, its row of I is there), A the same for the
    axis read; w mixes the layers of the small model, whose own weights stay. Here A is divided by n and B2 starts as
    the clone's copies, w as the depth method's, so that without depth the start computes what the small model does.
    Norms and biases grow as the clone's. batches: step -> x, y (B, T)."""
    start = grown.grow_weights(small, old, new, how)
    model = GPT(dense_config(new)).to(device).eval()
    small = {k: v.to(device) for k, v in small.items()}
    maps, mixes = {}, {}
    todo = list(grown.tensors(old, new, how))

    def map_of(layer, name, axis, d):
        """B (D, d): the row of a unit's first copy stays one of the identity; the rest, a parameter, starts as
        copies."""
        where = 'stream' if name in ('stream', 'normed', 'logits') else f'{layer}.{name}'
        unit = axis.unit.to(device)
        copies, rest = torch.eye(d, device=device)[unit], (copy_rank(axis.unit) > 0).nonzero().flatten().to(device)
        if where not in maps:
            maps[where] = copies[rest].requires_grad_()
        return copies.index_copy(0, rest, maps[where])

    def weight(t):
        """W' of a matrix, differentiable in maps and mixes."""
        layer = t.name.rsplit('.', 3)[0]
        W = small[t.source]
        if t.key == 'wpe.weight':
            W = W[: new.block_size]
        if t.name.startswith('transformer.h.'):
            every = torch.stack([small[f'transformer.h.{j}.{t.key}'] for j in range(old.n_layer)])
            if t.name not in mixes:
                mixes[t.name] = torch.eye(old.n_layer, device=device)[int(t.source.split('.')[2])].requires_grad_()
            W = torch.tensordot(mixes[t.name], every, 1)
        pieces = []
        for names, sides, rows in t.parts:
            P = W[rows]
            for dim, (name, (axis, way)) in enumerate(zip(names, sides)):
                if axis is not None:
                    factor = axis.read if way == '<' else axis.write
                    B = map_of(layer, name[1:], axis, P.size(dim)) * factor.to(device, P.dtype)[:, None]
                    P = B @ P if dim == 0 else P @ B.T
            pieces.append(P)
        return torch.cat(pieces)

    matrices = [t for t in todo if small[t.source].dim() == 2]
    learned = {t.name for t in matrices}
    fixed = {k: v.to(device) for k, v in start.items() if k not in learned}

    def weights():
        W = fixed | {t.name: weight(t) for t in matrices}
        return W | ({'lm_head.weight': W['transformer.wte.weight']} if new.tie_head else {})

    with torch.enable_grad():
        weights()  # creates maps and mixes
        adam = torch.optim.Adam([*maps.values(), *mixes.values()], lr=lr)
        for step in range(steps):
            _, loss = torch.func.functional_call(model, weights(), batches(step))
            adam.zero_grad()
            loss.backward()
            adam.step()
            if (step % 20 == 0 or step == steps - 1) and not quiet:
                print(f'ligo step {step}: loss {loss.item():.4f}', flush=True)
    return {k: v.detach().cpu() for k, v in weights().items()}
