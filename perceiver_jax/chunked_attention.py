"""Attention that never builds the T x S matrix."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

# Logits that exist at a time. On CPUs a tile that stays in the cache; elsewhere one that fills the
# device and is small beside its memory (256 MiB; not measured).
TILE_ELEMENTS = {'cpu': 2**20, 'other': 2**26}
SMALLEST_CHUNK = 128  # rows or keys: below, products lose their speed
Prepare = Callable[[Array], Array]
_MINIMUM = float(jnp.finfo(jnp.float32).min)  # finite: rows without any key stay free of NaN


def _prepared(x: Array, prepare: Prepare | None) -> Array:
    return x if prepare is None else prepare(x)


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
