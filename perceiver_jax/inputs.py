"""What becomes the byte array `[B, M, C]`: images, frames, video, sound, points, bytes of text.

An element is its contents and its position encoding side by side; text alone adds the two.

Source: Perceiver, sections 4.1 to 4.3; Perceiver IO, section 4.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.checks import (
    Module,
    build,
    check_axes,
    check_entries,
    check_integers,
)
from perceiver_jax.convolution import ConvDownsample, ConvStem
from perceiver_jax.errors import Refused
from perceiver_jax.grids import FourierGrid, fourier_grid, permutation, with_positions, written_out
from perceiver_jax.layers import Linear, check_floating, check_integer_array
from perceiver_jax.position_encoding import (
    LearnedPositions,
    check_positions,
    fourier_features,
)
from perceiver_jax.sharding import (
    laid_out_alike,
    reshape_examples,
    sharding_like,
    varying_like,
    with_examples,
)

SHRINK = 4  # pixels of either side of what the 7x7 convolution and its max-pooling leave

_T = TypeVar('_T')
_Elements = TypeVar('_Elements', Array, FourierGrid)


@dataclasses.dataclass
class ImageInputs(Module):
    """An image as input elements: one per pixel, or per position of a small convolution.

    The position encoding is concatenated to the contents.

    Parameters: module `conv1x1` or `conv7x7`, by `contents`; module `position_encoding` where
    positions are learned.

    Attributes:
      contents: 'pixels', raw; 'conv1x1', a Linear of each pixel; or 'conv7x7', a convolution with
        batch normalisation and max-pooling that leaves a quarter of either side.
      contents_channels: Output channels of either convolution; None with 'pixels'.
      positions: 'fourier', 'learned', or 'none' for contents alone.
      num_bands: Fourier positions: frequencies along each axis; None with others.
      max_resolution: Fourier positions: twice the highest frequency along height and width; None
        with others.
      position_channels: Learned positions: channels of an encoding; None with others.
      position_init_std: Learned positions: standard deviation of the initial encodings; None with
        others.
      project_positions_to: Learned positions: channels of a Linear behind; None: no Linear.
      permutation_seed: Seed of one fixed shuffle of the elements; None: no shuffle.
      as_array: Fourier positions: whether the elements are written out. Attention to a grid never
        looks at their order, and a shuffle is not even carried out; here it is.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that the batch statistics of 'conv7x7'
        are averaged across; None: only over the batch at hand.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    contents: str = 'pixels'
    contents_channels: int | None = None
    positions: str = 'fourier'
    num_bands: int | None = None
    max_resolution: Sequence[int] | None = None
    position_channels: int | None = None
    position_init_std: float | None = None
    project_positions_to: int | None = None
    permutation_seed: int | None = None
    as_array: bool = False
    batch_norm_axis: str | None = None
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        needs = {
            'pixels': (),
            'conv1x1': ('contents_channels',),
            'conv7x7': ('contents_channels',),
            'fourier': ('num_bands', 'max_resolution'),
            'learned': ('position_channels', 'position_init_std'),
            'none': (),
        }
        if self.contents not in ('pixels', 'conv1x1', 'conv7x7'):
            raise Refused(
                f"contents must be 'pixels', 'conv1x1' or 'conv7x7', not {self.contents!r}."
            )
        if self.positions not in ('fourier', 'learned', 'none'):
            raise Refused(
                f"positions must be 'fourier', 'learned' or 'none', not {self.positions!r}."
            )
        for field in (*needs[self.contents], *needs[self.positions]):
            if getattr(self, field) is None:
                raise Refused(f'{self.contents} with {self.positions} positions needs {field}.')
        if self.positions == 'fourier':
            check_entries('max_resolution', self.max_resolution, 2, '2 axes of an image')

    def __call__(
        self, images: Array, input_mask: Array | None = None, *, is_training: bool
    ) -> Array | FourierGrid:
        """Makes input elements of images.

        Args:
          images: `[B, height, width, channels]`, of any floating-point dtype.
          input_mask: Boolean `[B, M]`, true for the elements that will be attended to; None: all.
            What the other pixels hold does not reach the gradient of 'conv1x1', even NaN; the
            window of 'conv7x7' also looks at neighbours, and its statistics at all pixels.
          is_training: Whether 'conv7x7' uses batch statistics, and updates running averages.

        Returns:
          `[B, M, C]` in the dtype of `images`: M elements, row after row (shuffled with a
          permutation); C channels, contents before positions. With Fourier positions as a grid,
          whose `array()` it is, unless `as_array`.

        Raises:
          Refused: If `images` or `input_mask` have another shape, or `images` another dtype.
        """
        check_floating('ImageInputs', images=images)
        check_axes('ImageInputs', images=(images, 'B height width channels'))
        if self.contents == 'conv7x7':
            conv = ConvDownsample(
                _given(self.contents_channels), batch_norm_axis=self.batch_norm_axis, name='conv7x7'
            )
            images = conv(images, is_training=is_training)
        elif self.contents == 'conv1x1':
            if input_mask is not None:
                images = self._without_masked(images, input_mask)
            images = Linear(_given(self.contents_channels), name='conv1x1')(images)
        if self.positions == 'fourier':
            grid = fourier_grid(
                images,
                _given(self.num_bands),
                _given(self.max_resolution),
                permutation_seed=self.permutation_seed,
            )
            return grid.array() if self.as_array else grid
        num_elements = math.prod(images.shape[1:3])
        if self.positions == 'none':
            inputs = reshape_examples(images, num_elements, images.shape[-1])
        else:
            encode = LearnedPositions(
                num_elements,
                channels=_given(self.position_channels),
                init_std=_given(self.position_init_std),
                project_to=self.project_positions_to,
                name='position_encoding',
            )
            inputs = with_positions(images, encode())
        if self.permutation_seed is not None:
            inputs = inputs[:, permutation(self.permutation_seed, num_elements)]
        return inputs

    def _without_masked(self, images: Array, input_mask: Array) -> Array:
        images, input_mask = laid_out_alike(images, input_mask)
        if input_mask.shape != (elements := (len(images), math.prod(images.shape[1:3]))):
            raise Refused(f'The input mask is [B, M] = {elements}; got {input_mask.shape}.')
        if self.permutation_seed is not None:
            order = permutation(self.permutation_seed, input_mask.shape[1])
            input_mask = input_mask[:, np.argsort(order)]
        pixels = reshape_examples(input_mask, *images.shape[1:3], 1).astype(bool)
        return jnp.where(pixels, images, 0)


