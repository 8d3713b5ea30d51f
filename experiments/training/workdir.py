"""What a run writes into its folder beside the checkpoints, and the progress line."""

import contextlib
import datetime
import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.paths import in_bucket, store_errors
from experiments.training import parallel
from perceiver_jax.files import append, naming, write_whole

_QUIET_SECONDS = 60.0  # between training lines that go to a file or a pipe
_REWRITE_SECONDS = 30.0  # between two writes of an object that grows


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

    The main process writes; all processes keep the rows. A line of metrics.jsonl that cannot be
    written is an OSError, which names the file; events are left out then, which is told once.

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
        self._path = workdir / 'metrics.jsonl'
        self.rows = [row for row in read_rows(self._path) if row['step'] <= step]
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._quiet_until = 0.0  # on time.monotonic's clock
        self._writes = parallel.is_main_process()
        if self._writes:
            lines = ''.join(json.dumps(row) + '\n' for row in self.rows).encode()
            write_whole(self._path, lines)
            self._file = _GrowingFile(self._path, lines)
            self._events = _Events(workdir, first_step=step + 1)

    def write(
        self, step: int, split: str, numbers: Mapping[str, float], sync: bool = False
    ) -> None:
        """Adds one line.

        Args:
          step: Updates made so far.
          split: 'train', with loss, learning_rate and examples_per_second, or 'eval'.
          numbers: Metrics by name.
          sync: Whether to wait until all lines are on disk, as before a checkpoint of this step.
        """
        row = {'step': step, 'split': split, **numbers}
        self.rows.append(row)
        if not self._writes:
            return
        self._file.append(f'{json.dumps(row)}\n'.encode(), sync)
        self._events.write(step, split, numbers)
        with naming('standard output'):
            self._print(row)

    def close(self) -> None:
        """Writes what is not written yet, and ends the progress line."""
        if not self._writes:
            return
        if sys.stdout.isatty():
            print()
        self._events.close()
        self._file.close()

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


class _GrowingFile:
    """A file that content is added to.

    An object of a bucket can only be replaced: it is written anew every half minute, and when it
    must not be lost; what a killed run has not written is that of less than this time.
    """

    def __init__(self, path: Path, content: bytes = b''):
        """Takes a file up.

        Args:
          path: The file.
          content: What it holds.
        """
        self._path = path
        self._content = bytearray(content) if in_bucket(path) else None
        self._is_written = True  # of an object
        self._next = time.monotonic() + _REWRITE_SECONDS

    def append(self, content: bytes, sync: bool = False) -> None:
        """Adds content; `sync` waits until all of it is written."""
        if self._content is None:
            append(self._path, content, sync)
            return
        self._content += content
        self._is_written = False
        if sync or time.monotonic() >= self._next:
            self.close()

    def close(self) -> None:
        """Writes what is not written yet; more can be added."""
        if self._content is None or self._is_written:
            return
        with store_errors(self._path):
            write_whole(self._path, self._content)
        self._is_written = True
        self._next = time.monotonic() + _REWRITE_SECONDS


class _Events:
    """Writes TensorBoard events in the calling thread, so that a full disk cannot block a queue."""

    def __init__(self, workdir: Path, first_step: int):
        """Starts a file.

        Args:
          workdir: The run's folder.
          first_step: TensorBoard forgets what older files of the folder have from this step on.
        """
        import tensorboardX  # slow, and evaluation only needs write_json

        self._summary = tensorboardX.summary.scalar
        self._crc = tensorboardX.record_writer.masked_crc32c
        self._event = tensorboardX.proto.event_pb2.Event
        path = workdir / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
        self._file = _GrowingFile(path)
        self._warned = False
        start = tensorboardX.proto.event_pb2.SessionLog(status='START')
        self._append({'file_version': 'brain.Event:2'}, {'step': first_step, 'session_log': start})

    def write(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Adds one event for each number; the arguments are those of `Metrics.write`."""
        self._append(
            *(
                {'step': step, 'summary': self._summary(f'{split}/{name}', number)}
                for name, number in numbers.items()
            )
        )

    def _append(self, *events: Mapping[str, Any]) -> None:
        """Adds events, given by their fields; warns the first time that they cannot be written."""
        records = [self._record(event) for event in events]
        with self._warning():
            self._file.append(b''.join(records))

    def close(self) -> None:
        """Writes what is not written yet."""
        with self._warning():
            self._file.close()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._warned:
                self._warned = True
                problem = f'{error.filename}: {error.strerror}'
                print(f'warning: {problem}; training goes on without', file=sys.stderr)

    def _record(self, fields: Mapping[str, Any]) -> bytes:
        """Returns an event as TFRecord has it: its length and its bytes, each with a checksum."""
        content = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack('<Q', len(content))
        sums = [struct.pack('<I', self._crc(part)) for part in (length, content)]
        return length + sums[0] + content + sums[1]


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
        if _is_row(row):
            rows.append(row)
        else:
            print(f'{path}, line {number} is no whole JSON object, dropped')
    return rows


def _is_row(row: Any) -> bool:
    """Returns whether a JSON value is a line as `Metrics` writes it."""
    if not isinstance(row, dict) or row.get('split') not in ('train', 'eval'):
        return False
    numbers = [value for key, value in row.items() if key != 'split']
    return type(row.get('step')) is int and all(map(_is_number, numbers))


def _is_number(value: object) -> bool:
    """Returns whether a JSON value is a number that arrays hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
