"""An error of the user's making is one line and an exit status, not a traceback."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from perceiver_jax.errors import Refused


@contextlib.contextmanager
def one_line_errors(interrupted: str = 'interrupted') -> Iterator[None]:
    """Ends the program with one line where it was given what it cannot use.

    Args:
      interrupted: what Ctrl-C says.
    """
    try:
        yield
    except Refused as error:
        fail(error, 2)
    except FloatingPointError as error:
        fail(error, 1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(error, 2)
    except KeyboardInterrupt:
        fail(interrupted, 130)


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
