"""The rooms: imports run one way, without circles, and every file is in its room's table."""

import ast
import subprocess

import pytest
from conftest import ROOT

# from the bottom to the top; a file imports from its own line or from lines above it
HOUSE = """
configurator files
hardware parallel
tokens linear
model optimizers
checkpoint logger
surgery
train sample evaluate
lab toys
transfer compare bench plot
""".split('\n')[1:-1]
LEVEL = {name: i for i, line in enumerate(HOUSE) for name in line.split()}


def modules() -> dict:
    """{dotted name: path} of the repository's own modules, without configs, recipes and tests."""
    files = subprocess.run(
        ['git', 'ls-files', '-co', '--exclude-standard', '*.py'], cwd=ROOT, capture_output=True, text=True
    )
    paths = [
        p for p in files.stdout.split() if not p.startswith(('config/', 'data/', 'tests/')) and (ROOT / p).exists()
    ]
    return {p.removesuffix('.py').removesuffix('/__init__').replace('/', '.'): ROOT / p for p in paths}


def imports(name: str, known: dict) -> set:
    """What a module imports of the repository's own, at the top and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                f'{node.module}.{a.name}' if f'{node.module}.{a.name}' in known else node.module for a in node.names
            }
    return {n for n in found if n in known}


def test_imports_run_one_way():
    known, wrong = modules(), []
    for name in known:
        for other in imports(name, known):
            if LEVEL[other.split('.')[0]] > LEVEL[name.split('.')[0]]:
                wrong.append(f'{name} imports {other}, which stands above it')
    assert not wrong, '\n'.join(wrong)


def test_imports_make_no_circle():
    known = modules()
    graph, path = {n: imports(n, known) for n in known}, []

    def walk(name, done):
        assert name not in path, ' -> '.join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in graph[name]:
                walk(other, done)
            path.pop()
            done.add(name)

    done = set()
    for name in graph:
        walk(name, done)


@pytest.mark.parametrize('room', ['linear', 'linear/kernels', 'surgery', 'surgery/grow', 'lab', 'tokens', 'optimizers'])
def test_a_rooms_table_names_its_files(room):
    text = ast.get_docstring(ast.parse((ROOT / room / '__init__.py').read_text()))
    files = {p.name for p in (ROOT / room).glob('*.py')} - {'__init__.py'}
    assert not (missing := sorted(f for f in files if f not in text)), f'{room}/__init__.py does not name {missing}'


def test_the_root_is_small():
    """What a user of nanoGPT looks for, the commands, what the loop stands on; the rest is in rooms."""
    assert len([n for n in modules() if '.' not in n and (ROOT / f'{n}.py').exists()]) <= 14


def test_sampling_and_evaluating_load_no_trainer(tmp_path, script):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sample, evaluate; assert 'train' not in sys.modules"
    (tmp_path / 'load.py').write_text(code)
    script(tmp_path / 'load.py')