def _given(value: _T | None) -> _T:
    """A field that `__post_init__` found to be set."""
    assert value is not None
    return value


def as_images(values: np.ndarray, permutation_seed: int | None = None) -> np.ndarray:
    """Puts values of input elements, such as attention, where the elements are in a square image.

    Args:
      values: `[..., M]`, one value for each element.
      permutation_seed: The `permutation_seed` of `ImageInputs`, whose shuffle is undone; None: no
        shuffle.

    Returns:
      `[..., side, side]`, with side * side = M.
    """
    if permutation_seed is not None:
        shuffled, values = values, np.empty_like(values)
        values[..., permutation(permutation_seed, values.shape[-1])] = shuffled
    side = math.isqrt(values.shape[-1])
    return values.reshape(*values.shape[:-1], side, side)


def extract_patches(images: Array, size: int) -> Array:
    """Extracts the neighbourhood of every pixel, with zeros beyond the border.

    Args:
      images: `[B, height, width, C]`.
      size: Side of the neighbourhood in pixels, odd.

    Returns:
      `[B, height, width, size * size * C]`, channels in (row, column, channel) order.

    Raises:
      Refused: If `size` is even or absurdly large, or the images have other axes.
    """
    check_axes('extract_patches', images=(images, 'B height width C'))
    check_integers('extract_patches', size=size)
    if size % 2 == 0:
        raise Refused(f'A patch around a pixel has an odd side, not {size}.')
    limits.check_steps('pixels in a patch', size**2)
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
      Refused: The patches do not divide the video, or have or find other axes.
    """
    check_axes('space_to_depth', video=(video, 'B frames height width C'))
    _check_patch(patch, '3 axes of a video: frames, rows and columns')
    _, *sizes, channels = video.shape
    if any(size % p for size, p in zip(sizes, patch, strict=True)):
        raise Refused(f'Patches of {tuple(patch)} do not divide a video of {tuple(sizes)}.')
    dt, dh, dw = patch
    frames, rows, columns = sizes[0] // dt, sizes[1] // dh, sizes[2] // dw
    cut = reshape_examples(video, frames, dt, rows, dh, columns, dw, channels)
    cut = cut.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return reshape_examples(cut, frames, rows, columns, dt * dh * dw * channels)


def _check_patch(patch: Sequence[int], of: str) -> None:
    check_entries('patch', patch, int(of.split()[0]), of)
    if not all(size > 0 for size in patch):
        raise Refused(f'A patch has at least one element along each axis, not {tuple(patch)}.')


@dataclasses.dataclass
class FlowInputs(Module):
    """Two frames as input elements, by default one per pixel: projected 3x3 patches of both frames.

    Only the contents are projected, as in the release and Perceiver IO's table 6; its appendix H
    reads as if the position encoding were too. The fields express the rows of its table 3.

    Parameters: module `projection` or `conv7x7`, by `contents`.

    Attributes:
      channels: Channels of an element's contents.
      patch_size: Side of a patch in pixels, odd.
      num_bands: Frequencies of the Fourier positions along each axis.
      max_resolution: Twice the highest frequency along height and width; where frames are
        separate, three entries, time first.
      contents: 'patches', a Linear of the patch around each pixel; or 'conv7x7', a convolution
        that leaves a quarter of either side.
      concatenate_frames: Whether an element holds both frames; otherwise each frame has elements
        of its own with a position in time, those of the first frame before those of the second.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that the batch statistics of 'conv7x7'
        are averaged across; None: only over the batch at hand.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    channels: int = 64
    patch_size: int = 3
    num_bands: int = 64
    max_resolution: Sequence[int] = (368, 496)
    contents: str = 'patches'
    concatenate_frames: bool = True
    batch_norm_axis: str | None = None
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.contents not in ('patches', 'conv7x7'):
            raise Refused(f"contents must be 'patches' or 'conv7x7', not {self.contents!r}.")
        if np.shape(self.max_resolution) != (2 if self.concatenate_frames else 3,):
            raise Refused(
                'max_resolution has an entry for height and width, and one before for time where '
                f'frames are separate; got {self.max_resolution}.'
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of the elements of a frame, or of both concatenated frames.

        Args:
          height: Height of a frame in pixels.
          width: Width of a frame in pixels.
        """
        shrink = SHRINK if self.contents == 'conv7x7' else 1
        return -(-height // shrink), -(-width // shrink)

    def __call__(self, frames: Array, *, is_training: bool) -> FourierGrid:
        """Makes input elements of pairs of frames.

        Args:
          frames: `[B, 2, height, width, channels]`, of any floating-point dtype.
          is_training: Whether 'conv7x7' uses batch statistics, and updates running averages.

        Returns:
          A grid whose `array()` is `[B, M, C]` in the dtype of `frames`: M elements, row after
          row; C channels, contents before positions.

        Raises:
          Refused: If `frames` are no pairs of images, or of another dtype.
        """
        check_floating('FlowInputs', frames=frames)
        check_axes('FlowInputs', frames=(frames, 'B 2 height width channels'))
        batch, _, height, width, channels = frames.shape
        rows, columns = self.grid(height, width)
        grid = (rows, columns) if self.concatenate_frames else (2, rows, columns)

        def join(x):  # [2 B, ..., C] -> [B, ..., 2 C] where frames are concatenated
            if not self.concatenate_frames:
                return x
            x = x.reshape(batch, 2, *x.shape[1:])
            return jnp.concatenate([x[:, 0], x[:, 1]], axis=-1)

        images = frames.reshape(2 * batch, height, width, channels)
        if self.contents == 'conv7x7':
            conv = ConvDownsample(
                self.channels, batch_norm_axis=self.batch_norm_axis, name='conv7x7'
            )
            contents = conv(join(images), is_training=is_training)
        else:
            patches = extract_patches(images, self.patch_size)
            contents = Linear(self.channels, name='projection')(join(patches))
        contents = contents.reshape(batch, *grid, self.channels)
        return fourier_grid(contents, self.num_bands, self.max_resolution)


def video_elements(
    video: Array, *, patch: Sequence[int], num_bands: int, max_resolution: Sequence[int]
) -> FourierGrid:
    """Cuts a video into patches with Fourier positions in time, height and width.

    Args:
      video: `[B, frames, height, width, C]`, of any floating-point dtype.
      patch: Frames, rows and columns of a patch, `(dt, dh, dw)`.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis, in patches.

    Returns:
      A grid whose `array()` is `[B, M, dt * dh * dw * C + 3 (2 K + 1)]` in the dtype of `video`.

    Raises:
      Refused: The patches do not divide the video, an argument has other axes, or the video is of
        another dtype.

    Source: Perceiver, section 4.2; Perceiver IO, section 4.3.
    """
    check_floating('video_elements', video=video)
    return fourier_grid(space_to_depth(video, patch), num_bands, max_resolution)


def audio_elements(
    audio: Array,
    *,
    samples_per_patch: int,
    num_bands: int,
    max_resolution: Sequence[int],
    hop: int | None = None,
) -> Array:
    """Cuts raw sound into stretches with Fourier positions in time.

    Args:
      audio: `[B, samples, channels]`, of any floating-point dtype.
      samples_per_patch: Samples of one element.
      num_bands: K, frequencies.
      max_resolution: Twice the highest frequency, a single entry.
      hop: Samples from the start of an element to that of the next, a divisor of
        `samples_per_patch`: where it is less, elements overlap, which is not in the papers. None:
        `samples_per_patch`.

    Returns:
      `[B, M, samples_per_patch * channels + 2 K + 1]` in the dtype of `audio`, where M is
      `(samples - samples_per_patch) / hop + 1`.

    Raises:
      Refused: The patches do not divide the sound, or the hop a patch, an argument has other axes,
        or the sound is of another dtype.

    Source: Perceiver, section 4.2; Perceiver IO, section 4.3.
    """
    check_floating('audio_elements', audio=audio)
    check_axes('audio_elements', audio=(audio, 'B samples channels'))
    check_integers('audio_elements', samples_per_patch=samples_per_patch)
    if samples_per_patch < 1:
        raise Refused(f'samples_per_patch must be at least 1, not {samples_per_patch}.')
    hop = samples_per_patch if hop is None else hop
    check_integers('audio_elements', hop=hop)
    if hop < 1 or samples_per_patch % hop:
        raise Refused(f'A hop of {hop} samples does not divide patches of {samples_per_patch}.')
    _, samples, channels = audio.shape
    if samples % hop or samples < samples_per_patch:
        what = f'Patches of {samples_per_patch}' if hop == samples_per_patch else f'Hops of {hop}'
        raise Refused(f'{what} samples do not divide {samples}.')
    parts = reshape_examples(audio, -1, hop * channels)
    per_patch = samples_per_patch // hop
    last = parts.shape[1] - per_patch + 1
    patches = jnp.concatenate([parts[:, i : last + i] for i in range(per_patch)], axis=-1)
    return fourier_grid(patches, num_bands, max_resolution).array()


def point_elements(points: Array, *, num_bands: int, max_resolution: Sequence[int]) -> Array:
    """Makes an input element of each point: its contents are where it is.

    Args:
      points: `[B, M, A]`, coordinates in [-1, 1], 3 of them for a cloud in space, of any
        floating-point dtype. Points beyond alias; they are refused where they are known, which they
        are not inside `jax.jit` and the like.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis.

    Returns:
      `[B, M, A (2 K + 1)]` float32: the coordinates, sines and cosines. Lower precision than
      float32 could not tell apart points that the higher frequencies do.

    Raises:
      Refused: If `points` are no batch of clouds, of another dtype or known to be beyond [-1, 1],
        or `max_resolution` does not have A entries.

    Source: Perceiver, section 4.3.
    """
    check_positions('point_elements', points=points)
    check_axes('point_elements', points=(points, 'B M coordinates'))
    return jnp.asarray(fourier_features(jnp.asarray(points), num_bands, max_resolution))


def spectrogram_elements(
    spectrogram: Array,
    *,
    patch: Sequence[int],
    num_bands: int,
    max_resolution: Sequence[int],
    stem: Mapping[str, Any] | None = None,
) -> Array | FourierGrid:
    """Cuts a spectrogram into patches with Fourier positions.

    Args:
      spectrogram: `[B, frames, bins]`, of any floating-point dtype.
      patch: Frames and bins of a patch; (1, 1): each value is an element.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency, in patches: two entries for positions in time
        and in frequency, one for positions along the flattened patches, frame after frame.
      stem: Fields of a `ConvStem` that reads the spectrogram, and whose output is cut in its place;
        only where Haiku transforms. None, as in the papers: there is none.

    Returns:
      `[B, M, patch values + A (2 K + 1)]` in the dtype of `spectrogram`, A the entries of
      `max_resolution`; where they are two, as a grid, whose `array()` it is.

    Raises:
      Refused: The patches do not divide the spectrogram, an argument has other axes, the
        spectrogram is of another dtype, or A is not 1 or 2.

    Source: Perceiver, section 4.2; Perceiver IO, table 6 (one axis).
    """
    check_floating('spectrogram_elements', spectrogram=spectrogram)
    check_axes('spectrogram_elements', spectrogram=(spectrogram, 'B frames bins'))
    _check_patch(patch, '2 axes of a spectrogram: frames and bins')
    values = spectrogram[..., None]
    if stem is not None:
        values = build(ConvStem, stem, name='stem')(values)
    sizes = values.shape[1:3]
    if any(size % p for size, p in zip(sizes, patch, strict=True)):
        raise Refused(f'Patches of {tuple(patch)} do not divide a spectrogram of {sizes}.')
    patches = space_to_depth(values[:, None], (1, *patch))[:, 0]
    if np.shape(max_resolution) == (1,):
        patches = reshape_examples(patches, -1, patches.shape[-1])
        return fourier_grid(patches, num_bands, max_resolution).array()
    return fourier_grid(patches, num_bands, max_resolution)


@dataclasses.dataclass
class TextInputs(Module):
    """Tokens as learned vectors, plus learned positions.

    Parameters: `embeddings` `[vocabulary_size, channels]`, module `position_encoding`.

    Source: Perceiver IO, section 4.1.

    Attributes:
      vocabulary_size: Number of tokens.
      channels: C.
      max_length: Number of positions, the longest sequence.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    vocabulary_size: int = 262
    channels: int = 768
    max_length: int = 2048
    name: str | None = None

    def __call__(self, tokens: Array, dtype: str) -> tuple[Array, Array]:
        """Makes input elements of tokens.

        Args:
          tokens: Integers `[B, M]`, M up to `max_length`. A token that does not exist becomes NaN.
          dtype: Dtype of the elements.

        Returns:
          Elements `[B, M, C]` in `dtype`, and the embeddings `[vocabulary_size, C]` float32.

        Raises:
          Refused: There are more tokens than positions, or they are no integers.
        """
        check_integer_array('TextInputs', tokens=tokens)
        if tokens.ndim != 2 or tokens.shape[1] > self.max_length:
            raise Refused(f'Tokens are [B, at most {self.max_length}]; got {tokens.shape}.')
        shape = (self.vocabulary_size, self.channels)
        init = hk.initializers.TruncatedNormal(1.0)
        embeddings = hk.get_parameter('embeddings', shape, jnp.float32, init)
        positions = LearnedPositions(
            self.max_length, channels=self.channels, name='position_encoding'
        )()
        # A token that does not exist becomes NaN, not another one.
        vectors = (
            jnp.asarray(embeddings)
            .at[tokens]
            .get(
                mode='fill',
                fill_value=jnp.nan,
                wrap_negative_indices=False,
                out_sharding=sharding_like(tokens, 3),
            )
        )
        return (vectors + positions[None, : tokens.shape[1]]).astype(dtype), embeddings


@dataclasses.dataclass
class JoinModalities(Module):
    """Elements of several modalities as one array, padded to a common width.

    What pads a modality is a learned vector of its own, which tells the modalities apart.

    Parameters: `<modality>_padding` for each modality, and `<modality>_mask_token` with
    `mask_tokens`.

    Attributes:
      min_padding: Learned channels of the widest modality; the others have more.
      mask_tokens: Whether there are learned vectors to stand in the place of hidden elements.
      init_std: Standard deviation of the initial vectors, truncated at two of them.
      name: Name of the module.
    """

    min_padding: int
    _: dataclasses.KW_ONLY
    mask_tokens: bool = False
    init_std: float = 0.02
    name: str | None = None

    def __call__(
        self,
        modalities: Mapping[str, Array | FourierGrid],
        hidden: Mapping[str, Array] | None = None,
    ) -> Array:
        """Pads and concatenates the modalities.

        Args:
          modalities: Name -> elements `[B, M, C]` or a grid of them, M and C those of the modality,
            of any floating-point dtype.
          hidden: Name -> boolean `[B, M]`, true for elements that the mask token replaces; None or
            a name that is left out: nothing is hidden.

        Returns:
          `[B, sum of M, largest C + min_padding]`, in the order of `modalities`.

        Raises:
          Refused: If there are no modalities, `hidden` names one that is not there, there are no
            mask tokens, or arrays have other axes or another dtype.
        """
        hidden = hidden or {}
        if not hasattr(modalities, 'values') or not modalities:
            raise Refused(f'JoinModalities takes a mapping of modalities, not {modalities!r:.60}.')
        for modality, x in modalities.items():
            check_axes('JoinModalities', **{modality: (x, 'B M C')})
        if unknown := hidden.keys() - modalities.keys():
            raise Refused(f'hidden names {sorted(unknown)}; there is {list(modalities)}.')
        width = max(x.shape[-1] for x in modalities.values()) + self.min_padding
        joined = []
        alike = laid_out_alike(*map(written_out, modalities.values()))
        for modality, x in zip(modalities, alike, strict=True):
            x = self.pad(modality, x, width)
            if self.mask_tokens:
                token = self._vector(f'{modality}_mask_token', width).astype(x.dtype)
                if modality in hidden:
                    check_axes(
                        'JoinModalities', elements=(x, 'B M C'), hidden=(hidden[modality], 'B M')
                    )
                    is_hidden = with_examples(jnp.asarray(hidden[modality]), x)[..., None]
                    x = jnp.where(is_hidden, jax.lax.broadcast_to_rank(token, x.ndim), x)
            elif modality in hidden:
                raise Refused(f'{modality} cannot be hidden without mask_tokens.')
            joined.append(x)
        return jnp.concatenate(joined, axis=1)

    @hk.name_like('__call__')
    def pad(self, modality: str, x: _Elements, width: int) -> _Elements:
        """Appends a modality's learned padding to each of its elements.

        Args:
          modality: Name of the modality.
          x: `[..., C]`, elements of the modality, or a grid of them.
          width: Channels of the result.

        Returns:
          `[..., width]` in the dtype of `x`; a grid where `x` is one.

        Raises:
          Refused: `x` is not of a floating-point dtype.
        """
        check_floating('JoinModalities', **{modality: x})
        missing = width - x.shape[-1]
        padding = self._vector(f'{modality}_padding', missing).astype(x.dtype)
        if isinstance(x, FourierGrid):
            return dataclasses.replace(x, common=padding)
        sharding = sharding_like(x, x.ndim, leading=x.ndim - 1)
        padding = varying_like(padding, x)
        padding = jnp.broadcast_to(padding, (*x.shape[:-1], missing), out_sharding=sharding)
        return jnp.concatenate([x, padding], axis=-1)

    @hk.name_like('__call__')
    def _vector(self, name: str, channels: int) -> Array:
        init = hk.initializers.TruncatedNormal(self.init_std)
        return hk.get_parameter(name, (channels,), jnp.float32, init)
