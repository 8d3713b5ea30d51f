import io
import re

import numpy as np
import pytest

from experiments.modelnet40.files import read_cloud, some_points

CLOUD = np.random.default_rng(0).uniform(-3, 5, (211, 3)).astype(np.float32)
# A triangle of area 3 at z = 1 and one of area 1 at z = 2.
TRIANGLES = '0 0 1\n3 0 1\n0 2 1\n0 0 2\n1 0 2\n0 2 2\n3 0 1 2\n3 3 4 5\n'
OFF = f'OFF\n6 2 0\n{TRIANGLES}'


@pytest.mark.parametrize('header', ['OFF\n6 2 0\n', 'OFF6 2 0\n', 'OFF\n# a comment\n6 2 0\n'])
def test_points_of_a_mesh_are_drawn_by_area(header):
    points = read_cloud((header + TRIANGLES).encode(), 4000, np.random.default_rng(0), 'x.off')
    assert points.shape == (4000, 3) and points.dtype == np.float32
    assert np.mean(points[:, 2] == 1) == pytest.approx(3 / 4, abs=0.03)
    x, y, z = points.T
    assert set(z) == {1, 2} and x.min() >= 0 and y.min() >= 0
    assert (2 * x[z == 1] + 3 * y[z == 1]).max() <= 6 + 1e-5  # within the first triangle
    # Uniform: a triangle's mean is its centre.
    np.testing.assert_allclose(points[z == 1].mean(0), [1, 2 / 3, 1], atol=0.05)


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
    ],
)
def test_a_damaged_mesh_is_named(encoded, message):
    with pytest.raises(ValueError, match=f'^a/cup.off: .*{message}'):
        read_cloud(encoded, 10, np.random.default_rng(0), 'a/cup.off')


def test_points_are_read_from_arrays_and_text():
    array = io.BytesIO()
    np.save(array, np.c_[CLOUD, np.zeros((211, 3))])  # with normals
    text = '\n'.join(','.join(f'{x:.6f}' for x in row) for row in CLOUD)
    for name, encoded in (('x.npy', array.getvalue()), ('x.txt', text.encode())):
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
    ],
)
def test_other_arrays_are_refused(points, message):
    with pytest.raises(ValueError, match=f'x.npy: .*{message}'):
        some_points(points, 10, np.random.default_rng(0), 'x.npy')


@pytest.mark.parametrize('name', ['x.npy', 'x.txt', 'x.stl'])
def test_other_files_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(name)):
        read_cloud(b'\x93nonsense', 10, np.random.default_rng(0), name)
