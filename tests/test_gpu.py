"""What only a GPU can show. Skipped elsewhere. It needs no data set and no network."""

import copy
import re

import pytest
import torch
from conftest import ROOT, losses, tiny_gpt, train_config
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import checkpoint
import hardware
from configurator import UserError, load
from lab import bench_same
from linear import LAYERS, make, moe
from linear.dense import Dense
from linear.kernels import attend, blocks, chip, fused, head, mixture, norms, rotary, routing, symmetric, vector
from model import GPT, GPTConfig, rope_table
from optimizers.optim import Optimizer
from sample import round_weights
from tokens.download import write_dataset
from toys.letter_counting import Transformer
from toys.mnist import CNN, MLP
from toys.seeds import Stack, batches, make_optimizer, make_step, set_lr
from train import TrainConfig, Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
FLAGS = [
    'config/shakespeare_char.py', '--dropout=0', '--warmup_iters=0', '--learning_rate=1e-4', '--min_lr=0',
    '--n_layer=2', '--batch_size=8', '--cuda_graph=false',
]  # fmt: skip


@pytest.fixture(scope='session', autouse=True)
def shakespeare(tmp_path_factory):
    """In place of conftest's: the documents of this repository by characters. A bare machine has no Shakespeare."""
    text = ''.join(
        p.read_text(encoding='utf-8') for p in [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))]
    )
    itos, folder = sorted(set(text)), tmp_path_factory.mktemp('documents')
    stoi = {ch: i for i, ch in enumerate(itos)}
    ids = [stoi[ch] for ch in text]
    cut = int(len(ids) * 0.9)
    write_dataset(folder, ids[:cut], ids[cut:], vocab_size=len(itos), tokenizer='char', itos=itos, edition='documents')
    FLAGS.append(f'--dataset={folder}')
    return folder


def run(*flags, graph=True, steps=8):
    torch._dynamo.reset()
    t = Trainer(load(TrainConfig, [*FLAGS, *flags]), hardware.choose_device('auto'))
    torch.set_float32_matmul_precision('highest')
    if not graph:
        t.optimizer.capture = lambda: None
    out = []
    for _ in range(steps):
        t.step()
        out.append(t.take_train_loss())
    assert bool(t.optimizer.graphs) == graph
    return out, t


