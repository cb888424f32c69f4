"""
RESULTS.md by question, and the table that opens it and the README.

results/questions.toml holds what is said by hand, a [[question]] each:

    title        the question
    claim        what its source claims, in Markdown
    answer       one sentence, for the tables; what follows an empty line stands in RESULTS.md only
    figure       a picture, seen from results/; without it the forest of the question's comparisons
    times        a bench.jsonl, seen from results/: the figure shows its step times
    race         a file of bench.py race, seen from results/: the figure shows its losses by the clock
    caption      of the figure
    rows         what the small table shows: 'COMPARISON/ARM' or 'COMPARISON/ARM@SIZE', * stands for anything
    text         more, in Markdown; what would change the answer
    comparisons  {name: its setting in a few words}

Figures in these texts have sources in comments, as those of the documents have (check.py). The rest is written from logs:
rows, forests, what is undecided and what would decide it. Comparisons that no question names are listed under "Others".
"""

import fnmatch
import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from configurator import ROOT, UserError
from files import read_lines
from lab import outcomes, protocol, sweeps, tables
from lab.records import read_records
from lab.tables import OLD, judged

COMMENT = re.compile(r'\s*(<!-- .*? -->)', re.S)
LONGEST = 300  # characters of an answer's sentence
CHEAPER = 'less noise or a larger `worth` is cheaper'
NO_PROMISE = 'its plan is made after a look at the same seeds, so its 5% are no promise'
TOO_MANY = 60  # seeds; beyond that less noise or another design is cheaper, so it is priced apart


@dataclass
class Question:
    title: str
    claim: str = ''
    answer: str = ''
    figure: str = ''
    times: str = ''
    race: str = ''
    caption: str = ''
    text: str = ''
    rows: list = field(default_factory=list)
    comparisons: dict = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        return self.answer.strip().partition('\n\n')[0]

    @property
    def name(self) -> str:
        return re.sub(r'\W+', '_', self.title.lower()).strip('_')

    @property
    def picture(self) -> str:
        """Where the picture of the effects of all its comparisons is, seen from results/."""
        return f'questions/{self.name}.svg'


@dataclass
class Results:
    """What the logs of a comparison say."""

    c: dict
    found: list  # cells of the seeds that decide
    swept: dict  # {size: sweeps}
    tried: list  # where no seed decides: cells of the sweep's seeds at the best rates tried

    @property
    def judged(self) -> list:
        return judged(self.found) if self.c['claim'] else []


def read_questions(results: Path, known: dict) -> list[Question]:
    """[] without a file. UserError naming the question if it names a comparison that is not there, or has a key that there
    is not."""
    path, keys = results / 'questions.toml', set(Question.__dataclass_fields__)
    if not path.exists():
        return []
    try:
        given = tomllib.loads(path.read_text()).get('question', [])
    except tomllib.TOMLDecodeError as e:
        raise UserError(f'{path}: {e}') from None
    for i, q in enumerate(given, 1):
        if odd := [*({'title'} - q.keys()), *(q.keys() - keys)]:
            raise UserError(f'{path}, question {i}: {", ".join(odd)}: must have title; keys: {", ".join(sorted(keys))}')
        if odd := [n for n in q.get('comparisons', ()) if n not in known]:
            raise UserError(f'{path}, {q["title"]}: {", ".join(odd)}: no such comparison in {results.name}/')
        if (n := len(COMMENT.sub('', Question(**q).sentence))) > LONGEST:
            raise UserError(
                f'{path}, {q["title"]}: the answer has {n} characters, at most {LONGEST} fit in the table; begin with a sentence,'
                ' and put the rest after an empty line'
            )
    return [Question(**q) for q in given]


def read(folder: Path, given: dict | None = None) -> Results | None:
    """None without finished runs. given: what they are judged by in place of what their comparison says (outcomes.JUDGING)."""
    c, found = outcomes.load(folder, given)
    records, bench = read_records(folder), read_lines(folder / 'bench.jsonl')
    swept = sweeps.sweeps(c, records)
    tried = [] if found else sweeps.cells(c, records, bench)
    return Results(c, found, swept, tried) if found or swept else None


