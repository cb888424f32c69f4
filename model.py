"""
A GPT-2 language model whose linear layers are made by linear.py, the rest as plain as in nanoGPT: same names, same
function from the same weights. Differences: the compiled training graph returns only the loss (the logits, gigabytes
at GPT-2's vocabulary, never leave it), attention can use a key-value cache, FLOPs are counted from the structure.

References: Radford et al. 2019 (GPT-2); github.com/openai/gpt-2; github.com/karpathy/nanoGPT
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

import linear
from configurator import key


@dataclass
class GPTConfig:
    block_size: int = key(1024, 'context length in tokens', low=1)
    vocab_size: int = key(50304, 'vocabulary; GPT-2 has 50257, padded to a multiple of 64 for speed', low=1)
    n_layer: int = key(12, 'transformer blocks', low=1)
    n_head: int = key(12, 'attention heads', low=1)
    n_embd: int = key(768, 'width of the residual stream', low=1)
    dropout: float = key(0.0, 'for pretraining 0 is good, for finetuning try 0.1+', low=0.0, high=0.999)
    bias: bool = key(True, 'bias in linear layers and LayerNorms, as GPT-2; false is a bit better and faster')
    # how the weight matrices of the blocks are parameterized, see linear.py
    linear: str = key('dense', 'parameterization of the layers named by linear_layers', choices=tuple(linear.LINEAR))
    linear_layers: str = key('mlp', 'where: mlp, attn, mlp+attn, or globs such as h.*.mlp.c_fc, joined by + or commas')
    linear_path: str = key(
        'auto',
        'form W once per step (materialised), push activations through the factors (factored), or the cheaper',
        choices=('auto', 'materialised', 'factored'),
    )
    expansion: int = key(0, 'inner width k of an expanded layer; 0: four times its smaller side', low=0)
    expansion_depth: int = key(2, 'number of factors of an expanded layer', low=2)
    expansion_init: str = key(
        'gaussian',
        "product of Gaussians; or exactly the dense twin's matrix (svd needs k >= rank for that)",
        choices=('gaussian', 'orthogonal', 'svd'),
    )
    expansion_decay: str = key(
        'factors',
        'weight_decay acts on the factors, on their product as in the dense twin, or on none',
        choices=('factors', 'product', 'none'),
    )
    expansion_lr: str = key(
        'none', "matched: divide the factors' learning rate by the effective-rate ratio", choices=('none', 'matched')
    )

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one forming of W serves on one device: endless at inference; TrainConfig knows the batch."""
        return math.inf

    def problems(self) -> list[str]:
        found = linear.problems(self)
        if self.n_embd % self.n_head:
            fits = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            near = sorted(sorted(fits, key=lambda h: abs(h - self.n_head))[:3])
            found.append(
                f'n_embd = {self.n_embd}, n_head = {self.n_head}: n_embd must be divisible by n_head'
                f' (near: n_head = {", ".join(map(str, near))})'
            )
        return found


NANOGPT_KEYS = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout')


