"""Interchange with transformers: same logits, same generation, or a reason why not. Offline, random weights."""

import pytest
import torch
from conftest import tiny_gpt, tokens

import checkpoint
import transfer
from configurator import UserError
from surgery import collapse, reader
from surgery.export_hf import to_gpt2
from surgery.huggingface import load_gpt2

transformers = pytest.importorskip('transformers')


def hf_gpt2(**keys):
    torch.manual_seed(0)
    args = dict(vocab_size=96, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**args | keys)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize(
    'keys', [{}, dict(activation_function='gelu'), dict(n_inner=48), dict(tie_word_embeddings=False)]
)
def test_a_hugging_face_folder_gives_the_same_logits_and_text(tmp_path, keys):
    hf = hf_gpt2(**keys)
    hf.save_pretrained(tmp_path / 'hf')
    ours = checkpoint.build(reader.load(tmp_path / 'hf'))
    assert (ours(tokens(), last_only=False)[0] - hf(tokens()).logits).abs().max() < 1e-4
    new = torch.cat(list(ours.generate(tokens(B=1, T=4), 10, temperature=0)), 1)
    want = hf.generate(tokens(B=1, T=4), max_new_tokens=10, do_sample=False, pad_token_id=0)[:, 4:]
    assert torch.equal(new, want)
    back = to_gpt2(ours)
    assert (back(tokens()).logits - hf(tokens()).logits).abs().max() < 1e-5


def test_export_replaces_nothing_but_an_export(run_train, tmp_path, fails):
    out = run_train('--max_iters=2')
    before = sorted(p.name for p in out.iterdir())
    export = lambda to: transfer.export_hf(collapse.TransferConfig(str(out / 'ckpt.pt'), str(to), windows=2))
    fails(lambda: export(out), 'holds what is no part of an export (best.pt); choose another --out')
    assert sorted(p.name for p in out.iterdir()) == before
    export(tmp_path / 'hf')
    export(tmp_path / 'hf')


@pytest.mark.parametrize('bias', [True, False])
def test_export_writes_what_transformers_loads(run_train, tmp_path, bias):
    out = run_train('--linear=expanded', '--max_iters=5', f'--bias={bias}')
    transfer.export_hf(collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'hf')))
    assert (tmp_path / 'hf' / 'model.safetensors').exists()
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / 'hf').eval()
    ours = checkpoint.build(reader.load(out / 'ckpt.pt'), linear_path='factored')
    x = tokens(T=32)
    assert (ours(x, last_only=False)[0] - hf(x).logits).abs().max() < 1e-4
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    text = 'ROMEO:\nHark! what light\n'
    from tokens.tokenizer import tokenizer

    encode, decode, _ = tokenizer(out / 'ckpt.pt', reader.load(out / 'ckpt.pt'))
    assert tok(text)['input_ids'] == encode(text) and tok.decode(encode(text)) == text
    encode_hf, decode_hf, _ = tokenizer(tmp_path / 'hf', reader.load(tmp_path / 'hf'))
    assert encode_hf(text) == encode(text) and decode_hf(encode(text)) == decode(encode(text))
    x = torch.tensor([encode('ROMEO:')])
    new = torch.cat(list(ours.generate(x, 12, temperature=0)), 1)
    assert torch.equal(hf.generate(x, max_new_tokens=12, do_sample=False, pad_token_id=0)[:, x.size(1) :], new)


def test_gpt2s_own_tokenizer_travels_with_a_bpe_model(tmp_path):
    from surgery.export_hf import tokenizer
    from tokens.download import gpt2_encoding

    tokenizer({'tokenizer': 'gpt2'}, tmp_path).save_pretrained(tmp_path)
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "O Romeo, Romeo! wherefore art thou naïve?\n\n  It's 1597."
    assert tok(text)['input_ids'] == gpt2_encoding().encode(text) and tok.decode(tok(text)['input_ids']) == text


def test_what_gpt2_cannot_express_is_named(tmp_path, fails):
    model = tiny_gpt(n_kv_head=1, position='rope', mlp_expansion_factor=(4.0, 2.0))
    checkpoint.save(tmp_path / 'a.pt', checkpoint.pack(model, {'dataset': 'shakespeare_char'}, 0, 0.0))
    cfg = collapse.TransferConfig(str(tmp_path / 'a.pt'), str(tmp_path / 'hf'))
    fails(
        lambda: transfer.export_hf(cfg),
        'cannot express n_kv_head = 1, position = rope, mlp_expansion_factor = (4.0, 2.0)',
    )
    assert not (tmp_path / 'hf').exists()


def test_a_folder_that_is_no_gpt2_is_refused(tmp_path):
    with pytest.raises(UserError, match='cannot be read from a Hugging Face folder'):
        load_gpt2(str(tmp_path))
    hf_gpt2(scale_attn_by_inverse_layer_idx=True).save_pretrained(tmp_path / 'a')
    with pytest.raises(UserError, match='scale_attn_by_inverse_layer_idx'):
        load_gpt2(str(tmp_path / 'a'))


def test_the_hub_out_of_reach_gets_one_line(monkeypatch, fails):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')

    def unreachable(*args, **keys):
        raise OSError("couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, 'from_pretrained', unreachable)
    err = fails(lambda: reader.load('gpt2-medium'), 'gpt2-medium cannot be read from the Hugging Face hub', 'go online')
    assert err.count('\n') == 1


def test_training_starts_from_a_hugging_face_folder(run_train, tmp_path):
    hf_gpt2(n_positions=64).save_pretrained(tmp_path / 'hf')
    out = run_train(f'--init_from={tmp_path / "hf"}', '--max_iters=3', '--linear=expanded', '--expansion=200')
    model = checkpoint.build(reader.load(out / 'ckpt.pt'))
    assert model.config.mlp == 'gelu_tanh' and model.config.block_size == 32 and model.config.linear == 'expanded'
