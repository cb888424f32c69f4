"""Token files: what is written is read, nothing half, larger than memory, and every tokenizer there and back."""

import json
import os
import threading

import numpy as np
import pytest
from conftest import vocabulary

from configurator import UserError
from tokens import loader, recipes, tokenfile
from tokens.tokenfile import HEADER, More, Tokens, open_shards, read_header, shard_paths, write_documents

TEXTS = ['To be, or not to be', ' that is\n\n the  question 12345', 'Ça va? <|endoftext|> – 日本語 🙂', '', '\r\n\t x']


def by_bytes(texts):
    """A tokenizer for tests: bytes, 256 before every document."""
    return np.concatenate([np.array([*([] if isinstance(t, More) else [256]), *t.encode()], np.uint16) for t in texts])


def write(folder, texts, split='train', shard_tokens=20, encode=by_bytes, **keys):
    keys = dict(vocab_size=257, tokenizer='bytes', made_from='test') | keys
    return write_documents(folder, split, recipes.from_nth(lambda: iter(texts)), encode,
                           shard_tokens=shard_tokens, **keys)  # fmt: skip


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tokenfile.batches, '__defaults__', (1,))  # one document each


def content(folder, split='train'):
    tokens, _ = open_shards(shard_paths(folder, split), split)
    return tokens.windows(np.array([0]), len(tokens))[0]


def test_shards_follow_each_other_and_say_what_they_are(tmp_path):
    texts = [f'document {i}' for i in range(10)]
    n = write(tmp_path, texts)
    paths = shard_paths(tmp_path, 'train')
    headers = [read_header(p) for p in paths]
    assert [p.name for p in paths] == [f'train_{i:06d}.bin' for i in range(5)]  # 22 tokens in each
    assert [h['documents'] for h in headers] == [2, 4, 6, 8, 10] and [h['last'] for h in headers] == [False] * 4 + [
        True
    ]
    assert headers[0] | dict(tokens=22, dtype='uint16', vocab_size=257, tokenizer='bytes', version=2) == headers[0]
    assert all(p.stat().st_size == HEADER + 2 * h['tokens'] for p, h in zip(paths, headers))
    assert n == 110 and np.array_equal(content(tmp_path), by_bytes(texts))


FIELDS = 'dtype', 'vocab_size', 'tokenizer', 'tokens', 'documents', 'last', 'limit', 'recipe', 'crc32'


@pytest.mark.parametrize('field', FIELDS)
def test_a_header_needs_each_of_its_fields_and_of_its_type(tmp_path, field):
    """What is not there, or is of another type, or a negative number, is no number of documents, and no recipe."""
    write(tmp_path, ['document'])
    path = tmp_path / 'train_000000.bin'
    header, body = read_header(path), path.read_bytes()[HEADER:]
    kind = type(header[field])
    for value in [v for v in ('3', 3, 3.0, None, [3], True, -1) if type(v) is not kind or v == -1]:
        path.write_bytes(tokenfile.pack_header(**header | {field: value}) + body)
        with pytest.raises(ValueError, match=f'its header has no good {field}'):
            read_header(path)
    path.write_bytes(tokenfile.pack_header(**{k: v for k, v in header.items() if k != field}) + body)
    with pytest.raises(ValueError, match=f'its header has no good {field}'):
        read_header(path)


@pytest.mark.parametrize('vocab, dtype', [(65_536, 'uint16'), (65_537, 'uint32')])
def test_ids_of_a_large_vocabulary_survive(tmp_path, vocab, dtype):
    ids = np.array([0, vocab - 1, 3], np.uint32)
    write(tmp_path, ['a', 'b'], encode=lambda texts: ids, vocab_size=vocab)
    assert read_header(tmp_path / 'train_000000.bin')['dtype'] == dtype
    assert content(tmp_path).tolist() == [*ids, *ids] and content(tmp_path).dtype == dtype


@pytest.mark.parametrize('lengths', [[7, 1, 5, 40, 3], [56], [1] * 56])
def test_windows_reach_over_the_ends_of_shards(lengths):
    whole = np.arange(56, dtype=np.uint16)
    tokens = Tokens(np.split(whole, np.cumsum(lengths)[:-1]))
    for length in (1, 6, 17, 56):
        starts = np.random.default_rng(0).permutation(57 - length)
        assert np.array_equal(tokens.windows(starts, length), whole[starts[:, None] + np.arange(length)])
    assert len(tokens) == 56 and tokens.max() == 55


