import struct
import time

import cv2
import numpy as np
import pytest

from perceiver_jax.front_ends.image_sizes import largest_sides

HEIGHT, WIDTH = 67, 101
ENDINGS = 'png jpg bmp gif tiff jp2 avif ppm pgm pbm pam hdr sr'.split()


def encoded(ending, *options):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    if ending in ('pgm', 'pbm'):
        image = image[..., 0]
    return cv2.imencode(f'.{ending}', image, options)[1].tobytes()


@pytest.mark.parametrize('ending', ENDINGS)
def test_sides_of_what_opencv_writes(ending):
    content = encoded(ending)
    assert sorted(largest_sides(content)) == [HEIGHT, WIDTH]
    for length in (*range(64), *range(64, len(content), 997)):  # a cut header is no error
        assert largest_sides(content[:length]) in (None, (WIDTH, HEIGHT), (HEIGHT, WIDTH)) or (
            ending in ('ppm', 'pgm', 'pbm', 'pam', 'hdr')  # a cut number
        )


def test_sides_of_other_kinds_of_these_formats():
    progressive = encoded('jpg', cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
    assert largest_sides(progressive) == (HEIGHT, WIDTH)
    filled = progressive[:2] + b'\xff\xff' + progressive[2:]
    assert largest_sides(filled) == (HEIGHT, WIDTH)
    assert cv2.imdecode(np.frombuffer(filled, np.uint8), 0).shape == (HEIGHT, WIDTH)
    canvas = struct.pack('<I', 2**24 - 1)[:3] + struct.pack('<I', 4)[:3]
    assert largest_sides(b'RIFF....WEBPVP8X' + bytes(8) + canvas) == (2**24, 5)
    assert largest_sides(b'BM' + bytes(12) + b'\x0c\0\0\0' + struct.pack('<2H', 7, 9)) == (7, 9)
    upside_down = b'BM' + bytes(12) + b'\x28\0\0\0' + struct.pack('<2i', 7, -9)
    assert largest_sides(upside_down) == (7, 9)
    big = struct.pack('>4s2HQQ', b'MM\0+', 8, 0, 16, 2)
    big += b''.join(struct.pack('>2HQQ', tag, 16, 1, side) for tag, side in ((256, 7), (257, 9)))
    assert largest_sides(big) == (7, 9)
    assert largest_sides(b'P6 # a # b\n7\n# c\n 9 255\n') == (7, 9)
    assert largest_sides(b'') is None
    assert largest_sides(b'text') is None


@pytest.mark.parametrize(
    'content',
    [
        b'P6' + b'\n' + b'# ' * 10**6,
        b'P6\n' + b'9' * 10**6 + b' 3 ',
        b'P7\n' + b'WIDTH 1\n' * 10**5,
        b'#?RADIANCE\n' + b'\n-Y' * 10**5,
        b'\xff\xd8' + b'\xff\x01' * 10**5,
        b'....ftyp' + b'ispe' * 10**5,
        struct.pack('<4sIH', b'II*\0', 8, 2**16 - 1),
    ],
)
def test_no_header_takes_long(content):
    start = time.perf_counter()
    largest_sides(content)
    assert time.perf_counter() - start < 1
