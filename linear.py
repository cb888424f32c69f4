"""
Every way to parameterize a linear layer of the blocks, behind one registry.

A layer maps x (..., d_in) to y (..., d_out), y = x W^T + b, and is made by `make(config, site, ...)`, where a site is a
name such as 'h.0.mlp.c_fc'. The contract of a member of LINEAR, an nn.Module built as Member(d_in, d_out, config):

    forward(x)          x @ W^T + bias through its own factors
    to_dense()          W (d_out, d_in), differentiable, in the factors' dtype
    from_dense(W)       set the factors so that to_dense() is W, or as near as the member can come
    start(W0, std, gen, residual)  initialise: W0 is the matrix the dense twin starts from, std its target, gen a
                        torch.Generator, residual: the layer writes to the residual stream
    macs()              multiply-adds per token of forward
    form_macs()         multiply-adds to form W once
    moves()             features per token that forward writes and reads again between its input and its output
    decay_scale()       factors on weight_decay, one per factor
    lr_scale            buffer: factors on the learning rate, one per factor or one for all
    describe()          the shape it has chosen, in a few words

There are two ways to train such a layer (`linear_path`):
  factored       the member sits in the model and pushes activations through its factors.
  materialised   the model holds a plain matrix W, so the compiled graph, DDP and accumulation see a dense model; the
                 member lives beside it (`Dense.beside`). Once per optimizer step the chain rule turns W's gradient
                 into the factors' gradients, the optimizer moves the factors and W is formed again.
Both give the same gradients; `auto` takes the cheaper by `choose_path`. The members live here (expanded) and in
structured.py, tensor_train.py, block_diagonal.py and moe.py.
"""

import copy
import dataclasses
import fnmatch
import math
import zlib

import torch
import torch.nn as nn
from torch.nn import functional as F

import block_diagonal
import hardware
import moe
import structured
import tensor_train
from configurator import UserError


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


