"""ModelNet40 from each of its formats, as small files that the tests write."""

import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from experiments.modelnet40 import builder
from experiments.modelnet40.sources import OFFICIAL, open_source

# Two classes; names tell the official split: 64 bowls and 79 cups are for training.
NAMES = ('bowl_0001', 'bowl_0002', 'bowl_0065', 'cup_0079', 'cup_0080', 'cup_0099')
SPLITS = ('train', 'train', 'test', 'train', 'test', 'test')


def cloud(name, num_points=31):
    """Its own points for each name, in a box that no other has."""
    number = NAMES.index(name)
    rng = np.random.default_rng(number)
    return rng.uniform(10 * number, 10 * number + 9, (num_points, 3)).astype(np.float32)


def off(name):
    """A mesh of some triangles of the cloud."""
    points = cloud(name)
    faces = np.arange(30).reshape(10, 3)
    lines = [f'OFF{len(points)} {len(faces)} 0']  # as some of ModelNet40's
    lines += [' '.join(map(str, point)) for point in points]
    lines += [f'3 {a} {b} {c}' for a, b, c in faces]
    return '\n'.join(lines).encode()


def text(name):
    return '\n'.join(','.join(map(str, [*point, 0, 0, 1])) for point in cloud(name)).encode()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def meshes(root):
    for name, split in zip(NAMES, SPLITS, strict=True):
        write(root / 'ModelNet40' / name.rpartition('_')[0] / split / f'{name}.off', off(name))
    write(root / 'ModelNet40' / 'README.txt', b'about')
    return root


def zipped_meshes(root):
    meshes(root / 'unpacked')
    with zipfile.ZipFile(root / 'ModelNet40.zip', 'w') as file:
        for path in sorted((root / 'unpacked').rglob('*.*')):
            file.write(path, path.relative_to(root / 'unpacked'))
        file.writestr('__MACOSX/ModelNet40/cup/test/cup_0080.off', b'of the Finder')
        file.writestr('ModelNet40/cup/test/._cup_0080.off', b'of the Finder')
    return root / 'ModelNet40.zip'


def texts(root):
    for name in NAMES:
        write(root / name.rpartition('_')[0] / f'{name}.txt', text(name))
    write(root / 'modelnet40_train.txt', b'bowl_0001\n')
    return root


def hdf5(root):
    root = root / 'modelnet40_ply_hdf5_2048'
    classes = sorted(OFFICIAL)
    for split in ('train', 'test'):
        names = [name for name, s in zip(NAMES, SPLITS, strict=True) if s == split]
        for number, some in enumerate((names[:2], names[2:])):
            (root).mkdir(exist_ok=True)
            with h5py.File(root / f'ply_data_{split}{number}.h5', 'w') as file:
                file['data'] = np.stack([cloud(name) for name in some])
                labels = [classes.index(name.rpartition('_')[0]) for name in some]
                file['label'] = np.array(labels, np.uint8)[:, None]
            files = [f'{name.rpartition("_")[0]}/{name}.ply' for name in some]
            (root / f'ply_data_{split}_{number}_id2file.json').write_text(json.dumps(files))
    (root / 'shape_names.txt').write_text('\n'.join(classes) + '\n')
    return root


def npz(root, **changes):
    arrays = dict(
        points=np.stack([cloud(name) for name in NAMES]),
        label=np.array([0, 0, 0, 1, 1, 1], np.uint8),
        name=np.array(NAMES, 'S9'),
        classes=np.array(['bowl', 'cup']),
    )
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(root / 'clouds.npz', **arrays)
    return root / 'clouds.npz'


@pytest.mark.parametrize('source', [meshes, zipped_meshes, texts, hdf5, npz])
def test_every_format_gives_the_same_shapes(tmp_path, source):
    shapes = builder.find_shapes(source(tmp_path))
    assert [(shape.name, shape.label, shape.split) for shape in shapes] == [
        (name, name.rpartition('_')[0], split) for name, split in zip(NAMES, SPLITS, strict=True)
    ]
    for number, shape in enumerate(shapes):
        points = builder.read_points(shape, num_points=23, seed=0)
        assert points.shape == (23, 3) and points.dtype == np.float32
        assert 10 * number <= points.min() and points.max() <= 10 * number + 9
        np.testing.assert_array_equal(points, builder.read_points(shape, num_points=23, seed=0))
        assert not np.array_equal(points, builder.read_points(shape, num_points=23, seed=1))


@pytest.mark.parametrize('source', [zipped_meshes, npz])
def test_prepared_shapes_are_read_back(tmp_path, capsys, source):
    path = source(tmp_path)
    builder.main([str(path), str(tmp_path / 'tfds'), '--num_points=23', '--seed=3'])
    told = capsys.readouterr().out
    assert '3 train, 3 test' in told
    assert '3 of the official 9,843 training shapes, 3 of 2,468 test shapes' in told
    opened = {
        split: open_source('tfds', str(tmp_path / 'tfds'), split) for split in ('train', 'test')
    }
    for split, source in opened.items():
        assert source.classes == ['bowl', 'cup']
        examples = {source[i]['name']: source[i] for i in range(len(source))}
        assert set(examples) == {n for n, s in zip(NAMES, SPLITS, strict=True) if s == split}
        for shape in builder.find_shapes(path):
            if shape.split == split:
                example = examples[shape.name]
                expected = builder.read_points(shape, num_points=23, seed=3)
                np.testing.assert_array_equal(example['points'], expected)
                assert source.classes[example['label']] == shape.label
        assert pickle.loads(pickle.dumps(source))[0]['name'] == source[0]['name']
    both = open_source('tfds', str(tmp_path / 'tfds'), 'train+test')
    assert len(both) == 6
    with pytest.raises(ValueError, match="no array_record files of the split 'validation'"):
        open_source('tfds', str(tmp_path / 'tfds'), 'train+validation')
    with pytest.raises(ValueError, match='exists already; remove it to prepare it again'):
        builder.prepare(path, tmp_path / 'tfds')


