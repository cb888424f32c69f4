"""The optimizer's rates and decay reach what they name, and the gradient is the batch's however it is cut."""

import pytest
from conftest import tiny_gpt, train_config

from logger import read_metrics
from optim import Optimizer


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
    from optim import problems

    odd = dict(min_lr=1.0, warmup_iters=50, lr_decay_iters=20, schedule='wsd', wsd_decay_iters=99)
    assert not problems(train_config(tiny_gpt(), decay_lr=False, **odd))
    assert [p.split(' ')[0] for p in problems(train_config(tiny_gpt(), **odd | dict(decay_lr=True)))] == [
        'min_lr', 'warmup_iters', 'wsd_decay_iters'
    ]  # fmt: skip
