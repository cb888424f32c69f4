"""The board: what an entry may set, what its log begins with, whose runs it shares, and that the page is what the logs say."""

import json
import re
import shutil
import subprocess
import sys
import types

import pytest
from conftest import ROOT
from fakes import FAKE, fake_script  # noqa: F401

import compare
import logger
from configurator import UserError, load
from lab import check, plan, records, track

# -----------------------------------------------------------------------------
# what an entry may set, on the tracks that there are


def entry(tmp_path, text, *flags):
    """The entry's config as a newcomer writes it, checked as compare.py does before it starts anything."""
    path = tmp_path / 'mine.py'
    path.write_text(f'include({str(ROOT / "config" / "track" / "small.py")!r})\n{text}\n')
    cfg = track.placed(load(compare.CompareConfig, [str(path), *flags]))
    track.check(cfg, plan.make_plans(cfg))
    return cfg


@pytest.mark.parametrize(
    'flags',
    [
        '--linear=btt --linear_layers=mlp+attn --rank=2 --structured_decay=none',
        '--linear=expanded --expansion=256 --expansion_init=svd --expansion_schedule=rotate',
        '--linear=btt_moe --experts=4',
        '--optimizer=muon --matrix_lr=0.02 --momentum=0.9',
        '--hidden_lr=2',
    ],
)
def test_an_entry_may_change_layers_their_start_and_their_optimizer(tmp_path, flags):
    cfg = entry(tmp_path, f"arms['mine'] = '{flags}'\nnote = 'mine'")
    assert cfg.name == 'mine' and cfg.results == 'out/results/track/small'


@pytest.mark.parametrize(
    'flags, names',
    [
        ('--n_layer=4', 'n_layer = 4'),
        ('--mlp=moe', 'mlp = moe'),
        ('--mup_base=64', 'mup_base = 64'),  # it changes attention, too
        ('--linear=low_rank --beta2=0.9 --dropout=0.1', 'dropout = 0.1, beta2 = 0.9'),
        ('--max_iters=401', 'max_iters = 401'),
        ('--learning_rate=1e-2', 'learning_rate = 0.01'),
        ('--eval_iters=25', 'eval_iters = 25'),
        ('--dataset=gutenberg_bpe', 'dataset = gutenberg_bpe'),
        ('--init_from=gpt2', 'init_from = gpt2'),
        ('--device=auto', 'device = auto'),
    ],
)
def test_an_arm_that_sets_more_is_refused_in_one_line(tmp_path, flags, names):
    with pytest.raises(UserError) as e:
        entry(tmp_path, f"arms['mine'] = '{flags}'")
    assert str(e.value).startswith('mine: ') and '\n' not in str(e.value)
    assert set(names.split(', ')) <= set(re.split(', |: ', str(e.value)))


@pytest.mark.parametrize(
    'text, flags, says',
    [
        ("arms['mine'] = ''", ['--seeds=6'], 'seeds = 6: the track fixes that'),
        ("arms['mine'] = ''; worth = 0.5; sweep_seeds = 9", [], 'sweep_seeds = 9, worth = 0.5: the track fixes that'),
        ("arms['mine'] = ''; common += ' --n_layer=4'", [], 'common = '),
        ("arms['mine'] = ''; metric = 'train_loss'", [], 'metric = train_loss'),
        ("arms['mine'] = arms['more'] = ''", [], 'one arm'),
        ("arms = dict(dense='--hidden_lr=2', mine='')", [], 'baseline and one arm'),
        ("arms = dict(mine='', dense='')", [], 'baseline and one arm'),
        ("arms['mine'] = ''; learning_rates = (1e-3, 2e-3)", [], 'learning_rates: those of dense are fixed'),
        ("arms['mine'] = ''; learning_rates = dict(mine=(1e-3, 2e-3))", [], 'learning_rates: those of dense are fixed'),
        ("arms['mine'] = ''; track = 'nowhere'", [], 'there is no config/track/nowhere.py'),
        ("arms['mine'] = ''; track = '../compare'", [], 'must be the name of a track'),
        ("arms['mine'] = ''", ['--name=other'], 'has the name of its arm'),
    ],
)
def test_an_entry_that_changes_its_track_is_refused_in_one_line(tmp_path, text, flags, says):
    with pytest.raises(UserError) as e:
        entry(tmp_path, text, *flags)
    assert says in str(e.value) and '\n' not in str(e.value)


def test_an_entry_may_have_rates_of_its_own(tmp_path):
    cfg = entry(tmp_path, "arms['mine'] = ''; learning_rates = dict(dense=learning_rates, mine=(1e-3, 2e-3))")
    assert cfg.learning_rates['mine'] == (1e-3, 2e-3)