class Expanded(nn.Module):
    """W = W_N ... W_1 without a nonlinearity: inner width `expansion` (k), `expansion_depth` (N) factors.

    factors[0] is W_1 (k, d_in), applied first, then (k, k) ..., last W_N (d_out, k). The bias sits on the last only, so
    that collapse is exact. Arora, Cohen & Hazan 2018 (arXiv 1802.06509): depth acts as a preconditioner on W's gradient.
    """

    def __init__(self, d_in, d_out, config):
        super().__init__()
        k = config.expansion or 4 * min(d_in, d_out)  # 4x: the Gaussian product is well-conditioned (k = min is not)
        self.d_in, self.d_out, self.k, self.depth = d_in, d_out, k, config.expansion_depth
        self.init, self.decay, self.lr_rule = config.expansion_init, config.expansion_decay, config.expansion_lr
        widths = [d_in] + [k] * (self.depth - 1) + [d_out]
        self.factors = nn.ParameterList(torch.empty(o, i) for i, o in zip(widths, widths[1:]))
        self.bias = None
        self.register_buffer('lr_scale', torch.tensor(1.0))
        self.rate = 1.0  # of its dense twin, see make()

    def forward(self, x):
        for i in range(self.depth - 1):  # by index: torch 2.11's compiler cannot slice a ParameterList
            x = F.linear(x, self.factors[i])
        return F.linear(x, self.factors[self.depth - 1], self.bias)

    def to_dense(self):
        if self.d_in <= self.d_out:  # keep the small side small: every partial product is (k, d_in)
            P = self.factors[0]
            for W in self.factors[1:]:
                P = W @ P
        else:  # every partial product is (d_out, k)
            P = self.factors[-1]
            for W in reversed(self.factors[:-1]):
                P = P @ W
        return P

    @torch.no_grad()
    def start(self, W0, std, gen, residual=False):
        if self.init == 'gaussian':  # equal std s with s^N sqrt(k)^(N-1) = std, so that the product has W0's std
            s = (std / self.k ** ((self.depth - 1) / 2)) ** (1 / self.depth)
            for W in self.factors:
                W.copy_(torch.randn(W.shape, generator=gen) * s)
        elif self.init == 'orthogonal':
            self.set_orthogonal(W0, gen)
        else:
            self.set_svd(W0, gen)
        self.match()

    def match(self):
        self.lr_scale.fill_(1 / effective_lr_ratio(self) if self.lr_rule == 'matched' else 1.0)

    @torch.no_grad()
    def from_dense(self, W):
        """The factorization of W that expansion_init names (gaussian: svd), exact if k >= rank; its basis is drawn from a
        fixed seed."""
        exact = self.init == 'orthogonal' and self.k >= min(self.d_in, self.d_out)
        (self.set_orthogonal if exact else self.set_svd)(W, torch.Generator().manual_seed(0))
        self.match()
        self.lr_scale *= self.rate

    def set_orthogonal(self, W0, gen):
        """W_1 ... W_{N-1} orthonormal and W_N = W0 Q^T, or mirrored where d_out < d_in; the product is W0."""
        flip = self.d_out < self.d_in
        W0 = float64(W0).T if flip else float64(W0)  # now (big, small)
        chain, Q = [], torch.eye(W0.size(1)).to(W0)
        for _ in range(self.depth - 1):
            chain.append(orthonormal(self.k, Q.size(0), gen, W0.device))  # (k, previous width)
            Q = chain[-1] @ Q
        chain.append(W0 @ Q.T)
        for W, new in zip(self.factors, [c.T for c in reversed(chain)] if flip else chain):
            W.copy_(new)

    def set_svd(self, W0, gen):
        """W0 = U S V^T; W_j = R_j S^(1/N) R_{j-1}^T with R_0 = V, R_N = U and random orthonormal R_j (k, r) between:
        all factors balanced (shares). r = min(k, d_in, d_out), so a k below the rank keeps the best rank-k approximation.
        """
        W0 = float64(W0)
        U, S, Vh = torch.linalg.svd(W0, full_matrices=False)
        r = min(self.k, len(S))
        bases = [Vh[:r].T] + [orthonormal(self.k, r, gen, W0.device) for _ in range(self.depth - 1)] + [U[:, :r]]
        for j, (W, share) in enumerate(zip(self.factors, structured.shares(S[:r], self.depth))):
            W.copy_((bases[j + 1] * share) @ bases[j].T)

    def macs(self):
        return sum(W.numel() for W in self.factors)

    def form_macs(self):
        return (self.depth - 2) * self.k**2 * min(self.d_in, self.d_out) + self.k * self.d_in * self.d_out

    def moves(self):
        return 2 * self.k * (self.depth - 1)

    def describe(self):
        return f'{self.depth} factors, k = {self.k}'

    def decay_scale(self):
        """AdamW shrinks every factor by 1 - lr*wd, hence W by its N-th power. 'product' shrinks W as its dense twin's
        (to first order in lr*wd), whatever lr_scale is."""
        one = {'factors': 1.0, 'product': self.rate / (self.depth * self.lr_scale.item()), 'none': 0.0}[self.decay]
        return [one] * self.depth


MOVE = 240  # multiply-adds in the time that one bfloat16 is written or read: an H100 does 7e14/2 of the one, 2.9e12/2 of the
# other a second (measured)
MEMBERS = {name: structured.Einsum for name in structured.SHAPES}  # structured matrices
MEMBERS |= {'tensor_train': tensor_train.by_cores, 'block_diagonal': block_diagonal.BlockDiagonal}
LINEAR = {'dense': Dense, 'expanded': Expanded} | MEMBERS | {'btt_moe': moe.BttMoE}


@torch.no_grad()
def dense_float64(member) -> torch.Tensor:
    """W of a member, its product formed in float64."""
    return copy.deepcopy(member).double().to_dense()


def float64(W):
    """W for an exact start: where it is, or on the CPU (Apple's GPUs have no float64)."""
    return (W if W.is_cuda else W.cpu()).double()


def orthonormal(rows, cols, gen, device='cpu'):
    """A random (rows, cols) float64 matrix with orthonormal columns, rows >= cols: Q of A = Q R for a Gaussian A that is
    drawn on the CPU. R^T R = A^T A by Cholesky, several times as fast as Householder's QR, which every rotation would
    wait for (rotate.py); R's diagonal is positive, so Q is Haar. A tall A is well-conditioned; for a square one the
    second pass makes up for it (CholeskyQR2: Yamamoto et al. 2015, ETNA 44)."""
    Q = torch.randn(rows, cols, generator=gen).to(device).double()
    for _ in range(1 if rows >= 2 * cols else 2):
        L = torch.linalg.cholesky(Q.T @ Q)
        Q = torch.linalg.solve_triangular(L, Q.T, upper=False).T
    return Q


