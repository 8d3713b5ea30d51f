import functools
import importlib.util
import math

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import Refused
from perceiver_jax.baselines.classifiers import image_baseline, point_baseline
from perceiver_jax.grids import permutation
from tests.toys import torch_networks

FOURIER = dict(num_bands=64, max_resolution=(224, 224))
RGB = dict(positions='none')
POINTS = dict(num_bands=64, max_resolution=(2240, 2240, 2240))
NETWORKS = {
    'resnet': dict(kind='resnet', blocks=(2, 2), channels=4),
    'vit': dict(
        kind='vit',
        patch_size=3,
        channels=24,
        num_self_attends=2,
        self_attend=dict(num_heads=3, widening_factor=4),
    ),
    'transformer': dict(
        kind='transformer', channels=24, num_self_attends=2, self_attend=dict(num_heads=3)
    ),
}


def images(batch=2, height=9, width=7, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def points(batch=2, number=25, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, number, 3)).astype(np.float32)


def baseline(function=image_baseline, **arguments):
    arguments = {'num_classes': 5, **arguments}
    return hk.transform_with_state(functools.partial(function, **arguments))


def drawn(model, *inputs):
    """Parameters and state whose values follow from their names."""
    shapes = jax.eval_shape(
        functools.partial(model.init, is_training=False), jax.random.key(0), *inputs
    )
    return tuple(
        {
            module: {
                name: torch_networks.draw(f'{module}:{name}', x.shape)
                if x.dtype == jnp.float32
                else np.zeros(x.shape, x.dtype)
                for name, x in values.items()
            }
            for module, values in tree.items()
        }
        for tree in shapes
    )


def logits(model, weights, *inputs, is_training=False):
    return np.asarray(
        jax.jit(functools.partial(model.apply, is_training=is_training))(*weights, None, *inputs)[0]
    )


@pytest.mark.golden
@pytest.mark.parametrize('kind', ['resnet', 'vit'])
def test_the_logits_are_those_of_transformers(kind):
    """The stored ones were computed by torch; where it is installed, they are computed again."""
    expected = np.load(torch_networks.GOLDEN)[kind]
    if importlib.util.find_spec('torch') and importlib.util.find_spec('transformers'):
        np.testing.assert_allclose(torch_networks.outputs()[kind], expected, atol=1e-5)
    shape = torch_networks.IMAGES if kind == 'resnet' else torch_networks.VIT_IMAGES
    network = dict(NETWORKS[kind], **(dict(padding='centred') if kind == 'resnet' else {}))
    x = torch_networks.images(shape)
    model = baseline(num_classes=torch_networks.NUM_CLASSES, inputs=RGB, network=network)
    ours = logits(model, drawn(model, x), x)
    assert np.abs(expected).max() > 0.1 and np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    'inputs, network, parameters',
    [
        (RGB, dict(kind='resnet'), 25_557_032),
        (FOURIER, dict(kind='resnet'), 26_366_120),
        (RGB, dict(kind='vit'), 86_567_656),
        (FOURIER, dict(kind='vit'), 137_292_520),
    ],
)
def test_the_parameters_of_imagenet_are_as_many_as_published(inputs, network, parameters):
    model = baseline(num_classes=1000, inputs=inputs, network=network)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = functools.partial(model.init, is_training=False)
    params, _ = jax.eval_shape(init, jax.random.key(0), x)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == parameters


def test_the_parameters_for_points_are_those_of_387_channels():
    model = baseline(point_baseline, num_classes=1000, inputs=POINTS, network=dict(kind='resnet'))
    x = jax.ShapeDtypeStruct((1, 1936, 3), jnp.float32)
    init = functools.partial(model.init, is_training=False)
    params, _ = jax.eval_shape(init, jax.random.key(0), x)
    assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == 26_761_256


@pytest.mark.parametrize('seed', [None, 3])
@pytest.mark.parametrize('kind', NETWORKS)
def test_positions_once_for_all_images_give_what_written_out_ones_give(kind, seed):
    inputs = dict(num_bands=2, max_resolution=(9, 7), permutation_seed=seed)
    x = images()
    outputs = []
    for implementation in ('auto', 'plain'):
        model = baseline(inputs=inputs, network=NETWORKS[kind], implementation=implementation)
        outputs.append(logits(model, drawn(model, x), x))
    np.testing.assert_allclose(*outputs, atol=2e-5)
    assert np.abs(outputs[0]).max() > 0.1


@pytest.mark.parametrize('kind', NETWORKS)
def test_gradients_of_positions_once_are_those_of_written_out_ones(kind):
    inputs, x = dict(num_bands=2, max_resolution=(9, 7)), images()
    gradients = []
    for implementation in ('auto', 'plain'):
        model = baseline(inputs=inputs, network=NETWORKS[kind], implementation=implementation)
        params, state = drawn(model, x)

        def loss(params, model=model, state=state):
            return jnp.square(model.apply(params, state, None, x, is_training=False)[0]).sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
    scale = max(np.abs(g).max() for g in jax.tree.leaves(gradients[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), *gradients)


@pytest.mark.parametrize('kind, differs', [('resnet', True), ('vit', True), ('transformer', False)])
def test_only_a_transformer_of_all_pixels_sees_no_difference_in_permuted_images(kind, differs):
    x, outputs = images(), []
    for seed in (None, 3):
        inputs = dict(num_bands=2, max_resolution=(9, 7), permutation_seed=seed)
        model = baseline(inputs=inputs, network=NETWORKS[kind])
        outputs.append(logits(model, drawn(model, x), x))
    assert (np.abs(outputs[0] - outputs[1]).max() > 1e-2) == differs


def test_permuted_pixels_take_their_positions_along():
    """What the network reads of element i is the pixel `order[i]` with its position."""
    x = images(height=4, width=6)
    seed, inputs = 3, dict(num_bands=1, max_resolution=(4, 6))
    network = dict(kind='vit', patch_size=4, channels=4, num_self_attends=0, self_attend={})
    network['self_attend'] = dict(num_heads=2)
    order = permutation(seed, 24)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 6), indexing='ij'), -1)
    features = [grid, np.sin(np.pi * grid), np.cos(np.pi * grid)]
    written = np.concatenate([x, *[np.broadcast_to(f, (2, *f.shape)) for f in features]], -1)
    shuffled = written.reshape(2, 24, 9)[:, order].reshape(2, 4, 6, 9).astype(np.float32)
    model = baseline(inputs=dict(inputs, permutation_seed=seed), network=network)
    by_hand = baseline(inputs=RGB, network=network)
    weights = drawn(model, x)
    np.testing.assert_allclose(
        logits(model, weights, x), logits(by_hand, weights, shuffled), atol=1e-5
    )


