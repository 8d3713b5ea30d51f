r"""ImageNet classification, 224x224 (Perceiver, section 4.1; Perceiver IO, section 4.4).

Expected top-1 on the 50,000 validation images, and what the paper states of each model:

    variant              paper                  top-1    parameters   forward FLOPs   time
    perceiver            ICML table 1           78.0 %   44.9M        707.2B          not stated
    perceiver_permuted   ICML table 2           78.0 %   44.9M        707.2B          not stated
    perceiver_learned    ICML table 2           70.9 %   not stated   not stated      not stated
    io_fourier           IO table 7, config A   79.0 %   48.4M        407B            7.9 h
    io_learned           IO table 7, config A   72.7 %   62.3M        407B            9.2 h
    io_conv              IO table 7, config A   82.1 %   48.6M        369B            6.9 h
    resnet50             ICML table 1           77.6 %   not stated   not stated      not stated
    vit_b16              ICML table 1           77.9 %   not stated   not stated      not stated
    transformer          ICML table 1, 64x64    57.0 %   not stated   not stated      not stated
    cifar10              CIFAR-10 at 32x32, see below; 7 to 15 minutes on two CPU cores
    small                a folder of one's own images, 64x64, half an hour on two CPU cores
    demo                 scikit-learn's digits; two minutes on two CPU cores

Hardware: up to 64 TPUs (ICML), 64 TPUv3 (IO). Times are of 137,625 steps of batch 1,024 at the
4.85, 4.14 and 5.58 steps/s of IO's table 8.

    python -m experiments.launch --config=configs/imagenet.py:io_fourier --workdir=runs/io_fourier

The rows of the ablations are options behind a variant:

    perceiver,cross_attends=1|2|4|8                          ICML table 6, interleaved
    perceiver,cross_attends=1|2|4|8,placement=start          ICML table 6, all in front
    perceiver,share=no                                       ICML table 7, first row
    perceiver,cross_attends=4|8|12,self_attends=0,share=no   ICML table 5
    io_fourier|io_learned|io_conv,decoder=average            IO table 7, 'Perceiver'
    resnet50|vit_b16,features=fourier                        ICML table 1: 73.5 %, 76.7 %
    perceiver|perceiver_learned|transformer,permuted=yes     ICML table 2: 78.0, 70.9, 57.0 %
    resnet50|vit_b16,features=fourier,permuted=yes           ICML table 2: 39.4 %, 61.7 %

Of the networks that the paper compares with it states no training: ViT and the Transformer have the
Perceiver's recipe here, ResNet-50 the usual one for residual networks; our choice:
deviations.md#baseline-recipes. The two without Fourier features are quoted by the paper.

The same comparison in miniature, four small models of about equal cost on CIFAR-10:

    cifar10,model=perceiver|resnet|vit|transformer,permuted=yes|no

Any of them but the demo, from weights, with `recipe=fine_tune` behind it: IO's 131,000 steps for
the models of the papers, flat for 70,000 and a cosine after them (appendix A, configuration B).

    python -m experiments.launch --config=configs/imagenet.py:io_fourier,recipe=fine_tune \
        --config.init_from=imagenet_fourier_position_encoding.pystate --workdir=runs/mine

On fewer devices raise `--config.train.accumulate_steps`: the result stays that of batch 1024
(but for io_conv, whose batch statistics are then those of each part).
"""

from typing import NamedTuple

import ml_collections

from configs import common
from configs.common import NOT_IN_PAPER, Paper

IO_OPTIONS = {'decoder': {'query': 'query', 'average': 'average'}, **common.RECIPES}
NETWORK_OPTIONS: common.Options = {
    'features': {'rgb': 'none', 'fourier': 'fourier'},
    'permuted': common.YES_NO,
}
VARIANTS: dict[str, common.Options] = {
    'perceiver': {
        'cross_attends': {str(n): n for n in (1, 2, 4, 8, 12)},
        'placement': {'start': 'start', 'interleaved': 'interleaved'},
        'share': {'yes': True, 'no': False},
        'self_attends': {'0': 0, '6': 6},
        'permuted': common.YES_NO,
        **common.RECIPES,
    },
    'perceiver_permuted': common.RECIPES,  # the former name of perceiver,permuted=yes
    'perceiver_learned': {'permuted': common.YES_NO, **common.RECIPES},
    'io_fourier': IO_OPTIONS,
    'io_learned': IO_OPTIONS,
    'io_conv': IO_OPTIONS,
    'resnet50': NETWORK_OPTIONS,
    'vit_b16': NETWORK_OPTIONS,
    'transformer': {'permuted': common.YES_NO},
    'cifar10': {
        'model': {name: name for name in ('perceiver', 'resnet', 'vit', 'transformer')},
        'permuted': common.YES_NO,
    },
    'small': common.RECIPES,
    'demo': {},
}


