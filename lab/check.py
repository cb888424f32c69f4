"""
Do RESULTS.md, the tables and the documents agree with the logs? compare.py --check is the command.

What is written by `compare.py --report` is made again and compared. Tables with a command in a comment are printed again and
compared. Every other figure in a document must be a number of a source that its paragraph names, see untraced().
"""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

from configurator import ROOT, UserError
from lab import questions, report

# a table with its command; four ` around what has three in it
BLOCK = re.compile(r'<!-- python (\S+) ([^\n]*?) -->\n(````?)\n(.*?)\n\3$', re.S | re.M)
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


def differences(results: Path, pages: list[Path] | None = None) -> list[str]:
    """Where RESULTS.md, the tables and the documents differ from the logs, one message each; [] if nowhere. pages: the
    documents, if not all."""
    wrong, root, known = [], results.parent, questions.read_all(results)
    written = [*report.written_of(results, known).items()]
    for folder in report.comparisons(results):
        if k := known.get(folder.name) if folder.parent == results else questions.read(folder):
            written.append((folder / 'table.md', report.page_md(folder, k)))
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
        for script, args, _, block in BLOCK.findall(text):
            fresh = blocks[f'python {script} {args}'] = printed(script, args)
            if fresh != block:
                wrong.append(f'{path.name}: the table of `python {script} {args}` is not what that prints')
        name = path.relative_to(root) if path.is_relative_to(root) else path
        wrong += [f'{name}: {problem}' for problem in untraced(text, root, blocks)]
    return wrong
