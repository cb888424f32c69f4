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
    ligo             the copying is learned: W' = B W A^T, mixed over layers, on the training data
    double           rows and columns repeated, nothing divided (raw)
    one_hot          the small matrix in the corner of an identity (raw)
    spectrum_random, random_lift, shuffle    controls: the singular values with random vectors; clone in a random
                     basis of the stream; clone with the rows of every matrix shuffled
    zero_block *     depth: copies of blocks that write nothing yet, spread evenly
    stack            depth: the blocks in order, again and again
    interleave       depth: every block several times in a row

Copies that are equal stay equal in training (clone, lemon by a whole factor, net2wider, double, random_lift): a wider
model that computes no more than the small one. --noise makes them differ and keeps the function: one copy reads
W/n + N, the next W/n - N, N of `noise` times the size of W/n. At an unchanged learning rate a function read through n
copies moves n times as far; hidden_lr = 1/n undoes that. A checkpoint with optimizer state comes out with its moments
grown as well, ready to --init_from=resume. Layers that are not plain matrices are refused: collapse them first.

Sources: Chen et al. 2016 (Net2Net, arXiv 1511.05641), Chen et al. 2021 (bert2BERT, 2110.07143), Wang et al. 2023 (LiGO,
2303.00980), Wang et al. 2023 (LEMON, 2310.07999), Samragh et al. 2024 (HyperCloning, 2409.12903), Shen et al. 2022
(Staged training, 2203.06211: moments), Wu et al. 2024 (LLaMA Pro, 2401.02415), Du et al. 2024 (G_stack, 2405.15319).
"""

import dataclasses
import math
import time
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch

import checkpoint
import ligo
import linear
import loader
from configurator import UserError, key
from model import GPT, GPTConfig, rope_table
from surgery import SurgeryConfig, compare, open_model, real_tokens, report, write
from widen import TENSORS, WIDTH, Part, axes, fold_norms, head_maps, lift, tile

EXACT = 1e-3  # largest logit difference in float32 that a function-preserving growth may cause

# -----------------------------------------------------------------------------
# depth: (block of the small model, does it begin as an identity?) for each block of the large one

DEPTH = {
    'stack': lambda old, new: [(i % old, False) for i in range(new)],
    'interleave': lambda old, new: [(i * old // new, False) for i in range(new)],
    'zero_block': lambda old, new: [(i * old // new, i * old % new >= old) for i in range(new)],
}


class How(NamedTuple):
    width: str  # '': nothing becomes wider
    depth: str  # '': nothing becomes deeper
    noise: float = 0.0
    seed: int = 0

    @property
    def rule(self):
        return WIDTH[self.width or 'clone']

    @property
    def exact(self):
        return self.rule.exact and self.depth in ('', 'zero_block')

    def plan(self, old, new):
        return DEPTH[self.depth or 'stack'](old.n_layer, new.n_layer)


def parse(method: str, noise: float, seed: int) -> How:
    """'clone+stack' and the like."""
    names = [n.strip() for n in method.split('+')]
    width, depth = [n for n in names if n in WIDTH], [n for n in names if n in DEPTH]
    if len(width) + len(depth) != len(names) or len(width) > 1 or len(depth) > 1:
        raise UserError(
            f"method = '{method}': must be one of {', '.join(WIDTH)} (width) or {', '.join(DEPTH)} (depth), or one of each"
            ' joined by +'
        )
    if noise and not (width and WIDTH[width[0]].noise):
        able = ', '.join(n for n, w in WIDTH.items() if w.noise)
        raise UserError(f'noise = {noise:g}: goes with {able}, whose copies it tells apart, not with {method}')
    return How((width or [''])[0], (depth or [''])[0], noise, seed)


# -----------------------------------------------------------------------------
# what can grow into what

KEPT = ('mlp', 'mlp_gate', 'qk_norm', 'norm', 'norm_affine', 'post_norm', 'position', 'attention_window', 'bias')
KEPT += ('vocab_size', 'tie_head', 'mup_base')


def problems(old, new, how: How) -> list[str]:
    """Why old cannot grow into new this way, one line each."""
    if old.linear != 'dense':
        return [f'the source has linear = {old.linear}; collapse it first: python transfer.py collapse']
    if old.mlp == 'moe':
        return ['the source has mlp = moe: how experts grow is not known here; grow an MLP of another kind']
    width, d, D = how.width, old.n_embd, new.n_embd
    found = [
        f'{k} = {getattr(new, k)}: the source has {getattr(old, k)}, and growth keeps it'
        for k in KEPT
        if getattr(new, k) != getattr(old, k)
    ]
    if old.position == 'learned' and new.block_size > old.block_size:
        found.append(f'block_size = {new.block_size}: the source has learned positions up to {old.block_size}')
    attn = [c.attn_scale or 1 / math.sqrt(2 * c.n_layer) for c in (old, new)]
    if new.attn_scale and attn[0] != attn[1]:
        found.append(f'attn_scale = {new.attn_scale:g}: the source has {attn[0]:g}, and growth keeps it; 0 takes it')
    if new.logit_scale not in (1.0, logit_scale(old, new, how)):
        found.append(f'logit_scale = {new.logit_scale:g}: growth makes it {logit_scale(old, new, how):g}; 1 takes that')

    shrunk = [k for k in ('n_embd', 'n_layer') if getattr(new, k) < getattr(old, k)]
    found += [f'{k} = {getattr(new, k)}: below the {getattr(old, k)} of the source' for k in shrunk]
    if found or shrunk:
        return found
    if new.n_layer > old.n_layer and not how.depth:
        return [f'n_layer = {new.n_layer}: the source has {old.n_layer}; say how with {", ".join(DEPTH)}']
    if how.depth and new.n_layer == old.n_layer:
        found.append(f'n_layer = {new.n_layer}: as many as the source has, nothing for {how.depth} to do')
    plan = how.plan(old, new)
    hidden = [(old.hidden(j), new.hidden(i)) for i, (j, _) in enumerate(plan)]
    kv = [(c.n_kv_head or c.n_head, c.n_embd // c.n_head) for c in (old, new)]
    wider = D > d or any(a != b for a, b in hidden) or kv[0] != kv[1] or old.n_head != new.n_head
    if wider and not width:
        found.append(f'n_embd = {D}, hidden = {hidden[0][1]}: wider than the source; say how with {", ".join(WIDTH)}')
    if width and not wider:
        found.append(f'n_embd = {D}: nothing becomes wider, nothing for {width} to do')
    if any(b < a for a, b in hidden):
        found.append(f'mlp_expansion_factor = {new.mlp_expansion_factor}: fewer hidden units than the source has')

    whole = ('clone', 'net2wider', 'spectrum', 'ligo', 'random_lift', 'shuffle', 'double')
    if width in whole and D % d:
        found.append(f'n_embd = {D}: {width} needs a multiple of {d}; lemon takes any width')
    rows = [n * h for n, h in kv]
    if width == 'double' and (rows[1] % rows[0] or any(b % a for a, b in hidden)):
        found.append('double needs multiples of the hidden units and of the key-value rows of the source')
    if width in ('double', 'one_hot', 'spectrum_random'):
        if rows[1] < rows[0]:
            found.append(f'n_kv_head = {new.n_kv_head}: fewer key-value rows than the source has')
    else:
        found += head_problems(old, new, how)

    if width == 'lemon' and D % d and old.post_norm and old.norm == 'layernorm' and old.norm_affine:
        found.append(f'post_norm with LayerNorm weights: lemon cannot pad its output; n_embd must be a multiple of {d}')
    if width == 'random_lift' and old.post_norm and old.norm_affine:
        found.append('post_norm with norm weights: random_lift cannot turn them')
    if how.depth == 'zero_block' and old.post_norm and not old.norm_affine:
        found.append('post_norm without norm weights: a block cannot begin as an identity; use stack or interleave')
    if width in ('bert2bert', 'ligo') and len({old.hidden(j) for j in range(old.n_layer)}) > 1:
        found.append(f'mlp_expansion_factor = {old.mlp_expansion_factor}: {width} mixes layers, they must be alike')
    if width == 'ligo' and how.depth == 'zero_block':
        found.append('ligo learns its depth from stack or interleave, not from zero_block')
    return found


def head_problems(old, new, how: How) -> list[str]:
    (g, h), (G, H) = ((c.n_kv_head or c.n_head, c.n_embd // c.n_head) for c in (old, new))
    if H < h:
        return [f'n_head = {new.n_head}: heads of {H} units, narrower than the {h} of the source']
    if H > h and (old.position == 'rope' or old.qk_norm):
        why = 'position = rope turns by angles that depend on it' if old.position == 'rope' else 'qk_norm divides by it'
        return [f'n_head = {new.n_head}: the head width must stay {h} (n_embd / n_head), {why}']
    if G < g or new.n_head < old.n_head:
        return [f'n_head = {new.n_head}, n_kv_head = {new.n_kv_head}: fewer heads than the source has']
    q, _ = head_maps(old, new, tile, None)
    if len(q.unique()) < old.n_head:
        return [f'n_kv_head = {new.n_kv_head}: groups so small leave out query heads of the source; raise n_head']
    return []


def logit_scale(old, new, how: How) -> float:
    """A tied head reads every copy; with nothing before it that could be divided by n, the logits must be."""
    raw_widths = ('double', 'one_hot', 'spectrum_random')
    folds = old.tie_head and not old.norm_affine and not old.mup_base and how.width not in raw_widths
    return old.logit_scale * old.n_embd / new.n_embd if folds else old.logit_scale


def settle(old, new, how: How):
    """new with the keys that growth decides. Raises UserError naming everything that does not fit."""
    if found := problems(old, new, how):
        raise UserError('\n'.join(found))
    attn_scale = old.attn_scale
    if not attn_scale and new.n_layer != old.n_layer:  # 0 stands for 1/sqrt(2*n_layer): it would change with the depth
        attn_scale = 1 / math.sqrt(2 * old.n_layer)
    return dataclasses.replace(new, attn_scale=attn_scale, logit_scale=logit_scale(old, new, how))


# -----------------------------------------------------------------------------
# a whole model


class Tensor(NamedTuple):
    name: str  # in the large model
    key: str  # in its block, as in TENSORS
    source: str  # in the small model
    above: str  # of the small model's next block
    closed: bool  # zero, so that a new block begins as an identity
    parts: list  # (names of its axes, sides for lift(), rows of the source); three for c_attn, or else one


def plain(config) -> GPTConfig:
    """The dense GPTConfig within a config."""
    args = {f.name: getattr(config, f.name) for f in dataclasses.fields(GPTConfig)}
    return GPTConfig(**args | dict(linear='dense'))


def tensors(old, new, how: How):
    """Every tensor of the large model (a tied head is none of its own) and where it comes from."""
    with torch.device('meta'):
        names = list(GPT(plain(new)).state_dict())
    plan = how.plan(old, new)
    grown = [axes(old, new, i, j, how) for i, (j, _) in enumerate(plan)]
    opens = ('post_1.', 'post_2.') if old.post_norm else ('attn.c_proj.', 'mlp.c_proj.')
    g = (old.n_kv_head or old.n_head) * (old.n_embd // old.n_head)
    for name in names:
        if name == 'lm_head.weight' and new.tie_head:
            continue
        if not name.startswith('transformer.h.'):
            key, source, above, closed, ax = name.removeprefix('transformer.'), name, name, False, grown[0]
        else:
            i, key = name.removeprefix('transformer.h.').split('.', 1)
            j, new_block = plan[int(i)]
            source, above = (f'transformer.h.{b}.{key}' for b in (j, min(j + 1, old.n_layer - 1)))
            closed, ax = new_block and key.startswith(opens), grown[int(i)]
        rows = [('', slice(None))]
        if TENSORS[key][0] == '>qkv':
            ends = (0, old.n_embd, old.n_embd + g, old.n_embd + 2 * g)
            rows = [(n, slice(*r)) for n, r in zip('qkv', zip(ends, ends[1:]))]
        parts = []
        for qkv, r in rows:
            named = [f'>{qkv}' if n == '>qkv' else n for n in TENSORS[key]]
            parts.append((named, [(ax.get(n[1:]), n[:1]) for n in named], r))
        yield Tensor(name, key, source, above, closed, parts)


def grow_weights(small: dict, old, new, how: How) -> dict:
    """The large model's state dict, tensor by tensor."""
    if how.width == 'random_lift':
        small = fold_norms(small, old)
    large = {}
    for t in tensors(old, new, how):
        gen = torch.Generator().manual_seed(how.seed ^ zlib.crc32(t.name.encode()))
        W, above = small[t.source], small[t.above]
        if t.key == 'wpe.weight':
            W = W[: new.block_size]
        pieces = [how.rule.fill(Part(t.key, n, sides, W[r], above[r], how, gen)) for n, sides, r in t.parts]
        large[t.name] = torch.cat(pieces) * (0 if t.closed else 1)
    if new.tie_head:
        large['lm_head.weight'] = large['transformer.wte.weight']
    return large


