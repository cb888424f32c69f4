"""mu-parametrization: nothing in a model grows or fades with its width, whatever its matrices are made of."""

import dataclasses
import json

import pytest
import torch
from conftest import tiny_gpt

import checkpoint
import linear
from configurator import UserError
from lab import mup
from linear import factors, structured
from model import GPT, GPTConfig
from surgery import collapse, export_hf

BASE = 64
WHOLE = dict(linear_layers='mlp+attn+head', tie_head=False)
CASES = {'dense, tied': {}, 'mixture of MLPs': dict(mlp='moe'), 'swiglu': dict(mlp='swiglu', mlp_gate=True, **WHOLE)}
CASES |= {kind: dict(linear=kind, **WHOLE) for kind in linear.LAYERS}
CASES |= {
    'expanded, orthogonal': dict(linear='expanded', expansion_init='orthogonal', linear_layers='mlp+attn'),
    'capped': dict(linear='btt', rank=4, structured_norm=True, **WHOLE),
}


@pytest.mark.parametrize('case', CASES)
def test_a_few_steps_change_outputs_and_logits_alike_at_every_width(case):
    """The coordinate check (Yang & Hu 2021) of a whole GPT. Outputs that a wrong rate moves grow fourfold and more where the
    model is four times as wide."""
    found = [mup.sizes(n, BASE, steps=5, **CASES[case]) for n in (BASE, 2 * BASE, 4 * BASE)]
    for part in found[0]:
        moved = [f[part][2] for f in found]
        assert min(moved) > 1e-3, (part, moved)
        assert all(0.25 < m / moved[0] < 2.5 for m in moved), (part, moved)
        assert all(f[part][0] < 0.2 for f in found), (part, found)  # the start


def moved_by(model) -> dict:
    """{name: factor on learning_rate} of everything that the optimizer moves."""
    return {name: rate for name, _, rate, _ in factors.leaves(model)}


@pytest.mark.parametrize('keys', [{}, dict(mlp='moe'), dict(mlp='swiglu', mlp_gate=True), WHOLE])
def test_every_matrix_takes_the_rate_of_the_width_and_nothing_else_does(keys):
    """Experts, routers and an untied head are matrices. Embeddings, biases, norms and gates have no width to sum over."""
    rates = moved_by(tiny_gpt(bias=True, mup_base=8, **keys))
    for name, rate in rates.items():
        part = name.rpartition('.')[2]
        keeps = part in ('bias', 'gate') or any(k in name for k in ('ln_', 'wte', 'wpe'))
        assert rate == (1 if keeps else 8 / 32), name
    assert {'router', 'c_fc', 'c_proj'} <= {n.rpartition('.')[2] for n in rates} or keys.get('mlp') != 'moe'


@pytest.mark.parametrize('kind', [k for k in linear.LAYERS if k != 'dense'])
def test_every_factor_takes_the_rate_of_the_width_besides_its_own(kind):
    keys = dict(linear=kind, **WHOLE, structured_norm=True, guide_iters=9, bias=True)
    plain, wide = moved_by(tiny_gpt(**keys)), moved_by(tiny_gpt(mup_base=8, **keys))
    assert plain.keys() == wide.keys()
    for name, rate in wide.items():
        matrix = 'factors' in name or name.endswith(('router', 'guide'))
        assert rate == pytest.approx(plain[name] * (8 / 32 if matrix else 1)), name
    assert any('lm_head.factors' in n for n in wide)


@pytest.mark.parametrize('kind', linear.LAYERS)
def test_a_model_can_be_built_without_memory(kind):
    """As it is before a file is believed (surgery/claims.py): a start looks at no value."""
    with torch.device('meta'):
        GPT(GPTConfig(n_embd=64, n_head=2, n_layer=2, linear=kind, mup_base=16, structured_norm=True, **WHOLE))


@pytest.mark.parametrize('kind', linear.LAYERS)
def test_residual_projections_and_a_structured_head_start_at_zero_and_learn(kind):
    model = tiny_gpt(linear=kind, **WHOLE, mup_base=8)
    twin = kind in ('dense', 'expanded')  # with a head of std 0.02 * 8 / 32
    for site in linear.sites(model.config):
        layer = model.get_submodule(linear.module_name(site))
        out = layer(torch.randn(4, layer.d_in))
        if site == 'lm_head' and twin:
            assert layer.to_dense().std().item() == pytest.approx(0.005, rel=0.1)
        else:
            assert (out == 0).all() == (site.endswith('c_proj') or site == 'lm_head'), site
        if (out == 0).all():
            grads = torch.autograd.grad(out.sum(), [p for n, p in layer.named_parameters() if n != 'router'])
            assert any((g != 0).any() for g in grads), site


