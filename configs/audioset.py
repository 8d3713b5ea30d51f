"""AudioSet: 527 classes of sound in clips of ten seconds (Perceiver, section 4.2; IO, appendix G).

Expected mAP on the evaluation segments, and what the papers state of each model:

    variant                               paper          mAP    parameters   forward FLOPs
    raw_audio                             ICML table 3   38.3   not stated   not stated
    mel                                   ICML table 3   38.4   not stated   not stated
    video                                 ICML table 3   25.8   not stated   not stated
    raw_audio_video                       ICML table 3   43.5   not stated   not stated
    mel_video                             ICML table 3   43.2   not stated   not stated
    mel_video_tuned                       ICML table 3   44.2   not stated   not stated
    io_raw_audio_video                    IO table 10    43.3   25.0M        52.9B
    io_mel_video                          IO table 10    44.9   88.2M        129.5B
    io_raw_audio_video,decoder=average    IO table 10    42.4   21.0M        52.3B
    io_mel_video,decoder=average          IO table 10    43.6   21.0M        60.7B
    esc                                   ESC-50's sounds; ESC-10's: 12 minutes on a CPU core
    demo                                  generated sounds; minutes on two CPU cores

IO states 3.8 training steps a second for all four of its rows. The two that it calls Perceiver are
Perceiver IO without the query: with two iterations there would be more parameters than it states.

    python -m experiments.audioset.builder --help       # prepares the data
    python -m experiments.launch --config=configs/audioset.py:mel_video --workdir=runs/mel_video

`esc,input=raw_audio` hears the wave instead of its spectrogram, `esc,input=filterbank` through
learned filters, which are not in the papers; `classes=10` takes ESC-10 out of ESC-50, and `fold=1`
to `5` is left out and evaluated on. `recipe=fine_tune` behind a variant is for
`--config.init_from`, on sounds of one's own; our choice: deviations.md#fine-tuning. On fewer
devices raise `--config.train.accumulate_steps`: the result stays that of the whole batch.
"""

import ml_collections

from configs import common
from configs.common import NOT_IN_PAPER, Paper

IO_OPTIONS = {'decoder': {'query': 'query', 'average': 'average'}, **common.RECIPES}
VARIANTS: dict[str, common.Options] = {
    'raw_audio': common.RECIPES,
    'mel': common.RECIPES,
    'video': common.RECIPES,
    'raw_audio_video': common.RECIPES,
    'mel_video': common.RECIPES,
    'mel_video_tuned': common.RECIPES,
    'io_raw_audio_video': IO_OPTIONS,
    'io_mel_video': IO_OPTIONS,
    'esc': {
        'input': {name: name for name in ('mel', 'raw_audio', 'filterbank')},
        'classes': {'50': 50, '10': 10},
        'fold': {str(fold): fold for fold in range(1, 6)},
        **common.RECIPES,
    },
    'demo': {},
}

ICML = {
    'raw_audio': Paper('ICML table 3', 0.383),
    'mel': Paper('ICML table 3', 0.384),
    'video': Paper('ICML table 3', 0.258),
    'raw_audio_video': Paper('ICML table 3', 0.435),
    'mel_video': Paper('ICML table 3', 0.432),
    'mel_video_tuned': Paper('ICML table 3', 0.442),
}
IO = {  # by variant and decoder
    ('io_raw_audio_video', 'query'): Paper('IO table 10', 0.433, 25.0e6, 52.9e9),
    ('io_mel_video', 'query'): Paper('IO table 10', 0.449, 88.2e6, 129.5e9),
    ('io_raw_audio_video', 'average'): Paper('IO table 10', 0.424, 21.0e6, 52.3e9),
    ('io_mel_video', 'average'): Paper('IO table 10', 0.436, 21.0e6, 60.7e9),
}

# What an element of each modality is. The papers give the patches, 16 bands for video (by its width
# of 487 channels) and one axis of positions for the spectrogram (IO); all else is
# our choice: deviations.md#audio-visual-elements.
INPUTS = {
    'audio': dict(samples_per_patch=128, num_bands=64, max_resolution=(480,)),
    'spectrogram': dict(patch=(1, 1), num_bands=64, max_resolution=(4800,)),
    'video': dict(patch=(2, 8, 8), num_bands=16, max_resolution=(16, 28, 28)),
}


