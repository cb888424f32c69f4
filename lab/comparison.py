"""
The state of a comparison while its runs are made, and the loop that makes them: what is missing is started, what is over
is taken in, until nothing is missing. compare.py is the command, plan.py says what is missing.
"""

import dataclasses
import fcntl
import importlib.util
import os
import shlex
import sys
from pathlib import Path

import checkpoint
import evaluate
from configurator import ROOT, UserError, load, root_path
from files import read_json, write_json
from lab import launch, outcomes, records, report, stats, timing, track, verdicts
from lab.live import Live
from lab.plan import Missing, Plan, Run, at_equal_flops, check_match, difference, flags, make_plans, settings, wanted
from lab.records import PUBLISHED, REFERENCE


class Comparison:
    """The state of one comparison: its folders, the records of the runs that are over, the checkpoints that are
    there."""

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
        self.asked, self.started = {}, {}  # folder of a job: its runs, when jobs() last gave it, and when it started
        self.rules = {}  # size: what a claim will need, in words
        self.failed_write = ''  # why the last write failed
        self.head = None  # of an entry of the board: the first line of its log

    def wanted(self) -> list[Run]:
        """What can be started now: missing runs, or where their checkpoints are not there the runs that make these."""
        self.read_back()
        return self.ready()

    def ready(self) -> list[Run]:
        """As wanted(), by the records that were taken in before."""
        missing, found = Missing(self.cfg, self.plans, self.records), {}
        for size, (figures, arms) in missing.sigma.items():
            if size not in self.rules:  # said before any seed that decides about an arm is started
                self.rules[size] = verdicts.rule(vars(self.cfg), figures, arms, f' at {size}' if size else '')
                self.say(self.rules[size])

        def visit(r: Run):
            needs = missing.needs(r)
            if lost := [n.name for n in needs if n and n.seed > records.SWEEP and self.diverged(n.name)]:
                self.lost[r.name] = self.records[lost[0]]
            absent = [n for n in needs if n is None or n.name not in self.there and n.name not in lost]
            for n in absent:
                if n:
                    visit(n)
            if not absent:
                found[r.name] = r

        seen = set()
        while new := [n for n in missing.runs if n not in seen]:  # visiting a run may ask for the sweep of a step
            seen.update(new)
            for name in new:
                visit(missing.runs[name])
        return list(found.values())

    def diverged(self, name: str) -> bool:
        return self.records.get(name, {}).get('state') == 'diverged'

    def argv(self, r: Run) -> list[str]:
        p = self.plans[r.plan]
        return [*p.argv, *flags(self.plans, p, r.lr, r.seed)]

    def run_settings(self, r: Run) -> dict:
        """What makes the run what it is, to tell it from one of an older config in the same folder."""
        if (r.plan, r.lr, r.seed) not in self.settings:
            self.settings[r.plan, r.lr, r.seed] = self.resolved(r, self.argv(r))
        return self.settings[r.plan, r.lr, r.seed]

    def resolved(self, r: Run, argv: list[str]) -> dict:
        p = self.plans[r.plan]
        if p.script != 'transfer.py':
            return settings(load(type(p.cfg), argv))
        return dict(command=argv[0]) | settings(load(type(p.cfg), [*argv[1:], '--out=ckpt.pt']))

    def checkpoint(self, r: Run) -> Path:
        best = self.plans[r.plan].is_arm and self.cfg.at == 'best'
        return self.out / r.name / ('best.pt' if best else 'ckpt.pt')

    def read_back(self):
        """Take in whatever is over, in self.folder and in self.out, by us or by anyone."""
        for name, r in records.of_comparison(self.folder, vars(self.cfg)).items():
            self.records.setdefault(name, r)
        self.there = {name: path for name, path in self.there.items() if path.exists()}
        news = 0
        while fresh := [r for r in self.ready() if self.take(r)]:
            news += len(fresh)
        if news or self.failed_write:
            self.write()
        if self.sources and not self.cfg.keep_checkpoints and not wanted(self.cfg, self.plans, self.records):
            if not any(launch.holder(lock.parent) for lock in self.out.rglob('lock')) and self.alone():
                arms = {self.plans[i].arm for i in self.sources}
                for name in [name for name, r in self.records.items() if r['arm'] in arms]:
                    drop(self.out / name)

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

    def take(self, r: Run) -> bool:
        """Take in a run if it is over. Raises UserError if its folder belongs to a run of another kind."""
        p, folder = self.plans[r.plan], self.out / r.name
        about = dict(run=r.name, arm=p.arm, size=p.size, lr=r.lr, seed=r.seed)
        if r.name in self.lost:  # a rate at which the source diverges is none for what starts from it
            self.records[r.name] = self.lost[r.name] | about | dict(settings=self.run_settings(r))
            return True
        try:
            argv = read_json(self.job_folder(r) / 'argv.json', [str])
        except UserError:
            return False  # never started
        have, mine = self.resolved(r, argv), self.run_settings(r)
        if have != mine:
            raise UserError(
                f'{folder} holds a run with other settings ({difference(have, mine)}); choose another --name, or delete'
                ' that folder'
            )
        if launch.holder(self.job_folder(r)):
            return False
        read = records.READERS.get(p.script, records.record)
        found = read(folder, about, mine)
        if not found:
            return False
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

    def write(self):
        """What is over goes to self.folder at once. A disk that is full now may not be later: the runs go on."""
        try:
            for folder, mine in records.shared_out(self.folder, vars(self.cfg), self.records).items():
                head = self.head if folder == self.folder else None
                records.write_records(folder, records.read_records(folder) | mine, head)
            self.failed_write = ''
        except (UserError, OSError) as e:
            self.failed_write = str(e)

    def job_folder(self, r: Run) -> Path:
        return (self.out / r.name).parent if self.batched else self.out / r.name

    def jobs(self) -> list[tuple[str, Path, list[str]]]:
        """(name, folder, command) of what is missing; a script that trains its seeds at once gets them in one job."""
        groups = {}
        for r in self.wanted():
            groups.setdefault(self.job_folder(r), []).append(r)
            if r.plan in self.sources and not self.checkpoint(r).exists() and not launch.holder(self.out / r.name):
                launch.forget(self.out / r.name)  # else it would be taken for over
        self.asked = groups
        return [(str(f.relative_to(self.out)), f, self.command(f, runs)) for f, runs in groups.items()]

    def command(self, folder: Path, runs: list[Run]) -> list[str]:
        r = runs[0]
        p = self.plans[r.plan]
        needed = Missing(self.cfg, self.plans, self.records).needs(r) if p.refers_to else []
        paths = {name: str(self.checkpoint(n)) for name, n in zip(p.refers_to, needed)}
        argv = [REFERENCE.sub(lambda m: paths[m[1]], a) for a in self.argv(r)]
        out = {'transfer.py': f'--out={folder}/ckpt.pt', 'evaluate.py': f'--out={folder}/eval.json'}
        argv.append(out.get(p.script, f'--out_dir={folder}'))
        if self.batched:
            argv.append('--seeds=' + ','.join(str(r.seed) for r in runs))
        return [sys.executable, str(ROOT / p.script), *argv]

    def start(self, engine):
        """engine (lab/launch.py), with what has to be done before a run starts."""

        def go(full: list[str], folder: Path, slot: int):
            """Before a run starts: note what it is, and whether it goes on from a checkpoint."""
            runs = self.started[folder] = self.asked[folder]
            write_json(folder / 'argv.json', self.argv(runs[0]))
            ckpt = folder / 'ckpt.pt'
            if self.plans[runs[0].plan].trains and ckpt.exists() and not launch.holder(folder):
                try:
                    checkpoint.load(ckpt)
                    full = [*full, '--init_from=resume']
                except UserError:  # broken beside the run: from the start, then
                    ckpt.unlink()
            return engine(full, folder, slot)

        return go

    def over(self, r: Run) -> bool:
        """Whether a run needs nothing more, and has its checkpoint where others start from it."""
        found = self.records.get(r.name)
        return bool(found) and (r.plan not in self.sources or r.name in self.there or found['state'] == 'diverged')

    def done(self, name: str, code: int | None) -> str:
        """Called when a job has ended; '' if its runs are over."""
        self.read_back()
        if all(map(self.over, self.started[self.out / name])):  # more may be wanted there by now
            self.say(f'{name}: done')
            return ''
        if code is None:
            return ''
        wrong = launch.last_words(self.out / name, code)
        self.say(f'{name}: {wrong}')
        return wrong

    def say(self, text: str):
        if not sys.stdout.isatty():
            print(text, flush=True)


