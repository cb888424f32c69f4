"""
Compare ways to train: many runs at matched cost, each arm at its own best learning rate, with 95% intervals.

    python compare.py config/compare/expansion.py --seeds=5             runs what is missing, then table, plots, page
    python compare.py config/compare/expansion.py --cluster=slurm --jobs=40 --partition=gpu
    python compare.py config/compare/growth_tiny.py                      arms with preparing steps, on a CPU
    python compare.py --show=results/growth_small                        only the tables, from the logs
    python compare.py --report                                           RESULTS.md from all logs in results/
    python compare.py --check                                            do RESULTS.md and the documents agree with them?

A comparison is a config file with these keys; an arm is a config of train.py with flags. Seed s means the same data in
the same order and the same start in every arm. With learning_rates each arm is first trained at each of these rates, on
random seeds that are used for nothing else; then its best rate is trained on the seeds that decide. After an
interruption run the same command again. It keeps finished runs (in out/compare/ or in out/results/<name>/metrics.jsonl,
so on another machine, too) and resumes the others. What the command leaves in out/results/ is yours. To publish it,
move it to results/<name>, where --report and --check look, or go on there with --results=results.

An arm may start from preparing steps, which are trainings or commands of transfer.py (grow, factorize, ...).

    steps = dict(
        small='config/gpt2.py --n_layer=6',                             # flags of common come before these
        cut='transfer.py factorize --checkpoint={small} --linear=low_rank --init=nearest',
    )
    arms = dict(
        scratch='config/gpt2.py',
        stack='config/gpt2.py --init_from=transfer --transfer_from={small} --transfer_method=stack',
        low_rank='config/gpt2.py --init_from={cut} --distill_from={small}',
    )

{NAME} is the checkpoint of a step, or of an arm listed before. Every random seed has its own steps (with shared_steps
all seeds share them), and all arms of a seed use the same ones. Their FLOPs and seconds count; the tables also have
figures without them ("source free"). A checkpoint that is needed but missing (another machine, deleted) is made again.

Exit codes: 0 done, 1 a run failed (the others are kept), 2 a mistake in the config, 130 interrupted (runs have saved).
"""

import dataclasses
import fcntl
import importlib.util
import json
import os
import shlex
import shutil
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import checkpoint
import evaluate
from configurator import ROOT, UserError, input_path, key, load, printable, root_path, run
from files import write, write_json
from lab import launch, records, report, tables
from lab.plan import (
    SCRIPTS,
    Missing,
    Plan,
    Run,
    check_match,
    difference,
    flags,
    make_plans,
    settings,
    wanted,
)
from lab.records import REFERENCE, SWEEP

OWN, PUBLISHED = 'out/results', 'results'  # where a comparison goes of itself, and those that RESULTS.md is about


