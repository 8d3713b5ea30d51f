import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import (
    centre_crop,
    decode_image,
    normalise,
    prepare_frames,
    prepare_image,
    read_image,
    resize,
)

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
GRADIENT = np.stack(
    [*np.meshgrid(3 * np.arange(83), 4 * np.arange(61)), np.full((61, 83), 40)], axis=-1
).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def encode(image, mode='RGB', kind='JPEG', **settings):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def test_decodes_rgb():
    decoded = decode_image(encode(GRADIENT, quality=98), channels=3)
    assert decoded.shape == (61, 83, 3) and decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - GRADIENT).max() < 12


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_decodes_other_colour_spaces(mode):
    encoded = encode(GRADIENT, mode, quality=98)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB')).astype(int)
    assert np.abs(decode_image(encoded, channels=3) - expected).max() < 12


def test_decodes_png_and_drops_its_alpha():
    with_alpha = np.concatenate([NOISE, NOISE[..., :1]], axis=-1)
    decoded = decode_image(encode(with_alpha, 'RGBA', 'PNG'), channels=3)
    np.testing.assert_array_equal(decoded, NOISE)
    assert decode_image(encode(NOISE, 'L', 'PNG'), channels=1).shape == (61, 83, 1)


def test_orientation_tag_turns_photographs_and_no_imagenet(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left by 90 degrees
    path = tmp_path / 'photograph.jpg'
    path.write_bytes(encode(GRADIENT, exif=exif, quality=98))
    assert decode_image(path.read_bytes(), channels=3).shape == (61, 83, 3)
    upright = read_image(path)
    assert upright.shape == (83, 61, 3)
    assert np.abs(upright.astype(int) - np.rot90(GRADIENT, -1)).max() < 12


@pytest.mark.parametrize('shape', [(61, 83), (11, 13), (29, 29), (300, 17)])
def test_resize_is_tensorflows_bicubic(shape):
    # jax.image.resize has the same kernel and border as tf.image.resize.
    image = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = jax.image.resize(
        image.astype(np.float32), (29, 29, 3), method='cubic', antialias=False
    )
    actual = resize(image, 29)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=1e-2)  # JAX places the taps in float32


def test_resize_overshoots():
    stripes = np.zeros((16, 16, 1), np.uint8)
    stripes[:, 8:] = 255
    resized = resize(stripes, 32)
    assert resized.min() < -5 and resized.max() > 260


