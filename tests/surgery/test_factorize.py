"""Dense to structured: projections are the nearest there are, counts are the published ones, nothing is lost on the way."""

import contextlib
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TINY, learn, tiny_gpt, tokens

import checkpoint
import linear
import transfer
from configurator import UserError, load
from linear.dense import Dense
from linear.factors import Factors
from model import GPT, NANOGPT_KEYS, GPTConfig
from surgery import collapse, distill, factorize, operation
from surgery.factorize import FactorizeConfig, new_layer
from surgery.operation import block_of, layer_of, put
from tokens import loader
from train import TrainConfig, train


def plain(tmp_path, name='src', **keys):
    """A checkpoint of a random model whose every parameter counts."""
    model = tiny_gpt(**dict(bias=True) | keys).eval()
    gen = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=gen)
    path = tmp_path / name / 'ckpt.pt'
    checkpoint.save(path, checkpoint.pack(model, dict(dataset='shakespeare_char'), 7, 1.5))
    return model, path


def run_factorize(tmp_path, path, *flags, out='new'):
    args = [f'--checkpoint={path}', f'--out={tmp_path}/{out}/ckpt.pt', '--windows=2', '--device=cpu', *flags]
    factorize.factorize(load(FactorizeConfig, args))
    ckpt = checkpoint.load(tmp_path / out / 'ckpt.pt')
    return checkpoint.build(ckpt), json.loads((tmp_path / out / 'ckpt.json').read_text())


@torch.no_grad()
def logits(model):
    return model(tokens(vocab=65), last_only=False)[0]


# -----------------------------------------------------------------------------
# counts and shapes


@pytest.mark.parametrize(
    'file, flags, added, total',
    [
        ('67m', '', 76_800, 67_893_504),
        ('67m', '--kronecker_shape=64,256 --kronecker_terms=10', 3_966_720, 71_783_424),
        ('81m', '', 14_155_872, 81_972_576),
        ('81m', '--kronecker_shape=768,768', 14_155_872, 81_972_576),
        ('95m', '', 28_311_600, 96_128_304),
    ],
)
def test_presets_have_the_published_parameters(file, flags, added, total):
    """67,816,704 + 24 k (d1 d2 + (768/d1) (3072/d2))."""
    args = [str(ROOT / 'config' / 'kronecker' / f'{file}.py'), *flags.split(), '--checkpoint=x', '--out=y']
    gpt2 = GPTConfig(vocab_size=50257)
    config = factorize.shaped(gpt2, load(FactorizeConfig, args))
    assert factorize.count(config, 124_439_808) == total == 67_816_704 + added
    assert len(linear.chosen(config)) == 24


@pytest.mark.parametrize('name', ['67m', '81m', '95m'])
def test_a_preset_is_the_same_model_in_train_py(name):
    path = str(ROOT / 'config' / 'kronecker' / f'{name}.py')
    gpt2 = GPTConfig(vocab_size=50257)
    of_factorize = factorize.shaped(gpt2, load(FactorizeConfig, [path, '--checkpoint=x', '--out=y']))
    of_train = dataclasses.replace(load(TrainConfig, [path]), vocab_size=50257)
    states = []
    for config in (of_factorize, of_train):
        with torch.device('meta'):
            states.append({k: v.shape for k, v in GPT(config).state_dict().items() if not k.endswith('bias')})
    assert states[0] == states[1]
    assert linear.chosen(of_train) == linear.chosen(of_factorize)


def test_the_presets_of_finetuning_load():
    for name in ('finetune', 'finetune_distilled'):
        assert load(TrainConfig, [str(ROOT / 'config' / 'kronecker' / f'{name}.py')]).init_from != 'scratch'


def test_the_layer_that_narrows_takes_the_shape_turned_round():
    config = GPTConfig(n_embd=48, n_head=2, linear='kronecker', kronecker_shape=(16, 4), kronecker_terms=1)
    for dims, first in (((48, 192), (16, 4)), ((192, 48), (4, 16))):
        s = linear.LAYERS['kronecker'](*dims, config).shape
        assert (s.e, s.b) == first


# -----------------------------------------------------------------------------
# one matrix


def dense_layer(d_in, d_out, seed=0):
    layer = Dense(d_in, d_out, bias=True)
    gen = torch.Generator().manual_seed(seed)
    layer.weight.data = torch.randn(d_out, d_in, generator=gen)
    layer.bias.data = torch.randn(d_out, generator=gen)
    return layer


def config_of(**keys):
    return GPTConfig(n_embd=16, n_head=2, n_layer=1, bias=True, **keys)


