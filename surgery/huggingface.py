"""
To and from Hugging Face: GPT2LMHeadModel folders, through the transformers library.

`load_gpt2` gives what checkpoint.load gives, so every script reads such a folder; `export` writes one.
"""

from pathlib import Path

import torch

from configurator import UserError
from tokens.tokenizer import transformers

TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')  # Conv1D there
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}


def load_gpt2(name: str) -> dict:
    """A checkpoint (model, model_args, ...) from a local folder or from the hub (gpt2 ... gpt2-xl).
    Raises UserError if it cannot be read or is not a GPT-2 that GPTConfig can express."""
    try:
        hf = transformers().GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
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
