"""One run at a time in a workdir: a lock that the kernel frees, and a record for other hosts."""

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
    process and the time, which a thread renews.

    Args:
      workdir: The run's folder, which exists.

    Yields:
      Nothing; the run writes within.

    Raises:
      Refused: Another run writes there; the message names its host and process.
    """
    path = workdir / '.lock.json'
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
            raise Refused(
                f'{workdir}: another run writes there, process {owner.get("process", "unknown")} '
                f'on host {owner.get("host", "unknown")}; choose another workdir, or wait until it '
                f'has ended (on another host: for {STALE_SECONDS:.0f} s)'
            )
        _write(path)
        ended = threading.Event()
        thread = threading.Thread(target=_renew, args=(path, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if _is_ours(path):
                path.unlink(missing_ok=True)


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
    owner = {'host': socket.gethostname(), 'process': os.getpid(), 'time': time.time()}
    write_whole(path, json.dumps(owner) + '\n')


def _renew(path: Path, ended: threading.Event) -> None:
    # If this host stood still for a minute, another one's run may have taken the folder.
    while not ended.wait(RENEW_SECONDS) and _is_ours(path):
        with contextlib.suppress(OSError):  # a full disk: the run itself will meet it
            _write(path)
