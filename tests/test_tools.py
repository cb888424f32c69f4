"""The scripts beside the trainer, run as a user runs them."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import fuzz
import pytest
import torch
from conftest import ROOT, TINY

import bench
import files
import plot
import transfer
from configurator import UserError, load, run
from lab import records, steps
from surgery import collapse


def test_sample_writes_text_from_any_checkpoint(run_train, script, tmp_path):
    out = run_train('--linear=expanded')
    args = ['--max_new_tokens=40', '--device=cpu', '--seed=3']
    a = script('sample.py', f'--out_dir={out}', '--start=ROMEO:', *args).stdout
    assert a.startswith('ROMEO:') and a.endswith('---------------\n') and len(a) == len('ROMEO:') + 40 + 17
    script('transfer.py', 'collapse', f'--checkpoint={out}/ckpt.pt', f'--out={tmp_path}/plain/ckpt.pt')
    (tmp_path / 'prompt.txt').write_text('ROMEO:')
    b = script('sample.py', f'--checkpoint={tmp_path}/plain/ckpt.pt', '--start=FILE:prompt.txt', *args).stdout
    assert a == b


def test_no_tool_gives_a_key_of_training_another_meaning():
    import bench
    from lab import match
    from train import TrainConfig

    keys = {f.name for f in dataclasses.fields(TrainConfig)}
    for schema in (bench.BenchConfig, match.MatchConfig):
        assert not keys & set(schema.__dict__['__annotations__'])


LOG = ROOT / 'results' / 'bench'
OUTS = {  # a command: (its flags, a file that it wrote)
    '': ([*TINY], LOG / 'cpu.jsonl'),
    'race': ([*TINY], LOG / 'race.jsonl'),
    'ablate': ([*TINY], ''),
    'start': ([*TINY], ''),
    'same': ([*TINY], LOG / 'same.jsonl'),
    'profile': ([*TINY], LOG / 'cpu_profile.jsonl'),
    'sample': (['--vocab_size=64'], LOG / 'sample.jsonl'),
    'targets': (['--parts=sizes'], LOG / 'costs.jsonl'),
    'mlp': ([], ''),
}


@pytest.mark.parametrize('command', OUTS)
def test_no_command_replaces_a_file_that_it_did_not_write(command, fails, tmp_path, monkeypatch):
    flags, mine = OUTS[command]
    log = lambda name: (LOG / name).read_bytes()
    others = dict(ckpt=b'PK\3\4' * 99, text=b'a line', lines=b'{"kind": "train", "loss": 1.0}\n', json=b'[1, 2]\n')
    others |= {str(i): log(p.name) for i, (_, p) in enumerate(OUTS.values()) if p and p != mine}
    for name, content in others.items():
        (out := tmp_path / name).write_bytes(content)
        monkeypatch.setattr('sys.argv', ['bench.py', *[command] * bool(command), *flags, f'--out={out}'])
        fails(
            bench.main, f'out = {out}: is there, and bench.py {command}'.strip(), 'did not write it; name another file'
        )
        assert out.read_bytes() == content
    assert {p.name for p in tmp_path.iterdir()} == set(others)


def test_a_command_goes_on_with_its_own_file(tmp_path):
    from lab import bench_profile, bench_race, bench_same, bench_sample, bench_targets

    own = {'': bench, 'race': bench_race, 'same': bench_same, 'profile': bench_profile, 'sample': bench_sample,
           'targets': bench_targets}  # fmt: skip
    for command, module in own.items():
        (tmp_path / command).with_suffix('.jsonl').write_bytes(OUTS[command][1].read_bytes())
        files.ready((tmp_path / command).with_suffix('.jsonl'), module.OWN, command)
    (tmp_path / 'empty').touch()
    files.ready(tmp_path / 'empty', bench.OWN, 'x')


def test_neither_a_device_nor_what_only_looks_compressed_is_replaced(tmp_path, fails):
    from lab.bench_profile import TRACE

    (tmp_path / 't.json.gz').write_bytes(b'no gzip, but "traceEvents"')
    for path, own in ((Path('/dev/null'), bench.OWN), (tmp_path / 't.json.gz', TRACE)):
        fails(lambda path=path, own=own: files.ready(path, own, 'x'), f'out = {path}: is there, and x did not write it')


def test_traces_spectra_and_pictures_replace_only_their_own(run_train, fails, tmp_path, monkeypatch):
    from lab import figures
    from surgery import spectra

    paper = tmp_path / 'paper.pdf'
    paper.write_bytes(b'%PDF of a user')
    ckpt = run_train('--max_iters=1') / 'ckpt.pt'
    kept = ckpt.read_bytes()
    pair = f'--checkpoints={ckpt},{ckpt}'
    monkeypatch.setattr('sys.argv', ['bench.py', 'profile', *TINY, f'--trace={paper}'])
    fails(bench.main, f'trace = {paper}: is there, and bench.py profile did not write it')
    for flags, said in (([f'--data={ckpt}'], 'data = '), ([f'--out={paper}'], 'matplotlib did not write it')):
        fails(lambda flags=flags: spectra.spectra(load(spectra.SpectraConfig, [pair, *flags])), said, 'another file')
    monkeypatch.setattr('sys.argv', ['bench.py', 'mup', 'coordinates', f'--out={paper}'])
    fails(bench.main, 'matplotlib did not write it')
    monkeypatch.setattr('sys.argv', ['bench.py', 'mup', 'rates', f'--out={paper}l.jsonl'])
    (tmp_path / 'paper.pdfl.jsonl').write_text('{"width": 3}\n')
    fails(bench.main, 'bench.py mup rates did not write it')
    assert paper.read_bytes() == b'%PDF of a user' and ckpt.read_bytes() == kept
    for _ in range(2):  # their own, twice
        spectra.spectra(load(spectra.SpectraConfig, [pair, f'--data={tmp_path}/s.jsonl', f'--out={tmp_path}/s.png']))
        for suffix in 'png', 'svg', 'svgz', 'pdf', 'ps', 'eps', 'jpg':
            files.save_picture(figures.figure(1)[0], tmp_path / f'x.{suffix}')
    for name in 't.json', 't.json.gz':
        monkeypatch.setattr(
            'sys.argv', ['bench.py', 'profile', *TINY, '--steps=1', '--warmup=1', f'--trace={tmp_path}/{name}']
        )
        bench.main()
        bench.main()


def test_outputs_that_would_cost_something_are_refused(run_train, fails, tmp_path, monkeypatch):
    import compare
    from lab import figures, mup, records
    from surgery import reader
    from train import TrainConfig

    out = run_train('--max_iters=2')
    ckpt = str(out / 'ckpt.pt')
    fails(lambda: transfer.collapse(collapse.TransferConfig(ckpt, ckpt)), 'is the checkpoint itself')
    fails(lambda: load(TrainConfig, ['--out_dir=']), 'out_dir: must name a folder')
    monkeypatch.setattr('sys.argv', ['compare.py', '--report', f'--results={tmp_path}'])
    fails(compare.main, 'holds no comparison', 'RESULTS.md stays')
    (tmp_path / 'file').write_text('')
    figure = figures.figure(1)[0]
    for name, message in (('file/a.png', 'cannot write'), ('a.xyz', 'not supported'), ('folder', 'name a picture')):
        fails(lambda name=name: files.save_picture(figure, tmp_path / name), message)
    (tmp_path / 'old.png').write_bytes(b'a picture of Matplotlib')
    with monkeypatch.context() as m:
        m.setattr(files.os, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
        fails(lambda: files.save_picture(figure, tmp_path / 'old.png'), 'cannot write', 'No space left')
    assert (tmp_path / 'old.png').read_bytes() == b'a picture of Matplotlib'
    with pytest.raises(UserError, match='cannot write'):
        files.write(tmp_path / 'file' / 'x', b'')
    fails(lambda: mup.show(mup.MupConfig(out=str(tmp_path / 'file'))), 'not a file that rates wrote')
    (out / 'manifest.json').write_text('{}')
    fails(lambda: records.read_runs(out), 'manifest.json: damaged, params is missing')
    with pytest.raises(UserError, match='is the folder of a run; name its checkpoint'):
        reader.load(out)
    (out / 'best.pt').unlink()
    with pytest.raises(UserError, match=r'no checkpoint at .*best\.pt: .* take .*ckpt\.pt'):
        reader.load(out / 'best.pt')


@pytest.mark.slow
@pytest.mark.parametrize(
    'args, message',
    [
        (['sample.py', '--out_dir=nowhere'], 'no checkpoint at'),
        (['sample.py', '--temprature=1'], "did you mean 'temperature'"),
        (['transfer.py', 'colapse'], "unknown command 'colapse'"),
        (['transfer.py', 'collapse'], '--checkpoint=PATH'),
        (['plot.py', 'nowhere'], 'holds no runs'),
        (['bench.py', '--steps=0'], 'steps = '),
        (['bench.py', '--n_layer=2', '--', '--rounds=3'], 'rounds: belongs to the first arm'),
    ],
)
def test_mistakes_end_with_exit_code_2_and_no_traceback(script, args, message):
    r = script(*args, check=False)
    assert r.returncode == 2 and message in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.parametrize(
    'shell, code, message',
    [
        ('{} --help >&-', 0, ''),  # nobody listens
        ('{} nowhere 2>&-', 2, ''),
        ('{} --help >/dev/full', 2, 'error: what is printed: No space left on device'),
        ('PYTHONUNBUFFERED= {} --help >/dev/full', 2, 'error: what is printed: No space left on device'),
        ('PYTHONUNBUFFERED= {} config/shakespeare_char.py --no=1 >/dev/full', 2, "unknown key 'no'"),
    ],
)
def test_an_output_that_takes_nothing_gets_one_line(shell, code, message):
    command = shell.format(f'{sys.executable} {ROOT}/tests/fake_train.py')  # no torch: configurator.run does it for all
    r = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert r.returncode == code and message in r.stderr and 'Traceback' not in r.stderr


@pytest.mark.parametrize('errors', ['strict', 'surrogateescape'])  # the latter in the locale C
def test_a_terminal_of_few_letters_gets_the_others_spelled_out(errors, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding='ascii', errors=errors)
    monkeypatch.setattr(sys, 'stdout', out)
    run(lambda: print('Zürich', flush=True))
    assert out.buffer.getvalue() == b'Z\\xfcrich\n'


def test_a_tensor_beyond_the_memory_gets_one_line(fails):
    import torch

    err = fails(
        lambda: torch.empty(2**50, dtype=torch.uint8),
        'no memory for a tensor of',
        'make the model or the batch smaller',
    )
    assert err.count('\n') == 1


def test_a_gpu_without_memory_gets_one_line_and_any_other_error_its_traceback(fails):
    import torch

    text = 'CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 2.56 GiB is free.'
    fails(mock.Mock(side_effect=torch.OutOfMemoryError(text)), 'no memory for 20.00 GiB more', 'bench.py fit')
    with pytest.raises(RuntimeError, match='shapes'):
        run(mock.Mock(side_effect=RuntimeError('shapes')))


def test_what_happens_while_torch_is_loaded_gets_one_line(tmp_path):
    """Ctrl-C, and a disk so full that there is no temporary folder."""
    for raised, code, said in (
        ('KeyboardInterrupt', -signal.SIGINT, 'interrupted\n'),
        (
            "FileNotFoundError(2, 'No usable temporary directory found')",
            1,
            'error: No usable temporary directory found;',
        ),
    ):
        (tmp_path / 'torch.py').write_text(
            f'import signal\nsignal.signal(2, signal.default_int_handler)\nraise {raised}'
        )
        env = os.environ | dict(PYTHONPATH=str(tmp_path))  # after the folder of the script, before the packages
        for script in ('train', 'sample', 'evaluate', 'bench', 'toys/mnist'):
            r = subprocess.run([sys.executable, f'{ROOT}/{script}.py'], capture_output=True, text=True, env=env)
            assert r.returncode == code and (r.stdout + r.stderr).startswith(said) and 'Traceback' not in r.stderr, r


def test_a_damaged_run_is_listed_as_one_and_the_others_beside_it(tmp_path):
    fuzz.a_run(tmp_path / 'good'), fuzz.a_run(tmp_path / 'bad')
    (tmp_path / 'bad' / 'manifest.json').write_text('[1]')
    states = {row[0]: row[1] for row in plot.found_under(tmp_path)}
    assert states == dict(good='finished', bad='damaged')


def test_unknown_characters_of_a_prompt_are_named(run_train, script):
    r = script('sample.py', f'--out_dir={run_train()}', '--start=naïve', check=False)
    assert r.returncode == 2 and "['ï']" in r.stderr and 'Traceback' not in r.stderr


def test_plot_draws_the_runs_it_tables(run_train, script, tmp_path):
    runs = [run_train(out='a'), run_train('--linear=expanded', out='b')]
    r = script('plot.py', *runs, f'--out={tmp_path}/loss.png')
    assert (tmp_path / 'loss.png').read_bytes().startswith(b'\x89PNG')
    val = [json.loads(line)['val_loss'] for line in open(runs[1] / 'metrics.jsonl') if '"eval"' in line]
    assert f'{min(val):.4f}' in r.stdout


def test_the_picture_shows_where_a_run_starts_unless_that_is_far_above_the_rest(monkeypatch, tmp_path):
    """The loss at the start is what a growth method is judged by; that of a run from scratch is ln(vocabulary)."""
    runs, drawn = two_seeds(), []
    runs[1]['evals'][0]['val_loss'] = 2.3  # it starts from weights
    monkeypatch.setattr(plot, 'save_picture', lambda fig, out: drawn.extend(fig.axes[0].lines))
    plot.picture(runs, tmp_path / 'loss.png')
    assert [list(line.get_xdata()) for line in drawn if len(line.get_xdata())] == [[10, 20], [0, 10, 20]]


def test_plot_lists_runs_with_their_state(run_train, capsys, monkeypatch, tmp_path):
    run_train('--max_iters=2', out='runs/done')
    for name, change in (('stopped', dict(final_iter=2)), ('going', {})):
        folder = run_train('--max_iters=2', out=f'runs/{name}')
        config, manifest = (json.loads((folder / f'{n}.json').read_text()) for n in ('config', 'manifest'))
        (folder / 'config.json').write_text(json.dumps(config | dict(max_iters=9)))
        del manifest['finished'], manifest['final_iter']
        ended = dict(finished='2026-01-01T00:00:00Z') if change else {}
        (folder / 'manifest.json').write_text(json.dumps(manifest | change | ended))
    broken = run_train('--max_iters=2', out='runs/broken')
    with open(broken / 'metrics.jsonl', 'a') as f:
        f.write('{"kind": "train", "iter": 2, "loss": NaN}\n')
    monkeypatch.setattr('sys.argv', ['plot.py', str(tmp_path / 'runs')])
    plot.main()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert 'finished' in lines['done'] and 'interrupted at 2' in lines['stopped'] and 'running' in lines['going']
    assert 'diverged at 2' in lines['broken']
    best = min(json.loads(t)['val_loss'] for t in open(tmp_path / 'runs/done/metrics.jsonl') if '"eval"' in t)
    assert f'{best:.4f}' in lines['done'] and 'cpu' in lines['done']


FACTS = dict(params=1, params_collapsed=1, processes=1, tokens_per_iter=1, flops_per_token=1, flops_per_update=0)


def test_a_run_of_a_comparison_is_listed_once(run_train, tmp_path):
    """It is in its own folder, and in the comparison's results; a step that trained nothing is in the latter."""
    run_train('--max_iters=1', out='out/compare/demo/dense/lr0.01/s1')
    common = dict(state='finished', facts=FACTS, ms=None, eval=dict(iter=[0, 1], val_loss=[4.0, 3.0]), train={})
    names = ('dense/lr0.01/s1', 'dense/lr0.01/s2')
    records.write_records(
        tmp_path / 'out' / 'results' / 'demo',
        {n: dict(run=n, arm='dense', size='', lr=0.01, seed=1, **common) for n in names}
        | {
            'steps/a/lr0/s1': dict(
                run='steps/a/lr0/s1', arm='steps/a', size='', lr=0.0, seed=1, state='finished', facts=dict(flops=0)
            )
        },
    )
    found = [row[0] for row in plot.found_under(tmp_path / 'out')]
    assert found == ['compare/demo/dense/lr0.01/s1', 'results/demo/dense/lr0.01/s2']


