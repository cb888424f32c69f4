"""
Where a comparison stands: which of its runs are over, which can be started, and what is written of them. missing.py says
which runs are missing, comparison.py runs them.
"""

import dataclasses
import fcntl
import json
import os
import sys
import zlib
from pathlib import Path

from configurator import UserError, brief, load, root_path
from files import read_json, write_json
from lab import launch, records, track, verdicts
from lab.missing import Missing
from lab.plan import Plan, Run, difference, flags, settings
from lab.records import ENTRY


class State:
    """The records of the runs that are over, and the checkpoints that are there."""

    def __init__(self, cfg, plans: list[Plan]):
        self.cfg, self.plans = cfg, plans
        self.folder = root_path(cfg.results) / cfg.name
        self.out = root_path(cfg.out) / (f'track/{cfg.track}' if cfg.track else cfg.name)  # entries share dense runs
        self.batched = any(f.name == 'seeds' for f in dataclasses.fields(plans[0].cfg))  # all seeds in one process
        names = {n for p in plans for n in p.refers_to}
        # the plans whose checkpoints others start from
        self.sources = {i for i, p in enumerate(plans) if p.arm.removeprefix('steps/') in names}
        self.records = {}  # name of a run that is over: its record
        self.there = {}  # name of a run: its checkpoint, which others may start from
        self.lost = {}  # name of a run of a sweep: the record of what it starts from, which diverged
        self.settings = {}  # (plan, rate, seed): see run_settings
        self.missing, self.can_start = None, []  # what is missing by these records, and can be started now
        self.rules = {}  # size: what a claim will need, in words
        self.failed_write = ''  # why the last write failed
        self.head = None  # of an entry of the board: the first line of its log

    def argv(self, r: Run) -> list[str]:
        p = self.plans[r.plan]
        return [*p.argv, *flags(self.plans, p, r.lr, r.seed + self.cfg.seed_offset)]

    def run_settings(self, r: Run) -> dict:
        """What makes the run what it is, to tell it from one of an older config in the same folder."""
        if (r.plan, r.lr, r.seed) not in self.settings:
            self.settings[r.plan, r.lr, r.seed] = resolved(self.plans[r.plan], self.argv(r))
        return self.settings[r.plan, r.lr, r.seed]

    def job_folder(self, r: Run) -> Path:
        return (self.out / r.name).parent if self.batched else self.out / r.name

    def checkpoint(self, r: Run) -> Path:
        best = self.plans[r.plan].is_arm and self.cfg.at == 'best'
        return self.out / r.name / ('best.pt' if best else 'ckpt.pt')

    def origin(self, r: Run) -> dict | None:
        """{name in r's flags: the run whose checkpoint it stands for, and a checksum of the settings and the origin of that run};
        None while the rate of such a run is not known. If this has changed, r is another run than before."""
        found = {}
        for name, n in zip(self.plans[r.plan].refers_to, self.missing.needs(r)[0]):
            if n is None:
                return None
            told = json.dumps([self.run_settings(n), self.checkpoint(n).name, self.origin(n)], sort_keys=True)
            found[name] = f'{n.name} {zlib.crc32(told.encode()):08x}'
        return found

    def note(self, r: Run, folder: Path):
        """Write beside a run what it is, before it starts."""
        write_json(folder / 'argv.json', self.argv(r))
        write_json(folder / 'settings.json', self.run_settings(r))  # the config file that argv names may change
        if self.plans[r.plan].refers_to:
            write_json(folder / 'from.json', self.origin(r))
        if self.enters(r):
            write_json(folder / 'entry.json', self.head)

    def enters(self, r: Run) -> bool:
        """Whether r is a run of an entry of the board, and not of the baseline that all entries share."""
        return bool(self.head) and self.plans[r.plan].arm == self.cfg.name

    def check_origin(self, r: Run, was: dict, where: Path):
        """Raises UserError if a run, of which `where` says what it started from, would start from something else now."""
        now = self.origin(r)
        for name in now or ():
            if was.get(name, '') != now[name]:
                (a, _, _), (b, _, _) = (text.partition(' ') for text in (was.get(name, ''), now[name]))
                raise UserError(
                    f'{where} holds {r.name}, which started from {a or "nothing"}; now it would start from'
                    f' {b if a != b else "one of that name with other settings"}; choose another --name, or delete that folder'
                )

    # ------------------------------------------------------------------------- what is there

    def read_back(self):
        """Take in whatever is over, in self.folder and in self.out, by us or by anyone."""
        for name, r in records.of_comparison(self.folder, vars(self.cfg)).items():
            self.records.setdefault(name, r)
        self.there = {name: path for name, path in self.there.items() if path.exists()}
        news = 0
        self.can_start = self.ready()
        while fresh := [r for r in self.can_start if self.take(r)]:
            news += len(fresh)
            self.can_start = self.ready()
        if news or self.failed_write:
            self.write()
        if self.sources and not self.cfg.keep_checkpoints and not self.missing.runs:
            if not any(launch.holder(lock.parent) for lock in self.out.rglob('lock')) and self.alone():
                arms = {self.plans[i].arm for i in self.sources}
                for name in [name for name, r in self.records.items() if r['arm'] in arms]:
                    drop(self.out / name)

    def take(self, r: Run) -> bool:
        """Take in a run if it is over. Raises UserError if its folder belongs to a run of another kind."""
        p, folder = self.plans[r.plan], self.out / r.name
        about = dict(run=r.name, arm=p.arm, size=p.size, lr=r.lr, seed=r.seed)
        if r.name in self.lost:  # a rate at which the source diverges is none for what starts from it
            self.records[r.name] = self.lost[r.name] | about | dict(settings=self.run_settings(r))
            self.records[r.name].pop('from', None)
            return True
        try:
            argv = read_json(self.job_folder(r) / 'argv.json', [str])
        except UserError:
            return False  # never started
        have, mine, noted = resolved(p, argv), self.run_settings(r), self.job_folder(r) / 'settings.json'
        if noted.exists():  # an older run does not say
            have = read_json(noted, dict)
        if have != mine:
            raise UserError(
                f'{folder} holds a run with other settings ({difference(have, mine)}); choose another --name, or delete'
                ' that folder'
            )
        if (noted := folder / 'from.json').exists():  # an older run does not say
            about['from'] = read_json(noted, {str: str})
            self.check_origin(r, about['from'], folder)
        if launch.holder(self.job_folder(r)):
            return False
        read = records.READERS.get(p.script, records.record)
        found = read(folder, about, mine)
        if not found:
            return False
        if self.enters(r) and (noted := folder / 'entry.json').exists():  # an older run does not say
            # the log promises one text, and may have been deleted without the runs
            if name := track.changed(read_json(noted, ENTRY), self.head):
                raise UserError(
                    f'{folder} holds a run of another text of {name}; give the arm another name, or delete'
                    f' {self.out / self.cfg.name}'
                )
        check_data(self.records, mine.get('dataset'), found['facts'], folder)
        if r.plan in self.sources and found['state'] == 'finished':
            if not self.checkpoint(r).exists():
                return False
            self.there[r.name] = self.checkpoint(r)
        elif not p.is_arm and found['state'] == 'diverged' and r.seed <= records.SWEEP:
            return False  # nothing can start from it; in a sweep this says something of the rate
        elif not self.cfg.keep_checkpoints:
            drop(folder)
        self.records[r.name] = found
        return True

    def over(self, r: Run) -> bool:
        """Whether a run needs nothing more, and has its checkpoint where others start from it."""
        found = self.records.get(r.name)
        return bool(found) and (r.plan not in self.sources or r.name in self.there or found['state'] == 'diverged')

    # ------------------------------------------------------------------------- what is missing

    def ready(self) -> list[Run]:
        """What can be started now: missing runs, or where their checkpoints are not there the runs that make these."""
        missing, seen, found = Missing(self.cfg, self.plans, self.records), set(), []
        self.missing = missing
        for name, r in self.records.items():
            for i, p in enumerate(self.plans):
                if 'from' in r and (r['arm'], r['size']) == (p.arm, p.size):
                    self.check_origin(Run(i, r['lr'], r['seed'], name), r['from'], self.folder / 'metrics.jsonl')
        for size, (figures, arms) in missing.sigma.items():
            if size not in self.rules:  # said before any seed that decides about an arm is started
                self.rules[size] = verdicts.rule(vars(self.cfg), figures, arms, f' at {size}' if size else '')
                say(self.rules[size])
        todo, diverged = list(missing.runs), {name for name, r in self.records.items() if r.get('state') == 'diverged'}

        def visit(r: Run):
            if r in seen:
                return
            seen.add(r)
            needs, more = missing.needs(r)
            todo.extend(more)
            if lost := [n.name for n in needs if n and n.seed > records.SWEEP and n.name in diverged]:
                self.lost[r.name] = self.records[lost[0]]
            absent = [n for n in needs if n is None or n.name not in self.there and n.name not in lost]
            for n in filter(None, absent):
                visit(n)
            if not absent:
                found.append(r)

        for r in todo:  # visiting a run may add the sweep of what it starts from
            visit(r)
        return found

    def left(self) -> set[Run]:
        return {*self.can_start, *self.missing.runs}

    # ------------------------------------------------------------------------- what is written

    def write(self):
        """What is over goes to self.folder at once. A disk that is full now may not be later: the runs go on."""
        try:
            for folder, mine in records.shared_out(self.folder, vars(self.cfg), self.records).items():
                head = self.head if folder == self.folder else None
                records.write_records(folder, records.read_records(folder) | mine, head)
            self.failed_write = ''
        except (UserError, OSError) as e:
            self.failed_write = str(e)

    def enter(self):
        """Make the folder, and share a lock with every other compare.py that is at work on this comparison."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.out / 'compare.lock', os.O_RDWR | os.O_CREAT)
            fcntl.flock(self.lock, fcntl.LOCK_SH)
        except OSError as e:
            raise UserError(f'cannot make the folder {self.out} ({e.strerror}); choose another --out') from None

    def alone(self) -> bool:
        """Whether no other compare.py is at work here, whose next run may start from a checkpoint of ours."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_SH)


