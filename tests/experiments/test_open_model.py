import dataclasses
import json

import numpy as np
import pytest

from configs import imagenet, modelnet40
from experiments import open_model
from experiments.training import checkpointing
from perceiver_jax.errors import Refused
from perceiver_jax.position_encoding import resample_positions
from perceiver_jax.weights.loading import read_bare
from perceiver_jax.weights.trees import flatten
from tests.toys.demo_run import IMAGES, write_demo_run
from tests.toys.golden import SMALL, SMALL_INPUTS, write_pystate


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    write_demo_run(workdir)
    return workdir


def test_a_run_is_a_model(workdir):
    model = open_model.open_model(workdir)
    assert model(IMAGES).shape == (2, 10)
    assert model.classes == [str(n) for n in range(10)]
    assert model.front_end == dict(size=8, crop_fraction=1.0, mean=[0.3], std=[0.38])
    assert model.description == f'imagenet, step 5 of {workdir}.'
    best = open_model.open_model(workdir, best=True)
    assert 'step 3' in best.description
    assert np.abs(best(IMAGES) - model(IMAGES)).max() > 1e-3


def test_a_config_that_takes_too_much_is_refused(workdir, tmp_path):
    (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
    config = json.loads((workdir / 'config.json').read_text())
    config['model']['encoder'].update(num_blocks=1000, num_self_attends_per_block=999)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    message = f'{tmp_path}/config.json.*: .*there are 999,000 self-attends, expected at most'
    with pytest.raises(ValueError, match=message):
        open_model.open_model(tmp_path)


def test_what_is_no_run_says_so(workdir, tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='config.json is not the config of a run'):
        open_model.open_model(tmp_path)
    config = json.loads((workdir / 'config.json').read_text())
    changed = {**config, 'augmentation': {**config['augmentation'], 'jitter_scales': 1}}
    (tmp_path / 'config.json').write_text(json.dumps(changed))
    with pytest.raises(ValueError, match='config.json is not the config of a run: .*jitter_scales'):
        open_model.open_model(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='no checkpoint in'):
        open_model.open_model(tmp_path)


def config_like(name, **changes):
    """The config of the model that a golden file holds weights of, without data."""
    config = imagenet.get_config(f'io_{name}')
    config.update_from_flattened_dict(SMALL | SMALL_INPUTS[name] | changes)
    return config


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A bare file, and a folder that says the arguments and the classes, last letter first."""
    folder = tmp_path_factory.mktemp('released')
    bare = write_pystate(folder / 'fourier.pystate', 'imagenet_fourier')
    config = config_like('fourier')
    model = read_bare(bare, config.model.to_dict(), dict(size=16, mean=[0.5] * 3))
    dataclasses.replace(model, classes=list('jihgfedcba')).save(folder / 'fourier')
    return str(bare), str(folder / 'fourier')


# Two arguments that the shapes of the weights do not tell.
OTHERWISE = {'model.encoder.self_attend.num_heads': 2, 'model.inputs.max_resolution': (9, 16)}


@pytest.mark.parametrize('starts', [False, True])
def test_arguments_that_differ_where_shapes_agree_are_listed_or_followed(released, capsys, starts):
    bare, path = released

    def opened(weights, side):
        config = config_like('fourier', **OTHERWISE, init_from=weights)
        if starts:
            return config, *open_model.open_to_start(config, side=side)
        return config, *open_model.open_to_evaluate(config, weights, side=side)

    listed = 'encoder.self_attend.num_heads 4, not 2, inputs.max_resolution (16, 16), not (9, 16)'
    with pytest.raises(Refused) as refused:
        opened(path, 'config')
    assert str(refused.value) == (
        f'{path} is weights of another model than config.model: {listed}. '
        '--model_from=weights takes what they say'
    )
    if starts:
        return
    config, task, _ = opened(path, 'weights')
    assert f'config.model becomes that of {path}: {listed}.\n' in capsys.readouterr().out
    assert config.model.encoder.self_attend.num_heads == 4
    assert config.model.inputs.max_resolution == (16, 16)
    assert task.config is config

    config, _, _ = opened(bare, 'weights')  # which says nothing
    assert config.model.encoder.self_attend.num_heads == 2
    told = capsys.readouterr().out
    assert told.startswith(f'{bare} does not say what its model is: ') and told.count('\n') == 1


def test_a_config_follows_weights_of_another_kind_of_inputs(tmp_path):
    wanted = config_like('learned')
    learned = write_pystate(tmp_path / 'learned.pystate', 'imagenet_learned')
    read_bare(learned, wanted.model.to_dict(), dict(size=16, mean=[0.5] * 3)).save(tmp_path / 'x')
    config = config_like('fourier')
    config.model.encoder.self_attend.num_heads = 2
    open_model.open_to_evaluate(config, str(tmp_path / 'x'), side='weights')
    assert config.model.to_dict() == wanted.model.to_dict()
    assert config.is_locked


def test_a_bare_file_has_no_best_checkpoint(released):
    with pytest.raises(Refused, match='fourier.pystate is no run: it has no best checkpoint'):
        open_model.open_to_evaluate(config_like('fourier'), released[0], best=True)


def test_weights_of_another_function_are_refused(released):
    for path in released:
        with pytest.raises(Refused) as refused:
            open_model.open_to_evaluate(modelnet40.get_config('demo'), path)
        assert str(refused.value) == (
            f"{path} is weights of image_classifier, and config.model of task 'modelnet40' is that "
            'of point_classifier'
        )


def test_shapes_of_a_bare_file_are_compared(released):
    config = config_like('fourier', **{'model.encoder.num_latents': 9})
    with pytest.raises(Refused, match=r'encoder:latents \(8, 32\), not \(9, 32\)'):
        open_model.open_to_evaluate(config, released[0])


def test_the_classes_of_the_weights_number_the_folders(released, tmp_path):
    for name in 'cj':
        (tmp_path / 'val' / name).mkdir(parents=True)
        (tmp_path / 'val' / name / 'x.png').touch()
    data = {'data.source': 'folder', 'data.path': str(tmp_path)}
    config = config_like('fourier', **data, **{'model.num_classes': 0})
    task, _ = open_model.open_to_evaluate(config, released[1])
    assert config.model.num_classes == 10
    assert [example['label'] for example in task.eval_source] == [0, 7]

    (tmp_path / 'val' / 'k').mkdir()
    task, _ = open_model.open_to_evaluate(config_like('fourier', **data), released[1])
    with pytest.raises(Refused, match="'k' is no class of the list .*the classes of the weights"):
        task.num_eval_examples  # noqa: B018


def test_a_start_at_another_size_and_with_other_classes(tmp_path):
    path = write_pystate(tmp_path / 'learned.pystate', 'imagenet_learned')
    changes = {'images.image_size': 12, 'model.num_classes': 7, 'init_from': str(path)}
    config = config_like('learned', **changes)
    task, start = open_model.open_to_start(config)

    source = read_bare(path, config.model.to_dict(), dict(size=16)).params
    sizes = {name: x.size for name, x in flatten(source).items()}
    head = 'decoder/query_decoder/output'
    positions = 'inputs/position_encoding'
    assert start.facts == {
        'weights': str(path),
        'params_sha256': checkpointing.digest(checkpointing.flatten(source)),
        'taken': sum(sizes.values())
        - sizes[f'{positions}:positions']
        - sizes[f'{head}:w']
        - sizes[f'{head}:b'],
        'resampled': 12 * 12 * 20,
        'new': 32 * 7 + 7,
        'resampled_names': [f'{positions}:positions'],
        'new_names': [f'{head}:b', f'{head}:w'],
    }
    resampled = resample_positions(source[positions]['positions'], grid=(16, 16), new_grid=(12, 12))
    np.testing.assert_array_equal(start.params[positions]['positions'], resampled)
    assert start.params[head]['w'].shape == (32, 7)
    assert task.config.model.num_classes == 7
    for name, value in flatten(start.params).items():
        if not name.startswith(head) and name != f'{positions}:positions':
            np.testing.assert_array_equal(value, flatten(source)[name], name)
