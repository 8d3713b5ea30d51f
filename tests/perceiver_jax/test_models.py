import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet, modelnet40
from perceiver_jax.errors import Refused
from perceiver_jax.models import (
    audio_visual_classifier,
    image_classifier,
    masked_language_model,
    optical_flow,
    point_classifier,
    video_autoencoder,
)
from tests.toys import small_models

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


def build(is_training=False, **changes):
    config = imagenet.get_config('demo').unlock()
    config.model.update(changes)
    return hk.transform_with_state(
        lambda x: image_classifier(x, is_training=is_training, **config.model)
    )


def jitted(function):
    """Transformed; one program is compiled faster than its operations one by one."""
    model = hk.transform(function)
    return hk.Transformed(jax.jit(model.init), jax.jit(model.apply))


def with_random_head(params):
    head = params['decoder/output']
    head['w'] = jax.random.normal(jax.random.key(1), head['w'].shape)
    return params


def test_training_needs_no_random_key():
    model = build(is_training=True)
    params, state = model.init(jax.random.key(0), IMAGES)
    logits, _ = model.apply(params, state, None, IMAGES)
    assert logits.shape == (3, 10)


def test_a_permutation_of_the_pixels_changes_nothing():
    plain = build()
    params, state = plain.init(jax.random.key(0), IMAGES)
    params = with_random_head(params)
    inputs = {**imagenet.get_config('demo').model.inputs, 'permutation_seed': 0}
    permuted, _ = build(inputs=inputs).apply(params, state, None, IMAGES)
    expected, _ = plain.apply(params, state, None, IMAGES)
    np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_field_is_refused():
    with pytest.raises(Refused, match="'num_bnads'.* Did you mean num_bands"):
        build(inputs=dict(num_bnads=4)).init(jax.random.key(0), IMAGES)


def test_masked_pixels_are_not_looked_at():
    model = build()
    params, state = model.init(jax.random.key(0), IMAGES)
    params = with_random_head(params)
    config = imagenet.get_config('demo')

    def masked(images, mask):
        model = hk.transform_with_state(
            lambda x: image_classifier(x, mask, is_training=False, **config.model)
        )
        return model.apply(params, state, None, images)[0]

    mask = np.arange(64) % 5 > 0
    hidden = IMAGES.reshape(3, 64, 1).copy()
    hidden[:, ~mask] = 1e3
    batch_mask = np.broadcast_to(mask, (3, 64))
    expected = masked(IMAGES, batch_mask)
    np.testing.assert_allclose(
        masked(hidden.reshape(IMAGES.shape), batch_mask), expected, atol=1e-5
    )
    unmasked, _ = model.apply(params, state, None, IMAGES)
    assert np.abs(unmasked - expected).max() > 1e-3


ENCODER = dict(
    num_latents=7,
    latent_channels=12,
    num_blocks=1,
    num_self_attends_per_block=1,
    self_attend=dict(num_heads=2),
)


def test_flow_starts_at_zero_and_runs_at_any_size():
    model = jitted(
        lambda frames: optical_flow(
            frames,
            is_training=False,
            inputs=dict(channels=5, num_bands=2, max_resolution=(6, 8)),
            encoder=ENCODER,
            decoder=dict(cross_attend=dict(use_query_residual=False), zero_init_output=True),
        )
    )
    frames = np.random.default_rng(0).normal(size=(2, 2, 6, 8, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), frames)
    np.testing.assert_array_equal(model.apply(params, None, frames), np.zeros((2, 6, 8, 2)))
    params['decoder/output']['b'] += np.array([100.0, -5.0])
    wider = model.apply(params, None, np.zeros((1, 2, 11, 3, 3), np.float32))
    expected = np.broadcast_to([20.0, -1.0], (1, 11, 3, 2))  # / 100 * 20 pixels
    np.testing.assert_allclose(wider, expected, rtol=1e-6)


