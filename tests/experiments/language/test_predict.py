"""Text, filled in by a model that knows the answer."""

import numpy as np
import pytest

from experiments.language.predict import characters, fill_in, mark_characters, masked_tokens
from experiments.predict import as_text
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.text import MASK
from tests.toys.hanging import REPEATED, guard
from tests.toys.known_model import KnownModel

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    'text, expected',
    [
        (b'a[MASK]', [*b'a', None]),
        (b'[MASK*3]b', [None, None, None, *b'b']),
        (b'a[MASK][MASK*2] [MASK]', [*b'a', None, None, None, *b' ', None]),
        ('é[MASK][mask]'.encode(), [0xC3, 0xA9, None, *b'[mask]']),
    ],
)
def test_masks_stand_between_bytes(text, expected):
    tokens = masked_tokens(text, 100)
    assert tokens.tolist() == [MASK if x is None else x + 6 for x in expected]


@pytest.mark.parametrize('text', [b'', b'no mask', b'[MASK*0]', b'[MASK*]', b'[MASK*-1]'])
def test_nothing_masked_is_an_error(text):
    with pytest.raises(ValueError, match=r'nothing is masked: expected \[MASK\]'):
        masked_tokens(text, 100)


@pytest.mark.parametrize('repeated', REPEATED)
def test_no_text_hangs_the_pattern(repeated):
    with guard():
        for start in (b'', b'[MASK', b'[MASK*', b'[MASK*6'):
            for end in (b'', b']', b'[MASK]'):
                with pytest.raises(Refused):
                    masked_tokens(start + repeated + end, 100)


def model_that_knows(answer: bytes, length=11):
    """Gives each byte of the answer odds of 6, the next byte 3, and the token PAD 8."""

    def logits(tokens, mask):
        assert tokens.shape == mask.shape == (1, length) and mask.sum() == len(answer)
        odds = np.full((1, length, 262), 1e-9)
        odds[..., 0] = 8
        for i, byte in enumerate(answer):
            odds[0, i, 6 + byte], odds[0, i, 7 + byte] = 6, 3
        return np.log(odds)

    return KnownModel(logits, {'length': length})


def test_masked_bytes_are_filled_in_and_marked():
    result = fill_in(model_that_knows(b'one Paris.'), b'[MASK]ne [MASK*4]s[MASK]')
    assert result['text'] == 'one Paris.'
    assert result['marked'] == '[o]ne [Pari]s[.]'
    assert [x['position'] for x in result['bytes']] == [0, 4, 5, 6, 7, 9]
    first, second, _ = result['bytes'][1]['candidates']
    assert (first['byte'], second['byte']) == (ord('P'), ord('Q'))
    np.testing.assert_allclose([first['probability'], second['probability']], [6 / 17, 3 / 17])
    lines = as_text({'input': '--text', **result}).splitlines()
    assert lines[:2] == ['--text', '[o]ne [Pari]s[.]']
    assert lines[3].split()[:7] == ['byte', '4', "'P'", '35.3', '%', "'Q'", '17.6']


def test_a_mask_over_a_part_of_a_character_marks_all_of_it():
    answer = 'café x'.encode()
    for text in (b'caf\xc3[MASK] x', b'caf[MASK]\xa9 x', b'caf[MASK*2] x'):
        assert fill_in(model_that_knows(answer), text)['marked'] == 'caf[é] x'


def test_text_of_the_largest_length_fits_and_no_longer():
    answer = b'hello world'
    result = fill_in(model_that_knows(answer), b'hello worl[MASK]')
    assert result['text'] == 'hello world'
    with pytest.raises(ValueError, match='the text has 12 bytes, and at most 11 fit'):
        fill_in(model_that_knows(answer), b'hello worl[MASK*2]')
    with pytest.raises(ValueError, match='the text has 999,999,999,999 bytes'):
        fill_in(model_that_knows(answer), b'[MASK*999999999999]')


@pytest.mark.parametrize(
    'text, expected',
    [
        (b'', []),
        (b'ab', [b'a', b'b']),
        ('aé€😀.'.encode(), [b'a', 'é'.encode(), '€'.encode(), '😀'.encode(), b'.']),
        (b'\x80\xbfa', [b'\x80\xbf', b'a']),  # no first byte
        (b'\xc3\xc3\xa9', [b'\xc3', b'\xc3\xa9']),  # no continuation
        (b'a\x80\x80', [b'a\x80\x80']),  # a continuation of what has none
    ],
)
def test_characters_are_a_byte_and_its_continuation(text, expected):
    assert [text[place] for place in characters(text)] == expected


@pytest.mark.parametrize(
    'text, chosen, expected',
    [
        ('café x', [], 'café x'),
        ('café x', [3], 'caf[é] x'),
        ('café x', [4], 'caf[é] x'),
        ('café x', [3, 4, 6], 'caf[é] [x]'),
        ('café x', [0, 2, 4], '[c]a[fé] x'),
        ('éé', [1, 2], '[éé]'),
        ('', [], ''),
    ],
)
def test_brackets_stand_around_runs_of_characters(text, chosen, expected):
    encoded = text.encode()
    mask = np.isin(np.arange(len(encoded)), chosen)
    assert mark_characters(encoded, mask).decode() == expected


def test_a_model_that_diverged_is_refused():
    model = KnownModel(lambda tokens, mask: np.full((1, 11, 262), np.nan), {'length': 11})
    with pytest.raises(Refused, match='no finite logits'):
        fill_in(model, b'a[MASK]')
