"""
step_rule = product: the matrix W that factors form moves as a dense one would, and the factors follow.

The gradient of W itself, as it is before the chain rule, goes through the optimizer: W has the momentum, the direction and
the scale of a dense matrix in its place, and is to change by T (d_out, d_in), for Muon -lr s O. With J the derivative of W
in its factors, which take the step d,

    d minimises |J d - T|^2 + damping |d|^2,    damping = |T| / sqrt(min(d_out, d_in))  (Frobenius norms)

Without damping d is the smallest of all steps that bring W nearest to its target, and W moves as the dense one to first
order in lr, as far as its factors can follow: a product of rank r reaches what W changes in its own rows or columns.

Damping. It is the root mean square of T's singular values, so it vanishes with lr. No singular value of
(J^T J + damping)^-1 J^T is above 1 / (2 sqrt(damping)), so |d|^2 <= |T| sqrt(min(d_out, d_in)) / 4 whatever the factors are,
near zero or singular: a factor moves by at most half the root of what W moves by (root mean squares of singular values).

Solution. Conjugate residuals: CGLS (Hestenes & Stiefel 1952) with every step written as d = J^T y, so that all vectors are
as small as W. An iteration takes one product with J J^T, no decision and no decomposition, which a captured update can
follow. It never makes the fit worse, or d larger than the solution, so the bound holds after a few. As d = J^T y, the
factors take the gradient step of a W that is pulled towards y: B^T B - A A^T stays what it was, to first order, as under
gradient flow. J and J^T come from autograd of the layer's to_dense(), whatever the layer is.
"""

import math

import torch

import linear

ITERATIONS = 4  # leave 7% of T for Gaussian factors of k = 2000, 384 -> 1536; O is no nearer to the orthogonal factor


def problems(cfg) -> list[str]:
    """What of the layers does not go with the rule, one line each."""
    if cfg.linear not in linear.LAYERS or cfg.linear == 'dense':
        return []
    if not linear.LAYERS[cfg.linear].is_matrix:
        return [f'step_rule = product: linear = {cfg.linear} is no matrix, without a W; use factor or composed']
    if cfg.linear_path == 'factored':
        return ['linear_path = factored: never forms the W that step_rule = product moves; use materialised or auto']
    return []


class Product:
    """The layers whose W is formed of factors, and how their factors follow a step of W.

    weights     {name of W: W}, as in the state of the optimizer
    groups      [(layer, [names of W], {key: tensors that follow}, {key: tensors that stay})], layers of equal shape together
    """

    def __init__(self, layers: list, parameters: dict):
        """As those of MatrixOptimizer; parameters has the W of each layer that is formed, as NAME.weight."""
        self.weights, groups = {}, {}
        for name, layer, found in layers:
            W = parameters.get(f'{name}.weight')
            if W is None or 'weight' in found or not found:
                continue  # W itself is the parameter, or no matrix of the layer could follow it: AdamW moves its vectors
            self.weights[f'{name}.weight'] = W
            own = dict(layer.named_parameters()) | dict(layer.named_buffers())
            shapes = type(layer), layer.d_in, layer.d_out, tuple((k, v.shape) for k, v in own.items())
            _, names, moving, fixed = groups.setdefault(shapes, (Formed(layer), [], {}, {}))
            names.append(f'{name}.weight')
            for k, v in own.items():
                if k != 'lr_scale':
                    (moving if k in found else fixed).setdefault(f'layer.{k}', []).append(v)
        self.groups = list(groups.values())

    def as_dense(self, layers: list) -> list:
        """layers with the matrix W of each one that is formed, in place of its factors."""
        return [
            (name, layer, dict(weight=linear.base.Matrix((layer.d_out, layer.d_in), (0,), (1,), split=layer.parts)))
            if f'{name}.weight' in self.weights
            else (name, layer, found)
            for name, layer, found in layers
        ]

    def follow(self, changes: dict, dtype):
        """Move the factors so that every W changes by changes[name of W], nearly. dtype: of the products."""
        for layer, names, moving, fixed in self.groups:
            T = torch.stack([changes[name] for name in names])
            pull, push = derivatives(layer, stack(moving, dtype), stack(fixed, dtype))
            for k, d in pull(solve(lambda y, pull=pull, push=push: push(pull(y)).to(y.dtype), T)).items():
                torch._foreach_add_([p.data for p in moving[k]], list(d.to(T.dtype).unbind()))


class Formed(torch.nn.Module):
    """W of a layer, as a function of its tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer.to_dense()


def stack(tensors: dict, dtype) -> dict:
    found = {k: torch.stack(v) for k, v in tensors.items()}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def derivatives(layer, moving: dict, fixed: dict):
    """(J^T, J) of the W of L layers in their tensors `moving` {name: (L, ...)}: (L, d_out, d_in) -> like moving, and back."""
    form = torch.func.vmap(lambda a, b: torch.func.functional_call(layer, a | b, ()))
    W, pull = torch.func.vjp(lambda a: form(a, fixed), moving)
    _, push = torch.func.vjp(pull, torch.zeros_like(W))  # J^T is linear: its own derivative, the other way, is J
    return lambda y: pull(y.to(W.dtype))[0], lambda d: push((d,))[0]


def solve(square, T):
    """y (L, d_out, d_in) with d = J^T y, for each of L layers by itself. square: y -> J J^T y."""
    damping = T.norm(dim=(1, 2), keepdim=True) / min(T.shape[1:]) ** 0.5
    y, left, u = torch.zeros_like(T), T, T  # left = T - J d; J^T u = J^T left - damping d, what d still lacks
    v = q = torch.zeros_like(T)  # the direction is J^T v and moves W by q = J J^T v
    old = math.inf
    for _ in range(ITERATIONS):
        w = square(u)
        size = inner(u, w)  # |J^T u|^2
        v, q = u + size / old * v, w + size / old * q
        step = size / (inner(q, q) + damping * inner(v, q)).clamp(min=1e-30)
        y, left = y + step * v, left - step * q
        u, old = left - damping * y, size.clamp(min=1e-30)
    return y


def inner(a, b):
    return (a * b).sum((1, 2), keepdim=True)
