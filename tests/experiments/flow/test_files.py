"""Files of flow byte by byte."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from experiments.flow import files
from perceiver_jax.errors import Refused
from tests.toys.hanging import REPEATED, guard

RNG = np.random.default_rng(0)
FLOW = RNG.uniform(-400, 400, (5, 7, 2)).astype(np.float32)  # height 5, width 7
VALID = RNG.random((5, 7)) < 0.7


def test_flo_is_little_endian_row_by_row_u_then_v(tmp_path):
    numbers = [1.5, -2.0, 3.25, 0.0, 1e10, 1e10]  # the third pixel is unknown
    content = b'PIEH' + struct.pack('<2i6f', 3, 1, *numbers)
    (tmp_path / 'a.flo').write_bytes(content)
    flow, valid = files.read_flo(tmp_path / 'a.flo')
    assert flow.dtype == np.float32
    assert flow.tolist() == [[[1.5, -2.0], [3.25, 0.0], [0.0, 0.0]]]
    assert valid.tolist() == [[True, True, False]]
    files.write_flo(tmp_path / 'b.flo', flow, valid)
    assert (tmp_path / 'b.flo').read_bytes() == content


@pytest.mark.parametrize('unknown', [np.nan, np.inf, -2e9])
def test_flo_is_unknown_where_either_component_is(tmp_path, unknown):
    content = b'PIEH' + struct.pack('<2i4f', 1, 2, 4.0, unknown, 1e9, 6.0)
    (tmp_path / 'a.flo').write_bytes(content)
    flow, valid = files.read_flo(tmp_path / 'a.flo')
    assert valid.tolist() == [[False], [True]]
    assert flow.tolist() == [[[0, 0]], [[1e9, 6]]]


def test_kitti_counts_64ths_of_a_pixel_from_32768(tmp_path):
    values = np.array([[[1, 32768 - 64, 32768 + 96], [0, 32768, 32768], [7, 65535, 0]]], np.uint16)
    cv2.imwrite(str(tmp_path / 'a.png'), values)  # OpenCV takes blue, green, red: validity, v, u
    flow, valid = files.read_kitti_flow(tmp_path / 'a.png')
    assert flow.dtype == np.float32
    assert flow.tolist() == [[[1.5, -1.0], [0.0, 0.0], [-512.0, 511.984375]]]
    assert valid.tolist() == [[True, False, True]]
    files.write_kitti_flow(tmp_path / 'b.png', flow, valid)
    values[..., 0] = valid
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'b.png'), -1), values)


@pytest.mark.parametrize(
    'write, name, error',
    [(files.write_flo, 'a.flo', 0), (files.write_kitti_flow, 'a.PNG', 1 / 128)],
)
def test_what_is_written_is_read_by_its_name(tmp_path, write, name, error):
    path = tmp_path / name
    path.write_text('old')
    write(path, FLOW, VALID)
    flow, valid = files.read_flow(path)
    np.testing.assert_array_equal(valid, VALID)
    np.testing.assert_allclose(flow[VALID], FLOW[VALID], rtol=0, atol=error)
    assert not flow[~VALID].any()
    write(path, FLOW)
    assert files.read_flow(str(path))[1].all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', "expected a .flo file, .* begins with b'', 0 bytes in all"),
        (b'PIEH' + struct.pack('<i', 7), "begins with b'PIEH', 8 bytes in all"),
        (struct.pack('>f2i', 202021.25, 7, 5) + bytes(280), "begins with b'HEIP'"),
        (b'PIEH' + struct.pack('<2i', 7, 5) + bytes(279), 'expected 292 bytes for 7 x 5 .* 291'),
        (b'PIEH' + struct.pack('<2i', 7, 5) + bytes(281), 'expected 292 bytes for 7 x 5 .* 293'),
        (b'PIEH' + struct.pack('<2i', -7, -5) + bytes(280), 'expected .* for -7 x -5 pixels'),
        (b'PIEH' + struct.pack('<2i', 0, 5), 'expected .* for 0 x 5 pixels'),
    ],
)
def test_no_flo_file_is_an_error(tmp_path, content, message):
    (tmp_path / 'a.flo').write_bytes(content)
    with pytest.raises(ValueError, match=f'a.flo: .*{message}'):
        files.read_flow(tmp_path / 'a.flo')


def png(values):
    return cv2.imencode('.png', values)[1].tobytes()


def of_ten_gigapixels(encoded):
    header = b'IHDR' + struct.pack('>2I', 10**5, 10**5) + encoded[24:29]
    return encoded[:12] + header + struct.pack('>I', zlib.crc32(header)) + encoded[33:]


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'expected a 16-bit PNG, got no whole image'),
        (b'PIEH', 'expected a 16-bit PNG, got no whole image'),
        (
            of_ten_gigapixels(png(np.zeros((5, 7, 3), np.uint16))),
            'has 100,000 x 100,000 pixels, exp',
        ),
        (png(RNG.integers(0, 9, (50, 70, 3)).astype(np.uint16))[:-900], 'got no whole image'),
        (png(np.zeros((5, 7, 3), np.uint8)), '3 channels of 16 bits, got 3 of 8'),
        (png(np.zeros((5, 7), np.uint16)), '3 channels of 16 bits, got 1 of 16'),
        (png(np.zeros((5, 7, 4), np.uint16)), '3 channels of 16 bits, got 4 of 16'),
        (
            png(np.zeros((5, 7, 3), np.uint16)).replace(b'\0\0\0\7\0\0\0\5', 2 * b'\0\1\0\0'),
            'the image has 65,536 x 65,536 pixels, expected at most',
        ),
    ],
)
def test_no_kitti_file_is_an_error(tmp_path, content, message):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(ValueError, match=f'a.png: .*{message}'):
        files.read_flow(tmp_path / 'a.png')


def test_a_name_of_neither_kind_is_an_error():
    with pytest.raises(ValueError, match=r"a\.npy: expected flow in \.flo, \.pfm or KITTI's"):
        files.read_flow('a.npy')


@pytest.mark.parametrize('order, scale', [('<', '-1.0'), ('>', '1.0')])
def test_pfm_is_from_the_bottom_up_in_either_byte_order(tmp_path, order, scale):
    rows = np.array([[[1, 2, 0], [3, np.nan, 0]], [[-5, 6, 0], [7.5, 1e9, 0]]], f'{order}f4')
    content = f'PF\n2 2\n{scale}\n'.encode() + rows[::-1].tobytes()
    (tmp_path / 'a.pfm').write_bytes(content)
    flow, valid = files.read_flow(tmp_path / 'a.pfm')
    assert flow.dtype == np.float32
    assert flow.tolist() == [[[1, 2], [0, 0]], [[-5, 6], [7.5, 1e9]]]
    assert valid.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', "begins with b'', 0 bytes in all"),
        (b'Pf\n7 5\n-1\n' + bytes(140), "expected a .pfm file of three channels.* b'Pf"),
        (b'PF\n7 5\n-\n' + bytes(420), 'expected a .pfm file of three channels'),
        (b'PF\n7 5\n-1\n' + bytes(419), 'expected 430 bytes for 7 x 5 pixels, got 429'),
        (b'PF\n7 5\n-1\n' + bytes(421), 'expected 430 bytes for 7 x 5 pixels, got 431'),
        (b'PF\n0 5\n-1\n', 'for 0 x 5 pixels'),
    ],
)
def test_no_pfm_file_is_an_error(tmp_path, content, message):
    (tmp_path / 'a.pfm').write_bytes(content)
    with pytest.raises(ValueError, match=f'a.pfm: .*{message}'):
        files.read_flow(tmp_path / 'a.pfm')


@pytest.mark.parametrize('repeated', REPEATED)
def test_nothing_hangs_the_readers(tmp_path, repeated):
    starts = [
        b'',
        b'P',
        b'PF',
        b'PF ',
        b'PF 7',
        b'PF 7 5 ',
        b'PF 7 5 -1',
        b'PF 7 5 .',
        b'PF 7 5 1.',
    ]
    with guard():
        for start in (*starts, b'PF 7 5 1e', b'PIEH', b'PIEH' + bytes(4)):
            for suffix in ('pfm', 'flo', 'png'):
                for end in (b'', b'\n'):
                    (tmp_path / f'a.{suffix}').write_bytes(start + repeated + end)
                    with pytest.raises(Refused, match=f'a.{suffix}: '):
                        files.read_flow(tmp_path / f'a.{suffix}')


@pytest.mark.parametrize(
    'write, changed, message',
    [
        (
            files.write_flo,
            2e9,
            r'a: expected flow in -1e\+09..1e\+09 pixels, got 2e\+09 and 2 more',
        ),
        (files.write_flo, np.nan, 'got nan and 2 more'),
        (files.write_kitti_flow, 511.99, 'a: expected flow in -512..511.984 pixels, got 511.99'),
        (files.write_kitti_flow, -512.01, 'got -512.01'),
        (files.write_kitti_flow, np.inf, 'got inf'),
    ],
)
def test_valid_flow_out_of_range_is_an_error(tmp_path, write, changed, message):
    flow = FLOW.copy()
    flow[0, :3, 1] = changed
    with pytest.raises(ValueError, match=message):
        write(tmp_path / 'a', flow)
    assert list(tmp_path.iterdir()) == []
    flow[2, 2], valid = 1, np.ones((5, 7), bool)
    valid[0, :3] = False
    write(tmp_path / 'a', flow, valid)  # elsewhere it does not matter


@pytest.mark.parametrize(
    'flow, valid, message',
    [
        (FLOW[..., :1], None, r'flow is \[height, width, 2\], got \(5, 7, 1\)'),
        (FLOW[None], None, r'got \(1, 5, 7, 2\)'),
        (FLOW[:0], None, r'got \(0, 7, 2\)'),
        (FLOW, VALID.T, r'validity is bool \(5, 7\), got bool \(7, 5\)'),
        (FLOW, VALID.astype(int), r'got int64 \(5, 7\)'),
    ],
)
def test_shapes_that_do_not_fit_are_errors(tmp_path, flow, valid, message):
    for write in (files.write_flo, files.write_kitti_flow):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / 'a', flow, valid)
    assert list(tmp_path.iterdir()) == []
