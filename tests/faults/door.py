"""A door: a function or class that reads a file which others wrote, with a good file.

A door is a function of an empty folder. It writes good files into it and returns the one to damage
and how it is read. `@door` names what it covers, by which the table is known to be complete.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# What reads no file of a user's, and why.
WITHOUT_FILES = {
    'perceiver_jax.weights.loading.read_bare': 'reads what load reads, as load does',
    'experiments.open_model.open_to_evaluate': 'reads by open_model and read_bare',
    'experiments.open_model.open_to_start': 'reads by open_model and read_bare',
    'experiments.keys.read_notes': 'is given the source of a config that was imported before',
    'experiments.training.profiling.read_profile': 'reads what jax has just written',
    'experiments.flow.sources.Several': 'joins sources',
    'experiments.flow.scenes.MovingScenes': 'generated',
    'experiments.imagenet.digits.Digits': 'generated',
    'experiments.imagenet.cifar10._Part': 'chooses among the images of another source',
    'experiments.audioset.sounds.Sounds': 'generated',
    'experiments.modelnet40.shapes.Shapes': 'generated',
    'experiments.data.pipeline._LastRead': 'passes on the examples of another source',
    'experiments.data.pipeline.Source': 'a protocol',
    'experiments.data.pipeline.LabelledSource': 'a protocol',
    'experiments.data.reading.Blank': 'holds one example',
    'experiments.data.class_folders.ClassFolders': 'lists files',
    'experiments.data.pipeline._TrainItems': "passes a source's examples on",
    'experiments.data.pipeline._EvalItems': "passes a source's examples on",
}


class Sample(NamedTuple):
    """A good file, and how it is read.

    Attributes:
      file: The file to damage.
      read: Function without arguments that reads it.
      kind: What the file is, a key of `damage.KINDS`.
      wrong: Function of a `random.Random` that returns a sound file with wrong values in it.
      named: What a message must name instead of the file.
    """

    file: Path
    read: Callable[[], object]
    kind: str = 'bytes'
    wrong: Callable | None = None
    named: str = ''


class Door(NamedTuple):
    """What is read.

    Attributes:
      covers: Dotted names of the functions and classes.
      sample: Function of an empty folder.
      slow: How many cases of other doors take the time of one of this.
    """

    covers: tuple[str, ...]
    sample: Callable[[Path], Sample]
    slow: int


DOORS: dict[str, Door] = {}


def door(*covers, slow=1):
    def add(sample):
        DOORS[sample.__name__] = Door(covers, sample, slow)
        return sample

    return add
