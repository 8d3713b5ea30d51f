"""Random crops of images and video frames, as TensorFlow draws them."""

import numpy as np

from perceiver_jax.front_ends.images import centre_crop

_FALLBACK_CROP = 0.875  # side of the centre crop / shorter side, where no random crop is allowed


def inception_crop(
    image: np.ndarray, rng: np.random.Generator, area: tuple[float, float]
) -> np.ndarray:
    """Returns a random crop, its width 3/4 to 4/3 of its height.

    Ten attempts draw an aspect ratio, then a height among those that fit; the first crop of an
    allowed area is taken. If there is none, or if it is the whole image, the result is the
    reference's centre crop.

    Args:
      image: An image of any dtype, `[height, width, channels]`.
      rng: Generator of random numbers.
      area: Smallest and largest share of the image's area to keep. A smallest share below 0.1
        acts like 0.1, as the reference's `min_object_covered` rejects smaller crops.

    Returns:
      A view of the image, `[crop height, crop width, channels]`.

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
