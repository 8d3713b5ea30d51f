import pickle

import numpy as np
import pytest

from experiments.data.pipeline import BrokenExample
from experiments.modelnet40 import builder, files
from experiments.modelnet40.sources import open_source
from experiments.modelnet40.transforms import EvalTransform
from perceiver_jax.errors import Refused
from tests.toys.modelnet40_files import NAMES, SPLITS, meshes, npz, off, text, write


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
    with pytest.raises(ValueError, match="must be 'tfds', 'folder' or 'shapes', got 'off'"):
        open_source('off', str(tmp_path), 'train')
    with pytest.raises(ValueError, match="there is none at 'nowhere'"):
        open_source('tfds', 'nowhere', 'train')
    with pytest.raises(ValueError, match='no prepared modelnet40: expected features.json'):
        open_source('tfds', str(tmp_path), 'train')
    assert len(open_source('shapes', None, 'test')) == 500


@pytest.fixture
def folder(tmp_path):
    """One's own shapes in each format; cups are not among those to validate on."""
    write(tmp_path / 'train' / 'bowl' / 'bowl_0001.off', off('bowl_0001'))
    write(tmp_path / 'train' / 'cup' / 'cup_0079.txt', text('cup_0079'))
    write(tmp_path / 'train' / 'cup' / '._cup_0079.txt', b'of the Finder')
    write(tmp_path / 'validation' / 'bowl' / 'bowl_0002.OFF', off('bowl_0002'))
    (tmp_path / 'test' / 'cup').mkdir(parents=True)
    np.save(tmp_path / 'test' / 'cup' / 'row.npy', np.arange(15.0).reshape(5, 3) + 1e6)
    return tmp_path


def names_and_labels(source):
    examples = [source[index] for index in range(len(source))]
    return [(x['name'].rpartition('/')[2], x['label']) for x in examples]


def test_own_shapes_have_the_labels_of_their_folders(folder):
    source = open_source('folder', str(folder), 'train+validation')
    assert source.classes == ['bowl', 'cup'] and len(source) == 3
    expected = [('bowl_0001.off', 0), ('cup_0079.txt', 1), ('bowl_0002.OFF', 0)]
    assert names_and_labels(source) == expected
    assert names_and_labels(open_source('folder', str(folder), 'test')) == [('row.npy', 1)]


def test_own_shapes_are_centred_and_the_same_each_time_in_random_order(folder):
    source = open_source('folder', str(folder), 'train')
    read = [source[index]['points'] for index in (0, 1)]
    assert [x.shape for x in read] == [(files.NUM_POINTS, 3), (31, 3)]
    assert source[1]['points'] is read[1]  # kept
    for again in (open_source('folder', str(folder), 'train'), pickle.loads(pickle.dumps(source))):
        np.testing.assert_array_equal(again[0]['points'], read[0])
        assert again[1]['points'] is not read[1]
    (row,) = [x['points'] for x in open_source('folder', str(folder), 'test')]
    assert row.dtype == np.float32
    np.testing.assert_array_equal(np.sort(row, 0), np.arange(-6.0, 9, 3)[:, None] + np.zeros(3))
    assert np.any(np.diff(row[:, 0]) < 0)


def test_a_mesh_is_read_as_the_builder_prepares_it(folder, tmp_path):
    (shape,) = [x for x in builder.find_shapes(meshes(tmp_path / 'x')) if x.name == 'bowl_0001']
    prepared = builder.read_points(shape, builder.NUM_POINTS, seed=0)
    example = open_source('folder', str(folder), 'train')[0]
    np.testing.assert_array_equal(example['points'], files.centred(prepared))
    item = EvalTransform(num_points=19)(example)
    assert np.abs(item['points']).max() == 1


def test_evaluation_of_own_shapes_needs_its_split_alone(folder, tmp_path):
    (folder / 'train').rename(folder / 'elsewhere')
    assert open_source('folder', str(folder), 'test').classes == ['cup']
    source = open_source('folder', str(folder), 'test', ['tent', 'cup', 'bowl'])
    assert source.classes == ['tent', 'cup', 'bowl']
    assert names_and_labels(source) == [('row.npy', 1)]
    with pytest.raises(Refused, match='train is missing: expected train/<class>/, validation/'):
        open_source('folder', str(folder), 'train')


def test_own_shapes_that_cannot_be_read_are_refused(folder):
    with pytest.raises(Refused, match=r"one of \('train', .* got 'train\+tests'"):
        open_source('folder', str(folder), 'train+tests')
    (folder / 'test' / 'cup' / 'row.npy').write_bytes(b'no array')
    source = open_source('folder', str(folder), 'test')
    with pytest.raises(BrokenExample, match='cup/row.npy: expected an array of points'):
        source[0]
    (folder / 'test' / 'cup' / 'row.npy').unlink()
    with pytest.raises(BrokenExample, match='cup/row.npy: No such file'):
        source[0]
    with pytest.raises(Refused, match=r"test has no files <class>/\*\('.off', '.npy', '.txt'\)"):
        open_source('folder', str(folder), 'test')
