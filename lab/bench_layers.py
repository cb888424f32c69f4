"""
What structured layers cost: FLOPs and parameters by formula, and measured time. bench.py calls it.

    python bench.py structures --d_in=768 --d_out=3072    shape, parameters, FLOPs and exponents of every layer
    python bench.py mlp --widths=768,2048,5120            forward and backward of an MLP pair (c_fc, GELU, c_proj)

`mlp` compares with nn.Linear in the same process. On a GPU both are compiled, in bfloat16, and replayed as a CUDA graph,
so that the time of launching kernels is left out. The row dense_fused is the dense pair with the products of
linear/kernels/fused.py, where these apply. A materialised pair also forms W, and applies the chain rule to its gradient,
once. Each row has its roofline: the time for its FLOPs at the matmul rate plus the time for its bytes at the copy rate;
both rates are measured right before.
"""

import math
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import hardware
import linear
from configurator import UserError, gather, input_path, key, printable, root_path
from files import read_lines, ready, write_lines
from linear import LAYERS
from linear.factors import Factors
from linear.kernels import fused
from logger import commit
from model import GPTConfig

TOKENS = 32768  # of a step
RATES = 7e14, 2.9e12  # FLOP and bytes a second of an H100, measured; linear.MOVE is their ratio
OWN = dict(width=int, member=str, share=float)  # lines of --out, for files.ready


@dataclass
class Size:
    d_in: int = key(768, 'input features', low=1)
    d_out: int = key(3072, 'output features', low=1)


@dataclass
class StructuresConfig(gather(Size, LAYERS, linear.group)):
    pass  # the keys of all layers, and none of a model


def exponents(m) -> tuple[float, float, float]:
    """(psi, omega, nu): rank = d^psi, multiply-adds = d^(1 + nu), parameters = multiply-adds / d^omega, with d the
    geometric mean of d_in and d_out (arXiv 2410.02117)."""
    log_d = math.log(m.d_in * m.d_out) / 2
    n = sum(W.numel() for W in m.factors)
    psi = math.log(m.rank()) / math.log(max(2, min(m.d_in, m.d_out)))
    return psi, math.log(m.macs() / n) / log_d, math.log(m.macs()) / log_d - 1


def least(d_in, d_out, macs, traffic) -> tuple[float, float]:
    """Nanoseconds per token, forward and backward, at RATES: the FLOPs of the three products; the bytes of what they read and
    write, of which traffic features lie between input and output, in bfloat16."""
    return 6 * macs / RATES[0] * 1e9, 3 * 2 * (d_in + d_out + traffic) / RATES[1] * 1e9


def structures(cfg):
    d_in, d_out = cfg.d_in, cfg.d_out
    least_of_dense = ' and '.join(f'{n:.1f}' for n in least(d_in, d_out, d_in * d_out, 0))
    print(
        f'{d_in} -> {d_out}, dense: {d_in * d_out:,} parameters, {2 * d_in * d_out:,} FLOP per token, {least_of_dense} ns'
    )
    print(
        f'FLOP: forward, through the factors; psi: rank = d^psi; omega: sharing; nu: compute; path: at {TOKENS:,} tokens\n'
        f'ns: per token, forward and backward, the least for the FLOPs at {RATES[0] / 1e12:.0f} TFLOP/s and for the bytes at {RATES[1] / 1e12} TB/s'
    )
    width = max(map(len, LAYERS))
    print(
        f'{"member":{width}} {"parameters":>11} {"share":>6} {"FLOP":>11} {"share":>7} {"rank":>5}  psi omega   nu  ns FLOP   bytes path'
        '          shape'
    )
    for name in LAYERS:
        if name == 'dense':
            continue
        config = linear.Keys(linear=name, **{k: v for k, v in vars(cfg).items() if k not in ('d_in', 'd_out')})
        try:
            with torch.device('meta'):
                m = LAYERS[name](d_in, d_out, config)
        except UserError as e:
            print(f'{name:{width}} none: {e}')
            continue
        n = sum(W.numel() for W in m.factors)
        psi, omega, nu = exponents(m)
        flops, moved = least(d_in, d_out, m.macs(), m.traffic())
        print(
            f'{name:{width}} {n:11,} {n / d_in / d_out:6.1%} {2 * m.macs():11,} {m.macs() / d_in / d_out:7.1%} {m.rank():5}'
            f' {psi:4.2f} {omega:5.2f} {nu:4.2f} {flops:8.1f} {moved:7.1f} {linear.choose_path(config, m, TOKENS):13} {m.describe()}'
        )


