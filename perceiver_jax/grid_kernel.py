"""Kernels for GPUs (Pallas, Triton): attention of queries to the elements of a grid of two axes.

An element's features are its contents, those of its row and those of its column, normalised
together. So its logit is a sum of scores of its parts,

    logit[t, y, x] = r[y, x] S[t, y, x]
    S[t, y, x] = q_c[t] . c[y, x] + q_m[t] m[y, x] + rows[t, y] + columns[t, x]

with the contents c and the mean m and inverse deviation r of the normalisation, and weighted sums
of features are made of sums for the same parts. No array of queries by elements leaves the
registers, and none has the channels of positions.

A program has a block of queries and walks over the rows of the grid (`gather`,
`gather_gradients`), or has some elements of a row and walks over the queries
(`element_gradients`). Columns are cut into tiles: sums of several tiles are added up element by
element, so that only the largest logit and the sum of each row cross threads.

No compiler divides a kernel over devices: where examples are divided, call these functions within
`jax.shard_map`.

The floor on an H100, for 512 queries of each of 64 images of 224 x 224 with three channels, 1.6e9
logits: as compiled, `gather` takes 24 instructions a logit, `gather_gradients` 28 and
`element_gradients` 34, which are 1.4, 1.6 and 1.9 ms where 28e12 a second are issued; exponentials
take 0.5 ms of units of their own. In memory are 64 MB of elements, 59 MB of scores and 59 MB of
sums, 0.06 ms; each block of queries reads the elements again, from the cache.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from perceiver_jax.chunks import MASKED_LOGIT
from perceiver_jax.grid_parts import ElementGradients, Elements, Gathered, Scores
from perceiver_jax.sharding import varying_like

FEW_CHANNELS = 8  # are multiplied one by one; more, padded to a power of two, as matrices
SMALLEST_SIDE = 16  # of a matrix that is multiplied
LOG2_E = math.log2(math.e)


class Tiles(NamedTuple):
    """How work is cut for the programs of a kernel.

    Attributes:
      queries: Queries at a time, a power of two, at least 16.
      columns: Columns of a tile, a power of two, at least 16; fewer on a narrower grid.
      tiles: Most tiles of a program; wider grids take several programs.
      warps: Warps of a program with so many tiles; fewer where it has fewer.
    """

    queries: int
    columns: int
    tiles: int
    warps: int


# By function and by how contents are multiplied: what spills least (ptxas for sm_90) and then takes
# the fewest instructions. Not timed.
TILES = {
    ('gather', 'few'): Tiles(queries=16, columns=32, tiles=8, warps=4),
    ('gather', 'bfloat16'): Tiles(queries=16, columns=64, tiles=4, warps=8),
    ('gather', 'float32'): Tiles(queries=16, columns=64, tiles=1, warps=4),
    ('gather_gradients', 'few'): Tiles(queries=16, columns=32, tiles=8, warps=4),
    ('gather_gradients', 'bfloat16'): Tiles(queries=16, columns=128, tiles=1, warps=8),
    ('gather_gradients', 'float32'): Tiles(queries=16, columns=64, tiles=1, warps=4),
    ('element_gradients', 'few'): Tiles(queries=32, columns=32, tiles=1, warps=4),
    ('element_gradients', 'bfloat16'): Tiles(queries=16, columns=64, tiles=1, warps=4),
    ('element_gradients', 'float32'): Tiles(queries=16, columns=64, tiles=1, warps=4),
}


def gather(
    scores: Scores, elements: Elements, *, interpret: bool = False, tiles: Tiles | None = None
) -> Gathered:
    """Sums the parts of the elements by their attention weights.

    Args:
      scores: Of the queries.
      elements: What is attended to.
      interpret: Whether to run without a GPU, slowly.
      tiles: How work is cut; None: as the channels suggest.

    Returns:
      The sums, the largest logits and the sums of the weights.
    """
    channels, length = elements.contents.shape[-1], scores.rows.shape[1]
    plan = _plan('gather', scores, elements, tiles, interpret)
    scores, elements = _fit(scores, plan), _fit_elements(elements, plan)
    batch, padded_length, rows = scores.rows.shape
    each = (batch, plan.programs, padded_length)  # what each program along a row has of a query
    spec, sums_spec = _specs_of_sums(rows, plan)
    sums, row_maximum, maximum, total = _call(
        _gather_kernel,
        plan,
        (scores, elements),
        grid=(padded_length // plan.queries, plan.programs, batch),
        in_specs=(_specs_of_queries(scores, plan), _specs_of_rows(elements, plan)),
        out_specs=(sums_spec, spec(rows), spec(1), spec(1)),
        out_shapes=(
            Scores(
                _result(*each, plan.channels + 1),
                _result(*each, rows),
                _result(batch, padded_length, plan.programs * plan.block),
            ),
            *(_result(*each, rows), _result(*each, 1), _result(*each, 1)),
        ),
    )
    # Each program had the largest logit of its columns, at each row that of the rows so far.
    whole = maximum.max(1)  # [B, T, 1], to base 2
    share = jnp.exp2(maximum - whole[:, None])  # [B, programs, T, 1]
    columns = sums.columns.reshape(batch, padded_length, plan.programs, plan.block)
    columns *= jnp.moveaxis(share, 1, 2)
    sums = Scores(
        contents=(sums.contents * share).sum(1),
        rows=(sums.rows * jnp.exp2(row_maximum - whole[:, None])).sum(1),
        columns=columns.reshape(batch, padded_length, -1)[..., : plan.width],
    )
    masked = whole == MASKED_LOGIT
    total = jnp.where(masked, 0, (total * share).sum(1))
    largest = jnp.where(masked, MASKED_LOGIT, whole / LOG2_E)
    sums = sums._replace(contents=_without_padding(sums.contents, channels))
    return jax.tree.map(lambda x: x[:, :length], Gathered(sums, largest, total))


def gather_gradients(
    scores: Scores,
    gradients: Scores,
    log_total: Array,
    delta: Array,
    elements: Elements,
    *,
    interpret: bool = False,
    tiles: Tiles | None = None,
) -> Scores:
    """Computes the gradient of the queries' scores.

    With the weight w = exp(logit - log_total) and G, which is S by `gradients` in place of
    `scores`, the gradient of a logit is d = w (r G - delta), and the result sums r d.

    Args:
      scores: Of the queries.
      gradients: By the gradient of the output, in place of the queries.
      log_total: `[B, T, 1]` float32, logarithm of the sum of the exponentials of a query's logits.
      delta: `[B, T, 1]` float32, sum of the output times its gradient.
      elements: What is attended to.
      interpret: Whether to run without a GPU, slowly.
      tiles: How work is cut; None: as the channels suggest.

    Returns:
      Gradients of the shapes of `scores`.
    """
    channels, length = elements.contents.shape[-1], scores.rows.shape[1]
    plan = _plan('gather_gradients', scores, elements, tiles, interpret)
    queries = _fit((scores, gradients, _to_base_2(log_total), delta), plan)
    elements = _fit_elements(elements, plan)
    batch, padded_length, rows = queries[0].rows.shape
    each = (batch, plan.programs, padded_length)
    (sums,) = _call(
        _gather_gradients_kernel,
        plan,
        (*queries, elements),
        grid=(padded_length // plan.queries, plan.programs, batch),
        in_specs=(*_specs_of_queries(queries, plan), _specs_of_rows(elements, plan)),
        out_specs=_specs_of_sums(rows, plan)[1:],
        out_shapes=(
            Scores(
                _result(*each, plan.channels + 1),
                _result(*each, rows),
                _result(batch, padded_length, plan.width),
            ),
        ),
    )
    sums = Scores(_without_padding(sums.contents.sum(1), channels), sums.rows.sum(1), sums.columns)
    return jax.tree.map(lambda x: x[:, :length], sums)


def element_gradients(
    scores: Scores,
    gradients: Scores,
    log_total: Array,
    delta: Array,
    elements: Elements,
    *,
    interpret: bool = False,
    tiles: Tiles | None = None,
) -> ElementGradients:
    """Computes the gradient of the elements.

    With w, d, S and G as in `gather_gradients`, these are sums over the queries: of
    r (d q_c + w g_c), of r (d q_m + w g_m) and of d S + w G.

    Args:
      scores: Of the queries.
      gradients: By the gradient of the output, in place of the queries.
      log_total: `[B, T, 1]` float32, logarithm of the sum of the exponentials of a query's logits.
      delta: `[B, T, 1]` float32, sum of the output times its gradient.
      elements: What is attended to.
      interpret: Whether to run without a GPU, slowly.
      tiles: How work is cut; None: as the channels suggest.

    Returns:
      Gradients of contents, mean and inverse deviation.
    """
    channels = elements.contents.shape[-1]
    plan = _plan('element_gradients', scores, elements, tiles, interpret)
    log_total = _to_base_2(log_total)
    scores, gradients, log_total, delta = _fit((scores, gradients, log_total, delta), plan)
    elements = _fit_elements(elements, plan)
    batch, padded_length, rows = scores.rows.shape
    # All queries of a row are read at once: they lie side by side.
    scores, gradients = (x._replace(rows=jnp.swapaxes(x.rows, 1, 2)) for x in (scores, gradients))

    def queries_spec(size):
        return _spec((None, padded_length, size), lambda x, y, b: (b, 0, 0))

    scores_spec = Scores(
        queries_spec(plan.channels + 1),
        _spec((None, None, padded_length), lambda x, y, b: (b, y, 0)),
        _spec((None, padded_length, plan.block), lambda x, y, b: (b, 0, x)),
    )
    shape = (batch, rows, plan.width)
    contents_spec = _spec((None, None, plan.block, plan.channels), lambda x, y, b: (b, y, x, 0))
    of_contents, of_mean = _result(*shape, plan.channels), _result(*shape)
    if plan.few:
        contents_spec = _spec((None, None, plan.channels, plan.block), lambda x, y, b: (b, y, 0, x))
        of_contents = _result(batch, rows, plan.channels, plan.width)
    if not plan.channels:
        contents_spec = of_contents = None
    mean_spec = _spec((None, None, plan.block), lambda x, y, b: (b, y, x))
    elements_spec = ElementGradients(contents_spec, mean_spec, mean_spec)
    (result,) = _call(
        _element_gradients_kernel,
        plan,
        (scores, gradients, log_total, delta, elements),
        grid=(plan.programs, rows, batch),
        in_specs=(
            scores_spec,
            scores_spec,
            queries_spec(1),
            queries_spec(1),
            Elements(*elements_spec),
        ),
        out_specs=(elements_spec,),
        out_shapes=(ElementGradients(of_contents, of_mean, of_mean),),
    )
    contents = result.contents
    if not plan.channels:
        contents = jnp.zeros_like(result.mean, shape=(*shape, 0))
    elif plan.few:
        contents = jnp.moveaxis(contents, 2, -1)
    return result._replace(contents=contents[..., :channels])


class _Plan(NamedTuple):
    """Everything of a call that is no array."""

    queries: int  # of a block
    columns: int  # of a tile
    tiles: int  # of a program
    programs: int  # along a row
    warps: int
    width: int  # W
    channels: int  # C, padded
    masked: bool
    interpret: bool

    @property
    def block(self) -> int:
        """Columns of a program."""
        return self.columns * self.tiles

    @property
    def few(self) -> bool:
        """Whether channels are multiplied one by one."""
        return self.channels <= FEW_CHANNELS


def _plan(
    function: str, scores: Scores, elements: Elements, tiles: Tiles | None, interpret: bool
) -> _Plan:
    channels, width = elements.contents.shape[-1], scores.columns.shape[-1]
    multiplied = 'few'
    if channels > FEW_CHANNELS:
        channels = max(pl.next_power_of_2(channels), SMALLEST_SIDE)
        multiplied = 'bfloat16' if elements.contents.dtype == jnp.bfloat16 else 'float32'
    tiles = tiles or TILES[function, multiplied]
    columns = tiles.columns
    while columns >= 2 * width and columns > SMALLEST_SIDE:
        columns //= 2
    programs = pl.cdiv(width, columns * tiles.tiles)
    tiles_needed = pl.cdiv(width, columns * programs)
    # A thread has as many columns, whatever the width.
    share = columns * tiles_needed / (tiles.columns * tiles.tiles)
    return _Plan(
        queries=tiles.queries,
        columns=columns,
        tiles=tiles_needed,
        programs=programs,
        warps=pl.next_power_of_2(math.ceil(tiles.warps * share)),
        width=width,
        channels=channels,
        masked=elements.mask is not None,
        interpret=interpret,
    )


def _fit(queries: Any, plan: _Plan) -> Any:
    """Adds queries up to whole blocks, and channels of zeros; both give nothing but zeros."""

    def add_queries(x):
        return jnp.pad(x, [(0, 0), (0, -x.shape[1] % plan.queries), (0, 0)])

    def add_channels(x):
        if not isinstance(x, Scores):
            return x
        missing = plan.channels + 1 - x.contents.shape[-1]
        zeros = jnp.zeros_like(x.contents, shape=(*x.contents.shape[:2], missing))
        contents = [x.contents[..., :-1], zeros, x.contents[..., -1:]]
        return x._replace(contents=jnp.concatenate(contents, -1)) if missing else x

    queries = jax.tree.map(add_channels, queries, is_leaf=lambda x: isinstance(x, Scores))
    return jax.tree.map(add_queries, queries)


def _fit_elements(elements: Elements, plan: _Plan) -> Elements:
    """Adds channels of zeros. An inverse deviation of 0 marks what is masked."""
    contents, mean, inverse_deviation, mask = elements
    missing = plan.channels - contents.shape[-1]
    if missing:
        contents = jnp.pad(contents, [(0, 0), (0, 0), (0, 0), (0, missing)])
    if plan.few:
        contents = jnp.moveaxis(contents, -1, 2)  # columns of a channel are read side by side
    if mask is not None:
        inverse_deviation = jnp.where(mask, inverse_deviation, 0)
    operands: list[Any] = [contents if plan.channels else None, mean, inverse_deviation]
    return Elements(*operands)


def _to_base_2(log_total: Array) -> Array:
    return jnp.maximum(LOG2_E * log_total, MASKED_LOGIT)  # finite for a fully masked query


def _without_padding(sums: Array, channels: int) -> Array:
    if sums.shape[-1] == channels + 1:
        return sums
    return jnp.concatenate([sums[..., :channels], sums[..., -1:]], -1)


def _specs_of_queries(queries: Any, plan: _Plan) -> Any:
    def spec(x):
        return _spec((None, plan.queries, x.shape[-1]), lambda t, x, b: (b, t, 0))

    def specs(x):
        if not isinstance(x, Scores):
            return spec(x)
        columns = _spec((None, plan.queries, plan.block), lambda t, x, b: (b, t, x))
        return Scores(spec(x.contents), spec(x.rows), columns)

    return jax.tree.map(specs, queries, is_leaf=lambda x: isinstance(x, Scores))


def _specs_of_rows(elements: Elements, plan: _Plan) -> Elements:
    """A program reads its columns of all rows."""
    rows = elements.mean.shape[1]
    contents = _spec((None, rows, plan.block, plan.channels), lambda t, x, b: (b, 0, x, 0))
    if plan.few:
        contents = _spec((None, rows, plan.channels, plan.block), lambda t, x, b: (b, 0, 0, x))
    mean = _spec((None, rows, plan.block), lambda t, x, b: (b, 0, x))
    specs: list[Any] = [contents if plan.channels else None, mean, mean]
    return Elements(*specs)


def _specs_of_sums(rows: int, plan: _Plan) -> tuple[Callable[[int], Any], Scores]:
    """What a program writes: some channels of its own for its queries; and sums."""

    def spec(channels):
        return _spec((None, None, plan.queries, channels), lambda t, x, b: (b, x, t, 0))

    columns = _spec((None, plan.queries, plan.block), lambda t, x, b: (b, t, x))
    return spec, Scores(spec(plan.channels + 1), spec(rows), columns)


def _spec(block: tuple[int | None, ...], index: Callable[..., tuple]) -> Any:
    return pl.BlockSpec(block, index)


def _result(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(kernel, plan: _Plan, operands, *, grid, in_specs, out_specs, out_shapes) -> Any:
    # Within `jax.shard_map`, results vary along the axes of the mesh that any operand varies along.
    most = functools.reduce(lambda x, y: varying_like(y, x), jax.tree.leaves(operands))
    varying = jax.typeof(most).manual_axis_type
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=jax.tree.map(lambda x: x.update(manual_axis_type=varying), out_shapes),
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=2),
        interpret=plan.interpret,
        name=kernel.__name__.strip('_'),
    )(*jax.tree.map(lambda x: varying_like(x, most), operands))


# From here on, arrays are in registers, and operands are references to memory, without B.


class _Contents(NamedTuple):
    """What belongs to contents and mean.

    Attributes:
      channels: Few: one array for each channel. Many: one array with channels last.
      mean: Without channels.
    """

    channels: Any
    mean: Array


class _Cut(NamedTuple):
    """The columns of a tile."""

    columns: Any  # of those of a program
    inside: Array | None  # [columns], which of them the grid has; None: all


class _Tile(NamedTuple):
    """The elements of a tile."""

    contents: _Contents  # [columns] each, or [columns, C]
    inverse_deviation: Array  # [columns]
    bias: Array | None  # [columns], `MASKED_LOGIT` for what is no element or masked; None: all 0
    used: Array | None  # [columns], false for these; None: all true


class _Sums(NamedTuple):
    """Sums of a block of queries."""

    contents: _Contents  # [queries, columns] each, to be summed; [queries, C] of many channels
    columns: tuple[Array, ...]  # [queries, columns], of each tile


def _gather_kernel(scores, elements, sums, row_maximum, maximum, total, *, plan: _Plan) -> None:
    """Refers to what `gather` names, and to the maximum of the rows so far, `[queries, R]`."""
    cuts, block = _cut(pl.program_id(1), plan), pl.ds(0, plan.queries)
    queries = _load_queries(scores.contents, block, plan)

    def see_a_row(y, seen):
        sums_so_far, maximum_so_far, total_so_far = seen
        row = scores.rows[:, y]
        logits = []
        for cut in cuts:
            part = _load_tile(elements, (y,), cut, plan)
            score = _score(queries, row, _load_columns(scores.columns, block, cut), part, plan)
            logits.append(_logits(score, part, plan))
        new_maximum = jnp.maximum(maximum_so_far, functools.reduce(jnp.maximum, logits).max(1))
        share = _exp2(maximum_so_far - new_maximum, plan)
        contents, total_so_far = jax.tree.map(
            lambda x: x * share[:, None], (sums_so_far.contents, total_so_far)
        )
        sums_so_far = sums_so_far._replace(contents=contents)
        in_row = jnp.zeros_like(total_so_far)
        for i, cut in enumerate(cuts):
            part = _load_tile(elements, (y,), cut, plan)  # again, rather than kept in registers
            weight = _exp2(logits[i] - new_maximum[:, None], plan)
            total_so_far += weight
            weight *= part.inverse_deviation[None]
            in_row += weight
            sums_so_far = _add(sums_so_far, i, weight, part, plan, share[:, None])
        sums.rows[:, y] = in_row.sum(1)
        row_maximum[:, y] = new_maximum
        return sums_so_far, new_maximum, total_so_far

    seen = (
        _no_sums(plan),
        jnp.full((plan.queries,), MASKED_LOGIT, jnp.float32),
        jnp.zeros((plan.queries, plan.columns), jnp.float32),
    )
    all_sums, last_maximum, last_total = jax.lax.fori_loop(0, scores.rows.shape[1], see_a_row, seen)
    _store(sums, all_sums, cuts, plan)
    maximum[:, 0] = last_maximum
    total[:, 0] = last_total.sum(1)


def _gather_gradients_kernel(
    scores, gradients, log_total, delta, elements, sums, *, plan: _Plan
) -> None:
    cuts, block = _cut(pl.program_id(1), plan), pl.ds(0, plan.queries)
    queries = _load_queries(scores.contents, block, plan)
    outputs = _load_queries(gradients.contents, block, plan)
    of_total, correction = log_total[:, 0][:, None], delta[:, 0][:, None]

    def see_a_row(y, so_far):
        row, gradient_row = scores.rows[:, y], gradients.rows[:, y]
        in_row = jnp.zeros((plan.queries, plan.columns), jnp.float32)
        for i, cut in enumerate(cuts):
            part = _load_tile(elements, (y,), cut, plan)
            column = _load_columns(scores.columns, block, cut)
            gradient_column = _load_columns(gradients.columns, block, cut)
            score = _score(queries, row, column, part, plan)
            gradient = _score(outputs, gradient_row, gradient_column, part, plan)
            deviation = part.inverse_deviation[None]
            weight = _exp2(_logits(score, part, plan) - of_total, plan) * deviation
            of_score = weight * _multiply_add(deviation, gradient, -correction, plan)
            in_row += of_score
            so_far = _add(so_far, i, of_score, part, plan)
        sums.rows[:, y] = in_row.sum(1)
        return so_far

    all_sums = jax.lax.fori_loop(0, scores.rows.shape[1], see_a_row, _no_sums(plan))
    _store(sums, all_sums, cuts, plan)


def _element_gradients_kernel(
    scores, gradients, log_total, delta, elements, results, *, plan: _Plan
) -> None:
    (cut,) = _cut(pl.program_id(0), plan)
    part = _load_tile(elements, (), cut, plan)
    deviation = part.inverse_deviation[None]

    def see_a_block(t, so_far):
        contents, mean, of_deviation = so_far
        some = pl.ds(t * plan.queries, plan.queries)
        queries = _load_queries(scores.contents, some, plan)
        outputs = _load_queries(gradients.contents, some, plan)
        column = _load_columns(scores.columns, some, cut)
        gradient_column = _load_columns(gradients.columns, some, cut)
        score = _score(queries, scores.rows[some], column, part, plan)
        gradient = _score(outputs, gradients.rows[some], gradient_column, part, plan)
        weight = _exp2(_logits(score, part, plan) - log_total[some, 0][:, None], plan)
        correction = delta[some, 0][:, None]
        of_logit = weight * _multiply_add(deviation, gradient, -correction, plan)

        def add(x, query, output):
            x = _multiply_add(of_logit, query[:, None], x, plan)
            return _multiply_add(weight, output[:, None], x, plan)

        if plan.few:
            contents = tuple(map(add, contents, queries.channels, outputs.channels))
        else:
            # Gradients of bfloat16 contents are rounded to it anyway.
            for x, y in ((of_logit, queries.channels), (weight, outputs.channels)):
                y = y.astype(part.contents.channels.dtype)
                contents = _add_product(contents, x, y, (0, 0), plan)
        mean = add(mean, queries.mean, outputs.mean)
        of_deviation = _multiply_add(of_logit, score, of_deviation, plan)
        return contents, mean, _multiply_add(weight, gradient, of_deviation, plan)

    zeros = jnp.zeros((plan.queries, plan.columns), jnp.float32)
    of_contents: Any = (zeros,) * plan.channels
    if not plan.few:
        of_contents = jnp.zeros((plan.columns, plan.channels), jnp.float32)
    blocks = scores.contents.shape[0] // plan.queries
    contents, mean, of_deviation = jax.lax.fori_loop(
        0, blocks, see_a_block, (of_contents, zeros, zeros)
    )
    some, inside = cut

    def store(reference, x):
        triton.store(reference, x, mask=inside)

    if plan.few:
        for k, x in enumerate(contents):
            store(results.contents.at[jnp.int32(k), some], x.sum(0) * part.inverse_deviation)
    else:
        everywhere = None if inside is None else jnp.broadcast_to(inside[:, None], contents.shape)
        contents *= part.inverse_deviation[:, None]
        triton.store(results.contents.at[some, :], contents, mask=everywhere)
    store(results.mean.at[some], mean.sum(0) * part.inverse_deviation)
    of_deviation = of_deviation.sum(0)
    if part.used is not None:
        of_deviation = jnp.where(part.used, of_deviation, 0)
    store(results.inverse_deviation.at[some], of_deviation)


def _cut(program: Array, plan: _Plan) -> list[_Cut]:
    """Cuts a program's columns into tiles."""
    cuts = []
    for start in range(0, plan.block, plan.columns):
        inside = None
        if plan.programs * plan.block != plan.width:
            columns = jax.lax.iota(jnp.int32, plan.columns)
            inside = program * plan.block + start + columns < plan.width
        cuts.append(_Cut(pl.ds(start, plan.columns), inside))
    return cuts


