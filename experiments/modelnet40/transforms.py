"""What happens to one point cloud: choose points, augment, centre, scale to the unit cube.

Source: Perceiver, section 4.3.
"""

import dataclasses

import numpy as np

from experiments.data.pipeline import BrokenExample, Example, Item
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.points import prepare_points


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Chooses random points in random order and augments them for training.

    Attributes:
      num_points: Number P of points to choose.
      point_scale: Smallest and largest factor by which each point is multiplied, drawn for each
        point; (1, 1) leaves the points as they are.
      axis_scale: Smallest and largest factor by which each axis is multiplied, drawn for each axis
        of a cloud; (1, 1) leaves the axes as they are.
      rotation_degrees: Largest rotation in either direction about the vertical axis z, in degrees;
        0 does not rotate.
      jitter: Standard deviation of the noise on each coordinate, of which the largest is 1.
      drop_points: Largest share of the points that is left out, drawn for each cloud; others stand
        in their places a second time. 0 leaves none out.
    """

    num_points: int
    point_scale: tuple[float, float]
    axis_scale: tuple[float, float]
    rotation_degrees: float
    jitter: float
    drop_points: float

    def __call__(self, example: Example, rng: np.random.Generator) -> Item:
        """Makes one row of a training batch.

        Args:
          example: A cloud as its source yields it: 'points', float32 `[at least P, 3]`, 'label',
            int, and 'name', str.
          rng: Generator of the random numbers of choice and augmentation.

        Returns:
          'points', float32 `[P, 3]` with mean 0 and largest coordinate 1 or -1, and 'label', int32.

        Raises:
          Refused: The cloud has fewer than P points.
          BrokenExample: The points are not finite or all in one place.
        """
        points = _checked(example, self.num_points, 'config.points.num_points')
        points = points[rng.permutation(len(points))[: self.num_points]]
        points = points - points.mean(0)
        points *= rng.uniform(*self.point_scale, size=(len(points), 1))
        points *= rng.uniform(*self.axis_scale, size=3)
        turn = np.radians(rng.uniform(-self.rotation_degrees, self.rotation_degrees))
        points[:, :2] @= [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        if self.jitter:
            points += rng.normal(0, self.jitter * np.abs(points).max(), points.shape)
        if self.drop_points:
            kept = len(points) - int(rng.uniform(0, self.drop_points) * len(points))
            points[kept:] = points[rng.integers(0, kept, len(points) - kept)]
        return _prepared(example, points)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Takes points of a cloud for evaluation, the same ones each time.

    Attributes:
      num_points: Number P of points to take.
      num_draws: Number D of draws: the first takes the first points, the others take random ones.
    """

    num_points: int
    num_draws: int = 1

    def __call__(self, example: Example) -> Item:
        """Makes one row of an evaluation batch.

        Args:
          example: A cloud as its source yields it: 'points', float32 `[at least P, 3]`, 'label',
            int, and 'name', str.

        Returns:
          'points', float32 `[D, P, 3]`, each draw with mean 0 and largest coordinate 1 or -1, and
          'label', int32.

        Raises:
          Refused: The cloud has fewer than P points.
          BrokenExample: The points are not finite or all in one place.
        """
        key = 'config.evaluation.num_points (where that is None, config.points.num_points)'
        points = _checked(example, self.num_points, key)
        orders = [np.arange(len(points))]
        orders += [
            np.random.default_rng(i).permutation(len(points)) for i in range(1, self.num_draws)
        ]
        draws = [_prepared(example, points[order[: self.num_points]]) for order in orders]
        return {'points': np.stack([x['points'] for x in draws]), 'label': draws[0]['label']}


def _checked(example: Example, num_points: int, key: str) -> np.ndarray:
    points = example['points']
    if len(points) < num_points:
        raise Refused(f'{key} is {num_points}, and {example["name"]} has {len(points)}')
    if not np.isfinite(points).all():  # of all points, lest it depend on those that are chosen
        raise BrokenExample(f'{example["name"]}: some of its coordinates are not finite')
    return points.astype(np.float64)


def _prepared(example: Example, points: np.ndarray) -> Item:
    try:
        points = prepare_points(points)
    except Refused as error:
        raise BrokenExample(f'{example["name"]}: {error}') from error
    return {'points': points, 'label': np.int32(example['label'])}
