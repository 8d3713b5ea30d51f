"""Random crops."""

import numpy as np

from perceiver_jax.front_ends.images import centre_crop

_FALLBACK_CROP = 0.875  # part of the shorter side, where a random crop finds no place


def inception_crop(
    image: np.ndarray, rng: np.random.Generator, area: tuple[float, float]
) -> np.ndarray:
    """Returns a random crop, its width 3/4 to 4/3 of its height.

    Ten attempts draw an aspect ratio, then a height among those that fit; the first crop of an
    allowed area counts. Without one, and where that is the whole image, the reference's centre
    crop takes its place.

    Args:
      image: [height, width, channels].
      rng: random numbers.
      area: smallest and largest part of the image to keep. Below 0.1 it has no effect, as the
        reference's `min_object_covered` then rejects the crop.

    Returns:
      [crop height, crop width, channels], a view.

    Source: TensorFlow's sample_distorted_bounding_box (min_object_covered=0.1, the whole image
      the only box) as DeepMind's Perceiver IO release calls it. It draws the height uniformly,
      not the area, and never takes the last row or column of offsets.
    """
    height, width = image.shape[:2]
    low, high = max(area[0], 0.1) * height * width, area[1] * height * width
    for _ in range(10):
        aspect = rng.uniform(3 / 4, 4 / 3)
        tallest = min(height, round(np.sqrt(high / aspect)), int((width + 0.5) / aspect))
        shortest = min(tallest, round(np.sqrt(area[0] * height * width / aspect)))
        crop_height = int(rng.integers(shortest, tallest + 1))
        crop_width = min(round(crop_height * aspect), width)
        if low <= crop_height * crop_width <= high:
            if (crop_height, crop_width) == (height, width):
                break
            top = rng.integers(max(height - crop_height, 1))
            left = rng.integers(max(width - crop_width, 1))
            return image[top : top + crop_height, left : left + crop_width]
    return centre_crop(image, _FALLBACK_CROP)
