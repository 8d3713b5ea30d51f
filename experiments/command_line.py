"""What commands share: parsing, paths, errors in one line, a progress line, quiet libraries."""

import argparse
import atexit
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

# perceiver_jax is slow to import: jax comes with it. It is imported where something is refused, and
# so is `experiments.paths`.


FACTORS_HELP = (
    'refine flow from coarse to fine, on frames that are shrunk by these factors, such as 4,2,1; '
    "not in the paper (what the model's run did, else 1)"
)


class Parser(argparse.ArgumentParser):
    """Ends with one line where argparse would print the usage too."""

    def error(self, message: str) -> NoReturn:
        """Ends the program, as `fail` does."""
        fail(f'{message}; --help explains', 2)


def refuse(message: str) -> NoReturn:
    """Raises Refused, which is imported only now.

    Args:
      message: What was given, and what was expected.
    """
    from perceiver_jax.errors import Refused

    raise Refused(message)


def local_path(path: str, argument: str) -> str:
    """Returns a path of the command line with the home folder for '~'.

    Args:
      path: The path; what does not begin with '~' is returned as it is.
      argument: What the path was given for, such as '--out', for the message.

    Raises:
      Refused: The path is an address, such as 'gs://bucket/run', or there is no such home folder.
    """
    expanded = os.path.expanduser(path)
    if re.match('[A-Za-z][A-Za-z0-9+.-]*://', path):
        problem = 'is an address; only files and folders of this machine can be used'
    elif expanded.startswith('~') and not os.path.exists(expanded):
        problem = f'names no home folder; a file of that name is ./{path}'
    else:
        return expanded
    refuse(f'{argument}: {path} {problem}')


def shrinking_factors(text: str) -> list[int]:
    """Reads the factors of `coarse_to_fine`, such as '4,2,1', for argparse."""
    if re.fullmatch(r'[1-9][0-9]{0,3}(,[1-9][0-9]{0,3})*', text) is None:
        raise argparse.ArgumentTypeError(f'expected numbers such as 4,2,1, got {text!r:.80}')
    return [int(x) for x in text.split(',')]


def run_path(path: str, argument: str) -> str:
    """Returns the path of a run on the command line: of this machine, or in a bucket.

    Args:
      path: A path that `local_path` takes, or an address such as 'gs://bucket/run'.
      argument: What the path was given for, such as '--workdir', for the message.

    Raises:
      Refused: The path is another address, gcsfs is not installed, or there is no such home folder.
    """
    if '://' not in path:
        return local_path(path, argument)

    from experiments.paths import check_address
    from perceiver_jax.errors import Refused

    try:
        check_address(path)
    except Refused as error:
        raise Refused(f'{argument}: {error}') from None
    return path


@contextlib.contextmanager
def one_line_errors(
    interrupted: str = 'interrupted', smaller: str = 'smaller inputs or a smaller model need less'
) -> Iterator[None]:
    """Ends the program with one line if it was given what it cannot use.

    The exit status is 2 for what was refused, for files that cannot be read or written and for what
    is too big for the memory, 1 for numbers that are no longer finite, 130 for Ctrl-C, 141 where
    nobody reads the output. All other exceptions pass.

    Args:
      interrupted: What is printed after Ctrl-C, unless the exception says it.
      smaller: What is printed of how to need less memory.

    Yields:
      Nothing; the program runs within.
    """
    try:
        yield
    except ValueError as error:
        from perceiver_jax.errors import Refused

        if not isinstance(error, Refused):
            raise
        fail(error, 2)
    except FloatingPointError as error:
        fail(error, 1)
    except BrokenPipeError:  # of `... | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.filename is None:
            from experiments.paths import store_problem

            if (problem := store_problem(error)) is None:
                raise
            fail(problem, 2)
        fail(f'{error.filename}: {error.strerror}', 2)
    except (MemoryError, RuntimeError) as error:
        from experiments.memory import shortage

        if (short := shortage(error)) is None:
            raise
        fail(f'{short}; {smaller}', 2)
    except Exception as error:
        from experiments.paths import store_problem

        if (problem := store_problem(error)) is None:
            raise
        fail(problem, 2)
    except KeyboardInterrupt as interrupt:
        print('error:', str(interrupt) or interrupted, file=sys.stderr, flush=True)
        fails_with(130)
        end_at_once(130)


def end_at_once(code: int) -> NoReturn:
    """Ends the program; the interpreter's own end crashes while XLA compiles in a thread.

    Args:
      code: The exit status.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody may read it
        sys.stdout.flush()
    os._exit(code)


def fail(error: Exception | str, code: int) -> NoReturn:
    """Ends the program with one line on standard error.

    Args:
      error: What to print after 'error:'; line breaks become spaces.
      code: The exit status.
    """
    print('error:', ' '.join(str(error).split()), file=sys.stderr)
    fails_with(code)
    sys.exit(code)


_failures: list[int] = []  # exit statuses


def fails_with(code: int) -> None:
    """Notes the exit status of a program that has failed and is about to end.

    Args:
      code: The exit status.
    """
    _failures.append(code)


def failed_with() -> int | None:
    """Returns the exit status that was noted, for what runs at the end; None if none was."""
    return _failures[-1] if _failures else None


def quiet_libraries() -> None:
    """Silences Orbax and Grain, which log each step they take, and each error that they raise."""
    logging.getLogger().setLevel(logging.WARNING)
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        # Of reads and writes that Orbax no longer waits for once one of them has failed.
        if str(unraisable.exc_value) != 'Event loop is closed':
            shown(unraisable)

    sys.unraisablehook = show


class Progress:
    """A line that updates in a terminal: how many are done, and when the rest will be."""

    def __init__(self, what: str):
        """Starts the clock.

        Args:
          what: What is counted, such as 'pair'.
        """
        self.what = what
        self.start = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Updates the line.

        Args:
          done: How many are done.
          total: How many there are.
        """
        if not sys.stderr.isatty():
            return
        left = (time.monotonic() - self.start) / done * (total - done)
        end = '\n' if done == total else ''
        print(f'\r{self.what} {done}/{total}, {left:.0f} s left ', end=end, file=sys.stderr)
