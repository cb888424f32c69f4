"""Damaged and forged token files, meta.json and records: one line each, never a traceback, a hang or other tokens."""

import os
import time

import fuzz
import pytest
import torch
from fuzz import dataset, read

from configurator import UserError
from tokens import loader, tokenfile, tokenizer


def test_damaged_data_sets_give_their_tokens_or_one_line(tmp_path):
    """A few of the cases of make fuzz."""
    n = fuzz.cases(400)
    count = fuzz.many('tokens', range(n), tmp_path)
    assert count.accepted > n / 50 and count.refused > n / 2


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


@pytest.mark.parametrize('name', ['meta.json', 'train_000000.bin', 'val_000000.bin'])
@pytest.mark.parametrize('what', ['pipe', 'folder', 'loop', 'endless'])
def test_what_is_no_file_in_the_place_of_one_gets_one_line_at_once(tmp_path, name, what):
    folder = tmp_path / 'set'
    dataset(folder, 'shards')
    path, t0 = folder / name, time.time()
    path.unlink()
    if what == 'pipe':
        os.mkfifo(path)
    elif what == 'folder':
        path.mkdir()
    else:
        path.symlink_to(path if what == 'loop' else '/dev/zero')
    with pytest.raises(UserError, match=str(folder)):
        read(folder)
    assert time.time() - t0 < 5


def test_a_meta_json_longer_than_any_is_not_read(tmp_path):
    folder = tmp_path / 'set'
    dataset(folder, 'shards')
    os.truncate(folder / 'meta.json', 10**11)
    with pytest.raises(UserError, match='longer than'):
        read(folder)


def test_a_tokenizer_known_by_its_hash_alone_is_another_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder without a tokenizer
    known = dict(tokenizer='huggingface', vocab_size=3, sha256='0' * 64)
    assert tokenizer.compare(known, dict(tokenizer='char', vocab_size=3, itos=list('abc'))) == 'other'


def test_the_kind_of_a_tokenizer_is_shown_short():
    with pytest.raises(UserError, match='of the kind') as e:
        tokenizer.check(dict(tokenizer=fuzz.laughs(), vocab_size=3), 'x.pt')
    assert len(str(e.value)) < 300


def test_a_tokenizer_that_is_a_tensor_gets_one_line(tmp_path):
    ckpt = fuzz.ours(n_layer=1) | dict(tokenizer=torch.ones(3))
    with pytest.raises(UserError, match='its tokenizer is damaged: it is no dict'):
        tokenizer.load(tmp_path / 'x.pt', ckpt)


@pytest.mark.parametrize('content', [b'', b'\xff', b'{}'])
def test_an_empty_or_damaged_tokenizer_json_gets_one_line(tmp_path, content):
    folder = tmp_path / 'set'
    dataset(folder, 'bpe')
    known = {k: v for k, v in tokenizer.of_data(str(folder)).items() if k != 'json'}
    assert tokenizer.build(known, 'x.pt', [folder]).decode([0])
    (folder / 'tokenizer.json').write_bytes(content)
    for build in (lambda: read(folder), lambda: tokenizer.build(known, 'x.pt', [folder])):
        with pytest.raises(UserError, match='tokenizer'):
            build()
