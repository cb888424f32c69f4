"""
One interface for causal language models with their tokenizers: a checkpoint of ours or nanoGPT's, or a folder of
Hugging Face's transformers. evaluate.py scores texts with it.
"""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

import checkpoint
import hardware
from configurator import UserError, input_path, printable
from files import read_json
from surgery import reader
from surgery.collapse import to_run
from surgery.huggingface import logits, pretrained
from tokens import loader, tokenizer


@dataclass
class LM:
    """A causal language model with its tokenizer."""

    logits: Callable  # idx (B, T) token ids on the device -> (B, T, V)
    vocab_size: int
    block_size: int | None  # None: the model knows no limit
    encode: Callable  # text -> token ids
    decode: Callable  # token ids -> bytes
    first: list  # what is put before a running text: the id of <|endoftext|>, or nothing
    prefix: list = field(default_factory=list)  # what the tokenizer wants before every text, GPT-2's nothing
    unknown: Callable = lambda text, ids: 0  # (text, its ids) -> how many ids stand for what the tokenizer cannot write
    record: dict = field(default_factory=dict)  # its vocabulary, see tokenizer.py
    dataset: Callable = lambda: ''  # the name of the data set that a checkpoint of ours was trained on
    facts: dict = field(default_factory=dict)  # for the report
    device: torch.device = torch.device('cpu')
    window: int = 0  # the longest context to use


def our_model(path: Path) -> tuple[torch.nn.Module, LM]:
    """A checkpoint file of this repository or of nanoGPT."""
    ckpt = reader.load(path)
    model = checkpoint.build(ckpt, path)
    params, collapsed = model.num_params(), model.num_params_collapsed()
    model = to_run(model)
    tok = tokenizer.load(path, ckpt)
    return model, LM(
        logits=lambda idx: model(idx, last_only=False)[0],
        vocab_size=model.config.vocab_size,
        block_size=model.config.block_size,
        dataset=lambda: loader.named_by(ckpt, path),
        facts=dict(
            kind='nanoMorph' if 'format' in ckpt else 'nanoGPT',
            iter_num=ckpt['iter_num'],
            weights=checkpoint.checksum(ckpt['model']),
            params=params,
            params_collapsed=collapsed,
            tokenizer=tok.name,
        ),
        **interface(tok),
    )


def interface(tok: tokenizer.Tokenizer) -> dict:
    """The fields of LM that a tokenizer gives."""
    return {k: getattr(tok, k) for k in ('encode', 'decode', 'first', 'prefix', 'unknown', 'record')}


def hf_model(folder: Path) -> tuple[torch.nn.Module, LM]:
    """A causal language model in a local folder of transformers; without tokenizer files GPT-2's encoding is taken.
    Code that lies in the folder is not run. Raises UserError if it does not load whole or is not causal."""
    model = pretrained(folder, 'AutoModelForCausalLM')
    c = model.config.get_text_config()
    if not is_causal(lambda idx: logits(folder, model, idx)):
        raise UserError(
            f'{folder}: {c.model_type} lets a token see those after it; only causal models predict the next'
        )

    tok = tokenizer.load(folder, dict(model_args=dict(vocab_size=c.vocab_size), config={}))
    name = tok.name if tokenizer.has_tokenizer(folder) else f'{tok.name} (the folder has none)'
    return model, LM(
        logits=lambda idx: model(input_ids=idx, use_cache=False).logits,
        vocab_size=c.vocab_size,
        block_size=getattr(c, 'max_position_embeddings', None),
        facts=dict(
            kind=f'transformers {printable(c.model_type)}',
            weights=checkpoint.checksum(model.state_dict()),
            params=(params := without_positions(model)),
            params_collapsed=params,
            tokenizer=name,
        ),
        **interface(tok),
    )


def without_positions(model) -> int:
    """Parameters of a model of transformers as GPT.num_params counts them: without position embeddings."""
    names = ('wpe.weight', 'embed_positions.weight', 'position_embeddings.weight')
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(names))


@torch.no_grad()
def is_causal(of) -> bool:
    """Whether the logits of three tokens, of(idx), stay when a fourth changes."""
    a, b = (of(torch.tensor([[1, 2, 3, last]]))[:, :3].float() for last in (4, 5))
    return bool((a - b).abs().max() <= 1e-5 * a.abs().max())


def open_model(cfg) -> LM:
    """The LM that cfg.checkpoint names, on cfg.device in cfg.dtype, with cfg.window tokens of context (0: as many as it
    takes). Raises UserError if it is none of the three kinds."""
    path = input_path(cfg.checkpoint)
    is_hf = False
    if path.is_dir():
        with suppress(UserError):
            is_hf = 'model_type' in read_json(path / 'config.json', {str: object})
        ours = [path / f for f in ('best.pt', 'ckpt.pt') if (path / f).exists()]
        if not is_hf and not ours:
            reader.refuse_shares(path)
            raise UserError(
                f'{path} holds neither best.pt or ckpt.pt nor a Hugging Face model (a config.json with model_type)'
            )
        path = path if is_hf else ours[0]
    device = hardware.choose_device(cfg.device)
    dtype = hardware.choose_dtype(cfg.dtype, device)
    model, lm = (hf_model if is_hf else our_model)(path)
    if lm.block_size is None and not cfg.window:
        raise UserError(f'{path} does not say how long a context it takes; give --window=1024 or what fits')
    if lm.block_size and cfg.window > lm.block_size:
        raise UserError(f"window = {cfg.window}: the model's block_size is {lm.block_size}; use that or less")
    lm.window = cfg.window or lm.block_size
    if cfg.stride > lm.window:
        raise UserError(f'stride = {cfg.stride}: is above the window of {lm.window}, tokens would be left out')
    model.to(device)
    forward = lm.logits

    def computed(idx):
        with torch.inference_mode(), hardware.autocast(device, dtype):
            return forward(idx)

    lm.facts |= dict(checkpoint=str(path), block_size=lm.block_size)
    lm.facts |= dict(device=hardware.device_name(device), dtype=str(dtype).removeprefix('torch.'))
    return dataclasses.replace(lm, logits=computed, device=device)
