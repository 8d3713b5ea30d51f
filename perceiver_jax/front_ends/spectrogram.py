"""Sound as a log-mel spectrogram, computed by JAX on the device.

Source: Perceiver, section 4.2, which uses mel spectrograms; the papers do not state the settings.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.checks import check_array, check_integers
from perceiver_jax.errors import Refused

FLOOR = 1e-10  # smallest power: -100 dB


def log_mel(
    sound: Array,
    *,
    sample_rate: int,
    hop: int,
    window: int,
    num_bins: int,
    low: float,
    high: float,
    mean_db: float,
    std_db: float,
) -> Array:
    """Returns the power in bands of the mel scale, over time, in decibels.

    A frame is the power spectrum of `window` samples under a Hann window, around the middle of
    `hop` samples: these tile the sound, which is padded with silence at both ends. Triangular
    filters, equally spaced on the mel scale, sum it up. A sine of amplitude 1 gives about 0 dB.

    Args:
      sound: Sound, `[..., samples]`, from -1 to 1.
      sample_rate: Sample rate of the sound in Hz.
      hop: Samples from one frame to the next.
      window: Samples of a frame and of the Fourier transform: `hop`, or more by an even number.
      num_bins: Number of filters.
      low: Frequency in Hz where the first filter begins.
      high: Frequency in Hz where the last filter ends.
      mean_db: Decibels that become 0; with `std_db` it brings spectrograms to about zero mean and
        unit variance.
      std_db: Decibels of one unit of the result.

    Returns:
      Spectrogram, float32 `[..., samples / hop, num_bins]`: (decibels - mean_db) / std_db, where
      decibels are at least -100.

    Raises:
      Refused: `sound` is no array, the hop does not divide it, the window does not fit the hop, the
        frequencies are out of range, or a filter would fall between those of the Fourier
        transform.

    Source: O'Shaughnessy, Speech Communication, 1987, for the mel scale.
    """
    check_array('log_mel', 'sound', sound)
    check_integers('log_mel', hop=hop, window=window, num_bins=num_bins)
    if not sound.ndim or hop < 1:
        raise Refused(f'log_mel takes sound [..., samples] and a hop; got {sound.shape} and {hop}.')
    samples = sound.shape[-1]
    if samples % hop or window < hop or (window - hop) % 2:
        raise Refused(
            f'A hop of {hop} samples must divide the sound of {samples}, and a window, of '
            f'{window}, must be longer by an even number.'
        )
    limits.check_bytes('the windows of the sound', 8 * (samples // hop) * window)
    filters = mel_filters(sample_rate, window, num_bins, low, high)
    margin = (window - hop) // 2
    widths = [(0, 0)] * (sound.ndim - 1) + [(margin, margin)]
    padded = jnp.pad(sound.astype(jnp.float32), widths)
    starts = np.arange(samples // hop) * hop
    frames = padded[..., starts[:, None] + np.arange(window)]  # [..., frames, window]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    taper = jax.lax.broadcast_to_rank((hann / (hann.sum() / 2)).astype(np.float32), frames.ndim)
    spectrum = jnp.fft.rfft(frames * taper)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)  # a sine's peak: amplitude ** 2
    mel = jnp.maximum(power @ filters, FLOOR)
    return (10 * jnp.log10(mel) - mean_db) / std_db


def mel_filters(
    sample_rate: int, window: int, num_bins: int, low: float, high: float
) -> np.ndarray:
    """Returns triangular filters, equally spaced on the mel scale.

    A filter rises from 0 at the centre of the filter before it to 1 at its own centre, and falls
    to 0 at the centre of the filter after it.

    Args:
      sample_rate: Sample rate in Hz.
      window: Samples of the Fourier transform.
      num_bins: Number of filters.
      low: Frequency in Hz where the first filter begins.
      high: Frequency in Hz where the last filter ends.

    Returns:
      Weight of each frequency of the Fourier transform in each filter, float32
      `[window // 2 + 1, num_bins]`.

    Raises:
      Refused: No frequency of the transform is within some filter, `low` and `high` are out of
        range, or the filters take more memory than `limits` allows.
    """
    if not 0 <= low < high <= sample_rate / 2:
        raise Refused(
            f'Mel filters from low, {low} Hz, to high, {high} Hz, are not within 0 to '
            f'{sample_rate / 2} Hz, half the sample_rate.'
        )

    limits.check_bytes('the mel filters', 8 * (window // 2 + 1) * num_bins)

    def mel(hertz):
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(low), mel(high), num_bins + 2)
    edges = 700 * (10 ** (edges / 2595) - 1)  # Hz
    frequencies = np.arange(window // 2 + 1) * sample_rate / window
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    if not filters.any(axis=0).all():
        empty = int((~filters.any(axis=0)).sum())
        raise Refused(
            f'{empty} of num_bins={num_bins} mel filters from low={low} to high={high} Hz fall '
            f'between the frequencies of a window of {window} samples: take fewer, or a longer '
            'window.'
        )
    return filters.astype(np.float32)
