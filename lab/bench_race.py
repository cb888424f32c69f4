"""
A race by the clock: the validation loss after so many seconds of training. bench.py calls it.

    python bench.py race config/gpt2.py --optimizer=muon -- config/gpt2.py --nanogpt=/path/to/nanoGPT --seconds=540

An arm is a config with flags as for train.py; with --nanogpt=FOLDER the model and the step are nanoGPT's own
(lab/bench_nanogpt.py). Each number of seconds is a training of its own, from the start to the end of its schedule: the
first steps, which come before any decay, tell how long one takes, and lr_decay_iters becomes the number of steps that fit
(wsd_decay_iters keeps its share of it). All steps are counted. What happens once (compilation, capture of graphs) stands
apart (once_s); the evaluation at the end is left out. Every arm is evaluated on the same windows, eval_iters batches of
them (0: all). Arms run one after the other: to race on several GPUs, start a command on each.
"""

import copy
import gc
import math
import sys
from dataclasses import dataclass, fields

import torch

import hardware
from configurator import UserError, key, load, root_path, spelled
from files import add_line, ready
from lab import steps
from lab.bench_nanogpt import NanoGPT, check
from lab.bench_profile import show
from lab.costs import columns, told_apart
from logger import commit, relative
from optimizers import optim
from train import TrainConfig, Trainer

ONCE, TIMED = 15, 30  # steps in which all is compiled and captured; steps after them that tell the time of one
OFF = 0.05  # of the seconds: by so much may a training miss them without a word
OWN = dict(arm=str, trained_s=float, val_loss=float)  # lines of --out, for files.ready


@dataclass
class RaceConfig(TrainConfig):
    GROUPS = ('race', *TrainConfig.GROUPS)
    seconds: tuple = key((120.0, 300.0, 540.0), 'of training; one from the start for each', group='race')
    nanogpt: str = key('', 'folder of nanoGPT, whose model and step this arm takes; empty: ours')
    out: str = key('', 'file to which the figures are added, a JSON line per training; empty: none')
    show: str = key('', 'only print the table of such a file')

    def problems(self, sized=None):
        found = super().problems(sized)
        if odd := [f'{s:g}' for s in self.seconds if not 0 < s < math.inf]:
            found.append(f'seconds: {", ".join(odd)} must be above 0')
        if self.init_from == 'resume':
            found.append('init_from = resume: each training begins at its first step; --init_from=FILE takes weights')
        if off := [k for k in ('eval_only', 'patience') if getattr(self, k)]:
            found.append(f'{", ".join(off)}: a training ends when its seconds are over; leave it out')
        return found if self.seconds else [*found, 'seconds: must be given']


def race(argv: list[str]):
    arms = steps.apart(argv)
    configs = [load(RaceConfig, a) for a in arms]
    first = configs[0]
    if first.show:
        return show(first.show, table, 'bench.py race')
    steps.check_arms(configs, {'out', 'show'})
    check_windows(configs)
    if first.out:
        ready(root_path(first.out), OWN, 'bench.py race')
    device, rows = hardware.choose_device(first.device, first.deterministic), []
    for c in configs:  # before the first has trained for minutes
        steps.check_kernels(c)
        if c.nanogpt:
            check(c)
    for cfg, arm in zip(configs, arms):
        name = name_of(arm, cfg)
        for seconds in cfg.seconds:
            r = train(cfg, name, seconds, device)
            rows.append(r)
            print(
                f'{r["trained_s"]:.0f} s, {r["iters"]} steps of {r["ms"]:.2f} ms: val loss {r["val_loss"]:.4f}  {r["arm"]}',
                flush=True,
            )
            if abs(r['trained_s'] - seconds) > OFF * seconds:
                print(
                    f'NOTE: {seconds:g} s were asked for, {r["trained_s"]:.3g} taken: the first {ONCE + TIMED} steps told too'
                    ' little of a step here'
                )
            if first.out:
                add_line(root_path(first.out), relative(r))
    print(table(rows))