@pytest.mark.parametrize('at', [0, 3, 7, 9])
def test_an_interruption_leaves_whole_shards_and_goes_on_at_the_first_missing_one(tmp_path, at, capsys):
    texts = [f'document {i}' for i in range(10)]

    def cut(batch):
        if batch[0] == texts[at]:
            raise KeyboardInterrupt
        return by_bytes(batch)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, texts, encode=cut)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == [f'train_{i:06d}.bin' for i in range(at // 2)] and all(read_header(tmp_path / n) for n in left)
    seen = []
    assert write(tmp_path, texts, encode=lambda b: seen.extend(b) or by_bytes(b)) == 110
    assert sorted(seen) == texts[at // 2 * 2 :]  # what was done is not done again
    write(tmp_path / 'at once', texts)
    for p in shard_paths(tmp_path / 'at once', 'train'):
        assert p.read_bytes() == (tmp_path / p.name).read_bytes()
    assert 'going on at document' in capsys.readouterr().out or at < 2


def test_a_finished_split_is_left_alone_and_a_lost_or_broken_shard_is_made_again(tmp_path):
    texts = [f'document {i}' for i in range(10)]
    write(tmp_path, texts)
    want = [p.read_bytes() for p in shard_paths(tmp_path, 'train')]
    write(tmp_path, texts, encode=lambda _: pytest.fail('must not be asked'))
    (tmp_path / 'train_000003.bin').unlink()
    write(tmp_path, texts)
    (tmp_path / 'train_000001.bin').write_bytes(want[1][:-1])
    write(tmp_path, texts)
    assert [p.read_bytes() for p in shard_paths(tmp_path, 'train')] == want


def test_shards_made_from_something_else_are_replaced(tmp_path):
    write(tmp_path, ['old'] * 50)
    write(tmp_path, ['new'] * 3, made_from='other')
    assert np.array_equal(content(tmp_path), by_bytes(['new'] * 3))


def test_an_unfinished_set_has_no_meta(tmp_path):
    write(tmp_path, ['a'] * 9)
    (tmp_path / 'train_000000.bin.tmp123').touch()  # of a run that was killed
    tokenfile.finish(tmp_path, dict(train=18), vocab_size=257, tokenizer='bytes')
    assert json.loads((tmp_path / 'meta.json').read_text()) == dict(vocab_size=257, tokenizer='bytes', train_tokens=18)
    assert not list(tmp_path.glob('*.tmp*'))
    with pytest.raises(ZeroDivisionError):
        write(tmp_path, ['b'] * 9, made_from='other', encode=lambda _: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_max_tokens_is_exact(tmp_path):
    assert write(tmp_path, ['four'] * 100, max_tokens=33) == 33 == len(content(tmp_path))
    assert read_header(shard_paths(tmp_path, 'train')[-1])['last']


def test_another_max_tokens_keeps_the_whole_shards(tmp_path):
    texts = [f'document {i}' for i in range(10)]
    write(tmp_path, texts, max_tokens=50)
    seen = []
    for limit, first in ((90, 4), (0, 8), (70, 6), (44, 2)):  # 22 tokens in a shard
        seen.clear()
        n = write(tmp_path, texts, max_tokens=limit, encode=lambda b: seen.extend(b) or by_bytes(b))
        assert min(seen) == texts[first] and n == (limit or 110)
        assert np.array_equal(content(tmp_path), by_bytes(texts)[: limit or None])


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(UserError, match='no text for the split train'):
        write(tmp_path, [])


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='train_000000.bin .No space left on device.; free the disk'):
        write(tmp_path, ['a'])
    assert not list(tmp_path.iterdir())


def test_the_stream_is_read_only_as_far_ahead_as_the_cores_need():
    """A stream larger than memory never lies in memory."""
    read, done, lock = [0], [0], threading.Lock()

    def source():
        for i in range(500):
            read[0] += 1
            assert read[0] - done[0] <= 8
            yield i

    for i, result in enumerate(tokenfile.ahead(lambda x: x * x, source(), depth=8, workers=3)):
        with lock:
            done[0] += 1
        assert result == i * i  # in order
    assert read == done == [500]


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda f: (f / 'train_000001.bin').unlink(), r'train_000001\.bin is missing'),
        (lambda f: shard_paths(f, 'train')[-1].unlink(), r'train_000004\.bin is missing'),
        (lambda f: (f / 'train_000000.bin').write_bytes(b'\x01\x02' * 600), 'train_000000.bin is foreign'),
        (lambda f: os.truncate(f / 'train_000002.bin', HEADER + 7), 'train_000002.bin is truncated: 1,031 bytes'),
        (lambda f: os.truncate(f / 'train_000002.bin', 60), 'train_000002.bin is foreign or truncated'),
        (lambda f: os.truncate(f / 'train_000002.bin', 0), 'train_000002.bin is foreign'),
        (lambda f: write(f, ['x'], 'val', made_from='b') and (f / 'val_000000.bin').rename(f / 'train_000002.bin'),
         'made otherwise'),
    ],
)  # fmt: skip
def test_broken_shards_are_named(tmp_path, spoil, message):
    write(tmp_path, [f'document {i}' for i in range(10)])
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_shards(shard_paths(tmp_path, 'train'), 'train')


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenfile, 'VERSION', 3)
    write(tmp_path, ['a'])
    monkeypatch.setattr(tokenfile, 'VERSION', 2)
    with pytest.raises(ValueError, match='format version 3, this code reads up to 2'):
        open_shards(shard_paths(tmp_path, 'train'), 'train')


