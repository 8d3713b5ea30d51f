"""What makes regular expressions backtrack, and a guard against hanging."""

import contextlib
import signal
from collections.abc import Iterator

REPEATED = tuple(
    100_000 // len(text) * text
    for text in (b'#', b'1', b' ', b'a', b'1 ', b'.', b'/', b'a/', b'1.', b'[', b'-')
)


@contextlib.contextmanager
def guard(seconds: int = 10) -> Iterator[None]:
    """Fails where the block hangs; this is no measurement of time."""

    def stop(*_):
        raise TimeoutError(f'still running after {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