def grow_moments(state: dict, old, new, how: How) -> dict:
    """Adam's state {name: {step, exp_avg, exp_avg_sq}}: averages of gradients move as gradients do, and a copy keeps
    its age. What begins as zero begins anew."""
    large = {}
    for t in tensors(old, new, how):
        s = {k: v[: new.block_size] if t.key == 'wpe.weight' else v for k, v in state[t.source].items() if k != 'step'}
        large[t.name] = dict(step=state[t.source]['step'] * (0 if t.closed else 1))
        for power, k in ((1, 'exp_avg'), (2, 'exp_avg_sq')):
            m = torch.cat([lift(s[k][r], sides, power) for _, sides, r in t.parts])
            large[t.name][k] = m * (0 if t.closed else 1)
    return large


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
        "Adam's moments: grown with the weights (move), left out (fresh); auto: move where they and their rule exist",
        choices=('auto', 'move', 'fresh'),
    )
    seed: int = key(0, 'seed of noise, random copies and random vectors', low=0)

    def problems(self):
        return super().problems() + ([] if self.method else ['method: must be given, --method=clone and the like'])


def target(old, cfg: GrowConfig, how: How):
    """The large model's config: the small one's, with the sizes given and the others following."""
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


def choose_moments(ckpt: dict, old, new, how: How, moments: str, linear_kind: str = 'dense') -> bool:
    """Whether the moments move. UserError if they shall and cannot."""
    why, group = '', lambda c: c.n_head // (c.n_kv_head or c.n_head)  # query heads of a key-value head
    if 'optimizer' not in ckpt:
        why = 'the source has no optimizer state'
    elif 'param_groups' in ckpt['optimizer']:
        why = "the source has nanoGPT's optimizer state, which does not name its parameters"
    elif group(new) % group(old):
        why = 'key-value heads get query heads in other proportions, so their gradients are not copies'
    elif not how.rule.moments:
        why = f'for {how.width} it is not known how moments grow'
    elif linear_kind != 'dense':
        why = f'the layers are {linear_kind} now'
    if moments == 'move' and why:
        raise UserError(f'moments = move: {why}; use fresh')
    return moments != 'fresh' and not why


