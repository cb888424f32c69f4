"""The contract of a layer, for every layer of the registry: what base.py promises, and that linear/ works alone."""

import dataclasses
import shutil
import types

import pytest
import torch
from conftest import ROOT, tiny_gpt

import linear
from configurator import UserError, gather
from linear.base import Layer
from linear.factors import Factors
from model import GPTConfig, model_args

LAYERS = [*linear.LAYERS, 'tensor_train of 3', 'expanded of 3']
SPECIAL = {'tensor_train of 3': dict(tt_cores=3), 'expanded of 3': dict(expansion_depth=3)}


def made(name, d_in=36, d_out=54, **keys):
    m = linear.LAYERS[name.split()[0]](d_in, d_out, linear.Keys(**SPECIAL.get(name, {}) | keys))
    m.start(None, 0.02, torch.Generator().manual_seed(0))
    return m


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('size', [(36, 54), (54, 36)])
def test_matrices_fold_back_and_cover_every_factor(name, size):
    m = made(name, *size)
    found, tensors = m.matrices(), dict(m.named_parameters())
    assert found.keys() <= tensors.keys()
    for key, matrix in found.items():
        t = tensors[key].detach()
        parts = matrix.unfold(t)
        assert torch.equal(matrix.fold(parts), t) and sum(p.numel() for p in parts) == t.numel()
        assert all(p.dim() == 3 for p in parts)
    for key, t in tensors.items():  # what is left out is no matrix
        assert key in found or t.dim() < 2 or 1 in t.shape or not m.is_matrix, key


def test_matrices_are_those_of_the_docstrings():
    shapes = lambda m: [
        [tuple(p.shape) for p in M.unfold(dict(m.named_parameters())[k])] for k, M in m.matrices().items()
    ]
    assert shapes(made('dense')) == [[(1, 54, 36)]]
    assert shapes(made('expanded', expansion=40, expansion_depth=3)) == [[(1, 40, 36)], [(1, 40, 40)], [(1, 54, 40)]]
    assert shapes(made('block_diagonal', blocks=3)) == [[(3, 18, 12)]]
    assert shapes(made('low_rank', rank=5)) == [[(1, 5, 36)], [(1, 54, 5)]]
    assert shapes(made('monarch', blocks=3)) == [[(3, 12, 12)], [(3, 18, 12)]]
    assert shapes(made('kronecker', kronecker_shape=(6, 4), kronecker_terms=2)) == [[(2, 9, 9)], [(2, 6, 4)]]
    assert shapes(made('low_rank_sparse', rank=5)) == [[(1, 5, 36)], [(1, 54, 5)]]
    assert shapes(made('block_dense', blocks=3, rank=6)) == [[(3, 2, 12)], [(1, 54, 6)]]
    assert shapes(made('einsum', einsum_shape=(3, 2, 6, 2, 3, 9, 4))) == [[(6, 9 * 4 * 2, 3)], [(9, 3, 4 * 6 * 2)]]
    assert shapes(made('blast', blocks=3, rank=5)) == [[(3, 5, 12)], [(5, 3, 3)], [(3, 18, 5)]]
    assert shapes(made('btt_moe', 36, 64, experts=5)) == [[(6 * 5, 8, 6)], [(8 * 5, 8, 6)]]
    mlp = tiny_gpt(mlp='moe', experts=3).transformer.h[0].mlp
    assert shapes(mlp) == [[(3, 128, 32)], [(3, 32, 128)]]
    train = made('tensor_train', tt_cores=3, rank=4)
    assert shapes(train) == [[(1, n * s, r * m)] for r, n, m, s in (W.shape for W in train.factors)]
    m, x = made('kronecker', kronecker_shape=(6, 4), kronecker_terms=2), torch.randn(36)
    (A,), (B,) = (M.unfold(m.factors[i]) for i, M in enumerate(m.matrices().values()))
    torch.testing.assert_close(sum(torch.kron(b, a) for a, b in zip(A, B)) @ x, m(x))  # they are the maps they claim
    m = made('blast', blocks=3, rank=5)
    (V,), (S,), (U,) = (M.unfold(m.factors[i]) for i, M in enumerate(m.matrices().values()))
    z = V @ x.view(3, 12, 1)  # (column, rank, 1)
    y = U @ (S @ z.transpose(0, 1)).transpose(0, 1)  # each rank has a matrix from columns to rows
    torch.testing.assert_close(y.flatten(), m(x))


