"""
The machine: which device and precision a run gets, its processes, and what it can do at best.
"""

import contextlib
import ctypes
import datetime
import gc
import hashlib
import math
import os
import re
import signal
import stat
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from configurator import ROOT, UserError, key

# dense bf16 (V100, T4: fp16) peak in FLOP/s by the words of a device name, first match counts; vendors' data sheets,
# without sparsity
PEAKS = [
    ('B200', 2250e12),
    ('GH200', 989e12),
    ('H200 NVL', 835e12),
    ('H200', 989e12),
    ('H100 NVL', 835e12),
    ('H100 PCIe', 756e12),
    ('H100', 989e12),
    ('A100', 312e12),
    ('A10', 125e12),
    ('A40', 149.7e12),
    ('RTX A6000', 154.8e12),
    ('L40S', 362e12),
    ('L4', 121e12),
    ('RTX 4090', 165.2e12),
    ('RTX 3090', 71e12),
    ('V100 SXM2', 125e12),
    ('V100 PCIE', 112e12),
    ('T4', 65e12),
]
LAUNCHING = 4e-3  # seconds that launching a block's forward and backward pass may take: 2.8 on a slow host, alone there
# whether graphs with an autograd.Function are kept from process to process, which saves deriving the step anew at each start;
# off until it was seen on a GPU, on a CPU it is right (tests/test_gpu.py -k second_start); docs/speed.md has the command
FUNCTIONS = False
OTHER_CHIPS = {'Laptop', 'Max', 'Ti', 'SUPER', 'D', 'MIG'}  # an 'RTX 4090 Laptop GPU' is another chip


@dataclass
class Keys:
    """The machine that a run takes, and its precision."""

    device: str = key('auto', 'cuda, cuda:1, cpu, mps; auto: the best there is', group='device and speed')
    backend: str = key('auto', 'of torchrun processes: nccl on GPUs, gloo on CPUs', choices=('auto', 'nccl', 'gloo'))
    ddp_timeout: int = key(
        600, 'seconds after which a torchrun process that does not answer ends the run', low=1, high=10**6
    )
    dtype: str = key(
        'auto',
        'precision of matrix products; auto: bfloat16 on a GPU that has it (else float16), float32 elsewhere',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    )
    compile: bool | None = key(None, 'torch.compile; none: on CUDA')
    cuda_graph: bool | str = key(
        'auto',
        'replay the step as CUDA graphs, in one process on a GPU; auto: where launching kernels could take longer than'
        ' running them',
        choices=('auto', True, False),
    )
    deterministic: bool = key(
        False,
        'kernels that give the same bits every time: on one GPU too, a resumed run ends as if never stopped; slower',
    )


def peak_of(name: str) -> float | None:
    """Peak FLOP/s by device name, as 'NVIDIA A100-SXM4-80GB'; None if it is not known."""
    words = set(re.split(r'[ -]', name))
    if words & OTHER_CHIPS:
        return None
    return next((peak for part, peak in PEAKS if set(part.split()) <= words), None)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of the device in dtype; None if it is not known: no MFU is better than a wrong one."""
    if device.type != 'cuda' or dtype not in (torch.bfloat16, torch.float16):
        return None
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        return None  # emulated
    return peak_of(torch.cuda.get_device_name(device))


def device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{device.type}, {torch.get_num_threads()} threads' if device.type == 'cpu' else device.type


def memory(device: torch.device) -> float:
    """Bytes of a GPU's memory; of a CPU infinite: several processes share it, and it is not known how much they may take."""
    return float(torch.cuda.get_device_properties(device).total_memory) if device.type == 'cuda' else math.inf


def peak_memory(device: torch.device, graphs: bool = False) -> int:
    """Bytes at the highest point of this process: allocated on a GPU (with CUDA graphs reserved, since what lies inside
    a graph does not count as allocated), resident on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_reserved(device) if graphs else torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def sync(device: torch.device):
    """Wait until a GPU has done what was launched on it: a clock that is read before counts launches, not work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    elif device.type == 'mps':
        torch.mps.synchronize()