def say_grown(old, new, how: How, moved: bool, dropout: float):
    """What the user should know of a growth before training it on."""
    sizes = [('n_embd', old.n_embd, new.n_embd), ('n_head', old.n_head, new.n_head)]
    sizes += [('hidden', old.hidden(0), new.hidden(0)), ('n_layer', old.n_layer, new.n_layer)]
    print('grown: ' + ', '.join(f'{k} {a} -> {b}' for k, a, b in sizes if a != b))
    for k in ('attn_scale', 'logit_scale'):
        if getattr(old, k) != getattr(new, k):
            print(f'set by growth: {k} = {getattr(new, k):g}')
    print('moments: ' + ("Adam's, grown with the weights" if moved else 'fresh'))
    if how.width and how.rule.symmetric and not how.noise and not dropout and new.n_embd % old.n_embd == 0:
        cure = '--noise=0.3 or dropout' if how.rule.noise else 'dropout, or another method'
        print(f'WARNING: the copies are equal and stay so in training: no capacity is gained; use {cure}')
    copies = how.width in ('clone', 'lemon', 'net2wider', 'spectrum', 'bert2bert')
    if copies and new.n_embd > old.n_embd and not old.mup_base:  # which lowers the rates itself
        print(
            f'learning rate: each unit is read through {new.n_embd / old.n_embd:.3g} copies, so at the same rate the'
            f' function moves that much faster; --hidden_lr={old.n_embd / new.n_embd:.3g} keeps the pace'
        )


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
    how = parse(cfg.method, cfg.noise, cfg.seed)
    old = model.config
    new = settle(old, target(old, cfg, how), how)
    moved = choose_moments(ckpt, old, new, how, cfg.moments)
    if how.width == 'ligo':
        dataset = cfg.dataset or ckpt['config']['dataset']
        data = loader.Loader(dataset, 'train', old.block_size, 8, old.vocab_size, seed=cfg.seed)
        weights = ligo.learn(ckpt['model'], old, new, how, lambda step: data.batch(8 * step))
    else:
        weights = grow_weights(ckpt['model'], old, new, how)
    large = assemble(new, weights)
    say_grown(old, new, how, moved, new.dropout)
    print(f'{model.num_params():,} parameters -> {large.num_params():,}')
    report(cfg, model, large, tokens, EXACT if how.exact else None)
    resume = dict(transfer=history(ckpt, model, how, cfg.checkpoint))
    resume['transfer']['since'] = ckpt['iter_num']
    if moved:
        resume |= {k: ckpt[k] for k in ('position', 'seconds', 'scaler', 'rng') if k in ckpt}
        resume['transfer']['seconds'] -= ckpt.get('seconds', 0.0)  # counted on
        resume['optimizer'] = grow_moments(ckpt['optimizer'], old, new, how)
    best = ckpt['best_val_loss'] if how.exact else math.inf
    write(cfg, checkpoint.pack(large, ckpt['config'] | dataclasses.asdict(new), ckpt['iter_num'], best, **resume))
    if moved:
        print('to go on from its iteration: train.py --init_from=resume with its folder as --out_dir')


