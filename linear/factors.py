"""
A model with factors in it or beside it.
"""

import copy
import dataclasses

import torch
import torch.nn as nn

from configurator import UserError
from linear import structured
from linear.dense import Dense


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
        with torch.autocast(W.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.into_compiled(member, W)

    def pull(self):
        """Chain rule: factor.grad from the W.grad that all micro-batches have summed. Uses up the products."""
        if self.weights:
            given = [w.grad.to(P.dtype) for w, P in zip(self.weights, self.products)]
            grads = torch.autograd.grad(self.products, self.factors, given)
            for W, g in zip(self.factors, grads):
                W.grad = g.contiguous()  # as the factors: a fused AdamW refuses anything else
            self.products = None


@torch.no_grad()
def dense_float64(member) -> torch.Tensor:
    """W of a member, its product formed in float64."""
    return copy.deepcopy(member).double().to_dense()


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