def rank_world() -> tuple[int, int]:
    """This process and how many there are, from torchrun's environment."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def launch() -> str | None:
    """The name of the launch that this process is part of, the same after a restart: torchrun's --rdzv-id, which it makes up
    where it is told --standalone. None without torchrun, or where it has no name."""
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return None if name == 'none' else name


def choose_device(device: str, deterministic: bool = False) -> torch.device:
    """The device that a key names, ready for use. deterministic: how the whole process computes from now on."""
    if deterministic != torch.are_deterministic_algorithms_enabled():
        set_deterministic(deterministic)
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if device == 'cuda':
        device = f'cuda:{os.environ.get("LOCAL_RANK", 0)}'
    try:
        device = torch.device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device = '{device}': {str(e).splitlines()[0]}; use --device=cpu, or auto") from None
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    elif device.type == 'cpu':  # denormal numbers are slow, and Adam's moments of what has no gradient decay to them
        torch.set_flush_denormal(True)
        keep_memory()
    return device


def keep_memory():
    """What a step frees stays with the process for the next one. Handed back to the system, every page of it is fetched anew:
    3% to 7% of a small step on a CPU. Other C libraries than glibc have no such setting."""
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL('libc.so.6').mallopt
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        set_option(mmap_threshold, 2**25)
        set_option(trim_threshold, 2**30)


def set_deterministic(on: bool):
    """The same bits every time, or kernels chosen for speed alone. By torch's switch attention takes the backward pass of
    flash attention that adds in a fixed order, and leaves out cuDNN's; gradients of embeddings are added in a fixed
    order; and the compiler times no kernels to choose among them. The kernels in linear/kernels/ need no switch: each
    number is written by one program, in a fixed order."""
    asked = ':4096:8', ':16:8'  # workspaces with which cuBLAS promises it; torch looks once, at its first product
    if on and os.environ.get('CUBLAS_WORKSPACE_CONFIG') not in asked:
        if torch.cuda.is_initialized():
            raise UserError(
                'deterministic = True: this process has used the GPU without it, and cuBLAS is set up once; start the run in'
                f' a process of its own, or set CUBLAS_WORKSPACE_CONFIG={asked[0]} for all of them'
            )
        os.environ['CUBLAS_WORKSPACE_CONFIG'] = asked[0]
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what was not written


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == 'auto':
        if device.type != 'cuda':
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype == 'float16' and device.type != 'cuda':
        raise UserError(
            f"dtype = 'float16': needs a CUDA device (its loss scaling), this is {device.type}; use float32"
        )
    return getattr(torch, dtype)


def autocast(device: torch.device, dtype: torch.dtype):
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.amp.autocast(device_type=device.type, dtype=dtype)


class Lost(UserError):
    """Another process of the run ended or does not answer: no mistake of the user's, so exit code 1."""

    exit_code = 1


def meeting_place(wait: datetime.timedelta) -> dict:
    """What init_process_group is to be told where torchrun has started the processes of one machine again: torchrun keeps
    one store for all starts, and the addresses of dead processes are still in it, so each start gets names of its own.
    Agents of several nodes may count their starts differently; for them see docs/scaling.md."""
    start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    shared = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'  # the agent's store, not one of the first process
    if start == '0' or not shared or os.environ.get('GROUP_WORLD_SIZE') != '1':
        return {}
    store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), is_master=False, timeout=wait)
    rank, world = rank_world()
    return dict(store=dist.PrefixStore(f'start {start}', store), rank=rank, world_size=world)


@contextlib.contextmanager
def processes(device: torch.device, backend: str, timeout: int = 600):
    """torchrun's process group, if this process is one of several. Raises Lost where another one has ended, or does not
    answer for `timeout` seconds (with NCCL the library itself ends the process then). A group that is there is used: the members
    of a second one would find the addresses of the first in the store, and wait for them."""
    if rank_world()[1] == 1 or dist.is_initialized():
        yield
        return
    if backend == 'auto':
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
    wait = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group(
            backend, device_id=device if device.type == 'cuda' else None, timeout=wait, **meeting_place(wait)
        )
        yield
    except RuntimeError as e:  # of torch.distributed, which has no class for it
        if not isinstance(e, dist.DistError) and not re.search(
            r'gloo|Connection (closed|reset|refused)|[Tt]imed out|NCCL', str(e)
        ):
            raise
        raise Lost(
            f'another process of this run has ended, or did not answer for ddp_timeout = {timeout} seconds'
            f' ({str(e).splitlines()[0][:200]}); its own output says why; go on with --init_from=resume'
        ) from None
    finally:
        if dist.is_initialized():
            if dist.get_backend() == 'gloo':
                time.sleep(0.1)  # its threads drop their last tensors: after Python's end that aborts the process
            dist.destroy_process_group()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


class Stopped(Exception):
    """Raised by Interrupt.leave(): an evaluation was left in the middle."""


class Interrupt:
    """SIGINT, SIGTERM and the end of the terminal (SIGHUP, unless nohup says no) ask for an end between two steps; a second
    one kills."""

    def __init__(self, quiet=False):
        self.asked, self.quiet = False, quiet
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN:
                signal.signal(s, self.note)

    def note(self, s, frame):
        self.asked = True
        signal.signal(s, signal.SIG_DFL)
        if s == signal.SIGHUP:  # nothing more can be said there; what goes into a file goes on
            for fd in (1, 2):
                if stat.S_ISCHR(os.fstat(fd).st_mode):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        if not self.quiet:
            with contextlib.suppress(OSError):
                os.write(1, b'\nstopping after this step, then saving; again: now\n')  # print() may be at work itself

    def leave(self):
        """Raise Stopped if an end was asked for. Several processes would have to agree first: they do not leave here."""
        if self.asked and not dist.is_initialized():
            raise Stopped

    def agreed(self, device: torch.device, ask: bool) -> bool:
        """Whether to end now. Of several processes all end at the same step: one where all of them ask each other."""
        if not dist.is_initialized():
            return self.asked
        return ask and bool(total(torch.tensor(float(self.asked), device=device)).item())


