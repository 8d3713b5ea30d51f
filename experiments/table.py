"""The tables of README.md, results, tables and hardware.md of docs/, generated from results/.

python -m experiments.table                              rewrites them
python -m experiments.table --add runs/demo/result.json  takes a finished run in, then rewrites
python -m experiments.table --add runs/x/evaluation.json  the same for weights that were evaluated
python -m experiments.table --add runs/[abc]/result.json  one row of runs that differ in the seed
python -m experiments.table --add runs/x/sweep.json --name x  the same for a sweep, and its picture
python -m experiments.table --check                      fails where they and results/ differ

What is taken in is called by its config, <task>_<variant>, with the keys that its command line set;
--name calls it otherwise, as where another run has that name. The metrics.jsonl beside a result is
taken in too, at most 200 lines of it a row, and drawn: results/curves/ holds both. A sweep of which
all runs are averaged is a row like the others.
"""

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.command_line import Parser, one_line_errors, run_path
from experiments.data.hidden import visible
from experiments.papers import papers_tables
from experiments.paths import path_of
from experiments.pictures.curves import thinned
from experiments.pictures.units import duration_text, metric_text, scores_text
from experiments.planning.rows import fits_table
from experiments.results import (
    Row,
    check_together,
    load_result,
    load_runs,
    load_sweep,
    markdown_table,
    rows_table,
    runs_text,
    sweep_flags,
    without_seed,
)
from experiments.training.workdir import read_rows
from perceiver_jax.errors import Refused
from perceiver_jax.files import write_whole

ROOT = Path(__file__).resolve().parent.parent


def marks_of(name: str) -> tuple[str, str]:
    """Returns the lines of a page before and after what is generated: a table by its name."""
    return f'<!-- {name}:begin -->', f'<!-- {name}:end -->'


COMPILED_MARKS = marks_of('compiled')
MARKS = marks_of('results')
# What README shows, at most twelve: names of rows, and of a sweep <sweep>/<row>.
SHOWN = (
    'imagenet_demo',
    'modelnet40_small',
    'modelnet40_perceiver_short',
    'audioset_esc_input_mel',
    'audioset_esc_input_filterbank',
    'flow_small',
    'table2_in_miniature/model=perceiver,permuted=no',
    'table2_in_miniature/model=perceiver,permuted=yes',
    'table2_in_miniature/model=resnet,permuted=no',
    'table2_in_miniature/model=resnet,permuted=yes',
)
SHOWN_COLUMNS = 'Run', 'Metric', 'Paper', 'Ours', 'Data', 'Cost of a run'
PAPER_COLUMNS = (
    '#',
    'Run',
    'Metric',
    'Paper',
    'Ours',
    'Difference',
    'Seeds',
    'Steps',
    'Cost of a run',
)
OTHER_COLUMNS = '#', 'Run', 'Metric', 'Ours', 'Data', 'Seeds', 'Steps', 'Cost of a run'
WEIGHTS_COLUMNS = '#', 'Weights', 'Metric', 'Paper', 'Ours', 'Difference', 'Cost of a run'
CURVE_LINES = 200  # of metrics.jsonl, kept of a row


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


def read_results(folder: Path) -> dict[str, list[dict]]:
    """Reads all results in a folder, in the order of their file names.

    Args:
      folder: The folder of the JSON files; hidden ones are left alone.

    Returns:
      The file's name -> what `load_runs` returned.

    Raises:
      Refused: A file is incomplete, or holds something else.
    """
    return {path.stem: load_runs(path) for path in visible(folder, '*.json')}


