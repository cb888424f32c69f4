"""What the configurator promises: every mistake is found, named and explained; what is right is accepted."""

import dataclasses
import errno
import sys
import time
import types

import fuzz
import pytest
from conftest import ROOT

import compare
import configurator
import sample
from configurator import UserError, groups, key, load, run
from lab import bench_layers
from linear.structured import divisors
from train import TrainConfig

BASE = ['--dataset=shakespeare_char']


def cfg(*argv):
    return load(TrainConfig, [*BASE, *argv])


def test_values_that_nanogpt_chokes_on_are_accepted():
    c = cfg('--learning_rate=1', '--compile=false', '--max_iters=1e3', '--out_dir=a=b', '--min_lr', '1e-5')
    assert (c.learning_rate, c.compile, c.max_iters, c.out_dir, c.min_lr) == (1.0, False, 1000, 'a=b', 1e-5)
    assert type(c.learning_rate) is float and type(c.max_iters) is int
    assert cfg('--compile=none').compile is None
    assert cfg('--eval_only').eval_only is True
    assert cfg('--seed_data=12345678901234567890').seed_data == 12345678901234567890  # no detour through a float


@pytest.mark.parametrize('where', ['file', 'flag'])
def test_unknown_key_stops_with_a_suggestion(tmp_path, where):
    if where == 'file':
        (tmp_path / 'c.py').write_text('learnin_rate = 1e-3\n')
        argv = [str(tmp_path / 'c.py')]
    else:
        argv = ['--learnin_rate=1e-3']
    with pytest.raises(UserError, match="unknown key 'learnin_rate'.*did you mean 'learning_rate'"):
        cfg(*argv)


def test_all_problems_are_reported_at_once(tmp_path):
    (tmp_path / 'c.py').write_text("n_layer = 2.5\nlearning_rate = 'high'\ndropout = True\nbias = 1\n")
    with pytest.raises(UserError) as e:
        cfg(str(tmp_path / 'c.py'), '--n_embd=100', '--n_head=7', '--batch_size=0', '--schedule=cosin', '--nonsense=1')
    lines = str(e.value).split('\n')
    for name, value, allowed in [
        ('n_layer', '2.5', 'of type int'),
        ('learning_rate', 'high', 'of type float'),
        ('dropout', 'True', 'of type float'),
        ('bias', '1', 'of type bool'),
        ('batch_size', '0', 'at least 1'),
        ('schedule', 'cosin', 'one of cosine, wsd'),
        ('n_embd', '100', 'divisible by n_head'),
        ('nonsense', '', 'unknown key'),
    ]:
        assert any(name in line and value in line and allowed in line for line in lines), (name, lines)
    assert len(lines) == 8


def test_accumulation_must_divide_among_processes(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    with pytest.raises(UserError, match=r'gradient_accumulation_steps = 6: must be divisible by .*\(4\), as 8 is'):
        cfg('--gradient_accumulation_steps=6')


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--min_lr=1', '--learning_rate=0.1'], 'min_lr = 1'),
        (['--warmup_iters=20', '--lr_decay_iters=10'], 'warmup_iters = 20'),
        (['--schedule=wsd', '--wsd_decay_iters=9', '--warmup_iters=2', '--lr_decay_iters=10'], 'wsd_decay_iters = 9'),
        (['--linear=expanded', '--linear_layers=h.*.mlp.fc'], 'matches no layer'),
        (['--linear=expanded', '--expansion=8', '--expansion_init=orthogonal'], 'orthogonal needs expansion >='),
        (['--linear=expanded', '--expansion_depth=1'], 'at least 2'),
        (['--linear=lowrank'], 'must be one of dense, expanded'),
        (['--max_iters'], 'has no value'),
        (['--learning_rate=nan'], 'learning_rate'),
        (['--max_iters=inf'], 'of type int'),
    ],
)
def test_bad_combinations_are_refused(flags, message):
    with pytest.raises(UserError, match=message.replace('*', r'\*')):
        cfg(*flags)


def test_a_config_file_is_python_and_flags_override_it(tmp_path):
    (tmp_path / 'base.py').write_text('n_embd = 64\nn_head = 4\n')
    (tmp_path / 'c.py').write_text(
        'import math\nfrom math import sqrt\ninclude("base.py")\n_half = n_embd // 2\n'
        'def double(x):\n    return 2 * x\nexpansion = double(_half)\nmax_iters = 7\n'
    )
    c = cfg(str(tmp_path / 'c.py'), '--max_iters=9')
    assert (c.n_embd, c.expansion, c.max_iters) == (64, 64, 9)