class Schedule(NamedTuple):
    """How the ICML Perceiver reads its inputs: a row of the paper's ablations."""

    cross_attends: int
    placement: str
    self_attends: int  # in a block
    share: bool  # whether weights are shared


ICML = {
    Schedule(8, 'interleaved', 6, True): Paper('ICML table 1', 0.780, 44.9e6, 707.2e9),
    # The same model as the next row: 41.1M is 42.1M without its last layer.
    Schedule(1, 'start', 6, True): Paper('ICML table 6', 0.767, 41.1e6, 404.3e9),
    Schedule(1, 'interleaved', 6, True): Paper('ICML table 6', 0.767, 42.1e6, 404.3e9),
    Schedule(2, 'start', 6, True): Paper('ICML table 6', 0.767, 44.9e6, 447.6e9),
    Schedule(2, 'interleaved', 6, True): Paper('ICML table 6', 0.765, 44.9e6, 447.6e9),
    Schedule(4, 'start', 6, True): Paper('ICML table 6', 0.759, 44.9e6, 534.1e9),
    Schedule(4, 'interleaved', 6, True): Paper('ICML table 6', 0.765, 44.9e6, 534.1e9),
    Schedule(8, 'start', 6, True): Paper('ICML table 6', 0.737, 44.9e6, 707.2e9),
    Schedule(8, 'interleaved', 6, False): Paper('ICML table 7', 0.729, 326.2e6, 707.2e9),
    Schedule(4, 'start', 0, False): Paper('ICML table 5', 0.394, 12.7e6, 173.1e9),
    Schedule(8, 'start', 0, False): Paper('ICML table 5', 0.453, 23.8e6, 346.1e9),
    # Out of memory in the paper.
    Schedule(12, 'start', 0, False): Paper('ICML table 5', None, 34.9e6, 519.2e9),
}
IO = {  # by variant and decoder
    ('io_fourier', 'query'): Paper('IO table 7', 0.790, 48.4e6, 407e9),
    ('io_learned', 'query'): Paper('IO table 7', 0.727, 62.3e6, 407e9),
    ('io_conv', 'query'): Paper('IO table 7', 0.821, 48.6e6, 369e9),
    ('io_fourier', 'average'): Paper('IO table 7', 0.786, 42.1e6, 404e9),
    ('io_learned', 'average'): Paper('IO table 7', 0.676, 55.9e6, 404e9),
    ('io_conv', 'average'): Paper('IO table 7', 0.774, 42.1e6, 367e9),
}
# By variant, positions, and whether the pixels are permuted.
NETWORKS = {
    ('resnet50', 'none', False): Paper('ICML table 1', 0.776),
    ('resnet50', 'fourier', False): Paper('ICML table 1', 0.735),
    ('resnet50', 'fourier', True): Paper('ICML table 2', 0.394),
    ('vit_b16', 'none', False): Paper('ICML table 1', 0.779),
    ('vit_b16', 'fourier', False): Paper('ICML table 1', 0.767),
    ('vit_b16', 'fourier', True): Paper('ICML table 2', 0.617),
    ('transformer', 'fourier', False): Paper('ICML table 1', 0.570),
    ('transformer', 'fourier', True): Paper('ICML table 2', 0.570),
}

TABLE_2 = {  # with Fourier features: as they are, and permuted
    'perceiver': (0.780, 0.780),
    'resnet': (0.735, 0.394),
    'vit': (0.767, 0.617),
    'transformer': (0.570, 0.570),
}
PERMUTATION_SEED = 0  # any fixed permutation; our choice: deviations.md#permutation
# Of the miniature, chosen on CIFAR-10's validation images among two or three.
LEARNING_RATES = {'perceiver': 1e-3, 'resnet': 3e-3, 'vit': 5e-4, 'transformer': 3e-3}


