"""Where clips of sound and video are read from, and what happens to one on its way to the model.

A clip is {'name': str, 'sound': float32 [n] mono, 'frames': list of JPEG files, 'labels': ints};
frame i is shown while the samples from i * sample_rate / frames_per_second on are heard. Frames are
an empty list where none were asked for. Every source has `classes`, the names of its labels.
"""

import dataclasses

import cv2
import numpy as np

from experiments.data.crops import inception_crop
from experiments.data.pipeline import BrokenExample
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import centre_crop, decode_image

# On the way to the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """What the model looks at: a window of `num_frames`, and the sound of that time."""

    num_frames: int
    frames_per_second: int
    sample_rate: int  # Hz
    size: int  # of the video, pixels; 0: there is no video

    def __post_init__(self):
        if self.sample_rate % self.frames_per_second:
            raise Refused(
                f'config.clip: a frame must last a whole number of samples, got '
                f'{self.sample_rate} Hz and {self.frames_per_second} frames per second'
            )

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.frames_per_second

    @property
    def num_samples(self) -> int:
        return self.num_frames * self.samples_per_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """(clip, random numbers) -> {'sound' [n], 'labels' [K] float32, 'video' [T, S, S, 3] uint8}.

    A window at a random time. Colour, crop and flip are the same for all frames of a window.
    """

    shape: ClipShape
    num_classes: int  # K
    crop_area: tuple[float, float] | None  # of Inception's crop, share of a frame; None: centre
    flip: bool  # left to right, half of the time
    brightness: float  # largest change, of 1
    contrast: float
    saturation: float
    hue: float  # largest turn, of a full one
    roll: bool  # the clip begins anywhere, what was before is appended; for sound alone
    gain_db: float  # largest change of loudness either way

    def __post_init__(self):
        if self.roll and self.shape.size:
            raise Refused('config.augmentation.roll is for sound without video')

    def __call__(self, clip: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        shape, sound = self.shape, clip['sound']
        if self.roll:
            sound = np.roll(sound, rng.integers(len(sound)))
        if shape.size:  # both begin with a frame
            last = min(len(clip['frames']), -(-len(sound) // shape.samples_per_frame))
            first = int(rng.integers(max(last - shape.num_frames, 0) + 1))
            start = first * shape.samples_per_frame
        else:
            start = int(rng.integers(max(len(sound) - shape.num_samples, 0) + 1))
        gain = np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        example = {
            'sound': gain * _padded(sound[start : start + shape.num_samples], shape.num_samples),
            'labels': _many_hot(clip, self.num_classes),
        }
        if shape.size:
            frames = _decode(clip, first, shape.num_frames)
            example['video'] = self._augment(frames, rng)
        return example

    def _augment(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.crop_area is None:
            cropped = centre_crop(np.moveaxis(frames, 0, 2), 1.0)
        else:  # a crop of rows and columns, whatever the axes behind them
            cropped = inception_crop(np.moveaxis(frames, 0, 2), rng, self.crop_area)
        flip = self.flip and rng.random() < 0.5
        limits = self.brightness, self.contrast, self.saturation, self.hue
        matrix = colour_matrix(*(rng.uniform(-1, 1, 4) * limits), grey=frames.mean() / 255)
        video = _resize(np.moveaxis(cropped, 2, 0), self.shape.size)
        if flip:
            video = video[:, :, ::-1]
        if any(limits):
            tall = np.ascontiguousarray(video).reshape(-1, self.shape.size, 3)
            video = cv2.transform(tall, matrix).reshape(video.shape)  # rounds, and saturates
        return np.ascontiguousarray(video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Clip -> {'sound' [N], 'labels' [K] float32, 'video' [F, S, S, 3] uint8, 'starts' [W] int32}.

    The whole clip once, cut off or filled up with silence and the last frame; `starts` are the
    frames at which W windows begin, spread evenly over what there is.
    """

    shape: ClipShape
    num_classes: int
    num_windows: int  # W
    clip_seconds: float
    crop_fraction: float  # side of the centre crop / shorter side of the frame

    def __post_init__(self):
        if self.clip_frames < self.shape.num_frames:
            raise Refused(
                f'config.evaluation.clip_seconds is {self.clip_seconds}, less than the '
                f'{self.shape.num_frames / self.shape.frames_per_second} of a window'
            )

    @property
    def clip_frames(self) -> int:  # F
        return round(self.clip_seconds * self.shape.frames_per_second)

    def __call__(self, clip: dict) -> dict[str, np.ndarray]:
        shape, sound = self.shape, clip['sound']
        num_frames = -(-len(sound) // shape.samples_per_frame)
        if shape.size:
            num_frames = min(num_frames, len(clip['frames']))
        num_frames = min(num_frames, self.clip_frames)
        num_samples = self.clip_frames * shape.samples_per_frame
        last = max(num_frames - shape.num_frames, 0)
        example = {
            'sound': _padded(sound[: num_frames * shape.samples_per_frame], num_samples),
            'labels': _many_hot(clip, self.num_classes),
            'starts': np.rint(np.linspace(0, last, self.num_windows)).astype(np.int32),
        }
        if shape.size:
            frames = _decode(clip, 0, num_frames)
            cropped = centre_crop(np.moveaxis(frames, 0, 2), self.crop_fraction)
            video = _resize(np.moveaxis(cropped, 2, 0), shape.size)
            missing = self.clip_frames - num_frames
            example['video'] = np.pad(video, [(0, missing), *3 * [(0, 0)]], mode='edge')
        return example


def colour_matrix(
    brightness: float, contrast: float, saturation: float, hue: float, grey: float
) -> np.ndarray:
    """The four changes of colour as one affine map of RGB in 0..255.

    Args:
      brightness: added, of 1.
      contrast: distances to `grey` grow by this share.
      saturation: distances to each pixel's own grey grow by this share.
      hue: turn about the grey axis, of a full one.
      grey: mean of the video, in 0..1.

    Returns:
      [3, 4] float32: a matrix, and what is added.
    """
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))  # grey of a pixel, ITU-R BT.601
    saturate = (1 + saturation) * np.eye(3) - saturation * luma
    axis = np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    angle = 2 * np.pi * hue
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross
    turn += (1 - np.cos(angle)) * np.outer(axis, axis)
    matrix = (1 + contrast) * turn @ saturate
    offset = 255 * (brightness - contrast * grey)
    return np.hstack([matrix, np.full((3, 1), offset)]).astype(np.float32)


def _decode(clip: dict, first: int, count: int) -> np.ndarray:
    """`count` frames, the last repeated where there are fewer; uint8 [count, height, width, 3]."""
    images, seen = [], {}
    for encoded in clip['frames'][first : first + count]:
        if encoded not in seen:  # a video of fewer frames a second shows each of them longer
            try:
                seen = {encoded: decode_image(encoded, 3)}
            except ValueError as error:
                raise BrokenExample(f'{clip["name"]}: {error}') from error
        images.append(seen[encoded])
    if not images:
        raise BrokenExample(f'{clip["name"]} has no video')
    return np.stack(images + (count - len(images)) * images[-1:])


def _resize(frames: np.ndarray, size: int) -> np.ndarray:
    """[T, height, width, 3] -> [T, size, size, 3] uint8, averaging areas where frames shrink."""
    shrinks = min(frames.shape[1:3]) > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack(
        [cv2.resize(np.ascontiguousarray(x), (size, size), interpolation=method) for x in frames]
    )


def _padded(sound: np.ndarray, num_samples: int) -> np.ndarray:
    return np.pad(sound, (0, num_samples - len(sound))).astype(np.float32)


def _many_hot(clip: dict, num_classes: int) -> np.ndarray:
    labels = np.zeros(num_classes, np.float32)
    labels[clip['labels']] = 1
    return labels
