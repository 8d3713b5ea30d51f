import numpy as np
import pytest

from experiments.audioset.sounds import Sounds


def test_sounds_are_the_same_every_time_and_differ():
    train, validation = Sounds('train', 8000), Sounds('validation', 8000)
    first = train[17]
    np.testing.assert_array_equal(first['sound'], Sounds('train', 8000)[17]['sound'])
    assert first['sound'].shape == (24_000,) and first['sound'].dtype == np.float32
    assert np.abs(first['sound']).max() <= 1
    others = [train[18], validation[17]]
    assert not any(np.array_equal(first['sound'], other['sound']) for other in others)
    assert (len(train), len(validation)) == (2000, 400)


def test_every_kind_occurs_alone_and_with_others():
    labels = [Sounds('train', 8000)[i]['labels'] for i in range(150)]
    assert {len(some) for some in labels} == {1, 2, 3}
    assert {some[0] for some in labels if len(some) == 1} == set(range(8))


def test_kinds_are_what_they_are_called():
    source = Sounds('train', 8000)
    spectra = {}
    for i in range(150):
        clip = source[i]
        if len(clip['labels']) == 1:
            spectrum = np.abs(np.fft.rfft(clip['sound'])) ** 2
            spectra.setdefault(source.classes[clip['labels'][0]], []).append(spectrum)
    hertz = np.fft.rfftfreq(24_000, 1 / 8000)

    def share_below(kind, limit):
        return min(s[hertz < limit].sum() / s.sum() for s in spectra[kind])

    assert share_below('rumble', 500) > 0.9
    assert max(s[hertz < 2000].sum() / s.sum() for s in spectra['noise']) < 0.6
    assert min(np.sort(s)[-20:].sum() / s.sum() for s in spectra['tone']) > 0.9


def test_sounds_need_a_rate_for_their_pitches():
    with pytest.raises(ValueError, match='8,000 Hz are needed, not 4000'):
        Sounds('train', 4000)
