"""Mixtures of experts: the sparse computation is the dense formula, and a router that spreads evenly pays nothing."""

import math

import numpy as np
import pytest
import torch
from conftest import learn, tiny_gpt, tokens, train_config
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from configurator import UserError
from linear.btt_moe import BttMoE
from linear.kernels import mixture as kernels
from linear.kernels.routing import route
from linear.moe import MoE
from model import GPTConfig
from optimizers.optim import Optimizer
from surgery import collapse


@pytest.fixture(params=['sorted', 'by set', 'by expert'])
def ways(request, monkeypatch):
    """Of taking the products of a mixture: rows sorted by expert, or left where they are, in tiles of one set or of one
    expert."""
    if request.param != 'sorted':
        monkeypatch.setattr(kernels, 'serves', lambda *_: True)
        monkeypatch.setattr(kernels, 'BM', 2 if request.param == 'by set' else 1000)


def mixture(k=2, E=4):
    torch.manual_seed(0)
    m = BttMoE(36, 54, GPTConfig(linear='btt_moe', experts=E, experts_active=k)).double()
    m.start(None, 0.02, torch.Generator().manual_seed(1))
    torch.nn.init.normal_(m.router)
    return m


def all_experts(m, x):
    """(E, T, d_out): what every expert alone makes of x."""
    A, B = m.factors
    g, E, a, f = A.shape
    return torch.einsum('tga,gEaf,fEge->Etfe', x.view(-1, g, a), A, B).flatten(2)


@pytest.mark.parametrize('k', [1, 2, 4])
def test_a_mixture_is_the_gated_sum_of_its_chosen_experts(k, ways):
    m = mixture(k)
    x = torch.randn(2, 7, 36, dtype=torch.float64, requires_grad=True)
    flat = x.view(-1, 36)
    logits = flat @ m.router.T
    top, chosen = logits.topk(k, dim=1)
    gates = torch.zeros_like(logits).scatter(1, chosen, top.softmax(1))
    assert ((gates != 0).sum(1) == k).all()
    wanted = torch.einsum('te,etd->td', gates, all_experts(m, flat)).view(2, 7, 54)
    torch.testing.assert_close(m(x), wanted, rtol=1e-5, atol=1e-6)  # the gates are in float32
    weight = torch.randn_like(wanted)
    leaves = [x, *m.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (m(x), wanted))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_experts_that_nobody_chose_get_no_gradient():
    m = mixture(1)
    with torch.no_grad():
        m.router.zero_()
        m.router[2, 0] = 1.0
    x = torch.rand(9, 36, dtype=torch.float64) + 1
    m(x).sum().backward()
    others = [0, 1, 3]
    assert (m.factors[0].grad[:, others] == 0).all() and (m.factors[0].grad[:, 2] != 0).any()


def test_the_routers_loss_is_one_at_an_even_spread():
    logits = 1e-3 * torch.eye(4).repeat(5, 1)
    gates, experts, loss = route(logits, 1)
    size = 0.1 * logits.logsumexp(1).square().mean()
    assert loss.item() == pytest.approx(1 + size.item(), abs=1e-3)
    _, _, uneven = route(torch.tensor([[5.0, 0, 0, 0]]).repeat(8, 1), 1)
    assert uneven > loss


def test_the_balance_loss_lowers_the_share_of_the_favoured_expert():
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 4, generator=gen) + torch.tensor([1.0, 0, 0, 0])
    logits.requires_grad_()
    balance = route(logits, 1)[2] - 0.1 * logits.logsumexp(1).square().mean()
    (grad,) = torch.autograd.grad(balance, logits)
    share = lambda z: z.softmax(1).mean(0)[0].item()
    assert share(logits - 10 * grad) < share(logits) - 0.01
    assert grad[:, 0].min() > 0 > grad[:, 1:].sum()


