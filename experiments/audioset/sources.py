"""Where clips of sound and video are read from."""

import csv
import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.audioset.sounds import Sounds
from experiments.data import clip_files
from experiments.data.pipeline import BrokenExample, Example, Source
from experiments.data.prepared import TfdsRecords
from perceiver_jax.errors import Refused

SPLITS = ('train', 'validation')
VERSION = '1.0.0'  # of the prepared data set
_KEPT_BYTES = 2**29  # decoded sound that a labelled folder keeps in memory; our choice


def open_source(
    kind: str,
    path: str | None,
    split: str,
    *,
    with_frames: bool,
    sample_rate: int,
    table: Mapping[str, str],
) -> Source:
    """Opens one split of a data set of clips.

    Args:
      kind: 'tfds' (AudioSet as `experiments.audioset.builder` prepares it), 'folder' (media and a
        table of their labels, see `LabelledFolder`) or 'sounds' (generated).
      path: TFDS's data folder or the folder of the prepared data set in it; or the folder of the
        table and the media; '~' is the home folder. Unused for sounds.
      split: 'train' or 'validation'.
      with_frames: whether frames are wanted; otherwise none is read.
      sample_rate: of the sound, Hz; 48,000 but for sounds.
      table: the fields of `LabelledFolder` after `path`; unused for others.

    Returns:
      Source of clips with the attribute `classes`.

    Raises:
      ValueError: if there is no such data.
    """
    if split not in SPLITS:
        raise Refused(f'split must be one of {SPLITS}, got {split!r}')
    if kind not in ('tfds', 'folder', 'sounds'):
        raise Refused(f"data source must be 'tfds', 'folder' or 'sounds', got {kind!r}")
    if kind == 'sounds':
        if with_frames:
            raise Refused('generated sounds have no video')
        return Sounds(split, sample_rate)
    if not path or not Path(path).expanduser().is_dir():
        raise Refused(f'data source {kind!r} reads a folder, and there is none at {path!r}')
    if sample_rate != clip_files.SAMPLE_RATE:
        raise Refused(
            f'the sound of {kind!r} has {clip_files.SAMPLE_RATE} Hz, config.clip.sample_rate is '
            f'{sample_rate}'
        )
    path = Path(path).expanduser()
    if kind == 'tfds':
        return _open_records(path, split, with_frames)
    return LabelledFolder(path, split, with_frames, **table)


def data_folder(out: Path, kind: str) -> Path:
    """Where in TFDS's data folder the prepared data set lies."""
    return out / 'audioset' / kind / VERSION


def _open_records(path: Path, split: str, with_frames: bool) -> TfdsRecords:
    """AudioSet as `experiments.audioset.builder` leaves it."""
    kinds = ['audio_visual'] if with_frames else ['audio_visual', 'audio']
    folders = [path, *(data_folder(path, kind) for kind in kinds)]
    folder = next((x for x in folders if (x / 'features.json').is_file()), None)
    if folder is None:
        raise Refused(
            f'{path} holds no prepared AudioSet: expected features.json in it or in '
            f'{" or ".join(str(x.relative_to(path)) for x in folders[1:])}'
        )
    convert = functools.partial(_from_tfds, source=f'{folder}, split {split}', frames=with_frames)
    return TfdsRecords(folder, split, convert, label='labels')


def _from_tfds(example: dict[str, Any], *, source: str, frames: bool) -> Example:
    import soundfile

    name = example['name'].decode()
    images = list(example['frames']) if frames else []
    if frames and not images:
        raise BrokenExample(f'{name} of {source} has no video')
    try:
        sound, _ = soundfile.read(io.BytesIO(example['sound']), dtype='float32')
    except soundfile.SoundFileError as error:
        raise BrokenExample(f'{name} of {source}: {error}') from error
    labels = [int(label) for label in example['labels']]
    return {'name': name, 'sound': sound, 'frames': images, 'labels': labels}


