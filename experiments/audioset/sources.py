"""Where clips of sound and video are read from.

A clip is a dictionary: 'name' str, 'sound' float32 `[n]` mono, 'frames' a list of encoded JPEG
files (empty where none were asked for), 'labels' a list of int. Frame i is shown while the samples
from i * sample_rate / frames_per_second on are heard. Every source has the attribute `classes`, the
names of its labels.
"""

import dataclasses
import functools
import io
import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.audioset.sounds import Sounds
from experiments.data import clip_files
from experiments.data.class_folders import GIVEN, label_of, number_classes
from experiments.data.hidden import is_hidden
from experiments.data.pipeline import BrokenExample, Example, LabelledSource
from experiments.data.prepared import TfdsRecords
from experiments.data.tables import Row, read_table
from experiments.paths import folder_of_data
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import not_sound, read_audio

SPLITS = ('train', 'validation')
VERSION = '1.0.0'  # of the prepared data set
# Of decoded sound that a labelled folder keeps; our choice: deviations.md#kept-in-memory
_KEPT_BYTES = 2**29
_UNKNOWN_LENGTH = 2**63 - 1  # in frames, which libsndfile says where a header does not tell


def open_source(
    kind: str,
    path: str | None,
    split: str,
    *,
    with_frames: bool,
    sample_rate: int,
    table: Mapping[str, str],
    classes: Sequence[str] | None = None,
) -> LabelledSource:
    """Opens one split of a data set of clips.

    Args:
      kind: 'tfds' (AudioSet as `experiments.audioset.builder` prepares it), 'folder' (media and a
        table of their labels, see `LabelledFolder`) or 'sounds' (generated).
      path: Folder of the data: for 'tfds' the data folder of TFDS, or the folder of the prepared
        data set in it; for 'folder' the folder that holds the table and the media. '~' is the home
        folder. Unused for 'sounds'.
      split: 'train' or 'validation'.
      with_frames: Whether frames are read.
      sample_rate: Sample rate of the sound in Hz; 48,000 for 'tfds' and for what has frames.
      table: Fields of `Table` by name; used for 'folder' only.
      classes: Names of all labels in their order, for 'folder', also of those that no row has;
        None: the table tells.

    Returns:
      A source of clips, with the attribute `classes`.

    Raises:
      Refused: An argument is out of range, or there is no such data.
    """
    if split not in SPLITS:
        raise Refused(f'split must be one of {SPLITS}, got {split!r}')
    if kind not in ('tfds', 'folder', 'sounds'):
        raise Refused(f"config.data.source must be 'tfds', 'folder' or 'sounds', got {kind!r}")
    if kind == 'sounds':
        if with_frames:
            raise Refused('generated sounds have no video')
        return Sounds(split, sample_rate)
    folder = folder_of_data(path, kind)
    if sample_rate != clip_files.SAMPLE_RATE and (kind == 'tfds' or with_frames):
        what = "of 'tfds'" if kind == 'tfds' else 'that comes with video'
        raise Refused(
            f'the sound {what} has {clip_files.SAMPLE_RATE} Hz, config.clip.sample_rate is '
            f'{sample_rate}'
        )
    if kind == 'tfds':
        return _open_records(folder, split, with_frames)
    keys = {field.name for field in dataclasses.fields(Table)}
    if set(table) != keys:
        raise Refused(
            f'config.data.table needs the keys {sorted(keys)}: missing are '
            f'{sorted(keys - set(table))}, unknown are {sorted(set(table) - keys)}'
        )
    return LabelledFolder(folder, split, with_frames, Table(**table), classes, sample_rate)


def data_folder(out: Path, kind: str) -> Path:
    """Returns the folder of the prepared data set in the data folder of TFDS.

    Args:
      out: Data folder of TFDS.
      kind: 'audio_visual' or 'audio', see `experiments.audioset.builder.KINDS`.
    """
    return out / 'audioset' / kind / VERSION


def _open_records(path: Path, split: str, with_frames: bool) -> TfdsRecords:
    """Opens AudioSet as `experiments.audioset.builder` prepares it."""
    kinds = ['audio_visual'] if with_frames else ['audio_visual', 'audio']
    folders = [path, *(data_folder(path, kind) for kind in kinds)]
    folder = next((x for x in folders if (x / 'features.json').is_file()), None)
    if folder is None:
        raise Refused(
            f'{path} holds no prepared AudioSet: expected features.json in it or in '
            f'{" or ".join(str(x.relative_to(path)) for x in folders[1:])}'
        )
    convert = functools.partial(_from_tfds, source=f'{folder}, split {split}', frames=with_frames)
    needs = ('name', 'sound', *(['frames'] if with_frames else []))
    return TfdsRecords(folder, split, convert, label='labels', needs=needs)