@dataclass
class CompareConfig:
    arms: dict | None = key(None, "{name: 'config.py --flags'}, the baseline first")
    claim: str = key('{arm} has a lower loss than {baseline}', 'the sentence the verdict is about')
    note: str = key('', 'a paragraph for RESULTS.md')
    script: str = key('train.py', 'what trains an arm', choices=tuple(SCRIPTS))
    common: str = key('', "flags of every arm; an arm's own come later and win")
    steps: dict | None = key(None, "{name: 'config.py --flags' or 'transfer.py COMMAND --flags'}: what arms start from")
    shared_steps: bool = key(False, 'steps run once, with seed 1: intervals then hold for these sources only')
    horizons: tuple | dict = key(
        (),
        "runs of several lengths: shares of max_iters, for all arms or {arm: shares}; speed is against the baseline's longest",
    )
    tasks: str = key(
        '', "what evaluate.py measures of the runs that decide: 'wikitext2,lambada --limit=100'; empty: nothing"
    )
    sizes: dict | None = key(None, "{name: '--flags'}: every arm at every size; four or more give scaling laws")
    seeds: int = key(3, 'seeds 1, 2, ... that decide', low=1, high=SWEEP)
    learning_rates: tuple | dict = key(
        (), "rates to sweep, for all arms or {arm: rates}, or {arm or step: 'arm'} to take its rate; none: the config's"
    )
    sweep_seeds: int = key(2, 'seeds per rate of the sweep, other ones than those that decide', low=1)
    extend: int = key(2, 'rates to add where the best one is on the edge of the sweep', low=0)
    metric: str = key('val_loss', 'key of the logged evaluations; lower is better')
    at: str = key('last', 'the last evaluation, or the best one of each run', choices=('last', 'best'))
    worth: float = key(0.01, 'the smallest gain in the metric that would matter', above=0)
    target: float | None = key(None, 'metric to which speed is compared; none: the worst figure of all runs')
    match: str = key('tokens', 'what arms have in common', choices=('params', 'flops', 'tokens', 'time'))
    mismatch: dict | None = key(None, "{arm: 'reason'} for arms that are off by more than 1%, or see other data")
    bench: bool = key(True, 'train.py: time the steps of all arms, alone and in turns, before the runs')
    cluster: str = key(
        'local',
        'local starts a process for each run; pool keeps them for one run after the other, which compile once: for many'
        ' runs of seconds; slurm submits a job for each (submitit); none: the old name of local',
        choices=('local', 'slurm', 'none', 'pool'),
    )
    jobs: int = key(0, 'runs at once; 0: 4 per GPU (small runs leave it idle), or one per CPU core up to 8', low=0)
    minutes: int = key(240, 'time limit of a run under Slurm', low=1)
    partition: str = key('', 'of Slurm')
    keep_checkpoints: bool = key(False, 'keep ckpt.pt and best.pt of finished runs')
    name: str = key('', "name of the folders under results and out; empty: the config file's")
    results: str = key(
        '',
        f'where logs, table, plots and page go, in <name>/; empty: {OWN}, and for report and check {PUBLISHED}, whose'
        ' comparisons RESULTS.md is about',
    )
    out: str = key('out/compare', 'where runs are trained, in <name>/')
    report: bool = key(False, 'only rewrite RESULTS.md, tables, plots and pages from the logs')
    show: str = key('', 'only print the tables of such a folder of results')
    check: bool = key(False, 'only check RESULTS.md and the documents against the logs')

    def __post_init__(self):
        self.results = self.results or (PUBLISHED if self.report or self.check else OWN)
        self.arms, self.steps, self.sizes = self.arms or {}, self.steps or {}, self.sizes or {}
        self.mismatch = self.mismatch or {}

    def problems(self):
        found = []
        if not (self.report or self.check or self.show) and len(self.arms) < 2:
            found.append('arms: give at least two in a config file, the baseline first; see config/compare/')
        for name in [*self.arms, *self.steps, *self.sizes]:
            if not isinstance(name, str) or not name or set(name) & set('/@ |{}'):
                found.append(f"arms, steps, sizes: '{name}': must be a text without space, /, @, | or braces")
        found += [f'steps: {name}: is an arm as well; choose another name' for name in self.steps if name in self.arms]
        if self.sizes and self.horizons:
            found.append('horizons: not together with sizes; name each length as a size')
        for shares in self.horizons.values() if isinstance(self.horizons, dict) else [self.horizons]:
            if not isinstance(shares, tuple | list) or not all(isinstance(h, int | float) and h > 0 for h in shares):
                found.append(f'horizons: {shares!r}: must be shares of max_iters in a tuple, such as (0.5, 1)')
        if '/' in self.name or self.name in ('.', '..'):
            found.append(f"name = '{self.name}': must be the name of a folder, without /")
        for field in ('learning_rates', 'mismatch', 'horizons'):
            there = [*self.arms, *(self.steps if field == 'learning_rates' else ())]
            given = getattr(self, field)
            if isinstance(given, dict) and (odd := [a for a in given if a not in there]):
                found.append(f'{field}: {", ".join(odd)}: no such arm; there is: {", ".join(there)}')
        return found


# -----------------------------------------------------------------------------
# running


