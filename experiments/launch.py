"""The command line: trains, evaluates or describes a config, or lists its keys.

    python -m experiments.launch --config=configs/imagenet.py:demo --workdir=runs/demo

Any key can be set, as in --config.optimizer.learning_rate=1e-3. The same command again resumes.
--mode=keys lists the keys with their values and with the config file's comments: "at 4: ..." where
a comment stands beside another value, 4.
--mode=eval takes the run's own config from its folder: --workdir is enough, and only the keys that
are set here change it. With --weights=FILE, a folder, a run or a name on Hugging Face's hub, it
evaluates those on the data and by the protocol of --config, and writes to --workdir.
--config.init_from=FILE has a run start from such weights. Where they say other arguments than
config.model, --model_from=weights takes theirs.
--mode=compile --target=v3-64 tells whether the run fits devices that are not here, and what it
needs there.
--profile=20 traces 20 updates and prints the ten costliest kernels. Compiled programs are kept for
the next start: --compilation_cache names the folder.
On several machines, run it on each of them: SLURM, Open MPI and TPU pods need nothing else,
otherwise give --coordinator=<host>:<port> --num_processes=<n> --process_id=<0..n-1>.
"""

import argparse
import json
import sys
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from experiments.command_line import (
    end_at_once,
    fail,
    local_path,
    one_line_errors,
    quiet_libraries,
    refuse,
    run_path,
)
from experiments.config_parsing import (
    check_config_file,
    config_of,
    parse_config_flags,
    replace_length,
)
from experiments.planning import targets

# Grain's workers import this file again, and no mode needs what the others import: what is slow to
# import, jax and perceiver_jax too, is imported where it is used.

CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/<task>.py:<variant>')
WORKDIR = flags.DEFINE_string('workdir', '', 'Folder of the run, which can be gs://bucket/run.')
MODES = ('train', 'eval', 'describe', 'compile', 'keys')
MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which one to evaluate.')
WEIGHTS = flags.DEFINE_string(
    'weights', None, "Evaluate these: a file, a folder, a run, or a name on Hugging Face's hub."
)
MODEL_FROM = flags.DEFINE_enum(
    'model_from',
    'config',
    ['config', 'weights'],
    'What counts where --weights or config.init_from say other arguments than config.model.',
)
JSON = flags.DEFINE_bool(
    'json', False, 'Describe, or tell what was compiled, as one JSON object instead of a table.'
)
TARGET = flags.DEFINE_string(
    'target', None, 'Devices to compile for, which need not be here: v3-64, v5e-16, h100, h100x8.'
)
TARGET_BATCH = flags.DEFINE_enum(
    'target_batch', None, ['max'], 'max: look for the largest batch that fits the target.'
)
SHARE = flags.DEFINE_float(
    'share',
    targets.SHARE_OF_PEAK,
    "Share of the target's peak at which time is estimated.",
    0.01,
    1,
)
PROFILE = flags.DEFINE_integer(
    'profile', None, 'Updates to trace into WORKDIR/profile; prints the costliest kernels.', 1
)
COMPILATION_CACHE = flags.DEFINE_string(
    'compilation_cache',
    None,
    "Folder for compiled programs, '' for none; without it JAX_COMPILATION_CACHE_DIR of the "
    "environment, or perceiver_jax in the user's cache directory.",
)
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, "host:port of process 0; 'auto' has jax find the processes."
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is.')
flags.mark_flag_as_required('config')

# What is printed when the memory is not enough.
SMALLER = (
    'less is needed with a smaller config.train.batch_size or a greater '
    'config.train.accumulate_steps, a smaller config.evaluation.batch_size, a smaller '
    'config.model.encoder.num_latents or latent_channels, and with '
    'config.model.encoder.remat_blocks and remat_cross_attends'
)


