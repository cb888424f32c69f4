"""
Is growing a small model cheaper than training the large one? The FLOPs and seconds to one loss, all told.

    python race.py --size=gpt2                                     # run what is missing, then print the table
    python race.py --size=small --iters=3600 --jobs=8 --cluster=pool    # many short runs, compiled once (a GPU)
    python race.py --show=results/growth_gutenberg                 # only the table, from the logs
    python race.py --size=tiny --arms=clone-0.3,stack              # on a CPU, to try it

1. The large model from scratch at several learning rates, and beyond the edge of these while the best lies there. The
   best final loss is the target of the race, its rate the rate of everything else.
2. Small sources at a quarter of the iterations, at a constant rate: `narrow` (half the width) and `shallow` (half the
   depth), `third` (of the depth), the same at a tenth (`-early`), `staged` (shallow, stacked on its way from a
   quarter of the depth, rounded down), `random`, which is narrow as it was initialised, and `alone`, which is narrow
   trained for the FLOPs of scratch. Scratch once more over each of the horizons (`scratch-x`).
3. An arm per way to grow, each a run of its own with a schedule over `horizons` times the iterations of scratch: over
   the first of them, and while the target is not reached over the next.

Every run is `train.py config/gpt2.py` with flags. FLOPs of an arm: its own to the target, plus, counted, those of its
source (and its source's source, and LiGO's). Seconds: iterations times the median step time, so that compiling and
evaluations do not count, plus the seconds of the growth itself. Runs side by side (--jobs) slow each other down: then
the step of each size is timed alone before them, by bench.py, and the table says so. The target is read off between
evaluations by straight lines. An arm that does not get there has no such figure: its horizon was too short, or it is
worse. "At its loss" needs no target: all FLOPs of a run, source counted, against those of a run from scratch that
ends at the same loss, read off between the scratch-x by a straight line over log FLOPs; an arm beyond these has none.
An interrupted race goes on with the same command, elsewhere too: a source that is wanted but whose checkpoint is not
there is trained again.
"""

import json
import math
import shlex
import statistics
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from configurator import ROOT, UserError, input_path, key, load, root_path, run
from files import write
from lab import launch
from lab.plan import beyond
from logger import read_metrics

