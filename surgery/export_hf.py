"""
Write a folder that GPT2LMHeadModel.from_pretrained loads, tokenizer included.
"""

import os
import shutil
from pathlib import Path

import torch

from configurator import UserError, input_path, root_path
from surgery.collapse import TransferConfig, collapse_model
from surgery.huggingface import TRANSPOSED
from surgery.operation import open_model, report
from tokens import tokenizer
from tokens.tokenizer import transformers

EXPORTED = {  # what a folder of an export may hold, so that the next one may replace it
    'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json',
    'special_tokens_map.json', 'vocab.json', 'merges.txt', 'chat_template.jinja', 'eval.json',
}  # fmt: skip


def inexpressible(config) -> list[str]:
    """The keys of a config that keep its model from being a GPT-2, as 'key = value'."""
    allowed = dict(
        mlp=('gelu', 'gelu_tanh', 'relu2'),
        mlp_gate=(False,),
        n_kv_head=(0, config.n_head),
        qk_norm=(False,),
        norm=('layernorm',),
        norm_affine=(True,),
        post_norm=(False,),
        attn_scale=(1.0,),
        logit_scale=(1.0,),
        mup_base=(0,),
        position=('learned',),
        attention_window=(0,),
        linear=('dense',),
    )
    found = [f'{k} = {getattr(config, k)}' for k, values in allowed.items() if getattr(config, k) not in values]
    if len({config.hidden(i) for i in range(config.n_layer)}) > 1:
        found.append(f'mlp_expansion_factor = {config.mlp_expansion_factor}')
    return found


def to_gpt2(model):
    """The GPT2LMHeadModel that computes what a dense GPT computes. Missing biases become zeros.
    Raises UserError naming what GPT-2 cannot express."""
    c = model.config
    if found := inexpressible(c):
        raise UserError(f'GPT2LMHeadModel cannot express {", ".join(found)}')
    hf_config = transformers().GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.block_size,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_inner=c.hidden(0),
        activation_function=dict(gelu='gelu', gelu_tanh='gelu_new', relu2='relu2')[c.mlp],
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        tie_word_embeddings=c.tie_head,
        bos_token_id=None,
        eos_token_id=50256 if c.vocab_size > 50256 else None,
    )
    hf = transformers().GPT2LMHeadModel(hf_config).eval()
    sd = {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in model.state_dict().items()}
    target = hf.state_dict()
    for k in target:
        if k.endswith('.bias') and k not in sd:
            sd[k] = torch.zeros_like(target[k])
    hf.load_state_dict(sd)
    return hf


def hf_tokenizer(record: dict, path: Path):
    """A transformers tokenizer for the vocabulary of the checkpoint at path."""
    t, end = transformers(), '<|endoftext|>'
    if record['tokenizer'] in ('bpe', 'huggingface'):
        from tokenizers import Tokenizer

        tok = Tokenizer.from_str(record.get('json') or tokenizer.find_json(record, path, [path.parent]))
        ends = dict(eos_token=end, bos_token=end) if tok.token_to_id(end) is not None else {}
        return t.PreTrainedTokenizerFast(tokenizer_object=tok, **ends)
    if record['tokenizer'] == 'char':
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        vocabulary = {ch: i for i, ch in enumerate(record['itos'])}
        tok = Tokenizer(models.WordLevel(vocabulary, unk_token='unknown'))  # which it lacks: others are an error
        tok.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        tok.decoder = decoders.Fuse()
        return t.PreTrainedTokenizerFast(tokenizer_object=tok, clean_up_tokenization_spaces=False)
    from tokenizers import ByteLevelBPETokenizer

    from tokens.download import GPT2_BPE, gpt2_encoding

    gpt2_encoding()  # fetches its two files into tiktoken's cache, if need be
    cache = Path(os.environ['TIKTOKEN_CACHE_DIR'])
    files = {Path(source['file']).name: str(cache / name) for name, source in GPT2_BPE.items()}
    tok = ByteLevelBPETokenizer(files['encoder.json'], files['vocab.bpe'])
    return t.PreTrainedTokenizerFast(tokenizer_object=tok._tokenizer, eos_token=end, bos_token=end, unk_token=end)


def export_hf(cfg: TransferConfig):
    out = root_path(cfg.out)
    found = {p.name for p in out.iterdir()} if out.is_dir() else {out.name} if out.exists() else set()
    if foreign := sorted(found - EXPORTED):
        raise UserError(f'{out} holds what is no part of an export ({foreign[0]}); choose another --out')
    ckpt, model, tokens = open_model(cfg, folder=True)
    hf = to_gpt2(collapse_model(model))
    report(cfg, model, lambda idx, last_only: (hf(idx).logits, None), tokens)
    path = input_path(cfg.checkpoint)
    if not ckpt['tokenizer']:
        raise UserError(f'{path} does not say what its tokens mean; put the meta.json of its data set beside it')
    tmp = out.with_name(f'{out.name}.tmp{os.getpid()}')
    try:
        hf.save_pretrained(tmp)
        hf_tokenizer(ckpt['tokenizer'], path).save_pretrained(tmp)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(tmp, out)
    except OSError as e:
        raise UserError(f'cannot write {out} ({e.strerror}); choose another --out') from None
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    print(f'wrote {out}: transformers.GPT2LMHeadModel.from_pretrained({str(out)!r})')