def main(argv: list[str]) -> None:
    """Runs the mode that the flags name.

    Args:
      argv: What is left of the command line without the flags: the program's name.

    Raises:
      Refused: The command line or the config cannot be used.
    """
    if len(argv) > 1:
        refuse(f'unexpected argument {argv[1]!r}: flags are written --name=value')
    if (MODE.value == 'compile') != (TARGET.value is not None):
        refuse(f'--mode=compile and --target go together, got --mode={MODE.value}')
    if TARGET_BATCH.value and MODE.value != 'compile':
        refuse('--target_batch goes with --mode=compile alone')
    if MODE.value in ('train', 'eval') and not WORKDIR.value:
        refuse(f'--mode={MODE.value} needs --workdir')
    if WEIGHTS.value is not None and MODE.value != 'eval':
        refuse('--weights goes with --mode=eval alone; a run starts from --config.init_from')
    starts = MODE.value == 'train' and CONFIG.value.init_from
    if MODEL_FROM.value == 'weights' and WEIGHTS.value is None and not starts:
        refuse('--model_from=weights goes with --weights, or with training from config.init_from')
    if PROFILE.value is not None and MODE.value != 'train':
        refuse(f'--profile={PROFILE.value} is of updates: it goes with --mode=train alone')
    flags.FLAGS['workdir'].value = run_path(WORKDIR.value, '--workdir')
    if COMPILATION_CACHE.value is not None:
        cache = local_path(COMPILATION_CACHE.value, '--compilation_cache')
        flags.FLAGS['compilation_cache'].value = cache
    quiet_libraries()
    config, overrides = CONFIG.value, config_flags.get_override_values(flags.FLAGS['config'])
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    of_run = MODE.value == 'eval' and WEIGHTS.value is None
    name = config_name(evaluated_name() if of_run else path, overrides)
    replace_length(config, overrides)
    if MODE.value == 'keys':
        list_keys(config, path)
        return
    if MODE.value == 'compile':
        compile_for_target(config, name)
        return

    from experiments.tasks import make_task
    from experiments.training import parallel

    parallel.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if WEIGHTS.value is not None:
        evaluate_weights(config, name)
        return
    if starts:
        task, start = start_of(config)
        train(config, task, name, start)
        return
    try:
        task = make_task(config)
    except (AttributeError, TypeError) as error:
        if not of_run:
            raise
        path = workdir() / 'config.json'  # keys of another version
        refuse(f'{path} is not the config of a run: {error!r:.300}')
    if MODE.value == 'describe':
        describe(task)
    elif MODE.value == 'eval':
        evaluate(config, task, name)
    else:
        train(config, task, name)


def list_keys(config: ConfigDict, path: str) -> None:
    """Prints the keys of a config, with the comments of its file.

    Args:
      config: The config.
      path: The value of --config.
    """
    from experiments.keys import keys_table

    with tokenize.open(path.partition(':')[0]) as file:  # in the encoding that it names
        print(keys_table(config.to_dict(), file.read()))


def compile_for_target(config: ConfigDict, name: str) -> None:
    """Compiles the run for devices that need not be here, and prints what it needs there."""
    target = targets.find(str(TARGET.value))
    targets.prepare(target)

    from experiments.planning.plan import make_plan, plan_table

    largest = TARGET_BATCH.value == 'max'
    plan = make_plan(config, name, target, largest_batch=largest, share=SHARE.value)
    print(json.dumps(plan) if JSON.value else plan_table(plan))


def describe(task: Any) -> None:
    """Prints the sizes and cost of the task's model."""
    from experiments.training.describe import describe_table

    sizes = task.describe()
    print(json.dumps(sizes) if JSON.value else describe_table(sizes))


def evaluate(config: ConfigDict, task: Any, name: str) -> None:
    """Evaluates a checkpoint, which prints the headline metric."""
    from experiments.training.compiling import keep_programs
    from experiments.training.evaluate import evaluate_checkpoint

    keep_programs(COMPILATION_CACHE.value, WORKDIR.value)
    best = CHECKPOINT.value == 'best'
    evaluate_checkpoint(config, task, workdir(), name, best)


def evaluate_weights(config: ConfigDict, name: str) -> None:
    """Evaluates the weights that --weights names, which prints the headline metric."""
    from experiments.open_model import open_to_evaluate
    from experiments.training import evaluate
    from experiments.training.compiling import keep_programs

    weights = run_path(str(WEIGHTS.value), '--weights')
    keep_programs(COMPILATION_CACHE.value, WORKDIR.value)
    best = CHECKPOINT.value == 'best'
    task, model = open_to_evaluate(config, weights, best=best, side=MODEL_FROM.value)
    evaluate.evaluate_weights(config, task, workdir(), name, weights, model)


def start_of(config: ConfigDict) -> tuple[Any, Any]:
    """Returns the task of a run that starts from weights, and the `loop.Start`.

    The weights are read for the first start alone: a run that goes on has what they gave.

    Args:
      config: The config, with `init_from`; changed where the side of the weights counts.
    """
    from experiments.open_model import open_to_start
    from experiments.run_config import get_config, started_from
    from experiments.tasks import make_task
    from experiments.training import parallel
    from experiments.training.agreement import agreement
    from experiments.training.loop import Start

    config.init_from = run_path(config.init_from, '--config.init_from')
    facts = started_from(workdir())
    if facts is not None:
        if MODEL_FROM.value == 'weights':  # as the first start has taken it
            with config.unlocked(), config.ignore_type():
                config.model = get_config(workdir()).model
        return make_task(config), Start(facts)
    with agreement(config, workdir()) as data:
        task, start = open_to_start(config, side=MODEL_FROM.value)
        data['sha256 of the weights'] = start.facts['params_sha256']
    parallel.say(
        f'Parameters from {config.init_from}: {start.facts["taken"]:,} taken, '
        f'{start.facts["resampled"]:,} resampled, {start.facts["new"]:,} new.'
    )
    return task, start


