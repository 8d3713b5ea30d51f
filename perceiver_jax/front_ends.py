"""From files to what the models take: text, images, pairs of frames, points, sound and video.

Images need OpenCV, sound and video also PyAV: `pip install 'perceiver_jax[media]'`. Both are
imported where they are used, so that text needs neither.
"""

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from perceiver_jax.files import whole

VOCABULARY_SIZE = 262  # six special tokens, then the 256 bytes
PAD, BOS, EOS, MASK, CLS, SEP = range(6)
_FIRST_BYTE = 6

# Sound and pictures of one file are cut into pieces of different lengths, and end at different
# times: so much of the sound may be missing, one frame of 25 a second.
_MISSING_SOUND = 0.04  # seconds; our choice
_CLOCK_TOLERANCE = 1e-3  # seconds; some formats round their times to milliseconds


def encode_text(text: str | bytes) -> np.ndarray:
    """Returns the tokens of a text: its bytes (UTF-8) + 6, int32 [n], without special tokens."""
    encoded = text.encode() if isinstance(text, str) else memoryview(text)
    return np.frombuffer(encoded, np.uint8).astype(np.int32) + _FIRST_BYTE


def decode_text(tokens: Sequence[int] | np.ndarray) -> str:
    """Returns the text of tokens [n]; special tokens are left out, broken UTF-8 becomes U+FFFD.

    Raises:
      ValueError: if there is a token that is no integer in 0..261.
    """
    tokens = np.asarray(tokens)
    outside = tokens[(tokens < 0) | (tokens >= VOCABULARY_SIZE) | (tokens % 1 != 0)]
    if outside.size:
        raise ValueError(f'tokens are integers in 0..{VOCABULARY_SIZE - 1}, got {outside[0]}')
    encoded = (tokens[tokens >= _FIRST_BYTE] - _FIRST_BYTE).astype(np.uint8).tobytes()
    return encoded.decode(errors='replace')


def pad_tokens(
    sequences: Sequence[Sequence[int] | np.ndarray], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Makes one batch of sequences of tokens.

    Args:
      sequences: B sequences of at most `length` tokens.
      length: of every row of the result.

    Returns:
      tokens [B, length] int32, with PAD behind each sequence, and the mask [B, length] bool,
      true where there is a token.

    Raises:
      ValueError: if a sequence is too long.
    """
    tokens = np.full((len(sequences), length), PAD, np.int32)
    mask = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        if len(sequence) > length:
            raise ValueError(f'sequence {row} has {len(sequence)} tokens, at most {length} fit')
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return tokens, mask


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Reads a photograph: JPEG, PNG or whatever else OpenCV decodes, of any colour space.

    The camera's orientation tag is applied, so that the image stands as viewers show it.
    Transparency is dropped, 16 bits become 8.

    Args:
      path: the file.
      channels: 3 for RGB, 1 for grey.

    Returns:
      uint8 [height, width, channels].

    Raises:
      ValueError: if the file is not a whole image.
    """
    try:
        return decode_image(Path(path).read_bytes(), channels, oriented=True)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def decode_image(encoded: bytes, channels: int, *, oriented: bool = False) -> np.ndarray:
    """Decodes a JPEG or PNG file of any colour space.

    Args:
      encoded: the file's bytes.
      channels: 3 for RGB, 1 for grey.
      oriented: whether to turn the image by its orientation tag. ImageNet's boxes and all its
        published results ignore the tag.

    Returns:
      uint8 [height, width, channels].

    Raises:
      ValueError: if these are not a whole image.
    """
    import cv2

    if channels not in (1, 3):
        raise ValueError(f'channels must be 1 or 3, not {channels!r}')
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}[channels]
    if not oriented:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes; None for everything else
        image = None
    if image is None:
        raise ValueError(
            f'{len(encoded)} bytes that are no whole image of a kind that OpenCV reads'
        )
    return image.reshape(*image.shape[:2], channels)


