"""
A large GPT out of a small one.

    python transfer.py grow --checkpoint=out/small/ckpt.pt --n_embd=768 --method=clone --noise=0.3 --out=out/large/ckpt.pt
    python transfer.py grow --checkpoint=out/small/ckpt.pt --n_layer=12 --method=zero_block --out=out/deep/ckpt.pt
    python train.py config/grow_shakespeare.py       train the small model, grow it, go on (init_from = 'transfer')

--method is a width method, a depth method, or both joined by +, such as clone+stack. * keeps the function exactly.

    clone *          every unit copied n times, its readers divided by n; n_embd grows by an integer factor
    lemon *          the same for any n_embd: the rest of the stream is padded by its mean (RMSNorm: by zeros)
    net2wider *      hidden units and heads copied at random, in any number; n_embd by an integer factor or not at all
    spectrum *       clone, and its null space filled with the singular values that a fit to the small ones continues
    bert2bert        clone, but the copies of a layer's units come from the layer above (AKI)
    ligo             the copying is learned: W' = B W A^T, mixed over layers, on the training data
    double           rows and columns repeated, nothing divided (raw)
    one_hot          the small matrix in the corner of an identity (raw)
    spectrum_random, random_lift, shuffle    controls: the singular values with random vectors; clone in a random
                     basis of the stream; clone with the rows of every matrix shuffled
    zero_block *     depth: copies of blocks that write nothing yet, spread evenly
    stack            depth: the blocks in order, again and again
    interleave       depth: every block several times in a row

Copies that are equal stay equal in training (all methods but spectrum, bert2bert and ligo make such): a wider model
that computes what the small one does. --noise makes them differ and keeps the function: one copy reads W/n + N,
the next W/n - N, N of `noise` times the size of W/n. Grown matrices want 1/n of the learning rate (hidden_lr).
A checkpoint with optimizer state comes out with its moments grown as well, ready to --init_from=resume.

Sources: Chen et al. 2016 (Net2Net, arXiv 1511.05641), Chen et al. 2021 (bert2BERT, 2110.07143), Wang et al. 2023 (LiGO,
2303.00980), Wang et al. 2023 (LEMON, 2310.07999), Samragh et al. 2024 (HyperCloning, 2409.12903), Shen et al. 2022
(Staged training, 2203.06211: moments), Wu et al. 2024 (LLaMA Pro, 2401.02415), Du et al. 2024 (G_stack, 2405.15319).
"""

import dataclasses
import functools
import math
import time
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

import checkpoint
import linear
import loader
from configurator import UserError, key
from model import GPT, GPTConfig
from surgery import SurgeryConfig, compare, open_model, real_tokens, report, write

EXACT = 1e-3  # largest logit difference in float32 that a function-preserving growth may cause
LIGO_STEPS, LIGO_LR = 100, 3e-3

# -----------------------------------------------------------------------------
# how an axis grows


class Axis(NamedTuple):
    """Unit i of the new axis (D) copies unit[i] of the old one (d). What is written into the copy is multiplied by
    write[i], what reads from it by read[i]; over the copies of a unit, write * read sums to 1.

    Hence W' = write W read in the weights, and in their gradients G' = read G write (the chain rule swaps the roles),
    so the same two numbers move Adam's moments. unit[i] = d is padding: it holds the mean unit, or zero."""

    unit: torch.Tensor
    write: torch.Tensor
    read: torch.Tensor
    pad: str = 'zero'


def tile(d, D, gen):
    """0 1 ... d-1 0 1 ..."""
    return torch.arange(D) % d


def pick(d, D, gen):
    """Net2Net's map: the old units, then random ones."""
    return torch.cat((torch.arange(d), torch.randint(d, (D - d,), generator=gen)))


def adjacent(d, D, gen):
    """0 0 1 1 ..."""
    return torch.arange(D) // (D // d)


def copied(unit, write=1.0) -> Axis:
    count = torch.bincount(unit)[unit].double()
    write = torch.zeros_like(count) + write
    return Axis(unit, write, 1 / (count * write))


def raw(unit) -> Axis:
    one = torch.ones(len(unit), dtype=torch.float64)
    return Axis(unit, one, one)


def copy_rank(unit):
    """How many earlier units copy the same one."""
    order = unit.argsort(stable=True)
    first = torch.searchsorted(unit[order], unit[order])
    return torch.empty_like(unit).index_copy_(0, order, torch.arange(len(unit)) - first)