def _load(reference, mask: Array | None) -> Array:
    if mask is None:
        return triton.load(reference)
    mask = jnp.broadcast_to(mask, reference.shape)
    return triton.load(reference, mask=mask, other=jnp.zeros((), reference.dtype))


def _load_queries(reference, some, plan: _Plan) -> _Contents:
    """Loads the scores for contents and mean of some queries."""
    if plan.few:
        channels: Any = tuple(reference[some, k] for k in range(plan.channels))
    else:
        channels = reference[some, pl.ds(0, plan.channels)]
    return _Contents(channels, reference[some, plan.channels])


def _load_columns(reference, some, cut: _Cut) -> Array:
    """Loads the scores of some queries for the columns of a tile."""
    mask = None if cut.inside is None else cut.inside[None]
    return _load(reference.at[some, cut.columns], mask)


def _load_tile(elements, row: tuple, cut: _Cut, plan: _Plan) -> _Tile:
    """Loads elements; of what is masked nothing but that."""
    columns, used = cut
    deviation = _load(elements.inverse_deviation.at[(*row, columns)], used)
    if plan.masked:
        used = deviation != 0
    mean = _load(elements.mean.at[(*row, columns)], used)
    if plan.few:
        channels: Any = tuple(
            _load(elements.contents.at[(*row, jnp.int32(k), columns)], used).astype(jnp.float32)
            for k in range(plan.channels)
        )
    else:
        channels = _load(
            elements.contents.at[(*row, columns, pl.ds(0, plan.channels))],
            None if used is None else used[:, None],
        )
        if channels.dtype != jnp.bfloat16:
            channels = channels.astype(jnp.float32)
    bias = None if used is None else jnp.where(used, 0.0, MASKED_LOGIT)
    return _Tile(_Contents(channels, mean), deviation, bias, used)