class LabelledFolder:
    """Media in a folder, and a CSV file that names their labels and splits.

    ESC-50 as it comes is one: meta/esc50.csv, audio/, and the columns filename, category, fold.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        with_frames: bool,
        *,
        csv_file: str,
        media: str,
        file_column: str,
        label_column: str,
        label_separator: str,
        split_column: str,
        train: str,
        validation: str,
        only: str,
    ):
        """Reads the table.

        Args:
          path: the folder.
          split: 'train' or 'validation'.
          with_frames: whether frames are wanted.
          csv_file: the table, in the folder.
          media: the folder of the files, in the folder.
          file_column: names of files, with their ending or without.
          label_column: one label or several.
          label_separator: what stands between several; '' where there is one only.
          split_column: the part of the data that a file belongs to.
          train: the parts to train on, such as '1,2,3' or 'train'.
          validation: the parts to evaluate on.
          only: 'column=value' leaves out all other rows; '' leaves out none.
        """
        self._name, self._with_frames = f'{path / csv_file}, split {split}', with_frames
        rows = self._rows(path / csv_file, file_column, label_column, split_column, only)
        separate = str.split if label_separator else lambda labels, _: [labels]
        labels = [
            sorted({x.strip() for x in separate(row[label_column], label_separator)} - {''})
            for row in rows
        ]
        self.classes = sorted({label for some in labels for label in some})
        label_of = {name: label for label, name in enumerate(self.classes)}
        wanted = {'train': train, 'validation': validation}[split]
        parts = [part.strip() for part in wanted.split(',')]
        files = _files_by_stem(path / media)
        self._kept, self._kept_bytes = {}, 0  # index -> sound, as long as there is room
        self._clips = []
        for row, some in zip(rows, labels, strict=True):
            if row[split_column].strip() in parts:
                name = row[file_column].strip()
                file = files.get(name) or files.get(Path(name).stem)
                if file is None:
                    raise Refused(f'{path / media} has no file {name!r} of {path / csv_file}')
                self._clips.append((file, [label_of[x] for x in some]))
        if not self._clips:
            known = sorted({row[split_column] for row in rows})
            raise Refused(
                f'{path / csv_file} has no rows whose {split_column} is one of {parts}; there is '
                f'{known[:9]}'
            )

    def _rows(self, file, file_column, label_column, split_column, only) -> list[dict]:
        if not file.is_file():
            raise Refused(f'{file}: there is no such table')
        with open(file, newline='', encoding='utf-8-sig') as opened:
            rows = list(csv.DictReader(opened))
        column, _, value = only.partition('=')
        wanted = {file_column, label_column, split_column, *([column] if only else [])}
        if not rows or not wanted <= rows[0].keys():
            found = list(rows[0]) if rows else []
            raise Refused(f'{file} needs the columns {sorted(wanted)}, and has {found}')
        return [row for row in rows if not only or row[column] == value]

    def __repr__(self) -> str:
        return self._name

    def __getstate__(self) -> dict:  # workers keep sounds of their own
        return {**self.__dict__, '_kept': {}, '_kept_bytes': 0}

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict:
        file, labels = self._clips[index]
        if index in self._kept:
            sound, frames = self._kept[index], []
        else:
            sound, frames = self._read(file)
            if not self._with_frames and self._kept_bytes + sound.nbytes <= _KEPT_BYTES:
                self._kept[index] = sound
                self._kept_bytes += sound.nbytes
        return {'name': file, 'sound': sound, 'frames': frames, 'labels': labels}

    def _read(self, file: str) -> tuple[np.ndarray, list[bytes]]:
        import soundfile

        if not self._with_frames:  # most sound files need no FFmpeg and no resampling
            try:
                sound, rate = soundfile.read(file, dtype='float32', always_2d=True)
                if rate == clip_files.SAMPLE_RATE:
                    return sound.mean(1), []
            except soundfile.SoundFileError:
                pass
        try:
            sound, frames, wrong = clip_files.read_clip(file, 0.0, None, self._with_frames)
        except OSError as error:
            raise BrokenExample(f'{file}: {error.strerror}') from error
        # Shorter than AudioSet's is no reason here: silence fills a window up.
        fatal = wrong.keys() & clip_files.LEFT_OUT.keys() - {'too short'}
        if fatal or 'damaged' in wrong or not len(sound):
            raise BrokenExample('; '.join(f'{key}: {value}' for key, value in wrong.items()))
        return sound, frames


def _files_by_stem(folder: Path) -> dict[str, str]:
    """File names, with and without their endings -> files."""
    if not folder.is_dir():
        raise Refused(f'{folder}: there is no such folder of media')
    files = {}
    for name in sorted(os.listdir(folder)):
        files.setdefault(Path(name).stem, str(folder / name))
        files[name] = str(folder / name)
    return files
