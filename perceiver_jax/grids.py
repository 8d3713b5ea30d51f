"""Elements on a grid, kept as what they are made of: contents, and Fourier features of each axis.

An element of an image is [contents, features of y, features of x]. Written out, 50,176 pixels of
261 channels are 52 MB an image, of which 258 channels are the same in every image and stem from
224 + 224 rows of 129. Attention needs no more than these (`perceiver_jax.grid_parts`).

Source: Perceiver, section 3.2.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.checks import check_entries, check_integers
from perceiver_jax.errors import Refused
from perceiver_jax.layers import check_floating
from perceiver_jax.position_encoding import axis_fourier_features, grid_fourier_features
from perceiver_jax.sharding import for_each_example, reshape_examples


def with_positions(contents: Array, positions: Array) -> Array:
    """Flattens the elements of a grid and appends to each its position.

    Args:
      contents: `[B, ..., C]`, of any floating-point dtype, with as many elements on the axes
        between as there are positions.
      positions: `[M, P]`, cast to the dtype of `contents`.

    Returns:
      `[B, M, C + P]` in the dtype of `contents`.

    Raises:
      Refused: The contents are of another dtype.
    """
    check_floating('with_positions', contents=contents)
    contents = reshape_examples(contents, math.prod(contents.shape[1:-1]), contents.shape[-1])
    positions = for_each_example(positions, contents)
    return jnp.concatenate([contents, positions.astype(contents.dtype)], axis=-1)


def permutation(seed: int, num_elements: int) -> np.ndarray:
    """Returns the fixed shuffle of permuted ImageNet.

    Args:
      seed: Seed of the shuffle.
      num_elements: M.

    Returns:
      Integers `[M]`: element i becomes the former element `order[i]`.

    Raises:
      Refused: It would take more memory than `limits` allows.
    """
    limits.check_bytes('the shuffle of the elements', 8 * num_elements)
    return np.random.default_rng(seed).permutation(num_elements)


class GridPositions(NamedTuple):
    """Fourier positions of a grid: what its tables of features follow from.

    Attributes:
      shape: Grid sizes, slowest first, such as `(height, width)`.
      num_bands: K, the frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis.
      endpoint: See `grid_fourier_features`.
    """

    shape: tuple[int, ...]
    num_bands: int
    max_resolution: tuple[float, ...]
    endpoint: bool = True

    @property
    def channels(self) -> int:
        """Number of features of an element."""
        return len(self.shape) * (2 * self.num_bands + 1)

    def tables(self) -> list[np.ndarray]:
        """Returns the features along each axis, `[size, 1 + 2 K]` float32."""
        return [
            axis_fourier_features(size, self.num_bands, resolution, endpoint=self.endpoint)
            for size, resolution in zip(self.shape, self.max_resolution, strict=True)
        ]

    def of_each_axis(self, x: Array) -> list[Array]:
        """Selects the channels of each axis from those of an element's features.

        Args:
          x: `[..., channels]`: positions of all axes, then sines axis by axis, then cosines.

        Returns:
          `[..., 1 + 2 K]` for each axis, in the order of the tables.
        """
        axes = len(self.shape)
        starts = [(axis, axes + axis * self.num_bands) for axis in range(axes)]
        return [
            jnp.concatenate(
                [
                    x[..., position : position + 1],
                    x[..., sines : sines + self.num_bands],
                    x[..., (cosines := sines + axes * self.num_bands) : cosines + self.num_bands],
                ],
                axis=-1,
            )
            for position, sines in starts
        ]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FourierGrid:
    """Elements on a grid with Fourier positions: `array()` writes them out, `[B, M, C]`.

    Modules that attend take it in place of such an array; `shape`, `ndim` and `dtype` are the
    array's. It is a pytree whose leaves are its arrays.

    Attributes:
      contents: `[B, *grid, C]`, of any floating-point dtype; C may be 0. Where only some rows are
        there, `[B, their number, columns, C]`.
      positions: Where the elements are.
      common: `[P]`, channels behind the positions that all elements share; None: none.
      rows: Integers `[number]`, which rows there are, of all axes but the last flattened; None:
        all of them.
      permutation_seed: Seed of the shuffle of the elements of `array()`; None: no shuffle.
    """

    contents: Array
    positions: GridPositions = dataclasses.field(metadata=dict(static=True))
    _: dataclasses.KW_ONLY
    common: Array | None = None
    rows: Array | None = None
    permutation_seed: int | None = dataclasses.field(default=None, metadata=dict(static=True))

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(B, M, channels)` of the array.

        Raises:
          Refused: The contents are not those of the positions.
        """
        grid = self.positions.shape
        if self.rows is not None:
            grid = (len(self.rows), grid[-1])
        batch, *sides, contents = self.contents.shape
        if tuple(sides) != grid:
            raise Refused(f'Contents of this grid are [B, *{grid}, C]; got {self.contents.shape}.')
        common = 0 if self.common is None else self.common.shape[0]
        return batch, math.prod(grid), contents + self.positions.channels + common

    @property
    def ndim(self) -> int:
        """Number of axes of the array."""
        return 3

    @property
    def dtype(self) -> Any:
        """Dtype of the array."""
        return self.contents.dtype

    def array(self) -> Array:
        """Writes the elements out.

        Returns:
          `[B, M, channels]` in the dtype of the contents: M elements, row after row, or shuffled;
          channels contents, positions, common.
        """
        shape, num_bands, max_resolution, endpoint = self.positions
        elements = None
        if self.rows is not None:
            elements = (self.rows[:, None] * shape[-1] + np.arange(shape[-1])[None]).reshape(-1)
        features = grid_fourier_features(
            shape, num_bands, max_resolution, elements=elements, endpoint=endpoint
        )
        if self.common is not None:
            common = jnp.broadcast_to(self.common, (len(features), *self.common.shape))
            features = jnp.concatenate([features, common], axis=-1)
        array = with_positions(self.contents, features)
        if self.permutation_seed is not None:
            # After the positions are attached: the elements keep what says where they were.
            array = array[:, permutation(self.permutation_seed, array.shape[1])]
        return array


