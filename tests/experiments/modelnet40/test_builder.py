import functools
import io
import zipfile

import h5py
import numpy as np
import pytest

from experiments.modelnet40 import builder
from experiments.modelnet40.sources import OFFICIAL, open_source
from experiments.modelnet40.transforms import EvalTransform
from perceiver_jax import limits
from perceiver_jax.errors import Refused
from tests.toys.damaged_tables import check_reader
from tests.toys.hanging import REPEATED, guard
from tests.toys.modelnet40_files import (
    NAMES,
    SPLITS,
    cloud,
    hdf5,
    meshes,
    npz,
    off,
    texts,
    write,
    zipped_meshes,
)


@pytest.mark.parametrize('source', [meshes, zipped_meshes, texts, hdf5, npz])
def test_every_format_gives_the_same_shapes(tmp_path, source):
    shapes = builder.find_shapes(source(tmp_path))
    assert [(shape.name, shape.label, shape.split) for shape in shapes] == [
        (name, name.rpartition('_')[0], split) for name, split in zip(NAMES, SPLITS, strict=True)
    ]
    for number, shape in enumerate(shapes):
        points = builder.read_points(shape, num_points=23, seed=0)
        assert points.shape == (23, 3) and points.dtype == np.float64
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
                expected = (expected - expected.mean(0)).astype(np.float32)
                np.testing.assert_array_equal(example['points'], expected)
                assert source.classes[example['label']] == shape.label
    with pytest.raises(ValueError, match='exists already; remove it to prepare it again'):
        builder.prepare(path, tmp_path / 'tfds')


def test_shapes_in_map_coordinates_are_prepared_as_those_at_the_origin(tmp_path):
    clouds = np.stack([cloud(name).astype(np.float64) for name in NAMES])
    prepared = []
    for place, offset in (('here', 0), ('there', [700_000, 4_800_000, 200])):
        (tmp_path / place).mkdir()
        path = npz(tmp_path / place, points=clouds + offset)
        builder.prepare(path, tmp_path / place / 'tfds', num_points=23)
        source = open_source('tfds', str(tmp_path / place / 'tfds'), 'test')
        prepared.append([EvalTransform(num_points=23)(source[i])['points'] for i in range(3)])
    np.testing.assert_allclose(*prepared, rtol=0, atol=1e-6)


@pytest.mark.parametrize('source', [meshes, zipped_meshes, texts, hdf5])
def test_hidden_files_are_no_shapes(tmp_path, source):
    path = source(tmp_path)
    expected = builder.find_shapes(path)
    for hidden in ('.Trashes', '__MACOSX', 'cup/test/.git'):
        for name in ('cup/test/cup_0080.off', 'cup/test/._cup_0080.off', 'ply_data_train0.h5'):
            if path.is_dir():
                write(path / hidden / name, b'left by another program')
            else:
                with zipfile.ZipFile(path, 'a') as file:
                    file.writestr(f'ModelNet40/{hidden}/{name}', b'left by another program')
    builder._zip.cache_clear()
    assert builder.find_shapes(path) == expected


def test_no_name_hangs_the_patterns():
    with guard():
        for repeated in (text.decode() for text in REPEATED):
            for start in ('', 'cup/', 'cup/train/', 'cup/train/x.', 'cup/cup_', 'cup/cup_1.'):
                for end in ('', '!', '.off', '/train/x.off', '/cup_1.txt!'):
                    for pattern in (builder._FILE, builder._NAMED):
                        pattern.fullmatch(start + repeated + end)


@pytest.mark.parametrize('what, told', [('nowhere', 'does not exist'), ('.', 'holds no shapes')])
def test_what_cannot_be_prepared_is_told_in_one_line(tmp_path, capsys, what, told):
    with pytest.raises(SystemExit) as ended:
        builder.main([str(tmp_path / what), str(tmp_path / 'tfds')])
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith(f'error: {tmp_path / what} {told}') and message.count('\n') == 1


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, 'find_shapes', lambda path: [1].index(2))
    with pytest.raises(ValueError, match='2 is not in list'):
        builder.main([str(tmp_path), str(tmp_path / 'tfds')])


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


def garbled_names(root):
    (hdf5(root) / 'ply_data_test_0_id2file.json').write_text('["cup/cup_0080.ply"')
    return root / 'modelnet40_ply_hdf5_2048'


def nested_names(root):
    (hdf5(root) / 'ply_data_test_0_id2file.json').write_text(100_000 * '[')
    return root / 'modelnet40_ply_hdf5_2048'


def latin_classes(root):
    path = hdf5(root) / 'shape_names.txt'
    path.write_text(path.read_text().replace('bowl', 'böwl'), 'latin-1')
    return path.parent


