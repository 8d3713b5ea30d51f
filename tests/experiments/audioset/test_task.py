import csv
import functools
import json
import math
import re

import jax
import numpy as np
import pytest
import soundfile
from matplotlib.figure import Figure

from configs import audioset as configs
from experiments.audioset.builder import prepare
from experiments.audioset.task import AudioSet
from experiments.training import evaluate, loop, parallel
from perceiver_jax.front_ends.media import write_clip
from perceiver_jax.weights.loading import load
from tests.toys.one_update import assert_same_update, one_update
from tests.toys.sources import Untouchable

pytestmark = pytest.mark.smoke

NAMES = ['Speech', 'Dog', 'Rain']


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """AudioSet with four clips to train on and three to evaluate, half as loud or as bright."""
    folder = tmp_path_factory.mktemp('audioset')
    (folder / 'media').mkdir()
    rows = [['index', 'mid', 'display_name'], *([i, f'/m/{i}', x] for i, x in enumerate(NAMES))]
    with (folder / 'classes.csv').open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    segments = {'train': [], 'validation': []}
    for i in range(7):
        video = np.full((50, 24, 32, 3), i / 7, np.float32)
        sound = 0.1 * i * np.sin(np.arange(96_000) * (0.02 + 0.01 * i))[:, None]
        name = f'{"clip" + str(i):_<11}'
        write_clip(folder / 'media' / f'{name}_0.mp4', video, sound + 0.01)
        split = 'train' if i < 4 else 'validation'
        segments[split].append(f'{name}, 0.000, 2.000, "/m/{i % 3},/m/1"\n')
    for split, lines in segments.items():
        (folder / f'{split}.csv').write_text(''.join(lines))
    prepare(
        classes=folder / 'classes.csv',
        segments={split: [folder / f'{split}.csv'] for split in segments},
        media=folder / 'media',
        out=folder / 'tfds',
    )
    return folder / 'tfds'


def get_config(prepared, variant='mel_video', **changes):
    """A variant made small, on the prepared clips."""
    config = configs.get_config(variant).unlock()
    config.data.update(path=str(prepared), num_workers=0)
    config.clip.size = 16
    config.spectrogram.update(hop=6144, window=8192, num_bins=11)
    config.augmentation.spec_augment.update(time_width=3, frequency_width=3)
    for name, change in {
        'audio': dict(samples_per_patch=240, num_bands=2, max_resolution=(256,)),
        'spectrogram': dict(num_bands=2, max_resolution=(110,)),
        'video': dict(patch=(4, 4, 4), num_bands=2, max_resolution=(8, 4, 4)),
    }.items():
        if name in config.model.inputs:
            config.model.inputs[name].update(change)
    config.model.num_classes = 3
    config.model.encoder.update(
        num_latents=5,
        latent_channels=8,
        num_cross_attends=1,
        num_blocks=1,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
    )
    if 'decoder' in config.model:
        config.model.decoder.query_channels = 8
    config.evaluation.update(batch_size=8, clip_seconds=2.0, num_windows=3)
    config.train.update(batch_size=8, epochs=None, steps=2, log_every_steps=1)
    config.optimizer.schedule = dict(kind='constant')
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.slow
def test_sound_and_video_train_evaluate_and_draw(prepared, tmp_path):
    config = get_config(prepared, 'io_mel_video')
    result = loop.train(config, AudioSet(config), tmp_path, 'io_mel_video')
    assert result['metric'] == 'map' and 0 < result['value'] <= 1
    assert result['paper_value'] is None
    assert result['data'] == 'AudioSet (4 training, 3 evaluation clips)'
    task = AudioSet(config)
    task.train_source = Untouchable()
    assert task.eval_data_name == 'AudioSet (3 evaluation clips)' and not task.paper_eval_data
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    evaluation = next(row for row in rows if row['split'] == 'eval')
    keys = ['step', 'split', 'loss', 'map', 'auc', 'd_prime', 'classes_left_out']
    assert list(evaluation) == keys
    assert (tmp_path / 'report.png').exists()


