"""What the documents say is what the logs say."""

import re

from conftest import ROOT

from lab import report


def test_results_md_and_the_readme_agree_with_the_logs():
    """As python compare.py --check: tables are printed again and compared, figures are looked up in their sources."""
    assert report.check(ROOT / 'results') == []


def test_the_readme_has_tables_to_check():
    assert len(report.BLOCK.findall((ROOT / 'README.md').read_text())) >= 2


def test_files_named_in_the_documents_exist():
    for path in sorted(ROOT.glob('*.md')):
        for name in re.findall(r'`([\w/]+\.(?:py|md|txt|toml|jsonl))`', path.read_text()):
            if '/' in name or name.endswith('.py'):
                assert (ROOT / name).exists(), f'{path.name} names {name}'


def test_every_room_and_file_of_the_root_is_in_the_readmes_table():
    table = (ROOT / 'README.md').read_text().split('| where | what |')[1].split('\n\n')[0]
    rooms = [f'{p.parent.name}/' for p in ROOT.glob('*/__init__.py')]
    assert [n for n in [*rooms, *(p.name for p in sorted(ROOT.glob('*.py')))] if f'`{n}`' not in table] == []
