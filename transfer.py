"""
Checkpoint in, checkpoint out.

    python transfer.py collapse --checkpoint=out/x/best.pt --out=out/x-dense/ckpt.pt

collapse: multiply the factors out. The result is a plain GPT that nanoGPT's sample.py loads as well.
"""

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import checkpoint
import linear
import loader
from configurator import UserError, key, load, root_path, run
from model import GPT, NANOGPT_KEYS, GPTConfig

TOLERANCE = 1e-4  # largest logit difference in float32 that a collapse may cause


@dataclass
class CollapseConfig:
    checkpoint: str = key('', 'checkpoint to collapse')
    out: str = key('', 'checkpoint to write')
    dataset: str = key('', "data set whose validation tokens the check runs on; empty: the checkpoint's own")
    windows: int = key(8, 'windows of block_size tokens to check', low=1)

    def problems(self):
        return [f'{k}: must be given, --{k}=PATH' for k in ('checkpoint', 'out') if not getattr(self, k)]


def collapse_model(model) -> GPT:
    """The plain GPT that computes what model computes; products are formed in float64. model is left as it is."""
    plain = GPT(GPTConfig(**{k: getattr(model.config, k) for k in NANOGPT_KEYS}))
    sd = linear.state(model)
    for name, m in model.named_modules():
        member = m.beside[0] if isinstance(m, linear.Dense) and m.beside is not None else m
        if hasattr(member, 'factors'):
            sd = {k: v for k, v in sd.items() if not k.startswith(f'{name}.') or k == f'{name}.bias'}
            sd[f'{name}.weight'] = linear.dense_float64(member)
    linear.load_state(plain, sd)
    return plain.eval()


def real_tokens(model, dataset: str, windows: int):
    """x, y (windows, block_size) from the validation split."""
    loader.prepare(dataset)
    c = model.config
    data = loader.Loader(dataset, 'val', c.block_size, 1, c.vocab_size)
    pairs = [(x, y) for x, y, _ in data.eval_batches(windows)]
    return [torch.cat(t) for t in zip(*pairs)]


@torch.no_grad()
def compare(before, after, x, y) -> tuple[float, float, float]:
    """(largest logit difference, loss before, loss after) on tokens x with targets y, window by window."""
    worst, losses = torch.zeros(()), [0.0, 0.0]
    for i in range(len(x)):
        logits = [m(x[i : i + 1], last_only=False)[0].float() for m in (before, after)]
        worst = torch.maximum(worst, (logits[0] - logits[1]).abs().max())  # unlike max(), it keeps a NaN
        for j in (0, 1):
            losses[j] += F.cross_entropy(logits[j][0], y[i]).item() / len(x)
    return worst.item(), *losses


def collapse(cfg: CollapseConfig):
    ckpt = checkpoint.load(cfg.checkpoint)
    model = checkpoint.build(ckpt, cfg.checkpoint, linear_path='factored')  # activations go through the factors
    dataset = cfg.dataset or ckpt['config'].get('dataset')
    if not dataset:
        raise UserError(f'{cfg.checkpoint} does not name its data set; add --dataset=shakespeare_char or what it is')
    plain = collapse_model(model)
    x, y = real_tokens(model, dataset, cfg.windows)
    worst, loss_before, loss_after = compare(model, plain, x, y)
    print(f'{model.num_params():,} parameters -> {plain.num_params():,}')
    print(f'on {x.numel():,} validation tokens of {dataset}: loss {loss_before:.6f} -> {loss_after:.6f},')
    print(f'largest logit difference {worst:.2e} (limit {TOLERANCE:g})')
    if not worst <= TOLERANCE:  # NaN must not pass
        raise UserError(f'collapse changes the function: {worst:.2e} is above {TOLERANCE:g}; {cfg.out} is not written')
    out = root_path(cfg.out)
    config = ckpt['config'] | {'linear': 'dense'}
    checkpoint.save(out, checkpoint.pack(plain, config, ckpt['iter_num'], ckpt['best_val_loss']))
    meta = checkpoint.input_path(cfg.checkpoint).with_name('meta.json')
    if meta.exists() and meta.parent != out.parent:
        checkpoint.copy(meta, out.with_name('meta.json'))
    print(f'wrote {out}')


COMMANDS = {'collapse': (CollapseConfig, collapse)}


def main():
    args = sys.argv[1:]
    if not args or args[0] in ('--help', '-h'):
        print(__doc__.strip())
        print(f'\ncommands: {", ".join(COMMANDS)}; python transfer.py COMMAND --help lists its keys')
        return
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command '{args[0]}'; use one of {', '.join(COMMANDS)}")
    schema, command = COMMANDS[args[0]]
    command(load(schema, args[1:]))


if __name__ == '__main__':
    run(main)