def read_all(results: Path) -> dict:
    """{name: Results} of the comparisons that have finished runs."""
    folders = sorted(p.parent for p in results.glob('*/comparison.json'))
    return {folder.name: k for folder in folders if (k := read(folder))}


# -----------------------------------------------------------------------------
# what the logs add


def words(known: list[Results]) -> str:
    """How many verdicts there are, and what they say."""
    count = Counter(x.verdict.word for k in known for x, _ in k.judged)
    said = ', '.join(f'{count[w]} {w}' for w in protocol.WORDS if count[w])
    return said or 'none yet'


def matching(known: dict, pattern: str) -> tuple[str, list[str], list[str]]:
    """(comparison, cells with verdicts, cells with sweeps alone) of a row. A baseline has no verdict: it is among the sweeps
    only if the pattern names nothing else."""
    name, _, cell = pattern.partition('/')
    k = known.get(name)
    judged = fnmatch.filter([x.name for x, _ in k.judged], cell) if k else []
    swept = {s.name: s is mine[0] for mine in k.swept.values() for s in mine} if k else {}
    swept = {n: base for n, base in swept.items() if fnmatch.fnmatch(n, cell) and n not in judged}
    others = [n for n, base in swept.items() if not base]
    return name, judged, others if judged or others else [*swept]


def small_table(q: Question, known: dict) -> str:
    """The verdicts of q.rows; of arms without verdicts their sweeps."""
    rows, swept, last = [], {}, ''
    for pattern in q.rows:
        name, judged, others = matching(known, pattern)
        if not judged and not others:
            raise UserError(f"rows of '{q.title}': {pattern}: no verdict and no sweep of that name")
        k = known[name]
        if others:
            swept.setdefault(name, []).extend(others)
        for x, base in k.judged:
            if x.name in judged:
                old = '' if k.c.get('looks') else f' {OLD}'
                setting = f'[{q.comparisons.get(name, name)}](results/{name}/table.md)'
                said, last = ('' if setting == last else setting), setting  # once for rows in a row
                rows.append([
                    said, f'{x.name} against {base.name}',
                    f'**{x.verdict.word}**{old}', f'{base.reports} {tables.effect(k.c, x, base)}', f'{k.c["worth"]:g}',
                    f'{x.verdict.n or len(x.values)}',
                ])  # fmt: skip
    parts = (
        [tables.markdown(['setting', 'arm', 'verdict', 'effect [interval]', 'worth', 'seeds'], rows)] if rows else []
    )
    parts += [sweeps.table(known[name].c, known[name].swept, cells) for name, cells in swept.items()]
    return '\n\n'.join(parts)


def undecided(name: str, k: Results) -> str:
    """The claims of a comparison that are not decided, what would decide them, and what that costs; '' if none."""
    waiting = [(x, base) for x, base in k.judged if x.verdict.word == protocol.UNDECIDED]
    if not waiting:
        return ''
    more = lambda v: v.note or (tables.to_add(k.c, v).rstrip(',') if v.more else '')
    parts = [f'`{x.name}`' + (f' ({more(x.verdict)})' if more(x.verdict) else '') for x, _ in waiting]
    most = k.c['seeds'] if k.c.get('looks') else TOO_MANY  # a plan ends where it ends
    near = [(x, base) for x, base in waiting if x.verdict.n + (x.verdict.more or 0) <= most]
    far = [pair for pair in waiting if pair not in near]
    config, said = ROOT / 'config' / 'compare' / f'{name}.py', f'`{name}`: {", ".join(parts)}.'
    if not config.exists():
        return f'{said} Less noise or a larger `worth` is needed.' if far else said
    for cells in filter(None, (near, far)):
        flags, minutes = decides(k, cells, name)
        names = '' if len(cells) == len(waiting) else f' {", ".join(f"`{x.name}`" for x, _ in cells)}'
        price = f', about {minutes:.0f} minute{"s" * (round(minutes) != 1)} of {device(k)}' if minutes > 0.5 else ''
        said += f' To decide{names}: `python compare.py config/compare/{name}.py {flags}`{price}'
        beyond = CHEAPER if not k.c.get('looks') else '' if takes_other_seeds(k) else NO_PROMISE
        said += f'; {beyond}.' if cells is far and beyond else '.'
    return said