def effective_lr_ratio(layer) -> float:
    """How much more the loss falls, to first order, when Adam's first (sign) step moves all factors instead of W itself
    at the same rate: sum of |dL/dfactor| over sum of |dL/dW|, for a Gaussian dL/dW.
    For two Gaussian factors of std s1, s2 it is k*s1/sqrt(d_in) + k*s2/sqrt(d_out)."""
    factors = list(layer.factors)
    with torch.enable_grad():
        W = layer.to_dense()
        G = torch.randn(W.shape, generator=torch.Generator().manual_seed(20180219)).to(W)  # no one else's seed
        grads = torch.autograd.grad(W, factors, G)
    return (sum(g.abs().sum() for g in grads) / G.abs().sum()).item()


# -----------------------------------------------------------------------------
# choosing and making


def sites(config) -> dict[str, tuple[int, int]]:
    """{name: (d_in, d_out)} of all linear layers of the blocks, and of the head where it is a layer of its own."""
    n = config.n_embd
    kv = 2 * n * (config.n_kv_head or config.n_head) // config.n_head
    found = {}
    for i in range(config.n_layer):
        hidden = config.hidden(i)
        found |= {f'h.{i}.attn.c_attn': (n, n + kv), f'h.{i}.attn.c_proj': (n, n)}
        if config.mlp == 'moe':
            continue
        found[f'h.{i}.mlp.c_fc'] = (n, hidden)
        if config.mlp == 'swiglu':
            found[f'h.{i}.mlp.c_gate'] = (n, hidden)
        found[f'h.{i}.mlp.c_proj'] = (hidden, n)
    if not config.tie_head:
        found['lm_head'] = (n, config.vocab_size)
    return found


def patterns(linear_layers: str) -> list[str]:
    """'mlp+attn' or globs over sites, joined by + or commas."""
    short = {'mlp': 'h.*.mlp.*', 'attn': 'h.*.attn.*', 'head': 'lm_head'}
    return [short.get(p.strip(), p.strip()) for p in linear_layers.replace('+', ',').split(',')]


def chosen(config) -> dict[str, tuple[int, int]]:
    """The sites that linear_layers names and keep_dense does not."""
    if config.linear == 'dense':
        return {}
    found = sites(config)
    take, keep = (
        {n for p in patterns(v) for n in fnmatch.filter(found, p)} for v in (config.linear_layers, config.keep_dense)
    )
    return {n: d for n, d in found.items() if n in take - keep}


def problems(config) -> list[str]:
    """What is wrong with the keys of a config that shape its linear layers, one line each."""
    if config.linear == 'dense' or config.linear not in LINEAR:
        return []
    found = []
    for k in ('linear_layers', 'keep_dense'):
        for p in patterns(getattr(config, k)):
            if p and not fnmatch.filter(sites(config), p):
                globs = ', '.join(s.replace('h.0.', 'h.*.') for s in sites(config) if s.startswith('h.0.'))
                head = ' or head' if not config.tie_head else ' (the head is one only with tie_head = False)'
                found.append(
                    f"{k} = '{getattr(config, k)}': '{p}' matches no layer; use mlp, attn, mlp+attn{head}, or globs over"
                    f' {globs}'
                )
    if config.linear == 'btt_moe' and config.linear_path == 'materialised':
        found.append('linear_path = materialised: a mixture (linear = btt_moe) is no matrix; use factored or auto')
    if config.linear == 'expanded' and config.expansion_init == 'orthogonal' and 0 < config.expansion < config.n_embd:
        found.append(
            f'expansion = {config.expansion}: expansion_init = orthogonal needs expansion >= n_embd ({config.n_embd});'
            ' use svd (keeps the best rank-k part) or gaussian'
        )
    if not found and config.linear not in ('dense', 'expanded'):
        for name, (d_in, d_out) in {d: (n, d) for n, d in reversed(chosen(config).items()) if all(d)}.values():
            try:
                with torch.device('meta'):
                    LINEAR[config.linear](d_in, d_out, config)
            except UserError as e:
                found.append(f'{e} (layer {name}, {d_in} -> {d_out})')
    return found