@pytest.mark.parametrize('frames_are', ['concatenated', 'separate'])
def test_flow_by_convolution_is_upsampled_to_any_size(frames_are):
    separate = frames_are == 'separate'
    inputs = dict(
        contents='conv7x7',
        concatenate_frames=not separate,
        channels=5,
        num_bands=2,
        max_resolution=(2, 3, 4) if separate else (3, 4),
    )
    model = hk.transform_with_state(
        lambda frames, is_training=False: optical_flow(
            frames,
            is_training=is_training,
            inputs=inputs,
            encoder=ENCODER,
            decoder=dict(cross_attend=dict(use_query_residual=False)),
            upsampling=dict(factor=4, zero_init_output=True),
        )
    )
    frames = np.random.default_rng(0).normal(size=(2, 2, 11, 13, 3)).astype(np.float32)
    params, state = jax.jit(model.init)(jax.random.key(0), frames)
    apply = jax.jit(model.apply, static_argnames='is_training')
    kernel = params['inputs/conv7x7']['w']
    assert kernel.shape == (7, 7, 3 if separate else 6, 5)
    flow, _ = apply(params, state, None, frames)
    np.testing.assert_array_equal(flow, np.zeros((2, 11, 13, 2)))
    params['upsampling/flow']['b'] += np.array([100.0, -5.0])  # the weights add up to 1
    flow, new_state = apply(params, state, None, frames, is_training=True)
    np.testing.assert_allclose(flow, np.broadcast_to([20.0, -1.0], (2, 11, 13, 2)), rtol=1e-5)
    assert new_state['inputs/conv7x7/batch_norm']['counter'] == 1


@pytest.mark.parametrize(
    'inputs, upsampling, message',
    [
        (dict(contents='conv7x7'), None, 'upsampling goes with contents that are downsampled'),
        ({}, dict(factor=4), 'upsampling goes with contents that are downsampled'),
        (dict(contents='conv7x7'), dict(factor=8), 'upsampling.factor is 8, and the convolution'),
    ],
)
def test_flow_is_upsampled_where_it_was_downsampled(inputs, upsampling, message):
    model = hk.transform_with_state(
        lambda x: optical_flow(
            x,
            is_training=False,
            inputs=inputs,
            encoder=ENCODER,
            decoder={},
            upsampling=upsampling,
        )
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2, 8, 8, 3), np.float32))


def test_separate_frames_are_told_apart_by_time_alone():
    """Two frames that are swapped, with the positions in time swapped, are the same inputs."""
    model = jitted(
        lambda frames: optical_flow(
            frames,
            is_training=False,
            inputs=dict(
                channels=5, num_bands=2, max_resolution=(2, 5, 7), concatenate_frames=False
            ),
            encoder=ENCODER,
            decoder=dict(cross_attend=dict(use_query_residual=False)),
        )
    )
    frames = np.random.default_rng(0).normal(size=(1, 2, 5, 7, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), frames)
    assert params['inputs/projection']['w'].shape == (27, 5)
    flow = model.apply(params, None, frames)
    assert flow.shape == (1, 5, 7, 2)
    swapped = model.apply(params, None, frames[:, ::-1])
    assert np.abs(flow - swapped).max() > 1e-4
    same = np.stack([frames[:, 0]] * 2, axis=1)
    np.testing.assert_allclose(
        model.apply(params, None, same), model.apply(params, None, same[:, ::-1])
    )


LANGUAGE = dict(
    inputs=dict(vocabulary_size=11, channels=6, max_length=13),
    encoder=ENCODER,
    decoder=dict(cross_attend=dict(use_query_residual=False)),
)


def test_a_shorter_text_equals_its_padded_and_masked_one():
    def forward(tokens, mask=None, query_mask=None):
        return masked_language_model(tokens, mask, query_mask, is_training=False, **LANGUAGE)

    model = jitted(forward)
    tokens = np.random.default_rng(0).integers(11, size=(2, 5))
    params = model.init(jax.random.key(0), tokens)
    padded = np.pad(tokens, ((0, 0), (0, 8)), constant_values=3)
    mask = np.broadcast_to(np.arange(13) < 5, (2, 13))
    expected = model.apply(params, None, tokens)
    assert expected.shape == (2, 5, 11)
    outputs = model.apply(params, None, padded, mask)
    np.testing.assert_allclose(outputs[:, :5], expected, atol=1e-5)
    # Queries that look at nothing say the same whatever the text; asked for, they differ.
    other = model.apply(params, None, (padded + 1) % 11, mask)
    np.testing.assert_allclose(outputs[:, 5:], other[:, 5:], atol=1e-6)
    asked = model.apply(params, None, padded, mask, np.ones((2, 13), bool))
    assert np.abs(asked[:, 5:] - outputs[:, 5:]).max() > 1e-3


