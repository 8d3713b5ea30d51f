"""Sound and video of files: whatever FFmpeg decodes."""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.files import whole
from perceiver_jax.front_ends.images import centre_crop

# Sound and pictures of one file are cut into pieces of different lengths, and end at different
# times: so much of the sound may be missing, one frame of 25 a second.
_MISSING_SOUND = 0.04  # seconds; our choice
_CLOCK_TOLERANCE = 1e-3  # seconds; some formats round their times to milliseconds


def read_audio(
    path: str | Path,
    sample_rate: int = 48000,
    start: float = 0.0,
    duration: float | None = None,
) -> np.ndarray:
    """Reads the sound of an audio or video file: whatever FFmpeg decodes.

    Sample i is the sound at `start` + i / `sample_rate` on the file's clock, which is the video's
    too: where the sound starts late or pauses there is silence.

    Args:
      path: the file.
      sample_rate: of the result, in Hz; the sound is resampled.
      start: seconds from the beginning of the file.
      duration: seconds; None reads to the end. Sound that ends up to 0.04 s too early is
        filled up with silence.

    Returns:
      float32 [duration * sample_rate, channels], from -1 to 1.

    Raises:
      ValueError: if there is no sound in the file, not enough of it, or it cannot be decoded.
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
    return np.pad(sound, ((0, missing), (0, 0)))


def sound_pieces(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields the sound of a file piece by piece, from the beginning of the file on.

    What was decoded before a file turns out to be damaged has been yielded by then.

    Args:
      path: the file.
      sample_rate: of the result, in Hz.

    Yields:
      float32 [n, channels], from -1 to 1; silence where the sound starts late or pauses.

    Raises:
      NoSuchStream: if there is no sound in the file.
      ValueError: if it cannot be decoded.
    """
    import av

    with _opened(path, 'audio') as (container, stream, beginning):
        resampler = av.AudioResampler(
            'flt',  # interleaved: PyAV miscounts the planes of more than seven channels
            rate=sample_rate,
            frame_size=1024,  # without it, sound already in this form passes as it is
            # Silence where the sound starts late and where its clock jumps; nothing is stretched.
            options={'first_pts': round(beginning * sample_rate), 'async': 1},
        )
        for frame in itertools.chain(container.decode(stream), [None]):
            for piece in resampler.resample(frame):
                yield piece.to_ndarray().reshape(-1, piece.layout.nb_channels)


def read_video(
    path: str | Path,
    num_frames: int,
    size: int,
    frames_per_second: float = 25,
    start: float = 0.0,
) -> np.ndarray:
    """Reads frames of a video, at a rate of our own: whatever FFmpeg decodes.

    Frame i is what a player shows `start` + i / `frames_per_second` seconds after the file begins:
    the last frame whose time has come, or the first one before that. A recorded turn of the
    camera is applied. Pixels are taken as square.

    Args:
      path: the file.
      num_frames: T, number of frames.
      size: S, side in pixels: the central square is resized by averaging areas where it shrinks
        (DeepMind's notebook interpolates linearly), linearly where it grows.
      frames_per_second: of the result, whatever the file's own rate.
      start: seconds from the beginning of the file.

    Returns:
      float32 [T, S, S, 3], RGB from 0 to 1.

    Raises:
      ValueError: if there is no video in the file, not enough of it, or it cannot be decoded.
    """
    _check_times(start, num_frames=num_frames, size=size, frames_per_second=frames_per_second)
    times = start + np.arange(num_frames) / frames_per_second
    if num_frames % 1 or size % 1:
        raise Refused(f'num_frames and size are whole, got {num_frames} and {size}')
    images, shown, square = [], None, None
    with contextlib.closing(frames_at(path, times)) as frames:
        for image in frames:
            if image is not shown:
                shown, square = image, _square(image, size)
            images.append(square)
    if len(images) < num_frames:
        raise Refused(
            f'{path}: needs {num_frames / frames_per_second:.2f} s of video from {start:.2f} s on, '
            f'has {len(images) / frames_per_second:.2f} s'
        )
    return np.stack(images) / np.float32(255)


