"""
What the ids of a model mean: one record for data sets and checkpoints, one way to find it, one way to compare two.

A vocabulary is a dict of plain values. A checkpoint carries it under the key `tokenizer`:

    tokenizer   gpt2 (GPT-2's encoding), char, bpe (a byte-level BPE of ours), huggingface (another tokenizer.json)
    vocab_size  ids it has; the model may have more, padded for speed
    itos        char: the characters in the order of their ids
    sha256      bpe, huggingface: of the text of tokenizer.json
    json        that text, if it is below 1 MB; a larger one is found by its hash, beside the checkpoint or in its data set
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from configurator import LONGEST_JSON, UserError, brief, printable, read_text
from files import write
from tokens import loader
from tokens.download import gpt2_encoding
from tokens.tokenfile import EOT

GPT2 = dict(tokenizer='gpt2', vocab_size=50257)
WHOLE = 10**6  # bytes of a tokenizer.json that a checkpoint carries
FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'vocab.json', 'vocab.txt')  # of transformers


@dataclass
class Tokenizer:
    encode: Callable  # text -> list of ids, nothing put before or after
    decode: Callable  # list of ids -> bytes
    vocabulary: int  # ids it uses
    name: str  # for a table
    record: dict  # the vocabulary, see above
    first: list = field(default_factory=list)  # what stands before a running text: the id of <|endoftext|>, or nothing
    prefix: list = field(default_factory=list)  # what it wants before every text, GPT-2's nothing
    unknown: Callable = lambda text, ids: 0  # (text, its ids) -> how many ids stand for what it cannot write


def transformers():
    try:
        import transformers
    except ImportError:
        raise UserError('Hugging Face models need the package transformers: pip install transformers') from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


# -----------------------------------------------------------------------------
# the record: of a data set, of a checkpoint


def of_meta(meta: dict, folder: Path) -> dict:
    """The vocabulary that a meta.json (loader.read_meta_file) describes, its tokenizer.json in the same folder; {} if it
    describes none. No meta.json: GPT-2's, as nanoGPT has it."""
    if meta.get('tokenizer') == 'char':
        return dict(tokenizer='char', vocab_size=len(meta['itos']), itos=meta['itos'])
    if meta.get('tokenizer') == 'bpe':
        path = folder / 'tokenizer.json'
        try:
            return of_json('bpe', read_text(path, LONGEST_JSON), meta['vocab_size'])
        except (OSError, UnicodeDecodeError, KeyError) as e:
            reason = getattr(e, 'strerror', None) or type(e).__name__
            raise UserError(f'{path} is missing or broken ({reason}); prepare its data set again') from None
    return dict(GPT2) if 'tokenizer' in meta or meta.get('vocab_size', 50257) >= 50257 else {}


def of_json(kind: str, text: str, vocab_size: int) -> dict:
    record = dict(tokenizer=kind, vocab_size=vocab_size, sha256=hashlib.sha256(text.encode()).hexdigest())
    return record | (dict(json=text) if len(text.encode()) < WHOLE else {})


def of_data(dataset: str) -> dict:
    return of_meta(loader.read_meta(dataset), loader.data_dir(dataset))


def of_checkpoint(path: Path, ckpt: dict) -> dict:
    """The vocabulary of a checkpoint (what reader.load gave for path), {} if nothing says what it is. In this order: the
    checkpoint itself; a Hugging Face folder's files; for older ones and nanoGPT's, meta.json beside it, then its data
    set's; then GPT-2's encoding, if the model has as many tokens."""
    n = ckpt['model_args'].get('vocab_size', 0)
    if has_record(ckpt):  # of a folder, too: a checkpoint in shares
        return check(ckpt['tokenizer'], path)
    if path.is_dir():
        if has_tokenizer(path):
            return of_folder(path).record
    elif (meta := beside(path)) is not None:
        return of_meta(meta, path.parent)
    elif (
        loader.is_plain(dataset := ckpt['config'].get('dataset')) and (loader.data_dir(dataset) / 'meta.json').exists()
    ):
        return of_data(dataset)
    return dict(GPT2) if 50257 <= n <= 50304 else {}


def has_record(ckpt: dict) -> bool:
    """Whether a checkpoint says what its ids mean; {} and None say that nothing does. check() judges what it says."""
    record = ckpt.get('tokenizer')
    return record is not None and record != {}


def beside(path: Path) -> dict | None:
    """The meta.json beside a checkpoint file; None if there is none."""
    meta = path.with_name('meta.json')
    if not path.is_file() or not meta.exists():
        return None
    try:
        return loader.read_meta_file(meta)
    except ValueError as e:
        raise UserError(f'{meta} {e}; take that of data/<dataset>') from None


