"""Changes of batches on the device: mixing sounds, speed, SpecAugment, dropping a modality.

Random numbers are derived from the key and each example's index, so that they do not depend on how
a batch is divided among devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.errors import Refused

# That a sound is cut into, of which the loudest is its loudness; our choice: deviations.md#loudness
NUM_STRETCHES = 50
SILENCE = 1e-5  # what is less loud, -100 dB of a full wave, counts as this


def mix_sounds(
    rng: jax.Array,
    sounds: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    alpha: float,
    between_class: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each pair of sounds into one, with a weight from Beta(alpha, alpha).

    Args:
      rng: Key of this step, the same for all parts of a global batch.
      sounds: Pairs of sounds, `[b, 2, samples]`.
      labels: Labels of both sounds, `[b, 2, K]`.
      index: Place of each pair in the global batch, uint32 `[b]`.
      alpha: Both parameters of the Beta distribution.
      between_class: Whether the weight is that of the labels, and the sounds are mixed so that each
        is heard as much as that, whatever its loudness, without the mixture being less loud; of
        two sounds of the same labels the first stands alone. Else sounds and labels have the same
        weights.

    Returns:
      Sounds `[b, samples]` and labels `[b, K]`.

    Source: Zhang et al., mixup, 2018; Tokozume et al., Learning from between-class examples, 2018,
      whose alpha is 1 and whose loudness is A-weighted.
    """

    def mix(pair, pair_labels, place):
        weight = jax.random.beta(jax.random.fold_in(rng, place), alpha, alpha)
        of_labels = of_sounds = jnp.stack([weight, 1 - weight])
        if between_class:
            alike = (pair_labels[0] == pair_labels[1]).all()
            of_labels = jnp.where(alike, jnp.array([1.0, 0.0]), of_labels)
            of_sounds = of_labels / loudness(pair)
            of_sounds /= jnp.linalg.norm(of_sounds)
        return of_sounds @ pair, of_labels @ pair_labels

    return jax.vmap(mix)(sounds, labels, index)


def loudness(sounds: jax.Array) -> jax.Array:
    """Measures how loud sounds are: the root mean square of the loudest of `NUM_STRETCHES`.

    Args:
      sounds: Waves, `[..., samples]`.

    Returns:
      Amplitudes, `[...]`, at least `SILENCE`.
    """
    length = max(sounds.shape[-1] // NUM_STRETCHES, 1)
    whole = sounds[..., : sounds.shape[-1] // length * length]
    stretches = whole.reshape(*sounds.shape[:-1], -1, length)
    return jnp.maximum(jnp.sqrt(jnp.square(stretches).mean(-1).max(-1)), SILENCE)


def at_speed(sound: jax.Array, start: jax.Array, num_samples: int, speed: float) -> jax.Array:
    """Cuts a stretch out of a wave, resampled by linear interpolation.

    Args:
      sound: The wave, `[samples]`, behind which is silence.
      start: The sample at which the stretch begins, int32 `[]`.
      num_samples: Length of what is returned.
      speed: Samples of the wave for each that is returned: with 2 a sound is half as long, and an
        octave higher.

    Returns:
      The stretch, `[num_samples]`.
    """
    if speed == 1:
        return jax.lax.dynamic_slice_in_dim(sound, start, num_samples)
    places = np.arange(num_samples) * speed  # in float64
    before = places.astype(np.int32)
    share = jnp.asarray(places - before, jnp.float32)
    length = int(before[-1]) + 2
    stretch = jax.lax.dynamic_slice_in_dim(jnp.pad(sound, (0, length)), start, length)
    return (1 - share) * stretch[before] + share * stretch[before + 1]


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
    """Sets stretches of time and bands of frequency to zero, about the mean of a spectrogram.

    The width of each mask is uniform from 0 to its largest, and so is its place; masks may overlap.

    Args:
      rng: Key of this step, the same for all parts of a global batch.
      spectrograms: Normalised spectrograms, `[b, frames, bins]`.
      index: Place of each example in the global batch, uint32 `[b]`.
      time_masks: Number of masks along time.
      time_width: Largest width of a mask along time, in frames.
      frequency_masks: Number of masks along frequency.
      frequency_width: Largest width of a mask along frequency, in bins.

    Returns:
      Masked spectrograms, `[b, frames, bins]`.

    Raises:
      Refused: A mask may be wider than the spectrogram.

    Source: Park et al., SpecAugment, 2019, without time warping.
    """
    frames, bins = spectrograms.shape[1:]
    for name, width, size in (('time', time_width, frames), ('frequency', frequency_width, bins)):
        if not 0 <= width <= size:
            raise Refused(f'{name}_width is {width}, and the spectrogram has {size}')

    def masked(key, count, size, width):  # bool [size]
        key_width, key_start = jax.random.split(key)
        widths = jax.random.randint(key_width, (count, 1), 0, width + 1)
        starts = jax.random.randint(key_start, (count, 1), 0, size - widths + 1)
        place = jnp.arange(size)[None]
        return ((place >= starts) & (place < starts + widths)).any(0)

    def mask(spectrogram, place):
        key_time, key_frequency = jax.random.split(jax.random.fold_in(rng, place))
        in_time = masked(key_time, time_masks, frames, time_width)
        in_frequency = masked(key_frequency, frequency_masks, bins, frequency_width)
        return jnp.where(in_time[:, None] | in_frequency[None], 0, spectrogram)

    return jax.vmap(mask)(spectrograms, index)


def drop_examples(rng: jax.Array, x: jax.Array, index: jax.Array, rate: float) -> jax.Array:
    """Sets whole examples to zero; those that are kept are not scaled up.

    Args:
      rng: Key of this step, the same for all parts of a global batch.
      x: Examples of one modality, `[b, ...]`.
      index: Place of each example in the global batch, uint32 `[b]`.
      rate: Probability that an example is dropped.

    Returns:
      Examples, `[b, ...]`, some of them zero.

    Source: Perceiver, section 4.2, where it is called video dropout.
    """

    def drop(example, place):
        dropped = jax.random.bernoulli(jax.random.fold_in(rng, place), rate)
        return jnp.where(dropped, 0, example)

    return jax.vmap(drop)(x, index)
