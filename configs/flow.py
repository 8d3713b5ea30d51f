r"""Optical flow, trained on AutoFlow (Perceiver IO, section 4.2 and appendix H).

End-point error in pixels that the paper states, on the public pairs of Sintel and KITTI 2015:

    variant                        Sintel clean   Sintel final   KITTI
    main                           1.81           2.42           4.98
    main,frames=separate           1.78           2.70           6.19
    main,patch=1                   1.91           2.56           5.39
    main,patch=1,frames=separate   1.72           2.63           5.93
    conv                           1.84           2.52           4.83
    conv,frames=separate           1.90           2.53           6.66
    conv,size=small                2.06           2.67           6.12
    small                          generated scenes, slow ones, for coarse to fine; 55 minutes
                                   on two CPU cores
    demo                           generated scenes; three minutes

Parameters and cost: the paper's 27.9M and 987B are those of 16 self-attends and 1,024 latents; the
main model has 41.1M (so has the released checkpoint) and 1,887B. Hardware and time are not stated:
375,000 steps of batch 512, which is 480 epochs of 400,000 pairs, of which 40,000 are public.

    python -m experiments.launch --config=configs/flow.py:main --workdir=runs/flow \
        --config.data.path=~/flow_data

`recipe=fine_tune` behind a variant is for `--config.init_from`, on pairs of one's own: fewer steps
at a lower rate, with the full augmentation from the first on; our choice:
deviations.md#fine-tuning.

Where the data sets lie in that folder: `experiments.flow.sources.open_source`. On fewer devices
raise `--config.train.accumulate_steps`: the result stays that of batch 512 (but for conv, whose
batch statistics are then those of each part).
"""

from typing import NamedTuple

import ml_collections

from configs import common
from configs.common import NOT_IN_PAPER, Paper

FRAMES = {'concatenated': True, 'separate': False}
VARIANTS: dict[str, common.Options] = {
    'main': {'patch': {'1': 1, '3': 3}, 'frames': FRAMES, **common.RECIPES},
    # Self-attends and latents of either size.
    'conv': {
        'frames': FRAMES,
        'size': {'large': (24, 2048), 'small': (16, 1024)},
        **common.RECIPES,
    },
    'small': common.RECIPES,
    'demo': {},
}


class Row(NamedTuple):
    """A row of IO table 3."""

    contents: int | str  # side of the patches, or 'conv'
    concatenate_frames: bool
    self_attends: int
    latents: int


MAIN = Row(3, True, 24, 2048)
EPE: dict[Row, dict[str, float | None]] = {
    MAIN: dict(sintel_clean=1.81, sintel_final=2.42, kitti2015=4.98),
    Row(3, False, 24, 2048): dict(sintel_clean=1.78, sintel_final=2.70, kitti2015=6.19),
    Row(1, True, 24, 2048): dict(sintel_clean=1.91, sintel_final=2.56, kitti2015=5.39),
    Row(1, False, 24, 2048): dict(sintel_clean=1.72, sintel_final=2.63, kitti2015=5.93),
    Row('conv', True, 24, 2048): dict(sintel_clean=1.84, sintel_final=2.52, kitti2015=4.83),
    Row('conv', False, 24, 2048): dict(sintel_clean=1.90, sintel_final=2.53, kitti2015=6.66),
    Row('conv', True, 16, 1024): dict(sintel_clean=2.06, sintel_final=2.67, kitti2015=6.12),
}
NO_EPE: dict[str, float | None] = dict(sintel_clean=None, sintel_final=None, kitti2015=None)


