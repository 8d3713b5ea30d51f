import contextlib
import datetime
import functools
import hashlib
import json
import os
import re
import signal
import threading
import time

import haiku as hk
import jax
import numpy as np
import pytest

from experiments.results import load_result
from experiments.training import loop, parallel, stopping
from experiments.training.checkpointing import Checkpoints, digest, load_params
from experiments.training.checkpointing import flatten as flatten_tree
from experiments.training.optimizer import make_optimizer
from perceiver_jax.convolution import BatchNorm
from perceiver_jax.errors import Refused
from perceiver_jax.weights.trees import flatten
from tests.toys.full_disk import full_disk
from tests.toys.toy_task import ToyTask, get_config

pytestmark = pytest.mark.smoke


def make_update(task, optimizer, average):
    config = task.config
    return functools.partial(
        loop.update_step,
        task.loss,
        optimizer,
        seed=config.seed,
        batch_size=config.train.batch_size,
        average=average,
    )


@pytest.fixture(scope='module')
def one_device():
    """Three updates on one device, each with its batch at once: the state and the last metrics."""
    task = ToyTask(get_config())
    task.broken = 3
    optimizer, _ = make_optimizer(6, 10, **task.config.optimizer)
    state = first = jax.device_get(loop.init(task.config, task, optimizer))
    update = jax.jit(make_update(task, optimizer, average=lambda tree: tree))
    for _, batch in zip(range(3), task.train_batches(0), strict=False):
        state, metrics = update(state, {k: x[None] for k, x in batch.items()})
    return task, optimizer, first, jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize('accumulate_steps', [1, 4])
@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_eight_devices_and_micro_batches_equal_one_device(one_device, kind, accumulate_steps):
    task, optimizer, state, expected, expected_metrics = one_device
    devices = parallel.make(kind)
    update = devices.compile_update(make_update(task, optimizer, devices.average))
    state = devices.replicate(state)
    for _, batch in zip(range(3), task.train_batches(0), strict=False):
        state, metrics = update(state, devices.put_micro_batches(batch, accumulate_steps))
    state, metrics = devices.fetch((state, metrics))

    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, state.params, expected.params)
    jax.tree.map(close, state.opt_state, expected.opt_state)
    jax.tree.map(close, metrics, expected_metrics)
    assert metrics['broken_examples'] == 3
    assert state.step == 3
    # The state goes from micro-batch to micro-batch.
    (average,) = (v for k, v in state.state.items() if 'moving_average' in k)
    assert average['counter'].dtype == np.int32
    assert average['counter'] == 3 * accumulate_steps
    if accumulate_steps == 1:
        jax.tree.map(close, state.state, expected.state)


def test_the_rng_follows_seed_and_step():
    def loss(params, state, rng, batch):
        return params['m']['w'], (state, {'draw': jax.random.uniform(rng)})

    optimizer, _ = make_optimizer(6, 10, **get_config().optimizer)
    params = {'m': {'w': np.ones((), np.float32)}}
    state = loop.TrainState(np.array(5), params, {}, optimizer.init(params), {})
    update = functools.partial(
        loop.update_step, loss, optimizer, seed=11, batch_size=6, average=lambda x: x
    )
    _, metrics = jax.jit(update)(state, {'x': np.zeros((2, 3))})
    expected = jax.random.uniform(jax.random.fold_in(jax.random.key(11), 5))
    np.testing.assert_allclose(metrics['draw'], expected, rtol=1e-6)


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_frozen_parameters_stay_and_have_no_moments(kind):
    task = ToyTask(get_config(freeze=('mlp', 'output:b'), accumulate_steps=2))
    optimizer, _ = make_optimizer(6, 10, **task.config.optimizer)
    devices = parallel.make(kind)
    first = jax.device_get(loop.init(task.config, task, optimizer))
    update = loop.compile_update(task.config, task, optimizer, devices)
    state = devices.replicate(first)
    for _, batch in zip(range(2), task.train_batches(0), strict=False):
        state, _ = update(state, devices.put_micro_batches(batch, 2))
    state = devices.fetch(state)

    before, after = flatten(first.params), flatten(state.params)
    assert list(before) == list(after)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {'output:w'}
    moments = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert moments == 2 * [(7, 3)]
    told = loop.trained_text(first.params, task.config.train.freeze)
    assert told == '21 of 66 parameters are trained; config.train.freeze is mlp, output:b.'


