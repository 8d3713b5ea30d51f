import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.errors import Refused
from perceiver_jax.position_encoding import (
    LearnedPositions,
    fourier_features,
    grid_fourier_features,
    grid_positions,
    resample_positions,
)


def test_grid_positions_run_from_minus_one_to_one_along_every_axis():
    grid = grid_positions((3, 5))
    assert grid.shape == (3, 5, 2)
    np.testing.assert_allclose(grid[:, 0, 0], [-1, 0, 1])
    np.testing.assert_allclose(grid[1, :, 1], [-1, -0.5, 0, 0.5, 1])
    assert grid_positions((2, 3, 5)).shape == (2, 3, 5, 3)
    assert grid_positions((1,)) == -1


def test_fourier_features_by_hand():
    # Frequencies from 1 to mu / 2: 1 and 2 along the first axis, 1 and 3 along the other.
    features = fourier_features(np.array([[0.25, -0.5]]), 2, (4, 6))
    turns = np.array([1 * 0.25, 2 * 0.25, 1 * -0.5, 3 * -0.5])
    expected = [0.25, -0.5, *np.sin(np.pi * turns), *np.cos(np.pi * turns)]
    np.testing.assert_allclose(features, [expected], atol=1e-6)
    assert features.dtype == np.float32


def test_channels_of_the_papers():
    image = fourier_features(grid_positions((3, 3)), 64, (224, 224))
    points = fourier_features(np.zeros((5, 3)), 64, (2240, 2240, 2240))
    assert image.shape[-1] + 3 == 261
    assert points.shape[-1] == 387


def test_features_of_a_grid_are_exact_where_float32_is_not():
    positions = grid_positions((30_720,))
    features = fourier_features(positions, 192, (30_720,))
    expected = np.sin(np.pi * positions[:, 0].astype(np.longdouble) * (30_720 / 2))
    np.testing.assert_allclose(features[:, 192], expected.astype(np.float64), atol=1e-6)


def test_points_on_the_device_agree_with_the_host():
    points = np.random.default_rng(0).uniform(-1, 1, size=(2, 7, 3))
    host = fourier_features(points, 5, (20, 20, 20))
    device = jax.jit(lambda p: fourier_features(p, 5, (20, 20, 20)))(jnp.asarray(points))
    np.testing.assert_allclose(device, host, atol=1e-4)


def test_every_axis_needs_its_resolution():
    with pytest.raises(ValueError, match=r'\(224,\).* 2 axes'):
        fourier_features(grid_positions((3, 5)), 2, (224,))


SHAPE, RESOLUTION = (2, 3, 5), (4, 14, 26)


def test_features_of_a_grid_are_those_of_its_positions():
    expected = fourier_features(grid_positions(SHAPE), 7, RESOLUTION).reshape(30, -1)
    features = jax.jit(lambda: grid_fourier_features(SHAPE, 7, RESOLUTION))()
    np.testing.assert_array_equal(features, expected)
    elements = jnp.array([[29, 0], [7, 7]])
    some = grid_fourier_features(SHAPE, 7, RESOLUTION, elements=elements)
    np.testing.assert_array_equal(some, expected[elements])


def test_without_the_endpoint_an_element_stands_at_its_start():
    features = grid_fourier_features(SHAPE, 7, RESOLUTION, endpoint=False)
    np.testing.assert_allclose(features[22, :3], [0, -1 + 2 / 3, -1 + 4 / 5], atol=1e-6)


def test_features_of_a_large_grid_are_no_large_constant():
    program = jax.jit(lambda: grid_fourier_features((224, 224), 64, (224, 224))).lower()
    # 224 x 224 x 258 features would be some 100 MB of text; the tables are of 2 x 224 x 129.
    assert len(program.as_text()) < 2e6


def test_a_grid_needs_one_resolution_for_each_axis():
    with pytest.raises(ValueError, match=r'\(224,\).*2 axes.*\(3, 5\)'):
        grid_fourier_features((3, 5), 2, (224,))


def test_resampled_positions_stay_where_they_are_in_the_image():
    def ramp(height, width):  # the centre of each element, as parts of the image
        rows, columns = np.mgrid[:height, :width]
        return np.stack([(rows + 0.5) / height, (columns + 0.5) / width], -1).reshape(-1, 2)

    new = resample_positions(ramp(8, 6).astype(np.float32), (8, 6), (16, 12)).reshape(16, 12, 2)
    inner = (slice(4, -4), slice(4, -4))  # the border is extrapolated
    np.testing.assert_allclose(new[inner], ramp(16, 12).reshape(16, 12, 2)[inner], atol=1e-5)
    # Keys' cubic (a = -0.5) a quarter and three quarters of an element away from an impulse.
    impulse = np.array([0, 0, 1, 0, 0, 0], np.float32)[:, None]
    halves = np.asarray(resample_positions(impulse, (6,), (12,)))[:, 0]
    near, far = 1.5 / 4**3 - 2.5 / 4**2 + 1, 1.5 * 0.75**3 - 2.5 * 0.75**2 + 1
    np.testing.assert_allclose(halves[[4, 5, 3, 6]], [near, near, far, far], atol=1e-5)
    same = resample_positions(ramp(8, 6), (8, 6), (8, 6))
    np.testing.assert_allclose(same, ramp(8, 6), atol=1e-6)
    with pytest.raises(ValueError, match=r'48 positions of the grid \(8, 7\)'):
        resample_positions(ramp(8, 6), (8, 7), (16, 12))


