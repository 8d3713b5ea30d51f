"""Sound and video, from files to what the models take, and to files.

PyAV decodes whatever FFmpeg knows and holds its sound and video itself: no playlist or description
of a session, which would have other files read, or ports opened. All times are seconds on the
file's clock, which begins at 0 where the file does; sound and video share it.
"""

import collections
import contextlib
import itertools
import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from perceiver_jax import limits
from perceiver_jax.checks import check_number
from perceiver_jax.errors import Refused
from perceiver_jax.files import whole
from perceiver_jax.front_ends.images import centre_crop

# Sound and video of one file come in pieces of different lengths and end at different times, so a
# little sound may be missing at the end: the length of one frame at 25 frames per second.
# our choice: deviations.md#sound-of-files
_MISSING_SOUND = 0.04  # seconds
_LOUDEST = 1e10  # 32-bit numbers that were not scaled stay below
_CLOCK_TOLERANCE = 1e-3  # seconds; some formats round their times to milliseconds
_REORDERED = {'h264': 16, 'hevc': 16}  # most frames that wait to be shown; of others one, or none
# What FFmpeg may take a file for, whatever its name: formats of bytes that lead nowhere else. Not
# among them are those of text (sdp, hls, concat, dash, imf), devices, and numbered images.
_FORMATS = """
    aa aac aax ac3 ac4 adx aiff amr amrnb amrwb ape apng apv asf ast au av1 avi avs2 avs3 bink caf
    cavsvideo dirac dnxhd dsf dts dtshd dv dxa ea eac3 evc film_cpk flac flic flv gif gsm gxf h261
    h263 h264 hevc hca iamf iff ilbc ircam ivf kux live_flv loas m4v matroska mjpeg mlp mm mov mp3
    mpc mpc8 mpeg mpegts mpegtsraw mpegvideo mxf nistsphere nsv nut nuv obu ogg oma osq psxstr qcp
    qoa r3d rl2 rm roq sds ser shn siff smk sox spdif swf tak thp tiertexseq truehd tta ty vc1
    vc1test vivo vmd voc vqf vvc w64 wav wavarc wc3movie wsaud wsvqa wtv wv xa xmv xwma
    yuv4mpegpipe
    bmp_pipe dds_pipe dpx_pipe exr_pipe gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe jpegls_pipe
    jpegxl_anim jpegxl_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe png_pipe ppm_pipe psd_pipe
    qoi_pipe sgi_pipe sunrast_pipe tiff_pipe webp_pipe
""".split()
_PROTOCOLS = 'none'  # the file is opened here; FFmpeg opens nothing


class NoSuchStream(Refused):
    """The file has no video, or no sound."""


def read_audio(
    path: str | Path,
    sample_rate: int = 48000,
    start: float = 0.0,
    duration: float | None = None,
) -> np.ndarray:
    """Reads the sound of an audio or video file.

    Sample i is the sound at `start` + i / `sample_rate` seconds on the file's clock: where the
    sound starts late or pauses there is silence.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      sample_rate: Sample rate of the result in Hz; the sound is resampled to it.
      start: Seconds from the beginning of the file.
      duration: Seconds to read; None reads to the end. Sound that ends up to 0.04 s too early is
        filled up with silence.

    Returns:
      Sound, float32 `[duration * sample_rate, channels]`, from -1 to 1.

    Raises:
      NoSuchStream: There is no sound in the file.
      Refused: There is not enough sound in the file, it cannot be decoded or is not finite, or an
        argument is out of range.
      OSError: The file cannot be opened.
    """
    _check_times(start, sample_rate=sample_rate, duration=1 if duration is None else duration)
    first = round(start * sample_rate)
    wanted = None if duration is None else round(duration * sample_rate)
    pieces, position = [], 0
    # No seek: decoding sound is fast, and seeking in it is inexact in some formats.
    with contextlib.closing(sound_pieces(path, sample_rate)) as found:
        for piece in found:
            if position + len(piece) > first:
                pieces.append(piece[max(first - position, 0) :])
            position += len(piece)
            if wanted is not None and position >= first + wanted:
                break
    sound = np.concatenate(pieces)[:wanted] if pieces else np.zeros((0, 1), np.float32)
    missing = 0 if wanted is None else wanted - len(sound)
    if not len(sound) or missing > _MISSING_SOUND * sample_rate:
        needed = 'sound' if duration is None else f'{duration:.2f} s of sound'
        raise Refused(
            f'{path}: needs {needed} from {start:.2f} s on, has {len(sound) / sample_rate:.2f} s'
        )
    if problem := not_sound(sound, sample_rate, start):
        raise Refused(f'{path}: {problem}')
    return np.pad(sound, ((0, missing), (0, 0)))


