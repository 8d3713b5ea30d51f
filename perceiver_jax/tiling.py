"""Optical flow of frames of any size, by a model of one size: tiles, and from coarse to fine.

Source: Perceiver IO, section 4.2 and appendix H; DeepMind's notebook for optical flow.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.checks import check_axes, check_entries, check_integers
from perceiver_jax.errors import Refused

_SIDES = '2 sides, height and width'


def even_tiles(size: int, tile: int, min_overlap: int = 20) -> list[int]:
    """Returns where tiles along one axis start: as few as overlap enough, evenly spaced.

    This is the paper's way: "evenly-spaced tiles".

    Args:
      size: Pixels to cover.
      tile: Pixels of a tile.
      min_overlap: Smallest overlap of neighbouring tiles in pixels.

    Returns:
      First pixel of each tile, ascending.

    Raises:
      Refused: Not 0 <= min_overlap < tile <= size.
    """
    _check_sizes(size, tile, min_overlap)
    number = math.ceil((size - min_overlap) / (tile - min_overlap))
    return [round(start) for start in np.linspace(0, size - tile, number)]


def deepmind_tiles(size: int, tile: int, min_overlap: int = 20) -> list[int]:
    """Returns where tiles along one axis start: with the smallest overlap, the last at the end.

    This is the way of DeepMind's notebook: the last tile ends where the axis does, so it may
    overlap more.

    Args:
      size: Pixels to cover.
      tile: Pixels of a tile.
      min_overlap: Smallest overlap of neighbouring tiles in pixels.

    Returns:
      First pixel of each tile, ascending.

    Raises:
      Refused: Not 0 <= min_overlap < tile <= size.
    """
    _check_sizes(size, tile, min_overlap)
    return [*range(0, size - tile, tile - min_overlap), size - tile]


def _check_sizes(size: int, tile: int, min_overlap: int) -> None:
    check_integers('tiles', size=size, tile=tile, min_overlap=min_overlap)
    if not 0 <= min_overlap < tile <= size:
        raise Refused(
            f'tiles need 0 <= min_overlap < tile <= size, got min_overlap={min_overlap}, '
            f'tile={tile}, size={size}'
        )


def tile_corners(
    size: Sequence[int], tile: Sequence[int], placement: str = 'even', min_overlap: int = 20
) -> list[tuple[int, int]]:
    """Returns the top left corners of the tiles that cover a frame.

    Args:
      size: Height and width of the frame in pixels, at least those of a tile.
      tile: Height and width of a tile in pixels.
      placement: 'even' (the paper) or 'deepmind' (DeepMind's notebook).
      min_overlap: Smallest overlap of neighbouring tiles in pixels.

    Returns:
      (top, left) of each tile in pixels, row by row.

    Raises:
      Refused: The placement is unknown, `size` or `tile` is no pair, or a tile is larger than the
        frame or not larger than the overlap.
    """
    check_entries('size', size, 2, _SIDES)
    check_entries('tile', tile, 2, _SIDES)
    placements = {'even': even_tiles, 'deepmind': deepmind_tiles}
    if placement not in placements:
        raise Refused(f'placement must be one of {[*placements]}, got {placement!r}')
    starts = placements[placement]
    (height, width), (tile_height, tile_width) = size, tile
    tops = starts(height, tile_height, min_overlap)
    lefts = starts(width, tile_width, min_overlap)
    return [(top, left) for top in tops for left in lefts]


def flow_of_tiles(
    function: Callable[[Array], Array],
    frames: Array,
    corners: Array,
    is_tile: Array,
    tile: tuple[int, int],
    tiles_at_once: int = 1,
) -> Array:
    """Returns the flow of a batch of frames from that of their tiles, inside a compiled function.

    The result is that of `tiled`. The places of the tiles are data, so that frames of several
    sizes, padded to one, go through one compiled function.

    Args:
      function: Model: frames `[B * tiles_at_once, 2, h, w, 3]` -> flow
        `[B * tiles_at_once, h, w, 2]` in pixels.
      frames: Pairs of frames, `[B, 2, H, W, 3]`, at least as large as a tile.
      corners: Top and left of each frame's T tiles in pixels, integers `[B, T, 2]`.
      is_tile: Mask of the tiles, bool `[B, T]`: false for padding, which is ignored.
      tile: Height and width of a tile in pixels, (h, w).
      tiles_at_once: Number of tiles of each frame that the model takes at once; more take more
        memory.

    Returns:
      Flow in pixels, float32 `[B, H, W, 2]`: (u, v) = (right, down); 0 where there is no tile.

    Raises:
      Refused: An array has other axes, or `tile` is no pair.
    """
    check_axes(
        'flow_of_tiles',
        frames=(frames, 'B 2 H W C'),
        corners=(corners, 'B T 2'),
        is_tile=(is_tile, 'B T'),
    )
    check_entries('tile', tile, 2, _SIDES)
    batch, _, *size, channels = frames.shape
    missing = -corners.shape[1] % tiles_at_once
    corners = jnp.pad(corners, ((0, 0), (0, missing), (0, 0)), mode='edge')
    is_tile = jnp.pad(is_tile, ((0, 0), (0, missing)))
    weights = jnp.asarray(_distance_to_edge(*tile)[None, None, ..., None], jnp.float32)

    def in_groups(x):  # [B, T, ...] -> [groups, B, tiles_at_once, ...]
        groups = x.shape[1] // tiles_at_once
        return jnp.moveaxis(x.reshape(batch, groups, tiles_at_once, *x.shape[2:]), 1, 0)

    def cut(frames, corner):  # [2, H, W, 3], [2] -> [2, h, w, 3]
        return jax.lax.dynamic_slice(frames, (0, *corner, 0), (2, *tile, channels))

    def add(total, part, corner):  # [H, W, C], [h, w, C], [2]
        start = (*corner, 0)
        before = jax.lax.dynamic_slice(total, start, part.shape)
        return jax.lax.dynamic_update_slice(total, before + part, start)

    def add_group(total, group):  # total [B, H, W, 3]: u, v and the weights
        corners, counts = group
        tiles = jax.vmap(jax.vmap(cut, (None, 0)))(frames, corners)
        flow = function(tiles.reshape(batch * tiles_at_once, *tiles.shape[2:]))
        flow = flow.reshape(*tiles.shape[:2], *tile, 2)
        ones = jnp.ones((*flow.shape[:-1], 1), flow.dtype)
        parts = jnp.concatenate([flow, ones], -1) * weights * counts[..., None, None, None]
        for i in range(tiles_at_once):
            total = jax.vmap(add)(total, parts[:, i], corners[:, i])
        return total, None

    total = jnp.zeros((batch, *size, 3), jnp.float32)
    total, _ = jax.lax.scan(add_group, total, (in_groups(corners), in_groups(is_tile)))
    return total[..., :2] / jnp.maximum(total[..., 2:], 1)


def coarse_to_fine(
    estimate: Callable[[Array, int], Array], frames: Array, factors: Sequence[int]
) -> Array:
    """Returns the flow of frames that are first shrunk, refined on larger and larger ones.

    At each size the second frame is warped by the flow so far, so that the model sees what is left
    of the motion: one that was trained on slow motion sees fast one too. Not in the papers.

    Args:
      estimate: Model: frames `[B, 2, h, w, C]` and the place in `factors` -> flow `[B, h, w, 2]` in
        pixels of these frames, whose sides are H and W by the factor, rounded up.
      frames: Pairs of frames, `[B, 2, H, W, C]`, of any floating-point dtype.
      factors: By what the frames are shrunk, one after the other: each a multiple of the next, the
        last 1. A factor that is there twice refines twice; (1,) is the model alone.

    Returns:
      Flow in pixels, float32 `[B, H, W, 2]`: (u, v) = (right, down).

    Raises:
      Refused: The frames have other axes, or the factors are no such numbers.
    """
    check_axes('coarse_to_fine', frames=(frames, 'B 2 H W C'))
    check_factors('factors', factors)
    height, width = frames.shape[2:4]
    below, right = (-side % factors[0] for side in (height, width))
    frames = jnp.pad(frames, ((0, 0), (0, 0), (0, below), (0, right), (0, 0)), mode='edge')
    flow, last = None, factors[0]
    for place, factor in enumerate(factors):
        first, second = jnp.moveaxis(_shrunk(frames, factor), 1, 0)
        if flow is not None:
            flow = jax.image.resize(flow, (*first.shape[:3], 2), 'linear') * (last / factor)
            second = warp(second, flow)
        size = -(-height // factor), -(-width // factor)
        rest = estimate(jnp.stack([first, second], axis=1)[:, :, : size[0], : size[1]], place)
        fill = [(0, whole - side) for whole, side in zip(first.shape[1:3], size, strict=True)]
        rest = jnp.pad(rest, ((0, 0), *fill, (0, 0)), mode='edge')
        flow = rest if flow is None else rest + warp(flow, rest)
        last = factor
    assert flow is not None
    return flow[:, :height, :width]


def check_factors(name: str, factors: Sequence[int]) -> None:
    """Checks by what frames are shrunk, see `coarse_to_fine`.

    Args:
      name: What they are called, for the message.
      factors: The factors.

    Raises:
      Refused: They are no whole numbers, each a multiple of the next, the last 1.
    """
    fits = len(factors) > 0 and all(isinstance(x, int | np.integer) and x > 0 for x in factors)
    if not fits or factors[-1] != 1 or any(x % y for x, y in itertools.pairwise(factors)):
        raise Refused(
            f'{name}: expected whole numbers, each a multiple of the next and the last 1, such as '
            f'(4, 2, 1), got {tuple(factors)}'
        )


def _shrunk(frames: Array, factor: int) -> Array:
    """Averages squares of pixels: `[B, 2, H, W, C]` -> `[B, 2, H / factor, W / factor, C]`."""
    *batch, height, width, channels = frames.shape
    shape = (*batch, height // factor, factor, width // factor, factor, channels)
    return frames.reshape(shape).mean((-4, -2))


def warp(values: Array, flow: Array) -> Array:
    """Looks values up where a flow ends, such as those of a second frame.

    Args:
      values: Values, floating-point `[B, H, W, C]`.
      flow: Flow in pixels, `[B, H, W, 2]`: (u, v) = (right, down).

    Returns:
      Values `[B, H, W, C]`, interpolated bilinearly; beyond the rim, those of the rim.

    Raises:
      Refused: An array has other axes.
    """
    check_axes('warp', values=(values, 'B H W C'), flow=(flow, 'B H W 2'))
    rows, columns = jnp.indices(values.shape[1:3], dtype=flow.dtype, sparse=True)
    ends = rows[None] + flow[..., 1], columns[None] + flow[..., 0]

    def look_up(channel, ends):  # [H, W], two of [H, W]
        return jax.scipy.ndimage.map_coordinates(channel, ends, order=1, mode='nearest')

    return jax.vmap(jax.vmap(look_up, (-1, None), -1))(values, ends)


def tiled(
    function: Callable[[np.ndarray], np.ndarray],
    frames: np.ndarray,
    tile: Sequence[int],
    placement: str = 'even',
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    min_overlap: int = 20,
) -> np.ndarray:
    """Returns the flow of a pair of frames from that of overlapping tiles.

    Where tiles overlap they are averaged; a pixel's weight is its distance to the nearest edge
    of its tile. Frames smaller than a tile are padded below and to the right with their last
    pixels, and the flow is cut to their size.

    Args:
      function: Model: frames `[batch_size, 2, h, w, 3]` -> flow `[batch_size, h, w, 2]` in pixels.
      frames: Pair of frames, `[2, H, W, 3]`.
      tile: Height and width of a tile in pixels, (h, w).
      placement: 'even' (the paper) or 'deepmind' (DeepMind's notebook).
      batch_size: Number of tiles that the model takes at once, at most; the last batch is filled
        by repeating its last tile, so that `function` is compiled once.
      progress: Function that is called with (tiles done, all tiles) after each batch; None calls
        nothing.
      min_overlap: Smallest overlap of neighbouring tiles in pixels.

    Returns:
      Flow in pixels, float32 `[H, W, 2]`: (u, v) = (right, down).

    Raises:
      Refused: The frames or the tile are of another shape, the placement is unknown, a number is
        out of range, or `function` returns another shape.
    """
    if batch_size < 1:
        raise Refused(f'batch_size must be at least 1, got {batch_size}')
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[::3] != (2, 3) or not frames.size:
        raise Refused(f'frames must be [2, H, W, 3], got {frames.shape}')

    check_entries('tile', tile, 2, _SIDES)
    check_integers('tiled', tile_height=tile[0], tile_width=tile[1])

    sizes = frames.shape[1:3]
    missing = [max(side - size, 0) for side, size in zip(tile, sizes, strict=True)]
    frames = np.pad(frames, ((0, 0), *((0, pixels) for pixels in missing), (0, 0)), mode='edge')
    height, width = tile
    corners = tile_corners(frames.shape[1:3], tile, placement, min_overlap)
    batch_size = min(batch_size, len(corners))

    weights = _distance_to_edge(height, width)[..., None]
    total = np.zeros((*frames.shape[1:3], 2))
    total_weights = np.zeros((*frames.shape[1:3], 1))
    for done in range(0, len(corners), batch_size):
        chosen = corners[done : done + batch_size]
        filled = chosen + (batch_size - len(chosen)) * chosen[-1:]
        batch = np.stack([frames[:, y : y + height, x : x + width] for y, x in filled])
        flows = np.asarray(function(batch))
        if flows.shape != (batch_size, height, width, 2):
            raise Refused(
                f'function must return {(batch_size, height, width, 2)}, got {flows.shape}'
            )
        for (y, x), flow in zip(chosen, flows, strict=False):
            total[y : y + height, x : x + width] += weights * flow
            total_weights[y : y + height, x : x + width] += weights
        if progress:
            progress(done + len(chosen), len(corners))
    return (total / total_weights).astype(np.float32)[: sizes[0], : sizes[1]]


def _distance_to_edge(height: int, width: int) -> np.ndarray:
    """Returns each pixel's distance to the nearest edge of a tile, 1 at the edge."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in (height, width))
    return np.minimum(rows[:, None], columns)
