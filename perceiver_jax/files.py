"""Files that are whole, or as they were before, however writing them ends."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a name to write to, which becomes `path` if all goes well, and is removed otherwise.

    Args:
      path: The file, replaced if it exists; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file; text as UTF-8."""
    with whole(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
