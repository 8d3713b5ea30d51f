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


def thinned(rows: Sequence[Row], metric: str, limit: int) -> list[dict[str, Any]]:
    """Chooses some lines, so that curves can be drawn of them.

    Args:
      rows: The lines.
      metric: Name of the headline metric, which is kept beside the loss.
      limit: How many lines at most, half of them evaluations where there are as many.

    Returns:
      The chosen lines in order, the last of each split among them, numbers rounded to five digits.
    """
    chosen: list[Row] = []
    for split, most in (('eval', limit // 2), ('train', limit)):
        found = [row for row in rows if row['split'] == split]
        count = min(len(found), most - len(chosen))
        places = np.linspace(len(found) - 1, 0, count).round().astype(int)
        chosen += [found[place] for place in places]
    return [
        {
            key: float(f'{row[key]:.5g}') if isinstance(row[key], float) else row[key]
            for key in ('step', 'split', 'loss', metric)
            if key in row
        }
        for row in sorted(chosen, key=lambda row: (row['step'], row['split'] == 'eval'))
    ]


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
