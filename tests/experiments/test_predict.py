"""The command: models as they are saved run on files, and mistakes are told in one line."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import predict
from perceiver_jax import models
from perceiver_jax.errors import Refused
from perceiver_jax.weights.pretrained import Pretrained
from tests.toys.known_model import (
    AUDIO_VISUAL_CLIPS,
    CLIPS,
    IMAGES,
    KnownModel,
    make_clip,
    write_image,
)

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)


NETWORK = dict(
    kind='vit', patch_size=3, channels=8, num_self_attends=1, self_attend=dict(num_heads=1)
)


def tiny_model(function):
    latents = dict(num_latents=3, latent_channels=8, num_blocks=1, num_self_attends_per_block=1)
    positions = dict(num_bands=2, max_resolution=[4, 4, 4])
    arguments, front_end = {
        'image_classifier': (
            dict(
                num_classes=7,
                inputs=dict(num_bands=2, max_resolution=[7, 7], permutation_seed=0),
                encoder=latents,
            ),
            IMAGES,
        ),
        'point_classifier': (
            dict(num_classes=7, inputs=positions, encoder=latents),
            {'num_points': 23},
        ),
        'optical_flow': (
            dict(
                inputs=dict(channels=5, num_bands=2, max_resolution=[23, 29]),
                encoder=latents,
                decoder={},
            ),
            {'tile': [23, 29]},
        ),
        'masked_language_model': (
            dict(inputs=dict(channels=8, max_length=23), encoder=latents, decoder={}),
            {'length': 23},
        ),
        'video_autoencoder': (
            dict(
                num_classes=7,
                inputs=dict(
                    video=dict(patch=[1, 4, 4], **positions),
                    audio=dict(samples_per_patch=16, num_bands=2, max_resolution=[480]),
                    min_padding=2,
                ),
                encoder=latents,
                queries=dict(
                    video=positions,
                    audio=dict(num_bands=2, max_resolution=[480]),
                    label_channels=8,
                    min_padding=2,
                    endpoint=False,
                ),
                decoder=dict(output_channels=8),
            ),
            CLIPS,
        ),
        'audio_visual_classifier': (
            dict(
                num_classes=7,
                inputs=dict(
                    spectrogram=dict(patch=[1, 1], num_bands=2, max_resolution=[110]),
                    min_padding=2,
                ),
                encoder=latents,
            ),
            {**AUDIO_VISUAL_CLIPS, 'modalities': ['spectrogram']},
        ),
        'image_baseline': (
            dict(num_classes=7, inputs=dict(positions='none'), network=NETWORK),
            IMAGES,
        ),
        'point_baseline': (
            dict(num_classes=7, inputs=positions, network=NETWORK),
            {'num_points': 25},
        ),
    }[function]
    for part in ('encoder', 'decoder'):
        if part in arguments:
            kind = 'self_attend' if part == 'encoder' else 'cross_attend'
            arguments[part] = {**arguments[part], kind: dict(num_heads=1)}
    scores = {'activation': 'softmax'} if function == 'audio_visual_classifier' else {}
    model = Pretrained(function, arguments, front_end, {}, {}, **scores)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # Ten times as fast as to compile how each weight is initialised.
    random = jax.tree.map(lambda x: RNG.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    return dataclasses.replace(model, params=random[0], state=random[1])


@pytest.mark.parametrize(
    'function, inputs, options, outputs',
    [
        ('image_classifier', ['1.png', '2.png'], [], ['1_attention.png', '2_attention.png']),
        ('image_classifier', ['1.png'], ['--attention=logits'], ['1_attention.png']),
        (
            'optical_flow',
            ['1.png', '2.png'],
            ['--tiles', 'even'],
            ['1_flow.flo', '1_flow.png', '1_flow_picture.png'],
        ),
        ('image_baseline', ['1.png', '2.png'], [], ['1_saliency.png', '2_saliency.png']),
        ('point_baseline', ['a.off', 'b.txt'], [], ['a_saliency.png', 'b_saliency.png']),
        ('point_classifier', ['a.off', 'b.txt'], [], ['a_attention.png', 'b_attention.png']),
        ('masked_language_model', ['text.txt'], [], []),
        (
            'video_autoencoder',
            ['a.mp4'],
            ['--start', '0.04'],
            ['a_reconstruction.mp4', 'a_reconstruction.png'],
        ),
        ('audio_visual_classifier', ['a.mp4'], ['--start', '0.04'], []),
    ],
)
def test_a_saved_model_runs_on_files(tmp_path, capsys, function, inputs, options, outputs):
    tiny_model(function).save(tmp_path / 'model')
    for name in ('1.png', '2.png'):
        write_image(tmp_path / name, 13, 19)
    (tmp_path / 'text.txt').write_bytes(b'in [MASK*3], France\n')
    make_clip(tmp_path / 'a.mp4')
    (tmp_path / 'a.off').write_text('OFF\n3 1 0\n0 0 1\n0 1 0\n1 0 0\n3 0 1 2\n')
    np.savetxt(tmp_path / 'b.txt', RNG.random((31, 6)))
    out = tmp_path / 'out'
    paths = [str(tmp_path / name) for name in inputs]
    command = [str(tmp_path / 'model'), *paths, '--out', str(out), '--json', *options]
    predict.main(predict.parse(command))
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x['input'] for x in results] == ([paths] if function == 'optical_flow' else paths)
    written = sorted(x.name for x in out.iterdir()) if out.exists() else []
    assert written == sorted(outputs)
    if function == 'masked_language_model':
        # A byte that goes on marks the space too: it is what it would go on from.
        assert re.fullmatch(r'in ?\[ ?.{1,3}\], France', results[0]['marked'], re.DOTALL)
        assert [x['position'] for x in results[0]['bytes']] == [3, 4, 5]
    else:
        assert [file for x in results for file in x['files']] == [f'{out}/{x}' for x in outputs]


@pytest.mark.parametrize('option', ['--attention=logits', '--latents=0'])
def test_what_has_no_latents_shows_none(tmp_path, option):
    tiny_model('image_baseline').save(tmp_path / 'model')
    write_image(tmp_path / '1.png', 13, 19)
    command = [str(tmp_path / 'model'), str(tmp_path / '1.png'), option]
    with pytest.raises(Refused, match=f'{option[:9]}.*: expected a Perceiver, got image_baseline'):
        predict.main(predict.parse(command))


def test_options_may_stand_between_the_inputs(tmp_path):
    for name in ('a.png', 'b.png'):
        (tmp_path / name).touch()
    a, b = str(tmp_path / 'a.png'), str(tmp_path / 'b.png')
    arguments = predict.parse(['model', a, '--out', 'x', b, '--json'])
    assert [str(path) for path in arguments.inputs] == [a, b] and arguments.json


def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    write_image(tmp_path / 'a.png', 5, 7)
    for arguments, message in [
        ([], 'the following arguments are required: MODEL, INPUT; --help explains'),
        (['a.png', 'a.png', '--tiles', 'odd'], "argument --tiles: invalid choice: 'odd' .*"),
        (
            ['a.png', 'a.png', '--latents', '5-3'],
            "argument --latents: expected latents from 0, such as 0,5,17 or 64-127, got '5-3'; .*",
        ),
        (['a.png', 'none.txt'], 'none.txt: there is no such file'),
        (['a.png', 'a.png', '--classes', '.'], '.: there is no such file'),
        (['a.png', 'a.png', '--out', 'a.png'], '--out: a.png is no folder'),
    ]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['predict', *arguments])
        with pytest.raises(SystemExit, match='2'):
            predict.run()
        out, err = capsys.readouterr()
        assert out == '' and re.fullmatch(f'error: {message}\n', err), err


@pytest.fixture
def folder(tmp_path):
    """Three files beside a folder and what systems leave there."""
    for name in (
        'b.x',
        'a.x',
        'c.x',
        '._a.x',
        '.DS_Store',
        'Thumbs.db',
        'more/d.x',
        'no files/e/f',
    ):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).write_text('[MASK]')
    return tmp_path / 'in'


def test_a_folder_stands_for_its_files(folder):
    one = str(folder / 'a.x')
    message = f'{folder}: its files are read, not those of folders in it'
    with pytest.warns(UserWarning, match=f'^{re.escape(message)}$'):
        inputs = predict.parse(['model', str(folder), one]).inputs
    assert inputs == [str(folder / name) for name in ('a.x', 'b.x', 'c.x')] + [one]
    assert predict.files_of(str(folder / 'more')) == [str(folder / 'more' / 'd.x')]
    assert predict.files_of('-') == ['-']
    (folder / 'more' / 'gone.x').symlink_to('nowhere')  # told in its turn, not before all
    paths = [str(folder / 'more' / name) for name in ('d.x', 'gone.x')]
    assert predict.parse(['model', str(folder / 'more')]).inputs == paths


@pytest.mark.parametrize(('name', 'more'), [('no files', ', only folders'), ('no files/e/g', '')])
def test_a_folder_without_files_is_refused(folder, capsys, name, more):
    (folder / 'no files/e/g').mkdir()
    (folder / 'no files/e/g/.hidden').touch()
    with pytest.raises(SystemExit, match='2'):
        predict.parse(['model', str(folder / name)])
    assert capsys.readouterr().err == (
        f'error: INPUT: the folder {folder / name} holds no files{more}\n'
    )


@pytest.mark.parametrize(
    ('function', 'name', 'good'),
    [
        ('image_classifier', 'classify', {'input': 'good'}),
        ('point_classifier', 'classify_shape', {'input': 'good'}),
        ('masked_language_model', 'fill_in', {'input': 'good'}),
        ('video_autoencoder', 'autoencode', {'input': 'good'}),
        ('audio_visual_classifier', 'score_clip', np.array([0.25, 0.75])),
    ],
)
def test_a_bad_file_is_told_and_the_others_follow(
    folder, monkeypatch, capsys, function, name, good
):
    model = KnownModel(None, {}, {'num_classes': 2})
    model.function = function
    monkeypatch.setattr('experiments.open_model.open_model', lambda *_, **__: model)
    given = {'json': True, 'inputs': [str(folder / x) for x in ('a.x', 'b.x', 'c.x')]}
    arguments = predict.parse(['model', '--json'])
    vars(arguments).update(given)

    def run(*answers):
        def answer(*_, **__):
            found = next(answers)
            if isinstance(found, Exception):
                raise found
            return found

        answers = iter(answers)
        monkeypatch.setattr(predict.task_module(function), name, answer)
        predict.main(arguments)

    with pytest.raises(SystemExit, match='2'):
        run(good, Refused('no such\nthing'), good)
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert ['error' in x for x in results] == [False, True, False]
    assert results[1]['input'] == str(folder / 'b.x')
    assert err == f'error: {folder}/b.x: no such thing\nerror: 1 of 3 inputs failed\n'

    with pytest.raises(SystemExit, match='2'):
        run(good, good, PermissionError(13, 'Permission denied', f'{folder}/out'))
    assert f'error: {folder}/c.x: {folder}/out: Permission denied\n' in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a bug
        run(good, ZeroDivisionError())
    assert run(good, good, good) is None


def names_of_modules(script):
    """What a new process has imported after a script that starts with `predict` imported."""
    script = f'import sys\nfrom experiments import predict\n{script}\nprint(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_help_and_mistakes_are_told_before_anything_slow_is_imported():
    script = """
