"""
How one matrix becomes a larger one: the width methods of growth.py, which lists them.

An axis of a tensor (the residual stream, the heads, the hidden units) grows by an `Axis`, which says what each new unit
copies and how copies are written and read. Most methods are `copy` with some choice of axes, or start from it.
"""

import functools
import math
from typing import NamedTuple

import torch

from linear import module_name
from linear.expanded import orthonormal

# -----------------------------------------------------------------------------
# how an axis grows


class Axis(NamedTuple):
    """Unit i of the new axis (D) copies unit[i] of the old one (d). What is written into the copy is multiplied by
    write[i], what reads from it by read[i]; over the copies of a unit, write * read sums to 1.

    Hence W' = write W read in the weights, and in their gradients G' = read G write (the chain rule swaps the roles),
    so the same two numbers move Adam's moments. unit[i] = d is padding."""

    unit: torch.Tensor  # (D,) integers
    write: torch.Tensor  # (D,)
    read: torch.Tensor  # (D,)
    pad: str = 'zero'  # what padding holds: 'zero', or the 'mean' over the old units


# which old unit (of d) each new one (of D) copies, (D,); gen: of the random choices


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
    """The axis whose n copies of a unit are each read through 1 / n."""
    count = torch.bincount(unit)[unit].double()
    write = torch.zeros_like(count) + write
    return Axis(unit, write, 1 / (count * write))


def raw(unit) -> Axis:
    """The axis whose copies are read as they are: nothing is divided."""
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
    power = 0.5 if old.mup_base else 0.25  # attention divides by the head width, or by its root; q and k share that
    scale = (H / h) ** power * torch.bincount(dim)[dim].double() ** -0.5
    rows = lambda heads: (heads[:, None] * h + dim).flatten()
    return dict(
        q=copied(rows(q), scale.repeat(len(q))),
        k=copied(rows(kv), scale.repeat(len(kv))),
        v=copied(rows(kv)),
        heads=copied(rows(q)),
    )


def stream_axes(old, new, unit, pad: int) -> dict[str, Axis]:
    """The axes of the residual stream: stream (embeddings and projections write it; a norm reads it), normed (after
    ln_1 and ln_2), final (after ln_f), logits (an untied head reads it), the weights and biases of the norms. The last
    `pad` units are padding.

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
    mup = d / D if old.mup_base and old.tie_head else 1.0  # what the model itself does to the logits as it grows
    fin = (share / c / mup if old.norm_affine else c * one) if old.tie_head else out * one  # tied: copies read whole
    return dict(
        stream=Axis(unit, c * one, share / c, mean),
        normed=Axis(unit, out * here, share / out * here),
        final=Axis(unit, fin * here, share / fin * here),
        logits=Axis(unit, fin * mup * here, share / fin / mup * here),
        scale=Axis(unit, one / c, share * c, 'mean'),  # of a norm; padding may have any weight
        shift=Axis(unit, here, share * here),
        final_scale=Axis(unit, fin / c, share / fin * c, 'mean'),
        post=Axis(unit, one, share, 'mean'),
    )


def axes(old, new, layer: int, source: int, how) -> dict[str, Axis]:
    """{name: Axis} of block `layer` of the new model, made from block `source` of the old; how: weights.How."""
    gen = torch.Generator().manual_seed(how.seed * 1_000_003 + layer)
    f, F = old.hidden(source), new.hidden(layer)
    d, D = old.n_embd, new.n_embd
    if how.width == 'double':
        g, G = ((c.n_kv_head or c.n_head) * (c.n_embd // c.n_head) for c in (old, new))
        stream, kv, hidden = raw(adjacent(d, D, gen)), raw(adjacent(g, G, gen)), raw(adjacent(f, F, gen))
        names = ('stream', 'normed', 'final', 'logits', 'scale', 'shift', 'final_scale', 'post', 'q', 'heads')
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
TENSORS |= {'ln_f.weight': ('>final_scale',), 'ln_f.bias': ('>final',), 'lm_head.weight': ('', '<logits')}


def lift(W, sides, moment=0):
    """W with its axes grown. sides: (Axis, or None for one that stays; '>' writes or '<' reads) of each dimension. moment: 0 for
    weights, 1 for an average of gradients, 2 for one of squared gradients."""
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
    how: tuple  # weights.How
    gen: torch.Generator

    @property
    def is_linear(self):
        return self.name.rsplit('.', 1)[0] in LINEARS

    @property
    def shape(self) -> list:
        """That of the larger matrix."""
        return [n if axis is None else len(axis.unit) for n, (axis, _) in zip(self.W.shape, self.sides)]


def copy(p: Part):
    return padded(p, lift(p.W, p.sides) + paired_noise(p))


def padded(p: Part, W):
    """Give the weights that read padding small random values: padding is exactly 0, so the function stays, and weights
    of 0 would never learn."""
    axis, way = p.sides[-1]
    if way == '<' and axis is not None and W.dim() == 2:
        pad = axis.unit == p.W.size(1)
        W[:, pad] = 0.02 * torch.randn(len(W), int(pad.sum()), generator=p.gen, dtype=W.dtype)
    return W


def paired_noise(p: Part):
    """Noise: +N on one copy of a column, -N on the next (an odd last copy gets none), N independent in every row. The
    sum of the copies stays, and so does the function."""
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
    """bert2bert's advanced knowledge initialization: later copies of a unit are taken from the layer above."""
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
    """tile(W)/n has the singular values of W, and zeros. The fitted tail replaces the zeros. Its singular vectors are
    random, but average to zero over copies: the right ones give zero for duplicated activations, so the function
    stays."""
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
    shape = p.shape
    if len(shape) == 1:
        return fresh_vector(p)
    s = torch.linalg.svdvals(p.W.double())
    s = s * lift(p.W, p.sides).norm() / p.W.norm()  # embeddings, copied but never divided, grow by sqrt(n)
    s = torch.cat((s, fitted_tail(s, min(shape) - len(s))))
    U, V = (orthonormal(n, len(s), p.gen) for n in shape)
    return ((U * s) @ V.T).to(p.W.dtype)


