"""The picture of a run: its curves above, sample predictions below, what run it was under them."""

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from matplotlib.transforms import ScaledTranslation

from experiments.pictures.curves import Row, plot, series, smooth
from experiments.pictures.style import BLUE, GREY, INK, ORANGE, PALE, saved_figure
from experiments.pictures.units import metric_text, unit_of
from perceiver_jax.errors import Refused

Facts = Mapping[str, Any]  # of `result.json`
NO_FACTS: Facts = {}
MOST_NUMBERS = 40  # of one evaluation, that are written out


def write_report(
    path: str | os.PathLike,
    rows: Sequence[Row],
    title: str,
    draw: Callable[[SubFigure], None],
    facts: Facts = NO_FACTS,
    loss_unit: str = '',
) -> None:
    """Writes a run's curves and sample predictions as one PNG, atomically.

    Args:
      path: The file to write.
      rows: Lines of `metrics.jsonl`, in the order written. Where a run was resumed and a step
        stands there twice, the later line counts. The first metric after `loss` in the evaluation
        lines is the headline. After a single evaluation, all its numbers are written out.
      title: One line over the picture.
      draw: Draws sample predictions into the subfigure that it is given.
      facts: What tells the run from others, as in `result.json`; see `caption`.
      loss_unit: Unit of the loss, such as 'nats'; '' leaves it out.

    Raises:
      Refused: There are no rows.
    """
    if not rows:
        raise Refused(f'{path}: a report needs at least one row of metrics, got none')
    pads = {'w_pad': 0.12, 'h_pad': 0.08}
    with saved_figure(path, title, caption=caption(facts), height=9.8, **pads) as figure:
        halves = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.15))
        curves, samples = halves[:, 0]
        evaluations = {row['step']: row for row in rows if row['split'] == 'eval'}
        grid = curves.add_gridspec(2, 2 if evaluations else 1, height_ratios=(4, 1))
        rate = curves.add_subplot(grid[1, 0])
        loss = curves.add_subplot(grid[0, 0], sharex=rate)
        _draw_loss(loss, rows, loss_unit)
        _draw_rate(rate, rows)
        if len(evaluations) > 1:
            _draw_metrics(curves.add_subplot(grid[:, 1], sharex=rate), rows)
        elif evaluations:
            (row,) = evaluations.values()
            _draw_numbers(curves.add_subplot(grid[:, 1]), row)
        last_step = max(row['step'] for row in rows)
        rate.set_xlim(0, max(last_step, 1))
        draw(samples)


def write_samples(
    path: str | os.PathLike,
    title: str,
    draw: Callable[[SubFigure], None],
    facts: Facts = NO_FACTS,
) -> None:
    """Writes the lower half of a report alone as one PNG, atomically.

    Args:
      path: The file to write.
      title: One line over the picture.
      draw: Draws sample predictions into the subfigure that it is given.
      facts: What tells the run from others; see `caption`.
    """
    pads = {'w_pad': 0.12, 'h_pad': 0.08}
    with saved_figure(path, title, caption=caption(facts), height=6.3, **pads) as figure:
        draw(figure.subfigures(squeeze=False)[0, 0])


def caption(facts: Facts) -> str:
    """Writes what tells a run from others: its date, seed, commit and data.

    Args:
      facts: `date`, `seed`, `git_commit` and `data`, as `result.json` holds them; others are not
        written. What is missing or None, as in old runs, is left out.

    Returns:
      One line; '' where nothing is known.
    """
    known = {key: value for key, value in facts.items() if value is not None}
    parts = []
    if 'date' in known:
        parts.append(_minute(known['date']))
    if 'seed' in known:
        parts.append(f'seed {known["seed"]}')
    if 'git_commit' in known:
        commit, _, dirty = known['git_commit'].partition('-')
        parts.append(f'commit {commit[:10]}' + (', with changes' if dirty else ''))
    if 'data' in known:
        parts.append(known['data'])
    return '  ·  '.join(parts)


def _minute(date: str) -> str:
    """Returns a date in ISO 8601 without its seconds; another text unchanged."""
    try:
        moment = datetime.datetime.fromisoformat(date)
    except ValueError:
        return date
    return f'{moment:%Y-%m-%d %H:%M %Z}'.strip() if len(date) > len('2026-11-26') else date


