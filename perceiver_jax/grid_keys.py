"""Queries attend to elements on a grid: the first half of `perceiver_jax.grid_parts`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import grid_kernel
from perceiver_jax.chunks import MASKED_LOGIT, Chunk, for_each_chunk, only_reverse_mode, put, take
from perceiver_jax.grid_parts import (
    ElementGradients,
    Elements,
    Gathered,
    Scores,
    add_rows,
    elements_of,
    features,
    flattened,
    has_rows_and_columns,
    rows_at_a_time,
    scores_of,
    some_rows,
)
from perceiver_jax.grids import FourierGrid, GridPositions, permutation
from perceiver_jax.sharding import (
    laid_out_alike,
    reshape_examples,
    sharding_like,
    zeros_like_rows,
)

_Function = Callable[..., Any]


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
    query: Array,
    grid: FourierGrid,
    mask: Array | None,
    *,
    scale: float,
    rows: int | None = None,
    kernel: str | None = None,
) -> Array:
    """Averages the normalised elements of a grid by their attention weights.

    Args:
      query: `[B, T, channels]`.
      grid: The elements, all rows of them and without common channels.
      mask: Boolean or 0/1 `[B, 1, M]`, or 1 in place of B or M, in the order of `grid.array()`;
        true where all queries attend to an element; None: everywhere.
      scale: Factor of the dot products.
      rows: Rows of the grid in a chunk; None: such that its logits fill a tile.
      kernel: 'compiled' uses `perceiver_jax.grid_kernel` on NVIDIA's GPUs, but not where examples
        are divided over an explicit mesh; 'interpreted' anywhere, slowly; None: chunks.

    Returns:
      `[B, T, channels]` in the dtype of the contents; zeros where nothing is attended to.
    """
    if mask is not None:
        mask = jnp.broadcast_to(mask.astype(bool)[:, 0], (len(mask), grid.shape[1]))
        if grid.permutation_seed is not None:
            mask = mask[:, np.argsort(permutation(grid.permutation_seed, mask.shape[1]))]
    query, contents, mask = laid_out_alike(query, grid.contents, mask)
    elements = elements_of(grid, contents, mask)
    batch, height, width = elements.mean.shape
    if rows is None:
        rows = rows_at_a_time(batch, query.shape[1], height, width)
    if sharding_like(query, 1) is not None:  # no compiler divides a kernel
        kernel = None
    how = _How(scale, grid.positions, min(rows, height), kernel)
    with only_reverse_mode():
        return _attend(query, elements, how)


class _How(NamedTuple):
    """How attention is computed; nothing of it is differentiated."""

    scale: float
    positions: GridPositions
    size: int  # rows of a chunk
    kernel: str | None  # 'compiled' or 'interpreted', see `perceiver_jax.grid_kernel`


class _Saved(NamedTuple):
    """What the gradient needs."""

    query: Array
    elements: Elements
    output: Array  # [B, T, channels]
    log_total: Array  # [B, T, 1], logarithm of the sum of exponentials of a query's logits


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(query: Array, elements: Elements, how: _How) -> Array:
    return _forward(query, elements, how)[0]


def _forward(query: Array, elements: Elements, how: _How) -> tuple[Array, _Saved]:
    scores, average = _scores_and_transpose(query, how)
    sums, maximum, total = _by_platform(how, _gather_in_chunks, _gather_by_kernel, scores, elements)
    total = jnp.where(total == 0, 1, total)  # 0 where nothing is attended to
    output = average(Scores(*(x / total for x in sums))).astype(elements.contents.dtype)
    return output, _Saved(query, elements, output, maximum + jnp.log(total))


def _backward(how: _How, saved: _Saved, gradient: Array) -> tuple[Array, Elements]:
    query, elements, output, log_total = saved
    scores, of_query = _scores_and_transpose(query, how)
    of_output, _ = _scores_and_transpose(gradient, how._replace(scale=1.0))
    dtype = log_total.dtype
    correction = (gradient.astype(dtype) * output.astype(dtype)).sum(-1, keepdims=True)
    of_scores, of_elements = _by_platform(
        how,
        _gradients_in_chunks,
        _gradients_by_kernel,
        scores,
        of_output,
        log_total,
        correction,
        elements,
    )
    of_contents = of_elements.contents.astype(elements.contents.dtype)
    return (
        (of_query(of_scores) * how.scale).astype(query.dtype),
        Elements(of_contents, of_elements.mean, of_elements.inverse_deviation, None),
    )


_attend.defvjp(_forward, _backward)


def _by_platform(how: _How, in_chunks: _Function, by_kernel: _Function, *operands: Any) -> Any:
    """Calls one of two functions of `how` and the operands: the kernel's on CUDA, if it is used."""
    in_chunks, by_kernel = (functools.partial(f, how) for f in (in_chunks, by_kernel))
    if how.kernel is None:
        return in_chunks(*operands)
    if how.kernel == 'interpreted':
        return by_kernel(*operands)
    return jax.lax.platform_dependent(*operands, cuda=by_kernel, default=in_chunks)


def _gather_by_kernel(how: _How, scores: Scores, elements: Elements) -> Gathered:
    return grid_kernel.gather(scores, elements, interpret=how.kernel == 'interpreted')


def _gradients_by_kernel(how: _How, *operands: Any) -> tuple[Scores, ElementGradients]:
    interpret = how.kernel == 'interpreted'
    return (
        grid_kernel.gather_gradients(*operands, interpret=interpret),
        grid_kernel.element_gradients(*operands, interpret=interpret),
    )


