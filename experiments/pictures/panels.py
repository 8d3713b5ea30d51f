"""Parts of pictures: each is drawn into the subfigure or the axes that it is given.

Also which examples of an evaluation are drawn (`choose_to_draw`), and their titles (`answers`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.image import AxesImage, BboxImage
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Bbox, TransformedBbox

from experiments.pictures.flow_colours import flow_picture
from experiments.pictures.style import BLUE, GREEN, INK, PALE, RED, fitted, text_width
from perceiver_jax.errors import Refused

IS = ', is '  # between a wrong guess and the truth
GUESSES = 'Guess (red: wrong, with the truth)'
TITLE_SIZE = 8.5  # points, of the title of an example
WHEEL_WIDTH = 0.5  # of the colours of flow, in widths of a frame beside it
GAP = 12  # points between two columns
MARGIN = 10  # points beside a line over several panels
HEAD_HEIGHT = 16  # points, of a line over several panels
SCALE_WIDTH = 44  # points, of a scale of colours in that line


def choose_to_draw(correct: np.ndarray, count: int) -> np.ndarray:
    """Chooses evaluation examples to draw, a third of them mistakes where there are so many.

    Args:
      correct: Whether the model is right about each example, bool `[n]`.
      count: Number of examples to choose.

    Returns:
      Indices `[min(count, n)]`, the mistakes first. Which examples they are is random, and the
      same every time.
    """
    order = np.random.default_rng(0).permutation(len(correct))
    mistakes, right = order[~correct[order]], order[correct[order]]
    return np.concatenate([mistakes[: count // 3], right, mistakes[count // 3 :]])[:count]


def answers(names: Sequence[str], guesses: np.ndarray, labels: np.ndarray) -> list[str]:
    """Returns titles of classified examples: 'cat', or 'cat, is dog' for a mistake.

    Args:
      names: Names of the K classes.
      guesses: The predicted class of each example, integers `[n]`.
      labels: The true class of each example, integers `[n]`.

    Returns:
      n titles.
    """
    return [
        names[guess] if guess == label else f'{names[guess]}{IS}{names[label]}'
        for guess, label in zip(guesses, labels, strict=True)
    ]


class Scale(NamedTuple):
    """What colours mean.

    Attributes:
      low: Text at the lower end.
      high: Text at the higher end.
      colours: Name of matplotlib's colour map.
    """

    low: str
    high: str
    colours: str


def headed(subfigure: SubFigure, title: str, scale: Scale | None) -> SubFigure:
    """Writes a title over a subfigure, and at its right what the colours below mean.

    Args:
      subfigure: Where to draw.
      title: One line.
      scale: The colours; None: they need no scale.

    Returns:
      The rest of the subfigure.
    """
    width, height = _points(subfigure)
    parts = subfigure.subfigures(
        2, 1, squeeze=False, height_ratios=(HEAD_HEIGHT, height - HEAD_HEIGHT)
    )
    head, rest = parts[:, 0]
    end = width - MARGIN
    if scale is not None:
        right = end - text_width(scale.high, 8)
        place = Bbox.from_bounds((right - 4 - SCALE_WIDTH) / width, 0.2, SCALE_WIDTH / width, 0.6)
        bar = BboxImage(TransformedBbox(place, head.transSubfigure), cmap=scale.colours)
        bar.set_data(np.linspace(0, 1, 256)[None])
        head.add_artist(bar)
        head.text(right / width, 0.5, scale.high, fontsize=8, va='center')
        head.text(
            (right - 8 - SCALE_WIDTH) / width, 0.5, scale.low, fontsize=8, va='center', ha='right'
        )
        end = right - 8 - SCALE_WIDTH - text_width(scale.low, 8) - GAP
    head.text(MARGIN / width, 0.5, fitted(title, end - MARGIN, 10), fontsize=10, va='center')
    return rest


def image_grid(
    subfigure: SubFigure,
    images: np.ndarray,
    titles: Sequence[str],
    correct: Sequence[bool],
    heatmaps: np.ndarray | None = None,
    heat_title: str = 'heat',
) -> None:
    """Draws images in a grid, the title of each green where correct and red where not.

    Args:
      subfigure: Where to draw.
      images: Images `[n, height, width, 3]`, or grey `[n, height, width]`, in 0..1.
      titles: n guesses, as of `answers`; long ones are broken before the truth, and cut off.
      correct: Whether the model is right about each image, n truth values.
      heatmaps: Maps `[n, h, w]`, not negative, each drawn to the right of its image at the
        image's size, brightest at its own largest value. None: images alone.
      heat_title: What the maps show.

    Raises:
      Refused: Lengths or shapes do not fit, or an image leaves 0..1.
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
    # Enlarged small images show their pixels; matplotlib would blur some sizes.
    interpolation = 'nearest' if max(height, width) <= 64 else 'antialiased'
    scale = None if heatmaps is None else Scale(f'{heat_title}: 0', 'highest of each', 'magma')
    room = headed(subfigure, GUESSES, scale)
    cells, lines = _titled_cells(room, titles, total_width / height)
    for i, axes in enumerate(cells):
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
        color = _verdict_colour(correct[i])
        axes.set_title(lines[i], color=color, fontsize=TITLE_SIZE, loc='center', pad=3)