def test_the_official_split_is_told_by_the_name():
    assert builder.official_split('airplane_0626') == 'train'
    assert builder.official_split('airplane_0627') == builder.official_split('night_stand_0286')
    assert builder.official_split('airplane_0627') == 'test'
    for name in ('airplane_0727', 'airplane_0000', 'aeroplane_0001', 'airplane', 'airplane_1b'):
        assert builder.official_split(name) is None
    assert [sum(column) for column in zip(*OFFICIAL.values(), strict=True)] == [9843, 2468]


def official_shapes():
    for label, (num_train, num_test) in OFFICIAL.items():
        for number in range(1, num_train + num_test + 1):
            name = f'{label}_{number:04}'
            yield builder.Shape(name, label, builder.official_split(name), 'x.npz', 0)


def test_a_fixed_tenth_of_each_class_is_for_validation():
    shapes = list(official_shapes())
    carved = builder.carve_validation(shapes)
    chosen = {shape.name for shape in carved if shape.split == 'validation'}
    assert len(chosen) == 985
    for label, (num_train, _) in OFFICIAL.items():
        assert sum(x.rpartition('_')[0] == label for x in chosen) == round(num_train / 10)
    assert {x.name for x in carved if x.split == 'test'} == {
        x.name for x in shapes if x.split == 'test'
    }
    # The same whatever order and format the shapes come in; these two are for good.
    again = builder.carve_validation(shapes[::-1])
    assert {shape.name for shape in again if shape.split == 'validation'} == chosen
    assert min(chosen) == 'airplane_0006' and max(chosen) == 'xbox_0096'


def test_a_validation_split_that_the_data_names_is_kept(tmp_path):
    split = np.array(['validation', 'train', 'test', 'train', 'test', 'test'])
    shapes = builder.carve_validation(builder.find_shapes(npz(tmp_path, split=split)))
    assert [shape.split for shape in shapes] == split.tolist()


def test_a_broken_mesh_is_named_and_nothing_is_left(tmp_path):
    root = meshes(tmp_path / 'meshes')
    broken = root / 'ModelNet40/cup/test/cup_0080.off'
    broken.write_bytes(off('cup_0080')[:-40])
    with pytest.raises(ValueError, match=f'^{broken}: it ends after 3. of 41'):
        builder.prepare(root, tmp_path / 'tfds', num_points=23)
    assert not list((tmp_path / 'tfds' / 'modelnet40').iterdir())


def no_split(root):
    write(root / 'bowl' / 'bowl_0001.off', off('bowl_0001'))
    write(root / 'pot' / 'pot_0001.off', off('bowl_0001'))
    return root


def twice(root):
    texts(root)
    write(root / 'cup' / 'test' / 'cup_0080.off', off('cup_0080'))
    return root


def short_names(root):
    (hdf5(root) / 'ply_data_test_0_id2file.json').write_text('["cup/cup_0080.ply"]')
    return root / 'modelnet40_ply_hdf5_2048'


def cut(root):
    path = hdf5(root) / 'ply_data_train0.h5'
    path.write_bytes(path.read_bytes()[:1000])
    return path.parent


@pytest.mark.parametrize(
    'source, message',
    [
        (lambda root: root / 'nowhere', 'nowhere does not exist'),
        (lambda root: root, 'holds no shapes: expected <class>/<train|test>/<name>.off'),
        (lambda root: npz(root).rename(root / 'x.npy'), 'x.npy holds no shapes'),
        (no_split, 'pot_0001.off: expected it in a folder train/ or test/'),
        (twice, r'cup_0080.* and .*cup_0080.* are both the shape .cup_0080.'),
        (short_names, 'id2file.json has 1 names for 2 shapes'),
        (cut, 'ply_data_train0.h5: '),
        (lambda root: npz(root, classes=None), r"clouds.npz lacks \['classes'\]; it has"),
        (lambda root: npz(root, label=np.arange(5)), "'label' has 5 entries for 6 shapes"),
        (lambda root: npz(root, label=np.arange(6)), "label of 'bowl_0065' is 2, of 2 classes"),
        (lambda root: npz(root, split=np.array(['val'] * 6)), "'bowl_0001' is 'val', expected one"),
        (lambda root: npz(root, name=np.array(list('abcdef'))), "split of 'a' is None"),
    ],
)
def test_what_is_no_modelnet40_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        builder.find_shapes(source(tmp_path))


def test_sources_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be 'tfds' or 'shapes', got 'off'"):
        open_source('off', str(tmp_path), 'train')
    with pytest.raises(ValueError, match="there is none at 'nowhere'"):
        open_source('tfds', 'nowhere', 'train')
    with pytest.raises(ValueError, match='no prepared modelnet40: expected features.json'):
        open_source('tfds', str(tmp_path), 'train')
    assert len(open_source('shapes', None, 'test')) == 500
