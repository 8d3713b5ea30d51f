"""Sound as a log-mel spectrogram, on the device.

Source: Perceiver, section 4.2, for the use of it; the settings are not in the papers.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.errors import Refused

FLOOR = 1e-10  # of the power, -100 dB


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
    """The power in bands of the mel scale, over time, in decibels.

    A frame is the power spectrum of `window` samples under a Hann window, around the middle of
    `hop` samples: these tile the sound, and beyond its ends is silence. Triangular filters, equally
    spaced on the mel scale, sum it up. A sine of amplitude 1 gives about 0 dB.

    Args:
      sound: `[..., samples]`, from -1 to 1.
      sample_rate: Of the sound, in Hz.
      hop: Samples from one frame to the next.
      window: Samples of a frame, and of the Fourier transform; at least a hop.
      num_bins: Filters.
      low: Hz, where the first filter begins.
      high: Hz, where the last one ends.
      mean_db: What becomes 0; with `std_db` it brings spectrograms to about unit variance.
      std_db: Decibels of one unit.

    Returns:
      `[..., samples / hop, num_bins]` float32, never below -100 dB.

    Raises:
      ValueError: The hop does not divide the sound, or a filter would fall between the
        frequencies of the Fourier transform.

    Source: O'Shaughnessy, Speech Communication, 1987, for the mel scale.
    """
    samples = sound.shape[-1]
    if samples % hop or window < hop or (window - hop) % 2:
        raise Refused(
            f'A hop of {hop} samples must divide the sound of {samples}, and a window, of '
            f'{window}, must be longer by an even number.'
        )
    filters = mel_filters(sample_rate, window, num_bins, low, high)
    margin = (window - hop) // 2
    widths = [(0, 0)] * (sound.ndim - 1) + [(margin, margin)]
    padded = jnp.pad(sound.astype(jnp.float32), widths)
    starts = np.arange(samples // hop) * hop
    frames = padded[..., starts[:, None] + np.arange(window)]  # [..., frames, window]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(frames * (hann / (hann.sum() / 2)).astype(np.float32))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)  # a sine's peak: amplitude ** 2
    mel = jnp.maximum(power @ filters, FLOOR)
    return (10 * jnp.log10(mel) - mean_db) / std_db


def mel_filters(
    sample_rate: int, window: int, num_bins: int, low: float, high: float
) -> np.ndarray:
    """Triangles of height 1, each from the centre of the one before to that of the next.

    Args:
      sample_rate: Hz.
      window: Samples of the Fourier transform.
      num_bins: Number of filters.
      low: Hz, where the first begins.
      high: Hz, where the last ends.

    Returns:
      `[window / 2 + 1, num_bins]` float32.

    Raises:
      ValueError: A filter has no frequency of the transform within, or the range is none.
    """
    if not 0 <= low < high <= sample_rate / 2:
        raise Refused(
            f'Mel filters from {low} to {high} Hz are not within 0 to {sample_rate / 2} Hz.'
        )

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
            f'{empty} of {num_bins} mel filters from {low} to {high} Hz fall between the '
            f'frequencies of a window of {window} samples: take fewer, or a longer window.'
        )
    return filters.astype(np.float32)
