"""One real update of a task on some of the devices, to compare numbers of devices and kinds."""

import functools

import jax
import numpy as np
import optax
import pytest

from experiments.training import loop, parallel


def one_update(task, num_devices, learning_rate=1.0, params=None):
    """Makes the first update of a run by SGD: LAMB enlarges gradients that are mere rounding.

    Args:
      task: A task made from a config with `parallel` and `train.batch_size`.
      num_devices: How many devices of this process to use.
      learning_rate: Learning rate of SGD.
      params: `{module: parameters}` that replace some of the initial ones.

    Returns:
      The state and the metrics after the update, on the host.
    """
    optimizer = optax.sgd(learning_rate)
    devices = parallel.make(task.config.parallel, jax.devices()[:num_devices])
    state = jax.device_get(loop.init(task.config, task, optimizer))
    state.params.update(params or {})
    update = devices.compile_update(
        functools.partial(
            loop.update_step,
            task.loss,
            optimizer,
            seed=0,
            batch_size=task.config.train.batch_size,
            average=devices.average,
        )
    )
    batches = task.train_batches(0)
    batch = devices.put_micro_batches(next(batches), count=1)
    state, metrics = update(devices.replicate(state), batch)
    batches.close()
    return devices.fetch((state, metrics))


def assert_same_update(actual, expected):
    """Compares what two calls of `one_update` gave: parameters, the model's state and the loss."""
    (state, metrics), (expected_state, expected_metrics) = actual, expected
    assert metrics['loss'] == pytest.approx(expected_metrics['loss'], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (state.params, state.state),
        (expected_state.params, expected_state.state),
    )
