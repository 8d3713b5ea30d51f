"""Files written by an atomic write, replaced as a whole or as they were, and JSON read back."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perceiver_jax.errors import Refused


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
    encoded, place = Path(path).read_bytes(), f'{path} is not {expected}' if expected else path
    try:
        content = json.loads(encoded.decode())
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested too deep
        raise Refused(f'{place}: not JSON: {error!s:.200}') from None
    if not isinstance(content, dict):
        raise Refused(f'{place}: expected a JSON object, got {content!r:.80}')
    return content
