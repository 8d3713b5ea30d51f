"""Convolution, batch normalisation, pooling: what Perceiver IO and ResNet-50 read images with."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Collection, Iterator, Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.checks import Module, check_axes, check_entries, check_integers
from perceiver_jax.errors import Refused
from perceiver_jax.layers import check_floating

# Full Haiku names of the BatchNorms that this thread keeps as they are.
_frozen: contextvars.ContextVar[Collection[str]] = contextvars.ContextVar('frozen', default=())


@contextlib.contextmanager
def frozen_batch_norm(modules: Collection[str]) -> Iterator[None]:
    """Has batch normalisation work in training as in evaluation, where it is not to be trained.

    Use it around the transformed function, or within it, while jax traces:

        with frozen_batch_norm(['inputs/conv7x7/batch_norm']):
            logits, state = model.apply(params, state, rng, images, is_training=True)

    Args:
      modules: Full Haiku names of `BatchNorm` modules: these use their running averages, and leave
        them as they are.

    Yields:
      Nothing.
    """
    token = _frozen.set(frozenset(modules))
    try:
        yield
    finally:
        _frozen.reset(token)


@dataclasses.dataclass
class ConvDownsample(Module):
    """7x7 convolution of stride 2, batch normalisation, ReLU, 3x3 max-pooling of stride 2.

    Parameters: `w` `[7, 7, C, channels]` float32, module `batch_norm`.

    Attributes:
      channels: Number of output channels.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.
      name: Name of the module.
    """

    channels: int
    _: dataclasses.KW_ONLY
    batch_norm_axis: str | None = None
    name: str | None = None

    def __call__(self, images: Array, *, is_training: bool) -> Array:
        """Downsamples images to a quarter of either side, rounded up.

        Args:
          images: `[B, height, width, C]`, of any floating-point dtype.
          is_training: Whether batch statistics are used, and running averages updated.

        Returns:
          `[B, ceil(height / 4), ceil(width / 4), channels]` in the dtype of `images`.

        Raises:
          Refused: `images` have other axes or another dtype.
        """
        check_floating('ConvDownsample', images=images)
        check_axes('ConvDownsample', images=(images, 'B height width C'))
        shape = (7, 7, images.shape[-1], self.channels)
        init = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
        kernel = hk.get_parameter('w', shape, jnp.float32, init)
        x = convolve(images, kernel, stride=2)
        x = BatchNorm(self.batch_norm_axis, name='batch_norm')(x, is_training=is_training)
        return max_pool(jax.nn.relu(x))


@dataclasses.dataclass
class ConvStem(Module):
    """Convolutions, each with a bias and followed by GELU; not in the papers.

    Parameters: for layer i, `w_<i>` `[height, width, C, channels]` and `b_<i>` `[channels]`,
    float32.

    Attributes:
      channels: Number of output channels of each layer, at least one layer.
      kernels: Height and width of each layer's kernel.
      strides: Rows and columns from one output of each layer to the next.
      name: Name of the module.

    Raises:
      Refused: The three are not as many, or are no integers, or smaller than 1.
    """

    _: dataclasses.KW_ONLY
    channels: Sequence[int]
    kernels: Sequence[Sequence[int]]
    strides: Sequence[Sequence[int]]
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not 0 < len(self.channels) == len(self.kernels) == len(self.strides):
            raise Refused(
                f'ConvStem takes as many channels as kernels and strides, not {self.channels}, '
                f'{self.kernels} and {self.strides}.'
            )
        for channels, *pairs in zip(self.channels, self.kernels, self.strides, strict=True):
            for name, pair in zip(('kernels', 'strides'), pairs, strict=True):
                check_entries(name, pair, 2, 'rows and columns')
            sizes = [channels, *pairs[0], *pairs[1]]
            for size in sizes:
                check_integers('ConvStem', sizes=size)
            if min(sizes) < 1:
                raise Refused(f'ConvStem takes sizes of at least 1, not {sizes}.')

    def __call__(self, images: Array) -> Array:
        """Convolves images, with zeros around them.

        Args:
          images: `[B, height, width, C]`, of any floating-point dtype.

        Returns:
          `[B, rows, columns, channels]` in the dtype of `images`: either side is divided by the
          stride of each layer, and rounded up.

        Raises:
          Refused: `images` have other axes or another dtype.
        """
        check_floating('ConvStem', images=images)
        check_axes('ConvStem', images=(images, 'B height width C'))
        x = images
        for i, channels in enumerate(self.channels):
            shape = (*self.kernels[i], x.shape[-1], channels)
            init = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
            kernel = hk.get_parameter(f'w_{i}', shape, jnp.float32, init)
            bias = hk.get_parameter(f'b_{i}', shape[-1:], jnp.float32, jnp.zeros)
            x = convolve(x, kernel, stride=self.strides[i])
            x = jax.nn.gelu(x + bias.astype(x.dtype)[None, None, None])
        return x


def convolve(
    images: Array, kernel: Array, *, stride: int | Sequence[int] = 1, padding: str = 'same'
) -> Array:
    """Convolves images, in their dtype.

    Args:
      images: `[B, height, width, C]`.
      kernel: `[rows, columns, C, channels]`, rows and columns odd where `padding` is 'centred', and
        as many.
      stride: Pixels from one output to the next, along both axes or each.
      padding: How the zeros lie around an image. 'same': with a stride of 2 and an even size there
        is one more at the end, as in TensorFlow and JAX. 'centred': side // 2 on all four sides, as
        in torchvision's networks.

    Returns:
      `[B, ceil(height / stride), ceil(width / stride), channels]` in the dtype of `images`.
    """
    return jax.lax.conv_general_dilated(
        images,
        kernel.astype(images.dtype),
        window_strides=(stride, stride) if isinstance(stride, int) else stride,
        padding=_padding(kernel.shape[0], padding),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def max_pool(images: Array, *, padding: str = 'same') -> Array:
    """Takes the largest of 3x3 pixels, with a stride of 2.

    Args:
      images: `[B, height, width, C]`.
      padding: As of `convolve`; what is beyond the border is never the largest.

    Returns:
      `[B, ceil(height / 2), ceil(width / 2), C]` in the dtype of `images`.
    """
    around = _padding(3, padding)
    if not isinstance(around, str):
        around = [(0, 0), *around, (0, 0)]
    return jax.lax.reduce_window(
        images, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding=around
    )


def _padding(side: int, padding: str) -> str | Sequence[tuple[int, int]]:
    if padding not in ('same', 'centred'):
        raise Refused(f"padding must be 'same' or 'centred', not {padding!r}.")
    return 'SAME' if padding == 'same' else 2 * [(side // 2, side // 2)]


@dataclasses.dataclass
class BatchNorm(Module):
    """Batch normalisation over all axes but the last, with debiased running averages.

    The averages are those of Haiku's BatchNorm, so the published weights fit; unlike it, this
    one initialises in evaluation mode too (mean 0, variance 1) and keeps float32 statistics.

    Parameters: `scale` and `offset`, `[C]` float32. State: `mean`, `variance`, each with a
    `_hidden` average before debiasing, `[C]` float32, and `counter`, the number of updates.

    Attributes:
      cross_replica_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.
      decay: Share of the old running average that an update keeps.
      epsilon: Added to the variance.
      name: Name of the module.
    """

    cross_replica_axis: str | None = None
    _: dataclasses.KW_ONLY
    decay: float = 0.9
    epsilon: float = 1e-5
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:
        """Normalises every channel.

        Args:
          x: `[..., C]`, of any floating-point dtype.
          is_training: Whether the statistics are those of the batch, which then update the running
            averages; otherwise they are the running averages. An empty batch has no statistics:
            it is taken as in evaluation, and so are all batches within `frozen_batch_norm`.

        Returns:
          `[..., C]` in the dtype of `x`.

        Raises:
          Refused: `x` is of another dtype.
        """
        check_floating('BatchNorm', x=x)
        channels = x.shape[-1:]
        scale = hk.get_parameter('scale', channels, jnp.float32, jnp.ones)
        offset = hk.get_parameter('offset', channels, jnp.float32, jnp.zeros)
        counter = hk.get_state('counter', (), jnp.int32, jnp.zeros)
        average = {
            'mean': hk.get_state('mean', channels, jnp.float32, jnp.zeros),
            'variance': hk.get_state('variance', channels, jnp.float32, jnp.ones),
        }
        hidden = {  # the averages before debiasing
            name: hk.get_state(f'{name}_hidden', channels, jnp.float32, jnp.zeros)
            for name in average
        }
        wide = x.astype(jnp.float32)
        if is_training and 0 not in x.shape and self.module_name not in _frozen.get():
            axes = tuple(range(x.ndim - 1))
            mean, square = wide.mean(axes), jnp.square(wide).mean(axes)
            if self.cross_replica_axis is not None and not hk.running_init():
                mean, square = jax.lax.pmean((mean, square), self.cross_replica_axis)
            batch = {'mean': mean, 'variance': square - jnp.square(mean)}
            hk.set_state('counter', counter + 1)
            for name in average:
                value = self.decay * hidden[name] + (1 - self.decay) * batch[name]
                hk.set_state(f'{name}_hidden', value)
                hk.set_state(name, value / (1 - self.decay ** (counter + 1)))
        else:
            batch = average
        mean, variance, scale, offset = (
            jax.lax.broadcast_to_rank(of_channels, x.ndim)
            for of_channels in (batch['mean'], batch['variance'], scale, offset)
        )
        normal = (wide - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * scale + offset).astype(x.dtype)
