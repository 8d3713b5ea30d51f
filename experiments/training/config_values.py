"""What each key of a config may be: its type and its bounds, checked before anything is opened.

Upper bounds are far above what can be of use. They are there because a slip of the keyboard must
not fill the memory: some values size arrays or loops of the host while a model is traced.
"""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from perceiver_jax.dot_product_attention import IMPLEMENTATIONS
from perceiver_jax.errors import Refused

MAX_STEPS = 2**31 - 1  # steps are int32
MAX_BATCH = 2**17


class Allowed(NamedTuple):
    """The values that a key may have.

    Attributes:
      fits: Says whether a value is one of them.
      text: Completes the sentence 'it must be ...'.
    """

    fits: Callable[[Any], bool]
    text: str


def _is_number(x: Any, kind: type) -> bool:
    return isinstance(x, kind) and not isinstance(x, bool) and math.isfinite(x)  # type: ignore


def _bounds(low: float, high: float) -> str:
    return f'at least {low:,}' + ('' if high == math.inf else f' and at most {high:,}')


def whole(low: int, high: float = math.inf) -> Allowed:
    """Returns the whole numbers from `low` to `high`."""

    def fits(x):
        return _is_number(x, numbers.Integral) and low <= x <= high

    return Allowed(fits, f'a whole number, {_bounds(low, high)}')


def number(low: float, high: float = math.inf) -> Allowed:
    """Returns the finite numbers from `low` to `high`."""

    def fits(x):
        return _is_number(x, numbers.Real) and low <= x <= high

    return Allowed(fits, f'a number, {_bounds(low, high)}')


def above(low: float, high: float = math.inf) -> Allowed:
    """Returns the finite numbers above `low`, up to `high`."""
    rest = '' if high == math.inf else f' and at most {high:,}'
    at_least = number(low, high)
    return Allowed(lambda x: at_least.fits(x) and x > low, f'a number, more than {low:,}{rest}')


def below(low: float, high: float) -> Allowed:
    """Returns the numbers from `low` up to, but without, `high`."""
    at_most = number(low, high)
    text = f'a number, at least {low:,} and less than {high:,}'
    return Allowed(lambda x: at_most.fits(x) and x < high, text)


def choice(*names: str) -> Allowed:
    """Returns some words."""
    return Allowed(lambda x: isinstance(x, str) and x in names, f'one of {", ".join(names)}')


def several(of: Allowed, *lengths: int) -> Allowed:
    """Returns tuples, of some lengths or of any but 0, of allowed values."""

    def fits(x):
        right_length = len(x) in lengths if lengths else len(x) > 0
        return right_length and all(map(of.fits, x))

    count = ' or '.join(map(str, lengths)) or 'some'
    return Allowed(lambda x: isinstance(x, tuple | list) and fits(x), f'{count} times {of.text}')


def some(of: Allowed) -> Allowed:
    """Returns tuples of any number of allowed values, also of none."""

    def fits(x):
        return isinstance(x, tuple | list) and all(map(of.fits, x))

    return Allowed(fits, f'a tuple, each of it {of.text}')


def span(of: Allowed) -> Allowed:
    """Returns pairs of allowed values, the smaller one first."""
    pairs = several(of, 2)
    text = f'two values (smallest, largest), each of them {of.text}'
    return Allowed(lambda x: pairs.fits(x) and x[0] <= x[1], text)


def optional(allowed: Allowed) -> Allowed:
    """Returns allowed values, and None."""
    return Allowed(lambda x: x is None or allowed.fits(x), f'{allowed.text}; or None')


YES_NO = Allowed(lambda x: isinstance(x, bool), 'True or False')
TEXT = Allowed(lambda x: isinstance(x, str), 'a string')
SHARE = number(0, 1)
CHANNELS = whole(1, 2**16)
LAYERS = whole(1, 1000)
PIXELS = whole(1, 2**14)
BATCH = whole(1, MAX_BATCH)
ANGLE = number(0, 360)  # degrees
DEVIATION = number(0, 1e6)  # of an initialiser
ALPHA = number(0, 1000)  # of a Beta distribution
SPEED = number(0.1, 10)
COLOUR = number(0, 10)  # strength of a change
BANDS = whole(0, 2**12)
RESOLUTION = several(above(0, 1e6))
SPECTROGRAM_ELEMENTS = {  # arguments of `spectrogram_elements`
    'patch': several(PIXELS, 2),
    'num_bands': BANDS,
    'max_resolution': RESOLUTION,
    'stem.channels': several(CHANNELS),
    'stem.kernels': several(several(whole(1, 99), 2)),
    'stem.strides': several(several(whole(1, 99), 2)),
}

