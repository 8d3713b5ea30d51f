"""Figures as files: written atomically, in our style, under their title."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from experiments.pictures.style import GREY, INK, PALE, saved_figure


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
