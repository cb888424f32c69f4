"""
Every way to parameterize a linear layer, behind one registry. A layer is one file, and one line in LAYERS.

    base.py            the contract: class Layer, complete, with defaults; Matrix: which matrices a tensor holds
    dense.py           a plain matrix
    expanded.py        a matrix as a product of larger ones
    structured.py      what structured layers share: keys, rates, decay, cap, guide, helpers
    einsum.py          the two-factor einsum family, any point of it
    low_rank.py        a point of the family: W = B A
    block_dense.py     a point of the family: block-diagonal, then dense
    monarch.py         a point of the family: two block-diagonal factors around a permutation
    btt.py             a point of the family: Block Tensor-Train
    kronecker.py       a point of the family: Kronecker products and their sums
    tensor_train.py    tensor trains; with two cores a point of the family
    block_diagonal.py  blocks on the diagonal
    btt_moe.py         a mixture of Block Tensor-Trains inside a layer
    blast.py           blocks that share factors, with diagonal couplings
    low_rank_sparse.py low rank plus a sparse matrix on a fixed random support
    own/NAME.py        a layer that needs no line in LAYERS: entries of the board (docs/track.md) begin there
    moe.py             routing, and the mixture of whole MLPs
    factors.py         the factors of a model, in it or beside it: what the optimizer moves, forming W
    kernels/           products that torch does not have

A layer maps x (..., d_in) to y (..., d_out), y = x W^T + b. In a GPT it is made by `make(config, site, ...)`, where a site
is a name such as 'h.0.mlp.c_fc'. This folder and configurator.py also work alone, in another project:

    import torch, linear
    layer = linear.LAYERS['btt'](64, 128, linear.Keys(rank=2))
    layer.start(None, 0.02, torch.Generator().manual_seed(0))  # its tensors are empty before
    y = layer(torch.randn(10, 64))

There are two ways to train such a layer (`linear_path`):
  factored       the layer stays in the model and pushes activations through its factors.
  materialised   the layer is taken out of the model (factors.Factors), a plain matrix W stands in its place, so the
                 compiled graph, DDP and accumulation see a dense model. Once per optimizer step the chain rule turns
                 W's gradient into the factors' gradients, the optimizer moves the factors and W is formed again.
Both give the same gradients; `auto` takes the cheaper by `choose_path`.
"""

import dataclasses
import fnmatch
import importlib
import math
import traceback
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn

from configurator import UserError, gather, key
from linear import moe, structured
from linear.base import Layer
from linear.blast import Blast
from linear.block_dense import BlockDense
from linear.block_diagonal import BlockDiagonal
from linear.btt import BTT
from linear.btt_moe import BttMoE
from linear.dense import Dense
from linear.einsum import Einsum
from linear.expanded import Expanded
from linear.kronecker import Kronecker
from linear.low_rank import LowRank
from linear.low_rank_sparse import LowRankSparse
from linear.monarch import Monarch
from linear.tensor_train import TensorTrain

LAYERS = {
    'dense': Dense,
    'expanded': Expanded,
    'einsum': Einsum,
    'low_rank': LowRank,
    'block_dense': BlockDense,
    'monarch': Monarch,
    'btt': BTT,
    'kronecker': Kronecker,
    'tensor_train': TensorTrain,
    'block_diagonal': BlockDiagonal,
    'btt_moe': BttMoE,
    'blast': Blast,
    'low_rank_sparse': LowRankSparse,
}


def own_layers() -> dict:
    """{file name: layer} of the files in linear/own/, each with one layer."""
    folder, found = Path(__file__).parent / 'own', {}
    for name in sorted(path.stem for path in folder.glob('*.py')):
        path = folder / f'{name}.py'
        try:
            made = vars(importlib.import_module(f'{__name__}.own.{name}')).values()
        except Exception as e:  # whatever it is, it is that of a file which every command loads
            at = [f', line {f.lineno}' for f in traceback.extract_tb(e.__traceback__) if Path(f.filename) == path][-1:]
            raise UserError(
                f'{path}{"".join(at)}: {type(e).__name__}: {e}; mend this layer, or take the file out of the folder'
            ) from None
        layers = [
            v for v in made if isinstance(v, type) and issubclass(v, Layer) and v.__module__.endswith(f'own.{name}')
        ]
        if len(layers) != 1 or name in LAYERS:
            raise UserError(
                f'{path}: must define one class derived from Layer, and have a name that no other layer has; mend it, or take'
                ' the file out of the folder'
            )
        found[name] = layers[0]
    return found