def get_config(variant: str = 'main') -> ml_collections.ConfigDict:
    """Returns the config of a variant, such as 'main' or 'conv,frames=separate'."""
    variant, options = common.parse_variant(variant, VARIANTS)
    recipe = options.pop('recipe', None)

    config = ml_collections.ConfigDict()
    config.task = 'flow'
    config.seed = 42
    config.parallel = 'jit'  # or 'pmap'
    config.init_from = ''  # weights to start from: a file, a folder, a run, a name on the hub

    config.data = dict(
        train='autoflow',  # names of data sets: see experiments/flow/sources.py
        evaluate=('sintel_final', 'sintel_clean', 'kitti2015'),  # the first is the headline
        path='~/flow_data',  # the folder that holds them
        on_broken='stop',  # an unreadable pair: 'stop', or 'skip' and count
        repeats=1,  # crops of a pair, each augmented anew, for once that it is read
        num_workers=8,  # processes that read and augment; 0: a thread of this one
    )
    # Generated pairs, where data names 'scenes'; our choice: deviations.md#generated-scenes
    config.scenes = dict(
        num_pairs=400_000,
        num_evaluation_pairs=64,
        frame_size=(448, 576),  # AutoFlow's
        num_shapes=(4, 12),
        motion=12.0,  # pixels
        turn=4.0,  # degrees
        zoom=0.05,
        perspective=0.1,
        bend=6.0,  # pixels
        blur=0.3,
        fog=0.3,
        noise=0.04,
        textures='',  # a folder of images, or procedural ones
    )
    # RAFT's, which the paper reuses: these are of RAFT's public code, not those that were tuned for
    # AutoFlow, which are not at hand. Turns and what moves the second frame alone are ours.
    config.augmentation = dict(
        crop_size=(368, 496),
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.5 / 3.14,
        asymmetric_probability=0.2,
        eraser_probability=0.5,
        eraser_sides=(50, 100),
        spatial_probability=0.8,
        log2_scale=(-0.2, 0.5),
        stretch_probability=0.8,
        log2_stretch=0.2,
        rotation=0.0,
        relative_rotation=0.0,
        relative_log2_scale=0.0,
        relative_translation=0.0,
        flip_left_right=0.5,
        flip_up_down=0.1,
    )
    # The paper tells of both phases; order and lengths are our choice: deviations.md#flow-recipe
    config.curriculum = dict(
        both_directions_fraction=0.1,  # of the steps: no augmentation, each pair in reverse too
        ramp_fraction=0.4,  # of the steps: the strength of the augmentation grows
        num_stages=10,
    )
    config.loss = dict(
        epsilon=0.01,  # pixels; our choice: deviations.md#flow-loss
        # For evaluation.factors, not in the paper: the share of the pairs whose second frame is
        # warped by a rough flow, and the errors of that in pixels.
        warped_share=0.0,
        rough_error=2.0,
    )
    config.model = dict(
        inputs=dict(
            channels=64,
            patch_size=3,
            num_bands=64,
            max_resolution=(368, 496),
            contents='patches',
            concatenate_frames=True,
        ),
        encoder=dict(
            num_latents=2048,
            latent_channels=512,
            num_blocks=1,
            num_self_attends_per_block=24,
            self_attend=dict(num_heads=16),
            latent_init_std=0.02,
            remat_cross_attends=False,  # less memory for more computation; see Encoder
            remat_blocks=False,
        ),
        decoder=dict(cross_attend=dict(use_query_residual=False), zero_init_output=True),
        output_divisor=100.0,
        flow_scale=20.0,
        dtype='float32',  # of the computation; or 'bfloat16'
        implementation='auto',  # or 'plain', 'chunked', 'pallas' on NVIDIA's GPUs, 'splash' on TPUs
    )
    # Decay and clipping of IO on ImageNet, no warm-up; our choice: deviations.md#flow-recipe
    config.optimizer = common.lamb(learning_rate=4e-4, schedule=dict(kind='cosine', warmup_steps=0))
    config.train = dict(
        batch_size=512,
        accumulate_steps=1,  # parts that a batch is computed in, one after the other
        epochs=ml_collections.config_dict.placeholder(float),  # instead of steps
        steps=375_000,  # 480 epochs of 400,000 pairs, however many there are
        log_every_steps=50,
        evaluate_every_steps=10_000,
        checkpoint_every_steps=1000,
        keep_checkpoints=3,
        ema_decay=0.0,  # of an average of the parameters to evaluate; 0: none
        freeze=(),  # modules that are not trained, such as ('inputs', 'encoder')
    )
    config.evaluation = dict(
        batch_size=8,  # pairs
        frame_size=(436, 1242),  # what all frames are filled up to; Sintel's and KITTI's fit
        placement='even',  # of tiles of the crop's size; or 'deepmind', as the released notebook
        tiles_at_once=1,  # of each pair
        # By what frames are shrunk, one after the other, to find flow from coarse to fine, such as
        # (4, 2, 1); (1,): not at all, as in the paper.
        factors=(1,),
    )

    epe, paper = NO_EPE, NOT_IN_PAPER
    if variant == 'small':
        _small(config)
    elif variant == 'demo':
        _demo(config)
    else:
        row = (_main if variant == 'main' else _conv)(config, **options)
        epe = EPE[row]
        paper = Paper('IO table 3', epe['sintel_final'])
        if row == MAIN:  # appendix H gives one figure of each cost, of another model
            paper = paper._replace(parameters=27.9e6, flops=987e9)
    if recipe == 'fine_tune':
        epe, paper = NO_EPE, paper._replace(source=None, value=None)  # of the model alone
        common.fine_tune(config, steps=2000 if variant == 'small' else 20_000)
        config.curriculum.update(both_directions_fraction=0.0, ramp_fraction=0.0, num_stages=1)
    config.paper = dict(metric='epe_sintel_final', epe=epe, **paper._asdict())
    return config.lock()


