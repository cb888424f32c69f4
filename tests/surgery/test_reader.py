"""What a file claims is checked before anything is built from it; nanoGPT's checkpoints come in, and go out again."""

import math
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from conftest import losses, tiny_gpt, tokens
from fuzz import laughs, nanogpts, ours, stepped

import checkpoint
import transfer
from configurator import UserError
from surgery import claims, collapse, reader
from surgery.export_nanogpt import nanogpts_state
from tokens import loader

NANOGPT = Path(os.environ.get('NANOGPT_DIR', 'nowhere'))


def read(tmp_path, ckpt) -> dict:
    torch.save(ckpt, tmp_path / 'ckpt.pt')
    return reader.load(tmp_path / 'ckpt.pt')


# -----------------------------------------------------------------------------
# nanoGPT


@pytest.mark.parametrize('prefix', ['', '_orig_mod.', 'module.', '_orig_mod.module.', 'module._orig_mod.', 'net.gpt.'])
def test_nanogpt_checkpoints_load_whatever_wrapped_the_model(tmp_path, prefix):
    back = checkpoint.build(read(tmp_path, nanogpts(prefix, masks=True)))
    model = tiny_gpt(bias=True)
    stepped(model)
    assert torch.equal(model.eval()(tokens())[0], back(tokens())[0])


def test_two_weights_of_one_name_are_refused(tmp_path):
    ckpt = nanogpts()
    ckpt['model']['_orig_mod.transformer.wte.weight'] = ckpt['model']['transformer.wte.weight']
    with pytest.raises(UserError, match='two weights have the same name'):
        read(tmp_path, ckpt)


def test_nanogpts_moments_get_their_names_and_go_back(tmp_path):
    ckpt = nanogpts()
    back = read(tmp_path, ckpt)
    model = tiny_gpt(bias=True)
    want = stepped(model).state_dict()
    assert set(back['optimizer']) == set(want)
    for name, entry in want.items():
        assert all(torch.equal(entry[k], back['optimizer'][name][k]) for k in entry)
    assert back['position'] == 5 * 2 * 4 and back['best_val_loss'] == 1.25 and back['iter_num'] == 5
    again = nanogpts_state(back['optimizer'], model, ckpt['config'])
    assert again['param_groups'] == ckpt['optimizer']['param_groups']
    matrices = len([p for p in model.parameters() if p.dim() >= 2])
    assert [g['weight_decay'] for g in again['param_groups']] == [0.1, 0.0]
    assert again['state'][0]['exp_avg'].shape == (96, 32) and again['state'][matrices]['exp_avg'].dim() == 1


@pytest.mark.parametrize(
    'optimizer, why',
    [
        (dict(state={}, param_groups=[dict(params=[0])]), 'groups of 1 parameters and 0 moments'),
        (dict(momentum=1), 'is not that of torch'),
    ],
)
def test_an_optimizer_that_is_not_nanogpts_is_named_on_resuming(run_train, tmp_path, fails, optimizer, why):
    (tmp_path / 'run').mkdir()
    ckpt = nanogpts(optimizer=optimizer)
    assert 'optimizer' not in read(tmp_path / 'run', ckpt)
    fails(lambda: run_train('--init_from=resume'), 'no optimizer state to resume from', why)