class Comparison:
    """The state of one comparison: its folders, the records of the runs that are over, the checkpoints that are
    there."""

    def __init__(self, cfg, plans: list[Plan]):
        self.cfg, self.plans = cfg, plans
        self.folder, self.out = root_path(cfg.results) / cfg.name, root_path(cfg.out) / cfg.name
        self.records, self.failed_write = {}, ''
        self.batched = any(f.name == 'seeds' for f in dataclasses.fields(plans[0].cfg))
        self.settings, self.asked, self.started = {}, {}, {}
        names = {n for p in plans for n in p.refers_to}
        self.sources = {i for i, p in enumerate(plans) if p.arm.removeprefix('steps/') in names}
        self.there = {}  # run: its checkpoint, which others may start from

    def wanted(self) -> list[Run]:
        """What can be started now: missing runs, or where their checkpoints are not there the runs that make these."""
        self.read_back()
        return self.ready()

    def ready(self) -> list[Run]:
        missing, found = Missing(self.cfg, self.plans, self.records), {}

        def visit(r: Run):
            absent = [n for n in missing.needs(r) if n is None or n.name not in self.there]
            for n in absent:
                if n:
                    visit(n)
            if not absent:
                found[r.name] = r

        for r in missing.runs.values():
            visit(r)
        return list(found.values())

    def argv(self, r: Run) -> list[str]:
        p = self.plans[r.plan]
        return [*p.argv, *flags(self.plans, p, r.lr, r.seed)]

    def run_settings(self, r: Run) -> dict:
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
        for name, r in records.read_records(self.folder).items():
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
        self.out.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.out / 'compare.lock', os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_SH)

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
        try:
            argv = json.loads((self.job_folder(r) / 'argv.json').read_text())
        except (OSError, ValueError):
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
        found = read(folder, r.name, p.arm, p.size, r.lr, r.seed, mine)
        if not found:
            return False
        if r.plan in self.sources and found['state'] == 'finished':
            if not self.checkpoint(r).exists():
                return False
            self.there[r.name] = self.checkpoint(r)
        elif not p.is_arm and found['state'] == 'diverged':
            return False  # nothing can start from it
        elif not self.cfg.keep_checkpoints:
            drop(folder)
        self.records[r.name] = found
        return True

    def write(self):
        """What is over goes to self.folder at once. A disk that is full now may not be later: the runs go on."""
        try:
            records.write_records(self.folder, records.read_records(self.folder) | self.records)
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
        needed = Missing(self.cfg, self.plans, self.records).needs(r)
        paths = {name: str(self.checkpoint(n)) for name, n in zip(p.refers_to, needed)}
        argv = [REFERENCE.sub(lambda m: paths[m[1]], a) for a in self.argv(r)]
        out = {'transfer.py': f'--out={folder}/ckpt.pt', 'evaluate.py': f'--out={folder}/eval.json'}
        argv.append(out.get(p.script, f'--out_dir={folder}'))
        if self.batched:
            argv.append('--seeds=' + ','.join(str(r.seed) for r in runs))
        return [sys.executable, str(ROOT / p.script), *argv]

    def start(self, engine):
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


class Live:
    """The table that shows where a comparison stands, redrawn in place on a terminal."""

    def __init__(self, comparison: Comparison):
        self.c, self.lines, self.last, self.t0 = comparison, 0, 0.0, time.time()

    def __call__(self, running: dict):
        if not sys.stdout.isatty() or time.time() - self.last < 1:
            return
        self.last = time.time()
        text = self.text(running)
        up = f'\x1b[{self.lines}F\x1b[J' if self.lines else ''
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in text.splitlines()]
        print(up + '\n'.join(lines), flush=True)
        self.lines = len(lines)

    def text(self, running: dict) -> str:
        c, rows = self.c, []
        missing = {*wanted(c.cfg, c.plans, c.records), *c.ready()}
        for i, p in enumerate(c.plans):
            over = [r for r in c.records.values() if (r['arm'], r['size']) == (p.arm, p.size)]
            chosen = tables.choose(over, c.cfg.metric, c.cfg.at) if p.is_arm else None
            deciding = [r for r in over if chosen and r['seed'] <= SWEEP and r['lr'] == chosen[0]]
            figures = [tables.value(r, c.cfg.metric, c.cfg.at) for r in deciding]
            rows.append(
                f'{p.name:24} {len(over):3} over, {sum(r.plan == i for r in missing):3} known to come'
                + (f', best rate so far {chosen[0]:g}' if chosen and len(chosen[2]) > 1 else '')
                + (f', {c.cfg.metric} {sum(figures) / len(figures):.4f} (n={len(figures)})' if figures else '')
            )
        for name in running:
            rows.append(f'  {name:30} {last_line(c.out / name)}')
        minutes, seconds = divmod(int(time.time() - self.t0), 60)
        return '\n'.join([*rows, f'{minutes}:{seconds:02} running' + (f'; {c.failed_write}' if c.failed_write else '')])


