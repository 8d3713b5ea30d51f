"""CutMix of pairs of point clouds, computed on the accelerator."""

import jax
import jax.numpy as jnp


def mix_clouds(
    rng: jax.Array,
    clouds: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    num_classes: int,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Makes one training cloud of each pair: some points of the first, the others of the second.

    The share of the first is from Beta(alpha, alpha), rounded to whole points, and is the weight of
    its label. Random numbers are derived from each example's index, so that they do not depend on
    how the batch is split over devices.

    Args:
      rng: Random key of this step, the same for all parts of a batch.
      clouds: Pairs of clouds, whose points are in random order, `[b, 2, P, 3]`.
      labels: Labels of the clouds, int `[b, 2]`, 0 <= label < num_classes.
      index: Place of each example in the global batch, uint32 `[b]`.
      num_classes: Number K of classes.
      alpha: Both parameters of the Beta distribution.

    Returns:
      Clouds `[b, P, 3]`, and label distributions, float32 `[b, K]`.

    Source: PointCutMix-R (Zhang et al., 2021), without its assignment of points to one another.
    """
    num_points = clouds.shape[2]

    def mix(pair: jax.Array, pair_labels: jax.Array, place: jax.Array):
        share = jax.random.beta(jax.random.fold_in(rng, place), alpha, alpha)
        count = jnp.rint(share * num_points).astype(jnp.int32)
        is_first = jnp.arange(num_points) < count
        # The second cloud's points from its first on: those at the end may be repetitions.
        others = jnp.roll(pair[1], count, axis=0)
        weight = count / num_points
        first, second = jax.nn.one_hot(pair_labels, num_classes)
        return (
            jnp.where(is_first[:, None], pair[0], others),
            weight * first + (1 - weight) * second,
        )

    return jax.vmap(mix)(clouds, labels, index)
