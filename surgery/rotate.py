"""
Expand one layer at a time (expansion_schedule = 'rotate').

Of the layers that linear_layers names, one is a product of factors and the others are plain matrices. Every
expansion_every iterations the factors are multiplied and dropped, and the next layer becomes a product that equals its
present matrix. The order is that of depth: block by block, attention before MLP, the head last, then from the start
again. The factors live beside the matrix (linear/factors.py). So the compiled graph, DDP's buckets and a captured
backward pass see the same dense model throughout, and training holds the factors, moments and gradients of only one
expansion.

The idea is from expansive networks (docs/references.md); the code of that work left these layers without a gradient
most of the time. Adam's moments of the two layers that change start anew (expansion_moments = 'reset') or are carried
over ('map': spread and gather). A layer that starts anew moves by the whole learning rate at its first step.
expansion_schedule = 'reset' is the control: a dense model with the same restarts at the same layers and iterations.
"""

import dataclasses
import functools
import math
import zlib
from dataclasses import dataclass

import torch
import torch.distributed as dist

import linear
from configurator import key
from linear.expanded import Expanded, float64
from linear.factors import Factors, matrices
from model import GPT
from optimizers import OPTIMIZERS
from surgery.hook import Hook
from surgery.operation import layer_of


@dataclass
class Keys:
    """Which layers are expanded at which iteration."""

    expansion_schedule: str = key(
        'all',
        'expanded layers: all of them, one after the other (rotate), or none, with the restarts of rotate (reset)',
        choices=('all', 'rotate', 'reset'),
        group='linear = expanded, which layers at which iteration: see surgery/rotate.py',
    )
    expansion_every: int = key(100, 'rotate, reset: iterations until the next layer', low=1)
    expansion_moments: str = key(
        'reset',
        "rotate: Adam's moments of the two layers that change start anew (reset) or are carried over (map)",
        choices=('reset', 'map'),
    )


def problems(cfg) -> list[str]:
    """What is wrong with a config that rotates, one line each."""
    what, found = f'expansion_schedule = {cfg.expansion_schedule}', []
    if cfg.expansion_schedule == 'all':
        return []
    if cfg.linear != 'expanded':
        return [f"{what}: takes the layers of linear = 'expanded' in turn, this is linear = '{cfg.linear}'"]
    ranks = [min(d) for d in linear.chosen(cfg).values()]
    if cfg.expansion_schedule == 'reset':
        if cfg.expansion_moments == 'map':
            found.append(f'{what}: restarts the moments, so expansion_moments cannot be map; leave it out')
        return found
    if cfg.expansion_init == 'gaussian':
        found.append('expansion_init = gaussian: would lose the matrix at every rotation; use orthogonal or svd')
    if cfg.linear_path == 'factored':
        found.append(f'linear_path = factored: {what} keeps the factors beside the matrix; use materialised or auto')
    if 0 < cfg.expansion < max(ranks):
        found.append(f'expansion = {cfg.expansion}: {what} must keep matrices of rank {max(ranks)}; use that or more')
    return found


def idle(cfg) -> tuple:
    """The keys that mean nothing at this expansion_schedule."""
    return dict(
        all=('expansion_every', 'expansion_moments'),
        rotate=(),
        reset=('expansion', 'expansion_depth', 'expansion_init', 'expansion_decay', 'expansion_lr', 'linear_path'),
    )[cfg.expansion_schedule]