# -----------------------------------------------------------------------------
# at the start of a run: init_from = 'transfer'


def history(ckpt: dict, model, how: How, path) -> dict:
    """What a checkpoint of a grown model says of where it comes from: FLOPs and seconds of all training before the
    growth, the source's own sources included (none: not recorded), and the iteration at which it grew."""
    c, before = ckpt['config'], ckpt.get('transfer') or dict(since=0, flops=0, seconds=0.0)
    flops = None
    if 'gradient_accumulation_steps' in c and before['flops'] is not None:
        tokens = c['gradient_accumulation_steps'] * c['batch_size'] * c['block_size']
        per_iter = tokens * model.flops_per_token() + model.flops_per_update()
        flops = before['flops'] + (ckpt['iter_num'] - before['since']) * per_iter
    return dict(
        source=str(path),
        source_iter=ckpt['iter_num'],
        method='+'.join(n for n in (how.width, how.depth) if n),
        since=0,
        flops=flops,
        seconds=before['seconds'] + ckpt.get('seconds', 0.0),
    )


def how_of(cfg) -> How:
    return parse(cfg.transfer_method, cfg.transfer_noise, cfg.seed_model)


def prepare(cfg, ckpt: dict):
    """The training config with what growth decides. UserError if the small model cannot become this one."""
    old = GPTConfig(**checkpoint.read_args(ckpt, cfg.transfer_from))
    try:
        new = settle(old, cfg, how_of(cfg))
        choose_moments(ckpt, old, new, how_of(cfg), cfg.transfer_moments, cfg.linear)
    except UserError as e:
        raise UserError(
            '\n'.join(f'transfer_from = {cfg.transfer_from}: {line}' for line in str(e).split('\n'))
        ) from None
    return new


