import numpy as np
import pytest
from PIL import Image, ImageOps

from experiments.imagenet import randaugment as ra

IMAGE = np.random.default_rng(0).integers(20, 230, (61, 83, 3), dtype=np.uint8)
SMOOTH = (np.add.outer(np.arange(61), 2 * np.arange(83))[..., None] + np.array([0, 10, 27])).astype(
    np.uint8
)  # 0..251


def blended(start, factor):
    """Blends from `start` to IMAGE, clipped and rounded down."""
    values = start + factor * (IMAGE.astype(float) - start)
    return np.floor(np.clip(values, 0, 255))


def nearest(image, source_of):
    """Takes pixel (x, y) from `source_of(x, y)`, rounded, or 128 outside."""
    height, width = image.shape[:2]
    result = np.full_like(image, 128)
    for y in range(height):
        for x in range(width):
            column, row = (int(np.floor(value + 0.5)) for value in source_of(x, y))
            if 0 <= column < width and 0 <= row < height:
                result[y, x] = image[row, column]
    return result


def test_there_are_sixteen_operations():
    assert (
        list(ra.OPERATIONS)
        == (
            'AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast Brightness '
            'Sharpness ShearX ShearY TranslateX TranslateY Cutout SolarizeAdd'
        ).split()
    )


def test_autocontrast():
    low, high = (reduce(IMAGE, axis=(0, 1)).astype(float) for reduce in (np.min, np.max))
    expected = np.floor((IMAGE - low) * 255 / (high - low))
    actual = ra.autocontrast(IMAGE)
    assert actual.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert np.abs(actual - expected).max() <= 1  # float32 may round the other way
    assert np.mean(actual != expected) < 0.02


def test_autocontrast_leaves_a_flat_channel():
    flat = IMAGE.copy()
    flat[..., 1] = 77
    assert np.all(ra.autocontrast(flat)[..., 1] == 77)


@pytest.mark.parametrize('image', [IMAGE, SMOOTH])
def test_equalize_is_pils(image):
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image)))
    np.testing.assert_array_equal(ra.equalize(image), expected)


def test_equalize_leaves_a_flat_image():
    flat = np.full((13, 17, 3), 77, np.uint8)
    np.testing.assert_array_equal(ra.equalize(flat), flat)


def test_invert():
    np.testing.assert_array_equal(ra.invert(IMAGE), 255 - IMAGE.astype(int))


