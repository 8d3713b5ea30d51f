"""How point clouds are read from files: meshes, arrays and text."""

import io
import re
from typing import TYPE_CHECKING

import numpy as np

from perceiver_jax.errors import Refused

if TYPE_CHECKING:
    import trimesh


def read_cloud(encoded: bytes, num_points: int, rng: np.random.Generator, name: str) -> np.ndarray:
    """Reads points, or draws points of a mesh's surface, uniformly by area.

    Args:
      encoded: The bytes of the file: a mesh (.off), an array (.npy) with a point in each row, or
        text (.txt) with a point in each line; the first three numbers are its coordinates.
      num_points: Number of points to draw of a mesh; largest number to take of an array or text.
      rng: Generator of random numbers.
      name: Name of the file; its ending tells the format.

    Returns:
      Points in random order, float32 `[P, 3]`, 1 <= P <= num_points.

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
      Points, float32 `[P, 3]`, 1 <= P <= num_points.

    Raises:
      Refused: The array has another shape or no points, or chosen points are not finite.
    """
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise Refused(f'{name}: expected points [P, 3 or more], got {points.shape}')
    points = points[rng.permutation(len(points))[:num_points], :3].astype(np.float32)
    if not np.isfinite(points).all():
        raise Refused(f'{name}: some of its coordinates are not finite')
    return points


def _read_mesh(off: bytes, name: str) -> 'trimesh.Trimesh':
    """Reads an .off file, also one of ModelNet40's in which the counts follow 'OFF' on its line."""
    import trimesh

    counts = re.search(rb'OFF(?:\s|#.*)*?(\d+)\s+(\d+)', off)
    if counts is None:
        raise Refused(f"{name}: expected 'OFF' and the numbers of vertices and faces")
    expected = sum(map(int, counts.groups()))
    # trimesh would read a file that ends early as a mesh of fewer faces.
    lines = off[counts.end() :].split(b'\n')[1:]
    found = sum(1 for line in lines if line.strip() and not line.lstrip().startswith(b'#'))
    if found < expected:
        raise Refused(f'{name}: it ends after {found} of {expected} vertices and faces')
    try:
        mesh = trimesh.load_mesh(io.BytesIO(off), file_type='off', process=False)
        area = mesh.area
    except Exception as error:  # trimesh has no error class for a damaged file
        raise Refused(f'{name}: {error}') from error
    if not area > 0:
        raise Refused(f'{name}: a mesh of {len(mesh.faces)} faces without area')
    return mesh


def _read_array(encoded: bytes, ending: str, name: str) -> np.ndarray:
    try:
        if ending == 'npy':
            return np.load(io.BytesIO(encoded))
        return np.loadtxt(io.StringIO(encoded.decode().replace(',', ' ')), ndmin=2)
    except Exception as error:  # NumPy has no error class for a damaged file
        raise Refused(f'{name}: {error}') from error
