import sys

import pyarrow
import pyarrow.parquet
import pytest

from experiments.audioset import parquet
from perceiver_jax.errors import Refused

IDS = ['aaaaaaaaaaa', None, 'ccccccccccc', 'ddddddddddd', 'eeeeeeeeeee']


@pytest.fixture
def file(tmp_path):
    """Five rows as those of agkphysics/AudioSet, in groups of two."""
    rows = [
        {
            'video_id': youtube_id,
            'audio': {'bytes': f'sound {number}'.encode(), 'path': f'{youtube_id}.flac'},
            'labels': ['/m/09x0r'],
            'human_labels': ['Speech'],
        }
        for number, youtube_id in enumerate(IDS)
    ]
    rows[3]['audio']['bytes'] = None
    rows[4]['audio'] = None
    return write(tmp_path / '00.parquet', rows)


def write(path, rows):
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    return str(path)


def test_rows_have_ids_and_sound(file):
    assert parquet.youtube_ids(file) == IDS
    for row in (2, 0, 1):
        assert parquet.read_row(file, row) == f'sound {row}'.encode()
    for row in (3, 4):
        with pytest.raises(Refused, match=f'00.parquet/{row}: the row holds no sound'):
            parquet.read_row(file, row)


def test_a_row_has_a_path():
    assert parquet.split_path('/x.parquet/eval/00.parquet/17') == ('/x.parquet/eval/00.parquet', 17)
    assert parquet.split_path('/x.parquet/aaaaaaaaaaa.flac') is None


def test_other_files_are_named(tmp_path, file):
    other = write(tmp_path / 'other.parquet', [{'id': 'aaaaaaaaaaa', 'audio': b''}])
    with pytest.raises(
        Refused, match=r"other.parquet: expected the columns .* got \['id', 'audio'"
    ):
        parquet.youtube_ids(other)
    other = write(tmp_path / 'types.parquet', [{'video_id': 3, 'audio': [b'x']}])
    with pytest.raises(Refused, match="types.parquet: expected texts as 'video_id', got 3"):
        parquet.youtube_ids(other)
    with pytest.raises(Refused, match='types.parquet/0: the row holds no sound'):
        parquet.read_row(other, 0)
    with pytest.raises(Refused, match='types.parquet/1: expected a row'):
        parquet.read_row(other, 1)
    content = (tmp_path / '00.parquet').read_bytes()
    for number, damaged in enumerate([b'', b'PAR1', content[:-9], content[:99]]):
        path = tmp_path / f'{number}.parquet'
        path.write_bytes(damaged)
        with pytest.raises(Refused, match=f'{number}.parquet: '):
            parquet.youtube_ids(str(path))
    path.write_bytes(content[:4] + bytes(len(content[4:-900])) + content[-900:])
    with pytest.raises(Refused, match=f'{path.name}/0: '):
        parquet.read_row(str(path), 0)


def test_pyarrow_is_asked_for_where_it_is_missing(file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(Refused, match='00.parquet: reading it takes pyarrow.* pip install'):
        parquet.youtube_ids(file)
