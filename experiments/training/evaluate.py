"""Evaluates parameters, or a checkpoint of a run."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from experiments.training import parallel


def evaluate_checkpoint(config, task, workdir: Path, name: str, best: bool) -> dict:
    """Evaluates a checkpoint of a run.

    Args:
      config: a config that makes the model of the run.
      task: made from it.
      workdir: the run's folder.
      name: of the config.
      best: take the best checkpoint by the headline metric instead of the newest.

    Returns:
      What evaluation.json holds: the headline metric, the step and all metrics. evaluation.png
      shows sample predictions.

    Raises:
      ValueError: if there is no such checkpoint, or it is of another model.
    """
    from experiments.pictures.report import write_samples
    from experiments.training.checkpointing import check_fit, flatten, load_params
    from experiments.training.checks import check_sizes
    from experiments.training.workdir import write_json

    check_sizes(config, parallel.num_devices())
    params, state, step = load_params(workdir, best)
    like = dict(zip(('params', 'state'), jax.eval_shape(task.init, jax.random.key(0)), strict=True))
    check_fit(flatten({'params': params, 'state': state}), like, f'step {step} of {workdir}')
    devices = parallel.make(config.parallel)
    on_devices = devices.replicate((params, state))
    metrics, predictions = evaluate(task, devices, compile_predict(task, devices), *on_devices)
    result = {
        'task': config.task,
        'config': name,
        'metric': task.metric,
        'value': metrics[task.metric],
        'checkpoint': 'best' if best else 'last',
        'step': step,
        'metrics': metrics,
    }
    if parallel.is_main_process():
        write_json(workdir / 'evaluation.json', result)
        draw = functools.partial(task.draw, params=params, state=state, predictions=predictions)
        write_samples(workdir / 'evaluation.png', f'{name}, step {step:,}', draw)
    return result


def evaluate(
    task, devices, predict: Callable, params, state
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluates every example once, on all devices.

    Args:
      task: gives the batches, the same number of them in each process, and the summary.
      devices: from parallel.make.
      predict: from compile_predict.
      params, state: on the devices.

    Returns:
      The task's metrics, with 'broken_examples' if some were left out; and its predictions of all
      examples, with the 'index' of each. They are the same in all processes.
    """
    gathered, waiting = [], []
    for batch in parallel.prefetch(task.eval_batches(), devices.put_batch):
        waiting.append(predict(params, state, batch))
        if len(waiting) > 1:  # the devices work on this batch while the host takes the one before
            gathered.append(devices.gather(waiting.pop(0)))
    gathered += [devices.gather(outputs) for outputs in waiting]
    predictions = {k: np.concatenate([x[k] for x in gathered]) for k in gathered[0]}
    mask, broken = predictions.pop('mask'), predictions.pop('broken', np.zeros(1)).sum()
    predictions = {k: x[mask] for k, x in predictions.items()}
    numbers = task.summarise({k: x for k, x in predictions.items() if k != 'index'})
    return numbers | ({'broken_examples': int(broken)} if broken else {}), predictions


def compile_predict(task, devices) -> Callable:
    """Compiles the task's predict; it hands on which example is which, and which count."""

    def predict(params, state, batch):
        told = {name: batch[name] for name in ('index', 'mask', 'broken') if name in batch}
        return task.predict(params, state, batch) | told

    return devices.compile_predict(predict)
