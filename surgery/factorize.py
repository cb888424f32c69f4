"""
Plain matrices into structured ones, any layer of linear.LAYERS.

    python transfer.py factorize --checkpoint=out/x/best.pt --linear=kronecker --out=out/x-kronecker/ckpt.pt
    python transfer.py factorize config/kronecker/81m.py --checkpoint=gpt2 --dataset=gutenberg --out=out/81m/ckpt.pt
    python transfer.py factorize --checkpoint=gpt2 --dataset=gutenberg --linear=low_rank --linear_layers=mlp+attn \\
        --keep_dense='h.0.*' --params=95M --init=whitened --distill_iters=300 --out=out/95m/ckpt.pt
    python train.py config/kronecker/finetune.py --init_from=out/81m/ckpt.pt

The keys of train.py say which layers become structured, and of which kind; shape, terms and rank may be left out. Or
--params gives a budget for all parameters of the model, position embeddings included. Shapes are then chosen in three
steps: those with the smallest Frobenius error are candidates; a candidate is judged by how much the loss on training
tokens rises when one block at a time has it, summed over blocks; then the same is tried with the blocks left dense that
lose most.

--init  nearest   in the Frobenius norm: the layer's from_dense, by exact SVD (of Van Loan & Pitsianis' rearrangement
                  for Kronecker sums, of W for low_rank, of every tile for btt and monarch), by iteration where there is
                  no closed form
        whitened  nearest in the layer's output on training tokens, E|Wx - W'x|^2, where that has a closed form:
                  low_rank, expanded, block_diagonal
        prune     Kronecker sums: as many entries of each tile as there are terms, the others zero. Of a second factor
                  (1, 2) every other input remains, of (2, 1) every other output
        random    as a new layer starts; a control
--rescale gives the new matrix the norm of the old one. --distill_iters trains the result of any start, block by block
(distill.py). The table has, per matrix, the error |W - W'| / |W|, the energy kept (the squared cosine between W and W')
and the rise of the validation loss when that matrix alone is replaced. Below it are the losses when all of the MLPs, and
all of attention, are replaced.

The nearest layer in the Frobenius norm need not have the least loss, and a model with all layers replaced at once is
usually of no use until it is trained further. Van Loan & Pitsianis 1993; Ayad, Mitrovic & Granitzer 2024 (Krony-PT,
arXiv 2412.12351: 67M, 81M, 95M and pruning); Edalati et al. 2021 (KnGPT2, 2110.08152).
"""

import dataclasses
import inspect
import math
from collections import Counter
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn as nn

import checkpoint
import hardware
import linear
from configurator import UserError, key, overrides, root_path
from files import write_json
from linear import factors
from logger import relative
from model import add_up
from surgery import distill
from surgery.operation import block_of, layer_of, open_model, past, put, report, spare_report, twin, with_keys, write
from tokens import loader

CALIBRATION = 8192  # training tokens that --init=whitened looks at
SHORTLIST = 4  # shapes whose loss is measured, for each number of blocks left dense

# -----------------------------------------------------------------------------
# keys: those that shape linear layers, and what to do with them

SHAPE = [k for k in linear.all_keys() if k != 'linear_path']
# {init: method of a layer}
STARTS = {'nearest': 'from_dense'} | {s: s for L in linear.LAYERS.values() for s in L.starts}


