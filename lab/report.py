"""
From the logs of a comparison to its verdict: table, pictures, page, RESULTS.md, and the check that documents and logs agree. compare.py is the command; nothing here starts a run.

results/<name>/ holds
    comparison.json  the comparison's config, resolved
    metrics.jsonl    a line per run: {"run": "dense/lr0.001/s1", "arm", "size", "lr", "seed", "state": "finished" or
                     "diverged", "settings": config keys that are not defaults, "facts": of the manifest, "ms": median,
                     "eval": {"iter": [...], "val_loss": [...], ...}, "train": {"iter": [...], "loss": [...]}};
                     the arm of a preparing step is steps/NAME (a command of transfer.py has facts only), that of an
                     evaluation tasks/ARM, with "tasks": {task: {"figures": {...}, ...}}
    bench.jsonl      step times of the arms, taken alone and in turns (bench.py), where that was possible
and what is made from them: table.md, loss.png, pareto.png, scaling.png, index.html.
"""

import re
import subprocess
import sys
from pathlib import Path

from configurator import ROOT, UserError
from files import write
from lab import tables
from lab.costs import cost_table
from lab.tables import load, markdown, rates_tried, summary

HEAD = """# Results

Written by `python compare.py --report` from the logs in [results/](results/README.md); `make test` checks that they
agree. A figure is the mean over seeds of arm minus baseline, paired by seed, with its 95% interval; below 0 the arm is
better. **confirmed**: the interval lies below 0. **not confirmed**: it excludes a gain that would matter (`worth` in
the comparison's config). **open**: neither, or the loser's learning rate was the lowest or highest tried.
"""


def table(c: dict, found: list) -> str:
    """The whole comparison in Markdown, the costs of its steps included."""
    costs = cost_table(c, found)
    return tables.table(c, found) + (f'\n```\n{costs}\n```\n' if costs else '')


def results_md(results: Path) -> str:
    rows, parts = [], []
    for folder in sorted(p.parent for p in results.glob('*/comparison.json')):
        c, found = load(folder)
        if not found or not c['claim']:  # without a claim: compare.py --show shows it
            continue
        rows += summary(folder.name, c, found)
        picture = f'\n![{folder.name}](results/{folder.name}/loss.png)\n' if (folder / 'loss.png').exists() else ''
        note = c.get('note', '').strip()
        parts.append(f'## {folder.name}\n\n{note}{chr(10) * 2 if note else ""}{table(c, found)}{picture}')
    head = ['claim', 'figure', 'seeds', 'verdict', 'hardware', 'commit', 'command']
    return '\n'.join([HEAD, markdown(head, rows) + '\n', *parts])


def shown(folder: Path) -> str:
    """The tables of a comparison, for the terminal; of one without a claim only what its runs cost."""
    c, found = load(folder)
    if not found:
        raise UserError(f'{folder} holds no finished runs to show')
    if c['claim'] or not (costs := cost_table(c, found)):
        return table(c, found)
    return '\n'.join([costs, *(['', *rates] if (rates := rates_tried(c, found)) else [])])


def write_comparison(folder: Path, pictures: bool = True):
    """table.md and, where matplotlib and bokeh are, the pictures and the page."""
    c, found = load(folder)
    if not found:
        raise UserError(f'{folder} holds no finished runs to report')
    write(folder / 'table.md', f'# {folder.name}\n\n{table(c, found)}'.encode())
    if not pictures:
        return
    from lab import figures, page

    figures.comparison(c, found, folder)
    page.write_page(folder.name, c, found, folder / 'index.html')


# -----------------------------------------------------------------------------
# the check

BLOCK = re.compile(r'<!-- python (\S+) (.*?) -->\n```\n(.*?)\n```', re.S)
FROM_ELSEWHERE = re.compile(r'<!-- not from our logs: (.*?) -->', re.S)
FIGURE = re.compile(r'(?<![\w.])\d+\.\d{3,}(?!\.?\w)|(?<![\w.])\d+\.\d+(?=x?(?: ?(?:ms|%|times|nats)))')


def printed(script: str, args: str) -> str:
    paths = [q for a in args.split() for q in (sorted(ROOT.glob(a)) if '*' in a or '?' in a else [a])]
    command = [sys.executable, str(ROOT / script), *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip('\n')


def untraced(text: str, sources: str) -> list[str]:
    """The figures of a document's prose (losses, and numbers of ms, %, times, nats) that occur neither in our logs'
    tables nor in its comment `not from our logs: ...`. Tables that a command prints are checked by running it."""
    elsewhere = ' '.join(FROM_ELSEWHERE.findall(text))
    prose = FROM_ELSEWHERE.sub('', BLOCK.sub('', text))
    known = set(re.findall(r'\d+\.\d+', sources + ' ' + elsewhere))
    return [n for n in dict.fromkeys(FIGURE.findall(prose)) if n not in known]


def check(results: Path, documents: list[Path]) -> list[str]:
    """What in RESULTS.md, the tables and the documents differs from the logs; [] if all is well."""
    wrong, fresh = [], results_md(results)
    pages = [(results.parent / 'RESULTS.md', fresh)]
    for folder in sorted(p.parent for p in results.glob('*/comparison.json')):
        c, found = load(folder)
        if found and c['claim']:
            pages.append((folder / 'table.md', f'# {folder.name}\n\n{table(c, found)}'))
    for path, expected in pages:
        have = path.read_text() if path.exists() else ''
        if have != expected:
            pairs = zip(have.splitlines() + [''], expected.splitlines() + [''])
            line, (is_, want) = next(((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1]), (1, ('', '')))
            wrong.append(f'{path.name}, line {line}: "{is_[:200]}" where the logs say "{want[:200]}"')
    texts = [p.read_text() for p in sorted(results.rglob('*.txt')) + sorted(results.glob('README.md'))]
    for path in documents:
        text = path.read_text()
        blocks = []
        for script, args, block in BLOCK.findall(text):
            blocks.append(printed(script, args))
            if blocks[-1] != block:
                wrong.append(f'{path.name}: the table of `python {script} {args}` is not what that prints')
        for number in untraced(text, '\n'.join([fresh, *texts, *blocks])):
            wrong.append(f'{path.name}: {number} is in no log or table (a cited figure belongs in the comment '
                         '"<!-- not from our logs: ... -->")')  # fmt: skip
    return wrong