@pytest.mark.parametrize('kind, layer', [('muon', 'expanded'), ('normuon', 'btt'), ('muon', 'tensor_train')])
def test_a_compiled_and_captured_update_of_matrices_is_the_eager_one(kind, layer):
    torch.set_float32_matmul_precision('highest')
    found = []
    for compile in (False, True):
        model = tiny_gpt(linear=layer, linear_layers='mlp+attn').cuda()
        opt = Optimizer(model, train_config(model, optimizer=kind, grad_clip=0.0), compile=compile)
        opt.matrix_optimizer.precision = torch.float32
        if not compile:
            opt.capture = lambda: None
        gen = torch.Generator('cuda').manual_seed(0)
        for lr in (1e-2, 5e-3, 2e-3, 1e-3, 5e-4):  # captured at the third step
            opt.set_lr(lr)
            for p in opt.weights:
                p.grad = torch.randn(p.shape, generator=gen, device='cuda')
            opt.step()
        assert bool(opt.graphs) == compile
        found.append({**opt.leaves, **{f'{n}.{k}': v for n, s in opt.state_dict().items() for k, v in s.items()}})
    for name, v in found[0].items():
        torch.testing.assert_close(v, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize(
    'flags',
    [
        (), ('--linear=expanded',), ('--linear=expanded', '--expansion_depth=4'), ('--gradient_accumulation_steps=3',),
        ('--optimizer=muon',), ('--optimizer=normuon', '--linear=btt'),
        ('--optimizer=muon', '--linear=expanded', '--step_rule=composed'),
        ('--optimizer=muon', '--linear=expanded', '--step_rule=product'),
        ('--optimizer=normuon', '--linear=low_rank_sparse', '--step_rule=product'),
    ],
)  # fmt: skip
def test_the_captured_update_is_the_update(flags, dtype):
    a, ta = run(*flags, '--compile=false', f'--dtype={dtype}')
    b, tb = run(*flags, '--compile=false', f'--dtype={dtype}', graph=False)
    assert a == pytest.approx(b, abs=1e-4)
    assert ta.optimizer.grad_norm.item() == pytest.approx(tb.optimizer.grad_norm.item(), rel=1e-2)


@pytest.mark.parametrize('cuda_graph', [False, True])
@pytest.mark.parametrize('moments', ['reset', 'map'])
def test_the_update_is_captured_anew_after_a_rotation(moments, cuda_graph, monkeypatch):
    """Rotations are at iterations 5 and 10, away from c_fc and from c_proj; the fourth step after each replays again."""
    flags = (
        '--linear=expanded', '--expansion_init=orthogonal', '--expansion_schedule=rotate', '--expansion_every=5',
        f'--expansion_moments={moments}', '--compile=false', '--dtype=float32',
    )  # fmt: skip
    a, ta = run(*flags, f'--cuda_graph={cuda_graph}', steps=14)
    assert ta.model.config.linear_layers == 'h.1.mlp.c_fc'
    monkeypatch.setattr('optimizers.optim.Optimizer.capture', lambda self: None)
    b, _ = run(*flags, graph=False, steps=14)
    assert a == pytest.approx(b, abs=1e-4)


FORMED = [(f'--linear={name}', '--linear_path=materialised') for name in ('kronecker', 'tensor_train', 'btt')]


@pytest.mark.parametrize('flags', [(), ('--linear=expanded', '--linear_path=factored', '--expansion_depth=3'), *FORMED])
def test_compiled_and_eager_agree(flags):
    a, _ = run(*flags, '--dtype=float32')
    b, _ = run(*flags, '--dtype=float32', '--compile=false')
    assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.parametrize('flags', [(), ('--linear=monarch',), ('--linear=expanded',), ('--mlp=moe',)])
def test_a_second_start_finds_what_the_first_has_compiled(flags, monkeypatch):
    """Nothing is compiled or derived again, and the steps are the same."""
    monkeypatch.setattr(hardware, 'FUNCTIONS', True)

    def found():
        return {k: counters['aot_autograd'][f'autograd_cache_{k}'] for k in ('hit', 'miss', 'bypass')}

    first, _ = run(*flags)
    before = found()
    second, t = run(*flags)
    after = found()
    assert after['hit'] > before['hit'] and (after['miss'], after['bypass']) == (before['miss'], before['bypass'])
    assert first == pytest.approx(second, abs=1e-2)
    assert t.evaluate('val')['val_loss'] == pytest.approx(second[-1], abs=0.5)


@pytest.mark.parametrize('compile', [True, False])
@pytest.mark.parametrize(
    'flags',
    [(), ('--linear=expanded', '--expansion_depth=3'), ('--gradient_accumulation_steps=3',), ('--dtype=float16',)],
)
def test_a_replayed_step_is_the_step(flags, compile):
    flags = ('--dtype=float32', f'--compile={compile}', *flags)
    a, ta = run(*flags, '--cuda_graph=true')
    b, tb = run(*flags)
    assert ta.first_micro_step.graph is not None
    assert a == pytest.approx(b, abs=1e-3 if 'float16' in str(flags) else 1e-4)
    assert abs(ta.evaluate('val')['val_loss'] - tb.evaluate('val')['val_loss']) < 1e-3


@pytest.mark.parametrize(
    'flags',
    [
        (), ('--mlp=moe',), ('--linear=btt_moe',), ('--linear=monarch', '--guide_iters=4'), ('--on_nan=skip',),
        ('--linear=expanded', '--expansion_init=orthogonal', '--expansion_schedule=rotate', '--expansion_every=5'),
    ],
)  # fmt: skip
def test_what_is_replayed_by_default_learns_the_same(flags):
    # rotations at 5 and 10: the fourth step after each is captured again
    a, ta = run('--cuda_graph=auto', *flags, steps=14)
    b, _ = run(*flags, steps=14)
    assert ta.first_micro_step.graph is not None and ta.about_graphs.startswith('CUDA graphs: on')
    assert a == pytest.approx(b, abs=0.02)


@pytest.mark.parametrize(
    'flags', [(), ('--linear=monarch',), ('--linear=expanded',), ('--bias=true', '--vocab_size=257')]
)
def test_the_fast_step_is_no_further_from_float32_than_the_plain_one(flags):
    """All that makes it fast against eager attention, MLP and AdamW in the same precision: losses and each gradient."""
    r = bench_same.same(load(bench_same.SameConfig, [*FLAGS, '--cuda_graph=auto', '--steps=30', *flags]))
    assert r['fast']['mean'] < 1.5 * r['plain']['mean'] + 1e-3
    far = {k: (v, r['plain']['grads'][k]) for k, v in r['fast']['grads'].items()}
    assert not {k: (a, b) for k, (a, b) in far.items() if a > 1.5 * b + 1e-3}


@pytest.mark.parametrize('accumulation', [1, 2])
def test_the_gradients_of_a_replay_are_those_of_the_plain_pass(accumulation):
    """And they lie where the update reads them."""
    _, t = run('--cuda_graph=true', '--dtype=float32', f'--gradient_accumulation_steps={accumulation}', steps=5)
    x, y = t.data['train'].batch(123)
    t.first_micro_step(x, y)
    for _ in range(1, accumulation):
        t.micro_step(x, y)
    got = [p.grad.clone() for p in t.model.parameters()]
    assert [p.grad.data_ptr() for p in t.optimizer.weights] == [g.data_ptr() for g in t.optimizer.static_grads]
    t.optimizer.zero_grad()
    t.forward_backward(x, y)
    for a, p in zip(got, t.model.parameters()):
        assert (a - accumulation * p.grad).norm() <= 1e-4 * a.norm()


def test_dropout_differs_between_replays():
    _, t = run('--cuda_graph=true', '--dropout=0.5', steps=5)
    x, y = t.data['train'].batch(0)
    losses = {t.first_micro_step(x, y).item() for _ in range(4)}
    assert len(losses) == 4


@pytest.mark.parametrize('compile', [False, True])
@pytest.mark.parametrize('keys', [{}, dict(position='rope', n_kv_head=2, qk_norm=True), dict(attention_window=7)])
def test_replayed_sampling_draws_what_recomputing_draws(keys, compile):
    """Greedy to the id, beyond the context too; by chance reproducibly, and differently at every token."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=48, vocab_size=256, **keys)).cuda().eval()
    with torch.no_grad():
        for p in model.parameters():  # or the likeliest next token is always the last one
            p.add_(0.2 * torch.randn_like(p))
    idx = prompt = torch.randint(256, (2, 5), device='cuda')
    for _ in range(60):
        idx = torch.cat((idx, model(idx[:, -48:])[0][:, -1].argmax(-1, keepdim=True)), 1)
    if compile:
        model.compile()
    draw = lambda **keys: torch.cat([*model.generate(prompt, 60, **keys)], 1)
    assert torch.equal(draw(temperature=0), idx[:, 5:])
    by = lambda seed: draw(temperature=5.0, top_k=200, generator=torch.Generator('cuda').manual_seed(seed))
    assert torch.equal(by(1), by(1)) and not torch.equal(by(1), by(2)) and len(by(1).unique()) > 50


@pytest.mark.parametrize('where', [9, 39])
def test_a_nan_that_comes_later_ends_replayed_sampling(where):
    """Of a position embedding, read after that many tokens: at most 16 tokens later, and never after the last one."""
    model, drawn = tiny_gpt(block_size=64).cuda().eval(), []
    with torch.no_grad():
        model.transformer.wpe.weight[where, 3] = float('nan')
    with pytest.raises(UserError, match='computes NaN'):
        for new in model.generate(torch.zeros(2, 1, dtype=torch.long, device='cuda'), 40, top_k=5):
            drawn.append(new)
    assert where <= len(drawn) <= where + 16


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    'B, heads, kv, width, size, window', [(1, 12, 12, 64, 1001, 1024), (64, 12, 4, 64, 300, 50), (2, 3, 1, 24, 70, 70)]
)
def test_a_token_attends_as_in_float64(B, heads, kv, width, size, window, dtype):
    """At the ends of the blocks and of the cache, which gets the new key and value and keeps the others."""
    like = dict(device='cuda', dtype=dtype)
    for n in (0, 1, 63, 64, 65, size - 1):
        q, k, v = (torch.randn(B, 1, h, width, **like).transpose(1, 2) for h in (heads, kv, kv))
        cache, pos = torch.randn(2, B, kv, size, width, **like), torch.tensor([n], device='cuda')
        wanted = cache.cpu().double()
        y = attend.plain(q.cpu().double(), k.cpu().double(), v.cpu().double(), wanted, pos.cpu(), window, width**-0.5)
        got = torch.ops.nanomorph.attend(q, k, v, cache, pos, window, width**-0.5)
        assert torch.equal(cache.cpu().double(), wanted)
        assert (got.cpu().double() - y).abs().max() < (2e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('d_in, d_out', [(768, 2304), (3072, 768), (100, 7)])
def test_a_matrix_times_a_vector_is_the_product_of_float64(d_in, d_out, bias, monkeypatch):
    monkeypatch.setattr(vector, 'ON', True)
    layer = Dense(d_in, d_out, bias=bias, device='cuda', dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.weight, std=d_in**-0.5)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(1, 1, d_in, device='cuda')
    with torch.no_grad():
        assert vector.fits(x, layer.weight) and not vector.fits(x.expand(2, 1, d_in), layer.weight)
        y = layer(x)
    assert not vector.fits(x, layer.weight)  # with gradients it is torch's
    wanted = torch.nn.functional.linear(
        x.bfloat16().double(), layer.weight.double(), layer.bias.double() if bias else None
    )
    assert y.dtype == torch.bfloat16 and (y - wanted).abs().max() < 2e-2 * wanted.abs().max()


@pytest.mark.parametrize('compile', [False, True])
@pytest.mark.parametrize('B', [1, 3])
def test_a_cached_token_has_the_logits_of_the_whole_context_in_bfloat16(B, compile):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, block_size=48, vocab_size=256)).cuda().eval()
    round_weights(model, torch.bfloat16)
    idx = torch.randint(256, (B, 20), device='cuda')
    with torch.no_grad(), torch.autocast('cuda', torch.bfloat16):
        wanted, caches = model(idx)[0].float(), model.caches(B, 20)
        if compile:
            model.compile()
        for n in range(20):
            logits = model(idx[:, n : n + 1], caches=caches, pos=torch.tensor([n], device='cuda'))[0].float()
    assert (logits - wanted).norm() < 0.02 * wanted.norm()


def test_mfu_has_a_peak_and_bf16_is_the_default():
    _, t = run(steps=3)
    assert t.dtype == torch.bfloat16
    name = torch.cuda.get_device_name()
    if 'H100' in name or 'H200' in name:
        assert 700e12 < hardware.peak_flops(t.device, t.dtype) < 1000e12
    assert hardware.peak_flops(t.device, torch.float32) is None


def kernels_of(step) -> list[str]:
    """Names of the kernels that step() launches, once it has run before."""
    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        step()
        torch.cuda.synchronize()
    return [e.key for e in p.key_averages() if e.self_device_time_total > 0 and 'Memset' not in e.key]


@pytest.mark.parametrize('name', ['low_rank', 'block_dense', 'monarch', 'btt', 'block_diagonal'])
def test_structured_layers_permute_nothing(name):
    """Forward and backward in bfloat16 launch matrix products only: no copy, no elementwise kernel."""
    keys = dict(blocks=4) if name == 'btt' else {}
    m = LAYERS[name](512, 2048, GPTConfig(linear=name, **keys))
    m.start(None, 0.02, torch.Generator().manual_seed(0))
    m = m.cuda().bfloat16()
    x = torch.randn(4096, 512, device='cuda', dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(4096, 2048, device='cuda', dtype=torch.bfloat16)

    def step():
        return torch.autograd.grad(m(x), [x, *m.factors], dy)

    got = step()
    wanted = torch.autograd.grad(torch.nn.functional.linear(x, m.to_dense()), [x, *m.factors], dy)
    for a, b in zip(got, wanted):
        assert (a - b).norm() < 0.02 * b.norm()
    kernels = kernels_of(step)
    assert kernels and not [k for k in kernels if 'copy' in k.lower() or 'elementwise' in k or 'triton' in k], kernels


@pytest.mark.parametrize('name, keys, size', [
    ('btt', dict(rank=1), (192, 192)), ('btt', dict(rank=3), (192, 768)), ('btt', dict(rank=4), (384, 1152)),
    ('tensor_train', dict(rank=8), (192, 576)), ('tensor_train', dict(rank=8), (768, 192)),
    ('kronecker', {}, (192, 576)), ('kronecker', {}, (768, 192)), ('kronecker', dict(kronecker_shape=(384, 96)), (192, 768)),
])  # fmt: skip
def test_products_of_structured_layers_lie_where_tensor_cores_read_fast(name, keys, size):
    """Compiled, in bfloat16: right, and no kernel is one of those for rows of an odd number of bytes."""
    m = LAYERS[name](*size, GPTConfig(linear=name, **keys))
    m.start(None, 0.02, torch.Generator().manual_seed(0))
    m = m.cuda()
    x = torch.randn(8, 512, size[0], device='cuda', requires_grad=True)
    dy = torch.randn(8, 512, size[1], device='cuda')

    @torch.compile(fullgraph=True)
    def forward(x):
        with torch.autocast('cuda', torch.bfloat16):
            return m(x.sin())

    def step():
        return torch.autograd.grad(forward(x), [x, *m.factors], dy.bfloat16())

    got = step()
    wanted = torch.autograd.grad(torch.nn.functional.linear(x.sin(), m.to_dense()), [x, *m.factors], dy)
    for a, b in zip(got, wanted):
        assert (a - b).norm() < 0.02 * b.norm() and a.is_contiguous()
    kernels = kernels_of(step)
    assert kernels and not [k for k in kernels if re.search(r'align[124]\b', k)], kernels


@pytest.mark.parametrize('shape', [(12, 16, 12, 4, 16), (12, 16, 32, 4, 24), (32, 24, 16, 3, 12)], ids=str)
def test_two_factors_with_what_lies_between_on_chip_are_two_factors(shape):
    """Against float64, edges of tiles included."""
    g, a, f, r, e = shape
    torch.manual_seed(0)
    sizes = ((3, 1001, g * a), (g, a, f * r), (f, r * g, e), (3, 1001, f * e))
    x, A, B, dy = (torch.randn(*s, device='cuda').bfloat16() for s in sizes)
    X, A64, B64, D = (v.double() for v in (x, A, B, dy))
    y, Z = blocks.ops.two(X, A64, B64)
    dB, (dZ, dA) = blocks.ops.two_grad_B(D, X, A64, Z, f), blocks.ops.two_grad_A(D, X, B64, g)
    dx, s = blocks.ops.two_grad_x(dZ, A64).view(X.shape), torch.randn_like(x)
    act, slope = blocks.ops.inside_activated(x, A, B, 'relu2')
    found = (blocks.ops.inside(x, A, B, False), blocks.ops.inside(dy, A, B, True), blocks.ops.inside_against(dy, A, B, s),
             *blocks.ops.inside_grads(x, dy, A, B), act, slope)  # fmt: skip
    for a, b in zip(found, (y, dx, dx * s, dA, dB, torch.relu(y).square(), 2 * torch.relu(y))):
        assert a.shape == b.shape and (a - b).norm() < 0.01 * b.norm()


def test_a_narrow_mlp_with_what_lies_between_on_chip_is_the_mlp(monkeypatch):
    """As near to float32 as with products apart, and no product but these runs."""
    torch.manual_seed(0)
    c = GPTConfig(linear='btt', rank=4, bias=False)
    layers = [make(c, 'h.0.mlp.c_fc', 192, 768).cuda(), make(c, 'h.0.mlp.c_proj', 768, 192).cuda()]
    x, dy = torch.randn(2, 5, 336, 192, device='cuda')
    inputs = [x.requires_grad_(), *layers[0].parameters(), *layers[1].parameters()]

    def step():
        with torch.autocast('cuda', torch.bfloat16):
            y = fused.mlp(*layers, x, 'gelu')
        return y, *torch.autograd.grad(y, inputs, dy.bfloat16())

    wanted = layers[1](plain(layers[0](x), 'gelu'))
    wanted, apart = (wanted, *torch.autograd.grad(wanted, inputs, dy)), step()
    monkeypatch.setattr(chip, 'ON', True)
    for a, b, w in zip(step(), apart, wanted):
        assert (a - w).norm() <= 1.2 * (b - w).norm() + 1e-3 * w.norm()
    kernels = kernels_of(step)
    assert {'through', 'weights'} <= set(kernels) and not [k for k in kernels if 'gemm' in k or 'nvjet' in k], kernels


def plain(h, act):
    if act == 'relu2':
        return torch.relu(h).square()
    return torch.nn.functional.gelu(h, approximate='tanh' if act == 'gelu_tanh' else 'none')


@pytest.mark.parametrize('B, m, k', [(2, 1536, 2000), (3, 1096, 72), (1, 128, 1000), (6, 200, 136)])
@pytest.mark.parametrize('turned', [False, True])
def test_half_of_a_symmetric_product_is_the_whole(B, m, k, turned, monkeypatch):
    """Against float64, edges of tiles included, whichever way X lies."""
    monkeypatch.setattr(symmetric, 'LEAST', 1)
    X = torch.randn(B, *((k, m) if turned else (m, k)), device='cuda').bfloat16()
    X = X.mT if turned else X
    assert not fused.on_chip(X) or any('half' in name for name in kernels_of(lambda: symmetric.gram(X)))
    D = torch.randn(B, m, m, device='cuda').bfloat16()
    D = D + D.mT
    exact = X.double() @ X.double().mT
    for found, want in (
        (symmetric.gram(X), exact),
        (symmetric.gram(X, D, -4.775, 0.5), 0.5 * exact - 4.775 * D.double()),
    ):
        assert (found - want).abs().max() < 2**-8 * want.abs().max()


@pytest.mark.parametrize('act', fused.ACTIVATIONS)
@pytest.mark.parametrize(
    'name, keys',
    [
        ('low_rank', {}),
        ('block_dense', {}),
        ('monarch', {}),
        ('btt', dict(blocks=4)),
        ('low_rank', dict(rank=40)),
        ('dense', {}),
    ],
)
def test_an_mlp_with_its_activation_inside_the_products_is_the_mlp(name, keys, act):
    """Output and gradients in bfloat16 are as near to float32's as those of products and activation apart, also where
    tokens and rank do not fill the tiles; and no kernel but products runs."""
    torch.manual_seed(0)
    c = GPTConfig(linear=name, bias=False, **keys)
    layers = [make(c, 'h.0.mlp.c_fc', 256, 1024), make(c, 'h.0.mlp.c_proj', 1024, 256)]
    x = torch.randn(3, 336, 256, device='cuda')
    dy = torch.randn(3, 336, 256, device='cuda')

    def values(together, dtype):
        ms = [copy.deepcopy(m).cuda().to(dtype) for m in layers]
        i, d = x.to(dtype).requires_grad_(), dy.to(dtype)

        def step():
            y = fused.mlp(*ms, i, act) if together else ms[1](plain(ms[0](i), act))
            return y, *torch.autograd.grad(y, [i, *ms[0].parameters(), *ms[1].parameters()], d)

        return step

    wanted, apart, together = (
        values(False, torch.float32)(),
        values(False, torch.bfloat16)(),
        values(True, torch.bfloat16),
    )
    for a, b, w in zip(together(), apart, wanted):
        assert (a - w).norm() <= 1.2 * (b - w).norm() + 1e-3 * w.norm()
    kernels = kernels_of(together)
    assert not [k for k in kernels if 'gelu' in k.lower() or 'copy' in k.lower() or 'elementwise' in k], kernels
    assert any(k.startswith('product') for k in kernels), kernels


@pytest.mark.parametrize('tokens, inner, features', [(5, 40, 24), (300, 200, 520), (1000, 64, 128), (128, 1024, 136)])
def test_products_with_the_activation_inside_at_the_edges_of_their_tiles(tokens, inner, features):
    """Also through transposed operands, as Monarch's and dense layers have them, and where the accelerator cannot reach."""
    R = lambda *s: torch.randn(*s, device='cuda', dtype=torch.bfloat16)
    Z, B = R(2, inner, tokens), R(2, inner, features)
    x = R(tokens, 1)
    y, s = fused.activated(x, Z, B, 'gelu', True)
    h = (Z.float().mT @ B.float()).transpose(0, 1).reshape(tokens, -1).bfloat16().float()
    wanted = torch.nn.functional.gelu(h), torch.ops.aten.gelu_backward(torch.ones_like(h), h)
    for a, w in zip((y, s), wanted):
        assert (a - w).norm() < 0.01 * w.norm()
    dZ, A = R(tokens, 2 * inner), R(2, features, inner)
    found = fused.against(dZ, A, s, 1, 'gelu', True)
    wanted = (dZ.float().view(tokens, 2, inner).transpose(0, 1) @ A.float().mT).transpose(0, 1).reshape(
        tokens, -1
    ) * s.float()
    assert (found - wanted).norm() < 0.01 * wanted.norm()


def as_near_as_apart(layers, x, dy, act):
    """Output and gradients of a fused MLP in bfloat16 are as near to float64's as those of its products and activation apart."""

    def values(together, dtype):
        up, down = (copy.deepcopy(m).cuda().to(dtype) for m in layers)
        i = x.to(dtype).requires_grad_()
        y = fused.mlp(up, down, i, act) if together else down(plain(up(i), act))
        return y, *torch.autograd.grad(y, [i, *up.parameters(), *down.parameters()], dy.to(dtype))

    wanted, apart, together = values(False, torch.float64), values(False, torch.bfloat16), values(True, torch.bfloat16)
    for a, b, w in zip(together, apart, wanted):
        assert (a - w).norm() <= 1.2 * (b - w).norm() + 1e-3 * w.norm()


@pytest.mark.parametrize('act', fused.ACTIVATIONS)
def test_wide_mlps_hold_no_third_wide_array(act, monkeypatch):
    """Beyond NARROW h and act(h) are all that is written forward, and the gradient at h is the product's output, changed in place."""
    monkeypatch.setattr(fused, 'NARROW', 0)
    torch.manual_seed(0)
    c = GPTConfig(linear='low_rank', bias=False)
    layers = [make(c, 'h.0.mlp.c_fc', 256, 1024), make(c, 'h.0.mlp.c_proj', 1024, 256)]
    as_near_as_apart(layers, *torch.randn(2, 3, 336, 256, device='cuda'), act)

    def grown(f, *args):
        f(*args)  # workspaces come with the first call
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f(*args)
        return torch.cuda.max_memory_allocated() - before

    R = lambda *s: torch.randn(*s, device='cuda', dtype=torch.bfloat16)
    Z, B, s = R(8192, 128), R(1, 128, 2048), R(8192, 2048)
    assert grown(fused.activated, Z, Z, B, act, False) <= 2.1 * s.nbytes
    assert grown(fused.against, Z, B.mT.contiguous(), s, 1, act, False) <= 1.1 * s.nbytes


def nearly(f, exact, *given):
    """f of tensors on the GPU is exact of them in float64, as near as rounding at the end allows; gradients too."""
    leaves = [t.requires_grad_() for t in given if t is not None and t.is_floating_point()]
    twins = [t if t is None or not t.is_floating_point() else t.detach().double().requires_grad_() for t in given]
    found, wanted = f(*given), exact(*twins)
    scale = [torch.randn(w.shape, device='cuda') for w in wanted]
    found += torch.autograd.grad(found, leaves, [s.to(y.dtype) for s, y in zip(scale, found)])
    scale = [s.to(y.dtype).double() for s, y in zip(scale, found)]
    wanted += torch.autograd.grad(wanted, [t for t in twins if t is not None and t.requires_grad], scale)
    for a, b in zip(found, wanted):
        assert (a - b).norm() < (2**-8 if a.dtype == torch.bfloat16 else 1e-2) * b.norm() + 1e-6


@pytest.mark.parametrize('V, most', [(50304, 2**30), (50257, 2**22), (1024, 2**30)])
def test_the_loss_in_one_pass_is_that_of_float64(V, most, monkeypatch):
    """Losses and gradients, with targets left out, all rows at once and a few after the other; without gradients, too."""
    monkeypatch.setattr(head, 'MOST_LOGITS', most)
    x, W = torch.randn(300, 64, device='cuda', dtype=torch.bfloat16), torch.randn(V, 64, device='cuda')
    targets = torch.randint(V, (300,), device='cuda')
    targets[::7] = -1
    losses, dx, dW = torch.ops.nanomorph.head_loss(x, W, targets, True)
    z = (x @ W.bfloat16().T).double()  # rounded as logits are
    wanted = torch.nn.functional.cross_entropy(z, targets, ignore_index=-1, reduction='none')
    d = (
        z.softmax(-1).scatter_add(1, targets.clamp(min=0)[:, None], -torch.ones_like(z[:, :1]))
        * (targets >= 0)[:, None]
    )
    assert (losses - wanted).abs().max() < 2e-3 * wanted.max()
    assert (dx - d @ W.bfloat16().double()).norm() < 0.01 * dx.norm()
    assert dW.dtype == torch.float32 and (dW - d.T @ x.double()).norm() < 0.01 * dW.norm()
    assert torch.equal(losses, torch.ops.nanomorph.head_loss(x, W, targets, False)[0])
    targets[1], targets[2] = V, V + 64  # no such tokens: as loud as a GPU can be without a sync
    losses, dx, _ = torch.ops.nanomorph.head_loss(x, W, targets, True)
    assert losses[1:3].isnan().all() and dx[1:3].isnan().all() and not losses[3:].isnan().any()


@pytest.mark.parametrize('C, rms, weight, bias', [(768, False, True, False), (192, False, True, True), (100, True, True, False),
                                                  (1600, True, False, False), (8192, False, True, True)])  # fmt: skip
def test_a_branch_and_a_norm_in_one_pass_are_those_of_float64(C, rms, weight, bias):
    def exact(x, m, w, b):
        s = x + m
        f = torch.nn.functional
        return s, f.rms_norm(s, (C,), w, 1e-6) if rms else f.layer_norm(s, (C,), w, b, 1e-5)

    R = lambda *s: torch.randn(*s, device='cuda')
    w, b = R(C) if weight else None, R(C) if bias else None
    nearly(lambda *a: norms.add(*a, rms), exact, R(3, 3001, C), R(3, 3001, C).bfloat16(), w, b)


@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.parametrize('H, K, hs', [(12, 12, 64), (6, 2, 32), (3, 3, 24), (2, 1, 128)])
def test_queries_and_keys_in_one_pass_are_those_of_float64(H, K, hs, norm):
    B, T = 3, 130
    rope = [t.cuda() for t in rope_table(torch.arange(T), hs)]

    def exact(qkv):
        q, k, v = (t.view(B, T, -1, hs).transpose(1, 2) for t in qkv.split([H * hs, K * hs, K * hs], 2))
        if norm:
            q, k = (torch.nn.functional.rms_norm(t, (hs,), None, 1e-6) for t in (q, k))
        turn = lambda t: rotary.turned(t, *rope)
        return turn(q), turn(k), v

    nearly(
        lambda x: rotary.heads(x, rope, H, K, norm),
        exact,
        torch.randn(B, T, (H + 2 * K) * hs, device='cuda').bfloat16(),
    )


@pytest.mark.parametrize('act', fused.ACTIVATIONS)
@pytest.mark.parametrize('T, n, hidden', [(1008, 256, 1024), (300, 72, 200)])
def test_an_mlp_with_biases_in_one_pass_is_the_mlp(T, n, hidden, act):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(n, hidden), torch.nn.Linear(hidden, n)]
    as_near_as_apart(layers, *torch.randn(2, T, n, device='cuda').bfloat16(), act)


