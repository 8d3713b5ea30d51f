"""The picture of a run: its curves above, what it predicts on sample inputs below.

Uses matplotlib's Figure directly, without pyplot: no window, no global figure list.
"""

import os
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from experiments.pictures.style import BLUE, GREY, INK, ORANGE, STYLE, _figure
from experiments.pictures.units import metric_text
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole


def write_report(
    path: str | os.PathLike, rows: Sequence[dict], title: str, draw: Callable[[SubFigure], None]
) -> None:
    """Writes a run's curves and sample predictions as one PNG, whole or not at all.

    Args:
      path: the file to write.
      rows: the lines of `metrics.jsonl`, in the order written. Where a run was resumed and a
        step stands there twice, the later line counts. The first metric of the evaluation
        lines after `loss` is the headline.
      title: one line over the picture.
      draw: draws sample predictions into the subfigure it is given.

    Raises:
      ValueError: there are no rows.
    """
    if not rows:
        raise Refused(f'{path}: a report needs at least one row of metrics, got none')
    with matplotlib.rc_context(STYLE):
        figure = _figure(title, height=9.5)
        curves, samples = figure.subfigures(2, 1, height_ratios=(1, 1.15))
        grid = curves.add_gridspec(2, 2, height_ratios=(4, 1))
        rate = curves.add_subplot(grid[1, 0])
        loss = curves.add_subplot(grid[0, 0], sharex=rate)
        metrics = curves.add_subplot(grid[:, 1], sharex=rate)
        _draw_loss(loss, rows)
        _draw_rate(rate, rows)
        _draw_metrics(metrics, rows)
        last_step = max(row['step'] for row in rows)
        rate.set_xlim(0, max(last_step, 1))
        draw(samples)
        with whole(path) as unfinished:
            figure.savefig(unfinished, format='png')


def write_samples(path: str | os.PathLike, title: str, draw: Callable[[SubFigure], None]) -> None:
    """Writes the lower half of a report alone, as one PNG, whole or not at all.

    Args:
      path: the file to write.
      title: one line over the picture.
      draw: draws sample predictions into the subfigure it is given.
    """
    with matplotlib.rc_context(STYLE):
        figure = _figure(title, height=6)
        draw(figure.subfigures())
        with whole(path) as unfinished:
            figure.savefig(unfinished, format='png')


def _series(rows: Sequence[dict], split: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps in order, and the value of `key` at each, from the lines of one split."""
    by_step = {row['step']: row[key] for row in rows if row['split'] == split and key in row}
    steps = np.array(sorted(by_step))
    return steps, np.array([by_step[step] for step in steps.tolist()], float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window centred on each value: a fiftieth of all, less at the ends."""
    if len(values) == 0:
        return values
    window = np.ones(2 * (len(values) // 100) + 1)
    return np.convolve(values, window, 'same') / np.convolve(np.ones_like(values), window, 'same')


def _plot(axes: Axes, steps: np.ndarray, values: np.ndarray, **style) -> None:
    """A line, a dot where it is one point, and nothing (nor in the legend) where it is none."""
    if len(steps):
        marker = 'o' if len(steps) == 1 else None
        axes.plot(steps, values, **{'marker': marker, 'markersize': 4, 'clip_on': False} | style)


def _draw_loss(axes: Axes, rows: Sequence[dict]) -> None:
    steps, raw = _series(rows, 'train', 'loss')
    eval_steps, eval_values = _series(rows, 'eval', 'loss')
    smooth = _smooth(raw)
    _plot(axes, steps, raw, color=BLUE, alpha=0.25, linewidth=0.8)
    _plot(axes, steps, smooth, color=BLUE, linewidth=1.6, label='train')
    _plot(axes, eval_steps, eval_values, color=ORANGE, marker='o', linestyle='', label='evaluation')
    axes.set_title('Loss')
    axes.legend(
        frameon=False, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, labelcolor=INK, fontsize=8
    )
    axes.tick_params(labelbottom=False)
    # On a linear axis, a curve over more than a decade is flat where it matters.
    shown = np.concatenate([smooth, eval_values])
    ratio = shown.max() / shown.min() if len(shown) and shown.min() > 0 else 1
    if ratio > 10:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter('{x:g}')


def _draw_rate(axes: Axes, rows: Sequence[dict]) -> None:
    steps, values = _series(rows, 'train', 'learning_rate')
    _plot(axes, steps, values, color=GREY, linewidth=1.2)
    highest = max(values, default=0.0) or 1.0
    axes.set_ylim(0, highest)
    axes.set_yticks([0, highest], ['0', f'{highest:.3g}'])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.set_title('Learning rate', fontsize=9, pad=5)
    axes.set_xlabel('step')


def _draw_metrics(axes: Axes, rows: Sequence[dict]) -> None:
    """The headline, and up to three more evaluation metrics that are counted in its unit."""
    keys = [key for row in rows if row['split'] == 'eval' for key in row]
    keys = [key for key in dict.fromkeys(keys) if key not in ('step', 'split', 'loss')]
    if not keys:
        axes.set_axis_off()
        return
    axes.set_title('Evaluation')
    axes.set_xlabel('step')
    unit = _unit(keys[0])
    keys = [key for key in keys if _unit(key) == unit][:4]
    looks = {key: {'color': GREY, 'linewidth': 1, 'zorder': 2} for key in keys}
    looks[keys[0]] = {'color': INK, 'linewidth': 1.8, 'zorder': 3}
    last = {}
    for key in keys:
        steps, values = _series(rows, 'eval', key)
        _plot(axes, steps, values, **looks[key])
        _plot(axes, steps[-1:], values[-1:], **looks[key])
        last[key] = values[-1]
    axes.yaxis.set_major_formatter(
        PercentFormatter(1, symbol=' %') if unit == '%' else StrMethodFormatter(f'{{x:g}} {unit}')
    )
    keys.sort(key=last.get)
    bottom, top = axes.get_ylim()
    heights = _apart([(last[key] - bottom) / (top - bottom) for key in keys], gap=0.12)
    for key, height in zip(keys, heights, strict=True):
        axes.annotate(
            f'{key}\n{metric_text(key, last[key])}',
            (1, height),
            xycoords='axes fraction',
            xytext=(10, 0),
            textcoords='offset points',
            va='center',
            color=looks[key]['color'],
            fontweight='bold' if looks[key]['color'] == INK else 'normal',
        )


def _unit(metric: str) -> str:
    """'%', 'px' or ''."""
    return metric_text(metric, 0.0).partition(' ')[2]


def _apart(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights in 0..1 so that labels there, `gap` high, do not overlap."""
    heights = list(heights)
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    return heights
