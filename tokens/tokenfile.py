"""
Token files: shards with a header, who writes them and who reads them.

A split of a data set is data/<name>/<split>_000000.bin, _000001.bin, ... Each begins with HEADER bytes: the magic, then
one line of JSON padded with spaces (head -1 shows it):
    version, dtype ('uint16' or 'uint32', little-endian), vocab_size, tokenizer ('gpt2', 'char' or 'bpe'),
    tokens in this shard, documents up to its end, last (whether the split ends here), limit (the max_tokens that made
    it end, 0: none), recipe (what it was made from), crc32 (of the ids; version 1 had none)
and then come the ids. A shard ends where a document does, at the first such place after shard_tokens.

unfinished.json, which holds the command, is there from the start of a preparation to its end; meta.json is written when
all shards are there. An interrupted preparation goes on behind its last whole shard.
"""

import hashlib
import json
import os
import re
import shlex
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from configurator import LONGEST_JSON, UserError, open_file, read_text
from files import write, writing

MAGIC = b'nanoMorph tokens '
HEADER = 1024  # bytes
VERSION = 2
EOT = '<|endoftext|>'  # stands before every document, except where tokens are characters
FIELDS = dict(dtype=str, vocab_size=int, tokenizer=str, tokens=int, documents=int, last=bool, limit=int, recipe=str)
LOOKED_THROUGH = 2**28  # tokens; a smaller split is looked through each time it is opened
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class More(str):
    """Text that goes on with the document before it: no separator stands between them."""


# -----------------------------------------------------------------------------
# one shard


def shard_dtype(vocab_size: int) -> str:
    return 'uint16' if vocab_size <= 2**16 else 'uint32'


def pack_header(**fields) -> bytes:
    line = MAGIC + json.dumps(dict(version=VERSION) | fields).encode()
    assert len(line) < HEADER
    return line.ljust(HEADER - 1) + b'\n'


def read_header(path: Path) -> dict:
    """The header of a shard. Raises ValueError, in words, for a file that is foreign, truncated or of a later version."""
    try:
        with open_file(path) as f:
            head = f.read(HEADER)
    except OSError as e:
        raise ValueError(f'unreadable: {e.strerror}') from None
    if not head.startswith(MAGIC):
        raise ValueError('foreign: it does not begin as a nanoMorph token file')
    try:
        header = json.loads(head[len(MAGIC) :])
        version = header['version']
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('foreign or truncated: its header cannot be read') from None
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f'of format version {version}, this code reads up to {VERSION}')
    kinds = FIELDS | (dict(crc32=int) if version > 1 else {})
    wrong = [k for k, kind in kinds.items() if type(header.get(k)) is not kind or kind is int and header[k] < 0]
    if wrong or header['dtype'] not in ('uint16', 'uint32'):
        raise ValueError(f'damaged: its header has no good {(wrong or ["dtype"])[0]}')
    want = HEADER + header['tokens'] * np.dtype(header['dtype']).itemsize
    if (size := path.stat().st_size) != want:
        raise ValueError(f'truncated: {size:,} bytes, its header says {want:,}')
    return header


def shard_paths(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f'{split}_[0-9][0-9][0-9][0-9][0-9][0-9].bin'))


# -----------------------------------------------------------------------------
# documents to shards