def resolved(p: Plan, argv: list[str]) -> dict:
    """The settings of a run of a plan that was, or would be, started with argv."""
    if p.script != 'transfer.py':
        return settings(load(type(p.cfg), argv))
    return dict(command=argv[0]) | settings(load(type(p.cfg), [*argv[1:], '--out=ckpt.pt']))


def check_data(there: dict, dataset: str | None, facts: dict, where):
    """Raises UserError if a run of the records was trained on another edition of the data set than `where` has, or on other
    tokens: losses on two texts do not compare. facts: {data_edition, data} of `where`. What does not say them passes."""
    for r in there.values():
        for k, name in dict(data_edition='edition', data='checksum').items():
            now, was = facts.get(k), r['facts'].get(k)
            if now and was and was != now and r.get('settings', {}).get('dataset') == dataset:
                raise UserError(
                    f'{where}: the {name} of the data is {brief(now)!r}, {r["run"]} was trained on {brief(was)!r}; prepare that'
                    ' one, or choose another --name'
                )


def drop(folder: Path):
    """Delete the checkpoints of what is over."""
    for path in (*folder.rglob('*.pt'), *folder.rglob('*.pt.tmp*')):
        path.unlink(missing_ok=True)


def say(text: str):
    """Print a line, unless a terminal shows the table of live.py."""
    if not sys.stdout.isatty():
        print(text, flush=True)
