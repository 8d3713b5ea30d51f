"""Reads one clip of a file of sound or video, and encodes what is stored of it.

Sound is stored as FLAC at 48 kHz, video as JPEG frames at 25 a second. What is wrong with a clip is
reported under the keys of `LEFT_OUT` (the clip is of no use) and `KEPT` (it is).
"""

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.media import NoSuchStream, not_sound, shown_frames, sound_pieces

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 48_000  # Hz, of the sound that is stored
FRAMES_PER_SECOND = 25  # of the video that is stored
_SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND
# The papers state none of these; our choice: deviations.md#stored-clips
_SHORT_SIDE = 256  # pixels; larger frames shrink, and crops of 224 remain possible
_JPEG_QUALITY = 80
_SHORTEST = 32 * _SAMPLES_PER_FRAME  # samples, 1.28 s: the window that the models take
_TOLERANCE = 0.5  # seconds that a clip may lack: cutting a video is that inexact
_SILENCE = 1e-4  # largest sample of a silent clip, where full scale is 1
LEFT_OUT = {
    'missing': 'no file has this id and start',
    'unreadable': 'nothing in the file can be decoded',
    'no sound': 'the file has no sound',
    'no pictures': 'the file has no video',
    'other length': 'named by id alone, neither as long as the clip nor reaching to its end',
    'not finite': 'some of the sound is NaN, infinite or absurdly loud',
    'too short': 'less than 1.28 s can be used',
}
KEPT = {
    'damaged': 'decoding stopped at an error; what came before is kept',
    'short': 'the file ends more than 0.5 s before the clip does',
    'silent': 'no sample is louder than -80 dB',
}


def read_clip(
    path: str | Path, start: float, duration: float | None, with_frames: bool
) -> tuple[np.ndarray, list[bytes], dict[str, str]]:
    """Reads the sound of a clip, and its frames as JPEG.

    Args:
      path: File of sound or video, in a format that FFmpeg decodes.
      start: Seconds from the beginning of the file at which the clip begins.
      duration: Length of the clip in seconds; None reads to the end of the file.
      with_frames: Whether frames are read. Sound and frames are then cut to the same length.

    Returns:
      Three things: mono sound, float32 `[n]` at 48 kHz, the mean of the file's channels; encoded
      frames, 25 for each second of sound, an empty list without `with_frames`; and what is wrong
      with the clip, a dictionary from keys of `LEFT_OUT` and `KEPT` to details. A clip with a key
      of `LEFT_OUT` is of no use.

    Raises:
      OSError: The file cannot be opened.
    """
    sound, problem = _sound(path, start, duration)
    if isinstance(problem, NoSuchStream):
        return sound, [], {'no sound': str(problem)}
    if problem and not len(sound):
        return sound, [], {'unreadable': str(problem)}
    if not_finite := not_sound(sound, SAMPLE_RATE, start):
        return sound, [], {'not finite': not_finite}
    frames: list[bytes] = []
    if with_frames:
        num_frames = -(-len(sound) // _SAMPLES_PER_FRAME)
        frames, video_problem = _frames(path, start, num_frames)
        if isinstance(video_problem, NoSuchStream):
            return sound, [], {'no pictures': str(video_problem)}
        problem = problem or video_problem
        sound = sound[: len(frames) * _SAMPLES_PER_FRAME]
        sound = np.pad(sound, (0, len(frames) * _SAMPLES_PER_FRAME - len(sound)))
    wrong = {}
    if problem:
        wrong['damaged'] = str(problem)
    seconds = len(sound) / SAMPLE_RATE
    if len(sound) < _SHORTEST:
        wrong['too short'] = f'{seconds:.2f} s'
    elif duration is not None and seconds < duration - _TOLERANCE:
        wrong['short'] = f'{seconds:.2f} of {duration:.2f} s'
    if len(sound) and np.abs(sound).max() < _SILENCE:
        wrong['silent'] = f'the loudest sample is {np.abs(sound).max():.1e}'
    return sound, frames, wrong


def sound_seconds(path: str | Path, at_most: float) -> float:
    """Measures the sound of a file by decoding it: headers may not tell its length, or lie.

    Args:
      path: File of sound or video, in a format that FFmpeg decodes.
      at_most: Seconds after which to stop.

    Returns:
      Length of the sound in seconds, as far as it can be decoded; `at_most` or a little more where
      there is more of it, 0 where there is none.

    Raises:
      OSError: The file cannot be opened.
    """
    length = 0
    with contextlib.suppress(Refused), contextlib.closing(sound_pieces(path, SAMPLE_RATE)) as found:
        for piece in found:
            length += len(piece)
            if length >= at_most * SAMPLE_RATE:
                break
    return length / SAMPLE_RATE


def _sound(
    path: str | Path, start: float, duration: float | None
) -> tuple[np.ndarray, Refused | None]:
    """Returns the sound as far as it can be decoded, and the error that stopped decoding."""
    first = round(start * SAMPLE_RATE)
    last = None if duration is None else first + round(duration * SAMPLE_RATE)
    pieces, position = [np.zeros(0, np.float32)], 0
    problem: Refused | None = None
    try:
        with contextlib.closing(sound_pieces(path, SAMPLE_RATE)) as found:
            for piece in found:
                begin, end = first - position, len(piece) if last is None else last - position
                with np.errstate(over='ignore', invalid='ignore'):  # of what is not finite
                    pieces.append(piece.mean(1)[max(begin, 0) : max(end, 0)])
                position += len(piece)
                if last is not None and position >= last:
                    break
    except Refused as error:
        problem = error
    return np.concatenate(pieces), problem


def _frames(path: str | Path, start: float, num_frames: int) -> tuple[list[bytes], Refused | None]:
    """Returns the frames as far as they can be decoded, and the error that stopped decoding."""
    frames: list[bytes] = []
    problem: Refused | None = None
    times = start + np.arange(num_frames) / FRAMES_PER_SECOND
    try:
        with contextlib.closing(shown_frames(path, times)) as found:
            for image, count in found:
                frames += count * [encode_frame(image)]
    except Refused as error:
        problem = error
    return frames, problem


def read_sound(opened: 'soundfile.SoundFile', file_bytes: int) -> np.ndarray:
    """Reads all sound that libsndfile decodes, for which the header says what memory is allocated.

    Args:
      opened: The file.
      file_bytes: Its size.

    Returns:
      Sound, float32 `[n, channels]`.

    Raises:
      Refused: It would take more memory than `limits` allows.
      SoundFileError: The sound cannot be decoded.
    """
    limits.check_bytes('its sound', 4 * opened.frames * opened.channels, file_bytes)
    return opened.read(dtype='float32', always_2d=True)


def encode_frame(image: np.ndarray) -> bytes:
    """Encodes a frame as JPEG, its shorter side at most 256 pixels.

    Args:
      image: Frame, uint8 `[height, width, 3]`, RGB.

    Returns:
      The bytes of a JPEG file.
    """
    scale = _SHORT_SIDE / min(image.shape[:2])
    if scale < 1:
        size = [max(round(scale * side), 1) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return cv2.imencode('.jpg', image[..., ::-1], quality)[1].tobytes()


def encode_sound(sound: np.ndarray) -> bytes:
    """Encodes sound as FLAC of 16 bits, half the size of WAV with no loss but the rounding.

    Args:
      sound: Mono sound, float32 `[n]` at 48 kHz, from -1 to 1.

    Returns:
      The bytes of a FLAC file.
    """
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, sound, SAMPLE_RATE, format='FLAC', subtype='PCM_16')
    return encoded.getvalue()