def not_sound(samples: np.ndarray, sample_rate: int, start: float = 0.0) -> str | None:
    """Finds samples that no loudspeaker could play: NaN, infinity, and absurdly large numbers.

    Args:
      samples: Sound, `[n]` or `[n, channels]`, where full scale is 1.
      sample_rate: Sample rate in Hz.
      start: Time of the first sample in seconds.

    Returns:
      What the first of them is, and at what time; None where there are none.
    """
    well = np.atleast_2d((np.abs(samples) <= _LOUDEST).T).all(0)  # NaN is not
    if well.all():
        return None
    first = int(well.argmin())
    value = samples[first]
    return f'its sound is {value} at {start + first / sample_rate:.2f} s, where 1 is full scale'


def sound_pieces(path: str | Path, sample_rate: int) -> Generator[np.ndarray, None, None]:
    """Yields the sound of a file piece by piece, from the beginning of the file on.

    What was decoded before a file turns out to be damaged has been yielded by then.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      sample_rate: Sample rate of the result in Hz; the sound is resampled to it.

    Yields:
      The next sound, float32 `[n, channels]`, from -1 to 1; silence where the sound starts late or
      pauses.

    Raises:
      NoSuchStream: There is no sound in the file.
      Refused: The sound cannot be decoded.
      OSError: The file cannot be opened.
    """
    import av

    size = Path(path).stat().st_size
    with _opened(path, 'audio') as (container, stream, beginning):
        resampler = av.AudioResampler(
            'flt',  # interleaved: PyAV miscounts the planes of more than seven channels
            rate=sample_rate,
            frame_size=1024,  # without it, sound already in this form passes as it is
            # Silence where the sound starts late and where its clock jumps; nothing is stretched.
            options={'first_pts': str(round(beginning * sample_rate)), 'async': '1'},
        )
        pieces = (
            piece
            for frame in itertools.chain(
                _of_use(container.decode(stream), sample_rate, beginning, size),
                [None],  # the end
            )
            for piece in resampler.resample(frame)
        )
        num_bytes = 0
        for piece in _refusing(pieces):
            sound = piece.to_ndarray().reshape(-1, piece.layout.nb_channels)
            num_bytes += sound.nbytes
            limits.check_bytes('its sound', num_bytes, size)
            yield sound


def _of_use(
    frames: Iterable[Any], sample_rate: int, beginning: float, file_bytes: int
) -> Iterator[Any]:
    """Passes PyAV's sound on, before it is resampled, as long as that takes no absurd memory."""
    end = beginning
    for frame in frames:
        limits.check_sample_rate(frame.sample_rate)
        start = end if frame.time is None else frame.time
        silence = 4 * frame.layout.nb_channels * sample_rate * (start - end)  # bytes
        limits.check_bytes(f'a pause of {start - end:,.0f} s', silence, file_bytes)
        end = start + frame.samples / frame.sample_rate
        yield frame


