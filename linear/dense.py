"""
A plain matrix.
"""

import torch
import torch.nn as nn

from linear.base import Layer, Matrix


class Dense(Layer, nn.Linear):
    """A plain matrix, `weight` (d_out, d_in): an nn.Linear, whose checkpoints it shares. `beside` holds the factors it is
    formed from, out of sight of parameters() and state_dict()."""

    beside = None
    forward = nn.Linear.forward

    def __init__(self, d_in, d_out, config=None, bias=False):
        nn.Linear.__init__(self, d_in, d_out, bias=bias)
        self.d_in, self.d_out, self.guide = d_in, d_out, None

    def reset_parameters(self):  # make() initialises; torch's own draw would only move the random stream
        pass

    def _apply(self, fn, recurse=True):  # .to(), .double() and the like reach the factors as well
        if self.beside is not None:
            self.beside[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def to_dense(self):
        return self.weight

    @torch.no_grad()
    def from_dense(self, W):
        self.weight.copy_(W)

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        self.weight.copy_(torch.randn(self.weight.shape, generator=gen) * std if W0 is None else W0)

    def macs(self):
        return self.d_in * self.d_out

    def form_macs(self):
        return 0

    def moves(self):
        return 0

    def describe(self):
        return 'dense'

    def decay_scale(self):
        return [1.0]

    def matrices(self):
        return dict(weight=Matrix(tuple(self.weight.shape), (0,), (1,), split=self.parts))