def _from_tfds(example: dict[str, Any], *, source: str, frames: bool) -> Example:
    import soundfile

    name = example['name'].decode()
    images = list(example['frames']) if frames else []
    if frames and not images:
        raise BrokenExample(f'{name} of {source} has no video')
    encoded = example['sound']
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as opened:
            sound = clip_files.read_sound(opened, len(encoded))
    except (soundfile.SoundFileError, Refused) as error:
        raise BrokenExample(f'{name} of {source}: {error}') from error
    sound = sound[:, 0] if sound.shape[1] == 1 else sound
    _check_sound(sound, f'{name} of {source}')
    labels = [int(label) for label in example['labels']]
    return {'name': name, 'sound': sound, 'frames': images, 'labels': labels}


def _check_sound(sound: np.ndarray, name: str) -> None:
    """Raises a `BrokenExample` with the name of a sound that has no samples, or NaN among them."""
    if not sound.size:
        raise BrokenExample(f'{name}: there is no sound in it')
    if problem := not_sound(sound, clip_files.SAMPLE_RATE):
        raise BrokenExample(f'{name}: {problem}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A CSV file with one row for each media file: its name, its labels and its part of the data.

    The attributes are the keys of `config.data.table`.

    Attributes:
      csv_file: Path of the CSV file, relative to the data's folder.
      media: Path of the folder of the media files, relative to the data's folder; they may lie in
        folders below it.
      file_column: Column with the names of the media files, or paths of which the beginning or the
        end is left out, with their endings or without.
      label_column: Column with the labels of a file, one or several.
      label_separator: String between several labels; '' where every file has one label.
      split_column: Column with the part of the data that a file belongs to.
      train: Parts to train on, separated by commas, such as '1,2,3' or 'train'.
      validation: Parts to evaluate on, separated by commas.
      only: 'column=value' leaves out all rows with another value; '' keeps all rows.
    """

    csv_file: str
    media: str
    file_column: str
    label_column: str
    label_separator: str
    split_column: str
    train: str
    validation: str
    only: str

    def read(self, folder: Path) -> list[Row]:
        """Reads the rows that `only` keeps.

        Args:
          folder: Folder of the data.

        Returns:
          Rows, each a dictionary from columns to values.

        Raises:
          Refused: There is no such file, or it is no table with these columns.
        """
        file = folder / self.csv_file
        if not file.is_file():
            raise Refused(f'{file}: there is no such table')
        column, _, value = self.only.partition('=')
        needed = [self.file_column, self.label_column, self.split_column]
        rows = read_table(file, [*needed, column] if self.only else needed)
        return [row for row in rows if not self.only or row[column] == value]

    def labels(self, row: Mapping[str, str]) -> list[str]:
        """Returns the labels of a row, each once, sorted."""
        labels = [row[self.label_column]]
        if self.label_separator:
            labels = row[self.label_column].split(self.label_separator)
        return sorted({label.strip() for label in labels} - {''})

    def parts(self, split: str) -> list[str]:
        """Returns the parts of the data that make up 'train' or 'validation'."""
        wanted = {'train': self.train, 'validation': self.validation}[split]
        return [part.strip() for part in wanted.split(',')]


class LabelledFolder:
    """Source of the media in a folder, whose labels and splits a `Table` tells.

    ESC-50 as it comes is such a folder: it holds meta/esc50.csv with the columns filename, category
    and fold, and the media in audio/. UrbanSound8K is another, with the media in audio/fold1/ and
    so on.

    Attributes:
      classes: Names of the labels: those that are given, or sorted those of all rows, whatever the
        split.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        with_frames: bool,
        table: Table,
        classes: Sequence[str] | None = None,
        sample_rate: int = clip_files.SAMPLE_RATE,
    ):
        """Reads the table, and finds the files of the split.

        Args:
          path: Folder of the data, to which the paths in `table` are relative.
          split: 'train' or 'validation'.
          with_frames: Whether frames are read.
          table: The table, and what its columns mean.
          classes: Names of the labels in their order; None: the table tells. So a table of clips
            to evaluate alone need not have a row of every class.
          sample_rate: Sample rate of the sound in Hz, to which it is resampled; 48,000 where frames
            are read.

        Raises:
          Refused: The table, a column, the folder of media or a file of the split is missing, a row
            is damaged, means several files or has a label that is no class, or the split is empty.
        """
        csv_file, media = path / table.csv_file, path / table.media
        self._name = f'{csv_file}, split {split}'
        self._with_frames = with_frames
        self._sample_rate = sample_rate
        self._kept: dict[int, np.ndarray] = {}  # index -> sound, as long as there is room
        self._kept_bytes = 0
        rows = table.read(path)
        origin = str(csv_file) if classes is None else GIVEN
        if classes is None:
            classes = sorted({label for row in rows for label in table.labels(row)})
        self.classes = list(classes)
        numbers = number_classes(self.classes)
        parts = table.parts(split)
        files = _MediaFiles(media)
        self._clips: list[tuple[str, list[int]]] = []  # file, labels
        for row in rows:
            if row[table.split_column].strip() not in parts:
                continue
            labels = table.labels(row)
            if not labels and not table.label_separator:
                raise Refused(f'{row.place}: {table.label_column!r} is empty')
            file = files.find(row[table.file_column].strip(), row.place)
            numbered = [label_of(label, numbers, row.place, origin) for label in labels]
            self._clips.append((file, numbered))
        if not self._clips:
            known = sorted({row[table.split_column] for row in rows})
            raise Refused(
                f'{csv_file} has no rows whose {table.split_column} is one of {parts}; there is '
                f'{known[:9]!r:.300}'
            )

    def __repr__(self) -> str:
        return self._name

    def __getstate__(self) -> dict:  # workers keep sounds of their own
        return {**self.__dict__, '_kept': {}, '_kept_bytes': 0}

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Example:
        file, labels = self._clips[index]
        frames: list[bytes] = []
        if index in self._kept:
            sound = self._kept[index]
        else:
            sound, frames = self._read(file)
            if not self._with_frames and self._kept_bytes + sound.nbytes <= _KEPT_BYTES:
                self._kept[index] = sound
                self._kept_bytes += sound.nbytes
        return {'name': file, 'sound': sound, 'frames': frames, 'labels': labels}

    def _read(self, file: str) -> tuple[np.ndarray, list[bytes]]:
        """Reads the sound of a file, and its frames if they are wanted."""
        import soundfile

        if not self._with_frames:  # most sound files need no FFmpeg and no resampling
            sound = None
            try:
                with soundfile.SoundFile(file) as opened:
                    rate, length = opened.samplerate, opened.frames
                    # A header that was written to a pipe tells no length: FFmpeg reads to the end.
                    if rate == self._sample_rate and 0 < length < _UNKNOWN_LENGTH:
                        sound = clip_files.read_sound(opened, os.path.getsize(file))
            except soundfile.SoundFileError:
                pass
            except Refused as error:
                raise BrokenExample(f'{file}: {error}') from error
            if sound is not None:
                _check_sound(sound, file)
                return sound.mean(1), []
        try:
            if self._sample_rate != clip_files.SAMPLE_RATE:
                return read_audio(file, self._sample_rate).mean(1), []
            sound, frames, wrong = clip_files.read_clip(file, 0.0, None, self._with_frames)
        except OSError as error:
            raise BrokenExample(f'{file}: {error.strerror}') from error
        except Refused as error:
            raise BrokenExample(str(error)) from error
        # A clip that is too short for AudioSet is of use here: silence fills the window up.
        fatal = wrong.keys() & clip_files.LEFT_OUT.keys() - {'too short'}
        if fatal or 'damaged' in wrong or not len(sound):
            problems = '; '.join(f'{key}: {value}' for key, value in wrong.items())
            raise BrokenExample(f'{file}: {problems}')
        return sound, frames


