"""Runs that are killed, fill the disk, or are two processes: resumed, they end as if left alone.

Each function takes a seed, the run's folder (empty) and a deadline on time.monotonic's clock, and
returns an `Outcome`.
"""

import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.campaign import Outcome
from tests.toys.toy_process import wait_for_step

KILLS = 4  # of a run, before it is left to finish
CALLS = ('fsync', 'rename', 'replace', 'mkdir', 'unlink')  # before which a run is killed
SIZES = dict(steps=60, log_every_steps=1, checkpoint_every_steps=7, evaluate_every_steps=20)
# Of the demo's layers one of each: every process traces and compiles them.
LAYERS = dict(num_cross_attends=1, num_blocks=1, num_self_attends_per_block=1)
END_TOGETHER = 30.0  # seconds in which the others end when one process was killed


def command_of(workdir, *more, num_workers=0, before=None):
    """Returns the command of a run; `before` is a call of the system and its number."""
    command = [sys.executable, '-m', 'experiments.launch']
    if before:
        call, number = before
        command[2:] = ['tests.faults.killed_at', call, str(number), 'experiments.launch']
    command += ['--config=configs/imagenet.py:demo', f'--workdir={workdir}']
    command += [f'--config.data.num_workers={num_workers}', *more]
    command += [f'--config.train.{key}={value}' for key, value in SIZES.items()]
    return command + [f'--config.model.encoder.{key}={value}' for key, value in LAYERS.items()]


def start(command):
    """Starts a command in a session of its own, which its workers belong to."""
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
def left_alone(num_processes=1):
    """Returns what a run ends with that nobody disturbs, and how long it takes in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        if num_processes == 1:
            processes = [start(command_of(folder))]
        else:
            processes = start_two(Path(folder))
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError(outputs)
        return outcome_of(Path(folder)), time.monotonic() - begin


def judged(seed, cases, problem):
    return Outcome(cases, 0 if problem else cases, 0, [(seed, problem)] if problem else [])


def kills(seed, folder, deadline=float('inf')):
    """Kills a run at random moments and before random calls of the system, and resumes it."""
    expected, seconds = left_alone()
    rng, count = random.Random(seed), 0
    while True:
        last = count == KILLS or time.monotonic() > deadline
        before = None if last or rng.random() < 0.5 else (rng.choice(CALLS), rng.randint(1, 40))
        process = start(command_of(folder, num_workers=rng.choice([0, 0, 1]), before=before))
        wait = 60 + 10 * seconds if last or before else rng.uniform(0.3, seconds)
        try:
            output, _ = process.communicate(timeout=wait)
            if process.returncode != -signal.SIGKILL:
                break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if last:
                break
        count += 1
    problem = None
    if process.returncode:
        problem = f'after {count} kills it ended with {process.returncode}: {output[-300:]!r}'
    elif outcome_of(folder) != expected:
        problem = f'after {count} kills it ended otherwise than one left alone'
    return judged(seed, count, problem)


def full_disks(seed, folder, deadline=float('inf')):
    """Fills the disk of a run, which must end at once with one line, makes room and resumes it.

    The disk is a tmpfs in a name space of its own, so that nobody need be root.
    """
    expected, seconds = left_alone()
    size = random.Random(seed).randint(40, 4000)  # kB; a finished run takes about 4.5 MB
    disk = folder / 'disk'
    disk.mkdir()
    run = ' '.join(command_of(disk / 'run'))
    script = f"""
        mount -t tmpfs -o size={size}k none {disk}
        {run}; echo "ended with $?"
        mount -o remount,size=100m {disk}
        {run} && cp {disk}/run/result.json {disk}/run/metrics.jsonl {folder}
    """
    process = start(['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script])
    try:
        output, _ = process.communicate(timeout=60 + 10 * seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return judged(seed, 1, f'a disk of {size} kB hangs it: {output[-300:]!r}')
    first = output.partition('ended with')[0]
    errors = [line for line in first.splitlines() if line.startswith('error: ')]
    problem = None
    if process.returncode:
        problem = f'a disk of {size} kB: {output[-300:]!r}'
    elif 'Traceback' in output or (errors and 'No space left on device' not in errors[0]):
        problem = f'a disk of {size} kB is told in many words: {output[:300]!r}'
    elif len(errors) > 1 or ('ended with 0' not in output and not errors):
        problem = f'a disk of {size} kB is not told in one line: {output[:300]!r}'
    elif outcome_of(folder) != expected:
        problem = f'after a disk of {size} kB it ended otherwise than one left alone'
    return judged(seed, 1, problem)


def start_two(workdir, **second):
    """Starts a run of two processes; `second` are keys of the config that the second one sets."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        coordinator = f'localhost:{free.getsockname()[1]}'
    joined = [f'--coordinator={coordinator}', '--num_processes=2']
    commands = [command_of(workdir, *joined, f'--process_id={number}') for number in range(2)]
    commands[1] += [f'--config.{key}={value}' for key, value in second.items()]
    return [start(command) for command in commands]


def two_processes(seed, folder, deadline=float('inf')):
    """Kills or interrupts one of two processes, and resumes both; first, their configs differ."""
    expected, _ = left_alone(2)
    rng = random.Random(seed)
    processes = start_two(folder, seed=43)
    outputs = [process.communicate()[0] for process in processes]
    if not all('config.seed is 43, not 42' in output for output in outputs):
        return judged(seed, 2, f'two seeds are not told: {outputs!r:.500}')
    processes = start_two(folder)
    number, how = rng.randrange(2), rng.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    wait_for_step(folder, rng.randint(1, SIZES['steps'] - 20))
    processes[number].send_signal(how)
    try:
        outputs = [process.communicate(timeout=END_TOGETHER)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
        outputs = [process.communicate()[0] for process in processes]
        return judged(seed, 2, f'{how.name} to process {number} hangs one: {outputs!r:.500}')
    if how == signal.SIGKILL:
        told = 'the others end with it' in outputs[1 - number]
    else:
        status = 130 if how == signal.SIGINT else 0
        told = (processes[number].returncode, processes[1 - number].returncode) == (status, 0)
    if not told:
        return judged(seed, 2, f'{how.name} to process {number} is not told: {outputs!r:.500}')
    processes = start_two(folder)
    outputs = [process.communicate()[0] for process in processes]
    problem = None
    if any(process.returncode for process in processes):
        problem = f'after {how.name} to process {number} they end with {outputs!r:.500}'
    elif outcome_of(folder) != expected:
        problem = f'after {how.name} to process {number} they end otherwise than left alone'
    return judged(seed, 2, problem)
