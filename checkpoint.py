"""
Checkpoints: save, verify, restore. One format, a dict of tensors, numbers and strings in torch's zip file, read with
torch.load(weights_only=True), so a checkpoint cannot run code:

    model          {name: tensor}, factors in place of the matrices formed from them
    model_args     GPTConfig keys; of a plain model only nanoGPT's, so that nanoGPT reads the file. They describe this very
                   model: of a run that expands one layer at a time (rotate.py), the layer that is expanded now
    config         the resolved training config
    iter_num, best_val_loss
    format         'nanomorph 1'
    tokenizer      what the token ids mean, see tokens/tokenizer.py
  and, in a checkpoint to resume from:
    optimizer      {name: {step, exp_avg, exp_avg_sq}}
    position       windows of training data consumed
    seconds        time spent training
    best_iter      iteration of best_val_loss
    scaler, rng    GradScaler state; random states {cpu: [per rank], cuda: [per rank]}

A nanoGPT checkpoint (no `format`, perhaps `_orig_mod.` before its names) is read as well. surgery/reader.py reads these
and a Hugging Face GPT-2.
"""

import contextlib
import dataclasses
import os
import zipfile
from pathlib import Path

import torch

import files
import linear
from configurator import UserError, input_path
from linear.factors import load_state
from model import GPT, GPTConfig, model_args

FORMAT = 'nanomorph 1'


def pack(model, config: dict, iter_num: int, best_val_loss: float, factors=None, **resume) -> dict:
    """A checkpoint to save. factors: those beside the model (linear.factors.Factors); ValueError if they are left out."""
    for name in map(linear.path, linear.chosen(model.config)):
        if name not in (factors or ()) and not hasattr(model.get_submodule(name), 'factors'):
            raise ValueError(
                f'{name} is formed from factors that lie beside the model: pack(..., factors=...) needs them'
            )
    return dict(
        format=FORMAT,
        model=factors.state() if factors else model.state_dict(),
        model_args=model_args(model.config),
        config=config,
        iter_num=iter_num,
        best_val_loss=best_val_loss,
        **resume,
    )


def save(path: Path, ckpt: dict):
    """Write to a temporary file, sync, rename: whatever happens, path holds the old checkpoint or the new one."""
    tmp = path.with_name(f'{path.name}.tmp{os.getpid()}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, 'wb') as f:
            torch.save(ckpt, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)
        raise UserError(f'cannot write {path} ({str(e).splitlines()[0]}); {path.name} is as it was before') from None
    files.sync_dir(path.parent)


def load(path: str | Path, map_location='cpu') -> dict:
    """Read and verify a checkpoint, ours or nanoGPT's.
    Raises UserError if it is missing, truncated, altered (every checksum is tested; torch.load tests none) or foreign."""
    path = input_path(str(path))
    if not path.is_file():
        raise UserError(f'no checkpoint at {path}; train one first, or give the right --checkpoint / --out_dir')
    try:
        with zipfile.ZipFile(path) as z:
            broken = z.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as e:
        raise UserError(f'{path} is truncated or no checkpoint ({e}); restore it from a copy, or train again') from None
    if broken:
        raise UserError(f'{path} is corrupted (checksum of {broken} does not match); restore it from a copy')
    try:
        ckpt = torch.load(path, map_location=map_location, weights_only=True, mmap=True)  # save() never writes in place
    except Exception as e:  # whatever the unpickler says, the user needs one line
        raise UserError(f'{path} is no checkpoint of tensors and plain values ({str(e).splitlines()[0]})') from None
    if not isinstance(ckpt, dict) or not {'model', 'model_args'} <= set(ckpt):
        has = ', '.join(map(str, list(ckpt)[:5])) if isinstance(ckpt, dict) else type(ckpt).__name__
        raise UserError(
            f'{path} is not a checkpoint of nanoMorph or nanoGPT: no model and model_args in it (has: {has})'
        )
    if ckpt.get('format', FORMAT) != FORMAT:
        raise UserError(
            f"{path} has format '{ckpt['format']}', this version reads '{FORMAT}'; use the version that wrote it"
        )
    whole = lambda v: v.float() if v.dtype in (torch.bfloat16, torch.float16) else v  # surgery in 16 bits is not exact
    ckpt['model'] = {k.removeprefix('_orig_mod.'): whole(v) for k, v in ckpt['model'].items()}
    ckpt.setdefault('config', {})
    ckpt.setdefault('iter_num', 0)
    ckpt.setdefault('best_val_loss', float('inf'))
    return ckpt


def read_args(ckpt: dict, path) -> dict:
    """All keys of GPTConfig for the checkpoint's model. UserError if this version does not know one of them."""
    known = {f.name: f.default for f in dataclasses.fields(GPTConfig)}
    if odd := sorted(set(ckpt['model_args']) - set(known)):
        raise UserError(f'{path}: model_args has keys that this version does not know: {", ".join(odd)}')
    return known | ckpt['model_args']


def build(ckpt: dict, path='checkpoint') -> GPT:
    """The checkpoint's model on the CPU, in evaluation mode, its factors in it."""
    model = GPT(GPTConfig(**read_args(ckpt, path)))
    try:
        load_state(model, ckpt['model'])
    except UserError as e:
        raise UserError(f'{path}: {e}') from None
    return model.eval()
