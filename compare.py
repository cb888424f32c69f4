"""
Compare ways to train: many runs at matched cost, each arm at its own best learning rate, and a verdict for each arm
(docs/protocol.md).

    python compare.py config/compare/expansion.py                        runs what is missing, then table, plots, page
    python compare.py config/compare/expansion.py --cluster=slurm --jobs=40 --partition=gpu
    python compare.py config/compare/growth_tiny.py                      arms with preparing steps, on a CPU
    python compare.py --show=results/growth_small                        only the tables, from the logs
    python compare.py --show=results/mnist_mlp --center=median           the same runs, judged in another way
    python compare.py config/track/low_rank.py                           an entry of the board (docs/track.md)
    python compare.py --report                                           RESULTS.md and docs/track.md from all logs in results/
    python compare.py --check                                            do RESULTS.md and the documents agree with them?

A comparison is a config file with these keys; an arm is a config of train.py with flags. Seed s means the same data in
the same order and the same start in every arm. With learning_rates each arm is first trained at each of these rates, on
random seeds that are used for nothing else, with min_lr in proportion, and a parabola gives its rate. The baseline is
trained with eight seeds, and what a claim will need is printed. Then each arm gets 4, 6, 8, ... seeds until its verdict
is certain. After an interruption run the same command again. It keeps finished runs (in out/compare/ or in
out/results/<name>/metrics.jsonl, so on another machine, too) and resumes the others. What the command leaves in
out/results/ is yours. To publish it, move it to results/<name>, where --report and --check look, or go on there with
--results=results.

An arm may start from preparing steps, which are trainings or commands of transfer.py (grow, factorize, ...).

    steps = dict(
        small='config/gpt2.py --n_layer=6',                             # flags of common come before these
        cut='transfer.py factorize --checkpoint={small} --linear=low_rank --init=nearest',
    )
    arms = dict(
        scratch='config/gpt2.py',
        stack='config/gpt2.py --init_from=transfer --transfer_from={small} --transfer_method=stack',
        low_rank='config/gpt2.py --init_from={cut} --distill_from={small}',
    )

{NAME} is the checkpoint of a step, or of an arm listed before. Every random seed has its own steps (with shared_steps
all seeds share them), and all arms of a seed use the same ones. Their FLOPs and seconds count; the tables also have
figures without them ("source free"). A checkpoint that is needed but missing (another machine, deleted) is made again.

Exit codes: 0 done, 1 a run failed (the others are kept), 2 a mistake in the config, 130 interrupted (runs have saved).
"""

import dataclasses
import math
import sys
from dataclasses import dataclass

from configurator import UserError, input_path, key, load, printable, read_flags, root_path, run
from lab import check, outcomes, protocol, report, track
from lab.comparison import compare
from lab.plan import LEG, SCRIPTS
from lab.records import OWN, PUBLISHED, SWEEP