def _score(queries: _Contents, row: Array, column: Array, part: _Tile, plan: _Plan) -> Array:
    """S, `[queries, columns]`, of the scores for a row, `[queries]`, and for columns."""
    mean = part.contents.mean[None]
    score = _multiply_add(queries.mean[:, None], mean, column + row[:, None], plan)
    if not plan.few:
        return _add_product(score, queries.channels, part.contents.channels, (1, 1), plan)
    for query, channel in zip(queries.channels, part.contents.channels, strict=True):
        score = _multiply_add(query[:, None], channel[None], score, plan)
    return score


def _logits(score: Array, part: _Tile, plan: _Plan) -> Array:
    """Logits to base 2: their powers of two are the exponentials of the logits."""
    scale = (LOG2_E * part.inverse_deviation)[None]
    return (
        score * scale if part.bias is None else _multiply_add(score, scale, part.bias[None], plan)
    )


def _no_sums(plan: _Plan) -> _Sums:
    zeros = jnp.zeros((plan.queries, plan.columns), jnp.float32)
    channels: Any = (zeros,) * plan.channels
    if not plan.few:
        channels = jnp.zeros((plan.queries, plan.channels), jnp.float32)
    return _Sums(_Contents(channels, zeros), (zeros,) * plan.tiles)


def _add(
    sums: _Sums, tile: int, weight: Array, part: _Tile, plan: _Plan, share: Array | None = None
) -> _Sums:
    """Adds the weights of a tile, and contents and mean by them; what its columns had shrinks."""
    channels, mean = sums.contents
    mean = _multiply_add(weight, part.contents.mean[None], mean, plan)
    if plan.few:
        channels = tuple(
            _multiply_add(weight, new[None], channel, plan)
            for channel, new in zip(channels, part.contents.channels, strict=True)
        )
    else:
        channels = _add_product(channels, weight, part.contents.channels, (1, 0), plan)
    columns = list(sums.columns)
    old = columns[tile]
    columns[tile] = old + weight if share is None else _multiply_add(old, share, weight, plan)
    return _Sums(_Contents(channels, mean), tuple(columns))


