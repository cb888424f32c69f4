"""
What the recipes in data/*/prepare.py are made of: documents to read, and encoders that turn them into ids.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import json
import os
import signal
import threading
import zlib
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from configurator import UserError, open_file, overrides
from files import write
from tokens.download import given, gpt2_encoding
from tokens.tokenfile import CORES, EOT, More, ahead, begin, command, finish, recipe, shard_dtype, write_documents

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


@contextlib.contextmanager
def leaving_at_once():
    """Ctrl-C ends the process at once while code in another language computes, for minutes perhaps, before it gives
    Python a chance to look. For a block that has written nothing."""
    heard, signalled = os.pipe()
    os.set_blocking(signalled, False)

    def wait():
        if os.read(heard, 1):
            print('interrupted', flush=True)
            os._exit(130)
        os.close(heard)

    threading.Thread(target=wait, daemon=True).start()
    before = signal.set_wakeup_fd(signalled)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(signalled)


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
    with leaving_at_once():
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
        with open_file(path) as f:
            return {'.bz2': bz2.decompress, '.gz': gzip.decompress}.get(path.suffix, bytes)(f.read())
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise UserError(f'{path} cannot be read ({e}); fetch the file again') from None


def whole(text: str) -> str:
    """Half of a surrogate pair, which JSON can spell and no file can hold, becomes U+FFFD, as in tiktoken."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def read_jsonl(path: Path):
    """The texts of a JSON-lines file (plain, .bz2 or .gz), the key `text` of each line. Raises UserError naming file and line."""
    for number, line in enumerate(io.BytesIO(unpack(path)), 1):
        try:
            text = json.loads(line)['text'] + ''  # a text, or TypeError
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(
                f"{path}, line {number}: not JSON with the key 'text' ({type(e).__name__}); fetch it again"
            ) from None
        yield whole(text) if b'\\ud' in line.lower() else text


def gutenberg_files(folder: Path) -> dict[str, list[Path]]:
    """The files of val, test and train: in gutenberg/ of the folder that NANOMORPH_DATA names, without it in folder."""
    source = given('gutenberg') or folder
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
