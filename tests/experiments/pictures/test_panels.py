"""Parts of pictures: what each draws into the subfigure it is given."""

import matplotlib
import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import BboxImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from experiments.pictures import panels, style


def test_image_grid_draws_every_image_its_heatmap_and_its_title():
    rng = np.random.default_rng(0)
    images, heatmaps = rng.random((5, 7, 11)), rng.random((5, 2, 3))
    figure = Figure()
    panels.image_grid(figure, images, list('abcde'), [True, False, True, True, True], heatmaps)
    cells = [axes for axes in figure.axes if axes.get_images()]
    for i, axes in enumerate(cells):
        image, heatmap = axes.get_images()
        np.testing.assert_array_equal(image.get_array(), images[i])
        np.testing.assert_array_equal(heatmap.get_array(), heatmaps[i])
        assert image.get_interpolation() == 'nearest'
        left, right = axes.get_xlim()
        assert left == 0 and right == heatmap.get_extent()[1] > 22
    assert [axes.get_title() for axes in cells] == list('abcde')
    colors = [matplotlib.colors.to_rgb(axes.title.get_color()) for axes in cells]
    assert colors[1][0] > colors[1][1] and colors[0][1] > colors[0][0]  # red, green


def test_large_images_are_not_drawn_with_nearest():
    figure = Figure()
    panels.image_grid(figure, np.zeros((1, 224, 224, 3)), ['a'], [True])
    (image,) = figure.axes[0].get_images()
    assert image.get_interpolation() == 'antialiased'


@pytest.mark.parametrize(
    'images, titles, correct, heatmaps, message',
    [
        (np.zeros((2, 8)), 'ab', [1, 1], None, r'images: expected .* got \(2, 8\)'),
        (np.zeros((2, 8, 8, 4)), 'ab', [1, 1], None, r'images: expected .* got \(2, 8, 8, 4\)'),
        (np.zeros((0, 8, 8)), '', [], None, r'images: expected .* got \(0, 8, 8\)'),
        (np.full((2, 8, 8), 255), 'ab', [1, 1], None, r'images: expected 0..1, got 255..255'),
        (np.full((2, 8, 8), np.nan), 'ab', [1, 1], None, r'images: expected 0..1, got nan'),
        (np.zeros((2, 8, 8)), 'abc', [1, 1], None, 'titles: expected 2, one an image, got 3'),
        (np.zeros((2, 8, 8)), 'ab', [1], None, 'correct: expected 2, one an image, got 1'),
        (np.zeros((2, 8, 8)), 'ab', [1, 1], np.zeros((1, 8, 8)), 'heatmaps: expected 2'),
    ],
)
def test_image_grid_refuses_what_does_not_fit(images, titles, correct, heatmaps, message):
    with pytest.raises(ValueError, match=message):
        panels.image_grid(Figure(), images, titles, correct, heatmaps)


def test_clouds_are_seen_from_the_front_and_above():
    # To the right, away, up; the last is nearest to the eye.
    cloud = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0]], float)
    figure = Figure()
    panels.cloud_grid(figure, cloud[None], ['cup'], [False], np.array([[1.0, 2, 3, 4]]))
    (axes,) = figure.axes
    places = np.asarray(axes.collections[0].get_offsets())
    values = axes.collections[0].get_array().tolist()
    assert values[0] == 2 and values[-1] == 4  # drawn from far to near
    right, away, up, near = (places[values.index(value)] for value in (1, 2, 3, 4))
    assert right[0] > 0.5 and up[0] == pytest.approx(0, abs=1e-9) and up[1] > 0.5
    assert away[1] > 0 > near[1]  # what is farther away is higher: the eye is above
    assert axes.get_title() == 'cup' and axes.title.get_color() == style.RED
    without_heat = Figure()
    panels.cloud_grid(without_heat, cloud[None], ['cup'], [False])
    nearness = without_heat.axes[0].collections[0].get_array()
    assert (np.diff(nearness) > 0).all()  # drawn from far to near, the near ones brighter


def test_the_confusion_matrix_shows_shares_of_each_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 5]])
    figure = Figure()
    panels.confusion_matrix(figure, counts, ['ball', 'cup', 'cone'])
    (axes,) = figure.axes
    expected = [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), expected)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ['ball  75 %', 'cup  -', 'cone  100 %']
    assert [label.get_text() for label in axes.get_xticklabels()] == ['ball', 'cup', 'cone']


