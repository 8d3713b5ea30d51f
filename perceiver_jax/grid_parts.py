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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax.chunks import Chunk, along, chunk_length, take, tile_elements
from perceiver_jax.grids import FourierGrid, GridPositions
from perceiver_jax.layers import LAYER_NORM_EPSILON
from perceiver_jax.sharding import reshape_examples

# Of 1 to 28 rows a chunk, the fastest on two CPU cores were 16 of 224 x 224 for 512 queries (with 8
# to 20 it takes 35 to 38 ms, and 69 to 85 with gradients) and 1 of 368 x 496 for 2,048 queries.
LARGER_TILE = 1.8  # times that of other attention
FEW_ROWS = 32  # of a chunk, are added up one by one


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
    mask: Array | None = None


class Gathered(NamedTuple):
    """Sums over elements by weights that are not normalised, exp(logit - maximum).

    Attributes:
      sums: Sums of the weights times the inverse deviation: times contents and mean, over each
        row, over each column. 0 for a fully masked query.
      maximum: `[B, T, 1]` float32, the largest logit; `MASKED_LOGIT` for a fully masked query.
      total: `[B, T, 1]` float32, sum of the weights; 0 for a fully masked query.
    """

    sums: Scores
    maximum: Array
    total: Array


class ElementGradients(NamedTuple):
    """Gradients of the elements, float32; 0 where masked.

    Attributes:
      contents: `[B, R, W, C]`.
      mean: `[B, R, W]`.
      inverse_deviation: `[B, R, W]`.
    """

    contents: Array
    mean: Array
    inverse_deviation: Array


def products(elements: Array | FourierGrid) -> int:
    """Counts the multiplications of a logit of elements that are not projected.

    Args:
      elements: `[B, M, C]`, or a grid.
    """
    if isinstance(elements, FourierGrid):
        return elements.contents.shape[-1] + 2  # and the mean, and the inverse deviation
    return elements.shape[-1]


def has_rows_and_columns(grid: FourierGrid) -> bool:
    """Returns whether a grid has several rows, of all its axes but the last, of several elements.

    Args:
      grid: Any grid.
    """
    *leading, width = grid.positions.shape
    return min(math.prod(leading), width) > 1


def rows_at_a_time(batch: int, others: int, height: int, width: int) -> int:
    """Chooses how many rows of a grid a chunk has.

    Args:
      batch: B.
      others: Queries or keys that meet the grid.
      height: R.
      width: W.

    Returns:
      As many rows as have logits that fill a tile, or more than half of it if these divide R.
    """
    at_a_time = others * width * (batch if isinstance(batch, int) else 1)
    most = int(LARGER_TILE * tile_elements()) // max(at_a_time, 1)
    return chunk_length(height, max(most, 1))


def elements_of(grid: FourierGrid, contents: Array, mask: Array | None) -> Elements:
    """Gives the elements of a grid the statistics of their LayerNorm.

    Args:
      grid: Where the elements are.
      contents: `[B, *grid, C]`, those of the grid, laid out like what they meet.
      mask: Boolean `[B, M]`, or 1 in place of B, in the order of the grid; None: no mask.

    Returns:
      The elements.
    """
    *leading, width, channels = contents.shape[1:]
    contents = reshape_examples(contents, math.prod(leading), width, channels)
    if mask is not None:
        mask = reshape_examples(mask, *contents.shape[1:3])
        contents = jnp.where(mask[..., None], contents, 0)  # it may hold anything, also NaN
    mean, inverse_deviation = jax.checkpoint(functools.partial(_statistics, grid))(contents)
    return Elements(contents, mean, inverse_deviation, mask)


def _statistics(grid: FourierGrid, contents: Array) -> tuple[Array, Array]:
    """Mean and inverse deviation of the channels of each element, `[B, R, W]`."""
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
    return mean, jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)


def _on_grid(of_axes: list[np.ndarray], rows: Array | None) -> Array:
    """Adds up values along each axis of a grid, `[n]` each, to `[1, R, W]`."""
    *leading, columns = [jnp.asarray(x)[None] for x in of_axes]
    return _add_up(leading, rows)[:, :, None] + columns[:, None]


def scores_of(
    query: Array, positions: GridPositions, common: Array | None = None, some: Array | None = None
) -> Scores:
    """Splits queries into their scores with the parts of an element.

    Args:
      query: `[B, T, channels]`.
      positions: Those of the grid.
      common: `[P]`, common channels of the grid, which count among the columns; None: none.
      some: Integers, which rows of the grid there are; None: all.

    Returns:
      The scores, a linear function of the queries. Its transpose takes what was gathered of each
      part to sums of elements.
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
        # Products, since the gradient of indices is nothing that explicit meshes take.
        chosen = [
            jax.nn.one_hot(i, size, dtype=leading[0].dtype)
            for i, size in zip(jnp.unravel_index(rows, sizes), sizes, strict=True)
        ]
        exact = functools.partial(jnp.einsum, '...n,rn->...r', precision=jax.lax.Precision.HIGHEST)
        return functools.reduce(jnp.add, map(exact, leading, chosen))
    total, *more = leading
    for x in more:
        both = total[..., :, None] + x[..., None, :]
        total = reshape_examples(both, *total.shape[1:-1], total.shape[-1] * x.shape[-1])
    return total


def some_rows(elements: Elements, chunk: Chunk) -> Elements:
    """Cuts a chunk of rows out of a grid.

    Args:
      elements: The elements.
      chunk: The rows.

    Returns:
      `[B, size, W, ...]`, contents in the dtype of their mean; rows that are not new are masked.
    """
    some = Elements(*(take(x, chunk, 1) for x in elements))
    if chunk.new is not None:
        new = jnp.broadcast_to(along(chunk.new, 1, 3), some.mean.shape)
        some = some._replace(mask=new if some.mask is None else some.mask & new)
    return some._replace(contents=some.contents.astype(some.mean.dtype))


def features(some: Elements, *more: Array) -> Array:
    """Returns what elements multiply scores of contents by.

    Args:
      some: Rows of elements.
      *more: Further features, `[B, rows, W]`.

    Returns:
      `[B, rows W, C + 1 + their number]`: contents, mean, and more.
    """
    of_each = [x[..., None] for x in (some.mean, *more)]
    return flattened(jnp.concatenate([some.contents, *of_each], axis=-1), 1)


def flattened(x: Array, axis: int) -> Array:
    """Makes the rows and columns of a grid a single axis.

    Args:
      x: `[B, ..., rows, W, ...]`.
      axis: That of the rows.
    """
    before, after = x.shape[1:axis], x.shape[axis + 2 :]
    return reshape_examples(x, *before, x.shape[axis] * x.shape[axis + 1], *after)


def add_rows(x: Array, axis: int) -> Array:
    """Sums over the rows of a chunk.

    Args:
      x: `[..., rows, W, ...]`.
      axis: That of the rows.

    Returns:
      `[..., W, ...]`.
    """
    size = x.shape[axis]
    if size > FEW_ROWS:
        return x.sum(axis)
    # XLA on CPUs takes up to fifteen times as long for sums over so few.
    rows = [jax.lax.index_in_dim(x, i, axis, keepdims=False) for i in range(size)]
    return functools.reduce(jnp.add, rows)
