import numpy as np
import pytest

from perceiver_jax.front_ends.text import MASK, PAD, decode_text, encode_text, pad_tokens


def test_text_becomes_its_bytes_behind_six_special_tokens():
    tokens = encode_text('Aé')
    assert tokens.tolist() == [65 + 6, 0xC3 + 6, 0xA9 + 6] and tokens.dtype == np.int32
    assert encode_text(b'\x00\xff').tolist() == [6, 261]
    assert encode_text('').shape == (0,)


def test_text_comes_back_without_special_tokens():
    assert decode_text([4, *encode_text('naïve 漢字'), 5, PAD, PAD]) == 'naïve 漢字'
    assert decode_text(encode_text(b'a\xffb')) == 'a\ufffdb'


@pytest.mark.parametrize('token', [-1, 262])
def test_tokens_outside_the_vocabulary_are_named(token):
    with pytest.raises(ValueError, match=f'0..261, got {token}'):
        decode_text([7, token])


def test_padding_and_its_mask():
    tokens, mask = pad_tokens([[7, MASK, 9], [], encode_text('abcde')], length=5)
    assert tokens.tolist() == [[7, 3, 9, 0, 0], [0] * 5, [103, 104, 105, 106, 107]]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_too_long_sequence_is_named():
    with pytest.raises(ValueError, match='sequence 1 has 7 tokens, at most 5 fit'):
        pad_tokens([[6], [6] * 7], length=5)


def test_one_sequence_is_no_list_of_them():
    with pytest.raises(ValueError, match='sequence 0 is 6: a single sequence is a list of one'):
        pad_tokens([6, 7], length=5)
    with pytest.raises(ValueError, match=r'integers in 0..261, got <U4'):
        decode_text('text')


def test_a_number_is_no_text():
    with pytest.raises(TypeError):
        encode_text(5)


@pytest.mark.parametrize('token', [1.5, 2**40])
def test_tokens_that_are_no_tokens_are_named(token):
    with pytest.raises(ValueError, match=f'integers in 0..261, got {token}'):
        decode_text([token])
