"""
Is growing a small model cheaper than training the large one? The FLOPs and seconds to one loss, all told.

    python race.py --size=gpt2 --out=results/growth_gutenberg      # run what is missing, then print the table
    python race.py --show=results/growth_gutenberg                 # only the table, from the logs
    python race.py --size=tiny --arms=clone-0.3,stack              # on a CPU, to try it

1. The large model from scratch at several learning rates. The best final loss is the target of the race, its rate
   the rate of everything else.
2. Small sources at a quarter of the iterations, at a constant rate: `narrow` (half the width) and `shallow` (half the
   depth), `random`, which is narrow as it was initialised, and `alone`, which is narrow trained for the FLOPs of scratch.
3. An arm per way to grow, each a run of its own with a schedule over `horizon` times the iterations of scratch.

Every run is `train.py config/gpt2.py` with flags. FLOPs of an arm: its own to the target, plus, counted, its source's
(and LiGO's). Seconds: iterations times the median step time, so that compiling and evaluations do not count, plus the
seconds of the growth itself; they mean something where runs do not share the device. The target is read off between
evaluations by straight lines. An arm that does not get there has no figure: its horizon was too short, or it is worse.
"""

import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from configurator import ROOT, UserError, input_path, key, load, root_path, run
from download import write
from logger import read_metrics

COMMON = '--hidden_lr=1 --weight_decay=0.1 --always_save_checkpoint=false --log_interval=10 --eval_iters=10'
SIZES = {  # flags of the large model; narrow has half of n_embd and n_head, shallow half of n_layer
    'gpt2': '--n_layer=12 --n_embd=768 --n_head=12 --batch_size=32 --gradient_accumulation_steps=4 --warmup_iters=50',
    'half': '--n_layer=8 --n_embd=512 --n_head=8 --batch_size=32 --gradient_accumulation_steps=2 --warmup_iters=50',
    'tiny': '--n_layer=2 --n_embd=32 --n_head=4 --batch_size=4 --gradient_accumulation_steps=1 --warmup_iters=2'
    ' --block_size=32 --dataset=shakespeare_char --eval_iters=4 --log_interval=1 --device=cpu',
}
ARMS = {  # name: (source, flags)
    'clone-0': ('narrow', '--transfer_method=clone'),  # must do as the small model: no capacity without noise
    'clone-0.3': ('narrow', '--transfer_method=clone --transfer_noise=0.3'),
    'clone-1': ('narrow', '--transfer_method=clone --transfer_noise=1'),
    'clone-2': ('narrow', '--transfer_method=clone --transfer_noise=2'),
    'clone-1-fresh': ('narrow', '--transfer_method=clone --transfer_noise=1 --transfer_moments=fresh'),
    'clone-1-half-rate': ('narrow', '--transfer_method=clone --transfer_noise=1 --hidden_lr=0.5'),
    'spectrum': ('narrow', '--transfer_method=spectrum'),
    'bert2bert': ('narrow', '--transfer_method=bert2bert'),
    'ligo': ('narrow', '--transfer_method=ligo'),
    'double': ('narrow', '--transfer_method=double'),
    'one_hot': ('narrow', '--transfer_method=one_hot'),
    'stack': ('shallow', '--transfer_method=stack'),
    'interleave': ('shallow', '--transfer_method=interleave'),
    'zero_block': ('shallow', '--transfer_method=zero_block'),
    # controls: singular values alone, a random basis, shuffled rows, identity padding of what was never trained
    'spectrum_random': ('narrow', '--transfer_method=spectrum_random'),
    'random_lift-1': ('narrow', '--transfer_method=random_lift --transfer_noise=1'),
    'shuffle': ('narrow', '--transfer_method=shuffle'),
    'one_hot-random': ('random', '--transfer_method=one_hot'),
}


@dataclass
class RaceConfig:
    size: str = key('gpt2', 'size of the large model', choices=tuple(SIZES))
    iters: int = key(1000, 'iterations from scratch', low=2)
    rates: tuple = key((3e-4, 6e-4, 1.2e-3, 2.4e-3), 'learning rates tried from scratch')
    source_share: float = key(0.25, 'iterations of a source over those from scratch', above=0, high=1)
    horizon: float = key(0.75, 'iterations of a grown run over those from scratch', above=0)
    arms: str = key('all', f'which of {", ".join(ARMS)}, separated by commas')
    seed: int = key(1337, 'seed of model and data', low=0)
    flags: str = key('', "flags for every run, such as '--n_layer=6 --dataset=shakespeare'; they come last")
    out: str = key('out/race', 'folder for the logs, one per run, and for race.json')
    work: str = key('out/race-runs', 'folder for checkpoints while it runs')
    show: str = key('', 'only print the table of such a folder')

    def problems(self):
        odd = [a for a in self.arms.split(',') if a not in ARMS and self.arms != 'all']
        return [f"arms: '{a}' is none; there are {', '.join(ARMS)}" for a in odd]


