"""What happens to one clip on its way to the model: cutting windows, augmentation, padding.

A clip is what the sources of `experiments.audioset.sources` give: 'name' str, 'sound' float32 `[n]`
mono, 'frames' a list of encoded JPEG files, 'labels' a list of int.
"""

import dataclasses

import cv2
import numpy as np

from experiments.data.crops import inception_crop
from experiments.data.pipeline import Batch, BrokenExample, Example
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import centre_crop, decode_image

_PART = 16_384  # samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """The size of one window of a clip, which is what the model takes.

    Attributes:
      num_frames: Length of the window in frames, T; without video it is the length of the sound in
        such units.
      frames_per_second: Frames in a second, of the clip and of the window.
      sample_rate: Sample rate of the sound in Hz, a multiple of `frames_per_second`.
      size: Side of the video in pixels, S; 0 stands for no video.

    Raises:
      Refused: A frame does not last a whole number of samples.
    """

    num_frames: int
    frames_per_second: int
    sample_rate: int
    size: int

    def __post_init__(self):
        if self.sample_rate % self.frames_per_second:
            raise Refused(
                f'config.clip: a frame must last a whole number of samples, got '
                f'{self.sample_rate} Hz and {self.frames_per_second} frames per second'
            )

    @property
    def samples_per_frame(self) -> int:
        """The samples of sound that last as long as one frame."""
        return self.sample_rate // self.frames_per_second

    @property
    def num_samples(self) -> int:
        """The samples of a window's sound, N."""
        return self.num_frames * self.samples_per_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Cuts a training window out of a clip at a random time, and augments it.

    Colour, crop and flip are the same for all frames of a window.

    Attributes:
      shape: Size of the window.
      num_classes: Number of classes, K.
      crop_area: Smallest and largest share of a frame that `inception_crop` keeps; None takes the
        central square.
      flip: Whether half of the windows are flipped left to right.
      brightness: Largest change of brightness either way, where the range of colours is 1.
      contrast: Largest change of the factor of contrast, either way from 1.
      saturation: Largest change of the factor of saturation, either way from 1.
      hue: Largest turn of hue either way, as a share of the full circle.
      roll: Whether the clip begins at a random sample, with what was before it appended. Only
        without video.
      gain_db: Largest change of loudness either way, in decibels.
      speed: Smallest and largest factor of speed, drawn for each clip: a faster sound is shorter
        and higher. Only without video; (1, 1) leaves it as it is.

    Raises:
      Refused: A clip with video is to be rolled, or made faster or slower.
    """

    shape: ClipShape
    num_classes: int
    crop_area: tuple[float, float] | None
    flip: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    roll: bool
    gain_db: float
    speed: tuple[float, float]

    def __post_init__(self):
        if self.roll and self.shape.size:
            raise Refused('config.augmentation.roll is for sound without video')
        if tuple(self.speed) != (1, 1) and self.shape.size:
            raise Refused('config.augmentation.speed is for sound without video: set it to (1, 1)')

    def __call__(self, clip: Example, rng: np.random.Generator) -> Batch:
        """Returns one training window.

        A clip shorter than a window is padded with silence and repetitions of its last frame.

        Args:
          clip: A clip, see the module's docstring; 'frames' are used only if `shape.size` is not 0.
          rng: Random numbers.

        Returns:
          'sound' float32 `[N]`, 'labels' float32 `[K]`, 1 for each label of the clip and else 0,
          and, unless `shape.size` is 0, 'video' uint8 `[T, S, S, 3]`, RGB.

        Raises:
          BrokenExample: A frame cannot be decoded, or there is none where the window begins.
        """
        shape, sound = self.shape, clip['sound']
        if self.roll:
            sound = np.roll(sound, rng.integers(len(sound)))
        if tuple(self.speed) != (1, 1):
            sound = _at_speed(sound, rng.uniform(*self.speed))
        if shape.size:  # sound and video begin with the same frame
            num_frames = min(len(clip['frames']), -(-len(sound) // shape.samples_per_frame))
            first = int(rng.integers(max(num_frames - shape.num_frames, 0) + 1))
            start = first * shape.samples_per_frame
        else:
            start = int(rng.integers(max(len(sound) - shape.num_samples, 0) + 1))
        gain = np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        example = {
            'sound': gain * _padded(sound[start : start + shape.num_samples], shape.num_samples),
            'labels': _many_hot(clip, self.num_classes),
        }
        if shape.size:
            frames = _decode(clip, start // shape.samples_per_frame, shape.num_frames)
            example['video'] = self._augment(frames, rng)
        return example

    def _augment(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Crops, resizes, flips and recolours `[T, height, width, 3]` to `[T, S, S, 3]`."""
        # Crops are of the first two axes: rows and columns, with time behind them.
        if self.crop_area is None:
            cropped = centre_crop(np.moveaxis(frames, 0, 2), 1.0)
        else:
            cropped = inception_crop(np.moveaxis(frames, 0, 2), rng, self.crop_area)
        flip = self.flip and rng.random() < 0.5
        limits = self.brightness, self.contrast, self.saturation, self.hue
        brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * limits
        matrix = colour_matrix(brightness, contrast, saturation, hue, frames.mean() / 255)
        video = _resize(np.moveaxis(cropped, 2, 0), self.shape.size)
        if flip:
            video = video[:, :, ::-1]
        if any(limits):
            tall = np.ascontiguousarray(video).reshape(-1, self.shape.size, 3)
            video = cv2.transform(tall, matrix).reshape(video.shape)  # rounds, and saturates
        return np.ascontiguousarray(video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Prepares a whole clip for evaluation, and says where its windows begin.

    Every clip comes out with the same length of F frames: longer ones are cut off, shorter ones are
    padded with silence and repetitions of their last frame. The windows are spread evenly over what
    the clip has.

    Attributes:
      shape: Size of a window.
      num_classes: Number of classes, K.
      num_windows: Number of windows, W, which may overlap.
      clip_seconds: Length of a prepared clip in seconds, at least that of a window.
      crop_fraction: Side of the centre crop / shorter side of the frame.

    Raises:
      Refused: A prepared clip is shorter than a window.
    """

    shape: ClipShape
    num_classes: int
    num_windows: int
    clip_seconds: float
    crop_fraction: float

    def __post_init__(self):
        if self.clip_frames < self.shape.num_frames:
            raise Refused(
                f'config.evaluation.clip_seconds is {self.clip_seconds}, less than the '
                f'{self.shape.num_frames / self.shape.frames_per_second} of a window'
            )

    @property
    def clip_frames(self) -> int:
        """The frames of a prepared clip, F."""
        return round(self.clip_seconds * self.shape.frames_per_second)

    def __call__(self, clip: Example) -> Batch:
        """Returns the prepared clip.

        Args:
          clip: A clip, see the module's docstring; 'frames' are used only if `shape.size` is not 0.

        Returns:
          'sound' float32 `[F * shape.samples_per_frame]`, 'labels' float32 `[K]`, 1 for each label
          of the clip and else 0, 'starts' int32 `[W]`, the frames at which the windows begin, and,
          unless `shape.size` is 0, 'video' uint8 `[F, S, S, 3]`, RGB.

        Raises:
          BrokenExample: A frame cannot be decoded, or there is none.
        """
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
    """Returns four changes of colour as one affine map of RGB in 0..255.

    Args:
      brightness: What is added to every channel, where the range of colours is 1.
      contrast: Share by which distances to `grey` grow.
      saturation: Share by which distances to each pixel's own grey grow.
      hue: Turn about the grey axis, as a share of the full circle.
      grey: Mean of the video, in 0..1.

    Returns:
      float32 `[3, 4]`: a matrix, and in the last column what is added.
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


def _decode(clip: Example, first: int, count: int) -> np.ndarray:
    """Decodes `count` frames, repeating the last one; uint8 `[count, height, width, 3]`."""
    images: list[np.ndarray] = []
    previous = None
    for encoded in clip['frames'][first : first + count]:
        if encoded == previous:  # a video with fewer frames a second shows each of them longer
            images.append(images[-1])
            continue
        try:
            images.append(decode_image(encoded, 3))
        except Refused as error:
            raise BrokenExample(f'{clip["name"]}: {error}') from error
        previous = encoded
    if not images:
        raise BrokenExample(f'{clip["name"]} has no video')
    return np.stack(images + (count - len(images)) * images[-1:])


def _resize(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes `[T, height, width, 3]` to `[T, size, size, 3]`, averaging areas to shrink."""
    shrinks = min(frames.shape[1:3]) > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack(
        [cv2.resize(np.ascontiguousarray(x), (size, size), interpolation=method) for x in frames]
    )


def _at_speed(sound: np.ndarray, factor: float) -> np.ndarray:
    """Resamples a wave by linear interpolation, so that it lasts 1 / factor as long."""
    resampled = np.empty(round(len(sound) / factor), np.float32)
    rise = np.append(np.diff(sound), np.float32(0))  # from each sample to the next
    # Part by part: memory that is new for whole sounds takes longer than the arithmetic.
    for first in range(0, len(resampled), _PART):
        places = np.arange(first, min(first + _PART, len(resampled))) * factor
        before = places.astype(np.intp)
        share = places - before
        resampled[first : first + _PART] = sound.take(before) + share * rise.take(before)
    return resampled


def _padded(sound: np.ndarray, num_samples: int) -> np.ndarray:
    """Appends silence up to a length."""
    return np.pad(sound, (0, num_samples - len(sound))).astype(np.float32)


def _many_hot(clip: Example, num_classes: int) -> np.ndarray:
    """Returns the labels as float32 `[num_classes]` of 0 and 1."""
    labels = np.zeros(num_classes, np.float32)
    labels[clip['labels']] = 1
    return labels
