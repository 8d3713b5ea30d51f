"""Learned filters of raw sound, in the place of a spectrogram; not in the papers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.checks import Module, check_axes
from perceiver_jax.errors import Refused
from perceiver_jax.grids import FourierGrid
from perceiver_jax.inputs import spectrogram_elements
from perceiver_jax.layers import check_floating

# All of this is our choice: deviations.md#filterbank
_FLOOR = 1e-10  # smallest power: -100 dB
_MEAN_DB, _STD_DB = -60.0, 20.0  # what becomes 0, and one unit of what becomes of the power
_KNEE = 0.044  # cycles a sample; 700 Hz at 16 kHz: below it filters are spaced evenly, as mel's are
_LOWEST, _HIGHEST = 0.003, 0.5


@dataclasses.dataclass
class FilterbankElements(Module):
    """How loud sound is behind each of many learned filters, in patches with Fourier positions.

    A filter is a pair of weights for `length` samples. The sum of the squares of both products is
    the power behind it, whatever the phase; its mean over `hop` samples, in decibels, is one value
    of what is then cut into patches as a spectrogram is. The filters start as the sine and the
    cosine of a frequency under a Gaussian window, the lowest first, with the spacing of the mel
    scale; what they become is learned.

    Parameters: `filters` `[length, 2, num_filters]` float32, from -1 to 1 at the start, and module
    `stem`. A constant of each filter makes them as small as sound needs: were they stored that
    small, a learning rate that suits the other parameters would overwrite them.

    Attributes:
      num_filters: F.
      length: Samples that a filter covers, a multiple of `stride`.
      stride: Samples from one place of a filter to the next.
      hop: Samples that a value is the mean over, a multiple of `stride`.
      patch: Values of a patch in time, and filters.
      num_bands: K, frequencies of the positions along each axis.
      max_resolution: See `spectrogram_elements`.
      stem: See `spectrogram_elements`.
      name: Name of the module.

    Source: after Tokozume and Harada, Learning environmental sounds with end-to-end convolutional
      neural network, 2017, and Zeghidour et al., LEAF, 2021.
    """

    _: dataclasses.KW_ONLY
    num_filters: int
    length: int
    stride: int
    hop: int
    patch: Sequence[int]
    num_bands: int
    max_resolution: Sequence[int]
    stem: Mapping[str, Any] | None = None
    name: str | None = None

    def __call__(self, audio: Array, mask: Array | None = None) -> Array | FourierGrid:
        """Makes input elements of sound.

        Args:
          audio: `[B, samples, 1]`, raw, from -1 to 1, of any floating-point dtype.
          mask: Floating-point `[B, samples / hop, F]`, what the values are multiplied by: 0 hides
            one, as SpecAugment does; None hides none.

        Returns:
          What `spectrogram_elements` makes of `[B, samples / hop, F]`, in the dtype of `audio`.

        Raises:
          Refused: An array has other axes or another dtype, or sizes do not divide each other.
        """
        check_floating('FilterbankElements', audio=audio)
        check_axes('FilterbankElements', audio=(audio, 'B samples channels'))
        batch, samples, channels = audio.shape
        if self.stride < 1 or self.length % self.stride or self.hop % self.stride or self.hop < 1:
            raise Refused(
                f'A stride of {self.stride} samples must divide filters of {self.length} and a hop '
                f'of {self.hop}.'
            )
        if channels != 1 or samples % self.hop:
            raise Refused(
                f'A hop of {self.hop} samples must divide sound of one channel, not '
                f'{samples} x {channels}.'
            )
        limits.check_bytes('the filters', 8 * self.length * self.num_filters)
        margin = self.length - self.stride
        first, factors = first_filters(self.length, self.num_filters)
        filters = hk.get_parameter(
            'filters', first.shape, jnp.float32, lambda shape, dtype: jnp.asarray(first, dtype)
        )
        filters *= factors[None, None]
        heard = jax.lax.conv_general_dilated(
            audio.astype(jnp.float32),
            filters.reshape(self.length, 1, -1),
            window_strides=[self.stride],
            padding=[(margin // 2, margin - margin // 2)],
            dimension_numbers=('NHC', 'HIO', 'NHC'),
        )
        heard = heard.reshape(batch, samples // self.hop, -1, 2, self.num_filters)
        power = jnp.square(heard).sum(3).mean(2)
        decibels = 10 * jnp.log10(jnp.maximum(power, _FLOOR))
        values = ((decibels - _MEAN_DB) / _STD_DB).astype(audio.dtype)
        if mask is not None:
            check_floating('FilterbankElements', mask=mask)
            if mask.shape != values.shape:
                raise Refused(f'A mask of {mask.shape} is not of the values, {values.shape}.')
            values *= mask.astype(values.dtype)
        return spectrogram_elements(
            values,
            patch=self.patch,
            num_bands=self.num_bands,
            max_resolution=self.max_resolution,
            stem=self.stem,
        )


def first_filters(length: int, num_filters: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the filters of `FilterbankElements` start as.

    Args:
      length: Samples of a filter.
      num_filters: F.

    Returns:
      Sines and cosines under Gaussian windows, float32 `[length, 2, F]`, and the constant that
      each filter is multiplied by, float32 `[F]`: the power of a sine of amplitude 1 at the
      frequency of a filter is then 1 behind it, 0 dB.
    """
    lowest, highest = (float(np.log1p(x / _KNEE)) for x in (_LOWEST, _HIGHEST))
    edges = _KNEE * np.expm1(np.linspace(lowest, highest, num_filters + 2))
    width = (edges[2:] - edges[:-2]) / 4  # of the filter, a standard deviation
    # Those that are narrower than the samples allow are as wide as these do.
    deviation = np.minimum(1 / (2 * np.pi * width), length / 6)
    time = np.arange(length)[:, None] - (length - 1) / 2
    window = np.exp(-0.5 * np.square(time / deviation))
    phase = 2 * np.pi * edges[1:-1] * time
    filters = np.stack([np.sin(phase), np.cos(phase)], 1) * window[:, None]
    return filters.astype(np.float32), (2 / window.sum(0)).astype(np.float32)