def test_every_entry_there_is_passes():
    names = set()
    for path in sorted((ROOT / 'config' / 'track').glob('*.py')):
        cfg = track.placed(load(compare.CompareConfig, [str(path)]))
        track.check(cfg, plan.make_plans(cfg))
        name = path.stem.removesuffix('_gpu')
        assert cfg.name == (name if len(cfg.arms) > 1 else 'dense'), path.name
        names.add((cfg.track, cfg.name))
    assert {('small', 'dense'), ('gpu', 'dense')} < names


# -----------------------------------------------------------------------------
# an entry from its file to the board, with fake runs

BASE = f"""
track, script = 'fake', {FAKE!r}
claim = '{{arm}} is lower than {{baseline}}'
common = '--halves=true --max_iters=4'
arms = dict(dense='')
learning_rates = (5e-3, 1e-2, 2e-2)
seeds, worth, bench, jobs, cluster = 8, 0.01, False, 2, 'pool'  # runs of a moment
"""


@pytest.fixture(name='enter')
def make_enter(tmp_path, monkeypatch, fake):
    """enter(name, flags): compare.py with that entry, or with the track alone; results in tmp_path/results/track/fake."""
    monkeypatch.setattr(track, 'CONFIGS', tmp_path)
    monkeypatch.setattr(track, 'KEYS', {'level'})
    field = compare.CompareConfig.__dataclass_fields__['script']
    monkeypatch.setattr(field, 'metadata', dict(field.metadata, choices=(FAKE,)))
    (tmp_path / 'fake.py').write_text(BASE)

    def enter(name, flags='', comment=''):
        path = tmp_path / f'{name}.py'
        if name != 'fake':
            path.write_text(f"# {comment}\ninclude('fake.py')\narms['{name}'] = '{flags}'\n")
        where = [f'--results={tmp_path / "results"}', f'--out={tmp_path / "out"}']
        monkeypatch.setattr(sys, 'argv', ['compare.py', str(path), *where])
        compare.main()

    return enter


def test_the_baseline_of_a_track_can_come_first(enter, tmp_path, capsys):
    enter('fake')
    assert 'the baseline: sigma' in capsys.readouterr().out
    log = tmp_path / 'results' / 'track' / 'fake' / 'dense' / 'metrics.jsonl'
    before = log.read_text()
    assert {r['seed'] for r in records.read_records(log.parent).values()} == {*range(1, 9), 10_001, 10_002, 10_003}
    enter('good', '--level=1.9')
    assert log.read_text() == before


def test_two_entries_share_the_runs_of_dense(enter, tmp_path):
    enter('good', '--level=1.9')
    results = tmp_path / 'results' / 'track' / 'fake'
    dense = (results / 'dense' / 'metrics.jsonl').read_text()
    enter('bad', '--level=2.1')
    assert (results / 'dense' / 'metrics.jsonl').read_text() == dense
    runs = {str(p.parent.relative_to(tmp_path / 'out')): len(p.read_text().split()) for p in tmp_path.rglob('starts')}
    assert set(runs.values()) == {1}
    of = {arm: sum(f'/{arm}/' in run for run in runs) for arm in ('dense', 'good', 'bad')}
    assert of['dense'] >= 3 * 3 + 8 and of['good'] >= of['bad'] >= 3 * 3 + 4
    for arm in ('dense', 'good', 'bad'):
        assert {r['arm'] for r in records.read_records(results / arm).values()} == {arm}


def test_a_log_begins_with_the_text_of_its_entry_and_keeps_to_it(enter, tmp_path):
    enter('good', '--level=1.9', 'the first text')
    log = tmp_path / 'results' / 'track' / 'fake' / 'good' / 'metrics.jsonl'
    first = json.loads(log.read_text().split('\n')[0])
    assert (first['entry'], first['track']) == ('good', 'fake')
    assert first['source']['good.py'] == (tmp_path / 'good.py').read_text()
    runs = len(records.read_records(log.parent))
    enter('good', '--level=1.9', 'the first text')
    assert len(records.read_records(log.parent)) == runs and json.loads(log.read_text().split('\n')[0]) == first
    with pytest.raises(UserError, match='begins with another text of good.py'):
        enter('good', '--level=1.9', 'another text')


def test_runs_of_another_text_are_not_taken_for_runs_of_the_entry_when_its_log_is_gone(enter, tmp_path):
    enter('good', '--level=1.9', 'the first text')
    log = tmp_path / 'results' / 'track' / 'fake' / 'good'
    mine = next(p for p in (tmp_path / 'out').rglob('good') if p.is_dir())
    shutil.rmtree(log)
    with pytest.raises(UserError, match='holds a run of another text of good.py; .* delete .*/good$'):
        enter('good', '--level=1.9', 'another text')
    assert mine.is_dir() and not (log / 'metrics.jsonl').exists()
    shutil.rmtree(mine)
    enter('good', '--level=1.9', 'another text')
    assert records.read_records(log)


