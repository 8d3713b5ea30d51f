"""Losses of classifiers, one number for each example: the caller averages."""

import jax
import jax.numpy as jnp

from perceiver_jax.errors import Refused


def softmax_cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Computes the cross-entropy of the softmax of the logits against (soft) labels.

    Label smoothing mixes the labels with the uniform distribution over all K classes, the true one
    included: a one-hot label becomes 1 - s + s / K at the class and s / K elsewhere.

    Args:
      logits: Logits `[B, K]` of any floating type; the loss is computed in float32.
      labels: Probabilities `[B, K]`, one-hot or mixed.
      label_smoothing: The weight s of the uniform distribution, in [0, 1).

    Returns:
      Losses in nats, float32 `[B]`.

    Raises:
      Refused: The shapes differ or label_smoothing is out of range.

    Source:
      Szegedy et al. 2016, section 7; DeepMind's Perceiver IO release trains with s = 0.1.
    """
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise Refused(
            f'logits {logits.shape} and labels {labels.shape} must both be [examples, classes]'
        )
    if not 0 <= label_smoothing < 1:
        raise Refused(f'label_smoothing is {label_smoothing}, it must be in [0, 1)')
    labels = (1 - label_smoothing) * labels + label_smoothing / labels.shape[-1]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(labels * log_probabilities, axis=-1)


def sigmoid_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the cross-entropy of each class's sigmoid, summed over the classes.

    Args:
      logits: Logits `[B, K]` of any floating type; the loss is computed in float32.
      labels: Labels `[B, K]` in 0..1, any number of them 1.

    Returns:
      Losses in nats, float32 `[B]`.

    Raises:
      Refused: The shapes differ.
    """
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise Refused(
            f'logits {logits.shape} and labels {labels.shape} must both be [examples, classes]'
        )
    logits = logits.astype(jnp.float32)
    # log(1 + exp(x)) - y x, which is -log(sigmoid(x)) for y = 1 and -log(1 - sigmoid(x)) for 0
    return jnp.sum(jax.nn.softplus(logits) - labels * logits, axis=-1)
