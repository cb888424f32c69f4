"""What the documents say is what the logs say, and what they tell a reader to do works."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import configurator
from lab import check

DOCUMENTS = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def test_documents_agree_with_the_logs():
    """As python compare.py --check: tables are printed again and compared, figures are looked up in their sources."""
    assert check.differences(ROOT / 'results') == []


def test_the_documents_have_tables_to_check():
    assert sum(len(check.BLOCK.findall(p.read_text())) for p in check.documents()) >= 8


def test_files_and_pages_named_in_the_documents_exist():
    for path in [*sorted(ROOT.glob('*.md')), *DOCUMENTS]:
        text = path.read_text()
        for name in re.findall(r'`([\w/]+\.(?:py|md|txt|toml|jsonl))`', text):
            if '/' in name or name.endswith('.py'):
                assert (ROOT / name).exists(), f'{path.name} names {name}'
        for link in re.findall(r'\]\(([^)#:]+)\)', text):
            assert (path.parent / link).exists(), f'{path.name} links to {link}'


def test_every_room_and_file_of_the_root_is_in_the_readmes_table():
    table = (ROOT / 'README.md').read_text().split('| where | what |')[1].split('\n\n')[0]
    rooms = [f'{p.parent.name}/' for p in ROOT.glob('*/__init__.py')]
    assert [n for n in [*rooms, *(p.name for p in sorted(ROOT.glob('*.py')))] if f'`{n}`' not in table] == []


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 130


# -----------------------------------------------------------------------------
# the commands


def commands(path: Path) -> list[str]:
    """The lines of a document's shell blocks, in order."""
    blocks = re.findall(r'```sh\n(.*?)```', path.read_text(), re.S)
    return [line for b in blocks for line in b.splitlines() if line and not line.startswith('#')]


class Loaded(Exception):
    """The config that a command would run with."""


def loaded(script: str, argv: list[str], monkeypatch):
    """Start a script as the shell would, up to the point where its keys are read and found right."""

    def load(schema, args):
        raise Loaded(LOAD(schema, args))

    for module in list(sys.modules.values()):
        if getattr(module, 'load', None) is LOAD:
            monkeypatch.setattr(module, 'load', load)
    monkeypatch.setattr(sys, 'argv', [script, *argv])
    monkeypatch.setattr(configurator, 'run', lambda main, **_: main())
    try:
        runpy.run_path(str(ROOT / script), run_name='__main__')
    except Loaded as e:
        return e.args[0]
    finally:
        monkeypatch.undo()
    return None  # a script without keys, such as data/shakespeare/prepare.py


LOAD = configurator.load
WITHOUT_KEYS = ('data/shakespeare_char/prepare.py', 'data/shakespeare/prepare.py')


def follow(line: str, made: set, monkeypatch):
    """Check one command: it reads what is there or was made, its keys are right. What it makes is added to made."""
    words = shlex.split(line, comments=True)
    if words[0] == 'make':
        assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.M), line
        return
    if words[0] in ('mkdir', 'cp'):
        made.add(words[-1].rstrip('/'))
        return
    if words[0] == 'torchrun':
        words = ['python', *words[next(i for i, w in enumerate(words) if w.endswith('.py')) :]]
    if words[0] == 'sbatch':
        at = next(i for i, w in enumerate(words) if w.endswith('.sh'))
        assert (ROOT / words[at]).exists(), line
        words = ['python', 'train.py', *words[at + 1 :]]
    assert words[0] == 'python' and (ROOT / words[1]).exists(), line
    script, argv = words[1], words[2:]
    if script in WITHOUT_KEYS:
        made.add(str(Path(script).parent))
        return
    cfg, reads = None, []
    rest = argv
    while True:  # arms are separated by --
        cut = rest.index('--') if '--' in rest else len(rest)
        first = argv[:1] if rest is not argv and argv[:1] in (['match'], ['race']) else []
        arm = rest[:cut] if script == 'transfer.py' else [*first, *rest[:cut]]
        if script == 'transfer.py' and argv[0] == 'match':
            arm = [*first, *arm, '--', *arm[0 if first else 1 :]]
        cfg = loaded(script, arm, monkeypatch) or cfg
        if cut == len(rest):
            break
        rest = rest[cut + 1 :]
    reads += [getattr(cfg, k, '') for k in ('checkpoint', 'distill_from', 'folder')]
    reads += getattr(cfg, 'checkpoints', '').split(',')
    given = dict(w[2:].split('=', 1) for w in argv if w.startswith('--') and '=' in w)
    out = given.get('out', '')
    if script == 'train.py':
        reads.append(cfg.out_dir if cfg.init_from == 'resume' else cfg.init_from if '/' in cfg.init_from else '')
        reads.append(f'data/{cfg.dataset}')
        out = cfg.out_dir
    elif script == 'sample.py' and 'out_dir' in given:
        reads.append(cfg.out_dir)
    elif script == 'plot.py':
        reads += [a for a in argv if not a.startswith('--')]
    elif script == 'data/text/prepare.py':
        out = f'data/{cfg.name}'
    elif script == 'compare.py' and cfg.arms:
        name = Path(argv[0]).stem
        out = f'{cfg.results}/{name}'
    for path in filter(None, reads):
        known = any(path == m or path.startswith(f'{m}/') or m.startswith(f'{path}/') for m in made)
        assert known or (ROOT / path).exists() and not path.startswith('out'), f'{line}: nothing made {path} before'
    made.add(out)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda p: p.stem)
