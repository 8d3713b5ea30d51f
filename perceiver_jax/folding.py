"""Single-head attention whose longer side is never projected.

Scores are bilinear in the two inputs, and averaging commutes with a projection:

    (Xq Wq) (Xkv Wk)^T = (Xq Wq Wk^T) Xkv^T = Xq (Xkv Wk Wq^T)^T
    A (Xkv Wv) Wo      = (A Xkv) Wv Wo      = A (Xkv Wv Wo)

So the projections of the long side can be applied to the short one instead: with 512 latents and
50,176 inputs of 261 channels a cross-attend takes 28 G instead of 41 G operations, and reads one
array of that length where it would write and read three. The left column projects both sides, the
middle one folds the keys and values, the right one the queries and outputs.
"""

import math
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from perceiver_jax.chunked_attention import Prepare
from perceiver_jax.grids import FourierGrid
from perceiver_jax.layers import (
    Affine,
    LayerNorm,
    Linear,
    normalisation,
    normalise,
    product,
    project,
)


class Attend(Protocol):
    """Attention of a single head, with an implementation chosen."""

    def __call__(
        self,
        query: Array | FourierGrid,
        key: Array | FourierGrid,
        value: Array | None,
        mask: Array | None,
        *,
        scale: float,
        key_bias: Array | None = None,
        prepare_query: Prepare | None = None,
        prepare_key: Prepare | None = None,
    ) -> Array:
        """Computes attention.

        Args:
          query: `[B, T, F]`, or a grid, which is normalised.
          key: `[B, S, F]`, or a grid, which is normalised.
          value: `[B, S, V]`; None: the keys, as prepared, are the values.
          mask: Broadcastable to `[B, T, S]`; None: no mask.
          scale: Factor of the dot products.
          key_bias: `[B, S]`; None: nothing.
          prepare_query: Function that is applied to the queries first; None: nothing.
          prepare_key: Function that is applied to the keys first; None: nothing.

        Returns:
          `[B, T, V]`.
        """
        ...


def cheapest_fold(
    *,
    rows: int,
    keys: int,
    inputs_q: int,
    inputs_kv: int,
    qk: int,
    v: int,
    output: int,
    products_q: int | None = None,
    products_kv: int | None = None,
) -> str | None:
    """Chooses the side of a single-head attention that need not be projected at all.

    Args:
      rows: T.
      keys: S.
      inputs_q: Channels of the inputs that queries are made of.
      inputs_kv: Channels of the inputs that keys and values are made of.
      qk: Channels of queries and keys.
      v: Channels of values.
      output: Channels of the output.
      products_q: Multiplications of a logit where queries are the inputs; None: `inputs_q`.
      products_kv: Multiplications of a logit where keys are the inputs, and again where values
        are; None: `inputs_kv`.

    Returns:
      What takes the least arithmetic: 'keys' (keys and values are the inputs themselves),
      'queries' (queries are the inputs themselves and values the outputs), or None (nothing is
      folded).
    """
    if not (isinstance(rows, int) and isinstance(keys, int)):  # sizes of an exported program
        return None
    around_rows = rows * (inputs_q * qk + v * output)
    around_keys = keys * inputs_kv * (qk + v)
    products: dict[str | None, int] = {  # multiplications
        None: around_rows + around_keys + rows * keys * (qk + v),
        'keys': around_rows
        + rows * inputs_kv * (qk + v)
        + rows * keys * 2 * (products_kv or inputs_kv),
        'queries': around_keys
        + keys * (qk * inputs_q + v * output)
        + rows * keys * ((products_q or inputs_q) + output),
    }
    return min(products, key=lambda fold: products[fold])


def attend_with_folded_keys(
    inputs_q: Array,
    inputs_kv: Array | FourierGrid,
    mask: Array | None,
    *,
    norm_q: LayerNorm | None,
    norm_kv: LayerNorm | None,
    query: Linear,
    key: Linear,
    value: Linear,
    attend: Attend,
) -> Array:
    """Attends with the inputs themselves as keys and values, normalised chunk by chunk.

    Args:
      inputs_q: `[B, T, Cq]`, what queries are made of.
      inputs_kv: `[B, S, Ckv]`, what keys and values are made of; a grid only with a normalisation.
      mask: Broadcastable to `[B, T, S]`; None: no mask.
      norm_q: Normalisation of `inputs_q`; None: none.
      norm_kv: Normalisation of `inputs_kv`; None: they are normalised already, or not at all.
      query: Projection of the queries.
      key: Projection of the keys.
      value: Projection of the values.
      attend: The attention to use.

    Returns:
      `[B, T, v_channels]`; zeros for a fully masked query.
    """
    channels = inputs_kv.shape[-1]
    affine = Affine.identity(channels) if norm_kv is None else norm_kv.affine(channels)
    (queries,) = project(inputs_q, normalisation(norm_q, inputs_q.shape[-1]), query)
    w, _ = key.parameters(channels)  # a bias shifts all logits of a row alike
    average = attend(
        product(queries, affine.scale[None] * w.T),  # [B, T, Ckv]
        inputs_kv,
        None,
        mask,
        scale=1 / math.sqrt(key.channels),
        prepare_key=None if norm_kv is None else normalise,
    )
    (result,) = project(average, affine.__call__, value)
    if mask is not None:  # a fully masked query has no value, and no bias either
        result = jnp.where(mask.any(-1, keepdims=True), result, 0)
    return result


def attend_with_folded_queries(
    inputs_q: Array | FourierGrid,
    inputs_kv: Array,
    mask: Array | None,
    *,
    norm_q: LayerNorm | None,
    norm_kv: LayerNorm | None,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attend: Attend,
) -> Array:
    """Attends with the inputs themselves as queries, normalised chunk by chunk.

    Args:
      inputs_q: `[B, T, Cq]`, what queries are made of; a grid only with a normalisation.
      inputs_kv: `[B, S, Ckv]`, what keys and values are made of.
      mask: Broadcastable to `[B, T, S]`; None: no mask.
      norm_q: Normalisation of `inputs_q`; None: they are normalised already, or not at all.
      norm_kv: Normalisation of `inputs_kv`; None: none.
      query: Projection of the queries.
      key: Projection of the keys.
      value: Projection of the values.
      output: Projection of the averaged values.
      attend: The attention to use.

    Returns:
      `[B, T, output_channels]`: what `output` would return.
    """
    channels = inputs_q.shape[-1]
    affine = Affine.identity(channels) if norm_q is None else norm_q.affine(channels)
    w, b = query.parameters(channels)
    first = normalisation(norm_kv, inputs_kv.shape[-1])
    keys, values = project(inputs_kv, first, key, value)
    w_output, b_output = output.parameters(value.channels)
    scale = 1 / math.sqrt(query.channels)
    bias = scale * (keys.astype(jnp.float32) @ (affine.offset @ w + b))  # [B, S]
    average = attend(
        inputs_q,
        product(keys, affine.scale[None] * w.T),  # [B, S, Cq]
        product(values, w_output),
        mask,
        scale=scale,
        key_bias=bias,
        prepare_query=None if norm_q is None else normalise,
    )
    return average + b_output.astype(average.dtype)[None, None]
