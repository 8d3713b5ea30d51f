"""ModelNet40, 40 classes of point clouds (Perceiver, section 4.3).

Expected accuracy on the 2,468 official test shapes, and what the paper states of the model:

    variant      paper           accuracy   parameters   forward FLOPs   time
    perceiver    ICML table 4    85.7 %     not stated   not stated      not stated
    resnet50     ICML table 4    66.3 %     not stated   not stated      not stated
    vit_b2       ICML table 4    78.9 %     not stated   not stated      not stated
    vit_b4       ICML table 4    73.4 %     not stated   not stated      not stated
    vit_b8       ICML table 4    65.3 %     not stated   not stated      not stated
    vit_b16      ICML table 4    59.6 %     not stated   not stated      not stated
    transformer  ICML table 4    82.1 %     not stated   not stated      not stated
    small        a model for one CPU or a small GPU, chosen on the validation shapes
    demo         generated shapes; two minutes on two CPU cores

Hardware is not stated. The paper reports the best result on the test set of its runs; `perceiver`
evaluates on the test set too, but reports its last parameters. To choose by the validation shapes
instead, set `--config.data.train_split=train --config.data.eval_split=validation`.

    python -m experiments.launch --config=configs/modelnet40.py --workdir=runs/modelnet40

ResNet, ViT and the Transformer see each cloud as an image: its points, in random order, fill a grid
row after row. `grid=44` is the paper's, 1,936 points; that the order is another one each time is
our choice: deviations.md#clouds-as-images. So is the recipe, the Perceiver's but for ResNet-50:
deviations.md#baseline-recipes. `grid=32` takes 1,024 points, and
`small,model=vit2|vit16|transformer` are such networks for one CPU, trained with LAMB.

`perceiver,recipe=short` is the paper's model trained for minutes on one GPU, with the augmentation
of `small` and 1,024 points; our choice: deviations.md#modelnet40-short.

`small,recipe=fine_tune` is for `--config.init_from`, on shapes of one's own; our choice:
deviations.md#fine-tuning.

On one GPU raise `--config.train.accumulate_steps`: the result stays that of batch 512.
"""

import ml_collections

from configs import common
from configs.common import NOT_IN_PAPER, Paper

NETWORKS = {  # what the paper compares with, and its accuracy
    'resnet50': (common.resnet(), 0.663),
    'vit_b2': (common.vit(patch_size=2), 0.789),
    'vit_b4': (common.vit(patch_size=4), 0.734),
    'vit_b8': (common.vit(patch_size=8), 0.653),
    'vit_b16': (common.vit(patch_size=16), 0.596),
    'transformer': (common.transformer(), 0.821),
}
SMALL_NETWORKS = {
    'vit2': common.vit(patch_size=2, channels=64, num_self_attends=3, num_heads=4),
    'vit16': common.vit(patch_size=16, channels=128, num_self_attends=6, num_heads=4),
    # With four heads the softmax takes most of the time on a CPU.
    'transformer': common.transformer(channels=64, num_self_attends=2, num_heads=1),
}
VARIANTS: dict[str, common.Options] = {
    'perceiver': {'recipe': {**common.RECIPES['recipe'], 'short': 'short'}},
    **{variant: {'grid': {'44': 44, '32': 32}} for variant in NETWORKS},
    'small': {
        'model': {name: name for name in ('perceiver', *SMALL_NETWORKS)},
        **common.RECIPES,
    },
    'demo': {},
}