def test_a_run_of_nanogpt_goes_on_here(run_train, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    torch.save(nanogpts('_orig_mod.'), tmp_path / 'run' / 'ckpt.pt')
    out = run_train('--init_from=resume', '--max_iters=8', '--batch_size=4', '--gradient_accumulation_steps=2')
    said = capsys.readouterr().out
    assert 'goes on at its iteration 5, best val loss 1.2500' in said and 'window 40 of its own order' in said
    assert sorted(losses(out)) == [5, 6, 7]
    done = reader.load(out / 'ckpt.pt')
    assert done['position'] == 8 * 8 and {e['step'].item() for e in done['optimizer'].values()} == {5.0}


def test_export_nanogpt_wants_a_dense_run_with_moments(run_train, tmp_path, fails):
    out = run_train('--max_iters=2', '--linear=expanded')
    export = lambda path: transfer.export_nanogpt(collapse.TransferConfig(str(path), str(tmp_path / 'n.pt')))
    fails(
        lambda: export(out / 'ckpt.pt'),
        'nanoGPT cannot express linear',
        "collapse writes a checkpoint for nanoGPT's sample.py",
    )
    torch.save(nanogpts(optimizer={}), tmp_path / 'bare.pt')
    fails(lambda: export(tmp_path / 'bare.pt'), 'has no moments of 28 parameters')
    assert not (tmp_path / 'n.pt').exists()


def test_export_nanogpt_names_what_the_run_goes_on_without(run_train, tmp_path, capsys):
    export = lambda out: transfer.export_nanogpt(
        collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'n' / 'ckpt.pt'))
    )
    export(run_train('--max_iters=2', '--hidden_lr=0.5', '--schedule=wsd', '--wsd_decay_iters=4'))
    said = capsys.readouterr().out
    assert 'NOTE: the run had hidden_lr = 0.5, schedule = wsd, which nanoGPT does not know' in said
    reset = '--linear=expanded', '--expansion_schedule=reset', '--expansion_every=1'  # a dense model, and restarts
    export(run_train('--max_iters=2', *reset, out='reset'))
    assert 'NOTE: the run had expansion_schedule = reset, which' in capsys.readouterr().out
    export(run_train('--max_iters=2', out='plain'))
    assert 'NOTE: the run had' not in capsys.readouterr().out


def test_no_command_says_to_collapse_a_mixture(run_train, tmp_path, fails):
    """Its layers are no matrices: collapsing cannot be done."""
    src = run_train('--max_iters=1', '--linear=btt_moe') / 'ckpt.pt'
    out = tmp_path / 'n.pt'
    keys = dict(checkpoint=str(src), out=str(out), windows=1)
    commands = (
        lambda: transfer.collapse(transfer.TransferConfig(**keys)),
        lambda: transfer.expand(transfer.ExpandConfig(**keys)),
        lambda: transfer.factorize(transfer.FactorizeConfig(**keys, linear='monarch')),
        lambda: transfer.grow(transfer.GrowConfig(**keys, n_embd=64, method='clone')),
        lambda: transfer.export_nanogpt(transfer.TransferConfig(**keys)),
        lambda: run_train(f'--init_from={src}', '--linear=monarch', out='other'),
    )
    for command in commands:
        said = fails(command, 'linear' if command is commands[4] else 'btt_moe')
        assert 'collapse it' not in said and 'transfer.py collapse' not in said
        assert command is commands[4] or 'is no matrix' in said
    assert not out.exists()


TRAIN = dict(dataset='tiny', device='cpu', compile=False, dtype='float32', eval_interval=10, eval_iters=1, batch_size=4,
             gradient_accumulation_steps=2, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.0, learning_rate=1e-2,
             min_lr=1e-3, warmup_iters=2, lr_decay_iters=20, log_interval=1)  # fmt: skip


def nanogpt_train(folder, out, **keys):
    """Run nanoGPT's own train.py in folder; {iteration: loss}."""
    flags = [f'--{k}={v!r}' if not isinstance(v, str) else f'--{k}={v}' for k, v in (TRAIN | keys).items()]
    r = subprocess.run([sys.executable, str(folder / 'train.py'), *flags, f'--out_dir={out}'],
                       cwd=folder, capture_output=True, text=True)  # fmt: skip
    assert r.returncode == 0, r.stderr
    return {int(i): float(v) for i, v in re.findall(r'iter (\d+): loss ([\d.]+)', r.stdout)}


