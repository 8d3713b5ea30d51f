import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.inputs import BatchNorm, ImageInputs, permutation
from perceiver_jax.position_encoding import fourier_features, grid_positions

FOURIER = dict(num_bands=3, max_resolution=(7, 5))


def images(batch=2, height=7, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def build(module=ImageInputs, **fields):
    def forward(x, is_training):
        return module(**fields, name='inputs')(x, is_training=is_training)

    return hk.transform_with_state(forward)


def run(x, **fields):
    model = build(**fields)
    params, state = model.init(jax.random.key(0), x, False)
    return model.apply(params, state, None, x, False)[0], params


def test_pixels_with_fourier_features():
    x = images()
    output, params = run(x, **FOURIER)
    assert output.shape == (2, 35, 3 + 2 * 7)
    assert params == {}
    np.testing.assert_array_equal(output[1, 2 * 5 + 4, :3], x[1, 2, 4])
    positions = fourier_features(grid_positions((7, 5)), **FOURIER)
    np.testing.assert_array_equal(output[1, 2 * 5 + 4, 3:], positions[2, 4])


def test_permuted_pixels_keep_their_positions():
    x = images()
    output, _ = run(x, **FOURIER)
    shuffled, _ = run(x, **FOURIER, permutation_seed=11)
    order = permutation(11, 35)
    assert sorted(order) == list(range(35)) and list(order) != list(range(35))
    np.testing.assert_array_equal(shuffled, output[:, order])


def test_learned_positions_of_the_icml_paper():
    output, params = run(images(), positions='learned', position_channels=13, position_init_std=1.0)
    assert output.shape == (2, 35, 16)
    assert jax.tree.map(jnp.shape, params) == {'inputs/position_encoding': {'positions': (35, 13)}}


def test_learned_positions_of_perceiver_io():
    output, params = run(
        images(),
        contents='conv1x1',
        contents_channels=11,
        positions='learned',
        position_channels=13,
        position_init_std=0.02,
        project_positions_to=17,
    )
    assert output.shape == (2, 35, 11 + 17)
    assert jax.tree.map(jnp.shape, params) == {
        'inputs/conv1x1': {'w': (3, 11), 'b': (11,)},
        'inputs/position_encoding': {'positions': (35, 13)},
        'inputs/position_encoding/projection': {'w': (13, 17), 'b': (17,)},
    }


CONV = dict(contents='conv7x7', contents_channels=11, num_bands=2, max_resolution=(6, 4))


@pytest.mark.parametrize('is_training', [True, False])
def test_conv_initialises_in_both_modes(is_training):
    x = images(height=23, width=13)
    model = build(**CONV)
    params, state = model.init(jax.random.key(0), x, is_training)
    assert jax.tree.map(jnp.shape, params) == {
        'inputs/conv7x7': {'w': (7, 7, 3, 11)},
        'inputs/conv7x7/batch_norm': {'scale': (11,), 'offset': (11,)},
    }
    batch_norm = state['inputs/conv7x7/batch_norm']
    np.testing.assert_array_equal(batch_norm['mean'], 0)
    np.testing.assert_array_equal(batch_norm['variance'], 1)
    assert batch_norm['counter'] == 0
    output, _ = model.apply(params, state, None, x, False)
    assert output.shape == (2, 6 * 4, 11 + 2 * 5)  # a quarter of either side, rounded up


def test_batch_norm_equals_haikus_running_averages():
    def ours(x, is_training):
        return BatchNorm(name='norm')(x, is_training=is_training)

    def haikus(x, is_training):
        return hk.BatchNorm(True, True, 0.9, name='norm')(x, is_training)

    x = [3 * images(seed=i) + i for i in range(4)]
    outputs = []
    for forward in (ours, haikus):
        model = hk.transform_with_state(forward)
        params, state = model.init(jax.random.key(0), x[0], True)
        for batch in x[:3]:
            trained, state = model.apply(params, state, None, batch, True)
        evaluated, _ = model.apply(params, state, None, x[3], False)
        outputs.append((trained, evaluated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *outputs)
    np.testing.assert_allclose(outputs[0][0].mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(outputs[0][0].std((0, 1, 2)), 1, atol=1e-3)


def test_batch_norm_across_a_mapped_axis_equals_the_whole_batch():
    x = images(batch=6)

    def normalise(axis, x):
        model = build(BatchNorm, cross_replica_axis=axis)
        params, state = model.init(jax.random.key(0), x, True)
        return model.apply(params, state, None, x, True)[0]

    parts = jax.vmap(lambda part: normalise('data', part), axis_name='data')(
        x.reshape(3, 2, *x.shape[1:])
    )
    np.testing.assert_allclose(parts.reshape(x.shape), normalise(None, x), atol=1e-5)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(contents='patches', **FOURIER), "'patches'"),
        (dict(positions='rotary'), "'rotary'"),
        (dict(num_bands=3), 'max_resolution'),
        (dict(contents='conv1x1', **FOURIER), 'contents_channels'),
        (dict(positions='learned'), 'position_channels'),
    ],
)
def test_fields_that_do_not_fit_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        run(images(), **fields)


def test_images_need_four_axes():
    with pytest.raises(ValueError, match=r'\(7, 5, 3\)'):
        run(images()[0], **FOURIER)
