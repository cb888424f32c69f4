"""
Distilled initialisation: each new block learns to imitate the block that it replaces, before the whole model is
trained.

Blocks are replaced one by one, from the first. The input of block i comes from the new model, whose earlier blocks are
already replaced. Its target is the output of the old block i in the old model. So it also learns to undo the error of
the blocks before it. The loss is E|y' - y|^2 / E|y - x|^2 over training tokens, where x and y are the old block's input
and output: the error relative to what the block adds to the stream. Only the new layers are trained, by Adam at rates
relative to the size of each factor, which fall to zero. After each block the state is saved beside --out: the same
command goes on from there.

At the end of this file: the teacher, whose logits the loss of a run follows, too (`distill_from`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import checkpoint
import hardware
from configurator import UserError, input_path, key, overrides, root_path
from linear.factors import Factors
from model import add_up
from surgery import reader
from surgery.hook import Hook
from surgery.operation import block_of, put
from tokens import loader, tokenizer


@dataclass
class Keys:
    """The teacher whose logits train.py adds as a target."""

    distill_from: str = key(
        '', 'checkpoint of a model whose logits the loss follows too; empty: none', group='distillation'
    )
    distill_weight: float = key(
        0.5, 'distill_from: weight of the divergence from it; cross-entropy has the rest', above=0, high=1
    )


def progress_path(cfg):
    out = root_path(cfg.out)
    return out.with_name(f'{out.stem}.distill.pt')


def forget(cfg):
    progress_path(cfg).unlink(missing_ok=True)


def recall(path, wanted: dict, layers: dict) -> int:
    """Load the layers of an interrupted distillation. Returns the number of blocks that are done."""
    if not path.exists():
        return 0
    saved = checkpoint.load(path)
    was, done = saved.get('settings'), saved.get('done')
    if not isinstance(was, dict) or not isinstance(done, int):
        raise UserError(f'{path} is not of a distillation; delete it to begin anew')
    if other := [k for k in wanted if k not in ('device', 'windows') and was.get(k) != wanted[k]]:
        began = ', '.join(f'{k} = {was.get(k)}' for k in other[:3])
        raise UserError(f'{path} was begun with {began}; repeat that, or delete it to begin anew')
    for site in {k.rpartition('/')[0] for k in saved['model']}:
        mine = {k.rpartition('/')[2]: v for k, v in saved['model'].items() if k.startswith(f'{site}/')}
        try:
            layers[site].load_state_dict(mine)
        except (KeyError, RuntimeError):  # torch names keys and shapes on many lines
            raise UserError(
                f'{path}: {ascii(site)[:80]} does not fit the new layers; delete it to begin anew'
            ) from None
    return done


def groups(layers, lr: float) -> list[dict]:
    """Rates relative to the root mean square of a tensor; a zero one counts as GPT-2's 0.02."""
    size = lambda p: p.detach().square().mean().sqrt().item() or 0.02
    return [dict(params=[p], rate=lr * size(p)) for m in layers for p in m.parameters()]


def distill(model, new, layers: dict, cfg, settings: dict, dataset: str, look):
    """Put layers {site: layer} into new, a twin of model, and train them. settings: what must be the same to go on;
    look: tokens for the loss."""
    config, device = new.config, look[0].device
    path = progress_path(cfg)
    done = recall(path, settings, layers)
    data = loader.Loader(
        dataset, 'train', config.block_size, cfg.distill_batch, config.vocab_size, device, seed=cfg.seed
    )
    autocast = hardware.autocast(device, hardware.choose_dtype('auto', device))
    for i in range(config.n_layer):
        mine = {s: m for s, m in layers.items() if block_of(s, config) == i}
        for site, layer in mine.items():
            put(new, site, layer)
        if i < done or not mine:
            continue
        first, last = train_block(model, new, i, list(mine.values()), data, cfg, autocast)
        with torch.no_grad():
            loss = new(*look)[1].item()
        print(
            f'block {i}: error {first:.4f} -> {last:.4f} of what it adds; loss with it in place {loss:.4f}', flush=True
        )
        kept = {f'{s}/{k}': v.cpu() for s, m in layers.items() if block_of(s, config) <= i
                for k, v in m.state_dict().items()}  # fmt: skip
        checkpoint.save(path, dict(model=kept, model_args={}, done=i + 1, settings=settings))