@dataclass
class CompareConfig:
    arms: dict | None = key(None, "{name: 'config.py --flags'}, the baseline first")
    claim: str = key('{arm} has a lower loss than {baseline}', 'the sentence the verdict is about')
    note: str = key('', 'a paragraph for RESULTS.md')
    script: str = key('train.py', 'what trains an arm', choices=tuple(SCRIPTS))
    common: str = key('', "flags of every arm; an arm's own come later and win")
    steps: dict | None = key(None, "{name: 'config.py --flags' or 'transfer.py COMMAND --flags'}: what arms start from")
    shared_steps: bool = key(False, 'steps run once, with seed 1: intervals then hold for these sources only')
    horizons: tuple | dict = key(
        (),
        "runs of several lengths: shares of max_iters, for all arms or {arm: shares}; speed is against the baseline's longest",
    )
    tasks: str = key(
        '', "what evaluate.py measures of the runs that decide: 'wikitext2,lambada --limit=100'; empty: nothing"
    )
    sizes: dict | None = key(
        None, "{name: '--flags'}: every arm at every size; four or more that differ in numbers only give scaling laws"
    )
    seeds: int = key(
        12,
        'the plan: at most so many of the seeds 1, 2, ... that decide; looks at 4, 6, 8, ... of them',
        low=1,
        high=SWEEP,
    )
    seed_offset: int = key(
        0,
        'added to the random seed of every run: with 100 a second comparison, of another name, owes nothing to the seeds of the first',
        low=0,
        high=LEG // 2,
    )
    looks: bool = key(
        True,
        'judge by docs/protocol.md; false: the rate of the lowest mean and all seeds at once, for comparisons from before it',
    )
    learning_rates: tuple | dict = key(
        (),
        "rates to sweep, for all arms or {arm or step: rates}, or {arm or step: 'arm'} to take its rate (a step that of each run"
        " that starts from it, if these are of that arm); ARM@SIZE on either side; none: the config's",
    )
    shared_rate: float = key(
        0.0,
        "the rate at which the source of the claim compared all arms, for pictures; 0: the baseline's best of the sweep",
        low=0,
    )
    sweep_seeds: int = key(3, 'seeds per rate of the sweep, other ones than those that decide', low=1)
    extend: int = key(2, 'rates to add where the best one is on the edge of the sweep', low=0)
    metric: str = key(
        'val_loss', 'key of the logged evaluations; lower is better; where its two halves were logged, val_a and val_b'
    )
    center: str = key(
        'mean',
        'what stands for the seeds: median for errors with two humps, log for ratios (worth is a share then)',
        choices=('mean', 'median', 'log'),
    )
    at: str = key('last', 'the last evaluation, or the best one of each run', choices=('last', 'best'))
    worth: float = key(0.01, 'the smallest gain in the metric that would matter', above=0)
    targets: tuple | dict = key(
        (), 'figures set before the runs: how many times sooner is each reached? With sizes {size: figures}'
    )
    match: str = key(
        'tokens',
        "what arms have in common; with flops an arm without --max_iters trains until it has used the baseline's",
        choices=('params', 'flops', 'tokens', 'time'),
    )
    mismatch: dict | None = key(None, "{arm: 'reason'} for arms that are off by more than 1%, or see other data")
    bench: bool = key(True, 'train.py: time the steps of all arms, alone and in turns, before the runs')
    cluster: str = key(
        'local',
        'local starts a process for each run; pool keeps them for one run after the other, which compile once: for many'
        ' runs of seconds; slurm submits a job for each (submitit); none: the old name of local',
        choices=('local', 'slurm', 'none', 'pool'),
    )
    only: str = key('', 'what to run now: arms, sizes or ARM@SIZE, separated by commas; empty: everything')
    jobs: int = key(0, 'runs at once; 0: 4 per GPU (small runs leave it idle), or one per CPU core up to 8', low=0)
    track: str = key('', 'the track of config/track/ whose baseline and rules hold: see docs/track.md')
    minutes: int = key(240, 'time limit of a run under Slurm', low=1)
    partition: str = key('', 'of Slurm')
    keep_checkpoints: bool = key(False, 'keep ckpt.pt and best.pt of finished runs')
    name: str = key('', "name of the folders under results and out; empty: the config file's")
    results: str = key(
        '',
        f'where logs, table, plots and page go, in <name>/; empty: {OWN}, and for report and check {PUBLISHED}, whose'
        ' comparisons RESULTS.md is about',
    )
    out: str = key('out/compare', 'where runs are trained, in <name>/')
    report: bool = key(False, 'only rewrite RESULTS.md, tables, plots and pages from the logs')
    show: str = key(
        '',
        f'only print the tables of such a folder of results; with {", ".join(outcomes.JUDGING)} judged anew by these',
    )
    baseline: str = key('', 'with show: the arm that the others are held against; empty: the first')
    check: bool = key(False, 'only check RESULTS.md and the documents against the logs')

    def __post_init__(self):
        self.results = self.results or (PUBLISHED if self.report or self.check else OWN)
        self.arms, self.steps, self.sizes = self.arms or {}, self.steps or {}, self.sizes or {}
        self.mismatch = self.mismatch or {}

    def problems(self):
        """What is wrong with the keys, one line each; [] if nothing."""
        found = []
        if self.baseline and not self.show:
            found.append(
                f"baseline = '{self.baseline}': is read with show only; in a config the first arm is the baseline"
            )
        if not (self.report or self.check or self.show) and len(self.arms) < (1 if self.track else 2):
            found.append('arms: give at least two in a config file, the baseline first; see config/compare/')
        for name in [*self.arms, *self.steps, *self.sizes]:
            if not isinstance(name, str) or not name or set(name) & set('/@ |{}'):
                found.append(f"arms, steps, sizes: '{name}': must be a text without space, /, @, | or braces")
        found += [f'steps: {name}: is an arm as well; choose another name' for name in self.steps if name in self.arms]
        if self.looks and 0 < self.seeds < protocol.FIRST:
            found.append(f'seeds = {self.seeds}: the first look is at {protocol.FIRST} seeds; more, or looks = False')
        if self.looks and self.learning_rates and self.sweep_seeds < 3:
            found.append(f'sweep_seeds = {self.sweep_seeds}: a rate is chosen by 3 seeds or more; or looks = False')
        if self.center == 'log' and self.worth >= 1:
            found.append(f"worth = {self.worth:g}: with center = 'log' it is a share of the baseline's figure, below 1")
        if not all(isinstance(t, int | float) and math.isfinite(t) for t in outcomes.every_target(self.targets)):
            found.append(f'targets: {self.targets!r}: must be figures in a tuple, or {{size: figures}}')
        if isinstance(self.targets, dict) and (odd := [s for s in self.targets if s not in self.sizes]):
            found.append(
                f'targets: {", ".join(map(str, odd))}: no such size; there is: {", ".join(self.sizes) or "none"}'
            )
        if self.seed_offset and self.track:
            found.append('seed_offset: all entries of a track share the runs of its baseline; leave it out')
        if self.sizes and self.horizons:
            found.append('horizons: not together with sizes; name each length as a size')
        for shares in self.horizons.values() if isinstance(self.horizons, dict) else [self.horizons]:
            if not isinstance(shares, tuple | list) or not all(isinstance(h, int | float) and h > 0 for h in shares):
                found.append(f'horizons: {shares!r}: must be shares of max_iters in a tuple, such as (0.5, 1)')
        cells = {*self.arms, *self.sizes, *(f'{arm}@{size}' for arm in self.arms for size in self.sizes)}
        if odd := {w.strip() for w in self.only.split(',') if w.strip()} - cells:
            found.append(f'only: {", ".join(sorted(odd))}: no such arm or size; there is: {", ".join(sorted(cells))}')
        if '/' in self.track:
            found.append(f"track = '{self.track}': must be the name of a track, without /")
        if self.track and self.name:
            found.append(f"name = '{self.name}': an entry of a track has the name of its arm; leave it out")
        if '/' in self.name or self.name in ('.', '..'):
            found.append(f"name = '{self.name}': must be the name of a folder, without /")
        trained = [*self.arms, *self.steps]
        swept = [*trained, *(f'{name}@{size}' for name in trained for size in self.sizes)]
        for field, there in (('learning_rates', swept), ('mismatch', self.arms), ('horizons', self.arms)):
            given = getattr(self, field)
            if there and isinstance(given, dict) and (odd := [a for a in given if a not in there]):
                found.append(f'{field}: {", ".join(odd)}: no such arm; there is: {", ".join(trained)}')
        return found


