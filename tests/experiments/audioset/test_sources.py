import io
import pickle

import cv2
import numpy as np
import pytest
import soundfile

from experiments.audioset import sources
from experiments.audioset.sources import open_source
from experiments.data.clip_files import encode_sound
from experiments.data.pipeline import BrokenExample
from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import write_clip
from tests.toys.clips import as_from_a_pipe, tone
from tests.toys.damaged_tables import check_reader

TABLE = dict(
    csv_file='meta/esc50.csv',
    media='audio',
    file_column='filename',
    label_column='category',
    label_separator='',
    split_column='fold',
    train='1,2',
    validation='5',
    only='',
)


def open_folder(path, split='train', with_frames=False, classes=None, sample_rate=48_000, **table):
    return open_source(
        'folder',
        str(path),
        split,
        with_frames=with_frames,
        sample_rate=sample_rate,
        table={**TABLE, **table},
        classes=classes,
    )


@pytest.fixture
def esc50(tmp_path):
    """ESC-50 as it comes, of five clips at its own 44.1 kHz."""
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'audio').mkdir()
    rows = ['filename,fold,target,category,esc10,src_file,take']
    for i, (fold, category, esc10) in enumerate(
        [(1, 'dog', True), (1, 'vacuum_cleaner', False), (2, 'rain', True), (5, 'dog', True)]
    ):
        name = f'{fold}-10003{i}-A-{i}.wav'
        soundfile.write(tmp_path / 'audio' / name, tone(0.3, 0.1 * (i + 1), rate=44_100), 44_100)
        rows.append(f'{name},{fold},{i},{category},{esc10},10003{i},A')
    (tmp_path / 'meta' / 'esc50.csv').write_text('\n'.join(rows) + '\n')
    return tmp_path


def test_esc50_as_it_comes(esc50):
    train, validation = open_folder(esc50), open_folder(esc50, 'validation')
    assert train.classes == validation.classes == ['dog', 'rain', 'vacuum_cleaner']
    assert [train[i]['labels'] for i in range(len(train))] == [[0], [2], [1]]
    (clip,) = [validation[i] for i in range(len(validation))]
    assert clip['labels'] == [0] and clip['frames'] == []
    assert clip['sound'].dtype == np.float32
    # Resampled to 48 kHz.
    np.testing.assert_allclose(len(clip['sound']), 0.3 * 48_000, atol=2)
    middle = slice(4800, 9600)
    np.testing.assert_allclose(clip['sound'][middle], tone(0.3, amplitude=0.4)[middle], atol=2e-3)
    assert pickle.loads(pickle.dumps(train))[1]['name'] == train[1]['name']


