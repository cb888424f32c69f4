"""Batches: every window once an epoch, the same for every run, and no broken file gets through."""

import json
import os

import numpy as np
import pytest
import torch

from configurator import UserError
from tokens import download, loader, losses, tokenfile
from tokens.loader import Loader


@pytest.fixture
def dataset(tmp_path):
    """A folder of 1000 training and 200 validation tokens: the counting numbers."""

    def make(train=1000, val=200, vocab=1000):
        for split, n in (('train', train), ('val', val)):
            np.arange(n, dtype=np.uint16).tofile(tmp_path / f'{split}.bin')
        (tmp_path / 'meta.json').write_text(json.dumps(dict(vocab_size=vocab, train_tokens=train, val_tokens=val)))
        return str(tmp_path)

    return make


def test_targets_are_the_next_tokens(dataset):
    for order in ('permutation', 'random'):
        x, y = Loader(dataset(), 'train', 10, 4, 1000, order=order).batch(0)
        assert x.shape == y.shape == (4, 10) and x.dtype == torch.int64
        assert torch.equal(y, x + 1) and torch.equal(x[:, 1:], y[:, :-1])


def test_a_permutation_shows_every_window_once_an_epoch(dataset):
    data = Loader(dataset(), 'train', 10, 7, 1000, seed=3)
    n = data.n_windows
    starts = np.concatenate([data.starts(p) for p in range(0, 7 * n, 7)])[
        : 7 * n
    ]  # seven epochs, batches straddle them
    for e in range(7):
        epoch = np.sort(starts[e * n : (e + 1) * n])
        assert len(np.unique(epoch)) == n and np.all(np.diff(epoch) == 10)
    assert len({tuple(starts[e * n : (e + 1) * n]) for e in range(7)}) == 7
    assert starts.min() >= 0 and starts.max() + 11 <= 1000


def test_the_order_depends_on_seed_and_position_alone(dataset):
    for order in ('permutation', 'random'):
        a, b, c = (Loader(dataset(), 'train', 10, 4, 1000, order=order, seed=s) for s in (1, 1, 2))
        for _ in range(3):
            a.batch(0)  # having looked elsewhere changes nothing
        assert torch.equal(a.batch(40)[0], b.batch(40)[0])
        assert not torch.equal(a.batch(40)[0], c.batch(40)[0])
        assert not torch.equal(a.batch(40)[0], a.batch(44)[0])


def test_random_windows_can_begin_anywhere_and_epochs_at_every_offset(dataset):
    data = Loader(dataset(train=14), 'train', 10, 4, 1000, order='random')
    assert {s for p in range(50) for s in data.starts(p).tolist()} == {0, 1, 2, 3}  # the last has tokens 3 ... 13
    data = Loader(dataset(), 'train', 10, 4, 1000)
    assert data.n_windows == 98 and data.slack == 19  # 999 targets: 98 windows, and the play of where they begin
    assert {int(data.epoch(e)[0]) for e in range(400)} == set(range(20))


@pytest.mark.parametrize('n, padded', [(65, 65), (1023, 1023), (1024, 1024), (1030, 1088), (50257, 50304)])
def test_a_large_vocabulary_is_padded_to_a_multiple_of_64(n, padded):
    assert loader.padded_vocabulary(dict(vocab_size=n)) == padded
    assert loader.padded_vocabulary({}) == 50304


@pytest.mark.parametrize('split', ['train', 'val'])
def test_an_evaluation_takes_the_windows_asked_for_of_either_split(dataset, split):
    """eval_iters * batch_size of them; 0: the whole of val, and as many of train."""
    name = dataset()
    data = {s: Loader(name, s, 10, 4, 1000) for s in ('train', 'val')}
    for windows, expected in ((8, 8), (3, 3), (0, 19), (500, 19)):
        seen = []

        def loss_of(x, y, seen=seen):
            seen += x[y[:, 0] >= 0, 0].tolist()
            return torch.tensor(2.0)

        found = losses.evaluate(loss_of, data, split, windows)
        assert len(seen) == len(set(seen)) == expected and found[f'{split}_loss'] == 2.0


def test_a_permutation_does_not_depend_on_the_batch_size(dataset):
    small, large = (Loader(dataset(), 'train', 10, b, 1000) for b in (2, 8))
    assert torch.equal(torch.cat([small.batch(p)[0] for p in (16, 18, 20, 22)]), large.batch(16)[0])