def drop(folder: Path):
    """Delete the checkpoints of what is over."""
    for path in (*folder.rglob('*.pt'), *folder.rglob('*.pt.tmp*')):
        path.unlink(missing_ok=True)


def compare(cfg, files=()):
    """Run what is missing of a comparison, then print its tables. files: its configs, which begin the log of an entry of the
    board. Raises UserError for what cannot run, and SystemExit where a run failed."""
    plans = at_equal_flops(cfg, make_plans(cfg))
    state = Comparison(cfg, plans)
    if cfg.track:
        track.check(cfg, plans)
    if cfg.track and len(cfg.arms) > 1:
        state.head = track.head(state.folder, track.source(cfg, files))
    state.enter()
    check_possible(state)
    jobs = cfg.jobs or (4 * len(launch.gpus()) or min(8, os.cpu_count() or 1))
    engine = launch.engine(cfg.cluster, jobs, state.out / 'submitit', cfg.minutes, cfg.partition)
    time_and_match(state, jobs)
    if cfg.looks and (planned := earlier_plan(state.folder)) not in (None, cfg.seeds):
        print(f'NOTE: the plan was seeds = {planned}; where it is changed after a look, 5% is no promise any more')
    described = {k: v for k, v in dataclasses.asdict(cfg).items() if k in KEPT}
    write_json(state.folder / 'comparison.json', described | dict(command=said()))

    failed = launch.run_all(state.jobs, state.done, state.start(engine), jobs, Live(state))
    state.write()
    if state.failed_write:
        raise UserError(f'{state.failed_write}; the runs are safe in {state.out}; the same command goes on')
    if state.records:
        show(state)
    if not failed and not cfg.only and (waiting := wanted(cfg, plans, state.records)):
        failed[waiting[0].name] = (
            f'{len(waiting)} runs cannot start: what this one starts from has the rate of an arm that waits for it; in'
            ' learning_rates give the step the name of the arm that is swept and starts from it, or rates'
        )
    if failed:
        print('\n'.join(f'failed: {name}: {wrong}' for name, wrong in failed.items()), file=sys.stderr)
        sys.exit(1)


