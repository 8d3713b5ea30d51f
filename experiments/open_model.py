"""Any weights as a model to call: those of a run, and whatever `perceiver_jax.load` takes."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import ml_collections

from experiments.tasks import TASKS
from experiments.training.checkpointing import load_params
from perceiver_jax.errors import Refused
from perceiver_jax.weights import translation
from perceiver_jax.weights.pretrained import Pretrained, load
from perceiver_jax.weights.upgrade import upgrade_arguments


def open_model(path: str | Path, *, best: bool = False, conv_kernel: str = 'hub') -> Pretrained:
    """Loads the weights of a run, or whatever `perceiver_jax.load` takes.

    Args:
      path: the folder of a run, or a file or folder of weights.
      best: of a run, take the best checkpoint by the headline metric instead of the newest.
      conv_kernel: see `perceiver_jax.load`.

    Raises:
      ValueError: if nothing there is a model, or it is not whole.
    """
    if not str(path):
        raise Refused('the model is named by an empty path')
    path = Path(path)
    if (path / 'checkpoints').is_dir():
        logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax says that it only reads
        return load_workdir(path, best)
    if best:
        raise Refused(f'{path} is no run: it has no best checkpoint')
    return load(path, conv_kernel=conv_kernel)


def load_workdir(workdir: str | Path, best: bool = False) -> Pretrained:
    """Loads a checkpoint of a run as a model.

    Args:
      workdir: the run's folder.
      best: take the best checkpoint by the headline metric instead of the newest.

    Raises:
      ValueError: if there is no such checkpoint, or config.json is not of the run.
    """
    path = Path(workdir) / 'config.json'
    try:
        config = json.loads(path.read_text())
        config = ml_collections.ConfigDict(
            {**config, 'model': upgrade_arguments(config['model'])}
        )
        task = TASKS[config.task](config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(f'{path} is not the config of a run: {error!r}') from None
    params, state, step = load_params(workdir, best)
    expected = jax.eval_shape(task.init, jax.random.key(0))
    translation.check_fit(params, state, *expected, f'step {step} of {workdir}')
    model = task.pretrained(params, state)
    return dataclasses.replace(model, description=f'{config.task}, step {step:,} of {workdir}.')