def render(
    rows: Mapping[str, Sequence[dict]],
    sweeps: Mapping[str, tuple[str, Sequence[Row]]],
    curves: Sequence[str] = (),
) -> str:
    """Writes docs/results.md's tables: of the two kinds of runs and, if there are any, of weights.

    Args:
      rows: Name -> results of one config, as `read_results` returned them.
      sweeps: Name -> what `load_sweep` returned; each gets a table of its own, and a picture.
      curves: Tasks whose rows have a picture of their curves.

    Returns:
      Sections of Markdown: the tables, the data and commands of their rows, and the pictures.
    """
    of_paper: dict[str, Sequence[dict]] = {}
    others: dict[str, Sequence[dict]] = {}
    weights: dict[str, Sequence[dict]] = {}
    for name, results in rows.items():
        kind = others if results[0]['paper_value'] is None else of_paper
        kind = weights if 'weights' in results[0] else kind
        kind[name] = results
    parts = [
        "## The papers' models, on their data",
        _numbered(PAPER_COLUMNS, of_paper),
        '## Other models, or other data',
        'Models of ours, or embedded, generated or reduced data: not comparable with the paper.',
        _numbered(OTHER_COLUMNS, others),
    ]
    if weights:
        parts += ['## Weights that others trained', _numbered(WEIGHTS_COLUMNS, weights)]
    parts += [_sweep(name, *sweeps[name]) for name in sweeps]
    if curves:
        parts.append('## Curves')
    parts += [f'![Curves of the rows of {x}](../results/curves/{x}.png)' for x in curves]
    return '\n\n'.join(parts)


def selected(
    rows: Mapping[str, Sequence[dict]], sweeps: Mapping[str, tuple[str, Sequence[Row]]]
) -> str:
    """Writes README's table: the rows of `SHOWN` that there are.

    Args:
      rows: Name -> results of one config, as `read_results` returned them.
      sweeps: Name -> what `load_sweep` returned.
    """
    found = dict(rows)
    for sweep, (_, of_sweep) in sweeps.items():
        found |= {f'{sweep}/{row.name}': row.results for row in of_sweep}
    return _table(SHOWN_COLUMNS, [_cells(name, found[name]) for name in SHOWN if name in found])


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
    about = f'{first["data"]}, {first["steps"]:,} steps.'
    if any(row.paper is not None for row in rows):
        about += ' Beside it what the paper states of its own model, on its own data.'
    return '\n\n'.join(
        [
            f'## {name}',
            about,
            rows_table(rows),
            f'`{command} --workdir=runs/{name}`',
            f'![{name}: a bar for each row](../results/sweeps/{name}.png)',
        ]
    )


def put_tables(
    page: str, tables: str, marks: tuple[str, str] = MARKS, name: str = 'README.md'
) -> str:
    """Puts tables between the two markers of a page.

    Args:
      page: The text of the page.
      tables: The tables, as Markdown.
      marks: The lines before and after the tables.
      name: What the page is called in errors.

    Returns:
      The new text.

    Raises:
      Refused: The markers are not there exactly once each, in order.
    """
    start, stop = marks
    before, begin, rest = page.partition(start)
    _, end, after = rest.partition(stop)
    if not (begin and end) or start in rest or stop in before + after:
        raise Refused(f'{name}: expected one line {start} and after it one line {stop}')
    return f'{before}{start}\n\n{tables}\n\n{stop}{after}'


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return 'No runs yet.'
    return markdown_table(columns, [[cells[column] for column in columns] for cells in rows])


def _numbered(columns: Sequence[str], rows: Mapping[str, Sequence[dict]]) -> str:
    """Writes a table of rows and, by their numbers below it, their data and commands."""
    cells = [
        {**_cells(name, results), '#': str(number)}
        for number, (name, results) in enumerate(rows.items(), start=1)
    ]
    notes = [f'{x["#"]}. {_about(name, rows[name])}' for x, name in zip(cells, rows, strict=True)]
    return '\n\n'.join([_table(columns, cells), *(['\n'.join(notes)] if notes else [])])


def _about(name: str, results: Sequence[dict]) -> str:
    """Returns what made a row: the data, a remark on it, the weights' checksum, the command."""
    result = results[0]
    if len(results) == 1:
        command = f'launch --config={result["config"]}'
    else:
        command = f'sweep {sweep_flags(results)}'
    command = f'python -m experiments.{command} --workdir=runs/{name}'
    about = result['data'] + (f'; {result["note"]}' if 'note' in result else '')
    if 'weights' in result:
        command += f' --mode=eval --weights={result["weights"]}'
        about += f'; sha256 {result["params_sha256"][:8]}'
    return f'{about}: `{result.get("command", command)}`'


