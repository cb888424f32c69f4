"""
Products of a mixture of experts that take and leave every row where it lies.

    product    y[t] = sum_s gates[t, s] x[t] W[experts[t, s]], of all tokens in one kernel
    mlp        the same of two products with GELU between them, where it never lies in memory unactivated

Tokens that are sent to the same set of experts share a tile, which multiplies by one expert after the other and writes each
row once. Rows are read and written at the places that a list of the tokens, sorted by set, names; so none is copied in
order, back again, or summed over the experts afterwards. Where there are too many sets for that, tiles are of one
expert each, and the sum is taken afterwards. Triton, in 16 bits on a GPU; the operators are plain loops elsewhere, which
serve to test them.
"""

import math

import torch

from linear.kernels import blocks, fused, tl, triton

ON = True  # bench.py ablate switches it off
TMA = True  # matrices come through the tensor memory accelerator of Hopper and later GPUs
LEAST = 1024  # tokens; for fewer, forming or even reading all experts is too much
SETS = 128  # at most; a program looks through all of them
BM, BN, BK, WARPS, STAGES = 128, 128, 64, 8, 3  # of a tile: rows, features out and in
REGS = 128  # of a thread: two blocks fit on a multiprocessor
# of a gradient: features in and out, rows, warps, stages, one of which goes to the list of rows and one to its use
OUTER = 128, 128, 64, 8, 5
FULL = 264  # programs, two on each multiprocessor: below that the rows of an expert are split