@dataclass
class MLPBenchConfig:
    widths: tuple = key((768.0, 2048.0, 5120.0), 'd of the pairs d -> 4d -> d')
    members: str = key(
        'dense_fused,low_rank,block_dense,monarch,kronecker,tensor_train,btt',
        'what to time beside dense; dense_fused: dense with the activation inside its products, see fused.py',
    )
    tokens: int = key(TOKENS, 'tokens of a step', low=1)
    share: float = key(0.3125, 'share of the dense parameters', above=0, high=1)
    path: str = key('auto', 'way to compute', choices=('auto', 'factored', 'materialised'))
    repeats: int = key(20, 'timed steps', low=1)
    out: str = key('', 'file for the figures, a JSON line per row')
    show: str = key('', 'only print the table of such a file')

    def problems(self):
        names = ['dense_fused', *LAYERS]
        odd = [n for n in self.members.split(',') if n not in names]
        return [f'members: {", ".join(odd)} unknown; use any of {", ".join(names)}'] if odd else []


class Pair(torch.nn.Module):
    def __init__(self, name, d, cfg):
        super().__init__()
        self.fuse = name != 'dense'  # that is the baseline: nn.Linear and GELU as the compiler makes them
        name = name.removesuffix('_fused')
        keys = dict(rank=d // 4) if name == 'low_rank' else dict(rank=4) if name == 'btt' else {}
        self.config = config = GPTConfig(
            n_embd=d, n_head=1, n_layer=1, bias=False, linear=name, linear_path=cfg.path, structured_share=cfg.share, **keys
        )  # fmt: skip
        self.c_fc = linear.make(config, 'h.0.mlp.c_fc', d, 4 * d)
        self.c_proj = linear.make(config, 'h.0.mlp.c_proj', 4 * d, d)

    def forward(self, x):
        if self.fuse and fused.fits(self.c_fc, self.c_proj, x):
            return fused.mlp(self.c_fc, self.c_proj, x, 'gelu')
        return self.c_proj(F.gelu(self.c_fc(x)))

    def roofline(self, tokens, matmul, copy, beside) -> float:
        """Seconds: FLOPs at the matmul rate plus bytes at the copy rate. Bytes: what each of the products of forward
        and backward reads and writes, and GELU's, in bfloat16. beside: the Factors of this pair."""
        flops, features = beside.flops_per_update(), 5 * self.c_fc.d_out
        for m in (self.c_fc, self.c_proj):
            flops += 6 * m.macs() * tokens
            features += 3 * (m.d_in + m.d_out + m.traffic())
        return flops / matmul + 2 * features * tokens / copy


def seconds(f, repeats, device) -> list[float]:
    """Times of f(), on a GPU replayed as one CUDA graph."""
    for _ in range(3):
        f()
    if device.type != 'cuda':
        times = []
        for _ in range(repeats):
            t0 = time.perf_counter()
            f()
            times.append(time.perf_counter() - t0)
        return times
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        f()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 3)]
    for e in events:
        graph.replay()
        e.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in zip(events[2:], events[3:])]


def rates(device, dtype) -> tuple[float, float]:
    """FLOP/s of a large product and bytes/s (read and written) of a large copy."""
    n, m = (8192, 2**28) if device.type == 'cuda' else (512, 2**22)
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.empty(m, device=device, dtype=dtype)
    y = torch.empty_like(x)
    matmul = statistics.median(seconds(lambda: a @ a, 10, device))
    copy = statistics.median(seconds(lambda: y.copy_(x), 10, device))
    return 2 * n**3 / matmul, 2 * x.numel() * x.element_size() / copy


