"""Loads models with their weights: ours, DeepMind's, Hugging Face's, and those of the hub."""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_jax.errors import Refused, reading
from perceiver_jax.files import read_json
from perceiver_jax.weights import foreign_files, huggingface_config, translation
from perceiver_jax.weights.hub import locate
from perceiver_jax.weights.pretrained import FORMAT, Pretrained, check_weights, model_of
from perceiver_jax.weights.released import LICENCE, RELEASED
from perceiver_jax.weights.trees import Arrays, flatten
from perceiver_jax.weights.upgrade import upgrade_arguments

FORMAT_BEFORE = 'perceiver_jax 1'  # with other keys of the arguments, and without `activation`
_FIELDS = [f.name for f in dataclasses.fields(Pretrained) if f.name not in ('params', 'state')]


def load(
    path: str | os.PathLike,
    *,
    arguments: Mapping[str, Any] | None = None,
    front_end: Mapping[str, Any] | None = None,
    conv_kernel: str = 'hub',
) -> Pretrained:
    """Loads a model and its weights.

    Args:
      path: One of
        - a folder that `Pretrained.save` wrote;
        - DeepMind's `.pystate` or `.pickle`, read without running anything in it;
        - Hugging Face's `.safetensors` or `.bin` (which needs torch), or the folder of such a file;
          a `config.json` of transformers beside it says the arguments, see
          `huggingface_config.from_config` for what is exact then and what is not;
        - a name on Hugging Face's hub, such as 'deepmind/vision-perceiver-fourier', where nothing
          lies at that path: it is fetched by `huggingface_hub`, once.
      arguments: Keyword arguments of the model; they take the place of those that are found, in a
        folder of ours too. A file without any is taken for the released model that its parameters'
        names belong to.
      front_end: What inputs go through before, in the same way.
      conv_kernel: Layout of the 7x7 kernel in Hugging Face's files: 'hub' as published, where
        height and width are swapped, or 'transformers' for one that was trained there.

    Returns:
      The model, ready to be called.

    Raises:
      Refused: The file is of none of these kinds or damaged, or what it holds does not fit the
        model: what is missing, left over and of another shape is named, the first of each.
    """
    path = locate(path)
    if (path / 'model.json').is_file():
        return _load_ours(path, arguments, front_end)
    if (path.parent / 'model.json').is_file():
        raise Refused(f'{path} is a part of a model: load its folder, {path.parent}.')
    if (path / 'checkpoints').is_dir():
        raise Refused(f'{path} is a run: `experiments.open_model.open_model` loads it.')
    config: Mapping[str, Any] = {}
    config_file, kind_of_config = None, None
    if _is_huggingface(path):
        config_file = huggingface_config.find_config(path)
        if config_file is not None:
            config, kind_of_config = huggingface_config.read_config(config_file)
    kind, params, state = _read_foreign(path, conv_kernel)
    released = RELEASED[kind]
    described = huggingface_config.Described(released.arguments, released.front_end, None, 'usual')
    if config_file is not None:
        if kind_of_config not in (kind, None):
            raise Refused(
                f'{config_file}: architectures is {config["architectures"]}, but {path} has the '
                f'parameters of {kind}.'
            )
        described = huggingface_config.from_config(config, kind, config_file)
    classes = described.classes
    if arguments is not None and arguments.get('num_classes') != (
        described.arguments.get('num_classes')
    ):
        classes = None  # they are of other logits
    is_released = arguments is None and described.arguments == released.arguments
    model = Pretrained(
        function=released.function,
        arguments=described.arguments if arguments is None else arguments,
        front_end=described.front_end if front_end is None else front_end,
        params=params,
        state=state,
        classes=classes,
        description=released.description if is_released else '',
        licence=LICENCE if is_released else '',
        activation=described.activation,
    )
    check_weights(model, path if config_file is None else f'{path} (by its config.json)')
    return model


