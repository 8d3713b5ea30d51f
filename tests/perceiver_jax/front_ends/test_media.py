import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import soundfile

from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends import media
from perceiver_jax.front_ends.media import (
    frames_at,
    prepare_clip,
    read_audio,
    read_video,
    shown_frames,
    write_clip,
)
from tests.toys.clips import as_from_a_pipe

RNG = np.random.default_rng(0)
RATE = 48000


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


@pytest.mark.parametrize('rate', [8000, 44100, 48000])
@pytest.mark.parametrize('size', [0, 2**32 - 1])
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path, size, rate):
    soundfile.write(tmp_path / 'whole.wav', bursts(2, rate), rate)
    expected = read_audio(tmp_path / 'whole.wav')
    as_from_a_pipe(tmp_path / 'whole.wav', size)
    np.testing.assert_array_equal(read_audio(tmp_path / 'whole.wav'), expected)


@pytest.mark.parametrize('rate', [8000, 44100, 48000])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e30])
def test_sound_that_is_not_finite_is_refused_where_it_is_read(tmp_path, value, rate):
    sound = np.repeat(bursts(2, rate), 2, axis=1)
    sound[rate, 1] = value
    soundfile.write(tmp_path / 'a.wav', sound, rate, subtype='FLOAT')
    with pytest.raises(Refused, match=r'a.wav: its sound is .* at (0.99|1.00) s, where 1 is full'):
        read_audio(tmp_path / 'a.wav')
    assert np.isfinite(read_audio(tmp_path / 'a.wav', duration=0.9)).all()
    assert np.isfinite(read_audio(tmp_path / 'a.wav', start=1.1)).all()


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


@pytest.mark.parametrize('ending', ['mp4', 'mkv', 'mov', 'avi'])  # H.264 with B-frames
def test_video_shows_what_a_player_shows(tmp_path, ending):
    path = write_media(tmp_path / f'greys.{ending}', greys(17))
    video = read_video(path, 5, 24, frames_per_second=25)
    assert video.shape == (5, 24, 24, 3) and video.dtype == np.float32
    assert numbers(video) == [0, 0, 0, 1, 1]  # at 0, 0.04, ... 0.16 s; the file has 10 a second
    assert numbers(read_video(path, 5, 24, frames_per_second=5, start=0.3)) == [3, 5, 7, 9, 11]
    assert numbers(read_video(path, 17, 24, frames_per_second=10)) == list(range(17))


@pytest.mark.parametrize(
    'reordered, left_out, expected',
    [('2', None, [0, 1, 2, 3, 4, 5, 6, 7, 8]), ('0', 4, [0, 1, 2, 3, 3, 5, 6, 7, 8])],
)
def test_avi_shows_a_frame_in_its_place(tmp_path, reordered, left_out, expected):
    options = {'qscale': '1', 'bf': reordered, 'b_strategy': '0'}
    with av.open(tmp_path / 'greys.avi', 'w') as container:
        stream = container.add_stream('mpeg4', rate=10, width=64, height=48, options=options)
        for number, image in enumerate(greys(9)):
            if number == left_out:  # its place in the file stays empty
                continue
            frame = av.VideoFrame.from_ndarray(image, 'rgb24')
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    path = tmp_path / 'greys.avi'
    assert numbers(read_video(path, 9, 24, frames_per_second=10)) == expected


def test_first_frame_shows_before_its_time(tmp_path):
    path = write_media(tmp_path / 'late.mkv', greys(7), sound=bursts(1), first_frame=3)
    assert numbers(read_video(path, 10, 24, frames_per_second=10)) == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]


def test_shown_frames_says_how_often_each_frame_is_shown(tmp_path):
    path = write_media(tmp_path / 'greys.mp4', greys(7))
    times = [0, 0.05, 0.15, 0.31, 0.32, 0.39, 0.6, 0.9]  # the file shows 10 frames a second, 0.7 s
    shown = list(shown_frames(path, times))
    assert [count for _, count in shown] == [2, 1, 3, 1]
    assert all(image.shape == (48, 64, 3) and image.dtype == np.uint8 for image, _ in shown)
    frames = list(frames_at(path, times))
    assert [round(frame.mean() / 10) for frame in frames] == [0, 0, 1, 3, 3, 3, 6]
    for one, other in zip(frames, [x for x, count in shown for _ in range(count)], strict=True):
        np.testing.assert_array_equal(one, other)


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


def test_sound_that_changes_its_rate_on_the_way_is_refused(tmp_path):
    content = b''
    for rate in (44100, 32000):
        with av.open(tmp_path / 'part.mp3', 'w') as container:
            stream = container.add_stream('mp3', rate=rate, layout='mono')
            sound = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.float32), 'fltp', 'mono')
            sound.sample_rate = rate
            container.mux(stream.encode(sound))
            container.mux(stream.encode())
        content += (tmp_path / 'part.mp3').read_bytes()
    (tmp_path / 'changing.mp3').write_bytes(content)
    with pytest.raises(
        Refused, match='changing.mp3: cannot decode its audio: Frame does not match'
    ):
        read_audio(tmp_path / 'changing.mp3')