def name_of(arm: list[str], cfg: RaceConfig) -> str:
    """The flags of an arm, without those that do not tell it from another, or name a place on this machine."""
    mine = [f'--{k}' for k in ('seconds', 'out', 'out_dir', 'nanogpt')]
    flags = spelled(arm, {f.name: f for f in fields(cfg)})
    return 'nanoGPT: ' * bool(cfg.nanogpt) + ' '.join(a for a in flags if a.partition('=')[0] not in mine)


def check_windows(configs: list):
    """UserError where arms would be judged on different text."""
    for what in (lambda c: c.dataset, lambda c: c.block_size, lambda c: c.eval_iters * c.batch_size):
        if len(found := dict.fromkeys(map(what, configs))) > 1:
            raise UserError(
                'all arms are judged on the same windows, so dataset, block_size and eval_iters * batch_size must be equal,'
                f' not {" and ".join(map(str, found))}; --eval_iters=0 in every arm takes the whole split'
            )


def fitted(cfg: RaceConfig, share: float, seconds: float, step: float):
    """End cfg's schedule after as many steps as fit into these seconds. share: of wsd_decay_iters; step: its seconds."""
    cfg.max_iters = cfg.lr_decay_iters = n = round(seconds / step)
    cfg.wsd_decay_iters = round(share * n)
    if n < ONCE + TIMED:
        raise UserError(f'seconds = {seconds:g}: {ONCE + TIMED} steps of {1000 * step:.3g} ms take longer; give more')
    if not optim.problems(cfg):
        return
    also = f' and the decay {cfg.wsd_decay_iters}' if cfg.schedule == 'wsd' else ''
    raise UserError(
        f'seconds = {seconds:g}: {n} steps of {1000 * step:.3g} ms fit, warmup_iters = {cfg.warmup_iters}{also} take more; warm'
        ' up in fewer, or give more seconds'
    )


def train(cfg: RaceConfig, name: str, seconds: float, device) -> dict:
    """The figures of a training of so many seconds."""
    began = steps.time.perf_counter()
    t = (NanoGPT if cfg.nanogpt else Trainer)(copy.copy(cfg), device)
    share = cfg.wsd_decay_iters / max(1, cfg.lr_decay_iters)
    t.cfg.lr_decay_iters = sys.maxsize  # until it is known
    steps.seconds(t, ONCE)
    timed = steps.seconds(t, TIMED)
    step = timed / TIMED
    once = steps.time.perf_counter() - began - timed - ONCE * step
    fitted(t.cfg, share, seconds, step)
    n = t.cfg.max_iters
    trained = ONCE * step + timed + steps.seconds(t, n - ONCE - TIMED)
    row = dict(
        arm=name,
        seconds=seconds,
        trained_s=trained,
        once_s=once,
        ms=1000 * trained / n,
        iters=n,
        tokens=n * t.cfg.tokens_per_iter,
        **t.evaluate('val'),
        params=t.model.num_params(t.optimizer.factors),
        device=hardware.device_name(device),
        dtype=str(t.dtype).removeprefix('torch.'),
        torch=torch.__version__,
        commit=commit(),
        config=steps.settings(cfg),
    )
    compiled = t.compile
    del t
    if compiled:
        torch._dynamo.reset()  # what is compiled holds the model
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.empty_cache()
    return row


def table(rows: list[dict]) -> str:
    arms = told_apart([r['arm'] for r in rows])
    lines = [
        {
            'arm': arm,
            'seconds': f'{r["trained_s"]:.0f}',
            'steps': f'{r["iters"]:,}',
            'ms/step': f'{r["ms"]:.2f}',
            'tokens': f'{r["tokens"]:,}',
            'val loss': f'{r["val_loss"]:.4f}',
        }
        for r, arm in zip(rows, arms)
    ]
    common = [w for w in rows[0]['arm'].split() if w not in arms[0].split()]
    where = dict.fromkeys(f'{r["device"]}, {r["dtype"]}, torch {r["torch"]}, {r["commit"][:7]}' for r in rows)
    shared = [f'all with {" ".join(common)}'] * bool(common)
    return '\n'.join(['; '.join(where), *shared, *columns(lines)])
