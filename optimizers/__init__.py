"""
The optimizer of a run, and those of the blocks' matrices behind one registry: each is one file, and one line in OPTIMIZERS.

    optim.py     what train.py steps: all parameters of a model, AdamW and the optimizer of the matrices; the schedule
    base.py      the contract: class MatrixOptimizer. Which tensors are which matrices, their state, rates and decay
    muon.py      orthogonalized momentum
    normuon.py   Muon, each row divided by its running size
    composed.py  step_rule = composed: one step for all factors of a product, by a bound on what it does to the product
    product.py   step_rule = product: the matrix that factors form moves as a dense one, and the factors follow

A matrix optimizer moves the matrices of the blocks, as the layers state them (`matrices()`, linear/base.py). AdamW moves
everything else: embeddings, the head, norms, biases, gates, gains, routers, the values of a random sparse part.
"""

from dataclasses import dataclass, fields

import linear
from configurator import gather, key, nearest
from optimizers import base
from optimizers.muon import Muon
from optimizers.normuon import NorMuon

OPTIMIZERS = {
    'adamw': None,  # no matrix optimizer: AdamW moves the matrices, too
    'muon': Muon,
    'normuon': NorMuon,
}


@dataclass
class Choice:
    optimizer: str = key(
        'adamw',
        f"what moves the blocks' matrices: {', '.join(OPTIMIZERS)}; everything else stays with AdamW at learning_rate",
        group='optimizer',
    )


def group(name: str, readers: list) -> str:
    return 'optimizer'


def begin(name: str, readers: list) -> str:
    """What the help of a key begins with: which optimizers read it."""
    shared = name in (f.name for f in fields(base.Keys))
    return 'not adamw: ' if shared else f'{", ".join(readers)}: ' if readers else ''


Keys = gather(Choice, OPTIMIZERS, group, begin)  # of all, flat; TrainConfig inherits it
Keys.__module__ = __name__


def problems(cfg) -> list[str]:
    """What is wrong with the keys of the optimizer, one line each."""
    if cfg.optimizer not in OPTIMIZERS:
        near = nearest(cfg.optimizer, OPTIMIZERS)
        return [f"optimizer = '{cfg.optimizer}': is unknown; use one of {', '.join(OPTIMIZERS)}{near}"]
    kind = OPTIMIZERS[cfg.optimizer]
    read = {'optimizer', *(f.name for f in fields(kind.Keys))} if kind else {'optimizer'}
    found, tell = [], lambda values: ', '.join(f'{k} = {v}' for k, v in values.items())
    defaults = {f.name: f.default for f in fields(Keys) if f.name not in read and getattr(cfg, f.name) != f.default}
    if given := {k: getattr(cfg, k) for k in defaults}:
        hint = '; a rate of their own for the matrices under AdamW is hidden_lr' if 'matrix_lr' in given else ''
        found.append(f'{tell(given)}: of no use with optimizer = {cfg.optimizer}; leave it at {tell(defaults)}{hint}')
    return found + (kind.problems(cfg) if kind else [])


def idle(cfg) -> list[str]:
    """Keys that mean nothing with this optimizer: the papers' rates of factors are AdamW's; a rule for the step of a product
    needs one in the blocks."""
    if cfg.optimizer == 'adamw':
        return []
    sites = linear.chosen(cfg)
    off = [] if 'lm_head' in sites else ['structured_lr']
    return off if sites.keys() - {'lm_head'} else [*off, 'step_rule']