def keep_compiled(dtype: torch.dtype):
    """Let the compiler find what an earlier process has compiled, and nothing else. Its key is the traced graph, which says
    neither how the operators of linear/ derive nor (torch 2.11) in which precision autocast computes: both go into the key's
    tag."""
    from torch._functorch import config  # only here: a run that compiles nothing does not need it

    code = b''.join(path.read_bytes() for path in sorted((ROOT / 'linear').rglob('*.py')))
    torch.compiler.config.cache_key_tag = f'{hashlib.sha256(code).hexdigest()} {dtype}'
    config.autograd_cache_allow_custom_autograd_functions = FUNCTIONS


def start_afresh():
    """Free what an earlier run in this process has left, and let the compiler know nothing of its shapes."""
    gc.unfreeze()
    gc.collect()
    torch._dynamo.reset()


def random_states(device: torch.device) -> dict:
    """{cpu, cuda: the state of torch's random numbers in every process}."""
    mine = [torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == 'cuda' else None]
    states = [mine]
    if dist.is_initialized():
        states = [None] * dist.get_world_size()
        dist.all_gather_object(states, mine)
    return dict(cpu=[s[0] for s in states], cuda=[s[1] for s in states])


def set_random_state(states: dict, rank: int, device: torch.device):
    """That of this process; nothing where there were fewer."""
    if rank < len(states['cpu']):
        torch.set_rng_state(states['cpu'][rank])
        if device.type == 'cuda' and states['cuda'][rank] is not None:
            torch.cuda.set_rng_state(states['cuda'][rank])


def graphs(
    asked: bool | str, model, tokens: int, device: torch.device, dtype: torch.dtype, no: str = ''
) -> tuple[bool, str]:
    """Whether to replay micro-batches of so many tokens as CUDA graphs (the key cuda_graph), and a line that says why.
    UserError where that is asked for and cannot be. no: what speaks against it already."""
    if asked is False:
        return False, 'CUDA graphs: off, as cuda_graph = False asks'
    if device.type != 'cuda':
        no = f'needs a CUDA device, this is {device.type}'
    elif rank_world()[1] > 1:
        no = f'needs a single process, this is one of {rank_world()[1]}'
    elif any(m.waits(dtype) for m in model.modules() if hasattr(m, 'waits')):
        no = 'a mixture in this precision, on this GPU or of these widths waits for the processor'
    if no and asked is True:
        raise UserError(f'cuda_graph = True: {no}; --cuda_graph=false')
    if no or asked is True:
        return not no, f'CUDA graphs: off, {no}' if no else 'CUDA graphs: on, as cuda_graph = True asks'
    # a GPU at work does 40% of its peak; factors beside the model are a dense matrix to it
    flops = tokens * min(model.flops_per_token(), 6 * model.num_params_collapsed())
    seconds = flops / (0.4 * (peak_flops(device, dtype) or 1e14)) / model.config.n_layer
    text = f'a block takes about {1000 * seconds:.2g} ms of a micro-batch, launching it up to {1000 * LAUNCHING:.2g}'
    return seconds < LAUNCHING, f'CUDA graphs: {"on" if seconds < LAUNCHING else "off"}, {text}'


class Replay:
    """f(x, y) captured as a CUDA graph after `eager` calls, which compile and set up the libraries, and replayed from then on.
    f must read and write at the same addresses every time and give the same shapes; its result is overwritten by the next
    call. generator: of f's random numbers, if it is not the device's own. beside: another Replay, captured before and never
    replayed at the same time, whose memory this one uses, too."""

    def __init__(self, f, generator=None, eager=3, beside=None):
        self.f, self.generator, self.eager, self.beside = f, generator, eager, beside
        self.calls, self.graph, self.inputs = 0, None, None

    def __call__(self, *inputs):
        if self.inputs is None:  # from the first call on the same tensors, so that nothing compiles anew in the capture
            self.inputs = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in inputs]
        for mine, new in zip(self.inputs, inputs):
            mine.copy_(new)
        self.calls += 1
        if self.calls <= self.eager:
            return self.f(*self.inputs)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            if self.generator is not None:
                self.graph.register_generator_state(self.generator)
            pool = self.beside and self.beside.graph.pool()
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode='thread_local'):
                self.result = self.f(*self.inputs)
        self.graph.replay()
        return self.result


def attention_backend(model, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that scaled_dot_product_attention picks for this model in training."""
    c = model.config
    like = dict(device=device, dtype=dtype, requires_grad=True)
    T, hs, kv = c.block_size, c.n_embd // c.n_head, c.n_kv_head or c.n_head
    q, k = torch.empty(1, c.n_head, T, hs, **like), torch.empty(1, kv, T, hs, **like)
    mask = torch.ones(T, T, device=device, dtype=torch.bool) if c.attention_window else None
    try:
        choice = torch._fused_sdp_choice(q, k, k, mask, c.dropout, mask is None, enable_gqa=kv != c.n_head)
        return torch.nn.attention.SDPBackend(choice).name.lower()
    except Exception:  # a private function: no reason to stop a run
        return 'unknown'
