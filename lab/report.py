"""
Make tables, pictures and pages from the logs of comparisons, and check that documents and logs agree.
compare.py is the command; nothing here starts a run.

results/<name>/ holds
    comparison.json  the comparison's config, resolved
    metrics.jsonl    a line per run: {"run": "dense/lr0.001/s1", "arm", "size", "lr", "seed", "state": "finished" or
                     "diverged", "settings": config keys that are not defaults, "facts": of the manifest, "ms": median,
                     "eval": {"iter": [...], "val_loss": [...], ...}, "train": {"iter": [...], "loss": [...]}};
                     "from": of a run that starts from others {NAME: run, checksum of its settings};
                     the arm of a preparing step is steps/NAME (a command of transfer.py has facts only), that of an
                     evaluation tasks/ARM, with "tasks": {task: {"figures": {...}, ...}}
    bench.jsonl      step times of the arms, taken alone and in turns (bench.py), where that was possible
and what is made from them: table.md, pictures (figures.py lists them), index.html. results/questions.toml says to which
questions the comparisons belong (questions.py).
"""

import contextlib
import io
import re
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from configurator import ROOT, UserError
from files import write
from lab import figures, forest, questions, sweeps, tables, track
from lab.costs import cost_table
from lab.questions import Results
from lab.tables import provenance, rates_tried


def written_of(results: Path, known: dict) -> dict:
    """{path: text} of what is written from all logs in results/: RESULTS.md, the answers in the README, and the board where
    there is a track. known: of questions.read_all."""
    root, asked = results.parent, questions.read_questions(results, known)
    found = {root / 'RESULTS.md': questions.results_md(known, asked)}
    if (readme := root / 'README.md').exists() and asked:
        found[readme] = questions.with_answers(readme.read_text(), asked, known)
    if (results / 'track').is_dir():
        found[root / 'docs' / 'track.md'] = track.board(results)
    return found


def comparisons(results: Path) -> list[Path]:
    """The folders of all comparisons, entries of the board included."""
    return sorted(p.parent for pattern in ('*', 'track/*/*') for p in results.glob(f'{pattern}/comparison.json'))


def shown(folder: Path) -> str:
    """The tables of a comparison, for the terminal; of one without a claim only what its runs cost."""
    k = questions.read(folder)
    if not k:
        raise UserError(f'{folder} holds no finished runs to show')
    return body(k.c, k.found) if k.found else sweeps.table(k.c, k.swept)


def body(c: dict, found: list) -> str:
    """The whole comparison in Markdown, and the costs of its steps; without a claim these alone, where it has steps."""
    costs = cost_table(c, found)
    if costs and not c['claim']:
        return '\n'.join([costs, *(['', *rates] if (rates := rates_tried(c, found)) else [])])
    return tables.table(c, found) + (f'\n```\n{costs}\n```\n' if costs else '')


NO_WORDS = (
    'No arm has seeds at its chosen rate yet, so there are no verdicts. These are the sweeps that choose the rates.'
)


def page_md(folder: Path, k: Results) -> str:
    """table.md: all that the logs of a comparison say, and its pictures as far as they are drawn."""
    c, found = k.c, k.found
    parts = [f'# {folder.name}', c.get('note', '').strip()]
    if found:
        text = body(c, found).strip()
        parts.append(text if c['claim'] else f'```\n{text}\n```')
    else:
        parts += [NO_WORDS, sweeps.table(c, k.swept)]
    parts.append(provenance(c, found or k.tried))
    parts += [f'![{p.stem}]({p.name})' for p in figures.drawn(folder)]
    return '\n\n'.join(p for p in parts if p) + '\n'


def write_comparison(folder: Path, pictures: bool = True) -> bool:
    """table.md and, where matplotlib and bokeh are, the pictures and the page. False: no finished run, nothing to write."""
    if not (k := questions.read(folder)):
        return False
    c, found = k.c, k.found
    if pictures and not c.get('track'):
        from lab import page

        with figures.redrawn(figures.drawn(folder)):
            for old in figures.drawn(folder):
                old.unlink()
            figures.comparison(c, found or k.tried, folder)
            for size, mine in k.swept.items():
                if len(mine) > 1:
                    figures.save(sweeps.multiples(c, mine), folder / f'rates{"_" * bool(size)}{size}.svg')
            if k.judged:
                figures.save(forest.forest([(folder.name, c, found)]), folder / 'forest.svg')
        if found and c['claim']:
            page.write_page(folder.name, c, found, folder / 'index.html')
    write(folder / 'table.md', page_md(folder, k).encode())
    return True


def write_all(results: Path):
    """Everything that --report writes."""
    known = questions.read_all(results)
    written_of(results, known)  # mistakes in the questions are found before anything is drawn
    with ProcessPoolExecutor() as pool:  # nearly all of the time goes into drawing
        written = pool.map(write_comparison, folders := comparisons(results))
        asked = questions.read_questions(results, known)
        with figures.redrawn([results / q.picture for q in asked]):
            questions.draw(results, known, asked)
        for folder, wrote in zip(folders, written):
            if not wrote:
                print(f'{folder.name}: no finished run yet')
    for path, text in written_of(results, known).items():
        write(path, text.encode())
        print(f'wrote {path}')


# -----------------------------------------------------------------------------
# the check

BLOCK = re.compile(r'<!-- python (\S+) ([^\n]*?) -->\n```\n(.*?)\n```', re.S)
COMMENT = re.compile(r'<!-- (source|cited): (.*?) -->', re.S)
NO_PROSE = re.compile(  # code, addresses, versions, papers, intervals' level: no measured figures
    r'```.*?```|`[^`]*`|\[[\d.]+\]\(|\]\([^)]*\)|https?://\S+|<!--.*?-->|(?:Python|torch|arXiv)[: ][\d.]+|\d+% (?=interval|t-)',
    re.S,
)
FIGURE = re.compile(
    r'(?<![\w.,/])(?<![A-Za-z]-)(?:\d[\d,]*\.\d+(?:[kMB]\b|x\b|(?!\w|\.\d))|\d[\d,]*(?= ?%| (?:ms|nats|times|MiB|GiB|seconds|minutes)\b))'
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
            figure = figure.removesuffix('%').replace(',', '')
            parts = re.fullmatch(rf'({NUMBER.pattern}) ([-+*/]) ({NUMBER.pattern})', terms)
            if (
                not parts
                or not NUMBER.fullmatch(figure)
                or not all(any(rounds_to(v, n) for v in known) for n in (parts[1], parts[3]))
            ):
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
    wrong, root, known = [], results.parent, questions.read_all(results)
    written = [*written_of(results, known).items()]
    for folder in comparisons(results):
        if k := known.get(folder.name) if folder.parent == results else questions.read(folder):
            written.append((folder / 'table.md', page_md(folder, k)))
    for q in questions.read_questions(results, known):
        texts = '\n\n'.join((q.claim, q.answer, q.caption, q.text))
        wrong += [f'results/questions.toml: {problem}' for problem in untraced(texts, root, {})]
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
