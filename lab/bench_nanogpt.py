"""
nanoGPT's model and its training step, from a folder that the user names: what bench.py times beside our step.

    python bench.py config/gpt2.py --dataset=shakespeare_char --nanogpt=/path/to/nanoGPT -- config/gpt2.py --dataset=shakespeare_char
    python bench.py sample config/gpt2.py --vocab_size=50304 --nanogpt=/path/to/nanoGPT

Of that folder only model.py is read, as a module. The step is that of its train.py: a batch of windows picked one by one,
autocast, a scaler, clipping, the gradients dropped. Left out is the line of its log, which waits for the GPU. Data sets in
shards, which it does not know, are read by our code.
"""

import contextlib
import importlib.util
import io
import sys
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch

import hardware
from configurator import UserError, brief, input_path, key, overrides
from lab.match import sized
from lab.steps import TimingConfig
from linear.factors import Factors, leaves
from model import GPT, NANOGPT_KEYS, GPTConfig, model_args
from optimizers.optim import lr_at
from tokens import loader, losses

# keys that it does not read, and the value by which it works
OURS = dict(
    optimizer='adamw', hidden_lr=1.0, init_from='scratch', distill_from='', seed_data=None,
    on_nan='stop', activation_checkpointing=False, cuda_graph=False, fuse_mlp=False, linear_path=None,
)  # fmt: skip


@dataclass
class ArmConfig(TimingConfig):
    nanogpt: str = key('', 'folder of nanoGPT, whose model and step this arm takes; empty: ours', group='timing')


@lru_cache
def code(path: str):
    """Its model.py as a module."""
    file = input_path(path)
    try:
        if not file.exists():
            raise OSError('there is no such folder')
        file = file / 'model.py' if file.is_dir() else file
        if file.suffix != '.py':
            raise OSError('that is no folder')
        spec = importlib.util.spec_from_file_location('nanogpt_model', file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        assert module.GPTConfig and module.GPT.configure_optimizers
    except Exception as e:  # whatever that file does
        raise UserError(
            f"nanogpt = '{path}': no model.py of nanoGPT there ({brief(str(e))}); git clone https://github.com/karpathy/nanoGPT"
            ' and name its folder'
        ) from None
    return module


def check(cfg) -> GPTConfig:
    """The config of our model of the same sizes. UserError where nanoGPT cannot express cfg, or has no code there."""
    ours = GPTConfig(**{k: getattr(cfg, k) for k in GPTConfig.__dataclass_fields__})
    other = [k for k, v in overrides(cfg).items() if k in OURS and v != OURS[k]]
    if beyond := sorted(set(model_args(ours)) - set(NANOGPT_KEYS)) + other:
        draws = '; seed_model draws its weights and its windows' if 'seed_data' in beyond else ''
        raise UserError(f'nanogpt: cannot express {", ".join(beyond)}; leave that out of this arm{draws}')
    code(cfg.nanogpt)
    return ours


def make(cfg):
    """(its GPT, ours of the same sizes as shapes only). UserError: see check()."""
    ours, its = check(cfg), code(cfg.nanogpt)
    with contextlib.redirect_stdout(io.StringIO()):  # it says how many parameters it has
        model = its.GPT(its.GPTConfig(**{k: getattr(cfg, k) for k in NANOGPT_KEYS}))
    with torch.device('meta'):
        return model, GPT(ours)


class NanoGPT:
    """Looks like train.Trainer to what times a step. `model` is ours as shapes only, which counts FLOPs and bytes."""

    graphs, world = False, 1

    def __init__(self, cfg, device: torch.device):
        loader.prepare(cfg.dataset)
        self.cfg = cfg = sized(cfg)
        self.tokens = loader.open_tokens(cfg.dataset, 'train', cfg.block_size, cfg.vocab_size)
        self.path = loader.data_dir(cfg.dataset) / 'train.bin'
        self.flat = self.path.exists() and loader.read_meta(cfg.dataset).get('dtype') != 'uint32'  # as it reads them
        self.device, self.dtype, self.iter = device, hardware.choose_dtype(cfg.dtype, device), 0
        self.accumulation = cfg.gradient_accumulation_steps
        self.autocast = hardware.autocast(device, self.dtype)
        torch.set_float32_matmul_precision('high')  # TF32, as it says by torch.backends
        torch.manual_seed(cfg.seed_model)
        self.net, self.model = make(cfg)
        self.net.to(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        with contextlib.redirect_stdout(io.StringIO()):
            self.adamw = self.net.configure_optimizers(
                cfg.weight_decay, cfg.learning_rate, (cfg.beta1, cfg.beta2), device.type
            )
        self.optimizer = SimpleNamespace(
            factors=Factors(self.model), leaves={name: p for name, p, *_ in leaves(self.model)}
        )
        self.compile = cfg.compile if cfg.compile is not None else device.type == 'cuda'
        if self.compile:
            hardware.keep_compiled(self.dtype)
        self.forward = torch.compile(self.net) if self.compile else self.net
        self.next = self.batch()

    flops_per_token = property(lambda self: self.model.flops_per_token())

    def batch(self):
        cfg, T = self.cfg, self.cfg.block_size
        starts = torch.randint(len(self.tokens) - T, (cfg.batch_size,))
        if self.flat:
            data = np.memmap(self.path, dtype=np.uint16, mode='r')
            x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in starts])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
        else:
            rows = torch.from_numpy(self.tokens.windows(starts.numpy(), T + 1).astype(np.int64))
            x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        if self.device.type == 'cuda':
            return tuple(t.pin_memory().to(self.device, non_blocking=True) for t in (x, y))
        return x.to(self.device), y.to(self.device)

    def step(self):
        for group in self.adamw.param_groups:
            group['lr'] = lr_at(self.cfg, self.iter)
        for _ in range(self.accumulation):
            with self.autocast:
                _, loss = self.forward(*self.next)
                loss = loss / self.accumulation
            self.next = self.batch()  # while the GPU is at the forward pass
            self.scaler.scale(loss).backward()
        if self.cfg.grad_clip:
            self.scaler.unscale_(self.adamw)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.cfg.grad_clip)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        self.iter += 1

    @torch.no_grad()
    def evaluate(self, split: str) -> dict:
        """As train.Trainer.evaluate, on the same windows."""
        cfg = self.cfg
        sizes = cfg.block_size, cfg.batch_size, cfg.vocab_size, self.device
        data = {s: loader.Loader(cfg.dataset, s, *sizes) for s in {split, 'val'}}

        def loss_of(x, y):
            with self.autocast:
                return self.forward(x, y.contiguous())[1]  # it takes views of y

        self.net.eval()
        found = losses.evaluate(loss_of, data, split, cfg.eval_iters * cfg.batch_size)
        self.net.train()
        return found
