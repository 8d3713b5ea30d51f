"""Our outputs equal DeepMind's, on random weights of small models and on the primitives.

The models' files are read from the folder in the environment variable GOLDEN_DIR, tests/golden
without it: `<model>.npz`, and `hf_<model>.safetensors`, the same weights in Hugging Face's format.
Parameter names, shapes and counts of the released full-size models are compared too.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.attention import attend
from perceiver_jax.inputs import extract_patches, space_to_depth
from perceiver_jax.position_encoding import fourier_features, grid_positions
from perceiver_jax.weights import foreign_files, translation
from perceiver_jax.weights.pretrained import Pretrained
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.trees import check_fit
from tests.toys.golden import OURS, image_model, read_arrays, read_tree

pytestmark = [pytest.mark.golden, pytest.mark.gpu]
# Primitives and parameter lists are always OURS.
GOLDEN = pathlib.Path(os.environ.get('GOLDEN_DIR') or OURS)
OTHERS = ('primitives', 'baselines')  # which are no released models
MODELS = sorted(p.stem for p in GOLDEN.glob('*.npz') if p.stem not in OTHERS)
HUGGING_FACE = sorted(p.stem.removeprefix('hf_') for p in GOLDEN.glob('hf_*.safetensors'))


def relative_difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def encoder_of(sizes):
    """Our fields of an encoder whose blocks are not shared."""
    return dict(
        num_latents=sizes['z_index_dim'],
        latent_channels=sizes['num_z_channels'],
        num_blocks=1,
        num_self_attends_per_block=sizes['num_self_attends_per_block'],
        self_attend=dict(num_heads=sizes.get('num_self_attend_heads', 8)),
    )


def flow_model(sizes):
    inputs = dict(channels=64, patch_size=3, num_bands=64, max_resolution=sizes['train_size'])
    decoder = dict(cross_attend=dict(use_query_residual=False))
    return dict(inputs=inputs, encoder=encoder_of(sizes['encoder']), decoder=decoder)


def language_model(sizes):
    channels = {name: sizes['encoder'][name] for name in ('qk_channels', 'v_channels')}
    encoder = encoder_of(sizes['encoder'])
    return dict(
        inputs=dict(channels=sizes['d_model'], max_length=sizes['max_seq_len']),
        encoder={
            **encoder,
            'cross_attend': dict(num_heads=8, **channels),
            'self_attend': {**encoder['self_attend'], **channels},
        },
        decoder=dict(cross_attend=dict(num_heads=8, use_query_residual=False, **sizes['decoder'])),
    )


def video_model(sizes):
    side = sizes['image_size'] // 4
    samples = sizes['num_frames'] * sizes['audio_per_frame']
    video = dict(num_bands=32, max_resolution=[sizes['num_frames'], side, side])
    audio = dict(num_bands=192, max_resolution=[samples])
    return dict(
        num_classes=sizes['classes'],
        inputs=dict(
            video=dict(patch=[1, 4, 4], **video),
            audio=dict(samples_per_patch=sizes['samples_per_patch'], **audio),
            min_padding=4,
        ),
        encoder=encoder_of(sizes['encoder']),
        queries=dict(
            video=video,
            audio=audio,
            label_channels=sizes['label_channels'],
            min_padding=2,
            endpoint=False,
        ),
        decoder=dict(output_channels=512, cross_attend=dict(use_query_residual=False)),
    )


def build(name, golden, params, state):
    """Our model with these weights, and what it is called with."""
    sizes = json.loads(str(golden['config']))
    if name == 'optical_flow':
        front_end = dict(tile=sizes['train_size'])
        inputs, named = (golden['input|images'],), {}
        arguments = flow_model(sizes)
    elif name == 'mlm_bytes':
        front_end = dict(length=sizes['max_seq_len'])
        inputs, named = (golden['input|inputs'], golden['input|input_mask']), {}
        arguments = language_model(sizes)
    elif name == 'video_autoencoding':
        front_end = dict(
            num_frames=sizes['num_frames'],
            size=sizes['image_size'],
            frames_per_second=1,
            sample_rate=sizes['audio_per_frame'],
        )
        elements = {
            'video': np.arange(*sizes['image_points']),
            'audio': np.arange(*sizes['audio_points']),
        }
        inputs = (golden['input|images'], golden['input|audio'])
        named = dict(output_elements=elements)
        arguments = video_model(sizes)
    elif name.startswith('imagenet_'):
        images = golden['input|images']
        front_end = dict(size=images.shape[1], mean=[0.5] * 3)
        inputs, named, arguments = (images,), {}, image_model(sizes)
    else:
        pytest.fail(f'{GOLDEN}/{name} is of no model that is built here')
    model = Pretrained(RELEASED[name].function, arguments, front_end, params, state)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    check_fit(params, state, *expected, name)
    return model(*inputs, **named)


def check_outputs(name, golden, outputs):
    if name == 'video_autoencoding':
        outputs = {'image': outputs['video'], 'audio': outputs['audio'], 'label': outputs['label']}
        expected = {key: golden[f'output|{key}'] for key in outputs}
    else:
        outputs, expected = {'': outputs}, {'': golden['output']}
    for key, value in expected.items():
        ours = np.asarray(outputs[key]).reshape(value.shape)
        difference = relative_difference(ours, value)
        largest = np.abs(ours - value).max()
        print(f'{name} {key}: relative {difference:.1e}, largest {largest:.1e}')
        assert difference < 1e-5, key


def test_there_are_golden_files():
    assert MODELS, f'{GOLDEN} holds no <model>.npz'


@pytest.mark.parametrize('name', MODELS)
def test_outputs_equal_the_reference(name):
    golden = read_arrays(GOLDEN / f'{name}.npz')
    weights = read_tree(golden, 'params'), read_tree(golden, 'state')
    check_outputs(name, golden, build(name, golden, *translation.from_deepmind(*weights)))
    there_and_back = translation.to_deepmind(*translation.from_deepmind(*weights))
    jax.tree.map(np.testing.assert_array_equal, there_and_back, weights)


@pytest.mark.parametrize('name', HUGGING_FACE)
def test_weights_of_hugging_face_give_the_outputs_of_the_reference(name):
    golden = read_arrays(GOLDEN / f'{name}.npz')
    tensors = foreign_files.read_huggingface(GOLDEN / f'hf_{name}.safetensors')
    weights = translation.from_huggingface(tensors)
    check_outputs(name, golden, build(name, golden, *weights))
    there_and_back = translation.to_huggingface(*weights)
    jax.tree.map(np.testing.assert_array_equal, there_and_back, tensors)


@pytest.mark.parametrize('name', RELEASED)
def test_full_size_parameters_equal_the_released_models(name):
    released = json.loads((OURS / f'params_{name}.json').read_text())

    def ours(entries, key):
        # A 1x1 convolution is a matrix here, batch normalisation a vector: squeeze both sides.
        return {
            translation.our_name(name, e['module'], e[key]): tuple(n for n in e['shape'] if n > 1)
            for e in entries
        }

    model = Pretrained(RELEASED[name].function, *RELEASED[name][1:3], {}, {})
    params, state = jax.eval_shape(model.init, jax.random.key(0))

    def shapes(tree):
        return {
            (module, key): tuple(n for n in value.shape if n > 1)
            for module, values in tree.items()
            for key, value in values.items()
        }

    assert shapes(params) == ours(released['params'], 'param')
    assert shapes(state) == ours(released['state'], 'name')
    assert sum(p.size for p in jax.tree.leaves(params)) == released['total']


@pytest.fixture(scope='module')
def primitives():
    return read_arrays(OURS / 'primitives.npz')


def test_grid_positions(primitives):
    assert relative_difference(grid_positions((5, 7)), primitives['positions_5x7']) < 1e-6


@pytest.mark.parametrize('case', ['a', 'b', 'c'])
def test_fourier_features(primitives, case):
    settings = json.loads(str(primitives[f'fourier_{case}_kw']))
    if 'concat_pos' in settings:
        settings['concat_positions'] = settings.pop('concat_pos')
    features = fourier_features(grid_positions((5, 7)), **settings).reshape(35, -1)
    assert relative_difference(features, primitives[f'fourier_{case}']) < 1e-5


@pytest.mark.parametrize('masked', [False, True])
def test_attend(primitives, masked):
    query, key, value = (jnp.asarray(primitives[f'attend_{x}']) for x in 'qkv')
    mask = jnp.asarray(primitives['attend_mask']) if masked else None
    output = np.asarray(attend(query, key, value, mask)).reshape(2, 5, 18)
    expected = primitives['attend_out_masked' if masked else 'attend_out']
    assert relative_difference(output, expected) < 1e-5


def test_patches(primitives):
    frames = primitives['patches_in']
    for i in range(2):
        patches = extract_patches(frames[:, i], 3)
        np.testing.assert_array_equal(patches, primitives['patches_flow'][:, i])


def test_space_to_depth(primitives):
    patches = space_to_depth(primitives['patches_in'], (2, 2, 2))
    np.testing.assert_array_equal(patches, primitives['s2d'])
