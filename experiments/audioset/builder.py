"""AudioSet from its own CSV files and a folder of media, as a TFDS data set of array_record files.

    python -m experiments.audioset.builder --classes class_labels_indices.csv \\
        --train balanced_train_segments.csv unbalanced_train_segments.csv \\
        --validation eval_segments.csv --media clips --out ~/tensorflow_datasets

A file of media is named by a YouTube id: `<id>_<start>.<ending>` is the clip itself, its start in
seconds or milliseconds, with whatever else behind it; `<id>.<ending>` is the whole video, and the
clip is cut out. A `Y` in front of an id is passed over. Whatever FFmpeg decodes will do: mp4, mkv,
webm, m4a, wav, flac, ogg.

Clips that are missing or that nothing can be learned from are left out; these, and those that are
kept though something is wrong with them, are counted by reason, and listed. The same command again
goes on where it was interrupted. Nothing of this needs TensorFlow.

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
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from experiments.audioset.sources import VERSION, data_folder
from experiments.data.clip_files import KEPT, LEFT_OUT, encode_sound, read_clip
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole, write_whole

KINDS = ('audio_visual', 'audio')  # the data set's two configurations

_CLIPS_AT_ONCE = 100  # what an interruption loses, for each worker


class Segment(NamedTuple):
    """A line of AudioSet's segments."""

    youtube_id: str
    start: float  # seconds in the video
    end: float
    labels: tuple[int, ...]

    @property
    def name(self) -> str:
        return f'{self.youtube_id}_{self.start:.3f}'


class Remark(NamedTuple):
    """What is wrong with a clip."""

    name: str
    file: str
    reason: str  # a key of LEFT_OUT or KEPT
    detail: str


def read_classes(path: str | os.PathLike) -> dict[str, str]:
    """Reads class_labels_indices.csv: index, machine id, name.

    Returns:
      Machine id -> name, in the order of the indices.

    Raises:
      ValueError: if it is another file.
    """
    with open(path, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    columns = {'index', 'mid', 'display_name'}
    if not rows or not columns <= rows[0].keys():
        raise Refused(f'{path}: expected rows of the columns {sorted(columns)}')
    for number, row in enumerate(rows):
        if row['index'] != str(number):
            raise Refused(f'{path}: expected index {number} in its row, got {row["index"]!r}')
    return {row['mid']: row['display_name'] for row in rows}


def read_segments(path: str | os.PathLike, mids: Iterable[str]) -> list[Segment]:
    """Reads a file of segments: id, start, end in seconds, and machine ids of labels.

    Args:
      path: such as balanced_train_segments.csv; lines that begin with # are comments.
      mids: the machine ids of all classes, in order.

    Raises:
      ValueError: if a line is something else, or a label is none of the classes.
    """
    label_of = {mid: label for label, mid in enumerate(mids)}
    segments = []
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, start=1):
            if line.startswith('#') or not line.strip():
                continue
            youtube_id, *rest = (field.strip(' "\r\n') for field in line.split(','))
            try:
                start, end = (float(x) for x in rest[:2])
                labels = tuple(label_of[mid] for mid in rest[2:] if mid)
            except (ValueError, KeyError) as error:
                raise Refused(
                    f'{path}, line {number}: expected id, start, end and labels of the classes, '
                    f'got {line.strip()!r} ({error!r})'
                ) from None
            if not 0 <= start < end:
                raise Refused(f'{path}, line {number}: the clip ends before it starts')
            segments.append(Segment(youtube_id, start, end, labels))
    return segments


def find_media(folder: str | os.PathLike) -> dict[str, list[tuple[float | None, str]]]:
    """Finds the files named by a YouTube id in a folder and all below.

    Returns:
      Id -> pairs of the start in the file's name, None where it has none, and the file.

    Raises:
      ValueError: if there is no such folder.
    """
    if not Path(folder).is_dir():
        raise Refused(f'media are read from a folder, and there is none at {str(folder)!r}')
    media = collections.defaultdict(list)
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            match = re.match(r'Y?(?P<id>[\w-]{11})(?:_(?P<start>\d+(\.\d+)?)(?!\d).*)?\.\w+$', name)
            if match:
                start = match['start'] and float(match['start'])
                media[match['id']].append((start, os.path.join(parent, name)))
    return dict(media)