def head_maps(old, new, choose, gen):
    """(query heads, key-value heads) of the old model that the new ones copy. A new query head may only copy one that
    reads the key-value head which its own copies."""
    g, G = old.n_kv_head or old.n_head, new.n_kv_head or new.n_head
    s, S = old.n_head // g, new.n_head // G  # query heads per key-value head
    kv = (choose if S >= s else tile)(g, G, gen)  # smaller groups: all copies are needed to hold the queries
    turn = (copy_rank(kv)[:, None] * S + torch.arange(S)) % s  # the copies of a key-value head share its queries out
    return (kv[:, None] * s + turn).flatten(), kv


def attention_axes(old, new, choose, gen) -> dict[str, Axis]:
    """q, k, v: the rows of c_attn; heads: what attn.c_proj reads. A head may become wider: its units are repeated, and
    q and k scaled so that their product, over the square root of the head width, stays."""
    q, kv = head_maps(old, new, choose, gen)
    h, H = old.n_embd // old.n_head, new.n_embd // new.n_head
    dim = tile(h, H, gen)
    scale = (H / h) ** 0.25 * torch.bincount(dim)[dim].double() ** -0.5
    rows = lambda heads: (heads[:, None] * h + dim).flatten()
    return dict(
        q=copied(rows(q), scale.repeat(len(q))),
        k=copied(rows(kv), scale.repeat(len(kv))),
        v=copied(rows(kv)),
        heads=copied(rows(q)),
    )


def stream_axes(old, new, unit, pad: int) -> dict[str, Axis]:
    """The residual stream and what is seen of it: stream (embeddings and projections write it; a norm reads it), normed
    (after ln_1 and ln_2), final (after ln_f), the weights and biases of the norms. The last `pad` units are padding.

    Padding shrinks the variance by kd/D; all that is written grows by c = sqrt(D/kd), so that a norm's epsilon and its
    statistics stay, and its output is c times too large: the norm's weight takes 1/c, or else its readers do."""
    d, D = old.n_embd, new.n_embd
    real = unit < d
    c = math.sqrt(D / (D - pad))
    count = torch.bincount(unit[real])
    share = torch.where(real, 1 / count[unit.clamp(max=d - 1)].double(), d / (D - pad))
    one, here = torch.ones(D, dtype=torch.float64), real.double()  # here: padding is neither read nor holds anything
    mean = 'mean' if old.norm == 'layernorm' else 'zero'
    out = 1.0 if old.norm_affine else c  # what a norm hands on, over what the small one's does
    fin = (share / c if old.norm_affine else c * one) if old.tie_head else out * one  # a tied head reads copies whole
    return dict(
        stream=Axis(unit, c * one, share / c, mean),
        normed=Axis(unit, out * here, share / out * here),
        final=Axis(unit, fin * here, share / fin * here),
        scale=Axis(unit, one / c, share * c, 'mean'),  # of a norm; padding may have any weight
        shift=Axis(unit, here, share * here),
        final_scale=Axis(unit, fin / c, share / fin * c, 'mean'),
        post=Axis(unit, one, share, 'mean'),
    )


