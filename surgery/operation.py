"""
What all operations on checkpoints share: their keys, opening a checkpoint, reporting how its outputs changed (the
largest difference of logits, and the loss before and after, on real tokens), and writing the result.
"""

import copy
import dataclasses
import zipfile
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import checkpoint
from configurator import UserError, input_path, key, root_path
from files import check_place, read_json
from linear import module_name
from model import NANOGPT_KEYS, GPTConfig
from surgery import reader
from tokens import loader, tokenizer

CHECKED = 4096  # validation tokens that an operation looks at
TOLERANCE = 1e-4  # largest logit difference in float32 that a collapse may cause


@dataclass
class SurgeryConfig:
    checkpoint: str = key('', 'checkpoint to read')
    out: str = key('', 'checkpoint or folder to write')
    dataset: str = key('', "data set whose validation tokens the check runs on; empty: the checkpoint's own")
    windows: int = key(0, f'windows of block_size tokens to check; 0: {CHECKED:,} tokens', low=0)

    def problems(self):
        return [f'{k}: must be given, --{k}=PATH' for k in ('checkpoint', 'out') if not getattr(self, k)]


def with_keys(*prefixes) -> type:
    """SurgeryConfig with the keys of GPTConfig whose names begin with these words, as they are declared there."""
    keys = [f for f in dataclasses.fields(GPTConfig) if f.name.startswith(prefixes) and f.name != 'linear_path']
    copies = [(f.name, f.type, dataclasses.field(default=f.default, metadata=f.metadata)) for f in keys]
    return dataclasses.make_dataclass('Keys', copies, bases=(SurgeryConfig,))


