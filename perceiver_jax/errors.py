"""The one exception for what a user got wrong, and the door through which libraries read files."""

import contextlib
import os
from collections.abc import Iterator


class Refused(ValueError):
    """An argument, a file or a configuration that cannot be used, and why.

    The message is meant for the person who gave it: it names the argument, file or key, its value
    and what was expected. Commands print it as one line; every other exception is a bug and keeps
    its traceback.
    """


@contextlib.contextmanager
def reading(path: str | os.PathLike, expected: str) -> Iterator[None]:
    """Has what a library raises while it reads a file become a `Refused` that names the file.

    Libraries have no error class for damaged files: what they raise depends on which byte is wrong.
    Only their calls stand within, so that a bug of ours keeps its traceback.

    Args:
      path: The file, or what to call a part of it.
      expected: What it should hold; completes the sentence 'expected ...'.

    Yields:
      Nothing; the library is called within.

    Raises:
      Refused: The library raised; its message, cut where it is long, stands at the end.
      OSError: The file cannot be opened, and the error names it.
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = f'{str(error) or type(error).__name__:.200}'
        raise Refused(f'{path}: expected {expected}, it is damaged or another: {reason}') from error
