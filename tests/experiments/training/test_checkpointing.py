import errno
import shutil
import threading
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest

from experiments.training import checkpointing
from experiments.training.checkpointing import Checkpoints, digest, last_good_named, load_params
from tests.toys.full_disk import full_disk


class State(NamedTuple):
    step: np.ndarray
    params: dict
    state: dict
    opt_state: tuple


def make_state(step):
    weights = np.random.default_rng(step).normal(size=(61, 53)).astype(np.float32)
    return State(
        step=np.array(step, np.int32),
        params={'net/~/linear': {'w': weights, 'b': np.full(53, step, np.float32)}},
        state={'net/~/average': {'counter': np.array(3 * step, np.int32)}},
        opt_state=(({'net/~/linear': {'w': 2 * weights}},), ()),
    )


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 20 (the best), 50 and 60; six were saved."""
    workdir = tmp_path_factory.mktemp('saved')
    checkpoints = Checkpoints(workdir, keep=2)
    scores = {20: 0.9, 40: 0.7, 60: 0.8}
    for step in (10, 20, 30, 40, 50, 60):
        checkpoints.save(step, make_state(step), wall_seconds=step / 2, score=scores.get(step))
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'run')


def reopen(workdir):
    return Checkpoints(workdir, keep=2)


def assert_restored(checkpoints, step):
    restored, wall_seconds = checkpoints.restore(like=make_state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))
    assert isinstance(restored, State)
    assert wall_seconds == step / 2


def test_nothing_to_restore(tmp_path):
    assert reopen(tmp_path).restore(like=make_state(0)) is None


def test_keeps_the_newest_and_the_best(workdir):
    kept = sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert kept == [20, 50, 60]
    assert_restored(reopen(workdir), 60)


def test_knows_the_best_after_a_restart_and_ignores_a_nan(workdir):
    checkpoints = reopen(workdir)
    for step, score in ((70, float('nan')), (80, 0.1), (90, None)):
        checkpoints.save(step, make_state(step), wall_seconds=1.0, score=score)
    checkpoints.close()
    assert load_params(workdir, best=True)[2] == 20
    assert load_params(workdir)[2] == 90


def test_load_params_gives_haikus_trees(workdir):
    params, state, step = load_params(workdir)
    expected = make_state(60)
    jax.tree.map(np.testing.assert_array_equal, params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, state, expected.state)
    assert step == 60


def test_load_params_says_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='no checkpoint in .*/run/checkpoints'):
        load_params(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def largest(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:1000])


def garble(folder):
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(b ^ 1 for b in content[5000:5100])
    path.write_bytes(content)


DAMAGES = {
    'truncated': truncate,
    'garbled': garble,
    'array deleted': lambda folder: largest(folder).unlink(),
    'index deleted': lambda folder: (folder / 'default' / 'manifest.ocdbt').unlink(),
    'tree deleted': lambda folder: (folder / 'default' / '_METADATA').unlink(),
    'checksum deleted': lambda folder: (folder / '_CHECKPOINT_METADATA').unlink(),
    'checksum garbled': lambda folder: (folder / '_CHECKPOINT_METADATA').write_text('{"a'),
    'emptied': lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's reads
@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_falls_back_from_a_damaged_checkpoint(workdir, damage, capsys):
    damage(workdir / 'checkpoints' / '60')
    checkpoints = reopen(workdir)
    assert_restored(checkpoints, 50)
    assert 'checkpoints/60 is damaged' in capsys.readouterr().out
    # It is set aside, and the run can come to its step again.
    assert (workdir / 'checkpoints' / '60.damaged').exists()
    checkpoints.save(60, make_state(60), wall_seconds=30.0)
    checkpoints.close()
    assert (workdir / 'checkpoints' / '60').exists()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # as above
def test_a_step_can_be_damaged_twice(workdir):
    for name in ('60.damaged', '60.damaged1'):
        truncate(workdir / 'checkpoints' / '60')
        checkpoints = reopen(workdir)
        assert_restored(checkpoints, 50)
        assert (workdir / 'checkpoints' / name).exists()
        checkpoints.save(60, make_state(60), wall_seconds=30.0)
        checkpoints.close()


def test_a_flipped_weight_does_not_match_the_checksum(workdir, monkeypatch):
    checkpoints = reopen(workdir)
    monkeypatch.setattr('experiments.training.checkpointing.digest', lambda arrays: 'another')
    with pytest.raises(ValueError, match='all checkpoints in .* are damaged'):
        checkpoints.restore(like=make_state(0))
    assert not list(workdir.rglob('*.damaged'))


def test_names_what_does_not_fit_the_model(workdir):
    other = make_state(0)
    other.params['net/~/linear']['w'] = np.zeros((61, 59))
    other.params['net/~/new'] = {'w': np.zeros(2)}
    del other.params['net/~/linear']['b']
    with pytest.raises(ValueError) as error:
        reopen(workdir).restore(like=other)
    message = str(error.value)
    assert 'missing: params/net/~/new/w;' in message
    assert 'left over: params/net/~/linear/b;' in message
    assert 'of another shape: params/net/~/linear/w (61, 53), not (61, 59)' in message
    assert not list(workdir.rglob('*.damaged'))


@pytest.mark.parametrize('name', ['70', '9999'])
def test_a_copy_is_set_aside_and_told(workdir, name, capsys):
    folder = workdir / 'checkpoints'
    shutil.copytree(folder / '20', folder / name)  # of the best
    assert load_params(workdir)[2] == 60
    assert load_params(workdir, best=True)[2] == 20
    assert f'checkpoints/{name} holds step 20, skipped' in capsys.readouterr().out
    checkpoints = reopen(workdir)
    assert_restored(checkpoints, 60)
    checkpoints.save(70, make_state(70), wall_seconds=35.0)
    checkpoints.close()
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == sorted(['20', '60', '70', f'{name}.damaged'])
    assert load_params(workdir)[2] == 70


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of Orbax's writes
@pytest.mark.parametrize('size', [0, 5000])
def test_what_cannot_be_written_is_one_error_of_the_system(workdir, size):
    checkpoints = reopen(workdir)
    with full_disk(size):
        with pytest.raises(OSError) as error:
            checkpoints.save(70, make_state(70), wall_seconds=1.0)
            for _ in range(1000):  # without waiting
                checkpoints.check()
                time.sleep(0.01)
        checkpoints.close()  # which does not raise it again
    folder = workdir / 'checkpoints'
    assert (error.value.filename, error.value.strerror) == (str(folder), 'File too large')
    assert_restored(reopen(workdir), 60)  # which removes what is unfinished
    assert sorted(path.name for path in folder.iterdir()) == ['20', '50', '60']


def test_checkpoints_are_checked_without_waiting(workdir, monkeypatch):
    checkpoints = reopen(workdir)
    going_on = threading.Event()
    monkeypatch.setattr(checkpointing, 'sync_file', lambda path: going_on.wait(10))
    checkpoints.save(70, make_state(70), wall_seconds=1.0)
    checkpoints.check()
    assert not (workdir / 'checkpoints' / '70').exists()
    going_on.set()
    checkpoints.close()
    assert (workdir / 'checkpoints' / '70').exists()


def test_the_main_process_saves_alone(workdir, monkeypatch):
    monkeypatch.setattr(checkpointing.parallel, 'is_main_process', lambda: False)
    (workdir / 'checkpoints' / '70.orbax-checkpoint-tmp').mkdir()  # the main process's
    checkpoints = reopen(workdir)
    assert_restored(checkpoints, 60)
    checkpoints.save(70, make_state(70), wall_seconds=1.0, score=2.0)
    checkpoints.check()
    checkpoints.close()
    kept = sorted(path.name for path in (workdir / 'checkpoints').iterdir())
    assert kept == ['20', '50', '60', '70.orbax-checkpoint-tmp']


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'run').touch()
    with pytest.raises(NotADirectoryError) as error:
        reopen(tmp_path / 'run')
    assert error.value.filename == str(tmp_path / 'run' / 'checkpoints')


@pytest.mark.parametrize('more', ['', '; the last good checkpoint is of step 60'])
def test_the_last_good_checkpoint_is_named(request, tmp_path, more):
    run = request.getfixturevalue('saved') if more else tmp_path
    with pytest.raises(OSError) as error, last_good_named(run):
        raise OSError(errno.ENOSPC, 'No space left on device', 'run/metrics.jsonl')
    assert error.value.strerror == f'No space left on device{more}'


def test_reading_leaves_a_writing_run_alone(workdir):
    unfinished = workdir / 'checkpoints' / '70.orbax-checkpoint-tmp'
    unfinished.mkdir()
    load_params(workdir)
    assert unfinished.exists()


def test_digest_depends_on_names_and_bytes():
    arrays = {'a': np.arange(3.0), 'b': np.ones(2, np.float32)}
    assert digest(arrays) == digest(dict(reversed(arrays.items())))
    assert digest(arrays) != digest({**arrays, 'b': np.zeros(2, np.float32)})
    assert digest(arrays) != digest({'a': arrays['a'], 'c': arrays['b']})
