"""
To and from Hugging Face: GPT2LMHeadModel folders, through the transformers library.

`load_gpt2` gives what checkpoint.load gives, so every script reads such a folder; `export` writes one.
"""

import os
from pathlib import Path

import torch

import linear
from configurator import UserError

TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')  # Conv1D there
EXPORTED = {  # what a folder of an export may hold, so that the next one may replace it
    'config.json', 'generation_config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json',
    'special_tokens_map.json', 'vocab.json', 'merges.txt', 'chat_template.jinja', 'eval.json',
}  # fmt: skip
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


def transformers():
    try:
        import transformers
    except ImportError:
        raise UserError('Hugging Face models need the package transformers: pip install transformers') from None
    transformers.logging.set_verbosity_error()
    return transformers


def load_gpt2(name: str) -> dict:
    """A checkpoint (model, model_args, ...) from a local folder or from the hub (gpt2 ... gpt2-xl).
    Raises UserError if it cannot be read or is not a GPT-2 that GPTConfig can express."""
    try:
        hf = transformers().GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32)
    except UserError:
        raise
    except Exception as e:  # hub, file system and format errors of many kinds
        where = 'a Hugging Face GPT-2 folder' if Path(name).is_dir() else 'the Hugging Face hub'
        raise UserError(
            f'{name} cannot be read from {where} ({type(e).__name__}: {str(e).splitlines()[0]}); give a folder that'
            ' GPT2LMHeadModel.save_pretrained wrote, or go online once'
        ) from None
    c = hf.config
    odd = [
        f'model_type = {c.model_type}' if c.model_type != 'gpt2' else '',
        f'activation_function = {c.activation_function}' if c.activation_function not in ACTIVATIONS else '',
        f'layer_norm_epsilon = {c.layer_norm_epsilon}' if c.layer_norm_epsilon != 1e-5 else '',
        '' if c.scale_attn_weights else 'scale_attn_weights = False',
        'scale_attn_by_inverse_layer_idx = True' if c.scale_attn_by_inverse_layer_idx else '',
        'add_cross_attention = True' if c.add_cross_attention else '',
    ]
    if odd := [o for o in odd if o]:
        raise UserError(f'{name} is not a GPT-2 that this model can express: {", ".join(odd)}')
    args = dict(
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        block_size=c.n_positions,
        vocab_size=c.vocab_size,
        bias=True,
        dropout=float(c.resid_pdrop),
        mlp=ACTIVATIONS[c.activation_function],
        mlp_expansion_factor=(c.n_inner or 4 * c.n_embd) / c.n_embd,
        tie_head=bool(c.tie_word_embeddings),
    )
    sd = {k: v for k, v in hf.state_dict().items() if not k.endswith(('.attn.bias', '.attn.masked_bias'))}
    sd = {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in sd.items()}
    return dict(model=sd, model_args=args, config={}, iter_num=0, best_val_loss=float('inf'))


def inexpressible(config) -> list[str]:
    """The keys of a config that keep its model from being a GPT-2, as 'key = value'."""
    allowed = dict(
        mlp=('gelu', 'gelu_tanh'),
        mlp_gate=(False,),
        n_kv_head=(0, config.n_head),
        qk_norm=(False,),
        norm=('layernorm',),
        norm_affine=(True,),
        post_norm=(False,),
        attn_scale=(1.0,),
        logit_scale=(1.0,),
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
        activation_function='gelu' if c.mlp == 'gelu' else 'gelu_new',
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        tie_word_embeddings=c.tie_head,
        bos_token_id=None,
        eos_token_id=50256 if c.vocab_size > 50256 else None,
    )
    hf = transformers().GPT2LMHeadModel(hf_config).eval()
    sd = {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in linear.state(model).items()}
    target = hf.state_dict()
    for k in target:
        if k.endswith('.bias') and k not in sd:
            sd[k] = torch.zeros_like(target[k])
    hf.load_state_dict(sd)
    return hf


def tokenizer(meta: dict, folder: Path):
    """A transformers tokenizer for the vocabulary of a run (its meta.json, in folder); GPT-2's where meta names none."""
    t, end = transformers(), '<|endoftext|>'
    if meta.get('tokenizer') == 'bpe':
        file = str(folder / 'tokenizer.json')
        return t.PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, bos_token=end)
    if meta.get('tokenizer') == 'char':
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        tok = Tokenizer(models.WordLevel({ch: i for i, ch in enumerate(meta['itos'])}, unk_token=meta['itos'][0]))
        tok.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'isolated')
        tok.decoder = decoders.Fuse()
        return t.PreTrainedTokenizerFast(tokenizer_object=tok, clean_up_tokenization_spaces=False)
    from tokenizers import ByteLevelBPETokenizer

    from download import GPT2_BPE, gpt2_encoding

    gpt2_encoding()  # fetches its two files into tiktoken's cache, if need be
    cache = Path(os.environ['TIKTOKEN_CACHE_DIR'])
    files = {Path(source['file']).name: str(cache / name) for name, source in GPT2_BPE.items()}
    tok = ByteLevelBPETokenizer(files['encoder.json'], files['vocab.bpe'])
    return t.PreTrainedTokenizerFast(tokenizer_object=tok._tokenizer, eos_token=end, bos_token=end, unk_token=end)
