"""What the pictures of predictions show."""

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.pictures import predictions
from experiments.pictures.flow_colours import flow_picture

RNG = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which are written too."""
    figures, save = [], Figure.savefig

    def spy(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, 'savefig', spy)
    return figures


def panels(figure):
    """Title -> what each panel shows, in the order drawn."""
    return {
        axes.get_title('left') or axes.get_title(): [np.asarray(x.get_array()) for x in axes.images]
        for axes in figure.axes
    }


def test_the_attention_picture_of_a_cloud_colours_its_points(tmp_path, drawn):
    points = RNG.uniform(-1, 1, (31, 3))
    attention = {'Cross-attend 1': RNG.random((11, 31)), 'Cross-attend 2': RNG.random((2, 31))}
    predictions.write_cloud_attention(tmp_path / 'a.png', points, attention, 'cup')
    assert cv2.imread(str(tmp_path / 'a.png')).std() > 1
    cells = [axes for axes in drawn[0].axes if axes.collections]
    assert [axes.get_title() for axes in cells] == [
        'Cross-attend 1, mean', *(f'latent {i}' for i in (0, 2, 4, 6, 8, 10)),
        'Cross-attend 2, mean', 'latent 0', 'latent 1',
    ]  # fmt: skip
    shown = [np.sort(axes.collections[0].get_array()) for axes in cells]
    rows = [x for maps in attention.values() for x in (maps.mean(0), *maps)]
    expected = [rows[i] for i in (0, 1, 3, 5, 7, 9, 11, 12, 13, 14)]
    for values, row in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(values, np.sort(row))


def test_chosen_latents_of_a_cloud_are_drawn(tmp_path, drawn):
    points, logits = RNG.uniform(-1, 1, (31, 3)), {'Cross-attend 1': RNG.random((11, 31))}
    predictions.write_cloud_attention(
        tmp_path / 'a.png', points, logits, 'cup', what='logits', latents=[9, 3]
    )
    titles = [axes.get_title() for axes in drawn[0].axes if axes.collections]
    assert titles == ['Cross-attend 1, mean', 'latent 9', 'latent 3']


def test_the_attention_picture_shows_means_over_the_image_and_single_latents(tmp_path, drawn):
    image = RNG.random((13, 13, 3))
    maps = {'Cross-attend 1': RNG.random((11, 13, 13)), 'Cross-attend 2': RNG.random((3, 5, 5))}
    predictions.write_attention(tmp_path / 'new' / 'a.png', image, maps, 'costs $1, or $2')
    assert cv2.imread(str(tmp_path / 'new' / 'a.png')).std() > 1
    shown = panels(drawn[0])
    np.testing.assert_array_equal(shown['The image as the model sees it'][0], image)
    overlaid = shown['Cross-attend 1, mean of 11 latents'][1]
    mean = maps['Cross-attend 1'].mean(0)
    highest = np.unravel_index(mean.argmax(), mean.shape)
    assert overlaid[..., 3].max() == overlaid[highest][3] == pytest.approx(0.85)
    singles = [name for name in shown if ', latent ' in name]
    assert singles == [f'Cross-attend 1, latent {i}' for i in (0, 2, 4, 6, 8, 10)] + [
        f'Cross-attend 2, latent {i}' for i in (0, 1, 2)
    ]
    for name in singles:
        attends, latent = name.split(', latent ')
        np.testing.assert_array_equal(shown[name][0], maps[attends][int(latent)])
    # The scale of the mean: in multiples of what each pixel would get of an even attention.
    _, *overlays = drawn[0].axes[:3]
    for axes, weights in zip(overlays, maps.values(), strict=True):
        (bar,) = axes.child_axes
        ends = np.percentile(weights.mean(0), (5, 99.5)) * weights[0].size
        np.testing.assert_allclose(bar.get_xlim(), ends)
        assert bar.get_xlabel() == 'attention, in multiples of an even share'


@pytest.mark.parametrize('logits', [True, False])
@pytest.mark.parametrize('latents', [None, [4, 70]])
def test_tiles_show_single_latents_beside_their_mean(tmp_path, drawn, logits, latents):
    maps = RNG.random((71, 5, 5)) - (3 if logits else 0)
    how = dict(logits=logits, latents=latents)
    predictions.write_attention_tiles(
        tmp_path / 'a.png', RNG.random((9, 9)), {'Cross-attend 1': maps}, 'cat', **how
    )
    values = maps if logits else 25 * maps  # in multiples of an even share
    _, mean, cells = [axes for axes in drawn[0].axes if axes.images]
    np.testing.assert_allclose(mean.images[0].get_array(), values.mean(0))
    expected = range(64) if latents is None else latents
    for tile, text, latent in zip(cells.images, cells.texts, expected, strict=True):
        np.testing.assert_allclose(tile.get_array(), values[latent])
        assert tile.get_clim() == (values[latent].min() if logits else 0, values[latent].max())
        highest = f'{values[latent].max():.3g}'.replace('-', '−')
        assert text.get_text().startswith(f'{latent}:') and text.get_text().endswith(highest)
    places = {tuple(image.get_extent()) for image in cells.images}  # none over another
    assert len(places) == len(expected)


def test_a_grey_image_is_drawn_too(tmp_path, drawn):
    image = RNG.random((7, 7))
    predictions.write_attention(
        tmp_path / 'a.png', image, {'Cross-attend 1': RNG.random((1, 7, 7))}, ''
    )
    shown = panels(drawn[0])
    np.testing.assert_array_equal(shown['Cross-attend 1, mean of 1 latents'][0], image)


def test_flows_are_drawn_in_the_colours_of_the_truth(tmp_path, drawn):
    frames, valid = RNG.random((2, 11, 17, 3)), np.ones((11, 17), bool)
    valid[0] = False
    truth = np.zeros((11, 17, 2))
    truth[3, 5] = 3, 4
    truth[0, 0] = 90, 0  # invalid
    prediction = truth + np.where(np.arange(17) < 5, 0, 2)[:, None] * np.array([0.6, 0.8])
    predictions.write_flow_comparison(tmp_path / 'a.png', frames, prediction, truth, valid)
    shown = panels(drawn[0])
    for name, frame in zip(('First frame', 'Second frame'), frames, strict=True):
        np.testing.assert_array_equal(shown[name][0], frame)
    np.testing.assert_array_equal(shown['True flow'][0], flow_picture(truth, valid, 5))
    np.testing.assert_array_equal(shown['Predicted flow'][0], flow_picture(prediction, None, 5))
    error = shown[f'End-point error in px, {2 * 12 / 17:.2f} on average'][0]
    np.testing.assert_allclose(error, np.where(valid, 2 * (np.arange(17) >= 5), np.nan), atol=1e-12)
    wheel = shown['Colours of flow'][0]
    assert wheel[0, 0].tolist() == wheel[100, 100].tolist() == [255, 255, 255]
    assert wheel[100, 200].tolist() == [255, 0, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.png']


def test_flow_of_nothing_moving_is_drawn(tmp_path):
    still, valid = np.zeros((5, 7, 2)), np.ones((5, 7), bool)
    predictions.write_flow_comparison(
        tmp_path / 'a.png', np.ones((2, 5, 7, 3)), still, still, valid
    )
    assert (tmp_path / 'a.png').exists()


def test_the_clip_is_drawn_above_its_reconstruction(tmp_path, drawn):
    video = RNG.random((17, 5, 5, 3)), RNG.uniform(-1, 2, (17, 5, 5, 3))
    audio = RNG.uniform(-1, 1, (34, 1)), RNG.uniform(-1, 1, (34, 1))
    predictions.write_clip_comparison(tmp_path / 'a.png', video, audio, 10, 20)
    images = [np.asarray(x.get_array()) for axes in drawn[0].axes for x in axes.images]
    chosen = [0, 2, 5, 7, 9, 11, 14, 16]
    np.testing.assert_array_equal(images[:8], video[0][chosen])
    np.testing.assert_array_equal(images[8:], video[1][chosen].clip(0, 1))
    lines = [line for axes in drawn[0].axes for line in axes.get_lines()]
    for line, sound in zip(lines, audio, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), sound[:, 0])
        assert line.get_xdata()[-1] == 33 / 20


def test_a_picture_keeps_its_colours(tmp_path):
    picture = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    predictions.write_picture(tmp_path / 'a.png', picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a.png'))[..., ::-1], picture)
