"""MFU is right or absent; a run of several processes ends in one line where one of them is lost; the deterministic mode."""

import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, tiny_gpt, tokens

import bench
import checkpoint
import configurator
import hardware
from hardware import peak_of
from linear.kernels import fused


@pytest.mark.parametrize(
    'name, tflops',
    [
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H100 NVL', 835),
        ('NVIDIA H200', 989),
        ('NVIDIA GH200 480GB', 989),
        ('NVIDIA A100-SXM4-80GB', 312),
        ('NVIDIA A100 80GB PCIe', 312),
        ('Tesla V100-SXM2-16GB', 125),
        ('Tesla T4', 65),
        ('NVIDIA L4', 121),
        ('NVIDIA L40S', 362),
        ('NVIDIA GeForce RTX 4090', 165.2),
        ('NVIDIA GeForce RTX 4090 Laptop GPU', None),
        ('NVIDIA GeForce RTX 3090 Ti', None),
        ('NVIDIA A100-SXM4-80GB MIG 1g.10gb', None),
        ('NVIDIA A10G', None),
        ('NVIDIA H1000', None),
    ],
)
def test_peaks_by_device_name(name, tflops):
    assert peak_of(name) == (None if tflops is None else pytest.approx(tflops * 1e12))


MEMBER = """
import os, signal, sys, time
sys.path[:0] = [{root!r}]
import torch
import hardware
from configurator import run

def main():
    with hardware.processes(torch.device('cpu'), 'auto', timeout=3):
        hardware.total(torch.ones(1))
        if hardware.rank_world()[0]:
            os.kill(os.getpid(), signal.{signal})
        hardware.total(torch.ones(1))

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGKILL', 'SIGSTOP'])
def test_a_lost_process_ends_the_run_in_one_line(tmp_path, python, name):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), OMP_NUM_THREADS='1')
    (tmp_path / 'member.py').write_text(MEMBER.format(root=str(ROOT), signal=name))
    command = [*python, str(tmp_path / 'member.py')]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first, second = (subprocess.Popen(command, env=env | dict(RANK=str(rank)), **pipes) for rank in (0, 1))
    try:
        t0 = time.time()
        err = first.communicate(timeout=60)[1]
        assert first.returncode == 1 and time.time() - t0 < 50
        said = [line for line in err.splitlines() if line.startswith('error: ')]
        assert len(said) == 1 and 'another process of this run has ended, or did not answer' in said[0], err
        assert 'ddp_timeout = 3' in said[0] and 'Traceback' not in err, err
    finally:
        second.kill()
        second.wait()


MISTAKEN = """
import sys

sys.path.insert(0, {root!r})
from configurator import UserError, run


def main():
    raise UserError('n_laier: no such key')

