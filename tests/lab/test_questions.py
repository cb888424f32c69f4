"""RESULTS.md by question, and the pictures: what they show is what the tables say."""

import json
import math

import pytest
from conftest import ROOT

import compare
from configurator import UserError, load
from lab import check, figures, forest, outcomes, page, protocol, questions, rates, records, report, sweeps, tables

SWEEP = records.SWEEP


def record(arm, lr, seed, value, size=''):
    facts = dict(
        device='cpu, 1 threads', processes=1, commit='abcdef0', params=10, params_collapsed=20, tokens_per_iter=4,
        flops_per_token=6, flops_per_update=0,
    )  # fmt: skip
    evals = dict(iter=[0, 5, 10], val_loss=[3.0, value + 0.5, value], seconds=[0.0, 30.0, 60.0])
    state = 'finished' if math.isfinite(value) else 'diverged'
    return dict(
        run=records.run_name(arm, size, lr, seed), arm=arm, size=size, lr=lr, seed=seed, state=state, settings={},
        facts=facts, ms=None, eval=evals, train=dict(iter=[], loss=[]),
    )  # fmt: skip


RATES = (1e-3, 2e-3, 4e-3)
BEST = dict(base=2e-3, worse=2.4e-3, unclear=2e-3)


def value(arm, lr, seed):
    level = dict(base=2.0, worse=2.2, unclear=2.0)[arm]
    spread = dict(base=0.004, worse=0.004, unclear=0.2)[arm]
    return level + 0.3 * math.log(lr / BEST[arm]) ** 2 + spread * ((seed * 7) % 5 - 2) / 2


@pytest.fixture(autouse=True)
def without_pages(monkeypatch):
    """They take seconds; test_page.py has them."""
    monkeypatch.setattr(page, 'write_page', lambda *_: None)


@pytest.fixture
def results(tmp_path):
    """A folder of results with one comparison, 'one', from before the protocol: three arms, a sweep, five seeds."""
    c = dict(
        arms=dict(base='', worse='', unclear=''), claim='{arm} beats {baseline}', note='A note.', command='python c.py',
        script='toys/x.py', learning_rates=list(RATES), metric='val_loss', at='last', worth=0.01, match='tokens', mismatch={},
        seeds=5, sizes={},
    )  # fmt: skip
    folder = tmp_path / 'results' / 'one'
    folder.mkdir(parents=True)
    (folder / 'comparison.json').write_text(json.dumps(c))
    runs = {}
    for arm in BEST:
        for lr in RATES:
            for seed in (1, 2, 3):
                r = record(arm, lr, SWEEP + seed, value(arm, lr, seed))
                runs[r['run']] = r
        for seed in range(1, 6):
            r = record(arm, 2e-3, seed, value(arm, 2e-3, seed))
            runs[r['run']] = r
    records.write_records(folder, runs)
    return tmp_path / 'results'


QUESTION = """
[[question]]
title = 'Is it better?'
claim = 'It is, by 0.5. <!-- cited: 0.5 (its author) -->'
answer = 'No: worse ends at {figure}. <!-- source: results/one/table.md: worse | 5 -->'
rows = ['one/worse']
comparisons = {{ one = 'the only setting' }}
"""


def ask(results, figure):
    (results / 'questions.toml').write_text(QUESTION.format(figure=figure))
    (results.parent / 'README.md').write_text(f'before\n{questions.START}\n{questions.END}\nafter\n')
    report.write_all(results)


@pytest.fixture
def mean(results):
    return f'{outcomes.load(results / "one")[1][1].mean.value:.3f}'


def test_an_answer_that_disagrees_with_the_logs_fails_the_check(results, mean):
    ask(results, mean)
    assert check.differences(results, []) == []
    (results / 'questions.toml').write_text(QUESTION.format(figure='1.999'))
    assert any('questions.toml: 1.999 has no source' in w for w in check.differences(results, []))


