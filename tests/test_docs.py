"""Tables in the documents are what their command prints from the committed logs."""

import re

import pytest
from conftest import ROOT

TABLE = re.compile(r'<!-- python (\S+) (.*?) -->\n```\n(.*?)\n```', re.S)
DOCUMENTS = [p for p in sorted(ROOT.glob('*.md')) if TABLE.search(p.read_text())]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: p.name)
def test_tables_are_printed_from_logs(path, script):
    for name, args, text in TABLE.findall(path.read_text()):
        paths = [q for a in args.split() for q in (sorted(ROOT.glob(a)) if '*' in a or '?' in a else [a])]
        assert script(name, *paths).stdout.strip('\n') == text


def test_the_documents_have_such_tables():
    assert 'README.md' in [p.name for p in DOCUMENTS]


def test_files_named_in_the_documents_exist():
    for path in sorted(ROOT.glob('*.md')):
        for name in re.findall(r'`([\w/]+\.(?:py|md|txt|toml|jsonl))`', path.read_text()):
            if '/' in name or name.endswith('.py'):
                assert (ROOT / name).exists(), f'{path.name} names {name}'