def check(record, path) -> dict:
    """A record out of a file. Raises UserError if it cannot be one."""
    try:
        if not isinstance(record, dict):
            raise ValueError('is damaged: it is no dict')
        kind, n = record.get('tokenizer'), record.get('vocab_size')
        if type(n) is not int or not 0 < n <= 2**32:
            raise ValueError('is damaged: vocab_size is no positive number')
        if kind == 'char':
            loader.check_characters(record.get('itos'), n)
        elif kind in ('bpe', 'huggingface'):
            text, digest = record.get('json', ''), record.get('sha256')
            if not isinstance(text, str) or not isinstance(digest, str):
                raise ValueError('is damaged: json and sha256 are no texts')
            if 'json' in record and hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest() != digest:
                raise ValueError('is damaged: json is not what sha256 says')
        elif kind != 'gpt2':
            raise ValueError(f'is of the kind {brief(kind)!r}, which this version does not know')
    except ValueError as e:
        raise UserError(f'{path}: its tokenizer {e}; restore the checkpoint from a copy') from None
    return record


# -----------------------------------------------------------------------------
# the tokenizer of a record


def load(path: Path, ckpt: dict) -> Tokenizer:
    """The tokenizer of a checkpoint or Hugging Face folder. Raises UserError if it cannot be known, or has more ids than
    the model."""
    n, dataset = ckpt['model_args'].get('vocab_size', 0), ckpt['config'].get('dataset')
    if path.is_dir() and has_tokenizer(path):
        return below(n, of_folder(path), path)
    record = of_checkpoint(path, ckpt)
    if not record:
        need = 'add the files of its tokenizer'
        if not path.is_dir():
            pickle = loader.data_dir(dataset if loader.is_plain(dataset) else '<dataset>') / 'meta.pkl'
            if not pickle.exists():  # nanoGPT's folder is elsewhere
                pickle = Path('/path/to/nanoGPT', *pickle.parts[-3:])
            need = 'put the meta.json of its data set beside it; ' + loader.from_pickle(
                pickle, path.with_name('meta.json')
            )
        raise UserError(f"{path} does not say what its {n} tokens mean, and they are not GPT-2's; {need}")
    if record['vocab_size'] > n:
        raise UserError(
            f'{path}: the model has {n} tokens, its tokenizer {record["vocab_size"]}; put the meta.json of its data set'
            ' beside the checkpoint'
        )
    with suppress(UserError):  # a damaged one counts no more than one of other tokens
        meta = beside(path) if path.is_file() and has_record(ckpt) else None
        if meta and (meta['tokenizer'] != record['tokenizer'] or meta.get('itos') != record.get('itos')):
            print(f'NOTE: {path.with_name("meta.json")} is of other tokens; those in the checkpoint count')
    return build(record, path, places(path, dataset))


def build(record: dict, where='', folders=()) -> Tokenizer:
    """folders: where a tokenizer.json may be that the record has only by its hash."""
    kind, n = record['tokenizer'], record['vocab_size']
    if kind == 'gpt2':
        enc = gpt2_encoding()
        encode = lambda text: enc.encode(text, allowed_special={EOT})
        return Tokenizer(encode, enc.decode_bytes, enc.n_vocab, 'GPT-2', record, [enc.eot_token])
    if kind == 'char':
        itos, stoi = record['itos'], {ch: i for i, ch in enumerate(record['itos'])}

        def encode(text):
            if unknown := sorted(set(text) - set(itos)):
                more = f' and {len(unknown) - 20} more' if len(unknown) > 20 else ''
                raise UserError(
                    f'this model does not know the characters {unknown[:20]}{more}; it knows {brief("".join(itos))!r}'
                )
            return [stoi[ch] for ch in text]

        decode = lambda ids: ''.join(itos[i] for i in ids).encode(errors='replace')
        return Tokenizer(encode, decode, n, f'{n} characters', record)
    text = record['json'] if 'json' in record else find_json(record, where, folders)
    bpe = parse(text, where)
    if bpe.get_vocab_size() != n:
        raise UserError(f'{where}: its tokenizer has {bpe.get_vocab_size()} ids, {n} are on record; restore it')
    unknown = getattr(bpe.model, 'unk_token', None)
    end = bpe.token_to_id(EOT)
    if kind == 'bpe':
        spell = spell_bytes(bpe, where)
        encode, decode = refusing(lambda text: bpe.encode(text).ids), lambda ids: b''.join(spell[i] for i in ids)
    else:
        encode = refusing(lambda text: bpe.encode(text, add_special_tokens=False).ids)
        decode = lambda ids: bpe.decode(ids, skip_special_tokens=False).encode()
    first = [] if end is None else [end]
    return Tokenizer(encode, decode, n, f'{kind} of {n} tokens', record, first, unknown=counting(bpe, unknown))


