"""Where clips of sound and video are read from, and what happens to one on its way to the model.

A clip is {'name': str, 'sound': float32 [n] mono, 'frames': list of JPEG files, 'labels': ints};
frame i is shown while the samples from i * sample_rate / frames_per_second on are heard. Frames are
an empty list where none were asked for. Every source has `classes`, the names of its labels.
"""

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import soundfile

from experiments.data import audioset
from experiments.data.image import inception_crop
from experiments.data.pipeline import BrokenExample, Source
from experiments.data.sounds import Sounds
from perceiver_jax.front_ends import centre_crop, decode_image

SPLITS = ('train', 'validation')
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
      kind: 'tfds' (AudioSet as `experiments.data.audioset` prepares it), 'folder' (media and a
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
        raise ValueError(f'split must be one of {SPLITS}, got {split!r}')
    if kind not in ('tfds', 'folder', 'sounds'):
        raise ValueError(f"data source must be 'tfds', 'folder' or 'sounds', got {kind!r}")
    if kind == 'sounds':
        if with_frames:
            raise ValueError('generated sounds have no video')
        return Sounds(split, sample_rate)
    if not path or not Path(path).expanduser().is_dir():
        raise ValueError(f'data source {kind!r} reads a folder, and there is none at {path!r}')
    if sample_rate != audioset.SAMPLE_RATE:
        raise ValueError(
            f'the sound of {kind!r} has {audioset.SAMPLE_RATE} Hz, config.clip.sample_rate is '
            f'{sample_rate}'
        )
    path = Path(path).expanduser()
    if kind == 'tfds':
        return Prepared(path, split, with_frames)
    return LabelledFolder(path, split, with_frames, **table)


class Prepared:
    """AudioSet as array_record files."""

    def __init__(self, path: Path, split: str, with_frames: bool):
        import tensorflow_datasets as tfds

        kinds = ['audio_visual'] if with_frames else ['audio_visual', 'audio']
        folders = [path, *(audioset.data_folder(path, kind) for kind in kinds)]
        folder = next((x for x in folders if (x / 'features.json').is_file()), None)
        if folder is None:
            raise ValueError(
                f'{path} holds no prepared AudioSet: expected features.json in it or in '
                f'{" or ".join(str(x.relative_to(path)) for x in folders[1:])}'
            )
        self._name, self._with_frames = f'{folder}, split {split}', with_frames
        builder = tfds.builder_from_directory(folder)
        self._source = builder.as_data_source(split)
        self.classes = builder.info.features['labels'].feature.names

    def __repr__(self) -> str:
        return self._name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        example = self._source[index]
        name, frames = example['name'].decode(), list(example['frames'])
        if self._with_frames and not frames:
            raise BrokenExample(f'{name} of {self._name} has no video')
        try:
            sound, _ = soundfile.read(io.BytesIO(example['sound']), dtype='float32')
        except soundfile.SoundFileError as error:
            raise BrokenExample(f'{name} of {self._name}: {error}') from error
        labels = [int(label) for label in example['labels']]
        frames = frames if self._with_frames else []
        return {'name': name, 'sound': sound, 'frames': frames, 'labels': labels}


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
                    raise ValueError(f'{path / media} has no file {name!r} of {path / csv_file}')
                self._clips.append((file, [label_of[x] for x in some]))
        if not self._clips:
            known = sorted({row[split_column] for row in rows})
            raise ValueError(
                f'{path / csv_file} has no rows whose {split_column} is one of {parts}; there is '
                f'{known[:9]}'
            )

    def _rows(self, file, file_column, label_column, split_column, only) -> list[dict]:
        if not file.is_file():
            raise ValueError(f'{file}: there is no such table')
        with open(file, newline='', encoding='utf-8-sig') as opened:
            rows = list(csv.DictReader(opened))
        column, _, value = only.partition('=')
        wanted = {file_column, label_column, split_column, *([column] if only else [])}
        if not rows or not wanted <= rows[0].keys():
            found = list(rows[0]) if rows else []
            raise ValueError(f'{file} needs the columns {sorted(wanted)}, and has {found}')
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
        if not self._with_frames:  # most sound files need no FFmpeg and no resampling
            try:
                sound, rate = soundfile.read(file, dtype='float32', always_2d=True)
                if rate == audioset.SAMPLE_RATE:
                    return sound.mean(1), []
            except soundfile.SoundFileError:
                pass
        try:
            sound, frames, wrong = audioset.read_clip(file, 0.0, None, self._with_frames)
        except OSError as error:
            raise BrokenExample(f'{file}: {error.strerror}') from error
        # Shorter than AudioSet's is no reason here: silence fills a window up.
        fatal = wrong.keys() & audioset.LEFT_OUT.keys() - {'too short'}
        if fatal or 'damaged' in wrong or not len(sound):
            raise BrokenExample('; '.join(f'{key}: {value}' for key, value in wrong.items()))
        return sound, frames


def _files_by_stem(folder: Path) -> dict[str, str]:
    """File names, with and without their endings -> files."""
    if not folder.is_dir():
        raise ValueError(f'{folder}: there is no such folder of media')
    files = {}
    for name in sorted(os.listdir(folder)):
        files.setdefault(Path(name).stem, str(folder / name))
        files[name] = str(folder / name)
    return files


# On the way to the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipShape:
    """What the model looks at: a window of `num_frames`, and the sound of that time."""

    num_frames: int
    frames_per_second: int
    sample_rate: int  # Hz
    size: int  # of the video, pixels; 0: there is no video

    def __post_init__(self):
        if self.sample_rate % self.frames_per_second:
            raise ValueError(
                f'config.clip: a frame must last a whole number of samples, got '
                f'{self.sample_rate} Hz and {self.frames_per_second} frames per second'
            )

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // self.frames_per_second

    @property
    def num_samples(self) -> int:
        return self.num_frames * self.samples_per_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """(clip, random numbers) -> {'sound' [n], 'labels' [K] float32, 'video' [T, S, S, 3] uint8}.

    A window at a random time. Colour, crop and flip are the same for all frames of a window.
    """

    shape: ClipShape
    num_classes: int  # K
    crop_area: tuple[float, float] | None  # of Inception's crop, share of a frame; None: centre
    flip: bool  # left to right, half of the time
    brightness: float  # largest change, of 1
    contrast: float
    saturation: float
    hue: float  # largest turn, of a full one
    roll: bool  # the clip begins anywhere, what was before is appended; for sound alone
    gain_db: float  # largest change of loudness either way

    def __post_init__(self):
        if self.roll and self.shape.size:
            raise ValueError('config.augmentation.roll is for sound without video')

    def __call__(self, clip: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        shape, sound = self.shape, clip['sound']
        if self.roll:
            sound = np.roll(sound, rng.integers(len(sound)))
        if shape.size:  # both begin with a frame
            last = min(len(clip['frames']), -(-len(sound) // shape.samples_per_frame))
            first = int(rng.integers(max(last - shape.num_frames, 0) + 1))
            start = first * shape.samples_per_frame
        else:
            start = int(rng.integers(max(len(sound) - shape.num_samples, 0) + 1))
        gain = np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        example = {
            'sound': gain * _padded(sound[start : start + shape.num_samples], shape.num_samples),
            'labels': _many_hot(clip, self.num_classes),
        }
        if shape.size:
            frames = _decode(clip, first, shape.num_frames)
            example['video'] = self._augment(frames, rng)
        return example

    def _augment(self, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.crop_area is None:
            cropped = centre_crop(np.moveaxis(frames, 0, 2), 1.0)
        else:  # a crop of rows and columns, whatever the axes behind them
            cropped = inception_crop(np.moveaxis(frames, 0, 2), rng, self.crop_area)
        flip = self.flip and rng.random() < 0.5
        limits = self.brightness, self.contrast, self.saturation, self.hue
        matrix = colour_matrix(*(rng.uniform(-1, 1, 4) * limits), grey=frames.mean() / 255)
        video = _resize(np.moveaxis(cropped, 2, 0), self.shape.size)
        if flip:
            video = video[:, :, ::-1]
        if any(limits):
            tall = np.ascontiguousarray(video).reshape(-1, self.shape.size, 3)
            video = cv2.transform(tall, matrix).reshape(video.shape)  # rounds, and saturates
        return np.ascontiguousarray(video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Clip -> {'sound' [N], 'labels' [K] float32, 'video' [F, S, S, 3] uint8, 'starts' [W] int32}.

    The whole clip once, cut off or filled up with silence and the last frame; `starts` are the
    frames at which W windows begin, spread evenly over what there is.
    """

    shape: ClipShape
    num_classes: int
    num_windows: int  # W
    clip_seconds: float
    crop_fraction: float  # side of the centre crop / shorter side of the frame

    def __post_init__(self):
        if self.clip_frames < self.shape.num_frames:
            raise ValueError(
                f'config.evaluation.clip_seconds is {self.clip_seconds}, less than the '
                f'{self.shape.num_frames / self.shape.frames_per_second} of a window'
            )

    @property
    def clip_frames(self) -> int:  # F
        return round(self.clip_seconds * self.shape.frames_per_second)

    def __call__(self, clip: dict) -> dict[str, np.ndarray]:
        shape, sound = self.shape, clip['sound']
        num_frames = -(-len(sound) // shape.samples_per_frame)
        if shape.size:
            num_frames = min(num_frames, len(clip['frames']))
        num_frames = min(num_frames, self.clip_frames)
        num_samples = self.clip_frames * shape.samples_per_frame
        last = max(num_frames - shape.num_frames, 0)
        example = {
            'sound': _padded(sound[: num_frames * shape.samples_per_frame], num_samples),
            'labels': _many_hot(clip, self.num_classes),
            'starts': np.rint(np.linspace(0, last, self.num_windows)).astype(np.int32),
        }
        if shape.size:
            frames = _decode(clip, 0, num_frames)
            cropped = centre_crop(np.moveaxis(frames, 0, 2), self.crop_fraction)
            video = _resize(np.moveaxis(cropped, 2, 0), shape.size)
            missing = self.clip_frames - num_frames
            example['video'] = np.pad(video, [(0, missing), *3 * [(0, 0)]], mode='edge')
        return example


def colour_matrix(
    brightness: float, contrast: float, saturation: float, hue: float, grey: float
) -> np.ndarray:
    """The four changes of colour as one affine map of RGB in 0..255.

    Args:
      brightness: added, of 1.
      contrast: distances to `grey` grow by this share.
      saturation: distances to each pixel's own grey grow by this share.
      hue: turn about the grey axis, of a full one.
      grey: mean of the video, in 0..1.

    Returns:
      [3, 4] float32: a matrix, and what is added.
    """
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))  # grey of a pixel, ITU-R BT.601
    saturate = (1 + saturation) * np.eye(3) - saturation * luma
    axis = np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    angle = 2 * np.pi * hue
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross
    turn += (1 - np.cos(angle)) * np.outer(axis, axis)
    matrix = (1 + contrast) * turn @ saturate
    offset = 255 * (brightness - contrast * grey)
    return np.hstack([matrix, np.full((3, 1), offset)]).astype(np.float32)


def _decode(clip: dict, first: int, count: int) -> np.ndarray:
    """`count` frames, the last repeated where there are fewer; uint8 [count, height, width, 3]."""
    images, seen = [], {}
    for encoded in clip['frames'][first : first + count]:
        if encoded not in seen:  # a video of fewer frames a second shows each of them longer
            try:
                seen = {encoded: decode_image(encoded, 3)}
            except ValueError as error:
                raise BrokenExample(f'{clip["name"]}: {error}') from error
        images.append(seen[encoded])
    if not images:
        raise BrokenExample(f'{clip["name"]} has no video')
    return np.stack(images + (count - len(images)) * images[-1:])


def _resize(frames: np.ndarray, size: int) -> np.ndarray:
    """[T, height, width, 3] -> [T, size, size, 3] uint8, averaging areas where frames shrink."""
    shrinks = min(frames.shape[1:3]) > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.stack(
        [cv2.resize(np.ascontiguousarray(x), (size, size), interpolation=method) for x in frames]
    )


def _padded(sound: np.ndarray, num_samples: int) -> np.ndarray:
    return np.pad(sound, (0, num_samples - len(sound))).astype(np.float32)


def _many_hot(clip: dict, num_classes: int) -> np.ndarray:
    labels = np.zeros(num_classes, np.float32)
    labels[clip['labels']] = 1
    return labels
