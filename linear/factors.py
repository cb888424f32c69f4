"""
The factors of a model: in it, or beside it while it trains.

GPT(config) holds every chosen layer as its factors, and so does a checkpoint. For training some layers are cheaper as
plain matrices: `Factors(model)` takes their factors out, and leaves matrices formed from them in their place.
"""

import contextlib
import copy
import math

import torch
import torch.nn as nn

import linear
from configurator import UserError
from linear import structured
from linear.dense import Dense


def leaves(model, beside=None):
    """(name, parameter, lr_scale, decay_scale) of everything the optimizer moves, tied weights once. A formed W is not
    among them: its factors are, under the names that they have when they sit in the model, so that a checkpoint does
    not depend on linear_path. Matrices decay, vectors do not. beside: {name: layer} of the factors beside the model."""
    seen, beside = set(), beside or {}
    for name, m in model.named_modules():
        if isinstance(m, nn.ParameterList):
            continue  # the factors of the module named before
        layer = beside.get(name, m)
        if hasattr(layer, 'factors'):
            scales = layer.lr_scale.expand(len(layer.factors)).tolist(), layer.decay_scale()
            for i, (p, lr_scale, decay_scale) in enumerate(zip(layer.factors, *scales)):
                yield f'{name}.factors.{i}', p, lr_scale, decay_scale
        own, dense_lr_scale = dict(layer.named_parameters(recurse=False)), getattr(layer, 'dense_lr_scale', 1.0)
        if layer is not m:  # the bias stays with the formed matrix
            own |= {k: p for k, p in m.named_parameters(recurse=False) if k != 'weight'}
        for key, p in own.items():
            if id(p) not in seen:
                seen.add(id(p))
                matrix = p.dim() >= 2
                yield f'{name}.{key}', p, dense_lr_scale if matrix else 1.0, 1.0 if matrix else 0.0


def matrices(model, beside=None) -> list:
    """[(name, layer, {key: Matrix})] of all layers that have matrices, for an optimizer that treats matrices. name.key is
    the name that leaves() gives the tensor. A formed W is not among them, its factors are."""
    found = ((name, (beside or {}).get(name, m)) for name, m in model.named_modules())
    return [(name, layer, layer.matrices()) for name, layer in found if hasattr(layer, 'matrices')]


@torch.no_grad()
def load_state(model, sd: dict):
    """Fill a model that holds its factors; where sd has a plain matrix for a layer of factors, it is factorized by
    from_dense. Raises UserError naming what is missing, left over or of another shape."""
    sd = dict(sd)
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    for name, m in model.named_modules():
        W = sd.get(f'{name}.weight')
        if hasattr(m, 'factors') and W is not None and W.shape == (m.d_out, m.d_in):
            m.from_dense(W)
            if getattr(m, 'guide', None) is not None:
                m.guide.copy_(W)
            del sd[f'{name}.weight']
            sd |= {f'{name}.{k}': v for k, v in m.state_dict().items() if k != 'bias'}
    wrong = [f'missing {k}' for k in wanted if k not in sd] + [f'left over {k}' for k in sd if k not in wanted]
    wrong += [f'{k} is {tuple(sd[k].shape)}, not {tuple(s)}' for k, s in wanted.items() if k in sd and sd[k].shape != s]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise UserError('the weights do not fit the model: ' + '; '.join(wrong[:3]) + more)
    model.load_state_dict(sd)


