"""The demo through the command line: stopped, killed and resumed, it ends as if left alone."""

import json
import os
import signal
import subprocess
import sys

import pytest

from configs.imagenet import get_config
from experiments.imagenet.task import ImageNet
from experiments.training.loop import train
from tests.toys.toy_process import wait_for_step

pytestmark = pytest.mark.smoke

NAME = 'configs/imagenet.py:demo'
SIZES = dict(steps=20, log_every_steps=1, checkpoint_every_steps=5, evaluate_every_steps=10)
# Of the demo's layers one of each: four processes trace and compile them.
LAYERS = dict(num_cross_attends=1, num_blocks=1, num_self_attends_per_block=1)


def start(workdir, num_workers):
    command = [sys.executable, '-m', 'experiments.launch', f'--config={NAME}']
    command += [f'--workdir={workdir}', f'--config.data.num_workers={num_workers}']
    command += [f'--config.train.{key}={value}' for key, value in SIZES.items()]
    command += [f'--config.model.encoder.{key}={value}' for key, value in LAYERS.items()]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its workers can be killed with it
    )


def finish(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert 'Traceback' not in output
    return output


def wait_for(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f'{text!r} did not come: {"".join(lines)}')


def read(workdir):
    """The result without times and overrides, and the lines of metrics.jsonl without rates."""
    result = json.loads((workdir / 'result.json').read_text())
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for row in rows:
        row.pop('examples_per_second', None)
    assert result['config'].split()[0] == NAME
    return {k: v for k, v in result.items() if k not in ('config', 'wall_seconds', 'date')}, rows


@pytest.mark.slow
def test_a_killed_run_resumes_with_another_number_of_workers(tmp_path):
    config = get_config('demo')
    config.train.update(SIZES)
    config.model.encoder.update(LAYERS)
    with config.ignore_type():
        config.train.epochs = None
    train(config, ImageNet(config), tmp_path / 'left alone', NAME)
    expected = read(tmp_path / 'left alone')

    process = start(tmp_path / 'run', num_workers=0)
    wait_for_step(tmp_path / 'run', 6)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    process = start(tmp_path / 'run', num_workers=1)
    wait_for(process, 'step ')
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C in a terminal goes to the workers too
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 130 and 'KeyboardInterrupt' not in output, output
    assert 'error: interrupted; the same command resumes from the last checkpoint\n' in output
    assert not (tmp_path / 'run' / 'result.json').exists()

    assert 'report.png' in finish(start(tmp_path / 'run', num_workers=0))
    assert read(tmp_path / 'run') == expected