LAYERS |= own_layers()
# multiply-adds in the time that one bfloat16 is written or read: an H100 does 7e14/2 of the one, 2.9e12/2 of the other a second
# (measured)
MOVE = 240


# -----------------------------------------------------------------------------
# keys


@dataclass
class Common:
    """Which layer stands where, and how it is computed."""

    linear: str = key('dense', 'parameterization of the layers named by linear_layers', choices=tuple(LAYERS))
    linear_layers: str = key(
        'mlp', 'where: mlp, attn, head (untied only), or globs such as h.*.mlp.c_fc, joined by + or commas'
    )
    keep_dense: str = key('', 'layers to leave dense all the same, such as h.0.*; as linear_layers')
    linear_path: str = key(
        'auto',
        'form W once per step (materialised), push activations through the factors (factored), or the cheaper on a GPU',
        choices=('auto', 'materialised', 'factored'),
    )
    fuse_mlp: bool = key(
        True, "on a GPU: compute an MLP's activation inside the products of its layers, dense or factored, without bias"
    )
    mup_base: int = key(
        0,
        'mu-parametrization: n_embd at which learning_rate was tuned, with this same key (at that width too its start and'
        ' its attention scale are not the standard ones); 0: off',
        low=0,
    )


def group(name: str, readers: list) -> str:
    """The heading of a key in --help: which layers read it."""
    if name in (f.name for f in dataclasses.fields(structured.Keys)):
        return 'structured layers'
    who = ', '.join(readers)
    return f'linear = {who}' if who else 'linear layers'


Keys = gather(Common, LAYERS, group)  # of all layers, flat; GPTConfig inherits it
Keys.__module__ = __name__
CHOOSING = ('linear', 'linear_layers', 'keep_dense', 'linear_path')  # mean something for every layer but a dense one


def keys_of(name: str) -> list[str]:
    """The keys that say how the layers of linear = name are parameterized."""
    return [] if name == 'dense' else [*CHOOSING, *(f.name for f in dataclasses.fields(LAYERS[name].Keys))]


def all_keys() -> list[str]:
    """All keys that say how a linear layer is parameterized, and nothing else of a model (as those of mlp = moe do)."""
    others = {f.name for f in dataclasses.fields(moe.Experts)}
    return [k for k in dict.fromkeys(k for name in LAYERS for k in keys_of(name)) if k not in others]


# -----------------------------------------------------------------------------
# choosing and making


def sites(config) -> dict[str, tuple[int, int]]:
    """{name: (d_in, d_out)} of all linear layers of the blocks, and of the head where it is a layer of its own."""
    n = config.n_embd
    kv = 2 * n * (config.n_kv_head or config.n_head) // config.n_head
    found = {}
    for i in range(config.n_layer):
        hidden = config.hidden(i)
        found |= {f'h.{i}.attn.c_attn': (n, n + kv), f'h.{i}.attn.c_proj': (n, n)}
        if config.mlp == 'moe':
            continue
        found[f'h.{i}.mlp.c_fc'] = (n, hidden)
        if config.mlp == 'swiglu':
            found[f'h.{i}.mlp.c_gate'] = (n, hidden)
        found[f'h.{i}.mlp.c_proj'] = (hidden, n)
    if not config.tie_head:
        found['lm_head'] = (n, config.vocab_size)
    return found


def module_name(site: str) -> str:
    """The name of a site's layer in the model, for get_submodule."""
    return site if site == 'lm_head' else f'transformer.{site}'


def patterns(linear_layers: str) -> list[str]:
    """The globs over sites of a text such as 'mlp+attn' or 'h.0.*,lm_head'."""
    short = {'mlp': 'h.*.mlp.*', 'attn': 'h.*.attn.*', 'head': 'lm_head'}
    return [short.get(p.strip(), p.strip()) for p in linear_layers.replace('+', ',').split(',')]


def chosen(config) -> dict[str, tuple[int, int]]:
    """The sites that linear_layers names and keep_dense does not."""
    if config.linear == 'dense':
        return {}
    found = sites(config)
    match = lambda globs: {site for p in patterns(globs) for site in fnmatch.filter(found, p)}
    take = match(config.linear_layers) - match(config.keep_dense)
    return {site: d for site, d in found.items() if site in take}


