"""Damages what the doors read, and counts what comes of it.

python -m tests.faults.campaign [--seeds 300] [--only DOOR ...] [--minutes 10]

The summary can be compared from run to run: a line for each door, the same ones for the same seeds.
A fault is told with its door and seed, by which it comes again: --only DOOR --first SEED --seeds 1.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
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
            problem = problem_of(error, sample.file)
            clean += problem is None
        if problem is None and (seconds := time.monotonic() - start) > SLOWEST:
            problem = f'took {seconds:.0f} s'
        if problem is not None:
            faults.append((seed, problem))
    return Outcome(cases, clean, accepted, faults)


def problem_of(error, file):
    """Returns what is wrong with an error about a damaged file; None: it is as it should be.

    Args:
      error: The exception.
      file: The damaged file.
    """
    if isinstance(error, OSError) and str(error.filename or '').startswith(str(file)):
        return None
    text = f'{type(error).__name__}: {str(error)[:200]!r}'
    if not isinstance(error, Refused):
        return text
    if file.name not in str(error):
        return f'does not name {file.name}: {text}'
    if len(str(error)) > LONGEST + len(str(file.parent)):
        return f'{len(str(error))} characters: {text}'
    return None


@contextlib.contextmanager
def _quiet():
    """Silences what libraries written in C say of damaged files, and prints of dropped lines."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--seeds', type=int, default=300, help='cases of a fast door')
    parser.add_argument('--first', type=int, default=0, help='the first seed')
    parser.add_argument('--minutes', type=float, default=10.0, help='when to stop at the latest')
    parser.add_argument('--only', nargs='+', choices=DOORS, default=[*DOORS], metavar='DOOR')
    arguments = parser.parse_args()
    warnings.simplefilter('error')  # as in pytest
    start = time.monotonic()
    total = [0, 0, 0, 0]
    print(f'{"door":24} {"cases":>7} {"clean":>7} {"accepted":>8} {"faults":>7}', flush=True)
    for name in arguments.only:
        seeds = range(arguments.first, arguments.first + -(-arguments.seeds // DOORS[name].slow))
        with tempfile.TemporaryDirectory() as folder, _quiet():
            outcome = try_door(name, Path(folder), seeds, start + 60 * arguments.minutes)
        counts = [outcome.cases, outcome.clean, outcome.accepted, len(outcome.faults)]
        total = [sum(pair) for pair in zip(total, counts, strict=True)]
        print('{:24} {:7} {:7} {:8} {:7}'.format(name, *counts), flush=True)
        for seed, problem in outcome.faults:
            print(f'  {name}, seed {seed}: {problem}')
    print('{:24} {:7} {:7} {:8} {:7}'.format('all', *total))
    sys.exit(total[-1] > 0)


if __name__ == '__main__':
    main()
