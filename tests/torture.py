"""
Runs that are killed again and again, and must end as if nothing had happened: the same losses and weights, to the bit.

    make torture                            200 kills over all kinds of runs; prints a line for each
    python tests/torture.py --kills=50 dense rotating

A run is a child of a process that has imported all it needs. It trains a tiny model and writes a checkpoint every other
iteration. It is killed after a random time, or during a write: as it opens or renames a temporary file or up to 3 ms
after that. Then it is started again as a user would, with --init_from=resume where there is a checkpoint. tests/test_kills.py does a few of these in make test.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # a process with threads cannot be forked
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from configurator import UserError, load  # noqa: E402
from surgery import reader  # noqa: E402
from tokens import loader  # noqa: E402
from train import TrainConfig, train  # noqa: E402

COMMON = [
    '--dataset=shakespeare_char', '--device=cpu', '--block_size=16', '--batch_size=2', '--gradient_accumulation_steps=1',
    '--n_layer=2', '--n_head=2', '--n_embd=16', '--dropout=0.1', '--eval_iters=1', '--eval_interval=2', '--log_interval=1',
    '--learning_rate=1e-2', '--min_lr=1e-3', '--warmup_iters=2', '--lr_decay_iters=16', '--max_iters=16',
]  # fmt: skip
MEMORY = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None  # files in memory: to sync them costs nothing
EXPANDED = ['--linear=expanded', '--expansion=64', '--expansion_init=orthogonal']
KINDS = {
    'dense': [],
    'expanded': EXPANDED,
    'structured': ['--linear=btt', '--linear_layers=mlp+attn', '--structured_norm=true'],
    'rotating': [*EXPANDED, '--expansion_schedule=rotate', '--expansion_every=3', '--expansion_moments=map'],
    'guided': ['--linear=low_rank', '--guide_iters=9'],
    'growing': ['--init_from=transfer', '--transfer_from={source}', '--transfer_method=clone+stack', '--transfer_noise=0.3',
                '--n_layer=4', '--n_embd=32', '--n_head=4'],
    'distilling': ['--distill_from={source}'],
    'mixture': ['--mlp=moe', '--experts=4'],
    'accumulation': ['--gradient_accumulation_steps=3'],
    'wsd': ['--schedule=wsd', '--wsd_decay_iters=6'],
}  # fmt: skip


def end_in_a_write(step: int, after: float):
    """Let this process die, without a word, so many seconds after it began this step of its writes."""

    def hook(event, args):
        nonlocal step
        if event in ('open', 'os.rename') and '.tmp' in str(args[0]):
            step -= 1
            if not step:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, after)

    sys.addaudithook(hook)


def child(argv: list[str], log: Path, write: tuple | None = None) -> int:
    """A run in a process of its own; its pid. write: (step, seconds) of end_in_a_write."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if write:
            end_in_a_write(*write)
        train(load(TrainConfig, argv))
        code = 0
    except UserError as e:
        print(f'error: {e}', flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def argv_of(kind: str, out: Path, source: Path) -> list[str]:
    flags = [f.replace('{source}', str(source)) for f in KINDS[kind]]
    resume = ['--init_from=resume'] if (out / 'ckpt.pt').exists() else []
    if resume:
        flags = [f for f in flags if not f.startswith(('--init_from', '--transfer_'))]
    return [*COMMON, *flags, *resume, f'--out_dir={out}']


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(argv, log: Path, out: Path, rng: random.Random, seconds: float) -> str:
    """Start the run and kill it; where it was: 'write' if it left a temporary file, else 'step', or 'over' if it had ended
    before. AssertionError if it ended in an error."""
    in_write = rng.random() < 0.5
    pid = child(argv, log, (rng.randrange(1, 20), rng.choice([1e-6, 3e-3 * rng.random()])) if in_write else None)
    end, before = time.time() + rng.random() * seconds, {p.name for p in out.glob('*.tmp*')}
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and not in_write and time.time() > end:
            os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGKILL, -signal.SIGALRM):
                raise AssertionError(f'the run ended by itself with exit code {code}')
            left = {p.name for p in out.glob('*.tmp*')} - before
            return 'over' if not code else 'write' if left else 'step'
        time.sleep(1e-3)