def problems(config) -> list[str]:
    """What is wrong with the keys of a config that shape its linear layers, one line each."""
    if config.linear == 'dense' or config.linear not in LAYERS:
        return []
    found = []
    every = sites(config)
    for k in ('linear_layers', 'keep_dense'):
        for p in patterns(getattr(config, k)):
            if p and not fnmatch.filter(every, p):
                globs = ', '.join(s.replace('h.0.', 'h.*.') for s in every if s.startswith('h.0.'))
                head = ' or head' if not config.tie_head else ' (the head is one only with tie_head = False)'
                found.append(
                    f"{k} = '{getattr(config, k)}': '{p}' matches no layer; use mlp, attn, mlp+attn{head}, or globs over"
                    f' {globs}'
                )
    if not LAYERS[config.linear].is_matrix and config.linear_path == 'materialised':
        found.append(f'linear_path = materialised: linear = {config.linear} is no matrix; use factored or auto')
    if not found and not chosen(config):
        found.append(
            f"linear_layers = '{config.linear_layers}' and keep_dense = '{config.keep_dense}' leave no layer to linear ="
            f' {config.linear}; name some in linear_layers, as mlp+attn, or use linear = dense'
        )
    return found or LAYERS[config.linear].problems(config, chosen(config))


def plain_first(kind: str) -> str:
    """What to do with layers of this kind where only plain matrices serve."""
    if LAYERS[kind].is_matrix:
        return 'collapse it first: python transfer.py collapse'
    return 'such a layer is no matrix, so no plain model computes the same'


def make(config, site: str, d_in: int, d_out: int, residual: bool = False, parts=()) -> nn.Module:
    """The layer of a site. residual: it writes to the residual stream, so its std is 0.02/sqrt(2*n_layer) (GPT-2);
    otherwise 0.02. parts: outputs of each part where it is several layers side by side (q, k and v). The matrix that the dense
    layer would start from comes from torch's global generator whatever the layer is; factors draw from one of their own.

    With mup_base (mu-parametrization, Yang & Hu 2021, arXiv 2203.03466) the rate of every matrix is mup_base / n_embd of
    learning_rate. Matrices start with gemm_std, those that write to the residual stream at zero; an untied head starts with
    0.02 mup_base / n_embd, a structured one at zero. Attention divides by the head width / 8 instead of its root. At
    n_embd = mup_base the rates are the standard ones; the starts, and attention unless heads are 64 wide, are not.
    """
    bias, head = config.bias and site != 'lm_head', site == 'lm_head'
    dense = Dense(d_in, d_out, bias=bias)
    lr_scale = structured.dense_lr_scale(config)
    std = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
    if config.mup_base and head:
        std *= lr_scale
    elif config.mup_base:
        std = 0.0 if residual else structured.gemm_std(d_in, d_out)
    nn.init.normal_(dense.weight, mean=0.0, std=std)
    dense.dense_lr_scale, dense.parts = lr_scale, tuple(parts)
    if bias:
        nn.init.zeros_(dense.bias)
    if site not in chosen(config):
        return dense
    layer = LAYERS[config.linear](d_in, d_out, config)
    layer.start(
        dense.weight.data,
        std,
        torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32(site.encode())),
        residual or bool(config.mup_base and head),
    )
    layer.lr_scale *= lr_scale
    layer.dense_lr_scale, layer.parts = lr_scale, tuple(parts)
    if config.guide_iters and hasattr(layer, 'follow'):
        layer.follow(dense.weight.data)
    layer.bias = dense.bias
    return layer


def choose_path(config, layer, tokens: float, path: str | None = None) -> str:
    """How to train a layer: by the path given, by linear_path, or, for auto, the cheaper way at so many tokens T a step:
    through the factors if T*(macs() + MOVE*traffic()) is below T*d_in*d_out + form_macs(); backward doubles both sides."""
    path = path or config.linear_path
    if not layer.is_matrix:  # none could stand for it
        return 'factored'
    if path != 'auto':
        return path
    per_token = layer.macs() + MOVE * layer.traffic() - layer.d_in * layer.d_out
    return 'factored' if per_token < layer.form_macs() / tokens else 'materialised'