def test_a_run_of_the_board_is_listed_once(tmp_path):
    """The results of an entry are in a folder of its own, its runs directly in that of the track."""
    run = tmp_path / 'compare/track/small/monarch/lr0.01/s1'
    run.parent.mkdir(parents=True)
    fuzz.a_run(run)
    common = dict(arm='monarch', size='', lr=0.01, state='finished', facts=FACTS, ms=None, train={})
    found = {
        f'monarch/lr0.01/s{s}': dict(
            run=f'monarch/lr0.01/s{s}', seed=s, eval=dict(iter=[0, 2], val_loss=[4.0, 2.0]), **common
        )
        for s in (1, 2)
    }
    head = dict(entry='monarch', track='small', source={})
    records.write_records(tmp_path / 'results/track/small/monarch', found, head)
    assert [row[0] for row in plot.found_under(tmp_path)] == [
        'compare/track/small/monarch/lr0.01/s1',
        'results/track/small/monarch/monarch/lr0.01/s2',
    ]


@pytest.mark.parametrize(
    'losses, says',
    [
        ((2.0, 1.9, 1.8), ['0.1000 nats ahead', 'gains 0.2000', 'the gap comes from the rate', 'is ahead once']),
        ((2.0, 1.8, 1.9), ['0.2000 nats ahead', '50% of the gap comes from the rate, the rest does not']),
        ((2.0, 1.9, 2.1), ['0.1000 nats ahead', 'the gap does not come from the rate']),
        ((2.0, 2.1, 1.9), ['is not ahead', 'no gap that a rate could explain']),
    ],
)
def test_the_story_says_what_the_logs_say(losses, says):
    runs = [
        dict(arm=arm, rate=rate, evals=[dict(val_loss=loss)])
        for arm, rate, loss in zip(('dense', 'expanded', 'own'), (1e-3, 1e-3, 8e-3), losses)
    ]
    text = plot.story(runs)
    assert all(part in text for part in says), text
    with pytest.raises(UserError, match='two at one shared'):
        plot.story(runs[:2])


