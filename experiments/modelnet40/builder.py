"""Prepares ModelNet40 for TFDS, once, from any of the formats in which it is shared.

    python -m experiments.modelnet40.builder ModelNet40.zip ~/tensorflow_datasets

FROM is one of
- the folder or zip of meshes, <class>/<train|test>/<name>.off: points are drawn from the surface,
  uniformly by area;
- the folder of `modelnet40_ply_hdf5_2048`, ply_data_train0.h5 and so on (9,840 training shapes);
- a folder or zip of points, <class>/<name>.txt or .npy, as in `modelnet40_normal_resampled`: a
  point in each line or row, whose first three numbers are its coordinates; also
  <class>/<train|test>/<name>;
- an .npz of `points` [N, P, 3], `label` [N], `name` [N], `classes` [K], and optionally `split` [N]
  of 'train', 'validation' and 'test'.

Where neither folder, file nor `split` tells the split of a shape, its number does, as in
airplane_0627. Unless the data names a validation split, it is a tenth of the training shapes of
each class: the paper selected its results on the test set, and to select otherwise needs such a
split. Points are stored in random order, as float32 whose mean is 0.
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
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from experiments.command_line import Parser, local_path, one_line_errors
from experiments.data.hidden import is_hidden, visible
from experiments.data.tables import read_text
from experiments.modelnet40.files import (
    ENDINGS,
    NUM_POINTS,
    centred,
    check_npy,
    random_of,
    read_cloud,
    some_points,
)
from experiments.modelnet40.sources import OFFICIAL, SPLITS
from perceiver_jax import limits
from perceiver_jax.errors import Refused, reading

_FILE = re.compile(r'(?:.*/)?(?P<label>[^/]+)/(?P<split>train|test)/(?P<name>[^/.][^/]*)\.\w+')
_NAMED = re.compile(r'(?:.*/)?(?P<label>[^/]+)/(?P<name>(?P=label)_\d+)\.\w+')


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape, not yet read.

    Attributes:
      name: Name of the shape, such as 'airplane_0001'.
      label: Name of its class.
      split: 'train', 'validation' or 'test'.
      file: Path of the file that holds the shape.
      place: Its place in the file: name of a zip's member, or row of an array; None where the file
        is the shape.
    """

    name: str
    label: str
    split: str
    file: str
    place: str | int | None = None

    def __str__(self) -> str:
        return self.file if self.place is None else f'{self.file}, {self.place}'


class Modelnet40(tfds.core.GeneratorBasedBuilder):
    """Point clouds of the shapes of ModelNet40 (Wu et al., CVPR 2015)."""

    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, path: str | os.PathLike, *, num_points: int, seed: int, **builder):
        """Describes a data set to prepare.

        Args:
          path: What to read, in one of the formats of the module's docstring.
          num_points: Number of points of a shape.
          seed: Seed of the choice of points.
          **builder: Arguments of TFDS's builder, such as `data_dir`.
        """
        self.path, self.num_points, self.seed = Path(path), num_points, seed
        super().__init__(**builder, file_format='array_record')

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """The shapes of all splits."""
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
        return {split: self._generate_examples(split) for split in SPLITS if split in present}

    def _generate_examples(self, split):
        shapes = [shape for shape in self.shapes if shape.split == split]
        clouds = _read_all(shapes, self.num_points, self.seed)
        for shape, points in zip(shapes, clouds, strict=True):
            example = {'points': centred(points), 'label': shape.label, 'name': shape.name}
            yield f'{shape.label}/{shape.name}', example


# Finding shapes


def find_shapes(path: Path) -> list[Shape]:
    """Lists the shapes at a path in one of the formats of the module's docstring.

    Args:
      path: A folder, a zip or an .npz.

    Returns:
      The shapes, sorted by class and name.

    Raises:
      Refused: There are no shapes, or the class or split of one is unknown; names the file.
    """
    if not path.exists():
        raise Refused(f'{path} does not exist')
    if path.suffix == '.npz':
        shapes = _of_npz(path)
    elif path.is_dir():
        shapes = _of_folder(path)
    elif zipfile.is_zipfile(path):
        shapes = _of_zip(path)
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
    """Returns 'train' or 'test' for a name such as 'airplane_0627', None for other names."""
    label, _, number = name.rpartition('_')
    if label not in OFFICIAL or not number.isdigit():
        return None
    num_train, num_test = OFFICIAL[label]
    if not 1 <= int(number) <= num_train + num_test:
        return None
    return 'train' if int(number) <= num_train else 'test'


