import numpy as np
import pytest

from experiments.data.pipeline import BrokenExample
from experiments.modelnet40.transforms import EvalTransform, TrainTransform

RNG = np.random.default_rng(0)
CLOUD = RNG.uniform(-3, 5, (211, 3)).astype(np.float32)
EXAMPLE = {'points': CLOUD, 'label': 7, 'name': 'cup_0003'}


def train_transform(**changes):
    fields = dict(num_points=101, point_scale=(1, 1), axis_scale=(1, 1), rotation_degrees=0)
    return TrainTransform(**fields | dict(jitter=0, drop_points=0) | changes)


def test_a_cloud_is_centred_and_fills_the_unit_cube():
    example = train_transform(num_points=211)(EXAMPLE, np.random.default_rng(0))
    points = example['points']
    assert points.shape == (211, 3) and points.dtype == np.float32 and example['label'] == 7
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    assert np.abs(points).max() == pytest.approx(1)
    centred = CLOUD - CLOUD.mean(0)
    expected = centred / np.abs(centred).max()
    # All points are there, in another order.
    np.testing.assert_allclose(
        points[np.lexsort(points.T)], expected[np.lexsort(expected.T)], atol=1e-6
    )
    assert not np.allclose(points, expected, atol=1e-2)


def test_every_time_other_points_in_another_order_but_the_same_for_the_same_numbers():
    transform = train_transform()
    first, again, other = (
        transform(EXAMPLE, np.random.default_rng(seed))['points'] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (101, 3) and not np.allclose(first, other, atol=1e-3)


def test_each_point_has_a_scale_of_its_own():
    rng = np.random.default_rng(0)
    points = train_transform(num_points=211, point_scale=(0.9, 1.1))(EXAMPLE, rng)['points']
    plain = train_transform(num_points=211)(EXAMPLE, np.random.default_rng(0))['points']
    # The same numbers choose the order, so points correspond; moving the mean matters little.
    ratios = np.linalg.norm(points, axis=1) / np.linalg.norm(plain, axis=1)
    ratios /= np.median(ratios)
    assert 0.15 < np.ptp(ratios[np.linalg.norm(plain, axis=1) > 0.5]) < 0.25


def test_axes_are_stretched_and_clouds_turned_about_the_vertical():
    plain = train_transform(num_points=211)(EXAMPLE, np.random.default_rng(0))['points']
    stretched = train_transform(num_points=211, axis_scale=(0.5, 2))(
        EXAMPLE, np.random.default_rng(0)
    )['points']
    factors = np.median(stretched / plain, axis=0)
    np.testing.assert_allclose(stretched, plain * factors, atol=1e-4)
    assert 1.05 < factors.max() / factors.min() < 4
    turned = train_transform(num_points=211, rotation_degrees=180)(
        EXAMPLE, np.random.default_rng(0)
    )['points']
    scale = np.median(turned[:, 2] / plain[:, 2])
    np.testing.assert_allclose(turned[:, 2], scale * plain[:, 2], atol=1e-5)
    radius = [np.hypot(*points[:, :2].T) for points in (turned, plain)]
    np.testing.assert_allclose(radius[0], scale * radius[1], atol=1e-5)
    assert not np.allclose(turned[:, 0], scale * plain[:, 0], atol=0.1)


def test_evaluation_takes_the_first_points_each_time():
    (points,) = EvalTransform(num_points=53)(EXAMPLE)['points']
    centred = CLOUD[:53] - CLOUD[:53].mean(0)
    np.testing.assert_allclose(points, centred / np.abs(centred).max(), atol=1e-6)


def test_evaluation_may_take_other_points_too():
    transform = EvalTransform(num_points=53, num_draws=3)
    draws = transform(EXAMPLE)['points']
    assert draws.shape == (3, 53, 3) and draws.dtype == np.float32
    np.testing.assert_array_equal(draws[:1], EvalTransform(num_points=53)(EXAMPLE)['points'])
    np.testing.assert_array_equal(draws, transform(EXAMPLE)['points'])
    np.testing.assert_allclose(draws.mean(1), 0, atol=1e-6)
    assert min(abs(draws[i] - draws[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


def test_noise_is_measured_by_the_size_of_the_cloud():
    plain, noisy = (
        train_transform(num_points=211, jitter=jitter)(EXAMPLE, np.random.default_rng(0))['points']
        for jitter in (0, 0.01)
    )
    # The largest coordinate, and with it the scale, changes by a few of these hundredths.
    assert 0.008 < (noisy - plain).std() < 0.015


def test_left_out_points_are_replaced_by_others():
    counts = []
    for seed in range(20):
        transform = train_transform(num_points=200, drop_points=0.5)
        points = transform(EXAMPLE, np.random.default_rng(seed))['points']
        assert points.shape == (200, 3)
        assert abs(points.mean(0)).max() < 1e-6
        counts.append(len(np.unique(points, axis=0)))
    assert 100 <= min(counts) < 120 and 180 < max(counts) <= 200


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('place', [0, 210])
def test_a_cloud_that_is_not_finite_is_named_whichever_points_are_chosen(place, value):
    points = CLOUD.copy()
    points[place, 1] = value
    example = {**EXAMPLE, 'points': points}
    with pytest.raises(BrokenExample, match='^cup_0003: .*not finite'):
        EvalTransform(num_points=2)(example)
    with pytest.raises(BrokenExample, match='^cup_0003: .*not finite'):
        train_transform(num_points=2)(example, np.random.default_rng(0))


def test_too_few_points_and_clouds_without_extent_are_named():
    with pytest.raises(ValueError, match=r'num_points\) is 212, and cup_0003 has 211'):
        EvalTransform(num_points=212)(EXAMPLE)
    with pytest.raises(BrokenExample, match='cup_0003: .*more than one place'):
        EvalTransform(num_points=5)({**EXAMPLE, 'points': np.ones((5, 3))})
