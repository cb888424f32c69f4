"""
Which runs of a comparison are missing, by the records of those that are over. state.py asks again after every run.

With looks = True (docs/protocol.md): first the sweep of each arm, with rates beyond its edge, then the eight seeds of the
baseline, then 4, 6, 8, ... seeds of each arm until it has a verdict, and four at the second best rates. With looks = False: the
sweep, then all seeds.
"""

from configurator import UserError
from lab import protocol, verdicts
from lab.plan import Plan, Run, named, rates_to_sweep
from lab.rates import Rate
from lab.records import SWEEP, run_name


def beyond(grid: list[float], edge: str) -> float | None:
    """The next rate to try where the best of a sorted grid is at its low or high end."""
    if len(grid) < 2 or edge not in ('low', 'high'):
        return None
    ratio = (grid[-1] / grid[0]) ** (1 / (len(grid) - 1))
    return float(f'{grid[-1] * ratio if edge == "high" else grid[0] / ratio:.3g}')


class Missing:
    """`runs`: what is missing of the arms. needs(run): what a run starts from.

    The methods return the runs that an answer waits for, [] if all of them are over. i is the index of a plan."""

    def __init__(self, cfg, plans: list[Plan], records: dict):
        self.cfg, self.plans, self.records = cfg, plans, records
        # the config as verdicts.py takes it
        self.c = vars(cfg) | dict(halves=verdicts.halves(vars(cfg), records))
        self.chosen = {}  # i: what rate(i) returns; None while choose(i) runs, to notice arms that take each other's rate
        self.sigma = {}  # size: (figures of the baseline's first seeds, number of arms), once they are there
        found = []
        for size in dict.fromkeys(p.size for p in plans if p.is_arm):
            arms = [i for i, p in enumerate(plans) if p.is_arm and p.size == size]
            waits = self.looks(size, arms) if cfg.looks else {i: self.seeds(i, cfg.seeds) for i in arms}
            found += [r for i in arms for r in self.rate(i)[1]] + [r for runs in waits.values() for r in runs]
            found += [r for i in arms if cfg.tasks and not waits[i] for r in self.evaluations(i)]
        self.runs = self.asked_for(found)

    def asked(self, i: int) -> bool:
        """Does --only name this arm, its size or both, or nothing?"""
        p, only = self.plans[i], {w.strip() for w in self.cfg.only.split(',')} - {''}
        return not only or bool(only & {p.arm, p.size, p.name})

    def asked_for(self, runs: list[Run]) -> list[Run]:
        """runs without duplicates, and without those of arms that --only leaves out; steps always stay."""
        return [r for r in dict.fromkeys(runs) if not self.plans[r.plan].is_arm or self.asked(r.plan)]

    def absent(self, i: int, lr: float, seeds) -> list[Run]:
        """The runs of a plan at this rate and with these seeds that are not over."""
        runs = [self.run(i, lr, seed) for seed in seeds]
        return [r for r in runs if r.name not in self.records]

    def run(self, i: int, lr: float, seed: int) -> Run:
        p = self.plans[i]
        return Run(i, lr, seed, run_name(p.arm, p.size, lr, seed))

    def looks(self, size: str, arms: list[int]) -> dict:
        """{i: the runs that the next look at arm i waits for}. The baseline, arms[0], waits for those of all arms."""
        base, *others = arms
        if first := self.seeds(base, protocol.SIGMA_SEEDS):
            return dict.fromkeys(arms, first)
        rates = {self.plans[i].arm: self.rate(i)[0] for i in arms}
        of_seed = verdicts.figures(self.c, self.records, self.plans[base].arm, size)[1][self.rate(base)[0].lr]
        self.sigma[size] = [of_seed[s] for s in range(1, protocol.SIGMA_SEEDS + 1)], len(others) or 1  # of a track
        found = verdicts.by_figures(self.c, self.records, size, rates)
        waits, asked = {base: self.second_best(base)}, {self.plans[i].arm for i in others if self.asked(i)}
        looks = verdicts.next_looks(found, protocol.looks_to(self.cfg.seeds), asked)
        for i in others:
            n = looks[self.plans[i].arm]
            waits[i] = self.seeds(i, n)
            if self.rate(i)[0]:
                waits[i] += self.seeds(base, max(n, protocol.SIGMA_SEEDS)) + self.second_best(i)
        waits[base] = [r for runs in waits.values() for r in runs]
        return waits

    def seeds(self, i: int, n: int) -> list[Run]:
        """The runs of seeds 1 to n; as long as the rate is not known, the runs that will give it."""
        rate, runs = self.rate(i)
        return self.absent(i, rate.lr, range(1, n + 1)) if rate else runs

    def second_best(self, i: int) -> list[Run]:
        """The seeds of the first look at the second best rate: they may contradict the choice."""
        second = self.rate(i)[0].second
        return [] if second is None else self.absent(i, second, range(1, protocol.FIRST + 1))

    def evaluations(self, i: int) -> list[Run]:
        """evaluate.py's measurements of all runs of an arm that decide."""
        p, lr = self.plans[i], self.rate(i)[0].lr
        tasks = next(j for j, q in enumerate(self.plans) if (q.arm, q.size) == (f'tasks/{p.arm}', p.size))
        most = SWEEP if self.cfg.looks else self.cfg.seeds
        good = [r for r in self.records.values() if (r['arm'], r['size'], r['lr']) == (p.arm, p.size, lr)]
        return self.absent(tasks, lr, sorted(r['seed'] for r in good if r['state'] == 'finished' and r['seed'] <= most))

    def rate(self, i: int) -> tuple[Rate | None, list[Run]]:
        """(the learning rate of a plan, []), or (None, the runs that give it)."""
        if i not in self.chosen:
            self.chosen[i] = None
            self.chosen[i] = self.choose(i)
        if not self.chosen[i]:
            raise UserError(
                f'learning_rates: {self.plans[i].name} takes the rate of an arm that takes its own; give rates'
            )
        return self.chosen[i]

    def choose(self, i: int) -> tuple[Rate | None, list[Run]]:
        """rate(i), found anew: given by the config, another arm's, or by the sweep. UserError
        if the other arm is not there."""
        cfg, p = self.cfg, self.plans[i]
        given = rates_to_sweep(cfg, p)
        takes = given if isinstance(given, str) else p.arm  # an arm, or a cell ARM@SIZE
        same = [
            j
            for j, q in enumerate(self.plans)
            if (q.arm == takes and (q.size == p.size or not cfg.sizes)) or (q.name == takes and q.is_arm)
        ]
        if isinstance(given, str) and same in ([], [i]):
            raise UserError(f'learning_rates: {p.name} takes the rate of {given}, which is no other arm')
        if isinstance(given, str) or same[0] != i:  # another arm's, or its own, chosen at the longest horizon
            rate, runs = self.rate(same[0])
            return rate and verdicts.fixed_rate(rate.lr), runs
        if len(given) == 1:
            return verdicts.fixed_rate(given[0]), []
        swept = verdicts.figures(self.c, self.records, p.arm, p.size)[0]
        grid, seeds = sorted({*given, *swept}), range(SWEEP + 1, SWEEP + 1 + cfg.sweep_seeds)
        if runs := [r for lr in grid for r in self.absent(i, lr, seeds)]:
            return None, runs
        found = verdicts.rate(self.c, self.records, p.arm, p.size)
        if (further := beyond(grid, found.edge)) and len(grid) < len(given) + cfg.extend:
            return None, self.absent(i, further, seeds)
        return found, []

    def needs(self, r: Run) -> tuple[list[Run | None], list[Run]]:
        """(the runs whose checkpoints r starts from, None for one whose rate is not known yet; the runs that give those rates)"""
        found, more, p = [], [], self.plans[r.plan]
        for name in p.refers_to:
            q = named(self.plans, name, p.size)
            i = self.plans.index(q)
            if p.arm.startswith('tasks/') or verdicts.follows_rate(self.c, name, p.arm, p.size):
                lr = r.lr
            else:
                rate, runs = self.rate(i)
                lr, more = rate and rate.lr, more + runs
            seed = 1 if self.cfg.shared_steps and not q.is_arm else r.seed
            found.append(None if lr is None else self.run(i, lr, seed))
        return found, self.asked_for(more)