def ahead(function, items, depth: int, workers: int = CORES, pool=ThreadPoolExecutor):
    """map(function, items) on a pool, results in order, at most depth of them under way or waiting. Threads are the
    default: bz2 and both tokenizers compute without Python's lock."""
    waiting = deque()
    with pool(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(documents, characters: int = 2**18):
    """Lists of documents of at least that many characters together: small ones share the price of a call."""
    batch, size = [], 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def recipe(**settings) -> str:
    """A name for what a split is made from. Shards of another recipe are not continued but replaced."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def command(name: str, /, **flags) -> str:
    """What to type to prepare a data set like this again, or to go on."""
    return shlex.join(['python', f'data/{name}/prepare.py', *(f'--{k}={v}' for k, v in flags.items())])


def is_plain(name) -> bool:
    """Whether a name out of a file may be that of a folder under data/: it cannot point to another place."""
    return isinstance(name, str) and bool(re.fullmatch(r'[A-Za-z0-9_-]+', name))


def read_command(folder: Path) -> str:
    """The command that prepared a data set, or began to; '' if none is recorded."""
    for name in ('unfinished.json', 'meta.json'):
        try:
            return json.loads(read_text(folder / name, LONGEST_JSON))['command'] + ''
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return ''


def begin(folder: Path, again: str, replace: bool = False):
    """Say in the folder that a preparation by the command `again` is under way. Raises UserError if what is there was
    made by a command that gives other tokens, unless it may be replaced."""
    there = read_command(folder) or ('another program' if (folder / 'train.bin').exists() else '')
    flags = lambda text: {
        f for f in shlex.split(text)[2:] if not f.startswith(('--max_t', '--shard_t', '--train=', '--repl'))
    }
    if there and flags(there) != flags(again) and not replace:
        name = 'choose another --name, or ' if '/text/' in again else ''
        raise UserError(
            f'{folder} was prepared otherwise, and would be replaced; {name}add --replace=true. What is there was made by: {there}'
        )
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / 'unfinished.json', json.dumps(dict(command=again)).encode())


def whole_shards(folder: Path, split: str, max_tokens: int, **same) -> list[dict]:
    """Headers of the shards to go on from: 0, 1, ... up to the first missing, broken or otherwise made one. What lies
    behind that is removed. Another max_tokens costs no more than the last shard, or those that are now too many."""
    headers, total = [], 0
    for i, path in enumerate(shard_paths(folder, split)):
        try:
            header = read_header(path)
            total += header['tokens']
            fits = header['limit'] == max_tokens if header['last'] else not max_tokens or total < max_tokens
            good = fits and path.name == f'{split}_{i:06d}.bin' and not (headers and headers[-1]['last'])
            good = good and all(header[k] == v for k, v in same.items())
        except (ValueError, KeyError):
            good = False
        if not good:
            break
        headers.append(header)
    if others := shard_paths(folder, split)[len(headers) :]:
        print(f'{split}: {len(others)} shards in {folder} are broken or made otherwise: writing them anew')
    for path in others:
        path.unlink()
    return headers


def write_documents(folder: Path, split: str, documents, encode_batch, *, vocab_size: int, tokenizer: str,
                    made_from: str = '', shard_tokens: int = 10**8, max_tokens: int = 0) -> int:  # fmt: skip
    """Write the shards of a split, or those that are missing; returns its number of tokens.

    documents(n) gives an iterator over the texts from the n-th on; encode_batch(list of texts) their ids, separators
    included, as one array. The stream is read here, the batches are encoded on every core; memory holds a few batches,
    never a shard. max_tokens > 0 stops there. Raises UserError if there is no text or the disk is full."""
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    fields = dict(dtype=shard_dtype(vocab_size), vocab_size=vocab_size, tokenizer=tokenizer, recipe=made_from)
    headers = whole_shards(folder, split, max_tokens, **fields)
    total = sum(h['tokens'] for h in headers)
    if headers and headers[-1]['last']:
        print(f'{split}: {len(headers)} shards, {total:,} tokens: already there')
        return total
    (folder / 'meta.json').unlink(missing_ok=True)  # from here on the set is unfinished
    read = headers[-1]['documents'] if headers else 0
    if headers:
        print(f'{split}: {len(headers)} shards are there; going on at document {read:,}')

    def encode(batch):
        return len(batch), encode_batch(batch).astype(fields['dtype'], copy=False)

    started, before, number = time.time(), total, len(headers)
    bar = tqdm(desc=f'{folder.name} {split}', unit=' tokens', unit_scale=True, initial=total, disable=None)
    with bar, closing(ahead(encode, batches(documents(read)), depth=4 * CORES)) as stream:
        item = next(stream, None)
        while item:
            path = folder / f'{split}_{number:06d}.bin'
            with writing(path) as f:
                f.write(bytes(HEADER))
                tokens = crc = 0
                while item and tokens < shard_tokens:
                    n, ids = item
                    if max_tokens:
                        ids = ids[: max_tokens - total]
                    f.write(ids.data)
                    crc = zlib.crc32(ids.data, crc)
                    tokens, total, read = tokens + len(ids), total + len(ids), read + n
                    bar.update(len(ids))
                    item = None if max_tokens and total >= max_tokens else next(stream, None)
                f.seek(0)
                last = dict(tokens=tokens, documents=read, last=item is None, limit=max_tokens, crc32=crc)
                f.write(pack_header(**fields, **last))
            number += 1
            if bar.disable:
                speed = (total - before) / (time.time() - started)
                print(f'{path.name}: {tokens:,} tokens ({speed / 1e6:.2f}M tokens/s)', flush=True)
    if not total:
        raise UserError(f'{folder.name}: there is no text for the split {split}; look at what is read')
    return total


def finish(folder: Path, tokens: dict, **meta):
    """meta.json, which says that the set is complete; tokens is {split: number}. Leftovers of killed runs, and files of
    nanoGPT's format that stood here before, go."""
    for split in tokens:
        (folder / f'{split}.bin').unlink(missing_ok=True)
    for tmp in folder.glob('*.bin.tmp*'):
        tmp.unlink(missing_ok=True)
    write(folder / 'meta.json', json.dumps(meta | {f'{s}_tokens': n for s, n in tokens.items()}).encode())
    (folder / 'unfinished.json').unlink(missing_ok=True)
    counts = ', '.join(f'{n:,} {s}' for s, n in tokens.items())
    print(f'{folder.name}: {counts} tokens, vocabulary {meta["vocab_size"]:,}, tokenizer {meta["tokenizer"]}')


# -----------------------------------------------------------------------------
# shards to tokens


class Tokens:
    """Token files on disk as one array of ids: parts are arrays (memory maps) that follow each other."""

    def __init__(self, parts):
        self.parts = [np.asarray(p) for p in parts]  # plain views: slicing a memmap object costs several times more
        self.offsets = np.cumsum([0] + [len(p) for p in parts])  # where each part begins; the last is the length

    def __len__(self):
        return int(self.offsets[-1])

    def max(self) -> int:
        return max((int(p.max()) for p in self.parts if len(p)), default=0)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The ids at starts ... starts + length - 1: (len(starts), length)."""
        if len(self.parts) == 1:
            return self.parts[0][starts[:, None] + np.arange(length)]
        out = np.empty((len(starts), length), self.parts[0].dtype)
        first = np.searchsorted(self.offsets, starts, side='right') - 1
        for row, start, part in zip(out, starts.tolist(), first.tolist()):
            filled = 0
            while filled < length:  # a window may reach over the end of a part, or over several
                begin = start + filled - self.offsets[part]
                piece = self.parts[part][begin : begin + length - filled]
                row[filled : filled + len(piece)] = piece
                filled, part = filled + len(piece), part + 1
        return out

    def checksum(self, sampled=2**12) -> int:
        """crc32 of the ids; where there are more than sampled^2, of that many in windows spread evenly."""
        n = len(self)
        whole = n <= sampled**2
        starts = np.zeros(1, int) if whole else np.arange(sampled) * (n - sampled) // (sampled - 1)
        return zlib.crc32(self.windows(starts, n if whole else sampled).astype('<u4').data)


def verify(path: Path, ids: np.ndarray, crc: int | None):
    """Raises ValueError, in words, if the ids of a file are not those that were written. crc None: nobody noted it."""
    if crc is not None and zlib.crc32(np.ascontiguousarray(ids).data) != crc:
        raise ValueError(f'{path} is damaged: its tokens are not those that were written (checksum)')


def verify_once(parts: dict, folder: Path):
    """verify a large split, {path: (ids, crc32)}: only files that were not, or have another size or time since then."""
    memo, seen = folder / 'verified.json', {}
    with suppress(OSError, ValueError, RecursionError):
        seen = json.loads(read_text(memo, LONGEST_JSON))
    seen = seen if isinstance(seen, dict) else {}
    stamps = {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in parts}
    new = [p for p in parts if seen.get(p.name) != stamps[p.name]]
    if new:
        print(f'{folder.name}: checking {len(new)} token files, once', flush=True)
        for path in new:
            verify(path, *parts[path])
        with suppress(UserError):  # a folder that others own
            write(memo, json.dumps(seen | stamps).encode())


def open_shards(paths: list[Path], split: str) -> tuple[Tokens, dict]:
    """(the tokens of all shards, the header of the last). Raises ValueError, in words, naming the file."""
    parts, header = {}, None
    for i, path in enumerate(paths):
        if path.name != f'{split}_{i:06d}.bin':
            raise ValueError(f'{path.with_name(f"{split}_{i:06d}.bin")} is missing')
        try:
            this = read_header(path)
        except ValueError as e:
            raise ValueError(f'{path} is {e}') from None
        if header and any(header[k] != this[k] for k in ('dtype', 'vocab_size', 'tokenizer', 'recipe')):
            raise ValueError(f'{path} is foreign: it was made otherwise than the shard before it')
        if header and header['last']:
            raise ValueError(f'{path} is foreign: the split ends in the shard before it')
        header = this
        if this['tokens']:
            dtype = np.dtype(this['dtype']).newbyteorder('<')
            ids = np.memmap(path, dtype=dtype, mode='r', offset=HEADER, shape=this['tokens'])
            parts[path] = ids, this.get('crc32')
    if not header['last']:
        raise ValueError(f'{paths[-1].with_name(f"{split}_{len(paths):06d}.bin")} is missing')
    tokens = Tokens([ids for ids, _ in parts.values()])
    if len(tokens) >= LOOKED_THROUGH:
        verify_once(parts, paths[0].parent)
    else:
        for path, (ids, crc) in parts.items():
            verify(path, ids, crc)
    return tokens, header
