import pathlib
import re

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from perceiver_jax import RELEASED, initialise
from perceiver_jax.weights import foreign_files, translation

README = pathlib.Path(__file__).parent.parent / 'README.md'
TEXT = README.read_text('utf-8')
TRAINING, LOADING = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)


def run(example):
    names = {}
    exec(example, names)
    return names


@pytest.fixture(scope='module')
def training():
    return run(TRAINING)


def test_the_training_example_learns(training):
    assert training['loss'] < 0.05 < np.var(training['curves'][..., 1])


def test_the_training_example_is_data_parallel_on_a_mesh(training):
    """As JAX's documentation has it: the axes of `jax.make_mesh` are explicit."""
    mesh = jax.make_mesh((8,), ('data',))
    curves = training['curves']
    params = training['model'].init(jax.random.key(0), curves[:, :40], curves[:, 40:, :1])
    trained = params, training['optimizer'].init(params)
    params, state = jax.device_put(trained, NamedSharding(mesh, PartitionSpec()))
    curves = jax.device_put(curves, NamedSharding(mesh, PartitionSpec('data')))
    for _ in range(3):
        params, state, loss = training['update'](params, state, curves)
    assert loss == pytest.approx(0.8925, abs=1e-4)  # as on one device


def test_the_weights_example(tmp_path, monkeypatch):
    """As it is written, with a photograph of noise and random weights of a small model."""
    released = RELEASED['imagenet_fourier']
    sizes = dict(num_latents=7, latent_channels=16, num_blocks=2, num_self_attends_per_block=1)
    arguments = {**released.arguments, 'encoder': sizes, 'decoder': dict(query_channels=8)}
    small = released._replace(arguments=arguments)
    monkeypatch.setitem(RELEASED, 'imagenet_fourier', small)
    monkeypatch.chdir(tmp_path)
    model = initialise('image_classifier', small.arguments, small.front_end)
    weights = translation.to_deepmind(model.params, model.state)
    foreign_files.write_deepmind('imagenet_fourier_position_encoding.pystate', *weights)
    noise = np.random.default_rng(0).integers(256, size=(300, 400, 3), dtype=np.uint8)
    cv2.imwrite('photograph.jpg', noise)
    names = run(LOADING)
    assert names['logits'].shape == (1, 1000)
    assert names['weights'].shape == (1, 1, 7, 224 * 224)


@pytest.mark.parametrize('name', RELEASED)
def test_the_table_of_released_models_is_true(name):
    (row,) = re.findall(rf'\| `{name}` \|.*\| ([\d,]+) \|\n', TEXT)
    total = pathlib.Path(__file__).parent / 'golden' / f'params_{name}.json'
    assert f'"total": {row.replace(",", "")},' in total.read_text()
