"""
Which start is best for a compressed GPT-2? Losses and perplexities after equal training tokens.

    python compress.py --size=gpt2 --out=results/kronecker_gutenberg     # run what is missing, then print the table
    python compress.py --show=results/kronecker_gutenberg                # only the table, from the logs
    python compress.py --size=tiny --arms=dense,81M-vanloan,81M-prune    # on a CPU, to try it

1. The source: `train.py config/gpt2.py`, trained for the purpose.
2. An arm per structure and start: `transfer.py factorize`, then `train.py` on from there, once for each learning rate,
   and beyond the edge of the given ones while the best lies there.
3. `evaluate.py` of every arm at the rate with the least final validation loss, which has no share in the test texts.

dense is the source trained on. The shares are named after the seed's models of GPT-2 size, whatever --size. Every arm
sees the same training tokens in the same order (of the same data set as the source: part of them for a second time). A
distilled arm has seen more (`distilled on`): those of its distillation. An interrupted experiment goes on with the same
command, elsewhere too: a checkpoint that is wanted but not there is made again. The table of an unfinished one has the
best run so far of every arm.
"""

import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import evaluate
from configurator import ROOT, UserError, input_path, key, load, root_path, run
from files import write
from lab import launch
from lab.plan import beyond
from logger import read_metrics

SIZES = {  # flags of the source
    'gpt2': '--n_layer=12 --n_embd=768 --n_head=12 --batch_size=32 --gradient_accumulation_steps=4'
    ' --eval_iters=20 --log_interval=10',
    'tiny': '--n_layer=2 --n_embd=32 --n_head=2 --batch_size=4 --gradient_accumulation_steps=1'
    ' --block_size=32 --dataset=shakespeare --eval_iters=4 --log_interval=1 --device=cpu',
}
SHARES = {  # flags for n units in the stream: half of the parameters, a quarter
    '95M': '--linear=kronecker --kronecker_shape={4n},{n/2}',
    '81M': '--linear=kronecker --kronecker_shape={2n},{n/2}',
}
STARTS = {
    'vanloan': '--init=nearest',
    'prune': '--init=prune',
    'distilled': '--init=nearest --distill_iters={distill} --distill_batch={batch}',
    'random': '--init=random',
}
ARMS = {'dense': ('', '')}  # name: (flags of the surgery, flags of the training)
ARMS |= {f'{share}-{start}': (f'{f} {s}', '') for share, f in SHARES.items() for start, s in STARTS.items()}
ARMS |= {
    '81M-vanloan-logits': ARMS['81M-vanloan'][:1] + ('--distill_from={source}',),
    '81M-vanloan-keep0': (ARMS['81M-vanloan'][0] + ' --keep_dense=h.0.*', ''),  # the block that resists most
    '81M-low_rank': ('--linear=low_rank --rank={n/5} --init=nearest', ''),  # as many parameters, another structure
    '81M-low_rank-whitened': ('--linear=low_rank --rank={n/5} --init=whitened', ''),
    'attn-vanloan': ('--linear=kronecker --linear_layers=attn --kronecker_shape={n},{n/2}', ''),  # is it in the MLPs?
}


