"""What `result.json` of a finished run holds, `evaluation.json` of weights, and rows of several."""

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.pictures.units import duration_text, metric_text
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
# What the runs of a row may differ in: a key, and an option of variants.
_SEED = re.compile(r' --config\.seed=\d+')
_FOLD = re.compile(r'(?<=[,:]fold=)\w+')

EVALUATION_FIELDS = {  # of weights, whose updates others made
    **{key: kind for key, kind in FIELDS.items() if key != 'steps'},
    'weights': str,
    'metrics': dict,
    'date': str,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Finished runs that differ in what is averaged over alone.

    Attributes:
      values: Key -> value, of the keys that vary otherwise.
      results: What `load_result` returned of each run, at least one.
      paper: What the paper states of the model, by the run's config; None: nothing.
      folders: Names of the runs' folders, beside the sweep.json.
    """

    values: Mapping[str, str]
    results: Sequence[dict[str, Any]]
    paper: float | None
    folders: Sequence[str]

    @property
    def name(self) -> str:
        """What it is called, such as 'model=vit,permuted=yes'; it can be that of a file."""
        return file_name(self.values)

    @property
    def mean(self) -> float:
        """Mean of the headline metric."""
        return statistics.fmean(result['value'] for result in self.results)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the headline metric; None of a single run."""
        values = [result['value'] for result in self.results]
        return statistics.stdev(values) if len(values) > 1 else None


def file_name(values: Mapping[str, str]) -> str:
    """Names a combination of values, such as 'model=vit,permuted=yes', as a file can be called.

    Args:
      values: Key -> value.
    """
    return re.sub(r'[^\w.,=+-]', '_', ','.join(f'{k}={v}' for k, v in values.items()))


def rows_table(rows: Sequence[Row]) -> str:
    """Writes the rows as a Markdown table.

    Args:
      rows: The rows, at least one, of the same keys.
    """
    keys = list(rows[0].values)
    metric = rows[0].results[0]['metric']
    columns = [*keys, metric, 'deviation', 'runs', 'paper', 'parameters', 'time of a run']
    lines = []
    for row in rows:
        spread, times = row.deviation, [result['wall_seconds'] for result in row.results]
        lines.append(
            [
                *row.values.values(),
                metric_text(metric, row.mean),
                '-' if spread is None else metric_text(metric, spread).replace('%', 'points'),
                str(len(row.results)),
                '-' if row.paper is None else metric_text(metric, row.paper),
                f'{row.results[0]["parameters"]:,}',
                duration_text(statistics.fmean(times)),
            ]
        )
    return markdown_table(columns, lines)


def markdown_table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Writes a table in Markdown.

    Args:
      columns: The heads of the columns.
      lines: The cells of each row, as many as there are columns.
    """
    cells = [columns, ['---'] * len(columns), *lines]
    return '\n'.join('| {} |'.format(' | '.join(x.replace('|', r'\|') for x in y)) for y in cells)


def load_sweep(path: Path) -> tuple[str, list[Row]]:
    """Reads the sweep.json of `experiments.sweep`.

    Args:
      path: The file.

    Returns:
      The command, and the rows, at least one.

    Raises:
      Refused: The file is incomplete, or holds something else; the message names file and key.
    """
    content = read_json(path)
    check_types(path, content, {'command': str, 'rows': list})
    rows = []
    for row in content['rows']:
        if not isinstance(row, dict):
            raise Refused(f'{path}: a row is {row!r:.80}, expected an object')
        fields = {'values': dict, 'results': list, 'paper': int | float | None, 'folders': list}
        check_types(path, row, fields)
        check_types(path, row['values'], dict.fromkeys(row['values'], str))
        for result in row['results']:
            if not isinstance(result, dict):
                raise Refused(f'{path}: a result is {result!r:.80}, expected an object')
            _check_result(path, result)
        folders = row['folders']
        named = all(isinstance(name, str) for name in folders)
        if not named or len(folders) != len(row['results']):
            raise Refused(f'{path}: folders are {folders!r:.80}, expected a name for each result')
        rows.append(Row(**{key: row[key] for key in fields}))
    if not rows or not all(row.results and [*row.values] == [*rows[0].values] for row in rows):
        raise Refused(f'{path}: expected rows of the same keys, each with results')
    return content['command'], rows


def without_seed(config: str) -> str:
    """Returns how a run was configured, as its result says it, without the seed and the fold.

    Args:
      config: The config's file, variant and keys: 'configs/x.py:small,fold=2 --config.seed=1'.
    """
    return _FOLD.sub('', _SEED.sub('', config))


def sweep_flags(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the flags of `experiments.sweep` that make several runs again.

    Args:
      results: Their results, which differ in the seed and the fold alone.
    """
    folds = dict.fromkeys(x for result in results for x in _FOLD.findall(result['config']))
    config = _FOLD.sub('|'.join(folds), _SEED.sub('', results[0]['config']))
    file, _, keys = config.partition(' ')
    seeds = '|'.join(dict.fromkeys(str(result['seed']) for result in results))
    words = [f'--config={file}', *keys.split(), f'--config.seed={seeds}']
    return ' '.join(f"'{word}'" if '|' in word else word for word in words)


def load_runs(path: Path) -> list[dict[str, Any]]:
    """Reads a file of the folder of results.

    Args:
      path: The file: a result as `load_result` reads it, or the `runs` of one config.

    Returns:
      The results, at least one.

    Raises:
      Refused: The file is incomplete, or holds something else; the message names file and key.
    """
    content = read_json(path)
    if content.keys() != {'runs'}:
        _check_result(path, content)
        return [content]
    check_types(path, content, {'runs': list})
    for result in content['runs']:
        if not isinstance(result, dict):
            raise Refused(f'{path}: a run is {result!r:.80}, expected an object')
        _check_result(path, result)
    check_together(path, content['runs'])
    return content['runs']


def runs_text(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns what `load_runs` reads.

    Args:
      results: The results, at least one.
    """
    content = results[0] if len(results) == 1 else {'runs': results}
    return json.dumps(content, indent=2) + '\n'


def check_together(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Checks that results are of different runs of one config.

    Args:
      path: Where they stand or will stand, for the message.
      results: The results.

    Raises:
      Refused: There are none, two differ in more than the seed and the fold, or are of one run.
    """
    if not results:
        raise Refused(f'{path}: expected runs, got none')
    first = {**results[0], 'config': without_seed(results[0]['config'])}
    for result in results[1:]:
        found = {**result, 'config': without_seed(result['config'])}
        for key in ('config', 'task', 'metric', 'data', 'paper_value', 'steps', 'parameters'):
            if found.get(key) != first.get(key):
                raise Refused(
                    f'{path}: runs of one row differ in {key}: {first.get(key)!r:.200} and '
                    f'{found.get(key)!r:.200}'
                )
    if len({x['params_sha256'] for x in results}) < len(results):
        raise Refused(f'{path}: one run is there twice, by its params_sha256')
    if len(results) > 1 and not all('seed' in x for x in results):
        raise Refused(f'{path}: runs of one row need a seed each')


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
    _check_result(path, result)
    return result


def _check_result(path: Path, result: dict) -> None:
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