@pytest.mark.parametrize('shape, d, site', [((64, 8), (16, 64), 'c_fc'), ((64, 8), (64, 16), 'c_proj')])
def test_pruning_keeps_every_other_input_or_output(shape, d, site):
    """Krony-PT's start of the 95M model: the layer whose odd rows, or columns, are zero."""
    old = dense_layer(*d)
    new = new_layer(config_of(linear='kronecker', kronecker_shape=shape), f'h.0.mlp.{site}', old, 'prune')
    wanted = old.weight.detach().clone()
    if site == 'c_fc':
        wanted[:, 1::2] = 0
    else:
        wanted[1::2] = 0
    assert torch.equal(new.to_dense(), wanted) and torch.equal(new.bias, old.bias)
    x = torch.randn(3, d[0])
    torch.testing.assert_close(new(x), x @ wanted.T + old.bias)


def test_pruning_with_as_many_terms_as_a_tile_has_entries_is_exact():
    old = dense_layer(16, 64)
    for terms, exact in ((3, False), (4, True)):
        keys = dict(linear='kronecker', kronecker_shape=(32, 8), kronecker_terms=terms)
        new = new_layer(config_of(**keys), 'h.0.mlp.c_fc', old, 'prune')
        assert torch.equal(new.to_dense(), old.weight) == exact


@pytest.mark.parametrize('terms', [1, 2, 3, 5, 8])
def test_pruning_keeps_the_first_entries_of_every_tile_row_by_row(terms):
    """Tiles of two rows and four columns."""
    old = dense_layer(16, 64)
    keys = dict(linear='kronecker', kronecker_shape=(32, 4), kronecker_terms=terms)
    new = new_layer(config_of(**keys), 'h.0.mlp.c_fc', old, 'prune')
    kept = (torch.arange(8).view(2, 4) < terms).repeat(32, 4)
    assert torch.equal(new.to_dense(), old.weight * kept)


@pytest.mark.parametrize('d', [(16, 64), (64, 16)])
@pytest.mark.parametrize('keys', [dict(linear='low_rank', rank=5), dict(linear='expanded', expansion=5),
                                  dict(linear='block_diagonal', blocks=2)])  # fmt: skip
def test_whitened_is_the_least_output_error(d, keys):
    """Below the Frobenius-nearest one in output error and above it in Frobenius error; no nearby point is better."""
    old, gen = dense_layer(*d), torch.Generator().manual_seed(1)
    X = torch.randn(500, d[0], generator=gen) * torch.logspace(0, -2, d[0]) @ torch.randn(d[0], d[0], generator=gen)
    C = X.T @ X / len(X)
    made = {i: new_layer(config_of(**keys), 'h.0.mlp.c_fc', old, i, C).double() for i in ('nearest', 'whitened')}
    out = {i: (X.double() @ (m.to_dense() - old.weight.double()).T).square().mean().item() for i, m in made.items()}
    assert out['whitened'] < 0.9 * out['nearest']
    error = {i: factorize.errors(old.weight, m.to_dense().detach())[0] for i, m in made.items()}
    assert error['whitened'] > error['nearest']
    best = made['whitened']
    loss = (X.double() @ (best.to_dense() - old.weight.double()).T).square().mean()
    grads = torch.autograd.grad(loss, list(best.factors))
    scale = torch.autograd.grad((X.double() @ best.to_dense().T).square().mean(), list(best.factors))
    assert all(g.norm() < 1e-2 * s.norm() for g, s in zip(grads, scale))  # stationary but for the damping


@pytest.mark.parametrize('rest', [1e-4, 0.0])
@pytest.mark.parametrize('keys', [dict(linear='low_rank', rank=5), dict(linear='block_diagonal', blocks=2)])
def test_whitened_takes_inputs_of_which_nearly_all_is_one_direction(keys, rest):
    """As of a model that was hardly trained: rounding leaves C with eigenvalues below 0. rest: what is beside that direction."""
    old, gen = dense_layer(64, 256), torch.Generator().manual_seed(1)
    X = torch.randn(200, 1, generator=gen) * torch.randn(64, generator=gen) + rest * torch.randn(200, 64, generator=gen)
    C = X.T @ X / len(X)
    if rest:
        C = C.half().float()  # as rough as in TF32
        assert torch.linalg.eigvalsh(C.double())[0] < -1e-6 * C.diagonal().mean()
    new = new_layer(config_of(**keys), 'h.0.mlp.c_fc', old, 'whitened', C).to_dense()
    assert (X @ (new - old.weight).T).norm() < 1e-2 * (X @ old.weight.T).norm()