def carve_validation(shapes: Sequence[Shape]) -> list[Shape]:
    """Moves a tenth of each class of the training shapes to the split 'validation'.

    The shapes whose names have the smallest SHA-256 are moved: the same ones from every format.

    Args:
      shapes: Shapes of any splits.

    Returns:
      The shapes in the same order; unchanged if a shape is in the split 'validation' already.
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
    return [
        dataclasses.replace(shape, split='validation') if shape in chosen else shape
        for shape in shapes
    ]


def _of_folder(folder: Path) -> list[Shape]:
    if arrays := visible(folder, '**/ply_data_*.h5'):
        return [shape for file in arrays for shape in _of_hdf5(file)]
    files = [x.as_posix() for x in visible(folder, '**/*') if x.suffix.lower() in ENDINGS]
    return _without_none(_of_file_name(file, file) for file in files)


def _of_zip(file: Path) -> list[Shape]:
    members = [
        member
        for member in sorted(_zip(str(file)).namelist())
        if member.lower().endswith(ENDINGS) and not is_hidden(member)
    ]
    return _without_none(_of_file_name(member, str(file), member) for member in members)


def _without_none(shapes: Iterable[Shape | None]) -> list[Shape]:
    return [shape for shape in shapes if shape is not None]


def _of_file_name(name: str, file: str, member: str | None = None) -> Shape | None:
    """Returns the shape of a file of this name, None for a list of names or a readme."""
    match = _FILE.fullmatch(name) or _NAMED.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    split = found.get('split') or official_split(found['name'])
    if split is None:
        raise Refused(
            f'{member or file}: expected it in a folder train/ or test/, or a name of ModelNet40'
        )
    return Shape(found['name'], found['label'], split, file, member)


def _of_hdf5(file: Path) -> Iterator[Shape]:
    """Yields the shapes of ply_data_train0.h5; ply_data_train_0_id2file.json may name them."""
    parts = re.fullmatch(r'ply_data_(train|test)_?(\d+)\.h5', file.name)
    if parts is None:
        raise Refused(f'{file}: expected a name such as ply_data_train0.h5')
    split, number = parts.groups()
    arrays = _hdf5(str(file))
    labels, points = arrays['label'], arrays['data']
    if labels.dtype.kind not in 'iu' or labels.shape not in ((len(points),), (len(points), 1)):
        raise Refused(
            f'{file}: expected a whole number as the label of each of {len(points)} shapes, got '
            f'{labels.dtype} {labels.shape}'
        )
    if not len(labels):
        raise Refused(f'{file} holds no shapes')
    listed = file.with_name('shape_names.txt')
    classes = read_text(listed).split() if listed.is_file() else sorted(OFFICIAL)
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise Refused(f'{listed}: {twice[0]!r:.80} is there twice')
    if labels.min() < 0:
        raise Refused(f'{file}: expected labels from 0 on, got {labels.min()}')
    if labels.max() >= len(classes):
        raise Refused(
            f'{file} has {len(points)} shapes and {len(labels)} labels up to {labels.max()}, '
            f'and there are {len(classes)} classes{f" in {listed}" if listed.is_file() else ""}'
        )
    named = file.with_name(f'ply_data_{split}_{number}_id2file.json')
    if named.is_file():
        listing = read_text(named)
        try:
            listed_files = json.loads(listing)
        except (ValueError, RecursionError) as error:
            raise Refused(f'{named}: {error!s:.200}') from error
        if not isinstance(listed_files, list) or not all(isinstance(x, str) for x in listed_files):
            raise Refused(f'{named}: expected a list of names')
        names = [Path(name).stem for name in listed_files]
        if len(names) != len(labels):
            raise Refused(f'{named} has {len(names)} names for {len(labels)} shapes')
    else:
        names = [f'{split}{number}_{row:04}' for row in range(len(labels))]
    for row, (name, label) in enumerate(zip(names, labels.ravel(), strict=True)):
        yield Shape(name, classes[label], split, str(file), row)


def _of_npz(file: Path) -> list[Shape]:
    arrays = _npz(str(file))
    if not arrays['points'].ndim:
        raise Refused(f"{file}: expected 'points' [number of shapes, P, 3], got a single number")
    num = len(arrays['points'])
    for key in ('label', 'name', 'split'):
        if key not in arrays:
            continue
        if arrays[key].ndim != 1:
            raise Refused(f'{file}: expected {key!r} [number of shapes], got {arrays[key].shape}')
        if len(arrays[key]) != num:
            raise Refused(f'{file}: {key!r} has {len(arrays[key])} entries for {num} shapes')
    if arrays['label'].dtype.kind not in 'iu':
        raise Refused(f"{file}: 'label' is {arrays['label'].dtype}, expected whole numbers")
    classes, names = (_texts(arrays[key], f'{file}, {key!r}') for key in ('classes', 'name'))
    labels = arrays['label'].tolist()
    splits: Iterable[str | None] = map(official_split, names)
    if 'split' in arrays:
        splits = _texts(arrays['split'], f"{file}, 'split'")
    shapes = []
    for row, (name, label, split) in enumerate(zip(names, labels, splits, strict=True)):
        if split not in SPLITS:
            raise Refused(
                f'{file}: the split of {name!r:.80} is {split!r:.80}, expected one of {SPLITS}, '
                'or a name of ModelNet40'
            )
        if not 0 <= label < len(classes):
            raise Refused(
                f'{file}: the label of {name!r:.80} is {label}, of {len(classes)} classes'
            )
        shapes.append(Shape(name, classes[label], split, str(file), row))
    return shapes


# Reading shapes


def read_points(shape: Shape, num_points: int, seed: int) -> np.ndarray:
    """Reads a shape, or draws points of a mesh's surface, uniformly by area.

    Args:
      shape: A shape that `find_shapes` found.
      num_points: Number of points to draw of a mesh; largest number to take of stored points.
      seed: Seed of the choice; the random numbers are derived from it and the shape's class and
        name.

    Returns:
      Points in random order, in the file's coordinates, float64 `[P, 3]`, 1 <= P <= num_points.

    Raises:
      Refused: The shape cannot be read; names the file.
    """
    rng = random_of(shape.label, shape.name, seed)
    if shape.place is None:
        return read_cloud(Path(shape.file).read_bytes(), num_points, rng, str(shape))
    if isinstance(shape.place, str):
        with reading(str(shape), 'a file that can be unpacked'):
            opened = _zip(shape.file)
            stated = opened.getinfo(shape.place).file_size
            limits.check_bytes(f'{shape}: what it holds', stated, os.path.getsize(shape.file))
            encoded = opened.read(shape.place)
        return read_cloud(encoded, num_points, rng, str(shape))
    is_npz = shape.file.endswith('.npz')
    clouds = _npz(shape.file)['points'] if is_npz else _hdf5(shape.file)['data']
    return some_points(clouds[shape.place], num_points, rng, str(shape))


def _read_all(shapes: Sequence[Shape], num_points: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the points of each shape, read by several processes where each is a file."""
    read = functools.partial(read_points, num_points=num_points, seed=seed)
    if any(isinstance(shape.place, int) for shape in shapes):
        yield from map(read, shapes)  # each process would have to read the whole arrays
        return
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as workers:
        yield from workers.map(read, shapes, chunksize=8)


