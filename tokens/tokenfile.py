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

import bz2
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shlex
import time
import zlib
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from configurator import UserError, overrides
from files import write, writing
from tokens.download import gpt2_encoding

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
    with open(path, 'rb') as f:
        head = f.read(HEADER)
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
            return json.loads((folder / name).read_text(encoding='utf-8'))['command'] + ''
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


def verify(path: Path, ids: np.ndarray, crc: int | None):
    """Raises ValueError, in words, if the ids of a file are not those that were written. crc None: nobody noted it."""
    if crc is not None and zlib.crc32(np.ascontiguousarray(ids).data) != crc:
        raise ValueError(f'{path} is damaged: its tokens are not those that were written (checksum)')


def verify_once(parts: dict, folder: Path):
    """verify a large split, {path: (ids, crc32)}: only files that were not, or have another size or time since then."""
    memo, seen = folder / 'verified.json', {}
    with suppress(OSError, ValueError, RecursionError):
        seen = json.loads(memo.read_text())
    stamps = {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in parts}
    new = [p for p in parts if not isinstance(seen, dict) or seen.get(p.name) != stamps[p.name]]
    if new:
        print(f'{folder.name}: checking {len(new)} token files, once', flush=True)
        for path in new:
            verify(path, *parts[path])
        with suppress(UserError):  # a folder that others own
            write(memo, json.dumps((seen if isinstance(seen, dict) else {}) | stamps).encode())


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


# -----------------------------------------------------------------------------
# tokenizers for whole data sets: batches of documents to arrays; tokenizer.py has those for a prompt


def join(arrays, dtype) -> np.ndarray:
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.empty(0, dtype)


# GPT-2's rule for where words end, in the words that tiktoken's regular expressions run fastest: without the possessive
# ++ of tiktoken's own pattern, which change nothing (no alternative goes on after them), all that is not space is one
# automaton instead of a backtracking program. The same ids take a quarter less time.
GPT2_WORDS = r""" ?\p{L}+|(?:'(?:[sdmt]|ll|ve|re)| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s++$|\s+(?!\S)|\s"""


def gpt2_batch():
    """(encode_batch, vocabulary) of GPT-2's encoding, <|endoftext|> (50256) before every document. The same ids as
    tiktoken's encode_ordinary, taken as arrays where tiktoken can (0.9 or later): lists of 137M numbers cost a
    quarter of the time, partly under Python's lock."""
    import tiktoken

    enc = gpt2_encoding()
    ranks, special = enc._mergeable_ranks, enc._special_tokens  # tiktoken's documented way to vary an encoding
    enc = tiktoken.Encoding('gpt2', pat_str=GPT2_WORDS, mergeable_ranks=ranks, special_tokens=special)
    separator = np.array([enc.eot_token], np.uint16)

    def ids(text):
        try:
            return enc.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        except (AttributeError, UnicodeEncodeError):  # an old tiktoken; half a surrogate pair, which this one replaces
            return np.array(enc.encode_ordinary(text), np.uint16)

    def encode_batch(texts):
        return join([a for t in texts for a in ((ids(t),) if isinstance(t, More) else (separator, ids(t)))], np.uint16)

    return encode_batch, enc.n_vocab


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), '<u4')


def char_batch(itos: list[str]):
    """(encode_batch, vocabulary) by characters. No separator: one would be a character that no text has."""
    table = np.zeros(0x110000, np.uint32)
    table[[ord(ch) for ch in itos]] = np.arange(len(itos))
    return lambda texts: join([table[code_points(t)] for t in texts], shard_dtype(len(itos))), len(itos)