def test_what_was_written_is_checked_against_the_logs(results, mean):
    ask(results, mean)
    for path in (results.parent / 'RESULTS.md', results.parent / 'README.md', results / 'one' / 'table.md'):
        text = path.read_text()
        assert mean in text
        path.write_text(text.replace(mean[:-1], mean[:-2] + str(9 - int(mean[-2])), 1))
        assert [w for w in check.differences(results, []) if w.startswith(f'{path.name}, line ')], path
        path.write_text(text)
    log = results / 'one' / 'metrics.jsonl'
    log.write_text(log.read_text().replace('"worse"', '"unclear"', 3))
    assert len(check.differences(results, [])) >= 2


def test_a_question_is_a_section_with_its_rows_and_what_would_decide(results, mean):
    ask(results, mean)
    text = (results.parent / 'RESULTS.md').read_text()
    assert '## 1. Is it better?' in text and '## Others' not in text
    x = outcomes.load(results / 'one')[1][1]
    row = next(line for line in text.splitlines() if line.startswith('| [the only setting]'))
    assert f'**{protocol.WORSE}** °' in row and f'[{x.verdict.low:+.4f}, {x.verdict.high:+.4f}]' in row
    assert 'unclear' not in row and text.count('| [the only setting]') == 1
    assert '`one`: `unclear` (about' in text  # undecided
    assert '[one](results/one/table.md): the only setting. Verdicts: 1 worse, 1 undecided. `python c.py`' in text
    readme = (results.parent / 'README.md').read_text()
    assert readme.startswith('before\n') and readme.endswith('after\n')
    assert '| [1. Is it better?](RESULTS.md#1-is-it-better) | No: worse ends at' in readme


def test_the_table_has_the_first_sentence_of_an_answer_and_refuses_a_long_one(results):
    text = (
        QUESTION.format(figure='it')
        .replace("'No: worse ends at it.", "'''\nNo.\n\nMore of it.")
        .replace("5 -->'", "5 -->'''")
    )
    (results / 'questions.toml').write_text(text)
    (results.parent / 'README.md').write_text(f'{questions.START}\n{questions.END}\n')
    report.write_all(results)
    assert '| No. |' in (results.parent / 'README.md').read_text()
    assert 'No.\n\nMore of it.' in (results.parent / 'RESULTS.md').read_text()
    (results / 'questions.toml').write_text(text.replace('\nNo.', '\n' + 60 * 'no no '))
    with pytest.raises(UserError, match='Is it better.*the answer has 360 characters, at most 300'):
        report.write_all(results)


def test_a_picture_stays_as_it_was_where_only_names_of_clips_are_others(tmp_path):
    paths = [tmp_path / name for name in ('same.svg', 'other.svg', 'gone.svg')]
    clip = '<clipPath id="p{0}"/><path clip-path="url(#p{0})" d="{1}"/>'.format
    for path in paths:
        path.write_text(clip('0123456789', 'M 1 2'))
    with figures.redrawn([*paths, tmp_path / 'new.svg']):
        paths[0].write_text(clip('abcdef0123', 'M 1 2'))
        paths[1].write_text(clip('abcdef0123', 'M 1 3'))
        paths[2].unlink()
    assert paths[0].read_text() == clip('0123456789', 'M 1 2')
    assert paths[1].read_text() == clip('abcdef0123', 'M 1 3') and not paths[2].exists()


def test_a_comparison_without_a_question_is_among_the_others(results):
    report.write_all(results)
    text = (results.parent / 'RESULTS.md').read_text()
    assert '## Others' in text and 'worse against base' in text
    assert '[one](results/one/table.md): an arm beats base. Verdicts' in text


@pytest.mark.parametrize(
    'text, message',
    [
        ("[[question]]\ntitle = 'A'\nrows = ['one/nobody']", "'A': one/nobody: no verdict"),
        ("[[question]]\ntitle = 'A'\ncomparisons = { two = '' }", 'A: two: no such comparison'),
        ("[[question]]\ntitel = 'A'", 'question 1: title, titel'),
        ('[[question', 'questions.toml: '),
    ],
)
def test_mistakes_in_the_questions_are_named(results, text, message):
    (results / 'questions.toml').write_text(text)
    with pytest.raises(UserError) as e:
        report.write_all(results)
    assert message in str(e.value) and not list(results.rglob('*.svg'))  # before anything is drawn