@pytest.mark.parametrize('rate', [16_000, 44_100])
def test_sound_is_read_at_the_rate_that_is_asked_for(esc50, rate):
    sound = open_folder(esc50, 'validation', sample_rate=rate)[0]['sound']
    np.testing.assert_allclose(len(sound), 0.3 * rate, atol=2)
    middle = slice(rate // 10, rate // 5)
    expected = tone(0.3, amplitude=0.4, rate=rate)[middle]
    np.testing.assert_allclose(sound[middle], expected, atol=2e-3)


def test_classes_that_are_given_are_those_of_the_labels(esc50):
    classes = ['rain', 'owl', 'dog']
    source = open_folder(esc50, 'validation', classes=classes)
    assert source.classes == classes and source[0]['labels'] == [2]
    with pytest.raises(
        Refused, match="line 3: 'vacuum_cleaner' is no class of the list .* cleaner"
    ):
        open_folder(esc50, classes=['vacuum cleaner', 'dog', 'rain'])


def test_hidden_files_are_no_media(esc50):
    name = next((esc50 / 'audio').glob('1-*.wav')).name
    (esc50 / 'audio' / f'._{name}').write_bytes(b'of the Finder')
    (esc50 / 'audio' / 'Thumbs.db').write_bytes(b'of Windows')
    assert len(open_folder(esc50)) == 3
    table = esc50 / 'meta' / 'esc50.csv'
    table.write_text(table.read_text().replace(name, f'._{name}'))
    with pytest.raises(ValueError, match=f"audio has no file '._{name}'"):
        open_folder(esc50)


def test_a_part_of_the_rows(esc50):
    source = open_folder(esc50, only='esc10=True')
    assert source.classes == ['dog', 'rain'] and len(source) == 2


def test_several_labels_and_names_without_endings(tmp_path):
    (tmp_path / 'media').mkdir()
    soundfile.write(tmp_path / 'media' / 'first.flac', np.full((999, 2), (0.25, 0.75)), 48_000)
    soundfile.write(tmp_path / 'media' / 'second.wav', np.zeros(999), 48_000)
    (tmp_path / 'labels.csv').write_text(
        'clip,labels,split\nfirst,"Guitar,Music",dev\nsecond,Music,eval\n'
    )
    table = dict(
        csv_file='labels.csv',
        media='media',
        file_column='clip',
        label_column='labels',
        label_separator=',',
        split_column='split',
        train='dev',
        validation='eval',
    )
    source = open_folder(tmp_path, **table)
    assert source.classes == ['Guitar', 'Music'] and source[0]['labels'] == [0, 1]
    np.testing.assert_allclose(source[0]['sound'], 0.5, atol=1e-4)  # the mean of two channels
    assert open_folder(tmp_path, 'validation', **table)[0]['labels'] == [1]


@pytest.fixture
def folds(tmp_path):
    """Media in folders, as of UrbanSound8K: `a.wav` is in all of them, the others in one."""
    for i, file in enumerate(
        ['fold1/a.wav', 'fold2/a.wav', 'fold1/b.1.wav', 'fold2/c.flac', 'd.wav', 'fold2/d.wav']
    ):
        path = tmp_path / 'audio' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(99, i / 10), 48_000)
    (tmp_path / 'audio' / 'fold1' / 'c.txt').write_text('notes')
    (tmp_path / 'audio' / '__MACOSX').mkdir()
    (tmp_path / 'audio' / '__MACOSX' / 'e.wav').write_bytes(b'hidden')
    (tmp_path / 'meta').mkdir()
    return tmp_path


@pytest.mark.parametrize(
    'called, expected',
    [
        ('fold1/a.wav', 0),
        ('./fold2/a.wav', 1),
        ('fold2\\a.wav', 1),
        ('audio/fold2/a', 1),
        ('/home/another/sounds/audio/fold1/a.wav', 0),
        ('../audio/fold1/b.1.wav', 2),
        ('b.1', 2),
        ('c.wav', None),  # the notes, or the sound in another format
        ('c.flac', 3),
        ('fold2/c.wav', 3),
        ('d.wav', 4),  # right in the folder
        ('fold2/d.wav', 5),
        ('a.wav', None),
        ('fold3/a.wav', None),
        ('b.2', None),
        ('e.wav', None),
        ('fold1', None),
        ('', None),
    ],
)
def test_media_in_folders_are_found(folds, called, expected):
    (folds / 'meta' / 'esc50.csv').write_text(f'filename,fold,category\n"{called}",1,x\n')
    if expected is None:
        with pytest.raises(Refused, match='/audio has .*of .*esc50.csv, line 2$'):
            open_folder(folds)
        return
    np.testing.assert_allclose(open_folder(folds)[0]['sound'], expected / 10, atol=1e-4)


def test_a_name_of_several_files_is_refused(folds):
    (folds / 'meta' / 'esc50.csv').write_text('filename,fold,category\na.wav,1,x\n')
    message = "audio has 'fold1/a.wav' and 'fold2/a.wav' for 'a.wav' of .*esc50.csv, line 2"
    with pytest.raises(Refused, match=message):
        open_folder(folds)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_a_table_may_begin_with_a_mark(esc50, encoding):
    table = esc50 / 'meta' / 'esc50.csv'
    table.write_text(table.read_text().replace('rain', 'Bärengebrüll'), encoding)
    assert open_folder(esc50).classes == ['Bärengebrüll', 'dog', 'vacuum_cleaner']


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda x: x.replace('rain,True,100032,A', 'ra'), 'line 4: expected 7 values'),
        (lambda x: x.replace('rain', ''), "line 4: 'category' is empty"),
        (lambda x: x.replace('rain', 'r\0in'), 'line 4: expected text, got a NUL'),
        (lambda x: x.replace('rain', '"rain'), 'line 4: .* is each quote closed'),
        (lambda x: x.replace('rain', 200_000 * 'n'), 'line 4: field larger'),
        (lambda x: x.replace('2-100032', '3-100032'), "no file '3-100032.* of .*, line 4"),
    ],
)
def test_a_damaged_row_is_named(esc50, change, message):
    table = esc50 / 'meta' / 'esc50.csv'
    table.write_text(change(table.read_text()))
    with pytest.raises(Refused, match=message):
        open_folder(esc50)


