"""
The tables of a comparison, its sentences, and what is said of it, from what its runs came to (outcomes.py).
"""

import math
import statistics
from dataclasses import fields

from lab import protocol
from lab.outcomes import Cell, mismatch, scaling
from lab.protocol import Verdict

OLD = '°'  # marks a comparison from before docs/protocol.md


def judged(found: list[Cell]) -> list[tuple[Cell, Cell]]:
    """[(cell, its baseline)] of the cells that have a verdict."""
    base = {x.size: next(y for y in found if y.size == x.size) for x in found}
    return [(x, base[x.size]) for x in found if x.verdict and x is not base[x.size]]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Columns that hold nothing are left out."""
    full = [i for i in range(len(head)) if any(row[i] not in ('', '-') for row in rows)]
    lines = [[line[i] for i in full] for line in (head, ['---'] * len(head), *rows)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in lines)


def center(c: dict, x: Cell) -> str:
    """The figure of a cell: mean ± standard deviation over seeds; median; geometric mean."""
    values, which = list(x.values.values()), c.get('center', 'mean')
    if which == 'median':
        return number(statistics.median(values))
    if not all(map(math.isfinite, values)):
        return 'diverged'
    if which == 'log':
        return number(statistics.geometric_mean(values))
    return number(x.mean.value) + (f' ± {statistics.stdev(values):.4f}' if len(values) > 1 else '')


def number(v: float) -> str:
    return f'{v:.4f}' if math.isfinite(v) else 'diverged'


def effect(c: dict, x: Cell, base: Cell) -> str:
    """The effect with its interval; of too few seeds the difference alone."""
    v, share = x.verdict, c.get('center') == 'log'
    spec = '+.1%' if share else '+.4f'
    if v.how and math.isfinite(v.value):
        return f'{v.value:{spec}} [{v.low:{spec}}, {v.high:{spec}}]'
    which = statistics.median if c.get('center') == 'median' else statistics.mean
    a, b = (which(y.values.values()) for y in (x, base))
    return f'{a / b - 1 if share else a - b:{spec}}' if math.isfinite(a) and math.isfinite(b) else '-'


def p_text(v: Verdict) -> str:
    return '' if not v.how else '<0.0001' if v.p < 1e-4 else f'{v.p:.2g}'


def waits(c: dict, v: Verdict) -> str:
    """Why a verdict is undecided, and what would decide."""
    return '; '.join(w for w in (v.note, f'{to_add(c, v)} would decide' if v.more else '') if w)


def to_add(c: dict, v: Verdict) -> str:
    """How many seeds would decide. The plan does not grow because of a look, so it may have fewer."""
    seeds = f'about {v.more} more seed{"s" * (v.more != 1)}'
    most = c['seeds'] - v.n if c.get('looks') else v.more
    return seeds if v.more <= most else f'{seeds}, of which the plan has {max(0, most) or "none"},'


def sentence(c: dict, x: Cell, base: Cell) -> str:
    """The verdict on an arm for a reader."""
    v, worth = x.verdict, f'{c["worth"]:.0%}' if c.get('center') == 'log' else f'{c["worth"]:g}'
    means = {
        protocol.BY_WORTH: f'the gain is {worth} or more',
        protocol.BETTER: f'there is a gain, and it may be smaller than {worth}',
        protocol.NO_GAIN: f'a gain of {worth} or more is ruled out',
        protocol.WORSE: '',
        protocol.UNDECIDED: f'a gain of {worth} is neither shown nor ruled out' if v.how and not v.note else '',
    }[v.word]
    seeds = f'p {p_text(v)}, {v.n} seeds against {v.base_n} ({v.how})' if v.how else f'{v.n} seed{"s" * (v.n != 1)}'
    figure = effect(c, x, base)
    said = ', '.join([f'{x.name}: **{v.word}**', *([figure] if figure != '-' else []), seeds])
    return ': '.join(w for w in (said, '; '.join(w for w in (means, waits(c, v)) if w)) if w)


def table(c: dict, found: list[Cell]) -> str:
    """The whole comparison in Markdown: a table, a sentence per arm, notes."""
    rows, said, notes = [], [], marks(c, found)
    for x in found:
        base = next(y for y in found if y.size == x.size)
        v = x.verdict if x is not base else None
        rate = f'{x.lr:g}' + (f' of {len(x.rates)}' if len(x.rates) > 1 else '')
        rate += f', **{x.rate.edge} end**' if x.rate.edge in ('low', 'high') else ''
        off = mismatch(x, base, c['match'])
        rows.append(
            [
                x.name,
                str(len(x.values)),
                rate,
                center(c, x),
                effect(c, x, base) if v else 'baseline' if x is base else '-',
                p_text(v) if v else '',
                v.word if v else '',
                f'{x.params:,}' + (f' ({n:,})' if (n := x.facts['params_collapsed']) != x.params else ''),
                f'{x.cost["flops"]:.3g}',
                *trained(c, x),
                '-' if x.ms is None else f'{x.ms:.3g}',
                f'{off:+.1%}' if x is not base and abs(off) >= 0.0005 else '',
            ]
        )
        said += [sentence(c, x, base)] if v else []
        if abs(off) > 0.01:
            notes.append(f'{x.name} is not matched in {c["match"]}: {c["mismatch"].get(x.arm, "no reason given")}')
    which = dict(mean='mean ± std', median='median', log='geometric mean')[c.get('center', 'mean')]
    head = [
        'arm', 'seeds', 'learning rate', f'{found[0].reports} ({c["at"]}), {which}', f'minus {found[0].arm}', 'p', 'verdict',
        'parameters (collapsed)', 'FLOPs', 'own tokens', 'train_loss', 'ms/step', f'{c["match"]} off',
    ]  # fmt: skip
    if any('max_iters' in r['facts'] for x in found for r in x.runs.values()):
        ends = {x.name: [r['eval']['iter'][-1] for r in x.runs.values() if r['state'] == 'finished'] for x in found}
        ends = ', '.join(f'{name} {min(e):,} to {max(e):,}' for name, e in ends.items() if e)
        notes.append(
            f'matched, and in the column FLOPs, is what a run may use; patience ended them at iteration: {ends}'
        )
    notes += rates_tried(c, found)
    for (arm, kind), (_, _, law) in scaling(c, found).items():
        b = law.exponent.format('.4f')
        notes.append(
            f'{arm} {kind}'.strip()
            + f': {c["metric"]} = {law.scale:.4g} * FLOPs^-b with b = {b} over {law.exponent.n} sizes'
        )
    parts = [markdown(head, rows), '\n'.join(f'- {s}' for s in said), speeds(found), '\n'.join(f'- {n}' for n in notes)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def trained(c: dict, x: Cell) -> list[str]:
    """[tokens without those of sources, mean loss on training text] at the end: does an arm that sees the text more often learn it by heart?"""
    ends = [r['eval'] for r in x.runs.values() if r['state'] == 'finished']
    text = c.get('script', 'train.py') == 'train.py' and c['at'] == 'last'
    if not text or not ends or not all('train_loss' in e and 'tokens' in e for e in ends):
        return ['', '']
    return [f'{ends[0]["tokens"][-1]:,}', number(statistics.mean(e['train_loss'][-1] for e in ends))]


def speeds(found: list[Cell]) -> str:
    """How many times sooner each arm reaches each target, with 95% intervals over the seeds of both arms."""
    rows = [
        [x.name, f'{target:g}', *(str(by.get(axis, '-')) for axis in ('iter', 'flops', 'seconds'))]
        for x in found
        for target, by in x.faster.items()
    ]
    return (
        markdown(['times sooner', f'at {found[0].reports}', 'in steps', 'in FLOPs', 'in seconds'], rows) if rows else ''
    )


def rates_tried(c: dict, found: list[Cell]) -> list[str]:
    figures = lambda x: ', '.join(f'{lr:g}: {number(v)}' for lr, v in x.rates.items())
    lines = []
    for x in found:
        if len(x.rates) > 1:
            r = x.rate
            cost = f'; its uncertainty costs {r.cost:.4f} on average' if math.isfinite(r.cost) else ''
            near = f', next to {r.edge}' if r.edge in ('divergence', 'instability') else ''
            how = f'; chosen: {r.lr:g} ({r.how}{near}{cost})'
            lines.append(f'{x.name}, rate: {x.chooses} {figures(x)}' + (how if c.get('looks') else ''))
    return lines


def marks(c: dict, found: list[Cell]) -> list[str]:
    """What a comparison lacks by the rules of docs/protocol.md, and the noise where that is known."""
    notes = [
        f'sigma of {x.name}: {x.sigma} from {x.sigma.n} seeds; worth is {c["worth"] / x.sigma.value:.2f} sigma'
        for x in found
        if x.sigma and x.sigma.value and c.get('center', 'mean') == 'mean'
    ]
    if c.get('looks'):
        return notes
    lacks = []
    seeds = [x.rate.seeds for x in found if len(x.rates) > 1]
    if seeds:
        lacks.append(f'the lowest mean chose the rate, from {min(seeds)} seed{"s" if min(seeds) > 1 else ""} per rate')
    elif len(found) > 1:
        lacks.append('no rate was tuned')
    if any(x.arm == found[0].arm and len(x.values) < protocol.SIGMA_SEEDS for x in found):
        lacks.append(f'sigma is not known (fewer than {protocol.SIGMA_SEEDS} seeds of the baseline)')
    if found[0].chooses == found[0].reports:
        lacks.append('rate, stopping and figure are from one validation set')
    at = {x.name: s for x in found if c.get('script', 'train.py') == 'train.py' and (s := left(x)) is not None}
    if any(s > protocol.ANNEALED for s in at.values()):
        shares = ', '.join(f'{name} {s:.1%}' for name, s in at.items())
        lacks.append(f'not annealed: the share of the peak rate where the figure was taken is {shares}')
    return [f'by an earlier rule, judged anew by its figures: {"; ".join(lacks)}', *notes]


def left(x: Cell) -> float | None:
    """The mean share of the peak rate that runs of train.py had where their figure was taken; None if a run diverged, or
    has keys that there are no more."""
    from optimizers.optim import lr_at
    from train import TrainConfig

    known, shares = {f.name for f in fields(TrainConfig)}, []
    for seed, r in x.runs.items():
        if r['state'] != 'finished' or not set(r.get('settings', ['none'])) <= known:
            return None
        cfg = TrainConfig(**r['settings'])
        it = r['eval']['iter'][r['eval'][x.reports].index(x.values[seed])]
        shares.append(lr_at(cfg, it - 1) / cfg.learning_rate)
    return statistics.mean(shares)


def summary(c: dict, found: list[Cell]) -> list[list[str]]:
    """Claim, verdict, effect and seeds of each arm, for the page."""
    rows = []
    for x, base in judged(found):
        both = f'{len(x.values)}' if len(x.values) == len(base.values) else f'{len(x.values)}, {len(base.values)}'
        claim = c['claim'].replace('{arm}', x.name).replace('{baseline}', base.name)
        why = f' ({waits(c, x.verdict)})' if waits(c, x.verdict) else ''
        word = f'**{x.verdict.word}**' + ('' if c.get('looks') else f' {OLD}') + why
        rows.append([claim, word, f'{x.reports} {effect(c, x, base)}', both])
    return rows


def provenance(c: dict, found: list[Cell]) -> str:
    """One line: the command, on what, and the commits."""
    runs = [r['facts'] for x in found for r in x.runs.values()]
    mark = lambda f: str(f.get('commit'))[:7] + ('-dirty' if f.get('dirty') else '')
    devices = dict.fromkeys(str(f.get('device')) for f in runs)
    return f'`{c["command"]}`; {", ".join(devices)}; commit {", ".join(dict.fromkeys(map(mark, runs)))}'
