import numpy as np
import pytest

from experiments.modelnet40.shapes import NUM_POINTS, Shapes, _boxes, _revolved


def test_there_are_ten_kinds_in_equal_parts_and_no_shape_is_in_two_splits():
    sources = {split: Shapes(split) for split in ('train', 'validation', 'test')}
    assert [len(source) for source in sources.values()] == [2000, 500, 500]
    assert len(Shapes('train+validation')) == 2500
    clouds = [source[0]['points'] for source in sources.values()]
    assert not any(np.array_equal(clouds[i], clouds[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    source = sources['test']
    assert np.bincount([source[i]['label'] for i in range(0, 100)]).tolist() == [10] * 10
    assert source[3]['name'].startswith(source.classes[source[3]['label']])


def test_a_shape_depends_on_its_number_alone():
    first, again = Shapes('train')[17], Shapes('train')[17]
    np.testing.assert_array_equal(first['points'], again['points'])
    assert first['points'].shape == (NUM_POINTS, 3) and first['points'].dtype == np.float32
    assert not np.allclose(first['points'], Shapes('train')[27]['points'], atol=0.1)


@pytest.mark.parametrize('label', range(10))
def test_shapes_of_a_kind_differ_and_are_finite(label):
    source = Shapes('train')
    clouds = np.stack([source[10 * i + label]['points'] for i in range(8)])
    assert np.isfinite(clouds).all()
    extents = np.sort(np.ptp(clouds, axis=1), axis=1)
    assert (np.ptp(extents, axis=0) > 0.01).any()


def test_a_swept_line_is_covered_by_area():
    # A disc of radius 3 and, from its rim, a cylinder of height 3: areas 9 pi and 18 pi.
    points = np.concatenate(
        [_revolved(np.random.default_rng(i), np.array([[0, 0], [3, 0], [3, 3]])) for i in range(20)]
    )
    radius, height = np.hypot(*points[:, :2].T), points[:, 2]
    disc = height == 0
    assert disc.mean() == pytest.approx(1 / 3, abs=0.02)
    assert np.mean(radius[disc] < 1.5) == pytest.approx(1 / 4, abs=0.02)
    np.testing.assert_allclose(radius[~disc], 3, rtol=1e-6)
    assert height[~disc].mean() == pytest.approx(1.5, abs=0.05)


def test_the_sides_of_boxes_are_covered_by_area():
    # Half sides 1, 2, 3 around (5, 0, 0): pairs of sides of areas 6, 3 and 2.
    points = np.concatenate(
        [_boxes(np.random.default_rng(i), [[(5, 0, 0), (1, 2, 3)]]) for i in range(20)]
    )
    on_side = np.isclose(np.abs(points - [5, 0, 0]), [1, 2, 3])
    assert (on_side.sum(1) == 1).all()
    np.testing.assert_allclose(on_side.mean(0), np.array([6, 3, 2]) / 11, atol=0.02)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train', 'validation', 'test'.*not .'val'"):
        Shapes('train+val')
