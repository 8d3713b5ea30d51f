import functools
import json
import math

import cv2
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import common
from configs import imagenet as configs
from experiments import run_config
from experiments.imagenet.task import PAPER_EXAMPLES, ImageNet
from experiments.open_model import open_model
from experiments.training import evaluate, loop, parallel
from experiments.training.checks import check_resumable
from perceiver_jax import load
from tests.toys.one_update import assert_same_update, one_update
from tests.toys.sources import Untouchable

pytestmark = pytest.mark.smoke


def get_config(variant='demo', **changes):
    """A variant made small, on the digits."""
    config = configs.get_config(variant).unlock()
    demo = configs.get_config('demo')
    config.update(data=demo.data, images=demo.images, augmentation=demo.augmentation)
    config.evaluation = dict(batch_size=120, crop_fraction=1.0)
    config.train.batch_size = 16
    config.model.num_classes = 10
    config.model.encoder.update(
        num_latents=5,
        latent_channels=8,
        num_cross_attends=2,
        num_blocks=2,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
    )
    if 'decoder' in config.model:
        config.model.decoder.query_channels = 8
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize('variant', ['perceiver', 'io_learned', 'io_conv'])
def test_a_model_is_described_without_its_data(variant):
    task = ImageNet(configs.get_config(variant))
    task.train_source = task.eval_source = Untouchable()
    assert task.describe()['latents'] == [512, 1024]


def conv_config():
    return get_config(
        'io_conv',
        **{
            'model.inputs.contents_channels': 6,
            'model.inputs.num_bands': 2,
        },
    )


@functools.cache
def updated(kind, num_devices):
    """State and metrics after one update with mixing and batch normalisation."""
    config = conv_config()
    config.parallel = kind
    return one_update(ImageNet(config), num_devices)


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'num_devices'), [('jit', 8), ('pmap', 8)])
def test_mixing_and_batch_norm_on_eight_devices_equal_one(kind, num_devices):
    state, _ = update = updated(kind, num_devices)
    assert_same_update(update, updated('jit', 1))
    assert state.state['inputs/conv7x7/batch_norm']['counter'] == 1


def test_evaluation_counts_each_digit_once():
    config = get_config()
    task = ImageNet(config)
    devices = parallel.make('jit')
    params, state = devices.replicate(jax.jit(task.init)(jax.random.key(0)))
    predict = evaluate.compile_predict(task, devices)
    numbers, _ = evaluate.evaluate(task, devices, predict, params, state)
    # The head starts at zero: all classes tie, the first wins, and the loss is that of chance.
    labels = np.array([task.eval_source[i]['label'] for i in range(360)])
    assert numbers['top1'] == pytest.approx(np.mean(labels == 0))
    assert numbers['top5'] == pytest.approx(np.mean(labels < 5))
    assert numbers['loss'] == pytest.approx(math.log(10), rel=1e-5)


def test_only_the_papers_data_stands_beside_its_number():
    task = ImageNet(get_config('io_conv'))
    assert task.paper_value is None
    assert task.data_name == 'digits (1,437 training, 360 evaluation images)'
    task.train_source, task.eval_source = (range(n) for n in PAPER_EXAMPLES)
    assert (task.paper_value, task.data_name) == (0.821, 'ImageNet')


def test_the_evaluation_data_is_named_without_the_training_data():
    task = ImageNet(get_config('io_conv'))
    task.train_source = Untouchable()
    assert (task.eval_data_name, task.paper_eval_data) == ('digits (360 images)', False)
    task = ImageNet(configs.get_config('io_conv'))
    task.train_source, task.eval_source = Untouchable(), range(50_000)
    assert task.paper_eval_data
    assert task.eval_data_name == 'ImageNet (50,000 validation images)'