def test_a_broken_config_file_is_named_with_its_line(tmp_path):
    (tmp_path / 'c.py').write_text('n_embd = 64\nn_head = undefined_name\n')
    with pytest.raises(UserError, match=r'c\.py, line 2: NameError'):
        cfg(str(tmp_path / 'c.py'))
    (tmp_path / 'd.py').write_text('n_embd = (64\n')
    with pytest.raises(UserError, match=r'd\.py, line 1: SyntaxError'):
        cfg(str(tmp_path / 'd.py'))
    with pytest.raises(UserError, match=r"did you mean 'config/shakespeare_char\.py'"):
        cfg('config/shakespear_char.py')


def test_help_lists_every_key_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as e:
        load(TrainConfig, ['--help'])
    assert e.value.code == 0
    text = capsys.readouterr().out
    for f in dataclasses.fields(TrainConfig):
        line = next(line for line in text.split('\n') if line.strip().startswith(f'--{f.name}='))
        assert f.metadata['help'] and f.metadata['help'] in line


def test_the_twins_differ_only_in_the_expansion():
    dense, expanded = (load(TrainConfig, [f'config/{n}.py']) for n in ('shakespeare_char', 'expansive_shakespeare'))
    differ = {f.name for f in dataclasses.fields(TrainConfig) if getattr(dense, f.name) != getattr(expanded, f.name)}
    assert differ == {'linear', 'expansion', 'out_dir', 'wandb_run_name'}


def test_a_mistake_ends_with_exit_code_2_and_no_traceback_from_any_directory(script):
    r = script('train.py', 'config/shakespeare_char.py', '--n_head=5', '--lerning_rate=1', check=False)
    assert r.returncode == 2
    assert 'Traceback' not in r.stderr and r.stderr.count('error: ') == 2
    assert "did you mean 'learning_rate'" in r.stderr and 'n_head = 5' in r.stderr


def headings(capsys, schema):
    with pytest.raises(SystemExit):
        load(schema, ['--help'])
    text = capsys.readouterr().out.split('keys (')[1]
    return [line for line in text.split('\n')[1:] if line and not line.startswith(' ')]


def test_help_is_in_groups_with_a_commands_own_keys_first(capsys):
    import bench

    train = headings(capsys, TrainConfig)
    assert train[:4] == ['run and output', 'data', 'size of the model', 'optimizer'] and len(train) > 8
    assert headings(capsys, bench.BenchConfig) == ['timing', *train]
    sizes = [len(fields) for fields in groups(TrainConfig).values()]
    assert sum(sizes) == len(dataclasses.fields(TrainConfig)) and max(sizes) <= 24


def test_a_group_may_come_from_the_class_that_declares_the_key():
    @dataclasses.dataclass
    class Layer:
        """linear = mine: what it is.

        More words."""

        pace: int = key(1, 'one')
        rest: int = key(2, 'two', group='rare')

    @dataclasses.dataclass
    class Command(Layer):
        own: int = key(3, 'three')
        pace: int = key(4, 'another default, in the place it had')
        GROUPS = ('rare',)

    @dataclasses.dataclass
    class Longer(Command):
        more: int = key(5, 'five', group='mine')

    def found(schema):
        return {heading: [f.name for f in fields] for heading, fields in groups(schema).items()}

    assert list(found(Command)) == ['rare', 'linear = mine: what it is.', '']
    assert found(Command) == {'rare': ['rest'], 'linear = mine: what it is.': ['pace'], '': ['own']}
    assert list(found(Longer)) == ['mine', 'rare', 'linear = mine: what it is.', '']


# -----------------------------------------------------------------------------
# whatever is given: a config or one clear message, soon, and in little memory


@pytest.mark.parametrize('schema', fuzz.SCHEMAS)
@pytest.mark.parametrize('where', ['flags', 'file'])
def test_whatever_is_given_ends_in_a_config_or_a_clear_message(schema, where, tmp_path):
    n = fuzz.cases(300) // len(fuzz.SCHEMAS) // 2
    fuzz.configurations(n, schema, where, tmp_path, count := fuzz.Count())
    assert count.accepted + count.refused >= n