def cloud_grid(
    subfigure: SubFigure,
    clouds: np.ndarray,
    titles: Sequence[str],
    correct: Sequence[bool] | None,
    heat: np.ndarray | None = None,
    heat_title: str = 'heat',
) -> None:
    """Draws point clouds in a grid, seen obliquely from above, the titles as in `image_grid`.

    Args:
      subfigure: Where to draw.
      clouds: Points `[n, P, 3]`, z upwards, in -1..1.
      titles: n short lines.
      correct: Whether the model is right about each cloud, n truth values. None: the titles are
        no predictions, and not coloured.
      heat: Values `[n, P]` that colour the points, from the lowest to the highest of each cloud.
        None: the nearer a point, the brighter it is.
      heat_title: What the values of `heat` are.
    """
    azimuth, elevation = np.radians((35, 25))
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    back = np.array([-np.sin(azimuth), np.cos(azimuth), 0]) * np.cos(elevation)
    back[2] = -np.sin(elevation)  # from the eye into the picture
    up = np.cross(right, back)
    scale = None if heat is None else Scale(f'{heat_title}: lowest', 'highest of each', 'plasma')
    room = headed(subfigure, '' if correct is None else GUESSES, scale)
    cells, lines = _titled_cells(room, titles, aspect=1.0)
    for i, (axes, cloud) in enumerate(zip(cells, clouds, strict=True)):
        nearness = -(cloud @ back)
        order = np.argsort(nearness)  # the nearest last, on top
        values = nearness if heat is None else heat[i]
        # A few points may get most of the attention: the differences of the others should be seen.
        low, high = np.percentile(values, (2, 98))
        axes.scatter(
            cloud[order] @ right,
            cloud[order] @ up,
            c=values[order],
            cmap='plasma',
            vmin=low,
            vmax=high,
            s=min(max(1000 / len(cloud), 0.5), 4),
            linewidths=0,
        )
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect='equal')
        color = INK if correct is None else _verdict_colour(correct[i])
        axes.set_title(lines[i], color=color, fontsize=TITLE_SIZE, loc='center', pad=0)