def time_pair(name, d, cfg, device) -> tuple:
    torch._dynamo.reset()
    torch.manual_seed(0)
    pair = Pair(name, d, cfg).to(device)
    dtype = hardware.choose_dtype('auto', device)
    weights = Factors(pair, cfg.tokens, device.type == 'cuda', dtype)
    x = torch.randn(cfg.tokens, d, device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(cfg.tokens, d, device=device, dtype=dtype)
    forward = torch.compile(pair, fullgraph=True) if device.type == 'cuda' else pair

    def step():
        weights.form()  # the products of the factors, if any
        x.grad = None
        for p in [*pair.parameters(), *weights.tensors]:
            p.grad = None
        with hardware.autocast(device, dtype):
            y = forward(x)
        y.backward(dy)
        weights.pull()

    step()
    peak = None
    if device.type == 'cuda':
        step()
        for p in [x, *pair.parameters(), *weights.tensors]:
            p.grad = None
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        grads = sum(p.numel() * p.element_size() for p in pair.parameters())
        peak = torch.cuda.max_memory_allocated() - before - grads
    return seconds(step, cfg.repeats, device), pair, weights, peak


def head(r: dict) -> str:
    return (
        f'{r["device"]}, {r["dtype"]}, {r["tokens"]:,} tokens, torch {r["torch"]}; matmul {r["matmul"] / 1e12:.3g} TFLOP/s,'
        f' copy {r["copy"] / 1e12:.2f} TB/s\n'
        f'{"width":>6} {"member":13} {"share":>6} {"ms":>8} {"(range)":>15} {"speed":>6} {"roofline":>8} {"peak MiB":>15} path'
    )


def line(r: dict) -> str:
    memory = f'{r["peak"] / 2**20:8.0f} {r["peak_ratio"]:5.2f}x' if r['peak'] else f'{"-":>8} {"":6}'
    return (
        f'{r["width"]:6} {r["member"]:13} {r["share"]:6.1%} {r["ms"]:8.3f} {r["ms_min"]:7.3f}-{r["ms_max"]:<7.3f}'
        f' {r["speed"]:5.2f}x {r["roofline_ms"]:8.3f} {memory} {r["path"]}'
    )


def mlp(cfg):
    if cfg.show:
        try:
            rows = read_lines(input_path(cfg.show))
            found = {r['width'] for r in rows}
            if not found & set(cfg.widths):
                raise ValueError(f'widths = {cfg.widths}: it has {", ".join(map(str, sorted(found)))}')
            return print(printable('\n'.join([head(rows[0]), *(line(r) for r in rows if r['width'] in cfg.widths)])))
        except (UserError, ValueError, LookupError, TypeError) as e:
            raise UserError(f"show = '{cfg.show}': nothing to show, give a file that --out wrote ({e})") from None
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py mlp')
    device = hardware.choose_device('auto')
    dtype = hardware.choose_dtype('auto', device)
    torch.set_float32_matmul_precision('high')  # as in training: TF32 where W is formed
    matmul, copy = rates(device, dtype)
    rows = []
    for d in map(int, cfg.widths):
        dense = None
        for name in ['dense', *cfg.members.split(',')]:
            times, pair, beside, peak = time_pair(name, d, cfg, device)
            ms = statistics.median(times) * 1000
            layers = [beside.get(name, layer) for name, layer in pair.named_children()]
            n = sum(p.numel() for m in layers for p in getattr(m, 'factors', [*m.parameters()]))
            paths = {'materialised' if name in beside else 'factored' for name, _ in pair.named_children()}
            row = dict(
                width=d, member=name, share=n / (8 * d * d), ms=ms, ms_min=min(times) * 1000, ms_max=max(times) * 1000,
                roofline_ms=pair.roofline(cfg.tokens, matmul, copy, beside) * 1000, peak=peak,
                path='dense' if name.startswith('dense') else '+'.join(sorted(paths)),
                shapes=[m.describe() for m in layers],
                tokens=cfg.tokens, matmul=matmul, copy=copy, device=hardware.device_name(device),
                dtype=str(dtype).removeprefix('torch.'), torch=torch.__version__, commit=commit(),
            )  # fmt: skip
            dense = dense or row
            row |= dict(speed=dense['ms'] / ms, peak_ratio=peak / dense['peak'] if peak else None)
            if not rows:
                print(head(row))
            print(line(row), flush=True)
            rows.append(row)
            if cfg.out:  # after each row: what is measured is kept, however this ends
                write_lines(root_path(cfg.out), rows)
