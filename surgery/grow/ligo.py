"""
LiGO: growth.py's copying, learned. The method `ligo` of growth.py.
"""

import torch

from model import GPT
from surgery.grow import weights as grown
from surgery.grow.widen import copy_rank
from surgery.operation import dense_config

STEPS, LR = 100, 3e-3


def learn(small: dict, old, new, how, batches, device='cpu', steps=STEPS, quiet=False) -> dict:
    """The large model's state dict, its copying learned for `steps` steps of Adam on the language-modelling loss.

    Wang et al. 2023 (arXiv 2303.00980): W' = B (sum_j w_j W_j) A^T. B = [I; B2] for each axis of each layer, one for
    the whole residual stream (where a unit's first copy is further down, its row of I is there), A the same for the
    axis read; w mixes the layers of the small model, whose own weights stay. Here A is divided by n and B2 starts as
    the clone's copies, w as the depth method's, so that without depth the start computes what the small model does.
    Norms and biases grow as the clone's. batches: step -> x, y (B, T)."""
    large = Large(small, old, new, how, device)
    model = GPT(dense_config(new)).to(device).eval()
    with torch.enable_grad():
        adam = torch.optim.Adam([*large.maps.values(), *large.mixes.values()], lr=LR)
        for step in range(steps):
            _, loss = torch.func.functional_call(model, large.weights(), batches(step))
            adam.zero_grad()
            loss.backward()
            adam.step()
            if (step % 20 == 0 or step == steps - 1) and not quiet:
                print(f'ligo step {step}: loss {loss.item():.4f}', flush=True)
    return {k: v.detach().cpu() for k, v in large.weights().items()}


class Large:
    """The large model's weights as functions of the parameters that are learned: maps (B2) and mixes (w)."""

    def __init__(self, small: dict, old, new, how, device):
        self.old, self.new, self.device = old, new, device
        self.small = {k: v.to(device) for k, v in small.items()}
        self.matrices = [t for t in grown.tensors(old, new, how) if small[t.source].dim() == 2]
        learned = {t.name for t in self.matrices}
        start = grown.grow_weights(small, old, new, how)
        self.fixed = {k: v.to(device) for k, v in start.items() if k not in learned}
        self.maps, self.mixes = {}, {}  # {LAYER.AXIS, or 'stream': B2}, {name of a matrix: w}
        self.weights()  # fills them

    def weights(self) -> dict:
        W = self.fixed | {t.name: self.matrix(t) for t in self.matrices}
        return W | ({'lm_head.weight': W['transformer.wte.weight']} if self.new.tie_head else {})

    def matrix(self, t):
        """W' = B (sum_j w_j W_j) A^T."""
        layer, W = t.name.rsplit('.', 3)[0], self.mixed(t)
        pieces = []
        for names, sides, rows in t.parts:
            P = W[rows]
            for dim, (name, (axis, way)) in enumerate(zip(names, sides)):
                if axis is not None:
                    factor = axis.read if way == '<' else axis.write
                    B = self.map_of(layer, name[1:], axis, P.size(dim)) * factor.to(self.device, P.dtype)[:, None]
                    P = B @ P if dim == 0 else P @ B.T
            pieces.append(P)
        return torch.cat(pieces)

    def mixed(self, t):
        """sum_j w_j W_j of a matrix of a block; others are there once."""
        if not t.name.startswith('transformer.h.'):
            W = self.small[t.source]
            return W[: self.new.block_size] if t.key == 'wpe.weight' else W
        layers = torch.stack([self.small[f'transformer.h.{j}.{t.key}'] for j in range(self.old.n_layer)])
        if t.name not in self.mixes:
            own = torch.eye(len(layers), device=self.device)[int(t.source.split('.')[2])]
            self.mixes[t.name] = own.requires_grad_()
        return torch.tensordot(self.mixes[t.name], layers, 1)

    def map_of(self, layer, name, axis, d):
        """B (D, d): the row of a unit's first copy stays one of the identity; the rest, B2, starts as copies."""
        where = 'stream' if name in ('stream', 'normed', 'logits') else f'{layer}.{name}'
        copies = torch.eye(d, device=self.device)[axis.unit.to(self.device)]
        rest = (copy_rank(axis.unit) > 0).nonzero().flatten().to(self.device)
        if where not in self.maps:
            self.maps[where] = copies[rest].requires_grad_()
        return copies.index_copy(0, rest, self.maps[where])
