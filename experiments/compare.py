"""Compares runs, finished or not: prints a table, and draws their curves into one picture.

    python -m experiments.compare runs/*
    python -m experiments.compare runs/a runs/b --out a_b.png

Runs of one task and one headline metric are drawn over each other. A RUN that is no folder of a run
is told and left out; hidden ones are left out.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command_line import Parser, local_path, one_line_errors, run_path
from experiments.data.hidden import is_hidden
from experiments.paths import in_bucket, path_of
from experiments.pictures.units import duration_text, metric_text
from experiments.results import load_result
from experiments.training.workdir import read_rows
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json

COLUMNS = ('Run', 'Metric', 'Value', 'Steps', 'Time', 'Seed', 'Date', 'Commit', 'Config')


class Run(NamedTuple):
    """What the folder of a run tells of it.

    Attributes:
      name: The run's name, of its folder.
      rows: The lines of `metrics.jsonl`.
      config: What `config.json` holds; empty if there is none.
      result: What `result.json` holds; empty before the run is finished.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The run's task."""
        return self.result.get('task') or str(self.config.get('task', 'task unknown'))

    @property
    def metric(self) -> str | None:
        """The headline metric: of the result, or the first of the evaluations; None without any."""
        evaluated = (key for row in self.rows if row['split'] == 'eval' for key in row)
        others = (key for key in evaluated if key not in ('step', 'split', 'loss'))
        return self.result.get('metric') or next(others, None)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring.

    Args:
      argv: Arguments of the command line; None takes this process's own.

    Raises:
      Refused: None of the folders is one of a run, or a file in one is damaged.
    """
    parser = Parser(
        prog='python -m experiments.compare',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('runs', metavar='RUN', nargs='+', help='the folder of a run')
    parser.add_argument('--out', default='comparison.png', help='the picture (%(default)s)')
    arguments = parser.parse_intermixed_args(argv)
    out = local_path(arguments.out, '--out')
    runs = read_runs([run_path(path, 'RUN') for path in arguments.runs])

    from experiments.pictures.comparison import Group, write_comparison  # matplotlib is slow

    # What was not evaluated yet stands beside what was, of its task.
    metrics = {run.task: run.metric for run in reversed(runs) if run.metric}
    groups: dict[tuple[str, str | None], dict[str, Any]] = {}
    for run in runs:
        metric = run.metric or metrics.get(run.task)
        groups.setdefault((run.task, metric), {})[run.name] = [run.rows]
    title = 'Comparison of one run' if len(runs) == 1 else f'Comparison of {len(runs)} runs'
    write_comparison(out, title, [Group(*key, found) for key, found in groups.items()])
    print(table(runs))
    print(f'The curves are in {out}')


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads the folders of runs.

    Args:
      paths: Folders; what is none of a run is told, and hidden ones are left alone.

    Returns:
      The runs. Each is called by its folder; or by the path, where several folders have its name.

    Raises:
      Refused: There is no run, or a file of a run is damaged.
    """
    folders = []
    for path in dict.fromkeys(map(path_of, paths)):
        if (path / 'metrics.jsonl').is_file():
            folders += [] if is_hidden(path.name) else [path]
        elif not is_hidden(path.name):
            print(f'{path} is no run: it has no metrics.jsonl', file=sys.stderr)
    if not folders:
        raise Refused('RUN: expected folders of runs, got none')
    names = [(x if in_bucket(x) else x.resolve()).name for x in folders]
    return [
        Run(
            name if names.count(name) == 1 else str(folder),
            read_rows(folder / 'metrics.jsonl'),
            _read_if_there(folder / 'config.json', read_json),
            _read_if_there(folder / 'result.json', load_result),
        )
        for folder, name in zip(folders, names, strict=True)
    ]


def _read_if_there(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    return read(path) if path.exists() else {}


def table(runs: Sequence[Run]) -> str:
    """Writes a table in Markdown, its columns aligned.

    Args:
      runs: The runs, in the order of the rows.

    Returns:
      The table. A run without a result has the value of its last evaluation.
    """
    lines = [COLUMNS, *(_cells(run) for run in runs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    lines.insert(1, tuple('-' * width for width in widths))
    return '\n'.join(
        f'| {" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |'
        for line in lines
    )


def _cells(run: Run) -> tuple[str, ...]:
    result, metric = run.result, run.metric
    step = max((row['step'] for row in run.rows), default=0)
    scores = [row.get(metric) for row in run.rows if metric and row['split'] == 'eval']
    value = result.get('value', scores[-1] if scores else None)
    seed = result.get('seed', run.config.get('seed'))
    commit, _, dirty = (result.get('git_commit') or '').partition('-')
    cells = {
        'Run': run.name,
        'Metric': metric or '-',
        'Value': metric_text(metric, value) if metric and value is not None else '-',
        'Steps': f'{result["steps"]:,}' if result else f'{step:,}, unfinished',
        'Time': duration_text(result['wall_seconds']) if result else '-',
        'Seed': '-' if seed is None else str(seed),
        'Date': result.get('date', '-')[:16].replace('T', ' '),
        'Commit': f'{commit[:7]}-{dirty}' if dirty else commit[:7] or '-',
        'Config': result.get('config', '-').replace(' --config.', ' '),
    }
    return tuple(cells[column].replace('|', r'\|') for column in COLUMNS)


if __name__ == '__main__':
    with one_line_errors():
        main()
