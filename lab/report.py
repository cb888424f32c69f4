"""
Make table, pictures, page and RESULTS.md from the logs of comparisons, and check that documents and logs agree.
compare.py is the command; nothing here starts a run.

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

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

from configurator import ROOT, UserError
from files import write
from lab import tables, track
from lab.costs import cost_table
from lab.tables import load, markdown, provenance, rates_tried, summary

HEAD = """# Results

Written by `python compare.py --report` from the logs in [results/](results/README.md); `make test` checks that they
agree. Each row is one arm against the baseline of its comparison. The **effect** is the arm's figure minus the
baseline's: below 0 the arm is better. `worth` is the smallest gain that matters; it is set before the runs, in the
comparison's config. The word is read off the effect's interval:

| word | interval |
| --- | --- |
| better by worth | all of it lies below -`worth` |
| better | all of it lies below 0, but it reaches above -`worth`: the gain is real, and may be small |
| no gain that matters | all of it lies above -`worth`, and it holds 0 |
| worse | all of it lies above 0 |
| undecided | it holds both 0 and -`worth` |

[a, b] is always such an interval: all intervals of a comparison hold together with 95%. p is of the hypothesis that there
is no difference, corrected for the number of arms. ± is always the standard deviation over seeds. The rules and the
reasons are in [docs/protocol.md](docs/protocol.md). °: a comparison from before these rules, judged anew by its logs; a line
below its table says what it lacks.
"""


def table(c: dict, found: list) -> str:
    """The whole comparison in Markdown, the costs of its steps included."""
    costs = cost_table(c, found)
    return tables.table(c, found) + (f'\n```\n{costs}\n```\n' if costs else '')


def written_of(results: Path) -> dict:
    """{path: text} of what is written from all logs in results/: RESULTS.md, and the board where there is a track."""
    found = {results.parent / 'RESULTS.md': results_md(results)}
    if (results / 'track').is_dir():
        found[results.parent / 'docs' / 'track.md'] = track.board(results)
    return found


def comparisons(results: Path) -> list[Path]:
    """The folders of all comparisons, entries of the board included."""
    return sorted(p.parent for pattern in ('*', 'track/*/*') for p in results.glob(f'{pattern}/comparison.json'))


def results_md(results: Path) -> str:
    rows, parts = [], []
    for folder in sorted(p.parent for p in results.glob('*/comparison.json')):
        c, found = load(folder)
        if not found or not c['claim']:  # without a claim: compare.py --show shows it
            continue
        rows += summary(c, found)
        picture = f'\n![{folder.name}](results/{folder.name}/loss.png)\n' if (folder / 'loss.png').exists() else ''
        note = c.get('note', '').strip()
        parts.append(
            f'## {folder.name}\n\n{note}{chr(10) * 2 if note else ""}{table(c, found)}\n{provenance(c, found)}\n{picture}'
        )
    head = ['claim', 'verdict', 'effect', 'p', 'seeds']
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
    if not pictures or c.get('track'):
        return
    from lab import figures, page

    figures.comparison(c, found, folder)
    page.write_page(folder.name, c, found, folder / 'index.html')


# -----------------------------------------------------------------------------
# the check

BLOCK = re.compile(r'<!-- python (\S+) ([^\n]*?) -->\n```\n(.*?)\n```', re.S)
COMMENT = re.compile(r'<!-- (source|cited): (.*?) -->', re.S)
NO_PROSE = re.compile(  # code, addresses, versions, papers, intervals' level: no measured figures
    r'```.*?```|`[^`]*`|\[[\d.]+\]\(|\]\([^)]*\)|https?://\S+|<!--.*?-->|(?:Python|torch|arXiv)[: ][\d.]+|\d+% (?=interval|t-)',
    re.S,
)
FIGURE = re.compile(
    r'(?<![\w.,/])(?<![A-Za-z]-)(?:\d[\d,]*\.\d+(?:[kMB]\b|x\b|(?![\w.]|\.\d))|\d[\d,]*(?= ?%| (?:ms|nats|times|MiB|GiB|seconds|minutes)\b))'
)
NUMBER = re.compile(r'\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?')
SIZES = dict(k=1e3, M=1e6, B=1e9)


def printed(script: str, args: str) -> str:
    """What the command prints. It runs in this process, because a dozen of new ones would each import torch."""
    paths = [q for a in args.split() for q in (sorted(ROOT.glob(a)) if '*' in a or '?' in a else [a])]
    argv, said = sys.argv, io.StringIO()
    sys.argv = [script, *map(str, paths)]
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            if script == '-m':
                runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)
            else:
                runpy.run_path(str(ROOT / script), run_name='__main__')
    finally:
        sys.argv = argv
    return said.getvalue().strip('\n')


def numbers(text: str) -> list[float]:
    return [float(n.rstrip(',').replace(',', '')) for n in NUMBER.findall(text)]


def rounds_to(value: float, figure: str) -> bool:
    """Whether value, written with as many decimals (and k, M or B) as figure, is figure."""
    size = SIZES.get(figure[-1], 1)
    digits = figure.rstrip('kMBx').replace(',', '')
    half = 0.5 * 10.0 ** -len(digits.partition('.')[2])
    return any(abs(v / size - float(digits)) <= half * (1 + 1e-9) for v in (value, -value))


def source_text(item: str, root: Path, blocks: dict) -> str:
    """What a source says: `FILE`, or `python SCRIPT ARGS` as printed in the same document, and behind a colon a text
    that its lines must hold. UserError if there is no such file, command or line."""
    name, _, row = (part.strip() for part in item.partition(': '))
    if name.startswith('python '):
        if name not in blocks:
            raise UserError(f'the document prints no table of `{name}`')
        text = blocks[name]
    elif (root / name).is_file():
        text = (root / name).read_text()
    else:
        raise UserError(f'there is no file {name}')
    lines = [line for line in text.split('\n') if row in line]
    if not lines:
        raise UserError(f'{name} has no line with "{row}"')
    return '\n'.join(lines)


def untraced(text: str, root: Path, blocks: dict) -> list[str]:
    """The figures of a document's prose and tables that have no source, one message each. Figures are numbers with
    decimals, and those before %, ms, times, nats, MiB, seconds, minutes; not in code. The sources of a paragraph are in
    comments inside it, joined by semicolons:

        <!-- source: results/x/table.md: k2000; 0.062 = 4.165 - 4.103 -->    a line of a file; a sum of figures there
        <!-- cited: 10.8 (its author's README) -->                           a figure that is not ours

    A figure must be a number of its paragraph's sources, rounded to the decimals that it shows."""
    wrong = []
    prose = re.sub(r'^```.*?^```$', '', BLOCK.sub('', text), flags=re.S | re.M)
    for paragraph in re.split(r'\n\s*\n', prose):
        known, sums = [], []
        for kind, items in COMMENT.findall(paragraph):
            for item in items.split(';') if kind == 'source' else ():
                if ' = ' in item:
                    sums.append(item)
                    continue
                try:
                    known += numbers(source_text(item.strip(), root, blocks))
                except UserError as e:
                    wrong.append(f'source of "{paragraph.strip()[:60]}...": {e}')
            if kind == 'cited':
                known += numbers(items)
        for item in sums:
            figure, _, terms = (part.strip() for part in item.partition(' = '))
            parts = re.fullmatch(r'([\d.,]+) ([-+*/]) ([\d.,]+)', terms)
            if not parts or not all(any(rounds_to(v, n) for v in known) for n in (parts[1], parts[3])):
                wrong.append(f'"{item.strip()}": write FIGURE = A - B (or + * /) with A and B from the other sources')
                continue
            a, b = numbers(parts[1])[0], numbers(parts[3])[0]
            value = {'-': a - b, '+': a + b, '*': a * b, '/': a / b}[parts[2]]
            if rounds_to(value, figure) or rounds_to(100 * value, figure):
                known.append(float(figure))
            else:
                wrong.append(f'"{item.strip()}": is {value:.6g}')
        for figure in dict.fromkeys(FIGURE.findall(NO_PROSE.sub(' ', paragraph))):
            if not any(rounds_to(v, figure) for v in known):
                wrong.append(f'{figure} has no source in "{" ".join(paragraph.split())[:60]}..."')
    return wrong


def documents(root: Path = ROOT) -> list[Path]:
    prose = [p for p in sorted((root / 'docs').glob('*.md')) if p.name != 'track.md']  # which is written whole
    return [root / 'README.md', *prose, root / 'results' / 'README.md']


def check(results: Path, pages: list[Path] | None = None) -> list[str]:
    """Where RESULTS.md, the tables and the documents differ from the logs, one message each; [] if nowhere."""
    wrong, root = [], results.parent
    written = [*written_of(results).items()]
    for folder in comparisons(results):
        c, found = load(folder)
        if found and c['claim']:
            written.append((folder / 'table.md', f'# {folder.name}\n\n{table(c, found)}'))
    for path, expected in written:
        have = path.read_text() if path.exists() else ''
        if have != expected:
            pairs = zip(have.splitlines() + [''], expected.splitlines() + [''])
            line, (is_, want) = next(((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1]), (1, ('', '')))
            wrong.append(f'{path.name}, line {line}: "{is_[:200]}" where the logs say "{want[:200]}"')
    for path in documents(root) if pages is None else pages:
        text, blocks = path.read_text(), {}
        for script, args, block in BLOCK.findall(text):
            fresh = blocks[f'python {script} {args}'] = printed(script, args)
            if fresh != block:
                wrong.append(f'{path.name}: the table of `python {script} {args}` is not what that prints')
        name = path.relative_to(root) if path.is_relative_to(root) else path
        wrong += [f'{name}: {problem}' for problem in untraced(text, root, blocks)]
    return wrong