def train(config: ConfigDict, task: Any, name: str, start: Any = None) -> None:
    """Trains to the end or until SIGTERM, and prints the headline metric.

    Args:
      config: The config.
      task: The task made from it.
      name: What the config is called.
      start: The `loop.Start` of a run that starts from weights.
    """
    from experiments.results import load_result
    from experiments.training import loop, parallel, stopping
    from experiments.training.compiling import keep_programs

    if (before := workdir() / 'result.json').exists():
        load_result(before)  # a run that is finished ends with it: refused if damaged
    keep_programs(COMPILATION_CACHE.value, WORKDIR.value)
    try:
        result = loop.train(config, task, WORKDIR.value, name, PROFILE.value or 0, start)
    except stopping.StoppedEarly as stopped:
        if stopped.by_ctrl_c:
            raise
        parallel.say(f'{stopped}.')
        end_at_once(0)
    if result is None:
        parallel.say('Stopped by SIGTERM, after a checkpoint. The same command resumes.')
        return
    paper = '' if result['paper_value'] is None else f' (paper: {result["paper_value"]:.4f})'
    parallel.say(f'{result["metric"]} {result["value"]:.4f}{paper} on {result["data"]}')
    parallel.say(f'The curves and sample predictions are in {workdir() / "report.png"}')


def evaluated_name() -> str:
    """Returns what the run in --workdir is called: as in its result, or else by its config.json."""
    from perceiver_jax.errors import Refused
    from perceiver_jax.files import read_json

    try:
        name = read_json(workdir() / 'result.json')['config']
    except (OSError, Refused, KeyError):  # not finished, or damaged
        name = None
    return name if isinstance(name, str) else str(workdir() / 'config.json')


def workdir() -> Path:
    """Returns the folder of the run, which may be one of a bucket."""
    from experiments.paths import path_of

    return path_of(WORKDIR.value)


def config_name(path: str, overrides: Mapping[str, Any]) -> str:
    """Returns what a run is called: its config, and the keys that the command line set.

    Args:
      path: The value of --config, such as 'configs/imagenet.py:demo', or the name of a run.
      overrides: Keys below --config, and their values.
    """
    return ' '.join([path, *(f'--config.{key}={value}' for key, value in overrides.items())])


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line, and evaluates the config file that it names.

    To evaluate, the config of the run stands where that of the file would.

    Args:
      argv: The command line, the program's name first.

    Returns:
      What is left of it without the flags.

    Raises:
      Refused: The config file raised ValueError, as configs do for what they do not know; or there
        is no such file, or it has no such key; or no run's folder is given to evaluate.
      flags.Error: A flag is unknown, or its value is not of its type.
      Exception: Whatever else a config file raised: a bug in it.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ('mode', 'workdir', 'config', 'weights'):
        early.add_argument(f'-{name}', f'--{name}', nargs='?')
    given, others = early.parse_known_args(argv[1:])
    if given.config is not None:
        path = local_path(given.config, '--config')
        check_config_file(path)
        forms = {flag + given.config: flag + path for flag in ('', '-config=', '--config=')}
        argv = [forms.get(x, x) for x in argv]
    if given.mode != 'eval' or given.weights is not None:
        return parse_config_flags(flags.FLAGS, argv)
    if not given.workdir:
        refuse('--mode=eval needs --workdir')

    from experiments import run_config

    folder = run_path(given.workdir, '--workdir')
    run = f'--config={run_config.__file__}:{folder}'
    rest = parse_config_flags(
        flags.FLAGS, [argv[0], run, '--mode=eval', f'--workdir={folder}', *others]
    )
    if given.config:
        tell_differences(local_path(given.config, '--config'))
    return rest


def tell_differences(path: str) -> None:
    """Tells how the config file differs from the config of the run, which counts.

    Args:
      path: The value of --config.

    Raises:
      Refused: The file refuses its variant.
    """
    from experiments.training.checks import differences  # slow to import

    file = config_of([f'--config={path}'])
    overrides = config_flags.get_override_values(flags.FLAGS['config'])
    replace_length(file, overrides)
    replace_length(CONFIG.value, overrides)
    differing = differences(CONFIG.value.to_dict(), file.to_dict())
    for key, (ours, theirs) in differing.items():
        if key == 'model.num_classes' and theirs == 0:  # the data told the run
            continue
        if not any(f'{key}.'.startswith(f'{override}.') for override in overrides):
            print(
                f'config.{key} is {ours!r} in {workdir() / "config.json"}, which counts, '
                f'and {theirs!r} in {path}',
                file=sys.stderr,
            )


def run() -> None:
    """Runs the command line."""
    with one_line_errors(
        'interrupted; the same command resumes from the last checkpoint', smaller=SMALLER
    ):
        try:
            app.run(main, flags_parser=parse_flags)
        except flags.Error as error:
            fail(error, 2)


if __name__ == '__main__':
    run()
