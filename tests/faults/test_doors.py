"""Damaged files are read, or refused in one short sentence that names them; no door is left out."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.faults.campaign import try_door
from tests.faults.doors import DOORS, WITHOUT_FILES

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).resolve().parents[2]
CASES = 24  # of a door whose cases take milliseconds


# Orbax goes on reading a checkpoint of which a part was damaged, and tells that nobody listens.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('name', DOORS)
def test_what_is_damaged_is_read_or_refused_by_its_name(name, tmp_path):
    outcome = try_door(name, tmp_path, range(-(-CASES // DOORS[name].slow)))
    assert not outcome.faults
    assert outcome.cases == outcome.clean + outcome.accepted


def doors_of(path):
    """Dotted names of a file's functions that are named as readers, and of its sources."""
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and re.match('(read_|load|open_)', node.name):
            yield f'{module}.{node.name}'
        if isinstance(node, ast.ClassDef):
            methods = {x.name for x in node.body if isinstance(x, ast.FunctionDef)}
            if {'__len__', '__getitem__'} <= methods or re.search('Source$', node.name):
                yield f'{module}.{node.name}'


def test_every_reader_and_source_has_a_row():
    there_are = {
        name
        for folder in ('perceiver_jax', 'experiments')
        for path in sorted((ROOT / folder).rglob('*.py'))
        for name in doors_of(path)
    }
    rows = {name for door in DOORS.values() for name in door.covers}
    assert 'experiments.audioset.sources.LabelledFolder' in there_are
    assert there_are - rows - WITHOUT_FILES.keys() == set()
    for module, _, name in (row.rpartition('.') for row in rows | WITHOUT_FILES.keys()):
        assert hasattr(importlib.import_module(module), name), f'{module}.{name} is gone'
