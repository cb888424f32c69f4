"""
A plain matrix.
"""

import torch
import torch.nn as nn


class Dense(nn.Linear):
    """A plain matrix."""

    rate = 1.0  # factor on the learning rate

    def reset_parameters(self):  # make() initialises; torch's own draw would only move the random stream
        pass

    def to_dense(self):
        return self.weight

    @torch.no_grad()
    def from_dense(self, W):
        self.weight.copy_(W)

    def macs(self):
        return self.in_features * self.out_features
