"""Opens weights as a model to call: those of a run, or whatever `perceiver_jax.load` takes."""

import dataclasses
from pathlib import Path

import jax

from experiments.command_line import quiet_libraries
from experiments.paths import in_bucket, path_of
from experiments.run_config import get_config
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained, check_inputs, load
from perceiver_jax.weights.trees import check_fit


def open_model(path: str | Path, *, best: bool = False, conv_kernel: str = 'hub') -> Pretrained:
    """Loads the weights of a run, or whatever `perceiver_jax.load` takes.

    Args:
      path: The folder of a run, or a file or folder of weights.
      best: Whether to take a run's best checkpoint by the headline metric instead of the newest.
      conv_kernel: Layout of the 7x7 kernel in Hugging Face's files; see `perceiver_jax.load`.

    Returns:
      The model with its weights.

    Raises:
      Refused: Nothing there is a model, or it is incomplete.
    """
    if not str(path):
        raise Refused('the model is named by an empty path')
    path = path_of(path)
    if (path / 'checkpoints').is_dir():
        quiet_libraries()  # Orbax warns that it only reads
        return load_workdir(path, best)
    if best:
        raise Refused(f'{path} is no run: it has no best checkpoint')
    if in_bucket(path):
        raise Refused(f'{path} is no run: it has no checkpoints, and weights are read as files')
    return load(path, conv_kernel=conv_kernel)


def load_workdir(workdir: str | Path, best: bool = False) -> Pretrained:
    """Loads a checkpoint of a run as a model.

    Args:
      workdir: The run's folder.
      best: Whether to take the best checkpoint by the headline metric instead of the newest.

    Returns:
      The model with the checkpoint's weights.

    Raises:
      Refused: There is no such checkpoint, or `config.json` is not that of a run.
    """
    from experiments.tasks import make_task  # slow to import, like Orbax: only for a run
    from experiments.training.checkpointing import load_params

    config = get_config(workdir)
    try:
        task = make_task(config)
        expected_params, expected_state = jax.eval_shape(task.init, jax.random.key(0))
    except (Refused, AttributeError, TypeError) as error:  # keys of another version, or damaged
        raise _no_config(workdir, error) from None
    params, state, step = load_params(workdir, best)
    source = f'step {step} of {workdir} (config.json, checkpoints)'
    check_fit(params, state, expected_params, expected_state, source)
    try:
        model = task.pretrained(params, state)
        check_inputs(model)
    except (Refused, AttributeError, TypeError) as error:  # it reads keys that nothing read before
        raise _no_config(workdir, error) from None
    return dataclasses.replace(model, description=f'{config.task}, step {step:,} of {workdir}.')


def _no_config(workdir: str | Path, error: Exception) -> Refused:
    path = path_of(workdir) / 'config.json'
    reason = error if isinstance(error, Refused) else repr(error)
    return Refused(f'{path} is not the config of a run: {reason!s:.300}')
