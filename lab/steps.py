"""
Time training steps. They are exactly the steps of train.py, with data and optimizer.
"""

import statistics
import time
from dataclasses import dataclass, fields

import torch

import hardware
from configurator import UserError, key, overrides, spelled
from logger import commit, without_effect
from train import TrainConfig, Trainer


@dataclass
class TimingConfig(TrainConfig):
    GROUPS = ('timing', *TrainConfig.GROUPS)
    steps: int = key(20, 'steps in a timed block', low=1, group='timing')
    rounds: int = key(10, 'timed blocks of each arm', low=1)
    warmup: int = key(10, 'steps before timing, the first of which compile', low=1)
    out: str = key('', 'file for the figures, a JSON line per arm; empty: none')


def apart(argv: list[str]) -> list[list[str]]:
    """The flags of each arm: `--` stands between them."""
    arms = [[]]
    for a in argv:
        arms.append([]) if a == '--' else arms[-1].append(a)
    return arms


def check_arms(configs: list, keys: set):
    """UserError where an arm but the first has one of these keys, which are for all, or where there are several
    processes. Says which keys have no effect."""
    for c in configs[1:]:
        if mine := keys & set(overrides(c)):
            raise UserError(f'{", ".join(sorted(mine))}: belongs to the first arm, before the first --')
        if c.device not in ('auto', configs[0].device):
            raise UserError(
                f'device = {c.device}: all arms run on that of the first ({configs[0].device}); give it there'
            )
    for c in configs:
        if c.init_from == 'scratch' and (said := without_effect(c)):  # of another start the model is not known yet
            print(said, flush=True)
    if hardware.rank_world()[1] > 1:
        raise UserError('bench.py times one process; torchrun train.py logs the step time of several')


def check_kernels(cfg):
    """UserError where an arm asks for other kernels than this process has taken."""
    if cfg.deterministic != torch.are_deterministic_algorithms_enabled():
        raise UserError('deterministic: holds for a whole process, and all arms run in one; give it to all of them')


def side_by_side(arms: int = 16):
    """Compile each of so many arms of this process as if it were alone. They share the code of forward, and the compiler
    would make a variable of a size that differs between two, such as batch_size: the later arms would be slower."""
    torch._dynamo.config.recompile_limit = max(64, 4 * arms)
    torch._dynamo.config.automatic_dynamic_shapes = False


def seconds(t, steps: int) -> float:
    """How long so many steps of a trainer take."""
    hardware.sync(t.device)
    t0 = time.perf_counter()
    for _ in range(steps):
        t.step()
    hardware.sync(t.device)
    return time.perf_counter() - t0


class Arm:
    def __init__(self, argv: list[str], cfg, device, warmup: int, make=Trainer):
        mine = [f'--{k}' for k in ('steps', 'rounds', 'warmup', 'out', 'out_dir', 'nanogpt', 'only')]
        flags = spelled(argv, {f.name: f for f in fields(cfg)})
        self.name = ' '.join(
            ['nanoGPT:'] * (make is not Trainer) + [a for a in flags if a.partition('=')[0] not in mine]
        )
        self.times, self.peak = [], 0
        check_kernels(cfg)
        before = memory(device)
        t0 = time.perf_counter()
        self.trainer = make(cfg, device)
        self.block(warmup)
        self.setup = time.perf_counter() - t0
        self.own = memory(device) - before  # what stays allocated: parameters, optimizer state, products

    def block(self, steps: int) -> float:
        """Seconds per step."""
        return seconds(self.trainer, steps) / steps

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
        beside = t.optimizer.factors
        flops = tokens * t.flops_per_token + beside.flops_per_update()
        peak = hardware.peak_flops(t.device, t.dtype)
        return dict(
            arm=self.name,
            params=t.model.num_params(beside),
            ms=seconds * 1000,
            ms_min=min(self.times) * 1000,
            ms_max=max(self.times) * 1000,
            ratio=statistics.median(a / b for a, b in zip(self.times, first.times)),
            tokens_per_s=tokens / seconds,
            mfu=flops / seconds / peak if peak else None,
            peak_memory=None if t.graphs else self.peak,  # memory inside a graph cannot be told apart by arm
            setup_s=self.setup,
            flops_per_step=flops,
            device=hardware.device_name(t.device),
            dtype=str(t.dtype).removeprefix('torch.'),
            compiled=t.compile,
            blocks=len(self.times),
            block_ms=[float(f'{1000 * s:.6g}') for s in self.times],  # as they took turns: ratios can be recomputed
            steps=self.steps,
            torch=torch.__version__,
            commit=commit(),
            config=settings(cfg),
        )


def settings(cfg) -> dict:
    """What a record says of a config: keys that are not defaults, without paths of this machine."""
    return {k: v for k, v in overrides(cfg).items() if k not in ('nanogpt', 'out', 'trace')}


def memory(device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else 0


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
