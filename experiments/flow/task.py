"""Optical flow's task: its data, curriculum, loss, predictions and pictures."""

import contextlib
import functools
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.data import reading
from experiments.data.pipeline import Batches, Source
from experiments.flow.metrics import end_point_error, measure, summarise
from experiments.flow.refinement import warp_by_rough_flow
from experiments.flow.sources import Several, open_source
from experiments.flow.transforms import EvalTransform, TrainTransform
from experiments.training import parallel
from experiments.training.checks import below_key, check_resolution, count_steps
from experiments.training.describe import describe_model
from perceiver_jax.errors import Refused
from perceiver_jax.models import optical_flow
from perceiver_jax.tiling import check_factors, coarse_to_fine, flow_of_tiles
from perceiver_jax.weights.pretrained import Pretrained

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure  # slow to import, and needed to draw alone

# AutoFlow's pairs that the paper trained on (40,000 are public), and the pairs with public flow.
PAPER_PAIRS = 400_000
PUBLIC_PAIRS = {'sintel_clean': 1041, 'sintel_final': 1041, 'kitti2015': 200}
FLOW_SCALE = 20.0  # pixels in one unit of the loss: the paper's targets are flow / 20
NUM_DRAWN = 4


class OpticalFlow:
    """Optical flow by Perceiver IO; an `experiments.tasks.Task`."""

    higher_is_better = False
    known_classes = None  # flow has no classes
    loss_unit = f'end-point error in units of {FLOW_SCALE:g} px'

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.names = tuple(config.data.evaluate)
        if not self.names:
            raise Refused('config.data.evaluate names no data set')
        self.metric = f'epe_{self.names[0]}'
        self.tile = tuple(config.augmentation.crop_size)
        frame_size = tuple(config.evaluation.frame_size)
        if any(side < tile for side, tile in zip(frame_size, self.tile, strict=True)):
            raise Refused(
                f'config.evaluation.frame_size is {frame_size}, smaller than a tile, '
                f'config.augmentation.crop_size, which is {self.tile}'
            )
        check_factors('config.evaluation.factors', config.evaluation.factors)
        self.model = hk.transform_with_state(self._forward)
        self.eval_transform = EvalTransform(
            frame_size=frame_size,
            tile=self.tile,
            placement=config.evaluation.placement,
            factors=tuple(config.evaluation.factors),
        )

    def _forward(self, frames: jax.Array, is_training: bool, **changes) -> jax.Array:
        axis = parallel.AXIS if self.config.parallel == 'pmap' else None
        model = {**self.config.model, **changes}
        with below_key('model'):
            return optical_flow(frames, is_training=is_training, batch_norm_axis=axis, **model)

    # Data

    @functools.cached_property
    def train_source(self) -> Source:
        inputs = self.config.model.inputs
        shrink = 4 if inputs.contents == 'conv7x7' else 1
        grid = tuple(-(-side // shrink) for side in self.tile)
        check_resolution(
            self.config,
            f'config.augmentation.crop_size is {self.tile}',
            grid if inputs.concatenate_frames else (2, *grid),
            'config.model.inputs.max_resolution',
            inputs.max_resolution,
        )
        return self._open(self.config.data.train, 'train')

    @functools.cached_property
    def eval_source(self) -> Several:
        return Several([self._open(name, 'evaluation') for name in self.names])

    def _open(self, name: str, split: str):
        return open_source(name, self.config.data.path, split, self.config.scenes)

    @property
    def num_train_examples(self) -> int:
        return len(self.train_source)

    @property
    def num_eval_examples(self) -> int:
        return len(self.eval_source)

    @property
    def data_name(self) -> str:
        train = f'{self.config.data.train} ({len(self.train_source):,} pairs)'
        counts = (f'{name} ({n:,})' for name, n in self._eval_counts.items())
        return f'{train}; evaluated on {", ".join(counts)}{self._refined}'

    @property
    def eval_data_name(self) -> str:
        counts = (f'{name} ({n:,} pairs)' for name, n in self._eval_counts.items())
        return f'{", ".join(counts)}{self._refined}'

    @property
    def _refined(self) -> str:
        factors = self.eval_transform.factors
        return '' if factors == (1,) else f', coarse to fine {factors}, not in the paper'

    @property
    def paper_eval_data(self) -> bool:
        name = self.names[0]
        return self._eval_counts[name] == PUBLIC_PAIRS.get(name)

    @property
    def eval_paper_value(self) -> float | None:
        return self.config.paper.epe[self.names[0]] if self.paper_eval_data else None

    @property
    def paper_value(self) -> float | None:
        trained = self.config.data.train == 'autoflow' and len(self.train_source) == PAPER_PAIRS
        return self.config.paper.epe[self.names[0]] if trained and self.paper_eval_data else None

    @property
    def _eval_counts(self) -> dict[str, int]:
        return dict(zip(self.names, self.eval_source.lengths, strict=True))

    def without_data(self) -> None:
        size = tuple(self.config.evaluation.frame_size)
        known = dict.fromkeys(('valid', 'matched', 'unmatched'), np.ones(size, bool))
        arrays = {'frames': np.zeros((2, *size, 3), np.uint8), 'flow': np.zeros((*size, 2), 'f4')}
        self.train_source = reading.Blank({**arrays, **known, 'name': 'blank'})
        self.eval_source = Several([self.train_source])

    def train_batches(self, start_step: int) -> Batches:
        total_steps, _ = count_steps(self.config, self.num_train_examples)
        phases = curriculum(total_steps, **self.config.curriculum)
        ends = [phase.start for phase in phases[1:]] + [None]
        for phase, end in zip(phases, ends, strict=True):
            first = max(start_step, phase.start)
            if end is not None and first >= end:
                continue
            with contextlib.closing(self._phase_batches(phase, first)) as batches:
                yield from itertools.islice(batches, None if end is None else end - first)

    def _phase_batches(self, phase: 'Phase', start_step: int) -> Batches:
        batch_size, both = self.config.train.batch_size, phase.both_directions
        if both and batch_size % (2 * jax.process_count()):
            raise Refused(
                f'config.train.batch_size is {batch_size}: pairs in both directions need a '
                f'multiple of 2 x {jax.process_count()} processes'
            )
        transform = TrainTransform(
            strength=phase.strength, both_directions=both, **self.config.augmentation
        )
        batches = reading.train_batches(
            self.config,
            self.train_source,
            transform,
            start_step,
            batch_size=batch_size // 2 if both else batch_size,
            repeats=self.config.data.repeats,
        )
        with contextlib.closing(batches):
            for batch in batches:
                yield unfold_directions(batch) if both else batch

    def eval_batches(self) -> Batches:
        return reading.eval_batches(self.config, self.eval_source, self.eval_transform)

    # Model

    def init(self, rng: jax.Array) -> tuple[hk.Params, hk.State]:
        return self.model.init(rng, jnp.zeros((1, 2, *self.tile, 3)), is_training=False)

    def loss(
        self, params: hk.Params, state: hk.State, rng: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, tuple[hk.State, dict[str, jax.Array]]]:
        settings = self.config.loss
        frames, truth = as_inputs(batch['frames']), batch['flow']
        rough = settings.warped_share, settings.rough_error
        if settings.warped_share:
            frames, truth = warp_by_rough_flow(rng, frames, truth, batch['index'], *rough)
        flow, state = self.model.apply(params, state, rng, frames, is_training=True)
        # The error that is evaluated; our choice: deviations.md#flow-loss. Averaged over the valid
        # pixels of each pair, and then over the pairs, it does not depend on how a batch is cut
        # over the devices.
        error = end_point_error(flow, truth, settings.epsilon)
        pixels = batch['valid'].sum((1, 2))
        error = jnp.where(batch['valid'], error, 0).sum((1, 2)) / jnp.maximum(pixels, 1)
        return error.mean() / FLOW_SCALE, (state, {'epe': error.mean()})

    def predict(
        self, params: hk.Params, state: hk.State, batch: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        flow = self.estimate(params, state, batch)
        known = (batch[name] for name in ('flow', 'valid', 'matched', 'unmatched'))
        return {**measure(flow, *known), 'data': batch['data']}

    def estimate(self, params, state, batch) -> jax.Array:
        """Estimates the flow of frames of any size, tile by tile.

        Args:
          params: Parameters of the model.
          state: State of the model.
          batch: What `EvalTransform` makes of examples.

        Returns:
          Flow in pixels, float32 `[B, H, W, 2]`.
        """
        settings = self.config.evaluation

        def flow_of(tiles):
            return self.model.apply(params, state, None, tiles, is_training=False)[0]

        def estimate(frames, place):
            sizes, factor = frames.shape[2:4], settings.factors[place]
            last = -(-batch['size'] // factor) - 1  # rows and columns that are no padding

            def repeat_rim(x, size):  # beyond them, [B, h, w, ...] -> [B, *size, ...]
                rows, columns = (
                    jnp.minimum(jnp.arange(side)[None], last[:, i, None])
                    for i, side in enumerate(size)
                )
                return jax.vmap(lambda x, i, j: x[i][:, j])(x, rows, columns)

            # As if each pair were alone: warping, and the zeros of what no tile covers, change the
            # padding, which larger frames are mixed with.
            at_least_a_tile = [max(*sides) for sides in zip(self.tile, sizes, strict=True)]
            filled = repeat_rim(jnp.moveaxis(frames, 1, 3), at_least_a_tile)
            flow = flow_of_tiles(
                flow_of,
                jnp.moveaxis(filled, 3, 1),
                batch[f'corners_{factor}'],
                batch[f'is_tile_{factor}'],
                self.tile,
                settings.tiles_at_once,
            )
            return repeat_rim(flow, sizes)

        return coarse_to_fine(estimate, as_inputs(batch['frames']), settings.factors)

    def summarise(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        return summarise(predictions, predictions['data'], self.names)

    def pretrained(self, params: hk.Params, state: hk.State) -> Pretrained:
        model = self.config.model.to_dict()
        front_end: dict[str, Any] = dict(tile=list(self.tile))
        if self.eval_transform.factors != (1,):
            front_end['factors'] = list(self.eval_transform.factors)
        return Pretrained('optical_flow', model, front_end, params, state)

    # What people look at

    def draw(
        self,
        subfigure: 'SubFigure',
        params: hk.Params,
        state: hk.State,
        predictions: dict[str, np.ndarray],
    ) -> None:
        """Draws some evaluation pairs: frames, true and estimated flow, and the error."""
        from experiments.pictures.panels import flow_rows

        count = len(predictions['index'])
        drawn = np.unique(np.linspace(0, count - 1, NUM_DRAWN).round().astype(int))
        estimate = jax.jit(self.estimate)
        params, state = jax.device_put((params, state))
        rows = []
        for index in predictions['index'][drawn]:
            example = self.eval_source[int(index)]
            batch = {k: x[None] for k, x in self.eval_transform(example).items()}
            height, width = example['valid'].shape
            flow = np.asarray(estimate(params, state, batch)[0, :height, :width])
            rows.append((*(example[k] for k in ('name', 'frames', 'flow', 'valid')), flow))
        flow_rows(subfigure, *zip(*rows, strict=True))

    def describe(self) -> dict[str, Any]:
        frames = jax.ShapeDtypeStruct((1, 2, *self.tile, 3), jnp.float32)
        forward = functools.partial(self._forward, is_training=False)
        return {**describe_model(forward, frames), 'paper': self.config.paper.to_dict()}


class Phase(NamedTuple):
    """A part of the training.

    Attributes:
      start: The step it begins at.
      strength: Strength of the augmentation, 0..1.
      both_directions: Whether a batch holds each pair in reverse too, without augmentation.
    """

    start: int
    strength: float
    both_directions: bool


def curriculum(
    total_steps: int, *, both_directions_fraction: float, ramp_fraction: float, num_stages: int
) -> list[Phase]:
    """Returns the phases of a training: pairs in both directions, then stronger augmentation.

    Which pairs a step trains on, and how they are augmented, depends on the step alone.

    Args:
      total_steps: Updates of the whole run.
      both_directions_fraction: Share of the steps that train on pairs in both directions, at the
        start.
      ramp_fraction: Share of the steps, after them, over which the strength of the augmentation
        grows, in `num_stages` stages.
      num_stages: Number of stages; the last one has full strength and lasts to the end.

    Raises:
      Refused: The shares are not in 0..1 or sum to more than 1, or there is no stage.

    Source: Perceiver IO, appendix H, says that there is such a phase, and that severity increases
      gradually; neither order nor lengths.
    """
    fractions = both_directions_fraction, ramp_fraction
    if min(fractions) < 0 or sum(fractions) > 1 or num_stages < 1:
        raise Refused(
            'config.curriculum: both_directions_fraction and ramp_fraction are parts of the steps '
            f'and num_stages is at least 1, got {fractions} and {num_stages}'
        )
    first = round(both_directions_fraction * total_steps)
    phases = [Phase(0, 0.0, True)] if first else []
    for stage in range(num_stages):
        start = first + round(ramp_fraction * total_steps * stage / num_stages)
        phases.append(Phase(start, (stage + 1) / num_stages, False))
    # Where stages are shorter than a step, the last that starts there counts.
    return list({phase.start: phase for phase in phases}.values())


def unfold_directions(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Makes examples of their own of pairs in both directions: `[B, 2, ...]` -> `[2 B, ...]`."""
    index = 2 * batch['index'][:, None] + np.arange(2, dtype=np.uint32)
    broken = np.stack([batch['broken'], np.zeros_like(batch['broken'])], axis=1)
    unfolded = {**batch, 'index': index, 'broken': broken}
    return {k: x.reshape(-1, *x.shape[2:]) for k, x in unfolded.items()}


def as_inputs(frames: jax.Array) -> jax.Array:
    """Scales uint8 frames to float32 in [-1, 1], as `front_ends.prepare_frames` does."""
    return frames.astype(jnp.float32) / 255 * 2 - 1