def test_bench_times_arms_in_turns(script, tmp_path):
    small = [*TINY, '--steps=2', '--rounds=3', '--warmup=1']
    r = script('bench.py', *small, f'--out={tmp_path}/b.jsonl', '--', *TINY, '--linear=expanded')
    rows = [json.loads(line) for line in open(tmp_path / 'b.jsonl')]
    assert len(rows) == 2 and rows[1]['params'] > rows[0]['params'] and rows[1]['ratio'] != 1
    for row in rows:
        assert row['ms_min'] <= row['ms'] <= row['ms_max'] and row['mfu'] is None
        assert row['tokens_per_s'] == pytest.approx(4 * 32 / row['ms'] * 1000)
        assert f'{row["ms"]:.2f}' in r.stdout


def test_arms_of_other_sizes_are_compiled_as_if_alone():
    """A size in which two arms differ is a number to both, not a variable to the second one."""
    graphs, model = [], torch.nn.Linear(4, 4)

    def note(graph, inputs):
        graphs.append([x for x in inputs if isinstance(x, torch.SymInt)])
        return graph

    with torch._dynamo.config.patch(automatic_dynamic_shapes=True, recompile_limit=8):
        steps.side_by_side()
        for batch in (2, 3, 5):
            torch.compile(model, backend=note)(torch.zeros(batch, 4))
    assert graphs == [[], [], []]


