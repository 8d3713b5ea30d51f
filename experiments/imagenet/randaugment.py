"""RandAugment as the published models were trained with it.

The operations take and return images uint8 `[height, width, 3]`, RGB, and do not write to their
argument. They, their strengths and their rounding follow TensorFlow's `autoaugment.py`
(tensorflow/tpu, models/official/efficientnet), of which DeepMind's Perceiver IO release holds a
copy. So `contrast` blends towards H * W / 256 (at most 255), not towards the mean grey, and at
magnitude 5 the four blending operations leave the image as it is.

Source: Cubuk et al., RandAugment, 2019; Perceiver IO, app. A.1 (4 layers at magnitude 5).
"""

from collections.abc import Callable

import cv2
import numpy as np

from perceiver_jax.errors import Refused

_FILL = 128  # grey, of pixels from outside the image
_LEVELS = np.arange(256)


def randaugment(
    image: np.ndarray, rng: np.random.Generator, *, layers: int, magnitude: float
) -> np.ndarray:
    """Applies `layers` operations to the image, each picked uniformly from the sixteen.

    The release also draws a probability from U(0.2, 0.8) for each operation, but never uses it:
    the operation that was picked is always applied.

    Args:
      image: An image, uint8 `[height, width, 3]`, RGB.
      rng: Generator of random numbers.
      layers: Number of operations (N in the paper).
      magnitude: Common strength of the operations (M in the paper), 0 to 10.

    Returns:
      The augmented image, uint8 `[height, width, 3]`.

    Raises:
      Refused: `magnitude` is outside 0 to 10.

    Source: Cubuk et al., RandAugment, 2019, section 3.
    """
    if not 0 <= magnitude <= 10:
        raise Refused(f'magnitude must lie in 0..10, got {magnitude}')
    for pick in rng.integers(len(OPERATIONS), size=layers):
        image = _OPERATIONS_BY_NUMBER[pick](image, magnitude / 10, rng)
    return image


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches the values of each channel linearly to 0..255."""
    tables = []
    for channel in cv2.split(image):
        low, high, _, _ = cv2.minMaxLoc(channel)
        if low == high:
            tables.append(_LEVELS)
        else:
            scale = np.float32(255 / (high - low))
            tables.append(np.clip(_LEVELS.astype(np.float32) * scale - low * scale, 0, 255))
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[None])


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalises the histogram of each channel."""
    tables = []
    for channel in cv2.split(image):
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (channel.size - counts[counts > 0][-1]) // 255
        if step == 0:
            tables.append(_LEVELS)
        else:
            below = np.concatenate([[0], np.cumsum(counts)[:-1] + step // 2]) // step
            tables.append(np.clip(below, 0, 255))
    return cv2.LUT(image, np.stack(tables, axis=-1).astype(np.uint8)[None])


def invert(image: np.ndarray) -> np.ndarray:
    """Returns the negative, 255 - image."""
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits of each value, and at least one, as TensorFlow does."""
    return image & np.uint8(256 - 2 ** min(8 - bits, 7))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts the values that are at least `threshold`, 0 to 256."""
    return _look_up(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """Adds `addition` to the values below 128."""
    return _look_up(image, np.where(_LEVELS < 128, _LEVELS + addition, _LEVELS))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends from the grey image (`factor` 0) to the image (1) and beyond."""
    if factor == 1:  # a shortcut: magnitude 5 gives this factor
        return image
    weights = np.array([[0.2989, 0.587, 0.114]], np.float32)
    # TensorFlow goes to [0, 1] by 1/255 and back by 255.5, rounding down.
    grey = (cv2.transform(image.astype(np.float32), weights) * (255.5 / 255)).astype(np.uint8)
    return _blend(grey[..., None], image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends from the grey level H * W / 256 (`factor` 0) to the image (1) and beyond."""
    grey = min(image.shape[0] * image.shape[1] / 256, 255)
    return _look_up(image, _blend(np.uint8(grey), _LEVELS.astype(np.uint8), factor))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends from black (`factor` 0) to the image (1) and beyond."""
    return _look_up(image, _blend(np.uint8(0), _LEVELS.astype(np.uint8), factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends from a smoothed image (`factor` 0) to the image (1) and beyond; the border stays."""
    if factor == 1:  # a shortcut: magnitude 5 gives this factor
        return image
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, cv2.CV_32F, kernel)[1:-1, 1:-1] / 13
    return _blend(smooth, image, factor)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Rotates about the centre, counterclockwise for `degrees` > 0; grey from outside."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return _warp(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """Shears along the rows: takes pixel (x, y) from (x + level * y, y); grey from outside."""
    return _warp(image, [[1, level, 0], [0, 1, 0]])


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """Shears along the columns: takes pixel (x, y) from (x, y + level * x); grey from outside."""
    return _warp(image, [[1, 0, 0], [level, 1, 0]])


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts to the left: takes pixel (x, y) from (x + pixels, y); grey from outside."""
    return _warp(image, [[1, 0, pixels], [0, 1, 0]])


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts upwards: takes pixel (x, y) from (x, y + pixels); grey from outside."""
    return _warp(image, [[1, 0, 0], [0, 1, pixels]])


def cutout(image: np.ndarray, pad: int, centre: tuple[int, int]) -> np.ndarray:
    """Fills the square of side 2 * `pad` around `centre` (row, column) with grey."""
    row, column = centre
    image = image.copy()
    image[max(row - pad, 0) : row + pad, max(column - pad, 0) : column + pad] = _FILL
    return image


# A level, magnitude / 10 in 0..1, becomes the argument of an operation.


def _random_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _blend_factor(level: float) -> float:
    return level * 1.8 + 0.1


def _random_place(image: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    row, column = rng.integers(image.shape[:2])
    return row, column


# Functions of (image, level, random numbers), in the release's order.
OPERATIONS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    'AutoContrast': lambda image, level, rng: autocontrast(image),
    'Equalize': lambda image, level, rng: equalize(image),
    'Invert': lambda image, level, rng: invert(image),
    'Rotate': lambda image, level, rng: rotate(image, level * 30 * _random_sign(rng)),
    'Posterize': lambda image, level, rng: posterize(image, int(level * 4)),
    'Solarize': lambda image, level, rng: solarize(image, int(level * 256)),
    'Color': lambda image, level, rng: color(image, _blend_factor(level)),
    'Contrast': lambda image, level, rng: contrast(image, _blend_factor(level)),
    'Brightness': lambda image, level, rng: brightness(image, _blend_factor(level)),
    'Sharpness': lambda image, level, rng: sharpness(image, _blend_factor(level)),
    'ShearX': lambda image, level, rng: shear_x(image, level * 0.3 * _random_sign(rng)),
    'ShearY': lambda image, level, rng: shear_y(image, level * 0.3 * _random_sign(rng)),
    'TranslateX': lambda image, level, rng: translate_x(image, level * 100 * _random_sign(rng)),
    'TranslateY': lambda image, level, rng: translate_y(image, level * 100 * _random_sign(rng)),
    'Cutout': lambda image, level, rng: cutout(image, int(level * 40), _random_place(image, rng)),
    'SolarizeAdd': lambda image, level, rng: solarize_add(image, int(level * 110)),
}
_OPERATIONS_BY_NUMBER = tuple(OPERATIONS.values())


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def _blend(start: np.ndarray | np.uint8, end: np.ndarray, factor: float) -> np.ndarray:
    """Blends linearly from uint8 `start` (factor 0) to uint8 `end` (1) and beyond; rounds down."""
    origin = start.astype(np.float32)
    return np.clip(origin + np.float32(factor) * (end - origin), 0, 255).astype(np.uint8)


def _warp(image: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """Takes pixel (x, y) from the one nearest to matrix @ (x, y, 1); grey from outside."""
    return cv2.warpAffine(
        image,
        np.array(matrix, np.float64),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(_FILL, _FILL, _FILL),
    )
