"""Curves of metrics.jsonl, as the report of a run and the comparison of several draw them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

Row = Mapping[str, Any]  # a line of `metrics.jsonl`


def series(rows: Sequence[Row], split: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Finds the values of a metric.

    Args:
      rows: The lines.
      split: 'train' or 'eval'.
      key: Name of the metric; lines without it are left out.

    Returns:
      Steps in order, and the value at each.
    """
    by_step = {row['step']: row[key] for row in rows if row['split'] == split and key in row}
    steps = np.array(sorted(by_step))
    return steps, np.array([by_step[step] for step in steps.tolist()], float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Averages over a window centred on each value: a fiftieth of all values, fewer at the ends.

    Args:
      values: Any number of values, in order.
    """
    if len(values) == 0:
        return values
    window = np.ones(2 * (len(values) // 100) + 1)
    return np.convolve(values, window, 'same') / np.convolve(np.ones_like(values), window, 'same')


def plot(axes: Axes, steps: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Draws a line; one point as a dot; without points nothing, in the legend neither.

    Args:
      axes: Where to draw.
      steps: Steps in order.
      values: The value at each step.
      **style: Of matplotlib's `plot`.
    """
    if len(steps):
        marker = 'o' if len(steps) == 1 else None
        axes.plot(steps, values, **{'marker': marker, 'markersize': 4, 'clip_on': False} | style)
