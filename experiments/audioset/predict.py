"""Predictions for sounds, and videos with sound."""

import argparse
from collections.abc import Iterator

import numpy as np

from experiments.classes import NUM_BEST, class_names, some_inputs
from perceiver_jax.errors import Refused


def classify_clips(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'sounds or videos')
    names = class_names(model, arguments.classes)
    for path in paths:
        scores = score_clip(model, path, arguments.start or 0.0)
        order = np.argsort(-scores, kind='stable')[:NUM_BEST].tolist()
        best = [{'label': names[i], 'probability': float(scores[i])} for i in order]
        yield {'input': path, 'best': best, 'files': []}


def score_clip(model, path: str, start: float = 0.0) -> np.ndarray:
    """The probability of each class, averaged over windows that overlap by half.

    Args:
      model: a `Pretrained` audio-visual classifier.
      path: a file of sound or of video.
      start: seconds from the beginning of the file.

    Returns:
      float64 [K]; they do not sum to 1, as several classes can be there.

    Raises:
      ValueError: there is not in the file what the model takes.
    """
    from experiments.audioset.task import model_inputs
    from experiments.audioset.transforms import ClipShape, EvalTransform
    from experiments.data.clip_files import LEFT_OUT, read_clip
    from perceiver_jax.front_ends import read_audio

    front_end, frames = model.front_end, []
    modalities, rate = front_end['modalities'], front_end['sample_rate']
    has_video = 'video' in modalities
    if has_video:
        sound, frames, wrong = read_clip(path, start, None, with_frames=True)
        if wrong.keys() & LEFT_OUT.keys():
            raise Refused(f'{path}: ' + '; '.join(f'{k}: {v}' for k, v in wrong.items()))
    else:
        sound = read_audio(path, rate, start).mean(1)
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
        heard = example['sound'][first * shape.samples_per_frame :][None, : shape.num_samples]
        seen = example['video'][None, first : first + shape.num_frames] if has_video else None
        logits = model(model_inputs(heard, seen, modalities, rate, front_end['log_mel']))
        scores.append(1 / (1 + np.exp(-np.asarray(logits[0], np.float64))))
    if not np.isfinite(scores).all():
        raise Refused('the model gives no finite logits: its weights may have diverged')
    return np.mean(scores, axis=0)
