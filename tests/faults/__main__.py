"""Damages what the doors read and disturbs runs, and counts what comes of it: `make faults`.

python -m tests.faults [--seeds 300] [--runs 4] [--minutes 15] [--only PART ...]

The summary can be compared from run to run: a line for each door, the same cases for the same
seeds, and a line for the runs. A fault is told with its door and seed, by which it comes again:
--only DOOR --first SEED --seeds 1. The moments of kills are drawn by the seed too, but where a
machine is by then is its own.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.faults import runs
from tests.faults.campaign import Outcome, try_door
from tests.faults.doors import DOORS


def add(outcomes):
    """Returns the sum of outcomes."""
    total = Outcome(0, 0, 0, [])
    for outcome in outcomes:
        total = Outcome(*(a + b for a, b in zip(total, outcome, strict=True)))
    return total


def damage(name, arguments, deadline):
    seeds = range(arguments.first, arguments.first + -(-arguments.seeds // DOORS[name].slow))
    with tempfile.TemporaryDirectory() as folder, quiet():
        return try_door(name, Path(folder), seeds, deadline)


def disturb(name, arguments, deadline):
    outcomes = []
    for seed in range(arguments.first, arguments.first + arguments.runs):
        if time.monotonic() < deadline:
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(RUNS[name](seed, Path(folder), deadline))
    return add(outcomes)


RUNS = {
    'kills': runs.kills,
    'full_disks': runs.full_disks,
    'two_processes': runs.two_processes,
}
# What a line of the summary is called, and the function that makes its `Outcome`.
PARTS = {**dict.fromkeys(DOORS, damage), **dict.fromkeys(RUNS, disturb)}


@contextlib.contextmanager
def quiet():
    """Silences what libraries written in C say of damaged files, and what is told of them."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.faults', description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--seeds', type=int, default=300, help='cases of a fast door')
    parser.add_argument('--runs', type=int, default=4, help='runs to disturb, of each kind')
    parser.add_argument('--first', type=int, default=0, help='the first seed')
    parser.add_argument('--minutes', type=float, default=15.0, help='when to begin no more cases')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=[*PARTS], metavar='PART')
    arguments = parser.parse_args()
    warnings.simplefilter('error')  # as in pytest
    deadline = time.monotonic() + 60 * arguments.minutes
    print(f'{"part":28} {"cases":>7} {"clean":>7} {"accepted":>8} {"faults":>7}', flush=True)
    outcomes = {}
    for name in arguments.only:
        outcomes[name] = PARTS[name](name, arguments, deadline)
        print(line(name, outcomes[name]), flush=True)
        for seed, problem in outcomes[name].faults:
            print(f'  {name}, seed {seed}: {problem}', flush=True)
    total = add(outcomes.values())
    print(line('all', total))
    sys.exit(bool(total.faults))


def line(name, outcome):
    return '{:28} {:7} {:7} {:8} {:7}'.format(name, *outcome[:3], len(outcome.faults))


if __name__ == '__main__':
    main()
