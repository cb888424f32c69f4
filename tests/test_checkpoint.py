"""Checkpoints survive what can happen to files; collapse keeps the function or does not write."""

import json
import math
import os
import zipfile

import pytest
import torch
from conftest import tiny_gpt, tokens, train_config

import checkpoint
import files
import transfer
from configurator import UserError
from linear import factors
from linear.factors import Factors
from model import GPT, NANOGPT_KEYS
from surgery import claims, collapse
from tokens import tokenizer


def ckpt_of(model, **resume):
    return checkpoint.pack(model, {'dataset': 'shakespeare_char'}, 7, 1.5, **resume)


@pytest.mark.parametrize('save_path', ['materialised', 'factored'])
@pytest.mark.parametrize('load_path', ['materialised', 'factored'])
def test_round_trip_whatever_the_path(tmp_path, save_path, load_path):
    keys = dict(linear='expanded', linear_layers='mlp+attn', expansion_depth=3, expansion_lr='matched', bias=True)
    model = tiny_gpt(**keys).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    beside = Factors(model, path=save_path)
    checkpoint.save(tmp_path / 'a.pt', ckpt_of(model, factors=beside))
    back = checkpoint.build(checkpoint.load(tmp_path / 'a.pt'))
    assert back.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in back.state_dict().items())
    assert bool(Factors(back, path=load_path)) == (load_path == 'materialised')
    assert (model(tokens())[0] - back(tokens())[0]).abs().max() < 1e-5


def test_collapsed_checkpoint_is_a_plain_nanogpt_one(tmp_path):
    model = tiny_gpt(linear='expanded', linear_layers='mlp+attn', expansion_depth=4, bias=True)
    checkpoint.save(tmp_path / 'run' / 'ckpt.pt', ckpt_of(model))
    record = tokenizer.of_data('shakespeare_char')
    (tmp_path / 'run' / 'meta.json').write_text(json.dumps(record))
    (tmp_path / 'plain').mkdir()
    (tmp_path / 'plain' / 'meta.json').write_text("another run's")
    cfg = collapse.TransferConfig(str(tmp_path / 'run' / 'ckpt.pt'), str(tmp_path / 'plain' / 'ckpt.pt'))
    transfer.collapse(cfg)
    raw = torch.load(tmp_path / 'plain' / 'ckpt.pt', weights_only=True)
    assert set(raw['model_args']) == set(NANOGPT_KEYS)
    assert set(raw['model']) == set(tiny_gpt(bias=True).state_dict())
    assert raw['config']['linear'] == 'dense' and raw['iter_num'] == 7
    assert raw['tokenizer'] == record and (tmp_path / 'plain' / 'meta.json').read_text() == "another run's"
    plain = checkpoint.build(raw)
    factored = checkpoint.build(checkpoint.load(tmp_path / 'run' / 'ckpt.pt'))
    assert (plain(tokens())[0] - factored(tokens())[0]).abs().max() < 1e-5


@pytest.mark.parametrize('spoil', ['error', 'nan'])
def test_collapse_refuses_to_write_what_changes_the_function(tmp_path, monkeypatch, fails, capsys, spoil):
    model = tiny_gpt(linear='expanded')
    checkpoint.save(tmp_path / 'ckpt.pt', ckpt_of(model))
    exact = factors.dense_float64
    change = (lambda m: exact(m) * 1.1) if spoil == 'error' else (lambda m: exact(m) * math.nan)
    monkeypatch.setattr(factors, 'dense_float64', change)
    cfg = collapse.TransferConfig(str(tmp_path / 'ckpt.pt'), str(tmp_path / 'plain.pt'))
    fails(lambda: transfer.collapse(cfg), 'the function would change', 'plain.pt is not written')
    assert not (tmp_path / 'plain.pt').exists()


def test_collapse_leaves_the_model_as_it_was():
    model = tiny_gpt(linear='expanded')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    collapse.collapse_model(model)
    assert all(torch.equal(before[k], v) and v.dtype == before[k].dtype for k, v in model.state_dict().items())


