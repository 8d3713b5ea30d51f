"""Tables and clips of labelled sounds."""

import io

from tests.faults.door import Sample, door
from tests.faults.doors.media import tone


@door('experiments.audioset.segments.read_classes')
def class_labels_csv(folder):
    from experiments.audioset.segments import read_classes

    file = folder / 'class_labels_indices.csv'
    file.write_text('index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male, man"\n')
    return Sample(file, lambda: read_classes(file), 'text')


@door('experiments.audioset.segments.read_segments')
def segments_csv(folder):
    from experiments.audioset.segments import read_segments

    file = folder / 'segments.csv'
    file.write_text('# YTID, start, end\n--aaaaaaaaa, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n')
    return Sample(file, lambda: read_segments(file, ['/m/09x0r', '/m/05zppz']), 'text')


@door('experiments.audioset.parquet.read_row', 'experiments.audioset.parquet.youtube_ids')
def parquet_rows(folder):
    import pyarrow
    import pyarrow.parquet

    from experiments.audioset import parquet

    file = folder / 'clips.parquet'
    rows = [{'video_id': x, 'audio': {'bytes': x.encode(), 'path': x}} for x in ('aa', 'bb', 'cc')]

    def write(rows):
        encoded = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), encoded, row_group_size=2)
        return encoded.getvalue()

    file.write_bytes(write(rows))

    def wrong(rng):
        value = rng.choice([None, 3, 'x', [1], {'bytes': 3}, {'bytes': 'x'}, {'path': 'x'}])
        key = rng.choice(['video_id', 'audio'])
        return write([{**row, key: value} for row in rows])

    def read():
        parquet._audio.cache_clear()
        ids = parquet.youtube_ids(str(file))
        return [parquet.read_row(str(file), row) for row in range(len(ids))]

    return Sample(file, read, wrong=wrong)


@door(
    'experiments.audioset.sources.open_source',
    'experiments.audioset.sources.LabelledFolder',
    'experiments.data.clip_files.read_sound',
)
def sound_of_a_folder(folder):
    file = tone(folder, '.wav')
    return Sample(file, lambda: _labelled(folder)[0])


@door('experiments.audioset.sources.open_source', 'experiments.audioset.sources.LabelledFolder')
def table_of_a_folder(folder):
    _labelled_files(folder)
    return Sample(folder / 'table.csv', lambda: _labelled(folder)[0], 'text')


def _labelled_files(folder):
    if not (folder / 'sound.wav').exists():
        tone(folder, '.wav')
    (folder / 'table.csv').write_text('file,label,fold\nsound.wav,dog,1\n')


def _labelled(folder):
    from experiments.audioset.sources import open_source

    if not (folder / 'table.csv').exists():
        _labelled_files(folder)
    names = dict(csv_file='table.csv', media='.', file_column='file', label_column='label')
    names |= dict(label_separator='', split_column='fold', train='1', validation='2', only='')
    options = dict(with_frames=False, sample_rate=48000, table=names)
    return open_source('folder', str(folder), 'train', **options)