@pytest.mark.parametrize('keys', [dict(mlp='moe'), dict(linear='btt_moe')])
def test_router_losses_are_averaged_over_routers_and_weighted(keys):
    """A router of zeros has an even spread: its loss is 1 + 0.1 log(experts)^2."""
    x, y = tokens(), tokens(seed=1)
    for n_layer, weight in ((1, 0.01), (4, 0.01), (2, 0.3)):
        model = tiny_gpt(n_layer=n_layer, experts=4, router_loss=weight, **keys)
        for name, p in model.named_parameters():
            if name.endswith('router'):
                p.data.zero_()
        extra = model.train()(x, y)[1] - model.eval()(x, y)[1]
        assert extra.item() == pytest.approx(weight * (1 + 0.1 * math.log(4) ** 2), abs=1e-4)


@pytest.mark.parametrize('k', [1, 2])
def test_the_standard_mixture_is_the_gated_sum_of_its_mlps(k, ways):
    torch.manual_seed(0)
    m = MoE(GPTConfig(n_embd=16, n_head=2, n_layer=1, experts=4, experts_active=k), 32).double()
    torch.nn.init.normal_(m.router)
    x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    flat = x.view(-1, 16)
    top, chosen = (flat @ m.router.T).topk(k, dim=1)
    gates = torch.zeros(14, 4, dtype=torch.float64).scatter(1, chosen, top.softmax(1))
    each = torch.stack([F.gelu(flat @ m.c_fc[e]) @ m.c_proj[e] for e in range(4)])
    wanted = torch.einsum('te,etd->td', gates, each).view(2, 7, 16)
    torch.testing.assert_close(m(x), wanted, rtol=1e-5, atol=1e-6)  # the gates are in float32
    leaves, weight = [x, *m.parameters()], torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (m(x), wanted))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('E, k', [(8, 1), (8, 2), (5, 3), (4, 4)])
def test_rows_are_sorted_by_their_set_of_experts(E, k):
    experts = torch.rand(200, E, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :k]
    order, ends = kernels.ops.sets(experts, E)
    found = [order[a:b].tolist() for a, b in zip([0, *ends.tolist()], ends.tolist())]
    wanted = {}
    for i, e in enumerate(experts.sort(1).values.tolist()):
        wanted.setdefault(tuple(reversed(e)), []).append(i)
    assert [rows for rows in found if rows] == [rows for _, rows in sorted(wanted.items())]


def test_of_equal_logits_the_first_are_chosen():
    logits = torch.tensor([[0.0, 0, 0, 0], [1, 3, 3, 3], [0, 2, 1, 2]])
    assert route(logits, 2)[1].tolist() == [[0, 1], [1, 2], [1, 3]]


@pytest.mark.parametrize('E, k', [(8, 2), (5, 1), (3, 3)])
def test_gates_and_loss_are_their_formulas(E, k):
    gen = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(40, E, generator=gen).requires_grad_(), torch.randn(40, k, generator=gen)
    top, experts = logits.topk(k, dim=1)
    P, f = logits.softmax(1).mean(0), F.one_hot(experts, E).float().mean((0, 1))
    wanted = top.softmax(1), experts, E * (P * f).sum() + 0.1 * logits.logsumexp(1).square().mean()
    found = route(logits, k)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, check_dtype=False)
    grads = [torch.autograd.grad((g * weight).sum() + 3 * loss, logits)[0] for g, _, loss in (found, wanted)]
    torch.testing.assert_close(*grads)


@pytest.mark.slow
@pytest.mark.parametrize('keys', [dict(linear='btt_moe', linear_layers='mlp+attn'), dict(mlp='moe')])
def test_mixtures_train_compile_and_cannot_be_collapsed_by_mistake(keys):
    torch._dynamo.reset()
    model = tiny_gpt(n_layer=1, **keys).train()
    opt = Optimizer(model, train_config(model, learning_rate=3e-3))
    x, y = tokens(), tokens(seed=1)
    f = torch.compile(model, fullgraph=True, backend='aot_eager')
    losses = learn(f, opt, x, y, 8)
    assert losses[-1] < losses[0] - 0.05
    routers = [p for n, p in model.named_parameters() if n.endswith('router')]
    assert routers and all((p != 0).any() for p in routers)  # they are trained
    eager = model(x, y)[1].item()
    assert eager == pytest.approx(f(x, y)[1].item(), rel=1e-4)
    if 'linear' in keys:
        with pytest.raises(UserError, match='no matrix'):
            collapse.collapse_model(model)