def prepare_image(
    image: np.ndarray,
    size: int,
    crop_fraction: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """Prepares an image as the published evaluation does: crop the centre, resize, normalise.

    Args:
      image: uint8 [height, width, channels].
      size: side of the result in pixels.
      crop_fraction: side of the crop / shorter side of the image.
      mean: per channel, of images in 0..1.
      std: likewise.

    Returns:
      float32 [size, size, channels].

    Raises:
      ValueError: if `image` is something else.
    """
    _check_image('image', image, len(mean))
    if size < 1 or size % 1:
        raise ValueError(f'size must be a whole number of pixels, got {size}')
    return normalise(resize(centre_crop(image, crop_fraction), size), mean, std)


def prepare_frames(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Prepares two frames of a video for optical flow, from the first to the second.

    Args:
      first: uint8 [height, width, 3], RGB.
      second: likewise, of the same size.

    Returns:
      float32 [2, height, width, 3] in [-1, 1].

    Raises:
      ValueError: if they are something else.
    """
    _check_image('first frame', first, 3)
    _check_image('second frame', second, 3)
    if first.shape != second.shape:
        raise ValueError(f'frames must be of one size, got {first.shape} and {second.shape}')
    return np.stack([first, second]).astype(np.float32) / 255 * 2 - 1


def _check_image(name: str, image: np.ndarray, channels: int):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != channels:
        raise ValueError(
            f'{name} must be uint8 [height, width, {channels}], got {image.dtype} {image.shape}'
        )


def centre_crop(image: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the central square whose side is `fraction` of the image's shorter side.

    0.875 is 224 / (224 + 32), the published evaluation's. Source: DeepMind's Perceiver IO release.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'the part of the shorter side to crop must be in 0..1, got {fraction}')
    height, width = image.shape[:2]
    side = max(int(fraction * min(height, width)), 1)
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    return image[top : top + side, left : left + side]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to [size, size, channels], bicubic, without antialiasing or clamping.

    Keys' cubic with a = -0.5, where OpenCV has -0.75; taps outside the image are left out and
    the others scaled to sum to 1.

    Args:
      image: [height, width, channels].
      size: side of the result in pixels.

    Returns:
      float32 [size, size, channels]; overshoots the range of `image` at edges.

    Source: tf.image.resize(method='bicubic'); Keys, Cubic Convolution Interpolation, 1981.
    """
    import cv2

    height, width, channels = image.shape
    rows = image.astype(np.float32).reshape(height, width * channels)
    rows = (_cubic_weights(height, size) @ rows).reshape(size, width, channels)
    columns = cv2.transpose(rows).reshape(width, size * channels)
    columns = (_cubic_weights(width, size) @ columns).reshape(size, size, channels)
    return cv2.transpose(columns).reshape(size, size, channels)


@functools.lru_cache(maxsize=4096)
def _cubic_weights(length: int, size: int):
    """Returns the sparse matrix [size, length], four entries a row, that resizes one axis."""
    import scipy.sparse  # comes with JAX; three times as fast as adding four rows at a time

    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    taps = np.floor(centres).astype(np.int32)[:, None] + np.arange(-1, 3, dtype=np.int32)
    x = np.abs(centres[:, None] - taps)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x <= 1, near, far) * ((taps >= 0) & (taps < length))
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, length - 1)
    return scipy.sparse.csr_array(
        (weights.astype(np.float32).ravel(), taps.ravel(), 4 * np.arange(size + 1)),
        shape=(size, length),
    )


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Returns (image / 255 - mean) / std, float32, for float32 [height, width, channels]."""
    scale, offset = _row_of_scales(tuple(mean), tuple(std), image.shape[1])
    return (image.reshape(len(image), -1) * scale - offset).reshape(image.shape)


@functools.lru_cache
def _row_of_scales(mean, std, width):
    """Returns scale and offset of a whole row: NumPy is slow where the last axis is short."""
    scale, offset = 1 / (255 * np.float32(std)), np.float32(mean) / np.float32(std)
    return np.tile(scale, width), np.tile(offset, width)


def prepare_points(points: np.ndarray, num_points: int | None = None) -> np.ndarray:
    """Takes some points of a cloud, moves their mean to 0 and scales them to the unit cube.

    Args:
      points: [P, 3] coordinates in any unit.
      num_points: how many to take, at equal distances in the order they stand in, or all where
        there are no more; None: all.

    Returns:
      float32 [num_points or P, 3]: the mean is 0, and the largest coordinate 1 or -1.

    Raises:
      ValueError: if they are something else, or all in one place.

    Source: Perceiver, section 4.3. That the cube is [-1, 1]^3 around the mean is our choice.
    """
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f'points must be [points, 3 coordinates], got {points.shape}')
    if num_points is not None and num_points < len(points):
        points = points[np.linspace(0, len(points) - 1, num_points).astype(int)]
    points = points - points.mean(0, dtype=np.float64)
    size = np.abs(points).max()
    if not (np.isfinite(size) and size > 0):
        raise ValueError('points must be finite and in more than one place')
    return (points / size).astype(np.float32)


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
        raise ValueError(
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
        raise ValueError(f'num_frames and size are whole, got {num_frames} and {size}')
    images, shown, square = [], None, None
    with contextlib.closing(frames_at(path, times)) as frames:
        for image in frames:
            if image is not shown:
                shown, square = image, _square(image, size)
            images.append(square)
    if len(images) < num_frames:
        raise ValueError(
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
            raise ValueError('a frame has no time')
        if frame.is_corrupt:
            raise ValueError(f'the frame at {frame.time:.2f} s is damaged')
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
        raise ValueError(f'video must be [T, height, width, 3], got {video.shape}')
    if audio.ndim != 2 or audio.shape[-1] not in (1, 2) or not audio.size:
        raise ValueError(f'audio must be [n, 1] or [n, 2], got {audio.shape}')
    _check_times(frames_per_second=frames_per_second, sample_rate=sample_rate)
    if not (np.isfinite(video).all() and np.isfinite(audio).all()):
        raise ValueError(f'{path}: video and audio must be finite to be written')
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
        raise ValueError(
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
            raise ValueError(f'{path}: cannot decode its {kind}: {reason}') from error
    raise NoSuchStream(f'{path}: there is no {kind} in it')


def _check_times(start: float = 0.0, **positive: float):
    if not 0 <= start < math.inf:
        raise ValueError(f'start must be at least 0 seconds, got {start}')
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f'{name} must be positive, got {value}')
