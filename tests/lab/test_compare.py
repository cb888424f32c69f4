"""A comparison repeats no run, loses none, matches and pairs its arms, and reports what the logs say."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from fakes import fake_script, found_cells, make_config, start, starts, wait_for  # noqa: F401

import compare
from configurator import UserError, load
from lab import check, comparison, launch, outcomes, plan, questions, records, report, state, tables, timing, verdicts
from lab.plan import Run
from logger import read_metrics
from tokens import loader
from tokens.download import write_dataset
from train import TrainConfig, train


@pytest.mark.parametrize('cluster', ['local', pytest.param('pool', marks=pytest.mark.slow)])
def test_runs_are_started_once_and_finished_ones_not_repeated(config, tmp_path, cluster):
    cfg = config(cluster=cluster, seeds=2)
    compare.compare(cfg)
    expected = {f'{arm}/lr0.01/s{s}': 1 for arm in ('base', 'better') for s in (1, 2)}
    assert starts(tmp_path) == expected
    compare.compare(cfg)
    assert starts(tmp_path) == expected
    compare.compare(dataclasses.replace(cfg, seeds=3))
    assert sum(starts(tmp_path).values()) == 6
    v = found_cells(tmp_path)['better'].verdict
    assert v.n == v.base_n == 3 and v.low < -0.1 < v.high < 0
    assert '| better | 3 |' in (tmp_path / 'results' / 'c' / 'table.md').read_text()
    assert not list((tmp_path / 'out').rglob('*.pt'))  # checkpoints of what is over, which nothing starts from


@pytest.mark.parametrize('flag', [['--common=config/d12.py'], ['--common', 'config/d12.py'], ['--note', 'as sgd.py']])
def test_a_comparison_has_the_name_of_its_config_whatever_a_flag_ends_in(monkeypatch, flag):
    called = []
    monkeypatch.setattr(compare, 'compare', lambda cfg, files: called.append((cfg.name, files)))
    monkeypatch.setattr(sys, 'argv', ['compare.py', 'config/compare/demo.py', *flag])
    compare.main()
    assert called == [('demo', [ROOT / 'config' / 'compare' / 'demo.py'])]


def test_a_sweep_takes_min_lr_along_and_says_where_that_leaves_the_rate_high():
    cfg = compare.CompareConfig(
        common=' '.join([*TINY, '--learning_rate=1e-3', '--min_lr=1e-4']),
        arms=dict(base='', high='--min_lr=5e-4', flat='--decay_lr=false --min_lr=1e-3'),
        learning_rates=(1e-3, 4e-3),
    )
    plans = plan.make_plans(cfg)
    assert '--min_lr=0.0004' in plan.flags(plans, plans[0], 4e-3, 1)
    (note,) = plan.notes(cfg, plans)
    assert note.startswith('NOTE: high: min_lr is 50% of learning_rate') and '50% of every rate' in note
    assert plan.notes(dataclasses.replace(cfg, learning_rates=()), plans) == []


def test_a_sweep_that_leaves_the_rate_of_the_matrices_says_so():
    arms = dict(base='', fixed='--optimizer=muon --matrix_lr=0.02', both='--optimizer=muon --hidden_lr=2')
    cfg = compare.CompareConfig(common=' '.join(TINY), arms=arms, learning_rates=(1e-3, 4e-3))
    plans = plan.make_plans(cfg)
    (note,) = plan.notes(cfg, plans)
    assert note.startswith('NOTE: fixed: matrix_lr = 0.02 whatever rate is tried')
    assert plan.notes(dataclasses.replace(cfg, learning_rates=()), plans) == []


def test_sizes_get_scaling_laws_fronts_and_pictures(config, tmp_path, fake):
    sizes = {n: f'--batch_size={4 * 2**i} --level={3 * 2 ** (-0.1 * i)}' for i, n in enumerate('abcd')}
    cfg = config(arms=dict(base='', other='--best_rate=0.02'), sizes=sizes, seeds=2)
    compare.compare(cfg)
    folder = tmp_path / 'results' / 'c'
    fake(folder)
    c, found = outcomes.load(folder)
    assert [x.name for x in found] == [f'{arm}@{n}' for n in 'abcd' for arm in ('base', 'other')]
    law = outcomes.scaling(c, found)['base', ''][2]
    assert law.exponent.value == pytest.approx(0.1, abs=0.002) and law.exponent.n == 4
    assert law.exponent.format('.4f') in (folder / 'table.md').read_text()
    for name in ('loss_a.svg', 'pareto_a.svg', 'scaling.svg', 'index.html'):
        assert (folder / name).stat().st_size > 5000
    assert 'scaling' not in tables.table(dict(c, sizes={'a': '', 'b': ''}), found[:4])
    mixed = {n: flags + ' --optimizer=muon' * (n in 'cd') for n, flags in sizes.items()}  # two and two are no four
    assert not outcomes.scaling(dict(c, sizes=mixed), found)


SLURM = dict(  # what submitit calls, run here: the job in the background, sacct by what it has left
    # the script is read at once, as sbatch does: submitit renames it as soon as it knows the job's id
    sbatch="""grep '^#SBATCH' "$1" >> $BIN/options; id=$((1000 + RANDOM)); cp "$1" $BIN/job-$id