def test_divisors_are_all_there_in_order_and_soon():
    for n in (1, 2, 12, 36, 97, 768, 3072):
        assert divisors(n) == [k for k in range(1, n + 1) if n % k == 0]
    t0 = time.time()
    assert divisors(10**12)[-1] == 10**12 and len(divisors(10**12)) == 169
    assert time.time() - t0 < 5


@pytest.mark.parametrize(
    'linear', ['tensor_train', 'kronecker', 'einsum', 'blast', 'btt_moe', 'monarch', 'low_rank_sparse']
)
def test_the_shapes_of_a_very_wide_layer_are_found_soon(linear):
    t0 = time.time()
    try:
        cfg(f'--linear={linear}', '--n_layer=1', '--n_embd=131072', '--n_head=1', '--vocab_size=96')
    except UserError:
        pass
    assert time.time() - t0 < 5


def test_the_config_of_another_script_gives_one_line():
    for schema, file, other in (
        (compare.CompareConfig, 'config/shakespeare_char.py', 'train.py'),
        (TrainConfig, 'config/compare/demo.py', 'compare.py'),
    ):
        with pytest.raises(UserError, match=f'config of another script, such as {other}') as e:
            load(schema, [str(ROOT / file)])
        assert str(e.value).count('another script') == 1 and str(e.value).count('\n') <= 1


@pytest.mark.parametrize('n, lines', [(3, 3), (4, 1)])
def test_three_odd_keys_of_a_file_are_named_and_more_are_counted(tmp_path, n, lines):
    (tmp_path / 'c.py').write_text(''.join(f'oddity_{i} = 1\n' for i in range(n)))
    with pytest.raises(UserError) as e:
        cfg(str(tmp_path / 'c.py'))
    text = str(e.value)
    assert len(text.split('\n')) == lines and all(f'oddity_{i}' in text for i in range(3))
    assert ('oddity_0, oddity_1, oddity_2 and 1 more of its keys' in text) == (n == 4)


def test_the_keys_of_the_deepest_model_are_judged_soon():
    t0 = time.time()
    assert cfg('--n_layer=10000', '--n_embd=12', '--linear=expanded').n_layer == 10_000
    assert time.time() - t0 < 5


def test_help_shows_several_numbers_as_a_flag_takes_them(capsys):
    for schema, said in (
        (bench_layers.MLPBenchConfig, '--widths=768,2048,5120 '),
        (TrainConfig, '--kronecker_shape= '),
    ):
        with pytest.raises(SystemExit):
            load(schema, ['--help'])
        assert f'\n  {said} (several numbers a,b,...)' in capsys.readouterr().out


def test_help_shows_defaults_on_one_line_each(capsys):
    with pytest.raises(SystemExit):
        load(sample.SampleConfig, ['--help'])
    assert "--start='\\n'  (" in capsys.readouterr().out


def test_a_path_is_looked_for_in_the_repository_first_and_then_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('train.py', 'mine.txt'):
        (tmp_path / name).touch()
    assert configurator.input_path('train.py') == ROOT / 'train.py'
    assert configurator.input_path('mine.txt').resolve() == tmp_path / 'mine.txt'
    assert configurator.input_path('nowhere.txt') == ROOT / 'nowhere.txt'


def test_a_config_file_behind_a_boolean_is_a_config_file():
    cfg = load(TrainConfig, ['--wandb_log', 'config/shakespeare_char.py'])
    assert cfg.wandb_log and cfg.dataset == 'shakespeare_char'


def test_a_reader_that_leaves_ends_a_script_with_code_1(monkeypatch):
    def main():
        raise BrokenPipeError(errno.EPIPE, 'Broken pipe')

    moved = []
    monkeypatch.setattr(configurator.os, 'dup2', lambda a, b: moved.append(b))
    monkeypatch.setattr(configurator.sys, 'stdout', types.SimpleNamespace(fileno=lambda: 1))
    with pytest.raises(SystemExit) as e:
        configurator.run(main)
    monkeypatch.undo()
    assert e.value.code == 1 and moved == [1]


def test_letters_that_turn_a_terminals_text_round_are_spelled_out():
    assert configurator.printable('a\u202eb\x1b[2J\x9bc\n\té') == 'a\\u202eb\\x1b[2J\\x9bc\n\té'


def test_a_value_at_its_limit_is_in_and_at_an_open_limit_out():
    f = lambda **limits: types.SimpleNamespace(metadata=key(1.0, 'a key', **limits).metadata)
    assert not configurator.violations(f(low=0), 0.0) and not configurator.violations(f(high=2), 2)
    assert configurator.violations(f(above=0), 0.0) == 'must be above 0' and not configurator.violations(
        f(above=0), 1e-9
    )
    assert configurator.violations(f(low=0), -1e-9) == 'must be at least 0'
    assert configurator.violations(f(high=2), 2.1) == 'must be at most 2'


