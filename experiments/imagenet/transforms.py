"""What happens to one image: decode, crop, flip, RandAugment, jitter, resize, normalise.

Images are arrays `[height, width, channels]`, RGB where there are three channels. They are uint8
up to the resize, which returns float32 on the same scale without clamping. Crops and resize follow
TensorFlow's, with which the published models were trained.
"""

import dataclasses

import cv2
import numpy as np

from experiments.data.crops import inception_crop
from experiments.data.pipeline import BrokenExample, Example, Item
from experiments.imagenet.randaugment import randaugment
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import centre_crop, decode_image, normalise, resize

# Largest difference of red or blue from green, of 255, in an image that counts as grey: paper that
# was scanned is tinted, and JPEG adds one or two; our choice: deviations.md#grey-images
_GREY = 24

# Many examples are made at once; threads within one would only fight over the cores.
cv2.setNumThreads(1)


def jitter(
    image: np.ndarray, rng: np.random.Generator, degrees: float, shift: float, scale: float
) -> np.ndarray:
    """Rotates, scales and shifts the image about its centre; pixels from outside are 0.

    Args:
      image: An image, uint8 `[height, width, channels]`.
      rng: Generator of random numbers.
      degrees: Largest rotation in either direction, in degrees.
      shift: Largest shift in either direction along each axis, as a fraction of the side.
      scale: Largest relative change of size: 0.1 draws factors from 0.9 to 1.1.

    Returns:
      Image like `image`, interpolated bicubically: linear interpolation would blur small images.
    """
    height, width, channels = image.shape
    angle, across, down, size = rng.uniform(-1, 1, 4) * (degrees, shift, shift, scale)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1 + size)
    matrix[:, 2] += across * width, down * height
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_CUBIC)
    return moved.reshape(height, width, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Decodes and augments an image for training.

    Attributes:
      image_size: Side S of the result in pixels.
      mean: Mean of each of the C channels, of images in 0..1, subtracted from the image.
      std: Standard deviation of each channel, of images in 0..1, by which the image is divided.
      crop_area: Smallest and largest share of the image's area that a random crop keeps; None
        keeps the whole image.
      flip: Whether to mirror half of the images left to right.
      randaugment_layers: Number of RandAugment's operations on each image; 0 applies none.
      randaugment_magnitude: Strength of RandAugment's operations, 0 to 10.
      jitter_degrees: Largest random rotation in either direction, in degrees.
      jitter_shift: Largest random shift along each axis, as a fraction of the side.
      jitter_scale: Largest random change of size: 0.1 draws factors from 0.9 to 1.1.

    Raises:
      Refused: RandAugment is asked for and the images do not have 3 channels.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_area: tuple[float, float] | None
    flip: bool
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

    def __call__(self, example: Example, rng: np.random.Generator) -> Item:
        """Makes one row of a training batch.

        Args:
          example: An image as its source yields it: 'encoded', bytes of a JPEG or PNG file,
            'label', int, and 'name', str.
          rng: Generator of the random numbers of the augmentation.

        Returns:
          'image', float32 `[S, S, C]`, and 'label', int32.

        Raises:
          BrokenExample: The bytes are no whole image, or one in colour where C is 1; the message
            has the example's name.
        """
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
    """Decodes an image and crops its centre for evaluation.

    Attributes:
      image_size: Side S of the result in pixels.
      mean: Mean of each of the C channels, of images in 0..1, subtracted from the image.
      std: Standard deviation of each channel, of images in 0..1, by which the image is divided.
      crop_fraction: Side of the square centre crop / shorter side of the image.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float

    def __call__(self, example: Example) -> Item:
        """Makes one row of an evaluation batch.

        Args:
          example: An image as its source yields it: 'encoded', bytes of a JPEG or PNG file,
            'label', int, and 'name', str.

        Returns:
          'image', float32 `[S, S, C]`, and 'label', int32.

        Raises:
          BrokenExample: The bytes are no whole image, or one in colour where C is 1; the message
            has the example's name.
        """
        image = _decode_example(example, channels=len(self.mean))
        image = resize(centre_crop(image, self.crop_fraction), self.image_size)
        return {
            'image': normalise(image, self.mean, self.std),
            'label': np.int32(example['label']),
        }


def is_coloured(encoded: bytes) -> bool:
    """Returns whether an image shows colours, not only greys that are stored as RGB.

    Args:
      encoded: Content of a whole JPEG or PNG file.
    """
    red, green, blue = cv2.split(decode_image(encoded, 3))
    return max(cv2.norm(red, green, cv2.NORM_INF), cv2.norm(green, blue, cv2.NORM_INF)) > _GREY


def _decode_example(example: Example, channels: int) -> np.ndarray:
    try:
        image = decode_image(example['encoded'], channels)
    except Refused as error:
        raise BrokenExample(f'{example["name"]}: {error}') from error
    if channels == 1 and is_coloured(example['encoded']):
        raise BrokenExample(
            f'{example["name"]}: it is in colour, and config.images.mean and std have one number, '
            'for images in grey: give them three, as configs/imagenet.py:small does'
        )
    return image