def run_predict(config, params=None):
    task = AudioSet(config)
    devices = parallel.make('jit')
    initial, state = jax.jit(task.init)(jax.random.key(0))
    on_devices = devices.replicate((initial if params is None else params, state))
    predict = evaluate.compile_predict(task, devices)
    return task, evaluate.evaluate(task, devices, predict, *on_devices)


def random_head(config):
    params, _ = jax.jit(AudioSet(config).init)(jax.random.key(0))
    head = params['decoder/output']
    head['w'] = jax.random.normal(jax.random.key(1), head['w'].shape)
    return params


def test_a_new_model_scores_one_half(prepared):
    _, (numbers, predictions) = run_predict(get_config(prepared))
    np.testing.assert_allclose(predictions['scores'], 0.5)
    assert numbers['loss'] == pytest.approx(3 * math.log(2), rel=1e-5)
    assert sorted(predictions['index']) == [0, 1, 2]
    assert numbers['classes_left_out'] == 0


def test_a_clips_score_is_the_mean_over_its_windows(prepared):
    config = get_config(prepared)
    params = random_head(config)
    task, (_, predictions) = run_predict(config, params)
    of_clip = {int(i): s for i, s in zip(predictions['index'], predictions['scores'], strict=True)}
    apply = jax.jit(lambda x: task.model.apply(params, {}, None, x, is_training=False)[0])
    for i in range(3):
        example = task.eval_transform(task.eval_source[i])
        assert example['starts'].tolist() == [0, 9, 18]  # of 50 frames, 32 at a time
        scores = []
        for start in example['starts']:
            sound = example['sound'][start * 1920 : (start + 32) * 1920]
            video = example['video'][start : start + 32]
            logits = apply(task._inputs(sound[None], video[None]))
            scores.append(1 / (1 + np.exp(-logits[0])))
        np.testing.assert_allclose(of_clip[i], np.mean(scores, axis=0), rtol=1e-4)
        assert np.ptp(scores, axis=0).max() > 1e-4  # the windows differ


def test_a_clip_is_heard_at_every_speed(prepared):
    config = get_config(prepared, 'mel', **{'evaluation.speeds': (1.0, 1.5)})
    params = random_head(config)
    _, (_, predictions) = run_predict(config, params)
    parts = []
    for speed in (1.0, 1.5):
        config.evaluation.speeds = (speed,)
        _, (_, part) = run_predict(config, params)
        assert part['index'].tolist() == predictions['index'].tolist()
        parts.append(part)
    assert abs(parts[0]['scores'] - parts[1]['scores']).max() > 1e-4  # the speeds differ
    for name in ('scores', 'loss'):
        expected = (parts[0][name] + parts[1][name]) / 2
        np.testing.assert_allclose(predictions[name], expected, rtol=1e-5)


@functools.cache
def updated(prepared, kind, num_devices):
    """State and metrics after one update with every augmentation that is drawn on the device."""
    changes = {'augmentation.drop_video': 0.5, 'augmentation.drop_sound': 0.5, 'parallel': kind}
    config = get_config(prepared, **changes)
    head = {'decoder/output': random_head(config)['decoder/output']}
    return one_update(AudioSet(config), num_devices, learning_rate=0.1, params=head)


@pytest.mark.parametrize('kind', ['jit', 'pmap'])
def test_augmentation_on_eight_devices_equals_one(prepared, kind):
    assert_same_update(updated(prepared, kind, 8), updated(prepared, 'jit', 1))


def seen_by_the_model(prepared, variant, count=64, **changes):
    """What the model gets in training, for examples that are all the same."""
    config = get_config(prepared, variant, **changes)
    task = AudioSet(config)
    seen = {}

    class Model:
        def apply(self, params, state, rng, inputs, is_training):
            assert is_training
            seen.update(inputs)
            return jax.numpy.zeros((count, 3)), state

    task.model = Model()
    example = task.train_transform(task.train_source[3], np.random.default_rng(0))
    batch = {name: np.stack(count * [x]) for name, x in example.items()}
    batch['index'] = np.arange(count, dtype=np.uint32)
    task.loss({}, {}, jax.random.key(0), batch)
    return {name: np.asarray(x) for name, x in seen.items()}, example