def locate(segment: Segment, media: Mapping) -> tuple[str | None, float]:
    """Finds the file of a clip, None if there is none, and where in it the clip begins, seconds."""
    found = media.get(segment.youtube_id, ())
    for start, path in found:
        if start in (segment.start, 1000 * segment.start):
            return path, 0.0
    for start, path in found:
        if start is None:
            return path, segment.start
    return None, 0.0


# One clip


# Many clips, a part of them at a time: what is done is done


class _Part(NamedTuple):
    """Clips that one worker converts, into one file."""

    file: str  # a .zip: of each clip the sound and the frames; clips.json
    with_frames: bool
    clips: tuple[tuple[Segment, str | None, float], ...]  # with file, and seconds in the file


def _make_parts(segments: Sequence[Segment], media: Mapping, with_frames: bool, folder: Path):
    """Cuts the work into parts. Their names tell what is in them: nothing outdated is taken."""
    clips = [(segment, *locate(segment, media)) for segment in segments]
    parts = []
    for i in range(0, len(clips), _CLIPS_AT_ONCE):
        some = tuple(clips[i : i + _CLIPS_AT_ONCE])
        sizes = [path and os.path.getsize(path) for _, path, _ in some]
        digest = hashlib.sha256(repr((some, sizes, with_frames)).encode()).hexdigest()
        parts.append(_Part(str(folder / f'{digest[:32]}.zip'), with_frames, some))
    return parts


def _convert(part: _Part) -> str:
    """Converts clips, unless that was done before; returns the file."""
    if os.path.exists(part.file):
        return part.file
    kept, remarks = [], []
    with whole(part.file) as unfinished, zipfile.ZipFile(unfinished, 'w') as archive:
        for segment, path, start in part.clips:
            if path is None:
                sound, frames, wrong = None, [], {'missing': ''}
            else:
                duration = segment.end - segment.start
                try:
                    sound, frames, wrong = read_clip(path, start, duration, part.with_frames)
                except Exception as error:  # of millions of files, one will find a new way to fail
                    sound, frames, wrong = None, [], {'unreadable': repr(error)}
            remarks += [(segment.name, path or '', *item) for item in wrong.items()]
            if not wrong.keys() & LEFT_OUT.keys():
                archive.writestr(f'{segment.name}/sound.flac', encode_sound(sound))
                for number, frame in enumerate(frames):
                    archive.writestr(f'{segment.name}/{number:04}.jpg', frame)
                kept.append((segment.name, len(frames), segment.labels))
        archive.writestr('clips.json', json.dumps({'kept': kept, 'remarks': remarks}))
    return part.file


def _examples(file: str) -> Iterator[tuple[str, dict]]:
    """Yields the clips of a converted part: key and example."""
    with zipfile.ZipFile(file) as archive:
        for name, num_frames, labels in json.loads(archive.read('clips.json'))['kept']:
            example = {
                'name': name,
                'sound': archive.read(f'{name}/sound.flac'),
                'frames': [archive.read(f'{name}/{i:04}.jpg') for i in range(num_frames)],
                'labels': labels,
            }
            yield name, example