@pytest.mark.parametrize('graph', [False, True])
@pytest.mark.parametrize('flags', [(), ('--bias=true', '--gradient_accumulation_steps=2', '--activation_checkpointing=true'),
                                   ('--position=rope', '--qk_norm=true', '--norm=rmsnorm')])  # fmt: skip
def test_training_in_one_pass_each(flags, graph, monkeypatch):
    """Compiled, replayed and checkpointed, with kernels and without, the same losses; the kernels run."""
    if graph and '--activation_checkpointing=true' in flags:
        pytest.skip('not replayed')
    flags = (*flags, '--vocab_size=1100', f'--cuda_graph={graph}')
    monkeypatch.setattr(fused, 'BIAS', True)
    for module in (head, norms, rotary):
        monkeypatch.setattr(module, 'ON', True)
    a, t = run(*flags)
    x, y = t.data['train'].batch(0)
    names = ' '.join(kernels_of(lambda: t.forward_backward(x, y)))
    assert (
        'cross_entropy_row' in names and 'add_norm_backward' in names and ('rotary' in names) == ('rope' in str(flags))
    )
    monkeypatch.setattr(fused, 'BIAS', False)
    for module in (head, norms, rotary):
        monkeypatch.setattr(module, 'ON', False)
    b, _ = run(*flags)
    assert a == pytest.approx(b, abs=0.02)