def test_video_is_dropped_for_a_third_of_the_examples_and_sound_masked(prepared):
    seen, example = seen_by_the_model(prepared, 'mel_video')
    assert set(seen) == {'video', 'spectrogram'}
    dropped = ~seen['video'].any((1, 2, 3, 4))
    assert dropped.mean() == pytest.approx(0.3, abs=0.15)
    kept = seen['video'][~dropped][0]
    np.testing.assert_allclose(kept, example['video'] / 127.5 - 1, atol=1e-6)
    zeros = (seen['spectrogram'] == 0).mean((1, 2))
    assert zeros.min() < 0.2 and zeros.max() > 0.3 and (zeros < 1).all()


def test_the_tuned_run_drops_whole_spectrograms_instead(prepared):
    seen, _ = seen_by_the_model(prepared, 'mel_video_tuned', count=300)
    zeros = (seen['spectrogram'] == 0).mean((1, 2))
    assert set(zeros) == {0.0, 1.0}
    assert zeros.mean() == pytest.approx(0.1, abs=0.05)


def test_raw_audio_is_heard_as_it_is(prepared):
    seen, example = seen_by_the_model(prepared, 'raw_audio', count=3)
    np.testing.assert_allclose(seen['audio'][2, :, 0], example['sound'])
    assert seen['audio'].shape == (3, 61_440, 1)