run(main)
"""


@pytest.mark.slow
def test_a_mistake_is_said_once_under_torchrun(tmp_path, torchrun):
    (tmp_path / 'mistaken.py').write_text(MISTAKEN.format(root=str(ROOT)))
    two = [*torchrun, '--standalone', '--nproc_per_node=2', str(tmp_path / 'mistaken.py')]
    env = os.environ | dict(OMP_NUM_THREADS='1')
    done = subprocess.run(two, env=env, capture_output=True, text=True, timeout=100)
    assert [line for line in done.stderr.splitlines() if 'n_laier' in line] == ['error: n_laier: no such key']
    assert done.returncode == 1 and 'exitcode  : 2' in done.stderr  # docs/scaling.md says so


@pytest.mark.parametrize(
    'kind, turns, code', [(configurator.UserError, [configurator.TURN], 2), (hardware.Lost, [], 1)]
)
def test_a_mistake_of_one_process_alone_is_said_after_its_turn(kind, turns, code, monkeypatch, capsys):
    monkeypatch.setenv('RANK', '9')
    monkeypatch.setenv('LOCAL_RANK', '1')
    waited = []
    monkeypatch.setattr(configurator.time, 'sleep', waited.append)
    monkeypatch.setattr(configurator.signal, 'signal', lambda *a: None)

    def main():
        raise kind('something')

    with pytest.raises(SystemExit) as e:
        configurator.run(main)
    assert e.value.code == code and waited == turns
    assert capsys.readouterr().err == 'error (rank 9): something\n'


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_and_says_so(tmp_path, torchrun):
    two = [*torchrun, '--standalone', '--nproc_per_node=2', str(ROOT / 'train.py')]
    long = [
        '--gradient_accumulation_steps=2',
        '--max_iters=100000',
        '--lr_decay_iters=100000',
        '--eval_interval=100000',
    ]
    p = subprocess.Popen(
        [*two, *TINY, *long, f'--out_dir={tmp_path}/run'],
        env=os.environ | dict(OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        next(line for line in p.stdout if line.startswith('iter 3:'))
        p.send_signal(signal.SIGINT)
        said = p.communicate(timeout=100)[0]
    finally:
        p.kill()
    said = said.split('Traceback')[0]  # what follows is torchrun's own
    assert said.count('stopping after this step') == said.count('interrupted: saved') == 1
    assert 'go on with --init_from=resume' in said
    assert checkpoint.load(tmp_path / 'run' / 'ckpt.pt')['iter_num'] >= 4


def test_threads_of_a_run_do_not_wait_by_spinning(tmp_path):
    """The scripts ask for it before they load torch, and with torch libgomp, which reads it then and says what it read."""
    (tmp_path / 'torch.py').write_text("import os\n\nraise SystemExit(os.environ['OMP_WAIT_POLICY'])")
    env = {k: v for k, v in os.environ.items() if k != 'OMP_WAIT_POLICY'}
    say = lambda command, **more: (
        subprocess.run([sys.executable, *command], env=env | more, capture_output=True, text=True).stderr
    )
    for script in ('train.py', 'bench.py'):
        assert say([ROOT / script], PYTHONPATH=str(tmp_path)) == 'passive\n'
    said = say(['-c', 'import torch'], OMP_WAIT_POLICY='passive', OMP_DISPLAY_ENV='verbose')
    if 'GOMP_SPINCOUNT' not in said:
        pytest.skip('torch has another OpenMP here')
    assert "GOMP_SPINCOUNT = '0'" in said, said


# -----------------------------------------------------------------------------
# deterministic = True


@pytest.fixture
def afterwards():
    """The mode holds for the whole process: the next test starts without."""
    yield
    hardware.set_deterministic(False)


@pytest.mark.parametrize('flags', [(), ('--linear=expanded', '--expansion=200')])
def test_the_deterministic_mode_changes_nothing_of_a_run_on_a_cpu(run_train, afterwards, flags):
    a = checkpoint.load(run_train(*flags, '--deterministic=true', out='a') / 'ckpt.pt')
    assert torch.are_deterministic_algorithms_enabled()
    b = checkpoint.load(run_train(*flags, out='b') / 'ckpt.pt')
    assert not torch.are_deterministic_algorithms_enabled()
    assert all(torch.equal(a['model'][k], v) for k, v in b['model'].items())


def test_the_deterministic_mode_asks_cublas_for_it_before_the_gpu_is_used(monkeypatch, fails, afterwards):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', ':0:0')
    hardware.choose_device('cpu', deterministic=True)
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8' and torch.are_deterministic_algorithms_enabled()
    hardware.choose_device('cpu')
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    monkeypatch.setattr('torch.cuda.is_initialized', lambda: True)
    fails(lambda: hardware.choose_device('cpu', deterministic=True), 'deterministic = True', 'a process of its own')
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_bench_of_arms_with_and_without_the_deterministic_mode_is_refused(monkeypatch, fails, afterwards):
    flags = ['--dataset=shakespeare_char', '--n_layer=1', '--n_head=2', '--n_embd=32', '--batch_size=1', '--device=cpu']
    flags += ['--block_size=8', '--gradient_accumulation_steps=1']
    own = ['--steps=1', '--rounds=1', '--warmup=1']
    monkeypatch.setattr('sys.argv', ['bench.py', *flags, *own, '--', *flags, '--deterministic=true'])
    fails(bench.main, 'deterministic: holds for a whole process')


def test_a_process_takes_back_the_random_state_of_its_own_rank():
    device, states, wanted = torch.device('cpu'), [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        wanted.append(torch.rand(4))
    for rank in (0, 1):
        hardware.set_random_state(dict(cpu=states, cuda=[None, None]), rank, device)
        assert torch.equal(torch.rand(4), wanted[rank])
    torch.manual_seed(3)
    hardware.set_random_state(dict(cpu=states, cuda=[None, None]), 2, device)  # there were fewer processes
    again = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4), again)


def test_the_process_group_waits_as_long_as_ddp_timeout_says(monkeypatch):
    given = {}
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(
        torch.distributed, 'init_process_group', lambda backend, **keys: given.update(keys, backend=backend)
    )
    with hardware.processes(torch.device('cpu'), 'auto', timeout=7):
        pass
    assert (given['backend'], given['timeout'].total_seconds(), given['device_id']) == ('gloo', 7, None)


@pytest.mark.parametrize('backend, order', [('gloo', ['init', 'wait', 'destroy']), ('nccl', ['init', 'destroy'])])
def test_the_threads_of_gloo_have_a_moment_before_python_may_end(backend, order, monkeypatch):
    """Without it one fsdp run of ten aborts after all its work."""
    did = []
    monkeypatch.setattr(hardware, 'rank_world', lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *_, **__: did.append('init'))
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: bool(did))
    monkeypatch.setattr(torch.distributed, 'get_backend', lambda: backend)
    monkeypatch.setattr(torch.distributed, 'destroy_process_group', lambda: did.append('destroy'))
    monkeypatch.setattr(hardware.time, 'sleep', lambda seconds: did.append('wait'))
    with hardware.processes(torch.device('cpu'), backend):
        pass
    assert did == order


def test_processes_that_torchrun_starts_again_do_not_find_the_addresses_of_dead_ones(monkeypatch):
    shared = torch.distributed.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)  # torchrun's
    given = {}
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend, **keys: given.update(keys))
    env = dict(WORLD_SIZE='2', RANK='1', LOCAL_RANK='1', GROUP_WORLD_SIZE='1', TORCHELASTIC_RESTART_COUNT='1',
               TORCHELASTIC_USE_AGENT_STORE='True', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(shared.port))  # fmt: skip
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for start in '12':
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', start)
        with hardware.processes(torch.device('cpu'), 'auto'):
            assert not given['store'].check(['address']) and (given['rank'], given['world_size']) == (1, 2)
            given['store'].set('address', 'of this start')
    given.clear()
    monkeypatch.setenv('GROUP_WORLD_SIZE', '2')  # nodes may count differently and would miss each other
    with hardware.processes(torch.device('cpu'), 'auto'):
        assert 'store' not in given


def test_peak_memory_is_in_bytes():
    resident = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    assert 0.5 * resident < hardware.peak_memory(torch.device('cpu')) < 2**40


@pytest.mark.skipif('glibc' not in platform.libc_ver(), reason='another C library keeps memory as it likes')
def test_a_step_on_a_cpu_uses_the_memory_that_the_last_one_has_freed():
    hardware.choose_device('cpu')

    def fetched():  # pages
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        kept = [torch.empty(2**20).fill_(1) for _ in range(50)]  # 1,024 each
        del kept
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(fetched() for _ in range(5)) < 100


@pytest.mark.parametrize('keys', [{}, dict(linear='monarch'), dict(mlp='moe')], ids=str)
def test_a_second_start_may_find_what_the_first_has_compiled(keys, monkeypatch):
    """The compiler keeps the graph of a step, with all operators and autograd functions that it calls on a GPU."""
    from torch._functorch._aot_autograd.autograd_cache import check_cacheable

    monkeypatch.setattr(hardware, 'FUNCTIONS', True)
    monkeypatch.setattr(fused, 'fits', lambda *mlp: all(map(fused.one_fits, mlp[:2])))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    hardware.keep_compiled(torch.float32)
    torch._dynamo.reset()
    torch.compile(tiny_gpt(n_layer=1, **keys), backend=backend, fullgraph=True)(tokens(), tokens())
    check_cacheable(*graphs)


def test_a_changed_layer_is_compiled_anew(tmp_path, monkeypatch):
    """Nor is a graph in one precision taken for one in another."""
    monkeypatch.setattr(hardware, 'ROOT', tmp_path)
    (tmp_path / 'linear' / 'kernels').mkdir(parents=True)
    tags = []
    for text, dtype in (('a', torch.bfloat16), ('a', torch.float16), ('b', torch.float16)):
        (tmp_path / 'linear' / 'kernels' / 'x.py').write_text(text)
        hardware.keep_compiled(dtype)
        tags.append(torch.compiler.config.cache_key_tag)
    assert len(set(tags)) == 3
