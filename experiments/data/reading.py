"""How a task reads its data: batches from a config, and the names of the classes.

The same functions for every task. A task says which source and which transform; where this process
stands among the others, and what `config.data` and `config.train` say, is read here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.data import pipeline
from experiments.data.pipeline import Batches, Example, Item, LabelledSource, Source
from experiments.data.tables import read_names
from perceiver_jax.errors import Refused


@dataclasses.dataclass(frozen=True)
class Blank:
    """One example again and again: a source of the shapes of batches, where there is no data.

    Attributes:
      example: What a source of the task yields, of the sizes that the config says.
      classes: None are known.
    """

    example: Example
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, index: int) -> Example:
        return self.example


def train_batches(
    config: ml_collections.ConfigDict,
    source: Source,
    transform: Callable[[Example, np.random.Generator], Item],
    start_step: int,
    *,
    batch_size: int | None = None,
    examples_per_item: int = 1,
    repeats: int = 1,
) -> Batches:
    """Returns this process's part of the global training batches from a step on, forever.

    Args:
      config: The configuration of the run.
      source: The training examples.
      transform: Augments an example; see `pipeline.train_batches`.
      start_step: Number of global batches to pass over.
      batch_size: Items in a global batch; None: `config.train.batch_size`.
      examples_per_item: Consecutive examples that make one item; mixing needs two.
      repeats: How often an example is augmented for once that it is read.

    Raises:
      Refused: The source is empty, or the batch cannot be cut over the processes.
    """
    return pipeline.train_batches(
        source,
        transform,
        batch_size=config.train.batch_size if batch_size is None else batch_size,
        seed=config.seed,
        start_step=start_step,
        examples_per_item=examples_per_item,
        repeats=repeats,
        **_options(config.data),
    )


def eval_batches(
    config: ml_collections.ConfigDict, source: Source, transform: Callable[[Example], Item]
) -> Batches:
    """Returns this process's part of one pass over the evaluation examples.

    Args:
      config: The configuration of the run.
      source: The evaluation examples.
      transform: Makes arrays of an example, always the same ones.
    """
    return pipeline.eval_batches(
        source, transform, batch_size=config.evaluation.batch_size, **_options(config.data)
    )


def count_classes(
    config: ml_collections.ConfigDict, open_source: Callable[[], LabelledSource]
) -> None:
    """Has a `config.model.num_classes` of 0 become the number of classes in the data.

    So the number is in the config that a run saves, and its model is known without its data.

    Args:
      config: The configuration of the run; changed in place.
      open_source: Opens the data; called only where it is to be counted.

    Raises:
      Refused: The number is negative, or is to be counted and there is no data or no class.
    """
    number = config.model.num_classes
    if number < 0:
        raise Refused(
            f'config.model.num_classes is {number}, it must be at least 1, or 0 for as many as '
            'there are in the data'
        )
    if number == 0:
        try:
            classes = open_source().classes
        except Refused as error:
            raise Refused(
                f'config.model.num_classes is 0, as many as in the data: {error}'
            ) from error
        if not classes:
            raise Refused(f'the {config.data.source} data has no classes')
        config.model.num_classes = len(classes)


def given_classes(config: ml_collections.ConfigDict) -> list[str] | None:
    """Returns the names of the classes in the file that `config.data.classes` names.

    The labels of a folder number them in this order, so that a folder may have some of the classes
    of a model, and evaluation needs no train/. To be read with the data only: a model can be used
    without either.

    Args:
      config: The configuration of the run.

    Returns:
      The names, see `read_names`; None where no file is named.

    Raises:
      Refused: There is no such file, or the data knows its classes.
    """
    file, kind = config.data.classes, config.data.source
    if not file:
        return None
    if kind != 'folder':
        raise Refused(
            f"config.data.classes is {file!r}: it is for source 'folder', and {kind!r} data knows "
            'its classes'
        )
    try:
        return read_names(Path(file).expanduser())
    except OSError as error:
        raise Refused(f'config.data.classes is {file!r}: {error.strerror}') from error
    except Refused as error:
        raise Refused(f'config.data.classes: {error}') from error


def check_classes(config: ml_collections.ConfigDict, classes: Sequence[str]) -> None:
    """Compares the number of classes in the data with the number of logits of the model.

    Args:
      config: The configuration of the run. Where its number of classes is 0, they are not counted
        yet, and any number fits.
      classes: The names of the classes in the data.

    Raises:
      Refused: The numbers differ; names both.
    """
    num_logits, is_folder = config.model.num_classes, config.data.source == 'folder'
    if num_logits and len(classes) != num_logits:
        raise Refused(
            f'the {config.data.source} data has {len(classes)} classes, and '
            f'config.model.num_classes is {num_logits}; 0 takes the number from the data'
            + (', and config.data.classes can name all of them' if is_folder else '')
        )


def class_names(open_source: Callable[[], LabelledSource]) -> list[str] | None:
    """Returns the names of the classes where the data is at hand, and None elsewhere.

    Args:
      open_source: Opens data that has `classes`; a model can be used without its data.
    """
    try:
        return list(open_source().classes)
    except (OSError, Refused):
        return None


def _options(data: ml_collections.ConfigDict) -> dict[str, Any]:
    return dict(
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=data.num_workers,
        on_broken=data.on_broken,
    )
