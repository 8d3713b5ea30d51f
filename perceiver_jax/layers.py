"""The layers that attention is built of: Linear, LayerNorm, Mlp, dropout."""

import dataclasses
import functools
import math
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from jax import Array

LAYER_NORM_EPSILON = 1e-5
# Attention and MLP layers: standard deviation 1/sqrt(in) after the truncation at two of them.
LECUN_NORMAL = hk.initializers.VarianceScaling(1.0, 'fan_in', 'truncated_normal')


class Linear(hk.Module):
    """`x w + b` over the last axis; parameters `w` `[in, out]` and `b` `[out]`.

    Initialised as Haiku's Linear unless `w_init` is given: standard deviation 1/sqrt(in),
    truncated at two of them without a correction for it; zero bias.
    """

    def __init__(
        self,
        channels: int,
        w_init: hk.initializers.Initializer | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.channels = channels
        self.w_init = w_init

    def __call__(self, x: Array) -> Array:
        """`[..., in]` -> `[..., out]`."""
        w, b = self.parameters(x.shape[-1])
        return product(x, w) + b.astype(x.dtype)

    def parameters(self, in_channels: int) -> tuple[Array, Array]:
        """The parameters `w` and `b`, float32, for an input of that width."""
        w_init = self.w_init or hk.initializers.TruncatedNormal(1 / math.sqrt(in_channels))
        w = hk.get_parameter('w', (in_channels, self.channels), jnp.float32, w_init)
        return w, hk.get_parameter('b', (self.channels,), jnp.float32, jnp.zeros)


def product(x: Array, w: Array) -> Array:
    """`[..., in]` times `[in, out]`, in the dtype of `x`."""
    # In two dimensions: XLA on CPUs copies the operands of a three-dimensional product.
    rows = x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype)
    return rows.reshape(*x.shape[:-1], w.shape[1])


class Affine(NamedTuple):
    """The second half of a LayerNorm: its parameters, `[C]` float32."""

    scale: Array
    offset: Array

    def __call__(self, x: Array) -> Array:
        return (x * self.scale + self.offset).astype(x.dtype)


class LayerNorm(hk.Module):
    """Layer normalisation over channels, parameters `scale` and `offset`, statistics in float32."""

    def __call__(self, x: Array) -> Array:
        """`[..., C]` -> `[..., C]`."""
        return self.affine(x.shape[-1])(_normalise(x)).astype(x.dtype)

    def affine(self, channels: int) -> Affine:
        """What is to be done to `normalise(x)`."""
        scale = hk.get_parameter('scale', (channels,), jnp.float32, jnp.ones)
        return Affine(scale, hk.get_parameter('offset', (channels,), jnp.float32, jnp.zeros))


def normalise(x: Array) -> Array:
    """The first half of a LayerNorm, without parameters: mean 0 and variance 1 over channels."""
    return _normalise(x).astype(x.dtype)


@jax.checkpoint  # a quarter less memory in training, with that of GELU, in the same time
def _normalise(x: Array) -> Array:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)


def dropout(x: Array, rate: float, is_training: bool) -> Array:
    """Dropout that asks for no random key, and costs nothing, at rate 0 or in evaluation."""
    if rate == 0 or not is_training:
        return x
    return hk.dropout(hk.next_rng_key(), rate, x)


_gelu = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True))


@dataclasses.dataclass
class Mlp(hk.Module):
    """Linear, GELU (the tanh approximation), Linear back to the input's width.

    The papers use widening factor 1: "no bottleneck".
    """

    widening_factor: int = 1
    dropout_rate: float = 0.0
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:
        channels = x.shape[-1]
        x = _gelu(Linear(channels * self.widening_factor, LECUN_NORMAL, name='hidden')(x))
        return dropout(
            Linear(channels, LECUN_NORMAL, name='output')(x), self.dropout_rate, is_training
        )
