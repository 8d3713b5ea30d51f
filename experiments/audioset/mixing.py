"""Augmentation of sound on the device: mixing two sounds, SpecAugment, dropping a whole modality.

What an example draws depends on (rng, its `index`) alone, however a batch is cut over devices.
"""

import jax
import jax.numpy as jnp

from perceiver_jax.errors import Refused


def mix_sounds(
    rng: jax.Array, sounds: jax.Array, labels: jax.Array, index: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Makes one training sound of each pair: their mean with a weight from Beta(alpha, alpha).

    Args:
      rng: key of this step, the same for all parts of a batch.
      sounds: [b, 2, samples].
      labels: [b, 2, K].
      index: [b] uint32, each example's place in the global batch.
      alpha: of the Beta distribution.

    Returns:
      Sounds [b, samples] and labels [b, K], mixed alike.

    Source: Zhang et al., mixup, 2018.
    """

    def mix(pair, pair_labels, place):
        weight = jax.random.beta(jax.random.fold_in(rng, place), alpha, alpha)
        weights = jnp.stack([weight, 1 - weight])
        return weights @ pair, weights @ pair_labels

    return jax.vmap(mix)(sounds, labels, index)


def spec_augment(
    rng: jax.Array,
    spectrograms: jax.Array,
    index: jax.Array,
    *,
    time_masks: int,
    time_width: int,
    frequency_masks: int,
    frequency_width: int,
) -> jax.Array:
    """Sets stretches of time and bands of frequency to zero, which is about the mean.

    Each mask is from 0 to its largest width, uniformly, at a uniform place; masks may overlap.

    Args:
      rng: key of this step, the same for all parts of a batch.
      spectrograms: [b, frames, bins].
      index: [b] uint32, each example's place in the global batch.
      time_masks: masks along time.
      time_width: frames, the largest mask.
      frequency_masks: masks along frequency.
      frequency_width: bins, the largest mask.

    Returns:
      [b, frames, bins].

    Raises:
      ValueError: if a mask may be wider than the spectrogram.

    Source: Park et al., SpecAugment, 2019, without time warping.
    """
    frames, bins = spectrograms.shape[1:]
    for name, width, size in (('time', time_width, frames), ('frequency', frequency_width, bins)):
        if not 0 <= width <= size:
            raise Refused(f'{name}_width is {width}, and the spectrogram has {size}')

    def hidden(key, count, size, width):  # [size] bool
        key_width, key_start = jax.random.split(key)
        widths = jax.random.randint(key_width, (count, 1), 0, width + 1)
        starts = jax.random.randint(key_start, (count, 1), 0, size - widths + 1)
        place = jnp.arange(size)
        return ((place >= starts) & (place < starts + widths)).any(0)

    def mask(spectrogram, place):
        key_time, key_frequency = jax.random.split(jax.random.fold_in(rng, place))
        in_time = hidden(key_time, time_masks, frames, time_width)
        in_frequency = hidden(key_frequency, frequency_masks, bins, frequency_width)
        return jnp.where(in_time[:, None] | in_frequency, 0, spectrogram)

    return jax.vmap(mask)(spectrograms, index)


def drop_examples(rng: jax.Array, x: jax.Array, index: jax.Array, rate: float) -> jax.Array:
    """Sets whole examples to zero.

    Args:
      rng: key of this step, the same for all parts of a batch.
      x: [b, ...].
      index: [b] uint32, each example's place in the global batch.
      rate: the share of examples.

    Returns:
      [b, ...]; what is kept is not enlarged.

    Source: Perceiver, section 4.2, where it is called video dropout.
    """

    def drop(example, place):
        dropped = jax.random.bernoulli(jax.random.fold_in(rng, place), rate)
        return jnp.where(dropped, 0, example)

    return jax.vmap(drop)(x, index)
