"""
A causal language model with its tokenizer, whoever trained it: a checkpoint of ours or nanoGPT's, or a folder of
Hugging Face's transformers, behind one interface. evaluate.py scores texts with it.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import checkpoint
import hardware
from configurator import UserError, input_path
from surgery import reader
from surgery.collapse import collapse_model
from surgery.huggingface import pretrained
from tokens.download import gpt2_encoding
from tokens.tokenizer import tokenizer, transformers

END_OF_TEXT = '<|endoftext|>'


@dataclass
class LM:
    """A causal language model with its tokenizer."""

    logits: Callable  # idx (B, T) token ids on the device -> (B, T, V)
    vocab_size: int
    block_size: int | None  # None: the model knows no limit
    encode: Callable  # text -> token ids
    decode: Callable  # token ids -> bytes
    vocabulary: int  # ids the tokenizer uses
    first: list  # what is put before a running text: the id of <|endoftext|>, or nothing
    prefix: list = field(default_factory=list)  # what the tokenizer wants before every text, GPT-2's nothing
    dataset: str = ''  # what a checkpoint of ours was trained on
    facts: dict = field(default_factory=dict)  # for the report
    device: torch.device = torch.device('cpu')
    window: int = 0  # the longest context to use


def our_model(path: Path) -> tuple[torch.nn.Module, LM]:
    """A checkpoint file of this repository or of nanoGPT."""
    ckpt = reader.load(path)
    model = checkpoint.build(ckpt, path)
    if model.config.linear != 'dense':
        model = collapse_model(model)
    encode, decode, vocabulary = tokenizer(path, ckpt)
    try:
        first = encode(END_OF_TEXT)
    except UserError:  # a character model
        first = []
    return model, LM(
        logits=lambda idx: model(idx, last_only=False)[0],
        vocab_size=model.config.vocab_size,
        block_size=model.config.block_size,
        encode=encode,
        decode=decode,
        vocabulary=vocabulary,
        first=first if len(first) == 1 else [],
        dataset=ckpt['config'].get('dataset', ''),
        facts=dict(
            kind='nanoMorph' if 'format' in ckpt else 'nanoGPT',
            iter_num=ckpt['iter_num'],
            tokenizer='GPT-2' if len(first) == 1 else f'{vocabulary} characters',
        ),
    )


def hf_model(folder: Path) -> tuple[torch.nn.Module, LM]:
    """A causal language model in a local folder of transformers; without tokenizer files GPT-2's encoding is taken.
    Raises UserError if it does not load whole or is not causal."""
    hf, model = transformers(), pretrained(folder, 'AutoModelForCausalLM')
    c = model.config.get_text_config()
    if not is_causal(lambda idx: model(input_ids=idx, use_cache=False).logits):
        raise UserError(
            f'{folder}: {c.model_type} lets a token see those after it; only causal models predict the next'
        )

    files = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'vocab.json', 'vocab.txt')
    if any((folder / f).exists() for f in files):
        try:
            tok = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as e:
            raise UserError(f'{folder}: the tokenizer does not load ({str(e).strip().splitlines()[0]})') from None
        plain, whole = (tok('a', add_special_tokens=s)['input_ids'] for s in (False, True))
        start = tok.bos_token_id if tok.bos_token_id is not None else tok.eos_token_id
        own = dict(
            encode=lambda text: tok(text, add_special_tokens=False, verbose=False)['input_ids'],
            decode=lambda ids: tok.decode(ids, clean_up_tokenization_spaces=False).encode(),
            vocabulary=len(tok),
            first=[] if start is None else [start],
            prefix=whole[: whole.index(plain[0])] if plain and plain[0] in whole else [],
        )
        name = type(tok).__name__
    else:
        enc = gpt2_encoding()
        own = dict(
            encode=lambda text: enc.encode(text, allowed_special={END_OF_TEXT}),
            decode=enc.decode_bytes,
            vocabulary=enc.n_vocab,
            first=[enc.eot_token],
        )
        name = 'GPT-2 (the folder has none)'
    return model, LM(
        logits=lambda idx: model(input_ids=idx, use_cache=False).logits,
        vocab_size=c.vocab_size,
        block_size=getattr(c, 'max_position_embeddings', None),
        facts=dict(kind=f'transformers {c.model_type}', tokenizer=name),
        **own,
    )


@torch.no_grad()
def is_causal(logits) -> bool:
    """Whether the logits of three tokens stay when a fourth changes."""
    a, b = (logits(torch.tensor([[1, 2, 3, last]]))[:, :3].float() for last in (4, 5))
    return bool((a - b).abs().max() <= 1e-5 * a.abs().max())


def open_model(cfg) -> LM:
    """What cfg.checkpoint names, on cfg.device in cfg.dtype, with cfg.window tokens of context (0: what it takes). Raises UserError if it is neither of the three kinds."""
    path = input_path(cfg.checkpoint)
    is_hf = False
    if path.is_dir():
        try:
            is_hf = 'model_type' in json.loads((path / 'config.json').read_text())
        except (OSError, ValueError):
            pass
        ours = [path / f for f in ('best.pt', 'ckpt.pt') if (path / f).exists()]
        if not is_hf and not ours:
            raise UserError(
                f'{path} holds neither best.pt or ckpt.pt nor a Hugging Face model (a config.json with model_type)'
            )
        path = path if is_hf else ours[0]
    device = hardware.choose_device(cfg.device)
    dtype = hardware.choose_dtype(cfg.dtype, device)
    model, lm = (hf_model if is_hf else our_model)(path)
    if lm.vocabulary > lm.vocab_size and not is_hf:  # transformers' models may have fewer ids than added tokens
        raise UserError(
            f'{path}: the model has {lm.vocab_size} tokens, its tokenizer {lm.vocabulary}; '
            'put the meta.json of its data set beside the checkpoint'
        )
    if lm.block_size is None and not cfg.window:
        raise UserError(f'{path} does not say how long a context it takes; give --window=1024 or what fits')
    if lm.block_size and cfg.window > lm.block_size:
        raise UserError(f"window = {cfg.window}: the model's block_size is {lm.block_size}; use that or less")
    lm.window = cfg.window or lm.block_size
    if cfg.stride > lm.window:
        raise UserError(f'stride = {cfg.stride}: is above the window of {lm.window}, tokens would be left out')
    model.to(device)
    forward = lm.logits

    def logits(idx):
        with torch.inference_mode(), hardware.autocast(device, dtype):
            return forward(idx)

    parameters = sum({id(p): p.numel() for p in model.parameters()}.values())
    lm.facts |= dict(checkpoint=str(path), parameters=parameters, block_size=lm.block_size)
    lm.facts |= dict(device=hardware.device_name(device), dtype=str(dtype).removeprefix('torch.'))
    return dataclasses.replace(lm, logits=logits, device=device)
