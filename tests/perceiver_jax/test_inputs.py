import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.grids import permutation, written_out
from perceiver_jax.inputs import (
    FlowInputs,
    ImageInputs,
    JoinModalities,
    TextInputs,
    as_images,
    audio_elements,
    extract_patches,
    point_elements,
    space_to_depth,
    spectrogram_elements,
    video_elements,
)
from perceiver_jax.position_encoding import fourier_features, grid_positions

FOURIER = dict(num_bands=3, max_resolution=(7, 5))


def images(batch=2, height=7, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, 3)).astype(np.float32)


def build(**fields):
    def forward(x, is_training):
        return written_out(ImageInputs(**fields, name='inputs')(x, is_training=is_training))

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


def test_written_out_elements_are_those_of_the_grid_in_their_order():
    x = images()
    for seed in (None, 11):
        given, _ = run(x, **FOURIER, permutation_seed=seed)

        def forward(x, is_training, seed=seed):
            read = ImageInputs(**FOURIER, permutation_seed=seed, as_array=True)
            return read(x, is_training=is_training)

        array, _ = hk.transform_with_state(forward).apply({}, {}, None, x, False)
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(array, given)


def test_values_of_elements_return_to_where_their_pixels_were():
    maps = np.random.default_rng(0).random((2, 3, 5, 5))
    np.testing.assert_array_equal(as_images(maps.reshape(2, 3, 25)), maps)
    shuffled = maps.reshape(2, 3, 25)[..., permutation(7, 25)]
    np.testing.assert_array_equal(as_images(shuffled, 7), maps)


def test_without_positions_elements_are_pixels():
    output, params = run(images(), positions='none', permutation_seed=None)
    np.testing.assert_array_equal(output, images().reshape(*output.shape))
    shuffled, _ = run(images(), positions='none', permutation_seed=3)
    order = permutation(3, output.shape[1])
    np.testing.assert_array_equal(shuffled, np.asarray(output)[:, order])
    assert not params


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


@pytest.mark.parametrize('permutation_seed', [None, 7])
def test_what_masked_pixels_hold_does_not_reach_the_gradient(permutation_seed):
    fields = dict(contents='conv1x1', contents_channels=2, **FOURIER)
    fields['permutation_seed'] = permutation_seed
    model = hk.transform(lambda *x: ImageInputs(**fields)(*x, is_training=True).array())
    order = np.arange(35) if permutation_seed is None else permutation(permutation_seed, 35)
    mask = np.arange(35) % 4 > np.array([[0], [1]])  # of elements, which are pixels in this order
    spoilt = images().reshape(2, 35, 3)
    for example in range(2):
        spoilt[example, order[~mask[example]]] = np.nan
    params = model.init(jax.random.key(0), images())

    def loss(params, images):
        elements = model.apply(params, None, images, mask)
        return (jnp.where(mask[..., None], elements, 0) ** 2).sum()

    gradients = [jax.grad(loss)(params, x) for x in (images(), spoilt.reshape(2, 7, 5, 3))]
    jax.tree.map(np.testing.assert_array_equal, *gradients)
    with pytest.raises(Refused, match=r'mask is \[B, M\] = \(2, 35\); got \(2, 34\)'):
        model.apply(params, None, images(), mask[:, 1:])


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


def test_patches_hold_rows_then_columns_then_channels():
    x = images()
    patches = extract_patches(x, 3)
    assert patches.shape == (2, 7, 5, 27)
    np.testing.assert_array_equal(patches[1, 2, 3], x[1, 1:4, 2:5].reshape(-1))
    corner = np.zeros((3, 3, 3))
    corner[1:, 1:] = x[0, :2, :2]
    np.testing.assert_array_equal(patches[0, 0, 0], corner.reshape(-1))
    np.testing.assert_array_equal(extract_patches(x, 1), x)
    with pytest.raises(ValueError, match='odd side, not 2'):
        extract_patches(x, 2)
    with pytest.raises(Refused, match='there are 998,001 pixels in a patch, expected at most'):
        extract_patches(x, 999)
    with pytest.raises(Refused, match='the shuffle of the elements would take 8,000,000,000 bytes'):
        permutation(0, 10**9)


