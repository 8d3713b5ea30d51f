"""Six shapes of ModelNet40 in each of the formats that the builder reads."""

import json
import zipfile

import h5py
import numpy as np

from experiments.modelnet40.sources import OFFICIAL

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
