"""
A plain matrix.
"""

import torch
import torch.nn as nn


class Dense(nn.Linear):
    """A plain matrix. `beside` holds the factors it is formed from, out of sight of parameters() and state_dict()."""

    beside = None
    rate = 1.0  # factor on the learning rate

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

    def macs(self):
        return self.in_features * self.out_features
