"""
A whole model grown: depth, every tensor, Adam's moments.
"""

import math
import zlib
from typing import NamedTuple

import torch

from configurator import UserError
from model import GPT
from surgery.grow.widen import TENSORS, WIDTH, Part, axes, fold_norms, lift
from surgery.operation import dense_config

# -----------------------------------------------------------------------------
# depth: (blocks of the small model, of the large one) -> plan, see How.plan

DEPTH = {
    'stack': lambda old, new: [(i % old, False) for i in range(new)],
    'interleave': lambda old, new: [(i * old // new, False) for i in range(new)],
    'zero_block': lambda old, new: [(i * old // new, i * old % new >= old) for i in range(new)],
}


class How(NamedTuple):
    """A method of growing, as parse() reads it."""

    width: str  # '': nothing becomes wider
    depth: str  # '': nothing becomes deeper
    noise: float = 0.0
    seed: int = 0

    @property
    def rule(self):
        """The width method; where nothing becomes wider clone, which then copies everything once."""
        return WIDTH[self.width or 'clone']

    @property
    def exact(self) -> bool:
        """Whether the larger model computes exactly what the small one does."""
        return self.rule.exact and self.depth in ('', 'zero_block')

    def plan(self, old, new) -> list:
        """[(block of the small model, whether it begins as an identity)] of each block of the large one."""
        return DEPTH[self.depth or 'stack'](old.n_layer, new.n_layer)


def parse(method: str, noise: float, seed: int) -> How:
    """'clone+stack' and the like."""
    names = [n.strip() for n in method.split('+')]
    width, depth = [n for n in names if n in WIDTH], [n for n in names if n in DEPTH]
    if len(width) + len(depth) != len(names) or len(width) > 1 or len(depth) > 1:
        raise UserError(
            f"method = '{method}': must be one of {', '.join(WIDTH)} (width) or {', '.join(DEPTH)} (depth), or one of each"
            ' joined by +'
        )
    if noise and not (width and WIDTH[width[0]].noise):
        able = ', '.join(n for n, w in WIDTH.items() if w.noise)
        raise UserError(f'noise = {noise:g}: goes with {able}, whose copies it tells apart, not with {method}')
    return How((width or [''])[0], (depth or [''])[0], noise, seed)


# -----------------------------------------------------------------------------
# a whole model


class Tensor(NamedTuple):
    """A tensor of the large model, and where it comes from."""

    name: str  # in the large model
    key: str  # in its block, as in TENSORS
    source: str  # in the small model
    above: str  # of the small model's next block
    closed: bool  # zero, so that a new block begins as an identity
    parts: list  # (names of its axes, sides for lift(), rows of the source); three for c_attn, or else one


def tensors(old, new, how: How):
    """Yields the Tensor of each entry of the large model's state dict; a tied head is none of its own."""
    with torch.device('meta'):
        names = list(GPT(dense_config(new)).state_dict())
    plan = how.plan(old, new)
    grown = [axes(old, new, i, j, how) for i, (j, _) in enumerate(plan)]
    opens = ('post_1.', 'post_2.') if old.post_norm else ('attn.c_proj.', 'mlp.c_proj.')
    g = (old.n_kv_head or old.n_head) * (old.n_embd // old.n_head)
    for name in names:
        if name == 'lm_head.weight' and new.tie_head:
            continue
        if not name.startswith('transformer.h.'):
            key, source, above, closed, ax = name.removeprefix('transformer.'), name, name, False, grown[0]
        else:
            i, key = name.removeprefix('transformer.h.').split('.', 1)
            j, new_block = plan[int(i)]
            source, above = (f'transformer.h.{b}.{key}' for b in (j, min(j + 1, old.n_layer - 1)))
            closed, ax = new_block and key.startswith(opens), grown[int(i)]
        rows = [('', slice(None))]
        if TENSORS[key][0] == '>qkv':
            ends = (0, old.n_embd, old.n_embd + g, old.n_embd + 2 * g)
            rows = [(n, slice(*r)) for n, r in zip('qkv', zip(ends, ends[1:]))]
        parts = []
        for qkv, r in rows:
            named = [f'>{qkv}' if n == '>qkv' else n for n in TENSORS[key]]
            parts.append((named, [(ax.get(n[1:]), n[:1]) for n in named], r))
        yield Tensor(name, key, source, above, closed, parts)


def grow_weights(small: dict, old, new, how: How) -> dict:
    """The large model's state dict, tensor by tensor."""
    if how.width == 'random_lift':
        small = fold_norms(small, old)
    large = {}
    for t in tensors(old, new, how):
        gen = torch.Generator().manual_seed(how.seed ^ zlib.crc32(t.name.encode()))
        W, above = small[t.source], small[t.above]
        if t.key == 'wpe.weight':
            W = W[: new.block_size]
        pieces = [how.rule.fill(Part(t.key, n, sides, W[r], above[r], how, gen)) for n, sides, r in t.parts]
        large[t.name] = torch.cat(pieces) * (0 if t.closed else 1)
    if new.tie_head:
        large['lm_head.weight'] = large['transformer.wte.weight']
    return large


def grow_moments(state: dict, old, new, how: How) -> dict:
    """AdamW's state {name: {step, exp_avg, exp_avg_sq}}, or that of one of optimizers/: averages of gradients move as gradients
    do, and a copy keeps its age. What begins as zero begins anew. A number for each row moves with a matrix that keeps its
    size, and begins anew in one that becomes wider: there is no rule for it."""
    large = {}
    for t in tensors(old, new, how):
        entry, averages, large[t.name] = state[t.source], {}, {}
        full = max((v.shape for v in entry.values()), key=math.prod)  # of the parameter
        for k, v in entry.items():
            if v.shape == full:
                v = v[: new.block_size] if t.key == 'wpe.weight' else v
                averages[k] = torch.cat([lift(v[r], sides, 2 if k == 'exp_avg_sq' else 1) for _, sides, r in t.parts])
        grown = next(iter(averages.values())).shape
        for k, v in entry.items():
            if k in averages:
                v = averages[k]
            elif k != 'step' and (how.width or grown != full):
                v = v.new_zeros(grown[0], 1)
            large[t.name][k] = v * (0 if t.closed else 1)
    return large
