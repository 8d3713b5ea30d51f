"""Prepares ModelNet40, once, from what people have of it; reading it back needs none of this.

    python -m experiments.modelnet40.builder ModelNet40.zip ~/tensorflow_datasets

FROM is one of
- the folder or zip of meshes, <class>/<train|test>/<name>.off: points are drawn from the surface,
  by area;
- the folder of `modelnet40_ply_hdf5_2048`, ply_data_train0.h5 and so on (9,840 training shapes);
- a folder or zip of points, <class>/<name>.txt or .npy, as in `modelnet40_normal_resampled`: a line
  or row a point, of which the first three numbers count; also <class>/<train|test>/<name>;
- an .npz of `points` [N, P, 3], `label` [N], `name` [N], `classes` [K], and, where they are known,
  `split` [N] of 'train', 'validation' and 'test'.

Where nothing else tells, a name tells its official split. Unless the data names one, a tenth of
each class of the training shapes becomes the split `validation`: the paper chose what it reports
by the test set, and who wants to choose otherwise needs one. Points are stored in random order.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import sys
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from experiments.modelnet40.files import read_cloud, some_points
from experiments.modelnet40.sources import OFFICIAL
from perceiver_jax.errors import Refused

SPLITS = ('train', 'validation', 'test')
NUM_POINTS = 4096  # our choice: twice what the model sees, so that an epoch sees other points
_FILE = re.compile(r'(?:.*/)?(?P<label>[^/]+)/(?P<split>train|test)/(?P<name>[^/.][^/]*)\.\w+')
_NAMED = re.compile(r'(?:.*/)?(?P<label>[^/]+)/(?P<name>(?P=label)_\d+)\.\w+')
_ENDINGS = ('.off', '.npy', '.txt')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape, not yet read."""

    name: str  # 'airplane_0001'
    label: str  # name of its class
    split: str  # of SPLITS
    file: str  # where it is
    place: str | int | None = None  # the member of a zip, or the row of an array

    def __str__(self) -> str:
        return self.file if self.place is None else f'{self.file}, {self.place}'


