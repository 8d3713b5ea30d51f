r"""Prepares AudioSet, from its CSV files and a folder of media, as a TFDS data set.

    python -m experiments.audioset.builder --classes class_labels_indices.csv \
        --train balanced_train_segments.csv unbalanced_train_segments.csv \
        --validation eval_segments.csv --media clips --out ~/tensorflow_datasets

A media file is named by a YouTube id: `<id>_<start>.<ending>` is the clip itself, with its start in
seconds or milliseconds, and anything may follow the start. What `<id>.<ending>` is, its length
decides: about as long as the clip, it is the clip; reaching to the clip's end, it is the whole
video, of which the clip is cut out. A `Y` in front of an id is ignored. Any format that FFmpeg
decodes will do: mp4, mkv, webm, m4a, wav, flac, ogg. The .parquet files of agkphysics/AudioSet at
Hugging Face are read where pyarrow is installed: each row has an id, and its sound.

Clips that are missing, or that nothing can be learned from, are left out. These clips, and those
that are kept though something is wrong with them, are counted by reason and listed. After an
interruption the same command continues. TensorFlow is not needed.

Clips are converted by --num_workers processes, or on Apache Beam where --beam_options are given.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import functools
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments import command_line
from experiments.audioset import parquet
from experiments.audioset.segments import (
    CLIP_TOLERANCE,
    READINGS,
    Media,
    Segment,
    find_media,
    locate,
    place_in_file,
    read_classes,
    read_segments,
)
from experiments.audioset.sources import VERSION, data_folder
from experiments.data.clip_files import KEPT, LEFT_OUT, encode_sound, read_clip, sound_seconds
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole, write_whole

KINDS = ('audio_visual', 'audio')  # the configurations of the data set

_CLIPS_IN_PART = 100  # the work that an interruption loses, for each worker


class Remark(NamedTuple):
    """What is wrong with a clip; one line of problems.csv.

    Attributes:
      name: Name of the clip.
      file: Its media file; '' where there is none.
      reason: Key of `LEFT_OUT` or `KEPT`.
      detail: What was found.
    """

    name: str
    file: str
    reason: str
    detail: str


# Clips are converted a part of them at a time; a part whose file exists is done.


class _Clip(NamedTuple):
    """A clip, and what `locate` finds of it."""

    segment: Segment
    path: str | None
    start: float
    by_id_alone: bool  # the name of the file does not tell whether it is the clip or the video


class _Part(NamedTuple):
    """Clips that one worker converts into one file."""

    file: str  # a .zip that holds the sound and the frames of each clip, and clips.json
    with_frames: bool
    clips: tuple[_Clip, ...]


def _make_parts(
    segments: Sequence[Segment], media: Media, with_frames: bool, folder: Path
) -> list[_Part]:
    """Divides the work into parts."""
    clips = []
    for segment in segments:
        path, start = locate(segment, media)
        by_id_alone = (None, path) in media.get(segment.youtube_id, ())
        clips.append(_Clip(segment, path, start, by_id_alone))
    # Rows of parquet files that are read together belong together; others keep their order.
    clips.sort(key=lambda clip: (clip.path and parquet.split_path(clip.path)) or ('', 0))
    parts = []
    for i in range(0, len(clips), _CLIPS_IN_PART):
        some = tuple(clips[i : i + _CLIPS_IN_PART])
        sizes = [clip.path and _size(clip.path) for clip in some]
        # The name tells the clips and their files apart: no outdated part is taken for a new one.
        digest = hashlib.sha256(repr((some, sizes, with_frames)).encode()).hexdigest()
        parts.append(_Part(str(folder / f'{digest[:32]}.zip'), with_frames, some))
    return parts


def _size(path: str) -> int:
    """Returns the size of a media file, or of the parquet file that a row is in, in bytes."""
    row = parquet.split_path(path)
    return os.path.getsize(row[0] if row else path)


def _convert(part: _Part) -> str:
    """Converts the clips of a part, unless its file exists, and returns the file."""
    if os.path.exists(part.file):
        return part.file
    kept, remarks = [], []
    readings: collections.Counter[str] = collections.Counter()
    with whole(part.file) as unfinished, zipfile.ZipFile(unfinished, 'w') as archive:
        for clip in part.clips:
            segment = clip.segment
            sound, frames, wrong, reading = _read(clip, part.with_frames)
            remarks += [(segment.name, clip.path or '', *item) for item in wrong.items()]
            readings.update([reading] if reading else [])
            if not wrong.keys() & LEFT_OUT.keys():
                archive.writestr(f'{segment.name}/sound.flac', encode_sound(sound))
                for number, frame in enumerate(frames):
                    archive.writestr(f'{segment.name}/{number:04}.jpg', frame)
                kept.append((segment.name, len(frames), segment.labels))
        about = {'kept': kept, 'remarks': remarks, 'readings': readings}
        archive.writestr('clips.json', json.dumps(about))
    return part.file


def _read(clip: _Clip, with_frames: bool) -> tuple[np.ndarray, list[bytes], dict[str, str], str]:
    """Reads a clip as `read_clip` does, and returns a key of `READINGS`, or '', too.

    Whatever goes wrong is reported, not raised.
    """
    nothing = np.zeros(0, np.float32)
    if clip.path is None:
        return nothing, [], {'missing': ''}, ''
    start, reading = clip.start, ''
    length = clip.segment.end - clip.segment.start
    try:
        with _as_file(clip.path) as file:
            if clip.by_id_alone:
                # No more is decoded than it takes to decide.
                enough = max(clip.segment.end, length + 2 * CLIP_TOLERANCE)
                seconds = sound_seconds(file, enough)
                if seconds:  # `read_clip` tells why there is none
                    place, reading = place_in_file(clip.segment, seconds)
                    if place is None:
                        return nothing, [], {'other length': f'{seconds:.2f} s'}, ''
                    start = place
            sound, frames, wrong = read_clip(file, start, length, with_frames)
            wrong = {key: detail.replace(file, clip.path) for key, detail in wrong.items()}
            return sound, frames, wrong, reading
    except Exception as error:  # among millions of files, one will fail in a way of its own
        return nothing, [], {'unreadable': repr(error)}, ''


@contextlib.contextmanager
def _as_file(path: str) -> Iterator[str]:
    """Yields the path of a media file, for a row of a parquet file that of a temporary one."""
    row = parquet.split_path(path)
    if row is None:
        yield path
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(parquet.read_row(*row))
        file.flush()
        yield file.name


def _examples(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the clips of a converted part, each with its key."""
    with zipfile.ZipFile(file) as archive:
        for name, num_frames, labels in json.loads(archive.read('clips.json'))['kept']:
            example = {
                'name': name,
                'sound': archive.read(f'{name}/sound.flac'),
                'frames': [archive.read(f'{name}/{i:04}.jpg') for i in range(num_frames)],
                'labels': labels,
            }
            yield name, example


