"""Checkpoints of a run, saved and restored by Orbax.

A checkpoint is a flat dictionary of arrays, each named by its place in the training state, such as
'params/encoder/latents', with one sha256 of them all. Nothing in it depends on the
number of devices or processes: what is saved and what is restored are host arrays.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.training import parallel
from perceiver_jax.errors import Refused
from perceiver_jax.weights.trees import check_shapes

Tree = Any  # nested dictionaries, tuples and NamedTuples of arrays


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best of those that were evaluated."""

    def __init__(self, workdir: str | Path, keep: int | None):
        """Opens `workdir`/checkpoints.

        Args:
          workdir: The run's folder.
          keep: How many of the newest to keep beside the best; None only reads, and does not
            disturb a run that is writing there.
        """
        writes = keep is not None
        self._directory = Path(workdir).absolute() / 'checkpoints'
        self._scores: dict[int, float] = {}  # step -> score when evaluated, greater is better
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=writes,
                read_only=not writes,
                cleanup_tmp_directories=writes,
                save_interval_steps=0,  # the loop knows when to save
                save_root_metadata=False,
                preservation_policy=_NewestAndBest(keep, self._scores),
            ),
            item_handlers=ocp.PyTreeCheckpointHandler(),
        )
        for step in self._manager.all_steps():
            with contextlib.suppress(Exception):  # a damaged checkpoint: restore() will report it
                score = self._manager.metadata(step).custom_metadata['score']
                if score is not None:
                    self._scores[step] = score

    def save(
        self, step: int, tree: Tree, *, wall_seconds: float, score: float | None = None
    ) -> None:
        """Starts to save in the background. All processes call it.

        Args:
          step: Updates made so far.
          tree: Host arrays, equal in all processes; not to be written to afterwards.
          wall_seconds: How long the run has taken so far.
          score: The headline metric if this step was evaluated, negated where lower is better;
            None if it was not.
        """
        arrays = flatten(tree)
        if score is not None and not math.isnan(score):
            self._scores[step] = score
        self._manager.save(
            step,
            args=ocp.args.PyTreeSave(arrays),
            custom_metadata={
                'sha256': digest(arrays),
                'wall_seconds': wall_seconds,
                'score': self._scores.get(step),
            },
            force=True,
        )

    def restore(self, like: Tree) -> tuple[Tree, float] | None:
        """Restores the newest undamaged checkpoint, and sets damaged newer ones aside.

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
        """Waits until all that was saved is on disk."""
        self._manager.close()

    def _read_first_whole(
        self, steps: list[int]
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
        """Reads the first undamaged checkpoint: its step, arrays and metadata."""
        for step in steps:
            try:
                return step, *self._read(step)
            except (PermissionError, MemoryError):  # says nothing about the checkpoint
                raise
            except Exception as error:  # what Orbax raises depends on which file is damaged how
                reason = f'{type(error).__name__}: {" ".join(str(error).split())[:100]}'
                parallel.say(f'{self._directory / str(step)} is damaged, skipped: {reason}')
        raise Refused(
            f'all checkpoints in {self._directory} are damaged; remove them to start afresh'
        )

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        metadata = self._manager.metadata(step)
        to_host = {
            name: ocp.RestoreArgs(restore_type=np.ndarray) for name in metadata.item_metadata.tree
        }
        arrays = self._manager.restore(step, args=ocp.args.PyTreeRestore(restore_args=to_host))
        expected, found = metadata.custom_metadata['sha256'], digest(arrays)
        if found != expected:
            raise Refused(f'sha256 is {found}, {expected} was saved')
        return arrays, metadata.custom_metadata


def load_params(workdir: str | Path, best: bool = False) -> tuple[Tree, Tree, int]:
    """Loads the weights that a run has left in its folder.

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
    trees: dict[str, dict[str, dict[str, np.ndarray]]] = {'params': {}, 'state': {}}
    for name, array in arrays.items():
        field, _, rest = name.partition('/')
        if field in trees:
            module, _, leaf = rest.rpartition('/')
            trees[field].setdefault(module, {})[leaf] = array
    return trees['params'], trees['state'], step


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
