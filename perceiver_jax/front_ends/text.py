"""Text as tokens, one for each byte of its UTF-8, and back.

Source: Perceiver IO, section 4.1; the special tokens and their order are those of DeepMind's
release.
"""

from collections.abc import Sequence

import numpy as np

from perceiver_jax.errors import Refused

VOCABULARY_SIZE = 262  # six special tokens, then the 256 bytes
PAD, BOS, EOS, MASK, CLS, SEP = range(6)
_FIRST_BYTE = 6


def encode_text(text: str | bytes) -> np.ndarray:
    """Returns the tokens of a text: its bytes + 6, without special tokens.

    Args:
      text: Text, encoded as UTF-8, or bytes as they are.

    Returns:
      Tokens, int32 `[n]`, from 6 to 261, where n is the number of bytes.
    """
    encoded = text.encode() if isinstance(text, str) else memoryview(text)
    return np.frombuffer(encoded, np.uint8).astype(np.int32) + _FIRST_BYTE


def decode_text(tokens: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens, without the special tokens.

    Args:
      tokens: Tokens, integers `[n]` from 0 to 261.

    Returns:
      The text; bytes that are not UTF-8 become U+FFFD.

    Raises:
      Refused: A token is not an integer from 0 to 261.
    """
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in 'biuf':
        raise Refused(f'tokens are integers in 0..{VOCABULARY_SIZE - 1}, got {tokens.dtype}')
    outside = tokens[(tokens < 0) | (tokens >= VOCABULARY_SIZE) | (tokens % 1 != 0)]
    if outside.size:
        raise Refused(f'tokens are integers in 0..{VOCABULARY_SIZE - 1}, got {outside[0]}')
    encoded = (tokens[tokens >= _FIRST_BYTE] - _FIRST_BYTE).astype(np.uint8).tobytes()
    return encoded.decode(errors='replace')


def pad_tokens(
    sequences: Sequence[Sequence[int] | np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads sequences of tokens to one length, as a batch.

    Args:
      sequences: B sequences of at most `length` tokens each.
      length: Length of every row of the result.

    Returns:
      Tokens, int32 `[B, length]`, with PAD after each sequence, and the mask, bool `[B, length]`,
      true where there is a token.

    Raises:
      Refused: A sequence is longer than `length`, or a number stands in its place.
    """
    tokens = np.full((len(sequences), length), PAD, np.int32)
    mask = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        if np.ndim(sequence) != 1:
            raise Refused(f'sequence {row} is {sequence!r}: a single sequence is a list of one')
        if len(sequence) > length:
            raise Refused(f'sequence {row} has {len(sequence)} tokens, at most {length} fit')
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return tokens, mask
