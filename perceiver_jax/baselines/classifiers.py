"""The papers' comparison as whole models: called like `image_classifier` and `point_classifier`.

Source: Perceiver, section 4.1 (tables 1 and 2) and section 4.3 (table 4).
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from perceiver_jax.baselines.elements import Elements, on_a_grid
from perceiver_jax.baselines.resnet import ResNet
from perceiver_jax.baselines.transformer import PixelTransformer, VisionTransformer
from perceiver_jax.checks import build, check_axes
from perceiver_jax.decoder import AverageDecoder
from perceiver_jax.errors import Refused
from perceiver_jax.inputs import SHRINK, ImageInputs, point_elements
from perceiver_jax.layers import check_dtype

NETWORKS = {'resnet': ResNet, 'vit': VisionTransformer, 'transformer': PixelTransformer}


def image_baseline(
    images: Array,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    network: Mapping[str, Any],
    dtype: str = 'float32',
    implementation: str = 'auto',
    batch_norm_axis: str | None = None,
) -> Array:
    """Classifies images with ResNet, ViT, or a Transformer of all pixels.

    Args:
      images: `[B, height, width, channels]`, normalised with ImageNet's mean and deviation.
      is_training: Whether batch statistics are used and dropout is applied.
      num_classes: Number of logits.
      inputs: Fields of `ImageInputs`: 'fourier' positions are the papers' (FF), 'none' their (RGB);
        a permutation shuffles pixels and positions together.
      network: `kind`, one of 'resnet', 'vit', 'transformer', and the fields of `ResNet`,
        `VisionTransformer` or `PixelTransformer`.
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, as of `image_classifier`; with 'plain', positions
        are also written out.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.

    Returns:
      Logits `[B, num_classes]` float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver, section 4.1.
    """
    check_dtype(dtype)
    check_axes('image_baseline', images=(images, 'B height width channels'))
    read = build(ImageInputs, inputs, batch_norm_axis=batch_norm_axis, name='inputs')
    elements = read(images.astype(dtype), is_training=is_training)  # [B, M, C]
    shrink = SHRINK if read.contents == 'conv7x7' else 1
    rows, columns = (-(-side // shrink) for side in images.shape[1:3])
    return _classify(
        on_a_grid(elements, rows, columns),
        network,
        num_classes=num_classes,
        implementation=implementation,
        batch_norm_axis=batch_norm_axis,
        is_training=is_training,
    )


def point_baseline(
    points: Array,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    network: Mapping[str, Any],
    dtype: str = 'float32',
    implementation: str = 'auto',
    batch_norm_axis: str | None = None,
) -> Array:
    """Classifies point clouds that are laid out as an image, row after row.

    Args:
      points: `[B, M, 3]` coordinates in [-1, 1], M a square number, in the order in which they fill
        the grid: the paper's is random.
      is_training: Whether batch statistics are used and dropout is applied.
      num_classes: Number of logits.
      inputs: Arguments of `point_elements`.
      network: As of `image_baseline`.
      dtype: Precision of the computation, 'float32' or 'bfloat16'; positions and parameters are
        float32.
      implementation: Implementation of `attend`, as of `point_classifier`.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.

    Returns:
      Logits `[B, num_classes]` float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver, section 4.3.
    """
    check_dtype(dtype)
    check_axes('point_baseline', points=(points, 'B M coordinates'))
    side = math.isqrt(points.shape[1])
    if side**2 != points.shape[1]:
        raise Refused(
            f'point_baseline lays points out as a square, and {points.shape[1]:,} is no square '
            f'number: take {side**2:,} of them.'
        )
    elements = build(point_elements, inputs, points=points.astype(jnp.float32)).astype(dtype)
    return _classify(
        on_a_grid(elements, side, side),
        network,
        num_classes=num_classes,
        implementation=implementation,
        batch_norm_axis=batch_norm_axis,
        is_training=is_training,
    )


def _classify(
    elements: Elements,
    network: Mapping[str, Any],
    *,
    num_classes: int,
    implementation: str,
    batch_norm_axis: str | None,
    is_training: bool,
) -> Array:  # [B, rows, columns, C + P] -> [B, num_classes]
    fields = dict(network) if hasattr(network, 'keys') else {}
    kind = fields.pop('kind', None)
    if kind not in list(NETWORKS):  # a list: in a damaged file it may be unhashable
        raise Refused(f'network is a mapping with kind, one of {list(NETWORKS)}; got {network!r}.')
    if implementation == 'plain':
        elements = elements.written_out()
    given: dict[str, Any] = dict(implementation=implementation)
    if kind == 'resnet':
        given = dict(batch_norm_axis=batch_norm_axis)
    x = build(NETWORKS[kind], fields, name='network', **given)(elements, is_training=is_training)
    return AverageDecoder(num_classes, name='decoder')(x)  # of a single token, if it is one
