"""Where point clouds are read from: ModelNet40 as our builder prepared it, a folder, or generated.

Every source is a `LabelledSource` of examples {'points': float32 `[P, 3]` in random order, 'label':
int, 'name': str}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.class_folders import ClassFolders
from experiments.data.pipeline import BrokenExample, Example, LabelledSource
from experiments.data.prepared import TfdsRecords, version_folder
from experiments.modelnet40.files import ENDINGS, NUM_POINTS, centred, random_of, read_cloud
from experiments.modelnet40.shapes import Shapes
from experiments.paths import folder_of_data
from perceiver_jax.errors import Refused

SPLITS = ('train', 'validation', 'test')
# Clouds that a process keeps, half a GiB; our choice: deviations.md#kept-in-memory
_MAX_KEPT = 2**29 // (12 * NUM_POINTS)

# Class -> official numbers of training and test shapes. The shapes of a class are numbered in
# this order: airplane_0001 to airplane_0626 are for training, airplane_0627 to airplane_0726 for
# the test.
OFFICIAL = {
    'airplane': (626, 100),
    'bathtub': (106, 50),
    'bed': (515, 100),
    'bench': (173, 20),
    'bookshelf': (572, 100),
    'bottle': (335, 100),
    'bowl': (64, 20),
    'car': (197, 100),
    'chair': (889, 100),
    'cone': (167, 20),
    'cup': (79, 20),
    'curtain': (138, 20),
    'desk': (200, 86),
    'door': (109, 20),
    'dresser': (200, 86),
    'flower_pot': (149, 20),
    'glass_box': (171, 100),
    'guitar': (155, 100),
    'keyboard': (145, 20),
    'lamp': (124, 20),
    'laptop': (149, 20),
    'mantel': (284, 100),
    'monitor': (465, 100),
    'night_stand': (200, 86),
    'person': (88, 20),
    'piano': (231, 100),
    'plant': (240, 100),
    'radio': (104, 20),
    'range_hood': (115, 100),
    'sink': (128, 20),
    'sofa': (680, 100),
    'stairs': (124, 20),
    'stool': (90, 20),
    'table': (392, 100),
    'tent': (163, 20),
    'toilet': (344, 100),
    'tv_stand': (267, 100),
    'vase': (475, 100),
    'wardrobe': (87, 20),
    'xbox': (103, 20),
}


def open_source(
    kind: str, path: str | None, split: str, classes: Sequence[str] | None = None
) -> LabelledSource:
    """Opens one split of ModelNet40, of one's own shapes, or of generated ones.

    Args:
      kind: 'tfds' (what `experiments.modelnet40.builder` prepared), 'folder' (one's own shapes, see
        `ShapeFolder`) or 'shapes' (generated).
      path: TFDS's data folder or the folder of one version in it; or the folder that holds train/,
        validation/ and test/; '~' is the home folder. Unused for shapes.
      split: 'train', 'validation' or 'test', or several of them, as in 'train+validation'. The
        official training shapes are the first two.
      classes: Names of the classes in the order of their labels, for 'folder'; None: the folders in
        train/, or where there is none those of the split.

    Returns:
      Source of {'points': float32 `[P, 3]` in random order, 'label': int, 'name': str} with the
      attribute `classes`.

    Raises:
      Refused: `kind` or `split` is unknown, or `path` holds no such data.
    """
    if kind == 'shapes':
        return Shapes(split)
    if kind not in ('tfds', 'folder'):
        raise Refused(f"config.data.source must be 'tfds', 'folder' or 'shapes', got {kind!r}")
    folder = folder_of_data(path, kind)
    if kind == 'folder':
        return ShapeFolder(folder, split, classes)
    return TfdsRecords(
        version_folder(folder, 'modelnet40'), split, _from_tfds, needs=('points', 'name')
    )


class ShapeFolder:
    """One's own shapes, <split>/<class>/<name>.off, .npy or .txt; see `read_cloud`.

    Of a mesh the points are drawn that `experiments.modelnet40.builder` would draw of a shape of
    this class and name, the same ones each time. A process keeps what it has read: a mesh of
    ModelNet40 of 20 KB takes 4 ms, one of 100 KB 13 ms, and one of 80,000 faces 0.8 s, once. Where
    thousands of large meshes are read at every start, .npy files of their points are quicker.

    Attributes:
      classes: Names of the classes, in the order of their labels.
    """

    def __init__(self, path: Path, split: str, classes: Sequence[str] | None = None):
        """Lists the files of a split.

        Args:
          path: The folder that holds those of the splits.
          split: 'train', 'validation' or 'test', or several of them joined by '+'.
          classes: Names of the classes; None: the folders tell, see `ClassFolders`.

        Raises:
          Refused: `split` is unknown, its folder is missing or holds no shapes, or has a class that
            is unknown.
        """
        parts = split.split('+')
        if not set(parts) <= set(SPLITS) or len(set(parts)) < len(parts):
            raise Refused(
                f"config.data: a split is one of {SPLITS}, or several as in 'train+validation', "
                f'got {split!r}'
            )
        layout = ', '.join(f'{part}/<class>/' for part in SPLITS)
        layout += ', of which config.data.train_split and config.data.eval_split name some'
        self._files = ClassFolders(path, parts, ENDINGS, layout=layout, classes=classes)
        self.classes = self._files.classes
        self._kept: dict[int, np.ndarray] = {}  # index -> points, as long as there is room

    def __repr__(self) -> str:
        return str(self._files)

    def __getstate__(self) -> dict:  # workers keep points of their own
        return {**self.__dict__, '_kept': {}}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        file, label = self._files[index]
        points = self._kept.get(index)
        if points is None:
            points = _read(file)
            if len(self._kept) < _MAX_KEPT:
                self._kept[index] = points
        return {'points': points, 'label': label, 'name': str(file)}


def _read(file: Path) -> np.ndarray:
    """Reads the points of a file, always the same ones."""
    rng = random_of(file.parent.name, file.stem)
    try:
        return centred(read_cloud(file.read_bytes(), NUM_POINTS, rng, str(file)))
    except OSError as error:
        raise BrokenExample(f'{file}: {error.strerror}') from error
    except Refused as error:
        raise BrokenExample(str(error)) from error


def _from_tfds(example: dict[str, Any]) -> Example:
    return {
        'points': example['points'],
        'label': int(example['label']),
        'name': example['name'].decode(),
    }
