"""Every key of a config is read: by the loop, or by the task on the demo or on small real data.

A key that nothing reads promises what does not happen. Building a model for its shapes alone, and
tracing the loss and the predictions, reads what running them would read.
"""

import contextlib

import jax
import ml_collections
import numpy as np
import pytest

from experiments import tasks
from experiments.tasks import make_task
from experiments.training import checks, loop
from experiments.training.optimizer import make_optimizer
from perceiver_jax.front_ends import write_clip
from tests.toys import toy_task
from tests.toys.configs import CONFIGS

OPTIONS = {
    'audioset': ['io_mel_video,decoder=average', 'esc,input=filterbank'],
    'flow': ['main,frames=separate', 'conv,size=small'],
    'imagenet': ['io_conv,decoder=average', 'cifar10,model=resnet,permuted=yes'],
    'modelnet40': ['small,model=vit2'],
}


@contextlib.contextmanager
def recorded_reads(configs):
    """Collects the keys of some configs that are read, such as 'train.batch_size'.

    What turns a config into a dictionary as a whole (to_dict) reads none of its keys.
    """
    names, seen = {}, set()
    for config in configs:
        names |= {(id(node), key): name for name, (node, key) in leaves(config).items()}
    get, to_dict = ml_collections.ConfigDict.__getitem__, ml_collections.ConfigDict.to_dict
    quiet = []

    def getitem(self, key):
        if not quiet and (id(self), key) in names:
            seen.add(names[id(self), key])
        return get(self, key)

    def as_dict(self, *arguments, **named):
        quiet.append(True)
        try:
            return to_dict(self, *arguments, **named)
        finally:
            quiet.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ml_collections.ConfigDict, '__getitem__', getitem)
        patch.setattr(ml_collections.ConfigDict, 'to_dict', as_dict)
        patch.setattr(tasks, 'check_values', lambda _: None)  # reads every key there is
        yield seen


def leaves(config, prefix=''):
    """Name of each leaf -> the node that holds it, and its key there."""
    found = {}
    for key in config.keys():
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict):
            found |= leaves(value, f'{prefix}{key}.')
        else:
            found[prefix + key] = config, key
    return found


@pytest.fixture(scope='module')
def read_by_the_loop(tmp_path_factory):
    """What the loop reads of any config, in a run of the toy task."""
    config = toy_task.get_config()
    with recorded_reads([config]) as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, 'check_sizes', lambda *_: None)  # looks at whatever there is
        loop.train(config, toy_task.ToyTask(config), tmp_path_factory.mktemp('toy'), 'toy')
    return {name for name in seen if name.startswith(('train.', 'seed', 'parallel'))}


def use(config, has_data):
    """Reads a config as training and evaluating its task does, without compiling anything."""
    task = make_task(config)
    rng = jax.random.key(0)
    weights = jax.eval_shape(task.init, rng)
    make_optimizer(100_000, 10.0, **config.optimizer)
    if has_data:
        assert task.describe()['paper'] == config.paper.to_dict()
        with contextlib.closing(task.train_batches(0)) as batches:
            jax.eval_shape(task.loss, *weights, rng, next(batches))
        with contextlib.closing(task.eval_batches()) as batches:
            jax.eval_shape(task.predict, *weights, next(batches))
        checks.count_steps(config, task.num_train_examples)
        assert task.data_name
        assert task.paper_value is None


@pytest.fixture(scope='module')
def labelled_folder(tmp_path_factory):
    """ESC-50's layout with a video for training and one for evaluation."""
    root = tmp_path_factory.mktemp('esc')
    (root / 'meta').mkdir()
    rng = np.random.default_rng(0)
    lines = ['filename,fold,category']
    for fold, category in (('1', 'dog'), ('5', 'rain')):
        video = rng.random((8, 16, 16, 3), np.float32)
        sound = rng.uniform(-0.5, 0.5, (8 * 1920, 1))
        write_clip(root / 'audio' / f'{category}.mp4', video, sound)
        lines.append(f'{category}.mp4,{fold},{category}')
    (root / 'meta' / 'esc50.csv').write_text('\n'.join(lines))
    return root


def configs_of(name, labelled_folder):
    """Pairs of a config, and whether its data is at hand."""
    get_config = CONFIGS[name].get_config
    variants = [*CONFIGS[name].VARIANTS, *OPTIONS.get(name, [])]
    configs = [(get_config(variant), variant == 'demo') for variant in variants]
    if name == 'audioset':
        for variant in ('esc', 'mel_video'):
            config = get_config(variant)
            config.update({'data': {'source': 'folder', 'path': str(labelled_folder)}})
            config.update({'data': {'num_workers': 0}, 'model': {'num_classes': 2}})
            configs.append((config, True))
    for config, has_data in configs:
        if config.model.get('num_classes') == 0:  # as many as in the data, which is not at hand
            config.model.num_classes = 2
        if has_data:
            config.train.batch_size = config.evaluation.batch_size = 2
    return configs


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_every_key_of_a_config_is_read(name, labelled_folder, read_by_the_loop):
    configs = configs_of(name, labelled_folder)
    with recorded_reads([config for config, _ in configs]) as seen:
        for config, has_data in configs:
            use(config, has_data)
    keys = {key for config, _ in configs for key in leaves(config)}
    keys -= seen | read_by_the_loop | {'init_from'}  # which the launcher reads
    # What the paper states is printed as a whole, which `use` has compared.
    unread = {key for key in keys if not key.startswith('paper.')}
    assert unread == set()


def test_a_key_that_nothing_reads_is_found():
    config = ml_collections.ConfigDict({'a': {'b': 1, 'c': 2}, 'd': 3})
    with recorded_reads([config]) as seen:
        assert config.a.b + config['d'] == 4
        assert config.to_dict()['a'] == {'b': 1, 'c': 2}
    assert leaves(config).keys() - seen == {'a.c'}
    config = CONFIGS['modelnet40'].get_config('demo').unlock()
    config.update({'seed_of_shapes': 0, 'data': {'promised': True}, 'train': {'batch_size': 2}})
    with recorded_reads([config]) as seen:
        use(config, has_data=True)
    assert {'seed_of_shapes', 'data.promised'} <= leaves(config).keys() - seen
    assert 'data.source' in seen
