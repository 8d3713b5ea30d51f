"""Elements on a grid attend to keys: the other half of `perceiver_jax.grid_parts`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from perceiver_jax.chunks import Chunk, for_each_chunk, only_reverse_mode, put, take, wide_einsum
from perceiver_jax.grid_parts import (
    Elements,
    add_rows,
    elements_of,
    features,
    flattened,
    has_rows_and_columns,
    rows_at_a_time,
    scores_of,
    some_rows,
)
from perceiver_jax.grids import FourierGrid
from perceiver_jax.sharding import laid_out_alike, reshape_examples, zeros_like_rows


def can_be_queries(elements: Array | FourierGrid, mask: Array | None) -> bool:
    """Returns whether `attend_from_grid` takes these elements, and gains by it.

    Args:
      elements: What attends.
      mask: Broadcastable to `[B, M, S]`; None: no mask.
    """
    return (
        isinstance(elements, FourierGrid)
        and has_rows_and_columns(elements)
        and elements.permutation_seed is None
        and mask is None
    )


def attend_from_grid(
    grid: FourierGrid,
    key: Array,
    value: Array,
    key_bias: Array,
    *,
    scale: float,
    rows: int | None = None,
) -> Array:
    """Lets the normalised elements of a grid attend to keys.

    Args:
      grid: The elements, in order.
      key: `[B, S, channels]`.
      value: `[B, S, V]`.
      key_bias: `[B, S]`, added to the scaled dot products of a key.
      scale: Factor of the dot products.
      rows: Rows of the grid in a chunk; None: such that its logits fill a tile.

    Returns:
      `[B, M, V]` in the dtype of the values.
    """
    key, value, key_bias, contents = laid_out_alike(key, value, key_bias, grid.contents)
    elements = elements_of(grid, contents, None)
    batch, height, width = elements.mean.shape
    if rows is None:
        rows = rows_at_a_time(batch, key.shape[1], height, width)
    wide = key.astype(elements.mean.dtype) * scale
    common = None if grid.common is None else grid.common.astype(wide.dtype)
    scores = scores_of(wide, grid.positions, common, grid.rows)
    of_contents, of_rows, of_columns = (jnp.swapaxes(x, 1, 2) for x in scores)
    keys = _Keys(of_contents, of_rows, of_columns, key_bias, value)
    with only_reverse_mode():
        return flattened(_attend_from(keys, elements, min(rows, height)), 1)


class _Keys(NamedTuple):
    """What the elements of a grid attend to."""

    contents: Array  # [B, C + 1, S], see `Scores`
    rows: Array  # [B, R, S]
    columns: Array  # [B, W, S]
    bias: Array  # [B, S]
    value: Array  # [B, S, V]


class _SavedFrom(NamedTuple):
    """What the gradient needs."""

    keys: _Keys
    elements: Elements
    output: Array  # [B, R, W, V]
    log_total: Array  # [B, R, W], logarithm of the sum of exponentials of an element's logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend_from(keys: _Keys, elements: Elements, size: int) -> Array:
    return _forward_from(keys, elements, size)[0]


def _forward_from(keys: _Keys, elements: Elements, size: int) -> tuple[Array, _SavedFrom]:
    mean, value = elements.mean, keys.value

    def finish_some_rows(chunk: Chunk, whole):
        some = some_rows(elements, chunk)
        logits = _score_from(keys, some, chunk) * some.inverse_deviation[..., None]
        logits += keys.bias[:, None, None]
        maximum = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - maximum)
        total = weights.sum(-1, keepdims=True)
        sums = wide_einsum('bms,bsv->bmv', flattened(weights, 1).astype(value.dtype), value)
        output = reshape_examples(sums, *logits.shape[1:3], value.shape[-1]) / total
        log_total = (maximum + jnp.log(total))[..., 0]
        return put(whole[0], output, chunk, axis=1), put(whole[1], log_total, chunk, axis=1)

    shape = (*mean.shape, value.shape[-1])
    nothing = (
        zeros_like_rows(shape, value.dtype, elements.contents),
        zeros_like_rows(mean.shape, mean.dtype, mean),
    )
    output, log_total = for_each_chunk(mean.shape[1], size, finish_some_rows, nothing)
    return output, _SavedFrom(keys, elements, output, log_total)


def _backward_from(size: int, saved: _SavedFrom, gradient: Array) -> tuple[_Keys, Elements]:
    keys, elements, output, log_total = saved
    gradient = gradient.astype(output.dtype)
    correction = (gradient.astype(log_total.dtype) * output.astype(log_total.dtype)).sum(-1)

    def add_some_rows(chunk: Chunk, so_far: tuple[_Keys, Elements]) -> tuple[_Keys, Elements]:
        of_keys, of_elements = so_far
        some = some_rows(elements, chunk)
        inverse = some.inverse_deviation[..., None]
        part = flattened(take(gradient, chunk, 1), 1)
        score = _score_from(keys, some, chunk)
        shift = keys.bias[:, None, None] - take(log_total, chunk, 1)[..., None]
        weights = jnp.exp(score * inverse + shift)
        if some.mask is not None:
            weights = jnp.where(some.mask[..., None], weights, 0)
        of_weights = reshape_examples(
            wide_einsum('bmv,bsv->bms', part, keys.value), *score.shape[1:]
        )
        of_logits = weights * (of_weights - take(correction, chunk, 1)[..., None])
        of_scores = of_logits * inverse
        flat = flattened(of_scores, 1)
        of_value = wide_einsum('bms,bmv->bsv', flattened(weights, 1).astype(part.dtype), part)
        of_features = reshape_examples(
            jnp.einsum('bms,bks->bmk', flat, keys.contents), *score.shape[1:3], -1
        )
        of_keys = _Keys(
            of_keys.contents + jnp.einsum('bms,bmk->bks', flat, features(some)),
            put(of_keys.rows, of_scores.sum(2), chunk, axis=1),
            of_keys.columns + add_rows(of_scores, 1),
            of_keys.bias + of_logits.sum((1, 2)),
            of_keys.value + of_value,
        )
        of_elements = Elements(
            put(of_elements.contents, of_features[..., :-1], chunk, axis=1),
            put(of_elements.mean, of_features[..., -1], chunk, axis=1),
            put(of_elements.inverse_deviation, (of_logits * score).sum(-1), chunk, axis=1),
            None,
        )
        return of_keys, of_elements

    def zeros(x):
        return zeros_like_rows(x.shape, jnp.promote_types(x.dtype, jnp.float32), x)

    nothing = jax.tree.map(zeros, (keys, elements))
    of_keys, of_elements = for_each_chunk(elements.mean.shape[1], size, add_some_rows, nothing)
    of_keys = jax.tree.map(lambda x, like: x.astype(like.dtype), of_keys, keys)
    return of_keys, of_elements._replace(
        contents=of_elements.contents.astype(elements.contents.dtype)
    )


_attend_from.defvjp(_forward_from, _backward_from)


def _score_from(keys: _Keys, some: Elements, chunk: Chunk) -> Array:
    """Scores of some rows of the grid with the keys, `[B, rows, W, S]`."""
    products = jnp.einsum('bmk,bks->bms', features(some), keys.contents)
    products = reshape_examples(products, *some.mean.shape[1:], products.shape[-1])
    rows = take(keys.rows, chunk, 1)
    return products + rows[:, :, None] + keys.columns[:, None]
