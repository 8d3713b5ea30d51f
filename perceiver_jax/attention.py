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

import dataclasses
import math

import haiku as hk
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.dot_product_attention import attend
from perceiver_jax.errors import Refused
from perceiver_jax.folding import cheapest_fold
from perceiver_jax.layers import (
    LECUN_NORMAL,
    Affine,
    LayerNorm,
    Linear,
    Mlp,
    dropout,
    normalise,
    product,
)
from perceiver_jax.recording import _record

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
                raise Refused(
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
