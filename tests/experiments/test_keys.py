"""The keys of a config, with the comments of its file."""

import pytest

from experiments import keys
from tests.toys.configs import CONFIGS

SOURCE = """
SIZES = dict(steps=3)  # no key


def get_config(variant):
    config = ConfigDict({'task': 'toy'})
    config.seed = 42
    config.parallel = 'jit'  # or 'pmap'
    # Two lines
    # above.
    config.train = dict(
        steps=5_000,  # as in the paper
        rates=(0.1, 0.2),  # not #1
        # On one key.
        epochs=placeholder(float),  # instead of steps
        schedule=dict(  # of the rate
            kind='step', factor=0.1
        ),
    )
    config.optimizer = lamb(
        learning_rate=1e-3, b1=0.9  # not said of which
    )  # of You et al.
    config['data']['path'] = ''  # a folder
    config.data.update(source='tfds', workers=8)
    if variant == 'small':
        config.train.steps = 7  # told before
        config.extra = 1.5  # not in every variant
    return config
"""


def test_keys_stand_in_the_order_of_the_file_with_its_comments():
    config = {
        'data': {'path': '', 'workers': 8, 'source': 'tfds'},
        'optimizer': {'learning_rate': 0.001, 'b1': 0.9, 'b2': 0.999, 'more': {}},
        'parallel': 'jit',
        'seed': 43,
        'task': 'toy',
        'train': {
            'epochs': None,
            'rates': (0.1, 0.2),
            'schedule': {'factor': 0.1, 'kind': 'step'},
            'steps': 7,
        },
    }
    table = keys.keys_table(config, SOURCE)
    assert [' '.join(line.split()) for line in table.splitlines()] == [
        "config.task = 'toy'",
        'config.seed = 43',
        "config.parallel = 'jit' # or 'pmap'",
        '',
        '# Two lines',
        '# above.',
        'config.train.steps = 7 # at 5_000: as in the paper',
        'config.train.rates = (0.1, 0.2) # not #1',
        '# On one key.',
        'config.train.epochs = None # instead of steps',
        '# of the rate',
        "config.train.schedule.kind = 'step'",
        'config.train.schedule.factor = 0.1',
        '',
        '# not said of which; of You et al.',
        'config.optimizer.learning_rate = 0.001',
        'config.optimizer.b1 = 0.9',
        'config.optimizer.b2 = 0.999',
        'config.optimizer.more = {}',
        '',
        "config.data.path = '' # a folder",
        "config.data.source = 'tfds'",
        'config.data.workers = 8',
    ]


@pytest.mark.parametrize('module', CONFIGS.values(), ids=CONFIGS)
def test_every_key_and_every_comment_of_get_config_is_listed_once(module):
    with open(module.__file__) as file:
        source = file.read()
    for variant in module.VARIANTS:
        lines = keys.keys_table(module.get_config(variant).to_dict(), source).splitlines()
        listed = [line for line in lines if line.startswith('config.')]
        named = [line.partition(' = ')[0] for line in listed]
        leaves = [f'config.{key}' for key, _ in keys._leaves(module.get_config(variant).to_dict())]
        assert sorted(named) == sorted(leaves)
        assert "config.parallel = 'jit' # or 'pmap'" in [' '.join(x.split()) for x in listed]
        above = [line for line in lines if line.startswith('#')]
        assert len(set(above)) == len(above)


def test_a_file_that_makes_its_config_elsewhere_has_no_comments():
    config = {'c': 1, 'b': {'x': 1}, 'a': {'y': 1, 'x': {'z': 1}}}
    table = keys.keys_table(config, 'get_config = other.get_config  # all of it')
    assert table == 'config.a.x.z = 1\nconfig.a.y = 1\n\nconfig.b.x = 1\n\nconfig.c = 1'
    assert keys.keys_table({}, '') == ''
