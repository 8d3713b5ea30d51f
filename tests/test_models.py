import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import imagenet
from perceiver_jax.models import image_classifier

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


def build(is_training=False, **changes):
    config = imagenet.get_config('demo').unlock()
    config.model.update(changes)
    return hk.transform_with_state(
        lambda x: image_classifier(x, is_training=is_training, **config.model)
    )


def with_random_head(params):
    head = params['decoder/output']
    head['w'] = jax.random.normal(jax.random.key(1), head['w'].shape)
    return params


def test_bfloat16_computes_near_float32_with_float32_parameters():
    wide, narrow = build(), build(dtype='bfloat16')
    params, state = wide.init(jax.random.key(0), IMAGES)
    narrow_params, _ = narrow.init(jax.random.key(0), IMAGES)
    assert {p.dtype for p in jax.tree.leaves(narrow_params)} == {np.dtype('float32')}
    params = with_random_head(params)
    expected, _ = wide.apply(params, state, None, IMAGES)
    logits, _ = narrow.apply(params, state, None, IMAGES)
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-5 < difference < 0.05  # bfloat16 was used, and did little harm


def test_training_needs_no_random_key():
    model = build(is_training=True)
    params, state = model.init(jax.random.key(0), IMAGES)
    logits, _ = model.apply(params, state, None, IMAGES)
    assert logits.shape == (3, 10)


def test_a_permutation_of_the_pixels_changes_nothing():
    plain = build()
    params, state = plain.init(jax.random.key(0), IMAGES)
    params = with_random_head(params)
    inputs = {**imagenet.get_config('demo').model.inputs, 'permutation_seed': 0}
    permuted, _ = build(inputs=inputs).apply(params, state, None, IMAGES)
    expected, _ = plain.apply(params, state, None, IMAGES)
    np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-4)


def test_an_unknown_field_is_refused():
    with pytest.raises(TypeError, match='num_bnads'):
        build(inputs=dict(num_bnads=4)).init(jax.random.key(0), IMAGES)
