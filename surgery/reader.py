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
    latest = found.with_name('ckpt.pt')
    if found.name == 'best.pt' and not found.exists():
        if inside := sorted(found.parent.glob('shards-*/rest.pt')):  # a run's best, unless that was its last one
            raise UserError(
                f'no checkpoint at {found}: it is in shares; python transfer.py consolidate'
                f' --checkpoint={inside[0].parent} --out={inside[0].parent}.pt'
            )
        if latest.exists():
            raise UserError(
                f'no checkpoint at {found}: it comes with the first evaluation below the start; take {latest}'
            )
    if (found / 'rest.pt').exists():
        raise UserError(
            f'{found} is a checkpoint in shares, for its own run to resume; others take the plain file of it: python transfer.py'
            f' consolidate --checkpoint={path} --out={path}.pt'
        )
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
