"""
Make a checkpoint from a checkpoint.

    python transfer.py collapse --checkpoint=out/x/best.pt --out=out/x-dense/ckpt.pt
    python transfer.py expand --checkpoint=out/x/best.pt --linear_layers='h.0.*' --out=out/x-expanded/ckpt.pt
    python transfer.py prune --checkpoint=out/x/best.pt --out=out/x-pruned/ckpt.pt
    python transfer.py export-hf --checkpoint=out/x/best.pt --out=out/x-hf
    python transfer.py export-nanogpt --checkpoint=out/x/ckpt.pt --out=out/x-nanogpt/ckpt.pt
    python transfer.py match config/d12.py -- config/d12_mlp3x_768.py --match=flops --solve=n_embd
    python transfer.py grow --checkpoint=out/x/ckpt.pt --n_embd=768 --method=clone --noise=0.3 --out=out/x-large/ckpt.pt
    python transfer.py factorize --checkpoint=out/x/ckpt.pt --linear=kronecker --keep_dense='h.0.*' --out=out/x-kronecker/ckpt.pt
    python transfer.py consolidate --checkpoint=out/x/shards-500 --out=out/x/shards-500.pt
    python transfer.py spectra --checkpoints=out/x/ckpt.pt,out/x-large/ckpt.pt --out=out/spectra.png

collapse: multiply the factors of every layer, which gives plain matrices. nanoGPT's sample.py can load the result if
    the model's other options are GPT-2's.
expand: the reverse: replace plain matrices by products of factors that equal them.
prune: remove the hidden units whose gate (mlp_gate) has closed, and multiply the other gates into the matrices.
match: find the width (or factor, or expansion) at which a config costs as much as another one.
grow: make a wider or deeper model; `transfer.py grow --help` lists the methods.
factorize: replace plain matrices by structured ones, of given shapes or for a budget of parameters.
spectra: compare the singular values of every matrix, across checkpoints and model sizes.
consolidate: write the plain file of a checkpoint that several processes wrote in shares (sharded_checkpoints).
export-hf: write a folder that GPT2LMHeadModel.from_pretrained loads, tokenizer included.
export-nanogpt: write a dense run's checkpoint, optimizer state included, so that nanoGPT's train.py resumes it.
A checkpoint may be ours, nanoGPT's or a Hugging Face GPT-2 folder. A command that changes a model prints how far the
logits and the loss moved on validation tokens. One that should not change them writes nothing if it does.
"""

import sys

from configurator import UserError, load, nearest, run
from lab.match import match
from surgery.collapse import ExpandConfig, TransferConfig, collapse, expand, prune
from surgery.export_hf import export_hf
from surgery.export_nanogpt import export_nanogpt
from surgery.factorize import FactorizeConfig, factorize
from surgery.grow.growth import GrowConfig, grow
from surgery.shares import ConsolidateConfig, consolidate
from surgery.spectra import SpectraConfig, spectra

COMMANDS = {  # name: (keys, operation)
    'collapse': (TransferConfig, collapse),
    'expand': (ExpandConfig, expand),
    'prune': (TransferConfig, prune),
    'export-hf': (TransferConfig, export_hf),
    'export-nanogpt': (TransferConfig, export_nanogpt),
    'grow': (GrowConfig, grow),
    'factorize': (FactorizeConfig, factorize),
    'spectra': (SpectraConfig, spectra),
    'consolidate': (ConsolidateConfig, consolidate),
}


def main():
    args, names = sys.argv[1:], ', '.join([*COMMANDS, 'match'])
    if not args or args[0] in ('--help', '-h'):
        print(f'{__doc__.strip()}\n\npython transfer.py COMMAND --help lists the keys of {names}')
    elif args[0] == 'match':  # two configs, as for train.py
        match(args[1:])
    elif args[0] not in COMMANDS:
        raise UserError(f"unknown command '{args[0]}'; use one of {names}{nearest(args[0], names.split(', '))}")
    else:
        keys, operation = COMMANDS[args[0]]
        operation(load(keys, args[1:]))


if __name__ == '__main__':
    run(main)