@functools.lru_cache(maxsize=1)
def _zip(file: str) -> zipfile.ZipFile:
    with reading(file, 'a zip'):
        return zipfile.ZipFile(file)  # cached, as listing the members takes tenths of a second


@functools.lru_cache(maxsize=1)
def _npz(file: str) -> dict[str, np.ndarray]:
    expected = 'several arrays, as numpy.savez writes them'
    if not zipfile.is_zipfile(file):  # NumPy would take an .npy, or a pickle
        raise Refused(f'{file}: expected {expected}, it is damaged or another')
    with reading(file, expected), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stated = sum(member.file_size for member in members)
        limits.check_bytes(f'{file}: what it holds', stated, os.path.getsize(file))
        for member in members:
            with archive.open(member) as opened:
                check_npy(opened, member.file_size)
    with reading(file, expected), np.load(file) as arrays:
        found = dict(arrays)
    if missing := {'points', 'label', 'name', 'classes'} - set(found):
        raise Refused(f'{file} lacks {sorted(missing)}; it has {sorted(found)!r:.200}')
    return found


@functools.cache  # the shapes of a split alternate between several files
def _hdf5(file: str) -> dict[str, np.ndarray]:
    import h5py

    with reading(file, "arrays 'data' and 'label'"), h5py.File(file) as arrays:
        stated = sum(arrays[key].nbytes for key in ('data', 'label'))
        limits.check_bytes(f'{file}: what it holds', stated, os.path.getsize(file))
        return {key: arrays[key][:] for key in ('data', 'label')}


def _texts(array: np.ndarray, name: str) -> list[str]:
    with reading(name, 'texts in UTF-8'):
        return [x.decode() if isinstance(x, bytes) else str(x) for x in array.tolist()]


def prepare(path: Path, data_dir: Path, num_points: int = NUM_POINTS, seed: int = 0) -> str:
    """Writes the data set into TFDS's data folder, complete or not at all.

    Args:
      path: What to read, in one of the formats of the module's docstring.
      data_dir: TFDS's data folder.
      num_points: Number of points to draw of a mesh; largest number to take of stored points.
      seed: Seed of the choice of points.

    Returns:
      Text that tells the folder and the numbers of shapes beside the official ones.

    Raises:
      Refused: A shape cannot be read (names the file), the data set is prepared already, or
        `num_points` is not positive.
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
    parser = Parser(
        prog='python -m experiments.modelnet40.builder',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('path', metavar='FROM')
    parser.add_argument('data_dir', metavar='TO', help="TFDS's data folder")
    parser.add_argument(
        '--num_points',
        type=int,
        default=NUM_POINTS,
        help='points to store of each shape (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the choice of points (default: %(default)s)'
    )
    options = parser.parse_args(arguments)
    with one_line_errors():
        path, data_dir = local_path(options.path, 'FROM'), local_path(options.data_dir, 'TO')
        print(prepare(Path(path), Path(data_dir), options.num_points, options.seed))


if __name__ == '__main__':
    main()