def test_every_config_loads():
    from configurator import load
    from train import TrainConfig

    for path in sorted((ROOT / 'config').glob('*.py')):
        load(TrainConfig, [str(path)])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['bpe', 'gpt2'])
def test_a_folder_of_text_goes_all_the_way_to_a_transformers_folder(tmp_path, run_train, capsys, kind):
    """Prepare, train, sample, evaluate, export: the tokenizer travels along. The same as commands: docs/tutorial.md."""
    import importlib.util

    import torch

    import evaluate
    import sample
    import transfer
    from configurator import load

    transformers = pytest.importorskip('transformers')
    (tmp_path / 'texts').mkdir()
    text = (ROOT / 'data' / 'shakespeare_char' / 'input.txt').read_text()[:60000] + 'naïve café\n' * 300
    (tmp_path / 'texts' / 'a.txt').write_text(text)
    spec = importlib.util.spec_from_file_location('prepare_text', ROOT / 'data' / 'text' / 'prepare.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = [
        f'--folder={tmp_path}/texts',
        '--name=mine',
        f'--tokenizer={kind}',
        *['--vocab_size=400'] * (kind == 'bpe'),
    ]
    module.prepare(load(module.TextConfig, flags), tmp_path)

    out = run_train(f'--dataset={tmp_path}/mine', '--linear=expanded', '--max_iters=5')

    def sampled(path):
        capsys.readouterr()
        args = ['--start=naïve', '--device=cpu', '--max_new_tokens=20', '--temperature=0']
        sample.sample(load(sample.SampleConfig, [f'--checkpoint={path}', *args]))
        return capsys.readouterr().out

    a = sampled(out / 'ckpt.pt')
    assert a.startswith('naïve')
    transfer.export_hf(collapse.TransferConfig(f'{out}/ckpt.pt', f'{tmp_path}/hf', f'{tmp_path}/mine', windows=2))
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    assert tok.decode(tok('naïve\ncafé')['input_ids']) == 'naïve\ncafé'
    assert sampled(tmp_path / 'hf') == a
    tasks = ['--tasks=val', '--limit=3', '--device=cpu', f'--dataset={tmp_path}/mine']
    for name, path in (('ours', f'{out}/ckpt.pt'), ('hf', f'{tmp_path}/hf')):
        evaluate.evaluate(load(evaluate.EvalConfig, [f'--checkpoint={path}', *tasks, f'--out={tmp_path}/{name}.json']))
    figures = [json.load(open(tmp_path / f'{n}.json'))['tasks']['val']['figures'] for n in ('ours', 'hf')]
    assert figures[0]['bits_per_byte'] == pytest.approx(figures[1]['bits_per_byte'], rel=1e-4)
    assert torch.isfinite(torch.tensor(figures[0]['nats_per_token']))


