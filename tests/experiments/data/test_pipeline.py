import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from experiments.data.pipeline import BrokenExample, eval_batches, train_batches


class Numbers:
    """0, 1, ... with those in `broken` unreadable."""

    def __init__(self, length, broken=()):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise BrokenExample(f'number_{index}.txt: illegible')
        return {'number': index}


def with_noise(example, rng):
    return {'number': np.int32(example['number']), 'noise': rng.random(3, np.float32)}


def with_guard(example, rng):
    """Says too whether this worker hears no signals, and ends with its parent."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    ends = any(thread.name == 'end with parent' for thread in threading.enumerate())
    is_guarded = ends and blocked >= {signal.SIGINT, signal.SIGTERM}
    return {**with_noise(example, rng), 'is_guarded': np.bool_(is_guarded)}


def plain(example):
    return {'number': np.int32(example['number'])}


class Stubborn(Exception):
    """Pickles, but does not unpickle: its constructor takes no message alone."""

    def __init__(self, first, second):
        super().__init__(f'{first} {second}')


def stubborn(example, rng):
    raise Stubborn('cannot', 'travel')


def absent_key(example, rng):
    return {'number': example['nombre']}


def take(num_steps, source=None, transform=with_noise, **kwargs):
    source = Numbers(11) if source is None else source
    batches = train_batches(source, transform, **{'batch_size': 6, 'seed': 3} | kwargs)
    taken = list(itertools.islice(batches, num_steps))
    batches.close()
    return taken


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    numbers = np.concatenate([batch['number'] for batch in take(11, batch_size=2)])
    first, second = numbers[:11].tolist(), numbers[11:].tolist()
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second and first != sorted(first)


def test_seed_changes_order_and_noise():
    (one,), (other,) = take(1, seed=3), take(1, seed=4)
    assert one['number'].tolist() != other['number'].tolist()
    assert np.all(one['noise'] != other['noise'])


def test_noise_changes_between_epochs():
    noise = np.concatenate([batch['noise'] for batch in take(11, batch_size=2)])
    assert len(np.unique(noise)) == noise.size


def test_resumes_at_any_step():
    assert_equal(take(3, start_step=4), take(7)[4:])


@pytest.mark.parametrize('num_workers', [1, 2])
def test_number_of_workers_changes_nothing(num_workers):
    settings = dict(batch_size=74, start_step=1)  # sent in 37 pieces of 2
    batches = take(3, transform=with_guard, num_workers=num_workers, **settings)
    assert all(batch.pop('is_guarded').all() for batch in batches)
    assert_equal(batches, take(3, **settings))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])  # this process hears them
    assert multiprocessing.active_children() == []


def test_parts_of_the_processes_join_to_the_global_batch():
    whole = take(4)
    parts = [take(4, process_index=index, process_count=3) for index in range(3)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)
    assert whole[2]['index'].tolist() == [0, 1, 2, 3, 4, 5]
    assert whole[2]['index'].dtype == np.uint32


class Recorded(Numbers):
    """Knows which examples were read."""

    def __init__(self, length):
        super().__init__(length)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_each_process_reads_its_own_part_alone():
    seen = set()
    for index in range(3):
        part = dict(process_index=index, process_count=3)
        source = Recorded(1000)
        given = np.concatenate([batch['number'] for batch in take(4, source, **part)])
        assert source.read[:8] == given.tolist()  # and a little ahead
        assert seen.isdisjoint(source.read)
        seen |= set(source.read)
        source = Recorded(13)
        batches = list(eval_batches(source, plain, batch_size=6, **part))
        assert source.read[:4] == [2 * index, 2 * index + 1, 6 + 2 * index, 7 + 2 * index]
        assert len(source.read) == 6 and len(batches) == 3  # the last batch is filled up


def test_two_examples_make_an_item():
    pairs, singles = take(3, batch_size=5, examples_per_item=2), take(3, batch_size=10)
    for pair, single in zip(pairs, singles, strict=True):
        assert pair['number'].shape == (5, 2) and pair['noise'].shape == (5, 2, 3)
        np.testing.assert_array_equal(pair['number'].ravel(), single['number'])
        np.testing.assert_array_equal(pair['noise'].reshape(10, 3), single['noise'])
        assert pair['index'].tolist() == [0, 1, 2, 3, 4]


def test_an_example_is_read_once_and_transformed_anew_for_each_repeat():
    source = Recorded(11)
    batches = take(4, source, batch_size=6, repeats=3)
    numbers = np.concatenate([batch['number'] for batch in batches]).reshape(8, 3)
    once = np.concatenate([batch['number'] for batch in take(2, batch_size=4)])
    np.testing.assert_array_equal(numbers, np.repeat(once[:, None], 3, axis=1))
    assert source.read[:8] == once.tolist()  # and a little ahead
    noise = np.concatenate([batch['noise'] for batch in batches])
    assert len(np.unique(noise)) == noise.size
    assert_equal(take(2, start_step=2, repeats=3), batches[2:])  # also where a step cuts repeats
    assert_equal(take(2, repeats=4, start_step=1), take(3, repeats=4)[1:])
    assert_equal(take(3, repeats=4, num_workers=2), take(3, repeats=4))


def test_batch_size_must_divide_by_the_processes():
    with pytest.raises(ValueError, match='batch_size=7 with process_count=2'):
        train_batches(Numbers(11), with_noise, batch_size=7, seed=0, process_count=2)


def test_empty_source_is_refused():
    with pytest.raises(ValueError, match='no examples'):
        train_batches(Numbers(0), with_noise, batch_size=7, seed=0)


def test_unknown_policy_for_broken_examples_is_refused():
    with pytest.raises(ValueError, match="'ignore'"):
        eval_batches(Numbers(11), plain, batch_size=7, on_broken='ignore')


@pytest.mark.parametrize(
    'batch_size, process_count', [(3, 1), (4, 2), (5, 3), (1, 2), (26, 2), (11, 1)]
)
def test_evaluation_sees_every_example_once(batch_size, process_count):
    settings = dict(batch_size=batch_size, process_count=process_count)
    runs = [
        list(eval_batches(Numbers(11), plain, process_index=index, **settings))
        for index in range(process_count)
    ]
    numbers = [batch['number'][batch['mask']] for run in runs for batch in run]
    assert sorted(np.concatenate(numbers)) == list(range(11))
    assert len({len(run) for run in runs}) == 1
    rows = -(-batch_size // process_count)
    assert {batch['number'].shape for run in runs for batch in run} == {(rows,)}
    assert {batch['mask'].dtype for run in runs for batch in run} == {np.dtype(bool)}


def test_broken_example_stops_the_run_and_names_the_file():
    with pytest.raises(BrokenExample, match='number_4.txt: illegible'):
        take(2, Numbers(11, broken=[4]))


def test_broken_example_gives_way_to_the_next_readable_one(caplog):
    whole, skipped = (
        take(2, batch_size=11),
        take(2, Numbers(11, broken=[4, 5, 10]), batch_size=11, on_broken='skip'),
    )
    for one, other in zip(whole, skipped, strict=True):
        expected = [{4: 6, 5: 6, 10: 0}.get(number, number) for number in one['number'].tolist()]
        assert other['number'].tolist() == expected
        np.testing.assert_array_equal(other['broken'], np.isin(one['number'], [4, 5, 10]))
        np.testing.assert_array_equal(other['noise'], one['noise'])
        assert one['broken'].tolist() == [0] * 11
        assert other['broken'].dtype == np.int32
    assert caplog.text.count('number_4.txt') == 1


def test_item_counts_each_of_its_broken_examples():
    (batch,) = take(
        1, Numbers(11, range(1, 11)), batch_size=11, examples_per_item=2, on_broken='skip'
    )
    assert batch['number'].tolist() == [[0, 0]] * 11
    assert batch['broken'].sum() == 20


def test_broken_example_is_masked_in_evaluation():
    source = Numbers(11, broken=[0, 10])
    batches = list(eval_batches(source, plain, batch_size=4, on_broken='skip'))
    mask = np.concatenate([batch['mask'] for batch in batches])
    broken = np.concatenate([batch['broken'] for batch in batches])
    assert mask.tolist() == [False] + [True] * 9 + [False, False]
    assert broken.tolist() == [1] + [0] * 9 + [1, 0]


def test_nothing_readable_is_an_error():
    with pytest.raises(ValueError, match='no example of .* can be read'):
        take(1, Numbers(3, broken=[0, 1, 2]), on_broken='skip')


# What a worker does for us: it says who it is, goes on through signals, and leaves shared memory.
WORKER = """
import os, time
from multiprocessing.shared_memory import SharedMemory
from experiments.data.pipeline import _end_with_parent
_end_with_parent()
left = SharedMemory(create=True, size=1)
print(os.getpid(), left.name, flush=True)
time.sleep(0.3)
print('goes on', flush=True)
time.sleep(60)
"""
PARENT = f"""
import multiprocessing
from experiments.data.pipeline import _signals_blocked
with _signals_blocked():
    worker = multiprocessing.get_context('spawn').Process(target=exec, args=({WORKER!r},))
    worker.start()
worker.join()
"""


def test_workers_hear_no_signals_and_end_with_their_parent():
    command = [sys.executable, '-c', PARENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        worker, shared = process.stdout.readline().split()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int(worker), number)
        assert process.stdout.readline() == 'goes on\n'
        process.kill()
        # The pipe ends when all that hold it have: the worker, and what removes its memory.
        assert process.stdout.read() == ''
    with pytest.raises(FileNotFoundError):
        SharedMemory(shared)


def test_error_arrives_whole_from_a_worker():
    with pytest.raises(KeyError, match='nombre') as error:
        take(1, transform=absent_key, num_workers=1)
    assert multiprocessing.active_children() == []
    assert 'while reading example' in error.value.__notes__[0]


def test_error_that_cannot_be_sent_arrives_as_its_text():
    with pytest.raises(RuntimeError, match='Stubborn: cannot travel'):
        take(1, transform=stubborn, num_workers=1)