class _Seen(NamedTuple):
    """What queries know after some rows of the grid."""

    gathered: Gathered  # sums over each row by the maximum when that was seen
    row_maximum: Array  # [B, T, R], the largest logit when a row was seen


def _gather_in_chunks(how: _How, scores: Scores, elements: Elements) -> Gathered:
    def see_some_rows(chunk: Chunk, before: _Seen) -> _Seen:
        sums, old_maximum, old_total = before.gathered
        some = some_rows(elements, chunk)
        logits = _score(scores, some, chunk) * some.inverse_deviation[:, None]
        if some.mask is not None:
            logits = jnp.where(some.mask[:, None], logits, MASKED_LOGIT)
        maximum = jnp.maximum(old_maximum, logits.max((2, 3))[..., None])
        share = jnp.exp(old_maximum - maximum)
        weights = jnp.exp(logits - maximum[..., None]) * some.inverse_deviation[:, None]
        if some.mask is not None:
            weights = jnp.where(some.mask[:, None], weights, 0)
        # The sum of what was multiplied by the inverse deviation comes with the same product.
        new, total = _gather(weights, some, 1 / some.inverse_deviation)
        sums = Scores(
            sums.contents * share + new.contents,
            put(sums.rows, new.rows, chunk),
            sums.columns * share + new.columns,
        )
        at_rows = jnp.broadcast_to(maximum, new.rows.shape)
        return _Seen(
            Gathered(sums, maximum, old_total * share + total),
            put(before.row_maximum, at_rows, chunk),
        )

    of_rows = _zeros_like(scores.rows)
    column = _zeros_like(scores.rows[..., :1])
    no_sums = jax.tree.map(_zeros_like, scores)
    nothing = _Seen(Gathered(no_sums, jnp.full_like(column, MASKED_LOGIT), column), of_rows)
    seen = for_each_chunk(of_rows.shape[2], how.size, see_some_rows, nothing)
    sums, maximum, total = seen.gathered
    rows = sums.rows * jnp.exp(seen.row_maximum - maximum)
    return Gathered(sums._replace(rows=rows), maximum, total)


def _gradients_in_chunks(
    how: _How,
    scores: Scores,
    of_output: Scores,
    log_total: Array,
    correction: Array,
    elements: Elements,
) -> tuple[Scores, ElementGradients]:
    def add_some_rows(chunk: Chunk, so_far: tuple[Scores, ElementGradients]):
        of_scores, of_elements = so_far
        some = some_rows(elements, chunk)
        inverse = some.inverse_deviation[:, None]
        score = _score(scores, some, chunk)
        weights = jnp.exp(score * inverse - log_total[..., None])
        if some.mask is not None:
            weights = jnp.where(some.mask[:, None], weights, 0)
        of_weights = _score(of_output, some, chunk)
        of_logits = weights * (of_weights * inverse - correction[..., None])
        of_score = of_logits * inverse
        new, _ = _gather(of_score, some)
        of_features = _to_elements(of_score, scores) + _to_elements(weights * inverse, of_output)
        of_inverse = (of_logits * score + weights * of_weights).sum(1)
        of_scores = Scores(
            of_scores.contents + new.contents,
            put(of_scores.rows, new.rows, chunk),
            of_scores.columns + new.columns,
        )
        of_elements = ElementGradients(
            put(of_elements.contents, of_features[..., :-1], chunk, axis=1),
            put(of_elements.mean, of_features[..., -1], chunk, axis=1),
            put(of_elements.inverse_deviation, of_inverse, chunk, axis=1),
        )
        return of_scores, of_elements

    nothing = jax.tree.map(_zeros_like, (scores, ElementGradients(*elements[:3])))
    return for_each_chunk(scores.rows.shape[2], how.size, add_some_rows, nothing)


def _zeros_like(x: Array) -> Array:
    return zeros_like_rows(x.shape, jnp.promote_types(x.dtype, jnp.float32), x)


def _scores_and_transpose(query: Array, how: _How) -> tuple[Scores, Callable[[Scores], Array]]:
    """The scores of the scaled queries, and the function from gathered parts to elements."""
    wide = query.astype(jnp.promote_types(query.dtype, jnp.float32))
    split = functools.partial(scores_of, positions=how.positions)
    scores, transpose = jax.vjp(split, wide)
    return Scores(*(x * how.scale for x in scores)), lambda gathered: transpose(gathered)[0]


def _score(scores: Scores, some: Elements, chunk: Chunk) -> Array:
    """Scores with some rows of the grid, `[B, T, rows, W]`."""
    rows = take(scores.rows, chunk, 2)
    # Rows and columns as one axis: XLA on CPUs copies the operands of products over two.
    products = jnp.einsum('btk,bsk->bts', scores.contents, features(some))
    products = reshape_examples(products, products.shape[1], *some.mean.shape[1:])
    return products + rows[..., None] + scores.columns[:, :, None]


def _gather(weights: Array, some: Elements, *more: Array) -> tuple[Scores, Array]:
    """Sums of `[B, T, rows, W]` by the contents and the mean of the elements, and by more."""
    sums = jnp.einsum('bts,bsk->btk', flattened(weights, 2), features(some, *more))
    channels = some.contents.shape[-1] + 1
    parts = Scores(sums[..., :channels], weights.sum(3), add_rows(weights, 2))
    return parts, sums[..., channels:]


def _to_elements(weights: Array, scores: Scores) -> Array:
    """Sums of `[B, T, rows, W]` by the queries, `[B, rows, W, C + 1]`."""
    sums = jnp.einsum('bts,btk->bsk', flattened(weights, 2), scores.contents)
    return reshape_examples(sums, *weights.shape[2:], sums.shape[-1])
