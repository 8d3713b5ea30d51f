import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perceiver_jax.decoder import (
    AverageDecoder,
    ClassQueryDecoder,
    FlowUpsample,
    QueryDecoder,
    decode_in_chunks,
)
from perceiver_jax.errors import Refused
from perceiver_jax.recording import record_attention

pytestmark = pytest.mark.gpu
B, N, D, NUM_QUERIES, E = 2, 5, 8, 3, 6
LATENTS = np.random.default_rng(0).normal(size=(B, N, D)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(B, NUM_QUERIES, E)).astype(np.float32)


def test_average_decoder_projects_the_mean_and_starts_at_zero():
    model = hk.transform(lambda x: AverageDecoder(7, name='decoder')(x))
    params = model.init(jax.random.key(0), LATENTS)
    np.testing.assert_array_equal(model.apply(params, None, LATENTS), np.zeros((B, 7)))
    w = np.random.default_rng(2).normal(size=(D, 7)).astype(np.float32)
    params = {'decoder/output': {'w': w, 'b': np.ones(7, np.float32)}}
    expected = LATENTS.mean(1) @ w + 1
    np.testing.assert_allclose(model.apply(params, None, LATENTS), expected, rtol=1e-5, atol=1e-5)


def decode(**fields):
    def forward(queries, latents, mask=None):
        return QueryDecoder(7, **fields, name='decoder')(queries, latents, mask, is_training=False)

    return hk.transform(forward)


def test_queries_decode_independently_of_each_other():
    model = decode()
    params = model.init(jax.random.key(0), QUERIES, LATENTS)
    output = model.apply(params, None, QUERIES, LATENTS)
    assert output.shape == (B, NUM_QUERIES, 7)
    one = model.apply(params, None, QUERIES[:, 1:2], LATENTS)
    np.testing.assert_allclose(output[:, 1:2], one, atol=1e-5)


def test_the_output_layer_can_start_at_zero():
    model = decode(zero_init_output=True)
    params = model.init(jax.random.key(0), QUERIES, LATENTS)
    np.testing.assert_array_equal(model.apply(params, None, QUERIES, LATENTS), 0)


def test_a_masked_query_looks_at_nothing():
    model = decode(cross_attend=dict(use_query_residual=False))
    params = model.init(jax.random.key(0), QUERIES, LATENTS)
    mask = jnp.ones((B, NUM_QUERIES), bool).at[0, 1].set(False)
    output = model.apply(params, None, QUERIES, LATENTS, mask)
    other = model.apply(params, None, QUERIES, 2 - LATENTS**2, mask)
    np.testing.assert_allclose(output[0, 1], other[0, 1], atol=1e-6)
    assert np.abs(output[0, 0] - other[0, 0]).max() > 1e-3


def test_class_query_decoder_has_one_learned_query():
    model = hk.transform(
        lambda x: ClassQueryDecoder(7, query_channels=E, name='decoder')(x, is_training=False)
    )
    params = model.init(jax.random.key(0), LATENTS)
    assert params['decoder']['query'].shape == (1, E)
    assert params['decoder/query_decoder/output']['w'].shape == (E, 7)
    assert model.apply(params, None, LATENTS).shape == (B, 7)


def test_without_an_output_layer_the_outputs_are_as_wide_as_the_queries():
    def forward(queries, latents):
        return QueryDecoder(None, name='decoder')(queries, latents, is_training=False)

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), QUERIES, LATENTS)
    assert 'decoder/output' not in params
    assert model.apply(params, None, QUERIES, LATENTS).shape == QUERIES.shape


@pytest.mark.parametrize('module', [QueryDecoder, ClassQueryDecoder])
@pytest.mark.parametrize('field', ['num_head', 'implementation', 'name'])
def test_unknown_fields_of_attention_are_named(module, field):
    model = hk.transform(lambda: module(7, cross_attend={field: 1}))
    with pytest.raises(Refused, match=f"CrossAttend has no field '{field}'.*known: num_heads, qk"):
        model.init(None)


@pytest.mark.parametrize('module, arrays', [(QueryDecoder, 2), (ClassQueryDecoder, 1)])
def test_heads_that_do_not_divide_are_named_as_the_decoders_field(module, arrays):
    def forward(*arrays):
        fields = dict(cross_attend=dict(num_heads=LATENTS.shape[-1] + 1))
        return module(7, **fields, name='decoder')(*arrays, is_training=False)

    with pytest.raises(Refused, match='^decoder.cross_attend.num_heads is .* must divide qk_chann'):
        hk.transform(forward).init(None, *(QUERIES, LATENTS)[-arrays:])


@pytest.mark.parametrize('chunk_size', [1, 2, 3, 7, None])
def test_chunks_decode_to_the_same(chunk_size):
    def forward(latents, chunk_size):
        decoder = QueryDecoder(7, name='decoder')

        def decode(which):
            queries = jnp.asarray(QUERIES)[:, which]
            return decoder(queries, latents, is_training=False)

        with record_attention('decoder/cross_attend') as weights:
            outputs = decode_in_chunks(decode, NUM_QUERIES, chunk_size)
        return outputs, weights

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), LATENTS, chunk_size)
    whole, weights = model.apply(params, None, LATENTS, None)
    assert [x.shape for x in weights] == [(B, 1, NUM_QUERIES, N)]
    outputs, weights = model.apply(params, None, LATENTS, chunk_size)
    assert len(weights) == (chunk_size in (3, 7, None))  # nothing of a loop's iterations
    np.testing.assert_allclose(outputs, whole, atol=1e-5)


