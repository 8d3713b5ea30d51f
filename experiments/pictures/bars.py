"""A picture of a sweep: a bar for each combination of values, and what the paper states."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.pictures.style import COMPARED, INK, PALE, saved_figure
from experiments.pictures.units import metric_text, unit_of


def write_bars(
    path: str | os.PathLike,
    values: Sequence[Mapping[str, str]],
    results: Sequence[Sequence[float]],
    papers: Sequence[float | None],
    *,
    metric: str,
    title: str,
) -> None:
    """Draws a bar for each row, as high as its mean, with a dot for each of its runs.

    The last of several keys gives the colours, the others the groups; one alone gives the groups.

    Args:
      path: The file to write.
      values: Key -> value of each row, the same keys in all of them.
      results: The headline metric of each row's runs.
      papers: What the paper states of each row, drawn as a line; None: nothing.
      metric: Name of the metric.
      title: One line over the picture.
    """
    *outer, inner = values[0] if len(values[0]) > 1 else [*values[0], '']
    groups = list(dict.fromkeys(tuple(row[key] for key in outer) for row in values))
    kinds = list(dict.fromkeys(row.get(inner, '') for row in values))
    factor = 100 if unit_of(metric) == '%' else 1
    width = 0.8 / len(kinds)
    top = 100 if factor == 100 else max(np.mean(found) for found in results)
    with saved_figure(path, title, height=4.5) as figure:
        axes = figure.subplots()
        for kind, colour in zip(kinds, itertools.cycle(COMPARED), strict=False):
            labelled = not inner
            for row, found, paper in zip(values, results, papers, strict=True):
                if row.get(inner, '') != kind:
                    continue
                group = groups.index(tuple(row[key] for key in outer))
                at = group + width * (kinds.index(kind) - (len(kinds) - 1) / 2)
                mean = factor * float(np.mean(found))
                label = None if labelled else f'{inner}: {kind}'
                axes.bar(at, mean, 0.92 * width, color=colour, label=label, zorder=2)
                axes.annotate(
                    metric_text(metric, mean / factor), (at, 0), (0, 5),
                    textcoords='offset points', ha='center', fontsize=9, zorder=4,
                    color='white' if mean > 0.08 * top else INK,
                )  # fmt: skip
                if len(found) > 1:
                    axes.scatter(
                        np.full(len(found), at), factor * np.array(found), 9, INK, zorder=3
                    )
                if paper is not None:
                    ends = at - 0.46 * width, at + 0.46 * width
                    axes.plot(ends, 2 * [factor * paper], color=INK, linewidth=1.5, zorder=3)
                labelled = True
        if any(paper is not None for paper in papers):
            axes.plot([], [], color=INK, linewidth=1.5, label='the paper, on its data')
        axes.set_xticks(range(len(groups)), [', '.join(group) for group in groups])
        axes.tick_params(axis='x', length=0, labelcolor=INK, labelsize=9)
        axes.set_xlabel(', '.join(outer))
        axes.set_ylabel(f'{metric} ({unit_of(metric)})' if unit_of(metric) else metric)
        if factor == 100:
            axes.set_ylim(0, 100)
        axes.grid(axis='y', color=PALE, linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                frameon=False, ncols=len(kinds) + 1, loc='upper left', bbox_to_anchor=(0, 1.12)
            )
