"""
What the sweeps of a comparison say before any seed decides: loss against learning rate, arm by arm. A rate that all arms
share favours the arm whose best rate it is; the picture and the table show by how much.
"""

import math
import statistics
from dataclasses import dataclass

from lab import outcomes, tables, verdicts
from lab.figures import colors, figure, unit
from lab.rates import Rate, choose_rate
from lab.records import cell_name

FEWEST = 3  # rates; fewer are no sweep


@dataclass
class Sweep:
    """An arm at one size: its figures on the half that chooses."""

    arm: str
    size: str
    name: str
    figures: dict  # {rate: {seed: figure}}, ascending; inf where a run diverged
    rate: Rate  # as chosen
    parabola: tuple | None  # (logarithm of the rate at its vertex, curvature, figure there)
    chooses: str

    @property
    def means(self) -> dict:
        return {lr: statistics.mean(v.values()) for lr, v in self.figures.items()}

    @property
    def best(self) -> float:
        """The rate tried that has the lowest mean."""
        return min(self.means, key=self.means.get)

    @property
    def seeds(self) -> int:
        return min(map(len, self.figures.values()))


def sweeps(c: dict, records: dict) -> dict:
    """{size: [Sweep]}, the baseline first; only sizes at which the baseline has a sweep, and arms of three rates or more."""
    c, found = c | dict(halves=verdicts.halves(c, records)), {}
    swept = {(r['arm'], r['size']): None for r in records.values() if 'eval' in r and r['arm'] in c['arms']}
    sizes = [s for s in c.get('sizes') or () if any(s == size for _, size in swept)] or ['']
    for size in sizes:
        for arm in c['arms']:
            sweep, deciding = verdicts.figures(c, records, arm, size) if (arm, size) in swept else ({}, {})
            curve = sweep or deciding  # of one seed alone, the same runs choose and decide
            if len(curve) >= FEWEST:
                rate = verdicts.rate(c, records, arm, size)
                fit = choose_rate({lr: list(v.values()) for lr, v in curve.items()})
                s = Sweep(arm, size, cell_name(arm, size), curve, rate, fit and fit.parabola, c['halves'][0])
                found.setdefault(size, []).append(s)
    return {size: mine for size, mine in found.items() if mine[0].arm == next(iter(c['arms']))}


def cells(c: dict, records: dict, bench: list) -> list:
    """Cells of the sweep's own seeds at the best rate tried: what can be shown before any seed decides."""
    c = c | dict(halves=verdicts.halves(c, records))
    return [
        x
        for mine in sweeps(c, records).values()
        for s in mine
        if (x := outcomes.cell(c, s.arm, s.size, verdicts.fixed_rate(s.best), bench, records, sweep=True))
    ]


def shared(c: dict, mine: list[Sweep]) -> float:
    """The rate at which the source of the claim compared all arms, or the best one tried of the baseline."""
    return c.get('shared_rate') or mine[0].best


def gaps(c: dict, mine: list[Sweep], s: Sweep) -> tuple[float | None, float]:
    """(arm minus baseline at the shared rate, the same at the best rate tried of each); None: not tried there."""
    base, at = mine[0], shared(c, mine)
    both = at in s.means and at in base.means and math.isfinite(s.means[at])
    return s.means[at] - base.means[at] if both else None, s.means[s.best] - base.means[base.best]


def over_rates(mine: list[Sweep], s: Sweep) -> str:
    """The least and the greatest of arm minus baseline at one rate for both, over the rates that both were tried at."""
    base = mine[0].means
    both = {
        lr: v - base[lr] for lr, v in s.means.items() if lr in base and math.isfinite(v) and math.isfinite(base[lr])
    }
    if s is mine[0] or len(both) < 2:
        return ''
    low, high = min(both, key=both.get), max(both, key=both.get)
    return f'{both[low]:+.4f} (at {low:g}) to {both[high]:+.4f} (at {high:g})'


def table(c: dict, found: dict, names=None) -> str:
    """In Markdown; names: the cells to show, all unless given."""
    rows = []
    for mine in found.values():
        for s in mine:
            if names is None or s.name in names:
                own = gaps(c, mine, s)[1]
                spread = statistics.stdev(v) if len(v := [*s.figures[s.best].values()]) > 1 else math.nan
                rows.append([
                    s.name,
                    f'{s.rate.lr:.3g}' + (f' ({s.rate.edge} end)' if s.rate.edge in ('low', 'high') else ''),
                    f'{s.best:g}',
                    tables.number(s.means[s.best]) + ('' if math.isnan(spread) else f' ± {spread:.4f}'),
                    '' if s is mine[0] else f'{own:+.4f}',
                    over_rates(mine, s),
                    str(s.seeds),
                ])  # fmt: skip
    base = next(iter(found.values()))[0]
    head = [
        'arm', 'rate chosen', 'best rate tried', f'{base.chooses} there, mean ± std', f'minus {base.arm}, each at its best',
        f'minus {base.arm}, both at one rate', 'sweep seeds',
    ]  # fmt: skip
    return tables.markdown(head, rows)