def test_a_folder_of_some_of_the_models_classes_is_evaluated_without_train(tmp_path):
    for name in ('n02', 'n07'):
        (tmp_path / 'val' / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / 'val' / name / 'a.png'), np.zeros((8, 8, 3), np.uint8))
    config = folder_config(tmp_path, 'stop')
    config.model.num_classes = 10
    with pytest.raises(ValueError, match='has 2 classes, .* is 10; .*data.classes can name all'):
        assert ImageNet(config).eval_source
    names = [f'n{i:02}' for i in range(10)]
    task = ImageNet(config)
    task.known_classes = names  # as those of weights
    assert [task.eval_source[i]['label'] for i in range(2)] == [2, 7]
    (tmp_path / 'wnids.txt').write_text('\n'.join(reversed(names)))
    config.data.classes = str(tmp_path / 'wnids.txt')
    task = ImageNet(config)
    task.known_classes = names
    assert [task.eval_source[i]['label'] for i in range(2)] == [2, 7]
    assert task.eval_source.classes == names[::-1]
    assert task.eval_data_name == 'folder (2 images)'
    config.data.path = '/nowhere'  # a model is described and used without its data
    config.data.classes = '/nowhere/wnids.txt'
    assert ImageNet(config).describe()


def test_mixing_needs_both_alphas():
    with pytest.raises(ValueError, match='mixup_alpha and .*cutmix_alpha .* got 0.2 and 0.0'):
        ImageNet(get_config(**{'loss.mixup_alpha': 0.2}))


@pytest.mark.parametrize('number', [7, 11])
def test_other_numbers_of_classes_are_refused(number):
    task = ImageNet(get_config(**{'model.num_classes': number}))
    with pytest.raises(ValueError, match=f'10 classes, and config.model.num_classes is {number}'):
        assert task.train_source


def test_the_number_of_channels_is_one_or_three():
    for mean, std in (((0.3, 0.3), (0.2, 0.2)), ((0.3,), (0.2, 0.2, 0.2)), ((), ())):
        message = f'1 or 3 of them, got {len(mean)} and {len(std)}'
        with pytest.raises(
            ValueError, match=f'config.images.mean and config.images.std .*{message}'
        ):
            ImageNet(get_config(**{'images.mean': mean, 'images.std': std}))


@pytest.mark.parametrize(
    'variant, size, grid, resolution',
    [
        ('demo', 9, '9 x 9', r'\(8, 8\)'),
        ('io_conv', 225, '57 x 57', r'\(56, 56\)'),  # of elements, a quarter of the pixels
        ('perceiver_permuted', 225, '225 x 225', r'\(224, 224\)'),
    ],
)
def test_training_on_images_beyond_the_resolution_of_the_positions_is_refused(
    variant, size, grid, resolution
):
    task = ImageNet(get_config(variant, **{'images.image_size': size}))
    message = f'image_size is {size}, which makes {grid} input elements, .*resolution {resolution}'
    with pytest.raises(ValueError, match=message):
        assert task.train_source
    assert task.eval_source  # a trained model takes images of any size


def test_learned_positions_are_as_many_as_there_are_pixels():
    assert ImageNet(get_config('io_learned', **{'images.image_size': 300})).train_source


def test_a_grey_model_refuses_to_train_on_colours(broken_folder):
    config = folder_config(broken_folder, 'stop')
    config.images.update(mean=(0.3,), std=(0.4,))
    config.augmentation.randaugment_layers = 0
    task = ImageNet(config)
    blue = {'encoded': cv2.imencode('.png', np.full((3, 5, 3), (255, 0, 0), np.uint8))[1].tobytes()}
    with pytest.raises(ValueError, match='sky.png: it is in colour, and config.images.mean'):
        task.eval_transform({**blue, 'label': 0, 'name': 'sky.png'})
    assert task.eval_transform(task.eval_source[0])['image'].shape == (8, 8, 1)  # grey, as RGB


@pytest.fixture(scope='module')
def broken_folder(tmp_path_factory):
    """Images of two classes; one of six to train on and one of four to evaluate are unreadable."""
    root = tmp_path_factory.mktemp('images')
    for split, count in (('train', 3), ('val', 2)):
        for label, name in enumerate(('n01', 'n02')):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((11, 13, 3), 200 * label + i, np.uint8)
                cv2.imwrite(str(root / split / name / f'{i}.png'), image)
        (root / split / 'n02' / '1.png').write_bytes(b'no image')
    return root


def folder_config(path, on_broken):
    config = get_config()
    config.images = configs.get_config('perceiver').images
    config.images.image_size = 8
    config.data.update(source='folder', path=str(path), on_broken=on_broken)
    config.model.num_classes = 2
    config.train.update(batch_size=8, epochs=None, steps=2, log_every_steps=1)
    config.evaluation.batch_size = 8
    return config


