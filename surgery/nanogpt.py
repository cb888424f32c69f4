"""
To and from nanoGPT: its names, and the state of its optimizer.

A nanoGPT checkpoint has no `format`. Its names can carry prefixes: `_orig_mod.` of torch.compile, `module.` of DDP, in
any order. Saved without flash attention it holds the causal masks as well. Its optimizer state has numbers in place of
names: AdamW's two groups, first the matrices and then the vectors, each in the order of named_parameters, where the
tied head counts once. Here such a checkpoint becomes one of ours; export_nanogpt.py writes one.

Source: github.com/karpathy/nanoGPT, train.py and model.py (configure_optimizers)
"""

import checkpoint
from configurator import UserError
from surgery import claims

WTE = 'transformer.wte.weight'
RESUMED = ('gradient_accumulation_steps', 'batch_size', 'block_size')  # what says how many tokens an iteration has seen


def names(sd: dict, path) -> dict:
    """The weights under their own names, without masks."""
    found = {k.replace('_orig_mod.', ''): v for k, v in sd.items()}
    prefix = min((k.removesuffix(WTE) for k in found if k.endswith(WTE)), key=len, default='')
    found = {k.removeprefix(prefix): v for k, v in found.items()}
    if len(found) < len(sd):
        raise UserError(
            f"{path}: two weights have the same name once '_orig_mod.' and '{claims.shown(prefix)}' are off"
        )
    return {k: v for k, v in found.items() if not k.endswith('.attn.bias')}


def in_groups(model) -> list[list[str]]:
    """Names of the parameters in the order of nanoGPT's optimizer: [matrices, vectors]."""
    named = list(model.named_parameters())
    return [[n for n, p in named if (p.dim() >= 2) == matrix] for matrix in (True, False)]


def adopt_optimizer(ckpt: dict, model):
    """Name the moments, and find a position in our order of the data. What cannot be read is left out, and
    `unresumable` says why; the weights can still be used."""
    state = ckpt.pop('optimizer', {})
    if isinstance(state, dict) and not state:
        return
    groups, config = in_groups(model), ckpt['config']
    state = state if isinstance(state, dict) else {}
    theirs, moments = state.get('param_groups'), state.get('state')
    ok = isinstance(moments, dict) and isinstance(theirs, list | tuple) and all(isinstance(g, dict) for g in theirs)
    theirs = [g.get('params') for g in theirs] if ok else []
    ok = ok and all(isinstance(g, list) and all(isinstance(i, int) for i in g) for g in [*theirs, list(moments)])
    if not ok:
        ckpt['unresumable'] = 'its optimizer state is not that of torch'
        return
    if [len(g) for g in theirs] != [len(g) for g in groups] or sorted(moments) != sorted(sum(theirs, [])):
        ckpt['unresumable'] = (
            f'its optimizer has groups of {", ".join(str(len(g)) for g in theirs)} parameters and {len(moments)} moments,'
            f" nanoGPT's AdamW of this model {' and '.join(str(len(g)) for g in groups)}"
        )
        return
    if lacking := [k for k in RESUMED if not isinstance(config.get(k), int)]:
        ckpt['unresumable'] = f'its config does not say {", ".join(lacking)}'
        return
    ckpt['optimizer'] = {n: moments[i] for ours, g in zip(groups, theirs) for n, i in zip(ours, g)}
    consumed = ckpt['iter_num'] * checkpoint.tokens_per_iter(config)
    ckpt['position'] = consumed // ckpt['model_args']['block_size']
    ckpt |= dict(seconds=0.0, scaler={}, rng=dict(cpu=[], cuda=[]))
