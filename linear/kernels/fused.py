"""
Products with an activation on chip, for MLPs whose layers are dense or structured.

    activated    Z, B -> act(h), act'(h) with h = Z B, which is never written
    against      dZ, A, s -> (dZ A^T) s, the gradient at h when s = act'(h)

Where h is computed its activation and the derivative are both at hand, so the first product writes these two, and the
product of the backward pass that ends at h multiplies by what was written. With kernels of its own the activation
reads and writes arrays of the widest kind in the model five times; that is what keeps small MLPs slow. Deriving again in
the second product was slower than two kernels (results/structured/gelu_fusion.txt).

Tiles come and go through the tensor memory accelerator of Hopper and later GPUs. Beyond an inner width of NARROW the
arithmetic takes so much longer than the memory that cuBLAS and a kernel apart are faster (results/structured/
fused_products.txt): s is then h itself, and y is kept, where a compiler would compute it twice.
"""

import math

import torch

from linear.einsum import Einsum
from linear.kernels import activations, blocks, chip, tl, triton
from linear.kernels.activations import activation, times_slope

ACTIVATIONS = activations.NAMES
NARROW = 1024
BIAS = True  # of dense layers; bench.py ablate switches it off
BM, BN, BK = 128, 128, 64  # of a tile: tokens, features out, features in

