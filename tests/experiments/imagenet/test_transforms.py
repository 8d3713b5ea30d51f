import io

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from experiments.data.pipeline import BrokenExample
from experiments.imagenet import transforms
from perceiver_jax.front_ends import images

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encode(image, mode='RGB', kind='JPEG', **settings):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def train_transform(**settings):
    defaults = dict(
        image_size=29,
        mean=MEAN,
        std=STD,
        crop_area=(0.08, 1.0),
        flip=True,
        randaugment_layers=4,
        randaugment_magnitude=5,
        jitter_degrees=0.0,
        jitter_shift=0.0,
        jitter_scale=0.0,
    )
    return transforms.TrainTransform(**defaults | settings)


@pytest.mark.parametrize('encoded', [b'', b'no image', encode(NOISE)[:200], encode(NOISE)[:-500]])
def test_broken_image_names_its_file(encoded):
    example = {'encoded': encoded, 'label': 3, 'name': 'n01/broken.JPEG'}
    with pytest.raises(BrokenExample, match=f'n01/broken.JPEG: {len(encoded)} bytes'):
        train_transform()(example, np.random.default_rng(0))


GREY = NOISE[..., :1].repeat(3, -1)


@pytest.mark.parametrize(
    'encoded, expected',
    [
        (encode(NOISE), True),
        (encode(NOISE, kind='PNG'), True),
        (encode(NOISE, 'RGBA', 'PNG'), True),
        (encode(NOISE, 'P', 'PNG'), True),  # a palette
        (encode(NOISE, 'CMYK'), True),
        (encode(NOISE, 'L'), False),
        (encode(NOISE, 'L', 'PNG'), False),
        (encode(GREY), False),  # greys that are stored as colours
        (encode(GREY, kind='PNG'), False),
        (encode(np.minimum(GREY, 235) + np.uint8([20, 10, 0]), kind='PNG'), False),  # old paper
        (encode(np.where(np.arange(83)[:, None] == 7, NOISE, GREY), kind='PNG'), True),  # a line
    ],
)
def test_colours_are_told_from_greys(encoded, expected):
    assert transforms.is_coloured(encoded) is expected
    example = {'encoded': encoded, 'label': 5, 'name': 'x.png'}
    grey = dict(image_size=29, mean=(0.5,), std=(0.2,))
    made = (
        lambda: transforms.EvalTransform(crop_fraction=1.0, **grey)(example),
        lambda: train_transform(randaugment_layers=0, **grey)(example, np.random.default_rng(0)),
    )
    for make in made:
        if expected:
            with pytest.raises(BrokenExample, match='x.png: it is in colour, and config.images.me'):
                make()
        else:
            assert make()['image'].shape == (29, 29, 1)


def test_evaluation_is_crop_resize_normalise():
    example = {'encoded': encode(NOISE, kind='PNG'), 'label': 5, 'name': 'x'}
    made = transforms.EvalTransform(image_size=29, mean=MEAN, std=STD, crop_fraction=0.875)(example)
    crop = NOISE[4:57, 15:68].astype(np.float32)
    resized = np.asarray(jax.image.resize(crop, (29, 29, 3), 'cubic', antialias=False))
    np.testing.assert_allclose(made['image'], (resized / 255 - MEAN) / STD, atol=1e-4)
    assert made['image'].dtype == np.float32
    assert made['label'] == 5 and made['label'].dtype == np.int32


def test_training_draws_all_from_its_generator():
    example = {'encoded': encode(NOISE), 'label': 5, 'name': 'x'}
    transform = train_transform()
    one, same, other = (transform(example, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one['image'], same['image'])
    assert one['image'].shape == (29, 29, 3) and one['image'].dtype == np.float32
    assert one['label'] == 5 and one['label'].dtype == np.int32
    assert not np.array_equal(one['image'], other['image'])


def test_flip_mirrors_half_of_the_images():
    transform = train_transform(crop_area=None, randaugment_layers=0)
    example = {'encoded': encode(NOISE, kind='PNG'), 'label': 5, 'name': 'x'}
    plain = (images.resize(NOISE, 29) / 255 - MEAN) / STD
    flipped = 0
    for seed in range(200):
        image = transform(example, np.random.default_rng(seed))['image']
        if not np.allclose(image, plain, atol=1e-3):
            np.testing.assert_allclose(image, plain[:, ::-1], atol=1e-3)
            flipped += 1
    assert 70 < flipped < 130


def test_augmentation_precedes_the_resize(monkeypatch):
    seen = []
    monkeypatch.setattr(
        transforms, 'randaugment', lambda image, rng, **_: seen.append(image) or image
    )
    example = {'encoded': encode(NOISE), 'label': 5, 'name': 'x'}
    train_transform(crop_area=None)(example, np.random.default_rng(0))
    assert seen[0].shape == (61, 83, 3) and seen[0].dtype == np.uint8


def test_grey_images_refuse_randaugment():
    with pytest.raises(ValueError, match='randaugment_layers=4 with 1 means'):
        train_transform(mean=(0.3,), std=(0.4,))


def test_examples_use_one_thread():
    assert cv2.getNumThreads() == 1
