"""ImageNet's task, the classification of images: its data, loss, predictions and pictures."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.classes import saliency
from experiments.data import reading
from experiments.data.pipeline import Batches, LabelledSource
from experiments.imagenet.mixing import mixup_cutmix
from experiments.imagenet.sources import open_source
from experiments.imagenet.transforms import EvalTransform, TrainTransform
from experiments.training import parallel
from experiments.training.checks import below_key, check_resolution
from experiments.training.describe import describe_model
from experiments.training.losses import softmax_cross_entropy
from perceiver_jax.errors import Refused
from perceiver_jax.inputs import as_images
from perceiver_jax.models import MODELS
from perceiver_jax.recording import record_attention
from perceiver_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure  # slow to import, and needed to draw alone

PAPER_EXAMPLES = (1_281_167, 50_000)  # training and validation images of ILSVRC 2012
SOURCE_NAMES = {'cifar10': 'CIFAR-10'}
NUM_DRAWN = 20
NUM_AT_ONCE = 4  # the attention over one full-size image takes 100 MB


class ImageNet:
    """Image classification; an `experiments.tasks.Task`.

    The model is a Perceiver, a Perceiver IO, or a network that the paper compares with.
    """

    metric = 'top1'
    higher_is_better = True
    loss_unit = 'nats'

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.known_classes: Sequence[str] | None = None
        self.mixes = config.loss.mixup_alpha > 0
        if self.mixes != (config.loss.cutmix_alpha > 0):
            raise Refused(
                'config.loss.mixup_alpha and config.loss.cutmix_alpha must both be 0 or both be '
                f'more, got {config.loss.mixup_alpha} and {config.loss.cutmix_alpha}'
            )
        # One of the networks that the paper compares with, or a Perceiver.
        self.function = 'image_baseline' if 'network' in config.model else 'image_classifier'
        self.model = hk.transform_with_state(self._forward)
        size, channels = config.images.image_size, len(config.images.mean)
        if channels not in (1, 3) or len(config.images.std) != channels:
            raise Refused(
                'config.images.mean and config.images.std must have a number for each channel, 1 '
                f'or 3 of them, got {channels} and {len(config.images.std)}'
            )
        self.image_shape = (1, size, size, channels)
        self.train_transform = TrainTransform(**config.images, **config.augmentation)
        self.eval_transform = EvalTransform(
            **config.images, crop_fraction=config.evaluation.crop_fraction
        )
        reading.count_classes(config, lambda: self.eval_source)

    def _forward(self, images: jax.Array, is_training: bool, **changes) -> jax.Array:
        axis = parallel.AXIS if self.config.parallel == 'pmap' else None
        model = {**self.config.model, **changes}
        with below_key('model'):
            return MODELS[self.function](
                images, is_training=is_training, batch_norm_axis=axis, **model
            )

    # Data

    @functools.cached_property
    def train_source(self) -> LabelledSource:
        inputs, size = self.config.model.inputs, self.config.images.image_size
        side = -(-size // 4) if inputs.contents == 'conv7x7' else size
        check_resolution(
            self.config,
            f'config.images.image_size is {size}',
            (side, side),
            'config.model.inputs.max_resolution',
            inputs.get('max_resolution'),
        )
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
    def data_name(self) -> str:
        if self._is_the_papers_data:
            return 'ImageNet'
        split = self._split
        sizes = f'{len(self.train_source):,} training, {len(self.eval_source):,} {split} images'
        return f'{self._source_name} ({sizes})'

    @property
    def eval_data_name(self) -> str:
        number = f'{len(self.eval_source):,}'
        if self.paper_eval_data:
            return f'ImageNet ({number} validation images)'
        split = f'{self._split} ' if self.config.data.source == 'cifar10' else ''
        return f'{self._source_name} ({number} {split}images)'

    @property
    def _source_name(self) -> str:
        source = self.config.data.source
        return SOURCE_NAMES.get(source, source)

    @property
    def _split(self) -> str:
        is_named = self.config.data.source == 'cifar10'  # elsewhere there is a single one
        return self.config.data.eval_split if is_named else 'evaluation'

    @property
    def paper_eval_data(self) -> bool:
        return (len(self.eval_source), self.config.model.num_classes) == (PAPER_EXAMPLES[1], 1000)

    @property
    def eval_paper_value(self) -> float | None:
        return self.config.paper.value if self.paper_eval_data else None

    @property
    def paper_value(self) -> float | None:
        return self.config.paper.value if self._is_the_papers_data else None

    @property
    def _is_the_papers_data(self) -> bool:
        return (len(self.train_source), len(self.eval_source)) == PAPER_EXAMPLES

    def without_data(self) -> None:
        image = np.zeros(self.image_shape[1:], np.uint8)
        encoded = cv2.imencode('.png', image)[1].tobytes()
        blank = reading.Blank({'encoded': encoded, 'label': 0, 'name': 'blank'})
        self.train_source = self.eval_source = blank

    def train_batches(self, start_step: int) -> Batches:
        return reading.train_batches(
            self.config,
            self.train_source,
            self.train_transform,
            start_step,
            examples_per_item=2 if self.mixes else 1,
        )

    def eval_batches(self) -> Batches:
        return reading.eval_batches(self.config, self.eval_source, self.eval_transform)

    # Model

    def init(self, rng: jax.Array) -> tuple[hk.Params, hk.State]:
        return self.model.init(rng, jnp.zeros(self.image_shape), is_training=False)

    def loss(
        self, params: hk.Params, state: hk.State, rng: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[hk.State, dict[str, jax.Array]]]:
        settings, num_classes = self.config.loss, self.config.model.num_classes
        if self.mixes:
            images, labels = mixup_cutmix(
                rng,
                batch['image'],
                batch['label'],
                batch['index'],
                num_classes,
                settings.mixup_alpha,
                settings.cutmix_alpha,
            )
        else:
            images, labels = batch['image'], jax.nn.one_hot(batch['label'], num_classes)
        logits, state = self.model.apply(params, state, rng, images, is_training=True)
        loss = softmax_cross_entropy(logits, labels, settings.label_smoothing).mean()
        correct = logits.argmax(-1) == labels.argmax(-1)
        return loss, (state, {'top1': correct.mean()})

    def predict(
        self, params: hk.Params, state: hk.State, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        logits, _ = self.model.apply(params, state, None, batch['image'], is_training=False)
        labels = batch['label']
        loss = softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
        _, top5 = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        return {
            'loss': loss,
            'top1': top5[:, 0] == labels,
            'top5': (top5 == labels[:, None]).any(-1),
        }

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in predictions.items()}

    def pretrained(self, params: hk.Params, state: hk.State) -> Pretrained:
        model, images = self.config.model.to_dict(), self.config.images
        classes = reading.class_names(lambda: self.eval_source)
        front_end = dict(
            size=images.image_size,
            crop_fraction=self.config.evaluation.crop_fraction,
            mean=list(images.mean),
            std=list(images.std),
        )
        return Pretrained(self.function, model, front_end, params, state, classes)

    # What people look at

    def draw(
        self,
        subfigure: 'SubFigure',
        params: hk.Params,
        state: hk.State,
        predictions: dict[str, np.ndarray],
    ) -> None:
        """Draws evaluation images, up to a third of them mistakes, beside what is attended to.

        The heat map is the attention of the first cross-attend, averaged over the latents; of a
        model without one it is the saliency of the pixels.
        """
        from experiments.pictures.panels import answers, choose_to_draw, image_grid

        def forward(images):
            with record_attention('encoder/cross_attend_1') as weights:
                logits = self._forward(images, is_training=False)
            return logits.argmax(-1), weights[0].mean((1, 2)) if weights else None

        apply = jax.jit(hk.transform_with_state(forward).apply)
        params, state = jax.device_put((params, state))
        drawn = choose_to_draw(predictions['top1'], NUM_DRAWN)
        examples = [self.eval_source[int(i)] for i in predictions['index'][drawn]]
        items = [self.eval_transform(example) for example in examples]
        images, labels = (np.stack([item[key] for item in items]) for key in ('image', 'label'))
        parts = [
            apply(params, state, None, images[i : i + NUM_AT_ONCE])[0]
            for i in range(0, len(images), NUM_AT_ONCE)
        ]
        guesses = np.concatenate([guess for guess, _ in parts])
        if parts[0][1] is None:
            what = 'saliency'

            def logits(images):
                return self.model.apply(params, state, None, images, is_training=False)[0]

            heat = np.concatenate(
                [
                    saliency(logits, images[i : i + NUM_AT_ONCE])
                    for i in range(0, len(images), NUM_AT_ONCE)
                ]
            )
        else:
            what = 'attention of the first cross-attend'
            heat = np.concatenate([heat for _, heat in parts])
            heat = as_images(heat, self.config.model.inputs.get('permutation_seed'))
        names = self.eval_source.classes
        image_grid(
            subfigure,
            self._displayable(images),
            answers(names, guesses, labels),
            guesses == labels,
            heat,
            what,
        )

    def _displayable(self, images: np.ndarray) -> np.ndarray:
        """Returns normalised images in 0..1 again; grey ones without their channel axis."""
        images = np.clip(images * self.config.images.std + self.config.images.mean, 0, 1)
        return images[..., 0] if images.shape[-1] == 1 else images

    def describe(self) -> dict[str, Any]:
        image = jax.ShapeDtypeStruct(self.image_shape, jnp.float32)
        forward = functools.partial(self._forward, is_training=False)
        sizes = describe_model(forward, image)
        return {**sizes, 'paper': self.config.paper.to_dict()}