def read_video(
    path: str | Path,
    num_frames: int,
    size: int,
    frames_per_second: float = 25,
    start: float = 0.0,
) -> np.ndarray:
    """Reads frames of a video at a chosen frame rate, each resized to a square.

    Frame i is what a player shows `start` + i / `frames_per_second` seconds after the file begins:
    the last frame whose time has come, or the first frame before that. A recorded turn of the
    camera is applied. Pixels are taken as square.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      num_frames: Number of frames, T.
      size: Side of the result in pixels, S: the central square is resized by averaging areas where
        it shrinks (DeepMind's notebook interpolates linearly), linearly where it grows.
      frames_per_second: Frame rate of the result; the file may have another.
      start: Seconds from the beginning of the file.

    Returns:
      Video, float32 `[T, S, S, 3]`, RGB from 0 to 1.

    Raises:
      NoSuchStream: There is no video in the file.
      Refused: There is not enough video in the file, it cannot be decoded, or an argument is out
        of range.
      OSError: The file cannot be opened.
    """
    _check_times(start, num_frames=num_frames, size=size, frames_per_second=frames_per_second)
    times = start + np.arange(num_frames) / frames_per_second
    if num_frames % 1 or size % 1:
        raise Refused(f'num_frames and size are whole, got {num_frames} and {size}')
    images: list[np.ndarray] = []
    with contextlib.closing(shown_frames(path, times)) as frames:
        for image, count in frames:
            images += count * [_square(image, size)]
    if len(images) < num_frames:
        raise Refused(
            f'{path}: needs {num_frames / frames_per_second:.2f} s of video from {start:.2f} s on, '
            f'has {len(images) / frames_per_second:.2f} s'
        )
    return np.stack(images) / np.float32(255)


def frames_at(
    path: str | Path, times: Sequence[float] | np.ndarray
) -> Generator[np.ndarray, None, None]:
    """Yields what a player shows at some times: one image for each time.

    What was decoded before a file turns out to be damaged has been yielded by then.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      times: Seconds after the file begins, ascending.

    Yields:
      Images, uint8 `[height, width, 3]`, RGB and upright: one for each time before the video ends.
      While the video shows the same frame, the same array is yielded.

    Raises:
      NoSuchStream: There is no video in the file.
      Refused: The video cannot be decoded, or `times` is no sequence.
      OSError: The file cannot be opened.
    """
    with contextlib.closing(shown_frames(path, times)) as frames:
        for image, count in frames:
            yield from itertools.repeat(image, count)


def shown_frames(
    path: str | Path, times: Sequence[float] | np.ndarray
) -> Generator[tuple[np.ndarray, int], None, None]:
    """Yields the frames that a player shows at some times, each frame once.

    What was decoded before a file turns out to be damaged has been yielded by then.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      times: Seconds after the file begins, ascending.

    Yields:
      A frame, uint8 `[height, width, 3]`, RGB and upright, and at how many of the times it is
      shown, at least one. The counts add up to the number of times before the video ends.

    Raises:
      NoSuchStream: There is no video in the file.
      Refused: The video cannot be decoded, or `times` is no sequence.
      OSError: The file cannot be opened.
    """
    times, done = np.asarray(times), 0
    if times.ndim != 1:
        raise Refused(f'times must be a sequence of seconds, got {times.tolist()}')
    with _opened(path, 'video') as (container, stream, beginning):
        # No seek here either: some formats land behind the frame asked for.
        frames = _undamaged(_decoded(container, stream))
        for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
            # A frame is shown until the next one is due, the last frame for its own duration.
            end = following.time if following else frame.time + frame.duration * frame.time_base
            count = int(np.sum(times[done:] < float(end) - beginning - _CLOCK_TOLERANCE))
            if count:
                image = frame.to_ndarray(format='rgb24')
                yield np.rot90(image, round(frame.rotation / 90)), count
                done += count
            if done == len(times):
                return


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yields PyAV's video frames, in the order in which they are shown."""
    if container.format.name != 'avi':
        yield from _refusing(container.decode(stream))
        return
    # AVI tells when a frame is decoded, not when it is shown. FFmpeg guesses that, wrongly where
    # frames are reordered. But a decoder puts them in order: each takes the earliest time left.
    codec = stream.codec_context
    most_waiting = _REORDERED.get(codec.name, int(codec.has_b_frames))
    waiting: collections.deque[int] = collections.deque()
    time = 0
    packets = _refusing((packet.dts, packet.decode()) for packet in container.demux(stream))
    for decoding_time, frames in packets:
        if decoding_time is not None:  # None: the end
            waiting.append(decoding_time)
        for frame in frames:
            # A packet may hold two frames, with an empty one after it that a cut file may lack.
            time = waiting.popleft() if waiting else time + frame.duration
            frame.pts = time
            yield frame
        while len(waiting) > most_waiting:  # of a packet without a frame: the last is shown on
            waiting.popleft()


