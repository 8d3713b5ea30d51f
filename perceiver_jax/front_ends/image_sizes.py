"""The size that the header of an image states, read without decoding the image.

OpenCV tells a size only by decoding, for which it allocates the whole image.
"""

import re
import struct
from collections.abc import Iterable, Iterator

# Patterns whose group is the two sides of an image, and the format of these bytes.
_BINARY = [
    (re.compile(pattern, re.DOTALL), numbers)
    for pattern, numbers in (
        (rb'\x89PNG\r\n\x1a\n.{4}IHDR(.{8})', '>2I'),
        (rb'GIF8[79]a(.{4})', '<2H'),
        (rb'BM.{12}\x0c\0\0\0(.{4})', '<2H'),  # the header of OS/2
        (rb'BM.{12}(?!\x0c\0\0\0).{4}(.{8})', '<2i'),
        (rb'\x59\xa6\x6a\x95(.{8})', '>2I'),  # Sun raster
    )
]
# The same of what may stand anywhere in a file, and several times: the largest counts.
_JPEG2000 = re.compile(rb'\xff\x4f\xff\x51.{4}(.{8})', re.DOTALL)
_AVIF = re.compile(rb'ispe.{4}(.{8})', re.DOTALL)
_NETPBM = re.compile(rb'P[1-6](?:\s+#[^\n]*(?=\n))*\s+(\d+)(?:\s+#[^\n]*(?=\n))*\s+(\d+)')
_RADIANCE = re.compile(rb'\n[-+][XY] +(\d+) +[-+][XY] +(\d+)')
_JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of segments that state a size
_JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment


def largest_sides(encoded: bytes) -> tuple[int, int] | None:
    """Returns the sides of an image of a format that OpenCV reads.

    Args:
      encoded: Content of the file.

    Returns:
      The two sides in pixels, in the order of the file: in some formats the height comes first.
      None where the header is cut, or the format is another.
    """
    sides = [(abs(first), abs(second)) for first, second in _sides(encoded)]
    return max(sides, key=lambda pair: pair[0] * pair[1], default=None)


def _sides(encoded: bytes) -> Iterable[tuple[int, ...]]:
    if encoded.startswith(b'\xff\xd8'):
        return _sides_of_jpeg(encoded)
    if encoded[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
        return _sides_of_tiff(encoded)
    if encoded.startswith(b'RIFF') and encoded[8:16] == b'WEBPVP8X':  # others have 14 bits
        canvas = encoded[24:30].ljust(6, b'\0')
        return [tuple(int.from_bytes(x, 'little') + 1 for x in (canvas[:3], canvas[3:]))]
    if encoded[4:8] == b'ftyp':
        return [struct.unpack('>2I', found) for found in _AVIF.findall(encoded)]
    if encoded.startswith((b'\xff\x4f\xff\x51', b'\0\0\0\x0cjP  ')):
        return [struct.unpack('>2I', found) for found in _JPEG2000.findall(encoded)]
    if encoded.startswith(b'P7'):
        words = [re.findall(side + rb'\s+(\d{1,19})', encoded) for side in (b'WIDTH', b'HEIGHT')]
        return [tuple(max(map(int, found)) for found in words)] if all(words) else []
    if encoded.startswith(b'#?') and (found := _RADIANCE.search(encoded)):
        return [tuple(int(x[:19]) for x in found.groups())]
    if found := _NETPBM.match(encoded):
        return [tuple(int(x[:19]) for x in found.groups())]
    matches = ((pattern.match(encoded), numbers) for pattern, numbers in _BINARY)
    return [struct.unpack(numbers, found[1]) for found, numbers in matches if found]


def _sides_of_jpeg(encoded: bytes) -> Iterator[tuple[int, ...]]:
    at = 2
    while at + 9 <= len(encoded):
        marker = encoded[at + 1]
        if encoded[at] != 0xFF or marker in (0x00, 0xFF):  # decoders skip what is no marker
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker in _JPEG_SIZES:
            yield struct.unpack_from('>2H', encoded, at + 5)
            return
        else:
            at += 2 + max(int.from_bytes(encoded[at + 2 : at + 4]), 2)


def _sides_of_tiff(encoded: bytes) -> Iterator[tuple[int, ...]]:
    """Yields the sides of the first image; its directory says where each of them stands."""
    order, big = ('<' if encoded[0] == ord('I') else '>'), ord('+') in encoded[2:4]
    where, count, entry, value = ('8xQ', 'Q', 'HHQ', 8) if big else ('4xI', 'H', 'HHI', 4)
    tags = {}
    try:
        (at,) = struct.unpack_from(order + where, encoded)
        (number,) = struct.unpack_from(order + count, encoded, at)
        at += struct.calcsize(order + count)
        for _ in range(min(number, 4096)):
            tag, kind, _ = struct.unpack_from(order + entry, encoded, at)
            at += struct.calcsize(order + entry)
            kinds = {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}
            if tag in (256, 257) and kind in kinds:
                (tags[tag],) = struct.unpack_from(order + kinds[kind], encoded, at)
            at += value
    except struct.error:  # it is cut
        return
    if len(tags) == 2:
        yield tags[256], tags[257]
