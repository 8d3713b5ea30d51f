"""Clouds of points: read from files, and as a model is trained and evaluated on them.

Source: Perceiver, section 4.3.
"""

import dataclasses

import numpy as np

from experiments.data.pipeline import BrokenExample
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.points import prepare_points


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Other points in another order each time -> {'points' [P, 3] float32, 'label' int32}."""

    num_points: int  # P
    point_scale: tuple[float, float]  # each point is multiplied by a number between these
    axis_scale: tuple[float, float]  # and each axis of the cloud; (1, 1): not
    rotation_degrees: float  # about the vertical axis z, at most so far; 0: not

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        points = _checked(example, self.num_points)
        points = points[rng.permutation(len(points))[: self.num_points]]
        points = points - points.mean(0)
        points *= rng.uniform(*self.point_scale, size=(len(points), 1))
        points *= rng.uniform(*self.axis_scale, size=3)
        turn = np.radians(rng.uniform(-self.rotation_degrees, self.rotation_degrees))
        points[:, :2] @= [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        return _prepared(example, points)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The same points each time -> {'points' [P, 3] float32, 'label' int32}."""

    num_points: int

    def __call__(self, example: dict) -> dict[str, np.ndarray]:
        return _prepared(example, _checked(example, self.num_points)[: self.num_points])


def _checked(example: dict, num_points: int) -> np.ndarray:
    points = example['points']
    if len(points) < num_points:
        raise Refused(
            f'config.points.num_points is {num_points}, and {example["name"]} has {len(points)}'
        )
    return points.astype(np.float64)


def _prepared(example: dict, points: np.ndarray) -> dict[str, np.ndarray]:
    try:
        points = prepare_points(points)
    except ValueError as error:
        raise BrokenExample(f'{example["name"]}: {error}') from error
    return {'points': points, 'label': np.int32(example['label'])}
