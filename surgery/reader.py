"""
Open any checkpoint by its path: a file of ours or of nanoGPT, a Hugging Face GPT-2 folder, or gpt2 ... gpt2-xl from the
hub. Every command reads checkpoints here, so all of them check what a file claims (claims.py).
"""

import checkpoint
from configurator import UserError, input_path
from surgery import claims, nanogpt

HUB_NAMES = ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')


def load(path) -> dict:
    """The dict of checkpoint.load: model, model_args, config, iter_num, best_val_loss. UserError if there is no
    checkpoint, or if its tensors do not fit what it says of itself."""
    found = input_path(str(path))
    if inside := [n for n in ('best.pt', 'ckpt.pt') if (found / n).exists()]:
        raise UserError(f'{found} is the folder of a run; name its checkpoint: {found / inside[0]}')
    refuse_shares(found)
    latest = found.with_name('ckpt.pt')
    if found.name == 'best.pt' and not found.exists() and latest.exists():
        raise UserError(f'no checkpoint at {found}: it comes with the first evaluation below the start; take {latest}')
    if found.is_dir() or str(path) in HUB_NAMES and not found.exists():
        from surgery.huggingface import load_gpt2  # only here: transformers takes seconds to import

        return load_gpt2(str(found) if found.is_dir() else found.name)
    ckpt = checkpoint.load(path)
    theirs = 'format' not in ckpt
    if theirs:
        ckpt['model'] = nanogpt.names(ckpt['model'], path)
    model = claims.check_model(ckpt, path)
    if theirs:
        nanogpt.adopt_optimizer(ckpt, model)
    claims.check_resume(ckpt, model, path)
    return ckpt


def refuse_shares(path):
    """UserError if path is a checkpoint in shares (shares.py), or a run, or the best.pt or ckpt.pt of a run, that has shares
    only. It gives the command that makes the plain file."""
    folder, what = path, f'{path} is a checkpoint in shares, for its own run to resume'
    if not (path / 'rest.pt').exists():
        if not path.is_dir() and (path.exists() or path.name not in ('best.pt', 'ckpt.pt')):
            return
        inside = [p.parent for p in (path if path.is_dir() else path.parent).glob('shards-*/rest.pt')]
        if not inside:
            return
        inside.sort(key=lambda p: (len(p.name), p.name))  # the best before the last, shards-80 before shards-100
        folder = inside[-1 if path.name == 'ckpt.pt' else 0]
        what = f'no checkpoint at {path}: it is in shares'
    raise UserError(
        f'{what}; make a plain file of it: python transfer.py consolidate --checkpoint={folder} --out={folder}.pt'
    )