def model_args(config) -> dict:
    """What a checkpoint says of its model: of a plain model only nanoGPT's keys, so that nanoGPT accepts it; else all
    but linear_path, which is a way to compute and no property of the weights."""
    args = {k: getattr(config, k) for k in NANOGPT_KEYS}
    if config.linear != 'dense':
        args |= {f.name: getattr(config, f.name) for f in dataclasses.fields(GPTConfig) if f.name != 'linear_path'}
    return args


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, ndim, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        n = config.n_embd
        self.c_attn = linear.make(config, f'{site}.c_attn', n, 3 * n)  # q, k, v of all heads in one product
        self.c_proj = linear.make(config, f'{site}.c_proj', n, n, residual=True)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head = config.n_head
        self.dropout = config.dropout

    def forward(self, x, cache=None):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.extend(k, v)
        causal = T > 1  # a single new token sees the whole cache
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0, is_causal=causal)
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # heads side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        n = config.n_embd
        self.c_fc = linear.make(config, f'{site}.c_fc', n, 4 * n)
        self.c_proj = linear.make(config, f'{site}.c_proj', 4 * n, n, residual=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, f'{site}.attn')
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config, f'{site}.mlp')

    def forward(self, x, cache=None):
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(config.vocab_size, config.n_embd),
                wpe=nn.Embedding(config.block_size, config.n_embd),
                drop=nn.Dropout(config.dropout),
                h=nn.ModuleList([Block(config, f'h.{i}') for i in range(config.n_layer)]),
                ln_f=LayerNorm(config.n_embd, config.bias),
            )
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied
        nn.init.normal_(self.transformer.wte.weight, mean=0.0, std=0.02)
        nn.init.normal_(self.transformer.wpe.weight, mean=0.0, std=0.02)

    def forward(self, idx, targets=None, caches=None, last_only=True):
        """idx (B, T) token ids -> (logits, loss).
        With targets (B, T), -1 where there is none: (None, mean cross-entropy in nats). Without: logits of the last
        position (B, 1, V), or of all (B, T, V) with last_only=False. caches: one Cache per block, extended by T."""
        start = caches[0].length if caches else 0
        pos = torch.arange(start, start + idx.size(1), device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))  # (B, T, C)
        for i, block in enumerate(self.transformer.h):
            x = block(x, caches[i] if caches else None)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            return None, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return self.lm_head(x[:, [-1], :] if last_only else x), None

    def num_params(self) -> int:
        """Parameters the optimizer moves, factors included, without position embeddings (nanoGPT's count)."""
        return sum(p.numel() for name, p, *_ in linear.leaves(self)) - self.transformer.wpe.weight.numel()

    def num_params_collapsed(self) -> int:
        """The same count for the dense model that this one collapses to."""
        members = {id(m): m for m in self.modules() if hasattr(m, 'factors')}
        members |= {id(m): m.beside[0] for m in linear.formed(self).values()}
        return self.num_params() + sum(m.d_in * m.d_out - sum(W.numel() for W in m.factors) for m in members.values())

    def flops_per_token(self, T=None) -> int:
        """Forward and backward, 2 per multiply-add: every matrix three times its forward, attention scores and values
        counted in full (not the causal half), T tokens of context. nanoGPT's 6N + 12LHQT, less the vectors in N."""
        c = self.config
        linears = sum(m.macs() for m in self.modules() if hasattr(m, 'macs'))
        return 6 * (linears + c.n_embd * c.vocab_size + 2 * c.n_layer * (T or c.block_size) * c.n_embd)

    def flops_per_update(self) -> int:
        """Per optimizer step, whatever the batch: forming the materialised W, and the chain rule back."""
        return 6 * sum(m.beside[0].form_macs() for m in linear.formed(self).values())

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None, vocabulary=None):
        """Continue idx (B, T), one (B, 1) of token ids at a time. As in nanoGPT the context is the last block_size
        tokens; until it is full, a key-value cache makes each token cost one position. temperature 0 is greedy;
        vocabulary: draw only ids below it."""
        size = self.config.block_size
        caches = None
        for _ in range(max_new_tokens):
            if idx.size(1) > size:  # the window slides: every position embedding changes, so nothing can be reused
                logits, _ = self(idx[:, -size:])
            elif caches is None:
                caches = [Cache(size) for _ in self.transformer.h]
                logits, _ = self(idx, caches=caches)
            else:
                logits, _ = self(idx[:, -1:], caches=caches)
            new = pick(logits[:, -1, :vocabulary].float(), temperature, top_k, top_p, generator)
            idx = torch.cat((idx, new), dim=1)
            yield new


class Cache:
    """Keys and values of one block for the tokens seen so far, (B, heads, size, head width) allocated at first use."""

    def __init__(self, size):
        self.size, self.length, self.kv = size, 0, None

    def extend(self, k, v):
        assert self.length == 0 or k.size(2) == 1, 'a filled cache takes one token at a time'
        if self.kv is None:
            B, nh, _, hs = k.shape
            self.kv = k.new_empty(2, B, nh, self.size, hs)
        end = self.length + k.size(2)
        self.kv[0, :, :, self.length : end] = k
        self.kv[1, :, :, self.length : end] = v
        self.length = end
        return self.kv[0, :, :, :end], self.kv[1, :, :, :end]


def pick(logits, temperature, top_k, top_p, generator):
    """Draw a token from logits (B, V): (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / temperature
    if top_k:
        kth = torch.topk(logits, min(top_k, logits.size(-1))).values[:, [-1]]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p and top_p < 1:  # nucleus: the smallest set of most likely tokens whose probabilities reach top_p
        probs, order = logits.softmax(-1).sort(-1, descending=True)
        drop = probs.cumsum(-1) - probs >= top_p
        logits = logits.masked_fill(drop.gather(-1, order.argsort(-1)), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
