import io
import pickle

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.imagenet import cifar10
from experiments.imagenet.cifar10 import CLASSES
from experiments.imagenet.sources import open_source
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import decode_image
from tests.toys.cifar10 import batch_of, pickled_by_python_2

NUM_A_BATCH = 40  # 200 training images, of which a tenth is for validation


def pixels(split, number):
    """An image of its own for each number, red, green and blue planes `[3, 32, 32]`."""
    rng = np.random.default_rng([split == 'test', number])
    return rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)


def batches():
    """File name -> images `[N, 3072]` and labels."""
    names = [f'data_batch_{i}' for i in range(1, 6)]
    numbers = np.arange(5 * NUM_A_BATCH).reshape(5, -1)
    found = {'test_batch': ('test', np.arange(20))}
    found |= {name: ('train', some) for name, some in zip(names, numbers, strict=True)}
    return {
        name: (
            np.stack([pixels(split, i).reshape(-1) for i in some]),
            [int(i) % 10 for i in some],
        )
        for name, (split, some) in found.items()
    }


@pytest.fixture(scope='module')
def forms(tmp_path_factory):
    root = tmp_path_factory.mktemp('cifar')
    for name, (images, labels) in batches().items():
        for folder in ('python', 'binary', 'above/cifar-10-batches-py'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        batch = batch_of(name, images, labels)
        (root / 'python' / name).write_bytes(batch)
        (root / 'above' / 'cifar-10-batches-py' / name).write_bytes(batch)
        records = np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
        (root / 'binary' / f'{name}.bin').write_bytes(records.tobytes())
        part = 'test' if name.startswith('test') else 'train'
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / 'folder' / part / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            bgr = image.reshape(3, 32, 32).transpose(1, 2, 0)[..., ::-1]
            cv2.imwrite(str(folder / f'{name}_{number}.png'), bgr)
    Cifar10(data_dir=root / 'tfds', file_format='array_record').download_and_prepare()
    return root


class Cifar10(tfds.core.GeneratorBasedBuilder):
    """TFDS's cifar10 with few images."""

    VERSION = tfds.core.Version('3.0.2')

    def _info(self):
        features = {
            'id': tfds.features.Text(),
            'image': tfds.features.Image(shape=(32, 32, 3), encoding_format='png'),
            'label': tfds.features.ClassLabel(names=CLASSES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ('train', 'test')}

    def _generate_examples(self, split):
        for name, (images, labels) in batches().items():
            if name.startswith('test') == (split == 'test'):
                for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                    key = f'{name}_{number}'
                    bgr = image.reshape(3, 32, 32).transpose(1, 2, 0)[..., ::-1]
                    file = io.BytesIO(cv2.imencode('.png', bgr)[1].tobytes())
                    yield key, {'id': key, 'image': file, 'label': label}


def contents(source):
    """The images and labels of a source, in no order."""
    examples = map(source.__getitem__, range(len(source)))
    return {(decode_image(x['encoded'], 3).tobytes(), x['label']) for x in examples}


@pytest.mark.parametrize('form', ['python', 'above', 'binary', 'folder', 'tfds'])
def test_every_form_holds_the_same_images(forms, form):
    path = str(forms / form)
    parts = {s: open_source('cifar10', path, s) for s in cifar10.SPLITS}
    assert {split: len(source) for split, source in parts.items()} == {
        'train': 180,
        'validation': 20,
        'test': 20,
        'train+validation': 200,
    }
    expected = {(pixels('test', i).transpose(1, 2, 0).tobytes(), i % 10) for i in range(20)}
    assert contents(parts['test']) == expected
    train, held_out = contents(parts['train']), contents(parts['validation'])
    whole = {(pixels('train', i).transpose(1, 2, 0).tobytes(), i % 10) for i in range(200)}
    assert train | held_out == whole and not train & held_out
    labels = [label for _, label in held_out]
    assert sorted(labels) == sorted(2 * list(range(10)))  # the same share of each class
    assert list(parts['train'].classes) == list(CLASSES)
    assert len({source[0]['name'] for source in parts.values()}) > 1
    again = pickle.loads(pickle.dumps(parts['validation']))
    assert again[3] == parts['validation'][3]


def test_the_validation_images_do_not_depend_on_the_form(forms):
    some = [
        contents(open_source('cifar10', str(forms / form), 'validation'))
        for form in ('python', 'binary', 'tfds')
    ]
    assert some[0] == some[1] == some[2]


def test_a_pickle_that_asks_for_more_is_refused_and_not_run(forms, tmp_path):
    for name in batches():
        (tmp_path / name).write_bytes((forms / 'python' / name).read_bytes())
    (tmp_path / 'test_batch').write_bytes(b'cos\nsystem\n(S"touch ran"\ntR.')
    with pytest.raises(Refused, match='test_batch asks for os.system'):
        open_source('cifar10', str(tmp_path), 'test')
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'name, content, said',
    [
        ('test_batch', b'', 'test_batch is not a batch of CIFAR-10, or damaged'),
        ('test_batch', pickled_by_python_2({b'a': 1}), "expected 'data' and 'labels'"),
        ('test_batch', pickled_by_python_2([1]), "expected 'data' and 'labels'"),
        (
            'test_batch',
            batch_of('x', np.zeros((2, 3072), np.uint8), [1]),
            r'expected images uint8 \[N, 3072\] and N labels, got uint8 \[2, 3072\] and 1 labels',
        ),
        ('test_batch', batch_of('x', np.zeros((1, 3072), np.uint8), [10]), 'got 10'),
        ('test_batch', batch_of('x', np.zeros((1, 3072), np.uint8), [b'a']), "got b'a'"),
        ('test_batch.bin', bytes(3072), 'cut or damaged: 3,072 bytes, no multiple of 3,073'),
        ('test_batch.bin', b'', 'and 0 labels'),
        ('test_batch.bin', b'\x0a' + bytes(3072), 'expected labels from 0 to 9, got 10'),
    ],
)
def test_damaged_batches_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refused, match=said):
        open_source('cifar10', str(tmp_path), 'test')


def test_a_missing_batch_is_named(forms, tmp_path):
    (tmp_path / 'data_batch_2').write_bytes((forms / 'python' / 'data_batch_2').read_bytes())
    with pytest.raises(Refused, match='data_batch_1 is missing, one of 5 batches'):
        open_source('cifar10', str(tmp_path), 'train')


def test_a_folder_without_cifar_is_refused(tmp_path):
    with pytest.raises(Refused, match='holds no CIFAR-10: expected test_batch, test_batch.bin'):
        open_source('cifar10', str(tmp_path), 'test')


def test_an_unknown_split_is_refused(forms):
    with pytest.raises(Refused, match="one of .*'validation'.*, got 'val'"):
        open_source('cifar10', str(forms / 'python'), 'val')
