"""
Runs that are killed again and again, and must end as if nothing had happened: the same losses and weights, to the bit.

    make torture                            200 kills over all kinds of runs; prints a line for each
    python tests/torture.py --kills=50 dense rotating

A run is a child of this process that trains a tiny model and writes a checkpoint every other iteration. It gets SIGKILL
after a random time, or in the middle of a write: as soon as a temporary file is seen. Then it is started again as a user
would, with --init_from=resume where there is a checkpoint. tests/test_kills.py does a few of these in make test.
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
from tokens import loader  # noqa: E402
from train import TrainConfig, train  # noqa: E402

COMMON = [
    '--dataset=shakespeare_char', '--device=cpu', '--block_size=16', '--batch_size=2', '--gradient_accumulation_steps=1',
    '--n_layer=2', '--n_head=2', '--n_embd=16', '--dropout=0.1', '--eval_iters=1', '--eval_interval=2', '--log_interval=1',
    '--learning_rate=1e-2', '--min_lr=1e-3', '--warmup_iters=2', '--lr_decay_iters=16', '--max_iters=16',
]  # fmt: skip
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


def child(argv: list[str], log: Path) -> int:
    """A run in a process of its own; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
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


def killed(pid: int, out: Path, rng: random.Random, seconds: float) -> str:
    """Kill the run; where it was: 'write', 'step', or 'over' if it had ended before. The code of an error is raised."""
    end, in_write = time.time() + rng.random() * seconds, rng.random() < 0.5
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if code := os.waitstatus_to_exitcode(status):
                raise AssertionError(f'the run ended by itself with exit code {code}')
            return 'over'
        writing = in_write and any('.tmp' in p.name for p in out.glob('*'))
        if writing or time.time() > end and not (in_write and time.time() < end + seconds):
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            return 'write' if writing else 'step'


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


def torture(kind: str, kills: int, folder: Path, seed: int = 0) -> dict:
    """Kill a run of this kind so often; {where: how many kills}. Raises AssertionError where its end is another one."""
    rng, source = random.Random(f'{kind} {seed}'), folder / 'source' / 'ckpt.pt'
    if not source.exists():
        assert wait(child([*COMMON, '--max_iters=6', f'--out_dir={source.parent}'], folder / 'source.txt')) == 0
    whole, count, log = folder / f'{kind}-whole', dict(step=0, write=0), folder / f'{kind}.txt'
    t0 = time.time()
    assert wait(child(argv_of(kind, whole, source), log)) == 0, log.read_text()[-2000:]
    seconds, wanted, rounds = time.time() - t0, result(whole), 0
    while sum(count.values()) < kills:
        out, rounds = folder / f'{kind}-{rounds}', rounds + 1
        while True:
            try:
                where = killed(child(argv_of(kind, out, source), log), out, rng, 0.8 * seconds)
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


def main():
    kinds = [a for a in sys.argv[1:] if not a.startswith('--')] or list(KINDS)
    kills = int(next((a[8:] for a in sys.argv[1:] if a.startswith('--kills=')), 200))
    loader.prepare('shakespeare_char')
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            t0 = time.time()
            try:
                count = torture(kind, -(-kills // len(kinds)), Path(folder))
                print(f'{kind:14} {sum(count.values()):4} kills, {count["write"]} of them inside a write: the same to the bit'
                      f' ({time.time() - t0:.0f} s)', flush=True)  # fmt: skip
            except AssertionError as e:
                failed += 1
                print(f'{kind:14} FAILED: {e}', flush=True)
    sys.exit(min(failed, 1))


if __name__ == '__main__':
    main()
