"""Pictures of what a model makes of its inputs: attention, flow beside the truth, a clip.

Each is written as PNG, atomically. The picture of a run: `experiments.pictures.report`.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from experiments.pictures.flow_colours import flow_picture
from experiments.pictures.panels import (
    Scale,
    cloud_grid,
    draw_flow_error,
    draw_wheel,
    headed,
    longest_flow,
)
from experiments.pictures.style import BLUE, INK, ORANGE, saved_figure
from perceiver_jax.files import write_whole

NUM_LATENTS_DRAWN = 6
NUM_TILES = 64  # latents drawn as tiles, as many as in the figures of the Perceiver paper
NUM_FRAMES_DRAWN = 8
TILES_WIDTH = 8.1  # inches
SALIENCY = 'Gradient of the best logit'


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes an image as PNG.

    Args:
      path: The file to write.
      picture: The image, uint8 `[height, width, 3]`, RGB.
    """
    _, png = cv2.imencode('.png', picture[..., ::-1])
    write_whole(path, png.tobytes())


def write_attention(
    path: str | os.PathLike, image: np.ndarray, attention: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws an image, and what each cross-attend attends to: on average, and by single latents.

    Args:
      path: The file to write.
      image: The image `[height, width, 3]`, or grey `[height, width]`, in 0..1.
      attention: Attention maps `[N, h, w]`, one for each latent, by the name of the cross-attend.
        Their mean is laid over the image; some latents' maps are drawn, at equal distances.
      title: One line over the picture.

    Source: Perceiver, figure 3 and appendix E.
    """
    height, width = image.shape[:2]
    rows = len(attention)
    image_height = 11 / (1 + rows) * height / width  # inches
    heights = (image_height + 0.6, 2.1 * rows * height / width + 0.3)
    extent = (0, width, height, 0)
    # Enlarged small images show their pixels.
    interpolation = 'nearest' if max(height, width) <= 64 else 'antialiased'
    as_image: dict[str, Any]
    as_image = dict(cmap='gray', vmin=0, vmax=1, extent=extent, interpolation=interpolation)
    grey = image if image.ndim == 2 else image @ [0.299, 0.587, 0.114]
    with saved_figure(path, title, height=sum(heights) + 0.9, w_pad=0.08, h_pad=0.08) as figure:
        halves = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
        whole, single = halves[:, 0]
        panels = whole.subplots(1, 1 + rows, squeeze=False)[0]
        scale = Scale('0', 'highest of each', 'magma')
        single = headed(single, 'Attention of single latents', scale)
        cells = single.subplots(rows, NUM_LATENTS_DRAWN, squeeze=False)
        for axes in (*panels, *cells.ravel()):
            axes.set_axis_off()
        panels[0].imshow(image, **as_image)
        panels[0].set_title('The image as the model sees it')
        for axes, row, (name, maps) in zip(panels[1:], cells, attention.items(), strict=True):
            axes.imshow(grey, **as_image)
            mean = maps.mean(0)
            low, high = _ends(mean)
            axes.imshow(_heat(mean, low, high), extent=extent, interpolation='nearest')
            axes.set_title(f'{name}, mean of {len(maps)} latents')
            part = ScalarMappable(Normalize(low * mean.size, high * mean.size), 'inferno')
            bar = axes.inset_axes((0, -0.24 / image_height, 1, 0.12 / image_height))
            figure.colorbar(part, cax=bar, orientation='horizontal')
            bar.set_xlabel('attention, in multiples of an even share')
            for cell, latent in zip(row, _spread(len(maps), NUM_LATENTS_DRAWN), strict=False):
                cell.imshow(maps[latent], cmap='magma', vmin=0, interpolation='nearest')
                cell.set_title(f'{name}, latent {latent}', fontsize=8, loc='center', pad=3)


def write_attention_tiles(
    path: str | os.PathLike,
    image: np.ndarray,
    attention: Mapping[str, np.ndarray],
    title: str,
    *,
    logits: bool,
    latents: Sequence[int] | None = None,
) -> None:
    """Draws the map of each latent as a tile, as the Perceiver paper does, beside their mean.

    Each tile has colours of its own, and what they end at is written over it: from the lowest to
    the highest logit (zero means nothing: a constant added to a latent's logits changes no
    weight), or from zero to the highest weight, in multiples of an even share.

    Args:
      path: The file to write.
      image: The image `[height, width, 3]`, or grey `[height, width]`, in 0..1.
      attention: Maps `[N, h, w]`, one for each latent, by the name of the cross-attend.
      title: One line over the picture.
      logits: Whether the maps are logits, and not weights.
      latents: The latents to draw; None: the first `NUM_TILES`.

    Source: Perceiver, figure 3 and appendix E.
    """
    aspect = image.shape[0] / image.shape[1]
    extent = (0, 1, aspect, 0)
    pixels = 'nearest' if max(image.shape[:2]) <= 64 else 'antialiased'
    colours, what, low = ('viridis', 'logits', 'lowest') if logits else ('magma', 'weights', '0')
    units = 'logit' if logits else 'multiples of an even share'
    ends = 'each from lowest to highest' if logits else f'each with its highest, in {units}'
    most = max(map(len, attention.values()))
    most = min(most, NUM_TILES) if latents is None else len(latents)
    left_height = 2 * 2.5 * aspect + 1.1  # inches
    columns, rows, line, tiles_height = _tile_layout(most, aspect, left_height)
    gap = 0.05  # in widths of a tile, as `line`
    height = max(tiles_height, left_height) + 0.4
    with saved_figure(path, title, height=height * len(attention) + 0.5) as figure:
        parts = figure.subfigures(len(attention), 1, squeeze=False)[:, 0]
        for part, (name, maps) in zip(parts, attention.items(), strict=True):
            drawn = range(min(len(maps), most)) if latents is None else latents
            values, zero = (maps, None) if logits else (maps * maps[0].size, 0)
            heading = f'{name}: {what} of {_count(len(drawn), len(maps))}, {ends}'
            room = headed(part, heading, Scale(low, 'highest of each', colours))
            sides = room.subfigures(1, 2, squeeze=False, width_ratios=(2.5, TILES_WIDTH))
            left, right = sides[0]
            ratios = (2.5 * aspect, 2.5 * aspect + 0.3, height - left_height)
            grid = left.add_gridspec(3, 1, height_ratios=ratios)
            seen, mean = (left.add_subplot(grid[i]) for i in (0, 1))
            seen.imshow(image, cmap='gray', vmin=0, vmax=1, extent=extent, interpolation=pixels)
            seen.set_title('The image as the model sees it', fontsize=8.5)
            shown = mean.imshow(
                values.mean(0), cmap=colours, vmin=zero, extent=extent, interpolation='nearest'
            )
            mean.set_title(f'Mean of all {len(maps)} latents', fontsize=8.5)
            bar = mean.inset_axes((0, -0.09, 1, 0.045))
            figure.colorbar(shown, cax=bar, orientation='horizontal', label=units)
            cells = right.subplots()
            for axes in (seen, mean, cells):
                axes.set_axis_off()
                axes.set_anchor('N')
            for place, latent in enumerate(drawn):
                row, column = divmod(place, columns)
                x, y = column * (1 + gap), row * (aspect + line)
                tile = values[latent]
                cells.imshow(
                    tile,
                    cmap=colours,
                    vmin=zero,
                    extent=(x, x + 1, y + aspect, y),
                    interpolation='nearest',
                )
                lowest = f'{_short(tile.min())} to ' if logits else ''
                label = f'{latent}:  {lowest}{_short(tile.max())}'
                cells.text(x, y - 0.03, label, fontsize=6, va='bottom')
            cells.set_xlim(0, columns * (1 + gap))
            cells.set_ylim(rows * (aspect + line), -line)


def _tile_layout(count: int, aspect: float, least: float) -> tuple[int, int, float, float]:
    """Arranges tiles as large as they can be where they need no more height than there is anyway.

    Args:
      count: Number of tiles.
      aspect: Height / width of a tile.
      least: The height that there is, in inches.

    Returns:
      Columns, rows, the height of the line over a tile in widths of a tile, and that of all tiles
      in inches.
    """

    def height(columns: int) -> float:
        return TILES_WIDTH / columns * -(-count // columns) * (aspect + 0.024 * columns)

    columns = next((n for n in range(2, 8) if height(n) <= least), 8)  # 8 as in the paper
    return columns, -(-count // columns), 0.024 * columns, height(columns)


def _short(value: float) -> str:
    """Returns a number of three digits, with a minus sign of the font's."""
    return f'{value:.3g}'.replace('-', '\N{MINUS SIGN}')


def _count(drawn: int, count: int) -> str:
    return f'all {count} latents' if drawn == count else f'{drawn} of {count} latents'


def write_saliency(
    path: str | os.PathLike, image: np.ndarray, saliency: np.ndarray, title: str
) -> None:
    """Draws an image beside how much each of its pixels changes the answer.

    Args:
      path: The file to write.
      image: The image `[height, width, 3]`, or grey `[height, width]`, in 0..1.
      saliency: `[height, width]`, not negative.
      title: One line over the picture.
    """
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    pixels = 'nearest' if max(height, width) <= 64 else 'antialiased'
    with saved_figure(path, title, height=5.2 * height / width + 0.9) as figure:
        cells = figure.subfigures(squeeze=False)[0, 0]
        room = headed(cells, SALIENCY, Scale('0', 'highest', 'magma'))
        left, right = room.subplots(1, 2, squeeze=False)[0]
        left.imshow(image, cmap='gray', vmin=0, vmax=1, extent=extent, interpolation=pixels)
        left.set_title('The image as the model sees it')
        right.imshow(saliency, cmap='magma', vmin=0, extent=extent, interpolation=pixels)
        right.set_title('Saliency')
        for axes in (left, right):
            axes.set_axis_off()


def write_cloud_saliency(
    path: str | os.PathLike, points: np.ndarray, saliency: np.ndarray, title: str
) -> None:
    """Draws a point cloud in the colours of how much each point changes the answer.

    Args:
      path: The file to write.
      points: `[P, 3]`, z upwards, in -1..1.
      saliency: `[P]`.
      title: One line over the picture.
    """
    with saved_figure(path, title, height=6) as figure:
        titles = ['The shape as the model sees it', 'Saliency']
        values = np.stack([points @ [0.5, -0.7, 0.5], saliency])
        cells = figure.subfigures(squeeze=False)[0, 0]
        cloud_grid(cells, np.stack([points] * 2), titles, None, values, SALIENCY)


def write_cloud_attention(
    path: str | os.PathLike,
    points: np.ndarray,
    attention: Mapping[str, np.ndarray],
    title: str,
    *,
    what: str = 'attention',
    latents: Sequence[int] | None = None,
) -> None:
    """Draws a point cloud in the colours of attention: on average, and by single latents.

    Args:
      path: The file to write.
      points: Points `[P, 3]`, z upwards, in -1..1.
      attention: Attention `[N, P]`, a row for each latent, by the name of the cross-attend. Their
        mean is drawn, and some latents, at equal distances.
      title: One line over the picture.
      what: What is drawn: 'attention', or 'logits'.
      latents: The latents to draw instead; None: `NUM_LATENTS_DRAWN` of them.
    """
    titles, heat = [], []
    for name, rows in attention.items():
        drawn = list(_spread(len(rows), NUM_LATENTS_DRAWN) if latents is None else latents)
        titles += [f'{name}, mean', *(f'latent {i}' for i in drawn)]
        heat += [rows.mean(0), *rows[drawn]]
    clouds = np.broadcast_to(points, (len(heat), *points.shape))
    lines = -(-len(heat) // (1 + NUM_LATENTS_DRAWN))
    with saved_figure(path, title, height=1.75 * lines + 0.9) as figure:
        cells = figure.subfigures(squeeze=False)[0, 0]
        cloud_grid(cells, clouds, titles, None, np.stack(heat), what)


def write_flow_comparison(
    path: str | os.PathLike,
    frames: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
    title: str = '',
) -> None:
    """Draws two frames, the true flow and a predicted one in the same colours, and the error.

    Args:
      path: The file to write.
      frames: The two frames `[2, height, width, 3]`, in 0..1.
      prediction: The predicted flow `[height, width, 2]`, in pixels.
      truth: The true flow `[height, width, 2]`, in pixels.
      valid: Where the truth is known, bool `[height, width]`.
      title: One line over the picture.
    """
    height, width = valid.shape
    inches = 1.9 + 3 * min(5.4 * height / width, 5.4)  # portraits are drawn smaller
    with saved_figure(path, title, height=inches, w_pad=0.08, h_pad=0.08) as figure:
        panels = figure.subplots(3, 2, squeeze=False).ravel()
        first, second, true, predicted, difference, wheel = panels
        for axes in panels[:5]:  # framed: where nothing moves the picture is white
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        first.imshow(frames[0])
        first.set_title('First frame')
        second.imshow(frames[1])
        second.set_title('Second frame')
        largest = longest_flow(truth, valid)
        true.imshow(flow_picture(truth, valid, largest))
        true.set_title('True flow')
        predicted.imshow(flow_picture(prediction, largest=largest))
        predicted.set_title('Predicted flow')
        error = np.linalg.norm(prediction - truth, axis=-1)
        shown = draw_flow_error(difference, error, valid)
        difference.set_title(f'End-point error in px, {error[valid].mean():.2f} on average')
        bar = difference.inset_axes((0, -0.08, 1, 0.04))
        figure.colorbar(shown, cax=bar, orientation='horizontal', extend='max')
        draw_wheel(wheel, largest)


def write_clip_comparison(
    path: str | os.PathLike,
    video: tuple[np.ndarray, np.ndarray],
    audio: tuple[np.ndarray, np.ndarray],
    frames_per_second: float,
    sample_rate: int,
    start: float = 0.0,
    title: str = '',
) -> None:
    """Draws frames and sound of a clip above those of its reconstruction.

    Args:
      path: The file to write.
      video: Original and reconstruction, each `[T, height, width, 3]`, in 0..1.
      audio: Original and reconstruction, each `[samples, 1]`, in -1..1.
      frames_per_second: Frame rate of the video.
      sample_rate: Sample rate of the audio, Hz.
      start: Seconds in the video where the clip begins.
      title: One line over the picture.
    """
    chosen = _spread(len(video[0]), NUM_FRAMES_DRAWN)
    with saved_figure(path, title, height=6, w_pad=0.06, h_pad=0.04) as figure:
        halves = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.3, 2.7))
        frames, waves = halves[:, 0]
        cells = frames.subplots(2, len(chosen), squeeze=False)
        curves = waves.subplots(2, 1, sharex=True, sharey=True)
        parts = zip(
            ('Original', 'Reconstruction'), (BLUE, ORANGE), cells, video, curves, audio, strict=True
        )
        for name, color, row, pictures, axes, sound in parts:
            for cell, index in zip(row, chosen, strict=True):
                cell.set(xticks=[], yticks=[])
                cell.spines[:].set_visible(False)
                cell.imshow(np.clip(pictures[index], 0, 1))
                cell.set_title(f'{start + index / frames_per_second:.2f} s', fontsize=8, pad=2)
            row[0].set_ylabel(name, color=INK)
            times = start + np.arange(len(sound)) / sample_rate
            axes.plot(times, np.clip(sound[:, 0], -1, 1), color=color, linewidth=0.6)
            axes.set_ylim(-1, 1)
            axes.set_title(f'Sound, {name.lower()}')
        curves[1].set_xlim(start, start + len(audio[0]) / sample_rate)
        curves[1].set_xlabel('seconds')


def _ends(weights: np.ndarray) -> tuple[float, float]:
    """Returns the lowest and the highest weight that colours tell apart."""
    # A few pixels often get most of the attention: the others should still be seen. And where all
    # get about as much, the image should.
    low, high = np.percentile(weights, (5, 99.5))
    return low, high


def _heat(weights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns weights `[h, w]` as colours `[h, w, 4]`, the more opaque the larger."""
    part = np.clip((weights - low) / max(high - low, 1e-30), 0, 1)
    colours = matplotlib.colormaps['inferno'](part)
    colours[..., 3] = 0.85 * part
    return colours


def _spread(count: int, most: int) -> np.ndarray:
    """Returns up to `most` of `count` indices, evenly spaced, the first and the last included."""
    return np.rint(np.linspace(0, count - 1, min(count, most))).astype(int)
