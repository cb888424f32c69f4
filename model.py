"""
A GPT-2 language model whose linear layers come from linear/; the rest is as plain as in nanoGPT, with the same names, and
computes the same from the same weights. Differences: with targets forward returns only the loss (the logits, gigabytes at
GPT-2's vocabulary, never leave the compiled graph), attention can use a key-value cache, FLOPs are counted from the layers.

References: Radford et al. 2019 (GPT-2); github.com/openai/gpt-2; github.com/karpathy/nanoGPT
"""

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

import hardware
import linear
from configurator import UserError, brief, key
from linear import moe
from linear.kernels import attend, fused, head, norms, rotary

LARGEST = 1e12  # parameters of a model that is built; more than any machine holds


@dataclass
class GPTConfig(linear.Keys):  # which brings the keys of linear/__init__.py and of every layer
    block_size: int = key(1024, 'context length in tokens', low=1, high=2**31, group='size of the model')
    vocab_size: int = key(50304, 'vocabulary; GPT-2 has 50257, padded to a multiple of 64 for speed', low=1, high=2**31)
    n_layer: int = key(12, 'transformer blocks', low=1, high=10_000)
    n_head: int = key(12, 'attention heads', low=1, high=2**31)
    n_embd: int = key(768, 'width of the residual stream', low=1, high=2**31)
    dropout: float = key(0.0, 'for pretraining 0 is good, for finetuning try 0.1+', low=0.0, high=0.999)
    bias: bool = key(True, 'bias in linear layers and LayerNorms, as GPT-2; false is a bit better and faster')
    # the defaults are GPT-2
    mlp: str = key(
        'gelu',
        'MLP: GELU (gelu_tanh: its approximation in the GPT-2 weights), SwiGLU, squared ReLU, mixture of experts (GELU,'
        ' without bias)',
        choices=('gelu', 'gelu_tanh', 'swiglu', 'relu2', 'moe'),
        group='architecture',
    )
    mlp_expansion_factor: float | tuple = key(4.0, 'hidden units of the MLP over n_embd; one number, or one per layer')
    multiple_of: int = key(1, 'hidden units are rounded to the nearest multiple of this', low=1, high=2**31)
    swiglu_match: bool = key(
        True, 'SwiGLU: two thirds of the hidden units, so that its three matrices cost what two do'
    )
    mlp_gate: bool = key(
        False, 'learn the factor: a gate on each hidden unit; transfer.py prune removes the closed ones'
    )
    gate_budget: float = key(0.75, 'mlp_gate: share of the gates that may stay open for free', low=0, high=1)
    gate_penalty: float = key(1.0, 'mlp_gate: loss in nats per share of open gates beyond the budget', low=0)
    n_kv_head: int = key(0, 'key-value heads, each shared by a group of query heads; 0: n_head, 1: multi-query', low=0)
    qk_norm: bool = key(False, 'weightless RMSNorm of queries and keys, before RoPE')
    norm: str = key('layernorm', 'normalization', choices=('layernorm', 'rmsnorm'))
    norm_affine: bool = key(True, 'normalization with learned weights')
    post_norm: bool = key(False, 'normalize the output of attention and MLP too, besides their input')
    attn_scale: float = key(1.0, 'factor on the output of attention; 0: 1/sqrt(2*n_layer)', low=0)
    position: str = key('learned', 'position embeddings, or rotary (RoPE, base 10000)', choices=('learned', 'rope'))
    attention_window: int = key(0, 'tokens a position sees, itself included; 0: all before it', low=0)
    tie_head: bool = key(True, 'the head shares the token embeddings')
    logit_scale: float = key(
        1.0, 'factor on the logits; growth sets it where a head is tied without norm weights', above=0
    )

    def rough_size(self, factor: float) -> float:
        """Roughly the parameters of the dense model with mlp_expansion_factor = factor; nothing is built."""
        hidden = factor * self.n_embd + self.multiple_of
        matrices = dict(swiglu=3, moe=2 * self.experts).get(self.mlp, 2)
        block = 4 * self.n_embd + matrices * hidden
        return float(self.n_embd) * (self.n_layer * block + 2 * self.vocab_size + self.block_size)

    def hidden(self, layer: int) -> int:
        """Hidden units of the MLP of a layer."""
        f = self.mlp_expansion_factor
        width = (f[layer] if isinstance(f, tuple) else f) * self.n_embd
        if self.mlp == 'swiglu' and self.swiglu_match:
            width *= 2 / 3
        return max(1, round(width / self.multiple_of)) * self.multiple_of

    def idle(self) -> dict:
        """{key: value} of the keys that are set but have no effect, given the others."""
        read = linear.keys_of(self.linear)
        off = set(linear.all_keys()) - set(read) | linear.LAYERS[self.linear].idle(self)
        if self.mlp != 'moe':
            off |= {f.name for f in dataclasses.fields(moe.Experts)} - set(read)
        if not self.mlp_gate:
            off |= {'gate_budget', 'gate_penalty'}
        if self.mlp != 'swiglu':
            off.add('swiglu_match')
        return {k: v for k, v in changed(self).items() if k in off}

    def problems(self) -> list[str]:
        """What is wrong with the keys, one line each; [] if nothing."""
        found, factors = [], self.mlp_expansion_factor
        each = factors if isinstance(factors, tuple) else (factors,)
        if isinstance(factors, tuple) and len(factors) != self.n_layer:
            found.append(
                f'mlp_expansion_factor = {brief(factors)}: must be one number or n_layer ({self.n_layer}) of them,'
                f' not {len(factors)}'
            )
        if not all(0 < f < math.inf for f in each):
            found.append(f'mlp_expansion_factor = {brief(factors)}: must be above 0')
        if not found and (size := self.rough_size(max(each))) > LARGEST:
            keys = ('n_layer', 'n_embd', 'mlp_expansion_factor', 'multiple_of', 'vocab_size', 'block_size')
            keys += ('experts',) if self.mlp == 'moe' else ()
            what = ', '.join(f'{k} = {brief(getattr(self, k))}' for k in keys)
            return [f'{what}: a model of {size:.1e} parameters; this code takes at most {LARGEST:.0e}, make it smaller']
        if self.experts_active > self.experts:
            found.append(f'experts_active = {self.experts_active}: must be at most experts ({self.experts})')
        if self.mlp == 'moe' and self.mlp_gate:
            found.append(
                'mlp_gate = True: gates the hidden units of one MLP, mlp = moe has several; choose one of them'
            )
        if self.n_embd % self.n_head:
            fits = linear.structured.divisors(self.n_embd)
            near = sorted(sorted(fits, key=lambda h: abs(h - self.n_head))[:3])
            found.append(
                f'n_embd = {self.n_embd}, n_head = {self.n_head}: n_embd must be divisible by n_head'
                f' (near: n_head = {", ".join(map(str, near))})'
            )
        elif self.position == 'rope' and self.n_embd // self.n_head % 2:
            found.append(f'n_head = {self.n_head}: rope turns pairs, n_embd / n_head must be even')
        if self.n_kv_head and self.n_head % self.n_kv_head:
            found.append(f'n_kv_head = {self.n_kv_head}: must divide n_head ({self.n_head})')
        return found or linear.problems(self)  # which looks at the layers that all these keys make


