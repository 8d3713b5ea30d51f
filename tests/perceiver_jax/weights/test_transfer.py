import dataclasses
import inspect
from collections.abc import Mapping

import haiku as hk
import jax
import numpy as np
import optax
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.models import MODELS
from perceiver_jax.position_encoding import resample_positions
from perceiver_jax.weights import transfer as module
from perceiver_jax.weights.labels import parameter_labels
from perceiver_jax.weights.pretrained import Pretrained, initialise
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.transfer import compare_arguments, transfer

ENCODER = dict(num_latents=3, latent_channels=4, num_blocks=1, num_self_attends_per_block=1)
LEARNED = dict(
    contents='conv7x7',
    contents_channels=3,
    positions='learned',
    position_channels=5,
    position_init_std=0.02,
)


def image_model(
    seed, num_classes=5, *, size=8, decoder=None, inputs=LEARNED, classes=None, channels=4, **fields
):
    """A model whose arrays are random numbers, also those that start as zeros or are counts."""
    encoder = {**ENCODER, 'latent_channels': channels, 'self_attend': dict(num_heads=2)}
    arguments = dict(num_classes=num_classes, inputs=inputs, encoder=encoder)
    if decoder is not None:
        arguments['decoder'] = decoder
    front_end = dict(size=size, mean=[0.5] * 3)
    empty = Pretrained('image_classifier', arguments, front_end, {}, {}, classes, **fields)
    rng = np.random.default_rng(seed)
    params, state = jax.tree.map(
        lambda x: (10 * rng.normal(size=x.shape)).astype(x.dtype),
        jax.eval_shape(empty.init, jax.random.key(0)),
    )
    return dataclasses.replace(empty, params=params, state=state)


def flat_names(*trees):
    return {f'{m}:{name}' for tree in trees for m, values in tree.items() for name in values}


def test_all_is_taken_where_all_fits():
    source, target = image_model(0), image_model(1)
    result = transfer(source, target)
    jax.tree.map(
        np.testing.assert_array_equal, (result.params, result.state), (source.params, source.state)
    )
    assert {*result.taken} == flat_names(source.params, source.state)
    assert result.new == result.resampled == ()
    size = sum(x.size for x in jax.tree.leaves(source.params))
    assert result.counts == {'taken': size, 'resampled': 0, 'new': 0}
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(result.params))


@pytest.mark.parametrize('decoder', [None, dict(query_channels=6)])
def test_the_head_of_another_number_of_classes_starts_anew_entirely(decoder):
    head = 'decoder/output' if decoder is None else 'decoder/query_decoder/output'
    source, target = image_model(0, 5, decoder=decoder), image_model(1, 7, decoder=decoder)
    result = transfer(source, target)
    assert {*result.new} == {f'{head}:w', f'{head}:b'}
    for module_name, values in result.params.items():
        expected = target if module_name == head else source
        jax.tree.map(np.testing.assert_array_equal, values, expected.params[module_name])
    width = 4 if decoder is None else 6
    assert result.counts['new'] == width * 7 + 7


@pytest.mark.parametrize(
    'ours, theirs, new_head, starts_anew',
    [
        (['a', 'b'], ('a', 'b'), None, False),
        (['a', 'b'], ['b', 'a'], None, True),
        (['a', 'b'], None, None, False),
        (['a', 'b'], ['A', 'B'], False, False),
        (None, None, True, True),
    ],
)
def test_classes_of_other_names_need_a_new_head(ours, theirs, new_head, starts_anew):
    source, target = image_model(0, 2, classes=ours), image_model(1, 2, classes=theirs)
    result = transfer(source, target, new_head=new_head)
    assert bool(result.new) == starts_anew
    expected = target if starts_anew else source
    np.testing.assert_array_equal(
        result.params['decoder/output']['b'], expected.params['decoder/output']['b']
    )


def test_a_head_of_another_number_cannot_be_kept():
    with pytest.raises(Refused, match=r'of another shape: decoder/output:b \(5,\), not \(7,\)'):
        transfer(image_model(0, 5), image_model(1, 7), new_head=False)


def test_learned_positions_are_resampled_to_the_size_of_the_target():
    source, target = image_model(0, size=8), image_model(1, size=13)
    result = transfer(source, target)
    assert result.resampled == ('inputs/position_encoding:positions',)
    positions = source.params['inputs/position_encoding']['positions']
    np.testing.assert_array_equal(
        result.params['inputs/position_encoding']['positions'],
        resample_positions(positions, grid=(2, 2), new_grid=(4, 4)),  # of a quarter of the side
    )
    assert result.counts['resampled'] == 16 * 5


