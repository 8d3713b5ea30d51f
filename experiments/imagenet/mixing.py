"""MixUp and CutMix of pairs of images, computed on the accelerator."""

import jax
import jax.numpy as jnp

from perceiver_jax.errors import Refused


def mixup_cutmix(
    rng: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    num_classes: int,
    mixup_alpha: float = 0.2,
    cutmix_alpha: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Makes one training image of each pair: MixUp where `index` is even, CutMix where odd.

    MixUp averages the two images, the first with a weight from Beta(mixup_alpha, mixup_alpha).
    CutMix draws a weight from Beta(cutmix_alpha, cutmix_alpha) and replaces a box of the first
    image by that of the second: of area 1 - weight, around a uniform centre, cut at the border.
    Labels are weighted by the shares of the two images in the result. Random numbers are derived
    from each example's index, so that they do not depend on how the batch is split over devices.

    Args:
      rng: Random key of this step, the same for all parts of a batch.
      images: Pairs of images of any floating dtype, `[b, 2, H, W, C]`.
      labels: Labels of the images, int `[b, 2]`, 0 <= label < num_classes.
      index: Place of each example in the global batch, uint32 `[b]`.
      num_classes: Number K of classes.
      mixup_alpha: Both parameters of MixUp's Beta distribution.
      cutmix_alpha: Both parameters of CutMix's Beta distribution.

    Returns:
      Images `[b, H, W, C]` in the dtype of `images`, and label distributions, float32 `[b, K]`.

    Raises:
      Refused: `images` and `labels` are not pairs.

    Source: Zhang et al., mixup, 2018; Yun et al., CutMix, 2019; half the batch each and the two
      alphas as in DeepMind's Perceiver IO release.
    """
    if images.ndim != 5 or images.shape[1] != 2 or labels.shape != images.shape[:2]:
        raise Refused(
            f'expected pairs of images [b, 2, H, W, C] and labels [b, 2], got '
            f'{images.shape} and {labels.shape}'
        )
    height, width = images.shape[2:4]

    def mix(pair: jax.Array, pair_labels: jax.Array, place: jax.Array):
        key_weight, key_row, key_column = jax.random.split(jax.random.fold_in(rng, place), 3)
        is_mixup = place % 2 == 0
        alpha = jnp.where(is_mixup, mixup_alpha, cutmix_alpha)
        weight = jax.random.beta(key_weight, alpha, alpha)
        row = jax.random.randint(key_row, (), 0, height)
        column = jax.random.randint(key_column, (), 0, width)
        outside = ~_box((height, width), (row, column), jnp.sqrt(1 - weight))
        pixel_weight = jnp.where(is_mixup, weight, outside)[..., None].astype(pair.dtype)
        label_weight = jnp.where(is_mixup, weight, outside.mean())
        first, second = jax.nn.one_hot(pair_labels, num_classes)
        return (
            pixel_weight * pair[0] + (1 - pixel_weight) * pair[1],
            label_weight * first + (1 - label_weight) * second,
        )

    return jax.vmap(mix)(images, labels, index)


def _box(shape: tuple[int, int], centre: tuple[jax.Array, jax.Array], side: jax.Array) -> jax.Array:
    """Returns bool `[H, W]`, True in a box around `centre` with `side` times the image's sides."""
    inside = []
    for length, middle in zip(shape, centre, strict=True):
        half = (side * length).astype(jnp.int32) // 2
        position = jnp.arange(length)
        inside.append((position >= middle - half) & (position < middle + half))
    return inside[0][:, None] & inside[1][None, :]