def last_line(folder: Path) -> str:
    """What a running run logged last."""
    try:
        with open(folder / 'metrics.jsonl', 'rb') as f:
            f.seek(0, os.SEEK_END)
            f.seek(max(0, f.tell() - 2000))
            for text in reversed(f.read().decode(errors='replace').splitlines()):
                try:
                    m = json.loads(text)
                    return f'iter {m["iter"]}, loss {m.get("loss", m.get("val_loss", 0)):.4f}'
                except (ValueError, KeyError, TypeError):
                    continue
    except OSError:
        pass
    try:  # a script that trains several seeds at once
        return (folder / 'output.txt').read_text(errors='replace').splitlines()[-1]
    except (OSError, IndexError):
        return 'starting'


def bench(cfg, plans: list[Plan], folder: Path, out: Path, engine) -> dict:
    """{cell: ms per step}, every arm and step alone on the machine and in turns, what has the same shapes once. Kept in
    <results>/<name>/bench.jsonl. Left out is what takes its shapes or a teacher from a checkpoint."""
    cells = {}  # flags: cells
    for p in plans:
        if p.known:
            fixed = [a for a in p.argv if not a.startswith(('--init_from=transfer', '--transfer_')) or not p.refers_to]
            length = (
                ('--max_iters=', '--lr_decay_iters=') if cfg.horizons else ()
            )  # a step takes as long in all of them
            cells.setdefault(' '.join(a for a in fixed if not a.startswith(length)), []).append(p.name)
    rows = records.read_lines(folder / 'bench.jsonl')
    if [r.get('arm') for r in rows] != list(cells):
        fresh = out / f'bench-{zlib.crc32(json.dumps(list(cells)).encode())}.jsonl'
        command = [sys.executable, str(ROOT / 'bench.py')]
        for i, arm in enumerate(cells):
            command += [*(['--'] if i else []), *arm.split(), *([] if i else [f'--out={fresh}'])]
        print(f'timing the steps of {len(cells)} arms, alone', flush=True)
        failed = launch.run_all(
            lambda: [] if fresh.exists() else [('bench', out / 'bench', command)],
            lambda name, code: '' if fresh.exists() else f'exit code {code}',
            engine, 1, tries=1,
        )  # fmt: skip
        if failed:
            raise UserError(f'bench.py failed: {failed["bench"]} ({out / "bench" / "output.txt"}); or --bench=false')
        rows = [r | dict(arm=a, cells=cells[a]) for r, a in zip(records.read_lines(fresh), cells)]
        write(folder / 'bench.jsonl', ''.join(json.dumps(r) + '\n' for r in rows).encode())
    return {cell: r['ms'] for r in rows for cell in r.get('cells', [r.get('cell')])}


