"""Errors of optical flow as the benchmarks and the field count them.

The end-point error (EPE) is the distance in pixels between where a pixel is said to go and where it
goes. Sintel's is averaged over all pixels of all pairs, KITTI's over the pixels of each pair with a
truth and then over the pairs. Fl is the share of those pixels whose error is more than 3 pixels
and more than 5 % of the true length, KITTI's too over all of them at once.

Source: Butler et al. 2012 (Sintel); Menze and Geiger 2015 (KITTI); RAFT's evaluation.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perceiver_jax.errors import Refused


def end_point_error(flow: jax.Array, truth: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Distances between where two flows end.

    Args:
      flow: [..., 2] in pixels.
      truth: likewise.
      epsilon: length that is added at a right angle: with more than 0 there is a gradient at 0.

    Returns:
      [...] float32, pixels.

    Raises:
      ValueError: the shapes differ.
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
    """Counts pixels and adds up errors, pair by pair; `summarise` makes metrics of them.

    Args:
      flow: [b, h, w, 2], pixels.
      truth: likewise.
      valid: bool [b, h, w], pixels that count.
      matched: bool [b, h, w], those of them that the second frame shows, as far as is known.
      unmatched: bool [b, h, w], those that it does not show.

    Returns:
      [b] float32 each: 'pixels_<part>', 'error_<part>' (the sum, in pixels) and 'outliers_<part>'
      (the count) for the parts all, matched, unmatched, and those that move less than 10 pixels,
      up to 40, and more: s0_10, s10_40, s40.
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
    """Metrics of several data sets.

    Args:
      sums: what `measure` returns, of all pairs.
      data: [pairs] integers, which data set a pair is of.
      names: of the data sets; those that begin with 'kitti' are averaged as KITTI is.

    Returns:
      'epe_<name>' of each data set in pixels, then 'fl_<name>' in 0..1, then both of the parts that
      have any pixels: 'epe_<name>_matched', 'fl_<name>_matched' and so on.
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