def decides(k: Results, cells: list, name: str) -> tuple[str, float]:
    """(flags, minutes) of a comparison of these cells by the protocol, from the sweep on; or what goes on with this one, if its
    plan has the seeds."""
    looks = k.c.get('looks')
    seeds = max(protocol.SIGMA_SEEDS, *(x.verdict.n + (x.verdict.more or 0) for x, _ in cells))
    mine = {y.name: y for x, base in cells for y in (base, x)}
    only = [] if len(mine) == len(k.found) else [f'--only={",".join(mine)}']
    if looks and seeds <= k.c['seeds']:  # it goes on where it stopped
        seconds = sum(max(0, k.c['seeds'] - len(x.values)) * longest(x) for x in mine.values())
        return ' '.join(['--results=results', *only]), seconds / 60
    if looks:
        seeds = max([seeds, *(own_plan(k, x, base) for x, base in cells if x.verdict.more)])
    ends = {x.name: len(x.rates) for x, _ in cells if x.verdict.note.endswith('of those tried')}
    others = ' --seed_offset=100' * takes_other_seeds(k)  # its plan was made after a look at the first ones
    flags = [f'--name={name}_longer{others}' if looks else '--looks=true', f'--seeds={seeds}']
    flags += ['--sweep_seeds=3'] if k.c['learning_rates'] and not looks else []
    flags += [f'--extend={max(ends.values())}'] if ends else []  # so to two rates or more beyond those tried
    runs = lambda x: seeds + 3 * (len(x.rates) + 2 * (x.name in ends) if len(x.rates) > 1 else 0)
    return ' '.join(flags + only), sum(runs(x) * longest(x) for x in mine.values()) / 60


def takes_other_seeds(k: Results) -> bool:
    """Whether seed_offset is for this comparison: toys train all seeds at once, and their logs name them."""
    return k.c.get('script', 'train.py') == 'train.py'


def own_plan(k: Results, x, base) -> int:
    """Seeds that decide in a comparison of its own: arms that are left out count there, as not run, and its looks are more."""
    v, alpha = x.verdict, protocol.ALPHA / (len(k.c['arms']) - 1)
    figures = [[y.values[seed] for seed in sorted(y.values)] for y in (x, base)]
    judging = (k.c['worth'], alpha, protocol.looks_to(v.n + v.more), k.c.get('center', 'mean'))
    return v.n + (protocol.more_seeds(v, *figures, *judging) or v.more)


def longest(x) -> float:
    return max((alone(r) for r in x.runs.values()), default=0)


def alone(r: dict) -> float:
    """The seconds that a run took, its share where seeds were trained at once."""
    return r['eval'].get('seconds', [0])[-1] / (r['facts'].get('seeds_at_once') or 1)


def device(k: Results) -> str:
    name = str(k.found[0].facts.get('device'))
    return 'a CPU' if name.startswith('cpu') else f'one {name.removeprefix("NVIDIA ").removesuffix(" 80GB HBM3")}'


# -----------------------------------------------------------------------------
# pages

HEAD = """# Results

Written by `python compare.py --report` from the logs in [results/](results/README.md) and from `results/questions.toml`;
`make test` checks that they agree.

"""
HOW = """
A comparison has a baseline and arms. The **effect** is the arm's figure minus the baseline's: below 0 the arm is better.
[a, b] is its interval; all intervals of a comparison at one size hold together with 95%. A paired effect is taken over the seeds
that both have, so it may differ from that of the means. ± is always the standard deviation over seeds.
`worth` is the smallest gain that matters, set before the runs. A loss is in nats per token. The word is read off the interval:
better by worth (all of it below -`worth`), better (all below 0), no gain that matters (all above -`worth`, with 0 inside),
worse (all above 0), undecided (0 and -`worth` are inside). °: a comparison from before the rules of
[docs/protocol.md](docs/protocol.md), judged anew by its logs; its page says what it lacks. Minutes below are of runs one after the
other, each as long as logged; many of those shared a machine, so alone they take less.
"""


