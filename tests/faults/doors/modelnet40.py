"""Clouds of points and meshes."""

import io
import zipfile

import h5py
import numpy as np

from tests.faults.damage import of_arrays
from tests.faults.door import Sample, door
from tests.toys import modelnet40_files


def _cloud(folder, ending, content, wrong=None, kind='text'):
    from experiments.modelnet40.files import read_cloud

    file = folder / f'cloud{ending}'
    file.write_bytes(content)

    def read():
        return read_cloud(file.read_bytes(), 9, np.random.default_rng(0), str(file))

    return Sample(file, read, kind, wrong)


@door('experiments.modelnet40.files.read_cloud')
def off(folder):
    return _cloud(folder, '.off', modelnet40_files.off('bowl_0001'))


@door('experiments.modelnet40.files.read_cloud')
def points_txt(folder):
    return _cloud(folder, '.txt', modelnet40_files.text('bowl_0001'))


@door('experiments.modelnet40.sources.open_source', 'experiments.modelnet40.sources.ShapeFolder')
def folder_of_shapes(folder):
    from experiments.modelnet40.sources import open_source

    file = folder / 'test' / 'bowl' / 'bowl_0001.txt'
    modelnet40_files.write(file, modelnet40_files.text('bowl_0001'))
    return Sample(file, lambda: open_source('folder', str(folder), 'test')[0], 'text')


def _npy(array):
    encoded = io.BytesIO()
    np.save(encoded, array)
    return encoded.getvalue()


@door('experiments.modelnet40.files.read_cloud')
def npy(folder):
    def wrong(rng):
        array = of_arrays({'x': modelnet40_files.cloud('bowl_0001')}, rng)
        return rng.choice([_npy(*array.values()), _npz(array)]) if array else b''

    return _cloud(folder, '.npy', _npy(modelnet40_files.cloud('bowl_0001')), wrong, 'bytes')


def _npz(arrays):
    encoded = io.BytesIO()
    np.savez(encoded, **arrays)
    return encoded.getvalue()


def _all_points(path):
    """Reads all shapes at a path, from its beginning."""
    from experiments.modelnet40 import builder

    for cached in (builder._zip, builder._npz, builder._hdf5):
        cached.cache_clear()
    return [builder.read_points(shape, 9, 0) for shape in builder.find_shapes(path)]


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_npz(folder):
    file = modelnet40_files.npz(folder)
    with np.load(file) as loaded:
        arrays = dict(loaded)

    def wrong(rng):
        if rng.random() < 0.2:
            return _npy(arrays[rng.choice(sorted(arrays))])
        return _npz(of_arrays(arrays, rng))

    return Sample(file, lambda: _all_points(file), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    file = root / 'ply_data_train0.h5'
    with h5py.File(file) as loaded:
        arrays = {key: loaded[key][:] for key in loaded}

    def wrong(rng):
        encoded = io.BytesIO()
        with h5py.File(encoded, 'w') as changed:
            for key, array in of_arrays(arrays, rng).items():
                try:
                    changed[key] = array
                except TypeError:  # HDF5 has no such type
                    changed.create_group(key)
        return encoded.getvalue()

    return Sample(file, lambda: _all_points(root), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def names_of_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    return Sample(root / 'ply_data_train_0_id2file.json', lambda: _all_points(root), 'json')


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def classes_of_hdf5(folder):
    root = modelnet40_files.hdf5(folder)
    return Sample(root / 'shape_names.txt', lambda: _all_points(root), 'text')


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_zip(folder):
    file = folder / 'shapes.zip'
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in modelnet40_files.NAMES[:2]:
            path = f'ModelNet40/{name.rpartition("_")[0]}/train/{name}.off'
            archive.writestr(path, modelnet40_files.off(name))

    def wrong(rng):
        from tests.faults.damage import of_text

        encoded = io.BytesIO()
        name = modelnet40_files.NAMES[0]
        with zipfile.ZipFile(encoded, 'w') as archive:
            path = f'ModelNet40/bowl/{rng.choice(["train", "test", "x"])}/{name}.off'
            archive.writestr(path, of_text(modelnet40_files.off(name), rng))
        return encoded.getvalue()

    return Sample(file, lambda: _all_points(file), wrong=wrong)


@door('experiments.modelnet40.builder.read_points', 'experiments.modelnet40.builder.find_shapes')
def modelnet40_mesh(folder):
    root = modelnet40_files.meshes(folder)
    file = next(x for x in root.rglob('bowl_0001.off'))
    return Sample(file, lambda: _all_points(root), 'text')
