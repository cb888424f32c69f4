"""The model computes nanoGPT's function; generation with a cache is generation without one."""

import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_gpt, tokens
from torch.nn import functional as F

import checkpoint
from linear.factors import Factors
from model import NANOGPT_KEYS, model_args, pick


def reference_gpt2(sd, x, n_layer, n_head):
    """GPT-2 written out from its paper, on a nanoGPT state dict: an implementation that shares no code with ours."""

    def norm(v, name):
        v = (v - v.mean(-1, keepdim=True)) / torch.sqrt(v.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return v * sd[f'{name}.weight'] + sd.get(f'{name}.bias', 0)

    def lin(v, name):
        return v @ sd[f'{name}.weight'].T + sd.get(f'{name}.bias', 0)

    B, T = x.shape
    h = sd['transformer.wte.weight'][x] + sd['transformer.wpe.weight'][:T]
    for i in range(n_layer):
        p = f'transformer.h.{i}'
        q, k, v = lin(norm(h, f'{p}.ln_1'), f'{p}.attn.c_attn').chunk(3, -1)
        heads = []
        for a, b, c in zip(q.chunk(n_head, -1), k.chunk(n_head, -1), v.chunk(n_head, -1)):
            scores = a @ b.transpose(-1, -2) / math.sqrt(a.size(-1))
            scores = scores + torch.full((T, T), -math.inf).triu(1)
            heads.append(scores.softmax(-1) @ c)
        h = h + lin(torch.cat(heads, -1), f'{p}.attn.c_proj')
        m = lin(norm(h, f'{p}.ln_2'), f'{p}.mlp.c_fc')
        m = 0.5 * m * (1 + torch.erf(m / math.sqrt(2)))
        h = h + lin(m, f'{p}.mlp.c_proj')
    return norm(h, 'transformer.ln_f') @ sd['lm_head.weight'].T


def roughened(model):
    """Random LayerNorm weights and biases too, so that no term of the formula is idle."""
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


@pytest.mark.parametrize('bias', [True, False])
def test_computes_what_gpt2_computes(bias):
    model = roughened(tiny_gpt(bias=bias)).double().eval()
    x, y = tokens(), tokens(seed=1)
    want = reference_gpt2(model.state_dict(), x, 2, 2)
    got, loss = model(x, last_only=False)
    assert loss is None and (got - want).abs().max() < 1e-10
    assert (model(x)[0] - want[:, -1:]).abs().max() < 1e-10
    logits, loss = model(x, y)
    assert logits is None
    assert abs(loss - F.cross_entropy(want.flatten(0, 1), y.flatten())) < 1e-10


def test_targets_of_minus_one_do_not_count():
    model, x, y = tiny_gpt(), tokens(), tokens(seed=1)
    y2 = y.clone()
    y2[1] = -1
    assert torch.isclose(model(x, y2)[1], model(x[:1], y[:1])[1])


def test_state_dict_has_nanogpts_names():
    names = set(tiny_gpt(n_layer=1, bias=True).state_dict())
    blocks = ['ln_1', 'attn.c_attn', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj']
    want = {f'transformer.h.0.{b}.{p}' for b in blocks for p in ('weight', 'bias')}
    want |= {f'transformer.{n}' for n in ('wte.weight', 'wpe.weight', 'ln_f.weight', 'ln_f.bias')} | {'lm_head.weight'}
    assert names == want
    expanded = tiny_gpt(n_layer=1, bias=True, linear='expanded')
    assert len(Factors(expanded)) == 2
    assert set(expanded.state_dict()) == want  # W is at hand, factors beside


def test_model_args_of_a_plain_model_hold_only_nanogpts_keys():
    assert set(model_args(tiny_gpt().config)) == set(NANOGPT_KEYS)
    assert model_args(tiny_gpt(linear='expanded', expansion=50).config)['expansion'] == 50


def test_parameters_are_counted_with_and_without_factors():
    assert tiny_gpt(dropout=0.5, n_head=4).num_params() == tiny_gpt().num_params()
    model = tiny_gpt(linear='expanded', expansion=100)
    assert model.num_params_collapsed() == tiny_gpt().num_params()
    assert model.num_params() - tiny_gpt().num_params() == 2 * 2 * (100 * (32 + 128) - 32 * 128)


STDS = {  # GPT-2's: what writes to the residual stream by the number of such layers
    'transformer.wte.weight': 0.02, 'transformer.wpe.weight': 0.02, 'lm_head.weight': 0.02,
    'attn.c_attn.weight': 0.02, 'attn.c_proj.weight': 0.02 / 6**0.5,
    'mlp.c_fc.weight': 0.02, 'mlp.c_gate.weight': 0.02, 'mlp.c_proj.weight': 0.02 / 6**0.5,
    'mlp.c_fc': 0.02, 'mlp.c_proj': 0.02 / 6**0.5, 'mlp.router': 0.0,
}  # fmt: skip


@pytest.mark.parametrize('mlp', ['gelu', 'swiglu', 'moe'])
def test_every_tensor_starts_with_the_std_of_its_role(mlp):
    size = dict(n_layer=3, n_head=4, n_embd=128, vocab_size=512, block_size=128)
    for name, p in tiny_gpt(**size, mlp=mlp, bias=True, tie_head=False).named_parameters():
        key = name.split('.', 3)[-1] if '.h.' in name else name
        if key in STDS:
            assert p.std().item() == pytest.approx(STDS[key], rel=0.05), name
            assert abs(p.mean().item()) < 0.02 * 0.05, name
        else:
            assert (p == (1 if key.endswith('weight') else 0)).all(), name  # norms and biases
    tied = tiny_gpt(**size)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert tied.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize('mlp', ['gelu', 'swiglu', 'moe'])
def test_dropout_acts_in_its_four_places_in_training_and_nowhere_in_evaluation(mlp):
    model, x, h = tiny_gpt(dropout=0.5, n_layer=1, mlp=mlp, bias=True), tokens(), torch.randn(8, 16, 32)
    block = model.transformer.h[0]
    places = dict(embeddings=lambda: model.embed(x)[0], attention=lambda: block.attn(h), mlp=lambda: block.mlp(h))
    model.eval()
    kept = {name: f() for name, f in places.items()}
    model.train()
    for name, f in places.items():
        assert (f() == 0).float().mean().item() == pytest.approx(0.5, abs=0.1), name
    block.attn.resid_dropout.p = 0.0  # what is left acts on the weights of attention
    assert not torch.equal(block.attn(h), block.attn(h))
    model.eval()
    for name, f in places.items():
        assert torch.equal(f(), kept[name]) and (f() != 0).all(), name
    assert torch.equal(model(x, x)[1], model(x, x)[1])


@pytest.mark.parametrize('keys', [{}, dict(linear='expanded', linear_path='factored')])
def test_cache_gives_the_tokens_that_recomputing_gives(keys):
    model = roughened(tiny_gpt(**keys)).eval()
    idx = prompt = tokens(B=2, T=5)
    new = torch.cat(list(model.generate(prompt, 20, temperature=0)), 1)  # beyond block_size = 16: the window slides
    for _ in range(20):
        logits, _ = model(idx[:, -16:])
        idx = torch.cat((idx, logits[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(new, idx[:, 5:])


def test_generation_is_reproducible_by_its_seed():
    model = tiny_gpt().eval()
    draw = lambda seed: torch.cat(
        list(model.generate(tokens(B=1, T=3), 12, generator=torch.Generator().manual_seed(seed))), 1
    )
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_top_k_and_top_p_keep_the_likeliest_only():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))

    def support(**kw):
        g = torch.Generator().manual_seed(0)
        args = dict(temperature=1.0, top_k=None, top_p=None) | kw
        return {pick(logits, **args, generator=g).item() for _ in range(300)}

    assert support() == {0, 1, 2, 3}
    assert support(top_k=2) == {0, 1}
    assert support(top_p=0.45) == {0}
    assert support(top_p=0.79) == {0, 1}
    assert support(top_p=0.81) == {0, 1, 2}
    assert support(temperature=0) == {0}


@pytest.mark.slow
def test_compiles_into_one_graph_that_returns_only_the_loss():
    """Dense attention and an expanded MLP; a break in the graph raises."""
    model = tiny_gpt(n_layer=1, linear='expanded', linear_path='factored', expansion_depth=3)
    x, y = tokens(), tokens(seed=1)
    compiled = torch.compile(model, fullgraph=True)
    want = model(x, y)[1]
    got = compiled(x, y)[1]
    assert torch.isclose(got, want, atol=1e-5)
    got.backward()


@pytest.mark.slow
def test_expanded_and_dense_share_one_compiled_graph():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    for keys in ({}, dict(linear='expanded'), dict(linear='expanded', expansion_depth=4)):
        model = tiny_gpt(**keys)
        Factors(model)
        torch.compile(model, fullgraph=True, backend=counter)(tokens(), tokens(seed=1))[1].backward()
    assert counter.frame_count == 1


NANOGPT = Path(os.environ.get('NANOGPT_DIR', 'nowhere'))


@pytest.mark.skipif(not (NANOGPT / 'model.py').exists(), reason='set NANOGPT_DIR to a clone of karpathy/nanoGPT')
@pytest.mark.parametrize('bias', [True, False])
def test_the_real_nanogpt_agrees(tmp_path, bias):
    """Both ways with the unmodified project: its checkpoint in ours, our collapsed one in its sample.py."""
    from surgery import reader
    from surgery.collapse import collapse_model

    model = roughened(tiny_gpt(bias=bias, linear='expanded', vocab_size=50304)).eval()
    plain = collapse_model(model)
    path = tmp_path / 'out' / 'ckpt.pt'
    checkpoint.save(path, checkpoint.pack(plain, {'dataset': 'none'}, 3, 1.0))
    code = f"""
import sys, torch; sys.path.insert(0, {str(NANOGPT)!r})
from model import GPT, GPTConfig
ckpt = torch.load({str(path)!r})
m = GPT(GPTConfig(**ckpt['model_args'])); m.load_state_dict(ckpt['model']); m.eval()
x = torch.randint(65, (2, 16), generator=torch.Generator().manual_seed(0))
logits, loss = m(x, x)
sd = {{'_orig_mod.' + k: v for k, v in m.state_dict().items()}}
torch.save(dict(model=sd, model_args=ckpt['model_args'], iter_num=1, best_val_loss=2.0, config={{}}, optimizer={{}}), {str(tmp_path / 'theirs.pt')!r})
torch.save(logits, {str(tmp_path / 'logits.pt')!r})
"""
    subprocess.run([sys.executable, '-c', code], check=True, cwd=NANOGPT)
    want = torch.load(tmp_path / 'logits.pt')
    back = checkpoint.build(reader.load(tmp_path / 'theirs.pt'))
    for m in (plain, back):
        assert (m(tokens(), last_only=False)[0] - want).abs().max() < 1e-4
    args = ['--device=cpu', f'--out_dir={tmp_path / "out"}', '--num_samples=1', '--max_new_tokens=5', '--start=hi']
    there = tmp_path / 'nanoGPT'  # with a vocabulary: that of GPT-2 it would download
    (there / 'data' / 'none').mkdir(parents=True)
    for name in ('sample.py', 'model.py', 'configurator.py'):
        shutil.copy(NANOGPT / name, there)
    meta = dict(stoi=dict(h=0, i=1), itos=dict.fromkeys(range(50304), 'x'))
    (there / 'data' / 'none' / 'meta.pkl').write_bytes(pickle.dumps(meta))
    r = subprocess.run([sys.executable, 'sample.py', *args], cwd=there, capture_output=True, text=True)
    assert r.returncode == 0 and '-----' in r.stdout, r.stderr


def test_a_guide_is_counted_in_the_flops():
    keys = dict(linear='btt', linear_path='factored')
    led, alone = tiny_gpt(guide_iters=9, **keys), tiny_gpt(**keys)
    guides = sum(p.numel() for name, p in led.named_parameters() if name.endswith('guide'))
    assert guides == 2 * 2 * 32 * 128 and led.flops_per_token() - alone.flops_per_token() == 6 * guides


def test_layers_that_cannot_be_collapsed_are_counted_as_they_are():
    model = tiny_gpt(linear='btt_moe', linear_layers='mlp')
    assert model.num_params_collapsed() == model.num_params()


@pytest.mark.parametrize('path', ['factored', 'materialised'])
def test_a_guide_is_none_of_the_parameters_that_stay(path):
    """So a run counts as many before the guides have faded out as one that is resumed afterwards."""
    led, alone = (tiny_gpt(linear='btt', linear_layers='mlp+attn', bias=True, guide_iters=n) for n in (9, 0))
    beside, without = Factors(led, path=path), Factors(alone, path=path)
    assert led.num_params(beside) == alone.num_params(without)
    dense = tiny_gpt(bias=True).num_params()
    assert led.num_params_collapsed(beside) == alone.num_params_collapsed(without) == dense