@dataclass
class FactorizeConfig(with_keys(*SHAPE)):
    init: str = key('nearest', 'how the factors start', choices=(*STARTS, 'random'))
    rescale: bool = key(False, 'scale the new matrix to the norm of the old one')
    params: str = key(
        '', 'at most so many parameters, position embeddings included, such as 81M or 80500000; shapes are chosen'
    )
    distill_iters: int = key(0, 'steps of training each new block to do as the old one; 0: none', low=0)
    distill_lr: float = key(3e-2, 'its peak learning rate, relative to the size of a factor', above=0)
    distill_batch: int = key(8, 'its windows of block_size training tokens per step', low=1)
    look: int = key(512, 'tokens on which one replaced matrix is judged', low=1)
    seed: int = key(1337, 'seed of --init=random and of the order of training tokens', low=0)
    device: str = key('auto', 'cuda, cuda:1, cpu, mps; auto: the best there is')

    def problems(self):
        found = super().problems()
        layer = linear.LAYERS[self.linear]
        if self.linear == 'dense':
            found.append(f'linear: must be given, one of {", ".join(k for k in linear.LAYERS if k != "dense")}')
        if not layer.is_matrix:
            found.append(
                f'linear = {self.linear}: its matrix differs from token to token, so no one matrix can become it'
            )
        if self.init not in ('nearest', 'random', *layer.starts):
            have = ', '.join(k for k, L in linear.LAYERS.items() if self.init in L.starts)
            found.append(f'init = {self.init}: is for linear = {have}, not for {self.linear}')
        if self.guide_iters:
            found.append('guide_iters: a guide leads a start from scratch, this one has its matrices; leave it out')
        if self.init == 'random' and self.rescale:
            found.append('rescale: a random start has the size that it is meant to have')
        if not self.distill_iters and (given := {'distill_lr', 'distill_batch'} & set(overrides(self))):
            found.append(f'{", ".join(sorted(given))}: of a distillation; give distill_iters, or leave it out')
        if self.params:
            try:
                parameters(self.params)
            except (ValueError, OverflowError):
                found.append(f"params = '{self.params}': must be a number such as 81M, 80.5M or 80500000")
            given = overrides(self)
            found += [f'{k}: is what params chooses; give one of them' for k in layer.sizes if k in given]
        return found


def wants_inputs(layer, init: str) -> bool:
    """Whether that start of a layer, or of its class, looks at C = E[x x^T] of what the layer takes."""
    return init in layer.starts and 'C' in inspect.signature(getattr(layer, init)).parameters


def parameters(text: str) -> int:
    """'81M' -> 81,000,000. Raises ValueError."""
    unit = dict(k=1e3, m=1e6, b=1e9).get(text[-1].lower())
    return round(float(text[:-1]) * unit) if unit else round(float(text))


def shaped(config, cfg: FactorizeConfig, **choice):
    """The model's config with its layers as cfg says. Raises UserError naming what does not fit, or has no effect."""
    new = dataclasses.replace(config, **{k: getattr(cfg, k) for k in SHAPE} | choice)
    if found := new.problems():
        raise UserError('\n'.join(found))
    if idle := {k: v for k, v in new.idle().items() if k in overrides(cfg)}:
        what = ', '.join(f'{k} = {v}' for k, v in idle.items())
        raise UserError(f'without effect for linear = {cfg.linear}: {what}; leave it out')
    return new


# -----------------------------------------------------------------------------
# one matrix


@torch.no_grad()
def new_layer(config, site: str, old, init='nearest', C=None, rescale=False):
    """The layer that takes the place of a plain one, on the CPU; its bias is a copy of the old one's."""
    W = old.weight.detach().cpu().float()
    layer = linear.make(config, site, W.size(1), W.size(0), residual=site.endswith('c_proj'))
    if init != 'random':
        data = (C,) if wants_inputs(layer, init) else ()
        set_to = getattr(layer, STARTS[init])
        set_to(W, *data)
        if rescale:  # all of these are homogeneous
            set_to(W * (W.norm() / layer.to_dense().norm().clamp_min(1e-30)), *data)
    if old.bias is not None:
        layer.bias.copy_(old.bias)
    return layer


def errors(W, new) -> tuple[float, float]:
    """(|W - W'| / |W|, squared cosine between them), in float64."""
    W, new = W.double(), new.double()
    norm = W.norm().clamp_min(1e-300)
    cosine = (W * new).sum() / norm / new.norm().clamp_min(1e-300)
    return ((W - new).norm() / norm).item(), (cosine**2).item()


# -----------------------------------------------------------------------------
# in a model


class Given(nn.Module):
    """Stands for all blocks before one whose input x is known."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, *_):
        return self.x, None


@torch.no_grad()
def loss_from(model, i: int, x, tokens) -> float:
    """The loss on tokens (idx, targets), x being what block i takes: blocks before it need not be computed again."""
    blocks = model.transformer.h
    model.transformer['h'] = nn.ModuleList([Given(x), *blocks[i:]])
    try:
        return model(*tokens)[1].item()
    finally:
        model.transformer['h'] = blocks


@torch.no_grad()
def walk(model, idx):
    """(i, x) of every block, x being what it takes, and of the end."""
    x, *rest = model.embed(idx)
    for i, block in enumerate(model.transformer.h):
        yield i, x
        x = add_up(*block(x, None, *rest))
    yield len(model.transformer.h), x


class Formed(nn.Module):
    """Stands for a layer of factors, and multiplies by its matrix, which it forms each time anew."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return nn.functional.linear(x, self.layer.to_dense(), self.layer.bias)


