"""What parameters, or a checkpoint of a run, score on a task's evaluation data."""

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.paths import make_folder
from experiments.training import parallel
from experiments.training.compiling import tried_twice
from experiments.training.workdir import git_commit, now, write_json
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, remove_unfinished
from perceiver_jax.weights.pretrained import Pretrained

Evaluation = tuple[dict[str, float], dict[str, np.ndarray]]  # metrics and predictions


def evaluate_checkpoint(
    config: ConfigDict, task: Any, workdir: Path, name: str, best: bool
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run.

    Prints who takes part and the headline metric, then writes `evaluation.json` and sample
    predictions, `evaluation.png`, into the run's folder.

    Args:
      config: A config that makes the model of the run.
      task: An `experiments.tasks.Task` made from the config.
      workdir: The run's folder.
      name: What the config is called in the result, such as 'configs/imagenet.py:demo'.
      best: Whether to take the best checkpoint by the headline metric instead of the newest.

    Returns:
      What `evaluation.json` holds: the headline metric, the step and all metrics, when, where and
      how long.

    Raises:
      Refused: There is no such checkpoint, or it is of another model.
      OSError: A file cannot be written, after the metric was printed; it names the file.
    """
    from experiments.training.checkpointing import check_fit, flatten, load_params

    _take_part(config, task, workdir, {})
    params, state, step = load_params(workdir, best)
    parallel.check_equal(step, f'the checkpoint of {workdir} to evaluate')
    expected_params, expected_state = jax.eval_shape(task.init, jax.random.key(0))
    check_fit(
        flatten({'params': params, 'state': state}),
        {'params': expected_params, 'state': expected_state},
        f'step {step} of {workdir}',
    )
    about = {'checkpoint': 'best' if best else 'last', 'step': step}
    return _evaluate(
        config, task, workdir, name, params, state, about, f'step {step:,}', _of_run(workdir)
    )


def evaluate_weights(
    config: ConfigDict, task: Any, workdir: Path, name: str, weights: str, model: Pretrained
) -> dict[str, Any]:
    """Evaluates weights that no run of this folder made, such as those that were released.

    Prints and writes what `evaluate_checkpoint` does.

    Args:
      config: The configuration of data and protocol.
      task: An `experiments.tasks.Task` made from it.
      workdir: The folder for `evaluation.json` and `evaluation.png`.
      name: What the config is called in the result.
      weights: Where the weights were read, for the result.
      model: The weights, which fit the task.

    Returns:
      What `evaluation.json` holds, for `experiments.table --add` too: see
      `results.EVALUATION_FIELDS`.

    Raises:
      Refused: The folder holds a run.
      OSError: A file cannot be written, after the metric was printed; it names the file.
    """
    from experiments.training.checkpointing import digest, flatten

    if (workdir / 'config.json').exists() or (workdir / 'checkpoints').exists():
        raise Refused(
            f'--workdir={workdir} holds a run, and --weights names other weights: choose another '
            'folder for their evaluation'
        )
    sha256 = digest(flatten(model.params))
    _take_part(config, task, workdir, {'sha256 of the weights': sha256})
    about = {
        'weights': weights,
        'parameters': sum(x.size for x in jax.tree.leaves(model.params)),
        'params_sha256': sha256,
        'data': task.eval_data_name,
        'examples': task.num_eval_examples,
        'paper_value': task.eval_paper_value,
    }
    make_folder(workdir)
    of_data = f' on {about["data"]}'
    return _evaluate(
        config, task, workdir, name, model.params, model.state, about, Path(weights).name, of_data
    )


def _evaluate(
    config: ConfigDict,
    task: Any,
    workdir: Path,
    name: str,
    params: Mapping,
    state: Mapping,
    about: Mapping[str, Any],
    which: str,
    of_data: str,
) -> dict[str, Any]:
    """Evaluates weights that fit the task, prints the headline metric and writes the files.

    Args:
      config: The configuration.
      task: An `experiments.tasks.Task` made from it.
      workdir: The folder to write to.
      name: What the config is called.
      params: Haiku's parameters, on the host.
      state: Haiku's state, on the host.
      about: What else the result says of the weights.
      which: What the weights are called, such as 'step 500'.
      of_data: Follows the number of examples in the picture's caption.
    """
    # matplotlib is slow to import.
    from experiments.pictures.report import write_samples
    from experiments.pictures.units import metric_text

    start = time.monotonic()
    devices = parallel.make(config.parallel)
    predict = tried_twice(compile_predict(task, devices))
    metrics, predictions = evaluate(task, devices, predict, *devices.replicate((params, state)))
    value = metrics[task.metric]
    result = {
        'task': config.task,
        'config': name,
        'metric': task.metric,
        'value': value,
        **about,
        'metrics': metrics,
        'wall_seconds': time.monotonic() - start,
        'device': parallel.device_name(),
        'git_commit': git_commit(),
        'date': now(),
    }
    paper = about.get('paper_value')
    of_paper = '' if paper is None else f' (paper: {paper:.4f})'
    parallel.say(f'{task.metric} {value:.4f}{of_paper} at {which}')
    if parallel.is_main_process():
        remove_unfinished(workdir)
        write_json(workdir / 'evaluation.json', result)
        draw = functools.partial(task.draw, params=params, state=state, predictions=predictions)
        facts = {
            'data': f'{len(predictions["index"]):,} examples evaluated{of_data}',
            'seed': config.seed,
            'git_commit': result['git_commit'],
            'date': result['date'],
        }
        title = f'{name}, {which}: {task.metric} {metric_text(task.metric, value)}'
        write_samples(workdir / 'evaluation.png', title, draw, facts)
    return result


def _take_part(config: ConfigDict, task: Any, workdir: Path, facts: Mapping[str, str]) -> None:
    """Says who takes part, and makes sure that they are at one."""
    from experiments.training.agreement import agreement
    from experiments.training.checks import check_sizes

    parallel.say_who_takes_part()
    with agreement(config, workdir) as data:
        check_sizes(config, parallel.num_devices())
        data.update(facts)
        if parallel.num_processes() > 1:  # one alone looks for the checkpoint before it opens data
            data['number of evaluation examples'] = task.num_eval_examples


def _of_run(workdir: Path) -> str:
    """Returns what a run's data is called, after a comma; '' where its result does not tell."""
    try:
        return f', of a run on {read_json(workdir / "result.json")["data"]}'
    except (OSError, Refused, KeyError):  # not finished, or damaged
        return ''


def evaluate(
    task: Any,
    devices: parallel.Jit | parallel.Pmap,
    predict: Callable,
    params: Mapping,
    state: Mapping,
) -> Evaluation:
    """Evaluates each example once, on all devices.

    Args:
      task: The `experiments.tasks.Task` that gives the batches, the same number of them in each
        process, and computes the metrics.
      devices: What `parallel.make` returned.
      predict: What `compile_predict` returned.
      params: Haiku's parameters, on the devices.
      state: Haiku's state, on the devices.

    Returns:
      The task's metrics, with `broken_examples` if some were left out; and the predictions of all
      examples, with the `index` of each. They are the same in all processes.
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
    metrics = task.summarise({k: x for k, x in predictions.items() if k != 'index'})
    if broken:
        metrics = metrics | {'broken_examples': int(broken)}
    return metrics, predictions


def compile_predict(task: Any, devices: parallel.Jit | parallel.Pmap) -> Callable:
    """Compiles the task's `predict`.

    Args:
      task: An `experiments.tasks.Task`.
      devices: What `parallel.make` returned.

    Returns:
      `predict(params, state, batch)`, compiled at its first call, whose outputs include the batch's
      `index`, `mask` and `broken`: which examples they belong to, and which of them count.
    """

    def predict(params, state, batch):
        passed_on = {name: batch[name] for name in ('index', 'mask', 'broken') if name in batch}
        return task.predict(params, state, batch) | passed_on

    return devices.compile_predict(predict)