def frames_at(path: str | Path, times: Sequence[float]) -> Iterator[np.ndarray]:
    """Yields what a player shows at some times, upright.

    What was decoded before a file turns out to be damaged has been yielded by then.

    Args:
      path: the file.
      times: seconds after the file begins, ascending.

    Yields:
      uint8 [height, width, 3], RGB, one for each time before the video ends; the same array again
      while the video shows the same frame.

    Raises:
      NoSuchStream: if there is no video in the file.
      ValueError: if it cannot be decoded.
    """
    times, done = np.asarray(times), 0
    with _opened(path, 'video') as (container, stream, beginning):
        # No seek here either: some formats land behind the frame asked for.
        frames = itertools.chain(_whole(container.decode(stream)), [None])
        for frame, following in itertools.pairwise(frames):
            end = following.time if following else frame.time + frame.duration * frame.time_base
            due = int(np.sum(times[done:] < float(end) - beginning - _CLOCK_TOLERANCE))
            if due:
                image = frame.to_ndarray(format='rgb24')
                yield from due * [np.rot90(image, round(frame.rotation / 90))]
                done += due
            if done == len(times):
                return


def _whole(frames: Iterator) -> Iterator:
    """Passes PyAV's video frames on, as long as none is damaged."""
    for frame in frames:
        if frame.time is None:
            raise Refused('a frame has no time')
        if frame.is_corrupt:
            raise Refused(f'the frame at {frame.time:.2f} s is damaged')
        yield frame


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the central square, [size, size, 3]."""
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
    """Reads a batch of one clip with its sound; of several channels the first.

    A video without sound gives silence and a warning.

    Args:
      path: the file.
      num_frames: T.
      size: S, pixels.
      frames_per_second: of the clip, whatever the file's own rate.
      sample_rate: of the clip's sound, in Hz.
      start: seconds from the beginning of the file.

    Returns:
      video float32 [1, T, S, S, 3] from 0 to 1, and audio float32
      [1, T * sample_rate / frames_per_second, 1] from -1 to 1.

    Raises:
      ValueError: if there is no video in the file, not enough of it or of its sound, or they
        cannot be decoded.
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
):
    """Writes a video with sound: MP4 with H.264 and AAC, which browsers play.

    Args:
      path: the file, replaced when it exists.
      video: [T, height, width, 3], RGB from 0 to 1; values outside are clipped. An odd side
        grows by a pixel that repeats its last one, as the format has even sides only.
      audio: [n, channels], one channel or two, from -1 to 1; values outside are clipped.
      frames_per_second: of `video`.
      sample_rate: of `audio` in Hz, one that AAC has.

    Raises:
      ValueError: if the arrays are something else, or the rates cannot be written.
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


class NoSuchStream(ValueError):
    """A file without video, or without sound."""


@contextlib.contextmanager
def _opened(path: str | Path, kind: str) -> Iterator[tuple]:
    """Opens a file: its container, its first stream of a kind, and when it begins in seconds.

    Errors within become ValueErrors that name the file.
    """
    import av

    with open(path, 'rb') as file:
        try:
            with av.open(file) as container:
                cover = av.stream.Disposition.attached_pic  # the picture of an album is no video
                streams = [s for s in getattr(container.streams, kind) if not s.disposition & cover]
                if streams:
                    yield container, streams[0], (container.start_time or 0) / av.time_base
                    return
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, 'strerror', error)
            raise Refused(f'{path}: cannot decode its {kind}: {reason}') from error
    raise NoSuchStream(f'{path}: there is no {kind} in it')


def _check_times(start: float = 0.0, **positive: float):
    if not 0 <= start < math.inf:
        raise Refused(f'start must be at least 0 seconds, got {start}')
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise Refused(f'{name} must be positive, got {value}')
