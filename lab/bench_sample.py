"""
How fast a model writes. bench.py calls it.

    python bench.py sample config/gpt2.py --vocab_size=50304 --tokens=1000
    python bench.py sample config/gpt2.py --vocab_size=50304 --samples=64 --compile=true

The model has random weights; it is sampled as sample.py does it, from a prompt of one token, with its defaults
(temperature 0.8, top_k 200). --trace says which kernels a token takes. A call counts as a whole, the capture of its CUDA graph
included. The first call, which compiles and sets up libraries, is left out (first_seconds). The limit is the time to read
weights and cache once per token at the copy rate, which is measured right after.
"""

import statistics
import time
from dataclasses import dataclass

import torch

import hardware
from configurator import key, root_path
from files import add_line, ready
from lab import bench_nanogpt
from lab.bench_layers import rates
from lab.bench_profile import TRACE, measured, traced
from lab.costs import columns
from logger import commit
from model import GPT
from sample import round_weights
from surgery.collapse import to_run
from train import TrainConfig

OWN = dict(tokens_per_second=float, limit=float) | {'arm?': ()}  # lines of --out, for files.ready


@dataclass
class SampleBenchConfig(TrainConfig):
    tokens: int = key(1000, 'tokens of a sample', low=1, group='sampling')
    samples: int = key(1, 'drawn side by side', low=1)
    nanogpt: str = key('', 'folder of nanoGPT, whose model is sampled by its own code; empty: ours')
    rounds: int = key(5, 'timed calls; the median counts', low=1)
    trace: str = key('', 'also trace a call, to this file, and print time and kernels per token; empty: no')
    out: str = key('', 'file to which the figures are added, a JSON line; empty: none')

    def problems(self, sized=None):
        found = super().problems(sized)
        if not self.vocab_size:
            found.append('vocab_size: must be given, for no data set is read here; --vocab_size=50304 is that of GPT-2')
        return found


def bench(cfg: SampleBenchConfig) -> dict:
    if cfg.trace:
        ready(root_path(cfg.trace), TRACE, 'bench.py sample', 'trace')
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py sample')
    device = hardware.choose_device(cfg.device)
    dtype = hardware.choose_dtype(cfg.dtype, device)
    torch.manual_seed(1337)
    if cfg.nanogpt:
        model = bench_nanogpt.make(cfg)[0].to(device).eval()
    else:
        model = to_run(GPT(cfg)).to(device)
        if dtype != torch.float32:
            round_weights(model, dtype)
    if cfg.compile:
        model.compile()
    prompt = torch.zeros(cfg.samples, 1, dtype=torch.long, device=device)
    wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    seconds = []

    def draw():
        if cfg.nanogpt:
            return model.generate(prompt, cfg.tokens, 0.8, 200).cpu()
        for new in model.generate(prompt, cfg.tokens, 0.8, 200, 1.0, generator):
            new[0].item()  # as where text is shown as it is written

    with hardware.autocast(device, dtype):
        for i in range(cfg.rounds + 1):
            generator = torch.Generator(device).manual_seed(i)
            wait()
            t = time.perf_counter()
            draw()
            wait()
            seconds.append(time.perf_counter() - t)
        if cfg.trace:
            times, numbers, busy = measured(traced(draw, root_path(cfg.trace), device), device)
            rows = [
                {'of a token': k, 'us': f'{1e6 * v / cfg.tokens:.1f}', 'kernels': f'{numbers[k] / cfg.tokens:.1f}'}
                for k, v in times.items()
                if v
            ]
            idle = statistics.median(seconds[1:]) - busy
            rows.append({'of a token': 'idle', 'us': f'{1e6 * max(0, idle) / cfg.tokens:.1f}'})
            print('\n'.join(columns(rows)))
    # the first call compiles; where lengths grow, cuDNN plans each of them
    speeds = sorted(cfg.tokens * cfg.samples / s for s in seconds[1:])
    each = torch.empty((), dtype=dtype).element_size()
    read = sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters(remove_duplicate=False)
        if not name.startswith('transformer.w')
    )
    cache = 2 * cfg.samples * cfg.n_layer * cfg.n_embd * (cfg.n_kv_head or cfg.n_head) // cfg.n_head * each
    copy = rates(device, dtype)[1]
    limit = cfg.samples * copy / (read + cache * min(cfg.tokens, cfg.block_size) / 2)
    row = dict(
        params=model.get_num_params() if cfg.nanogpt else model.num_params(), samples=cfg.samples, tokens=cfg.tokens, compile=bool(cfg.compile),
        tokens_per_second=statistics.median(speeds), slowest=speeds[0], fastest=speeds[-1], limit=limit,
        device=hardware.device_name(device), dtype=str(dtype).removeprefix('torch.'), torch=torch.__version__,
        first_seconds=seconds[0], commit=commit(),
    )  # fmt: skip
    print(
        f'{row["params"]:,} parameters, {cfg.samples} x {cfg.tokens} tokens, {"compiled" if cfg.compile else "not compiled"},'
        f' {row["device"]}, {row["dtype"]}: {row["tokens_per_second"]:,.0f} tokens/s ({speeds[0]:,.0f} to {speeds[-1]:,.0f});'
        f' reading weights and cache allows {limit:,.0f}'
    )
    if cfg.out:
        add_line(root_path(cfg.out), row)
    return row
