"""The FLOPs that a run reports are those that it spent, whatever happens to it on the way."""

import dataclasses
import json
import math

import pytest
import torch
from conftest import TINY
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import hardware
from configurator import UserError, load
from lab import match, outcomes, plan, records
from logger import read_metrics
from train import TrainConfig, Trainer

GUIDED = ['--linear=low_rank', '--rank=8', '--linear_path=factored', '--guide_iters=3']
FORMED = ['--linear=btt', '--rank=2', '--linear_path=materialised', '--guide_iters=3']
ROTATED = ['--linear=expanded', '--linear_layers=mlp+attn', '--expansion=128', '--expansion_schedule=rotate',
           '--expansion_every=2', '--expansion_init=orthogonal']  # fmt: skip
QUICK = ['--eval_interval=1', '--eval_iters=1']


def spent(out):
    """{iteration: FLOPs} of the log."""
    return {m['iter']: m['flops'] for m in read_metrics(out) if m['kind'] == 'eval'}


@pytest.mark.parametrize('flags', [[], GUIDED, FORMED, ROTATED], ids=['dense', 'guided', 'formed', 'rotated'])
def test_they_are_those_that_torch_counts_at_every_step(flags, tmp_path):
    t = Trainer(load(TrainConfig, [*TINY, '--gradient_accumulation_steps=2', *flags]), torch.device('cpu'))
    each = []
    for _ in range(7):
        before = t.flops
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            t.step()
        each.append(t.flops - before)
        turned = flags is ROTATED and t.iter % 2 == 0 or flags is FORMED and t.iter == 3  # forms W once more
        assert each[-1] == counter.get_total_flops() or turned
    assert (len(set(each)) > 1) == (flags in (GUIDED, ROTATED))
    cfg = load(
        match.MatchConfig, [*TINY, '--gradient_accumulation_steps=2', f'--vocab_size={t.cfg.vocab_size}', *flags]
    )
    stages = match.stages(cfg)  # what a comparison is planned by
    assert [match.flops_of(stages, n) for n in range(8)] == [sum(each[:n]) for n in range(8)]
    assert [match.iters_within(stages, sum(each[:n]) + 1) for n in range(8)] == list(range(8))
    assert match.iters_within(stages, sum(each[:4]) - 1) == 3
    cfg = dataclasses.replace(cfg, match='flops', max_iters=7)
    assert match.cost(cfg, None) == pytest.approx(sum(each) / 7 / t.cfg.tokens_per_iter)


@pytest.mark.parametrize('flags', [GUIDED, ROTATED], ids=['guided', 'rotated'])
def test_a_run_that_was_resumed_says_the_same_wherever_it_stopped(run_train, flags):
    whole = spent(run_train('--max_iters=6', *QUICK, *flags, out='whole'))
    parts = run_train('--max_iters=1', *QUICK, *flags, out='parts')
    for n in range(2, 7):
        run_train(f'--max_iters={n}', '--init_from=resume', *QUICK, *flags, out='parts')
    assert spent(parts) == whole and sorted(whole) == list(range(7)) and whole[0] == 0
    assert json.loads((parts / 'manifest.json').read_text())['flops'] == whole[6]
    assert checkpoint.load(parts / 'ckpt.pt')['flops'] == whole[6]
    by_first = outcomes.per_iter(json.loads((parts / 'manifest.json').read_text()), None, 'flops') * 6
    assert whole[6] != by_first  # the last part alone does not tell


