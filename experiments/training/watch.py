"""Notices that another process of a run has died, and ends this one with a line that says so.

jax ends the others with pages of its own at best, and after minutes at worst. Its connections to
process 0 are therefore passed on by a thread at either end. Where one breaks, or its host is gone,
these threads know it first.
"""

import atexit
import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from experiments import command_line
from perceiver_jax.errors import Refused

_START_SECONDS = 300.0  # in which process 0 must have started, as in jax
_SILENT_SECONDS = 20  # after which a host that does not answer is gone
_GRACE_SECONDS = 3.0  # in which a process hears of another's end, or comes to the same error itself

_HELLO = struct.Struct('>4sI64s')  # first in a connection: who connects, on which host
_MAGIC = b'PRCV'


class Watch:
    """What this process does about the end of others.

    Attributes:
      joined: Whether all processes have come together; before, jax itself waits for them.
      ending: Whether this process is about to end: then others may end too.
      together: Whether all processes stop at this step: then they wait for each other.
    """

    joined = False
    ending = False
    together = False

    def lost(self, process: int, host: str) -> None:
        """Ends this process, unless it is ending anyway.

        Args:
          process: The process that has died.
          host: Its host.
        """
        if not self.joined or self.ending:
            return
        line = (
            f'error: process {process} on host {host} has ended, and the others end with it; '
            'the same command in all of them resumes from the last checkpoint\n'
        )
        # Not `print`: another thread may be in the middle of one, and will never end.
        os.write(2, (b'\n' if sys.stdout.isatty() else b'') + line.encode())
        os._exit(1)

    def leave(self) -> None:
        """Ends this process if it alone has failed: jax would wait for the others."""
        self.ending = True
        status = command_line.failed_with()
        if status is not None and not self.together:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(_GRACE_SECONDS)  # the others may have the same to tell
            os._exit(status)


WATCH = Watch()


def initialize(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the processes of a run, and watches them from then on.

    Args:
      coordinator: 'host:port' of process 0.
      num_processes: How many processes run.
      process_id: Which one this is, from 0.

    Raises:
      Refused: The address is none, or cannot be listened to, or process 0 does not answer.
    """
    host, _, port = coordinator.rpartition(':')
    host = host.strip('[]')
    if not (host and port.isdecimal()):
        raise Refused(f'coordinator is {coordinator!r}, it must be host:port of process 0')
    address = host, int(port)
    try:
        if process_id == 0:
            inner = _free_port()
            listener = _listen(int(port))
            _serve(listener, lambda connection: _pass_in(connection, inner))
            own = f'127.0.0.1:{inner}'
            jax.distributed.initialize(own, num_processes, 0, coordinator_bind_address=own)
        else:
            _connect(address, _START_SECONDS).close()  # process 0 is there
            listener = socket.create_server(('127.0.0.1', 0))
            _serve(listener, lambda connection: _pass_out(connection, address, host, process_id))
            own = f'127.0.0.1:{listener.getsockname()[1]}'
            jax.distributed.initialize(own, num_processes, process_id)
    except OSError as error:
        raise Refused(f'coordinator {coordinator}: {error}') from None
    WATCH.joined = True
    leave_at_once()


def leave_at_once() -> None:
    """Has a process that alone fails end without waiting for the others."""
    hook = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        _hear(error)
        hook(kind, error, traceback)
        command_line.fails_with(1)

    sys.excepthook = excepthook
    atexit.register(WATCH.leave)  # before what jax has registered: the last comes first


@contextlib.contextmanager
def others_first() -> Iterator[None]:
    """Has the line about a process that has died come before the error that it causes here.

    Yields:
      Nothing; the processes work together within.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _hear(error)
        raise


def _hear(error: BaseException) -> None:
    """Waits for news of the other processes if an error may be the death of one."""
    if WATCH.joined and isinstance(error, jax.errors.JaxRuntimeError):
        time.sleep(_GRACE_SECONDS)


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def _listen(port: int) -> socket.socket:
    """Listens where jax would: on all addresses, unless the environment names one."""
    host, _, named = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS', '').rpartition(':')
    if named:
        host, port = host.strip('[]'), int(named)
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    if socket.has_dualstack_ipv6():
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(('', port))


def _connect(address: tuple[str, int], seconds: float) -> socket.socket:
    """Connects, again and again for some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(address, timeout=_SILENT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _serve(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """Handles each connection in a thread of its own."""

    def accept() -> None:
        with contextlib.suppress(OSError):  # when it is closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _pass_out(near: socket.socket, address: tuple[str, int], host: str, process_id: int) -> None:
    """Passes a connection of this process's jax on to process 0."""
    try:
        far = _connect(address, 0)
        far.sendall(_HELLO.pack(_MAGIC, process_id, socket.gethostname().encode()[:64]))
    except OSError:
        near.close()
        WATCH.lost(0, host)
        return
    _pass_on(near, far, 0, host)


def _pass_in(far: socket.socket, port: int) -> None:
    """Passes a connection from another process on to this process's jax."""
    try:
        far.settimeout(_SILENT_SECONDS)
        hello = far.recv(_HELLO.size, socket.MSG_WAITALL)
        if len(hello) < _HELLO.size or not hello.startswith(_MAGIC):
            far.close()  # only looked whether somebody is here
            return
        near = _connect(('127.0.0.1', port), _START_SECONDS)
    except OSError:
        far.close()
        return
    _, process_id, host = _HELLO.unpack(hello)
    _pass_on(near, far, process_id, host.rstrip(b'\0').decode(errors='replace'))


def _pass_on(near: socket.socket, far: socket.socket, process: int, host: str) -> None:
    """Copies all bytes between jax here and another process, both ways, until one side ends."""
    _keep_asking(far)
    ended_here = threading.Event()  # jax has hung up, or we have

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        if source is near:
            ended_here.set()
        elif not ended_here.is_set():
            WATCH.lost(process, host)  # before jax sees it
        for each in (near, far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    for each in (near, far):
        each.settimeout(None)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    thread = threading.Thread(target=copy, args=(far, near), daemon=True)
    thread.start()
    copy(near, far)
    thread.join()
    near.close()
    far.close()


def _keep_asking(far: socket.socket) -> None:
    """Has the kernel ask a silent host whether it is still there."""
    far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ('TCP_KEEPIDLE', _SILENT_SECONDS // 4),
        ('TCP_KEEPINTVL', _SILENT_SECONDS // 4),
        ('TCP_KEEPCNT', 3),
        ('TCP_USER_TIMEOUT', _SILENT_SECONDS * 1000),
    ):
        if hasattr(socket, name):  # Linux has them all
            far.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