def test_the_forest_draws_the_intervals_of_the_table(results):
    c, found = outcomes.load(results / 'one')
    ax = forest.forest([('one', c, found)]).axes[0]
    bars = [line.get_xdata() for line in ax.lines if line.get_marker() == '|']
    points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == 'o']
    for x, (low, high), point in zip(found[1:], bars, points):
        assert tables.effect(c, x, found[0]) == f'{point:+.4f} [{low:+.4f}, {high:+.4f}]'
        assert ax.get_xlim()[0] < low and high < ax.get_xlim()[1]
    words = [t.get_text() for t in ax.texts]
    assert words == [f'{x.verdict.word} °, 5 seeds' for x in found[1:]]
    span = next(p for p in ax.patches)
    assert sorted((span.get_x(), span.get_x() + span.get_width())) == pytest.approx([-0.01, 0.01])
    new = forest.forest([('one', c | dict(looks=True, seeds=8), found)]).axes[0]
    assert '°' not in ''.join(t.get_text() for t in new.texts)


def test_small_multiples_mark_the_chosen_rate_and_the_shared_one(results):
    c = json.loads((results / 'one' / 'comparison.json').read_text()) | dict(looks=True, shared_rate=1e-3)
    known = records.read_records(results / 'one')
    mine = sweeps.sweeps(c, known)['']
    fig = sweeps.multiples(c, mine)
    assert [s.arm for s in mine] == list(BEST)
    for ax, s in zip(fig.axes, mine):
        (diamond,) = (line for line in ax.lines if line.get_marker() == 'D')
        assert diamond.get_xdata()[0] == s.rate.lr
        runs = sorted((x, y) for line in ax.lines if line.get_marker() == 'o' for x, y in zip(*line.get_data()))
        assert runs == sorted((lr, v) for lr, by in s.figures.items() for v in by.values())  # nothing is left out
        dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == '--']
        assert dashed == [1e-3]
    worse = mine[1]
    assert worse.rate.how == 'quadratic' and worse.rate.lr == pytest.approx(BEST['worse'], rel=0.05)
    vertex, _, lowest = worse.parabola
    assert math.exp(vertex) == pytest.approx(worse.rate.lr, rel=0.01) and lowest == pytest.approx(2.2, abs=0.01)
    at, own = sweeps.gaps(c, mine, worse)
    assert at == pytest.approx(worse.means[1e-3] - mine[0].means[1e-3]) and own < at
    assert f'{at:+.3f} at the shared rate' in fig.axes[1].get_title()


def test_a_run_above_the_panel_is_named_at_its_edge(results):
    c, known = outcomes.load(results / 'one')[0], records.read_records(results / 'one')
    for seed, v in ((1, 50.0), (2, math.inf)):
        r = record('worse', 4e-3, SWEEP + seed, v)
        known[r['run']] = r
    ax = sweeps.multiples(c, sweeps.sweeps(c, known)['']).axes[1]
    assert [t.get_text() for t in ax.texts] == ['50.00']
    assert any(line.get_marker() == '^' for line in ax.lines)
    known |= {r['run']: r for r in (record('worse', lr, SWEEP + s, 50 + s) for lr in RATES for s in (1, 2, 3))}
    for ax in sweeps.multiples(c, sweeps.sweeps(c, known)['']).axes[:2]:  # an arm far above the others is seen, too
        (diamond,) = (line for line in ax.lines if line.get_marker() == 'D')
        assert ax.get_ylim()[0] < diamond.get_ydata()[0] < ax.get_ylim()[1]


def test_the_parabola_goes_through_exact_figures():
    curve = {lr: [2 + 0.3 * math.log(lr / 2.2e-3) ** 2] * 3 for lr in RATES}
    vertex, curvature, lowest = rates.choose_rate(curve).parabola
    assert (math.exp(vertex), curvature, lowest) == pytest.approx((2.2e-3, 0.3, 2.0), rel=1e-4)