def get_config(variant: str = 'perceiver') -> ml_collections.ConfigDict:
    """Returns the config of a variant, such as 'io_conv' or 'perceiver,cross_attends=4'."""
    variant, options = common.parse_variant(variant, VARIANTS)
    recipe = options.pop('recipe', None)

    config = ml_collections.ConfigDict()
    config.task = 'imagenet'
    config.seed = 42
    config.parallel = 'jit'  # or 'pmap'
    config.init_from = ''  # weights to start from: a file, a folder, a run, a name on the hub

    config.data = dict(
        # Or 'tfrecord', 'folder', 'cifar10', 'digits'; see experiments/imagenet/sources.py.
        source='tfds',
        path='~/tensorflow_datasets',
        train_split='train',
        eval_split='validation',
        # File of all folders' names in the order of the labels: one a line, or the column `name` of
        # a .csv. '': the folders in train/; where there is no train/, as for evaluation, in val/.
        classes='',
        on_broken='stop',  # an unreadable image: 'stop', or 'skip' and count
        num_workers=8,  # processes that read and augment; 0: a thread of this one
    )
    config.images = dict(
        image_size=224,
        mean=(0.485, 0.456, 0.406),  # of RGB in 0..1
        std=(0.229, 0.224, 0.225),
    )
    config.augmentation = dict(
        crop_area=(0.08, 1.0),  # share of the image
        flip=True,
        randaugment_layers=4,
        randaugment_magnitude=5,
        jitter_degrees=0.0,  # turns, moves and scales of the digits only
        jitter_shift=0.0,
        jitter_scale=0.0,
    )
    config.loss = dict(
        label_smoothing=0.1,  # that of IO; for ICML our choice: deviations.md#icml-recipe
        mixup_alpha=0.0,  # of Beta(alpha, alpha); 0 for both: no mixing, as in the ICML paper
        cutmix_alpha=0.0,
    )
    config.model = dict(
        num_classes=1000,  # or 0: as many as the data has; the run saves the number
        inputs=dict(
            contents='pixels',
            positions='fourier',
            num_bands=64,
            max_resolution=(224, 224),
        ),
        encoder=dict(
            num_latents=512,
            latent_channels=1024,
            num_cross_attends=1,
            num_blocks=8,
            num_self_attends_per_block=6,
            cross_attend_placement='interleaved',
            share_cross_attends=True,
            share_blocks=True,
            cross_attend=dict(num_heads=1),
            self_attend=dict(num_heads=8),
            latent_init_std=0.02,
            # Whether what repeats is compiled once; None: yes, but not on GPUs. See Encoder.
            scan=ml_collections.config_dict.placeholder(bool),
            remat_cross_attends=False,  # less memory for more computation; see Encoder
            remat_blocks=False,
        ),
        dtype='float32',  # of the computation; or 'bfloat16'
        implementation='auto',  # or 'plain', 'chunked', 'pallas' on NVIDIA's GPUs, 'splash' on TPUs
    )
    config.train = dict(
        batch_size=1024,  # that of IO; for ICML our choice: deviations.md#icml-recipe
        accumulate_steps=1,  # parts that a batch is computed in, one after the other
        epochs=120.0,
        steps=ml_collections.config_dict.placeholder(int),  # instead of epochs
        log_every_steps=50,
        evaluate_every_steps=5000,
        checkpoint_every_steps=1000,
        keep_checkpoints=3,
        ema_decay=0.0,  # of an average of the parameters to evaluate; 0: none
        freeze=(),  # modules that are not trained, such as ('inputs', 'encoder')
    )
    config.evaluation = dict(
        batch_size=1024,
        crop_fraction=0.875,  # side of the centre crop / shorter side of the image
    )

    if variant.startswith('perceiver'):
        paper = _perceiver(config, variant, **options)
    elif variant.startswith('io'):
        paper = _perceiver_io(config, variant, **options)
    elif variant in ('small', 'demo'):
        paper = (_small if variant == 'small' else _demo)(config)
    elif variant == 'cifar10':
        paper = _cifar10(config, **options)
    else:
        paper = _network(config, variant, **options)
    if recipe == 'fine_tune':
        paper = paper._replace(source=None, value=None)  # of the model alone
        _fine_tune(config, variant)
    config.paper = dict(metric='top1', **paper._asdict())
    return config.lock()


