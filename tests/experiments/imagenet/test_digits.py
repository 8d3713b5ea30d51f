import numpy as np
import pytest
import sklearn.datasets

from experiments.imagenet import transforms
from experiments.imagenet.sources import open_source
from perceiver_jax.front_ends.images import decode_image

TRANSFORM = transforms.TrainTransform(
    image_size=13,
    mean=(0.3,),
    std=(0.4,),
    crop_area=None,
    flip=False,
    randaugment_layers=0,
    randaugment_magnitude=0,
    jitter_degrees=10.0,
    jitter_shift=0.1,
    jitter_scale=0.1,
)


@pytest.fixture(scope='module')
def splits():
    return {split: open_source('digits', None, split) for split in ('train', 'validation')}


def test_splits_share_out_all_digits(splits):
    assert {split: len(source) for split, source in splits.items()} == {
        'train': 1437,
        'validation': 360,
    }
    names = [example['name'] for source in splits.values() for example in source]
    assert len(set(names)) == 1797
    for source in splits.values():  # every class about as often
        counts = np.bincount([example['label'] for example in source], minlength=10)
        assert counts.min() > 0.07 * len(source) and len(counts) == 10


def test_split_is_fixed(splits):
    assert [splits['validation'][index]['name'] for index in range(4)] == [
        'digit 1442',
        'digit 455',
        'digit 584',
        'digit 147',
    ]


def test_pixels_and_labels_are_scikit_learns(splits):
    digits = sklearn.datasets.load_digits()
    example = splits['train'][7]
    row = int(example['name'].removeprefix('digit '))
    decoded = decode_image(example['encoded'], channels=1)
    assert decoded.shape == (8, 8, 1)
    np.testing.assert_array_equal(np.round(decoded[..., 0] / 255 * 16), digits.images[row])
    assert example['label'] == digits.target[row]
    assert splits['train'].classes[example['label']] == str(digits.target[row])


def test_digit_goes_through_the_transforms(splits):
    made = TRANSFORM(splits['train'][5], np.random.default_rng(0))
    assert made['image'].shape == (13, 13, 1) and made['image'].dtype == np.float32
    assert made['label'] == splits['train'][5]['label']
    other = TRANSFORM(splits['train'][5], np.random.default_rng(1))
    assert np.abs(made['image'] - other['image']).max() > 0.1


def test_evaluation_of_a_digit_keeps_every_pixel(splits):
    transform = transforms.EvalTransform(image_size=8, mean=(0.25,), std=(0.5,), crop_fraction=1.0)
    example = splits['validation'][3]
    decoded = decode_image(example['encoded'], channels=1)
    np.testing.assert_allclose(transform(example)['image'], (decoded / 255 - 0.25) / 0.5, atol=1e-6)


def test_jitter_moves_by_at_most_the_shift():
    dot = np.zeros((41, 41, 1), np.uint8)
    dot[20, 20] = 255
    places = []
    for seed in range(50):
        moved = transforms.jitter(dot, np.random.default_rng(seed), degrees=0, shift=0.2, scale=0)
        weights = moved[..., 0] / moved.sum()
        places.append([(weights.sum(axis) * np.arange(41)).sum() - 20 for axis in (1, 0)])
    places = np.array(places)
    assert np.abs(places).max() <= 0.2 * 41 + 0.1
    assert np.all(places.max(axis=0) > 5) and np.all(places.min(axis=0) < -5)


def test_jitter_turns_and_scales_about_the_centre():
    dot = np.zeros((41, 41, 1), np.uint8)
    dot[20, 35] = 255  # 15 pixels right of the centre
    angles, radii = [], []
    for seed in range(50):
        moved = transforms.jitter(dot, np.random.default_rng(seed), degrees=30, shift=0, scale=0.2)
        row, column = np.unravel_index(moved[..., 0].argmax(), (41, 41))
        angles.append(np.degrees(np.arctan2(row - 20, column - 20)))
        radii.append(np.hypot(row - 20, column - 20))
    assert 24 < np.max(angles) <= 34 and -34 <= np.min(angles) < -24
    assert 16.5 < np.max(radii) <= 19 and 11 <= np.min(radii) < 13.5
