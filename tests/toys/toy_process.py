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


def wait_for_step(workdir, step, timeout=100.0):
    """Returns when metrics.jsonl tells that a run has made an update."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        metrics = Path(workdir, 'metrics.jsonl')
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.02)
    raise TimeoutError(f'{workdir} has not come to step {step} in {timeout} s')


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

    # Fewer steps than at the signal, of which jax reminds whenever that step comes again.
    config = get_config(steps=4, log_every_steps=1, **SELDOM)
    config.parallel = 'pmap'
    task = ToyTask(config)
    task.broken = 3
    loop.train(config, task, Path(folder, 'pmap'), 'toy')