def _perceiver(
    config: ml_collections.ConfigDict,
    variant: str,
    *,
    cross_attends: int | None = None,
    placement: str = 'interleaved',
    share: bool = True,
    self_attends: int = 6,
    permuted: bool = False,
) -> Paper:
    """The ICML Perceiver; returns what its paper states."""
    config.optimizer = common.lamb(
        learning_rate=4e-3,
        schedule=dict(kind='step', boundary_epochs=(84, 102, 114), factor=0.1),
    )
    # ICML names no constants of LAMB, no weight decay and no clipping: these are IO's,
    # our choice: deviations.md#icml-recipe
    if variant == 'perceiver_learned':
        # Eight cross-attends were unstable with learned positions. That the depth stays at 48
        # self-attends is our choice: deviations.md#learned-positions
        cross_attends = 1
        config.model.inputs = dict(
            contents='pixels', positions='learned', position_channels=128, position_init_std=1.0
        )
    cross_attends = cross_attends or 8
    if self_attends == 0:
        placement = 'start'  # nothing to interleave with
        config.model.encoder.num_blocks = 1
    config.model.encoder.update(
        num_cross_attends=cross_attends,
        cross_attend_placement=placement,
        num_self_attends_per_block=self_attends,
        share_cross_attends=share,
        share_blocks=share,
    )
    if permuted or variant == 'perceiver_permuted':
        config.model.inputs.permutation_seed = PERMUTATION_SEED
    if variant == 'perceiver_learned':
        return Paper('ICML table 2', 0.709)
    paper = ICML.get(Schedule(cross_attends, placement, self_attends, share), NOT_IN_PAPER)
    if 'permutation_seed' not in config.model.inputs:
        return paper
    is_main = paper.source == 'ICML table 1'
    return paper._replace(source='ICML table 2') if is_main else NOT_IN_PAPER


def _network(
    config: ml_collections.ConfigDict,
    variant: str,
    *,
    features: str = 'none',
    permuted: bool = False,
) -> Paper:
    """One of the networks that the paper compares with; returns what it states."""
    if variant == 'transformer':
        features = 'fourier'  # it knows nothing else of where a pixel is
        config.images.image_size = 64
        config.model.inputs.max_resolution = (64, 64)
    if features == 'none':
        config.model.inputs = dict(contents='pixels', positions='none')
    if permuted:
        config.model.inputs.permutation_seed = PERMUTATION_SEED
    networks = {
        'resnet50': common.resnet(),
        'vit_b16': common.vit(),
        'transformer': common.transformer(),
    }
    common.set_network(config, networks[variant])
    if variant == 'resnet50':
        # What ResNet-50 is usually trained with, and 0.1 for each 256 images;
        # our choice: deviations.md#baseline-recipes
        config.optimizer = common.sgd(
            learning_rate=0.4, schedule=dict(kind='cosine', warmup_steps=6250)
        )
    else:
        # The Perceiver's; our choice: deviations.md#baseline-recipes
        config.optimizer = common.lamb(
            learning_rate=4e-3,
            schedule=dict(kind='step', boundary_epochs=(84, 102, 114), factor=0.1),
        )
    return NETWORKS.get((variant, features, permuted), NOT_IN_PAPER)


def _cifar10(
    config: ml_collections.ConfigDict, *, model: str = 'perceiver', permuted: bool = False
) -> Paper:
    """ICML table 2 in miniature: small models of about equal cost.

    All of them see Fourier features. The Transformer reads images of 16x16, as the paper shrinks
    them to 64x64. All of it is our choice: deviations.md#table-2-in-miniature.
    """
    config.data.update(source='cifar10', path='~/cifar10', eval_split='test', num_workers=0)
    size = 16 if model == 'transformer' else 32
    config.images.update(
        image_size=size, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616)
    )
    config.augmentation.update(crop_area=(0.5, 1.0), randaugment_layers=0)
    config.evaluation.update(batch_size=250, crop_fraction=1.0)
    config.model.num_classes = 10
    config.model.inputs.update(num_bands=8, max_resolution=(size, size))
    if permuted:
        config.model.inputs.permutation_seed = PERMUTATION_SEED
    if model == 'perceiver':
        config.model.encoder.update(
            num_latents=32,
            latent_channels=128,
            num_cross_attends=2,
            num_blocks=2,
            num_self_attends_per_block=2,
            self_attend=dict(num_heads=4),
        )
        config.model.inputs.as_array = True  # or the permutation would be left out: it does nothing
    else:
        common.set_network(
            config,
            {
                'resnet': common.resnet(blocks=(2, 2, 2), channels=32),
                'vit': common.vit(patch_size=4, channels=96, num_self_attends=3, num_heads=4),
                'transformer': common.transformer(channels=64, num_self_attends=2, num_heads=2),
            }[model],
        )
    config.optimizer = common.adamw(
        learning_rate=LEARNING_RATES[model], schedule=dict(kind='cosine', warmup_steps=100)
    )
    config.train.update(
        batch_size=64,
        epochs=ml_collections.config_dict.placeholder(float),
        steps=3300,
        log_every_steps=50,
        evaluate_every_steps=3300,  # the test images are seen once, at the end
        checkpoint_every_steps=500,
    )
    return Paper('ICML table 2, on ImageNet', TABLE_2[model][permuted])