def test_unreadable_images_are_skipped_and_counted(broken_folder, tmp_path):
    config = folder_config(broken_folder, 'skip')
    config.model.num_classes = 0
    task = ImageNet(config)
    loop.train(config, task, tmp_path, 'skipping')
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    broken = {row['step']: row['broken_examples'] for row in rows if row['split'] == 'train'}
    assert sum(broken.values()) in (2, 3)  # sixteen examples are two epochs of six and a part
    assert [row['broken_examples'] for row in rows if row['split'] == 'eval'] == [1]
    assert (tmp_path / 'report.png').exists()
    # The data told the number of classes: the run knows it without.
    saved = run_config.get_config(tmp_path)
    assert saved.model.num_classes == config.model.num_classes == 2
    saved.data.path = 'nowhere'
    assert ImageNet(saved).describe() == task.describe()
    again = folder_config(broken_folder, 'skip')
    again.model.num_classes = 0
    ImageNet(again)
    check_resumable(tmp_path, again)


def test_an_unreadable_image_stops_the_run_and_is_named(broken_folder, tmp_path):
    config = folder_config(broken_folder, 'stop')
    with pytest.raises(ValueError, match='n02/1.png'):
        loop.train(config, ImageNet(config), tmp_path, 'stopping')


def test_drawing_shows_digits_beside_their_attention():
    task = ImageNet(get_config())
    params, state = jax.jit(task.init)(jax.random.key(0))
    figure = Figure()
    predictions = {'index': np.arange(360), 'top1': np.arange(360) % 10 == 0}
    task.draw(figure.subfigures(), params, state, predictions)
    axes = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images')) if a.get_images()]
    assert len(axes) == 20
    assert all(len(a.get_images()) == 2 for a in axes)
    # An untrained head guesses 0: mistakes come first, and name what was guessed and what is.
    assert axes[0].get_title().startswith('0, is ')


NETWORKS = {
    'resnet': common.resnet(blocks=(1,), channels=4, stem='small'),
    'vit': common.vit(2, channels=8, num_self_attends=1, num_heads=2),
    'transformer': common.transformer(8, num_self_attends=1, num_heads=2),
}


def network_config(kind):
    config = get_config()
    common.set_network(config, NETWORKS[kind])
    return config


def test_a_network_without_attention_is_drawn_beside_the_saliency_of_pixels():
    task = ImageNet(network_config('vit'))
    params, state = jax.jit(task.init)(jax.random.key(0))
    params['decoder/output']['w'] += np.random.default_rng(0).normal(size=(8, 10))
    figure = Figure()
    predictions = {'index': np.arange(360), 'top1': np.arange(360) % 10 == 0}
    task.draw(figure.subfigures(), params, state, predictions)
    axes = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images')) if a.get_images()]
    maps = [np.asarray(a.get_images()[1].get_array()) for a in axes]
    assert len(axes) == 20
    assert all(heat.shape == (8, 8) and heat.min() >= 0 and np.ptp(heat) > 0 for heat in maps)


@pytest.mark.parametrize('kind', NETWORKS)
def test_the_networks_of_the_papers_comparison_train_and_are_models(kind, tmp_path):
    config = network_config(kind)
    config.train.update(epochs=None, steps=2, log_every_steps=1, evaluate_every_steps=2)
    task = ImageNet(config)
    result = loop.train(config, task, tmp_path / 'run', kind)
    assert 0 <= result['value'] <= 1 and (tmp_path / 'run' / 'report.png').exists()
    model = open_model(tmp_path / 'run')
    assert model.function == 'image_baseline'
    model.save(tmp_path / 'model')
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path / 'model')(image), model(image))


def test_the_first_update_on_permuted_pixels_is_that_on_pixels():
    """The permutation is carried out, so what is equal is so up to rounding."""
    updates = []
    for seed in (None, 0):
        config = get_config()
        with config.unlocked():
            config.model.inputs.update(as_array=True, permutation_seed=seed)
        task = ImageNet(config)
        updates.append(one_update(task, 1))
    assert_same_update(*updates)


@pytest.mark.parametrize('parallel_kind', ['jit', 'pmap'])
def test_a_resnet_on_several_devices_equals_one(parallel_kind):
    config = network_config('resnet')
    config.parallel = parallel_kind
    task = ImageNet(config)
    assert_same_update(one_update(task, 4), one_update(task, 1))