class Modelnet40(tfds.core.GeneratorBasedBuilder):
    """Point clouds of the shapes of ModelNet40 (Wu et al., CVPR 2015)."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, path: str | os.PathLike, *, num_points: int, seed: int, **builder):
        self.path, self.num_points, self.seed = Path(path), num_points, seed
        super().__init__(**builder, file_format='array_record')

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        return carve_validation(find_shapes(self.path))

    def _info(self):
        points = tfds.features.Tensor(
            shape=(None, 3), dtype=np.float32, encoding=tfds.features.Encoding.BYTES
        )
        classes = sorted({shape.label for shape in self.shapes})
        label = tfds.features.ClassLabel(names=classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f'{self.path.name}: {self.num_points} points a shape, seed {self.seed}.',
            features=tfds.features.FeaturesDict(
                {'points': points, 'label': label, 'name': tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager):
        present = {shape.split for shape in self.shapes}
        return {s: self._generate_examples(s) for s in SPLITS if s in present}

    def _generate_examples(self, split):
        shapes = [shape for shape in self.shapes if shape.split == split]
        read = functools.partial(read_points, num_points=self.num_points, seed=self.seed)
        workers = concurrent.futures.ProcessPoolExecutor(
            os.cpu_count(), mp_context=multiprocessing.get_context('spawn')
        )
        with workers:
            if any(isinstance(shape.place, int) for shape in shapes):
                clouds = map(read, shapes)  # each worker would read the whole arrays
            else:
                clouds = workers.map(read, shapes, chunksize=8)
            for shape, points in zip(shapes, clouds, strict=True):
                example = {'points': points, 'label': shape.label, 'name': shape.name}
                yield f'{shape.label}/{shape.name}', example


# What there is


def find_shapes(path: Path) -> list[Shape]:
    """Lists the shapes at a path in one of the formats of the module's docstring.

    Raises:
      ValueError: if there are none, or it is not known what they are; names the file.
    """
    if not path.exists():
        raise Refused(f'{path} does not exist')
    if path.is_dir() and (files := sorted(path.rglob('ply_data_*.h5'))):
        shapes = [shape for file in files for shape in _of_hdf5(file)]
    elif path.suffix == '.npz':
        shapes = _of_npz(path)
    elif path.is_dir():
        files = sorted(x.as_posix() for x in path.rglob('*') if x.suffix.lower() in _ENDINGS)
        shapes = [x for file in files if (x := _of_file_name(file, file))]
    elif zipfile.is_zipfile(path):
        members = sorted(_zip(str(path)).namelist())
        shapes = [
            shape
            for member in members
            if not member.startswith('__MACOSX/') and member.lower().endswith(_ENDINGS)
            if (shape := _of_file_name(member, str(path), member))
        ]
    else:
        raise Refused(f'{path} is no folder, no zip and no .npz')
    if not shapes:
        raise Refused(
            f'{path} holds no shapes: expected <class>/<train|test>/<name>.off, ply_data_*.h5, '
            f'<class>/<class>_0001.txt or .npy in it'
        )
    shapes.sort(key=lambda shape: (shape.label, shape.name))
    for shape, following in itertools.pairwise(shapes):
        if (shape.label, shape.name) == (following.label, following.name):
            raise Refused(f'{shape} and {following} are both the shape {shape.name!r}')
    return shapes


def official_split(name: str) -> str | None:
    """'train' or 'test' for a name of ModelNet40 such as 'airplane_0627', None for others."""
    label, _, number = name.rpartition('_')
    if label not in OFFICIAL or not number.isdigit():
        return None
    num_train, num_test = OFFICIAL[label]
    if not 1 <= int(number) <= num_train + num_test:
        return None
    return 'train' if int(number) <= num_train else 'test'


def carve_validation(shapes: Sequence[Shape]) -> list[Shape]:
    """Moves a tenth of each class of the training shapes to 'validation', unless some are there.

    They are those whose names have the smallest SHA-256: the same ones from every format.
    """
    if any(shape.split == 'validation' for shape in shapes):
        return list(shapes)
    by_class = defaultdict(list)
    for shape in shapes:
        if shape.split == 'train':
            by_class[shape.label].append(shape)
    chosen = set()
    for some in by_class.values():
        some.sort(key=lambda shape: hashlib.sha256(shape.name.encode()).digest())
        chosen.update(some[: round(len(some) / 10)])
    return [dataclasses.replace(x, split='validation') if x in chosen else x for x in shapes]


def _of_file_name(name: str, file: str, member: str | None = None) -> Shape | None:
    match = _FILE.fullmatch(name) or _NAMED.fullmatch(name)
    if match is None:
        return None  # a list of names, a readme
    found = match.groupdict()
    split = found.get('split') or official_split(found['name'])
    if split is None:
        raise Refused(
            f'{member or file}: expected it in a folder train/ or test/, or a name of ModelNet40'
        )
    return Shape(found['name'], found['label'], split, file, member)


def _of_hdf5(file: Path) -> Iterator[Shape]:
    """Shapes of ply_data_train0.h5, with names from ply_data_train_0_id2file.json where it is."""
    parts = re.fullmatch(r'ply_data_(train|test)_?(\d+)\.h5', file.name)
    if parts is None:
        raise Refused(f'{file}: expected a name such as ply_data_train0.h5')
    split, number = parts.groups()
    labels, points = (_hdf5(str(file))[key] for key in ('label', 'data'))
    listed, classes = file.with_name('shape_names.txt'), sorted(OFFICIAL)
    if listed.is_file():
        classes = listed.read_text().split()
    if len(labels) != len(points) or labels.max() >= len(classes):
        raise Refused(
            f'{file} has {len(points)} shapes and {len(labels)} labels up to {labels.max()}, '
            f'and there are {len(classes)} classes'
        )
    named = file.with_name(f'ply_data_{split}_{number}_id2file.json')
    if named.is_file():
        names = [Path(name).stem for name in json.loads(named.read_text())]
        if len(names) != len(labels):
            raise Refused(f'{named} has {len(names)} names for {len(labels)} shapes')
    else:
        names = [f'{split}{number}_{row:04}' for row in range(len(labels))]
    for row, (name, label) in enumerate(zip(names, labels.ravel(), strict=True)):
        yield Shape(name, classes[label], split, str(file), row)


def _of_npz(file: Path) -> list[Shape]:
    arrays = _npz(str(file))
    num = len(arrays['points'])
    for key in ('label', 'name', 'split'):
        if key in arrays and len(arrays[key]) != num:
            raise Refused(f'{file}: {key!r} has {len(arrays[key])} entries for {num} shapes')
    classes, shapes = _texts(arrays['classes']), []
    names, labels = _texts(arrays['name']), arrays['label'].tolist()
    splits = _texts(arrays['split']) if 'split' in arrays else map(official_split, names)
    for row, (name, label, split) in enumerate(zip(names, labels, splits, strict=True)):
        if split not in SPLITS:
            raise Refused(
                f'{file}: the split of {name!r} is {split!r}, expected one of {SPLITS}, or a '
                'name of ModelNet40'
            )
        if not 0 <= label < len(classes):
            raise Refused(f'{file}: the label of {name!r} is {label}, of {len(classes)} classes')
        shapes.append(Shape(name, classes[label], split, str(file), row))
    return shapes


# What they are


def read_points(shape: Shape, num_points: int, seed: int) -> np.ndarray:
    """Reads a shape, and draws points of a mesh uniformly by area.

    Args:
      shape: of `find_shapes`.
      num_points: drawn of a mesh; of points that are there, at most so many are taken.
      seed: with the shape's name, all that the drawing depends on.

    Returns:
      float32 [num_points or less, 3], in random order.

    Raises:
      ValueError: if it cannot be read; names the file.
    """
    rng = np.random.default_rng((seed, zlib.crc32(f'{shape.label}/{shape.name}'.encode())))
    if isinstance(shape.place, int):
        npz = shape.file.endswith('.npz')
        points = (_npz(shape.file)['points'] if npz else _hdf5(shape.file)['data'])[shape.place]
        return some_points(points, num_points, rng, str(shape))
    return read_cloud(_bytes(shape), num_points, rng, str(shape))


def _bytes(shape: Shape) -> bytes:
    if shape.place is None:
        return Path(shape.file).read_bytes()
    try:
        return _zip(shape.file).read(shape.place)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise Refused(f'{shape}: {error}') from error


@functools.lru_cache(maxsize=1)
def _zip(file: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)  # reads the list of its members: tenths of a second


@functools.lru_cache(maxsize=1)
def _npz(file: str) -> dict[str, np.ndarray]:
    try:
        with np.load(file) as arrays:
            found = dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Refused(f'{file}: {error}') from error
    if missing := {'points', 'label', 'name', 'classes'} - set(found):
        raise Refused(f'{file} lacks {sorted(missing)}; it has {sorted(found)}')
    return found


@functools.cache  # of several files, in turn
def _hdf5(file: str) -> dict[str, np.ndarray]:
    import h5py

    try:
        with h5py.File(file) as arrays:
            return {key: arrays[key][:] for key in ('data', 'label')}
    except (OSError, KeyError) as error:
        raise Refused(f'{file}: {error}') from error


def _texts(array: np.ndarray) -> list[str]:
    return [x.decode() if isinstance(x, bytes) else str(x) for x in array.tolist()]


def prepare(path: Path, data_dir: Path, num_points: int = NUM_POINTS, seed: int = 0) -> str:
    """Prepares the data into TFDS's data folder, whole or not at all.

    Returns:
      What was prepared, beside the official numbers.

    Raises:
      ValueError: if something cannot be read; names the file.
    """
    if num_points < 1:
        raise Refused(f'--num_points is {num_points}, it must be at least 1')
    builder = Modelnet40(path, num_points=num_points, seed=seed, data_dir=data_dir)
    if builder.data_path.exists():
        raise Refused(f'{builder.data_path} exists already; remove it to prepare it again')
    builder.download_and_prepare()
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    train = counts.get('train', 0) + counts.get('validation', 0)
    official = [sum(column) for column in zip(*OFFICIAL.values(), strict=True)]
    return '\n'.join(
        [
            f'{builder.data_path}: ' + ', '.join(f'{n:,} {split}' for split, n in counts.items()),
            f'{train:,} of the official {official[0]:,} training shapes, '
            f'{counts.get("test", 0):,} of {official[1]:,} test shapes',
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.modelnet40.builder',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('path', type=Path, metavar='FROM')
    parser.add_argument('data_dir', type=Path, metavar='TO', help="TFDS's data folder")
    parser.add_argument(
        '--num_points', type=int, default=NUM_POINTS, help='of a shape (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the points (default: %(default)s)')
    options = parser.parse_args(arguments)
    path, data_dir = options.path.expanduser(), options.data_dir.expanduser()
    print(prepare(path, data_dir, options.num_points, options.seed))


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
