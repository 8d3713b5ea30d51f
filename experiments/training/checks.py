"""Finds what cannot be run before anything is compiled: one `Refused` that names the key."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.run_config import upgraded
from experiments.training.config_values import MAX_STEPS, check_values
from experiments.training.optimizer import OF_ANY_LENGTH
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json

# Keys of the config that may change when a run is resumed: none of them changes the result.
FREE_KEYS = (
    'parallel',
    'data.path',
    'data.on_broken',
    'data.num_workers',
    'train.log_every_steps',
    'train.evaluate_every_steps',
    'train.checkpoint_every_steps',
    'train.keep_checkpoints',
    'evaluation.batch_size',
)
LENGTH_KEYS = {'train.steps', 'train.epochs'}  # these may, where updates do not depend on them


def check_sizes(config: ConfigDict, num_devices: int) -> None:
    """Checks all values, and that batches can be cut over the devices.

    Args:
      config: The run's configuration.
      num_devices: How many devices all processes have together.

    Raises:
      Refused: A value is not allowed; the message names its key.
    """
    check_values(config)
    sizes = config.train
    if sizes.batch_size % (num_devices * sizes.accumulate_steps):
        raise Refused(
            f'config.train.batch_size is {sizes.batch_size}, it must be a multiple of '
            f'{num_devices} devices x config.train.accumulate_steps {sizes.accumulate_steps}'
        )
    if config.evaluation.batch_size % num_devices:
        raise Refused(
            f'config.evaluation.batch_size is {config.evaluation.batch_size}, '
            f'it must be a multiple of {num_devices} devices'
        )


def count_steps(config: ConfigDict, num_train_examples: int) -> tuple[int, float]:
    """Counts the updates of a run.

    Args:
      config: The run's configuration.
      num_train_examples: How many examples make one epoch.

    Returns:
      Updates of the whole run, and updates that make one epoch.

    Raises:
      Refused: The config does not state one length, or one without an update.
    """
    sizes = config.train
    if (sizes.epochs is None) == (sizes.steps is None):
        raise Refused(
            'exactly one of config.train.epochs and config.train.steps must be set, '
            f'got {sizes.epochs} and {sizes.steps}'
        )
    total_steps = sizes.steps
    if total_steps is None:
        total_steps = int(sizes.epochs * num_train_examples // sizes.batch_size)
    if not 1 <= total_steps <= MAX_STEPS:
        key = 'steps' if sizes.epochs is None else 'epochs'
        raise Refused(
            f'config.train.{key} is {sizes[key]}, which makes {total_steps:,} updates; '
            f'a run has at least 1 and at most {MAX_STEPS:,}'
        )
    return total_steps, num_train_examples / sizes.batch_size


def check_resolution(
    config: ConfigDict,
    size: str,
    grid: Sequence[int],
    key: str,
    max_resolution: Sequence[int] | None,
) -> None:
    """Checks that Fourier positions tell neighbours on a grid apart, before training with them.

    A trained model takes grids of any size: what it is evaluated on is not to be checked, nor what
    a run that starts from its weights is trained on.

    Args:
      config: The run's configuration, of which `init_from` is read.
      size: What the grid is made of, such as 'config.images.image_size is 64'.
      grid: Input elements along each axis.
      key: Key of the config that says how many samples the positions are for.
      max_resolution: Its value, samples along each axis; None: the positions are learned.

    Raises:
      Refused: There are more elements along an axis than samples; the message names both keys.
    """
    if config.init_from or max_resolution is None:
        return
    if any(elements > samples for elements, samples in zip(grid, max_resolution, strict=False)):
        raise Refused(
            f'{size}, which makes {" x ".join(map(str, grid))} input elements, more than '
            f'{key} {tuple(max_resolution)}: make it as large'
        )


@contextlib.contextmanager
def below_key(key: str) -> Iterator[None]:
    """Names the key of the config that something was made from where that refuses it.

    Args:
      key: A key of the config, such as 'model'.

    Yields:
      Nothing; what reads the config's values, but does not know that they are a config's, is called
      within.

    Raises:
      Refused: What was refused within, with the key in front.
    """
    try:
        yield
    except Refused as error:
        raise Refused(f'config.{key}: {error}') from None


def check_resumable(workdir: Path, config: ConfigDict) -> None:
    """Compares a config with the one that the folder's checkpoints were made with.

    Args:
      workdir: The run's folder. Its `config.json` counts only if there are checkpoints.
      config: The run's configuration.

    Raises:
      Refused: The two differ in more than `FREE_KEYS`, or in the length of a run that cannot be
        lengthened; or `config.json` is damaged.
    """
    path = workdir / 'config.json'
    if not path.exists() or not any(workdir.glob('checkpoints/*')):
        return
    remedy = 'remove it to resume with the config at hand'
    try:
        saved = read_json(path)
    except Refused as error:
        raise Refused(f'{error}; {remedy}') from None
    differing = differing_keys(saved, config)
    if differing and differing.keys() <= LENGTH_KEYS:
        _check_lengthened(workdir, config)
        return
    if differing:
        listed = '; '.join(
            f'{key:.80} was {was!r:.80} and is {now!r:.80}' for key, (was, now) in differing.items()
        )
        raise Refused(
            f'{workdir} holds a run with another config: {listed:.300}. '
            'Resume it with its own config, or choose another workdir'
        )


def differing_keys(
    saved: Mapping[str, Any], config: ConfigDict
) -> dict[str, tuple[object, object]]:
    """Compares a run's config with another in what changes its result.

    Args:
      saved: What the run's `config.json` holds, of any version.
      config: The other one.

    Returns:
      What `differences` does, without `FREE_KEYS`.
    """
    differing = differences(upgraded(saved), config.to_dict())
    return {key: values for key, values in differing.items() if key not in FREE_KEYS}


def _check_lengthened(workdir: Path, config: ConfigDict) -> None:
    """Checks that the updates made so far are those of a run of another length too.

    Args:
      workdir: The run's folder, whose run has another length.
      config: The run's configuration.

    Raises:
      Refused: Updates depend on the length of the run.
    """
    kind, schedules = config.optimizer.schedule.kind, ' and '.join(OF_ANY_LENGTH)
    problem = None
    if kind not in OF_ANY_LENGTH:
        problem = f'its schedule, {kind}, is made for the length of the run: {schedules} are not'
    elif 'curriculum' in config:
        problem = 'its curriculum is made for the length of the run'
    if problem:
        raise Refused(
            f'{workdir} holds a run of another length (config.train.steps or epochs), and {problem}'
            f'. A new run can start from its weights: --config.init_from={workdir}'
        )


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, tuple[object, object]]:
    """Compares two configs.

    Args:
      one: A config as nested dictionaries.
      other: Another one.

    Returns:
      The keys that differ, such as 'train.steps', sorted, with both values; None where there is
      none. Tuples are lists, as in JSON.
    """
    ours, theirs = (_leaves(json.loads(json.dumps(x))) for x in (one, other))
    return {
        key: (ours.get(key), theirs.get(key))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    }


def _leaves(tree: dict, prefix: str = '') -> dict[str, object]:
    """Flattens nested dictionaries: {'train': {'steps': 3}} -> {'train.steps': 3}."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f'{prefix}{key}.')
        else:
            leaves[prefix + key] = value
    return leaves
