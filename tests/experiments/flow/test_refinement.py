import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.flow.refinement import warp_by_rough_flow
from perceiver_jax.tiling import coarse_to_fine, warp

B, SIZE = 64, (56, 72)
warped = jax.jit(warp_by_rough_flow, static_argnames=('share', 'error'))


def pairs(speed=3.0):
    """Pairs of smooth frames, and smooth flow; the second frames have nothing to do with it."""
    rng = np.random.default_rng(0)
    frames = jax.image.resize(rng.normal(size=(B, 2, 3, 4, 3)), (B, 2, *SIZE, 3), 'cubic')
    flow = jax.image.resize(speed * rng.normal(size=(B, 2, 3, 2)), (B, *SIZE, 2), 'cubic')
    return frames, flow, np.arange(B, dtype=np.uint32)


def inner(x):  # warping replicates the rim
    return np.asarray(x)[:, 20:-20, 20:-20]


@pytest.mark.parametrize('error', [0.0, 2.0])
def test_what_is_left_leads_to_where_the_flow_leads(error):
    frames, flow, index = pairs()
    pair, rest = warped(jax.random.key(0), frames, flow, index, share=1.0, error=error)
    np.testing.assert_array_equal(pair[:, 0], frames[:, 0])
    np.testing.assert_allclose(
        inner(warp(pair[:, 1], rest)), inner(warp(frames[:, 1], flow)), atol=0.15
    )
    # As long as its errors, whose deviation is between 0 and 4 pixels.
    lengths = np.abs(inner(rest)).mean((1, 2, 3))
    assert lengths.max() < (0.5 if error == 0 else 8) and inner(flow).std() > 1.5
    if error:
        assert np.percentile(lengths, [10, 90]).tolist() == pytest.approx([0.3, 2.6], rel=0.5)


def test_the_refinement_of_what_is_left_is_the_flow():
    """`coarse_to_fine` adds to a constant flow what the model tells of the warped pair."""
    frames, _, index = pairs()
    flow = jnp.broadcast_to(jnp.asarray([2.0, -1.0]), (B, *SIZE, 2))
    pair, rest = warped(jax.random.key(0), frames, flow, index, share=1.0, error=0.0)
    np.testing.assert_allclose(rest, 0, atol=1e-5)
    seen = []

    def estimate(frames, place):
        seen.append(frames)
        return flow if place == 0 else rest

    np.testing.assert_allclose(coarse_to_fine(estimate, frames, (1, 1)), flow, atol=1e-5)
    np.testing.assert_allclose(seen[1], pair, atol=1e-5)


def test_the_share_of_the_pairs_and_the_split_of_the_batch():
    frames, flow, index = pairs()
    pair, rest = warped(jax.random.key(0), frames, flow, index, share=0.25, error=2.0)
    left = (np.asarray(rest) == flow).all((1, 2, 3))
    assert 0.1 < (~left).mean() < 0.4
    np.testing.assert_array_equal(pair[left], frames[left])
    rows = slice(3, 9)
    part = warped(jax.random.key(0), frames[rows], flow[rows], index[rows], share=0.25, error=2.0)
    for got, want in zip(part, (pair[rows], rest[rows]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
