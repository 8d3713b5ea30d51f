import io
from fractions import Fraction

import av
import jax
import numpy as np
import pytest
from PIL import Image

from perceiver_jax.front_ends.images import (
    centre_crop,
    decode_image,
    prepare_frames,
    prepare_image,
    read_image,
    resize,
)
from perceiver_jax.front_ends.media import prepare_clip, read_audio, read_video, write_clip
from perceiver_jax.front_ends.points import prepare_points
from perceiver_jax.front_ends.text import MASK, PAD, decode_text, encode_text, pad_tokens

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
GRADIENT = np.stack(
    [*np.meshgrid(3 * np.arange(83), 4 * np.arange(61)), np.full((61, 83), 40)], axis=-1
).astype(np.uint8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATE = 48000


def encode(image, mode='RGB', kind='JPEG', **settings):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def bursts(seconds, rate=RATE):
    """A tone of 0.05 s at each full second, [seconds * rate, 1]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.where(time % 1 < 0.05, 0.5 * np.sin(2 * np.pi * 1000 * time), 0)[:, None]


def onsets(sound, rate=RATE):
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 0.1) / rate
    return loud[np.diff(loud, prepend=-1) > 0.5]


def write_media(path, frames=(), fps=10, sound=None, rate=RATE, gap=(0, 0), first_frame=0, turn=0):
    """Writes images and PCM sound with the times they have, less the sound within `gap`, in s."""
    with av.open(path, 'w') as container:
        if len(frames):
            height, width = frames[0].shape[:2]
            video = container.add_stream(
                'libx264', rate=fps, width=width, height=height, options={'crf': '1'}
            )
            video.pix_fmt = 'yuv444p'
            if turn:
                video.set_display_rotation(turn)
        if sound is not None:
            layout = {1: 'mono', 2: 'stereo'}[sound.shape[1]]
            audio = container.add_stream('pcm_f32le', rate=rate, layout=layout)
            for first in range(0, len(sound), 600):
                if gap[0] <= first / rate < gap[1]:
                    continue
                piece = np.ascontiguousarray(sound[first : first + 600].reshape(1, -1), np.float32)
                piece = av.AudioFrame.from_ndarray(piece, 'flt', layout)
                piece.sample_rate, piece.pts, piece.time_base = rate, first, Fraction(1, rate)
                container.mux(audio.encode(piece))
            container.mux(audio.encode())
        if len(frames):
            for number, image in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(image, 'rgb24')
                frame.pts, frame.time_base = first_frame + number, Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode())
    return path


def greys(count, height=48, width=64):
    """Frame n is 10 n everywhere."""
    return [np.full((height, width, 3), 10 * n, np.uint8) for n in range(count)]


def numbers(video):
    """Which frames of `greys` these are."""
    return np.rint(video.mean((1, 2, 3)) * 25.5).astype(int).tolist()


def test_text_becomes_its_bytes_behind_six_special_tokens():
    tokens = encode_text('Aé')
    assert tokens.tolist() == [65 + 6, 0xC3 + 6, 0xA9 + 6] and tokens.dtype == np.int32
    assert encode_text(b'\x00\xff').tolist() == [6, 261]
    assert encode_text('').shape == (0,)


def test_text_comes_back_without_special_tokens():
    assert decode_text([4, *encode_text('naïve 漢字'), 5, PAD, PAD]) == 'naïve 漢字'
    assert decode_text(encode_text(b'a\xffb')) == 'a\ufffdb'


@pytest.mark.parametrize('token', [-1, 262])
def test_tokens_outside_the_vocabulary_are_named(token):
    with pytest.raises(ValueError, match=f'0..261, got {token}'):
        decode_text([7, token])


def test_padding_and_its_mask():
    tokens, mask = pad_tokens([[7, MASK, 9], [], encode_text('abcde')], length=5)
    assert tokens.tolist() == [[7, 3, 9, 0, 0], [0] * 5, [103, 104, 105, 106, 107]]
    assert mask.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [True] * 5]
    assert tokens.dtype == np.int32 and mask.dtype == bool


def test_too_long_sequence_is_named():
    with pytest.raises(ValueError, match='sequence 1 has 7 tokens, at most 5 fit'):
        pad_tokens([[6], [6] * 7], length=5)


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


@pytest.mark.parametrize('read', [read_image, read_audio, lambda path: read_video(path, 1, 7)])
def test_missing_files_and_folders_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match='none.mp4'):
        read(tmp_path / 'none.mp4')
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read(tmp_path)


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


def test_sound_as_it_is(tmp_path):
    sound = RNG.uniform(-1, 1, (7919, 2)).astype(np.float32)
    path = write_media(tmp_path / 'noise.wav', sound=sound)
    read = read_audio(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, sound)
    np.testing.assert_array_equal(read_audio(path, start=0.1, duration=0.05), sound[4800:7200])


def test_resampled_sound_stays_where_it_was(tmp_path):
    time = np.arange(44100)[:, None] / 44100
    path = write_media(tmp_path / 'tone.wav', sound=np.sin(2 * np.pi * 997 * time), rate=44100)
    expected = np.sin(2 * np.pi * 997 * np.arange(32000)[:, None] / 32000)
    read = read_audio(path, sample_rate=32000)
    assert abs(len(read) - 32000) <= 1
    np.testing.assert_allclose(read[100:31900], expected[100:31900], atol=1e-3)
    later = read_audio(path, sample_rate=32000, start=0.25, duration=0.5)
    np.testing.assert_allclose(later, expected[8000:24000], atol=1e-3)


@pytest.mark.parametrize('rate', [44100, 48000])
def test_sound_keeps_to_the_clock_of_the_file(tmp_path, rate):
    sound = bursts(5, rate)
    for name, gap, expected in (
        ('late', (0, 1.5), [2, 3, 4]),
        ('paused', (1.5, 2.5), [0, 1, 3, 4]),
    ):
        path = write_media(tmp_path / f'{name}.mkv', greys(7), 10, sound, rate, gap)
        np.testing.assert_allclose(onsets(read_audio(path)), expected, atol=2e-3)
        np.testing.assert_allclose(onsets(read_audio(path, start=2.7)) + 2.7, [3, 4], atol=2e-3)


def test_a_little_missing_sound_is_silence_and_more_an_error(tmp_path):
    path = write_media(tmp_path / 'short.wav', sound=np.full((4800, 1), 0.5))
    read = read_audio(path, duration=0.13)
    np.testing.assert_array_equal(read, [[0.5]] * 4800 + [[0]] * 1440)
    with pytest.raises(
        ValueError, match='short.wav: needs 0.15 s of sound from 0.00 s on, has 0.10'
    ):
        read_audio(path, duration=0.15)
    with pytest.raises(ValueError, match='short.wav: needs sound from 0.20 s on, has 0.00 s'):
        read_audio(path, start=0.2)


@pytest.mark.parametrize('ending', ['mp4', 'mkv', 'mov'])
def test_video_shows_what_a_player_shows(tmp_path, ending):
    path = write_media(tmp_path / f'greys.{ending}', greys(17))
    video = read_video(path, 5, 24, frames_per_second=25)
    assert video.shape == (5, 24, 24, 3) and video.dtype == np.float32
    assert numbers(video) == [0, 0, 0, 1, 1]  # at 0, 0.04, ... 0.16 s; the file has 10 a second
    assert numbers(read_video(path, 5, 24, frames_per_second=5, start=0.3)) == [3, 5, 7, 9, 11]
    assert numbers(read_video(path, 17, 24, frames_per_second=10)) == list(range(17))


def test_first_frame_shows_before_its_time(tmp_path):
    path = write_media(tmp_path / 'late.mkv', greys(7), sound=bursts(1), first_frame=3)
    assert numbers(read_video(path, 10, 24, frames_per_second=10)) == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]


def test_too_short_a_video_says_how_long_it_is(tmp_path):
    path = write_media(tmp_path / 'short.mp4', greys(7))
    assert len(read_video(path, 17, 24, frames_per_second=25)) == 17
    with pytest.raises(
        ValueError, match='short.mp4: needs 0.40 s of video from 0.50 s on, has 0.20 s'
    ):
        read_video(path, 10, 24, start=0.5)


def test_video_is_cropped_to_its_central_square_and_resized(tmp_path):
    columns = np.zeros((48, 80, 3), np.uint8)
    columns[:, 16:40], columns[:, 40:64] = (200, 0, 0), (0, 0, 100)
    path = write_media(tmp_path / 'columns.mp4', [columns] * 3)
    video = read_video(path, 2, 12)
    expected = np.zeros((12, 12, 3))
    expected[:, :6], expected[:, 6:] = (200 / 255, 0, 0), (0, 0, 100 / 255)
    np.testing.assert_allclose(video, [expected] * 2, atol=0.02)
    assert read_video(path, 1, 96).shape == (1, 96, 96, 3)


def test_recorded_turn_of_the_camera_is_applied(tmp_path):
    image = np.zeros((48, 48, 3), np.uint8)
    image[:24] = 200  # its upper half, which a turn to the left puts at the left
    path = write_media(tmp_path / 'turned.mp4', [image] * 3, turn=90)
    expected = np.zeros((48, 48, 3))
    expected[:, :24] = 200 / 255
    np.testing.assert_allclose(read_video(path, 1, 48)[0], expected, atol=0.02)


def test_clip_has_the_shapes_of_the_model(tmp_path):
    sound = np.stack([bursts(2)[:, 0], np.zeros(2 * RATE)], axis=1)  # the first channel counts
    path = write_media(tmp_path / 'clip.mkv', greys(17), sound=sound)
    video, audio = prepare_clip(path, num_frames=16, size=24, start=0.9)
    assert video.shape == (1, 16, 24, 24, 3) and audio.shape == (1, 30720, 1)
    assert video.dtype == audio.dtype == np.float32
    assert numbers(video[0])[:4] == [9, 9, 9, 10]
    np.testing.assert_allclose(onsets(audio[0]), [0.1], atol=2e-3)


def test_clip_without_sound_is_silent_and_warns(tmp_path):
    path = write_media(tmp_path / 'silent.mp4', greys(17))
    with pytest.warns(UserWarning, match='silent.mp4: there is no audio in it'):
        _, audio = prepare_clip(path, size=24)
    np.testing.assert_array_equal(audio, np.zeros((1, 30720, 1)))


def test_sound_alone_is_no_video(tmp_path):
    path = write_media(tmp_path / 'sound.wav', sound=bursts(1))
    with pytest.raises(ValueError, match='sound.wav: there is no video in it'):
        prepare_clip(path)


@pytest.mark.parametrize('content', [b'', b'no media\n' * 100, 700])
def test_damaged_media_are_named(tmp_path, content):
    path = write_media(tmp_path / 'broken.mp4', greys(7))
    path.write_bytes(path.read_bytes()[:content] if content == 700 else content)
    for read in (read_audio, lambda path: read_video(path, 1, 24)):
        with pytest.raises(ValueError, match='broken.mp4: cannot decode its'):
            read(path)


def test_damaged_frames_are_found(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 48, 64, 3), dtype=np.uint8)
    path = write_media(tmp_path / 'flipped.mp4', images)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content) // 2, 499):
        content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match='flipped.mp4: cannot decode its video: the frame at 0.* s is damaged'
    ):
        read_video(path, 7, 24, frames_per_second=10)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(start=-1.0), 'start must be at least 0 seconds, got -1.0'),
        (dict(sample_rate=0), 'sample_rate must be positive, got 0'),
        (dict(num_frames=0), 'num_frames must be positive, got 0'),
        (dict(frames_per_second=float('nan')), 'frames_per_second must be positive, got nan'),
    ],
)
def test_impossible_times_are_named(tmp_path, arguments, message):
    path = write_media(tmp_path / 'clip.mkv', greys(17), sound=bursts(2))
    with pytest.raises(ValueError, match=message):
        prepare_clip(path, **arguments)


def test_written_clip_reads_back_in_step(tmp_path):
    video = np.zeros((50, 47, 47, 3), np.float32)  # odd sides grow by a pixel
    video[25] = (0.8, 0.4, 0.2)
    path = tmp_path / 'clip.mp4'
    path.write_text('replaced')
    write_clip(path, video, bursts(2))
    read, sound = prepare_clip(path, num_frames=50, size=48)
    np.testing.assert_allclose(
        read[0, 25, 4:-4, 4:-4], np.full((40, 40, 3), video[25, 0, 0]), atol=0.03
    )
    assert read[0, [24, 26]].max() < 0.05
    np.testing.assert_allclose(onsets(sound[0]), [0, 1], atol=3e-3)
    assert sound.shape == (1, 96000, 1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(video=np.zeros((5, 24, 24))), r'video must be .* got \(5, 24, 24\)'),
        (dict(audio=np.zeros((960, 3))), r'audio must be .* got \(960, 3\)'),
        (dict(frames_per_second=0), 'frames_per_second must be positive'),
        (dict(sample_rate=12345), 'clip.mp4: cannot write .* sound at 12345 Hz'),
    ],
)
def test_unwritable_clip_leaves_nothing_behind(tmp_path, changes, message):
    arguments = dict(video=np.zeros((5, 24, 24, 3)), audio=np.zeros((960, 1)))
    with pytest.raises(ValueError, match=message):
        write_clip(tmp_path / 'clip.mp4', **arguments | changes)
    assert list(tmp_path.iterdir()) == []


def test_eight_channels_stay_eight(tmp_path):
    sound = np.linspace(-0.9, 0.9, 8 * 4800, dtype=np.float32).reshape(4800, 8)
    with av.open(tmp_path / 'a.wav', 'w') as container:
        stream = container.add_stream('pcm_f32le', rate=RATE, layout='7.1')
        frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format='flt', layout='7.1')
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    np.testing.assert_allclose(read_audio(tmp_path / 'a.wav'), sound, atol=1e-6)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: prepare_image(NOISE, 8, 1.5, MEAN, STD), 'in 0..1, got 1.5'),
        (lambda: prepare_image(NOISE, 8, 0, MEAN, STD), 'in 0..1, got 0'),
        (lambda: prepare_image(NOISE, 2.5, 1, MEAN, STD), 'whole number of pixels, got 2.5'),
        (lambda: prepare_image(NOISE, 0, 1, MEAN, STD), 'whole number of pixels, got 0'),
        (lambda: decode_image(encode(NOISE), 4), 'channels must be 1 or 3, not 4'),
        (lambda: decode_text([1.5]), 'integers in 0..261, got 1.5'),
        (lambda: decode_text([2**40]), 'integers in 0..261, got 1099511627776'),
        (lambda: read_video('a.mp4', 2.5, 8), 'whole, got 2.5 and 8'),
        (
            lambda: write_clip('a.mp4', np.full((2, 8, 8, 3), np.nan), np.zeros((9, 1))),
            'must be finite',
        ),
    ],
)
def test_arguments_that_mean_nothing_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_is_no_text():
    with pytest.raises(TypeError):
        encode_text(5)


# Points


def test_points_are_centred_and_scaled_to_the_unit_cube():
    points = prepare_points(np.array([[1.0, 2, 3], [3, 2, 11], [2, 2, 4]]))
    # The mean is (2, 2, 6), and the farthest coordinate 5 from it.
    np.testing.assert_allclose(points, [[-0.2, 0, -0.6], [0.2, 0, 1], [0, 0, -0.4]], atol=1e-7)
    assert points.dtype == np.float32


def test_some_points_are_taken_at_equal_distances():
    cloud = np.stack([np.arange(11.0), np.zeros(11), np.zeros(11)], axis=1)
    points = prepare_points(cloud, num_points=3)
    np.testing.assert_allclose(points[:, 0], [-1, 0, 1])  # of 0, 5 and 10
    assert len(prepare_points(cloud, num_points=20)) == 11


@pytest.mark.parametrize(
    'points, message',
    [
        (np.zeros((3, 2)), r'got \(3, 2\)'),
        (np.zeros((0, 3)), r'got \(0, 3\)'),
        (np.ones((3, 3)), 'in more than one place'),
        (np.array([[0, 0, 0], [0, 0, np.inf]]), 'finite'),
    ],
)
@pytest.mark.filterwarnings('ignore:invalid value')  # infinity less infinity
def test_what_are_no_points_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        prepare_points(points)