def few_classes(root):
    (hdf5(root) / 'shape_names.txt').write_text('airplane\n')
    return root / 'modelnet40_ply_hdf5_2048'


def repeated_classes(root):
    path = hdf5(root) / 'shape_names.txt'
    path.write_text('airplane\n' + path.read_text())
    return path.parent


def labelled(labels, root):
    root = hdf5(root)
    with h5py.File(root / 'ply_data_train0.h5', 'a') as file:
        del file['label']
        file['label'] = labels
    return root


def an_npy(root):
    np.save(root / 'x.npy', np.zeros((2, 3)))
    return (root / 'x.npy').rename(root / 'clouds.npz')


def broken_zip(root):
    with zipfile.ZipFile(root / 'shapes.zip', 'w') as file:
        file.writestr('ModelNet40/bowl/train/bowl_0001.off', off('bowl_0001'))
    content = (root / 'shapes.zip').read_bytes()
    (root / 'shapes.zip').write_bytes(content.replace(b'PK\1\2', b'PK\1\3'))
    return root / 'shapes.zip'


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
        (garbled_names, 'id2file.json: Expecting'),
        (nested_names, 'id2file.json: '),
        (latin_classes, 'shape_names.txt, line 7: expected UTF-8'),
        (few_classes, 'labels up to .* there are 1 classes in .*shape_names.txt'),
        (repeated_classes, "shape_names.txt: 'airplane' is there twice"),
        (cut, 'ply_data_train0.h5: '),
        (functools.partial(labelled, np.zeros(2)), 'train0.h5: .* a whole number as .* float64'),
        (functools.partial(labelled, np.array([-1, 0])), 'train0.h5: expected labels from 0 on'),
        (functools.partial(labelled, np.int64(3)), 'train0.h5: expected arrays'),
        (functools.partial(labelled, np.zeros((2, 3), int)), r'train0.h5: .* got int64 \(2, 3\)'),
        (
            lambda root: npz(root, name=np.array(6 * [b'\xff'])),
            "'name': expected texts in UTF-8",
        ),
        (an_npy, 'clouds.npz: expected several arrays, as numpy.savez writes them'),
        (lambda root: npz(root, points=np.float32(3)), "'points' .* got a single number"),
        (lambda root: npz(root, label=np.zeros(6)), "'label' is float64, expected whole numbers"),
        (lambda root: npz(root, name=np.array('x')), r"expected 'name' \[number of shapes\]"),
        (broken_zip, 'shapes.zip: expected a zip, it is damaged'),
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


@pytest.mark.parametrize('name', ['shape_names.txt', 'ply_data_test_0_id2file.json'])
def test_damaged_lists_are_read_or_refused(tmp_path, name):
    root = hdf5(tmp_path)
    expected = builder.find_shapes(root)
    (root / name).write_text((root / name).read_text(), 'utf-8-sig')
    assert builder.find_shapes(root) == expected
    (root / name).write_text((root / name).read_text('utf-8-sig'))
    check_reader(lambda: builder.find_shapes(root), root / name, count=20)


@pytest.mark.parametrize('source', [npz, hdf5])
def test_arrays_that_fill_the_memory_are_not_read(tmp_path, monkeypatch, source):
    path = source(tmp_path)
    monkeypatch.setattr(limits, 'BYTES', 500)
    monkeypatch.setattr(limits, 'BYTES_PER_BYTE', 0)
    message = r'(clouds.npz|data_\w+.h5): what it holds would take [\d,]+ bytes of memory'
    with pytest.raises(Refused, match=message):
        builder.find_shapes(path)


def test_a_member_that_fills_the_memory_is_not_unpacked(tmp_path, monkeypatch):
    shape = builder.find_shapes(zipped_meshes(tmp_path))[0]
    monkeypatch.setattr(limits, 'BYTES', 500)
    monkeypatch.setattr(limits, 'BYTES_PER_BYTE', 0)
    with pytest.raises(Refused, match=r'bowl_0001.*: what it holds would take [\d,]+ bytes of mem'):
        builder.read_points(shape, num_points=3, seed=0)


def test_an_array_that_is_not_in_the_npz_is_refused(tmp_path):
    path = npz(tmp_path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    header = {'descr': '<f4', 'fortran_order': False, 'shape': (6, 10**12, 3)}
    points = io.BytesIO()
    np.lib.format.write_array_header_1_0(points, header)
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in (members | {'points.npy': points.getvalue()}).items():
            file.writestr(name, content)
    with pytest.raises(
        Refused, match=r'clouds.npz: .*its header says float32 \(6, 10+, 3\), and it'
    ):
        builder.find_shapes(path)