def confusion_matrix(subfigure: SubFigure, counts: np.ndarray, names: Sequence[str]) -> None:
    """Draws a confusion matrix with the accuracy of each class.

    Args:
      subfigure: Where to draw.
      counts: Numbers of examples `[K, K]` by their true class (row) and the prediction (column).
      names: Names of the K classes.
    """
    examples = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(examples, 1)
    scale = Scale('0 %', '100 % of a row', 'Blues')
    axes = headed(subfigure, 'Truth (rows, with accuracy) and guess', scale).subplots()
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, interpolation='nearest')
    size = min(8, 230 / len(names))
    names = [short_name(name) for name in names]
    rows = [
        f'{name}  {100 * share:.0f} %' if count else f'{name}  -'
        for name, share, (count,) in zip(names, shares.diagonal(), examples, strict=True)
    ]
    axes.set_yticks(range(len(names)), rows, fontsize=size)
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=90)
    axes.tick_params(length=0, labelcolor=INK, pad=2)
    axes.spines[:].set_color(PALE)
    axes.spines[:].set_visible(True)
    axes.set_xlabel('guess')


def clip_grid(
    subfigure: SubFigure,
    sounds: Sequence[np.ndarray],
    titles: Sequence[tuple[str, str]],
    correct: Sequence[bool],
    frames: Sequence[np.ndarray] | None = None,
) -> None:
    """Draws clips in columns: each clip's sound, some frames above it, prediction and truth.

    Args:
      subfigure: Where to draw.
      sounds: Sound of each clip: a spectrogram `[frames, bins]` or a wave `[samples]`.
      titles: Prediction and truth of each clip.
      correct: Whether the first prediction of each clip is right; its title is green then, and
        red otherwise.
      frames: A few images of each clip, uint8 `[n, height, width, 3]`. None: the clips are sound
        alone.
    """
    columns = min(2, len(sounds))
    rows = -(-len(sounds) // columns)
    heights = (1,) if frames is None else (2, 1)
    scale = (
        Scale('quiet', 'loudest of each', 'magma')
        if any(sound.ndim == 2 for sound in sounds)
        else None
    )
    room = headed(subfigure, 'Guesses (red: the first is wrong) and truth', scale)
    width = _points(room)[0] / columns - 20
    grid = room.add_gridspec(rows * len(heights), columns, height_ratios=rows * heights)
    for i, (sound, (predicted, true)) in enumerate(zip(sounds, titles, strict=True)):
        row, column = divmod(i, columns)
        axes = room.add_subplot(grid[(row + 1) * len(heights) - 1, column])
        axes.set(xticks=[], yticks=[])
        if sound.ndim == 2:
            axes.imshow(
                sound.T, origin='lower', aspect='auto', cmap='magma', interpolation='nearest'
            )
        else:
            axes.plot(sound, color=BLUE, linewidth=0.4)
            axes.set_xlim(0, len(sound))
        top = axes
        if frames is not None:
            top = room.add_subplot(grid[2 * row, column])
            top.set_axis_off()
            top.imshow(np.concatenate(list(frames[i]), axis=1))
            top.set_anchor('W')
        color = _verdict_colour(correct[i])
        top.set_title(fitted(predicted, width, TITLE_SIZE), color=color, fontsize=TITLE_SIZE, pad=3)
        axes.set_xlabel(fitted(f'is: {true}', width, 8), color=INK, fontsize=8, loc='left')


def short_name(name: str, length: int = 24) -> str:
    """Returns a name, cut off with '…' where it is longer than `length` characters."""
    return name if len(name) <= length else f'{name[: length - 1]}…'


def class_bars(subfigure: SubFigure, names: Sequence[str], values: np.ndarray, title: str) -> None:
    """Draws a fraction of each class as a bar, the first class on top.

    Args:
      subfigure: Where to draw.
      names: Names of the n classes.
      values: A fraction for each class, `[n]`, in 0..1.
      title: What the fractions are.
    """
    axes = headed(subfigure, title, None).subplots()
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, color=BLUE, height=0.6)
    axes.set_yticks(places, [short_name(name) for name in names])
    axes.tick_params(axis='y', length=0, labelcolor=INK)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))


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
      subfigure: Where to draw.
      names: Names of the pairs.
      frames: The two frames of each pair, uint8 `[2, height, width, 3]`; the sizes may differ.
      truths: The true flow of each pair, `[height, width, 2]`, in pixels.
      valids: Where the true flow of each pair is known, bool `[height, width]`.
      predictions: The predicted flow of each pair, `[height, width, 2]`, in pixels.
    """
    room = headed(subfigure, 'Evaluation pairs: true and predicted flow in the same colours', None)
    aspect = float(np.median([valid.shape[1] / valid.shape[0] for valid in valids]))
    width, rows, columns = _flow_layout(len(names), _points(room), aspect)
    widths = [*[1.0] * 5, WHEEL_WIDTH][:columns]
    across = 6 // columns * len(names) // rows  # pairs beside one another
    grid = room.add_gridspec(rows, columns * across, width_ratios=widths * across)
    pairs = zip(names, frames, truths, valids, predictions, strict=True)
    for i, (name, pair, truth, valid, prediction) in enumerate(pairs):
        down, right = divmod(i, across)
        top, left = down * (6 // columns), right * columns
        cells = [room.add_subplot(grid[top + k // columns, left + k % columns]) for k in range(6)]
        first, second, true, predicted, difference, wheel = cells
        for axes in cells[:5]:  # framed: where nothing moves the picture is white
            axes.set(xticks=[], yticks=[], anchor='W')
            axes.spines[:].set_visible(True)
        first.imshow(pair[0])
        second.imshow(pair[1])
        largest = longest_flow(truth, valid)
        true.imshow(flow_picture(truth, valid, largest))
        predicted.imshow(flow_picture(prediction, largest=largest))
        error = np.linalg.norm(prediction - truth, axis=-1)
        shown = draw_flow_error(difference, error, valid)
        highest = highest_error(error, valid)
        bar = difference.inset_axes((1.03, 0, 0.05, 1))
        subfigure.figure.colorbar(shown, cax=bar, ticks=[0, highest], format='{x:.3g}')
        bar.tick_params(labelsize=6, length=0, pad=1)
        bar.spines[:].set_visible(False)
        mean = f'{error[valid].mean():.2f} px' if valid.any() else 'unknown'
        titles = (name, 'second frame', 'true flow', 'predicted flow', f'error {mean}')
        for axes, title in zip(cells[:5], titles, strict=True):
            axes.set_title(fitted(title, width, 7.5), fontsize=7.5, pad=3)
        draw_wheel(wheel, largest)
        wheel.set_title('flow in px', fontsize=7.5, pad=3)
        wheel.set(xlabel='', ylabel='', yticks=[], anchor='W')
        wheel.tick_params(labelsize=6, length=2, pad=1)


def _flow_layout(count: int, size: tuple[float, float], aspect: float) -> tuple[float, int, int]:
    """Arranges pairs, each of six panels in one row, two or three, as large as they can be.

    Args:
      count: Number of pairs.
      size: Width and height of the room, in points.
      aspect: Width / height of a frame.

    Returns:
      The width of a panel in points, the number of rows of panels in all, and the number of panels
      of one pair that stand side by side.
    """
    choices = []
    for columns in (6, 3, 2):
        for across in range(1, count + 1):
            rows = -(-count // across) * (6 // columns)
            panels = 5 + WHEEL_WIDTH if columns == 6 else columns
            width = size[0] / (across * panels) - 30  # the gap, and what the scale of errors takes
            height = size[1] / rows - 30  # the title, the gap, and the numbers at the wheel
            choices.append((min(width, height * aspect), width, rows, columns))
    _, width, rows, columns = max(choices)
    return width, rows, columns


def longest_flow(flow: np.ndarray, valid: np.ndarray) -> float:
    """Returns the length of the longest valid flow in pixels; 1 where nothing moves.

    Args:
      flow: Flow `[height, width, 2]`, in pixels.
      valid: Where the flow is known, bool `[height, width]`.

    Returns:
      A positive length, which `flow_picture` takes as `largest`.
    """
    return float(np.linalg.norm(flow[valid], axis=-1).max(initial=0.0)) or 1.0


def highest_error(error: np.ndarray, valid: np.ndarray) -> float:
    """Returns the end of the colour scale of errors: their 99th percentile, and not 0.

    Args:
      error: End-point errors `[height, width]`, in pixels.
      valid: Where the error is known, bool `[height, width]`.

    Returns:
      A positive error in pixels; 1 where none is known.
    """
    return max(float(np.percentile(error[valid], 99)), 1e-3) if valid.any() else 1.0


def draw_flow_error(axes: Axes, error: np.ndarray, valid: np.ndarray) -> AxesImage:
    """Draws end-point errors as colours, from 0 to `highest_error`; pale where none is known.

    Args:
      axes: Where to draw.
      error: End-point errors `[height, width]`, in pixels.
      valid: Where the error is known, bool `[height, width]`.

    Returns:
      The image, for a colour bar.
    """
    colours = matplotlib.colormaps['magma'].with_extremes(bad=PALE)
    shown = np.where(valid, error, np.nan)
    return axes.imshow(shown, cmap=colours, vmin=0, vmax=highest_error(error, valid))


def draw_wheel(axes: Axes, largest: float) -> None:
    """Draws what the colours of flow mean.

    Args:
      axes: Where to draw.
      largest: Length in pixels at which the colours are fully saturated.
    """
    lengths = np.linspace(-largest, largest, 201)
    u, v = np.meshgrid(lengths, lengths)
    wheel = flow_picture(np.stack([u, v], -1), largest=largest)
    wheel[np.hypot(u, v) > largest] = 255
    axes.imshow(wheel, extent=(-largest, largest, largest, -largest))
    ticks, labels = [-largest, 0, largest], [f'{-largest:.3g}', '0', f'{largest:.3g}']
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set_xlabel('u, px to the right')
    axes.set_ylabel('v, px down')
    axes.spines[:].set_visible(False)
    axes.set_title('Colours of flow')


def _verdict_colour(correct: bool) -> str:
    return GREEN if correct else RED


def _points(subfigure: SubFigure) -> tuple[float, float]:
    """Returns the width and height of a subfigure in points."""
    room = subfigure.bbox
    return 72 * room.width / subfigure.dpi, 72 * room.height / subfigure.dpi


def _titled_cells(
    subfigure: SubFigure, titles: Sequence[str], aspect: float
) -> tuple[list[Axes], list[str]]:
    """Divides a subfigure into an empty cell for each title, of width / height `aspect`.

    Returns:
      The cells, and the titles as they fit over them: a wrong guess and the truth in two lines
      where one is too short.
    """
    size = _points(subfigure)

    def arranged(title_lines: int) -> tuple[int, int, list[str]]:
        rows, columns = _grid_shape(len(titles), size, aspect, title_lines)
        return rows, columns, [_two_lines(title, size[0] / columns - GAP) for title in titles]

    rows, columns, fitting = arranged(title_lines=1)
    if any('\n' in title for title in fitting):
        rows, columns, fitting = arranged(title_lines=2)
    cells = subfigure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in cells:
        axes.set_axis_off()
    return cells[: len(titles)], fitting


def _two_lines(title: str, width: float) -> str:
    """Breaks the title of an example where it is too wide, and cuts off what is too wide still."""
    parts = [title]
    if text_width(title, TITLE_SIZE) > width and IS in title:
        guess, _, truth = title.partition(IS)
        parts = [f'{guess},', f'is {truth}']
    return '\n'.join(fitted(part, width, TITLE_SIZE) for part in parts)


def _grid_shape(
    count: int, size: tuple[float, float], aspect: float, title_lines: int = 1
) -> tuple[int, int]:
    """Rows and columns for `count` cells of width / height `aspect`, drawn as large as they can be.

    `size` is the room's width and height in points.
    """

    def cell_height(columns: int) -> float:
        rows = -(-count // columns)
        # Of each row, 10 points are its gap, and so many each line of its titles.
        return min(size[1] / rows - 10 * (1 + title_lines), (size[0] / columns - GAP) / aspect)

    columns = max(range(1, count + 1), key=cell_height)
    return -(-count // columns), columns