# The keys of all tasks, under one name where they have one. `config.paper` is for people to read.
CONFIG_VALUES: dict[str, Allowed] = {
    'task': TEXT,
    'seed': whole(0, 2**32 - 1),
    'parallel': choice('jit', 'pmap'),
    'init_from': TEXT,
    'data.source': TEXT,
    'data.path': optional(TEXT),
    'data.classes': TEXT,
    'data.train': TEXT,
    'data.evaluate': several(TEXT),
    'data.train_split': TEXT,
    'data.eval_split': TEXT,
    'data.on_broken': choice('stop', 'skip'),
    'data.num_workers': whole(0, 1024),
    'data.repeats': whole(1, 1024),
    'data.table.csv_file': TEXT,
    'data.table.media': TEXT,
    'data.table.file_column': TEXT,
    'data.table.label_column': TEXT,
    'data.table.label_separator': TEXT,
    'data.table.split_column': TEXT,
    'data.table.train': TEXT,
    'data.table.validation': TEXT,
    'data.table.only': TEXT,
    'images.image_size': PIXELS,
    'images.mean': several(number(-1e6, 1e6), 1, 3),
    'images.std': several(above(0, 1e6), 1, 3),
    'points.num_points': whole(2, 2**20),
    'clip.num_frames': whole(1, 100_000),
    'clip.frames_per_second': whole(1, 1000),
    'clip.sample_rate': whole(1, 1_000_000),
    'clip.size': PIXELS,
    'clip.loudness_db': optional(number(-100, 0)),
    'spectrogram.hop': whole(1, 2**16),
    'spectrogram.window': whole(1, 2**16),
    'spectrogram.num_bins': whole(1, 2**12),
    'spectrogram.low': number(0),
    'spectrogram.high': above(0),
    'spectrogram.mean_db': number(-1e6, 1e6),
    'spectrogram.std_db': above(0, 1e6),
    'scenes.num_pairs': whole(1, 2**40),
    'scenes.num_evaluation_pairs': whole(1, 2**40),
    'scenes.frame_size': several(PIXELS, 2),
    'scenes.num_shapes': span(whole(0, 10_000)),
    'scenes.motion': number(0, 10_000),
    'scenes.turn': ANGLE,
    'scenes.zoom': number(0, 10),
    'scenes.perspective': below(0, 1),
    'scenes.bend': number(0, 10_000),
    'scenes.blur': SHARE,
    'scenes.fog': SHARE,
    'scenes.noise': SHARE,
    'scenes.textures': TEXT,
    'augmentation.crop_area': optional(span(SHARE)),
    'augmentation.crop_size': several(PIXELS, 2),
    'augmentation.flip': YES_NO,
    'augmentation.flip_left_right': SHARE,
    'augmentation.flip_up_down': SHARE,
    'augmentation.brightness': COLOUR,
    'augmentation.contrast': COLOUR,
    'augmentation.saturation': COLOUR,
    'augmentation.hue': SHARE,
    'augmentation.randaugment_layers': whole(0, 1000),
    'augmentation.randaugment_magnitude': number(0, 10),
    'augmentation.jitter_degrees': ANGLE,
    'augmentation.jitter_shift': SHARE,
    'augmentation.jitter_scale': below(0, 1),
    'augmentation.point_scale': span(above(0, 1000)),
    'augmentation.axis_scale': span(above(0, 1000)),
    'augmentation.rotation_degrees': ANGLE,
    'augmentation.jitter': number(0, 10),
    'augmentation.drop_points': below(0, 1),
    'augmentation.drop_video': SHARE,
    'augmentation.drop_sound': SHARE,
    'augmentation.spec_augment.time_masks': whole(0, 2**12),
    'augmentation.spec_augment.time_width': whole(0, 2**16),
    'augmentation.spec_augment.frequency_masks': whole(0, 2**12),
    'augmentation.spec_augment.frequency_width': whole(0, 2**12),
    'augmentation.roll': YES_NO,
    'augmentation.gain_db': number(0, 120),
    'augmentation.speed': span(SPEED),
    'augmentation.mixup_alpha': ALPHA,
    'augmentation.between_class': YES_NO,
    'augmentation.asymmetric_probability': SHARE,
    'augmentation.eraser_probability': SHARE,
    'augmentation.eraser_sides': span(whole(0, 2**14)),
    'augmentation.spatial_probability': SHARE,
    'augmentation.log2_scale': span(number(-10, 10)),
    'augmentation.stretch_probability': SHARE,
    'augmentation.log2_stretch': number(0, 10),
    'augmentation.rotation': ANGLE,
    'augmentation.relative_rotation': ANGLE,
    'augmentation.relative_log2_scale': number(0, 10),
    'augmentation.relative_translation': number(0, 10),
    'curriculum.both_directions_fraction': SHARE,
    'curriculum.ramp_fraction': SHARE,
    'curriculum.num_stages': whole(1, 100_000),
    'loss.kind': choice('sigmoid', 'softmax'),
    'loss.label_smoothing': below(0, 1),
    'loss.mixup_alpha': ALPHA,
    'loss.cutmix_alpha': ALPHA,
    'loss.epsilon': above(0, 1e6),
    'loss.warped_share': SHARE,
    'loss.rough_error': number(0, 1e6),
    'model.num_classes': whole(0, 2**20),  # 0: as many as the data has
    'model.dtype': choice('float32', 'bfloat16'),
    'model.implementation': choice(*IMPLEMENTATIONS),
    'model.output_divisor': above(0),
    'model.flow_scale': above(0),
    'model.inputs.contents': choice('pixels', 'conv1x1', 'conv7x7', 'patches'),
    'model.inputs.contents_channels': optional(CHANNELS),
    'model.inputs.channels': CHANNELS,
    'model.inputs.patch_size': whole(1, 99),
    'model.inputs.concatenate_frames': YES_NO,
    'model.inputs.positions': choice('fourier', 'learned', 'none'),
    'model.inputs.num_bands': BANDS,
    'model.inputs.max_resolution': RESOLUTION,
    'model.inputs.position_channels': optional(CHANNELS),
    'model.inputs.position_init_std': optional(DEVIATION),
    'model.inputs.project_positions_to': optional(CHANNELS),
    'model.inputs.permutation_seed': optional(whole(0, 2**32 - 1)),
    'model.inputs.as_array': YES_NO,
    'model.inputs.min_padding': whole(0, 2**16),
    'model.inputs.audio.samples_per_patch': whole(1, 2**20),
    'model.inputs.audio.hop': optional(whole(1, 2**20)),
    'model.inputs.audio.num_bands': BANDS,
    'model.inputs.audio.max_resolution': RESOLUTION,
    'model.inputs.filterbank.num_filters': CHANNELS,
    'model.inputs.filterbank.length': whole(1, 2**20),
    'model.inputs.filterbank.stride': whole(1, 2**20),
    'model.inputs.filterbank.hop': whole(1, 2**20),
    **{
        f'model.inputs.{name}.{key}': allowed
        for name in ('filterbank', 'spectrogram')
        for key, allowed in SPECTROGRAM_ELEMENTS.items()
    },
    'model.inputs.video.patch': several(PIXELS, 3),
    'model.inputs.video.num_bands': BANDS,
    'model.inputs.video.max_resolution': RESOLUTION,
    'model.encoder.num_latents': whole(1, 2**17),
    'model.encoder.latent_channels': CHANNELS,
    'model.encoder.num_cross_attends': LAYERS,
    'model.encoder.num_blocks': LAYERS,
    'model.encoder.num_self_attends_per_block': whole(0, 1000),
    'model.encoder.cross_attend_placement': choice('start', 'interleaved'),
    'model.encoder.share_cross_attends': YES_NO,
    'model.encoder.share_blocks': YES_NO,
    'model.encoder.latent_init_std': DEVIATION,
    'model.encoder.scan': optional(YES_NO),
    'model.encoder.remat_cross_attends': YES_NO,
    'model.encoder.remat_blocks': YES_NO,
    'model.network.kind': choice('resnet', 'vit', 'transformer'),
    'model.network.blocks': several(LAYERS),
    'model.network.channels': CHANNELS,
    'model.network.stem': choice('imagenet', 'small'),
    'model.network.padding': choice('same', 'centred'),
    'model.network.patch_size': whole(1, 2**10),
    'model.network.num_self_attends': whole(0, 1000),
    'model.decoder.query_channels': CHANNELS,
    'model.decoder.query_init_std': DEVIATION,
    'model.decoder.zero_init_output': YES_NO,
    'model.upsampling.factor': whole(1, 64),
    'model.upsampling.zero_init_output': YES_NO,
    'optimizer.learning_rate': number(0),
    'optimizer.schedule.kind': choice('constant', 'step', 'flat_cosine', 'cosine'),
    'optimizer.schedule.boundary_epochs': several(number(0)),
    'optimizer.schedule.factor': number(0),
    'optimizer.schedule.flat_fraction': SHARE,
    'optimizer.schedule.warmup_steps': whole(0),
    'optimizer.b1': below(0, 1),
    'optimizer.b2': below(0, 1),
    'optimizer.eps': number(0),
    'optimizer.momentum': below(0, 1),
    'optimizer.weight_decay': number(0),
    'optimizer.clip_norm': above(0),
    'optimizer.trust_ratio': YES_NO,
    'optimizer.loaded_scale': number(0, 1000),
    'train.batch_size': BATCH,
    'train.accumulate_steps': BATCH,
    'train.epochs': optional(above(0, 1e9)),
    'train.steps': optional(whole(1, MAX_STEPS)),
    'train.log_every_steps': whole(1),
    'train.evaluate_every_steps': whole(1),
    'train.checkpoint_every_steps': whole(1),
    'train.keep_checkpoints': whole(1),
    'train.ema_decay': below(0, 1),
    'train.freeze': some(TEXT),
    'evaluation.batch_size': BATCH,
    'evaluation.crop_fraction': above(0, 1),
    'evaluation.metric': TEXT,
    'evaluation.num_draws': whole(1, 2**10),
    'evaluation.num_points': optional(whole(2, 2**20)),
    'evaluation.num_windows': whole(1, 2**12),
    'evaluation.clip_seconds': above(0, 3600),
    'evaluation.speeds': several(SPEED),
    'evaluation.frame_size': several(PIXELS, 2),
    'evaluation.placement': choice('even', 'deepmind'),
    'evaluation.tiles_at_once': whole(1, 2**12),
    'evaluation.factors': several(whole(1, 2**8)),
} | {
    f'model.{part}.{key}': allowed
    for part in (
        *('encoder.cross_attend', 'encoder.self_attend'),
        *('network.self_attend', 'decoder.cross_attend'),
    )
    for key, allowed in {
        'num_heads': CHANNELS,
        'qk_channels': optional(CHANNELS),
        'v_channels': optional(CHANNELS),
        'widening_factor': whole(1, 1024),
        'use_query_residual': YES_NO,
        'dropout_rate': below(0, 1),
    }.items()
}


def check_values(config: Mapping[str, Any]) -> None:
    """Checks the type and the bounds of each key of a config that `CONFIG_VALUES` has.

    Args:
      config: The configuration of a run. A section may be None where its task can do without.

    Raises:
      Refused: The first value that is not allowed; the message names its key.
    """
    sections = {key.rpartition('.')[0] for key in CONFIG_VALUES}
    sections |= {key.rpartition('.')[0] for key in sections}

    def check(node: Mapping[str, Any], prefix: str) -> None:
        for name in node.keys():
            key, value = f'{prefix}{name}', node[name]
            if isinstance(value, Mapping) or hasattr(value, 'keys'):
                check(value, f'{key}.')
            elif key in sections and value is not None:
                raise Refused(f'config.{key} is {_short(value)}, and it holds keys')
            elif key in CONFIG_VALUES and not CONFIG_VALUES[key].fits(value):
                must = CONFIG_VALUES[key].text
                raise Refused(f'config.{key} is {_short(value)}, it must be {must}')

    check(config, '')


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f'{text[:97]}...'
