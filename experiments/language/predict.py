"""Text, filled in."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.classes import softmax
from perceiver_jax.errors import Refused

NUM_CANDIDATES = 3  # for each masked byte


def fill_in_texts(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Fills in --text, or each input."""
    if (arguments.text is None) == (not arguments.inputs):
        raise Refused('INPUT: expected text files, or --text instead')
    if arguments.text is not None:
        yield {'input': '--text', **fill_in(model, os.fsencode(arguments.text))}
    for path in arguments.inputs:
        text = sys.stdin.buffer.read() if path == '-' else Path(path).read_bytes()
        try:
            yield {'input': path, **fill_in(model, text.removesuffix(b'\n').removesuffix(b'\r'))}
        except ValueError as error:
            raise Refused(f'{path}: {error}') from error


def masked_tokens(text: bytes, length: int) -> np.ndarray:
    """Tokens of a text in which `[MASK]` is a masked byte, and `[MASK*6]` are six of them.

    Raises:
      ValueError: nothing is masked, or there are more than `length` bytes.
    """
    from perceiver_jax.front_ends import MASK, encode_text

    pieces = re.split(rb'\[MASK(?:\*(\d+))?\]', text)  # text, count or None, text, ...
    num_bytes = sum(map(len, pieces[::2])) + sum(int(count or 1) for count in pieces[1::2])
    if num_bytes > length:
        raise Refused(f'the text has {num_bytes:,} bytes, and at most {length:,} fit')
    tokens = [encode_text(pieces[0])]
    for count, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        tokens += [np.full(int(count or 1), MASK, np.int32), encode_text(piece)]
    tokens = np.concatenate(tokens)
    if not (tokens == MASK).any():
        raise Refused('nothing is masked: expected [MASK], or [MASK*6] for six bytes, in it')
    return tokens


def fill_in(model, text: bytes) -> dict:
    """Fills in the masked bytes of a text, each with the likeliest byte.

    Args:
      model: a `Pretrained` masked language model.
      text: with `[MASK]` or `[MASK*n]` in it.

    Returns:
      `text`; `marked`, with what was filled in in brackets; and `bytes`: of each, its `position`
      and the likeliest `candidates` with their probabilities.

    Raises:
      ValueError: nothing is masked, or the text is too long.
    """
    from perceiver_jax.front_ends import MASK, decode_text, encode_text, pad_tokens

    length = model.front_end['length']
    tokens = masked_tokens(text, length)
    probabilities = softmax(model(*pad_tokens([tokens], length))[0, : len(tokens)])
    masked = tokens == MASK
    bytes_ = encode_text(bytes(range(256)))  # special tokens do not belong into a text
    order = np.argsort(-probabilities[:, bytes_], kind='stable')
    filled = np.where(masked, bytes_[order[:, 0]], tokens)
    # Brackets stand between characters: what fills a part of one marks all of it.
    starts = (filled - encode_text(b'\0')[0]) & 0xC0 != 0x80  # elsewhere a character goes on
    character = np.cumsum(starts)
    marked = np.isin(character, character[masked])
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    brackets = np.tile(encode_text('[]'), len(edges) // 2)
    return {
        'text': decode_text(filled),
        'marked': decode_text(np.insert(filled, edges, brackets)),
        'bytes': [
            {
                'position': i,
                'candidates': [
                    {'byte': byte, 'probability': float(probabilities[i, bytes_[byte]])}
                    for byte in order[i, :NUM_CANDIDATES].tolist()
                ],
            }
            for i in np.flatnonzero(masked).tolist()
        ],
    }
