r"""Runs a config again and again with other values: one run for each combination, then a table.

    python -m experiments.sweep --workdir=runs/table2 --config.seed='0|1|2' \
        --config='configs/imagenet.py:cifar10,model=resnet|vit,permuted=no|yes'

Values that `|` separates are alternatives, also in the options of a variant; each combination is a
run of `experiments.launch` in a folder of its own in WORKDIR, one after the other. The same command
again goes on: finished runs are not repeated, an interrupted one resumes, and a folder with a run
of another config is refused. Runs that differ in the seed or the fold alone are one row of the
table, with mean and standard deviation; --average names other keys.
WORKDIR/sweep.json, sweep.md and sweep.png hold what is finished.
"""

import argparse
import dataclasses
import itertools
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.command_line import Parser, local_path, one_line_errors
from experiments.config_parsing import config_of
from experiments.results import Row, file_name, load_result, rows_table
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, write_whole

# Exit statuses after Ctrl-C and SIGTERM, also of a run that has saved a checkpoint first.
STOPPED = (130, 143, -signal.SIGINT, -signal.SIGTERM)
_OF_AN_AXIS = '|'  # stands in a flag's pieces for a value of the next axis


@dataclasses.dataclass(frozen=True)
class Run:
    """One combination of the alternatives.

    Attributes:
      values: Key, such as 'model' or 'seed' -> the value of this run, for the keys that vary.
      flags: Flags of `experiments.launch`.
    """

    values: Mapping[str, str]
    flags: Sequence[str]

    @property
    def name(self) -> str:
        """Name of its folder, such as 'model=vit,permuted=yes,seed=1'."""
        return file_name(self.values)


def combinations(flags: Sequence[str]) -> list[Run]:
    """Finds the alternatives in flags, and combines them.

    Args:
      flags: Flags of `experiments.launch`, such as '--config=configs/imagenet.py:small,lr=a|b' or
        '--config.seed=1|2'.

    Returns:
      The runs, the first key varying slowest.

    Raises:
      Refused: There are no alternatives, two keys of one name, or two equal values.
    """
    axes: list[tuple[str, list[str]]] = []
    templates: list[list[str]] = []  # the pieces of each flag
    for flag in flags:
        name, _, value = flag.removeprefix('--').partition('=')
        path, colon, options = value.partition(':')
        template = [f'--{name}=']
        if name == 'config' and colon:
            variant, *assignments = options.split(',')
            pieces = [('variant', f'{path}:', variant)]
            for assignment in assignments:
                key, _, chosen = assignment.partition('=')
                pieces.append((key, f',{key}=', chosen))
        else:
            pieces = [(name.rpartition('.')[2], '', value)]
        for key, before, text in pieces:
            template.append(before)
            if '|' in text:
                axes.append((key, text.split('|')))
                template.append(_OF_AN_AXIS)
            else:
                template.append(text)
        templates.append(template)
    if not axes:
        raise Refused("there is one run: | separates alternatives, as in '--config.seed=0|1'")
    keys = [key for key, _ in axes]
    for key, values in axes:
        if keys.count(key) > 1 or len({*values}) < len(values) or '' in values:
            raise Refused(f'{key}: expected different values of one key, got {"|".join(values)}')
    runs = []
    for combination in itertools.product(*(values for _, values in axes)):
        rest = iter(combination)
        flags = [
            ''.join(next(rest) if piece is _OF_AN_AXIS else piece for piece in template)
            for template in templates
        ]
        flags.sort(key=lambda flag: not flag.startswith('--config='))  # the launcher wants it first
        runs.append(Run(dict(zip(keys, combination, strict=True)), flags))
    return runs


def is_finished(run: Run, workdir: Path) -> bool:
    """Tells whether the result of a run is there, and of the config that its flags name.

    Args:
      run: The run.
      workdir: The folder of the folders of all.

    Raises:
      Refused: The flags name no config, or the one in its folder is damaged.
    """
    folder = workdir / run.name
    if not (folder / 'result.json').exists():
        return False
    from experiments.training.checks import differing_keys  # slow to import

    config = config_of([x for x in run.flags if x.startswith(('--config=', '--config.'))])
    # What the config leaves to the data or to weights, a run's config.json holds.
    told = ('model.num_classes',) if config.model.get('num_classes') == 0 else ()
    if '--model_from=weights' in run.flags:
        told = ('model.',)
    differing = differing_keys(read_json(folder / 'config.json'), config)
    return all(key.startswith(told) for key in differing)


def finished_rows(runs: Sequence[Run], workdir: Path, average: Sequence[str]) -> list[Row]:
    """Reads the results that there are.

    Args:
      runs: All runs of the sweep.
      workdir: The folder of their folders.
      average: Keys whose values are averaged over.

    Returns:
      The rows, in the order of the runs.

    Raises:
      Refused: A result is damaged.
    """
    groups: dict[tuple, list[tuple[Run, dict]]] = {}
    for run in runs:
        if is_finished(run, workdir):
            key = tuple((k, v) for k, v in run.values.items() if k not in average)
            result = load_result(workdir / run.name / 'result.json')
            groups.setdefault(key, []).append((run, result))
    return [
        Row(
            dict(key),
            [result for _, result in found],
            read_json(workdir / found[0][0].name / 'config.json')['paper']['value'],
            [run.name for run, _ in found],
        )
        for key, found in groups.items()
    ]


