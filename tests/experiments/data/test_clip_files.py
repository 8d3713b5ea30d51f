import io

import cv2
import numpy as np
import pytest
import soundfile

from experiments.data import clip_files
from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import write_clip
from tests.toys.clips import as_from_a_pipe, film, tone


def test_a_clip_is_cut_out_of_a_whole_video(tmp_path):
    path = tmp_path / 'whole.mp4'
    sound = np.where(np.arange(4 * 48_000) < 2 * 48_000, tone(4, 0.1), tone(4, 0.7))
    write_clip(path, film(4), sound[:, None])
    clip, frames, wrong = clip_files.read_clip(path, 2.0, 1.4, True)
    assert wrong == {}
    assert clip.shape == (1.4 * 48_000,) and len(frames) == 35
    assert clip[9600:].std() == pytest.approx(0.7 / np.sqrt(2), abs=0.03)
    greys = [cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_COLOR).mean() for f in frames]
    expected = 255 * np.linspace(0.2, 0.8, 100)[50:85]
    np.testing.assert_allclose(greys, expected, atol=3)


def test_channels_are_averaged_and_rates_converted(tmp_path):
    path = tmp_path / 'stereo.wav'
    times = np.arange(3 * 44_100) / 44_100
    left = 0.6 * np.sin(2 * np.pi * 440 * times)
    soundfile.write(path, np.stack([left, 0 * left], -1), 44_100)
    clip, frames, wrong = clip_files.read_clip(path, 0.0, 2.0, False)
    assert (frames, wrong) == ([], {})
    np.testing.assert_allclose(clip[4800:-4800], tone(2.0, 0.3)[4800:-4800], atol=2e-3)


def test_large_frames_shrink_and_small_ones_stay():
    assert_size = {(300, 512): (256, 437), (512, 300): (437, 256), (38, 52): (38, 52)}
    for size, expected in assert_size.items():
        encoded = clip_files.encode_frame(np.full((*size, 3), (200, 100, 50), np.uint8))
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[:2] == expected
        np.testing.assert_allclose(image.mean((0, 1))[::-1], (200, 100, 50), atol=3)


def test_sound_keeps_sixteen_bits():
    sound = tone(0.5)
    decoded, rate = soundfile.read(io.BytesIO(clip_files.encode_sound(sound)), dtype='float32')
    assert rate == 48_000
    np.testing.assert_allclose(decoded, sound, atol=2**-15)


def test_sound_that_is_not_finite_leaves_a_clip_out(tmp_path):
    path = tmp_path / 'a.wav'
    sound = np.stack([tone(4), tone(4)], -1)
    sound[96_000] = (np.inf, -np.inf)
    soundfile.write(path, sound, 48_000, subtype='FLOAT')
    _, _, wrong = clip_files.read_clip(path, 0.5, 2.0, False)
    assert wrong == {'not finite': 'its sound is nan at 2.00 s, where 1 is full scale'}
    for start in (0.0, 2.1):  # what is not read does not matter
        assert clip_files.read_clip(path, start, 1.9, False)[2] == {}


def test_sound_that_fills_the_memory_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / 'a.flac'
    soundfile.write(path, np.zeros((96_000, 2)), 48_000)
    monkeypatch.setattr(limits, 'BYTES', 768_000)
    monkeypatch.setattr(limits, 'BYTES_PER_BYTE', 0)
    with soundfile.SoundFile(path) as opened:
        assert clip_files.read_sound(opened, 0).shape == (96_000, 2)
    monkeypatch.setattr(limits, 'BYTES', 767_999)
    with soundfile.SoundFile(path) as opened:
        with pytest.raises(Refused, match='its sound would take 768,000 bytes of memory'):
            clip_files.read_sound(opened, 0)
    sound, _, wrong = clip_files.read_clip(path, 0, None, False)
    assert 'its sound would take 768,000 bytes of memory' in wrong['damaged']
    assert 0 < len(sound) < 96_000  # what came before is kept


def test_the_length_of_sound_is_measured(tmp_path):
    path = tmp_path / 'a.wav'
    soundfile.write(path, tone(3, rate=8000), 8000)
    assert clip_files.sound_seconds(path, 9) == pytest.approx(3, abs=2e-3)
    assert 2 <= clip_files.sound_seconds(path, 2) < 2.2  # no more is decoded
    for size in (0, 2**32 - 1):
        as_from_a_pipe(path, size)
        assert clip_files.sound_seconds(path, 9) == pytest.approx(3, abs=2e-3)
    path.write_bytes(b'no sound')
    assert clip_files.sound_seconds(path, 9) == 0
