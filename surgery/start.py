"""
What a run starts from, other than scratch: the keys that come with a checkpoint, the small model that is trained first.
"""

import dataclasses
import gc

import torch

import checkpoint
import hardware
import linear
from configurator import UserError, overrides, root_path
from model import COMPUTING
from surgery import reader, rotate


def take_model_keys(cfg, ckpt: dict, path):
    """cfg with the architecture of a checkpoint, as nanoGPT does; dropout stays, block_size may shrink. Resuming, or
    going on from factors, takes the parameterization as well; starting from a plain model lets cfg choose another."""
    args = checkpoint.read_args(ckpt, path)
    drop = ['dropout', *COMPUTING]
    if cfg.init_from != 'resume':
        shape = [k for k in linear.all_keys() if k != 'linear_path']
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
        print('taken from the checkpoint: ' + ', '.join(f'{k} = {v}' for k, v in changed.items()), flush=True)
    return dataclasses.replace(cfg, **args)


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
