"""Our outputs equal DeepMind's, on random weights of small models and on the primitives.

The models' files are read from the folder in the environment variable GOLDEN_DIR, tests/golden
without it. Parameter names, shapes and counts of the released full-size models are compared too.
"""

import json
import os
import pathlib

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet
from perceiver_jax import checkpoints
from perceiver_jax.attention import attend
from perceiver_jax.models import image_classifier
from perceiver_jax.position_encoding import fourier_features, grid_positions

OURS = pathlib.Path(__file__).parent / 'golden'  # primitives and parameter lists are always these
GOLDEN = pathlib.Path(os.environ.get('GOLDEN_DIR') or OURS)
MODELS = sorted(p.stem for p in GOLDEN.glob('*.npz') if p.stem != 'primitives')


def relative_difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def read_tree(golden, prefix):
    tree = {}
    for key in golden.files:
        kind, *names = key.split('|')
        if kind == prefix:
            value = golden[key]
            value = value.astype(np.float32) if value.dtype == np.float16 else value
            tree.setdefault(names[0], {})[names[1]] = value
    return tree


def image_model(sizes):
    """Our arguments for a model that the reference was configured with."""
    inputs, encoder, decoder = (sizes[k] for k in ('input_preprocessor', 'encoder', 'decoder'))
    contents = {'pixels': 'pixels', 'conv1x1': 'conv1x1', 'conv': 'conv7x7'}[inputs['prep_type']]
    ours = dict(contents=contents, contents_channels=inputs.get('num_channels'))
    if inputs['position_encoding_type'] == 'fourier':
        fourier = inputs['fourier_position_encoding_kwargs']
        assert fourier['concat_pos'] and not fourier['sine_only']
        ours.update(
            positions='fourier',
            num_bands=fourier['num_bands'],
            max_resolution=fourier['max_resolution'],
        )
    else:
        ours.update(
            positions='learned',
            position_channels=inputs['trainable_position_encoding_kwargs']['num_channels'],
            position_init_std=0.02,
            project_positions_to=inputs['project_pos_dim'],
        )
    return dict(
        num_classes=sizes['classes'],
        inputs=ours,
        encoder=dict(
            num_latents=encoder['z_index_dim'],
            latent_channels=encoder['num_z_channels'],
            num_blocks=encoder['num_blocks'],
            num_self_attends_per_block=encoder['num_self_attends_per_block'],
            num_cross_attend_heads=encoder['num_cross_attend_heads'],
            num_self_attend_heads=encoder['num_self_attend_heads'],
            cross_attend_widening_factor=encoder['cross_attend_widening_factor'],
            self_attend_widening_factor=encoder['self_attend_widening_factor'],
            use_query_residual=encoder['use_query_residual'],
        ),
        decoder=dict(
            query_channels=decoder['num_z_channels'],
            use_query_residual=decoder['use_query_residual'],
        ),
    )


def run_image_classifier(golden, sizes):
    def forward(images):
        return image_classifier(images, is_training=False, **image_model(sizes))

    params = checkpoints.from_deepmind(read_tree(golden, 'params'))
    state = checkpoints.from_deepmind(read_tree(golden, 'state'))
    model = hk.transform_with_state(forward)
    images = golden['input|images']
    expected = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, (params, state)) == jax.tree.map(np.shape, expected)
    return jax.jit(model.apply)(params, state, None, images)[0]


RUN = {  # the reference's model -> what runs ours on its weights and inputs
    'imagenet_fourier': run_image_classifier,
    'imagenet_learned': run_image_classifier,
    'imagenet_conv': run_image_classifier,
}


def test_there_are_golden_files():
    assert MODELS, f'{GOLDEN} holds no <model>.npz'


@pytest.mark.parametrize('name', MODELS)
def test_outputs_equal_the_reference(name):
    assert name in RUN, f'{GOLDEN}/{name}.npz is of no model that is built here'
    golden = np.load(GOLDEN / f'{name}.npz')
    output = RUN[name](golden, json.loads(str(golden['config'])))
    assert relative_difference(np.asarray(output), golden['output']) < 1e-5


VARIANTS = {
    'imagenet_fourier': 'io_fourier',
    'imagenet_learned': 'io_learned',
    'imagenet_conv': 'io_conv',
}


@pytest.mark.parametrize('name', VARIANTS)
def test_full_size_parameters_equal_the_released_models(name):
    released = json.loads((OURS / f'params_{name}.json').read_text())

    def ours(entries, key):
        # A 1x1 convolution is a matrix here, batch normalisation a vector: squeeze both sides.
        return {
            checkpoints.our_name(e['module'], e[key]): tuple(n for n in e['shape'] if n > 1)
            for e in entries
        }

    config = imagenet.get_config(VARIANTS[name])
    model = hk.transform_with_state(
        lambda images: image_classifier(images, is_training=False, **config.model)
    )
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), images)

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
    return np.load(OURS / 'primitives.npz')


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
