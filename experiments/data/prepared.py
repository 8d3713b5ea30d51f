"""Data sets that TensorFlow Datasets has prepared, read at random without TensorFlow."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from experiments.data.hidden import visible
from experiments.data.pipeline import BrokenExample, Example
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
      Refused: A file is damaged, or names a class of features that is not TFDS's own; names the
        file, a list of the names of classes with its line.
    """
    _check_features(folder / 'features.json')
    for file in visible(folder, '*.labels.txt'):
        names = [line.strip() for line in read_text(file).split('\n') if line.strip()]
        if file.read_bytes().startswith(tuple(MARKS)):  # part of the first name to TFDS
            raise Refused(f'{file}, line 1: expected UTF-8 without a byte order mark')
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise Refused(f'{file}: {twice[0]!r:.80} is there twice')
    if (folder / 'dataset_info.json').exists():
        read_json(folder / 'dataset_info.json')
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


def open_split(folder: Path, split: str, kind: str) -> tuple[Any, dict[Path, int]]:
    """Lets TFDS open a prepared version, and finds the files of a split.

    Args:
      folder: The folder of the prepared version.
      split: Names of splits, joined by '+'.
      kind: TFDS's ending of the files: 'array_record' or 'tfrecord'.

    Returns:
      TFDS's builder, and the files in order with the number of records each must hold.

    Raises:
      Refused: A split has no such files, dataset_info.json does not list them, one is missing, or
        a file about the data set is damaged.
    """
    import tensorflow_datasets as tfds  # slow, and the other sources run without it

    files = {part: visible(folder, f'*-{part}.{kind}-*-of-*') for part in split.split('+')}
    for part in files:
        if not files[part]:
            raise Refused(f'{folder} has no {kind} files of the split {part!r}')
    builder = read_metadata(folder, tfds.builder_from_directory)
    listed, splits = folder / 'dataset_info.json', builder.info.splits
    expected = {}
    for part in files:
        counts = splits[part].shard_lengths if part in splits else []
        if not counts:
            raise Refused(f'{listed} lists no numbers of records of the split {part!r}')
        name = files[part][0].name.rpartition(f'.{kind}-')[0]
        for number, count in enumerate(counts):
            file = folder / f'{name}.{kind}-{number:05}-of-{len(counts):05}'
            if not file.is_file():
                raise Refused(f'{file} is missing, one of {len(counts)} that {listed.name} lists')
            expected[file] = count
    return builder, expected


def check_count(file: Path, found: int, expected: int) -> None:
    """Compares the number of records in a file with the one in dataset_info.json.

    Args:
      file: A file of a prepared version.
      found: How many records can be found in it.
      expected: How many dataset_info.json lists.

    Raises:
      Refused: The numbers differ: the file is empty, cut or damaged, or of another version.
    """
    if found != expected:
        raise Refused(
            f'{file} ({file.stat().st_size:,} bytes) has {found:,} readable records, and '
            f'dataset_info.json lists {expected:,}: prepare or copy it anew'
        )


def _check_features(file: Path) -> None:
    """Refuses classes that are not TFDS's own features: TFDS imports whatever module is named."""
    from tensorflow_datasets import features  # slow, and the other sources run without it

    allowed = {
        f'{x.__module__}.{x.__name__}'
        for x in vars(features).values()
        if isinstance(x, type) and issubclass(x, features.FeatureConnector)
    }
    allowed.add('tensorflow_datasets.core.features.feature.Tensor')  # what it was called before

    def check(value: Any, key: str = '') -> None:
        if isinstance(value, dict):
            for name, content in value.items():
                check(content, name)
        elif isinstance(value, list):
            for content in value:
                check(content, key)
        elif isinstance(value, str) and key in ('pythonClassName', 'python_class_name', 'type'):
            if value not in allowed:
                raise Refused(f"{file}: {value!r:.80} is none of TFDS's own classes of features")
        elif isinstance(value, str) and value.lstrip().startswith(('{', '[')):  # JSON within JSON
            with reading(file, 'what TFDS writes about a data set'):
                content = json.loads(value)
            check(content)

    check(read_json(file))


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
          Refused: A split has no files, a file about the data set is damaged, or one of records is
            missing, or does not hold as many as dataset_info.json lists.
        """
        self._name = f'{folder}, split {split}'
        self._convert = convert
        builder, counts = open_split(folder, split, 'array_record')
        self.classes = label_names(folder, builder.info.features, label, needs)
        with ThreadPoolExecutor() as threads:  # a thousand files, maybe over a network
            for file, found in zip(counts, threads.map(_num_records, counts), strict=True):
                check_count(file, found, counts[file])
        self._files, self._counts = [*counts], [*counts.values()]
        self._ends = np.cumsum(self._counts)
        with reading(folder / 'dataset_info.json', f'the files of the split {split!r}'):
            self._records = builder.as_data_source(split, decoders=decoders)

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        try:
            example = self._records[index]
        except Exception as error:  # TFDS and array_record have no error class for damaged files
            number = int(np.searchsorted(self._ends, index, side='right'))
            place = index - int(self._ends[number]) + self._counts[number]
            raise BrokenExample(
                f'{self._files[number]}, record {place + 1} of {self._counts[number]}: '
                f'{str(error):.300}'
            ) from error
        return self._convert(example)


def _num_records(file: Path) -> int:
    """Returns the number of records in an array_record file, which stands at its end."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(
            str(file), 'readahead_buffer_size:0', file_reader_buffer_size=2**15
        )
        found = reader.num_records()
        reader.close()  # raises what went wrong
    except Exception as error:  # array_record has no error class for damaged files
        raise Refused(
            f'{file} ({file.stat().st_size:,} bytes) is empty, cut or damaged: {str(error):.300}'
        ) from error
    return found