def _main(config: ml_collections.ConfigDict, *, patch: int = 3, frames: bool = True) -> Row:
    config.model.inputs.patch_size = patch
    _set_frames(config, frames)
    return MAIN._replace(contents=patch, concatenate_frames=frames)


def _conv(
    config: ml_collections.ConfigDict,
    *,
    frames: bool = True,
    size: tuple[int, int] = (24, 2048),  # self-attends, latents
) -> Row:
    config.model.inputs.update(contents='conv7x7', max_resolution=(92, 124))
    _set_frames(config, frames)
    config.model.decoder.zero_init_output = False  # it is followed by
    config.model.upsampling = dict(factor=4, zero_init_output=True)
    depth, num_latents = size
    config.model.encoder.update(num_latents=num_latents, num_self_attends_per_block=depth)
    return Row('conv', frames, depth, num_latents)


def _set_frames(config: ml_collections.ConfigDict, concatenated: bool) -> None:
    config.model.inputs.concatenate_frames = concatenated
    if not concatenated:  # samples in time; our choice: deviations.md#separate-frames
        config.model.inputs.max_resolution = (2, *config.model.inputs.max_resolution)


def _small(config: ml_collections.ConfigDict) -> None:
    """A light model on generated scenes, both ways; our choice: deviations.md#small-models.

    What is left of a motion from coarse to fine is slow: so are its scenes. It is to be evaluated
    with `evaluation.factors`.
    """
    config.data.update(train='scenes', evaluate=('scenes',), num_workers=1)
    config.scenes.update(
        frame_size=(48, 64),
        num_shapes=(1, 4),
        motion=1.5,
        turn=1.5,
        zoom=0.03,
        perspective=0.04,
        bend=1.0,
    )
    config.augmentation.crop_size = (48, 64)
    config.loss.update(warped_share=0.5, rough_error=0.7)
    config.curriculum.update(both_directions_fraction=1.0, ramp_fraction=0.0, num_stages=1)
    config.model.inputs.update(
        channels=128, contents='conv7x7', num_bands=16, max_resolution=(12, 16)
    )
    config.model.encoder.update(
        num_latents=64,
        latent_channels=128,
        num_self_attends_per_block=4,
        self_attend=dict(num_heads=8),
    )
    config.model.decoder.zero_init_output = False
    config.model.upsampling = dict(factor=4, zero_init_output=True)
    # Unlike the paper's: it learns in fewer steps.
    config.model.decoder.cross_attend.use_query_residual = True
    config.model.output_divisor = 1.0
    config.optimizer = common.adamw(
        learning_rate=1.5e-3, schedule=dict(kind='cosine', warmup_steps=100)
    )
    config.optimizer.update(eps=1e-8, weight_decay=1e-4, clip_norm=1.0)
    config.train.update(
        batch_size=16,
        steps=13_000,
        log_every_steps=20,
        evaluate_every_steps=1000,
        checkpoint_every_steps=500,
    )
    config.evaluation.update(batch_size=8, frame_size=(48, 64))


def _demo(config: ml_collections.ConfigDict) -> None:
    """Three minutes, for flow at once, not from coarse to fine; our choice: deviations.md#demos."""
    _small(config)
    config.data.num_workers = 0
    config.scenes.update(num_shapes=(2, 6), motion=2.5, turn=2.0, perspective=0.03)
    config.loss.update(warped_share=0.0, rough_error=2.0)
    config.model.inputs.channels = 64
    config.train.update(steps=1200, evaluate_every_steps=200, checkpoint_every_steps=200)
