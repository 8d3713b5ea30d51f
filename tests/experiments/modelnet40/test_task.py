import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import common
from configs import modelnet40 as configs
from experiments.modelnet40.mixing import mix_clouds
from experiments.modelnet40.task import PAPER_EXAMPLES, ModelNet40
from experiments.training import evaluate, loop, parallel
from tests.toys.sources import Sized, Untouchable

pytestmark = pytest.mark.smoke


def get_config(**changes):
    """The demo, made smaller."""
    config = configs.get_config('demo').unlock()
    config.points.num_points = 37
    config.model.inputs = dict(num_bands=2, max_resolution=(4, 4, 4))
    config.model.encoder.update(
        num_latents=5,
        latent_channels=8,
        num_self_attends_per_block=1,
        self_attend=dict(num_heads=2),
    )
    config.train.update(batch_size=16, steps=2, log_every_steps=1)
    config.evaluation.batch_size = 120  # 500 shapes are four batches and a part
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.gpu
def test_the_demo_trains_and_evaluates_each_shape_once(tmp_path):
    config = get_config()
    task = ModelNet40(config)
    result = loop.train(config, task, tmp_path, 'configs/modelnet40.py:demo')
    assert result['metric'] == 'accuracy' and result['paper_value'] is None
    assert result['data'] == 'generated shapes, 37 points (2,000 training, 500 validation shapes)'
    assert (tmp_path / 'report.png').exists()
    devices = parallel.make('jit')
    weights = devices.replicate(jax.jit(task.init)(jax.random.key(0)))
    numbers, predictions = evaluate.evaluate(
        task, devices, evaluate.compile_predict(task, devices), *weights
    )
    labels = [task.eval_source[i]['label'] for i in range(500)]
    assert predictions['index'].tolist() == list(range(500))
    assert predictions['label'].tolist() == labels
    # The head starts at zero: all classes tie, and the first wins.
    assert numbers['accuracy'] == numbers['accuracy_class_mean'] == pytest.approx(0.1)


def test_logits_are_averaged_over_draws_of_points():
    task = ModelNet40(get_config(**{'evaluation.num_draws': 3}))
    name = 'generated shapes, 37 points, mean of 3 draws (500 validation shapes)'
    assert task.eval_data_name == name
    params, state = jax.jit(task.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1 * np.sin(np.arange(p.size)).reshape(p.shape), params)
    clouds = np.stack([task.eval_transform(task.eval_source[i])['points'] for i in range(2)])
    label = np.array([4, 1])
    found = task.predict(params, state, {'points': clouds, 'label': label})
    logits = np.mean(
        [
            task.model.apply(params, state, None, clouds[:, i], is_training=False)[0]
            for i in range(3)
        ],
        axis=0,
    )
    assert found['guess'].tolist() == logits.argmax(1).tolist()
    expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1], label]
    np.testing.assert_allclose(found['loss'], expected, rtol=1e-5)


def test_the_mean_over_classes_is_of_those_that_are_there():
    task = ModelNet40(get_config())
    label = np.array([0, 0, 0, 0, 7, 7])
    guess = np.array([0, 0, 0, 7, 7, 3])
    numbers = task.summarise({'loss': np.arange(6.0), 'label': label, 'guess': guess})
    expected = {'loss': 2.5, 'accuracy': 4 / 6, 'accuracy_class_mean': (3 / 4 + 1 / 2) / 2}
    assert numbers == pytest.approx(expected)


@pytest.mark.parametrize(
    'sizes, eval_split, value',
    [
        (PAPER_EXAMPLES, 'test', 0.857),
        ((8858, 985), 'validation', None),
        ((9840, 2468), 'test', None),  # the HDF5 files lack three
    ],
)
def test_only_the_papers_data_stands_beside_its_number(sizes, eval_split, value):
    config = configs.get_config('perceiver')
    with config.unlocked():
        config.data.eval_split = eval_split
    task = ModelNet40(config)
    task.train_source, task.eval_source = Untouchable(), Sized(sizes[1])
    assert task.paper_eval_data == (eval_split == 'test')
    eval_name = f'ModelNet40, 2,048 points ({sizes[1]:,} {eval_split} shapes)'
    assert task.eval_data_name == eval_name
    task.train_source = Sized(sizes[0])
    assert task.paper_value == value
    name = f'ModelNet40, 2,048 points ({sizes[0]:,} training, {sizes[1]:,} {eval_split} shapes)'
    assert task.data_name == (name if value is None else 'ModelNet40, 2,048 points')


def test_another_number_of_classes_is_refused():
    task = ModelNet40(get_config(**{'model.num_classes': 40}))
    with pytest.raises(ValueError, match='shapes data has 10 classes, and .*num_classes is 40'):
        assert task.train_source


def test_the_data_tells_the_number_of_classes():
    config = get_config(**{'model.num_classes': 0})
    assert ModelNet40(config).train_source.classes
    assert config.model.num_classes == 10


