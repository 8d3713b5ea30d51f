import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.describe import count_flops
from perceiver_jax import folding
from perceiver_jax.attention import Attention, CrossAttend
from perceiver_jax.folding import cheapest_fold
from perceiver_jax.recording import record_attention
from tests.toys.modules import random, run

B = 2

# Rows, keys, channels of queries and of inputs, and which projections are folded.
FOLDS = [(5, 37, 8, 6, 'keys'), (37, 5, 6, 12, 'queries'), (7, 7, 6, 6, None)]


@pytest.mark.parametrize('rows, keys, channels_q, channels_kv, fold', FOLDS)
@pytest.mark.parametrize('mask_shape', [None, (B, 1, 'keys'), (B, 'rows', 1), (1, 'rows', 'keys')])
def test_folded_projections_change_nothing(rows, keys, channels_q, channels_kv, fold, mask_shape):
    sizes = dict(inputs_q=channels_q, inputs_kv=channels_kv, output=channels_q)
    assert cheapest_fold(rows=rows, keys=keys, **sizes, qk=channels_kv, v=channels_kv) == fold
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
    assert cheapest_fold(rows=rows, keys=keys, **sizes, qk=width, v=width) == fold


def test_folding_takes_the_operations_that_its_docstring_says():
    def operations(implementation):
        def forward(queries, inputs):
            module = Attention(
                1,
                qk_channels=261,
                v_channels=261,
                output_channels=1024,
                implementation=implementation,
            )
            return module(queries, inputs, is_training=False)

        model = hk.without_apply_rng(hk.transform(forward))
        arrays = [jax.ShapeDtypeStruct(s, 'float32') for s in ((1, 512, 1024), (1, 50_176, 261))]
        params = jax.eval_shape(model.init, jax.random.key(0), *arrays)
        return count_flops(model.apply, params, *arrays)

    billions = {i: round(operations(i) / 1e9) for i in ('auto', 'plain')}
    assert billions == {'auto': 28, 'plain': 41}
    assert '28 G instead of 41 G' in ' '.join(folding.__doc__.split())


def test_several_heads_are_not_folded():
    queries, inputs = random(B, 3, 4), random(B, 40, 6)
    heads_2 = run(lambda: CrossAttend(2), queries, inputs, is_training=False)[0]
    plain = run(lambda: CrossAttend(2, implementation='plain'), queries, inputs, is_training=False)
    np.testing.assert_allclose(heads_2, plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('rows, keys, fold', [(5, 37, 'keys'), (37, 5, 'queries')])
def test_attention_without_norms_is_folded_too(rows, keys, fold):
    sizes = dict(qk_channels=8, v_channels=8, output_channels=8)
    widths = dict(inputs_q=8, inputs_kv=8, qk=8, v=8, output=8)
    assert cheapest_fold(rows=rows, keys=keys, **widths) == fold
    arrays = random(B, rows, 8), random(B, keys, 8, seed=1)
    folded, _ = run(lambda: Attention(1, **sizes), *arrays, is_training=False)
    plain, _ = run(
        lambda: Attention(1, **sizes, implementation='plain'), *arrays, is_training=False
    )
    np.testing.assert_allclose(folded, plain, rtol=1e-4, atol=1e-5)