def axes(old, new, layer: int, source: int, how: 'How') -> dict[str, Axis]:
    """Every axis of block `layer` of the new model, made from block `source` of the old."""
    gen = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
    f, F = old.hidden(source), new.hidden(layer)
    d, D = old.n_embd, new.n_embd
    if how.width == 'double':
        g, G = ((c.n_kv_head or c.n_head) * (c.n_embd // c.n_head) for c in (old, new))
        stream, kv, hidden = raw(adjacent(d, D, gen)), raw(adjacent(g, G, gen)), raw(adjacent(f, F, gen))
        names = ('stream', 'normed', 'final', 'scale', 'shift', 'final_scale', 'post', 'q', 'heads')
        return dict.fromkeys(names, stream) | dict(k=kv, v=kv, hidden=hidden)
    pad = D % d if how.width == 'lemon' else 0
    unit = torch.cat((tile(d, D - pad, gen), torch.full((pad,), d)))
    choose = pick if how.width == 'net2wider' else tile
    return (
        stream_axes(old, new, unit, pad)
        | attention_axes(old, new, choose, gen)
        | dict(hidden=copied(choose(f, F, gen)))
    )


# the axes of each tensor of a block, > writing and < reading; c_attn's rows are q, k and v in turn
LINEARS = {'attn.c_attn': ('>qkv', '<normed'), 'attn.c_proj': ('>stream', '<heads'), 'mlp.c_fc': ('>hidden', '<normed')}
LINEARS |= {'mlp.c_gate': ('>hidden', '<normed'), 'mlp.c_proj': ('>stream', '<hidden')}
TENSORS = {f'{name}.weight': sides for name, sides in LINEARS.items()}
TENSORS |= {f'{name}.bias': sides[:1] for name, sides in LINEARS.items()}
TENSORS |= {f'{name}.weight': ('>scale',) for name in ('ln_1', 'ln_2')}
TENSORS |= {f'{name}.bias': ('>shift',) for name in ('ln_1', 'ln_2')}
TENSORS |= {f'{name}.weight': ('>post',) for name in ('post_1', 'post_2')}
TENSORS |= {f'{name}.bias': ('>stream',) for name in ('post_1', 'post_2')}
TENSORS |= {'mlp.gate': ('>hidden',), 'wte.weight': ('', '>stream'), 'wpe.weight': ('', '>stream')}
TENSORS |= {'ln_f.weight': ('>final_scale',), 'ln_f.bias': ('>final',), 'lm_head.weight': ('', '<final')}


def lift(W, sides, moment=0):
    """W with its axes grown: sides holds (Axis or None, '>' or '<') per dimension. moment 1, 2: W is an average of
    gradients, of squared gradients."""
    for dim, (axis, way) in enumerate(sides):
        if axis is None:
            continue
        pad = W.mean(dim, keepdim=True) if axis.pad == 'mean' else torch.zeros_like(W.narrow(dim, 0, 1))
        factor = axis.read if (way == '<') != bool(moment) else axis.write
        factor = (factor ** max(1, moment)).to(W.dtype)
        W = torch.cat((W, pad), dim).index_select(dim, axis.unit) * factor.view([-1] + [1] * (W.dim() - 1 - dim))
    return W


# -----------------------------------------------------------------------------
# width: how one matrix, or one of q, k, v, is filled


class Part(NamedTuple):
    name: str  # of the tensor in its block
    axes: tuple  # names of its axes, as in TENSORS
    sides: list  # the axes themselves, for lift()
    W: torch.Tensor
    above: torch.Tensor  # the same of the next block; the last has none above and takes itself
    how: 'How'
    gen: torch.Generator

    @property
    def is_linear(self):
        return self.name.rsplit('.', 1)[0] in LINEARS

    def shape(self):
        return [n if axis is None else len(axis.unit) for n, (axis, _) in zip(self.W.shape, self.sides)]


def copy(p: Part):
    return padded(p, lift(p.W, p.sides) + paired_noise(p))


def padded(p: Part, W):
    """Readers of padding, which holds exact zeros, may have any weight; zero weights would never learn."""
    axis, way = p.sides[-1]
    if way == '<' and axis is not None and W.dim() == 2:
        pad = axis.unit == p.W.size(1)
        W[:, pad] = 0.02 * torch.randn(len(W), int(pad.sum()), generator=p.gen, dtype=W.dtype)
    return W


def paired_noise(p: Part):
    """+N on one copy of a column, -N on the next (an odd copy has none), N independent in every row: the copies' sum,
    and so the function, stays."""
    axis, way = p.sides[-1]
    if not p.how.noise or way != '<' or axis is None:
        return 0
    rank = copy_rank(axis.unit)
    _, pair, size = torch.unique(axis.unit * len(rank) + rank // 2, return_inverse=True, return_counts=True)
    sign = (1 - 2 * (rank % 2)) * (size[pair] == 2) * (axis.unit < p.W.size(1))
    W = lift(p.W, p.sides)
    N = torch.randn(len(W), len(size), generator=p.gen, dtype=W.dtype)[:, pair]
    return N * sign * p.how.noise * W.square().mean().sqrt()


def aki(p: Part):
    """Advanced knowledge initialization: what is a copy within a layer is taken from the layer above instead."""
    W = copy(p)
    if p.is_linear:
        later = copy_rank(p.sides[0][0].unit) > 0
        W[later] = lift(p.above, p.sides)[later]
    return W


def fitted_tail(s, n: int):
    """n singular values that continue s (descending): a power law in the index, fitted to the middle half."""
    k = len(s)
    i = torch.arange(1, k + n + 1, dtype=s.dtype)
    if k < 4 or s[0] == 0:
        return s[-1:].expand(n)
    middle = slice(k // 4, max(k // 4 + 2, 3 * k // 4))
    x, y = i[middle].log(), s[middle].clamp_min(s[0] * 1e-12).log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() + slope * (i[k:].log() - x.mean())).exp()


def spectrum(p: Part):
    """tile(W)/n has the singular values of W, and zeros: they become the fitted tail. Its vectors are random among those
    that average to zero over copies: the right ones see nothing of duplicated activations, so the function stays."""
    W = copy(p)
    if not p.is_linear or W.dim() == 1:
        return W
    n = min(a - b for a, b in zip(W.shape, p.W.shape))
    s = torch.linalg.svdvals(p.W)

    def without_copies(axis):
        V = torch.randn(len(axis.unit), n, generator=p.gen, dtype=W.dtype)
        mean = torch.zeros(int(axis.unit.max()) + 1, n, dtype=W.dtype).index_add_(0, axis.unit, V)
        V -= (mean / torch.bincount(axis.unit)[:, None].to(W.dtype))[axis.unit]
        return torch.linalg.qr(V)[0]

    U, V = (without_copies(axis) for axis, _ in p.sides)
    return W + (U * fitted_tail(s, n)) @ V.T


def spectrum_random(p: Part):
    """A control: the singular values that `spectrum` has, between random vectors; norms start anew."""
    shape = p.shape()
    if len(shape) == 1:
        return fresh_vector(p)
    s = torch.linalg.svdvals(p.W.double())
    s = s * lift(p.W, p.sides).norm() / p.W.norm()  # embeddings, copied but never divided, grow by sqrt(n)
    s = torch.cat((s, fitted_tail(s, min(shape) - len(s))))
    U, V = (linear.orthonormal(n, len(s), p.gen) for n in shape)
    return ((U * s) @ V.T).to(p.W.dtype)


def fresh_vector(p: Part):
    """A norm, gate or bias as a new model has it."""
    return torch.full(p.shape(), 0.0 if p.name.endswith('bias') else 1.0, dtype=p.W.dtype)


def one_hot(p: Part):
    """The seed's identity padding: zeros around the small matrix, then 1 where the diagonal is 0. The new columns of
    embeddings (and the head) are random, norms and biases continue as a new model has them."""
    shape = p.shape()
    if len(shape) == 1:
        W = fresh_vector(p)
    elif p.is_linear:
        W = torch.zeros(shape, dtype=p.W.dtype)
    else:
        W = 0.02 * torch.randn(shape, generator=p.gen, dtype=p.W.dtype)
    W[tuple(slice(n) for n in p.W.shape)] = p.W
    if len(shape) == 2 and p.is_linear:
        diagonal = W.diagonal()
        diagonal[diagonal == 0] = 1
    return W


def shuffle(p: Part):
    """A control: clone with the rows of every matrix in random order."""
    W = copy(p)
    return W[torch.randperm(len(W), generator=p.gen)] if W.dim() == 2 else W


@functools.lru_cache(1)
def rotation(D, seed):
    return linear.orthonormal(D, D, torch.Generator().manual_seed(seed))


def random_lift(p: Part):
    """A control: clone, then the residual stream in a random basis (after fold_norms). With RMSNorm that is exact but
    for a tied head's ln_f; LayerNorm's mean does not commute with it."""
    W = copy(p)
    if p.axes[0] in ('>scale', '>final_scale', '>post'):
        return torch.full_like(W, W.mean())
    for dim, name in enumerate(p.axes):
        if name[1:] in ('stream', 'normed', 'final', 'shift'):
            R = rotation(W.size(dim), p.how.seed).to(W.dtype)
            W = torch.tensordot(W, R, ([dim], [1])).movedim(-1, dim)
    return W


def fold_norms(small: dict, config) -> dict:
    """The same function with norm weights of 1: their readers take them. A tied head cannot."""
    small, readers = dict(small), [('ln_1', ('attn.c_attn',)), ('ln_2', ('mlp.c_fc', 'mlp.c_gate'))]
    folds = [(f'h.{i}.{norm}', [f'h.{i}.{r}' for r in rs]) for i in range(config.n_layer) for norm, rs in readers]
    if not config.tie_head:
        folds.append(('ln_f', ['lm_head']))
    for norm, rs in folds:
        g = small.get(f'transformer.{norm}.weight')
        if g is None:
            continue
        for r in rs:
            name = 'lm_head.weight' if r == 'lm_head' else f'transformer.{r}.weight'
            if name in small:
                small[name] = small[name] * g
        small[f'transformer.{norm}.weight'] = torch.ones_like(g)
        if f'transformer.{norm}.bias' in small:
            small[f'transformer.{norm}.bias'] = small[f'transformer.{norm}.bias'] / g
    return small


class Width(NamedTuple):
    fill: object  # Part -> W'
    exact: bool = False  # keeps the function
    moments: bool = False  # the moments of its copies are known
    noise: bool = False  # paired noise makes sense
    symmetric: bool = False  # without noise all copies are equal


WIDTH = {
    'clone': Width(copy, exact=True, moments=True, noise=True, symmetric=True),
    'lemon': Width(copy, exact=True, moments=True, noise=True, symmetric=True),  # LayerNorm: moments nearly so
    'net2wider': Width(copy, exact=True, moments=True, noise=True, symmetric=True),
    'spectrum': Width(spectrum, exact=True, moments=True),
    'bert2bert': Width(aki, moments=True),
    'ligo': Width(copy),  # learned, see ligo()
    'double': Width(copy, symmetric=True),
    'one_hot': Width(one_hot),
    'spectrum_random': Width(spectrum_random),
    'random_lift': Width(random_lift),
    'shuffle': Width(shuffle),
}

# -----------------------------------------------------------------------------
# depth: (block of the small model, does it begin as an identity?) for each block of the large one

DEPTH = {
    'stack': lambda old, new: [(i % old, False) for i in range(new)],
    'interleave': lambda old, new: [(i * old // new, False) for i in range(new)],
    'zero_block': lambda old, new: [(i * old // new, i * old % new >= old) for i in range(new)],
}


class How(NamedTuple):
    width: str  # '': nothing becomes wider
    depth: str  # '': nothing becomes deeper
    noise: float = 0.0
    seed: int = 0

    @property
    def rule(self):
        return WIDTH[self.width or 'clone']

    @property
    def exact(self):
        return self.rule.exact and self.depth in ('', 'zero_block')

    def plan(self, old, new):
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
# what can grow into what

KEPT = ('mlp', 'mlp_gate', 'qk_norm', 'norm', 'norm_affine', 'post_norm', 'position', 'attention_window', 'bias')
KEPT += ('vocab_size', 'tie_head')


def problems(old, new, how: How) -> list[str]:
    """Why old cannot grow into new this way, one line each."""
    if old.linear != 'dense':
        return [f'the source has linear = {old.linear}; collapse it first: python transfer.py collapse']
    width, d, D = how.width, old.n_embd, new.n_embd
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

    shrunk = [k for k in ('n_embd', 'n_layer') if getattr(new, k) < getattr(old, k)]
    found += [f'{k} = {getattr(new, k)}: below the {getattr(old, k)} of the source' for k in shrunk]
    if found or shrunk:
        return found
    if new.n_layer > old.n_layer and not how.depth:
        return [f'n_layer = {new.n_layer}: the source has {old.n_layer}; say how with {", ".join(DEPTH)}']
    if how.depth and new.n_layer == old.n_layer:
        found.append(f'n_layer = {new.n_layer}: as many as the source has, nothing for {how.depth} to do')
    plan = how.plan(old, new)
    hidden = [(old.hidden(j), new.hidden(i)) for i, (j, _) in enumerate(plan)]
    kv = [(c.n_kv_head or c.n_head, c.n_embd // c.n_head) for c in (old, new)]
    wider = D > d or any(a != b for a, b in hidden) or kv[0] != kv[1] or old.n_head != new.n_head
    if wider and not width:
        found.append(f'n_embd = {D}, hidden = {hidden[0][1]}: wider than the source; say how with {", ".join(WIDTH)}')
    if width and not wider:
        found.append(f'n_embd = {D}: nothing becomes wider, nothing for {width} to do')
    if any(b < a for a, b in hidden):
        found.append(f'mlp_expansion_factor = {new.mlp_expansion_factor}: fewer hidden units than the source has')

    whole = ('clone', 'net2wider', 'spectrum', 'ligo', 'random_lift', 'shuffle', 'double')
    if width in whole and D % d:
        found.append(f'n_embd = {D}: {width} needs a multiple of {d}; lemon takes any width')
    rows = [n * h for n, h in kv]
    if width == 'double' and (rows[1] % rows[0] or any(b % a for a, b in hidden)):
        found.append('double needs multiples of the hidden units and of the key-value rows of the source')
    if width in ('double', 'one_hot', 'spectrum_random'):
        if rows[1] < rows[0]:
            found.append(f'n_kv_head = {new.n_kv_head}: fewer key-value rows than the source has')
    else:
        found += head_problems(old, new, how)

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


def head_problems(old, new, how: How) -> list[str]:
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
    """A tied head reads every copy; with nothing before it that could be divided by n, the logits must be."""
    raw_widths = ('double', 'one_hot', 'spectrum_random')
    folds = old.tie_head and not old.norm_affine and how.width not in raw_widths
    return old.logit_scale * old.n_embd / new.n_embd if folds else old.logit_scale


def settle(old, new, how: How):
    """new with the keys that growth decides. Raises UserError naming everything that does not fit."""
    if found := problems(old, new, how):
        raise UserError('\n'.join(found))
    attn_scale = old.attn_scale
    if not attn_scale and new.n_layer != old.n_layer:  # 0 stands for 1/sqrt(2*n_layer): it would change with the depth
        attn_scale = 1 / math.sqrt(2 * old.n_layer)
    return dataclasses.replace(new, attn_scale=attn_scale, logit_scale=logit_scale(old, new, how))


# -----------------------------------------------------------------------------
# a whole model


class Tensor(NamedTuple):
    name: str  # in the large model
    key: str  # in its block, as in TENSORS
    source: str  # in the small model
    above: str  # of the small model's next block
    closed: bool  # zero, so that a new block begins as an identity
    parts: list  # (names of its axes, sides for lift(), rows of the source); three for c_attn, or else one


def plain(config) -> GPTConfig:
    """The dense GPTConfig within a config."""
    args = {f.name: getattr(config, f.name) for f in dataclasses.fields(GPTConfig)}
    return GPTConfig(**args | dict(linear='dense'))


def tensors(old, new, how: How):
    """Every tensor of the large model (a tied head is none of its own) and where it comes from."""
    with torch.device('meta'):
        names = list(GPT(plain(new)).state_dict())
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
    """Adam's state {name: {step, exp_avg, exp_avg_sq}}: averages of gradients move as gradients do, and a copy keeps
    its age. What begins as zero begins anew."""
    large = {}
    for t in tensors(old, new, how):
        s = {k: v[: new.block_size] if t.key == 'wpe.weight' else v for k, v in state[t.source].items() if k != 'step'}
        large[t.name] = dict(step=state[t.source]['step'] * (0 if t.closed else 1))
        for power, k in ((1, 'exp_avg'), (2, 'exp_avg_sq')):
            m = torch.cat([lift(s[k][r], sides, power) for _, sides, r in t.parts])
            large[t.name][k] = m * (0 if t.closed else 1)
    return large


# -----------------------------------------------------------------------------
# LiGO


def ligo(small: dict, old, new, how: How, batches, device='cpu', steps=LIGO_STEPS, lr=LIGO_LR) -> dict:
    """The large model's state dict, its copying learned for `steps` steps of Adam on the language-modelling loss.

    Wang et al. 2023 (arXiv 2303.00980): W' = B (sum_j w_j W_j) A^T. B = [I; B2] for each axis of each layer, one for the
    whole residual stream, A the same for the axis read; w mixes the layers of the small model, whose own weights stay.
    Here A is divided by n and B2 starts as the clone's copies, w as the depth method's, so that without depth the start
    computes what the small model does. Norms and biases grow as the clone's. batches: step -> x, y (B, T)."""
    start = grow_weights(small, old, new, how)
    model = GPT(plain(new)).to(device)
    small = {k: v.to(device) for k, v in small.items()}
    maps, mixes = {}, {}
    todo = list(tensors(old, new, how))

    def map_of(layer, name, axis, d):
        """B (D, d): rows 0 to d-1 stay the identity; the rest, a parameter, starts as copies."""
        where = 'stream' if name in ('stream', 'normed', 'final') else f'{layer}.{name}'
        if where not in maps:
            maps[where] = torch.eye(d, device=device)[axis.unit[d:].to(device)].requires_grad_()
        return torch.cat((torch.eye(d, device=device), maps[where]))

    def weight(t):
        """W' of a matrix, differentiable in maps and mixes."""
        layer = t.name.split('.')[2]
        W = small[t.source]
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

    matrices = [t for t in todo if small[t.source].dim() == 2 and t.key != 'wpe.weight']
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
            if step % 20 == 0 or step == steps - 1:
                print(f'ligo step {step}: loss {loss.item():.4f}', flush=True)
    return {k: v.detach().cpu() for k, v in weights().items()}


# -----------------------------------------------------------------------------
# the command


@dataclass
class GrowConfig(SurgeryConfig):
    method: str = key('', f'{", ".join(WIDTH)}; {", ".join(DEPTH)}; or a width and a depth method joined by +')
    n_embd: int | None = key(None, "new width; none: the source's", low=1)
    n_head: int | None = key(None, 'new heads; none: as many as keep their width', low=1)
    n_kv_head: int | None = key(None, 'new key-value heads; none: the same number of query heads each', low=0)
    n_layer: int | None = key(None, "new blocks; none: the source's", low=1)
    mlp_expansion_factor: float | tuple | None = key(None, "hidden units over n_embd; none: the source's")
    noise: float = key(0.0, 'size of the paired noise over that of the weights; 0.3 is a start', low=0)
    moments: str = key(
        'auto',
        "Adam's moments: grown with the weights (move), left out (fresh); auto: move where they and their rule exist",
        choices=('auto', 'move', 'fresh'),
    )
    seed: int = key(0, 'seed of noise, random copies and random vectors', low=0)

    def problems(self):
        return super().problems() + ([] if self.method else ['method: must be given, --method=clone and the like'])


def target(old, cfg: GrowConfig, how: How):
    """The large model's config: the small one's, with the sizes given and the others following."""
    D, L = cfg.n_embd or old.n_embd, cfg.n_layer or old.n_layer
    h = old.n_embd // old.n_head
    H = cfg.n_head or D // h
    if not cfg.n_head and D % h:
        raise UserError(f'n_embd = {D}: no whole number of heads {h} wide; give --n_head')
    kv = old.n_kv_head * H // old.n_head if old.n_kv_head > 1 else old.n_kv_head
    factors = cfg.mlp_expansion_factor or old.mlp_expansion_factor
    if isinstance(old.mlp_expansion_factor, tuple) and not cfg.mlp_expansion_factor and L > old.n_layer and how.depth:
        factors = tuple(old.mlp_expansion_factor[j] for j, _ in DEPTH[how.depth](old.n_layer, L))
    new = dataclasses.replace(
        old,
        n_embd=D,
        n_head=H,
        n_kv_head=kv if cfg.n_kv_head is None else cfg.n_kv_head,
        n_layer=L,
        mlp_expansion_factor=factors,
    )
    if found := new.problems():
        raise UserError('\n'.join(found))
    return new


def choose_moments(ckpt: dict, how: How, moments: str, linear_kind: str = 'dense') -> bool:
    """Whether the moments move. UserError if they shall and cannot."""
    why = ''
    if 'optimizer' not in ckpt:
        why = 'the source has no optimizer state'
    elif not how.rule.moments:
        why = f'for {how.width} it is not known how moments grow'
    elif linear_kind != 'dense':
        why = f'the layers are {linear_kind} now'
    if moments == 'move' and why:
        raise UserError(f'moments = move: {why}; use fresh')
    return moments != 'fresh' and not why


def say_grown(old, new, how: How, moved: bool, dropout: float):
    """What the user should know of a growth before training it on."""
    sizes = [('n_embd', old.n_embd, new.n_embd), ('n_head', old.n_head, new.n_head)]
    sizes += [('hidden', old.hidden(0), new.hidden(0)), ('n_layer', old.n_layer, new.n_layer)]
    print('grown: ' + ', '.join(f'{k} {a} -> {b}' for k, a, b in sizes if a != b))
    for k in ('attn_scale', 'logit_scale'):
        if getattr(old, k) != getattr(new, k):
            print(f'set by growth: {k} = {getattr(new, k):g}')
    print('moments: ' + ("Adam's, grown with the weights" if moved else 'fresh'))
    if how.width and how.rule.symmetric and not how.noise and not dropout and new.n_embd % old.n_embd == 0:
        cure = '--noise=0.3 or dropout' if how.rule.noise else 'dropout, or another method'
        print(f'WARNING: the copies are equal and stay so in training: no capacity is gained; use {cure}')
    if how.width in ('clone', 'lemon', 'net2wider', 'spectrum', 'bert2bert') and new.n_embd > old.n_embd:
        print(
            f'learning rate: each unit is read through {new.n_embd / old.n_embd:.3g} copies, so at the same rate the'
            f' function moves that much faster; --hidden_lr={old.n_embd / new.n_embd:.3g} keeps the pace'
        )


def grow(cfg: GrowConfig):
    ckpt, model, tokens = open_model(cfg)
    how = parse(cfg.method, cfg.noise, cfg.seed)
    old = model.config
    new = settle(old, target(old, cfg, how), how)
    moved = choose_moments(ckpt, how, cfg.moments)
    if how.width == 'ligo':
        dataset = cfg.dataset or ckpt['config']['dataset']
        data = loader.Loader(dataset, 'train', old.block_size, 8, old.vocab_size, seed=cfg.seed)
        weights = ligo(ckpt['model'], old, new, how, lambda step: data.batch(8 * step))
    else:
        weights = grow_weights(ckpt['model'], old, new, how)
    large = GPT(new).eval()
    linear.load_state(large, weights)
    del weights
    say_grown(old, new, how, moved, new.dropout)
    print(f'{model.num_params():,} parameters -> {large.num_params():,}')
    report(cfg, model, large, tokens, EXACT if how.exact else None)
    resume = dict(transfer=history(ckpt, model, how, cfg.checkpoint))
    resume['transfer']['since'] = ckpt['iter_num']
    if moved:
        resume |= {k: ckpt[k] for k in ('position', 'seconds', 'scaler', 'rng') if k in ckpt}
        resume['transfer']['seconds'] -= ckpt.get('seconds', 0.0)  # counted on
        resume['optimizer'] = grow_moments(ckpt['optimizer'], old, new, how)
    best = ckpt['best_val_loss'] if how.exact else math.inf
    write(cfg, checkpoint.pack(large, ckpt['config'] | dataclasses.asdict(new), ckpt['iter_num'], best, **resume))
    if moved:
        print('to go on from its iteration: train.py --init_from=resume with its folder as --out_dir')


# -----------------------------------------------------------------------------
# at the start of a run: init_from = 'transfer'


def history(ckpt: dict, model, how: How, path) -> dict:
    """What a checkpoint of a grown model says of where it comes from: FLOPs and seconds of all training before the
    growth, the source's own sources included (none: not recorded), and the iteration at which it grew."""
    c, before = ckpt['config'], ckpt.get('transfer') or dict(since=0, flops=0, seconds=0.0)
    flops = None
    if 'gradient_accumulation_steps' in c and before['flops'] is not None:
        tokens = c['gradient_accumulation_steps'] * c['batch_size'] * c['block_size']
        per_iter = tokens * model.flops_per_token() + model.flops_per_update()
        flops = before['flops'] + (ckpt['iter_num'] - before['since']) * per_iter
    return dict(
        source=str(path),
        source_iter=ckpt['iter_num'],
        method='+'.join(n for n in (how.width, how.depth) if n),
        since=0,
        flops=flops,
        seconds=before['seconds'] + ckpt.get('seconds', 0.0),
    )


def how_of(cfg) -> How:
    return parse(cfg.transfer_method, cfg.transfer_noise, cfg.seed_model)


def prepare(cfg, ckpt: dict):
    """The training config with what growth decides. UserError if the small model cannot become this one."""
    old = GPTConfig(**checkpoint.read_args(ckpt, cfg.transfer_from))
    try:
        new = settle(old, cfg, how_of(cfg))
        choose_moments(ckpt, how_of(cfg), cfg.transfer_moments, cfg.linear)
    except UserError as e:
        raise UserError(
            '\n'.join(f'transfer_from = {cfg.transfer_from}: {line}' for line in str(e).split('\n'))
        ) from None
    return new


def start(model, cfg, ckpt: dict, data, quiet: bool):
    """Fill the model of a run from a small one's checkpoint; print what that did to the function. data: the run's
    training data, for what is learned.
    Returns (Adam's moments or None, the history for manifest and checkpoints)."""
    t0 = time.time()
    small = checkpoint.build(ckpt, cfg.transfer_from)
    old, how = small.config, how_of(cfg)
    past = history(ckpt, small, how, cfg.transfer_from)
    if how.width == 'ligo':
        batches = lambda step: data.batch(step * cfg.batch_size)
        weights = ligo(ckpt['model'], old, cfg, how, batches, data.device)
        if past['flops'] is not None:  # the products of the maps, small beside these, are left out
            past['flops'] += LIGO_STEPS * cfg.batch_size * cfg.block_size * model.flops_per_token()
    else:
        weights = grow_weights(ckpt['model'], old, cfg, how)
    linear.load_state(model, weights)
    moved = choose_moments(ckpt, how, cfg.transfer_moments, cfg.linear)
    moments = grow_moments(ckpt['optimizer'], old, cfg, how) if moved else None
    past['seconds'] += time.time() - t0
    if not quiet:
        say_grown(old, cfg, how, moved, cfg.dropout)
        x, y = real_tokens(cfg, cfg.dataset)
        worst, before, after = compare(small, model.eval(), x, y)
        model.train()
        print(f'on {x.numel():,} validation tokens: loss {before:.6f} -> {after:.6f},')
        print(f'largest logit difference {worst:.2e}', flush=True)
        past |= dict(logit_difference=worst, loss_before=before, loss_after=after)
        if how.exact and not worst <= EXACT:
            raise UserError(f'{past["method"]} should keep the function: {worst:.2e} is above {EXACT:g}')
    return moments, past