def test_learned_positions_and_their_projection():
    def forward(project_to):
        return LearnedPositions(
            701, channels=13, init_std=1.0, project_to=project_to, name='positions'
        )()

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), 5)
    assert jax.tree.map(jnp.shape, params) == {
        'positions': {'positions': (701, 13)},
        'positions/projection': {'w': (13, 5), 'b': (5,)},
    }
    # Truncated at two deviations without correction: 0.88 of the deviation asked for remains.
    assert abs(params['positions']['positions'].std() - 0.88) < 0.02
    expected = params['positions']['positions'] @ params['positions/projection']['w']
    np.testing.assert_allclose(model.apply(params, None, 5), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.apply(params, None, None), params['positions']['positions'])


@pytest.mark.parametrize('x', [1.002, -1.5, 700_000.0, np.inf])
@pytest.mark.parametrize('xp', [np, jnp])
def test_known_positions_beyond_the_cube_are_refused(xp, x):
    """1.2 has the sines of -0.8 at every whole frequency."""
    positions = xp.array([[0.5, x]], 'float32')
    with pytest.raises(
        Refused, match=r'fourier_features takes positions within \[-1, 1\], and one'
    ):
        fourier_features(positions, 2, (4, 4))


def test_positions_at_the_edge_and_unknown_ones_are_not():
    edge = np.array([[-1.0009, 1.0], [0.5, 1.0005]], np.float32)
    assert fourier_features(edge, 2, (4, 4)).shape == (2, 10)
    assert fourier_features(jnp.asarray(edge), 2, (4, 4)).shape == (2, 10)
    assert fourier_features(edge[:0], 2, (4, 4)).shape == (0, 10)
    traced = jax.eval_shape(lambda x: fourier_features(9 * x, 2, (4, 4)), edge)
    assert traced.shape == (2, 10)


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: grid_positions(5), 'grid_positions takes shape as a size for each axis, not 5'),
        (lambda: grid_positions((5, 2.5)), r'shape\[1\] as an integer, not 2.5'),
        (lambda: grid_fourier_features(5, 2, (4,)), 'shape as a size for each axis, not 5'),
        (lambda: grid_fourier_features((5,), 2, 4), 'max_resolution 4 must have one entry'),
        (lambda: grid_fourier_features((5,), [2], (4,)), r'num_bands as an integer, not \[2\]'),
        (
            lambda: grid_fourier_features((5,), 2, (4,), elements=[0, 1]),
            'elements as an array, not as list',
        ),
        (
            lambda: grid_fourier_features((5,), 2, (4,), elements=np.ones(3)),
            'takes elements of an integer dtype, not float64',
        ),
        (lambda: fourier_features([[0.5]], 2, (4,)), 'positions as an array, not as list'),
        (lambda: fourier_features(np.float32(0.5), 2, (4,)), 'got a single number'),
        (lambda: fourier_features(np.ones((3, 2)), 2, 4), 'max_resolution 4 must .* the 2 axes'),
        (lambda: resample_positions(np.ones((4, 2)), 4, (8,)), 'grid as a size for each axis'),
        (lambda: resample_positions(np.ones((4, 2)), (4,), 8), 'new_grid as a size for each axis'),
        (lambda: resample_positions(np.ones(4), (4,), (8,)), r'positions \[M, C\]; got \(4,\)'),
    ],
)
def test_lists_and_single_numbers_are_refused(call, message):
    with pytest.raises(Refused, match=message):
        call()


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: grid_positions((10**5, 10**5)), 'the positions of the grid would take 160,000,'),
        (lambda: grid_fourier_features((10**9,), 0, (4,)), 'num_bands would take 24,000,000,000'),
        (
            lambda: grid_fourier_features((9, 9), 10**8, (4, 4)),
            'num_bands would take 43,200,000,216',
        ),
        (lambda: fourier_features(jnp.zeros((9, 2)), 10**8, (4, 4)), 'would take 1,600,000,000 by'),
    ],
)
def test_positions_that_fill_the_memory_are_refused(call, message):
    with pytest.raises(Refused, match=message):
        call()


def test_integer_positions_are_refused():
    for array in (np.ones((5, 3), int), jnp.ones((5, 3), jnp.int32)):
        with pytest.raises(Refused, match='fourier_features takes positions of a floating-point'):
            fourier_features(array, 2, (4, 4, 4))
        with pytest.raises(Refused, match='resample_positions takes positions of a floating-point'):
            resample_positions(array, grid=(5,), new_grid=(7,))