def test_validation_covers_the_split_once_whatever_the_ranks_and_batch(dataset):
    seen = {}
    for world, batch in ((1, 3), (2, 4), (1, 19)):
        data = Loader(dataset(), 'val', 10, batch, 1000)
        ids = []
        for rank in range(world):
            for x, y, n in data.eval_batches(0, rank, world):
                assert x.shape == (batch, 10) and n == (y >= 0).sum() and x.min() >= 0
                assert x.stride() == y.stride() == data.batch(0)[1].stride()  # or the loss is compiled twice
                ids += y[y >= 0].tolist()
        seen[world, batch] = sorted(ids)
    assert set(map(tuple, seen.values())) == {tuple(range(1, 191))}  # 19 windows of 10: the whole split but its end


def test_a_share_of_validation_is_spread_over_the_split(dataset):
    data = Loader(dataset(), 'val', 10, 4, 1000)
    starts = [x[i, 0].item() for x, y, _ in data.eval_batches(5) for i in range(4) if y[i, 0] >= 0]
    assert len(starts) == 5 and starts[0] == 0 and starts[-1] >= 130


def test_a_text_barely_longer_than_a_block_works(dataset):
    data = Loader(dataset(train=12), 'train', 10, 4, 1000)
    starts = {data.starts(p)[i] for p in range(0, 80, 4) for i in range(4)}
    assert starts == {0, 1}  # 12 tokens hold two windows of 10 and the token after it
    for p in range(0, 40, 4):
        x, y = data.batch(p)
        assert torch.equal(x, torch.tensor(data.starts(p))[:, None] + torch.arange(10)) and torch.equal(y, x + 1)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda p: (p / 'train.bin').unlink(), 'train.bin is missing'),
        (lambda p: (p / 'train.bin').write_bytes((p / 'train.bin').read_bytes()[:-100]), 'truncated or foreign'),
        (lambda p: (p / 'train.bin').write_bytes((p / 'train.bin').read_bytes()[:-1]), 'truncated or foreign'),
        (lambda p: (p / 'meta.json').write_text('{"vocab'), 'is not JSON'),
    ],
)
def test_broken_files_are_named_with_the_command_that_mends_them(dataset, tmp_path, spoil, message):
    name = dataset()
    spoil(tmp_path)
    with pytest.raises(UserError, match=rf'{message}.*; python data/.*prepare\.py'):
        Loader(name, 'train', 10, 4, 1000)


def test_an_id_beyond_the_vocabulary_is_found_at_the_start(dataset):
    with pytest.raises(UserError, match='token id 999 is beyond the vocabulary .vocab_size = 900.'):
        Loader(dataset(), 'train', 10, 4, 900)


def test_an_id_beyond_the_vocabulary_is_found_in_a_file_too_large_to_look_through(dataset, monkeypatch):
    data = Loader(dataset(), 'train', 10, 4, 1000)
    data.vocab_size = 5
    with pytest.raises(UserError, match='beyond the vocabulary'):
        data.batch(0)


def test_block_size_longer_than_the_data(dataset):
    with pytest.raises(UserError, match='block_size = 500: .* has 200 tokens'):
        Loader(dataset(), 'val', 500, 4, 1000)


def test_nanogpt_files_without_meta_are_read_and_a_pickle_is_not(dataset, tmp_path):
    name = dataset()
    (tmp_path / 'meta.json').unlink()
    assert loader.read_meta(name) == {} and len(Loader(name, 'train', 10, 4, 1000).tokens) == 1000
    (tmp_path / 'meta.pkl').write_bytes(b'')
    with pytest.raises(UserError, match='a pickle can run code'):
        loader.read_meta(name)


def raw(folder, ids, kind, **meta):
    for split in ('train', 'val'):
        np.asarray(ids, kind).tofile(folder / f'{split}.bin')
    if meta:
        (folder / 'meta.json').write_text(json.dumps(meta))
    return str(folder)


def test_ids_of_32_bits_are_read_as_such_or_refused(tmp_path):
    ids = np.random.default_rng(0).integers(50257, size=500)
    name = raw(tmp_path, ids, np.uint32)
    with pytest.raises(UserError, match=r'train.bin has ids of 32 bits .*"dtype": "uint32"'):
        Loader(name, 'train', 10, 4, 50304)
    for meta in (dict(dtype='uint32'), dict(train_tokens=500), dict(vocab_size=100_000)):
        raw(tmp_path, ids, np.uint32, **dict(vocab_size=50257) | meta)
        assert Loader(name, 'train', 10, 4, 100_032).tokens.windows(np.array([0]), 500)[0].tolist() == ids.tolist()
    raw(tmp_path, ids, np.uint32, vocab_size=50257, train_tokens=700)
    with pytest.raises(UserError, match='truncated or foreign: 2,000 bytes, not 1,400'):
        Loader(name, 'train', 10, 4, 50304)


