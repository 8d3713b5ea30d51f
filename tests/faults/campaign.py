"""Reads damaged files at the doors, and judges what comes of it."""

import time
from typing import NamedTuple

from perceiver_jax.errors import Refused
from tests.faults.damage import damaged
from tests.faults.doors import DOORS

LONGEST = 500  # characters of a message
SLOWEST = 20.0  # seconds


class Outcome(NamedTuple):
    """What came of the cases of a door.

    Attributes:
      cases: Number of damaged files.
      clean: How many were refused as they should be.
      accepted: How many were read all the same.
      faults: Pairs of a seed and what was wrong.
    """

    cases: int
    clean: int
    accepted: int
    faults: list[tuple[int, str]]


def try_door(name, folder, seeds, deadline=float('inf')):
    """Reads the good file of a door, and then damaged ones.

    Args:
      name: A key of `DOORS`.
      folder: An empty folder.
      seeds: The seeds of the damage.
      deadline: When to stop, on time.monotonic's clock.

    Returns:
      An `Outcome`.
    """
    sample = DOORS[name].sample(folder)
    whole = sample.file.read_bytes()
    sample.read()
    cases, clean, accepted, faults = 0, 0, 0, []
    for seed in seeds:
        if time.monotonic() > deadline:
            break
        cases += 1
        sample.file.write_bytes(damaged(whole, sample.kind, seed, sample.wrong))
        start = time.monotonic()
        try:
            sample.read()
            problem = None
            accepted += 1
        except Exception as error:
            problem = problem_of(error, sample.file, sample.named or sample.file.name)
            clean += problem is None
        if problem is None and (seconds := time.monotonic() - start) > SLOWEST:
            problem = f'took {seconds:.0f} s'
        if problem is not None:
            faults.append((seed, problem))
    return Outcome(cases, clean, accepted, faults)


def problem_of(error, file, name):
    """Returns what is wrong with an error about a damaged file; None: it is as it should be.

    Args:
      error: The exception.
      file: The damaged file.
      name: What the message must name.
    """
    if isinstance(error, OSError) and str(error.filename or '').startswith(str(file)):
        return None
    text = f'{type(error).__name__}: {str(error)[:200]!r}'
    if not isinstance(error, Refused):
        return text
    if name not in str(error):
        return f'does not name {name}: {text}'
    if len(str(error)) > LONGEST + len(str(file.parent)):
        return f'{len(str(error))} characters: {text}'
    return None