def overview(questions: list[Question], known: dict) -> str:
    """The table of all answers. Their sources stand below it."""
    rows, sources = [], []
    for i, q in enumerate(questions, 1):
        sources += COMMENT.findall(q.sentence)
        answer = ' '.join(COMMENT.sub('', q.sentence).split())
        rows.append([f'[{i}. {q.title}](RESULTS.md#{anchor(i, q)})', answer, words([known[n] for n in q.comparisons])])
    lines = tables.markdown(['question', 'answer so far', 'verdicts of its comparisons'], rows)
    said = '; '.join(dict.fromkeys(c.removeprefix('<!-- source: ').removesuffix(' -->') for c in sources))
    return lines + (f'\n<!-- source: {said} -->' if said else '')


def anchor(i: int, q: Question) -> str:
    """As GitHub makes it of the heading."""
    return re.sub(r'[^\w\- ]', '', f'{i}. {q.title}'.lower()).replace(' ', '-')


def section(i: int, q: Question, known: dict) -> str:
    mine = {name: known[name] for name in q.comparisons}
    figure = q.figure or (q.picture if q.times or q.race or any(k.judged for k in mine.values()) else '')
    parts = [
        f'## {i}. {q.title}',
        f'**The claim.**\n{q.claim.strip()}' if q.claim else '',
        f'**Our answer.**\n{q.answer.strip()}',
    ]
    if figure:
        parts.append(f'![{q.title}](results/{figure})')
        parts.append(
            '\n'.join([f'*{COMMENT.sub("", q.caption).strip()}*', *COMMENT.findall(q.caption)]) if q.caption else ''
        )
    parts += [small_table(q, known), q.text.strip()]
    if waiting := [line for name, k in mine.items() if (line := undecided(name, k))]:
        parts.append('**Undecided.**\n\n' + '\n'.join(f'- {line}' for line in waiting))
    if any(k.judged for k in mine.values()) and figure != q.picture:
        parts.append(f'[All effects in one picture](results/{q.picture}).')
    if mine:
        parts.append('**Everything.**\n\n' + '\n'.join(listed(n, k, q.comparisons[n]) for n, k in mine.items()))
    return '\n\n'.join(p for p in parts if p)


def listed(name: str, k: Results, setting: str) -> str:
    line = tables.provenance(k.c, k.found or k.tried)
    return f'- [{name}](results/{name}/table.md): {setting}. Verdicts: {words([k])}. {line}'


def results_md(known: dict, questions: list[Question]) -> str:
    parts = [HEAD + (overview(questions, known) + '\n' if questions else '') + HOW]
    parts += [section(i, q, known) + '\n' for i, q in enumerate(questions, 1)]
    named = {n for q in questions for n in q.comparisons}
    if others := {n: k for n, k in known.items() if n not in named}:
        claim = lambda c: c['claim'].replace('{arm}', 'an arm').replace('{baseline}', next(iter(c['arms'])))
        rows = [f'{n}/{x.name}' for n, k in others.items() for x, _ in k.judged]
        table = small_table(Question('Others', rows=rows), known)
        lines = '\n'.join(listed(n, k, (claim(k.c) or k.c['note']).rstrip('.')) for n, k in others.items())
        waiting = [f'- {line}' for n, k in others.items() if (line := undecided(n, k))]
        parts.append('\n\n'.join(p for p in ('## Others', table, '\n'.join(waiting), lines) if p) + '\n')
    return '\n'.join(parts)


START, END = '<!-- answers: written by python compare.py --report -->', '<!-- end of answers -->'


def with_answers(text: str, questions: list[Question], known: dict) -> str:
    """A document with the table of answers between its two marks; as it is if it has none."""
    if START not in text or END not in text or not questions:
        return text
    before, _, rest = text.partition(START)
    return f'{before}{START}\n{overview(questions, known)}\n{END}{rest.partition(END)[2]}'


def draw(results: Path, known: dict, questions: list[Question]):
    """The forest of each question that has verdicts, or step times, or losses by the clock."""
    from lab import figures, forest

    for q in questions:
        if q.times:
            figures.save(figures.times(read_lines(results / q.times)), results / q.picture)
            continue
        if q.race:
            figures.save(figures.race(read_lines(results / q.race)), results / q.picture)
            continue
        panels = [
            (f'{n}: {label}', known[n].c, known[n].found) for n, label in q.comparisons.items() if known[n].judged
        ]
        if panels:
            figures.save(forest.forest(panels), results / q.picture)
