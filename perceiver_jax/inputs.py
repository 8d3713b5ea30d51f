"""What becomes the byte array `[B, M, C]`: images, frames, video, sound, points, bytes of text.

An element is its contents and its position encoding side by side; text alone adds the two.

Source: Perceiver, sections 4.1 to 4.3; Perceiver IO, section 4.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import haiku as hk
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.convolution import ConvDownsample
from perceiver_jax.errors import Refused
from perceiver_jax.layers import Linear
from perceiver_jax.position_encoding import (
    LearnedPositions,
    fourier_features,
    grid_fourier_features,
)


@dataclasses.dataclass
class ImageInputs(hk.Module):
    """An image as input elements: one per pixel, or per position of a small convolution.

    Contents are raw `pixels`, pixels through a `conv1x1`, or a `conv7x7` with batch
    normalisation and max-pooling that leaves a quarter of either side. The position encoding,
    `fourier` or `learned`, is concatenated to them.
    """

    contents: str = 'pixels'  # 'pixels', 'conv1x1' or 'conv7x7'
    contents_channels: int | None = None  # of either convolution
    positions: str = 'fourier'  # 'fourier' or 'learned'
    num_bands: int | None = None  # Fourier: frequencies along each axis
    max_resolution: Sequence[int] | None = None  # Fourier: twice the highest frequency, per axis
    position_channels: int | None = None  # learned: width of an encoding
    position_init_std: float | None = None  # learned
    project_positions_to: int | None = None  # learned: width of a Linear behind; None: none
    permutation_seed: int | None = None  # one fixed shuffle of the elements; None: none
    batch_norm_axis: str | None = None  # the mapped axis of `jax.pmap`, to normalise across it
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        needs = {
            'pixels': (),
            'conv1x1': ('contents_channels',),
            'conv7x7': ('contents_channels',),
            'fourier': ('num_bands', 'max_resolution'),
            'learned': ('position_channels', 'position_init_std'),
        }
        if self.contents not in ('pixels', 'conv1x1', 'conv7x7'):
            raise Refused(
                f"contents must be 'pixels', 'conv1x1' or 'conv7x7', not {self.contents!r}."
            )
        if self.positions not in ('fourier', 'learned'):
            raise Refused(f"positions must be 'fourier' or 'learned', not {self.positions!r}.")
        for field in (*needs[self.contents], *needs[self.positions]):
            if getattr(self, field) is None:
                raise Refused(f'{self.contents} with {self.positions} positions needs {field}.')

    def __call__(
        self,
        images: Array,  # [B, height, width, channels]
        *,
        is_training: bool,
    ) -> Array:  # [B, M, C]
        if images.ndim != 4:
            raise Refused(f'Images are [B, height, width, channels]; got {images.shape}.')
        if self.contents == 'conv7x7':
            images = ConvDownsample(self.contents_channels, self.batch_norm_axis, name='conv7x7')(
                images, is_training=is_training
            )
        elif self.contents == 'conv1x1':
            images = Linear(self.contents_channels, name='conv1x1')(images)
        height, width = images.shape[1:3]
        inputs = with_positions(images, self._encode_positions((height, width)))
        if self.permutation_seed is not None:
            # After the positions are attached: the elements keep what says where they were.
            inputs = inputs[:, permutation(self.permutation_seed, height * width)]
        return inputs

    @hk.name_like('__call__')
    def _encode_positions(self, grid: tuple[int, int]) -> Array:
        if self.positions == 'fourier':
            return grid_fourier_features(grid, self.num_bands, self.max_resolution)
        return LearnedPositions(
            grid[0] * grid[1],
            self.position_channels,
            self.position_init_std,
            self.project_positions_to,
            name='position_encoding',
        )()


def as_images(values: np.ndarray, permutation_seed: int | None = None) -> np.ndarray:
    """Values of input elements, such as attention, back where the elements are in a square image.

    Args:
      values: `[..., M]`, one for each element.
      permutation_seed: That of `ImageInputs`, whose shuffle is undone.

    Returns:
      `[..., side, side]`, with side * side = M.
    """
    if permutation_seed is not None:
        shuffled, values = values, np.empty_like(values)
        values[..., permutation(permutation_seed, values.shape[-1])] = shuffled
    side = math.isqrt(values.shape[-1])
    return values.reshape(*values.shape[:-1], side, side)


def with_positions(contents: Array, positions: Array) -> Array:
    """Elements of a grid, each with its position: `[B, ..., C]`, `[M, P]` -> `[B, M, C + P]`."""
    batch, channels = contents.shape[0], contents.shape[-1]
    contents = contents.reshape(batch, -1, channels)
    positions = jnp.broadcast_to(positions, (batch, *positions.shape))
    return jnp.concatenate([contents, positions.astype(contents.dtype)], axis=-1)


def permutation(seed: int, num_elements: int) -> np.ndarray:
    """The fixed shuffle of permuted ImageNet: element i becomes the former element order[i]."""
    return np.random.default_rng(seed).permutation(num_elements)


def extract_patches(images: Array, size: int) -> Array:
    """The neighbourhood of every pixel, with zeros beyond the border.

    Args:
      images: `[B, height, width, C]`.
      size: Side of the neighbourhood in pixels, odd.

    Returns:
      `[B, height, width, size * size * C]`, channels in (row, column, channel) order.

    Raises:
      ValueError: `size` is even.
    """
    if size % 2 == 0:
        raise Refused(f'A patch around a pixel has an odd side, not {size}.')
    reach = size // 2
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    shifted = [
        padded[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1)


def space_to_depth(video: Array, patch: Sequence[int]) -> Array:
    """Cuts a video into patches, each of which becomes one element.

    Args:
      video: `[B, frames, height, width, C]`.
      patch: Frames, rows and columns of a patch, `(dt, dh, dw)`.

    Returns:
      `[B, frames / dt, height / dh, width / dw, dt * dh * dw * C]`, channels in
      (frame, row, column, channel) order.

    Raises:
      ValueError: The patches do not divide the video.
    """
    batch, *sizes, channels = video.shape
    if any(size % p for size, p in zip(sizes, patch, strict=True)):
        raise Refused(f'Patches of {tuple(patch)} do not divide a video of {tuple(sizes)}.')
    dt, dh, dw = patch
    frames, rows, columns = sizes[0] // dt, sizes[1] // dh, sizes[2] // dw
    cut = video.reshape(batch, frames, dt, rows, dh, columns, dw, channels)
    cut = cut.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(batch, frames, rows, columns, dt * dh * dw * channels)


@dataclasses.dataclass
class FlowInputs(hk.Module):
    """Two frames as one element per pixel: 3x3 patches of both, projected, and where they are.

    Only the contents are projected (`projection`), as in the release and Perceiver IO's table 6;
    its appendix H reads as if the position encoding were too. The rows of its table 3: patches or
    a small convolution that leaves a quarter of either side, and frames that are concatenated, or
    separate elements with a position in time, those of the first frame before those of the second.
    """

    channels: int = 64
    patch_size: int = 3
    num_bands: int = 64
    max_resolution: Sequence[int] = (368, 496)  # per axis; three with separate frames, time first
    contents: str = 'patches'  # or 'conv7x7'
    concatenate_frames: bool = True
    batch_norm_axis: str | None = None  # the mapped axis of `jax.pmap`, to normalise across it
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.contents not in ('patches', 'conv7x7'):
            raise Refused(f"contents must be 'patches' or 'conv7x7', not {self.contents!r}.")
        if len(self.max_resolution) != (2 if self.concatenate_frames else 3):
            raise Refused(
                'max_resolution has an entry for height and width, and one before for time where '
                f'frames are separate; got {tuple(self.max_resolution)}.'
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the elements of a frame, or of both where they are concatenated."""
        shrink = 4 if self.contents == 'conv7x7' else 1
        return -(-height // shrink), -(-width // shrink)

    def __call__(
        self,
        frames: Array,  # [B, 2, height, width, 3]
        *,
        is_training: bool,
    ) -> Array:  # [B, M, C]
        if frames.ndim != 5 or frames.shape[1] != 2:
            raise Refused(f'Frames are [B, 2, height, width, channels]; got {frames.shape}.')
        batch, _, height, width, channels = frames.shape
        grid = self.grid(height, width)
        if not self.concatenate_frames:
            grid = (2, *grid)

        def join(x):  # [2 B, ..., C] -> [B, ..., 2 C] where frames are concatenated
            if not self.concatenate_frames:
                return x
            x = x.reshape(batch, 2, *x.shape[1:])
            return jnp.concatenate([x[:, 0], x[:, 1]], axis=-1)

        images = frames.reshape(2 * batch, height, width, channels)
        if self.contents == 'conv7x7':
            extract = ConvDownsample(self.channels, self.batch_norm_axis, name='conv7x7')
            contents = extract(join(images), is_training=is_training)
        else:
            patches = extract_patches(images, self.patch_size)
            contents = Linear(self.channels, name='projection')(join(patches))
        contents = contents.reshape(batch, -1, self.channels)
        return with_positions(
            contents, grid_fourier_features(grid, self.num_bands, self.max_resolution)
        )


def video_elements(
    video: Array, *, patch: Sequence[int], num_bands: int, max_resolution: Sequence[int]
) -> Array:
    """Patches of a video with Fourier positions in time, height and width.

    Args:
      video: `[B, frames, height, width, C]`.
      patch: Frames, rows and columns of a patch.
      num_bands: Frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis, in patches.

    Returns:
      `[B, M, dt * dh * dw * C + 3 (2 K + 1)]`.

    Raises:
      ValueError: The patches do not divide the video.

    Source: Perceiver, section 4.2; Perceiver IO, section 4.3.
    """
    patches = space_to_depth(video, patch)
    grid = patches.shape[1:4]
    return with_positions(patches, grid_fourier_features(grid, num_bands, max_resolution))


def audio_elements(
    audio: Array, *, samples_per_patch: int, num_bands: int, max_resolution: Sequence[int]
) -> Array:
    """Stretches of raw sound with Fourier positions in time.

    Args:
      audio: `[B, samples, channels]`.
      samples_per_patch: Samples of one element.
      num_bands: K, frequencies.
      max_resolution: Twice the highest frequency, a single entry.

    Returns:
      `[B, samples / samples_per_patch, samples_per_patch * channels + 2 K + 1]`.

    Raises:
      ValueError: The patches do not divide the sound.

    Source: Perceiver, section 4.2; Perceiver IO, section 4.3.
    """
    batch, samples, channels = audio.shape
    if samples % samples_per_patch:
        raise Refused(f'Patches of {samples_per_patch} samples do not divide {samples}.')
    patches = audio.reshape(batch, -1, samples_per_patch * channels)
    grid = patches.shape[1:2]
    return with_positions(patches, grid_fourier_features(grid, num_bands, max_resolution))


def point_elements(points: Array, *, num_bands: int, max_resolution: Sequence[int]) -> Array:
    """Points as input elements: a point's contents are where it is.

    Args:
      points: `[B, M, A]`, coordinates in [-1, 1], 3 of them for a cloud in space.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis.

    Returns:
      `[B, M, A (2 K + 1)]` float32: the coordinates, sines and cosines. Lower precision than
      float32 could not tell apart points that the higher frequencies do.

    Raises:
      ValueError: `points` are no batch of clouds, or have another number of axes.

    Source: Perceiver, section 4.3.
    """
    if points.ndim != 3:
        raise Refused(f'Points are [B, M, coordinates]; got {points.shape}.')
    return fourier_features(jnp.asarray(points), num_bands, max_resolution)


def spectrogram_elements(
    spectrogram: Array, *, patch: Sequence[int], num_bands: int, max_resolution: Sequence[int]
) -> Array:
    """Patches of a spectrogram with Fourier positions.

    Args:
      spectrogram: `[B, frames, bins]`.
      patch: Frames and bins of a patch; (1, 1): each value is an element.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency, in patches: two entries for positions in time
        and in frequency, one for positions along the flattened patches, frame after frame.

    Returns:
      `[B, M, patch values + A (2 K + 1)]`, A the entries of `max_resolution`.

    Raises:
      ValueError: The patches do not divide the spectrogram, or A is not 1 or 2.

    Source: Perceiver, section 4.2; Perceiver IO, table 6 (one axis).
    """
    if any(size % p for size, p in zip(spectrogram.shape[1:], patch, strict=True)):
        raise Refused(
            f'Patches of {tuple(patch)} do not divide a spectrogram of {spectrogram.shape[1:]}.'
        )
    patches = space_to_depth(spectrogram[:, None, :, :, None], (1, *patch))[:, 0]
    if len(max_resolution) == 1:
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
    grid = patches.shape[1:-1]
    return with_positions(patches, grid_fourier_features(grid, num_bands, max_resolution))


@dataclasses.dataclass
class TextInputs(hk.Module):
    """Tokens as vectors: parameter `embeddings` `[vocabulary, C]`, plus `position_encoding`.

    Source: Perceiver IO, section 4.1.
    """

    vocabulary_size: int = 262
    channels: int = 768
    max_length: int = 2048
    name: str | None = None

    def __call__(self, tokens: Array, dtype: str) -> tuple[Array, Array]:
        """`[B, M]` integers, M up to `max_length` -> `[B, M, C]`, and the embeddings."""
        if tokens.ndim != 2 or tokens.shape[1] > self.max_length:
            raise Refused(f'Tokens are [B, at most {self.max_length}]; got {tokens.shape}.')
        shape = (self.vocabulary_size, self.channels)
        init = hk.initializers.TruncatedNormal(1.0)
        embeddings = hk.get_parameter('embeddings', shape, jnp.float32, init)
        positions = LearnedPositions(self.max_length, self.channels, name='position_encoding')()
        # A token that does not exist becomes NaN, not another one.
        rows = jnp.asarray(embeddings).at[tokens]
        rows = rows.get(mode='fill', fill_value=jnp.nan, wrap_negative_indices=False)
        inputs = rows + positions[: tokens.shape[1]]
        return inputs.astype(dtype), embeddings


@dataclasses.dataclass
class JoinModalities(hk.Module):
    """Elements of several modalities as one array, padded to a common width.

    What pads a modality is a learned vector of its own, `<modality>_padding`, which tells the
    modalities apart. With `mask_tokens`, another one (`<modality>_mask_token`) stands in the place
    of hidden elements.
    """

    min_padding: int  # learned channels of the widest modality
    mask_tokens: bool = False
    init_std: float = 0.02
    name: str | None = None

    def __call__(
        self,
        modalities: Mapping[str, Array],  # each [B, M of its own, C of its own]
        hidden: Mapping[str, Array] | None = None,  # of each, [B, M], true: the mask token instead
    ) -> Array:  # [B, sum of M, largest C + min_padding], in the order of `modalities`
        hidden = hidden or {}
        if unknown := hidden.keys() - modalities.keys():
            raise Refused(f'hidden names {sorted(unknown)}; there is {list(modalities)}.')
        width = max(x.shape[-1] for x in modalities.values()) + self.min_padding
        joined = []
        for modality, x in modalities.items():
            x = self.pad(modality, x, width)
            if self.mask_tokens:
                token = self._vector(f'{modality}_mask_token', width).astype(x.dtype)
                if modality in hidden:
                    x = jnp.where(hidden[modality][..., None], token, x)
            elif modality in hidden:
                raise Refused(f'{modality} cannot be hidden without mask_tokens.')
            joined.append(x)
        return jnp.concatenate(joined, axis=1)

    @hk.name_like('__call__')
    def pad(self, modality: str, x: Array, width: int) -> Array:  # [..., C] -> [..., width]
        missing = width - x.shape[-1]
        padding = self._vector(f'{modality}_padding', missing).astype(x.dtype)
        padding = jnp.broadcast_to(padding, (*x.shape[:-1], missing))
        return jnp.concatenate([x, padding], axis=-1)

    @hk.name_like('__call__')
    def _vector(self, name: str, channels: int) -> Array:
        init = hk.initializers.TruncatedNormal(self.init_std)
        return hk.get_parameter(name, (channels,), jnp.float32, init)
