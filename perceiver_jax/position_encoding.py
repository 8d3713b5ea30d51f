"""Says where each input element is: grid positions, Fourier features, learned encodings.

Source: Perceiver, section 3.2 and appendix D; Perceiver IO, appendix D.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.checks import Module, check_axes, check_entries, check_integers
from perceiver_jax.errors import Refused
from perceiver_jax.layers import Linear, check_floating, check_integer_array


def grid_positions(shape: Sequence[int]) -> np.ndarray:
    """Returns the coordinates of a regular grid, from -1 to 1 inclusive along every axis.

    Args:
      shape: Grid sizes, one for each axis, slowest first, such as `(height, width)`.

    Returns:
      `[*shape, len(shape)]` float64; the last axis holds the coordinates in the order of `shape`.
      An axis of size 1 is at -1.

    Raises:
      Refused: `shape` is a single number, or the grid is larger than `limits` allows.

    Source: Perceiver, section 3.2.
    """
    _check_grid('grid_positions', shape=shape)
    limits.check_bytes('the positions of the grid', 8 * math.prod(shape) * len(shape))
    axes = [np.linspace(-1.0, 1.0, size) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)


def fourier_features(
    positions: np.ndarray | Array,
    num_bands: int,
    max_resolution: Sequence[float],
    *,
    concat_positions: bool = True,
    sine_only: bool = False,
) -> np.ndarray | Array:
    """Computes sines and cosines of positions, at frequencies linear from 1 to the Nyquist rate.

    NumPy positions (a grid, known beforehand) are computed in float64 on the host, once, and
    become a constant of the compiled program; jax positions (points of a cloud) are computed
    where they are, in float32 whatever their dtype.

    Beyond [-1, 1] positions alias: 1.2 has the sines of -0.8 at every whole frequency. What lies
    there is refused where the positions are known. Inside `jax.jit` and the like they are not, and
    no error can be raised: scale them before.

    Args:
      positions: `[..., A]` coordinates within [-1, 1], of any floating-point dtype.
      num_bands: K, the frequencies along each axis.
      max_resolution: A resolution mu for each axis, in samples along [-1, 1]; the highest
        frequency is mu / 2.
      concat_positions: Whether the raw positions stand in front.
      sine_only: Whether to leave out the cosines.

    Returns:
      `[..., A * (2 K + 1)]` float32 with the default arguments. Channel order: the raw
      positions, then sin(pi f x) for every axis and within it every band, then all the cosines.

    Raises:
      Refused: If `max_resolution` does not have one entry for each axis, or the positions are of
        another dtype, or known to be beyond [-1, 1] by more than 0.001, or there are more
        frequencies than `limits` allows.

    Source: Perceiver, section 3.2; channel order of DeepMind's release.
    """
    check_positions('fourier_features', positions=positions)
    check_integers('fourier_features', num_bands=num_bands)
    num_axes = positions.shape[-1]
    check_entries('max_resolution', max_resolution, num_axes, f'{num_axes} axes of the positions')
    xp = np if isinstance(positions, np.ndarray) else jnp
    limits.check_bytes('the frequencies of these num_bands', 8 * num_axes * num_bands)
    positions = positions.astype(np.float64 if xp is np else np.float32)
    frequencies = np.stack([np.linspace(1.0, mu / 2, num_bands) for mu in max_resolution])
    frequencies = np.expand_dims(frequencies, tuple(range(positions.ndim - 1)))  # [..., A, K]
    angles = positions[..., None] * frequencies.astype(positions.dtype)
    angles = np.pi * angles.reshape(*positions.shape[:-1], num_axes * num_bands)
    features = [positions] if concat_positions else []
    features.append(xp.sin(angles))
    if not sine_only:
        features.append(xp.cos(angles))
    return xp.concatenate(features, axis=-1).astype(np.float32)


def check_positions(where: str, **positions: np.ndarray | Array) -> None:
    """Checks arrays of coordinates, as far as they are known.

    Args:
      where: What takes the positions, such as 'point_elements'.
      **positions: Name of an argument -> what was given, `[..., A]`; the values of traced arrays
        are not known.

    Raises:
      Refused: One of them is no array of a floating-point dtype, has no axis, or holds a coordinate
        beyond [-1, 1] by more than 0.001: rounding is let through.
    """
    check_floating(where, **positions)
    for name, x in positions.items():
        if not x.ndim:
            raise Refused(f'{where} takes {name} [..., coordinates]; got a single number.')
        if isinstance(x, jax.core.Tracer) or not x.size:
            continue
        farthest = float(np.abs(np.asarray(x)).max())
        if farthest > 1.001:
            raise Refused(
                f'{where} takes {name} within [-1, 1], and one is {farthest:g} away from 0: scale '
                'them, since what lies beyond aliases.'
            )


def _check_grid(where: str, **shapes: Sequence[int]) -> None:
    for name, shape in shapes.items():
        if not np.ndim(shape):
            raise Refused(f'{where} takes {name} as a size for each axis, not {shape!r}.')
        check_integers(where, **{f'{name}[{axis}]': size for axis, size in enumerate(shape)})


def grid_fourier_features(
    shape: Sequence[int],
    num_bands: int,
    max_resolution: Sequence[float],
    *,
    elements: Array | None = None,
    endpoint: bool = True,
) -> Array:
    """Computes the Fourier features of a regular grid where they are used.

    The sines and cosines of each axis are computed in float64 on the host, once: what the
    compiled program holds grows with the sum of the grid's sides, not with their product.

    Args:
      shape: Grid sizes, one for each axis, slowest first, such as `(height, width)`.
      num_bands: K, the frequencies along each axis.
      max_resolution: A resolution mu for each axis, in samples along [-1, 1]; the highest
        frequency is mu / 2.
      elements: Integer indices of elements of the flattened grid, any shape `[...]`; None: all
        elements, in order.
      endpoint: Whether positions run from -1 to 1 inclusive. Otherwise element i of n is at
        -1 + 2 i / n, as in the subsampled queries of DeepMind's release.

    Returns:
      `[prod(shape), A * (2 K + 1)]`, or `[..., A * (2 K + 1)]` with `elements`, float32, channels
      in the order of `fourier_features`.

    Raises:
      Refused: If `max_resolution` does not have one entry for each axis, `elements` are no
        integers, or the axes have more features than `limits` allows.

    Source: Perceiver, section 3.2.
    """
    _check_grid('grid_fourier_features', shape=shape)
    check_integers('grid_fourier_features', num_bands=num_bands)
    num_axes = len(shape)
    of = f'{num_axes} axes of the grid {tuple(shape)}'
    check_entries('max_resolution', max_resolution, num_axes, of)
    if elements is not None:
        check_integer_array('grid_fourier_features', elements=elements)
    rows = []  # for each axis [..., 1 + 2 K]: the position, its sines, its cosines
    for axis, (size, mu) in enumerate(zip(shape, max_resolution, strict=True)):
        table = jnp.asarray(axis_fourier_features(size, num_bands, mu, endpoint=endpoint))
        if elements is None:
            around = [1] * num_axes
            around[axis] = size
            table = jnp.broadcast_to(table.reshape(*around, -1), (*shape, table.shape[-1]))
            rows.append(table.reshape(-1, table.shape[-1]))
        else:
            rows.append(table[jnp.unravel_index(elements, shape)[axis]])
    parts = [slice(0, 1), slice(1, 1 + num_bands), slice(1 + num_bands, None)]
    return jnp.concatenate([row[..., part] for part in parts for row in rows], axis=-1)


@functools.lru_cache(maxsize=64)
def axis_fourier_features(
    size: int, num_bands: int, max_resolution: float, *, endpoint: bool = True
) -> np.ndarray:
    """Computes the Fourier features along one axis of a grid, in float64 on the host, once.

    Args:
      size: Number of positions.
      num_bands: K, the number of frequencies.
      max_resolution: Twice the highest frequency.
      endpoint: See `grid_fourier_features`.

    Returns:
      `[size, 1 + 2 K]` float32, read-only: the position, its sines, its cosines.

    Raises:
      Refused: They would take more memory than `limits` allows.
    """
    needed = 3 * 8 * size * (2 * num_bands + 1)  # with the copies on the way to float32
    limits.check_bytes('Fourier features with these num_bands', needed)
    positions = np.linspace(-1.0, 1.0, size + (not endpoint))[:size, None]
    features = np.asarray(fourier_features(positions, num_bands, [max_resolution]))
    features.flags.writeable = False
    return features


@dataclasses.dataclass
class LearnedPositions(Module):
    """One learned vector for each position.

    Parameters: `positions` `[num_positions, channels]`, and the module `projection` with
    `project_to`.

    Attributes:
      num_positions: Number of vectors.
      channels: Channels of a vector.
      init_std: Standard deviation of the initial vectors, truncated at two of them.
      project_to: Channels of a Linear behind, as in Perceiver IO's learned encoding; None: no
        Linear.
      name: Name of the module.
    """

    num_positions: int
    _: dataclasses.KW_ONLY
    channels: int
    init_std: float = 0.02
    project_to: int | None = None
    name: str | None = None

    def __call__(self) -> Array:
        """Returns the vectors.

        Returns:
          `[num_positions, project_to or channels]` float32.
        """
        shape = (self.num_positions, self.channels)
        init = hk.initializers.TruncatedNormal(self.init_std)
        positions = hk.get_parameter('positions', shape, jnp.float32, init)
        if self.project_to is not None:
            positions = Linear(self.project_to, name='projection')(positions)
        return positions


def resample_positions(
    positions: np.ndarray | Array, grid: Sequence[int], new_grid: Sequence[int]
) -> Array:
    """Interpolates the learned positions of a grid for another grid over the same image.

    Args:
      positions: `[prod(grid), C]`, learned vectors.
      grid: Sizes of the grid that they were learned for, such as `(224, 224)`.
      new_grid: Sizes of the grid that they are needed for, with as many axes.

    Returns:
      `[prod(new_grid), C]`, cubic between the learned vectors, which stand at the centres of their
      elements. No paper states how; our choice: deviations.md#learned-positions.

    Raises:
      Refused: There are not as many positions as the grid has, the axes differ in number, or the
        positions are not `[prod(grid), C]` of a floating-point dtype.
    """
    check_floating('resample_positions', positions=positions)
    check_axes('resample_positions', positions=(positions, 'M C'))
    _check_grid('resample_positions', grid=grid, new_grid=new_grid)
    if positions.shape[0] != np.prod(grid) or len(grid) != len(new_grid):
        raise Refused(
            f'{positions.shape[0]} positions of the grid {tuple(grid)} cannot be resampled to '
            f'{tuple(new_grid)}.'
        )
    channels = positions.shape[-1]
    resampled = jax.image.resize(
        jnp.asarray(positions).reshape(*grid, channels), (*new_grid, channels), 'cubic'
    )
    return resampled.reshape(-1, channels)