@pytest.mark.slow
def test_every_tool_counts_parameters_the_same_way(run_train, capsys, tmp_path):
    import evaluate
    from configurator import load
    from lab import match, records

    dense, monarch = run_train('--max_iters=1', out='dense'), run_train('--linear=monarch', '--max_iters=1', out='m')
    facts = {p.name: json.loads((p / 'manifest.json').read_text()) for p in (dense, monarch)}
    plain, m = facts['dense'], facts['m']
    assert plain['params'] == plain['params_collapsed'] == m['params_collapsed'] > m['params']
    for folder, f in ((dense, plain), (monarch, m)):
        table = plot.table(records.read_runs(folder))
        assert f'{f["params"]:12,} {f["params_collapsed"]:12,}' in table
        keys = [f'--checkpoint={folder}/ckpt.pt', '--limit=1', '--device=cpu']
        found = evaluate.evaluate(load(evaluate.EvalConfig, keys))
        assert (found['params'], found['params_collapsed']) == (f['params'], f['params_collapsed'])
        cfg = load(match.MatchConfig, [*TINY, *(['--linear=monarch'] if f is m else [])])
        cfg = dataclasses.replace(cfg, vocab_size=json.loads((folder / 'config.json').read_text())['vocab_size'])
        assert match.cost(cfg, None) == f['params']
    assert f'{m["params"]:,} parameters ({m["params_collapsed"]:,} collapsed)' in capsys.readouterr().out
    transfer.collapse(collapse.TransferConfig(f'{monarch}/ckpt.pt', f'{tmp_path}/c/ckpt.pt'))
    assert f'{m["params"]:,} parameters -> {plain["params"]:,}' in capsys.readouterr().out


