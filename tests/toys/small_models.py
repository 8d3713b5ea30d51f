"""Every kind of model in a size for tests, with inputs for it."""

import functools

import jax.numpy as jnp
import numpy as np

from perceiver_jax.models import (
    audio_visual_classifier,
    image_baseline,
    image_classifier,
    masked_language_model,
    optical_flow,
    point_baseline,
    point_classifier,
    video_autoencoder,
)

ENCODER = dict(
    num_latents=4,
    latent_channels=16,
    num_blocks=1,
    num_self_attends_per_block=1,
    self_attend=dict(num_heads=2, dropout_rate=0.1),
)
NARROW = dict(num_heads=2, dropout_rate=0.1)
DECODER = dict(cross_attend=dict(use_query_residual=False))
AUDIO = dict(samples_per_patch=2, num_bands=2, max_resolution=(4,))
VIDEO = dict(patch=(1, 2, 2), num_bands=2, max_resolution=(2, 2, 2))
AUTOENCODER = dict(
    num_classes=3,
    inputs=dict(min_padding=1, audio=AUDIO, video=VIDEO),
    queries=dict(
        audio=dict(num_bands=2, max_resolution=(4,)),
        video=dict(num_bands=2, max_resolution=(2, 4, 4)),
        label_channels=4,
        min_padding=1,
        endpoint=True,
    ),
    decoder=dict(output_channels=None, **DECODER),
)

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
FRAMES = RNG.normal(size=(4, 2, 4, 4, 3)).astype(np.float32)
SOUND = RNG.normal(size=(4, 8, 1)).astype(np.float32)
TEXT = RNG.integers(0, 262, (4, 9))


def _images(positions='fourier', **changes):
    fields = {
        'fourier': dict(num_bands=2, max_resolution=(8, 8)),
        'learned': dict(position_channels=4, position_init_std=0.02, project_positions_to=5),
    }
    inputs = dict(positions=positions, **fields[positions], **changes)
    return functools.partial(image_classifier, num_classes=3, inputs=inputs)


def _flow(**changes):
    inputs = dict(channels=4, num_bands=2, max_resolution=(8, 8)) | changes
    return functools.partial(optical_flow, inputs=inputs, decoder=DECODER)


def _reconstruct(x, **fields):
    hidden = {'video': jnp.arange(8)[None].repeat(4, 0) % 2 == 0}
    return video_autoencoder(
        x['video'], x['audio'], hidden=hidden, chunk_size=12, **AUTOENCODER, **fields
    )


def _reconstruct_some(x, **fields):
    some = {'video': jnp.arange(5), 'audio': jnp.arange(2)}
    return video_autoencoder(
        x['video'], x['audio'], jnp.eye(4, 3), output_elements=some, **AUTOENCODER, **fields
    )


def _masked_images(x, **fields):
    mask = jnp.arange(64)[None].repeat(4, 0) < 50
    decoder = dict(query_channels=8, cross_attend=dict(dropout_rate=0.1))
    return _images(permutation_seed=0)(x, mask, decoder=decoder, **fields)


def _text(x, **fields):
    inputs = dict(channels=8, max_length=16)
    return masked_language_model(x, x > 50, inputs=inputs, decoder={}, **fields)


def _baseline(kind, function=image_baseline, inputs=None, **network):
    if inputs is None:
        inputs = dict(num_bands=2, max_resolution=(8, 8), permutation_seed=0)

    def forward(x, encoder, **fields):  # it has no encoder
        return function(
            x, num_classes=3, inputs=inputs, network=dict(kind=kind, **network), **fields
        )

    return forward


MODELS = {
    'images': (_images(), IMAGES),
    'images, masked, with a query': (_masked_images, IMAGES),
    'images, learned positions': (
        _images('learned', contents='conv1x1', contents_channels=4),
        IMAGES,
    ),
    'images, convolution': (_images(contents='conv7x7', contents_channels=4), IMAGES),
    'points': (
        functools.partial(
            point_classifier, num_classes=3, inputs=dict(num_bands=2, max_resolution=(8, 8, 8))
        ),
        IMAGES[:, :, 0],
    ),
    'flow': (_flow(), FRAMES),
    'flow, separate frames': (
        _flow(concatenate_frames=False, max_resolution=(2, 8, 8)),
        FRAMES,
    ),
    'flow, convolution': (
        functools.partial(_flow(contents='conv7x7'), upsampling=dict(factor=4)),
        FRAMES,
    ),
    'text': (_text, TEXT),
    'sound': (
        functools.partial(
            audio_visual_classifier, num_classes=3, inputs=dict(min_padding=1, audio=AUDIO)
        ),
        {'audio': SOUND},
    ),
    'spectrogram and video': (
        functools.partial(
            audio_visual_classifier,
            num_classes=3,
            inputs=dict(
                min_padding=1,
                spectrogram=dict(patch=(2, 2), num_bands=2, max_resolution=(4,)),
                video=VIDEO,
            ),
        ),
        {'spectrogram': IMAGES[:, :, :4, 0], 'video': FRAMES},
    ),
    'ResNet': (_baseline('resnet', blocks=(1, 1), channels=4), IMAGES),
    'ViT': (
        _baseline('vit', patch_size=3, channels=8, self_attend=NARROW, num_self_attends=1),
        IMAGES,
    ),
    'Transformer of pixels': (
        _baseline('transformer', channels=8, self_attend=NARROW, num_self_attends=1),
        IMAGES,
    ),
    'Transformer of points': (
        _baseline(
            *('transformer', point_baseline, dict(num_bands=2, max_resolution=(8, 8, 8))),
            **dict(channels=8, self_attend=NARROW, num_self_attends=1),
        ),
        IMAGES.reshape(4, 64, -1)[:, :, :3],
    ),
    'autoencoder': (_reconstruct, {'video': FRAMES, 'audio': SOUND}),
    'autoencoder, some outputs': (_reconstruct_some, {'video': FRAMES, 'audio': SOUND}),
}
