"""Exact attention to elements on a grid that never multiplies by their Fourier features.

An element at (y, x) is [contents, features of y, features of x]. Its dot product with a query is a
sum over the three parts, and those of features depend on y alone and on x alone: a table of T x R
scores for the rows of the grid and one of T x W for its columns. With the LayerNorm of the element,
of mean m and inverse deviation r,

    score[t, yx] = q_c[t] . c[yx] + rows[t, y] + columns[t, x] - m[yx] sum(q[t])
    logit[t, yx] = r[yx] score[t, yx]

What a query gathers splits alike: sums of its weights by contents, over each row, over each column;
the tables of features make them an average of elements in the end, as they made the scores in the
beginning (one is the transpose of the other). So a logit takes as many multiplications as there are
contents, and a few, instead of those of all channels, and the array of elements never exists. In
the gradient, the gradient of the average stands in the place of the query.

The numbers are those of `perceiver_jax.dot_product_attention`, up to rounding; the glossary of the
letters is in `perceiver_jax.attention`. Here R are the rows of a grid, all its axes but the last,
and W its columns; C are the channels of the contents.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.chunks import (
    MASKED_LOGIT,
    for_each_chunk,
    only_reverse_mode,
    put,
    take,
    tile_elements,
)
from perceiver_jax.grids import FourierGrid, GridPositions, permutation
from perceiver_jax.layers import LAYER_NORM_EPSILON
from perceiver_jax.sharding import laid_out_alike, reshape_examples, zeros_like_rows


class Scores(NamedTuple):
    """What queries share with each part of an element; also what they gather of each part.

    Attributes:
      contents: `[B, T, C + 1]` float32, for the contents and the mean.
      rows: `[B, T, R]` float32, for each row of the grid.
      columns: `[B, T, W]` float32, for each column.
    """

    contents: Array
    rows: Array
    columns: Array


class Elements(NamedTuple):
    """What differs between the elements of a grid from one to the next.

    Attributes:
      contents: `[B, R, W, C]`.
      mean: `[B, R, W]` float32, mean of an element's channels.
      inverse_deviation: `[B, R, W]` float32, of an element's channels.
      mask: Boolean `[B, R, W]`, true for elements to attend to; None: all.
    """

    contents: Array
    mean: Array
    inverse_deviation: Array
    mask: Array | None


def products(elements: Array | FourierGrid) -> int:
    """Counts the multiplications of a logit of elements that are not projected.

    Args:
      elements: `[B, M, C]`, or a grid.
    """
    if isinstance(elements, FourierGrid):
        return elements.contents.shape[-1] + 2  # and the mean, and the inverse deviation
    return elements.shape[-1]


def can_be_keys(elements: Array | FourierGrid, mask: Array | None) -> bool:
    """Returns whether `attend_to_grid` takes these elements, and gains by it.

    Args:
      elements: What is attended to.
      mask: Broadcastable to `[B, T, M]`; None: no mask.
    """
    return (
        isinstance(elements, FourierGrid)
        and _has_rows_and_columns(elements)
        and elements.common is None
        and elements.rows is None
        and (mask is None or mask.shape[1] == 1)
    )


def can_be_queries(elements: Array | FourierGrid, mask: Array | None) -> bool:
    """Returns whether `attend_from_grid` takes these elements, and gains by it.

    Args:
      elements: What attends.
      mask: Broadcastable to `[B, M, S]`; None: no mask.
    """
    return (
        isinstance(elements, FourierGrid)
        and _has_rows_and_columns(elements)
        and elements.permutation_seed is None
        and mask is None
    )


def _has_rows_and_columns(grid: FourierGrid) -> bool:
    *leading, width = grid.positions.shape
    return min(math.prod(leading), width) > 1


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
    elements = _elements(grid, contents, mask)
    batch, height, width = elements.mean.shape
    if rows is None:
        rows = _rows_at_a_time(batch, query.shape[1], height, width)
    how = _How(scale, grid.positions, min(rows, height))
    with only_reverse_mode():
        return _attend(query, elements, how).astype(contents.dtype)


def _rows_at_a_time(batch: int, rows: int, height: int, width: int) -> int:
    """Rows of a grid whose logits fill a tile, or half of it if these divide the grid."""
    at_a_time = rows * width * (batch if isinstance(batch, int) else 1)
    most = min(max(tile_elements() // max(at_a_time, 1), 1), height)
    return next((n for n in range(most, most // 2, -1) if height % n == 0), most)


def _elements(grid: FourierGrid, contents: Array, mask: Array | None) -> Elements:
    """The elements and the statistics of their LayerNorm."""
    *leading, width, channels = contents.shape[1:]
    contents = reshape_examples(contents, math.prod(leading), width, channels)
    if mask is not None:
        mask = reshape_examples(mask, *contents.shape[1:3])
        contents = jnp.where(mask[..., None], contents, 0)  # it may hold anything, also NaN
    wide = contents.astype(jnp.promote_types(contents.dtype, jnp.float32))

    tables = [table.astype(np.float64) for table in grid.positions.tables()]
    sums = _on_grid([table.sum(-1) for table in tables], grid.rows)
    squares = _on_grid([np.square(table).sum(-1) for table in tables], grid.rows)
    fixed = grid.positions.channels
    if grid.common is not None:
        common = grid.common.astype(wide.dtype)
        sums += common.sum()
        squares += jnp.square(common).sum()
        fixed += len(common)
    mean = (wide.sum(-1) + sums) / grid.shape[-1]
    variance = jnp.square(wide - mean[..., None]).sum(-1) + squares - 2 * mean * sums
    variance = (variance + fixed * jnp.square(mean)) / grid.shape[-1]
    return Elements(contents, mean, jax.lax.rsqrt(variance + LAYER_NORM_EPSILON), mask)


def _on_grid(of_axes: list[np.ndarray], rows: Array | None) -> Array:
    """Adds up values along each axis of a grid, `[n]` each, to `[1, R, W]`."""
    *leading, columns = [jnp.asarray(x)[None] for x in of_axes]
    return _add_up(leading, rows)[:, :, None] + columns[:, None]


def _scores(
    query: Array, positions: GridPositions, common: Array | None = None, some: Array | None = None
) -> Scores:
    """Splits `[B, T, channels]` into its scores with the parts of an element; it is linear.

    Common channels count among the columns; `some` are the rows that there are.
    """
    start = query.shape[-1] - positions.channels - (0 if common is None else len(common))
    end = start + positions.channels
    *leading, columns = [
        jnp.einsum('btf,nf->btn', part, jnp.asarray(table))
        for part, table in zip(
            positions.of_each_axis(query[..., start:end]), positions.tables(), strict=True
        )
    ]
    if common is not None:
        columns += jnp.einsum('btp,p->bt', query[..., end:], common)[..., None]
    of_mean = -query.sum(-1, keepdims=True)
    of_contents = jnp.concatenate([query[..., :start], of_mean], axis=-1)
    return Scores(of_contents, _add_up(leading, some), columns)


def _add_up(leading: list[Array], rows: Array | None) -> Array:
    """Adds up values along the leading axes of a grid, `[..., n]` each, to those of its rows."""
    if rows is not None:
        sizes = [x.shape[-1] for x in leading]
        indices = jnp.unravel_index(rows, sizes)
        leading = [x[..., i] for x, i in zip(leading, indices, strict=True)]
        return functools.reduce(jnp.add, leading)
    total, *more = leading
    for x in more:
        both = total[..., :, None] + x[..., None, :]
        total = reshape_examples(both, *total.shape[1:-1], total.shape[-1] * x.shape[-1])
    return total


class _How(NamedTuple):
    """How attention is computed; nothing of it is differentiated."""

    scale: float
    positions: GridPositions
    size: int  # rows of a chunk


class _Saved(NamedTuple):
    """What the gradient needs."""

    query: Array
    elements: Elements
    output: Array  # [B, T, channels] float32
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
        some = _some_rows(elements, start, size)
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
    output = average(Scores(*(x / total for x in (seen.contents, rows, seen.columns))))
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
    correction = (gradient * output).sum(-1)[..., None, None]

    def add_some_rows(start, size, so_far: _Gradients) -> _Gradients:
        some = _some_rows(elements, start, size)
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
    split = functools.partial(_scores, positions=how.positions)
    scores, transpose = jax.vjp(split, wide)
    return Scores(*(x * how.scale for x in scores)), lambda gathered: transpose(gathered)[0]


def _some_rows(elements: Elements, start, size) -> Elements:
    some = Elements(*(take(x, start, size, 1) for x in elements))
    return some._replace(contents=some.contents.astype(some.mean.dtype))


def _score(scores: Scores, some: Elements, start) -> Array:
    """Scores with some rows of the grid, `[B, T, rows, W]`."""
    rows = take(scores.rows, start, some.mean.shape[1], 2)
    # Rows and columns as one axis: XLA on CPUs copies the operands of products over two.
    products = jnp.einsum('btk,bsk->bts', scores.contents, _features(some))
    products = reshape_examples(products, products.shape[1], *some.mean.shape[1:])
    return products + rows[..., None] + scores.columns[:, :, None]


def _gather(weights: Array, some: Elements, *more: Array) -> tuple[Scores, Array]:
    """Sums of `[B, T, rows, W]` by the contents and the mean of the elements, and by more."""
    sums = jnp.einsum('bts,bsk->btk', _flat(weights, 2), _features(some, *more))
    channels = some.contents.shape[-1] + 1
    parts = Scores(sums[..., :channels], weights.sum(3), weights.sum(2))
    return parts, sums[..., channels:]


def _to_elements(weights: Array, scores: Scores) -> Array:
    """Sums of `[B, T, rows, W]` by the queries, `[B, rows, W, C + 1]`."""
    sums = jnp.einsum('bts,btk->bsk', _flat(weights, 2), scores.contents)
    return reshape_examples(sums, *weights.shape[2:], sums.shape[-1])


def _features(some: Elements, *more: Array) -> Array:
    """Contents and mean of elements, and more, `[B, rows W, C + 1 + their number]`."""
    of_each = [x[..., None] for x in (some.mean, *more)]
    return _flat(jnp.concatenate([some.contents, *of_each], axis=-1), 1)


def _flat(x: Array, axis: int) -> Array:
    """Makes the rows and columns of a grid, which begin at this axis, a single one."""
    before, after = x.shape[1:axis], x.shape[axis + 2 :]
    return reshape_examples(x, *before, x.shape[axis] * x.shape[axis + 1], *after)


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
    elements = _elements(grid, contents, None)
    batch, height, width = elements.mean.shape
    if rows is None:
        rows = _rows_at_a_time(batch, key.shape[1], height, width)
    wide = key.astype(elements.mean.dtype) * scale
    common = None if grid.common is None else grid.common.astype(wide.dtype)
    scores = _scores(wide, grid.positions, common, grid.rows)
    of_contents, of_rows, of_columns = (jnp.swapaxes(x, 1, 2) for x in scores)
    keys = _Keys(of_contents, of_rows, of_columns, key_bias, value)
    with only_reverse_mode():
        return _flat(_attend_from(keys, elements, min(rows, height)), 1)


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

    def finish_some_rows(start, size, whole):
        some = _some_rows(elements, start, size)
        logits = _score_from(keys, some, start) * some.inverse_deviation[..., None]
        logits += keys.bias[:, None, None]
        maximum = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - maximum)
        total = weights.sum(-1, keepdims=True)
        sums = _product('bms,bsv->bmv', _flat(weights, 1).astype(value.dtype), value)
        output = reshape_examples(sums, *logits.shape[1:3], value.shape[-1]) / total
        log_total = (maximum + jnp.log(total))[..., 0]
        return put(whole[0], output, start, axis=1), put(whole[1], log_total, start, axis=1)

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

    def add_some_rows(start, size, so_far: tuple[_Keys, Elements]) -> tuple[_Keys, Elements]:
        of_keys, of_elements = so_far
        some = _some_rows(elements, start, size)
        inverse = some.inverse_deviation[..., None]
        part = _flat(take(gradient, start, size, 1), 1)
        score = _score_from(keys, some, start)
        shift = keys.bias[:, None, None] - take(log_total, start, size, 1)[..., None]
        weights = jnp.exp(score * inverse + shift)
        of_weights = reshape_examples(_product('bmv,bsv->bms', part, keys.value), *score.shape[1:])
        of_logits = weights * (of_weights - take(correction, start, size, 1)[..., None])
        of_scores = of_logits * inverse
        flat = _flat(of_scores, 1)
        of_value = _product('bms,bmv->bsv', _flat(weights, 1).astype(part.dtype), part)
        of_features = reshape_examples(
            jnp.einsum('bms,bks->bmk', flat, keys.contents), *score.shape[1:3], -1
        )
        of_keys = _Keys(
            of_keys.contents + jnp.einsum('bms,bmk->bks', flat, _features(some)),
            put(of_keys.rows, of_scores.sum(2), start, axis=1),
            of_keys.columns + sum(of_scores[:, i] for i in range(size)),
            of_keys.bias + of_logits.sum((1, 2)),
            of_keys.value + of_value,
        )
        of_elements = Elements(
            put(of_elements.contents, of_features[..., :-1], start, axis=1),
            put(of_elements.mean, of_features[..., -1], start, axis=1),
            put(of_elements.inverse_deviation, (of_logits * score).sum(-1), start, axis=1),
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


def _score_from(keys: _Keys, some: Elements, start) -> Array:
    """Scores of some rows of the grid with the keys, `[B, rows, W, S]`."""
    products = jnp.einsum('bmk,bks->bms', _features(some), keys.contents)
    products = reshape_examples(products, *some.mean.shape[1:], products.shape[-1])
    rows = take(keys.rows, start, some.mean.shape[1], 1)
    return products + rows[:, :, None] + keys.columns[:, None]


def _product(axes: str, x: Array, y: Array) -> Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(axes, x, y, preferred_element_type=wide)
