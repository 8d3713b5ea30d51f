import functools

import haiku as hk
import jax
import numpy as np
import pytest

from perceiver_jax.attention import CrossAttend, SelfAttend
from perceiver_jax.decoder import QueryDecoder
from perceiver_jax.encoder import Encoder
from perceiver_jax.grids import fourier_grid
from perceiver_jax.recording import record_attention
from tests.toys.modules import random, run

B, T, S = 2, 5, 7
LOWEST = np.finfo(np.float32).min
ENCODER = dict(num_latents=T, latent_channels=16, num_blocks=1, num_self_attends_per_block=1)
GRID = functools.partial(
    fourier_grid, num_bands=2, max_resolution=(5, 7), permutation_seed=0
)  # of contents [B, 5, 7, 3]


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


def recorded(forward, name, *arrays):
    """Weights and logits of one module, and the parameters: biases and affines at random too."""

    def both(*arrays):
        with record_attention(name) as weights, record_attention(name, logits=True) as logits:
            forward(*arrays)
        return weights[0], logits[0]

    model = hk.without_apply_rng(hk.transform(both))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *arrays)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype('f'), shapes)
    return *jax.jit(model.apply)(params, *arrays), params


def by_hand(params, name, queries, inputs, num_heads, norms=('norm_queries', 'norm_inputs')):
    """Normalises and projects both sides, and multiplies them."""

    def heads(x, norm, projection):
        norm, projection = params[f'{name}/{norm}'], params[f'{name}/attention/{projection}']
        x = np.asarray(x, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = (x * norm['scale'] + norm['offset']) @ projection['w'] + projection['b']
        return x.reshape(*x.shape[:2], num_heads, -1)

    queries, keys = heads(queries, norms[0], 'query'), heads(inputs, norms[1], 'key')
    return np.einsum('bthf,bshf->bhts', queries, keys) / np.sqrt(keys.shape[-1])


def assert_logits(logits, weights, expected):
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logits), weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('on_a_grid', [True, False])
@pytest.mark.parametrize('implementation', ['auto', 'plain', 'chunked', 'pallas'])
def test_logits_of_an_encoder(on_a_grid, implementation):
    contents = random(B, 5, 7, 3)
    array = GRID(contents).array()
    name = 'encoder/cross_attend_1'

    def forward(x):
        encoder = Encoder(**ENCODER, implementation=implementation)
        return encoder(GRID(x) if on_a_grid else x, is_training=False)

    weights, logits, params = recorded(forward, name, contents if on_a_grid else array)
    latents = np.broadcast_to(params['encoder']['latents'], (B, T, 16))
    assert_logits(logits, weights, by_hand(params, name, latents, array, num_heads=1))


def test_logits_of_several_heads():
    x = random(B, T, 12)

    def forward(x):
        return SelfAttend(3, name='look')(x, is_training=False)

    weights, logits, params = recorded(forward, 'look', x)
    norms = ['norm_attention'] * 2
    assert_logits(logits, weights, by_hand(params, 'look', x, x, num_heads=3, norms=norms))


@pytest.mark.parametrize('on_a_grid', [True, False])
def test_logits_of_a_decoder(on_a_grid):
    contents, latents = random(B, 5, 7, 3), random(B, T, 12, seed=1)
    array = GRID(contents).array()
    name = 'decoder/cross_attend'

    def forward(queries, latents):
        queries = GRID(queries) if on_a_grid else queries
        return QueryDecoder(2, name='decoder')(queries, latents, is_training=False)

    weights, logits, params = recorded(forward, name, contents if on_a_grid else array, latents)
    assert_logits(logits, weights, by_hand(params, name, array, latents, num_heads=1))


def test_logits_are_the_lowest_number_where_masked():
    queries, inputs = random(B, T, 8), random(B, S, 6, seed=1)
    mask = np.random.default_rng(2).random((B, T, S)) < 0.5
    mask[0, :, 3] = mask[1, 2] = False
    unused = np.where(mask.any(1)[..., None], inputs, np.nan)

    def forward(queries, inputs):
        return CrossAttend(name='look')(queries, inputs, mask, is_training=False)

    weights, logits, params = recorded(forward, 'look', queries, unused)
    expected = by_hand(params, 'look', queries, inputs, num_heads=1)
    np.testing.assert_allclose(
        logits, np.where(mask[:, None], expected, LOWEST), rtol=1e-4, atol=1e-4
    )
    assert (weights[1, :, 2] == 0).all()
    rows = mask.any(-1)
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 0][rows], weights[:, 0][rows], atol=1e-7)