def _perceiver_io(
    config: ml_collections.ConfigDict, variant: str, *, decoder: str = 'query'
) -> Paper:
    """Perceiver IO, configuration A; returns what its paper states."""
    config.train.epochs = 110.0
    config.loss.update(mixup_alpha=0.2, cutmix_alpha=1.0)  # half of the batch each
    config.optimizer = common.lamb(
        learning_rate=2e-3, schedule=dict(kind='flat_cosine', flat_fraction=0.5)
    )
    if variant == 'io_learned':
        config.model.inputs = dict(
            contents='conv1x1',
            contents_channels=256,
            positions='learned',
            position_channels=256,
            position_init_std=0.02,
            project_positions_to=256,
        )
    elif variant == 'io_conv':
        config.model.inputs.update(
            contents='conv7x7', contents_channels=64, max_resolution=(56, 56)
        )
    if decoder == 'query':
        config.model.decoder = dict(
            query_channels=1024,
            query_init_std=0.02,
            cross_attend=dict(use_query_residual=variant != 'io_learned'),
        )
    return IO[variant, decoder]


def _fine_tune(config: ml_collections.ConfigDict, variant: str) -> None:
    """For `config.init_from`: as IO's configuration B after JFT, but for `small`.

    That the ICML models train likewise, all as many classes as the data has, and the recipe of
    `small`, are our choice: deviations.md#fine-tuning.
    """
    if variant == 'small':
        common.fine_tune(config, steps=2000)
        return
    config.model.num_classes = 0
    config.optimizer = common.lamb(
        learning_rate=2e-4 if variant == 'io_conv' else 2e-3,
        schedule=dict(kind='flat_cosine', flat_fraction=70 / 131),
    )
    common.set_steps(config, 131_000)


def _small(config: ml_collections.ConfigDict) -> Paper:
    """For one's own images, on one machine; our choice: deviations.md#small-models."""
    config.data.update(source='folder', path='~/images', num_workers=2)
    config.images.image_size = 64
    config.augmentation.update(crop_area=(0.25, 1.0), randaugment_layers=0)
    config.evaluation.update(batch_size=128, crop_fraction=1.0)
    config.model.num_classes = 0  # as many as the folder has
    config.model.inputs.update(
        contents='conv7x7', contents_channels=64, num_bands=16, max_resolution=(16, 16)
    )
    config.model.encoder.update(
        num_latents=64,
        latent_channels=128,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=3,
        self_attend=dict(num_heads=4),
    )
    config.optimizer = common.adamw(
        learning_rate=1e-3, schedule=dict(kind='cosine', warmup_steps=100)
    )
    config.train.update(
        batch_size=64,
        epochs=ml_collections.config_dict.placeholder(float),
        steps=6000,
        log_every_steps=20,
        evaluate_every_steps=500,
        checkpoint_every_steps=500,
    )
    return NOT_IN_PAPER


def _demo(config: ml_collections.ConfigDict) -> Paper:
    """A small Perceiver on scikit-learn's digits; our choice: deviations.md#demos."""
    config.data.update(source='digits', path='', num_workers=0)
    config.images.update(image_size=8, mean=(0.3,), std=(0.38,))
    config.augmentation.update(
        crop_area=None,
        flip=False,
        randaugment_layers=0,
        jitter_degrees=15.0,
        jitter_shift=0.1,
        jitter_scale=0.15,
    )
    config.evaluation.crop_fraction = 1.0
    config.model.num_classes = 10
    config.model.inputs.update(num_bands=8, max_resolution=(8, 8))
    config.model.encoder.update(
        num_latents=16,
        latent_channels=96,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=2,
        self_attend=dict(num_heads=4),
    )
    config.train.update(
        batch_size=64,
        epochs=70.0,
        log_every_steps=20,
        evaluate_every_steps=200,
        checkpoint_every_steps=200,
    )
    config.evaluation.batch_size = 128
    config.optimizer = common.lamb(
        learning_rate=4e-3, schedule=dict(kind='flat_cosine', flat_fraction=0.5)
    )
    return NOT_IN_PAPER