VIDEO = np.random.default_rng(0).normal(size=(2, 4, 6, 15, 3)).astype(np.float32)


def test_space_to_depth_holds_frames_then_rows_then_columns_then_channels():
    patches = space_to_depth(VIDEO, (2, 3, 5))
    assert patches.shape == (2, 2, 2, 3, 90)
    np.testing.assert_array_equal(patches[1, 1, 0, 2], VIDEO[1, 2:4, 0:3, 10:15].reshape(-1))
    with pytest.raises(ValueError, match=r'\(2, 4, 5\) do not divide.*\(4, 6, 15\)'):
        space_to_depth(VIDEO, (2, 4, 5))


def test_video_elements_are_patches_and_where_they_are():
    positions = dict(num_bands=2, max_resolution=(4, 2, 6))
    elements = video_elements(VIDEO, patch=(1, 3, 5), **positions).array()
    assert elements.shape == (2, 4 * 2 * 3, 45 + 3 * 5)
    element = (2 * 2 + 1) * 3 + 2  # frame 2, row 1, column 2
    np.testing.assert_array_equal(elements[1, element, :45], VIDEO[1, 2, 3:, 10:].reshape(-1))
    expected = fourier_features(grid_positions((4, 2, 3)), **positions)[2, 1, 2]
    np.testing.assert_array_equal(elements[1, element, 45:], expected)


def test_audio_elements_are_stretches_and_when_they_are():
    audio = np.random.default_rng(0).normal(size=(2, 35, 1)).astype(np.float32)
    positions = dict(num_bands=3, max_resolution=[11])
    elements = audio_elements(audio, samples_per_patch=7, **positions)
    assert elements.shape == (2, 5, 7 + 7)
    np.testing.assert_array_equal(elements[1, 3, :7], audio[1, 21:28, 0])
    expected = fourier_features(grid_positions((5,)), **positions)[3]
    np.testing.assert_array_equal(elements[1, 3, 7:], expected)
    with pytest.raises(ValueError, match='8 samples do not divide 35'):
        audio_elements(audio, samples_per_patch=8, **positions)


def test_audio_elements_overlap_where_the_hop_is_less_than_they_are():
    audio = np.random.default_rng(0).normal(size=(2, 36, 2)).astype(np.float32)
    positions = dict(num_bands=3, max_resolution=[11])
    elements = audio_elements(audio, samples_per_patch=12, hop=4, **positions)
    assert elements.shape == (2, 7, 24 + 7)
    np.testing.assert_array_equal(elements[1, 3, :24], audio[1, 12:24].reshape(-1))
    expected = fourier_features(grid_positions((7,)), **positions)[3]
    np.testing.assert_array_equal(elements[1, 3, 24:], expected)
    with pytest.raises(Refused, match='hop of 5 samples does not divide patches of 12'):
        audio_elements(audio, samples_per_patch=12, hop=5, **positions)
    with pytest.raises(Refused, match='Hops of 8 samples do not divide 36'):
        audio_elements(audio, samples_per_patch=16, hop=8, **positions)


def test_flow_inputs_project_the_patches_of_both_frames():
    frames = np.random.default_rng(0).normal(size=(2, 2, 7, 5, 3)).astype(np.float32)

    def forward(x):
        return FlowInputs(channels=11, name='inputs', **FOURIER)(x, is_training=False).array()

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), frames)
    assert jax.tree.map(jnp.shape, params) == {'inputs/projection': {'w': (54, 11), 'b': (11,)}}
    elements = model.apply(params, None, frames)
    assert elements.shape == (2, 35, 11 + 2 * 7)
    patches = [extract_patches(frames[:, i], 3)[1, 2, 4] for i in range(2)]  # the first in front
    expected = np.concatenate(patches) @ params['inputs/projection']['w']
    np.testing.assert_allclose(elements[1, 2 * 5 + 4, :11], expected, atol=1e-5)
    with pytest.raises(ValueError, match=r'\[B, 2, height, width, channels\]; got \(2, 7, 5, 3\)'):
        model.apply(params, None, frames[:, 0])