@pytest.mark.parametrize(
    ('freeze', 'message'),
    [
        (
            ['outputs'],
            "config.train.freeze: 'outputs' matches no parameter. "
            'Did you mean output or output:w or output:b?',
        ),
        (
            ['mlp', 'output'],
            'config.train.freeze: mlp, output are all parameters: nothing is left to train',
        ),
    ],
)
def test_what_cannot_be_frozen_is_refused(freeze, message):
    task = ToyTask(get_config(freeze=freeze))
    optimizer, _ = make_optimizer(6, 10, **task.config.optimizer)
    with pytest.raises(Refused) as refused:
        loop.init(task.config, task, optimizer)
    assert str(refused.value) == message


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_the_moving_average_is_of_the_trained_parameters(kind):
    """By hand: it keeps 1/10, 2/11, then a sixth of itself, the most that it may."""
    task = ToyTask(get_config(freeze=('mlp',), ema_decay=1 / 6))
    optimizer, _ = make_optimizer(6, 10, **task.config.optimizer)
    devices = parallel.make(kind)
    first = jax.device_get(loop.init(task.config, task, optimizer))
    update = loop.compile_update(task.config, task, optimizer, devices)
    state, expected = devices.replicate(first), first.params['output']['w']
    for keeps, batch in zip((1 / 10, 1 / 6, 1 / 6), task.train_batches(0), strict=False):
        state, _ = update(state, devices.put_micro_batches(batch, 1))
        host = devices.fetch(state)
        expected = keeps * expected + (1 - keeps) * host.params['output']['w']
        np.testing.assert_allclose(host.ema['output']['w'], expected, rtol=1e-5)
    assert flatten(host.ema).keys() == {'output:w', 'output:b'}
    assert abs(expected - host.params['output']['w']).max() > 1e-3
    evaluated = flatten(host.evaluated)
    np.testing.assert_array_equal(evaluated['output:w'], host.ema['output']['w'])
    assert list(evaluated) == list(flatten(host.params))


def test_a_run_that_starts_from_weights_averages_from_them_on():
    task = ToyTask(get_config(freeze=('mlp',), ema_decay=0.9))
    optimizer, _ = make_optimizer(6, 10, **task.config.optimizer)
    random = loop.init(task.config, task, optimizer)
    weights = jax.tree.map(lambda x: x + 1, random.params)
    state = loop.started(random, weights, random.state)
    assert state.params is weights
    np.testing.assert_array_equal(state.ema['output']['w'], weights['output']['w'])
    assert state.ema.keys() == {'output'}


@pytest.mark.parametrize('freeze', [['norm'], ['norm:scale']], ids=lambda x: x[0])
def test_a_frozen_batch_norm_works_as_in_evaluation(freeze):
    """One of which a parameter is trained is not frozen."""

    def forward(x, is_training):
        return hk.Linear(2, name='output')(BatchNorm(name='norm')(x, is_training=is_training))

    model = hk.transform_with_state(forward)

    def loss(params, state, rng, batch):
        outputs, state = model.apply(params, state, None, batch['x'], True)
        return (outputs**2).mean(), (state, {})

    optimizer, _ = make_optimizer(6, 10, **get_config().optimizer)
    x = np.random.default_rng(0).normal(3, 2, (8, 5)).astype(np.float32)
    params, state = model.init(jax.random.key(0), x, False)
    state = {'norm': {**state['norm'], 'mean': 2 + state['norm']['mean']}}
    trained, _ = loop.split(params, freeze)
    before = loop.TrainState(np.array(0), params, state, optimizer.init(trained), {})
    update = functools.partial(
        loop.update_step, loss, optimizer, seed=0, batch_size=8, average=lambda x: x, freeze=freeze
    )
    after, metrics = jax.jit(update)(before, {'x': x[None]})
    stays = freeze == ['norm']
    assert (after.state['norm']['counter'] == 0) == stays
    assert np.array_equal(after.state['norm']['mean'], state['norm']['mean']) == stays
    outputs, _ = model.apply(params, state, None, x, not stays)
    np.testing.assert_allclose(metrics['loss'], (outputs**2).mean(), rtol=1e-5)


@pytest.fixture(scope='module')
def left_alone(tmp_path_factory):
    """The folder and the result of a run of six updates."""
    config = get_config()
    workdir = tmp_path_factory.mktemp('left_alone')
    return workdir, loop.train(config, ToyTask(config), workdir, 'toy.py:six')


def lines(workdir):
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != 'examples_per_second'} for row in rows]


