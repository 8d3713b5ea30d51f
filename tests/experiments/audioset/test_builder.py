import csv
import io
import json
import shutil
import sys
import types

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import tensorflow_datasets as tfds

from experiments.audioset import builder as audioset
from experiments.audioset.builder import main, prepare
from experiments.data import clip_files
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import write_clip
from tests.toys.audioset_tables import MIDS, write_classes, write_segments
from tests.toys.clips import as_from_a_pipe, film, tone


def write_mute_video(path, seconds):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25, width=52, height=38, pix_fmt='yuv420p')
        for image in film(seconds):
            frame = av.VideoFrame.from_ndarray((255 * image).astype(np.uint8).copy(), 'rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def steps(*amplitudes):
    """Encoded sound of 8 kHz, a second of each amplitude."""
    file = io.BytesIO()
    sound = np.concatenate([tone(1, amplitude, rate=8000) for amplitude in amplitudes])
    soundfile.write(file, sound, 8000, format='WAV')
    return file.getvalue()


def test_files_named_by_id_alone(tmp_path):
    """Copies of AudioSet have the clips, downloads have the videos, and a folder can have both."""
    names = ['clip', 'piped', 'video', 'first', 'neither', 'row', 'no_row', 'page', 'nan']
    start = {name: 0 if name == 'first' else 5 for name in names}
    folder = tmp_path / 'media'
    folder.mkdir()

    def path(name, pattern='{}.flac'):
        return folder / pattern.format(youtube_id(name))

    path('clip').write_bytes(steps(0.7, 0.7, 0.7))
    path('piped', 'Y{}.wav').write_bytes(steps(0.7, 0.7, 0.7))
    as_from_a_pipe(path('piped', 'Y{}.wav'), 2**32 - 1)
    path('video').write_bytes(steps(*5 * [0.1], 0.7, 0.7, 0.7))
    path('first').write_bytes(steps(0.7, 0.7, 0.7))
    path('neither').write_bytes(steps(0.1, 0.1, 0.1, 0.1, 0.1))
    path('page', '{}.mp4').write_bytes(b'<html>not found</html>')
    soundfile.write(path('nan', '{}.wav'), np.full(24_000, np.nan), 8000, subtype='FLOAT')
    rows = [
        {'video_id': youtube_id(name), 'audio': {'bytes': content, 'path': f'{name}.flac'}}
        for name, content in (('no_row', b'no sound'), ('row', steps(0.7, 0.7, 0.7)))
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / '00.parquet')
    clips = [(youtube_id(name), start[name], start[name] + 3, (0,)) for name in names]
    report = prepare(
        classes=write_classes(tmp_path / 'classes.csv'),
        segments={'train': [write_segments(tmp_path / 'train.csv', clips)]},
        media=folder,
        out=tmp_path / 'tfds',
        kind='audio',
    )
    assert {key: count for key, count in report['train'].items() if count} == {
        'kept': 5,
        'left out': 4,
        'other length': 1,
        'not finite': 1,
        'unreadable': 2,
        'as clip': 4,
        'as video': 1,
        'as either': 1,
    }
    finished = tmp_path / 'tfds/audioset/audio/1.0.0'
    problems = list(csv.DictReader((finished / 'problems.csv').read_text().splitlines()))
    files = {row['name'].rpartition('_')[0].strip('_'): row for row in problems}
    assert files['neither']['detail'] == '5.00 s'
    assert files['no_row']['file'] == str(folder / '00.parquet/0')
    assert '00.parquet/0: cannot decode' in files['no_row']['detail']
    for example in tfds.builder_from_directory(finished).as_data_source('train'):
        sound, _ = soundfile.read(io.BytesIO(example['sound']))
        assert len(sound) == 3 * 48_000
        assert np.abs(sound[4800:-4800]).max() == pytest.approx(0.7, abs=0.01)
        assert sound[4800:9600].std() == pytest.approx(0.7 / np.sqrt(2), abs=0.01)
    text = audioset.report_text(report)
    assert '4  as clip (named by id alone): the file is as long as the clip' in text
    assert text.endswith('are of two kinds: clips (4) and whole videos (1)')
    assert 'two kinds' not in audioset.report_text({'train': {**report['train'], 'as video': 0}})


# One clip


def test_what_comes_before_an_error_is_kept(tmp_path, monkeypatch):
    path = tmp_path / 'good.mp4'
    write_clip(path, film(3), tone(3)[:, None])

    def damaged(path, times, original=clip_files.shown_frames):
        for number, (image, count) in enumerate(original(path, times)):
            if number == 41:
                raise Refused('the frame at 1.64 s is damaged')
            yield image, count

    monkeypatch.setattr(clip_files, 'shown_frames', damaged)
    sound, frames, wrong = clip_files.read_clip(path, 0.0, 2.0, True)
    assert wrong == {'damaged': 'the frame at 1.64 s is damaged'}
    assert (len(sound), len(frames)) == (41 * 1920, 41)
    sound, frames, wrong = clip_files.read_clip(path, 0.0, 3.0, True)
    assert wrong.keys() == {'damaged', 'short'} and wrong['short'] == '1.64 of 3.00 s'


# Damaged media: what is reported, and what is kept


def youtube_id(name):
    return f'{name:_<11}'


@pytest.fixture(scope='module')
def media(tmp_path_factory):
    """A folder of clips of two seconds, named by what is wrong with them."""
    folder = tmp_path_factory.mktemp('media')

    def path(name, start=0, ending='mp4'):
        return folder / f'{youtube_id(name)}_{start}.{ending}'

    write_clip(path('good'), film(2), tone(2)[:, None])
    good = path('good').read_bytes()
    path('other', 30).write_bytes(good)
    write_clip(path('silent'), film(2), np.zeros((96_000, 1), np.float32))
    write_clip(path('short'), film(1.4), tone(1.4)[:, None])
    write_clip(path('too_short'), film(1.2), tone(1.2)[:, None])
    write_mute_video(path('mute'), 2)
    soundfile.write(path('blind', ending='flac'), tone(2), 48_000)
    path('cut').write_bytes(good[: len(good) // 2])
    path('empty', ending='webm').write_bytes(b'')
    path('page').write_bytes(b'<html>not found</html>')
    path('renamed', start=7).write_bytes(good)
    return folder


TRAIN = (
    *('good', 'silent', 'short', 'too_short', 'mute', 'blind', 'cut', 'empty', 'page'),
    *('renamed', 'absent'),
)


def arguments(media, folder, kind='audio_visual', train=TRAIN, **more):
    """What `prepare` needs; writes AudioSet's files into a folder."""
    train = [(youtube_id(name), 0, 2, (0, 2)) for name in train]
    validation = [(youtube_id('other'), 30, 32, (1,)), (youtube_id('absent'), 0, 2, (1,))]
    return dict(
        classes=write_classes(folder / 'classes.csv'),
        segments={
            'train': [write_segments(folder / 'train.csv', train)],
            'validation': [write_segments(folder / 'eval.csv', validation)],
        },
        media=media,
        out=folder / 'tfds',
        kind=kind,
        **more,
    )


def test_a_report_counts_and_lists_what_is_wrong(media, tmp_path):
    report = prepare(**arguments(media, tmp_path))
    assert {key: count for key, count in report['train'].items() if count} == {
        'kept': 3,
        'left out': 8,
        'missing': 2,
        'unreadable': 3,
        'no sound': 1,
        'no pictures': 1,
        'too short': 1,
        'short': 1,
        'silent': 1,
    }
    assert report['validation']['kept'] == 1 and report['validation']['missing'] == 1
    folder = tmp_path / 'tfds' / 'audioset' / 'audio_visual' / '1.0.0'
    assert json.loads((folder / 'report.json').read_text()) == report
    listed = {
        (row['split'], row['name'].split('_')[0], row['reason'])
        for row in csv.DictReader((folder / 'problems.csv').read_text().splitlines())
    }
    assert ('train', 'too', 'too short') in listed and ('validation', 'absent', 'missing') in listed
    assert len(listed) == 11
    assert not list((tmp_path / 'tfds').glob('*in_progress*'))


def test_sound_alone_needs_no_pictures(media, tmp_path):
    report = prepare(**arguments(media, tmp_path, 'audio', num_workers=1))
    assert {key: count for key, count in report['train'].items() if count} == {
        'kept': 4,
        'left out': 7,
        'missing': 2,
        'unreadable': 3,
        'no sound': 1,
        'too short': 1,
        'short': 1,
        'silent': 1,
    }
    source = tfds.builder_from_directory(tmp_path / 'tfds/audioset/audio/1.0.0').as_data_source()
    assert len(source['train']) == 4
    assert all(len(example['frames']) == 0 for example in source['train'])


def test_what_is_stored(media, tmp_path):
    prepare(**arguments(media, tmp_path, train=['good']))
    builder = tfds.builder_from_directory(tmp_path / 'tfds/audioset/audio_visual/1.0.0')
    assert builder.info.features['labels'].feature.names == list(MIDS.values())
    (example,) = builder.as_data_source('train')
    assert example['name'] == b'good________0.000'
    assert example['labels'] == [0, 2]
    assert len(example['frames']) == 50
    sound, _ = soundfile.read(io.BytesIO(example['sound']))
    assert len(sound) == 96_000
    power = np.abs(np.fft.rfft(sound))
    assert power.argmax() == 440 * 2  # two seconds: half a hertz to a bin
    assert 'tensorflow' not in sys.modules


def test_preparing_again_goes_on_where_it_was_interrupted(media, tmp_path, monkeypatch):
    monkeypatch.setattr(audioset, '_CLIPS_IN_PART', 5)
    converted = []

    def read_clip(path, *rest, original=clip_files.read_clip):
        converted.append(path)
        if len(converted) == 8:  # in the second part
            raise KeyboardInterrupt
        return original(path, *rest)

    monkeypatch.setattr(audioset, 'read_clip', read_clip)
    with pytest.raises(KeyboardInterrupt):
        prepare(**arguments(media, tmp_path))
    first = converted[:5]
    report = prepare(**arguments(media, tmp_path))
    assert (report['train']['kept'], report['train']['left out']) == (3, 8)
    assert not set(first) & set(converted[8:])
    assert len(converted[8:]) == 4 + 1  # nine training clips have files, one of validation


def test_a_file_that_arrives_later_is_looked_at(media, tmp_path):
    some = tmp_path / 'some'
    shutil.copytree(media, some)
    prepare(**arguments(some, tmp_path, train=['good', 'absent']))
    shutil.rmtree(tmp_path / 'tfds' / 'audioset')
    shutil.copy(some / f'{youtube_id("good")}_0.mp4', some / f'{youtube_id("absent")}_0.mp4')
    report = prepare(**arguments(some, tmp_path, train=['good', 'absent']))
    assert report['train']['kept'] == 2


def test_a_failure_nobody_foresaw_is_reported(media, tmp_path, monkeypatch):
    def read_clip(path, *rest, original=clip_files.read_clip):
        if 'silent' in path:
            raise MemoryError('a header that asks for a petabyte')
        return original(path, *rest)

    monkeypatch.setattr(audioset, 'read_clip', read_clip)
    report = prepare(**arguments(media, tmp_path, train=['good', 'silent']))
    assert (report['train']['kept'], report['train']['unreadable']) == (1, 1)


def test_not_a_single_clip(media, tmp_path):
    with pytest.raises(ValueError, match="has no file of the 1 clips of 'train'"):
        prepare(**arguments(media, tmp_path, train=['absent']))
    with pytest.raises(ValueError, match="not a single clip of 'train' is of use"):
        prepare(**arguments(media, tmp_path, train=['empty', 'page']))


def test_a_clip_in_two_files_of_segments_is_taken_once(media, tmp_path):
    call = arguments(media, tmp_path, train=['good', 'silent'])
    call['segments']['train'] *= 2
    assert prepare(**call)['train']['kept'] == 2


def test_what_is_prepared_is_not_prepared_again(media, tmp_path):
    prepare(**arguments(media, tmp_path, train=['good']))
    with pytest.raises(ValueError, match='is prepared already; remove it'):
        prepare(**arguments(media, tmp_path, train=['good']))


def test_the_command_line(media, tmp_path, capsys):
    call = arguments(media, tmp_path)
    line = ['--classes', str(call['classes']), '--media', str(media), '--out', str(call['out'])]
    line += ['--train', str(call['segments']['train'][0])]
    line += ['--validation', str(call['segments']['validation'][0]), '--num_workers', '0']
    main(line)
    printed = capsys.readouterr().out
    assert 'train: 3 clips, 8 left out' in printed
    assert '3  unreadable (left out): nothing in the file can be decoded' in printed
    with pytest.raises(SystemExit):
        main(line)
    assert 'is prepared already' in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def prepare(**arguments):
        raise ValueError('not enough values to unpack')

    monkeypatch.setattr(audioset, 'prepare', prepare)
    with pytest.raises(ValueError, match='not enough values to unpack'):
        main(['--classes', 'a', '--train', 'b', '--validation', 'c', '--media', 'd'])


def test_beam_is_given_parts_to_convert_and_read(monkeypatch):
    """With Beam's operations in the place of themselves: what they would do, in order."""

    class Step:
        def __init__(self, run):
            self.run = run

        def __or__(self, other):
            return Step(lambda items: other.run(self.run(items)))

        def __rrshift__(self, name):
            return self

    beam = types.ModuleType('apache_beam')
    beam.Create = lambda items: Step(lambda _: items)
    beam.Reshuffle = lambda: Step(lambda items: reversed(items))
    beam.Map = lambda function: Step(lambda items: map(function, items))
    beam.FlatMap = lambda function: Step(lambda items: [x for i in items for x in function(i)])
    monkeypatch.setitem(sys.modules, 'apache_beam', beam)
    monkeypatch.setattr(audioset, '_convert', lambda part: part.upper())
    monkeypatch.setattr(audioset, '_examples', lambda file: [(file, 1), (file, 2)])
    builder = audioset.Audioset(
        classes=['a'], parts={'train': ['x', 'y']}, beam=True, config='audio'
    )
    examples = builder._generate_examples('train').run(None)
    assert examples == [('Y', 1), ('Y', 2), ('X', 1), ('X', 2)]
