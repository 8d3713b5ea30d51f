"""The Python of README, modules.md and weights.md runs as it is written."""

import pathlib
import re

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from perceiver_jax import RELEASED, initialise, load
from perceiver_jax.weights import foreign_files, translation

pytestmark = pytest.mark.smoke

ROOT = pathlib.Path(__file__).parent.parent


def blocks(page):
    return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text('utf-8'), re.DOTALL)


BUILDING, LOADING = blocks('README.md')
(TRAINING,) = blocks('docs/modules.md')
(WEIGHTS,) = blocks('docs/weights.md')


def run(example):
    names = {}
    exec(example, names)
    return names


def test_the_python_of_every_page_is_run():
    """Here, in `test_docs.py` (fine-tuning) or in `test_adding_a_task.py`."""
    pages = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]
    with_python = {page.name for page in pages if '```python' in page.read_text('utf-8')}
    run_somewhere = {'README.md', 'modules.md', 'weights.md', 'fine_tuning.md', 'adding_a_task.md'}
    assert with_python == run_somewhere | {'CONTRIBUTING.md'}  # a template of a docstring


def test_readme_is_read_in_one_sitting():
    assert len((ROOT / 'README.md').read_text('utf-8').splitlines()) <= 150


@pytest.mark.slow
def test_the_model_of_readme_gives_each_pixel_a_number():
    """Which depends on all pixels, and on where it is asked for: the first two are alike."""
    names = run(BUILDING)
    images = names['images'].at[0, 0, 1].set(names['images'][0, 0, 0])
    before = names['depth'].apply(names['params'], None, images)
    after = names['depth'].apply(names['params'], None, images.at[0, -1, -1].add(1))
    assert names['depths'].shape == before.shape == (2, 32 * 32, 1)
    assert before[0, 0] != before[0, 1] and before[0, 0] != after[0, 0]
    np.testing.assert_array_equal(before[1], after[1])


@pytest.fixture(scope='module')
def training():
    return run(TRAINING)


@pytest.mark.slow
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


@pytest.fixture
def weights_and_photograph(tmp_path, monkeypatch):
    """What the examples load: a photograph of noise, and random weights of a small model."""
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


@pytest.mark.usefixtures('weights_and_photograph')
def test_the_weights_of_readme():
    assert run(LOADING)['logits'].shape == (1, 1000)


@pytest.mark.usefixtures('weights_and_photograph')
def test_the_weights_of_their_page():
    names = run(WEIGHTS)
    image, logits = names['image'], names['logits']
    assert logits.shape == (1, 1000)
    assert names['weights'].shape == (1, 1, 7, 224 * 224)
    assert names['features'].shape == (1, 8)
    assert names['other_classes'](image[None]).shape == (1, 2)
    assert names['larger'].front_end['size'] == 320
    half = names['half'](image[None])
    np.testing.assert_allclose(half, logits, atol=0.02)
    assert not np.array_equal(half, logits)
    np.testing.assert_array_equal(load('model')(image[None]), logits)
    program = jax.export.deserialize(pathlib.Path('model.stablehlo').read_bytes())
    both = np.stack([image, image[::-1]])
    np.testing.assert_allclose(program.call(both)[:1], logits, atol=1e-5)


@pytest.mark.parametrize('name', RELEASED)
def test_the_table_of_released_models_is_true(name):
    text = (ROOT / 'docs' / 'weights.md').read_text('utf-8')
    (row,) = re.findall(rf'\| `{name}` \|.*\| ([\d,]+) \|\n', text)
    total = ROOT / 'tests' / 'golden' / f'params_{name}.json'
    assert f'"total": {row.replace(",", "")},' in total.read_text()