def _cells(name: str, results: Sequence[dict]) -> dict[str, str]:
    """Returns the text of each column for a row, but its number."""
    result = results[0]
    metric, values = result['metric'], [x['value'] for x in results]
    paper_value = result['paper_value']
    time = duration_text(statistics.fmean(x['wall_seconds'] for x in results))
    cells = {
        'Run': name,
        'Metric': metric,
        'Ours': scores_text(metric, values),
        'Data': result['data'].partition(' (')[0],
        'Seeds': ', '.join(dict.fromkeys(str(x['seed']) for x in results if 'seed' in x)) or '-',
        'Steps': f'{result.get("steps", 0):,}',
        'Cost of a run': f'{time}, {result["device"]}',
        'Paper': '-',
        'Difference': '-',
    }
    if 'weights' in result:
        cells['Weights'] = path_of(result['weights']).name
    if paper_value is not None:
        table = f' ({result["table"]})' if 'table' in result else ''
        cells['Paper'] = metric_text(metric, paper_value) + table
        difference = statistics.fmean(values) - paper_value
        cells['Difference'] = metric_text(metric, difference, signed=True)
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
    mode.add_argument(
        '--add', metavar='RESULT', nargs='+', help='result.json, evaluation.json or sweep.json'
    )
    mode.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument('--name', help='of what is added: of its row, and of its file in results/')
    options = parser.parse_args(arguments)
    if options.name is not None and not options.add:
        raise Refused('--name is of the run that --add takes in')
    folder = root / 'results'
    if options.add:
        paths = [path_of(run_path(path, '--add')) for path in options.add]
        if all(path.name != 'sweep.json' for path in paths):
            add_runs([(load_result(path), path.parent) for path in paths], options.name, folder)
        elif len(paths) == 1:
            add_sweep(paths[0], options.name, folder)
        else:
            raise Refused('--add: a sweep.json stands alone')
    rows, sweeps = read_results(folder), read_sweeps(folder / 'sweeps')
    curves = curves_by_task(rows, sweeps, folder / 'curves')
    if not options.check:
        draw_curves(curves, folder / 'curves')
    of_sweeps = [row.results for _, of_sweep in sweeps.values() for row in of_sweep]
    papers = papers_tables([*rows.values(), *of_sweeps], folder)
    pages = {
        'README.md': {MARKS: selected(rows, sweeps)},
        'docs/results.md': {MARKS: render(rows, sweeps, list(curves))},
        'docs/tables.md': {marks_of(name): content for name, content in papers.items()},
        'docs/hardware.md': {COMPILED_MARKS: fits_table(folder / 'compiled')},
    }
    for name, contents in pages.items():
        updated = text = (root / name).read_text('utf-8')
        for marks, content in contents.items():
            updated = put_tables(updated, content, marks, name)
        if options.check and updated != text:
            raise Refused(f'{name} and results/ differ; run: make table')
        if not options.check:
            write_whole(root / name, updated)


def add_runs(runs: Sequence[tuple[dict, Path]], name: str | None, folder: Path) -> None:
    """Takes runs in as one row, with their curves.

    Args:
      runs: The result of each, at least one, and the folder of its metrics.jsonl.
      name: What the row is called; None: as `run_name` does.
      folder: The folder results/.

    Raises:
      Refused: The runs are of several configs, or there is another row of that name.
    """
    results = [result for result, _ in runs]
    if name is None:
        one, several = results[0], {**results[0], 'config': without_seed(results[0]['config'])}
        name = run_name(one if len(results) == 1 else several)
    _check_name(name)
    added = folder / f'{name}.json'
    check_together(added, results)
    if added.exists() and load_runs(added) != results:
        raise Refused(
            f'{added} holds another run; --name={name}_2, or another name, adds this one too'
        )
    write_whole(added, runs_text(results))
    _write_curves(folder / 'curves' / f'{name}.jsonl', runs)
    print(f'{added.relative_to(folder.parent)} written')


