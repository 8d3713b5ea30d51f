import json

import pytest

from perceiver_jax.errors import Refused, reading


@pytest.mark.parametrize(
    'error, reason',
    [
        (KeyError('data'), "'data'"),
        (EOFError(), 'EOFError'),
        (OSError('file signature not found'), 'file signature not found'),
        (ValueError(10**6 * 'x'), 200 * 'x'),
    ],
)
def test_what_a_library_raises_names_the_file(error, reason):
    with pytest.raises(Refused) as caught, reading('a.h5', 'two arrays'):
        raise error
    assert str(caught.value) == f'a.h5: expected two arrays, it is damaged or another: {reason}'
    assert caught.value.__cause__ is error


def test_what_says_enough_passes(tmp_path):
    with pytest.raises(FileNotFoundError), reading('a.json', 'JSON'):
        json.loads((tmp_path / 'a.json').read_bytes())
    with pytest.raises(Refused, match='^mine$'), reading('a.json', 'JSON'):
        raise Refused('mine')
    with pytest.raises(KeyboardInterrupt), reading('a.json', 'JSON'):
        raise KeyboardInterrupt