def train_bpe(path: Path, texts, vocab_size: int):
    """Train a byte-level BPE (GPT-2's splitting, <|endoftext|> as id 0, all 256 bytes) and write it as tokenizer.json.
    The same texts give the same file. The vocabulary comes out smaller where the texts have too few pairs to merge."""
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise UserError(
            'tokenizer = bpe needs the package tokenizers; pip install tokenizers, then run it again'
        ) from None
    if vocab_size < 257:
        raise UserError(
            f'vocab_size = {vocab_size}: a byte-level BPE has 256 bytes and {EOT}; choose at least 257, better 512'
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    content = bpe.to_str().encode()
    if path.exists() and path.read_bytes() != content:
        (path.parent / 'meta.json').unlink(missing_ok=True)  # the token files there are of the other one
    write(path, content)
    return bpe


def bpe_batch(bpe):
    """(encode_batch, vocabulary) of a trained BPE, <|endoftext|> before every document."""
    bpe.encode_special_tokens = True  # a text that spells <|endoftext|> gets no separator out of it
    separator, dtype = bpe.token_to_id(EOT), shard_dtype(bpe.get_vocab_size())

    def encode_batch(texts):
        encoded = getattr(bpe, 'encode_batch_fast', bpe.encode_batch)(texts)
        lists = [e.ids if isinstance(t, More) else [separator, *e.ids] for t, e in zip(texts, encoded)]
        return join([np.array(ids, dtype) for ids in lists], dtype)

    return encode_batch, bpe.get_vocab_size()


# -----------------------------------------------------------------------------
# where documents come from


def unpack(path: Path) -> bytes:
    """The content of a plain, .bz2 or .gz file."""
    try:
        return {'.bz2': bz2.decompress, '.gz': gzip.decompress}.get(path.suffix, bytes)(path.read_bytes())
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise UserError(f'{path} cannot be read ({e}); fetch the file again') from None


def read_jsonl(path: Path, field: str = 'text'):
    """The texts of a JSON-lines file (plain, .bz2 or .gz), one document a line. Raises UserError naming file and line."""
    for number, line in enumerate(io.BytesIO(unpack(path)), 1):
        try:
            yield json.loads(line)[field]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(
                f'{path}, line {number}: not JSON with the key {field!r} ({type(e).__name__}); fetch it again'
            ) from None


def gutenberg_files(folder: Path) -> dict[str, list[Path]]:
    """The files of val, test and train: in gutenberg/ of the folder that NANOMORPH_DATA names, without it in folder."""
    shared = os.environ.get('NANOMORPH_DATA')
    source = Path(shared).expanduser() / 'gutenberg' if shared else folder
    patterns = dict(val='val.jsonl*', test='test.jsonl*', train='train_*.jsonl*')
    files = {split: sorted(source.glob(pattern)) for split, pattern in patterns.items()}
    if missing := [patterns[s] for s in files if not files[s]]:
        raise UserError(
            f'{folder.name}: {", ".join(missing)} not found in {source}; set NANOMORPH_DATA to the folder that holds'
            f' gutenberg/, then: {command(folder.name)}'
        )
    return files


def gpt2_file(path: Path) -> list[np.ndarray]:
    """The ids of each document of a JSON-lines file."""
    encode_batch, _ = gpt2_batch()
    return [encode_batch([text]) for text in read_jsonl(path)]


def gpt2_files(paths: list[Path]):
    """The ids of each document of JSON-lines files, in order; a file is unpacked and tokenised by one process, a few
    at a time (each takes some 0.3 GB for 60 MB of text). Unpacking and tokenising on threads of one process was slower."""
    workers = min(CORES, len(paths), 5)
    pool = partial(ProcessPoolExecutor, mp_context=get_context('spawn')) if workers > 1 else ThreadPoolExecutor
    try:
        for arrays in ahead(gpt2_file, paths, depth=workers + 1, workers=workers, pool=pool):
            yield from arrays
    except BrokenExecutor:
        raise UserError(
            f'a process that reads {paths[0].parent} was killed, perhaps for lack of memory; run it again: whole'
            ' shards are kept'
        ) from None


def hub_texts(again: str, repo: str, name: str | None, split: str, start: int = 0, stop: int | None = None):
    """Rows start ... stop - 1 of a data set of the Hugging Face hub: their texts, streamed, nothing kept on disk.
    Raises UserError with the command to run again when the package or the hub is out of reach, or the line breaks."""
    again = f'then run it again (whole shards are kept): {again}'
    try:
        import datasets
    except ImportError:
        raise UserError(f'{repo} needs the package datasets; pip install datasets, {again}') from None
    n = start
    try:
        rows = datasets.load_dataset(repo, name=name, split=split, streaming=True).skip(start)
        for row in rows if stop is None else rows.take(stop - start):
            yield row['text']
            n += 1
    except Exception as e:  # whatever its many layers raise: nothing of it is of this code's making
        reason = str(e).strip().split('\n')[0][:200]
        raise UserError(
            f'{repo} on the Hugging Face hub cannot be read, at row {n:,} ({type(e).__name__}: {reason});'
            f' check the network, {again}'
        ) from None


def prepare_hub(cfg, folder: Path, repo: str, name: str | None):
    """A data set of the hub that has one split, in GPT-2 tokens: its first cfg.val_documents are the validation split,
    the rest, up to cfg.max_tokens (0: all), the training split."""
    again = command(folder.name, **overrides(cfg))
    begin(folder, again, cfg.replace)
    encode_batch, vocab_size = gpt2_batch()
    made_from = recipe(repo=repo, name=name, val_documents=cfg.val_documents, shard_tokens=cfg.shard_tokens)
    common = dict(vocab_size=vocab_size, tokenizer='gpt2', made_from=made_from, shard_tokens=cfg.shard_tokens)

    def val(n):
        return hub_texts(again, repo, name, 'train', n, cfg.val_documents)

    def train(n):
        return hub_texts(again, repo, name, 'train', cfg.val_documents + n)

    tokens = dict(val=write_documents(folder, 'val', val, encode_batch, **common))
    tokens['train'] = write_documents(folder, 'train', train, encode_batch, max_tokens=cfg.max_tokens, **common)
    edition = f'{repo} {name or ""}'.strip()
    finish(folder, tokens, vocab_size=vocab_size, tokenizer='gpt2', edition=edition, command=again)


def from_nth(documents):
    """documents() as a function of the first one wanted, for sources that have to read what they skip."""
    return lambda n: itertools.islice(documents(), n, None)
