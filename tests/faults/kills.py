"""Kills runs at random moments and resumes them: they end as if they had been left alone."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import Outcome

KILLS = 4  # of a run, before it is left to finish
SIZES = dict(steps=60, log_every_steps=1, checkpoint_every_steps=7, evaluate_every_steps=20)
# Of the demo's layers one of each: every process traces and compiles them.
LAYERS = dict(num_cross_attends=1, num_blocks=1, num_self_attends_per_block=1)


def start(workdir, num_workers):
    """Starts or resumes a run in a session of its own, which its workers belong to."""
    command = [sys.executable, '-m', 'experiments.launch', '--config=configs/imagenet.py:demo']
    command += [f'--workdir={workdir}', f'--config.data.num_workers={num_workers}']
    command += [f'--config.train.{key}={value}' for key, value in SIZES.items()]
    command += [f'--config.model.encoder.{key}={value}' for key, value in LAYERS.items()]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, start_new_session=True, **pipe)


def outcome_of(workdir):
    """Returns what must be equal: the weights' hash, the metric, and the metrics of each step."""
    result = json.loads((workdir / 'result.json').read_text())
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    for row in rows:
        row.pop('examples_per_second', None)
    return result['params_sha256'], result['value'], rows


@functools.cache
def left_alone():
    """Returns what a run ends with that nobody kills, and how long it takes in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        process = start(folder, 0)
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(output)
        return outcome_of(Path(folder)), time.monotonic() - begin


def try_run(seed, folder, deadline=float('inf')):
    """Kills a run some times, and resumes it until it is finished.

    Args:
      seed: Seed of the moments, and of the numbers of workers.
      folder: The run's folder.
      deadline: When to kill no more, on time.monotonic's clock.

    Returns:
      An `Outcome` whose cases are the kills.
    """
    expected, seconds = left_alone()
    rng, kills = random.Random(seed), 0
    while True:
        process = start(folder, rng.choice([0, 0, 1]))
        last = kills == KILLS or time.monotonic() > deadline
        wait = 60 + 10 * seconds if last else rng.uniform(0.3, seconds)
        try:
            output, _ = process.communicate(timeout=wait)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if last:
                break
            kills += 1
    problem = None
    if process.returncode:
        problem = f'after {kills} kills it ended with {process.returncode}: {output[-300:]!r}'
    elif outcome_of(folder) != expected:
        problem = f'after {kills} kills it ended otherwise than one left alone'
    faults = [] if problem is None else [(seed, problem)]
    return Outcome(kills, kills if problem is None else 0, 0, faults)
