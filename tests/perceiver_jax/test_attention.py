import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.describe import count_flops
from perceiver_jax import layers
from perceiver_jax.attention import Attention, CrossAttend, SelfAttend
from perceiver_jax.folding import cheapest_fold
from perceiver_jax.layers import LayerNorm, Mlp, normalise
from perceiver_jax.recording import record_attention

B, T, S, H, F, V = 2, 5, 7, 3, 11, 13


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run(make_module, *args, rng=None, **kwargs):
    """Initialises and applies a module; returns its output and parameters."""
    model = hk.transform(lambda *a: make_module()(*a, **kwargs))
    params = model.init(jax.random.key(0), *args)
    return model.apply(params, rng, *args), params


def shapes(params):
    return {
        f'{module}/{name}': value.shape
        for module, values in params.items()
        for name, value in values.items()
    }


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
    with pytest.raises(ValueError, match=r'qk_channels \(4\).*num_heads \(3\)'):
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


def test_the_mlp_is_as_wide_as_its_factor_says():
    output, params = run(lambda: Mlp(3, name='mlp'), random(B, T, 5), is_training=False)
    assert output.shape == (B, T, 5)
    assert params['mlp/hidden']['w'].shape == (5, 15)


def test_attention_weights_start_as_lecun_normal_and_biases_at_zero():
    _, params = run(lambda: SelfAttend(8, name='self'), random(1, 2, 512), is_training=False)
    w = np.asarray(params['self/attention/query']['w'])
    assert abs(w.std() * np.sqrt(512) - 1) < 0.01  # after the truncation
    assert np.abs(w).max() * np.sqrt(512) < 2 / 0.8796 + 0.01
    np.testing.assert_array_equal(params['self/attention/query']['b'], 0)


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


def test_attention_is_recorded_of_the_named_module_only():
    queries, inputs = random(B, T, 4), random(B, S, 6)

    def record(recorded):
        with record_attention(recorded) as weights:
            for name in ('first', 'second'):
                CrossAttend(name=name)(queries, inputs, is_training=False)
        return weights

    weights, _ = run(lambda: record, 'second')
    assert [w.shape for w in weights] == [(B, 1, T, S)]
    np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)
    assert run(lambda: record, 'econd')[0] == []


# Rows, keys, channels of queries and of inputs, and which projections are folded.
FOLDS = [(5, 37, 8, 6, 'keys'), (37, 5, 6, 12, 'queries'), (7, 7, 6, 6, None)]


@pytest.mark.parametrize('rows, keys, channels_q, channels_kv, fold', FOLDS)
@pytest.mark.parametrize('mask_shape', [None, (B, 1, 'keys'), (B, 'rows', 1), (1, 'rows', 'keys')])
def test_folded_projections_change_nothing(rows, keys, channels_q, channels_kv, fold, mask_shape):
    sizes = dict(inputs_q=channels_q, inputs_kv=channels_kv, output=channels_q)
    assert cheapest_fold(rows, keys, **sizes, qk=channels_kv, v=channels_kv) == fold
    queries, inputs = random(B, rows, channels_q), random(B, keys, channels_kv, seed=1)
    mask = None
    if mask_shape is not None:
        sides = [dict(rows=rows, keys=keys).get(n, n) for n in mask_shape]
        mask = jnp.asarray(np.random.default_rng(2).random(sides) < 0.5)
        mask = mask.at[:, 0].set(False) if mask_shape[1] == 'rows' else mask

    def build(implementation):
        def forward(queries, inputs):
            module = CrossAttend(implementation=implementation, name='look')
            with record_attention('look') as weights:
                return module(queries, inputs, mask, is_training=True), weights[0]

        return hk.without_apply_rng(hk.transform(forward))

    plain, folded = build('plain'), build('auto')
    params, same = (
        jax.jit(model.init)(jax.random.key(0), queries, inputs) for model in (plain, folded)
    )
    jax.tree.map(np.testing.assert_array_equal, params, same)
    rng = np.random.default_rng(3)  # biases and affines that are not zero and one
    params = jax.tree.map(lambda x: x + rng.normal(scale=0.3, size=x.shape).astype('f'), params)

    cotangents = random(B, rows, channels_q, seed=4), np.zeros((B, 1, rows, keys), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def outputs_and_gradients(apply, *arrays):
        outputs, pull = jax.vjp(apply, *arrays)
        return outputs, pull(cotangents)

    arrays = params, queries, inputs
    (expected, expected_weights), expected_gradients = outputs_and_gradients(plain.apply, *arrays)
    (output, weights), gradients = outputs_and_gradients(folded.apply, *arrays)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-3, atol=1e-5)

    def assert_close(x, y):
        assert np.linalg.norm(x - y) <= 1e-4 * (np.linalg.norm(y) + 1)

    jax.tree.map(assert_close, gradients, expected_gradients)


@pytest.mark.parametrize(
    'rows, keys, inputs_q, inputs_kv, width, fold',
    [
        (512, 50_176, 1024, 261, 261, 'keys'),  # the encoder of ImageNet
        (2048, 182_528, 512, 322, 322, 'keys'),  # of optical flow
        (182_528, 2048, 322, 512, 512, 'queries'),  # its decoder
        (1, 512, 1024, 1024, 1024, 'keys'),  # the query for a class
        (16_384, 784, 1026, 512, 512, 'queries'),  # that of video
    ],
)
def test_what_is_folded_in_the_papers_models(rows, keys, inputs_q, inputs_kv, width, fold):
    sizes = dict(inputs_q=inputs_q, inputs_kv=inputs_kv, output=inputs_q)
    assert cheapest_fold(rows, keys, **sizes, qk=width, v=width) == fold


def test_folding_takes_the_operations_that_its_docstring_says():
    def operations(implementation):
        def forward(queries, inputs):
            module = Attention(1, 261, 261, 1024, implementation=implementation)
            return module(queries, inputs, is_training=False)

        model = hk.without_apply_rng(hk.transform(forward))
        arrays = [jax.ShapeDtypeStruct(s, 'float32') for s in ((1, 512, 1024), (1, 50_176, 261))]
        params = jax.eval_shape(model.init, jax.random.key(0), *arrays)
        return count_flops(model.apply, params, *arrays)

    billions = {i: round(operations(i) / 1e9) for i in ('auto', 'plain')}
    assert billions == {'auto': 28, 'plain': 41}
    assert '28 G instead of 41 G' in cheapest_fold.__doc__


def test_several_heads_are_not_folded():
    queries, inputs = random(B, 3, 4), random(B, 40, 6)
    heads_2 = run(lambda: CrossAttend(2), queries, inputs, is_training=False)[0]
    plain = run(lambda: CrossAttend(2, implementation='plain'), queries, inputs, is_training=False)
    np.testing.assert_allclose(heads_2, plain[0], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_norm_keeps_nothing_but_its_input():
    x = jnp.asarray(random(5, 17))
    _, pull = jax.vjp(lambda x: (normalise(x) ** 3).sum(), x)
    step = 1e-2 * random(5, 17, seed=1)
    moved = [(np.asarray(normalise(x + sign * step), float) ** 3).sum() for sign in (1, -1)]
    np.testing.assert_allclose((pull(1.0)[0] * step).sum(), (moved[0] - moved[1]) / 2, rtol=1e-2)