def test_rescaling_keeps_the_norm_and_the_direction():
    old = dense_layer(16, 64)
    config = config_of(linear='low_rank', rank=3, structured_norm=True)
    a, b = (new_layer(config, 'h.0.mlp.c_fc', old, 'nearest', rescale=r).to_dense().detach() for r in (False, True))
    assert b.norm() == pytest.approx(old.weight.norm().item(), rel=1e-5) and a.norm() < 0.9 * b.norm()
    torch.testing.assert_close(a / a.norm(), b / b.norm())
    error, energy = factorize.errors(old.weight.detach(), a)
    assert energy == pytest.approx(1 - error**2, rel=1e-5)
    assert factorize.errors(old.weight.detach(), b)[1] == pytest.approx(energy, rel=1e-5)


# -----------------------------------------------------------------------------
# a checkpoint


FULL = {
    'low_rank': ['--rank=32'],
    'kronecker': ['--kronecker_shape=16,8', '--kronecker_terms=32'],
    'btt': ['--blocks=4', '--rank=8'],
    'expanded': [],
}


@pytest.mark.parametrize('kind', FULL)
def test_nanogpt_to_full_rank_and_back_to_nanogpt(tmp_path, kind, capsys):
    model, _ = plain(tmp_path)
    args = {k: getattr(model.config, k) for k in NANOGPT_KEYS}
    sd = {f'_orig_mod.{k}': v for k, v in model.state_dict().items()}
    torch.save(dict(model=sd, model_args=args, iter_num=5, config={}), tmp_path / 'nano.pt')
    flags = [f'--linear={kind}', *FULL[kind], '--dataset=shakespeare_char']
    new, facts = run_factorize(tmp_path, tmp_path / 'nano.pt', *flags)
    assert (logits(new) - logits(model)).abs().max() < 1e-4
    assert all(r['error'] < 1e-5 and abs(r['alone']) < 1e-4 for r in facts['rows'])
    cfg = collapse.TransferConfig(f'{tmp_path}/new/ckpt.pt', f'{tmp_path}/back.pt', windows=2)
    transfer.collapse(cfg)
    back = torch.load(tmp_path / 'back.pt', weights_only=True)
    assert set(back['model_args']) == set(NANOGPT_KEYS) and set(back['model']) == set(model.state_dict())
    assert (logits(checkpoint.build(back)) - logits(model)).abs().max() < 1e-4


KINDS = [k for k in linear.LAYERS if k != 'dense' and linear.LAYERS[k].is_matrix]


@pytest.mark.parametrize('kind', KINDS)
def test_every_member_has_defaults_and_a_true_report(tmp_path, kind, capsys):
    """A matrix replaced alone, the whole MLP, the whole: as a model put together by hand."""
    model, path = plain(tmp_path, n_embd=36)
    flags = [f'--linear={kind}', '--linear_layers=mlp+attn', '--keep_dense=h.1.attn.*', '--look=16']
    new, facts = run_factorize(tmp_path, path, *flags)
    sites = ['h.0.attn.c_attn', 'h.0.attn.c_proj', 'h.0.mlp.c_fc', 'h.0.mlp.c_proj', 'h.1.mlp.c_fc', 'h.1.mlp.c_proj']
    assert [r['site'] for r in facts['rows']] == sites
    x, y = factorize.first(operation.real_tokens(model.config, 'shakespeare_char', 2), 16)  # one window of the two
    with torch.no_grad():
        base = model(x, y)[1].item()
        assert facts['loss_before'] == pytest.approx(base, abs=1e-5)

        def with_new(chosen):
            by_hand = tiny_gpt(bias=True, n_embd=36).eval()
            by_hand.load_state_dict(model.state_dict())
            for s in chosen:
                layer, other = operation.layer_of(by_hand, s), operation.layer_of(new, s)
                layer.weight.copy_(other.to_dense())
            return by_hand(x, y)[1].item()

        row = facts['rows'][-2]
        assert row['alone'] == pytest.approx(with_new([row['site']]) - base, abs=1e-4)
        assert facts['loss_all_of']['attn'] == pytest.approx(with_new(sites[:2]), abs=1e-4)
        assert facts['loss_all_of']['mlp'] == pytest.approx(with_new(sites[2:]), abs=1e-4)
    assert facts['params_all'] == factorize.count(new.config, facts['params_dense_all'])
    assert not list((tmp_path / 'new').glob('*.distill.pt'))


def test_other_options_and_an_untied_head(tmp_path, capsys):
    keys = dict(bias=False, mlp='swiglu', norm='rmsnorm', position='rope', n_kv_head=1, tie_head=False, qk_norm=True,
                attention_window=7)  # fmt: skip
    model, path = plain(tmp_path, **keys)
    flags = ['--linear=low_rank', '--rank=32', '--linear_layers=mlp+attn+head', '--init=whitened']
    new, facts = run_factorize(tmp_path, path, *flags)
    assert (logits(new) - logits(model)).abs().max() < 1e-3 * logits(model).abs().max()
    assert list(facts['loss_all_of']) == ['mlp', 'attn', 'head']