def add_sweep(path: Path, name: str | None, folder: Path) -> None:
    """Takes a sweep in, with its picture; it takes the place of an earlier state of the same sweep.

    Args:
      path: Its sweep.json.
      name: What it is called; None: as the folder of the file.
      folder: The folder results/.

    Raises:
      Refused: The file is no whole sweep, or there is another sweep of that name.
    """
    command, rows = load_sweep(path)
    runs = {
        row.name: [(x, path.parent / y) for x, y in zip(row.results, row.folders, strict=True)]
        for row in rows
    }
    if [*runs] == ['']:  # all is averaged
        add_runs(runs[''], name, folder)
        return
    name = path.parent.name if name is None else name
    _check_name(name)
    added = folder / 'sweeps' / f'{name}.json'
    if added.exists() and load_sweep(added)[0] != command:
        raise Refused(f'{added} holds another sweep; another --name adds this one too')
    write_whole(added, path.read_bytes())
    write_whole(added.with_suffix('.png'), path.with_suffix('.png').read_bytes())
    for row, of_row in runs.items():
        _write_curves(folder / 'curves' / name / f'{row}.jsonl', of_row)
    print(f'{added.relative_to(folder.parent)} written')


def _write_curves(path: Path, runs: Sequence[tuple[dict, Path]]) -> None:
    """Writes some lines of each run's metrics.jsonl, with the number of the run as `run`."""
    lines = [
        json.dumps({'run': number, **line})
        for number, (result, folder) in enumerate(runs)
        for line in thinned(
            read_rows(folder / 'metrics.jsonl'), result['metric'], CURVE_LINES // len(runs)
        )
    ]
    if lines:
        write_whole(path, '\n'.join(lines) + '\n')


def curves_by_task(
    rows: Mapping[str, Sequence[dict]],
    sweeps: Mapping[str, tuple[str, Sequence[Row]]],
    folder: Path,
) -> dict[str, dict[str, dict[str, list]]]:
    """Reads the curves of all rows.

    Args:
      rows: Name -> results, as `read_results` returned them.
      sweeps: Name -> what `load_sweep` returned.
      folder: The folder results/curves/.

    Returns:
      Task -> headline metric -> name of the row -> the lines of each run, of the rows that have
      curves.
    """
    found = [(name, results[0], folder / f'{name}.jsonl') for name, results in rows.items()]
    for name, (_, of_sweep) in sweeps.items():
        for row in of_sweep:
            title = f'{name}: {", ".join(f"{k}={v}" for k, v in row.values.items())}'
            found.append((title, row.results[0], folder / name / f'{row.name}.jsonl'))
    curves: dict[str, dict[str, dict[str, list]]] = {}
    for name, result, path in found:
        runs: dict[int, list] = {}
        for line in read_rows(path):
            runs.setdefault(line.get('run', 0), []).append(line)
        if runs:
            of_task = curves.setdefault(result['task'], {})
            of_task.setdefault(result['metric'], {})[name] = [*runs.values()]
    return curves


def draw_curves(curves: Mapping[str, Mapping[str, Mapping[str, list]]], folder: Path) -> None:
    """Draws a picture of each task.

    Args:
      curves: What `curves_by_task` returned.
      folder: Where <task>.png is written.
    """
    from experiments.pictures.comparison import Group, write_comparison  # matplotlib is slow

    for task, by_metric in curves.items():
        groups = [Group(task, metric, by_name) for metric, by_name in by_metric.items()]
        write_comparison(folder / f'{task}.png', f'{task}: the rows of the tables', groups)


def _check_name(name: str) -> None:
    if not re.fullmatch(r'[^\W_][\w.-]{0,199}', name):
        raise Refused(
            '--name: expected up to 200 letters, digits, _, - and ., the first no sign, '
            f'got {name!r}'
        )


if __name__ == '__main__':
    with one_line_errors():
        main()
