"""The kernels against the formulas: compiled on a GPU, interpreted elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from perceiver_jax.chunks import MASKED_LOGIT
from perceiver_jax.grid_kernel import Tiles, element_gradients, gather, gather_gradients
from perceiver_jax.grid_parts import ElementGradients, Elements, Gathered, Scores

BATCH, QUERIES, ROWS, WIDTH = 2, 5, 3, 7
SMALL = Tiles(queries=16, columns=16, tiles=2, warps=4)  # more than one program on 45 columns


def random_case(
    *, queries=QUERIES, channels=3, width=WIDTH, dtype='float32', masked=False, size=1.0
):
    """Scores, their gradients' scores, and elements; the last example may be fully masked."""
    rng = np.random.default_rng(channels)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def scores(size):
        return Scores(*(size * array(BATCH, queries, n) for n in (channels + 1, ROWS, width)))

    grid = (BATCH, ROWS, width)
    contents = array(*grid, channels)
    mean, deviation = array(*grid), np.abs(array(*grid)) + 0.1
    mask = rng.random(grid) < 0.6
    mask[0, 0], mask[1] = False, False
    if masked:  # what is masked may hold anything
        contents[~mask], mean[~mask], deviation[~mask] = np.nan, np.inf, np.nan
    contents = jnp.asarray(contents, dtype)
    return scores(size), scores(1.0), Elements(contents, mean, deviation, mask if masked else None)


def of_queries(gathered, scores):
    """The logarithm of the total; and any numbers in place of output times gradient."""
    total = np.where(gathered.total == 0, 1, gathered.total)
    return np.float32(gathered.maximum + np.log(total)), scores.contents[..., -1:] / 10


def score(scores, parts):
    """S, `[B, T, R, W]`."""
    of_parts = np.einsum('btc,brwc->btrw', scores.contents, parts)
    return of_parts + scores.rows[..., None] + scores.columns[:, :, None]


def sums(weights, parts):
    return Scores(np.einsum('btrw,brwc->btc', weights, parts), weights.sum(3), weights.sum(2))


def by_definition(scores, gradients, elements):
    """All that the kernels compute, by arrays of queries times elements, in float64."""
    mask = np.ones_like(elements.mean, bool) if elements.mask is None else elements.mask
    parts = np.concatenate([np.float64(elements.contents), elements.mean[..., None]], -1)
    parts = np.where(mask[..., None], parts, 0)
    deviation = np.where(mask, np.float64(elements.inverse_deviation), 0)[:, None]
    mask = mask[:, None]

    s, g = score(scores, parts), score(gradients, parts)
    logits = np.where(mask, s * deviation, MASKED_LOGIT)
    maximum = logits.max((2, 3), keepdims=True)
    weights = np.where(mask, np.exp(logits - maximum), 0)
    total = weights.sum((2, 3))[..., None]
    gathered = Gathered(sums(weights * deviation, parts), maximum[..., 0], total)

    log_total, delta = (x[..., None] for x in of_queries(gathered, scores))
    weights = np.where(mask, np.exp(logits - log_total), 0)
    of_logits = weights * (deviation * g - delta)
    of_parts = np.einsum('btrw,btc->brwc', of_logits * deviation, scores.contents)
    of_parts += np.einsum('btrw,btc->brwc', weights * deviation, gradients.contents)
    of_deviation = (of_logits * s + weights * g).sum(1)
    of_elements = ElementGradients(of_parts[..., :-1], of_parts[..., -1], of_deviation)
    return gathered, sums(of_logits * deviation, parts), of_elements


def has_gpu():
    return jax.default_backend() == 'gpu'


@functools.partial(jax.jit, static_argnames='tiles')
def gathered_by_kernel(scores, elements, tiles=SMALL):
    return gather(scores, elements, interpret=not has_gpu(), tiles=tiles)


@functools.partial(jax.jit, static_argnames='tiles')
def gradients_by_kernels(scores, gradients, log_total, delta, elements, tiles=SMALL):
    arguments, how = (scores, gradients, log_total, delta, elements), dict(interpret=not has_gpu())
    return (
        gather_gradients(*arguments, **how, tiles=tiles),
        element_gradients(*arguments, **how, tiles=tiles and tiles._replace(tiles=1)),
    )


def by_kernels(scores, gradients, elements, tiles=SMALL):
    gathered = gathered_by_kernel(scores, elements, tiles)
    of_both = *of_queries(gathered, scores), elements
    return gathered, *gradients_by_kernels(scores, gradients, *of_both, tiles)


