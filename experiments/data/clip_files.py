"""One clip of a file of sound or video: read, and encoded to be kept."""

import contextlib
import io
import os

import cv2
import numpy as np

from perceiver_jax.front_ends.media import NoSuchStream, shown_frames, sound_pieces

SAMPLE_RATE = 48_000  # Hz
FRAMES_PER_SECOND = 25
_SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND
# What the papers do not state is our choice.
_SHORT_SIDE = 256  # pixels; larger frames shrink, crops of 224 remain
_JPEG_QUALITY = 80
_SHORTEST = 32 * _SAMPLES_PER_FRAME  # samples: what the models look at, 1.28 s
_TOLERANCE = 0.5  # seconds that a clip may lack: cutting a video is that inexact
_SILENCE = 1e-4  # largest sample, of 1
LEFT_OUT = {
    'missing': 'no file has this id and start',
    'unreadable': 'nothing in the file can be decoded',
    'no sound': 'the file has no sound',
    'no pictures': 'the file has no video',
    'too short': 'less than 1.28 s can be used',
}
KEPT = {
    'damaged': 'decoding stopped at an error; what came before is kept',
    'short': 'the file ends more than 0.5 s before the clip does',
    'silent': 'no sample is louder than -80 dB',
}


def read_clip(
    path: str | os.PathLike, start: float, duration: float | None, with_frames: bool
) -> tuple[np.ndarray, list[bytes], dict[str, str]]:
    """Reads the sound of a clip, and its frames as JPEG.

    Args:
      path: a file of media.
      start: seconds in the file.
      duration: seconds; None reads to the end.
      with_frames: whether the frames are wanted.

    Returns:
      - float32 [n] mono sound at 48 kHz, the mean of the file's channels;
      - 25 encoded frames for each second of it; none without `with_frames`;
      - what is wrong: keys of `LEFT_OUT` and `KEPT`, with details. Where one is of `LEFT_OUT` the
        clip is of no use.
    """
    sound, problem = _sound(path, start, duration)
    if isinstance(problem, NoSuchStream):
        return sound, [], {'no sound': str(problem)}
    if problem and not len(sound):
        return sound, [], {'unreadable': str(problem)}
    frames = []
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


def _sound(path, start, duration) -> tuple[np.ndarray, ValueError | None]:
    """The sound as far as it can be decoded, and the error that it ends with."""
    first = round(start * SAMPLE_RATE)
    last = None if duration is None else first + round(duration * SAMPLE_RATE)
    pieces, position, problem = [np.zeros(0, np.float32)], 0, None
    try:
        with contextlib.closing(sound_pieces(path, SAMPLE_RATE)) as found:
            for piece in found:
                begin, end = first - position, len(piece) if last is None else last - position
                pieces.append(piece.mean(1)[max(begin, 0) : max(end, 0)])
                position += len(piece)
                if last is not None and position >= last:
                    break
    except ValueError as error:
        problem = error
    return np.nan_to_num(np.concatenate(pieces)), problem


def _frames(path, start, num_frames) -> tuple[list[bytes], ValueError | None]:
    """The frames as far as they can be decoded, and the error that they end with."""
    frames: list[bytes] = []
    problem = None
    times = start + np.arange(num_frames) / FRAMES_PER_SECOND
    try:
        with contextlib.closing(shown_frames(path, times)) as found:
            for image, count in found:
                frames += count * [encode_frame(image)]
    except ValueError as error:
        problem = error
    return frames, problem


def encode_frame(image: np.ndarray) -> bytes:
    """A frame as JPEG, its short side at most 256 pixels."""
    scale = _SHORT_SIDE / min(image.shape[:2])
    if scale < 1:
        size = [max(round(scale * side), 1) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    return cv2.imencode('.jpg', image[..., ::-1], quality)[1].tobytes()


def encode_sound(sound: np.ndarray) -> bytes:
    """Mono sound as FLAC of 16 bits: no loss but the rounding, half the size."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, sound, SAMPLE_RATE, format='FLAC', subtype='PCM_16')
    return encoded.getvalue()
