"""Optical flow's task: phases of training, and evaluation of archives whose frames differ."""

import functools
import json
import re

import cv2
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import flow as configs
from experiments.flow import files as flow_files
from experiments.flow.predict import flow_of_frames
from experiments.flow.task import PAPER_PAIRS, PUBLIC_PAIRS, OpticalFlow, Phase, curriculum
from experiments.training import loop, parallel
from experiments.training.evaluate import compile_predict, evaluate
from perceiver_jax.errors import Refused
from perceiver_jax.front_ends.images import prepare_frames
from tests.toys.one_update import assert_same_update, one_update
from tests.toys.sources import Sized, Untouchable

pytestmark = pytest.mark.smoke

TILE = (24, 28)
RNG = np.random.default_rng(0)
# Pairs of Sintel, and of KITTI, whose frames are not all of one size.
SINTEL = [(29, 53), (29, 53)]
KITTI = [(31, 47), (26, 37)]


def get_config(variant='main', **changes):
    """A variant made small, on generated scenes."""
    config = configs.get_config(variant).unlock()
    config.data.update(train='scenes', evaluate=('scenes',), num_workers=0)
    config.scenes.update(
        num_pairs=11, num_evaluation_pairs=5, frame_size=(30, 37), num_shapes=(1, 3), motion=3.0
    )
    config.augmentation.update(crop_size=TILE, eraser_sides=(3, 5))
    config.model.inputs.update(channels=5, num_bands=2)
    config.model.encoder.update(
        num_latents=7,
        latent_channels=8,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
    )
    config.train.update(batch_size=8, steps=20)
    config.evaluation.update(batch_size=8, frame_size=(31, 53))
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    """The two data sets in a folder, and their truth: name -> [(frames, flow, valid, shown)]."""
    root = tmp_path_factory.mktemp('flow')
    truth = {'sintel_final': [], 'kitti2015': []}
    for kind, sizes in (('sintel_final', SINTEL), ('kitti2015', KITTI)):
        for i, size in enumerate(sizes):
            frames = RNG.integers(0, 256, (2, *size, 3), dtype=np.uint8)
            flow = np.rint(RNG.normal(0, 20, (*size, 2)) * 64).astype(np.float32) / 64
            valid = RNG.random(size) < (0.6 if kind == 'kitti2015' else 1.1)
            shown = valid & (RNG.random(size) < 0.7)
            if kind == 'kitti2015':
                part = root / 'kitti2015' / 'training'
                files = [part / 'image_2' / f'00000{i}_1{j}.png' for j in range(2)]
                flow_files.write_kitti_flow(part / 'flow_occ' / files[0].name, flow, valid)
                flow_files.write_kitti_flow(part / 'flow_noc' / files[0].name, flow, shown)
            else:
                part, name = root / 'sintel' / 'training', f'cave_{i}/frame_0001'
                files = [part / 'final' / f'cave_{i}' / f'frame_000{j}.png' for j in (1, 2)]
                flow_files.write_flo(part / 'flow' / f'{name}.flo', flow)
                (part / 'occlusions' / f'cave_{i}').mkdir(parents=True)
                hidden = np.where(shown, 0, 255).astype(np.uint8)
                cv2.imwrite(str(part / 'occlusions' / f'{name}.png'), hidden)
            for file, frame in zip(files, frames, strict=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(file), frame[..., ::-1])
            truth[kind].append((frames, flow, valid, shown))
    return root, truth


def archives_config(root):
    names = ('sintel_final', 'kitti2015')
    return get_config(**{'data.evaluate': names, 'data.path': str(root)})


def evaluated(task):
    devices = parallel.make('jit')
    params, state = devices.replicate(jax.jit(task.init)(jax.random.key(0)))
    return evaluate(task, devices, compile_predict(task, devices), params, state)


# Data


@pytest.mark.parametrize('variant', ['main', 'conv', 'conv,frames=separate'])
def test_a_model_is_described_without_its_data(variant):
    task = OpticalFlow(configs.get_config(variant))
    task.train_source = task.eval_source = Untouchable()
    assert task.describe()['latents'] == [2048, 512]


def test_the_curriculum_by_hand():
    phases = curriculum(100, both_directions_fraction=0.1, ramp_fraction=0.4, num_stages=4)
    assert phases == [
        Phase(0, 0.0, True),
        Phase(10, 0.25, False),
        Phase(20, 0.5, False),
        Phase(30, 0.75, False),
        Phase(40, 1.0, False),
    ]
    whole = curriculum(100, both_directions_fraction=0.0, ramp_fraction=0.0, num_stages=3)
    assert whole == [Phase(0, 1.0, False)]
    with pytest.raises(ValueError, match=r'got \(0.7, 0.4\) and 4'):
        curriculum(100, both_directions_fraction=0.7, ramp_fraction=0.4, num_stages=4)


