"""Files that lie in folders of their classes, as in val/<class>/*, and labels for them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from configs.common import near_misses
from experiments.data.hidden import is_hidden
from perceiver_jax.errors import Refused

# Where names of classes come from that a source is given.
GIVEN = 'the list that is given (config.data.classes, else the classes of the weights)'


class ClassFolders:
    """The files <part>/<class>/* of one or several parts of a data set; picklable.

    The classes, which labels number, are those that are given; else the folders in train/, by
    name; else, where there is no train/, those in the parts that are read. So evaluation needs
    its own part alone.

    Attributes:
      classes: Names of the classes, in the order of their labels.
    """

    def __init__(
        self,
        path: Path,
        parts: Sequence[str],
        endings: Sequence[str],
        *,
        layout: str,
        classes: Sequence[str] | None = None,
    ):
        """Lists the files.

        Args:
          path: The folder of the data set.
          parts: Names of the folders in it that are read.
          endings: Endings of the files, in lower case; upper case is taken too.
          layout: What `path` should hold, for the message where a part is missing.
          classes: Names of the classes in the order of their labels, also of those that have no
            folder; None: the folders tell.

        Raises:
          Refused: A part is missing, holds no such files, or has a folder that is no class or
            means several.
        """
        self._path = path
        self._text = ' and '.join(str(path / part) for part in parts)
        for part in parts:
            if not (path / part).is_dir():
                raise Refused(f'{path / part} is missing: expected {layout}')
        found = {part: _folders(path / part) for part in parts}
        if classes is not None:
            origin = GIVEN
        elif (path / 'train').is_dir():
            origin, classes = str(path / 'train'), _folders(path / 'train')
        else:
            origin, classes = self._text, sorted({name for some in found.values() for name in some})
        self.classes = list(classes)
        numbers = number_classes(self.classes)
        names, labels = [], []
        for part, folders in found.items():
            label = {name: label_of(name, numbers, str(path / part), origin) for name in folders}
            for name in sorted(folders, key=label.__getitem__):
                for file in sorted(os.listdir(path / part / name)):
                    if file.lower().endswith(tuple(endings)) and not is_hidden(file):
                        names.append(os.fsencode(f'{part}/{name}/{file}'))
                        labels.append(label[name])
        if not names:
            raise Refused(f'{self._text} has no files <class>/*{tuple(endings)}')
        # Arrays: a million Python strings would take long to send to each worker.
        self._names, self._labels = np.array(names), np.array(labels, np.int32)

    def __repr__(self) -> str:
        return self._text

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        """Returns the path of a file and its label."""
        return self._path / os.fsdecode(self._names[index]), int(self._labels[index])


def number_classes(classes: Sequence[str]) -> dict[str, int]:
    """Returns the label of each name; -1 where several classes have one name.

    Args:
      classes: Names of the classes, in the order of their labels.
    """
    numbers: dict[str, int] = {}
    for label, name in enumerate(classes):
        numbers[name] = -1 if name in numbers else label
    return numbers


def label_of(name: str, numbers: Mapping[str, int], place: str, origin: str) -> int:
    """Returns the label of a class that the data has.

    Args:
      name: Name of the class.
      numbers: What `number_classes` returned.
      place: Where the data has it, for the message.
      origin: Where the classes are known from, for the message.

    Raises:
      Refused: It is no class, or several; the message names near misses.
    """
    label = numbers.get(name)
    if label is None:
        meant = near_misses(name, numbers.keys())
        raise Refused(f'{place}: {name!r:.80} is no class of {origin}. {meant:.300}')
    if label < 0:
        raise Refused(f'{place}: {name!r:.80} may be several classes of {origin}')
    return label


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in folders if not is_hidden(name))