@dataclass
class CompressConfig:
    size: str = key('gpt2', 'size of the source', choices=tuple(SIZES))
    source_iters: int = key(2000, 'iterations of the source', low=1)
    source_rate: float = key(6e-4, 'its peak learning rate', above=0)
    iters: int = key(300, 'iterations of every arm', low=1)
    rates: tuple = key((1e-4, 3e-4, 1e-3), 'learning rates of every arm; the best counts', above=0)
    extend: int = key(2, 'learning rates to try beyond the edge of the given ones', low=0)
    evals: int = key(10, 'evaluations of a run after its first, each of which may write a checkpoint', low=1)
    jobs: int = key(1, 'runs at once', low=1)
    cluster: str = key(
        'none',
        'a process for each run (none), or processes that do one after the other (pool)',
        choices=('none', 'pool'),
    )
    distill_iters: int = key(200, 'distilled: steps per block', low=1)
    arms: str = key('all', f'which of {", ".join(ARMS)}, separated by commas')
    tasks: str = key('wikitext2,wikitext103,lambada', 'what evaluate.py measures of each arm; empty: nothing')
    limit: int = key(0, 'evaluate.py: examples per task; 0: all', low=0)
    seed: int = key(1337, 'seed of model and data', low=0)
    flags: str = key('', "flags for every training, such as '--n_layer=6 --dataset=shakespeare'; they come last")
    out: str = key('out/compress', 'folder for the logs, one per run')
    work: str = key('out/compress-runs', 'folder for checkpoints while it runs')
    show: str = key('', 'only print the table of such a folder')

    def problems(self):
        odd = [a for a in self.arms.split(',') if a not in ARMS and self.arms != 'all']
        try:
            shlex.split(self.flags)
        except ValueError as e:
            return [f'flags = {self.flags}: {e}; close the quote']
        found = [f"arms: '{a}' is none; there are {', '.join(ARMS)}" for a in odd]
        return found + (evaluate.EvalConfig(checkpoint='any', tasks=self.tasks).problems() if self.tasks else [])


def keep(folder: Path, *files: Path):
    """Copy logs into the results; the last says that all of them are there."""
    for file in files:
        write(folder / file.name, file.read_bytes())


def training(cfg: CompressConfig, arm: str, iters: int, rate: float, flags: str) -> tuple[str, Path, list[str]]:
    """What launch.py starts for a run; an interrupted one goes on."""
    work = root_path(cfg.work) / run_name(arm, rate)
    fixed = f'--max_iters={iters} --lr_decay_iters={iters} --warmup_iters={iters // 10}'
    fixed += f' --eval_interval={max(1, iters // cfg.evals)}'
    fixed += f' --learning_rate={rate:g} --min_lr={rate / 10:g} --seed_model={cfg.seed} --out_dir={work}'
    args = ['config/gpt2.py', *shlex.split(f'{SIZES[cfg.size]} {fixed} {cfg.flags} {flags}')]
    args += ['--init_from=resume'] if (work / 'ckpt.pt').exists() else []
    return f'{arm} at {rate:g}', work, [sys.executable, str(ROOT / 'train.py'), *args]


def run_name(arm: str, rate: float) -> str:
    return arm if arm == 'source' else f'{arm}-{rate:g}'


def evals(folder: Path) -> list[float]:
    """Validation losses of a run, from its start."""
    return [line['val_loss'] for line in read_metrics(folder) if line['kind'] == 'eval']


def final(folder: Path) -> float:
    """Its last validation loss; infinite if it diverged."""
    m = json.loads((folder / 'manifest.json').read_text())
    wanted = json.loads((folder / 'config.json').read_text())['max_iters']
    return evals(folder)[-1] if m.get('final_iter') == wanted else math.inf


