"""ModelNet40's task, the classification of point clouds: data, loss, predictions, pictures."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.classes import saliency
from experiments.data import reading
from experiments.data.pipeline import Batches, LabelledSource
from experiments.modelnet40.mixing import mix_clouds
from experiments.modelnet40.sources import open_source
from experiments.modelnet40.transforms import EvalTransform, TrainTransform
from experiments.training import parallel
from experiments.training.checks import below_key
from experiments.training.describe import describe_model
from experiments.training.losses import softmax_cross_entropy
from perceiver_jax.models import MODELS
from perceiver_jax.recording import record_attention
from perceiver_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure  # slow to import, and needed to draw alone

PAPER_EXAMPLES = (9_843, 2_468)  # official training and test shapes
DATA_NAMES = {'tfds': 'ModelNet40', 'folder': 'own shapes', 'shapes': 'generated shapes'}
NUM_DRAWN = 12


class ModelNet40:
    """Point clouds classified by the Perceiver, or what it is compared with; a `Task`."""

    metric = 'accuracy'
    higher_is_better = True
    loss_unit = 'nats'

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.known_classes: Sequence[str] | None = None
        num_points = config.points.num_points
        self.num_eval_points = config.evaluation.num_points or num_points
        # One of the networks that the paper compares with, or a Perceiver.
        self.function = 'point_baseline' if 'network' in config.model else 'point_classifier'
        self.model = hk.transform_with_state(self._forward)
        self.points_shape = (1, num_points, 3)
        self.train_transform = TrainTransform(num_points=num_points, **config.augmentation)
        self.eval_transform = EvalTransform(
            num_points=self.num_eval_points, num_draws=config.evaluation.num_draws
        )
        reading.count_classes(config, lambda: self.eval_source)

    def _forward(self, points: jax.Array, is_training: bool, **changes) -> jax.Array:
        model = {**self.config.model, **changes}
        if self.config.parallel == 'pmap' and self.function == 'point_baseline':
            model['batch_norm_axis'] = parallel.AXIS
        with below_key('model'):
            return MODELS[self.function](points, is_training=is_training, **model)

    # Data

    @functools.cached_property
    def train_source(self) -> LabelledSource:
        return self._open(self.config.data.train_split)

    @functools.cached_property
    def eval_source(self) -> LabelledSource:
        return self._open(self.config.data.eval_split)

    def _open(self, split: str) -> LabelledSource:
        data = self.config.data
        classes = reading.given_classes(self.config) or self.known_classes
        source = open_source(data.source, data.path, split, classes)
        reading.check_classes(self.config, source.classes)
        return source

    @property
    def num_train_examples(self) -> int:
        return len(self.train_source)

    @property
    def num_eval_examples(self) -> int:
        return len(self.eval_source)

    @property
    def _points_text(self) -> str:
        text = f'{self.num_eval_points:,} points'
        num_draws = self.config.evaluation.num_draws
        return text if num_draws == 1 else f'{text}, mean of {num_draws:,} draws'

    @property
    def data_name(self) -> str:
        points, num_points = self._points_text, self.config.points.num_points
        if num_points != self.num_eval_points:
            points = f'{points}, trained on {num_points:,}'
        if self._is_the_papers_data:
            return f'ModelNet40, {points}'
        name = DATA_NAMES[self.config.data.source]
        split = self.config.data.eval_split
        sizes = f'{len(self.train_source):,} training, {len(self.eval_source):,} {split} shapes'
        return f'{name}, {points} ({sizes})'

    @property
    def eval_data_name(self) -> str:
        name, split = DATA_NAMES[self.config.data.source], self.config.data.eval_split
        return f'{name}, {self._points_text} ({len(self.eval_source):,} {split} shapes)'

    @property
    def paper_eval_data(self) -> bool:
        data = self.config.data
        is_official = (data.source, data.eval_split) == ('tfds', 'test')
        return is_official and len(self.eval_source) == PAPER_EXAMPLES[1]

    @property
    def eval_paper_value(self) -> float | None:
        return self.config.paper.value if self.paper_eval_data else None

    @property
    def paper_value(self) -> float | None:
        return self.config.paper.value if self._is_the_papers_data else None

    @property
    def _is_the_papers_data(self) -> bool:
        return self.paper_eval_data and len(self.train_source) == PAPER_EXAMPLES[0]

    def without_data(self) -> None:
        most = max(self.config.points.num_points, self.num_eval_points)
        points = np.resize(np.eye(3, dtype=np.float32), (most, 3))
        blank = reading.Blank({'points': points, 'label': 0, 'name': 'blank'})
        self.train_source = self.eval_source = blank

    def train_batches(self, start_step: int) -> Batches:
        return reading.train_batches(
            self.config,
            self.train_source,
            self.train_transform,
            start_step,
            examples_per_item=2 if self.config.loss.cutmix_alpha else 1,
        )

    def eval_batches(self) -> Batches:
        return reading.eval_batches(self.config, self.eval_source, self.eval_transform)

    # Model

    def init(self, rng: jax.Array) -> tuple[hk.Params, hk.State]:
        return self.model.init(rng, jnp.zeros(self.points_shape), is_training=False)

    def loss(
        self, params: hk.Params, state: hk.State, rng: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[hk.State, dict[str, jax.Array]]]:
        settings, num_classes = self.config.loss, self.config.model.num_classes
        points, labels = batch['points'], batch['label']
        if settings.cutmix_alpha:
            points, labels = mix_clouds(
                rng, points, labels, batch['index'], num_classes, settings.cutmix_alpha
            )
        else:
            labels = jax.nn.one_hot(labels, num_classes)
        logits, state = self.model.apply(params, state, rng, points, is_training=True)
        loss = softmax_cross_entropy(logits, labels, settings.label_smoothing).mean()
        correct = logits.argmax(-1) == labels.argmax(-1)
        return loss, (state, {'accuracy': correct.mean()})

    def predict(
        self, params: hk.Params, state: hk.State, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        clouds = batch['points']  # [b, draws, P, 3]
        each = clouds.reshape(-1, *clouds.shape[2:])
        logits, _ = self.model.apply(params, state, None, each, is_training=False)
        logits = logits.reshape(*clouds.shape[:2], -1).mean(1)
        labels = jax.nn.one_hot(batch['label'], logits.shape[-1])
        return {
            'loss': softmax_cross_entropy(logits, labels),
            'guess': logits.argmax(-1),
            'label': batch['label'],
        }

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        counts = self._confusion(predictions)
        shapes = counts.sum(1)
        recall = counts.diagonal()[shapes > 0] / shapes[shapes > 0]
        return {
            'loss': float(predictions['loss'].mean()),
            'accuracy': float(counts.trace() / counts.sum()),
            'accuracy_class_mean': float(recall.mean()),  # over the classes that there are
        }

    def _confusion(self, predictions) -> np.ndarray:  # [K, K]: true class, guess
        counts = np.zeros(2 * (self.config.model.num_classes,), int)
        np.add.at(counts, (predictions['label'], predictions['guess']), 1)
        return counts

    def pretrained(self, params: hk.Params, state: hk.State) -> Pretrained:
        classes = reading.class_names(lambda: self.eval_source)
        front_end = dict(num_points=self.num_eval_points)
        model = self.config.model.to_dict()
        return Pretrained(self.function, model, front_end, params, state, classes)

    # What people look at

    def draw(
        self,
        subfigure: 'SubFigure',
        params: hk.Params,
        state: hk.State,
        predictions: dict[str, np.ndarray],
    ) -> None:
        """Draws the confusion matrix, and clouds, up to a third of them mistakes.

        A point is the brighter the more the first cross-attend attends to it; without one, the more
        it changes the logit of the best class.
        """
        from experiments.pictures.panels import (
            answers,
            choose_to_draw,
            cloud_grid,
            confusion_matrix,
        )

        def attention(points):
            with record_attention('encoder/cross_attend_1') as weights:
                self._forward(points, is_training=False)
            return weights[0].mean((1, 2)) if weights else None

        apply = jax.jit(hk.transform_with_state(attention).apply)
        drawn = choose_to_draw(predictions['label'] == predictions['guess'], NUM_DRAWN)
        examples = [self.eval_source[int(i)] for i in predictions['index'][drawn]]
        clouds = np.stack([self.eval_transform(example)['points'] for example in examples])[:, 0]
        params, state = jax.device_put((params, state))
        heat, _ = apply(params, state, None, clouds)
        what = 'attention'
        if heat is None:
            what = 'saliency'
            heat = saliency(
                lambda x: self.model.apply(params, state, None, x, is_training=False)[0], clouds
            )
        labels, guesses = predictions['label'][drawn], predictions['guess'][drawn]
        names = self.eval_source.classes
        left, right = subfigure.subfigures(1, 2, squeeze=False)[0]
        confusion_matrix(left, self._confusion(predictions), names)
        cloud_grid(
            right,
            clouds,
            answers(names, guesses, labels),
            guesses == labels,
            np.asarray(heat),
            what,
        )

    def describe(self) -> dict[str, Any]:
        points = jax.ShapeDtypeStruct(self.points_shape, jnp.float32)
        forward = functools.partial(self._forward, is_training=False)
        return {**describe_model(forward, points), 'paper': self.config.paper.to_dict()}
