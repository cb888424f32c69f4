"""
Optimizers of the blocks' matrices, behind one registry. An optimizer is one file, and one line in OPTIMIZERS.

    base.py      the contract: class Matrices. Which tensors are which matrices, their state, rates and decay
    muon.py      orthogonalized momentum
    normuon.py   Muon, each row divided by its running size
    composed.py  step_rule = composed: one step for all factors of a product, by a bound on what it does to the product
    product.py   step_rule = product: the matrix that factors form moves as a dense one, and the factors follow

A matrix optimizer moves the matrices of the blocks, as the layers state them (`matrices()`, linear/base.py). AdamW moves
everything else: embeddings, the head, norms, biases, gates, gains, routers, the values of a random sparse part. optim.py
holds both.
"""

import dataclasses
from dataclasses import dataclass, fields

import linear
from configurator import key
from optimizers import base
from optimizers.muon import Muon
from optimizers.normuon import NorMuon

OPTIMIZERS = {
    'adamw': None,  # no matrix optimizer: AdamW moves the matrices, too
    'muon': Muon,
    'normuon': NorMuon,
}
LEFT_OUT = dict(
    soap='is left out: the package pytorch_optimizer has it, but takes a batch of matrices for one tensor of three axes, and'
    ' renews its bases by decisions on the host, which a captured update cannot follow (docs/optimizers.md)'
)


@dataclass
class Choice:
    optimizer: str = key(
        'adamw',
        f"what moves the blocks' matrices: {', '.join(OPTIMIZERS)}; everything else stays with AdamW at learning_rate",
        group='optimizer',
    )


def gather() -> list:
    """(name, type, field) of Choice and of the keys of all matrix optimizers. The help of a key says which of them read it."""
    kinds = {name: kind for name, kind in OPTIMIZERS.items() if kind}
    found, readers = {f.name: f for f in fields(Choice)}, {}
    for name, kind in kinds.items():
        for f in fields(kind.Keys):
            if found.setdefault(f.name, f) is not f:
                other = readers.get(f.name, ['all'])[0]
                raise TypeError(
                    f"key '{f.name}' is declared twice, for {other} and for {name}: rename it, or let both Keys inherit"
                    ' the class that declares it'
                )
            readers.setdefault(f.name, []).append(name)
    shared, keys = {f.name for f in fields(base.Keys)}, []
    for f in found.values():
        of = 'not adamw: ' if f.name in shared else f'{", ".join(readers[f.name])}: ' if f.name in readers else ''
        meta = f.metadata | dict(help=of + f.metadata['help'], group='optimizer')
        keys.append((f.name, f.type, dataclasses.field(default=f.default, metadata=meta)))
    return keys


Keys = dataclasses.make_dataclass('Keys', gather())  # of all, flat; TrainConfig inherits it
Keys.__module__ = __name__


def problems(cfg) -> list[str]:
    """What is wrong with the keys of the optimizer, one line each."""
    if cfg.optimizer not in OPTIMIZERS:
        why = LEFT_OUT.get(cfg.optimizer, 'is unknown')
        return [f"optimizer = '{cfg.optimizer}': {why}; use one of {', '.join(OPTIMIZERS)}"]
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
