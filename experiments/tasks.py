"""What the loop needs to know of a task, and which tasks there are."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import haiku as hk
import jax
import ml_collections
import numpy as np

from configs.common import near_misses
from experiments.data.pipeline import Batches
from experiments.training.config_values import check_values
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure  # slow to import, and needed to draw alone

# Each is imported when it is made: no task needs what another one imports.
TASKS = {
    'audioset': 'experiments.audioset.task.AudioSet',
    'flow': 'experiments.flow.task.OpticalFlow',
    'imagenet': 'experiments.imagenet.task.ImageNet',
    'modelnet40': 'experiments.modelnet40.task.ModelNet40',
}


class Task(Protocol):
    """A data set with a model, a loss and a metric. Nothing is opened before it is asked for."""

    metric: str  # the headline metric, a key of what `summarise` returns
    higher_is_better: bool
    loss_unit: str  # of the loss, for its curve
    # Names that the labels of a folder number where no file does: those of weights to evaluate,
    # set before data is opened; None where train/ or the data itself tells.
    known_classes: Sequence[str] | None

    def __init__(self, config: ml_collections.ConfigDict): ...

    @property
    def num_train_examples(self) -> int:
        """Examples of one epoch."""

    @property
    def num_eval_examples(self) -> int:
        """Examples to evaluate."""

    @property
    def data_name(self) -> str:
        """What the model is trained and evaluated on, for result.json and the tables of results."""

    @property
    def eval_data_name(self) -> str:
        """What a model is evaluated on, whatever it was trained on; opens no training data."""

    @property
    def paper_eval_data(self) -> bool:
        """Whether the headline metric is that of the paper's evaluation data; opens no other."""

    @property
    def eval_paper_value(self) -> float | None:
        """The paper's number for the headline metric, if that data is the paper's."""

    @property
    def paper_value(self) -> float | None:
        """The paper's number for the headline metric, if the data is the paper's."""

    def without_data(self) -> None:
        """From now on all examples are the same blank one, of the sizes that the config says."""

    def train_batches(self, start_step: int) -> Batches:
        """This process's part of the global batches from a step on, without end.

        `index` [b] uint32 is an example's place in the global batch.
        """

    def eval_batches(self) -> Batches:
        """This process's part of the evaluation examples; `mask` [b] is false on padding.

        `index` [b] uint32 is an example's place in the evaluation data.
        """

    def init(self, rng: jax.Array) -> tuple[hk.Params, hk.State]:
        """Parameters and state of the model."""

    def loss(
        self, params: hk.Params, state: hk.State, rng: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[hk.State, dict[str, jax.Array]]]:
        """The mean loss over the batch, the new state, and scalar metrics to log."""

    def predict(
        self, params: hk.Params, state: hk.State, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """What evaluation needs of each example: arrays [b, ...]."""

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the predictions of all evaluation examples."""

    def pretrained(self, params: hk.Params, state: hk.State) -> Pretrained:
        """The model with its weights, to be used without this repository's experiments."""

    def draw(
        self,
        subfigure: 'SubFigure',
        params: hk.Params,
        state: hk.State,
        predictions: dict[str, np.ndarray],
    ) -> None:
        """Sample predictions as a picture.

        `predictions` are those of all evaluation examples, with the `index` of each.
        """

    def describe(self) -> dict[str, Any]:
        """What `experiments.training.describe.describe_model` says, and `paper`'s figures."""


def make_task(config: ml_collections.ConfigDict) -> Task:
    """Makes the task that `config.task` names.

    Args:
      config: The configuration of the run.

    Raises:
      Refused: There is no such task, a value is not allowed, or the configuration contradicts
        itself.
    """
    check_values(config)
    if config.task not in TASKS:
        raise Refused(
            f'config.task is {config.task!r}, an unknown task. {near_misses(config.task, TASKS)}'
        )
    module, _, name = TASKS[config.task].rpartition('.')
    return getattr(importlib.import_module(module), name)(config)
