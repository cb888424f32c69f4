"""
Token files to batches.

A data set is a folder data/<name>/ with meta.json and, of each split, either train.bin (raw token ids, nanoGPT's format)
or the shards train_000000.bin, ... of tokenfile.py, written by its prepare.py, or for a folder of one's own text by
data/text/prepare.py. meta.json has
    vocab_size, tokenizer (gpt2, char or bpe), itos (char: the characters in the order of their ids)
    train_tokens, val_tokens; of raw files also dtype (uint16 or uint32), train_crc32, val_crc32
    command (what prepared it), edition

Which windows a run sees depends on the data, seed_data and one integer, the number of windows consumed: nothing else
has to be saved for an exact resume, and every arm of a comparison sees the same data in the same order.
"""

import json
import math
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from configurator import LONGEST_JSON, ROOT, UserError, checked, printable, read_text
from files import in_turn
from tokens.tokenfile import LOOKED_THROUGH, Tokens, is_plain, open_shards, read_command, shard_paths, verify

TOKENIZERS = ('gpt2', 'char', 'bpe')


def data_dir(dataset: str) -> Path:
    return checked(ROOT / 'data' / dataset)


def is_prepared(folder: Path, split: str) -> bool:
    """nanoGPT's file, or shards with the meta.json that is written after the last of them."""
    return (folder / f'{split}.bin').exists() or ((folder / 'meta.json').exists() and bool(shard_paths(folder, split)))


def mend(dataset: str) -> str:
    """The command that prepares a data set: the one on record, its own prepare.py, or that of any text."""
    folder = data_dir(dataset)
    if there := read_command(folder):
        return printable(there)
    if not (folder / 'prepare.py').exists():
        return f'python data/text/prepare.py --folder=/path/to/texts --name={folder.name}'
    return f'python {short(folder / "prepare.py")}'


