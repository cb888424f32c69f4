"""
How compare.py starts its runs: many processes, N at once, on this machine or on Slurm.

    python -m lab.launch FOLDER COMMAND...   runs COMMAND in place of this process, output in FOLDER/output.txt
    python -m lab.launch pool                runs one such command after the other in the same process

FOLDER/lock is held (files.lock) while COMMAND lives. So no run is ever trained by two processes at once, even if
compare.py was started twice, or left a process behind.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import weakref
from pathlib import Path

import files
from configurator import ROOT, UserError
from files import holder

LOCKED = 75  # exit code: another process is at this run
LOOK, LOOK_AGAIN = 0.2, 2  # seconds between looks at runs, and at a run that another process is at


def main():
    if sys.argv[1:] == ['pool']:
        return pool()
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    lock = begin(folder)
    if 'SLURM_JOB_ID' not in os.environ and os.getpid() != os.getsid(0):
        os.setsid()  # Ctrl-C reaches compare.py only, which stops its runs in order
    os.set_inheritable(lock, True)
    os.execv(command[0], command)


def begin(folder: Path) -> int:
    """Take FOLDER/lock and send the output of this process to FOLDER/output.txt. Raises SystemExit where there is
    nothing to do: LOCKED if another process is at this run, 0 if it is over."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = files.lock(folder)
    if lock is None:
        sys.exit(LOCKED)
    if over(folder):  # another compare.py got there first
        os.close(lock)
        sys.exit(0)
    os.environ[files.HELD] = str(folder.resolve())  # train.py, which this process becomes, must not wait for itself
    out = os.open(folder / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
    return lock


def pool():
    """Do the runs that stdin names, a JSON line [folder, python, script, flags...] each, and answer each with [its exit
    code, whether this process leaves]. Imports, the GPU's context and the compiler's graphs, which take longer than a run
    of seconds, are then needed only once. After a run that failed, or kept memory of the GPU, another process goes on."""
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    while line := sys.stdin.readline():
        folder, _, script, *argv = json.loads(line)
        code = one(Path(folder), Path(script).relative_to(ROOT), argv)
        gc.unfreeze()  # train.py froze what it had built
        gc.collect()
        kept, torch = 0, sys.modules.get('torch')  # if the run has loaded it
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            kept = torch.cuda.memory_allocated()
        leave = code not in (0, LOCKED) or kept > 2**30
        print(json.dumps([code, leave]), file=answers)
        if leave:
            return


def one(folder: Path, script: Path, argv: list[str]) -> int:
    """A run in this process, by the script's main(), as `python script argv` would be; its exit code."""
    from configurator import run

    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the run before has left its handlers
        signal.signal(s, signal.SIG_DFL)
    lock = None
    try:
        lock = begin(folder)
        module = importlib.import_module('.'.join(script.with_suffix('').parts))
        if 'torch' in sys.modules:
            import torch._dynamo

            # all runs share the code of forward, and each is compiled as if it were alone (lab/steps.py: side_by_side)
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
            torch._dynamo.config.automatic_dynamic_shapes = False
        sys.argv = [str(ROOT / script), *argv]
        run(module.main)
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ.pop(files.HELD, None)
        if lock is not None:
            os.close(lock)
    return 0


def over(folder: Path) -> bool:
    """Whether the run in folder reached its end, or patience ended it; for a command, whether its last file is there."""
    if any((folder / name).exists() for name in ('ckpt.json', 'eval.json')):
        return True
    try:
        manifest, config = (files.read_json(folder / f, {str: object}) for f in ('manifest.json', 'config.json'))
        ended = manifest['final_iter'] >= config['max_iters'] or manifest.get('out_of_patience', False)
        # an interrupted run may be at max_iters, but lacks the evaluation there
        return bool(manifest.get('finished')) and ended and not manifest.get('interrupted', False)
    except (UserError, KeyError, TypeError):
        return False


def forget(folder: Path):
    """Mark the run in folder as not done: its checkpoint is needed, but was deleted."""
    for name in ('manifest.json', 'ckpt.json', 'eval.json'):
        (folder / name).unlink(missing_ok=True)


# -----------------------------------------------------------------------------
# engines: start(command, folder, slot) -> (poll, stop). poll() is None, or the exit code; stop() says if it could


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [g for g in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if g]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def engine(cluster: str, jobs: int, folder: Path, minutes: int = 60, partition: str = '', threads: int = 0):
    """The function that starts runs for cluster = local (or its old name none), pool or slurm:

    start(command, folder of the run, slot) -> (poll, stop). poll() -> exit code, None while it runs; stop() asks it to save and
    leave -> whether it could be asked. Slots count the runs at once; those of this machine are dealt out over its GPUs.
    minutes, partition: of Slurm. threads: of each run; 0: an equal part of the cores."""
    each = max(1, (os.cpu_count() or 1) // jobs)  # of its own accord each would take the whole machine
    share = dict(OMP_NUM_THREADS=str(threads or each), TORCHINDUCTOR_COMPILE_THREADS=str(each))
    if jobs > 1:  # a thread that waits by spinning takes its core from the other runs
        share['OMP_WAIT_POLICY'] = os.environ.get('OMP_WAIT_POLICY', 'passive')
    os.environ['PYTHONPATH'] = os.pathsep.join(  # for -m, wherever the shell stands
        dict.fromkeys([str(ROOT), *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))])
    )
    devices = gpus() if cluster != 'slurm' else []

    def stop_in(run: Path) -> bool:
        if pid := holder(run):
            os.kill(pid, signal.SIGTERM)
        return bool(pid)

    def environment(slot):
        on = dict(CUDA_VISIBLE_DEVICES=devices[slot % len(devices)]) if devices else {}
        return dict(env=os.environ | share | on, start_new_session=True)

    def local(command, run, slot):
        p = subprocess.Popen(command, stdin=subprocess.DEVNULL, **environment(slot))
        return p.poll, lambda: stop_in(run)

    workers = {}  # slot: process

    def pooled(command, run, slot):
        if slot not in workers or workers[slot].poll() is not None:
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            workers[slot] = subprocess.Popen([*command[:3], 'pool'], **pipes, **environment(slot))
        p, code = workers[slot], []
        p.stdin.write(json.dumps(command[3:]) + '\n')
        p.stdin.flush()

        def poll():
            if not code and select.select([p.stdout], [], [], 0)[0]:
                answer = p.stdout.readline()
                result, leaves = json.loads(answer) if answer else (p.wait() or 1, True)  # no answer: it died
                code.append(result)
                if leaves:
                    del workers[slot]
            return code[0] if code else None

        return poll, lambda: stop_in(run)

    # they leave when nobody can give them work any more
    weakref.finalize(pooled, lambda: [p.stdin.close() for p in workers.values()])

    def submit(command, run, slot):
        import submitit

        executor = submitit.AutoExecutor(folder=str(folder), cluster='slurm')
        executor.update_parameters(timeout_min=minutes, name='nanomorph', gpus_per_node=1, cpus_per_task=8)
        if partition:
            executor.update_parameters(slurm_partition=partition)
        job = executor.submit(subprocess.call, command)

        def poll():
            if not job.done():
                return None
            try:
                return job.result()
            except Exception:  # submitit has no result: the job was killed, or its machine
                return 1

        return poll, lambda: not job.cancel(check=False)

    return dict(pool=pooled, slurm=submit).get(cluster, local)