def flow_elements(frames, **fields):
    def forward(x):
        read = FlowInputs(channels=11, num_bands=2, name='inputs', **fields)
        return read(x, is_training=False).array()

    model = hk.transform_with_state(forward)
    params, state = model.init(jax.random.key(0), frames)
    return model.apply(params, state, None, frames)[0], params


@pytest.mark.parametrize('contents', ['patches', 'conv7x7'])
def test_separate_frames_come_one_after_the_other_with_their_time(contents):
    frames = np.random.default_rng(0).normal(size=(2, 2, 7, 5, 3)).astype(np.float32)
    grid = (7, 5) if contents == 'patches' else (2, 2)
    fields = dict(contents=contents, concatenate_frames=False, max_resolution=(2, *grid))
    elements, _ = flow_elements(frames, **fields)
    count = grid[0] * grid[1]
    assert elements.shape == (2, 2 * count, 11 + 3 * 5)
    np.testing.assert_array_equal(elements[0, :count, 11], np.full(count, -1))  # raw time
    np.testing.assert_array_equal(elements[0, count:, 11], np.full(count, 1))
    # The second frame as the first one has the same contents.
    swapped, _ = flow_elements(frames[:, ::-1], **fields)
    np.testing.assert_allclose(swapped[:, :count, :11], elements[:, count:, :11], atol=1e-6)
    positions = fourier_features(grid_positions((2, *grid)), 2, (2, *grid))
    np.testing.assert_allclose(elements[1, :, 11:], positions.reshape(-1, 15), atol=1e-6)


def test_flow_inputs_through_a_convolution_are_a_quarter_of_either_side():
    frames = np.random.default_rng(0).normal(size=(2, 2, 13, 8, 3)).astype(np.float32)
    elements, params = flow_elements(frames, contents='conv7x7', max_resolution=(4, 2))
    assert elements.shape == (2, 4 * 2, 11 + 2 * 5)
    assert params['inputs/conv7x7']['w'].shape == (7, 7, 6, 11)


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(contents='pixels'), "must be 'patches' or 'conv7x7', not 'pixels'"),
        (dict(max_resolution=(2, 3, 4)), r'has an entry for height and width.* \(2, 3, 4\)'),
        (dict(concatenate_frames=False), r'where frames are separate; got \(368, 496\)'),
    ],
)
def test_flow_inputs_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        flow_elements(np.zeros((1, 2, 3, 3, 3)), **fields)


def test_text_inputs_add_positions_to_embeddings():
    tokens = np.array([[2, 0, 4], [1, 1, 3]])

    def forward(x):
        return TextInputs(vocabulary_size=5, channels=7, max_length=11, name='inputs')(x, 'float32')

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), tokens)
    elements, embeddings = model.apply(params, None, tokens)
    assert embeddings.shape == (5, 7)
    positions = params['inputs/position_encoding']['positions']
    assert positions.shape == (11, 7)
    np.testing.assert_allclose(elements[1, 2], embeddings[3] + positions[2], rtol=1e-6)
    with pytest.raises(ValueError, match=r'at most 11\]; got \(2, 13\)'):
        model.apply(params, None, np.zeros((2, 13), int))


MODALITIES = {
    'audio': np.ones((2, 3, 5), np.float32),
    'label': np.full((2, 1, 7), 2, np.float32),
}


def join(hidden=None, mask_tokens=True):
    model = hk.transform(
        lambda x: JoinModalities(2, mask_tokens=mask_tokens, name='inputs')(x, hidden)
    )
    params = model.init(jax.random.key(0), MODALITIES)
    return model.apply(params, None, MODALITIES), params['inputs']


