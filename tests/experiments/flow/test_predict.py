"""Flow between two images, by a model that knows the answer."""

import cv2
import numpy as np
import pytest

from experiments.flow.files import read_flo, read_kitti_flow, write_flo
from experiments.flow.predict import estimate_flow
from experiments.predict import as_text
from tests.toys.known_model import KnownModel, write_image

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)


def test_flow_is_estimated_written_and_compared(tmp_path):
    first, second = (write_image(tmp_path / name, 29, 37) for name in ('1.png', '2.png'))

    def estimate(frames):  # the red of the second frame to the right, and 600 pixels down
        assert frames.shape == (1, 2, 23, 31, 3)
        return np.stack([frames[:, 1, ..., 0], 600 + 0 * frames[:, 1, ..., 0]], -1)

    model = KnownModel(estimate, {'tile': [23, 31]})
    expected = np.stack([second[..., 0] / 127.5 - 1, np.full((29, 37), 600)], -1)
    truth, valid = expected + [3, -4], RNG.random((29, 37)) < 0.5
    truth[0] += 12 - 3, 4 - 5  # there the error is 13
    write_flo(tmp_path / 'truth.flo', truth, valid)
    paths = [str(tmp_path / name) for name in ('1.png', '2.png')]
    out = str(tmp_path / 'out')
    result = estimate_flow(model, *paths, out, 'deepmind', str(tmp_path / 'truth.flo'))
    assert result['input'] == paths
    lengths = np.where(np.arange(29)[:, None] == 0, 13, 5) + np.zeros((29, 37))
    np.testing.assert_allclose(result['epe'], lengths[valid].mean(), rtol=1e-5)
    names = ['flow.flo', 'flow.png', 'flow_picture.png', 'flow_comparison.png']
    assert result['files'] == [f'{out}/1_{name}' for name in names]
    assert sorted(x.name for x in (tmp_path / 'out').iterdir()) == sorted(f'1_{x}' for x in names)
    estimate, known = read_flo(result['files'][0])
    np.testing.assert_allclose(estimate, expected, atol=1e-4)
    assert known.all()
    assert not read_kitti_flow(result['files'][1])[1].any()  # 600 pixels do not fit there
    assert cv2.imread(result['files'][2]).shape == (29, 37, 3)
    assert f'end-point error {result["epe"]:.2f} px' in as_text(result)


@pytest.mark.parametrize('front_end, factors', [({}, [2, 1]), ({'factors': [2, 1]}, None)])
def test_flow_is_refined_as_asked_or_as_the_run_did(tmp_path, front_end, factors):
    paths = [str(tmp_path / name) for name in ('1.png', '2.png')]
    for path in paths:
        write_image(path, 40, 60)
    model = KnownModel(
        lambda x: np.ones((*x.shape[:1], 23, 31, 2)), {'tile': [23, 31], **front_end}
    )
    result = estimate_flow(model, *paths, str(tmp_path / 'out'), factors=factors)
    flow, _ = read_flo(result['files'][0])
    np.testing.assert_allclose(flow, 3, rtol=1e-5)  # 2 of the shrunk frames' pixels, and 1


def test_frames_of_different_sizes_are_named(tmp_path):
    write_image(tmp_path / '1.png', 5, 7)
    write_image(tmp_path / '2.png', 5, 11)
    with pytest.raises(ValueError, match=r'1.png, .*2.png: frames must be of one size'):
        estimate_flow(None, str(tmp_path / '1.png'), str(tmp_path / '2.png'), 'out')


def test_a_truth_of_another_size_is_refused_before_the_work(tmp_path):
    for name in ('1.png', '2.png'):
        write_image(tmp_path / name, 5, 7)
    write_flo(tmp_path / 'truth.flo', np.zeros((7, 5, 2)))
    paths = [str(tmp_path / name) for name in ('1.png', '2.png')]
    with pytest.raises(
        ValueError, match=r'truth.flo: expected flow of \(5, 7\) pixels, got \(7, 5'
    ):
        estimate_flow(None, *paths, 'out', 'even', str(tmp_path / 'truth.flo'))
