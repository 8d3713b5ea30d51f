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
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from perceiver_jax import folding
from perceiver_jax.checks import Module
from perceiver_jax.chunked_attention import Prepare
from perceiver_jax.dot_product_attention import attend, check_mask
from perceiver_jax.errors import Refused
from perceiver_jax.grid_keys import attend_to_grid, can_be_keys
from perceiver_jax.grid_parts import products
from perceiver_jax.grid_queries import attend_from_grid, can_be_queries
from perceiver_jax.grids import FourierGrid, written_out
from perceiver_jax.layers import (
    LECUN_NORMAL,
    LayerNorm,
    Linear,
    Mlp,
    check_floating,
    dropout,
    normalisation,
    project,
)
from perceiver_jax.recording import is_recorded, record
from perceiver_jax.splash_attention import why_not


@dataclasses.dataclass
class Attention(Module):
    """Projects queries, keys and values, attends, and projects the result.

    Parameters: modules `query`, `key`, `value`, `output`, each with `w` and `b`. With a single
    head, projections are moved to the side of `inputs_q` or `inputs_kv` where they are cheaper
    (`perceiver_jax.folding`); the result is the same up to rounding.

    Attributes:
      num_heads: H.
      qk_channels: Channels of queries and keys, all heads together.
      v_channels: Channels of values, all heads together.
      output_channels: Channels of the result.
      dropout_rate: Dropout of the result, in training, before a residual is added.
      implementation: Implementation of `attend`: 'auto', 'chunked', 'fused', 'pallas', 'splash', or
        'plain', which moves no projection either; forward-mode differentiation needs 'plain'. What
        'splash' does not take goes the 'auto' way, with a warning.
      name: Name of the module.
    """

    num_heads: int
    _: dataclasses.KW_ONLY
    qk_channels: int
    v_channels: int
    output_channels: int
    dropout_rate: float = 0.0
    implementation: str = 'auto'
    name: str | None = None

    def __call__(
        self,
        inputs_q: Array | FourierGrid,
        inputs_kv: Array | FourierGrid,
        mask: Array | None = None,
        *,
        norm_q: LayerNorm | None = None,
        norm_kv: LayerNorm | None = None,
        is_training: bool,
    ) -> Array:
        """Attends from one array to another.

        Args:
          inputs_q: `[B, T, Cq]`, what queries are made of, or a grid of them.
          inputs_kv: `[B, S, Ckv]`, what keys and values are made of, or a grid of them.
          mask: Boolean or 0/1, broadcastable to `[B, T, S]`; true where a query attends to a key;
            None: everywhere. Inputs that no query attends to may hold anything, also NaN.
          norm_q: Normalisation to apply to `inputs_q`; None: none.
          norm_kv: Normalisation to apply to `inputs_kv`; None: none.
          is_training: Whether dropout is applied.

        Returns:
          `[B, T, output_channels]` in the dtype of the inputs. For a fully masked query it is the
          bias of `output`.

        Raises:
          Refused: The heads do not divide the channels, or the shapes do not fit together,
            or an array is not of a floating-point dtype.
        """
        check_floating(self.module_name, inputs_q=inputs_q, inputs_kv=inputs_kv)
        check_heads(self.module_name, self.num_heads, self.qk_channels, self.v_channels)
        check_mask(mask, (inputs_q.shape[0], inputs_q.shape[1], inputs_kv.shape[1]))
        query = Linear(self.qk_channels, LECUN_NORMAL, name='query')
        key = Linear(self.qk_channels, LECUN_NORMAL, name='key')
        value = Linear(self.v_channels, LECUN_NORMAL, name='value')
        output = Linear(self.output_channels, LECUN_NORMAL, name='output')
        if is_recorded(self.module_name):
            self._record(inputs_q, inputs_kv, mask, norm_q, norm_kv, query, key)
        if not (self._knows_grids(norm_q) and can_be_queries(inputs_q, mask)):
            inputs_q = written_out(inputs_q)
        if not (self._knows_grids(norm_kv) and can_be_keys(inputs_kv, mask)):
            inputs_kv = written_out(inputs_kv)
        fold = self._fold(inputs_q, inputs_kv)
        if fold == 'keys':  # `attend` meets the inputs themselves, and normalises them
            average = folding.attend_with_folded_keys(
                written_out(inputs_q),
                inputs_kv,
                mask,
                norm_q=norm_q,
                norm_kv=norm_kv,
                query=query,
                key=key,
                value=value,
                attend=self._attend_with_one_head,
            )
            return dropout(output(average), self.dropout_rate, is_training)
        inputs_kv = written_out(inputs_kv)
        inputs_kv = _without_unused(inputs_kv, mask)
        if fold == 'queries':
            result = folding.attend_with_folded_queries(
                inputs_q,
                inputs_kv,
                mask,
                norm_q=norm_q,
                norm_kv=norm_kv,
                query=query,
                key=key,
                value=value,
                output=output,
                attend=self._attend_with_one_head,
            )
            return dropout(result, self.dropout_rate, is_training)
        inputs_q = written_out(inputs_q)
        first_q, first_kv = (
            normalisation(norm, x.shape[-1])
            for norm, x in ((norm_q, inputs_q), (norm_kv, inputs_kv))
        )
        if inputs_q is inputs_kv and norm_q is norm_kv:
            queries, keys, values = project(inputs_q, first_q, query, key, value)
        else:
            (queries,) = project(inputs_q, first_q, query)
            keys, values = project(inputs_kv, first_kv, key, value)
        queries, keys, values = map(self._split_heads, (queries, keys, values))
        average = self._attend(queries, keys, values, mask)
        (result,) = project(average, self._join_heads, output)
        return dropout(result, self.dropout_rate, is_training)

    def _record(
        self,
        inputs_q: Array | FourierGrid,
        inputs_kv: Array | FourierGrid,
        mask: Array | None,
        norm_q: LayerNorm | None,
        norm_kv: LayerNorm | None,
        query: Linear,
        key: Linear,
    ) -> None:
        """Records what the definition gives, with both sides projected."""
        # A folded projection leaves out of the logits what a softmax does not see.
        rows, keys = written_out(inputs_q), _without_unused(written_out(inputs_kv), mask)
        (queries,) = project(rows, normalisation(norm_q, rows.shape[-1]), query)
        (keys,) = project(keys, normalisation(norm_kv, keys.shape[-1]), key)
        record(self.module_name, self._split_heads(queries), self._split_heads(keys), mask)

    def _knows_grids(self, norm: LayerNorm | None) -> bool:
        of_grids = ('auto', 'chunked', 'pallas')
        return norm is not None and self.num_heads == 1 and self.implementation in of_grids

    def _fold(self, inputs_q: Array | FourierGrid, inputs_kv: Array | FourierGrid) -> str | None:
        if self.num_heads > 1 or self.implementation == 'plain':
            return None
        return folding.cheapest_fold(
            rows=inputs_q.shape[1],
            keys=inputs_kv.shape[1],
            inputs_q=inputs_q.shape[-1],
            inputs_kv=inputs_kv.shape[-1],
            qk=self.qk_channels,
            v=self.v_channels,
            output=self.output_channels,
            products_q=products(inputs_q),
            products_kv=products(inputs_kv),
        )

    def _split_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)

    def _join_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-2], self.v_channels)

    def _attend(
        self, query: Array, key: Array, value: Array | None, mask: Array | None, **how: Any
    ) -> Array:
        implementation = self.implementation
        if implementation == 'splash':
            missing = why_not(query, key, value, how.get('key_bias'), mask)
            if missing is not None:  # Python shows a text once
                implementation = 'auto'
                warnings.warn(f"'splash' takes {missing}: 'auto' serves such attends", stacklevel=2)
        return attend(query, key, value, mask, **how, implementation=implementation)

    def _attend_with_one_head(
        self,
        query: Array | FourierGrid,
        key: Array | FourierGrid,
        value: Array | None,
        mask: Array | None,
        *,
        scale: float,
        key_bias: Array | None = None,
        **prepare: Prepare | None,
    ) -> Array:
        if isinstance(query, FourierGrid) or isinstance(key, FourierGrid):
            if isinstance(key, FourierGrid):
                kernel = 'compiled' if self.implementation == 'pallas' else None
                return attend_to_grid(written_out(query), key, mask, scale=scale, kernel=kernel)
            assert isinstance(query, FourierGrid) and value is not None and key_bias is not None
            return attend_from_grid(query, key, value, key_bias, scale=scale)
        bias = None if key_bias is None else key_bias[:, :, None]
        values = None if value is None else value[:, :, None]
        return self._attend(
            query[:, :, None],
            key[:, :, None],
            values,
            mask,
            scale=scale,
            key_bias=bias,
            **prepare,
        )[:, :, 0]