def test_modalities_are_padded_to_a_common_width_by_vectors_of_their_own():
    joined, params = join()
    assert joined.shape == (2, 3 + 1, 7 + 2)
    np.testing.assert_array_equal(joined[1, 2], [1] * 5 + list(params['audio_padding']))
    np.testing.assert_array_equal(joined[0, 3], [2] * 7 + list(params['label_padding']))
    assert {k: v.shape for k, v in params.items()} == {
        'audio_padding': (4,),
        'audio_mask_token': (9,),
        'label_padding': (2,),
        'label_mask_token': (9,),
    }


def test_hidden_elements_are_a_mask_token():
    shown, _ = join()
    joined, params = join({'audio': np.array([[False, True, False], [False] * 3])})
    np.testing.assert_array_equal(joined[0, 1], params['audio_mask_token'])
    np.testing.assert_array_equal(joined[1], shown[1])
    np.testing.assert_array_equal(joined[0, [0, 2, 3]], shown[0, [0, 2, 3]])


def test_what_cannot_be_hidden():
    with pytest.raises(ValueError, match=r"\['video'\]; there is \['audio', 'label'\]"):
        join({'video': np.zeros((2, 3), bool)})
    with pytest.raises(ValueError, match='audio cannot be hidden without mask_tokens'):
        join({'audio': np.zeros((2, 3), bool)}, mask_tokens=False)


def test_points_are_their_positions_and_fourier_features():
    points = np.random.default_rng(0).uniform(-1, 1, (2, 7, 3)).astype(np.float32)
    elements = point_elements(points, num_bands=5, max_resolution=(22, 22, 22))
    assert elements.shape == (2, 7, 3 * (2 * 5 + 1)) and elements.dtype == np.float32
    np.testing.assert_array_equal(elements[..., :3], points)
    frequencies = [1, 3.5, 6, 8.5, 11]
    angles = np.pi * points[..., None].astype(np.float64) * frequencies  # [2, 7, 3, 5]
    np.testing.assert_allclose(elements[..., 3:18], np.sin(angles).reshape(2, 7, 15), atol=1e-5)
    np.testing.assert_allclose(elements[..., 18:], np.cos(angles).reshape(2, 7, 15), atol=1e-5)


def test_the_papers_points_have_387_channels_as_exact_as_float32_allows():
    points = np.random.default_rng(0).uniform(-1, 1, (1, 100, 3)).astype(np.float32)
    elements = point_elements(points, num_bands=64, max_resolution=(2240, 2240, 2240))
    assert elements.shape == (1, 100, 387)
    # At the highest frequency, 1,120, an angle is known to 1120 pi 2^-24 = 2e-4.
    np.testing.assert_allclose(
        elements, fourier_features(points, 64, (2240, 2240, 2240)), atol=5e-4
    )


@pytest.mark.parametrize(
    'shape, message', [((7, 3), r'takes points .* got \(7, 3\)'), ((2, 7, 2), 'max_resolution')]
)
def test_what_are_no_points_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        point_elements(np.zeros(shape, np.float32), num_bands=5, max_resolution=(22, 22, 22))


def test_spectrogram_patches_with_positions_in_time_and_frequency():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 20)), jnp.float32)
    elements = spectrogram_elements(x, patch=(2, 4), num_bands=3, max_resolution=(3, 5)).array()
    assert elements.shape == (2, 3 * 5, 2 * 4 + 2 * 7)
    row, column = 1, 4
    np.testing.assert_array_equal(elements[1, row * 5 + column, :8], x[1, 2:4, 16:20].reshape(8))
    positions = fourier_features(grid_positions((3, 5)), 3, (3, 5))
    np.testing.assert_allclose(elements[0, row * 5 + column, 8:], positions[row, column], atol=1e-6)


