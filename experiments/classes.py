"""What the predictions of several tasks share: inputs, probabilities, names of classes."""

import argparse
import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.tables import read_names
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

NUM_BEST = 5  # classes
MOST_DRAWN = 512  # latents in a picture


def some_inputs(paths: Sequence[str], what: str) -> Sequence[str]:
    """Checks that there are inputs, and that no two would write the same output file.

    Args:
      paths: The inputs of the command line.
      what: What the inputs should be, such as 'images'; for the message.

    Returns:
      The same paths.

    Raises:
      Refused: There are none, or two differ only in their folder or suffix.
    """
    if not paths:
        raise Refused(f'INPUT: expected {what}, got none')
    (stem, count), *_ = collections.Counter(Path(path).stem for path in paths).most_common(1)
    if count > 1:
        raise Refused(f'INPUT: {count} are called {stem!r}; run them apart')
    return paths


def predict_each(predict: Callable[[str], dict], paths: Sequence[str]) -> Iterator[dict]:
    """Predicts for one input after the other, and goes on after one that cannot be used.

    Args:
      predict: Function of the path of an input.
      paths: The inputs.

    Yields:
      What `predict` returns for each input; or, where it refuses it or a file cannot be read or
      written, the `input` and the `error`, which names it.
    """
    for path in paths:
        try:
            result = predict(path)
        except Refused as error:
            result = {'input': path, 'error': ' '.join(str(error).split())}
        except OSError as error:
            if error.filename is None:
                raise
            result = {'input': path, 'error': f'{error.filename}: {error.strerror}'}
        if path not in result.get('error', path):
            result['error'] = f'{path}: {result["error"]}'
        yield result


def classify_each(
    classify: Callable[[Pretrained, str, str, Sequence[str]], dict],
    model: Pretrained,
    arguments: argparse.Namespace,
    what: str,
) -> Iterator[dict]:
    """Classifies the inputs of a command line, one after the other.

    Args:
      classify: Function of the model, the path of an input, the folder of the pictures and the
        names of the classes.
      model: A classifier.
      arguments: The command line: `inputs`, `classes`, `out`.
      what: What the inputs are, such as 'images', for the error where there are none.

    Yields:
      What `predict_each` does: what `classify` returns for each input, or why it cannot be used.

    Raises:
      Refused: There are no inputs, or two of one name, or the file of classes cannot be used.
    """
    paths = some_inputs(arguments.inputs, what)
    names = class_names(model, arguments.classes)
    yield from predict_each(lambda path: classify(model, path, arguments.out, names), paths)


def class_names(model: Pretrained, path: str | None) -> list[str]:
    """Returns names of a model's classes: from a file, else the model's own, else their numbers.

    Args:
      model: A model with `num_classes` among its arguments.
      path: A text file with one name a line; a .csv with a header and a column `name`, or with
        AudioSet's columns `index` and `display_name`. None: the names are the model's own.

    Returns:
      As many names as the model has classes.

    Raises:
      Refused: The file holds another number of names, or is no such file; names it and the line.
    """
    count = model.arguments['num_classes']
    if path is None:
        known = list(model.classes or [])  # of fewer classes than logits, in weights of before
        return known + [f'class {i}' for i in range(len(known), count)]
    names = read_names(Path(path))
    if len(names) != count:
        raise Refused(f'{path}: expected the names of {count} classes, got {len(names)}')
    return names