def parse(text: str, where):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            f'reading the tokenizer of {where} needs the package tokenizers; pip install tokenizers, then run it again'
        ) from None
    try:
        return Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # tokenizers raises plain Exception, and its Rust panics not even that
        raise UserError(f'{where}: its tokenizer.json is broken ({str(e)[:200]}); prepare its data set again') from None


def places(path: Path, dataset) -> list[Path]:
    """Where a tokenizer.json may be that the checkpoint at path has only by its hash."""
    return [path.parent, *([loader.data_dir(dataset)] if loader.is_plain(dataset) else [])]


def find_json(record: dict, where, folders) -> str:
    """The tokenizer.json that a record names by its hash."""
    texts = []
    for folder in folders:
        with suppress(OSError, UnicodeDecodeError):  # none there, or a damaged one
            texts.append(read_text(folder / 'tokenizer.json', LONGEST_JSON))
    if where and has_tokenizer(Path(where)):  # a folder of Hugging Face; one of shares has none
        texts.append(folder_json(where))
    for text in texts:
        if hashlib.sha256(text.encode()).hexdigest() == record['sha256']:
            return text
    raise UserError(
        f'{where}: its tokenizer.json is too large to lie in the checkpoint; put the one with sha256'
        f' {record["sha256"][:16]}... beside it'
    )


def carry(record: dict, source: Path, out: Path, dataset=None):
    """Put the tokenizer.json of a checkpoint at source, if its record has only the hash, beside the one to be written.
    Raises UserError if another one lies there."""
    if not record or 'sha256' not in record or 'json' in record or source.parent == out.parent:
        return
    text = find_json(record, source, places(source, dataset))
    beside = out.with_name('tokenizer.json')
    if beside.exists() and beside.read_bytes() != text.encode():
        raise UserError(f'{beside} is the tokenizer of another run; choose an --out in another folder')
    write(beside, text.encode())


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes, {letter: byte}: the printable ones stand for themselves, the others follow at 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


def spell_bytes(bpe, where='') -> list[bytes]:
    """The bytes of every id of a byte-level BPE."""
    byte, tokens = byte_alphabet(), [bpe.id_to_token(i) for i in range(bpe.get_vocab_size())]
    if None in tokens:
        raise UserError(f'{where}: its tokenizer.json has no token {tokens.index(None)}; prepare its data set again')
    special = {t.content for t in bpe.get_added_tokens_decoder().values()}
    spell = lambda t: t.encode() if t in special or not byte.keys() >= set(t) else bytes(byte[c] for c in t)
    return [spell(t) for t in tokens]


def refusing(encode):
    """encode, with a UserError where the tokenizer has no token for a character."""

    def careful(text):
        try:
            return encode(text)
        except Exception as e:  # tokenizers raises plain Exception
            unknown = [ch for ch in sorted(set(text)) if not can(encode, ch)] if len(set(text)) > 1 else [text[:1]]
            raise UserError(f'this model does not know the characters {unknown[:20]} ({str(e)[:100]})') from None

    return careful


def below(n: int, tok: Tokenizer, path: Path) -> Tokenizer:
    """tok, with a UserError where a text needs an id that a model of n tokens lacks: a folder's tokenizer may have more,
    as long as no text needs them."""

    def checked(ids):
        if (top := max(ids, default=0)) >= n:
            raise UserError(f'{path}: the model has {n} tokens, and its tokenizer writes token {top}; give it its own')
        return ids

    encode = tok.encode
    checked(tok.first + tok.prefix)
    return replace(tok, encode=lambda text: checked(encode(text)))


def can(encode, text) -> bool:
    try:
        encode(text)
    except Exception:
        return False
    return True


def counting(bpe, token: str | None):
    """The function that counts the ids of an unknown token which the text does not spell."""
    i = bpe.token_to_id(token) if token else None
    return (lambda text, ids: 0) if i is None else lambda text, ids: max(0, ids.count(i) - text.count(token))


# -----------------------------------------------------------------------------
# a folder of transformers


def has_tokenizer(folder: Path) -> bool:
    return any((folder / f).exists() for f in FILES)


def open_folder(folder: Path):
    """The tokenizer of a Hugging Face folder as transformers has it. Code that lies in the folder is not run."""
    return transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def of_folder(folder: Path) -> Tokenizer:
    """The same as one of ours."""
    try:
        tok = open_folder(folder)
        plain, whole = (tok(letter(tok), add_special_tokens=s)['input_ids'] for s in (False, True))
    except (KeyboardInterrupt, SystemExit, UserError):
        raise
    except BaseException as e:  # whatever transformers and tokenizers say, the user needs one line
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise UserError(f'{folder}: the tokenizer does not load ({reason})') from None
    start = tok.bos_token_id if tok.bos_token_id is not None else tok.eos_token_id
    bpe = getattr(tok, 'backend_tokenizer', None)
    return Tokenizer(
        encode=refusing(lambda text: tok(text, add_special_tokens=False, verbose=False)['input_ids']),
        decode=lambda ids: tok.decode(ids, clean_up_tokenization_spaces=False).encode(errors='replace'),
        vocabulary=len(tok),
        name=printable(type(tok).__name__),
        record=folder_record(bpe, len(tok)) if bpe else {},
        first=[] if start is None else [start],
        prefix=whole[: whole.index(plain[0])] if plain and plain[0] in whole else [],
        unknown=counting(bpe, tok.unk_token or getattr(bpe.model, 'unk_token', None)) if bpe else lambda text, ids: 0,
    )