def result(out: Path) -> dict:
    """What must be equal to the bit: weights, moments, and the losses of every line of the log."""
    ckpt = torch.load(out / 'ckpt.pt', weights_only=True)
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    times = ('seconds', 'ms', 'tokens_per_s', 'mfu')
    return dict(
        model=ckpt['model'],
        optimizer=ckpt['optimizer'],
        iter=ckpt['iter_num'],
        position=ckpt['position'],
        best=ckpt['best_val_loss'],
        log=[{k: v for k, v in line.items() if k not in times} for line in lines],
    )


def difference(a, b, where='') -> str:
    """The first place where two results differ; '' if there is none."""
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f'{where}: {sorted(set(a) ^ set(b))}'
        return next((d for k in a if (d := difference(a[k], b[k], f'{where}/{k}'))), '')
    if isinstance(a, list):
        if len(a) != len(b):
            return f'{where}: {len(a)} and {len(b)} lines'
        return next((d for i, (x, y) in enumerate(zip(a, b)) if (d := difference(x, y, f'{where}/{i}'))), '')
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or a != a and b != b
    return '' if same else f'{where}: {a if not isinstance(a, torch.Tensor) else "tensors"} and {b}'[:200]


def prepared(folder: Path) -> Path:
    """A checkpoint to grow or distil from. Reading it imports what a resumed run needs, once for all children."""
    source = folder / 'source' / 'ckpt.pt'
    if not source.exists():
        log = folder / 'source.txt'
        assert wait(child([*COMMON, '--max_iters=6', f'--out_dir={source.parent}'], log)) == 0, log.read_text()
        reader.load(source)
    return source


def torture(kind: str, kills: int, folder: Path, seed: int = 0) -> dict:
    """Kill a run of this kind so often; {where: how many kills}. Raises AssertionError where its end is another one."""
    rng, source = random.Random(f'{kind} {seed}'), prepared(folder)
    whole, count, log = folder / f'{kind}-whole', dict(step=0, write=0), folder / f'{kind}.txt'
    t0 = time.time()
    assert wait(child(argv_of(kind, whole, source), log)) == 0, log.read_text()[-2000:]
    seconds, wanted, rounds = time.time() - t0, result(whole), 0
    while sum(count.values()) < kills:
        out, rounds = folder / f'{kind}-{rounds}', rounds + 1
        while True:
            try:
                where = killed(argv_of(kind, out, source), log, out, rng, 0.8 * seconds)
            except AssertionError as e:
                raise AssertionError(f'{kind}: {e}; {log.read_text()[-2000:]}') from None
            if where == 'over':
                break
            count[where] += 1
            if sum(count.values()) >= kills:
                assert wait(child(argv_of(kind, out, source), log)) == 0, log.read_text()[-2000:]
                break
        if wrong := difference(wanted, result(out)):
            raise AssertionError(f'{kind}: the end differs after kills, {wrong}')
        shutil.rmtree(out)
    return count


def line(kind: str, kills: int, folder: Path) -> bool:
    """Torture runs of a kind and print what came out; whether all was well."""
    t0 = time.time()
    try:
        count = torture(kind, kills, folder)
    except AssertionError as e:
        print(f'{kind:14} FAILED: {e}', flush=True)
        return False
    what = f'{sum(count.values()):4} kills, {count["write"]} of them inside a write: the same to the bit'
    print(f'{kind:14} {what} ({time.time() - t0:.0f} s)', flush=True)
    return True


def main():
    """The kinds are shared out among two processes."""
    kinds = [a for a in sys.argv[1:] if not a.startswith('--')] or list(KINDS)
    kills = -(-int(next((a[8:] for a in sys.argv[1:] if a.startswith('--kills=')), 200)) // len(kinds))
    loader.prepare('shakespeare_char')
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        prepared(Path(folder))
        sys.stdout.flush()
        pids = []
        for part in range(2):
            pids.append(os.fork())
            if not pids[-1]:
                os._exit(not all([line(kind, kills, Path(folder)) for kind in kinds[part::2]]))
        sys.exit(max(map(abs, map(wait, pids))) and 1)


if __name__ == '__main__':
    main()
