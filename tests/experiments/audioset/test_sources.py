import io
import pickle

import cv2
import numpy as np
import pytest
import soundfile

from experiments.audioset import transforms
from experiments.audioset.sounds import Sounds
from experiments.audioset.sources import open_source
from experiments.audioset.transforms import ClipShape, EvalTransform, TrainTransform
from experiments.data.pipeline import BrokenExample
from perceiver_jax.front_ends.media import write_clip

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


def open_folder(path, split='train', with_frames=False, **table):
    return open_source(
        'folder',
        str(path),
        split,
        with_frames=with_frames,
        sample_rate=48_000,
        table={**TABLE, **table},
    )


def tone(seconds, rate=48_000, amplitude=0.5, frequency=300):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


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
        soundfile.write(tmp_path / 'audio' / name, tone(0.3, 44_100, 0.1 * (i + 1)), 44_100)
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


def test_sources_that_are_not_there(tmp_path):
    arguments = dict(with_frames=False, sample_rate=48_000, table=TABLE)
    with pytest.raises(ValueError, match="'tfds', 'folder' or 'sounds', got 'x'"):
        open_source('x', str(tmp_path), 'train', **arguments)
    with pytest.raises(ValueError, match='there is none at None'):
        open_source('tfds', None, 'train', **arguments)
    with pytest.raises(ValueError, match='audioset/audio_visual/1.0.0 or audioset/audio/1.0.0'):
        open_source('tfds', str(tmp_path), 'train', **arguments)
    with pytest.raises(ValueError, match='48000 Hz, config.clip.sample_rate is 8000'):
        open_source('folder', str(tmp_path), 'train', **{**arguments, 'sample_rate': 8000})
    with pytest.raises(ValueError, match='sounds have no video'):
        open_source('sounds', None, 'train', **{**arguments, 'with_frames': True})


# Transforms. A frame of 100 samples, sample i of a clip is i; frame j is grey 4 j.

SHAPE = ClipShape(num_frames=8, frames_per_second=10, sample_rate=1000, size=0)
WITH_VIDEO = ClipShape(num_frames=8, frames_per_second=10, sample_rate=1000, size=12)
PLAIN = dict(
    num_classes=5,
    crop_area=None,
    flip=False,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    roll=False,
    gain_db=0.0,
)


def jpeg(image):
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def make_clip(num_frames=30, frames=True):
    pictures = [jpeg(np.full((20, 28, 3), 4 * j, np.uint8)) for j in range(num_frames)]
    sound = np.arange(100.0 * num_frames, dtype=np.float32)
    return {'name': 'x', 'sound': sound, 'frames': pictures if frames else [], 'labels': [1, 4]}


def test_a_training_window_is_the_same_time_of_sound_and_video():
    transform, clip = TrainTransform(shape=WITH_VIDEO, **PLAIN), make_clip()
    starts = set()
    for seed in range(99):
        example = transform(clip, np.random.default_rng(seed))
        assert example['video'].shape == (8, 12, 12, 3) and example['video'].dtype == np.uint8
        first = int(example['sound'][0])
        np.testing.assert_array_equal(example['sound'], first + np.arange(800))
        greys = example['video'].mean((1, 2, 3))
        np.testing.assert_allclose(greys, 4 * (first / 100 + np.arange(8)), atol=1.5)
        starts.add(first)
    assert starts == set(range(0, 2201, 100))
    np.testing.assert_array_equal(example['labels'], [0, 1, 0, 0, 1])


def test_sound_alone_begins_anywhere():
    transform, clip = TrainTransform(shape=SHAPE, **PLAIN), make_clip(9, frames=False)
    starts = {int(transform(clip, np.random.default_rng(i))['sound'][0]) for i in range(999)}
    assert min(starts) == 0 and max(starts) == 100 and len(starts) == 101


def test_what_is_too_short_is_filled_up():
    clip = make_clip(5)
    example = TrainTransform(shape=WITH_VIDEO, **PLAIN)(clip, np.random.default_rng(0))
    np.testing.assert_array_equal(example['sound'], np.r_[np.arange(500), np.zeros(300)])
    greys = example['video'].mean((1, 2, 3))
    np.testing.assert_allclose(greys, 4 * np.minimum(np.arange(8), 4), atol=1.5)