def first_version(path):
    """The file as version 1 wrote it: no checksum."""
    header = read_header(path)
    del header['crc32']
    data = path.read_bytes()
    path.write_bytes(tokenfile.pack_header(**header | dict(version=1)) + data[HEADER:])


def test_every_flipped_token_is_found_and_files_without_a_checksum_are_still_read(tmp_path):
    write(tmp_path, [f'document {i}' for i in range(10)])
    path, rng = tmp_path / 'train_000002.bin', np.random.default_rng(0)
    good = path.read_bytes()
    for _ in range(40):
        data = bytearray(good)
        data[rng.integers(HEADER, len(good))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        with pytest.raises(ValueError, match='train_000002.bin is damaged: its tokens are not those that were written'):
            content(tmp_path)
    path.write_bytes(good)
    want = content(tmp_path)
    for p in shard_paths(tmp_path, 'train'):
        first_version(p)
    assert np.array_equal(content(tmp_path), want)


def test_a_large_split_is_looked_through_once_and_again_after_a_change(tmp_path, monkeypatch, capsys):
    write(tmp_path, [f'document {i}' for i in range(10)])
    monkeypatch.setattr(tokenfile, 'LOOKED_THROUGH', 50)
    capsys.readouterr()
    content(tmp_path)
    assert 'checking 5 token files, once' in capsys.readouterr().out
    content(tmp_path)
    assert capsys.readouterr().out == ''
    path = tmp_path / 'train_000001.bin'
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match='train_000001.bin is damaged'):
        content(tmp_path)


def test_a_set_prepared_otherwise_is_not_replaced_unasked(tmp_path):
    one = tokenfile.command('text', folder='/a', name='mine', tokenizer='char')
    tokenfile.begin(tmp_path, one)
    tokenfile.finish(tmp_path, dict(train=3), vocab_size=3, tokenizer='char', command=one)
    for flags in (dict(folder='/a', name='mine'), dict(folder='/b', name='mine', tokenizer='char')):
        with pytest.raises(UserError, match='would be replaced; choose another --name, or add --replace=true.*=char'):
            tokenfile.begin(tmp_path, tokenfile.command('text', **flags))
    assert not (tmp_path / 'unfinished.json').exists()
    tokenfile.begin(tmp_path, one)
    tokenfile.begin(tmp_path, tokenfile.command('text', folder='/a', name='mine', tokenizer='char', shard_tokens=9))
    tokenfile.begin(tmp_path, tokenfile.command('text', folder='/b', name='mine'), replace=True)
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'train.bin').touch()
    with pytest.raises(UserError, match='was made by: another program'):
        tokenfile.begin(tmp_path / 'theirs', one)


def test_a_tokenizer_trained_anew_does_not_stay_beside_tokens_of_the_old_one(tmp_path):
    pytest.importorskip('tokenizers')
    recipes.train_bpe(tmp_path / 'tokenizer.json', ['to be or not'], 260)
    (tmp_path / 'meta.json').write_text('{}')
    recipes.train_bpe(tmp_path / 'tokenizer.json', ['to be or not'], 260)
    assert (tmp_path / 'meta.json').exists()
    recipes.train_bpe(tmp_path / 'tokenizer.json', ['another text, another text'], 260)
    assert not (tmp_path / 'meta.json').exists()


# -----------------------------------------------------------------------------
# tokenizers


def test_gpt2_is_tiktokens_with_endoftext_before_every_document():
    encode_batch, vocab = recipes.gpt2_batch()
    enc = recipes.gpt2_encoding()
    texts = [*TEXTS, 'half a \ud83d pair']
    want = [i for ids in enc.encode_ordinary_batch(texts) for i in [50256, *ids]]
    assert encode_batch(texts).tolist() == want and vocab == 50257
    assert encode_batch([More(TEXTS[0])]).tolist() == enc.encode_ordinary(TEXTS[0])


