"""The picture of several runs: their losses and headline metrics over each other."""

import itertools
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from experiments.pictures.curves import Row, plot, series, smooth
from experiments.pictures.style import COMPARED, saved_figure
from experiments.pictures.units import scores_text, unit_of
from perceiver_jax.errors import Refused

LINES = ('-', (0, (5, 2)), (0, (1, 1.5)))  # solid, then dashed, then dotted ones


class Group(NamedTuple):
    """Runs whose curves are drawn over each other.

    Attributes:
      task: Name of their task.
      metric: Their headline metric; None: they were not evaluated yet.
      runs: By name, the lines of `metrics.jsonl` of a run, or of several of one colour: its seeds.
    """

    task: str
    metric: str | None
    runs: Mapping[str, Sequence[Sequence[Row]]]


def write_comparison(path: str | os.PathLike, title: str, groups: Sequence[Group]) -> None:
    """Writes the curves of several runs as one PNG, atomically: a row for each group.

    Args:
      path: The file to write.
      title: One line over the picture.
      groups: The runs that are drawn over each other.

    Raises:
      Refused: There are no groups.
    """
    if not groups:
        raise Refused(f'{path}: there are no runs to draw')
    heights = [max(3.4, 1.2 + 0.19 * _num_lines(group)) for group in groups]
    with saved_figure(path, title, height=0.5 + sum(heights), w_pad=0.12, h_pad=0.1) as figure:
        rows = figure.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for subfigure, group in zip(rows, groups, strict=True):
            loss, metric, names = subfigure.subplots(1, 3, width_ratios=(1, 1, 0.45))
            _draw_group(loss, metric, names, group)


def _draw_group(loss: Axes, metric: Axes, names: Axes, group: Group) -> None:
    """Draws a group's losses, smoothed, its metrics, and the names of the runs beside them."""
    headline = group.metric
    styles = itertools.cycle(itertools.product(LINES, COMPARED))
    last = 1  # step
    values = [np.zeros(0)]
    for (name, seeds), (line, colour) in zip(group.runs.items(), styles, strict=False):
        width = 1.6 if len(seeds) == 1 else 1
        look: dict[str, Any] = {'color': colour, 'linestyle': line, 'linewidth': width}
        final = []
        for rows in seeds:
            steps, raw = series(rows, 'train', 'loss')
            values.append(smooth(raw))
            plot(loss, steps, values[-1], **look)
            evaluated, scores = series(rows, 'eval', headline) if headline else (steps[:0], raw[:0])
            plot(metric, evaluated, scores, **look)
            plot(metric, evaluated[-1:], scores[-1:], **look)
            final += scores[-1:].tolist()
            last = max([last, *steps.tolist(), *evaluated.tolist()])
        score = scores_text(headline, final) if headline and final else 'not evaluated'
        names.plot([], [], label=f'{_wrapped(name)}\n{score}', **look)
    loss.set_title(f'{group.task}: loss in training, smoothed')
    metric.set_title(
        f'{group.task}: {headline}' if headline else f'{group.task}: not evaluated yet'
    )
    for axes in (loss, metric):
        axes.set(xlabel='step', xlim=(0, last))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter('{x:,.0f}')
    shown = np.concatenate(values)
    shown = shown[np.isfinite(shown)]
    ratio = shown.max() / shown.min() if len(shown) and shown.min() > 0 else 1
    if ratio > 10:  # as in a report
        loss.set_yscale('log')
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,)))
        loss.yaxis.set_minor_locator(NullLocator())
        loss.yaxis.set_major_formatter('{x:g}')
    if headline:
        unit = unit_of(headline)
        metric.yaxis.set_major_formatter(
            PercentFormatter(1, symbol=' %')
            if unit == '%'
            else StrMethodFormatter(f'{{x:g}} {unit}')
        )
    else:
        metric.set_yticks([])
    names.set_axis_off()
    names.legend(
        frameon=False, loc='upper left', borderaxespad=0, labelcolor='linecolor', fontsize=8
    )


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 30)


def _num_lines(group: Group) -> int:
    return sum(_wrapped(name).count('\n') + 2 for name in group.runs)