def changed(config) -> dict:
    """The keys of GPTConfig that are not at their default; those that train.py adds to a config are left out."""
    return {f.name: v for f in dataclasses.fields(GPTConfig) if (v := getattr(config, f.name)) != f.default}


COMPUTING = ('linear_path', 'fuse_mlp')  # keys that say how to compute, no property of the weights
NANOGPT_KEYS = ('n_layer', 'n_head', 'n_embd', 'block_size', 'bias', 'vocab_size', 'dropout')


def model_args(config) -> dict:
    """What a checkpoint says of its model: nanoGPT's keys, and of ours what is not the default, so that nanoGPT accepts
    whatever it can express. Keys without effect are left out, see GPTConfig.idle."""
    args = {k: getattr(config, k) for k in NANOGPT_KEYS}
    drop = {*NANOGPT_KEYS, *COMPUTING, *GPTConfig.idle(config)}  # not what means nothing to the optimizer of one run
    return args | {k: v for k, v in changed(config).items() if k not in drop}


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, with or without weight; a bias only in LayerNorm and where asked for."""

    def __init__(self, config):
        super().__init__()
        n, self.rms = config.n_embd, config.norm == 'rmsnorm'
        self.shape = (n,)
        self.weight = nn.Parameter(torch.ones(n)) if config.norm_affine else None
        self.bias = nn.Parameter(torch.zeros(n)) if config.norm_affine and config.bias and not self.rms else None

    def forward(self, x):
        # fsdp sends them in 16 bits; never rounded here
        weight, bias = (
            t if t is None else t.to(torch.promote_types(t.dtype, x.dtype)) for t in (self.weight, self.bias)
        )
        if self.rms:
            return F.rms_norm(x, self.shape, weight, 1e-6)
        return F.layer_norm(x, self.shape, weight, bias, 1e-5)

    def add_and_norm(self, x, m):
        """(x + m, its norm), (B, T, C) each: on a GPU in one pass over memory."""
        if norms.fits(x, m):
            return norms.add(x, m, self.weight, self.bias, self.rms)
        x = add_up(x, m)
        return x, self(x)


def add_up(x, m):
    """x + m of the pair (x, m) that a Block returns, (B, T, C); m = None adds nothing."""
    return x if m is None else x + m


def rope_table(pos, head_width):
    """cos and sin (T, head_width / 2) of the rotation angles of positions pos (T,). Su et al. 2021, arXiv 2104.09864"""
    i = torch.arange(0, head_width, 2, device=pos.device, dtype=torch.float32)
    angles = pos.float()[:, None] * 10000.0 ** (-i / head_width)
    return angles.cos(), angles.sin()


def rotate(x, table):
    """x (B, nh, T, hs) with the pairs (x[i], x[i + hs/2]) turned by their angles, as in Llama."""
    cos, sin = (t.to(x.dtype) for t in table)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, config, site):
        super().__init__()
        n = config.n_embd
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        self.head_width = n // config.n_head
        self.widths = [n, self.n_kv_head * self.head_width, self.n_kv_head * self.head_width]  # of q, k, v
        self.c_attn = linear.make(config, f'{site}.c_attn', n, sum(self.widths), parts=self.widths)  # one product
        self.c_proj = linear.make(config, f'{site}.c_proj', n, n, residual=True)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm
        self.scale = 8 / self.head_width if config.mup_base else None  # None: 1/sqrt(head width); equal at width 64
        self.window = config.attention_window or config.block_size

    def forward(self, x, rope=None, mask=None, cache=None, pos=None):
        """x (B, T, C) -> (B, T, C). rope, mask: of GPT.embed. cache: this block's of GPT.caches; the keys and values of x are
        written into it at the positions pos (T,), and a single x attends to all that it holds up to there."""
        B, T, C = x.shape
        qkv = self.c_attn(x)
        if rotary.fits(qkv, rope):
            q, k, v = rotary.heads(qkv, rope, self.n_head, self.n_kv_head, self.qk_norm)
        else:
            q, k, v = (t.view(B, T, -1, self.head_width).transpose(1, 2) for t in qkv.split(self.widths, dim=2))
            if self.qk_norm:
                q, k = (F.rms_norm(t, (self.head_width,), None, 1e-6) for t in (q, k))  # (B, nh, T, hs)
            if rope is not None:
                q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None and T == 1:
            scale = self.scale or self.head_width**-0.5
            y = torch.ops.nanomorph.attend(q, k, v, cache, pos, self.window, scale)
            return self.resid_dropout(self.c_proj(y))
        if cache is not None:  # a prompt
            cache.index_copy_(3, pos, torch.stack((k, v)).to(cache.dtype))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=self.n_kv_head != self.n_head,  # the kernel shares keys and values, nothing is repeated
        )
        y = y.transpose(1, 2).contiguous().view(B, T, C)  # heads side by side
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    def __init__(self, config, site, hidden):
        super().__init__()
        n, self.kind = config.n_embd, config.mlp
        self.c_fc = linear.make(config, f'{site}.c_fc', n, hidden)
        if self.kind == 'swiglu':
            self.c_gate = linear.make(config, f'{site}.c_gate', n, hidden)
        self.c_proj = linear.make(config, f'{site}.c_proj', hidden, n, residual=True)
        self.dropout = nn.Dropout(config.dropout)
        self.gate = nn.Parameter(torch.ones(hidden)) if config.mlp_gate else None
        self.fuse = config.fuse_mlp and self.kind in fused.ACTIVATIONS and self.gate is None

    def forward(self, x):
        """x (B, T, C) -> (B, T, C)."""
        if self.fuse and fused.fits(self.c_fc, self.c_proj, x):
            return self.dropout(fused.mlp(self.c_fc, self.c_proj, x, self.kind))
        h = self.c_fc(x)
        if self.kind == 'swiglu':  # Shazeer 2020, arXiv 2002.05202
            h = F.silu(self.c_gate(x)) * h
        elif self.kind == 'relu2':  # So et al. 2021, arXiv 2109.08668
            h = F.relu(h).square()
        else:
            h = F.gelu(h, approximate='tanh' if self.kind == 'gelu_tanh' else 'none')
        if self.gate is not None:
            h = h * self.gate.clamp(0, 1)  # exactly 0 when closed: the unit can be cut out
        return self.dropout(self.c_proj(h))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = Norm(config)
        self.attn = CausalSelfAttention(config, f'h.{layer}.attn')
        self.ln_2 = Norm(config)
        hidden = config.hidden(layer)
        self.mlp = moe.MoE(config, hidden) if config.mlp == 'moe' else MLP(config, f'h.{layer}.mlp', hidden)
        self.post_1 = Norm(config) if config.post_norm else None
        self.post_2 = Norm(config) if config.post_norm else None
        self.attn_scale = config.attn_scale or 1 / math.sqrt(2 * config.n_layer)

    def forward(self, x, m=None, rope=None, mask=None, cache=None, pos=None):
        """x (B, T, C): the residual stream. m (B, T, C): what the MLP of the block before adds to it, not added yet; None in the
        first block. Returns the same pair, with the m of this block's MLP. The next norm adds it to x in the pass over memory
        that it makes anyway; where no norm follows, add_up does. rope, mask: of GPT.embed; cache, pos: as in GPT.forward."""
        x, y = self.ln_1.add_and_norm(x, m)
        a = self.attn(y, rope, mask, cache, pos)
        if self.post_1 is not None:
            a = self.post_1(a)
        x, y = self.ln_2.add_and_norm(x, a if self.attn_scale == 1 else self.attn_scale * a)
        m = self.mlp(y)
        return x, m if self.post_2 is None else self.post_2(m)


class GPT(nn.Module):
    """nanoGPT's GPT of any GPTConfig. Its layers hold their factors; while it trains, plain matrices may stand in their
    places (linear/factors.py)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        parts = dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([Block(config, i) for i in range(config.n_layer)]),
            ln_f=Norm(config),
        )
        if config.position != 'learned':
            del parts['wpe']
        self.transformer = nn.ModuleDict(parts)
        if config.position == 'rope':  # a table: computed inside the graph, its sines cost a quarter of d12's step
            for name, t in zip(
                ('cos', 'sin'), rope_table(torch.arange(config.block_size), config.n_embd // config.n_head)
            ):
                self.register_buffer(f'rope_{name}', t, persistent=False)
        if config.tie_head:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
            self.lm_head.weight = self.transformer.wte.weight
        else:
            self.lm_head = linear.make(config, 'lm_head', config.n_embd, config.vocab_size)
        for name in ('wte', 'wpe'):
            if name in parts:
                nn.init.normal_(parts[name].weight, mean=0.0, std=0.02)

    def embed(self, idx, pos=None):
        """idx (B, T) token ids at positions pos (T,), None: 0 to T - 1 -> what the first block takes: x (B, T, C), the cos and
        sin of RoPE or None, and the mask (T, T), None where attention is just causal."""
        T, c, rope, mask = idx.size(1), self.config, None, None
        if c.position == 'rope':
            rope = tuple(t[:T] if pos is None else t[pos] for t in (self.rope_cos, self.rope_sin))
        if pos is None:
            pos = torch.arange(T, device=idx.device)
        x = self.transformer.wte(idx)  # (B, T, C)
        if c.position == 'learned':
            x = x + self.transformer.wpe(pos)
        if c.attention_window:  # a mask costs SDPA its flash kernel
            back = pos[:, None] - pos
            mask = (back >= 0) & (back < c.attention_window)
        return self.transformer.drop(x), rope, mask

    def forward(self, idx, targets=None, caches=None, pos=None, last_only=True, soft=None):
        """idx (B, T) token ids -> (logits, loss).
        With targets (B, T), -1 where there is none: (None, mean cross-entropy in nats). Without: (logits, None) of the last
        position (B, 1, V), or of all (B, T, V) with last_only=False.
        caches: of self.caches(). The positions pos (T,), those of a prompt or the next one alone, are written into them.
        soft: (logits (B, T, V) of another model, w): the loss is 1 - w parts cross-entropy and w parts the divergence
        KL(other, this) (Hinton et al. 2015, arXiv 1503.02531, at temperature 1)."""
        c = self.config
        x, rope, mask = self.embed(idx, pos)
        m = None
        for i, block in enumerate(self.transformer.h):
            x, m = block(x, m, rope, mask, caches[i] if caches else None, pos)
        x = self.transformer.ln_f(add_up(x, m))
        if c.logit_scale != 1:
            x = x * c.logit_scale
        if c.mup_base and c.tie_head:  # an untied head has it in its own start and rate
            x = x * (c.mup_base / c.n_embd)
        if targets is not None:
            return None, self.loss(x, targets, soft)
        return self.lm_head(x[:, -1:] if last_only else x), None

    def loss(self, x, targets, soft=None):
        """What is minimised, a scalar: cross-entropy, and what gates and routers add to it. x (B, T, C): the input of the head;
        targets and soft as in forward."""
        c = self.config
        if soft is None and head.fits(self.lm_head, x):
            loss = head.cross_entropy(x, self.lm_head.weight, targets)
        else:
            logits = self.logits(x)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        if soft is not None:
            other, w = soft
            log_p, log_q = (F.log_softmax(t.float(), dim=-1) for t in (other, logits))
            loss = (1 - w) * loss + w * F.kl_div(log_q, log_p, log_target=True, reduction='none').sum(-1).mean()
        if c.mlp_gate and self.training:
            open_share = torch.cat([b.mlp.gate for b in self.transformer.h]).clamp(0, 1).mean()
            loss = loss + c.gate_penalty * F.relu(open_share - c.gate_budget)
        routers = [m for m in self.modules() if getattr(m, 'router_loss', None) is not None]
        if routers:
            loss = loss + c.router_loss * torch.stack([m.router_loss for m in routers]).mean()
            for m in routers:
                m.router_loss = None
        return loss

    def logits(self, x):
        """Logits (..., V) of x (..., C). On a GPU a vocabulary such as 50257 is padded to a multiple of 64 for the product:
        tensor cores want aligned rows."""
        if not isinstance(self.lm_head, nn.Linear):
            return self.lm_head(x)
        pad = -self.config.vocab_size % 64 if x.is_cuda else 0
        return F.linear(x, F.pad(self.lm_head.weight, (0, 0, 0, pad)))[..., : self.config.vocab_size]

    def num_params(self, beside=None) -> int:
        """Parameters the optimizer moves, factors included, without position embeddings (nanoGPT's count) and without
        guides, which do not stay. beside: {name: layer} of the factors beside the model (linear.factors.Factors)."""
        mine = [self, *(beside or {}).values()]
        named = [(name, p) for m in mine for name, p in m.named_parameters() if name.rpartition('.')[2] != 'guide']
        n = sum(p.numel() for name, p in named if name != 'transformer.wpe.weight')
        return n - sum(m.d_in * m.d_out for m in mine[1:])

    def num_params_collapsed(self, beside=None) -> int:
        """The same count for the model that this one collapses to. A layer that is no matrix, a mixture, stays."""
        layers = [m for m in self.modules() if hasattr(m, 'factors') and m.is_matrix] + [*(beside or {}).values()]
        return self.num_params(beside) + sum(
            m.d_in * m.d_out - sum(p.numel() for name, p in m.named_parameters() if name not in ('bias', 'guide'))
            for m in layers
        )

    def flops_per_token(self, T=None) -> int:
        """Forward and backward, 2 per multiply-add: every matrix three times its forward, attention scores and values
        counted in full (not the causal half) over T tokens of context, or the window. nanoGPT's 6N + 12LHQT, less the vectors in N."""
        c = self.config
        linears = sum(m.macs() for m in self.modules() if hasattr(m, 'macs'))
        linears += sum(m.guide.numel() for m in self.modules() if getattr(m, 'guide', None) is not None)
        context = min(T or c.block_size, c.attention_window or c.block_size)
        head = c.n_embd * c.vocab_size if c.tie_head else 0  # an untied one is among the linears
        return 6 * (linears + head + 2 * c.n_layer * context * c.n_embd)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None, vocabulary=None):
        """Continue idx (B, T), one (B, 1) of token ids at a time. As in nanoGPT the context is the last block_size
        tokens; until it is full, a key-value cache makes each token cost one position. temperature 0 is greedy;
        vocabulary: draw only ids below it. On a GPU a token is a CUDA graph, replayed."""
        B, T, size = *idx.shape, self.config.block_size
        places = torch.arange(size, device=idx.device)
        caches = self.caches(B, min(size, T + max_new_tokens))
        token, place = idx[:, -1:].clone(), places[:1].clone()  # the last one and where it stands: step() moves them on
        health = torch.zeros(B, 1, device=idx.device)
        every = 1 if idx.device.type == 'cpu' else 16  # tokens between two looks at health, which wait for the GPU

        def draw(idx, caches=None, pos=None):
            logits, _ = self(idx, caches=caches, pos=pos)
            return pick(logits[:, -1, :vocabulary], temperature, top_k, top_p, generator, health)

        def step():
            token.copy_(draw(token, caches, place))
            place.add_(1)
            return token

        if idx.is_cuda and attend.triton:  # launching the kernels of one token takes longer than running them
            step = hardware.Replay(step, generator)
        seen = [idx]
        for n in range(T, T + max_new_tokens):
            if n > size:  # the window slides: every position embedding changes, so nothing can be reused
                seen = [torch.cat(seen, dim=1)[:, -size:]]
                new = draw(seen[0])
            elif n == T:
                new = draw(idx, caches, places[:n])
                token.copy_(new), place.fill_(n)
            else:
                new = step().clone()  # a replay writes to the same address
            if ((n - T) % every == 0 or n == T + max_new_tokens - 1) and health.isnan().any():
                raise UserError('the model computes NaN; take dtype = float32, or a checkpoint of before it diverged')
            seen.append(new)
            yield new

    def caches(self, B, size):
        """For each block the keys and values of `size` positions, (2, B, kv heads, size, head width). They stay at one
        address, as a CUDA graph needs it."""
        like = self.transformer.wte.weight
        auto = torch.is_autocast_enabled(like.device.type)
        dtype = torch.get_autocast_dtype(like.device.type) if auto else like.dtype
        shapes = [(2, B, b.attn.n_kv_head, size, b.attn.head_width) for b in self.transformer.h]
        return [torch.zeros(shape, device=like.device, dtype=dtype) for shape in shapes]


def pick(logits, temperature, top_k, top_p, generator, health=None):
    """Draw a token from logits (B, V): (B, 1). health (B, 1) becomes NaN, and stays it, where a row has a NaN: a token
    comes out all the same."""
    if temperature < 1e-30:  # float32 cannot divide by much less
        best = logits.argmax(-1, keepdim=True)  # a NaN counts as the largest
        if health is not None:
            health.add_(logits.gather(-1, best).float() * 0)
        return best
    ids = None
    nucleus = top_p and top_p < 1  # the smallest set of most likely tokens whose probabilities reach top_p
    if top_k or nucleus:
        k = min(top_k or logits.size(-1), logits.size(-1))
        logits, ids = torch.topk(logits, k, sorted=bool(nucleus))
    logits = logits.float() / temperature
    if nucleus:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs.cumsum(-1) - probs >= top_p, -math.inf)
    # as torch.multinomial draws, without its checks: the first of independent clocks that run at these rates
    probs = logits.softmax(-1)
    if health is not None:
        health.add_(probs[:, :1])  # all of a row are NaN, or none
    drawn = (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1, keepdim=True)
    return drawn if ids is None else ids.gather(-1, drawn)