if triton is not None:
    from linear.kernels.fused import TensorDescriptor, activate, load

    @triton.jit
    def set_of(experts, i, there, COUNT: tl.constexpr, M: tl.constexpr):
        """The number of the set of experts of row i, below COUNT = C(E, M): the sum of C(expert, rank + 1)."""
        number = tl.zeros_like(i)
        for s in tl.static_range(M):
            e = tl.load(experts + i * M + s, there, 0).to(tl.int32)
            rank = tl.zeros_like(i)
            for u in tl.static_range(M):
                rank += (tl.load(experts + i * M + u, there, 0) < e).to(tl.int32)
            ways = e
            for v in tl.static_range(1, M):
                ways = tl.where(v <= rank, ways * (e - v) // (v + 1), ways)
            number += ways
        return tl.minimum(number, COUNT - 1)

    @triton.jit
    def count(experts, counts, N, COUNT: tl.constexpr, M: tl.constexpr, BINS: tl.constexpr, BLOCK: tl.constexpr):
        """counts[block, set]"""
        i, bins = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BINS)
        number = set_of(experts, i, i < N, COUNT, M)
        mine = ((number[:, None] == bins[None, :]) & (i < N)[:, None]).to(tl.int32)
        tl.store(counts + tl.program_id(0) * BINS + bins, tl.sum(mine, 0))

    @triton.jit
    def place(experts, counts, order, ends, N, n_blocks, COUNT: tl.constexpr, M: tl.constexpr,
              BINS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
        """order: the rows by set, in their own order within it; ends: where each set's end."""
        block, bins = tl.program_id(0), tl.arange(0, BINS)
        total, before = tl.zeros((BINS,), tl.int32), tl.zeros((BINS,), tl.int32)
        for j in range(0, n_blocks, CHUNK):
            b = j + tl.arange(0, CHUNK)[:, None]
            found = tl.load(counts + b * BINS + bins[None, :], b < n_blocks, 0)
            total += tl.sum(found, 0)
            before += tl.sum(tl.where(b < block, found, 0), 0)
        end = tl.cumsum(total, 0)
        if block == 0:
            tl.store(ends + bins, end)
        i = block * BLOCK + tl.arange(0, BLOCK)
        number = set_of(experts, i, i < N, COUNT, M)
        mine = ((number[:, None] == bins[None, :]) & (i < N)[:, None]).to(tl.int32)
        at = tl.sum(mine * (tl.cumsum(mine, 0) - 1 + (end - total + before)[None, :]), 1)
        tl.store(order + at, i, i < N)

    @triton.jit
    def rows(
        W, experts, gates, order, ends, aux, slope, x, y, parts, N, d_in, d_out, se, sk, so,
        M: tl.constexpr, SPREAD: tl.constexpr, AUX_SPREAD: tl.constexpr, SLOTS: tl.constexpr, GATED: tl.constexpr,
        AUX: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, TMA: tl.constexpr, BINS: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        """y[i] = sum_s gates[i, s] x[row] W[experts[i, s]], row = i // SPREAD, or i M + s with SLOTS.
        parts[n, i, s]: aux[i // AUX_SPREAD] . x[row] W[experts[i, s]] over the features of tile n, the gradient of the gate.
        With ACT it writes act(y[i]) and slope[i] = act'(y[i]), with SLOPE y[i] slope[i]."""
        tiles_o = tl.cdiv(d_out, BN)
        tile, n = tl.program_id(0) // tiles_o, tl.program_id(0) % tiles_o
        bins = tl.arange(0, BINS)
        stop = tl.load(ends + bins)
        start = tl.load(ends + bins - 1, bins > 0, 0)
        tiles = tl.cdiv(stop - start, BM)
        last = tl.cumsum(tiles, 0)
        here = (last - tiles <= tile) & (tile < last)  # true for one set, or for none: then there is no such tile
        if tl.sum(here.to(tl.int32), 0) == 0:
            return
        first = tl.sum(tl.where(here, start + (tile - last + tiles) * BM, 0), 0)
        end = tl.sum(tl.where(here, stop, 0), 0)
        at = first + tl.arange(0, BM)
        there = at < end
        lead = tl.load(order + first)
        i = tl.load(order + tl.where(there, at, first))
        o, k = n * BN + tl.arange(0, BN), tl.arange(0, BK)
        out = i.to(tl.int64)[:, None] * d_out + o[None, :]
        kept = there[:, None] & (o < d_out)[None, :]
        acc = tl.zeros((BM, BN), tl.float32)  # in units of the gate of the expert in turn
        before, seen = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
        for s in tl.static_range(M):
            e = tl.load(experts + lead * M + s)
            slot, gate = tl.zeros_like(i), tl.zeros((BM,), tl.float32)
            for u in tl.static_range(M):
                same = tl.load(experts + i * M + u) == e
                slot = tl.where(same, u, slot)
                if GATED:
                    gate = tl.where(same, tl.load(gates + i * M + u).to(tl.float32), gate)
            if GATED:
                gate = tl.maximum(gate, 1e-6)  # far below what 16 bits resolve
                if s > 0:
                    acc *= (before / gate)[:, None]
                    seen *= before / gate
                before = gate
            row = i * M + slot if SLOTS else i // SPREAD
            px = x + row.to(tl.int64)[:, None] * d_in + k[None, :]
            if TMA is None:
                pw = W + e.to(tl.int64) * se + k[:, None] * sk + o[None, :] * so
            for k0 in range(0, d_in, BK):
                if TMA is not None:
                    left = tl.load(px, (k0 + k < d_in)[None, :], 0.0)
                    right = load(W, e, k0, n * BN, BK, BN, TMA == 'turned')
                elif WHOLE:
                    left, right = tl.load(px), tl.load(pw)
                else:
                    left = tl.load(px, (k0 + k < d_in)[None, :], 0.0)
                    right = tl.load(pw, (k0 + k < d_in)[:, None] & (o < d_out)[None, :], 0.0)
                acc = tl.dot(left, right, acc)
                px += BK
                if TMA is None:
                    pw += BK * sk
            if AUX:
                to = (i // AUX_SPREAD).to(tl.int64)[:, None] * d_out + o[None, :]
                found = tl.sum(acc * tl.load(aux + to, kept, 0.0).to(tl.float32), 1)
                tl.store(parts + (n * N + i) * M + slot, found - seen, there)
                seen = found
        if GATED:
            acc *= before[:, None]
        if SLOPE:
            acc *= tl.load(slope + out, kept, 0.0).to(tl.float32)
        if ACT is not None:
            acc, steep = activate(acc, ACT)
            tl.store(slope + out, steep.to(slope.dtype.element_ty), kept)
        tl.store(y + out, acc.to(y.dtype.element_ty), kept)

    @triton.jit
    def outers(
        x, y, order, ends, dW, d_in, d_out, E, SPLIT, X_SPREAD: tl.constexpr, Y_SPREAD: tl.constexpr,
        BI: tl.constexpr, BO: tl.constexpr, BR: tl.constexpr,
    ):  # fmt: skip
        """dW[part, e] = sum of x[r // X_SPREAD]^T y[r // Y_SPREAD] over a SPLIT-th of the rows of expert e."""
        tiles_o = tl.cdiv(d_out, BO)
        tiles = tl.cdiv(d_in, BI) * tiles_o
        which, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
        e, part = which % E, which // E
        i, o = tile // tiles_o * BI + tl.arange(0, BI), tile % tiles_o * BO + tl.arange(0, BO)
        start = tl.load(ends + e - 1, e > 0, 0)
        stop = tl.load(ends + e)
        span = tl.cdiv(tl.cdiv(stop - start, SPLIT), BR) * BR
        start += part * span
        stop = tl.minimum(stop, start + span)
        acc = tl.zeros((BI, BO), tl.float32)
        for at in range(start, stop, BR):
            j = at + tl.arange(0, BR)
            r = tl.load(order + j, j < stop, 0)
            px = x + (r // X_SPREAD).to(tl.int64)[:, None] * d_in + i[None, :]
            py = y + (r // Y_SPREAD).to(tl.int64)[:, None] * d_out + o[None, :]
            left = tl.load(px, (j < stop)[:, None] & (i < d_in)[None, :], 0.0)
            right = tl.load(py, (j < stop)[:, None] & (o < d_out)[None, :], 0.0)
            acc = tl.dot(tl.trans(left), right, acc)
        to = (which.to(tl.int64) * d_in + i[:, None]) * d_out + o[None, :]
        tl.store(dW + to, acc.to(dW.dtype.element_ty), (i < d_in)[:, None] & (o < d_out)[None, :])


def runs(x) -> bool:
    return triton is not None and x.is_cuda


def fits(dtype, E, *widths) -> bool:
    """Whether these serve training in dtype on a GPU, of E experts with layers of these widths; they never wait for it."""
    short = dtype in (torch.bfloat16, torch.float16)
    return ON and triton is not None and short and E <= SETS and all(n % 16 == 0 for n in widths)


def serves(x, E, *widths) -> bool:
    """Whether they serve for x (T, i)."""
    return runs(x) and x.size(0) >= LEAST and fits(x.dtype, E, *widths)


# -----------------------------------------------------------------------------
# operators


ops = torch.ops.nanomorph
for schema in (
    'sets(Tensor experts, int E) -> (Tensor, Tensor)',
    'rows(Tensor x, Tensor W, Tensor experts, Tensor? gates, Tensor order, Tensor ends, Tensor? aux, Tensor? slope, str? act)'
    ' -> (Tensor, Tensor, Tensor)',
    'outers(Tensor x, Tensor y, Tensor order, Tensor ends, int E) -> Tensor',
):
    blocks.define(schema)


def ceil(n, d):
    return (n + d - 1) // d


def power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def bins(E: int, m: int) -> int:
    return max(2, power(math.comb(E, m)))


def sets_fake(experts, E):
    new = lambda n: experts.new_empty(n, dtype=torch.int32)
    return new(experts.size(0)), new(bins(E, experts.size(1)))


@blocks.op('sets', sets_fake, lambda experts, E: 0)
def sets(experts, E):
    """experts (N, m), m different ones below E for each row -> order (N): the rows sorted by set, in their own order within
    it; ends: where each set's end, for sets that there are not the end of the last."""
    (N, m), B = experts.shape, bins(E, experts.size(1))
    experts, sets = experts.contiguous(), math.comb(E, m)
    if runs(experts):
        order, ends = sets_fake(experts, E)
        block = min(1024, 16384 // B)
        n = ceil(N, block)
        counts = experts.new_empty(n, B, dtype=torch.int32)
        count[(n,)](experts, counts, N, sets, m, B, block)
        place[(n,)](experts, counts, order, ends, N, n, sets, m, B, block, min(power(n), 8192 // B), num_warps=8)
        return order, ends
    rank = (experts[:, :, None] > experts[:, None, :]).sum(2)
    ways = experts.clone()
    for v in range(1, m):
        ways = torch.where(v <= rank, ways * (experts - v) // (v + 1), ways)
    number = ways.sum(1).clamp(max=sets - 1)
    return number.argsort(stable=True).int(), number.bincount(minlength=B).cumsum(0).int()


def described(W):
    """W (E, i, o), or turned, for the accelerator."""
    straight = W.stride(2) == 1
    t, block = (W, [1, BK, BN]) if straight else (W.mT, [1, BN, BK])
    return TensorDescriptor(t, list(t.shape), list(t.stride()), block)


def rows_fake(x, W, experts, gates, order, ends, aux=None, slope=None, act=None):
    (N, m), d_out = experts.shape, W.size(2)
    parts = (0, 0, 0) if aux is None else (ceil(d_out, BN), N, m)
    like = x if gates is None else gates
    return x.new_empty(N, d_out), like.new_empty(parts), x.new_empty(N if act else 0, d_out)


@blocks.op('rows', rows_fake, lambda x, W, experts, *_: 2 * math.prod(experts) * W[1] * W[2])
def rows_op(x, W, experts, gates, order, ends, aux=None, slope=None, act=None):
    """x (N, i), (N / n, i), one for n rows that follow each other, or (N m, i), one for each expert of a row; W (E, i, o),
    experts and gates (N, m), order and ends of sets() -> y (N, o); and where aux (N, o) or (N / n, o) is given, which y is
    the gradient of, that of the gates, to be summed over its first axis; and with act, where y is activated, the derivative.
    slope (N, o): what y is multiplied by at the end. See the kernel."""
    (N, m), (E, d_in, d_out) = experts.shape, W.shape
    y, parts, steep = rows_fake(x, W, experts, gates, order, ends, aux, slope, act)
    x, experts = x.contiguous(), experts.contiguous()
    gates, aux, slope = (None if t is None else t.contiguous() for t in (gates, aux, slope))
    slots = x.size(0) > N
    spread, aux_spread = max(1, N // x.size(0)), 1 if aux is None else N // aux.size(0)
    if runs(x):
        tiles = N // BM + min(N, math.comb(E, m))
        come = None
        if TMA and fused.on_chip(x) and fused.reachable(W):
            come = 'straight' if W.stride(2) == 1 else 'turned'
        rows[(tiles * ceil(d_out, BN),)](
            W if come is None else described(W), experts, gates, order, ends, aux, steep if slope is None else slope,
            x, y, parts, N, d_in, d_out, *W.stride(), m, spread, aux_spread, slots, gates is not None, aux is not None, act,
            slope is not None, come, ends.size(0), d_in % BK == d_out % BN == 0, BM, BN, BK,
            num_warps=WARPS, num_stages=STAGES, maxnreg=REGS,
        )  # fmt: skip
        return y, parts, steep
    y.zero_()
    parts.zero_()
    for e in range(E):
        i, s = (experts == e).nonzero(as_tuple=True)
        z = x[i * m + s if slots else i // spread] @ W[e]
        if aux is not None:
            parts[0, i, s] = (z * aux[i // aux_spread]).sum(1).to(parts.dtype)
        y.index_add_(0, i, z if gates is None else z * gates[i, s, None].to(z.dtype))
    if act:
        steep.copy_(fused.times_slope(torch.ones_like(y), y, act))
        y = fused.activation(y, act)
    return y if slope is None else y * slope, parts, steep


def splits(E, i, o):
    return max(1, min(16, FULL // (E * ceil(i, OUTER[0]) * ceil(o, OUTER[1]))))


def outers_fake(x, y, order, ends, E):
    split = splits(E, x.size(1), y.size(1))
    dtype = torch.float32 if split > 1 and x.dtype != torch.float64 else x.dtype
    return x.new_empty(split, E, x.size(1), y.size(1), dtype=dtype)


@blocks.op('outers', outers_fake, lambda x, y, order, ends, E: 2 * order[0] * x[1] * y[1])
def outers_op(x, y, order, ends, E):
    """x (N or N / n, i), y (N or N / n, o), N rows in the order of sets() of one expert each -> (parts, E, i, o): the gradient
    of W in parts to be summed."""
    N, (split, _, d_in, d_out) = order.size(0), (dW := outers_fake(x, y, order, ends, E)).shape
    x, y = x.contiguous(), y.contiguous()
    nx, ny = N // x.size(0), N // y.size(0)
    if runs(x):
        BI, BO, BR, warps, stages = OUTER
        outers[(split * E * ceil(d_in, BI) * ceil(d_out, BO),)](
            x, y, order, ends, dW, d_in, d_out, E, split, nx, ny, BI, BO, BR, num_warps=warps, num_stages=stages
        )
        return dW
    dW.zero_()
    start = 0
    for e, end in enumerate(ends.tolist()[:E]):
        r = order[start:end].long()
        dW[0, e] = x[r // nx].T @ y[r // ny]
        start = end
    return dW


# -----------------------------------------------------------------------------
# the product and its gradients


def plan(experts, E) -> tuple:
    """experts (T, k) -> what product() needs to know of them: experts, rows by expert, tokens by set."""
    experts = experts.int()
    singles = ops.sets(experts.view(-1, 1), E)
    T, k = experts.shape
    if k == 1:
        return experts, *singles, *singles
    few = math.comb(E, k) <= min(SETS, T // BM)
    return experts, *singles, *(ops.sets(experts, E) if few else (None, None))


def multiply(x, W, gates, plan, aux=None):
    """x (T, i), or (T k, i) with a row for each expert of a token -> y (T, o), the gradient of the gates (T, k) where aux is
    what y is the gradient of, else none."""
    experts, order, ends, by_set, set_ends = plan
    T, k = experts.shape
    if by_set is not None:
        y, parts, _ = ops.rows(x, W, experts, gates, by_set, set_ends, aux, None, None)
    else:
        gates = None if gates is None else gates.view(-1, 1)
        y, parts, _ = ops.rows(x, W, experts.view(-1, 1), gates, order, ends, aux, None, None)
        y = y.view(T, k, -1).sum(1, dtype=y.dtype)  # or autocast makes it float32
    return y, None if aux is None else sum(parts).view(T, k)


def weigh(x, gates):
    """(T, i), gates (T, k) -> (T k, i)"""
    return (x[:, None] * gates[..., None]).to(x.dtype).flatten(0, 1)


def gradient(x, dy, W, plan):
    """The gradient of W, for x and dy (T, ...) or (T k, ...), not both the first."""
    return ops.outers(x, dy, *plan[1:3], W.size(0)).sum(0).to(W.dtype)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, gates, *plan):
        ctx.save_for_backward(x, W, gates, *plan)
        return multiply(x, W, gates, plan)[0]

    @staticmethod
    def backward(ctx, dy):
        x, W, gates, *plan = ctx.saved_tensors
        dx, dgates = multiply(dy, W.mT, gates, plan, x)
        narrow = x.size(1) <= dy.size(1)
        dW = gradient(weigh(x, gates), dy, W, plan) if narrow else gradient(x, weigh(dy, gates), W, plan)
        return dx, dW, dgates, *[None] * len(plan)


def product(x, W, gates, plan):
    """x (T, i), W (E, i, o), gates (T, k), plan of plan() -> (T, o)"""
    return Product.apply(x, W, gates, *plan)


class Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down, gates, act, *plan):
        h, _, slope = ops.rows(x, up, plan[0].view(-1, 1), None, *plan[1:3], None, None, act)  # (T k, hidden)
        ctx.save_for_backward(x, up, down, gates, h, slope, *plan)
        return multiply(h, down, gates, plan)[0]

    @staticmethod
    def backward(ctx, dy):
        x, up, down, gates, h, slope, *plan = ctx.saved_tensors
        experts, order, ends = plan[:3]
        singles = experts.view(-1, 1), gates.view(-1, 1), order, ends
        d_down = gradient(h, weigh(dy, gates), down, plan)
        dh, parts, _ = ops.rows(dy, down.mT, *singles, h, slope, None)
        d_up = gradient(x, dh, up, plan)
        dx = multiply(dh, up.mT, None, plan)[0]
        return dx, d_up, d_down, sum(parts).view(gates.shape), None, *[None] * len(plan)


def mlp(x, up, down, gates, plan, act='gelu'):
    """x (T, n), up (E, n, hidden), down (E, hidden, n), gates (T, k), plan of plan() -> (T, n)"""
    return Mlp.apply(x, up, down, gates, act, *plan)
