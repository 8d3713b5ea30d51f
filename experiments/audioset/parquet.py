"""Reads sound out of parquet files, as the copy of AudioSet at Hugging Face stores it.

A row is a clip: 'video_id', its YouTube id, and 'audio', whose 'bytes' are a file of sound. A row
has a path as if the parquet file were a folder: 00.parquet/17 is row 17, counted from 0.

Source: https://huggingface.co/datasets/agkphysics/AudioSet.
"""

import functools
import re
from types import ModuleType
from typing import TYPE_CHECKING

from perceiver_jax.errors import Refused, reading

if TYPE_CHECKING:
    import pyarrow  # an extra: all other media do without

ENDING = '.parquet'
_COLUMNS = ('video_id', 'audio')
_ROW = re.compile(r'(.+\.parquet)/(\d+)', re.IGNORECASE | re.DOTALL)


def youtube_ids(file: str) -> list[str | None]:
    """Reads which clip stands in which row.

    Args:
      file: A parquet file.

    Returns:
      The YouTube id of each row, None where it has none.

    Raises:
      Refused: The file is damaged, lacks a column, or pyarrow is not installed.
    """
    parquet = _library(file)
    with reading(file, 'a parquet file'), parquet.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        ids = opened.read(['video_id']).to_pydict() if 'video_id' in names else {}
    if not set(_COLUMNS) <= set(names):
        raise Refused(f'{file}: expected the columns {[*_COLUMNS]}, got {names!r:.200}')
    for youtube_id in ids['video_id']:
        if not isinstance(youtube_id, str | None):
            raise Refused(f"{file}: expected texts as 'video_id', got {youtube_id!r:.80}")
    return ids['video_id']


def split_path(path: str) -> tuple[str, int] | None:
    """Splits the path of a row into its file and its number; None for all other paths.

    Args:
      path: A path such as 'eval/00.parquet/17'.
    """
    match = _ROW.fullmatch(path)
    return match and (match[1], int(match[2]))


def read_row(file: str, row: int) -> bytes:
    """Reads the file of sound that a row holds.

    Args:
      file: A parquet file with the columns that `youtube_ids` asks for.
      row: Number of the row.

    Returns:
      The bytes of a file of sound.

    Raises:
      Refused: The row holds none, the file is damaged, or pyarrow is not installed.
    """
    parquet = _library(file)
    with reading(f'{file}/{row}', 'a row of a parquet file'):
        with parquet.ParquetFile(file) as opened:
            group, first = 0, 0
            while row >= first + (length := opened.metadata.row_group(group).num_rows):
                group, first = group + 1, first + length
        audio = _audio(file, group)[row - first].as_py()
    sound = audio.get('bytes') if isinstance(audio, dict) else None
    if not sound or not isinstance(sound, bytes):
        raise Refused(f'{file}/{row}: the row holds no sound')
    return sound


@functools.lru_cache(maxsize=1)  # some hundred clips, which are asked for one after the other
def _audio(file: str, group: int) -> 'pyarrow.ChunkedArray':
    """Reads a group of rows, the least that can be read of a parquet file."""
    parquet = _library(file)
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=['audio'])['audio']


def _library(file: str) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise Refused(
            f"{file}: reading it takes pyarrow, and it is not installed: pip install '.[parquet]'"
        ) from error
    return pyarrow.parquet
