"""transfer.py match: the solution is the best grid point, and what is left is said."""

import dataclasses

import pytest
from conftest import TINY

import linear
from configurator import UserError, load
from lab import match as match_module
from lab.match import MatchConfig, match
from train import TrainConfig

SMALL = [*TINY, '--n_embd=64', '--n_head=4']


def solved(capsys, *argv):
    match(list(argv))
    return capsys.readouterr().out


def test_the_width_that_makes_up_for_a_smaller_factor(capsys):
    """12 layers of 768 with factor 3 against d12: 832 costs 1.1% more, 768 11.5% less."""
    out = solved(capsys, 'config/d12.py', '--', 'config/d12_mlp3x_768.py', '--match=params')
    assert 'reference: 123,532,032 parameters' in out
    assert '--n_embd=832 --n_head=13: 1.24881e+08 parameters, mismatch +1.092%  <- nearest' in out
    assert '--n_embd=768 --n_head=12: 1.09376e+08 parameters, mismatch -11.459%' in out


@pytest.mark.parametrize('what', ['params', 'flops'])
def test_a_config_matches_itself(capsys, what):
    for key in ('n_embd', 'mlp_expansion_factor'):
        out = solved(capsys, *SMALL, '--', *SMALL, f'--match={what}', f'--solve={key}')
        nearest = next(line for line in out.split('\n') if 'nearest' in line)
        assert '+0.000%' in nearest and ('--n_embd=64 --n_head=4' in nearest or 'hidden 256' in nearest)


def test_the_hidden_size_of_unmatched_swiglu_is_two_thirds(capsys):
    flags = ['--mlp=swiglu', '--swiglu_match=false', '--solve=mlp_expansion_factor', '--n_embd=96']
    out = solved(capsys, *SMALL, '--n_embd=96', '--', *SMALL, *flags)
    assert '(hidden 256)' in next(line for line in out.split('\n') if 'nearest' in line)


def test_a_width_that_matches_is_one_that_trains(capsys):
    """n_kv_head stays, so heads come by its number."""
    shared = ['--n_embd=128', '--n_head=8', '--n_kv_head=4']
    out = solved(capsys, *SMALL, '--n_embd=144', '--n_head=9', '--', *SMALL, *shared, '--match=flops')
    found = [line.split(':')[0].split() for line in out.split('\n') if 'mismatch' in line]
    assert [f[1] for f in found] == ['--n_head=8', '--n_head=12']
    for flags in found:
        load(TrainConfig, [*SMALL, *shared, *flags])


def test_the_expansion_for_a_budget_of_parameters(capsys):
    out = solved(capsys, *SMALL, '--n_embd=128', '--', *SMALL, '--linear=expanded', '--solve=expansion')
    values = [float(line.split('mismatch ')[1].split('%')[0]) for line in out.split('\n') if 'mismatch' in line]
    assert values[0] <= 0 < values[1] and values[1] - values[0] < 1


def test_flops_of_an_expansion_are_those_of_the_path_it_takes(capsys):
    flags = ['--linear=expanded', '--expansion=40', '--expansion_init=svd', '--expansion_lr=matched']
    out = solved(capsys, *SMALL, *flags, '--', *SMALL, *flags, '--solve=expansion', '--match=flops')
    assert '--expansion=40' in next(line for line in out.split('\n') if 'nearest' in line and '+0.000%' in line)


@pytest.mark.parametrize('name', [n for n in linear.LAYERS if n not in ('dense', 'btt_moe')])
def test_a_layer_has_the_same_parameters_on_both_paths(name):
    keys = dict(linear=name, n_layer=1, n_embd=32, n_head=2, vocab_size=65, match='params')
    both = [MatchConfig(**keys, linear_path=path) for path in ('factored', 'materialised')]
    assert match_module.cost(both[0], None) == match_module.cost(both[1], None)
    assert match_module.cost(dataclasses.replace(both[1], match='flops'), None) > 0


def test_time_is_measured_and_bracketed(monkeypatch, capsys):
    asked = []

    def fake(cfg, device):
        asked.append(cfg.n_embd)
        return cfg.n_embd**2 / 100

    monkeypatch.setattr(match_module, 'cost', fake)
    out = solved(capsys, *SMALL, '--n_embd=80', '--', *SMALL, '--match=time')
    assert '--n_embd=80 --n_head=5' in next(line for line in out.split('\n') if 'nearest' in line)
    assert len(asked) < 10


@pytest.mark.slow
def test_time_of_a_real_step_is_positive(capsys):
    out = solved(capsys, *SMALL, '--', *SMALL, '--match=time', '--steps=2', '--rounds=2')
    assert 'ms per step' in out and 'nearest' in out


@pytest.mark.parametrize(
    'argv, message',
    [
        (SMALL, 'needs two configs'),
        ([*SMALL, '--match=flops', '--', *SMALL], 'match: belongs to the candidate'),
        ([*SMALL, '--', *SMALL, '--solve=expansion'], 'add --linear=expanded'),
        ([*SMALL, '--', *SMALL, '--solve=width'], 'must be one of n_embd'),
        ([*SMALL, '--', *SMALL, '--mlp_expansion_factor=4,3', '--solve=mlp_expansion_factor'], 'one factor per layer'),
    ],
)
def test_mistakes_are_named(argv, message):
    with pytest.raises(UserError, match=message):
        match(argv)


def test_flops_per_token_hold_their_part_of_the_update():
    """Forming W and its chain rule are shared by all tokens of an iteration."""
    keys = dict(n_layer=1, n_embd=32, n_head=2, vocab_size=65, block_size=16, match='flops')
    dense = match_module.cost(MatchConfig(**keys), None)
    formed = dict(linear='expanded', linear_path='materialised', expansion=40)
    for batch in (4, 8):
        cfg = MatchConfig(**keys, **formed, batch_size=batch, gradient_accumulation_steps=2)
        per_update = 6 * 2 * 40 * 32 * 128  # two layers, six times k d_in d_out
        assert match_module.cost(cfg, None) - dense == pytest.approx(per_update / (2 * batch * 16))


def test_what_costs_as_much_as_the_reference_is_the_lower_of_the_two_values(monkeypatch):
    monkeypatch.setattr(match_module, 'cost', lambda cfg, device: cfg.n_embd)
    cfg = MatchConfig(n_embd=64, n_head=4)
    for reference, expected in ((64, [64, 80]), (96, [96, 112]), (70, [64, 80]), (10, [16])):
        target, found = match_module.solve(MatchConfig(n_embd=reference, n_head=1), cfg, None)
        assert (target, [value for value, _ in found]) == (reference, expected)
