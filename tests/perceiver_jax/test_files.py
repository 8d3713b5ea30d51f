import pytest

from perceiver_jax.files import whole, write_whole


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
