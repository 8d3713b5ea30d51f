"""The config of a run, read back from the config.json in its folder.

`launch` gives this file to ml_collections as a config file, 'run_config.py:<workdir>', so that keys
of a run's config are set on the command line as those of any other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from experiments.paths import path_of
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json
from perceiver_jax.weights.upgrade import upgrade_arguments

LABELLED = ('audioset', 'imagenet', 'modelnet40')  # tasks whose data has classes
SECTIONS = ('task', 'seed', 'parallel', 'data', 'model', 'optimizer', 'train', 'evaluation')


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
    config = _from_json(upgrade(saved))
    for key, kind in (('steps', int), ('epochs', float)):  # one of them is null in every run
        if saved['train'].get(key) is None:
            config['train'][key] = config_dict.placeholder(kind)
    return ConfigDict(config)


def upgrade(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the saved config of a run into the words of today.

    Args:
      saved: What `config.json` holds; a section that is none is left as it is.

    Returns:
      The config, where keys that came after the run have the value that it was made with.
    """
    upgraded = dict(saved)
    if isinstance(saved.get('model'), dict):
        upgraded['model'] = upgrade_arguments(saved['model'])
    if saved.get('task') in LABELLED and isinstance(saved.get('data'), dict):
        upgraded['data'] = {'classes': '', **saved['data']}
    return upgraded


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(x) for key, x in value.items()}
    if isinstance(value, list):
        return tuple(_from_json(x) for x in value)
    return config_dict.placeholder(object) if value is None else value
