"""AudioSet's task, clips of sound and video: its data, augmentation, loss, scores and pictures."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.audioset.metrics import METRICS, average_precision, multi_label_metrics
from experiments.audioset.mixing import (
    at_speed,
    drop_examples,
    loudness,
    mix_sounds,
    spec_augment,
)
from experiments.audioset.sources import open_source
from experiments.audioset.transforms import ClipShape, EvalTransform, TrainTransform
from experiments.data import reading
from experiments.data.clip_files import FRAMES_PER_SECOND
from experiments.data.pipeline import Batches, LabelledSource
from experiments.training.checks import below_key, check_resolution
from experiments.training.describe import describe_model
from experiments.training.losses import sigmoid_cross_entropy, softmax_cross_entropy
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.spectrogram import log_mel
from perceiver_jax.models import audio_visual_classifier
from perceiver_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure  # slow to import, and needed to draw alone

# Videos disappear from YouTube: data of at least this size counts as the papers';
# our choice: deviations.md#size-of-audioset
PAPER_CLASSES = 527
PAPER_EXAMPLES = (1_500_000, 15_000)  # fewest training and evaluation clips
NUM_DRAWN = 6
NUM_FRAMES_DRAWN = 5
NUM_CLASSES_DRAWN = 8  # of the best classes, and as many of the worst


class AudioSet:
    """Multi-label classification of clips; an `experiments.tasks.Task`."""

    higher_is_better = True
    loss_unit = 'nats'

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.known_classes: Sequence[str] | None = None
        self.metric = config.evaluation.metric
        self.modalities = sorted(set(config.model.inputs) - {'min_padding'})
        self.has_video = 'video' in self.modalities
        self.mixes = config.augmentation.mixup_alpha > 0
        if self.mixes and self.has_video:
            raise Refused('config.augmentation.mixup_alpha mixes sound, not video: set it to 0')
        if config.augmentation.between_class and not self.mixes:
            raise Refused(
                'config.augmentation.between_class is about how sounds are mixed, and '
                'config.augmentation.mixup_alpha is 0: nothing is'
            )
        if self.has_video and tuple(config.evaluation.speeds) != (1,):
            raise Refused('config.evaluation.speeds are for sound without video: set it to (1.0,)')
        if self.has_video and config.clip.frames_per_second != FRAMES_PER_SECOND:
            raise Refused(
                f'config.clip.frames_per_second is {config.clip.frames_per_second}, and videos are '
                f'read at {FRAMES_PER_SECOND}'
            )
        window = {field.name: config.clip[field.name] for field in dataclasses.fields(ClipShape)}
        self.shape = ClipShape(**{**window, 'size': window['size'] if self.has_video else 0})
        reading.count_classes(config, lambda: self.eval_source)
        fields = {field.name for field in dataclasses.fields(TrainTransform)}
        on_host = {name: config.augmentation[name] for name in fields - {'shape', 'num_classes'}}
        self.train_transform = TrainTransform(
            shape=self.shape, num_classes=config.model.num_classes, **on_host
        )
        self.eval_transform = EvalTransform(
            shape=self.shape,
            num_classes=config.model.num_classes,
            num_windows=config.evaluation.num_windows,
            clip_seconds=config.evaluation.clip_seconds,
            crop_fraction=config.evaluation.crop_fraction,
        )
        self.model = hk.transform_with_state(self._forward)
        if config.loss.kind not in _LOSSES:
            raise Refused(
                f'config.loss.kind is {config.loss.kind!r}, it must be one of {[*_LOSSES]}'
            )
        if self.metric not in METRICS:
            raise Refused(
                f'config.evaluation.metric is {self.metric!r}, it must be one of {[*METRICS]}'
            )
        self._scores, self._cross_entropy = _LOSSES[config.loss.kind]

    def _forward(self, modalities, is_training: bool, **changes) -> jax.Array:
        model = {**self.config.model, **changes}
        with below_key('model'):
            return audio_visual_classifier(modalities, is_training=is_training, **model)

    # Data

    @functools.cached_property
    def train_source(self) -> LabelledSource:
        for name, window in self._window(batch=1).items():
            inputs = self.config.model.inputs[name]
            field, sizes = 'patch', window.shape[1:]  # time first, and channels last
            if name == 'filterbank':  # of the values that the filters give
                sizes = (sizes[0] // max(inputs.hop, 1), inputs.num_filters)
            elif name == 'audio':
                field = 'samples_per_patch' if inputs.hop is None else 'hop'
            for stride in (inputs.get('stem') or {}).get('strides', ()):
                sizes = tuple(-(-size // max(s, 1)) for size, s in zip(sizes, stride, strict=False))
            patch = (inputs[field],) if name == 'audio' else inputs[field]
            # Of channels no patch tells. Of those that overlap all but one have a hop before them.
            grid = [size // max(p, 1) for size, p in zip(sizes, patch, strict=False)]
            if field == 'hop':
                grid[0] -= inputs.samples_per_patch // max(inputs.hop, 1) - 1
            if len(inputs.max_resolution) == 1:
                grid = [math.prod(grid)]  # positions along the flattened patches
            check_resolution(
                self.config,
                f'a window of config.clip has {" x ".join(map(str, sizes))} values in '
                f'config.model.inputs.{name}.{field} of {" x ".join(map(str, patch))}',
                grid,
                f'config.model.inputs.{name}.max_resolution',
                inputs.max_resolution,
            )
        return self._open('train')

    @functools.cached_property
    def eval_source(self) -> LabelledSource:
        return self._open('validation')

    def _open(self, split: str) -> LabelledSource:
        data = self.config.data
        source = open_source(
            data.source,
            data.path,
            split,
            with_frames=self.has_video,
            sample_rate=self.config.clip.sample_rate,
            table=data.table,
            classes=reading.given_classes(self.config) or self.known_classes,
        )
        # A logit without a class would never have positives: the numbers must be equal.
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
        sizes = f'{len(self.train_source):,} training, {len(self.eval_source):,} evaluation clips'
        return f'{self._name_of_data} ({sizes})'

    @property
    def eval_data_name(self) -> str:
        return f'{self._name_of_data} ({len(self.eval_source):,} evaluation clips)'

    @property
    def _name_of_data(self) -> str:
        name = {'tfds': 'AudioSet', 'sounds': 'generated sounds'}.get(self.config.data.source)
        return name or self.config.data.table.csv_file

    @property
    def paper_eval_data(self) -> bool:
        return (
            self.config.data.source == 'tfds'
            and len(self.eval_source.classes) == PAPER_CLASSES
            and len(self.eval_source) >= PAPER_EXAMPLES[1]
        )

    @property
    def eval_paper_value(self) -> float | None:
        return self.config.paper.value if self.paper_eval_data else None

    @property
    def paper_value(self) -> float | None:
        is_the_papers = self.paper_eval_data and len(self.train_source) >= PAPER_EXAMPLES[0]
        return self.config.paper.value if is_the_papers else None

    def without_data(self) -> None:
        side = max(self.shape.size, 1)
        image = np.zeros((side, side, 3), np.uint8)
        frames = self.eval_transform.clip_frames * [cv2.imencode('.png', image)[1].tobytes()]
        sound = np.zeros(self.eval_transform.clip_frames * self.shape.samples_per_frame, np.float32)
        clip = {'name': 'blank', 'sound': sound, 'frames': frames, 'labels': [0]}
        self.train_source = self.eval_source = reading.Blank(clip)

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
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape), self._window(batch=1))
        return self.model.init(rng, inputs, is_training=False)

    def loss(
        self, params: hk.Params, state: hk.State, rng: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[hk.State, dict[str, jax.Array]]]:
        settings, index = self.config.augmentation, batch['index']
        purposes = ('mix', 'mask', 'video', 'sound', 'model')
        keys = dict(zip(purposes, jax.random.split(rng, len(purposes)), strict=True))
        sound, labels = batch['sound'], batch['labels']
        if self.mixes:
            sound, labels = mix_sounds(
                keys['mix'], sound, labels, index, settings.mixup_alpha, settings.between_class
            )
        inputs = self._inputs(sound, batch.get('video'))
        with below_key('augmentation.spec_augment'):
            if 'spectrogram' in inputs:
                inputs['spectrogram'] = spec_augment(
                    keys['mask'], inputs['spectrogram'], index, **settings.spec_augment
                )
            elif 'filterbank' in inputs:  # whose values the model makes
                fields = self.config.model.inputs.filterbank
                values = (len(sound), self.shape.num_samples // fields.hop, fields.num_filters)
                inputs['filterbank_mask'] = spec_augment(
                    keys['mask'], jnp.ones(values), index, **settings.spec_augment
                )
        for name in self.modalities:
            rate = settings.drop_video if name == 'video' else settings.drop_sound
            if rate:
                key = keys['video' if name == 'video' else 'sound']
                inputs[name] = drop_examples(key, inputs[name], index, rate)
        logits, state = self.model.apply(params, state, keys['model'], inputs, is_training=True)
        loss = self._cross_entropy(logits, labels).mean()
        best = jnp.take_along_axis(labels, logits.argmax(-1)[:, None], axis=-1)
        return loss, (state, {'top_label_is_right': (best > 0).mean()})

    def predict(
        self, params: hk.Params, state: hk.State, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        shape, labels = self.shape, batch['labels']

        def of_window(speed, starts):  # [b] frames
            sound = jax.vmap(lambda x, i: at_speed(x, i, shape.num_samples, speed))(
                batch['sound'], starts * shape.samples_per_frame
            )
            video = None
            if self.has_video:
                video = jax.vmap(lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, shape.num_frames))(
                    batch['video'], starts
                )
            inputs = self._inputs(sound, video)
            logits, _ = self.model.apply(params, state, None, inputs, is_training=False)
            return self._scores(logits), self._cross_entropy(logits, labels)

        heard = [  # one window after the other
            jax.lax.map(functools.partial(of_window, speed), batch['starts'].T)
            for speed in self.config.evaluation.speeds
        ]
        scores, losses = jax.tree.map(lambda *parts: jnp.concatenate(parts).mean(0), *heard)
        # Probabilities are averaged, not logits; our choice: deviations.md#window-scores
        return {'loss': losses, 'scores': scores, 'labels': labels}

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        numbers = multi_label_metrics(predictions['labels'], predictions['scores'])
        if self.metric not in numbers:
            raise Refused(
                f'config.evaluation.metric is {self.metric!r}, and of this data '
                f'{sorted(numbers)} can be measured'
            )
        loss = float(np.mean(predictions['loss']))
        return {'loss': loss, self.metric: numbers.pop(self.metric), **numbers}

    def _inputs(self, sound: jax.Array, video: jax.Array | None) -> dict[str, jax.Array]:
        """Makes the model's inputs of sound `[B, samples]` and uint8 video `[B, T, S, S, 3]`."""
        settings = self.config.spectrogram
        with below_key('spectrogram'):
            return model_inputs(
                sound,
                video,
                self.modalities,
                self.shape.sample_rate,
                settings,
                self.config.clip.loudness_db,
            )

    def _window(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        shape = self.shape
        sound = jax.ShapeDtypeStruct((batch, shape.num_samples), jnp.float32)
        frames = (batch, shape.num_frames, shape.size, shape.size, 3)
        video = jax.ShapeDtypeStruct(frames, jnp.uint8)
        return jax.eval_shape(self._inputs, sound, video)

    def pretrained(self, params: hk.Params, state: hk.State) -> Pretrained:
        classes = reading.class_names(lambda: self.eval_source)
        settings = None
        if 'spectrogram' in self.modalities:
            settings = self.config.spectrogram.to_dict()
        front_end = {
            **self.config.clip.to_dict(),
            'crop_fraction': self.config.evaluation.crop_fraction,
            'modalities': list(self.modalities),
            'log_mel': settings,
        }
        return Pretrained(
            'audio_visual_classifier',
            self.config.model.to_dict(),
            front_end,
            params,
            state,
            classes,
            activation=self.config.loss.kind,
        )

    # What people look at

    def draw(
        self,
        subfigure: 'SubFigure',
        params: hk.Params,
        state: hk.State,
        predictions: dict[str, np.ndarray],
    ) -> None:
        """Draws clips, up to a third of them mistakes, and the best and the worst classes."""
        from experiments.pictures.panels import choose_to_draw, class_bars, clip_grid, short_name

        labels, scores = predictions['labels'], predictions['scores']
        right = np.take_along_axis(labels, scores.argmax(1)[:, None], 1)[:, 0] > 0
        drawn = choose_to_draw(right, NUM_DRAWN)
        clips = [self.eval_source[int(i)] for i in predictions['index'][drawn]]
        examples = [self.eval_transform(clip) for clip in clips]
        names = self.eval_source.classes
        titles = []
        for i in drawn:
            best = scores[i].argsort()[::-1][:3]
            said = (f'{short_name(names[k], 18)} {100 * scores[i, k]:.0f} %' for k in best)
            true = (short_name(names[k]) for k in np.flatnonzero(labels[i])[:3])
            titles.append((', '.join(said), ', '.join(true)))
        left, side = subfigure.subfigures(1, 2, squeeze=False, width_ratios=(2.6, 1))[0]
        clip_grid(
            left,
            [self._picture(example['sound']) for example in examples],
            titles,
            right[drawn],
            [self._frames(example) for example in examples] if self.has_video else None,
        )
        precision = average_precision(labels, scores)
        known = [k for k in np.argsort(-precision) if not np.isnan(precision[k])]
        title = 'Average precision'
        if len(known) > 2 * NUM_CLASSES_DRAWN:
            known = known[:NUM_CLASSES_DRAWN] + known[-NUM_CLASSES_DRAWN:]
            title = f'{title}, best and worst {NUM_CLASSES_DRAWN}'
        class_bars(side, [names[k] for k in known], precision[known], title)

    def _picture(self, sound: np.ndarray) -> np.ndarray:
        """Returns what the model hears: a spectrogram `[frames, bins]`, or the wave `[samples]`."""
        if 'spectrogram' not in self.modalities:
            return sound
        settings = self.config.spectrogram
        whole = len(sound) - len(sound) % settings.hop
        sample_rate = self.shape.sample_rate
        return np.asarray(log_mel(jnp.asarray(sound[:whole]), sample_rate=sample_rate, **settings))

    def _frames(self, example: dict) -> np.ndarray:
        """Returns evenly spaced frames of a clip."""
        video = example['video']
        return video[np.linspace(0, len(video) - 1, NUM_FRAMES_DRAWN).astype(int)]

    def describe(self) -> dict[str, Any]:
        forward = functools.partial(self._forward, is_training=False)
        sizes = describe_model(forward, self._window(batch=1))
        return {**sizes, 'paper': self.config.paper.to_dict()}


def model_inputs(
    sound: jax.Array | np.ndarray,
    video: jax.Array | np.ndarray | None,
    modalities: Sequence[str],
    sample_rate: int,
    spectrogram: Mapping[str, Any] | None,
    loudness_db: float | None = None,
) -> dict[str, jax.Array]:
    """Makes what `audio_visual_classifier` takes of a batch of windows.

    Args:
      sound: Sound, `[B, samples]`, from -1 to 1.
      video: Frames, uint8 `[B, T, S, S, 3]`; None where the model takes no video.
      modalities: Names of the modalities that the model takes.
      sample_rate: Sample rate of the sound, in Hz.
      spectrogram: The other arguments of `log_mel`; None where the model takes no spectrogram.
      loudness_db: Loudness that each window is brought to, in decibels of full scale, by what
        `loudness` measures; None leaves it as it is.

    Returns:
      The modalities by name, float32.
    """
    sound = jnp.asarray(sound)
    if loudness_db is not None:
        sound *= 10 ** (loudness_db / 20) / loudness(sound)[:, None]
    inputs = {}
    for name in ('audio', 'filterbank'):
        if name in modalities:
            inputs[name] = sound[..., None]
    if 'spectrogram' in modalities:
        assert spectrogram is not None
        inputs['spectrogram'] = log_mel(sound, sample_rate=sample_rate, **spectrogram)
    if 'video' in modalities:
        assert video is not None
        inputs['video'] = jnp.asarray(video, jnp.float32) / 127.5 - 1
    return inputs


_LOSSES = {  # kind -> logits to scores, and (logits, labels) to the loss
    'sigmoid': (jax.nn.sigmoid, sigmoid_cross_entropy),
    'softmax': (jax.nn.softmax, softmax_cross_entropy),
}
