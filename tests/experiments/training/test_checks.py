import json

import pytest

from configs import imagenet
from experiments.training import loop
from experiments.training.checks import (
    check_resolution,
    check_resumable,
    check_sizes,
    count_steps,
)
from perceiver_jax.errors import Refused
from tests.toys.toy_task import ToyTask, get_config


def test_epochs_are_counted_in_examples():
    config = get_config(epochs=1.55, steps=None)  # of 320 examples, in batches of 32: 15.5 updates
    assert count_steps(config, 320) == (15, 10.0)


@pytest.mark.parametrize(
    ('train_keys', 'message'),
    [
        (dict(batch_size=36), 'config.train.batch_size is 36, .* 8 devices'),
        (dict(accumulate_steps=8), 'batch_size is 32, .*accumulate_steps 8'),
        (dict(epochs=3.0), 'exactly one of .*epochs and .*steps must be set, got 3.0 and 6'),
        (dict(steps=None), 'exactly one of .* got None and None'),
        (dict(steps=None, epochs=0.05), 'config.train.epochs is 0.05, which makes 0 updates'),
        (dict(log_every_steps=0), 'config.train.log_every_steps is 0'),
        (dict(keep_checkpoints=0), 'config.train.keep_checkpoints is 0'),
        (dict(steps=None, epochs=1e9), 'config.train.epochs is .* makes 10,000,000,000 updates'),
    ],
)
def test_configs_that_cannot_run_are_refused_first(tmp_path, train_keys, message):
    config = get_config(**train_keys)
    with pytest.raises(ValueError, match=message):
        loop.train(config, ToyTask(config), tmp_path / 'run', 'toy')
    assert not (tmp_path / 'run').exists()


def test_evaluation_batches_must_divide_too():
    config = get_config()
    config.evaluation.batch_size = 12
    with pytest.raises(ValueError, match='config.evaluation.batch_size is 12, .* of 8 devices'):
        check_sizes(config, num_devices=8)


def test_positions_must_tell_neighbours_apart():
    for resolution in (None, (5, 7), (5, 8)):  # None: they are learned
        check_resolution(get_config(), 'size is 7', (5, 7), 'key', resolution)
    with pytest.raises(ValueError) as error:
        check_resolution(get_config(), 'size is 7', (5, 7), 'key', (5, 6))
    assert str(error.value) == (
        'size is 7, which makes 5 x 7 input elements, more than key (5, 6): make it as large'
    )
    config = get_config()
    config.init_from = 'weights'  # whose positions are for fewer samples
    check_resolution(config, 'size is 7', (5, 7), 'key', (5, 6))


def test_a_folder_with_another_config_is_refused(tmp_path):
    check_resumable(tmp_path, get_config())  # nothing is there yet
    start_run(tmp_path, get_config())
    config = get_config(log_every_steps=3)
    config.parallel = 'pmap'
    config.data.update(num_workers=8, path='elsewhere')
    config.evaluation.batch_size = 8
    check_resumable(tmp_path, config)  # none of which changes the result
    config.seed = 8
    config.optimizer.schedule = dict(kind='step', boundary_epochs=(3, 5), factor=0.1)
    with pytest.raises(ValueError) as error:
        check_resumable(tmp_path, config)
    assert str(error.value).startswith(
        f'{tmp_path} holds a run with another config: '
        'optimizer.schedule.boundary_epochs was None and is [3, 5]; '
        'optimizer.schedule.factor was None and is 0.1; '
        "optimizer.schedule.kind was 'constant' and is 'step'; seed was 7 and is 8. "
    )


def test_a_run_is_lengthened_where_no_update_depends_on_its_length(tmp_path):
    start_run(tmp_path, get_config())
    check_resumable(tmp_path, get_config(steps=8))
    check_resumable(tmp_path, get_config(steps=None, epochs=1.0))
    config = get_config(steps=8)
    config.seed = 8
    with pytest.raises(Refused, match='another config: seed was 7 and is 8; train.steps was 6 and'):
        check_resumable(tmp_path, config)

    config = get_config()
    config.optimizer.schedule = dict(kind='cosine', warmup_steps=0)
    start_run(tmp_path, config)
    config.train.steps = 8
    with pytest.raises(Refused) as refused:
        check_resumable(tmp_path, config)
    another_length = f'{tmp_path} holds a run of another length (config.train.steps or epochs), and'
    remedy = f'A new run can start from its weights: --config.init_from={tmp_path}'
    assert str(refused.value) == (
        f'{another_length} its schedule, cosine, is made for the length of the run: constant and '
        f'step are not. {remedy}'
    )

    config = get_config()
    config.curriculum = dict(ramp_fraction=0.5)
    start_run(tmp_path, config)
    config.train.steps = 8
    with pytest.raises(Refused) as refused:
        check_resumable(tmp_path, config)
    assert str(refused.value) == (
        f'{another_length} its curriculum is made for the length of the run. {remedy}'
    )


def test_a_run_of_before_resumes(tmp_path):
    """Its config.json lacks the keys that came later; with their values it is the same run."""
    saved = imagenet.get_config('demo').to_dict()
    del saved['init_from'], saved['train']['freeze'], saved['optimizer']['loaded_scale']
    del saved['data']['classes']
    (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
    (tmp_path / 'config.json').write_text(json.dumps(saved))
    config = imagenet.get_config('demo')
    check_resumable(tmp_path, config)
    config.train.freeze = ('encoder',)
    with pytest.raises(
        Refused, match=r"another config: train.freeze was \[\] and is \['encoder'\]"
    ):
        check_resumable(tmp_path, config)


def test_tuples_are_lists_in_json(tmp_path):
    config = get_config()
    config.optimizer.schedule = dict(kind='step', boundary_epochs=(3, 5), factor=0.1)
    start_run(tmp_path, config)
    check_resumable(tmp_path, config)


def test_a_config_without_a_checkpoint_binds_nothing(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(get_config(steps=7).to_dict()))
    check_resumable(tmp_path, get_config(steps=6))


@pytest.mark.parametrize('damaged', ['{"seed": 7, "tra', '[1]', 10_000 * '['])
def test_a_damaged_config_is_named(tmp_path, damaged):
    start_run(tmp_path, get_config())
    (tmp_path / 'config.json').write_text(damaged)
    with pytest.raises(ValueError, match='config.json: .*; remove it'):
        check_resumable(tmp_path, get_config())


def test_a_config_with_a_value_of_another_kind_differs(tmp_path):
    start_run(tmp_path, get_config())
    saved = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**saved, 'model': 10**6 * 'x'}))
    with pytest.raises(ValueError, match="another config: model was 'xxx") as caught:
        check_resumable(tmp_path, get_config())
    assert len(str(caught.value)) < 1000


def start_run(workdir, config):
    """Leaves what a run leaves with its first checkpoint."""
    (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
    (workdir / 'checkpoints' / '2').mkdir(parents=True, exist_ok=True)
