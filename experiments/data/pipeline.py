"""Endless training batches and complete evaluation passes over any random-access source.

Item n of the training stream, which examples it is made of and the random numbers of their
transform, depends on (seed, n) alone. So training resumes at any step, and neither the number of
workers nor the number of processes changes what a step trains on. Grain runs the worker processes
and keeps the batches in order.

Workers are spawned: `source` and `transform` must pickle, and a script that asks for workers must
guard its entry with `if __name__ == '__main__'`.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from absl import flags

from perceiver_jax.errors import Refused

if TYPE_CHECKING:
    import grain  # slow to import, and not needed by all who import this file

Example = dict[str, Any]  # what a source yields
Item = Mapping[str, np.ndarray | np.generic]  # what a transform makes of it: one row of a batch
Batch = dict[str, np.ndarray]
Batches = Generator[Batch, None, None]  # to be closed when done: they own threads or processes

# A worker sends its items in pieces of a batch: several whole batches of large images per worker
# would fill the memory.
_MAX_ITEMS_PER_PIECE = 32
_ENDLESS = 2**40  # steps


class BrokenExample(Refused):
    """An example that cannot be read; the message names its file and says why."""


class Source(Protocol):
    """Random access to examples; picklable. Its `str` names it in error messages."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads the example at `index`, 0 <= index < len; raises `BrokenExample` if it cannot."""


class LabelledSource(Source, Protocol):
    """A source whose examples have labels, indices into `classes`."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, in the order of their labels."""


def train_batches(
    source: Source,
    transform: Callable[[Example, np.random.Generator], Item],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    examples_per_item: int = 1,
    repeats: int = 1,
    on_broken: str = 'stop',
) -> Batches:
    """Returns this process's part of the global training batches, forever.

    Every epoch visits every example once (with `repeats` that often, one after the other), in an
    order of its own; an epoch may end within a batch. Close the iterator (`.close()`) when done: it
    owns a thread or processes.

    Args:
      source: The training examples.
      transform: Makes one row of a batch, a dictionary of arrays of the same shapes for every
        example, from an example and a generator of random numbers. Raises `BrokenExample` for an
        example that cannot be read.
      batch_size: Items in a global batch, a multiple of `process_count`.
      seed: Seed of the order and of the transform's random numbers, 0 <= seed < 2**32.
      start_step: Number of global batches to skip.
      process_index: Which part of each global batch to return, 0 <= process_index < process_count.
      process_count: Number of contiguous parts of b = batch_size / process_count items each.
      num_workers: Number of worker processes; 0 works in a thread of this process.
      examples_per_item: Number of consecutive transformed examples that make one item, stacked on
        axis 1 (`[b, examples_per_item, ...]`) where more than one: MixUp needs two.
      repeats: How often an example is transformed, each time with other random numbers, for once
        that it is read: for examples that take longer to read than to transform.
      on_broken: 'stop' raises `BrokenExample`, 'skip' takes the source's next readable example.

    Returns:
      Iterator over the transform's arrays `[b, ...]`, with 'index' `[b]` uint32, the item's
      place in the global batch, and 'broken' `[b]` int32, its number of replaced examples.

    Raises:
      Refused: The source is empty, `batch_size` does not divide by `process_count`, or `on_broken`
        is unknown. From the iterator: no example can be read, or (`BrokenExample`) one cannot and
        `on_broken` is 'stop'.

    Source: `repeats` is batch augmentation, Hoffer et al., Augment Your Batch, 2020.
    """
    import grain

    if len(source) == 0:
        raise Refused(f'{source} has no examples to train on')
    if batch_size < 1 or batch_size % process_count:
        raise Refused(
            f'batch_size must be a positive multiple of the number of processes, got '
            f'batch_size={batch_size} with process_count={process_count}'
        )
    rows = batch_size // process_count
    items = _TrainItems(
        reader=_Reader(source if repeats == 1 else _LastRead(source), on_broken),
        transform=transform,
        order=grain.MapDataset.range(len(source)).shuffle(seed=seed),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        first_row=process_index * rows,
        examples_per_item=examples_per_item,
        repeats=repeats,
    )
    return _batches(grain.MapDataset.source(items)[start_step * rows :], rows, num_workers)


