"""
What can grow into what.
"""

import dataclasses
import math

import linear
from configurator import UserError
from surgery.grow.weights import DEPTH, How
from surgery.grow.widen import WIDTH, head_maps, tile

KEPT = ('mlp', 'mlp_gate', 'qk_norm', 'norm', 'norm_affine', 'post_norm', 'position', 'attention_window', 'bias')
KEPT += ('vocab_size', 'tie_head', 'mup_base')


def problems(old, new, how: How) -> list[str]:
    """Why old cannot grow into new this way, one line each."""
    if old.linear != 'dense':
        return [f'the source has linear = {old.linear}; {linear.plain_first(old.linear)}']
    if old.mlp == 'moe':
        return ['the source has mlp = moe: how experts grow is not known here; grow an MLP of another kind']
    if found := kept_problems(old, new, how):
        return found
    if new.n_layer > old.n_layer and not how.depth:
        return [f'n_layer = {new.n_layer}: the source has {old.n_layer}; say how with {", ".join(DEPTH)}']
    hidden = [(old.hidden(j), new.hidden(i)) for i, (j, _) in enumerate(how.plan(old, new))]
    return size_problems(old, new, how, hidden) + method_problems(old, new, how, hidden)


def kept_problems(old, new, how: How) -> list[str]:
    """What growth keeps, and new has otherwise; sizes that would shrink."""
    found = [
        f'{k} = {getattr(new, k)}: the source has {getattr(old, k)}, and growth keeps it'
        for k in KEPT
        if getattr(new, k) != getattr(old, k)
    ]
    if old.position == 'learned' and new.block_size > old.block_size:
        found.append(f'block_size = {new.block_size}: the source has learned positions up to {old.block_size}')
    attn = [c.attn_scale or 1 / math.sqrt(2 * c.n_layer) for c in (old, new)]
    if new.attn_scale and attn[0] != attn[1]:
        found.append(f'attn_scale = {new.attn_scale:g}: the source has {attn[0]:g}, and growth keeps it; 0 takes it')
    if new.logit_scale not in (1.0, logit_scale(old, new, how)):
        found.append(f'logit_scale = {new.logit_scale:g}: growth makes it {logit_scale(old, new, how):g}; 1 takes that')
    for k in ('n_embd', 'n_layer'):
        if getattr(new, k) < getattr(old, k):
            found.append(f'{k} = {getattr(new, k)}: below the {getattr(old, k)} of the source')
    return found


def size_problems(old, new, how: How, hidden: list) -> list[str]:
    """Whether what becomes larger is what the method makes larger. hidden: [(units of the source, of new)] of each block."""
    found, kv = [], [(c.n_kv_head or c.n_head, c.n_embd // c.n_head) for c in (old, new)]
    if how.depth and new.n_layer == old.n_layer:
        found.append(f'n_layer = {new.n_layer}: as many as the source has, nothing for {how.depth} to do')
    wider = new.n_embd > old.n_embd or any(a != b for a, b in hidden) or kv[0] != kv[1] or old.n_head != new.n_head
    if wider and not how.width:
        ways = ', '.join(WIDTH)
        found.append(f'n_embd = {new.n_embd}, hidden = {hidden[0][1]}: wider than the source; say how with {ways}')
    if how.width and not wider:
        found.append(f'n_embd = {new.n_embd}: nothing becomes wider, nothing for {how.width} to do')
    if any(b < a for a, b in hidden):
        found.append(f'mlp_expansion_factor = {new.mlp_expansion_factor}: fewer hidden units than the source has')
    return found


def method_problems(old, new, how: How, hidden: list) -> list[str]:
    """What the method cannot do between two configs of right sizes."""
    found, width, d, D = [], how.width, old.n_embd, new.n_embd
    whole = ('clone', 'net2wider', 'spectrum', 'ligo', 'random_lift', 'shuffle', 'double')
    if width in whole and D % d:
        found.append(f'n_embd = {D}: {width} needs a multiple of {d}; lemon takes any width')
    rows = [(c.n_kv_head or c.n_head) * (c.n_embd // c.n_head) for c in (old, new)]  # of keys, and of values
    if width == 'double' and (rows[1] % rows[0] or any(b % a for a, b in hidden)):
        found.append('double needs multiples of the hidden units and of the key-value rows of the source')
    if width in ('double', 'one_hot', 'spectrum_random'):
        if rows[1] < rows[0]:
            found.append(f'n_kv_head = {new.n_kv_head}: fewer key-value rows than the source has')
    else:
        found += head_problems(old, new)

    if width == 'lemon' and D % d and old.post_norm and old.norm == 'layernorm' and old.norm_affine:
        found.append(f'post_norm with LayerNorm weights: lemon cannot pad its output; n_embd must be a multiple of {d}')
    if width == 'random_lift' and old.post_norm and old.norm_affine:
        found.append('post_norm with norm weights: random_lift cannot turn them')
    if how.depth == 'zero_block' and old.post_norm and not old.norm_affine:
        found.append('post_norm without norm weights: a block cannot begin as an identity; use stack or interleave')
    if width in ('bert2bert', 'ligo') and len({old.hidden(j) for j in range(old.n_layer)}) > 1:
        found.append(f'mlp_expansion_factor = {old.mlp_expansion_factor}: {width} mixes layers, they must be alike')
    if width == 'ligo' and how.depth == 'zero_block':
        found.append('ligo learns its depth from stack or interleave, not from zero_block')
    return found


def head_problems(old, new) -> list[str]:
    """Why the heads of old cannot be copied into those of new; at most one line."""
    (g, h), (G, H) = ((c.n_kv_head or c.n_head, c.n_embd // c.n_head) for c in (old, new))
    if H < h:
        return [f'n_head = {new.n_head}: heads of {H} units, narrower than the {h} of the source']
    if H > h and (old.position == 'rope' or old.qk_norm):
        why = 'position = rope turns by angles that depend on it' if old.position == 'rope' else 'qk_norm divides by it'
        return [f'n_head = {new.n_head}: the head width must stay {h} (n_embd / n_head), {why}']
    if G < g or new.n_head < old.n_head:
        return [f'n_head = {new.n_head}, n_kv_head = {new.n_kv_head}: fewer heads than the source has']
    q, _ = head_maps(old, new, tile, None)
    if len(q.unique()) < old.n_head:
        return [f'n_kv_head = {new.n_kv_head}: groups so small leave out query heads of the source; raise n_head']
    return []


def logit_scale(old, new, how: How) -> float:
    """The factor on the logits. A tied head reads every copy of a unit. Where no norm weight before it can be divided
    by the number of copies n, the logits are."""
    raw_widths = ('double', 'one_hot', 'spectrum_random')
    folds = old.tie_head and not old.norm_affine and not old.mup_base and how.width not in raw_widths
    return old.logit_scale * old.n_embd / new.n_embd if folds else old.logit_scale


def settle(old, new, how: How):
    """new with the keys that growth decides (attn_scale, logit_scale). Raises UserError naming everything that does not fit."""
    if found := problems(old, new, how):
        raise UserError('\n'.join(found))
    attn_scale = old.attn_scale
    if not attn_scale and new.n_layer != old.n_layer:  # 0 stands for 1/sqrt(2*n_layer): it would change with the depth
        attn_scale = 1 / math.sqrt(2 * old.n_layer)
    return dataclasses.replace(new, attn_scale=attn_scale, logit_scale=logit_scale(old, new, how))
