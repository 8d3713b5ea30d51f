"""Queries attend to elements on a grid: the first half of `perceiver_jax.grid_parts`."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.chunks import MASKED_LOGIT, for_each_chunk, only_reverse_mode, put, take
from perceiver_jax.grid_parts import (
    Elements,
    Scores,
    elements_of,
    features,
    flattened,
    has_rows_and_columns,
    rows_at_a_time,
    scores_of,
    some_rows,
)
from perceiver_jax.grids import FourierGrid, GridPositions, permutation
from perceiver_jax.sharding import laid_out_alike, reshape_examples, zeros_like_rows


def can_be_keys(elements: Array | FourierGrid, mask: Array | None) -> bool:
    """Returns whether `attend_to_grid` takes these elements, and gains by it.

    Args:
      elements: What is attended to.
      mask: Broadcastable to `[B, T, M]`; None: no mask.
    """
    return (
        isinstance(elements, FourierGrid)
        and has_rows_and_columns(elements)
        and elements.common is None
        and elements.rows is None
        and (mask is None or mask.shape[1] == 1)
    )


def attend_to_grid(
    query: Array, grid: FourierGrid, mask: Array | None, *, scale: float, rows: int | None = None
) -> Array:
    """Averages the normalised elements of a grid by their attention weights.

    Args:
      query: `[B, T, channels]`.
      grid: The elements, all rows of them and without common channels.
      mask: Boolean or 0/1 `[B, 1, M]`, or 1 in place of B, in the order of `grid.array()`; true
        where all queries attend to an element; None: everywhere.
      scale: Factor of the dot products.
      rows: Rows of the grid in a chunk; None: such that its logits fill a tile.

    Returns:
      `[B, T, channels]` in the dtype of the contents; zeros where nothing is attended to.
    """
    if mask is not None:
        mask = mask.astype(bool)[:, 0]
        if grid.permutation_seed is not None:
            mask = mask[:, np.argsort(permutation(grid.permutation_seed, mask.shape[1]))]
    query, contents, mask = laid_out_alike(query, grid.contents, mask)
    elements = elements_of(grid, contents, mask)
    batch, height, width = elements.mean.shape
    if rows is None:
        rows = rows_at_a_time(batch, query.shape[1], height, width)
    how = _How(scale, grid.positions, min(rows, height))
    with only_reverse_mode():
        return _attend(query, elements, how)


class _How(NamedTuple):
    """How attention is computed; nothing of it is differentiated."""

    scale: float
    positions: GridPositions
    size: int  # rows of a chunk


class _Saved(NamedTuple):
    """What the gradient needs."""

    query: Array
    elements: Elements
    output: Array  # [B, T, channels]
    log_total: Array  # [B, T, 1], logarithm of the sum of exponentials of a query's logits


class _Seen(NamedTuple):
    """What queries know after some rows of the grid, by weights that are not normalised."""

    contents: Array  # [B, T, C + 1]
    rows: Array  # [B, T, R], by the largest logit when a row was seen
    columns: Array  # [B, T, W]
    maximum: Array  # [B, T, 1], the largest logit
    row_maximum: Array  # [B, T, R], the largest logit when a row was seen
    total: Array  # [B, T, 1], sum of the weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(query: Array, elements: Elements, how: _How) -> Array:
    return _forward(query, elements, how)[0]


def _forward(query: Array, elements: Elements, how: _How) -> tuple[Array, _Saved]:
    scores, average = _scores_and_transpose(query, how)
    _, height, width, channels = elements.contents.shape

    def zeros(channels):
        return zeros_like_rows((*query.shape[:2], channels), scores.rows.dtype, query)

    def see_some_rows(start, size, before: _Seen) -> _Seen:
        some = some_rows(elements, start, size)
        logits = _score(scores, some, start) * some.inverse_deviation[:, None]
        if some.mask is not None:
            logits = jnp.where(some.mask[:, None], logits, MASKED_LOGIT)
        maximum = jnp.maximum(before.maximum, logits.max((2, 3))[..., None])
        share = jnp.exp(before.maximum - maximum)
        weights = jnp.exp(logits - maximum[..., None]) * some.inverse_deviation[:, None]
        if some.mask is not None:
            weights = jnp.where(some.mask[:, None], weights, 0)
        # The sum of what was multiplied by the inverse deviation comes with the same product.
        new, total = _gather(weights, some, 1 / some.inverse_deviation)
        return _Seen(
            before.contents * share + new.contents,
            put(before.rows, new.rows, start),
            before.columns * share + new.columns,
            maximum,
            put(before.row_maximum, jnp.broadcast_to(maximum, new.rows.shape), start),
            before.total * share + total,
        )

    nothing = _Seen(
        contents=zeros(channels + 1),
        rows=zeros(height),
        columns=zeros(width),
        maximum=jnp.full_like(zeros(1), MASKED_LOGIT),
        row_maximum=zeros(height),
        total=zeros(1),
    )
    seen = for_each_chunk(height, how.size, see_some_rows, nothing)
    rows = seen.rows * jnp.exp(seen.row_maximum - seen.maximum)
    total = jnp.where(seen.total == 0, 1, seen.total)  # 0 where nothing is attended to
    gathered = Scores(*(x / total for x in (seen.contents, rows, seen.columns)))
    output = average(gathered).astype(elements.contents.dtype)
    return output, _Saved(query, elements, output, seen.maximum + jnp.log(total))


class _Gradients(NamedTuple):
    """Gradients after some rows of the grid."""

    scores: Scores
    contents: Array  # [B, R, W, C]
    mean: Array  # [B, R, W]
    inverse_deviation: Array  # [B, R, W]


def _backward(how: _How, saved: _Saved, gradient: Array) -> tuple[Array, Elements]:
    query, elements, output, log_total = saved
    scores, of_query = _scores_and_transpose(query, how)
    of_output, _ = _scores_and_transpose(gradient, how._replace(scale=1.0))
    dtype = log_total.dtype
    correction = (gradient.astype(dtype) * output.astype(dtype)).sum(-1)[..., None, None]

    def add_some_rows(start, size, so_far: _Gradients) -> _Gradients:
        some = some_rows(elements, start, size)
        inverse = some.inverse_deviation[:, None]
        score = _score(scores, some, start)
        weights = jnp.exp(score * inverse - log_total[..., None])
        if some.mask is not None:
            weights = jnp.where(some.mask[:, None], weights, 0)
        of_weights = _score(of_output, some, start)
        of_logits = weights * (of_weights * inverse - correction)
        of_scores = of_logits * inverse
        new, _ = _gather(of_scores, some)
        of_features = _to_elements(of_scores, scores) + _to_elements(weights * inverse, of_output)
        of_inverse = (of_logits * score + weights * of_weights).sum(1)
        return _Gradients(
            Scores(
                so_far.scores.contents + new.contents,
                put(so_far.scores.rows, new.rows, start),
                so_far.scores.columns + new.columns,
            ),
            put(so_far.contents, of_features[..., :-1], start, axis=1),
            put(so_far.mean, of_features[..., -1], start, axis=1),
            put(so_far.inverse_deviation, of_inverse, start, axis=1),
        )

    def zeros(x):
        return zeros_like_rows(x.shape, x.dtype, x)

    nothing = _Gradients(Scores(*map(zeros, scores)), *map(zeros, elements[:3]))
    total = for_each_chunk(elements.mean.shape[1], how.size, add_some_rows, nothing)
    return (
        (of_query(total.scores) * how.scale).astype(query.dtype),
        Elements(total.contents, total.mean, total.inverse_deviation, None),
    )


_attend.defvjp(_forward, _backward)


def _scores_and_transpose(query: Array, how: _How) -> tuple[Scores, Callable[[Scores], Array]]:
    """The scores of the scaled queries, and the function from gathered parts to elements."""
    wide = query.astype(jnp.promote_types(query.dtype, jnp.float32))
    split = functools.partial(scores_of, positions=how.positions)
    scores, transpose = jax.vjp(split, wide)
    return Scores(*(x * how.scale for x in scores)), lambda gathered: transpose(gathered)[0]


def _score(scores: Scores, some: Elements, start) -> Array:
    """Scores with some rows of the grid, `[B, T, rows, W]`."""
    rows = take(scores.rows, start, some.mean.shape[1], 2)
    # Rows and columns as one axis: XLA on CPUs copies the operands of products over two.
    products = jnp.einsum('btk,bsk->bts', scores.contents, features(some))
    products = reshape_examples(products, products.shape[1], *some.mean.shape[1:])
    return products + rows[..., None] + scores.columns[:, :, None]


def _gather(weights: Array, some: Elements, *more: Array) -> tuple[Scores, Array]:
    """Sums of `[B, T, rows, W]` by the contents and the mean of the elements, and by more."""
    sums = jnp.einsum('bts,bsk->btk', flattened(weights, 2), features(some, *more))
    channels = some.contents.shape[-1] + 1
    parts = Scores(sums[..., :channels], weights.sum(3), weights.sum(2))
    return parts, sums[..., channels:]


def _to_elements(weights: Array, scores: Scores) -> Array:
    """Sums of `[B, T, rows, W]` by the queries, `[B, rows, W, C + 1]`."""
    sums = jnp.einsum('bts,btk->bsk', flattened(weights, 2), scores.contents)
    return reshape_examples(sums, *weights.shape[2:], sums.shape[-1])
