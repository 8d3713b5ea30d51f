"""The command line: trains, evaluates or describes a config.

    python -m experiments.launch --config=configs/imagenet.py:demo --workdir=runs/demo

Any key can be set, as in --config.optimizer.learning_rate=1e-3. The same command again resumes.
On several machines, run it on each of them: SLURM, Open MPI and TPU pods need nothing else,
otherwise give --coordinator=<host>:<port> --num_processes=<n> --process_id=<0..n-1>.
"""

import json
import logging
import re
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from configs.common import near_misses
from experiments.command_line import fail, one_line_errors
from experiments.training.describe import describe_table
from experiments.training.evaluate import evaluate_checkpoint
from perceiver_jax.errors import Refused

# Grain's workers import this file again: what is slow to import is imported where it is used.

CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/<task>.py:<variant>')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; not needed to describe.')
MODE = flags.DEFINE_enum('mode', 'train', ['train', 'eval', 'describe'], 'What to do.')
CHECKPOINT = flags.DEFINE_enum('checkpoint', 'last', ['last', 'best'], 'Which one to evaluate.')
JSON = flags.DEFINE_bool('json', False, 'Describe as one JSON object instead of a table.')
COORDINATOR = flags.DEFINE_string(
    'coordinator', None, "host:port of process 0; 'auto' has jax find the processes."
)
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Processes of the run.')
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is.')
flags.mark_flag_as_required('config')


def main(argv: list[str]) -> None:
    """Runs one mode."""
    if len(argv) > 1:
        raise Refused(f'unexpected argument {argv[1]!r}: flags are written --name=value')
    if MODE.value != 'describe' and not WORKDIR.value:
        raise Refused(f'--mode={MODE.value} needs --workdir')
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax and Grain log every step they take
    config, overrides = CONFIG.value, flags.FLAGS['config'].override_values
    name = ' '.join(
        [flags.FLAGS['config'].config_filename]
        + [f'--config.{key}={value}' for key, value in overrides.items()]
    )
    replace_length(config, overrides)

    from experiments.tasks import make_task
    from experiments.training import parallel

    parallel.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    task = make_task(config)
    if MODE.value == 'describe':
        sizes = task.describe()
        print(json.dumps(sizes) if JSON.value else describe_table(sizes))
    elif MODE.value == 'eval':
        best = CHECKPOINT.value == 'best'
        result = evaluate_checkpoint(config, task, Path(WORKDIR.value), name, best)
        say(f'{result["metric"]} {result["value"]:.4f} at step {result["step"]:,}')
    else:
        from experiments.training.loop import train

        result = train(config, task, WORKDIR.value, name)
        if result is not None:
            show(result)
            say(f'The curves and sample predictions are in {Path(WORKDIR.value, "report.png")}')
        else:
            say('Stopped by SIGTERM, after a checkpoint. The same command resumes.')


def replace_length(config, overrides: dict) -> None:
    """Has --config.train.steps replace the config's epochs, and the other way round."""
    for given, other in (('steps', 'epochs'), ('epochs', 'steps')):
        if f'train.{given}' in overrides and f'train.{other}' not in overrides:
            with config.ignore_type():
                config.train[other] = None


def show(result: dict) -> None:
    """Prints the headline metric."""
    paper = '' if result['paper_value'] is None else f' (paper: {result["paper_value"]:.4f})'
    say(f'{result["metric"]} {result["value"]:.4f}{paper} on {result["data"]}')


def say(line: str) -> None:
    """Prints, in one process."""
    from experiments.training import parallel

    if parallel.is_main_process():
        print(line)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what ml_collections says about a config becomes one line."""
    try:
        rest = flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        # An error of get_config is wrapped twice, with its traceback as text.
        cause = error.__context__ and error.__context__.__context__
        raise flags.Error(cause or error) from None
    except (KeyError, AttributeError) as error:
        hint = re.search('Did you mean "(.*?)"', str(error))
        while error.__context__:  # the first one holds the key alone
            error = error.__context__
        (key,) = error.args
        flag = next((a for a in argv if key in a.partition('=')[0].split('.')), '--config')
        known = f' Did you mean {hint[1]}?' if hint else ''
        raise flags.Error(f'Unknown key {key!r} in {flag}.{known}') from None
    path = flags.FLAGS['config'].config_filename.partition(':')[0]
    if not Path(path).is_file():
        configs = Path(__file__).resolve().parent.parent / 'configs'
        known = [x.stem for x in sorted(configs.glob('[!_]*.py')) if x.stem != 'common']
        raise flags.Error(f'No config file {path!r}. {near_misses(Path(path).stem, known)}')
    return rest


def run() -> None:
    """Runs the command line."""
    with one_line_errors('interrupted; the same command resumes from the last checkpoint'):
        try:
            app.run(main, flags_parser=parse_flags)
        except flags.Error as error:
            fail(error, 2)


if __name__ == '__main__':
    run()