def short(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def prepare(dataset: str, may_run: bool = True):
    """Run the data set's prepare.py if its files are missing. Raises UserError if that fails or there is none.
    may_run: false where a file named the data set and not the user: then say the command instead."""
    folder = data_dir(dataset)
    if all(is_prepared(folder, split) for split in ('train', 'val')):
        return
    script = folder / 'prepare.py'
    shards = any(shard_paths(folder, s) for s in ('train', 'val'))
    begun = (folder / 'unfinished.json').exists() or shards and not (folder / 'meta.json').exists()
    own_flags = shlex.split(read_command(folder))[2:]  # which are not ours to choose
    if begun and (own_flags or not script.exists()):
        raise UserError(f"dataset = '{dataset}': its preparation was interrupted; go on with: {mend(dataset)}")
    if not script.exists():
        have = ', '.join(sorted(p.parent.name for p in ROOT.glob('data/*/prepare.py')))
        raise UserError(
            f"dataset = '{dataset}': neither train.bin and val.bin nor prepare.py in {folder}; there is: {have};"
            f' your own text: {mend(dataset)}'
        )
    if not may_run:
        raise UserError(f"data set '{dataset}' is not prepared; run: python {short(script)}")
    with in_turn(folder):  # of runs that start together the first prepares it, and the others wait
        if all(is_prepared(folder, split) for split in ('train', 'val')):
            return
        print(f"data set '{dataset}' is not prepared yet: running {short(script)}", flush=True)
        if code := subprocess.run([sys.executable, str(script)]).returncode:
            how = f'was killed by signal {-code}' if code < 0 else f'failed (exit code {code})'
            raise UserError(f'preparing {dataset} {how}; mend the above, then: python {short(script)}')


def named_by(ckpt: dict, path) -> str:
    """The data set that a checkpoint names. Raises UserError if it names none, or by anything but a plain name."""
    dataset = ckpt['config'].get('dataset') or ''
    if not dataset:
        raise UserError(f'{path} does not name its data set; add --dataset=shakespeare_char or what it is')
    if not is_plain(dataset):
        raise UserError(
            f'{path} names its data set {str(dataset)[:100]!r}, which is no plain name under data/; if you trust it, add'
            ' --dataset yourself'
        )
    return dataset


def recipe_tokenizer(dataset: str) -> str:
    """The kind of tokens a data set has or will have: by its meta.json, else as its prepare.py declares; '' unknown."""
    folder = data_dir(dataset)
    if (folder / 'meta.json').exists():
        return read_meta(dataset).get('tokenizer', 'gpt2')
    with suppress(OSError, UnicodeDecodeError):
        if found := re.search(r"^TOKENIZER = '(\w+)'", (folder / 'prepare.py').read_text(encoding='utf-8'), re.M):
            return found[1]
    return ''


def read_meta(dataset: str) -> dict:
    """meta.json of a data set; {} for files prepared by nanoGPT with the GPT-2 encoding."""
    path = data_dir(dataset) / 'meta.json'
    if not path.exists():
        if path.with_suffix('.pkl').exists():
            raise UserError(
                f'{path} is missing (meta.pkl is not read: a pickle can run code); {from_pickle(path.with_suffix(".pkl"), path)}'
            )
        return {}
    try:
        return read_meta_file(path)
    except ValueError as e:
        raise UserError(f'{path} {e}; {mend(dataset)}') from None


def from_pickle(pickle: Path, json: Path) -> str:
    """The command that turns nanoGPT's meta.pkl, which one trusts, into the meta.json that is read here."""
    code = f"import json, pickle; json.dump(pickle.load(open('{pickle}', 'rb')), open('{json}', 'w'))"
    return f'if you trust meta.pkl: python -c "{code}"'


def read_meta_file(path: Path) -> dict:
    """A meta.json, ours or nanoGPT's meta.pkl as JSON. Raises ValueError, in words, for what cannot be a vocabulary."""
    try:
        meta = json.loads(read_text(path, LONGEST_JSON))
    except (ValueError, RecursionError) as e:
        raise ValueError(f'is not JSON ({e})') from None
    except OSError as e:
        raise ValueError(f'cannot be read ({e.strerror})') from None
    if not isinstance(meta, dict):
        raise ValueError('is damaged: it is no dict')
    if isinstance(meta.get('itos'), dict) and meta.keys() <= {'vocab_size', 'itos', 'stoi'}:  # nanoGPT's, ids as text
        itos = meta['itos']
        meta = dict(tokenizer='char', itos=[itos.get(str(i)) for i in range(len(itos))], vocab_size=len(itos))
    n = meta.get('vocab_size', 1)
    if type(n) is not int or not 0 < n <= 2**32:
        raise ValueError('is damaged: vocab_size is no positive number')
    if 'itos' in meta:
        meta.setdefault('tokenizer', 'char')
    if meta.get('tokenizer', 'gpt2') not in TOKENIZERS:
        raise ValueError(
            f'is damaged: tokenizer = {str(meta["tokenizer"])[:100]!r} must be one of {", ".join(TOKENIZERS)}'
        )
    if meta.get('tokenizer') == 'char':
        check_characters(meta.get('itos'), meta.get('vocab_size'))
        meta.setdefault('vocab_size', len(meta['itos']))
    for key in [k for k in meta if k.endswith(('_tokens', '_crc32'))]:
        if type(meta[key]) is not int or meta[key] < 0:
            raise ValueError(f'is damaged: {key} is no number')
    if meta.get('dtype', 'uint16') not in ('uint16', 'uint32'):
        raise ValueError('is damaged: dtype must be uint16 or uint32')
    return meta | {k: printable(meta[k]) for k in ('command', 'edition') if k in meta}


def check_characters(itos, vocab_size: int | None):
    """Raises ValueError unless itos is what a character vocabulary has to be: characters, each of them once."""
    if not isinstance(itos, list) or not itos or not all(isinstance(ch, str) and len(ch) == 1 for ch in itos):
        raise ValueError('is damaged: itos is no list of characters')
    if len(set(itos)) != len(itos):
        raise ValueError('is damaged: itos has a character twice')
    if vocab_size is not None and len(itos) != vocab_size:
        raise ValueError(f'is damaged: itos has {len(itos)} characters, vocab_size is {vocab_size}')


def padded_vocabulary(meta: dict) -> int:
    """The data set's vocabulary, a large one rounded up to a multiple of 64 for speed: 50257 -> 50304."""
    n = meta.get('vocab_size', 50304)
    return n if n < 1024 else math.ceil(n / 64) * 64


def open_tokens(dataset: str, split: str, block_size: int, vocab_size: int) -> Tokens:
    """The tokens of a split, memory-mapped. Raises UserError if a file is missing, truncated or foreign, the split is
    shorter than a block, or (where it is small enough to look: below 2^28 tokens) holds an id beyond the vocabulary."""
    folder, path, do = data_dir(dataset), split_path(dataset, split), mend(dataset)
    meta = read_meta(dataset)
    expected = meta.get(f'{split}_tokens')
    if path.name == f'{split}.bin':
        if not path.exists():
            raise UserError(f'{path} is missing, and so is {folder / f"{split}_000000.bin"}; {do}')
        try:
            tokens = Tokens([open_raw(path, expected, meta)])
            if len(tokens) < LOOKED_THROUGH:
                verify(path, tokens.parts[0], meta.get(f'{split}_crc32'))
        except ValueError as e:
            raise UserError(f'{e}; {do}') from None
    else:
        if expected is None:
            raise UserError(f'{folder / "meta.json"} is missing, the preparation was interrupted; go on with: {do}')
        try:
            tokens, header = open_shards(shard_paths(folder, split), split)
        except ValueError as e:
            raise UserError(f'{e}; {do}') from None
        for key in ('vocab_size', 'tokenizer'):
            if header[key] != meta.get(key):
                raise UserError(
                    f'{path} is foreign: {key} is {header[key]!r} in its header, {meta.get(key)!r} in meta.json; {do}'
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
    if len(tokens) < LOOKED_THROUGH:
        check_ids(tokens, vocab_size, path, remedy(dataset, vocab_size))
    return tokens


def open_raw(path: Path, expected: int | None, meta: dict) -> np.ndarray:
    """nanoGPT's file: ids and nothing else, memory-mapped. Raises ValueError, in words, if they cannot be what they should."""
    if not path.is_file():
        raise ValueError(f'{path} is no file')
    size, dtype = path.stat().st_size, meta.get('dtype', '')
    if not dtype:  # a file of another program
        wide = expected and size == 4 * expected or meta.get('vocab_size', 0) > 2**16
        dtype = 'uint32' if wide else 'uint16'
    width = np.dtype(dtype).itemsize
    if size % width or (expected is not None and size != width * expected):
        want = f'{width * expected:,} bytes' if expected is not None else f'a multiple of {width}'
        raise ValueError(f'{path} is truncated or foreign: {size:,} bytes, not {want}')
    if not size:
        return np.empty(0, np.uint16)  # nothing to map
    ids = np.memmap(path, dtype=np.dtype(dtype).newbyteorder('<'), mode='r')
    head = ids[: 2**20]
    # every second number is small: the high half of a larger one
    if dtype == 'uint16' and len(head) > 64 and head[1::2].max() < 8 <= head[::2].max():
        raise ValueError(
            f'{path} has ids of 32 bits (every second of 16 is {head[1]}); write {{"vocab_size": 50257, "dtype": "uint32"}},'
            f' or what it is, into {path.with_name("meta.json")}'
        )
    return ids


def split_path(dataset: str, split: str) -> Path:
    """The first file of a split: the one that messages name."""
    shards = shard_paths(data_dir(dataset), split)
    whole = data_dir(dataset) / f'{split}.bin'
    return shards[0] if shards and not whole.exists() else whole


def remedy(dataset: str, vocab_size: int) -> str:
    """What to do about an id beyond a model's vocabulary: the model is too small, or the file is broken."""
    n = read_meta(dataset).get('vocab_size', 0)
    if n > vocab_size:
        return f'the data set {dataset} has {n:,} tokens: leave vocab_size out, or take data in the tokens of the model'
    return mend(dataset)


def check_ids(tokens, vocab_size, path, do):
    if (top := int(tokens.max())) >= vocab_size:
        raise UserError(f'{path}: token id {top} is beyond the vocabulary (vocab_size = {vocab_size}); {do}')


def checksums(tokens: dict) -> dict:
    """{split: [number of tokens, their checksum]} of {split: Tokens}, which tells a data set from one that was prepared otherwise."""
    return {split: [len(t), t.checksum()] for split, t in tokens.items()}


class Loader:
    """Batches of a split: x and y (batch_size, block_size) int64, y the next tokens."""

    def __init__(self, dataset, split, block_size, batch_size, vocab_size, device='cpu', order='permutation', seed=0):
        self.tokens = open_tokens(dataset, split, block_size, vocab_size)
        self.path, self.dataset, self.vocab_size = split_path(dataset, split), dataset, vocab_size
        self.mend = remedy(dataset, vocab_size)
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
        the rank-th. Batches have one shape: the last is filled with targets -1, which the loss ignores. All ranks get equally
        many, since processes may compute each one together: where a rank has none left, it is one of 0 tokens.
        half: 0 or 1 for the first or the second half of these windows, which lie in different parts of the text."""
        total = max(1, (len(self.tokens) - 1) // self.block_size)
        n = min(total, max_windows) if max_windows else total
        starts = np.arange(n) * total // n * self.block_size
        if half is not None:
            starts = np.array_split(starts, 2)[half]
            n = len(starts)
        for i in range(0, n, world * self.batch_size):
            chunk = starts[i + rank * self.batch_size :][: self.batch_size]
            x, y = self.gather(np.pad(chunk, (0, self.batch_size - len(chunk))))
            if len(chunk) < self.batch_size:
                part = y[: len(chunk)]  # x is a view of the same tokens, and a y laid out otherwise is compiled anew
                y = y.new_full((self.batch_size, self.block_size + 1), -1)[:, 1:]
                y[: len(chunk)] = part
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
