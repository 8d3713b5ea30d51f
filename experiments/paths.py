"""Where the files of a run lie: on this machine, or in a bucket of Google Cloud Storage.

One door to both: `path_of` returns a path that is used in the same way. What differs is that a
bucket holds objects, each written as a whole or not at all: there is nothing to make folders of, to
sync or to lock, and nothing is added to an object's end.
"""

import contextlib
import errno
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from perceiver_jax.errors import Refused
from perceiver_jax.files import write_whole

_ADDRESS = re.compile('[A-Za-z][A-Za-z0-9+.-]*://')
# '#' and the others are more than a name to gcsfs.
_RUN_IN_BUCKET = re.compile(r'gs://[a-z0-9][\w.-]*/[^#?*\[\]]+')

# The packages whose errors are about a bucket.
_CLIENTS = (
    'gcsfs.', 'google.auth.', 'google.api_core.', 'google.cloud.', 'aiohttp.', 'requests.'
)  # fmt: skip


def is_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address, such as 'gs://bucket/run'."""
    return _ADDRESS.match(os.fspath(path)) is not None


def path_of(path: str | os.PathLike) -> Path:
    """Opens the door to a file or folder.

    Args:
      path: A path of this machine, or the address of something in a bucket; what it was made of is
        returned as it is.

    Returns:
      The path; in a bucket `epath`'s, which does the same as those of `pathlib`.

    Raises:
      Refused: It is another address, or gcsfs is not installed.
    """
    if not is_address(path):
        return Path(path)
    check_address(os.fspath(path))
    # Each is read where gcsfs is imported. It would ask what kind each bucket is of, by gRPC, and
    # would not see what tensorstore writes.
    os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
    os.environ.setdefault('EPATH_USE_TF', 'false')  # one client, also beside TensorFlow
    import fsspec
    from etils import epath

    for name in ('gcsfs', 'fsspec'):  # they log each error that they raise
        logging.getLogger(name).setLevel(logging.CRITICAL)
    fsspec.config.conf['gcs'] = {'use_listings_cache': False, **fsspec.config.conf.get('gcs', {})}
    return cast(Path, epath.Path(path))


def check_address(address: str) -> None:
    """Raises Refused if nothing can be read or written at an address; says what is missing.

    Args:
      address: The address, such as 'gs://bucket/run'.
    """
    if not address.startswith('gs://'):
        raise Refused(
            f'{address} is an address; only files and folders of this machine and of a bucket of '
            'Google Cloud Storage, gs://bucket/folder, can be used'
        )
    if not _RUN_IN_BUCKET.fullmatch(address):
        raise Refused(
            f'{address}: expected gs://bucket/folder, the folder without any of # ? * [ and ]'
        )
    if importlib.util.find_spec('gcsfs') is None:
        raise Refused(
            f"{address}: a bucket takes gcsfs, and it is not installed: pip install '.[gcs]'"
        )


def folder_of_data(path: str | os.PathLike | None, kind: str) -> Path:
    """Opens the folder that a data source reads.

    Args:
      path: The folder; '~' is the home folder.
      kind: What the source is called, for the message.

    Returns:
      The folder, which exists.

    Raises:
      Refused: There is none, or it is an address: array_record and FFmpeg read files alone.
    """
    if path and is_address(path):
        raise Refused(
            f'data source {kind!r} reads files of this machine, and {path} is an address; a bucket '
            'can be mounted as a folder, as by gcsfuse'
        )
    if not path or not Path(path).expanduser().is_dir():
        raise Refused(f'data source {kind!r} reads a folder, and there is none at {path!r}')
    return Path(path).expanduser()


def in_bucket(path: Path) -> bool:
    """Returns whether a path that `path_of` returned is in a bucket."""
    return not isinstance(path, Path)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it; a bucket has none, and is itself not made."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder of this machine, and of those in it, to a folder anywhere."""
    for path in sorted(source.rglob('*')):
        if path.is_file():
            write_whole(target / path.relative_to(source).as_posix(), path.read_bytes())


def create(path: Path, content: bytes) -> bool:
    """Writes an object that must not be there yet: of several writers, the first alone does.

    Args:
      path: An object of a bucket.
      content: Its content.

    Returns:
      Whether it was not there.
    """
    import fsspec

    store: Any = fsspec.filesystem('gcs')
    try:
        store.pipe_file(str(path), content, mode='create')
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def store_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raises what a bucket's client raises as an OSError that names a path.

    Args:
      path: What is read or written within.

    Yields:
      Nothing.

    Raises:
      OSError: What was raised within, if it was about a bucket.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, OSError) and error.filename is not None
        if named or (problem := store_problem(error)) is None:
            raise
        raise OSError(errno.EREMOTEIO, problem, os.fspath(path)) from error


def store_problem(error: BaseException) -> str | None:
    """Returns what a bucket's client says in an exception, or in one that it came of; else None."""
    for origin in origins(error):
        if is_of_client(origin):
            text = ' '.join(str(origin).split())[:300]
            return f'not found: {text}' if isinstance(origin, FileNotFoundError) else text
    return None


def origins(error: BaseException | None, hidden: bool = False) -> Iterator[BaseException]:
    """Yields an exception, that which it came of, and so on; each once.

    Args:
      error: The exception, which may have been raised `from` itself.
      hidden: Whether to go on where one was raised `from None`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        told = hidden or not error.__suppress_context__
        error = error.__cause__ or (error.__context__ if told else None)


def is_of_client(error: BaseException) -> bool:
    """Returns whether a bucket's client raised an exception: most are of no class of its own."""
    if f'{type(error).__module__}.'.startswith(_CLIENTS):
        return True
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    place = error.__traceback__
    while place is not None:
        if f'{place.tb_frame.f_globals.get("__name__")}.'.startswith(_CLIENTS):
            return True
        place = place.tb_next
    return False