def site_at(cfg, it: int) -> str:
    """The layer that is expanded at iteration it."""
    sites = list(linear.chosen(cfg))
    return sites[it // cfg.expansion_every % len(sites)]


def model_config(cfg, it: int = 0):
    """The config of the model as it is at iteration it: that of a checkpoint, so that any tool reads one."""
    if cfg.expansion_schedule == 'rotate':
        return dataclasses.replace(cfg, linear_layers=site_at(cfg, it), linear_path='materialised')
    return dataclasses.replace(cfg, linear='dense') if cfg.expansion_schedule == 'reset' else cfg


def shapes(cfg, path: str | None = None) -> tuple:
    """(the model of a config, the factors beside it) on the meta device, to count with. path: in place of its linear_path;
    step_rule = product takes the materialised one, as the optimizer does."""
    path = path or ('materialised' if cfg.step_rule == 'product' else None)
    cfg = dataclasses.replace(cfg, expansion_init='gaussian', expansion_lr='none')  # the others would look at values
    with torch.device('meta'):
        model = GPT(cfg)
        return model, Factors(model, cfg.tokens_per_iter, path=path)


def resumed(ckpt: dict) -> dict:
    """The keys that a resumed run needs and model_args lack: model_args describe the model of one iteration."""
    config = ckpt['config']
    if config.get('expansion_schedule', 'all') == 'all' or config['linear'] != 'expanded':
        return dict(expansion_schedule='all')
    return {k: v for k, v in config.items() if k in linear.all_keys() or k.startswith('expansion_')}


class Rotation(Hook):
    def __init__(self, cfg):
        self.cfg = cfg

    def after_update(self, model, optimizer, it):
        if it % self.cfg.expansion_every == 0:
            turn(self.cfg, model, optimizer, it)
        return False  # the network computes with the same matrices throughout

    def describe(self, model, optimizer):
        """Which layers take turns, and what one expansion costs compared with all and none."""
        cfg, sites = self.cfg, list(linear.chosen(self.cfg))
        turns = f'{len(sites)} layers take turns of {cfg.expansion_every} iterations ({", ".join(sites)})'
        if cfg.expansion_schedule == 'reset':
            return [f'{turns}: at each the moments of the last and of the next one start anew; nothing is expanded']
        dense = dataclasses.replace(cfg, linear='dense')
        pairs = (model, optimizer.factors), shapes(cfg, 'materialised'), shapes(dense)
        one, every, none = (f'{footprint(*pair, cfg.optimizer, cfg.step_rule) / 2**20:,.1f} MiB' for pair in pairs)
        return [
            f'{turns}: one is expanded, moments: {cfg.expansion_moments}',
            f'parameters, gradients, moments and products: {one} with one expansion, {every} with all, {none} with none',
        ]


@torch.no_grad()
def turn(cfg, model, optimizer, it: int):
    """Collapse the layer of the last iteration, expand the layer of the next one."""
    old, new = site_at(cfg, it - 1), site_at(cfg, it)
    if cfg.expansion_schedule == 'reset':  # in place: a captured update goes on with the same tensors
        optimizer.restart([f'{linear.module_name(site)}.weight' for site in (old, new)])
        return
    moments = optimizer.release()  # and the old factors with them: there are never two expansions
    collapse(cfg, optimizer.factors, old, moments)
    expand(cfg, model, optimizer.factors, new, moments, cfg.seed_model ^ it)
    model.config = model_config(cfg, it)
    optimizer.rebuild(moments)  # forms W


def collapse(cfg, factors: Factors, site: str, moments: dict):
    """Drop the factors of W and give their moments to W. W keeps the value that was formed last."""
    name = linear.module_name(site)
    layer = factors.pop(name)
    taken = [moments.pop(f'{name}.factors.{i}', {}) for i in range(layer.depth)]
    moments.pop(f'{name}.weight', None)  # with step_rule = product W has them, and starts anew as well
    if cfg.expansion_moments == 'map' and all(map(known, taken)):
        s = moments[f'{name}.weight'] = gather(layer, taken)
        broadcast([s['exp_avg'], s['exp_avg_sq']])


def expand(cfg, model, factors: Factors, site: str, moments: dict, seed: int):
    name = linear.module_name(site)
    layer = factors[name] = expansion(layer_of(model, site), cfg, site, seed)
    broadcast(layer.state_dict().values())
    taken = moments.pop(f'{name}.weight', {})
    if cfg.expansion_moments == 'map' and known(taken):
        for i, s in enumerate(spread(layer, taken, cfg.beta1, cfg.beta2)):
            broadcast([s['exp_avg'], s['exp_avg_sq']])
            moments[f'{name}.factors.{i}'] = s


@torch.no_grad()
def expansion(plain, config, site: str, seed: int) -> Expanded:
    """The factors of a plain layer. Their product is its present matrix (in float64 to 1e-13) if k is at least its
    rank. The random numbers come from a generator of its own."""
    layer = Expanded(plain.in_features, plain.out_features, config).to(plain.weight)
    gen = torch.Generator().manual_seed(seed ^ zlib.crc32(site.encode()))
    layer.start(plain.weight, None, gen)
    layer.lr_scale *= plain.dense_lr_scale
    layer.dense_lr_scale, layer.parts = plain.dense_lr_scale, plain.parts
    return layer


def broadcast(tensors):
    """Give all processes the values of rank 0: their processors may round a decomposition differently."""
    for v in tensors:
        if dist.is_initialized():
            dist.broadcast(v, 0)


# -----------------------------------------------------------------------------
# moments


def known(state: dict) -> bool:
    return bool(state) and state['step'].item() > 0


def around(layer, j: int):
    """(A, B) with W = A F B for F = factors[j]: the products of the factors above (d_out, .) and below (., d_in) it."""
    factors = [W.detach() for W in layer.factors]

    def product(part, n):
        return functools.reduce(torch.matmul, reversed(part)) if part else torch.eye(n).to(factors[0])

    return product(factors[j + 1 :], layer.d_out), product(factors[:j], layer.d_in)


def spread(layer, state: dict, beta1: float, beta2: float) -> list[dict]:
    """Moments of W -> moments of its factors W = A F B, whose gradient is A^T G B^T.
    The first moment is linear in G: A^T m B^T. The second takes G's noise as independent from entry to entry and its
    mean from m, as LDAdam does for a change of subspace (Robert et al. 2024, arXiv 2410.16103): bias-corrected,
    v -> (A*A)^T (v - m*m) (B*B)^T + (A^T m B^T)^2, exact for a constant gradient and for independent noise."""
    t = state['step'].item()
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    mean = state['exp_avg'] / c1
    noise = (state['exp_avg_sq'] / c2 - mean**2).clamp(min=0)
    out = []
    for j in range(layer.depth):
        A, B = around(layer, j)
        m = A.T @ mean @ B.T
        v = (A**2).T @ noise @ (B**2).T + m**2
        out.append(dict(step=state['step'].clone(), exp_avg=c1 * m, exp_avg_sq=c2 * v))
    return out


def gather(layer, states: list[dict]) -> dict:
    """Moments of the factors -> moments of W. First moment: the G whose image A^T G or G B^T is that of the factor on
    the smaller side of W, by least squares; exact where the factors hardly moved over the 1/(1 - beta1) steps that it
    averages. Second moment: an estimate. Summed over the inner width, the last factor's is the sum over each row of G^2
    and the first factor's over each column (exact where the factors in between are orthonormal); W's is their outer
    product over the total, as in Adafactor (Shazeer & Stern 2018, arXiv 1804.04235)."""
    A, B = around(layer, 0)[0], around(layer, layer.depth - 1)[1]  # (d_out, k), (k, d_in)
    first, last = states[0], states[-1]
    if layer.d_in <= layer.d_out:
        m = last['exp_avg'] @ right_inverse(B.T)
    else:
        m = (first['exp_avg'].T @ right_inverse(A)).T.contiguous()  # as W lies: a fused AdamW refuses anything else
    rows = last['exp_avg_sq'].sum(1) * (layer.d_in / B.square().sum().clamp(min=1e-30))
    columns = first['exp_avg_sq'].sum(0) * (layer.d_out / A.square().sum().clamp(min=1e-30))
    total = (rows.sum() * columns.sum()).sqrt().clamp(min=1e-30)
    return dict(step=last['step'].clone(), exp_avg=m, exp_avg_sq=torch.outer(rows, columns) / total)


def right_inverse(X):
    """X^+ (k, d) of a wide X (d, k), in float64: in float32 products on a GPU are in TF32."""
    wide = float64(X)
    return (wide.T @ torch.linalg.pinv(wide @ wide.T, hermitian=True)).to(X)


# -----------------------------------------------------------------------------
# memory


def footprint(model, beside=None, optimizer='adamw', step_rule='factor') -> int:
    """Bytes that training holds for any batch size, in float32: parameters and gradients of the network and of the
    factors beside it, the products of the factors, and the optimizer's state: Adam's two moments of the tensors that it
    updates; of the blocks' matrices the averages of another optimizer, without its numbers for each row or column. With
    step_rule = product W has the averages, and its factors have no gradient either."""
    weights, beside = sum(p.numel() for p in model.parameters()), beside or {}
    products = sum(m.d_in * m.d_out for m in beside.values())
    factors = sum(W.numel() for m in beside.values() for W in m.parameters())
    held = 2 * (weights + factors) + products + 2 * (weights - products + factors)
    kind = OPTIMIZERS[optimizer]
    for name, m, found in matrices(model, beside) if kind else ():
        if name.startswith('transformer.h.'):
            size, n = sum(math.prod(M.shape) for M in found.values()), len(kind.averages)
            held -= 3 * size - n * m.d_in * m.d_out if step_rule == 'product' and name in beside else (2 - n) * size
    return 4 * held