def _store(results, sums: _Sums, cuts: list[_Cut], plan: _Plan) -> None:
    """Stores all sums but those of the rows, which are stored row by row."""
    if plan.few:
        for k, x in enumerate(sums.contents.channels):
            results.contents[:, k] = x.sum(1)
    else:
        results.contents[:, pl.ds(0, plan.channels)] = sums.contents.channels
    results.contents[:, plan.channels] = sums.contents.mean.sum(1)
    for (columns, inside), x in zip(cuts, sums.columns, strict=True):
        if inside is not None:
            inside = jnp.broadcast_to(inside[None], x.shape)
        triton.store(results.columns.at[:, columns], x, mask=inside)


def _add_product(total: Array, x: Array, y: Array, axes: tuple[int, int], plan: _Plan) -> Array:
    """Adds a product of matrices, about as exact as float32, by tensor cores.

    Args:
      total: What is added to.
      x: Matrix, float32.
      y: Matrix, float32 or bfloat16.
      axes: Axis of each matrix that is summed over.
      plan: Whether this is interpreted: CPUs know float32 itself.
    """

    def add(total, x, y, precision=None):
        contracted = (((axes[0],), (axes[1],)), ((), ()))
        return total + jax.lax.dot_general(
            x, y, contracted, precision=precision, preferred_element_type=jnp.float32
        )

    if y.dtype == jnp.bfloat16:  # x by its upper and its lower half, 16 bits of 24
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(2**16))
        upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
        total = add(total, upper.astype(jnp.bfloat16), y)
        return add(total, (x - upper).astype(jnp.bfloat16), y)
    if plan.interpret:
        return add(total, x, y, jax.lax.Precision.HIGHEST)
    return add(total, x, y, jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3)


def _multiply_add(x: Array, y: Array, z: Array, plan: _Plan) -> Array:
    """Computes x y + z in one instruction, which Triton by itself takes two for."""
    if plan.interpret:
        return x * y + z
    return _instruction('fma.rn.f32 $0, $1, $2, $3;', x, y, z)


def _exp2(x: Array, plan: _Plan) -> Array:
    """Computes powers of two in one instruction, to 2 units in the last place."""
    return jnp.exp2(x) if plan.interpret else _instruction('ex2.approx.ftz.f32 $0, $1;', x)


def _instruction(assembly: str, *operands: Array) -> Array:
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))
    (result,) = triton.elementwise_inline_asm(
        assembly,
        args=[jnp.broadcast_to(x, shape) for x in operands],
        constraints=','.join(['=f', *['f'] * len(operands)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(shape, jnp.float32)],
    )
    return result
