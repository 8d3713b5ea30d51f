import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import convert, open_model
from perceiver_jax import initialise, load
from perceiver_jax.errors import Refused
from perceiver_jax.weights import foreign_files
from tests.toys.demo_run import IMAGES, write_demo_run
from tests.toys.huggingface_folder import small_model

pytestmark = pytest.mark.smoke


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    write_demo_run(workdir)
    return workdir


@pytest.mark.parametrize('name', ['ours', 'x.pystate', 'x.pickle', 'x.safetensors'])
def test_every_format_gives_the_same_outputs(workdir, tmp_path, name, capsys):
    convert.main([str(workdir), str(tmp_path / name)])
    assert capsys.readouterr().out == f'wrote {tmp_path / name}\n'
    model = open_model.open_model(workdir)
    changes = {} if name == 'ours' else dict(arguments=model.arguments, front_end=model.front_end)
    np.testing.assert_array_equal(load(tmp_path / name, **changes)(IMAGES), model(IMAGES))


def test_a_program(workdir, tmp_path):
    convert.main([str(workdir), str(tmp_path / 'x.stablehlo'), '--best'])
    program = jax.export.deserialize(bytearray((tmp_path / 'x.stablehlo').read_bytes()))
    expected = open_model.open_model(workdir, best=True)(IMAGES)
    np.testing.assert_allclose(program.call(IMAGES), expected, atol=1e-5)


def test_a_convolution_asks_for_its_layout(tmp_path, capsys):
    conv = dict(contents='conv7x7', contents_channels=3, num_bands=2, max_resolution=[2, 2])
    encoder = dict(num_latents=3, latent_channels=8, num_blocks=1, num_self_attends_per_block=1)
    arguments = dict(num_classes=5, inputs=conv, encoder=encoder, decoder=dict(query_channels=7))
    model = initialise('image_classifier', arguments, dict(size=8, mean=[0.5] * 3))
    model.save(tmp_path / 'model')
    command = [str(tmp_path / 'model'), str(tmp_path / 'x.safetensors')]
    with pytest.raises(SystemExit):
        convert.main(command)
    assert 'choose one' in capsys.readouterr().err
    convert.main([*command, '--conv_kernel=transformers'])
    assert (tmp_path / 'x.safetensors').exists()


@pytest.mark.parametrize(
    ('owner', 'name'), [('Hugging Face', 'x.safetensors'), ('DeepMind', 'x.pystate')]
)
def test_a_model_that_was_not_released_is_told(workdir, tmp_path, monkeypatch, owner, name):
    """One of another function is told too, where all its parameters have names in the release."""
    run = open_model.open_model(workdir)
    other = {**run.params, 'encoder/cross_attend_2/attention/query': {'w': np.zeros((2, 3))}}
    for model, what in [
        (dataclasses.replace(run, function='point_classifier'), 'point_classifier'),
        (dataclasses.replace(run, params=other), 'image_classifier with other parameters'),
    ]:
        monkeypatch.setattr(open_model, 'open_model', lambda *_, model=model, **__: model)
        with pytest.raises(Refused) as error:
            convert.convert('runs/x', tmp_path / name)
        assert str(error.value) == (
            f'{tmp_path / name}: {owner} has no such model as runs/x, of {what}; '
            'a folder or a .stablehlo takes any model'
        )
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', ['imagenet_fourier', 'mlm_bytes'])
def test_a_folder_of_transformers_needs_no_arguments(tmp_path, kind):
    model = small_model(kind)
    if kind == 'imagenet_fourier':
        model = dataclasses.replace(model, classes=list('abcde'), activation='sigmoid')
    model.save(tmp_path / 'ours')
    target = tmp_path / 'theirs' / 'model.safetensors'
    convert.main([str(tmp_path / 'ours'), str(target)])
    assert {file.name for file in target.parent.iterdir()} == {'config.json', target.name}
    loaded = load(target.parent)
    for field in ('function', 'arguments', 'front_end', 'classes', 'activation'):
        assert getattr(loaded, field) == getattr(model, field)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)


def test_a_config_that_is_there_stays_or_is_refused(tmp_path):
    small_model('mlm_bytes').save(tmp_path / 'ours')
    target = tmp_path / 'theirs' / 'model.safetensors'
    convert.convert(str(tmp_path / 'ours'), target)
    config = target.with_name('config.json')
    theirs = {**json.loads(config.read_text()), 'hidden_act': 'gelu', 'transformers_version': '5'}
    config.write_text(json.dumps(theirs))
    target.unlink()
    convert.convert(str(tmp_path / 'ours'), target)
    assert json.loads(config.read_text()) == theirs
    config.write_text(json.dumps({**theirs, 'num_self_attention_heads': 8, 'd_model': 1}))
    target.unlink()
    with pytest.raises(Refused, match='another model, by num_self_attention_heads, d_model: write'):
        convert.convert(str(tmp_path / 'ours'), target)
    assert [file.name for file in target.parent.iterdir()] == ['config.json']


def test_what_a_config_cannot_say_is_told_before_anything_is_written(workdir, tmp_path):
    target = tmp_path / 'theirs' / 'model.safetensors'
    with pytest.raises(Refused, match='images of 1 channels .* A folder of ours takes it'):
        convert.convert(str(workdir), target)
    assert not target.parent.exists()


def test_weights_that_cannot_be_written_leave_no_config(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, 'No space left on device', 'model.safetensors')

    small_model('mlm_bytes').save(tmp_path / 'ours')
    monkeypatch.setattr(foreign_files, 'write_huggingface', fail)
    with pytest.raises(OSError):
        convert.convert(str(tmp_path / 'ours'), tmp_path / 'theirs' / 'model.safetensors')
    assert not list((tmp_path / 'theirs').iterdir())


def test_errors_are_one_line(workdir, tmp_path, capsys):
    for arguments, message in [
        ([workdir, tmp_path / 'x.onnx'], "ends in '.onnx'"),
        (['nowhere', tmp_path / 'x'], 'nowhere does not exist'),
    ]:
        with pytest.raises(SystemExit) as exit:
            convert.main([str(x) for x in arguments])
        assert exit.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
