"""Attention as pure functions: the plain definition, and the choice of how to compute it.

`attend` is multi-head attention, `attention_weights` the matrix it averages by, the softmax of
`attention_logits`. The way that never builds this matrix is in `perceiver_jax.chunked_attention`;
the glossary of shapes is in `perceiver_jax.attention`.

Source: Perceiver IO (arXiv 2107.14795), appendix E (equations 1-3).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.chunked_attention import (
    How,
    Operands,
    Prepare,
    attend_in_chunks,
    choose_chunks,
    heads_first,
    masked_logits,
    prepared,
    without_unused_keys,
)
from perceiver_jax.chunks import only_reverse_mode, platform
from perceiver_jax.errors import Refused
from perceiver_jax.layers import check_floating
from perceiver_jax.sharding import laid_out_alike
from perceiver_jax.splash_attention import attend_by_splash, why_not

IMPLEMENTATIONS = ('auto', 'plain', 'chunked', 'fused', 'pallas', 'splash')
FUSED_CHANNELS = 128  # the most per head that cuDNN's kernel takes on every GPU it runs on


def attention_logits(query: Array, key: Array, mask: Array | None = None) -> Array:
    """Computes the scaled dot products of queries and keys, of which attention takes the softmax.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Boolean or 0/1, broadcastable to `[B, T, S]`; true where a query attends to a key;
        None: everywhere.

    Returns:
      `[B, H, T, S]` float32; where masked, the lowest finite float32, -3.4e38, so that the softmax
      over S gives the weights, but for fully masked queries.

    Raises:
      Refused: The shapes do not fit together, or an array is not of a floating-point dtype.

    Source: Perceiver IO, equation 3; shown as pictures in Perceiver, figure 3 and appendix E.
    """
    return _logits(_operands(query, key, mask), _scale(None, query))


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
    """Computes the softmax of the scaled dot products of queries and keys.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      mask: Boolean or 0/1, broadcastable to `[B, T, S]`; true where a query attends to a key;
        None: everywhere.
      scale: Factor of the dot products; None: 1 / sqrt(F).
      key_bias: `[B, S, H]`, added to the scaled dot products of a key; None: nothing.
      prepare_query: Function that is applied to the queries first; None: nothing.
      prepare_key: Function that is applied to the keys first; None: nothing.

    Returns:
      `[B, H, T, S]` float32; every row sums to one, but that of a fully masked query is zero.

    Raises:
      Refused: The shapes do not fit together, or an array is not of a floating-point dtype.

    Source: Perceiver IO, equation 3.
    """
    operands = _operands(query, key, mask, key_bias)
    operands = _prepared_operands(operands, prepare_query, prepare_key)
    return _weights(operands, _scale(scale, query))


def _operands(
    query: Array, key: Array, mask: Array | None, key_bias: Array | None = None
) -> Operands:
    """Checks what attention weights are computed of, and lays it out; there are no values."""
    _check_operands(query, key, None, mask, key_bias)
    query, key, mask, key_bias = laid_out_alike(query, key, mask, key_bias)
    return without_unused_keys(heads_first(query, key, None, key_bias, mask))


def attend(
    query: Array,
    key: Array,
    value: Array | None,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    key_bias: Array | None = None,
    prepare_query: Prepare | None = None,
    prepare_key: Prepare | None = None,
    implementation: str = 'auto',
    chunk_size: int | None = None,
) -> Array:
    """Computes multi-head attention: each query averages the values by its attention weights.

    All implementations give the same numbers, up to rounding:
      'plain' builds the matrix of weights; any kind of differentiation.
      'chunked' is memory-efficient (flash) attention: it walks the longer of rows and keys in
        chunks and keeps, for the gradient, its output and the logarithm of each row's sum alone:
        memory O((T + S) F), not O(T S). It computes logits and sums in float32 also in bfloat16.
      'fused' is cuDNN's kernel on NVIDIA's GPUs: bfloat16 or float16, up to 128 channels a head.
      'splash' is jax's kernel for TPUs: bfloat16, or float32, and masks of keys or of queries. Its
        numbers have been compared in the interpreter alone, and no TPU has timed it.
      'auto' is 'fused' where that runs and 'chunked' elsewhere, in one chunk if that is small.
        Until a TPU has timed it, never 'splash'.
      'pallas' is 'auto' here; modules that read a grid on NVIDIA's GPUs use a kernel of ours.
    Forward-mode differentiation (`jax.jvp`, `jax.jacfwd`, the gradient of a jvp) needs 'plain'.
    Forward over reverse (`jax.hessian`, the jvp of a gradient) runs with all but 'fused' and
    'splash'.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; V may differ from F. None, or the same array as `key`: the keys, as
        prepared, are the values, and are read once.
      mask: Boolean or 0/1, broadcastable to `[B, T, S]`; true where a query attends to a key;
        None: everywhere. Keys and values that no query attends to may hold anything, also NaN.
      scale: Factor of the dot products; None: 1 / sqrt(F).
      key_bias: `[B, S, H]`, added to the scaled dot products of a key; None: nothing.
      prepare_query: Function that is applied to the queries first, chunk by chunk: one of the
        channels of each query alone, such as a normalisation, without arrays of its own; None:
        nothing.
      prepare_key: Function that is applied to the keys first, chunk by chunk: one of the channels
        of each key alone, without arrays of its own; None: nothing.
      implementation: 'auto', 'plain', 'chunked', 'fused', 'pallas', 'splash';
        forward-mode differentiation needs 'plain'.
      chunk_size: Keys of a chunk where S is larger than T, else rows; None: from the shapes.

    Returns:
      `[B, T, H, V]` in the dtype of the values; zeros for a fully masked query, and where
      there are no keys.

    Raises:
      Refused: The shapes do not fit together, the implementation does not fit them, or an array is
        not of a floating-point dtype.

    Source: Perceiver IO, equations 2-3; masks as in DeepMind's release.
    """
    _check_operands(query, key, value, mask, key_bias)
    if implementation not in IMPLEMENTATIONS:
        raise Refused(f'implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}.')
    if chunk_size is not None and chunk_size < 1:
        raise Refused(f'chunk_size must be at least 1, not {chunk_size}.')
    if implementation == 'pallas':
        implementation = 'auto'
    scale = _scale(scale, query)
    if value is key:
        value = None
    query, key, value, mask, key_bias = laid_out_alike(query, key, value, mask, key_bias)

    def plain(query: Array, key: Array, value: Array | None) -> Array:
        operands = without_unused_keys(heads_first(query, key, value, key_bias, mask))
        operands = _prepared_operands(operands, prepare_query, prepare_key)
        value = operands.key if operands.value is None else operands.value
        weights = _weights(operands, scale)
        return jnp.einsum('bhts,bhsv->bthv', weights.astype(value.dtype), value)

    def chunked(query: Array, key: Array, value: Array | None) -> Array:
        batch, rows, heads, _ = query.shape
        axis, size = choose_chunks(
            batch=batch, heads=heads, rows=rows, keys=key.shape[1], size=chunk_size
        )
        how = How(scale, prepare_query, prepare_key, axis, size)
        with only_reverse_mode():
            return attend_in_chunks(query, key, value, key_bias, mask, how)

    def fused(query: Array, key: Array, value: Array | None) -> Array:
        query, key = prepared(query, prepare_query), prepared(key, prepare_key)
        value = key if value is None else value
        return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation='cudnn')

    def splash(query: Array, key: Array, value: Array | None) -> Array:
        with only_reverse_mode():
            return attend_by_splash(
                query,
                key,
                value,
                key_bias,
                mask,
                scale=scale,
                prepare_query=prepare_query,
                prepare_key=prepare_key,
            )

    if implementation == 'plain':
        return plain(query, key, value)
    reason = _not_fusable(query, key if value is None else value, mask, key_bias)
    if implementation == 'fused' and reason:
        raise Refused(f"implementation 'fused' takes {reason}.")
    if implementation == 'splash' and (missing := why_not(query, key, value, key_bias, mask)):
        raise Refused(f"implementation 'splash' takes {missing}.")
    if 0 in (*query.shape, *key.shape):  # nothing to walk: the definition takes no memory either
        return plain(query, key, value)
    if implementation == 'fused':
        return fused(query, key, value)
    if implementation == 'splash':
        return splash(query, key, value)
    if implementation == 'auto' and not reason and platform() == 'gpu':
        # A program that is exported for several platforms holds both.
        return jax.lax.platform_dependent(query, key, value, cuda=fused, default=chunked)
    return chunked(query, key, value)


def _prepared_operands(
    operands: Operands, prepare_query: Prepare | None, prepare_key: Prepare | None
) -> Operands:
    return operands._replace(
        query=prepared(operands.query, prepare_query), key=prepared(operands.key, prepare_key)
    )


def _logits(operands: Operands, scale: float) -> Array:
    query, key, _, bias, mask = operands
    return masked_logits(query, key, bias=bias, mask=mask, scale=scale)


def _weights(operands: Operands, scale: float) -> Array:
    weights, mask = jax.nn.softmax(_logits(operands, scale)), operands.mask
    return weights if mask is None else jnp.where(mask.any(-1, keepdims=True), weights, 0)


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


def check_mask(mask: Array | None, full: tuple[int, int, int]) -> None:
    """Checks the shape of a mask.

    Args:
      mask: Of any shape; None: no mask.
      full: `(B, T, S)`.

    Raises:
      Refused: The mask does not broadcast to `[B, T, S]`, or has another number of axes.
    """
    if mask is None:
        return
    if mask.ndim != 3 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
        raise Refused(f'The mask must broadcast to [B, T, S] = {full}; got {mask.shape}.')


def _check_operands(
    query: Array, key: Array, value: Array | None, mask: Array | None, key_bias: Array | None
) -> None:
    value = key if value is None else value
    check_floating('attend', query=query, key=key, value=value)
    shapes = f'query {query.shape}, key {key.shape}, value {value.shape}'
    if not query.ndim == key.ndim == value.ndim == 4:
        raise Refused(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    batch, rows, heads, channels = query.shape
    if key.shape != (batch, key.shape[1], heads, channels) or value.shape[:3] != key.shape[:3]:
        raise Refused(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    check_mask(mask, (batch, rows, key.shape[1]))
    if key_bias is not None and key_bias.shape != key.shape[:3]:
        raise Refused(f'key_bias is [B, S, H] = {key.shape[:3]}; got {key_bias.shape}.')


def _scale(scale: float | None, query: Array) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale
