"""Predictions: what is printed and written, with models that know the answer and random ones."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping

import cv2
import jax
import numpy as np
import pytest

from experiments import classes, command_line, predict
from experiments.audioset import predict as audioset
from experiments.flow import predict as flow
from experiments.flow.files import read_flo, read_kitti_flow, write_flo
from experiments.imagenet import predict as imagenet
from experiments.kinetics import predict as kinetics
from experiments.language import predict as language
from experiments.modelnet40 import predict as modelnet40
from perceiver_jax.front_ends.images import prepare_image
from perceiver_jax.front_ends.media import read_video, write_clip
from perceiver_jax.front_ends.text import MASK
from perceiver_jax.weights.pretrained import Pretrained

RNG = np.random.default_rng(0)
IMAGES = {'size': 7, 'crop_fraction': 1.0, 'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.3, 0.4]}
CLIPS = {'num_frames': 4, 'size': 16, 'frames_per_second': 25, 'sample_rate': 48000}
MEL = dict(hop=1920, window=2048, num_bins=11, low=50.0, high=2e4, mean_db=-60.0, std_db=20.0)
AUDIO_VISUAL_CLIPS = {**CLIPS, 'num_frames': 10, 'crop_fraction': 1.0, 'log_mel': MEL}


@dataclasses.dataclass
class KnownModel:
    """Stands where a Pretrained does."""

    function: Callable
    front_end: Mapping
    arguments: Mapping = dataclasses.field(default_factory=dict)
    params: Mapping = dataclasses.field(default_factory=dict)
    classes: list | None = None
    attention: Callable | None = None

    def __call__(self, *inputs):
        return self.function(*inputs)


def write_image(path, height, width):
    image = RNG.integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), image[..., ::-1])
    return image


# Text


@pytest.mark.parametrize(
    'text, expected',
    [
        (b'a[MASK]', [*b'a', None]),
        (b'[MASK*3]b', [None, None, None, *b'b']),
        (b'a[MASK][MASK*2] [MASK]', [*b'a', None, None, None, *b' ', None]),
        ('é[MASK][mask]'.encode(), [0xC3, 0xA9, None, *b'[mask]']),
    ],
)
def test_masks_stand_between_bytes(text, expected):
    tokens = language.masked_tokens(text, 100)
    assert tokens.tolist() == [MASK if x is None else x + 6 for x in expected]


@pytest.mark.parametrize('text', [b'', b'no mask', b'[MASK*0]', b'[MASK*]', b'[MASK*-1]'])
def test_nothing_masked_is_an_error(text):
    with pytest.raises(ValueError, match=r'nothing is masked: expected \[MASK\]'):
        language.masked_tokens(text, 100)


def model_that_knows(answer: bytes, length=11):
    """Gives each byte of the answer odds of 6, the next byte 3, and the token PAD 8."""

    def logits(tokens, mask):
        assert tokens.shape == mask.shape == (1, length) and mask.sum() == len(answer)
        odds = np.full((1, length, 262), 1e-9)
        odds[..., 0] = 8
        for i, byte in enumerate(answer):
            odds[0, i, 6 + byte], odds[0, i, 7 + byte] = 6, 3
        return np.log(odds)

    return KnownModel(logits, {'length': length})


def test_masked_bytes_are_filled_in_and_marked():
    result = language.fill_in(model_that_knows(b'one Paris.'), b'[MASK]ne [MASK*4]s[MASK]')
    assert result['text'] == 'one Paris.'
    assert result['marked'] == '[o]ne [Pari]s[.]'
    assert [x['position'] for x in result['bytes']] == [0, 4, 5, 6, 7, 9]
    first, second, _ = result['bytes'][1]['candidates']
    assert (first['byte'], second['byte']) == (ord('P'), ord('Q'))
    np.testing.assert_allclose([first['probability'], second['probability']], [6 / 17, 3 / 17])
    lines = predict.as_text({'input': '--text', **result}).splitlines()
    assert lines[:2] == ['--text', '[o]ne [Pari]s[.]']
    assert lines[3].split()[:7] == ['byte', '4', "'P'", '35.3', '%', "'Q'", '17.6']


def test_a_mask_over_a_part_of_a_character_marks_all_of_it():
    answer = 'café x'.encode()
    for text in (b'caf\xc3[MASK] x', b'caf[MASK]\xa9 x', b'caf[MASK*2] x'):
        assert language.fill_in(model_that_knows(answer), text)['marked'] == 'caf[é] x'


def test_text_of_the_largest_length_fits_and_no_longer():
    answer = b'hello world'
    result = language.fill_in(model_that_knows(answer), b'hello worl[MASK]')
    assert result['text'] == 'hello world'
    with pytest.raises(ValueError, match='the text has 12 bytes, and at most 11 fit'):
        language.fill_in(model_that_knows(answer), b'hello worl[MASK*2]')
    with pytest.raises(ValueError, match='the text has 999,999,999,999 bytes'):
        language.fill_in(model_that_knows(answer), b'[MASK*999999999999]')


# Classes


def test_the_best_classes_come_first():
    logits = np.log([1.0, 2, 4, 8, 16, 32, 0.5])
    best = classes.best_classes(logits, list('abcdefg'))
    assert [x['label'] for x in best] == list('fedcb')
    np.testing.assert_allclose([x['probability'] for x in best], np.array([32, 16, 8, 4, 2]) / 63.5)
    assert len(classes.best_classes(logits[:2], 'ab')) == 2


@pytest.mark.parametrize(
    'name, content',
    [
        ('a.txt', 'tench\ngreat white shark\nowl, tawny\n\n'),
        ('a.csv', 'name,other\ntench,x\ngreat white shark,y\n"owl, tawny",z\n'),
        ('a.CSV', '\ufeffname\ntench\ngreat white shark\n"owl, tawny"\n'),
    ],
)
def test_names_of_classes_come_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    model = KnownModel(None, {}, {'num_classes': 3}, classes=list('abc'))
    names = classes.class_names(model, tmp_path / name)
    assert names == ['tench', 'great white shark', 'owl, tawny']
    model.arguments = {'num_classes': 5}
    with pytest.raises(ValueError, match=f'{name}: expected the names of 5 classes, got 3'):
        classes.class_names(model, tmp_path / name)


@pytest.mark.parametrize(
    'name, content, message',
    [
        (
            'a.csv',
            b'index;name\n0;tench\n1;owl\n',
            r"expected a column `name`, got \['index;name'\]",
        ),
        ('a.csv', b'index,name\n0,tench\n1\n', 'row 2 has no name'),
        ('a.txt', 'tench\nbärin\n'.encode('latin-1'), 'expected UTF-8, .* at byte 7'),
    ],
)
def test_files_that_name_no_classes_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f'{name}: {message}'):
        classes.class_names(KnownModel(None, {}, {'num_classes': 2}), tmp_path / name)


def test_without_a_file_the_model_names_its_classes():
    model = KnownModel(None, {}, {'num_classes': 2}, classes=['cat', 'dog'])
    assert classes.class_names(model, None) == ['cat', 'dog']
    model.classes = None
    assert classes.class_names(model, None) == ['class 0', 'class 1']


def test_an_image_is_classified_as_evaluation_sees_it(tmp_path):
    image = write_image(tmp_path / 'a.b.png', 11, 13)
    asked = []

    def logits(images):
        np.testing.assert_array_equal(images, prepare_image(image, **IMAGES)[None])
        return np.log([[1.0, 3.0]])

    def attention(module, images):
        asked.append(module)
        assert images.shape == (1, 7, 7, 3)
        return RNG.random((1, 2, 3, 49))  # heads, latents, elements

    model = KnownModel(logits, IMAGES, {'inputs': {}}, attention=attention)
    modules = [f'encoder/cross_attend_{i}' for i in (1, 2)]
    model.params = {f'{x}/attention/query': {} for x in modules}
    result = imagenet.classify(model, str(tmp_path / 'a.b.png'), tmp_path / 'new', ['cat', 'dog'])
    assert asked == modules
    assert result['input'] == str(tmp_path / 'a.b.png')
    assert [x['label'] for x in result['best']] == ['dog', 'cat']
    assert result['files'] == [str(tmp_path / 'new' / 'a.b_attention.png')]
    assert cv2.imread(result['files'][0]).std() > 1
    assert predict.as_text(result).splitlines()[1:] == [
        '   75.0 %  dog',
        '   25.0 %  cat',
        f'  {tmp_path}/new/a.b_attention.png',
    ]


# Points


def test_a_shape_is_classified_by_points_of_its_surface(tmp_path):
    corners = [[0, 0, 5], [4, 0, 5], [0, 4, 5]]
    lines = ['OFF3 1 0', *(' '.join(map(str, x)) for x in corners), '3 0 1 2']
    (tmp_path / 'a.off').write_text('\n'.join(lines))

    def logits(points):
        assert points.shape == (1, 29, 3) and np.abs(points).max() == 1
        assert (points[..., 2] == 0).all() and np.ptp(points[..., 0]) > 0.5
        return np.log([[3.0, 1.0]])

    def attention(module, points):
        assert module == 'encoder/cross_attend_1'
        return RNG.random((1, 1, 3, 29))

    model = KnownModel(logits, {'num_points': 29}, attention=attention)
    model.params = {'encoder/cross_attend_1/attention/query': {}}
    result = modelnet40.classify_shape(model, f'{tmp_path}/a.off', tmp_path, ['cup', 'bowl'])
    assert [x['label'] for x in result['best']] == ['cup', 'bowl']
    assert cv2.imread(result['files'][0]).std() > 1


# Flow


def test_flow_is_estimated_written_and_compared(tmp_path):
    first, second = (write_image(tmp_path / name, 29, 37) for name in ('1.png', '2.png'))

    def estimate(frames):  # the red of the second frame to the right, and 600 pixels down
        assert frames.shape == (1, 2, 23, 31, 3)
        return np.stack([frames[:, 1, ..., 0], 600 + 0 * frames[:, 1, ..., 0]], -1)

    model = KnownModel(estimate, {'tile': [23, 31]})
    expected = np.stack([second[..., 0] / 127.5 - 1, np.full((29, 37), 600)], -1)
    truth, valid = expected + [3, -4], RNG.random((29, 37)) < 0.5
    truth[0] += 12 - 3, 4 - 5  # there the error is 13
    write_flo(tmp_path / 'truth.flo', truth, valid)
    paths = [str(tmp_path / name) for name in ('1.png', '2.png')]
    out = str(tmp_path / 'out')
    result = flow.estimate_flow(model, *paths, out, 'deepmind', str(tmp_path / 'truth.flo'))
    assert result['input'] == paths
    lengths = np.where(np.arange(29)[:, None] == 0, 13, 5) + np.zeros((29, 37))
    np.testing.assert_allclose(result['epe'], lengths[valid].mean(), rtol=1e-5)
    names = ['flow.flo', 'flow.png', 'flow_picture.png', 'flow_comparison.png']
    assert result['files'] == [f'{out}/1_{name}' for name in names]
    assert sorted(x.name for x in (tmp_path / 'out').iterdir()) == sorted(f'1_{x}' for x in names)
    estimate, known = read_flo(result['files'][0])
    np.testing.assert_allclose(estimate, expected, atol=1e-4)
    assert known.all()
    assert not read_kitti_flow(result['files'][1])[1].any()  # 600 pixels do not fit there
    assert cv2.imread(result['files'][2]).shape == (29, 37, 3)
    assert f'end-point error {result["epe"]:.2f} px' in predict.as_text(result)


def test_frames_of_different_sizes_are_named(tmp_path):
    write_image(tmp_path / '1.png', 5, 7)
    write_image(tmp_path / '2.png', 5, 11)
    with pytest.raises(ValueError, match=r'1.png, .*2.png: frames must be of one size'):
        flow.estimate_flow(None, str(tmp_path / '1.png'), str(tmp_path / '2.png'), 'out')


def test_a_truth_of_another_size_is_refused_before_the_work(tmp_path):
    for name in ('1.png', '2.png'):
        write_image(tmp_path / name, 5, 7)
    write_flo(tmp_path / 'truth.flo', np.zeros((7, 5, 2)))
    paths = [str(tmp_path / name) for name in ('1.png', '2.png')]
    with pytest.raises(
        ValueError, match=r'truth.flo: expected flow of \(5, 7\) pixels, got \(7, 5'
    ):
        flow.estimate_flow(None, *paths, 'out', 'even', str(tmp_path / 'truth.flo'))


def test_progress_is_a_line_in_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    now = iter([100.0, 104.0, 108.0])
    monkeypatch.setattr(command_line.time, 'monotonic', lambda: next(now))
    progress = command_line.Progress('tile')
    progress(1, 2)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    progress.start = 100.0
    progress(1, 2)
    progress(2, 2)
    assert capsys.readouterr().err == '\rtile 1/2, 4 s left \rtile 2/2, 0 s left \n'


# Video


def make_clip(path):
    video = np.broadcast_to(np.linspace(0.2, 0.8, 8)[:, None, None, None], (8, 16, 16, 3))
    sound = 0.5 * np.sin(np.arange(8 * 1920) / 50)[:, None]
    write_clip(path, video, sound, 25, 48000)


def test_a_clip_is_reconstructed_from_its_start_on(tmp_path):
    make_clip(tmp_path / 'a.mp4')
    seen = []

    def reconstruct(video, audio):
        assert video.shape == (1, 4, 16, 16, 3) and audio.shape == (1, 4 * 1920, 1)
        seen.append(video)
        return {'video': 1 - video, 'audio': -audio, 'label': np.log([[1.0, 3.0]])}

    model = KnownModel(reconstruct, CLIPS)
    out = str(tmp_path / 'out')
    result = kinetics.autoencode(model, str(tmp_path / 'a.mp4'), out, ['cat', 'dog'], 0.12)
    np.testing.assert_allclose(seen[0].mean((0, 2, 3, 4)), np.linspace(0.2, 0.8, 8)[3:7], atol=0.02)
    assert result['files'] == [f'{out}/a_reconstruction.mp4', f'{out}/a_reconstruction.png']
    written = read_video(result['files'][0], 4, 16)
    np.testing.assert_allclose(written, 1 - seen[0][0], atol=0.02)
    assert cv2.imread(result['files'][1]).std() > 1
    assert [x['label'] for x in result['best']] == ['dog', 'cat']


@pytest.mark.parametrize('modalities', [['audio'], ['spectrogram', 'video']])
def test_a_clip_is_scored_window_by_window(tmp_path, modalities):
    write_clip(
        tmp_path / 'a.mp4',
        np.broadcast_to(np.linspace(0.2, 0.8, 40)[:, None, None, None], (40, 24, 32, 3)),
        np.full((40 * 1920, 1), 0.25),
    )
    seen = []

    def score(inputs):
        assert sorted(inputs) == modalities
        seen.append(inputs)
        return np.array([[0.0, len(seen), -1.0]])

    front_end = {**AUDIO_VISUAL_CLIPS, 'modalities': modalities}
    model = KnownModel(score, front_end, {'num_classes': 3})
    scores = audioset.score_clip(model, str(tmp_path / 'a.mp4'), 0.2)
    count = len(seen)  # 35 frames, ten at a time
    assert count == 6
    expected = np.mean([1 / (1 + np.exp(-i)) for i in range(1, count + 1)])
    np.testing.assert_allclose(scores, [0.5, expected, 1 / (1 + np.e)])
    if 'video' in modalities:
        starts = np.rint(np.linspace(0, 25, 6)).astype(int)
        greys = [np.asarray(x['video']).mean((0, 2, 3, 4)) for x in seen]
        expected = [2 * np.linspace(0.2, 0.8, 40)[i + 5 : i + 15] - 1 for i in starts]
        np.testing.assert_allclose(greys, expected, atol=0.04)
        assert all(x['spectrogram'].shape == (1, 10, 11) for x in seen)
    else:
        assert all(x['audio'].shape == (1, 19_200, 1) for x in seen)
        assert np.median(seen[0]['audio']) == pytest.approx(0.25, abs=0.02)


# The command line


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
    }[function]
    for part in ('encoder', 'decoder'):
        if part in arguments:
            kind = 'self_attend' if part == 'encoder' else 'cross_attend'
            arguments[part] = {**arguments[part], kind: dict(num_heads=1)}
    model = Pretrained(function, arguments, front_end, {}, {})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # Ten times as fast as to compile how each weight is initialised.
    random = jax.tree.map(lambda x: RNG.normal(0, 0.1, x.shape).astype(x.dtype), shapes)
    return dataclasses.replace(model, params=random[0], state=random[1])


@pytest.mark.parametrize(
    'function, inputs, options, outputs',
    [
        ('image_classifier', ['1.png', '2.png'], [], ['1_attention.png', '2_attention.png']),
        (
            'optical_flow',
            ['1.png', '2.png'],
            ['--tiles', 'even'],
            ['1_flow.flo', '1_flow.png', '1_flow_picture.png'],
        ),
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
    predict.main([str(tmp_path / 'model'), *paths, '--out', str(out), '--json', *options])
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


def test_mistakes_get_one_line(tmp_path, monkeypatch, capsys):
    write_image(tmp_path / 'a.png', 5, 7)
    for arguments, message in [
        ([], 'the following arguments are required: MODEL, INPUT; --help explains'),
        (['a.png', 'a.png', '--tiles', 'odd'], "argument --tiles: invalid choice: 'odd' .*"),
        (['a.png', 'none.txt'], 'none.txt: there is no such file'),
        (['a.png', 'a.png', '--classes', '.'], '.: there is no such file'),
    ]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['predict', *arguments])
        with pytest.raises(SystemExit, match='2'):
            predict.run()
        out, err = capsys.readouterr()
        assert out == '' and re.fullmatch(f'error: {message}\n', err), err


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
        predict.main(['model', *arguments])
    assert not (tmp_path / 'predictions').exists()