def get_config(variant: str = 'raw_audio_video') -> ml_collections.ConfigDict:
    """Returns the config of a variant, such as 'io_mel_video' or 'esc,input=raw_audio'."""
    variant, options = common.parse_variant(variant, VARIANTS)
    recipe = options.pop('recipe', None)

    config = ml_collections.ConfigDict()
    config.task = 'audioset'
    config.seed = 42
    config.parallel = 'jit'  # or 'pmap'
    config.init_from = ''  # weights to start from: a file, a folder, a run, a name on the hub

    config.data = dict(
        source='tfds',  # or 'folder', 'sounds'; see experiments/audioset/sources.py
        path='~/tensorflow_datasets',
        # File of the names of a folder's labels in their order: one a line, or the column `name`
        # of a .csv. '': those in the table, sorted.
        classes='',
        on_broken='stop',  # an unreadable clip: 'stop', or 'skip' and count
        num_workers=8,  # processes that read and augment; 0: a thread of this one
        table=dict(  # of a folder: ESC-50's, see `sources.Table`
            csv_file='meta/esc50.csv',
            media='audio',
            file_column='filename',
            label_column='category',
            label_separator='',
            split_column='fold',
            train='1,2,3,4',
            validation='5',
            only='',
        ),
    )
    config.clip = dict(
        num_frames=32,
        frames_per_second=25,
        sample_rate=48_000,
        size=224,
        # What the loudest fiftieth of each window's sound is brought to, its root mean square in dB
        # of full scale; None: as loud as it is. Not in the papers.
        loudness_db=ml_collections.config_dict.placeholder(float),
    )
    # 80 x 60 is one of two ways to 4,800 values at 48 kHz; the other, 40 bins at twice the rate,
    # would tell pitches apart less well. Below 50 Hz 80 filters are too narrow for the window, and
    # hardly anything of YouTube's sound is above 20 kHz. All of it is
    # our choice: deviations.md#spectrogram.
    config.spectrogram = dict(
        hop=1024,  # samples, 21 ms
        window=2048,
        num_bins=80,
        low=50.0,  # Hz
        high=20_000.0,
        mean_db=-60.0,  # what a few hundred clips of YouTube and of ESC-50 have
        std_db=20.0,
    )
    config.augmentation = dict(
        crop_area=(0.08, 1.0),  # share of a frame
        flip=True,
        brightness=0.125,  # strengths of colour; our choice: deviations.md#clip-augmentation
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        drop_video=0.0,  # share of examples whose video is all zeros
        drop_sound=0.0,
        # Masks of the spectrogram, whose widths are our choice: deviations.md#clip-augmentation
        spec_augment=dict(time_masks=2, time_width=12, frequency_masks=2, frequency_width=16),
        roll=False,  # what follows is not in the papers, and off
        gain_db=0.0,
        speed=(1.0, 1.0),  # of sound, which makes it shorter and higher
        mixup_alpha=0.0,
        between_class=False,  # mixes by loudness, and different classes alone
    )
    config.loss = dict(kind='sigmoid')  # or 'softmax', where every clip has one label
    config.model = dict(
        num_classes=527,  # or 0: as many as the data has; the run saves the number
        inputs=dict(min_padding=4),
        encoder=dict(
            num_latents=512,
            latent_channels=1024,  # ICML: 'a faster version of the ImageNet model'
            num_cross_attends=2,
            num_blocks=2,
            num_self_attends_per_block=8,
            share_cross_attends=False,
            share_blocks=False,
            cross_attend=dict(num_heads=1),
            self_attend=dict(num_heads=8),
            latent_init_std=0.02,
            # Whether what repeats is compiled once; None: yes, but not on GPUs. See Encoder.
            scan=ml_collections.config_dict.placeholder(bool),
            remat_cross_attends=False,  # less memory for more computation; see Encoder
            remat_blocks=False,
        ),
        dtype='float32',  # of the computation; or 'bfloat16'
        implementation='auto',  # of attention; or 'plain', 'chunked', 'splash' on TPUs
    )
    # Optimizer, schedule and batch are those of ImageNet, for 100 epochs, but for the rate;
    # our choice: deviations.md#audioset-recipe. 527 outputs that start at zero all move down first,
    # and at ImageNet's 4e-3 that carries everything else along: the loss jumps from 365 to 28 and
    # then to 3,000.
    config.optimizer = common.lamb(
        learning_rate=1e-3,
        schedule=dict(kind='step', boundary_epochs=(70, 85, 95), factor=0.1),
    )
    config.train = dict(
        batch_size=512,
        accumulate_steps=1,  # parts that a batch is computed in, one after the other
        epochs=100.0,
        steps=ml_collections.config_dict.placeholder(int),  # instead of epochs
        log_every_steps=50,
        evaluate_every_steps=10_000,
        checkpoint_every_steps=1000,
        keep_checkpoints=3,
        ema_decay=0.0,  # of an average of the parameters to evaluate; 0: none
        freeze=(),  # modules that are not trained, such as ('inputs', 'encoder')
    )
    config.evaluation = dict(
        batch_size=16,  # whole clips: one is 38 MB of frames
        metric='map',  # or 'accuracy', where every clip has one label
        num_windows=16,  # overlapping, spread over a clip
        clip_seconds=10.0,
        # Factors of speed that every window is heard at, one after the other; not in the papers.
        speeds=(1.0,),
        crop_fraction=0.875,  # side of the centre crop / shorter side of the frame
    )

    if variant.startswith('io'):
        paper = _perceiver_io(config, variant, **options)
    elif variant == 'esc':
        paper = _esc(config, **options)
    elif variant == 'demo':
        paper = _demo(config)
    else:
        paper = _perceiver(config, variant)
    if recipe == 'fine_tune':
        paper = paper._replace(source=None, value=None)  # of the model alone
        common.fine_tune(config, steps=1000 if variant == 'esc' else 10_000)
    config.paper = dict(metric='map', **paper._asdict())
    return config.lock()