class _MediaFiles:
    """The files below a folder, to be found by what a table calls them."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise Refused(f'{folder}: there is no such folder of media')
        self._folder = folder
        self._by_name: dict[str, list[tuple[str, ...]]] = {}  # paths below the folder, in parts
        self._by_stem: dict[str, list[tuple[str, ...]]] = {}
        for parent, _, names in sorted(os.walk(folder, followlinks=True)):
            below = os.path.relpath(parent, folder)
            if is_hidden(below):
                continue
            parents = () if below == '.' else tuple(below.split(os.sep))
            stems = set()  # of several files that differ in their endings the first is taken
            for name in sorted(x for x in names if not is_hidden(x)):
                self._by_name.setdefault(name, []).append((*parents, name))
                if _stem(name) not in stems:
                    stems.add(_stem(name))
                    self._by_stem.setdefault(_stem(name), []).append((*parents, name))

    def find(self, called: str, place: str) -> str:
        """Finds a file.

        Its path below the folder ends with the path in the table (which may say no more than its
        name), or that one ends with it (which may begin elsewhere, as on another machine).

        Args:
          called: What the table calls the file.
          place: Where the table does, for error messages.

        Returns:
          The path of the file.

        Raises:
          Refused: There is no such file, or there are several.
        """
        path = posixpath.normpath(called.replace('\\', '/')).split('/')
        parents, name = tuple(path[:-1]), path[-1]
        found: list[tuple[str, ...]] = []
        for files, key in (
            (self._by_name, name),
            (self._by_stem, name),
            (self._by_stem, _stem(name)),
        ):
            found = found or [x for x in files.get(key, ()) if _ends_agree(x[:-1], parents)]
        exact = [x for x in found if len(x) == len(path)]
        deeper = [x for x in found if len(x) > len(path)]
        shorter = sorted((x for x in found if len(x) < len(path)), key=len)
        chosen = exact or deeper or shorter[-1:]
        if not chosen:
            raise Refused(f'{self._folder} has no file {called!r:.300} of {place}')
        if len(chosen) > 1:
            names = ' and '.join(repr('/'.join(file)) for file in chosen[:2])
            raise Refused(f'{self._folder} has {names} for {called!r:.300} of {place}')
        return os.path.join(self._folder, *chosen[0])


def _stem(name: str) -> str:
    """Returns a file's name without its ending; the '.5' of 'clip1.5' is none."""
    stem, ending = posixpath.splitext(name)
    return name if ending[1:].isdigit() else stem


def _ends_agree(one: Sequence[str], other: Sequence[str]) -> bool:
    """Returns whether one path is the end of the other."""
    common = min(len(one), len(other))
    return one[len(one) - common :] == other[len(other) - common :]
