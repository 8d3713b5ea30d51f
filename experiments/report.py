"""The picture of a run: its curves above, what it predicts on sample inputs below.

Uses matplotlib's Figure directly, without pyplot: no window, no global figure list.
"""

import os
import textwrap
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from perceiver_jax.files import whole

PERCENT_METRICS = ('top1', 'top5', 'accuracy', 'map', 'fl')  # fractions, shown as percentages
PIXEL_METRICS = ('epe',)  # end-point errors; also 'epe_clean' and the like

INK, GREY, PALE = '#24292f', '#8a9099', '#c9ced6'
BLUE, ORANGE, GREEN, RED = '#2a63b8', '#d4721a', '#1c7c3c', '#c0322b'
STYLE = {
    'font.size': 9,
    'text.color': INK,
    'text.parse_math': False,  # a title may hold a $
    'axes.edgecolor': PALE,
    'axes.labelcolor': GREY,
    'axes.titlecolor': INK,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.titlepad': 8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'xtick.color': PALE,
    'ytick.color': PALE,
    'xtick.labelcolor': GREY,
    'ytick.labelcolor': GREY,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'lines.solid_capstyle': 'round',
}


def metric_text(metric: str, value: float, signed: bool = False) -> str:
    """A metric as people read it: '78.0 %', '1.81 px', '0.693'; a difference: '-0.4 points'.

    Args:
      metric: its name; `PERCENT_METRICS` are fractions, `PIXEL_METRICS` are in pixels.
      value: the number, as `result.json` holds it.
      signed: it is a difference of two values; written with its sign.
    """
    sign = '+z' if signed else ''
    kind = metric.split('_')[0].lower()
    if kind in PERCENT_METRICS:
        return f'{100 * value:{sign}.1f} {"points" if signed else "%"}'
    if kind in PIXEL_METRICS:
        return f'{value:{sign}.2f} px'
    return f'{value:{sign}.3g}'


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
        raise ValueError(f'{path}: a report needs at least one row of metrics, got none')
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