def test_an_arm_has_one_colour_wherever_it_stands():
    a = figures.colors(dict(arms=dict(dense='', k2000='', mine='')))
    b = figures.colors(dict(arms=dict(dense='', other='', mine='', k2000='')))
    assert a['k2000'] == b['k2000'] != a['mine'] and a['dense'] == b['dense'] == figures.BASELINE
    assert len(set(b.values())) == 4
    many = figures.colors(dict(arms=dict.fromkeys(['dense', *(f'x{i}' for i in range(40))], '')))
    assert set(many.values()) == {figures.BASELINE, figures.GREY}


def test_no_two_arms_of_a_published_comparison_look_alike():
    for path in (ROOT / 'results').glob('*/comparison.json'):
        shown = [v for v in figures.colors(json.loads(path.read_text())).values() if v != figures.GREY]
        assert len(set(shown)) == len(shown), path


def test_pareto_goes_by_what_is_trained(results):
    c, found = outcomes.load(results / 'one')
    assert {cost for _, cost, _ in figures.pareto_points(found, 'parameters that are trained')} == {10}
    ax = figures.pareto(c, found).axes[0]
    assert ax.get_xlabel() == 'parameters that are trained'


def test_before_any_seed_decides_the_page_shows_the_sweeps(results):
    folder = results / 'one'
    c = json.loads((folder / 'comparison.json').read_text()) | dict(looks=True, seeds=8)
    (folder / 'comparison.json').write_text(json.dumps(c))
    kept = {n: r for n, r in records.read_records(folder).items() if r['seed'] > SWEEP}
    records.write_records(folder, kept)
    report.write_all(results)
    text = (folder / 'table.md').read_text()
    assert report.NO_WORDS in text and '| worse |' in text and 'rates.svg' in text
    assert report.shown(folder) in text
    assert check.differences(results, []) == []
    row = next(line for line in text.splitlines() if line.startswith('| worse'))
    base, worse = (sweeps.sweeps(c, kept)[''][i] for i in (0, 1))
    assert f'{worse.means[worse.best] - base.means[base.best]:+.4f}' in row


def test_the_commands_that_would_decide_are_right():
    """Those of the published comparisons: they load, and ask for as many seeds as are said to be missing."""
    known = questions.read_all(ROOT / 'results')
    commands = [
        line
        for name, k in known.items()
        for line in questions.undecided(name, k).split('`')
        if line.startswith('python')
    ]
    assert commands
    for command in commands:
        cfg = load(compare.CompareConfig, command.split()[2:])
        assert cfg.looks and cfg.seeds >= protocol.SIGMA_SEEDS and not cfg.problems()


def test_no_command_is_said_to_go_on_to_what_the_plan_of_a_comparison_does_not_have(results, monkeypatch):
    """Its looks end at `seeds`: the command that goes on trains no more than those. A longer plan is a comparison of its own."""
    folder, root = results / 'one', results.parent / 'root'
    c = json.loads((folder / 'comparison.json').read_text())
    (root / 'config' / 'compare').mkdir(parents=True)
    ours, no_promise = '--results=results`', 'so its 5% are no promise'
    new = '--name=one_longer --seed_offset=100 --seeds='
    for plan, ends, config in (
        (8, '(about 2 more seeds)', False),
        (5, 'of which the plan has 1). Less noise', False),
        (8, ours, True),
        (5, new, True),
    ):
        if config:
            monkeypatch.setattr(questions, 'ROOT', root)
            (root / 'config' / 'compare' / 'one.py').touch()
        (folder / 'comparison.json').write_text(json.dumps(c | dict(looks=True, seeds=plan, script='train.py')))
        k = questions.read(folder)
        k.found = [x for x in k.found if x.arm in ('base', 'unclear')]
        v = k.found[-1].verdict
        v.word, v.n, v.base_n, v.more, v.note = protocol.UNDECIDED, 4, 4, 2, ''
        said = questions.undecided('one', k)
        assert ends in said and no_promise not in said and (ours in said) == (config and plan == 8)
    k.c['script'] = 'toys/mnist.py'  # which has no seeds but those that its log names
    assert '--name=one_longer --seeds=' in (said := questions.undecided('one', k)) and no_promise in said


