"""Predictions for shapes: their classes, and what the model attends to."""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.classes import (
    DEFAULT,
    Shown,
    attention_maps,
    best_classes,
    classify_each,
    cross_attends,
    probabilities,
    saliency,
    shown_attention,
)
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes', 'attention', 'latents')  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Classifies each input; see `classify_each` and `classify_shape`."""
    shown = shown_attention(model, arguments)
    return classify_each(functools.partial(classify_shape, shown=shown), model, arguments, 'shapes')


def classify_shape(
    model: Pretrained, path: str, out: str, names: Sequence[str], shown: Shown = DEFAULT
) -> dict:
    """Classifies one shape, and draws what the first cross-attends attend to.

    Of a model without them it draws the saliency of the points.

    Args:
      model: A point classifier.
      path: A file of a mesh, on whose surface points are sampled, or of points.
      out: Folder that the picture is written to.
      names: Names of the classes.
      shown: What the picture shows.

    Returns:
      `input`, the `best` classes with their probabilities, and the `files` written.

    Raises:
      Refused: The file is no shape.
    """
    from experiments.modelnet40.files import read_cloud
    from experiments.pictures.predictions import write_cloud_attention, write_cloud_saliency
    from perceiver_jax.front_ends import prepare_points

    num_points = model.front_end['num_points']
    encoded, rng = Path(path).read_bytes(), np.random.default_rng(0)
    points = read_cloud(encoded, num_points, rng, path)
    try:
        points = prepare_points(points)
    except Refused as error:
        raise Refused(f'{path}: {error}') from error
    Path(out).mkdir(parents=True, exist_ok=True)
    best = best_classes(probabilities(model(points[None])[0], 'softmax'), names)
    answer = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    title = f'{Path(path).name}: {answer}'
    if not cross_attends(model):
        picture = Path(out, f'{Path(path).stem}_saliency.png')
        write_cloud_saliency(picture, points, saliency(model, points[None])[0], title)
        return {'input': path, 'best': best, 'files': [str(picture)]}
    attention = attention_maps(model, points[None], shown)
    picture = Path(out, f'{Path(path).stem}_attention.png')
    what = 'logits' if shown.logits else 'attention'
    write_cloud_attention(picture, points, attention, title, what=what, latents=shown.latents)
    return {'input': path, 'best': best, 'files': [str(picture)]}