def test_another_batch_and_a_teacher_count_for_the_steps_that_had_them(run_train, tmp_path):
    """Also as the past of what grows from it, and of what a checkpoint turns into."""
    from surgery.grow import growth

    teacher = run_train('--max_iters=1', '--n_layer=1', *QUICK, out='teacher')
    soft = f'--distill_from={teacher}/ckpt.pt'
    out = run_train('--max_iters=2', *QUICK, soft, out='run')
    first = spent(out)
    run_train('--max_iters=5', '--init_from=resume', '--batch_size=2', '--distill_from=', *QUICK, out='run')
    model, small = (checkpoint.build(checkpoint.load(d / 'ckpt.pt')) for d in (out, teacher))
    a, b = 2 * 4 * 32 * (model.flops_per_token() + small.flops_per_token() // 3), 3 * 2 * 32 * model.flops_per_token()
    assert first[2] == a and spent(out)[5] == a + b

    how = growth.parse('clone', 0, 0)
    assert growth.history(checkpoint.load(out / 'ckpt.pt'), model, how, 'x')['flops'] == a + b
    for moments in ('move', 'fresh'):  # counted once, by the run that goes on or as its past
        flags = [f'--checkpoint={out}/ckpt.pt', '--method=clone', '--n_embd=64', '--windows=1']
        growth.grow(load(growth.GrowConfig, [*flags, f'--moments={moments}', f'--out={tmp_path}/large/ckpt.pt']))
        large = checkpoint.load(tmp_path / 'large' / 'ckpt.pt')
        assert large['transfer']['flops'] + large.get('flops', 0) == a + b
        assert ('flops' in large) == (moments == 'move')


def test_what_a_checkpoint_turns_into_has_the_same_past(run_train, tmp_path):
    from surgery import collapse
    from surgery.grow import growth

    flags = ['--linear=low_rank', '--rank=8', '--linear_path=factored']
    out = run_train('--max_iters=2', *flags, *QUICK)
    argv = [f'--checkpoint={out}/ckpt.pt', '--windows=1', f'--out={tmp_path}/plain.pt']
    collapse.collapse(load(collapse.TransferConfig, argv))
    plain = checkpoint.load(tmp_path / 'plain.pt')
    past = growth.history(plain, checkpoint.build(plain), growth.parse('clone', 0, 0), 'x')
    assert past['flops'] == spent(out)[2] < 2 * 4 * 32 * checkpoint.build(plain).flops_per_token()


def test_a_checkpoint_of_an_older_version_gets_those_of_its_iterations(run_train):
    out = run_train('--max_iters=2', *QUICK)
    ckpt = torch.load(out / 'ckpt.pt', weights_only=True)
    whole = ckpt.pop('flops')
    torch.save(ckpt, out / 'ckpt.pt')
    lines = [{k: v for k, v in m.items() if k != 'flops'} for m in read_metrics(out)]
    (out / 'metrics.jsonl').write_text(''.join(json.dumps(m) + '\n' for m in lines))
    run_train('--max_iters=3', '--init_from=resume', *QUICK)
    assert {m['iter']: m.get('flops') for m in read_metrics(out) if m['kind'] == 'eval'} == {
        0: None, 1: None, 2: whole, 3: whole * 3 // 2,
    }  # fmt: skip
    r = records.record(out, dict(run='a', arm='a', size='', lr=1e-2, seed=1), {})
    assert 'flops' not in r['eval'] and outcomes.own_costs(r, None, 'flops') == [whole * n // 2 for n in range(4)]


def test_more_than_64_bits_of_them_can_be_resumed(run_train):
    """2e19 are an hour of 16 GPUs."""
    out = run_train('--max_iters=1', *QUICK)
    ckpt = torch.load(out / 'ckpt.pt', weights_only=True)
    one, past = ckpt['flops'], 10**26 + 1
    past_of = dict(since=0, seconds=1.0, flops=past, source='x', source_iter=1, method='clone')
    torch.save(ckpt | dict(flops=past, transfer=past_of), out / 'ckpt.pt')
    run_train('--max_iters=2', '--init_from=resume', *QUICK)
    assert spent(out)[2] == past + one
    assert json.loads((out / 'manifest.json').read_text())['transfer']['flops'] == past


def test_mfu_is_of_the_flops_of_its_own_steps(run_train, monkeypatch, tmp_path):
    """The guide leaves within an interval of the log."""
    monkeypatch.setattr(hardware, 'peak_flops', lambda *_: 1e9)
    out = run_train('--max_iters=7', '--log_interval=2', '--eval_interval=1', '--eval_iters=1', *GUIDED)
    at = spent(out)
    for m in read_metrics(out):
        if m['kind'] == 'train' and m['ms']:
            i = m['iter'] + 1
            assert m['mfu'] * m['ms'] / 1000 * 1e9 == pytest.approx((at[i] - at[i - 2]) / 2)


def test_arms_at_equal_flops_spend_what_the_baseline_does_to_within_a_step():
    from compare import CompareConfig

    common = ' '.join([*TINY, '--max_iters=60', '--lr_decay_iters=60'])
    arms = dict(base='', guided=' '.join(GUIDED), rotated=' '.join(ROTATED))
    cfg = CompareConfig(common=common, arms=arms, match='flops')
    base, *others = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    budget = plan.costs(base)['flops']
    for p in others:
        more = dataclasses.replace(p, cfg=dataclasses.replace(p.cfg, max_iters=p.cfg.max_iters + 1))
        assert plan.costs(p)['flops'] <= budget < plan.costs(more)['flops']


def test_what_an_arm_starts_from_and_what_its_growth_learns_are_in_its_plan():
    from compare import CompareConfig
    from surgery.grow import growth

    common = ' '.join([*TINY, '--max_iters=2000', '--lr_decay_iters=2000', '--batch_size=1'])
    grow = '--init_from=transfer --transfer_from={small} --transfer_method='
    arms = dict(base='', stacked=grow + 'stack', learned=grow + 'ligo')
    cfg = CompareConfig(common=common, arms=arms, steps=dict(small='--n_layer=1 --max_iters=100'), match='flops')
    plans = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    of = {p.arm: p for p in plans}
    step = plan.costs(of['base'])['flops'] // 2000
    small = plan.costs(of['steps/small'])['flops']
    learned = growth.ligo.STEPS * 1 * 32 * step // 32
    assert of['stacked'].cfg.max_iters == (2000 * step - small) // step
    assert of['learned'].cfg.max_iters == (2000 * step - small - learned) // step > 0
    whole = [plan.amount(cfg, plans, of[arm], {}) for arm in arms]
    assert whole[0] == 2000 * step and all(0 <= whole[0] - n < step for n in whole[1:])


@pytest.mark.parametrize(
    'steps, arm',
    [
        (
            {'large': 'transfer.py grow --checkpoint=out/base/ckpt.pt --method=ligo --n_embd=64'},
            '--transfer_from={large}',
        ),
        ({}, '--transfer_from=a/small.pt'),
    ],
)
def test_a_plan_whose_past_cannot_be_counted_has_no_flops(steps, arm):
    from compare import CompareConfig

    text = f'--n_embd=64 --init_from=transfer --transfer_method=clone {arm}'
    cfg = CompareConfig(common=' '.join(TINY), arms=dict(base='', a=text), steps=steps, match='flops')
    plans = plan.at_equal_flops(cfg, plan.make_plans(cfg))
    of = {p.arm: p for p in plans}
    assert math.isnan(plan.amount(cfg, plans, of['a'], {})) and of['a'].cfg.max_iters == 10
    with pytest.raises(UserError, match='a: flops is known only after its steps'):
        plan.check_match(cfg, plans, {})


def test_a_record_says_the_flops_of_what_grow_learned(run_train, tmp_path, monkeypatch):
    from surgery.grow import growth, ligo
    from surgery.grow.weights import grow_weights

    monkeypatch.setattr(ligo, 'learn', lambda weights, old, new, how, *_, **__: grow_weights(weights, old, new, how))
    small = run_train('--max_iters=1', *QUICK, out='small')
    about = dict(run='steps/a', arm='steps/a', size='', lr=0.0, seed=1)
    for method in ('clone', 'ligo'):
        folder = tmp_path / method
        folder.mkdir()
        (folder / 'argv.json').write_text('[]')
        flags = [f'--checkpoint={small}/ckpt.pt', '--n_embd=64', f'--method={method}', '--moments=fresh', '--windows=1']
        growth.grow(load(growth.GrowConfig, [*flags, f'--out={folder}/ckpt.pt']))
        r = records.surgery(folder, about, dict(command='grow'))
        large = checkpoint.build(checkpoint.load(folder / 'ckpt.pt'))
        learned = growth.learning_flops(large.config, growth.BATCH) if method == 'ligo' else 0
        assert outcomes.spent(r, None, 0)['flops'] == learned == r['facts']['flops']


def test_a_run_costs_what_its_log_says_and_not_what_its_first_step_did():
    facts = dict(tokens_per_iter=10, flops_per_token=6, flops_per_update=0, processes=1)
    r = dict(facts=facts, eval=dict(iter=[0, 2, 4], val_loss=[3.0, 2.0, 1.0], flops=[0, 200, 300]))
    assert outcomes.own_costs(r, 5.0, 'flops') == [0, 200, 300] and outcomes.spent(r, 5.0, 0)['flops'] == 300
    del r['eval']['flops']  # as older logs are
    assert outcomes.own_costs(r, 5.0, 'flops') == [0, 120, 240] and outcomes.spent(r, 5.0, 0)['flops'] == 240