def test_a_bug_within_a_front_end_keeps_its_traceback(tmp_path, monkeypatch):
    def buggy(frames):
        raise ValueError('not enough values to unpack')

    path = write_media(tmp_path / 'greys.mp4', greys(7))
    monkeypatch.setattr(media, '_undamaged', buggy)
    with pytest.raises(ValueError, match='^not enough values') as error:
        list(shown_frames(path, [0]))
    assert not isinstance(error.value, Refused)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(start=-1.0), 'start must be at least 0 seconds, got -1.0'),
        (dict(sample_rate=0), 'sample_rate must be positive, got 0'),
        (dict(size=(8, 8)), r'size must be one number, got \(8, 8\)'),
        (dict(start='1'), "start must be one number, got '1'"),
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


@pytest.mark.parametrize('read', [read_audio, lambda path: read_video(path, 1, 7)])
def test_missing_files_and_folders_are_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match='none.mp4'):
        read(tmp_path / 'none.mp4')
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        read(tmp_path)


SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=audio 45678 RTP/AVP 0
"""
LIST = """#EXTM3U
#EXT-X-TARGETDURATION:1
#EXTINF:1,
beside.wav
#EXT-X-ENDLIST
"""


@pytest.mark.parametrize('ending', ['wav', 'mp4', 'm3u8', 'sdp'])
@pytest.mark.parametrize(
    'text',
    [
        SDP,
        LIST,
        'ffconcat version 1.0\nfile beside.wav\n',
        '[playlist]\nFile1=beside.wav\n',
        '<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>',
        ';FFMETADATA1\ntitle=x\n',
        'RTSP/1.0 200 OK\n',
    ],
)
@pytest.mark.parametrize('read', [read_audio, lambda path: read_video(path, 1, 8)])
def test_text_that_leads_to_other_files_or_ports_is_no_media(tmp_path, text, ending, read):
    soundfile.write(tmp_path / 'beside.wav', bursts(1), RATE)
    path = tmp_path / f'text.{ending}'
    path.write_text(text)
    with pytest.raises(Refused, match=f'^{path}: cannot decode its (audio|video): '):
        read(path)


def test_a_number_in_the_name_has_no_other_files_read(tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    for number in range(3):
        (tmp_path / f'{number}.png').write_bytes(cv2.imencode('.png', image)[1].tobytes())
    path = tmp_path / '%d.png'
    path.write_bytes((tmp_path / '0.png').read_bytes())
    with pytest.raises(Refused):
        read_video(path, 3, 8, frames_per_second=25)


def wav(path, rate, num_samples):
    """Silence of 8 bits."""
    header = struct.pack('<IHHIIHH', 16, 1, 1, rate, rate, 1, 8)
    content = b'WAVEfmt ' + header + b'data' + struct.pack('<I', num_samples)
    content += num_samples * b'\x80'
    path.write_bytes(b'RIFF' + struct.pack('<I', len(content)) + content)
    return path


@pytest.mark.parametrize('rate, told', [(1, '1'), (2**31 - 1, '2,147,483,647')])
def test_sound_of_an_absurd_sample_rate_is_not_resampled(tmp_path, rate, told):
    path = wav(tmp_path / 'a.wav', rate, 8000)
    with pytest.raises(Refused, match=f'{path}: .* sample rate of {told} Hz, expected 100 to'):
        read_audio(path)


def test_sound_that_fills_the_memory_is_refused(tmp_path, monkeypatch):
    path = wav(tmp_path / 'a.wav', 8000, 8000)
    monkeypatch.setattr(limits, 'BYTES_PER_BYTE', 1)
    monkeypatch.setattr(limits, 'BYTES', 4 * RATE)
    assert len(read_audio(path)) == RATE
    monkeypatch.setattr(limits, 'BYTES', 4 * RATE - 1)
    with pytest.raises(Refused, match=f'{path}: .*its sound would take 192,000 bytes of memory'):
        read_audio(path)
    assert len(read_audio(path, duration=0.5)) == RATE // 2


def test_a_pause_that_fills_the_memory_is_refused(tmp_path):
    path = tmp_path / 'a.mkv'
    with av.open(path, 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
        for seconds in (0, 7200):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
            frame.sample_rate, frame.pts = 8000, 8000 * seconds
            container.mux(stream.encode(frame))
    with pytest.raises(Refused, match=r'a pause of 7,\d+ s would take 1,38\d,\d+,\d+ bytes of mem'):
        read_audio(path)


def test_frames_that_fill_the_memory_are_refused(tmp_path, monkeypatch):
    path = tmp_path / 'a.mkv'
    write_media(path, [np.zeros((160, 240, 3), np.uint8)] * 3)
    monkeypatch.setattr(limits, 'PIXELS', 160 * 240)
    assert len(read_video(path, 3, 8, frames_per_second=10)) == 3
    monkeypatch.setattr(limits, 'PIXELS', 160 * 240 - 1)
    with pytest.raises(Refused, match=f'{path}: cannot decode its video: '):
        read_video(path, 3, 8, frames_per_second=10)


def test_a_title_in_any_encoding_does_no_harm(tmp_path):
    path = tmp_path / 'a.wav'
    soundfile.write(path, np.full((480, 1), 0.5), RATE)
    tag = b'LIST' + (20).to_bytes(4, 'little') + b'INFOINAM' + (8).to_bytes(4, 'little')
    content = path.read_bytes() + tag + 'Gef\xfchl'.encode('latin-1') + b'\0\0'
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, 'little') + content[8:])
    assert read_audio(path).shape == (480, 1)