def test_training_with_the_activation_inside_the_products():
    flags = ('--linear=monarch', '--linear_path=factored', '--dtype=bfloat16')
    a, _ = run(*flags)
    b, _ = run(*flags, '--fuse_mlp=false', '--compile=false')
    assert a == pytest.approx(b, abs=0.02)


@pytest.mark.parametrize('flags', [('--linear=btt_moe',), ('--mlp=moe',)])
def test_mixtures_on_a_gpu_are_those_of_a_cpu(flags):
    """The grouped product in bfloat16 against one product after another in float32."""
    a, _ = run(*flags, '--dtype=bfloat16', steps=5)
    b, _ = run(*flags, '--dtype=float32', '--compile=false', steps=5)
    assert a == pytest.approx(b, abs=0.05)


@pytest.mark.parametrize('E, k', [(8, 2), (40, 3), (3, 3)])
def test_routing_on_a_gpu_is_that_of_a_cpu(E, k, monkeypatch):
    monkeypatch.setattr(routing, 'ON', True)
    gen = torch.Generator().manual_seed(0)
    logits, weight, found = torch.randn(1000, E, generator=gen), torch.randn(1000, k, generator=gen), []
    logits[:10] = 0
    for device in ('cpu', 'cuda'):
        z = logits.to(device).requires_grad_()
        gates, experts, loss = routing.route(z, k)
        grad = torch.autograd.grad((gates * weight.to(device)).sum() + 3 * loss, z)[0]
        found.append([t.detach().cpu() for t in (gates, experts, loss, grad)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, check_dtype=False)  # the kernel counts experts in int32


@pytest.mark.parametrize('E, k, d_in, d_out', [(8, 2, 128, 512), (5, 3, 80, 208), (40, 2, 256, 256), (8, 1, 72, 40)])
def test_a_mixture_multiplies_rows_where_they_lie(E, k, d_in, d_out):
    """Against float64 and loops on a CPU; edges of tiles, and an expert that half of the tokens go to."""
    gen, T = torch.Generator().manual_seed(0), 4000
    draw = lambda *shape: torch.randn(*shape, generator=gen).bfloat16()
    logits = torch.randn(T, E, generator=gen)
    logits[: T // 2, -1] += 5
    top, experts = logits.topk(k, dim=1)
    up, down = draw(E, d_in, d_out) / d_in**0.5, draw(E, d_out, d_in) / d_out**0.5
    x, dy, dz = draw(T, d_in), draw(T, d_out), draw(T, d_in)
    found = []
    for device, dtype in (('cpu', torch.float64), ('cuda', torch.bfloat16)):
        leaves = [t.to(device, dtype).requires_grad_() for t in (x, up, down)]
        leaves.append(top.to(device, torch.promote_types(dtype, torch.float32)).requires_grad_())
        plan, gates = mixture.plan(experts.to(device), E), leaves[-1].softmax(1)
        y = mixture.product(*leaves[:2], gates, plan)
        z = mixture.mlp(*leaves[:3], gates, plan)
        found.append([y, *torch.autograd.grad(y, leaves, dy.to(device, dtype), retain_graph=True, allow_unused=True)])
        found[-1] += [z, *torch.autograd.grad(z, leaves, dz.to(device, dtype))]
    assert (plan[3] is not None) == (E < 40 or k == 1)
    for want, got in zip(*found):
        assert want is None or (got.cpu() - want).abs().max() <= 2**-6 * want.abs().max()


@pytest.mark.parametrize('keys', [dict(mlp='moe'), dict(linear='btt_moe', linear_layers='mlp+attn')])
@pytest.mark.parametrize('B', [4, 8])
def test_the_products_of_a_mixture_are_opaque_to_the_compiler(keys, B, monkeypatch):
    """One graph, and the loss and gradients of sorted rows; 2,048 tokens are few for tiles of one set of experts each."""
    torch._dynamo.reset()
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=64, block_size=512, vocab_size=64, **keys)).cuda().train()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    idx, found = torch.randint(64, (B, 513), device='cuda'), []
    for on in (False, True):
        for m in (mixture, routing):
            monkeypatch.setattr(m, 'ON', on)
        f = torch.compile(model, fullgraph=True) if on else model

        def gradients(f=f):
            with torch.autocast('cuda', torch.bfloat16):
                loss = f(idx[:, :-1], idx[:, 1:])[1]
            return [loss.detach(), *torch.autograd.grad(loss, [*model.parameters()])]

        found.append(gradients())
        names = ''.join(kernels_of(gradients))
        assert all((name in names) == on for name in ('outers', 'place', 'chosen'))
    for a, b in zip(*found):
        assert (a - b).norm() < 0.03 * a.norm()


