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
      task: made of a config with 'parallel' and 'train.batch_size'.
      num_devices: of this process, to use.
      learning_rate: of SGD.
      params: {module: parameters} that stand for some of the initial ones.

    Returns:
      The state and the metrics after it, on the host.
    """
    optimizer = optax.sgd(learning_rate)
    chosen = jax.devices()[:num_devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda *_: chosen)
        patch.setattr(jax, 'local_devices', lambda *_: chosen)
        patch.setattr(jax, 'local_device_count', lambda *_: num_devices)
        devices = parallel.make(task.config.parallel)
        state = jax.device_get(loop.init(0, task, optimizer))
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
        return devices.fetch(state), devices.fetch(metrics)


def assert_same_update(actual, expected):
    """Compares what two calls of `one_update` gave: parameters, the model's state and the loss."""
    (state, metrics), (expected_state, expected_metrics) = actual, expected
    assert metrics['loss'] == pytest.approx(expected_metrics['loss'], rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        (state.params, state.state),
        (expected_state.params, expected_state.state),
    )
