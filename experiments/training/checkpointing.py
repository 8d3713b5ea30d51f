"""Checkpoints of a run, saved and restored by Orbax.

A checkpoint is a flat dictionary of arrays, each named by its place in the training state, such as
'params/encoder/latents', with one sha256 of them all. Nothing in it depends on the
number of devices or processes: what is saved and what is restored are host arrays. The main process
saves alone: Orbax waits twenty minutes for all of the processes where one of them could not write.
"""

import contextlib
import dataclasses
import errno
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from haiku.data_structures import merge

from experiments.paths import (
    in_bucket,
    is_of_client,
    make_folder,
    origins,
    path_of,
    store_errors,
    store_problem,
)
from experiments.training import parallel
from perceiver_jax.errors import Refused
from perceiver_jax.files import sync_file, sync_folder
from perceiver_jax.weights.trees import check_shapes

# Numbers of the system's errors that say nothing about what was to be read.
_NOT_DAMAGED = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EREMOTEIO)

# What tensorstore calls the errors of a bucket that are not about what it holds.
_OF_STORE = ('PERMISSION_DENIED', 'UNAUTHENTICATED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'ABORTED')

Tree = Any  # nested dictionaries, tuples and NamedTuples of arrays


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best of those that were evaluated."""

    def __init__(self, workdir: str | Path, keep: int | None):
        """Opens `workdir`/checkpoints.

        Args:
          workdir: The run's folder.
          keep: How many of the newest to keep beside the best; None only reads, and does not
            disturb a run that is writing there.

        Raises:
          OSError: The folder cannot be read or, to write, not made; it names the folder.
        """
        workdir = path_of(workdir)
        self._in_bucket = in_bucket(workdir)
        self._directory = (workdir if self._in_bucket else workdir.absolute()) / 'checkpoints'
        self._scores: dict[int, float] = {}  # step -> score when evaluated, greater is better
        self._saving = False  # whether a checkpoint is not known to be on disk
        self._failed = False  # whether the folder could not be written to
        self._writes = keep is not None and parallel.is_main_process()
        with self._system_errors():
            if self._writes:
                make_folder(self._directory)
            if keep is not None:
                parallel.barrier('checkpoints written before')
            self._manager = self._open(keep)
        for step in self._manager.all_steps():
            try:
                metadata = self._metadata(step).custom_metadata
                copied = metadata.get('step', step) != step  # and named for another step
                if metadata['score'] is not None and not copied:
                    self._scores[step] = metadata['score']
            except Exception as error:  # a damaged checkpoint: restore() will report it
                if _system_error(error) == errno.EREMOTEIO:  # else the best might be removed
                    raise _os_error(error, errno.EREMOTEIO, self._directory) from None

    def _open(self, keep: int | None) -> ocp.CheckpointManager:
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=process, active_processes={process}, barrier_sync_key_prefix=f'{process}'
        )
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                read_only=not self._writes,
                cleanup_tmp_directories=self._writes,
                save_interval_steps=0,  # the loop knows when to save
                save_root_metadata=False,
                multiprocessing_options=alone,
                # Else a thread waits five minutes for a folder that could not be made.
                async_options=ocp.AsyncOptions(
                    create_directories_asynchronously=False,
                    post_finalization_callback=None if self._in_bucket else self._sync,
                ),
                preservation_policy=_NewestAndBest(keep, self._scores),
            ),
            item_handlers=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        )

    def save(
        self, step: int, tree: Tree, *, wall_seconds: float, score: float | None = None
    ) -> None:
        """Starts to save in the background, in the main process. All processes call it.

        Args:
          step: Updates made so far.
          tree: Host arrays, equal in all processes; not to be written to afterwards.
          wall_seconds: How long the run has taken so far.
          score: The headline metric if this step was evaluated, negated where lower is better;
            None if it was not.

        Raises:
          OSError: This checkpoint, or the one before it, cannot be written; it names the folder.
        """
        if score is not None and not math.isnan(score):
            self._scores[step] = score
        if not self._writes:
            return
        arrays = flatten(tree)
        metadata = {
            'step': step,
            'sha256': digest(arrays),
            'wall_seconds': wall_seconds,
            'score': self._scores.get(step),
        }
        self._wait()
        with self._system_errors():
            self._manager.save(
                step, args=ocp.args.PyTreeSave(arrays), custom_metadata=metadata, force=True
            )
        self._saving = True

    def check(self) -> None:
        """Finds out whether what was being saved could not be, without waiting for it.

        Raises:
          OSError: The checkpoint cannot be written; it names the folder.
        """
        if self._saving and not self._manager.is_saving_in_progress():
            self._wait()

    def restore(self, like: Tree) -> tuple[Tree, float] | None:
        """Restores the newest undamaged checkpoint, and sets damaged newer ones aside.

        A folder that is named for another step than it holds, such as a copy, counts as damaged.

        Args:
          like: A tree of arrays, or of their shapes, with the structure that the run needs.

        Returns:
          The tree with host arrays, and the wall seconds so far; None if there is no checkpoint.

        Raises:
          Refused: All checkpoints are damaged, or the newest undamaged one does not fit the tree.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return None
        step, arrays, metadata = self._read_first_whole(steps)
        parallel.check_equal(step, f'the newest whole checkpoint in {self._directory}')
        check_fit(arrays, like, self._directory / str(step))
        for damaged in steps[: steps.index(step)]:
            if parallel.is_main_process():
                path = self._directory / str(damaged)
                times = len(list(self._directory.glob(f'{damaged}.damaged*')))
                path.rename(path.with_name(f'{damaged}.damaged{times or ""}'))
        parallel.barrier('damaged checkpoints set aside')
        self._manager.reload()
        tree = jax.tree.map_with_path(lambda path, _: arrays[_name(path)], like)
        return tree, metadata['wall_seconds']

    def read(self, best: bool) -> tuple[int, dict[str, np.ndarray]]:
        """Reads a checkpoint without the training state around it.

        Args:
          best: Whether to read the one with the best score instead of the newest undamaged one.

        Returns:
          The checkpoint's step, and its arrays by name.

        Raises:
          Refused: There is no such checkpoint, or it is damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if best:
            scored = [step for step in steps if step in self._scores]
            steps = sorted(scored, key=self._scores.__getitem__)[-1:]
        if not steps:
            wanted = 'evaluated checkpoint' if best else 'checkpoint'
            raise Refused(f'no {wanted} in {self._directory}')
        step, arrays, _ = self._read_first_whole(steps)
        return step, arrays

    def close(self) -> None:
        """Waits until all that was saved is on disk.

        Raises:
          OSError: A checkpoint cannot be written, which was not raised before; it names the folder.
        """
        failed, errors = self._failed, []
        for _ in range(4):  # Orbax raises what each of its threads met once, and is not closed then
            try:
                self._wait()
                with self._system_errors():
                    self._manager.close()
                break
            except OSError as error:
                errors.append(error)
        if errors and not failed:
            raise errors[0]

    def _wait(self) -> None:
        """Waits until what is being saved is on disk."""
        if self._saving:
            self._saving = False
            with self._system_errors():
                self._manager.wait_until_finished()
                if not self._in_bucket:
                    sync_folder(self._directory)

    @contextlib.contextmanager
    def _system_errors(self) -> Iterator[None]:
        """Raises what Orbax makes of an error of the system as an OSError that names the folder."""
        try:
            yield
        except Exception as error:
            if (number := _system_error(error)) is None:
                raise
            self._failed = True
            raise _os_error(error, number, self._directory) from None

    def _sync(self) -> None:
        """Waits until the files of the checkpoint that Orbax is about to rename are on disk."""
        for path in self._directory.glob('*.orbax-checkpoint-tmp/**/*'):
            (sync_folder if path.is_dir() else sync_file)(path)

    def _read_first_whole(
        self, steps: list[int]
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
        """Reads the first undamaged checkpoint: its step, arrays and metadata."""
        for step in steps:
            path = self._directory / str(step)
            try:
                arrays, metadata = self._read(step)
            except (PermissionError, MemoryError):  # says nothing about the checkpoint
                raise
            except Exception as error:  # what Orbax raises depends on which file is damaged how
                number = _system_error(error)
                if number in _NOT_DAMAGED:  # nor this
                    raise _os_error(error, number, path) from None
                reason = f'{type(error).__name__}: {" ".join(str(error).split())[:100]}'
                parallel.say(f'{path} is damaged, skipped: {reason}')
                continue
            if (held := int(arrays.get('step', step))) == step:
                return step, arrays, metadata
            parallel.say(f'{path} holds step {held}, skipped: a copy, or renamed')
        raise Refused(
            f'all checkpoints in {self._directory} are damaged; remove them to start afresh'
        )

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        metadata = self._metadata(step)
        to_host = {
            name: ocp.RestoreArgs(restore_type=np.ndarray) for name in metadata.item_metadata.tree
        }
        arrays = self._manager.restore(step, args=ocp.args.PyTreeRestore(restore_args=to_host))
        expected, found = metadata.custom_metadata['sha256'], digest(arrays)
        if found != expected:
            raise Refused(f'sha256 is {found}, {expected} was saved')
        return arrays, metadata.custom_metadata

    def _metadata(self, step: int) -> Any:
        """Reads what Orbax and `save` tell of a checkpoint."""
        metadata = self._manager.metadata(step)
        if self._in_bucket and not metadata.custom_metadata:
            # Orbax only logs why it could not read them: reading again raises it.
            (self._directory / str(step) / '_CHECKPOINT_METADATA').read_bytes()
        return metadata


def load_params(workdir: str | Path, best: bool = False) -> tuple[Tree, Tree, int]:
    """Loads the weights that a run has left in its folder: the averages, where it kept them.

    Args:
      workdir: The run's folder.
      best: Whether to take the best checkpoint by the headline metric instead of the newest.

    Returns:
      Haiku's parameters, Haiku's state, both `{module: {name: host array}}`, and their step.

    Raises:
      Refused: There is no such checkpoint.
    """
    checkpoints = Checkpoints(workdir, keep=None)
    step, arrays = checkpoints.read(best)
    checkpoints.close()
    trees: dict[str, dict[str, dict[str, np.ndarray]]] = {'params': {}, 'state': {}, 'ema': {}}
    for name, array in arrays.items():
        field, _, rest = name.partition('/')
        if field in trees:
            module, _, leaf = rest.rpartition('/')
            trees[field].setdefault(module, {})[leaf] = array
    return merge(trees['params'], trees['ema']), trees['state'], step


@contextlib.contextmanager
def last_good_named(workdir: str | Path) -> Iterator[None]:
    """Adds to an error of the system, such as a full disk, which checkpoint a run has left.

    Args:
      workdir: The run's folder.

    Yields:
      Nothing; the run writes to its folder within.

    Raises:
      OSError: What was raised within, with the checkpoint in its `strerror` if there is one.
    """
    try:
        with store_errors(workdir):
            yield
    except OSError as error:
        workdir = path_of(workdir)
        # What Orbax writes last: in a bucket, where nothing is renamed, into the folder itself.
        last = 'commit_success.txt' if in_bucket(workdir) else '_CHECKPOINT_METADATA'
        steps = []
        with contextlib.suppress(OSError), store_errors(workdir):  # it may not answer now
            whole = workdir.glob(f'checkpoints/*/{last}')
            steps = [int(path.parent.name) for path in whole if path.parent.name.isdecimal()]
        if steps and error.strerror:
            error.strerror += f'; the last good checkpoint is of step {max(steps)}'
        raise


def check_fit(arrays: Mapping[str, np.ndarray], like: Tree, source: str | Path) -> None:
    """Checks the names and shapes of restored arrays.

    Args:
      arrays: What was restored, by name.
      like: A tree of arrays, or of their shapes, with the structure that is needed.
      source: Where the arrays are from, for the message.

    Raises:
      Refused: Arrays are missing, left over or of another shape; the message names them.
    """
    found = {name: array.shape for name, array in arrays.items()}
    check_shapes(found, {name: leaf.shape for name, leaf in flatten(like).items()}, source)


def flatten(tree: Tree) -> dict[str, Any]:
    """Names each leaf of a tree by its place: {'params/encoder/latents': leaf, ...}."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Computes the sha256 over the names, in sorted order, each followed by its array's bytes."""
    sha256 = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha256.update(name.encode())
        sha256.update(np.asarray(array).tobytes())
    return sha256.hexdigest()


@dataclasses.dataclass
class _NewestAndBest:
    """A PreservationPolicy: Orbax asks it after each save which checkpoints stay."""

    newest: int | None  # None keeps all
    scores: dict[int, float]  # shared with Checkpoints, which adds to it

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(steps if self.newest is None else sorted(steps)[-self.newest :])
        evaluated = [step for step in steps if step in self.scores]
        if evaluated:
            kept.add(max(evaluated, key=self.scores.__getitem__))
        return [step in kept for step in steps]


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')


def _os_error(error: Exception, number: int, path: Path) -> OSError:
    """Returns an error of the system, or of a bucket, as an OSError that names a path."""
    return OSError(number, store_problem(error) or os.strerror(number), str(path))


def _system_error(error: BaseException) -> int | None:
    """Returns the number of the system's error that an exception came of; None if of none."""
    for origin in origins(error, hidden=True):
        text = str(origin)
        if isinstance(origin, OSError) and origin.errno is not None:
            return origin.errno
        if found := re.search(r"os_error_code='(\d+)'", text):  # tensorstore, in a ValueError
            return int(found[1])
        if text.startswith('NOT_FOUND: '):  # the same, of what was removed meanwhile
            return errno.ENOENT
        if isinstance(origin, FileNotFoundError):  # and of gcsfs, without a number
            return errno.ENOENT
        if text.startswith(_OF_STORE) or is_of_client(origin):
            return errno.EREMOTEIO
    return None
