"""Clips, reconstructed by a model that knows the answer."""

import cv2
import numpy as np
import pytest

from experiments.kinetics.predict import autoencode
from perceiver_jax.front_ends.media import read_video
from tests.toys.known_model import CLIPS, KnownModel, make_clip

pytestmark = pytest.mark.smoke


def test_a_clip_is_reconstructed_from_its_start_on(tmp_path):
    make_clip(tmp_path / 'a.mp4')
    seen = []

    def reconstruct(video, audio):
        assert video.shape == (1, 4, 16, 16, 3) and audio.shape == (1, 4 * 1920, 1)
        seen.append(video)
        return {'video': 1 - video, 'audio': -audio, 'label': np.log([[1.0, 3.0]])}

    model = KnownModel(reconstruct, CLIPS)
    out = str(tmp_path / 'out')
    result = autoencode(model, str(tmp_path / 'a.mp4'), out, ['cat', 'dog'], 0.12)
    np.testing.assert_allclose(seen[0].mean((0, 2, 3, 4)), np.linspace(0.2, 0.8, 8)[3:7], atol=0.02)
    assert result['files'] == [f'{out}/a_reconstruction.mp4', f'{out}/a_reconstruction.png']
    written = read_video(result['files'][0], 4, 16)
    np.testing.assert_allclose(written, 1 - seen[0][0], atol=0.02)
    assert cv2.imread(result['files'][1]).std() > 1
    assert [x['label'] for x in result['best']] == ['dog', 'cat']
