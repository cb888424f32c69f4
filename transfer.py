"""
Checkpoint in, checkpoint out.

    python transfer.py collapse --checkpoint=out/x/best.pt --out=out/x-dense/ckpt.pt
    python transfer.py expand --checkpoint=out/x/best.pt --linear_layers='h.0.*' --out=out/x-expanded/ckpt.pt
    python transfer.py prune --checkpoint=out/x/best.pt --out=out/x-pruned/ckpt.pt
    python transfer.py export-hf --checkpoint=out/x/best.pt --out=out/x-hf
    python transfer.py match config/d12.py -- config/d12_mlp3x_768.py --match=flops --solve=n_embd
    python transfer.py grow --checkpoint=out/x/ckpt.pt --n_embd=768 --method=clone --noise=0.3 --out=out/x-large/ckpt.pt
    python transfer.py factorize --checkpoint=out/x/ckpt.pt --linear=kronecker --keep_dense='h.0.*' --out=out/x-kronecker/ckpt.pt
    python transfer.py spectra --checkpoints=out/x/ckpt.pt,out/x-large/ckpt.pt --out=out/spectra.png

collapse: multiply the factors out. nanoGPT's sample.py loads the result as well, if its other options are GPT-2's.
expand: the other way round, plain matrices into products of factors that are exactly them.
prune: cut out the hidden units whose gate (mlp_gate) has closed, and multiply the other gates into the matrices.
match: find the width (or factor, or expansion) at which a config costs what another one costs.
grow: a wider or deeper model out of a small one, see growth.py for the methods.
factorize: plain matrices into structured ones, by hand or for a budget, see factorize.py.
spectra: the singular values of every matrix, across checkpoints and model sizes.
export-hf: write a folder that GPT2LMHeadModel.from_pretrained loads, tokenizer included.
A checkpoint may be ours, nanoGPT's or a Hugging Face GPT-2 folder. Each command says what it does to the function, on
real tokens, and one that should keep it writes nothing if the logits differ.
"""

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass

import checkpoint
import linear
import loader
import rotate
from configurator import UserError, input_path, key, load, root_path, run
from factorize import FactorizeConfig, factorize, twin
from growth import GrowConfig, grow
from match import match
from model import GPT, GPTConfig
from spectra import SpectraConfig, spectra
from surgery import SurgeryConfig, layer_of, open_model, put, report, with_keys, write


class TransferConfig(SurgeryConfig):  # a class of this file, so that --help prints the head of this file
    pass


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


def collapse(cfg: TransferConfig):
    ckpt, model, tokens = open_model(cfg)
    write_plain(cfg, ckpt, model, collapse_model(model), tokens)


@dataclass
class ExpandConfig(with_keys('linear_layers', 'keep_dense', 'expansion')):
    expansion_init: str = key('orthogonal', 'both exactly the matrix that is there', choices=('orthogonal', 'svd'))
    seed: int = key(1337, 'seed of the orthonormal factors', low=0)


def expand_model(model, config, seed: int) -> GPT:
    """The GPT of config whose expanded layers compute what those of the plain model compute. model is left as it is."""
    new = twin(model)
    new.config = config
    for site in linear.chosen(config):
        layer = layer_of(model, site)
        member = rotate.expansion(layer, config, site, seed)
        member.bias = layer.bias
        put(new, site, member)
    return new


def expand(cfg: ExpandConfig):
    ckpt, model, tokens = open_model(cfg)
    if model.config.linear != 'dense':
        raise UserError(f'{cfg.checkpoint}: its layers are {model.config.linear}; collapse it first')
    keys = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if hasattr(model.config, f.name)}
    config = dataclasses.replace(model.config, linear='expanded', linear_path='factored', **keys)
    if found := config.problems():
        raise UserError('\n'.join(found))
    if not linear.chosen(config):
        raise UserError(f"linear_layers = '{cfg.linear_layers}': leaves no layer to expand")
    new = expand_model(model, config, cfg.seed)
    print('\n'.join(linear.table(new)))
    print(f'{model.num_params():,} parameters -> {new.num_params():,}')
    report(cfg, model, new, tokens)
    config = ckpt['config'] | dataclasses.asdict(config)
    write(cfg, checkpoint.pack(new, config, ckpt['iter_num'], ckpt['best_val_loss']))


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
    config = ckpt['config'] | dataclasses.asdict(plain.config)
    write(cfg, checkpoint.pack(plain, config, ckpt['iter_num'], ckpt['best_val_loss']))


def export_hf(cfg: TransferConfig):
    import huggingface

    out = root_path(cfg.out)
    found = {p.name for p in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    if foreign := sorted(found - huggingface.EXPORTED):
        raise UserError(f'{out} holds what is no part of an export ({foreign[0]}); choose another --out')
    ckpt, model, tokens = open_model(cfg)
    hf = huggingface.to_gpt2(collapse_model(model))
    report(cfg, model, lambda idx, last_only: (hf(idx).logits, None), tokens)
    meta_path = input_path(cfg.checkpoint).with_name('meta.json')
    dataset = ckpt['config'].get('dataset')
    meta = json.loads(meta_path.read_text()) if meta_path.exists() else loader.read_meta(dataset) if dataset else {}
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


COMMANDS = {  # name: (keys, operation)
    'collapse': (TransferConfig, collapse),
    'expand': (ExpandConfig, expand),
    'prune': (TransferConfig, prune),
    'export-hf': (TransferConfig, export_hf),
    'grow': (GrowConfig, grow),
    'factorize': (FactorizeConfig, factorize),
    'spectra': (SpectraConfig, spectra),
}


def main():
    args, names = sys.argv[1:], ', '.join([*COMMANDS, 'match'])
    if not args or args[0] in ('--help', '-h'):
        print(f'{__doc__.strip()}\n\npython transfer.py COMMAND --help lists the keys of {names}')
    elif args[0] == 'match':  # two configs, as for train.py
        match(args[1:])
    elif args[0] not in COMMANDS:
        raise UserError(f"unknown command '{args[0]}'; use one of {names}")
    else:
        keys, operation = COMMANDS[args[0]]
        operation(load(keys, args[1:]))


if __name__ == '__main__':
    run(main)
