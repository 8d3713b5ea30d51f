"""Parts of pictures: what each draws into the subfigure it is given."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure

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
    assert titles == ['a', 'second frame', 'true flow', 'predicted', 'error unknown, to 1', '']
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