def check_possible(state: Comparison):
    """Raises UserError for what would stop the comparison later, before anything is trained."""
    cfg = state.cfg
    published = root_path(PUBLISHED) / (f'track/{cfg.track}' if cfg.track else '') / cfg.name
    if published.exists() and published != state.folder and cfg.name != next(iter(cfg.arms)):
        print(
            f'NOTE: {PUBLISHED}/{cfg.name} holds published runs of that name, which are not used; --results={PUBLISHED} goes on with them'
        )
    if cfg.cluster == 'slurm' and not importlib.util.find_spec('submitit'):
        raise UserError('cluster = slurm: submitit is not installed; pip install submitit')
    if cfg.looks:
        stats.scipy_stats()  # what is missing depends on verdicts: without it nothing could go on after the sweep
    if cfg.steps and state.batched:
        raise UserError(f'steps: {cfg.script} trains its seeds at once and starts from nothing; leave them out')
    for task in set(cfg.tasks.split(' ')[0].split(',')) & set(evaluate.SOURCES):
        evaluate.read_source(task)
    if cfg.match == 'time' and cfg.script != 'train.py':
        raise UserError("match = 'time': only arms of train.py are timed; match = 'tokens' and read the seconds")
    for name, r in records.of_comparison(state.folder, vars(cfg)).items():
        for i, p in enumerate(state.plans):
            if (r['arm'], r['size']) != (p.arm, p.size):
                continue
            mine = state.run_settings(Run(i, r['lr'], r['seed'], name))
            if r['settings'] != mine:  # nothing starts beside runs of another comparison
                raise UserError(
                    f'{state.folder / "metrics.jsonl"} holds {name} with other settings'
                    f' ({difference(r["settings"], mine)}); choose another --name, or delete that folder'
                )


def time_and_match(state: Comparison, jobs: int):
    """Time the steps of the arms where that is asked for, and raise UserError where arms do not match."""
    cfg = state.cfg
    if cfg.cluster == 'slurm' and not launch.gpus():
        print('NOTE: no GPU here: a config that chooses its preset by GPU is matched here without, run there with one')
    if cfg.match != 'time':  # before the time is spent
        check_match(cfg, state.plans, {})
    if cfg.script == 'train.py' and (cfg.bench or cfg.match == 'time'):
        cluster = cfg.cluster.replace('pool', 'local')
        threads = max(1, (os.cpu_count() or 1) // jobs)  # as the runs have
        alone = launch.engine(cluster, 1, state.out / 'submitit', cfg.minutes, cfg.partition, threads)
        ms = timing.steps(cfg, state.plans, state.folder, state.out, alone)
        if cfg.match == 'time':
            check_match(cfg, state.plans, ms)


def show(state: Comparison):
    """Write and print what the records say."""
    try:
        report.write_comparison(state.folder)
        tables = report.shown(state.folder)
    except UserError as e:  # a part of it ran, without the baseline
        print(e)
    except ImportError as e:
        print(f'{e}: no table here; the logs are in {state.folder}, python compare.py --report where it is installed')
    else:
        print(f'{tables}\nwrote {state.folder}/: table.md' + ', plots, index.html' * (not state.cfg.track))


KEPT = ('arms', 'claim', 'note', 'script', 'common', 'sizes', 'seeds', 'looks', 'learning_rates', 'shared_rate', 'sweep_seeds',
        'metric', 'at', 'center', 'worth', 'targets', 'match', 'mismatch', 'steps', 'shared_steps', 'horizons', 'tasks',
        'track')  # fmt: skip


def earlier_plan(folder: Path) -> int | None:
    """The seeds that an earlier call planned with, once there are runs."""
    try:
        c = read_json(folder / 'comparison.json', outcomes.COMPARISON)
    except UserError:
        return None
    return c.get('seeds') if c.get('looks') and records.read_records(folder) else None


def said() -> str:
    """The command without the flags that say where it ran."""
    where = ('--cluster', '--jobs', '--only', '--minutes', '--partition', '--results', '--out', '--keep')
    return shlex.join(['python', 'compare.py', *(a for a in sys.argv[1:] if not a.startswith(where))])
