"""Attention as pure functions: the plain definition, and one that never builds the T x S matrix.

The glossary of shapes is in `perceiver_jax.attention`.

Source: Perceiver IO (arXiv 2107.14795), appendix E (equations 1-3). Running maximum and sum:
Milakov and Gimelshein, 2018 (arXiv 1805.02867); their use for attention and its gradient:
Rabe and Staats, 2021 (arXiv 2112.05682), Dao et al., 2022 (arXiv 2205.14135).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

IMPLEMENTATIONS = ('auto', 'plain', 'chunked', 'fused')

# Logits that exist at a time. On CPUs a tile that stays in the cache; elsewhere one that fills the
# device and is small beside its memory (256 MiB; not measured).
TILE_ELEMENTS = {'cpu': 2**20, 'other': 2**26}
SMALLEST_CHUNK = 128  # rows or keys: below, products lose their speed

FUSED_CHANNELS = 128  # the most per head that cuDNN's kernel takes on every GPU it runs on

Prepare = Callable[[Array], Array]

_MINIMUM = float(jnp.finfo(jnp.float32).min)  # finite: rows without any key stay free of NaN


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
        raise ValueError(
            f'implementation must be one of {IMPLEMENTATIONS}, not {implementation!r}.'
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f'chunk_size must be at least 1, not {chunk_size}.')
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
            raise ValueError(f"implementation 'fused' takes {reason}.")
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
        raise ValueError(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    batch, rows, heads, channels = query.shape
    if key.shape != (batch, key.shape[1], heads, channels) or value.shape[:3] != key.shape[:3]:
        raise ValueError(f'attend expects [B, T, H, F], [B, S, H, F], [B, S, H, V]; got {shapes}.')
    if mask is not None:
        full = (batch, rows, key.shape[1])
        if mask.ndim != 3 or any(m not in (1, n) for m, n in zip(mask.shape, full, strict=True)):
            raise ValueError(f'The mask must broadcast to [B, T, S] = {full}; got {mask.shape}.')
    if key_bias is not None and key_bias.shape != key.shape[:3]:
        raise ValueError(f'key_bias is [B, S, H] = {key.shape[:3]}; got {key_bias.shape}.')


def _prepared(x: Array, prepare: Prepare | None) -> Array:
    return x if prepare is None else prepare(x)


def _all_prepared(query, key, value, prepare_query, prepare_key):
    key = _prepared(key, prepare_key)
    return _prepared(query, prepare_query), key, key if value is None else value


def _scale(scale: float | None, query: Array) -> float:
    return 1 / math.sqrt(query.shape[-1]) if scale is None else scale


def _chunks(batch: int, heads: int, rows: int, keys: int, size: int | None) -> tuple[str, int]:
    """Which axis is cut, 'rows' or 'keys', and how many of them a chunk has: the longer one."""
    if not (isinstance(rows, int) and isinstance(keys, int)):  # sizes of an exported program
        return 'rows', rows
    axis, longer, other = ('keys', keys, rows) if keys > rows else ('rows', rows, keys)
    if size is None:
        platform = 'cpu' if jax.default_backend() == 'cpu' else 'other'
        at_a_time = heads * other * (batch if isinstance(batch, int) else 1)
        size = max(TILE_ELEMENTS[platform] // max(at_a_time, 1), SMALLEST_CHUNK)
        if longer <= 2 * size:  # a loop of two is not worth compiling
            size = longer
    return axis, min(size, longer)


# From here on heads come first: [B, H, T, F], [B, H, S, F], [B, H, S, V]; bias [B, H, 1, S]; mask
# [B, 1, T, S], or 1 in place of any. A value of None stands for the keys themselves.


def _heads_first(query, key, value, key_bias, mask):
    query, key, value = (x if x is None else jnp.moveaxis(x, 2, 1) for x in (query, key, value))
    if key_bias is not None:
        key_bias = jnp.moveaxis(key_bias, 2, 1)[:, :, None].astype(jnp.float32)
    return query, key, value, key_bias, None if mask is None else mask.astype(bool)[:, None]


def _logits(query, key, bias, mask, scale):
    logits = _product('bhtf,bhsf->bhts', query, key) * scale
    if bias is not None:
        logits += bias
    return logits if mask is None else jnp.where(mask, logits, _MINIMUM)


def _product(axes, x, y):
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _attend_in_chunks(query, key, value, bias, mask, scale, prepare, axis, size):
    return _forward(query, key, value, bias, mask, scale, prepare, axis, size)[0]


def _forward(query, key, value, bias, mask, scale, prepare, axis, size):
    """The output, and what the gradient needs."""
    arrays = query, key, value, bias, mask
    values = key if value is None else value
    shape = query.shape[:3]

    def look(start, size):
        return _look(*_cut(arrays, axis, start, size), scale, prepare)

    def look_at_keys(start, size, carry):  # joins what was seen before
        seen, maximum, total = carry
        more, its_maximum, its_total = look(start, size)
        largest = jnp.maximum(maximum, its_maximum)
        before, now = jnp.exp(maximum - largest), jnp.exp(its_maximum - largest)
        return seen * before + more * now, largest, total * before + its_total * now

    def finish_rows(start, size, carry):  # they depend on nothing else
        parts = _finish(*look(start, size))
        return [_put(whole, part, start) for whole, part in zip(carry, parts, strict=True)]

    column = jnp.zeros((*shape, 1), jnp.float32)
    if axis == 'keys':
        nothing = jnp.zeros((*shape, values.shape[-1]), jnp.float32)
        seen = (nothing, jnp.full_like(column, _MINIMUM), column)
        output, log_total = _finish(*_for_each_chunk(key.shape[2], size, look_at_keys, seen))
        output = output.astype(values.dtype)
    else:
        empty = [jnp.zeros((*shape, values.shape[-1]), values.dtype), column]
        output, log_total = _for_each_chunk(query.shape[2], size, finish_rows, empty)
    return output, (*arrays, output, log_total)


def _look(query, key, value, bias, mask, scale, prepare):
    """Sum of the values by weights that are not normalised, the largest logit, sum of weights."""
    query, key = map(_prepared, (query, key), prepare)
    logits = _logits(query, key, bias, mask, scale)
    maximum = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - maximum)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    values = key if value is None else value
    seen = _product('bhts,bhsv->bhtv', weights.astype(values.dtype), values)
    return seen, maximum, weights.sum(-1, keepdims=True)


def _finish(seen, maximum, total):
    """The average of the values, and the logarithm of the sum of exponentials of the logits."""
    total = jnp.where(total == 0, 1, total)  # of a query that may look at nothing
    return seen / total, maximum + jnp.log(total)


def _backward(scale, prepare, axis, size, saved, gradient):
    """Gradients of query, key, value and bias: weights are computed again, chunk by chunk."""
    *arrays, output, log_total = saved
    query, key, value, bias, mask = arrays
    gradient = gradient.astype(output.dtype)
    wide = gradient.astype(jnp.float32) * output.astype(jnp.float32)
    rows = gradient, log_total, wide.sum(-1, keepdims=True)

    def add_chunk(start, size, carry):
        of_rows = tuple(_take(x, start, size, 2) for x in rows) if axis == 'rows' else rows
        parts = _gradients(*_cut(arrays, axis, start, size), *of_rows, scale, prepare)
        cut = ('query',) if axis == 'rows' else ('key', 'value', 'bias')
        return {
            name: _put(whole, parts[name], start, -1 if name == 'bias' else 2)
            if name in cut
            else whole + parts[name]
            for name, whole in carry.items()
        }

    # What is added up is float32; what a chunk writes once has the dtype of its result.
    def zeros(x, is_cut):
        return jnp.zeros(x.shape, x.dtype if is_cut else jnp.float32)

    carry = {'query': zeros(query, axis == 'rows'), 'key': zeros(key, axis == 'keys')}
    if value is not None:
        carry['value'] = zeros(value, axis == 'keys')
    if bias is not None:
        carry['bias'] = jnp.zeros_like(bias)
    length = query.shape[2] if axis == 'rows' else key.shape[2]
    result = _for_each_chunk(length, size, add_chunk, carry)
    return (
        result['query'].astype(query.dtype),
        result['key'].astype(key.dtype),
        None if value is None else result['value'].astype(value.dtype),
        result.get('bias'),
        None,
    )


def _gradients(query, key, value, bias, mask, gradient, log_total, correction, scale, prepare):
    """Those of one chunk; `correction` is each row's sum of output times gradient."""
    (query, before_query), (key, before_key) = map(_prepared_with_gradient, (query, key), prepare)
    weights = jnp.exp(_logits(query, key, bias, mask, scale) - log_total)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    values = key if value is None else value
    of_weights = _product('bhtv,bhsv->bhts', gradient, values)
    of_logits = weights * (of_weights - correction)
    of_products = (of_logits * scale).astype(query.dtype)
    of_values = _product('bhts,bhtv->bhsv', weights.astype(gradient.dtype), gradient)
    of_query = _product('bhts,bhsf->bhtf', of_products, key)
    of_key = _product('bhts,bhtf->bhsf', of_products, query)
    if value is None:
        of_key += of_values
    return {
        'query': before_query(of_query),
        'key': before_key(of_key),
        'value': of_values,
        'bias': of_logits.sum(2, keepdims=True),
    }


