"""Memory-efficient attention and its gradient: the T x S matrix of weights never exists.

The longer of rows and keys is walked in chunks. Over keys, a running maximum and a running sum
join the chunks (Milakov and Gimelshein, 2018, arXiv 1805.02867); for the gradient only the output
and the logarithm of each row's sum are kept, and weights are rematerialised chunk by chunk (Rabe
and Staats, 2021, arXiv 2112.05682; Dao et al., 2022, arXiv 2205.14135).

`attend` in `perceiver_jax.dot_product_attention` is the public function. Here heads come before
rows and keys; the glossary of the letters is in `perceiver_jax.attention`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.chunks import (
    MASKED_LOGIT,
    Chunk,
    along,
    chunk_length,
    for_each_chunk,
    platform,
    put,
    take,
    tile_elements,
    wide_einsum,
)
from perceiver_jax.sharding import zeros_like_rows

SMALLEST_CHUNK = 128  # rows or keys: below, products lose their speed

Prepare = Callable[[Array], Array]


class Operands(NamedTuple):
    """What attention is computed of, heads first.

    Attributes:
      query: `[B, H, T, F]`.
      key: `[B, H, S, F]`.
      value: `[B, H, S, V]`; None: the prepared keys are the values.
      bias: Added to the logits of a key, `[B, H, 1, S]` float32; None: nothing.
      mask: Boolean `[B, 1, T, S]`, or 1 in place of B, T or S; true where a query attends to a
        key; None: everywhere.
    """

    query: Array
    key: Array
    value: Array | None
    bias: Array | None
    mask: Array | None


class How(NamedTuple):
    """How attention is computed; nothing of it is differentiated.

    Attributes:
      scale: Factor of the dot products.
      prepare_query: Applied to the queries first, such as a normalisation; None: nothing.
      prepare_key: Applied to the keys first; None: nothing.
      axis: Which side is cut into chunks, 'rows' or 'keys'.
      size: Rows or keys of a chunk.
    """

    scale: float
    prepare_query: Prepare | None
    prepare_key: Prepare | None
    axis: str
    size: int


def choose_chunks(
    *, batch: int, heads: int, rows: int, keys: int, size: int | None
) -> tuple[str, int]:
    """Chooses which side is cut into chunks, the longer one, and how long a chunk is.

    Args:
      batch: B.
      heads: H.
      rows: T.
      keys: S.
      size: Length of a chunk; None: such that its logits fill a tile (`tile_elements`), or more
        than half of it if that divides the longer side.

    Returns:
      'rows' or 'keys', and how many of them a chunk has.
    """
    if not (isinstance(rows, int) and isinstance(keys, int)):  # sizes of an exported program
        return 'rows', rows
    axis, longer, other = ('keys', keys, rows) if keys > rows else ('rows', rows, keys)
    if size is None:
        at_a_time = heads * other * (batch if isinstance(batch, int) else 1)
        size = max(tile_elements() // max(at_a_time, 1), SMALLEST_CHUNK)
        # A loop of two is not worth compiling.
        size = longer if longer <= 2 * size else chunk_length(longer, size)
    return axis, min(size, longer)


def prepared(x: Array, prepare: Prepare | None) -> Array:
    """Returns `prepare(x)`, or `x` where `prepare` is None.

    Args:
      x: Queries or keys.
      prepare: A function of the channels of each row alone; None: nothing.
    """
    return x if prepare is None else prepare(x)


def aligned(x: Array) -> Array:
    """Pads channels with zeros to a multiple of eight where it is compiled for GPUs.

    Rows that start at multiples of 16 bytes are read by tensor cores as they are: on an H100,
    attention with 264 channels took 1.89 ms, with 261 channels 2.65 ms.

    Args:
      x: Queries, keys or values `[..., C]`.
    """
    missing = -x.shape[-1] % 8 if platform() == 'gpu' else 0
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def heads_first(
    query: Array, key: Array, value: Array | None, key_bias: Array | None, mask: Array | None
) -> Operands:
    """Moves heads in front of rows and keys.

    Args:
      query: `[B, T, H, F]`.
      key: `[B, S, H, F]`.
      value: `[B, S, H, V]`; None: the keys are the values.
      key_bias: `[B, S, H]`; None: nothing.
      mask: Boolean or 0/1, `[B, T, S]`, or 1 in place of any of them; None: no mask.

    Returns:
      The operands of attention, see `Operands`.
    """
    if key_bias is not None:
        key_bias = jnp.moveaxis(key_bias, 2, 1)[:, :, None].astype(jnp.float32)
    return Operands(
        query=jnp.moveaxis(query, 2, 1),
        key=jnp.moveaxis(key, 2, 1),
        value=None if value is None else jnp.moveaxis(value, 2, 1),
        bias=key_bias,
        mask=None if mask is None else mask.astype(bool)[:, None],
    )


def without_unused_keys(operands: Operands) -> Operands:
    """Zeros the keys and values that no query attends to, whatever they hold.

    A weight of 0 alone would not do: its product with a NaN or an infinity is a NaN, in the
    outputs and in the gradients.

    Args:
      operands: What attention is computed of.

    Returns:
      The operands; the same ones where there is no mask.
    """
    if operands.mask is None:
        return operands
    used = operands.mask.any(2)[..., None]  # [B, 1, S, 1], or 1 in place of B or S
    return operands._replace(
        key=jnp.where(used, operands.key, 0),
        value=None if operands.value is None else jnp.where(used, operands.value, 0),
    )


def masked_logits(
    query: Array, key: Array, *, bias: Array | None, mask: Array | None, scale: float
) -> Array:
    """Computes the scaled dot products, plus the bias, with `MASKED_LOGIT` where masked.

    Args:
      query: `[B, H, T, F]`, prepared.
      key: `[B, H, S, F]`, prepared.
      bias: `[B, H, 1, S]` float32; None: nothing.
      mask: Boolean `[B, 1, T, S]`, or 1 in place of B, T or S; None: no mask.
      scale: Factor of the dot products.

    Returns:
      `[B, H, T, S]` float32.
    """
    logits = wide_einsum('bhtf,bhsf->bhts', query, key) * scale
    if bias is not None:
        logits += bias
    return logits if mask is None else jnp.where(mask, logits, MASKED_LOGIT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_in_chunks(
    query: Array,
    key: Array,
    value: Array | None,
    key_bias: Array | None,
    mask: Array | None,
    how: How,
) -> Array:
    """Averages the values by their attention weights, chunk by chunk.

    For the gradient it keeps what it is given and what it returns, and a number for each row.

    Args:
      query: As of `heads_first`.
      key: As of `heads_first`.
      value: As of `heads_first`.
      key_bias: As of `heads_first`.
      mask: As of `heads_first`.
      how: Scale, preparations and chunks.

    Returns:
      `[B, T, H, V]` in the dtype of the values; zeros for a fully masked query.
    """
    return _forward(query, key, value, key_bias, mask, how)[0]


class _Saved(NamedTuple):
    """What the gradient needs."""

    given: tuple[Array, Array, Array | None, Array | None, Array | None]
    output: Array  # [B, T, H, V]
    log_total: Array  # [B, H, T, 1], logarithm of the sum of exponentials of a row's logits


class _Seen(NamedTuple):
    """What rows know after some of the keys."""

    values: Array  # [B, H, T, V] float32, sum of the values by weights that are not normalised
    maximum: Array  # [B, H, T, 1], the largest logit
    total: Array  # [B, H, T, 1], sum of the weights


def _forward(
    query: Array,
    key: Array,
    value: Array | None,
    key_bias: Array | None,
    mask: Array | None,
    how: How,
) -> tuple[Array, _Saved]:
    given = query, key, value, key_bias, mask
    operands = heads_first(*given)
    values = operands.key if operands.value is None else operands.value
    shape = operands.query.shape[:3]
    column = zeros_like_rows((*shape, 1), jnp.float32, operands.query)

    def see_some_keys(chunk: Chunk, before: _Seen) -> _Seen:
        new = _see(_some_keys(operands, chunk), how)
        maximum = jnp.maximum(before.maximum, new.maximum)
        old_share, new_share = jnp.exp(before.maximum - maximum), jnp.exp(new.maximum - maximum)
        return _Seen(
            before.values * old_share + new.values * new_share,
            maximum,
            before.total * old_share + new.total * new_share,
        )

    def finish_some_rows(chunk: Chunk, whole: tuple[Array, Array]) -> tuple[Array, Array]:
        output, log_total = _finish(_see(_some_rows(operands, chunk), how))
        return put(whole[0], output, chunk), put(whole[1], log_total, chunk)

    if how.axis == 'keys':
        nothing = zeros_like_rows((*shape, values.shape[-1]), jnp.float32, operands.query)
        seen = _Seen(nothing, jnp.full_like(column, MASKED_LOGIT), column)
        seen = for_each_chunk(operands.key.shape[2], how.size, see_some_keys, seen)
        output, log_total = _finish(seen)
        output = output.astype(values.dtype)
    else:
        empty = zeros_like_rows((*shape, values.shape[-1]), values.dtype, operands.query), column
        length = operands.query.shape[2]
        output, log_total = for_each_chunk(length, how.size, finish_some_rows, empty)
    output = jnp.moveaxis(output, 1, 2)
    return output, _Saved(given, output, log_total)


def _see(operands: Operands, how: How) -> _Seen:
    operands = without_unused_keys(operands)
    query = aligned(prepared(operands.query, how.prepare_query))
    key = aligned(prepared(operands.key, how.prepare_key))
    given = operands.key if operands.value is None else operands.value
    values = key if operands.value is None else aligned(operands.value)
    logits = masked_logits(query, key, bias=operands.bias, mask=operands.mask, scale=how.scale)
    maximum = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - maximum)
    if operands.mask is not None:
        weights = jnp.where(operands.mask, weights, 0)
    average = wide_einsum('bhts,bhsv->bhtv', weights.astype(values.dtype), values)
    average = average[..., : given.shape[-1]]
    return _Seen(average, maximum, weights.sum(-1, keepdims=True))


def _finish(seen: _Seen) -> tuple[Array, Array]:
    """The average of the values, and the logarithm of the sum of exponentials of the logits."""
    total = jnp.where(seen.total == 0, 1, seen.total)  # 0 for a fully masked query
    return seen.values / total, seen.maximum + jnp.log(total)


class _OfRows(NamedTuple):
    """What the gradient of the logits needs of each row."""

    gradient: Array  # [B, H, T, V], of the output
    log_total: Array  # [B, H, T, 1]
    correction: Array  # [B, H, T, 1], sum of output times gradient


def _backward(
    how: How, saved: _Saved, gradient: Array
) -> tuple[Array, Array, Array | None, Array | None, None]:
    """Gradients of what was given, without one of the mask; weights are rematerialised."""
    query, key, value, key_bias, mask = saved.given
    operands = heads_first(query, key, value, key_bias, mask)
    of_output, output = (jnp.moveaxis(x, 1, 2) for x in (gradient, saved.output))
    of_output = of_output.astype(output.dtype)
    wide = of_output.astype(jnp.float32) * output.astype(jnp.float32)
    of_rows = _OfRows(of_output, saved.log_total, wide.sum(-1, keepdims=True))

    # A chunk of rows has the whole gradient of its queries, and a part of that of all keys.
    def add_some_rows(chunk: Chunk, so_far: Operands) -> Operands:
        some = _OfRows(*(take(x, chunk, 2) for x in of_rows))
        part = _gradients(_some_rows(operands, chunk), some, how)
        return so_far._replace(
            query=put(so_far.query, part.query, chunk),
            key=so_far.key + part.key,
            value=_sum(so_far.value, part.value),
            bias=_sum(so_far.bias, part.bias),
        )

    # A chunk of keys has the whole gradient of its keys, and a part of that of all queries.
    def add_some_keys(chunk: Chunk, so_far: Operands) -> Operands:
        part = _gradients(_some_keys(operands, chunk), of_rows, how)
        return so_far._replace(
            query=so_far.query + part.query,
            key=put(so_far.key, part.key, chunk),
            value=put(so_far.value, part.value, chunk),
            bias=put(so_far.bias, part.bias, chunk, axis=3),
        )

    # What is added up is float32; what a chunk writes once has the dtype of its result.
    def zeros(x, written_once):
        if x is None:
            return None
        return zeros_like_rows(x.shape, x.dtype if written_once else jnp.float32, x)

    by_rows = how.axis == 'rows'
    total = Operands(
        query=zeros(operands.query, by_rows),
        key=zeros(operands.key, not by_rows),
        value=zeros(operands.value, not by_rows),
        bias=zeros(operands.bias, not by_rows),
        mask=None,
    )
    if by_rows:
        total = for_each_chunk(operands.query.shape[2], how.size, add_some_rows, total)
    else:
        total = for_each_chunk(operands.key.shape[2], how.size, add_some_keys, total)
    _, to_given = jax.vjp(functools.partial(heads_first, mask=None), query, key, value, key_bias)
    total = jax.tree.map(lambda x, like: x.astype(like.dtype), total, operands._replace(mask=None))
    return *to_given(total), None


def _gradients(operands: Operands, of_rows: _OfRows, how: How) -> Operands:
    """Gradients by one chunk."""
    operands = without_unused_keys(operands)
    query, pull_query = _prepared_with_pullback(operands.query, how.prepare_query)
    key, pull_key = _prepared_with_pullback(operands.key, how.prepare_key)
    query, key = aligned(query), aligned(key)
    values = key if operands.value is None else aligned(operands.value)
    logits = masked_logits(query, key, bias=operands.bias, mask=operands.mask, scale=how.scale)
    weights = jnp.exp(logits - of_rows.log_total)
    if operands.mask is not None:
        weights = jnp.where(operands.mask, weights, 0)
    gradient = aligned(of_rows.gradient)
    of_weights = wide_einsum('bhtv,bhsv->bhts', gradient, values)
    of_logits = weights * (of_weights - of_rows.correction)
    of_products = (of_logits * how.scale).astype(query.dtype)
    of_values = wide_einsum('bhts,bhtv->bhsv', weights.astype(gradient.dtype), gradient)
    of_query = wide_einsum('bhts,bhsf->bhtf', of_products, key)
    of_key = wide_einsum('bhts,bhtf->bhsf', of_products, query)
    if operands.value is None:
        of_key += of_values
    return Operands(
        query=pull_query(of_query[..., : operands.query.shape[-1]]),
        key=pull_key(of_key[..., : operands.key.shape[-1]]),
        value=None if operands.value is None else of_values[..., : operands.value.shape[-1]],
        bias=None if operands.bias is None else of_logits.sum(2, keepdims=True),
        mask=None,
    )


def _prepared_with_pullback(x: Array, prepare: Prepare | None) -> tuple[Array, Prepare]:
    """What is prepared, and the function that takes its gradient to that of `x`."""
    if prepare is None:
        return x, lambda gradient: gradient
    result, pull = jax.vjp(prepare, x)
    return result, lambda gradient: pull(gradient.astype(result.dtype))[0]


attend_in_chunks.defvjp(_forward, _backward)


def _some_rows(operands: Operands, chunk: Chunk) -> Operands:
    return operands._replace(query=take(operands.query, chunk, 2), mask=_mask(operands, chunk, 2))


def _some_keys(operands: Operands, chunk: Chunk) -> Operands:
    return operands._replace(
        key=take(operands.key, chunk, 2),
        value=take(operands.value, chunk, 2),
        bias=take(operands.bias, chunk, 3),
        mask=_mask(operands, chunk, 3),
    )


def _mask(operands: Operands, chunk: Chunk, axis: int) -> Array | None:
    """That of a chunk along an axis, false for what is not new."""
    mask = take(operands.mask, chunk, axis)
    if chunk.new is None:
        return mask
    new = along(chunk.new, axis, 4)
    return new if mask is None else mask & new


def _sum(x: Array | None, y: Array | None) -> Array | None:
    return None if x is None or y is None else x + y
