"""Pictures of what a model makes of its inputs: attention, flow against the truth, a clip.

A picture is written whole or not at all. That of a run: `experiments.pictures.report`.
"""

import io
import os
from collections.abc import Mapping

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.pictures.flow_colours import flow_picture
from experiments.pictures.panels import _draw_wheel, cloud_grid
from experiments.pictures.style import BLUE, ORANGE, PALE, STYLE
from perceiver_jax.files import write_whole

NUM_LATENTS_DRAWN = 6
NUM_FRAMES_DRAWN = 8


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes an RGB image, uint8 `[height, width, 3]`, as PNG."""
    _, png = cv2.imencode('.png', picture[..., ::-1])
    write_whole(path, png.tobytes())


def write_attention(
    path: str | os.PathLike, image: np.ndarray, attention: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws an image, where each cross-attend looks on average, and maps of single latents.

    Args:
      path: the file to write.
      image: `[height, width, 3]` or grey `[height, width]`, in 0..1.
      attention: by the name of a cross-attend: `[N, h, w]`, a map of each latent. Of each are
        drawn the mean, laid over the image, and some latents at equal distances.
      title: one line over the picture.

    Source: Perceiver, figure 3 and appendix E.
    """
    height, width = image.shape[:2]
    extent = (0, width, height, 0)
    interpolation = 'nearest' if max(height, width) <= 64 else 'antialiased'
    with matplotlib.rc_context(STYLE):
        rows = len(attention)
        heights = (11 / (1 + rows) * height / width, 2.1 * rows * height / width)
        size = (11, sum(heights) + 0.9)
        figure = Figure(figsize=size, dpi=120, layout='constrained', facecolor='white')
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        figure.suptitle(title, x=0.012, ha='left', fontsize=13, fontweight='bold', parse_math=False)
        whole, single = figure.subfigures(2, 1, height_ratios=heights)
        panels = whole.subplots(1, 1 + rows, squeeze=False)[0]
        cells = single.subplots(rows, NUM_LATENTS_DRAWN, squeeze=False)
        for axes in (*panels, *cells.ravel()):
            axes.set_axis_off()
        look = {'cmap': 'gray', 'vmin': 0, 'vmax': 1, 'extent': extent}
        panels[0].imshow(image, interpolation=interpolation, **look)
        panels[0].set_title('The image as the model sees it')
        grey = image if image.ndim == 2 else image @ [0.299, 0.587, 0.114]
        for axes, row, (name, maps) in zip(panels[1:], cells, attention.items(), strict=True):
            axes.imshow(grey, interpolation=interpolation, **look)
            axes.imshow(_heat(maps.mean(0)), extent=extent, interpolation='nearest')
            axes.set_title(f'{name}, mean of {len(maps)} latents: bright is most')
            for cell, latent in zip(row, _spread(len(maps), NUM_LATENTS_DRAWN), strict=False):
                cell.imshow(maps[latent], cmap='magma', vmin=0, interpolation='nearest')
                cell.set_title(f'{name}, latent {latent}', fontsize=8, loc='center', pad=3)
        _save(path, figure)


def write_cloud_attention(
    path: str | os.PathLike, points: np.ndarray, attention: Mapping[str, np.ndarray], title: str
) -> None:
    """Draws a cloud in the colours of attention: of each cross-attend the mean, and single latents.

    Args:
      path: the file to write.
      points: `[P, 3]`, z upwards, in -1..1.
      attention: by the name of a cross-attend: `[N, P]`, a row of each latent.
      title: one line over the picture.
    """
    titles, heat = [], []
    for name, rows in attention.items():
        latents = _spread(len(rows), NUM_LATENTS_DRAWN)
        titles += [f'{name}, mean', *(f'latent {i}' for i in latents)]
        heat += [rows.mean(0), *rows[latents]]
    clouds = np.broadcast_to(points, (len(heat), *points.shape))
    with matplotlib.rc_context(STYLE):
        size = (11, 2 * len(attention) + 0.8)
        figure = Figure(figsize=size, dpi=120, layout='constrained', facecolor='white')
        figure.suptitle(title, x=0.012, ha='left', fontsize=13, fontweight='bold', parse_math=False)
        cloud_grid(figure.subfigures(), clouds, titles, None, np.stack(heat))
        _save(path, figure)