def test_rolling_keeps_every_sample():
    clip = make_clip(8, frames=False)
    transform = TrainTransform(shape=SHAPE, **{**PLAIN, 'roll': True})
    sound = transform(clip, np.random.default_rng(0))['sound']
    assert sound[0] != 0 and sorted(sound) == list(range(800))
    assert set(np.unique(np.diff(sound))) == {1, -799}


def test_gain_is_in_decibels():
    clip = make_clip(8, frames=False)
    transform = TrainTransform(shape=SHAPE, **{**PLAIN, 'gain_db': 6.0})
    gains = [transform(clip, np.random.default_rng(i))['sound'][100] / 100 for i in range(300)]
    assert 10 ** (-6 / 20) <= min(gains) < 0.52 and 1.93 < max(gains) <= 10 ** (6 / 20)


def test_colour_crop_and_flip_are_those_of_all_frames():
    image = np.random.default_rng(0).integers(60, 190, (20, 28, 3), np.uint8)
    clip = {**make_clip(8), 'frames': 8 * [jpeg(image)]}
    changes = dict(crop_area=(0.3, 0.9), flip=True, brightness=0.1, contrast=0.2, saturation=0.2)
    transform = TrainTransform(shape=WITH_VIDEO, **{**PLAIN, **changes})
    seen = [transform(clip, np.random.default_rng(i))['video'] for i in range(9)]
    for video in seen:
        np.testing.assert_array_equal(video, np.broadcast_to(video[:1], video.shape))
    assert len({video.tobytes() for video in seen}) == 9


def test_half_of_the_windows_are_flipped():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, :10] = 200
    clip = {**make_clip(8), 'frames': 8 * [jpeg(image)]}
    transform = TrainTransform(shape=WITH_VIDEO, **{**PLAIN, 'flip': True})
    flipped = [
        transform(clip, np.random.default_rng(i))['video'][0, 0, 0, 0] < 100 for i in range(200)
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.1)


def test_colours_by_hand():
    def apply(colour, **changes):
        settings = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.4) | changes
        matrix = transforms.colour_matrix(**settings)
        return matrix[:, :3] @ colour + matrix[:, 3]

    red, grey = np.array([200.0, 0, 0]), np.array([50.0, 50, 50])
    np.testing.assert_allclose(apply(red), red)
    np.testing.assert_allclose(apply(grey, brightness=0.1), grey + 25.5)
    np.testing.assert_allclose(apply(grey, contrast=0.5), 102 + 1.5 * (grey - 102), rtol=1e-5)
    np.testing.assert_allclose(apply(red, saturation=-1.0), 3 * [0.299 * 200], rtol=1e-5)
    # A third of a turn takes red to one of the other two colours, and leaves grey alone.
    np.testing.assert_allclose(sorted(apply(red, hue=1 / 3)), [0, 0, 200], atol=1e-3)
    assert apply(red, hue=1 / 3)[0] == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(apply(grey, hue=0.2), grey, rtol=1e-5)


def evaluate(clip, shape, **changes):
    settings = dict(num_classes=5, num_windows=4, clip_seconds=3.0, crop_fraction=0.9) | changes
    return EvalTransform(shape=shape, **settings)(clip)


def test_windows_are_spread_over_the_whole_clip():
    example = evaluate(make_clip(30), WITH_VIDEO)
    assert example['starts'].tolist() == [0, 7, 15, 22]  # 22 / 3 apart, the last ends at 30
    np.testing.assert_array_equal(example['sound'], np.arange(3000))
    np.testing.assert_allclose(example['video'].mean((1, 2, 3)), 4 * np.arange(30), atol=1.5)


def test_the_papers_sixteen_windows_overlap_by_more_than_half():
    shape = ClipShape(num_frames=32, frames_per_second=25, sample_rate=1000, size=0)
    clip = {**make_clip(frames=False), 'sound': np.zeros(10_000, np.float32)}
    starts = evaluate(clip, shape, num_windows=16, clip_seconds=10.0)['starts']
    assert len(starts) == 16 and starts[0] == 0 and starts[-1] == 250 - 32
    assert set(np.diff(starts)) == {14, 15}  # 218 / 15 = 14.5 frames


