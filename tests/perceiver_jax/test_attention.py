import functools
import math
import re

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from perceiver_jax.attention import Attention, CrossAttend, SelfAttend
from perceiver_jax.errors import Refused
from perceiver_jax.grids import fourier_grid
from tests.toys.modules import random, run, shapes

pytestmark = pytest.mark.gpu
B, T, S, H, F, V = 2, 5, 7, 3, 11, 13


def test_cross_attend_parameters_have_guessable_names():
    queries, inputs = random(B, T, 4), random(B, S, 6)
    output, params = run(lambda: CrossAttend(name='look'), queries, inputs, is_training=False)
    assert output.shape == queries.shape
    assert shapes(params) == {
        'look/norm_queries/scale': (4,),
        'look/norm_queries/offset': (4,),
        'look/norm_inputs/scale': (6,),
        'look/norm_inputs/offset': (6,),
        'look/attention/query/w': (4, 6),  # as wide as the inputs
        'look/attention/query/b': (6,),
        'look/attention/key/w': (6, 6),
        'look/attention/key/b': (6,),
        'look/attention/value/w': (6, 6),
        'look/attention/value/b': (6,),
        'look/attention/output/w': (6, 4),
        'look/attention/output/b': (4,),
        'look/norm_mlp/scale': (4,),
        'look/norm_mlp/offset': (4,),
        'look/mlp/hidden/w': (4, 4),
        'look/mlp/hidden/b': (4,),
        'look/mlp/output/w': (4, 4),
        'look/mlp/output/b': (4,),
    }


def test_self_attend_parameters_have_guessable_names():
    output, params = run(lambda: SelfAttend(2, name='self'), random(B, T, 4), is_training=False)
    assert output.shape == (B, T, 4)
    assert set(params) == {
        'self/norm_attention',
        'self/attention/query',
        'self/attention/key',
        'self/attention/value',
        'self/attention/output',
        'self/norm_mlp',
        'self/mlp/hidden',
        'self/mlp/output',
    }


def test_query_key_and_value_widths_are_separate():
    _, params = run(
        lambda: Attention(3, qk_channels=6, v_channels=9, output_channels=5, name='attention'),
        random(B, T, 4),
        random(B, S, 7),
        is_training=False,
    )
    weights = {k: v for k, v in shapes(params).items() if k.endswith('/w')}
    assert weights == {
        'attention/query/w': (4, 6),
        'attention/key/w': (7, 6),
        'attention/value/w': (7, 9),
        'attention/output/w': (9, 5),
    }


def test_heads_must_divide_the_channels():
    with pytest.raises(
        ValueError, match='attention.num_heads is 3 and must divide qk_channels, .* 4'
    ):
        run(lambda: SelfAttend(3), random(B, T, 4), is_training=False)


def test_the_query_residual_adds_the_queries():
    queries, inputs = random(B, T, 4), random(B, S, 6)
    with_residual = run_without_mlp(True, queries, inputs)
    without = run_without_mlp(False, queries, inputs)
    np.testing.assert_allclose(with_residual - without, queries, atol=1e-6)


def run_without_mlp(residual, queries, inputs):
    """[queries +] attention: the cross-attend with the weights of its MLP at zero."""
    model = hk.transform(lambda *a: CrossAttend(use_query_residual=residual)(*a, is_training=False))
    params = model.init(jax.random.key(0), queries, inputs)
    params = {k: jax.tree.map(jnp.zeros_like, v) if '/mlp/' in k else v for k, v in params.items()}
    return model.apply(params, None, queries, inputs)


def test_attention_weights_start_as_lecun_normal_and_biases_at_zero():
    _, params = run(lambda: SelfAttend(8, name='self'), random(1, 2, 512), is_training=False)
    w = np.asarray(params['self/attention/query']['w'])
    assert abs(w.std() * np.sqrt(512) - 1) < 0.01  # after the truncation
    assert np.abs(w).max() * np.sqrt(512) < 2 / 0.8796 + 0.01
    np.testing.assert_array_equal(params['self/attention/query']['b'], 0)


def test_dropout_needs_a_key_only_where_it_drops():
    x = random(B, 64, 4)

    def apply(rate, is_training, rng):
        model = hk.transform(lambda x: SelfAttend(2, dropout_rate=rate)(x, is_training=is_training))
        return model.apply(model.init(jax.random.key(0), x), rng, x)

    evaluated = apply(0.5, False, None)
    np.testing.assert_array_equal(apply(0.0, True, None), evaluated)
    assert np.abs(apply(0.5, True, jax.random.key(1)) - evaluated).max() > 0.01
    with pytest.raises(ValueError, match='PRNGKey'):
        apply(0.5, True, None)


