"""Opens weights as a model to call: those of a run, or whatever `perceiver_jax.load` takes.

For the launcher, as the model of a config: what they say of themselves is compared with it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from experiments.command_line import quiet_libraries
from experiments.paths import in_bucket, path_of
from experiments.run_config import get_config
from perceiver_jax.errors import Refused
from perceiver_jax.weights.loading import carries_arguments, load, read_bare
from perceiver_jax.weights.pretrained import Pretrained, check_inputs
from perceiver_jax.weights.transfer import compare_arguments, transfer
from perceiver_jax.weights.trees import check_fit, list_names

if TYPE_CHECKING:
    from experiments.tasks import Task  # slow to import, and needed for a config alone
    from experiments.training.loop import Start

Side = str  # 'config' or 'weights': whose arguments count where both say them


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


def open_to_evaluate(
    config: ConfigDict, path: str, *, best: bool = False, side: Side = 'config'
) -> tuple['Task', Pretrained]:
    """Opens weights as the model of a config, to evaluate them on its data.

    Args:
      config: The configuration: data, protocol and model. A number of classes of 0 becomes that of
        the weights, where they tell it.
      path: Weights, as `open_model` takes them.
      best: Whether to take a run's best checkpoint instead of the newest.
      side: What counts where the weights say other arguments than `config.model`: 'config' refuses
        them, 'weights' has `config.model` become like them.

    Returns:
      The task of the config, and the model.

    Raises:
      Refused: Nothing there is a model, or it is not that of the config; lists the keys, or names
        and shapes.
    """
    model = _open_carrying(path, best)
    if model is not None and config.model.get('num_classes') == 0:
        config.model.num_classes = model.arguments.get('num_classes', 0)
    task, wanted = _task_like(config, path, model, side)
    if model is None:
        model = _open_bare(path, wanted, config)
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    check_fit(model.params, model.state, params, state, path)
    return task, model


def open_to_start(config: ConfigDict, *, side: Side = 'config') -> tuple['Task', 'Start']:
    """Opens the weights that `config.init_from` names, for a run to start from.

    Args:
      config: The configuration of the run, whose model may have other classes and, where positions
        are learned, another image size than the weights; see `perceiver_jax.transfer`.
      side: What counts where the weights say other arguments than `config.model`; see
        `open_to_evaluate`.

    Returns:
      The task of the config, and what its run starts from.

    Raises:
      Refused: Nothing there is a model, or it cannot start that of the config; lists the keys, or
        names and shapes.
    """
    from experiments.training.checkpointing import digest, flatten
    from experiments.training.loop import Start

    path = config.init_from
    source = _open_carrying(path, best=False)
    task, target = _task_like(config, path, source, side, new_classes=True)
    if source is None:
        source = _open_bare(path, target, config)
    params, state = jax.device_get(jax.jit(task.init)(jax.random.key(config.seed)))
    target = dataclasses.replace(target, params=params, state=state)
    taken = transfer(source, target, where=path)
    facts = {
        'weights': path,
        'params_sha256': digest(flatten(source.params)),
        **taken.counts,
        'resampled_names': list(taken.resampled),
        'new_names': list(taken.new),
    }
    return task, Start(facts, taken.params, taken.state)


def _open_carrying(path: str, best: bool) -> Pretrained | None:
    """Opens weights that say what their model is; None: a bare file, which does not."""
    if (path_of(path) / 'checkpoints').is_dir() or in_bucket(path_of(path)):
        return open_model(path, best=best)
    # A bare file has no best checkpoint: `open_model` says so.
    return open_model(path, best=best) if best or carries_arguments(path) else None


def _open_bare(path: str, wanted: Pretrained, config: ConfigDict) -> Pretrained:
    """Opens weights that do not say what their model is, as the model of a config."""
    from experiments.training import parallel

    model = read_bare(path, wanted.arguments, wanted.front_end)
    _check_function(path, model, wanted, config)
    parallel.say(
        f'{path} does not say what its model is: its shapes are compared with config.model; heads, '
        'resolutions and divisors are taken to be as the config says.'
    )
    return model


def _check_function(path: str, model: Pretrained, wanted: Pretrained, config: ConfigDict) -> None:
    if model.function != wanted.function:
        raise Refused(
            f'{path} is weights of {model.function}, and config.model of task {config.task!r} is '
            f'that of {wanted.function}'
        )


def _task_like(
    config: ConfigDict,
    path: str,
    model: Pretrained | None,
    side: Side,
    *,
    new_classes: bool = False,
) -> tuple['Task', Pretrained]:
    """Makes the task of a config, and makes sure that its model is that of weights.

    Args:
      config: The configuration; its model is changed in place where the side of the weights counts.
      path: The weights.
      model: What they say of themselves; None: nothing.
      side: What counts where the two differ.
      new_classes: Whether the classes may be others than those of the weights.

    Returns:
      The task, and its model without weights.

    Raises:
      Refused: The functions differ, or arguments do and the side of the config counts.
    """
    from experiments.tasks import make_task
    from experiments.training import parallel

    task = make_task(config)
    if model is None:
        return task, task.pretrained({}, {})
    if not new_classes:
        task.known_classes = model.classes
    wanted = task.pretrained({}, {})
    _check_function(path, model, wanted, config)
    differing = compare_arguments(model.function, model.arguments, wanted.arguments)
    if new_classes:
        differing.pop('num_classes', None)
    if differing and side == 'config':
        listed = [f'{key} {theirs!r}, not {ours!r}' for key, (theirs, ours) in differing.items()]
        raise Refused(
            f'{path} is weights of another model than config.model: {list_names(listed)}. '
            '--model_from=weights takes what they say'
        )
    if differing:
        for key, (theirs, _) in differing.items():
            _set(config.model, key, theirs, model.arguments)
        init_std = model.arguments['inputs'].get('position_init_std')
        if init_std is not None and 'position_init_std' not in config.model.inputs:
            # It is not compared, and learned positions need it.
            _set(config.model, 'inputs.position_init_std', init_std, model.arguments)
        listed = [f'{key} {theirs!r}, not {ours!r}' for key, (theirs, ours) in differing.items()]
        parallel.say(f'config.model becomes that of {path}: {list_names(listed)}.')
        return _task_like(config, path, model, 'config', new_classes=new_classes)
    for key in sorted(wanted.front_end.keys() & model.front_end.keys()):
        theirs, ours = (json.loads(json.dumps(x.front_end[key])) for x in (model, wanted))
        if theirs != ours:
            parallel.say(
                f'{path} was made for inputs of {key} {theirs!r}; that of the config counts, '
                f'{ours!r}.'
            )
    return task, wanted


def _set(config: ConfigDict, key: str, value: Any, arguments: Mapping[str, Any]) -> None:
    """Sets a key such as 'encoder.self_attend.num_heads' to what arguments say.

    Makes the mappings on its way; what the arguments leave out without a default is removed.
    """
    *sections, name = key.split('.')
    with config.unlocked(), config.ignore_type():
        for section in sections:
            if config.get(section) is None:
                config[section] = ConfigDict()
            config, arguments = config[section], arguments.get(section) or {}
        if value is None and name not in arguments:
            del config[name]
        else:
            config[name] = ConfigDict(value) if isinstance(value, Mapping) else value


def _no_config(workdir: str | Path, error: Exception) -> Refused:
    path = path_of(workdir) / 'config.json'
    reason = error if isinstance(error, Refused) else repr(error)
    return Refused(f'{path} is not the config of a run: {reason!s:.300}')