def autoencode(**changes):
    positions = dict(
        video=dict(num_bands=2, max_resolution=[2, 3, 3]),
        audio=dict(num_bands=3, max_resolution=[20]),
    )
    arguments = dict(
        num_classes=5,
        inputs=dict(
            video=dict(patch=[1, 2, 2], **positions['video']),
            audio=dict(samples_per_patch=4, **positions['audio']),
            min_padding=2,
        ),
        encoder=ENCODER,
        queries=dict(**positions, label_channels=9, min_padding=2, endpoint=False),
        decoder=dict(output_channels=11, cross_attend=dict(use_query_residual=False)),
    )
    return jitted(
        lambda video, audio, label=None: video_autoencoder(
            video, audio, label, is_training=False, **(arguments | changes)
        )
    )


CLIP = (
    np.random.default_rng(0).uniform(size=(2, 3, 6, 4, 3)).astype(np.float32),
    np.random.default_rng(1).uniform(-1, 1, size=(2, 20, 1)).astype(np.float32),
)


def test_a_clip_is_reconstructed_in_chunks_or_in_part():
    params = autoencode().init(jax.random.key(0), *CLIP)
    whole = autoencode(chunk_size=None).apply(params, None, *CLIP)
    assert {name: x.shape for name, x in whole.items()} == {
        'video': (2, 3, 6, 4, 3),
        'audio': (2, 20, 1),
        'label': (2, 5),
    }
    chunked = autoencode(chunk_size=17).apply(params, None, *CLIP)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunked, whole)
    elements = dict(video=jnp.array([70, 3]), audio=jnp.array([4, 1]))
    some = autoencode(output_elements=elements).apply(params, None, *CLIP)
    pixels = whole['video'].reshape(2, 72, 3)[:, [70, 3]]
    np.testing.assert_allclose(some['video'], pixels, atol=1e-5)
    samples = whole['audio'].reshape(2, 5, 4)[:, [4, 1]].reshape(2, 8, 1)
    np.testing.assert_allclose(some['audio'], samples, atol=1e-5)
    np.testing.assert_allclose(some['label'], whole['label'], atol=1e-5)


def test_the_label_is_hidden_unless_it_is_given():
    params = autoencode().init(jax.random.key(0), *CLIP)
    labels = np.eye(5, dtype=np.float32)[[1, 3]]
    hidden = autoencode().apply(params, None, *CLIP)['label']
    given = autoencode().apply(params, None, *CLIP, labels)['label']
    one_hidden = {'label': np.array([[True], [False]])}
    mixed = autoencode(hidden=one_hidden).apply(params, None, *CLIP, labels)['label']
    np.testing.assert_allclose(mixed, [hidden[0], given[1]], atol=1e-6)
    assert np.abs(given - hidden).max() > 1e-4


def test_masked_sound_is_not_heard():
    params = autoencode().init(jax.random.key(0), *CLIP)
    mask = np.ones((2, 5 + 18 + 1), bool)
    mask[:, :5] = False
    silent = autoencode(input_mask=mask)
    expected = silent.apply(params, None, *CLIP)['video']
    louder = silent.apply(params, None, CLIP[0], 100 * CLIP[1])['video']
    np.testing.assert_allclose(louder, expected, atol=1e-6)