def _prepared_with_gradient(x, prepare):
    """What is prepared, and how its gradient becomes that of `x`."""
    if prepare is None:
        return x, lambda gradient: gradient
    prepared, pull = jax.vjp(prepare, x)
    return prepared, lambda gradient: pull(gradient.astype(prepared.dtype))[0]


_attend_in_chunks.defvjp(_forward, _backward)


def _for_each_chunk(length: int, size: int, body: Callable, carry):
    """Applies `body(start, size of the chunk, carry)`; the last chunk holds the remainder."""
    if length == size:
        return body(0, size, carry)
    whole = length // size
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: body(i * size, size, carry), carry)
    if length % size:
        carry = body(whole * size, length % size, carry)
    return carry


def _cut(arrays, axis, start, size):
    """One chunk of rows or keys of query, key, value, bias and mask."""
    query, key, value, bias, mask = arrays
    if axis == 'rows':
        return _take(query, start, size, 2), key, value, bias, _take(mask, start, size, 2)
    return (
        query,
        _take(key, start, size, 2),
        _take(value, start, size, 2),
        _take(bias, start, size, 3),
        _take(mask, start, size, 3),
    )


def _take(x, start, size, axis):
    if x is None or x.shape[axis] in (1, size):  # broadcast, or whole
        return x
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _put(whole, part, start, axis=2):
    part = part.astype(whole.dtype)
    if part.shape == whole.shape:
        return part
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)
