"""Attention: `attend` as a pure function, then the modules built on it.

Glossary of shapes, used in every file of this package:
  B  examples            M  input elements (the byte array)   C  input channels
  T  query rows          N  latents                           D  latent channels
  S  key rows            H  heads                             F  query and key channels per head
  O  output queries      E  output query channels             V  value channels per head

Every module computes in the dtype of its inputs. Parameters are float32 and are cast where they
are used; the statistics of LayerNorm, the softmax and a decoder's output layer are float32
whatever the inputs are.

Source: Perceiver (arXiv 2103.03206), section 3.1 and appendix C; Perceiver IO
(arXiv 2107.14795), section 3 and appendix E (equations 1-6).
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator

import haiku as hk
import jax
import jax.numpy as jnp
from jax import Array

LAYER_NORM_EPSILON = 1e-5


def attention_weights(query: Array, key: Array, mask: Array | None = None) -> Array:
    """Softmax of the scaled dot products of queries and keys.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Boolean (or 0/1), broadcastable to `[B, T, S]`; true where a query may look at a key.

    Returns:
      `[B, H, T, S]` float32; every row sums to one, or is zero where its query may look at nothing.

    Source: Perceiver IO, equation 3.
    """
    _check_attend_shapes(query, key, key, mask)
    scale = 1 / math.sqrt(query.shape[-1])
    logits = jnp.einsum('bthf,bshf->bhts', query, key, preferred_element_type=jnp.float32) * scale
    if mask is None:
        return jax.nn.softmax(logits)
    mask = mask.astype(bool)[:, None]  # [B, 1, T, S], or 1 in place of any of them
    # A finite minimum keeps rows without any key free of NaN; their weights are then zeroed.
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min))
    return jnp.where(mask.any(-1, keepdims=True), weights, 0)


def attend(query: Array, key: Array, value: Array, mask: Array | None = None) -> Array:
    """Multi-head attention: each query row averages the values by its attention weights.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; V may differ from F.
      mask: Boolean (or 0/1), broadcastable to `[B, T, S]`; true where a query may look at a key.

    Returns:
      `[B, T, H, V]` in the dtype of `value`. A query that may look at nothing gives zeros.

    Raises:
      ValueError: The shapes do not fit together.

    Source: Perceiver IO, equations 2-3; masks as in DeepMind's release.
    """
    _check_attend_shapes(query, key, value, mask)
    weights = attention_weights(query, key, mask).astype(value.dtype)
    return jnp.einsum('bhts,bshv->bthv', weights, value)


def _check_attend_shapes(query: Array, key: Array, value: Array, mask: Array | None) -> None:
    shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    batch, rows, heads, channels = query.shape
    if key.shape != (batch, key.shape[1], heads, channels) or value.shape[:3] != key.shape[:3]:
        raise ValueError(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    if mask is not None:
        full = (batch, rows, key.shape[1])
        if mask.ndim != 3 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
            raise ValueError(f'The mask must broadcast to [B, T, S] = {full}; got {mask.shape}.')


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
        w_init = self.w_init or hk.initializers.TruncatedNormal(1 / math.sqrt(x.shape[-1]))
        w = hk.get_parameter('w', (x.shape[-1], self.channels), jnp.float32, w_init)
        b = hk.get_parameter('b', (self.channels,), jnp.float32, jnp.zeros)
        # In two dimensions: XLA on CPUs copies the operands of a three-dimensional product.
        rows = x.reshape(-1, x.shape[-1]) @ w.astype(x.dtype) + b.astype(x.dtype)
        return rows.reshape(*x.shape[:-1], self.channels)


class LayerNorm(hk.Module):
    """Layer normalisation over channels, parameters `scale` and `offset`, statistics in float32."""

    def __call__(self, x: Array) -> Array:
        """`[..., C]` -> `[..., C]`."""
        channels = x.shape[-1:]
        scale = hk.get_parameter('scale', channels, jnp.float32, jnp.ones)
        offset = hk.get_parameter('offset', channels, jnp.float32, jnp.zeros)
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return (normal * scale + offset).astype(x.dtype)


def dropout(x: Array, rate: float, is_training: bool) -> Array:
    """Dropout that asks for no random key, and costs nothing, at rate 0 or in evaluation."""
    if rate == 0 or not is_training:
        return x
    return hk.dropout(hk.next_rng_key(), rate, x)


@dataclasses.dataclass
class Attention(hk.Module):
    """Projects queries, keys and values, attends, and projects the result.

    Parameters `query`, `key`, `value`, `output`, each with `w` and `b`.
    """

    num_heads: int
    qk_channels: int  # of queries and keys, all heads together
    v_channels: int  # of values, all heads together
    output_channels: int
    dropout_rate: float = 0.0  # of the attention's output, before the residual is added
    name: str | None = None

    def __call__(
        self,
        inputs_q: Array,  # [B, T, Cq]
        inputs_kv: Array,  # [B, S, Ckv]
        mask: Array | None = None,  # broadcastable to [B, T, S]
        *,
        is_training: bool,
    ) -> Array:  # [B, T, output_channels]
        for what, channels in (('qk', self.qk_channels), ('v', self.v_channels)):
            if channels % self.num_heads:
                raise ValueError(
                    f'{what}_channels ({channels}) must be divisible by num_heads '
                    f'({self.num_heads}) in {self.module_name}.'
                )

        def heads(x: Array) -> Array:
            return x.reshape(*x.shape[:-1], self.num_heads, -1)

        query = heads(Linear(self.qk_channels, LECUN_NORMAL, name='query')(inputs_q))
        key = heads(Linear(self.qk_channels, LECUN_NORMAL, name='key')(inputs_kv))
        value = heads(Linear(self.v_channels, LECUN_NORMAL, name='value')(inputs_kv))
        _record(self.module_name, query, key, mask)
        result = attend(query, key, value, mask)
        result = Linear(self.output_channels, LECUN_NORMAL, name='output')(
            result.reshape(*result.shape[:2], -1)
        )
        return dropout(result, self.dropout_rate, is_training)


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
        x = jax.nn.gelu(
            Linear(channels * self.widening_factor, LECUN_NORMAL, name='hidden')(x),
            approximate=True,
        )
        return dropout(
            Linear(channels, LECUN_NORMAL, name='output')(x), self.dropout_rate, is_training
        )


@dataclasses.dataclass
class CrossAttend(hk.Module):
    """Queries look at inputs: x = [queries +] Attention(LN(queries), LN(inputs)); x + Mlp(LN(x)).

    Queries and keys are as wide as the inputs unless told otherwise, with a single head: 261
    channels on ImageNet ("the minimum of the input channels", Perceiver, appendix C).
    """

    num_heads: int = 1
    qk_channels: int | None = None  # None: the channels of the inputs
    v_channels: int | None = None  # None: qk_channels
    widening_factor: int = 1
    use_query_residual: bool = True
    dropout_rate: float = 0.0
    name: str | None = None

    def __call__(
        self,
        queries: Array,  # [B, T, Cq]
        inputs: Array,  # [B, S, Ckv]
        mask: Array | None = None,  # broadcastable to [B, T, S]
        *,
        is_training: bool,
    ) -> Array:  # [B, T, Cq]
        qk_channels = self.qk_channels or inputs.shape[-1]
        x = Attention(
            self.num_heads,
            qk_channels,
            v_channels=self.v_channels or qk_channels,
            output_channels=queries.shape[-1],
            dropout_rate=self.dropout_rate,
            name='attention',
        )(
            LayerNorm(name='norm_queries')(queries),
            LayerNorm(name='norm_inputs')(inputs),
            mask,
            is_training=is_training,
        )
        if self.use_query_residual:
            x = queries + x
        mlp = Mlp(self.widening_factor, self.dropout_rate, name='mlp')
        return x + mlp(LayerNorm(name='norm_mlp')(x), is_training=is_training)


@dataclasses.dataclass
class SelfAttend(hk.Module):
    """One layer of the latent transformer: x += Attention(LN(x)); x += Mlp(LN(x)); no mask."""

    num_heads: int = 8
    qk_channels: int | None = None  # None: the channels of the input
    v_channels: int | None = None  # None: qk_channels
    widening_factor: int = 1
    dropout_rate: float = 0.0
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:  # [B, N, D] -> [B, N, D]
        qk_channels = self.qk_channels or x.shape[-1]
        attention = Attention(
            self.num_heads,
            qk_channels,
            v_channels=self.v_channels or qk_channels,
            output_channels=x.shape[-1],
            dropout_rate=self.dropout_rate,
            name='attention',
        )
        normal = LayerNorm(name='norm_attention')(x)
        x = x + attention(normal, normal, is_training=is_training)
        mlp = Mlp(self.widening_factor, self.dropout_rate, name='mlp')
        return x + mlp(LayerNorm(name='norm_mlp')(x), is_training=is_training)


# What is recorded in this thread: ends of module names, and where their weights go.
_recordings: contextvars.ContextVar[tuple[tuple[str, list[Array]], ...]]
_recordings = contextvars.ContextVar('recordings', default=())


@contextlib.contextmanager
def record_attention(module_name: str) -> Iterator[list[Array]]:
    """Collects the attention weights of one module, which are not kept otherwise.

    Use it inside the transformed function and return what it collected:

        def forward(images):
            with record_attention('encoder/cross_attend_1') as weights:
                logits = image_classifier(images, is_training=False, **model)
            return logits, weights[0]

    Args:
      module_name: The module that attends, by the end of its Haiku name.

    Yields:
      A list that receives `[B, H, T, S]` float32 each time the module is called.
    """
    collected: list[Array] = []
    token = _recordings.set((*_recordings.get(), (f'{module_name}/attention', collected)))
    try:
        yield collected
    finally:
        _recordings.reset(token)


@contextlib.contextmanager
def no_recording() -> Iterator[None]:
    """Records nothing: within a loop, the weights of one iteration cannot leave it."""
    token = _recordings.set(())
    try:
        yield
    finally:
        _recordings.reset(token)


def _record(module_name: str, query: Array, key: Array, mask: Array | None) -> None:
    for suffix, collected in _recordings.get():
        if f'/{module_name}'.endswith(f'/{suffix}'):
            collected.append(attention_weights(query, key, mask))