def test_a_part_that_is_not_used_needs_no_labels(esc50):
    table = esc50 / 'meta' / 'esc50.csv'
    table.write_text(table.read_text().replace('rain', ''))
    assert open_folder(esc50, train='1').classes == ['dog', 'vacuum_cleaner']


def test_a_damaged_table_is_read_or_refused(esc50):
    check_reader(lambda: open_folder(esc50), esc50 / 'meta' / 'esc50.csv')


def test_videos_of_a_folder_have_frames(esc50):
    video = np.broadcast_to(np.linspace(0, 1, 10)[:, None, None, None], (10, 18, 26, 3))
    name = next((esc50 / 'audio').glob('5-*.wav'))
    name.unlink()
    write_clip(name.with_suffix('.mp4'), video, tone(0.4)[:, None])
    clip = open_folder(esc50, 'validation', with_frames=True)[0]
    assert len(clip['frames']) == 10 and len(clip['sound']) == 10 * 1920
    frames = [cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_COLOR) for x in clip['frames']]
    np.testing.assert_allclose([x.mean() for x in frames], 255 * np.linspace(0, 1, 10), atol=6)


def test_a_damaged_file_is_a_broken_example(esc50):
    path = next((esc50 / 'audio').glob('5-*.wav'))
    path.write_bytes(b'no sound')
    with pytest.raises(BrokenExample, match=f'unreadable: .*{path.name}'):
        open_folder(esc50, 'validation')[0]
    source = open_folder(esc50, 'validation')
    path.unlink()
    with pytest.raises(BrokenExample, match=f'{path.name}: No such file'):
        source[0]


@pytest.mark.parametrize('rate', [8000, 44_100, 48_000])
@pytest.mark.parametrize(
    'sound, message',
    [
        (np.zeros(0), ''),
        (np.r_[tone(0.3), np.nan], 'its sound is '),
        (np.r_[np.inf, tone(0.3)], 'its sound is '),
        (np.c_[tone(0.3), np.full(14_400, -1e30)], 'its sound is '),
    ],
)
def test_an_empty_sound_and_one_that_is_not_finite_are_broken_examples(esc50, rate, sound, message):
    path = next((esc50 / 'audio').glob('5-*.wav'))
    soundfile.write(path, sound, rate, subtype='FLOAT')
    for asked in (48_000, 16_000):
        with pytest.raises(BrokenExample, match=f'{path.name}: .*{message}'):
            open_folder(esc50, 'validation', sample_rate=asked)[0]


@pytest.mark.parametrize('rate', [44_100, 48_000])
@pytest.mark.parametrize('size', [0, 2**32 - 1])
def test_a_wav_from_a_pipe_is_read_to_its_end(esc50, rate, size):
    path = next((esc50 / 'audio').glob('5-*.wav'))
    soundfile.write(path, np.c_[tone(0.3, rate=rate), tone(0.3, 0.1, rate=rate)], rate)
    expected = open_folder(esc50, 'validation')[0]['sound']
    as_from_a_pipe(path, size)
    np.testing.assert_array_equal(open_folder(esc50, 'validation')[0]['sound'], expected)


def test_a_flac_from_a_pipe_is_read_to_its_end(esc50):
    path = next((esc50 / 'audio').glob('5-*.wav'))
    content = bytearray(encode_sound(tone(0.3)))
    content[21] &= 0xF0  # the number of samples, unknown: 36 bits
    content[22:26] = bytes(4)
    path.write_bytes(content)
    sound = open_folder(esc50, 'validation')[0]['sound']
    np.testing.assert_allclose(sound, tone(0.3), atol=2**-15)


@pytest.mark.parametrize(
    'table, message',
    [
        (dict(csv_file='none.csv'), 'none.csv: there is no such table'),
        (dict(media='none'), 'none: there is no such folder of media'),
        (dict(label_column='label'), "needs the columns .*'label'.* and has .*'category'"),
        (dict(train='7'), r"no rows whose fold is one of \['7'\]; there is \['1', '2', '5'\]"),
        (dict(file_column='take'), "has no file 'A' of .*esc50.csv"),
    ],
)
def test_what_does_not_fit_is_named(esc50, table, message):
    with pytest.raises(ValueError, match=message):
        open_folder(esc50, **table)


