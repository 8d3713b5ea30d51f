"""Predictions for images."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.classes import best_classes, class_names, cross_attends, some_inputs, title_of


def classify_images(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Labels each input."""
    paths = some_inputs(arguments.inputs, 'images')
    names = class_names(model, arguments.classes)
    for path in paths:
        yield classify(model, path, arguments.out, names)


def classify(model, path: str, out: str, names: Sequence[str]) -> dict:
    """Labels one image and draws what the first cross-attends look at.

    Args:
      model: a `Pretrained` image classifier.
      path: an image.
      out: folder of the picture.
      names: of the classes.

    Returns:
      `input`, the `best` labels with their probabilities, and the `files` written.

    Raises:
      ValueError: the file is no image.
    """
    from experiments.pictures.predictions import write_attention
    from perceiver_jax.front_ends import prepare_image, read_image
    from perceiver_jax.inputs import as_images

    front_end = model.front_end
    image = prepare_image(read_image(path, channels=len(front_end['mean'])), **front_end)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    best = best_classes(model(image[None])[0], names)
    attention = {}
    for module in cross_attends(model):
        weights = np.asarray(model.attention(module, image[None])[0]).mean(0)  # of the heads
        seed = model.arguments['inputs'].get('permutation_seed')
        attention[title_of(module)] = as_images(weights, seed)
    seen = np.clip(image * front_end['std'] + front_end['mean'], 0, 1)
    picture = Path(out, f'{Path(path).stem}_attention.png')
    title = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    write_attention(picture, seen[..., 0] if seen.shape[-1] == 1 else seen, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}