def test_the_source_is_left_as_it_was(tmp_path, capsys):
    _, path = plain(tmp_path)
    before = path.read_bytes()
    run_factorize(tmp_path, path, '--linear=kronecker', '--distill_iters=2')
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    'flags, parts',
    [
        ([], ['linear: must be given', 'kronecker']),
        (['--linear=btt_moe'], ['btt_moe', 'no one matrix can become it']),
        (['--linear=low_rank', '--init=prune'], ['init = prune', 'kronecker']),
        (['--linear=btt', '--init=whitened'], ['init = whitened', 'low_rank']),
        (['--linear=kronecker', '--init=random', '--rescale'], ['rescale']),
        (['--linear=kronecker', '--kronecker_shape=5,7'], ['kronecker_shape = 5,7', 'nearest']),
        (['--linear=low_rank', '--blocks=4'], ['without effect', 'blocks = 4']),
        (['--linear=low_rank', '--rank=3', '--structured_share=0.5'], ['without effect', 'structured_share = 0.5']),
        (['--linear=low_rank', '--distill_lr=0.1'], ['distill_lr', 'give distill_iters']),
        (['--linear=low_rank', '--keep_dense=h.*'], ['leave no layer']),
        (['--linear=low_rank', '--params=many'], ["params = 'many'", '81M']),
        (['--linear=low_rank', '--params=20k', '--rank=3'], ['rank', 'params chooses']),
        (['--linear=low_rank', '--params=2k'], ['params = 2k', 'name more layers']),
        (['--linear=low_rank', '--params=inf'], ["params = 'inf'", '81M']),
        (['--linear=low_rank', '--guide_iters=10'], ['guide_iters', 'leave it out']),
    ],
)
def test_mistakes_are_named(tmp_path, flags, parts, fails, capsys):
    _, path = plain(tmp_path)
    fails(lambda: run_factorize(tmp_path, path, *flags), *parts)
    assert not (tmp_path / 'new').exists()


def test_a_checkpoint_that_is_not_finite_is_not_factorized(tmp_path, fails, capsys):
    ckpt, path = plain(tmp_path)
    ckpt = checkpoint.load(path)
    ckpt['model'] = {k: v.clone() for k, v in ckpt['model'].items()}
    ckpt['model']['transformer.h.0.mlp.c_fc.weight'][0, 0] = math.nan
    checkpoint.save(path, ckpt)
    fails(lambda: run_factorize(tmp_path, path, '--linear=low_rank'), 'h.0.mlp.c_fc.weight', 'not finite')


def test_factors_are_not_factorized_again(tmp_path, fails, capsys):
    _, path = plain(tmp_path)
    run_factorize(tmp_path, path, '--linear=low_rank')
    again = tmp_path / 'new' / 'ckpt.pt'
    fails(lambda: run_factorize(tmp_path, again, '--linear=kronecker', out='x'), 'already', 'collapse it first')


# -----------------------------------------------------------------------------
# a budget


@pytest.mark.parametrize('kind', KINDS)
def test_a_budget_is_met_and_nearly_used(tmp_path, kind, capsys):
    _, path = plain(tmp_path)
    new, facts = run_factorize(tmp_path, path, f'--linear={kind}', '--params=19k', '--look=32')
    fine = linear.LAYERS[kind].knob or kind == 'kronecker'  # else the number of blocks is all there is to choose
    assert facts['params_all'] <= 19_000 and (not fine or facts['params_all'] > 15_000)
    assert facts['params_all'] == new.num_params() + new.transformer.wpe.weight.numel()
    out = capsys.readouterr().out
    tried = out.split('summed rise')[1].split('chosen')[0].splitlines()[1:]
    chosen = out.split('chosen: ')[1].splitlines()[0]
    best = next(line for line in tried if line.endswith(chosen))
    assert float(best.split()[1]) == min(float(line.split()[1]) for line in tried)


@pytest.mark.parametrize('look', [5, 48])
def test_a_budget_looks_at_as_many_training_tokens_as_asked_for(tmp_path, look, monkeypatch, capsys):
    _, path = plain(tmp_path)
    seen, damage = set(), factorize.damage
    monkeypatch.setattr(factorize, 'damage', lambda *a: (seen.add(a[3][0].numel()), damage(*a))[1])
    run_factorize(tmp_path, path, '--linear=low_rank', '--params=19k', f'--look={look}', '--windows=9')
    assert seen == {look} and f'loss on {look} validation tokens' in capsys.readouterr().out