def test_tokens_that_do_not_exist_give_no_numbers():
    model = jitted(lambda x: masked_language_model(x, is_training=False, **LANGUAGE))
    tokens = np.array([[0, 10], [0, 11], [0, -1]])
    params = model.init(jax.random.key(0), tokens)
    known, too_large, negative = model.apply(params, None, tokens)
    assert np.isfinite(known).all()
    assert np.isnan(too_large).all() and np.isnan(negative).all()


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(inputs={'video': {}, 'audio': {}}), r"inputs is a mapping with \['audio', 'min_padd"),
        (dict(inputs=None), 'inputs is a mapping with .*; got None'),
        (
            dict(
                inputs=dict(
                    video=dict(patch=[1, 2, 2], num_bands=2, max_resolution=[2, 3, 3]),
                    audio=dict(samples_per_patch=4, hop=2, num_bands=3, max_resolution=[20]),
                    min_padding=2,
                )
            ),
            'inputs.audio.hop is 2: the sound that comes out is put together of patches that do',
        ),
        (dict(queries={}), r"queries is a mapping with \['audio', .*; got \[\]"),
        (dict(encoder=dict(num_latnts=3)), "Encoder has no field 'num_latnts'.*mean num_latents"),
        (
            dict(encoder=dict(num_latents=[3])),
            r'Encoder takes num_latents as an integer, not \[3\]',
        ),
        (dict(encoder=dict(implementation='plain')), "Encoder has no field 'implementation' that"),
        (dict(encoder=[3]), r'Encoder takes a mapping of fields, not \[3\]'),
        (dict(decoder={}), 'QueryDecoder needs output_channels'),
    ],
)
def test_mappings_that_make_no_autoencoder_are_named(changes, message):
    with pytest.raises(Refused, match=message):
        autoencode(**changes).init(jax.random.key(0), *CLIP)


@pytest.mark.parametrize(
    'model, arrays, message',
    [
        (image_classifier, ([[1.0]],), 'image_classifier takes images as an array, not as list'),
        (image_classifier, (IMAGES[0],), r'images \[B, height, width, channels\]; got \(8, 8, 1\)'),
        (point_classifier, ([[1.0]],), 'point_classifier takes points as an array'),
        (optical_flow, (IMAGES,), r'frames \[B, 2, height, width, channels\]; got \(3, 8, 8, 1\)'),
        (audio_visual_classifier, ([IMAGES],), 'modalities are a mapping of arrays, not list'),
        (
            audio_visual_classifier,
            ({'audio': [1.0]},),
            'audio_visual_classifier takes audio as an array, not as list',
        ),
        (masked_language_model, ([[3]],), 'TextInputs takes tokens as an array, not as list'),
    ],
)
def test_lists_and_other_axes_are_refused_by_the_model(model, arrays, message):
    fields = dict(inputs={}, encoder={}, decoder={})
    if 'classifier' in model.__name__:
        fields['num_classes'] = 3
    if model is audio_visual_classifier:
        fields['inputs'] = dict(audio={}, min_padding=1)
    with pytest.raises(Refused, match=message):
        hk.transform_with_state(lambda: model(*arrays, is_training=False, **fields)).init(None)


def test_only_pixels_and_sound_are_reconstructed_in_part():
    with pytest.raises(ValueError, match=r"not of \['image'\]"):
        autoencode(output_elements={'image': np.arange(3)}).init(jax.random.key(0), *CLIP)
    with pytest.raises(ValueError, match=r'audio \[B, samples, 1\]; got .*\(2, 20, 2\)'):
        autoencode().init(jax.random.key(0), CLIP[0], np.zeros((2, 20, 2)))


def classify(images, dtype):
    config = imagenet.get_config('demo')
    model = {**config.model.to_dict(), 'decoder': dict(query_channels=5), 'dtype': dtype}
    return image_classifier(images, is_training=False, **model)


def estimate_flow(frames, dtype):
    return optical_flow(
        frames,
        is_training=False,
        inputs=dict(channels=5, num_bands=2, max_resolution=(6, 8)),
        encoder=ENCODER,
        decoder=dict(cross_attend=dict(use_query_residual=False)),
        dtype=dtype,
    )


def fill_in(tokens, dtype):
    return masked_language_model(tokens, is_training=False, **LANGUAGE, dtype=dtype)


