"""What the predictions of all classifiers share."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perceiver_jax.errors import Refused

NUM_BEST = 5  # classes


def cross_attends(model) -> list[str]:
    """The first cross-attends of an encoder, those with weights of their own."""
    modules = ('encoder/cross_attend_1', 'encoder/cross_attend_2')
    return [module for module in modules if f'{module}/attention/query' in model.params]


def title_of(module: str) -> str:
    """'encoder/cross_attend_1' -> 'Cross-attend 1'."""
    return f'Cross-attend {module.rpartition("_")[-1]}'


def class_names(model, path: str | None) -> list[str]:
    """Names of a model's classes: from a file, else the model's own, else their numbers.

    Args:
      model: a `Pretrained` with `num_classes` among its arguments.
      path: a text file with one name a line, or a .csv with a header and a column `name`.

    Raises:
      ValueError: the file holds another number of names than the model has classes, or is no
        such file.
    """
    count = model.arguments['num_classes']
    if path is None:
        return list(model.classes or [f'class {i}' for i in range(count)])
    try:
        text = Path(path).read_text('utf-8-sig')
    except UnicodeDecodeError as error:
        raise Refused(f'{path}: expected UTF-8, {error.reason} at byte {error.start}') from error
    names = [line for line in text.splitlines() if line.strip()]
    if Path(path).suffix.lower() == '.csv':
        rows = csv.DictReader(names)
        if 'name' not in (rows.fieldnames or []):
            raise Refused(f'{path}: expected a column `name`, got {rows.fieldnames}')
        names = [row['name'] for row in rows]
        if not all(names):
            raise Refused(f'{path}: row {[*map(bool, names)].index(False) + 1} has no name')
    if len(names) != count:
        raise Refused(f'{path}: expected the names of {count} classes, got {len(names)}')
    return names


def best_classes(logits, names: Sequence[str]) -> list[dict]:
    """The likeliest classes, the best first, with their probabilities."""
    probabilities = softmax(logits)
    if not np.isfinite(probabilities).all():
        raise Refused('the model gives no finite logits: its weights may have diverged')
    order = np.argsort(-probabilities, kind='stable')[:NUM_BEST].tolist()
    return [{'label': names[i], 'probability': float(probabilities[i])} for i in order]


def some_inputs(paths: Sequence[str], what: str) -> Sequence[str]:
    """Refuses none, and two whose outputs would be the same file."""
    if not paths:
        raise Refused(f'INPUT: expected {what}, got none')
    stems = [Path(path).stem for path in paths]
    for stem in stems:
        if stems.count(stem) > 1:
            raise Refused(f'INPUT: {stems.count(stem)} are called {stem!r}; run them apart')
    return paths


def softmax(logits) -> np.ndarray:
    """Probabilities over the last axis, float64."""
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)
