"""Predictions for images: their classes, and what the model attends to."""

import argparse
import functools
import warnings
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
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('classes', 'attention', 'latents')  # of the command line


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Classifies each input; see `classify_each` and `classify`."""
    shown = shown_attention(model, arguments)
    return classify_each(functools.partial(classify, shown=shown), model, arguments, 'images')


def classify(
    model: Pretrained, path: str, out: str, names: Sequence[str], shown: Shown = DEFAULT
) -> dict:
    """Classifies one image, and draws what the first cross-attends attend to.

    Of a model without them it draws the saliency of the pixels.

    Args:
      model: An image classifier.
      path: An image file.
      out: Folder that the picture is written to.
      names: Names of the classes.
      shown: What the picture shows: logits, or chosen latents, are drawn as tiles.

    Returns:
      `input`, the `best` classes with their probabilities, and the `files` written.

    Raises:
      Refused: The file is no image.
    """
    from experiments.imagenet.transforms import is_coloured
    from experiments.pictures.predictions import (
        write_attention,
        write_attention_tiles,
        write_saliency,
    )
    from perceiver_jax.front_ends import prepare_image, read_image
    from perceiver_jax.inputs import as_images

    front_end, channels = model.front_end, len(model.front_end['mean'])
    image = prepare_image(read_image(path, channels), **front_end)
    if channels == 1 and is_coloured(Path(path).read_bytes()):
        warnings.warn(f'{path} is in colour, and the model sees it in grey', stacklevel=2)
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which may take long
    best = best_classes(probabilities(model(image[None])[0], 'softmax'), names)
    seen = np.clip(image * front_end['std'] + front_end['mean'], 0, 1)
    if seen.shape[-1] == 1:
        seen = seen[..., 0]
    answer = f'{best[0]["label"]}, {100 * best[0]["probability"]:.1f} %'
    title = f'{Path(path).name}: {answer}'
    if not cross_attends(model):
        picture = Path(out, f'{Path(path).stem}_saliency.png')
        write_saliency(picture, seen, saliency(model, image[None])[0], title)
        return {'input': path, 'best': best, 'files': [str(picture)]}
    seed = model.arguments['inputs'].get('permutation_seed')
    attention = {
        name: as_images(maps, seed)
        for name, maps in attention_maps(model, image[None], shown).items()
    }
    picture = Path(out, f'{Path(path).stem}_attention.png')
    if shown.one_head:
        write_attention_tiles(
            picture, seen, attention, title, logits=shown.logits, latents=shown.latents
        )
    else:
        write_attention(picture, seen, attention, title)
    return {'input': path, 'best': best, 'files': [str(picture)]}
