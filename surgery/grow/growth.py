"""
A large GPT out of a small one.

    python transfer.py grow --checkpoint=out/small/ckpt.pt --n_embd=768 --method=clone --noise=0.3 --out=out/large/ckpt.pt
    python transfer.py grow --checkpoint=out/small/ckpt.pt --n_layer=12 --method=zero_block --out=out/deep/ckpt.pt
    python train.py config/grow_shakespeare.py       train the small model, grow it, go on (init_from = 'transfer')

--method is a width method, a depth method, or both joined by +, such as clone+stack. * keeps the function exactly.

    clone *          every unit copied n times, its readers divided by n; n_embd grows by an integer factor
    lemon *          the same for any n_embd: the rest of the stream is padded by its mean (RMSNorm: by zeros)
    net2wider *      hidden units and heads copied at random, in any number; n_embd by an integer factor or not at all
    spectrum *       clone, and its null space filled with the singular values that a fit to the small ones continues
    bert2bert        clone, but the copies of a layer's units come from the layer above (AKI)
    ligo             the copying is learned on the training data: W' = B W A^T, mixed over layers
    double           rows and columns repeated, nothing divided; from small-to-large transfer
    one_hot          the small matrix in the corner of an identity; from small-to-large transfer
    spectrum_random, random_lift, shuffle    controls: the singular values with random vectors; clone in a random
                     basis of the stream; clone with the rows of every matrix shuffled
    zero_block *     depth: new blocks are copies that add nothing to the stream yet, spread evenly
    stack            depth: all blocks in order, again and again
    interleave       depth: every block several times in a row

Copies that are equal stay equal in training (clone, lemon by a whole factor, net2wider, double, random_lift). The wider
model then computes no more than the small one. --noise makes the copies differ and keeps the function: one copy reads
W/n + N, the next W/n - N, where N is `noise` times as large as W/n. If n copies are read at the same learning rate, the
function moves n times as far; hidden_lr = 1/n undoes that. If the checkpoint has optimizer state, its moments grow,
too, and the result is ready for --init_from=resume. Layers that are not plain matrices are refused: collapse them
first.

Sources: Chen et al. 2016 (Net2Net, arXiv 1511.05641), Chen et al. 2021 (bert2BERT, 2110.07143), Wang et al. 2023 (LiGO,
2303.00980), Wang et al. 2023 (LEMON, 2310.07999), Samragh et al. 2024 (HyperCloning, 2409.12903), Shen et al. 2022
(Staged training, 2203.06211: moments), Wu et al. 2024 (LLaMA Pro, 2401.02415), Du et al. 2024 (G_stack, 2405.15319).
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configurator import UserError, key, overrides, root_path
from files import write_json
from linear.factors import load_state
from logger import relative
from model import GPT, GPTConfig, rope_table
from optimizers import OPTIMIZERS
from optimizers.muon import Muon
from surgery.grow import ligo
from surgery.grow.checks import settle
from surgery.grow.weights import DEPTH, How, grow_moments, grow_weights, parse
from surgery.grow.widen import WIDTH
from surgery.operation import SurgeryConfig, compare, dense_config, open_model, real_tokens, report, spare_report, write
from tokens import loader

EXACT = 1e-3  # largest logit difference in float32 that a function-preserving growth may cause
BATCH = 8  # windows of a step of ligo, by the command

# -----------------------------------------------------------------------------
# the command


@dataclass
class GrowConfig(SurgeryConfig):
    method: str = key('', f'{", ".join(WIDTH)}; {", ".join(DEPTH)}; or a width and a depth method joined by +')
    n_embd: int | None = key(None, "new width; none: the source's", low=1)
    n_head: int | None = key(None, 'new heads; none: as many as keep their width', low=1)
    n_kv_head: int | None = key(None, 'new key-value heads; none: the same number of query heads each', low=0)
    n_layer: int | None = key(None, "new blocks; none: the source's", low=1)
    mlp_expansion_factor: float | tuple | None = key(None, "hidden units over n_embd; none: the source's")
    noise: float = key(0.0, 'size of the paired noise over that of the weights; 0.3 is a start', low=0)
    moments: str = key(
        'auto',
        "the optimizer's averages (Adam's moments, Muon's momentum): grown with the weights (move), left out (fresh); auto: move where they and their rule exist",
        choices=('auto', 'move', 'fresh'),
    )
    seed: int = key(0, 'seed of noise, random copies and random vectors', low=0)

    def problems(self):
        return super().problems() + ([] if self.method else ['method: must be given, --method=clone and the like'])


def target(old, cfg: GrowConfig, how: How):
    """The config of the large model: that of the small one, with the sizes of cfg, and those that follow from them."""
    D, L = cfg.n_embd or old.n_embd, cfg.n_layer or old.n_layer
    h = old.n_embd // old.n_head
    H = cfg.n_head or D // h
    if not cfg.n_head and D % h:
        raise UserError(f'n_embd = {D}: no whole number of heads {h} wide; give --n_head')
    kv = old.n_kv_head * H // old.n_head if old.n_kv_head > 1 else old.n_kv_head
    factors = cfg.mlp_expansion_factor or old.mlp_expansion_factor
    if isinstance(old.mlp_expansion_factor, tuple) and not cfg.mlp_expansion_factor and L > old.n_layer and how.depth:
        factors = tuple(old.mlp_expansion_factor[j] for j, _ in DEPTH[how.depth](old.n_layer, L))
    new = dataclasses.replace(
        old,
        n_embd=D,
        n_head=H,
        n_kv_head=kv if cfg.n_kv_head is None else cfg.n_kv_head,
        n_layer=L,
        mlp_expansion_factor=factors,
    )
    if found := new.problems():
        raise UserError('\n'.join(found))
    return new


def why_fresh(ckpt: dict, old, new, how: How, moments: str, run=None) -> str:
    """Why the moments start anew, in words; '': they grow with the weights. Raises UserError where moments = move, and they
    cannot. run: the config of the run that goes on; None: the source itself goes on."""
    name = 'transfer_moments' if run else 'moments'
    before = ckpt.get('config', {}).get('optimizer', 'adamw')
    group = lambda c: c.n_head // (c.n_kv_head or c.n_head)  # query heads of a key-value head
    why = ''
    if 'optimizer' not in ckpt:
        why = 'the source has no optimizer state'
    elif group(new) % group(old):
        why = 'key-value heads get query heads in other proportions, so their gradients are not copies'
    elif not how.rule.moments:
        why = f'for {how.width} it is not known how moments grow'
    elif run and run.linear != 'dense':
        why = f'the layers are {run.linear} now'
    elif run and run.optimizer != before:
        why = f'they are those of optimizer = {before}, and it is {run.optimizer} now'
    if moments == 'move' and why:
        raise UserError(f'{name} = move: {why}; use fresh')
    return f'{name} = fresh' if moments == 'fresh' else why


def say_grown(old, new, how: How, fresh: str, config: dict, noise_key: str):
    """What the user should know about the grown model before training it. fresh: see why_fresh. config: of the run that goes on.
    noise_key: what the key of the noise is called there."""
    units = [[c.hidden(i) for i in range(c.n_layer)] for c in (old, new)]
    hidden = [found[0] if len(set(found)) == 1 else found for found in units]
    sizes = [('n_embd', old.n_embd, new.n_embd), ('n_head', old.n_head, new.n_head)]
    sizes += [('hidden', *hidden), ('n_layer', old.n_layer, new.n_layer)]
    print('grown: ' + ', '.join(f'{k} {a} -> {b}' for k, a, b in sizes if a != b))
    for k in ('attn_scale', 'logit_scale'):
        if getattr(old, k) != getattr(new, k):
            print(f'set by growth: {k} = {getattr(new, k):g}')
    print('moments: ' + (f'fresh ({fresh})' if fresh else "the optimizer's, grown with the weights"))
    if how.width and how.rule.symmetric and not how.noise and not new.dropout and new.n_embd % old.n_embd == 0:
        cure = f'--{noise_key}=0.3 or dropout' if how.rule.noise else 'dropout, or another method'
        print(f'WARNING: the copies are equal and stay so in training: no capacity is gained; use {cure}')
    n = new.n_embd / old.n_embd
    faster = pace(n, config)
    copies = how.width in ('clone', 'lemon', 'net2wider', 'spectrum', 'bert2bert')
    if copies and faster > 1 and not old.mup_base:  # which lowers the rates itself
        print(
            f'learning rate: each unit is read through {n:.3g} copies, so at the same rate the'
            f' function moves {faster:.3g} times as fast; --hidden_lr={1 / faster:.3g} keeps the pace'
        )


def pace(n: float, config: dict) -> float:
    """How many times as fast the function moves at the same rate where each unit is read through n copies. A step moves all of
    them; AdamW's has the same size in each entry, Muon's in the whole matrix."""
    name = config.get('optimizer', 'adamw')
    if name == 'adamw':
        return n
    muon = name in OPTIMIZERS and issubclass(OPTIMIZERS[name], Muon)
    return n**0.5 if muon and config.get('muon_scale', 'rms') == 'rms' else 1.0


def assemble(config, weights: dict) -> GPT:
    """The model that these tensors make, without a copy of them."""
    with torch.device('meta'):
        model = GPT(config)
    model.load_state_dict(weights, assign=True)
    if config.position == 'rope':  # its tables are no part of a checkpoint
        model.rope_cos, model.rope_sin = rope_table(torch.arange(config.block_size), config.n_embd // config.n_head)
    if config.tie_head:
        model.lm_head.weight = model.transformer.wte.weight
    return model.eval()


def grow(cfg: GrowConfig):
    ckpt, model, tokens = open_model(cfg)
    spare_report(cfg)
    how = parse(cfg.method, cfg.noise, cfg.seed)
    old = model.config
    new = settle(old, target(old, cfg, how), how)
    fresh = why_fresh(ckpt, old, new, how, cfg.moments)
    if how.width == 'ligo':
        dataset = cfg.dataset or ckpt['config']['dataset']
        data = loader.Loader(dataset, 'train', old.block_size, BATCH, old.vocab_size, seed=cfg.seed)
        weights = ligo.learn(ckpt['model'], old, new, how, lambda step: data.batch(BATCH * step))
    else:
        weights = grow_weights(ckpt['model'], old, new, how)
    large = assemble(new, weights)
    say_grown(old, new, how, fresh, ckpt['config'], 'noise')
    print(f'{model.num_params():,} parameters -> {large.num_params():,}')
    report(cfg, model, large, tokens, EXACT if how.exact else None)
    resume = dict(transfer=history(ckpt, model, how, cfg.checkpoint), tokenizer=ckpt['tokenizer'])
    past = resume['transfer']
    past['since'] = ckpt['iter_num']
    learned = learning_flops(new, BATCH) if how.width == 'ligo' else 0
    if past['flops'] is not None:
        past['flops'] += learned
    if not fresh:
        resume |= {k: ckpt[k] for k in ('position', 'data', 'seconds', 'tokens', 'flops', 'scaler', 'rng') if k in ckpt}
        past['seconds'] -= ckpt.get('seconds', 0.0)  # counted on
        past['flops'] = past['flops'] and past['flops'] - ckpt.get('flops', 0)
        resume['optimizer'] = grow_moments(ckpt['optimizer'], old, new, how)
    best = ckpt['best_val_loss'] if how.exact else math.inf
    write(cfg, checkpoint.pack(large, ckpt['config'] | dataclasses.asdict(new), ckpt['iter_num'], best, **resume))
    write_json(root_path(cfg.out).with_suffix('.json'), dict(settings=relative(overrides(cfg)), flops=learned))
    if not fresh:
        print(
            f'to go on from its iteration {ckpt["iter_num"]}, with these moments: python train.py CONFIG --init_from=resume'
            f' --out_dir={Path(cfg.out).parent}'
        )
    print(f'to start a new run from its weights alone: python train.py CONFIG --init_from={cfg.out} --out_dir=ANOTHER')


# -----------------------------------------------------------------------------
# at the start of a run: init_from = 'transfer'


def history(ckpt: dict, model, how: How, path) -> dict:
    """What a checkpoint of a grown model says of where it comes from: FLOPs and seconds of all training before the
    growth, the source's own sources included (none: not recorded), and the iteration at which it grew. A source that does not
    say what it has spent (an older one, nanoGPT's) gets its iterations times what one of them would cost."""
    before = ckpt.get('transfer') or dict(since=0, flops=0, seconds=0.0)
    tokens, own = checkpoint.tokens_per_iter(ckpt['config']), ckpt.get('flops')
    if own is None and tokens:
        own = (ckpt['iter_num'] - before['since']) * tokens * model.flops_per_token()
    flops = None if None in (own, before['flops']) else before['flops'] + own
    return dict(
        source=str(path),
        source_iter=ckpt['iter_num'],
        method='+'.join(n for n in (how.width, how.depth) if n),
        since=0,
        flops=flops,
        seconds=before['seconds'] + ckpt.get('seconds', 0.0),
    )


def learning_flops(new, batch_size: int) -> int:
    """The FLOPs of learning ligo's maps: those of the plain large model; the products of the maps, small beside these, are
    left out."""
    with torch.device('meta'):
        return ligo.STEPS * batch_size * new.block_size * GPT(dense_config(new)).flops_per_token()


def how_of(cfg) -> How:
    """The method that a training config names."""
    return parse(cfg.transfer_method, cfg.transfer_noise, cfg.seed_model)


def prepare(cfg, ckpt: dict):
    """The training config with what growth decides. UserError if the small model cannot become this one."""
    old = GPTConfig(**checkpoint.read_args(ckpt, cfg.transfer_from))
    try:
        how = how_of(cfg)
        new = settle(old, cfg, how)
        why_fresh(ckpt, old, new, how, cfg.transfer_moments, cfg)
    except UserError as e:
        lines = str(e).split('\n')
        raise UserError('\n'.join(f'transfer_from = {cfg.transfer_from}: {line}' for line in lines)) from None
    return new


def start(model, cfg, ckpt: dict, data, quiet: bool):
    """Fill the model of a run from a small one's checkpoint; unless quiet, print how its outputs changed. data: the
    run's training data, for methods that learn. Returns (Adam's moments or None, the history for manifest and
    checkpoints)."""
    t0 = time.time()
    small = checkpoint.build(ckpt, cfg.transfer_from)
    old, how = small.config, how_of(cfg)
    past = history(ckpt, small, how, cfg.transfer_from)
    if how.width == 'ligo':
        batches = lambda step: data.batch(step * cfg.batch_size)
        weights = ligo.learn(ckpt['model'], old, cfg, how, batches, data.device, quiet=quiet)
        if past['flops'] is not None:
            past['flops'] += learning_flops(cfg, cfg.batch_size)
    else:
        weights = grow_weights(ckpt['model'], old, cfg, how)
    load_state(model, weights)
    fresh = why_fresh(ckpt, old, cfg, how, cfg.transfer_moments, cfg)
    moments = None if fresh else grow_moments(ckpt['optimizer'], old, cfg, how)
    past['growing'] = time.time() - t0  # seconds
    past['seconds'] += past['growing']
    if not quiet:
        say_grown(old, cfg, how, fresh, vars(cfg), 'transfer_noise')
        T = min(old.block_size, cfg.block_size)  # RoPE lets it grow
        x, y = (t[:, :T].to(data.device) for t in real_tokens(cfg, cfg.dataset))
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('highest')  # TF32 would show as a difference between the two
        worst, before, after = compare(small.to(data.device), model.to(data.device).eval(), x, y)
        torch.set_float32_matmul_precision(precision)
        model.train()
        print(f'on {x.numel():,} validation tokens: loss {before:.6f} -> {after:.6f},')
        print(f'largest logit difference {worst:.2e}', flush=True)
        past |= dict(logit_difference=worst, loss_before=before, loss_after=after)
        if how.exact and not worst <= EXACT:
            near = f'; linear = {cfg.linear} has no more than the nearest to the grown matrices: grow with linear = dense, then'
            raise UserError(
                f'{past["method"]} should keep the function: the largest logit difference, {worst:.2e}, is above {EXACT:g}'
                + (f'{near} transfer.py factorize' if cfg.linear != 'dense' else '')
            )
    return moments, past
