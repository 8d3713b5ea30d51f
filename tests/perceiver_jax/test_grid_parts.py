"""Attention to and from grids against softmax attention of the elements written out."""

import dataclasses
import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet
from perceiver_jax.attention import CrossAttend
from perceiver_jax.chunks import TILE_BYTES, compiling_for
from perceiver_jax.encoder import Encoder
from perceiver_jax.errors import Refused
from perceiver_jax.grid_keys import attend_to_grid
from perceiver_jax.grid_parts import LARGER_TILE
from perceiver_jax.grid_queries import attend_from_grid
from perceiver_jax.grids import fourier_grid, permutation
from perceiver_jax.inputs import FlowInputs
from perceiver_jax.models import image_classifier
from perceiver_jax.recording import record_attention
from perceiver_jax.weights.released import RELEASED
from tests.toys.modules import random, shapes_in

pytestmark = pytest.mark.gpu
B, T, S, V, SCALE = 2, 5, 6, 3, 0.4
CHANNELS = 3 + 2 * 5  # of the elements of most grids here
# Sides of a grid, channels of its contents, rows in a chunk; which elements are masked; whether
# only some rows are there, with channels that all elements share.
GRIDS = [
    ((3, 7), 3, 1, None, False),
    ((7, 4), 0, 3, 'for all examples', True),
    ((2, 3, 4), 6, 4, 'for each example, shuffled', True),
    ((5, 6), 2, 5, 'for each example, one of which has none', False),
]


