"""The tables of results, generated from what lies in results/, compiled/ and sweeps/.

python -m experiments.table                              rewrites README.md's and docs/hardware.md's
python -m experiments.table --add runs/demo/result.json  takes a finished run in, then rewrites
python -m experiments.table --add runs/x/evaluation.json  the same for weights that were evaluated
python -m experiments.table --add runs/x/sweep.json --name x  the same for a sweep, and its picture
python -m experiments.table --check                      fails where they and results/ differ

A run that is taken in is called by its config, <task>_<variant>, with the keys that its command
line set; --name calls it otherwise, as where another run has that name.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.command_line import Parser, one_line_errors, run_path
from experiments.data.hidden import visible
from experiments.paths import path_of
from experiments.pictures.units import duration_text, metric_text
from experiments.planning.rows import fits_table
from experiments.results import Row, load_result, load_sweep, rows_table
from perceiver_jax.errors import Refused
from perceiver_jax.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
COMPILED_MARKS = '<!-- compiled:begin -->', '<!-- compiled:end -->'
MARKS = BEGIN, END = '<!-- results:begin -->', '<!-- results:end -->'
PAPER_COLUMNS = (
    'Run', 'Metric', 'Paper', 'Ours', 'Difference', 'Data', 'Steps', 'Cost', 'Command'
)  # fmt: skip
OTHER_COLUMNS = ('Run', 'Metric', 'Ours', 'Data', 'Steps', 'Cost', 'Command')
WEIGHTS_COLUMNS = (
    'Weights', 'Metric', 'Paper', 'Ours', 'Difference', 'Data', 'Cost', 'Command'
)  # fmt: skip


def run_name(result: dict) -> str:
    """Names a run by its task, its variant and the keys that the command line set.

    Args:
      result: What `load_result` returned.

    Returns:
      The name, such as 'imagenet_demo' for 'configs/imagenet.py:demo', and 'imagenet_demo_seed_1'
      with ' --config.seed=1' behind it; it can be that of a file.
    """
    path, *overrides = result['config'].split(' --config.')
    variant = path.partition(':')[2]
    words = re.findall(r'[\w.-]+', ' '.join([variant, *overrides]))
    return '_'.join([result['task'], *words])


def read_results(folder: Path) -> list[dict]:
    """Reads all results in a folder, in the order of their file names.

    Args:
      folder: The folder of the JSON files; hidden ones are left alone.

    Returns:
      What `load_result` returned of each, and its `name`, which is the file's.

    Raises:
      Refused: A file is incomplete, or holds something else.
    """
    return [{**load_result(path), 'name': path.stem} for path in visible(folder, '*.json')]


def render(results: Sequence[dict], sweeps: Mapping[str, tuple[str, Sequence[Row]]]) -> str:
    """Writes the tables as Markdown: of the two kinds of runs and, if there are any, of weights.

    Args:
      results: What `read_results` returned, in the order of the rows. A result without a `name` is
        called as `run_name` does.
      sweeps: Name -> what `load_sweep` returned; each gets a table of its own, and a picture.

    Returns:
      The tables, each below a line that says what it holds.
    """
    evaluated = [result for result in results if 'weights' in result]
    runs = [result for result in results if 'weights' not in result]
    paper = [result for result in runs if result['paper_value'] is not None]
    other = [result for result in runs if result['paper_value'] is None]
    weights = [
        'Weights that others trained, such as the authors, in our evaluation:',
        _table(WEIGHTS_COLUMNS, evaluated),
    ]
    return '\n\n'.join(
        [
            "On the paper's data:",
            _table(PAPER_COLUMNS, paper),
            'On embedded, generated or reduced data, not comparable with the paper:',
            _table(OTHER_COLUMNS, other),
            *(weights if evaluated else []),
            *(_sweep(name, *sweeps[name]) for name in sweeps),
        ]
    )


def read_sweeps(folder: Path) -> dict[str, tuple[str, list[Row]]]:
    """Reads all sweeps in a folder, in the order of their file names.

    Args:
      folder: The folder of the JSON files; hidden ones are left alone.

    Returns:
      The file's name -> what `load_sweep` returned.

    Raises:
      Refused: A file is incomplete, or holds something else.
    """
    return {path.stem: load_sweep(path) for path in visible(folder, '*.json')}


def _sweep(name: str, command: str, rows: Sequence[Row]) -> str:
    first = rows[0].results[0]
    about = f'{name}, {first["data"]}, {first["steps"]:,} steps. `{command} --workdir=runs/{name}`'
    paper = 'Beside it what the paper states of its own model, on its own data.'
    shown = any(row.paper is not None for row in rows)
    return '\n\n'.join(
        [
            f'{about}. {paper}' if shown else f'{about}.',
            rows_table(rows),
            f'![{name}: a bar for each row](results/sweeps/{name}.png)',
        ]
    )


def updated_readme(
    readme: str, tables: str, marks: tuple[str, str] = MARKS, name: str = 'README.md'
) -> str:
    """Puts tables between the two markers of README's text, or of another page's.

    Args:
      readme: The text.
      tables: The tables, as Markdown.
      marks: The lines before and after the tables.
      name: What the page is called in errors.

    Returns:
      The new text.

    Raises:
      Refused: The markers are not there exactly once each, in order.
    """
    start, stop = marks
    before, begin, rest = readme.partition(start)
    _, end, after = rest.partition(stop)
    if not (begin and end) or start in rest or stop in before + after:
        raise Refused(f'{name}: expected one line {start} and after it one line {stop}')
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
    name = result.get('name') or run_name(result)
    command = f'python -m experiments.launch --config={result["config"]} --workdir=runs/{name}'
    if 'weights' in result:
        command += f' --mode=eval --weights={result["weights"]}'
    cells = {
        'Run': name,
        'Metric': metric,
        'Ours': metric_text(metric, value),
        'Data': result['data'] + (f'; {result["note"]}' if 'note' in result else ''),
        'Steps': f'{result.get("steps", 0):,}',
        'Cost': f'{duration_text(result["wall_seconds"])}, {result["device"]}',
        'Command': f'`{result.get("command", command)}`',
        'Paper': '-',
        'Difference': '-',
    }
    if 'weights' in result:
        weights = path_of(result['weights']).name
        cells['Weights'] = f'{weights} (sha256 {result["params_sha256"][:8]})'
    if paper_value is not None:
        table = f' ({result["table"]})' if 'table' in result else ''
        cells['Paper'] = metric_text(metric, paper_value) + table
        cells['Difference'] = metric_text(metric, value - paper_value, signed=True)
    return cells


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> None:
    """Runs the command line; see the module's docstring.

    Args:
      arguments: Arguments of the command line; None takes this process's own.
      root: The folder of README.md, docs/ and results/.

    Raises:
      Refused: A result is incomplete or taken, a page has no markers, or --check finds that
        one of them and results/ differ.
    """
    parser = Parser(prog='python -m experiments.table', description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--add', metavar='RESULT', help="a run's result.json, or evaluation.json")
    mode.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument('--name', help='of the added run: of its row, and of its file in results/')
    options = parser.parse_args(arguments)
    if options.name is not None and not options.add:
        raise Refused('--name is of the run that --add takes in')
    if options.add and options.add.endswith('sweep.json'):
        add_sweep(path_of(run_path(options.add, '--add')), options.name, root)
    elif options.add:
        result = load_result(path_of(run_path(options.add, '--add')))
        name = run_name(result) if options.name is None else options.name
        _check_name(name)
        added = root / 'results' / f'{name}.json'
        if added.exists() and load_result(added) != result:
            raise Refused(
                f'{added} holds another run; --name={name}_2, or another name, adds this one too'
            )
        write_whole(added, json.dumps(result, indent=2) + '\n')
        print(f'{added.relative_to(root)} written')
    folder = root / 'results'
    tables = (
        render(read_results(folder), read_sweeps(folder / 'sweeps')),
        fits_table(folder / 'compiled'),
    )
    pages = ('README.md', MARKS), ('docs/hardware.md', COMPILED_MARKS)
    for (name, marks), content in zip(pages, tables, strict=True):
        text = (root / name).read_text('utf-8')
        updated = updated_readme(text, content, marks, name)
        if options.check and updated != text:
            raise Refused(f'{name} and results/ differ; run: make table')
        if not options.check:
            write_whole(root / name, updated)


def add_sweep(path: Path, name: str | None, root: Path) -> None:
    """Takes a sweep in, with its picture; it takes the place of an earlier state of the same sweep.

    Args:
      path: Its sweep.json.
      name: What it is called; None: as the folder of the file.
      root: The folder of results/.

    Raises:
      Refused: The file is no whole sweep, or there is another sweep of that name.
    """
    command, _ = load_sweep(path)
    name = path.parent.name if name is None else name
    _check_name(name)
    added = root / 'results' / 'sweeps' / f'{name}.json'
    if added.exists() and load_sweep(added)[0] != command:
        raise Refused(f'{added} holds another sweep; another --name adds this one too')
    write_whole(added, path.read_bytes())
    write_whole(added.with_suffix('.png'), path.with_suffix('.png').read_bytes())
    print(f'{added.relative_to(root)} written')


def _check_name(name: str) -> None:
    if not re.fullmatch(r'[^\W_][\w.-]{0,199}', name):
        raise Refused(
            '--name: expected up to 200 letters, digits, _, - and ., the first no sign, '
            f'got {name!r}'
        )


if __name__ == '__main__':
    with one_line_errors():
        main()
