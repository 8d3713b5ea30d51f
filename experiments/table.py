"""README's tables of results, generated from results/*.json.

python -m experiments.table                              rewrites the tables in README.md
python -m experiments.table --add runs/demo/result.json  takes a finished run in, then rewrites
python -m experiments.table --check                      fails where README.md and results differ
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import Parser, local_path, one_line_errors
from experiments.pictures.units import metric_text
from perceiver_jax.errors import Refused

ROOT = Path(__file__).resolve().parent.parent
MARKS = BEGIN, END = '<!-- results:begin -->', '<!-- results:end -->'
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
# May be written into a results file by hand: the command, where the config does not tell it all;
# a remark on the data; the paper's table.
OPTIONAL_FIELDS = {'command': str, 'note': str, 'table': str}
PAPER_COLUMNS = (
    'Run', 'Metric', 'Paper', 'Ours', 'Difference', 'Data', 'Steps', 'Cost', 'Command'
)  # fmt: skip
OTHER_COLUMNS = ('Run', 'Metric', 'Ours', 'Data', 'Steps', 'Cost', 'Command')


def load_result(path: Path) -> dict:
    """Reads the result.json of a finished run.

    Args:
      path: The file.

    Returns:
      Its content, with a value of the right type for every key of `FIELDS`.

    Raises:
      Refused: The file is incomplete, or holds something else; the message names file and key.
    """
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise Refused(f'{path}: not JSON: {error}') from None
    if not isinstance(result, dict):
        raise Refused(f'{path}: expected a JSON object, got {result!r}')
    if missing := FIELDS.keys() - result:
        raise Refused(f'{path}: keys missing: {", ".join(sorted(missing))}')
    for key, value in result.items():
        kind = (FIELDS | OPTIONAL_FIELDS).get(key)
        if kind is None:
            raise Refused(f'{path}: unknown key {key!r}')
        if not isinstance(value, kind):
            expected = getattr(kind, '__name__', kind)
            raise Refused(f'{path}: {key!r} is {value!r}, expected {expected}')
    is_fraction = metric_text(result['metric'], 0).endswith('%')
    for key in ('value', 'paper_value'):
        number = result[key]
        if number is None or math.isfinite(number) and (0 <= number <= 1 or not is_fraction):
            continue
        expected = 'a fraction in 0..1' if is_fraction else 'a finite number'
        raise Refused(f'{path}: {key!r} is {number}, expected {expected}')
    return result


def run_name(result: dict) -> str:
    """Names a run by its task and variant: 'imagenet_demo' for 'configs/imagenet.py:demo'.

    Args:
      result: What `load_result` returned.
    """
    variant = result['config'].split()[0].partition(':')[2]
    return '_'.join(filter(None, (result['task'], *variant.replace('=', ',').split(','))))


def read_results(folder: Path) -> list[dict]:
    """Reads all results in a folder, in the order of their file names.

    Args:
      folder: The folder of the JSON files.

    Raises:
      Refused: A file is incomplete, or holds something else.
    """
    return [load_result(path) for path in sorted(folder.glob('*.json'))]


def render(results: Sequence[dict]) -> str:
    """Writes the two tables as Markdown.

    Args:
      results: What `load_result` returned, in the order of the rows.

    Returns:
      The tables, each below a line that says what it holds.
    """
    paper = [result for result in results if result['paper_value'] is not None]
    other = [result for result in results if result['paper_value'] is None]
    return '\n\n'.join(
        [
            "On the paper's data:",
            _table(PAPER_COLUMNS, paper),
            'On embedded, generated or reduced data, not comparable with the paper:',
            _table(OTHER_COLUMNS, other),
        ]
    )


def updated_readme(readme: str, tables: str, marks: tuple[str, str] = MARKS) -> str:
    """Puts tables between the two markers of README's text.

    Args:
      readme: The text of README.md.
      tables: The tables, as Markdown.
      marks: The lines before and after the tables.

    Returns:
      The new text of README.md.

    Raises:
      Refused: The markers are not there exactly once each, in order.
    """
    start, stop = marks
    before, begin, rest = readme.partition(start)
    _, end, after = rest.partition(stop)
    if not (begin and end) or start in rest or stop in before + after:
        raise Refused(f'README.md: expected one line {start} and after it one line {stop}')
    return f'{before}{start}\n\n{tables}\n\n{stop}{after}'


def _table(columns: Sequence[str], results: Sequence[dict]) -> str:
    if not results:
        return 'No runs yet.'
    lines: list[Sequence[str]] = [columns, ['---'] * len(columns)]
    for result in results:
        cells = _cells(result)
        lines.append([cells[column].replace('|', r'\|') for column in columns])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cells(result: dict) -> dict[str, str]:
    """Returns the text of each column for one run."""
    metric, value, paper_value = (result[key] for key in ('metric', 'value', 'paper_value'))
    name = run_name(result)
    command = f'python -m experiments.launch --config={result["config"]} --workdir=runs/{name}'
    cells = {
        'Run': name,
        'Metric': metric,
        'Ours': metric_text(metric, value),
        'Data': result['data'] + (f'; {result["note"]}' if 'note' in result else ''),
        'Steps': f'{result["steps"]:,}',
        'Cost': f'{_duration(result["wall_seconds"])}, {result["device"]}',
        'Command': f'`{result.get("command", command)}`',
    }
    if paper_value is not None:
        table = f' ({result["table"]})' if 'table' in result else ''
        cells['Paper'] = metric_text(metric, paper_value) + table
        cells['Difference'] = metric_text(metric, value - paper_value, signed=True)
    return cells


def _duration(seconds: float) -> str:
    for unit, size in (('days', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.0f} s'


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Runs the command line; see the module's docstring.

    Args:
      arguments: Arguments of the command line; None takes this process's own.
      root: The folder of README.md and results/.

    Raises:
      Refused: A result is incomplete or taken, README.md has no markers, or --check finds that
        README.md and results/ differ.
    """
    parser = Parser(prog='python -m experiments.table', description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--add', metavar='RESULT', help="a finished run's result.json")
    mode.add_argument('--check', action='store_true', help='write nothing')
    options = parser.parse_args(arguments)
    if options.add:
        result = load_result(Path(local_path(options.add, '--add')))
        added = root / 'results' / f'{run_name(result)}.json'
        if added.exists() and load_result(added) != result:
            raise Refused(f'{added} holds another run; remove it, or rename it, to add this one')
        added.write_text(json.dumps(result, indent=2) + '\n')
        print(f'{added.relative_to(root)} written')
    readme = root / 'README.md'
    text = readme.read_text('utf-8')
    updated = updated_readme(text, render(read_results(root / 'results')))
    if options.check and updated != text:
        raise Refused('README.md and results/ differ; run: make table')
    if not options.check:
        readme.write_text(updated, 'utf-8')


if __name__ == '__main__':
    with one_line_errors():
        main()
