"""
What each optimisation of the training step is worth: it is switched off alone. bench.py calls it.

    python bench.py ablate config/expansive_shakespeare.py --steps=5 --rounds=3
    python bench.py ablate config/gpt2.py --dataset=shakespeare_char --vocab_size=50304 --batch_size=12 --only=compile

The step as it is and the one without take turns, as in bench.py, one optimisation after the other; what is not in use
here (no GPU, another layer) is left out. Memory is the allocator's peak, for steps without CUDA graphs.
"""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import torch
from torch.nn import functional as F

import hardware
from configurator import UserError, key, load, root_path
from files import ready, write_lines
from lab.costs import columns
from lab.steps import Arm, TimingConfig, side_by_side
from linear.einsum import Einsum
from linear.kernels import blocks, chip, fused, head, mixture, norms, rotary, routing, symmetric
from logger import relative
from model import GPT, MLP
from optimizers.optim import Optimizer

AdamW = torch.optim.AdamW


@dataclass
class AblateConfig(TimingConfig):
    """--help prints the head of this file."""

    only: str = key('', 'these rows alone, by their names, joined by commas; empty: all', group='timing')


# -----------------------------------------------------------------------------
# what can be switched off


class Switch(NamedTuple):
    used: Callable  # trainer -> whether the step uses it
    flags: Callable = lambda t: []  # trainer -> flags that switch it off
    off: Callable = lambda t: contextlib.nullcontext()  # trainer -> a context in which it is off


def unset(kernels, name='ON') -> Callable:
    """The `off` of a switch that a file of kernels has."""
    return lambda t: mock.patch.object(kernels, name, False)


def fuses(t) -> bool:
    mlps = [m for m in t.model.modules() if isinstance(m, MLP)]
    return fused.on_chip(next(t.model.parameters())) and any(
        m.fuse and fused.one_fits(m.c_fc) and fused.one_fits(m.c_proj) for m in mlps
    )


def serves(t, kernels) -> bool:
    c = t.cfg
    takes = {  # of what the kernel's fits() asks
        head: lambda: head.whole(t.model.lm_head) and not c.distill_from,
        norms: lambda: c.n_embd <= norms.WIDEST,
        rotary: lambda: c.n_embd // c.n_head <= rotary.WIDEST,
    }
    short = t.dtype == torch.bfloat16 and blocks.in_bfloat16(next(t.model.parameters()))
    return kernels.ON and short and takes[kernels]()


@contextlib.contextmanager
def without_backend(t):
    """Attention by the next best kernel."""
    name = attention(t).removesuffix('_attention').replace('efficient', 'mem_efficient')
    switch = getattr(torch.backends.cuda, f'enable_{name}_sdp')
    switch(False)
    try:
        yield
    finally:
        switch(True)


def attention(t) -> str:
    return hardware.attention_backend(t.model, t.device, t.dtype)


def unpadded(self, x):
    return self.lm_head(x) if not isinstance(self.lm_head, torch.nn.Linear) else F.linear(x, self.lm_head.weight)


def on_gpu_with_routers(t) -> bool:
    return t.device.type == 'cuda' and any(hasattr(m, 'router') for m in t.model.modules())


def on_chip(t) -> bool:
    shapes = [m.shape for m in t.model.modules() if isinstance(m, Einsum)]
    short = t.device.type == 'cuda' and t.dtype != torch.float32
    return short and any(s.b == s.d == 1 and chip.fits(s.a, s.f, s.r, s.e) for s in shapes)


def symmetric_products(t) -> bool:
    matrices = t.optimizer.matrix_optimizer
    large = matrices and any(min(shape) >= symmetric.LEAST for shape in matrices.state)
    return bool(large) and symmetric.ON and fused.on_chip(next(t.model.parameters()))


def other_path(t) -> str:
    return 'factored' if t.optimizer.factors else 'materialised'


