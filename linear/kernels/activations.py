"""
The activations of an MLP with their derivatives: in Triton, for use inside kernels, and on whole arrays. GELU's Gaussian is Abramowitz & Stegun 26.2.17 (error
7.5e-8): the density in it serves the derivative, too.
"""

import torch
from torch.nn import functional as F

from linear.kernels import tl, triton

NAMES = ('gelu', 'gelu_tanh', 'relu2')

if triton is not None:

    @triton.jit
    def special(x, NAME: tl.constexpr):
        """One instruction each for 2^x (ex2) and 1 / x (rcp), without the care for denormal numbers that takes eight."""
        return tl.inline_asm_elementwise(NAME + '.approx.ftz.f32 $0, $1;', '=f,f', [x], tl.float32, True, 1)

    @triton.jit
    def activate(h, ACT: tl.constexpr):
        """act(h), act'(h)"""
        if ACT == 'gelu':
            t = special(1 + 0.2316419 * tl.abs(h), 'rcp')
            density = special(-0.7213475204 * h * h - 1.3257480647, 'ex2')
            tail = (((1.330274429 * t - 1.821255978) * t + 1.781477937) * t - 0.356563782) * t + 0.319381530
            tail *= t * density
            p = tl.where(h < 0, tail, 1 - tail)
            return h * p, p + h * density
        elif ACT == 'gelu_tanh':  # h sigmoid(u)
            s = special(1 + special(h * (-2.3022081986 - 0.1029432397 * h * h), 'ex2'), 'rcp')
            return h * s, s + h * s * (1 - s) * (1.5957691216 + 0.2140644488 * h * h)
        else:
            r = tl.maximum(h, 0.0)
            return r * r, 2 * r

    @triton.jit
    def slope(dy, h, n, ACT: tl.constexpr, BLOCK: tl.constexpr):
        """dy <- dy act'(h)"""
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        d = tl.load(dy + i, i < n, 0.0).to(tl.float32) * activate(tl.load(h + i, i < n, 0.0).to(tl.float32), ACT)[1]
        tl.store(dy + i, d.to(dy.dtype.element_ty), i < n)


def activation(h, act):
    if act == 'relu2':
        return F.relu(h).square_()
    return F.gelu(h, approximate='tanh' if act == 'gelu_tanh' else 'none')


def times_slope(dy, h, act):
    """dy <- dy act'(h)"""
    if triton is not None and dy.is_cuda and dy.is_contiguous() and h.is_contiguous():
        slope[(triton.cdiv(dy.numel(), 2048),)](dy, h, dy.numel(), act, 2048, num_warps=8)
        return dy
    if act == 'relu2':
        return torch.ops.aten.threshold_backward.grad_input(dy, h, 0, grad_input=dy).mul_(h).mul_(2)
    approximate = 'tanh' if act == 'gelu_tanh' else 'none'
    return torch.ops.aten.gelu_backward.grad_input(dy, h, approximate=approximate, grad_input=dy)