def fitted(model, layers: dict):
    """A twin of the model with these layers {site: layer}, to be looked at: factors that take more multiplications
    than their matrix (a tensor train of high rank) are multiplied out in it."""
    new = twin(model)
    for site, m in layers.items():
        put(new, site, Formed(m) if m.macs() > m.d_in * m.d_out else m)
    return new


@torch.no_grad()
def loss_with(model, layers: dict, tokens) -> float:
    """The loss of model with these layers {site: layer} in it."""
    return fitted(model, layers)(*tokens)[1].item()


@torch.no_grad()
def second_moments(model, idx, sites):
    """{site: E[x x^T] of what it takes}, of those sites that are in it, for every block and the head in turn."""
    x, *rest = model.embed(idx)
    for i in range(len(model.transformer.h) + 1):
        C, hooks = {}, []
        for site in [s for s in sites if block_of(s, model.config) == i]:

            def add(layer, args, site=site, C=C):
                z = args[0].flatten(0, -2).float()
                C[site] = (z.T @ z / len(z)).cpu()

            hooks.append(layer_of(model, site).register_forward_pre_hook(add))
        if i < len(model.transformer.h):
            x = add_up(*model.transformer.h[i](x, None, *rest))
        elif hooks:
            model.lm_head(model.transformer.ln_f(x))
        for h in hooks:
            h.remove()
        yield C


def replace_all(model, config, cfg: FactorizeConfig, tokens, calibration, device) -> tuple[dict, list, float]:
    """({site: layer on the device}, a row of the table each, the loss before), block by block. tokens: (idx, targets)
    for the loss; calibration: idx for second moments, None without."""
    layers, rows, base = {}, [], None
    sites = linear.chosen(config)
    moments = repeat({}) if calibration is None else second_moments(model, calibration, sites)
    for (i, x), C in zip(walk(model, tokens[0]), moments):
        base = loss_from(model, i, x, tokens) if base is None else base
        for site in [s for s in sites if block_of(s, config) == i]:
            old = layer_of(model, site)
            new = new_layer(config, site, old, cfg.init, C.get(site), cfg.rescale)
            W, dense = old.weight, new.to_dense().detach()
            error, energy = errors(W.detach().cpu(), dense)
            old.weight = nn.Parameter(dense.to(device))
            alone = loss_from(model, i, x, tokens) - base
            old.weight = W
            n = sum(p.numel() for k, p in new.named_parameters() if k != 'bias')
            rows.append(dict(site=site, params=n, share=n / W.numel(), error=error, energy=energy, alone=alone))
            layers[site] = new.to(device)
            print(table_row(**rows[-1]), flush=True)
    return layers, rows, base


HEAD = f'{"matrix":18} {"parameters":>11} {"of dense":>8} {"error":>7} {"energy":>7} {"loss alone":>10}'


def table_row(site: str, params: int, share: float, error: float, energy: float, alone: float) -> str:
    """A row of the table under HEAD."""
    return f'{site:18} {params:11,} {share:8.1%} {error:7.4f} {energy:7.4f} {alone:+10.4f}'


# -----------------------------------------------------------------------------
# shapes for a budget


def count(config, dense: int) -> int:
    """Parameters of a model of this config, of which the plain one has `dense`. UserError if a shape does not exist."""
    n = dense
    for (d_in, d_out), times in Counter(linear.chosen(config).values()).items():
        with torch.device('meta'):
            layer = linear.LAYERS[config.linear](d_in, d_out, config)
        n += times * (sum(p.numel() for p in layer.parameters()) - d_in * d_out)
    return n


