"""
English prose from Project Gutenberg in GPT-2 BPE: train_*.bin, val_*.bin, test_*.bin and meta.json, in this folder.
137M training tokens (1,494 books), 1.29M validation (16 books) and 1.23M test tokens (10 books), held out by book;
275 MB on disk, about half a minute on two cores. <|endoftext|> stands before every book.

It reads gutenberg/{train_*,val,test}.jsonl.bz2 (a book a line: ebook, author, title, text) in the folder named by the
environment variable NANOMORPH_DATA; without it, in this folder.

    NANOMORPH_DATA=/path/to/data python data/gutenberg/prepare.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import key, load, overrides, run  # noqa: E402
from tokens.download import gpt2_encoding  # noqa: E402
from tokens.recipes import from_nth, gpt2_files, gutenberg_files  # noqa: E402
from tokens.tokenfile import begin, command, finish, recipe, write_documents  # noqa: E402

TOKENIZER = 'gpt2'  # of the data set, for those who ask before it is prepared


@dataclass
class GutenbergConfig:
    shard_tokens: int = key(20_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')
    max_tokens: int = key(0, 'training tokens to stop at; 0: all', low=0)


def prepare(cfg, folder):
    files = gutenberg_files(folder)
    again = command('gutenberg', **overrides(cfg))
    begin(folder, again, cfg.replace)
    vocab_size = gpt2_encoding().n_vocab  # fetches its files before several processes want them
    tokens = {}
    for split, paths in files.items():
        limit = cfg.max_tokens if split == 'train' else 0
        made_from = recipe(files=[(p.name, p.stat().st_size) for p in paths], shard=cfg.shard_tokens)
        documents = from_nth(lambda paths=paths: gpt2_files(paths))
        tokens[split] = write_documents(
            folder, split, documents, np.concatenate, vocab_size=vocab_size, tokenizer='gpt2',
            made_from=made_from, shard_tokens=cfg.shard_tokens, max_tokens=limit,
        )  # fmt: skip
    finish(folder, tokens, vocab_size=vocab_size, tokenizer='gpt2', edition='Project Gutenberg', command=again)


if __name__ == '__main__':
    run(lambda: prepare(load(GutenbergConfig, sys.argv[1:]), Path(__file__).resolve().parent))