def test_the_time_of_a_mixture_grows_with_active_experts_not_with_experts():
    def ms(E, k):
        m = moe.MoE(GPTConfig(n_embd=768, n_head=12, experts=E, experts_active=k), 3072).cuda()
        torch.nn.init.normal_(m.router)
        x = torch.randn(16, 1024, 768, device='cuda')
        times = []
        for _ in range(8):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            with torch.autocast('cuda', torch.bfloat16):
                m(x).sum().backward()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times)[4]

    base, experts, active = ms(8, 2), ms(16, 2), ms(8, 6)
    print(f'8 experts, 2 active: {base:.2f} ms; 16, 2: {experts:.2f} ms; 8, 6: {active:.2f} ms')
    assert experts < 1.2 * base < active


@pytest.mark.parametrize('net', ['mlp', 'cnn', 'letters'])
@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW])
def test_a_replayed_step_of_a_toy_is_the_step(kind, net):
    device = torch.device('cuda')
    make = dict(mlp=lambda: MLP(64, 3, 0), cnn=lambda: CNN(8, 2, 20), letters=lambda: Transformer(16))[net]
    x, y = torch.randn(40, 1, 8, 8, device=device), torch.randint(0, 10, (40,), device=device)
    if net == 'letters':
        x, y = torch.randint(0, 27, (40, 20), device=device), torch.randint(0, 3, (40, 20), device=device)
    after = []
    for graph in (True, False):
        stack = Stack(make, [1, 2], device)
        stack.train(False)  # no dropout
        optimizer = make_optimizer(kind, stack, 1e-2, device)
        total = torch.zeros(2, device=device, dtype=next(iter(stack.params.values())).dtype)
        step = make_step(stack, optimizer, x, y, total, graph)
        for epoch in range(3):
            set_lr(optimizer, 1e-2 * 0.5**epoch)
            for index in batches(40, 8, [1, 2], epoch, device):
                step(index)
        after.append([total, *stack.params.values()])
    if net == 'cnn':  # TF32, and Adam takes a step of the whole rate on rounding: the loss only
        assert torch.allclose(after[0][0], after[1][0], rtol=1e-2)
        return
    for a, b in zip(*after):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    'flags',
    [
        (),
        ('--linear=expanded', '--expansion=2000', '--linear_path=materialised'),
        ('--linear=expanded', '--expansion=2000', '--linear_path=materialised', '--cuda_graph=true'),
        ('--linear=monarch', '--linear_path=factored'),
    ],
    ids=['dense', 'expanded', 'expanded, replayed', 'fused'],
)
def test_resume_is_exact_in_the_deterministic_mode(flags, script, shakespeare, tmp_path):
    """Twelve steps at once, and six and six in another process: losses, weights and moments are the same to the bit."""
    same = [
        'config/shakespeare_char.py', f'--dataset={shakespeare}', '--deterministic=true', '--compile=true', '--n_layer=2',
        '--batch_size=16', '--warmup_iters=2', '--lr_decay_iters=12', '--eval_interval=6', '--eval_iters=4',
        '--log_interval=1', '--always_save_checkpoint=true', '--cuda_graph=false', *flags,
    ]  # fmt: skip
    at_once, parts = tmp_path / 'at_once', tmp_path / 'parts'
    script('train.py', *same, '--max_iters=12', f'--out_dir={at_once}')
    script('train.py', *same, '--max_iters=6', f'--out_dir={parts}')
    script('train.py', *same, '--max_iters=12', f'--out_dir={parts}', '--init_from=resume')
    assert len(losses(parts)) == 12
    assert losses(parts) == losses(at_once)
    assert losses(parts, 'eval') == losses(at_once, 'eval')
    a, b = (checkpoint.load(folder / 'ckpt.pt') for folder in (at_once, parts))
    assert a['iter_num'] == b['iter_num'] == 12
    assert not [k for k in a['model'] if not torch.equal(a['model'][k], b['model'][k])]
    moments = {f'{k}.{m}': (v, b['optimizer'][k][m]) for k, of in a['optimizer'].items() for m, v in of.items()}
    assert not [k for k, (v, w) in moments.items() if not torch.equal(v, w)]
