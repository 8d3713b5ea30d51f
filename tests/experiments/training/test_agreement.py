import json
from pathlib import Path

import pytest

from experiments.training import parallel
from experiments.training.agreement import (
    agreement,
    code_digests,
    disagreement,
    newest_step,
)
from perceiver_jax.errors import Refused
from tests.toys.toy_task import get_config


def facts(host, **changes):
    """What a process of a run knows, as it comes out of JSON."""
    same = dict(
        refused=None,
        config=get_config().to_dict(),
        code={'experiments/a.py': '00', 'experiments/b.py': '11'},
        data={'number of training examples': 320, 'data': 'toy'},
        newest_step=None,
        workdir='/runs/a',
    )
    return json.loads(json.dumps({'host': host, **same, **changes}))


def test_equal_processes_agree():
    config = get_config()
    config.data.update(path='/elsewhere', num_workers=8)
    own = facts('b', config=config.to_dict(), workdir='/mounted/runs/a')  # a host's own matter
    assert disagreement([facts('a'), own]) is None
    assert disagreement([facts('a', newest_step=4), facts('b', newest_step=4)]) is None
    assert disagreement([facts('a')]) is None


def test_configs_that_differ():
    config = get_config(steps=7)
    config.seed = 8
    config.train.log_every_steps = 3  # may change from one start to the next, but all must log
    assert disagreement([facts('a'), facts('a'), facts('b', config=config.to_dict())]) == (
        'process 2 on host b differs from process 0 on host a: config.seed is 8, not 7; '
        'config.train.log_every_steps is 3, not 2; config.train.steps is 7, not 6'
    )


def test_code_that_differs():
    code = {'experiments/a.py': '01', 'experiments/c.py': '22'}
    assert disagreement([facts('a'), facts('b', code=code)]) == (
        'process 1 on host b differs from process 0 on host a: the file experiments/a.py differs; '
        'the file experiments/b.py is missing; the file experiments/c.py is new'
    )


def test_data_that_differs():
    data = {'number of training examples': 319, 'data': 'toy'}
    assert disagreement([facts('a'), facts('b', data=data)]) == (
        'process 1 on host b differs from process 0 on host a: '
        'its number of training examples is 319, not 320'
    )


def test_many_differences_are_counted():
    code = {f'experiments/{name}.py': '22' for name in 'abcdefg'}
    message = disagreement([facts('a'), facts('b', code=code)])
    assert message.endswith('the file experiments/e.py is new; and 2 more')


@pytest.mark.parametrize(
    ('steps', 'message'),
    [
        (
            (4, None),
            'process 1 on host b sees no checkpoint in /runs/b, '
            'process 0 on host a sees step 4 as the newest checkpoint in /runs/a',
        ),
        (
            (None, 4),
            'process 0 on host a sees no checkpoint in /runs/a, '
            'process 1 on host b sees step 4 as the newest checkpoint in /runs/b',
        ),
        (
            (4000, 2000),
            'process 1 on host b sees step 2,000 as the newest checkpoint in /runs/b, '
            'process 0 on host a sees step 4,000 as the newest checkpoint in /runs/a',
        ),
    ],
)
def test_checkpoints_that_not_all_see(steps, message):
    two = facts('a', newest_step=steps[0]), facts('b', newest_step=steps[1], workdir='/runs/b')
    assert disagreement(two) == f'{message}; all must see the same workdir'


def test_what_one_was_refused_all_are_told():
    assert disagreement([facts('a', refused='it is locked'), facts('b')]) == (
        'process 0 on host a: it is locked'
    )
    config = get_config()
    config.seed = 8  # then they are not of the same run
    message = disagreement([facts('a', refused='no', data={}), facts('b', config=config.to_dict())])
    assert message.endswith('config.seed is 8, not 7')


@pytest.mark.parametrize('own', [True, False])
def test_a_refusal_is_raised_in_all_processes(tmp_path, monkeypatch, own):
    monkeypatch.setattr(parallel, 'num_processes', lambda: 2)
    other = facts('b', code=code_digests(), data={}, refused=None if own else 'no such data')
    monkeypatch.setattr(parallel, 'exchange', lambda ours: [json.loads(json.dumps(ours)), other])
    with pytest.raises(ValueError) as error, agreement(get_config(), tmp_path):
        if own:
            raise Refused('no such data')
    assert str(error.value) == ('' if own else 'process 1 on host b: ') + 'no such data'


def test_one_process_agrees_with_itself(tmp_path):
    with agreement(get_config(), tmp_path) as data:
        assert data == {}
    with (
        pytest.raises(ValueError, match='^no such data$'),
        agreement(get_config(), tmp_path),
    ):
        raise Refused('no such data')


def test_the_newest_step_is_that_of_a_whole_checkpoint(tmp_path):
    assert newest_step(tmp_path) is None
    for name in ('4', '10', '12.damaged', '14.orbax-checkpoint-tmp-3', 'tmp'):
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 10


def test_all_of_our_files_are_digested():
    digests = code_digests()
    root = Path(__file__).parents[3]
    assert {'perceiver_jax/models.py', 'experiments/launch.py', 'configs/flow.py'} < set(digests)
    assert all((root / name).exists() and len(digest) == 64 for name, digest in digests.items())