def _without_unused(inputs: Array, mask: Array | None) -> Array:
    """Zeros what no query attends to, as `without_unused_keys`: also for projections' gradients."""
    return inputs if mask is None else jnp.where(mask.astype(bool).any(1)[..., None], inputs, 0)


@dataclasses.dataclass
class CrossAttend(Module):
    """Queries attend to inputs, then an MLP.

    `x = [queries +] Attention(LN(queries), LN(inputs))`; `x += Mlp(LN(x))`.

    Queries and keys are as wide as the inputs unless told otherwise, with a single head: 261
    channels on ImageNet ("the minimum of the input channels", Perceiver, appendix C).

    For the gradient it keeps the inputs as they come, and otherwise only what is as long as the
    queries, if keys are folded: `queries`, those that are projected and those that meet the inputs,
    averages, values, `x` in front of the MLP, and its hidden layer in front of GELU.

    Parameters: modules `norm_queries`, `norm_inputs`, `attention`, `norm_mlp`, `mlp`.

    Attributes:
      num_heads: H.
      qk_channels: Channels of queries and keys, all heads together; None: those of the inputs.
      v_channels: Channels of values, all heads together; None: `qk_channels`.
      widening_factor: Width of the MLP's hidden layer as a multiple of its input's.
      use_query_residual: Whether the queries are added to what was attended to.
      dropout_rate: Dropout behind the attention and behind the MLP, in training.
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      name: Name of the module.
    """

    num_heads: int = 1
    _: dataclasses.KW_ONLY
    qk_channels: int | None = None
    v_channels: int | None = None
    widening_factor: int = 1
    use_query_residual: bool = True
    dropout_rate: float = 0.0
    implementation: str = 'auto'
    name: str | None = None

    def __call__(
        self,
        queries: Array | FourierGrid,
        inputs: Array | FourierGrid,
        mask: Array | None = None,
        *,
        is_training: bool,
    ) -> Array:
        """Reads from the inputs what each query asks for.

        Args:
          queries: `[B, T, Cq]`, or a grid of them.
          inputs: `[B, S, Ckv]`, or a grid of them.
          mask: Boolean or 0/1, broadcastable to `[B, T, S]`; true where a query attends to an
            input; None: everywhere.
          is_training: Whether dropout is applied.

        Returns:
          `[B, T, Cq]` in the dtype of the queries.

        Raises:
          Refused: The heads do not divide the channels, or the shapes do not fit together,
            or an array is not of a floating-point dtype.
        """
        check_floating(self.module_name, queries=queries, inputs=inputs)
        qk_channels = self.qk_channels or inputs.shape[-1]
        attention = Attention(
            self.num_heads,
            qk_channels=qk_channels,
            v_channels=self.v_channels or qk_channels,
            output_channels=queries.shape[-1],
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
            name='attention',
        )
        x = attention(
            queries,
            inputs,
            mask,
            norm_q=LayerNorm(name='norm_queries'),
            norm_kv=LayerNorm(name='norm_inputs'),
            is_training=is_training,
        )
        if self.use_query_residual:
            x = written_out(queries) + x
        mlp = Mlp(self.widening_factor, dropout_rate=self.dropout_rate, name='mlp')
        return x + mlp(x, norm=LayerNorm(name='norm_mlp'), is_training=is_training)


