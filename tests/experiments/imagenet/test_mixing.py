import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.imagenet.mixing import mixup_cutmix

H, W, C, K = 17, 23, 3, 7
B = 512


mix = jax.jit(mixup_cutmix, static_argnames='num_classes')


def pairs():
    """512 pairs of a black image of class 1 and a white one of class 4."""
    images = jnp.broadcast_to(jnp.arange(2.0).reshape(1, 2, 1, 1, 1), (B, 2, H, W, C))
    return images, jnp.broadcast_to(jnp.array([1, 4]), (B, 2)), jnp.arange(B, dtype=jnp.uint32)


@pytest.fixture(scope='module')
def mixed():
    return jax.device_get(mix(jax.random.key(0), *pairs(), num_classes=K))


def test_even_examples_are_uniform_mixtures(mixed):
    images, labels = mixed[0][::2], mixed[1][::2]
    assert np.all(np.ptp(images, axis=(1, 2, 3)) == 0)
    np.testing.assert_allclose(images[:, 0, 0, 0], labels[:, 4], atol=1e-6)


def test_odd_examples_have_a_box_and_its_area_as_label(mixed):
    images, labels = mixed[0][1::2], mixed[1][1::2]
    assert set(np.unique(images)) == {0, 1}
    np.testing.assert_allclose(images.mean(axis=(1, 2, 3)), labels[:, 4], atol=1e-6)
    for image in images:
        rows, columns = np.nonzero(image[..., 0])
        if len(rows):
            box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert np.all(box == 1) and box.sum() == image.sum()


def test_labels_are_distributions_over_the_two_classes(mixed):
    labels = mixed[1]
    assert labels.shape == (B, K) and labels.dtype == np.float32
    np.testing.assert_allclose(labels[:, 1] + labels[:, 4], 1, atol=1e-6)
    assert np.all(labels[:, [0, 2, 3, 5, 6]] == 0)


def test_weights_follow_their_beta_distributions(mixed):
    mixup = mixed[1][::2, 1]
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)) = 0.179 for a = 0.2.
    assert abs(mixup.mean() - 0.5) < 0.1
    assert abs(mixup.var() - 0.179) < 0.02
    cutmix = mixed[1][1::2, 1]
    # A uniform area of which the border cuts off some: more than half of the first image stays.
    assert 0.55 < cutmix.mean() < 0.8
    assert cutmix.min() < 0.2 and cutmix.max() > 0.97


def test_box_covers_every_pixel_at_times(mixed):
    covered = mixed[0][1::2].mean(axis=0)
    assert covered.min() > 0.05 and covered.max() < 0.6


def test_split_of_the_batch_changes_nothing(mixed):
    rows = slice(100, 103)
    part = mix(jax.random.key(0), *(array[rows] for array in pairs()), num_classes=K)
    for one, whole in zip(part, mixed, strict=True):
        np.testing.assert_allclose(one, whole[rows], atol=1e-6)


def test_steps_and_examples_differ(mixed):
    weights = mix(jax.random.key(1), *pairs(), num_classes=K)[1][::2, 1]
    both = np.concatenate([weights, mixed[1][::2, 1]])
    both = both[(both > 1e-3) & (both < 1 - 1e-3)]  # near the ends float32 repeats itself
    assert len(both) > 200 and len(np.unique(both)) > 0.99 * len(both)


def test_bfloat16_stays_bfloat16():
    images, labels, index = pairs()
    images, labels = jax.eval_shape(
        lambda *batch: mixup_cutmix(jax.random.key(0), *batch, num_classes=K),
        images.astype(jnp.bfloat16),
        labels,
        index,
    )
    assert images.dtype == jnp.bfloat16 and labels.dtype == jnp.float32


def test_single_images_are_refused():
    with pytest.raises(ValueError, match=r'\(3, 5, 7, 3\)'):
        mixup_cutmix(
            jax.random.key(0), jnp.zeros((3, 5, 7, 3)), jnp.zeros(3, int), jnp.arange(3), K
        )
