import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import layers
from perceiver_jax.errors import Refused
from perceiver_jax.layers import LayerNorm, Mlp, normalise
from tests.toys.modules import random, run

B, T = 2, 5


def test_the_mlp_is_as_wide_as_its_factor_says():
    output, params = run(lambda: Mlp(3, name='mlp'), random(B, T, 5), is_training=False)
    assert output.shape == (B, T, 5)
    assert params['mlp/hidden']['w'].shape == (5, 15)


def test_a_linear_outside_attention_starts_as_in_haiku():
    _, params = run(lambda: layers.Linear(512, name='linear'), random(1, 512))
    w = np.asarray(params['linear']['w']) * np.sqrt(512)
    assert abs(w.std() - 0.8796) < 0.01  # truncated at two deviations, without correction
    assert np.abs(w).max() <= 2.001


def test_layer_norm_equals_numpy():
    x = random(3, 17)
    output, _ = run(LayerNorm, x)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_keeps_its_statistics_in_float32():
    # In bfloat16 all these numbers are 256 or 257 and nearly cancel.
    x = (256 + random(1, 64)).astype(jnp.bfloat16)
    output, _ = run(LayerNorm, jnp.asarray(x))
    assert output.dtype == jnp.bfloat16
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    np.testing.assert_allclose(np.asarray(output, np.float64)[0], expected[0], atol=0.02)


def test_the_gradient_of_a_norm_keeps_nothing_but_its_input():
    x = jnp.asarray(random(5, 17))
    kept = jax.tree.leaves(jax.vjp(normalise, x)[1])
    assert [k.shape for k in kept if k.ndim] == [x.shape]
    np.testing.assert_array_equal(kept[0], x)
    without_remat = layers._normalise
    assert len(jax.tree.leaves(jax.vjp(without_remat, x)[1])) > 1  # more would be kept


def test_the_gradient_of_a_norm_equals_a_difference():
    x = jnp.asarray(random(5, 17))
    _, pull = jax.vjp(lambda x: (normalise(x) ** 3).sum(), x)
    step = 1e-2 * random(5, 17, seed=1)
    moved = [(np.asarray(normalise(x + sign * step), float) ** 3).sum() for sign in (1, -1)]
    np.testing.assert_allclose((pull(1.0)[0] * step).sum(), (moved[0] - moved[1]) / 2, rtol=1e-2)


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'bool', 'complex64'])
@pytest.mark.parametrize(
    'layer, name', [(lambda: layers.Linear(3), 'linear'), (LayerNorm, 'layer_norm')]
)
def test_a_layer_takes_floating_point_numbers_alone(layer, name, dtype):
    with pytest.raises(Refused, match=f'{name} takes x of a floating-point .* not {dtype}'):
        run(layer, np.ones((2, 5), dtype))
