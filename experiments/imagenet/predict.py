"""Predictions for images: their classes, and what the model attends to."""

import argparse
import warnings
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
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes',)  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Classifies each input; see `classify_each` and `classify`."""
    return classify_each(classify, model, arguments, 'images')


def classify(model: Pretrained, path: str, out: str, names: Sequence[str]) -> dict:
    """Classifies one image, and draws what the first cross-attends attend to.

    Args:
      model: An image classifier.
      path: An image file.
      out: Folder that the picture is written to.
      names: Names of the classes.

    Returns:
      `input`, the `best` classes with their probabilities, and the `files` written.

    Raises:
      Refused: The file is no image.
    """
    from experiments.imagenet.transforms import is_coloured
    from experiments.pictures.predictions import write_attention
    from perceiver_jax.front_ends import prepare_image, read_image
    from perceiver_jax.inputs import as_images

    front_end, channels = model.front_end, len(model.front_end['mean'])
    image = prepare_image(read_image(path, channels), **front_end)
    if channels == 1 and is_coloured(Path(path).read_bytes()):
        warnings.warn(f'{path} is in colour, and the model sees it in grey', stacklevel=2)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    best = best_classes(probabilities(model(image[None])[0], 'softmax'), names)
    seed = model.arguments['inputs'].get('permutation_seed')
    attention = {}
    for module in cross_attends(model):
        weights = np.asarray(model.attention(module, image[None])[0])  # [heads, latents, pixels]
        attention[title_of(module)] = as_images(weights.mean(0), seed)
    seen = np.clip(image * front_end['std'] + front_end['mean'], 0, 1)
    if seen.shape[-1] == 1:
        seen = seen[..., 0]
    picture = Path(out, f'{Path(path).stem}_attention.png')
    answer = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    title = f'{Path(path).name}: {answer}'
    write_attention(picture, seen, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}
