"""Images and pairs of frames, from files to what the models take.

Crops and resizing are those of the published evaluation. OpenCV reads the files.

Source: DeepMind's release of Perceiver IO.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perceiver_jax import limits
from perceiver_jax.checks import check_array, check_axes, check_integers, check_number
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.image_sizes import largest_sides


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads a photograph: JPEG, PNG or whatever else OpenCV decodes, of any colour space.

    The camera's orientation tag is applied, so that the image stands as viewers show it.
    Transparency is dropped, 16 bits become 8.

    Args:
      path: The file.
      channels: 3 for RGB, 1 for grey.

    Returns:
      Image, uint8 `[height, width, channels]`.

    Raises:
      Refused: The file is not a whole image, or `channels` is neither 1 nor 3.
      OSError: The file cannot be read.
    """
    encoded = Path(path).read_bytes()
    try:
        return decode_image(encoded, channels, oriented=True)
    except Refused as error:
        raise Refused(f'{path}: {error}') from error


def decode_image(encoded: bytes, channels: int, *, oriented: bool = False) -> np.ndarray:
    """Decodes a JPEG or PNG file of any colour space.

    Args:
      encoded: Content of the file.
      channels: 3 for RGB, 1 for grey.
      oriented: Whether to turn the image by its orientation tag. ImageNet's boxes and all its
        published results ignore the tag.

    Returns:
      Image, uint8 `[height, width, channels]`.

    Raises:
      Refused: `encoded` is not a whole image or has more pixels than `limits` allows, or `channels`
        is neither 1 nor 3.
    """
    import cv2

    if channels not in (1, 3):
        raise Refused(f'channels must be 1 or 3, not {channels!r}')
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}[channels]
    if not oriented:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    if encoded[:2] in (b'PF', b'Pf'):  # OpenCV would round them, NaN to black
        raise Refused('a .pfm file of floating-point numbers is no image of 8 or 16 bits')
    check_pixels(encoded)
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes; None for everything else
        image = None
    if image is None:
        raise Refused(f'{len(encoded)} bytes that are no whole image of a kind that OpenCV reads')
    return image.reshape(*image.shape[:2], channels)


def check_pixels(encoded: bytes) -> None:
    """Checks the size of an image before it is decoded.

    Args:
      encoded: Content of the file.

    Raises:
      Refused: It states more pixels than `limits` allows.
    """
    if sides := largest_sides(encoded):
        limits.check_pixels('the image', *sides)


