"""Images, sound and video."""

import functools
import tempfile
from pathlib import Path

import cv2
import numpy as np
import soundfile

from tests.faults.door import Sample, door
from tests.toys.known_model import make_clip


def _image(ending, folder):
    from perceiver_jax.front_ends.images import read_image

    file = folder / f'image{ending}'
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)
    file.write_bytes(cv2.imencode(ending, pixels)[1].tobytes())
    return Sample(file, lambda: read_image(file))


@door('perceiver_jax.front_ends.images.read_image')
def png(folder):
    return _image('.png', folder)


@door('perceiver_jax.front_ends.images.read_image')
def jpeg(folder):
    return _image('.jpg', folder)


@door('perceiver_jax.front_ends.images.read_image')
def webp(folder):
    return _image('.webp', folder)


@door('perceiver_jax.front_ends.images.read_image')
def tiff(folder):
    return _image('.tiff', folder)


def tone(folder, ending):
    file = folder / f'sound{ending}'
    times = np.arange(4800) / 48000
    soundfile.write(file, 0.5 * np.sin(2764 * times), 48000)
    return file


@door('perceiver_jax.front_ends.media.read_audio')
def wav(folder):
    from perceiver_jax.front_ends.media import read_audio

    file = tone(folder, '.wav')
    return Sample(file, lambda: read_audio(file))


@door('perceiver_jax.front_ends.media.read_audio')
def flac(folder):
    from perceiver_jax.front_ends.media import read_audio

    file = tone(folder, '.flac')
    return Sample(file, lambda: read_audio(file))


@functools.cache
def _clip():
    with tempfile.TemporaryDirectory() as folder:
        make_clip(f'{folder}/clip.mp4')
        return Path(folder, 'clip.mp4').read_bytes()


@door('perceiver_jax.front_ends.media.read_video', slow=2)
def mp4(folder):
    from perceiver_jax.front_ends.media import read_video

    file = folder / 'clip.mp4'
    file.write_bytes(_clip())
    return Sample(file, lambda: read_video(file, 4, 8))


@door('experiments.data.clip_files.read_clip', slow=2)
def clip(folder):
    from experiments.data.clip_files import read_clip

    file = folder / 'clip.mp4'
    file.write_bytes(_clip())
    return Sample(file, lambda: read_clip(file, 0.0, None, True))
