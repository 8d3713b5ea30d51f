import dataclasses

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.encoder import Encoder
from perceiver_jax.errors import Refused
from perceiver_jax.grids import FourierGrid, fourier_grid, fourier_positions, permutation
from perceiver_jax.position_encoding import fourier_features, grid_positions
from tests.toys.modules import random

pytestmark = pytest.mark.gpu


def test_a_grid_written_out_is_contents_and_then_features():
    contents = random(2, 3, 4, 5, 6)
    grid = fourier_grid(contents, 2, (3, 4, 5))
    features = fourier_features(grid_positions((3, 4, 5)), 2, (3, 4, 5)).reshape(60, 15)
    assert grid.shape == (2, 60, 21) and grid.ndim == 3 and grid.dtype == jnp.float32
    array = grid.array()
    np.testing.assert_array_equal(array[..., :6], contents.reshape(2, 60, 6))
    np.testing.assert_array_equal(array[1, :, 6:], features)
    narrow = dataclasses.replace(grid, contents=contents.astype(jnp.bfloat16)).array()
    np.testing.assert_array_equal(narrow, array.astype(jnp.bfloat16))
    shuffled = dataclasses.replace(grid, permutation_seed=7).array()
    np.testing.assert_array_equal(shuffled, array[:, permutation(7, 60)])


def test_some_rows_of_a_grid_and_what_all_elements_share():
    grid = fourier_grid(random(2, 3, 4, 5, 0), 2, (3, 4, 5))
    common, rows = random(7, seed=1), jnp.array([11, 2])
    array = dataclasses.replace(grid, common=common).array()
    np.testing.assert_array_equal(array[..., :15], grid.array())
    np.testing.assert_array_equal(array[1, 4, 15:], common)
    contents = jnp.zeros((2, 2, 5, 0))
    some = dataclasses.replace(grid, contents=contents, common=common, rows=rows)
    assert some.shape == (2, 10, 22)
    of_rows = array.reshape(2, 12, 5, 22)[:, rows]
    np.testing.assert_array_equal(some.array(), of_rows.reshape(2, 10, 22))


def test_a_grid_is_a_pytree_of_its_arrays():
    grid = fourier_grid(random(2, 3, 4, 6), 2, (3, 4), permutation_seed=7)
    (contents,), structure = jax.tree.flatten(grid)
    assert contents is grid.contents and hash(structure) == hash(jax.tree.structure(grid))
    doubled = jax.jit(lambda grid: jax.tree.map(lambda x: 2 * x, grid))(grid)
    assert isinstance(doubled, FourierGrid) and doubled.positions == grid.positions
    np.testing.assert_array_equal(doubled.array()[..., :6], 2 * grid.array()[..., :6])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (((3, 4), 2, (3, 4, 5)), r'max_resolution \(3, 4, 5\) .* the 2 axes of the grid \(3, 4\)'),
        (((3, 4), 2.5, (3, 4)), 'num_bands as an integer, not 2.5'),
        (((3, 4), 10**9, (3, 4)), 'Fourier features with these num_bands would take'),
    ],
)
def test_positions_that_do_not_fit_a_grid_are_refused(arguments, message):
    with pytest.raises(Refused, match=message):
        fourier_positions(*arguments)


def test_contents_that_are_no_grid_are_refused():
    with pytest.raises(Refused, match='fourier_grid takes contents of a floating-point dtype'):
        fourier_grid(jnp.ones((2, 3, 4, 5), int), 2, (3, 4))
    with pytest.raises(Refused, match=r'contents \[B, \*grid, C\]; got \(2, 3\)'):
        fourier_grid(jnp.ones((2, 3)), 2, ())
    grid = fourier_grid(jnp.ones((2, 3, 4, 5)), 2, (3, 4))
    other = dataclasses.replace(grid, contents=jnp.ones((2, 4, 3, 5)))
    with pytest.raises(Refused, match=r'\[B, \*\(3, 4\), C\]; got \(2, 4, 3, 5\)'):
        hk.transform(lambda: Encoder()(other, is_training=False)).init(jax.random.key(0))
