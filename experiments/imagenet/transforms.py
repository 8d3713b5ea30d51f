"""What happens to one image: decode, crop, flip, RandAugment, jitter, resize, normalise.

Images are arrays [height, width, channels], RGB where there are three channels. They are uint8
up to the resize, which returns float32 on the same 0..255 scale without clamping. Crops and
resize follow TensorFlow's, which trained the published models.
"""

import dataclasses

import cv2
import numpy as np

from experiments.data.crops import inception_crop
from experiments.data.pipeline import BrokenExample
from experiments.imagenet.randaugment import randaugment
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import centre_crop, decode_image, normalise, resize

# Many examples are made at once; threads within one would only fight over the cores.
cv2.setNumThreads(1)


def jitter(
    image: np.ndarray, rng: np.random.Generator, degrees: float, shift: float, scale: float
) -> np.ndarray:
    """Turns, scales and shifts the image about its centre, with zeros from outside.

    Args:
      image: [height, width, channels].
      rng: random numbers.
      degrees: largest turn either way.
      shift: largest move either way along each axis, in parts of the side.
      scale: largest change of size either way: 0.1 draws from 0.9 to 1.1.

    Returns:
      [height, width, channels], interpolated bicubically: linear would blur small images.
    """
    height, width, channels = image.shape
    angle, across, down, size = rng.uniform(-1, 1, 4) * (degrees, shift, shift, scale)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1 + size)
    matrix[:, 2] += across * width, down * height
    turned = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC)
    return turned.reshape(height, width, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """(encoded example, random numbers) -> augmented {'image' [S, S, C] float32, 'label' int32}."""

    image_size: int  # S, pixels
    mean: tuple[float, ...]  # per channel, of images in 0..1; C = len(mean)
    std: tuple[float, ...]
    crop_area: tuple[float, float] | None  # None keeps the whole image
    flip: bool  # left to right, half of the time
    randaugment_layers: int
    randaugment_magnitude: float
    jitter_degrees: float
    jitter_shift: float
    jitter_scale: float

    def __post_init__(self):
        if self.randaugment_layers and len(self.mean) != 3:
            raise Refused(
                f'RandAugment needs images of 3 channels, got randaugment_layers='
                f'{self.randaugment_layers} with {len(self.mean)} means'
            )

    def __call__(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = _decode_example(example, channels=len(self.mean))
        if self.crop_area is not None:
            image = inception_crop(image, rng, self.crop_area)
        if self.flip and rng.random() < 0.5:
            image = cv2.flip(image, 1).reshape(image.shape)
        if self.randaugment_layers:
            image = randaugment(
                image, rng, layers=self.randaugment_layers, magnitude=self.randaugment_magnitude
            )
        if self.jitter_degrees or self.jitter_shift or self.jitter_scale:
            image = jitter(image, rng, self.jitter_degrees, self.jitter_shift, self.jitter_scale)
        image = normalise(resize(image, self.image_size), self.mean, self.std)
        return {'image': image, 'label': np.int32(example['label'])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Encoded example -> centre crop {'image' [S, S, C] float32, 'label' int32}."""

    image_size: int  # S, pixels
    mean: tuple[float, ...]  # per channel, of images in 0..1; C = len(mean)
    std: tuple[float, ...]
    crop_fraction: float  # side of the crop / shorter side of the image

    def __call__(self, example: dict) -> dict[str, np.ndarray]:
        image = _decode_example(example, channels=len(self.mean))
        image = resize(centre_crop(image, self.crop_fraction), self.image_size)
        return {
            'image': normalise(image, self.mean, self.std),
            'label': np.int32(example['label']),
        }


def _decode_example(example: dict, channels: int) -> np.ndarray:
    try:
        return decode_image(example['encoded'], channels)
    except ValueError as error:
        raise BrokenExample(f'{example["name"]}: {error}') from error