@pytest.mark.parametrize('num_heads', [1, 2])
@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked'])
def test_without_inputs_queries_are_as_if_all_inputs_were_masked(num_heads, implementation):
    queries, inputs = random(2, 5, 8), random(2, 7, 4)
    model = hk.transform(
        lambda inputs, mask=None: CrossAttend(num_heads, implementation=implementation)(
            queries, inputs, mask, is_training=False
        )
    )
    params = jax.tree.map(lambda x: x + 0.3, model.init(jax.random.key(0), inputs))
    output = model.apply(params, None, inputs[:, :0])
    expected = model.apply(params, None, inputs, np.zeros((2, 1, 7), bool))
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('queries, inputs', [((5, 8), (37, 6)), ((37, 6), (5, 12))])
@pytest.mark.parametrize('implementation', ['auto', 'plain'])
def test_nothing_that_is_masked_reaches_outputs_or_gradients(queries, inputs, implementation):
    queries, inputs = random(2, *queries), random(2, *inputs, seed=1)
    mask = np.arange(inputs.shape[1]) % 3 > np.array([[0], [1]])
    spoilt = np.where(mask[..., None], inputs, np.nan).astype(np.float32)
    model = hk.without_apply_rng(
        hk.transform(lambda *x: CrossAttend(implementation=implementation)(*x, is_training=True))
    )
    params = model.init(jax.random.key(0), queries, inputs)

    @jax.jit
    def output_and_gradients(inputs):
        apply = lambda *x: model.apply(*x, mask[:, None])  # noqa: E731
        output, pull = jax.vjp(apply, params, queries, inputs)
        return output, pull(output)

    expected = output_and_gradients(inputs)
    assert np.isfinite(expected[0]).all()
    jax.tree.map(np.testing.assert_array_equal, output_and_gradients(spoilt), expected)


@pytest.mark.parametrize('integer', [0, 1])
def test_integer_inputs_are_refused(integer):
    arrays = [random(2, 5, 8), random(2, 7, 4)]
    arrays[integer] = arrays[integer].astype(np.int32)
    name = ('queries', 'inputs')[integer]
    with pytest.raises(Refused, match=f'cross_attend takes {name} of a floating-point .* int32'):
        run(CrossAttend, *arrays, is_training=False)
    name = ('inputs_q', 'inputs_kv')[integer]
    with pytest.raises(Refused, match=f'attention takes {name} of a floating-point .* int32'):
        run(
            lambda: Attention(2, qk_channels=4, v_channels=4, output_channels=8),
            *arrays,
            is_training=False,
        )
    with pytest.raises(Refused, match='self_attend takes x of a floating-point'):
        run(SelfAttend, np.ones((2, 5, 8), int), is_training=False)


def kept(module, capsys, *arrays):
    """Shapes of what the gradient of a module keeps, but parameters and a number for each row."""
    model = hk.without_apply_rng(hk.transform(lambda *x: module(name='m')(*x, is_training=True)))
    params = jax.eval_shape(model.init, jax.random.key(0), *arrays)
    print_saved_residuals(model.apply, params, *arrays)
    lines = [re.match(r'\w+\[([\d,]*)\]', line) for line in capsys.readouterr().out.splitlines()]
    shapes = [tuple(int(n) for n in line[1].split(',')) for line in lines if line and line[1]]
    return [x for x in shapes if x[0] in (B, B * T) and x[-1] > 1]


def test_a_self_attend_keeps_seven_arrays(capsys):
    x = jax.ShapeDtypeStruct((B, T, 6), jnp.bfloat16)
    shapes = kept(functools.partial(SelfAttend, num_heads=3), capsys, x)
    # Its input, what it adds the MLP to, the hidden layer; queries, keys, values, their average.
    assert sorted(shapes) == [(B, T, 3, 2)] * 4 + [(B, T, 6)] * 3


def test_a_cross_attend_keeps_its_inputs_once(capsys):
    queries, inputs = (jax.ShapeDtypeStruct(x, jnp.bfloat16) for x in ((B, T, 6), (B, 2 * S, 3)))
    sizes = [math.prod(x) for x in kept(CrossAttend, capsys, queries, inputs)]
    assert sizes.count(B * 2 * S * 3) == 1
    assert sizes.count(B * T * 6) == 3  # the queries, what it adds the MLP to, the hidden layer
    assert sizes.count(B * T * 3) == 5  # queries, those in front of the inputs, averages, values
    assert len(sizes) == 9


def test_a_cross_attend_to_a_grid_keeps_its_contents_once(capsys):
    queries = jax.ShapeDtypeStruct((B, T, 6), jnp.bfloat16)
    grid = jax.eval_shape(
        lambda x: fourier_grid(x, 1, (4, 4)), jax.ShapeDtypeStruct((B, 4, 4, 8), jnp.bfloat16)
    )
    shapes = kept(CrossAttend, capsys, queries, grid)
    assert shapes.count((B, 4, 4, 8)) == 1
