import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.convolution import (
    BatchNorm,
    ConvDownsample,
    ConvStem,
    convolve,
    frozen_batch_norm,
    max_pool,
)
from perceiver_jax.errors import Refused


def images(batch=2, height=7, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


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
        model = hk.transform_with_state(
            lambda x, is_training: BatchNorm(axis)(x, is_training=is_training)
        )
        params, state = model.init(jax.random.key(0), x, True)
        return model.apply(params, state, None, x, True)[0]

    parts = jax.vmap(lambda part: normalise('data', part), axis_name='data')(
        x.reshape(3, 2, *x.shape[1:])
    )
    np.testing.assert_allclose(parts.reshape(x.shape), normalise(None, x), atol=1e-5)


def test_a_frozen_batch_norm_uses_and_keeps_its_averages():
    def forward(x, is_training):
        for name in ('first', 'second'):
            x = ConvDownsample(3, name=name)(x, is_training=is_training)
        return x

    model = hk.transform_with_state(forward)
    x = images(height=19, width=17)
    params, state = model.init(jax.random.key(0), x, True)
    with frozen_batch_norm(['first/batch_norm', 'second/batch_norm']):
        frozen, kept = model.apply(params, state, None, x, True)
    evaluated, _ = model.apply(params, state, None, x, False)
    np.testing.assert_array_equal(frozen, evaluated)
    jax.tree.map(np.testing.assert_array_equal, kept, state)

    with frozen_batch_norm(['first/batch_norm']):
        _, kept = model.apply(params, state, None, x, True)
    counters = {
        name: int(values['counter'] - state[name]['counter']) for name, values in kept.items()
    }
    assert counters == {'first/batch_norm': 0, 'second/batch_norm': 1}
    _, left = model.apply(params, state, None, x, True)  # no longer frozen
    assert all(left[name]['counter'] > state[name]['counter'] for name in state)


@pytest.mark.parametrize('module', [lambda: ConvDownsample(4), BatchNorm])
def test_integer_images_are_refused(module):
    model = hk.transform_with_state(lambda x: module()(x, is_training=False))
    with pytest.raises(Refused, match='floating-point dtype, .* not uint8'):
        model.init(jax.random.key(0), np.ones((2, 7, 5, 3), np.uint8))


@pytest.mark.parametrize('is_training', [False, True])
def test_no_images_give_no_outputs_and_leave_the_averages(is_training):
    model = hk.transform_with_state(
        lambda x, is_training: ConvDownsample(4)(x, is_training=is_training)
    )
    params, state = model.init(jax.random.key(0), images(), True)
    _, state = model.apply(params, state, None, images(), True)
    output, after = model.apply(params, state, None, images(batch=0), is_training)
    assert output.shape == (0, 2, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, after, state)


@pytest.mark.parametrize('side, stride, size', [(7, 2, 8), (7, 2, 9), (3, 1, 5), (1, 2, 5)])
def test_centred_zeros_are_as_many_on_either_side(side, stride, size):
    """The sum over a window of ones counts the pixels that the window covers."""
    ones = np.ones((1, size, size, 1), np.float32)
    counts = convolve(ones, np.ones((side, side, 1, 1)), stride=stride, padding='centred')
    reach = side // 2
    covered = [min(at + reach, size - 1) - max(at - reach, 0) + 1 for at in range(0, size, stride)]
    np.testing.assert_array_equal(counts[0, :, :, 0], np.outer(covered, covered))


def test_max_pooling_never_takes_what_is_beyond_the_border():
    x = -np.arange(1.0, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    centred = max_pool(x, padding='centred')[0, :, :, 0]
    np.testing.assert_array_equal(centred, [[-1, -2], [-5, -6]])
    np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], [[-1, -3], [-9, -11]])


def test_an_unknown_padding_is_refused():
    with pytest.raises(Refused, match="padding must be 'same' or 'centred', not 'valid'"):
        convolve(images(), np.ones((3, 3, 3, 1)), padding='valid')


STEM = dict(channels=(4, 6), kernels=((3, 5), (1, 3)), strides=((2, 1), (2, 2)))


def test_a_stem_is_convolutions_and_gelu():
    def forward(x):
        return ConvStem(**STEM, name='stem')(x)

    def haikus(x):
        for i in range(2):
            sizes = STEM['channels'][i], STEM['kernels'][i], STEM['strides'][i]
            x = jax.nn.gelu(hk.Conv2D(*sizes, name=f'conv_{i}')(x))
        return x

    module, peer = (hk.without_apply_rng(hk.transform(f)) for f in (forward, haikus))
    params = module.init(jax.random.key(0), images())['stem']
    params = {name: x + 0.1 for name, x in params.items()}
    theirs = {f'conv_{i}': {name: params[f'{name}_{i}'] for name in 'wb'} for i in range(2)}
    outputs = module.apply({'stem': params}, images())
    assert outputs.shape == (2, 2, 3, 6)
    with jax.numpy_rank_promotion('allow'):
        expected = peer.apply(theirs, images())
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(channels=(4,)), 'as many channels as kernels and strides'),
        (dict(channels=(), kernels=(), strides=()), 'as many channels'),
        (dict(channels=(4, 6.5)), 'as an integer, not 6.5'),
        (dict(channels=(4, 0)), 'at least 1'),
        (dict(strides=((2, 0), (1, 1))), 'at least 1'),
        (dict(kernels=((3, 3), (3, 3, 3))), 'kernels'),
        (dict(kernels=(3, 3)), 'kernels'),
    ],
)
def test_stems_that_cannot_be_are_refused(fields, message):
    with pytest.raises(Refused, match=message):
        hk.transform(lambda x: ConvStem(**{**STEM, **fields})(x)).init(None, images())