def test_spectrogram_values_with_positions_along_one_axis():
    x = jnp.arange(2 * 6 * 5.0).reshape(2, 6, 5)
    elements = spectrogram_elements(x, patch=(1, 1), num_bands=3, max_resolution=(30,))
    assert elements.shape == (2, 30, 1 + 7)
    np.testing.assert_array_equal(elements[1, :, 0], np.arange(30, 60))
    positions = fourier_features(grid_positions((30,)), 3, (30,))
    np.testing.assert_allclose(elements[1, :, 1:], positions, atol=1e-6)
    with pytest.raises(ValueError, match=r'Patches of \(4, 1\) do not divide a spectrogram'):
        spectrogram_elements(x, patch=(4, 1), num_bands=3, max_resolution=(30,))


ELEMENTS = [  # what makes elements, the shape it takes, and the name of what it takes
    (lambda x: ImageInputs(**FOURIER)(x, is_training=False), (2, 4, 4, 3), 'images'),
    (
        lambda x: ImageInputs(contents='conv1x1', contents_channels=2, **FOURIER)(
            x, is_training=False
        ),
        (2, 4, 4, 3),
        'images',
    ),
    (
        lambda x: ImageInputs(contents='conv7x7', contents_channels=2, **FOURIER)(
            x, is_training=True
        ),
        (2, 4, 4, 3),
        'images',
    ),
    (
        lambda x: ImageInputs(positions='learned', position_channels=2, position_init_std=0.02)(
            x, is_training=False
        ),
        (2, 4, 4, 3),
        'images',
    ),
    (lambda x: FlowInputs(num_bands=2)(x, is_training=False), (2, 2, 4, 5, 3), 'frames'),
    (
        lambda x: FlowInputs(
            num_bands=2, contents='conv7x7', concatenate_frames=False, max_resolution=(2, 4, 5)
        )(x, is_training=False),
        (2, 2, 4, 5, 3),
        'frames',
    ),
    (
        lambda x: video_elements(x, patch=(1, 2, 2), num_bands=2, max_resolution=(2, 2, 2)),
        (2, 2, 4, 4, 3),
        'video',
    ),
    (
        lambda x: audio_elements(x, samples_per_patch=2, num_bands=2, max_resolution=(2,)),
        (2, 8, 1),
        'audio',
    ),
    (
        lambda x: spectrogram_elements(x, patch=(1, 2), num_bands=2, max_resolution=(2,)),
        (2, 3, 4),
        'spectrogram',
    ),
    (lambda x: point_elements(x, num_bands=2, max_resolution=(4, 4, 4)), (2, 9, 3), 'points'),
    (lambda x: JoinModalities(2)({'touch': x}), (2, 9, 3), 'touch'),
]


@pytest.mark.parametrize('make, shape, name', ELEMENTS)
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'bool'])
def test_integers_are_refused(make, shape, name, dtype):
    """Positions and paddings, cast to their dtype, would be rounded to zero."""
    model = hk.transform_with_state(make)
    with pytest.raises(Refused, match=f'takes {name} of a floating-point dtype, .* not {dtype}'):
        model.init(jax.random.key(0), np.ones(shape, dtype))