def make(config, site: str, d_in: int, d_out: int, residual: bool = False) -> nn.Module:
    """The layer of a site. residual: it writes to the residual stream, so its std is 0.02/sqrt(2*n_layer) (GPT-2);
    otherwise 0.02. W0 comes from the global random stream, as the dense twin's; factors draw from one of their own.
    With mup_base the std is that of the mu-parametrization and rates fall with width (Yang & Hu 2021, arXiv 2203.03466).
    """
    bias = config.bias and site != 'lm_head'
    layer = Dense(d_in, d_out, bias=bias)
    std = 0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02
    rate = 1.0
    if config.mup_base and site != 'lm_head':
        std, rate = structured.gemm_std(d_in, d_out), config.mup_base / config.n_embd
    nn.init.normal_(layer.weight, mean=0.0, std=std)
    if config.mup_base and residual:
        nn.init.zeros_(layer.weight)
    layer.rate = rate
    if bias:
        nn.init.zeros_(layer.bias)
    if site not in chosen(config):
        return layer
    member = LINEAR[config.linear](d_in, d_out, config)
    member.start(
        layer.weight.data,
        std,
        torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32(site.encode())),
        residual,
    )
    member.lr_scale *= rate
    member.rate = rate
    if config.guide_iters and hasattr(member, 'follow'):
        member.follow(layer.weight.data)
    if choose_path(config, member, layer) == 'factored':
        member.bias = layer.bias
        return member
    layer.beside = (member,)  # a tuple hides it from nn.Module
    with torch.no_grad():
        layer.weight.copy_(member.to_dense())
    return layer


def choose_path(config, member, dense) -> str:
    """auto: push T tokens through the factors if T*(macs() + MOVE*moves()) is below T*d_in*d_out + form_macs(); backward
    doubles both sides."""
    if config.linear == 'btt_moe':  # no matrix could stand for it
        return 'factored'
    if config.linear_path != 'auto':
        return config.linear_path
    per_token = member.macs() + MOVE * member.moves() - dense.macs()
    return 'factored' if per_token < member.form_macs() / config.tokens_per_step else 'materialised'


def table(model) -> list[str]:
    """A line for every kind of layer that is not dense: sites, shape, parameters, way to compute it."""
    kinds = {}
    for name, m in model.named_modules():
        member = member_of(m)
        if hasattr(member, 'factors'):
            n = sum(p.numel() for p in member.factors)
            share = n / (member.d_in * member.d_out)
            path = 'materialised' if member is not m else 'factored'
            line = (
                f'{member.d_in} -> {member.d_out}: {member.describe()}, {n:,} parameters ({share:.1%} of dense), {path}'
            )
            kinds.setdefault(line, []).append(name.removeprefix('transformer.'))
    return [f'{s[0]}{f" and {len(s) - 1} more" if s[1:] else ""} {line}' for line, s in kinds.items()]


# -----------------------------------------------------------------------------
# a model with factors in it or beside it


