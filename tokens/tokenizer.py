"""
The tokenizer of a checkpoint.
"""

import json

from configurator import UserError
from tokens import loader, tokenfile


def transformers():
    try:
        import transformers
    except ImportError:
        raise UserError('Hugging Face models need the package transformers: pip install transformers') from None
    transformers.logging.set_verbosity_error()
    return transformers


def tokenizer(path, ckpt: dict):
    """(encode: text -> ids, decode: ids -> bytes, vocabulary) of a checkpoint: by the meta.json beside it, or its data
    set's, or else GPT-2's encoding. A Hugging Face folder brings its own."""
    if path.is_dir() and (path / 'tokenizer.json').exists():
        tok = transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)
        return lambda text: tok(text)['input_ids'], lambda ids: tok.decode(ids).encode(), len(tok)
    if path.with_name('meta.json').exists() and not path.is_dir():
        try:
            return tokenfile.tokenizer(json.loads(path.with_name('meta.json').read_text()), path.parent)
        except (ValueError, AttributeError, TypeError):
            raise UserError(f'{path.with_name("meta.json")} is damaged; take that of data/<dataset>') from None
    dataset = ckpt['config'].get('dataset')
    return tokenfile.tokenizer(loader.read_meta(dataset) if dataset else {}, loader.data_dir(dataset or ''))