def assert_close(actual, expected, tolerance):
    """Compares array by array, relative to the largest number.

    A GPU's powers of two are exact to two units in the last place, and its products of float32 are
    made of three in tf32: five times the tolerance.
    """
    tolerance *= 5 if has_gpu() else 1
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape and x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max(initial=1e-30))


@pytest.mark.gpu
@pytest.mark.parametrize(
    'case, tolerance',
    [
        (dict(), 2e-6),
        (dict(channels=0, masked=True), 2e-6),
        (dict(queries=19, width=45, masked=True), 2e-6),
        (dict(width=32, channels=8), 2e-6),
        (dict(channels=20, masked=True), 2e-6),
        (dict(channels=3, dtype='bfloat16'), 2e-6),
        (dict(channels=20, dtype='float16'), 2e-6),
    ],
)
def test_sums_and_gradients_are_those_of_the_formulas(case, tolerance):
    arrays = random_case(**case)
    assert_close(by_kernels(*arrays), by_definition(*arrays), tolerance)


@pytest.mark.gpu
def test_the_tiles_that_are_chosen_give_the_same():
    arrays = random_case(queries=19, width=300, masked=True)  # two programs of eight tiles
    assert_close(by_kernels(*arrays, tiles=None), by_definition(*arrays), 1e-5)


@pytest.mark.gpu
def test_products_with_bfloat16_contents_keep_16_bits_but_for_the_gradient_of_the_contents():
    arrays = random_case(queries=19, channels=20, dtype='bfloat16', width=45)
    *actual, of_elements = by_kernels(*arrays)
    *expected, expected_of_elements = by_definition(*arrays)
    assert_close(actual, expected, 1e-4)
    assert_close(of_elements[1:], expected_of_elements[1:], 1e-4)
    assert_close(of_elements.contents, expected_of_elements.contents, 4e-3)


@pytest.mark.gpu
def test_large_logits_stay_finite():
    arrays = random_case(size=1000.0, masked=True)
    actual, expected = by_kernels(*arrays), by_definition(*arrays)
    assert np.abs(expected[0].maximum[0]).max() > 1000
    assert_close(actual[0], expected[0], 1e-3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(actual))


@pytest.mark.gpu
def test_a_query_with_nothing_to_attend_to_has_zeros():
    gathered, of_scores, of_elements = by_kernels(*random_case(masked=True))
    assert (gathered.maximum[1] == MASKED_LOGIT).all()
    zeros = jax.tree.leaves((gathered.sums, gathered.total, of_scores, of_elements))
    assert all((x[1] == 0).all() for x in zeros)


@pytest.mark.gpu
def test_a_nan_that_is_attended_to_is_seen():
    scores, _, elements = random_case()
    deviation = elements.inverse_deviation.copy()
    deviation[0, 0, 0] = np.nan
    gathered = gathered_by_kernel(scores, elements._replace(inverse_deviation=deviation))
    assert np.isnan(gathered.total[0]).all() and np.isfinite(gathered.total[1]).all()


@pytest.mark.gpu
def test_a_batch_within_a_batch_by_vmap():
    scores, _, elements = random_case()
    expected = gathered_by_kernel(scores, elements)
    one_each = jax.tree.map(lambda x: x[:, None], (scores, elements))
    gathered = jax.vmap(gathered_by_kernel)(*one_each)
    assert_close(jax.tree.map(lambda x: x[:, 0], gathered), expected, 1e-6)


def test_examples_on_several_devices():
    mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec('data')
    scores, gradients, elements = random_case()

    def parallel(f, **check):
        return jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, **check)

    # Interpreted kernels do not say what varies along the mesh; those for GPUs do.
    actual = jax.jit(parallel(gathered_by_kernel, check_vma=False))(scores, elements)
    assert_close(actual, gathered_by_kernel(scores, elements), 1e-6)
    of_each = jnp.zeros((BATCH, QUERIES, 1))
    arguments = scores, gradients, of_each, of_each, elements
    shapes = jax.eval_shape(parallel(gather), scores, elements)
    assert shapes.sums.rows.shape == scores.rows.shape
    assert jax.eval_shape(parallel(gather_gradients), *arguments).rows.shape == scores.rows.shape
    shapes = jax.eval_shape(parallel(element_gradients), *arguments)
    assert shapes.contents.shape == elements.contents.shape
