"""
Make tables, pictures and pages from the logs of comparisons. compare.py is the command; nothing here starts a run. check.py
compares the documents with the logs.

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

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from configurator import UserError, brief
from files import write
from lab import figures, forest, outcomes, questions, sweeps, tables, track
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


def shown(folder: Path, given: dict | None = None) -> str:
    """The tables of a comparison, for the terminal; of one without a claim only what its runs cost. given: what it is judged by
    in place of what it was planned with (outcomes.JUDGING)."""
    given = outcomes.unlike(folder, given) if given else {}
    k = questions.read(folder, given)
    if not k:
        raise UserError(f'{folder} holds no finished runs to show')
    found, notes = k.found, []
    if given and k.c['claim']:
        anew = ', '.join(f'{key} = {brief(value)}' for key, value in given.items())
        notes.append(
            f'Judged anew, by {anew}. The runs were not planned for it: where it was chosen after a look at them, 5% is no promise.'
        )
    if found and 'baseline' in given and not k.c.get('horizons'):  # else another arm would pass for it
        there = {x.size for x in found if x.arm == given['baseline']}
        if not there:
            raise UserError(f"baseline = '{given['baseline']}': has no runs that decide")
        if without := [s for s in dict.fromkeys(x.size for x in found) if s not in there]:
            notes.append(f'Left out, since {given["baseline"]} has no runs that decide there: {", ".join(without)}.')
        found = [x for x in found if x.size in there]
    return ''.join(f'{n}\n\n' for n in notes) + (body(k.c, found) if found else sweeps.table(k.c, k.swept))


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
