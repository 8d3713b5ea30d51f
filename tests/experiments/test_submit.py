"""Flow of a benchmark's test pairs, as its server wants it."""

import dataclasses

import cv2
import numpy as np
import pytest

from experiments import submit
from experiments.flow.files import read_flow

pytestmark = pytest.mark.smoke


@dataclasses.dataclass
class Brightness:
    """Stands where a Pretrained does: flow is the first frame's red and green."""

    function: str = 'optical_flow'

    front_end = {'tile': [23, 29]}

    def __call__(self, frames):
        return frames[:, 0, ..., :2]


@pytest.fixture
def data(tmp_path):
    """Two pairs of Sintel's and one of KITTI's test frames; each is of one colour."""
    for folder, names in (
        ('sintel/test/final/cave_3', ['frame_0001', 'frame_0002', 'frame_0003']),
        ('kitti2015/testing/image_2', ['000007_10', '000007_11']),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            frame = np.full((31, 41, 3), 51 * i, np.uint8)
            cv2.imwrite(str(tmp_path / folder / f'{name}.png'), frame)
    return tmp_path


@pytest.mark.parametrize(
    'benchmark, files',
    [
        ('sintel_final', ['final/cave_3/frame_0001.flo', 'final/cave_3/frame_0002.flo']),
        ('kitti2015', ['flow/000007_10.png']),
    ],
)
def test_every_test_pair_is_where_the_server_looks(data, monkeypatch, capsys, benchmark, files):
    monkeypatch.setattr(submit, 'open_model', lambda path, best: Brightness())
    out = data / 'out'
    submit.main(['weights', benchmark, '--data', str(data), '--out', str(out)])
    written = sorted(x.relative_to(out).as_posix() for x in out.rglob('*') if x.is_file())
    assert written == files
    for i, file in enumerate(files):
        flow, valid = read_flow(out / file)
        assert flow.shape == (31, 41, 2) and valid.all()
        np.testing.assert_allclose(flow, 2 * 51 * i / 255 - 1, atol=1 / 128)
    assert f'{len(files)} files are in' in capsys.readouterr().out


def test_another_kind_of_model_is_refused(data, monkeypatch):
    other = Brightness('image_classifier')
    monkeypatch.setattr(submit, 'open_model', lambda path, best: other)
    with pytest.raises(ValueError, match='weights is a model for image_classifier, not for flow'):
        submit.main(['weights', 'sintel_final', '--data', str(data)])
