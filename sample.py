"""
Write text with a trained model.

    python sample.py --checkpoint=out/mine/best.pt --start="ROMEO:" --temperature=0.8
    python sample.py --out_dir=out/mine --start=FILE:prompt.txt --num_samples=3

The checkpoint may be of this repository, of nanoGPT, or a Hugging Face GPT-2. Factors are multiplied out first, where
one matrix is their product.
"""

import sys
from dataclasses import dataclass

import configurator  # noqa: F401  first: it answers Ctrl-C while torch is loaded

# isort: split
import torch

import checkpoint
import hardware
from configurator import LONGEST_JSON, UserError, input_path, key, load, printable, read_text, root_path, run
from surgery import reader
from surgery.collapse import to_run
from tokens import tokenizer


@dataclass
class SampleConfig:
    checkpoint: str = key('', 'checkpoint file; empty: best.pt or ckpt.pt of out_dir')
    out_dir: str = key('out', 'run to sample from, if checkpoint is empty')
    start: str = key('\n', 'prompt; FILE:prompt.txt reads it from a file')
    num_samples: int = key(1, 'samples to draw', low=1)
    max_new_tokens: int = key(500, 'tokens generated in each sample', low=0)
    temperature: float = key(0.8, '1.0 = no change, < 1.0 = less random, > 1.0 = more random, 0 = the likeliest', low=0)
    top_k: int = key(200, 'keep only the k likeliest tokens; 0: all', low=0)
    top_p: float = key(1.0, 'keep the likeliest tokens that make up this probability', above=0, high=1)
    seed: int = key(1337, 'seed of the draws', low=0, high=2**64 - 1)
    device: str = key('auto', 'cuda, cuda:1, cpu, mps; auto: the best there is')
    dtype: str = key('auto', 'precision of matrix products', choices=('auto', 'float32', 'bfloat16', 'float16'))
    compile: bool = key(False, 'torch.compile; pays only for long or many samples')
    batch_size: int = key(1, 'samples drawn side by side; above 1 each is printed when it is finished', low=1)


def from_checkpoint(path, device='cpu'):
    """(model, tokenizer) of a checkpoint of any kind, ready to generate. Factors are multiplied out, except those of a
    mixture (btt_moe). The tokenizer has encode (text -> ids), decode (ids -> bytes) and vocabulary (how many ids).
    UserError if there is no such checkpoint.

        model, tok = from_checkpoint('out/x/best.pt')
        new = model.generate(torch.tensor([tok.encode('ROMEO:')]), 100, vocabulary=tok.vocabulary)
        print(tok.decode([t.item() for t in new]).decode(errors='replace'))
    """
    path = input_path(str(path))
    ckpt = reader.load(path)
    model = to_run(checkpoint.build(ckpt, path))
    return model.to(device), tokenizer.load(path, ckpt)


def round_weights(model, dtype):
    """Round the weights of linear layers to dtype once, in place. autocast would do it again for every token."""
    for m in model.modules():
        if isinstance(m, torch.nn.Linear):  # the head's own copy, if it is tied to the embeddings
            m.weight = torch.nn.Parameter(m.weight.to(dtype), requires_grad=False)
            if m.bias is not None:
                m.bias = torch.nn.Parameter(m.bias.to(dtype), requires_grad=False)


def sample(cfg: SampleConfig):
    path = input_path(cfg.checkpoint) if cfg.checkpoint else root_path(cfg.out_dir) / 'best.pt'
    if not cfg.checkpoint and not path.exists():
        path = path.with_name('ckpt.pt')
    device = hardware.choose_device(cfg.device)
    model, tok = from_checkpoint(path, device)
    dtype = hardware.choose_dtype(cfg.dtype, device)
    if dtype != torch.float32:
        round_weights(model, dtype)
    if cfg.compile:
        model.compile()
    start = cfg.start
    if start.startswith('FILE:'):
        try:
            start = read_text(input_path(start[5:]), LONGEST_JSON)
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f'start: cannot read {start[5:]} ({getattr(e, "strerror", "not UTF-8")})') from None
    try:
        ids = tok.encode(start)
    except UserError as e:
        raise UserError(f'start: {e}') from None
    if not ids:
        raise UserError('start: the prompt is empty; give at least one character')
    vocabulary = tok.vocabulary if tok.vocabulary < model.config.vocab_size else None  # never draw a padded id
    show = printable if sys.stdout.isatty() else str
    limits = cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p
    with hardware.autocast(device, dtype):
        for i in range(0, cfg.num_samples, cfg.batch_size):
            B = min(cfg.batch_size, cfg.num_samples - i)
            generator = torch.Generator(device).manual_seed((cfg.seed + i) % 2**64)
            new = model.generate(torch.tensor([ids] * B, device=device), *limits, generator, vocabulary)
            rows = [(t.item() for t in new)]
            if B > 1:
                tokens = [t.flatten().tolist() for t in new]
                rows = [[t[b] for t in tokens] for b in range(B)]
            for row in rows:
                print(show(start), end='', flush=True)
                for text in tokenizer.stream(tok, ids, iter(row)):
                    print(show(text), end='', flush=True)
                print('\n---------------')


if __name__ == '__main__':
    run(lambda: sample(load(SampleConfig, sys.argv[1:])))
