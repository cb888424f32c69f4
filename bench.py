"""
Time the training step. It is exactly the step of train.py, with data and optimizer.

    python bench.py config/shakespeare_char.py
    python bench.py config/shakespeare_char.py -- config/expansive_shakespeare.py -- config/expansive_shakespeare.py --expansion=10000

    python bench.py structures --d_in=768 --d_out=3072      a table of all layers: lab/bench_layers.py
    python bench.py mlp --widths=768,2048,5120              time MLPs of these layers
    python bench.py sample config/gpt2.py --vocab_size=50304    tokens per second of sampling: lab/bench_sample.py
    python bench.py fit config/gpt2.py --vocab_size=50304 --memory=80    the largest micro-batch, by a count: lab/bench_fit.py
    python bench.py profile config/shakespeare_char.py      a trace, time by kind of kernel, roofline: lab/bench_profile.py
    python bench.py ablate config/shakespeare_char.py       each optimisation switched off alone: lab/bench_ablate.py
    python bench.py start config/shakespeare_char.py        from the command to the first step: lab/bench_start.py
    python bench.py same config/gpt2.py --n_embd=384 --n_head=6    are losses and gradients those of plain float32? lab/bench_same.py
    python bench.py targets --nanogpt=/path/to/nanoGPT --out=out/targets.jsonl    the table of targets: lab/bench_targets.py
    python bench.py race config/gpt2.py --seconds=540 -- config/gpt2.py --nanogpt=/path/to/nanoGPT    loss by the clock: lab/bench_race.py
    python bench.py mup coordinates                         is a narrow model's best learning rate a wide one's? lab/mup.py

Arms are separated by `--`. Each is a config with flags as for train.py; --nanogpt=FOLDER times the step of nanoGPT's
own code for it; the other keys of bench.py go to the first. All arms live in one process and take turns, block by
block, so a drift of the machine affects all of them alike. Printed are the median time per step over the blocks with
its range, the ratio to the first arm (median over pairs of neighbouring blocks), tokens/s, MFU and peak memory. --out
writes the figures of each arm to a file, as one JSON line.
"""

import os
import sys
from dataclasses import dataclass

os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # as train.py does, before torch is loaded

import configurator  # noqa: F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import hardware
from configurator import key, load, root_path, run
from files import ready, write_lines
from lab import (
    bench_ablate,
    bench_fit,
    bench_layers,
    bench_profile,
    bench_race,
    bench_same,
    bench_sample,
    bench_start,
    bench_targets,
    mup,
)
from lab.bench_nanogpt import ArmConfig, NanoGPT
from lab.steps import Arm, apart, check_arms, side_by_side, table
from logger import relative
from train import Trainer

# name: (keys, command); with None as keys the command reads its flags itself, as it takes several configs or has commands of its own
COMMANDS = dict(
    structures=(bench_layers.StructuresConfig, bench_layers.structures),
    mlp=(bench_layers.MLPBenchConfig, bench_layers.mlp),
    fit=(bench_fit.FitConfig, bench_fit.fit),
    profile=(bench_profile.ProfileConfig, bench_profile.bench),
    same=(bench_same.SameConfig, bench_same.same),
    sample=(bench_sample.SampleBenchConfig, bench_sample.bench),
    targets=(bench_targets.TargetsConfig, bench_targets.targets),
    mup=(None, mup.main),
    ablate=(None, bench_ablate.ablate),
    start=(None, bench_start.start),
    race=(None, bench_race.race),
)
OWN = dict(arm=str, setup_s=float) | {'part?': (), 'without?': ()}  # lines of --out, for files.ready


@dataclass
class BenchConfig(ArmConfig):
    show: str = key('', 'only print the table of such a file', group='timing')


def main():
    argv = sys.argv[1:]
    if argv and argv[0] in COMMANDS:
        schema, command = COMMANDS[argv[0]]
        return command(load(schema, argv[1:]) if schema else argv[1:])
    arms = apart(argv)
    bench = load(BenchConfig, arms[0])
    if bench.show:
        return bench_profile.show(bench.show, table, 'bench.py')
    if bench.out:
        ready(root_path(bench.out), OWN, 'bench.py')
    configs = [bench] + [load(BenchConfig, a) for a in arms[1:]]
    check_arms(configs, {'steps', 'rounds', 'warmup', 'out', 'show'})
    device = hardware.choose_device(bench.device, bench.deterministic)
    side_by_side(len(arms))
    timed = [Arm(a, c, device, bench.warmup, NanoGPT if c.nanogpt else Trainer) for a, c in zip(arms, configs)]
    for _ in range(bench.rounds):
        for arm in timed:
            arm.timed_block(bench.steps)
    rows = [arm.figures(timed[0]) for arm in timed]
    if device.type != 'cuda' and len(rows) > 1:  # the resident memory of a process cannot be told apart by arm
        rows = [r | dict(peak_memory=None) for r in rows]
    print(table(rows))
    if bench.out:
        write_lines(root_path(bench.out), relative(rows))


if __name__ == '__main__':
    run(main)
