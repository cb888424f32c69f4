"""
Every way to parameterize a linear layer of the blocks, behind one registry.

    dense.py           a plain matrix
    expanded.py        a matrix as a product of larger ones
    structured.py      what structured layers share, and the two-factor einsum family
    tensor_train.py    tensor trains of three cores and more
    block_diagonal.py  blocks on the diagonal
    moe.py             mixtures of experts: inside a layer (btt_moe), and of whole MLPs
    factors.py         the factors of a model, in it or beside it: what the optimizer moves, forming W
    kernels/           products that torch does not have

A layer maps x (..., d_in) to y (..., d_out), y = x W^T + b, and is made by `make(config, site, ...)`, where a site is a
name such as 'h.0.mlp.c_fc'. The contract of a member of LINEAR, an nn.Module built as Member(d_in, d_out, config):

    forward(x)          x @ W^T + bias through its own factors
    to_dense()          W (d_out, d_in), differentiable, in the factors' dtype
    from_dense(W)       set the factors so that to_dense() is W, or as near as the member can come
    start(W0, std, gen, residual)  initialise: W0 is the matrix the dense twin starts from, std its target, gen a
                        torch.Generator, residual: the layer writes to the residual stream
    macs()              multiply-adds per token of forward
    form_macs()         multiply-adds to form W once
    moves()             features per token that forward writes and reads again between its input and its output
    decay_scale()       factors on weight_decay, one per factor
    lr_scale            buffer: factors on the learning rate, one per factor or one for all
    describe()          the shape it has chosen, in a few words

There are two ways to train such a layer (`linear_path`):
  factored       the member stays in the model and pushes activations through its factors.
  materialised   the member is taken out of the model (factors.Factors), a plain matrix W stands in its place, so the
                 compiled graph, DDP and accumulation see a dense model. Once per optimizer step the chain rule turns
                 W's gradient into the factors' gradients, the optimizer moves the factors and W is formed again.
Both give the same gradients; `auto` takes the cheaper by `choose_path`.
"""

import fnmatch
import math
import zlib

import torch
import torch.nn as nn

from configurator import UserError
from linear import block_diagonal, moe, structured, tensor_train
from linear.dense import Dense
from linear.expanded import Expanded

MOVE = 240  # multiply-adds in the time that one bfloat16 is written or read: an H100 does 7e14/2 of the one, 2.9e12/2 of the
# other a second (measured)
MEMBERS = {name: structured.Einsum for name in structured.SHAPES}  # structured matrices
MEMBERS |= {'tensor_train': tensor_train.by_cores, 'block_diagonal': block_diagonal.BlockDiagonal}
LINEAR = {'dense': Dense, 'expanded': Expanded} | MEMBERS | {'btt_moe': moe.BttMoE}


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


def path(site: str) -> str:
    """The name of a site's layer in the model."""
    return site if site == 'lm_head' else f'transformer.{site}'


def patterns(linear_layers: str) -> list[str]:
    """'mlp+attn' or globs over sites, joined by + or commas."""
    short = {'mlp': 'h.*.mlp.*', 'attn': 'h.*.attn.*', 'head': 'lm_head'}
    return [short.get(p.strip(), p.strip()) for p in linear_layers.replace('+', ',').split(',')]


def chosen(config) -> dict[str, tuple[int, int]]:
    """The sites that linear_layers names and keep_dense does not."""
    if config.linear == 'dense':
        return {}
    found = sites(config)
    take, keep = (
        {n for p in patterns(v) for n in fnmatch.filter(found, p)} for v in (config.linear_layers, config.keep_dense)
    )
    return {n: d for n, d in found.items() if n in take - keep}


def problems(config) -> list[str]:
    """What is wrong with the keys of a config that shape its linear layers, one line each."""
    if config.linear == 'dense' or config.linear not in LINEAR:
        return []
    found = []
    for k in ('linear_layers', 'keep_dense'):
        for p in patterns(getattr(config, k)):
            if p and not fnmatch.filter(sites(config), p):
                globs = ', '.join(s.replace('h.0.', 'h.*.') for s in sites(config) if s.startswith('h.0.'))
                head = ' or head' if not config.tie_head else ' (the head is one only with tie_head = False)'
                found.append(
                    f"{k} = '{getattr(config, k)}': '{p}' matches no layer; use mlp, attn, mlp+attn{head}, or globs over"
                    f' {globs}'
                )
    if config.linear == 'btt_moe' and config.linear_path == 'materialised':
        found.append('linear_path = materialised: a mixture (linear = btt_moe) is no matrix; use factored or auto')
    if config.linear == 'expanded' and config.expansion_init == 'orthogonal' and 0 < config.expansion < config.n_embd:
        found.append(
            f'expansion = {config.expansion}: expansion_init = orthogonal needs expansion >= n_embd ({config.n_embd});'
            ' use svd (keeps the best rank-k part) or gaussian'
        )
    if not found and config.linear not in ('dense', 'expanded'):
        for name, (d_in, d_out) in {d: (n, d) for n, d in reversed(chosen(config).items()) if all(d)}.values():
            try:
                with torch.device('meta'):
                    LINEAR[config.linear](d_in, d_out, config)
            except UserError as e:
                found.append(f'{e} (layer {name}, {d_in} -> {d_out})')
    return found


def make(config, site: str, d_in: int, d_out: int, residual: bool = False) -> nn.Module:
    """The layer of a site. residual: it writes to the residual stream, so its std is 0.02/sqrt(2*n_layer) (GPT-2);
    otherwise 0.02. W0 comes from the global random stream, as the dense twin's; factors draw from one of their own.
    With mup_base the std is that of the mu-parametrization and rates fall with width (Yang & Hu 2021, arXiv 2203.03466).
    """
    bias = config.bias and site != 'lm_head'
    layer = Dense(d_in, d_out, bias=bias)
    std = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
    rate = 1.0
    if config.mup_base and site != 'lm_head':
        std, rate = structured.gemm_std(d_in, d_out), config.mup_base / config.n_embd
    nn.init.normal_(layer.weight, mean=0.0, std=std)
    if config.mup_base and residual:
        nn.init.zeros_(layer.weight)
    layer.rate = rate
    if bias:
        nn.init.zeros_(layer.bias)
    if site not in chosen(config):
        return layer
    member = LINEAR[config.linear](d_in, d_out, config)
    member.start(
        layer.weight.data,
        std,
        torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32(site.encode())),
        residual,
    )
    member.lr_scale *= rate
    member.rate = rate
    if config.guide_iters and hasattr(member, 'follow'):
        member.follow(layer.weight.data)
    member.bias = layer.bias
    return member


def choose_path(config, member, tokens: float, path: str | None = None) -> str:
    """How to train a layer: by the path given, by linear_path, or, for auto, the cheaper way at so many tokens T a step:
    through the factors if T*(macs() + MOVE*moves()) is below T*d_in*d_out + form_macs(); backward doubles both sides."""
    path = path or config.linear_path
    if config.linear == 'btt_moe':  # no matrix could stand for it
        return 'factored'
    if path != 'auto':
        return path
    per_token = member.macs() + MOVE * member.moves() - member.d_in * member.d_out
    return 'factored' if per_token < member.form_macs() / tokens else 'materialised'
