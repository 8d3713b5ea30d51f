"""Runs in a bucket: what `experiments.paths` opens the door to, with a fake of Google's store."""

import gc
import json
import os
import time

import pytest

from experiments.paths import path_of
from experiments.training import lock, loop, workdir
from experiments.training.checkpointing import Checkpoints
from experiments.training.evaluate import evaluate_checkpoint
from perceiver_jax.errors import Refused
from tests.toys.fake_bucket import fake_bucket
from tests.toys.toy_task import ToyTask, get_config

pytestmark = [
    pytest.mark.smoke,
    # Of Orbax's reads and writes that nobody waits for once one of them has failed.
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    gc.collect()  # here, where they are ignored


class Stopped(Exception):
    pass


def stopping(config, last):
    """A task whose run ends with an exception before it is told of update `last`."""

    def on_step(step):
        if step == last:
            raise Stopped

    task = ToyTask(config)
    task.on_step = on_step
    return task


def test_a_run_in_a_bucket_resumes_past_damage_and_is_evaluated(tmp_path, capsys, monkeypatch):
    bucket, run = fake_bucket(), 'gs://bucket/runs/toy'
    config = get_config(steps=10, keep_checkpoints=3)
    local = loop.train(config, ToyTask(config), tmp_path, 'toy')
    with pytest.raises(Stopped):
        loop.train(config, stopping(config, 9), run, 'toy')
    names = bucket.below('runs/toy/')
    checkpoints = {name.split('/')[3] for name in names if '/checkpoints/' in name}
    assert checkpoints == {'4', '6', '8'}
    assert not any('lock' in name or 'tmp' in name for name in names)

    # Of 8 the object that is written last is missing, and 6 has lost a part of its arrays.
    del bucket.objects['runs/toy/checkpoints/8/commit_success.txt']
    arrays = [name for name in names if '/checkpoints/6/default/d/' in name]
    largest = max(arrays, key=lambda name: len(bucket.objects[name]))
    bucket.objects[largest] = bucket.objects[largest][:-50]
    remote = loop.train(config, ToyTask(config), run, 'toy', profile_steps=1)
    printed = capsys.readouterr().out
    assert f'{run}/checkpoints/6 is damaged, skipped' in printed
    assert 'Resuming after step 4.' in printed
    assert f'The trace of 1 update is in {run}/profile.' in printed
    assert bucket.below('runs/toy/profile/plugins/profile/')
    assert bucket.below('runs/toy/checkpoints/6.damaged/')
    assert remote['params_sha256'] == local['params_sha256']

    result = json.loads(bucket.objects['runs/toy/result.json'])
    assert result == remote
    assert bucket.objects['runs/toy/report.png'].startswith(b'\x89PNG')
    rows = bucket.objects['runs/toy/metrics.jsonl'].decode().splitlines()
    steps = [(row['step'], row['split']) for row in map(json.loads, rows)]
    assert steps == [
        (row['step'], row['split'])
        for row in map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
    ]
    events = [name for name in bucket.below('runs/toy/') if 'tfevents' in name]
    assert len(events) == 2 and all(b'train/loss' in bucket.objects[name] for name in events)

    evaluate_checkpoint(config, ToyTask(config), path_of(run), 'toy', best=False)
    evaluated = json.loads(bucket.objects['runs/toy/evaluation.json'])
    assert (evaluated['step'], evaluated['value']) == (10, result['value'])
    assert bucket.objects['runs/toy/evaluation.png'].startswith(b'\x89PNG')

    # What may not be read says nothing about the checkpoint.
    for hidden in ('_CHECKPOINT_METADATA', 'default/_METADATA', 'default/d/', 'default/manifest'):
        with monkeypatch.context() as patch:
            start = f'runs/toy/checkpoints/10/{hidden}'
            patch.setattr(bucket, 'forbidden', lambda _, name, start=start: name.startswith(start))
            with pytest.raises(OSError, match='gs://bucket/runs/toy/checkpoints'):
                Checkpoints(run, keep=None).read(best=False)

    # A finished run is its result; and another config is refused, as it is on a disk.
    assert loop.train(config, ToyTask(config), run, 'toy') == result
    config.seed = 8
    with pytest.raises(Refused, match='holds a run with another config: seed was 7 and is 8'):
        loop.train(config, ToyTask(config), run, 'toy')


@pytest.mark.parametrize('denied', ['metrics.jsonl', 'checkpoints/6/default'])
def test_what_a_bucket_does_not_take_is_one_error_that_names_it(denied, monkeypatch):
    bucket = fake_bucket()
    folder = f'runs/denied_{denied[:7]}'
    config = get_config(steps=8)
    asked = []

    def forbidden(method, name):
        if method != 'PUT' or not name.startswith(f'{folder}/{denied}'):
            return False
        asked.append(name)
        return 'checkpoints' in name or len(asked) > 4  # writes of the metrics

    monkeypatch.setattr(bucket, 'forbidden', forbidden)
    with pytest.raises(OSError) as error_info:
        loop.train(config, ToyTask(config), f'gs://bucket/{folder}', 'toy')
    assert error_info.value.filename.startswith(f'gs://bucket/{folder}/{denied[:7]}')
    assert 'the last good checkpoint is of step 4' in error_info.value.strerror
    assert f'{folder}/.lock.json' not in bucket.objects


def test_metrics_are_written_anew_now_and_then_and_when_they_must_not_be_lost(monkeypatch):
    bucket, name = fake_bucket(), 'runs/metrics/metrics.jsonl'
    folder = path_of('gs://bucket/runs/metrics')
    bucket.put(name, b'{"step": 1, "split": "train"}\n{"step": 2, "split": "train"}\n{"ste')
    numbers = {'loss': 0.5, 'learning_rate': 0.1, 'examples_per_second': 7.0}

    def steps():
        return [json.loads(line)['step'] for line in bucket.objects[name].splitlines()]

    metrics = workdir.Metrics(folder, step=1, total_steps=9, batch_size=2)
    assert steps() == [1]
    metrics.write(2, 'train', numbers)
    assert steps() == [1]
    metrics.write(3, 'train', numbers, sync=True)
    assert steps() == [1, 2, 3]
    metrics.write(4, 'train', numbers)
    assert steps() == [1, 2, 3]
    later = time.monotonic() + workdir._REWRITE_SECONDS + 1
    with monkeypatch.context() as patch:
        patch.setattr(workdir.time, 'monotonic', lambda: later)
        metrics.write(5, 'train', numbers)
    assert steps() == [1, 2, 3, 4, 5]
    metrics.write(6, 'train', numbers)
    metrics.close()
    assert steps() == [1, 2, 3, 4, 5, 6]


def test_one_run_at_a_time_has_the_folder(monkeypatch):
    bucket, folder = fake_bucket(), path_of('gs://bucket/runs/locked')
    monkeypatch.setattr(lock, '_MOMENT', 0.0)
    with lock.lock(folder):
        owner = json.loads(bucket.objects['runs/locked/.lock.json'])
        assert owner['process'] == os.getpid()
    assert not bucket.below('runs/locked')

    for age, free in ((0, False), (lock.STALE_SECONDS + 1, True)):
        record = {'host': 'other', 'process': 1, 'time': time.time() - age}
        bucket.put('runs/locked/.lock.json', json.dumps(record).encode())
        if free:
            with lock.lock(folder):
                pass
        else:
            with pytest.raises(Refused, match='process 1 on host other'), lock.lock(folder):
                pass


def test_of_two_that_replace_an_old_record_the_last_has_the_folder(monkeypatch):
    bucket, folder = fake_bucket(), path_of('gs://bucket/runs/replaced')
    name = 'runs/replaced/.lock.json'
    bucket.put(name, b'{}')
    theirs = {'host': 'other', 'process': 1, 'time': time.time()}
    monkeypatch.setattr(lock.time, 'sleep', lambda _: bucket.put(name, json.dumps(theirs).encode()))
    with pytest.raises(Refused, match='process 1 on host other'), lock.lock(folder):
        pass
    assert json.loads(bucket.objects[name]) == theirs