def _perceiver(config: ml_collections.ConfigDict, variant: str) -> Paper:
    """The ICML Perceiver: two iterations, nothing shared; returns what its paper states."""
    _listen_and_watch(config, variant.removesuffix('_tuned'))
    if variant == 'mel_video_tuned':
        config.augmentation.drop_sound = 0.1
        config.augmentation.spec_augment.update(time_masks=0, frequency_masks=0)
    return ICML[variant]


def _perceiver_io(
    config: ml_collections.ConfigDict, variant: str, *, decoder: str = 'query'
) -> Paper:
    """Perceiver IO; returns what its paper states."""
    _listen_and_watch(config, variant.removeprefix('io_'))
    wide = (variant, decoder) == ('io_mel_video', 'query')
    config.model.encoder.update(
        latent_channels=1024 if wide else 512,
        num_cross_attends=1,
        num_blocks=1,
        num_self_attends_per_block=12,
    )
    if decoder == 'query':
        config.model.decoder = dict(
            query_channels=1024,
            query_init_std=0.02,
            cross_attend=dict(use_query_residual=True),
        )
    config.optimizer.schedule = dict(kind='flat_cosine', flat_fraction=0.5)
    return IO[variant, decoder]


def _listen_and_watch(config: ml_collections.ConfigDict, kind: str) -> None:
    """The inputs of 'raw_audio', 'mel', 'video', 'raw_audio_video' or 'mel_video'."""
    if kind.startswith('raw_audio'):
        _hear_waves(config, **INPUTS['audio'])
    elif kind.startswith('mel'):
        config.model.inputs.spectrogram = INPUTS['spectrogram']
    if kind.endswith('video'):
        config.model.inputs.video = INPUTS['video']
    if kind.endswith('_video'):
        config.augmentation.drop_video = 0.3


def _hear_waves(config: ml_collections.ConfigDict, **elements) -> None:
    """Makes the sound's wave an input, in elements that do not overlap."""
    # Samples from an element to the next; None: those of an element.
    config.model.inputs.audio = dict(hop=ml_collections.config_dict.placeholder(int), **elements)