def test_a_damaged_file_of_raw_ids_is_found_by_the_checksum_of_its_meta(tmp_path):
    download.write_dataset(tmp_path, list(range(100)), list(range(50)), vocab_size=100, tokenizer='gpt2')
    Loader(str(tmp_path), 'train', 10, 4, 100)
    data = bytearray((tmp_path / 'train.bin').read_bytes())
    data[40] ^= 1  # another token of the vocabulary
    (tmp_path / 'train.bin').write_bytes(data)
    with pytest.raises(UserError, match='train.bin is damaged: its tokens are not those that were written'):
        Loader(str(tmp_path), 'train', 10, 4, 100)


@pytest.mark.parametrize(
    'meta',
    [
        [], 'x', 7, dict(itos='x'), dict(itos={}), dict(itos=[]), dict(itos=['a', 'a']), dict(itos=['ab']), dict(itos=5),
        dict(itos=['a', None]), dict(itos=['a'], vocab_size=2), dict(itos=['a'], tokenizer='words'), dict(vocab_size='65'),
        dict(vocab_size=-1), dict(vocab_size=0), dict(vocab_size=2**32 + 1), dict(vocab_size=True), dict(vocab_size=1e9), dict(tokenizer=[1]), dict(train_tokens='many'),
        dict(train_tokens=-5), dict(train_crc32=1.5), dict(dtype='float'), dict(dtype=[]), dict(tokenizer='char'),
    ],
)  # fmt: skip
def test_a_meta_that_cannot_be_one_is_named(tmp_path, meta):
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match='meta.json is damaged: .*; python data/'):
        loader.read_meta(str(tmp_path))


def test_a_vocabulary_beyond_the_models_has_the_right_remedy(dataset):
    with pytest.raises(
        UserError, match='has 1,000 tokens: leave vocab_size out, or take data in the tokens of the model'
    ):
        Loader(dataset(), 'train', 10, 4, 900)