def test_operations_count_the_active_experts_only():
    few, many = (tiny_gpt(mlp='moe', experts=e).flops_per_token() for e in (4, 16))
    assert many - few == 6 * 2 * 12 * 32  # the routers' rows: layers, experts more, width
    few, many = (mixture(2, e).macs() for e in (4, 16))
    assert many - few == 12 * 36
    with FlopCounterMode(display=False) as counter:
        mixture(2, 4)(torch.randn(7, 36, dtype=torch.float64))
    assert counter.get_total_flops() == 2 * 7 * few


def test_a_mixture_cannot_be_asked_to_be_a_matrix():
    config = GPTConfig(n_embd=32, n_head=2, n_layer=1, linear='btt_moe', linear_path='materialised')
    assert 'is no matrix; use factored or auto' in config.problems()[0]


@pytest.mark.parametrize(
    'keys', [dict(linear='btt_moe', linear_layers='mlp+attn'), dict(mlp='moe', linear='low_rank', linear_layers='attn')]
)
def test_mixtures_generate_with_a_cache_what_they_generate_without(keys):
    """The router of the cached steps sees one token."""
    model = tiny_gpt(**keys).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    cached = torch.cat([*model.generate(tokens(T=3), 10, temperature=0)], dim=1)
    idx = tokens(T=3)
    for _ in range(10):
        idx = torch.cat((idx, model(idx)[0][:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(cached, idx[:, 3:]) and len(cached.unique()) > 2


@pytest.mark.parametrize('flags', [['--linear=btt_moe'], ['--mlp=moe', '--linear=low_rank']])
def test_runs_with_mixtures_are_sampled_and_evaluated(flags, run_train, capsys, fails, tmp_path):
    import sample
    from configurator import load
    from evaluate import EvalConfig, evaluate
    from logger import read_metrics
    from surgery.collapse import TransferConfig, collapse
    from tokens.loader import Loader

    out = run_train(*flags, '--linear_layers=attn', '--max_iters=5', '--eval_iters=4')
    logged = [m['val_loss'] for m in read_metrics(out) if m['kind'] == 'eval'][-1]
    model, tok = sample.from_checkpoint(out / 'ckpt.pt')
    assert not model.training and len([*model.generate(torch.tensor([tok.encode('ROMEO')]), 5)]) == 5
    capsys.readouterr()
    sample.sample(
        load(sample.SampleConfig, [f'--out_dir={out}', '--start=ROMEO:', '--max_new_tokens=40', '--device=cpu'])
    )
    assert 'ROMEO:' in (text := capsys.readouterr().out) and len(text) > 50
    data = Loader('shakespeare_char', 'val', 32, 4, model.config.vocab_size)
    with torch.no_grad():
        losses = [model(x, y)[1].item() for x, y, _ in data.eval_batches(16)]
        assert sum(losses) / 4 == pytest.approx(logged, rel=1e-5)
        ids = torch.from_numpy(data.tokens.windows(32 * np.arange(9), 33).astype(np.int64))
        wanted = model(ids[:, :-1], ids[:, 1:])[1].item()
    flags = [f'--checkpoint={out}/ckpt.pt', '--device=cpu', '--limit=9', f'--out={tmp_path}/e.json']
    report = evaluate(load(EvalConfig, flags))
    assert report['tasks']['val']['figures']['nats_per_token'] == pytest.approx(wanted, rel=1e-5)
    cfg = TransferConfig(checkpoint=str(out / 'ckpt.pt'), out=str(tmp_path / 'plain.pt'))
    if model.config.linear == 'btt_moe':
        fails(lambda: collapse(cfg), 'is no matrix', 'take it as it is')
    else:
        collapse(cfg)
        assert (tmp_path / 'plain.pt').exists()


def test_the_backward_pass_of_a_mixture_costs_twice_its_forward_pass():
    m, x = mixture(2, 4), torch.randn(7, 36, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        m(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 7 * m.macs()
