import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax import attention
from perceiver_jax.attention import (
    Attention,
    CrossAttend,
    LayerNorm,
    Mlp,
    SelfAttend,
    attend,
    record_attention,
)

B, T, S, H, F, V = 2, 5, 7, 3, 11, 13


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def attend_one(query, key, value, mask):
    """One head of one example, by loops: [T, F], [S, F], [S, V], [T, S] -> [T, V]."""
    output = np.zeros((len(query), value.shape[1]))
    for t, q in enumerate(query.astype(np.float64)):
        visible = [s for s in range(len(key)) if mask[t, s]]
        scores = np.array([np.exp(q @ key[s] / np.sqrt(len(q))) for s in visible])
        for score, s in zip(scores, visible, strict=True):
            output[t] += score / scores.sum() * value[s]
    return output


@pytest.mark.parametrize('mask_shape', [None, (B, T, S), (B, 1, S), (1, T, S), (B, T, 1)])
def test_attend_equals_a_loop(mask_shape):
    query, key, value = random(B, T, H, F), random(B, S, H, F, seed=1), random(B, S, H, V, seed=2)
    mask = None
    if mask_shape is not None:
        mask = np.random.default_rng(3).random(mask_shape) < 0.6
    full = np.broadcast_to(True if mask is None else mask, (B, T, S))
    expected = np.stack(
        [
            np.stack(
                [
                    attend_one(query[b, :, h], key[b, :, h], value[b, :, h], full[b])
                    for h in range(H)
                ],
                axis=1,
            )
            for b in range(B)
        ]
    )
    output = attend(query, key, value, mask if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_may_look_at_nothing_gives_zeros_and_finite_gradients():
    query, key, value = random(B, T, H, F), random(B, S, H, F), random(B, S, H, V)
    mask = jnp.ones((B, T, S), bool).at[0, 2].set(False)

    def total(*qkv):
        output = attend(*qkv, mask)
        return output.sum(), output

    gradients, output = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(query, key, value)
    np.testing.assert_array_equal(output[0, 2], 0)
    assert np.abs(output[0, 1]).min() > 0
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[0][0, 2], 0)


@pytest.mark.parametrize(
    'shapes',
    [
        ((B, T, F), (B, S, F), (B, S, F), None),
        ((B, T, H, F), (B, S, H, F + 1), (B, S, H, V), None),
        ((B, T, H, F), (B, S, H, F), (B, S + 1, H, V), None),
        ((B, T, H, F), (B, S, H, F), (B, S, H, V), (B, S)),
        ((B, T, H, F), (B, S, H, F), (B, S, H, V), (B, T, S + 1)),
    ],
)
def test_shapes_that_do_not_fit_are_shown(shapes):
    arrays = [None if s is None else jnp.zeros(s) for s in shapes]
    with pytest.raises(ValueError, match=r'\(2, '):
        attend(*arrays)


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
    _, params = run(lambda: attention.Linear(512, name='linear'), random(1, 512))
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


def test_the_softmax_is_float32_in_bfloat16():
    query, key = (jnp.asarray(random(B, T, H, F, seed=i)).astype(jnp.bfloat16) for i in (0, 1))
    weights = attention.attention_weights(query, key)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


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
