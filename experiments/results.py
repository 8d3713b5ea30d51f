"""What `result.json` of a finished run holds, and `evaluation.json` of weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.pictures.units import metric_text
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json

FIELDS = {
    'task': str,
    'config': str,
    'data': str,
    'metric': str,
    'value': int | float,
    'paper_value': int | float | None,  # None: the data is not the paper's
    'steps': int,
    'examples': int,
    'parameters': int,
    'params_sha256': str,
    'wall_seconds': int | float,
    'device': str,
    'git_commit': str | None,
}
OPTIONAL_FIELDS = {
    'seed': int,  # older runs have neither this
    'date': str,  # nor this: when the run ended, ISO 8601
    # By hand: the command, where the config does not tell it all; a remark on the data; the paper's
    # table.
    'command': str,
    'note': str,
    'table': str,
}


EVALUATION_FIELDS = {  # of weights, whose updates others made
    **{key: kind for key, kind in FIELDS.items() if key != 'steps'},
    'weights': str,
    'metrics': dict,
    'date': str,
}


def load_result(path: Path) -> dict:
    """Reads the result.json of a finished run, or the evaluation.json of weights.

    Args:
      path: The file.

    Returns:
      Its content, with a value of the right type for every key of `FIELDS` or, where it has
      `weights`, of `EVALUATION_FIELDS`.

    Raises:
      Refused: The file is incomplete, or holds something else; the message names file and key.
    """
    result = read_json(path)
    if 'checkpoint' in result and 'steps' not in result:
        raise Refused(f"{path} is of a run's checkpoint: that run's result.json is its result")
    fields = EVALUATION_FIELDS if 'weights' in result else FIELDS
    check_types(path, result, fields)
    if unknown := result.keys() - fields.keys() - OPTIONAL_FIELDS.keys():
        raise Refused(f'{path}: unknown key {min(unknown)!r:.80}')
    check_types(path, result, {k: x for k, x in OPTIONAL_FIELDS.items() if k in result})
    is_fraction = metric_text(result['metric'], 0).endswith('%')
    for key in ('value', 'paper_value'):
        number = result[key]
        if number is None or math.isfinite(number) and (0 <= number <= 1 or not is_fraction):
            continue
        expected = 'a fraction in 0..1' if is_fraction else 'a finite number'
        raise Refused(f'{path}: {key!r} is {number}, expected {expected}')
    return result


def check_types(path: Path, content: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Checks that keys are there, with values of their types.

    Args:
      path: The file, for the message.
      content: What the file holds.
      fields: The type of each key.

    Raises:
      Refused: Keys are missing, or a value is of another type; names the key.
    """
    if missing := fields.keys() - content:
        raise Refused(f'{path}: keys missing: {", ".join(sorted(missing))}')
    for key, kind in fields.items():
        if not isinstance(content[key], kind):
            expected = getattr(kind, '__name__', kind)
            raise Refused(f'{path}: {key!r} is {content[key]!r:.80}, expected {expected}')