def test_a_run_leaves_its_records(left_alone):
    workdir, result = left_alone
    assert json.loads((workdir / 'result.json').read_text()) == result
    params, _, step = load_params(workdir)
    sha256 = hashlib.sha256()
    for name, array in sorted((f'{m}/{n}', a) for m, x in params.items() for n, a in x.items()):
        sha256.update(name.encode() + array.astype(np.float32).tobytes())
    rows = lines(workdir)
    assert result == {
        'task': 'toy',
        'config': 'toy.py:six',
        'data': 'toy',
        'metric': 'top1',
        'value': rows[-1]['top1'],
        'paper_value': None,
        'steps': 6,
        'examples': 6 * 32,
        'parameters': (5 * 7 + 7) + (7 * 3 + 3),
        'params_sha256': sha256.hexdigest(),
        'wall_seconds': result['wall_seconds'],
        'device': 'cpu x8',
        'git_commit': result['git_commit'],
        'seed': 7,
        'date': result['date'],
    }
    assert load_result(workdir / 'result.json') == result
    ended = datetime.datetime.fromisoformat(result['date'])
    assert (
        datetime.timedelta()
        <= datetime.datetime.now(datetime.UTC) - ended
        < datetime.timedelta(hours=1)
    )
    assert step == 6
    assert 0.1 < result['wall_seconds'] < 100
    assert [(row['split'], row['step']) for row in rows] == [
        ('train', 2), ('train', 4), ('eval', 4), ('train', 6), ('eval', 6)
    ]  # fmt: skip
    assert rows[0]['learning_rate'] == pytest.approx(0.02)
    assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == 6
    assert (workdir / 'report.png').read_bytes().startswith(b'\x89PNG')
    assert list(workdir.glob('events.out.tfevents.*'))


def test_starting_a_finished_run_again_changes_nothing(left_alone):
    workdir, result = left_alone
    before = lines(workdir)
    task = ToyTask(get_config())
    task.on_step = lambda step: pytest.fail('an update was made')
    again = loop.train(task.config, task, workdir, 'toy.py:six')
    assert again == result
    assert lines(workdir) == before


def test_a_finished_run_can_be_lengthened(left_alone, tmp_path):
    """And ends as one that was to have as many updates from the start."""
    _, six = left_alone
    config = get_config(steps=4)
    loop.train(config, ToyTask(config), tmp_path, 'toy.py:four')
    config.train.steps = 6
    started_from, task = [], ToyTask(config)
    task.on_step = started_from.append
    longer = loop.train(config, task, tmp_path, 'toy.py:six')
    assert started_from[0] == 4
    for key in ('params_sha256', 'value', 'steps', 'examples'):
        assert longer[key] == six[key]
    assert json.loads((tmp_path / 'result.json').read_text()) == longer
    assert json.loads((tmp_path / 'config.json').read_text())['train']['steps'] == 6

    config.train.steps = 5
    with pytest.raises(Refused) as refused:
        loop.train(config, ToyTask(config), tmp_path, 'toy')
    assert str(refused.value) == f'{tmp_path} holds step 6 of a run that is to have 5'
    assert json.loads((tmp_path / 'config.json').read_text())['train']['steps'] == 6


def test_the_average_is_what_a_run_leaves_and_is_resumed(left_alone, tmp_path):
    """What is trained is the same as without."""
    results = []
    for name, lengths in (('whole', [6]), ('resumed', [4, 6])):
        for steps in lengths:
            config = get_config(ema_decay=0.5, steps=steps)
            result = loop.train(config, ToyTask(config), tmp_path / name, 'toy.py:six')
        results.append(result)
    whole, resumed = results
    params, _, _ = load_params(tmp_path / 'whole')
    assert whole['params_sha256'] == resumed['params_sha256'] == digest(flatten_tree(params))
    assert lines(tmp_path / 'whole')[-1] == lines(tmp_path / 'resumed')[-1]
    trained, _, _ = load_params(left_alone[0])
    _, arrays = Checkpoints(tmp_path / 'resumed', keep=None).read(best=False)
    np.testing.assert_array_equal(arrays['params/output/w'], trained['output']['w'])
    assert (arrays['ema/output/w'] != trained['output']['w']).any()


@pytest.mark.parametrize('how', ['killed', 'SIGTERM', 'SIGINT'])
def test_a_run_that_is_stopped_and_resumed_ends_the_same(left_alone, tmp_path, monkeypatch, how):
    workdir, result = left_alone
    task = ToyTask(get_config(checkpoint_every_steps=2))

    offset = [0.0]  # makes the first part of the run seem to take half an hour
    clock = time.monotonic
    monkeypatch.setattr(loop.time, 'monotonic', lambda: clock() + offset[0])

    def stop(step):
        if step == 3:
            offset[0] = 1800.0
        if step == 5 and how == 'killed':  # after the checkpoint and the lines of step 4
            raise KeyboardInterrupt
        if step == 4 and how != 'killed':
            os.kill(os.getpid(), getattr(signal, how))

    task.on_step = stop
    if how == 'killed':
        with pytest.raises(KeyboardInterrupt):
            loop.train(task.config, task, tmp_path, 'toy')
        with (tmp_path / 'metrics.jsonl').open('a') as file:  # after the last checkpoint; cut off
            file.write('{"step": 5, "split": "train", "loss": 1.0}\n{"step": 5, "spl')
    elif how == 'SIGINT':  # Ctrl-C
        with pytest.raises(KeyboardInterrupt):
            loop.train(task.config, task, tmp_path, 'toy')
    else:
        assert loop.train(task.config, task, tmp_path, 'toy') is None
    assert not (tmp_path / 'result.json').exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler

    started_from = []
    task.on_step = started_from.append
    resumed = loop.train(task.config, task, tmp_path, 'toy')
    assert started_from[0] == 4
    assert resumed['params_sha256'] == result['params_sha256']
    assert 1800 < resumed['wall_seconds'] < 1900
    assert lines(tmp_path) == lines(workdir)


