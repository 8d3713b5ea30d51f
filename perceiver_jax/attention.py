"""Attention as Haiku modules, built on the pure function `attend`.

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
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.dot_product_attention import attend, attention_weights

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


def cheapest_fold(
    rows: int, keys: int, *, inputs_q: int, inputs_kv: int, qk: int, v: int, output: int
) -> str | None:
    """Which side of a single-head attention need not be projected at all.

    Scores are bilinear in the two inputs, and averaging commutes with a projection:

        (Xq Wq) (Xkv Wk)^T = (Xq Wq Wk^T) Xkv^T = Xq (Xkv Wk Wq^T)^T
        A (Xkv Wv) Wo      = (A Xkv) Wv Wo      = A (Xkv Wv Wo)

    So the projections of the long side can be applied to the short one instead: with 512 latents
    and 50,176 inputs of 261 channels a cross-attend takes 28 G instead of 41 G operations, and
    reads one array of that length where it would write and read three.

    Args:
      rows: T.
      keys: S.
      inputs_q: Channels of the inputs that queries are made of.
      inputs_kv: Channels of the inputs that keys and values are made of.
      qk: Channels of queries and keys.
      v: Channels of values.
      output: Channels of the output.

    Returns:
      What takes the least arithmetic: 'keys' (keys and values are the inputs themselves, the
      middle column), 'queries' (queries are the inputs themselves and values the outputs, the
      right one), or None (nothing is folded, the left one).
    """
    if not (isinstance(rows, int) and isinstance(keys, int)):  # sizes of an exported program
        return None
    around_rows = rows * (inputs_q * qk + v * output)
    around_keys = keys * inputs_kv * (qk + v)
    products = {  # multiplications
        None: around_rows + around_keys + rows * keys * (qk + v),
        'keys': around_rows + rows * inputs_kv * (qk + v) + rows * keys * 2 * inputs_kv,
        'queries': around_keys
        + keys * (qk * inputs_q + v * output)
        + rows * keys * (inputs_q + output),
    }
    return min(products, key=products.get)


# In place of a LayerNorm's, where there is none.
_NO_AFFINE = Affine(np.ones((1,), np.float32), np.zeros((), np.float32))


@dataclasses.dataclass
class Attention(hk.Module):
    """Projects queries, keys and values, attends, and projects the result.

    Parameters `query`, `key`, `value`, `output`, each with `w` and `b`. With a single head,
    projections are moved to the side of `inputs_q` or `inputs_kv` where they are cheaper
    (`cheapest_fold`); the result is the same up to rounding.
    """

    num_heads: int
    qk_channels: int  # of queries and keys, all heads together
    v_channels: int  # of values, all heads together
    output_channels: int
    dropout_rate: float = 0.0  # of the attention's output, before the residual is added
    implementation: str = 'auto'  # of `attend`; 'plain' does not fold either
    name: str | None = None

    def __call__(
        self,
        inputs_q: Array,  # [B, T, Cq]
        inputs_kv: Array,  # [B, S, Ckv]
        mask: Array | None = None,  # broadcastable to [B, T, S]
        *,
        norm_q: LayerNorm | None = None,  # of inputs_q, where they are not normalised yet
        norm_kv: LayerNorm | None = None,  # of inputs_kv, likewise
        is_training: bool,
    ) -> Array:  # [B, T, output_channels]
        for what, channels in (('qk', self.qk_channels), ('v', self.v_channels)):
            if channels % self.num_heads:
                raise ValueError(
                    f'{what}_channels ({channels}) must be divisible by num_heads '
                    f'({self.num_heads}) in {self.module_name}.'
                )
        query = Linear(self.qk_channels, LECUN_NORMAL, name='query')
        key = Linear(self.qk_channels, LECUN_NORMAL, name='key')
        value = Linear(self.v_channels, LECUN_NORMAL, name='value')
        output = Linear(self.output_channels, LECUN_NORMAL, name='output')
        fold = self._fold(inputs_q, inputs_kv)
        if fold != 'queries' and norm_q is not None:
            inputs_q = norm_q(inputs_q)
        if fold != 'keys' and norm_kv is not None:
            inputs_kv = norm_kv(inputs_kv)
        if fold == 'keys':
            result = self._fold_keys(inputs_q, inputs_kv, mask, norm_kv, query, key, value)
            result = output(result)
        elif fold == 'queries':
            result = self._fold_queries(
                inputs_q, inputs_kv, mask, norm_q, query, key, value, output
            )
        else:
            parts = query(inputs_q), key(inputs_kv), value(inputs_kv)
            parts = [x.reshape(*x.shape[:-1], self.num_heads, -1) for x in parts]
            result = self._attend(*parts, mask)
            result = output(result.reshape(*result.shape[:2], -1))
        return dropout(result, self.dropout_rate, is_training)

    def _fold(self, inputs_q: Array, inputs_kv: Array) -> str | None:
        if self.num_heads > 1 or self.implementation == 'plain':
            return None
        return cheapest_fold(
            inputs_q.shape[1],
            inputs_kv.shape[1],
            inputs_q=inputs_q.shape[-1],
            inputs_kv=inputs_kv.shape[-1],
            qk=self.qk_channels,
            v=self.v_channels,
            output=self.output_channels,
        )

    def _fold_keys(self, inputs_q, inputs_kv, mask, norm, query, key, value):
        """`[B, T, v_channels]`; keys and values are `inputs_kv`, normalised chunk by chunk."""
        affine = _NO_AFFINE if norm is None else norm.affine(inputs_kv.shape[-1])
        queries = query(inputs_q)
        w, _ = key.parameters(inputs_kv.shape[-1])  # a bias shifts all logits of a row alike
        keys = inputs_kv[:, :, None]
        seen = self._attend(
            product(queries, affine.scale * w.T)[:, :, None],  # [B, T, 1, Ckv]
            keys,
            keys,
            mask,
            scale=1 / math.sqrt(self.qk_channels),
            prepare_key=norm and normalise,
        )
        result = value(affine(seen[:, :, 0]))
        if mask is not None:  # what looked at nothing has no value, and no bias either
            result = jnp.where(mask.any(-1, keepdims=True), result, 0)
        return result

    def _fold_queries(self, inputs_q, inputs_kv, mask, norm, query, key, value, output):
        """`[B, T, output_channels]`; queries are `inputs_q`, normalised chunk by chunk."""
        affine = _NO_AFFINE if norm is None else norm.affine(inputs_q.shape[-1])
        w, b = query.parameters(inputs_q.shape[-1])
        keys = key(inputs_kv)
        values = value(inputs_kv)
        w_output, b_output = output.parameters(self.v_channels)
        scale = 1 / math.sqrt(self.qk_channels)
        bias = scale * (keys.astype(jnp.float32) @ (affine.offset @ w + b))  # [B, S]
        seen = self._attend(
            inputs_q[:, :, None],
            product(keys, affine.scale * w.T)[:, :, None],  # [B, S, 1, Cq]
            product(values, w_output)[:, :, None],
            mask,
            scale=scale,
            key_bias=bias[:, :, None],
            prepare_query=norm and normalise,
        )
        return seen[:, :, 0] + b_output.astype(seen.dtype)

    def _attend(self, query, key, value, mask, **how):
        _record(self.module_name, query, key, mask, how)
        return attend(query, key, value, mask, **how, implementation=self.implementation)


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
    implementation: str = 'auto'  # of `attend`
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
            implementation=self.implementation,
            name='attention',
        )(
            queries,
            inputs,
            mask,
            norm_q=LayerNorm(name='norm_queries'),
            norm_kv=LayerNorm(name='norm_inputs'),
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
    implementation: str = 'auto'  # of `attend`
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:  # [B, N, D] -> [B, N, D]
        qk_channels = self.qk_channels or x.shape[-1]
        attention = Attention(
            self.num_heads,
            qk_channels,
            v_channels=self.v_channels or qk_channels,
            output_channels=x.shape[-1],
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
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


def is_recording() -> bool:
    """Whether weights may have to leave the modules that are called now."""
    return bool(_recordings.get())


def _record(
    module_name: str, query: Array, key: Array, mask: Array | None, how: dict[str, Any]
) -> None:
    for suffix, collected in _recordings.get():
        if f'/{module_name}'.endswith(f'/{suffix}'):
            collected.append(attention_weights(query, key, mask, **how))
