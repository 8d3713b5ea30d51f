import io
import re

import numpy as np
import pytest

from experiments.modelnet40.files import read_cloud, some_points
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends import prepare_points
from tests.toys.hanging import REPEATED, guard

CLOUD = np.random.default_rng(0).uniform(-3, 5, (211, 3)).astype(np.float32)
# A triangle of area 3 at z = 1 and one of area 1 at z = 2.
TRIANGLES = '0 0 1\n3 0 1\n0 2 1\n0 0 2\n1 0 2\n0 2 2\n3 0 1 2\n3 3 4 5\n'
OFF = f'OFF\n6 2 0\n{TRIANGLES}'


@pytest.mark.parametrize('header', ['OFF\n6 2 0\n', 'OFF6 2 0\n', 'OFF\n# a comment\n6 2 0\n'])
def test_points_of_a_mesh_are_drawn_by_area(header):
    points = read_cloud((header + TRIANGLES).encode(), 4000, np.random.default_rng(0), 'x.off')
    assert points.shape == (4000, 3) and points.dtype == np.float64
    assert np.mean(points[:, 2] == 1) == pytest.approx(3 / 4, abs=0.03)
    x, y, z = points.T
    assert set(z) == {1, 2} and x.min() >= 0 and y.min() >= 0
    assert (2 * x[z == 1] + 3 * y[z == 1]).max() <= 6 + 1e-5  # within the first triangle
    # Uniform: a triangle's mean is its centre.
    np.testing.assert_allclose(points[z == 1].mean(0), [1, 2 / 3, 1], atol=0.05)


# A box of sides 2 x 4 x 6: its area is 88.
CORNERS = [f'{x} {y} {z}' for x in (-1, 1) for y in (-2, 2) for z in (-3, 3)]
SIDES = ['4 0 1 3 2', '4 4 6 7 5', '4 0 4 5 1', '4 2 3 7 6', '4 0 2 6 4', '4 1 5 7 3']


@pytest.mark.parametrize(
    'lines',
    [
        ['OFF', '8 6 0', *CORNERS, *SIDES],
        ['# OFF 2 1', 'OFF # 3 1', '# 4 1 0', '8 6 0', *CORNERS, *SIDES],
        ['OFF', '8 6 0', '# corners', *CORNERS, '# sides', *SIDES, '# end'],
        ['OFF', '8 6 0 # corners, sides, edges', *CORNERS, *SIDES],
        ['OFF8 6 0# glued', '#', *CORNERS, '', *SIDES],
        ['OFF', '8 6', *(f'{x} # {i}' for i, x in enumerate([*CORNERS, *SIDES]))],
        ['\ufeffOFF', '8 6 0', '# \u00e9', *CORNERS, *SIDES],
        ['COFF', '8 6 0', *(f'{x} 255 0 0 255' for x in CORNERS), *(f'{x} 9 9 9' for x in SIDES)],
    ],
)
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_comments_are_no_part_of_the_body(lines, end):
    encoded = end.join(lines).encode()
    points = read_cloud(encoded, 4000, np.random.default_rng(0), 'x.off')
    on_side = np.isclose(np.abs(points), [1, 2, 3], rtol=0, atol=1e-9)
    assert on_side.any(1).all() and (np.abs(points) <= [1 + 1e-9, 2 + 1e-9, 3 + 1e-9]).all()
    # By the areas of the sides, 48, 24 and 16.
    np.testing.assert_allclose(on_side.mean(0), [48 / 88, 24 / 88, 16 / 88], atol=0.03)
    plain = '\n'.join(['OFF', '8 6 0', *CORNERS, *SIDES]).encode()
    expected = read_cloud(plain, 4000, np.random.default_rng(0), 'x.off')
    np.testing.assert_array_equal(points, expected)


def far_away(ending, offset):
    """The triangles' corners, or the triangles, at an offset."""
    corners = np.array([line.split() for line in TRIANGLES.split('\n')[:6]], float) + offset
    if ending == 'npy':
        array = io.BytesIO()
        np.save(array, corners)
        return array.getvalue()
    text = '\n'.join(' '.join(f'{x:.9f}' for x in corner) for corner in corners)
    return (f'OFF\n6 2 0\n{text}\n3 0 1 2\n3 3 4 5' if ending == 'off' else text).encode()


@pytest.mark.parametrize('ending', ['off', 'txt', 'npy'])
def test_a_shape_in_map_coordinates_is_the_one_at_the_origin(ending):
    here, there = (
        prepare_points(
            read_cloud(far_away(ending, offset), 300, np.random.default_rng(0), f'x.{ending}')
        )
        for offset in (0, [700_000, 4_800_000, 200])
    )
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-6)


def test_polygons_of_more_corners_are_read():
    square = b'OFF\n4 1 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n4 0 1 2 3\n'
    points = read_cloud(square, 500, np.random.default_rng(0), 'x.OFF')
    np.testing.assert_allclose(points.mean(0), [1, 1, 0], atol=0.15)