def test_resize_by_hand():
    # 2 -> 4: the first output stands at -0.25, 0.25 from pixel 0 and 1.25 from pixel 1.
    near, far = 1.5 * 0.25**3 - 2.5 * 0.25**2 + 1, -0.5 * 1.25**3 + 2.5 * 1.25**2 - 4 * 1.25 + 2
    column = np.array([[[10], [10]], [[50], [50]]], np.uint8)
    expected = (10 * near + 50 * far) / (near + far)
    np.testing.assert_allclose(resize(column, 4)[0, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    'shape, top, left, side', [((61, 83), 4, 15, 53), ((83, 61), 15, 4, 53), ((8, 8), 1, 1, 7)]
)
def test_centre_crop(shape, top, left, side):
    image = np.arange(shape[0] * shape[1]).reshape(*shape, 1)
    expected = image[top : top + side, left : left + side]
    np.testing.assert_array_equal(centre_crop(image, 0.875), expected)


@pytest.mark.parametrize('channels', [(), (2,), (3,), (4,)])
def test_pngs_of_16_bits_become_rgb_of_8(tmp_path, channels):
    import cv2

    deep = RNG.integers(0, 65536, (11, 13, *channels[:1]), dtype=np.uint16)
    if channels == (2,):  # grey with transparency, which OpenCV cannot write
        Image.fromarray(NOISE).convert('LA').save(tmp_path / 'image.png')
        expected = np.asarray(Image.fromarray(NOISE).convert('L'))[..., None].repeat(3, axis=-1)
    else:
        cv2.imwrite(str(tmp_path / 'image.png'), deep)
        colours = deep[..., None].repeat(3, axis=-1) if deep.ndim == 2 else deep[..., 2::-1]
        expected = colours / 257
    image = read_image(tmp_path / 'image.png')
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize('encoded', [b'', b'no image', encode(NOISE)[:-500]])
def test_what_is_no_image_is_named(tmp_path, encoded):
    path = tmp_path / 'broken.png'
    path.write_bytes(encoded)
    with pytest.raises(ValueError, match=f'broken.png: {len(encoded)} bytes'):
        read_image(path)


@pytest.mark.parametrize('kind', ['PF', 'Pf'])
@pytest.mark.parametrize('channels', [1, 3])
def test_floating_point_numbers_are_no_image(tmp_path, kind, channels):
    values = np.full((2, 2, {'PF': 3, 'Pf': 1}[kind]), np.nan, '<f4')
    path = tmp_path / 'renamed.png'
    path.write_bytes(f'{kind}\n2 2\n-1\n'.encode() + values.tobytes())
    with pytest.raises(Refused, match='renamed.png: a .pfm file of floating-point numbers'):
        read_image(path, channels)


def test_prepared_image_is_crop_resize_normalise():
    prepared = prepare_image(NOISE, 29, 0.875, MEAN, STD)
    crop = NOISE[4:57, 15:68].astype(np.float32)
    resized = np.asarray(jax.image.resize(crop, (29, 29, 3), 'cubic', antialias=False))
    np.testing.assert_allclose(prepared, (resized / 255 - MEAN) / STD, atol=1e-4)
    assert prepared.dtype == np.float32


@pytest.mark.parametrize('image', [NOISE / np.float32(255), NOISE[..., :1], NOISE[0]])
def test_only_images_of_bytes_are_prepared(image):
    for prepare in (
        lambda x: prepare_image(x, 29, 0.875, MEAN, STD),
        lambda x: prepare_frames(x, x),
    ):
        with pytest.raises(ValueError, match=r'uint8 \[height, width, 3\], got'):
            prepare(image)


def test_prepared_frames_run_from_minus_one_to_one():
    first = np.array([[[0, 255, 51]]], np.uint8)
    frames = prepare_frames(first, 255 - first)
    np.testing.assert_allclose(frames, [[[[-1, 1, -0.6]]], [[[1, -1, 0.6]]]], atol=1e-6)
    assert frames.dtype == np.float32
    with pytest.raises(ValueError, match=r'\(61, 83, 3\) and \(59, 83, 3\)'):
        prepare_frames(NOISE, NOISE[2:])


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: prepare_image(NOISE, 8, 1.5, MEAN, STD), 'in 0..1, got 1.5'),
        (lambda: prepare_image(NOISE, 8, 0, MEAN, STD), 'in 0..1, got 0'),
        (lambda: prepare_image(NOISE, 2.5, 1, MEAN, STD), 'whole number of pixels, got 2.5'),
        (lambda: prepare_image(NOISE, 0, 1, MEAN, STD), 'whole number of pixels, got 0'),
        (lambda: prepare_image(NOISE, (8, 8), 1, MEAN, STD), r'size must be one number, got \(8'),
        (lambda: prepare_image(NOISE, 8, 1, 0.5, STD), 'mean and std must have one entry for each'),
        (lambda: prepare_image(NOISE, 8, 1, MEAN, STD[:2]), 'mean and std must have one entry for'),
        (lambda: prepare_image(NOISE.tolist(), 8, 1, MEAN, STD), 'image as an array, not as list'),
        (lambda: prepare_frames(NOISE, [NOISE]), 'second frame as an array, not as list'),
        (lambda: resize(NOISE, (8, 8)), r'resize takes size as an integer, not \(8, 8\)'),
        (lambda: resize(NOISE[..., 0], 8), r'resize takes image \[height, width, channels\]; got'),
        (lambda: centre_crop(NOISE[0, 0], 1), r'centre_crop takes an image \[height, width, \.'),
        (lambda: normalise(NOISE, MEAN, 1.0), 'mean and std must have one entry for each channel'),
        (lambda: decode_image(encode(NOISE), 4), 'channels must be 1 or 3, not 4'),
    ],
)
def test_arguments_that_mean_nothing_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.png'):
        read_image(tmp_path / 'none.png')
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read_image(tmp_path)


@pytest.mark.parametrize('oriented', [False, True])
def test_an_image_that_fills_the_memory_is_not_decoded(tmp_path, oriented):
    header = struct.pack('>2I5B', 30_000, 20_000, 8, 2, 0, 0, 0)
    encoded = b'\x89PNG\r\n\x1a\n'
    for kind, content in ((b'IHDR', header), (b'IDAT', zlib.compress(bytes(10**6)))):
        chunk = kind + content
        encoded += struct.pack('>I', len(content)) + chunk + struct.pack('>I', zlib.crc32(chunk))
    with pytest.raises(
        Refused, match='^the image has 30,000 x 20,000 pixels, expected at most 268,'
    ):
        decode_image(encoded, 3, oriented=oriented)
    (tmp_path / 'a.png').write_bytes(encoded)
    with pytest.raises(Refused, match=f'^{tmp_path}/a.png: the image has 30,000 x 20,000 pixels'):
        read_image(tmp_path / 'a.png')


def test_an_image_may_have_as_many_pixels_as_are_allowed(monkeypatch):
    stored = io.BytesIO()
    Image.new('RGB', (7, 5)).save(stored, 'PNG')
    monkeypatch.setattr(limits, 'PIXELS', 35)
    assert decode_image(stored.getvalue(), 3).shape == (5, 7, 3)
    monkeypatch.setattr(limits, 'PIXELS', 34)
    with pytest.raises(Refused, match='7 x 5 pixels, expected at most 34 in all'):
        decode_image(stored.getvalue(), 3)
