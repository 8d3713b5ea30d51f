"""Predictions for shapes: their classes, and what the model attends to."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.classes import (
    best_classes,
    classify_each,
    cross_attends,
    probabilities,
    title_of,
)
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes',)  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Classifies each input; see `classify_each` and `classify_shape`."""
    return classify_each(classify_shape, model, arguments, 'shapes')


def classify_shape(model: Pretrained, path: str, out: str, names: Sequence[str]) -> dict:
    """Classifies one shape, and draws what the first cross-attends attend to.

    Args:
      model: A point classifier.
      path: A file of a mesh, on whose surface points are sampled, or of points.
      out: Folder that the picture is written to.
      names: Names of the classes.

    Returns:
      `input`, the `best` classes with their probabilities, and the `files` written.

    Raises:
      Refused: The file is no shape.
    """
    from experiments.modelnet40.files import read_cloud
    from experiments.pictures.predictions import write_cloud_attention
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
    attention = {}
    for module in cross_attends(model):
        weights = np.asarray(model.attention(module, points[None])[0])  # [heads, latents, points]
        attention[title_of(module)] = weights.mean(0)
    picture = Path(out, f'{Path(path).stem}_attention.png')
    answer = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    title = f'{Path(path).name}: {answer}'
    write_cloud_attention(picture, points, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}
