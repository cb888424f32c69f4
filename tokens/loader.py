"""
Token files to batches.

A data set is a folder data/<name>/ with meta.json (vocab_size, tokenizer, token counts) and, of each split, either
train.bin (raw uint16 token ids, nanoGPT's format) or the shards train_000000.bin, ... of tokenfile.py, written by its
prepare.py, or for a folder of one's own text by data/text/prepare.py.

Which windows a run sees depends on the data, seed_data and one integer, the number of windows consumed: nothing else
has to be saved for an exact resume, and every arm of a comparison sees the same data in the same order.
"""

import json
import math
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from configurator import ROOT, UserError
from tokens.tokenfile import Tokens, open_shards, shard_paths


def data_dir(dataset: str) -> Path:
    return ROOT / 'data' / dataset


def is_prepared(folder: Path, split: str) -> bool:
    """nanoGPT's file, or shards with the meta.json that is written after the last of them."""
    return (folder / f'{split}.bin').exists() or ((folder / 'meta.json').exists() and bool(shard_paths(folder, split)))


def mend(dataset: str) -> str:
    """The command that prepares a data set: what its meta.json says, its own prepare.py, or that of any text."""
    folder = data_dir(dataset)
    try:
        return json.loads((folder / 'meta.json').read_text())['command']
    except (OSError, ValueError, KeyError, TypeError):
        if folder.is_relative_to(ROOT) and not (folder / 'prepare.py').exists():
            return f'python data/text/prepare.py --folder=/path/to/texts --name={dataset}'
    return f'python data/{dataset}/prepare.py'


def prepare(dataset: str):
    """Run the data set's prepare.py if its files are missing. Raises UserError if that fails or there is none."""
    folder = data_dir(dataset)
    if all(is_prepared(folder, split) for split in ('train', 'val')):
        return
    script = folder / 'prepare.py'
    if not script.exists():
        have = ', '.join(sorted(p.parent.name for p in ROOT.glob('data/*/prepare.py')))
        raise UserError(
            f"dataset = '{dataset}': neither train.bin and val.bin nor prepare.py in {folder}; there is: {have};"
            f' your own text: {mend(dataset)}'
        )
    print(f"data set '{dataset}' is not prepared yet: running {script.relative_to(ROOT)}", flush=True)
    if code := subprocess.run([sys.executable, str(script)]).returncode:
        raise UserError(
            f'preparing {dataset} failed (exit code {code}); mend the above, then: python {script.relative_to(ROOT)}'
        )


def read_meta(dataset: str) -> dict:
    """meta.json of a data set; {} for files prepared by nanoGPT with the GPT-2 encoding."""
    path = data_dir(dataset) / 'meta.json'
    if not path.exists():
        if path.with_suffix('.pkl').exists():
            raise UserError(f'{path} is missing (meta.pkl is not read: a pickle can run code); {mend(dataset)}')
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f'{path} is not JSON ({e}); {mend(dataset)}') from None


def padded_vocabulary(meta: dict) -> int:
    """The data set's vocabulary, a large one rounded up to a multiple of 64 for speed: 50257 -> 50304."""
    n = meta.get('vocab_size', 50304)
    return n if n < 1024 else math.ceil(n / 64) * 64


def open_tokens(dataset: str, split: str, block_size: int, vocab_size: int) -> Tokens:
    """The tokens of a split, memory-mapped. Raises UserError if a file is missing, truncated or foreign, the split is
    shorter than a block, or (where it is small enough to look: below 2^28 tokens) holds an id beyond the vocabulary."""
    folder, path, do = data_dir(dataset), split_path(dataset, split), mend(dataset)
    expected = read_meta(dataset).get(f'{split}_tokens')
    if path.name == f'{split}.bin':
        if not path.exists():
            raise UserError(f'{path} is missing, and so is {folder / f"{split}_000000.bin"}; {do}')
        size = path.stat().st_size
        if size % 2 or (expected is not None and size != 2 * expected):
            want = f'{2 * expected:,} bytes' if expected is not None else 'an even number'
            raise UserError(f'{path} is truncated or foreign: {size:,} bytes, not {want}; {do}')
        whole = np.memmap(path, dtype=np.uint16, mode='r') if size else np.empty(0, np.uint16)  # nothing to map
        tokens = Tokens([whole])
    else:
        if expected is None:
            raise UserError(f'{folder / "meta.json"} is missing, the preparation was interrupted; go on with: {do}')
        try:
            tokens, header = open_shards(shard_paths(folder, split), split)
        except ValueError as e:
            raise UserError(f'{e}; {do}') from None
        for key in ('vocab_size', 'tokenizer'):
            if header[key] != read_meta(dataset).get(key):
                raise UserError(
                    f'{path} is foreign: {key} is {header[key]!r} in its header, {read_meta(dataset).get(key)!r} in'
                    f' meta.json; {do}'
                )
        if len(tokens) != expected:
            raise UserError(
                f'{path} and its shards are truncated or foreign: {len(tokens):,} tokens, not {expected:,}; {do}'
            )
    if len(tokens) <= block_size:
        raise UserError(
            f'block_size = {block_size}: {path} has {len(tokens):,} tokens, needs more than block_size;'
            ' lower block_size'
        )
    if len(tokens) < 2**28:
        check_ids(tokens, vocab_size, path, do)
    return tokens