class Audioset(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # of TFDS, which has no types
):
    """AudioSet's clips: FLAC of 48 kHz, 25 JPEG frames a second, labels."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=kind) for kind in KINDS]

    def __init__(
        self,
        *,
        classes: Sequence[str],
        parts: Mapping[str, Sequence[_Part]],
        num_workers: int = 0,
        beam: bool = False,
        **tfds_arguments,
    ):
        """Takes the work that `prepare`, the only caller, has divided into parts.

        Args:
          classes: Names of the classes, in the order of their indices.
          parts: For each split, the parts that hold its clips.
          num_workers: Number of processes that convert clips; 0 converts them in this one.
          beam: Whether clips are converted on Apache Beam.
          **tfds_arguments: Arguments of TFDS's builder, such as `config` and `data_dir`.
        """
        self._classes, self._parts = list(classes), parts
        self._num_workers, self._beam = num_workers, beam
        super().__init__(file_format='array_record', **tfds_arguments)

    def _info(self):
        features = {
            'name': tfds.features.Text(),
            'sound': tfds.features.Text(),  # TFDS stores text as bytes
            'frames': tfds.features.Sequence(tfds.features.Text()),
            'labels': tfds.features.Sequence(tfds.features.ClassLabel(names=self._classes)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            description='AudioSet, as its media were found; report.json says what is missing.',
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._parts}

    def _generate_examples(self, split):
        parts = self._parts[split]
        if self._beam:
            import apache_beam as beam

            return (
                beam.Create(parts)
                | 'spread' >> beam.Reshuffle()
                | 'convert' >> beam.Map(_convert)
                | 'read' >> beam.FlatMap(_examples)
            )
        return self._in_process(split, parts)

    def _in_process(self, split, parts):
        found = False
        with contextlib.closing(self._converted(parts)) as files:
            for file in files:
                for key, example in _examples(file):
                    found = True
                    yield key, example
        if not found:
            counts = _count_remarks({split: parts})[0][split]
            raise Refused(f'not a single clip of {split!r} is of use: {dict(counts)}')

    def _converted(self, parts):
        """Yields the file of each part, in order, when it is converted."""
        if not self._num_workers:
            yield from map(_convert, parts)
            return
        executor = concurrent.futures.ProcessPoolExecutor(
            self._num_workers, mp_context=multiprocessing.get_context('spawn')
        )
        try:
            yield from executor.map(_convert, parts)
        finally:
            executor.shutdown(cancel_futures=True)


def prepare(
    *,
    classes: str | os.PathLike,
    segments: Mapping[str, Sequence[str | os.PathLike]],
    media: str | os.PathLike[str],
    out: str | os.PathLike,
    kind: str = 'audio_visual',
    num_workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> dict[str, dict[str, int]]:
    """Prepares the data set; work that an interrupted call finished is not repeated.

    Until all is done, the converted clips lie in `out` a second time.

    Args:
      classes: File class_labels_indices.csv.
      segments: For each split, its files of segments; a clip that several files list is taken once.
      media: Folder of the media, named by YouTube id and start.
      out: Data folder of TFDS; '~' is the home folder.
      kind: 'audio_visual', or 'audio', which has no frames and needs no video.
      num_workers: Number of processes that convert clips; 0 converts them in this one.
      beam_options: Options of the pipeline on Apache Beam, such as ['--runner=...']; None converts
        without Beam.

    Returns:
      For each split, the numbers of clips 'kept' and 'left out', of clips by reason (the keys of
      `LEFT_OUT` and `KEPT`), and of files that are named by id alone by what they were taken for
      (the keys of `READINGS`). They are also written to report.json in the folder of the data set,
      next to problems.csv, which lists the clips.

    Raises:
      Refused: A file is not what it should be, the data set is prepared already, or not a single
        clip of a split is of use.
    """
    if kind not in KINDS:
        raise Refused(f'kind must be one of {KINDS}, got {kind!r}')
    names = read_classes(classes)
    found = find_media(media)
    out = Path(out).expanduser()
    finished = data_folder(out, kind)
    if finished.exists():
        raise Refused(f'{finished} is prepared already; remove it to prepare it again')
    progress = out / f'audioset_{kind}_in_progress'
    parts = {}
    for split, files in segments.items():
        clips: dict[str, Segment] = {}
        for file in files:
            for segment in read_segments(file, names):
                clips.setdefault(segment.name, segment)
        parts[split] = _make_parts([*clips.values()], found, kind == 'audio_visual', progress)
        if not any(clip.path for part in parts[split] for clip in part.clips):
            raise Refused(f'{media} has no file of the {len(clips):,} clips of {split!r}')

    builder = Audioset(
        classes=list(names.values()),
        parts=parts,
        num_workers=num_workers,
        beam=beam_options is not None,
        config=kind,
        data_dir=out,
    )
    download_config = None
    if beam_options is not None:
        from apache_beam.options.pipeline_options import PipelineOptions

        download_config = tfds.download.DownloadConfig(beam_options=PipelineOptions(beam_options))
    builder.download_and_prepare(download_config=download_config)
    report = _write_report(finished, parts)
    shutil.rmtree(progress)
    return report


def _count_remarks(
    parts: Mapping[str, Sequence[_Part]],
) -> tuple[dict[str, dict[str, int]], list[tuple[str, ...]]]:
    """Returns the counts of each split, and rows of a split and the fields of a `Remark`."""
    report: dict[str, dict[str, int]] = {}
    rows: list[tuple[str, ...]] = []
    for split, some in parts.items():
        counts: collections.Counter[str] = collections.Counter()
        for part in some:
            with zipfile.ZipFile(part.file) as archive:
                clips = json.loads(archive.read('clips.json'))
            remarks = [Remark(*row) for row in clips['remarks']]
            rows += [(split, *remark) for remark in remarks]
            counts['kept'] += len(clips['kept'])
            counts['left out'] += len(part.clips) - len(clips['kept'])
            counts.update(remark.reason for remark in remarks)
            counts.update(clips['readings'])
        keys = ('kept', 'left out', *LEFT_OUT, *KEPT, *READINGS)
        report[split] = {key: counts[key] for key in keys}
    return report, rows


def _write_report(folder: Path, parts: Mapping[str, Sequence[_Part]]) -> dict[str, dict[str, int]]:
    """Writes report.json and problems.csv."""
    report, rows = _count_remarks(parts)
    listed = io.StringIO()
    csv.writer(listed).writerows([('split', *Remark._fields), *rows])
    write_whole(folder / 'problems.csv', listed.getvalue())
    write_whole(folder / 'report.json', json.dumps(report, indent=2) + '\n')
    return report


def report_text(report: Mapping[str, Mapping[str, int]]) -> str:
    """Formats the report of `prepare` as lines of text.

    Args:
      report: What `prepare` returns.

    Returns:
      A line for each split, and one for each reason that occurs; and a last one where some files
      that are named by id alone are clips and some are whole videos.
    """
    lines = []
    for split, counts in report.items():
        lines.append(f'{split}: {counts["kept"]:,} clips, {counts["left out"]:,} left out')
        kinds = (('left out', LEFT_OUT), ('kept', KEPT), ('named by id alone', READINGS))
        for outcome, reasons in kinds:
            for reason, meaning in reasons.items():
                if counts[reason]:
                    lines.append(f'  {counts[reason]:9,}  {reason} ({outcome}): {meaning}')
    clips, videos = (
        sum(counts[reading] for counts in report.values()) for reading in ('as clip', 'as video')
    )
    if clips and videos:
        lines.append(
            f'The files that are named by id alone are of two kinds: clips ({clips:,}) and whole '
            f'videos ({videos:,})'
        )
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
      argv: Arguments of the command; None takes those of this process.
    """
    parser = command_line.Parser(
        prog='python -m experiments.audioset.builder',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = functools.partial(parser.add_argument, metavar='FILE')
    add('--classes', required=True, help='class_labels_indices.csv')
    add('--train', nargs='+', required=True, help='segments to train on')
    add('--validation', nargs='+', required=True, help='segments to evaluate on')
    add('--media', required=True, metavar='FOLDER', help='media, named by YouTube id and start')
    add(
        '--out',
        default='~/tensorflow_datasets',
        metavar='FOLDER',
        help='data folder of TFDS (%(default)s)',
    )
    add('--kind', choices=KINDS, default=KINDS[0], metavar='KIND', help='audio_visual, or audio')
    add('--num_workers', type=int, default=os.cpu_count(), metavar='N', help='processes')
    add(
        '--beam_options',
        nargs='*',
        metavar='OPTION',
        help="options of Beam's pipeline, as runner=...",
    )
    arguments = parser.parse_args(argv)
    beam_options = arguments.beam_options
    if beam_options is not None:  # given without dashes, or argparse would take them for its own
        beam_options = [f'--{option.lstrip("-")}' for option in beam_options]
    local_path = command_line.local_path
    with command_line.one_line_errors('interrupted; the same command continues'):
        out = local_path(arguments.out, '--out')
        report = prepare(
            classes=local_path(arguments.classes, '--classes'),
            segments={
                'train': [local_path(x, '--train') for x in arguments.train],
                'validation': [local_path(x, '--validation') for x in arguments.validation],
            },
            media=local_path(arguments.media, '--media'),
            out=out,
            kind=arguments.kind,
            num_workers=arguments.num_workers,
            beam_options=beam_options,
        )
    folder = data_folder(Path(out), arguments.kind)
    print(f'{report_text(report)}\nThe clips are listed in {folder / "problems.csv"}')


if __name__ == '__main__':
    # Spawned workers find `_convert` and `_Part` by the name of their module. Here that would be
    # `__main__`, which is another module in a worker, so this module is imported by its name.
    from experiments.audioset import builder

    builder.main()