for arguments in (['--help'], [], ['model', 'input', '--tiles', 'odd'], ['model', 'no file']):
    sys.argv = ['predict', *arguments]
    try:
        predict.run()
    except SystemExit:
        continue
    raise AssertionError(arguments)
"""
    assert not {'jax', 'numpy', 'perceiver_jax', 'matplotlib'} & names_of_modules(script)


def test_to_predict_with_one_task_imports_no_other():
    loaded = names_of_modules("predict.task_module('optical_flow')")
    tasks = {f'experiments.{task}' for task in predict.TASKS.values()}
    assert tasks & loaded == {'experiments.flow'}
    assert 'experiments.flow.predict' in loaded
    assert not {'matplotlib', 'tensorflow_datasets', 'experiments.flow.task'} & loaded


def test_every_function_has_a_task_with_its_options():
    assert all(callable(getattr(models, name)) for name in predict.TASKS)
    options = {name: set(predict.task_module(name).OPTIONS) for name in predict.TASKS}
    assert set().union(*options.values()) == set(predict.OF_SOME_TASKS)
    assert all(callable(predict.task_module(name).predict) for name in predict.TASKS)


def test_a_file_that_is_no_model_gets_one_line(tmp_path):
    write_image(tmp_path / 'a.png', 5, 7)
    command = [sys.executable, '-m', 'experiments.predict', 'a.png', 'a.png']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, '')
    assert re.fullmatch(r'error: .*a\.png.*\n', done.stderr), done.stderr


@pytest.mark.parametrize(
    'function, arguments, message',
    [
        ('image_classifier', [], 'INPUT: expected images, got none'),
        ('image_classifier', ['x/a.png', 'y/a.jpg'], "INPUT: 2 are called 'a'; run them apart"),
        ('image_classifier', ['x/a.png', '--start', '3'], '--start means nothing to a model for'),
        ('image_classifier', ['x/a.png', '--text', ''], '--text means nothing to a model for'),
        ('optical_flow', ['x/a.png'], 'INPUT: expected two images, got 1'),
        ('masked_language_model', [], 'INPUT: expected text files, or --text instead'),
        ('masked_language_model', ['x/a.png', '--text', ''], 'expected text files, or --text'),
        ('video_autoencoder', [], 'INPUT: expected videos, got none'),
        ('audio_visual_classifier', [], 'INPUT: expected sounds or videos, got none'),
        ('video_autoencoder', ['x/a.png', '--tiles', 'even'], '--tiles means nothing to a model'),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    tmp_path, monkeypatch, function, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name in ('x/a.png', 'y/a.jpg'):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def open_model(path, best, conv_kernel):
        model = KnownModel(None, {}, {'num_classes': 7})
        model.function = function
        return model

    monkeypatch.setattr('experiments.open_model.open_model', open_model)
    with pytest.raises(ValueError, match=message):
        predict.main(predict.parse(['model', *arguments]))
    assert not (tmp_path / 'predictions').exists()
