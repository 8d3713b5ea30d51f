import jax
import numpy as np
import pytest

from experiments.modelnet40.mixing import mix_clouds

B, P, K = 256, 40, 7
mix = jax.jit(mix_clouds, static_argnames='num_classes')


def pairs():
    """Pairs of a cloud of class 1 and one of class 4; no two points are alike."""
    clouds = np.arange(B * 2 * P * 3, dtype=np.float32).reshape(B, 2, P, 3)
    return clouds, np.broadcast_to([1, 4], (B, 2)), np.arange(B, dtype=np.uint32)


@pytest.fixture(scope='module')
def mixed():
    return jax.device_get(mix(jax.random.key(0), *pairs(), num_classes=K, alpha=1.0))


def test_each_label_weighs_as_many_points_as_its_cloud_gave(mixed):
    clouds, labels = mixed
    assert clouds.shape == (B, P, 3) and labels.dtype == np.float32
    for (first, second), cloud, label in zip(pairs()[0], clouds, labels, strict=True):
        count = np.isin(cloud[:, 0], first[:, 0]).sum()
        np.testing.assert_array_equal(cloud, np.concatenate([first[:count], second[: P - count]]))
        np.testing.assert_allclose(label[[1, 4]], [count / P, 1 - count / P], atol=1e-6)
        assert label.sum() == pytest.approx(1)


@pytest.mark.parametrize('alpha', [0.3, 1.0])
def test_shares_follow_their_beta_distribution(alpha):
    labels = mix(jax.random.key(1), *pairs(), num_classes=K, alpha=alpha)[1]
    assert abs(labels[:, 1].mean() - 0.5) < 0.07
    assert abs(labels[:, 1].var() - 1 / (4 * (2 * alpha + 1))) < 0.02


def test_split_of_the_batch_changes_nothing(mixed):
    rows = slice(100, 103)
    part = mix(jax.random.key(0), *(array[rows] for array in pairs()), num_classes=K, alpha=1.0)
    for one, whole in zip(part, mixed, strict=True):
        np.testing.assert_allclose(one, whole[rows], atol=1e-6)


def test_two_clouds_of_one_class_keep_it():
    clouds, _, index = pairs()
    labels = mix(jax.random.key(0), clouds, np.full((B, 2), 3), index, num_classes=K, alpha=1.0)[1]
    np.testing.assert_allclose(labels, np.eye(K)[[3] * B], atol=1e-6)