@pytest.mark.parametrize('gain', [1, 0.01])
def test_every_window_can_be_made_equally_loud(prepared, gain):
    changes = {'clip.loudness_db': -20.0}
    seen, example = seen_by_the_model(prepared, 'raw_audio', count=3, **changes)
    task = AudioSet(get_config(prepared, 'raw_audio', **changes))
    heard = task._inputs(gain * example['sound'][None], None)['audio'][0, :, 0]
    np.testing.assert_allclose(heard, seen['audio'][0, :, 0], rtol=1e-5)
    loudest = np.square(heard[: len(heard) // 50 * 50]).reshape(50, -1).mean(1).max()
    assert loudest == pytest.approx(0.1**2, rel=1e-4)


def test_silence_stays_silent(prepared):
    task = AudioSet(get_config(prepared, 'raw_audio', **{'clip.loudness_db': -20.0}))
    assert not task._inputs(np.zeros((1, 61_440), np.float32), None)['audio'].any()


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    """ESC-50's folder with three classes of one sound a fold."""
    folder = tmp_path_factory.mktemp('esc')
    (folder / 'meta').mkdir()
    (folder / 'audio').mkdir()
    lines = ['filename,fold,category']
    for fold in range(1, 6):
        for i, name in enumerate(NAMES):
            sound = 0.3 * np.sin(np.arange(9600) * (0.01 + 0.02 * i))
            soundfile.write(folder / 'audio' / f'{fold}-{name}.wav', sound, 48_000)
            lines.append(f'{fold}-{name}.wav,{fold},{name}')
    (folder / 'meta' / 'esc50.csv').write_text('\n'.join(lines))
    return folder


@pytest.mark.parametrize('variant', ['esc', 'esc,input=raw_audio', 'esc,input=filterbank'])
def test_a_labelled_folder_trains_and_is_saved(labelled, tmp_path, variant):
    config = configs.get_config(variant).unlock()
    config.data.path = str(labelled)
    config.clip.num_frames = 5
    config.spectrogram.update(hop=960, window=1024, num_bins=16)
    config.augmentation.spec_augment.update(time_width=3, frequency_width=3)
    if 'audio' in config.model.inputs:
        config.model.inputs.audio.hop = 64
    config.model.num_classes = 0  # as many as the table has: 3
    config.model.encoder.update(
        num_latents=5,
        latent_channels=8,
        num_cross_attends=1,
        num_blocks=1,
        num_self_attends_per_block=1,
    )
    config.evaluation.update(batch_size=8, clip_seconds=0.2)
    config.train.update(batch_size=8, epochs=None, steps=2)
    config.optimizer.schedule = dict(kind='constant')
    task = AudioSet(config)
    result = loop.train(config, task, tmp_path / 'run', variant)
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['model']['num_classes'] == 3
    assert result['metric'] == 'accuracy' and 0 <= result['value'] <= 1
    assert result['data'] == 'meta/esc50.csv (12 training, 3 evaluation clips)'
    params, state = jax.jit(task.init)(jax.random.key(0))
    model = task.pretrained(jax.device_get(params), jax.device_get(state))
    assert list(model.classes) == sorted(NAMES)
    model.save(tmp_path / 'model')
    loaded = load(tmp_path / 'model')
    (inputs,) = loaded.example(batch=2)
    assert {*inputs, 'min_padding'} == set(config.model.inputs)
    logits = loaded({name: np.ones(x.shape, x.dtype) for name, x in inputs.items()})
    assert logits.shape == (2, 3)


def test_other_numbers_of_classes_are_refused(prepared):
    task = AudioSet(get_config(prepared, **{'model.num_classes': 5}))
    with pytest.raises(ValueError, match='3 classes, and config.model.num_classes is 5'):
        assert task.train_source


@pytest.mark.parametrize(
    'variant, key, value, grid',
    [
        ('raw_audio', 'audio', (255,), 256),
        ('overlapping', 'audio', (510,), 511),
        ('mel', 'spectrogram', (109,), 110),  # one axis: 10 frames of 11 bins
        ('mel', 'spectrogram', (9, 11), '10 x 11'),
        ('video', 'video', (8, 4, 3), '8 x 4 x 4'),
    ],
)
def test_windows_beyond_the_resolution_of_their_positions_are_refused(
    prepared, variant, key, value, grid
):
    key, changes = f'model.inputs.{key}.max_resolution', {}
    if variant == 'overlapping':
        variant, changes = 'raw_audio', {'model.inputs.audio.hop': 120}
    task = AudioSet(get_config(prepared, variant, **{key: value, **changes}))
    message = f'which makes {grid} input elements, more than config.{key} {value}'
    with pytest.raises(ValueError, match=re.escape(message)):
        assert task.train_source


def test_what_cannot_be_is_refused(prepared):
    with pytest.raises(ValueError, match='mixup_alpha mixes sound, not video'):
        AudioSet(get_config(prepared, **{'augmentation.mixup_alpha': 0.4}))
    with pytest.raises(ValueError, match='between_class is about how sounds are mixed, and'):
        AudioSet(get_config(prepared, **{'augmentation.between_class': True}))
    with pytest.raises(ValueError, match='augmentation.speed is for sound without video'):
        AudioSet(get_config(prepared, **{'augmentation.speed': (0.9, 1.1)}))
    with pytest.raises(ValueError, match='evaluation.speeds are for sound without video'):
        AudioSet(get_config(prepared, **{'evaluation.speeds': (0.9, 1.1)}))
    task = AudioSet(get_config(prepared, **{'evaluation.metric': 'accuracy'}))
    labels = np.array([[1, 1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="metric is 'accuracy', and of this data .*'map'"):
        task.summarise({'labels': labels, 'scores': 0.5 * labels, 'loss': np.ones(2)})


def test_drawing_shows_clips_and_classes(prepared):
    task = AudioSet(get_config(prepared))
    figure = Figure()
    predictions = {
        'index': np.arange(3),
        'scores': np.array([[0.1, 0.8, 0.2], [0.7, 0.6, 0.1], [0.1, 0.2, 0.9]]),
        'labels': np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]]),
    }
    params, state = jax.jit(task.init)(jax.random.key(0))
    task.draw(figure.subfigures(), params, state, predictions)
    axes = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images')) if a.get_images()]
    assert len(axes) == 6  # frames and a spectrogram of each clip
    titles = [a.get_title() for a in axes]
    assert any(title.startswith('Speech 70 %, Dog 60 %') for title in titles)
    bars = [a for a in figure.findobj(lambda a: hasattr(a, 'patches')) if len(a.patches) == 2]
    assert len(bars) == 1  # of two classes with positives
