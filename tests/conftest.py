import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

# as many threads here as in the processes that tests start: runs are compared to the bit; one where two share the cores
os.environ['OMP_NUM_THREADS'] = '1' if 'PYTEST_XDIST_WORKER' in os.environ else '2'
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # as train.py: a thread that waits leaves its core to others
# the compiler believes what the CPU says it can do: else it starts a Python with torch to try each instruction set
os.environ.setdefault('TORCHINDUCTOR_VEC_ISA_OK', '1')

import pytest
import torch

from configurator import load, run
from logger import read_metrics
from model import GPT, GPTConfig
from tokens import loader, tokenizer
from train import TrainConfig, train

ROOT = Path(__file__).resolve().parents[1]

TINY = [
    '--dataset=shakespeare_char', '--block_size=32', '--batch_size=4', '--gradient_accumulation_steps=1',
    '--n_layer=2', '--n_head=2', '--n_embd=32', '--eval_iters=2', '--eval_interval=5', '--log_interval=1',
    '--learning_rate=1e-2', '--min_lr=1e-3', '--warmup_iters=2', '--lr_decay_iters=20', '--max_iters=10',
    '--device=cpu',
]  # fmt: skip


@pytest.fixture(scope='session', autouse=True)
def shakespeare():
    """The real text, prepared once as a user's first run would."""
    loader.prepare('shakespeare_char')


@pytest.fixture(autouse=True)
def denormal_numbers():
    """A run on a CPU flushes them (hardware.choose_device), in the whole process; the next test starts without."""
    torch.set_flush_denormal(False)


@pytest.fixture
def run_train(tmp_path):
    """Train a tiny model in this process: run_train('--max_iters=5') -> its out_dir."""

    def go(*flags, out='run'):
        train(load(TrainConfig, [*TINY, f'--out_dir={tmp_path / out}', *flags]))
        return tmp_path / out

    return go


@pytest.fixture
def fails(capsys):
    """fails(function, 'part of the message', code=2): it must end with that exit code and one clear message."""

    def check(function, *parts, code=2):
        with pytest.raises(SystemExit) as e:
            run(function)
        err = capsys.readouterr().err
        assert e.value.code == code
        assert err.startswith('error: ') and 'Traceback' not in err
        for part in parts:
            assert part in err, f'{part!r} is not in {err!r}'
        return err

    return check


@pytest.fixture(scope='session')
def python(tmp_path_factory):
    """[...]: what stands for `python` in a command, faster (tests/warm.py); where NANOMORPH_WARM is in its environment."""
    path = str(tmp_path_factory.mktemp('warm') / 'socket')
    command = [sys.executable, str(ROOT / 'tests' / 'warm.py'), 'serve', path]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    env = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive'}
    env.pop('PYTHONPATH', None)
    server = subprocess.Popen(command, env=env, **pipes)
    server.stdout.readline()
    os.environ['NANOMORPH_WARM'] = path
    yield [sys.executable, '-IS', str(ROOT / 'tests' / 'warm.py')]
    server.communicate()


@pytest.fixture
def torchrun(tmp_path, python):
    """[...]: what stands for `torchrun` in a command, faster: it and what it starts are forks (tests/warm.py)."""
    (tmp_path / 'torchrun.py').write_text(f"""
import os
import sys
from torch.distributed.run import main
os.environ['NANOMORPH_WARM'] = {os.environ['NANOMORPH_WARM']!r}
at = next(i for i, word in enumerate(sys.argv) if i and word.endswith('.py'))
main([*sys.argv[1:at], '--no-python', *{python!r}, *sys.argv[at:]])
""")
    return [*python, str(tmp_path / 'torchrun.py')]


@pytest.fixture
def script(tmp_path, python):
    """Run a script of the repository as a user does, from another directory: script('train.py', ...) -> result."""

    def go(name, *args, env=None, check=True):
        r = subprocess.run(
            [*python, str(ROOT / name), *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {'OMP_NUM_THREADS': '1'} | (env or {}),
            capture_output=True,
            text=True,
        )
        assert not check or r.returncode == 0, r.stderr
        return r

    return go


@pytest.fixture
def two_processes(python):
    """Train a tiny model in two processes, put together by the environment that torchrun would give them."""

    def go(*flags):
        for _ in range(
            2
        ):  # on a busy machine a process has been seen to abort after its last line, in the C++ teardown
            with socket.socket() as s:
                s.bind(('127.0.0.1', 0))
                port = s.getsockname()[1]
            env = dict(OMP_NUM_THREADS='1', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2')
            command = [*python, str(ROOT / 'train.py'), *TINY, *flags]
            both = [
                subprocess.Popen(command, env=os.environ | env | dict(RANK=rank), stderr=subprocess.PIPE, text=True)
                for rank in '01'
            ]
            said = [p.communicate(timeout=300)[1] for p in both]
            if not any(p.returncode for p in both):
                return
        raise AssertionError('\n'.join(said))

    return go


def tiny_gpt(seed=0, **keys):
    torch.manual_seed(seed)
    args = (
        dict(
            block_size=16,
            vocab_size=96,  # more than either edition of Shakespeare has
            n_layer=2,
            n_head=2,
            n_embd=32,
            bias=False,
        )
        | keys
    )
    return GPT(GPTConfig(**args))


def vocabulary(meta, folder=None):
    """(encode, decode, number of ids) of what a meta.json describes."""
    tok = tokenizer.build(tokenizer.of_meta(meta, folder), folder)
    return tok.encode, tok.decode, tok.vocabulary


def tokens(B=2, T=16, vocab=65, seed=0):
    return torch.randint(vocab, (B, T), generator=torch.Generator().manual_seed(seed))


def train_config(model, **keys):
    args = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(GPTConfig)}
    return TrainConfig(**args | dict(learning_rate=1e-2, grad_clip=1.0, decay_lr=False) | keys)


def learn(model, opt, x, y, steps: int) -> list[float]:
    """Train on one batch; the loss before each step."""
    found = []
    for _ in range(steps):
        loss = model(x, y)[1]
        found.append(loss.item())
        loss.backward()
        opt.step()
        opt.zero_grad()
    return found


def losses(out_dir, kind='train'):
    return {m['iter']: m['loss' if kind == 'train' else 'val_loss'] for m in read_metrics(out_dir) if m['kind'] == kind}


OPTIONS = {
    'swiglu': dict(mlp='swiglu'),
    'relu2': dict(mlp='relu2'),
    'factor': dict(mlp_expansion_factor=(3.0, 2.0), multiple_of=8),
    'gate': dict(mlp_gate=True),
    'gqa': dict(n_kv_head=2),
    'mqa': dict(n_kv_head=1),
    'qk_norm': dict(qk_norm=True),
    'post_norm': dict(post_norm=True, attn_scale=0.0),
    'rmsnorm': dict(norm='rmsnorm'),
    'plain_norm': dict(norm_affine=False),
    'rope': dict(position='rope'),
    'window': dict(attention_window=5),
    'untied': dict(tie_head=False),
    'bias': dict(bias=True),
    'expanded': dict(linear='expanded', linear_layers='mlp+attn', expansion=40),
}