@dataclasses.dataclass
class SelfAttend(Module):
    """One layer of the latent transformer.

    `x += Attention(LN(x))`; `x += Mlp(LN(x))`.

    For the gradient it keeps seven arrays of the size of `x` (with the papers' widths): `x`,
    queries, keys, values, what they average to, `x` with it added, and the MLP's hidden layer in
    front of GELU. Less would repeat a product; norms and GELU are computed again.

    Parameters: modules `norm_attention`, `attention`, `norm_mlp`, `mlp`.

    Attributes:
      num_heads: H.
      qk_channels: Channels of queries and keys, all heads together; None: those of the input.
      v_channels: Channels of values, all heads together; None: `qk_channels`.
      widening_factor: Width of the MLP's hidden layer as a multiple of its input's.
      dropout_rate: Dropout behind the attention and behind the MLP, in training.
      implementation: Implementation of `attend`: 'auto', 'plain', 'chunked', 'fused', 'pallas',
        'splash'; forward-mode differentiation needs 'plain'.
      name: Name of the module.
    """

    num_heads: int = 8
    _: dataclasses.KW_ONLY
    qk_channels: int | None = None
    v_channels: int | None = None
    widening_factor: int = 1
    dropout_rate: float = 0.0
    implementation: str = 'auto'
    name: str | None = None

    def __call__(self, x: Array, *, is_training: bool) -> Array:
        """Lets every row attend to all rows; there is no mask.

        Args:
          x: `[B, N, D]`.
          is_training: Whether dropout is applied.

        Returns:
          `[B, N, D]` in the dtype of `x`.

        Raises:
          Refused: The heads do not divide the channels, or `x` is not of a floating-point dtype.
        """
        check_floating(self.module_name, x=x)
        qk_channels = self.qk_channels or x.shape[-1]
        attention = Attention(
            self.num_heads,
            qk_channels=qk_channels,
            v_channels=self.v_channels or qk_channels,
            output_channels=x.shape[-1],
            dropout_rate=self.dropout_rate,
            implementation=self.implementation,
            name='attention',
        )
        norm = LayerNorm(name='norm_attention')
        x = x + attention(x, x, norm_q=norm, norm_kv=norm, is_training=is_training)
        mlp = Mlp(self.widening_factor, dropout_rate=self.dropout_rate, name='mlp')
        return x + mlp(x, norm=LayerNorm(name='norm_mlp'), is_training=is_training)


