"""
Any folder of text: train_*.bin, val_*.bin and meta.json (and tokenizer.json for a BPE) in data/<name>/.

    python data/text/prepare.py --folder=/path/to/texts --name=mine                    # GPT-2 BPE
    python data/text/prepare.py --folder=/path/to/texts --name=mine --tokenizer=char
    python data/text/prepare.py --folder=/path/to/texts --name=mine --tokenizer=bpe --vocab_size=4096
    python train.py --dataset=mine

Every file that matches the pattern, in the folder and below it, is a document (UTF-8), files in the order of their
names. As in nanoGPT the last tenth of the text is the validation split, and the line ends of other systems (\\r\\n) are
read as \\n. Files may be larger than memory.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import ROOT, UserError, input_path, key, load, overrides, run  # noqa: E402
from tokens import (
    download,  # noqa: E402
    recipes,  # noqa: E402
    tokenfile,  # noqa: E402
)
from tokens.tokenfile import More, is_plain  # noqa: E402

PIECE = 2**22  # characters of a file held at once
CUT = r'(?s).+(?=[ \n]\S)'  # up to the last place where a file may be cut into pieces
BPE_TEXT = 2**28  # characters, at most, that a BPE is trained on


@dataclass
class TextConfig:
    folder: str = key('', 'where the texts are')
    name: str = key('', "the data set's name; empty: the folder's")
    pattern: str = key('*.txt', 'which files of it')
    tokenizer: str = key('gpt2', 'what a token is', choices=('gpt2', 'char', 'bpe'))
    vocab_size: int = key(4096, 'vocabulary of a bpe, trained on these texts; gpt2 and char have theirs', low=257)
    val_fraction: float = key(0.1, 'share of the text, at its end, for validation', above=0, high=0.9)
    shard_tokens: int = key(100_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')


def pieces(path: Path):
    """The text of a file in pieces, all but the first of type More. The cuts are before a space or line end that a word
    follows, where GPT-2's splitting cuts as well, so that the tokens are those of the whole file."""
    try:
        with open(path, encoding='utf-8-sig') as f:
            kind, rest = str, ''
            while text := f.read(PIECE):
                text = rest + text
                found = re.match(CUT, text)
                cut = found.end() if found else len(text)
                yield kind(text[:cut])
                kind, rest = More, text[cut:]
            if rest:
                yield kind(rest)
    except UnicodeDecodeError as e:
        raise UserError(f'{path} is not UTF-8 ({e.reason}); convert it (iconv -t utf-8) or change --pattern') from None
    except OSError as e:
        raise UserError(f'cannot read {path} ({e.strerror}); mend its permissions or change --pattern') from None


def between(files, begin: int, end: int):
    """The pieces of all files from character begin to end of the whole."""
    position = 0
    for path in files:
        for text in pieces(path):
            here = text[max(0, begin - position) : max(0, end - position)]
            if here:
                yield type(text)(here) if position >= begin else here
            position += len(text)
            if position >= end:
                return


def prepare(cfg, data):
    if not cfg.folder:
        raise UserError('folder is missing: python data/text/prepare.py --folder=/path/to/texts --name=mine')
    source = input_path(cfg.folder).resolve()
    name = cfg.name or source.name
    folder = data / name
    if source.is_file():
        raise UserError(
            f'folder = {cfg.folder}: is a file; for this file alone: --folder={source.parent} --pattern={source.name}'
        )
    if not source.is_dir():
        raise UserError(f'folder = {cfg.folder}: no such folder; give the one that holds the texts')
    if cfg.tokenizer != 'bpe' and 'vocab_size' in overrides(cfg):
        raise UserError(
            f'vocab_size = {cfg.vocab_size}: {cfg.tokenizer} has its own vocabulary; use --tokenizer=bpe, or leave it out'
        )
    if not is_plain(name) or (folder / 'prepare.py').exists():
        raise UserError(
            f"name = '{name}': must be of letters, digits, _ and -, and not taken by a recipe of its own; choose another"
        )
    if not cfg.pattern or Path(cfg.pattern).is_absolute():
        raise UserError(f"pattern = '{cfg.pattern}': must be one of names below folder, such as *.txt")
    files = sorted(p for p in source.rglob(cfg.pattern) if p.is_file())
    if not files:
        seen = ', '.join(sorted({p.suffix or 'none' for p in source.rglob('*') if p.is_file()})) or 'none at all'
        raise UserError(
            f'pattern = {cfg.pattern}: no such file in {source}; it has files with the endings: {seen}; change --pattern'
        )

    # one look at everything: it is UTF-8, how long it is, which characters it has
    length, seen = 0, np.zeros(0x110000, bool)
    for path in files:
        for text in pieces(path):
            length += len(text)
            if cfg.tokenizer == 'char':
                seen[recipes.code_points(text)] = True
    cut = int(length * (1 - cfg.val_fraction))
    print(f'{name}: {len(files):,} file{"s" if files[1:] else ""}, {length:,} characters')
    spans = dict(val=(cut, length), train=(0, cut))

    again = tokenfile.command('text', **overrides(cfg) | dict(folder=str(source), name=name))
    tokenfile.begin(folder, again, cfg.replace)
    meta, trained = {}, ''
    if cfg.tokenizer == 'char':
        meta['itos'] = [chr(i) for i in np.flatnonzero(seen)]
        encode_batch, vocab_size = recipes.char_batch(meta['itos'])
    elif cfg.tokenizer == 'bpe':
        every = -(-cut // BPE_TEXT)  # of a long text every n-th piece
        sample = (t for i, t in enumerate(between(files, 0, cut)) if i % every == 0)
        bpe = recipes.train_bpe(folder / 'tokenizer.json', sample, cfg.vocab_size)
        trained = download.sha256(folder / 'tokenizer.json')
        encode_batch, vocab_size = recipes.bpe_batch(bpe)
        if vocab_size < cfg.vocab_size:
            print(f'NOTE: this text has pairs to merge for a vocabulary of {vocab_size} only')
    else:
        encode_batch, vocab_size = recipes.gpt2_batch()

    stats = [(str(p.relative_to(source)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    tokens = {}
    for split, (begin, end) in spans.items():
        tokens[split] = tokenfile.write_documents(
            folder, split, recipes.from_nth(lambda b=begin, e=end: between(files, b, e)), encode_batch,
            vocab_size=vocab_size, tokenizer=cfg.tokenizer, shard_tokens=cfg.shard_tokens,
            made_from=tokenfile.recipe(files=stats, span=(begin, end), trained=trained, shard=cfg.shard_tokens,
                                       itos=meta.get('itos'), cuts=CUT),
        )  # fmt: skip
    tokenfile.finish(folder, tokens, vocab_size=vocab_size, tokenizer=cfg.tokenizer, command=again, **meta)


if __name__ == '__main__':
    run(lambda: prepare(load(TextConfig, sys.argv[1:]), ROOT / 'data'))
