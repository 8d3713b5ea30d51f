"""What AudioSet ships, tables of classes and of segments, and where the media of a segment are."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.audioset import parquet
from experiments.data.hidden import is_hidden
from experiments.data.tables import read_table, read_text
from perceiver_jax.errors import Refused

READINGS = {  # of a file that is named by id alone
    'as clip': 'the file is as long as the clip, and was taken from its beginning',
    'as video': 'the file is a whole video, and the clip was cut out of it',
    'as either': 'the file is as long as the clip, which is the beginning of its video',
}

CLIP_TOLERANCE = 1.0  # seconds by which a file may be longer or shorter than the clip that it is
_VIDEO_TOLERANCE = 0.5  # seconds of the clip that a whole video may lack

Media = Mapping[str, Sequence[tuple[float | None, str]]]  # see `find_media`


class Segment(NamedTuple):
    """A clip: one line of AudioSet's segments.

    Attributes:
      youtube_id: YouTube's id of the video.
      start: Start of the clip in the video, in seconds.
      end: End of the clip in the video, in seconds.
      labels: Indices of the clip's classes.
    """

    youtube_id: str
    start: float
    end: float
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        """The id and the start, which together name a clip."""
        return f'{self.youtube_id}_{self.start:.3f}'


def read_classes(path: str | os.PathLike) -> dict[str, str]:
    """Reads class_labels_indices.csv, a table of index, machine id and name.

    Args:
      path: The file.

    Returns:
      Names of the classes by machine id, in the order of the indices.

    Raises:
      Refused: The file is something else; names it and the line.
    """
    names: dict[str, str] = {}
    for number, row in enumerate(read_table(path, ('index', 'mid', 'display_name'))):
        if row['index'] != str(number):
            raise Refused(
                f'{row.place}: expected index {number} in its row, got {row["index"]!r:.80}'
            )
        mid = row['mid']
        if not mid or not row['display_name'] or mid in names:
            raise Refused(
                f'{row.place}: expected a machine id of its own and a name, got {mid!r:.80} and '
                f'{row["display_name"]!r:.80}'
            )
        names[mid] = row['display_name']
    return names


def read_segments(path: str | os.PathLike, mids: Iterable[str]) -> list[Segment]:
    """Reads a file of segments, lines of id, start, end and the machine ids of the labels.

    Args:
      path: File such as balanced_train_segments.csv; lines that begin with # are comments.
      mids: Machine ids of all classes, in the order of their indices.

    Returns:
      The clips, in the order of the lines.

    Raises:
      Refused: There are no such lines, one is something else, or a label is none of the classes;
        names the file and the line.
    """
    label_of = {mid: label for label, mid in enumerate(mids)}
    segments = []
    for number, line in enumerate(read_text(path).split('\n'), start=1):
        if line.startswith('#') or not line.strip():
            continue
        youtube_id, *rest = (field.strip(' "') for field in line.split(','))
        try:
            start, end = (float(x) for x in rest[:2])
            labels = tuple(label_of[mid] for mid in rest[2:] if mid)
        except (ValueError, KeyError) as error:
            raise Refused(
                f'{path}, line {number}: expected id, start, end and labels of the classes, got '
                f'{line.strip()!r:.200} ({error!r:.80})'
            ) from None
        if not youtube_id or not labels or line.count('"') % 2:
            raise Refused(
                f'{path}, line {number}: expected id, start, end and labels, each quote closed, '
                f'got {line.strip()!r:.200}'
            )
        if not 0 <= start < end < math.inf:
            raise Refused(
                f'{path}, line {number}: expected an end behind the start, got {start} and {end}'
            )
        segments.append(Segment(youtube_id, start, end, labels))
    if not segments:
        raise Refused(f'{path}: expected lines of id, start, end and labels, got none')
    return segments


def find_media(folder: str | os.PathLike[str]) -> dict[str, list[tuple[float | None, str]]]:
    """Finds the files that are named by a YouTube id, in a folder and all folders below.

    Args:
      folder: The folder of media.

    Returns:
      For each id, pairs of the start in the file's name (None where it has none) and the file. The
      rows of parquet files are files too, see `experiments.audioset.parquet`.

    Raises:
      Refused: There is no such folder, or a parquet file in it cannot be read.
    """
    if not Path(folder).is_dir():
        raise Refused(f'media are read from a folder, and there is none at {str(folder)!r}')
    media: dict[str, list[tuple[float | None, str]]] = {}
    for parent, _, names in sorted(os.walk(os.fspath(folder), followlinks=True)):
        if is_hidden(os.path.relpath(parent, folder)):
            continue
        for name in sorted(x for x in names if not is_hidden(x)):
            if name.lower().endswith(parquet.ENDING):
                file = os.path.join(parent, name)
                for row, youtube_id in enumerate(parquet.youtube_ids(file)):
                    if youtube_id:
                        media.setdefault(youtube_id, []).append((None, f'{file}/{row}'))
                continue
            match = re.match(r'Y?(?P<id>[\w-]{11})(?:_(?P<start>\d+(\.\d+)?)(?!\d).*)?\.\w+$', name)
            if match:
                start = float(match['start']) if match['start'] else None
                media.setdefault(match['id'], []).append((start, os.path.join(parent, name)))
    return media


def locate(segment: Segment, media: Media) -> tuple[str | None, float]:
    """Finds the file of a clip, and where in it the clip begins.

    Args:
      segment: The clip.
      media: What `find_media` returns.

    Returns:
      The file, None if there is none, and the start of the clip in it in seconds, where a file that
      is named by id alone is taken for the whole video; `place_in_file` tells whether it is.
    """
    found = media.get(segment.youtube_id, ())
    for start, path in found:
        if start in (segment.start, 1000 * segment.start):
            return path, 0.0
    for start, path in found:
        if start is None:
            return path, segment.start
    return None, 0.0


def place_in_file(segment: Segment, seconds: float) -> tuple[float | None, str]:
    """Decides by its length what a file that is named by id alone is, the clip or the whole video.

    Args:
      segment: The clip.
      seconds: Length of the file.

    Returns:
      The start of the clip in the file in seconds, None where the file is neither; and the key of
      `READINGS` that says what it was taken for, '' where it is neither.
    """
    if abs(seconds - (segment.end - segment.start)) <= CLIP_TOLERANCE:
        return 0.0, 'as clip' if segment.start >= CLIP_TOLERANCE else 'as either'
    if seconds >= segment.end - _VIDEO_TOLERANCE:
        return segment.start, 'as video'
    return None, ''
