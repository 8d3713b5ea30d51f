"""Point clouds as the point classifier takes them: some points, centred and scaled."""

import numpy as np

from perceiver_jax.checks import check_array, check_integers
from perceiver_jax.errors import Refused


def prepare_points(points: np.ndarray, num_points: int | None = None) -> np.ndarray:
    """Takes some points of a cloud, moves their mean to 0 and scales them to the cube [-1, 1]^3.

    Args:
      points: Coordinates in any unit, `[P, 3]`. Far from the origin, as on a map, float32 has no
        digits left for the shape: give float64 there.
      num_points: Number of points to take, evenly spaced in their order in `points`; all are taken
        where there are fewer. None takes all.

    Returns:
      Coordinates, float32 `[min(num_points, P), 3]`: their mean is 0, and the coordinate farthest
      from 0 is 1 or -1.

    Raises:
      Refused: `points` has another shape, is empty or not finite, all points are in one place, or
        `num_points` is no positive integer.

    Source: Perceiver, section 4.3. That the cube is [-1, 1]^3 around the mean is our choice:
      deviations.md#unit-cube.
    """
    check_array('prepare_points', 'points', points)
    if num_points is not None:
        check_integers('prepare_points', num_points=num_points)
        if num_points < 1:
            raise Refused(f'num_points must be at least 1, got {num_points}')
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise Refused(f'points must be [points, 3 coordinates], got {points.shape}')
    if num_points is not None and num_points < len(points):
        points = points[np.linspace(0, len(points) - 1, num_points).astype(int)]
    if np.isfinite(points).all():  # NumPy warns of infinity less infinity
        points = points - points.mean(0, dtype=np.float64)
    size = np.abs(points).max()
    if not (np.isfinite(size) and size > 0):
        raise Refused('points must be finite and in more than one place')
    return (points / size).astype(np.float32)
