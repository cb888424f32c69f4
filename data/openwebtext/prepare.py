"""
OpenWebText in GPT-2 BPE: train_*.bin, val_*.bin and meta.json, in this folder. 8,013,769 documents, about 9.04B tokens,
18 GB on disk; nanoGPT's split is a random one, here the first documents are the validation split (about 4.4M tokens).
Streamed from the Hugging Face hub (pip install datasets); interrupted, it goes on behind the last whole shard.

    python data/openwebtext/prepare.py
    python data/openwebtext/prepare.py --max_tokens=1e9
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import key, load, run  # noqa: E402
from tokens.recipes import prepare_hub  # noqa: E402

TOKENIZER = 'gpt2'  # of the data set, for those who ask before it is prepared


@dataclass
class OpenWebTextConfig:
    max_tokens: int = key(0, 'training tokens to stop at; 0: all', low=0)
    val_documents: int = key(4007, 'documents of the validation split, the first ones of the stream', low=1)
    shard_tokens: int = key(100_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')


def prepare(cfg, folder):
    prepare_hub(cfg, folder, 'Skylion007/openwebtext', None)


if __name__ == '__main__':
    run(lambda: prepare(load(OpenWebTextConfig, sys.argv[1:]), Path(__file__).resolve().parent))