# -----------------------------------------------------------------------------
# the picture


def multiples(c: dict, mine: list[Sweep]):
    """A panel per arm: points are runs of the sweep, the line is the parabola through their means, the diamond is the rate
    that was chosen, the dashed line the shared rate, the dotted one the baseline at its best."""
    columns = min(len(mine), 3 if len(mine) < 7 else 4)
    rows = math.ceil(len(mine) / columns)
    fig, axes = figure(columns, rows, width=2.7, height=2.5 + 0.7 / rows)
    low, high = limits(mine)
    rates = sorted({lr for s in mine for lr in s.figures})
    ticks = rates if len(rates) < 7 else rates[::2]
    color, at, level = colors(c), shared(c, mine), diamond(mine[0])[1]
    for ax, s in zip(axes.flat, mine):
        ax.set_xscale('log')
        ax.set_ylim(low, high)
        edge = (rates[-1] / rates[0]) ** 0.06
        ax.set_xlim(min(rates[0], at) / edge, max(rates[-1], at) * edge)
        ax.axvline(at, color='#555555', ls='--', lw=1)
        ax.axhline(level, color='#222222', ls=':', lw=1)
        draw(ax, s, color[s.arm], high)
        ax.set_xticks(ticks, [f'{t:g}' for t in ticks])
        ax.minorticks_off()
        ax.tick_params(axis='x', labelsize=7, rotation=40)
        on, own = gaps(c, mine, s)
        said = (
            f'{on:+.3f} at the shared rate\n{own:+.3f} at its own'
            if on is not None
            else f'{own:+.3f} at its own rate\n'
        )
        ax.set_title(f'{s.name}\n' + ('baseline\n' if s is mine[0] else said), fontsize=8, color=color[s.arm])
    for ax in axes.flat[len(mine) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel(f'{mine[0].chooses} ({unit(c)})', fontsize=8)
    fig.supxlabel('learning rate', fontsize=9)
    seeds = sorted({s.seeds for s in mine})
    dashed = (
        f'the shared rate {at:g}'
        if c.get('shared_rate')
        else f'the best rate tried of {mine[0].arm}, {at:g}, shared by all'
    )
    n = ' to '.join(map(str, seeds[:: max(1, len(seeds) - 1)]))
    fig.suptitle(
        f'points: runs ({n} seed{"s" * (n != "1")} per rate); line: parabola through the means; diamond: chosen rate;\n'
        f'dashed: {dashed}; dotted: {mine[0].arm} at its best. Numbers: mean minus that of {mine[0].arm},'
        ' at rates tried',
        fontsize=8.5,
    )
    return fig


def limits(mine: list[Sweep]) -> tuple[float, float]:
    """From below the lowest run up to 1.3 times the height of the curves' ends, and over the best of each curve; what lies above is
    named at the edge."""
    runs = [v for s in mine for of_seed in s.figures.values() for v in of_seed.values() if math.isfinite(v)]
    lowest = min(runs)
    curves = [[v - lowest for v in s.means.values() if math.isfinite(v)] for s in mine]
    tops = [max(curve) for curve in curves]
    height = max(1.3 * min(max(tops), 2.0 * statistics.median(tops)), 1.2 * max(map(min, curves)))
    return lowest - 0.06 * height, lowest + max(height, 1e-3)


def draw(ax, s: Sweep, color: str, high: float):
    for lr, of_seed in s.figures.items():
        inside = [v for v in of_seed.values() if v <= high]
        ax.plot([lr] * len(inside), inside, 'o', ms=3.2, color=color, alpha=0.55, mew=0)
        if above := [v for v in of_seed.values() if not v <= high]:
            finite = [v for v in above if math.isfinite(v)]
            said = f'{max(finite):.2f}' if finite else 'diverged'
            ax.plot(lr, high, '^', ms=5, color=color, clip_on=False)
            ax.annotate(
                said, (lr, high), xytext=(0, -10), textcoords='offset points', fontsize=6.5, ha='center', color=color
            )
    if s.parabola:
        vertex, curvature, lowest = s.parabola
        ends = [math.log(lr) for lr in (min(s.figures), max(s.figures))]
        x = [ends[0] + (ends[1] - ends[0]) * i / 100 for i in range(101)]
        y = [lowest + curvature * (v - vertex) ** 2 for v in x]
        both = [(math.exp(a), b) for a, b in zip(x, y) if b <= high]
        ax.plot(*zip(*both), color=color, lw=1.2)
    ax.plot(*diamond(s), 'D', ms=6, color=color, mec='black', mew=0.8, zorder=5, clip_on=False)


def diamond(s: Sweep) -> tuple[float, float]:
    """(chosen rate, figure there): the mean where the rate was tried, else on the parabola."""
    if s.rate.lr in s.means:
        return s.rate.lr, s.means[s.rate.lr]
    if not s.parabola:
        return s.best, s.means[s.best]
    vertex, curvature, lowest = s.parabola
    return s.rate.lr, lowest + curvature * (math.log(s.rate.lr) - vertex) ** 2
