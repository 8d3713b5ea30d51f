"""Attention as pure functions: the plain definition, and one that never builds the T x S matrix.

The glossary of shapes is in `perceiver_jax.attention`.

Source: Perceiver IO (arXiv 2107.14795), appendix E (equations 1-3). Running maximum and sum:
Milakov and Gimelshein, 2018 (arXiv 1805.02867); their use for attention and its gradient:
Rabe and Staats, 2021 (arXiv 2112.05682), Dao et al., 2022 (arXiv 2205.14135).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.chunked_attention import (
    Prepare,
    _attend_in_chunks,
    _chunks,
    _heads_first,
    _logits,
    _prepared,
)
from perceiver_jax.errors import Refused

IMPLEMENTATIONS = ('auto', 'plain', 'chunked', 'fused')


FUSED_CHANNELS = 128  # the most per head that cuDNN's kernel takes on every GPU it runs on


def attention_weights(
    query: Array,
    key: Array,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    key_bias: Array | None = None,
    prepare_query: Prepare | None = None,
    prepare_key: Prepare | None = None,
) -> Array:
    """Softmax of the scaled dot products of queries and keys.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Boolean (or 0/1), broadcastable to `[B, T, S]`; true where a query may look at a key.
      scale: What the dot products are multiplied by; None: 1 / sqrt(F).
      key_bias: `[B, S, H]`, added to the scaled dot products of a key; None: nothing.
      prepare_query: Is done to the queries first; None: nothing.
      prepare_key: Is done to the keys first; None: nothing.

    Returns:
      `[B, H, T, S]` float32; every row sums to one, or is zero where its query may look at nothing.

    Source: Perceiver IO, equation 3.
    """
    _check_shapes(query, key, key, mask, key_bias)
    scale = _scale(scale, query)
    query, key = _prepared(query, prepare_query), _prepared(key, prepare_key)
    query, key, _, bias, mask = _heads_first(query, key, None, key_bias, mask)
    weights = jax.nn.softmax(_logits(query, key, bias, mask, scale))
    return weights if mask is None else jnp.where(mask.any(-1, keepdims=True), weights, 0)


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    key_bias: Array | None = None,
    prepare_query: Prepare | None = None,
    prepare_key: Prepare | None = None,
    implementation: str = 'auto',
    chunk_size: int | None = None,
) -> Array:
    """Multi-head attention: each query row averages the values by its attention weights.

    All implementations give the same numbers, up to rounding:
      'plain' builds the matrix of weights; any kind of differentiation.
      'chunked' walks the longer of rows and keys in chunks and keeps, for the gradient, its
        output and the logarithm of each row's sum alone: memory O((T + S) F), not O(T S). It
        computes logits and sums in float32 also in bfloat16. Not for forward-mode
        differentiation.
      'fused' is cuDNN's kernel on NVIDIA's GPUs: bfloat16 or float16, up to 128 channels a head.
      'auto' is 'fused' where that runs and 'chunked' elsewhere, in one chunk if that is small.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; V may differ from F. The same array as `key` is read once.
      mask: Boolean (or 0/1), broadcastable to `[B, T, S]`; true where a query may look at a key.
      scale: What the dot products are multiplied by; None: 1 / sqrt(F).
      key_bias: `[B, S, H]`, added to the scaled dot products of a key; None: nothing.
      prepare_query: Is done to the queries first, chunk by chunk: a function of the channels of
        each alone, such as a normalisation, without arrays of its own; None: nothing.
      prepare_key: Likewise to the keys, and to the values if they are the same array.
      implementation: One of the above.
      chunk_size: Keys of a chunk where S is larger than T, else rows; None: from the shapes.

    Returns:
      `[B, T, H, V]` in the dtype of `value`. A query that may look at nothing gives zeros.

    Raises:
      ValueError: The shapes do not fit together, or the implementation does not fit them.

    Source: Perceiver IO, equations 2-3; masks as in DeepMind's release.
    """
    _check_shapes(query, key, value, mask, key_bias)
    if implementation not in IMPLEMENTATIONS:
        raise Refused(f'implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}.')
    if chunk_size is not None and chunk_size < 1:
        raise Refused(f'chunk_size must be at least 1, not {chunk_size}.')
    prepare = prepare_query, prepare_key
    value_is_key = value is key  # asked here: within a branch for one platform they are copies
    if implementation == 'plain':
        how = dict(scale=scale, key_bias=key_bias)
        query, key, value = _all_prepared(query, key, None if value_is_key else value, *prepare)
        weights = attention_weights(query, key, mask, **how).astype(value.dtype)
        return jnp.einsum('bhts,bshv->bthv', weights, value)

    scale = _scale(scale, query)

    def chunked(query, key, value):
        arrays = _heads_first(query, key, None if value_is_key else value, key_bias, mask)
        axis, size = _chunks(*arrays[0].shape[:3], key.shape[1], chunk_size)
        return jnp.moveaxis(_attend_in_chunks(*arrays, scale, prepare, axis, size), 1, 2)

    def fused(query, key, value):
        query, key, value = _all_prepared(query, key, None if value_is_key else value, *prepare)
        return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation='cudnn')

    reason = _not_fusable(query, value, mask, key_bias)
    if implementation == 'fused':
        if reason:
            raise Refused(f"implementation 'fused' takes {reason}.")
        return fused(query, key, value)
    if implementation == 'auto' and not reason and jax.default_backend() == 'gpu':
        # A program that is exported for several platforms holds both.
        return jax.lax.platform_dependent(query, key, value, cuda=fused, default=chunked)
    return chunked(query, key, value)


def _not_fusable(
    query: Array, value: Array, mask: Array | None, key_bias: Array | None
) -> str | None:
    """What cuDNN's kernel would need and does not get; None if it runs."""
    channels = {query.shape[-1], value.shape[-1]}
    if not {query.dtype, value.dtype} <= {jnp.dtype('bfloat16'), jnp.dtype('float16')}:
        return f'bfloat16 or float16, not {query.dtype} and {value.dtype}'
    if len(channels) > 1 or max(channels) > FUSED_CHANNELS or max(channels) % 8:
        return (
            f'as many channels of queries as of values, a multiple of 8 up to {FUSED_CHANNELS} '
            f'a head, not {query.shape[-1]} and {value.shape[-1]}'
        )
    if mask is not None or key_bias is not None:
        return 'no mask and no bias'
    return None


def _check_shapes(
    query: Array, key: Array, value: Array, mask: Array | None, key_bias: Array | None
) -> None:
    shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
    if not query.ndim == key.ndim == value.ndim == 4:
        raise Refused(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    batch, rows, heads, channels = query.shape
    if key.shape != (batch, key.shape[1], heads, channels) or value.shape[:3] != key.shape[:3]:
        raise Refused(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    if mask is not None:
        full = (batch, rows, key.shape[1])
        if mask.ndim != 3 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
            raise Refused(f'The mask must broadcast to [B, T, S] = {full}; got {mask.shape}.')
    if key_bias is not None and key_bias.shape != key.shape[:3]:
        raise Refused(f'key_bias is [B, S, H] = {key.shape[:3]}; got {key_bias.shape}.')


def _all_prepared(query, key, value, prepare_query, prepare_key):
    key = _prepared(key, prepare_key)
    return _prepared(query, prepare_query), key, key if value is None else value


def _scale(scale: float | None, query: Array) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


# From here on heads come first: [B, H, T, F], [B, H, S, F], [B, H, S, V]; bias [B, H, 1, S]; mask
# [B, 1, T, S], or 1 in place of any. A value of None stands for the keys themselves.
