"""
Checkpoints: save, verify, restore. One format, a dict of tensors, numbers and strings in torch's zip file, read with
torch.load(weights_only=True), so a checkpoint cannot run code:

    model          {name: tensor}, factors in place of the matrices formed from them
    model_args     GPTConfig keys; of a plain model only nanoGPT's, so that nanoGPT reads the file. They describe this very
                   model: of a run that expands one layer at a time (rotate.py), the layer that is expanded now
    config         the resolved training config
    iter_num, best_val_loss
    format         'nanomorph 2'; 1 is read as well
    tokenizer      what the token ids mean, see tokens/tokenizer.py
  and, in a checkpoint to resume from:
    optimizer      {name: {step, exp_avg, exp_avg_sq}}; of matrices under another optimizer what it keeps: {momentum} ...
    position       windows of training data consumed
    data           {train, val}: tokens of the data set, which say whether position still means the same
    began          init_from of the run's first part
    teacher        checksum of the weights of distill_from, '' without
    seconds        time spent training
    tokens         consumed; iterations can differ in size, where a run was resumed with other batches
    loss_sum, loss_count   of the micro-batches since the last line of the log
    best_iter      iteration of best_val_loss
    lowest_a, lowest_a_iter   lowest loss on the first half of val, and its iteration: for patience
    scaler, rng    GradScaler state; random states {cpu: [per rank], cuda: [per rank]}

A nanoGPT checkpoint has no `format`. Commands read through surgery/reader.py, which takes these and a Hugging Face GPT-2,
and checks that what a file claims fits what is in it.
"""

import contextlib
import dataclasses
import math
import os
import pickletools
import zipfile
import zlib
from pathlib import Path

import torch

import files
import linear
from configurator import UserError, brief, input_path
from linear.factors import load_state
from model import GPT, GPTConfig, model_args

FORMAT, OLD = 'nanomorph 2', 'nanomorph 1'  # 1: with mup_base the logits of an untied head were multiplied too


