"""Generated shapes, the embedded data of ModelNet40's task: points on ten kinds of surfaces.

Each shape has random proportions and a random rotation about the vertical axis z; all its random
numbers are derived from its number.
"""

import itertools
from collections.abc import Callable

import numpy as np

from experiments.data.pipeline import Example
from perceiver_jax.errors import Refused

NUM_POINTS = 512
NUM_SHAPES = {'train': 2000, 'validation': 500, 'test': 500}
_FIRST = {'train': 0, 'validation': 10**6, 'test': 2 * 10**6}


def _rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def _revolved(rng: np.random.Generator, profile: np.ndarray) -> np.ndarray:
    """Draws points of the surface that a polygonal line of (radius, height) sweeps around z."""
    # The area that a segment sweeps is proportional to its length times its mean radius.
    starts, ends = profile[:-1], profile[1:]
    areas = np.linalg.norm(ends - starts, axis=1) * (starts[:, 0] + ends[:, 0])
    segment = rng.choice(len(areas), NUM_POINTS, p=areas / areas.sum())
    # Within a segment the density grows with the radius: inverse of its cumulative share.
    a, b, share = starts[segment, 0], ends[segment, 0], rng.random(NUM_POINTS)
    radius = np.sqrt(a**2 + share * (b**2 - a**2))
    along = np.where(np.isclose(a, b), share, (radius - a) / np.where(np.isclose(a, b), 1, b - a))
    height = starts[segment, 1] + along * (ends[segment, 1] - starts[segment, 1])
    angle = rng.uniform(0, 2 * np.pi, NUM_POINTS)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)


def _boxes(rng: np.random.Generator, boxes: list) -> np.ndarray:
    """Draws points of the faces of boxes, each given by its centre and its half sides."""
    centres, halves = np.array(boxes, float).transpose(1, 0, 2)  # both [K, 3]
    # The area of the two faces across an axis is proportional to the product of the half sides
    # along the other two.
    areas = np.prod(halves, axis=1, keepdims=True) / halves  # [K, 3]
    faces = rng.choice(areas.size, NUM_POINTS, p=areas.ravel() / areas.sum())
    box, axis = np.divmod(faces, 3)
    points = rng.uniform(-1, 1, (NUM_POINTS, 3))
    points[np.arange(NUM_POINTS), axis] = rng.choice([-1.0, 1.0], NUM_POINTS)
    return centres[box] + points * halves[box]


def _ball(rng: np.random.Generator) -> np.ndarray:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 30)
    return _revolved(rng, np.stack([np.cos(angle), rng.uniform(0.8, 1.2) * np.sin(angle)], 1))


def _bottle(rng: np.random.Generator) -> np.ndarray:
    neck, shoulder = rng.uniform(0.2, 0.4), rng.uniform(0.8, 1.4)
    profile = [[0, 0], [1, 0], [1, shoulder], [neck, shoulder + 0.8], [neck, shoulder + 1.6]]
    return _revolved(rng, np.array(profile) * [rng.uniform(0.4, 0.7), 1])


def _box(rng: np.random.Generator) -> np.ndarray:
    return _boxes(rng, [[(0, 0, 0), rng.uniform(0.5, 1, 3)]])


def _legs(width: float, depth: float, height: float) -> list:
    thin, out = 0.05, 0.9
    return [
        [(x * width, y * depth, -height), (thin, thin, height)]
        for x, y in itertools.product((-out, out), repeat=2)
    ]


def _chair(rng: np.random.Generator) -> np.ndarray:
    width, depth, back = rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.6)
    seat = [(0, 0, 0), (width, depth, 0.05)]
    upright = [(0, depth, back), (width, 0.05, back)]
    return _boxes(rng, [*_legs(width, depth, 0.45), seat, upright])


def _cone(rng: np.random.Generator) -> np.ndarray:
    return _revolved(rng, np.array([[0, 0], [1, 0], [0, rng.uniform(1.2, 2.5)]]))


def _cross(rng: np.random.Generator) -> np.ndarray:
    long, thick = rng.uniform(0.9, 1.2), rng.uniform(0.12, 0.2)
    halves = thick + (long - thick) * np.eye(3)
    return _boxes(rng, [[(0, 0, 0), half] for half in halves])


def _cylinder(rng: np.random.Generator) -> np.ndarray:
    height = rng.uniform(1.2, 2.5)
    return _revolved(rng, np.array([[0, 0], [1, 0], [1, height], [0, height]]))


def _ring(rng: np.random.Generator) -> np.ndarray:
    angle, thick = np.linspace(0, 2 * np.pi, 30), rng.uniform(0.15, 0.4)
    return _revolved(rng, np.stack([1 + thick * np.cos(angle), thick * np.sin(angle)], 1))


def _stairs(rng: np.random.Generator) -> np.ndarray:
    steps, width = int(rng.integers(3, 7)), rng.uniform(0.5, 1)
    height = rng.uniform(0.7, 1.3) / steps
    heights = height * np.arange(1, steps + 1)
    places = (2 * np.arange(steps) + 1) / steps - 1
    return _boxes(
        rng,
        [[(x, 0, h / 2), (1 / steps, width, h / 2)] for x, h in zip(places, heights, strict=True)],
    )


def _table(rng: np.random.Generator) -> np.ndarray:
    width, depth = rng.uniform(0.6, 1, 2)
    height = rng.uniform(0.3, 0.5)
    return _boxes(rng, [*_legs(width, depth, height), [(0, 0, 0), (width, depth, 0.05)]])


# Class -> function that draws a shape's proportions and its points, float64 [512, 3].
_SURFACES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    'ball': _ball,
    'bottle': _bottle,
    'box': _box,
    'chair': _chair,
    'cone': _cone,
    'cross': _cross,
    'cylinder': _cylinder,
    'ring': _ring,
    'stairs': _stairs,
    'table': _table,
}


class Shapes:
    """A `LabelledSource` of {'points': float32 `[512, 3]`, 'label': int, 'name': str}.

    Attributes:
      classes: The kinds of surfaces, 'ball' to 'table'.
    """

    classes = tuple(_SURFACES)

    def __init__(self, split: str):
        """Chooses the shapes.

        Args:
          split: 'train', 'validation' or 'test', or several of them, as in 'train+validation'.

        Raises:
          Refused: A split is unknown.
        """
        parts = split.split('+')
        if unknown := set(parts) - set(NUM_SHAPES):
            raise Refused(
                f'shapes have the splits {[*NUM_SHAPES]}, not {sorted(unknown)} '
                '(config.data.train_split, config.data.eval_split)'
            )
        self._split = split
        self._numbers = np.concatenate(
            [np.arange(_FIRST[part], _FIRST[part] + NUM_SHAPES[part]) for part in parts]
        )

    def __repr__(self) -> str:
        return f'shapes, split {self._split}'

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        number = int(self._numbers[index])
        label = number % len(self.classes)
        rng = np.random.default_rng(number)
        points = _SURFACES[self.classes[label]](rng) @ _rotation(rng.uniform(0, 2 * np.pi))
        # Noise like a scanner's, with a standard deviation of a hundredth of the size.
        points += 0.01 * np.abs(points).max() * rng.normal(size=points.shape)
        name = f'{self.classes[label]} {number}'
        return {'points': points.astype(np.float32), 'label': label, 'name': name}
