"""Clouds of points as the models take them."""

import numpy as np

from perceiver_jax.errors import Refused


def prepare_points(points: np.ndarray, num_points: int | None = None) -> np.ndarray:
    """Takes some points of a cloud, moves their mean to 0 and scales them to the unit cube.

    Args:
      points: [P, 3] coordinates in any unit.
      num_points: how many to take, at equal distances in the order they stand in, or all where
        there are no more; None: all.

    Returns:
      float32 [num_points or P, 3]: the mean is 0, and the largest coordinate 1 or -1.

    Raises:
      ValueError: if they are something else, or all in one place.

    Source: Perceiver, section 4.3. That the cube is [-1, 1]^3 around the mean is our choice.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise Refused(f'points must be [points, 3 coordinates], got {points.shape}')
    if num_points is not None and num_points < len(points):
        points = points[np.linspace(0, len(points) - 1, num_points).astype(int)]
    points = points - points.mean(0, dtype=np.float64)
    size = np.abs(points).max()
    if not (np.isfinite(size) and size > 0):
        raise Refused('points must be finite and in more than one place')
    return (points / size).astype(np.float32)