def test_a_claim_that_takes_very_many_seeds_has_its_command_and_price_too(results, monkeypatch):
    root = results.parent / 'root'
    (root / 'config' / 'compare').mkdir(parents=True)
    (root / 'config' / 'compare' / 'one.py').touch()
    monkeypatch.setattr(questions, 'ROOT', root)
    k = questions.read(results / 'one')
    k.found = [x for x in k.found if x.arm in ('base', 'unclear')]
    k.found[-1].verdict.more = 400
    said = questions.undecided('one', k)
    assert f'--seeds={k.found[-1].verdict.n + 400}' in said and ' minutes of ' in said and 'is cheaper' in said


def test_a_row_shows_the_sweeps_of_arms_without_a_verdict_beside_the_verdicts_of_others(results, mean):
    folder = results / 'one'
    found = records.read_records(folder)
    records.write_records(folder, {n: r for n, r in found.items() if r['arm'] != 'unclear' or r['seed'] > SWEEP})
    question = questions.Question('A', rows=['one/*'], comparisons=dict(one=''))
    lines = questions.small_table(question, questions.read_all(results)).splitlines()
    assert [line for line in lines if 'worse against base' in line]
    assert [line.split(' |')[0] for line in lines if line.startswith('| ') and '---' not in line][2:] == [
        '| arm',
        '| unclear',
    ]


def test_the_command_that_goes_on_asks_for_the_undecided_arms_and_their_baselines(results):
    folder = results / 'one'
    c = json.loads((folder / 'comparison.json').read_text())
    c |= dict(looks=True, seeds=8, sizes=dict(small='', large=''))
    (folder / 'comparison.json').write_text(json.dumps(c))
    runs = {}
    for size in c['sizes']:
        for r in records.read_records(folder).values():
            if r['seed'] < SWEEP and (size == 'small' or r['arm'] != 'worse'):
                new = record(r['arm'], r['lr'], r['seed'], r['eval']['val_loss'][-1], size)
                runs[new['run']] = new
    records.write_records(folder, runs)
    k = questions.read(folder)
    undecided = {x.name: (x, base) for x, base in k.judged if x.arm == 'unclear'}
    flags, minutes = questions.decides(k, [undecided['unclear@small']], 'one')
    assert flags == '--results=results --only=base@small,unclear@small' and minutes > 0
    assert questions.decides(k, [undecided['unclear@large']], 'one')[0].endswith('--only=base@large,unclear@large')


def test_the_price_counts_runs_of_the_sweep_and_of_the_seeds(results):
    k = questions.read(results / 'one')
    near = [(x, base) for x, base in k.judged if x.arm == 'unclear']
    flags, minutes = questions.decides(k, near, 'one')
    seeds = int(flags.split('--seeds=')[1].split()[0])
    assert seeds == max(8, 5 + near[0][0].verdict.more) and '--only=base,unclear' in flags
    assert minutes == pytest.approx(2 * (seeds + 3 * len(RATES)))  # a run takes 60 seconds
    near[0][0].verdict.note = 'the arm has its best rate at the low end of those tried'
    flags, more = questions.decides(k, near, 'one')  # with the rates that were tried alone it would end there again
    assert f'--extend={len(RATES)}' in flags and more == pytest.approx(minutes + 3 * 2)


def test_a_comparison_of_its_own_has_the_seeds_that_the_arms_left_out_cost(results):
    """There they count as not run, so the bounds are lower than where they have their verdicts."""
    k = questions.read(results / 'one')
    x, base = next((x, base) for x, base in k.judged if x.arm == 'unclear')
    asked = questions.own_plan(k, x, base)
    k.c['arms'] = dict(k.c['arms']) | {f'more{i}': '' for i in range(20)}
    assert x.verdict.n < asked < questions.own_plan(k, x, base)
