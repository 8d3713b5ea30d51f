"""Predictions for sounds, and videos with sound: their classes."""

import argparse
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from experiments.classes import best_classes, class_names, predict_each, probabilities
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes', 'start')  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Classifies each input.

    Args:
      model: An audio-visual classifier.
      arguments: The command line: `inputs`, `classes`, `start`.

    Yields:
      What `predict_each` does: for each input the `input`, the `best` classes with their
      probabilities, and no `files`; or why it cannot be used.

    Raises:
      Refused: There are no inputs, or the file of classes cannot be used.
    """
    if not arguments.inputs:
        raise Refused('INPUT: expected sounds or videos, got none')
    names = class_names(model, arguments.classes)

    def classify(path: str) -> dict:
        scores = score_clip(model, path, arguments.start or 0.0)
        return {'input': path, 'best': best_classes(scores, names), 'files': []}

    yield from predict_each(classify, arguments.inputs)


def score_clip(model: Pretrained, path: str, start: float = 0.0) -> np.ndarray:
    """Computes the probability of each class, averaged over windows that overlap by half.

    Args:
      model: An audio-visual classifier. Its `activation` decides what the probabilities are: of
        each class by itself ('sigmoid'), or of one class among all ('softmax').
      path: A file of sound or of video.
      start: Seconds from the beginning of the file.

    Returns:
      Probabilities `[K]`, float64. Those of a sigmoid do not sum to 1.

    Raises:
      Refused: The file lacks sound or video that the model takes, or the model has no activation.
    """
    from experiments.audioset.task import model_inputs
    from experiments.audioset.transforms import ClipShape, EvalTransform

    front_end = model.front_end
    modalities, rate = front_end['modalities'], front_end['sample_rate']
    has_video = 'video' in modalities
    sound, frames = _read(path, start, rate, has_video)
    shape = ClipShape(
        num_frames=front_end['num_frames'],
        frames_per_second=front_end['frames_per_second'],
        sample_rate=rate,
        size=front_end['size'] if has_video else 0,
    )
    num_frames = max(shape.num_frames, -(-len(sound) // shape.samples_per_frame))
    transform = EvalTransform(
        shape=shape,
        num_classes=model.arguments['num_classes'],
        num_windows=-(-2 * num_frames // shape.num_frames) - 1,
        clip_seconds=num_frames / shape.frames_per_second,
        crop_fraction=front_end['crop_fraction'],
    )
    example = transform({'name': path, 'sound': sound, 'frames': frames, 'labels': []})
    scores = []
    for first in example['starts'].tolist():
        first_sample = first * shape.samples_per_frame
        heard = jnp.asarray(example['sound'][None, first_sample : first_sample + shape.num_samples])
        seen = None
        if has_video:
            seen = jnp.asarray(example['video'][None, first : first + shape.num_frames])
        inputs = model_inputs(
            heard, seen, modalities, rate, front_end['log_mel'], front_end.get('loudness_db')
        )
        scores.append(probabilities(model(inputs)[0], model.activation))
    # As in evaluation, probabilities are averaged, not logits.
    return np.mean(scores, axis=0)


def _read(path: str, start: float, rate: int, has_video: bool) -> tuple[np.ndarray, list[bytes]]:
    """Reads mono sound `[n]`, and the frames as JPEG files if there is video."""
    from experiments.data.clip_files import LEFT_OUT, read_clip
    from perceiver_jax.front_ends import read_audio

    if not has_video:
        return read_audio(path, rate, start).mean(1), []
    sound, frames, wrong = read_clip(path, start, None, with_frames=True)
    if wrong.keys() & LEFT_OUT.keys():
        raise Refused(f'{path}: ' + '; '.join(f'{k}: {v}' for k, v in wrong.items()))
    return sound, frames