def small_flags(cfg: RaceConfig) -> dict:
    """{source: flags that make it small}."""
    sizes = dict(a[2:].split('=') for a in shlex.split(f'{SIZES[cfg.size]} {cfg.flags}'))
    d, h, n = (int(sizes[k]) // 2 for k in ('n_embd', 'n_head', 'n_layer'))
    return dict(narrow=f'--n_embd={d} --n_head={h}', shallow=f'--n_layer={n}')


def go(cfg: RaceConfig, name: str, iters: int, flags: str):
    """Train one run, unless its log says that it is done; a source that was interrupted goes on."""
    out_dir = f'{cfg.work}/{name}'
    work, kept = root_path(out_dir), root_path(cfg.out) / name
    if (kept / 'manifest.json').exists():
        return
    evals = max(1, iters // 25)
    fixed = f'--max_iters={iters} --lr_decay_iters={iters} --eval_interval={evals} --out_dir={out_dir}'
    fixed += f' --seed_model={cfg.seed} --seed_data={cfg.seed}'
    if name not in ('narrow', 'shallow', 'random'):  # what nothing grows from leaves only its log
        fixed += ' --save_checkpoint=false'
    args = ['config/gpt2.py', *shlex.split(f'{COMMON} {SIZES[cfg.size]} {cfg.flags} {fixed} {flags}')]
    args += ['--init_from=resume'] if (work / 'ckpt.pt').exists() else []
    print(f'{name}: python train.py {" ".join(args)}', flush=True)
    train = [sys.executable, 'train.py', *args]
    if code := subprocess.run(train, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        if code != 3:
            raise UserError(f'{name} ended with exit code {code}; mend the above and start again: nothing is repeated')
        print(f'{name}: diverged', flush=True)  # a result, too
    for file in ('config.json', 'metrics.jsonl', 'manifest.json'):  # the manifest last: it says that the run is here
        write(kept / file, (work / file).read_bytes())


def read_run(folder: Path) -> dict:
    """Costs and losses of a run: evals [(iter, val_loss), ...], FLOPs and seconds per iteration, what it grew from."""
    m, lines = json.loads((folder / 'manifest.json').read_text()), read_metrics(folder)
    ms = [line['ms'] for line in lines if line.get('ms')]
    return dict(
        name=folder.name,
        evals=[(line['iter'], line['val_loss']) for line in lines if line['kind'] == 'eval'],
        iters=m.get('final_iter', 0),
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


def table(folder: Path) -> str:
    plan = json.loads((folder / 'race.json').read_text())
    runs = {p.parent.name: read_run(p.parent) for p in sorted(folder.glob('*/manifest.json'))}
    scratch = runs[plan['best']]
    target, flops, seconds = (
        plan['target'],
        *(scratch[k] * reach(scratch, plan['target']) for k in ('flops', 'seconds')),
    )
    lines = [
        f'{scratch["device"]}; target: validation loss {target:.4f}, that of {plan["best"]} after {flops:.3g} FLOPs and'
        f' {seconds:.0f} s of training',
        f'{"run":18} {"at start":>9} {"best":>7} {"iters":>6} {"FLOPs":>9} {"saved":>7} {"source free":>11} {"s":>6}'
        f' {"saved":>7} {"source free":>11}',
    ]
    for name, r in runs.items():
        at, first, last = reach(r, target), r['evals'][0][1], min(v for _, v in r['evals'])
        line = f'{name:18} {first:9.4f} {last:7.4f} '
        if at is None or name in ('narrow', 'shallow', 'random'):
            lines.append(line + '     -')
            continue
        line += f'{at:6.0f}'
        for unit, whole, width in (('flops', flops, 9), ('seconds', seconds, 6)):
            own = at * r[unit]
            before, growing = 0.0, 0.0
            if r['transfer']:
                source = runs[plan['sources'][name]]
                before = source['iters'] * source[unit]
                if unit == 'flops':
                    growing = r['transfer']['flops'] - before  # what was learned while growing
                else:
                    growing = r['transfer']['growing']
            total = own + before + growing
            line += f' {total:{width}.3g} {1 - total / whole:7.1%} {1 - (own + growing) / whole:11.1%}'
        lines.append(line)
    return '\n'.join(lines)


def race(cfg: RaceConfig):
    folder, small = root_path(cfg.out), small_flags(cfg)
    rate = lambda r: f'--learning_rate={r:g} --min_lr={r / 10:g}'
    scratch = {f'scratch-{r:g}': r for r in cfg.rates}
    for name, r in scratch.items():
        go(cfg, name, cfg.iters, rate(r))
    final = {name: read_run(folder / name)['evals'][-1][1] for name in scratch}
    best = min(final, key=final.get)
    lr = rate(scratch[best])

    constant = f'{lr} --min_lr={scratch[best]:g}'  # a source hands over before its rate has decayed
    share = max(1, round(cfg.source_share * cfg.iters))
    names = list(ARMS) if cfg.arms == 'all' else cfg.arms.split(',')
    sources = {name: ARMS[name][0] for name in names}
    for name in dict.fromkeys(sources.values()):
        flags = f'{constant} {small.get(name, small["narrow"])}'
        if name == 'random':
            flags += ' --learning_rate=1e-9 --min_lr=1e-9 --warmup_iters=0'
        go(cfg, name, 1 if name == 'random' else share, flags)
    for name in names:
        source, flags = ARMS[name]
        start = f'--init_from=transfer --transfer_from={cfg.work}/{source}/ckpt.pt {flags}'
        go(cfg, name, max(1, round(cfg.horizon * cfg.iters)), f'{lr} {start}')
    if 'narrow' in sources.values():  # the small model for the FLOPs of scratch
        ratio = read_run(folder / best)['flops'] / read_run(folder / 'narrow')['flops']
        go(cfg, 'alone', round(cfg.iters * ratio), f'{lr} {small["narrow"]}')
    plan = dict(best=best, target=final[best], sources=sources)
    write(folder / 'race.json', (json.dumps(plan, indent=1) + '\n').encode())


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
