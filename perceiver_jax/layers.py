"""The layers that attention is built of: Linear, LayerNorm, Mlp, dropout.

Parameters are float32; every layer computes in the dtype of its input, LayerNorm's statistics in
float32. For the gradient, what is cheap is computed again rather than kept: `project` keeps the
input of a norm or of GELU alone, which a projection follows.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.checks import Module, check_array
from perceiver_jax.errors import Refused
from perceiver_jax.sharding import sharding_like

LAYER_NORM_EPSILON = 1e-5
# Attention and MLP layers: standard deviation 1/sqrt(in) after the truncation at two of them.
LECUN_NORMAL = hk.initializers.VarianceScaling(1.0, 'fan_in', 'truncated_normal')


def check_floating(where: str, **arrays: Any) -> None:
    """Checks that arrays have a dtype that parameters can be cast to.

    Cast to integers, latents of 0.02 would be zeros, and the output would not depend on the input.

    Args:
      where: What takes the arrays, such as 'Encoder'.
      **arrays: Name of an argument -> what was given, an array or what has its dtype and shape.

    Raises:
      Refused: One of them is not of a floating-point dtype, or no array.
    """
    for name, array in arrays.items():
        check_array(where, name, array)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise Refused(
                f'{where} takes {name} of a floating-point dtype, such as float32 or bfloat16, '
                f'not {array.dtype}: cast them first.'
            )


def check_dtype(dtype: str) -> None:
    """Checks the precision that a model is to compute in.

    Args:
      dtype: What was given.

    Raises:
      Refused: It is neither 'float32' nor 'bfloat16'.
    """
    if dtype not in ('float32', 'bfloat16'):
        raise Refused(f"dtype must be 'float32' or 'bfloat16', not {dtype!r}.")


def check_integer_array(where: str, **arrays: Array | np.ndarray) -> None:
    """Checks that arrays hold integers, such as tokens or indices.

    Args:
      where: What takes the arrays, such as 'TextInputs'.
      **arrays: Name of an argument -> what was given.

    Raises:
      Refused: One of them is of another dtype, or no array.
    """
    for name, array in arrays.items():
        check_array(where, name, array)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise Refused(f'{where} takes {name} of an integer dtype, not {array.dtype}.')


@dataclasses.dataclass
class Linear(Module):
    """A projection of the last axis: `x w + b`.

    Parameters: `w` `[in, channels]` and `b` `[channels]`, float32.

    Attributes:
      channels: Number of output channels.
      w_init: Initialiser of `w`. None is that of Haiku's Linear: standard deviation 1/sqrt(in),
        truncated at two of them without a correction for it. `b` starts at zero.
      name: Name of the module.
    """

    channels: int
    w_init: hk.initializers.Initializer | None = None
    name: str | None = None

    def __call__(self, x: Array) -> Array:
        """Projects the last axis.

        Args:
          x: `[..., in]`, of any floating-point dtype.

        Returns:
          `[..., channels]` in the dtype of `x`.

        Raises:
          Refused: `x` is of another dtype.
        """
        check_floating(f'Linear {self.module_name}', x=x)
        return _linear(x, *self.parameters(x.shape[-1]))

    def parameters(self, in_channels: int) -> tuple[Array, Array]:
        """Returns the parameters, for those who apply them in another order.

        Args:
          in_channels: Number of input channels.

        Returns:
          `w` `[in_channels, channels]` and `b` `[channels]`, float32.
        """
        w_init = self.w_init or hk.initializers.TruncatedNormal(1 / math.sqrt(in_channels))
        w = hk.get_parameter('w', (in_channels, self.channels), jnp.float32, w_init)
        return w, hk.get_parameter('b', (self.channels,), jnp.float32, jnp.zeros)


def project(x: Array, first: Callable[[Array], Array], *projections: Linear) -> list[Array]:
    """Applies a function and then projections to an array, and keeps that array alone.

    What the function returns is computed again for the gradient: for functions that are cheap
    beside a projection, such as a normalisation.

    Args:
      x: Any array.
      first: Function of the array that returns `[..., in]`.
      *projections: Each is applied to what the function returns.

    Returns:
      `[..., channels]` of each projection, in order.
    """
    channels = jax.eval_shape(first, x).shape[-1]
    parameters = [projection.parameters(channels) for projection in projections]

    @jax.checkpoint
    def projected(x):
        x = first(x)
        return [_linear(x, w, b) for w, b in parameters]

    return projected(x)


def _linear(x: Array, w: Array, b: Array) -> Array:
    return product(x, w) + jax.lax.broadcast_to_rank(b.astype(x.dtype), x.ndim)


def product(x: Array, w: Array) -> Array:
    """Multiplies the last axis by a matrix, in the dtype of the array.

    Args:
      x: `[..., in]`.
      w: `[in, out]`, cast to the dtype of `x`.

    Returns:
      `[..., out]` in the dtype of `x`.
    """
    # In two dimensions: XLA on CPUs copies the operands of a three-dimensional product.
    rows = x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)
    return rows.reshape(*x.shape[:-1], w.shape[1])


class Affine(NamedTuple):
    """The second half of a LayerNorm: a scale and an offset for each channel.

    Attributes:
      scale: `[C]` float32.
      offset: `[C]` float32.
    """

    scale: Array
    offset: Array

    @classmethod
    def identity(cls, channels: int) -> 'Affine':
        """Returns the scale and offset that change nothing.

        Args:
          channels: C, the number of channels.
        """
        return cls(jnp.ones(channels), jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        """Scales and shifts every channel.

        Args:
          x: `[..., C]`, of any floating-point dtype.

        Returns:
          `[..., C]` in the dtype of `x`.
        """
        scale, offset = (jax.lax.broadcast_to_rank(p, x.ndim) for p in self)
        return (x * scale + offset).astype(x.dtype)


class LayerNorm(hk.Module):
    """Layer normalisation over the last axis, with statistics in float32.

    Parameters: `scale` and `offset`, `[C]` float32. `normalise` is its first half, `affine` gives
    the second: memory-efficient attention applies them at different places.
    """

    def __call__(self, x: Array) -> Array:
        """Normalises over the last axis, then scales and shifts every channel.

        For the gradient only `x` is kept: the rest is rematerialised.

        Args:
          x: `[..., C]`, of any floating-point dtype.

        Returns:
          `[..., C]` in the dtype of `x`.

        Raises:
          Refused: `x` is of another dtype.
        """
        check_floating(f'LayerNorm {self.module_name}', x=x)
        return jax.checkpoint(self.function(x.shape[-1]))(x)

    def function(self, channels: int) -> Callable[[Array], Array]:
        """Returns the normalisation as a function of arrays, which has its parameters.

        Args:
          channels: C, the number of channels.
        """
        affine = self.affine(channels)
        return lambda x: affine(_normalise(x)).astype(x.dtype)

    def affine(self, channels: int) -> Affine:
        """Returns the scale and offset that are applied to `normalise(x)`.

        Args:
          channels: C, the number of channels.
        """
        scale = hk.get_parameter('scale', (channels,), jnp.float32, jnp.ones)
        return Affine(scale, hk.get_parameter('offset', (channels,), jnp.float32, jnp.zeros))


def normalisation(norm: LayerNorm | None, channels: int) -> Callable[[Array], Array]:
    """Returns a normalisation as a function of arrays; where there is none, one without effect.

    Args:
      norm: The module; None: none.
      channels: C, the number of channels.
    """
    return norm.function(channels) if norm is not None else lambda x: x


@jax.checkpoint
def normalise(x: Array) -> Array:
    """Computes the first half of a LayerNorm: mean 0 and variance 1 over the last axis.

    For the gradient only `x` is kept: the rest is rematerialised.

    Args:
      x: `[..., C]`, of any floating-point dtype; statistics are float32.

    Returns:
      `[..., C]` in the dtype of `x`.
    """
    return _normalise(x).astype(x.dtype)


def _normalise(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)


def dropout(x: Array, rate: float, is_training: bool) -> Array:
    """Sets random values to zero and scales up the others, in training.

    At rate 0 or in evaluation it costs nothing and needs no random key.

    Args:
      x: An array of any shape.
      rate: Probability of a value to be dropped, in [0, 1).
      is_training: Whether anything is dropped.

    Returns:
      An array like `x`.

    Raises:
      Refused: There is no such rate.
    """
    if rate == 0 or not is_training:
        return x
    if not 0 < rate < 1:
        raise Refused(f'A dropout rate is in [0, 1), not {rate}.')
    # What Haiku's dropout does, which draws for whole arrays on every device of an explicit mesh.
    sharding = sharding_like(x, x.ndim, leading=x.ndim)
    keep = jax.random.bernoulli(hk.next_rng_key(), 1 - rate, x.shape, out_sharding=sharding)
    return keep * x / (1 - rate)


def gelu(x: Array) -> Array:
    """Computes GELU by the tanh approximation, as the papers' code does.

    Args:
      x: Of any shape.
    """
    return jax.nn.gelu(x, approximate=True)


@dataclasses.dataclass
class Mlp(Module):
    """Linear (`hidden`), GELU (the tanh approximation), Linear (`output`) to the input's width.

    The papers use widening factor 1: "no bottleneck". For the gradient it keeps the input and
    what the first Linear returns.

    Attributes:
      widening_factor: Width of the hidden layer as a multiple of the input's.
      dropout_rate: Dropout of the output, in training.
      name: Name of the module.
    """

    widening_factor: int = 1
    _: dataclasses.KW_ONLY
    dropout_rate: float = 0.0
    name: str | None = None

    def __call__(self, x: Array, *, norm: LayerNorm | None = None, is_training: bool) -> Array:
        """Applies the MLP to every row.

        Args:
          x: `[..., C]`, of any floating-point dtype.
          norm: Normalisation to apply to `x` first; None: none.
          is_training: Whether dropout is applied.

        Returns:
          `[..., C]` in the dtype of `x`.

        Raises:
          Refused: `x` is of another dtype.
        """
        check_floating(f'Mlp {self.module_name}', x=x)
        channels = x.shape[-1]
        hidden = Linear(channels * self.widening_factor, LECUN_NORMAL, name='hidden')
        output = Linear(channels, LECUN_NORMAL, name='output')
        (x,) = project(x, normalisation(norm, channels), hidden)
        (x,) = project(x, gelu, output)
        return dropout(x, self.dropout_rate, is_training)