@pytest.mark.parametrize('kind', ['dense', 'expanded', 'low_rank', 'low_rank_sparse', 'block_dense'])
def test_queries_keys_and_values_are_three_matrices(kind):
    model = tiny_gpt(linear=kind, linear_layers='attn', n_kv_head=1, linear_path='factored')
    layer = model.transformer.h[0].attn.c_attn
    *_, (name, matrix) = layer.matrices().items()
    parts = matrix.unfold(dict(layer.named_parameters())[name])
    assert [p.size(1) for p in parts] == [32, 16, 16]
    assert torch.equal(matrix.fold(parts), dict(layer.named_parameters())[name])
    model = tiny_gpt(linear='low_rank', linear_layers='attn')
    (name, factored), *_ = Factors(
        model, path='materialised'
    ).items()  # and so do the matrix formed from factors and these
    assert len(model.get_submodule(name).matrices()['weight'].split) == len(factored.matrices()['factors.1'].split) == 3


@pytest.mark.parametrize('name', LAYERS)
def test_a_factor_with_a_row_for_each_output_has_queries_keys_and_values_apart(name):
    """Else an optimizer of matrices would take the three for one (split=self.parts)."""
    m = made(name)
    m.parts = (18, 18, 18)
    for key, matrix in m.matrices().items():
        (whole,) = matrix._replace(split=()).unfold(dict(m.named_parameters())[key])
        assert whole.shape[:2] != (1, m.d_out) or matrix.split == m.parts, key


@pytest.mark.parametrize('name', linear.LAYERS)
def test_every_layer_fulfils_the_contract(name):
    m, L = made(name), linear.LAYERS[name]
    assert isinstance(m, Layer) and (m.d_in, m.d_out) == (36, 54) and m.guide is None
    assert m(torch.randn(2, 3, 36)).shape == (2, 3, 54)
    assert m.macs() > 0 and m.traffic() >= 0 and m.form_macs() >= 0 and 0 < m.rank() <= 36 and m.describe()
    keys = {f.name for f in dataclasses.fields(L.Keys)}
    assert all(f.metadata['help'] for f in dataclasses.fields(L.Keys))
    assert {*L.sizes, *([L.knob] if L.knob else [])} <= keys
    assert all(callable(getattr(L, s)) for s in L.starts)
    for variant in L.variants(36, 54):
        assert variant.keys() <= keys and L.step(variant) >= 1
    if L is not linear.LAYERS['dense']:
        assert len(m.decay_scale()) == len(m.factors) and m.lr_scale.numel() in (1, len(m.factors))


@pytest.mark.parametrize('name', linear.LAYERS)
def test_a_checkpoint_says_what_its_layers_read_and_nothing_of_others(name):
    """Every key set to something: those of other layers are without effect, and are not saved; nor has a share an effect
    beside a size."""
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 or 0.5, tuple: lambda v: (4.0, 4.0)}
    keys = {}
    for f in dataclasses.fields(linear.Keys):
        if f.name in linear.all_keys() and f.name not in linear.CHOOSING:
            choices = [c for c in f.metadata['choices'] if c != f.default]
            keys[f.name] = choices[0] if choices else other[f.type](f.default)
    config = GPTConfig(linear=name, **keys)
    mine = set(linear.keys_of(name))
    saved, idle = model_args(config), config.idle()
    beside = linear.LAYERS[name].idle(config)
    for k in keys:
        assert (k in saved) == (k not in idle) == (k in mine - beside), k


