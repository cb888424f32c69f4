"""The optimizer's rates and decay reach what they name, and the gradient is the batch's however it is cut."""

import pytest
import torch
from conftest import tiny_gpt, train_config

from configurator import load
from logger import read_metrics
from optimizers.optim import Optimizer, lr_at, problems
from train import TrainConfig


@pytest.mark.parametrize('keys', [{}, dict(linear='low_rank', rank=4, linear_layers='mlp')])
def test_hidden_lr_changes_the_rate_of_the_blocks_matrices_and_nothing_else(keys):
    """Not the decay, lr * weight_decay, of anything; not the rate of vectors, embeddings and the head."""
    rates = {}
    for hidden_lr in (1.0, 0.25):
        model = tiny_gpt(bias=True, tie_head=False, **keys)
        opt = Optimizer(model, train_config(model, hidden_lr=hidden_lr, weight_decay=0.1))
        opt.set_lr(1e-2)
        names = {id(p): name for name, p in opt.leaves.items()}
        rates[hidden_lr] = {
            names[id(p)]: (g['lr'], g['lr'] * g['weight_decay'], p.dim())
            for g in opt.adamw.param_groups
            for p in g['params']
        }
    assert rates[1.0].keys() == rates[0.25].keys()
    for name, (lr, decay, dim) in rates[1.0].items():
        factor = 0.25 if name.startswith('transformer.h.') and dim >= 2 else 1.0
        assert rates[0.25][name][0] == pytest.approx(factor * lr), name
        assert rates[0.25][name][1] == pytest.approx(decay), name
        assert (decay == 0) == (dim < 2), name


def test_the_gradient_of_a_batch_is_that_of_its_halves(run_train):
    """Adam and clipping hide a factor on the gradient; its norm, measured before them, does not."""
    norms = []
    for flags in (('--batch_size=8', '--gradient_accumulation_steps=1'), ('--gradient_accumulation_steps=2',)):
        out = run_train('--max_iters=3', '--grad_clip=0', *flags, out=str(len(norms)))
        norms.append([m['grad_norm'] for m in read_metrics(out) if m['kind'] == 'train'])
    assert len(norms[0]) == 3 and norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_mup_lowers_the_rate_of_matrices_and_of_no_embedding():
    model = tiny_gpt(bias=True, tie_head=False, mup_base=16)  # 32 wide
    opt = Optimizer(model, train_config(model))
    opt.set_lr(1.0)
    rates = {id(p): g['lr'] for g in opt.adamw.param_groups for p in g['params']}
    for name, p in opt.leaves.items():
        assert rates[id(p)] == (1.0 if p.dim() == 1 or name.endswith(('wte.weight', 'wpe.weight')) else 0.5), name


def test_adamw_has_the_betas_of_the_config():
    model = tiny_gpt()
    groups = Optimizer(model, train_config(model, beta1=0.8, beta2=0.99)).adamw.param_groups
    assert {g['betas'] for g in groups} == {(0.8, 0.99)}


def test_without_a_schedule_its_keys_are_not_judged():
    odd = dict(min_lr=1.0, warmup_iters=50, lr_decay_iters=20, schedule='wsd', wsd_decay_iters=99)
    assert not problems(train_config(tiny_gpt(), decay_lr=False, **odd))
    assert [p.split(' ')[0] for p in problems(train_config(tiny_gpt(), **odd | dict(decay_lr=True)))] == [
        'min_lr', 'warmup_iters', 'wsd_decay_iters'
    ]  # fmt: skip


def test_the_state_of_a_parameter_goes_by_its_name_and_not_by_its_place():
    """Of three ways to order the names in a file; each parameter has moments of its own."""
    model = tiny_gpt(bias=True)
    cfg = train_config(model)
    opt = Optimizer(model, cfg)
    state = {
        name: dict(step=torch.tensor(3.0), exp_avg=torch.full_like(p, i), exp_avg_sq=torch.full_like(p, i + 0.5))
        for i, (name, p) in enumerate(opt.leaves.items())
    }
    for names in (list(state), list(state)[::-1], sorted(state)):
        opt = Optimizer(model, cfg)
        opt.load_state_dict({name: state[name] for name in names})
        found = opt.state_dict()
        for name, wanted in state.items():
            assert all(torch.equal(found[name][k], v) for k, v in wanted.items()), name


@pytest.mark.parametrize('schedule', ['cosine', 'wsd'])
def test_a_schedule_may_be_all_warmup_with_no_decay_or_stand_at_one_rate_and_no_more(schedule):
    """At their limits the keys are taken, one beyond they are refused, and the rates are finite all along."""
    at = dict(learning_rate=1e-2, min_lr=1e-2, warmup_iters=20, lr_decay_iters=20, schedule=schedule, wsd_decay_iters=0)
    model = tiny_gpt()
    cfg = train_config(model, **at | dict(decay_lr=True))
    assert problems(cfg) == []
    assert [lr_at(cfg, i) for i in (0, 19, 20, 21)] == pytest.approx([1e-2 / 21, 1e-2 * 20 / 21, 1e-2, 1e-2])
    for key, value in (('min_lr', 1.01e-2), ('warmup_iters', 21)):
        found = problems(train_config(model, **at | {key: value, 'decay_lr': True}))
        assert found and found[0].startswith(f'{key} = ')
    full = at | dict(schedule='wsd', warmup_iters=5, decay_lr=True)
    assert (
        problems(train_config(model, **full)) == problems(train_config(model, **full | dict(wsd_decay_iters=15))) == []
    )
    assert problems(train_config(model, **full | dict(wsd_decay_iters=16)))[0].startswith('wsd_decay_iters = 16')


def test_keys_of_the_schedule_that_mean_nothing_are_named():
    idle = lambda *flags: load(TrainConfig, ['--wsd_decay_iters=7', '--warmup_iters=3', *flags]).idle()
    assert idle() == dict(wsd_decay_iters=7) and not idle('--schedule=wsd')
    assert idle('--decay_lr=false') == dict(wsd_decay_iters=7, warmup_iters=3)
