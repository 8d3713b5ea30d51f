import errno
import importlib.util
from pathlib import Path

import pytest

from experiments import paths
from experiments.paths import path_of
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, whole, write_whole
from tests.toys.fake_bucket import fake_bucket


def test_a_path_of_this_machine_is_pathlibs(tmp_path):
    assert path_of(str(tmp_path)) == tmp_path and isinstance(path_of('x'), Path)
    assert not paths.in_bucket(path_of(tmp_path)) and not paths.is_address('C:/x')
    paths.make_folder(tmp_path / 'a' / 'b')
    assert (tmp_path / 'a' / 'b').is_dir()


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('s3://bucket/run', 's3://bucket/run is an address; only files and folders of this'),
        ('https://x.org/run', 'is an address'),
        ('gs://bucket', 'gs://bucket: expected gs://bucket/folder'),
        ('gs:///run', 'expected gs://bucket/folder'),
        ('gs://bucket/run#1', 'without any of'),
        ('gs://bucket/runs/*', 'without any of'),
    ],
)
def test_other_addresses_are_refused(address, message):
    with pytest.raises(Refused, match=message.replace('*', '.')):
        path_of(address)


def test_without_gcsfs_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(Refused, match=r"it is not installed: pip install '\.\[gcs\]'"):
        path_of('gs://bucket/run')


# gcsfs sends more than a mebibyte in a way that its HTTP client advises against.
@pytest.mark.filterwarnings('ignore:Sending a large body:ResourceWarning')
def test_objects_are_written_read_and_created():
    bucket = fake_bucket()
    folder = path_of('gs://bucket/door')
    assert paths.in_bucket(folder) and str(path_of(folder) / 'a') == 'gs://bucket/door/a'
    paths.make_folder(folder)
    assert not folder.exists()

    write_whole(folder / 'a.json', '{"one": 1}\n')
    assert bucket.objects['door/a.json'] == b'{"one": 1}\n'
    assert read_json(folder / 'a.json') == {'one': 1}
    large = bytes(range(256)) * (6 << 12)  # more than gcsfs sends at once
    write_whole(folder / 'large', large)
    assert (folder / 'large').read_bytes() == bucket.objects['door/large'] == large
    with pytest.raises(ZeroDivisionError), whole(folder / 'a.json') as unfinished:
        unfinished.write_text('cut')
        raise ZeroDivisionError
    assert read_json(folder / 'a.json') == {'one': 1}
    with pytest.raises(Refused, match='gs://bucket/door/b.json: not JSON'):
        write_whole(folder / 'b.json', '{')
        read_json(folder / 'b.json')

    assert paths.create(folder / 'first', b'1') and not paths.create(folder / 'first', b'2')
    assert bucket.objects['door/first'] == b'1'
    assert {path.name for path in folder.iterdir()} == {'a.json', 'b.json', 'first', 'large'}


def test_folders_of_this_machine_are_copied_into_a_bucket(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    (tmp_path / 'a' / 'b' / 'c').write_bytes(b'3')
    (tmp_path / 'd').write_bytes(b'4')
    paths.copy_files(tmp_path, path_of('gs://bucket/copied'))
    found = {name: fake_bucket().objects[name] for name in fake_bucket().below('copied/')}
    assert found == {'copied/a/b/c': b'3', 'copied/d': b'4'}


def test_errors_of_a_bucket_name_it_and_others_pass():
    fake_bucket()
    with pytest.raises(OSError) as error_info, paths.store_errors('gs://other/run'):
        path_of('gs://other/run/x').read_bytes()
    assert (error_info.value.errno, error_info.value.filename) == (
        errno.EREMOTEIO,
        'gs://other/run',
    )
    assert error_info.value.strerror.startswith('not found: ')
    for error in (OSError(errno.ENOSPC, 'full', 'x'), OSError('of ours'), KeyError('x')):
        with pytest.raises(type(error)) as same, paths.store_errors('gs://bucket/run'):
            raise error
        assert same.value is error


def test_data_is_read_from_folders_of_this_machine(tmp_path):
    assert paths.folder_of_data(str(tmp_path), 'tfds') == tmp_path
    with pytest.raises(Refused, match="'tfds' reads files of this machine, and gs://b/x is an"):
        paths.folder_of_data('gs://b/x', 'tfds')
    for path in ('', None, str(tmp_path / 'none')):
        with pytest.raises(Refused, match="'tfds' reads a folder, and there is none at"):
            paths.folder_of_data(path, 'tfds')


def test_an_error_that_comes_of_itself_is_of_no_bucket():
    error = ValueError('raised from itself')
    error.__cause__ = error
    assert paths.store_problem(error) is None


def test_what_an_error_came_of_is_found_unless_it_is_hidden():
    first, second, third = ValueError('one'), ValueError('two'), ValueError('three')
    third.__context__, second.__cause__ = second, first
    assert list(paths.origins(third)) == [third, second, first]
    third.__suppress_context__ = True
    assert list(paths.origins(third)) == [third]
    assert list(paths.origins(third, hidden=True)) == [third, second, first]
