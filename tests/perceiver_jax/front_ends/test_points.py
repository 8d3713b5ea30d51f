import numpy as np
import pytest

from perceiver_jax.front_ends.points import prepare_points


def test_points_are_centred_and_scaled_to_the_unit_cube():
    points = prepare_points(np.array([[1.0, 2, 3], [3, 2, 11], [2, 2, 4]]))
    # The mean is (2, 2, 6), and the farthest coordinate 5 from it.
    np.testing.assert_allclose(points, [[-0.2, 0, -0.6], [0.2, 0, 1], [0, 0, -0.4]], atol=1e-7)
    assert points.dtype == np.float32


def test_points_in_map_coordinates_keep_their_shape():
    cloud = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    there = prepare_points(cloud + [700_000, 4_800_000, 200])
    np.testing.assert_allclose(there, prepare_points(cloud), rtol=0, atol=1e-6)


def test_some_points_are_taken_at_equal_distances():
    cloud = np.stack([np.arange(11.0), np.zeros(11), np.zeros(11)], axis=1)
    points = prepare_points(cloud, num_points=3)
    np.testing.assert_allclose(points[:, 0], [-1, 0, 1])  # of 0, 5 and 10
    assert len(prepare_points(cloud, num_points=20)) == 11


@pytest.mark.parametrize(
    'points, message',
    [
        (np.zeros((3, 2)), r'got \(3, 2\)'),
        (np.zeros((0, 3)), r'got \(0, 3\)'),
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], 'takes points as an array, not as list'),
        (np.ones((3, 3)), 'in more than one place'),
        (np.array([[0, 0, 0], [0, 0, np.inf]]), 'finite'),
        (np.array([[0, 0, 0], [np.nan, 0, 1]]), 'finite'),
    ],
)
def test_what_are_no_points_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        prepare_points(points)