def pack(model, config: dict, iter_num: int, best_val_loss: float, factors=None, **resume) -> dict:
    """A checkpoint to save. factors: those beside the model (linear.factors.Factors); ValueError if they are left out."""
    for name in map(linear.module_name, linear.chosen(model.config)):
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
    tmp = files.temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(tmp, 'wb') as f:
            torch.save(ckpt, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as RuntimeError
        why = getattr(e, 'strerror', None) or f'{first_line(e)}: is the disk full?'
        raise UserError(f'cannot write {path} ({why}); {path.name} is as it was before') from None
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink()
    files.sync_dir(path.parent)


def keep(folder: Path, iter_num: int, last: int):
    """Copy ckpt.pt, just written, to ckpt-ITERATION.pt, and delete all but the `last` such copies. last = 0: no copy."""
    if last:
        files.copy(folder / 'ckpt.pt', folder / f'ckpt-{iter_num}.pt')
        number = lambda path: int(path.stem.removeprefix('ckpt-'))
        kept = [p for p in folder.glob('ckpt-*.pt') if p.stem.removeprefix('ckpt-').isdigit()]
        for path in sorted(kept, key=number)[:-last]:
            path.unlink(missing_ok=True)


def load(path: str | Path, map_location='cpu') -> dict:
    """Read and verify a checkpoint, ours or nanoGPT's. UserError if it is missing, truncated, altered or foreign."""
    path = input_path(str(path))
    if not path.is_file():
        raise UserError(
            f'no checkpoint at {path}; train one first, or give the right one (--checkpoint, --init_from, --out_dir)'
        )
    check_zip(path)
    try:
        ckpt = torch.load(path, map_location=map_location, weights_only=True, mmap=True)  # save() never writes in place
    except Exception as e:  # whatever the unpickler says, the user needs one line
        raise UserError(f'{path} is no checkpoint of tensors and plain values ({first_line(e)})') from None
    parts = [ckpt.get(k) for k in ('model', 'model_args')] if isinstance(ckpt, dict) else [None]
    if not all(isinstance(p, dict) for p in parts):
        has = ', '.join(ascii(k)[:40] for k in list(ckpt)[:5]) if isinstance(ckpt, dict) else type(ckpt).__name__
        raise UserError(
            f'{path} is not a checkpoint of nanoMorph or nanoGPT: no model and model_args in it (has: {has})'
        )
    if not isinstance(f := ckpt.get('format', FORMAT), str) or f not in (FORMAT, OLD):
        raise UserError(
            f"{path} has format {ascii(brief(f, 40))}, this version reads '{FORMAT}'; use the version that wrote it"
        )
    args = ckpt['model_args']
    if f == OLD and args.get('mup_base') and args.get('tie_head') is False:
        raise UserError(
            f'{path}: {OLD} multiplied the logits of an untied head under mup_base, this version does not: to the same'
            ' weights it gives other logits. Train it again, or check out the commit that wrote it, which is in the'
            ' manifest.json beside it'
        )
    ckpt['model'] = check_tensors(ckpt['model'], path)
    ckpt.setdefault('config', {})
    ckpt.setdefault('iter_num', 0)
    ckpt.setdefault('best_val_loss', float('inf'))
    return ckpt


def check_zip(path: Path):
    """UserError unless the zip file is whole and stored as torch stores it. Every checksum is tested (torch.load tests
    none). torch maps the file into memory, so of a compressed one it would take the compressed bytes for numbers."""
    corrupted = lambda what: UserError(f'{path} is corrupted ({what}); restore it from a copy')
    try:
        with zipfile.ZipFile(path) as z:
            if packed := next((i.filename for i in z.infolist() if i.compress_type != zipfile.ZIP_STORED), None):
                raise UserError(
                    f'{path} was zipped again with compression ({ascii(packed)[:60]}); unpack it, and zip it without:'
                    ' zip -0 -r'
                )
            if sum(i.file_size for i in z.infolist()) > path.stat().st_size:
                raise corrupted('its parts are larger than the file')
            if broken := z.testzip():
                raise corrupted(f'checksum of {ascii(broken)[:60]} does not match')
            check_names((z.read(name) for name in z.namelist() if name.endswith('data.pkl')), path)
    except UserError:
        raise
    except Exception as e:  # zipfile has many ways to fail on damaged headers
        raise UserError(
            f'{path} is truncated or no checkpoint ({first_line(e)}); restore it from a copy, or train again'
        ) from None


def check_names(pickles, path):
    """UserError if one of the pickles (bytes, or an open file at its place) names what torch.load itself cannot cope with:
    bytearray, which it lets ask for as many bytes as there are, or a name so long that its message about it takes minutes
    to build."""
    for data in pickles:
        for op, arg, _ in pickletools.genops(data):
            if op.name == 'GLOBAL' and (arg.endswith(' bytearray') or len(arg) > 200):
                raise UserError(
                    f'{path} is no checkpoint of tensors and plain values (it names {brief(ascii(arg), 60)}); restore it'
                    ' from a copy'
                )


def check_tensors(model: dict, path) -> dict:
    """{name: tensor on one piece of memory, in at least 32 bits}. UserError if a part is no tensor, or if the tensors
    claim more numbers than the file holds (one number can be repeated for ever, by a stride of 0)."""
    size, total = path.stat().st_size, 0
    for k, v in model.items():
        ok = isinstance(k, str) and dense(v) and not v.is_complex()
        total += v.numel() * v.element_size() if ok else 0
        if not ok or total > 2 * size:
            raise UserError(
                f'{path}: {ascii(k)[:80]} in model is no tensor that this file holds; restore it from a copy'
            )
    whole = lambda v: v.float() if v.dtype in (torch.bfloat16, torch.float16) else v  # surgery in 16 bits is not exact
    return {k: whole(v.detach()).contiguous() for k, v in model.items()}


def dense(v) -> bool:
    """Whether v is an ordinary tensor whose numbers are all in its storage, not one number that is repeated."""
    if not isinstance(v, torch.Tensor) or v.layout != torch.strided or v.is_quantized or v.is_nested or v.is_meta:
        return False
    return v.numel() * v.element_size() <= v.untyped_storage().nbytes()


def checksum(tensors: dict) -> str:
    """The checksum of a state dict. It tells a model from another one that was saved at the same path."""
    crc = 0
    for t in tensors.values():
        crc = zlib.crc32(t.detach().contiguous().flatten().view(torch.uint8).numpy(), crc)
    return f'crc32 {crc:08x}'


def first_line(e: Exception) -> str:
    """What an exception says, in one short line."""
    text = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
    return text if text.isprintable() else ascii(text)


def read_args(ckpt: dict, path) -> dict:
    """All keys of GPTConfig for the checkpoint's model. UserError if this version does not know one of them."""
    known = {f.name: f.default for f in dataclasses.fields(GPTConfig)}
    if odd := sorted(set(ckpt['model_args']) - set(known)):
        raise UserError(f'{path}: model_args has keys that this version does not know: {", ".join(odd)}')
    return known | ckpt['model_args']


def tokens_per_iter(config: dict) -> int:
    """Tokens of an optimizer step of a run, by the config in its checkpoint; 0 if that does not say."""
    return math.prod(config.get(k, 0) for k in ('gradient_accumulation_steps', 'batch_size', 'block_size'))


def build(ckpt: dict, path='checkpoint') -> GPT:
    """The checkpoint's model on the CPU, in evaluation mode, its factors in it."""
    model = GPT(GPTConfig(**read_args(ckpt, path)))
    try:
        load_state(model, ckpt['model'])
    except UserError as e:
        raise UserError(f'{path}: {e}') from None
    return model.eval()