def test_words_end_where_tiktokens_own_pattern_ends_them():
    """Ours is spelled for speed: every mix of spaces, quotes, letters, digits and marks must give the same ids."""
    encode_batch, _ = recipes.gpt2_batch()
    rng = np.random.default_rng(0)
    few = list(" '\n\r\tstdmlvrea09.,-")
    many = few + list('\x00\x0b\x1c\x85\xa0\u200b\u2028\u3000\ufefféßǅʼªⅷ٣½²日本\u0301\u093f🙂<|>_’')
    texts = [''.join(rng.choice(a, rng.integers(1, 60))) for a in (few, many) for _ in range(3000)]
    spaces = [' ' * 5000, '\n' * 5000 + 'x', 'x' * 300 + ' \n' * 2000]  # runs that a pattern may stumble over
    anything = ''.join(map(chr, rng.permutation([c for c in range(0x110000) if not 0xD800 <= c < 0xE000])[:200_000]))
    texts += [*TEXTS, *spaces, anything]
    for text, want in zip(texts, recipes.gpt2_encoding().encode_ordinary_batch(texts, num_threads=1)):
        assert encode_batch([More(text)]).tolist() == want, ascii(text[:100])


def test_characters_there_and_back():
    itos = sorted(set(''.join(TEXTS)))
    encode_batch, vocab = recipes.char_batch(itos)
    encode, decode, same = vocabulary(dict(tokenizer='char', itos=itos), None)
    assert vocab == same == len(itos)
    assert encode_batch(TEXTS).tolist() == encode(''.join(TEXTS))
    assert decode(encode_batch(TEXTS).tolist()).decode() == ''.join(TEXTS)
    with pytest.raises(UserError, match="does not know the characters .'Z'."):
        encode('Z')


def test_a_trained_bpe_there_and_back(tmp_path):
    pytest.importorskip('tokenizers')
    bpe = recipes.train_bpe(tmp_path / 'tokenizer.json', TEXTS * 3, 280)
    encode_batch, vocab = recipes.bpe_batch(bpe)
    encode, decode, same = vocabulary(dict(tokenizer='bpe', vocab_size=280), tmp_path)
    assert vocab == same == 280
    unseen = ['nichts ẞ \x00 \u2028 🜚', *TEXTS]
    for text in unseen:
        ids = encode_batch([text]).tolist()
        assert ids[0] == 0 and 0 not in ids[1:] and decode(ids[1:]).decode() == text
        assert encode(text) == ids[1:] or '<|endoftext|>' in text
    assert encode('<|endoftext|>') == [0] and decode([0]) == b'<|endoftext|>'
    assert encode_batch([More('to')]).tolist() == encode('to')
    again = tmp_path / 'again.json'
    recipes.train_bpe(again, TEXTS * 3, 280)
    assert again.read_bytes() == (tmp_path / 'tokenizer.json').read_bytes()  # or nothing could be resumed


def test_mistakes_with_tokenizers_are_named(tmp_path):
    pytest.importorskip('tokenizers')
    with pytest.raises(UserError, match='vocab_size = 100: .* at least 257'):
        recipes.train_bpe(tmp_path / 'tokenizer.json', ['a'], 100)
    with pytest.raises(UserError, match='tokenizer.json is missing or broken'):
        vocabulary(dict(tokenizer='bpe'), tmp_path)
    (tmp_path / 'meta.json').write_text('{"tokenizer": "words"}')
    with pytest.raises(UserError, match="tokenizer = 'words' must be one of gpt2, char, bpe"):
        loader.read_meta(str(tmp_path))


def test_another_share_of_a_data_set_is_no_other_data_set(tmp_path):
    """How many tokens are taken, and in how large files: what is there is gone on with, without being asked."""
    one = tokenfile.command('hub', tokenizer='gpt2', max_tokens=10**6)
    tokenfile.begin(tmp_path, one)
    for flags in (dict(max_tokens=10**7), dict(), dict(max_tokens=10**6, shard_tokens=9), dict(replace=True)):
        tokenfile.begin(tmp_path, tokenfile.command('hub', tokenizer='gpt2', **flags))
    with pytest.raises(UserError, match='would be replaced'):
        tokenfile.begin(tmp_path, tokenfile.command('hub', tokenizer='gpt2', val_documents=7))
