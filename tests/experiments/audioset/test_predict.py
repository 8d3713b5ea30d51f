"""Sounds and videos, classified by a model that knows the answer."""

import numpy as np
import pytest
import soundfile

from experiments.audioset.predict import predict, score_clip
from experiments.predict import parse
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import write_clip
from tests.toys.known_model import AUDIO_VISUAL_CLIPS, KnownModel

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize('modalities', [['audio'], ['spectrogram', 'video']])
def test_a_clip_is_scored_window_by_window(tmp_path, modalities):
    write_clip(
        tmp_path / 'a.mp4',
        np.broadcast_to(np.linspace(0.2, 0.8, 40)[:, None, None, None], (40, 24, 32, 3)),
        np.full((40 * 1920, 1), 0.25),
    )
    seen = []

    def score(inputs):
        assert sorted(inputs) == modalities
        seen.append(inputs)
        return np.array([[0.0, len(seen), -1.0]])

    front_end = {**AUDIO_VISUAL_CLIPS, 'modalities': modalities}
    model = KnownModel(score, front_end, {'num_classes': 3}, activation='sigmoid')
    scores = score_clip(model, str(tmp_path / 'a.mp4'), 0.2)
    count = len(seen)  # 35 frames, ten at a time
    assert count == 6
    expected = np.mean([1 / (1 + np.exp(-i)) for i in range(1, count + 1)])
    np.testing.assert_allclose(scores, [0.5, expected, 1 / (1 + np.e)])
    if 'video' in modalities:
        starts = np.rint(np.linspace(0, 25, 6)).astype(int)
        greys = [np.asarray(x['video']).mean((0, 2, 3, 4)) for x in seen]
        expected = [2 * np.linspace(0.2, 0.8, 40)[i + 5 : i + 15] - 1 for i in starts]
        np.testing.assert_allclose(greys, expected, atol=0.04)
        assert all(x['spectrogram'].shape == (1, 10, 11) for x in seen)
    else:
        assert all(x['audio'].shape == (1, 19_200, 1) for x in seen)
        assert np.median(seen[0]['audio']) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize('value', [np.nan, -np.inf, 1e30])
@pytest.mark.parametrize('modality', ['audio', 'spectrogram'])
def test_a_sound_that_is_not_finite_is_named_and_not_the_weights(tmp_path, modality, value):
    soundfile.write(tmp_path / 'a.wav', np.full(19_200, value), 44_100, subtype='FLOAT')
    front_end = {**AUDIO_VISUAL_CLIPS, 'modalities': [modality]}
    model = KnownModel(lambda inputs: np.full((1, 3), np.nan), front_end, {'num_classes': 3})
    with pytest.raises(Refused, match='a.wav: its sound is .* at 0.00 s'):
        score_clip(model, str(tmp_path / 'a.wav'))


def answers_in_turn(*odds):
    """A model for sound alone whose answers to one call after the other have these odds."""
    logits = iter([np.log([answer]) for answer in odds])
    front_end = {**AUDIO_VISUAL_CLIPS, 'modalities': ['audio']}
    return KnownModel(lambda inputs: next(logits), front_end, {'num_classes': 3})


@pytest.mark.parametrize(
    'activation, num_frames, expected',
    [
        # Odds against its absence are those of each class by itself.
        ('sigmoid', 10, [3 / 4, 1 / 2, 1 / 5]),
        ('softmax', 10, [12 / 17, 4 / 17, 1 / 17]),
        # Two windows of ten frames, which overlap by half: their probabilities are averaged.
        ('sigmoid', 15, [(3 / 4 + 1 / 2) / 2, (1 / 2 + 5 / 6) / 2, 1 / 5]),
        ('softmax', 15, [(12 / 17 + 4 / 25) / 2, (4 / 17 + 20 / 25) / 2, (1 / 17 + 1 / 25) / 2]),
    ],
)
def test_probabilities_are_of_the_kind_that_the_run_measured(
    tmp_path, activation, num_frames, expected
):
    soundfile.write(tmp_path / 'a.wav', np.zeros(num_frames * 1920), 48000)
    model = answers_in_turn([3, 1, 1 / 4], [1, 5, 1 / 4])
    model.activation = activation
    path = str(tmp_path / 'a.wav')
    np.testing.assert_allclose(score_clip(model, path), expected)

    model = answers_in_turn([3, 1, 1 / 4], [1, 5, 1 / 4])
    model.activation, model.classes = activation, ['cat', 'dog', 'owl']
    (result,) = predict(model, parse(['model', path]))
    assert (result['input'], result['files']) == (path, [])
    chances = {x['label']: x['probability'] for x in result['best']}
    assert chances == pytest.approx(dict(zip(model.classes, expected, strict=True)))
    assert list(chances) == sorted(chances, key=chances.get, reverse=True)


def test_a_model_that_does_not_say_what_its_logits_are_is_refused(tmp_path):
    soundfile.write(tmp_path / 'a.wav', np.zeros(19_200), 48000)
    with pytest.raises(Refused, match='the model does not say how its logits become probabil'):
        score_clip(answers_in_turn([1, 2, 3]), str(tmp_path / 'a.wav'))
