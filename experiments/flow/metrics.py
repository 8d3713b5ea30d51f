"""Errors of optical flow as the benchmarks and the field measure them.

The end-point error (EPE) of a pixel is the distance in pixels between where the flow ends and where
the true flow ends. Sintel averages it over all pixels of all pairs; KITTI averages it over the
valid pixels of each pair, and then over the pairs. Fl is the share of outliers, pixels whose error
is more than 3 pixels and more than 5 % of the length of the true flow; both benchmarks take it over
all pixels of all pairs.

Source: Butler et al. 2012 (Sintel); Menze and Geiger 2015 (KITTI); RAFT's evaluation.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.errors import Refused


def end_point_error(flow: jax.Array, truth: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Returns the distances between where two flows end.

    Args:
      flow: Flow, `[..., 2]` in pixels.
      truth: True flow, `[..., 2]` in pixels.
      epsilon: Length in pixels that is added at a right angle; with more than 0 the gradient is
        finite where the flows are equal.

    Returns:
      Errors, float32 `[...]` in pixels.

    Raises:
      Refused: The shapes differ.
    """
    if flow.shape != truth.shape or flow.shape[-1] != 2:
        raise Refused(f'flow {flow.shape} and truth {truth.shape} must both be [..., 2]')
    difference = flow.astype(jnp.float32) - truth
    return jnp.sqrt(jnp.square(difference).sum(-1) + epsilon**2)


def measure(
    flow: jax.Array,
    truth: jax.Array,
    valid: jax.Array,
    matched: jax.Array,
    unmatched: jax.Array,
) -> dict[str, jax.Array]:
    """Counts pixels and sums errors, pair by pair; `summarise` turns them into metrics.

    Args:
      flow: Flow, `[b, h, w, 2]` in pixels.
      truth: True flow, `[b, h, w, 2]` in pixels.
      valid: Pixels that count, bool `[b, h, w]`.
      matched: Valid pixels that are known to be visible in the second frame, bool `[b, h, w]`.
      unmatched: Valid pixels that are known to be hidden in the second frame, bool `[b, h, w]`.

    Returns:
      'pixels_<part>' (a count), 'error_<part>' (a sum, in pixels) and 'outliers_<part>' (a count),
      float32 `[b]` each. The parts are all, matched, unmatched, and by the length of the true flow
      s0_10 (less than 10 pixels), s10_40 (10 to 40) and s40 (more).

    Raises:
      Refused: The shapes of `flow` and `truth` differ.
    """
    error = end_point_error(flow, truth)
    speed = jnp.linalg.norm(truth, axis=-1)
    outlier = (error > 3) & (error > 0.05 * speed)
    parts = {
        'all': valid,
        'matched': matched,
        'unmatched': unmatched,
        's0_10': valid & (speed < 10),
        's10_40': valid & (speed >= 10) & (speed <= 40),
        's40': valid & (speed > 40),
    }

    def total(values, where):
        return jnp.where(where, values, 0).astype(jnp.float32).sum((1, 2))

    sums = {}
    for part, where in parts.items():
        sums[f'pixels_{part}'] = total(1, where)
        sums[f'error_{part}'] = total(error, where)
        sums[f'outliers_{part}'] = total(outlier, where)
    return sums


def summarise(
    sums: Mapping[str, np.ndarray], data: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Returns the metrics of several data sets.

    Args:
      sums: Results of `measure` for all pairs, float32 `[pairs]` each.
      data: Number of the data set that each pair belongs to, integers `[pairs]`.
      names: Names of the data sets, by number; those that begin with 'kitti' are averaged as KITTI
        does.

    Returns:
      First 'epe_<name>' in pixels for each data set, then 'fl_<name>' in 0..1, then both for every
      part with at least one pixel: 'epe_<name>_matched', 'fl_<name>_matched' and so on.
    """
    epe, fl, parts = {}, {}, {}
    for number, name in enumerate(names):
        for part in ('all', 'matched', 'unmatched', 's0_10', 's10_40', 's40'):
            pixels, error, outliers = (
                np.asarray(sums[f'{what}_{part}'], np.float64)[data == number]
                for what in ('pixels', 'error', 'outliers')
            )
            if part != 'all' and not pixels.sum():
                continue
            if name.startswith('kitti'):
                mean = np.mean(error[pixels > 0] / pixels[pixels > 0])
            else:
                mean = error.sum() / pixels.sum()
            share = outliers.sum() / pixels.sum()
            if part == 'all':
                epe[f'epe_{name}'], fl[f'fl_{name}'] = float(mean), float(share)
            else:
                parts[f'epe_{name}_{part}'] = float(mean)
                parts[f'fl_{name}_{part}'] = float(share)
    return epe | fl | parts
