"""
Read Hugging Face models, through the transformers library. `pretrained` loads a folder for every command, and refuses
one that does not load whole. `load_gpt2` turns a GPT-2 into the dict that checkpoint.load returns, so every script can
read such a folder. export_hf.py writes one.
"""

import json
import sys
import zipfile
from pathlib import Path

import torch

import checkpoint
from configurator import LONGEST_JSON, UserError, open_file, read_text
from model import GPT, GPTConfig
from surgery.claims import check_model, shown
from tokens.tokenizer import transformers

TRANSPOSED = ('attn.c_attn.weight', 'attn.c_proj.weight', 'mlp.c_fc.weight', 'mlp.c_proj.weight')  # Conv1D there
ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_fast': 'gelu_tanh',
               'gelu_accurate': 'gelu_tanh', 'gelu': 'gelu', 'gelu_python': 'gelu', 'relu2': 'relu2'}  # fmt: skip
DROPOUTS = ('resid_pdrop', 'embd_pdrop', 'attn_pdrop')
SAME = 1e-3  # largest difference of logits, over the largest logit, between transformers' model and ours


def pretrained(name, auto: str):
    """The model that transformers' class `auto` makes of a folder or a name on the hub, in float32, in evaluation mode.
    Code that lies in the folder is never run. Raises UserError unless config and weights are there and fit each other:
    transformers itself would fill what is missing with random numbers and drop what is left over."""
    hf, folder = transformers(), Path(name)
    cls = getattr(hf, auto)
    try:
        if folder.is_dir():
            check_folder(hf, cls, folder)
        model, info = cls.from_pretrained(
            name,
            dtype=torch.float32,
            local_files_only=folder.is_dir(),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below; without, transformers only says that there are some
            output_loading_info=True,
        )
    except UserError:
        raise
    except BaseException as e:  # errors of hub, file system and format; a panic of the Rust libraries is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        where, mend = 'the Hugging Face hub', 'go online once'
        if folder.is_dir():
            where, mend = 'a Hugging Face folder', 'give one that save_pretrained wrote, undamaged'
        what = f'{type(e).__name__}: {checkpoint.first_line(e)}'
        raise UserError(f'{name} cannot be read from {where} ({what}); {mend}') from None
    wrong = {'weights are missing and would be random': info['missing_keys']}
    wrong['weights are left over and would be dropped'] = info['unexpected_keys']
    wrong['weights have another shape than config.json says'] = [
        k if isinstance(k, str) else k[0] for k in info['mismatched_keys']
    ]
    for what, keys in wrong.items():
        if keys:
            more = f' and {len(keys) - 4} more' if len(keys) > 4 else ''
            raise UserError(
                f'{name}: {what}: {", ".join(map(shown, sorted(keys)[:4]))}{more}; config.json and the weights'
                ' are not of one model'
            )
    return model.eval()


def check_folder(hf, cls, folder: Path):
    """Check what from_pretrained does not: that config.json asks for no more than the files hold, and that torch's
    files can be mapped into memory. UserError otherwise."""
    text = folder / 'config.json'
    if not text.is_file():
        raise UserError(f'{folder} cannot be read from a Hugging Face folder (no config.json); give one that'
                        ' save_pretrained wrote')  # fmt: skip
    raw = json.loads(read_text(text, LONGEST_JSON))
    if not isinstance(raw, dict):
        raise UserError(f'{text} is {shown(raw)}: must be a dict; restore it from a copy')
    for key, why in (
        ('auto_map', 'its function is in code of its own, which is never run'),
        ('quantization_config', 'its weights are quantized'),
    ):
        if raw.get(key):
            raise UserError(f'{folder}: config.json has {key}: {why}')
    if (folder / 'adapter_config.json').exists():
        raise UserError(f'{folder}: is an adapter (adapter_config.json); merge it into its model first')
    tensors = size = 0
    for path in [*folder.glob('*.safetensors'), *folder.glob('pytorch_model*.bin')]:
        size += path.stat().st_size
        tensors += len(headers(path))
    config = hf.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    layers = getattr(config.get_text_config(), 'num_hidden_layers', 0)
    if layers > tensors:
        raise UserError(f'{folder}: config.json has {shown(layers)} layers, and {tensors} tensors are there')
    with torch.device('meta'):
        meta = cls.from_config(config) if hasattr(cls, 'from_config') else cls(config)
    wanted = sum(p.numel() for p in meta.parameters())
    if wanted > size:  # not even a byte for each
        raise UserError(f'{folder}: config.json describes {wanted:,} parameters, and the weights are {size:,} bytes')


