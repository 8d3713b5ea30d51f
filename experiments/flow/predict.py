"""Flow between two images."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.command_line import Progress
from perceiver_jax.errors import Refused

KITTI_LARGEST = 511.98  # pixels; what its files can hold


def flow_of_frames(model, arguments: argparse.Namespace) -> Iterator[dict]:
    """Estimates flow from the first input to the second."""
    if len(arguments.inputs) != 2:
        raise Refused(f'INPUT: expected two images, got {len(arguments.inputs)}')
    tiles = arguments.tiles or 'even'
    yield estimate_flow(model, *arguments.inputs, arguments.out, tiles, arguments.ground_truth)


def estimate_flow(
    model, first: str, second: str, out: str, tiles: str = 'even', ground_truth: str | None = None
) -> dict:
    """Estimates flow between two frames of any size, and writes it.

    Args:
      model: a `Pretrained` for flow.
      first: an image.
      second: an image of the same size.
      out: folder of the files.
      tiles: where to cut large frames, 'even' or 'deepmind'.
      ground_truth: file of the true flow.

    Returns:
      `input`, the `files` written, and `epe` if the truth is known: the end-point error in pixels,
      averaged over the pixels where it is.

    Raises:
      ValueError: files that are no images, or of different sizes.
    """
    from experiments.flow.files import read_flow, write_flo, write_kitti_flow
    from experiments.pictures.flow_colours import flow_picture
    from experiments.pictures.predictions import write_flow_comparison, write_picture
    from perceiver_jax.front_ends import prepare_frames, read_image
    from perceiver_jax.tiling import tiled

    images = read_image(first), read_image(second)
    try:
        frames = prepare_frames(*images)
    except ValueError as error:
        raise Refused(f'{first}, {second}: {error}') from error
    if ground_truth is not None:
        truth, valid = read_flow(ground_truth)
        if valid.shape != frames.shape[1:3] or not valid.any():
            raise Refused(
                f'{ground_truth}: expected flow of {frames.shape[1:3]} pixels, '
                f'got {valid.shape}, {valid.sum()} of them valid'
            )
    Path(out).mkdir(parents=True, exist_ok=True)  # before the work, which takes minutes
    tile = tuple(model.front_end['tile'])
    flow = tiled(model, frames, tile, placement=tiles, progress=Progress('tile'))

    stem = str(Path(out, Path(first).stem))
    write_flo(f'{stem}_flow.flo', flow)
    write_kitti_flow(f'{stem}_flow.png', flow, (np.abs(flow) <= KITTI_LARGEST).all(-1))
    write_picture(f'{stem}_flow_picture.png', flow_picture(flow))
    files = [f'{stem}_flow.flo', f'{stem}_flow.png', f'{stem}_flow_picture.png']
    result = {'input': [first, second], 'files': files}
    if ground_truth is not None:
        result['epe'] = float(np.linalg.norm(flow - truth, axis=-1)[valid].mean())
        files.append(f'{stem}_flow_comparison.png')
        write_flow_comparison(files[-1], (frames + 1) / 2, flow, truth, valid)
    return result