def _undamaged(frames: Iterable[Any]) -> Iterator[Any]:
    """Passes PyAV's video frames on, as long as none is damaged."""
    for frame in frames:
        if frame.time is None:
            raise Refused('a frame has no time')
        if frame.is_corrupt:
            raise Refused(f'the frame at {frame.time:.2f} s is damaged')
        limits.check_pixels('a frame', frame.width, frame.height)  # it may be another than before
        yield frame


def _refusing(items: Iterable[Any]) -> Iterator[Any]:
    """Passes on what PyAV yields; a ValueError of PyAV's own becomes `Refused`."""
    import av

    try:
        yield from items
    except av.FFmpegError:  # some are ValueErrors too; `_opened` tells them
        raise
    except ValueError as error:
        raise Refused(str(error)) from error


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the central square of an image, `[size, size, 3]`."""
    import cv2

    image = np.ascontiguousarray(centre_crop(image, 1.0))
    # Differs from DeepMind's notebook, which always interpolates linearly: large frames alias.
    method = cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method)


def prepare_clip(
    path: str | Path,
    num_frames: int = 16,
    size: int = 224,
    frames_per_second: float = 25,
    sample_rate: int = 48000,
    start: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a clip with its sound as a batch of one.

    Of several channels of sound the first is taken. A video without sound gives silence and a
    warning.

    Args:
      path: The file, in a format of sound or video that FFmpeg decodes.
      num_frames: Number of frames, T.
      size: Side of the frames in pixels, S.
      frames_per_second: Frame rate of the clip; the file may have another.
      sample_rate: Sample rate of the clip's sound in Hz; the file may have another.
      start: Seconds from the beginning of the file.

    Returns:
      Video, float32 `[1, T, S, S, 3]` from 0 to 1, and audio, float32
      `[1, T * sample_rate / frames_per_second, 1]` from -1 to 1.

    Raises:
      NoSuchStream: There is no video in the file.
      Refused: There is not enough video or sound in the file, it cannot be decoded, or an argument
        is out of range.
      OSError: The file cannot be opened.
    """
    video = read_video(path, num_frames, size, frames_per_second, start)
    duration = num_frames / frames_per_second
    try:
        audio = read_audio(path, sample_rate, start, duration)
    except NoSuchStream as error:
        warnings.warn(f'{error}; silence takes its place', stacklevel=2)
        audio = np.zeros((round(duration * sample_rate), 1), np.float32)
    return video[None], audio[None, :, :1]


