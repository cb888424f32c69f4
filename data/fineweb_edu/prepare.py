"""
FineWeb-Edu in GPT-2 BPE: train_*.bin, val_*.bin and meta.json, in this folder. The default sample has about 10B tokens
(20 GB on disk); the first 5,000 documents (about 5M tokens) are the validation split.
Streamed from the Hugging Face hub (pip install datasets); interrupted, it goes on behind the last whole shard.

    python data/fineweb_edu/prepare.py
    python data/fineweb_edu/prepare.py --sample=sample-100BT --max_tokens=3e10
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from configurator import key, load, run  # noqa: E402
from tokens.recipes import prepare_hub  # noqa: E402

TOKENIZER = 'gpt2'  # of the data set, for those who ask before it is prepared


@dataclass
class FineWebEduConfig:
    sample: str = key('sample-10BT', 'part of it', choices=('sample-10BT', 'sample-100BT', 'sample-350BT', 'default'))
    max_tokens: int = key(0, 'training tokens to stop at; 0: all', low=0)
    val_documents: int = key(5000, 'documents of the validation split, the first ones of the stream', low=1)
    shard_tokens: int = key(100_000_000, 'tokens of a shard: what an interruption costs at most', low=1)
    replace: bool = key(False, 'replace a data set that was prepared otherwise')


def prepare(cfg, folder):
    prepare_hub(cfg, folder, 'HuggingFaceFW/fineweb-edu', cfg.sample)


if __name__ == '__main__':
    run(lambda: prepare(load(FineWebEduConfig, sys.argv[1:]), Path(__file__).resolve().parent))
