"""How all pictures look: colours, sizes and fonts, what fits where, how a figure becomes a file.

Uses matplotlib's `Figure` directly, without pyplot: no window, no global list of figures.
"""

import bisect
import contextlib
import functools
import os
import textwrap
from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath

from perceiver_jax.files import whole

INK, GREY, PALE = '#24292f', '#8a9099', '#c9ced6'
BLUE, ORANGE, GREEN, RED = '#2a63b8', '#d4721a', '#1c7c3c', '#c0322b'
# Of what is compared in one picture.
COMPARED = (BLUE, ORANGE, GREEN, RED, '#7d4fb0', '#0f8b8d', INK, GREY)
STYLE = matplotlib.RcParams(
    {
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
)


@contextlib.contextmanager
def saved_figure(
    path: str | os.PathLike,
    title: str = '',
    *,
    caption: str = '',
    height: float,
    w_pad: float | None = None,
    h_pad: float | None = None,
) -> Iterator[Figure]:
    """Gives an empty figure to draw into, and writes it as PNG when the block ends without error.

    The write is atomic: after an error, a file that was there before is unchanged.

    Args:
      path: The file to write.
      title: One line over the picture; a long one is wrapped and written smaller.
      caption: Small print below the picture; a long one is wrapped.
      height: Height in inches; the width is 11.
      w_pad: Space to the left and right of each panel in inches; None: matplotlib's default.
      h_pad: Space above and below each panel in inches; None: matplotlib's default.

    Yields:
      The figure. Everything drawn into it has our `STYLE`.
    """
    layout = ConstrainedLayoutEngine(w_pad=w_pad, h_pad=h_pad)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, height), dpi=120, layout=layout, facecolor='white')
        if title:
            title, size = (title, 13) if len(title) <= 85 else (textwrap.fill(title, 130), 9)
            figure.suptitle(title, x=0.012, ha='left', fontsize=size, fontweight='bold')
        if caption:
            caption = textwrap.fill(caption, 165)
            figure.supxlabel(caption, x=0.012, ha='left', fontsize=8, color=GREY)
        yield figure
        with whole(path) as unfinished:
            figure.savefig(unfinished, format='png')


def text_width(text: str, size: float) -> float:
    """Returns how wide a line of text is, in points, at a font size in points."""
    return size * sum(map(_advance, text))


@functools.cache
def _advance(letter: str) -> float:
    """Returns how far a letter moves the next one, in font sizes."""
    with_letter, without = (
        TextPath((0, 0), text, size=100).get_extents().width for text in (f'n{letter}n', 'nn')
    )
    return float(with_letter - without) / 100


def fitted(text: str, width: float, size: float) -> str:
    """Returns a line of text, cut off with '…' where it is wider than `width`.

    Args:
      text: The line.
      width: The room for it, in points.
      size: The font size, in points.
    """
    if text_width(text, size) <= width:
        return text
    shortened = [f'{text[:length].rstrip()}…' for length in range(1, len(text))]
    fitting = bisect.bisect_right(shortened, width, key=lambda line: text_width(line, size))
    return shortened[max(fitting - 1, 0)] if shortened else text
