"""What a run writes into its folder beside the checkpoints, and the progress line."""

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.training import parallel
from perceiver_jax.files import write_whole

_QUIET_SECONDS = 60.0  # between training lines that go to a file or a pipe


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an indented JSON file atomically."""
    write_whole(path, json.dumps(content, indent=2) + '\n')


def now() -> str:
    """Returns the date and time in UTC, in ISO 8601 up to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def git_commit() -> str | None:
    """Returns the commit checked out, with '-dirty' appended if files differ from it.

    Returns:
      The commit; None outside a git checkout or without git.
    """
    command = ['git', '-C', str(Path(__file__).parent), 'describe']
    command += ['--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


class Metrics:
    """Writes metrics.jsonl, TensorBoard events and the progress line.

    The main process writes; all processes keep the rows.

    Attributes:
      rows: The lines of metrics.jsonl so far, as dictionaries.
    """

    def __init__(self, workdir: Path, *, step: int, total_steps: int, batch_size: int):
        """Opens the files.

        Args:
          workdir: The run's folder.
          step: Updates made so far. Lines about later updates are dropped: they are from a run
            that was killed after its last checkpoint.
          total_steps: Updates of the whole run.
          batch_size: Examples in an update.
        """
        path = workdir / 'metrics.jsonl'
        self.rows = [row for row in read_rows(path) if row['step'] <= step]
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._quiet_until = 0.0  # on time.monotonic's clock
        self._writes = parallel.is_main_process()
        if self._writes:
            import tensorboardX  # slow, and evaluation only needs write_json

            write_whole(path, ''.join(json.dumps(row) + '\n' for row in self.rows))
            self._file = path.open('a')
            self._tensorboard = tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1)

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Adds one line.

        Args:
          step: Updates made so far.
          split: 'train', with loss, learning_rate and examples_per_second, or 'eval'.
          numbers: Metrics by name.
        """
        row = {'step': step, 'split': split, **numbers}
        self.rows.append(row)
        if not self._writes:
            return
        self._file.write(json.dumps(row) + '\n')
        self._file.flush()
        for name, number in numbers.items():
            self._tensorboard.add_scalar(f'{split}/{name}', number, step)
        self._print(row)

    def close(self) -> None:
        """Closes the files, and ends the progress line."""
        if not self._writes:
            return
        self._file.close()
        self._tensorboard.close()
        if sys.stdout.isatty():
            print()

    def _print(self, row: Mapping[str, Any]) -> None:
        place = f'{row["step"]:,}/{self._total_steps:,}'
        if row['split'] == 'train':
            rate = row['examples_per_second']
            seconds = (self._total_steps - row['step']) * self._batch_size / rate
            eta = datetime.timedelta(seconds=round(seconds))
            line = (
                f'step {place}  loss {row["loss"]:.4f}  lr {row["learning_rate"]:.2e}  '
                f'{rate:,.1f} examples/s  {eta} left'
            )
            if row.get('broken_examples'):
                line += f'  {row["broken_examples"]:,.0f} broken examples'
        else:
            numbers = '  '.join(
                f'{k} {v:.4f}' for k, v in row.items() if k not in ('step', 'split')
            )
            line = f'step {place}  evaluation: {numbers}'
        if sys.stdout.isatty():  # training lines overwrite each other, evaluations stay
            end = '\n' if row['split'] == 'eval' else ''
            print(f'\r\x1b[K{line}', end=end, flush=True)
        elif row['split'] == 'eval' or time.monotonic() >= self._quiet_until:
            print(line, flush=True)
            self._quiet_until = time.monotonic() + _QUIET_SECONDS


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, without lines that a killed process or a full disk left incomplete.

    Args:
      path: The file; there need not be one.

    Returns:
      The lines, each with a whole number as `step`, a `split`, and numbers by name.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # not JSON, or not text
            row = None
        if isinstance(row, dict) and isinstance(row.get('step'), int) and 'split' in row:
            rows.append(row)
        else:
            print(f'{path}, line {number} is no whole JSON object, dropped')
    return rows
