import numpy as np

from experiments.data.crops import inception_crop
from perceiver_jax.front_ends.images import centre_crop


def test_inception_crops_obey_their_limits():
    coordinates = np.stack(np.mgrid[0:97, 0:131], axis=-1)
    rng = np.random.default_rng(0)
    areas, aspects, corners = [], [], []
    for _ in range(2000):
        crop = inception_crop(coordinates, rng, (0.08, 1.0))
        height, width = crop.shape[:2]
        corners.append(crop[0, 0])
        areas.append(height * width / (97 * 131))
        aspects.append(width / height)
        np.testing.assert_array_equal(crop[-1, -1], crop[0, 0] + [height - 1, width - 1])
    assert 0.1 <= min(areas) < 0.11 and 0.85 < max(areas) <= 1
    assert 0.73 < min(aspects) < 0.77 and 1.3 < max(aspects) < 1.36
    assert np.min(corners, axis=0).tolist() == [0, 0]
    assert np.mean(np.max(corners, axis=0) / [97, 131]) > 0.5


def test_without_a_fitting_crop_the_centre_is_taken():
    strip = np.arange(10 * 500).reshape(10, 500, 1)  # 3/4 <= aspect leaves under 0.03 of it
    crop = inception_crop(strip, np.random.default_rng(0), (0.08, 1.0))
    np.testing.assert_array_equal(crop, centre_crop(strip, 0.875))
