"""Atomic writes: a file is replaced as a whole, or stays as it was, however writing it ends."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: to a temporary file, which is then renamed.

    Args:
      path: The file, replaced if it exists; its folder is made if there is none.

    Yields:
      Path of the temporary file, in the same folder, to write to. It is renamed to `path` if the
      block ends without an exception, and removed otherwise.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes | bytearray | str) -> None:
    """Writes a file by an atomic write.

    Args:
      path: The file, replaced if it exists; its folder is made if there is none.
      content: Content of the file; text is encoded as UTF-8.
    """
    with whole(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