COMMON = '--hidden_lr=1 --weight_decay=0.1 --always_save_checkpoint=false --log_interval=10 --eval_iters=10'
SIZES = {  # flags of the large model; narrow has half of n_embd and n_head, shallow, third, quarter that share of n_layer
    'gpt2': '--n_layer=12 --n_embd=768 --n_head=12 --batch_size=32 --gradient_accumulation_steps=4 --warmup_iters=50',
    'half': '--n_layer=8 --n_embd=512 --n_head=8 --batch_size=32 --gradient_accumulation_steps=2 --warmup_iters=50',
    # 5.8M parameters, of which 1.0M for the vocabulary; 59M tokens in 3,600 iterations, 1.2 epochs
    'small': '--n_layer=6 --n_embd=256 --n_head=4 --batch_size=64 --gradient_accumulation_steps=1 --warmup_iters=100'
    ' --block_size=256 --dataset=gutenberg_bpe',
    'tiny': '--n_layer=2 --n_embd=32 --n_head=4 --batch_size=4 --gradient_accumulation_steps=1 --warmup_iters=2'
    ' --block_size=32 --dataset=shakespeare_char --eval_iters=4 --log_interval=1 --device=cpu',
}
SOURCES = {  # name: (which, its iterations over those of a source, the source that it is stacked from)
    'narrow': ('narrow', 1, ''),
    'shallow': ('shallow', 1, ''),
    'narrow-early': ('narrow', 0.4, ''),
    'shallow-early': ('shallow', 0.4, ''),
    'third': ('third', 1, ''),
    'third-early': ('third', 0.4, ''),
    'quarter-early': ('quarter', 0.4, ''),
    'staged': ('shallow', 0.6, 'quarter-early'),
    'random': ('narrow', 0, ''),
}
ARMS = {  # name: (source, flags), what is most wanted first
    'stack': ('shallow', '--transfer_method=stack'),
    'zero_block': ('shallow', '--transfer_method=zero_block'),
    'clone-1': ('narrow', '--transfer_method=clone --transfer_noise=1'),
    'clone-0.3': ('narrow', '--transfer_method=clone --transfer_noise=0.3'),
    'clone-2': ('narrow', '--transfer_method=clone --transfer_noise=2'),
    'clone-0': ('narrow', '--transfer_method=clone'),  # must do as the small model: no capacity without noise
    'spectrum': ('narrow', '--transfer_method=spectrum'),
    'stack-early': ('shallow-early', '--transfer_method=stack'),
    'double': ('narrow', '--transfer_method=double'),
    'one_hot': ('narrow', '--transfer_method=one_hot'),
    'clone-1-half-rate': ('narrow', '--transfer_method=clone --transfer_noise=1 --hidden_lr=0.5'),
    'clone-1-early': ('narrow-early', '--transfer_method=clone --transfer_noise=1'),
    'interleave': ('shallow', '--transfer_method=interleave'),
    'stack-third': ('third', '--transfer_method=stack'),
    'stack-third-early': ('third-early', '--transfer_method=stack'),
    'stack-staged': ('staged', '--transfer_method=stack'),
    'bert2bert': ('narrow', '--transfer_method=bert2bert'),
    'stack-half-rate': ('shallow', '--transfer_method=stack --hidden_lr=0.5'),
    'zero_block-early': ('shallow-early', '--transfer_method=zero_block'),
    # controls: singular values alone, a random basis, shuffled rows, identity padding of what was never trained
    'spectrum_random': ('narrow', '--transfer_method=spectrum_random'),
    'random_lift-1': ('narrow', '--transfer_method=random_lift --transfer_noise=1'),
    'shuffle': ('narrow', '--transfer_method=shuffle'),
    'one_hot-random': ('random', '--transfer_method=one_hot'),
    'clone-1-fresh': ('narrow', '--transfer_method=clone --transfer_noise=1 --transfer_moments=fresh'),
    'ligo': ('narrow', '--transfer_method=ligo'),
}


@dataclass
class RaceConfig:
    size: str = key('gpt2', 'size of the large model', choices=tuple(SIZES))
    iters: int = key(1000, 'iterations from scratch', low=2)
    rates: tuple = key((3e-4, 6e-4, 1.2e-3, 2.4e-3), 'learning rates tried from scratch', above=0)
    source_share: float = key(0.25, 'iterations of a source over those from scratch', above=0, high=1)
    horizons: tuple = key(
        (0.6, 0.8), 'iterations of a grown run over those from scratch; the next if the target is missed', above=0
    )
    evals: int = key(25, 'evaluations of a run from scratch; others have as many an iteration', low=1)
    extend: int = key(2, 'learning rates to try beyond the edge of the given ones', low=0)
    jobs: int = key(1, 'runs at once', low=1)
    cluster: str = key(
        'none',
        'a process for each run (none), or processes that do one after the other and compile once (pool)',
        choices=('none', 'pool'),
    )
    arms: str = key('all', f'which of {", ".join(ARMS)}, separated by commas')
    seed: int = key(1337, 'seed of model and data', low=0)
    flags: str = key('', "flags for every run, such as '--n_layer=6 --dataset=shakespeare'; they come last")
    out: str = key('out/race', 'folder for the logs, one per run, and for race.json')
    work: str = key('out/race-runs', 'folder for checkpoints while it runs')
    show: str = key('', 'only print the table of such a folder')

    def problems(self):
        odd = [a for a in self.arms.split(',') if a not in ARMS and self.arms != 'all']
        try:
            shlex.split(self.flags)
        except ValueError as e:
            return [f'flags = {self.flags}: {e}; close the quote']
        return [f"arms: '{a}' is none; there are {', '.join(ARMS)}" for a in odd]


def arms_of(cfg: RaceConfig) -> list[str]:
    return list(ARMS) if cfg.arms == 'all' else cfg.arms.split(',')