@pytest.mark.parametrize('flags', ['', ' --max_tokens=10'])
def test_a_killed_preparation_is_called_interrupted_with_its_command(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(loader, 'ROOT', tmp_path)
    folder = tmp_path / 'data' / 'mine'
    again = f'python data/text/prepare.py --folder=/texts --name=mine{flags}'
    tokenfile.begin(folder, again)
    for may_run in (True, False):
        with pytest.raises(UserError, match=f"'mine': its preparation was interrupted; go on with: {again}$"):
            loader.prepare('mine', may_run)
    (folder / 'prepare.py').write_text('raise SystemExit(9)')  # a recipe goes on by itself, unless it had flags
    tokenfile.begin(folder, f'python data/mine/prepare.py{flags}', replace=True)
    with pytest.raises(UserError, match='was interrupted; go on with' if flags else 'exit code 9'):
        loader.prepare('mine')


# -----------------------------------------------------------------------------
# shards


@pytest.fixture
def sharded(tmp_path):
    """The counting numbers again, in shards of 70."""

    def make(train=1000, val=200, vocab=1000):
        for split, n in (('train', train), ('val', val)):
            parts = np.split(np.arange(n, dtype=np.uint16), range(70, n, 70))
            tokenfile.write_documents(
                tmp_path, split, lambda n, parts=parts: parts[n:], np.concatenate, vocab_size=vocab, tokenizer='gpt2',
                shard_tokens=70,
            )  # fmt: skip
        tokenfile.finish(tmp_path, dict(train=train, val=val), vocab_size=vocab, tokenizer='gpt2')
        return str(tmp_path)

    return make


@pytest.fixture
def one_part_a_batch(monkeypatch):
    monkeypatch.setattr(tokenfile.batches, '__defaults__', (1,))


def test_shards_give_the_batches_of_one_file(dataset, sharded, tmp_path, one_part_a_batch):
    whole = [Loader(dataset(), split, 33, 8, 1000) for split in ('train', 'val')]
    for split in ('train', 'val'):
        (tmp_path / f'{split}.bin').unlink()
    shards = [Loader(sharded(), split, 33, 8, 1000) for split in ('train', 'val')]
    assert [len(d.tokens.parts) for d in shards] == [15, 3] and shards[0].path.name == 'train_000000.bin'
    for a, b in zip(whole, shards):
        assert all(torch.equal(a.batch(p)[0], b.batch(p)[0]) for p in range(0, 160, 8))
        assert all(torch.equal(y, z) for (_, y, _), (_, z, _) in zip(a.eval_batches(0), b.eval_batches(0)))


def test_a_whole_file_beside_shards_is_the_split(dataset, sharded):
    sharded(), dataset()
    assert (
        loader.split_path(dataset(), 'train').name == Loader(dataset(), 'train', 33, 8, 1000).path.name == 'train.bin'
    )


def test_prepared_shards_are_recognised_and_unfinished_ones_are_not(sharded, tmp_path):
    name = sharded()
    loader.prepare(name)
    (tmp_path / 'meta.json').unlink()
    assert not loader.is_prepared(tmp_path, 'train')
    with pytest.raises(UserError, match='preparation was interrupted; go on with: python'):
        loader.prepare(name)
    with pytest.raises(UserError, match='meta.json is missing, the preparation was interrupted; go on with: python'):
        Loader(name, 'train', 10, 4, 1000)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda p: (p / 'train_000001.bin').unlink(), r'train_000001\.bin is missing'),
        (lambda p: (p / 'train_000014.bin').unlink(), r'train_000014\.bin is missing'),
        (lambda p: os.truncate(p / 'train_000002.bin', 1100), 'train_000002.bin is truncated: 1,100 bytes'),
        (lambda p: (p / 'train_000002.bin').write_bytes(bytes(2000)), 'train_000002.bin is foreign'),
        (lambda p: (p / 'meta.json').write_text('{"vocab_size": 65, "tokenizer": "gpt2", "train_tokens": 1000}'),
         'vocab_size is 1000 in its header, 65 in meta.json'),
        (lambda p: (p / 'meta.json').write_text('{"vocab_size": 1000, "tokenizer": "gpt2", "train_tokens": 5}'),
         '1,000 tokens, not 5'),
    ],
)  # fmt: skip
def test_broken_shards_are_named_with_the_command_that_mends_them(sharded, tmp_path, one_part_a_batch, spoil, message):
    name = sharded()
    spoil(tmp_path)
    with pytest.raises(UserError, match=rf'{message}.*; python data/.*prepare\.py'):
        Loader(name, 'train', 10, 4, 1000)


def test_an_id_beyond_the_vocabulary_is_found_in_shards(sharded, one_part_a_batch):
    with pytest.raises(UserError, match='token id 999 is beyond the vocabulary'):
        Loader(sharded(), 'train', 10, 4, 900)


def test_a_set_of_ones_own_text_names_the_command_that_made_it(sharded, tmp_path):
    name = sharded()
    meta = json.loads((tmp_path / 'meta.json').read_text())
    (tmp_path / 'meta.json').write_text(json.dumps(meta | dict(command='python data/text/prepare.py --folder=/mine')))
    os.truncate(tmp_path / 'val_000000.bin', 1100)
    with pytest.raises(UserError, match='truncated.*; python data/text/prepare.py --folder=/mine'):
        Loader(name, 'val', 10, 4, 1000)
    assert loader.mend('nope') == 'python data/text/prepare.py --folder=/path/to/texts --name=nope'


def test_data_of_nanogpt_whose_meta_names_no_tokenizer_is_in_gpt2s_tokens(tmp_path):
    (tmp_path / 'meta.json').write_text(json.dumps(dict(vocab_size=50257, dtype='uint32')))
    assert loader.recipe_tokenizer(str(tmp_path)) == 'gpt2'
    (tmp_path / 'meta.json').write_text(json.dumps(dict(itos=['a', 'b'], vocab_size=2)))
    assert loader.recipe_tokenizer(str(tmp_path)) == 'char'


def test_the_validation_loss_is_the_mean_over_windows_though_one_half_has_one_more(dataset):
    data = dict(val=Loader(dataset(), 'val', 10, 4, 1000))
    found = losses.evaluate(lambda x, y: x[y >= 0].float().mean(), data, 'val', 3)  # the tokens are their own numbers
    firsts = [0, 60, 120]
    each = [first + 4.5 for first in firsts]
    assert (found['val_a'], found['val_b']) == pytest.approx(((each[0] + each[1]) / 2, each[2]))
    assert found['val_loss'] == pytest.approx(sum(each) / 3)