def test_evaluating_another_task_keeps_what_was_measured_before(run_train, monkeypatch, capsys):
    import evaluate
    from configurator import load

    out = run_train('--max_iters=1')
    monkeypatch.setitem(evaluate.TASKS, 'again', evaluate.TASKS['val'])

    def go(*more, report=out / 'eval.json'):
        keys = [f'--checkpoint={out}/ckpt.pt', f'--out={report}', '--device=cpu', *more]
        evaluate.evaluate(load(evaluate.EvalConfig, keys))
        return json.loads(report.read_text())

    first = go('--limit=1')
    both = go('--limit=1', '--tasks=again')
    when = {k: first[k] for k in ('commit', 'started')}
    assert set(both['tasks']) == {'val', 'again'} and both['tasks']['val'] == first['tasks']['val'] | when
    assert go('--limit=2')['limit'] == 2  # other figures: the old report is moved, not lost
    assert json.loads((out / 'eval.1.json').read_text()) == both
    assert 'it is called eval.1.json now' in capsys.readouterr().out
    elsewhere = out.with_name('e.json')
    go('--limit=1', report=elsewhere)
    run_train('--max_iters=1', '--learning_rate=1')  # other weights in the same place, of the same size and iteration
    assert list(go('--limit=1', '--tasks=again', report=elsewhere)['tasks']) == ['again']