def test_flow_is_upsampled_by_weights_over_nine_cells():
    features = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    model = hk.transform(lambda x: FlowUpsample(2, name='upsampling')(x))
    params = model.init(jax.random.key(0), features)
    full = model.apply(params, None, features)
    assert full.shape == (2, 6, 10, 2)
    w = {name: params[f'upsampling/{name}']['w'] for name in ('flow', 'weights')}
    flow = np.pad(features @ w['flow'], ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
    logits = (features @ w['weights']).reshape(2, 3, 5, 2, 2, 9)
    for row, column, y, x in ((0, 0, 0, 1), (1, 3, 1, 0), (2, 4, 1, 1)):
        weights = np.exp(logits[1, row, column, y, x])
        around = flow[1, row : row + 3, column : column + 3].reshape(9, 2)
        expected = (weights / weights.sum()) @ around
        np.testing.assert_allclose(full[1, 2 * row + y, 2 * column + x], expected, rtol=1e-4)


@pytest.mark.parametrize(
    'make, arrays, name',
    [
        (lambda: AverageDecoder(7), (LATENTS.astype(int),), 'AverageDecoder takes latents'),
        (lambda: ClassQueryDecoder(7), (LATENTS.astype(int),), 'ClassQueryDecoder takes latents'),
        (lambda: QueryDecoder(7), (QUERIES, LATENTS.astype(int)), 'QueryDecoder takes latents'),
        (lambda: QueryDecoder(7), (QUERIES.astype(int), LATENTS), 'QueryDecoder takes queries'),
        (lambda: FlowUpsample(2), (np.ones((1, 3, 4, 5), int),), 'FlowUpsample takes features'),
    ],
)
def test_integers_are_refused(make, arrays, name):
    how = {} if name.startswith(('Average', 'Flow')) else dict(is_training=False)
    with pytest.raises(Refused, match=f'{name} of a floating-point dtype, .* not int'):
        hk.transform(lambda *x: make()(*x, **how)).init(jax.random.key(0), *arrays)


@pytest.mark.parametrize(
    'make, arrays, message',
    [
        (
            lambda: QueryDecoder(7),
            (QUERIES[0], LATENTS),
            r'QueryDecoder takes queries \[B, O, E\] and latents \[B, N, D\]; got \(',
        ),
        (lambda: QueryDecoder(7), (QUERIES[:1], LATENTS), r'latents \[B, N, D\]; got \(1, '),
        (lambda: QueryDecoder(7), (QUERIES, LATENTS, QUERIES[0] > 0), r'query_mask \[B, O\]; got'),
        (lambda: QueryDecoder(7), (QUERIES.tolist(), LATENTS), 'queries as an array, not as list'),
        (lambda: QueryDecoder(7), (QUERIES, LATENTS.tolist()), 'latents as an array, not as list'),
        (
            lambda: ClassQueryDecoder(7),
            (LATENTS[0],),
            r'ClassQueryDecoder takes latents \[B, N, D\]',
        ),
        (
            lambda: AverageDecoder(7),
            (LATENTS[0],),
            r'AverageDecoder takes latents \[B, N, D\]; got',
        ),
        (lambda: FlowUpsample(2), (LATENTS,), r'takes features \[B, rows, columns, C\]; got'),
    ],
)
def test_other_axes_are_refused_in_the_words_of_the_module(make, arrays, message):
    how = {} if 'Average' in message or 'features' in message else dict(is_training=False)
    with pytest.raises(Refused, match=message):
        hk.transform(lambda: make()(*arrays, **how)).init(jax.random.key(0))


@pytest.mark.parametrize('chunk_size', [None, 2])
def test_an_empty_batch_gives_empty_outputs(chunk_size):
    def forward(latents):
        decoder = QueryDecoder(7, name='decoder')

        def decode(which):
            queries = jnp.asarray(QUERIES)[:1, which]
            queries = jnp.broadcast_to(queries, (len(latents), len(which), E))
            return decoder(queries, latents, is_training=False)

        cells = jnp.broadcast_to(latents[:, :1, None], (len(latents), 3, 4, D))
        return (
            decode_in_chunks(decode, NUM_QUERIES, chunk_size),
            AverageDecoder(7)(latents),
            ClassQueryDecoder(7)(latents, is_training=False),
            FlowUpsample(2)(cells),
        )

    model = hk.transform(forward)
    params = model.init(jax.random.key(0), LATENTS)
    outputs = model.apply(params, None, LATENTS[:0])
    assert [x.shape for x in outputs] == [(0, NUM_QUERIES, 7), (0, 7), (0, 7), (0, 6, 8, 2)]
