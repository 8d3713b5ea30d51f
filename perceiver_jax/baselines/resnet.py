"""ResNet-50 and its relatives, on any number of input channels.

Source: He et al., "Deep residual learning for image recognition" (arXiv 1512.03385), table 1, with
the stride in the 3x3 convolution as torchvision has it; the baseline of Perceiver's tables 1, 2
and 4.
"""

import dataclasses
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.baselines.elements import Elements
from perceiver_jax.checks import Module
from perceiver_jax.convolution import BatchNorm, convolve, max_pool
from perceiver_jax.errors import Refused
from perceiver_jax.sharding import reshape_examples

EXPANSION = 4  # output channels of a bottleneck / channels within
# He et al., "Delving deep into rectifiers" (arXiv 1502.01852), of the outputs as torchvision does.
HE_NORMAL = hk.initializers.VarianceScaling(2.0, 'fan_out', 'truncated_normal')


@dataclasses.dataclass
class ResNet(Module):
    """Stages of bottlenecks behind a convolution; without average and classifier.

    Parameters: modules `stem`, `stem_norm`, and `stage_<i>_block_<j>`, each with `conv_1` to
    `conv_3`, `norm_1` to `norm_3`, and at the start of a stage `shortcut` and `shortcut_norm`.

    Attributes:
      blocks: Bottlenecks of each stage; (3, 4, 6, 3) is ResNet-50.
      channels: Channels within the bottlenecks of the first stage, and of the stem; each stage
        doubles them.
      stem: 'imagenet', a 7x7 convolution of stride 2 and max-pooling of stride 2; or 'small', a 3x3
        convolution of stride 1, for images of 32x32.
      padding: 'same' (our choice: deviations.md#convolution-padding) or 'centred', see `convolve`.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.
      name: Name of the module.
    """

    _: dataclasses.KW_ONLY
    blocks: Sequence[int] = (3, 4, 6, 3)
    channels: int = 64
    stem: str = 'imagenet'
    padding: str = 'same'
    batch_norm_axis: str | None = None
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.stem not in ('imagenet', 'small'):
            raise Refused(f"stem must be 'imagenet' or 'small', not {self.stem!r}.")
        if np.ndim(self.blocks) != 1 or not len(self.blocks) or min(self.blocks) < 1:
            raise Refused(f'blocks are numbers of bottlenecks, one for each stage: {self.blocks!r}')
        limits.check_steps('bottlenecks', sum(self.blocks))

    def __call__(self, elements: Elements, *, is_training: bool) -> Array:
        """Reads input elements.

        Args:
          elements: The elements, `[B, rows, columns, C + P]` of any floating-point dtype.
          is_training: Whether batch statistics are used, and running averages updated.

        Returns:
          `[B, N, D]` in their dtype: what the last stage gives at N places, row after row; D is
          4 times the channels of the last stage. ResNet-50 makes 7x7 places of 224x224 pixels.
        """
        is_small = self.stem == 'small'
        side, stride = (3, 1) if is_small else (7, 2)
        kernel = _Kernel(side, self.channels, name='stem')(elements.channels)
        x = elements.linear(
            lambda x, w: convolve(x, w, stride=stride, padding=self.padding), kernel
        )
        x = jax.nn.relu(
            BatchNorm(self.batch_norm_axis, name='stem_norm')(x, is_training=is_training)
        )
        if not is_small:
            x = max_pool(x, padding=self.padding)
        for stage, number in enumerate(self.blocks, start=1):
            for i in range(1, number + 1):
                x = Bottleneck(
                    self.channels * 2 ** (stage - 1),
                    stride=2 if stage > 1 and i == 1 else 1,
                    padding=self.padding,
                    batch_norm_axis=self.batch_norm_axis,
                    name=f'stage_{stage}_block_{i}',
                )(x, is_training=is_training)
        return reshape_examples(x, -1, x.shape[-1])


@dataclasses.dataclass
class Bottleneck(Module):
    """Convolutions of 1x1, 3x3 and 1x1, each with batch normalisation, added to the input.

    Attributes:
      channels: Channels within; there are four times as many outputs.
      stride: Stride of the 3x3 convolution and of the shortcut.
      padding: See `convolve`.
      batch_norm_axis: See `BatchNorm`.
      name: Name of the module.
    """

    channels: int
    _: dataclasses.KW_ONLY
    stride: int = 1
    padding: str = 'same'
    batch_norm_axis: str | None = None
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:
        """Applies the bottleneck.

        Args:
          x: `[B, rows, columns, C]`.
          is_training: Whether batch statistics are used, and running averages updated.

        Returns:
          `[B, ceil(rows / stride), ceil(columns / stride), 4 * channels]` in the dtype of `x`.
        """

        def normalised(x, side, channels, stride, conv, norm):
            kernel = _Kernel(side, channels, name=conv)(x.shape[-1])
            x = convolve(x, kernel, stride=stride, padding=self.padding)
            return BatchNorm(self.batch_norm_axis, name=norm)(x, is_training=is_training)

        outputs = EXPANSION * self.channels
        y = jax.nn.relu(normalised(x, 1, self.channels, 1, 'conv_1', 'norm_1'))
        y = jax.nn.relu(normalised(y, 3, self.channels, self.stride, 'conv_2', 'norm_2'))
        y = normalised(y, 1, outputs, 1, 'conv_3', 'norm_3')
        if x.shape[-1] != outputs or self.stride > 1:
            x = normalised(x, 1, outputs, self.stride, 'shortcut', 'shortcut_norm')
        return jax.nn.relu(x + y)


@dataclasses.dataclass
class _Kernel(Module):
    """The kernel of a convolution without a bias, `w` `[side, side, C, channels]` float32."""

    side: int
    channels: int
    name: str | None = None

    def __call__(self, in_channels: int) -> Array:
        shape = (self.side, self.side, in_channels, self.channels)
        return hk.get_parameter('w', shape, jnp.float32, HE_NORMAL)