def check_attend(
    where: str,
    module: type[CrossAttend] | type[SelfAttend],
    fields: Mapping[str, Any],
    channels: int,
) -> None:
    """Checks the heads of the attention that a module passes fields on to, under their own names.

    Args:
      where: What holds the fields, such as 'encoder.self_attend'.
      module: `CrossAttend` or `SelfAttend`.
      fields: Field name -> value.
      channels: Channels of queries and keys where the fields do not tell.

    Raises:
      Refused: There are less than one, or they do not divide the channels; it names the field.
    """
    qk_channels = fields.get('qk_channels') or channels
    v_channels = fields.get('v_channels') or qk_channels
    check_heads(where, fields.get('num_heads', module.num_heads), qk_channels, v_channels)


def check_heads(where: str, num_heads: int, qk_channels: int, v_channels: int) -> None:
    """Checks that channels can be cut into heads.

    Args:
      where: What has the heads, such as 'encoder.self_attend'.
      num_heads: Number of heads.
      qk_channels: Channels of queries and keys, all heads together.
      v_channels: Channels of values, all heads together.

    Raises:
      Refused: There are less than one, or they do not divide the channels.
    """
    if num_heads < 1:
        raise Refused(f'{where}.num_heads must be at least 1, not {num_heads}.')
    for name, channels in (('qk_channels', qk_channels), ('v_channels', v_channels)):
        if channels % num_heads:
            raise Refused(
                f'{where}.num_heads is {num_heads} and must divide {name}, which are {channels}.'
            )