@pytest.mark.parametrize('make, shape, name', ELEMENTS)
def test_lists_and_other_axes_are_refused(make, shape, name):
    for given, message in (
        (np.ones(shape, np.float32).tolist(), f'takes {name} as an array, not as list'),
        (np.ones(shape[1:], np.float32), rf'takes {name} \[B, .*\]; got \({shape[1]}, '),
    ):
        with pytest.raises(Refused, match=message):
            hk.transform_with_state(lambda x=given: make(x)).init(jax.random.key(0))


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda: ImageInputs(num_bands=2, max_resolution=4),
            'max_resolution 4 must have one entry',
        ),
        (lambda: ImageInputs(num_bands=2, max_resolution=(4,)), r'\(4,\) must have .* the 2 axes'),
        (lambda: ImageInputs(num_bands=[2], max_resolution=(4, 4)), r'num_bands as an integer'),
        (lambda: FlowInputs(max_resolution=4), 'an entry for height and width, .*; got 4'),
        (lambda: space_to_depth(VIDEO, 2), 'patch 2 must have one entry for each of the 3 axes'),
        (lambda: space_to_depth(VIDEO, (0, 1, 1)), r'at least one element .* not \(0, 1, 1\)'),
        (
            lambda: video_elements(VIDEO, patch=(1, 1, 1), num_bands=2, max_resolution=4),
            'max_resolution 4 must have one entry for each of the 3 axes of the grid',
        ),
        (
            lambda: audio_elements(VIDEO[0, 0], samples_per_patch=5, num_bands=2, max_resolution=4),
            'max_resolution 4 must have one entry for each of the 1 axes',
        ),
        (
            lambda: audio_elements(
                VIDEO[0, 0], samples_per_patch=[5], num_bands=2, max_resolution=[4]
            ),
            r'samples_per_patch as an integer, not \[5\]',
        ),
        (
            lambda: spectrogram_elements(
                VIDEO[0, ..., 0], patch=2, num_bands=2, max_resolution=(3, 5)
            ),
            'patch 2 must have one entry for each of the 2 axes of a spectrogram',
        ),
        (
            lambda: spectrogram_elements(
                VIDEO[0, ..., 0], patch=(2, 5), num_bands=2, max_resolution=3
            ),
            'max_resolution 3 must have one entry for each of the 2 axes',
        ),
        (
            lambda: point_elements(np.zeros((1, 2, 3)), num_bands=2, max_resolution=4),
            'max_resolution 4 must have one entry for each of the 3 axes',
        ),
        (
            lambda: point_elements(np.full((1, 2, 3), 1.5), num_bands=2, max_resolution=(4, 4, 4)),
            r'point_elements takes points within \[-1, 1\], and one is 1.5 away from 0',
        ),
        (lambda: extract_patches(VIDEO[0], [3]), r'size as an integer, not \[3\]'),
        (lambda: JoinModalities(2)([VIDEO]), 'takes a mapping of modalities'),
        (lambda: JoinModalities(2)({}), 'takes a mapping of modalities, not {}'),
        (
            lambda: JoinModalities(2, mask_tokens=True)(
                {'touch': VIDEO[0, 0]}, {'touch': np.zeros((6, 1), bool)}
            ),
            r'hidden \[B, M\]; got \(6, 15, \d+\) and \(6, 1\)',
        ),
        (lambda: TextInputs()([[3, 4]], 'float32'), 'TextInputs takes tokens as an array, not as'),
    ],
)
def test_one_number_for_several_and_the_like_are_refused(make, message):
    with pytest.raises(Refused, match=message):
        hk.transform(make).init(jax.random.key(0))


@pytest.mark.parametrize('make, shape, name', ELEMENTS)
def test_an_empty_batch_gives_no_elements(make, shape, name):
    model = hk.transform_with_state(make)
    params, state = model.init(jax.random.key(0), np.ones(shape, np.float32))
    whole, _ = model.apply(params, state, None, np.ones(shape, np.float32))
    empty, _ = model.apply(params, state, None, np.ones((0, *shape[1:]), np.float32))
    assert empty.shape == (0, *whole.shape[1:])


@pytest.mark.parametrize('dtype', ['float32', 'bool'])
def test_tokens_are_integers(dtype):
    model = hk.transform(lambda x: TextInputs(channels=4)(x, 'float32'))
    with pytest.raises(Refused, match=f'tokens of an integer dtype, not {dtype}'):
        model.init(jax.random.key(0), np.ones((2, 5), dtype))
    params = model.init(jax.random.key(0), np.ones((2, 5), np.uint8))
    assert model.apply(params, None, np.ones((0, 5), np.int32))[0].shape == (0, 5, 4)
