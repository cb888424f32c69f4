"""
Time the training step: exactly the one train.py takes, data and optimizer included.

    python bench.py config/shakespeare_char.py
    python bench.py config/shakespeare_char.py -- config/expansive_shakespeare.py -- config/expansive_shakespeare.py --expansion=10000

    python bench.py structures --d_in=768 --d_out=3072      tables of single layers: bench_layers.py
    python bench.py mlp --widths=768,2048,5120

Arms are separated by `--`, each a config with flags as for train.py; the keys of bench.py go to the first. All arms
live in one process and take turns, block by block, so that a drift of the machine meets them alike. Printed: the median
time per step over the blocks with its range, the ratio to the first arm (median over pairs of neighbouring blocks),
tokens/s, MFU, peak memory. With --out each arm's figures go to a file as one JSON line.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass

import torch

import bench_layers
import distill
import hardware
from configurator import UserError, input_path, key, load, overrides, root_path, run
from download import write
from logger import commit
from train import TrainConfig, Trainer


@dataclass
class BenchConfig(TrainConfig):
    steps: int = key(20, 'steps in a timed block', low=1)
    rounds: int = key(10, 'timed blocks of each arm', low=1)
    warmup: int = key(10, 'steps before timing, the first of which compile', low=1)
    out: str = key('', 'file for the figures, a JSON line per arm; empty: none')
    show: str = key('', 'only print the table of such a file')


class Arm:
    def __init__(self, argv: list[str], cfg, device, warmup: int):
        mine = tuple(f'--{k}' for k in ('steps', 'rounds', 'warmup', 'out'))
        self.name, self.times, self.peak = ' '.join(a for a in argv if not a.startswith(mine)), [], 0
        before = memory(device)
        t0 = time.perf_counter()
        self.trainer = Trainer(cfg, device)
        self.block(warmup)
        self.setup = time.perf_counter() - t0
        self.own = memory(device) - before  # what stays allocated: parameters, optimizer state, products

    def block(self, steps: int) -> float:
        """Seconds per step."""
        device = self.trainer.device
        sync(device)
        t0 = time.perf_counter()
        for _ in range(steps):
            self.trainer.step()
        sync(device)
        return (time.perf_counter() - t0) / steps

    def timed_block(self, steps: int):
        device = self.trainer.device
        others = memory(device) - self.own if device.type == 'cuda' else 0
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
        self.steps = steps
        self.times.append(self.block(steps))
        self.peak = max(self.peak, hardware.peak_memory(device) - others)

    def figures(self, first: 'Arm') -> dict:
        t = self.trainer
        seconds = statistics.median(self.times)
        cfg = t.cfg
        tokens = cfg.gradient_accumulation_steps // t.world * cfg.batch_size * cfg.block_size
        flops = tokens * (t.model.flops_per_token() + distill.teacher_flops(t.cfg)) + t.model.flops_per_update()
        peak = hardware.peak_flops(t.device, t.dtype)
        return dict(
            arm=self.name,
            params=t.model.num_params(),
            ms=seconds * 1000,
            ms_min=min(self.times) * 1000,
            ms_max=max(self.times) * 1000,
            ratio=statistics.median(a / b for a, b in zip(self.times, first.times)),
            tokens_per_s=tokens / seconds,
            mfu=flops / seconds / peak if peak else None,
            peak_memory=None if cfg.cuda_graph else self.peak,  # memory inside a graph cannot be told apart by arm
            setup_s=self.setup,
            flops_per_step=flops,
            device=hardware.device_name(t.device),
            dtype=str(t.dtype).removeprefix('torch.'),
            compiled=t.forward is not t.model,
            blocks=len(self.times),
            steps=self.steps,
            torch=torch.__version__,
            commit=commit(),
            config=overrides(cfg),
        )


def memory(device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0


def sync(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def table(rows: list[dict]) -> str:
    """What is printed of the figures."""
    r = rows[0]
    lines = [
        f'{r["device"]}, {r["dtype"]}, {"compiled" if r["compiled"] else "eager"}, torch {r["torch"]},'
        f' {r["blocks"]} blocks of {r["steps"]} steps each',
        f'{"ms/step":>8} {"(range)":>17} {"ratio":>6} {"tokens/s":>11} {"MFU":>6} {"peak MiB":>9}  arm',
    ]
    for r in rows:
        mfu = f'{r["mfu"]:.1%}' if r['mfu'] else '-'
        peak = f'{r["peak_memory"] / 2**20:,.0f}' if r['peak_memory'] else '-'
        lines.append(
            f'{r["ms"]:8.2f} {r["ms_min"]:8.2f}-{r["ms_max"]:<8.2f} {r["ratio"]:6.3f} {r["tokens_per_s"]:11,.0f}'
            f' {mfu:>6} {peak:>9}  {r["arm"]}'
        )
    return '\n'.join(lines)


def main():
    arms, argv = [[]], sys.argv[1:]
    if argv and argv[0] in bench_layers.COMMANDS:
        schema, command = bench_layers.COMMANDS[argv[0]]
        return command(load(schema, argv[1:]))
    for a in argv:
        arms.append([]) if a == '--' else arms[-1].append(a)
    bench = load(BenchConfig, arms[0])
    if bench.show:
        try:
            print(table([json.loads(line) for line in input_path(bench.show).read_text().splitlines()]))
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise UserError(f"show = '{bench.show}': not a file that --out wrote ({e})") from None
        return
    configs = [bench] + [load(BenchConfig, a) for a in arms[1:]]
    for c in configs[1:]:
        if mine := {'steps', 'rounds', 'warmup', 'out', 'show'} & set(overrides(c)):
            raise UserError(f'{", ".join(sorted(mine))}: belongs to the first arm, before the first --')
    if hardware.rank_world()[1] > 1:
        raise UserError('bench.py times one process; torchrun train.py logs the step time of several')
    device = hardware.choose_device(bench.device)
    torch._dynamo.config.recompile_limit = max(64, 4 * len(arms))  # the arms share the code of forward
    timed = [Arm(a, c, device, bench.warmup) for a, c in zip(arms, configs)]
    for _ in range(bench.rounds):
        for arm in timed:
            arm.timed_block(bench.steps)
    rows = [arm.figures(timed[0]) for arm in timed]
    if device.type != 'cuda' and len(rows) > 1:  # the resident memory of a process cannot be told apart by arm
        rows = [r | dict(peak_memory=None) for r in rows]
    print(table(rows))
    if bench.out:
        write(root_path(bench.out), ''.join(json.dumps(r) + '\n' for r in rows).encode())


if __name__ == '__main__':
    run(main)
