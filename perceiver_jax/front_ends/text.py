"""Text as bytes, and back."""

from collections.abc import Sequence

import numpy as np

from perceiver_jax.errors import Refused

VOCABULARY_SIZE = 262  # six special tokens, then the 256 bytes
PAD, BOS, EOS, MASK, CLS, SEP = range(6)
_FIRST_BYTE = 6


def encode_text(text: str | bytes) -> np.ndarray:
    """Returns the tokens of a text: its bytes (UTF-8) + 6, int32 [n], without special tokens."""
    encoded = text.encode() if isinstance(text, str) else memoryview(text)
    return np.frombuffer(encoded, np.uint8).astype(np.int32) + _FIRST_BYTE


def decode_text(tokens: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; special tokens are left out, broken UTF-8 becomes U+FFFD.

    Raises:
      ValueError: if there is a token that is no integer in 0..261.
    """
    tokens = np.asarray(tokens)
    outside = tokens[(tokens < 0) | (tokens >= VOCABULARY_SIZE) | (tokens % 1 != 0)]
    if outside.size:
        raise Refused(f'tokens are integers in 0..{VOCABULARY_SIZE - 1}, got {outside[0]}')
    encoded = (tokens[tokens >= _FIRST_BYTE] - _FIRST_BYTE).astype(np.uint8).tobytes()
    return encoded.decode(errors='replace')


def pad_tokens(
    sequences: Sequence[Sequence[int] | np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one batch of sequences of tokens.

    Args:
      sequences: B sequences of at most `length` tokens.
      length: of every row of the result.

    Returns:
      tokens [B, length] int32, with PAD behind each sequence, and the mask [B, length] bool,
      true where there is a token.

    Raises:
      ValueError: if a sequence is too long.
    """
    tokens = np.full((len(sequences), length), PAD, np.int32)
    mask = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise Refused(f'sequence {row} has {len(sequence)} tokens, at most {length} fit')
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return tokens, mask
