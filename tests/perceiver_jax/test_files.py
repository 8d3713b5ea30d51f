import errno
import os

import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.files import append, read_json, remove_unfinished, whole, write_whole
from tests.toys.full_disk import full_disk


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'deep' / 'file'
    write_whole(path, 'ä')
    assert path.read_bytes() == b'\xc3\xa4'
    with whole(path) as unfinished:
        unfinished.write_bytes(b'new')
        assert path.read_bytes() == b'\xc3\xa4'
    assert path.read_bytes() == b'new'
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    write_whole(path, b'old')
    with pytest.raises(KeyboardInterrupt), whole(path) as unfinished:
        unfinished.write_bytes(b'ne')
        raise KeyboardInterrupt
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_and_its_folder_are_on_disk_before_it_is_there(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append((os.readlink(f'/proc/self/fd/{descriptor}'), (tmp_path / 'file').exists()))

    monkeypatch.setattr(os, 'fsync', fsync)
    write_whole(tmp_path / 'file', b'new')
    (file, replaced), *folder = synced
    assert file.startswith(f'{tmp_path}/.file.') and not replaced
    assert folder == [(str(tmp_path), True)]


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize('at', ['write', 'fsync', 'replace'])
def test_what_cannot_be_written_is_named_and_leaves_the_old_file(tmp_path, monkeypatch, at, number):
    path = tmp_path / 'file'
    write_whole(path, b'old')

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError) as error, whole(path) as unfinished:
        unfinished.write_bytes(b'new')
        if at == 'write':
            fail()
        monkeypatch.setattr(os, at, fail)
    assert (error.value.filename, error.value.errno) == (str(path), number)
    assert error.value.strerror == os.strerror(number)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b'old'


def test_a_full_disk_names_the_file(tmp_path):
    with full_disk(1000), pytest.raises(OSError) as error:
        write_whole(tmp_path / 'file', bytes(1001))
    assert error.value.filename == str(tmp_path / 'file')
    assert not list(tmp_path.iterdir())


def test_the_file_is_named_where_the_temporary_one_cannot_be_made(tmp_path):
    path = tmp_path / ('long' * 60)  # the temporary one has a name that is too long
    with pytest.raises(OSError) as error:
        write_whole(path, b'')
    assert error.value.filename == str(path)


def test_the_name_of_another_file_stays(tmp_path):
    with pytest.raises(FileNotFoundError) as error, whole(tmp_path / 'file'):
        (tmp_path / 'other').read_bytes()
    assert error.value.filename == str(tmp_path / 'other')


def test_all_is_appended_or_nothing(tmp_path):
    path = tmp_path / 'file'
    append(path, b'one\n')
    with full_disk(6), pytest.raises(OSError) as error:
        append(path, b'three\n')
    assert error.value.filename == str(path)
    append(path, b'two\n', sync=True)
    assert path.read_bytes() == b'one\ntwo\n'
    with pytest.raises(OSError, match='No space left on device: .*/dev/full'):
        append('/dev/full', b'x')


def test_what_a_killed_process_left_is_removed(tmp_path):
    left_over = tmp_path / f'.report.png.{"0123456789abcdef" * 2}.tmp'
    others = [tmp_path / name for name in ('report.png', '.mine.tmp', f'x.{"0" * 32}.tmp')]
    for path in (left_over, *others):
        path.touch()
    with whole(tmp_path / 'report.png') as unfinished:
        remove_unfinished(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([*others, unfinished])
    remove_unfinished(tmp_path / 'nowhere')


def test_json_is_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{"ä": [1, null]}', 'utf-8')
    assert read_json(path) == {'ä': [1, None]}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / 'b.json')


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not JSON: Expecting value: line 1'),
        (b'{"a": ', 'not JSON: Expecting value: line 1 column 7'),
        (b'\xff' * 10**6, "not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b'[' * 10**6, 'not JSON: maximum recursion depth'),
        (b'9' * 10**6, 'not JSON: '),
        (b'"' + b'x' * 10**6 + b'"', "expected a JSON object, got 'xxx"),
        (b'[1]', r'expected a JSON object, got \[1\]'),
    ],
)
def test_what_is_no_json_object_is_refused_in_a_few_words(tmp_path, content, message):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(Refused, match=f'^{path}: {message}') as caught:
        read_json(path)
    assert len(str(caught.value)) < 500
    with pytest.raises(Refused, match=f'^{path} is not a list of tensors: {message}'):
        read_json(path, 'a list of tensors')
