"""Optical flow of frames of any size, by a model of one size: overlapping tiles, averaged.

Source: Perceiver IO, section 4.2 and appendix H; DeepMind's notebook for optical flow.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np


def even_tiles(size: int, tile: int, min_overlap: int = 20) -> list[int]:
    """Returns where tiles along one axis start: as few as overlap enough, evenly spaced.

    This is the paper's way: "evenly-spaced tiles".

    Args:
      size: pixels to cover.
      tile: pixels of a tile.
      min_overlap: smallest overlap of neighbours, in pixels.

    Raises:
      ValueError: unless 0 <= min_overlap < tile <= size.
    """
    _check_sizes(size, tile, min_overlap)
    number = math.ceil((size - min_overlap) / (tile - min_overlap))
    return [round(start) for start in np.linspace(0, size - tile, number)]


def deepmind_tiles(size: int, tile: int, min_overlap: int = 20) -> list[int]:
    """Returns where tiles along one axis start: at the smallest overlap, the last flush.

    This is the released notebook's way. Arguments and errors are those of `even_tiles`.
    """
    _check_sizes(size, tile, min_overlap)
    return [*range(0, size - tile, tile - min_overlap), size - tile]


def _check_sizes(size: int, tile: int, min_overlap: int):
    if not 0 <= min_overlap < tile <= size:
        raise ValueError(
            f'tiles need 0 <= min_overlap < tile <= size, got min_overlap={min_overlap}, '
            f'tile={tile}, size={size}'
        )


def tiled(
    function: Callable[[np.ndarray], np.ndarray],
    frames: np.ndarray,
    tile: Sequence[int],
    placement: str = 'even',
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    min_overlap: int = 20,
) -> np.ndarray:
    """Returns the flow of whole frames from that of overlapping tiles.

    Where tiles overlap they are averaged; a pixel's weight is its distance to the nearest edge
    of its tile. Frames smaller than a tile are filled up below and to the right with their last
    pixels, and the flow is cut to their size.

    Args:
      function: frames [batch_size, 2, h, w, 3] -> flow [batch_size, h, w, 2] in pixels.
      frames: [2, H, W, 3].
      tile: (h, w), pixels.
      placement: 'even' (the paper) or 'deepmind' (the released notebook).
      batch_size: tiles at a time; the last ones repeat, so that `function` is compiled once.
      progress: called with (tiles done, all tiles) after each batch.
      min_overlap: of neighbouring tiles, in pixels.

    Returns:
      flow float32 [H, W, 2].

    Raises:
      ValueError: if an argument is something else.
    """
    placements = {'even': even_tiles, 'deepmind': deepmind_tiles}
    if placement not in placements:
        raise ValueError(f'placement must be one of {[*placements]}, got {placement!r}')
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[::3] != (2, 3) or not frames.size:
        raise ValueError(f'frames must be [2, H, W, 3], got {frames.shape}')

    if len(tile) != 2:
        raise ValueError(f'tile must be (height, width), got {tuple(tile)}')

    sizes = frames.shape[1:3]
    missing = [max(side - size, 0) for side, size in zip(tile, sizes, strict=True)]
    frames = np.pad(frames, ((0, 0), *((0, pixels) for pixels in missing), (0, 0)), mode='edge')
    height, width = tile
    rows = placements[placement](frames.shape[1], height, min_overlap)
    columns = placements[placement](frames.shape[2], width, min_overlap)
    corners = list(itertools.product(rows, columns))
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
            raise ValueError(
                f'function must return {(batch_size, height, width, 2)}, got {flows.shape}'
            )
        for (y, x), flow in zip(chosen, flows, strict=False):
            total[y : y + height, x : x + width] += weights * flow
            total_weights[y : y + height, x : x + width] += weights
        if progress:
            progress(done + len(chosen), len(corners))
    return (total / total_weights).astype(np.float32)[: sizes[0], : sizes[1]]


def _distance_to_edge(height: int, width: int) -> np.ndarray:
    """Returns each pixel's distance to the nearest edge of its tile, 1 at the edge."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 1 for n in (height, width))
    return np.minimum(rows[:, None], columns)
