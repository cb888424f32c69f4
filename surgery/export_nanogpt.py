"""
Write the checkpoint of a dense run for nanoGPT. Its train.py resumes it with --init_from=resume, its sample.py samples
from it. A dense checkpoint of ours differs from nanoGPT's only in the optimizer state, which has no names there.
"""

import torch

import checkpoint
import linear
from configurator import UserError, printable
from model import NANOGPT_KEYS
from surgery import reader
from surgery.collapse import TransferConfig
from surgery.nanogpt import in_groups
from surgery.operation import spare, write


def nanogpts_state(moments: dict, model, config: dict) -> dict:
    """AdamW's state_dict as nanoGPT's train.py saves it. moments: {name: {step, exp_avg, exp_avg_sq}}."""
    groups = in_groups(model)
    rates = dict(lr=config.get('learning_rate', 6e-4), betas=(config.get('beta1', 0.9), config.get('beta2', 0.95)))
    parameters = dict(model.named_parameters())
    decays = config.get('weight_decay', 0.1), 0.0
    adamw = torch.optim.AdamW(
        [dict(params=[parameters[n] for n in g], weight_decay=d) for g, d in zip(groups, decays)], **rates
    )
    return adamw.state_dict() | dict(state=dict(enumerate(moments[n] for n in sum(groups, []))))


def export_nanogpt(cfg: TransferConfig):
    """The checkpoint of a dense run for nanoGPT's train.py --init_from=resume."""
    spare(cfg)
    ckpt = reader.load(cfg.checkpoint)
    model = checkpoint.build(ckpt, cfg.checkpoint)
    if beyond := sorted(set(ckpt['model_args']) - set(NANOGPT_KEYS)):
        plain = linear.LAYERS[model.config.linear].is_matrix and 'linear' in beyond
        hint = "; python transfer.py collapse writes a checkpoint for nanoGPT's sample.py" if plain else ''
        raise UserError(f'{cfg.checkpoint}: nanoGPT cannot express {", ".join(beyond)}{hint}')
    if missing := [n for n in sum(in_groups(model), []) if n not in ckpt.get('optimizer', {})]:
        raise UserError(
            f'{cfg.checkpoint}: has no moments of {len(missing)} parameters, so nanoGPT could not resume it; take the'
            ' ckpt.pt of a run'
        )
    if other := [n for n, entry in ckpt['optimizer'].items() if 'exp_avg' not in entry]:
        raise UserError(
            f'{cfg.checkpoint}: its optimizer is {ckpt["config"].get("optimizer")}, nanoGPT resumes only AdamW ({other[0]} and'
            f' {len(other) - 1} more have no moments of AdamW); nanoGPT samples from the checkpoint as it is'
        )
    theirs = {k: ckpt[k] for k in ('model', 'model_args', 'iter_num', 'best_val_loss', 'config')}
    write(cfg, theirs | dict(optimizer=nanogpts_state(ckpt['optimizer'], model, ckpt['config'])))
    # keys of its training that nanoGPT does not have
    lacks = dict(hidden_lr=1.0, schedule='cosine', distill_from='', expansion_schedule='all')
    if lost := [f'{k} = {v}' for k, off in lacks.items() if (v := ckpt['config'].get(k, off)) != off]:
        print(f'NOTE: the run had {printable(", ".join(lost))}, which nanoGPT does not know: it goes on without')
    print(
        "to go on there: nanoGPT's train.py --init_from=resume with its folder as --out_dir; its data order is its own"
    )
