"""What tests of predictions share: a model that knows the answer, and small files for it."""

import dataclasses
from collections.abc import Callable, Mapping

import cv2
import numpy as np

from perceiver_jax.front_ends.media import write_clip

RNG = np.random.default_rng(0)
IMAGES = {'size': 7, 'crop_fraction': 1.0, 'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.3, 0.4]}
CLIPS = {'num_frames': 4, 'size': 16, 'frames_per_second': 25, 'sample_rate': 48000}
MEL = dict(hop=1920, window=2048, num_bins=11, low=50.0, high=2e4, mean_db=-60.0, std_db=20.0)
AUDIO_VISUAL_CLIPS = {**CLIPS, 'num_frames': 10, 'crop_fraction': 1.0, 'log_mel': MEL}


@dataclasses.dataclass
class KnownModel:
    """Stands where a Pretrained does."""

    function: Callable
    front_end: Mapping
    arguments: Mapping = dataclasses.field(default_factory=dict)
    params: Mapping = dataclasses.field(default_factory=dict)
    classes: list | None = None
    activation: str | None = None
    attention: Callable | None = None

    def __call__(self, *inputs):
        return self.function(*inputs)


def write_image(path, height, width):
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


def make_clip(path):
    video = np.broadcast_to(np.linspace(0.2, 0.8, 8)[:, None, None, None], (8, 16, 16, 3))
    sound = 0.5 * np.sin(np.arange(8 * 1920) / 50)[:, None]
    write_clip(path, video, sound, 25, 48000)
