"""Parts of pictures, drawn into a subfigure."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from experiments.pictures.flow_colours import flow_picture
from experiments.pictures.style import BLUE, GREEN, INK, PALE, RED
from perceiver_jax.errors import Refused


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
        raise Refused(f'images: expected [n, height, width(, 3)], got {images.shape}')
    if not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise Refused(f'images: expected 0..1, got {images.min():g}..{images.max():g}')
    for name, values in (('titles', titles), ('correct', correct), ('heatmaps', heatmaps)):
        if values is not None and len(values) != count:
            raise Refused(f'{name}: expected {count}, one an image, got {len(values)}')

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


def flow_rows(
    subfigure: SubFigure,
    names: Sequence[str],
    frames: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    valids: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
) -> None:
    """Draws a row for each pair: frames, true and predicted flow in the same colours, the error.

    Args:
      subfigure: where to draw.
      names: of the pairs.
      frames: uint8 `[2, height, width, 3]` each; the sizes may differ.
      truths: flow `[height, width, 2]` each, pixels.
      valids: bool `[height, width]` each, where the truth is known.
      predictions: flow `[height, width, 2]` each, pixels.
    """
    widths = [1, 1, 1, 1, 1, 0.45]
    cells = subfigure.subplots(len(names), 6, squeeze=False, width_ratios=widths)
    rows = zip(cells, names, frames, truths, valids, predictions, strict=True)
    for row, name, pair, truth, valid, prediction in rows:
        error = np.linalg.norm(prediction - truth, axis=-1)
        known = valid.any()
        largest = (np.linalg.norm(truth[valid], axis=-1).max() if known else 0.0) or 1.0
        highest = max(np.percentile(error[valid], 99), 1e-3) if known else 1.0
        for axes in row[:5]:
            axes.set(xticks=[], yticks=[])
        row[0].imshow(pair[0])
        row[1].imshow(pair[1])
        row[2].imshow(flow_picture(truth, valid, largest))
        row[3].imshow(flow_picture(prediction, largest=largest))
        colours = matplotlib.colormaps['magma'].with_extremes(bad=PALE)
        row[4].imshow(np.where(valid, error, np.nan), cmap=colours, vmin=0, vmax=highest)
        mean = f'{error[valid].mean():.2f} px' if known else 'unknown'
        titles = (name, 'second frame', 'true flow', 'predicted', f'error {mean}, to {highest:.3g}')
        for axes, title in zip(row, titles, strict=False):
            axes.set_title(title, fontsize=7.5, pad=3)
        _draw_wheel(row[5], largest)
        row[5].set(title='', xlabel='', ylabel='')
        row[5].tick_params(labelsize=6, length=2, pad=1)


def _draw_wheel(axes: Axes, largest: float) -> None:
    """What the colours of flow mean, up to a length of `largest` pixels."""
    u, v = np.meshgrid(*2 * (np.linspace(-largest, largest, 201),))
    wheel = flow_picture(np.stack([u, v], -1), largest=largest)
    wheel[np.hypot(u, v) > largest] = 255
    axes.imshow(wheel, extent=(-largest, largest, largest, -largest))
    axes.set_xticks([-largest, 0, largest], [f'{-largest:.3g}', '0', f'{largest:.3g}'])
    axes.set_yticks([-largest, 0, largest], [f'{-largest:.3g}', '0', f'{largest:.3g}'])
    axes.set_xlabel('u, px to the right')
    axes.set_ylabel('v, px down')
    axes.spines[:].set_visible(False)
    axes.set_title('Colours of flow')
