"""
WikiText-103 (the edition with <unk>) in GPT-2 BPE: train_*.bin, val_*.bin, test_*.bin and meta.json, in this folder.
28,475 training articles (103M words), 60 validation and 60 test articles. <|endoftext|> stands before every article.

Streamed from the Hugging Face hub (pip install datasets). Validation and test split come from
wikitext103/wiki.{valid,test}.tokens in the folder named by the environment variable NANOMORPH_DATA, if they are there.

    python data/wikitext103/prepare.py
    python data/wikitext103/prepare.py --train=false   # only what is needed to evaluate
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import UserError, key, load, open_file, overrides, run  # noqa: E402
from tokens.download import given  # noqa: E402
from tokens.recipes import from_nth, gpt2_batch, hub_texts  # noqa: E402
from tokens.tokenfile import begin, command, finish, recipe, write_documents  # noqa: E402

TOKENIZER = 'gpt2'  # of the data set, for those who ask before it is prepared


@dataclass
class WikiTextConfig:
    train: bool = key(True, 'false: validation and test split alone')
    max_tokens: int = key(0, 'training tokens to stop at; 0: all', low=0)
    shard_tokens: int = key(100_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')


def articles(lines):
    """The lines put together to articles. An article begins with a line ' = Title = ' between empty lines; sections
    have more equals signs, and a formula in the text has no empty line before it."""
    article, empty_before = [], True
    held = None  # a line that is a title if the next one is empty
    for line in lines:
        empty = not line.strip()
        line = ' \n' if empty else line  # the hub's empty rows are such lines
        if held is not None:
            if empty and ''.join(article).strip():
                yield ''.join(article)
                article = []
            article.append(held)
            held = None
        title = line.startswith(' = ') and line.endswith(' = \n') and not line.startswith(' = = ')
        if title and empty_before:
            held = line
        else:
            article.append(line)
        empty_before = empty
    article.append(held or '')
    if ''.join(article).strip():
        yield ''.join(article)


def lines(split, again):
    """The lines of a split, from NANOMORPH_DATA or the hub."""
    name = dict(train='train', val='validation', test='test')[split]
    file = given(f'wikitext103/wiki.{name[:5]}.tokens')
    if file and file.exists():
        try:
            with io.TextIOWrapper(open_file(file), 'utf-8', newline='\n') as f:  # other line breaks belong to the text
                yield from f
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f'{file} cannot be read ({getattr(e, "strerror", None) or "not UTF-8"}); restore it from a copy'
            ) from None
    else:
        yield from hub_texts(again, 'Salesforce/wikitext', 'wikitext-103-v1', name)


def prepare(cfg, folder):
    again = command('wikitext103', **overrides(cfg))
    begin(folder, again, cfg.replace)
    encode_batch, vocab_size = gpt2_batch()
    tokens = {}
    for split in ('val', 'test', 'train') if cfg.train else ('val', 'test'):
        limit = cfg.max_tokens if split == 'train' else 0
        tokens[split] = write_documents(
            folder, split, from_nth(lambda split=split: articles(lines(split, again))), encode_batch, vocab_size=vocab_size,
            tokenizer='gpt2', made_from=recipe(set='wikitext-103-v1', shard=cfg.shard_tokens),
            shard_tokens=cfg.shard_tokens, max_tokens=limit,
        )  # fmt: skip
    finish(folder, tokens, vocab_size=vocab_size, tokenizer='gpt2', edition='wikitext-103-v1', command=again)


if __name__ == '__main__':
    run(lambda: prepare(load(WikiTextConfig, sys.argv[1:]), Path(__file__).resolve().parent))
