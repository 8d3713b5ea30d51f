"""What cannot be run, found before anything is compiled: one ValueError that names the key."""

import json
from pathlib import Path

from perceiver_jax.errors import Refused
from perceiver_jax.weights.upgrade import upgrade_arguments

# Keys of the configuration that may change when a run is resumed: none of them changes the result.
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


def check_sizes(config, num_devices: int) -> None:
    """Checks that batches can be cut over the devices, and that intervals are ones.

    Args:
      config: the run's ConfigDict.
      num_devices: of all processes.

    Raises:
      ValueError: naming the key.
    """
    sizes = config.train
    for key in sizes:
        if key not in ('epochs', 'steps') and sizes[key] < 1:
            raise Refused(f'config.train.{key} is {sizes[key]}, it must be at least 1')
    if sizes.batch_size % (num_devices * sizes.accumulate_steps):
        raise Refused(
            f'config.train.batch_size is {sizes.batch_size}, it must be a multiple of '
            f'{num_devices} devices x config.train.accumulate_steps {sizes.accumulate_steps}'
        )
    for key, value in (('seed', config.seed), ('data.num_workers', config.data.num_workers)):
        if value < 0:
            raise Refused(f'config.{key} is {value}, it must be at least 0')
    if config.evaluation.batch_size < 1 or config.evaluation.batch_size % num_devices:
        raise Refused(
            f'config.evaluation.batch_size is {config.evaluation.batch_size}, '
            f'it must be a multiple of {num_devices} devices'
        )


def count_steps(config, num_train_examples: int) -> tuple[int, float]:
    """How long the run is.

    Args:
      config: the run's ConfigDict.
      num_train_examples: of one epoch.

    Returns:
      Updates of the whole run, and updates that make one epoch.

    Raises:
      ValueError: naming the key.
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
    if total_steps < 1:
        key = 'steps' if sizes.epochs is None else 'epochs'
        raise Refused(f'config.train.{key} is {sizes[key]}, which makes {total_steps} updates')
    return total_steps, num_train_examples / sizes.batch_size


def check_resumable(workdir: Path, config) -> None:
    """Compares a config with the one that the folder's checkpoints were made with.

    Args:
      workdir: the run's folder; a config without a checkpoint binds nothing.
      config: the run's ConfigDict.

    Raises:
      ValueError: if they differ in more than FREE_KEYS, or if config.json is damaged.
    """
    path = workdir / 'config.json'
    if not path.exists() or not any(workdir.glob('checkpoints/*')):
        return
    try:
        written = json.loads(path.read_text())
        model = upgrade_arguments(written.get('model', {}))
        before = _leaves({**written, 'model': model})
    except (json.JSONDecodeError, AttributeError) as error:
        raise Refused(
            f'{path} is damaged ({error}); remove it to resume with the config at hand'
        ) from None
    now = _leaves(json.loads(json.dumps(config.to_dict())))  # tuples as lists
    differing = [
        f'{key} was {before.get(key)!r} and is {now.get(key)!r}'
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_KEYS
    ]
    if differing:
        raise Refused(
            f'{workdir} holds a run with another config: {"; ".join(differing)}. '
            'Resume it with its own config, or choose another workdir'
        )


def _leaves(tree: dict, prefix: str = '') -> dict[str, object]:
    """{'train': {'steps': 3}} -> {'train.steps': 3}."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f'{prefix}{key}.')
        else:
            leaves[prefix + key] = value
    return leaves
