import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.audioset import mixing

RNG = jax.random.key(3)

# Compiled whole, as in training: each operation by itself would take much longer to compile.
MASKS = ('time_masks', 'time_width', 'frequency_masks', 'frequency_width')
drop_examples = jax.jit(mixing.drop_examples)
mix_sounds = jax.jit(mixing.mix_sounds, static_argnames='between_class')
spec_augment = jax.jit(mixing.spec_augment, static_argnames=MASKS)


def test_mixed_sounds_and_labels_have_the_same_weights():
    sounds = jnp.stack([jnp.ones((7, 11)), jnp.full((7, 11), 3.0)], axis=1)
    labels = jnp.stack([jnp.eye(5)[jnp.zeros(7, int)], jnp.eye(5)[jnp.full(7, 2)]], axis=1)
    mixed, mixed_labels = mix_sounds(RNG, sounds, labels, jnp.arange(7), alpha=1.0)
    weights = np.asarray(mixed_labels[:, 0])
    assert 0 < weights.min() and weights.max() < 1 and len(set(weights.tolist())) == 7
    np.testing.assert_allclose(mixed, np.tile((3 - 2 * weights)[:, None], (1, 11)), rtol=1e-5)
    np.testing.assert_allclose(mixed_labels[:, 2], 1 - weights, rtol=1e-5)
    assert not mixed_labels[:, jnp.array([1, 3, 4])].any()


def test_between_classes_each_sound_is_heard_as_much_as_its_label():
    """A wave of amplitude 1 and another, 20 dB quieter, which is no multiple of it."""
    time = np.arange(1000) / 1000
    loud, quiet = np.sin(2 * np.pi * 50 * time), 0.1 * np.sin(2 * np.pi * 150 * time)
    sounds = jnp.tile(jnp.array([loud, quiet], jnp.float32), (9, 1, 1))
    labels = jnp.tile(jnp.eye(2), (9, 1, 1))
    mixed, mixed_labels = mix_sounds(RNG, sounds, labels, jnp.arange(9), 1.0, between_class=True)
    heard = np.asarray(mixed) @ np.array([loud, quiet]).T / (np.square([loud, quiet]).sum(1))
    # The amplitudes that are heard, 1 and 0.1 times these, are as the labels.
    amplitudes = heard * [1, 0.1]
    expected = np.asarray(mixed_labels[:, 0] / mixed_labels[:, 1])
    np.testing.assert_allclose(amplitudes[:, 0] / amplitudes[:, 1], expected, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(heard, axis=1), 1, rtol=1e-3)


def test_of_two_sounds_of_a_class_the_first_stands_alone():
    sounds = jax.random.normal(RNG, (4, 2, 100))
    labels = jnp.tile(jnp.eye(3)[1], (4, 2, 1))
    mixed, mixed_labels = mix_sounds(RNG, sounds, labels, jnp.arange(4), 1.0, between_class=True)
    np.testing.assert_allclose(mixed, sounds[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(mixed_labels, labels[:, 0])


def test_silence_mixes_with_a_sound_without_nan():
    sounds = jnp.stack([jnp.zeros((5, 100)), jnp.ones((5, 100))], axis=1)
    labels = jnp.tile(jnp.eye(2), (5, 1, 1))
    mixed, _ = mix_sounds(RNG, sounds, labels, jnp.arange(5), 1.0, between_class=True)
    assert np.isfinite(mixed).all()


def test_a_stretch_at_another_speed_by_hand():
    """Of samples 0, 1, 4, 9 ..., the squares of their places, and silence behind them."""
    wave, at_speed = jnp.square(jnp.arange(9.0)), jax.jit(mixing.at_speed, static_argnums=(2, 3))
    np.testing.assert_array_equal(at_speed(wave, 2, 4, 1.0), [4, 9, 16, 25])
    np.testing.assert_array_equal(at_speed(wave, 2, 4, 2.0), [4, 16, 36, 64])
    np.testing.assert_array_equal(at_speed(wave, 2, 4, 0.5), [4, 6.5, 9, 12.5])
    np.testing.assert_array_equal(at_speed(wave, 6, 5, 1.5), [36, 56.5, 0, 0, 0])


def test_a_tone_is_higher_at_a_higher_speed_also_late_in_a_long_sound():
    wave = jnp.sin(2 * np.pi * 0.01 * jnp.arange(150_000.0) + 0.3)
    heard = mixing.at_speed(wave, 100, 110_000, 1.25)
    expected = np.sin(2 * np.pi * 0.01 * (100 + 1.25 * np.arange(110_000)) + 0.3)
    np.testing.assert_allclose(heard, expected, atol=0.02)


def masks(count=256, frames=23, bins=13, **changes):
    settings = dict(time_masks=1, time_width=5, frequency_masks=1, frequency_width=4) | changes
    out = spec_augment(RNG, jnp.ones((count, frames, bins)), jnp.arange(count), **settings)
    assert set(np.unique(out)) <= {0.0, 1.0}
    return np.asarray(out) == 0


def test_a_mask_hides_stretches_of_time_and_bands_of_frequency():
    hidden = masks()
    in_time, in_frequency = hidden.all(axis=2), hidden.all(axis=1)
    np.testing.assert_array_equal(hidden, in_time[:, :, None] | in_frequency[:, None])
    for rows, width in ((in_time, 5), (in_frequency, 4)):
        counts = rows.sum(axis=1)
        assert set(counts) == set(range(width + 1))  # every width that may be, and no other
        edges = np.diff(np.pad(rows.astype(int), ((0, 0), (1, 1))), axis=1)
        assert ((edges == 1).sum(axis=1) <= 1).all()  # one mask is one stretch
        assert rows.any(axis=0).all()  # it may be anywhere


def test_no_masks_hide_nothing_and_more_masks_hide_more():
    assert not masks(time_masks=0, frequency_masks=0).any()
    assert not masks(time_width=0, frequency_width=0).any()
    assert masks(time_masks=3).mean() > 1.5 * masks(frequency_masks=0).mean()


def test_a_mask_wider_than_the_spectrogram_is_refused():
    with pytest.raises(ValueError, match='frequency_width is 14, and the spectrogram has 13'):
        masks(frequency_width=14)


def test_whole_examples_are_dropped():
    dropped = drop_examples(RNG, jnp.ones((2000, 2, 3)), jnp.arange(2000), rate=0.3)
    kept = np.asarray(dropped).reshape(2000, 6).mean(axis=1)
    assert set(kept) == {0.0, 1.0}
    assert kept.mean() == pytest.approx(0.7, abs=0.04)


@pytest.mark.parametrize(
    'augment',
    [
        lambda x, index: drop_examples(RNG, x, index, 0.5),
        lambda x, index: spec_augment(RNG, x, index, **dict(zip(MASKS, (2, 2, 2, 3), strict=True))),
        lambda x, index: mix_sounds(RNG, x, x, index, 0.4)[0],
        lambda x, index: mix_sounds(RNG, x, x, index, 0.4, between_class=True)[0],
    ],
)
def test_what_an_example_draws_does_not_depend_on_the_others(augment):
    x = jax.random.normal(jax.random.key(0), (8, 2, 7))
    whole = augment(x, jnp.arange(8))
    part = augment(x[5:], jnp.arange(5, 8))
    np.testing.assert_allclose(whole[5:], part, rtol=1e-6)
