"""Whole models, each one function to be called inside `hk.transform_with_state`."""

from collections.abc import Mapping
from typing import Any

from jax import Array

from perceiver_jax.decoder import AverageDecoder, ClassQueryDecoder
from perceiver_jax.encoder import Encoder
from perceiver_jax.inputs import ImageInputs


def image_classifier(
    images: Array,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    dtype: str = 'float32',
    batch_norm_axis: str | None = None,
) -> Array:
    """Classifies images with a Perceiver or a Perceiver IO.

    Args:
      images: `[B, height, width, channels]`, normalised with ImageNet's mean and deviation.
      is_training: Whether batch statistics are used and dropout is applied.
      num_classes: Number of logits.
      inputs: Fields of `ImageInputs`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `ClassQueryDecoder` (Perceiver IO); None averages the latents (ICML).
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      batch_norm_axis: Under `jax.pmap`, the mapped axis that batch statistics are taken across.

    Returns:
      Logits `[B, num_classes]` float32.

    Raises:
      ValueError: Fields or shapes that do not fit together.

    Source: Perceiver, section 4.1; Perceiver IO, section 4.4 and appendix A.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise ValueError(f"dtype must be 'float32' or 'bfloat16', not {dtype!r}.")
    byte_array = ImageInputs(**inputs, batch_norm_axis=batch_norm_axis, name='inputs')(
        images.astype(dtype), is_training=is_training
    )  # [B, M, C]
    latents = Encoder(**encoder, name='encoder')(byte_array, is_training=is_training)  # [B, N, D]
    if decoder is None:
        return AverageDecoder(num_classes, name='decoder')(latents)
    return ClassQueryDecoder(num_classes, **decoder, name='decoder')(
        latents, is_training=is_training
    )
