"""Predictions of optical flow between two images."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line import Progress
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained

OPTIONS = ('tiles', 'factors', 'ground_truth')  # of the command line
KITTI_LARGEST = 511.98  # pixels; what its files can hold


def predict(model: Pretrained, arguments: argparse.Namespace) -> Iterator[dict]:
    """Estimates flow from the first input to the second.

    Args:
      model: A model for optical flow.
      arguments: The command line: `inputs`, `out`, `tiles`, `factors`, `ground_truth`.

    Yields:
      What `estimate_flow` returns, once.

    Raises:
      Refused: There are not two inputs, or `estimate_flow` refuses them.
    """
    if len(arguments.inputs) != 2:
        raise Refused(f'INPUT: expected two images, got {len(arguments.inputs)}')
    first, second = arguments.inputs
    how = arguments.tiles or 'even', arguments.ground_truth, arguments.factors
    yield estimate_flow(model, first, second, arguments.out, *how)


def estimate_flow(
    model: Pretrained,
    first: str,
    second: str,
    out: str,
    tiles: str = 'even',
    ground_truth: str | None = None,
    factors: Sequence[int] | None = None,
) -> dict:
    """Estimates flow between two frames of any size, and writes it.

    Args:
      model: A model for optical flow.
      first: File of the first frame.
      second: File of the second frame, of the same size.
      out: Folder that the flow and its pictures are written to.
      tiles: Where large frames are cut, 'even' or 'deepmind'.
      ground_truth: File of the true flow. None: it is not known.
      factors: By what the frames are shrunk, see `coarse_to_fine`; None: what the model's run did.

    Returns:
      `input`, the `files` written, and, where the true flow is known, `epe`: the end-point error
      in pixels, averaged over the valid pixels.

    Raises:
      Refused: The files are no images, or of different sizes, or the true flow is.
    """
    from experiments.flow.files import write_flo, write_kitti_flow
    from experiments.pictures.flow_colours import flow_picture
    from experiments.pictures.predictions import write_flow_comparison, write_picture
    from perceiver_jax.front_ends import prepare_frames, read_image

    images = read_image(first), read_image(second)
    try:
        frames = prepare_frames(*images)
    except Refused as error:
        raise Refused(f'{first}, {second}: {error}') from error
    truth = None if ground_truth is None else _read_truth(ground_truth, frames.shape[1:3])
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
    flow = flow_of_frames(model, frames, tiles, factors, Progress('tile'))

    stem = str(Path(out, Path(first).stem))
    write_flo(f'{stem}_flow.flo', flow)
    write_kitti_flow(f'{stem}_flow.png', flow, (np.abs(flow) <= KITTI_LARGEST).all(-1))
    write_picture(f'{stem}_flow_picture.png', flow_picture(flow))
    files = [f'{stem}_flow.flo', f'{stem}_flow.png', f'{stem}_flow_picture.png']
    result: dict[str, Any] = {'input': [first, second], 'files': files}
    if truth is not None:
        true_flow, valid = truth
        result['epe'] = float(np.linalg.norm(flow - true_flow, axis=-1)[valid].mean())
        files.append(f'{stem}_flow_comparison.png')
        title = f'Flow from {Path(first).name} to {Path(second).name}'
        write_flow_comparison(files[-1], (frames + 1) / 2, flow, true_flow, valid, title)
    return result


def flow_of_frames(
    model: Pretrained,
    frames: np.ndarray,
    tiles: str = 'even',
    factors: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Estimates flow between frames of any size.

    Args:
      model: A model for optical flow.
      frames: Pair of frames, `[2, H, W, 3]` in [-1, 1].
      tiles: Where large frames are cut, 'even' or 'deepmind'.
      factors: By what the frames are shrunk, see `coarse_to_fine`; None: what the model's run did.
      progress: Function that is called with (tiles done, all tiles), of each size of the frames.

    Returns:
      Flow in pixels, float32 `[H, W, 2]`.

    Raises:
      Refused: The factors are none.
    """
    import jax.numpy as jnp

    from perceiver_jax.tiling import coarse_to_fine, tiled

    def estimate(frames, _):
        tile = tuple(model.front_end['tile'])
        return tiled(model, frames[0], tile, placement=tiles, progress=progress)[None]

    if factors is None:
        factors = model.front_end.get('factors', [1])
    return np.asarray(coarse_to_fine(estimate, jnp.asarray(frames[None]), factors)[0])


def _read_truth(path: str, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reads true flow of (height, width) pixels, and where it is valid."""
    from experiments.flow.files import read_flow

    flow, valid = read_flow(path)
    if valid.shape != size or not valid.any():
        raise Refused(
            f'{path}: expected flow of {size} pixels, got {valid.shape}, {valid.sum()} of them '
            'valid'
        )
    return flow, valid
