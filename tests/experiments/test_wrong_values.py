"""Each key of each demo, one at a time, set to what nobody means: one line says so, or it runs.

Wrong types, zero, negative and huge values, one number for a pair and the like, made from the value
that the config has. What is not refused must trace: an update and a prediction are made of shapes
alone. Without VALUES=all, which `make values` sets, it is a sample, always the same.
"""

import contextlib
import functools
import math
import os
import random

import jax
import jax.numpy as jnp
import pytest

from experiments.tasks import make_task
from experiments.training import loop, parallel
from experiments.training.checks import check_sizes, count_steps
from experiments.training.config_values import CONFIG_VALUES
from experiments.training.optimizer import make_optimizer
from perceiver_jax.errors import Refused
from tests.toys.configs import CONFIGS

pytestmark = pytest.mark.smoke

SAMPLE = 60
BATCH_SIZE = 2  # of the data that is read


def leaves(config, prefix=''):
    """Name of each key that is no section -> its value; without those that are read by people."""
    found = {}
    for key, value in config.items():
        if hasattr(value, 'items'):
            found |= leaves(value, f'{prefix}{key}.')
        else:
            found[prefix + key] = value
    return {key: value for key, value in found.items() if not key.startswith('paper.')}


def unusual(value):
    """What a slip of the keyboard may make of a value."""
    if isinstance(value, str):
        return ['nonsense', None, 0, ('nonsense',)]
    if isinstance(value, tuple):
        uniform = [len(value) * (x,) for x in (0, -1, 'nonsense', 10**12)]
        return ['nonsense', None, 0.9, (), value[:1], 2 * value, value[::-1], *uniform]
    return ['nonsense', None, 0, -1, 10**12, math.nan, (value, value)]


CASES = [
    (task, key, value)
    for task, configs in CONFIGS.items()
    for key, usual in leaves(configs.get_config('demo')).items()
    for value in unusual(usual)
    if repr(value) != repr(usual)
]
if os.environ.get('VALUES') != 'all':
    CASES = random.Random(0).sample(CASES, SAMPLE)


def changed(config, key, value):
    """A copy of a config with another value of a key."""
    config = config.copy_and_resolve_references().unlock()
    *sections, name = key.split('.')
    with config.ignore_type():
        functools.reduce(lambda node, section: node[section], sections, config)[name] = value
    return config


def trace(config):
    """Does what `loop.train` does before it compiles; arrays are as large as two examples."""
    task = make_task(config)
    check_sizes(config, num_devices=1)
    total_steps, steps_per_epoch = count_steps(config, task.num_train_examples)
    assert task.data_name
    assert task.paper_value is None
    optimizer, schedule = make_optimizer(total_steps, steps_per_epoch, **config.optimizer)
    jax.eval_shape(schedule, total_steps - 1)
    parallel.make(config.parallel)

    def init():
        params, state = task.init(jax.random.key(config.seed))
        return loop.TrainState(jnp.int32(0), params, state, optimizer.init(params), {})

    train_state = jax.eval_shape(init)
    parts = config.train.accumulate_steps
    small = changed(config, 'train.batch_size', BATCH_SIZE)
    small = make_task(changed(small, 'evaluation.batch_size', BATCH_SIZE))
    with contextlib.closing(small.train_batches(0)) as batches:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (parts, config.train.batch_size // parts, *x.shape[1:]), x.dtype
            ),
            next(batches),
        )
    update = functools.partial(
        loop.update_step,
        task.loss,
        optimizer,
        seed=config.seed,
        batch_size=config.train.batch_size,
        average=lambda tree: tree,
    )
    after, _ = jax.eval_shape(update, train_state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, train_state)
    with contextlib.closing(small.eval_batches()) as batches:
        jax.eval_shape(task.predict, train_state.params, train_state.state, next(batches))


@pytest.mark.parametrize(
    ('task', 'key', 'value'), CASES, ids=[f'{t}-{k}-{str(v)[:30]}' for t, k, v in CASES]
)
def test_a_value_is_refused_by_its_key_or_traces(task, key, value):
    config = changed(CONFIGS[task].get_config('demo'), key, value)
    try:
        trace(config)
    except Refused as error:
        assert 'config.' in str(error)
        assert key.split('.')[-1] in str(error)
        assert len(str(error)) < 1000


def test_every_key_has_its_allowed_values_and_every_config_has_allowed_ones():
    for configs in CONFIGS.values():
        for variant in configs.VARIANTS:
            keys = leaves(configs.get_config(variant))
            assert keys.keys() <= CONFIG_VALUES.keys()
            assert [key for key, x in keys.items() if not CONFIG_VALUES[key].fits(x)] == []