def test_help_names_the_readers_of_a_key_in_its_heading_alone():
    rank = {f.name: f for f in dataclasses.fields(linear.Keys)}['rank'].metadata
    assert rank['group'].startswith('linear = einsum, low_rank, ') and 'low_rank' not in rank['help']


@pytest.mark.parametrize('name', [n for n in linear.LAYERS if 'structured_share' in linear.keys_of(n)])
def test_a_share_is_without_effect_exactly_where_another_key_says_the_size(name):
    sizes = dict(rank=2, blocks=2, theta=(0.5, 0, 0.5, 0, 0.5, 0.5, 0), einsum_shape=(6, 1, 6, 1, 9, 6, 1), density=0.1,
                 kronecker_shape=(6, 6), kronecker_terms=2)  # fmt: skip
    numbers = lambda keys: sum(W.numel() for W in linear.LAYERS[name](36, 54, linear.Keys(linear=name, **keys)).factors)
    for k in [None, *linear.LAYERS[name].sizes[1:]]:
        given = {k: sizes[k]} if k else {}
        same = numbers(given | dict(structured_share=0.2)) == numbers(given | dict(structured_share=0.9))
        assert same == ('structured_share' in GPTConfig(linear=name, structured_share=0.2, **given).idle()), (
            f'{k or "no size"} given: the share changes the layer: {not same}; idle() and exact say otherwise'
        )


def test_a_rank_beside_a_shape_that_has_one_is_refused():
    for shape in (dict(theta=(0.5, 0, 0.5, 0, 0.5, 0.5, 0)), dict(einsum_shape=(6, 1, 6, 1, 9, 6, 1))):
        with pytest.raises(UserError, match=f'{next(iter(shape))} and rank: give one of them'):
            linear.LAYERS['einsum'](36, 54, linear.Keys(linear='einsum', rank=3, **shape))


def test_a_config_whose_layers_are_all_left_dense_is_refused():
    for keys in (dict(keep_dense='mlp'), dict(linear_layers='')):
        assert 'leave no layer' in GPTConfig(linear='btt', **keys).problems()[0]


def test_a_key_that_two_layers_declare_apart_is_refused(monkeypatch):
    @dataclasses.dataclass
    class Keys:
        rank: int = linear.key(3, 'another rank')

    monkeypatch.setitem(linear.LAYERS, 'mine', types.SimpleNamespace(Keys=Keys))
    with pytest.raises(UserError, match="'rank' is declared twice, for einsum and for mine"):
        gather(linear.Common, linear.LAYERS, linear.group)


def test_keys_that_python_would_pass_over_are_refused(monkeypatch):
    """Those of a class that derives from a dataclass, and is none."""
    mine = type('Keys', (linear.structured.Keys,), dict(lag=linear.key(3, 'steps')))
    monkeypatch.setitem(linear.LAYERS, 'mine', types.SimpleNamespace(Keys=mine))
    with pytest.raises(UserError, match='Keys of mine are no dataclass'):
        gather(linear.Common, linear.LAYERS, linear.group)


ALONE = """
import sys, torch, linear
from linear import LAYERS, Keys
torch.manual_seed(0)
for second in ('dense', 'btt', 'expanded'):
    layers = [LAYERS['dense'](16, 32, Keys()), LAYERS[second](32, 16, Keys(rank=2))]
    for m in layers:
        m.start(None, 0.2, torch.Generator().manual_seed(1))
    adam = torch.optim.Adam([p for m in layers for p in m.parameters()], lr=1e-2)
    x, losses = torch.randn(64, 16), []
    for _ in range(20):
        loss = (layers[1](layers[0](x).relu()) - x.roll(1, 1)).square().mean()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < 0.9 * losses[0], (second, losses)
print(linear.__file__, sorted(m for m in sys.modules if m in ('model', 'files', 'train')))
"""


def test_linear_and_the_configurator_work_alone(tmp_path, script, monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)  # compare.py puts our folder there
    shutil.copytree(ROOT / 'linear', tmp_path / 'linear', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'configurator.py', tmp_path)
    (tmp_path / 'alone.py').write_text(ALONE)
    assert script(tmp_path / 'alone.py').stdout.split() == [str(tmp_path / 'linear' / '__init__.py'), '[]']