def test_a_mixture_of_mlps_starts_as_one_mlp():
    experts, mlp = (tiny_gpt(mup_base=8, mlp=m).transformer.h[0].mlp for m in ('moe', 'gelu'))
    assert experts.c_fc.std().item() == pytest.approx(mlp.c_fc.weight.std().item(), rel=0.05)
    assert (experts.c_proj == 0).all() and (mlp.c_proj.weight == 0).all() and (experts.router == 0).all()
    assert tiny_gpt(mlp='moe').transformer.h[0].mlp.c_proj.std().item() == pytest.approx(0.01, rel=0.05)  # as ever


@pytest.mark.parametrize('keys', [dict(mlp='moe'), dict(tie_head=False)])
def test_decay_shrinks_a_matrix_by_its_rate(keys):
    """As AdamW does: lr * rate * weight_decay, for experts and head as for the matrix of an MLP."""
    found = {
        (rate, decay) for n, p, rate, decay in factors.leaves(tiny_gpt(mup_base=8, **keys)) if 'w' != n and p.dim() > 1
    }
    assert found == {(1, 1), (8 / 32, 1)}  # embeddings, and the rest


def randomised(**keys):
    model = tiny_gpt(**keys).eval()
    gen = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=gen)
    return model


@pytest.mark.parametrize('kind', ['expanded', 'btt', 'low_rank_sparse'])
def test_a_structured_head_collapses_and_a_plain_one_expands_to_the_same_function_and_rate(kind):
    x = torch.randint(96, (2, 16), generator=torch.Generator().manual_seed(0))
    model = randomised(linear=kind, **WHOLE, mup_base=8)
    plain = collapse.collapse_model(model)
    logits = model(x, last_only=False)[0]
    assert logits.std() > 0.03 and (plain(x, last_only=False)[0] - logits).abs().max() < 1e-5
    config = dataclasses.replace(plain.config, linear='expanded', expansion_init='orthogonal', linear_layers='head+mlp')
    large = collapse.expand_model(plain, config, 0)
    assert (large(x, last_only=False)[0] - logits).abs().max() < 1e-5
    assert large.lm_head.lr_scale.item() == large.lm_head.dense_lr_scale == plain.lm_head.dense_lr_scale == 8 / 32
    again = GPT(config).eval()  # plain weights into a model of factors
    factors.load_state(again, plain.state_dict())
    assert (again(x, last_only=False)[0] - logits).abs().max() < 1e-5
    assert again.lm_head.lr_scale.item() == 8 / 32


def test_hugging_face_is_told_that_it_cannot_express_mup():
    with pytest.raises(UserError, match='cannot express mup_base = 8'):
        export_hf.to_gpt2(tiny_gpt(mup_base=8))


def test_a_file_whose_untied_head_had_another_multiplier_is_refused(tmp_path):
    for keys, fine in (
        (dict(mup_base=8), True),
        (dict(tie_head=False), True),
        (dict(tie_head=False, mup_base=8), False),
    ):
        ckpt = checkpoint.pack(tiny_gpt(**keys), {}, 1, 1.0)
        checkpoint.save(tmp_path / 'new.pt', ckpt)
        assert checkpoint.load(tmp_path / 'new.pt')['format'] == 'nanomorph 2'
        checkpoint.save(tmp_path / 'old.pt', ckpt | dict(format='nanomorph 1'))
        if fine:
            checkpoint.load(tmp_path / 'old.pt')
        else:
            with pytest.raises(UserError, match='untied head under mup_base.* Train it again, or check out the commit'):
                checkpoint.load(tmp_path / 'old.pt')


# -----------------------------------------------------------------------------
# the cap of structured_norm


def capped(kind, d_in, d_out, residual=False, **keys):
    m = linear.LAYERS[kind](d_in, d_out, linear.Keys(structured_norm=True, **keys))
    m.start(None, 0.02, torch.Generator().manual_seed(0), residual)
    return m, [W.square().mean().sqrt().item() for W in m.capped()]


