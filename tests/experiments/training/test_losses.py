import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.losses import sigmoid_cross_entropy, softmax_cross_entropy

LOGITS = np.array([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5]], np.float32)
LOG_PROBABILITIES = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))


def test_one_hot_labels_pick_a_log_probability():
    loss = softmax_cross_entropy(LOGITS, np.eye(3)[[1, 2]])
    np.testing.assert_allclose(loss, -LOG_PROBABILITIES[[0, 1], [1, 2]], rtol=1e-6)
    np.testing.assert_allclose(loss[0], np.log(3), rtol=1e-6)


def test_soft_labels_weight_the_classes():
    labels = np.array([[0.5, 0.25, 0.25], [0.0, 0.3, 0.7]])
    loss = softmax_cross_entropy(LOGITS, labels)
    np.testing.assert_allclose(loss, -(labels * LOG_PROBABILITIES).sum(1), rtol=1e-6)


def test_smoothing_spreads_over_all_classes_the_true_one_included():
    loss = softmax_cross_entropy(LOGITS, np.eye(3)[[0, 0]], label_smoothing=0.3)
    smoothed = np.array([0.8, 0.1, 0.1])
    np.testing.assert_allclose(loss, -(smoothed * LOG_PROBABILITIES).sum(1), rtol=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    loss = softmax_cross_entropy(jnp.zeros((2, 1000), jnp.bfloat16), jnp.zeros((2, 1000)))
    chex.assert_type(loss, jnp.float32)


@pytest.mark.parametrize('shape', [(3,), (1, 3), (2, 1)])
def test_shapes_are_not_broadcast(shape):
    with pytest.raises(ValueError, match=r'logits \(2, 3\) and labels'):
        softmax_cross_entropy(LOGITS, np.ones(shape))


def test_smoothing_is_a_fraction():
    with pytest.raises(ValueError, match='label_smoothing is 10'):
        softmax_cross_entropy(LOGITS, LOGITS, label_smoothing=10)


def test_sigmoid_cross_entropy_by_hand():
    logits = jnp.array([[0.0, 2.0, -1.0], [200.0, -200.0, 0.0]])
    labels = jnp.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])

    def one(logit, label):
        p = 1 / (1 + math.exp(-logit))
        return -(label * math.log(p) + (1 - label) * math.log(1 - p))

    expected = [one(0, 1) + one(2, 0) + one(-1, 0.5), 0 + 200 + math.log(2)]
    np.testing.assert_allclose(sigmoid_cross_entropy(logits, labels), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r'logits \(2, 3\) and labels \(2, 2\)'):
        sigmoid_cross_entropy(logits, labels[:, :2])
