"""A disk that is full, without one: the system refuses what makes a file longer."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(size):
    """Within, no file of this process grows beyond `size` bytes: `File too large` is raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
