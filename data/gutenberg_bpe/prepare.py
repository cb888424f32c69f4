"""
English prose from Project Gutenberg in a vocabulary of its own, a byte-level BPE trained on it: train_*.bin, val_*.bin,
meta.json and tokenizer.json, in this folder. For models so small that GPT-2's 50,257 tokens would be most of their FLOPs.
The books and splits are those of data/gutenberg; of its ten files of training books the first three, unless told
otherwise. <|endoftext|> stands before every book.

    NANOMORPH_DATA=/path/to/data python data/gutenberg_bpe/prepare.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import key, load, overrides, run  # noqa: E402
from tokens import download, recipes, tokenfile  # noqa: E402

TOKENIZER = 'bpe'  # of the data set, for those who ask before it is prepared


@dataclass
class GutenbergBPEConfig:
    vocab_size: int = key(4096, 'vocabulary', low=257)
    files: int = key(3, 'files of training books', low=1)
    shard_tokens: int = key(20_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')


def prepare(cfg, folder):
    files = recipes.gutenberg_files(folder)
    again = tokenfile.command(folder.name, **overrides(cfg))
    tokenfile.begin(folder, again, cfg.replace)
    files = dict(val=files['val'], train=files['train'][: cfg.files])
    texts = lambda paths: (text for p in paths for text in recipes.read_jsonl(p))
    bpe = recipes.train_bpe(folder / 'tokenizer.json', texts(files['train']), cfg.vocab_size)
    encode_batch, vocab_size = recipes.bpe_batch(bpe)
    trained, tokens = download.sha256(folder / 'tokenizer.json'), {}
    for split, paths in files.items():
        stats = [(p.name, p.stat().st_size) for p in paths]
        tokens[split] = tokenfile.write_documents(
            folder, split, recipes.from_nth(lambda paths=paths: texts(paths)), encode_batch,
            vocab_size=vocab_size, tokenizer='bpe', shard_tokens=cfg.shard_tokens,
            made_from=tokenfile.recipe(files=stats, trained=trained, shard=cfg.shard_tokens),
        )  # fmt: skip
    edition = f'Project Gutenberg, {len(files["train"])} files'
    tokenfile.finish(folder, tokens, vocab_size=vocab_size, tokenizer='bpe', edition=edition, command=again)


if __name__ == '__main__':
    run(lambda: prepare(load(GutenbergBPEConfig, sys.argv[1:]), Path(__file__).resolve().parent))
