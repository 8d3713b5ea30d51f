import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.describe import count_flops
from perceiver_jax.chunked_attention import SMALLEST_CHUNK, choose_chunks
from perceiver_jax.chunks import TILE_BYTES, compiling_for, tile_elements
from perceiver_jax.dot_product_attention import attend
from perceiver_jax.errors import Refused
from perceiver_jax.layers import normalise
from tests.toys.modules import random, shapes_in

pytestmark = pytest.mark.gpu
IMPLEMENTATIONS = ('plain', 'chunked')


def random_case(seed):
    """Arrays of random sizes with a random mask, bias, scale, preparation and chunk size."""
    rng = np.random.default_rng(seed)
    batch, heads = rng.integers(1, 4, size=2)
    rows, keys, channels, value_channels = rng.integers(1, 40, size=4)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    query, key = array(batch, rows, heads, channels + 1), array(batch, keys, heads, channels + 1)
    value = None if seed % 3 == 0 else array(batch, keys, heads, value_channels)
    mask = None
    if seed % 4:
        sides = [n if rng.random() < 0.7 else 1 for n in (batch, rows, keys)]
        mask = jnp.asarray(rng.random(sides) < rng.choice([0.1, 0.5, 0.9]))
    how = dict(
        scale=float(rng.uniform(0.1, 1)),
        key_bias=array(batch, keys, heads) if seed % 2 else None,
        prepare_query=normalise if rng.random() < 0.5 else None,
        prepare_key=normalise if rng.random() < 0.5 else None,
    )
    return query, key, value, mask, how, int(rng.integers(1, 45))


@pytest.mark.parametrize('seed', range(16))
def test_chunks_give_the_outputs_and_gradients_of_the_plain_definition(seed):
    query, key, value, mask, how, chunk_size = random_case(seed)
    arrays = {'query': query, 'key': key, 'value': value, 'key_bias': how.pop('key_bias')}

    def run(arrays, **implementation):
        return attend(
            arrays['query'],
            arrays['key'],
            arrays['value'],
            mask,
            key_bias=arrays['key_bias'],
            **how,
            **implementation,
        )

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(implementation, arrays):
        output, pull = jax.vjp(functools.partial(run, **dict(implementation)), arrays)
        return output, pull(random(*output.shape, seed=seed))

    ways = (
        [('implementation', 'plain')],
        [('implementation', 'chunked'), ('chunk_size', chunk_size)],
    )
    expected, result = (output_and_gradients(tuple(way), arrays) for way in ways)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), result, expected
    )


@pytest.mark.parametrize('rows, keys', [(64, 3000), (3000, 64)])
def test_the_whole_matrix_never_exists(rows, keys):
    query, key = random(1, rows, 1, 8), random(1, keys, 1, 8)

    def largest(implementation):
        def loss(query, key):
            how = dict(implementation=implementation, chunk_size=256)
            return attend(query, key, None, **how).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(query, key).jaxpr
        return max(math.prod(shape) for shape in shapes_in(jaxpr))

    assert largest('plain') == rows * keys
    assert largest('chunked') == max(64 * 256, 3000 * 8)


