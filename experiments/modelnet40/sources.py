"""Where ModelNet40's point clouds are read from: what our builder prepared, or generated shapes."""

from typing import Any

from experiments.data.pipeline import Example, LabelledSource
from experiments.data.prepared import TfdsRecords, version_folder
from experiments.modelnet40.shapes import Shapes
from experiments.paths import folder_of_data
from perceiver_jax.errors import Refused

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


def open_source(kind: str, path: str | None, split: str) -> LabelledSource:
    """Opens one split of ModelNet40, or of the shapes that stand in for it.

    Args:
      kind: 'tfds' (what `experiments.modelnet40.builder` prepared) or 'shapes' (generated).
      path: TFDS's data folder or the folder of one version in it; '~' is the home folder. Unused
        for shapes.
      split: 'train', 'validation' or 'test', or several of them, as in 'train+validation'. The
        official training shapes are the first two.

    Returns:
      Source of {'points': float32 `[P, 3]` in random order, 'label': int, 'name': str} with the
      attribute `classes`.

    Raises:
      Refused: `kind` or `split` is unknown, or `path` holds no such data.
    """
    if kind == 'shapes':
        return Shapes(split)
    if kind != 'tfds':
        raise Refused(f"config.data.source must be 'tfds' or 'shapes', got {kind!r}")
    folder = version_folder(folder_of_data(path, kind), 'modelnet40')
    return TfdsRecords(folder, split, _from_tfds, needs=('points', 'name'))


def _from_tfds(example: dict[str, Any]) -> Example:
    return {
        'points': example['points'],
        'label': int(example['label']),
        'name': example['name'].decode(),
    }