def test_rows_that_patches_do_not_divide_are_filled_with_zeros():
    """A grid of 5x5 with patches of 3 reads as one of 6x6 with zeros in the last row and column."""
    x = images(height=5, width=5)
    filled = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    model = baseline(inputs=RGB, network=NETWORKS['vit'])
    weights = drawn(model, x)
    np.testing.assert_array_equal(logits(model, weights, x), logits(model, weights, filled))


def test_points_lie_row_after_row():
    """Laid out as an image of their features, points give what that image gives."""
    x = points()
    inputs = dict(num_bands=2, max_resolution=(8, 8, 8))
    model = baseline(point_baseline, inputs=inputs, network=NETWORKS['vit'])
    from perceiver_jax import point_elements

    features = np.asarray(point_elements(x, **inputs)).reshape(2, 5, 5, -1)
    as_image = baseline(inputs=RGB, network=NETWORKS['vit'])
    weights = drawn(model, x)
    np.testing.assert_allclose(
        logits(model, weights, x), logits(as_image, weights, features), atol=1e-6
    )


@pytest.mark.parametrize('kind', NETWORKS)
def test_in_bfloat16_logits_are_float32_and_near(kind):
    inputs, x = dict(num_bands=2, max_resolution=(9, 7)), images()
    exact, short = (
        baseline(inputs=inputs, network=NETWORKS[kind], dtype=dtype)
        for dtype in ('float32', 'bfloat16')
    )
    weights = drawn(exact, x)
    outputs = [logits(model, weights, x) for model in (exact, short)]
    assert outputs[1].dtype == np.float32
    np.testing.assert_allclose(*outputs, atol=0.05 * np.abs(outputs[0]).max() + 0.02)


def test_resnet_in_training_uses_the_statistics_of_the_batch_and_keeps_them():
    model = baseline(inputs=RGB, network=NETWORKS['resnet'])
    x = images(batch=4)
    weights = jax.jit(functools.partial(model.init, is_training=True))(jax.random.key(0), x)
    _, state = model.apply(*weights, None, x, is_training=True)
    kernel = weights[0]['network/stem']['w']
    by_hand = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    np.testing.assert_allclose(
        state['network/stem_norm']['mean'], by_hand.mean((0, 1, 2)), atol=1e-5
    )
    assert state['network/stem_norm']['counter'] == 1


def test_a_small_stem_keeps_the_size():
    network = dict(NETWORKS['resnet'], stem='small', blocks=(1,))
    from perceiver_jax.baselines.elements import Elements
    from perceiver_jax.baselines.resnet import ResNet

    model = hk.transform_with_state(
        lambda x: ResNet(stem='small', blocks=(1, 1), channels=4)(Elements(x), is_training=False)
    )
    x = images(height=8, width=6)
    out, _ = model.apply(*model.init(jax.random.key(0), x), None, x)
    assert out.shape == (2, 4 * 3, 32)
    assert 'network/stem' in drawn(baseline(inputs=RGB, network=network), x)[0]


@pytest.mark.parametrize(
    'network, said',
    [
        (dict(kind='lstm'), 'kind, one of'),
        (dict(kind=['vit']), 'kind, one of'),
        ('vit', 'kind, one of'),
        (dict(kind='vit', patches=16), "no field 'patches'"),
        (dict(kind='vit', patch_size=0), 'patch_size must be at least 1, not 0'),
        (dict(kind='vit', channels=10), 'heads'),
        (dict(kind='transformer', channels=10), 'heads'),
        (dict(kind='resnet', stem='tiny'), "stem must be 'imagenet' or 'small', not 'tiny'"),
        (dict(kind='resnet', padding='torch'), "padding must be 'same' or 'centred', not 'torch'"),
        (dict(kind='resnet', blocks=()), 'numbers of bottlenecks'),
        (dict(kind='resnet', blocks=3), 'numbers of bottlenecks'),
        (dict(kind='resnet', blocks=(10**9,)), 'bottlenecks'),
    ],
)
def test_networks_that_cannot_be(network, said):
    model = baseline(inputs=RGB, network=network)
    with pytest.raises(Refused, match=said):
        jax.eval_shape(
            functools.partial(model.init, is_training=False), jax.random.key(0), images()
        )


def test_points_that_make_no_square_are_refused():
    model = baseline(point_baseline, inputs=POINTS, network=NETWORKS['vit'])
    with pytest.raises(Refused, match=r'24 is no square number: take 16 of them'):
        model.init(jax.random.key(0), points(number=24), is_training=False)
