"""Every task is made from its config, offers what the loop needs, and imports no more than that."""

import json
import subprocess
import sys
from pathlib import Path

import ml_collections
import pytest

from configs import flow, imagenet
from experiments.tasks import TASKS, Task, make_task
from perceiver_jax.errors import Refused
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.transfer import compare_arguments
from tests.toys.configs import CONFIGS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', TASKS)
def test_a_task_has_every_member_that_the_loop_needs(name):
    task = make_task(CONFIGS[name].get_config('demo'))
    members = {*Task.__annotations__, *(x for x in vars(Task) if not x.startswith('_'))}
    assert {'metric', 'train_batches', 'draw'} <= members
    missing = {x for x in members if not hasattr(type(task), x) and x not in vars(task)}
    assert missing == set()


def test_an_unknown_task_is_refused_with_its_near_misses():
    with pytest.raises(
        Refused, match="config.task is 'imagnet', an unknown task. Did you mean imagenet?"
    ):
        make_task(ml_collections.ConfigDict({'task': 'imagnet'}))


@pytest.mark.parametrize('name', TASKS)
def test_describing_a_task_imports_no_library_that_it_does_not_use(name):
    script = (
        'import sys; from experiments import launch\n'
        'try: launch.run()\n'
        'except SystemExit: pass\n'
        'print(*sys.modules)'
    )
    arguments = [f'--config=configs/{name}.py:demo', '--mode=describe', '--json']
    command = [sys.executable, '-c', script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    sizes, modules = done.stdout.splitlines()
    assert json.loads(sizes)['parameters'] > 0, done.stderr
    loaded = set(modules.split())
    libraries = {'grain', 'matplotlib', 'orbax', 'sklearn', 'soundfile', 'tensorflow_datasets'}
    assert not libraries & loaded
    others = {f'experiments.{task}' for task in TASKS} - {f'experiments.{name}'}
    assert f'experiments.{name}.task' in loaded
    assert not others & loaded


def deepminds_tiles():
    config = flow.get_config('main')
    config.evaluation.placement = 'deepmind'
    return config


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('imagenet_fourier', imagenet.get_config('io_fourier')),
        ('imagenet_learned', imagenet.get_config('io_learned')),
        ('imagenet_conv', imagenet.get_config('io_conv')),
        ('optical_flow', flow.get_config('main')),
        ('optical_flow', deepminds_tiles()),
    ],
    ids=['fourier', 'learned', 'conv', 'flow', 'flow, placement=deepmind'],
)
def test_what_is_trained_is_what_was_released(name, config):
    released, trained = RELEASED[name], make_task(config).pretrained({}, {})
    assert trained.function == released.function
    assert compare_arguments(released.function, released.arguments, trained.arguments) == {}
    assert trained.front_end == released.front_end