@pytest.mark.parametrize(
    'encoded, message',
    [
        (b'', "'OFF'"),
        (b'PLY\n6 2 0\n', "'OFF'"),
        (OFF.encode()[:-9], 'ends after 7 of 8'),
        (OFF.encode()[:40], 'ends after'),
        (OFF.replace('3 3 4 5', '3 3 4 6').encode(), 'index'),
        (OFF.replace('3 0 1 2\n3 3 4 5', '3 0 0 0\n3 3 3 3').encode(), 'without area'),
        (OFF.replace('1 0 2', '1 zero 2').encode(), 'zero'),
        (OFF.replace('1 0 2', '1 \u00e9 2').encode(), 'not numbers alone'),
        (OFF.replace('1 0 2', '1 inf 2').encode(), 'not finite'),
        (OFF.replace('6 2 0', '6 1 0').encode(), "counts 7 .*goes on after them with b'3 3 4 5'"),
        (OFF.replace('6 2 0', '7 1 0').encode(), r'as many numbers for each vertex, got \[3, 4\]'),
        (OFF.replace('6 2 0', '5 3 0').encode(), 'outside the range'),
        (OFF.replace('3 3 4 5', '0 3 4 5').encode(), 'a face of 0 corners lists 3'),
        (b'OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n', 'without area'),
        (b'OFF\n0 0 0\n', 'without area'),
        (b'OFF\n2 1 0\n0 0 0\n1 0 0\n2 0 1\n', 'without area'),
        (OFF.replace('3 3 4 5', '4 3 4 5').encode(), 'a face of 4 corners lists 3'),
        (OFF.replace('OFF', '4OFF').encode(), "'OFF'"),
    ],
)
def test_a_damaged_mesh_is_named(encoded, message):
    with pytest.raises(ValueError, match=f'^a/cup.off: .*{message}'):
        read_cloud(encoded, 10, np.random.default_rng(0), 'a/cup.off')


def test_points_are_read_from_arrays_and_text():
    array = io.BytesIO()
    np.save(array, np.c_[CLOUD, np.zeros((211, 3))])  # with normals
    text = '\n'.join(','.join(f'{x:.6f}' for x in row) for row in CLOUD)
    for name, encoded in (
        ('x.npy', array.getvalue()),
        ('x.txt', text.encode()),
        ('x.txt', text.encode('utf-16')),
        ('x.TXT', text.encode('utf-8-sig')),
    ):
        points = read_cloud(encoded, 1000, np.random.default_rng(0), name)
        assert points.shape == (211, 3)
        np.testing.assert_allclose(points[np.lexsort(points.T)], CLOUD[np.lexsort(CLOUD.T)], 1e-4)
        assert not np.allclose(points, CLOUD, atol=1e-2)  # in another order
        assert read_cloud(encoded, 17, np.random.default_rng(0), name).shape == (17, 3)


@pytest.mark.parametrize(
    'points, message',
    [
        (np.zeros((5, 2)), r'expected points \[P, 3 or more\], got \(5, 2\)'),
        (np.zeros((0, 3)), r'got \(0, 3\)'),
        (np.array([[0, 0, np.nan]]), 'not finite'),
        (np.r_[np.zeros((99, 3)), [[-np.inf, 0, 0]]], 'not finite'),  # of 10 that are chosen
        (np.array([['a', 'b', 'c']]), 'expected points as real numbers, got <U1'),
        (np.ones((5, 3), complex), 'expected points as real numbers, got complex128'),
    ],
)
def test_other_arrays_are_refused(points, message):
    with pytest.raises(ValueError, match=f'x.npy: .*{message}'):
        some_points(points, 10, np.random.default_rng(0), 'x.npy')


@pytest.mark.parametrize('ending', ['off', 'txt', 'npy'])
@pytest.mark.parametrize('repeated', REPEATED)
def test_nothing_hangs_the_readers(ending, repeated):
    array = io.BytesIO()
    np.save(array, CLOUD)
    starts = {
        'off': [b'', b'#', b'OFF', b'OFF\n', b'OFF 6 ', b'OFF\n6 2', b'OFF\n6 2 0\n', OFF.encode()],
        'txt': [b'', b'1 2 3\n', b'1 2 '],
        'npy': [b'', array.getvalue()[:6], array.getvalue()[:10], array.getvalue()[:40]],
    }
    with guard():
        for start in starts[ending]:
            for encoded in (start, start + repeated, start + repeated + b'\n'):
                try:
                    read_cloud(encoded, 10, np.random.default_rng(0), f'a.{ending}')
                except Refused as error:
                    assert str(error).startswith(f'a.{ending}: ')


def test_an_archive_named_as_an_array_is_refused():
    archive = io.BytesIO()
    np.savez(archive, points=CLOUD)
    with pytest.raises(Refused, match='^x.npy: '):
        read_cloud(archive.getvalue(), 10, np.random.default_rng(0), 'x.npy')


@pytest.mark.parametrize('name', ['x.npy', 'x.txt', 'x.stl'])
def test_other_files_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(name)):
        read_cloud(b'\x93nonsense', 10, np.random.default_rng(0), name)


@pytest.mark.parametrize('num_points', [212, 10**12])
@pytest.mark.parametrize('version', [1, 2])
def test_an_array_that_is_not_in_its_file_is_refused(num_points, version):
    stored = io.BytesIO()
    write_header = getattr(np.lib.format, f'write_array_header_{version}_0')
    header = {'descr': '<f4', 'fortran_order': False, 'shape': (num_points, 3)}
    write_header(stored, header)
    stored.write(CLOUD.tobytes())
    message = rf'^x.npy: .*its header says float32 \({num_points}, 3\), and it holds less'
    with pytest.raises(Refused, match=message):
        read_cloud(stored.getvalue(), 9, np.random.default_rng(0), 'x.npy')
