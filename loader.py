"""
Token files to batches.

A data set is a folder data/<name>/ with train.bin and val.bin (raw uint16 token ids, nanoGPT's format) and meta.json
(vocab_size, tokenizer, token counts), written by its prepare.py.

Which windows a run sees depends on the data, seed_data and one integer, the number of windows consumed: nothing else
has to be saved for an exact resume, and every arm of a comparison sees the same data in the same order.
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from configurator import ROOT, UserError


def data_dir(dataset: str) -> Path:
    return ROOT / 'data' / dataset


def prepare(dataset: str):
    """Run the data set's prepare.py if its files are missing. Raises UserError if that fails or there is none."""
    folder = data_dir(dataset)
    if all((folder / f).exists() for f in ('train.bin', 'val.bin')):
        return
    script = folder / 'prepare.py'
    if not script.exists():
        have = ', '.join(sorted(p.parent.name for p in ROOT.glob('data/*/prepare.py')))
        raise UserError(
            f"dataset = '{dataset}': neither train.bin and val.bin nor prepare.py in {folder}; there is: {have}"
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
            raise UserError(
                f'{path} is missing (meta.pkl is not read: a pickle can run code); python data/{dataset}/prepare.py'
            )
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as e:
        raise UserError(f'{path} is not JSON ({e}); python data/{dataset}/prepare.py') from None


def open_tokens(dataset: str, split: str, block_size: int, vocab_size: int) -> np.memmap:
    """The tokens of a split, memory-mapped. Raises UserError if the file is missing, truncated, shorter than a block,
    or (where it is small enough to look: below 2^28 tokens) holds an id beyond the vocabulary."""
    path, mend = data_dir(dataset) / f'{split}.bin', f'python data/{dataset}/prepare.py'
    if not path.exists():
        raise UserError(f'{path} is missing; {mend}')
    expected = read_meta(dataset).get(f'{split}_tokens')
    if path.stat().st_size % 2 or (expected is not None and path.stat().st_size != 2 * expected):
        want = f'{2 * expected:,} bytes' if expected is not None else 'an even number'
        raise UserError(f'{path} is truncated or foreign: {path.stat().st_size:,} bytes, not {want}; {mend}')
    if path.stat().st_size // 2 <= block_size:
        n = path.stat().st_size // 2
        raise UserError(
            f'block_size = {block_size}: {path} has {n:,} tokens, needs more than block_size; lower block_size'
        )
    tokens = np.memmap(path, dtype=np.uint16, mode='r')
    if len(tokens) < 2**28:
        check_ids(tokens, vocab_size, path, mend)
    return tokens


def check_ids(tokens, vocab_size, path, mend):
    if (top := int(tokens.max())) >= vocab_size:
        raise UserError(f'{path}: token id {top} is beyond the vocabulary (vocab_size = {vocab_size}); {mend}')


class Loader:
    """Batches of a split: x and y (batch_size, block_size) int64, y the next tokens."""

    def __init__(self, dataset, split, block_size, batch_size, vocab_size, device='cpu', order='permutation', seed=0):
        self.tokens = open_tokens(dataset, split, block_size, vocab_size)
        self.path, self.dataset, self.vocab_size = data_dir(dataset) / f'{split}.bin', dataset, vocab_size
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

    def eval_batches(self, max_windows: int, rank=0, world=1):
        """Non-overlapping windows spread evenly over the split, the same ones for every run; every world-th batch from
        the rank-th. Batches have one shape: the last is filled with targets -1, which the loss ignores."""
        total = max(1, (len(self.tokens) - 1) // self.block_size)
        n = min(total, max_windows) if max_windows else total
        starts = np.arange(n) * total // n * self.block_size
        for i in range(rank * self.batch_size, n, world * self.batch_size):
            chunk = starts[i : i + self.batch_size]
            x, y = self.gather(np.pad(chunk, (0, self.batch_size - len(chunk))))
            if len(chunk) < self.batch_size:
                y = y.clone()  # x is a view of the same tokens
                y[len(chunk) :] = -1
            yield x, y, len(chunk) * self.block_size

    def gather(self, starts):
        ids = self.tokens[starts[:, None] + np.arange(self.block_size + 1)]  # (B, T + 1)
        check_ids(ids, self.vocab_size, self.path, f'python data/{self.dataset}/prepare.py')
        ids = torch.from_numpy(ids.astype(np.int64))
        if self.device.type == 'cuda':  # pinned memory lets the copy run beside the compute
            ids = ids.pin_memory().to(self.device, non_blocking=True)
        else:
            ids = ids.to(self.device)
        return ids[:, :-1], ids[:, 1:]