class Factors(dict):
    """{name: layer} of the factors beside a model: their matrices W stand in the model, which computes with them.

    Once per optimizer step pull() turns the gradients of W into those of the factors, the optimizer moves the factors,
    and form() writes W again. The optimizer owns this object; the model knows nothing of it.

    tokens: of one step on this device, by which linear_path = auto chooses (linear.choose_path). path: instead of the
    config's linear_path. compile: form structured layers with torch.compile; their tiles are permuted on the way, and
    a kernel of its own would do that at a third of the speed. dtype: what these are multiplied in, that of the model's
    own products: W is rounded to it before any use anyway.
    """

    def __init__(self, model, tokens=math.inf, compile=False, dtype=torch.float32, path=None):
        super().__init__()
        self.model = model
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # float16 would lose small gradients
        self.into = torch.compile(into, dynamic=False) if compile else into
        for name, m in list(model.named_modules()):
            if hasattr(m, 'factors') and linear.choose_path(model.config, m, tokens, path) == 'materialised':
                self.take_out(name, m)
        self.collect()

    def take_out(self, name: str, layer):
        """Put a plain matrix where the factors were. The bias is the matrix's from now on, the factors have none."""
        like = layer.factors[0]
        plain = Dense(layer.d_in, layer.d_out, bias=layer.bias is not None, device=like.device, dtype=like.dtype)
        plain.bias, layer.bias = layer.bias, None
        plain.dense_lr_scale, plain.parts = layer.dense_lr_scale, layer.parts
        parent, _, child = name.rpartition('.')
        setattr(self.model.get_submodule(parent), child, plain)
        self[name] = layer

    def collect(self):
        """To be called after factors were added or removed, or have let a parameter go: forms every W anew."""
        self.weights = [self.model.get_submodule(name).weight for name in self]
        self.tensors = [W for m in self.values() for W in m.parameters()]  # that pull() gives a gradient
        self.form()

    def release(self):
        """Hold nothing but the layers, until collect()."""
        self.weights = self.tensors = self.products = None

    def form(self):
        """W <- to_dense(), in place. The products stay for pull()."""
        with torch.set_grad_enabled(bool(self.tensors)):
            self.products = [self.product(m, w.data) for m, w in zip(self.values(), self.weights)]

    def product(self, layer, W):
        if not isinstance(layer, structured.Structured):
            return into(layer, W)
        cast = self.dtype != torch.float32  # autocast is unknown where there are only shapes (torch's meta device)
        with torch.autocast(W.device.type, self.dtype) if cast else contextlib.nullcontext():
            return self.into(layer, W)

    def pull(self):
        """Chain rule: factor.grad from the W.grad that all micro-batches have summed. Uses up the products."""
        if self.tensors:
            given = [w.grad.to(P.dtype) for w, P in zip(self.weights, self.products)]
            grads = torch.autograd.grad(self.products, self.tensors, given)
            for W, g in zip(self.tensors, grads):
                W.grad = g.contiguous()  # as the factors: a fused AdamW refuses anything else
        self.products = None

    def formed(self) -> dict:
        """{name of a matrix that factors form: W}"""
        return {f'{name}.weight': W for name, W in zip(self, self.weights)}

    def leaves(self):
        return leaves(self.model, self)

    def matrices(self):
        return matrices(self.model, self)

    def state(self) -> dict:
        """The state dict of the model with the factors in place of the matrices that are formed from them."""
        sd = self.model.state_dict()
        for name, layer in self.items():
            del sd[f'{name}.weight']
            sd |= {f'{name}.{k}': v for k, v in layer.state_dict().items()}
        return sd

    def flops_per_update(self) -> int:
        """Per optimizer step, whatever the batch: forming every W, and the chain rule back."""
        return 6 * sum(m.form_macs() for m in self.values())


def into(layer, W):
    """W <- to_dense(), which is returned."""
    P = layer.to_dense()
    W.copy_(P.detach())
    return P


@torch.no_grad()
def dense_float64(layer) -> torch.Tensor:
    """W of a layer, its product formed in float64."""
    return copy.deepcopy(layer).double().to_dense()


def table(model, beside=None) -> list[str]:
    """A line for every kind of layer that is not dense: sites, shape, parameters; with the factors of a run (beside), also on
    which path that run trains it."""
    kinds = {}
    for name, m in model.named_modules():
        layer = m if beside is None else beside.get(name, m)
        if hasattr(layer, 'factors'):
            n = sum(p.numel() for p in layer.factors)
            share = n / (layer.d_in * layer.d_out)
            path = '' if beside is None else ', materialised' if name in beside else ', factored'
            line = f'{layer.d_in} -> {layer.d_out}: {layer.describe()}, {n:,} parameters ({share:.1%} of dense){path}'
            kinds.setdefault(line, []).append(name.removeprefix('transformer.'))
    return [f'{s[0]}{f" and {len(s) - 1} more" if s[1:] else ""} {line}' for line, s in kinds.items()]
