"""Predictions for shapes."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.classes import best_classes, class_names, cross_attends, some_inputs, title_of


def classify_shapes(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'shapes')
    names = class_names(model, arguments.classes)
    for path in paths:
        yield classify_shape(model, path, arguments.out, names)


def classify_shape(model, path: str, out: str, names: Sequence[str]) -> dict:
    """Labels one shape and draws what the first cross-attends look at.

    Args:
      model: a `Pretrained` point classifier.
      path: a mesh, of whose surface points are drawn, or points.
      out: folder of the picture.
      names: of the classes.

    Returns:
      `input`, the `best` labels with their probabilities, and the `files` written.

    Raises:
      ValueError: the file is no shape.
    """
    from experiments.modelnet40.files import read_cloud
    from experiments.pictures.predictions import write_cloud_attention
    from perceiver_jax.front_ends import prepare_points

    num_points = model.front_end['num_points']
    encoded, rng = Path(path).read_bytes(), np.random.default_rng(0)
    points = prepare_points(read_cloud(encoded, num_points, rng, path))
    Path(out).mkdir(parents=True, exist_ok=True)
    best = best_classes(model(points[None])[0], names)
    attention = {
        title_of(module): np.asarray(model.attention(module, points[None])[0]).mean(0)
        for module in cross_attends(model)
    }
    picture = Path(out, f'{Path(path).stem}_attention.png')
    title = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    write_cloud_attention(picture, points, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}
