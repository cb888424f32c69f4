"""Growth: function-preserving methods keep the function, gradients and AdamW's steps; the others are what they say."""

import dataclasses
import itertools
import json
import math
import shutil
import types

import conftest
import pytest
import torch
from conftest import ROOT, TINY, learn, tokens

import checkpoint
from configurator import UserError, load
from linear import factors
from model import GPT, NANOGPT_KEYS, GPTConfig
from surgery import start
from surgery.grow import growth, ligo, widen
from surgery.grow.growth import GrowConfig, grow_moments, grow_weights, parse, settle
from surgery.operation import dense_config
from train import TrainConfig, Trainer, train

# every architecture option; layers that are not dense are refused by growth, by name
OPTIONS = {'gpt2': {}, 'mup': dict(mup_base=16)} | {k: v for k, v in conftest.OPTIONS.items() if k != 'expanded'}
PAIRS = [p for p in itertools.combinations(OPTIONS, 2) if p not in {('swiglu', 'relu2'), ('gqa', 'mqa')}]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are faster without help."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def small_gpt(*names, **keys):
    """A float64 GPT whose every parameter is random, norms, biases and gates included."""
    args = dict(block_size=16, vocab_size=65, n_layer=2, n_head=4, n_embd=32, bias=False)
    for name in names:
        args |= OPTIONS[name]
    model = GPT(GPTConfig(**args | keys)).double().eval()
    gen = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape, generator=gen, dtype=torch.float64) * (0.3 if p.dim() > 1 else 0.5)
        p.data += name.endswith('weight') and p.dim() == 1
        if name.endswith('gate'):
            p.data = p.data.sigmoid()
    return model


def grown(model, method, noise=0.0, seed=0, **sizes):
    how = parse(method, noise, seed)
    new = settle(model.config, dataclasses.replace(model.config, **sizes), how)
    large = GPT(new).double().eval()
    factors.load_state(large, grow_weights(model.state_dict(), model.config, new, how))
    return large


@torch.no_grad()
def difference(a, b):
    x = tokens(vocab=65)
    return (a(x, last_only=False)[0] - b(x, last_only=False)[0]).abs().max().item()