def read_bare(
    path: str | os.PathLike,
    arguments: Mapping[str, Any],
    front_end: Mapping[str, Any],
    *,
    conv_kernel: str = 'hub',
) -> Pretrained:
    """Reads weights as a model of these arguments, without a look at whether they fit.

    Args:
      path: A file of DeepMind's or Hugging Face's, or what else of theirs `load` takes.
      arguments: Keyword arguments of the model.
      front_end: What its inputs go through before; where the weights have learned positions of a
        square image, its size becomes theirs.
      conv_kernel: Layout of the 7x7 kernel in Hugging Face's files; see `load`.

    Returns:
      The weights, under the function that their names belong to.

    Raises:
      Refused: There is no such file, it is damaged, or its names are of no model that is known.
    """
    kind, params, state = _read_foreign(locate(path), conv_kernel)
    positions = params.get('inputs/position_encoding', {}).get('positions')
    if positions is not None and 'size' in front_end:
        side = math.isqrt(len(positions)) * (4 if 'inputs/conv7x7' in params else 1)
        front_end = {**front_end, 'size': side}
    return Pretrained(RELEASED[kind].function, arguments, front_end, params, state)


def _read_foreign(path: Path, conv_kernel: str) -> tuple[str, Arrays, Arrays]:
    """Reads a foreign file: the kind of its model, its parameters and its state as ours."""
    if _is_huggingface(path):
        tensors = foreign_files.read_huggingface(path)
        translate = functools.partial(
            translation.from_huggingface, tensors, conv_kernel=conv_kernel
        )
    else:
        translate = functools.partial(translation.from_deepmind, *foreign_files.read_deepmind(path))
    try:
        params, state = translate()
        return translation.recognise(flatten(params, state)), params, state
    except Refused as error:
        raise Refused(f'{path}: {error}') from None


def carries_arguments(path: str | os.PathLike) -> bool:
    """Returns whether weights say the arguments of their model, or are a bare file of weights.

    Args:
      path: What `load` takes, or the folder of a run.

    Returns:
      True for a folder that `Pretrained.save` wrote, for a run, and for Hugging Face's weights
      beside a `config.json` of transformers. What bare files are loaded with is an assumption, of
      which only the shapes are checked.

    Raises:
      Refused: There is nothing at the path or of that name, or a `config.json` that is not JSON.
    """
    path = locate(path)
    if (path / 'model.json').is_file() or (path / 'checkpoints').is_dir():
        return True
    return _is_huggingface(path) and huggingface_config.find_config(path) is not None


def _is_huggingface(path: Path) -> bool:
    return path.is_dir() or path.suffix in ('.safetensors', '.bin', '.json')


def _load_ours(
    path: Path, arguments: Mapping[str, Any] | None, front_end: Mapping[str, Any] | None
) -> Pretrained:
    from safetensors.numpy import load_file

    about = read_json(path / 'model.json', f'one of {FORMAT}')
    try:
        form, sha256 = about.pop('format'), about.pop('sha256')
        if form == FORMAT_BEFORE:
            about['arguments'] = upgrade_arguments(about['arguments'])
            about['activation'] = 'usual'
        elif form != FORMAT:
            raise Refused('another format')
        about = {name: about[name] for name in _FIELDS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f'{path}/model.json is not one of {FORMAT}: {error!r:.200}') from None
    weights = path / 'weights.safetensors'
    if not weights.is_file() or _sha256(weights) != sha256:
        raise Refused(f'{weights} is missing or not the one that model.json was written with.')
    trees: dict[str, Arrays] = {'params': {}, 'state': {}}
    with reading(weights, 'weights'):
        arrays = load_file(weights)
    for key, value in arrays.items():
        kind, *names = key.split(':')
        if kind not in trees or len(names) != 2:
            raise Refused(f'{weights} holds something else than weights: {key!r:.80}')
        trees[kind].setdefault(names[0], {})[names[1]] = value
    if arguments is not None:
        about['arguments'] = arguments
    if front_end is not None:
        about['front_end'] = front_end
    return model_of(about, trees, path)


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