def lineage(source: str) -> list[str]:
    """A source, what it grew from, and so on."""
    return [source, *lineage(SOURCES[source][2])] if source else []


def small_flags(cfg: RaceConfig) -> dict:
    """{kind of source: flags that make it small}."""
    sizes = dict(a[2:].split('=') for a in shlex.split(f'{SIZES[cfg.size]} {cfg.flags}'))
    d, h, n = (int(sizes[k]) for k in ('n_embd', 'n_head', 'n_layer'))
    depths = {kind: f'--n_layer={max(1, n // k)}' for kind, k in (('shallow', 2), ('third', 3), ('quarter', 4))}
    return dict(narrow=f'--n_embd={d // 2} --n_head={h // 2}', **depths)


def command(cfg: RaceConfig, name: str, iters: int, flags: str) -> tuple[str, Path, list[str]]:
    """What launch.py starts for a run; a source that was interrupted goes on."""
    work = root_path(cfg.work) / name
    fixed = f'--max_iters={iters} --lr_decay_iters={iters} --eval_interval={max(1, cfg.iters // cfg.evals)}'
    fixed += f' --out_dir={work} --seed_model={cfg.seed} --seed_data={cfg.seed}'
    if name not in SOURCES:  # what nothing grows from leaves only its log
        fixed += ' --save_checkpoint=false'
    args = ['config/gpt2.py', *shlex.split(f'{COMMON} {SIZES[cfg.size]} {cfg.flags} {fixed} {flags}')]
    args += ['--init_from=resume'] if (work / 'ckpt.pt').exists() else []
    return name, work, [sys.executable, str(ROOT / 'train.py'), *args]


def keep(cfg: RaceConfig, name: str, code: int | None) -> str:
    """Copy the logs of a run that is over; '' if it is."""
    work, kept = root_path(cfg.work) / name, root_path(cfg.out) / name
    if code not in (0, 3):  # to diverge is a result, too
        return launch.last_words(work, code)
    for file in ('config.json', 'metrics.jsonl', 'manifest.json'):  # the manifest last: it says that the run is here
        write(kept / file, (work / file).read_bytes())
    return ''


def read_run(folder: Path) -> dict:
    """Costs and losses of a run: evals [(iter, val_loss), ...], FLOPs and seconds per iteration, what it grew from."""
    m, lines = json.loads((folder / 'manifest.json').read_text()), read_metrics(folder)
    ms = [line['ms'] for line in lines if line.get('ms')]
    return dict(
        name=folder.name,
        evals=[(line['iter'], line['val_loss']) for line in lines if line['kind'] == 'eval'],
        iters=m.get('final_iter', 0),
        max_iters=json.loads((folder / 'config.json').read_text())['max_iters'],
        flops=m['tokens_per_iter'] * m['flops_per_token'] + m['processes'] * m['flops_per_update'],
        seconds=statistics.median(ms) / 1000 if ms else 0.0,
        transfer=m.get('transfer'),
        device=m['device'],
    )


def reach(run: dict, target: float) -> float | None:
    """The iteration at which the validation loss first crosses the target, between evaluations on a straight line."""
    before = None
    for at, loss in run['evals']:
        if loss <= target:
            if before is None:
                return float(at)
            return before[0] + (at - before[0]) * (before[1] - target) / (before[1] - loss)
        before = (at, loss)
    return None


def scratch_flops(frontier: list, loss: float) -> float | None:
    """FLOPs of a run from scratch that ends at this loss, given those of others: [(FLOPs, last loss), ...]."""
    for (f0, high), (f1, low) in pairwise(sorted(frontier)):
        if low <= loss <= high:
            return f0 * (f1 / f0) ** ((high - loss) / (high - low) if high > low else 0)
    return None