@pytest.mark.parametrize('bits, step', [(2, 64), (4, 16), (1, 128), (0, 128)])
def test_posterize(bits, step):
    np.testing.assert_array_equal(ra.posterize(IMAGE, bits), IMAGE // step * step)


@pytest.mark.parametrize('threshold', [0, 128, 256])
def test_solarize(threshold):
    expected = np.where(IMAGE.astype(int) < threshold, IMAGE, 255 - IMAGE)
    np.testing.assert_array_equal(ra.solarize(IMAGE, threshold), expected)


def test_solarize_add():
    expected = np.where(IMAGE < 128, IMAGE.astype(int) + 110, IMAGE)
    np.testing.assert_array_equal(ra.solarize_add(IMAGE, 110), expected)
    assert ra.solarize_add(np.uint8([[[120, 127, 128]]]), 200).ravel().tolist() == [255, 255, 128]


@pytest.mark.parametrize('factor', [0.28, 1.0, 1.9])
def test_blends(factor):
    grey = np.floor(IMAGE @ [0.2989, 0.587, 0.114] * (255.5 / 255))[..., None]
    smooth = IMAGE.astype(int).copy()
    for row in range(1, 60):
        for column in range(1, 82):
            block = IMAGE[row - 1 : row + 2, column - 1 : column + 2].astype(int)
            smooth[row, column] = (block.sum((0, 1)) + 4 * block[1, 1]) // 13
    starts = {
        ra.color: grey,
        ra.contrast: 61 * 83 // 256,  # the release's "mean": the pixels' number / 256
        ra.brightness: 0,
        ra.sharpness: smooth,
    }
    for operation, start in starts.items():
        actual, expected = operation(IMAGE, factor).astype(int), blended(start, factor)
        assert actual.shape == IMAGE.shape
        assert np.abs(actual - expected).max() <= 1, operation.__name__  # float32 rounds down
        assert np.mean(actual != expected) < 0.02, operation.__name__


def test_contrast_of_a_large_image_goes_towards_white():
    dark = np.full((257, 256, 3), 100, np.uint8)
    np.testing.assert_array_equal(ra.contrast(dark, 0.2), 224)  # 255 + 0.2 * (100 - 255)


@pytest.mark.parametrize('degrees', [17.0, -30.0])
def test_rotate_turns_about_the_centre(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = nearest(
        IMAGE,
        lambda x, y: (
            41 + cos * (x - 41) - sin * (y - 30),
            30 + sin * (x - 41) + cos * (y - 30),
        ),
    )
    assert np.mean(ra.rotate(IMAGE, degrees) != expected) < 0.01


@pytest.mark.parametrize(
    'operation, level, source_of',
    [
        (ra.shear_x, 0.157, lambda x, y: (x + 0.157 * y, y)),
        (ra.shear_y, -0.157, lambda x, y: (x, y - 0.157 * x)),
        (ra.translate_x, 50, lambda x, y: (x + 50, y)),
        (ra.translate_y, -7, lambda x, y: (x, y - 7)),
    ],
)
def test_geometry(operation, level, source_of):
    actual, expected = operation(IMAGE, level), nearest(IMAGE, source_of)
    assert np.mean(actual != expected) < 0.005  # ties may round the other way


def test_cutout():
    actual = ra.cutout(IMAGE, 5, (3, 70))
    expected = IMAGE.copy()
    expected[0:8, 65:75] = 128
    np.testing.assert_array_equal(actual, expected)
    assert not np.array_equal(actual, IMAGE)


def strength_at(monkeypatch, name, function, magnitude):
    """Returns the arguments after the image with which the operation is called."""
    calls = []
    monkeypatch.setattr(ra, function, lambda image, *args: calls.append(args))
    for seed in range(20):
        ra.OPERATIONS[name](IMAGE, magnitude / 10, np.random.default_rng(seed))
    return calls


@pytest.mark.parametrize(
    'name, function, at_5, at_10',
    [
        ('Rotate', 'rotate', 15, 30),
        ('ShearX', 'shear_x', 0.15, 0.3),
        ('ShearY', 'shear_y', 0.15, 0.3),
        ('TranslateX', 'translate_x', 50, 100),
        ('TranslateY', 'translate_y', 50, 100),
    ],
)
def test_signed_strengths(monkeypatch, name, function, at_5, at_10):
    for magnitude, expected in ((5, at_5), (10, at_10)):
        values = [value for (value,) in strength_at(monkeypatch, name, function, magnitude)]
        assert set(np.round(values, 9)) == {expected, -expected}


@pytest.mark.parametrize(
    'name, function, at_3, at_5, at_10',
    [
        ('Posterize', 'posterize', 1, 2, 4),
        ('Solarize', 'solarize', 76, 128, 256),
        ('SolarizeAdd', 'solarize_add', 33, 55, 110),
        ('Color', 'color', 0.64, 1.0, 1.9),
        ('Contrast', 'contrast', 0.64, 1.0, 1.9),
        ('Brightness', 'brightness', 0.64, 1.0, 1.9),
        ('Sharpness', 'sharpness', 0.64, 1.0, 1.9),
        ('Cutout', 'cutout', 12, 20, 40),
    ],
)
def test_strengths(monkeypatch, name, function, at_3, at_5, at_10):
    for magnitude, expected in ((3, at_3), (5, at_5), (10, at_10)):
        values = [args[0] for args in strength_at(monkeypatch, name, function, magnitude)]
        assert values == pytest.approx([expected] * 20)


def test_cutout_may_centre_anywhere(monkeypatch):
    centres = []
    monkeypatch.setattr(ra, 'cutout', lambda image, pad, centre: centres.append(centre))
    rng = np.random.default_rng(0)
    for _ in range(2000):
        ra.OPERATIONS['Cutout'](IMAGE, 0.5, rng)
    assert np.min(centres, axis=0).tolist() == [0, 0]
    assert np.max(centres, axis=0).tolist() == [60, 82]


def test_operations_are_picked_uniformly_and_always_applied(monkeypatch):
    counts = np.zeros(16, int)

    def counting(number):
        def operation(image, level, rng):
            assert level == 0.5
            counts[number] += 1
            return image

        return operation

    monkeypatch.setattr(ra, '_OPERATIONS_BY_NUMBER', tuple(map(counting, range(16))))
    rng = np.random.default_rng(0)
    for _ in range(800):
        ra.randaugment(IMAGE, rng, layers=4, magnitude=5)
    assert counts.sum() == 3200
    assert np.abs(counts - 200).max() < 4 * np.sqrt(200)


def test_layers_are_applied_one_after_the_other():
    seen = {
        ra.randaugment(IMAGE, np.random.default_rng(seed), layers=4, magnitude=5).tobytes()
        for seed in range(30)
    }
    assert len(seen) > 25
    untouched = ra.randaugment(IMAGE, np.random.default_rng(0), layers=0, magnitude=5)
    np.testing.assert_array_equal(untouched, IMAGE)


def test_input_is_not_changed():
    image = IMAGE.copy()
    for operation in ra.OPERATIONS.values():
        made = operation(image, 0.7, np.random.default_rng(0))
        assert made.shape == image.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(image, IMAGE)


def test_magnitude_is_checked():
    with pytest.raises(ValueError, match='got 11'):
        ra.randaugment(IMAGE, np.random.default_rng(0), layers=1, magnitude=11)