OWN = dict(without=str, base_ms=float)  # lines of --out, for files.ready
SWITCHES = {
    'compile': Switch(lambda t: t.compile, lambda t: ['--compile=false']),
    'CUDA graphs': Switch(lambda t: t.graphs, lambda t: ['--cuda_graph=false']),
    'captured update': Switch(
        lambda t: t.optimizer.capturable, off=lambda t: mock.patch.object(Optimizer, 'capture', lambda self: None)
    ),
    'fused AdamW': Switch(
        lambda t: t.optimizer.adamw.defaults['fused'],
        off=lambda t: mock.patch.object(torch.optim, 'AdamW', lambda *a, fused=None, **k: AdamW(*a, **k)),
    ),
    'fused MLP': Switch(fuses, lambda t: ['--fuse_mlp=false']),
    'unsorted rows': Switch(lambda t: mixture.ON and on_gpu_with_routers(t), off=unset(mixture)),
    'routing kernel': Switch(lambda t: routing.ON and on_gpu_with_routers(t), off=unset(routing)),
    'factors on chip': Switch(on_chip, off=unset(chip)),
    'symmetric products': Switch(symmetric_products, off=unset(symmetric)),
    'biases in it': Switch(lambda t: fused.BIAS and t.cfg.bias and fuses(t), off=unset(fused, 'BIAS')),
    'head with loss': Switch(lambda t: serves(t, head), off=unset(head)),
    'add with norm': Switch(lambda t: serves(t, norms) and not t.cfg.post_norm, off=unset(norms)),
    'one pass for q and k': Switch(lambda t: serves(t, rotary) and t.cfg.position == 'rope', off=unset(rotary)),
    'padded vocabulary': Switch(
        lambda t: t.device.type == 'cuda' and t.cfg.vocab_size % 64 and not serves(t, head),
        off=lambda t: mock.patch.object(GPT, 'logits', unpadded),
    ),
    'attention kernel': Switch(lambda t: attention(t) not in ('math', 'unknown'), off=without_backend),
    '16 bits': Switch(lambda t: t.dtype != torch.float32, lambda t: ['--dtype=float32']),
    'linear_path': Switch(
        lambda t: (
            any(hasattr(m, 'factors') for m in [*t.model.modules(), *t.optimizer.factors.values()])
            and not any(hasattr(m, 'router') for m in t.model.modules())
        ),
        lambda t: [f'--linear_path={other_path(t)}'],
    ),
}


def ablate(argv: list[str]):
    cfg = load(AblateConfig, argv)
    names = [n.strip() for n in cfg.only.split(',')] if cfg.only else [*SWITCHES]
    if unknown := set(names) - set(SWITCHES):
        raise UserError(
            f'only: no row is called {", ".join(map(repr, sorted(unknown)))}; choose from {", ".join(SWITCHES)}'
        )
    if cfg.out:
        ready(root_path(cfg.out), OWN, 'bench.py ablate')
    device = hardware.choose_device(cfg.device, cfg.deterministic)
    side_by_side()
    base, rows = Arm(argv, cfg, device, cfg.warmup), []
    for name, switch in SWITCHES.items():
        t = base.trainer
        if name not in names or not switch.used(t):
            continue
        flags = switch.flags(t)
        with switch.off(t):
            arm = Arm([*argv, *flags], load(AblateConfig, [*argv, *flags]), device, cfg.warmup)
        base.times = []
        for _ in range(cfg.rounds):
            base.timed_block(cfg.steps)
            with switch.off(t):
                arm.timed_block(cfg.steps)
        rows.append(dict(without=name, flags=flags, base_ms=base.figures(base)['ms']) | arm.figures(base))
        if device.type != 'cuda':  # the resident memory of a process cannot be told apart by arm
            rows[-1]['peak_memory'] = None
        print(line(rows[-1], head=len(rows) == 1), flush=True)
        if cfg.out:  # after each row: what is measured is kept, however this ends
            write_lines(root_path(cfg.out), relative(rows))
        del arm, t
        gc.collect()
        if device.type == 'cuda':
            torch.cuda.empty_cache()
    if not rows:
        print('none of these is in use here: ' + ', '.join(names))


def line(r: dict, head: bool) -> str:
    cells = {
        'without': f'{r["without"]:18}',
        'ms/step': f'{r["ms"]:9.2f}',
        'as it is': f'{r["base_ms"]:9.2f}',
        'times as long': f'{r["ratio"]:13.3f}',
        'peak MiB': f'{r["peak_memory"] / 2**20:9,.0f}' if r['peak_memory'] else f'{"-":>9}',
        'by': ' '.join(r['flags']) or 'a patch for this table',
    }
    found = columns([cells])
    text = f'{r["device"]}, torch {r["torch"]}, {r["blocks"]} blocks of {r["steps"]} steps each'
    return '\n'.join([text, *found] if head else found[1:])