def table(folder: Path) -> str:
    plan = json.loads((folder / 'race.json').read_text())
    runs = {p.parent.name: read_run(p.parent) for p in sorted(folder.glob('*/manifest.json'))}
    clock = ''
    if plan.get('jobs', 1) > 1:
        path = folder / 'bench.jsonl'
        times = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        alone = {t['flops_per_step']: t['ms'] / 1000 for t in times}
        clock = f'{plan["jobs"]} runs at once, ' + ('steps timed alone' if times else 'steps not timed yet')
        for r in runs.values():
            r['seconds'] = alone.get(r['flops'], math.nan)
    scratch = runs[plan['best']]
    target, flops, seconds = (
        plan['target'],
        *(scratch[k] * reach(scratch, plan['target']) for k in ('flops', 'seconds')),
    )
    wide = max(18, *map(len, runs))
    lines = [
        f'{scratch["device"]}; target: validation loss {target:.4f}, that of {plan["best"]} after {flops:.3g} FLOPs'
        + (f' and {seconds:.0f} s of training' if seconds == seconds else '')
        + (f'; {clock}' if clock else ''),
        f'{"run":{wide}} {"at start":>9} {"best":>7} {"at its loss":>11} {"iters":>6} {"FLOPs":>9} {"saved":>7} {"source free":>11} {"s":>6}'
        f' {"saved":>7} {"source free":>11}',
    ]
    shorter = [r for n, r in runs.items() if n.startswith('scratch-x') and last_loss(r) < math.inf]
    frontier = [(r['iters'] * r['flops'], last_loss(r)) for r in (scratch, *shorter)]
    for name, r in runs.items():
        at, first, last = reach(r, target), r['evals'][0][1], min(v for _, v in r['evals'])
        line = f'{name:{wide}} {first:9.4f} {last:7.4f} '
        like = scratch_flops(frontier, last_loss(r)) if name not in SOURCES else None
        spent = r['iters'] * r['flops'] + (r['transfer']['flops'] if r['transfer'] else 0)
        line += f'{1 - spent / like:11.1%} ' if like else f'{"-":>11} '
        if at is None or name in SOURCES:
            lines.append(line + '     -')
            continue
        line += f'{at:6.0f}'
        for unit, whole, width in (('flops', flops, 9), ('seconds', seconds, 6)):
            own = at * r[unit]
            before, growing = 0.0, 0.0
            if r['transfer']:
                before = sum(runs[s]['iters'] * runs[s][unit] for s in lineage(plan['sources'][name]))
                if unit == 'flops':
                    growing = r['transfer']['flops'] - before  # what was learned while growing
                else:
                    growing = r['transfer']['growing']
            total = own + before + growing
            if math.isnan(total):
                line += f' {"-":>{width}} {"-":>7} {"-":>11}'
            else:
                line += f' {total:{width}.3g} {1 - total / whole:7.1%} {1 - (own + growing) / whole:11.1%}'
        lines.append(line)
    return '\n'.join(lines)


def rate(lr: float) -> str:
    return f'--learning_rate={lr:g} --min_lr={lr / 10:g}'


def last_loss(r: dict) -> float:
    """Its validation loss at the end; infinite if it diverged before."""
    return r['evals'][-1][1] if r['iters'] == r['max_iters'] else math.inf


