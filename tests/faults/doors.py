"""The doors: every function and class that reads a file which others wrote, with a good file.

A door is a function of an empty folder. It writes good files into it and returns the one to damage
and how it is read. `@door` names what it covers, by which the table is known to be complete.
"""

import functools
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import soundfile

from tests.faults.damage import of_arrays
from tests.toys import foreign_weights, modelnet40_files
from tests.toys.cifar10 import batch_of
from tests.toys.known_model import KnownModel, make_clip

# What reads no file of a user's, and why.
WITHOUT_FILES = {
    'perceiver_jax.weights.loading.read_bare': 'reads what load reads, as load does',
    'experiments.open_model.open_to_evaluate': 'reads by open_model and read_bare',
    'experiments.open_model.open_to_start': 'reads by open_model and read_bare',
    'experiments.keys.read_notes': 'is given the source of a config that was imported before',
    'experiments.training.profiling.read_profile': 'reads what jax has just written',
    'experiments.flow.sources.Several': 'joins sources',
    'experiments.flow.scenes.MovingScenes': 'generated',
    'experiments.imagenet.digits.Digits': 'generated',
    'experiments.imagenet.cifar10._Part': 'chooses among the images of another source',
    'experiments.audioset.sounds.Sounds': 'generated',
    'experiments.modelnet40.shapes.Shapes': 'generated',
    'experiments.data.pipeline._LastRead': 'passes on the examples of another source',
    'experiments.data.pipeline.Source': 'a protocol',
    'experiments.data.pipeline.LabelledSource': 'a protocol',
    'experiments.data.reading.Blank': 'holds one example',
    'experiments.data.class_folders.ClassFolders': 'lists files',
    'experiments.data.pipeline._TrainItems': "passes a source's examples on",
    'experiments.data.pipeline._EvalItems': "passes a source's examples on",
}


class Sample(NamedTuple):
    """A good file, and how it is read.

    Attributes:
      file: The file to damage.
      read: Function without arguments that reads it.
      kind: What the file is, a key of `damage.KINDS`.
      wrong: Function of a `random.Random` that returns a sound file with wrong values in it.
      named: What a message must name instead of the file.
    """

    file: Path
    read: Callable[[], object]
    kind: str = 'bytes'
    wrong: Callable | None = None
    named: str = ''


class Door(NamedTuple):
    """What is read.

    Attributes:
      covers: Dotted names of the functions and classes.
      sample: Function of an empty folder.
      slow: How many cases of other doors take the time of one of this.
    """

    covers: tuple[str, ...]
    sample: Callable[[Path], Sample]
    slow: int


DOORS: dict[str, Door] = {}


def door(*covers, slow=1):
    def add(sample):
        DOORS[sample.__name__] = Door(covers, sample, slow)
        return sample

    return add


# Weights


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


# Images, sound and video


def _image(ending, folder):
    from perceiver_jax.front_ends.images import read_image

    file = folder / f'image{ending}'
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    file.write_bytes(cv2.imencode(ending, pixels)[1].tobytes())
    return Sample(file, lambda: read_image(file))


@door('perceiver_jax.front_ends.images.read_image')
def png(folder):
    return _image('.png', folder)


@door('perceiver_jax.front_ends.images.read_image')
def jpeg(folder):
    return _image('.jpg', folder)


@door('perceiver_jax.front_ends.images.read_image')
def webp(folder):
    return _image('.webp', folder)


@door('perceiver_jax.front_ends.images.read_image')
def tiff(folder):
    return _image('.tiff', folder)


def _tone(folder, ending):
    file = folder / f'sound{ending}'
    times = np.arange(4800) / 48000
    soundfile.write(file, 0.5 * np.sin(2764 * times), 48000)
    return file


@door('perceiver_jax.front_ends.media.read_audio')
def wav(folder):
    from perceiver_jax.front_ends.media import read_audio

    file = _tone(folder, '.wav')
    return Sample(file, lambda: read_audio(file))


@door('perceiver_jax.front_ends.media.read_audio')
def flac(folder):
    from perceiver_jax.front_ends.media import read_audio

    file = _tone(folder, '.flac')
    return Sample(file, lambda: read_audio(file))


