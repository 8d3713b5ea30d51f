"""Which files of a folder are data, and which ones systems and programs have left there."""

import os
from pathlib import Path

_LEFT_BY_WINDOWS = ('thumbs.db', 'ehthumbs.db', 'desktop.ini')  # in lower or upper case
_LEFT_BY_ARCHIVERS = ('__macosx', '@eadir')  # folders, of macOS's zips and of network drives


def is_hidden(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file or folder is no data: it, or a folder that it lies in, is hidden.

    Hidden are names that begin with a dot (macOS leaves a `._x` beside each `x` that it copies, and
    a `.DS_Store`), `Thumbs.db`, `desktop.ini` and the like.

    Args:
      path: A name, or a path relative to the folder of the data, which may itself be hidden.
    """
    return any(
        part.lower() in _LEFT_BY_WINDOWS + _LEFT_BY_ARCHIVERS
        or (part.startswith('.') and part not in ('.', '..'))
        for part in os.fspath(path).split('/')
    )


def visible(folder: Path, pattern: str) -> list[Path]:
    """Returns the files and folders of a pattern that are not hidden, sorted.

    Args:
      folder: Folder of the data; there need not be one.
      pattern: Pattern of `Path.glob`, such as `*.png`, or `**/*.png` for all folders below.
    """
    return sorted(x for x in folder.glob(pattern) if not is_hidden(x.relative_to(folder)))