def written_out(x: Array | FourierGrid) -> Array:
    """Returns an array as it is, and that of a grid.

    Args:
      x: Elements.
    """
    return x.array() if isinstance(x, FourierGrid) else x


def fourier_positions(
    shape: Sequence[int], num_bands: int, max_resolution: Sequence[float], endpoint: bool = True
) -> GridPositions:
    """Checks what the Fourier positions of a grid follow from.

    Args:
      shape: Grid sizes, slowest first, such as `(height, width)`.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis.
      endpoint: See `grid_fourier_features`.

    Raises:
      Refused: `max_resolution` does not have an entry for each axis, `num_bands` is no integer, or
        there are more features than `limits` allows.
    """
    check_integers('fourier_positions', num_bands=num_bands)
    of = f'{len(shape)} axes of the grid {tuple(shape)}'
    check_entries('max_resolution', max_resolution, len(shape), of)
    resolutions = tuple(float(mu) for mu in max_resolution)
    positions = GridPositions(tuple(shape), int(num_bands), resolutions, endpoint)
    positions.tables()
    return positions


def fourier_grid(
    contents: Array,
    num_bands: int,
    max_resolution: Sequence[float],
    *,
    permutation_seed: int | None = None,
) -> FourierGrid:
    """Gives the elements of a grid Fourier positions.

    Args:
      contents: `[B, *grid, C]`, of any floating-point dtype.
      num_bands: K, frequencies along each axis.
      max_resolution: Twice the highest frequency along each axis.
      permutation_seed: Seed of a fixed shuffle of the elements; None: no shuffle.

    Returns:
      A grid whose `array()` is `[B, M, C + A (2 K + 1)]`, A the number of axes.

    Raises:
      Refused: `max_resolution` does not have an entry for each axis, `num_bands` is no integer, the
        contents have no grid or another dtype, or there are more features than `limits` allows.
    """
    check_floating('fourier_grid', contents=contents)
    if contents.ndim < 3:
        raise Refused(f'fourier_grid takes contents [B, *grid, C]; got {contents.shape}.')
    positions = fourier_positions(contents.shape[1:-1], num_bands, max_resolution)
    return FourierGrid(contents, positions, permutation_seed=permutation_seed)
