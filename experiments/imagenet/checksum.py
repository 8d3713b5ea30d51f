"""The checksum of TFRecord files: CRC32C (RFC 3720), masked.

A checksum is linear over bits: that of a whole is the one of its first part, moved past the bytes
of the second part, XOR the one of the second part. So NumPy can work on many parts at once.
"""

import numpy as np

_POLYNOMIAL = np.uint32(0x82F63B78)  # its bits reversed, as in every table here
# CRC32C starts from 0xFFFFFFFF, which is what these four bytes make of a start from 0.
_START = np.array([0x54, 0x64, 0x1F, 0x64], np.uint8)
_MASK = np.uint32(0xA282EAD8)
_CHUNK_BYTES = 2**12  # data that is longer is folded by chunks


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """Returns the checksums of rows of bytes as TFRecord files keep them.

    Args:
      data: uint8 `[..., n]`.

    Returns:
      uint32 `[...]`.

    Source: `Mask` in tensorflow/core/lib/hash/crc32c.h of TensorFlow.
    """
    rows, num_bytes = data.shape[:-1], data.shape[-1] + len(_START)
    is_long = num_bytes > _CHUNK_BYTES
    # Zeros in front change nothing.
    padding = np.zeros((*rows, -num_bytes % (_CHUNK_BYTES if is_long else 2)), np.uint8)
    start = np.broadcast_to(_START, (*rows, len(_START)))
    data = np.concatenate([padding, start, data], axis=-1)
    if is_long:
        data = _last_chunk(data)
    crcs = _OF_PAIRS[data.view('<u2')]
    level = 1  # each of `crcs` is of 2**level bytes
    while crcs.shape[-1] > 1:
        if crcs.shape[-1] % 2:
            crcs = np.concatenate([np.zeros((*rows, 1), np.uint32), crcs], axis=-1)
        crcs = _moved(crcs[..., ::2], _MOVES[level]) ^ crcs[..., 1::2]
        level += 1
    crc = ~crcs[..., 0]
    return np.add(crc >> 15 | crc << 17, _MASK, dtype=np.uint64).astype(np.uint32)


def _last_chunk(data: np.ndarray) -> np.ndarray:
    """Returns one chunk of the same checksum, from 0, as the whole chunks `[..., n]`."""
    words = data.view('<u4').reshape(*data.shape[:-1], -1, _CHUNK_BYTES // 4)
    chunk = words[..., 0, :]
    for i in range(1, words.shape[-2]):
        halves = np.ascontiguousarray(chunk).view('<u2')
        chunk = _PAST_CHUNK[0].take(halves[..., ::2]) ^ _PAST_CHUNK[1].take(halves[..., 1::2])
        chunk ^= words[..., i, :]
    return np.ascontiguousarray(chunk).view(np.uint8)


def _moved(crcs: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Returns the checksums after as many zero bytes as `tables` `[4, 256]` are for."""
    parts = np.ascontiguousarray(crcs, '<u4').view(np.uint8)  # lowest byte first
    moved = tables[0][parts[..., ::4]]
    for i in range(1, 4):
        moved ^= tables[i][parts[..., i::4]]
    return moved


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns checksums of two bytes `[2**16]`, and moves by numbers of bytes.

    The moves are by 2**i bytes, `[i, 4, 256]`, where each of a checksum's four bytes has a table,
    and by a chunk, `[2, 2**16]`, where each of its halves has one.
    """
    values = np.arange(256, dtype=np.uint32)
    of_bytes: np.ndarray = values
    for _ in range(8):
        of_bytes = of_bytes >> 1 ^ _POLYNOMIAL * (of_bytes & 1)
    # By one byte: the lowest of the four leaves, the others go down one place.
    moves = [np.stack([of_bytes, values, values << 8, values << 16])]
    while 2 ** (len(moves) - 1) < _CHUNK_BYTES:
        moves.append(_moved(moves[-1], moves[-1]))
    of_pairs = _moved(of_bytes, moves[0]) ^ of_bytes[:, None]  # [second byte, first byte]
    halves = np.arange(2**16, dtype=np.uint32)
    past_chunk = np.stack([_moved(half, moves[-1]) for half in (halves, halves << 16)])
    return of_pairs.ravel(), np.stack(moves), past_chunk


_OF_PAIRS, _MOVES, _PAST_CHUNK = _tables()