def test_a_checkpoint_without_its_factors_is_refused(tmp_path):
    model = tiny_gpt(linear='expanded', linear_layers='mlp+attn')
    ckpt_of(model)  # they are in the model
    beside = Factors(model, path='materialised')
    with pytest.raises(ValueError, match='transformer.h.0.attn.c_attn is formed from factors'):
        ckpt_of(model)
    del beside['transformer.h.1.mlp.c_proj']
    with pytest.raises(ValueError, match='transformer.h.1.mlp.c_proj is formed from factors'):
        ckpt_of(model, factors=beside)


def flip_a_bit(path):
    with zipfile.ZipFile(path) as z:
        info = max(z.infolist(), key=lambda i: i.file_size)
        offset = info.header_offset + 200 + info.file_size // 2
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def zip_again(path, compression):
    with zipfile.ZipFile(path) as z:
        parts = {i.filename: z.read(i) for i in z.infolist()}
    with zipfile.ZipFile(path, 'w', compression) as z:
        for name, data in parts.items():
            z.writestr(name, data)


def test_zipped_again_without_compression_holds_the_same_numbers(tmp_path):
    model = tiny_gpt()
    checkpoint.save(tmp_path / 'a.pt', ckpt_of(model))
    zip_again(tmp_path / 'a.pt', zipfile.ZIP_STORED)
    back = checkpoint.load(tmp_path / 'a.pt')['model']
    assert all(torch.equal(v, back[k]) for k, v in model.state_dict().items())


def repeat_one_number(path):
    """A tensor of 4 bytes that claims to be a terabyte."""
    model = tiny_gpt().state_dict() | {'transformer.wte.weight': torch.zeros(1).expand(500_000, 500_000)}
    torch.save(dict(model=model, model_args={}), path)


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda p: zip_again(p, zipfile.ZIP_DEFLATED), 'was zipped again with compression'),
        (repeat_one_number, 'transformer.wte.weight'),
        (lambda p: torch.save({'model': {'a': 1}, 'model_args': {}}, p), "'a' in model is no tensor"),
        (lambda p: p.unlink(), 'no checkpoint at'),
        (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), 'truncated or no checkpoint'),
        (lambda p: p.write_bytes(b''), 'truncated or no checkpoint'),
        (flip_a_bit, 'is corrupted'),
        (lambda p: torch.save({'weights': 1}, p), 'not a checkpoint of nanoMorph or nanoGPT'),
        (lambda p: torch.save([1, 2], p), 'not a checkpoint of nanoMorph or nanoGPT'),
        (lambda p: torch.save({'model': {}, 'model_args': {}, 'format': 'nanomorph 99'}, p), "format 'nanomorph 99'"),
        (lambda p: torch.save({'model': {}, 'model_args': {'flux': 1}}, p), 'does not know: flux'),
        (lambda p: torch.save({'model': {}, 'model_args': {'n_layer': 1}}, p), 'weights do not fit the model: missing'),
        (lambda p: torch.save(print, p), 'no checkpoint of tensors and plain values'),
        (lambda p: zipfile.ZipFile(p, 'w').writestr('a.txt', 'hello'), 'no checkpoint of tensors'),
    ],
    ids=[
        'compressed',
        'repeated',
        'number',
        'missing',
        'half',
        'empty',
        'bit',
        'foreign',
        'list',
        'future',
        'unknown-args',
        'misfit',
        'code',
        'other-zip',
    ],
)
def test_a_broken_or_foreign_checkpoint_gets_one_line(tmp_path, fails, spoil, message):
    path = tmp_path / 'd' / 'ckpt.pt'
    checkpoint.save(path, ckpt_of(tiny_gpt()))
    spoil(path)
    err = fails(lambda: checkpoint.build(checkpoint.load(path), path), message, str(path))
    assert err.count('\n') == 1