if triton is not None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from linear.kernels.activations import activate

    @triton.jit
    def halves(h, M: tl.constexpr, N: tl.constexpr):
        return tl.split(h.reshape(M, 2, N // 2).permute(0, 2, 1))

    @triton.jit
    def load(x, b, i, j, R: tl.constexpr, C: tl.constexpr, TURNED: tl.constexpr):
        """x[b, i : i + R, j : j + C], of a descriptor of x or, TURNED, of its transpose."""
        if TURNED:
            return x.load([b, j, i]).reshape(C, R).T
        return x.load([b, i, j]).reshape(R, C)

    @triton.jit
    def tile(
        t, x, w, y, s, bias, sums, COUNT: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr,
        XT: tl.constexpr, WT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        tiles: tl.constexpr = (N + BN - 1) // BN
        b, n, m = t // tiles % COUNT, t % tiles * BN, t // (tiles * COUNT) * BM
        h = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            h = tl.dot(load(x, b, m, k, BM, BK, XT), load(w, b, k, n, BK, BN, WT), h)
        j = n + tl.arange(0, BN)
        if bias is not None:
            h += tl.load(bias + b * N + j, j < N, 0.0).to(tl.float32)[None, :]
        if ACT is None:
            h *= s.load([m, b, n]).reshape(BM, BN).to(tl.float32)
            if sums is not None:
                tl.store(sums + (m // BM * COUNT + b) * N + j, tl.sum(h, 0), j < N)
            y.store([m, b, n], h.to(y.dtype).reshape(BM, 1, BN))
        else:  # a quarter at a time: all at once they need more registers than two blocks can have
            left, right = halves(h, BM, BN)
            parts = halves(left, BM, BN // 2) + halves(right, BM, BN // 2)
            for q in tl.static_range(4):
                h, slope = activate(parts[q], ACT)
                s.store([m, b, n + q * BN // 4], slope.to(s.dtype).reshape(BM, 1, BN // 4))
                y.store([m, b, n + q * BN // 4], h.to(y.dtype).reshape(BM, 1, BN // 4))

    @triton.jit
    def product(
        x, w, y, s, bias, sums, total, COUNT: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr,
        XT: tl.constexpr, WT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PROGRAMS: tl.constexpr,
    ):  # fmt: skip
        """h[m, b N + n] = sum_k x[b, m, k] w[b, k, n] + bias[b N + n], b < COUNT. y, s: act(h), act'(h) are written; without
        ACT y = h s, and sums (row of tiles, b N + n) are those of y over the rows of a tile. bias and sums may be none."""
        if ACT is None:
            tile(tl.program_id(0), x, w, y, s, bias, sums, COUNT, N, K, ACT, XT, WT, BM, BN, BK)
        else:  # programs that stay, so that the next operands come while an activation is computed
            for t in tl.range(tl.program_id(0), total, PROGRAMS, flatten=True):
                tile(t, x, w, y, s, bias, sums, COUNT, N, K, ACT, XT, WT, BM, BN, BK)


def on_chip(x):
    """Whether the GPU has what the kernel takes: tensor memory accelerator, room for two blocks of three stages."""
    if triton is None or not x.is_cuda:
        return False
    p = torch.cuda.get_device_properties(x.device)
    return p.major >= 9 and p.shared_memory_per_block_optin > 200 * 1024


def reachable(*tensors):
    """Whether the accelerator can: it wants all strides but one, and the address, in multiples of 16 bytes."""
    return all(
        t.data_ptr() % 16 == 0 and sorted(n % 8 for n in t.stride())[:-1] == [0] * (t.dim() - 1) and 1 in t.stride()
        for t in tensors
    )


def launch(x, w, y, s, act, bias=None, sums=None):
    """x (b, M, K), w (b, K, N), one stride of each 1; y, s (..., b N); bias (b N); sums (M / BM, b N)."""
    count, M, K = x.shape
    N = w.size(2)
    turned = [t.stride(2) != 1 for t in (x, w)]

    def described(t, block):
        return TensorDescriptor(t, list(t.shape), list(t.stride()), block)

    x, w = (
        described(t.mT, [1, c, r]) if back else described(t, [1, r, c])
        for t, back, (r, c) in zip((x, w), turned, ((BM, BK), (BK, BN)))
    )
    y, s = (described(t.view(M, count, N), [BM, 1, BN // 4 if act else BN]) for t in (y, s))
    total = count * triton.cdiv(N, BN) * triton.cdiv(M, BM)
    programs = min(total, 2 * torch.cuda.get_device_properties(y.base.device).multi_processor_count) if act else total
    product[(programs,)](
        x, w, y, s, bias, sums, total, count, N, K, act, *turned, BM, BN, BK, programs if act else 0,
        num_warps=8, num_stages=3, maxnreg=128,
    )  # fmt: skip


# -----------------------------------------------------------------------------
# operators, plain activations (..., features) in and out as in blocks.py


for schema in (
    'activated(Tensor x, Tensor Z, Tensor B, str act, bool narrow, Tensor? bias=None) -> (Tensor, Tensor)',
    'against(Tensor dZ, Tensor A, Tensor s, int f, str act, bool narrow) -> Tensor',
    'against_sums(Tensor dZ, Tensor A, Tensor s, str act, bool narrow) -> (Tensor, Tensor)',
):
    blocks.define(schema)


def activated_fake(x, Z, B, act, narrow, bias=None):
    y = x.new_empty(*x.shape[:-1], B.size(0) * B.size(2))
    return y, torch.empty_like(y)


@blocks.op('activated', activated_fake, lambda x, Z, B, *_: 2 * blocks.tokens(x) * math.prod(B))
def activated(x, Z, B, act, narrow, bias=None):
    """Z (..., k) with B (1, k, e), or Z (f, k, T) with B (f, k, e) -> y, s (..., f e): act(h), and act'(h) if narrow, else h,
    for h = Z B + bias (f e). x: what Z was computed from, for its leading axes."""
    f, k, e = B.shape
    Z = Z.reshape(1, -1, k) if f == 1 else Z.mT
    s = x.new_empty(*x.shape[:-1], f * e)
    if narrow and on_chip(x) and reachable(Z, B, s):
        y = torch.empty_like(s)
        launch(Z, B, y, s, act, bias)
        return y, s
    h = torch.bmm(Z, B, out=s.view(-1, f, e).transpose(0, 1)).transpose(0, 1).view(s.shape)
    if bias is not None:
        h += bias
    y = activation(h, act)
    return y, times_slope(torch.ones_like(h), h, act) if narrow else h


@blocks.op(
    'against',
    lambda dZ, A, s, f, act, narrow: torch.empty_like(s),
    lambda dZ, A, s, f, act, narrow: 2 * blocks.tokens(s) * math.prod(A),
)
def against(dZ, A, s, f, act, narrow):
    """dZ (..., g k), f = 1, or (k, g, T), with A (g, a, k) and s (..., g a) as above -> (dZ A^T) act'(h)."""
    g, a, k = A.shape
    dZ = blocks.split(dZ, g) if f == 1 else dZ.permute(1, 2, 0)
    y = torch.empty_like(s)
    if narrow and on_chip(s) and reachable(dZ, A, s):
        launch(dZ, A.mT, y, s, None)
        return y
    torch.bmm(dZ, A.mT, out=y.view(-1, g, a).transpose(0, 1))
    return y.mul_(s) if narrow else times_slope(y, s, act)


def sums_fake(dZ, A, s, act, narrow):
    return torch.empty_like(s), s.new_empty(-(-blocks.tokens(s.shape) // BM), s.size(-1), dtype=exact(s))


def exact(t):
    return torch.promote_types(t.dtype, torch.float32)


@blocks.op('against_sums', sums_fake, lambda dZ, A, s, *_: 2 * blocks.tokens(s) * math.prod(A))
def against_sums(dZ, A, s, act, narrow):
    """against() of a dense layer, A (1, a, k), and rows whose sum is that of its result over the tokens."""
    y, sums = sums_fake(dZ, A, s, act, narrow)
    if narrow and on_chip(s) and reachable(blocks.split(dZ, 1), A, s):
        launch(blocks.split(dZ, 1), A.mT, y, s, None, sums=sums)
    else:
        y = against(dZ, A, s, 1, act, narrow)
        sums.zero_()[0] = y.flatten(0, -2).sum(0, dtype=sums.dtype)
    return y, sums


# -----------------------------------------------------------------------------
# the two layers: factors A and B, or one of them where the layer is dense


def inner(x, A, f):
    """What lies between the factors A (g, a, f r) and B (f, r g, e) of a layer: (..., r g) for f = 1, else (f, r g, T)."""
    if f > 1:
        return blocks.ops.middle(x, A, f)
    return blocks.ops.blocks(x, A) if A.size(0) > 1 else x @ A.squeeze(0)


def gradients(dy, x, A, B, Z):
    """The gradients of what lies between, of A and of B."""
    g, f = A.size(0), B.size(0)
    if f > 1:  # the order matters for peak memory: Z can go before its gradient comes
        dB = blocks.ops.two_grad_B(dy, x, A, Z, f)
        dZ, dA = blocks.ops.two_grad_A(dy, x, B, g)
        return dZ, dA.contiguous(), dB
    dB = Z.flatten(0, -2).T @ dy.flatten(0, -2)
    dZ = dy @ B.squeeze(0).T
    dA = blocks.ops.blocks_grad(x, dZ, g) if g > 1 else (x.flatten(0, -2).T @ dZ.flatten(0, -2)).unsqueeze(0)
    return dZ, dA, dB.unsqueeze(0)


def gradient(dy, x):
    """The gradient of the one factor (1, in, out) of a dense layer, laid out as its weight (out, in) is."""
    return (dy.flatten(0, -2).T @ x.flatten(0, -2)).T.unsqueeze(0)


class Up(torch.autograd.Function):
    """x, A, B -> y, s as of activated(), h = x W^T. The gradient it takes for the first is that of h: Down gives no other."""

    @staticmethod
    def forward(ctx, x, A, B, act, narrow):
        f, ctx.inside = B.size(0), A is not None and narrow and chip.serves(x, A, B)
        if ctx.inside:
            y, s = blocks.ops.inside_activated(x, A, B, act)
            ctx.save_for_backward(x, A, B, None)
        else:
            Z = x if A is None else inner(x, A, f)
            y, s = blocks.ops.activated(x, Z, B, act, narrow)
            ctx.save_for_backward(x, A, B, None if A is None or f > 1 and A.size(1) <= B.size(2) else Z)
        ctx.mark_non_differentiable(s)
        ctx.set_materialize_grads(False)  # no zeros in place of its gradient
        return y, s

    @staticmethod
    def backward(ctx, dh, _):
        x, A, B, Z = ctx.saved_tensors
        if A is None:
            dB = gradient(dh, x)
            return dh @ B.squeeze(0).T, None, dB, None, None
        if ctx.inside:
            dA, dB = blocks.ops.inside_grads(x, dh, A, B)
            return blocks.ops.inside(dh, A, B, True), dA, dB, None, None
        dZ, dA, dB = gradients(dh, x, A, B, Z)
        if B.size(0) > 1:
            dx = blocks.ops.two_grad_x(dZ, A).view(x.shape)
        else:
            dx = blocks.ops.blocks(dZ, A.mT) if A.size(0) > 1 else dZ @ A.squeeze(0).T
        return dx, dA, dB, None, None


class Down(torch.autograd.Function):
    """y, s of Up, A, B -> y W^T; hands back the gradient of h in place of that of y."""

    @staticmethod
    def forward(ctx, y, s, A, B, act, narrow):
        ctx.inside = B is not None and narrow and chip.serves(y, A, B)
        if ctx.inside:
            out, Z = blocks.ops.inside(y, A, B, False), None
        elif B is None:
            out, Z = y @ A.squeeze(0), None
        elif B.size(0) > 1:
            out, Z = blocks.ops.two(y, A, B)
        else:
            Z = inner(y, A, 1)
            out = Z @ B.squeeze(0)
        ctx.save_for_backward(y, s, A, B, Z)
        ctx.how = act, narrow
        return out

    @staticmethod
    def backward(ctx, dout):
        y, s, A, B, Z = ctx.saved_tensors
        if ctx.inside:
            dA, dB = blocks.ops.inside_grads(y, dout, A, B)
            return blocks.ops.inside_against(dout, A, B, s), None, dA, dB, None, None
        dZ, dA, dB = (dout, gradient(dout, y), None) if B is None else gradients(dout, y, A, B, Z)
        f = 1 if B is None else B.size(0)
        return blocks.ops.against(dZ, A, s, f, *ctx.how), None, dA, dB, None, None


class Biased(torch.autograd.Function):
    """x, B, b, A, c -> act(x B + b) A + c, of two dense layers: B (1, in, out), b (out); A, c likewise."""

    @staticmethod
    def forward(ctx, x, B, b, A, c, act, narrow):
        y, s = blocks.ops.activated(x, x, B, act, narrow, b)
        out = torch.addmm(c.to(y.dtype), y.flatten(0, -2), A.squeeze(0))
        ctx.save_for_backward(x, B, y, s, A)
        ctx.how, ctx.dtypes = (act, narrow), (b.dtype, c.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dout):
        x, B, y, s, A = ctx.saved_tensors
        dh, db = blocks.ops.against_sums(dout, A, s, *ctx.how)
        db, dc = db.sum(0), dout.flatten(0, -2).sum(0, dtype=exact(dout))
        db, dc = (t.to(dtype) for t, dtype in zip((db, dc), ctx.dtypes))
        return dh @ B.squeeze(0).T, gradient(dh, x), db, gradient(dout, y), dc, None, None


def fits(fc, proj, x) -> bool:
    """Whether it serves: training, in 16 bits on a GPU, of two layers that are two factors as in inner(), without bias, or
    dense and narrow."""
    if not torch.is_grad_enabled() or not on_chip(x):
        return False
    auto = torch.is_autocast_enabled('cuda')
    short = (torch.get_autocast_dtype('cuda') if auto else x.dtype) in (torch.bfloat16, torch.float16)
    return short and all(one_fits(m) for m in (fc, proj))


def one_fits(m) -> bool:
    if isinstance(m, torch.nn.Linear):
        return min(m.weight.shape) <= NARROW and (m.bias is None or BIAS)
    return isinstance(m, Einsum) and m.shape.b == m.shape.d == 1 and m.guide is None and m.bias is None


def cast(m, x) -> tuple:
    """x and the factors of m in the precision of the products."""
    if not isinstance(m, torch.nn.Linear):
        return m.cast(x)
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    return x.to(dtype), [m.weight.to(dtype).T.unsqueeze(0)]


def mlp(fc, proj, x, act):
    """proj(act(fc(x)))"""
    x, up = cast(fc, x)
    down = cast(proj, x)[1]
    narrow = max(up[-1].size(1), down[0].size(2)) <= NARROW
    if fc.bias is not None:
        return Biased.apply(x, *up, fc.bias, *down, proj.bias, act, narrow)
    y, s = Up.apply(x, *[None, *up][-2:], act, narrow)
    return Down.apply(y, s, *[*down, None][:2], act, narrow)
