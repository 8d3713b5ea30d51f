"""CIFAR-10 in the forms that people have it in: 60,000 coloured images of 32x32, ten classes.

The 50,000 official training images are split into 'train' (45,000) and 'validation' (5,000), the
same share of each class; 'test' are the 10,000 official test images. The split is fixed and does
not depend on the order of the images: a class's validation images are the tenth with the smallest
SHA-256, of the pixels, or in a folder of files of their names; our choice:
deviations.md#cifar-10-split.

Source: Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from experiments.data.pipeline import Example, LabelledSource
from experiments.data.prepared import TfdsRecords, version_folder
from experiments.imagenet.image_folder import ImageFolder
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import decode_image
from perceiver_jax.pickles import ARRAYS, PickledArray, read_pickle

SPLITS = ('train', 'validation', 'test', 'train+validation')
CLASSES = (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
)
_SHARE = 10  # of the training images, one in so many is for validation
_SHAPE = (3, 32, 32)  # of an image as it is stored: planes of red, green and blue
_FOLDERS = ('', 'cifar-10-batches-py', 'cifar-10-batches-bin')  # where the batches may lie
_BATCHES = {'train': [f'data_batch_{i}' for i in range(1, 6)], 'test': ['test_batch']}

# Of an image's place: its label, and what tells it from the others of its class wherever it stands.
Key = Callable[[int], tuple[int, bytes]]


def open_cifar10(path: Path, split: str) -> LabelledSource:
    """Opens a split of CIFAR-10.

    Args:
      path: The folder of the official batches, of the Python or the binary version, or what their
        archive was unpacked to; a folder with train/<class>/ and test/<class>/; or TFDS's data
        folder with `cifar10` as array_record files, or the folder of one version in it.
      split: 'train', 'validation', 'test', or the official training images, 'train+validation'.

    Returns:
      Source of {'encoded': bytes of a PNG or JPEG file, 'label': int, 'name': str} with the
      attribute `classes`.

    Raises:
      Refused: The split is unknown, or `path` holds no CIFAR-10, or a damaged one.
    """
    if split not in SPLITS:
        raise Refused(f'config.data: a split of CIFAR-10 is one of {SPLITS}, got {split!r}')
    source, key = _open_official(path, 'test' if split == 'test' else 'train')
    if split in ('train', 'validation'):
        return _Part(source, split, key)
    return source


def _open_official(path: Path, part: str) -> tuple[LabelledSource, Key]:
    for folder in (path / name for name in _FOLDERS):
        for ending, read in (('', _read_pickle), ('.bin', _read_binary)):
            files = [folder / f'{name}{ending}' for name in _BATCHES[part]]
            if any(file.is_file() for file in files):
                batches = _Batches(files, read)
                return batches, batches.key
    source: LabelledSource
    if (path / part).is_dir():
        source = ImageFolder(path, part, 'train/<class>/ and test/<class>/', CLASSES)
        return source, functools.partial(_by_name, source)
    try:
        folder = version_folder(path, 'cifar10')
    except Refused as error:
        name = _BATCHES[part][0]
        raise Refused(
            f'{path} holds no CIFAR-10: expected {name}, {name}.bin, {part}/<class>/, or '
            f'cifar10/<version>/ that TFDS prepared'
        ) from error
    import tensorflow_datasets as tfds  # slow, and the other forms are read without it

    decoders = {'image': tfds.decode.SkipDecoding()}
    source = TfdsRecords(folder, part, _from_tfds, needs=('image', 'id'), decoders=decoders)
    return source, functools.partial(_by_pixels, source)


class _Part:
    """The training or the validation images among the official training images."""

    def __init__(self, source: LabelledSource, split: str, key: Key):
        self._source, self._split = source, split
        self.classes = source.classes
        of_class: dict[int, list[tuple[bytes, int]]] = {}
        for index in range(len(source)):
            label, digest = key(index)
            of_class.setdefault(label, []).append((digest, index))
        held_out = {
            index for some in of_class.values() for _, index in sorted(some)[: len(some) // _SHARE]
        }
        self._rows = [i for i in range(len(source)) if (i in held_out) == (split == 'validation')]

    def __repr__(self) -> str:
        return f'{self._source}, split {self._split}'

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._rows[index]]


def _by_pixels(source: LabelledSource, index: int) -> tuple[int, bytes]:
    example = source[index]
    try:
        image = decode_image(example['encoded'], _SHAPE[0])
    except Refused as error:
        raise Refused(f'{example["name"]}: {error}') from error
    return example['label'], _digest(image)


def _by_name(source: LabelledSource, index: int) -> tuple[int, bytes]:
    example = source[index]
    return example['label'], hashlib.sha256(Path(example['name']).stem.encode()).digest()


def _digest(image: np.ndarray) -> bytes:  # uint8 [32, 32, 3]
    return hashlib.sha256(image.tobytes()).digest()


class _Batches:
    """Images and labels of some official batches, all in memory: 3 KB each."""

    def __init__(
        self, files: Sequence[Path], read: Callable[[Path], tuple[np.ndarray, np.ndarray]]
    ):
        """Reads the batches.

        Args:
          files: The files.
          read: Reads the images uint8 `[N, 3072]` and the labels `[N]` of one of them.

        Raises:
          Refused: A file is missing or damaged.
        """
        self._text = str(files[0].parent)
        for file in files:
            if not file.is_file():
                raise Refused(f'{file} is missing, one of {len(files)} batches')
        found = [read(file) for file in files]
        self._places = [
            f'{file}, image {number}'
            for file, (images, _) in zip(files, found, strict=True)
            for number in range(1, 1 + len(images))
        ]
        planes = np.concatenate([images for images, _ in found]).reshape(-1, *_SHAPE)
        self._images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        self._labels = np.concatenate([labels for _, labels in found]).astype(np.int32)
        self.classes = CLASSES

    def __repr__(self) -> str:
        return self._text

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, index: int) -> tuple[int, bytes]:
        """See `Key`; no image is encoded for it."""
        return int(self._labels[index]), _digest(self._images[index])

    def __getitem__(self, index: int) -> Example:
        bgr = cv2.cvtColor(self._images[index], cv2.COLOR_RGB2BGR)
        return {
            'encoded': cv2.imencode('.png', bgr)[1].tobytes(),
            'label': int(self._labels[index]),
            'name': self._places[index],
        }


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the Python version, a pickle of Python 2, without running it."""
    batch = read_pickle(file, 'a batch of CIFAR-10', ARRAYS, encoding='bytes')
    if isinstance(batch, dict):
        batch = {_text(key): value for key, value in batch.items()}
        images, labels = batch.get('data'), batch.get('labels')
        if isinstance(images, PickledArray) and images.is_whole and isinstance(labels, list):
            return _checked(images.array, labels, file)
    raise Refused(f"{file} is not a batch of CIFAR-10: expected 'data' and 'labels'")


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch of the binary version: records of a label and the pixels, a byte each."""
    content = np.frombuffer(file.read_bytes(), np.uint8)
    size = 1 + int(np.prod(_SHAPE))
    if len(content) % size:
        raise Refused(f'{file} is cut or damaged: {len(content):,} bytes, no multiple of {size:,}')
    records = content.reshape(-1, size)
    return _checked(records[:, 1:], records[:, 0].tolist(), file)


def _checked(images: np.ndarray, labels: list, file: Path) -> tuple[np.ndarray, np.ndarray]:
    expected = (len(labels), int(np.prod(_SHAPE)))
    if images.shape != expected or images.dtype != np.uint8 or not labels:
        raise Refused(
            f'{file}: expected images uint8 [N, {expected[1]}] and N labels, got {images.dtype} '
            f'{[*images.shape]} and {len(labels):,} labels'
        )
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(CLASSES):
            raise Refused(
                f'{file}: expected labels from 0 to {len(CLASSES) - 1}, got {label!r:.80}'
            )
    return images, np.array(labels)


def _text(key: object) -> object:
    return key.decode('latin1') if isinstance(key, bytes) else key


def _from_tfds(example: dict) -> Example:
    return {
        'encoded': example['image'],
        'label': int(example['label']),
        'name': example['id'].decode(),
    }