def test_an_interrupted_or_impossible_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'ckpt.pt'
    checkpoint.save(path, ckpt_of(tiny_gpt(seed=1)))
    old = path.read_bytes()

    def half(obj, f):
        f.write(b'half')
        raise RuntimeError('[enforce fail] disk full')

    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(UserError, match='cannot write .*disk full.*as it was before'):
        checkpoint.save(path, ckpt_of(tiny_gpt(seed=2)))
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['ckpt.pt']


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_the_name_after(tmp_path, monkeypatch):
    """fsync of the file, rename, fsync of the folder: in this order a power cut leaves the old one or the new one."""
    done, fsync, replace = [], os.fsync, os.replace

    def sync(fd):
        done.append('folder' if os.path.isdir(f'/proc/self/fd/{fd}') else f'{os.fstat(fd).st_size} bytes')
        fsync(fd)

    monkeypatch.setattr(os, 'fsync', sync)
    monkeypatch.setattr(os, 'replace', lambda a, b: (done.append('rename'), replace(a, b))[1])
    checkpoint.save(tmp_path / 'ckpt.pt', ckpt_of(tiny_gpt()))
    assert done == [f'{(tmp_path / "ckpt.pt").stat().st_size} bytes', 'rename', 'folder']


def test_best_does_not_change_when_the_latest_is_rewritten(tmp_path):
    checkpoint.save(tmp_path / 'ckpt.pt', ckpt_of(tiny_gpt(seed=1)))
    files.copy(tmp_path / 'ckpt.pt', tmp_path / 'best.pt')
    best = (tmp_path / 'best.pt').read_bytes()
    checkpoint.save(tmp_path / 'ckpt.pt', ckpt_of(tiny_gpt(seed=2)))
    assert (tmp_path / 'best.pt').read_bytes() == best != (tmp_path / 'ckpt.pt').read_bytes()
    files.copy(tmp_path / 'best.pt', tmp_path / 'again.pt')
    files.copy(tmp_path / 'best.pt', tmp_path / 'again.pt')  # two names of one file
    assert sorted(p.name for p in tmp_path.iterdir()) == ['again.pt', 'best.pt', 'ckpt.pt']


def test_sixteen_bits_are_read_as_float32_and_no_folder_is_taken_for_the_hub(tmp_path):
    ckpt = ckpt_of(tiny_gpt())
    ckpt['model'] = {k: v.bfloat16() for k, v in ckpt['model'].items()}
    checkpoint.save(tmp_path / 'half.pt', ckpt)
    assert {v.dtype for v in checkpoint.load(tmp_path / 'half.pt')['model'].values()} == {torch.float32}
    with pytest.raises(UserError, match='no checkpoint at'):
        checkpoint.load(tmp_path / 'gpt2')
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        checkpoint.save(tmp_path / 'file' / 'x.pt', ckpt)


def test_layers_that_another_version_split_otherwise_are_refused_with_the_way_out():
    wanted, other = {'h.factors.0': torch.zeros(2, 3)}, {'h.factors.0': torch.zeros(3, 2)}
    with pytest.raises(UserError, match=r'split otherwise than here \(h.factors.0 .*\), by another version.*collapse'):
        claims.check_tensors(wanted, other, 'x.pt')
    router = {'h.router': torch.zeros(2)}
    with pytest.raises(UserError, match=r'split otherwise than here .*\); there it .*a mixture .* train it again'):
        claims.check_tensors(wanted | router, other | router, 'x.pt')


def test_a_checkpoint_says_the_rates_of_its_factors_whatever_optimizer_moved_them():
    """Under muon structured_lr has no effect, but lr_scale is in the checkpoint, and a run with adamw may start from it."""
    keys = dict(linear='low_rank', rank=4, structured_lr='none')
    cfg = train_config(tiny_gpt(**keys), optimizer='muon')
    assert 'structured_lr' in cfg.idle()
    ckpt = checkpoint.pack(GPT(cfg), {}, 0, 1.0)
    assert checkpoint.build(ckpt).config.structured_lr == 'none'
    assert all((v == 1).all() for k, v in ckpt['model'].items() if k.endswith('lr_scale'))
