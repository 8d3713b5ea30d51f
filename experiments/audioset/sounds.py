"""Generated sounds, one to three kinds at once: multi-label data that needs no files.

A clip of three seconds depends on its split and index alone. Some kinds differ by how they change
with time (tones stay, chirps glide, rhythms beat), others by their spectrum (noise, rumble).
"""

import numpy as np

from experiments.data.pipeline import Example
from perceiver_jax.errors import Refused

SECONDS = 3
_NUM_CLIPS = {'train': 2000, 'validation': 400}


class Sounds:
    """Source of generated clips, as `experiments.audioset.sources` describes them, without frames.

    Attributes:
      classes: Names of the kinds of sound, which are the labels.
    """

    def __init__(self, split: str, sample_rate: int):
        """Prepares a split; its sounds are generated when they are read.

        Args:
          split: 'train' or 'validation'.
          sample_rate: Sample rate in Hz, at least 8,000.

        Raises:
          Refused: The sample rate is too low for the pitches.
        """
        if sample_rate < 8000:
            raise Refused(f'sounds reach up to 4 kHz: 8,000 Hz are needed, not {sample_rate}')
        self._split, self._sample_rate = split, sample_rate
        self.classes = list(KINDS)

    def __repr__(self) -> str:
        return f'generated sounds, split {self._split}'

    def __len__(self) -> int:
        return _NUM_CLIPS[self._split]

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((list(_NUM_CLIPS).index(self._split), index))
        count = rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15])
        labels = sorted(rng.choice(len(KINDS), count, replace=False).tolist())
        times = np.arange(SECONDS * self._sample_rate) / self._sample_rate
        sound = 0.003 * rng.normal(size=len(times))  # no recording is silent
        for label in labels:
            part = KINDS[self.classes[label]](times, rng)
            loudness = 10 ** (rng.uniform(-30, -15) / 20)
            sound += loudness * part / np.sqrt(np.mean(part**2))
        sound = np.clip(sound, -1, 1).astype(np.float32)
        return {'name': f'sound {index}', 'sound': sound, 'frames': [], 'labels': labels}


def _tone(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A steady tone with two overtones."""
    pitch = rng.uniform(200, 1000)
    partials = [np.sin(2 * np.pi * k * pitch * times) / k for k in (1, 2, 3)]
    return np.sum(partials, axis=0)


def _glide(times: np.ndarray, rng: np.random.Generator, direction: int) -> np.ndarray:
    """Sweeps of about a second, one after the other, over one to two octaves."""
    low = rng.uniform(300, 900)
    octaves, period = rng.uniform(1, 2), rng.uniform(0.7, 1.3)
    phase = (times / period + rng.uniform()) % 1
    height = phase if direction > 0 else 1 - phase
    frequency = low * 2 ** (octaves * height)
    return np.sin(2 * np.pi * np.cumsum(frequency) * (times[1] - times[0]))


def _rising(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _glide(times, rng, 1)


def _falling(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _glide(times, rng, -1)


def _siren(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tone whose pitch goes up and down a few times a second."""
    pitch, rate = rng.uniform(500, 1200), rng.uniform(2, 4)
    swing = 0.3 * pitch / rate * np.sin(2 * np.pi * rate * times + rng.uniform(0, 2 * np.pi))
    return np.sin(2 * np.pi * pitch * times + swing)


def _noise(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All frequencies, all the time."""
    return rng.normal(size=len(times))


def _rumble(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise below about 300 Hz."""
    spectrum = np.fft.rfft(rng.normal(size=len(times)))
    frequencies = np.fft.rfftfreq(len(times), times[1] - times[0])
    return np.fft.irfft(spectrum / (1 + (frequencies / rng.uniform(150, 300)) ** 4), len(times))


def _beats(times: np.ndarray, rng: np.random.Generator, rate: float) -> np.ndarray:
    """Bursts of noise that die away, `rate` of them a second."""
    since = (times + rng.uniform(0, 1 / rate)) % (1 / rate)
    return rng.normal(size=len(times)) * np.exp(-since / 0.02)


def _slow_beat(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _beats(times, rng, rng.uniform(1.5, 3))


def _fast_beat(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _beats(times, rng, rng.uniform(8, 14))


KINDS = {
    'tone': _tone,
    'rising chirp': _rising,
    'falling chirp': _falling,
    'siren': _siren,
    'noise': _noise,
    'rumble': _rumble,
    'slow beat': _slow_beat,
    'fast beat': _fast_beat,
}
