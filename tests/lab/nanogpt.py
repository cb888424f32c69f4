"""A model.py with the names of nanoGPT's, for tests: they need no foreign code. With NANOGPT_DIR they take the real one."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.wte, self.head = nn.Embedding(c.vocab_size, c.n_embd), nn.Linear(c.n_embd, c.vocab_size, bias=c.bias)

    def forward(self, idx, targets=None):
        logits = self.head(self.wte(idx))
        return logits, None if targets is None else nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.view(-1), ignore_index=-1
        )

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        print('using fused AdamW: False')
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)

    def get_num_params(self):
        return sum(p.numel() for p in self.parameters())

    def generate(self, idx, max_new_tokens, temperature, top_k):
        for _ in range(max_new_tokens):
            idx = torch.cat((idx, self(idx)[0][:, -1:].argmax(-1)), 1)
        return idx
