"""Front ends, from files to what the models take: text, images, points, sound and video.

Images need OpenCV, sound and video also PyAV: `pip install 'perceiver_jax[media]'`. Both are
imported within the functions that use them, so that text needs neither.
"""

from perceiver_jax.front_ends.images import (
    centre_crop,
    decode_image,
    normalise,
    prepare_frames,
    prepare_image,
    read_image,
    resize,
)
from perceiver_jax.front_ends.media import (
    NoSuchStream,
    frames_at,
    prepare_clip,
    read_audio,
    read_video,
    shown_frames,
    sound_pieces,
    write_clip,
)
from perceiver_jax.front_ends.points import prepare_points
from perceiver_jax.front_ends.spectrogram import log_mel, mel_filters
from perceiver_jax.front_ends.text import (
    BOS,
    CLS,
    EOS,
    MASK,
    PAD,
    SEP,
    VOCABULARY_SIZE,
    decode_text,
    encode_text,
    pad_tokens,
)

__all__ = [
    # Text
    'VOCABULARY_SIZE',
    'PAD',
    'BOS',
    'EOS',
    'MASK',
    'CLS',
    'SEP',
    'encode_text',
    'decode_text',
    'pad_tokens',
    # Images and pairs of frames
    'read_image',
    'decode_image',
    'prepare_image',
    'prepare_frames',
    'centre_crop',
    'resize',
    'normalise',
    # Points
    'prepare_points',
    # Sound and video
    'read_audio',
    'read_video',
    'prepare_clip',
    'write_clip',
    'sound_pieces',
    'frames_at',
    'shown_frames',
    'NoSuchStream',
    'log_mel',
    'mel_filters',
]