def test_fourier_positions_need_nothing_for_another_size():
    fourier = dict(num_bands=2, max_resolution=[8, 8])
    source, target = (image_model(i, size=8 + i, inputs=fourier) for i in (0, 1))
    result = transfer(source, target)
    assert result.resampled == result.new == () and result.taken


def test_what_does_not_fit_is_listed_in_one_error():
    average, query = image_model(0), image_model(1, decoder=dict(query_channels=6), channels=6)
    with pytest.raises(Refused) as error:
        transfer(average, query, where='a.pystate')
    message = str(error.value)
    assert message.startswith('a.pystate does not fit the model. missing: decoder/query')
    assert 'left over: decoder/output:b, decoder/output:w' in message
    assert 'encoder/block_1/' in message and '(4,), not (6,)' in message
    with pytest.raises(Refused, match='left over: decoder/query_decoder/cross_attend'):
        transfer(query, average)


def test_another_function_is_refused_and_both_are_named():
    source = image_model(0)
    target = dataclasses.replace(source, function='optical_flow')
    with pytest.raises(Refused, match='a holds weights of image_classifier, .* optical_flow'):
        transfer(source, target, where='a')
    with pytest.raises(Refused, match='optical_flow has no head of classes'):
        transfer(target, target, new_head=True)


def changed(arguments, key, value):
    """The arguments with the value at a dotted key."""
    first, _, rest = key.partition('.')
    inner = changed(arguments.get(first, {}), rest, value) if rest else value
    return {**arguments, first: inner}


@pytest.mark.parametrize(
    'kind, key, ours, theirs',
    [
        ('imagenet_fourier', 'encoder.self_attend.num_heads', 8, 16),
        ('imagenet_fourier', 'encoder.cross_attend.num_heads', 1, 3),
        ('imagenet_fourier', 'inputs.max_resolution', (224, 224), (384, 384)),
        ('imagenet_fourier', 'inputs.permutation_seed', None, 0),
        ('imagenet_fourier', 'decoder.cross_attend.use_query_residual', True, False),
        ('imagenet_fourier', 'decoder', RELEASED['imagenet_fourier'].arguments['decoder'], None),
        ('imagenet_fourier', 'encoder.num_blocks', 8, 4),
        ('imagenet_fourier', 'encoder.num_cross_attends', 1, 8),
        ('optical_flow', 'output_divisor', 100.0, 1.0),
        ('optical_flow', 'flow_scale', 20.0, 1.0),
        ('mlm_bytes', 'encoder.cross_attend.qk_channels', 256, 128),
        ('video_autoencoding', 'queries.endpoint', False, True),
        ('video_autoencoding', 'inputs.video.max_resolution', (16, 56, 56), (8, 56, 56)),
    ],
)
def test_arguments_that_shapes_do_not_show_are_found(kind, key, ours, theirs):
    released = RELEASED[kind]
    other = changed(released.arguments, key, theirs)
    compared = compare_arguments(released.function, released.arguments, other)
    assert compared == {key: (ours, theirs)}
    assert compare_arguments(released.function, other, released.arguments) == {key: (theirs, ours)}


@pytest.mark.parametrize(
    'key, value',
    [
        ('dtype', 'bfloat16'),
        ('implementation', 'chunked'),
        ('encoder.scan', False),
        ('encoder.remat_blocks', True),
        ('encoder.latent_init_std', 0.1),
        ('encoder.cross_attend.dropout_rate', 0.1),
        ('encoder.cross_attend.use_query_residual', True),  # the default
        ('encoder.cross_attend.qk_channels', 261),  # as wide as the inputs
        ('encoder.share_cross_attends', False),  # there is only one
        ('encoder.cross_attend_placement', 'start'),
        ('inputs.max_resolution', (224, 224)),
        ('inputs.permutation_seed', None),
        ('decoder.query_init_std', 0.1),
    ],
)
def test_defaults_and_what_only_training_sees_are_no_difference(key, value):
    arguments = RELEASED['imagenet_fourier'].arguments
    other = changed(arguments, key, value)
    assert compare_arguments('image_classifier', arguments, other) == {}
    assert compare_arguments('image_classifier', other, arguments) == {}