NANOGPT = dict(
    out_dir='out', eval_interval=2000, log_interval=1, eval_iters=200, eval_only=False, always_save_checkpoint=True,
    init_from='scratch', wandb_log=False, wandb_project='owt', wandb_run_name='gpt2', dataset='openwebtext',
    gradient_accumulation_steps=40, batch_size=12, block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0,
    bias=False, learning_rate=6e-4, max_iters=600_000, weight_decay=0.1, beta1=0.9, beta2=0.95, grad_clip=1.0,
    decay_lr=True, warmup_iters=2000, lr_decay_iters=600_000, min_lr=6e-5,
)  # fmt: skip


def test_the_keys_of_nanogpt_have_nanogpts_defaults():
    """Those of train.py and, where they are not of one machine, of sample.py; what is new leaves the model as it is."""
    c = load(TrainConfig, [])
    assert {k: getattr(c, k) for k in NANOGPT} == NANOGPT
    s = load(sample.SampleConfig, [])
    assert (s.start, s.max_new_tokens, s.temperature, s.top_k, s.seed) == ('\n', 500, 0.8, 200, 1337)
    plain = dict(linear='dense', mlp='gelu', mlp_expansion_factor=4.0, mlp_gate=False, n_kv_head=0, qk_norm=False, norm='layernorm',
                 norm_affine=True, post_norm=False, attn_scale=1.0, position='learned', attention_window=0, tie_head=True,
                 logit_scale=1.0, mup_base=0, hidden_lr=1.0, schedule='cosine', patience=0, on_nan='stop')  # fmt: skip
    assert {k: getattr(c, k) for k in plain} == plain


@pytest.mark.parametrize(
    'key', ['learning_rate', 'hidden_lr', 'logit_scale', 'distill_weight', 'structured_share', 'density', 'n_layer', 'n_head',
            'n_embd', 'block_size', 'batch_size', 'gradient_accumulation_steps', 'eval_interval', 'log_interval',
            'multiple_of', 'mlp_expansion_factor', 'expansion_depth', 'expansion_every', 'experts', 'experts_active',
            'kronecker_terms', 'tt_cores', 'ddp_timeout'],
)  # fmt: skip
def test_zero_is_refused_where_it_means_nothing_and_so_is_less(key):
    for value in (0, -1):
        with pytest.raises(UserError, match=f'{key} = {value}.*: must be (above 0|at least [12])'):
            load(TrainConfig, [f'--{key}={value}'])


def test_a_number_whose_help_says_what_zero_means_takes_it_and_nothing_below():
    for schema in (TrainConfig, sample.SampleConfig):
        for f in dataclasses.fields(schema):
            if f.type in (int, float) and '0: ' in f.metadata['help']:
                assert not configurator.violations(f, 0) and configurator.violations(f, -1), f.name


@pytest.mark.parametrize('content', [b'\xff\xfe', b'learning_rate = 1  # \xe9'])
def test_a_config_file_that_is_no_text_gets_one_line(tmp_path, content):
    (tmp_path / 'mine.py').write_bytes(content)
    with pytest.raises(UserError, match=r'cannot read config file .*mine.py \(not text\)'):
        load(TrainConfig, [str(tmp_path / 'mine.py')])


@pytest.mark.parametrize('closed', [('stdout',), ('stderr',), ('stdout', 'stderr')])
def test_a_command_whose_output_is_closed_ends_as_it_would(monkeypatch, capsys, closed):
    for name in closed:
        monkeypatch.setattr(sys, name, None)

    def main():
        print('a line')
        raise UserError('a mistake')

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2


def test_a_key_of_a_layer_with_the_name_of_another_key_is_refused():
    @dataclasses.dataclass
    class Keys:
        pace: int = key(3, 'of a layer')

    @dataclasses.dataclass
    class Command(Keys):
        rest: int = key(1, 'of all')

    configurator.no_namesakes(Command, Keys)

    @dataclasses.dataclass
    class Hiding(Keys):
        pace: float = key(0.1, 'of all')

    with pytest.raises(UserError, match="key 'pace' of a layer or an optimizer is also one of Hiding: rename it"):
        configurator.no_namesakes(Hiding, Keys)