def test_before_its_first_update_a_run_is_left_at_once(left_alone, tmp_path, capsys):
    """Stopped twice while it is traced, before and after a checkpoint; and profiled in between."""
    workdir, result = left_alone
    released, threads = threading.Event(), []

    def start(how):
        task = ToyTask(get_config())
        task.loss = functools.partial(traced_for_ever, how)
        with pytest.raises(stopping.StoppedEarly) as stopped:
            loop.train(task.config, task, tmp_path, 'toy', profile_steps=2)
        assert stopped.value.by_ctrl_c == (how == signal.SIGINT)
        assert not list(tmp_path.rglob('.*.tmp')) + list(tmp_path.rglob('.lock.json'))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def traced_for_ever(how, *_):
        threads.append(threading.current_thread())
        os.kill(os.getpid(), how)
        released.wait()
        raise RuntimeError('the run was left')

    start(signal.SIGTERM)
    assert 'No update was profiled' in capsys.readouterr().out
    assert not list((tmp_path / 'checkpoints').iterdir())

    task = ToyTask(get_config())
    task.on_step = lambda step: step == 4 and os.kill(os.getpid(), signal.SIGTERM)
    assert loop.train(task.config, task, tmp_path, 'toy', profile_steps=2) is None
    out = capsys.readouterr().out
    assert f'The trace of 2 updates is in {tmp_path}/profile.\n' in out
    assert re.search(r'^ +\d+\.\d\d +\d+\.\d% +\d+\.\d  \w+$', out, re.MULTILINE)
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))

    start(signal.SIGINT)
    err = capsys.readouterr().err
    assert 'Stopping after this step' not in err
    resumed = loop.train(task.config, ToyTask(task.config), tmp_path, 'toy')
    assert resumed['params_sha256'] == result['params_sha256']
    assert lines(tmp_path) == lines(workdir)

    released.set()
    for thread in threads:
        thread.join()


def test_a_second_ctrl_c_ends_at_once(tmp_path, capfd):
    task = ToyTask(get_config(checkpoint_every_steps=100))

    def interrupt(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            assert 'Stopping after this step, with a checkpoint' in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail('the run goes on')

    task.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        loop.train(task.config, task, tmp_path, 'toy')
    with pytest.raises(ValueError, match='no checkpoint'):
        load_params(tmp_path)


def test_a_nan_stops_the_run_before_it_is_saved(tmp_path):
    task = ToyTask(get_config(log_every_steps=10, checkpoint_every_steps=4, steps=20))
    task.poisoned_step = 6
    message = 'loss is nan at step 6; the last good checkpoint is of step 4'
    with pytest.raises(FloatingPointError, match=message):
        loop.train(task.config, task, tmp_path, 'toy')
    assert load_params(tmp_path)[2] == 4


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's writes
def test_a_full_disk_stops_the_run_which_names_the_last_good_checkpoint(tmp_path):
    task = ToyTask(get_config(evaluate_every_steps=1000, steps=1000))
    left_over = tmp_path / f'.report.png.{"0" * 32}.tmp'
    left_over.touch()
    with contextlib.ExitStack() as stack:

        def fill(step):
            if step == 8:  # the checkpoint of step 4 is there, that of step 6 may be
                stack.enter_context(full_disk(3000))
            assert step < 16

        task.on_step = fill
        with pytest.raises(OSError) as error:
            loop.train(task.config, task, tmp_path, 'toy')
    assert error.value.filename == str(tmp_path / 'checkpoints')
    step = load_params(tmp_path)[2]
    assert step in (4, 6)
    assert error.value.strerror == f'File too large; the last good checkpoint is of step {step}'
    assert not left_over.exists()


def test_parameters_that_overflow_stop_the_run(tmp_path):
    config = get_config()
    config.optimizer.learning_rate = 1e30
    with pytest.raises(FloatingPointError, match='parameter_norm is inf at step 1; .* not there'):
        loop.train(config, ToyTask(config), tmp_path, 'toy')