@pytest.mark.parametrize('residual', [False, True])
def test_the_cap_of_a_factor_is_the_papers_std_at_full_rank(residual):
    """compute-better-spent and einsum-search: sqrt(1 / d_in) min(1, sqrt(d_out / d_in)) of the product that a factor does, in
    which a rank of 4 counts. B of 256 -> 256 is 16 products 4 * 16 -> 16: 1 / 16. It starts at twice that (rank 1)."""
    m, used = capped('btt', 256, 256, residual, rank=4)
    assert m.shape == (16, 1, 16, 1, 16, 16, 4)
    assert m.sigma.tolist() == pytest.approx([0.25, 0.0625])
    assert m.factors[1].square().mean().sqrt().item() == pytest.approx(0 if residual else 0.125, rel=0.05)
    assert used == pytest.approx([0.25, 0 if residual else 0.0625], rel=0.05)
    with torch.no_grad():
        m.factors[1].normal_()
    assert m.capped()[1].square().mean().sqrt().item() == pytest.approx(0.0625)
    m, _ = capped('btt', 768, 3072, residual, rank=4)  # A: 24 -> 48 * 4; B: 32 * 4 -> 64
    assert m.sigma.tolist() == pytest.approx([24**-0.5, 128**-0.5 * 0.5**0.5])
    m, _ = capped('btt', 256, 256, residual, rank=1)
    assert m.sigma.tolist() == pytest.approx([0.25, 0.25])


def test_the_cap_of_other_layers_is_the_std_that_they_start_with():
    for kind in ('low_rank', 'block_dense', 'monarch', 'block_diagonal', 'blast', 'low_rank_sparse'):
        m, used = capped(kind, 256, 256)
        for sigma, W, u in zip(m.sigma.tolist(), m.factors, used):
            assert W.square().mean().sqrt().item() == pytest.approx(sigma, rel=0.1), kind
            assert u == pytest.approx(sigma, rel=0.1), kind
    m, _ = capped('btt_moe', 256, 256, experts=4)  # its experts are no rank: as rank 1
    assert m.sigma.tolist() == pytest.approx([structured.gemm_std(16, 16)] * 2)


def test_the_change_of_an_output_is_per_unit_of_rate():
    """A dense layer n -> n: sign steps of 1 on every weight change the output by about the sum of |x|, at most."""
    x = torch.manual_seed(0) and torch.randn(8, BASE)
    assert 1 < mup.moved('dense', BASE, BASE) < x.abs().sum(1).max()


def test_a_rate_that_diverged_is_never_the_best(tmp_path, capsys):
    line = dict(member='dense', width=64, base=64, iters=10, device='cpu')
    found = {8e-3: float('nan'), 1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}
    (tmp_path / 'rates.jsonl').write_text(
        ''.join(json.dumps(line | dict(lr=k, val_loss=v)) + '\n' for k, v in found.items())
    )
    mup.show(mup.MupConfig(out=str(tmp_path / 'rates.jsonl')))
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row == ['dense', '64', '3.0000', '2.0000', '2.5000', 'nan', '0.002']


def test_runs_of_other_keys_in_one_file_are_another_table_and_an_edge_is_that_of_the_rates_tried(tmp_path, capsys):
    line = dict(member='dense', width=64, base=64, iters=10, n_layer=2, device='cpu', lr=1e-3, val_loss=3.0)
    lines = [line, line | dict(lr=2e-3, val_loss=2.9), line | dict(iters=500, val_loss=1.0), line | dict(n_layer=4, val_loss=2.0),
             *(line | dict(member='btt', lr=lr, val_loss=v) for lr, v in ((1e-3, 3.0), (2e-3, 2.0), (4e-3, 2.5)))]  # fmt: skip
    (tmp_path / 'rates.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in lines))
    mup.show(mup.MupConfig(out=str(tmp_path / 'rates.jsonl')))
    short, long, deep = capsys.readouterr().out.split('\n\n')
    assert '2 blocks; val loss after 10 ' in short and 'after 500 ' in long and '4 blocks' in deep
    dense, btt = short.splitlines()[2:]
    assert dense.split() == ['dense', '64', '3.0000', '2.9000', '-', '0.002', '(edge)'] and btt.split()[-1] == '0.002'
    assert long.splitlines()[-1].split()[2] == '1.0000'


def test_sizes_are_of_the_change_since_the_start():
    """At a rate of nothing nothing changes, whatever the outputs are."""
    found = mup.sizes(BASE, BASE, steps=1, lr=1e-30)
    assert all(start > 0 and first == last == 0 for k, (start, first, last) in found.items() if k == 'logits')
