"""Transformers on images: ViT, which reads patches, and one that reads every element.

Source: Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929), section 3.1; the
baselines of Perceiver's tables 1, 2 and 4.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax.numpy as jnp
from jax import Array

from perceiver_jax.attention import SelfAttend, check_attend
from perceiver_jax.baselines.elements import Elements
from perceiver_jax.checks import Module
from perceiver_jax.encoder import Block
from perceiver_jax.errors import Refused
from perceiver_jax.layers import LayerNorm, Linear, product
from perceiver_jax.position_encoding import LearnedPositions
from perceiver_jax.sharding import for_each_example, reshape_examples


@dataclasses.dataclass
class VisionTransformer(Module):
    """Patches, a class token, learned positions, self-attends, a LayerNorm; without classifier.

    The defaults are those of ViT-B/16.

    Parameters: module `patches` with `w` `[patch_size^2 * channels of an element, channels]` and
    `b`; `class_token` `[1, channels]`; modules `position_encoding`, `block` and `norm`.

    Attributes:
      patch_size: Side of a patch, in elements. Where it does not divide the grid, zeros are
        appended to its rows and columns (our choice: deviations.md#patch-padding).
      channels: Width of the tokens.
      num_self_attends: Layers.
      self_attend: Fields of `SelfAttend` that all layers have, but `implementation` and `name`.
      implementation: Implementation of `attend`; see `SelfAttend`.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    patch_size: int = 16
    channels: int = 768
    num_self_attends: int = 12
    self_attend: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(num_heads=12, widening_factor=4)
    )
    implementation: str = 'auto'
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.patch_size < 1:
            raise Refused(f'patch_size must be at least 1, not {self.patch_size}.')

    def __call__(self, elements: Elements, *, is_training: bool) -> Array:
        """Reads input elements.

        Args:
          elements: The elements, `[B, rows, columns, C + P]` of any floating-point dtype.
          is_training: Whether dropout is applied.

        Returns:
          `[B, 1, channels]` in their dtype, the class token behind all layers.

        Raises:
          Refused: The heads do not divide the channels.
        """
        check_attend(f'{self.name}.self_attend', SelfAttend, self.self_attend, self.channels)
        size = self.patch_size
        rows, columns = (-(-side // size) for side in elements.contents.shape[1:3])
        embed = Linear(self.channels, name='patches')
        w, b = embed.parameters(size**2 * elements.channels)
        w = w.reshape(size**2, elements.channels, self.channels)

        def patches(x, w):  # [B, ..., C], [patch_size^2, C, channels] -> [B, N, channels]
            x = _padded(x, rows * size, columns * size)
            x = reshape_examples(x, rows, size, columns, size, x.shape[-1])
            x = reshape_examples(x.transpose(0, 1, 3, 2, 4, 5), rows * columns, -1)
            return product(x, w.reshape(-1, self.channels))

        x = elements.linear(patches, w)
        x = x + b.astype(x.dtype)[None, None]
        init = hk.initializers.TruncatedNormal(0.02)
        class_token = hk.get_parameter('class_token', (1, self.channels), jnp.float32, init)
        x = jnp.concatenate([for_each_example(class_token.astype(x.dtype), x), x], axis=1)
        positions = LearnedPositions(
            1 + rows * columns, channels=self.channels, name='position_encoding'
        )()
        x = x + positions.astype(x.dtype)[None]
        x = _block(self, x, is_training)
        return LayerNorm(name='norm')(x[:, :1])


@dataclasses.dataclass
class PixelTransformer(Module):
    """Self-attends on a Linear of every input element; without average and classifier.

    The layers are those of the Perceiver's latent transformer. The paper says of their number,
    width and heads only that they were swept; our choice: deviations.md#transformer-sizes.

    Parameters: modules `projection` and `block`.

    Attributes:
      channels: Width of the tokens.
      num_self_attends: Layers.
      self_attend: Fields of `SelfAttend` that all layers have, but `implementation` and `name`.
      implementation: Implementation of `attend`; see `SelfAttend`.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    channels: int = 512
    num_self_attends: int = 12
    self_attend: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    implementation: str = 'auto'
    name: str | None = None

    def __call__(self, elements: Elements, *, is_training: bool) -> Array:
        """Reads input elements.

        Args:
          elements: The elements, `[B, rows, columns, C + P]` of any floating-point dtype.
          is_training: Whether dropout is applied.

        Returns:
          `[B, rows * columns, channels]` in their dtype.

        Raises:
          Refused: The heads do not divide the channels.
        """
        check_attend(f'{self.name}.self_attend', SelfAttend, self.self_attend, self.channels)
        w, b = Linear(self.channels, name='projection').parameters(elements.channels)
        x = elements.linear(product, w)
        x = reshape_examples(x + b.astype(x.dtype)[None, None, None], -1, self.channels)
        return _block(self, x, is_training)


def _block(network: VisionTransformer | PixelTransformer, x: Array, is_training: bool) -> Array:
    block = Block(
        network.num_self_attends,
        self_attend=network.self_attend,
        implementation=network.implementation,
        name='block',
    )
    return block(x, is_training=is_training)


def _padded(x: Array, rows: int, columns: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2]), (0, 0)))
