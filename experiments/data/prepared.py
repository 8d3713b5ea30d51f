"""Data sets that TensorFlow Datasets has prepared, read at random without TensorFlow."""

import re
from pathlib import Path

from perceiver_jax.errors import Refused


def version_folder(path: Path, dataset: str) -> Path:
    """Returns `path` if it is a prepared version, or the newest version of a data set in it.

    Args:
      path: TFDS's data folder, or the folder of one version in it.
      dataset: the name that TFDS knows it by.

    Raises:
      ValueError: if nothing is prepared there.
    """
    prepared = [
        file.parent
        for file in path.glob(f'{dataset}/*/features.json')
        if re.fullmatch(r'\d+\.\d+\.\d+', file.parent.name)  # not one left incomplete
    ]
    if (path / 'features.json').is_file():
        return path
    if not prepared:
        raise Refused(
            f'{path} holds no prepared {dataset}: expected features.json or '
            f'{dataset}/<version>/features.json in it'
        )
    return max(prepared, key=lambda folder: [int(part) for part in folder.name.split('.')])


class ArrayRecords:
    """A split, or several as in 'train+validation', of a version in array_record files.

    Items are what TFDS makes of the features; `features` describes them. Picklable.
    """

    def __init__(self, folder: Path, split: str, decoders: dict | None = None):
        import tensorflow_datasets as tfds  # slow, and the other sources run without it

        self._name = f'{folder}, split {split}'
        for part in split.split('+'):
            if not any(folder.glob(f'*-{part}.array_record-*')):
                raise Refused(f'{folder} has no array_record files of the split {part!r}')
        builder = tfds.builder_from_directory(folder)
        self.features = builder.info.features
        self._source = builder.as_data_source(split, decoders=decoders)

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        return self._source[index]
