"""Figures as files: written atomically, in our style, under their title."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.pictures.style import GREY, INK, PALE, fitted, saved_figure, text_width


def test_a_figure_is_written_in_our_style_at_the_end_of_its_block(tmp_path):
    path = tmp_path / 'new' / 'a.png'
    with saved_figure(path, 'costs $1 or $2', height=3) as figure:
        axes = figure.add_subplot()
        axes.set_title('left', loc='left')
        assert not path.exists()
    assert imread(path).shape == (360, 1320, 4)
    assert list(path.parent.iterdir()) == [path]
    assert figure.get_suptitle() == 'costs $1 or $2'
    assert not axes.spines['top'].get_visible()
    assert to_hex(axes.spines['left'].get_edgecolor()) == PALE
    assert to_hex(axes.xaxis.label.get_color()) == GREY
    assert to_hex(axes.title.get_color()) == INK
    assert matplotlib.rcParams['text.color'] == 'black'  # the style is that of the block alone


def test_after_an_error_in_the_block_the_old_file_is_there(tmp_path):
    path = tmp_path / 'a.png'
    path.write_text('old')
    with pytest.raises(RuntimeError, match='no data'), saved_figure(path, height=3):
        raise RuntimeError('no data')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
    assert matplotlib.rcParams['text.color'] == 'black'


def test_a_long_title_is_wrapped_and_smaller(tmp_path):
    sizes = {}
    for title in ('x' * 85, 'word ' * 40):
        with saved_figure(tmp_path / 'a.png', title, height=2) as figure:
            (text,) = figure.texts
            sizes[figure.get_suptitle().count('\n') + 1] = text.get_fontsize()
    assert sizes == {1: 13, 2: 9}


def test_space_around_panels_is_what_was_asked_for(tmp_path):
    with saved_figure(tmp_path / 'a.png', height=2, w_pad=0.5, h_pad=0.25) as figure:
        pads = figure.get_layout_engine().get()
        assert (pads['w_pad'], pads['h_pad']) == (0.5, 0.25)
    with saved_figure(tmp_path / 'a.png', height=2) as figure:
        pads = figure.get_layout_engine().get()
        np.testing.assert_allclose([pads['w_pad'], pads['h_pad']], 0.04167)


def test_a_caption_stands_below_the_picture(tmp_path):
    with saved_figure(tmp_path / 'a.png', 'title', caption='word ' * 60, height=3) as figure:
        axes = figure.add_subplot()
    title, caption = (text.get_window_extent() for text in figure.texts)
    assert caption.y0 > 0 and caption.x1 < 1320 and title.y1 < 360
    assert caption.y1 < axes.get_window_extent().y0


def test_texts_are_cut_off_where_they_do_not_fit():
    assert text_width('', 8) == 0
    line = 'Perceiver $1, $2: 98.1 %'
    drawn = Figure(dpi=72).text(0, 0, line, fontsize=12, parse_math=False).get_window_extent()
    assert text_width(line, 12) == pytest.approx(drawn.width, rel=0.03)
    name = 'Staffordshire bullterrier'
    assert fitted(name, text_width(name, 8), 8) == name
    short = fitted(name, 60, 8)
    assert short.endswith('…') and name.startswith(short[:-1])
    assert text_width(short, 8) <= 60 < text_width(f'{name[: len(short)]}…', 8)
    assert fitted('ab', 0, 8) == 'a…'  # a letter is always left
    assert fitted('W', 0, 8) == 'W' and fitted('', 0, 8) == ''