def sizes_for(c, D, L=2, head=8):
    """Sizes of a large twin of config c: whole groups of heads, per-layer factors repeated with their blocks."""
    H = D // head
    sizes = dict(n_embd=D, n_head=H, n_layer=L, n_kv_head=c.n_kv_head * H // 4 if c.n_kv_head > 1 else c.n_kv_head)
    if isinstance(c.mlp_expansion_factor, tuple):
        sizes['mlp_expansion_factor'] = tuple(c.mlp_expansion_factor[i * 2 // L] for i in range(L))
    return sizes


PRESERVING = {  # method: (noise, width, layers)
    'clone': (0.5, 96, 2),
    'lemon': (0.5, 80, 2),
    'net2wider': (0.5, 64, 2),
    'spectrum': (0.0, 64, 2),
    'clone+zero_block': (0.5, 64, 5),
    'zero_block': (0.0, 32, 5),
}
REFUSED = {  # what cannot be exact and is said to be so: (method, options that together rule it out)
    ('lemon', ('post_norm',)),
    ('zero_block', ('post_norm', 'plain_norm')),
    ('clone+zero_block', ('post_norm', 'plain_norm')),
}


def refused(method, names):
    if method == 'lemon' and ('rmsnorm' in names or 'plain_norm' in names):
        return False
    return any(m == method and set(options) <= set(names) for m, options in REFUSED)


@pytest.mark.parametrize('method', PRESERVING)
def test_function_preserving_methods_are_exact_whatever_the_options(method):
    noise, D, L = PRESERVING[method]
    pairs = [p for p in PAIRS if method in ('clone', 'lemon') or 'post_norm' in p]
    for names in [(n,) for n in OPTIONS] + pairs:
        model = small_gpt(*names)
        if refused(method, names):
            with pytest.raises(UserError, match='post_norm'):
                grown(model, method, noise, **sizes_for(model.config, D, L))
        else:
            large = grown(model, method, noise, **sizes_for(model.config, D, L))
            assert difference(model, large) < 1e-10, names


def test_heads_of_other_width_and_number_are_exact():
    cases = [
        (dict(), dict(n_embd=64, n_head=4)),  # 8 -> 16 wide
        (dict(), dict(n_embd=96, n_head=4)),
        (dict(), dict(n_embd=96, n_head=6)),  # wider and more
        (dict(n_kv_head=2), dict(n_embd=64, n_head=8, n_kv_head=2)),
        (dict(n_kv_head=2), dict(n_embd=64, n_head=8, n_kv_head=8)),  # to as many as query heads
        (dict(n_kv_head=1), dict(n_embd=96, n_head=12, n_kv_head=3)),
        (dict(n_kv_head=2), dict(n_embd=32, n_kv_head=4)),  # key-value heads only
        (dict(mup_base=16), dict(n_embd=64, n_head=4)),
    ]
    for args, sizes in cases:
        model = small_gpt('bias', **args)
        method = 'net2wider' if sizes['n_embd'] == 32 else 'clone'
        assert difference(model, grown(model, method, 0.3, **sizes)) < 1e-10, sizes


def test_net2wider_takes_any_number_of_hidden_units():
    model = small_gpt('bias', 'swiglu')
    large = grown(model, 'net2wider', 0.3, mlp_expansion_factor=5.3)
    assert large.config.hidden(0) > model.config.hidden(0) and difference(model, large) < 1e-10


def test_the_clone_of_gpt2_is_hypercloning():
    """Against the rules of the paper, written down per tensor."""
    model, n = small_gpt('bias'), 3
    old, new = model.state_dict(), grown(model, 'clone', n_embd=96, n_head=12).state_dict()
    per_head = old['transformer.h.1.attn.c_attn.weight'].view(3, 4, 8, 32)
    expect = {
        'transformer.wte.weight': old['transformer.wte.weight'].repeat(1, n),
        'transformer.wpe.weight': old['transformer.wpe.weight'].repeat(1, n),
        'transformer.h.1.ln_2.bias': old['transformer.h.1.ln_2.bias'].repeat(n),
        'transformer.h.1.attn.c_attn.weight': per_head.repeat(1, n, 1, n).view(3 * 96, 96) / n,
        'transformer.h.1.attn.c_attn.bias': old['transformer.h.1.attn.c_attn.bias'].view(3, 32).repeat(1, n).view(-1),
        'transformer.h.1.attn.c_proj.weight': old['transformer.h.1.attn.c_proj.weight'].repeat(n, n) / n,
        'transformer.h.0.mlp.c_fc.weight': old['transformer.h.0.mlp.c_fc.weight'].repeat(n, n) / n,
        'transformer.h.0.mlp.c_proj.bias': old['transformer.h.0.mlp.c_proj.bias'].repeat(n),
        'transformer.ln_f.weight': old['transformer.ln_f.weight'].repeat(n) / n,
        'transformer.ln_f.bias': old['transformer.ln_f.bias'].repeat(n) / n,
    }
    for name, W in expect.items():
        assert torch.allclose(new[name], W, atol=1e-15), name


def gradients(model):
    x, y = tokens(vocab=65), tokens(vocab=65, seed=1)
    model(x, y)[1].backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    'names', [(n,) for n in OPTIONS] + [('untied', 'plain_norm'), ('rmsnorm', 'swiglu', 'rope'), ('untied', 'mup')]
)
def test_gradients_of_a_grown_model_are_the_grown_gradients(names):
    """The rule that moves AdamW's moments, for copies, other heads and padding."""
    model = small_gpt(*names)
    c = model.config
    small = gradients(model)
    cases = [('clone', sizes_for(c, 96)), ('net2wider', sizes_for(c, 64))]
    cases += [('lemon', sizes_for(c, 80))] if 'rmsnorm' in names else []  # LayerNorm's mean reaches into the padding
    cases += [('clone', sizes_for(c, 64, head=16))] if not {'gqa', 'qk_norm', 'rope'} & set(names) else []
    for method, sizes in cases:
        large = grown(model, method, **sizes)
        got = gradients(large)
        state = {n: dict(step=torch.tensor(3.0), exp_avg=g, exp_avg_sq=g.square()) for n, g in small.items()}
        moved = grow_moments(state, c, large.config, parse(method, 0, 0))
        assert moved.keys() == got.keys()
        pad = sizes['n_embd'] % 32
        for n, g in got.items():
            m, v = moved[n]['exp_avg'], moved[n]['exp_avg_sq']
            for dim in range(g.dim()):  # what lies in padding has gradients of its own
                if pad and g.size(dim) == sizes['n_embd'] and 'heads' not in n:
                    g, m, v = (t.narrow(dim, 0, g.size(dim) - pad) if t.size(dim) > 64 else t for t in (g, m, v))
            scale = g.abs().max()
            assert (m - g).abs().max() < 1e-9 * scale + 1e-13, (method, n)
            assert (v - g.square()).abs().max() < 1e-9 * scale**2 + 1e-13, (method, n)
            assert moved[n]['step'] == 3


@pytest.mark.parametrize('names', [(), ('bias', 'relu2', 'gqa'), ('untied', 'rmsnorm', 'rope')])
@pytest.mark.parametrize('n', [2, 3])
def test_growing_a_step_equals_a_step_of_the_grown(names, n):
    """AdamW with moved moments, after two steps of its own. Rates and epsilons by the derivation for copies: what is
    divided by n moves at lr/n with n times the decay; epsilon goes with the gradient."""
    model = small_gpt(*names)
    sizes, how, lr, eps, decay = sizes_for(model.config, 32 * n), parse('clone', 0, 0), 1e-2, 1e-3, 0.1
    x, y = tokens(vocab=65), tokens(vocab=65, seed=1)
    tied = model.config.tie_head

    def adamw(m, n):
        groups = []
        for name, p in m.named_parameters():
            matrix = name.startswith('transformer.h.') and p.dim() == 2
            divided = matrix or name.startswith('transformer.ln_f' if tied else 'lm_head')  # holds 1/n
            whole = name.startswith('transformer.ln_f') if tied else name == 'lm_head.weight'  # its gradient does not
            wd = decay * (n if divided else 1) * (p.dim() == 2)
            groups.append(
                dict(params=[p], lr=lr / (n if divided else 1), eps=eps / (1 if whole else n), weight_decay=wd)
            )
        return torch.optim.AdamW(groups)

    def step(m, opt, times=1):
        for _ in range(times):
            opt.zero_grad()
            m(x, y)[1].backward()
            opt.step()

    opt = adamw(model, 1)
    step(model, opt, 2)
    names_of = [name for name, _ in model.named_parameters()]
    state = {name: opt.state_dict()['state'][i] for i, name in enumerate(names_of)}
    large = grown(model, 'clone', **sizes)
    moved = grow_moments(state, model.config, large.config, how)
    big = adamw(large, n)
    full = big.state_dict()
    full['state'] = {i: moved[name] for i, (name, _) in enumerate(large.named_parameters())}
    big.load_state_dict(full)
    step(model, opt)
    step(large, big)
    expect = grow_weights(model.state_dict(), model.config, large.config, how)
    for name, W in large.state_dict().items():
        assert (W - expect[name]).abs().max() < 1e-12, name


def test_copies_without_noise_stay_equal_and_noise_parts_them():
    x, y = tokens(vocab=65), tokens(vocab=65, seed=1)

    def ranks(method, noise):
        large = grown(small_gpt('bias'), method, noise, n_embd=64, n_head=8).train()
        opt = torch.optim.AdamW(large.parameters(), lr=1e-2)
        learn(large, opt, x, y, 5)
        return torch.linalg.matrix_rank(large.transformer.h[0].mlp.c_fc.weight, rtol=1e-9).item()

    assert ranks('clone', 0.0) == 32 and ranks('double', 0.0) == 32
    assert ranks('clone', 0.1) > 40 and ranks('spectrum', 0.0) > 40 and ranks('bert2bert', 0.0) > 40


def test_a_new_block_learns_through_what_was_zeroed():
    large = grown(small_gpt('bias'), 'zero_block', n_layer=4)
    g = gradients(large)
    assert large.transformer.h[1].attn.c_proj.weight.abs().max() == 0  # blocks 1 and 3 are new
    for block in (1, 3):
        for name in ('attn.c_proj', 'mlp.c_proj'):
            assert g[f'transformer.h.{block}.{name}.weight'].abs().max() > 1e-6
        for name in ('attn.c_attn', 'mlp.c_fc'):
            assert g[f'transformer.h.{block}.{name}.weight'].abs().max() == 0


def test_what_begins_as_zero_is_new_to_adam_and_a_copy_keeps_its_age():
    model = small_gpt('bias')
    c = model.config
    state = {
        n: dict(step=torch.tensor(7.0), exp_avg=torch.ones_like(p), exp_avg_sq=torch.ones_like(p))
        for n, p in model.named_parameters()
    }
    moved = grow_moments(state, c, dataclasses.replace(c, n_layer=4), parse('zero_block', 0, 0))
    for name, s in moved.items():
        new = name.startswith(('transformer.h.1.', 'transformer.h.3.')) and 'c_proj.' in name
        assert s['step'] == (0 if new else 7), name
        assert (s['exp_avg'] == (0 if new else 1)).all() and (s['exp_avg_sq'] == (0 if new else 1)).all(), name


@pytest.mark.parametrize('noise', [0.3, 1.0])
def test_noise_has_the_size_asked_for_and_cancels_over_copies(noise):
    model = small_gpt()
    plain, noisy = (grown(model, 'clone', x, n_embd=64, n_head=8) for x in (0.0, noise))
    for name in ('attn.c_attn', 'mlp.c_fc', 'mlp.c_proj'):
        W, V = (m.get_submodule(f'transformer.h.1.{name}').weight.data for m in (plain, noisy))
        assert ((V - W).norm() / W.norm()).item() == pytest.approx(noise, rel=0.05), name
        half = W.size(1) // 2
        assert ((V - W)[:, :half] + (V - W)[:, half:]).abs().max() < 1e-12  # W/n + N and W/n - N


def test_depth_methods_order_the_blocks():
    plan = lambda method, L: [j for j, _ in growth.DEPTH[method](3, L)]
    assert plan('stack', 7) == [0, 1, 2, 0, 1, 2, 0]
    assert plan('interleave', 7) == [0, 0, 0, 1, 1, 2, 2]
    assert [new for _, new in growth.DEPTH['zero_block'](3, 7)] == [False, True, True, False, True, False, True]
    model = small_gpt()
    sd, new = model.state_dict(), grown(model, 'stack', n_layer=4).state_dict()
    for i, j in enumerate((0, 1, 0, 1)):
        for key in ('ln_1.weight', 'attn.c_attn.weight', 'mlp.c_proj.weight'):
            assert torch.equal(new[f'transformer.h.{i}.{key}'], sd[f'transformer.h.{j}.{key}'])


def test_attention_keeps_its_scale_when_the_depth_grows():
    large = grown(small_gpt(attn_scale=0.0), 'zero_block', n_layer=4)
    assert large.config.attn_scale == pytest.approx(0.5)  # 1/sqrt(2*2), not 1/sqrt(2*4)


def q_of(model, layer=0):
    return model.transformer.h[layer].attn.c_attn.weight.data[: model.config.n_embd]


def test_raw_methods_are_the_seeds():
    model = small_gpt()
    W, ones = q_of(model), torch.ones(2, 2, dtype=torch.float64)
    assert torch.equal(q_of(grown(model, 'double', n_embd=64, n_head=8)), torch.kron(W, ones))
    padded = torch.eye(48, dtype=torch.float64)
    padded[:32, :32] = W
    large = grown(model, 'one_hot', n_embd=48, n_head=6)
    assert torch.equal(q_of(large), padded)
    fc = large.transformer.h[0].mlp.c_fc.weight.data
    assert torch.equal(fc[:128, :32], model.transformer.h[0].mlp.c_fc.weight) and fc[40, 40] == 1 and fc[40, 41] == 0


def test_aki_takes_new_units_from_the_layer_above():
    model = small_gpt()
    large, clone = (grown(model, m, n_embd=64, n_head=8) for m in ('bert2bert', 'clone'))
    assert torch.equal(q_of(large)[:32], q_of(clone)[:32])
    assert torch.equal(q_of(large)[32:], q_of(clone, layer=1)[32:])
    assert torch.equal(q_of(large, layer=1), q_of(clone, layer=1))  # nothing above


def test_spectrum_continues_the_singular_values():
    model = small_gpt()
    s = torch.linalg.svdvals(q_of(model))
    both = torch.cat((s, widen.fitted_tail(s, 32))).sort(descending=True)[0]
    assert torch.allclose(torch.linalg.svdvals(q_of(grown(model, 'spectrum', n_embd=64, n_head=8))), both)
    control = grown(model, 'spectrum_random', n_embd=64, n_head=8)
    assert torch.allclose(torch.linalg.svdvals(q_of(control)), both) and difference(model, control) > 0.1
    law = torch.arange(1, 101, dtype=torch.float64) ** -0.7
    assert torch.allclose(widen.fitted_tail(law[:60], 40), law[60:])


def test_controls_move_what_they_say():
    model = small_gpt('rmsnorm', 'rope', 'untied')
    assert difference(model, grown(model, 'random_lift', n_embd=64, n_head=8)) < 1e-10  # commutes with RMSNorm
    layernorm = small_gpt()
    assert difference(layernorm, grown(layernorm, 'random_lift', n_embd=64, n_head=8)) > 0.1
    clone, shuffled = (q_of(grown(layernorm, m, n_embd=64, n_head=8)) for m in ('clone', 'shuffle'))
    assert not torch.equal(clone, shuffled)
    assert torch.equal(clone.sum(1).sort()[0].float(), shuffled.sum(1).sort()[0].float())


@pytest.mark.parametrize(
    'names, sizes',
    [
        (('bias',), dict(n_head=8)),
        (('untied',), dict(n_head=8)),
        ((), dict(n_head=4)),  # wider heads: a unit's first copy is not always in its own place
        (('gqa',), dict(n_head=8, n_kv_head=2)),
    ],
)
def test_ligo_starts_as_the_clone_and_learns(names, sizes):
    model = small_gpt(*names)
    small = {k: v.float() for k, v in model.state_dict().items()}
    model.float()
    how = parse('ligo', 0, 0)
    new = settle(model.config, dataclasses.replace(model.config, n_embd=64, **sizes), how)
    x, y = tokens(vocab=65, B=8), tokens(vocab=65, B=8, seed=1)

    def loss(steps):
        large = GPT(new).eval()
        factors.load_state(large, ligo.learn(small, model.config, new, how, lambda step: (x, y), steps=steps))
        return large(x, y)[1].item()

    before = model(x, y)[1].item()
    assert loss(0) == pytest.approx(before, abs=1e-4)
    assert loss(20) < before - 0.1


def test_ligo_learns_its_mix_of_layers():
    """Rows and columns of first copies are the small model's: there W' is the mix of its layers, divided by the copies."""
    model = small_gpt().float()
    how, c = parse('ligo', 0, 0), model.config
    new = settle(c, dataclasses.replace(c, n_embd=64, n_head=8), how)
    batch = tokens(vocab=65, B=4), tokens(vocab=65, B=4, seed=1)
    small = model.state_dict()
    large = ligo.learn(small, c, new, how, lambda step: batch, steps=10, quiet=True)
    for i in (0, 1):
        key = 'transformer.h.{}.mlp.c_fc.weight'
        layers = torch.stack([small[key.format(j)].flatten() for j in (0, 1)], 1)
        got = 2 * large[key.format(i)][:128, :32].flatten()
        mix = torch.linalg.lstsq(layers, got).solution
        assert (layers @ mix - got).abs().max() < 1e-4
        assert mix[i] == pytest.approx(1, abs=0.1) and 1e-4 < abs(mix[1 - i]) < 0.1


def test_moments_that_would_be_wrong_start_anew():
    how, old = parse('clone', 0, 0), GPTConfig(n_head=4, n_kv_head=2)
    choose = lambda ckpt, new, moments='auto': growth.why_fresh(ckpt, old, new, how, moments)
    ours = dict(optimizer={'lm_head.weight': {}})
    assert not choose(ours, dataclasses.replace(old, n_head=8)) and not choose(ours, old)
    assert 'other proportions' in choose(ours, dataclasses.replace(old, n_head=8, n_kv_head=8))
    assert choose({}, old) == 'the source has no optimizer state' and choose(ours, old, 'fresh') == 'moments = fresh'
    with pytest.raises(UserError, match='query heads in other proportions'):
        choose(ours, dataclasses.replace(old, n_head=12, n_kv_head=4), 'move')


def test_what_cannot_grow_is_refused_by_name():
    for names, method, sizes, message in [
        ((), 'clone', dict(n_embd=48, n_head=6), 'n_embd = 48: clone needs a multiple of 32; lemon'),
        ((), 'clone', dict(n_embd=16), 'n_embd = 16: below the 32'),
        ((), 'clone', dict(n_layer=4, n_embd=64), 'n_layer = 4: the source has 2; say how'),
        ((), 'stack', dict(n_layer=4, n_embd=64), 'wider than the source; say how with clone'),
        ((), 'clone', dict(n_layer=2), 'nothing becomes wider, nothing for clone to do'),
        ((), 'clone+stack', dict(n_embd=64), 'nothing for stack to do'),
        ((), 'clone', dict(n_embd=64, mlp_expansion_factor=1.0), 'fewer hidden units'),
        ((), 'clone', dict(n_embd=64, bias=True, mlp='swiglu'), 'mlp = swiglu: the source has gelu'),
        ((), 'clone', dict(n_embd=64, block_size=32), 'learned positions up to 16'),
        (('rope',), 'clone', dict(n_embd=64), 'n_head = 4: the head width must stay 8'),
        (('qk_norm',), 'clone', dict(n_embd=64), 'qk_norm divides by it'),
        (('gqa',), 'clone', dict(n_embd=64, n_head=8, n_kv_head=1), 'fewer heads than the source'),
        (('factor',), 'bert2bert', dict(n_embd=64, n_head=8), 'bert2bert mixes layers'),
        ((), 'clone', dict(n_embd=64, attn_scale=0.3), 'attn_scale = 0.3: the source has 1'),
        ((), 'clone', dict(n_embd=64, logit_scale=0.3), 'logit_scale = 0.3: growth makes it 1; 1 takes that'),
        ((), 'clone', dict(n_embd=64, n_head=16), 'n_head = 16: heads of 4 units, narrower than the 8 of the source'),
        ((), 'ligo+zero_block', dict(n_embd=64, n_head=8, n_layer=4), 'ligo learns its depth from stack or interleave'),
        ((), 'ligo', dict(n_embd=48, n_head=6), 'n_embd = 48: ligo needs a multiple of 32'),
        (('factor',), 'ligo', dict(n_embd=64, n_head=8), 'ligo mixes layers'),
        ((), 'double', dict(n_embd=64, n_head=8, mlp_expansion_factor=5.0), 'double needs multiples of the hidden'),
        ((), 'one_hot', dict(n_embd=64, n_kv_head=1), 'n_kv_head = 1: fewer key-value rows than the source has'),
    ]:
        with pytest.raises(UserError) as e:
            grown(small_gpt(*names), method, **sizes)
        assert message in str(e.value)
    with pytest.raises(UserError, match='mlp = moe'):
        settle(GPTConfig(mlp='moe'), GPTConfig(mlp='moe', n_embd=1536), parse('clone', 0, 0))
    with pytest.raises(UserError, match='method = .klone.: must be one of clone'):
        parse('klone', 0, 0)
    with pytest.raises(UserError, match='noise = 0.1: goes with clone, lemon, net2wider'):
        parse('double', 0.1, 0)
    expanded = GPTConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=9, linear='expanded')
    with pytest.raises(UserError, match='collapse it first'):
        settle(expanded, dataclasses.replace(expanded, n_embd=16), parse('clone', 0, 0))


# -----------------------------------------------------------------------------
# through the scripts


def grow_args(src, tmp_path, *flags, out='large'):
    return load(GrowConfig, [f'--checkpoint={src}/ckpt.pt', f'--out={tmp_path}/{out}/ckpt.pt', *flags])


def test_training_advises_its_own_key_where_copies_stay_equal(run_train, capsys):
    small = run_train('--max_iters=2', out='small')
    flags = (f'--transfer_from={small}/ckpt.pt', '--transfer_method=clone', '--n_embd=64', '--n_head=4')
    run_train('--max_iters=1', '--init_from=transfer', *flags)
    assert 'use --transfer_noise=0.3 or dropout' in capsys.readouterr().out


def test_growth_into_factors_that_only_come_near_is_refused_with_the_way_round(run_train, fails):
    small = run_train('--optimizer=muon', '--max_iters=2', out='small')
    flags = (f'--transfer_from={small}/ckpt.pt', '--transfer_method=clone', '--n_embd=64', '--n_head=4')
    fails(
        lambda: run_train('--max_iters=1', '--init_from=transfer', '--linear=btt', *flags),
        'clone should keep the function',
        'grow with linear = dense, then transfer.py factorize',
    )


def test_the_command_says_what_it_did_and_its_result_resumes(run_train, tmp_path, capsys, fails):
    small = run_train('--max_iters=6')
    growth.grow(grow_args(small, tmp_path, '--n_embd=64', '--method=clone'))
    said = capsys.readouterr().out
    for part in ('n_embd 32 -> 64, n_head 2 -> 4, hidden 128 -> 256', 'largest logit difference', 'copies are equal'):
        assert part in said
    assert 'use --noise=0.3 or dropout' in said
    assert '--hidden_lr=0.5' in said and "the optimizer's, grown with the weights" in said
    assert (
        'to go on from its iteration 6, with these moments:' in said and 'to start a new run from its weights' in said
    )
    large = checkpoint.load(tmp_path / 'large' / 'ckpt.pt')
    assert large['transfer']['source_iter'] == 6 and set(large['model_args']) == set(NANOGPT_KEYS)
    resumed = run_train('--max_iters=8', '--init_from=resume', out='large')
    done = checkpoint.load(resumed / 'ckpt.pt')
    assert done['iter_num'] == 8 and done['optimizer']['transformer.wte.weight']['step'] == 8
    growth.grow(grow_args(small, tmp_path, '--n_embd=64', '--method=clone', '--noise=0.3', '--moments=fresh', out='f'))
    said = capsys.readouterr().out
    assert 'copies are equal' not in said and 'to go on' not in said and 'to start a new run' in said
    assert 'optimizer' not in checkpoint.load(tmp_path / 'f' / 'ckpt.pt')
    bad = grow_args(small, tmp_path, '--n_embd=64', '--method=double', '--moments=move', out='b')
    fails(lambda: growth.grow(bad), 'moments = move: for double it is not known how moments grow; use fresh')
    assert not (tmp_path / 'b').exists()


def test_the_command_counts_the_flops_of_learned_growth(run_train, tmp_path, monkeypatch):
    monkeypatch.setattr(ligo, 'learn', lambda weights, old, new, how, *_, **__: grow_weights(weights, old, new, how))
    small, found = run_train('--max_iters=2', out='small'), {}
    for method in ('clone', 'ligo'):
        growth.grow(grow_args(small, tmp_path, '--n_embd=64', f'--method={method}', '--moments=fresh', out=method))
        found[method] = checkpoint.load(tmp_path / method / 'ckpt.pt')
    large = checkpoint.build(found['ligo'])
    learned = ligo.STEPS * growth.BATCH * large.config.block_size * large.flops_per_token()
    assert found['ligo']['transfer']['flops'] == found['clone']['transfer']['flops'] + learned


def run_metrics(out, kind):
    lines = [json.loads(line) for line in open(out / 'metrics.jsonl')]
    return {m['iter']: m['val_loss' if kind == 'eval' else 'loss'] for m in lines if m['kind'] == kind}


def test_growth_without_noise_goes_on_like_the_small_model(run_train):
    """The control: same losses, with 1/n of the learning rate in the blocks, and the data goes on."""
    same = ('--decay_lr=false', '--grad_clip=0', '--norm_affine=false', '--learning_rate=3e-3', '--min_lr=1e-3')
    small = run_train('--max_iters=10', *same, out='small')
    part = run_train('--max_iters=5', *same, out='part')
    flags = ['--init_from=transfer', f'--transfer_from={part}/ckpt.pt', '--transfer_method=clone', '--hidden_lr=0.5']
    large = run_train('--max_iters=5', '--n_embd=64', '--n_head=4', *same, *flags, out='large')
    a, b = run_metrics(small, 'train'), run_metrics(large, 'train')
    assert [b[i] for i in range(5)] == pytest.approx([a[i + 5] for i in range(5)], abs=2e-4)
    manifest = json.loads((large / 'manifest.json').read_text())['transfer']
    config = json.loads((part / 'manifest.json').read_text())
    assert manifest['flops'] == 5 * config['tokens_per_iter'] * config['flops_per_token']
    assert manifest['logit_difference'] < 1e-5 and manifest['seconds'] > 0
    assert json.loads((large / 'config.json').read_text())['logit_scale'] == 0.5


def test_one_command_trains_small_grows_and_goes_on(tmp_path, capsys):
    """And does not train the small model again, nor grow one that another config trained."""
    lines = [a[2:].split('=') for a in TINY]
    source = ''.join(f'{k} = {v if v[0].isdigit() else repr(v)}\n' for k, v in lines)
    (tmp_path / 'small.py').write_text(source + f"out_dir = '{tmp_path}/small'\nmax_iters = 4\n")
    grown = f"out_dir = '{tmp_path}/large'\ninit_from = 'transfer'\ntransfer_from = '{tmp_path}/small.py'\n"
    grown += "transfer_method = 'spectrum+zero_block'\nn_embd = 64\nn_head = 4\nn_layer = 3\nmax_iters = 4\n"
    (tmp_path / 'large.py').write_text(source + grown)
    go = lambda *flags: train(load(TrainConfig, [str(tmp_path / 'large.py'), *flags]))
    go()
    said = capsys.readouterr().out
    assert said.index('iter 3') < said.index('grown: n_embd 32 -> 64') < said.rindex('iter 3')
    ckpt = checkpoint.load(tmp_path / 'large' / 'ckpt.pt')
    assert ckpt['position'] == 2 * checkpoint.load(tmp_path / 'small' / 'ckpt.pt')['position']
    go('--transfer_moments=fresh')
    assert capsys.readouterr().out.count('iter 3') == 1
    go('--init_from=resume', '--max_iters=6', '--transfer_method=clone', '--transfer_noise=0.5')
    said = capsys.readouterr().out
    assert 'taken from the checkpoint: ' in said and 'transfer_method = spectrum+zero_block' in said
    assert 'transfer_method=spectrum+zero_block' in said and 'transfer_noise=' not in said  # config: ...
    done = checkpoint.load(tmp_path / 'large' / 'ckpt.pt')
    assert done['transfer']['method'] == done['config']['transfer_method'] == 'spectrum+zero_block'
    (tmp_path / 'small.py').write_text(source.replace('n_layer = 2', 'n_layer = 1') + f"out_dir = '{tmp_path}/small'\n")
    with pytest.raises(UserError, match='was trained with n_layer = 2'):
        go()
    (tmp_path / 'small.py').write_text(source + f"out_dir = '{tmp_path}/small'\nmax_iters = 4\nweight_decay = 0.5\n")
    with pytest.raises(UserError, match='was trained with weight_decay = 0.1'):
        go()


def test_a_small_model_that_started_from_something_else_is_not_grown(run_train, tmp_path):
    """A run that is resumed does not forget from what its first part started. A small model may have been grown itself."""
    started = run_train('--max_iters=2', '--n_layer=1', out='first') / 'ckpt.pt'
    small = ''.join(f'{k} = {v if v[0].isdigit() else repr(v)}\n' for k, v in (a[2:].split('=') for a in TINY))
    small += f"n_layer = 1\nout_dir = '{tmp_path}/small'\nmax_iters = 4\n"

    def source(text):
        (tmp_path / 'small.py').write_text(small + text)
        cfg = load(
            TrainConfig,
            [*TINY, '--init_from=transfer', f'--transfer_from={tmp_path}/small.py', '--transfer_method=stack'],
        )
        return start.source(cfg, load(TrainConfig, [cfg.transfer_from]))[1]

    assert source(f"init_from = '{started}'").init_from == str(started)
    run_train('--n_layer=1', '--max_iters=2', f'--init_from={started}', out='small')
    run_train('--n_layer=1', '--max_iters=4', '--init_from=resume', out='small')
    assert source(f"init_from = '{started}'") is None
    with pytest.raises(UserError, match=f'is not of .*small.py: it was trained with init_from = {started}'):
        source('')
    with pytest.raises(UserError, match='small.py: save_checkpoint = False leaves no checkpoint'):
        source('save_checkpoint = False')

    shutil.rmtree(tmp_path / 'small')
    grows = f"n_layer = 2\ninit_from = 'transfer'\ntransfer_from = '{tmp_path}/first.py'\ntransfer_method = 'stack'\n"
    (tmp_path / 'first.py').write_text(small + f"max_iters = 2\nout_dir = '{started.parent}'\n")
    train(source(grows))
    assert source(grows) is None
    (tmp_path / 'first.py').write_text(small + f"max_iters = 2\nout_dir = '{started.parent}'\nweight_decay = 0.5")
    with pytest.raises(UserError, match='was trained with weight_decay = 0.1'):
        source(grows)


def test_the_data_goes_on_only_where_it_is_the_same_data_in_the_same_order(run_train, tmp_path):
    small = run_train('--max_iters=3', out='small')
    ckpt = checkpoint.load(small / 'ckpt.pt')
    other = ckpt | dict(config=ckpt['config'] | dict(dataset='another'))
    checkpoint.save(tmp_path / 'other.pt', other)
    flags = [*TINY, '--init_from=transfer', '--transfer_method=clone', '--n_embd=64', '--n_head=4', '--max_iters=0']

    def position(*more, source=small / 'ckpt.pt'):
        return Trainer(load(TrainConfig, [*flags, f'--transfer_from={source}', *more]), torch.device('cpu')).position

    assert position() == position('--seed_model=5', '--batch_size=2') == 3 * 4 == ckpt['position']
    assert position('--data_order=random') == 0
    assert position('--seed_data=5') == position('--block_size=16') == position(source=tmp_path / 'other.pt') == 0


def test_a_rope_model_grows_into_a_longer_context(run_train):
    small = run_train('--position=rope', '--max_iters=2', out='small')
    flags = ('--position=rope', '--block_size=64', '--n_embd=64', '--n_head=4', '--max_iters=2', '--init_from=transfer')
    large = run_train(*flags, f'--transfer_from={small}/ckpt.pt', '--transfer_method=clone', out='large')
    assert checkpoint.load(large / 'ckpt.pt')['model_args']['block_size'] == 64


def test_growing_names_the_hidden_units_of_each_layer_where_they_differ(capsys):
    old = small_gpt(mlp_expansion_factor=(2.0, 4.0)).config
    for new, says in (
        (dataclasses.replace(old, n_embd=64), 'hidden [64, 128] -> [128, 256]'),
        (dataclasses.replace(old, mlp_expansion_factor=4.0), 'hidden [64, 128] -> 128'),
        (
            dataclasses.replace(old, n_layer=3, mlp_expansion_factor=(2.0, 4.0, 2.0)),
            'hidden [64, 128] -> [64, 128, 64]',
        ),
    ):
        growth.say_grown(old, new, parse('clone', 0, 0), '', {}, 'noise')
        assert says in capsys.readouterr().out


def test_transfer_keys_go_with_transfer(fails):
    check = lambda *flags: lambda: load(TrainConfig, [*TINY, *flags])
    fails(check('--init_from=transfer'), 'transfer_from: must be given', 'transfer_method: must be given')
    fails(check('--transfer_noise=0.1'), "transfer_noise: only for init_from = 'transfer'")


def test_spectra_compares_what_training_left(run_train, script, tmp_path):
    a, b = run_train(out='a'), run_train('--n_embd=64', '--linear=expanded', '--n_layer=3', out='b')
    r = script('transfer.py', 'spectra', f'--checkpoints={a}/ckpt.pt,{b}/ckpt.pt', f'--out={tmp_path}/s.png',
               f'--data={tmp_path}/s.jsonl')  # fmt: skip
    assert (tmp_path / 's.png').read_bytes().startswith(b'\x89PNG')
    rows = [json.loads(line) for line in open(tmp_path / 's.jsonl')]
    assert len(rows) == 1 + 2 * 6 + 1 + 3 * 6 and 'mlp.c_fc' in r.stdout
    W = torch.load(a / 'ckpt.pt', weights_only=True)['model']['transformer.h.1.attn.c_proj.weight']
    got = [m['singular_values'] for m in rows if m['kind'] == 'attn.c_proj' and m['depth'] == 0.75]
    assert got[0] == pytest.approx(torch.linalg.svdvals(W).tolist(), rel=1e-4)


def test_spectra_take_zeros_and_mixtures(run_train, tmp_path, capsys):
    from surgery import spectra

    a, b = run_train('--max_iters=2', out='a'), run_train('--mlp=moe', '--max_iters=2', out='b')
    growth.grow(grow_args(a, tmp_path, '--n_layer=4', '--method=zero_block', out='deep'))
    capsys.readouterr()
    paths = ','.join(f'{p}/ckpt.pt' for p in (tmp_path / 'deep', a, b))
    spectra.spectra(spectra.SpectraConfig(checkpoints=paths, out=''))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {(line[0], line[1]): line[2:] for line in lines if len(line) == 7 and '-' in line[1]}
    assert {kind for kind, pair in rows if pair == 'A-B'} == {
        'wte', 'attn.q', 'attn.k', 'attn.v', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj'
    }  # fmt: skip
    assert not any('mlp' in kind for kind, pair in rows if pair == 'B-C')  # experts are no single matrix
    assert rows['attn.q', 'A-B'][0] == rows['wte', 'A-B'][0] == '0.0000'  # the same matrices, twice
    assert rows['attn.c_proj', 'A-B'][3] == 'nan' and float(rows['attn.c_proj', 'B-C'][3]) > 0  # zeros have no size


def test_spectra_are_of_every_matrix_of_a_model():
    """Those of the head and of the gate are there where the model has them; q, k and v are three."""
    from surgery import spectra

    model = small_gpt('swiglu', 'gqa', 'untied')
    found = [(kind, i) for kind, i, _ in spectra.matrices(model)]
    parts = [f'attn.{p}' for p in (*'qkv', 'c_proj')] + [f'mlp.{p}' for p in ('c_fc', 'c_gate', 'c_proj')]
    assert found == [('wte', None), ('lm_head', None)] + [(p, i) for i in range(2) for p in parts]
    shapes = {kind: tuple(W.shape) for kind, _, W in spectra.matrices(model)}
    assert shapes['attn.q'] == (32, 32) and shapes['attn.k'] == shapes['attn.v'] == (16, 32)
    numbers = sum(W.numel() for _, _, W in spectra.matrices(model))
    assert numbers == sum(p.numel() for p in model.parameters() if p.dim() == 2) - model.transformer.wpe.weight.numel()


def test_the_distance_of_spectra_is_of_shapes():
    from surgery import spectra

    s = torch.rand(100, dtype=torch.float64).sort(descending=True)[0]
    assert spectra.distance(s, 3 * s) < 1e-12
    assert spectra.distance(s, s.repeat_interleave(2)) < 0.05
    one, line = torch.ones(50), torch.linspace(2, 0, 400)  # line over its rms: 3^.5 (1 - x); (1 - that)^2 integrates to
    assert spectra.distance(one, line) == pytest.approx((2 - 3**0.5) ** 0.5, abs=2e-3)
    big = spectra.gaussian((400, 200)), spectra.gaussian((100, 50))
    assert spectra.distance(*big) < 0.05 < spectra.distance(big[0], spectra.gaussian((200, 200)))


def test_spectra_of_two_models_are_compared_block_by_block_at_the_same_depth():
    """Two fake models: constant spectra with another slope in each half, four blocks against two."""
    from surgery import spectra

    slope = lambda k, a: torch.linspace(1, a, k, dtype=torch.float64)
    block = lambda depth, s: (depth, s, (len(s), len(s)))
    deep = dict(
        name='a', kinds={'mlp.c_fc': [block((i + 0.5) / 4, slope(40, (0.9, 0.9, 0.1, 0.1)[i])) for i in range(4)]}
    )
    flat = dict(name='b', kinds={'mlp.c_fc': [block((i + 0.5) / 2, 3 * slope(80, (0.9, 0.1)[i])) for i in range(2)]})
    for a, b, ratio in ((deep, flat, 3), (flat, deep, 1 / 3)):
        (row,) = spectra.compare_spectra([a, b])
        assert row['distance'] < 0.02 and row['top'] == pytest.approx(ratio)
        assert row['rms'] == pytest.approx(ratio, rel=0.02)
    (row,) = spectra.compare_spectra([deep, dict(flat, kinds={'mlp.c_fc': flat['kinds']['mlp.c_fc'][::-1]})])
    assert row['distance'] < 0.02  # by depth, not by position
    other = spectra.distance(slope(40, 0.9), slope(40, 0.1))
    assert other > 0.3
    wrong = [block(1 - d, s) for d, s, _ in flat['kinds']['mlp.c_fc']]
    (row,) = spectra.compare_spectra([deep, dict(flat, kinds={'mlp.c_fc': wrong})])
    assert row['distance'] == pytest.approx(other, abs=0.02)
    gauss = [spectra.distance(slope(40, a), spectra.gaussian((40, 40))) for a in (0.9, 0.1)]
    (row,) = spectra.compare_spectra([deep, flat])
    assert row['a_gaussian'] == pytest.approx(sum(gauss) / 2, abs=1e-9)


def test_surgery_compares_all_windows():
    """Two fake models that differ in the third of three windows only."""
    from surgery import operation

    x = torch.arange(12).view(3, 4)

    def model(odd):
        def logits(idx, last_only):
            assert idx.shape == (1, 4) and not last_only
            out = torch.zeros(1, 4, 20)
            return (out + torch.eye(20)[idx] * (odd if (idx == 8).any() else 1.0), None)

        return logits

    worst, before, after = operation.compare(model(1.0), model(3.0), x, x)
    nats = lambda v: math.log(math.exp(v) + 19) - v
    assert worst == 2 and before == pytest.approx(nats(1))
    assert after == pytest.approx((2 * nats(1) + nats(3)) / 3)
    assert math.isnan(operation.compare(model(1.0), model(math.nan), x, x)[0])


def test_the_grown_config_pair_fits():
    cfg = load(TrainConfig, [str(ROOT / 'config' / 'grow_shakespeare.py')])
    small = load(TrainConfig, [str(ROOT / cfg.transfer_from)])
    settle(dense_config(small), cfg, growth.how_of(cfg))


def test_the_singular_values_of_a_tall_gaussian_matrix_descend_as_those_of_any():
    """An embedding is taken by its Gram matrix."""
    from surgery import spectra

    W = torch.randn((400, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spectra.gaussian((400, 20)).float(), torch.linalg.svdvals(W), rtol=1e-4, atol=0)


def test_multi_query_stays_multi_query_and_groups_keep_their_number_of_heads():
    """Where no number of key-value heads is asked for."""
    for kv, expected in ((0, 0), (1, 1), (2, 4)):
        old = GPTConfig(n_layer=1, n_head=4, n_embd=32, vocab_size=65, n_kv_head=kv)
        new = growth.target(old, GrowConfig(n_embd=64, method='clone'), parse('clone', 0, 0))
        assert (new.n_head, new.n_kv_head) == (8, expected)


def test_the_scale_of_mup_cannot_change_by_growth():
    old = GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=65, mup_base=16)
    with pytest.raises(UserError, match='mup_base = 32: the source has 16, and growth keeps it'):
        settle(old, dataclasses.replace(old, n_embd=64, n_head=4, mup_base=32), parse('clone', 0, 0))


def test_random_copies_and_noise_go_by_the_seed_and_differ_from_tensor_to_tensor():
    model = small_gpt()
    for name in ('attn.c_attn', 'mlp.c_fc'):  # the same in both blocks
        model.transformer.h[1].get_submodule(name).weight.data.copy_(model.transformer.h[0].get_submodule(name).weight)
    fc = lambda seed, method='clone', noise=0.3, layer=0: (
        grown(model, method, noise, seed, n_embd=64, n_head=8).transformer.h[layer].mlp.c_fc.weight
    )
    assert torch.equal(fc(1), fc(1)) and not torch.equal(fc(1), fc(2)) and not torch.equal(fc(1), fc(1, layer=1))
    assert torch.equal(fc(1, 'net2wider', 0.0), fc(1, 'net2wider', 0.0))
    assert not torch.equal(fc(1, 'net2wider', 0.0), fc(2, 'net2wider', 0.0))


def test_new_columns_of_embeddings_start_as_those_of_a_new_model():
    """one_hot puts the small matrix into the corner of an identity; embeddings are no map, they get random columns."""
    wte = grown(small_gpt(), 'one_hot', n_embd=96, n_head=4).transformer.wte.weight
    assert wte[:, 32:].std().item() == pytest.approx(0.02, rel=0.05)


def test_the_past_of_a_grown_model_is_that_of_its_source_and_of_its_sources_source():
    how = parse('clone', 0, 0)
    past = dict(since=0, flops=None, seconds=5.0)
    found = growth.history(dict(config={}, iter_num=3, seconds=3.0, transfer=past), None, how, 'x.pt')
    assert found['seconds'] == 5 + 3 and found['flops'] is None and found['source_iter'] == 3
    assert growth.history(dict(config={}, iter_num=3), None, how, 'x.pt')['seconds'] == 0


def test_a_grown_checkpoint_counts_each_second_once_and_keeps_a_loss_that_is_still_its_own(run_train, tmp_path):
    small = run_train('--max_iters=2', '--n_layer=1')
    source = checkpoint.load(small / 'ckpt.pt')
    clone, stack = ('--n_embd=64', '--method=clone'), ('--n_layer=2', '--method=stack')
    for how, moments in ((clone, 'move'), (clone, 'fresh'), (stack, 'fresh')):
        growth.grow(grow_args(small, tmp_path, *how, f'--moments={moments}', '--windows=1', out='large'))
        large = checkpoint.load(tmp_path / 'large' / 'ckpt.pt')
        assert ('seconds' in large) == (moments == 'move')  # the run counts on from them
        assert large['transfer']['seconds'] + large.get('seconds', 0) == pytest.approx(source['seconds'])
        assert large['best_val_loss'] == (source['best_val_loss'] if how is clone else math.inf)


def test_what_growing_itself_takes_is_counted(monkeypatch):
    """The seconds of it, and the FLOPs of what ligo learns: so many steps of the large model."""
    small = GPT(GPTConfig(block_size=16, vocab_size=65, n_layer=1, n_head=2, n_embd=32, bias=False))
    config = dict(gradient_accumulation_steps=1, batch_size=4, block_size=16)
    ckpt = checkpoint.pack(small, config, 3, 2.0, seconds=10.0)
    now = itertools.count(0, 7)
    monkeypatch.setattr(growth, 'time', types.SimpleNamespace(time=lambda: next(now)))
    monkeypatch.setattr(ligo, 'learn', lambda weights, old, new, how, *_, **__: grow_weights(weights, old, new, how))
    found = {}
    for method in ('clone', 'ligo'):
        sizes = dict(n_layer=1, n_head=4, n_embd=64, block_size=16, vocab_size=65, bias=False, batch_size=2)
        cfg = TrainConfig(**sizes, transfer_method=method)
        model, data = GPT(dense_config(cfg)), types.SimpleNamespace(device='cpu')
        found[method] = growth.start(model, cfg, ckpt, data, quiet=True)[1]
        assert found[method]['growing'] == 7 and found[method]['seconds'] == 10 + 7
    learned = ligo.STEPS * 2 * 16 * model.flops_per_token()
    assert found['clone']['flops'] == 3 * 4 * 16 * small.flops_per_token()
    assert found['ligo']['flops'] == found['clone']['flops'] + learned


def test_surgery_looks_at_as_many_validation_tokens_as_asked_for():
    from surgery import operation

    config = GPTConfig(block_size=16, vocab_size=96)
    x, y = operation.real_tokens(config, 'shakespeare_char', 3)
    assert x.shape == y.shape == (3, 16)
    assert operation.real_tokens(config, 'shakespeare_char')[0].numel() == operation.CHECKED
    read = {s: (ROOT / 'data' / 'shakespeare_char' / f'{s}.bin').read_bytes() for s in ('train', 'val')}
    for row in x.numpy().astype('uint16'):
        assert row.tobytes() in read['val']
    assert any(row.tobytes() not in read['train'] for row in x.numpy().astype('uint16'))


def test_a_checkpoint_is_not_replaced_by_what_is_made_of_it(tmp_path):
    from surgery import operation

    cfg = operation.SurgeryConfig(checkpoint=f'{tmp_path}/x.pt', out=f'{tmp_path}/x.pt')
    with pytest.raises(UserError, match='is the checkpoint itself, which would be lost'):
        operation.open_model(cfg)


def test_weights_with_rotary_positions_start_a_shorter_context(run_train, tmp_path):
    """There is no table of positions to cut."""
    small = run_train('--position=rope', '--max_iters=1', '--n_layer=1')
    flags = ('--max_iters=1', '--block_size=16', f'--init_from={small}/ckpt.pt')
    assert checkpoint.load(run_train(*flags, out='new') / 'ckpt.pt')['model_args']['block_size'] == 16


DOUBLED = [(n,) for n in OPTIONS if n not in ('swiglu', 'mqa')]  # whose hidden units, or key-value heads, do not double


@pytest.mark.parametrize('names', DOUBLED + [('bias', 'post_norm'), ('rmsnorm', 'post_norm')])
def test_doubling_writes_every_number_of_a_model_twice_along_every_axis_that_grows(names):
    model = small_gpt(*names)
    large = grown(model, 'double', **sizes_for(model.config, 64)).state_dict()
    for name, W in model.state_dict().items():
        for dim, (n, N) in enumerate(zip(W.shape, large[name].shape)):
            W = W.repeat_interleave(N // n, dim)
        assert torch.equal(large[name], W), name


def test_widths_that_are_no_multiple_repeat_the_first_units_and_only_lemon_pads():
    model = small_gpt()
    small, large = model.transformer.wpe.weight, grown(model, 'bert2bert', n_embd=48, n_head=6).transformer.wpe.weight
    assert torch.equal(large, torch.cat((small, small[:, :16]), 1))


@pytest.mark.parametrize('method', ['one_hot', 'spectrum_random', 'random_lift', 'shuffle', 'bert2bert'])
def test_methods_that_change_the_function_give_a_model_whatever_the_options(method):
    for names in [(n,) for n in OPTIONS if n != 'factor'] + [('bias', 'post_norm'), ('post_norm', 'plain_norm')]:
        model = small_gpt(*names)
        if method == 'random_lift' and 'post_norm' in names and 'plain_norm' not in names:
            with pytest.raises(UserError, match='post_norm with norm weights: random_lift cannot turn them'):
                grown(model, method, **sizes_for(model.config, 64))
        else:
            large = grown(model, method, **sizes_for(model.config, 64))
            assert all(p.isfinite().all() for p in large.parameters()) and 1e-3 < difference(model, large) < 1e3, names