def test_a_third_of_what_is_drawn_are_mistakes_where_there_are_so_many():
    correct = np.arange(100) % 10 > 0  # ten mistakes
    drawn = panels.choose_to_draw(correct, 12)
    assert len(set(drawn)) == 12 and correct[drawn].tolist() == [False] * 4 + [True] * 8
    assert panels.choose_to_draw(correct, 12).tolist() == drawn.tolist()
    few = panels.choose_to_draw(np.arange(100) > 0, 12)
    assert few[0] == 0 and (few[1:] > 0).all()
    wrong = panels.choose_to_draw(np.zeros(100, bool), 12)
    assert len(set(wrong)) == 12
    assert sorted(panels.choose_to_draw(np.array([True, False]), 12)) == [0, 1]


def test_answers_name_what_is_right():
    names = ['cat', 'dog']
    assert panels.answers(names, np.array([0, 1]), np.array([0, 0])) == ['cat', 'dog, is cat']


LONG = 'Staffordshire bullterrier, Staffordshire bull terrier'
RNG = np.random.default_rng(0)


def draw_images(figure):
    titles = panels.answers(['cat', LONG], np.arange(20) % 2, np.arange(20) // 2 % 2)
    panels.image_grid(
        figure, np.zeros((20, 8, 8)), titles, [True] * 20, np.ones((20, 4, 4)), 'heat'
    )


def draw_clouds(figure):
    titles = panels.answers(['cup', LONG], np.arange(12) % 2, np.arange(12) // 2 % 2)
    panels.cloud_grid(figure, RNG.uniform(-1, 1, (12, 9, 3)), titles, [False] * 12)


def draw_confusion(figure):
    panels.confusion_matrix(figure, np.eye(40, dtype=int), [f'{i} {LONG}' for i in range(40)])


def draw_clips(figure):
    titles = [(f'{LONG} 90 %, {LONG} 80 %', f'{LONG}, {LONG}')] * 6
    panels.clip_grid(figure, [np.ones((5, 4))] * 6, titles, [False] * 6)


def draw_bars(figure):
    panels.class_bars(figure, [LONG] * 16, np.linspace(0, 1, 16), f'{LONG}, and what not, {LONG}')


def draw_flows(count, height, width):
    def draw(figure):
        flow = RNG.normal(0, 100, (height, width, 2))
        frames = np.zeros((2, height, width, 3), np.uint8)
        per_pair = ([LONG], [frames], [flow], [np.ones((height, width), bool)], [0 * flow])
        panels.flow_rows(figure, *(values * count for values in per_pair))

    return draw


@pytest.mark.parametrize(
    'size, draw',
    [
        ((11, 5.2), draw_images),
        ((5.5, 5.2), draw_clouds),
        ((5.5, 5.2), draw_confusion),
        ((7.9, 5.2), draw_clips),
        ((3.1, 5.2), draw_bars),
        ((11, 5.2), draw_flows(1, 9, 13)),
        ((11, 5.2), draw_flows(2, 9, 13)),
        ((11, 5.2), draw_flows(4, 5, 15)),
    ],
)
def test_texts_neither_stick_out_nor_overlap(size, draw):
    figure = Figure(size, dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    with matplotlib.rc_context(style.STYLE):
        draw(figure)
        figure.draw_without_rendering()
    off = [axes for axes in figure.axes if not axes.axison]
    unseen = {text for axes in off for text in axes.get_xticklabels() + axes.get_yticklabels()}
    texts = [x for x in {*figure.findobj(Text)} - unseen if x.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts if text.get_visible()]
    for box in boxes:
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 and box.y1 <= figure.bbox.y1
    # Width and height, in pixels, of what two boxes share.
    low, high = np.array([box.min for box in boxes]), np.array([box.max for box in boxes])
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    overlap = (shared > 2).all(-1) & ~np.eye(len(boxes), dtype=bool)
    assert not overlap.any(), [texts[i] for i in np.flatnonzero(overlap.any(0))]


def test_a_wrong_guess_that_is_too_wide_has_the_truth_in_a_second_line():
    assert panels._two_lines('cat', 100) == 'cat'
    assert panels._two_lines('cat, is dog', 100) == 'cat, is dog'
    first, second = panels._two_lines(f'{LONG}, is dog', 100).split('\n')
    assert LONG.startswith(first[:-1]) and first.endswith('…') and second == 'is dog'
    assert panels._two_lines(LONG, 100).endswith('…')


def test_a_head_says_what_the_colours_mean():
    figure = Figure((5, 5))
    below = panels.headed(figure, 'Guess', panels.Scale('low', 'high', 'magma'))
    assert {text.get_text() for text in figure.findobj(Text)} >= {'Guess', 'low', 'high'}
    (bar,) = figure.findobj(BboxImage)
    assert bar.get_cmap().name == 'magma'
    assert below.bbox.height == pytest.approx(figure.bbox.height * (1 - 16 / 360))
    assert not figure.axes


def test_fewer_pairs_of_flow_are_drawn_larger():
    room, aspect = (780, 350), 4 / 3
    layouts = [panels._flow_layout(count, room, aspect) for count in (1, 2, 4)]
    assert [layout[1:] for layout in layouts] == [(2, 3), (3, 2), (4, 6)]
    # As large as what limits them, the width or the height, allows.
    sizes = [min(width, (350 / rows - 30) * aspect) for width, rows, _ in layouts]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]
    assert panels._flow_layout(3, room, 3.3)[1:] == (3, 6)  # wide frames stay in rows


def test_grid_shape_fills_the_room():
    assert panels._grid_shape(6, (600, 400), aspect=1.0) == (2, 3)
    assert panels._grid_shape(6, (400, 600), aspect=1.0) == (3, 2)
    assert panels._grid_shape(4, (1000, 130), aspect=1.0) == (1, 4)
    assert panels._grid_shape(1, (500, 500), aspect=1.0) == (1, 1)


@pytest.mark.parametrize('with_frames', [True, False])
def test_clips_are_drawn_with_what_was_said_and_what_is(with_frames):
    sounds = [np.zeros((7, 5)), np.zeros(11), np.ones((3, 2))]
    titles = [('a 90 %', 'a'), ('b 80 %', 'c'), ('d 70 %', 'd, e')]
    frames = [np.zeros((2, 6, 4, 3), np.uint8)] * 3 if with_frames else None
    figure = Figure()
    panels.clip_grid(figure, sounds, titles, [True, False, True], frames)
    assert len(figure.axes) == (6 if with_frames else 3)
    pictures = [x.get_array().shape for axes in figure.axes for x in axes.get_images()]
    assert pictures.count((5, 7)) == 1  # time goes to the right
    assert pictures.count((6, 8, 3)) == (3 if with_frames else 0)
    assert [len(axes.lines) for axes in figure.axes].count(1) == 1
    colors = {axes.get_title(): axes.title.get_color() for axes in figure.axes}
    assert {'a 90 %', 'b 80 %', 'd 70 %'} <= colors.keys()
    assert (colors['a 90 %'], colors['b 80 %']) == (style.GREEN, style.RED)
    assert 'is: d, e' in [axes.get_xlabel() for axes in figure.axes]


def test_bars_of_classes_stand_in_order():
    figure = Figure()
    name = 'a name of more than twenty-four letters'
    panels.class_bars(figure, ['first', name], np.array([0.75, 0.25]), 'Average precision')
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25]
    assert axes.patches[0].get_y() > axes.patches[1].get_y()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ['first', 'a name of more than twe…']


def test_flows_that_nobody_knows_are_drawn_pale():
    figure, still, frames = Figure(), np.zeros((5, 7, 2)), np.zeros((2, 5, 7, 3), np.uint8)
    valid = np.zeros((5, 7), bool)
    panels.flow_rows(figure, ['a'], [frames], [still], [valid], [still + [3, 4]])
    titles = [axes.get_title('left') or axes.get_title() for axes in figure.axes]
    assert titles == [
        'a', 'second frame', 'true flow', 'predicted flow', 'error unknown', 'flow in px'
    ]  # fmt: skip
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert (shown[2] == 0).all() and np.isnan(np.ma.getdata(shown[4])).all()


def test_the_scales_of_flow_and_of_errors_leave_out_what_is_not_valid():
    flow, valid = np.zeros((2, 100, 2)), np.ones((2, 100), bool)
    flow[0, 0], flow[1, 1] = [3, 4], [90, 0]
    valid[1, 1] = False
    assert panels.longest_flow(flow, valid) == 5
    assert (
        panels.longest_flow(0 * flow, valid) == panels.longest_flow(flow, np.zeros_like(valid)) == 1
    )
    errors = np.arange(200.0).reshape(2, 100)
    assert panels.highest_error(errors, np.arange(200).reshape(2, 100) <= 100) == 99
    assert panels.highest_error(0 * errors, valid) == 1e-3
    assert panels.highest_error(errors, np.zeros_like(valid)) == 1