def take(task, start, count):
    batches = task.train_batches(start)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def test_a_training_continues_within_and_between_its_phases():
    config = get_config(
        **{'curriculum.both_directions_fraction': 0.2, 'curriculum.ramp_fraction': 0.2}
    )
    task = OpticalFlow(config)  # 20 steps: 4 in both directions, 4 of growing strength
    expected = take(task, 0, 10)
    for start in (1, 4, 5, 9):
        for got, want in zip(take(task, start, 10 - start), expected[start:], strict=True):
            assert got.keys() == want.keys()
            for key in got:
                np.testing.assert_array_equal(got[key], want[key])
    shapes = [{k: x.shape for k, x in batch.items()} for batch in expected]
    assert all(x == shapes[0] for x in shapes)
    assert all(batch['index'].tolist() == list(range(8)) for batch in expected)
    for batch in expected[:4]:
        np.testing.assert_array_equal(batch['frames'][::2], batch['frames'][1::2, ::-1])
    assert (expected[4]['frames'][::2] != expected[4]['frames'][1::2, ::-1]).any()


def test_pairs_in_both_directions_need_an_even_batch():
    task = OpticalFlow(get_config(**{'train.batch_size': 7}))
    with pytest.raises(ValueError, match='train.batch_size is 7: pairs in both directions'):
        next(task.train_batches(0))


@pytest.mark.parametrize(
    'variant, resolution, grid',
    [
        ('main', (24, 27), '24 x 28'),
        ('main,frames=separate', (2, 23, 28), '2 x 24 x 28'),
        ('conv', (5, 7), '6 x 7'),
    ],
)
def test_tiles_beyond_the_resolution_of_the_positions_are_refused(variant, resolution, grid):
    key = 'model.inputs.max_resolution'
    task = OpticalFlow(get_config(variant, **{key: resolution}))
    message = f'crop_size is {TILE}, which makes {grid} input elements, more than config.{key}'
    with pytest.raises(ValueError, match=re.escape(message)):
        assert task.train_source
    assert task.eval_source  # a trained model takes tiles of any size


def test_only_the_papers_data_stands_beside_its_number():
    config = get_config(**{'data.train': 'autoflow', 'data.evaluate': ('sintel_final',)})
    task = OpticalFlow(config)
    task.train_source = range(PAPER_PAIRS)
    task.eval_source = Sized(PUBLIC_PAIRS['sintel_final'])
    assert task.paper_eval_data
    assert task.eval_data_name == 'sintel_final (1,041 pairs)'
    assert task.paper_value == 2.42
    task.train_source = range(40_000)
    assert task.paper_value is None
    assert task.data_name == 'autoflow (40,000 pairs); evaluated on sintel_final (1,041)'
    config.data.evaluate = ()
    with pytest.raises(ValueError, match='config.data.evaluate names no data set'):
        OpticalFlow(config)


# Evaluation


def test_zero_flow_through_the_whole_evaluation(archives):
    """The head starts at zero, and so does the flow: the error is the length of the truth."""
    root, truth = archives
    numbers, predictions = evaluated(OpticalFlow(archives_config(root)))
    assert predictions['index'].tolist() == [0, 1, 2, 3]
    length = {k: [np.hypot(*x[1].T).T for x in pairs] for k, pairs in truth.items()}
    sintel = np.concatenate([x.ravel() for x in length['sintel_final']])
    assert numbers['epe_sintel_final'] == pytest.approx(sintel.mean(), rel=1e-5)
    assert numbers['fl_sintel_final'] == pytest.approx(np.mean(sintel > 3), rel=1e-6)
    shown = np.concatenate([x[3].ravel() for x in truth['sintel_final']])
    assert numbers['epe_sintel_final_matched'] == pytest.approx(sintel[shown].mean(), rel=1e-5)
    assert numbers['epe_sintel_final_s40'] == pytest.approx(sintel[sintel > 40].mean(), rel=1e-5)
    kitti = [x[pair[2]] for x, pair in zip(length['kitti2015'], truth['kitti2015'], strict=True)]
    expected = np.mean([x.mean() for x in kitti])
    assert numbers['epe_kitti2015'] == pytest.approx(expected, rel=1e-5)
    expected = np.mean(np.concatenate(kitti) > 3)
    assert numbers['fl_kitti2015'] == pytest.approx(expected, rel=1e-6)
    assert list(numbers)[:2] == ['epe_sintel_final', 'epe_kitti2015']  # the headline first


def test_the_truth_through_the_whole_evaluation(archives):
    task = OpticalFlow(archives_config(archives[0]))
    task.estimate = lambda params, state, batch: batch['flow']
    numbers, _ = evaluated(task)
    assert not any(numbers.values())