@pytest.mark.skipif(not (NANOGPT / 'train.py').exists(), reason='set NANOGPT_DIR to a clone of karpathy/nanoGPT')
def test_a_run_moves_from_the_real_nanogpt_to_here_and_back(run_train, tmp_path, monkeypatch):
    """10 steps there, 5 here, and on there: the losses of a run that never moved. The two orders of the data differ, so
    both take the first window of the data for every batch."""
    folder = tmp_path / 'nanoGPT'
    (folder / 'data' / 'tiny').mkdir(parents=True)
    for name in ('train.py', 'model.py', 'configurator.py'):
        text = (NANOGPT / name).read_text()
        if name == 'train.py':  # the first window, and more digits
            text = text.replace('ix = torch.randint(len(data) - block_size, (batch_size,))',
                                'ix = torch.zeros(batch_size, dtype=torch.long)')  # fmt: skip
            text = text.replace('loss {lossf:.4f}', 'loss {lossf:.8f}')
        (folder / name).write_text(text)
    ids = np.random.default_rng(0).integers(0, 65, 1000).astype(np.uint16)
    for split in ('train', 'val'):
        ids.tofile(folder / 'data' / 'tiny' / f'{split}.bin')
    (folder / 'data' / 'tiny' / 'meta.pkl').write_bytes(pickle.dumps(dict(vocab_size=65)))
    (folder / 'data' / 'tiny' / 'meta.json').write_text('{"vocab_size": 65}')
    batch = [torch.from_numpy(ids[i : i + 32].astype(np.int64)).expand(4, 32) for i in (0, 1)]
    monkeypatch.setattr(loader, 'data_dir', lambda dataset: folder / 'data' / dataset)
    monkeypatch.setattr(loader.Loader, 'batch', lambda self, at: batch)

    there = nanogpt_train(folder, tmp_path / 'there', max_iters=10)
    whole = nanogpt_train(folder, tmp_path / 'whole', max_iters=20)
    assert there == {i: whole[i] for i in range(11)}
    flags = [f'--{k}={v}' for k, v in TRAIN.items() if k not in ('device', 'eval_interval')]
    out = run_train(*flags, '--init_from=resume', '--max_iters=15', '--eval_interval=5', out='there')
    here = losses(out)
    assert sorted(here) == list(range(10, 15))
    assert all(abs(here[i] - whole[i]) < 1e-5 for i in here), (here, whole)

    transfer.export_nanogpt(collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'back' / 'ckpt.pt')))
    back = nanogpt_train(folder, tmp_path / 'back', init_from='resume', max_iters=19)
    assert sorted(back) == list(range(15, 20))
    assert all(abs(back[i] - whole[i]) < 1e-5 for i in back), (back, whole)


# -----------------------------------------------------------------------------
# forged and damaged files

SECONDS = 5


def put(ckpt: dict, place, value):
    """A copy of ckpt with another value in one place; `place` itself to leave it out."""
    new = dict(ckpt)
    at = new
    for k in place[:-1]:
        at[k] = dict(at[k])
        at = at[k]
    if value is place:
        at.pop(place[-1], None)
    else:
        at[place[-1]] = value
    return new


