"""
The contract of a linear layer: y = W x (+ bias), whatever W is made of.

A layer is one file of this folder with one class derived from Layer (most derive from structured.Structured, which has
the rates, decay and guide of the papers) and one line in LAYERS of __init__.py. The class says everything about the
layer: the config keys that it reads, its tensors, how they start, what they cost, how they are set from a given W, and
how a budget of parameters finds their sizes. A new layer works without a change elsewhere. (Few places outside this folder know a
layer by its name: what expands dense layers takes `expanded`, and what deals with mixtures knows `btt_moe`.)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn

from configurator import UserError


class Matrix(NamedTuple):
    """Which matrices a tensor holds, for an optimizer that treats matrices (Muon and the like). A matrix (m, n) maps n
    features to m. One tensor may be a batch of matrices, or several matrices one below the other."""

    shape: tuple  # of the tensor
    rows: tuple  # axes of view that together make the m rows (outputs)
    cols: tuple  # axes of view that together make the n columns (inputs)
    batch: tuple = ()  # axes of view that count independent matrices
    view: tuple = ()  # the tensor is first seen in this shape; empty: in its own
    split: tuple = ()  # rows of each matrix, where the tensor is several of them one below the other (q, k and v)

    def unfold(self, t) -> list:
        """t of self.shape -> [(batch, m, n)], one for each part of split. Views where torch can make them."""
        t = t.reshape(self.view or self.shape)
        size = lambda axes: math.prod(t.size(a) for a in axes)
        axes = (*self.batch, *self.rows, *self.cols)
        M = t.permute(axes).reshape(size(self.batch), size(self.rows), size(self.cols))
        return list(M.split(self.split, dim=1)) if self.split else [M]

    def fold(self, parts: list):
        """What unfold gave -> the tensor again."""
        view, axes = self.view or self.shape, (*self.batch, *self.rows, *self.cols)
        t = torch.cat(parts, dim=1).reshape([view[a] for a in axes])
        return t.permute([axes.index(a) for a in range(len(axes))]).reshape(self.shape)

    def per_row(self) -> 'Matrix':
        """The same matrices with a single column: a number for each row."""
        shape = tuple(1 if a in self.cols else n for a, n in enumerate(self.view or self.shape))
        return self._replace(shape=shape, view=())

    def per_column(self) -> 'Matrix':
        """The same matrices with a single row each, those of split as well: a number for each column."""
        ones = dict.fromkeys(self.rows, 1) | ({self.rows[0]: len(self.split)} if self.split else {})
        shape = tuple(ones.get(a, n) for a, n in enumerate(self.view or self.shape))
        return self._replace(shape=shape, view=(), split=(1,) * len(self.split))


class Layer(nn.Module):
    """A linear layer, built as Name(d_in, d_out, config) with a config that has at least the keys of Name.Keys.

    A layer must define __init__, forward, to_dense, from_dense, start, form_macs and traffic, and extend matrices; the rest
    has defaults. Its __init__ raises UserError for keys that do not fit its size (structured.fail). Attributes:
        d_in, d_out     features
        factors         nn.ParameterList: the tensors that W is made of (Dense has `weight` instead)
        bias            nn.Parameter (d_out) or None; make() sets it
        lr_scale        buffer: factor on learning_rate for each tensor in factors (n,), or one for all of them ()
        dense_lr_scale  the same for the dense layer in its place, and contained in lr_scale: 1, or less with mup_base
        decay           which decay_scale is meant: 'factors', 'product' or 'none'
        depths          for each factor, in a product of how many factors it stands in W
        guide           nn.Parameter (d_out, d_in) or None: a dense matrix that leads at the start, see structured.py
        parts           outputs of each part where the layer is several layers side by side: q, k and v of c_attn
    """

    @dataclass
    class Keys:
        """The config keys that the layer reads, each declared once with configurator.key. Two layers share a key by
        inheriting the class that declares it."""

    is_matrix = True  # False: no single W computes what the layer does (a mixture of experts)
    # True: from_dense gives the nearest W there is, or one within a proven bound; False: it iterates and stops near one
    closed_form = True
    # names of further methods (W) or (W, C) that set the factors, C = E[x x^T] of the layer's inputs x: each is a choice of
    # `transfer.py factorize --init`
    starts = ()
    # how a budget (factorize --params) finds sizes: every entry of variants() is tried, with the knob as large as fits
    sizes = ()  # names of the keys that choose the number of parameters
    knob = ''  # the key that makes the layer larger, in multiples of step(); empty: variants() are all there is
    # of a factor that is a batch of matrices. True: W is a sum over the batch (Kronecker terms); False: they are its blocks
    is_sum = False
    parts = ()
    dense_lr_scale = 1.0

    def __init__(self, d_in, d_out, shapes, lr_scale=1.0, decay='factors', depths=None):
        """shapes: of the factors. lr_scale: a number, or one for each. depths: with how many factors, itself included, each
        one is multiplied in W; default: all of them with each other."""
        super().__init__()
        self.d_in, self.d_out, self.decay = d_in, d_out, decay
        self.factors = nn.ParameterList(torch.empty(*s) for s in shapes)
        self.bias = None
        self.register_buffer('lr_scale', torch.tensor(lr_scale))
        self.guide = None
        self.depths = depths or [len(shapes)] * len(shapes)

    # ------------------------------------------------------------------------- what it computes

    def forward(self, x):
        """x (..., d_in) -> x @ W^T + bias (..., d_out), through the factors."""
        raise NotImplementedError(f'{type(self).__name__}.forward')

    def to_dense(self):
        """W (d_out, d_in), differentiable, in the dtype of the factors."""
        raise NotImplementedError(f'{type(self).__name__}.to_dense')

    def from_dense(self, W):
        """Set the factors so that to_dense() is W (d_out, d_in), or as near as it gets in the Frobenius norm. Where W has
        zero singular values the factors must still get gradients (structured.split_scales)."""
        raise NotImplementedError(f'{type(self).__name__}.from_dense')

    def start(self, W0, std, gen, residual=False):
        """Initialise for training from scratch. W0 (d_out, d_in): the matrix that the dense layer in its place starts from,
        or None; std: its standard deviation, 0 where it starts at zero; gen: the torch.Generator to draw from; residual: the
        layer writes to the residual stream, or is the head with mup_base, so that its output starts at zero where the
        papers say so."""
        raise NotImplementedError(f'{type(self).__name__}.start')

    # ------------------------------------------------------------------------- what it costs

    def macs(self) -> int:
        """Multiply-adds per token of forward. Default: each number of the factors once."""
        return sum(W.numel() for W in self.factors)

    def dense_macs(self) -> int:
        """Multiply-adds per token of forward through W, once that is formed."""
        return self.d_in * self.d_out

    def form_macs(self) -> int:
        """Multiply-adds of to_dense()."""
        raise NotImplementedError(f'{type(self).__name__}.form_macs')

    def traffic(self) -> int:
        """Features per token that forward writes and reads again between its input and its output."""
        raise NotImplementedError(f'{type(self).__name__}.traffic')

    def rank(self) -> int:
        """The rank of W for factors in general position, or an upper bound."""
        return min(self.d_in, self.d_out)

    def describe(self) -> str:
        """The shape that it has, in a few words."""
        return ', '.join('x'.join(map(str, W.shape)) for W in self.factors)

    # ------------------------------------------------------------------------- what an optimizer asks

    def matrices(self) -> dict:
        """{name of a parameter: Matrix} of the parameters that are matrices. One that is none (the values of a random
        sparse part, gains, a router) is not in it. Extend this dict, which has the guide."""
        W = self.guide
        return {} if W is None else dict(guide=Matrix(tuple(W.shape), (0,), (1,), split=self.parts))

    def decay_scale(self, rates=None) -> list:
        """Factors on weight_decay, one for each tensor in factors. AdamW shrinks every factor by 1 - lr wd, and so a product
        of N by its N-th power; decay = 'product' shrinks W as the dense layer in its place is shrunk, to first order in
        lr wd, whatever the rates are. rates: of the factors over that of a dense matrix, default AdamW's (lr_scale)."""
        rates = rates or [r / self.dense_lr_scale for r in self.lr_scale.expand(len(self.factors)).tolist()]
        return {
            'factors': [1.0] * len(rates),
            'product': [1 / (n * r) for n, r in zip(self.depths, rates)],
            'none': [0.0] * len(rates),
        }[self.decay]

    # ------------------------------------------------------------------------- what its keys mean

    @classmethod
    def problems(cls, config, sites: dict) -> list[str]:
        """What is wrong with the keys of config for the layers {name: (d_in, d_out)}, one line each. Default: build each
        size without memory, and report the UserError."""
        found = {}
        # each size once, under the name of its first layer
        for name, (d_in, d_out) in {d: (n, d) for n, d in reversed(sites.items()) if all(d)}.values():
            try:
                with torch.device('meta'):
                    cls(d_in, d_out, config)
            except UserError as e:
                found.setdefault(str(e), f'{e} (layer {name}, {d_in} -> {d_out})')
        return list(found.values())

    @classmethod
    def idle(cls, config) -> set:
        """Names of its own keys that have no effect, given the others."""
        return set()

    @classmethod
    def variants(cls, d_in: int, d_out: int) -> list[dict]:
        """The keys to try for a budget, for a largest layer d_in -> d_out with d_in <= d_out."""
        return [{}]

    @classmethod
    def step(cls, keys: dict) -> int:
        """The knob is a multiple of this, beside these keys."""
        return 1
