"""Where ImageNet's images are read from: TFDS's array_record or TFRecord files, or a folder.

Every source is a `LabelledSource` of examples {'encoded': bytes of a JPEG or PNG file, 'label':
int, 'name': str, the file's name for error messages}. None of them needs TensorFlow.
"""

import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.hidden import is_hidden, visible
from experiments.data.pipeline import BrokenExample, Example, LabelledSource
from experiments.data.prepared import TfdsRecords, label_names, read_metadata, version_folder
from experiments.imagenet.digits import Digits
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole

SPLITS = ('train', 'validation')
_FEATURES = ('image', 'label', 'file_name')  # of TFDS's imagenet2012
_IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png')  # in lower or upper case
# A TFRecord is the data's length (uint64), its CRC (uint32), the data, and their CRC (uint32).
_LENGTH = struct.Struct('<Q')
_HEADER_BYTES, _FRAME_BYTES = 12, 16  # before the data; before and after it


def open_source(kind: str, path: str | None, split: str) -> LabelledSource:
    """Opens one split of ImageNet, or of the digits that stand in for it.

    Args:
      kind: 'tfds' (imagenet2012 as array_record files), 'tfrecord' (imagenet2012 as TFRecord
        files), 'folder' (train/<class>/*.JPEG and val/<class>/*.JPEG) or 'digits'.
      path: TFDS's data folder or the folder of one version in it; or the folder that holds
        train/ and val/; '~' is the home folder. Unused for digits.
      split: 'train' or 'validation'.

    Returns:
      Source of {'encoded': bytes of a JPEG or PNG file, 'label': int, 'name': str} with the
      attribute `classes`.

    Raises:
      Refused: `kind` or `split` is unknown, or `path` holds no such data.
    """
    if split not in SPLITS:
        raise Refused(f'split must be one of {SPLITS}, got {split!r}')
    if kind == 'digits':
        return Digits(split)
    sources: dict[str, Callable[[Path, str], LabelledSource]] = {
        'tfds': _open_records,
        'tfrecord': _TFRecords,
        'folder': _Folder,
    }
    if kind not in sources:
        raise Refused(f'config.data.source must be one of {[*sources, "digits"]}, got {kind!r}')
    if not path or not Path(path).expanduser().is_dir():
        raise Refused(f'data source {kind!r} reads a folder, and there is none at {path!r}')
    return sources[kind](Path(path).expanduser(), split)


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
        self._files = visible(folder, f'*-{split}.tfrecord-*-of-*')
        if not self._files:
            raise Refused(f'{folder} has no TFRecord files of the split {split!r}')
        num_files = int(self._files[0].name.rpartition('-of-')[-1])
        if len(self._files) != num_files:
            raise Refused(
                f'{folder} has {len(self._files)} of the {num_files} TFRecord files of the '
                f'split {split!r}'
            )
        self._records = _record_index(self._files)
        self._features = read_metadata(folder, tfds.features.FeaturesDict.from_config)
        self._decoders = {'image': tfds.decode.SkipDecoding()}
        self.classes = label_names(folder, self._features, 'label', _FEATURES)

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        from google.protobuf.message import DecodeError

        number, offset, length = self._records[index]
        with open(self._files[number], 'rb') as file:
            file.seek(offset)
            record = file.read(length)
        try:
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
        except DecodeError as error:
            name = f'{self._files[number]}, record at byte {offset}'
            raise BrokenExample(f'{name}: {error}') from error
        return _from_tfds(example)


class _Folder:
    """Images train/<class>/* and val/<class>/*; labels number the folders of train/ by name."""

    def __init__(self, path: Path, split: str):
        train, self._folder = path / 'train', path / {'train': 'train', 'validation': 'val'}[split]
        for folder in (train, self._folder):
            if not folder.is_dir():
                raise Refused(f'{folder} is missing: expected train/<class>/ and val/<class>/')
        self.classes = _folders(train)
        unknown = sorted(set(_folders(self._folder)) - set(self.classes))
        if unknown:
            raise Refused(f'{self._folder} has classes that {train} lacks: {unknown[:5]}')
        names, labels = [], []
        for label, name in enumerate(self.classes):
            if not (self._folder / name).is_dir():
                continue
            for file in sorted(os.listdir(self._folder / name)):
                if file.lower().endswith(_IMAGE_ENDINGS) and not is_hidden(file):
                    names.append(os.fsencode(f'{name}/{file}'))
                    labels.append(label)
        if not names:
            raise Refused(f'{self._folder} has no images <class>/*{_IMAGE_ENDINGS}')
        # Arrays: a million Python strings would take long to send to each worker.
        self._names, self._labels = np.array(names), np.array(labels, np.int32)

    def __repr__(self) -> str:
        return str(self._folder)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Example:
        file = self._folder / os.fsdecode(self._names[index])
        try:
            encoded = file.read_bytes()
        except OSError as error:
            raise BrokenExample(f'{file}: {error.strerror}') from error
        return {'encoded': encoded, 'label': int(self._labels[index]), 'name': str(file)}


def _from_tfds(example: dict[str, Any]) -> Example:
    return {
        'encoded': example['image'],
        'label': int(example['label']),
        'name': example['file_name'].decode(),
    }


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in folders if not is_hidden(name))


def _record_index(files: list[Path]) -> np.ndarray:
    """Returns int64 `[records, 3]`: file number, byte offset, length; cached beside the files."""
    sizes = np.array([file.stat().st_size for file in files])
    cache = files[0].with_name(files[0].name.partition('.tfrecord-')[0] + '.tfrecord_index.npz')
    if cache.is_file():
        with np.load(cache) as kept:
            if np.array_equal(kept['sizes'], sizes):
                return kept['records']
    found = [
        (number, offset, length)
        for number, file in enumerate(files)
        for offset, length in _records(file, sizes[number])
    ]
    records = np.array(found, np.int64).reshape(-1, 3)
    try:
        # An atomic write, as other processes may read the index.
        with whole(cache) as unfinished, open(unfinished, 'wb') as file:
            np.savez(file, sizes=sizes, records=records)
    except OSError as error:
        logging.warning('the records will be indexed again at every start: %s', error)
    return records


def _records(file: Path, size: int) -> Iterator[tuple[int, int]]:
    """Yields the byte offset and length of each record's data, which it does not read."""
    offset = 0
    with open(file, 'rb', buffering=0) as records:
        while offset < size:
            records.seek(offset)
            header = records.read(_LENGTH.size)
            length = _LENGTH.unpack(header)[0] if len(header) == _LENGTH.size else size
            if offset + length + _FRAME_BYTES > size:
                raise Refused(f'{file} ends within its record at byte {offset}')
            yield offset + _HEADER_BYTES, length
            offset += length + _FRAME_BYTES
