"""How all pictures look: their colours, sizes and fonts, and how a figure becomes a file.

Uses matplotlib's `Figure` directly, without pyplot: no window, no global list of figures.
"""

import contextlib
import os
import textwrap
from collections.abc import Iterator

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from perceiver_jax.files import whole

INK, GREY, PALE = '#24292f', '#8a9099', '#c9ced6'
BLUE, ORANGE, GREEN, RED = '#2a63b8', '#d4721a', '#1c7c3c', '#c0322b'
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
    height: float,
    w_pad: float | None = None,
    h_pad: float | None = None,
) -> Iterator[Figure]:
    """Gives an empty figure to draw into, and writes it as PNG when the block ends without error.

    The write is atomic: after an error, a file that was there before is unchanged.

    Args:
      path: The file to write.
      title: One line over the picture; a long one is wrapped and written smaller.
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
        yield figure
        with whole(path) as unfinished:
            figure.savefig(unfinished, format='png')