@pytest.mark.parametrize(('num_frames', 'starts'), [(10, [0, 1, 1, 2]), (5, [0, 0, 0, 0])])
def test_windows_of_a_short_clip_are_where_something_is(num_frames, starts):
    example = evaluate(make_clip(num_frames), WITH_VIDEO)
    assert example['starts'].tolist() == starts
    assert example['sound'].shape == (3000,) and not example['sound'][100 * num_frames :].any()
    assert example['video'].shape == (30, 12, 12, 3)
    assert example['video'][-1].mean() == pytest.approx(4 * (num_frames - 1), abs=1.5)


def test_a_long_clip_is_cut_off():
    example = evaluate(make_clip(40), WITH_VIDEO)
    assert example['starts'].tolist() == [0, 7, 15, 22] and len(example['video']) == 30


def test_shapes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match='a whole number of samples, got 1000 Hz and 30 frames'):
        ClipShape(num_frames=8, frames_per_second=30, sample_rate=1000, size=0)
    with pytest.raises(ValueError, match='clip_seconds is 0.7, less than the 0.8 of a window'):
        evaluate(make_clip(), SHAPE, clip_seconds=0.7)
    with pytest.raises(ValueError, match='roll is for sound without video'):
        TrainTransform(shape=WITH_VIDEO, **{**PLAIN, 'roll': True})


def test_a_broken_frame_is_a_broken_example():
    clip = {**make_clip(8), 'frames': 8 * [b'no image']}
    with pytest.raises(BrokenExample, match='^x: 8 bytes that are no whole image'):
        TrainTransform(shape=WITH_VIDEO, **PLAIN)(clip, np.random.default_rng(0))


# Generated sounds


def test_sounds_are_the_same_every_time_and_differ():
    train, validation = Sounds('train', 8000), Sounds('validation', 8000)
    first = train[17]
    np.testing.assert_array_equal(first['sound'], Sounds('train', 8000)[17]['sound'])
    assert first['sound'].shape == (24_000,) and first['sound'].dtype == np.float32
    assert np.abs(first['sound']).max() <= 1
    others = [train[18], validation[17]]
    assert not any(np.array_equal(first['sound'], other['sound']) for other in others)
    assert (len(train), len(validation)) == (2000, 400)


def test_every_kind_occurs_alone_and_with_others():
    labels = [Sounds('train', 8000)[i]['labels'] for i in range(150)]
    assert {len(some) for some in labels} == {1, 2, 3}
    assert {some[0] for some in labels if len(some) == 1} == set(range(8))


def test_kinds_are_what_they_are_called():
    source = Sounds('train', 8000)
    spectra = {}
    for i in range(150):
        clip = source[i]
        if len(clip['labels']) == 1:
            spectrum = np.abs(np.fft.rfft(clip['sound'])) ** 2
            spectra.setdefault(source.classes[clip['labels'][0]], []).append(spectrum)
    hertz = np.fft.rfftfreq(24_000, 1 / 8000)

    def share_below(kind, limit):
        return min(s[hertz < limit].sum() / s.sum() for s in spectra[kind])

    assert share_below('rumble', 500) > 0.9
    assert max(s[hertz < 2000].sum() / s.sum() for s in spectra['noise']) < 0.6
    assert min(np.sort(s)[-20:].sum() / s.sum() for s in spectra['tone']) > 0.9


def test_sounds_need_a_rate_for_their_pitches():
    with pytest.raises(ValueError, match='8,000 Hz are needed, not 4000'):
        Sounds('train', 4000)


def test_sound_is_kept_as_flac():
    """What `Prepared` decodes is what the builder encoded."""
    encoded = io.BytesIO()
    soundfile.write(encoded, tone(0.1), 48_000, format='FLAC', subtype='PCM_16')
    encoded.seek(0)
    sound, rate = soundfile.read(encoded, dtype='float32')
    assert rate == 48_000 and len(sound) == 4800


def test_a_folder_keeps_sounds_while_there_is_room(esc50, monkeypatch):
    monkeypatch.setattr(transforms, '_KEPT_BYTES', 2 * 4 * 15_000)  # two of the three
    source = open_folder(esc50)
    before = [source[i]['sound'] for i in range(3)]
    assert len(pickle.dumps(source)) < 4000  # not to the workers
    for path in (esc50 / 'audio').iterdir():
        path.unlink()
    for i in range(2):
        np.testing.assert_array_equal(source[i]['sound'], before[i])
    with pytest.raises(BrokenExample):
        source[2]