def get_config(variant: str = 'perceiver') -> ml_collections.ConfigDict:
    """Returns the config of a variant."""
    variant, options = common.parse_variant(variant, VARIANTS)

    config = ml_collections.ConfigDict()
    config.task = 'modelnet40'
    config.seed = 42
    config.parallel = 'jit'  # or 'pmap'
    config.init_from = ''  # weights to start from: a file, a folder, a run, a name on the hub

    config.data = dict(
        source='tfds',  # or 'folder', 'shapes'; see experiments/modelnet40/sources.py
        path='~/tensorflow_datasets',
        train_split='train+validation',  # together the 9,843 official training shapes
        eval_split='test',
        # File of the names of a folder's classes in the order of the labels: one a line, or the
        # column `name` of a .csv. '': the folders in train/; where there is none, of the split.
        classes='',
        on_broken='stop',  # a cloud without extent: 'stop', or 'skip' and count
        num_workers=4,  # processes that read and augment; 0: a thread of this one
    )
    config.points = dict(num_points=2048)  # our choice: deviations.md#number-of-points
    config.augmentation = dict(
        point_scale=(0.99, 1.01),
        axis_scale=(1.0, 1.0),  # stretches each axis of a cloud; not in the paper
        rotation_degrees=0.0,  # about the vertical axis; of no use in the paper
        # Not in the paper: noise on coordinates, of which the largest is 1; and the largest share
        # of the points that is left out, of which others take the places.
        jitter=0.0,
        drop_points=0.0,
    )
    config.loss = dict(
        label_smoothing=0.1,  # our choice: deviations.md#modelnet40-recipe
        cutmix_alpha=0.0,  # of clouds mixed of two, with their labels; not in the paper
    )
    config.model = dict(
        num_classes=40,  # or 0: as many as the data has; the run saves the number
        inputs=dict(num_bands=64, max_resolution=(2240, 2240, 2240)),
        encoder=dict(
            num_latents=512,
            latent_channels=1024,
            num_cross_attends=2,
            num_blocks=2,
            num_self_attends_per_block=6,
            cross_attend_placement='interleaved',
            share_cross_attends=True,
            share_blocks=True,  # our choice: deviations.md#weight-sharing
            cross_attend=dict(num_heads=1, dropout_rate=0.0),
            self_attend=dict(num_heads=8, dropout_rate=0.0),
            latent_init_std=0.02,
            # Whether what repeats is compiled once; None: yes, but not on GPUs. See Encoder.
            scan=ml_collections.config_dict.placeholder(bool),
            remat_cross_attends=False,  # less memory for more computation; see Encoder
            remat_blocks=False,
        ),
        dtype='float32',  # of the computation; or 'bfloat16'
        implementation='auto',  # of attention; or 'plain', 'chunked', 'splash' on TPUs
    )
    # The paper names no weight decay, no clipping and no constants of LAMB;
    # our choice: deviations.md#modelnet40-recipe
    config.optimizer = common.lamb(learning_rate=1e-3, schedule=dict(kind='constant'))
    config.train = dict(
        batch_size=512,
        accumulate_steps=1,  # parts that a batch is computed in, one after the other
        epochs=ml_collections.config_dict.placeholder(float),  # instead of steps
        steps=50_000,
        log_every_steps=50,
        evaluate_every_steps=1000,
        checkpoint_every_steps=500,
        keep_checkpoints=3,
        ema_decay=0.0,  # of an average of the parameters to evaluate; 0: none
        freeze=(),  # modules that are not trained, such as ('inputs', 'encoder')
    )
    config.evaluation = dict(
        batch_size=512,
        num_draws=1,  # of points, whose logits are averaged; more than 1 is not in the paper
        num_points=ml_collections.config_dict.placeholder(int),  # of a draw; None: as in training
    )
    config.paper = dict(metric='accuracy', **Paper('ICML table 4', 0.857)._asdict())
    if variant == 'small':
        model = options.pop('model', 'perceiver')
        _small(config, model)
        if model == 'perceiver' and not options:  # fine-tuning was measured without it
            _tune(config)
    elif variant == 'demo':
        _demo(config)
    elif variant in NETWORKS:
        _network(config, variant, options.pop('grid', 44))
    recipe = options.get('recipe')
    if recipe == 'short':
        _shorten(config)
    elif recipe == 'fine_tune':
        config.paper.update(NOT_IN_PAPER._asdict())
        common.fine_tune(config, steps=1000 if variant == 'small' else 5000)
    return config.lock()


def _shorten(config: ml_collections.ConfigDict) -> None:
    """Minutes on one GPU; our choice: deviations.md#modelnet40-short."""
    config.points.num_points = 1024
    _augment(config)
    config.model.dtype = 'bfloat16'
    config.optimizer = common.adamw(
        learning_rate=3e-4, schedule=dict(kind='cosine', warmup_steps=300)
    )
    config.train.update(batch_size=64, steps=4000)
    config.evaluation.batch_size = 256


def _network(config: ml_collections.ConfigDict, variant: str, grid: int) -> None:
    """One of the networks that the paper compares with, on a square of `grid` x `grid` points."""
    network, accuracy = NETWORKS[variant]
    paper = Paper('ICML table 4', accuracy) if grid == 44 else NOT_IN_PAPER
    config.paper.update(paper._asdict())
    config.points.num_points = grid**2
    common.set_network(config, network)
    if variant == 'resnet50':
        # As on ImageNet, 0.1 for each 256 clouds; our choice: deviations.md#baseline-recipes
        config.optimizer = common.sgd(
            learning_rate=0.2, schedule=dict(kind='cosine', warmup_steps=1000)
        )


def _small(config: ml_collections.ConfigDict, model: str = 'perceiver') -> None:
    """For one CPU, made on the validation shapes; our choice: deviations.md#small-models."""
    config.paper.update(NOT_IN_PAPER._asdict())
    config.data.update(train_split='train', eval_split='validation', num_workers=0)
    config.points.num_points = 512
    config.augmentation.axis_scale = (0.8, 1.25)
    config.model.inputs = dict(num_bands=16, max_resolution=(32, 32, 32))
    config.model.encoder.update(
        num_latents=32,
        latent_channels=128,
        num_self_attends_per_block=3,
        self_attend=dict(num_heads=4),
    )
    config.optimizer = common.lamb(
        learning_rate=4e-3, schedule=dict(kind='flat_cosine', flat_fraction=0.5)
    )
    config.train.update(batch_size=64, steps=12_000, log_every_steps=20, evaluate_every_steps=500)
    config.evaluation.batch_size = 128
    if model != 'perceiver':
        config.points.num_points = 32**2
        common.set_network(config, SMALL_NETWORKS[model])


def _tune(config: ml_collections.ConfigDict) -> None:
    """The recipe of the small Perceiver; our choice: deviations.md#small-models."""
    config.optimizer = common.adamw(
        learning_rate=1e-3, schedule=dict(kind='flat_cosine', flat_fraction=0.5)
    )
    _augment(config)
    config.train.steps = 7000
    config.evaluation.num_points = 1024


def _augment(config: ml_collections.ConfigDict) -> None:
    """More than the paper's augmentation, and the average of the parameters that it goes with."""
    config.augmentation.update(axis_scale=(0.67, 1.5), jitter=0.01, drop_points=0.5)
    config.train.ema_decay = 0.998


def _demo(config: ml_collections.ConfigDict) -> None:
    """A small Perceiver on generated shapes; our choice: deviations.md#demos."""
    _small(config)
    config.data.update(source='shapes', path='')
    config.points.num_points = 256
    config.model.num_classes = 10
    config.model.encoder.update(latent_channels=96, num_self_attends_per_block=2)
    config.train.update(steps=600, evaluate_every_steps=100, checkpoint_every_steps=100)
