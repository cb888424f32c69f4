"""Interchange with transformers: same logits, same generation, or a reason why not. Offline, random weights."""

import json
import zipfile

import pytest
import torch
from conftest import tiny_gpt, tokens

import checkpoint
import evaluate
import transfer
from configurator import UserError
from surgery import collapse, export_hf, huggingface, language_model, reader
from surgery.export_hf import hf_tokenizer, to_gpt2
from surgery.huggingface import load_gpt2
from tokens import tokenizer

transformers = pytest.importorskip('transformers')
from safetensors.torch import load_file, save_file  # noqa: E402


def hf_gpt2(**keys):
    torch.manual_seed(0)
    args = dict(vocab_size=96, n_positions=16, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**args | keys)).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model


def saved(folder, kind, shard='10GB', **keys):
    """A GPT-2 folder whose weights are safetensors, several of them, or torch's own file."""
    hf = hf_gpt2(**keys)
    hf.save_pretrained(folder, max_shard_size=shard if kind != 'sharded' else '40KB')
    if kind == 'bin':
        (folder / 'model.safetensors').unlink()
        torch.save(hf.state_dict(), folder / 'pytorch_model.bin')
    return hf


def edit(folder, kind, change):
    """Change the tensors, a dict, of a folder's file."""
    if kind == 'bin':
        sd = torch.load(folder / 'pytorch_model.bin')
        change(sd)
        return torch.save(sd, folder / 'pytorch_model.bin')
    sd = load_file(folder / 'model.safetensors')
    change(sd)
    save_file(sd, folder / 'model.safetensors', metadata={'format': 'pt'})


def configure(folder, **keys):
    path = folder / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def both_readers(folder):
    """The two ways in: what train, sample and transfer read, and what evaluate reads."""
    return [lambda: reader.load(folder), lambda: language_model.hf_model(folder)]


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', ['safetensors', 'sharded', 'bin'])
def test_tied_and_untied_heads_in_every_kind_of_file(tmp_path, kind, tied):
    hf = saved(tmp_path, kind, tie_word_embeddings=tied)
    assert (len(list(tmp_path.glob('*.safetensors'))) > 1) == (kind == 'sharded')
    ours = checkpoint.build(reader.load(tmp_path))
    assert ours.config.tie_head == tied
    assert (ours(tokens(), last_only=False)[0] - hf(tokens()).logits).abs().max() < 1e-4


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
def test_a_head_of_its_own_in_a_tied_folder_stays_its_own(tmp_path, kind):
    saved(tmp_path, kind, tie_word_embeddings=False)
    configure(tmp_path, tie_word_embeddings=True)
    hf = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ours = checkpoint.build(reader.load(tmp_path))
    assert not ours.config.tie_head
    assert (ours(tokens(), last_only=False)[0] - hf(tokens()).logits).abs().max() < 1e-4


@pytest.mark.parametrize('kind', ['safetensors', 'bin'])
@pytest.mark.parametrize(
    'change, config, message',
    [
        (lambda sd: [sd.pop(k) for k in list(sd) if '.h.1.' in k], {}, 'weights are missing.*transformer.h.1.attn.c_attn'),
        (lambda sd: None, dict(n_layer=3), 'weights are missing.*transformer.h.2.attn.c_attn'),
        (lambda sd: sd.pop('lm_head.weight', None), dict(tie_word_embeddings=False), 'weights are missing.*lm_head'),
        (lambda sd: None, dict(n_layer=1), 'weights are left over.*transformer.h.1.attn'),
        (lambda sd: sd.update(extra=torch.ones(2)), {}, 'weights are left over and would be dropped: extra'),
        (lambda sd: None, dict(n_positions=32), 'weights have another shape.*: transformer.wpe.weight'),
        (lambda sd: None, dict(n_layer=10**9), '1000000000 layers, and .* tensors are there'),
        (lambda sd: None, dict(n_embd=10**7), 'config.json describes .* parameters, and the weights are .* bytes'),
        (lambda sd: None, dict(n_head=0), 'cannot be read'),
        (lambda sd: None, dict(vocab_size='many'), 'cannot be read'),
        (lambda sd: None, dict(pad_token_id=2**70), 'transformers cannot compute with it'),
        (lambda sd: None, dict(auto_map={'AutoModelForCausalLM': 'mine.Mine'}), 'code of its own, which is never run'),
        (lambda sd: None, dict(quantization_config={'quant_method': 'bitsandbytes'}), 'its weights are quantized'),
    ],
)  # fmt: skip
def test_a_folder_whose_weights_are_not_those_of_its_config_is_refused_by_every_command(
    tmp_path, kind, change, config, message
):
    saved(tmp_path, kind)
    edit(tmp_path, kind, change)
    configure(tmp_path, **config)
    for read in both_readers(tmp_path):
        with pytest.raises(UserError, match=message) as e:
            read()
        assert '\n' not in str(e.value)