def test_a_budget_of_all_the_parameters_is_none(tmp_path, fails, capsys):
    model, path = plain(tmp_path)
    n = sum(p.numel() for p in model.parameters())
    fails(lambda: run_factorize(tmp_path, path, '--linear=low_rank', f'--params={n}'), f'{n:,} parameters already')
    run_factorize(tmp_path, path, '--linear=low_rank', f'--params={n - 1}')


def test_blocks_that_resist_are_left_dense(tmp_path, capsys):
    """Block 1 is low-rank already and block 0 is not: a budget for one of them goes to block 0."""
    model, path = plain(tmp_path)
    for name in ('c_fc', 'c_proj'):
        W = getattr(model.transformer.h[1].mlp, name).weight
        U, S, Vh = torch.linalg.svd(W.data)
        W.data = U[:, :2] * S[:2] @ Vh[:2]
        operation.layer_of(model, f'h.0.mlp.{name}').weight.data *= 20
    # a model fitted to the text that is looked at loses by any change of what it builds on, whatever the edition
    x, y = factorize.training_windows('shakespeare_char', model.config, 512, 1337, 'cpu')
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if '.mlp.' not in name], lr=1e-2)
    learn(model, optimizer, x, y, 30)
    checkpoint.save(path, checkpoint.pack(model, dict(dataset='shakespeare_char'), 7, 1.5))
    dense = sum(p.numel() for p in model.parameters())
    budget = dense - 2 * 32 * 128 + 2 * 160 * 3
    _, facts = run_factorize(tmp_path, path, '--linear=low_rank', f'--params={budget}')
    assert facts['shape'] == '--rank=3 --keep_dense=h.0.*'


# -----------------------------------------------------------------------------
# training


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('src')
    flags = ['--max_iters=60', '--lr_decay_iters=60', '--eval_interval=60', '--log_interval=60', f'--out_dir={out}']
    train(load(TrainConfig, [*TINY, *flags]))
    return out / 'ckpt.pt'


DISTILL = ['--linear=kronecker', '--kronecker_shape=64,16', '--distill_iters=20', '--distill_batch=4']


def test_distilled_blocks_do_as_those_they_replace(tmp_path, trained, capsys):
    model = checkpoint.build(checkpoint.load(trained))
    _, far = run_factorize(tmp_path, trained, *DISTILL[:2], out='far')
    new, _ = run_factorize(tmp_path, trained, *DISTILL)
    shot = checkpoint.build(checkpoint.load(tmp_path / 'far' / 'ckpt.pt'))
    x, y = operation.real_tokens(model.config, 'shakespeare_char', 8)
    with torch.no_grad():
        base, one_shot, distilled = (m(x, y)[1].item() for m in (model, shot, new))
    assert distilled - base < 0.7 * (one_shot - base)
    old = dict(model.named_parameters())
    for name, p in new.named_parameters():  # only the new layers moved
        if '.mlp.' not in name:
            assert torch.equal(p, old[name])


def test_a_new_block_learns_on_its_own_data_from_what_the_new_blocks_before_it_make(tmp_path, trained, monkeypatch):
    """Every position is drawn once over all blocks; what block 1 takes is what the new block 0 puts out."""
    drawn, taken, batch = [], [], loader.Loader.batch
    monkeypatch.setattr(loader.Loader, 'batch', lambda self, p: (drawn.append(p), batch(self, p))[1])
    train_block = distill.train_block

    def watched(model, new, i, *rest):
        if i == 1:
            made = []
            hooks = [new.transformer.h[0].register_forward_hook(lambda m, args, y: made.append(sum(y))),
                     new.transformer.h[1].register_forward_pre_hook(lambda m, args: taken.append((args[0], made[-1])))]  # fmt: skip
        found = train_block(model, new, i, *rest)
        if i == 1:
            for hook in hooks:
                hook.remove()
        return found

    monkeypatch.setattr(distill, 'train_block', watched)
    run_factorize(tmp_path, trained, *DISTILL[:2], '--distill_iters=3', '--distill_batch=2')
    assert drawn == list(range(0, 2 * 3 * 2, 2))
    assert len(taken) == 3 and all(torch.equal(x, y) for x, y in taken)


