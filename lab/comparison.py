"""
A comparison from its config to its tables: check it, run what is missing, write what was found. state.py knows where it stands,
compare.py is the command.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path

import checkpoint
import evaluate
from configurator import ROOT, UserError, brief, root_path, spelled
from files import read_json, write_json
from lab import launch, outcomes, records, report, stats, timing, track
from lab.live import Live
from lab.plan import Run, at_equal_flops, check_match, difference, make_plans, notes, settings
from lab.records import PUBLISHED, REFERENCE
from lab.state import State, check_data, say
from tokens import loader

# keys of a config that comparison.json holds; those of them, with the arms, on which the promise of the protocol rests
KEPT = ('arms', 'claim', 'note', 'script', 'common', 'sizes', 'seeds', 'looks', 'learning_rates', 'shared_rate', 'sweep_seeds',
        'seed_offset', 'metric', 'at', 'center', 'worth', 'targets', 'match', 'mismatch', 'steps', 'shared_steps', 'horizons', 'tasks',
        'track')  # fmt: skip
PLANNED = ('seeds', 'worth', 'center', 'metric', 'at', 'targets')


def compare(cfg, files=()):
    """Run what is missing of a comparison, then print its tables. files: its configs, which begin the log of an entry of the
    board. Raises UserError for what cannot run, and SystemExit where a run failed."""
    plans = at_equal_flops(cfg, make_plans(cfg))
    state = State(cfg, plans)
    if cfg.seed_offset and state.batched:
        raise UserError(f'seed_offset = {cfg.seed_offset}: {cfg.script} names its seeds in its log; leave it out')
    if cfg.track:
        track.check(cfg, plans)
    if cfg.track and len(cfg.arms) > 1:
        state.head = track.head(state.folder, track.source(cfg, files))
    state.enter()
    check_possible(state)
    jobs = cfg.jobs or (4 * len(launch.gpus()) or min(8, os.cpu_count() or 1))
    engine = launch.engine(cfg.cluster, jobs, state.out / 'submitit', cfg.minutes, cfg.partition)
    time_and_match(state, jobs)
    planned = earlier_plan(state.folder) if cfg.looks else {}
    if was := ', '.join(f'{k} = {brief(v)}' for k, v in planned.items() if v != plan_of(vars(cfg))[k]):
        print(f'NOTE: the plan was {was}; where it is changed after a look, 5% is no promise any more')
    described = {k: v for k, v in dataclasses.asdict(cfg).items() if k in KEPT}
    write_json(state.folder / 'comparison.json', described | dict(command=said(cfg)))

    missing = Jobs(state)
    start = lambda full, folder, slot: engine(missing.begin(folder, full), folder, slot)
    failed = launch.run_all(missing.todo, missing.done, start, jobs, Live(state))
    state.write()
    if state.failed_write:
        raise UserError(f'{state.failed_write}; the runs are safe in {state.out}; the same command goes on')
    if state.records:
        show(state)
    if not failed and not cfg.only and (waiting := state.missing.runs):
        failed[waiting[0].name] = (
            f'{len(waiting)} runs cannot start: what this one starts from has the rate of an arm that waits for it; in'
            ' learning_rates give the step the name of the arm that is swept and starts from it, or rates'
        )
    if failed:
        print('\n'.join(f'failed: {name}: {wrong}' for name, wrong in failed.items()), file=sys.stderr)
        sys.exit(1)


def check_possible(state: State):
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
    there = records.of_comparison(state.folder, vars(cfg))
    named = {settings(p.cfg).get('dataset'): p.cfg.dataset for p in state.plans if p.trains and p.script == 'train.py'}
    for key, dataset in named.items() if there else ():  # key: None for the default
        loader.prepare(dataset)
        facts = dict(data_edition=loader.read_meta(dataset).get('edition'), data=data_now(dataset))
        check_data(there, key, facts, loader.data_dir(dataset))
    for name, r in there.items():
        for i, p in enumerate(state.plans):
            if (r['arm'], r['size']) != (p.arm, p.size):
                continue
            mine = state.run_settings(Run(i, r['lr'], r['seed'], name))
            if r['settings'] != mine:  # nothing starts beside runs of another comparison
                raise UserError(
                    f'{state.folder / "metrics.jsonl"} holds {name} with other settings'
                    f' ({difference(r["settings"], mine)}); choose another --name, or delete that folder'
                )


def data_now(dataset: str) -> dict:
    """What a run on this data set would note of its tokens."""
    return loader.checksums({split: loader.open_tokens(dataset, split, 1, 2**32) for split in ('train', 'val')})


def time_and_match(state: State, jobs: int):
    """Time the steps of the arms where that is asked for, and raise UserError where arms do not match."""
    cfg = state.cfg
    if cfg.cluster == 'slurm' and not launch.gpus():
        print('NOTE: no GPU here: a config that chooses its preset by GPU is matched here without, run there with one')
    if cfg.match != 'time':  # before the time is spent
        check_match(cfg, state.plans, {})
    for note in notes(cfg, state.plans):
        print(note, flush=True)
    if cfg.script == 'train.py' and (cfg.bench or cfg.match == 'time'):
        cluster = cfg.cluster.replace('pool', 'local')
        threads = max(1, (os.cpu_count() or 1) // jobs)  # as the runs have
        alone = launch.engine(cluster, 1, state.out / 'submitit', cfg.minutes, cfg.partition, threads)
        ms = timing.steps(cfg, state.plans, state.folder, state.out, alone)
        if cfg.match == 'time':
            check_match(cfg, state.plans, ms)


class Jobs:
    """What is missing, as launch.run_all wants it: a job is a folder and a command, which makes one run, or all seeds of a
    script that trains them at once."""

    def __init__(self, state: State):
        self.state = state
        self.asked, self.started = {}, {}  # folder of a job: its runs, when todo() last gave it, and when it started

    def todo(self) -> list[tuple[str, Path, list[str]]]:
        """(name, folder, command) of what can be started now."""
        state, self.asked = self.state, {}
        state.read_back()
        for r in state.can_start:
            self.asked.setdefault(state.job_folder(r), []).append(r)
            if r.plan in state.sources and not state.checkpoint(r).exists() and not launch.holder(state.out / r.name):
                launch.forget(state.out / r.name)  # else it would be taken for over
        return [(str(f.relative_to(state.out)), f, command(state, f, runs)) for f, runs in self.asked.items()]

    def begin(self, folder: Path, full: list[str]) -> list[str]:
        """Before a run starts: note what it is, and whether it goes on from a checkpoint. Returns its command."""
        runs = self.started[folder] = self.asked[folder]
        self.state.note(runs[0], folder)
        ckpt = folder / 'ckpt.pt'
        if self.state.plans[runs[0].plan].trains and ckpt.exists() and not launch.holder(folder):
            try:
                was = checkpoint.load(ckpt).get('data')
            except UserError:  # broken beside the run: from the start, then
                ckpt.unlink()
                return full
            now = data_now(self.state.plans[runs[0].plan].cfg.dataset) if isinstance(was, dict) else {}
            # train.py would go on, with a note. An older checkpoint has numbers without checksums
            if any(isinstance(v, list) and v != now.get(split) for split, v in (was if now else {}).items()):
                raise UserError(
                    f'{folder} holds a run that began on other tokens than its data set has now; prepare these, choose another'
                    ' --name, or delete that folder'
                )
            return [*full, '--init_from=resume']
        return full

    def done(self, name: str, code: int | None) -> str:
        """Called when a job has ended; '' if its runs are over."""
        folder = self.state.out / name
        self.state.read_back()
        if all(map(self.state.over, self.started[folder])):  # more may be wanted there by now
            say(f'{name}: done, {len(self.state.left())} left so far')
            return ''
        if code is None:
            return ''
        wrong = launch.last_words(folder, code)
        say(f'{name}: {wrong}')
        return wrong


def command(state: State, folder: Path, runs: list[Run]) -> list[str]:
    """What makes these runs, which differ in their seeds alone."""
    r, p = runs[0], state.plans[runs[0].plan]
    paths = {name: str(state.checkpoint(n)) for name, n in zip(p.refers_to, state.missing.needs(r)[0])}
    argv = [REFERENCE.sub(lambda m: paths[m[1]], a) for a in state.argv(r)]
    out = {'transfer.py': f'--out={folder}/ckpt.pt', 'evaluate.py': f'--out={folder}/eval.json'}
    argv.append(out.get(p.script, f'--out_dir={folder}'))
    if state.batched:
        argv.append('--seeds=' + ','.join(str(r.seed) for r in runs))
    return [sys.executable, str(ROOT / p.script), *argv]


def show(state: State):
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


def plan_of(c: dict) -> dict:
    """The part of a comparison's config that the promise of the protocol rests on, as JSON holds it."""
    c = json.loads(json.dumps(c))
    return {k: c[k] for k in PLANNED if k in c} | dict(arms=', '.join(c['arms']))


def earlier_plan(folder: Path) -> dict:
    """plan_of the config of an earlier call; {} before its first run is over."""
    try:
        c = read_json(folder / 'comparison.json', outcomes.COMPARISON)
    except UserError:
        return {}
    return plan_of(c) if c.get('looks') and records.read_records(folder) else {}


def said(cfg) -> str:
    """The command without the flags that say where it ran."""
    where = ('--cluster', '--jobs', '--only', '--minutes', '--partition', '--results', '--out', '--keep')
    argv = spelled(sys.argv[1:], {f.name: f for f in dataclasses.fields(cfg)})
    return shlex.join(['python', 'compare.py', *(a for a in argv if not a.startswith(where))])