def letter(tok) -> str:
    """A text that the tokenizer knows: its first token that is no special one."""
    return next((ch for ch in 'ae e.0\n' if can(lambda t: tok(t), ch)), tok.convert_ids_to_tokens(0))


def folder_record(bpe, n: int) -> dict:
    if n >= 50257 and is_gpt2(bpe):
        return GPT2 | dict(vocab_size=n)
    return of_json('huggingface', bpe.to_str(), n)


def folder_json(folder: Path) -> str:
    """What of_json was given for the record of a folder."""
    return open_folder(folder).backend_tokenizer.to_str()


def is_gpt2(bpe) -> bool:
    """Whether the first 50,257 ids are GPT-2's."""
    try:
        enc = gpt2_encoding()
        return spell_bytes(bpe)[:50257] == [enc.decode_single_token_bytes(i) for i in range(50257)]
    except UserError:  # its files are not to be had
        return False


# -----------------------------------------------------------------------------
# two vocabularies


def compare(a: dict, b: dict) -> str:
    """'same': every id means the same in both; 'longer': a has all of b's ids and more; 'shorter': the other way round;
    'other'."""
    if a['tokenizer'] == b['tokenizer'] == 'gpt2' or a == b or 'sha256' in a and a['sha256'] == b.get('sha256'):
        n = a['vocab_size'] - b['vocab_size']
        return 'same' if n == 0 else 'longer' if n > 0 else 'shorter'
    if 'char' in (a['tokenizer'], b['tokenizer']) and 'gpt2' in (a['tokenizer'], b['tokenizer']):
        return 'other'
    try:
        x, y = meanings(a), meanings(b)
    except UserError:  # one of them is known by its hash alone
        return 'other'
    n = min(len(x), len(y))
    if x[:n] != y[:n]:
        return 'other'
    return 'same' if len(x) == len(y) else 'longer' if len(x) > n else 'shorter'


def meanings(record: dict) -> list[bytes]:
    tok = build(record)
    return [tok.decode([i]) for i in range(tok.vocabulary)]


def describe(record: dict) -> str:
    """In a few words, for a message."""
    kind, n = record['tokenizer'], record['vocab_size']
    if kind == 'char':
        text = ''.join(record['itos'])
        return f'{n} characters {printable(text if n <= 40 else text[:20] + "..." + text[-15:])!r}'
    return f"GPT-2's {n:,} tokens" if kind == 'gpt2' else f'{n:,} tokens of {kind} {printable(record["sha256"][:8])}'


def require_same(model: dict, data: dict, what: str, remedy: str, strict: bool = True) -> str:
    """Raises UserError unless ids mean the same in both vocabularies; not strict: one may have more of them than the
    other. Returns what the user should know, or ''. what: whose the first is, such as 'init_from = out/x/ckpt.pt'."""
    if not model or not data:
        return f'NOTE: {what}: nothing says what its tokens mean; they are taken for those of the data set'
    how = compare(model, data)
    if how == 'same':
        return ''
    text = f'{what}: its vocabulary is {describe(model)}, that of the data set {describe(data)}'
    if how == 'other' or strict:
        raise UserError(f'{text}; {remedy}')
    return f'NOTE: {text}; the ids that both have mean the same'


# -----------------------------------------------------------------------------
# text as it is generated


def stream(tok: Tokenizer, ids: list, new):
    """The text of the ids that `new` gives one by one, in pieces, as it goes on from ids. A character may need several
    ids, and some tokenizers write a space only between two words: so each piece is what the text of the last few ids
    grew by, and a broken character at its end is held back."""
    ids = ids[-1:]
    text = tok.decode(ids).decode(errors='replace')
    shown = len(text)
    for i in new:
        ids.append(i)
        text = tok.decode(ids).decode(errors='replace')
        end = len(text) - text.endswith('\ufffd')
        if end > shown:
            yield text[shown:end]
            shown = end
        if end == len(text) and len(ids) > 8:
            ids = ids[-4:]
            text = tok.decode(ids).decode(errors='replace')
            shown = len(text)
    yield text[shown:]
