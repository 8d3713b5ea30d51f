"""Windows of clips in which a frame lasts 100 samples: sample i is i, frame j is grey 4 j."""

import cv2
import numpy as np
import pytest

from experiments.audioset import mixing, transforms
from experiments.audioset.transforms import ClipShape, EvalTransform, TrainTransform
from experiments.data.pipeline import BrokenExample

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
    speed=(1.0, 1.0),
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


def test_a_faster_sound_is_shorter_and_higher():
    """Sample i is i: at twice the speed every other sample is left, and silence behind them."""
    clip = make_clip(8, frames=False)
    faster, slower = (
        TrainTransform(shape=SHAPE, **{**PLAIN, 'speed': (factor, factor)})(
            clip, np.random.default_rng(0)
        )['sound']
        for factor in (2, 0.5)
    )
    np.testing.assert_allclose(faster, np.r_[np.arange(0, 800, 2), np.zeros(400)])
    np.testing.assert_allclose(mixing.at_speed(clip['sound'], 0, 800, 2.0), faster)  # in evaluation
    steps = np.diff(slower)
    assert len(slower) == 800 and set(steps.tolist()) <= {0.0, 0.5}  # 0 at the very end
    speeds = TrainTransform(shape=SHAPE, **{**PLAIN, 'speed': (0.8, 1.25)})
    steps = [np.diff(speeds(clip, np.random.default_rng(i))['sound'])[10] for i in range(200)]
    assert 0.8 <= min(steps) < 0.82 and 1.23 < max(steps) <= 1.25


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