VIT = dict(kind='vit', patch_size=4, self_attend=dict(num_heads=12, widening_factor=4))


@pytest.mark.parametrize(
    'key, ours, theirs',
    [
        ('network.self_attend.num_heads', 12, 6),
        ('network.patch_size', 4, 2),
        ('network.kind', 'vit', 'resnet'),
        ('inputs.permutation_seed', None, 0),
    ],
)
def test_baselines_are_compared_too(key, ours, theirs):
    arguments = dict(num_classes=3, inputs=dict(positions='none'), network=VIT)
    found = compare_arguments('image_baseline', arguments, changed(arguments, key, theirs))
    assert found[key] == (ours, theirs)
    assert len(found) == 1 or key == 'network.kind'


def test_defaults_of_a_baseline_are_no_difference():
    arguments = dict(num_classes=3, inputs=dict(positions='none'), network=dict(kind='vit'))
    written_out = changed(arguments, 'network.self_attend', VIT['self_attend'])
    assert compare_arguments('image_baseline', arguments, written_out) == {}


@pytest.mark.parametrize('function', MODELS)
def test_the_defaults_of_every_mapping_are_known(function):
    built = module._built(function)
    parameters = inspect.signature(MODELS[function]).parameters
    for name in ('inputs', 'encoder', 'network', 'decoder', 'upsampling'):
        known = {key for key in built if key.split('.')[0] == name}
        assert bool(known) == (name in parameters), name
    for key, owner in built.items():
        inner = [k for k, v in module._defaults(owner).items() if isinstance(v, Mapping)]
        assert {f'{key}.{name}' for name in inner} <= built.keys()


# How a user fine-tunes without the launcher, with optax.


def train(model, optimizer, images, labels, steps=3):
    """Returns the parameters after a few updates on one batch, and the loss before and after."""

    def loss(params):
        forward = hk.transform_with_state(
            lambda x: MODELS[model.function](x, is_training=True, **model.arguments)
        )
        logits, _ = forward.apply(params, model.state, jax.random.key(0), images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(params, optimizer_state):
        before, gradients = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, before

    params, optimizer_state, losses = model.params, optimizer.init(model.params), []
    for _ in range(steps):
        params, optimizer_state, before = update(params, optimizer_state)
        losses.append(float(before))
    return params, losses


@pytest.fixture(scope='module')
def pretrained():
    arguments = dict(
        num_classes=5,
        inputs=dict(num_bands=2, max_resolution=[8, 8]),
        encoder={**ENCODER, 'self_attend': dict(num_heads=2)},
    )
    return initialise('image_classifier', arguments, dict(size=8, mean=[0.5] * 3))


IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0, 1])


def test_a_linear_probe(pretrained):
    model = pretrained.with_classes(['cat', 'dog'])
    labels = parameter_labels(model.params, {'decoder/output': 'train'}, default='freeze')
    optimizer = optax.multi_transform(
        {'train': optax.adam(0.1), 'freeze': optax.set_to_zero()}, labels
    )
    params, losses = train(model, optimizer, IMAGES, LABELS)
    assert losses[-1] < losses[0]
    for module_name, values in params.items():
        for name, value in values.items():
            same = np.array_equal(value, pretrained.params[module_name][name])
            assert same == (module_name != 'decoder/output'), f'{module_name}:{name}'
    probe = dataclasses.replace(model, params=params)
    np.testing.assert_array_equal(probe.features(IMAGES), pretrained.features(IMAGES))


def test_fine_tuning_with_a_smaller_rate_for_what_was_loaded(pretrained):
    model = pretrained.with_classes(['cat', 'dog'])
    patterns = {'encoder:latents': 'freeze', 'encoder': 'loaded'}
    labels = parameter_labels(model.params, patterns, default='new')
    # The output layer starts at zero, so the encoder has no gradient in the first update.
    optimizer = optax.multi_transform(
        {'new': optax.sgd(0.1), 'loaded': optax.sgd(0.01), 'freeze': optax.set_to_zero()}, labels
    )
    params, losses = train(model, optimizer, IMAGES, LABELS)
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(
        params['encoder']['latents'], pretrained.params['encoder']['latents']
    )
    head = 'decoder/output'
    assert np.abs(params[head]['w'] - model.params[head]['w']).max() > 1e-3
    loaded = 'encoder/cross_attend_1/attention/value'
    moved = np.abs(params[loaded]['w'] - model.params[loaded]['w']).max()
    assert 0 < moved < 1e-2