def run_all(todo, done, start, jobs: int, show=lambda running: None, tries: int = 2):
    """Run what todo() lists until it lists nothing more. It is called again whenever a run ends.

    todo() -> [(name, folder, command)]; start: see engine(); done(name, exit code) -> '' if the run is over, else what went
    wrong. A run that broke is tried again; one that ends with exit code 2 (a user's mistake) is not.
    Returns {name: what went wrong}. Ctrl-C and SIGTERM stop the runs and wait until they have saved; then the exception
    is raised again."""
    running, failed, attempts = {}, {}, {}  # running: {name: (slot, poll, stop)}
    wait, last = {}, {}  # {name: when to look again}, {slot: arm of its last run}
    left = None  # what todo() listed and is not started yet; None: ask again

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        while True:
            if any(t < time.time() for t in wait.values()):
                wait, left = {name: t for name, t in wait.items() if t >= time.time()}, None
            if left is None:
                left = [r for r in todo() if r[0] not in failed and r[0] not in running]
            ready = [r for r in left if r[0] not in wait]
            for slot in sorted(set(range(jobs)) - {r[0] for r in running.values()}):
                if not ready:
                    break
                name, folder, command = next_for(slot, ready, last)
                last[slot] = cell(name)
                full = [sys.executable, '-m', 'lab.launch', str(folder), *command]
                left, ready = ([r for r in rs if r[0] != name] for rs in (left, ready))
                try:
                    running[name] = (slot, *start(full, folder, slot))
                except (UserError, OSError) as e:  # a full disk
                    failed[name] = str(e)
            if not running and not left:
                return failed
            show(running)
            time.sleep(LOOK)
            for name, (_, poll, _) in list(running.items()):
                if (code := poll()) is None:
                    continue
                del running[name]
                left = None
                if code == LOCKED:  # another compare.py, or one that was killed, has it in hand: look again later
                    wait[name] = time.time() + LOOK_AGAIN
                    done(name, None)
                elif wrong := done(name, code):
                    attempts[name] = attempts.get(name, 0) + 1
                    if code == 2 or attempts[name] >= tries:
                        failed[name] = wrong
    except BaseException:
        stop_all(running)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def cell(name: str) -> str:
    """The arm and size of a run: what is before its rate and seed."""
    return name.rsplit('/lr', 1)[0]


def next_for(slot: int, ready: list, last: dict) -> tuple:
    """The next run for this slot: of the arm that its process has compiled, else of an arm that no other process is at,
    else the first. last: the arm of each slot's last run."""
    own = [r for r in ready if cell(r[0]) == last.get(slot)]
    new = [r for r in ready if cell(r[0]) not in last.values()]
    return [*own, *new, *ready][0]


def last_words(folder: Path, code: int) -> str:
    """How a run that broke ended."""
    path = folder / 'output.txt'
    last = path.read_text(errors='replace').strip().splitlines()[-1:] if path.exists() else []
    return f'exit code {code}: {(last or ["no output"])[0][:300]} (all of it in {path})'


def stop_all(running: dict):
    """Ask every run once to save and leave, and wait for it. A second Ctrl-C does not wait."""
    if running:
        print(f'\nstopping {len(running)} runs; they save first what they keep (Ctrl-C again: do not wait)', flush=True)
    asked = set()
    while alive := [(name, stop) for name, (_, poll, stop) in running.items() if poll() is None]:
        for name, stop in alive:
            if name not in asked and stop():  # not before it has taken its lock; twice would kill it while it saves
                asked.add(name)
        time.sleep(LOOK)


if __name__ == '__main__':
    main()