@pytest.mark.parametrize(
    'function, inputs',
    [
        (classify, (IMAGES,)),
        (estimate_flow, (np.random.default_rng(0).normal(size=(1, 2, 6, 8, 3)).astype('f'),)),
        (fill_in, (np.arange(10).reshape(2, 5),)),
        (None, CLIP),
    ],
)
def test_bfloat16_computes_near_float32_with_float32_parameters(function, inputs):
    def transformed(dtype):
        if function is None:
            return autoencode(dtype=dtype)
        return jitted(lambda *x: function(*x, dtype))

    wide, narrow = transformed('float32'), transformed('bfloat16')
    model_params = [jax.eval_shape(m.init, jax.random.key(0), *inputs) for m in (wide, narrow)]
    assert model_params[0] == model_params[1]
    assert {p.dtype for p in jax.tree.leaves(model_params)} == {np.dtype('float32')}
    params = wide.init(jax.random.key(0), *inputs)
    outputs = zip(
        *(jax.tree.leaves(m.apply(params, None, *inputs)) for m in (wide, narrow)), strict=True
    )
    for expected, output in outputs:
        assert output.dtype == jnp.float32
        difference = np.linalg.norm(output - expected) / np.linalg.norm(expected)
        assert 1e-5 < difference < 0.1  # bfloat16 was used, and did little harm
        # Output layers are float32: numbers of 8 bits would all be equal to their rounding.
        assert (output != output.astype(jnp.bfloat16)).mean() > 0.5


# Points


POINTS = np.random.default_rng(3).uniform(-1, 1, (2, 41, 3)).astype(np.float32)
SMALL_CLOUDS = dict(
    num_classes=5,
    inputs=dict(num_bands=3, max_resolution=(8, 8, 8)),
    encoder=dict(
        num_latents=7,
        latent_channels=16,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
    ),
)


@pytest.fixture(scope='module')
def clouds():
    """apply(points, mask) of a model of clouds with weights that are all random."""

    def forward(points, mask=None):
        return point_classifier(points, mask, is_training=False, **SMALL_CLOUDS)

    model = jitted(forward)
    params = with_random_head(model.init(jax.random.key(0), POINTS))
    return lambda points, mask=None: np.asarray(model.apply(params, None, points, mask))


def test_the_order_of_points_plays_no_part(clouds):
    order = np.random.default_rng(0).permutation(41)
    np.testing.assert_allclose(clouds(POINTS[:, order]), clouds(POINTS), rtol=1e-4, atol=1e-4)
    # But which points there are does.
    assert np.abs(clouds(-POINTS) - clouds(POINTS)).max() > 0.1


def test_dropped_points_are_as_if_they_were_not_there(clouds):
    mask = np.ones((2, 41), bool)
    mask[:, 29:] = False
    moved = np.where(mask[..., None], POINTS, 0.9)
    np.testing.assert_allclose(clouds(moved, mask), clouds(POINTS[:, :29]), rtol=1e-4, atol=1e-4)
    assert np.abs(clouds(POINTS[:, :29]) - clouds(POINTS)).max() > 1e-3


def test_a_point_that_is_there_twice_counts_twice(clouds):
    """Attention is a weighted mean: doubling every point changes nothing, doubling some does."""
    np.testing.assert_allclose(
        clouds(np.concatenate([POINTS, POINTS], axis=1)), clouds(POINTS), rtol=1e-4, atol=1e-4
    )
    some = np.concatenate([POINTS, POINTS[:, :20]], axis=1)
    assert np.abs(clouds(some) - clouds(POINTS)).max() > 1e-3


def test_points_are_told_apart_in_bfloat16():
    """Positions stay float32: in bfloat16 these two clouds would be one."""
    config = modelnet40.get_config('demo').model.to_dict() | {'dtype': 'bfloat16'}
    model = jitted(lambda x: point_classifier(x, is_training=False, **config))
    params = with_random_head(model.init(jax.random.key(0), POINTS))
    near = POINTS + np.float32(1e-3)
    apart = np.abs(model.apply(params, None, near) - model.apply(params, None, POINTS))
    assert apart.dtype == np.float32 and apart.max() > 0


AUDIO_VISUAL = dict(
    num_classes=7,
    inputs=dict(
        audio=dict(samples_per_patch=5, num_bands=3, max_resolution=(6,)),
        spectrogram=dict(patch=(1, 1), num_bands=2, max_resolution=(4, 3)),
        video=dict(patch=(1, 2, 2), num_bands=2, max_resolution=(2, 3, 2)),
        min_padding=4,
    ),
    encoder=dict(
        num_latents=5,
        latent_channels=8,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
        share_cross_attends=False,
        share_blocks=False,
    ),
)
CLIPS = {
    'video': np.random.default_rng(0).normal(size=(3, 2, 6, 4, 3)).astype(np.float32),
    'spectrogram': np.random.default_rng(1).normal(size=(3, 4, 3)).astype(np.float32),
    'audio': np.random.default_rng(2).normal(size=(3, 30, 1)).astype(np.float32),
}


