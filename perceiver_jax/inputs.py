"""What becomes the byte array: images as `[B, M, C]`, contents and position encoding side by side.

Source: Perceiver, section 4.1 and appendix C; Perceiver IO, section 4.4 and appendix A.
"""

import dataclasses
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.attention import Linear
from perceiver_jax.position_encoding import LearnedPositions, fourier_features, grid_positions


@dataclasses.dataclass
class ImageInputs(hk.Module):
    """An image as input elements: one per pixel, or per position of a small convolution.

    Contents are raw `pixels`, pixels through a `conv1x1`, or a `conv7x7` with batch
    normalisation and max-pooling that leaves a quarter of either side. The position encoding,
    `fourier` or `learned`, is concatenated to them.
    """

    contents: str = 'pixels'  # 'pixels', 'conv1x1' or 'conv7x7'
    contents_channels: int | None = None  # of either convolution
    positions: str = 'fourier'  # 'fourier' or 'learned'
    num_bands: int | None = None  # Fourier: frequencies along each axis
    max_resolution: Sequence[int] | None = None  # Fourier: twice the highest frequency, per axis
    position_channels: int | None = None  # learned: width of an encoding
    position_init_std: float | None = None  # learned
    project_positions_to: int | None = None  # learned: width of a Linear behind; None: none
    permutation_seed: int | None = None  # one fixed shuffle of the elements; None: none
    batch_norm_axis: str | None = None  # the mapped axis of `jax.pmap`, to normalise across it
    name: str | None = None

    def __post_init__(self):
        super().__post_init__()
        needs = {
            'pixels': (),
            'conv1x1': ('contents_channels',),
            'conv7x7': ('contents_channels',),
            'fourier': ('num_bands', 'max_resolution'),
            'learned': ('position_channels', 'position_init_std'),
        }
        if self.contents not in ('pixels', 'conv1x1', 'conv7x7'):
            raise ValueError(
                f"contents must be 'pixels', 'conv1x1' or 'conv7x7', not {self.contents!r}."
            )
        if self.positions not in ('fourier', 'learned'):
            raise ValueError(f"positions must be 'fourier' or 'learned', not {self.positions!r}.")
        for field in (*needs[self.contents], *needs[self.positions]):
            if getattr(self, field) is None:
                raise ValueError(f'{self.contents} with {self.positions} positions needs {field}.')

    def __call__(
        self,
        images: Array,  # [B, height, width, channels]
        *,
        is_training: bool,
    ) -> Array:  # [B, M, C]
        if images.ndim != 4:
            raise ValueError(f'Images are [B, height, width, channels]; got {images.shape}.')
        if self.contents == 'conv7x7':
            images = ConvDownsample(self.contents_channels, self.batch_norm_axis, name='conv7x7')(
                images, is_training=is_training
            )
        elif self.contents == 'conv1x1':
            images = Linear(self.contents_channels, name='conv1x1')(images)
        batch, height, width, channels = images.shape
        contents = images.reshape(batch, height * width, channels)
        positions = self._encode_positions((height, width)).astype(images.dtype)
        positions = jnp.broadcast_to(positions, (batch, *positions.shape))
        inputs = jnp.concatenate([contents, positions], axis=-1)
        if self.permutation_seed is not None:
            # After the positions are attached: the elements keep what says where they were.
            inputs = inputs[:, permutation(self.permutation_seed, height * width)]
        return inputs

    @hk.name_like('__call__')
    def _encode_positions(self, grid: tuple[int, int]) -> np.ndarray | Array:
        if self.positions == 'fourier':
            features = fourier_features(grid_positions(grid), self.num_bands, self.max_resolution)
            return jnp.asarray(features).reshape(-1, features.shape[-1])
        return LearnedPositions(
            grid[0] * grid[1],
            self.position_channels,
            self.position_init_std,
            self.project_positions_to,
            name='position_encoding',
        )()


def permutation(seed: int, num_elements: int) -> np.ndarray:
    """The fixed shuffle of permuted ImageNet: element i becomes the former element order[i]."""
    return np.random.default_rng(seed).permutation(num_elements)


@dataclasses.dataclass
class ConvDownsample(hk.Module):
    """7x7 convolution of stride 2, batch normalisation, ReLU, 3x3 max-pooling of stride 2."""

    channels: int
    batch_norm_axis: str | None = None
    name: str | None = None

    def __call__(self, images: Array, *, is_training: bool) -> Array:  # [B, H, W, 3]
        shape = (7, 7, images.shape[-1], self.channels)
        init = hk.initializers.TruncatedNormal(1 / np.sqrt(np.prod(shape[:-1])))
        kernel = hk.get_parameter('w', shape, jnp.float32, init)
        x = jax.lax.conv_general_dilated(
            images,
            kernel.astype(images.dtype),
            window_strides=(2, 2),
            padding='SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        x = BatchNorm(self.batch_norm_axis, name='batch_norm')(x, is_training=is_training)
        x = jax.nn.relu(x)
        return hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), padding='SAME')  # [B, H/4, W/4, channels]


@dataclasses.dataclass
class BatchNorm(hk.Module):
    """Batch normalisation over all axes but the last, with debiased running averages.

    The averages are those of Haiku's BatchNorm, so the published weights fit; unlike it, this
    one initialises in evaluation mode too (mean 0, variance 1) and keeps float32 statistics.
    """

    cross_replica_axis: str | None = None
    decay: float = 0.9
    epsilon: float = 1e-5
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:
        channels = x.shape[-1:]
        scale = hk.get_parameter('scale', channels, jnp.float32, jnp.ones)
        offset = hk.get_parameter('offset', channels, jnp.float32, jnp.zeros)
        counter = hk.get_state('counter', (), jnp.int32, jnp.zeros)
        average = {
            'mean': hk.get_state('mean', channels, jnp.float32, jnp.zeros),
            'variance': hk.get_state('variance', channels, jnp.float32, jnp.ones),
        }
        hidden = {  # the averages before the correction for their start at zero
            name: hk.get_state(f'{name}_hidden', channels, jnp.float32, jnp.zeros)
            for name in average
        }
        wide = x.astype(jnp.float32)
        if is_training:
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
        normal = (wide - batch['mean']) * jax.lax.rsqrt(batch['variance'] + self.epsilon)
        return (normal * scale + offset).astype(x.dtype)
