"""Reads and writes the file formats of optical flow: .flo, KITTI's .png, and .pfm (read only).

Flow is float32 `[height, width, 2]`: (u, v), to the right and down, in pixels of the first frame.
Validity is bool `[height, width]`, True where the flow is known; elsewhere readers return zeros.
"""

import os
import re
from pathlib import Path

import cv2
import numpy as np

from perceiver_jax.errors import Refused
from perceiver_jax.files import write_whole
from perceiver_jax.front_ends.images import check_pixels

_FLO_MAGIC = np.float32(202021.25)  # the bytes b'PIEH', where floats are little-endian
_FLO_LARGEST = 1e9  # a component beyond this, either way, marks unknown flow
_FLO_UNKNOWN = 1e10
_PFM_HEADER = re.compile(  # width, height, scale
    rb'PF\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s'
)


def read_flow(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a Middlebury .flo, a KITTI .png or a FlyingThings3D .pfm, as its name ends.

    Args:
      path: The file.

    Returns:
      Flow, float32 `[height, width, 2]`, and validity, bool `[height, width]`.

    Raises:
      Refused: The name ends in none of these, or the file is not of the format that it names.
      OSError: The file cannot be read.
    """
    readers = {'.flo': read_flo, '.png': read_kitti_flow, '.pfm': read_pfm}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise Refused(f"{path}: expected flow in .flo, .pfm or KITTI's .png, not {suffix!r}")
    return readers[suffix](path)


def read_flo(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a Middlebury .flo file, the format of Sintel and FlyingChairs too.

    Args:
      path: The file.

    Returns:
      Flow, float32 `[height, width, 2]`, and validity, bool `[height, width]`, False where a
      component is NaN or beyond 1e9.

    Raises:
      Refused: The file is too short or too long, or no .flo file.
      OSError: The file cannot be read.

    Source: Baker et al., A Database and Evaluation Methodology for Optical Flow, 2011; flowIO.cpp.
    """
    content = Path(path).read_bytes()
    if len(content) < 12 or np.frombuffer(content, '<f4', 1)[0] != _FLO_MAGIC:
        raise Refused(
            f"{path}: expected a .flo file, which begins with b'PIEH', width and height; "
            f'it begins with {content[:4]!r}, {len(content)} bytes in all'
        )
    width, height = np.frombuffer(content, '<i4', 2, offset=4).tolist()
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise Refused(
            f'{path}: expected {12 + 8 * width * height} bytes for {width} x {height} pixels, '
            f'got {len(content)}'
        )
    flow = np.frombuffer(content, '<f4', offset=12).reshape(height, width, 2).astype(np.float32)
    return _with_validity(flow)


def write_flo(path: str | os.PathLike, flow: np.ndarray, valid: np.ndarray | None = None) -> None:
    """Writes a Middlebury .flo file, atomically.

    Args:
      path: The file, replaced if it exists.
      flow: Flow, `[height, width, 2]`.
      valid: Validity, bool `[height, width]`; None stands for valid everywhere.

    Raises:
      Refused: The shapes do not fit, or valid flow is beyond 1e9 pixels, which marks unknown
        flow.
    """
    flow, valid = _check(path, flow, valid)
    _check_range(path, flow[valid], -_FLO_LARGEST, _FLO_LARGEST)
    height, width = valid.shape
    content = np.where(valid[..., None], flow, _FLO_UNKNOWN).astype('<f4')
    header = np.array(_FLO_MAGIC, '<f4').tobytes() + np.array([width, height], '<i4').tobytes()
    write_whole(path, header + content.tobytes())


def read_pfm(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads flow from a colour .pfm as FlyingThings3D has it: u, v and an unused channel.

    Args:
      path: The file.

    Returns:
      Flow, float32 `[height, width, 2]`, and validity, bool `[height, width]`, False where a
      component is NaN or beyond 1e9.

    Raises:
      Refused: The file is too short or too long, or no .pfm of three channels.
      OSError: The file cannot be read.

    Source: Mayer et al., A Large Dataset to Train Convolutional Networks, 2016; the format is
      Debevec's, rows from the bottom up, little-endian where the scale is negative.
    """
    content = Path(path).read_bytes()
    header = _PFM_HEADER.match(content)
    if not header:
        raise Refused(
            f"{path}: expected a .pfm file of three channels, which begins with b'PF', width, "
            f'height and scale; it begins with {content[:16]!r}, {len(content)} bytes in all'
        )
    width, height, scale = int(header[1]), int(header[2]), float(header[3])
    expected = header.end() + 12 * width * height
    if width < 1 or height < 1 or len(content) != expected:
        raise Refused(
            f'{path}: expected {expected} bytes for {width} x {height} pixels, got {len(content)}'
        )
    numbers = np.frombuffer(content, '<f4' if scale < 0 else '>f4', offset=header.end())
    flow = numbers.reshape(height, width, 3)[::-1, :, :2].astype(np.float32)
    return _with_validity(flow)


def read_kitti_flow(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads KITTI's flow: a PNG of three 16-bit channels, u, v and validity.

    Args:
      path: The file.

    Returns:
      Flow, float32 `[height, width, 2]` in steps of 1/64 pixel, and validity, bool
      `[height, width]`.

    Raises:
      Refused: The file is no whole image, has too many pixels, or not three 16-bit channels.
      OSError: The file cannot be read.

    Source: the development kit of KITTI 2015, Menze and Geiger.
    """
    encoded = Path(path).read_bytes()
    try:
        check_pixels(encoded)
    except Refused as error:
        raise Refused(f'{path}: {error}') from error
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # no bytes, or more pixels than OpenCV takes; None for everything else
        image = None
    if image is None:
        raise Refused(f'{path}: expected a 16-bit PNG, got no whole image')
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise Refused(
            f"{path}: KITTI's flow has 3 channels of 16 bits, got {channels} of "
            f'{8 * image.itemsize}'
        )
    valid = image[..., 0] > 0  # OpenCV gives the channels in reverse: validity, v, u
    flow = (image[..., :0:-1].astype(np.float32) - 32768) / 64
    flow[~valid] = 0
    return flow, valid


def write_kitti_flow(
    path: str | os.PathLike, flow: np.ndarray, valid: np.ndarray | None = None
) -> None:
    """Writes KITTI's flow PNG, rounded to 1/64 pixel, atomically.

    Args:
      path: The file, replaced if it exists.
      flow: Flow, `[height, width, 2]`.
      valid: Validity, bool `[height, width]`; None stands for valid everywhere.

    Raises:
      Refused: The shapes do not fit, or valid flow is outside the format's -512..511.98 pixels.
    """
    flow, valid = _check(path, flow, valid)
    _check_range(path, flow[valid], -512, 511.984375)
    u, v = np.moveaxis(np.rint(np.where(valid[..., None], flow, 0) * 64) + 32768, -1, 0)
    _, encoded = cv2.imencode('.png', np.stack([valid, v, u], -1).astype(np.uint16))
    write_whole(path, encoded.tobytes())


def _with_validity(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns flow with zeros where a component is NaN or too large, and where it is neither."""
    valid = np.all(np.abs(flow) <= _FLO_LARGEST, axis=-1)
    flow[~valid] = 0
    return flow, valid


def _check(
    path: str | os.PathLike, flow: np.ndarray, valid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns flow, and validity for all of it; refuses shapes that do not fit."""
    flow = np.asarray(flow)
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise Refused(f'{path}: flow is [height, width, 2], got {flow.shape}')
    valid = np.ones(flow.shape[:2], bool) if valid is None else np.asarray(valid)
    if valid.shape != flow.shape[:2] or valid.dtype != bool:
        raise Refused(f'{path}: validity is bool {flow.shape[:2]}, got {valid.dtype} {valid.shape}')
    return flow, valid


def _check_range(path: str | os.PathLike, flow: np.ndarray, low: float, high: float) -> None:
    """Refuses flow `[n, 2]` that is out of range or NaN."""
    wrong = ~((flow >= low) & (flow <= high))
    if wrong.any():
        raise Refused(
            f'{path}: expected flow in {low:g}..{high:g} pixels, got {flow[wrong][0]:g} '
            f'and {wrong.sum() - 1} more like it'
        )