def softmax_attention(query, key, value, mask, bias=0.0):
    logits = jnp.einsum('btf,bsf->bts', query, key) * SCALE + bias
    weights = jnp.where(mask, jnp.exp(logits - logits.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    return jnp.einsum('bts,bsv->btv', weights / jnp.where(total == 0, 1, total), value)


def normalised(array):
    centred = array - array.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


def grid_of(contents, **fields):
    sides = contents.shape[1:-1]
    return dataclasses.replace(fourier_grid(contents, 2, sides), **fields)


def outputs_and_gradients(function, *arrays):
    output, pull = jax.vjp(function, *arrays)
    cotangents = jnp.cos(jnp.arange(output.size, dtype=output.dtype))
    return output, pull(cotangents.reshape(output.shape))


def assert_close(actual, expected, tolerance):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def double(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize('sides, channels, rows, masked', [case[:4] for case in GRIDS])
def test_queries_find_in_a_grid_what_they_find_in_its_array(sides, channels, rows, masked):
    with jax.enable_x64(True):
        contents = double(B, *sides, channels)
        query = double(B, T, grid_of(contents).shape[-1], seed=1)
        mask = None
        if masked is not None:
            mask = np.random.default_rng(2).random((B, 1, np.prod(sides))) < 0.5
            mask = mask[:1] if masked == 'for all examples' else mask
            mask[0] &= 'none' not in masked
        fields = dict(permutation_seed=7) if masked and 'shuffled' in masked else {}

        def on_grid(query, contents):
            grid = grid_of(contents, **fields)
            return attend_to_grid(query, grid, mask, scale=SCALE, rows=rows)

        def written_out(query, contents):
            keys = normalised(grid_of(contents, **fields).array())
            return softmax_attention(query, keys, keys, True if mask is None else mask)

        actual = outputs_and_gradients(jax.jit(on_grid), query, contents)
        assert_close(actual, outputs_and_gradients(written_out, query, contents), 1e-12)


@pytest.mark.parametrize('sides, channels, rows, _, part', GRIDS)
def test_a_grid_of_queries_finds_what_its_array_finds(sides, channels, rows, _, part):
    with jax.enable_x64(True):
        contents, common, some = double(B, *sides, channels), None, None
        if part:
            common, some = double(4, seed=5), jnp.array([1, 0, 2])
            contents = double(B, 3, sides[-1], channels)
        template = grid_of(double(B, *sides, channels))
        key = double(B, S, template.shape[-1] + (4 if part else 0), seed=1)
        value, bias = double(B, S, V, seed=2), double(B, S, seed=3)

        def grid_with(contents, common):
            return dataclasses.replace(template, contents=contents, common=common, rows=some)

        def on_grid(contents, common, key, value, bias):
            grid = grid_with(contents, common)
            return attend_from_grid(grid, key, value, bias, scale=SCALE, rows=rows)

        def written_out(contents, common, key, value, bias):
            queries = normalised(grid_with(contents, common).array())
            return softmax_attention(queries, key, value, True, bias[:, None])

        arrays = contents, common, key, value, bias
        actual = outputs_and_gradients(jax.jit(on_grid), *arrays)
        assert_close(actual, outputs_and_gradients(written_out, *arrays), 1e-12)


def test_logits_of_a_thousand():
    grid = grid_of(random(B, 4, 9, 3))
    query = 300 * random(B, T, CHANNELS, seed=1)
    keys = normalised(grid.array())
    assert jnp.abs(jnp.einsum('btf,bsf->bts', query, keys)).max() > 1000
    for factor in (1, 1000):  # where a single element has all the weight, and far beyond
        actual = attend_to_grid(factor * query, grid, None, scale=SCALE, rows=1)
        expected = softmax_attention(factor * query, keys, keys, True)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
    value, bias = random(B, S, V, seed=2), 1000 * random(B, S, seed=3)
    key = 100 * random(B, S, CHANNELS, seed=4)
    actual = attend_from_grid(grid, key, value, bias, scale=SCALE, rows=1)
    expected = softmax_attention(keys, key, value, True, bias[:, None])
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_in_bfloat16_sums_are_float32():
    arrays = random(1, 40, 50, 3), random(1, T, CHANNELS, seed=1) / 10
    contents, query = (jnp.asarray(x, jnp.bfloat16) for x in arrays)

    def both(contents, query):
        grid = grid_of(contents)
        to = attend_to_grid(query, grid, None, scale=SCALE, rows=1)
        of = attend_from_grid(grid, query, query, query[..., 0], scale=SCALE, rows=1)
        return jnp.concatenate([to, of], axis=1)

    output, (of_contents, of_query) = outputs_and_gradients(jax.jit(both), contents, query)
    assert output.dtype == of_contents.dtype == of_query.dtype == jnp.bfloat16
    contents, query = contents.astype(jnp.float32), query.astype(jnp.float32)
    elements = normalised(grid_of(contents).array())
    to = softmax_attention(query, elements, elements, True)
    of = softmax_attention(elements, query, query, True, query[:, None, :, 0])
    expected = jnp.concatenate([to, of], axis=1)
    np.testing.assert_allclose(output.astype(jnp.float32), expected, rtol=8e-3, atol=5e-4)


def test_the_kernel_gives_what_chunks_give():
    contents, query = random(B, 4, 9, 3), random(B, T, CHANNELS, seed=1)
    mask = np.random.default_rng(2).random((B, 1, 36)) < 0.5

    def attend(query, contents, kernel):
        return attend_to_grid(query, grid_of(contents), mask, scale=SCALE, rows=2, kernel=kernel)

    expected = outputs_and_gradients(jax.jit(lambda *x: attend(*x, None)), query, contents)
    for kernel in ('interpreted', 'compiled'):  # compiled for a CPU, there is no kernel
        function = jax.jit(functools.partial(attend, kernel=kernel))
        assert_close(outputs_and_gradients(function, query, contents), expected, 1e-4)
    program = jax.make_jaxpr(lambda *x: attend(*x, 'compiled'))(query, contents)
    assert 'pallas_call' in str(program)


def test_under_vmap_scan_and_remat():
    contents, query = random(3, B, 4, 5, 3), random(3, B, T, CHANNELS, seed=1)

    @functools.partial(jax.vmap, in_axes=(0, 0))
    @jax.grad
    def gradient(query, contents):
        @jax.checkpoint
        def look(query):
            return query + attend_to_grid(query, grid_of(contents), None, scale=SCALE, rows=2)

        query, _ = jax.lax.scan(lambda query, _: (look(query), None), query, None, 2)
        return (query**2).sum()

    def expected(query, contents):
        keys = normalised(grid_of(contents).array())
        for _ in range(2):
            query = query + softmax_attention(query, keys, keys, True)
        return (query**2).sum()

    actual = jax.jit(gradient)(query, contents)
    for i in range(3):
        one = jax.grad(expected)(query[i], contents[i])
        np.testing.assert_allclose(actual[i], one, rtol=1e-3, atol=1e-4)


def test_second_derivatives_and_forward_mode():
    contents, query = random(1, 2, 3, 1), random(1, 1, 11, seed=1)

    def loss(query, written_out):
        if written_out:
            keys = normalised(grid_of(contents).array())
            return (softmax_attention(query, keys, keys, True) ** 3).sum()
        return (attend_to_grid(query, grid_of(contents), None, scale=SCALE, rows=1) ** 3).sum()

    hessian = jax.jit(jax.hessian(loss), static_argnums=1)
    expected = hessian(query, True)
    np.testing.assert_allclose(hessian(query, False), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(Refused, match="Forward-mode .* needs implementation='plain'"):
        jax.jvp(lambda query: loss(query, False), (query,), (query,))


def build(implementation, **fields):
    def forward(queries, inputs, mask=None):
        module = CrossAttend(implementation=implementation, name='look', **fields)
        with record_attention('look') as weights:
            return module(queries, inputs, mask, is_training=True), weights[0]

    return hk.without_apply_rng(hk.transform(forward))


def compared(queries, inputs, mask=None, implementation='auto', **fields):
    """Holds outputs, weights and gradients against the definition; returns the program's text."""
    modules = build('plain', **fields), build(implementation, **fields)
    params, same = (
        jax.jit(module.init)(jax.random.key(0), queries, inputs, mask) for module in modules
    )
    jax.tree.map(np.testing.assert_array_equal, params, same)
    rng = np.random.default_rng(3)  # biases and affines that are not zero and one
    params = jax.tree.map(lambda x: x + rng.normal(scale=0.3, size=x.shape).astype('f'), params)

    def run(module, params, queries, inputs):
        (output, weights), pull = jax.vjp(
            lambda *arrays: module.apply(*arrays, mask), params, queries, inputs
        )
        gradients = pull((jnp.sin(jnp.arange(output.size)).reshape(output.shape), 0 * weights))
        return output, weights, gradients

    arrays = params, queries, inputs
    expected, actual = (jax.jit(functools.partial(run, module))(*arrays) for module in modules)
    assert_close(actual, expected, 2e-4)
    return str(jax.make_jaxpr(lambda *x: modules[1].apply(*x, mask)[0])(*arrays))


@pytest.mark.parametrize('implementation, seed', [('auto', 7), ('chunked', None)])
def test_cross_attends_read_grids(implementation, seed):
    queries, grid = random(B, T, 24), grid_of(random(B, 6, 7, 3, seed=1), permutation_seed=seed)
    mask = np.random.default_rng(2).random((B, 1, 42)) < 0.5
    program = compared(queries, grid, mask, implementation=implementation)
    assert f'[{B},6,7,{CHANNELS}]' not in program


def test_grids_of_queries_read_arrays():
    grid, inputs = grid_of(random(B, 6, 7, 3), common=random(4)), random(B, T, 24, seed=1)
    compared(grid, inputs)


@pytest.mark.parametrize(
    'inputs, mask, fields',
    [
        (grid_of(random(B, 6, 7, 3)), np.random.default_rng(2).random((B, T, 42)) < 0.5, {}),
        (grid_of(random(B, 6, 7, 3)), None, dict(num_heads=2, qk_channels=18)),
        (grid_of(random(B, 6, 1, 3)), None, {}),
        (grid_of(random(B, 1, 9, 3)), None, {}),
        (grid_of(random(B, 6, 7, 3), common=random(4)), None, {}),
        (grid_of(random(B, 2, 7, 3), positions=grid_of(random(B, 6, 7, 3)).positions,
                 rows=jnp.array([1, 4])), None, {}),
    ],
)  # fmt: skip
def test_other_grids_are_written_out(inputs, mask, fields):
    module = hk.transform(
        lambda queries, x: CrossAttend(**fields)(queries, x, mask, is_training=True)
    )
    queries = random(B, T, 24, seed=1)
    params = jax.jit(module.init)(jax.random.key(0), queries, inputs)
    outputs = [jax.jit(module.apply)(params, None, queries, x) for x in (inputs, inputs.array())]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_shuffled_queries_stay_in_their_order():
    grid, inputs = grid_of(random(B, 6, 7, 3)), random(B, T, 24, seed=1)
    module = build('auto', use_query_residual=False)
    params = jax.jit(module.init)(jax.random.key(0), grid, inputs)
    output, shuffled = (
        jax.jit(module.apply)(params, dataclasses.replace(grid, permutation_seed=seed), inputs)[0]
        for seed in (None, 7)
    )
    np.testing.assert_allclose(shuffled, output[:, permutation(7, 42)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('fields', [{}, dict(permutation_seed=7)])
def test_a_mask_may_be_one_for_all_elements(fields):
    grid, query = grid_of(random(B, 4, 5, 3), **fields), random(B, T, CHANNELS, seed=1)
    output = attend_to_grid(query, grid, None, scale=SCALE)
    mask = np.array([True, False])[:, None, None]  # of the first example all, of the other none
    some = attend_to_grid(query, grid, mask, scale=SCALE)
    np.testing.assert_allclose(some[0], output[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(some[1], 0 * output[1])


def test_what_masked_elements_hold_reaches_nothing():
    contents, query = random(B, 4, 5, 3), random(B, T, CHANNELS, seed=1)
    mask = np.random.default_rng(2).random((B, 1, 20)) < 0.5
    spoilt = np.where(mask.reshape(B, 4, 5, 1), contents, np.nan)

    @jax.jit
    def run(contents):
        return outputs_and_gradients(
            lambda *x: attend_to_grid(x[0], grid_of(x[1]), mask, scale=SCALE), query, contents
        )

    jax.tree.map(np.testing.assert_array_equal, run(spoilt), run(contents))


def variant(name):
    model = imagenet.get_config(name).model.to_dict()

    def classify(images):
        return image_classifier(images, is_training=True, **model)

    return classify, (1, 224, 224, 3)


def flow_encoder():
    model = RELEASED['optical_flow'].arguments

    def encode(frames):
        inputs = FlowInputs(**model['inputs'])(frames, is_training=True)
        return Encoder(**model['encoder'])(inputs, is_training=True)

    return encode, (1, 2, 368, 496, 3)


# The model, the sides of its grid, and the channels of an element before its features.
PROGRAMS = {
    'perceiver': (variant('perceiver'), (224, 224), 3),
    'io_fourier': (variant('io_fourier'), (224, 224), 3),
    'io_conv': (variant('io_conv'), (56, 56), 64),
    'flow': (flow_encoder(), (368, 496), 64),
}


@pytest.mark.parametrize('name', PROGRAMS)
def test_neither_the_elements_nor_the_weights_ever_exist(name):
    (forward, shape), sides, channels = PROGRAMS[name]
    model = hk.transform_with_state(forward)
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)

    def loss(params, state, inputs):
        return model.apply(params, state, None, inputs)[0].sum()

    with compiling_for('cpu'):
        program = jax.make_jaxpr(jax.grad(loss, (0, 2)))(params, state, inputs)
    num_elements, seen = np.prod(sides), 0
    for shape in shapes_in(program.jaxpr):
        whole = num_elements in shape or sides in zip(shape, shape[1:], strict=False)
        if whole and {512, 2048}.isdisjoint(shape):
            seen += 1
            assert np.prod(shape) <= num_elements * (channels + 2), shape
        elif whole or (sides[-1] in shape and len(shape) > 3):  # logits of some rows, or of all
            assert np.prod(shape) <= LARGER_TILE * TILE_BYTES['cpu'] / 4, shape
    assert seen
