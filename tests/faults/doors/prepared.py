"""What TensorFlow Datasets prepared, folders of images, and CIFAR-10."""

import functools
import io
import struct
import tempfile

import cv2
import numpy as np

from tests.faults.door import Sample, door
from tests.toys.cifar10 import batch_of


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
