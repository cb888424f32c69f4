"""
The board: docs/track.md. A track fixes data, tokens, batch and size; an entry changes only how linear layers are
parameterized, initialised and optimized, and is judged against the track's dense baseline (docs/protocol.md).

A track is config/track/small.py or gpu.py: a comparison whose only arm is the baseline. An entry is a comparison that
includes it and has one more arm. Its log is results/track/TRACK/ARM/metrics.jsonl, and begins with the text of the entry:

    {"entry": "low_rank", "track": "small", "source": {"config/track/low_rank.py": "...", ...}}

The baseline's runs are in results/track/TRACK/dense/. All entries use them, those of another results folder as well.
"""

import dataclasses
import math
import statistics
from pathlib import Path

import linear
import optimizers
from configurator import ROOT, UserError, brief, load
from files import read_lines
from lab import outcomes, tables
from lab.plan import Plan, rates_to_sweep
from lab.records import ENTRY, RECORD
from logger import git
from surgery import rotate

CONFIGS = ROOT / 'config' / 'track'
SETS = ('arms', 'learning_rates', 'note')  # what an entry may set of a comparison; then what only says how it runs
RUNNING = ('name', 'results', 'out', 'cluster', 'jobs', 'minutes', 'partition', 'only', 'keep_checkpoints')
KEYS = {  # what its arm may set: all that acts on the matrices of the blocks and on nothing else
    'hidden_lr', 'fuse_mlp',
    *linear.CHOOSING, *(k for name in linear.LAYERS for k in linear.keys_of(name)),
    *(f.name for keys in (optimizers.Keys, rotate.Keys) for f in dataclasses.fields(keys)),
}  # fmt: skip


# -----------------------------------------------------------------------------
# an entry


def placed(cfg):
    """The comparison of an entry under the name of its arm, in the folder of its track."""
    return dataclasses.replace(cfg, name=[*cfg.arms][-1], results=f'{cfg.results}/track/{cfg.track}')


def base(cfg):
    """The comparison that the track is, without an entry. UserError if there is no such track."""
    path = CONFIGS / f'{cfg.track}.py'
    if not path.is_file():
        raise UserError(
            f"track = '{brief(cfg.track)}': there is no config/track/{brief(cfg.track)}.py; take small or gpu"
        )
    return load(type(cfg), [str(path)])


def check(cfg, plans: list[Plan]):
    """Refuse an entry that changes what its track fixes, all of it in one line each."""
    fixed = base(cfg)
    dense, *arms = cfg.arms
    differ = [
        f.name
        for f in dataclasses.fields(cfg)
        if f.name not in (*SETS, *RUNNING) and getattr(cfg, f.name) != getattr(fixed, f.name)
    ]
    wrong = [f'{k} = {brief(getattr(cfg, k))}' for k in differ]
    found = [f'{", ".join(wrong)}: the track fixes that; an entry sets {", ".join(SETS)}'] if wrong else []
    if len(arms) > 1 or {dense: cfg.arms[dense]} != fixed.arms:
        found.append(
            f"arms: an entry has the track's baseline and one arm: arms['NAME'] = '--flags', not {[*cfg.arms]}"
        )
    elif rates_to_sweep(cfg, plans[0]) != rates_to_sweep(fixed, plans[0]):
        found.append(
            f'learning_rates: those of {dense} are fixed; learning_rates = dict({dense}=learning_rates, NAME=...)'
        )
    for p in plans[1:]:
        values = {f.name: getattr(p.cfg, f.name) for f in dataclasses.fields(p.cfg)}
        odd = [f'{k} = {brief(v)}' for k, v in values.items() if v != getattr(plans[0].cfg, k) and k not in KEYS]
        if odd:
            found.append(
                f'{p.name}: {", ".join(odd)}: the track fixes that; an arm sets keys of linear layers and of the optimizer of'
                ' their matrices: KEYS of lab/track.py'
            )
    if found:
        raise UserError('\n'.join(found))


def source(cfg, files: list[Path]) -> dict:
    """The first line of an entry's log: the text of its config, and of every file of the code that is not in the last
    commit like this, such as the file of a new layer."""
    code = ('--', '*.py', ':!tests')
    changed = git('diff', '--name-only', 'HEAD', *code).split('\n') + git(
        'ls-files', '-o', '--exclude-standard', *code
    ).split('\n')
    files = [*files, *(ROOT / name for name in changed if name)]
    name = lambda p: str(p.relative_to(ROOT) if p.is_relative_to(ROOT) else p.name)
    texts = {name(p): p.read_text() for p in files if p.is_file()}
    return dict(entry=cfg.name, track=cfg.track, source=texts)


def head(folder: Path, now: dict) -> dict:
    """The first line of the log in folder: `now`, and what an earlier call has put there. UserError if one of its texts has
    changed: the log would say that all its runs are of one text."""
    lines = read_lines(folder / 'metrics.jsonl', (RECORD, ENTRY))
    have = next((line for line in lines if 'run' not in line), None)
    if not have:
        return now
    if name := changed(have, now):
        raise UserError(
            f'{folder / "metrics.jsonl"} begins with another text of {name}; give the arm another name, or delete that'
            ' folder'
        )
    return dict(have, source=have['source'] | now['source'])


def changed(was: dict, now: dict) -> str:
    """The first file whose text is another one now than in `was`, an earlier first line of the log; '' if there is none."""
    for name, text in was['source'].items():
        if (now['source'].get(name) or ((ROOT / name).read_text() if (ROOT / name).is_file() else text)) != text:
            return name
    return ''


