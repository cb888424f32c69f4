"""
Where the time of a training step goes, beside the least that it could take. bench.py calls it.

    python bench.py profile config/shakespeare_char.py
    python bench.py profile config/gpt2.py --dataset=shakespeare_char --vocab_size=50304 --batch_size=64 --trace=out/gpt2.json

It writes a trace for chrome://tracing or ui.perfetto.dev, and prints the time of each kind of kernel by their names (on a
CPU: of operators). A fused kernel counts for the first kind in KINDS that its name fits. Beside each kind stands its
roofline: FLOPs at the matmul rate or bytes at the copy rate, whichever takes longer, product by product; both rates are
measured right before. Bytes are those that activations need once between products (in 16 bits; the residual stream in
float32), however many kernels touch them today. A step can't be shorter than the sum of these, nor than its kernels
would be if all were empty.
"""

import re
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import hardware
from configurator import UserError, input_path, key, printable, root_path
from files import add_line, read_lines, ready
from lab import steps
from lab.bench_layers import rates, seconds
from lab.costs import columns
from logger import commit, relative
from model import Norm
from train import TrainConfig, Trainer

# kind of a kernel: what its name, or an operator's, contains; the first that fits
KINDS = {
    'communication': r'nccl|all_?reduce|all_?gather|reduce_scatter|c10d|gloo',
    'optimizer': r'adam|multi_tensor_apply|_foreach_|foreach|lpnorm',
    'drawing': r'topk|radix|argmax|exponential|multinomial',
    'attention': r'^part$|^join$|nanomorph::attend|flash|fmha|sdpa|scaled_dot_product|attention|cudnn_generated',
    'cross-entropy': r'nll_loss|cross_entropy|log_softmax',
    'matmul': r'gemm|nvjet|cutlass|xmma|cublas|mm\b|mkldnn_linear|linear|matmul|splitk|triton_tem|nanomorph::|^(product|rows|outers)$',
    'norms': r'layer_?norm|rms_?norm|add_norm|rsqrt',
    'copies': r'mem(cpy|set)|copy_?kernel|aten::(copy_|cat|clone|fill_|zero_|contiguous)'
    r'|^triton_\w+?_fused_((_to_copy|_unsafe_view|clone|copy|view|transpose|permute|t|cat|slice|constant_pad_nd)_)+\d*$',
    'elementwise': r'',
}
OWN = dict(kinds=dict, floor_ms=float) | {'arm?': ()}  # lines of --out, for files.ready
TRACE = b'"traceEvents"'  # in any file of --trace


@dataclass
class ProfileConfig(TrainConfig):
    steps: int = key(3, 'steps that are traced', low=1, group='profile')
    warmup: int = key(8, 'steps before, the first of which compile', low=1)
    trace: str = key('out/trace.json', 'file for the trace')
    out: str = key('', 'file to which the figures are added, a JSON line; empty: none')


def kind(name: str) -> str:
    return next(k for k, words in KINDS.items() if re.search(words, name, re.IGNORECASE))


def measured(events, device) -> tuple[dict, dict, float]:
    """({kind: seconds}, {kind: number}, seconds during which anything ran) of the events of a profile."""
    times, numbers, spans = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0), []
    for e in events:
        on_gpu = e.device_type == DeviceType.CUDA
        if on_gpu != (device.type == 'cuda') or getattr(e, 'is_user_annotation', False):
            continue
        us = e.time_range.elapsed_us() if on_gpu else e.self_cpu_time_total
        if not on_gpu and not e.name.startswith(('aten::', 'nanomorph::', 'mkldnn', 'graph_', 'cpp_')):
            continue  # what calls operators, not what computes
        times[kind(e.name)] += us / 1e6
        numbers[kind(e.name)] += 1
        spans.append((e.time_range.start, e.time_range.end))
    busy = end = 0.0
    for a, b in sorted(spans):  # several streams overlap, and an operator calls others
        busy += max(0.0, b - max(a, end))
        end = max(end, b)
    return times, numbers, busy / 1e6


def show(path: str, tables, command: str):
    """Print what tables(lines) makes of a file that the command wrote."""
    try:
        if not input_path(path).exists():
            raise UserError('there is no such file')
        lines = read_lines(input_path(path))
        if not lines:
            raise UserError('it holds no figures')
        print(printable(tables(lines)))
    except (UserError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"show = '{path}': not a file that {command} --out=FILE wrote ({e})") from None


