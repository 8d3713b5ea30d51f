import pytest

from experiments.audioset.segments import (
    Segment,
    find_media,
    locate,
    place_in_file,
    read_classes,
    read_segments,
)
from perceiver_jax.errors import Refused
from tests.toys.audioset_tables import MIDS, write_classes, write_segments
from tests.toys.damaged_tables import check_reader


def test_classes(tmp_path):
    assert read_classes(write_classes(tmp_path / 'classes.csv')) == MIDS


def test_classes_out_of_order_are_refused(tmp_path):
    path = write_classes(tmp_path / 'classes.csv')
    path.write_text(path.read_text().replace('1,/m/05zppz', '2,/m/05zppz'))
    with pytest.raises(ValueError, match="expected index 1 in its row, got '2'"):
        read_classes(path)


@pytest.mark.parametrize(
    'line, message',
    [
        ('2,/t/dd00005', 'line 4: expected 3 values'),
        ('2,/m/09x0r,Child', "line 4: expected a machine id of its own and a name, got '/m/09x0r'"),
        ('2,/t/dd00005,""', "line 4: expected .* a name, got '/t/dd00005' and ''"),
        ('2,/t/dd00005,"Child', 'line 4: .* is each quote closed'),
    ],
)
def test_a_damaged_row_of_the_classes_is_named(tmp_path, line, message):
    path = write_classes(tmp_path / 'classes.csv')
    path.write_text(path.read_text().replace('2,/t/dd00005,Child', line))
    with pytest.raises(Refused, match=f'classes.csv, {message}'):
        read_classes(path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_classes_and_segments_may_begin_with_a_mark(tmp_path, encoding):
    classes, segments = tmp_path / 'classes.csv', tmp_path / 'segments.csv'
    write_classes(classes)
    write_segments(segments, [('--4gqARaEJE', 0, 10, (0, 2))])
    for path in (classes, segments):
        path.write_text(path.read_text(), encoding)
    assert read_classes(classes) == MIDS
    assert read_segments(segments, MIDS) == [Segment('--4gqARaEJE', 0.0, 10.0, (0, 2))]


def test_damaged_classes_and_segments_are_read_or_refused(tmp_path):
    classes, segments = tmp_path / 'classes.csv', tmp_path / 'segments.csv'
    write_classes(classes)
    write_segments(segments, [('--4gqARaEJE', 0, 10, (0, 2)), ('-_abcdefghi', 30.5, 36.25, (1,))])
    check_reader(lambda: read_classes(classes), classes)
    check_reader(lambda: read_segments(segments, MIDS), segments)


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


@pytest.mark.parametrize(
    'line',
    [
        'abc, 0.0, 1.0, "/m/none"',
        'abc, zero, 1.0, "/m/09x0r"',
        'abc',
        'abc, 0.0, 1.0',  # a cut line, as is the next one
        'abc, 0.0, 1.0, "/m/09x0r',
        ', 0.0, 1.0, "/m/09x0r"',
    ],
)
def test_a_wrong_line_is_named(tmp_path, line):
    path = tmp_path / 'segments.csv'
    path.write_text(f'# comment\n{line}\n')
    with pytest.raises(ValueError, match='segments.csv, line 2: expected id, start, end'):
        read_segments(path, MIDS)


@pytest.mark.parametrize('times', ['2.0, 1.0', '-1, 1', '0, inf', 'nan, 1'])
def test_impossible_times_are_named(tmp_path, times):
    path = tmp_path / 'segments.csv'
    path.write_text(f'abc, {times}, "/m/09x0r"\n')
    with pytest.raises(Refused, match='segments.csv, line 1: expected an end behind the start'):
        read_segments(path, MIDS)


@pytest.mark.parametrize('text', ['', '# a comment\n'])
def test_no_segments_are_refused(tmp_path, text):
    path = tmp_path / 'segments.csv'
    path.write_text(text)
    with pytest.raises(Refused, match='segments.csv: expected lines of id, .* got none'):
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


@pytest.mark.parametrize(
    'start, end, seconds, expected',
    [
        (30.0, 40.0, 10.0, (0.0, 'as clip')),
        (30.0, 40.0, 9.0, (0.0, 'as clip')),
        (30.0, 40.0, 11.0, (0.0, 'as clip')),
        (30.0, 36.0, 6.5, (0.0, 'as clip')),
        (1.0, 11.0, 10.0, (0.0, 'as clip')),
        (30.0, 40.0, 40.0, (30.0, 'as video')),
        (30.0, 40.0, 39.5, (30.0, 'as video')),
        (30.0, 40.0, 3600.0, (30.0, 'as video')),
        (0.0, 10.0, 240.0, (0.0, 'as video')),
        (0.0, 10.0, 10.0, (0.0, 'as either')),
        (0.5, 10.5, 10.0, (0.0, 'as either')),
        (30.0, 40.0, 39.4, (None, '')),
        (30.0, 40.0, 11.1, (None, '')),
        (30.0, 40.0, 8.9, (None, '')),
    ],
)
def test_the_length_of_a_file_tells_whether_it_is_the_clip_or_the_video(
    start, end, seconds, expected
):
    assert place_in_file(Segment('aaaaaaaaaaa', start, end, ()), seconds) == expected