def test_shapes_for_a_budget_are_chosen_on_training_tokens(tmp_path, trained, monkeypatch):
    looked_at, damage = [], factorize.damage

    def noted(model, config, init, tokens, device):
        looked_at.append(tokens)
        return damage(model, config, init, tokens, device)

    monkeypatch.setattr(factorize, 'damage', noted)
    run_factorize(tmp_path, trained, '--linear=low_rank', '--params=20K')
    idx, targets = looked_at[0]
    data = ROOT / 'data' / 'shakespeare_char'
    read = {split: (data / f'{split}.bin').read_bytes() for split in ('train', 'val')}
    for x, y in zip(idx, targets):
        row = torch.cat((x, y[-1:])).numpy().astype('uint16').tobytes()
        assert row in read['train'] and row not in read['val']


def test_an_interrupted_distillation_goes_on_to_the_same_end(tmp_path, trained, monkeypatch, fails, capsys):
    whole, _ = run_factorize(tmp_path, trained, *DISTILL, out='whole')
    train_block = distill.train_block

    def interrupted(model, new, i, *rest):
        if i == 1:
            raise KeyboardInterrupt
        return train_block(model, new, i, *rest)

    monkeypatch.setattr(distill, 'train_block', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_factorize(tmp_path, trained, *DISTILL)
    assert (tmp_path / 'new' / 'ckpt.distill.pt').exists() and not (tmp_path / 'new' / 'ckpt.pt').exists()
    trained_now = []
    monkeypatch.setattr(distill, 'train_block', lambda m, n, i, *r: trained_now.append(i) or train_block(m, n, i, *r))
    other = [f for f in DISTILL if 'batch' not in f]
    fails(lambda: run_factorize(tmp_path, trained, *other), 'was begun with distill_batch = 4', 'delete it')
    with monkeypatch.context() as m:  # as if another run had left its checkpoint there
        m.setattr(checkpoint, 'checksum', lambda tensors: 'crc32 0')
        fails(lambda: run_factorize(tmp_path, trained, *DISTILL), 'was begun with weights = crc32', 'delete it')
    run_factorize(tmp_path, trained, *DISTILL[:2])  # without distillation: another command, which leaves it there
    new, _ = run_factorize(tmp_path, trained, *DISTILL)
    assert trained_now == [1] and not (tmp_path / 'new' / 'ckpt.distill.pt').exists()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), new.parameters()))


def test_training_goes_on_from_factors(tmp_path, trained, capsys):
    run_factorize(tmp_path, trained, '--linear=kronecker', '--kronecker_shape=64,16', '--keep_dense=h.0.*')
    start = checkpoint.load(tmp_path / 'new' / 'ckpt.pt')
    flags = [*TINY, f'--init_from={tmp_path}/new/ckpt.pt', f'--out_dir={tmp_path}/tuned', '--max_iters=5']
    train(load(TrainConfig, flags))
    tuned = checkpoint.load(tmp_path / 'tuned' / 'ckpt.pt')
    assert tuned['model_args'] == start['model_args'] | dict(dropout=0.0)
    assert set(tuned['model']) == set(start['model']) and tuned['iter_num'] == 5
    first = json.loads((tmp_path / 'tuned' / 'metrics.jsonl').read_text().splitlines()[0])
    by_hand = checkpoint.build(start)
    x, y = operation.real_tokens(by_hand.config, 'shakespeare_char', 8)
    with torch.no_grad():
        assert first['val_loss'] == pytest.approx(by_hand(x, y)[1].item(), abs=1e-4)


def test_soft_targets_are_the_divergence_from_the_other_model():
    student, teacher, x = tiny_gpt(), tiny_gpt(1), tokens(T=17)
    for i, p in enumerate(teacher.parameters()):  # two new models are so alike that both directions are the same
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    x, y = x[:, :-1], x[:, 1:]
    theirs, mine = (m(x, last_only=False)[0].double().log_softmax(-1) for m in (teacher, student))
    kl, turned = ((a.exp() * (a - b)).sum(-1).mean().item() for a, b in ((theirs, mine), (mine, theirs)))
    assert abs(kl - turned) > 0.1
    ce = student(x, y)[1].item()
    for w in (0.25, 1.0):
        loss = student(x, y, soft=(teacher(x, last_only=False)[0], w))[1].item()
        assert loss == pytest.approx((1 - w) * ce + w * kl, abs=1e-5)
    assert student(x, y, soft=(student(x, last_only=False)[0], 1.0))[1].item() == pytest.approx(0, abs=1e-6)


