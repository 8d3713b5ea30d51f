"""Predictions of video autoencoders: clips, reconstructed and classified."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.classes import (
    best_classes,
    class_names,
    predict_each,
    probabilities,
    some_inputs,
)
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes', 'start')  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Reconstructs a clip of each input.

    Args:
      model: A video autoencoder.
      arguments: The command line: `inputs`, `classes`, `out`, `start`.

    Yields:
      What `predict_each` does: what `autoencode` returns for each input, or why it cannot be used.

    Raises:
      Refused: There are no inputs, or two of one name, or the file of classes cannot be used.
    """
    paths = some_inputs(arguments.inputs, 'videos')
    names = class_names(model, arguments.classes)
    out, start = arguments.out, arguments.start or 0.0
    yield from predict_each(lambda path: autoencode(model, path, out, names, start), paths)


def autoencode(
    model: Pretrained, path: str, out: str, names: Sequence[str], start: float = 0.0
) -> dict:
    """Reconstructs a clip with its sound, and classifies it.

    Args:
      model: A video autoencoder.
      path: A video file.
      out: Folder that the reconstruction and its picture are written to.
      names: Names of the classes.
      start: Seconds from the beginning of the video.

    Returns:
      `input`, the `best` classes with their probabilities, and the `files` written.

    Raises:
      Refused: The file is no video, or too short.
    """
    from experiments.pictures.predictions import write_clip_comparison
    from perceiver_jax.front_ends import prepare_clip, write_clip

    front_end = model.front_end
    rates = front_end['frames_per_second'], front_end['sample_rate']
    video, audio = prepare_clip(path, **front_end, start=start)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which takes a minute
    outputs = {name: np.asarray(value[0]) for name, value in model(video, audio).items()}
    stem = str(Path(out, f'{Path(path).stem}_reconstruction'))
    write_clip(f'{stem}.mp4', outputs['video'], outputs['audio'], *rates)
    videos, sounds = (video[0], outputs['video']), (audio[0], outputs['audio'])
    write_clip_comparison(f'{stem}.png', videos, sounds, *rates, start, Path(path).name)
    best = best_classes(probabilities(outputs['label'], 'softmax'), names)
    return {'input': path, 'best': best, 'files': [f'{stem}.mp4', f'{stem}.png']}
