"""Models and weights of ours and of others."""

import functools
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np

from tests.faults.damage import of_arrays
from tests.faults.door import Sample, door
from tests.toys import foreign_weights


@door('perceiver_jax.weights.foreign_files.read_deepmind')
def deepmind_pickle(folder):
    from perceiver_jax.weights.foreign_files import read_deepmind

    arrays = foreign_weights.three_trees('imagenet_conv')[1]
    params, state = foreign_weights.as_trees(arrays)
    file = folder / 'model.pystate'
    file.write_bytes(pickle.dumps({'params': params, 'state': state}, protocol=4))

    def wrong(rng):
        params, state = foreign_weights.as_trees(of_arrays(arrays, rng))
        return pickle.dumps(rng.choice([params, {'params': params, 'state': state}, [params]]))

    return Sample(file, lambda: read_deepmind(file), wrong=wrong)


@door('perceiver_jax.weights.foreign_files.read_huggingface')
def safetensors(folder):
    from safetensors.numpy import save

    from perceiver_jax.weights.foreign_files import read_huggingface

    file = folder / 'model.safetensors'
    arrays = foreign_weights.three_trees('imagenet_conv')[2]
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    file.write_bytes(save(arrays))

    def wrong(rng):
        changed = {k: v for k, v in of_arrays(arrays, rng).items() if v.dtype.kind in 'biuf'}
        return save({name: np.ascontiguousarray(array) for name, array in changed.items()})

    return Sample(file, lambda: read_huggingface(file), wrong=wrong)


@door('perceiver_jax.weights.foreign_files.read_huggingface')
def index_of_safetensors(folder):
    from safetensors.numpy import save

    from perceiver_jax.weights.foreign_files import read_huggingface

    for name in ('a', 'b'):
        (folder / f'{name}.safetensors').write_bytes(save({name: np.ones((2, 3), np.float32)}))
    file = folder / 'model.safetensors.index.json'
    weight_map = {'a': 'a.safetensors', 'b': 'b.safetensors'}
    file.write_text(json.dumps({'metadata': {'total_size': 48}, 'weight_map': weight_map}))
    return Sample(file, lambda: read_huggingface(folder), 'json')


@door('perceiver_jax.weights.foreign_files.read_huggingface')
def torch_bin(folder):
    from perceiver_jax.weights.foreign_files import read_huggingface

    file = folder / 'pytorch_model.bin'
    try:
        import torch

        torch.save({'a': torch.ones(2, 3), 'b': torch.zeros(5)}, file)
    except ImportError:  # then every file is refused
        file.write_bytes(b'PK')
        return Sample(file, lambda: None)
    return Sample(file, lambda: read_huggingface(file))


@functools.cache
def _saved_model():
    """A small model in our format, by the names of its files."""
    from perceiver_jax.weights.pretrained import initialise

    encoder = dict(num_latents=3, latent_channels=4, num_cross_attends=1, num_blocks=1)
    encoder |= dict(num_self_attends_per_block=1, self_attend=dict(num_heads=2))
    inputs = dict(num_bands=1, max_resolution=[4, 4])
    arguments = dict(num_classes=5, inputs=inputs, encoder=encoder)
    front_end = dict(size=4, crop_fraction=1.0, mean=[0.5] * 3, std=[0.2] * 3)
    with tempfile.TemporaryDirectory() as folder:
        initialise('image_classifier', arguments, front_end).save(f'{folder}/model')
        return {file.name: file.read_bytes() for file in Path(folder, 'model').iterdir()}


def _write_model(folder):
    for name, content in _saved_model().items():
        (folder / name).write_bytes(content)


@door('perceiver_jax.weights.loading.load', slow=3)
def model_json(folder):
    from perceiver_jax.weights.loading import load

    _write_model(folder)
    return Sample(folder / 'model.json', lambda: load(folder), 'json')


@door('perceiver_jax.weights.loading.load', slow=3)
def model_weights(folder):
    from safetensors.numpy import load as load_bytes
    from safetensors.numpy import save

    from perceiver_jax.weights import loading

    _write_model(folder)
    file, about = folder / 'weights.safetensors', folder / 'model.json'
    arrays, described = load_bytes(file.read_bytes()), json.loads(about.read_bytes())

    def wrong(rng):
        changed = {k: v for k, v in of_arrays(arrays, rng).items() if v.dtype.kind in 'biuf'}
        return save({name: np.ascontiguousarray(array) for name, array in changed.items()})

    def read():  # as if it had been damaged before it was saved
        about.write_text(json.dumps({**described, 'sha256': loading._sha256(file)}))
        return loading.load(folder)

    return Sample(file, read, wrong=wrong)


@door('perceiver_jax.weights.loading.load', slow=6)
def foreign_model(folder):
    from perceiver_jax.weights.loading import load

    arrays = foreign_weights.three_trees('imagenet_fourier')[1]
    params, state = foreign_weights.as_trees(arrays)
    file = folder / 'model.pystate'
    file.write_bytes(pickle.dumps({'params': params, 'state': state}))

    def wrong(rng):
        params, state = foreign_weights.as_trees(of_arrays(arrays, rng))
        return pickle.dumps({'params': params, 'state': state})

    def read():  # its sizes are those of no released model: translated, and then refused
        from perceiver_jax.errors import Refused

        try:
            load(file)
        except Refused as error:
            if 'does not fit the model' not in str(error):
                raise

    return Sample(file, read, wrong=wrong)


@functools.cache
def _huggingface_folder():
    """A small model as transformers saves it, by the names of its files."""
    from tests.toys.huggingface_folder import small_model, write_folder

    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), 'video_autoencoding', small_model('video_autoencoding'))
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


@door(
    'perceiver_jax.weights.loading.load',
    'perceiver_jax.weights.huggingface_config.read_config',
    slow=3,
)
def huggingface_config(folder):
    from perceiver_jax.errors import Refused
    from perceiver_jax.weights.loading import load

    for name, content in _huggingface_folder().items():
        (folder / name).write_bytes(content)

    def read():  # without `model_type` and `architectures` it counts as another program's
        try:
            return load(folder)
        except Refused as error:
            if not str(error).startswith(f'{folder} does not fit the model'):
                raise

    return Sample(folder / 'config.json', read, 'json')