def costs(model, new, layers: dict, cfg) -> dict:
    """{flops, tokens} of a whole distillation. FLOPs, 2 per multiply-add: for each block that learns all old blocks up to
    it, the new ones before it, and the forward and backward pass of the new block. Each block has tokens of its own."""
    T, C = model.config.block_size, model.config.n_embd
    forward = lambda block: 2 * (sum(m.macs() for m in block.modules() if hasattr(m, 'macs')) + 2 * T * C)
    old, made = ([forward(b) for b in m.transformer.h] for m in (model, new))
    each = cfg.distill_iters * cfg.distill_batch * T  # tokens that a block learns from
    learn = {block_of(s, model.config) for s in layers} - {model.config.n_layer}  # the head learns nothing
    per_token = [sum(old[: i + 1]) + sum(made[:i]) + 3 * made[i] for i in learn]
    return dict(flops=each * sum(per_token), tokens=each * len(per_token))


def train_block(model, new, i: int, layers, data, cfg, autocast) -> tuple[float, float]:
    """Train block i of new; (mean error of the first tenth of the steps, of the last)."""
    for m in layers:
        m.requires_grad_(True)
    adam = torch.optim.Adam(groups(layers, cfg.distill_lr), betas=(0.9, 0.95))
    n, errors = cfg.distill_iters, []
    for step in range(n):
        idx, _ = data.batch((i * n + step) * cfg.distill_batch)
        with autocast:
            with torch.no_grad():
                x, *rest = model.embed(idx)
                x_new = x
                for old_block, new_block in list(zip(model.transformer.h, new.transformer.h))[:i]:
                    x, x_new = add_up(*old_block(x, None, *rest)), add_up(*new_block(x_new, None, *rest))
                y = add_up(*model.transformer.h[i](x, None, *rest))
            y_new = add_up(*new.transformer.h[i](x_new, None, *rest))
        loss = F.mse_loss(y_new.float(), y.float()) / (y.float() - x.float()).square().mean().clamp(min=1e-12)
        for g in adam.param_groups:
            g['lr'] = g['rate'] * min(1, (step + 1) / max(1, n // 20)) * (1 - step / n)
        adam.zero_grad()
        loss.backward()
        adam.step()
        errors.append(loss.detach())
    for m in layers:
        m.requires_grad_(False)
    tenth = max(1, n // 10)
    return torch.stack(errors[:tenth]).mean().item(), torch.stack(errors[-tenth:]).mean().item()


# -----------------------------------------------------------------------------
# distill_from


def problems(cfg) -> list[str]:
    if not cfg.distill_from and 'distill_weight' in overrides(cfg):
        return [f'distill_weight = {cfg.distill_weight:g}: goes with distill_from']
    return []


def open_teacher(cfg, device='cpu', quiet=False):
    """The model of distill_from, its products formed; `weights` tells it from another one at that path. UserError if its logits
    are not about the same tokens."""
    path = cfg.distill_from
    ckpt = reader.load(path)
    vocabulary, what = tokenizer.of_checkpoint(input_path(path), ckpt), f'distill_from = {path}'
    note = tokenizer.require_same(vocabulary, tokenizer.of_data(cfg.dataset), what, 'train on data in its tokens')
    if note and not quiet:
        print(note, flush=True)
    teacher = checkpoint.build(ckpt, path)
    if teacher.config.vocab_size != cfg.vocab_size:
        raise UserError(
            f'distill_from = {path}: its vocabulary has {teacher.config.vocab_size} tokens, this one {cfg.vocab_size}'
        )
    if teacher.config.block_size < cfg.block_size:
        raise UserError(f'distill_from = {path}: it sees {teacher.config.block_size} tokens; lower block_size to that')
    teacher.weights = checkpoint.checksum(ckpt['model'])
    Factors(teacher, path='materialised')  # which are dropped: it computes with what is formed of them
    return teacher.requires_grad_(False).to(device)


def teacher_flops(teacher, cfg) -> int:
    """Per training token: forward only."""
    return teacher.flops_per_token(cfg.block_size) // 3


class Teacher(Hook):
    def __init__(self, cfg, device, compile=False, quiet=False):
        self.model, self.weight = open_teacher(cfg, device, quiet), cfg.distill_weight
        self.forward = torch.compile(self.model, fullgraph=True) if compile else self.model
        self.flops_per_token = teacher_flops(self.model, cfg)

    def soft(self, x):
        with torch.no_grad():
            return self.forward(x, last_only=False)[0], self.weight