def start(model, cfg, ckpt: dict, data, quiet: bool):
    """Fill the model of a run from a small one's checkpoint; print what that did to the function. data: the run's
    training data, for what is learned.
    Returns (Adam's moments or None, the history for manifest and checkpoints)."""
    t0 = time.time()
    small = checkpoint.build(ckpt, cfg.transfer_from)
    old, how = small.config, how_of(cfg)
    past = history(ckpt, small, how, cfg.transfer_from)
    if how.width == 'ligo':
        batches = lambda step: data.batch(step * cfg.batch_size)
        weights = ligo.learn(ckpt['model'], old, cfg, how, batches, data.device)
        if past['flops'] is not None:  # the products of the maps, small beside these, are left out
            past['flops'] += ligo.STEPS * cfg.batch_size * cfg.block_size * model.flops_per_token()
    else:
        weights = grow_weights(ckpt['model'], old, cfg, how)
    linear.load_state(model, weights)
    moved = choose_moments(ckpt, old, cfg, how, cfg.transfer_moments, cfg.linear)
    moments = grow_moments(ckpt['optimizer'], old, cfg, how) if moved else None
    past['growing'] = time.time() - t0  # seconds
    past['seconds'] += past['growing']
    if not quiet:
        say_grown(old, cfg, how, moved, cfg.dropout)
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
            raise UserError(f'{past["method"]} should keep the function: {worst:.2e} is above {EXACT:g}')
    return moments, past