export SLURM_JOB_ID=$id SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
export SLURM_JOB_NODELIST=localhost; bash $BIN/job-$id > $BIN/log-$id 2>&1 & echo "Submitted batch job $id" """,
    srun="""while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done; exec "$@" """,
    sacct="""echo 'JobID|State|NodeList'; for a in "$@"; do if [[ "$a" =~ ^[0-9]+$ ]]; then
if ls $OUT/${a}_*result.pkl > /dev/null 2>&1; then echo "$a|COMPLETED|here"; else echo "$a|RUNNING|here"; fi; fi; done""",
)


@pytest.mark.slow
def test_slurm_gets_a_job_per_run(config, tmp_path, monkeypatch):
    pytest.importorskip('submitit')
    (tmp_path / 'bin').mkdir()
    for name, text in SLURM.items():
        path = tmp_path / 'bin' / name
        text = text.replace('$BIN', str(tmp_path / 'bin')).replace('$OUT', str(tmp_path / 'out' / 'c' / 'submitit'))
        path.write_text('#!/bin/bash\n' + text + '\n')
        path.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
    compare.compare(config(cluster='slurm', partition='gpu', minutes=7, seeds=2))
    assert set(starts(tmp_path).values()) == {1} and found_cells(tmp_path)['better'].verdict.n == 2
    options = (tmp_path / 'bin' / 'options').read_text()
    for option in ('--partition=gpu', '--time=7', '--gpus-per-node=1'):
        assert options.count(option) == 4


@pytest.mark.slow
def test_the_processes_of_a_pool_leave_when_all_is_done(config):
    compare.compare(config(seeds=1, cluster='pool'))
    until = time.time() + 20
    while pools := [c for c in children() if 'lab.launch pool' in c]:
        assert time.time() < until, pools
        time.sleep(0.1)


def children() -> list[str]:
    """Command lines of the processes that this one has started."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            if int(stat.read_text().rpartition(')')[2].split()[1]) == os.getpid():
                found.append(stat.with_name('cmdline').read_text().replace('\0', ' '))
        except OSError:  # it has ended
            pass
    return found


def test_finished_runs_in_results_count_where_out_is_gone(config, tmp_path):
    compare.compare(config(seeds=2))
    shutil.rmtree(tmp_path / 'out')
    compare.compare(config(seeds=3))
    assert set(starts(tmp_path)) == {'base/lr0.01/s3', 'better/lr0.01/s3'}
    assert found_cells(tmp_path)['base'].mean.n == 3


@pytest.mark.parametrize('cluster', ['local', 'pool'])
def test_a_crashed_run_is_tried_again_and_takes_no_other_with_it(config, tmp_path, cluster):
    compare.compare(config(arms=dict(base='', better='--level=1.9 --crash=5'), seeds=2, cluster=cluster))
    assert starts(tmp_path)['better/lr0.01/s1'] == 2 and starts(tmp_path)['base/lr0.01/s1'] == 1
    assert found_cells(tmp_path)['better'].verdict.n == 2
    r = records.read_records(tmp_path / 'results' / 'c')['better/lr0.01/s1']
    assert r['eval']['iter'] == list(range(11))


