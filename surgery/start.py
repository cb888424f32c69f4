"""
What a run starts from, other than scratch: the keys that come with a checkpoint, the small model that is trained first.
"""

import dataclasses
import gc

import torch
import torch.distributed as dist

import checkpoint
import hardware
from configurator import UserError, input_path, overrides, printable, root_path
from model import COMPUTING, PARAMETERIZATION
from surgery import reader, rotate
from tokens import loader, tokenizer


def take_model_keys(cfg, ckpt: dict, path):
    """cfg with the architecture of a checkpoint, as nanoGPT does; dropout stays, block_size may shrink. Resuming, or
    going on from factors, takes the parameterization as well; starting from a plain model lets cfg choose another."""
    args = checkpoint.read_args(ckpt, path)
    drop = ['dropout', *COMPUTING]
    if cfg.init_from != 'resume':
        shape = [k for k in args if k.startswith(PARAMETERIZATION) and k != 'linear_path']
        if args['linear'] == 'dense':
            drop += shape
        elif cfg.expansion_schedule != 'all':
            raise UserError(
                f'init_from = {path}: its layers are {args["linear"]}, expansion_schedule = {cfg.expansion_schedule}'
                ' starts from plain ones; collapse it first: python transfer.py collapse'
            )
        elif other := [k for k in overrides(cfg) if k in shape and getattr(cfg, k) != args[k]]:
            raise UserError(
                f'init_from = {path}: its layers are {args["linear"]}; leave out {", ".join(other)} to go on with them,'
                ' or collapse it first: python transfer.py collapse'
            )
        if cfg.block_size < args['block_size'] and args['position'] == 'learned':
            wpe = 'transformer.wpe.weight'
            ckpt['model'][wpe] = ckpt['model'][wpe][: cfg.block_size]
        args['block_size'] = min(cfg.block_size, args['block_size'])
    else:
        args |= rotate.resumed(ckpt)
    args = {k: v for k, v in args.items() if k not in drop}
    changed = {k: v for k, v in args.items() if getattr(cfg, k) != v and (k, getattr(cfg, k)) != ('vocab_size', 0)}
    if changed and not hardware.rank_world()[0]:
        text = ', '.join(f'{k} = {v}' for k, v in changed.items())
        print(f'taken from the checkpoint: {printable(text)}', flush=True)
    return dataclasses.replace(cfg, **args)


def data_vocabulary(cfg, ckpt: dict | None, path) -> dict:
    """Prepare the data set, in one process, and give its vocabulary (tokenizer.py). Raises UserError if its ids mean
    something else in the checkpoint to start from: before hours of preparation, where the recipe declares its tokens."""
    resume, (rank, world) = cfg.init_from == 'resume', hardware.rank_world()
    model = tokenizer.of_checkpoint(input_path(str(path)), ckpt) if ckpt else {}
    remedy = 'prepare the data set as it was, or start a new run' if resume else (
        'take data in its tokens, or add --other_vocabulary=true where ids shall get other meanings'
    )  # fmt: skip
    what = f'init_from = {path}' if cfg.init_from != 'transfer' else f'transfer_from = {path}'
    kinds = {model.get('tokenizer'), loader.recipe_tokenizer(cfg.dataset)} - {'', None, 'huggingface'}
    if ckpt and len(kinds) > 1 and not cfg.other_vocabulary:
        own = loader.recipe_tokenizer(cfg.dataset)
        raise UserError(
            f'{what}: its vocabulary is {tokenizer.describe(model)}, the data set {cfg.dataset} has {own} tokens; {remedy}'
        )
    if not rank:
        loader.prepare(cfg.dataset)
    if world > 1:
        dist.barrier()
    data = tokenizer.of_data(cfg.dataset)
    if ckpt and not cfg.other_vocabulary:
        note = tokenizer.require_same(model, data, what, remedy, strict=resume)
        if note and not rank:
            print(note, flush=True)
    elif ckpt and not rank and tokenizer.compare(model, data) == 'other':
        print(
            f'NOTE: {what}: its vocabulary was {tokenizer.describe(model)}; the ids get the meanings of {cfg.dataset}'
        )
    return data


def train_source(cfg, small, train) -> str:
    """Train the small model that cfg grows, with its config `small`, unless that has been done; its checkpoint."""
    small = dataclasses.replace(small, device=cfg.device, backend=cfg.backend, compile=cfg.compile)
    path = root_path(small.out_dir) / 'ckpt.pt'
    if path.parent == root_path(cfg.out_dir):
        raise UserError(f"out_dir = '{cfg.out_dir}': {cfg.transfer_from} trains the small model there; choose another")
    done = reader.load(path) if path.exists() else dict(config={}, iter_num=0)
    drop = ('out_', 'max_iters', 'init_from', 'vocab_size', 'eval_', 'log_', 'wandb_', 'save_', 'always_', 'patience')
    drop += ('device', 'backend', 'dtype', 'compile', 'cuda_graph', 'note', *COMPUTING)  # no effect on what is learned
    changed = {k: v for k, v in done['config'].items() if not k.startswith(drop) and v != getattr(small, k, v)}
    if changed or done['iter_num'] > small.max_iters:
        was = ', '.join(f'{k} = {v}' for k, v in changed.items()) or f'{done["iter_num"]} iterations'
        raise UserError(f'{path} is not of {cfg.transfer_from}: it was trained with {was}; move it, or use it as it is')
    if done['iter_num'] < small.max_iters:
        train(dataclasses.replace(small, init_from='resume' if path.exists() else small.init_from))
        gc.unfreeze()
        gc.collect()  # its memory is free for the large model, and the compiler knows nothing of its shapes
        torch._dynamo.reset()
    return f'{small.out_dir}/ckpt.pt'