def headers(path: Path) -> list:
    """The entries of a file of weights, without reading them."""
    if path.suffix == '.bin':
        if stored := zipfile.is_zipfile(path):
            checkpoint.check_zip(path)
        else:  # torch before 1.6 wrote five pickles, one after another, and then the numbers
            with open_file(path) as f:
                checkpoint.check_names([f] * 5, path)
        return torch.load(path, map_location='cpu', weights_only=True, mmap=stored)
    with open_file(path) as f:
        n = int.from_bytes(f.read(8), 'little')
        if n > path.stat().st_size - 8:
            raise UserError(f'{path} is truncated or no safetensors file; restore it from a copy')
        return json.loads(f.read(n))


def load_gpt2(name: str) -> dict:
    """A checkpoint (model, model_args, ...) from a local folder or from the hub (gpt2 ... gpt2-xl).
    Raises UserError if it cannot be read or is not a GPT-2 that GPTConfig can express."""
    hf = pretrained(name, 'GPT2LMHeadModel')
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
    dropouts = {k: float(getattr(c, k)) for k in DROPOUTS}
    if len(set(dropouts.values())) > 1:
        says = ', '.join(f'{k} = {v:g}' for k, v in dropouts.items())
        print(f'NOTE: {name} has {says}; the model here has one dropout, {c.resid_pdrop:g}', file=sys.stderr)
    wte, head = hf.transformer.wte.weight, hf.lm_head.weight
    args = dict(
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        block_size=c.n_positions,
        vocab_size=c.vocab_size,
        bias=True,
        dropout=dropouts['resid_pdrop'],
        mlp=ACTIVATIONS[c.activation_function],
        mlp_expansion_factor=(4 * c.n_embd if c.n_inner is None else c.n_inner) / c.n_embd,
        tie_head=head is wte or bool(c.tie_word_embeddings) and torch.equal(head, wte),  # whatever config.json says
    )
    sd = {k: v for k, v in hf.state_dict().items() if not k.endswith(('.attn.bias', '.attn.masked_bias'))}
    sd = {k: v.t().contiguous() if k.endswith(TRANSPOSED) else v for k, v in sd.items()}
    ckpt = dict(model=sd, model_args=args, config={}, iter_num=0, best_val_loss=float('inf'))
    check_model(ckpt, name)
    check_same(name, ckpt, hf)
    return ckpt


def logits(name, hf, idx):
    """(B, T, V) of a model of transformers for idx (B, T). UserError if it does not compute: from_pretrained does not look
    at every key of config.json."""
    try:
        return hf(input_ids=idx, use_cache=False).logits
    except Exception as e:
        what = f'{type(e).__name__}: {checkpoint.first_line(e)}'
        raise UserError(f'{name}: transformers cannot compute with it ({what}); restore its config.json') from None


@torch.no_grad()
def check_same(name, ckpt: dict, hf):
    """UserError unless our model computes the same logits as transformers'. This finds any key of config.json that
    changes the function."""
    with torch.device('meta'):
        ours = GPT(GPTConfig(**ckpt['model_args'])).eval()
    ours.load_state_dict(ckpt['model'], assign=True)
    if ours.config.tie_head:
        ours.lm_head.weight = ours.transformer.wte.weight
    idx = torch.arange(min(8, ours.config.block_size))[None] % ours.config.vocab_size
    a, b = ours(idx, last_only=False)[0], logits(name, hf, idx)
    if not (a - b).abs().max() <= SAME * b.abs().max():
        raise UserError(
            f'{name} is not a GPT-2 that this model can express: the logits differ by {(a - b).abs().max():.2g}'
            " from transformers'; a key of its config.json changes the function"
        )