def test_a_run_that_always_fails_is_named_and_the_others_are_kept(config, tmp_path, capsys):
    cfg = config(arms=dict(base='', bad='--level=1.9'), seeds=2)
    (tmp_path / 'out' / 'c' / 'bad' / 'lr0.01').mkdir(parents=True)
    (tmp_path / 'out' / 'c' / 'bad' / 'lr0.01' / 's2').write_text('a file where a folder should be')
    with pytest.raises(SystemExit) as e:
        compare.compare(cfg)
    assert e.value.code == 1 and 'failed: bad/lr0.01/s2' in capsys.readouterr().err
    assert set(records.read_records(tmp_path / 'results' / 'c')) == {
        'base/lr0.01/s1', 'base/lr0.01/s2', 'bad/lr0.01/s1'
    }  # fmt: skip


def test_half_written_lines_lose_nothing_else(config, tmp_path):
    compare.compare(config(seeds=2))
    path = tmp_path / 'results' / 'c' / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join(lines[:3]) + '\n' + lines[3][: len(lines[3]) // 2])
    assert len(records.read_records(path.parent)) == 3
    compare.compare(config(seeds=2))
    assert sum(starts(tmp_path).values()) == 4  # out/ still has it
    assert path.read_text().splitlines() == lines


@pytest.mark.slow
def test_a_full_disk_loses_no_finished_run(config, tmp_path, python):
    """A limit on the size of files stands for the disk: one arm's logs fit, the other's and the collected ones do not."""
    cfg = config(arms=dict(base='', big='--level=1.9 --long=4000'), seeds=2, cluster='local', jobs=4)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    p = start(python, cfg, limit=6000)
    _, err = p.communicate(timeout=60)
    assert p.returncode in (1, 2) and 'Traceback' not in err, err
    assert starts(tmp_path) == {'base/lr0.01/s1': 1, 'base/lr0.01/s2': 1, 'big/lr0.01/s1': 2, 'big/lr0.01/s2': 2}
    compare.compare(cfg)
    assert starts(tmp_path) == {'base/lr0.01/s1': 1, 'base/lr0.01/s2': 1, 'big/lr0.01/s1': 3, 'big/lr0.01/s2': 3}
    assert found_cells(tmp_path)['big'].verdict.n == 2


@pytest.mark.slow
def test_two_compares_at_once_share_the_runs(config, tmp_path, python):
    cfg = config(seeds=4, arms=dict(base='--sleep=0.05', better='--sleep=0.05 --level=1.9'), jobs=3)
    both = [start(python, cfg), start(python, cfg)]
    for p in both:
        _, err = p.communicate(timeout=60)
        assert p.returncode == 0, err
    assert set(starts(tmp_path).values()) == {1} and len(starts(tmp_path)) == 8
    assert len(records.read_records(tmp_path / 'results' / 'c')) == 8


@pytest.mark.slow
@pytest.mark.parametrize('cluster', ['local', 'pool'])
def test_ctrl_c_stops_the_runs_and_a_killed_compare_leaves_them_to_the_next(config, tmp_path, python, cluster):
    cfg = config(seeds=1, arms=dict(base='--sleep=0.3', better='--level=1.9 --sleep=0.3'), cluster=cluster)
    p = start(python, cfg)
    wait_for(lambda: len(starts(tmp_path)) == 2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130, err
    folders = [tmp_path / 'out' / 'c' / arm / 'lr0.01' / 's1' for arm in ('base', 'better')]
    assert not any(launch.holder(f) for f in folders) and 'stopping 2 runs' in out
    p = start(python, cfg)
    wait_for(lambda: all(launch.holder(f) for f in folders))
    p.kill()
    p.communicate()
    assert all(launch.holder(f) for f in folders)  # the runs live on
    compare.compare(cfg)
    assert starts(tmp_path) == {'base/lr0.01/s1': 2, 'better/lr0.01/s1': 2}  # waited for, not started a third time


def test_the_sweep_finds_the_rate_goes_beyond_its_edge_and_names_it(config, tmp_path):
    arms = dict(base='', fast='--best_rate=0.08 --diverge_above=0.05')
    cfg = config(arms=arms, learning_rates=(0.005, 0.01, 0.02), sweep_seeds=2, extend=2, seeds=2)
    compare.compare(cfg)
    x = found_cells(tmp_path)
    assert x['base'].lr == 0.01 and not x['base'].rate.edge and list(x['base'].rates) == [0.005, 0.01, 0.02]
    assert x['fast'].lr == 0.04 and list(x['fast'].rates) == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert x['fast'].rates[0.08] == float('inf') and not x['fast'].rate.edge  # diverged: nothing better lies beyond
    sweep = {s for r in records.read_records(tmp_path / 'results' / 'c').values() if (s := r['seed']) > records.SWEEP}
    assert len(sweep) == 2 and not sweep & set(x['base'].values)  # the seeds that decide have chosen nothing
    count = sum(starts(tmp_path).values())
    compare.compare(dataclasses.replace(cfg, extend=0, learning_rates=(0.005, 0.01), name='c'))
    assert sum(starts(tmp_path).values()) == count
    narrow = config(arms=arms, learning_rates=(0.005, 0.01), extend=0, seeds=1, name='d')
    compare.compare(narrow)
    c, found = outcomes.load(tmp_path / 'results' / 'd')
    assert found[1].rate.edge == 'high' and '**high end**' in tables.table(c, found)


def test_a_mismatch_is_refused_unless_named(config, fails):
    uneven = dict(arms=dict(base='', long='--max_iters=12'), match='tokens', seeds=1)
    fails(lambda: compare.compare(config(**uneven)), 'long: tokens is +20.0% off base', '--max_iters=10', 'mismatch')
    fails(lambda: compare.compare(config(arms=dict(base='', b='--batch_size=5'))), 'another batch_size', 'mismatch')
    compare.compare(config(**uneven, mismatch=dict(long='a test')))


def test_runs_that_end_out_of_patience_are_over_and_matched_in_what_they_may_use(config, tmp_path, fails):
    arms = dict(base='--patience=2', better='--level=1.9 --patience=2')
    fails(lambda: compare.compare(config(arms=arms)), "at = 'best'")
    uneven = arms | dict(better='--level=1.9 --patience=3')
    fails(lambda: compare.compare(config(arms=uneven, at='best')), 'another patience', 'mismatch')
    cfg = config(arms=arms, at='best', seeds=2)
    compare.compare(cfg)
    compare.compare(cfg)
    assert set(starts(tmp_path).values()) == {1}
    shutil.rmtree(tmp_path / 'out')
    compare.compare(cfg)  # from results/
    assert not starts(tmp_path)
    c, found = outcomes.load(tmp_path / 'results' / 'c')
    assert [r['eval']['iter'][-1] for r in found[1].runs.values()] == [7, 7] and found[1].verdict.n == 2
    assert found[0].cost['iter'] == 10 and found[0].cost['tokens'] == plan.costs(plan.make_plans(cfg)[0])['tokens']
    assert 'ended them at iteration: base 7 to 7, better 7 to 7' in tables.table(c, found)
    # seeds of different length: a curve goes as far as all of them do
    first = next(iter(found[0].runs.values()))['eval']
    first.update({k: v + v[-1:] for k, v in first.items()})
    assert len(outcomes.curve(found[0], 'iter')['x']) == 7


def test_costs_of_real_arms_are_those_that_training_logs(tmp_path, run_train):
    once = ('--max_iters=0', '--eval_iters=1')
    formed = ('--linear=block_diagonal', '--optimizer=muon', '--step_rule=product')  # which auto would leave factored
    arms = dict(a=(), b=('--linear=expanded',), c=formed)
    cfg = compare.CompareConfig(arms={name: ' '.join([*TINY, *flags]) for name, flags in arms.items()})
    for p, flags in zip(plan.make_plans(cfg), arms.values()):
        m = json.loads((run_train(*once, *flags) / 'manifest.json').read_text())
        cost = plan.costs(p)
        assert cost['params'] == m['params'] and cost['tokens'] == 10 * m['tokens_per_iter']
        assert cost['flops'] == pytest.approx(10 * outcomes.per_iter(m, None, 'flops'))


def test_arms_of_a_seed_see_the_same_batches_and_the_schedule_keeps_its_shape():
    import torch

    cfg = compare.CompareConfig(
        arms=dict(a=' '.join(TINY), b=' '.join([*TINY, '--linear=expanded', '--learning_rate=4e-2']))
    )
    resolved = []
    for p in plan.make_plans(cfg):
        resolved.append(load(type(p.cfg), [*p.argv, *plan.flags([p], p, 2e-2, 3)]))
        assert resolved[-1].learning_rate == 2e-2 and resolved[-1].seed_model == resolved[-1].seed_data == 3
        assert resolved[-1].min_lr / 2e-2 == pytest.approx(p.cfg.min_lr / p.cfg.learning_rate)
    loaders = [loader.Loader(c.dataset, 'train', c.block_size, c.batch_size, 99, torch.device('cpu'), c.data_order,
                             c.seed_data) for c in resolved]  # fmt: skip
    assert all(torch.equal(*(d.batch(i)[0] for d in loaders)) for i in (0, 4, 400))


def test_runs_of_other_settings_are_not_mixed_in(config, fails, tmp_path):
    compare.compare(config(seeds=1))
    other = config(seeds=1, arms=dict(base='', better='--level=1.8'))
    fails(lambda: compare.compare(other), 'other settings', 'level = 1.9 there, 1.8 here', '--name')
    shutil.rmtree(tmp_path / 'results')
    fails(lambda: compare.compare(other), 'other settings', 'delete that folder')


def test_runs_from_before_a_config_file_was_changed_are_not_mixed_in(config, fails, tmp_path):
    """Also those that are in no log yet, such as interrupted ones: the command beside them is the same."""
    path = tmp_path / 'x.py'
    path.write_text('level = 1.9')
    cfg = config(seeds=1, arms=dict(base='', better=str(path)))
    compare.compare(cfg)
    shutil.rmtree(tmp_path / 'results')
    path.write_text('level = 1.8')
    fails(lambda: compare.compare(cfg), 'level = 1.9 there, 1.8 here', 'delete that folder')


def test_runs_on_another_edition_of_the_data_are_not_mixed_in(tmp_path, fails):
    """Of a machine that could not fetch the same text, or of the published baseline of a track."""
    arms, where = (
        dict(base='', other='--linear=low_rank'),
        dict(results=str(tmp_path / 'results'), out=str(tmp_path / 'out')),
    )
    cfg = compare.CompareConfig(common=' '.join(TINY), arms=arms, name='c', looks=False, bench=False, **where)
    s = state.State(cfg, plan.make_plans(cfg))
    r = Run(0, s.plans[0].cfg.learning_rate, 1, 'base/lr0.01/s1')
    facts = dict.fromkeys(
        ('params', 'params_collapsed', 'processes', 'tokens_per_iter', 'flops_per_token', 'flops_per_update'), 1
    )
    about = dict(run=r.name, arm='base', size='', lr=r.lr, seed=1, state='finished', settings=s.run_settings(r))
    curves = dict(ms=None, eval=dict(iter=[0], val_loss=[4.0]), train={})
    for edition, ok in (
        (loader.read_meta('shakespeare_char')['edition'], True),
        (None, True),
        ('plays of another', False),
    ):
        found = about | curves | dict(facts=facts | (dict(data_edition=edition) if edition else {}))
        records.write_records(s.folder, {r.name: found})
        check = lambda: comparison.check_possible(s)
        check() if ok else fails(check, 'data/shakespeare_char: the edition', r.name, 'plays of another', '--name')
    fails(
        lambda: state.check_data({r.name: found}, 'shakespeare_char', dict(data_edition='x'), 'out/c/other'),
        'out/c/other: the edition',
    )


def test_the_steps_of_an_arm_are_timed_with_its_flags_as_they_are(tmp_path, monkeypatch):
    """A space in a value does not part it."""
    commands = []
    monkeypatch.setattr(
        launch, 'run_all', lambda todo, *rest, **options: commands.append(todo()[0][2]) or dict(bench='-')
    )
    cfg = compare.CompareConfig(common=' '.join(TINY), arms=dict(base='', noted="--note='two words'"))
    with pytest.raises(UserError, match='bench.py failed'):
        timing.steps(cfg, plan.make_plans(cfg), tmp_path, tmp_path, None)
    assert '--note=two words' in commands[0] and 'words' not in commands[0]


def test_runs_on_a_data_set_that_was_prepared_otherwise_are_not_mixed_in(tmp_path, fails, capsys):
    """One of the user's own, which has no edition: neither beside runs that are over, nor as the end of one that was
    interrupted."""
    folder = tmp_path / 'mine'
    folder.mkdir()

    def prepare(text):
        itos = sorted(set(text))
        ids = [itos.index(ch) for ch in text]
        write_dataset(folder, ids[:-100], ids[-100:], vocab_size=len(itos), tokenizer='char', itos=itos)

    flags = ' '.join([*TINY, f'--dataset={folder}', '--block_size=8', '--max_iters=2', '--lr_decay_iters=2'])
    keys = dict(common=flags, arms=dict(base='', other='--norm=rmsnorm'), name='c', looks=False, bench=False, jobs=1)
    cfg = compare.CompareConfig(**keys, seeds=1, results=str(tmp_path / 'results'), out=str(tmp_path / 'out'))
    prepare('a text of a few words. ' * 40)
    compare.compare(cfg)
    prepare('words, a few of a text. ' * 40)
    fails(lambda: compare.compare(dataclasses.replace(cfg, seeds=2)), 'mine: the checksum', 'base/lr0.01/s1', '--name')

    shutil.rmtree(tmp_path / 'results')
    shutil.rmtree(tmp_path / 'out')
    begun = tmp_path / 'out/c/base/lr0.01/s1'
    train(load(TrainConfig, [*flags.split(), '--seed_model=1', '--seed_data=1', '--max_iters=1', f'--out_dir={begun}']))
    (begun / 'manifest.json').unlink()  # as if it had been killed
    prepare('a text of a few words. ' * 40)
    with pytest.raises(SystemExit):
        compare.compare(cfg)
    assert 'base/lr0.01/s1 holds a run that began on other tokens' in capsys.readouterr().err


def test_steps_are_timed_again_where_a_config_file_says_something_else(tmp_path, monkeypatch, capsys):
    """Its name in the arm is the same."""
    path, timed = tmp_path / 'x.py', []

    def bench(todo, *rest, **options):
        for _, _, command in todo():
            out = next(a for a in command if a.startswith('--out=')).removeprefix('--out=')
            timed.append(out)
            Path(out).write_text(json.dumps(dict(ms=float(len(timed)))) + '\n')

    monkeypatch.setattr(launch, 'run_all', bench)
    cfg = compare.CompareConfig(common=' '.join(TINY), arms=dict(base=str(path)))
    for factor, ms in ((4, 1.0), (4, 1.0), (3, 2.0), (4, 1.0)):  # those of the first call are still there
        path.write_text(f'mlp_expansion_factor = {factor}')
        assert timing.steps(cfg, plan.make_plans(cfg), tmp_path, tmp_path, None) == dict(base=ms)
    assert capsys.readouterr().out == 3 * 'timing the training steps of base, alone\n'  # it names what is timed
    row = json.loads((tmp_path / 'bench.jsonl').read_text())
    del row['settings']  # as older ones are
    (tmp_path / 'bench.jsonl').write_text(json.dumps(row | dict(ms=9.0)) + '\n')
    assert timing.steps(cfg, plan.make_plans(cfg), tmp_path, tmp_path, None) == dict(base=9.0) and len(timed) == 2


@pytest.mark.parametrize(
    'keys, part',
    [
        (dict(arms=dict(one='')), 'at least two'),
        (dict(arms={'a b': '', 'c': ''}), "'a b'"),
        (dict(learning_rates=dict(nobody=(1e-3, 2e-3))), 'nobody'),
        (dict(arms={1: '', 2: ''}), "'1': must be a text"),
        (dict(name='../x'), 'without /'),
        (dict(targets=('2.0',)), 'must be figures'),
        (dict(targets=(float('nan'),)), 'must be figures'),
        (dict(targets=dict(small=(2.0,))), 'no such size'),
        (dict(center='log', worth=1.0), 'below 1'),
    ],
)
def test_mistakes_in_a_comparison_are_named(config, keys, part):
    assert any(part in p for p in config(**keys).problems())


def test_rates_may_differ_by_arm_and_an_unknown_metric_is_named(tmp_path, config, fails):
    (tmp_path / 'c.py').write_text("arms = dict(a='', b='')\nlearning_rates = dict(a=(1e-3,), b=(1e-3, 2e-3))\n")
    cfg = load(compare.CompareConfig, [str(tmp_path / 'c.py')])
    assert cfg.learning_rates['b'] == (1e-3, 2e-3)
    for flags in ("--note='", 3):
        fails(lambda flags=flags: plan.make_plans(config(arms=dict(a='', b=flags))), 'b: ', 'its quotes closed')
    run = dict(state='finished', eval=dict(iter=[0], val_loss=[1.0]))
    fails(lambda: verdicts.value(run, 'val_los', 'val_los', 'last'), "metric = 'val_los'", 'have val_loss')


def test_the_check_finds_an_altered_number(tmp_path):
    results = tmp_path / 'results'
    shutil.copytree(ROOT / 'results' / 'expansion_250', results / 'expansion_250')
    (results / 'questions.toml').write_text(
        "[[question]]\ntitle = 'Do they?'\nrows = ['expansion_250/*']\ncomparisons = {expansion_250 = 'alone'}\n"
    )
    for path, text in report.written_of(results, questions.read_all(results)).items():
        path.write_text(text)
    readme = tmp_path / 'README.md'
    readme.write_text('k2000: 2.0348 <!-- source: results/expansion_250/table.md: k2000 | 5 -->')
    assert check.differences(results, [readme]) == []
    readme.write_text(readme.read_text().replace('2.0348', '2.0347'))
    text = (tmp_path / 'RESULTS.md').read_text()
    edited = re.sub(r'\d(?= \[)', lambda m: str((int(m[0]) + 1) % 10), text, count=1)
    assert edited != text
    (tmp_path / 'RESULTS.md').write_text(edited)
    wrong = check.differences(results, [readme])
    assert any('README.md: 2.0347 has no source' in w for w in wrong) and any('RESULTS.md, line' in w for w in wrong)
    (tmp_path / 'RESULTS.md').write_text(text)
    log = results / 'expansion_250' / 'metrics.jsonl'
    lines = log.read_text().splitlines()
    edited = [
        re.sub(r'("val_loss":\[.*?,)2\.0', r'\g<1>1.0', t) if '"run":"k2000/lr0.001/s1"' in t else t for t in lines
    ]
    assert edited != lines
    log.write_text('\n'.join(edited) + '\n')
    assert len(check.differences(results, [])) >= 2  # RESULTS.md and the table no longer agree with the logs


@pytest.mark.parametrize(
    'text, finds',
    [
        ('2.035 <!-- source: log.md: k2000 -->, as cited 10.8 times <!-- cited: 10.8 (its README) -->', ''),
        ('2.0749 <!-- source: log.md: k2000 -->', '2.0749 has no source'),  # in the file, in another line
        ('It ends at 2.0749. <!-- source: log.md: k2000 -->', '2.0749 has no source'),  # at the end of a sentence
        ('2.035\n\nnext <!-- source: log.md: k2000 -->', '2.035 has no source'),  # in another paragraph
        ('behind by 0.0401 <!-- source: log.md; 0.0401 = 2.0749 - 2.0348 -->', ''),
        ('behind by 0.0402 <!-- source: log.md; 0.0402 = 2.0749 - 2.0348 -->', 'is 0.0401'),
        ('behind by 0.1 <!-- source: log.md; 0.1 = 3.0 - 2.9 -->', 'with A and B from the other sources'),
        ('98% of it <!-- source: log.md; 98 = 2.0348 / 2.0749 -->', ''),
        ('98% of it <!-- source: log.md; 98% = 2.0348 / 2.0749 -->', ''),
        ('98% of it <!-- source: log.md; most = 2.0348 / 2.0749 -->', 'write FIGURE = A - B'),
        ('98% of it', '98 has no source'),
        ('by -0.0123', '0.0123 has no source'),
        ('10.65M parameters <!-- source: log.md -->', ''),
        ('10.66M parameters <!-- source: log.md -->', '10.66M has no source'),
        ('torch 2.11, `--lr=0.123`, arXiv 2410.21262, a 95% interval, [x](a/1.23.md)\n\n```\n1.234\n```', ''),
        ('1.5 <!-- source: nowhere.md -->', 'there is no file nowhere.md'),
        ('1.5 <!-- source: log.md: k1 -->', 'no line with "k1"'),
    ],
)
def test_a_figure_must_be_in_the_source_beside_it(tmp_path, text, finds):
    (tmp_path / 'log.md').write_text('| dense | 2.0749 |\n| k2000 | 2.0348 | 10,646,784 |\n')
    found = check.untraced(text, tmp_path, {})
    assert any(finds in f for f in found) if finds else found == []


def test_every_comparison_config_loads():
    for path in sorted((ROOT / 'config' / 'compare').glob('*.py')):
        cfg = load(compare.CompareConfig, [str(path)])
        arms = [p for p in plan.make_plans(cfg) if p.is_arm and p.size in (cfg.sizes or [''])]
        assert [p.arm for p in arms] == list(cfg.arms) * max(1, len(cfg.sizes)) or cfg.horizons, path.name


@pytest.mark.slow
def test_an_interrupted_comparison_of_real_runs_goes_on_exactly(tmp_path, run_train):
    """One run of train.py through compare.py, resumed from its checkpoint, ends where an uninterrupted one does."""
    keys = dict(
        seeds=1,
        looks=False,
        jobs=1,
        cluster='pool',
        bench=False,
        results=str(tmp_path / 'results'),
        keep_checkpoints=True,
    )
    tiny = ' '.join(TINY)
    cfg = compare.CompareConfig(
        arms=dict(a=tiny, b=tiny + ' --linear=expanded'), name='c', out=str(tmp_path / 'out'), **keys
    )
    plans = plan.make_plans(cfg)
    for p, flags in zip(plans, (('--max_iters=5',), ('--linear=expanded',))):
        out = tmp_path / 'out' / 'c' / p.arm / 'lr0.01' / 's1'
        run_train('--seed_model=1', '--seed_data=1', f'--out_dir={out}', *flags)
        (out / 'argv.json').write_text(json.dumps([*p.argv, *plan.flags([p], p, 0.01, 1), f'--out_dir={out}']))
    for name, before in (('config', dict(max_iters=10)), ('manifest', dict(finished=None))):  # killed on its way to 10
        path = tmp_path / 'out' / 'c' / 'a' / 'lr0.01' / 's1' / f'{name}.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | before))
    compare.compare(cfg)
    whole = run_train('--seed_model=1', '--seed_data=1', out='whole')
    parts = tmp_path / 'out' / 'c' / 'a' / 'lr0.01' / 's1'
    assert json.loads((parts / 'manifest.json').read_text())['start_iter'] == 5
    val = [[m['val_loss'] for m in read_metrics(d) if m['kind'] == 'eval'] for d in (whole, parts)]
    assert val[0] == pytest.approx(val[1], abs=1e-6)
    assert {x.name for x in outcomes.load(tmp_path / 'results' / 'c')[1]} == {'a', 'b'}
    with pytest.raises(UserError, match='other settings'):
        compare.compare(dataclasses.replace(cfg, common='--dropout=0.1'))
