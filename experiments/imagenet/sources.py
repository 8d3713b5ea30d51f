"""Where images are read from: ImageNet as TFDS prepares it, a folder, CIFAR-10, digits.

Every source is a `LabelledSource` of examples {'encoded': bytes of a JPEG or PNG file, 'label':
int, 'name': str, the file's name for error messages}. None of them needs TensorFlow.
"""

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from experiments.data.hidden import visible
from experiments.data.pipeline import BrokenExample, Example, LabelledSource
from experiments.data.prepared import (
    TfdsRecords,
    check_count,
    label_names,
    open_split,
    version_folder,
)
from experiments.imagenet.cifar10 import open_cifar10
from experiments.imagenet.digits import Digits
from experiments.imagenet.image_folder import ImageFolder
from experiments.paths import folder_of_data
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole

SPLITS = ('train', 'validation')
_PARTS = {'train': 'train', 'validation': 'val'}  # folders of the splits
_KINDS = ('tfds', 'tfrecord', 'folder', 'cifar10', 'digits')
_FEATURES = ('image', 'label', 'file_name')  # of TFDS's imagenet2012
# A TFRecord is the data's length (uint64), its CRC (uint32), the data, and their CRC (uint32).
_LENGTH = struct.Struct('<Q')
_HEADER_BYTES, _CHECKSUM_BYTES = 12, 4  # before the data; after it
_FRAME_BYTES = _HEADER_BYTES + _CHECKSUM_BYTES


def open_source(
    kind: str, path: str | None, split: str, classes: Sequence[str] | None = None
) -> LabelledSource:
    """Opens one split of ImageNet, or of smaller images that stand in for it.

    Args:
      kind: 'tfds' (imagenet2012 as array_record files), 'tfrecord' (imagenet2012 as TFRecord
        files), 'folder' (train/<class>/*.JPEG and val/<class>/*.JPEG), 'cifar10' or 'digits'.
      path: TFDS's data folder or the folder of one version in it; or the folder that holds
        train/ and val/; or what `open_cifar10` takes; '~' is the home folder. Unused for digits.
      split: 'train' or 'validation'; of CIFAR-10 also 'test' and 'train+validation'.
      classes: Names of the folders of all classes in the order of their labels, for 'folder', also
        of those that have none; None: the folders in train/, or where there is no train/, in val/.

    Returns:
      Source of {'encoded': bytes of a JPEG or PNG file, 'label': int, 'name': str} with the
      attribute `classes`.

    Raises:
      Refused: `kind` or `split` is unknown, or `path` holds no such data.
    """
    if kind not in _KINDS:
        raise Refused(f'config.data.source must be one of {_KINDS}, got {kind!r}')
    if kind == 'cifar10':
        return open_cifar10(folder_of_data(path, kind), split)
    if split not in SPLITS:
        raise Refused(f'config.data: a split of {kind} is one of {SPLITS}, got {split!r}')
    if kind == 'digits':
        return Digits(split)
    folder = folder_of_data(path, kind)
    if kind == 'folder':
        layout = 'train/<class>/ and val/<class>/'
        return ImageFolder(folder, _PARTS[split], layout, classes)
    return _open_records(folder, split) if kind == 'tfds' else _TFRecords(folder, split)


def _open_records(path: Path, split: str) -> TfdsRecords:
    """Opens what `tfds build imagenet2012 --file_format=array_record` has prepared."""
    import tensorflow_datasets as tfds  # slow, and the other sources run without it

    folder = version_folder(path, 'imagenet2012')
    decoders = {'image': tfds.decode.SkipDecoding()}
    if not visible(folder, '*.array_record-*'):
        raise Refused(
            f'{folder} has no array_record files: prepare them with --file_format=array_record, or '
            "read TFRecord files with source='tfrecord'"
        )
    return TfdsRecords(folder, split, _from_tfds, needs=_FEATURES, decoders=decoders)


class _TFRecords:
    """imagenet2012 as TFDS prepares it by default, read through an index of its records."""

    def __init__(self, path: Path, split: str):
        import tensorflow_datasets as tfds

        folder = version_folder(path, 'imagenet2012')
        self._name = f'{folder}, split {split}'
        builder, counts = open_split(folder, split, 'tfrecord')
        self._files = list(counts)
        self._records = _record_index(counts)
        self._features = builder.info.features
        self._decoders = {'image': tfds.decode.SkipDecoding()}
        self.classes = label_names(folder, self._features, 'label', _FEATURES)

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        number, offset, length = self._records[index].tolist()
        name = f'{self._files[number]}, record at byte {offset}'
        try:
            with open(self._files[number], 'rb') as file:
                file.seek(offset)
                record = file.read(length + _CHECKSUM_BYTES)
        except OSError as error:
            raise BrokenExample(f'{name}: {error.strerror}') from error
        data, checksum = record[:length], record[length:]
        if checksum != masked_crc32c(data):
            raise BrokenExample(f'{name}: its checksum is wrong')
        try:
            example = self._features.deserialize_example_np(data, decoders=self._decoders)
        except Exception as error:  # TFDS has no error class for records that are no examples
            raise BrokenExample(f'{name}: {str(error):.300}') from error
        return _from_tfds(example)


