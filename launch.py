"""
Many processes, N at once, on this machine or on Slurm: how compare.py, race.py and compress.py start their runs.

    python launch.py FOLDER COMMAND...   what is started: COMMAND in place of this process, output in FOLDER/output.txt

FOLDER/lock is held (flock) for as long as COMMAND lives, so that no run is ever trained twice at once, whoever was
started twice or left behind.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from configurator import ROOT, UserError

LOCKED = 75  # exit code: another process is at this run


def main():
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(LOCKED)
    if over(folder):  # another compare.py got there first
        sys.exit(0)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    if 'SLURM_JOB_ID' not in os.environ and os.getpid() != os.getsid(0):
        os.setsid()  # Ctrl-C reaches compare.py only, which stops its runs in order
    out = os.open(folder / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.set_inheritable(lock, True)
    os.execv(command[0], command)


def over(folder: Path) -> bool:
    """Whether the run in folder went to its end."""
    try:
        manifest, config = (json.loads((folder / f).read_text()) for f in ('manifest.json', 'config.json'))
        return bool(manifest.get('finished')) and manifest['final_iter'] >= config['max_iters']
    except (OSError, ValueError, KeyError, TypeError):
        return False


def holder(folder: Path) -> int | None:
    """The process that is at work in folder, if there is one on this machine."""
    try:
        lock = os.open(folder / 'lock', os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return int(os.pread(lock, 20, 0) or 0) or None
    finally:
        os.close(lock)


# -----------------------------------------------------------------------------
# engines: start(command, folder, slot) -> (poll, stop). poll() is None, or the exit code; stop() says if it could


def gpus() -> list[str]:
    if 'CUDA_VISIBLE_DEVICES' in os.environ:
        return [g for g in os.environ['CUDA_VISIBLE_DEVICES'].split(',') if g]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def engine(cluster: str, jobs: int, folder: Path, minutes: int = 60, partition: str = ''):
    """start() for cluster = none, local or slurm; the slots of local runs are dealt out over the GPUs."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    share = dict(OMP_NUM_THREADS=threads, TORCHINDUCTOR_COMPILE_THREADS=threads)  # each would take the whole machine
    devices = gpus() if cluster != 'slurm' else []

    def stop_in(run: Path) -> bool:
        if pid := holder(run):
            os.kill(pid, signal.SIGTERM)
        return bool(pid)

    def none(command, run, slot):
        env = os.environ | share
        if devices:
            env['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
        p = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        return p.poll, lambda: stop_in(run)

    def submit(command, run, slot):
        import submitit

        executor = submitit.AutoExecutor(folder=str(folder), cluster=cluster)
        executor.update_parameters(timeout_min=minutes, name='nanomorph')
        if cluster == 'slurm':
            executor.update_parameters(gpus_per_node=1, cpus_per_task=8)
            if partition:
                executor.update_parameters(slurm_partition=partition)
        elif devices:
            executor.update_parameters(gpus_per_node=1, visible_gpus=[int(devices[slot % len(devices)])])
        else:
            executor.update_parameters(gpus_per_node=0)
        if cluster == 'local':
            os.environ.update(share)
        # a controller that inherits "ignore" outlives the terminal's Ctrl-C, and sees its run to the saved checkpoint
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            job = executor.submit(subprocess.call, command)
        finally:
            signal.signal(signal.SIGINT, before)

        def poll():
            if not job.done():
                return None
            try:
                return job.result()
            except Exception:  # submitit has no result: the job was killed, or its machine
                return 1

        return poll, lambda: stop_in(run) if cluster == 'local' else not job.cancel(check=False)

    return none if cluster == 'none' else submit


def run_all(todo, done, start, jobs: int, show=lambda running: None, tries: int = 2):
    """Run what todo() lists (it is asked again whenever a run ends) until it lists nothing that is left to do.

    todo() -> [(name, folder, command)]; done(name, exit code) -> '' if the run is over, else what went wrong; a run
    that broke is tried again, one that ends with exit code 2 (a user's mistake) is not.
    Returns {name: what went wrong}. Ctrl-C and SIGTERM stop the runs, wait until they have saved, and go on up."""
    running, failed, attempts, wait, left = {}, {}, {}, {}, None

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
            for name, folder, command in ready[: jobs - len(running)]:
                slot = min(set(range(jobs)) - {r[0] for r in running.values()})
                full = [sys.executable, str(ROOT / 'launch.py'), str(folder), *command]
                left = [r for r in left if r[0] != name]
                try:
                    running[name] = (slot, *start(full, folder, slot))
                except (UserError, OSError) as e:  # a full disk
                    failed[name] = str(e)
            if not running and not left:
                return failed
            show(running)
            time.sleep(0.2)
            for name, (_, poll, _) in list(running.items()):
                if (code := poll()) is None:
                    continue
                del running[name]
                left = None
                if code == LOCKED:  # another compare.py, or one that was killed, has it in hand: look again later
                    wait[name] = time.time() + 2
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


def run_here(todo, done, jobs: int):
    """run_all on this machine, saying what is started. UserError with all that went wrong."""
    start = engine('none', jobs, ROOT)

    def say_and_start(full, folder, slot):
        script, *args = full[4:]
        print(f'{folder.name}: python {Path(script).name} {shlex.join(args)}', flush=True)
        return start(full, folder, slot)

    try:
        failed = run_all(todo, done, say_and_start, jobs)
    except KeyboardInterrupt:
        print('interrupted; start again to go on: nothing is repeated', flush=True)
        sys.exit(130)
    if failed:
        wrong = [f'{name}: {why}' for name, why in failed.items()]
        raise UserError('\n'.join([*wrong, 'mend the above and start again: nothing is repeated']))


def last_words(folder: Path, code: int) -> str:
    """How a run that broke ended."""
    path = folder / 'output.txt'
    last = path.read_text(errors='replace').strip().splitlines()[-1:] if path.exists() else []
    return f'exit code {code}: {(last or ["no output"])[0][:300]} (all of it in {path})'


def stop_all(running: dict):
    """Ask every run once to save and leave, and wait for it. A second Ctrl-C does not wait."""
    if running:
        print(f'\nstopping {len(running)} runs; they save their state first (Ctrl-C again: do not wait)', flush=True)
    asked = set()
    while alive := [(name, stop) for name, (_, poll, stop) in running.items() if poll() is None]:
        for name, stop in alive:
            if name not in asked and stop():  # not before it has taken its lock; twice would kill it while it saves
                asked.add(name)
        time.sleep(0.2)


if __name__ == '__main__':
    main()
