"""The checksum of TFRecord files: CRC32C (RFC 3720), masked.

A checksum from 0 is linear over bits: it is the XOR of what each byte adds at its place. So NumPy
looks all bytes of a chunk up at once, after longer data has been folded to one chunk.
"""

import numpy as np

_POLYNOMIAL = np.uint32(0x82F63B78)  # its bits reversed, as in every table here
# CRC32C starts from 0xFFFFFFFF, which is what these four bytes make of a start from 0.
_START = np.array([0x54, 0x64, 0x1F, 0x64], np.uint8)
_MASK = np.uint32(0xA282EAD8)
_CHUNK = 2**12  # bytes


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """Returns the checksums of rows of bytes as TFRecord files keep them.

    Args:
      data: uint8 `[..., n]`.

    Returns:
      uint32 `[...]`.

    Source: `Mask` in tensorflow/core/lib/hash/crc32c.h of TensorFlow.
    """
    rows, num_bytes = data.shape[:-1], len(_START) + data.shape[-1]
    num_zeros = -num_bytes % _CHUNK if num_bytes > _CHUNK else 0  # in front they change nothing
    zeros = np.zeros((*rows, num_zeros), np.uint8)
    data = np.concatenate([zeros, np.broadcast_to(_START, (*rows, 4)), data], axis=-1)
    if num_bytes > _CHUNK:
        data = _fold(data)
    places = np.arange(_CHUNK - data.shape[-1], _CHUNK)
    crc = ~np.bitwise_xor.reduce(_ADDED.take(256 * places + data), axis=-1)
    return np.add(crc >> 15 | crc << 17, _MASK, dtype=np.uint64).astype(np.uint32)


def _fold(data: np.ndarray) -> np.ndarray:
    """Returns one chunk of the same checksum, from 0, as whole chunks `[..., n]`."""
    words = data.view('<u4').reshape(*data.shape[:-1], -1, _CHUNK // 4)
    chunk = words[..., 0, :]
    for i in range(1, words.shape[-2]):
        halves = np.ascontiguousarray(chunk).view('<u2')
        chunk = _PAST_CHUNK[0].take(halves[..., ::2]) ^ _PAST_CHUNK[1].take(halves[..., 1::2])
        chunk ^= words[..., i, :]
    return np.ascontiguousarray(chunk).view(np.uint8)


def _moved(crcs: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Returns the checksums after as many zero bytes as `added` `[n, 256]` has places, n >= 4."""
    parts = np.ascontiguousarray(crcs, '<u4').view(np.uint8)
    # A checksum is as good as four bytes of data at the first places.
    return (
        added[0][parts[..., ::4]]
        ^ added[1][parts[..., 1::4]]
        ^ added[2][parts[..., 2::4]]
        ^ added[3][parts[..., 3::4]]
    )


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Returns what a byte adds at each place of a chunk, and checksums moved past a chunk.

    They are uint32 `[_CHUNK, 256]`, and `[2, 2**16]` for the lower and the upper half.
    """
    last: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = last >> 1 ^ _POLYNOMIAL * (last & 1)
    added = last[None]
    for _ in range(3):
        added = np.concatenate([added[:1] >> 8 ^ last[added[:1] & 255], added])
    while len(added) < _CHUNK:
        added = np.concatenate([_moved(added, added), added])
    halves = np.arange(2**16, dtype=np.uint32)
    return added, np.stack([_moved(half, added) for half in (halves, halves << 16)])


_ADDED, _PAST_CHUNK = _tables()
