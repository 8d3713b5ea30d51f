"""How all pictures look."""

import textwrap

from matplotlib.figure import Figure

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


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(11, height), dpi=120, layout='constrained', facecolor='white')
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    # A config with many changes is written smaller, on several lines.
    title, size = (title, 13) if len(title) <= 85 else (textwrap.fill(title, 130), 9)
    figure.suptitle(title, x=0.012, ha='left', fontsize=size, fontweight='bold')
    return figure