def test_distill_from_trains_towards_the_teacher(tmp_path, trained, run_train, capsys, fails):
    run_factorize(tmp_path, trained, '--linear=kronecker', '--kronecker_shape=64,16')
    flags = [f'--init_from={tmp_path}/new/ckpt.pt', f'--distill_from={trained}', '--distill_weight=1', '--max_iters=30']
    flags += ['--learning_rate=3e-3', '--batch_size=8', '--log_interval=1']
    out = run_train(*flags, out='soft')
    teacher = checkpoint.build(checkpoint.load(trained))
    x, _ = operation.real_tokens(teacher.config, 'shakespeare_char', 8)
    far = []
    for path in (tmp_path / 'new', out):
        student = checkpoint.build(checkpoint.load(path / 'ckpt.pt'))
        far.append(student(x, x, soft=(teacher(x, last_only=False)[0], 1.0))[1].item())
    assert far[1] < 0.5 * far[0]
    facts = json.loads((out / 'manifest.json').read_text())
    student = checkpoint.build(checkpoint.load(out / 'ckpt.pt'))
    assert Factors(student, tokens=8 * 32)  # as trained: through the formed matrices
    wanted = student.flops_per_token() + teacher.flops_per_token() // 3
    assert facts['flops_per_token'] == wanted
    # resumed with its teacher
    run_train(f'--distill_from={trained}', '--init_from=resume', '--max_iters=31', out='soft')
    small = [f'--distill_from={trained}', '--block_size=64']
    fails(lambda: run_train(*small, out='x'), 'it sees 32 tokens')
    fails(lambda: run_train('--distill_weight=0.3', out='x'), 'distill_weight = 0.3: goes with distill_from')


def test_distillation_is_one_compiled_graph():
    torch._dynamo.reset()  # else other tests' sizes make these dynamic
    student, teacher = tiny_gpt(), tiny_gpt(1).eval().requires_grad_(False)
    x = tokens()
    soft = (teacher(x, last_only=False)[0], 0.5)
    compiled = torch.compile(student, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x, x, soft=soft)[1], student(x, x, soft=soft)[1])