@functools.cache
def _clip():
    with tempfile.TemporaryDirectory() as folder:
        make_clip(f'{folder}/clip.mp4')
        return Path(folder, 'clip.mp4').read_bytes()


@door('perceiver_jax.front_ends.media.read_video', slow=2)
def mp4(folder):
    from perceiver_jax.front_ends.media import read_video

    file = folder / 'clip.mp4'
    file.write_bytes(_clip())
    return Sample(file, lambda: read_video(file, 4, 8))


@door('experiments.data.clip_files.read_clip', slow=2)
def clip(folder):
    from experiments.data.clip_files import read_clip

    file = folder / 'clip.mp4'
    file.write_bytes(_clip())
    return Sample(file, lambda: read_clip(file, 0.0, None, True))


# Optical flow


@door('experiments.flow.files.read_flo', 'experiments.flow.files.read_flow')
def flo(folder):
    from experiments.flow.files import read_flow, write_flo

    file = folder / 'flow.flo'
    write_flo(file, np.ones((5, 7, 2), np.float32))
    return Sample(file, lambda: read_flow(file))


@door('experiments.flow.files.read_pfm', 'experiments.flow.files.read_flow')
def pfm(folder):
    from experiments.flow.files import read_flow

    file = folder / 'flow.pfm'
    file.write_bytes(b'PF\n7 5\n-1.0\n' + np.ones((5, 7, 3), '<f4').tobytes())

    def wrong(rng):
        sizes = [0, 1, 7, -1, 10**8, 10**30, 'nan', '1e9999', '7.5', 4000 * '9']
        width, height, scale = (rng.choice(sizes) for _ in range(3))
        return f'PF\n{width} {height}\n-{scale}\n'.encode() + bytes(420)

    return Sample(file, lambda: read_flow(file), wrong=wrong)


@door('experiments.flow.files.read_kitti_flow', 'experiments.flow.files.read_flow')
def kitti_png(folder):
    from experiments.flow.files import read_flow, write_kitti_flow

    file = folder / 'flow.png'
    write_kitti_flow(file, np.ones((5, 7, 2), np.float32))
    content = file.read_bytes()

    def wrong(rng):  # other sizes in the header, with the right checksum
        import struct
        import zlib

        sizes = struct.pack('>II', *(rng.choice([0, 1, 7, 10**5, 2**31 - 1]) for _ in range(2)))
        header = (
            b'IHDR' + sizes + bytes([rng.choice([8, 16, 3]), rng.choice([0, 2, 3, 6]), 0, 0, 0])
        )
        return content[:12] + header + struct.pack('>I', zlib.crc32(header)) + content[33:]

    return Sample(file, lambda: read_flow(file), wrong=wrong)


def _pair(folder):
    from experiments.flow.files import write_flo

    pairs = folder / 'pairs'
    pairs.mkdir()
    for number in (1, 2):
        cv2.imwrite(str(pairs / f'x_img{number}.png'), np.full((5, 7, 3), 40 * number, np.uint8))
    write_flo(pairs / 'x_flow.flo', np.ones((5, 7, 2), np.float32))
    return pairs


@door('experiments.flow.sources.open_source', 'experiments.flow.sources._Pairs')
def frame_of_a_pair(folder):
    from experiments.flow.sources import open_source

    file = _pair(folder) / 'x_img2.png'
    return Sample(file, lambda: open_source('pairs', folder, 'train')[0])


@door('experiments.flow.sources.open_source', 'experiments.flow.sources._Pairs')
def flow_of_a_pair(folder):
    from experiments.flow.sources import open_source

    file = _pair(folder) / 'x_flow.flo'
    return Sample(file, lambda: open_source('pairs', folder, 'train')[0])


@door('experiments.flow.sources.open_source', slow=2)
def split_of_flyingchairs(folder):
    from experiments.flow.sources import open_source

    chairs = _pair(folder).rename(folder / 'flyingchairs')
    for file in list(chairs.iterdir()):
        file.rename(chairs / file.name.replace('x_', '00001_'))
    file = chairs / 'FlyingChairs_train_val.txt'
    file.write_text('1\n')
    return Sample(file, lambda: open_source('flyingchairs', folder, 'train'), 'text')


