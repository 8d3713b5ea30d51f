"""The models whose weights DeepMind released: which function of `models`, and its arguments.

Source: DeepMind's release of Perceiver IO (google-deepmind/deepmind-research, folder perceiver);
parameters under CC BY 4.0. Hugging Face's hub holds the same weights under other names.
"""

from typing import Any, NamedTuple

LICENCE = 'CC BY 4.0'  # of the released parameters; attribution: DeepMind


class Released(NamedTuple):
    """One model of the release.

    Attributes:
      function: Name of a function of `perceiver_jax.models`.
      arguments: Keyword arguments of the function, but `is_training`.
      front_end: What inputs go through before, as arguments of `perceiver_jax.front_ends`.
      description: What the model is, and its place in the paper.
    """

    function: str
    arguments: dict[str, Any]
    front_end: dict[str, Any]
    description: str


def _image_classifier(kind: str, inputs: dict, *, use_query_residual: bool) -> Released:
    return Released(
        function='image_classifier',
        arguments=dict(
            num_classes=1000,
            inputs=inputs,
            encoder=dict(
                num_latents=512,
                latent_channels=1024,
                num_cross_attends=1,
                num_blocks=8,
                num_self_attends_per_block=6,
                cross_attend=dict(num_heads=1),
                self_attend=dict(num_heads=8),
            ),
            decoder=dict(
                query_channels=1024, cross_attend=dict(use_query_residual=use_query_residual)
            ),
        ),
        front_end=dict(
            size=224,
            crop_fraction=0.875,
            mean=[0.485, 0.456, 0.406],
            std=[0.229, 0.224, 0.225],
        ),
        description=f'Perceiver IO on ImageNet, {kind} (table 7, configuration A).',
    )


_VIDEO_POSITIONS = dict(num_bands=32, max_resolution=[16, 56, 56])
_AUDIO_POSITIONS = dict(num_bands=192, max_resolution=[30720])

RELEASED = {
    'imagenet_fourier': _image_classifier(
        'Fourier positions',
        dict(contents='pixels', positions='fourier', num_bands=64, max_resolution=[224, 224]),
        use_query_residual=True,
    ),
    'imagenet_learned': _image_classifier(
        'learned positions',
        dict(
            contents='conv1x1',
            contents_channels=256,
            positions='learned',
            position_channels=256,
            position_init_std=0.02,
            project_positions_to=256,
        ),
        use_query_residual=False,
    ),
    'imagenet_conv': _image_classifier(
        'convolutional preprocessing',
        dict(
            contents='conv7x7',
            contents_channels=64,
            positions='fourier',
            num_bands=64,
            max_resolution=[56, 56],
        ),
        use_query_residual=True,
    ),
    'optical_flow': Released(
        function='optical_flow',
        arguments=dict(
            inputs=dict(channels=64, patch_size=3, num_bands=64, max_resolution=[368, 496]),
            encoder=dict(
                num_latents=2048,
                latent_channels=512,
                num_blocks=1,
                num_self_attends_per_block=24,
                self_attend=dict(num_heads=16),
            ),
            decoder=dict(cross_attend=dict(use_query_residual=False), zero_init_output=True),
        ),
        front_end=dict(tile=[368, 496]),
        description='Perceiver IO for optical flow, trained on AutoFlow (table 3).',
    ),
    'mlm_bytes': Released(
        function='masked_language_model',
        arguments=dict(
            inputs=dict(vocabulary_size=262, channels=768, max_length=2048),
            encoder=dict(
                num_latents=256,
                latent_channels=1280,
                num_blocks=1,
                num_self_attends_per_block=26,
                cross_attend=dict(num_heads=8, qk_channels=256, v_channels=1280),
                self_attend=dict(num_heads=8, qk_channels=256, v_channels=1280),
            ),
            decoder=dict(
                cross_attend=dict(
                    num_heads=8, qk_channels=256, v_channels=768, use_query_residual=False
                )
            ),
        ),
        front_end=dict(length=2048),
        description='Perceiver IO as a masked language model of UTF-8 bytes (table 1).',
    ),
    'video_autoencoding': Released(
        function='video_autoencoder',
        arguments=dict(
            num_classes=700,
            inputs=dict(
                video=dict(patch=[1, 4, 4], **_VIDEO_POSITIONS),
                audio=dict(samples_per_patch=16, **_AUDIO_POSITIONS),
                min_padding=4,
            ),
            encoder=dict(
                num_latents=784,
                latent_channels=512,
                num_blocks=1,
                num_self_attends_per_block=8,
                self_attend=dict(num_heads=8),
            ),
            queries=dict(
                video=_VIDEO_POSITIONS,
                audio=_AUDIO_POSITIONS,
                label_channels=1024,
                min_padding=2,
                endpoint=False,
            ),
            decoder=dict(output_channels=512, cross_attend=dict(use_query_residual=False)),
        ),
        front_end=dict(num_frames=16, size=224, frames_per_second=25, sample_rate=48000),
        description='Perceiver IO autoencoding video, sound and label of Kinetics-700 (table 4).',
    ),
}
