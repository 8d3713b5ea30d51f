import pickle

import pytest

from experiments.modelnet40 import builder
from experiments.modelnet40.sources import open_source
from tests.toys.modelnet40_files import NAMES, SPLITS, npz


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp('modelnet40')
    builder.prepare(npz(folder), folder / 'tfds', num_points=23)
    return str(folder / 'tfds')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_prepared_split_has_its_shapes_and_all_classes(prepared, split):
    source = open_source('tfds', prepared, split)
    assert source.classes == ['bowl', 'cup']
    examples = {source[i]['name']: source[i] for i in range(len(source))}
    assert set(examples) == {n for n, s in zip(NAMES, SPLITS, strict=True) if s == split}
    for name, example in examples.items():
        assert source.classes[example['label']] == name.rpartition('_')[0]
        assert example['points'].shape == (23, 3)
    assert pickle.loads(pickle.dumps(source))[0]['name'] == source[0]['name']


def test_splits_are_joined(prepared):
    assert len(open_source('tfds', prepared, 'train+test')) == 6
    with pytest.raises(ValueError, match="no array_record files of the split 'validation'"):
        open_source('tfds', prepared, 'train+validation')


def test_sources_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be 'tfds' or 'shapes', got 'off'"):
        open_source('off', str(tmp_path), 'train')
    with pytest.raises(ValueError, match="there is none at 'nowhere'"):
        open_source('tfds', 'nowhere', 'train')
    with pytest.raises(ValueError, match='no prepared modelnet40: expected features.json'):
        open_source('tfds', str(tmp_path), 'train')
    assert len(open_source('shapes', None, 'test')) == 500
