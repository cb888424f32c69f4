"""
A plain matrix.
"""

import torch
import torch.nn as nn

from linear.base import Layer, Matrix
from linear.kernels import vector


class Dense(Layer, nn.Linear):
    """A plain matrix, `weight` (d_out, d_in): an nn.Linear, whose checkpoints it shares."""

    def __init__(self, d_in, d_out, config=None, bias=False, **where):
        nn.Linear.__init__(self, d_in, d_out, bias=bias, **where)  # where: device, dtype
        self.d_in, self.d_out, self.guide = d_in, d_out, None

    def forward(self, x):
        if vector.fits(x, self.weight):
            return torch.ops.nanomorph.vector(x, self.weight, self.bias)
        return nn.functional.linear(x, self.weight, self.bias)

    def reset_parameters(self):  # make() initialises; torch's own draw would only move the random stream
        pass

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

    def traffic(self):
        return 0

    def describe(self):
        return 'dense'

    def matrices(self):
        return dict(weight=Matrix(tuple(self.weight.shape), (0,), (1,), split=self.parts))
