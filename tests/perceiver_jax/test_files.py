import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, whole, write_whole


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
