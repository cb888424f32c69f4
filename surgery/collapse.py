"""
Three operations: collapse (multiply the factors), expand (the reverse), prune (remove units whose gate is closed).
"""

import dataclasses
from dataclasses import dataclass

import checkpoint
import linear
from configurator import UserError, key
from linear import factors
from model import GPT
from surgery import rotate
from surgery.operation import (
    SurgeryConfig,
    dense_config,
    layer_of,
    open_model,
    past,
    put,
    report,
    twin,
    with_keys,
    write,
)


class TransferConfig(SurgeryConfig):  # a class of this file, so that --help prints the head of this file
    pass


def collapse_model(model) -> GPT:
    """The plain GPT that computes what model computes; products are formed in float64. model is left as it is.
    UserError where a layer is no matrix."""
    if not linear.LAYERS[model.config.linear].is_matrix:
        raise UserError(
            f'linear = {model.config.linear}: {linear.plain_first(model.config.linear)}; sample.py and evaluate.py take'
            ' it as it is'
        )
    dense = GPT(dense_config(model.config))
    sd = model.state_dict()
    for name, m in model.named_modules():
        if hasattr(m, 'factors'):
            sd = {k: v for k, v in sd.items() if not k.startswith(f'{name}.') or k == f'{name}.bias'}
            sd[f'{name}.weight'] = factors.dense_float64(m)
    factors.load_state(dense, sd)
    return dense.eval()


def to_run(model) -> GPT:
    """model for sampling and evaluation: collapsed, or as it is where its layers are plain or no matrices."""
    kind = model.config.linear
    return collapse_model(model) if kind != 'dense' and linear.LAYERS[kind].is_matrix else model.eval()


def collapse(cfg: TransferConfig):
    ckpt, model, tokens = open_model(cfg)
    write_same(cfg, ckpt, model, collapse_model(model), tokens)


@dataclass
class ExpandConfig(with_keys('linear_layers', 'keep_dense', 'expansion')):
    expansion_init: str = key('orthogonal', 'both exactly the matrix that is there', choices=('orthogonal', 'svd'))
    seed: int = key(1337, 'seed of the orthonormal factors', low=0)


def expand_model(model, config, seed: int) -> GPT:
    """The GPT of config whose expanded layers compute what those of the plain model compute. model is left as it is."""
    new = twin(model)
    new.config = config
    for site in linear.chosen(config):
        old = layer_of(model, site)
        layer = rotate.expansion(old, config, site, seed)
        layer.bias = old.bias
        put(new, site, layer)
    return new


def expand(cfg: ExpandConfig):
    ckpt, model, tokens = open_model(cfg)
    if model.config.linear != 'dense':
        kind = model.config.linear
        raise UserError(f'{cfg.checkpoint}: its layers are {kind}; {linear.plain_first(kind)}')
    keys = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if hasattr(model.config, f.name)}
    config = dataclasses.replace(model.config, linear='expanded', **keys)
    if found := config.problems():
        raise UserError('\n'.join(found))
    new = expand_model(model, config, cfg.seed)
    print('\n'.join(factors.table(new)))
    write_same(cfg, ckpt, model, new, tokens)


def prune_model(model) -> GPT:
    """The plain GPT without the hidden units whose gate is closed; a layer keeps at least one unit."""
    model = collapse_model(model)
    sd, hidden = model.state_dict(), []
    for i, block in enumerate(model.transformer.h):
        name, gate = f'transformer.h.{i}.mlp', block.mlp.gate.detach().clamp(0, 1)
        keep = gate > 0
        keep[gate.argmax()] = True
        for k in (f'{name}.c_fc', f'{name}.c_gate'):
            for part in ('weight', 'bias'):
                if f'{k}.{part}' in sd:
                    sd[f'{k}.{part}'] = sd[f'{k}.{part}'][keep]
        sd[f'{name}.c_proj.weight'] = sd[f'{name}.c_proj.weight'][:, keep] * gate[keep]
        del sd[f'{name}.gate']
        hidden.append(int(keep.sum()))
    widths = tuple(h / model.config.n_embd for h in hidden)
    factor = widths if len(set(widths)) > 1 else widths[0]
    config = dataclasses.replace(
        model.config, mlp_gate=False, mlp_expansion_factor=factor, multiple_of=1, swiglu_match=False
    )
    pruned = GPT(config)
    factors.load_state(pruned, sd)
    return pruned.eval()


def prune(cfg: TransferConfig):
    ckpt, model, tokens = open_model(cfg)
    if not model.config.mlp_gate:
        raise UserError(f'{cfg.checkpoint} has no gates to prune by; train with --mlp_gate=true')
    pruned = prune_model(model)
    kept = [pruned.config.hidden(i) for i in range(pruned.config.n_layer)]
    print(f'hidden units per layer: {model.config.hidden(0)} -> {", ".join(map(str, kept))}')
    write_same(cfg, ckpt, model, pruned, tokens)


def write_same(cfg, ckpt, model, new, tokens):
    """Write a checkpoint of new, which was made from model, if they compute the same."""
    print(f'{model.num_params():,} parameters -> {new.num_params():,}')
    report(cfg, model, new, tokens)
    config = ckpt['config'] | dataclasses.asdict(new.config)
    best, record = ckpt['best_val_loss'], ckpt['tokenizer']
    write(cfg, checkpoint.pack(new, config, ckpt['iter_num'], best, tokenizer=record, **past(ckpt)))