def write_flow_comparison(
    path: str | os.PathLike,
    frames: np.ndarray,
    prediction: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray,
) -> None:
    """Draws two frames, the true flow and a predicted one in the same colours, and the error.

    Args:
      path: the file to write.
      frames: `[2, height, width, 3]` in 0..1.
      prediction: flow `[height, width, 2]`, pixels.
      truth: likewise.
      valid: bool `[height, width]`, where the truth is known.
    """
    error = np.linalg.norm(prediction - truth, axis=-1)
    largest = np.linalg.norm(truth[valid], axis=-1).max() or 1.0
    height, width = valid.shape
    with matplotlib.rc_context(STYLE):
        size = (11, 1.6 + 3 * min(5.4 * height / width, 5.4))  # portraits are drawn smaller
        figure = Figure(figsize=size, dpi=120, layout='constrained', facecolor='white')
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        panels = figure.subplots(3, 2).ravel()
        for axes in panels[:5]:  # a frame: where nothing moves the picture is white
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(True)
        for axes, frame, which in zip(panels, frames, ('First', 'Second'), strict=False):
            axes.imshow(frame)
            axes.set_title(f'{which} frame')
        panels[2].imshow(flow_picture(truth, valid, largest))
        panels[2].set_title('True flow')
        panels[3].imshow(flow_picture(prediction, largest=largest))
        panels[3].set_title('Predicted flow')
        shown = np.where(valid, error, np.nan)
        highest = max(np.percentile(error[valid], 99), 1e-3)
        colours = matplotlib.colormaps['magma'].with_extremes(bad=PALE)  # where nothing is known
        seen = panels[4].imshow(shown, cmap=colours, vmin=0, vmax=highest)
        panels[4].set_title(f'End-point error in px, {error[valid].mean():.2f} on average')
        figure.colorbar(seen, ax=panels[4], location='bottom', aspect=50, pad=0.02, extend='max')
        _draw_wheel(panels[5], largest)
        _save(path, figure)


def write_clip_comparison(
    path: str | os.PathLike,
    video: tuple[np.ndarray, np.ndarray],
    audio: tuple[np.ndarray, np.ndarray],
    frames_per_second: float,
    sample_rate: int,
    start: float = 0.0,
) -> None:
    """Draws frames and sound of a clip above those of its reconstruction.

    Args:
      path: the file to write.
      video: original and reconstruction, each `[T, height, width, 3]`, in 0..1.
      audio: likewise `[samples, 1]`, in -1..1.
      frames_per_second: of the video.
      sample_rate: of the audio, Hz.
      start: seconds in the video where the clip begins.
    """
    chosen = _spread(len(video[0]), NUM_FRAMES_DRAWN)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 6), dpi=120, layout='constrained', facecolor='white')
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.04)
        frames, waves = figure.subfigures(2, 1, height_ratios=(3.3, 2.7))
        cells = frames.subplots(2, len(chosen), squeeze=False)
        curves = waves.subplots(2, 1, sharex=True, sharey=True)
        parts = zip(
            ('Original', 'Reconstruction'), (BLUE, ORANGE), cells, video, curves, audio, strict=True
        )
        for name, color, row, pictures, axes, sound in parts:
            for cell, index in zip(row, chosen, strict=True):
                cell.set_axis_off()
                cell.imshow(np.clip(pictures[index], 0, 1))
                cell.set_title(f'{start + index / frames_per_second:.2f} s', fontsize=8, pad=2)
            row[0].set_title(f'{name}, {start:.2f} s', fontsize=8, pad=2)
            times = start + np.arange(len(sound)) / sample_rate
            axes.plot(times, np.clip(sound[:, 0], -1, 1), color=color, linewidth=0.6)
            axes.set_ylim(-1, 1)
            axes.set_title(f'Sound, {name.lower()}')
        curves[1].set_xlim(start, start + len(audio[0]) / sample_rate)
        curves[1].set_xlabel('seconds')
        _save(path, figure)


def _heat(weights: np.ndarray) -> np.ndarray:
    """Weights `[h, w]` as colours `[h, w, 4]`, the more opaque the larger."""
    # A few pixels often get most of the attention: the others should still be seen. And where all
    # get about as much, the image should.
    low, high = np.percentile(weights, (5, 99.5))
    part = np.clip((weights - low) / max(high - low, 1e-30), 0, 1)
    colours = matplotlib.colormaps['inferno'](part)
    colours[..., 3] = 0.85 * part
    return colours


def _spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` indices, at equal distances, the first and the last included."""
    return np.rint(np.linspace(0, count - 1, min(count, most))).astype(int)


def _save(path: str | os.PathLike, figure: Figure) -> None:
    png = io.BytesIO()
    figure.savefig(png, format='png')
    write_whole(path, png.getvalue())