def formed(model) -> dict:
    """{name: Dense} of the matrices that are formed from factors beside them."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Dense) and m.beside is not None}


def guided(model) -> list:
    """The members that a dense guide still leads."""
    return [m for m in map(member_of, model.modules()) if getattr(m, 'guide', None) is not None]


def guide(model, share: float):
    for m in guided(model):
        m.share.fill_(share)


def let_go(model):
    """Remove the guides: from now on the factors are alone."""
    for m in guided(model):
        m.let_go()
    model.config = dataclasses.replace(model.config, guide_iters=0)
    Materialised(model)  # forms W from the factors


def member_of(m: nn.Module) -> nn.Module:
    """The factors beside a formed matrix; any other module is its own member."""
    return m.beside[0] if isinstance(m, Dense) and m.beside is not None else m


def leaves(model):
    """(name, parameter, lr_scale, decay_scale) of everything the optimizer moves, tied weights once. A formed W is not
    among them: its factors are, under the names that they have when they sit in the model, so that a checkpoint does
    not depend on linear_path. Matrices decay, vectors do not."""
    seen = set()
    for name, m in model.named_modules():
        if isinstance(m, nn.ParameterList):
            continue  # the factors of the module named before
        member = member_of(m)
        if hasattr(member, 'factors'):
            scales = member.lr_scale.expand(len(member.factors)).tolist(), member.decay_scale()
            for i, (p, lr_scale, decay_scale) in enumerate(zip(member.factors, *scales)):
                yield f'{name}.factors.{i}', p, lr_scale, decay_scale
        own, rate = dict(member.named_parameters(recurse=False)), getattr(member, 'rate', 1.0)
        if member is not m:  # the bias stays with the formed matrix
            own |= {k: p for k, p in m.named_parameters(recurse=False) if k != 'weight'}
        for key, p in own.items():
            if id(p) not in seen:
                seen.add(id(p))
                yield (
                    f'{name}.{key}',
                    p,
                    rate if key in ('weight', 'guide') else 1.0,
                    1.0 if p.dim() >= 2 else 0.0,
                )


def state(model) -> dict:
    """The state dict with the factors in place of the matrices that are formed from them."""
    sd = model.state_dict()
    for name, m in formed(model).items():
        del sd[f'{name}.weight']
        sd |= {f'{name}.{k}': v for k, v in m.beside[0].state_dict().items()}
    return sd


@torch.no_grad()
def load_state(model, sd: dict):
    """Fill model from state(); a plain matrix at a site that has factors is factorized by from_dense.
    Raises UserError naming what is missing, left over or of another shape."""
    sd = dict(sd)
    wanted = {k: v.shape for k, v in state(model).items()}
    for name, m in model.named_modules():
        member = member_of(m)
        W = sd.get(f'{name}.weight')
        if hasattr(member, 'factors') and W is not None and W.shape == (member.d_out, member.d_in):
            member.from_dense(W)
            if getattr(member, 'guide', None) is not None:
                member.guide.copy_(W)
            del sd[f'{name}.weight']
            sd |= {f'{name}.{k}': v for k, v in member.state_dict().items() if k != 'bias'}
    wrong = [f'missing {k}' for k in wanted if k not in sd] + [f'left over {k}' for k in sd if k not in wanted]
    wrong += [f'{k} is {tuple(sd[k].shape)}, not {tuple(s)}' for k, s in wanted.items() if k in sd and sd[k].shape != s]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise UserError('the weights do not fit the model: ' + '; '.join(wrong[:3]) + more)
    for name, m in formed(model).items():
        keys = m.beside[0].state_dict()
        m.beside[0].load_state_dict({k: sd.pop(f'{name}.{k}') for k in keys})
        m.weight.copy_(m.beside[0].to_dense())
        sd[f'{name}.weight'] = m.weight
    model.load_state_dict(sd)


def into(member, W):
    """W <- to_dense(), which is returned."""
    P = member.to_dense()
    W.copy_(P.detach())
    return P


class Materialised:
    """Forms the matrices of a model from the factors beside them, and takes their gradients back. compile: for the
    structured layers, whose tiles are permuted on the way; a kernel of its own would do that at a third of the speed.
    dtype: what these are multiplied in, that of the model's own products: W is rounded to it before any use anyway."""

    def __init__(self, model, compile=False, dtype=torch.float32):
        layers = formed(model).values()
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # float16 would lose small gradients
        self.members = [m.beside[0] for m in layers]
        self.weights = [m.weight for m in layers]
        self.factors = [W for m in self.members for W in m.parameters()]
        self.into_compiled = torch.compile(into, dynamic=False) if compile else into
        self.form()

    def form(self):
        """W <- to_dense(), in place. The products stay for pull()."""
        if self.weights:
            with torch.enable_grad():
                self.products = [self.product(m, w.data) for m, w in zip(self.members, self.weights)]

    def product(self, member, W):
        if not isinstance(member, structured.Structured):
            return into(member, W)
        with hardware.autocast(W.device, self.dtype):
            return self.into_compiled(member, W)

    def pull(self):
        """Chain rule: factor.grad from the W.grad that all micro-batches have summed. Uses up the products."""
        if self.weights:
            given = [w.grad.to(P.dtype) for w, P in zip(self.weights, self.products)]
            grads = torch.autograd.grad(self.products, self.factors, given)
            for W, g in zip(self.factors, grads):
                W.grad = g.contiguous()  # as the factors: a fused AdamW refuses anything else
            self.products = None