def probabilities(logits: jax.Array | np.ndarray, activation: str | None) -> np.ndarray:
    """Turns logits into probabilities, the way the model was trained and evaluated.

    Args:
      logits: Logits `[..., K]`.
      activation: 'softmax', where one of K classes is true, or 'sigmoid', where each may be.

    Returns:
      Probabilities `[..., K]`, float64. Only those of a softmax sum to 1.

    Raises:
      Refused: The activation is another one, or a logit is not finite.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise Refused('the model gives no finite logits: its weights may have diverged')
    if activation == 'softmax':
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        return odds / odds.sum(-1, keepdims=True)
    if activation == 'sigmoid':
        return np.exp(-np.logaddexp(0, -logits))  # 1 / (1 + exp(-logits)), without overflow
    raise Refused(
        'the model does not say how its logits become probabilities: activation: expected '
        f"'softmax' or 'sigmoid', got {activation!r}"
    )


def best_classes(chances: np.ndarray, names: Sequence[str]) -> list[dict]:
    """Returns the likeliest classes.

    Args:
      chances: The probability of each class, `[K]`.
      names: Names of the K classes.

    Returns:
      `label` and `probability` of up to `NUM_BEST` classes, the likeliest first.
    """
    order = np.argsort(-chances, kind='stable')[:NUM_BEST].tolist()
    return [{'label': names[i], 'probability': float(chances[i])} for i in order]


class Shown(NamedTuple):
    """What a picture shows of attention.

    Attributes:
      logits: Whether what is before the softmax, and not the weights.
      latents: The latents that are drawn; None: some, as the picture chooses.
    """

    logits: bool = False
    latents: Sequence[int] | None = None

    @property
    def one_head(self) -> bool:
        """Whether the first head is shown, and not the mean of all."""
        return self.logits or self.latents is not None


DEFAULT = Shown()


def shown_attention(model: Pretrained, arguments: argparse.Namespace) -> Shown:
    """Returns what the command line asks to see of attention.

    Args:
      model: A classifier.
      arguments: The command line: `attention` and `latents`, ranges of latents.

    Raises:
      Refused: The model has no encoder, or the encoder no such latents, or they are too many for a
        picture.
    """
    logits = arguments.attention == 'logits'
    if (logits or arguments.latents is not None) and 'encoder' not in model.params:
        flag = '--attention=logits' if logits else '--latents'
        raise Refused(f'{flag}: expected a Perceiver, got {model.function} without latents')
    if arguments.latents is None:
        return Shown(logits)
    count = len(model.params['encoder']['latents'])
    for some in arguments.latents:
        if some.stop > count:
            raise Refused(f'--latents: expected 0 to {count - 1}, got {some.stop - 1}')
    latents = list(dict.fromkeys(i for some in arguments.latents for i in some))
    if len(latents) > MOST_DRAWN:
        raise Refused(f'--latents: expected up to {MOST_DRAWN}, got {len(latents)} latents')
    return Shown(logits, latents)


def attention_maps(model: Pretrained, inputs: np.ndarray, shown: Shown) -> Mapping[str, np.ndarray]:
    """Computes what an encoder's first cross-attends attend to, for one example.

    Args:
      model: A model with an encoder.
      inputs: What it is called with, a batch of one.
      shown: What to show.

    Returns:
      Title of each cross-attend -> `[N, M]`, a row for each latent.
    """
    maps = {}
    for module in cross_attends(model):
        heads = np.asarray(model.attention(module, inputs, logits=shown.logits)[0])  # [H, N, M]
        title = title_of(module)
        if shown.one_head and len(heads) > 1:
            title += f', head 1 of {len(heads)}'
        maps[title] = heads[0] if shown.one_head else heads.mean(0)
    return maps


def saliency(forward: Callable[[jax.Array], jax.Array], inputs: np.ndarray) -> np.ndarray:
    """Computes how much each element changes the logit of its example's best class.

    For models that attend to no inputs: what else can be shown of what they look at.

    Args:
      forward: Makes logits `[B, K]` of inputs; pure.
      inputs: `[B, ..., C]`, such as images.

    Returns:
      `[B, ...]`, the norms of the gradients of the elements.

    Source: Simonyan et al., "Deep inside convolutional networks" (arXiv 1312.6034), section 3.
    """
    gradient = jax.grad(lambda x: forward(x).max(-1).sum())(jnp.asarray(inputs))
    return np.linalg.norm(gradient, axis=-1)


def cross_attends(model: Pretrained) -> list[str]:
    """Returns the module names of an encoder's first cross-attends.

    Those are the cross-attends with weights of their own: the later ones share the second's.

    Args:
      model: A model with an encoder.

    Returns:
      One or two names, as `Pretrained.attention` takes them.
    """
    modules = ('encoder/cross_attend_1', 'encoder/cross_attend_2')
    return [module for module in modules if f'{module}/attention/query' in model.params]


def title_of(module: str) -> str:
    """Returns the title of a cross-attend: 'encoder/cross_attend_1' -> 'Cross-attend 1'."""
    return f'Cross-attend {module.rpartition("_")[-1]}'
