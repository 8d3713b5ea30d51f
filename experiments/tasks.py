"""What the loop needs to know of a task, and which tasks there are."""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
from matplotlib.figure import SubFigure

from experiments.audioset.task import AudioSet
from experiments.flow.task import OpticalFlow
from experiments.imagenet.task import ImageNet
from experiments.modelnet40.task import ModelNet40
from perceiver_jax.weights.pretrained import Pretrained

Batch = dict[str, np.ndarray]  # the leading axis is the examples
Tree = dict[str, Any]  # Haiku parameters or state


class Task(Protocol):
    """A data set with a model, a loss and a metric. Nothing is opened before it is asked for."""

    metric: str  # the headline metric, a key of what `summarise` returns
    higher_is_better: bool

    def __init__(self, config: ml_collections.ConfigDict): ...

    @property
    def num_train_examples(self) -> int:
        """Examples of one epoch."""

    @property
    def data_name(self) -> str:
        """What the model is trained and evaluated on, for result.json and README's tables."""

    @property
    def paper_value(self) -> float | None:
        """The paper's number for the headline metric, if the data is the paper's."""

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """This process's part of the global batches from a step on, without end.

        `index` [b] uint32 is an example's place in the global batch.
        """

    def eval_batches(self) -> Iterator[Batch]:
        """This process's part of the evaluation examples; `mask` [b] is false on padding.

        `index` [b] uint32 is an example's place in the evaluation data.
        """

    def init(self, rng: jax.Array) -> tuple[Tree, Tree]:
        """Parameters and state of the model."""

    def loss(
        self, params: Tree, state: Tree, rng: jax.Array, batch: Batch
    ) -> tuple[jax.Array, tuple[Tree, dict[str, jax.Array]]]:
        """The mean loss over the batch, the new state, and scalar metrics to log."""

    def predict(self, params: Tree, state: Tree, batch: Batch) -> dict[str, jax.Array]:
        """What evaluation needs of each example: arrays [b, ...]."""

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics from the predictions of all evaluation examples."""

    def pretrained(self, params: Tree, state: Tree) -> Pretrained:
        """The model with its weights, to be used without this repository's experiments."""

    def draw(
        self, subfigure: SubFigure, params: Tree, state: Tree, predictions: dict[str, np.ndarray]
    ) -> None:
        """Sample predictions as a picture.

        `predictions` are those of all evaluation examples, with the `index` of each.
        """

    def describe(self) -> dict[str, Any]:
        """`inputs`, `latents`, `parameters`, `forward_flops`, and `paper`'s figures."""


TASKS: dict[str, type[Task]] = {
    'audioset': AudioSet,
    'flow': OpticalFlow,
    'imagenet': ImageNet,
    'modelnet40': ModelNet40,
}