def main():
    argv = sys.argv[1:]
    cfg = load(CompareConfig, argv)
    files, flags = read_flags(argv, {f.name: f for f in dataclasses.fields(CompareConfig)})
    results = root_path(cfg.results)
    for only, keys in dict(show=outcomes.JUDGING, check=('results',), report=('results',)).items():
        if getattr(cfg, only) and (odd := [*map(str, files), *(k for k in flags if k not in (only, *keys))]):
            raise UserError(
                f'{", ".join(odd)}: has no effect with {only}, which reads {", ".join(keys)} only; leave it out'
            )
    if cfg.show:
        given = {k: getattr(cfg, k) for k in outcomes.JUDGING if k in flags}
        print(printable(report.shown(input_path(cfg.show), given)))
    elif cfg.check:
        if wrong := check.differences(results):
            raise UserError('\n'.join(wrong) + '\nafter a change of the logs: python compare.py --report')
        print('RESULTS.md and the documents agree with the logs')
    elif cfg.report:
        if not report.comparisons(results):
            raise UserError(
                f'results = {cfg.results}: holds no comparison (*/comparison.json), RESULTS.md stays as it is'
            )
        report.write_all(results)
    else:
        if cfg.track:
            cfg = track.placed(cfg)
        compare(dataclasses.replace(cfg, name=cfg.name or (files[-1].stem if files else 'compare')), files)


if __name__ == '__main__':
    run(main, interrupted='interrupted; the same command goes on from here')