def test_the_guide_of_queries_keys_and_values_is_three_matrices_too():
    model = tiny_gpt(linear='btt', linear_layers='attn', n_kv_head=1, guide_iters=9)
    layer = model.transformer.h[0].attn.c_attn
    assert [p.size(1) for p in layer.matrices()['guide'].unfold(layer.guide.detach())] == [32, 16, 16]


def test_what_is_written_between_factors_is_counted():
    """traffic(): each feature between input and output once as it is written, once as it is read."""
    assert made('expanded', expansion=40).traffic() == 2 * 40
    assert made('expanded', expansion=40, expansion_depth=3).traffic() == 2 * (40 + 40)
    assert made('low_rank', rank=5).traffic() == 2 * 5
    assert made('block_dense', blocks=3, rank=6).traffic() == 2 * 6
    assert made('monarch', blocks=3).traffic() == 2 * 36
    assert made('block_diagonal', blocks=3).traffic() == made('dense').traffic() == 0
    assert made('blast', blocks=3, rank=4).traffic() == 2 * (4 * 3 * 4)  # z, sum of s z, both in another order as well
    assert made('low_rank_sparse', rank=4).traffic() == 2 * 4 + 2 * (2 * 54)  # between A and B; two outputs to be added
    train = made('tensor_train', tt_cores=3, rank=4)  # each width in another order as well; so are the ends
    assert train.traffic() == 4 * sum(train.widths()[1:-1]) + 2 * 36 + 2 * 54
    one, two = (made('btt_moe', experts=4, experts_active=k) for k in (1, 2))
    assert two.traffic() == 2 * one.traffic() > 0


def test_the_size_of_a_layer_is_checked_wherever_it_stands():
    """Two blocks of different width: what fits the first need not fit the second."""
    keys = dict(n_embd=32, n_head=2, n_layer=2, linear='block_diagonal', blocks=16)
    assert not GPTConfig(mlp_expansion_factor=(4.0, 4.0), **keys).problems()
    found = '\n'.join(GPTConfig(mlp_expansion_factor=(4.0, 1.25), **keys).problems())
    assert 'blocks = 16: must divide' in found and 'h.1.mlp' in found


def test_the_keys_of_a_mixture_of_mlps_are_the_models_and_not_those_of_its_linear_layers():
    """They are kept by a checkpoint, said to be in effect, and taken over with its weights, though its layers are plain."""
    config = GPTConfig(mlp='moe', experts=4, experts_active=1, router_loss=0.1)
    keys = {'experts', 'experts_active', 'router_loss'}
    assert keys <= model_args(config).keys() and not config.idle() and not keys & set(linear.all_keys())
    assert keys == GPTConfig(experts=4, experts_active=1, router_loss=0.1).idle().keys()


def test_a_dense_layer_starts_from_the_matrix_or_with_the_std_that_it_is_given():
    m, W = made('dense'), torch.randn(54, 36)
    m.start(None, 0.5, torch.Generator().manual_seed(0))
    assert m.weight.std().item() == pytest.approx(0.5, rel=0.05)
    m.start(W, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(m.weight, W)


@pytest.mark.parametrize('name', [n for n, L in linear.LAYERS.items() if L.is_matrix])
def test_a_layer_keeps_a_copy_of_the_matrix_that_it_is_set_to(name):
    """Whoever gave the matrix may go on to change it, as a model does from which a smaller one was made."""
    m = linear.LAYERS[name](36, 54, linear.Keys(expansion_init='svd'))
    ways = [lambda W: m.start(W, 0.02, torch.Generator().manual_seed(0)), m.from_dense]
    for way in ways + ([m.follow] if hasattr(m, 'follow') else []):
        way(W := torch.randn(54, 36, generator=torch.Generator().manual_seed(1)))
        before = [p.detach().clone() for p in m.parameters()]
        W.zero_()
        assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before))