def test_flops_and_tokens_of_a_distillation_are_those_of_its_blocks():
    """Block 0: old forward, new three times; block 1: both old ones, new block 0, new block 1 three times."""
    model = tiny_gpt()
    config = dataclasses.replace(model.config, linear='low_rank', rank=3)
    new = factorize.twin(model)
    layers = {s: new_layer(config, s, layer_of(model, s)) for s in linear.sites(config) if s.startswith('h.')}
    for site, layer in layers.items():
        put(new, site, layer)
    T, C = model.config.block_size, model.config.n_embd
    old = 2 * (sum(m.macs() for m in model.transformer.h[0].modules() if hasattr(m, 'macs')) + 2 * T * C)
    made = 2 * (sum(m.macs() for m in layers.values()) // 2 + 2 * T * C)
    keys = SimpleNamespace(distill_iters=5, distill_batch=4)
    both = dict(flops=5 * 4 * T * (3 * old + 7 * made), tokens=2 * 5 * 4 * T)
    assert distill.costs(model, new, layers, keys) == both and old != made
    only = {s: m for s, m in layers.items() if s.startswith('h.1')}
    put_back = {s: layer_of(model, s) for s in layers if s.startswith('h.0')}
    for site, layer in put_back.items():
        put(new, site, layer)
    assert distill.costs(model, new, only, keys) == dict(flops=5 * 4 * T * (3 * old + 3 * made), tokens=5 * 4 * T)


def test_second_moments_are_those_of_what_each_layer_takes():
    model, idx = tiny_gpt(tie_head=False).eval(), tokens()
    sites, seen = list(linear.sites(model.config)), {}
    for site in sites:
        layer_of(model, site).register_forward_pre_hook(
            lambda _, args, site=site: seen.update({site: args[0].detach()})
        )
    model(idx, last_only=False)
    blocks = list(factorize.second_moments(model, idx, sites))
    assert [list(C) for C in blocks] == [
        [s for s in sites if block_of(s, model.config) == i] for i in range(len(blocks))
    ]
    assert 'lm_head' in blocks[-1]
    for site, C in ((s, C) for block in blocks for s, C in block.items()):
        x = seen[site].flatten(0, -2)
        torch.testing.assert_close(C, sum(torch.outer(v, v) for v in x) / len(x), rtol=1e-4, atol=1e-6)


def test_losses_are_taken_with_the_matrix_where_factors_cost_more():
    model, idx = tiny_gpt(n_embd=36, n_head=2).double(), tokens()
    config = dataclasses.replace(model.config, linear='tensor_train', rank=30)
    layers = {s: new_layer(config, s, layer_of(model, s)).double() for s in ('h.0.mlp.c_fc', 'h.1.mlp.c_proj')}
    assert all(m.macs() > m.d_in * m.d_out for m in layers.values())
    seen, put_in = factorize.fitted(model, layers), factorize.twin(model)
    for site, m in layers.items():
        put(put_in, site, m)
        assert isinstance(layer_of(seen, site), factorize.Formed) and layer_of(model, site).weight is not None
    torch.testing.assert_close(seen(idx)[0], put_in(idx)[0], rtol=1e-10, atol=1e-10)
    cheap = new_layer(dataclasses.replace(config, rank=1), 'h.0.mlp.c_fc', layer_of(model, 'h.0.mlp.c_fc'))
    assert layer_of(factorize.fitted(model, {'h.0.mlp.c_fc': cheap}), 'h.0.mlp.c_fc') is cheap


def test_help_and_dispatch(script):
    r = script('transfer.py', 'factorize', '--help')
    assert '--kronecker_shape' in r.stdout and '--distill_iters' in r.stdout and 'whitened' in r.stdout


def test_the_error_of_a_block_is_relative_to_what_the_old_one_adds(monkeypatch):
    """A new block that adds nothing has error 1, whatever flows past it; the rates of its tensors fall to zero."""
    model = tiny_gpt(n_layer=1).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(100)  # a stream that is large beside what the block adds
    config = dataclasses.replace(model.config, linear='low_rank', rank=3, linear_layers='mlp+attn')
    layers = {s: new_layer(config, s, layer_of(model, s)) for s in linear.chosen(config) if s.endswith('c_proj')}
    new, rates, step = factorize.twin(model), [], torch.optim.Adam.step
    for site, layer in layers.items():
        for W in layer.factors:
            torch.nn.init.zeros_(W)
        put(new, site, layer)

    def watched(self):
        rates.append({round(g['lr'] / g['rate'], 9) for g in self.param_groups})
        return step(self)

    monkeypatch.setattr(torch.optim.Adam, 'step', watched)
    cfg = SimpleNamespace(distill_iters=40, distill_lr=1e-12, distill_batch=2)
    data = SimpleNamespace(batch=lambda position: (tokens(seed=position), None))
    found = distill.train_block(model, new, 0, list(layers.values()), data, cfg, contextlib.nullcontext())
    assert found == pytest.approx((1, 1), abs=1e-4)
    assert rates == [{round(min(1, (i + 1) / 2) * (1 - i / 40), 9)} for i in range(40)]


def test_an_interrupted_distillation_goes_on_with_the_seed_it_began_with(tmp_path):
    path, was = tmp_path / 'x.distill.pt', dict(seed=1, distill_lr=0.1, device='cpu', windows=2)
    checkpoint.save(path, dict(model={}, model_args={}, done=1, settings=was))
    assert distill.recall(path, was | dict(device='cuda', windows=9), {}) == 1  # which change nothing that is learned
    for key, value in (('seed', 2), ('distill_lr', 0.2)):
        with pytest.raises(UserError, match=f'was begun with {key} = {was[key]}; repeat that'):
            distill.recall(path, was | {key: value}, {})


def test_shapes_that_leave_much_of_a_budget_unused_are_no_candidates():
    config = dataclasses.replace(tiny_gpt().config, linear='kronecker')
    dense = tiny_gpt().num_params()
    found = factorize.shapes(config, dense * 3 // 4, dense)
    sizes = [n for n, _ in found]
    assert len(found) > 3 and max(sizes) <= dense * 3 // 4 and min(sizes) >= max(sizes) - 0.01 * dense
    assert sizes == sorted(sizes, reverse=True)


def test_a_random_layer_starts_as_one_of_its_place_in_a_new_model():
    """What writes to the residual stream starts at zero, the others do not."""
    model = tiny_gpt()
    config = dataclasses.replace(model.config, linear='btt', linear_layers='mlp+attn')
    for site in linear.chosen(config):
        made = new_layer(config, site, layer_of(model, site), init='random').to_dense()
        assert (made == 0).all() == site.endswith('c_proj'), site


def test_the_training_tokens_that_are_looked_at_go_by_the_seed():
    config = tiny_gpt().config
    look = lambda seed: factorize.training_windows('shakespeare_char', config, 256, seed, 'cpu')[0]
    assert torch.equal(look(1), look(1)) and not torch.equal(look(1), look(2)) and look(1).shape == (16, 16)


def test_the_tokens_of_a_distillation_are_those_of_all_its_blocks(tmp_path):
    _, path = plain(tmp_path)
    flags = ('--linear=low_rank', '--rank=2', '--distill_iters=2', '--distill_batch=3')
    _, facts = run_factorize(tmp_path, path, *flags)
    assert facts['tokens'] == 2 * 3 * 16 * 2  # steps, windows, tokens in each, blocks
    assert (
        checkpoint.load(tmp_path / 'new' / 'ckpt.pt')['best_val_loss'] == math.inf
    )  # the source's is of another model