def shapes(config, budget: int, dense: int) -> list[tuple[int, dict]]:
    """[(parameters, keys)] of the shapes within the budget, the largest first: of every variant the largest knob that fits, if
    it is within 1% of `dense`, the parameters of the plain model, from the largest of all."""

    def size(**keys):
        try:
            return count(dataclasses.replace(config, **keys), dense)
        except UserError:
            return math.inf

    layer, options = linear.LAYERS[config.linear], []
    narrow, wide = sorted(max(linear.chosen(config).values(), key=math.prod))
    for keys in layer.variants(narrow, wide):
        if not layer.knob:
            options.append(keys)
            continue
        step = layer.step(keys)
        low, high = 0, 4 * narrow // step
        while high - low > 1:
            middle = (low + high) // 2
            fits = size(**keys, **{layer.knob: middle * step}) <= budget
            low, high = (middle, high) if fits else (low, middle)
        options += [keys | {layer.knob: low * step}] if low else []
    found = [(n, o) for o in options if (n := size(**o)) <= budget]
    found.sort(key=lambda f: -f[0])
    return [f for f in found if f[0] >= found[0][0] - 0.01 * dense]


def misfit(config, model, init: str) -> float:
    """The relative error of the largest matrix in the middle."""
    sites = linear.chosen(config)
    largest = [s for s, d in sites.items() if d == max(sites.values(), key=math.prod)]
    site = largest[len(largest) // 2]
    old = layer_of(model, site)
    new = new_layer(config, site, old, init)
    return errors(old.weight.detach().cpu(), new.to_dense().detach())[0]


@torch.no_grad()
def damage(model, config, init: str, tokens, device) -> dict:
    """{block: rise of the loss when the layers of that block alone are replaced}."""
    base, rises = None, {}
    for i, x in walk(model, tokens[0]):
        base = loss_from(model, i, x, tokens) if base is None else base
        sites = [s for s in linear.chosen(config) if block_of(s, config) == i]
        old = {s: layer_of(model, s) for s in sites}
        for site in sites:
            put(model, site, new_layer(config, site, old[site], init).to(device))
        if sites:
            rises[i] = loss_from(model, i, x, tokens) - base
        for site in sites:
            put(model, site, old[site])
    return rises


def choose(model, cfg: FactorizeConfig, dense: int, dataset: str, device):
    """The config whose layers fit cfg.params with the least damage; see the head of this file. dense: parameters of the model."""
    budget, best, kept, resistance = parameters(cfg.params), None, [], Counter()
    if budget >= dense:
        raise UserError(
            f'params = {cfg.params}: {cfg.checkpoint} has {dense:,} parameters already, position embeddings'
            ' included; give fewer, or grow it: python transfer.py grow'
        )
    tokens = first(training_windows(dataset, model.config, cfg.look, cfg.seed, device), cfg.look)
    layer = linear.LAYERS[cfg.linear]
    given = shaped(model.config, cfg)
    own = cfg.init in layer.starts and not wants_inputs(layer, cfg.init)
    init = cfg.init if own else 'nearest'  # what can be tried without looking at inputs
    print(f'{"parameters":>11} {"summed rise":>11}  shape')
    while True:
        blocks = ['lm_head' if i == given.n_layer else f'h.{i}.*' for i in kept]
        keep = ','.join([cfg.keep_dense, *blocks] if cfg.keep_dense else blocks)
        config = dataclasses.replace(given, keep_dense=keep)
        found = shapes(config, budget, dense) if linear.chosen(config) else []
        if not found and not kept:
            smallest = f'{cfg.linear} on {cfg.linear_layers} cannot make {dense:,} parameters so few'
            raise UserError(f'params = {cfg.params}: {smallest}; name more layers or another linear')
        if len(found) > SHORTLIST:
            found.sort(key=lambda f: misfit(dataclasses.replace(config, **f[1]), model, init))
        before = best
        for n, keys in found[:SHORTLIST]:
            new = dataclasses.replace(config, **keys)
            rises = damage(model, new, init, tokens, device)
            total = sum(rises.values())
            print(f'{n:11,} {total:+11.4f}  {shape_keys(new, cfg)}', flush=True)
            if not math.isfinite(total):
                continue
            if not kept:
                resistance.update(rises)
            if best is None or total < best[0]:
                best = total, new
        if best is None:
            raise UserError(f'params = {cfg.params}: the loss of every shape is infinite or NaN; is the model whole?')
        if best is before or len(kept) + 1 >= len(resistance):  # leaving one more block dense did not help
            print(f'chosen: {shape_keys(best[1], cfg)}')
            return best[1]
        kept = [i for i, _ in resistance.most_common(len(kept) + 1)]


def shape_keys(config, cfg) -> str:
    """The keys that params has chosen, as flags."""
    keys = (*linear.LAYERS[cfg.linear].sizes, 'keep_dense')
    values = {k: v for k in keys if (v := getattr(config, k)) != getattr(cfg, k)}
    text = lambda v: ','.join(f'{i:g}' for i in v) if isinstance(v, tuple) else v
    return ' '.join(f'--{k}={text(v)}' for k, v in values.items())


# -----------------------------------------------------------------------------
# the command


def first(tokens, n: int):
    """About the first n tokens of (idx, targets): whole windows, or the beginning of one."""
    T = tokens[0].size(1)
    return [t[: max(1, n // T), :n] for t in tokens]


def training_windows(dataset, config, tokens: int, seed: int, device):
    """About so many training tokens in windows of block_size: (idx, targets)."""
    n = max(1, tokens // config.block_size)
    return loader.Loader(dataset, 'train', config.block_size, n, config.vocab_size, device, seed=seed).batch(0)


def kinds(sites) -> dict:
    """{'mlp': [...], 'attn': [...], 'head': [...]}, those that there are."""
    of = lambda s: 'head' if s == 'lm_head' else s.split('.')[2]
    return {k: [s for s in sites if of(s) == k] for k in ('mlp', 'attn', 'head') if any(of(s) == k for s in sites)}


def factorize(cfg: FactorizeConfig):
    ckpt, model, tokens = open_model(cfg)
    spare_report(cfg)
    if model.config.linear != 'dense':
        raise UserError(
            f'{cfg.checkpoint} has linear = {model.config.linear} already; {linear.plain_first(model.config.linear)}'
        )
    if odd := next((n for n, p in model.named_parameters() if not p.isfinite().all()), None):
        raise UserError(f'{cfg.checkpoint}: {odd} holds values that are not finite; take an earlier checkpoint')
    device = hardware.choose_device(cfg.device)
    torch.manual_seed(cfg.seed)
    dataset = cfg.dataset or ckpt['config']['dataset']
    model, tokens = model.to(device).requires_grad_(False), [t.to(device) for t in tokens]
    look = first(tokens, cfg.look)
    dense = sum(p.numel() for p in model.parameters())
    config = choose(model, cfg, dense, dataset, device) if cfg.params else shaped(model.config, cfg)
    calibration = None
    if wants_inputs(linear.LAYERS[cfg.linear], cfg.init):
        calibration = training_windows(dataset, config, CALIBRATION, cfg.seed, device)[0]
    print(f'{cfg.linear}, init {cfg.init}; loss on {look[0].numel():,} validation tokens')
    print(HEAD)
    layers, rows, base = replace_all(model, config, cfg, look, calibration, device)
    groups = {k: loss_with(model, {s: layers[s] for s in sites}, look) for k, sites in kinds(layers).items()}
    for k, loss in groups.items():
        print(f'all of {k}: loss {base:.4f} -> {loss:.4f}')

    new = twin(model)
    new.config = config
    if cfg.distill_iters:
        shape = {k: getattr(config, k) for k in SHAPE}
        which = dict(iter_num=ckpt['iter_num'], weights=checkpoint.checksum(ckpt['model']))
        settings = dataclasses.asdict(cfg) | shape | which
        distill.distill(model, new, layers, cfg, settings, dataset, look)
    for site, layer in layers.items():
        put(new, site, layer)
    new.requires_grad_(True)
    for line in factors.table(new):
        print(line)
    n = sum(p.numel() for p in new.parameters())
    print(f'{dense:,} parameters -> {n:,}, position embeddings included; without them {new.num_params():,}')
    report(cfg, model, fitted(new, layers), tokens, limit=None)
    new.cpu()
    settings = dict(dataset=dataset) | ckpt['config'] | dataclasses.asdict(new.config)
    costs, before = distill.costs(model, new, layers, cfg), past(ckpt)
    if 'flops' in before:
        before['flops'] += costs['flops']
    write(cfg, checkpoint.pack(new, settings, ckpt['iter_num'], math.inf, tokenizer=ckpt['tokenizer'], **before))
    facts = dict(
        settings=relative(overrides(cfg)),
        **costs,
        params=new.num_params(),
        params_all=n,
        params_dense_all=dense,
        loss_before=base,
        loss_all_of=groups,
        rows=rows,
        shape=shape_keys(config, cfg),
    )
    write_json(root_path(cfg.out).with_suffix('.json'), facts)
    if cfg.distill_iters:
        distill.forget(cfg)