def prepare_image(
    image: np.ndarray,
    size: int,
    crop_fraction: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """Prepares an image as the published evaluation does: crop the centre, resize, normalise.

    Args:
      image: Image, uint8 `[height, width, channels]`.
      size: Side of the result in pixels.
      crop_fraction: Side of the crop / shorter side of the image.
      mean: Mean of each channel, for images from 0 to 1.
      std: Standard deviation of each channel, for images from 0 to 1.

    Returns:
      Normalised image, float32 `[size, size, channels]`.

    Raises:
      Refused: `image` is of another shape or dtype, `mean` and `std` are not one number for each
        channel, or `size` or `crop_fraction` is out of range.
    """
    _check_channels(mean, std)
    _check_image('image', image, len(mean))
    check_number('size', size)
    if size < 1 or size % 1:
        raise Refused(f'size must be a whole number of pixels, got {size}')
    return normalise(resize(centre_crop(image, crop_fraction), int(size)), mean, std)


def prepare_frames(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Prepares two frames of a video for optical flow, from the first to the second.

    Args:
      first: First frame, uint8 `[height, width, 3]`, RGB.
      second: Second frame, uint8 `[height, width, 3]`, RGB, of the same size as the first.

    Returns:
      Both frames, float32 `[2, height, width, 3]`, from -1 to 1.

    Raises:
      Refused: A frame is of another shape or dtype, or their sizes differ.
    """
    _check_image('first frame', first, 3)
    _check_image('second frame', second, 3)
    if first.shape != second.shape:
        raise Refused(f'frames must be of one size, got {first.shape} and {second.shape}')
    return np.stack([first, second]).astype(np.float32) / 255 * 2 - 1


def _check_image(name: str, image: np.ndarray, channels: int) -> None:
    check_array('a front end', name, image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise Refused(
            f'{name} must be uint8 [height, width, {channels}], got {image.dtype} {image.shape}'
        )


def _check_channels(mean: Sequence[float], std: Sequence[float]) -> None:
    if np.ndim(mean) != 1 or np.shape(mean) != np.shape(std):
        raise Refused(f'mean and std must have one entry for each channel, got {mean} and {std}')


def centre_crop(image: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the central square of an image, or of frames at the same place.

    Args:
      image: Image, `[height, width, channels]`, or `[height, width, ...]`.
      fraction: Side of the square / shorter side of the image, in (0, 1]. The published evaluation
        has 0.875 = 224 / (224 + 32).

    Returns:
      Central square, `[side, side, ...]`, a view of `image`.

    Raises:
      Refused: `fraction` is out of range, or `image` has other axes.

    Source: DeepMind's release of Perceiver IO.
    """
    check_array('centre_crop', 'image', image)
    if image.ndim < 2:
        raise Refused(f'centre_crop takes an image [height, width, ...]; got {image.shape}')
    check_number('the part of the shorter side to crop', fraction)
    if not 0 < fraction <= 1:
        raise Refused(f'the part of the shorter side to crop must be in 0..1, got {fraction}')
    height, width = image.shape[:2]
    side = max(int(fraction * min(height, width)), 1)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image to a square by bicubic interpolation, without antialiasing or clamping.

    The kernel is Keys' cubic with a = -0.5, where OpenCV has -0.75; taps outside the image are
    left out and the others scaled to sum to 1.

    Args:
      image: Image of any dtype, `[height, width, channels]`.
      size: Side of the result in pixels.

    Returns:
      Resized image, float32 `[size, size, channels]`; it overshoots the range of `image` at edges.

    Raises:
      Refused: `image` has other axes, or `size` is no integer.

    Source: tf.image.resize(method='bicubic'); Keys, Cubic Convolution Interpolation, 1981.
    """
    check_axes('resize', image=(image, 'height width channels'))
    check_integers('resize', size=size)
    import cv2

    height, width, channels = image.shape
    rows = image.astype(np.float32).reshape(height, width * channels)
    rows = (_cubic_weights(height, size) @ rows).reshape(size, width, channels)
    columns = cv2.transpose(rows).reshape(width, size * channels)
    columns = (_cubic_weights(width, size) @ columns).reshape(size, size, channels)
    return cv2.transpose(columns).reshape(size, size, channels)


@functools.lru_cache(maxsize=4096)
def _cubic_weights(length: int, size: int):
    """Returns the sparse matrix `[size, length]`, four entries per row, that resizes one axis."""
    import scipy.sparse  # comes with JAX; three times as fast as adding four rows at a time

    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    taps = np.floor(centres).astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
    x = np.abs(centres[:, None] - taps)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x <= 1, near, far) * ((taps >= 0) & (taps < length))
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, length - 1)
    return scipy.sparse.csr_array(
        (weights.astype(np.float32).ravel(), taps.ravel(), 4 * np.arange(size + 1)),
        shape=(size, length),
    )


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns (image / 255 - mean) / std.

    Args:
      image: Image, float32 `[height, width, channels]`, from 0 to 255.
      mean: Mean of each channel, for images from 0 to 1.
      std: Standard deviation of each channel, for images from 0 to 1.

    Returns:
      Normalised image, float32 `[height, width, channels]`.

    Raises:
      Refused: `image` has other axes, or `mean` and `std` are not one number for each channel.
    """
    check_axes('normalise', image=(image, 'height width channels'))
    _check_channels(mean, std)
    scale, offset = _row_of_scales(tuple(mean), tuple(std), image.shape[1])
    return (image.reshape(len(image), -1) * scale - offset).reshape(image.shape)


@functools.lru_cache
def _row_of_scales(mean, std, width):
    """Returns scale and offset for a whole row: NumPy is slow where the last axis is short."""
    scale, offset = 1 / (255 * np.float32(std)), np.float32(mean) / np.float32(std)
    return np.tile(scale, width), np.tile(offset, width)