def test_more_points_than_there_are_are_refused(tmp_path):
    config = get_config(**{'points.num_points': 513})
    with pytest.raises(ValueError, match='config.points.num_points is 513, and .* has 512'):
        loop.train(config, ModelNet40(config), tmp_path, 'too many')


def test_drawing_shows_the_confusion_and_clouds_in_the_colours_of_attention():
    task = ModelNet40(get_config())
    params, state = jax.jit(task.init)(jax.random.key(0))
    labels = np.arange(500) % 10
    guesses = np.where(np.arange(500) % 20 == 3, 8, labels)  # half of the chairs are stairs
    predictions = {'index': np.arange(500), 'label': labels, 'guess': guesses}
    figure = Figure()
    task.draw(figure.subfigures(), params, state, predictions)
    matrix, *clouds = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images'))]
    image = matrix.get_images()[0].get_array()
    assert (image[3, 3], image[3, 8], image[8, 8], image[0, 0]) == (0.5, 0.5, 1, 1)
    assert [x.get_text() for x in matrix.get_yticklabels()][3] == 'chair  50 %'
    titles = [axes.get_title() for axes in clouds]
    assert titles[:4] == 4 * ['stairs, is chair'] and 'is' not in ' '.join(titles[4:]).split()
    points = [axes.collections[0] for axes in clouds]
    assert all(x.get_offsets().shape == (37, 2) for x in points)
    assert all(np.ptp(x.get_array()) > 0 for x in points)


def test_the_model_of_a_run_takes_clouds_of_any_size():
    task = ModelNet40(get_config())
    params, state = jax.jit(task.init)(jax.random.key(0))
    params['decoder/output']['w'] = np.ones_like(params['decoder/output']['w'])
    model = task.pretrained(params, state)
    assert list(model.classes) == list(task.eval_source.classes)
    assert model.example(3)[0].shape == (3, 37, 3)
    assert model(np.zeros((2, 41, 3), np.float32)).shape == (2, 10)


def test_a_network_without_attention_is_drawn_in_the_colours_of_saliency():
    config = get_config(**{'points.num_points': 36})
    common.set_network(config, common.vit(2, channels=8, num_self_attends=1, num_heads=2))
    task = ModelNet40(config)
    params, state = jax.jit(task.init)(jax.random.key(0))
    params['decoder/output']['w'] += np.random.default_rng(0).normal(size=(8, 10))
    labels = np.arange(500) % 10
    predictions = {'index': np.arange(500), 'label': labels, 'guess': labels}
    figure = Figure()
    task.draw(figure.subfigures(), params, state, predictions)
    _, *clouds = [a for a in figure.findobj(lambda a: hasattr(a, 'get_images'))]
    assert len(clouds) == 12
    assert all(np.ptp(axes.collections[0].get_array()) > 0 for axes in clouds)
    assert task.pretrained(params, state).function == 'point_baseline'


def test_clouds_that_fill_no_grid_are_refused():
    config = get_config(**{'points.num_points': 37})
    common.set_network(config, common.transformer(8, num_self_attends=1, num_heads=2))
    with pytest.raises(ValueError, match='37 is no square number: take 36'):
        ModelNet40(config).init(jax.random.key(0))


def test_mixed_clouds_are_learned_from():
    """The loss is that of both labels by their weights; right is the label of the larger one."""
    config = get_config(**{'loss.cutmix_alpha': 1.0, 'loss.label_smoothing': 0.0})
    task = ModelNet40(config)
    batches = task.train_batches(0)
    batch = next(batches)
    batches.close()
    assert batch['points'].shape == (16, 2, 37, 3) and batch['label'].shape == (16, 2)
    params, state = jax.jit(task.init)(jax.random.key(0))
    bias = np.linspace(0, 3, 10)
    params['decoder/output']['b'] = bias  # all else of the head is zero
    key = jax.random.key(3)
    loss, (_, metrics) = task.loss(params, state, key, batch)
    _, labels = mix_clouds(key, batch['points'], batch['label'], batch['index'], 10, 1.0)
    expected = np.log(np.exp(bias).sum()) - (labels @ bias).mean()
    assert loss == pytest.approx(float(expected), rel=1e-5)
    assert metrics['accuracy'] == (np.argmax(labels, 1) == 9).mean()


def test_evaluation_may_take_more_points_than_training():
    task = ModelNet40(get_config(**{'evaluation.num_points': 41}))
    assert task.data_name.startswith('generated shapes, 41 points, trained on 37 (2,000 training,')
    batches = task.train_batches(0), task.eval_batches()
    shapes = [next(iterator)['points'].shape for iterator in batches]
    for iterator in batches:
        iterator.close()
    assert shapes == [(16, 37, 3), (120, 1, 41, 3)]
    task.without_data()
    assert len(task.eval_transform(task.eval_source[0])['points'][0]) == 41
    params, state = jax.jit(task.init)(jax.random.key(0))
    assert task.pretrained(params, state).front_end['num_points'] == 41