# Prepared data


@functools.cache
def _prepared():
    """A prepared imagenet2012 of two images, by the names of its files."""
    import tensorflow_datasets as tfds

    class Imagenet2012(
        tfds.core.GeneratorBasedBuilder,
        skip_registration=True,
    ):
        """Two images."""

        VERSION = tfds.core.Version('5.1.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(encoding_format='jpeg'),
                'label': tfds.features.ClassLabel(names=['cat', 'dog']),
                'file_name': tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            image = cv2.imencode('.jpg', np.zeros((5, 7, 3), np.uint8))[1].tobytes()
            for number in range(2):
                example = {'label': number, 'file_name': f'{number}.JPEG'}
                yield number, {'image': io.BytesIO(image), **example}

    with tempfile.TemporaryDirectory() as folder:
        builder = Imagenet2012(data_dir=folder, file_format='array_record')
        builder.download_and_prepare()
        return {file.name: file.read_bytes() for file in builder.data_path.iterdir()}


def _prepared_file(folder, name, kind):
    from experiments.imagenet.sources import open_source

    for each, content in _prepared().items():
        (folder / each).write_bytes(content)
    read = lambda: open_source('tfds', str(folder), 'train')[0]  # noqa: E731
    return Sample(folder / name, read, kind)


PREPARED = (
    'experiments.imagenet.sources.open_source',
    'experiments.modelnet40.sources.open_source',
    'experiments.audioset.sources.open_source',
    'experiments.data.prepared.TfdsRecords',
    'experiments.data.prepared.open_split',
    'experiments.data.prepared.read_metadata',
)


@door(*PREPARED, slow=2)
def features_json(folder):
    return _prepared_file(folder, 'features.json', 'json')


@door(*PREPARED, slow=2)
def dataset_info_json(folder):
    return _prepared_file(folder, 'dataset_info.json', 'json')


@door(*PREPARED, slow=2)
def labels_txt(folder):
    return _prepared_file(folder, 'label.labels.txt', 'text')


@door('experiments.imagenet.sources.open_source', 'experiments.imagenet.sources._TFRecords')
def features_json_of_tfrecords(folder):
    from experiments.imagenet.sources import masked_crc32c, open_source

    for name in ('features.json', 'dataset_info.json', 'label.labels.txt'):
        (folder / name).write_bytes(_prepared()[name])
    length = struct.pack('<Q', 1)
    record = length + masked_crc32c(length) + b'x' + masked_crc32c(b'x')
    (folder / 'imagenet2012-train.tfrecord-00000-of-00001').write_bytes(2 * record)
    read = lambda: open_source('tfrecord', str(folder), 'train')  # noqa: E731
    return Sample(folder / 'features.json', read, 'json')


@door('experiments.imagenet.sources.open_source', 'experiments.imagenet.image_folder.ImageFolder')
def folder_of_images(folder):
    from experiments.imagenet.sources import open_source
    from experiments.imagenet.transforms import _decode_example

    for name in ('cat', 'dog'):
        (folder / 'train' / name).mkdir(parents=True)
    file = folder / 'train' / 'cat' / '1.png'
    file.write_bytes(cv2.imencode('.png', np.zeros((5, 7, 3), np.uint8))[1].tobytes())
    return Sample(file, lambda: _decode_example(open_source('folder', str(folder), 'train')[0], 3))


CIFAR10 = (
    'experiments.imagenet.cifar10.open_cifar10',
    'experiments.imagenet.cifar10._Batches',
    'experiments.imagenet.sources.open_source',
)


@door(*CIFAR10, 'perceiver_jax.pickles.read_pickle')
def cifar10_pickle(folder):
    from experiments.imagenet.sources import open_source

    images = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    file = folder / 'test_batch'
    file.write_bytes(batch_of('testing batch 1 of 1', images, [3, 8, 8, 0]))

    return Sample(file, lambda: open_source('cifar10', str(folder), 'test')[0])


@door(*CIFAR10)
def cifar10_binary(folder):
    from experiments.imagenet.sources import open_source

    file = folder / 'test_batch.bin'
    file.write_bytes(b'\x03' + bytes(3072) + b'\x09' + bytes(3072))
    return Sample(file, lambda: open_source('cifar10', str(folder), 'test')[0])


# ModelNet40


def _cloud(folder, ending, content, wrong=None, kind='text'):
    from experiments.modelnet40.files import read_cloud

    file = folder / f'cloud{ending}'
    file.write_bytes(content)

    def read():
        return read_cloud(file.read_bytes(), 9, np.random.default_rng(0), str(file))

    return Sample(file, read, kind, wrong)


@door('experiments.modelnet40.files.read_cloud')
def off(folder):
    return _cloud(folder, '.off', modelnet40_files.off('bowl_0001'))


@door('experiments.modelnet40.files.read_cloud')
def points_txt(folder):
    return _cloud(folder, '.txt', modelnet40_files.text('bowl_0001'))


@door('experiments.modelnet40.sources.open_source', 'experiments.modelnet40.sources.ShapeFolder')
def folder_of_shapes(folder):
    from experiments.modelnet40.sources import open_source

    file = folder / 'test' / 'bowl' / 'bowl_0001.txt'
    modelnet40_files.write(file, modelnet40_files.text('bowl_0001'))
    return Sample(file, lambda: open_source('folder', str(folder), 'test')[0], 'text')


def _npy(array):
    encoded = io.BytesIO()
    np.save(encoded, array)
    return encoded.getvalue()


@door('experiments.modelnet40.files.read_cloud')
def npy(folder):
    def wrong(rng):
        array = of_arrays({'x': modelnet40_files.cloud('bowl_0001')}, rng)
        return rng.choice([_npy(*array.values()), _npz(array)]) if array else b''

    return _cloud(folder, '.npy', _npy(modelnet40_files.cloud('bowl_0001')), wrong, 'bytes')


def _npz(arrays):
    encoded = io.BytesIO()
    np.savez(encoded, **arrays)
    return encoded.getvalue()


def _all_points(path):
    """Reads all shapes at a path, from its beginning."""
    from experiments.modelnet40 import builder

    for cached in (builder._zip, builder._npz, builder._hdf5):
        cached.cache_clear()
    return [builder.read_points(shape, 9, 0) for shape in builder.find_shapes(path)]


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_npz(folder):
    file = modelnet40_files.npz(folder)
    with np.load(file) as loaded:
        arrays = dict(loaded)

    def wrong(rng):
        if rng.random() < 0.2:
            return _npy(arrays[rng.choice(sorted(arrays))])
        return _npz(of_arrays(arrays, rng))

    return Sample(file, lambda: _all_points(file), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    file = root / 'ply_data_train0.h5'
    with h5py.File(file) as loaded:
        arrays = {key: loaded[key][:] for key in loaded}

    def wrong(rng):
        encoded = io.BytesIO()
        with h5py.File(encoded, 'w') as changed:
            for key, array in of_arrays(arrays, rng).items():
                try:
                    changed[key] = array
                except TypeError:  # HDF5 has no such type
                    changed.create_group(key)
        return encoded.getvalue()

    return Sample(file, lambda: _all_points(root), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def names_of_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    return Sample(root / 'ply_data_train_0_id2file.json', lambda: _all_points(root), 'json')


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def classes_of_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    return Sample(root / 'shape_names.txt', lambda: _all_points(root), 'text')


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_zip(folder):
    file = folder / 'shapes.zip'
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in modelnet40_files.NAMES[:2]:
            path = f'ModelNet40/{name.rpartition("_")[0]}/train/{name}.off'
            archive.writestr(path, modelnet40_files.off(name))

    def wrong(rng):
        from tests.faults.damage import of_text

        encoded = io.BytesIO()
        name = modelnet40_files.NAMES[0]
        with zipfile.ZipFile(encoded, 'w') as archive:
            path = f'ModelNet40/bowl/{rng.choice(["train", "test", "x"])}/{name}.off'
            archive.writestr(path, of_text(modelnet40_files.off(name), rng))
        return encoded.getvalue()

    return Sample(file, lambda: _all_points(file), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_mesh(folder):
    root = modelnet40_files.meshes(folder)
    file = next(x for x in root.rglob('bowl_0001.off'))
    return Sample(file, lambda: _all_points(root), 'text')


# AudioSet


@door('experiments.audioset.builder.read_classes')
def class_labels_csv(folder):
    from experiments.audioset.builder import read_classes

    file = folder / 'class_labels_indices.csv'
    file.write_text('index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male, man"\n')
    return Sample(file, lambda: read_classes(file), 'text')


@door('experiments.audioset.builder.read_segments')
def segments_csv(folder):
    from experiments.audioset.builder import read_segments

    file = folder / 'segments.csv'
    file.write_text('# YTID, start, end\n--aaaaaaaaa, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n')
    return Sample(file, lambda: read_segments(file, ['/m/09x0r', '/m/05zppz']), 'text')


@door('experiments.audioset.parquet.read_row', 'experiments.audioset.parquet.youtube_ids')
def parquet_rows(folder):
    import pyarrow
    import pyarrow.parquet

    from experiments.audioset import parquet

    file = folder / 'clips.parquet'
    rows = [{'video_id': x, 'audio': {'bytes': x.encode(), 'path': x}} for x in ('aa', 'bb', 'cc')]

    def write(rows):
        encoded = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), encoded, row_group_size=2)
        return encoded.getvalue()

    file.write_bytes(write(rows))

    def wrong(rng):
        value = rng.choice([None, 3, 'x', [1], {'bytes': 3}, {'bytes': 'x'}, {'path': 'x'}])
        key = rng.choice(['video_id', 'audio'])
        return write([{**row, key: value} for row in rows])

    def read():
        parquet._audio.cache_clear()
        ids = parquet.youtube_ids(str(file))
        return [parquet.read_row(str(file), row) for row in range(len(ids))]

    return Sample(file, read, wrong=wrong)


@door(
    'experiments.audioset.sources.open_source',
    'experiments.audioset.sources.LabelledFolder',
    'experiments.data.clip_files.read_sound',
)
def sound_of_a_folder(folder):
    file = _tone(folder, '.wav')
    return Sample(file, lambda: _labelled(folder)[0])


@door('experiments.audioset.sources.open_source', 'experiments.audioset.sources.LabelledFolder')
def table_of_a_folder(folder):
    _labelled_files(folder)
    return Sample(folder / 'table.csv', lambda: _labelled(folder)[0], 'text')


def _labelled_files(folder):
    if not (folder / 'sound.wav').exists():
        _tone(folder, '.wav')
    (folder / 'table.csv').write_text('file,label,fold\nsound.wav,dog,1\n')


def _labelled(folder):
    from experiments.audioset.sources import open_source

    if not (folder / 'table.csv').exists():
        _labelled_files(folder)
    names = dict(csv_file='table.csv', media='.', file_column='file', label_column='label')
    names |= dict(label_separator='', split_column='fold', train='1', validation='2', only='')
    options = dict(with_frames=False, sample_rate=48000, table=names)
    return open_source('folder', str(folder), 'train', **options)


# Tables and texts


@door('experiments.data.tables.read_text', 'experiments.data.tables.read_table')
def table_csv(folder):
    from experiments.data.tables import read_table

    file = folder / 'table.csv'
    file.write_text('name,kind\n"a, b",1\nc,2\n')
    return Sample(file, lambda: read_table(file, ['name', 'kind']), 'text')


@door('experiments.classes.class_names', 'experiments.data.tables.read_names')
def names_of_classes(folder):
    from experiments.classes import class_names

    file = folder / 'names.txt'
    file.write_text('cat\ndog\nbird\n')
    model = KnownModel(lambda x: x, {}, {'num_classes': 3})
    return Sample(file, lambda: class_names(model, str(file)), 'text')


# Runs


@functools.cache
def _run():
    """The files of a run that was never trained, by their names below its folder."""
    from tests.experiments.test_results import RESULT
    from tests.toys.demo_run import write_demo_run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_run(folder)
        (folder / 'result.json').write_text(json.dumps({**RESULT, 'seed': 0}))
        rows = [{'step': step, 'split': 'eval', 'top1': 0.5, 'loss': 1.0} for step in (1, 2)]
        lines = [json.dumps({'step': 1, 'split': 'train', 'loss': 2.0})]
        lines += [json.dumps(row) for row in rows]
        (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
        return {
            file.relative_to(folder): file.read_bytes()
            for file in folder.rglob('*')
            if file.is_file()
        }


def _write_run(folder, but=()):
    for name, content in _run().items():
        if name.parts[0] not in but:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def _compared(folder):
    from experiments.compare import read_runs, table

    return table(read_runs([str(folder)]))


@door('experiments.compare.read_runs', 'experiments.results.load_result')
def result_json(folder):
    _write_run(folder, but=['checkpoints'])
    return Sample(folder / 'result.json', lambda: _compared(folder), 'json')


@door('experiments.table.read_results')
def folder_of_results(folder):
    from experiments.table import read_results, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    return Sample(folder / 'result.json', lambda: render(read_results(folder), {}), 'json')


@door('experiments.results.load_runs')
def folder_of_several_runs(folder):
    from experiments.table import read_results, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    result = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').unlink()
    runs = [{**result, 'seed': seed, 'params_sha256': f'{seed}'} for seed in (0, 1)]
    file = folder / 'seeds.json'
    file.write_text(json.dumps({'runs': runs}))
    return Sample(file, lambda: render(read_results(folder), {}), 'json')


@door('experiments.results.load_sweep', 'experiments.table.read_sweeps')
def folder_of_sweeps(folder):
    from experiments.table import read_sweeps, render

    _write_run(folder, but=['checkpoints', 'config.json', 'metrics.jsonl'])
    result = json.loads((folder / 'result.json').read_text())
    (folder / 'result.json').unlink()
    rows = [{'values': {'model': 'vit'}, 'results': [result], 'paper': 0.7, 'folders': ['x']}]
    file = folder / 'table2.json'
    file.write_text(json.dumps({'command': 'python -m experiments.sweep', 'rows': rows}))
    return Sample(file, lambda: render({}, read_sweeps(folder)), 'json')


@door('experiments.planning.rows.load_plan')
def folder_of_plans(folder):
    from experiments.planning.rows import FOLDER, fits_table

    file = folder / 'imagenet_perceiver_v3.json'
    shutil.copy(FOLDER / file.name, file)
    return Sample(file, lambda: fits_table(folder), 'json')


@door('experiments.papers.read_sizes')
def folder_of_sizes(folder):
    from experiments.papers import FOLDER, papers_tables

    described = folder / 'described'
    shutil.copytree(FOLDER, described)
    return Sample(described / 'flow.json', lambda: papers_tables([], folder), 'json')


@door('experiments.compare.read_runs', 'perceiver_jax.files.read_json')
def compared_config(folder):
    _write_run(folder, but=['checkpoints'])
    return Sample(folder / 'config.json', lambda: _compared(folder), 'json')


@door('experiments.compare.read_runs', 'experiments.training.workdir.read_rows')
def metrics_jsonl(folder):
    _write_run(folder, but=['checkpoints', 'result.json'])
    return Sample(folder / 'metrics.jsonl', lambda: _compared(folder), 'text')


@door(
    'experiments.open_model.open_model',
    'experiments.open_model.load_workdir',
    'experiments.run_config.get_config',
    slow=12,
)
def config_json(folder):
    from experiments.open_model import open_model

    _write_run(folder, but=['result.json'])
    return Sample(folder / 'config.json', lambda: open_model(folder), 'json')


@door('experiments.training.checks.check_resumable')
def config_json_of_a_resumed_run(folder):
    from configs.imagenet import get_config
    from experiments.training.checks import check_resumable

    config = get_config('demo')
    (folder / 'checkpoints' / '5').mkdir(parents=True)
    file = folder / 'config.json'
    file.write_text(json.dumps(config.to_dict()))
    return Sample(file, lambda: check_resumable(folder, config), 'json', named=folder.name)


@door('experiments.training.checkpointing.load_params', slow=6)
def checkpoint(folder):
    from experiments.training.checkpointing import load_params

    _write_run(folder, but=['result.json'])
    files = [x for x in (folder / 'checkpoints' / '5').rglob('*') if x.is_file()]
    file = max(files, key=os.path.getsize)

    def read():  # step 3 takes the place of a damaged step 5
        return load_params(folder)

    return Sample(file, read)
