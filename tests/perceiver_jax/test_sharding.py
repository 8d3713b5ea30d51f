"""Models in data-parallel programs: meshes with explicit or automatic axes, and `jax.shard_map`."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from perceiver_jax.decoder import QueryDecoder
from perceiver_jax.dot_product_attention import attend
from perceiver_jax.encoder import Encoder
from perceiver_jax.layers import dropout
from tests.toys.small_models import ENCODER, MODELS

RNG = np.random.default_rng(1)


def _mesh(axis_type):
    return jax.make_mesh((2,), ('data',), (axis_type,), devices=jax.devices()[:2])


def _close(x, y):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), x, y)


def _train(name, implementation):
    """Loss, outputs, state and gradients of a step under explicit and automatic axes.

    Outputs do not start at zero: every parameter is moved away from its start.
    """
    function, data = MODELS[name]
    fields = dict(encoder=ENCODER, implementation=implementation, is_training=True)
    model = hk.transform_with_state(functools.partial(function, **fields))
    params, state = jax.jit(model.init)(jax.random.key(0), data)
    params = jax.tree.map(lambda p: p + 0.1 * np.sin(np.arange(p.size)).reshape(p.shape), params)

    def loss(params, data):
        outputs, new_state = model.apply(params, state, jax.random.key(1), data)
        return sum(jnp.square(x).mean() for x in jax.tree.leaves(outputs)), (outputs, new_state)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    results = []
    for axis_type in (AxisType.Explicit, AxisType.Auto):
        mesh = _mesh(axis_type)
        everywhere = NamedSharding(mesh, PartitionSpec())
        divided = NamedSharding(mesh, PartitionSpec('data'))
        results.append(run(jax.device_put(params, everywhere), jax.device_put(data, divided)))
    return results


@pytest.mark.slow
@pytest.mark.parametrize('name', MODELS)
def test_every_model_trains_under_explicit_axes_as_under_automatic_ones(name):
    explicit, automatic = _train(name, 'auto')
    _close(explicit, automatic)


@pytest.mark.parametrize('name', ['images, learned positions', 'text', 'sound'])
def test_the_plain_definition_trains_under_explicit_axes_too(name):
    explicit, automatic = _train(name, 'plain')
    _close(explicit, automatic)


@pytest.mark.parametrize('implementation', ['plain', 'auto'])
def test_shard_map_with_its_check_gives_the_same_gradients(implementation):
    def net(x):
        encode = Encoder(**ENCODER, implementation=implementation)
        latents = encode(x, is_training=False)
        return QueryDecoder(2, implementation=implementation)(x, latents, is_training=False)

    model = hk.without_apply_rng(hk.transform(net))
    x = RNG.normal(size=(4, 6, 5)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)
    everywhere, divided = PartitionSpec(), PartitionSpec('data')
    run = jax.shard_map(
        model.apply,
        mesh=_mesh(AxisType.Auto),
        in_specs=(everywhere, divided),
        out_specs=divided,
        check_vma=True,
    )

    def gradients_within(params, x):
        gradients = jax.grad(lambda params: jnp.square(model.apply(params, x)).mean())(params)
        return jax.tree.map(lambda x: x / 2, gradients)  # which are summed over the devices

    within = jax.shard_map(
        gradients_within,
        mesh=_mesh(AxisType.Auto),
        in_specs=(everywhere, divided),
        out_specs=everywhere,
        check_vma=True,
    )

    def value_and_gradients(apply):
        def loss(params):
            outputs = apply(params, x)
            return jnp.square(outputs).mean(), outputs

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected = value_and_gradients(model.apply)
    _close(value_and_gradients(run), expected)
    _close(jax.jit(within)(params, x), expected[1])


ROWS = RNG.normal(size=(2, 300, 2, 8)).astype(np.float32)
FEW = ROWS[:, :20]
MASK = RNG.random((2, 1, 300)) < 0.5
BIAS = RNG.normal(size=(2, 300, 2)).astype(np.float32)


@functools.cache
def _attend_plainly(longer):
    return _attention(longer, 'plain')(*_operands(longer))


def _operands(longer):
    query, key = (FEW, ROWS) if longer == 'keys' else (ROWS, FEW)
    keys = key.shape[1]
    return query, key, key[..., :4], MASK[:, :, :keys], BIAS[:, :keys]


def _attention(longer, implementation):
    def loss(query, key, value, mask, bias):
        how = dict(key_bias=bias, implementation=implementation, chunk_size=128)
        average = attend(query, key, value, mask, **how)
        return jnp.square(average).sum(), average

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 4), has_aux=True))


@pytest.mark.parametrize('kind', ['explicit', 'explicit, some divided', 'shard_map'])
@pytest.mark.parametrize('longer', ['rows', 'keys'])
def test_chunks_are_laid_out_like_the_operands(longer, kind):
    run, operands = _attention(longer, 'chunked'), _operands(longer)
    divided = PartitionSpec('data')
    if kind == 'shard_map':

        def local(*operands):
            (_, average), gradients = run(*operands)
            return average, gradients

        mapped = jax.shard_map(
            local, mesh=_mesh(AxisType.Auto), in_specs=divided, out_specs=divided, check_vma=True
        )
        average, gradients = jax.jit(mapped)(*operands)
    else:
        mesh, some = _mesh(AxisType.Explicit), kind == 'explicit, some divided'
        specs = [PartitionSpec() if some and i != 1 else divided for i in range(len(operands))]
        operands = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(operands, specs, strict=True)
        ]
        (_, average), gradients = run(*operands)
    (_, expected), expected_gradients = _attend_plainly(longer)
    _close((average, gradients), (expected, expected_gradients))


@pytest.mark.parametrize('chunk_size', [None, 128])
def test_as_many_inputs_as_pixels_of_imagenet_under_shard_map(chunk_size):
    query = RNG.normal(size=(2, 64, 1, 4)).astype(np.float32)
    key = RNG.normal(size=(2, 50_176 if chunk_size is None else 300, 1, 4)).astype(np.float32)
    divided = PartitionSpec('data')

    def mapped(check):
        return jax.jit(
            jax.shard_map(
                lambda query, key: attend(query, key, key, chunk_size=chunk_size),
                mesh=_mesh(AxisType.Auto),
                in_specs=divided,
                out_specs=divided,
                check_vma=check,
            )
        )(query, key)

    np.testing.assert_array_equal(mapped(check=True), mapped(check=False))


def test_dropout_drops_the_same_values_under_explicit_axes():
    def drop(x):
        return hk.transform(lambda x: dropout(x, 0.3, is_training=True)).apply(
            {}, jax.random.key(0), x
        )

    x = np.ones((4, 50), np.float32)
    mesh = _mesh(AxisType.Explicit)
    divided = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    np.testing.assert_array_equal(jax.jit(drop)(divided), jax.jit(drop)(x))
