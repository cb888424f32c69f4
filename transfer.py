"""
Checkpoint in, checkpoint out.

    python transfer.py collapse --checkpoint=out/x/best.pt --out=out/x-dense/ckpt.pt
    python transfer.py prune --checkpoint=out/x/best.pt --out=out/x-pruned/ckpt.pt
    python transfer.py export-hf --checkpoint=out/x/best.pt --out=out/x-hf
    python transfer.py match config/d12.py -- config/d12_mlp3x_768.py --match=flops --solve=n_embd

collapse: multiply the factors out. nanoGPT's sample.py loads the result as well, if its other options are GPT-2's.
prune: cut out the hidden units whose gate (mlp_gate) has closed, and multiply the other gates into the matrices.
match: find the width (or factor, or expansion) at which a config costs what another one costs.
export-hf: write a folder that GPT2LMHeadModel.from_pretrained loads, tokenizer included.
A checkpoint may be ours, nanoGPT's or a Hugging Face GPT-2 folder. Each command says what it does to the function, on
real tokens, and writes nothing if the logits differ.
"""

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import checkpoint
import linear
import loader
from configurator import UserError, input_path, key, load, root_path, run
from match import match
from model import GPT, NANOGPT_KEYS, GPTConfig, model_args

TOLERANCE = 1e-4  # largest logit difference in float32 that a collapse may cause


@dataclass
class TransferConfig:
    checkpoint: str = key('', 'checkpoint to read')
    out: str = key('', 'checkpoint or folder to write')
    dataset: str = key('', "data set whose validation tokens the check runs on; empty: the checkpoint's own")
    windows: int = key(8, 'windows of block_size tokens to check', low=1)

    def problems(self):
        return [f'{k}: must be given, --{k}=PATH' for k in ('checkpoint', 'out') if not getattr(self, k)]


def collapse_model(model) -> GPT:
    """The plain GPT that computes what model computes; products are formed in float64. model is left as it is."""
    args = {f.name: getattr(model.config, f.name) for f in dataclasses.fields(GPTConfig)}
    plain = GPT(GPTConfig(**args | dict(linear='dense')))
    sd = linear.state(model)
    for name, m in model.named_modules():
        member = linear.member_of(m)
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


def open_model(cfg: TransferConfig):
    """The checkpoint, its model with activations going through its factors, and real tokens for it."""
    ckpt = checkpoint.load(cfg.checkpoint)
    model = checkpoint.build(ckpt, cfg.checkpoint, linear_path='factored')
    dataset = cfg.dataset or ckpt['config'].get('dataset')
    if not dataset:
        raise UserError(f'{cfg.checkpoint} does not name its data set; add --dataset=shakespeare_char or what it is')
    return ckpt, model, real_tokens(model, dataset, cfg.windows)


def report(cfg: TransferConfig, before, after, tokens):
    """Print what the operation did to the function; UserError if that is more than rounding."""
    worst, loss_before, loss_after = compare(before, after, *tokens)
    print(f'on {tokens[0].numel():,} validation tokens: loss {loss_before:.6f} -> {loss_after:.6f},')
    print(f'largest logit difference {worst:.2e} (limit {TOLERANCE:g})')
    if not worst <= TOLERANCE:  # NaN must not pass
        raise UserError(f'the function would change: {worst:.2e} is above {TOLERANCE:g}; {cfg.out} is not written')


def collapse(cfg: TransferConfig):
    ckpt, model, tokens = open_model(cfg)
    write_plain(cfg, ckpt, model, collapse_model(model), tokens)