def write_clip(
    path: str | Path,
    video: np.ndarray,
    audio: np.ndarray,
    frames_per_second: float = 25,
    sample_rate: int = 48000,
) -> None:
    """Writes a video with sound, by an atomic write: MP4 with H.264 and AAC, which browsers play.

    Args:
      path: The file, replaced if it exists.
      video: Frames, `[T, height, width, 3]`, RGB from 0 to 1; values outside are clipped. An odd
        side grows by a pixel that repeats its last one, as the format has even sides only.
      audio: Sound, `[n, channels]` with one channel or two, from -1 to 1; values outside are
        clipped.
      frames_per_second: Frame rate of `video`.
      sample_rate: Sample rate of `audio` in Hz, one that AAC has.

    Raises:
      Refused: The arrays are of another shape or not finite, or the rates cannot be written.
    """
    import av

    video, audio = np.asarray(video, np.float32), np.asarray(audio, np.float32)
    if video.ndim != 4 or video.shape[-1] != 3 or not video.size:
        raise Refused(f'video must be [T, height, width, 3], got {video.shape}')
    if audio.ndim != 2 or audio.shape[-1] not in (1, 2) or not audio.size:
        raise Refused(f'audio must be [n, 1] or [n, 2], got {audio.shape}')
    _check_times(frames_per_second=frames_per_second, sample_rate=sample_rate)
    if not (np.isfinite(video).all() and np.isfinite(audio).all()):
        raise Refused(f'{path}: video and audio must be finite to be written')
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode='edge')
    images = np.rint(255 * np.clip(video, 0, 1)).astype(np.uint8)
    sound = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(np.clip(audio, -1, 1).T),
        format='fltp',
        layout={1: 'mono', 2: 'stereo'}[audio.shape[1]],
    )
    sound.sample_rate, sound.pts = sample_rate, 0

    try:
        with (
            whole(path) as unfinished,
            open(unfinished, 'wb') as file,
            av.open(file, 'w', format='mp4') as container,
        ):
            pictures = container.add_stream(
                'libx264',
                rate=Fraction(frames_per_second).limit_denominator(1001),
                width=images.shape[2],
                height=images.shape[1],
                pix_fmt='yuv420p',
                options={'crf': '16'},  # hardly any loss
            )
            track = container.add_stream('aac', rate=sample_rate, layout=sound.layout)
            for image in images:
                container.mux(pictures.encode(av.VideoFrame.from_ndarray(image, 'rgb24')))
            container.mux(pictures.encode())
            container.mux(track.encode(sound))
            container.mux(track.encode())
    except av.FFmpegError as error:
        raise Refused(
            f'{path}: cannot write {images.shape[2]} x {images.shape[1]} pixels at '
            f'{frames_per_second} Hz with sound at {sample_rate} Hz: {error.strerror}'
        ) from error


@contextlib.contextmanager
def _opened(path: str | Path, kind: str) -> Iterator[tuple[Any, Any, float]]:
    """Opens a file: its container, its first stream of a kind, and when it begins in seconds.

    FFmpeg's errors and `Refused` within the context become a `Refused` that names the file.
    """
    import av

    doors = {'format_whitelist': ','.join(_FORMATS), 'protocol_whitelist': _PROTOCOLS}
    # Of frames that are decoded, to probe too, with room for what a codec adds to the sides.
    size = {'max_pixels': f'{min(2 * limits.factor() * limits.PIXELS, 2**31 - 1):.0f}'}
    with open(path, 'rb') as file:
        try:
            try:  # titles and the like may be in any encoding
                opened = av.open(
                    file, 'r', container_options=doors, options=size, metadata_errors='replace'
                )
            except av.ArgumentError:  # FFmpeg knows the format, and it is not on the list
                raise Refused('expected a file that holds its sound and video itself') from None
            with opened as container:
                cover = av.stream.Disposition.attached_pic  # the cover of an album is no video
                streams = [s for s in getattr(container.streams, kind) if not s.disposition & cover]
                if streams:
                    if kind == 'video':
                        limits.check_pixels('its video', streams[0].width, streams[0].height)
                    streams[0].codec_context.options = size
                    yield container, streams[0], (container.start_time or 0) / av.time_base
                    return
        except (av.FFmpegError, OSError, Refused) as error:
            reason = getattr(error, 'strerror', error)
            raise Refused(f'{path}: cannot decode its {kind}: {reason}') from error
    raise NoSuchStream(f'{path}: there is no {kind} in it')


def _check_times(start: float = 0.0, **positive: float) -> None:
    for name, value in {'start': start, **positive}.items():
        check_number(name, value)
    if not 0 <= start < math.inf:
        raise Refused(f'start must be at least 0 seconds, got {start}')
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise Refused(f'{name} must be positive, got {value}')