def test_a_comparison_of_ones_own_stays_apart_from_the_published_ones():
    import compare
    from configurator import load
    from lab import state
    from lab.plan import make_plans

    cfg = load(compare.CompareConfig, ['config/compare/demo.py', '--name=demo'])
    assert state.State(cfg, make_plans(cfg)).folder == ROOT / 'out' / 'results' / 'demo'
    for flag in ('--check', '--report'):
        assert load(compare.CompareConfig, [flag]).results == 'results'  # what RESULTS.md is about
    assert load(compare.CompareConfig, ['--report', '--results=out/results']).results == 'out/results'


def test_runs_that_share_a_processor_do_not_wait_by_spinning(tmp_path, monkeypatch):
    import time

    from lab import launch

    monkeypatch.delenv('OMP_WAIT_POLICY', raising=False)  # train.py sets it where it is imported
    for jobs, policy in ((2, 'passive'), (1, '')):
        start = launch.engine('local', jobs, tmp_path)
        file = tmp_path / f'{jobs}.txt'
        poll, _ = start(['sh', '-c', f'echo "$OMP_WAIT_POLICY" > {file}'], tmp_path, 0)
        while poll() is None:
            time.sleep(0.01)
        assert file.read_text().strip() == policy


def two_seeds(last=(2.0, 2.2), best=(1.5, 1.9)):
    """Two runs of one arm, each with its lowest loss before its last."""
    return [
        dict(
            name=f'out/a-s{i}', arm='a', place=Path('out/a'), rate=1e-3, diverged=False, train=[],
            manifest=dict(params=9, params_collapsed=5, device='cpu'),
            evals=[dict(iter=0, val_loss=4.0), dict(iter=10, val_loss=b), dict(iter=20, val_loss=v)],
        )
        for i, (b, v) in enumerate(zip(best, last))
    ]  # fmt: skip


def test_the_table_of_plot_has_best_and_last_losses_with_the_spread_of_their_seeds():
    row = plot.table(two_seeds()).splitlines()[1]
    spread = lambda a, b: f'{(a + b) / 2:.4f} ± {abs(a - b) / 2**0.5:.4f}'  # the sample standard deviation
    assert (
        spread(1.5, 1.9) in row
        and row.endswith(spread(2.0, 2.2))
        and row.split()[:6] == ['a', '2', '9', '5', '0.001', '1.7000']
    )


def test_runs_of_one_name_in_different_folders_are_no_seeds_of_one_arm(monkeypatch, capsys, tmp_path):
    """compare.py calls a run ARM/lrRATE/sSEED; comparisons share names of arms."""
    names = ('dense/lr0.01/s1', 'monarch/lr0.01/s1', 'a/x-s1', 'a/x-s2', 'b/x')
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fuzz.a_run(folder)
    monkeypatch.setattr('sys.argv', ['plot.py', *map(str, [*folders, folders[-1]]), '--out='])
    plot.main()
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [['dense/lr0.01/s1', '1'], ['monarch/lr0.01/s1', '1'], ['a/x', '2'], ['b/x', '1']]


