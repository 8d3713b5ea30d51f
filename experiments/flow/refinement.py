"""Pairs as estimating flow from coarse to fine meets them, computed on the accelerator."""

import jax
import jax.numpy as jnp

from perceiver_jax.tiling import warp

_CELL = 8  # pixels; what is smaller, a coarse flow does not show
_ERROR_CELL = 32  # pixels; errors of a coarse flow are about as large as this
_ITERATIONS = 4  # of the fixed point; the rough flow changes slowly from pixel to pixel


def warp_by_rough_flow(
    rng: jax.Array,
    frames: jax.Array,
    flow: jax.Array,
    index: jax.Array,
    share: float,
    error: float,
) -> tuple[jax.Array, jax.Array]:
    """Warps the second frame of some pairs by a rough flow, and returns the flow that is left.

    The rough flow is the true one without its details, with smooth errors added: what
    `perceiver_jax.tiling.coarse_to_fine` has when it refines. Random numbers are derived from each
    example's index, so that they do not depend on how the batch is split over devices.

    Args:
      rng: Random key of this step, the same for all parts of a batch.
      frames: Pairs of frames, floating-point `[b, 2, H, W, C]`.
      flow: True flow, `[b, H, W, 2]` in pixels.
      index: Place of each example in the global batch, uint32 `[b]`.
      share: Probability of a pair, 0..1.
      error: Standard deviation of the errors in pixels, on average: each pair's is between 0 and
        twice as much.

    Returns:
      The frames, and the flow from the first to the second, both of the shapes they had.
    """
    height, width = flow.shape[1:3]

    def cells(side: int) -> tuple[int, int, int]:  # the shape of a flow of such squares of pixels
        return -(-height // side), -(-width // side), 2

    def resized(values: jax.Array, side: int) -> jax.Array:
        return jax.image.resize(values, cells(side), 'linear')

    def look_up(values: jax.Array, flow: jax.Array) -> jax.Array:
        return warp(values[None], flow[None])[0]

    def refined(pair: jax.Array, flow: jax.Array, place: jax.Array):
        keys = jax.random.split(jax.random.fold_in(rng, place), 3)
        deviation = error * jax.random.uniform(keys[1], maxval=2.0)
        errors = deviation * jax.random.normal(keys[2], cells(_ERROR_CELL))
        rough = resized(resized(flow, _CELL), 1) + resized(errors, 1)
        rest = flow - rough
        for _ in range(_ITERATIONS):  # rest(x) + rough(x + rest(x)) = flow(x)
            rest = flow - look_up(rough, rest)
        is_warped = jax.random.uniform(keys[0]) < share
        warped = pair.at[1].set(look_up(pair[1], rough))
        return jnp.where(is_warped, warped, pair), jnp.where(is_warped, rest, flow)

    return jax.vmap(refined)(frames, flow, index)