def _from_tfds(example: dict[str, Any]) -> Example:
    return {
        'encoded': example['image'],
        'label': int(example['label']),
        'name': example['file_name'].decode(),
    }


def _record_index(counts: dict[Path, int]) -> np.ndarray:
    """Returns int64 `[records, 3]`: file number, byte offset, length; cached beside the files.

    Args:
      counts: The files, and how many records each must hold.

    Raises:
      Refused: A file is cut or damaged, or holds another number of records.
    """
    sizes = np.array([file.stat().st_size for file in counts])
    first = next(iter(counts))
    cache = first.with_name(first.name.partition('.tfrecord-')[0] + '.tfrecord_index.npz')
    records = _kept_index(cache, sizes, list(counts.values()))
    if records is not None:
        return records
    found = [
        (number, offset, length)
        for number, (file, count) in enumerate(counts.items())
        for offset, length in _records(file, sizes[number], count)
    ]
    records = np.array(found, np.int64).reshape(-1, 3)
    try:
        # An atomic write, as other processes may read the index.
        with whole(cache) as unfinished, open(unfinished, 'wb') as file:
            np.savez(file, sizes=sizes, records=records)
    except OSError as error:
        logging.warning('the records will be indexed again at every start: %s', error)
    return records


def _kept_index(cache: Path, sizes: np.ndarray, counts: list[int]) -> np.ndarray | None:
    """Returns the index of files of these sizes, or None where it is to be made anew."""
    if not cache.is_file():
        return None
    try:
        with open(cache, 'rb') as file, np.load(file) as kept:
            kept_sizes, records = kept['sizes'], kept['records']
    except Exception as error:  # NumPy and zipfile have many for damaged files
        logging.warning('%s is damaged, and made anew: %.300s', cache, error)
        return None
    if not np.array_equal(kept_sizes, sizes):
        return None  # of other files
    if not _is_index(records, sizes, counts):
        logging.warning('%s is damaged, and made anew', cache)
        return None
    return records


def _is_index(records: np.ndarray, sizes: np.ndarray, counts: list[int]) -> bool:
    """Returns whether the files are as many records, one after the other, from end to end."""
    if records.dtype != np.int64 or records.shape != (sum(counts), 3) or min(counts) < 0:
        return False
    number, offset, length = records.T
    if not np.array_equal(number, np.repeat(np.arange(len(sizes)), counts)) or np.any(length < 0):
        return False
    starts, ends = offset - _HEADER_BYTES, offset + length + _CHECKSUM_BYTES
    before = np.cumsum(sizes) - sizes  # bytes in the files before each one
    borders = np.append(before[number] + starts, sizes.sum())
    fits = bool(np.all(ends <= sizes[number]))
    return fits and np.array_equal(borders[1:], before[number] + ends)


def _records(file: Path, size: int, count: int) -> list[tuple[int, int]]:
    """Returns the byte offset and length of each record's data, which it does not read."""
    offset = 0
    records: list[tuple[int, int]] = []
    with open(file, 'rb', buffering=0) as opened:
        while offset < size and len(records) <= count:  # no more, of a file full of zeros
            opened.seek(offset)
            header = opened.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                raise Refused(f'{file} ends within its record at byte {offset}')
            if header[_LENGTH.size :] != masked_crc32c(header[: _LENGTH.size]):
                raise Refused(
                    f'{file}: the checksum of the length of its record at byte {offset} is wrong'
                )
            (length,) = _LENGTH.unpack_from(header)
            records.append((offset + _HEADER_BYTES, length))
            offset += length + _FRAME_BYTES
    if offset > size:
        raise Refused(f'{file} ends within its record at byte {records[-1][0] - _HEADER_BYTES}')
    if len(records) > count:
        raise Refused(f'{file} has more than the {count:,} records that dataset_info.json lists')
    check_count(file, len(records), count)
    return records


def masked_crc32c(data: bytes) -> bytes:
    """Returns the checksum of bytes as TFRecord files keep it, a little-endian uint32.

    Args:
      data: What is checked.

    Source: `Mask` in tensorflow/core/lib/hash/crc32c.h of TensorFlow; CRC32C is that of RFC 3720.
    """
    crc = google_crc32c.value(data)
    return struct.pack('<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)