def test_a_table_has_its_keys_and_no_others(esc50):
    arguments = dict(with_frames=False, sample_rate=48_000)
    table = {**TABLE, 'labels': 'category'}
    del table['only']
    with pytest.raises(Refused, match=r"missing are \['only'\], unknown are \['labels'\]"):
        open_source('folder', str(esc50), 'train', table=table, **arguments)


def test_sources_that_are_not_there(tmp_path):
    arguments = dict(with_frames=False, sample_rate=48_000, table=TABLE)
    with pytest.raises(ValueError, match="'tfds', 'folder' or 'sounds', got 'x'"):
        open_source('x', str(tmp_path), 'train', **arguments)
    with pytest.raises(ValueError, match='there is none at None'):
        open_source('tfds', None, 'train', **arguments)
    with pytest.raises(ValueError, match='audioset/audio_visual/1.0.0 or audioset/audio/1.0.0'):
        open_source('tfds', str(tmp_path), 'train', **arguments)
    arguments['sample_rate'] = 8000
    with pytest.raises(ValueError, match="'tfds' has 48000 Hz, config.clip.sample_rate is 8000"):
        open_source('tfds', str(tmp_path), 'train', **arguments)
    arguments['with_frames'] = True
    with pytest.raises(ValueError, match='video has 48000 Hz, config.clip.sample_rate is 8000'):
        open_source('folder', str(tmp_path), 'train', **arguments)
    with pytest.raises(ValueError, match='sounds have no video'):
        open_source('sounds', None, 'train', **{**arguments, 'with_frames': True})


def test_stored_sound_is_decoded():
    record = {'name': b'x', 'sound': encode_sound(tone(0.1)), 'frames': [], 'labels': [2]}
    clip = sources._from_tfds(record, source='nowhere', frames=False)
    assert clip['sound'].shape == (4800,)
    np.testing.assert_allclose(clip['sound'], tone(0.1), atol=2**-15)


@pytest.mark.parametrize('sound, message', [([], 'there is no sound'), ([0, np.nan], 'is nan')])
def test_stored_sound_that_is_empty_or_not_finite_is_a_broken_example(sound, message):
    stored = io.BytesIO()
    soundfile.write(stored, np.array(sound), 48_000, format='WAV', subtype='FLOAT')
    record = {'name': b'x', 'sound': stored.getvalue(), 'frames': [], 'labels': [2]}
    with pytest.raises(BrokenExample, match=f'^x of nowhere: .*{message}'):
        sources._from_tfds(record, source='nowhere', frames=False)


def test_sound_that_fills_the_memory_is_a_broken_example(esc50, monkeypatch):
    monkeypatch.setattr(limits, 'BYTES', 1000)
    monkeypatch.setattr(limits, 'BYTES_PER_BYTE', 0)
    stored = io.BytesIO()
    soundfile.write(stored, np.zeros(4800), 48_000, format='FLAC')
    record = {'name': b'x', 'sound': stored.getvalue(), 'frames': [], 'labels': [2]}
    with pytest.raises(BrokenExample, match='^x of nowhere: its sound would take 19,200 bytes'):
        sources._from_tfds(record, source='nowhere', frames=False)
    for rate, asked in ((48_000, 48_000), (44_100, 48_000), (48_000, 16_000)):  # by both libraries
        path = next((esc50 / 'audio').glob('5-*.wav'))
        soundfile.write(path, np.zeros(48_000), rate)
        with pytest.raises(
            BrokenExample, match=f'{path.name}: .*its sound would take .* of memory'
        ):
            open_folder(esc50, 'validation', sample_rate=asked)[0]


def test_a_folder_keeps_sounds_while_there_is_room(esc50, monkeypatch):
    monkeypatch.setattr(sources, '_KEPT_BYTES', 2 * 4 * 15_000)  # two of the three
    source = open_folder(esc50)
    before = [source[i]['sound'] for i in range(3)]
    assert len(pickle.dumps(source)) < 4000  # not to the workers
    for path in (esc50 / 'audio').iterdir():
        path.unlink()
    for i in range(2):
        np.testing.assert_array_equal(source[i]['sound'], before[i])
    with pytest.raises(BrokenExample):
        source[2]