def test_the_table_of_plot_says_that_a_run_diverged_although_no_evaluation_saw_it():
    runs = two_seeds()
    runs[1]['diverged'] = True
    row = plot.table(runs).splitlines()[1].split()
    assert row[-1] == 'diverged' and row[5] == '1.7000'


def test_best_is_the_run_with_the_lowest_loss(monkeypatch, tmp_path, capsys):
    runs = two_seeds(best=(1.9, 1.5))
    for r in runs:
        (tmp_path / r['arm']).mkdir(exist_ok=True)
        (tmp_path / r['arm'] / 'metrics.jsonl').touch()
    monkeypatch.setattr(plot, 'read_runs', lambda folder: runs)
    monkeypatch.setattr('sys.argv', ['plot.py', str(tmp_path / 'a'), '--best'])
    plot.main()
    assert capsys.readouterr().out == 'out/a-s1\n'


def test_a_run_that_ended_before_its_end_is_not_called_running(tmp_path):
    """However lately its log was written to."""
    (tmp_path / 'metrics.jsonl').touch()
    lines = [dict(kind='eval', iter=0, val_loss=4.0), dict(kind='train', iter=3, loss=3.0)]
    for facts, state in ((dict(finished='now', final_iter=4), 'interrupted at 4'), ({}, 'running')):
        assert plot.state(tmp_path, facts, dict(max_iters=9), lines) == state


def test_every_command_of_transfer_does_what_its_name_says():
    assert {name: operation.__name__.replace('_', '-') for name, (_, operation) in transfer.COMMANDS.items()} == {
        name: name
        for name in (
            'collapse',
            'expand',
            'prune',
            'export-hf',
            'export-nanogpt',
            'grow',
            'factorize',
            'spectra',
            'consolidate',
        )
    }


def test_plot_tells_the_story_and_writes_the_picture_where_they_are_asked_for(monkeypatch, tmp_path, capsys):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'metrics.jsonl').touch()
    monkeypatch.setattr(plot, 'read_runs', lambda folder: two_seeds())
    monkeypatch.setattr(plot, 'story', lambda runs: f'a story of {len(runs)} runs')
    monkeypatch.setattr(plot, 'picture', lambda runs, out: out.write_bytes(b'png'))
    picture = f'--out={tmp_path}/x.png'
    for flags, told, drawn in (
        (['--out='], False, False),
        (['--out=', '--story'], True, False),
        ([picture], False, True),
    ):
        monkeypatch.setattr('sys.argv', ['plot.py', str(tmp_path / 'a'), *flags])
        plot.main()
        out = capsys.readouterr().out
        assert plot.table(two_seeds()) in out and ('a story of 2 runs' in out) == told
        assert (tmp_path / 'x.png').exists() == drawn == ('x.png' in out)


@pytest.mark.parametrize('content', ['', 'null', '7', '[1]', '"x"', '{}', '{"a"', '[[]]'])
def test_json_of_another_shape_than_was_written_is_no_traceback(tmp_path, monkeypatch, content, fails):
    """Of a table to show, of a report to add to, of a run that may be over, of a data set that may be prepared."""
    import evaluate
    from lab import launch, mup
    from tokens import tokenfile

    path = tmp_path / 'x.json'
    path.write_text(content)
    monkeypatch.setattr('sys.argv', ['bench.py', f'--show={path}'])
    fails(bench.main, 'not a file that bench.py --out=FILE wrote')
    fails(lambda: mup.show(SimpleNamespace(out=str(path))), 'not a file that rates wrote')
    report = dict(model='m', commit='c', started='s', tasks={})
    assert evaluate.add_to(path, report) == report and (tmp_path / 'x.1.json').read_text() == content
    for name in ('manifest.json', 'config.json', 'unfinished.json'):
        (tmp_path / name).write_text(content)
    assert launch.over(tmp_path) is False and tokenfile.read_command(tmp_path) == ''
