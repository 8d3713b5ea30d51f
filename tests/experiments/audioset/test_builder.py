import csv
import io
import json
import shutil
import sys
import types

import av
import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from experiments.audioset import builder as audioset
from experiments.audioset.builder import Segment, find_media, locate, main, prepare, read_segments
from experiments.data import clip_files
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import write_clip
from tests.toys.clips import film, tone

MIDS = {'/m/09x0r': 'Speech', '/m/05zppz': 'Male speech, man speaking', '/t/dd00005': 'Child'}


def write_classes(path):
    with path.open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['index', 'mid', 'display_name'])
        rows.writerows([i, mid, name] for i, (mid, name) in enumerate(MIDS.items()))
    return path


def write_segments(path, clips):
    """AudioSet's own format: three lines of comments, and quotes around labels with commas."""
    lines = ['# Segments csv created Sun Mar  5 10:54:31 2017', '# num_ytids=3', '# YTID, ...']
    mids = list(MIDS)
    for youtube_id, start, end, labels in clips:
        quoted = ','.join(mids[label] for label in labels)
        lines.append(f'{youtube_id}, {start:.3f}, {end:.3f}, "{quoted}"')
    path.write_text('\n'.join(lines) + '\n')
    return path


def write_mute_video(path, seconds):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=25, width=52, height=38, pix_fmt='yuv420p')
        for image in film(seconds):
            frame = av.VideoFrame.from_ndarray((255 * image).astype(np.uint8).copy(), 'rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


# Reading what AudioSet ships


def test_classes(tmp_path):
    assert audioset.read_classes(write_classes(tmp_path / 'classes.csv')) == MIDS


def test_classes_out_of_order_are_refused(tmp_path):
    path = write_classes(tmp_path / 'classes.csv')
    path.write_text(path.read_text().replace('1,/m/05zppz', '2,/m/05zppz'))
    with pytest.raises(ValueError, match="expected index 1 in its row, got '2'"):
        audioset.read_classes(path)


def test_classes_that_stand_twice_are_refused(tmp_path):
    path = write_classes(tmp_path / 'classes.csv')
    first = path.read_text().splitlines()[1].split(',')[1]
    path.write_text(path.read_text().replace('/m/05zppz', first))
    with pytest.raises(ValueError, match=f"'{first}' of index 1 is that of a row before it"):
        audioset.read_classes(path)


def test_segments(tmp_path):
    clips = [('--4gqARaEJE', 0, 10, (0, 2)), ('-_abcdefghi', 30.5, 36.25, (1,))]
    path = write_segments(tmp_path / 'segments.csv', clips)
    expected = [
        Segment('--4gqARaEJE', 0.0, 10.0, (0, 2)),
        Segment('-_abcdefghi', 30.5, 36.25, (1,)),
    ]
    assert read_segments(path, MIDS) == expected
    assert expected[1].name == '-_abcdefghi_30.500'


def test_segments_with_doubled_quotes_and_empty_fields(tmp_path):
    path = tmp_path / 'segments.csv'
    path.write_text('abcdefghijk,20.000,30.000,"""/m/09x0r,/t/dd00005""",,,\n')
    assert read_segments(path, MIDS) == [Segment('abcdefghijk', 20.0, 30.0, (0, 2))]


@pytest.mark.parametrize('line', ['abc, 0.0, 1.0, "/m/none"', 'abc, zero, 1.0, "/m/09x0r"', 'abc'])
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / 'segments.csv'
    path.write_text(f'# comment\n{line}\n')
    with pytest.raises(ValueError, match='segments.csv, line 2: expected id, start, end'):
        read_segments(path, MIDS)


def test_media_are_found_by_id_and_start(tmp_path):
    names = [
        'aaaaaaaaaaa_40.000.mp4',  # seconds
        'bbbbbbbbbbb_40000_50000.mkv',  # milliseconds
        'deep/Yccccccccccc_7s.wav',
        'ddddddddddd.webm',  # the whole video
        '-_-_-_-_-_-_000030.m4a',
        'notes.txt',
    ]
    (tmp_path / 'deep').mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b'')
    for hidden in ('.Trashes', '.Trashes/more', 'deep/__MACOSX'):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / 'aaaaaaaaaaa_40.000.mp4').write_bytes(b'')
        (tmp_path / hidden / 'eeeeeeeeeee.mp4').write_bytes(b'')
    (tmp_path / '._ddddddddddd.webm').write_bytes(b'')
    media = find_media(tmp_path)
    assert all(len(files) == 1 for files in media.values())
    assert len(media) == 5

    def found(youtube_id, start):
        path, offset = locate(Segment(youtube_id, start, start + 10, ()), media)
        return path and path.removeprefix(f'{tmp_path}/'), offset

    assert found('aaaaaaaaaaa', 40.0) == (names[0], 0.0)
    assert found('bbbbbbbbbbb', 40.0) == (names[1], 0.0)
    assert found('ccccccccccc', 7.0) == (names[2], 0.0)
    assert found('ddddddddddd', 130.0) == (names[3], 130.0)
    assert found('-_-_-_-_-_-', 30.0) == (names[4], 0.0)
    assert found('aaaaaaaaaaa', 4.0) == (None, 0.0)
    assert found('eeeeeeeeeee', 40.0) == (None, 0.0)


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