# -----------------------------------------------------------------------------
# the board

HEAD = """# The board

Which way to parameterize, initialise or optimize linear layers gives a lower loss than dense layers, from the same tokens?
`python compare.py --report` writes this page from the logs in [results/](../results/README.md). Entries that lose stay on it.

A **track** fixes data, tokens, batch and size of the model: `small` for a laptop's CPU, `gpu` for one H100. An **entry** may
change only keys of linear layers and of the optimizer of their matrices. It is compared with the dense runs of the track by
[protocol.md](protocol.md): it has its own sweep of learning rates, then 4, 6 or 8 random seeds, until it has a verdict.

## Enter

1. For a new layer write one file, `linear/own/<name>.py` (make the folder), with one class as
   [CONTRIBUTING.md](../CONTRIBUTING.md#add-a-way-to-parameterize-a-linear-layer) describes. Try it with
   `python train.py config/shakespeare_char.py --linear=<name>`. A new optimizer needs
   [a line in the registry](../CONTRIBUTING.md#add-an-optimizer), too.
2. Write `config/track/<name>.py` with this text (the other track is `config/track/gpu.py`):

        include('small.py')
        arms['<name>'] = '--linear=<name> --linear_layers=mlp+attn'

3. Run `python compare.py config/track/<name>.py`: about 20 runs, each for about the time in the column `seconds`, in full: fewer
   seeds or steps are refused. After an interruption run it again. The log begins with the text of your two files.
4. Move `out/results/track/small/<name>/` to `results/track/small/`, run `python compare.py --report`, and commit both files,
   that folder and this page.

## Read

The **effect** is the entry's loss minus that of dense, and [a, b] its interval: below 0 the entry is better. Verdicts are those of
[protocol.md](protocol.md); `worth` is the smallest gain that matters. Entries are sorted by effect, but each is tested against
dense only, not against its neighbours. At most 5% of the entries have a false verdict, on average. All entries share the seeds
of dense. If these are lucky, every entry looks worse than it is. Other seeds of its sweep may choose another rate for dense: the
[limits](protocol.md#limits) have a case from the small track, in which dense ends lower. So small leads are in doubt.

`FLOPs` are those of training, divided by those of dense. If `linear_path = 'auto'` forms the matrix, they are nearly those of
dense. `parameters` are those that are trained. `seconds` is the median over runs. Other work on the machine counts in it, so do not
compare it. A star at the commit means that the code had uncommitted changes; the log begins with them.
"""


def row(x: outcomes.Cell, dense: outcomes.Cell, effect: str, word: str, link: str) -> list[str]:
    facts = [r['facts'] for r in x.runs.values()]
    seconds = [r['eval']['seconds'][-1] for r in x.runs.values() if r['state'] == 'finished' and 'seconds' in r['eval']]
    once = lambda values: ', '.join(dict.fromkeys(values))
    return [
        f'[{x.arm}]({link})',
        effect,
        word,
        tables.center({}, x),
        str(len(x.values)),
        f'{x.lr:g}',
        f'{x.cost["flops"] / dense.cost["flops"]:.2f}',
        f'{x.params:,}',
        f'{statistics.median(seconds):.0f}' if seconds else '-',
        once(f'{str(f.get("commit"))[:7]}{"*" if f.get("dirty") else ""}' for f in facts),
        once(str(f.get('device')) for f in facts),
    ]


def order(entry: tuple) -> float:
    """By what entries are ranked: the effect; a run that diverged comes last."""
    _, dense, x = entry
    found = x.verdict.value if x.verdict.how else x.mean.value - dense.mean.value
    return found if math.isfinite(found) else math.inf


def board(results: Path) -> str:
    """docs/track.md"""
    parts = [HEAD]
    for path in sorted(p for p in (results / 'track').glob('*') if p.is_dir()):
        loaded = [outcomes.load(folder) for folder in sorted(p.parent for p in path.glob('*/comparison.json'))]
        loaded = [(c, cells[0], cells[-1]) for c, cells in loaded if cells]
        if not loaded:
            continue
        c, dense, _ = loaded[0]
        link = f'../results/track/{path.name}/{{}}'.format
        rows = [['', *row(dense, dense, 'baseline', '', link(f'{dense.arm}/metrics.jsonl'))]]
        for i, (own, rival, x) in enumerate(sorted((e for e in loaded if e[2] is not e[1]), key=order), 1):
            effect, word = tables.effect(own, x, rival), f'**{x.verdict.word}**'
            rows.append([str(i), *row(x, dense, effect, word, link(f'{x.arm}/table.md'))])
        claim = c['claim'].format(arm='an entry', baseline=dense.arm)
        sigma = f' The standard deviation of {dense.arm} over seeds is {dense.sigma}.' if dense.sigma else ''
        columns = ['', 'entry', 'effect', 'verdict', f'{dense.reports}, mean ± std', 'seeds', 'learning rate', 'FLOPs',
                   'parameters', 'seconds', 'commit', 'hardware']  # fmt: skip
        parts.append(
            f'## {path.name}\n\nThe claim: {claim}. `worth` is {c["worth"]:g}.{sigma}\n\n{tables.markdown(columns, rows)}\n'
        )
    tracks = [p.stem for p in sorted(CONFIGS.glob('*.py')) if f"track = '{p.stem}'" in p.read_text()]
    parts += [f'## {t}\n\nNo entry yet.\n' for t in tracks if not any(p.startswith(f'## {t}\n') for p in parts)]
    return '\n'.join(parts)
