"""Writes that hold, and JSON read back.

A file is replaced, or added to, as a whole or not at all, and is on disk then. An error of the
system names the file that was asked for, whichever call met it.

`whole`, `write_whole` and `read_json` also take a path of another kind than `pathlib`'s, such as
`etils.epath` has for a bucket: what has `write_bytes` and `read_bytes`, and replaces an object as a
whole.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perceiver_jax.errors import Refused

_UNFINISHED = re.compile(r'\..+\.[0-9a-f]{32}\.tmp')  # names of the temporary files of `whole`


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file atomically: to a temporary file, which is synced and then renamed.

    Args:
      path: The file, replaced if it exists; its folder is made if there is none.

    Yields:
      Path of the temporary file, empty and in the same folder, to write to. It is renamed to `path`
      if the block ends without an exception, and removed otherwise. For an object of a bucket it is
      a file of this machine, which becomes the object.

    Raises:
      OSError: The file cannot be written; it names `path`.
    """
    opened = _opened(path)
    if not isinstance(opened, Path):
        with tempfile.TemporaryDirectory() as folder:
            unfinished = Path(folder, opened.name)
            unfinished.touch()
            yield unfinished
            opened.write_bytes(unfinished.read_bytes())
        return
    path = opened
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        # The lock, which ends with this process, tells others that the file is not left over.
        with naming(path, instead_of=unfinished), unfinished.open('xb') as file:
            _lock(file.fileno())
            yield unfinished
            sync_file(unfinished)
            os.replace(unfinished, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # renamed, or the disk is no longer writable
            unfinished.unlink()


def write_whole(path: str | os.PathLike, content: bytes | bytearray | str) -> None:
    """Writes a file by an atomic write.

    Args:
      path: The file, replaced if it exists; its folder is made if there is none.
      content: Content of the file; text is encoded as UTF-8.

    Raises:
      OSError: The file cannot be written; it names `path`.
    """
    with whole(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: str | os.PathLike, content: bytes, sync: bool = False) -> None:
    """Adds to the end of a file: all of the content or, where that fails, nothing of it.

    Args:
      path: The file, made if there is none.
      content: What to add.
      sync: Whether to wait until all of the file is on disk.

    Raises:
      OSError: The file cannot be written; it names `path`.
    """
    with naming(path), open(path, 'ab', buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(content)
            while rest:  # a disk that is nearly full takes a part
                rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes the temporary files that killed processes left; those being written to stay.

    Args:
      folder: A folder that `whole` wrote to; there need not be one.
    """
    for path in Path(folder).glob('.*.tmp'):
        if _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError), path.open('rb') as file:  # it is in nobody's way
                if _lock(file.fileno()):
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike, instead_of: str | os.PathLike | None = None) -> Iterator[None]:
    """Names a file in the system's errors, which know it only where it was opened.

    Args:
      path: The file that is written within.
      instead_of: A file that `path` is to be named for.

    Yields:
      Nothing; the file is written within.

    Raises:
      OSError: What was raised within, with `path` as its `filename`.
    """
    try:
        yield
    except OSError as error:
        unnamed = error.filename is None and error.errno is not None
        if unnamed or (instead_of is not None and error.filename in (instead_of, str(instead_of))):
            error.filename = str(path)
            del error.filename2
        raise


def sync_file(path: str | os.PathLike) -> None:
    """Waits until a file is on disk, whoever wrote it."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def sync_folder(folder: str | os.PathLike) -> None:
    """Waits until the names in a folder are on disk, where its file system can tell."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_json(path: str | os.PathLike, expected: str = '') -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
      path: The file, in UTF-8.
      expected: What it should be; completes the sentence 'it is not ...'. Empty: left out.

    Returns:
      The object; which keys it has, and what they hold, is for the caller to check.

    Raises:
      Refused: The file is not JSON, or holds something else; names it.
      OSError: The file cannot be read.
    """
    encoded, place = _opened(path).read_bytes(), f'{path} is not {expected}' if expected else path
    try:
        content = json.loads(encoded.decode())
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested too deep
        raise Refused(f'{place}: not JSON: {error!s:.200}') from None
    if not isinstance(content, dict):
        raise Refused(f'{place}: expected a JSON object, got {content!r:.80}')
    return content


def _opened(path: str | os.PathLike) -> Any:
    """Returns a path that reads and writes: as it was given, or else a `Path`."""
    return path if hasattr(path, 'read_bytes') else Path(path)


def _lock(descriptor: int) -> bool:
    """Locks an open file, and returns whether it could; another's lock is not waited for."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked by another, or a file system without locks
        return False
    return True