def compare(cfg):
    plans = make_plans(cfg)
    state = Comparison(cfg, plans)
    try:
        state.enter()
    except OSError as e:
        raise UserError(f'cannot make the folder {state.out} ({e.strerror}); choose another --out') from None
    published = root_path(PUBLISHED) / cfg.name
    if published.exists() and published != state.folder:
        print(
            f'NOTE: {PUBLISHED}/{cfg.name} holds published runs of that name, which are not used; --results={PUBLISHED} goes on with them'
        )
    jobs = cfg.jobs or (4 * len(launch.gpus()) or min(8, os.cpu_count() or 1))
    if cfg.cluster == 'slurm' and not importlib.util.find_spec('submitit'):
        raise UserError('cluster = slurm: submitit is not installed; pip install submitit')
    if cfg.steps and state.batched:
        raise UserError(f'steps: {cfg.script} trains its seeds at once and starts from nothing; leave them out')
    for task in set(cfg.tasks.split(' ')[0].split(',')) & set(evaluate.SOURCES):
        evaluate.read_source(task)  # a text that cannot be had is found out before anything is trained
    for name, r in records.read_records(state.folder).items():  # nothing starts beside runs of another comparison
        for i, p in enumerate(plans):
            if (r['arm'], r['size']) == (p.arm, p.size):
                mine = state.run_settings(Run(i, r['lr'], r['seed'], name))
                if r['settings'] != mine:
                    raise UserError(
                        f'{state.folder / "metrics.jsonl"} holds {name} with other settings'
                        f' ({difference(r["settings"], mine)}); choose another --name, or delete that folder'
                    )
    if cfg.cluster == 'slurm' and not launch.gpus():
        print('NOTE: no GPU here: a config that chooses its preset by GPU is matched here without, run there with one')
    engine = launch.engine(cfg.cluster, jobs, state.out / 'submitit', cfg.minutes, cfg.partition)
    timed = cfg.script == 'train.py' and (cfg.bench or cfg.match == 'time')
    if not timed and cfg.match == 'time':
        raise UserError("match = 'time': only arms of train.py are timed; match = 'tokens' and read the seconds")
    if cfg.match != 'time':
        check_match(cfg, plans, {})
    cluster, threads = cfg.cluster.replace('pool', 'local'), max(1, (os.cpu_count() or 1) // jobs)  # as the runs have
    alone = launch.engine(cluster, 1, state.out / 'submitit', cfg.minutes, cfg.partition, threads)
    if timed:
        ms = bench(cfg, plans, state.folder, state.out, alone)
        if cfg.match == 'time':
            check_match(cfg, plans, ms)
    described = {k: v for k, v in dataclasses.asdict(cfg).items() if k in KEPT}
    write_json(state.folder / 'comparison.json', described | dict(command=said()))

    failed = launch.run_all(state.jobs, state.done, state.start(engine), jobs, Live(state))
    state.write()
    if state.failed_write:
        raise UserError(f'{state.failed_write}; the runs are safe in {state.out}; the same command goes on')
    if state.records:
        try:
            report.write_comparison(state.folder)
        except (ImportError, UserError) as e:
            print(
                f'{e}: no table here; the logs are in {state.folder}, python compare.py --report where it is installed'
            )
        else:
            print(report.shown(state.folder) + f'\nwrote {state.folder}/: table.md, plots, index.html')
    if failed:
        print('\n'.join(f'failed: {name}: {wrong}' for name, wrong in failed.items()), file=sys.stderr)
        sys.exit(1)


KEPT = ('arms', 'claim', 'note', 'script', 'common', 'sizes', 'seeds', 'learning_rates', 'sweep_seeds', 'metric', 'at',
        'worth', 'target', 'match', 'mismatch', 'steps', 'shared_steps', 'horizons', 'tasks')  # fmt: skip


def said() -> str:
    """The command without the flags that say where it ran."""
    where = ('--cluster', '--jobs', '--minutes', '--partition', '--results', '--out', '--keep')
    return shlex.join(['python', 'compare.py', *(a for a in sys.argv[1:] if not a.startswith(where))])


def main():
    argv = sys.argv[1:]
    cfg = load(CompareConfig, argv)
    results = root_path(cfg.results)
    if cfg.show:
        print(printable(report.shown(input_path(cfg.show))))
    elif cfg.check:
        if wrong := report.check(results):
            raise UserError('\n'.join(wrong) + '\nafter a change of the logs: python compare.py --report')
        print('RESULTS.md and the documents agree with the logs')
    elif cfg.report:
        if not any(results.glob('*/comparison.json')):
            raise UserError(
                f'results = {cfg.results}: holds no comparison (*/comparison.json), RESULTS.md stays as it is'
            )
        for folder in sorted(p.parent for p in results.glob('*/comparison.json')):
            c, found = tables.load(folder)
            if not c['claim']:
                continue  # only --show shows it
            if found:
                report.write_comparison(folder)
            else:
                print(f'{folder.name}: no finished run yet')
        write(results.parent / 'RESULTS.md', report.results_md(results).encode())
        print(f'wrote {results.parent / "RESULTS.md"}')
    else:
        files = [a for a in argv if a.endswith('.py') and not a.startswith('--')]
        compare(
            dataclasses.replace(cfg, name=cfg.name or input_path(files[-1]).stem if files else cfg.name or 'compare')
        )


if __name__ == '__main__':
    run(main, interrupted='interrupted; the same command goes on from here')