def missing(cfg: RaceConfig) -> list:
    """The runs that can be started now, given those that are over; what is most wanted first."""
    folder = root_path(cfg.out)
    runs = {p.parent.name: read_run(p.parent) for p in folder.glob('*/manifest.json')}

    # from scratch
    grid = {f'scratch-{r:g}': r for r in sorted(cfg.rates)}
    while not (absent := [n for n in grid if n not in runs]):
        best = min(grid, key=lambda n: last_loss(runs[n]))
        further = beyond(sorted(grid.values()), grid[best])
        if not further or len(grid) >= len(cfg.rates) + cfg.extend:
            break
        grid[f'scratch-{further:g}'] = further
    if absent:
        return [command(cfg, n, cfg.iters, rate(grid[n])) for n in absent]
    lr, target, small, found = grid[best], last_loss(runs[best]), small_flags(cfg), []
    if target == math.inf:
        raise UserError('every run from scratch diverged; give lower --rates')

    if 'narrow' in runs:  # the small model for the FLOPs of scratch
        iters = round(cfg.iters * runs[best]['flops'] / runs['narrow']['flops'])
        found.append(command(cfg, 'alone', iters, f'{rate(lr)} {small["narrow"]}'))
    for h in cfg.horizons:  # what as many iterations give without growth
        found.append(command(cfg, f'scratch-x{h:g}', max(1, round(h * cfg.iters)), rate(lr)))

    def before(source):
        """[the run without which nothing can grow from this source yet]: its own, once more where its checkpoint is gone,
        or that of its source; []: it is there."""
        if source and launch.lost(root_path(cfg.work) / source, folder / source):
            runs.pop(source, None)
        if not source or source in runs:
            return []
        kind, share, parent = SOURCES[source]
        if first := before(parent):
            return first
        flags = f'{rate(lr)} --min_lr={lr:g} {small[kind]}'  # they hand over before their rate has decayed
        if not share:
            flags += ' --learning_rate=1e-9 --min_lr=1e-9 --warmup_iters=0'
        if parent:
            flags += f' {grow(parent)} --transfer_method=stack'
        return [command(cfg, source, max(1, round(share * cfg.source_share * cfg.iters)), flags)]

    def grow(source):
        return f'--init_from=transfer --transfer_from={root_path(cfg.work)}/{source}/ckpt.pt'

    # arms, the next horizon first of those that came nearest
    def gap(arm, horizon):
        return last_loss(runs[f'{arm}-x{horizon:g}']) - target

    arms, sources = arms_of(cfg), {}
    tried = {a: [h for h in cfg.horizons if f'{a}-x{h:g}' in runs] for a in arms}
    again = [a for a in arms if tried[a] and len(tried[a]) < len(cfg.horizons)]
    again = [a for a in again if 0 < gap(a, tried[a][-1]) < math.inf]
    again.sort(key=lambda a: gap(a, tried[a][-1]))
    for arm in [*(a for a in arms if not tried[a]), *again]:
        source, flags = ARMS[arm]
        horizon = cfg.horizons[len(tried[arm])]
        if first := before(source):
            sources |= {name: (name, *run) for name, *run in first}
        else:
            iters = max(1, round(horizon * cfg.iters))
            found.append(command(cfg, f'{arm}-x{horizon:g}', iters, f'{rate(lr)} {grow(source)} {flags}'))
    found = [*sources.values(), *found]
    grown = {f'{a}-x{h:g}': ARMS[a][0] for a in arms for h in cfg.horizons}
    facts = dict(best=best, target=target, sources=grown, jobs=cfg.jobs)
    write(folder / 'race.json', (json.dumps(facts, indent=1) + '\n').encode())
    return [run for run in found if run[0] not in runs]


def race(cfg: RaceConfig):
    launch.settle(root_path(cfg.out), cfg, ('size', 'iters', 'evals', 'source_share', 'seed', 'flags'))
    times = root_path(cfg.out) / 'bench.jsonl'
    if cfg.jobs > 1 and not times.exists():  # first: what it compiles, the runs find in the compiler's cache
        common = ['config/gpt2.py', *shlex.split(f'{SIZES[cfg.size]} {cfg.flags}')]
        args = ['--steps=10', '--rounds=5', f'--out={times}', *common]
        small = small_flags(cfg)
        for kind in dict.fromkeys(SOURCES[s][0] for a in arms_of(cfg) for s in lineage(ARMS[a][0])):
            args += ['--', *common, *small[kind].split()]
        bench = ('bench', root_path(cfg.work) / 'bench', [sys.executable, str(ROOT / 'bench.py'), *args])
        wrong = lambda _, code: launch.last_words(bench[1], code) if code else ''
        launch.run_here(lambda: [] if times.exists() else [bench], wrong, 1)
    launch.run_here(lambda: missing(cfg), lambda name, code: keep(cfg, name, code), cfg.jobs, cfg.cluster)


def main():
    cfg = load(RaceConfig, sys.argv[1:])
    if not cfg.show:
        race(cfg)
    folder = input_path(cfg.show) if cfg.show else root_path(cfg.out)
    if not (folder / 'race.json').exists():
        raise UserError(f'{folder} holds no race.json; give the --out of a race that has ended')
    print(table(folder))


if __name__ == '__main__':
    run(main)
