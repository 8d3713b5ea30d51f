"""Data sets that TensorFlow Datasets has prepared, read at random without TensorFlow."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.data.hidden import visible
from experiments.data.pipeline import Example
from experiments.data.tables import MARKS, read_text
from perceiver_jax.errors import Refused, reading
from perceiver_jax.files import read_json

T = TypeVar('T')
_ABOUT = ('features.json', 'dataset_info.json')  # what TFDS writes about a data set


def version_folder(path: Path, dataset: str) -> Path:
    """Returns `path` if it is a prepared version, or the newest version of a data set in it.

    Args:
      path: TFDS's data folder, or the folder of one version in it.
      dataset: TFDS's name of the data set.

    Returns:
      The folder of the version, which holds features.json.

    Raises:
      Refused: `path` holds no prepared version.
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


def read_metadata(folder: Path, read: Callable[[Path], T]) -> T:
    """Lets TFDS read what a prepared version says about itself.

    Args:
      folder: The folder of the prepared version.
      read: TFDS's function of the folder.

    Returns:
      What `read` returns.

    Raises:
      Refused: A file is damaged; names it, a list of the names of classes with its line.
    """
    for file in visible(folder, '*.labels.txt'):
        names = [line.strip() for line in read_text(file).split('\n') if line.strip()]
        if file.read_bytes().startswith(tuple(MARKS)):  # part of the first name to TFDS
            raise Refused(f'{file}, line 1: expected UTF-8 without a byte order mark')
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise Refused(f'{file}: {twice[0]!r:.80} is there twice')
    for name in _ABOUT:
        if (folder / name).exists():
            read_json(folder / name)
    with reading(f'{folder} ({", ".join(_ABOUT)})', 'what TFDS writes about a data set'):
        return read(folder)


def label_names(
    folder: Path, features: Mapping[str, Any], label: str, needs: Collection[str]
) -> list[str]:
    """Returns the names of the classes, and checks that all features are there that are needed.

    Args:
      folder: The folder of the prepared version.
      features: TFDS's features by name.
      label: Name of the feature that is a class label or a sequence of class labels.
      needs: Names of the other features.

    Raises:
      Refused: A feature is missing, or the classes have no names.
    """
    file = folder / 'features.json'
    if missing := {label, *needs} - set(features):
        raise Refused(
            f'{file}: expected the features {sorted({label, *needs})}, {sorted(missing)} are '
            'missing'
        )
    names = getattr(getattr(features[label], 'feature', features[label]), 'names', None)
    if not names:
        raise Refused(f'{file}: expected names of classes for {label!r}, there are none')
    return list(names)


class TfdsRecords:
    """A split, or several as in 'train+validation', of a version in array_record files.

    A `LabelledSource`: examples by index, picklable.

    Attributes:
      classes: The names of the classes, in the order of their labels.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        convert: Callable[[dict[str, Any]], Example],
        *,
        label: str = 'label',
        needs: Collection[str] = (),
        decoders: Mapping[str, Any] | None = None,
    ):
        """Opens the files.

        Args:
          folder: The folder of the prepared version.
          split: Names of splits, joined by '+'.
          convert: Makes an example from TFDS's dictionary of features; picklable.
          label: Name of the feature that is a class label or a sequence of class labels.
          needs: Names of features that `convert` takes.
          decoders: TFDS's decoders by feature; None and features it lacks are decoded as usual.

        Raises:
          Refused: A split has no files, or a file about the data set is damaged.
        """
        import tensorflow_datasets as tfds  # slow, and the other sources run without it

        self._name = f'{folder}, split {split}'
        self._convert = convert
        for part in split.split('+'):
            if not visible(folder, f'*-{part}.array_record-*'):
                raise Refused(f'{folder} has no array_record files of the split {part!r}')
        builder = read_metadata(folder, tfds.builder_from_directory)
        self.classes = label_names(folder, builder.info.features, label, needs)
        with reading(folder / 'dataset_info.json', f'the files of the split {split!r}'):
            self._records = builder.as_data_source(split, decoders=decoders)
            files = [x for part in split.split('+') for x in builder.info.splits[part].filepaths]
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise Refused(
                f'{folder}/dataset_info.json: expected {len(files)} files of the split {split!r}, '
                f'{len(missing)} are not there: {os.path.basename(missing[0])!r:.80}'
            )

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        return self._convert(self._records[index])
