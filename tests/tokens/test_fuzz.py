"""Damaged and forged token files, meta.json and records: one line each, never a traceback, a hang or other tokens."""

import json

import numpy as np
import pytest

from configurator import UserError
from tokens import loader, recipes, tokenfile, tokenizer
from tokens.loader import Loader

N = 200  # cases of each kind
ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**70,
    1e308,
    float('nan'),
    '',
    'x',
    'uint8',
    [],
    {},
    [[]],
    {'a': 1},
    '\x1b[2J',
    'é' * 500,
]


def dataset(folder, kind):
    folder.mkdir()
    if kind == 'raw':
        from tokens.download import write_dataset

        write_dataset(folder, [1, 2, 3] * 100, [1, 2] * 50, vocab_size=4, tokenizer='char', itos=list('abcd'))
        return
    for split, n in (('train', 300), ('val', 100)):
        parts = np.split(np.arange(n, dtype=np.uint16) % 4, [70])
        tokenfile.write_documents(
            folder, split, lambda n, parts=parts: parts[n:], np.concatenate, vocab_size=4, tokenizer='char',
            shard_tokens=60,
        )  # fmt: skip
    tokenfile.finish(folder, dict(train=300, val=100), vocab_size=4, tokenizer='char', itos=list('abcd'))


def read(folder):
    """All that reading means: [tokens, characters]. UserError is the only way out."""
    tokens = Loader(str(folder), 'train', 8, 2, 4).tokens
    ids = tokens.windows(np.array([0]), len(tokens))[0].tolist()
    return ids, tokenizer.build(tokenizer.of_data(str(folder))).decode(list(range(4)))


def damaged(rng, data: bytes) -> bytes:
    data, at = bytearray(data), int(rng.integers(len(data)))
    kind = rng.integers(5)
    if kind == 0:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 3:
        data[at : at + 9] = rng.bytes(9)
    else:
        del data[at : at + int(rng.integers(1, 9))]
    return bytes(data)


@pytest.mark.parametrize('kind', ['raw', 'shards'])
def test_damaged_data_sets_give_their_tokens_or_one_line(tmp_path, kind):
    folder = tmp_path / 'set'
    dataset(folder, kind)
    want, rng = read(folder), np.random.default_rng(0)
    files = [folder / 'meta.json', *sorted(folder.glob('train*.bin'))]
    refused = 0
    for _ in range(N):
        path = files[rng.integers(len(files))]
        good = path.read_bytes()
        path.write_bytes(damaged(rng, good))
        try:
            ids, characters = read(folder)
            assert ids == want[0]  # what is read is what was written; a letter of itos may differ, it is one of four
            assert path.name == 'meta.json' or characters == want[1]
        except UserError as e:
            refused += 1
            assert str(folder) in str(e)
        finally:
            path.write_bytes(good)
    assert refused > N / 2


def test_forged_headers_and_metas_get_one_line(tmp_path):
    folder = tmp_path / 'set'
    dataset(folder, 'shards')
    want, rng, path = read(folder), np.random.default_rng(1), folder / 'train_000000.bin'
    good, header = path.read_bytes(), tokenfile.read_header(path)
    meta = json.loads((folder / 'meta.json').read_text())
    for _ in range(N):
        value = ODD[rng.integers(len(ODD))]
        fields, target = (header, path) if rng.integers(2) else (meta, folder / 'meta.json')
        key = list(fields)[rng.integers(len(fields))]
        forged = {k: v for k, v in fields.items() if k != key} if rng.integers(4) == 0 else fields | {key: value}
        if target == path:
            line = (tokenfile.MAGIC + json.dumps(forged).encode())[: tokenfile.HEADER - 1]
            path.write_bytes(line.ljust(tokenfile.HEADER - 1) + b'\n' + good[tokenfile.HEADER :])
        else:
            target.write_text(json.dumps(forged))
        try:
            assert read(folder)[0] == want[0]
        except UserError:
            pass
        finally:
            path.write_bytes(good)
            (folder / 'meta.json').write_text(json.dumps(meta))


def test_deep_and_long_json_get_one_line(tmp_path):
    folder = tmp_path / 'set'
    dataset(folder, 'shards')
    for text in (
        '[' * 100_000,
        '{"a":' * 50_000,
        '1' * 10_000,
        '\x00',
        '"' + 'x' * 10**6 + '"',
        '\ud800'.encode('utf-8', 'surrogatepass'),
    ):
        (folder / 'meta.json').write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match='meta.json is'):
            loader.read_meta(str(folder))
    dataset(tmp_path / 'other', 'shards')
    header = (tokenfile.MAGIC + b'[' * 2000)[: tokenfile.HEADER]
    (tmp_path / 'other' / 'train_000000.bin').write_bytes(header.ljust(4000))
    with pytest.raises(UserError, match='foreign or truncated'):
        read(tmp_path / 'other')


def test_damaged_tokenizers_get_one_line(tmp_path):
    pytest.importorskip('tokenizers')
    recipes.train_bpe(tmp_path / 'tokenizer.json', ['to be or not to be'] * 3, 262)
    good = (tmp_path / 'tokenizer.json').read_bytes()
    n, rng = len(json.loads(good)['model']['vocab']), np.random.default_rng(2)
    for _ in range(N // 4):
        (tmp_path / 'tokenizer.json').write_bytes(damaged(rng, good))
        try:
            tok = tokenizer.build(tokenizer.of_meta(dict(tokenizer='bpe', vocab_size=n), tmp_path), tmp_path)
            tok.decode(tok.encode('to be') + list(range(n)))
        except UserError:
            pass


def test_forged_records_in_checkpoints_get_one_line():
    rng = np.random.default_rng(3)
    for record in (dict(tokenizer='char', vocab_size=2, itos=['a', 'b']), dict(tokenizer='gpt2', vocab_size=50257),
                   dict(tokenizer='huggingface', vocab_size=3, sha256='0' * 64, json='{}')):  # fmt: skip
        for _ in range(N // 4):
            key, value = list(record)[rng.integers(len(record))], ODD[rng.integers(len(ODD))]
            try:
                checked = tokenizer.check(record | {key: value}, 'x.pt')
                tokenizer.describe(checked)
                tokenizer.compare(checked, record)
            except UserError:
                pass
