"""An error of the user's making is one line and an exit status, not a traceback."""

import contextlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn


@contextlib.contextmanager
def one_line_errors(interrupted: str = 'interrupted') -> Iterator[None]:
    """Ends the program with one line where this repository's code refuses what it was given.

    Args:
      interrupted: what Ctrl-C says.
    """
    import jax

    # Unfiltered: where an error was raised tells whether its message is meant for the user.
    jax.config.update('jax_traceback_filtering', 'off')
    try:
        yield
    except ValueError as error:
        if not is_ours(error):
            raise
        fail(error, 2)
    except FloatingPointError as error:
        fail(error, 1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(error, 2)
    except KeyboardInterrupt:
        fail(interrupted, 130)


def is_ours(error: Exception) -> bool:
    """Whether this repository's code raised an error, and so meant its message for the user."""
    file = traceback.extract_tb(error.__traceback__)[-1].filename
    root = Path(__file__).resolve().parent.parent
    return any(
        Path(file).is_relative_to(root / x) for x in ('perceiver_jax', 'configs', 'experiments')
    )


def fail(error: Exception | str, code: int) -> NoReturn:
    """Ends with one line."""
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    sys.exit(code)


class Progress:
    """A line that updates in a terminal: how many are done, and when the rest will be."""

    def __init__(self, what: str):
        self.what = what
        self.start = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        left = (time.monotonic() - self.start) / done * (total - done)
        end = '\n' if done == total else ''
        print(f'\r{self.what} {done}/{total}, {left:.0f} s left ', end=end, file=sys.stderr)