def filled(flags: str, cfg: CompressConfig) -> str:
    sizes = dict(a[2:].split('=', 1) for a in shlex.split(f'{SIZES[cfg.size]} {cfg.flags}'))
    n = int(sizes['n_embd'])
    values = {'4n': 4 * n, '2n': 2 * n, 'n': n, 'n/2': n // 2, 'n/5': n // 5, 'batch': sizes['batch_size']}
    values |= dict(distill=cfg.distill_iters, source=root_path(cfg.work) / 'source' / 'ckpt.pt')
    for k, v in values.items():
        flags = flags.replace(f'{{{k}}}', str(v))
    return flags


def missing(cfg: CompressConfig) -> list:
    """What can be started now, given what is over; what is most wanted first."""
    out, work = root_path(cfg.out), root_path(cfg.work)
    if not (out / 'source' / 'manifest.json').exists():
        return [from_scratch(cfg)]
    names = list(ARMS) if cfg.arms == 'all' else cfg.arms.split(',')
    found = [s for name in names if not (out / name / 'done.json').exists() for s in steps(cfg, name, out, work)]
    return list({step[0]: step for step in found}.values())  # several arms may want the source once more


def steps(cfg: CompressConfig, name: str, out: Path, work: Path) -> list:
    """What can be started now of an arm: evaluate.py of the best run, or before it the runs at its rates, or before them
    the surgery, or before that the source, where it is gone."""
    grid, best = rates(cfg, name, out)
    if best and (not cfg.tasks or final(out / best) == math.inf or (out / name / 'eval.json').exists()):
        write(out / name / 'done.json', (json.dumps(dict(best=best)) + '\n').encode())
        drop(work / name / 'start.pt', *(work / run_name(name, r) for r in grid))
        return []
    if best and not launch.lost(work / best, out / best):
        drop(*(work / run_name(name, r) for r in grid if run_name(name, r) != best))  # only the best is looked at again
        args = [f'--checkpoint={work}/{best}/ckpt.pt', f'--tasks={cfg.tasks}', f'--limit={cfg.limit}']
        args += [f'--stride={block_size(out / best)}', f'--out={work}/{name}/eval.json']
        return [(f'{name} tasks', work / name, [sys.executable, str(ROOT / 'evaluate.py'), *args])]

    surgery, extra = (filled(f, cfg) for f in ARMS[name])
    source = work / 'source' / 'ckpt.pt'
    start = work / name / 'start.pt' if surgery else source
    cut = surgery and not ((out / name / 'start.json').exists() and start.exists())
    if (cut or start == source or '{source}' in ARMS[name][1]) and launch.lost(work / 'source', out / 'source'):
        return [from_scratch(cfg)]
    if cut:
        args = ['factorize', f'--checkpoint={source}', f'--out={start}', *shlex.split(surgery)]
        return [(f'{name} surgery', work / name, [sys.executable, str(ROOT / 'transfer.py'), *args])]
    flags = f'--init_from={start} --seed_data={cfg.seed + 1} {extra}'
    wanted = [r for r in grid if run_name(name, r) == best or not (out / run_name(name, r) / 'manifest.json').exists()]
    return [training(cfg, name, cfg.iters, r, flags) for r in wanted]


def from_scratch(cfg: CompressConfig):
    return training(cfg, 'source', cfg.source_iters, cfg.source_rate, f'--seed_data={cfg.seed}')


def drop(*paths: Path):
    """Delete checkpoints: files, or those of a run."""
    for path in paths:
        for file in (path / 'ckpt.pt', path / 'best.pt') if path.is_dir() else [path]:
            file.unlink(missing_ok=True)


def rates(cfg: CompressConfig, name: str, out: Path) -> tuple[list[float], str]:
    """(the rates to try, the best run or '' while some are missing): the given ones, and those beyond their edge."""
    grid = sorted(cfg.rates)
    while all((out / run_name(name, r) / 'manifest.json').exists() for r in grid):
        best = min(grid, key=lambda r: final(out / run_name(name, r)))
        further = beyond(grid, best)
        if not further or len(grid) >= len(cfg.rates) + cfg.extend:
            return grid, run_name(name, best)
        grid = sorted([*grid, further])
    return grid, ''


def over(cfg: CompressConfig, name: str, code: int | None) -> str:
    """Take the logs of a step that is over; '' if it is."""
    arm, step, *rate = name.split()
    folder = root_path(cfg.work) / (run_name(arm, float(rate[0])) if rate else arm)
    if code != 0 and not (code == 3 and step == 'at'):  # to diverge is a result, too
        return launch.last_words(folder, code)
    logs = dict(surgery=['start.json'], tasks=['eval.json'])
    files = logs.get(step, ['config.json', 'metrics.jsonl', 'manifest.json'])
    keep(root_path(cfg.out) / folder.name, *(folder / f for f in files))
    return ''


def compress(cfg: CompressConfig):
    for task in set(cfg.tasks.split(',')) & set(evaluate.SOURCES):
        evaluate.read_source(task)  # a text that cannot be had is found out before anything is trained
    keys = ('size', 'source_iters', 'source_rate', 'iters', 'evals', 'distill_iters', 'seed', 'flags', 'tasks', 'limit')
    launch.settle(root_path(cfg.out), cfg, keys)
    launch.run_here(lambda: missing(cfg), lambda name, code: over(cfg, name, code), cfg.jobs, cfg.cluster)


def block_size(folder: Path) -> int:
    return json.loads((folder / 'config.json').read_text())['block_size']


def results(folder: Path) -> dict[str, tuple[str, str]]:
    """{arm: (its best run, how many rates were tried)}, in the order of ARMS; so far, where it is not done."""
    runs = {}
    for path in sorted(folder.glob('*/manifest.json')):
        rate = json.loads((path.parent / 'config.json').read_text())['learning_rate']
        if (name := path.parent.name) != 'source':
            runs.setdefault(name.removesuffix(f'-{rate:g}'), []).append(name)
    found = {}
    for arm in sorted(runs, key=lambda a: (list(ARMS).index(a) if a in ARMS else len(ARMS), a)):
        done, n = folder / arm / 'done.json', len(runs[arm])
        if done.exists():
            found[arm] = json.loads(done.read_text())['best'], f'{n}'
        else:
            found[arm] = min(runs[arm], key=lambda r: final(folder / r)), f'{n} so far'
    return found


def table(folder: Path) -> str:
    shown = ('ppl_token', 'ppl', 'acc')
    manifest = json.loads((folder / 'source' / 'manifest.json').read_text())
    lines = [
        f'{manifest["device"]}; source: {manifest["params"]:,} parameters, validation loss {final(folder / "source"):.4f};'
        ' parameters without position embeddings',
        f'{"arm":22} {"parameters":>11} {"error":>6} {"at start":>9} {"after":>8} {"rate":>7} {"tokens":>11}'
        f' {"distilled on":>12} {"rates tried":>11}',
    ]
    tasks = {}
    for name, (best, tried) in results(folder).items():
        run_ = folder / best
        m = json.loads((run_ / 'manifest.json').read_text())
        start = folder / name / 'start.json'
        surgery = json.loads(start.read_text()) if start.exists() else dict(rows=[], settings={})
        error = sum(r['error'] for r in surgery['rows']) / max(1, len(surgery['rows']))
        c = json.loads((run_ / 'config.json').read_text())
        s = surgery['settings']
        seen = s.get('distill_iters', 0) * s.get('distill_batch', 8) * c['block_size'] * c['n_layer']
        lines.append(
            f'{name:22} {m["params"]:11,} {error:6.3f} {evals(run_)[0]:9.4f} {final(run_):8.4f}'
            f' {c["learning_rate"]:7.0e} {m["tokens_per_iter"] * c["max_iters"]:11,} {seen:12,} {tried:>11}'
        )
        path = folder / name / 'eval.json'
        tasks[name] = json.loads(path.read_text())['tasks'] if path.exists() else {}
    heads = {(t, f): None for found in tasks.values() for t, r in found.items() for f in r['figures'] if f in shown}
    if heads:
        lines += ['', f'{"arm":22}' + ''.join(f' {f"{t} {f}":>22}' for t, f in heads)]
        for name, found in tasks.items():
            cells = [found.get(t, {}).get('figures', {}).get(f) for t, f in heads]
            lines.append(f'{name:22}' + ''.join(f' {c:22.4f}' if c is not None else f' {"-":>22}' for c in cells))
    return '\n'.join(lines)


def main():
    cfg = load(CompressConfig, sys.argv[1:])
    if not cfg.show:
        compress(cfg)
    folder = input_path(cfg.show) if cfg.show else root_path(cfg.out)
    if not (folder / 'source' / 'manifest.json').exists():
        raise UserError(f'{folder} holds no source/manifest.json; give the --out of an experiment')
    print(table(folder))


if __name__ == '__main__':
    run(main)