def split_path(dataset: str, split: str) -> Path:
    """The first file of a split: the one that messages name."""
    shards = shard_paths(data_dir(dataset), split)
    whole = data_dir(dataset) / f'{split}.bin'
    return shards[0] if shards and not whole.exists() else whole


def check_ids(tokens, vocab_size, path, do):
    if (top := int(tokens.max())) >= vocab_size:
        raise UserError(f'{path}: token id {top} is beyond the vocabulary (vocab_size = {vocab_size}); {do}')


class Loader:
    """Batches of a split: x and y (batch_size, block_size) int64, y the next tokens."""

    def __init__(self, dataset, split, block_size, batch_size, vocab_size, device='cpu', order='permutation', seed=0):
        self.tokens = open_tokens(dataset, split, block_size, vocab_size)
        self.path, self.dataset, self.vocab_size = split_path(dataset, split), dataset, vocab_size
        self.mend = mend(dataset)
        self.block_size, self.batch_size, self.device = block_size, batch_size, torch.device(device)
        self.order, self.seed = order, seed
        # permutation: windows side by side; what the last one leaves is the play of each epoch's random start
        self.n_windows = max(1, (len(self.tokens) - 1) // block_size - 1)
        self.slack = len(self.tokens) - 1 - self.n_windows * block_size
        self.epoch = lru_cache(2)(self.epoch)

    def epoch(self, e: int):
        """(start, permutation) of epoch e."""
        rng = np.random.default_rng([self.seed, e])
        return rng.integers(self.slack + 1), rng.permutation(self.n_windows)

    def starts(self, position: int) -> np.ndarray:
        """Where the windows position ... position + batch_size - 1 of the run begin in the token file."""
        if self.order == 'random':  # nanoGPT's: anywhere, with replacement
            rng = np.random.default_rng([self.seed, position])
            return rng.integers(len(self.tokens) - self.block_size, size=self.batch_size)
        p = np.arange(position, position + self.batch_size)
        starts = np.empty_like(p)
        for e in np.unique(p // self.n_windows):
            start, perm = self.epoch(int(e))
            here = p // self.n_windows == e
            starts[here] = start + perm[p[here] % self.n_windows] * self.block_size
        return starts

    def batch(self, position: int):
        """The training batch that begins at a position (windows consumed before it)."""
        return self.gather(self.starts(position))

    def eval_batches(self, max_windows: int, rank=0, world=1, half=None):
        """Non-overlapping windows spread evenly over the split, the same ones for every run; every world-th batch from
        the rank-th. Batches have one shape: the last is filled with targets -1, which the loss ignores.
        half: 0 or 1 for the first or the second half of these windows, which lie in different parts of the text."""
        total = max(1, (len(self.tokens) - 1) // self.block_size)
        n = min(total, max_windows) if max_windows else total
        starts = np.arange(n) * total // n * self.block_size
        if half is not None:
            starts = np.array_split(starts, 2)[half]
            n = len(starts)
        for i in range(rank * self.batch_size, n, world * self.batch_size):
            chunk = starts[i : i + self.batch_size]
            x, y = self.gather(np.pad(chunk, (0, self.batch_size - len(chunk))))
            if len(chunk) < self.batch_size:
                y = y.clone()  # x is a view of the same tokens
                y[len(chunk) :] = -1
            yield x, y, len(chunk) * self.block_size

    def gather(self, starts):
        ids = self.tokens.windows(starts, self.block_size + 1)  # (B, T + 1)
        check_ids(ids, self.vocab_size, self.path, self.mend)
        ids = torch.from_numpy(ids.astype(np.int64))
        if self.device.type == 'cuda':  # pinned memory lets the copy run beside the compute
            ids = ids.pin_memory().to(self.device, non_blocking=True)
        else:
            ids = ids.to(self.device)
        return ids[:, :-1], ids[:, 1:]