def prune_model(model) -> GPT:
    """The plain GPT without the hidden units whose gate is closed; a layer keeps at least one unit."""
    model = collapse_model(model)
    sd, hidden = model.state_dict(), []
    for i, block in enumerate(model.transformer.h):
        name, gate = f'transformer.h.{i}.mlp', block.mlp.gate.detach().clamp(0, 1)
        keep = gate > 0
        keep[gate.argmax()] = True
        for k in (f'{name}.c_fc', f'{name}.c_gate'):
            for part in ('weight', 'bias'):
                if f'{k}.{part}' in sd:
                    sd[f'{k}.{part}'] = sd[f'{k}.{part}'][keep]
        sd[f'{name}.c_proj.weight'] = sd[f'{name}.c_proj.weight'][:, keep] * gate[keep]
        del sd[f'{name}.gate']
        hidden.append(int(keep.sum()))
    factors = tuple(h / model.config.n_embd for h in hidden)
    config = dataclasses.replace(
        model.config, mlp_gate=False, mlp_expansion_factor=factors, multiple_of=1, swiglu_match=False
    )
    pruned = GPT(config)
    linear.load_state(pruned, sd)
    return pruned.eval()


def prune(cfg: TransferConfig):
    ckpt, model, tokens = open_model(cfg)
    if not model.config.mlp_gate:
        raise UserError(f'{cfg.checkpoint} has no gates to prune by; train with --mlp_gate=true')
    pruned = prune_model(model)
    kept = [pruned.config.hidden(i) for i in range(pruned.config.n_layer)]
    print(f'hidden units per layer: {model.config.hidden(0)} -> {", ".join(map(str, kept))}')
    write_plain(cfg, ckpt, model, pruned, tokens)


def write_plain(cfg, ckpt, model, plain, tokens):
    """Write a checkpoint of plain, which was made from model, if they compute the same."""
    print(f'{model.num_params():,} parameters -> {plain.num_params():,}')
    report(cfg, model, plain, tokens)
    out = root_path(cfg.out)
    config = ckpt['config'] | dataclasses.asdict(plain.config)
    checkpoint.save(out, checkpoint.pack(plain, config, ckpt['iter_num'], ckpt['best_val_loss']))
    for name in ('meta.json', 'tokenizer.json'):
        beside = input_path(cfg.checkpoint).with_name(name)
        if beside.exists() and beside.parent != out.parent:
            checkpoint.copy(beside, out.with_name(name))
    beyond = set(model_args(plain.config)) - set(NANOGPT_KEYS)
    reader = f'only nanoMorph reads it, for its {", ".join(sorted(beyond))}' if beyond else 'nanoGPT reads it as well'
    print(f'wrote {out}; {reader}')


def export_hf(cfg: TransferConfig):
    import huggingface

    ckpt, model, tokens = open_model(cfg)
    hf = huggingface.to_gpt2(collapse_model(model))
    report(cfg, model, lambda idx, last_only: (hf(idx).logits, None), tokens)
    meta_path = input_path(cfg.checkpoint).with_name('meta.json')
    dataset = ckpt['config'].get('dataset')
    meta = json.loads(meta_path.read_text()) if meta_path.exists() else loader.read_meta(dataset) if dataset else {}
    out = root_path(cfg.out)
    tmp = out.with_name(f'{out.name}.tmp{os.getpid()}')
    try:
        hf.save_pretrained(tmp)
        huggingface.tokenizer(meta, meta_path.parent).save_pretrained(tmp)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(tmp, out)
    except OSError as e:
        raise UserError(f'cannot write {out} ({e.strerror}); choose another --out') from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    print(f'wrote {out}: transformers.GPT2LMHeadModel.from_pretrained({str(out)!r})')


def main():
    commands = dict(collapse=collapse, prune=prune, match=match) | {'export-hf': export_hf}
    args = sys.argv[1:]
    if not args or args[0] in ('--help', '-h'):
        print(f'{__doc__.strip()}\n\npython transfer.py COMMAND --help lists the keys of {", ".join(commands)}')
    elif args[0] not in commands:
        raise UserError(f"unknown command '{args[0]}'; use one of {', '.join(commands)}")
    elif args[0] == 'match':
        match(args[1:])
    else:
        commands[args[0]](load(TransferConfig, args[1:]))


if __name__ == '__main__':
    run(main)