def _esc(
    config: ml_collections.ConfigDict, *, input: str = 'mel', classes: int = 50, fold: int = 5
) -> Paper:
    """A small Perceiver on a few hundred labelled sounds of five seconds.

    All of it is our choice: deviations.md#esc.

    A sound may be half a second long, and silence the rest: a window is the whole clip, and rolling
    it takes the place of the random time.
    """
    config.data.update(source='folder', path='~/ESC-50-master', num_workers=0)
    others = ','.join(str(x) for x in range(1, 6) if x != fold)
    config.data.table.update(train=others, validation=str(fold))
    if classes == 10:
        config.data.table.only = 'esc10=True'
    config.loss.kind = 'softmax'
    config.clip.num_frames = 125
    config.clip.update(sample_rate=24_000, loudness_db=-20.0)
    config.augmentation.update(roll=True, speed=(0.7, 1.4), mixup_alpha=0.4, between_class=True)
    config.augmentation.spec_augment.update(time_width=50, frequency_width=12)
    config.model.num_classes = classes
    config.model.encoder.update(
        num_latents=32,
        latent_channels=128,
        num_self_attends_per_block=2,
        self_attend=dict(num_heads=4),
        scan=False,  # a few layers: a quarter faster, and compiled in seconds
    )
    # Values are 20 ms apart: a rotor's beats are 40. A few hundred sounds do not tell a Perceiver
    # that what is a bit later or higher is the same: convolutions do.
    stem = dict(channels=(32, 64), kernels=((7, 7), (5, 3)), strides=((2, 2), (4, 2)))
    elements = dict(stem=stem, patch=(1, 1), num_bands=4, max_resolution=(32, 16))
    if input == 'mel':
        config.spectrogram.update(hop=480, window=1024, num_bins=64, high=12_000.0)
        config.model.inputs.spectrogram = elements
    elif input == 'filterbank':  # 30 ms long, applied each 5 ms
        filters = dict(num_filters=64, length=720, stride=120, hop=480)
        config.model.inputs.filterbank = {**filters, **elements}
    else:
        config.clip.sample_rate = 48_000
        _hear_waves(config, samples_per_patch=128, num_bands=16, max_resolution=(1875,))
    config.optimizer = common.adamw(
        learning_rate=1e-3, schedule=dict(kind='cosine', warmup_steps=50)
    )
    config.train.update(
        batch_size=16,
        epochs=ml_collections.config_dict.placeholder(float),
        steps=300 * classes,
        log_every_steps=20,
        evaluate_every_steps=1000,
        checkpoint_every_steps=500,
        ema_decay=0.995,
    )
    config.evaluation.update(
        batch_size=16,
        metric='accuracy',
        num_windows=1,
        clip_seconds=5.0,
        speeds=(0.8, 0.9, 1.0, 1.1, 1.25),
    )
    return NOT_IN_PAPER


def _demo(config: ml_collections.ConfigDict) -> Paper:
    """A small Perceiver on generated sounds; our choice: deviations.md#demos."""
    config.data.update(source='sounds', path='', num_workers=0)
    config.clip.sample_rate = 8000
    config.spectrogram.update(hop=256, window=512, num_bins=32, high=4000.0)
    config.augmentation.spec_augment.update(time_width=4, frequency_width=4)
    config.model.num_classes = 8
    config.model.inputs.spectrogram = dict(patch=(1, 2), num_bands=8, max_resolution=(40, 16))
    config.model.encoder.update(
        num_latents=24,
        latent_channels=96,
        num_self_attends_per_block=2,
        self_attend=dict(num_heads=4),
    )
    config.optimizer = common.lamb(
        learning_rate=4e-3, schedule=dict(kind='flat_cosine', flat_fraction=0.5)
    )
    config.train.update(
        batch_size=64,
        epochs=40.0,
        log_every_steps=20,
        evaluate_every_steps=250,
        checkpoint_every_steps=250,
    )
    config.evaluation.update(batch_size=50, num_windows=4, clip_seconds=3.0)
    return NOT_IN_PAPER