def survives(path, what):
    """Read and build: well, or one line about this file; at once, and in little memory."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        checkpoint.build(reader.load(path), path)
        error = ''
    except UserError as e:
        error = str(e)
        assert str(path) in error and error.isprintable() and len(error) < 1000, (what, error)
    except BaseException as e:
        raise AssertionError(f'{what}: {type(e).__name__}: {e}') from e
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10  # MiB
    took = time.process_time() - start
    assert took < SECONDS and grown < 300, (what, took, grown)
    return error


def test_a_forged_value_is_accepted_or_named_in_one_line(tmp_path):
    """A few of the cases of make fuzz."""
    n = fuzz.cases(200)
    count = fuzz.many('checkpoints', range(n), tmp_path)
    assert count.accepted > n / 10 and count.refused > n / 2


@pytest.mark.parametrize(
    'place, value, message',
    [
        (('model_args', 'n_embd'), 10**7, 'n_embd = 10000000, and transformer.wte.weight is (96, 32)'),
        (('model_args', 'n_layer'), 10**4, 'n_layer = 10000, and the weights of 2 blocks are there'),
        (('model_args', 'n_layer'), 'two', "n_layer = two: must be of type int"),
        (('model_args', 'bias'), 'yes', 'bias = yes: must be of type bool'),
        (('model_args', 'n_head'), 0, 'n_head = 0: must be at least 1'),
        (('model_args', 'dropout'), math.nan, 'dropout = nan'),
        (('model_args', 'norm'), 'none', 'norm = none: must be one of'),
        (('model_args', 'mlp_expansion_factor'), 1e12, 'mlp_expansion_factor = 1000000000000.0'),
        (('model_args', 'expansion_depth'), 10**9, 'expansion_depth = 1000000000'),
        (('model_args', 'expansion'), 10**9, 'h.0.mlp.c_fc.factors.0 is (128, 32), not (1000000000, 32)'),
        (('model_args', 'n_layer'), 10**9, 'n_layer = 1000000000: must be at most 10000'),
        (('iter_num',), -1, 'iter_num = -1: must be between 0 and'),
        (('iter_num',), 1.5, 'iter_num = 1.5: must be of type int'),
        (('best_val_loss',), math.nan, 'best_val_loss = nan'),
        (('position',), 10**30, 'position = 1'),
        (('seconds',), 'long', 'seconds = long: must be of type float'),
        (('config',), [1], 'config is [1]: must be a dict'),
        (('config', 'dataset'), 5, 'config has dataset = 5: must be of type str'),
        (('config', 'n_layer'), None, 'config has n_layer = None: must be of type int'),
        (('scaler',), {'scale': 1.0}, 'scaler is'),
        (('iter_num',), laughs(), 'iter_num = [[[[[...], [...]]'),  # a list of 64 that reads as 2^64
        (('format',), laughs(), 'has format'),
        (('rng',), dict(cpu=1j, cuda=[None]), 'rng must be'),
        (('rng',), {'cpu': [torch.zeros(3)], 'cuda': [None]}, 'rng.cpu[0] is no state of a random generator'),
        (('rng',), {'cpu': [torch.get_rng_state().fill_(255)], 'cuda': [None]}, 'rng.cpu[0] is no state of a random generator'),
        (('config', 'eval_iters'), torch.ones(3), 'config has eval_iters = tensor([1., 1., 1.]): must hold no tensor'),
        (('config', 'betas'), [torch.ones(3)], 'must hold no tensor'),
        (('transfer',), {'since': 0}, 'transfer has no seconds'),
        (('optimizer', 'transformer.wte.weight'), {}, 'optimizer has for transformer.wte.weight'),
        (('optimizer', 'transformer.wte.weight', 'exp_avg'), torch.zeros(3), '(3,) of torch.float32: must be (96, 32)'),
        (('optimizer', 'transformer.wte.weight', 'exp_avg'), torch.nested.nested_tensor([torch.ones(2)]), 'must be (96, 32)'),
        (('optimizer', 'transformer.wte.weight', 'step'), -1, "optimizer's step of transformer.wte.weight = -1"),
        (('optimizer', 'elsewhere'), {}, 'optimizer has a state for elsewhere'),
        (('model', 'transformer.h.0.ln_1.weight'), torch.zeros(32).long(), 'h.0.ln_1.weight is of type int64'),
        (('model', 'transformer.wte.weight'), torch.zeros(96, 32).to(torch.float8_e5m2), 'wte.weight is of type float8_e5m2'),
        (('model', 'transformer.h.0.ln_1.weight'), torch.zeros(31), 'h.0.ln_1.weight is (31,), not (32,)'),
        (('model', 'transformer.h.0.ln_1.weight'), torch.nested.nested_tensor([torch.ones(2)]), 'is no tensor that this file'),
        (('model', 'lm_head.weight'), torch.zeros(96, 32), 'lm_head.weight is not transformer.wte.weight'),
    ],
)  # fmt: skip
def test_what_a_file_claims_is_held_against_what_is_in_it(tmp_path, place, value, message):
    ckpt = ours(linear='expanded') if place[-1] == 'expansion' else ours()
    assert 'iter_num' in read(tmp_path, ckpt)
    path = tmp_path / 'forged.pt'
    torch.save(put(ckpt, place, value), path)
    assert message in survives(path, place)


@pytest.mark.parametrize('kind', ['cut', 'flip'])
def test_a_cut_or_flipped_file_is_refused_in_one_line(tmp_path, kind):
    torch.save(ours(), tmp_path / 'whole.pt')
    data, path, draw = (tmp_path / 'whole.pt').read_bytes(), tmp_path / 'c.pt', random.Random(0)
    refused = 0
    for i in range(30):
        # half of the flips hit the directory at the end or the first header
        at = (
            draw.randrange(len(data))
            if i % 2
            else draw.choice([draw.randrange(200), len(data) - 1 - draw.randrange(4000)])
        )
        bad = data[:at] if kind == 'cut' else data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        path.write_bytes(bad)
        refused += bool(survives(path, (kind, at)))
    assert refused == 30 if kind == 'cut' else refused > 15  # a flip between two parts of the zip changes nothing


@pytest.mark.parametrize('part', ['scaler', 'rng', 'optimizer', 'position'])
def test_a_checkpoint_that_lacks_a_part_to_resume_from_is_refused_in_one_line(run_train, tmp_path, fails, part):
    ckpt = torch.load(run_train('--max_iters=2') / 'ckpt.pt')
    ckpt.pop(part)
    torch.save(ckpt, tmp_path / 'run' / 'ckpt.pt')
    fails(lambda: run_train('--init_from=resume'), 'to resume from')


def test_a_value_of_endless_size_in_a_config_is_shown_short_on_resuming(run_train, tmp_path, capsys):
    ckpt = torch.load(run_train('--max_iters=2') / 'ckpt.pt')
    ckpt['config']['eval_iters'] = laughs()
    torch.save(ckpt, tmp_path / 'run' / 'ckpt.pt')
    run_train('--init_from=resume', '--max_iters=3')
    assert 'eval_iters = 2 (was [[[[' in capsys.readouterr().out


def test_a_state_of_another_kind_of_random_generator_is_left_alone(run_train, tmp_path):
    ckpt = torch.load(run_train('--max_iters=2') / 'ckpt.pt')
    ckpt['rng']['tpu'] = 1.5
    torch.save(ckpt, tmp_path / 'run' / 'ckpt.pt')
    assert sorted(losses(run_train('--init_from=resume', '--max_iters=3'))) == [0, 1, 2]


@pytest.mark.parametrize('name', [b'builtins\nbytearray', b'os\nsystem', b'a' * 20_000 + b'\n' + b'b' * 20_000])
def test_a_pickle_that_names_what_no_checkpoint_holds_is_refused_at_once(tmp_path, name):
    """torch.load would take a minute over the long name, and give the bytearray as much as it asks for."""
    torch.save(ours(), tmp_path / 'whole.pt')
    change = lambda part, data: [(part, b'\x80\x02c' + name + b'\n.' if part.endswith('data.pkl') else data)]
    path = tmp_path / 'c.pt'
    path.write_bytes(fuzz.rezipped((tmp_path / 'whole.pt').read_bytes(), change))
    assert 'is no checkpoint of tensors and plain values' in survives(path, name[:20])


def test_a_pickle_that_asks_for_a_billion_bytes_is_refused_before_it_gets_them(tmp_path):
    ckpt = ours() | dict(note=bytearray(b'x'))
    torch.save(ckpt, tmp_path / 'c.pt')
    with pytest.raises(UserError, match='names .* bytearray'):
        reader.load(tmp_path / 'c.pt')


def test_random_states_of_other_numbers_of_processes_are_refused():
    state = torch.get_rng_state()
    claims.check_rng(dict(cpu=[state] * 2, cuda=[None, None]), 'x.pt')
    with pytest.raises(UserError, match='rng has 2 states of the CPU and 1 of CUDA'):
        claims.check_rng(dict(cpu=[state] * 2, cuda=[None]), 'x.pt')


def test_a_checkpoint_of_a_layer_that_is_not_here_is_not_called_damaged():
    with pytest.raises(UserError, match='linear = mine, and no such layer is here; put its file into linear/own/'):
        claims.setting('x.pt', 'linear', 'mine', 'model_args')
    with pytest.raises(UserError, match='damaged'):
        claims.setting('x.pt', 'linear', 'm\nine', 'model_args')
