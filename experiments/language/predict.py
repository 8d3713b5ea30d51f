"""Predictions of masked language models: text, filled in."""

import argparse
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.classes import predict_each, probabilities
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('text',)  # of the command line
NUM_CANDIDATES = 3  # for each masked byte


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Fills in `--text`, or each input.

    Args:
      model: A masked language model.
      arguments: The command line: `text`, `inputs`.

    Yields:
      What `fill_in` returns, and the `input`; or why an input cannot be used.

    Raises:
      Refused: There is no text or one too many, or `fill_in` refuses `--text`.
    """
    if (arguments.text is None) == (not arguments.inputs):
        raise Refused('INPUT: expected text files, or --text instead')
    if arguments.text is not None:
        yield {'input': '--text', **fill_in(model, os.fsencode(arguments.text))}

    def fill_in_file(path: str) -> dict:
        text = sys.stdin.buffer.read() if path == '-' else Path(path).read_bytes()
        return {'input': path, **fill_in(model, text.removesuffix(b'\n').removesuffix(b'\r'))}

    yield from predict_each(fill_in_file, arguments.inputs)


def fill_in(model: Pretrained, text: bytes) -> dict:
    """Fills in the masked bytes of a text, each with the likeliest byte.

    Args:
      model: A masked language model.
      text: Text with `[MASK]` or `[MASK*n]` in it.

    Returns:
      `text`, filled in; `marked`, the same with brackets around the characters that were filled
      in; and `bytes`: for each masked byte its `position` in the text, and its likeliest
      `candidates` with their probabilities.

    Raises:
      Refused: Nothing is masked, or the text is too long.
    """
    from perceiver_jax.front_ends import MASK, encode_text, pad_tokens

    length = model.front_end['length']
    tokens = masked_tokens(text, length)
    masked = tokens == MASK
    logits = model(*pad_tokens([tokens], length))[0, : len(tokens)]
    # The tokens of the 256 bytes: the special tokens before them do not belong into a text.
    byte_tokens = encode_text(bytes(range(256)))
    chances = probabilities(logits, 'softmax')[:, byte_tokens]
    order = np.argsort(-chances, kind='stable')
    filled = np.where(masked, order[:, 0], tokens - byte_tokens[0]).astype(np.uint8).tobytes()
    masked_bytes = [
        {
            'position': i,
            'candidates': [
                {'byte': byte, 'probability': float(chances[i, byte])}
                for byte in order[i, :NUM_CANDIDATES].tolist()
            ],
        }
        for i in np.flatnonzero(masked).tolist()
    ]
    return {
        'text': filled.decode(errors='replace'),
        'marked': mark_characters(filled, masked).decode(errors='replace'),
        'bytes': masked_bytes,
    }


def masked_tokens(text: bytes, length: int) -> np.ndarray:
    """Returns the tokens of a text in which `[MASK]` is a masked byte, and `[MASK*6]` are six.

    Args:
      text: Text with `[MASK]` or `[MASK*n]` in it.
      length: The largest number of bytes.

    Returns:
      Tokens, int32 `[n]`, one for each byte.

    Raises:
      Refused: Nothing is masked, or there are more than `length` bytes.
    """
    from perceiver_jax.front_ends import MASK, encode_text

    pieces = re.split(rb'\[MASK(?:\*(\d+))?\]', text)  # text, count or None, text, ...
    digits = max((len(count or b'') for count in pieces[1::2]), default=0)
    if digits > 18:
        raise Refused(f'[MASK*n]: expected a number of bytes, got one of {digits:,} digits')
    texts, counts = pieces[::2], [int(count or 1) for count in pieces[1::2]]
    num_bytes = sum(map(len, texts)) + sum(counts)
    if num_bytes > length:
        raise Refused(f'the text has {num_bytes:,} bytes, and at most {length:,} fit')
    if not any(counts):
        raise Refused('nothing is masked: expected [MASK], or [MASK*6] for six bytes, in it')
    tokens = [encode_text(texts[0])]
    for count, after in zip(counts, texts[1:], strict=True):
        tokens += [np.full(count, MASK, np.int32), encode_text(after)]
    return np.concatenate(tokens)


def characters(text: bytes) -> list[slice]:
    """Returns where each character of UTF-8 text stands: a byte, and its continuation bytes.

    Args:
      text: Bytes, UTF-8 or not: continuation bytes without a first byte count as one character.

    Returns:
      Slices that cover the text.
    """
    # A byte 0b10xxxxxx continues the character before it.
    starts = [i for i, byte in enumerate(text) if i == 0 or byte & 0b11000000 != 0b10000000]
    return [slice(start, end) for start, end in itertools.pairwise([*starts, len(text)])]


def mark_characters(text: bytes, chosen: np.ndarray) -> bytes:
    """Puts brackets around the characters in which a byte is chosen; neighbours share a pair.

    Args:
      text: UTF-8 text of n bytes.
      chosen: Which bytes are chosen, bool `[n]`. One byte chooses the whole of its character.

    Returns:
      The text with brackets: 'caf[é] x', where one of the two bytes of 'é' is chosen.
    """
    marked = b''
    for is_chosen, run in itertools.groupby(characters(text), lambda place: chosen[place].any()):
        piece = b''.join(text[place] for place in run)
        marked += b'[' + piece + b']' if is_chosen else piece
    return marked
