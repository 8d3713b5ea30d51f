"""One run at a time in a workdir: a lock that the kernel frees, and a record for other hosts.

In a bucket there is the record alone.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.paths import create, in_bucket, store_errors
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, write_whole

RENEW_SECONDS = 10.0  # between two writes of the record
STALE_SECONDS = 60.0  # the age at which another host's record no longer counts
_MOMENT = 2.0  # seconds from the lock to its record, at most

# What flock raises on file systems that know no locks; there the record alone counts.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a folder.

    `.lock` is locked by flock, which ends with the process, however that ends. Whether file systems
    that several hosts share pass such locks on differs: beside it `.lock.json` tells the host, the
    process and the time, which a thread renews. In a bucket nothing can be locked: of several that
    write the record at once, the first has the folder, and the last of those that replace one that
    no longer counts.

    Args:
      workdir: The run's folder, which exists.

    Yields:
      Nothing; the run writes within.

    Raises:
      Refused: Another run writes there; the message names its host and process.
    """
    path = workdir / '.lock.json'
    if in_bucket(workdir):
        _take(path)
        with _renewed(path):
            yield
        return
    with (workdir / '.lock').open('a') as file:
        free = _flock(file.fileno())
        owner = _read(path)
        deadline = time.monotonic() + _MOMENT
        while free is False and _age(owner) > STALE_SECONDS and time.monotonic() < deadline:
            time.sleep(0.05)  # whoever has just locked the file has yet to write the record
            owner = _read(path)
        alive = _age(owner) <= STALE_SECONDS
        elsewhere = owner.get('host', socket.gethostname()) != socket.gethostname()
        if alive if elsewhere or free is None else not free:
            raise _taken(workdir, owner)
        _write(path)
        with _renewed(path):
            yield


def _take(path: Path) -> None:
    """Writes the record in a bucket, or raises Refused because another's is there."""
    if create(path, _record()):
        return
    owner = _read(path)
    # A container that was killed starts again on the same host, and with the same number.
    if _age(owner) <= STALE_SECONDS and not _is_ours(path):
        raise _taken(path.parent, owner)
    _write(path)
    time.sleep(_MOMENT)  # another may have found the same record, and replace it a little later
    if not _is_ours(path):
        raise _taken(path.parent, _read(path))


@contextlib.contextmanager
def _renewed(path: Path) -> Iterator[None]:
    """Renews the record from time to time, and removes it at the end."""
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError), store_errors(path):  # it soon counts no longer
            if _is_ours(path):
                path.unlink(missing_ok=True)


def _taken(workdir: Path, owner: dict[str, Any]) -> Refused:
    where = 'or was killed' if in_bucket(workdir) else 'on another host'
    return Refused(
        f'{workdir}: another run writes there, process {owner.get("process", "unknown")} '
        f'on host {owner.get("host", "unknown")}; choose another workdir, or wait until it '
        f'has ended ({where}: for {STALE_SECONDS:.0f} s)'
    )


def _flock(file: int) -> bool | None:
    """Locks a file: whether it was free, None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on some network file systems
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _read(path: Path) -> dict[str, Any]:
    """Reads a record; {} where there is none, or none that can be read."""
    with contextlib.suppress(FileNotFoundError, Refused):
        return read_json(path)
    return {}


def _age(owner: dict[str, Any]) -> float:
    """Returns for how many seconds a record was not renewed; clocks may differ either way."""
    written = owner.get('time')
    return abs(time.time() - written) if isinstance(written, int | float) else float('inf')


def _is_ours(path: Path) -> bool:
    owner = _read(path)
    return (owner.get('host'), owner.get('process')) == (socket.gethostname(), os.getpid())


def _write(path: Path) -> None:
    write_whole(path, _record())


def _record() -> bytes:
    owner = {'host': socket.gethostname(), 'process': os.getpid(), 'time': time.time()}
    return f'{json.dumps(owner)}\n'.encode()


def _renew(path: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        # A full disk, or a bucket that does not answer: the run itself will meet it.
        with contextlib.suppress(OSError), store_errors(path):
            # If this host stood still for a minute, another one's run may have taken the folder.
            if not _is_ours(path):
                return
            _write(path)
