"""The config of a run, read back from the config.json in its folder.

`launch` gives this file to ml_collections as a config file, 'run_config.py:<workdir>', so that keys
of a run's config are set on the command line as those of any other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.paths import path_of
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json
from perceiver_jax.weights.upgrade import upgrade_arguments

SECTIONS = ('task', 'seed', 'parallel', 'data', 'model', 'optimizer', 'train', 'evaluation')

# Keys that configs did not have before, and the values that stand for what was done then.
_LATER_KEYS: dict[str, object] = {
    'init_from': '',
    'train.freeze': [],
    'train.ema_decay': 0.0,
    'optimizer.loaded_scale': 1.0,
}
_LATER_KEYS_OF_TASK: dict[str, dict[str, object]] = {
    'audioset': {
        'data.classes': '',
        'clip.loudness_db': None,
        'model.inputs.audio.hop': None,
        'augmentation.speed': [1.0, 1.0],
        'augmentation.between_class': False,
        'evaluation.speeds': [1.0],
    },
    'flow': {
        'data.repeats': 1,
        'evaluation.factors': [1],
        'loss.warped_share': 0.0,
        'loss.rough_error': 2.0,
    },
    'imagenet': {
        'data.classes': '',
        'data.train_split': 'train',
        'data.eval_split': 'validation',
    },
    'modelnet40': {
        'data.classes': '',
        'augmentation.jitter': 0.0,
        'augmentation.drop_points': 0.0,
        'evaluation.num_draws': 1,
        'evaluation.num_points': None,
        'loss.cutmix_alpha': 0.0,
    },
}
STARTED_FROM = 'started_from'  # key of config.json, no key of configs: what `init_from` gave a run


def get_config(workdir: str | Path) -> ConfigDict:
    """Reads the config of a run, in the words of today.

    Args:
      workdir: The run's folder.

    Returns:
      The config as its config file made it: with tuples for JSON's lists, and with placeholders,
      which take any value, for null.

    Raises:
      Refused: `config.json` is missing, or is not the config of a run.
    """
    path = path_of(workdir) / 'config.json'
    try:
        saved = read_json(path, 'the config of a run')
    except FileNotFoundError:
        raise Refused(f'{path} is not the config of a run: there is no such file') from None
    except OSError as error:
        raise Refused(f'{path} is not the config of a run: {error.strerror or error}') from None
    if missing := [key for key in SECTIONS if key not in saved]:
        raise Refused(f'{path} is not the config of a run: it lacks {", ".join(missing)}')
    for key in SECTIONS[3:]:
        if not isinstance(saved[key], dict):
            raise Refused(f'{path} is not the config of a run: {key} is {saved[key]!r:.80}')
    config = _from_json(upgraded(saved))
    for key, kind in (('steps', int), ('epochs', float)):  # one of them is null in every run
        if saved['train'].get(key) is None:
            config['train'][key] = config_dict.placeholder(kind)
    return ConfigDict(config)


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a run, as its config.json holds it, with the keys of today.

    Args:
      saved: What config.json holds, of any version.
    """
    config = {key: value for key, value in saved.items() if key != STARTED_FROM}
    if isinstance(config.get('model'), dict):
        config['model'] = upgrade_arguments(config['model'])
    later = _LATER_KEYS | _LATER_KEYS_OF_TASK.get(str(config.get('task')), {})
    for key, value in later.items():
        _add_missing(config, key.split('.'), value)
    return config


def _add_missing(config: dict[str, Any], path: Sequence[str], value: object) -> None:
    """Gives a key of a section a value, where the section is there and the key is not."""
    name, *rest = path
    if not rest:
        config.setdefault(name, value)
    elif isinstance(config.get(name), dict):
        config[name] = dict(config[name])  # what is read stays as it is
        _add_missing(config[name], rest, value)


def started_from(workdir: str | Path) -> dict[str, Any] | None:
    """Reads what a run started from, as the first of its starts wrote it down.

    Args:
      workdir: The run's folder.

    Returns:
      The facts of `loop.Start`; None where the run has no checkpoint yet, or did not start from
      weights.

    Raises:
      Refused: `config.json` is damaged.
    """
    path = path_of(workdir) / 'config.json'
    if not path.exists() or not any(path.parent.glob('checkpoints/*')):
        return None
    facts = read_json(path).get(STARTED_FROM)
    if facts is not None and not isinstance(facts, dict):
        raise Refused(f'{path}: {STARTED_FROM!r} is {facts!r:.80}, expected what a run wrote')
    return facts


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(x) for key, x in value.items()}
    if isinstance(value, list):
        return tuple(_from_json(x) for x in value)
    return config_dict.placeholder(object) if value is None else value
