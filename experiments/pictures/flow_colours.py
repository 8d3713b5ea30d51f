"""Optical flow as colours: Middlebury's colour wheel."""

import flow_vis
import numpy as np

from perceiver_jax.errors import Refused


def flow_picture(
    flow: np.ndarray, valid: np.ndarray | None = None, largest: float | None = None
) -> np.ndarray:
    """Colours flow by Middlebury's wheel: the direction is the hue, the length the saturation.

    Args:
      flow: Flow `[height, width, 2]`: (u, v) = (right, down) in pixels.
      valid: Where the flow is known, bool `[height, width]`; other pixels become black. None:
        everywhere.
      largest: Length in pixels that is fully saturated; longer flow gets the same colour. None:
        the length of the longest valid flow, as most papers do. Pictures that are to be compared
        need the same value.

    Returns:
      The picture, uint8 `[height, width, 3]`, RGB; white where nothing moves.

    Raises:
      Refused: The shapes do not fit, valid flow is not finite, or `largest` is not positive.
    """
    flow = np.asarray(flow)
    valid = np.ones(flow.shape[:2], bool) if valid is None else np.asarray(valid)
    if flow.ndim != 3 or flow.shape[2] != 2 or flow.size == 0:
        raise Refused(f'flow_picture: flow is [height, width, 2], got {flow.shape}')
    if valid.shape != flow.shape[:2] or valid.dtype != bool:
        raise Refused(
            f'flow_picture: validity is bool {flow.shape[:2]}, got {valid.dtype} {valid.shape}'
        )
    wrong = ~np.isfinite(flow[valid])
    if wrong.any():
        raise Refused(
            f'flow_picture: valid flow is finite, got {flow[valid][wrong][0]:g} '
            f'and {wrong.sum() - 1} more like it'
        )
    if largest is not None and not largest > 0:
        raise Refused(f'largest: expected a positive length in pixels, got {largest}')
    flow = np.where(valid[..., None], flow, 0).astype(np.float64)
    length = np.hypot(flow[..., 0], flow[..., 1])
    unit = flow / np.maximum(length, largest or length.max() or 1.0)[..., None]
    picture = flow_vis.flow_uv_to_colors(unit[..., 0], unit[..., 1])
    picture[~valid] = 0
    return picture