def test_chunks_are_of_the_longer_side_and_fill_a_tile():
    def chunks(platform, batch, heads, rows, keys, size=None):
        with compiling_for(platform):
            return choose_chunks(batch=batch, heads=heads, rows=rows, keys=keys, size=size)

    tile = TILE_BYTES['cpu'] // 4
    assert chunks('cpu', 1, 1, 512, 50_176) == ('keys', 1792)  # of at most 2048, one that divides
    assert chunks('cpu', 1, 1, 512, 50_177) == ('keys', tile // 512)  # a prime number
    assert chunks('cpu', 4, 8, 50_176, 128) == ('rows', tile // (4 * 8 * 128))
    assert chunks('cpu', 64, 16, 2048, 2048) == ('rows', SMALLEST_CHUNK)
    assert chunks('cpu', 1, 1, 512, 512) == ('rows', 512)
    assert chunks('cpu', 1, 1, 512, 3000) == ('keys', 3000)  # a loop of two is not worth it
    assert chunks('cpu', 1, 1, 512, 50_176, 100) == ('keys', 100)
    assert chunks('gpu', 8, 1, 512, 50_176) == ('keys', 50_176)
    assert chunks('gpu', 64, 1, 512, 50_176) == ('keys', 3584)


def test_on_gpus_channels_are_padded_to_eights_and_nothing_changes():
    query, key, value = random(1, 5, 1, 3), random(1, 7, 1, 3), random(1, 7, 1, 11)

    def loss(implementation, *arrays):
        return (attend(*arrays, implementation=implementation) ** 2).sum()

    expected = jax.grad(functools.partial(loss, 'plain'), (0, 1, 2))(query, key, value)
    gradients = jax.grad(functools.partial(loss, 'chunked'), (0, 1, 2))
    with compiling_for('gpu'):
        found = gradients(query, key, value)
        program = jax.make_jaxpr(gradients)(query, key, value).jaxpr
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected
    )
    padded = {(1, 1, 5, 8), (1, 1, 7, 8), (1, 1, 7, 16), (1, 1, 5, 16)}
    assert padded <= set(shapes_in(program))


def test_what_is_compiled_for_another_platform_is_traced_again():
    tiles = jax.jit(lambda x: x + tile_elements())
    assert tiles(0) == TILE_BYTES['cpu'] // 4
    with compiling_for('tpu'):
        assert tiles(0) == TILE_BYTES['tpu'] // 4
    assert tiles(0) == TILE_BYTES['cpu'] // 4
    with pytest.raises(Refused, match="'cpu', 'gpu', 'tpu'.*not 'cuda'"), compiling_for('cuda'):
        pass


def test_the_work_is_that_of_the_definition():
    query, key, value = random(1, 20, 1, 8), random(1, 300, 1, 8), random(1, 300, 1, 16)
    for how in (dict(implementation='plain'), dict(implementation='chunked', chunk_size=60)):
        flops = count_flops(functools.partial(attend, **how), query, key, value)
        assert flops == 2 * 20 * 300 * (8 + 16)


def test_in_bfloat16_sums_are_float32():
    arrays = [jnp.asarray(random(1, n, 1, 16, seed=i)) for i, n in enumerate((8, 4096, 4096))]
    narrow = [x.astype(jnp.bfloat16) for x in arrays]
    expected = attend(*[x.astype(jnp.float32) for x in narrow], implementation='plain')
    output = attend(*narrow, implementation='chunked', chunk_size=128)
    assert output.dtype == jnp.bfloat16
    difference = output.astype(jnp.float32) - expected
    assert np.linalg.norm(difference) / np.linalg.norm(expected) < 4e-3  # one rounding, not 32
    gradients = jax.grad(lambda *x: attend(*x, chunk_size=128).astype(jnp.float32).sum(), (0, 1, 2))
    assert {g.dtype for g in gradients(*narrow)} == {jnp.dtype('bfloat16')}


def test_second_derivatives():
    query, key, value = (jnp.asarray(random(1, n, 1, 3, seed=i)) for i, n in enumerate((2, 5, 5)))

    def norm_of_gradient(query, implementation):
        def loss(query):
            how = dict(implementation=implementation, chunk_size=2)
            return (attend(query, key, value, **how) ** 3).sum()

        return (jax.grad(loss)(query) ** 2).sum()

    both = [jax.grad(norm_of_gradient)(query, i) for i in IMPLEMENTATIONS]
    np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-5)


def test_under_vmap():
    arrays = [random(4, 1, n, 1, 3, seed=i) for i, n in enumerate((2, 5, 5))]
    chunked = functools.partial(attend, implementation='chunked', chunk_size=2)
    outputs = jax.vmap(chunked)(*arrays)
    for one, output in zip(
        itertools.starmap(attend, zip(*arrays, strict=True)), outputs, strict=True
    ):
        np.testing.assert_allclose(output, one, rtol=1e-5, atol=1e-6)