def real_tokens(config, dataset: str, windows: int = 0, may_run: bool = True):
    """x, y (windows, block_size) from the validation split; 0: about CHECKED tokens. may_run: see loader.prepare."""
    loader.prepare(dataset, may_run)
    windows = windows or max(1, CHECKED // config.block_size)
    data = loader.Loader(dataset, 'val', config.block_size, 1, config.vocab_size)
    pairs = [(x, y) for x, y, _ in data.eval_batches(windows)]
    return [torch.cat(t) for t in zip(*pairs)]


@torch.no_grad()
def compare(before, after, x, y) -> tuple[float, float, float]:
    """(largest logit difference, loss before, loss after) on tokens x with targets y, window by window."""
    worst, losses = torch.zeros(()), [0.0, 0.0]
    for i in range(len(x)):
        logits = [m(x[i : i + 1], last_only=False)[0].float() for m in (before, after)]
        worst = torch.maximum(worst, (logits[0] - logits[1]).abs().max())  # unlike max(), it keeps a NaN
        for j in (0, 1):
            losses[j] += F.cross_entropy(logits[j][0], y[i]).item() / len(x)
    return worst.item(), *losses


def spare(cfg: SurgeryConfig, folder=False):
    """UserError if cfg.out would replace the checkpoint that is read, one of a run, or what is no checkpoint; or if it can
    be none. folder: it will be one."""
    out, lost = root_path(cfg.out), 'which would be lost; choose another --out'
    if not folder:
        check_place(out)
        if out.suffix == '.json':
            raise UserError(
                f'out = {cfg.out}: that of a report beside the checkpoint; name it {out.with_suffix(".pt").name}'
            )
    if cfg.out and out.resolve() == input_path(cfg.checkpoint).resolve():
        raise UserError(f'out = {cfg.out}: is the checkpoint itself, {lost}')
    if out.is_file() and out.with_name('metrics.jsonl').exists():
        raise UserError(f'out = {cfg.out}: is the checkpoint of a run, {lost}')
    if out.is_file() and out.stat().st_size and not saved_by_torch(out):
        raise UserError(f'out = {cfg.out}: is there and no checkpoint, {lost}')


def saved_by_torch(path) -> bool:
    try:
        with zipfile.ZipFile(path) as z:
            return any(name.endswith('/data.pkl') for name in z.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def spare_report(cfg: SurgeryConfig):
    """UserError if the report beside cfg.out would replace what is none, such as the config.json of a run."""
    path = root_path(cfg.out).with_suffix('.json')
    try:
        if path.exists():
            read_json(path, dict(settings=dict))
    except UserError:
        raise UserError(
            f'out = {cfg.out}: its report is {path.name}, which is there and no report; choose another --out'
        ) from None


def open_model(cfg: SurgeryConfig, folder=False):
    """(checkpoint, its model, validation tokens). Raises UserError if the model was trained with other tokens than
    these. folder: see spare."""
    spare(cfg, folder)
    ckpt = reader.load(cfg.checkpoint)
    model = checkpoint.build(ckpt, cfg.checkpoint)
    dataset = cfg.dataset or loader.named_by(ckpt, cfg.checkpoint)
    ckpt['tokenizer'] = tokenizer.of_checkpoint(input_path(cfg.checkpoint), ckpt)
    tokens = real_tokens(model.config, dataset, cfg.windows, may_run=bool(cfg.dataset))
    remedy = 'add --dataset with data in its tokens'
    if note := tokenizer.require_same(
        ckpt['tokenizer'], tokenizer.of_data(dataset), cfg.checkpoint, remedy, strict=False
    ):
        print(note)
    return ckpt, model, tokens


def report(cfg: SurgeryConfig, before, after, tokens, limit: float | None = TOLERANCE):
    """Print how far the logits and the loss moved; UserError if the logits moved by more than limit (None: any
    amount)."""
    worst, loss_before, loss_after = compare(before, after, *tokens)
    print(f'on {tokens[0].numel():,} validation tokens: loss {loss_before:.6f} -> {loss_after:.6f},')
    print(f'largest logit difference {worst:.2e}' + (f' (limit {limit:g})' if limit else ''))
    if limit and not worst <= limit:  # NaN must not pass
        raise UserError(f'the function would change: {worst:.2e} is above {limit:g}; {cfg.out} is not written')


def write(cfg: SurgeryConfig, ckpt: dict):
    """Write a checkpoint to cfg.out. It contains its vocabulary, except a large tokenizer.json, which is put beside
    it."""
    out = root_path(cfg.out)
    tokenizer.carry(ckpt.get('tokenizer'), input_path(cfg.checkpoint), out, ckpt['config'].get('dataset'))
    checkpoint.save(out, ckpt)
    beyond = set(ckpt['model_args']) - set(NANOGPT_KEYS)
    keys = ', '.join(sorted(beyond))
    print(f'wrote {out}; ' + (f'nanoGPT cannot read it, because of {keys}' if beyond else 'nanoGPT can read it, too'))


def past(ckpt: dict) -> dict:
    """What a checkpoint says of the training behind it, which is behind what is made of it, too."""
    return {k: ckpt[k] for k in ('transfer', 'seconds', 'flops') if k in ckpt}


# -----------------------------------------------------------------------------
# configs, and single layers by the names of linear.sites


def dense_config(config) -> GPTConfig:
    """The GPTConfig of the dense model; config may have more keys, as that of a run has."""
    args = {f.name: getattr(config, f.name) for f in dataclasses.fields(GPTConfig)}
    return GPTConfig(**args | dict(linear='dense'))


def layer_of(model, site: str):
    """The layer of a site in a model."""
    return model.get_submodule(module_name(site))


def put(model, site: str, layer):
    """Put a layer in the place of that of a site."""
    parent, _, name = module_name(site).rpartition('.')
    setattr(model.get_submodule(parent), name, layer)


def block_of(site: str, config) -> int:
    """Which block a site is in; the head comes after the last."""
    return config.n_layer if site == 'lm_head' else int(site.split('.')[1])


def twin(model):
    """A second model that shares the tensors of the first. Replacing layers in it does not change the first."""
    return copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