def fresh_vector(p: Part):
    """A norm, gate or bias as a new model has it."""
    return torch.full(p.shape, 0.0 if p.name.endswith('bias') else 1.0, dtype=p.W.dtype)


def one_hot(p: Part):
    """The identity padding of small-to-large transfer: zeros around the small matrix, then 1 where the diagonal is 0.
    New columns of the embeddings (and the head) are random; new entries of norms and biases are as in a new model."""
    shape = p.shape
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
    return orthonormal(D, D, torch.Generator().manual_seed(seed))


def random_lift(p: Part):
    """A control: clone, then turn the residual stream into a random basis (after fold_norms). With RMSNorm that keeps
    the function, except for the ln_f of a tied head. With LayerNorm it does not: the mean depends on the basis."""
    W = copy(p)
    if p.axes[0] in ('>scale', '>final_scale', '>post'):
        return torch.full_like(W, W.mean())
    for dim, name in enumerate(p.axes):
        if name[1:] in ('stream', 'normed', 'final', 'logits', 'shift'):
            R = rotation(W.size(dim), p.how.seed).to(W.dtype)
            W = torch.tensordot(W, R, ([dim], [1])).movedim(-1, dim)
    return W


def fold_norms(small: dict, config) -> dict:
    """The same function with norm weights of 1: the matrices that read a norm's output take its weights. A tied head
    cannot take them, so ln_f keeps its own."""
    small, readers = dict(small), {}  # {norm: the sites that read it}
    for i in range(config.n_layer):
        readers[f'h.{i}.ln_1'] = [f'h.{i}.attn.c_attn']
        readers[f'h.{i}.ln_2'] = [f'h.{i}.mlp.c_fc', f'h.{i}.mlp.c_gate']
    if not config.tie_head:
        readers['ln_f'] = ['lm_head']
    for norm, sites in readers.items():
        weight, bias = f'transformer.{norm}.weight', f'transformer.{norm}.bias'
        if weight not in small:
            continue
        g, small[weight] = small[weight], torch.ones_like(small[weight])
        for name in (f'{module_name(site)}.weight' for site in sites):
            if name in small:
                small[name] = small[name] * g
        if bias in small:
            small[bias] = small[bias] / g
    return small


class Width(NamedTuple):
    """A width method."""

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
    'ligo': Width(copy),  # how it starts; ligo.py learns the rest
    'double': Width(copy, symmetric=True),
    'one_hot': Width(one_hot),
    'spectrum_random': Width(spectrum_random),
    'random_lift': Width(random_lift, noise=True, symmetric=True),
    'shuffle': Width(shuffle),
}