def traced(run, path, device):
    """The events of run(), which are written to a file for chrome://tracing, unless path is None."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == 'cuda' else [])
    with profile(activities=activities, acc_events=True) as p:
        run()
        hardware.sync(device)
    if path:
        p.export_chrome_trace(str(path))
    return p.events()


def floor(t: Trainer, matmul: float, copy: float) -> dict:
    """{kind: least seconds} of a step of this process. matmul: FLOP/s, copy: bytes/s."""
    c, e = t.cfg, torch.empty((), dtype=t.dtype).element_size()
    T = t.accumulation * c.batch_size * c.block_size  # tokens
    n, V = c.n_embd, c.vocab_size

    def product(macs, features, weights):
        """Forward and the two gradients. features: read and written in each, per token; weights: read or written."""
        return max(6 * macs * T / matmul, 3 * e * (features * T + weights * t.accumulation) / copy)

    found = dict.fromkeys(KINDS, 0.0)
    for m in t.model.modules():
        if hasattr(m, 'macs'):
            layer = hasattr(m, 'traffic')  # else a mixture of MLPs, from n to n
            features, inside = (m.d_in + m.d_out, m.traffic()) if layer else (2 * n, 0)
            ways = [product(m.macs(), features + inside, sum(p.numel() for p in m.parameters()))]
            if hasattr(m, 'dense_macs'):  # through W; forming it is not counted
                ways.append(product(m.dense_macs(), features, m.d_in * m.d_out))
            found['matmul'] += min(ways)
        if isinstance(m, Norm):  # residual add included: x and a branch in, x and the norm out; back the same, and x
            found['norms'] += T * n * ((4 + e + 4 + e) + (4 + e + 4 + 4 + e)) / copy
    if c.tie_head:
        found['matmul'] += product(n * V, n + V, n * V)
    context = min(c.block_size, c.attention_window or c.block_size)
    # scores and values: 2 products forward, 5 backward (the scores anew); the half that is not masked
    found['attention'] = 7 * 2 * c.n_layer * n * context / 2 * T / matmul
    found['cross-entropy'] = T * V * 2 * e / copy  # logits in, their gradient out
    hidden = sum(c.hidden(i) for i in range(c.n_layer)) * (c.experts_active if c.mlp == 'moe' else 1)
    found['elementwise'] = T * (2 * e * hidden + 4 * 4 * n) / copy  # the slope of the activation out and in; embeddings
    moved = sum(p.numel() for p in t.optimizer.leaves.values())
    # parameter, gradient and two moments in, all but the gradient out, the norm of the gradient, the weights in 16 bits
    found['optimizer'] = (moved * 4 * 8 + (moved * (4 + e) if e < 4 else 0)) / copy
    found['optimizer'] += t.optimizer.factors.flops_per_update() / matmul
    return found


def launch(device) -> float:
    """Seconds of a kernel that does nothing much: in a CUDA graph, or an operator on a CPU."""
    x = torch.zeros(32, device=device)

    def many():
        for _ in range(200):
            x.add_(1)

    return min(seconds(many, 5, device)) / 200


def roofline(t, steps: int, path, matmul: float, copy: float, one: float) -> dict:
    """What a step of a trainer takes, and could take at least: milliseconds and kernels by kind. one: seconds of a launch."""
    times, numbers, busy = measured(traced(lambda: [t.step() for _ in range(steps)], path, t.device), t.device)
    least, total = floor(t, matmul, copy), sum(numbers.values()) / steps
    of = lambda k: dict(ms=1000 * times[k] / steps, launches=numbers[k] / steps, floor_ms=1000 * least[k])
    return dict(
        busy_ms=1000 * busy / steps, floor_ms=1000 * max(sum(least.values()), total * one), launches=total,
        launch_us=1e6 * one, kinds={k: of(k) for k in KINDS}, matmul=matmul, copy=copy,
    )  # fmt: skip


def bench(cfg: ProfileConfig):
    ready(root_path(cfg.trace), TRACE, 'bench.py profile', 'trace')
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py profile')
    device = hardware.choose_device(cfg.device, cfg.deterministic)
    t = Trainer(cfg, device)
    for _ in range(cfg.warmup):
        t.step()
    step = steps.seconds(t, cfg.steps) / cfg.steps  # the profiler slows the processor down
    found = roofline(t, cfg.steps, root_path(cfg.trace), *rates(device, t.dtype), launch(device))
    row = dict(
        ms=1000 * step, **found, device=hardware.device_name(device), dtype=str(t.dtype).removeprefix('torch.'),
        compiled=t.compile, graphs=t.graphs, torch=torch.__version__, commit=commit(), config=steps.settings(cfg),
    )  # fmt: skip
    print(table(row))
    print(f'trace: {relative(str(root_path(cfg.trace)))}')
    if cfg.out:
        add_line(root_path(cfg.out), relative(row))


def table(r: dict) -> str:
    idle = max(0.0, r['ms'] - r['busy_ms'])
    lines = [
        {
            'kind': k,
            'ms': f'{v["ms"]:.3f}',
            'of the step': f'{v["ms"] / r["ms"]:.1%}',
            'kernels': f'{v["launches"]:.0f}',
            'roofline': f'{v["floor_ms"]:.3f}' if v['floor_ms'] else '-',
            'of it': f'{v["floor_ms"] / v["ms"]:.0%}' if v['floor_ms'] and v['ms'] else '-',
        }
        for k, v in r['kinds'].items()
        if v['ms'] or v['floor_ms']
    ]
    lines.append({'kind': 'idle', 'ms': f'{idle:.3f}', 'of the step': f'{idle / r["ms"]:.1%}'})
    return '\n'.join([
        f'{r["device"]}, {r["dtype"]}, {"compiled" if r["compiled"] else "eager"}, CUDA graphs {"on" if r["graphs"] else "off"},'
        f' torch {r["torch"]}; matmul {r["matmul"] / 1e12:.3g} TFLOP/s, copy {r["copy"] / 1e12:.3g} TB/s',
        *columns(lines),
        f'step {r["ms"]:.3f} ms; roofline {r["floor_ms"]:.3f} ms ({r["floor_ms"] / r["ms"]:.0%} of it), 90% of its speed'
        f' {r["floor_ms"] / 0.9:.3f} ms; {r["launches"]:,.0f} kernels take {r["launch_us"]:.2f} us each when empty,'
        f' {r["launches"] * r["launch_us"] / 1000:.3f} ms',
    ])  # fmt: skip