def eval_batches(
    source: Source,
    transform: Callable[[Example], Item],
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    on_broken: str = 'stop',
) -> Batches:
    """Returns this process's part of one pass over the source.

    Each example stands unmasked in exactly one batch of one process, and all processes yield
    the same number of batches of the same shape, at any batch size and process count.

    Args:
      source: The evaluation examples.
      transform: Makes one row of a batch, a dictionary of arrays of the same shapes for every
        example, from an example; deterministic. Raises `BrokenExample` for an example that cannot
        be read.
      batch_size: Items in a global batch; rounded up to a multiple of `process_count`.
      process_index: Which part of each global batch to return, 0 <= process_index < process_count.
      process_count: Number of contiguous parts, of equal size b, that a global batch is split into.
      num_workers: Number of worker processes; 0 works in a thread of this process.
      on_broken: 'stop' raises `BrokenExample`, 'skip' masks the example.

    Returns:
      Iterator over the transform's arrays `[b, ...]`, with 'index' `[b]` uint32, the example's
      place in the source, 'mask' `[b]` bool, False for padding and broken examples, and 'broken'
      `[b]` int32, 1 for broken examples.

    Raises:
      Refused: `batch_size` is not positive, or `on_broken` is unknown. From the iterator: no
        example can be read, or (`BrokenExample`) one cannot and `on_broken` is 'stop'.
    """
    import grain

    if batch_size < 1:
        raise Refused(f'batch_size must be positive, got {batch_size}')
    rows = -(-batch_size // process_count)
    items = _EvalItems(
        reader=_Reader(source, on_broken),
        transform=transform,
        batch_size=rows * process_count,
        rows=rows,
        first_row=process_index * rows,
    )
    return _batches(grain.MapDataset.source(items), rows, num_workers)


class _LastRead:
    """A source that has the example that was read last at hand."""

    def __init__(self, source: Source):
        self._source, self._index = source, -1
        self._example: Example = {}

    def __repr__(self) -> str:
        return repr(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if index != self._index:
            self._example = self._source[index]
            self._index = index
        return self._example


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads and transforms one example; a broken one raises or gives way to the next."""

    source: Source
    on_broken: str

    def __post_init__(self):
        if self.on_broken not in ('stop', 'skip'):
            raise Refused(f"on_broken must be 'stop' or 'skip', got {self.on_broken!r}")

    def __call__(self, index: int, transform: Callable[[Example], Item]) -> tuple[Item, bool]:
        """Returns the example at `index`, or the next readable one, and whether it was replaced."""
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            try:
                return transform(self.source[candidate]), offset > 0
            except BrokenExample as error:
                if self.on_broken == 'stop':
                    raise
                _warn_once(str(error))
            except Exception as error:
                error.add_note(f'while reading example {candidate} of {self.source}')
                raise _picklable(error) from error
        raise Refused(f'no example of {self.source} can be read')


@dataclasses.dataclass(frozen=True)
class _TrainItems:
    """The items of one process: row r of its step s is item s * batch_size + first_row + r."""

    reader: _Reader
    transform: Callable[[Example, np.random.Generator], Item]
    order: 'grain.MapDataset'  # place in the endless stream -> index in the source
    seed: int
    batch_size: int
    rows: int
    first_row: int
    examples_per_item: int
    repeats: int

    def __len__(self) -> int:
        return _ENDLESS * self.rows

    def __getitem__(self, position: int) -> Item:
        step, row = divmod(position, self.rows)
        row += self.first_row
        item = step * self.batch_size + row
        places = range(item * self.examples_per_item, (item + 1) * self.examples_per_item)
        examples, broken = zip(*map(self._example, places), strict=True)
        arrays = examples[0]
        if self.examples_per_item > 1:
            arrays = {key: np.stack([example[key] for example in examples]) for key in arrays}
        return {**arrays, 'index': np.uint32(row), 'broken': np.int32(sum(broken))}

    def _example(self, place: int) -> tuple[Item, bool]:
        return self.reader(
            self.order[place // self.repeats],
            lambda example: self.transform(example, np.random.default_rng((self.seed, place))),
        )


@dataclasses.dataclass(frozen=True)
class _EvalItems:
    """The items of one process, padded by masked repetitions to whole batches."""

    reader: _Reader
    transform: Callable[[Example], Item]
    batch_size: int
    rows: int
    first_row: int

    def __len__(self) -> int:
        return -(-len(self.reader.source) // self.batch_size) * self.rows

    def __getitem__(self, position: int) -> Item:
        step, row = divmod(position, self.rows)
        item = step * self.batch_size + self.first_row + row
        arrays, broken = self.reader(item % len(self.reader.source), self.transform)
        real = item < len(self.reader.source)
        return {
            **arrays,
            'index': np.uint32(item % len(self.reader.source)),
            'mask': np.bool_(real and not broken),
            'broken': np.int32(real and broken),
        }


def _batches(items: 'grain.MapDataset', rows: int, num_workers: int) -> Batches:
    """Yields batches of `rows` consecutive items, in order; frees its workers however it ends."""
    import grain

    piece = max(n for n in range(1, _MAX_ITEMS_PER_PIECE + 1) if rows % n == 0)
    pieces = items.batch(piece, drop_remainder=True)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its own; a test or a script parses none
            flags.FLAGS.mark_as_parsed()
        in_worker = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        pieces = pieces.to_iter_dataset(in_worker).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
            worker_init_fn=_end_with_parent,
        )
    else:
        in_thread = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * rows // piece)
        pieces = pieces.to_iter_dataset(in_thread)
    iterator = iter(pieces.batch(rows // piece, drop_remainder=True, batch_fn=_join))
    try:
        if num_workers:
            with _signals_blocked():  # the workers start with the first batch
                first = list(itertools.islice(iterator, 1))
            yield from first
        yield from iterator
    finally:
        iterator.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Lets processes that are started meanwhile never see Ctrl-C or SIGTERM: what is blocked stays.

    A terminal sends Ctrl-C to all processes of a run, and a cluster SIGTERM; the workers must go
    on, for the checkpoint that the run still makes. Grain asks them to end, and kills those that
    do not.
    """
    _start_tracker()  # when it starts, it unblocks the signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start_tracker() -> None:
    """Starts Python's tracker of shared memory, which removes what the processes of a run leave.

    It does so after the last of them has ended, however that was, and without a warning: arrays on
    their way from a worker are left by every run that is killed.
    """
    sys.warnoptions.append('ignore:resource_tracker')  # handed on as the tracker's own -W
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove('ignore:resource_tracker')


def _end_with_parent(*_: int) -> None:
    """Has this worker end as soon as the process that started it has, also when that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # whatever the worker is doing

    threading.Thread(target=watch, name='end with parent', daemon=True).start()


def _join(pieces: list[Batch]) -> Batch:
    return {key: np.concatenate([piece[key] for piece in pieces]) for key in pieces[0]}


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning('skipped: %s', message)


def _picklable(error: Exception) -> Exception:
    """Returns `error`, or a RuntimeError of its text where it cannot be sent out of a worker."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(''.join(traceback.format_exception(error)))
