"""
Is the best learning rate of a narrow model also that of a wide one? Three checks of mu-parametrization (mup_base in a
config).

    python bench.py mup model --widths=64,128,256 --base=64   what a few steps do to everything in a small GPT, over widths
    python bench.py mup coordinates                           |change of the output| after one Adam step, over widths; a plot
    python bench.py mup rates --widths=256,1024               train at several rates and widths; the best rate of each width
    python bench.py mup show --out=out/mup/rates.jsonl        the table of what rates wrote

`model` and `coordinates` look at sizes: with the right starts and rates they are flat (Yang & Hu 2021, arXiv 2203.03466);
`model` at the outputs of all blocks and the logits of a whole model, `coordinates` at one square layer.
`rates` trains a small GPT on Shakespeare, all its matrices in one parameterization; rates are those at --base width.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import files
import hardware
import linear
from configurator import UserError, input_path, key, load, overrides, root_path
from linear import factors
from logger import commit
from model import GPT, GPTConfig, add_up
from optimizers.optim import Optimizer
from tokens import loader
from train import TrainConfig, Trainer

OWN = dict(member=str, width=int, lr=float, val_loss=float)  # lines of --out of rates, for files.ready


@dataclass
class MupConfig:
    members: str = key('dense,low_rank,monarch,btt', 'parameterizations')
    widths: tuple = key((256.0, 512.0, 1024.0, 2048.0, 4096.0), 'widths', low=1)
    base: int = key(256, 'width at which rates are given', low=1)
    learning_rates: tuple = key((5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), 'rates to try', above=0)
    iters: int = key(300, 'rates: optimizer steps', low=10)
    n_layer: int = key(2, 'rates: blocks', low=1)
    keys: str = key('', "model: further keys, as 'mlp=moe tie_head=False'")
    out: str = key('out/mup/coordinates.png', 'picture, or (rates, show) JSON lines, to which rates adds')

    def problems(self):
        odd = [m for m in self.members.split(',') if m not in linear.LAYERS]
        return [f'members: {", ".join(odd)} unknown; use any of {", ".join(linear.LAYERS)}'] if odd else []


def moved(member: str, n: int, base: int, **keys) -> float:
    """RMS change of the output (8, n) of one layer n -> n at unit rate, after one step of Adam on a random loss."""
    torch.manual_seed(0)
    config = GPTConfig(
        n_embd=n, n_head=1, n_layer=1, linear=member, linear_layers='attn', bias=False, mup_base=base,
        **keys,
    )  # fmt: skip
    layer = linear.make(config, 'h.0.attn.c_attn', n, n)
    x, dy, lr = torch.randn(8, n), torch.randn(8, n), 1e-3
    before = layer(x)
    (before * dy).sum().backward()
    with torch.no_grad():
        for _, p, rate, _ in factors.leaves(layer):
            p -= lr * rate * p.grad.sign()  # Adam's first step
        return (layer(x) - before).square().mean().sqrt().item() / lr


def sizes(n: int, base: int, steps=8, lr=4e-3, **keys) -> dict[str, tuple[float, float, float]]:
    """{part of the model: (RMS at the start, RMS of its change after one step of Adam, and after all steps)} of a GPT of two
    blocks, n wide, on one batch of random tokens. Parts: outputs of attention, MLP and block, and the logits."""
    torch.manual_seed(0)
    defaults = dict(n_embd=n, n_head=4, n_layer=2, vocab_size=256, block_size=16, mup_base=base, bias=True)
    config = TrainConfig(**defaults | keys, learning_rate=lr, weight_decay=0.0, grad_clip=0.0)
    model = GPT(config).train()
    optimizer = Optimizer(model, config)
    optimizer.set_lr(lr)
    x, y = torch.randint(256, (2, 4, 16), generator=torch.Generator().manual_seed(1))
    found, seen = {}, []
    whole = lambda out: add_up(*out) if isinstance(out, tuple) else out  # of a block
    for i, block in enumerate(model.transformer.h):
        for name, part in ((f'h.{i}.attn', block.attn), (f'h.{i}.mlp', block.mlp), (f'h.{i}', block)):
            part.register_forward_hook(lambda m, a, out, name=name: found.update({name: whole(out).detach()}))
    for step in range(steps + 1):
        logits = model(x, last_only=False)[0]
        seen.append(found | dict(logits=logits.detach()))
        if step < steps:
            F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    rms = lambda t: t.float().square().mean().sqrt().item()
    return {k: (rms(v), rms(seen[1][k] - v), rms(seen[-1][k] - v)) for k, v in seen[0].items()}


def model(cfg):
    widths, further = [int(w) for w in cfg.widths], overrides(load(GPTConfig, [f'--{k}' for k in cfg.keys.split()]))
    for member in cfg.members.split(','):
        keys = further | dict(
            linear=member, linear_layers='mlp+attn' + ('' if further.get('tie_head', True) else '+head')
        )
        found = {w: sizes(w, cfg.base, **keys) for w in widths}
        print(
            f'\n{member}: RMS of the change after 8 steps' + ''.join(f'{w:>9}' for w in widths) + '   widest/narrowest'
        )
        for part in found[widths[0]]:
            y = [found[w][part][2] for w in widths]
            print(f'{part:{len(member) + 32}}' + ''.join(f'{v:9.3f}' for v in y) + f'{y[-1] / y[0]:12.2f}')


def coordinates(cfg):
    from matplotlib.figure import Figure  # only here: it takes a second to import

    out = root_path(cfg.out)
    files.check_picture(out)
    widths = [int(w) for w in cfg.widths]
    fig = Figure(figsize=(7, 4.5))
    ax = fig.subplots()
    print('|dh| per unit of rate after one Adam step' + ''.join(f'{w:>9}' for w in widths) + '   largest/smallest')
    for member in cfg.members.split(','):
        for rule in ('paper',) if member == 'dense' else ('paper', 'none'):
            y = [moved(member, w, cfg.base, structured_lr=rule) for w in widths]
            name = f'{member}, structured_lr = {rule}' if member != 'dense' else 'dense'
            print(f'{name:41}' + ''.join(f'{v:9.2f}' for v in y) + f'{max(y) / min(y):12.2f}')
            ax.plot(widths, [v / y[0] for v in y], 'o-' if rule == 'paper' else 'x--', label=name)
    ax.set(xscale='log', yscale='log', xlabel='width', ylabel='|dh| after one step, relative to the narrowest')
    ax.set_xticks(widths, map(str, widths))
    ax.grid(alpha=0.3)
    ax.legend()
    files.save_picture(fig, out)
    print(f'wrote {out}')


def rates(cfg):
    device = hardware.choose_device('auto')
    if not cfg.out.endswith('.jsonl'):
        raise UserError(f"out = '{cfg.out}': rates writes JSON lines; use --out=out/mup/rates.jsonl")
    out = root_path(cfg.out)
    files.ready(out, OWN, 'bench.py mup rates')
    loader.prepare('shakespeare_char')
    for member in cfg.members.split(','):
        for width in map(int, cfg.widths):
            torch._dynamo.reset()
            for lr in cfg.learning_rates:
                t = Trainer(
                    TrainConfig(
                        dataset='shakespeare_char', block_size=128, batch_size=64, gradient_accumulation_steps=1,
                        n_embd=width, n_head=max(1, width // 64), n_layer=cfg.n_layer, linear=member,
                        linear_layers='mlp+attn', mup_base=cfg.base, learning_rate=lr, min_lr=lr / 10,
                        max_iters=cfg.iters, lr_decay_iters=cfg.iters, warmup_iters=cfg.iters // 10, eval_iters=20,
                        weight_decay=0.0, bias=False,
                    ),
                    device,
                )  # fmt: skip
                for _ in range(cfg.iters):
                    t.step()
                val = t.evaluate('val')['val_loss']
                line = dict(
                    member=member, width=width, base=cfg.base, lr=lr, iters=cfg.iters, n_layer=cfg.n_layer, val_loss=val,
                    params=t.model.num_params(t.optimizer.factors), device=hardware.device_name(device), commit=commit(),
                )  # fmt: skip
                files.add_line(out, line)
                print(f'{member} {width} lr {lr:g}: val loss {val:.4f}', flush=True)


def show(cfg):
    try:
        rows = files.read_lines(input_path(cfg.out))
        rows[0], [[r[k] for k in ('device', 'member', 'width', 'lr', 'val_loss', 'iters', 'base')] for r in rows]
    except (UserError, OSError, ValueError, LookupError, TypeError) as e:
        raise UserError(f"out = '{cfg.out}': not a file that rates wrote ({e})") from None
    alike = {}  # rates adds to a file: what it ran with other keys is another table
    for r in rows:
        alike.setdefault((r['device'], r['iters'], r['base'], r.get('n_layer')), []).append(r)
    print('\n\n'.join(map(table, alike.values())))


def table(rows: list[dict]) -> str:
    """The losses of rows that differ in member, width and rate."""
    lrs, first = sorted({r['lr'] for r in rows}), rows[0]
    blocks = f'{first["n_layer"]} blocks; ' if 'n_layer' in first else ''
    lines = [f'{first["device"]}; {blocks}val loss after {first["iters"]} iterations; rates at width {first["base"]}']
    lines.append(f'{"member":12} {"width":>6} ' + ''.join(f'{lr:>9g}' for lr in lrs) + '  best rate')
    for member in dict.fromkeys(r['member'] for r in rows):
        for width in sorted({r['width'] for r in rows if r['member'] == member}):
            mine = {r['lr']: r['val_loss'] for r in rows if (r['member'], r['width']) == (member, width)}
            best = min((lr for lr in mine if math.isfinite(mine[lr])), key=mine.get, default=math.nan)  # all diverged
            cells = ''.join(f'{mine[lr]:9.4f}' if lr in mine else f'{"-":>9}' for lr in lrs)
            lines.append(
                f'{member:12} {width:6} {cells}  {best:g}{" (edge)" if best in (min(mine), max(mine)) else ""}'
            )
    return '\n'.join(lines)


def main(args: list[str]):
    commands = dict(model=model, coordinates=coordinates, rates=rates, show=show)
    if not args or args[0] in ('--help', '-h'):
        print(f'{__doc__.strip()}\n\npython bench.py mup COMMAND --help lists the keys')
    elif args[0] not in commands:
        raise UserError(f"unknown command '{args[0]}'; use one of {', '.join(commands)}")
    else:
        commands[args[0]](load(MupConfig, args[1:]))