def test_the_source_has_the_code_that_no_commit_has(tmp_path, monkeypatch):
    git = lambda *args: subprocess.run(['git', '-C', str(tmp_path), *args], check=True, capture_output=True)
    (tmp_path / 'linear' / 'own').mkdir(parents=True)
    for name, text in (('old.py', 'old = 1\n'), ('changed.py', 'a = 1\n'), ('notes.md', 'notes')):
        (tmp_path / 'linear' / name).write_text(text)
    git('init', '-q')
    git('add', '.')
    git('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all')
    (tmp_path / 'linear' / 'changed.py').write_text('a = 2\n')
    (tmp_path / 'linear' / 'own' / 'toy.py').write_text('toy = 1\n')
    for module in (logger, track):
        monkeypatch.setattr(module, 'ROOT', tmp_path)
    said = track.source(types.SimpleNamespace(name='toy', track='small'), [])
    assert said['source'] == {'linear/changed.py': 'a = 2\n', 'linear/own/toy.py': 'toy = 1\n'}


def test_the_board_is_written_from_the_logs_and_the_check_holds_it(enter, tmp_path, monkeypatch):
    enter('bad', '--level=2.1')
    enter('good', '--level=1.9')
    (track.CONFIGS / 'gpu.py').write_text("track = 'gpu'\n")
    results, page = tmp_path / 'results', tmp_path / 'docs' / 'track.md'
    monkeypatch.setattr(sys, 'argv', ['compare.py', '--report', f'--results={results}'])
    compare.main()
    rows = [line for line in page.read_text().split('\n') if '](../results/track/fake/' in line]
    assert '## gpu\n\nNo entry yet.\n' in page.read_text()  # a track that nobody has entered is not left out
    assert [re.findall(r'\[(\w+)\]', r)[0] for r in rows] == ['dense', 'good', 'bad']
    assert '**better by worth**' in rows[1] and '**worse**' in rows[2] and 'baseline' in rows[0]
    for row in rows:  # the mean of the log's deciding runs, at the rate that the row gives
        _, _, name, _, _, mean, seeds, lr, *_ = (cell.strip() for cell in row.split('|'))
        arm = re.match(r'\[(\w+)\]', name)[1]
        mine = records.read_records(results / 'track' / 'fake' / arm).values()
        ends = [r['eval']['val_b'][-1] for r in mine if f'{r["lr"]:g}' == lr and r['seed'] < records.SWEEP]
        assert len(ends) == int(seeds) and f'{sum(ends) / len(ends):.4f}' == mean.split(' ')[0]
    assert check.differences(results, []) == []
    page.write_text(page.read_text().replace('worse**', 'better**'))
    assert any('track.md, line' in w for w in check.differences(results, []))
    compare.main()
    lines = results / 'track' / 'fake' / 'good' / 'metrics.jsonl'
    lines.write_text(re.sub(r'"val_b":\[([^\]]*,)1\.', r'"val_b":[\g<1>0.', lines.read_text()))
    wrong = check.differences(results, [])
    assert any('track.md, line' in w for w in wrong) and any('table.md, line' in w for w in wrong)


# -----------------------------------------------------------------------------
# a layer in a file of its own


def test_a_file_in_linear_own_is_a_layer_without_a_line_elsewhere(tmp_path, script):
    shutil.copytree(ROOT / 'linear', tmp_path / 'linear')
    shutil.copy(ROOT / 'configurator.py', tmp_path)
    own = tmp_path / 'linear' / 'own'
    own.mkdir(exist_ok=True)
    text = 'from linear.low_rank import LowRank\n\n\nclass Toy(LowRank):\n    """W = B A."""\n'
    (own / 'toy.py').write_text(text)
    code = "import linear; print(linear.LAYERS['toy'](8, 16, linear.Keys(linear='toy', rank=2)).rank())"
    (tmp_path / 'use.py').write_text(code)
    assert script(tmp_path / 'use.py').stdout == '2\n'
    (own / 'toy.py').write_text(text.replace('LowRank):', 'LowRank):\n    pass\n\n\nclass Other(LowRank):'))
    for odd, said in (
        (text.replace('LowRank):', 'LowRank):\n    pass\n\n\nclass Other(LowRank):'), 'toy.py: must define one class'),
        (text + 'x = (\n', 'toy.py: SyntaxError'),
        (text + 'x = y\n', 'toy.py, line 6: NameError'),
    ):
        (own / 'toy.py').write_text(odd)
        r = script(tmp_path / 'use.py', check=False)
        assert r.returncode == 2 and said in r.stderr and r.stderr.count('\n') == 1
