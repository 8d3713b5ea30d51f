"""One of several processes that train the toy task together; started by test_parallel.py.

python tests/toys/toy_process.py <coordinator> <num_processes> <process_id> <folder>

Tests that start processes wait for their progress with `wait_for_step`.
"""

import sys
import time
from pathlib import Path

from experiments.training import loop, parallel
from tests.toys.toy_task import ToyTask, get_config

SELDOM = dict(checkpoint_every_steps=20, evaluate_every_steps=10)  # processes save together: slow


def wait_for_step(workdir, step, timeout=300.0):
    """Returns when metrics.jsonl tells that a run has made an update."""
    metrics = Path(workdir, 'metrics.jsonl')
    wait_for(lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(), timeout)


def wait_for(condition, timeout=300.0):
    """Returns when a function returns True."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f'waited in vain for {timeout} s')
        time.sleep(0.02)


if __name__ == '__main__':
    coordinator, num_processes, process_id, folder = sys.argv[1:]
    parallel.initialize(coordinator, int(num_processes), int(process_id))

    config = get_config(steps=30, accumulate_steps=2, log_every_steps=1, **SELDOM)
    task = ToyTask(config)
    task.broken = 3
    task.on_step = lambda step: time.sleep(0.1)  # time for a signal to come
    try:
        result = loop.train(config, task, Path(folder, 'jit'), 'toy')
        print('stopped' if result is None else 'not stopped', flush=True)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
    task.on_step = lambda step: None
    loop.train(config, task, Path(folder, 'jit'), 'toy')

    config = get_config(steps=4, log_every_steps=1, **SELDOM)
    config.parallel = 'pmap'
    task = ToyTask(config)
    task.broken = 3
    loop.train(config, task, Path(folder, 'pmap'), 'toy')

    # Differing configs; a checkpoint that one alone sees; a folder that the test has locked.
    mine = Path(folder, f'apart{process_id}')
    if process_id == '0':
        (mine / 'checkpoints' / '4').mkdir(parents=True)
    for seed, workdir in ((7 + int(process_id), mine), (7, mine), (7, Path(folder, 'locked'))):
        config.seed = seed
        try:
            loop.train(config, ToyTask(config), workdir, 'toy')
        except ValueError as error:
            print('refused:', str(error).partition('; choose')[0], flush=True)

    parallel.barrier('both have printed what they were refused')
    Path(folder, 'done').touch()  # one is killed while the other waits for it
    if process_id == '1':
        time.sleep(100)
    parallel.barrier('never passed')