def test_every_command_of_a_document_loads_and_reads_what_an_earlier_one_made(document, monkeypatch):
    import bench  # noqa: E401, F401

    made = set()
    for line in commands(document):
        follow(line, made, monkeypatch)


def test_a_wrong_command_is_noticed(monkeypatch):
    made = {'out/x'}
    follow('python sample.py --checkpoint=out/x/best.pt', made, monkeypatch)
    with pytest.raises(AssertionError, match='nothing made out/y'):
        follow('python sample.py --checkpoint=out/y/best.pt', made, monkeypatch)
    with pytest.raises(configurator.UserError, match='unknown key'):
        follow('python bench.py config/d12.py -- config/d12.py --stpes=3', made, monkeypatch)


# -----------------------------------------------------------------------------
# a newcomer's walk, word for word, with a small preset that is smaller still

TINY = """
n_layer, n_head, n_embd, block_size, batch_size = 2, 2, 32, 64, 4
max_iters = lr_decay_iters = 40
eval_interval, eval_iters, log_interval, warmup_iters = 10, 1, 10, 2
"""


@pytest.fixture
def clone(tmp_path, python):
    """A copy of the repository as git would clone it, and run(line) to run a command in it as a reader's shell would."""
    files = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    here = tmp_path / 'clone'
    for name in files:
        if not name.startswith('results/') and (ROOT / name).is_file():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, here / name)
    for path in (ROOT / 'data' / 'shakespeare_char').glob('*'):
        if path.is_file():
            shutil.copy(path, here / 'data' / 'shakespeare_char' / path.name)
    with open(here / 'config' / 'shakespeare_char.py', 'a') as f:
        f.write(TINY)
    demo = here / 'config' / 'compare' / 'demo.py'
    text = demo.read_text()
    for key, value in dict(
        max_iters=10, lr_decay_iters=10, eval_interval=5, eval_iters=2, block_size=16, n_embd=16, expansion=32
    ).items():
        assert f'--{key}=' in text
        text = re.sub(f'--{key}=\\d+', f'--{key}={value}', text)
    demo.write_text(text + 'looks = False\nseeds, sweep_seeds, jobs = 2, 1, 1\n')
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin' / 'python').write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n')
    (tmp_path / 'bin' / 'python').chmod(0o755)

    def go(line, **more):
        env = os.environ | dict(
            PATH=f'{tmp_path}/bin:{os.environ["PATH"]}',
            OMP_NUM_THREADS='1',
            CUDA_VISIBLE_DEVICES='',
        )
        r = subprocess.run(['bash', '-c', line], cwd=here, env=env, capture_output=True, text=True, **more)
        assert r.returncode == 0, f'{line}\n{r.stdout[-2000:]}\n{r.stderr[-2000:]}'
        return r.stdout

    go.folder = here
    return go


@pytest.mark.slow
@pytest.mark.parametrize('name', ['README.md', 'docs/tutorial.md'])
def test_the_commands_and_snippets_of_a_page_run_word_for_word(clone, name):
    for line in commands(ROOT / name):
        if not line.startswith('make'):
            clone(line)
    snippets = re.findall(r'```python\n(.*?)```', (ROOT / name).read_text(), re.S)
    for code in snippets:
        (clone.folder / 'snippet.py').write_text(code)
        assert clone('python snippet.py').startswith('ROMEO:' if 'transformers' in code else '')


@pytest.mark.slow
def test_make_run_tells_the_story_and_repeats_no_finished_run(clone):
    make = 'make run PY=python -o .venv/ready'
    said = clone(make)
    text = said.index('---------------')
    assert text < said.index('best val', text) < said.index('At the shared rate 0.001 expanded', text)
    logs = [clone.folder / 'out' / 'run' / n / 'metrics.jsonl' for n in ('dense', 'expanded', 'dense-own-rate')]
    before = [p.stat().st_mtime_ns for p in logs]
    (clone.folder / 'out/run/expanded/done').unlink()  # as if it had been interrupted
    again = clone(make)
    after = [p.stat().st_mtime_ns for p in logs]
    assert [a == b for a, b in zip(after, before)] == [True, False, True] and 'iter 0:' not in again
    assert again[again.index('At the shared rate') :] == said[said.index('At the shared rate') :]


def test_every_promise_of_what_survives_names_a_test_that_is_there():
    there = set()
    for path in (ROOT / 'tests').rglob('test_*.py'):
        there |= set(re.findall(r'^def (test_\w+)', path.read_text(), re.M))
    named = re.findall(r'`(test_\w+)`', (ROOT / 'docs' / 'survives.md').read_text())
    assert len(named) > 15 and not (gone := [n for n in named if n not in there]), gone
