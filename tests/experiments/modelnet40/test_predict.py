"""Shapes, classified by a model that knows the answer."""

import cv2
import numpy as np
import pytest

from experiments.modelnet40.predict import classify_shape
from perceiver_jax.errors import Refused
from tests.toys.known_model import KnownModel

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)
CORNERS = np.random.default_rng(1).uniform(-2, 2, (5, 3)).round(3)


def test_a_shape_is_classified_by_points_of_its_surface(tmp_path):
    corners = [[0, 0, 5], [4, 0, 5], [0, 4, 5]]
    lines = ['OFF3 1 0', *(' '.join(map(str, x)) for x in corners), '3 0 1 2']
    (tmp_path / 'a.off').write_text('\n'.join(lines))

    def logits(points):
        assert points.shape == (1, 29, 3) and np.abs(points).max() == 1
        assert (points[..., 2] == 0).all() and np.ptp(points[..., 0]) > 0.5
        return np.log([[3.0, 1.0]])

    def attention(module, points, logits):
        assert not logits and module == 'encoder/cross_attend_1'
        return RNG.random((1, 1, 3, 29))

    model = KnownModel(logits, {'num_points': 29}, attention=attention)
    model.params = {'encoder/cross_attend_1/attention/query': {}}
    result = classify_shape(model, f'{tmp_path}/a.off', tmp_path, ['cup', 'bowl'])
    assert [x['label'] for x in result['best']] == ['cup', 'bowl']
    assert cv2.imread(result['files'][0]).std() > 1


@pytest.mark.parametrize('ending', ['off', 'txt'])
def test_a_shape_in_map_coordinates_is_the_one_at_the_origin(tmp_path, ending):
    seen = []

    def logits(points):
        seen.append(points)
        return np.zeros((1, 2))

    def attention(module, points, logits):
        return RNG.random((1, 1, 3, points.shape[1]))

    for offset in (np.zeros(3), np.array([700_000, 4_800_000, 200])):
        lines = [' '.join(map(str, x + offset)) for x in CORNERS]
        if ending == 'off':
            lines = ['OFF', '5 3 0', *lines, '3 0 1 2', '3 1 2 3', '3 0 3 4']
        (tmp_path / f'a.{ending}').write_text('\n'.join(lines))
        model = KnownModel(logits, {'num_points': 29}, attention=attention)
        model.params = {'encoder/cross_attend_1/attention/query': {}}
        classify_shape(model, f'{tmp_path}/a.{ending}', tmp_path, ['cup', 'bowl'])
    np.testing.assert_allclose(*seen, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'line, message', [('0 nan 1', 'not finite'), ('0 0 0', 'in more than one place')]
)
def test_points_that_are_no_shape_are_named_and_not_the_weights(tmp_path, line, message):
    (tmp_path / 'a.txt').write_text('0 0 0\n' + line)
    model = KnownModel(lambda points: points, {'num_points': 29})
    with pytest.raises(Refused, match=f'a.txt: .*{message}'):
        classify_shape(model, f'{tmp_path}/a.txt', tmp_path, ['cup', 'bowl'])