@pytest.mark.parametrize('factors', [(1,), (4, 2, 2, 1)])
def test_evaluation_estimates_what_the_model_alone_would(archives, factors):
    """Frames of several sizes in a batch give what the saved model gives one by one."""
    root, truth = archives
    config = archives_config(root)
    config.model.decoder.zero_init_output = False
    config.evaluation.update(tiles_at_once=2, factors=factors)
    task = OpticalFlow(config)
    params, state = jax.jit(task.init)(jax.random.key(1))
    # 200 pixels: the error hangs on the estimate. Or a few, where frames are warped by them.
    params['decoder/output']['b'] += 1e3 if factors == (1,) else 5
    batch = next(task.eval_batches())
    flow = np.asarray(jax.jit(task.estimate)(params, state, batch))
    model = task.pretrained(params, state)
    for i, (frames, *_) in enumerate(truth['sintel_final'] + truth['kitti2015']):
        expected = flow_of_frames(model, prepare_frames(*frames))
        height, width = frames.shape[1:3]
        np.testing.assert_allclose(flow[i, :height, :width], expected, rtol=1e-4, atol=1e-3)
        assert np.std(expected) > 0.01


def test_refined_flow_is_labelled(archives):
    config = archives_config(archives[0])
    config.evaluation.factors = (2, 1)
    text = ', coarse to fine (2, 1), not in the paper'
    assert OpticalFlow(config).eval_data_name.endswith(text)
    config.evaluation.factors = (2, 3, 1)
    with pytest.raises(Refused, match=r'factors: expected whole numbers, each a multiple of the'):
        OpticalFlow(config)


def test_frames_larger_than_configured_are_named(archives):
    config = archives_config(archives[0])
    config.evaluation.frame_size = (29, 53)
    with pytest.raises(ValueError, match=r'000000_10: frames of \(31, 47\) are larger than config'):
        evaluated(OpticalFlow(config))


# Training


def test_the_loss_is_the_error_over_20_of_valid_pixels_pair_by_pair():
    task = OpticalFlow(get_config())
    params, state = jax.jit(task.init)(jax.random.key(0))
    batch = take(task, 5, 1)[0]
    batch['valid'][1] = False
    batch['valid'][2, :20] = False
    loss, (_, metrics) = jax.jit(task.loss)(params, state, None, batch)
    length = np.hypot(*batch['flow'].T).T
    pairs = zip(length, batch['valid'], strict=True)
    expected = [x[valid].mean() if valid.any() else 0 for x, valid in pairs]
    assert metrics['epe'] == pytest.approx(np.mean(expected), rel=1e-3)
    assert loss == pytest.approx(np.mean(expected) / 20, rel=1e-3)


@functools.cache
def updated(kind, num_devices):
    """State and metrics after one update, with batch normalisation."""
    config = get_config('conv')
    config.parallel = kind
    config.model.upsampling.zero_init_output = False
    return one_update(OpticalFlow(config), num_devices)


@pytest.mark.parametrize(('kind', 'num_devices'), [('jit', 4), ('pmap', 4)])
def test_several_devices_equal_one(kind, num_devices):
    state, _ = update = updated(kind, num_devices)
    assert_same_update(update, updated('jit', 1))
    assert state.state['inputs/conv7x7/batch_norm']['counter'] == 1


def test_two_steps_an_evaluation_and_a_report(tmp_path):
    config = get_config('demo')
    config.optimizer.schedule.warmup_steps = 0
    config.train.update(steps=2, log_every_steps=1)
    result = loop.train(config, OpticalFlow(config), tmp_path, 'demo')
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [row['split'] for row in rows] == ['train', 'train', 'eval']
    assert (result['metric'], result['paper_value']) == ('epe_scenes', None)
    assert result['value'] == rows[-1]['epe_scenes'] > 0
    assert (tmp_path / 'report.png').exists()


def test_of_pairs_that_a_rough_flow_warped_little_motion_is_left_to_learn():
    """The head starts at zero: the error is the length of the flow."""
    task = OpticalFlow(get_config(**{'scenes.num_shapes': (0, 0), 'loss.rough_error': 0.0}))
    params, state = jax.jit(task.init)(jax.random.key(0))
    batch = next(task.train_batches(0))
    length = np.linalg.norm(batch['flow'], axis=-1).mean()
    errors = []
    for share in (0.0, 1.0):
        task.config.loss.warped_share = share
        _, (_, metrics) = jax.jit(task.loss)(params, state, jax.random.key(1), batch)
        errors.append(metrics['epe'])
    assert errors[0] == pytest.approx(length, rel=1e-3)
    assert errors[1] < 0.5 * length


def test_drawing_shows_pairs_of_every_size(archives):
    root, truth = archives
    task = OpticalFlow(archives_config(root))
    params, state = jax.jit(task.init)(jax.random.key(0))
    figure = Figure()
    task.draw(figure.subfigures(), params, state, {'index': np.arange(4)})
    axes = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images')) if a.get_images()]
    assert len(axes) == 4 * 6
    shapes = [axes[6 * i].get_images()[0].get_array().shape[:2] for i in range(4)]
    assert shapes == SINTEL + KITTI
    _, flow, valid, _ = truth['kitti2015'][1]
    error = np.hypot(*flow[valid].T).mean()
    assert axes[6 * 3].get_title() == '000001_10'
    assert axes[6 * 3 + 4].get_title().startswith(f'error {error:.2f} px')
