"""The loop: the only one, for every task, on any number of devices and processes."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.memory import check_state
from experiments.paths import make_folder, path_of
from experiments.run_config import STARTED_FROM
from experiments.training import parallel, stopping, watch
from experiments.training.agreement import agreement
from experiments.training.checks import below_key, check_resumable, check_sizes, count_steps
from experiments.training.compiling import tried_twice
from experiments.training.evaluate import Evaluation, compile_predict, evaluate
from experiments.training.lock import lock
from experiments.training.optimizer import make_optimizer
from experiments.training.profiling import UpdatesProfile, check_fits
from experiments.training.workdir import Metrics, git_commit, now, write_json
from perceiver_jax.convolution import frozen_batch_norm
from perceiver_jax.errors import Refused
from perceiver_jax.files import read_json, remove_unfinished
from perceiver_jax.weights.labels import matching
from perceiver_jax.weights.trees import Tree
from perceiver_jax.weights.trees import flatten as flatten_weights


class Start(NamedTuple):
    """Weights that a run starts from, instead of random ones.

    Attributes:
      facts: Of what JSON holds: `weights`, where they were read; `params_sha256` of all that was
        read; the numbers of parameters that were `taken`, `resampled` and are `new`; and the flat
        names of the latter two, `resampled_names` and `new_names`. `config.json` keeps them.
      params: Parameters of the run's model; None where a checkpoint will give them.
      state: State of the run's model, likewise.
    """

    facts: dict[str, Any]
    params: Tree | None = None
    state: Tree | None = None


class TrainState(NamedTuple):
    """All that an update reads and writes, except the batch; what a checkpoint holds."""

    step: jax.Array  # int32 [], updates made so far
    params: hk.Params  # {module: {name: array}}
    state: hk.State  # what the model carries from batch to batch, such as BatchNorm's averages
    opt_state: optax.OptState  # LAMB's two moments, each as large as the trained parameters
    ema: hk.Params  # a moving average of the trained parameters; {} where none is kept

    @property
    def evaluated(self) -> hk.Params:
        """The parameters that are evaluated and drawn: the average, where one is kept."""
        return hk.data_structures.merge(self.params, self.ema)


def train(
    config: ConfigDict,
    task: Any,
    workdir: str | Path,
    config_name: str,
    profile_steps: int = 0,
    start: Start | None = None,
) -> dict[str, Any] | None:
    """Trains a task to the end of its config, from the newest checkpoint in the folder on.

    Args:
      config: The run's configuration.
      task: An `experiments.tasks.Task` made from the config.
      workdir: The folder for checkpoints, `metrics.jsonl`, `result.json` and `report.png`, which
        can be in a bucket: 'gs://bucket/run'.
      config_name: What was asked for, such as 'configs/imagenet.py:demo', followed by the keys that
        the command line set; stands in the result.
      profile_steps: Updates to trace into the folder `profile`; their kernels are printed.
      start: Weights to start from where there is no checkpoint; None: random ones.

    Returns:
      What `result.json` holds; None if SIGTERM stopped the run, after a checkpoint.

    Raises:
      Refused: The config, or what is in the folder, cannot be run, another run writes there, or
        this run's processes differ; before compilation.
      FloatingPointError: The loss, the gradients or the parameters are no longer finite.
      OSError: A file of the run cannot be written; it names the file and the last checkpoint.
      KeyboardInterrupt: Ctrl-C stopped the run, after a checkpoint; or a second Ctrl-C, without.
      stopping.StoppedEarly: SIGTERM or Ctrl-C stopped the run before its first update was made.
    """
    from experiments.training.checkpointing import last_good_named  # slow to import

    with (
        contextlib.ExitStack() as held,
        watch.others_first(),
        stopping.preemption() as asked,  # from here on SIGTERM and Ctrl-C end with a checkpoint
        last_good_named(workdir),
    ):
        return _train(config, task, workdir, config_name, profile_steps, start, asked, held)


def _train(
    config: ConfigDict,
    task: Any,
    workdir: str | Path,
    config_name: str,
    profile_steps: int,
    start: Start | None,
    asked: stopping.Preemption,
    held: contextlib.ExitStack,
) -> dict[str, Any] | None:
    # Orbax and matplotlib are slow to import.
    from experiments.pictures.report import write_report
    from experiments.training.checkpointing import Checkpoints, digest, flatten

    began = time.monotonic()
    workdir, settings, batch_size = path_of(workdir), config.train, config.train.batch_size
    writes = parallel.is_main_process()
    parallel.say_who_takes_part()
    with agreement(config, workdir) as data:
        check_sizes(config, parallel.num_devices())
        check_resumable(workdir, config)
        total_steps, steps_per_epoch = count_steps(config, task.num_train_examples)
        data_name, paper_value = task.data_name, task.paper_value  # opens the evaluation data too
        data.update({'data': data_name, 'number of training examples': task.num_train_examples})
        loaded = () if start is None else taken_names(task, start)
        optimizer, schedule = make_optimizer(
            total_steps, steps_per_epoch, **config.optimizer, loaded=loaded
        )
        devices = parallel.make(config.parallel)
        check_fits(profile_steps, settings.evaluate_every_steps)
        host_state = jax.device_get(asked.unless_stopped(init, config, task, optimizer))
        if start is not None and start.params is not None:
            host_state = started(host_state, start.params, start.state)
        if writes:
            make_folder(workdir)
            held.enter_context(lock(workdir))
            remove_unfinished(workdir)

    # From the start, or from a checkpoint.
    checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
    host_state, seconds_before = checkpoints.restore(like=host_state) or (host_state, 0.0)
    seconds = seconds_before  # how long the run had taken when it was last saved
    train_state = devices.replicate(host_state)
    step = saved_step = int(host_state.step)
    steps = range(step + 1, total_steps + 1)
    if step > total_steps:
        raise Refused(f'{workdir} holds step {step:,} of a run that is to have {total_steps:,}')
    if writes:
        about = {} if start is None else {STARTED_FROM: start.facts}
        write_json(workdir / 'config.json', {**config.to_dict(), **about})
    if settings.freeze:
        parallel.say(trained_text(host_state.params, settings.freeze))

    update = tried_twice(compile_update(config, task, optimizer, devices))
    predict = tried_twice(compile_predict(task, devices))
    evaluate_now = functools.partial(evaluate, task, devices, predict)
    put_batch = functools.partial(devices.put_micro_batches, count=settings.accumulate_steps)
    evaluation: Evaluation | None = None  # of `step`, if that was evaluated
    recent: list[dict[str, Any]] = []  # metrics of the updates since the last training line
    clock, clock_step = time.monotonic(), step  # since when only updates were made
    profile = UpdatesProfile(
        workdir / 'profile',
        profile_steps,
        first_step=steps.start,
        total_steps=total_steps,
        evaluate_every_steps=settings.evaluate_every_steps,
    )

    with contextlib.ExitStack() as stack:
        if step:
            parallel.say(f'Resuming after step {step:,}.')
        stack.callback(checkpoints.close)
        metrics = Metrics(workdir, step=step, total_steps=total_steps, batch_size=batch_size)
        stack.callback(metrics.close)
        stack.callback(profile.close)
        batches = stack.enter_context(contextlib.closing(task.train_batches(step)))
        for step, batch in zip(steps, parallel.prefetch(batches, put_batch), strict=False):
            if step == steps.start:
                train_state, returned = asked.unless_stopped(update, train_state, batch)
            else:
                profile.begin(step, train_state)
                train_state, returned = update(train_state, batch)
            recent.append(returned)
            jax.block_until_ready(recent[-2:-1])  # run one update ahead of the devices, not more
            clock += profile.end(step, train_state)

            checkpoints.check()
            last, stop = step == total_steps, asked.should_stop()
            evaluates = last or step % settings.evaluate_every_steps == 0
            saves = last or stop or evaluates or step % settings.checkpoint_every_steps == 0
            # A line ends at every checkpoint, so that resuming neither loses nor repeats a step.
            logs = saves or step % settings.log_every_steps == 0
            if not logs:
                if step == steps.start:  # compilation is over: rates are taken from here on
                    clock, clock_step = time.monotonic(), step
                continue

            recent = devices.fetch(recent)
            check_finite(recent, step, saved_step)
            examples = (step - clock_step) * batch_size
            rates = {
                'learning_rate': float(schedule(step - 1)),
                'examples_per_second': examples / (time.monotonic() - clock),
            }
            metrics.write(step, 'train', summarise(recent) | rates, sync=saves)
            recent = []
            evaluation, score = None, None
            if evaluates:
                evaluation = evaluate_now(train_state.evaluated, train_state.state)
                metrics.write(step, 'eval', evaluation[0], sync=saves)
                score = evaluation[0][task.metric] * (1 if task.higher_is_better else -1)
            if saves:
                host_state, saved_step = devices.fetch(train_state), step
                seconds = seconds_before + time.monotonic() - began
                checkpoints.save(step, host_state, wall_seconds=seconds, score=score)
            if stop and not last:
                if asked.by_ctrl_c:
                    raise KeyboardInterrupt
                return None
            clock, clock_step = time.monotonic(), step

    if evaluation is None:  # the run was finished before: no update was made
        if (workdir / 'result.json').exists() and (workdir / 'report.png').exists():
            return read_json(workdir / 'result.json')
        evaluation = evaluate_now(train_state.evaluated, train_state.state)
    numbers, predictions = evaluation
    result = {
        'task': config.task,
        'config': config_name,
        'data': data_name,
        'metric': task.metric,
        'value': numbers[task.metric],
        'paper_value': paper_value,
        'steps': step,
        'examples': step * batch_size,
        'parameters': sum(array.size for array in jax.tree.leaves(host_state.params)),
        'params_sha256': digest(flatten(host_state.evaluated)),
        'wall_seconds': seconds,
        'device': parallel.device_name(),
        'git_commit': git_commit(),
        'seed': config.seed,
        'date': now(),
    }
    if writes:
        write_json(workdir / 'result.json', result)
        draw = functools.partial(
            task.draw, params=host_state.evaluated, state=host_state.state, predictions=predictions
        )
        write_report(
            workdir / 'report.png', metrics.rows, config_name, draw, result, task.loss_unit
        )
    return result


def compile_update(
    config: ConfigDict,
    task: Any,
    optimizer: optax.GradientTransformation,
    devices: parallel.Jit | parallel.Pmap,
) -> Callable:
    """Compiles `update_step` for a run, at its first call.

    Args:
      config: The run's configuration, of which `seed` and `train` are read.
      task: The `experiments.tasks.Task` that gives the loss.
      optimizer: The optimizer.
      devices: What `parallel.make` returned.

    Returns:
      `update(train_state, batch) -> (train_state, metrics)`, on the devices.
    """
    update = functools.partial(
        update_step,
        task.loss,
        optimizer,
        seed=config.seed,
        batch_size=config.train.batch_size,
        average=devices.average,
        freeze=config.train.freeze,
        ema_decay=config.train.ema_decay,
    )
    return devices.compile_update(update)


def update_step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    train_state: TrainState,
    batch: dict[str, jax.Array],
    *,
    seed: int,
    batch_size: int,
    average: Callable,
    freeze: Sequence[str] = (),
    ema_decay: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one update; a pure function.

    Args:
      loss: The task's `loss(params, state, rng, batch) -> (loss, (state, metrics))`. Random numbers
        are derived from the rng and each example's `index`.
      optimizer: The optimizer, applied once.
      train_state: The state before the update.
      batch: Arrays `[k, b, ...]`, k micro-batches of b examples: their gradients are computed one
        after the other and averaged.
      seed: The run's seed; the rng depends on it and on the step alone.
      batch_size: Examples in the global batch.
      average: Function that returns the mean of a tree over the devices.
      freeze: Patterns of the parameters that stay as they are; see `split`. A frozen `BatchNorm`
        works as in evaluation.
      ema_decay: What the moving average of the parameters keeps of itself in an update, less in the
        first ones: (1 + step) / (10 + step). 0: no average is kept.

    Returns:
      The state after the update, and scalar metrics: the loss and the gradient norm are those of
      the parameters before the update, the parameter norm is that after it.
    """
    rng = jax.random.fold_in(jax.random.key(seed), train_state.step)
    trained, frozen = split(train_state.params, freeze)

    def loss_of(trained, state, micro_batch):
        with frozen_batch_norm(frozen.keys() - trained.keys()):
            return loss(hk.data_structures.merge(trained, frozen), state, rng, micro_batch)

    def add_micro_batch(carry, micro_batch):
        gradients, state = carry
        (value, (state, metrics)), more = jax.value_and_grad(loss_of, has_aux=True)(
            trained, state, micro_batch
        )
        return (jax.tree.map(jnp.add, gradients, more), state), {'loss': value, **metrics}

    carry = jax.tree.map(jnp.zeros_like, trained), train_state.state
    num_micro_batches = jax.tree.leaves(batch)[0].shape[0]
    if num_micro_batches == 1:  # a loop of one round would be a loop: slow convolutions on CPUs
        (gradients, state), metrics = add_micro_batch(carry, jax.tree.map(lambda x: x[0], batch))
    else:
        (gradients, state), metrics = jax.lax.scan(add_micro_batch, carry, batch)
    gradients = jax.tree.map(lambda x: x / num_micro_batches, gradients)
    metrics = jax.tree.map(jnp.mean, metrics)
    if 'broken' in batch:
        metrics['broken_examples'] = batch_size * jnp.mean(batch['broken'].astype(jnp.float32))
    gradients, state, metrics = average((gradients, state, metrics))

    updates, opt_state = optimizer.update(gradients, train_state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    params = hk.data_structures.merge(trained, frozen)
    ema = train_state.ema
    if ema_decay:
        step = train_state.step.astype(jnp.float32)
        moved = 1 - jnp.minimum(ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda average, new: average + moved * (new - average), ema, trained)
    metrics['gradient_norm'] = optax.tree.norm(gradients)
    metrics['parameter_norm'] = optax.tree.norm(params)
    return TrainState(train_state.step + 1, params, state, opt_state, ema), metrics


def init(config: ConfigDict, task: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Makes the state before the first update, the same in all processes.

    Args:
      config: The run's configuration, of which `seed` and `train` are read.
      task: The `experiments.tasks.Task` that initialises the model.
      optimizer: The optimizer.

    Returns:
      The state, on the default device.

    Raises:
      Refused: The state does not fit the device, or `train.freeze` does not fit the model.
    """
    traced = jax.jit(functools.partial(initial_state, config, task, optimizer)).trace()
    check_state(traced.out_info)  # before anything is allocated
    return tried_twice(lambda: traced.lower().compile()())()


def initial_state(
    config: ConfigDict, task: Any, optimizer: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first update; a pure function.

    Args:
      config: The run's configuration, of which `seed` and `train` are read.
      task: The `experiments.tasks.Task` that initialises the model.
      optimizer: The optimizer.

    Raises:
      Refused: `train.freeze` does not fit the model.
    """
    params, state = task.init(jax.random.key(config.seed))
    with below_key('train.freeze'):
        trained, _ = split(params, config.train.freeze)
    ema = trained if config.train.ema_decay else {}
    return TrainState(jnp.zeros((), jnp.int32), params, state, optimizer.init(trained), ema)


def started(train_state: TrainState, params: Any, state: Any) -> TrainState:
    """Returns the state before the first update of a run that starts from weights.

    Args:
      train_state: The same with random weights.
      params: The parameters that it starts from.
      state: The model's state, likewise.
    """
    ema = hk.data_structures.filter(
        lambda module, name, _: name in train_state.ema.get(module, {}), params
    )
    return train_state._replace(params=params, state=state, ema=ema)


def split(params: hk.Params, freeze: Sequence[str]) -> tuple[hk.Params, hk.Params]:
    """Splits parameters in those that are trained and those that stay as they are.

    Args:
      params: Haiku's parameters.
      freeze: What is to stay: patterns, see `perceiver_jax.weights.labels.matching`.

    Returns:
      The trained parameters and the frozen ones, each without the modules that have none.

    Raises:
      Refused: A pattern fits no parameter, or nothing is left to train.
    """
    names = matching(freeze, flatten_weights(params))
    frozen, trained = hk.data_structures.partition(
        lambda module, name, _: f'{module}:{name}' in names, params
    )
    if not trained:
        raise Refused(f'{", ".join(freeze)} are all parameters: nothing is left to train')
    return trained, frozen


def taken_names(task: Any, start: Start) -> set[str]:
    """Returns the flat names of the parameters that a run did not start anew.

    Args:
      task: The `experiments.tasks.Task` of the run.
      start: What it starts from.
    """
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    return flatten_weights(params).keys() - set(start.facts['new_names'])


def trained_text(params: hk.Params, freeze: Sequence[str]) -> str:
    """Returns a sentence: how many parameters are trained, and which are not.

    Args:
      params: Haiku's parameters.
      freeze: `config.train.freeze`.
    """
    trained, _ = split(params, freeze)
    counts = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, params)]
    return (
        f'{counts[0]:,} of {counts[1]:,} parameters are trained; '
        f'config.train.freeze is {", ".join(freeze)}.'
    )


def summarise(returned: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Returns the mean of each metric over several updates; of `broken_examples`, the sum."""
    total = {name: float(sum(metrics[name] for metrics in returned)) for name in returned[0]}
    return {
        name: value if name == 'broken_examples' else value / len(returned)
        for name, value in total.items()
    }


def check_finite(returned: list[dict[str, np.ndarray]], step: int, saved_step: int) -> None:
    """Raises FloatingPointError if a loss or a norm is not finite; names the first such update.

    Args:
      returned: Metrics of successive updates.
      step: Number of the last of these updates.
      saved_step: Step of the newest checkpoint; 0 if there is none yet.
    """
    for at, metrics in enumerate(returned, start=step - len(returned) + 1):
        for name in ('loss', 'gradient_norm', 'parameter_norm'):
            if not np.isfinite(metrics[name]):
                raise FloatingPointError(
                    f'{name} is {metrics[name]} at step {at}; the last good checkpoint is '
                    + (f'of step {saved_step}' if saved_step else 'not there yet')
                )
