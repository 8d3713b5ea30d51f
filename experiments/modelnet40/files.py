"""How point clouds are read from files: meshes, arrays and text."""

import io
import math
import re
import zlib
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np

from experiments.data.tables import decode
from perceiver_jax.errors import Refused, reading

if TYPE_CHECKING:
    import trimesh

# Points to draw of a mesh, twice as many as the model takes, so that epochs differ;
# our choice: deviations.md#number-of-points
NUM_POINTS = 4096
ENDINGS = ('.off', '.npy', '.txt')

# Files of colours or normals (COFF, NOFF) have them behind each vertex; other kinds, as 4OFF, have
# other coordinates. In some of ModelNet40's files the counts follow on the line of OFF.
_OFF_HEADER = re.compile(rb'(?:ST)?C?N?OFF\s*(\d{1,9})\s+(\d{1,9})(?!\S)')


def read_cloud(encoded: bytes, num_points: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """Reads points, or draws points of a mesh's surface, uniformly by area.

    Args:
      encoded: The bytes of the file: a mesh (.off), an array (.npy) with a point in each row, or
        text (.txt) with a point in each line; the first three numbers are its coordinates.
      num_points: Number of points to draw of a mesh; largest number to take of an array or text.
      rng: Generator of random numbers.
      name: Name of the file; its ending tells the format.

    Returns:
      Points in random order, in the file's coordinates, float64 `[P, 3]`, 1 <= P <= num_points.

    Raises:
      Refused: The file is damaged or of another format, or its points are not finite; the message
        has its name.
    """
    ending = name.lower().rpartition('.')[-1]
    if ending == 'off':
        import trimesh  # slow, and each worker imports this file

        mesh = _read_mesh(encoded, name)
        points = np.asarray(trimesh.sample.sample_surface(mesh, num_points, seed=rng)[0])
    elif ending in ('npy', 'txt'):
        points = _read_array(encoded, ending, name)
    else:
        raise Refused(f'{name}: expected an .off, .npy or .txt file')
    return some_points(points, num_points, rng, name)


def random_of(label: str, name: str, seed: int = 0) -> np.random.Generator:
    """Returns the generator of the random numbers of one shape, the same each time it is read.

    Args:
      label: Name of the shape's class.
      name: Name of the shape, such as 'airplane_0001'.
      seed: Seed of the whole data set.
    """
    return np.random.default_rng((seed, zlib.crc32(f'{label}/{name}'.encode())))


def centred(points: np.ndarray) -> np.ndarray:
    """Returns points, `[P, 3]`, as they are kept: as float32 whose mean is 0.

    Cast only then: metres of a map leave float32 no digits for the shape.

    Args:
      points: The points in float64.
    """
    return (points - points.mean(0)).astype(np.float32)


def some_points(
    points: np.ndarray, num_points: int, rng: np.random.Generator, name: str
) -> np.ndarray:
    """Takes some points of a cloud in random order.

    Args:
      points: The cloud, `[number of points, 3 or more]`; the first three columns are coordinates.
      num_points: Largest number of points to take.
      rng: Generator of random numbers.
      name: Name of the cloud for error messages.

    Returns:
      Points, float64 `[P, 3]`, 1 <= P <= num_points.

    Raises:
      Refused: The array has another shape or type or no points, or a point is not finite.
    """
    if points.dtype.kind not in 'biuf':
        raise Refused(f'{name}: expected points as real numbers, got {points.dtype}')
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise Refused(f'{name}: expected points [P, 3 or more], got {points.shape}')
    if not np.isfinite(points[:, :3]).all():  # also of points that are not chosen
        raise Refused(f'{name}: some of its coordinates are not finite')
    # Far from the origin, as on a map, float32 would not tell neighbours apart.
    return points[rng.permutation(len(points))[:num_points], :3].astype(np.float64)


def _read_mesh(off: bytes, name: str) -> 'trimesh.Trimesh':
    """Reads an .off file, also one of ModelNet40's in which the counts follow 'OFF' on its line."""
    import trimesh

    # trimesh is given no comments: it would take the counts for a vertex where some follow.
    lines = [
        line.partition(b'#')[0].strip() for line in off.removeprefix(b'\xef\xbb\xbf').splitlines()
    ]
    lines = [line for line in lines if line]
    header = _OFF_HEADER.match(b'\n'.join(lines[:2]))
    if header is None:
        raise Refused(f"{name}: expected 'OFF' and the numbers of vertices and faces")
    num_vertices, num_faces = map(int, header.groups())
    data = lines[1 + header[0].count(b'\n') :]
    expected = num_vertices + num_faces
    if len(data) < expected:
        raise Refused(f'{name}: it ends after {len(data)} of {expected} vertices and faces')
    if len(data) > expected:
        raise Refused(
            f'{name}: it counts {expected} vertices and faces, and goes on after them with '
            f'{data[expected][:40]!r}'
        )
    text = b'\n'.join([b'OFF', b'%d %d 0' % (num_vertices, num_faces), *data])
    if not text.isascii():
        raise Refused(f'{name}: its vertices and faces are not numbers alone')
    with reading(name, 'a mesh'):
        mesh = trimesh.load_mesh(io.BytesIO(text), file_type='off', process=False)
    _check_counts(mesh, data[:num_vertices], data[num_vertices:], name)
    if not np.isfinite(mesh.vertices).all():
        raise Refused(f'{name}: some of its coordinates are not finite')
    if not (len(mesh.faces) and mesh.area > 0):  # trimesh knows no area of no faces
        raise Refused(f'{name}: a mesh of {len(mesh.faces)} faces without area')
    return mesh


def _check_counts(
    mesh: 'trimesh.Trimesh', vertices: Sequence[bytes], faces: Sequence[bytes], name: str
) -> None:
    """Refuses a mesh that is not what the file counts; trimesh takes a cut face for a smaller."""
    widths = sorted({len(vertex.split()) for vertex in vertices})
    if len(widths) > 1:  # a face among the vertices, where a count is wrong
        raise Refused(f'{name}: expected as many numbers for each vertex, got {widths}')
    num_triangles = 0
    for face in faces:
        corners, *listed = face.split()
        if not 1 <= int(corners) <= len(listed):
            raise Refused(f'{name}: a face of {int(corners)} corners lists {len(listed)}')
        num_triangles += max(int(corners) - 2, 0)
    if (len(mesh.vertices), len(mesh.faces)) != (len(vertices), num_triangles):
        raise Refused(
            f'{name}: {len(vertices)} vertices and {num_triangles} triangles were read as '
            f'{len(mesh.vertices)} and {len(mesh.faces)}'
        )


def check_npy(file: IO[bytes], num_bytes: int) -> None:
    """Checks that an .npy file holds what its header says: NumPy makes the array before it reads.

    Args:
      file: The file, from its beginning on.
      num_bytes: Its size.

    Raises:
      ValueError: It is no .npy file, or holds less than its header says.
    """
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:  # the third is that of names in UTF-8, which no array here has
        raise ValueError(f'version {version} of the format is not read')
    shape, _, dtype = readers[version](file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > num_bytes - file.tell():
        raise ValueError(f'its header says {dtype} {shape}, and it holds less')


def _read_array(encoded: bytes, ending: str, name: str) -> np.ndarray:
    text = decode(encoded, name) if ending == 'txt' else ''
    with reading(name, 'an array of points' if ending == 'npy' else 'a point in each line'):
        if ending == 'npy':
            check_npy(io.BytesIO(encoded), len(encoded))
            return np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
        return np.loadtxt(io.StringIO(text.replace(',', ' ')), ndmin=2)