def choose_to_draw(correct: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` evaluation examples, a third of them mistakes where there are so many.

    The mistakes come first. Which ones is random, and the same every time.
    """
    order = np.random.default_rng(0).permutation(len(correct))
    mistakes, right = order[~correct[order]], order[correct[order]]
    return np.concatenate([mistakes[: count // 3], right, mistakes[count // 3 :]])[:count]


def answers(names: Sequence[str], guesses: np.ndarray, labels: np.ndarray) -> list[str]:
    """Titles: 'cat', or 'cat, is dog' for a mistake."""
    return [
        names[guess] if guess == label else f'{names[guess]}, is {names[label]}'
        for guess, label in zip(guesses, labels, strict=True)
    ]


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


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(11, height), dpi=120, layout='constrained', facecolor='white')
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    # A config with many changes is written smaller, on several lines.
    title, size = (title, 13) if len(title) <= 85 else (textwrap.fill(title, 130), 9)
    figure.suptitle(title, x=0.012, ha='left', fontsize=size, fontweight='bold')
    return figure


def image_grid(
    subfigure: SubFigure,
    images: np.ndarray,
    titles: Sequence[str],
    correct: Sequence[bool],
    heatmaps: np.ndarray | None = None,
) -> None:
    """Draws images in a grid, the title of each green where correct and red where not.

    Args:
      subfigure: where to draw.
      images: `[n, height, width, 3]` or grey `[n, height, width]`, in 0..1.
      titles: n short lines.
      correct: n truth values.
      heatmaps: `[n, h, w]`, not negative: drawn to the right of each image at the image's size,
        brightest at each one's own largest value.

    Raises:
      ValueError: lengths or shapes do not fit, or an image leaves 0..1.
    """
    images = np.asarray(images)
    count = len(images)
    if count == 0 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] == 3):
        raise ValueError(f'images: expected [n, height, width(, 3)], got {images.shape}')
    if not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise ValueError(f'images: expected 0..1, got {images.min():g}..{images.max():g}')
    for name, values in (('titles', titles), ('correct', correct), ('heatmaps', heatmaps)):
        if values is not None and len(values) != count:
            raise ValueError(f'{name}: expected {count}, one an image, got {len(values)}')

    height, width = images.shape[1:3]
    total_width = width if heatmaps is None else 2.05 * width
    points = 72 * subfigure.bbox.size / subfigure.dpi
    rows, columns = _grid_shape(count, points, total_width / height)
    cells = subfigure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    # Enlarged small images show their pixels; matplotlib would blur some sizes.
    interpolation = 'nearest' if max(height, width) <= 64 else 'antialiased'
    for i, axes in enumerate(cells[:count]):
        axes.imshow(
            np.clip(images[i], 0, 1),
            cmap='gray',
            vmin=0,
            vmax=1,
            extent=(0, width, height, 0),
            interpolation=interpolation,
        )
        if heatmaps is not None:
            axes.imshow(
                heatmaps[i],
                cmap='magma',
                vmin=0,
                extent=(total_width - width, total_width, height, 0),
                interpolation='nearest',
            )
            axes.set_xlim(0, total_width)
        color = GREEN if correct[i] else RED
        axes.set_title(titles[i], color=color, fontsize=8.5, loc='center', pad=3)


def cloud_grid(
    subfigure: SubFigure,
    clouds: np.ndarray,
    titles: Sequence[str],
    correct: Sequence[bool] | None,
    heat: np.ndarray,
) -> None:
    """Draws point clouds in a grid, seen from above and aside, the titles as in `image_grid`.

    Args:
      subfigure: where to draw.
      clouds: `[n, P, 3]`, z upwards, in -1..1.
      titles: n short lines.
      correct: n truth values; None: the titles are no guesses.
      heat: `[n, P]`, what colours the points, each cloud's own least to largest.
    """
    points = 72 * subfigure.bbox.size / subfigure.dpi
    rows, columns = _grid_shape(len(clouds), points, 1.0)
    cells = subfigure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    azimuth, elevation = np.radians((35, 25))
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    back = np.array([-np.sin(azimuth), np.cos(azimuth), 0]) * np.cos(elevation)
    back[2] = -np.sin(elevation)  # from the eye into the picture
    up = np.cross(right, back)
    for i, (axes, cloud, values) in enumerate(zip(cells, clouds, heat, strict=False)):
        order = np.argsort(-(cloud @ back))  # the nearest last, on top
        # A few points may get most of the attention: the differences of the others should be seen.
        low, high = np.percentile(values, (2, 98))
        axes.scatter(
            *(cloud[order] @ np.stack([right, up], 1)).T,
            c=values[order],
            cmap='plasma',
            vmin=low,
            vmax=high,
            s=min(max(1000 / len(cloud), 0.5), 4),
            linewidths=0,
        )
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect='equal')
        color = INK if correct is None else GREEN if correct[i] else RED
        axes.set_title(titles[i], color=color, fontsize=8.5, loc='center', pad=0)


def confusion_matrix(subfigure: SubFigure, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draws which class is taken for which, and the accuracy of each class.

    Args:
      subfigure: where to draw.
      counts: `[K, K]`, examples by their true class (row) and by the guess (column).
      names: of the K classes.
    """
    examples = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(examples, 1)
    axes = subfigure.subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, interpolation='nearest')
    size = min(8, 230 / len(names))
    rows = [
        f'{name}  {100 * share:.0f} %' if count else f'{name}  -'
        for name, share, (count,) in zip(names, shares.diagonal(), examples, strict=True)
    ]
    axes.set_yticks(range(len(names)), rows, fontsize=size)
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90)
    axes.tick_params(length=0, labelcolor=INK, pad=2)
    axes.spines[:].set_color(PALE)
    axes.spines[:].set_visible(True)
    axes.set_title('True class, with its accuracy, and guess')


def clip_grid(
    subfigure: SubFigure,
    sounds: Sequence[np.ndarray],
    titles: Sequence[tuple[str, str]],
    correct: Sequence[bool],
    frames: Sequence[np.ndarray] | None = None,
) -> None:
    """Draws clips in two columns: sound, some frames above it, what was said and what is.

    Args:
      subfigure: where to draw.
      sounds: of each clip a spectrogram `[frames, bins]` or a wave `[samples]`.
      titles: what was said of each clip, and what is true.
      correct: of each clip, whether what was said first is; green, and red where not.
      frames: of each clip a few images `[n, height, width, 3]`, uint8.
    """
    rows = -(-len(sounds) // 2)
    heights = (1,) if frames is None else (2, 1)
    grid = subfigure.add_gridspec(rows * len(heights), 2, height_ratios=rows * heights)
    for i, (sound, (said, true)) in enumerate(zip(sounds, titles, strict=True)):
        row, column = divmod(i, 2)
        axes = subfigure.add_subplot(grid[(row + 1) * len(heights) - 1, column])
        axes.set(xticks=[], yticks=[])
        if sound.ndim == 2:
            look = {'cmap': 'magma', 'interpolation': 'nearest'}
            axes.imshow(sound.T, origin='lower', aspect='auto', **look)
        else:
            axes.plot(sound, color=BLUE, linewidth=0.4)
            axes.set_xlim(0, len(sound))
        top = axes
        if frames is not None:
            top = subfigure.add_subplot(grid[2 * row, column])
            top.set_axis_off()
            top.imshow(np.concatenate(list(frames[i]), axis=1))
            top.set_anchor('W')
        color = GREEN if correct[i] else RED
        top.set_title(said, color=color, fontsize=8.5, pad=3)
        axes.set_xlabel(f'is: {true}', color=INK, fontsize=8, loc='left')


def short_name(name: str, length: int = 24) -> str:
    """The beginning of a long name."""
    return name if len(name) <= length else f'{name[: length - 1]}…'


def class_bars(subfigure: SubFigure, names: Sequence[str], values: np.ndarray, title: str) -> None:
    """Draws a fraction of each class as a bar, the first on top.

    Args:
      subfigure: where to draw.
      names: of the classes.
      values: `[n]` in 0..1.
      title: what they are.
    """
    axes = subfigure.subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, color=BLUE, height=0.6)
    axes.set_yticks(places, [short_name(name) for name in names])
    axes.tick_params(axis='y', length=0, labelcolor=INK)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
    axes.set_title(title)


def _grid_shape(count: int, size: tuple[float, float], aspect: float) -> tuple[int, int]:
    """Rows and columns for `count` cells of width / height `aspect`, drawn as large as they can be.

    `size` is the room's width and height in points.
    """

    def cell_height(columns: int) -> float:
        rows = -(-count // columns)
        # 20 points of each row are its title and gap, 12 of each column its gap.
        return min(size[1] / rows - 20, (size[0] / columns - 12) / aspect)

    columns = max(range(1, count + 1), key=cell_height)
    return -(-count // columns), columns


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