def test_a_missing_shard_and_a_compressed_file_are_refused(tmp_path):
    saved(tmp_path / 'a', 'sharded')
    sorted((tmp_path / 'a').glob('*.safetensors'))[1].unlink()
    saved(tmp_path / 'b', 'bin')
    with zipfile.ZipFile(tmp_path / 'b/pytorch_model.bin') as z:
        parts = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(tmp_path / 'b/pytorch_model.bin', 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in parts.items():
            z.writestr(name, data)
    for folder, message in (('a', 'cannot be read'), ('b', 'zipped again with compression')):
        for read in both_readers(tmp_path / folder):
            with pytest.raises(UserError, match=message):
                read()


def test_an_old_file_of_torch_is_read_and_checked_like_a_new_one(tmp_path):
    """Before 1.6 torch wrote pickles one after another, no zip file."""
    hf = saved(tmp_path, 'bin')
    write = lambda sd: torch.save(sd, tmp_path / 'pytorch_model.bin', _use_new_zipfile_serialization=False)
    write(hf.state_dict())
    ours = checkpoint.build(reader.load(tmp_path))
    assert (ours(tokens(), last_only=False)[0] - hf(tokens()).logits).abs().max() < 1e-4
    write(hf.state_dict() | dict(note=bytearray(b'x')))
    for read in both_readers(tmp_path):
        with pytest.raises(UserError, match='names .* bytearray'):
            read()


def test_dropouts_that_differ_are_said(tmp_path, capsys):
    saved(tmp_path, 'safetensors', resid_pdrop=0.1, embd_pdrop=0.2, attn_pdrop=0.1)
    assert reader.load(tmp_path)['model_args']['dropout'] == 0.1
    assert 'embd_pdrop = 0.2' in capsys.readouterr().err


def test_whatever_changes_the_function_shows_in_the_logits(tmp_path, monkeypatch):
    saved(tmp_path, 'safetensors', activation_function='relu')
    monkeypatch.setitem(huggingface.ACTIVATIONS, 'relu', 'gelu')  # a key that nobody thought of
    with pytest.raises(UserError, match='the logits differ by'):
        reader.load(tmp_path)


@pytest.mark.parametrize(
    'keys',
    [{}, dict(n_inner=48), dict(tie_word_embeddings=False), dict(reorder_and_upcast_attn=True)]
    + [dict(activation_function=a) for a in huggingface.ACTIVATIONS],
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
    ours = checkpoint.build(reader.load(out / 'ckpt.pt'))
    x = tokens(T=32)
    assert (ours(x, last_only=False)[0] - hf(x).logits).abs().max() < 1e-4
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    text = 'ROMEO:\nHark! what light\n'
    own, theirs = (tokenizer.load(p, reader.load(p)) for p in (out / 'ckpt.pt', tmp_path / 'hf'))
    encode, decode = own.encode, own.decode
    assert tok(text)['input_ids'] == encode(text) and tok.decode(encode(text)) == text
    assert theirs.encode(text) == encode(text) and theirs.decode(encode(text)) == decode(encode(text))
    x = torch.tensor([encode('ROMEO:')])
    new = torch.cat(list(ours.generate(x, 12, temperature=0)), 1)
    assert torch.equal(hf.generate(x, max_new_tokens=12, do_sample=False, pad_token_id=0)[:, x.size(1) :], new)


def test_gpt2s_own_tokenizer_travels_with_a_bpe_model(tmp_path):
    from tokens.download import gpt2_encoding

    hf_tokenizer(tokenizer.GPT2, tmp_path).save_pretrained(tmp_path)
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "O Romeo, Romeo! wherefore art thou naïve?\n\n  It's 1597."
    assert tok(text)['input_ids'] == gpt2_encoding().encode(text) and tok.decode(tok(text)['input_ids']) == text


@pytest.mark.parametrize(
    'texts, end', [(['<|endoftext|>', 'a', 'b'], 0), (['a', 'b', '<|endoftext|>'], 2), (['a'], None)]
)
def test_the_end_of_a_vocabulary_is_that_of_its_exported_tokenizer_whatever_its_number(texts, end):
    from tokenizers import Tokenizer, models

    tok = Tokenizer(models.WordLevel({t: i for i, t in enumerate(texts)}, unk_token='a'))
    for kind in ('bpe', 'huggingface'):
        exported = hf_tokenizer(dict(tokenizer=kind, json=tok.to_str()), None)
        assert exported.eos_token_id == exported.bos_token_id == end


def test_the_end_of_text_is_exported_where_the_vocabulary_has_it():
    for vocab, end in ((50257, 50256), (50256, None)):
        config = to_gpt2(tiny_gpt(vocab_size=vocab, n_layer=1, n_embd=4, n_head=1)).config
        assert (config.eos_token_id, config.bos_token_id) == (end, None)


@pytest.mark.parametrize('key, value', [('layer_norm_epsilon', 1e-6), ('layer_norm_epsilon', 1e-12),
                                        ('scale_attn_weights', False), ('scale_attn_by_inverse_layer_idx', True)])  # fmt: skip
def test_keys_that_change_the_function_by_a_little_are_refused_by_name(tmp_path, key, value):
    saved(tmp_path, 'safetensors', **{key: value})
    with pytest.raises(UserError, match=f'cannot express|can express: {key} = {value}'):
        reader.load(tmp_path)


def test_characters_become_a_tokenizer_of_transformers():
    itos = [*'\n abc', 'é']
    tok = hf_tokenizer(dict(tokenizer='char', itos=itos), None)
    text = 'cab\n é  a'
    assert tok(text)['input_ids'] == [itos.index(ch) for ch in text] and tok.decode(tok(text)['input_ids']) == text


def test_a_tokenizer_that_puts_something_before_a_text_keeps_it(tmp_path):
    """As a Llama's <s>: a model trained with it is scored with it, and prompts have it once."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tok = Tokenizer(models.WordLevel({'<s>': 0, 'a': 1, 'b': 2, '?': 3}, unk_token='?'))
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
    saved(tmp_path, 'safetensors', vocab_size=96)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token='<s>', unk_token='?').save_pretrained(tmp_path)
    lm = language_model.hf_model(tmp_path)[1]
    assert lm.prefix == [0] and lm.encode('a b a') == [1, 2, 1]
    row = evaluate.encode_pair(lm, 'a b', ' a')
    assert row[0] == [0, 1, 2] and row[1] == [1]


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


def test_an_exported_model_has_the_dropout_of_the_run_in_all_three_places():
    c = export_hf.to_gpt2(tiny_gpt(bias=True, dropout=0.1)).config
    assert c.resid_pdrop == c.embd_pdrop == c.attn_pdrop == 0.1


@pytest.mark.parametrize('keys', [dict(n_kv_head=1), dict(qk_norm=True), dict(attention_window=4), dict(mlp_gate=True)])
def test_each_option_that_gpt2_lacks_is_named(keys):
    ((key, value),) = keys.items()
    assert export_hf.inexpressible(tiny_gpt(bias=True, **keys).config) == [f'{key} = {value}']
    assert export_hf.inexpressible(tiny_gpt(bias=True, n_kv_head=2).config) == []  # as many as heads
