"""The architecture options: each computes its formula, any two go together, and the named models have their counts."""

import itertools

import pytest
import torch
from conftest import OPTIONS, ROOT, TINY, learn, tiny_gpt, tokens, train_config
from torch.nn import functional as F

import checkpoint
import transfer
from configurator import UserError, load
from linear import factors
from model import GPT, NANOGPT_KEYS, GPTConfig, model_args
from optimizers.optim import Optimizer
from surgery import collapse
from train import TrainConfig, Trainer

PAIRS = [p for p in itertools.combinations(OPTIONS, 2) if p not in {('swiglu', 'relu2'), ('gqa', 'mqa')}]


def build(*names, **keys):
    args = dict(n_head=4, n_embd=32)
    for name in names:
        args |= OPTIONS[name]
    return tiny_gpt(**args | keys)


@pytest.mark.parametrize('names', [(n,) for n in OPTIONS] + PAIRS, ids='+'.join)
def test_options_compose(names):
    """Every pair trains; a cache, a checkpoint and a collapse keep the function."""
    model = build(*names).train()
    x, y = tokens(), tokens(seed=1)
    opt = Optimizer(model, train_config(model))
    first, *_ = learn(model, opt, x, y, 3)
    assert model(x, y)[1].item() < first
    model.eval()
    new = torch.cat(list(model.generate(x[:, :4], 5, temperature=0)), 1)
    idx = x[:, :4]
    for _ in range(5):
        idx = torch.cat((idx, model(idx)[0][:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(new, idx[:, 4:])
    back = checkpoint.build(checkpoint.pack(model, {}, 0, 0.0, opt.factors))
    plain = collapse.collapse_model(back)
    want = model(x, last_only=False)[0]
    assert (back(x, last_only=False)[0] - want).abs().max() < 1e-5
    assert (plain(x, last_only=False)[0] - want).abs().max() < 1e-4


TOGETHER = [  # every option in some model, and those that meet in one branch of the forward pass in the same one
    ('gqa', 'rope', 'qk_norm', 'window', 'swiglu', 'gate', 'rmsnorm', 'post_norm', 'untied'),
    ('mqa', 'qk_norm', 'relu2', 'gate', 'factor', 'bias', 'expanded'),
    ('swiglu', 'plain_norm', 'untied', 'window', 'bias', 'expanded'),
    ('gqa', 'factor', 'post_norm', 'plain_norm'),
]


@pytest.mark.slow
def test_options_compile_into_one_graph():
    assert {name for names in TOGETHER for name in names} == set(OPTIONS)
    for names in TOGETHER:
        torch._dynamo.reset()
        model = build(*names)
        explanation = torch._dynamo.explain(model)(tokens(), tokens(seed=1))
        assert (explanation.graph_count, explanation.graph_break_count) == (1, 0), names


def llama(model, n_kv_head, swiglu_hidden):
    """A transformers Llama with our weights: RoPE, RMSNorm, grouped queries and SwiGLU by an independent hand."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.n_embd, intermediate_size=swiglu_hidden, num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head, num_key_value_heads=n_kv_head, max_position_embeddings=c.block_size,
            rms_norm_eps=1e-6, tie_word_embeddings=False, attention_bias=False, mlp_bias=False, rope_theta=10000.0,
        )
    )  # fmt: skip
    sd, out = model.state_dict(), {}
    kv = n_kv_head * c.n_embd // c.n_head
    out['model.embed_tokens.weight'] = sd['transformer.wte.weight']
    out['model.norm.weight'] = sd['transformer.ln_f.weight']
    out['lm_head.weight'] = sd['lm_head.weight']
    for i in range(c.n_layer):
        a, b = f'transformer.h.{i}', f'model.layers.{i}'
        q, k, v = sd[f'{a}.attn.c_attn.weight'].split([c.n_embd, kv, kv])
        for name, w in zip('qkv', (q, k, v)):
            out[f'{b}.self_attn.{name}_proj.weight'] = w
        out[f'{b}.self_attn.o_proj.weight'] = sd[f'{a}.attn.c_proj.weight']
        out[f'{b}.mlp.up_proj.weight'] = sd[f'{a}.mlp.c_fc.weight']
        out[f'{b}.mlp.gate_proj.weight'] = sd[f'{a}.mlp.c_gate.weight']
        out[f'{b}.mlp.down_proj.weight'] = sd[f'{a}.mlp.c_proj.weight']
        out[f'{b}.input_layernorm.weight'] = sd[f'{a}.ln_1.weight']
        out[f'{b}.post_attention_layernorm.weight'] = sd[f'{a}.ln_2.weight']
    hf.load_state_dict(out)
    return hf.eval()


@pytest.mark.parametrize('n_kv_head', [4, 2, 1])
def test_rope_rmsnorm_gqa_and_swiglu_are_llamas(n_kv_head):
    pytest.importorskip('transformers')
    model = build('rope', 'rmsnorm', 'swiglu', 'untied', n_kv_head=n_kv_head).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    want = llama(model, n_kv_head, model.config.hidden(0))(tokens()).logits
    assert (model(tokens(), last_only=False)[0] - want).abs().max() < 1e-4


def attention_by_hand(model, x, window=None, qk_norm=False):
    """The attention of block 0 for embeddings x (T, C), head by head and position by position, in float64."""
    att = model.transformer.h[0].attn
    T, C = x.shape
    nh, nkv, hs = att.n_head, att.n_kv_head, att.head_width
    q, k, v = (x @ att.c_attn.weight.T).split(att.widths, dim=1)
    out = torch.zeros(T, C, dtype=x.dtype)
    for h in range(nh):
        g = h // (nh // nkv)
        for t in range(T):
            first = 0 if not window else max(0, t - window + 1)
            a = q[t, h * hs : (h + 1) * hs]
            keys, values = (m[first : t + 1, g * hs : (g + 1) * hs] for m in (k, v))
            if qk_norm:
                a = a / torch.sqrt((a * a).mean() + 1e-6)
                keys = keys / torch.sqrt((keys * keys).mean(-1, keepdim=True) + 1e-6)
            w = (keys @ a / hs**0.5).softmax(0)
            out[t, h * hs : (h + 1) * hs] = w @ values
    return out @ att.c_proj.weight.T


@pytest.mark.parametrize(
    'names', [('mqa',), ('gqa', 'qk_norm'), ('window',), ('gqa', 'window', 'qk_norm')], ids='+'.join
)
def test_attention_is_its_formula(names):
    model = build(*names).double().eval()
    x = torch.randn(12, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = model.config.attention_window
    back = torch.arange(12)[:, None] - torch.arange(12)
    mask = (back >= 0) & (back < window) if window else None
    got = model.transformer.h[0].attn(x[None], mask=mask)[0]
    want = attention_by_hand(model, x, window, 'qk_norm' in names)
    assert (got - want).abs().max() < 1e-12


def test_a_window_hides_what_lies_before_it():
    model = build('window', n_layer=1).eval()  # 5 tokens, one layer: position 10 sees 6 ... 10
    x = tokens(B=1)
    y = x.clone()
    y[0, :6] = (y[0, :6] + 1) % 65
    a, b = (model(t, last_only=False)[0][0] for t in (x, y))
    assert torch.equal(a[10:], b[10:]) and not torch.allclose(a[9], b[9])


def test_a_window_is_what_attention_costs():
    """Scores and values are counted over what a position sees: the context, or the window."""
    whole, window, wide = (build(attention_window=w).flops_per_token() for w in (0, 5, 99))
    assert whole - window == 6 * 2 * 2 * (16 - 5) * 32 and wide == whole
    assert whole - build().flops_per_token(T=4) == 6 * 2 * 2 * (16 - 4) * 32


def test_post_norm_is_the_hybrid_form():
    model = build('post_norm', 'rmsnorm').double().eval()
    block = model.transformer.h[0]
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rms = lambda t: t / torch.sqrt((t * t).mean(-1, keepdim=True) + 1e-6)
    h = x + rms(block.attn(rms(x))) / (2 * 2) ** 0.5  # attn_scale = 0: 1/sqrt(2 * n_layer)
    want = h + rms(block.mlp(rms(h)))
    assert (sum(block(x)) - want).abs().max() < 1e-10


def test_relu2_and_gelu_tanh_are_their_formulas():
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for kind, f in (('relu2', lambda h: F.relu(h) ** 2), ('gelu_tanh', lambda h: F.gelu(h, approximate='tanh'))):
        mlp = tiny_gpt(mlp=kind).transformer.h[0].mlp
        assert torch.allclose(mlp(x), f(x @ mlp.c_fc.weight.T) @ mlp.c_proj.weight.T, atol=1e-6)


def test_hidden_units_follow_factor_match_and_multiple():
    hidden = lambda **keys: [GPTConfig(n_embd=768, n_layer=2, **keys).hidden(i) for i in range(2)]
    assert hidden() == [3072, 3072]
    assert hidden(mlp_expansion_factor=3) == [2304, 2304]
    assert hidden(mlp_expansion_factor=(4.0, 2.5)) == [3072, 1920]
    assert hidden(mlp='swiglu') == [2048, 2048] and hidden(mlp='swiglu', swiglu_match=False) == [3072, 3072]
    assert hidden(mlp_expansion_factor=2.6, multiple_of=128) == [2048, 2048]  # 1996.8, up to the nearest
    assert hidden(mlp_expansion_factor=2.55, multiple_of=128) == [1920, 1920]  # 1958.4, down to it
    assert hidden(mlp_expansion_factor=0.001, multiple_of=128) == [128, 128]


def test_matched_swiglu_has_the_parameters_of_gelu():
    assert tiny_gpt(mlp='swiglu', n_embd=96, n_head=2).num_params() == tiny_gpt(n_embd=96, n_head=2).num_params()


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--mlp=swiglue'], 'mlp = .*must be one of gelu, gelu_tanh, swiglu, relu2, moe; did you mean'),
        (['--position=alibi'], 'position = .*must be one of learned, rope'),
        (['--norm=batchnorm'], 'norm = .*must be one of layernorm, rmsnorm'),
        (['--n_kv_head=5'], r'n_kv_head = 5: must divide n_head \(12\)'),
        (['--mlp_expansion_factor=4,3'], r'mlp_expansion_factor = \(4.0, 3.0\): must be one number or n_layer \(12\)'),
        (['--mlp_expansion_factor=-1'], 'mlp_expansion_factor = -1.0: must be above 0'),
        (['--mlp_expansion_factor=four'], 'mlp_expansion_factor = .*of type float or several numbers'),
        (['--position=rope', '--n_embd=36'], 'rope turns pairs'),
    ],
)
def test_unknown_or_impossible_options_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        load(TrainConfig, flags)


COUNTS = {
    'd8_mlp2x': 118_572_032, 'd12': 123_532_032, 'd12_mlp3x': 124_880_704, 'd12_mlp3x_768': 109_376_256, 'd12_mlp2x': 136_720_320,
    'd12_swiglu': 151_843_584, 'd12_mlp3x_swiglu': 149_800_768, 'd12_gqa': 114_094_848, 'd12_mlp3x_gqa': 99_939_072,
    'd12_post_norm': 123_532_032, 'd12_qk_norm': 123_532_032, 'd12_swiglu_matched': 123_532_032,
    'gpt2': 124_475_904, 'gpt2_medium': 354_871_296, 'gpt2_large': 774_090_240, 'gpt2_xl': 1_557_686_400,
    'gpt2_muon': 123_587_328,
}  # fmt: skip


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'config').glob('d[18]*.py')) + sorted((ROOT / 'config').glob('gpt2*.py'))
)
def test_named_models_have_the_counts_their_headers_state(path):
    cfg = load(TrainConfig, [str(path)])
    cfg.vocab_size = cfg.vocab_size or 50304
    with torch.device('meta'):
        model = GPT(cfg)
    n = sum(p.numel() for _, p, *_ in factors.leaves(model))
    assert n == COUNTS.get(path.stem, n)
    header = path.read_text().split('\n\n')[0]
    assert f'{n:,} parameters' in header
    assert f'{model.flops_per_token() / 1e6:.1f} MFLOP per token' in header


def test_nanogpt_keys_alone_describe_what_nanogpt_can_express():
    assert set(model_args(tiny_gpt(bias=True).config)) == set(NANOGPT_KEYS)
    assert model_args(build('gqa', 'rope').config).keys() - set(NANOGPT_KEYS) == {'n_kv_head', 'position'}


def test_options_train_through_the_trainer():
    flags = [
        '--mlp=swiglu',
        '--position=rope',
        '--n_kv_head=1',
        '--norm=rmsnorm',
        '--qk_norm',
        '--mlp_expansion_factor=4,2',
    ]
    t = Trainer(load(TrainConfig, [*TINY, *flags]), torch.device('cpu'))
    before = t.evaluate('val')['val_loss']
    for _ in range(10):
        t.step()
    assert t.evaluate('val')['val_loss'] < before


@pytest.mark.parametrize('names', [('gate',), ('gate', 'swiglu', 'bias'), ('gate', 'expanded')], ids='+'.join)
def test_pruning_closed_gates_is_exact(names):
    model = build(*names).eval()
    for i, block in enumerate(model.transformer.h):
        g = (
            torch.rand(block.mlp.gate.shape, generator=torch.Generator().manual_seed(i)) * 2 - 0.6
        )  # open, partly, closed
        block.mlp.gate.data.copy_(g)
    pruned = collapse.prune_model(model)
    kept = [int((b.mlp.gate > 0).sum()) for b in model.transformer.h]
    assert [pruned.config.hidden(i) for i in range(2)] == kept and not pruned.config.mlp_gate
    assert pruned.num_params() < collapse.collapse_model(model).num_params()
    assert (pruned(tokens(), last_only=False)[0] - model(tokens(), last_only=False)[0]).abs().max() < 1e-5
    back = checkpoint.build(checkpoint.pack(pruned, {}, 0, 0.0))
    assert torch.equal(back(tokens())[0], pruned(tokens())[0])


def test_nanogpt_reads_a_model_whose_gates_all_stayed_open():
    model = build('gate', gate_budget=0.5).eval()
    pruned = collapse.prune_model(model)
    assert set(model_args(pruned.config)) == set(NANOGPT_KEYS)


def test_a_layer_whose_gates_are_all_closed_keeps_one_unit():
    model = build('gate').eval()
    model.transformer.h[0].mlp.gate.data.fill_(-1)
    pruned = collapse.prune_model(model)
    assert pruned.config.hidden(0) == 1
    assert (pruned(tokens())[0] - model(tokens())[0]).abs().max() < 1e-5


def test_gates_close_down_to_the_budget(run_train, tmp_path):
    flags = ['--mlp_gate', '--gate_budget=0.5', '--gate_penalty=20', '--max_iters=60', '--lr_decay_iters=60']
    out = run_train(*flags, '--eval_interval=60', '--learning_rate=3e-2')
    model = checkpoint.build(checkpoint.load(out / 'ckpt.pt'))
    share = torch.cat([b.mlp.gate for b in model.transformer.h]).clamp(0, 1).mean().item()
    assert share < 0.6
    transfer.prune(collapse.TransferConfig(str(out / 'ckpt.pt'), str(tmp_path / 'p' / 'ckpt.pt')))
    pruned = checkpoint.build(checkpoint.load(tmp_path / 'p' / 'ckpt.pt'))
    assert pruned.num_params() < model.num_params()


def test_the_penalty_is_no_part_of_the_evaluation():
    model = build('gate', gate_budget=0.0, gate_penalty=3.0)
    x, y = tokens(), tokens(seed=1)
    assert model.train()(x, y)[1].item() - model.eval()(x, y)[1].item() == pytest.approx(3.0, abs=1e-5)


def test_a_key_without_effect_is_said_to_be(run_train, capsys):
    run_train('--expansion=2000', '--gate_budget=0.5', '--swiglu_match=false', '--max_iters=0')
    assert 'without effect here: expansion = 2000, swiglu_match = False, gate_budget = 0.5' in capsys.readouterr().out
    run_train('--keep_last=2', '--save_checkpoint=false', '--max_iters=0')
    assert 'without effect here: keep_last = 2' in capsys.readouterr().out
    run_train('--linear=expanded', '--expansion=40', '--max_iters=0')
    assert 'without effect' not in capsys.readouterr().out


def test_gates_within_the_budget_cost_nothing_and_bring_nothing():
    x, y = tokens(), tokens(seed=1)
    model = tiny_gpt(mlp_gate=True, gate_budget=0.75, gate_penalty=10.0)
    for block in model.transformer.h:
        block.mlp.c_proj.weight.data.zero_()  # what the gates scale is nothing
        block.mlp.gate.data.fill_(0.5)
    assert model.train()(x, y)[1].item() == pytest.approx(model.eval()(x, y)[1].item())
    for block in model.transformer.h:
        block.mlp.gate.data.fill_(0.85)
    assert (model.train()(x, y)[1] - model.eval()(x, y)[1]).item() == pytest.approx(10 * 0.1, abs=1e-4)