def write(rows: Sequence[Row], compared: Sequence[Row], workdir: Path, command: str) -> None:
    """Writes sweep.json, sweep.md and sweep.png.

    Args:
      rows: What is finished, at least one run.
      compared: The rows of the picture.
      workdir: The folder.
      command: The command line.
    """
    from experiments.pictures.bars import write_bars

    content = {'command': command, 'rows': [dataclasses.asdict(row) for row in rows]}
    write_whole(workdir / 'sweep.json', json.dumps(content, indent=2) + '\n')
    write_whole(workdir / 'sweep.md', rows_table(rows) + '\n')
    write_bars(
        workdir / 'sweep.png',
        [row.values for row in compared],
        [[result['value'] for result in row.results] for row in compared],
        [row.paper for row in compared],
        metric=rows[0].results[0]['metric'],
        title=rows[0].results[0]['data'],
    )


def compared_in_picture(rows: Sequence[Row], runs: Sequence[Run], workdir: Path) -> Sequence[Row]:
    """Returns the rows that the picture compares: of a single one its runs, each by itself."""
    return rows if len(rows) > 1 else finished_rows(runs, workdir, average=())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not finished, and writes the table after each run.

    Args:
      argv: Arguments of the command line; None takes this process's own.

    Raises:
      Refused: The command line cannot be used, or a run failed: the others were run.
    """
    parser = Parser(
        prog='python -m experiments.sweep',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--workdir', required=True, help='folder of the folders of the runs')
    parser.add_argument('--average', default='seed,fold', help='keys to average over (%(default)s)')
    parser.add_argument('--table', action='store_true', help='run nothing, show what is finished')
    options, flags = parser.parse_known_args(argv)
    for flag in flags:
        if not re.match(r'--[\w.]+=', flag):
            raise Refused(f'{flag}: flags of experiments.launch are written --name=value')
        if flag.startswith('--mode='):
            raise Refused(f'{flag}: a sweep trains')
    workdir = Path(local_path(options.workdir, '--workdir'))
    runs, average = combinations(flags), options.average.split(',')
    command = ' '.join(['python -m experiments.sweep', *map(shlex.quote, flags)])

    def finished() -> list[Row]:
        rows = finished_rows(runs, workdir, average)
        if rows:
            write(rows, compared_in_picture(rows, runs, workdir), workdir, command)
        return rows

    failed = [] if options.table else run_all(runs, workdir, finished)
    rows = finished()
    if rows:
        print(rows_table(rows))
        print(f'The picture is {workdir / "sweep.png"}')
    elif not failed:
        raise Refused(f'{workdir}: no run is finished')
    if failed:
        some = '; '.join(failed[:3]) + ('; ...' if len(failed) > 3 else '')
        raise Refused(f'{len(failed)} of {len(runs)} runs failed: {some}')


def run_all(runs: Sequence[Run], workdir: Path, finished: Callable[[], object]) -> list[str]:
    """Runs what is not finished, one after the other.

    Args:
      runs: All runs of the sweep.
      workdir: The folder of their folders.
      finished: Called after each run that ends well.

    Returns:
      Names of the runs that failed; their own messages were printed.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        if is_finished(run, workdir):
            continue
        print(f'Run {number} of {len(runs)}: {run.name}', flush=True)
        command = [sys.executable, '-m', 'experiments.launch', *run.flags]
        code, asked = run_to_its_end([*command, f'--workdir={workdir / run.name}'])
        if code in STOPPED or not code and not (workdir / run.name / 'result.json').exists():
            raise Refused(f'{run.name} was stopped; the same command goes on')
        if code:
            failed.append(run.name)
        else:
            finished()
        if asked:  # to stop, and the run was at its end
            raise Refused(f'stopped behind {run.name}; the same command goes on')
    return failed


def run_to_its_end(command: Sequence[str]) -> tuple[int, bool]:
    """Runs a command, which gets the SIGINT and SIGTERM of this process and ends as it likes.

    Args:
      command: The program and its arguments.

    Returns:
      Its exit status, or the negative number of a signal that killed it; and whether this process
      got one of those signals.
    """
    asked = []

    def forward(number: int, _: object) -> None:
        asked.append(number)
        process.send_signal(number)

    # In a session of its own: Ctrl-C reaches it once, by us, also where none is at a terminal.
    process = subprocess.Popen(command, start_new_session=True)
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(x, forward) for x in numbers]
    try:
        return process.wait(), bool(asked)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == '__main__':
    with one_line_errors():
        main()