def _draw_loss(axes: Axes, rows: Sequence[Row], unit: str = '') -> None:
    steps, raw = series(rows, 'train', 'loss')
    eval_steps, eval_values = series(rows, 'eval', 'loss')
    smoothed = smooth(raw)
    plot(axes, steps, raw, color=BLUE, alpha=0.25, linewidth=0.8)
    plot(axes, steps, smoothed, color=BLUE, linewidth=1.6, label='train (augmented)')
    plot(axes, eval_steps, eval_values, color=ORANGE, marker='o', linestyle='', label='evaluation')
    axes.set_title('Loss')
    axes.set_ylabel(unit)
    axes.legend(
        frameon=False, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, labelcolor=INK, fontsize=8
    )
    axes.tick_params(labelbottom=False)
    # On a linear axis, a curve over more than a decade is flat where it matters.
    shown = np.concatenate([smoothed, eval_values])
    ratio = shown.max() / shown.min() if len(shown) and shown.min() > 0 else 1
    if ratio > 10:
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter('{x:g}')


def _draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    steps, values = series(rows, 'train', 'learning_rate')
    plot(axes, steps, values, color=GREY, linewidth=1.2)
    highest = max(values, default=0.0) or 1.0
    axes.set_ylim(0, highest)
    axes.set_yticks([0, highest], ['0', f'{highest:.3g}'])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.set_title('Learning rate', fontsize=9, pad=5)
    axes.set_xlabel('step')


def _draw_metrics(axes: Axes, rows: Sequence[Row]) -> None:
    """Draws the headline, and up to three more evaluation metrics of the same unit."""
    evaluated = dict.fromkeys(key for row in rows if row['split'] == 'eval' for key in row)
    keys = [key for key in evaluated if key not in ('step', 'split', 'loss')]
    if not keys:
        axes.set_axis_off()
        return
    axes.set_title('Evaluation')
    axes.set_xlabel('step')
    headline = keys[0]
    unit = unit_of(headline)
    keys = [key for key in keys if unit_of(key) == unit][:4]
    looks: dict[str, dict[str, Any]]
    looks = {key: {'color': GREY, 'linewidth': 1, 'zorder': 2} for key in keys}
    looks[headline] = {'color': INK, 'linewidth': 1.8, 'zorder': 3}
    last = {}
    for key in keys:
        steps, values = series(rows, 'eval', key)
        plot(axes, steps, values, **looks[key])
        plot(axes, steps[-1:], values[-1:], **looks[key])
        last[key] = values[-1]
    axes.yaxis.set_major_formatter(
        PercentFormatter(1, symbol=' %') if unit == '%' else StrMethodFormatter(f'{{x:g}} {unit}')
    )
    keys.sort(key=lambda key: last[key])
    bottom, top = axes.get_ylim()
    heights = _apart([(last[key] - bottom) / (top - bottom) for key in keys], gap=0.12)
    aside = ScaledTranslation(0.25, 0, axes.figure.dpi_scale_trans)  # inches
    # From the end of a curve to its label, which may have been moved.
    line = {'arrowstyle': '-', 'color': PALE, 'relpos': (0, 0.5), 'shrinkA': 2, 'shrinkB': 5}
    for key, height in zip(keys, heights, strict=True):
        axes.annotate(
            f'{key}\n{metric_text(key, last[key])}',
            (1, (last[key] - bottom) / (top - bottom)),
            xycoords='axes fraction',
            xytext=(1, height),
            textcoords=axes.transAxes + aside,
            va='center',
            color=looks[key]['color'],
            fontweight='bold' if key == headline else 'normal',
            arrowprops=line,
        )


def _draw_numbers(axes: Axes, row: Row) -> None:
    """Writes out the numbers of one evaluation, the headline first and large."""
    axes.set_axis_off()
    axes.set_title(f'Evaluation at step {row["step"]:,}')
    numbers = {key: row[key] for key in row if key not in ('step', 'split')}
    headline, *others = sorted(numbers, key=lambda key: key == 'loss')  # the loss comes last
    place: dict[str, Any]
    place = {'transform': axes.transAxes, 'va': 'center', 'fontweight': 'bold'}
    axes.text(0, 0.87, metric_text(headline, numbers[headline]), fontsize=26, **place)
    axes.text(0, 0.74, headline, fontsize=11, **place)
    columns = 1 if len(others) <= 8 else 2
    lines = -(-min(len(others), MOST_NUMBERS) // columns)
    size = 11 if columns == 1 else 8 if lines <= 14 else 7
    place |= {'fontweight': 'normal', 'fontsize': size}
    for i, key in enumerate(others[:MOST_NUMBERS]):
        column, line = divmod(i, lines)
        left, height = column / columns, 0.62 - 0.6 * line / max(lines, 6)
        axes.text(left, height, key, color=GREY, **place)
        right = left + (0.8 if columns == 1 else 0.46)
        axes.text(right, height, metric_text(key, numbers[key]), ha='right', **place)
    if len(others) > MOST_NUMBERS:
        more = f'{len(others) - MOST_NUMBERS} more are in metrics.jsonl'
        axes.text(0, 0, more, color=GREY, **place)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Moves ascending heights in 0..1 so that labels there, `gap` high, do not overlap."""
    heights = list(heights)
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    return heights