class Audioset(tfds.core.GeneratorBasedBuilder, skip_registration=True):
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
        """See `prepare`, which is how to call this."""
        self._classes, self._parts = list(classes), parts
        self._num_workers, self._beam = num_workers, beam
        super().__init__(file_format='array_record', **tfds_arguments)

    def _info(self):
        features = {
            'name': tfds.features.Text(),
            'sound': tfds.features.Text(),  # to TFDS, text is bytes
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
        with contextlib.ExitStack() as stack:
            convert = map
            if self._num_workers:
                executor = concurrent.futures.ProcessPoolExecutor(
                    self._num_workers, mp_context=multiprocessing.get_context('spawn')
                )
                stack.callback(executor.shutdown, cancel_futures=True)
                convert = executor.map
            found = False
            for file in convert(_convert, parts):
                for key, example in _examples(file):
                    found = True
                    yield key, example
        if not found:
            counts = _count_remarks({split: parts})[0][split]
            raise Refused(f'not a single clip of {split!r} is of use: {dict(counts)}')


def prepare(
    *,
    classes: str | os.PathLike,
    segments: Mapping[str, Sequence[str | os.PathLike]],
    media: str | os.PathLike,
    out: str | os.PathLike,
    kind: str = 'audio_visual',
    num_workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> dict[str, dict[str, int]]:
    """Prepares the data set; what an interrupted call did is not done again.

    Until all is done the converted clips lie in `out` a second time.

    Args:
      classes: class_labels_indices.csv.
      segments: split -> its files of segments; of a clip that is in several, the first counts.
      media: the folder of media.
      out: TFDS's data folder.
      kind: 'audio_visual', or 'audio': without frames, and clips need none.
      num_workers: processes that convert; 0: this one.
      beam_options: run on Apache Beam with these pipeline options, such as ['--runner=...'].

    Returns:
      Of each split how many clips are 'kept', 'left out', and of each reason. It is also written to
      report.json in the data set's folder, beside problems.csv, which lists the clips.

    Raises:
      ValueError: if the files are not what they should be, or of a split not a single clip is of
        use.
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
        clips = {}
        for file in files:
            for segment in read_segments(file, names):
                clips.setdefault(segment.name, segment)
        parts[split] = _make_parts([*clips.values()], found, kind == 'audio_visual', progress)
        if not any(path for part in parts[split] for _, path, _ in part.clips):
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


def _count_remarks(parts: Mapping[str, Sequence[_Part]]) -> tuple[dict, list[tuple]]:
    """Counts of each split, and rows of a split and a `Remark`."""
    report, rows = {}, []
    for split, some in parts.items():
        counts = collections.Counter()
        for part in some:
            with zipfile.ZipFile(part.file) as archive:
                clips = json.loads(archive.read('clips.json'))
            remarks = [Remark(*row) for row in clips['remarks']]
            rows += [(split, *remark) for remark in remarks]
            counts['kept'] += len(clips['kept'])
            counts['left out'] += len(part.clips) - len(clips['kept'])
            counts.update(remark.reason for remark in remarks)
        report[split] = {key: counts[key] for key in ('kept', 'left out', *LEFT_OUT, *KEPT)}
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
    """A report as people read it."""
    lines = []
    for split, counts in report.items():
        lines.append(f'{split}: {counts["kept"]:,} clips, {counts["left out"]:,} left out')
        for outcome, reasons in (('left out', LEFT_OUT), ('kept', KEPT)):
            for reason, meaning in reasons.items():
                if counts[reason]:
                    lines.append(f'  {counts[reason]:9,}  {reason} ({outcome}): {meaning}')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.audioset.builder',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = functools.partial(parser.add_argument, metavar='FILE')
    add('--classes', required=True, help='class_labels_indices.csv')
    add('--train', nargs='+', required=True, help='segments to train on')
    add('--validation', nargs='+', required=True, help='segments to evaluate on')
    add('--media', required=True, metavar='FOLDER', help='of media, named by YouTube id and start')
    add('--out', default='~/tensorflow_datasets', metavar='FOLDER', help='of TFDS (%(default)s)')
    add('--kind', choices=KINDS, default=KINDS[0], metavar='KIND', help='audio_visual, or audio')
    add('--num_workers', type=int, default=os.cpu_count(), metavar='N', help='processes')
    add('--beam_options', nargs='*', metavar='OPTION', help="of Beam's pipeline, as runner=...")
    arguments = parser.parse_args(argv)
    options = arguments.beam_options
    try:
        report = prepare(
            classes=arguments.classes,
            segments={'train': arguments.train, 'validation': arguments.validation},
            media=arguments.media,
            out=arguments.out,
            kind=arguments.kind,
            num_workers=arguments.num_workers,
            beam_options=options and [f'--{option.lstrip("-")}' for option in options],
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f'error: {error}\n')
    folder = data_folder(Path(arguments.out).expanduser(), arguments.kind)
    print(f'{report_text(report)}\nThe clips are listed in {folder / "problems.csv"}')


if __name__ == '__main__':
    # By its name, so that what workers are sent is of the module and not of __main__.
    from experiments.audioset import builder

    builder.main()