@pytest.mark.parametrize('decoder', [None, dict(query_channels=6)])
def test_audio_and_video_are_elements_of_one_array(decoder):
    model = jitted(
        lambda x: audio_visual_classifier(x, is_training=False, decoder=decoder, **AUDIO_VISUAL)
    )
    params = model.init(jax.random.key(0), CLIPS)
    # The widest, video: 12 values, 3 * 5 of position, 4 learned; the others are filled up to that.
    assert {name: p.shape for name, p in params['inputs'].items()} == {
        'audio_padding': (31 - 5 - 7,),
        'spectrogram_padding': (31 - 1 - 10,),
        'video_padding': (4,),
    }
    blocks = {name for name in params if '/block_' in name}
    assert any('block_2' in name for name in blocks)  # no weights are shared
    name = 'decoder/output' if decoder is None else 'decoder/query_decoder/output'
    params[name]['w'] = jax.random.normal(jax.random.key(1), params[name]['w'].shape)
    logits = model.apply(params, None, CLIPS)
    assert logits.shape == (3, 7) and logits.dtype == jnp.float32
    for modality in CLIPS:  # each of them matters
        other = model.apply(params, None, {**CLIPS, modality: 0 * CLIPS[modality]})
        assert np.abs(other - logits).max() > 1e-3


def test_a_modality_that_is_not_the_models_is_named():
    model = hk.transform(lambda x: audio_visual_classifier(x, is_training=False, **AUDIO_VISUAL))
    with pytest.raises(ValueError, match=r"are \['video'\], and the model takes \['audio'"):
        model.init(jax.random.key(0), {'video': CLIPS['video']})


def empty(x):
    return jax.tree.map(lambda x: x[:0], x)


def classify_clouds(points):
    return point_classifier(points, is_training=False, **SMALL_CLOUDS)


@pytest.mark.parametrize(
    'model, inputs',
    [
        (jitted(lambda x: classify(x, 'float32')), (IMAGES,)),
        (
            jitted(lambda x: estimate_flow(x, 'float32')),
            (np.random.default_rng(0).normal(size=(1, 2, 6, 8, 3)).astype('f'),),
        ),
        (jitted(lambda x: fill_in(x, 'float32')), (np.arange(10).reshape(2, 5),)),
        (jitted(classify_clouds), (POINTS,)),
        (autoencode(), CLIP),
        (
            jitted(lambda x: audio_visual_classifier(x, is_training=False, **AUDIO_VISUAL)),
            (CLIPS,),
        ),
    ],
)
def test_an_empty_batch_gives_empty_outputs(model, inputs):
    params = model.init(jax.random.key(0), *inputs)
    whole = jax.eval_shape(model.apply, params, None, *inputs)
    outputs = model.apply(params, None, *empty(inputs))
    jax.tree.map(lambda x, like: (x.shape == (0, *like.shape[1:])) or pytest.fail(), outputs, whole)


def test_integer_clouds_are_cast_as_integer_images_are():
    corners = np.array([[[-1, -1, -1], [1, 1, -1], [0, 1, 0]]])
    model = jitted(classify_clouds)
    params = with_random_head(model.init(jax.random.key(0), corners.astype(np.float32)))
    outputs = [model.apply(params, None, corners.astype(dtype)) for dtype in (int, np.float32)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize('name', small_models.MODELS)
def test_every_model_is_lowered_for_all_platforms(name):
    function, inputs = small_models.MODELS[name]
    fields = dict(encoder=small_models.ENCODER, is_training=False)
    model = hk.transform_with_state(functools.partial(function, **fields))
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    platforms = ['cpu', 'cuda', 'tpu']

    def apply(params, state, inputs):
        return model.apply(params, state, None, inputs)[0]

    program = jax.export.export(jax.jit(apply), platforms=platforms)(params, state, inputs)
    assert program.platforms == (*platforms,)
    outputs = jax.eval_shape(apply, params, state, inputs)
    assert [x.shape for x in program.out_avals] == [x.shape for x in jax.tree.leaves(outputs)]
